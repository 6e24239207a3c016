// The quantized KV cache on the CPU (runtime/kv_operations.h). What decides a packed bit is computed in
// the order that every back end keeps: products rounded, then sums, one after another; no quotient or root decides.
#if defined(_MSC_VER)
#pragma fp_contract(off)
#endif
#include "runtime/cpu/kernel_tools.h"
#include "runtime/cpu/variant.h"
#include "runtime/operation_rules.h"
#include "runtime/random.h"
#include "shaders/include/kv_scale.h"

namespace turboesm::cpu {
namespace {

constexpr uint32_t kMaxCodes = 16;  // centroids of a segment's codebook: 4 bits

// A head's tensor where each head may have `size` elements of its own or all share them.
const float* of_head(const Tensor& tensor, uint64_t size, uint64_t head) {
  return as<const float>(tensor) + (tensor.count > size ? head * size : 0);
}

// Where the parts of K or V lie in a block, and the codebook of a head.
struct Side {
  const KvSide& format;
  uint32_t n;  // values of a segment
  const float* codebook = nullptr;

  Side(const KvSide& side, uint32_t head_dim, const Tensor& codebooks, uint64_t head)
      : format(side), n(head_dim / side.segments) {
    if (side.has_codebook()) codebook = of_head(codebooks, side.codebook_size(), head);
  }

  uint32_t codes_at(uint32_t segment) const { return kv_codes_at(n, format.bits[0], segment); }
  uint32_t scales_at(uint32_t segment) const {
    return kv_scales_at(n, format.segments, format.bits[0], format.bits[1]) + segment * format.scale_bits;
  }
  uint32_t signs_at() const {
    return kv_signs_at(n, format.segments, format.bits[0], format.bits[1], format.scale_bits);
  }
  uint32_t norms_at() const { return signs_at() + n * format.segments; }

  const float* centroids(uint32_t segment) const { return codebook + (segment == 0 ? 0 : (2u << format.bits[0]) - 1); }
  const float* thresholds(uint32_t segment) const { return centroids(segment) + (1u << format.bits[segment]); }
};

// ---- Encoding -------------------------------------------------------------------------------------------------------

// What is stored of K or V of one token and head.
struct Encoded {
  uint32_t codes[kMaxHeadDim];
  uint32_t scales[2];
  uint32_t signs[kMaxHeadDim];
  uint32_t residual_norm;
};

struct Sum {  // of products, one after another
  float value = 0;
  void add(float x, float y) { value += x * y; }
};

float sum_of_squares(const float* x, uint32_t n) {
  Sum sum;
  for (uint32_t i = 0; i < n; ++i) sum.add(x[i], x[i]);
  return sum.value;
}

// The code of the scale nearest to a / b, or to its root; 0 when there is no such number.
uint32_t scale_code(uint32_t scale_bits, float a, float b, bool root) {
  if (!(b > 0)) return 0;
  const float quotient = a / b;
  return kv_scale_nearest(scale_bits, root ? std::sqrt(quotient) : quotient, a, b, root);
}

// codes = the number of thresholds t with t s < y, centroids = theirs.
void quantize(const Side& side, uint32_t segment, const float* y, float s, uint32_t* codes, float* centroids) {
  const uint32_t count = 1u << side.format.bits[segment];
  for (uint32_t i = 0; i < side.n; ++i) codes[i] = 0;
  for (uint32_t k = 0; k + 1 < count; ++k) {
    const float threshold = side.thresholds(segment)[k] * s;
    for (uint32_t i = 0; i < side.n; ++i) codes[i] += threshold < y[i] ? 1 : 0;
  }
  for (uint32_t i = 0; i < side.n; ++i) centroids[i] = side.centroids(segment)[codes[i]];
}

// The integer q in [-127, 127] with (q - 1/2) s <= y < (q + 1/2) s.
int32_t nearest_integer(float y, float s) {
  if (s == 0) return 0;
  const float guess = std::floor(y / s + 0.5f);
  int32_t q = guess < -127 ? -127 : guess > 127 ? 127 : int32_t(guess);
  while (q > -127 && y < (float(q) - 0.5f) * s) --q;
  while (q < 127 && !(y < (float(q) + 0.5f) * s)) ++q;
  return q;
}

// Of three scales s round s0 the one with the least |y - s z|^2, z the centroids. Leaves its codes and centroids and
// returns the code of the scale |y|^2 / (y . z).
uint32_t search(const Side& side, uint32_t segment, const float* y, float s0, float squares, uint32_t* codes,
                float* centroids) {
  uint32_t candidate_codes[kMaxHeadDim];
  float z[kMaxHeadDim];
  float least = 0, best_yz = 0;
  bool second_is_better = false;
  for (uint32_t candidate = 0; candidate < 3; ++candidate) {
    const float s = s0 * kv_search_factor(candidate, second_is_better);
    quantize(side, segment, y, s, candidate_codes, z);
    Sum error, yz;
    for (uint32_t i = 0; i < side.n; ++i) {
      const float decoded = s * z[i], difference = y[i] - decoded;
      error.add(difference, difference);
      yz.add(y[i], z[i]);
    }
    if (candidate > 0 && !(error.value < least)) continue;
    second_is_better = candidate == 1;
    least = error.value;
    best_yz = yz.value;
    std::memcpy(codes, candidate_codes, side.n * sizeof *codes);
    std::memcpy(centroids, z, side.n * sizeof *centroids);
  }
  return scale_code(side.format.scale_bits, squares, best_yz, false);
}

// Codes and scale of one segment; `decoded` is what they stand for.
void encode_segment(const Side& side, uint32_t segment, const float* y, Encoded& out, float* decoded) {
  const uint32_t n = side.n, bits = side.format.bits[segment], scale_bits = side.format.scale_bits;
  uint32_t* codes = out.codes + segment * n;
  uint32_t& scale = out.scales[segment];
  scale = 0;
  if (bits >= 16) {
    for (uint32_t i = 0; i < n; ++i) {
      codes[i] = bits == 16 ? f16_from_f32(y[i]) : std::bit_cast<uint32_t>(y[i]);
      decoded[i] = bits == 16 ? f32_from_f16(uint16_t(codes[i])) : y[i];
    }
    return;
  }
  float centroids[kMaxHeadDim];
  const float squares = sum_of_squares(y, n);
  const auto norm_code = [&](uint32_t format_bits) { return scale_code(format_bits, squares, float(n), true); };
  switch (side.format.scale) {
    case KvScale::none: quantize(side, segment, y, 1.0f, codes, centroids); break;
    case KvScale::norm:
      scale = norm_code(scale_bits);
      quantize(side, segment, y, kv_scale_value(scale_bits, scale), codes, centroids);
      break;
    case KvScale::corrected:
      quantize(side, segment, y, kv_scale_value(16, norm_code(16)), codes, centroids);
      scale = scale_code(scale_bits, squares, sum_of_squares(centroids, n), true);
      break;
    case KvScale::searched:
      scale = search(side, segment, y, kv_scale_value(16, norm_code(16)), squares, codes, centroids);
      break;
    case KvScale::absmax: {
      float largest = 0;
      for (uint32_t i = 0; i < n; ++i) largest = largest < std::fabs(y[i]) ? std::fabs(y[i]) : largest;
      const float top = bits == 8 ? 127.0f : side.centroids(segment)[(1u << bits) - 1];
      scale = scale_code(scale_bits, largest, top, false);
      const float s = kv_scale_value(scale_bits, scale);
      if (bits <= 4) {
        quantize(side, segment, y, s, codes, centroids);
        break;
      }
      for (uint32_t i = 0; i < n; ++i) {
        const int32_t q = nearest_integer(y[i], s);
        codes[i] = uint32_t(q) & 0xffu;
        centroids[i] = float(q);
      }
    }
  }
  const float s = scale_bits == 0 ? 1.0f : kv_scale_value(scale_bits, scale);
  for (uint32_t i = 0; i < n; ++i) decoded[i] = s * centroids[i];
}

// y = matrix^T x for a matrix of d rows: row j times x_j, in ascending order of j.
void multiply_transposed(const float* transposed, const float* x, uint32_t d, float* y) {
  for (uint32_t i = 0; i < d; ++i) y[i] = 0;
  for (uint32_t j = 0; j < d; ++j)
    for (uint32_t i = 0; i < d; ++i) y[i] += transposed[j * d + i] * x[j];
}

const float* transpose(const float* matrix, uint32_t d, float* result) {
  for (uint32_t i = 0; i < d; ++i)
    for (uint32_t j = 0; j < d; ++j) result[j * d + i] = matrix[i * d + j];
  return result;
}

// Encodes the tokens of one sequence and head, one side at a time.
class Encoder {
 public:
  Encoder(const KvSide& format, const KvSideTensors& t, uint32_t head_dim, uint64_t head, Scratch& scratch)
      : side_(format, head_dim, t.codebook, head), d_(head_dim) {
    const uint64_t square = uint64_t(d_) * d_;
    float* memory = scratch.get(2 * square);
    if (t.mean) mean_ = as<const float>(t.mean) + head * d_;
    if (t.position_mean) {
      position_mean_ = as<const float>(t.position_mean) + head * d_;
      for (uint32_t i = 0; i < d_; i += 2) crossed_[i] = -position_mean_[i + 1], crossed_[i + 1] = position_mean_[i];
    }
    if (t.transform) transform_ = transpose(of_head(t.transform, square, head), d_, memory);
    if (format.qjl) projection_ = transpose(as<const float>(t.projection), d_, memory + square);
  }

  // `angles` is the row of RoPE's table for the token's position; it is read with position_mean only.
  void encode(const float* values, const float* angles, Encoded& out) const {
    float x[kMaxHeadDim], y[kMaxHeadDim], decoded[kMaxHeadDim];
    std::memcpy(x, values, d_ * sizeof *x);
    if (position_mean_)
      for (uint32_t i = 0; i < d_; ++i) x[i] -= position_mean_[i] * angles[i & ~1u] + crossed_[i] * angles[i | 1u];
    if (mean_)
      for (uint32_t i = 0; i < d_; ++i) x[i] -= mean_[i];
    if (transform_)
      multiply_transposed(transform_, x, d_, y);
    else
      std::memcpy(y, x, d_ * sizeof *y);
    for (uint32_t segment = 0; segment < side_.format.segments; ++segment)
      encode_segment(side_, segment, y + segment * side_.n, out, decoded + segment * side_.n);
    if (!projection_) return;
    for (uint32_t i = 0; i < d_; ++i) x[i] = y[i] - decoded[i];
    multiply_transposed(projection_, x, d_, y);
    for (uint32_t i = 0; i < d_; ++i) out.signs[i] = y[i] >= 0 ? 1 : 0;
    out.residual_norm = scale_code(16, sum_of_squares(x, d_), 1.0f, true);
  }

  // Writes token t of a block, and nothing of the tokens beside it.
  void pack(const Encoded& token, uint32_t t, uint32_t* words) const {
    const KvSide& format = side_.format;
    for (uint32_t segment = 0; segment < format.segments; ++segment) {
      pack_codes(token.codes + segment * side_.n, side_.n, format.bits[segment], t, words + side_.codes_at(segment));
      if (format.scale_bits > 0)
        pack_scale(token.scales[segment], format.scale_bits, t, words + side_.scales_at(segment));
    }
    if (!format.qjl) return;
    pack_codes(token.signs, d_, 1, t, words + side_.signs_at());
    pack_scale(token.residual_norm, 16, t, words + side_.norms_at());
  }

 private:
  static void pack_codes(const uint32_t* codes, uint32_t n, uint32_t bits, uint32_t t, uint32_t* words) {
    const uint32_t all = ~0u >> (32 - bits);
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t e = kv_element(n, t, i);
      const bool spread = bits == 3 && e >= 24;  // over the unit's three words; else in one of them
      const uint32_t first = spread ? 0 : bits == 3 ? e / 8 : e * bits / 32;
      for (uint32_t w = first; w <= (spread ? 2 : first); ++w) {
        uint32_t& word = words[kv_code_word(n, t, i, w)];
        word = (word & ~kv_deposit(bits, e, w, all)) | kv_deposit(bits, e, w, codes[i]);
      }
    }
  }

  static void pack_scale(uint32_t code, uint32_t scale_bits, uint32_t t, uint32_t* words) {
    const uint32_t shift = kv_scale_shift(scale_bits, t), all = ~0u >> (32 - scale_bits);
    uint32_t& word = words[kv_scale_word(scale_bits, t)];
    word = (word & ~(all << shift)) | code << shift;
  }

  Side side_;
  uint32_t d_;
  const float *mean_ = nullptr, *position_mean_ = nullptr;
  // (m_a, m_b) of position_mean as (-m_b, m_a), so that both of a pair turn by m c + crossed s: of a difference and a
  // sum side by side GCC 12 makes a fused vfmaddsub even with -ffp-contract=off.
  float crossed_[kMaxHeadDim];
  const float *transform_ = nullptr, *projection_ = nullptr;  // transposed
};

// ---- Decoding -------------------------------------------------------------------------------------------------------

// values[i] = table[codes[i] % 16], for 32 codes.
void look_up(const float* table, const uint32_t* codes, float* values) {
#if defined(__AVX512F__)
  const __m512 entries = _mm512_loadu_ps(table);
  for (int i = 0; i < 32; i += 16)
    _mm512_storeu_ps(values + i, _mm512_permutexvar_ps(_mm512_loadu_si512(codes + i), entries));
#elif defined(__AVX2__)
  const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
  for (int i = 0; i < 32; i += 8) {
    const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
    const __m256 upper_half = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));  // bit 3 decides, as the sign
    _mm256_storeu_ps(values + i, _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code),
                                                  _mm256_permutevar8x32_ps(high, code), upper_half));
  }
#else
  for (int i = 0; i < 32; ++i) values[i] = table[codes[i] % 16];
#endif
}

// values[32, n] = the centroids of a block's codes, or the numbers themselves; `centroids` is of 2^bits values. A unit
// holds 32 values that follow one another in that order; word w of unit u is word w n + u.
template <uint32_t bits>
void unpack_units(const uint32_t* words, uint32_t n, const float* centroids, float* values) {
  float table[kMaxCodes];
  if constexpr (bits <= 4)
    for (uint32_t i = 0; i < kMaxCodes; ++i) table[i] = centroids[i % (1u << bits)];  // bits above a code do not matter
  for (uint32_t u = 0; u < n; ++u, values += 32) {
    uint32_t unit[bits], codes[32];
    for (uint32_t w = 0; w < bits; ++w) unit[w] = words[w * n + u];
    if constexpr (bits == 32) {
      std::memcpy(values, unit, sizeof unit);
    } else if constexpr (bits == 3) {
      for (uint32_t w = 0; w < 3; ++w)
        for (uint32_t k = 0; k < 8; ++k) codes[8 * w + k] = unit[w] >> (4 * k) & 7u;
      for (uint32_t k = 0; k < 8; ++k) {
        const uint32_t shift = 4 * k + 3;
        codes[24 + k] = (unit[0] >> shift & 1u) | (unit[1] >> shift & 1u) << 1 | (unit[2] >> shift & 1u) << 2;
      }
    } else {
      constexpr uint32_t kPerWord = 32 / bits;
      for (uint32_t w = 0; w < bits; ++w)
        for (uint32_t k = 0; k < kPerWord; ++k) codes[kPerWord * w + k] = unit[w] >> (bits * k) & (~0u >> (32 - bits));
    }
    if constexpr (bits <= 4) {
      look_up(table, codes, values);
    } else if constexpr (bits == 8) {
      for (uint32_t k = 0; k < 32; ++k) values[k] = float(int32_t(codes[k] << 24) >> 24);
    } else if constexpr (bits == 16) {
      uint16_t halves[32];
      for (uint32_t k = 0; k < 32; ++k) halves[k] = uint16_t(codes[k]);
      widen_f16(halves, values, 32);
    }
  }
}

void unpack(const uint32_t* words, uint32_t n, uint32_t bits, const float* centroids, float* values) {
  switch (bits) {
    case 1: return unpack_units<1>(words, n, centroids, values);
    case 2: return unpack_units<2>(words, n, centroids, values);
    case 3: return unpack_units<3>(words, n, centroids, values);
    case 4: return unpack_units<4>(words, n, centroids, values);
    case 8: return unpack_units<8>(words, n, centroids, values);
    case 16: return unpack_units<16>(words, n, centroids, values);
    default: return unpack_units<32>(words, n, centroids, values);
  }
}

void unpack_scales(const uint32_t* words, uint32_t scale_bits, float* scales) {
  for (uint32_t t = 0; t < KV_BLOCK; ++t) {
    const uint32_t word = scale_bits == 0 ? 0 : words[kv_scale_word(scale_bits, t)];
    const uint32_t code = word >> kv_scale_shift(scale_bits, t) & (scale_bits == 8 ? 0xffu : 0xffffu);
    scales[t] = scale_bits == 0 ? 1.0f : kv_scale_value(scale_bits, code);
  }
}

float dot(const float* a, const float* b, uint64_t n) {
  return sum_of(n, [a, b](uint64_t i) { return a[i] * b[i]; });
}

// The queries of one sequence and head over its cache: an online softmax, a block of tokens at a time.
class Attender {
 public:
  Attender(const KvAttention& a, uint64_t sequence, uint64_t head)
      : a_(a),
        k_(a.format.k, a.head_dim, a.k_codebook, head),
        v_(a.format.v, a.head_dim, a.v_codebook, head),
        first_row_(sequence * a.queries),
        head_(head),
        blocks_(as<const uint32_t>(a.cache) +
                (sequence * a.heads + head) * (a.capacity / KV_BLOCK) * a.format.block_words(a.head_dim)),
        length_(uint32_t(as<const int32_t>(a.lengths)[sequence])) {}

  void run() {
    for (uint32_t i = 0; i < a_.queries; ++i) {
      maximum_[i] = -INFINITY, sum_[i] = 0;
      for (uint32_t c = 0; c < a_.head_dim; ++c) out_[i][c] = 0;
    }
    const uint32_t words = a_.format.block_words(a_.head_dim), v_at = a_.format.k.block_words(a_.head_dim);
    for (uint32_t token = 0; token < length_; token += KV_BLOCK) {
      const uint32_t* block = blocks_ + uint64_t(token / KV_BLOCK) * words;
      const uint32_t count = uint32_t(min_of(KV_BLOCK, length_ - token));
      score(block, token, count);
      for (uint32_t i = 0; i < a_.queries; ++i) weigh(i, count);
      add_values(block + v_at, count);
    }
    for (uint32_t i = 0; i < a_.queries; ++i) finish(i);
  }

 private:
  uint64_t row(uint32_t query) const { return (first_row_ + query) * a_.heads + head_; }

  void score(const uint32_t* words, uint32_t token, uint32_t count) {
    const uint32_t n = k_.n, d = a_.head_dim;
    float scales[KV_BLOCK];
    for (uint32_t segment = 0; segment < k_.format.segments; ++segment) {
      unpack(words + k_.codes_at(segment), n, k_.format.bits[segment], k_.codebook ? k_.centroids(segment) : nullptr,
             values_);
      unpack_scales(words + k_.scales_at(segment), k_.format.scale_bits, scales);
      for (uint32_t i = 0; i < a_.queries; ++i) {
        const float* q = as<const float>(a_.q) + row(i) * d + segment * n;
        for (uint32_t t = 0; t < count; ++t) {
          const float product = scales[t] * dot(q, values_ + t * n, n);
          weights_[i][t] = segment == 0 ? product : weights_[i][t] + product;
        }
      }
    }
    if (k_.format.qjl) {
      constexpr float kSigns[2] = {-1, 1};
      constexpr float kRootOfHalfPi = 1.2533141373155003f;
      unpack(words + k_.signs_at(), d, 1, kSigns, values_);
      unpack_scales(words + k_.norms_at(), 16, scales);
      for (uint32_t i = 0; i < a_.queries; ++i) {
        const float* projected = as<const float>(a_.projected) + row(i) * d;
        for (uint32_t t = 0; t < count; ++t)
          weights_[i][t] += kRootOfHalfPi / float(d) * scales[t] * dot(projected, values_ + t * d, d);
      }
    }
    if (a_.bias)
      for (uint32_t i = 0; i < a_.queries; ++i) {
        const float* bias = as<const float>(a_.bias) + row(i) * a_.capacity + token;
        for (uint32_t t = 0; t < count; ++t) weights_[i][t] += bias[t];
      }
  }

  // Scores of query i become weights, and what was summed before shrinks to the new maximum.
  void weigh(uint32_t i, uint32_t count) {
    const float block_max = max_of(weights_[i], count), new_max = maximum_[i] < block_max ? block_max : maximum_[i];
    const float shrink = std::exp(maximum_[i] - new_max);
    sum_[i] = sum_[i] * shrink + exponentiate(weights_[i], count, new_max);
    maximum_[i] = new_max;
    for (uint32_t c = 0; c < a_.head_dim; ++c) out_[i][c] *= shrink;
  }

  void add_values(const uint32_t* words, uint32_t count) {
    const uint32_t n = v_.n;
    float scales[KV_BLOCK];
    for (uint32_t segment = 0; segment < v_.format.segments; ++segment) {
      unpack(words + v_.codes_at(segment), n, v_.format.bits[segment], v_.codebook ? v_.centroids(segment) : nullptr,
             values_);
      unpack_scales(words + v_.scales_at(segment), v_.format.scale_bits, scales);
      for (uint32_t i = 0; i < a_.queries; ++i)
        for (uint32_t t = 0; t < count; ++t) {
          const float weight = weights_[i][t] * scales[t];
          const float* value = values_ + t * n;
          float* out = out_[i] + segment * n;
          for (uint32_t c = 0; c < n; ++c) out[c] += weight * value[c];
        }
    }
  }

  void finish(uint32_t i) {
    const uint32_t d = a_.head_dim;
    float* out = out_[i];
    if (length_ > 0) {
      for (uint32_t c = 0; c < d; ++c) out[c] /= sum_[i];
      if (a_.transform) {
        const float* transform = of_head(a_.transform, uint64_t(d) * d, head_);
        for (uint32_t c = 0; c < d; ++c) values_[c] = dot(transform + uint64_t(c) * d, out, d);
        std::memcpy(out, values_, d * sizeof *out);
      }
      if (a_.mean)
        for (uint32_t c = 0; c < d; ++c) out[c] += as<const float>(a_.mean)[head_ * d + c];
    }
    store(a_.out, row(i) * d, d, out);
  }

  const KvAttention& a_;
  Side k_, v_;
  uint64_t first_row_, head_;
  const uint32_t* blocks_;
  uint32_t length_;
  float maximum_[kMaxQueries], sum_[kMaxQueries];
  alignas(64) float values_[KV_BLOCK * kMaxHeadDim];  // of a block's tokens, [32, n]
  alignas(64) float weights_[kMaxQueries][KV_BLOCK];
  alignas(64) float out_[kMaxQueries][kMaxHeadDim];
};

}  // namespace

// ---- Operations -----------------------------------------------------------------------------------------------------

namespace TURBOESM_CPU_VARIANT {

void kv_append(const KvAppend& a, Range rows) {
  static thread_local Scratch k_scratch, v_scratch;
  const uint64_t block_words = a.format.block_words(a.head_dim), v_at = a.format.k.block_words(a.head_dim);
  float values[kMaxHeadDim];
  Encoded encoded;
  for (uint64_t row = rows.begin; row < rows.end; ++row) {
    const uint64_t head = row % a.heads;
    const int32_t* append = as<const int32_t>(a.appends) + row / a.heads * 3;
    const uint32_t source = uint32_t(append[0]), position = uint32_t(append[1]), count = uint32_t(append[2]);
    if (count == 0) continue;
    const Encoder k(a.format.k, a.k_side, a.head_dim, head, k_scratch);
    const Encoder v(a.format.v, a.v_side, a.head_dim, head, v_scratch);
    uint32_t* blocks = as<uint32_t>(a.cache) + row * (a.capacity / KV_BLOCK) * block_words;
    for (uint32_t t = position; t < position + count; ++t) {
      uint32_t* block = blocks + t / KV_BLOCK * block_words;
      const uint64_t first = (uint64_t(source) + (t - position)) * a.heads * a.head_dim + head * a.head_dim;
      load(a.k, first, a.head_dim, values);
      k.encode(values, a.k_side.position_mean ? as<const float>(a.table) + uint64_t(t) * a.head_dim : nullptr, encoded);
      k.pack(encoded, t % KV_BLOCK, block);
      load(a.v, first, a.head_dim, values);
      v.encode(values, nullptr, encoded);
      v.pack(encoded, t % KV_BLOCK, block + v_at);
    }
  }
}

void kv_query(const KvQuery& a, Range rows) {
  const uint64_t d = a.head_dim;
  float q[kMaxHeadDim], u[kMaxHeadDim];
  for (uint64_t row = rows.begin; row < rows.end; ++row) {
    const uint64_t head = row % a.heads;
    load(a.q, row * d, d, q);
    float* out = as<float>(a.out) + row * d;
    if (a.transform) {
      const float* transform = of_head(a.transform, d * d, head);
      for (uint64_t i = 0; i < d; ++i) out[i] = dot(transform + i * d, q, d);
    } else {
      std::memcpy(out, q, d * sizeof *out);
    }
    if (a.projection)
      for (uint64_t i = 0; i < d; ++i)
        as<float>(a.projected)[row * d + i] = dot(as<const float>(a.projection) + i * d, out, d);
    if (a.position_mean) {
      // q_a (m_a c - m_b s) + q_b (m_b c + m_a s) = (q_a m_a + q_b m_b) c + (q_b m_a - q_a m_b) s
      const float* m = as<const float>(a.position_mean) + head * d;
      for (uint64_t i = 0; i < d; i += 2) {
        u[i] = q[i] * m[i] + q[i + 1] * m[i + 1];
        u[i + 1] = q[i + 1] * m[i] - q[i] * m[i + 1];
      }
      store(a.position, row * d, d, u);
    }
  }
}

void kv_attention(const KvAttention& a, Range rows) {
  for (uint64_t row = rows.begin; row < rows.end; ++row) Attender(a, row / a.heads, row % a.heads).run();
}

}  // namespace TURBOESM_CPU_VARIANT
}  // namespace turboesm::cpu
