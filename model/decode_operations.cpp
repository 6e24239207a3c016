#include "model/decoder.h"
#include "model/layer_builder.h"
#include "model/tokenizer.h"

namespace turboesm {
namespace {

// Attention of one step in one layer: the new K and V into the cache, then all rows' queries over it. The keys stay as
// they are stored; what their transform and their mean before RoPE ask for is done to the queries, once. In this order
// CUDA makes one kernel of what precedes the attention (kv_step.cu).
void cached_attention(LayerBuilder& builder, const Esm2Config& c, const ForwardTensors& t, const DecodeTensors& d,
                      const KvCache& cache, const KvLayer& layer) {
  const uint32_t sequences = cache.sequences(), rows = 2 * sequences, heads = c.heads, head_dim = c.head_dim();
  builder.add(KvQuery{.q = t.q,
                      .transform = layer.query_transform,
                      .projection = layer.k.projection,
                      .position_mean = layer.k.position_mean,
                      .out = d.q,
                      .projected = d.projected,
                      .position = d.position,
                      .rows = rows,
                      .heads = heads,
                      .head_dim = head_dim});
  if (layer.k.position_mean)
    builder.add(Linear{.x = d.position,
                       .weight = d.table,
                       .bias = {},
                       .residual = {},
                       .y = d.bias,
                       .rows = rows * heads,
                       .inputs = head_dim,
                       .outputs = cache.capacity()});
  builder.add(KvAppend{.k = t.k,
                       .v = t.v,
                       .appends = d.appends,
                       .table = t.rope_table,
                       .k_side = layer.k,
                       .v_side = layer.v,
                       .cache = layer.cache,
                       .format = cache.format(),
                       .tokens = rows,
                       .sequences = sequences,
                       .heads = heads,
                       .head_dim = head_dim,
                       .capacity = cache.capacity(),
                       .table_rows = cache.capacity(),
                       .max_count = 1});
  builder.add(KvAttention{.q = d.q,
                          .projected = d.projected,
                          .bias = d.bias,
                          .cache = layer.cache,
                          .lengths = d.lengths,
                          .k_codebook = layer.k.codebook,
                          .v_codebook = layer.v.codebook,
                          .transform = layer.output_transform,
                          .mean = layer.v.mean,
                          .out = t.normed,
                          .format = cache.format(),
                          .sequences = sequences,
                          .queries = 2,
                          .heads = heads,
                          .head_dim = head_dim,
                          .capacity = cache.capacity()});
}

}  // namespace

std::vector<Operation> decode_operations(const Esm2Weights& weights, const ForwardTensors& forward,
                                         const DecodeTensors& decode, const KvCache& cache,
                                         const DecoderOptions& options) {
  const Esm2Config& config = weights.config();
  LayerBuilder builder(weights, forward, 2 * cache.sequences());
  builder.embed(/*sequences=*/1);  // all rows have one token-dropout scale
  for (uint32_t l = 0; l < config.layers; ++l) {
    const LayerWeights& layer = weights.layers[l];
    builder.queries_keys_values(layer, cache.capacity());
    cached_attention(builder, config, forward, decode, cache, cache.layer(l));
    if (l == 0 && options.probe) builder.add(Copy{forward.normed, decode.probe});
    builder.attention_output(layer);
    builder.feed_forward(layer);
  }
  if (options.hidden) builder.final_norm();
  builder.lm_head();
  builder.add(Sample{.logits = forward.logits,
                     .candidates = decode.candidates,
                     .limits = decode.limits,
                     .tokens = decode.tokens,
                     .log_probability = decode.log_probability,
                     .ids = forward.ids,
                     .positions = forward.positions,
                     .appends = decode.appends,
                     .lengths = decode.lengths,
                     .active = decode.active,
                     .sequences = cache.sequences(),
                     .vocab = config.vocab,
                     .candidate_count = uint32_t(decode.candidates.count),
                     .capacity = cache.capacity(),
                     .seed = options.seed,
                     .first_stream = options.first_stream,
                     .temperature = options.temperature,
                     .top_p = options.top_p,
                     .stop_id = Tokenizer::kEos});
  return builder.take();
}

}  // namespace turboesm
