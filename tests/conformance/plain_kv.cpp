// The KV cache and generation as plain loops. What decides a packed bit is computed in f32 in the order that
// runtime/kv_operations.h and docs/kv-cache.md lay down, value by value; the rest in double precision. Of kv_layout.h
// it takes addresses only, of kv_scale.h nothing.
#include <algorithm>
#include <bit>
#include <numeric>

#include "runtime/random.h"
#include "shaders/include/kv_layout.h"
#include "tests/conformance/plain_image.h"

namespace turboesm::conformance {
namespace {

using Floats = std::vector<float>;

Floats load_floats(Image image, const Tensor& tensor, uint64_t count) {
  const Values values = load(image, tensor, count);
  return Floats(values.begin(), values.end());
}

void store_integers(Image image, const Tensor& tensor, const std::vector<int32_t>& integers) {
  if (!integers.empty()) std::memcpy(image.data() + tensor.offset, integers.data(), 4 * integers.size());
}

// Where head `head` starts in a tensor of `size` elements for each head or for all.
uint64_t start_of(const Tensor& tensor, uint64_t size, uint64_t head) { return tensor.count > size ? head * size : 0; }

// All of such a tensor.
uint64_t count_of(const Tensor& tensor, uint64_t size, uint64_t heads) {
  return tensor.count > size ? size * heads : size;
}

// ---- Bits -----------------------------------------------------------------------------------------------------------

// K or V of a block: `words` begins with the side's first word.
struct PlainSide {
  const KvSide& side;
  uint32_t n;
  uint32_t* words;

  PlainSide(const KvSide& s, uint32_t head_dim, uint32_t* w) : side(s), n(head_dim / s.segments), words(w) {}

  uint32_t* codes(uint32_t segment) const { return words + kv_codes_at(n, side.bits[0], segment); }
  uint32_t* scales(uint32_t segment) const {
    return words + kv_scales_at(n, side.segments, side.bits[0], side.bits[1]) + segment * side.scale_bits;
  }
  uint32_t* signs() const { return words + kv_signs_at(n, side.segments, side.bits[0], side.bits[1], side.scale_bits); }
  uint32_t* norms() const { return signs() + n * side.segments; }
};

// One bit after another: where kv_deposit puts a code's bit, that bit is.
uint32_t read_code(const uint32_t* codes, uint32_t n, uint32_t bits, uint32_t t, uint32_t i) {
  uint32_t code = 0;
  for (uint32_t w = 0; w < bits; ++w) {
    if (kv_deposit(bits, kv_element(n, t, i), w, ~0u >> (32 - bits)) == 0) continue;
    for (uint32_t bit = 0; bit < bits; ++bit)
      if (codes[kv_code_word(n, t, i, w)] & kv_deposit(bits, kv_element(n, t, i), w, 1u << bit)) code |= 1u << bit;
  }
  return code;
}

void write_code(uint32_t* codes, uint32_t n, uint32_t bits, uint32_t t, uint32_t i, uint32_t code) {
  for (uint32_t w = 0; w < bits; ++w)
    for (uint32_t bit = 0; bit < bits; ++bit) {
      const uint32_t place = kv_deposit(bits, kv_element(n, t, i), w, 1u << bit);
      uint32_t& word = codes[kv_code_word(n, t, i, w)];
      word = code >> bit & 1u ? word | place : word & ~place;
    }
}

// Scales are bytes or half words that follow one another.
uint32_t read_scale(const uint32_t* scales, uint32_t bits, uint32_t t) {
  return scales[t * bits / 32] >> (t * bits % 32) & ((1u << bits) - 1);
}

void write_scale(uint32_t* scales, uint32_t bits, uint32_t t, uint32_t code) {
  const uint32_t shift = t * bits % 32, mask = ((1u << bits) - 1) << shift;
  scales[t * bits / 32] = (scales[t * bits / 32] & ~mask) | code << shift;
}

float value_of_scale(uint32_t bits, uint32_t code) {
  if (bits == 16) return code < 0x400 ? 0 : f32_from_f16(uint16_t(code));
  return code == 0 ? 0 : std::ldexp(1 + float(code % 32) / 32, int(code / 32) - 4);
}

// Of all codes the one whose value is nearest to a / b, or to its root; the upper one of two that are equally near.
uint32_t nearest_scale(uint32_t bits, float a, float b, bool root) {
  if (b <= 0) return 0;
  const uint32_t lowest = bits == 16 ? 0x400 : 1, highest = bits == 16 ? 0x7bff : 0xff;
  const auto code_at = [&](uint32_t index) { return index == 0 ? 0 : lowest + index - 1; };
  uint32_t below = 0, above = highest - lowest + 2;  // the sought one is in [below, above)
  while (above - below > 1) {
    const uint32_t middle = (below + above) / 2;
    const float edge = 0.5f * (value_of_scale(bits, code_at(middle - 1)) + value_of_scale(bits, code_at(middle)));
    const float left = root ? edge * edge : edge;
    (left * b <= a ? below : above) = middle;
  }
  return code_at(below);
}

// ---- Encoding -------------------------------------------------------------------------------------------------------

float f32_dot(const float* x, const float* y, uint32_t n) {
  float sum = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const float product = x[i] * y[i];
    sum = sum + product;
  }
  return sum;
}

// Codes, centroids and scale of a segment.
struct Quantized {
  std::vector<uint32_t> codes;
  Floats centroids;
  uint32_t scale = 0;
};

// Centroids of 2^bits codes, then their thresholds.
Quantized by_thresholds(const Floats& y, float s, const float* codebook, uint32_t bits) {
  Quantized q;
  for (const float value : y) {
    uint32_t code = 0;
    for (uint32_t k = 0; k + 1 < 1u << bits; ++k)
      if (codebook[(1u << bits) + k] * s < value) ++code;
    q.codes.push_back(code);
    q.centroids.push_back(codebook[code]);
  }
  return q;
}

Quantized quantize(const Floats& y, const KvSide& side, uint32_t bits, const float* codebook) {
  const uint32_t n = uint32_t(y.size());
  const float squares = f32_dot(y.data(), y.data(), n);
  const auto norm_scale = [&](uint32_t scale_bits) { return nearest_scale(scale_bits, squares, float(n), true); };
  switch (side.scale) {
    case KvScale::none: return by_thresholds(y, 1, codebook, bits);
    case KvScale::norm: {
      const uint32_t scale = norm_scale(side.scale_bits);
      Quantized q = by_thresholds(y, value_of_scale(side.scale_bits, scale), codebook, bits);
      q.scale = scale;
      return q;
    }
    case KvScale::corrected: {
      Quantized q = by_thresholds(y, value_of_scale(16, norm_scale(16)), codebook, bits);
      q.scale = nearest_scale(side.scale_bits, squares, f32_dot(q.centroids.data(), q.centroids.data(), n), true);
      return q;
    }
    case KvScale::searched: {
      const float s0 = value_of_scale(16, norm_scale(16));
      const auto error = [&](const Quantized& q, float s) {
        Floats left = y;
        for (uint32_t i = 0; i < n; ++i) {
          const float decoded = s * q.centroids[i];
          left[i] -= decoded;
        }
        return f32_dot(left.data(), left.data(), n);
      };
      const float narrow = s0 * 0.95f, wide = s0 * 1.05f;
      Quantized best = by_thresholds(y, narrow, codebook, bits);
      const Quantized wider = by_thresholds(y, wide, codebook, bits);
      float least = error(best, narrow), last = s0 * 0.88f;
      if (error(wider, wide) < least) best = wider, least = error(wider, wide), last = s0 * 1.14f;
      const Quantized beyond = by_thresholds(y, last, codebook, bits);
      if (error(beyond, last) < least) best = beyond;
      best.scale = nearest_scale(side.scale_bits, squares, f32_dot(y.data(), best.centroids.data(), n), false);
      return best;
    }
    case KvScale::absmax: break;
  }
  float largest = 0;
  for (const float value : y) largest = std::max(largest, std::abs(value));
  const float top = bits == 8 ? 127 : codebook[(1u << bits) - 1];
  const uint32_t scale = nearest_scale(side.scale_bits, largest, top, false);
  const float s = value_of_scale(side.scale_bits, scale);
  Quantized q;
  if (bits < 8) q = by_thresholds(y, s, codebook, bits);
  if (bits == 8)
    for (const float value : y) {
      int32_t code = s == 0 ? 0 : -127;
      while (s > 0 && code < 127 && (float(code) + 0.5f) * s <= value) ++code;
      q.codes.push_back(uint32_t(code) & 0xff);
      q.centroids.push_back(float(code));
    }
  q.scale = scale;
  return q;
}

// Operands of one side.
struct SideOperands {
  Floats mean, position_mean, transform, codebook, projection;

  SideOperands(Image image, const KvSide& side, const KvSideTensors& t, uint64_t heads, uint64_t d) {
    if (t.mean) mean = load_floats(image, t.mean, heads * d);
    if (t.position_mean) position_mean = load_floats(image, t.position_mean, heads * d);
    if (t.transform) transform = load_floats(image, t.transform, count_of(t.transform, d * d, heads));
    if (side.has_codebook())
      codebook = load_floats(image, t.codebook, count_of(t.codebook, side.codebook_size(), heads));
    if (side.qjl) projection = load_floats(image, t.projection, d * d);
  }
};

// Encodes `x` of one head as token t of a block; `angles` are the cosines and sines of its position.
void encode(const KvSide& side, const KvSideTensors& tensors, const SideOperands& o, uint64_t head, const float* angles,
            Floats x, uint32_t t, PlainSide out) {
  const uint32_t d = uint32_t(x.size()), n = out.n;
  if (!o.position_mean.empty())
    for (uint32_t i = 0; i < d; i += 2) {
      const float a = o.position_mean[head * d + i], b = o.position_mean[head * d + i + 1];
      const float c = angles[i], s = angles[i + 1];
      const float ac = a * c, bs = b * s, bc = b * c, as = a * s;
      x[i] = x[i] - (ac - bs);
      x[i + 1] = x[i + 1] - (bc + as);
    }
  if (!o.mean.empty())
    for (uint32_t i = 0; i < d; ++i) x[i] = x[i] - o.mean[head * d + i];
  Floats y = x, decoded;
  if (!o.transform.empty())
    for (uint32_t i = 0; i < d; ++i)
      y[i] = f32_dot(&o.transform[start_of(tensors.transform, d * d, head) + i * d], x.data(), d);

  for (uint32_t segment = 0; segment < side.segments; ++segment) {
    const Floats part(y.begin() + segment * n, y.begin() + (segment + 1) * n);
    const uint32_t bits = side.bits[segment];
    if (bits >= 16) {
      for (uint32_t i = 0; i < n; ++i)
        write_code(out.codes(segment), n, bits, t, i,
                   bits == 16 ? f16_from_f32(part[i]) : std::bit_cast<uint32_t>(part[i]));
      continue;
    }
    const float* codebook = nullptr;
    if (side.has_codebook()) {
      codebook = o.codebook.data() + start_of(tensors.codebook, side.codebook_size(), head);
      if (segment == 1) codebook += (2u << side.bits[0]) - 1;
    }
    const Quantized q = quantize(part, side, bits, codebook);
    for (uint32_t i = 0; i < n; ++i) write_code(out.codes(segment), n, bits, t, i, q.codes[i]);
    if (side.scale_bits > 0) write_scale(out.scales(segment), side.scale_bits, t, q.scale);
    const float s = side.scale_bits > 0 ? value_of_scale(side.scale_bits, q.scale) : 1;
    for (const float centroid : q.centroids) decoded.push_back(s * centroid);
  }
  if (!side.qjl) return;
  Floats residual;
  for (uint32_t i = 0; i < d; ++i) residual.push_back(y[i] - decoded[i]);
  for (uint32_t i = 0; i < d; ++i)
    write_code(out.signs(), d, 1, t, i, f32_dot(&o.projection[i * d], residual.data(), d) >= 0 ? 1 : 0);
  write_scale(out.norms(), 16, t, nearest_scale(16, f32_dot(residual.data(), residual.data(), d), 1, true));
}

// ---- Decoding -------------------------------------------------------------------------------------------------------

// The numbers that token t's codes, scales included, stand for.
Values decode(const KvSide& side, PlainSide in, const double* codebook, uint32_t t) {
  Values values;
  for (uint32_t segment = 0; segment < side.segments; ++segment) {
    const uint32_t bits = side.bits[segment];
    const double s = side.scale_bits == 0
                         ? 1
                         : double(value_of_scale(side.scale_bits, read_scale(in.scales(segment), side.scale_bits, t)));
    for (uint32_t i = 0; i < in.n; ++i) {
      const uint32_t code = read_code(in.codes(segment), in.n, bits, t, i);
      values.push_back(bits == 32   ? double(std::bit_cast<float>(code))
                       : bits == 16 ? double(f32_from_f16(uint16_t(code)))
                       : bits == 8  ? s * (code < 128 ? int(code) : int(code) - 256)
                                    : s * codebook[segment * ((2u << side.bits[0]) - 1) + code]);
    }
  }
  return values;
}

Values load_codebook(Image image, const KvSide& side, const Tensor& tensor, uint64_t heads) {
  return side.has_codebook() ? load(image, tensor, count_of(tensor, side.codebook_size(), heads)) : Values(1);
}

uint64_t cache_words(const KvFormat& format, uint64_t rows, uint32_t head_dim, uint32_t capacity) {
  return rows * (capacity / KV_BLOCK) * format.block_words(head_dim);
}

}  // namespace

void run(const KvAppend& a, Image image) {
  const uint64_t d = a.head_dim, width = a.heads * d;
  const Floats k = load_floats(image, a.k, a.tokens * width), v = load_floats(image, a.v, a.tokens * width);
  const auto appends = load_integers(image, a.appends, 3 * uint64_t(a.sequences));
  const Floats table = a.k_side.position_mean ? load_floats(image, a.table, a.table_rows * d) : Floats();
  const SideOperands k_operands(image, a.format.k, a.k_side, a.heads, d);
  const SideOperands v_operands(image, a.format.v, a.v_side, a.heads, d);
  const uint64_t words = cache_words(a.format, uint64_t(a.sequences) * a.heads, a.head_dim, a.capacity);
  std::vector<int32_t> cache = load_integers(image, a.cache, words);
  for (uint64_t b = 0; b < a.sequences; ++b)
    for (int32_t j = 0; j < appends[3 * b + 2]; ++j)
      for (uint64_t h = 0; h < a.heads; ++h) {
        const uint64_t position = uint64_t(appends[3 * b + 1] + j), token = uint64_t(appends[3 * b] + j);
        const uint64_t block = (b * a.heads + h) * (a.capacity / KV_BLOCK) + position / KV_BLOCK;
        uint32_t* block_words = reinterpret_cast<uint32_t*>(cache.data()) + block * a.format.block_words(a.head_dim);
        const uint32_t t = uint32_t(position % KV_BLOCK);
        const auto row = [&](const Floats& x) {
          const float* begin = &x[token * width + h * d];
          return Floats(begin, begin + d);
        };
        encode(a.format.k, a.k_side, k_operands, h, table.empty() ? nullptr : &table[position * d], row(k), t,
               {a.format.k, a.head_dim, block_words});
        encode(a.format.v, a.v_side, v_operands, h, nullptr, row(v), t,
               {a.format.v, a.head_dim, block_words + a.format.k.block_words(a.head_dim)});
      }
  store_integers(image, a.cache, cache);
}

void run(const KvQuery& a, Image image) {
  const uint64_t d = a.head_dim, size = a.rows * a.heads * d;
  const Values q = load(image, a.q, size);
  const Values transform = a.transform ? load(image, a.transform, count_of(a.transform, d * d, a.heads)) : Values();
  Values out = q;
  for (uint64_t i = 0; i < size && a.transform; ++i)
    out[i] = dot(&transform[start_of(a.transform, d * d, i / d % a.heads) + i % d * d], &q[i / d * d], d);
  store(image, a.out, out);
  if (a.projection) {
    const Values projection = load(image, a.projection, d * d);
    Values projected(size);
    for (uint64_t i = 0; i < size; ++i) projected[i] = dot(&projection[i % d * d], &out[i / d * d], d);
    store(image, a.projected, projected);
  }
  if (!a.position_mean) return;
  const Values mean = load(image, a.position_mean, a.heads * d);
  Values position(size);
  for (uint64_t i = 0; i < size; i += 2) {
    // The score of the mean turned by an angle is linear in its cosine and sine: so those of (1, 0) and of (0, 1).
    const double* m = &mean[i / d % a.heads * d + i % d];
    position[i] = q[i] * m[0] + q[i + 1] * m[1];
    position[i + 1] = q[i] * -m[1] + q[i + 1] * m[0];
  }
  store(image, a.position, position);
}

void run(const KvAttention& a, Image image) {
  const uint64_t d = a.head_dim, rows = uint64_t(a.sequences) * a.queries, size = rows * a.heads * d;
  const Values q = load(image, a.q, size);
  const Values projected = a.format.k.qjl ? load(image, a.projected, size) : Values();
  const Values bias = a.bias ? load(image, a.bias, rows * a.heads * a.capacity) : Values();
  const auto lengths = load_integers(image, a.lengths, a.sequences);
  const uint64_t words = cache_words(a.format, uint64_t(a.sequences) * a.heads, a.head_dim, a.capacity);
  std::vector<int32_t> cache = load_integers(image, a.cache, words);
  const Values k_codebook = load_codebook(image, a.format.k, a.k_codebook, a.heads);
  const Values v_codebook = load_codebook(image, a.format.v, a.v_codebook, a.heads);
  const Values transform = a.transform ? load(image, a.transform, count_of(a.transform, d * d, a.heads)) : Values();
  const Values mean = a.mean ? load(image, a.mean, a.heads * d) : Values(a.heads * d);

  Values out(size);
  for (uint64_t b = 0; b < a.sequences; ++b)
    for (uint64_t h = 0; h < a.heads; ++h) {
      const uint64_t length = uint64_t(lengths[b]);
      if (length == 0) continue;
      std::vector<Values> scores(a.queries), values;
      for (uint64_t j = 0; j < length; ++j) {
        const uint64_t block = (b * a.heads + h) * (a.capacity / KV_BLOCK) + j / KV_BLOCK;
        uint32_t* k_words = reinterpret_cast<uint32_t*>(cache.data()) + block * a.format.block_words(a.head_dim);
        const PlainSide k_side(a.format.k, a.head_dim, k_words);
        const PlainSide v_side(a.format.v, a.head_dim, k_words + a.format.k.block_words(a.head_dim));
        const uint32_t t = uint32_t(j % KV_BLOCK);
        const Values k =
            decode(a.format.k, k_side, &k_codebook[start_of(a.k_codebook, a.format.k.codebook_size(), h)], t);
        values.push_back(
            decode(a.format.v, v_side, &v_codebook[start_of(a.v_codebook, a.format.v.codebook_size(), h)], t));
        for (uint64_t i = 0; i < a.queries; ++i) {
          const uint64_t row = (b * a.queries + i) * a.heads + h;
          double score = dot(&q[row * d], k.data(), d);
          if (a.format.k.qjl) {
            double signs = 0;
            for (uint64_t c = 0; c < d; ++c)
              signs += projected[row * d + c] * (read_code(k_side.signs(), a.head_dim, 1, t, uint32_t(c)) ? 1 : -1);
            const double norm = double(value_of_scale(16, read_scale(k_side.norms(), 16, t)));
            score += std::sqrt(std::acos(-1.0) / 2) / double(d) * norm * signs;
          }
          if (a.bias) score += bias[row * a.capacity + j];
          scores[i].push_back(score);
        }
      }
      for (uint64_t i = 0; i < a.queries; ++i) {
        const uint64_t row = (b * a.queries + i) * a.heads + h;
        softmax(scores[i]);
        Values sum(d);
        for (uint64_t j = 0; j < length; ++j)
          for (uint64_t c = 0; c < d; ++c) sum[c] += scores[i][j] * values[j][c];
        for (uint64_t c = 0; c < d; ++c)
          out[row * d + c] =
              mean[h * d + c] +
              (a.transform ? dot(&transform[start_of(a.transform, d * d, h) + c * d], sum.data(), d) : sum[c]);
      }
    }
  store(image, a.out, out);
}

void run(const Sample& a, Image image) {
  const uint64_t n = a.sequences, count = a.candidate_count;
  const Values logits = load(image, a.logits, 2 * n * a.vocab);
  const auto candidates = load_integers(image, a.candidates, count), limits = load_integers(image, a.limits, n);
  auto tokens = load_integers(image, a.tokens, n * a.capacity), ids = load_integers(image, a.ids, 2 * n);
  auto positions = load_integers(image, a.positions, 2 * n), appends = load_integers(image, a.appends, 3 * n);
  auto lengths = load_integers(image, a.lengths, n), active = load_integers(image, a.active, n);
  Values log_probability = load(image, a.log_probability, n);

  for (uint64_t b = 0; b < n; ++b) {
    if (active[b] <= 0) continue;
    const double* row = &logits[(2 * b + 1) * a.vocab];
    const int32_t p = positions[2 * b + 1];
    int32_t& residue = tokens[b * a.capacity + uint64_t(p)];
    Values scores;
    for (const int32_t candidate : candidates) scores.push_back(row[candidate]);
    if (residue < 0) {
      std::vector<uint64_t> order(count);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](uint64_t x, uint64_t y) { return scores[x] > scores[y]; });
      uint64_t drawn = order[0];
      if (a.temperature > 0) {
        Values p_of;
        for (const double score : scores) p_of.push_back(score / double(a.temperature));
        softmax(p_of);
        double kept = 0, passed = 0;
        uint64_t keep = 0;
        while (keep < count && (keep == 0 || kept < double(a.top_p))) kept += p_of[order[keep++]];
        const double u = double(random_uniform(a.seed, a.first_stream + uint32_t(b), uint32_t(p)));
        uint64_t k = 0;
        while (k + 1 < keep && u * kept >= passed + p_of[order[k]]) passed += p_of[order[k++]];
        drawn = order[k];
      }
      residue = candidates[drawn];
    }
    double sum = 0;
    for (const double score : scores) sum += std::exp(score - scores[0]);
    log_probability[b] += row[residue] - scores[0] - std::log(sum);

    if (residue == a.stop_id || p + 1 == limits[b]) {
      active[b] = 0;
      appends[3 * b + 2] = 0;
      continue;
    }
    ids[2 * b] = residue;
    positions[2 * b] = p;
    positions[2 * b + 1] = p + 1;
    const int32_t append[3] = {int32_t(2 * b), p, 1};
    std::copy(append, append + 3, &appends[3 * b]);
    lengths[b] = p + 1;
  }
  store_integers(image, a.tokens, tokens);
  store_integers(image, a.ids, ids);
  store_integers(image, a.positions, positions);
  store_integers(image, a.appends, appends);
  store_integers(image, a.lengths, lengths);
  store_integers(image, a.active, active);
  store(image, a.log_probability, log_probability);
}

}  // namespace turboesm::conformance
