// Attention on the CPU: blocks of queries of one head walk over blocks of keys, whose scores stay in the nearest cache,
// with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022).
#include "runtime/cpu/panels.h"
#include "runtime/cpu/variant.h"
#include "runtime/operation_rules.h"

namespace turboesm::cpu::TURBOESM_CPU_VARIANT {
namespace {

constexpr uint64_t kKeyBlock = 128;  // keys and values of 64: 64 KiB as floats, in the second-level cache
static_assert(kKeyBlock % kPanel == 0 && kQueryBlock % kBlockRows == 0);

// One head's rows of q, k or v as floats.
struct HeadRows {
  const Tensor& tensor;
  uint64_t head, head_dim, width;  // width: of a token, all heads

  const float* at(uint64_t token, float* scratch) const {
    const uint64_t element = token * width + head * head_dim;
    if (tensor.dtype == DType::f32) return as<const float>(tensor) + element;
    load(tensor, element, head_dim, scratch);
    return scratch;
  }
};

// Panels of the values of tokens first .. first + count, zeros beyond head_dim.
void pack_values(const HeadRows& v, uint64_t first, uint64_t count, float* panels) {
  float scratch[kMaxHeadDim];
  for (uint64_t i = 0; i < count; ++i) {
    const float* row = v.at(first + i, scratch);
    for (uint64_t column = 0; column < v.head_dim; column += kPanel) {
      float* out = panels + (column / kPanel * count + i) * kPanel;
      const uint64_t copied = min_of(kPanel, v.head_dim - column);
      std::memcpy(out, row + column, copied * sizeof(float));
      std::memset(out + copied, 0, (kPanel - copied) * sizeof(float));
    }
  }
}

// Softmax of a block of scores [rows, kKeyBlock], online: turns them into e^(score - the row's largest so far) and
// brings what was summed before into line with that.
void weigh(float* scores, uint64_t rows, uint64_t keys, float* largest, float* sum, float* out, uint64_t out_width) {
  const uint64_t end = (keys + kVector - 1) / kVector * kVector;
  float shrink[kBlockRows + kVector];
  for (uint64_t r = 0; r < rows; ++r) {
    float* row = scores + r * kKeyBlock;
    for (uint64_t j = keys; j < end; ++j) row[j] = -INFINITY;
    Vector block_max = load_vector(row);
    for (uint64_t j = kVector; j < end; j += kVector) block_max = larger(block_max, load_vector(row + j));
    const float highest = max_of(block_max), raised = largest[r] < highest ? highest : largest[r];
    shrink[r] = largest[r] - raised;
    largest[r] = raised;
  }
  for (uint64_t r = 0; r < rows; r += kVector) store_vector(shrink + r, exp(load_vector(shrink + r)));
  for (uint64_t r = 0; r < rows; ++r) {
    float* row = scores + r * kKeyBlock;
    Vector block_sum{};
    for (uint64_t j = 0; j < end; j += kVector) {
      const Vector weight = exp(load_vector(row + j) - largest[r]);
      block_sum += weight;
      store_vector(row + j, weight);
    }
    sum[r] = sum[r] * shrink[r] + sum_of(block_sum);
    if (shrink[r] == 1) continue;
    float* summed = out + r * out_width;
    for (uint64_t i = 0; i < out_width; i += kVector) store_vector(summed + i, load_vector(summed + i) * shrink[r]);
  }
}

// One block of queries of one head of the sequence begin .. end.
void attend(const Attention& a, uint64_t begin, uint64_t end, uint64_t first_query, uint64_t head) {
  static thread_local Scratch scratch;
  const uint64_t d = a.head_dim, width = uint64_t(a.heads) * d, queries = min_of(kQueryBlock, end - first_query);
  const uint64_t value_panels = panels_of(d), out_width = value_panels * kPanel;
  const HeadRows q{a.q, head, d, width}, k{a.k, head, d, width}, v{a.v, head, d, width};

  float* k_panels =
      scratch.get(kKeyBlock * d + kKeyBlock * out_width + kBlockRows * kKeyBlock + kQueryBlock * (d + out_width + 2));
  float* v_panels = k_panels + kKeyBlock * d;
  float* scores = v_panels + kKeyBlock * out_width;  // [kBlockRows, kKeyBlock]
  float* out = scores + kBlockRows * kKeyBlock;      // [kQueryBlock, out_width]
  float* largest = out + kQueryBlock * out_width;    // [kQueryBlock]
  float* sum = largest + kQueryBlock;                // [kQueryBlock]
  float* q_copy = sum + kQueryBlock;                 // [kQueryBlock, d], where q is not f32
  std::memset(out, 0, queries * out_width * sizeof(float));
  for (uint64_t r = 0; r < queries; ++r) largest[r] = -INFINITY, sum[r] = 0;
  const float* q_rows = q.at(first_query, q_copy);
  const uint64_t q_stride = q_rows == q_copy ? d : width;
  if (q_rows == q_copy)
    for (uint64_t r = 1; r < queries; ++r) q.at(first_query + r, q_copy + r * d);

  for (uint64_t key = begin; key < end; key += kKeyBlock) {
    const uint64_t keys = min_of(kKeyBlock, end - key);
    float k_copy[kVector][kMaxHeadDim];
    uint64_t calls = 0;
    pack_transposed(keys, d, k_panels, [&](uint64_t i) { return k.at(key + i, k_copy[calls++ % kVector]); });
    pack_values(v, key, keys, v_panels);
    for (uint64_t r = 0; r < queries; r += kBlockRows) {
      const uint64_t rows = min_of(kBlockRows, queries - r);
      multiply_block<MultiplyFloats>(q_rows + r * q_stride, q_stride, rows, k_panels, panels_of(keys), d, scores,
                                     kKeyBlock, false);
      weigh(scores, rows, keys, largest + r, sum + r, out + r * out_width, out_width);
      multiply_block<MultiplyFloats>(scores, kKeyBlock, rows, v_panels, value_panels, keys, out + r * out_width,
                                     out_width, true);
    }
  }
  for (uint64_t r = 0; r < queries; ++r) {
    const float scale = 1.0f / sum[r];
    for (uint64_t i = 0; i < d; ++i) out[r * out_width + i] *= scale;
    store(a.out, (first_query + r) * width + head * d, d, out + r * out_width);
  }
}

}  // namespace

void attention(const Attention& a, Range blocks) {
  const uint64_t query_blocks = (a.max_length + kQueryBlock - 1) / kQueryBlock;
  const int32_t* cu_seqlens = as<const int32_t>(a.cu_seqlens);
  for (uint64_t item = blocks.begin; item < blocks.end; ++item) {
    const uint64_t sequence = item / query_blocks / a.heads, head = item / query_blocks % a.heads;
    const uint64_t begin = uint64_t(cu_seqlens[sequence]), end = uint64_t(cu_seqlens[sequence + 1]);
    const uint64_t first_query = begin + item % query_blocks * kQueryBlock;
    if (first_query < end) attend(a, begin, end, first_query, head);
  }
}

}  // namespace turboesm::cpu::TURBOESM_CPU_VARIANT
