#pragma once

#include <array>

#include "runtime/tensor.h"
#include "shaders/include/kv_layout.h"

// The operations of a quantized KV cache and of generation on top of it. docs/kv-cache.md explains the mathematics;
// shaders/include/kv_layout.h says where each bit lies.
namespace turboesm {

// How a token's scale is found (per segment of n values y, with Q(z) the centroids nearest to z):
//   none       no scale: y = Q(y)
//   norm       s = |y| / sqrt(n)
//   corrected  codes as with norm, s = |y| / |Q|: what is decoded has the norm that was measured
//   searched   codes of that scale s among three round |y| / sqrt(n) (kv_search_factor) for which |y - s Q(y / s)| is
//              least; then s = |y|^2 / (y . Q), so that what is decoded has the measured length along y
//   absmax     s = max |y| / (largest centroid, or 127 for 8-bit integers)
enum class KvScale : uint32_t { none, norm, corrected, searched, absmax };

// How K or V of one token and head are stored. head_dim / segments is a multiple of 4.
struct KvSide {
  uint32_t segments = 1;  // 2: the first and the second half of the values, each with its own bits and scale
  std::array<uint32_t, 2> bits{
      16, 0};               // of a value in either segment: 1..4 codes; 8 signed integers (absmax); 16, 32: f16, f32
  uint32_t scale_bits = 0;  // 0, 8, 16
  KvScale scale = KvScale::none;  // none exactly when scale_bits is 0
  bool qjl = false;               // with the signs of a projection of what quantization left over, and its norm
  bool gaussian = false;          // the codebook operand is kv_gaussian.h's, which a kernel may then know by heart

  bool operator==(const KvSide&) const = default;
  bool has_codebook() const { return bits[0] <= 4; }
  uint32_t codebook_size() const;                 // values of a head's codebooks; 0 without
  uint32_t block_words(uint32_t head_dim) const;  // 32-bit words of a block of KV_BLOCK tokens
};

struct KvFormat {
  KvSide k, v;
  bool operator==(const KvFormat&) const = default;
  uint32_t block_words(uint32_t head_dim) const { return k.block_words(head_dim) + v.block_words(head_dim); }
};

// What a side's values go through before they are quantized: y = transform (x - mean - turned position_mean). Operands
// that are empty tensors are left out. "heads or 1": one for each head, or one that all share. d = head_dim.
struct KvSideTensors {
  Tensor mean;           // [heads, d] f32
  Tensor position_mean;  // [heads, d] f32, K only: the mean before RoPE, turned by the token's position and taken off
  Tensor transform;      // [heads or 1, d, d] f32, row-major: y_i = sum_j transform[i, j] x_j
  // [heads or 1, codebook_size] f32; for each segment 2^bits centroids in ascending order, then the 2^bits - 1
  // thresholds between them: value y has as its code the number of thresholds t with t s < y.
  Tensor codebook;
  Tensor projection;  // [d, d] f32, with qjl: the signs are those of projection (y - decoded y)
};

// Encodes the new tokens of each sequence into the cache. Products, sums and their order are the same on every back
// end, so that equal f32 input gives equal bits. Many tokens of f16 may take a faster way, with sums rounded as they
// come: a value near a threshold may then get the code beside it, and a scale the one beside it. Tokens of a sequence's
// last block that are not new stay as they are.
struct KvAppend {
  static constexpr std::string_view kName = "kv_append";
  Tensor k, v;     // [tokens, heads, head_dim] D, k after RoPE
  Tensor appends;  // [sequences, 3] i32: first row of k and v, first position in the cache, number of tokens (or 0)
  Tensor table;    // [table_rows, head_dim] f32, RoPE's (QkvRope); with k_side.position_mean
  KvSideTensors k_side, v_side;
  Tensor cache;  // in and out [sequences, heads, capacity / KV_BLOCK, block_words] i32
  KvFormat format;
  uint32_t tokens = 0, sequences = 0, heads = 0, head_dim = 0, capacity = 0, table_rows = 0;
  uint32_t max_count = 1;  // >= any number of new tokens (it sizes the launch)

  template <class Visit>
  void operands(Visit&& visit) const {
    const uint64_t size = uint64_t(tokens) * heads * head_dim;
    visit("k", k, size, Access::read, kFloat);
    visit("v", v, size, Access::read, kFloat);
    visit("appends", appends, 3 * uint64_t(sequences), Access::read, kI32);
    if (k_side.position_mean) visit("table", table, uint64_t(table_rows) * head_dim, Access::read, kF32);
    visit_side(visit, format.k, k_side);
    visit_side(visit, format.v, v_side);
    visit("cache", cache, uint64_t(sequences) * heads * (capacity / KV_BLOCK) * format.block_words(head_dim),
          Access::read_write, kI32);
  }
  double flops() const {
    const double transforms = (k_side.transform ? 1.0 : 0.0) + (v_side.transform ? 1.0 : 0.0);
    return 2.0 * transforms * tokens * heads * head_dim * head_dim;
  }

 private:
  template <class Visit>
  void visit_side(Visit&& visit, const KvSide& side, const KvSideTensors& t) const {
    const uint64_t width = uint64_t(heads) * head_dim, square = uint64_t(head_dim) * head_dim;
    if (t.mean) visit("mean", t.mean, width, Access::read, kF32);
    if (t.position_mean) visit("position_mean", t.position_mean, width, Access::read, kF32);
    if (t.transform) visit("transform", t.transform, per_head(t.transform, square, heads), Access::read, kF32);
    if (side.has_codebook())
      visit("codebook", t.codebook, per_head(t.codebook, side.codebook_size(), heads), Access::read, kF32);
    if (side.qjl) visit("projection", t.projection, square, Access::read, kF32);
  }

 public:
  // Elements of a tensor that holds `size` for each head or once for all: heads x size where it has as many.
  static uint64_t per_head(const Tensor& tensor, uint64_t size, uint32_t heads) {
    return tensor.count > size ? size * heads : size;
  }
};

// What attention over a cache needs of its queries, once a step, so that keys stay as they are stored:
//   out       = transform q               (transform is A^-T for keys encoded with A)
//   projected = projection out            (with qjl)
//   position  = the vector u with u . table[j] = q . (position_mean turned to position j), for every j
struct KvQuery {
  static constexpr std::string_view kName = "kv_query";
  Tensor q;              // [rows, heads, head_dim] D, after RoPE, scaled
  Tensor transform;      // [heads or 1, d, d] f32, optional
  Tensor projection;     // [d, d] f32, optional
  Tensor position_mean;  // [heads, d] f32, optional
  Tensor out;            // out [rows, heads, d] f32
  Tensor projected;      // out [rows, heads, d] f32, with projection
  Tensor position;       // out [rows, heads, d] any, with position_mean
  uint32_t rows = 0, heads = 0, head_dim = 0;

  template <class Visit>
  void operands(Visit&& visit) const {
    const uint64_t size = uint64_t(rows) * heads * head_dim, square = uint64_t(head_dim) * head_dim;
    visit("q", q, size, Access::read, kFloat);
    if (transform) visit("transform", transform, KvAppend::per_head(transform, square, heads), Access::read, kF32);
    if (projection) visit("projection", projection, square, Access::read, kF32);
    if (position_mean) visit("position_mean", position_mean, uint64_t(heads) * head_dim, Access::read, kF32);
    visit("out", out, size, Access::write, kF32);
    if (projection) visit("projected", projected, size, Access::write, kF32);
    if (position_mean) visit("position", position, size, Access::write, kFloat);
  }
  double flops() const {
    return 2.0 * rows * heads * head_dim * head_dim * ((transform ? 1 : 0) + (projection ? 1 : 0));
  }
};

// Attention of a few queries over the cached tokens of their sequence, in one pass over the cache: codes are unpacked,
// scored, weighed by an online softmax (as in Attention) and summed. With y^ the centroids of a token's codes, s its
// scale, and sigma, r its residual signs and norm:
//   score = s_k (q . y^_k) + sqrt(pi / 2) / d x r (projected . sigma) + bias
//   out   = transform (sum_j p_j s_v y^_v / sum_j p_j) + mean
// Row b x queries + i is query i of sequence b; it sees tokens 0 .. lengths[b] of its sequence. A sequence of length 0
// gives zeros. Where out is a 16-bit type, a back end may round y^ to 8 bits of the largest centroid, and q and the
// weights p s to 16 bits of the largest of a block, so that int8 matrix cores can multiply them.
struct KvAttention {
  static constexpr std::string_view kName = "kv_attention";
  Tensor q;           // [sequences x queries, heads, head_dim] f32, KvQuery's out
  Tensor projected;   // the same, with format.k.qjl
  Tensor bias;        // [sequences x queries, heads, capacity] f32, optional
  Tensor cache;       // [sequences, heads, capacity / KV_BLOCK, block_words] i32
  Tensor lengths;     // [sequences] i32, at most capacity
  Tensor k_codebook;  // as in KvAppend
  Tensor v_codebook;
  Tensor transform;  // [heads or 1, d, d] f32, optional: B^-1 for values encoded with B
  Tensor mean;       // [heads, d] f32, optional
  Tensor out;        // out [sequences x queries, heads, head_dim] any
  KvFormat format;
  uint32_t sequences = 0, queries = 1, heads = 0, head_dim = 0, capacity = 0;
  double cached_tokens = 0;  // sum of the lengths, for flops() and bytes read only; 0 if unknown

  template <class Visit>
  void operands(Visit&& visit) const {
    const uint64_t rows = uint64_t(sequences) * queries, width = uint64_t(heads) * head_dim;
    visit("q", q, rows * width, Access::read, kF32);
    if (format.k.qjl) visit("projected", projected, rows * width, Access::read, kF32);
    if (bias) visit("bias", bias, rows * heads * capacity, Access::read, kF32);
    visit("cache", cache, uint64_t(sequences) * heads * (capacity / KV_BLOCK) * format.block_words(head_dim),
          Access::read, kI32);
    visit("lengths", lengths, sequences, Access::read, kI32);
    if (format.k.has_codebook())
      visit("k_codebook", k_codebook, KvAppend::per_head(k_codebook, format.k.codebook_size(), heads), Access::read,
            kF32);
    if (format.v.has_codebook())
      visit("v_codebook", v_codebook, KvAppend::per_head(v_codebook, format.v.codebook_size(), heads), Access::read,
            kF32);
    if (transform)
      visit("transform", transform, KvAppend::per_head(transform, uint64_t(head_dim) * head_dim, heads), Access::read,
            kF32);
    if (mean) visit("mean", mean, width, Access::read, kF32);
    visit("out", out, rows * width, Access::write, kFloat);
  }
  double flops() const { return 4.0 * cached_tokens * queries * heads * head_dim; }
};

// Chooses each sequence's next residue and moves its state on, so that a decoding step can be replayed without the
// host. Sequence b stands at position p = positions[2 b + 1], that of its <mask> query, and is active while counts > 0
// in `active`. If tokens[b, p] >= 0 that is the residue (a forced one), else it is drawn from softmax(logits of row 2 b
// + 1 over `candidates` / temperature) cut to the likeliest that together reach top_p, with the uniform number
// random_uniform(seed, first_stream + b, p) of runtime/random.h; temperature 0 takes the likeliest. Then
//   tokens[b, p] = residue;  log_probability[b] += its log-softmax over the candidates, at temperature 1
//   and if residue is stop_id, or p + 1 == limits[b]: active[b] = 0, appends[b].count = 0
//   else ids[2 b] = residue, positions[2 b] = p, positions[2 b + 1] = p + 1, appends[b] = (2 b, p, 1), lengths[b] = p +
//   1
struct Sample {
  static constexpr std::string_view kName = "sample";
  Tensor logits;           // [sequences x 2, vocab] f32
  Tensor candidates;       // [candidate_count] i32, at most 64
  Tensor limits;           // [sequences] i32: a sequence's largest length in tokens, at most capacity
  Tensor tokens;           // in and out [sequences, capacity] i32
  Tensor log_probability;  // in and out [sequences] f32
  Tensor ids, positions;   // in and out [sequences x 2] i32
  Tensor appends;          // in and out [sequences, 3] i32
  Tensor lengths;          // in and out [sequences] i32
  Tensor active;           // in and out [sequences] i32
  uint32_t sequences = 0, vocab = 0, candidate_count = 0, capacity = 0;
  uint32_t seed = 0, first_stream = 0;
  float temperature = 1, top_p = 1;
  int32_t stop_id = 2;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("logits", logits, 2 * uint64_t(sequences) * vocab, Access::read, kF32);
    visit("candidates", candidates, candidate_count, Access::read, kI32);
    visit("limits", limits, sequences, Access::read, kI32);
    visit("tokens", tokens, uint64_t(sequences) * capacity, Access::read_write, kI32);
    visit("log_probability", log_probability, sequences, Access::read_write, kF32);
    visit("ids", ids, 2 * uint64_t(sequences), Access::read_write, kI32);
    visit("positions", positions, 2 * uint64_t(sequences), Access::read_write, kI32);
    visit("appends", appends, 3 * uint64_t(sequences), Access::read_write, kI32);
    visit("lengths", lengths, sequences, Access::read_write, kI32);
    visit("active", active, sequences, Access::read_write, kI32);
  }
  double flops() const { return 0; }
};

}  // namespace turboesm
