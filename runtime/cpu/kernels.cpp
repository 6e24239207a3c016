// Every operation on the CPU, compiled once for each instruction set (TURBOESM_CPU_VARIANT names it). Plain and exact
// enough to be the oracle of every other back end: products of D operands in fp32, everything else in fp32, each row's
// sums in an order that depends on the row's own length alone.
#include "runtime/cpu/kernels.h"

#include "runtime/cpu/kernel_tools.h"
#include "runtime/cpu/kv_kernels.h"
#include "runtime/operation_rules.h"
#include "runtime/random.h"
#include "shaders/include/erf_coefficients.h"

namespace turboesm::cpu {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Stride = Eigen::OuterStride<>;
using ConstMap = Eigen::Map<const RowMajor, Eigen::Unaligned, Stride>;
using MutableMap = Eigen::Map<RowMajor, Eigen::Unaligned, Stride>;

uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

// Sequence of a packed token: the last b with cu_seqlens[b] <= token, empty sequences skipped.
uint32_t sequence_of(const int32_t* cu_seqlens, uint32_t sequences, uint32_t token) {
  uint32_t low = 0, high = sequences;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (uint32_t(cu_seqlens[middle]) <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Rows [first, first + count) of a [*, width] tensor with the given row stride as f32: a view when the storage is f32
// and no row of padding is asked for, else a copy in `scratch`, its rows past `count` zero up to `padded`.
const float* rows_as_f32(const Tensor& tensor, uint64_t first, uint64_t count, uint64_t padded, uint64_t width,
                         uint64_t stride, uint64_t column, float* scratch, uint64_t& scratch_stride) {
  if (tensor.dtype == DType::f32 && padded == count) {
    scratch_stride = stride;
    return as<const float>(tensor) + first * stride + column;
  }
  scratch_stride = width;
  for (uint64_t i = 0; i < count; ++i) load(tensor, (first + i) * stride + column, width, scratch + i * width);
  for (uint64_t i = count * width; i < padded * width; ++i) scratch[i] = 0;
  return scratch;
}

// GELU(z) = z/2 (1 + erf(z / sqrt 2)); the error function as erf_coefficients.h states it, free of branches so that the
// loop over a row vectorizes.
float gelu(float z) {
  const float x = z * 0.70710678118654752f, t = x * x;
  float p = TURBOESM_ERF_P6, q = TURBOESM_ERF_Q5;
  for (const float c :
       {TURBOESM_ERF_P5, TURBOESM_ERF_P4, TURBOESM_ERF_P3, TURBOESM_ERF_P2, TURBOESM_ERF_P1, TURBOESM_ERF_P0})
    p = p * t + c;
  for (const float c : {TURBOESM_ERF_Q4, TURBOESM_ERF_Q3, TURBOESM_ERF_Q2, TURBOESM_ERF_Q1, TURBOESM_ERF_Q0})
    q = q * t + c;
  const float quotient = x * (p / q), sign = x < 0 ? -1.0f : 1.0f;
  const float inside = quotient > 1.0f ? 1.0f : quotient < -1.0f ? -1.0f : quotient;
  const float erf = (x < 0 ? -x : x) >= TURBOESM_ERF_LIMIT ? sign : inside;
  return 0.5f * z + 0.5f * z * erf;
}

// ---- Operations -----------------------------------------------------------------------------------------------------

void token_dropout(const TokenDropout& a, Range sequences) {
  constexpr float kTrainedMaskRatio = 0.15f * 0.8f;
  const int32_t* ids = as<const int32_t>(a.ids);
  const int32_t* cu_seqlens = as<const int32_t>(a.cu_seqlens);
  for (uint64_t b = sequences.begin; b < sequences.end; ++b) {
    const int32_t length = cu_seqlens[b + 1] - cu_seqlens[b];
    int32_t masks = 0;
    for (int32_t t = cu_seqlens[b]; t < cu_seqlens[b + 1]; ++t) masks += ids[t] == a.mask_id;
    const float kept = length ? 1.0f - float(masks) / float(length) : 0.0f;
    as<float>(a.scale)[b] = masks < length ? (1.0f - kTrainedMaskRatio) / kept : 0.0f;
  }
}

void embed(const Embed& a, Range tokens) {
  const int32_t* ids = as<const int32_t>(a.ids);
  const int32_t* cu_seqlens = as<const int32_t>(a.cu_seqlens);
  for (uint64_t t = tokens.begin; t < tokens.end; ++t) {
    float* out = as<float>(a.out) + t * a.width;
    const int32_t id = ids[t];
    const bool known = id >= 0 && uint32_t(id) < a.vocab;
    load(a.table, uint64_t(known ? id : a.unk_id) * a.width, a.width, out);
    if (!a.scale) continue;
    const float scale =
        id == a.mask_id ? 0.0f : as<const float>(a.scale)[sequence_of(cu_seqlens, a.sequences, uint32_t(t))];
    for (uint32_t i = 0; i < a.width; ++i) out[i] *= scale;
  }
}

void layer_norm(const LayerNorm& a, Range rows) {
  static thread_local Scratch scratch;
  float* y = scratch.get(a.width);
  const float* weight = as<const float>(a.weight);
  const float* bias = as<const float>(a.bias);
  for (uint64_t r = rows.begin; r < rows.end; ++r) {
    const float* x = as<const float>(a.x) + r * a.width;
    const float mean = sum_of(a.width, [x](uint64_t i) { return x[i]; }) / float(a.width);
    const float variance = sum_of(a.width, [=](uint64_t i) { return (x[i] - mean) * (x[i] - mean); }) / float(a.width);
    const float scale = 1.0f / std::sqrt(variance + a.epsilon);
    for (uint32_t i = 0; i < a.width; ++i) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    store(a.y, r * a.width, a.width, y);
  }
}

// Eigen computes groups of columns and a remainder with different code; rows padded to whole groups make a row's
// result the same wherever it stands.
constexpr uint64_t kRowGroup = 8;

// A tile of a product x weight^T: rows row .. row + rows of it, outputs output .. output + outputs.
struct ProductTile {
  uint64_t row = 0, output = 0, rows = 0, outputs = 0;
  float* values = nullptr;  // [rows, outputs], in scratch memory of this thread, until its next tile
};

// Tile number `tile` of x [rows, inputs] times weight [outputs, inputs], transposed; output tiles innermost.
ProductTile multiply(const Tensor& x, const Tensor& weight, uint64_t rows, uint64_t inputs, uint64_t outputs,
                     uint64_t tile) {
  static thread_local Scratch x_scratch, weight_scratch, product_scratch;
  const uint64_t output_tiles = (outputs + kProductOutputs - 1) / kProductOutputs;
  ProductTile t{.row = tile / output_tiles * kProductRows, .output = tile % output_tiles * kProductOutputs};
  t.rows = min_of(kProductRows, rows - t.row);
  t.outputs = min_of(kProductOutputs, outputs - t.output);
  const uint64_t padded = round_up(t.rows, kRowGroup);

  uint64_t x_stride = 0, weight_stride = 0;
  const float* x_rows =
      rows_as_f32(x, t.row, t.rows, padded, inputs, inputs, 0, x_scratch.get(padded * inputs), x_stride);
  const float* weight_rows = rows_as_f32(weight, t.output, t.outputs, t.outputs, inputs, inputs, 0,
                                         weight_scratch.get(t.outputs * inputs), weight_stride);
  t.values = product_scratch.get(padded * t.outputs);
  const auto size = [](uint64_t n) { return Eigen::Index(n); };
  MutableMap(t.values, size(padded), size(t.outputs), Stride(size(t.outputs))).noalias() =
      ConstMap(x_rows, size(padded), size(inputs), Stride(size(x_stride))) *
      ConstMap(weight_rows, size(t.outputs), size(inputs), Stride(size(weight_stride))).transpose();
  return t;
}

// values[i] += the bias of output `output` + i.
void add_bias(const Tensor& bias, uint64_t output, uint64_t outputs, float* values) {
  const float* b = as<const float>(bias) + output;
  for (uint64_t i = 0; i < outputs; ++i) values[i] += b[i];
}

void linear(const Linear& a, Range tiles) {
  for (uint64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const ProductTile t = multiply(a.x, a.weight, a.rows, a.inputs, a.outputs, tile);
    for (uint64_t r = 0; r < t.rows; ++r) {
      float* y = t.values + r * t.outputs;
      const uint64_t first = (t.row + r) * a.outputs + t.output;
      if (a.bias) add_bias(a.bias, t.output, t.outputs, y);
      if (a.gelu)
        for (uint64_t i = 0; i < t.outputs; ++i) y[i] = gelu(y[i]);
      if (a.residual) {
        const float* residual = as<const float>(a.residual) + first;
        for (uint64_t i = 0; i < t.outputs; ++i) y[i] += residual[i];
      }
      store(a.y, first, t.outputs, y);
    }
  }
}

// Scales and turns `count` values of q or k, from value `first` of a head on, by an angle for each pair. `angles` is
// the table's row; the values may go on into the heads that follow.
void turn(float* values, uint64_t count, uint64_t first, uint64_t head_dim, const float* angles, float scale) {
  for (uint64_t i = 0, at = first; i < count; i += 2, at = at + 2 < head_dim ? at + 2 : 0) {
    const float x = values[i] * scale, y = values[i + 1] * scale, cosine = angles[at], sine = angles[at + 1];
    values[i] = x * cosine - y * sine;
    values[i + 1] = y * cosine + x * sine;
  }
}

void qkv_rope(const QkvRope& a, Range tiles) {
  const uint64_t width = uint64_t(a.heads) * a.head_dim;  // of q, k and v each
  for (uint64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const ProductTile t = multiply(a.x, a.weight, a.tokens, a.inputs, a.outputs(), tile);
    for (uint64_t r = 0; r < t.rows; ++r) {
      float* row = t.values + r * t.outputs;
      add_bias(a.bias, t.output, t.outputs, row);
      const uint64_t token = t.row + r, end = t.output + t.outputs;
      const float* angles = as<const float>(a.table) + uint64_t(as<const int32_t>(a.positions)[token]) * a.head_dim;
      // A tile may have a share in more than one of q, k and v.
      for (uint64_t output = t.output, next; output < end; output = next) {
        const uint64_t part = output / width, column = output - part * width;
        next = min_of(end, (part + 1) * width);
        float* values = row + (output - t.output);
        if (part < 2)
          turn(values, next - output, column % a.head_dim, a.head_dim, angles, part == 0 ? a.q_scale : 1.0f);
        store(a.qkv, (part * a.tokens + token) * width + column, next - output, values);
      }
    }
  }
}

constexpr uint64_t kKeyBlock = 256;

// One block of queries of one head, with an online softmax over blocks of keys.
void attend(const Attention& a, uint64_t begin, uint64_t end, uint64_t first_query, uint64_t head, Scratch& scratch) {
  const uint64_t d = a.head_dim, width = uint64_t(a.heads) * d, column = head * d;
  const uint64_t queries = min_of(kQueryBlock, end - first_query), padded = round_up(queries, kRowGroup);

  float* memory = scratch.get(padded * d * 2 + kKeyBlock * d * 2 + padded * kKeyBlock + padded * 2);
  float* q_copy = memory;
  float* out = q_copy + padded * d;
  float* k_copy = out + padded * d;
  float* v_copy = k_copy + kKeyBlock * d;
  float* scores = v_copy + kKeyBlock * d;
  float* row_max = scores + padded * kKeyBlock;
  float* row_sum = row_max + padded;

  const auto size = [](uint64_t n) { return Eigen::Index(n); };
  uint64_t q_stride = 0, k_stride = 0, v_stride = 0;
  const float* q = rows_as_f32(a.q, first_query, queries, padded, d, width, column, q_copy, q_stride);
  MutableMap out_map(out, size(padded), size(d), Stride(size(d)));
  out_map.setZero();
  for (uint64_t r = 0; r < padded; ++r) row_max[r] = -INFINITY, row_sum[r] = 0;

  for (uint64_t key = begin; key < end; key += kKeyBlock) {
    const uint64_t keys = min_of(kKeyBlock, end - key);
    const float* k = rows_as_f32(a.k, key, keys, keys, d, width, column, k_copy, k_stride);
    const float* v = rows_as_f32(a.v, key, keys, keys, d, width, column, v_copy, v_stride);
    MutableMap score_map(scores, size(padded), size(keys), Stride(size(keys)));
    score_map.noalias() = ConstMap(q, size(padded), size(d), Stride(size(q_stride))) *
                          ConstMap(k, size(keys), size(d), Stride(size(k_stride))).transpose();
    for (uint64_t r = 0; r < padded; ++r) {
      float* row = scores + r * keys;
      const float block_max = max_of(row, keys), new_max = row_max[r] < block_max ? block_max : row_max[r];
      const float shrink = std::exp(row_max[r] - new_max);
      row_sum[r] = row_sum[r] * shrink + exponentiate(row, keys, new_max);
      row_max[r] = new_max;
      for (uint64_t i = 0; i < d; ++i) out[r * d + i] *= shrink;
    }
    out_map.noalias() += score_map * ConstMap(v, size(keys), size(d), Stride(size(v_stride)));
  }
  for (uint64_t r = 0; r < queries; ++r) {
    const float scale = 1.0f / row_sum[r];
    for (uint64_t i = 0; i < d; ++i) out[r * d + i] *= scale;
    store(a.out, (first_query + r) * width + column, d, out + r * d);
  }
}

void attention(const Attention& a, Range blocks) {
  static thread_local Scratch scratch;
  const uint64_t query_blocks = (a.max_length + kQueryBlock - 1) / kQueryBlock;
  const int32_t* cu_seqlens = as<const int32_t>(a.cu_seqlens);
  for (uint64_t item = blocks.begin; item < blocks.end; ++item) {
    const uint64_t sequence = item / query_blocks / a.heads, head = item / query_blocks % a.heads;
    const uint64_t begin = uint64_t(cu_seqlens[sequence]), end = uint64_t(cu_seqlens[sequence + 1]);
    const uint64_t first_query = begin + item % query_blocks * kQueryBlock;
    if (first_query < end) attend(a, begin, end, first_query, head, scratch);
  }
}

void pool_mean(const PoolMean& a, Range sequences) {
  const int32_t* cu_seqlens = as<const int32_t>(a.cu_seqlens);
  for (uint64_t b = sequences.begin; b < sequences.end; ++b) {
    float* out = as<float>(a.out) + b * a.width;
    for (uint32_t i = 0; i < a.width; ++i) out[i] = 0;
    const int64_t first = int64_t(cu_seqlens[b]) + 1, last = int64_t(cu_seqlens[b + 1]) - 1;
    if (first >= last) continue;
    for (int64_t t = first; t < last; ++t) {
      const float* x = as<const float>(a.x) + uint64_t(t) * a.width;
      for (uint32_t i = 0; i < a.width; ++i) out[i] += x[i];
    }
    for (uint32_t i = 0; i < a.width; ++i) out[i] /= float(last - first);
  }
}

void attention_maps(const AttentionMaps& a, Range rows) {
  static thread_local Scratch scratch;
  const uint64_t d = a.head_dim, width = uint64_t(a.heads) * d;
  float* q = scratch.get(2 * d);
  float* k = q + d;
  for (uint64_t item = rows.begin; item < rows.end; ++item) {
    const uint64_t head = item / a.length, row = item % a.length;
    float* out = as<float>(a.out) + item * a.length;
    load(a.q, (a.begin + row) * width + head * d, d, q);
    for (uint64_t j = 0; j < a.length; ++j) {
      load(a.k, (a.begin + j) * width + head * d, d, k);
      out[j] = sum_of(d, [=](uint64_t i) { return q[i] * k[i]; });
    }
    const float sum = exponentiate(out, a.length, max_of(out, a.length));
    for (uint64_t j = 0; j < a.length; ++j) out[j] /= sum;
  }
}

void contact_sums(const ContactSums& a, Range heads) {
  const uint64_t residues = a.length - 2;
  for (uint64_t head = heads.begin; head < heads.end; ++head) {
    const float* map = as<const float>(a.maps) + head * a.length * a.length;
    float* sums = as<float>(a.sums) + head * (residues + 1);
    for (uint64_t i = 0; i < residues; ++i)
      sums[i] = sum_of(residues, [=, length = uint64_t(a.length)](uint64_t j) {
        return map[(i + 1) * length + j + 1] + map[(j + 1) * length + i + 1];
      });
    sums[residues] = sum_of(residues, [=](uint64_t i) { return sums[i]; });
  }
}

void contact_accumulate(const ContactAccumulate& a, Range rows) {
  const uint64_t residues = a.length - 2, length = a.length;
  for (uint64_t i = rows.begin; i < rows.end; ++i) {
    float* logits = as<float>(a.logits) + i * residues;
    for (uint64_t head = 0; head < a.heads; ++head) {
      const float* map = as<const float>(a.maps) + head * length * length;
      const float* sums = as<const float>(a.sums) + head * (residues + 1);
      const float weight = as<const float>(a.weight)[head], share = sums[i] / sums[residues];
      for (uint64_t j = 0; j < residues; ++j) {
        const float symmetric = map[(i + 1) * length + j + 1] + map[(j + 1) * length + i + 1];
        logits[j] += weight * (symmetric - share * sums[j]);
      }
    }
  }
}

// Hands body(first element, elements) the parts of `count` elements that the blocks stand for.
template <class F>
void for_elements(Range blocks, uint64_t count, F&& body) {
  const uint64_t first = blocks.begin * kElementBlock, last = min_of(blocks.end * kElementBlock, count);
  for (uint64_t i = first; i < last; i += kElementBlock) body(i, min_of(kElementBlock, last - i));
}

void fill(const Fill& a, Range blocks) {
  for_elements(blocks, a.out.count, [&](uint64_t first, uint64_t count) {
    float values[kElementBlock];
    for (uint64_t i = 0; i < count; ++i) values[i] = a.value;
    store(a.out, first, count, values);
  });
}

void random_normal(const RandomNormal& a, Range blocks) {
  for_elements(blocks, a.out.count, [&](uint64_t first, uint64_t count) {
    float values[kElementBlock];
    for (uint64_t i = 0; i < count; i += 2) {
      random_normal_pair(a.seed, uint32_t((first + i) / 2), values[i], values[i + 1]);
      values[i] *= a.stddev;
      values[i + 1] *= a.stddev;
    }
    store(a.out, first, count, values);
  });
}

// The position among the candidates of the residue that `uniform` in [0, 1) draws from softmax(scores / temperature),
// cut to the likeliest that together reach top_p; the likeliest one at temperature 0. Of equals the first comes first.
uint32_t draw(const float* scores, uint32_t count, float temperature, float top_p, float uniform) {
  float weights[kMaxCandidates];
  uint32_t order[kMaxCandidates];  // by weight, descending
  for (uint32_t i = 0; i < count; ++i) {
    uint32_t place = i;
    for (; place > 0 && scores[order[place - 1]] < scores[i]; --place) order[place] = order[place - 1];
    order[place] = i;
  }
  if (temperature == 0) return order[0];
  float sum = 0, kept_sum = 0, drawn_sum = 0;
  for (uint32_t i = 0; i < count; ++i) sum += weights[i] = std::exp((scores[i] - scores[order[0]]) / temperature);
  uint32_t kept = 0;
  while (kept < count && (kept == 0 || kept_sum < top_p * sum)) kept_sum += weights[order[kept++]];
  for (uint32_t k = 0; k + 1 < kept; ++k) {
    drawn_sum += weights[order[k]];
    if (uniform * kept_sum < drawn_sum) return order[k];
  }
  return order[kept - 1];
}

void sample(const Sample& a, Range sequences) {
  const int32_t* candidates = as<const int32_t>(a.candidates);
  for (uint64_t b = sequences.begin; b < sequences.end; ++b) {
    if (as<const int32_t>(a.active)[b] <= 0) continue;
    int32_t* positions = as<int32_t>(a.positions) + 2 * b;
    int32_t* append = as<int32_t>(a.appends) + 3 * b;
    const float* logits = as<const float>(a.logits) + (2 * b + 1) * a.vocab;
    const int32_t position = positions[1];
    float scores[kMaxCandidates];
    for (uint32_t i = 0; i < a.candidate_count; ++i) scores[i] = logits[candidates[i]];

    int32_t& residue = as<int32_t>(a.tokens)[b * a.capacity + uint64_t(position)];
    if (residue < 0) {
      const float uniform = random_uniform(a.seed, a.first_stream + uint32_t(b), uint32_t(position));
      residue = candidates[draw(scores, a.candidate_count, a.temperature, a.top_p, uniform)];
    }
    const float largest = max_of(scores, a.candidate_count);
    const float sum = exponentiate(scores, a.candidate_count, largest);
    as<float>(a.log_probability)[b] += logits[residue] - largest - std::log(sum);

    if (residue == a.stop_id || position + 1 == as<const int32_t>(a.limits)[b]) {
      as<int32_t>(a.active)[b] = 0;
      append[2] = 0;
      continue;
    }
    as<int32_t>(a.ids)[2 * b] = residue;
    positions[0] = position;
    positions[1] = position + 1;
    append[0] = int32_t(2 * b);
    append[1] = position;
    append[2] = 1;
    as<int32_t>(a.lengths)[b] = position + 1;
  }
}

void copy(const Copy& a, Range blocks) {
  const uint64_t width = size_of(a.source.dtype);
  for_elements(blocks, a.destination.count, [&](uint64_t first, uint64_t count) {
    std::memcpy(data_of(a.destination) + first * width, data_of(a.source) + first * width, count * width);
  });
}

}  // namespace

#define TURBOESM_CONCATENATE_(a, b) a##b
#define TURBOESM_CONCATENATE(a, b) TURBOESM_CONCATENATE_(a, b)
#define TURBOESM_TEXT_(a) #a
#define TURBOESM_TEXT(a) TURBOESM_TEXT_(a)

extern const Kernels TURBOESM_CONCATENATE(kernels_, TURBOESM_CPU_VARIANT);
const Kernels TURBOESM_CONCATENATE(kernels_, TURBOESM_CPU_VARIANT) = {
    TURBOESM_TEXT(TURBOESM_CPU_VARIANT),
    token_dropout,
    embed,
    layer_norm,
    linear,
    qkv_rope,
    attention,
    pool_mean,
    attention_maps,
    contact_sums,
    contact_accumulate,
    fill,
    random_normal,
    copy,
    TURBOESM_CPU_VARIANT::kv_append,
    TURBOESM_CPU_VARIANT::kv_query,
    TURBOESM_CPU_VARIANT::kv_attention,
    sample,
};

}  // namespace turboesm::cpu
