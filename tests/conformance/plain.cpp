#include "tests/conformance/plain.h"

#include "runtime/random.h"
#include "tests/conformance/plain_image.h"

namespace turboesm::conformance {
namespace {

// Softmax over the keys `begin` .. `begin + length` of one query's scores in one head. q and k are
// [tokens, heads, head_dim].
Values probabilities(const Values& q, const Values& k, uint64_t query, uint64_t begin, uint64_t length, uint64_t head,
                     uint64_t heads, uint64_t head_dim) {
  Values scores(length);
  for (uint64_t j = 0; j < length; ++j)
    scores[j] = dot(&q[(query * heads + head) * head_dim], &k[((begin + j) * heads + head) * head_dim], head_dim);
  softmax(scores);
  return scores;
}

void run(const TokenDropout& a, Image image) {
  const auto ids = load_integers(image, a.ids, a.tokens);
  const auto cu_seqlens = load_integers(image, a.cu_seqlens, a.sequences + 1);
  Values scale(a.sequences);
  for (uint64_t b = 0; b < a.sequences; ++b) {
    const double length = cu_seqlens[b + 1] - cu_seqlens[b];
    const double masks = double(std::count(ids.begin() + cu_seqlens[b], ids.begin() + cu_seqlens[b + 1], a.mask_id));
    scale[b] = masks == length ? 0 : (1 - 0.12) / (1 - masks / length);
  }
  store(image, a.scale, scale);
}

void run(const Embed& a, Image image) {
  const auto ids = load_integers(image, a.ids, a.tokens);
  const auto cu_seqlens = load_integers(image, a.cu_seqlens, a.sequences + 1);
  const Values table = load(image, a.table, uint64_t(a.vocab) * a.width);
  const Values scale = a.scale ? load(image, a.scale, a.sequences) : Values(a.sequences, 1.0);
  Values out(uint64_t(a.tokens) * a.width);
  for (uint64_t b = 0; b < a.sequences; ++b)
    for (int32_t t = cu_seqlens[b]; t < cu_seqlens[b + 1]; ++t) {
      const int32_t row = ids[t] < 0 || ids[t] >= int32_t(a.vocab) ? a.unk_id : ids[t];
      const double factor = a.scale && ids[t] == a.mask_id ? 0 : scale[b];
      for (uint64_t i = 0; i < a.width; ++i)
        out[uint64_t(t) * a.width + i] = table[uint64_t(row) * a.width + i] * factor;
    }
  store(image, a.out, out);
}

void run(const LayerNorm& a, Image image) {
  const Values x = load(image, a.x, uint64_t(a.rows) * a.width);
  const Values weight = load(image, a.weight, a.width), bias = load(image, a.bias, a.width);
  Values y(x.size());
  for (uint64_t begin = 0; begin < x.size(); begin += a.width) {
    double mean = 0, variance = 0;
    for (uint64_t i = 0; i < a.width; ++i) mean += x[begin + i] / a.width;
    for (uint64_t i = 0; i < a.width; ++i) variance += (x[begin + i] - mean) * (x[begin + i] - mean) / a.width;
    for (uint64_t i = 0; i < a.width; ++i)
      y[begin + i] = (x[begin + i] - mean) / std::sqrt(variance + double(a.epsilon)) * weight[i] + bias[i];
  }
  store(image, a.y, y);
}

double gelu(double z) { return z / 2 * (1 + std::erf(z / std::sqrt(2.0))); }

void run(const Linear& a, Image image) {
  const Values x = load(image, a.x, uint64_t(a.rows) * a.inputs);
  const Values weight = load(image, a.weight, uint64_t(a.outputs) * a.inputs);
  const Values bias = a.bias ? load(image, a.bias, a.outputs) : Values(a.outputs);
  Values y = a.residual ? load(image, a.residual, uint64_t(a.rows) * a.outputs) : Values(uint64_t(a.rows) * a.outputs);
  for (uint64_t row = 0; row < a.rows; ++row)
    for (uint64_t n = 0; n < a.outputs; ++n) {
      const double z = dot(&x[row * a.inputs], &weight[n * a.inputs], a.inputs) + bias[n];
      y[row * a.outputs + n] += a.gelu ? gelu(z) : z;
    }
  store(image, a.y, y);
}

void run(const QkvRope& a, Image image) {
  const uint64_t outputs = a.outputs();
  const Values x = load(image, a.x, uint64_t(a.tokens) * a.inputs);
  const Values weight = load(image, a.weight, outputs * a.inputs), bias = load(image, a.bias, outputs);
  const Values table = load(image, a.table, uint64_t(a.table_rows) * a.head_dim);
  const auto positions = load_integers(image, a.positions, a.tokens);
  Values qkv;
  qkv.reserve(outputs * a.tokens);
  for (uint64_t part = 0; part < 3; ++part)
    for (uint64_t t = 0; t < a.tokens; ++t)
      for (uint64_t h = 0; h < a.heads; ++h)
        for (uint64_t i = 0; i < a.head_dim; i += 2) {
          const uint64_t n = (part * a.heads + h) * a.head_dim + i;
          const double even = dot(&x[t * a.inputs], &weight[n * a.inputs], a.inputs) + bias[n];
          const double odd = dot(&x[t * a.inputs], &weight[(n + 1) * a.inputs], a.inputs) + bias[n + 1];
          const double* angle = &table[uint64_t(positions[t]) * a.head_dim + i];
          const double scale = part == 0 ? double(a.q_scale) : 1.0;
          const double cosine = part == 2 ? 1 : angle[0], sine = part == 2 ? 0 : angle[1];
          qkv.push_back(scale * (even * cosine - odd * sine));
          qkv.push_back(scale * (odd * cosine + even * sine));
        }
  store(image, a.qkv, qkv);
}

void run(const Attention& a, Image image) {
  const uint64_t size = uint64_t(a.tokens) * a.heads * a.head_dim;
  const Values q = load(image, a.q, size), k = load(image, a.k, size), v = load(image, a.v, size);
  const auto cu_seqlens = load_integers(image, a.cu_seqlens, a.sequences + 1);
  Values out(size);
  for (uint64_t b = 0; b < a.sequences; ++b) {
    const uint64_t begin = uint64_t(cu_seqlens[b]), length = uint64_t(cu_seqlens[b + 1]) - begin;
    for (uint64_t t = begin; t < begin + length; ++t)
      for (uint64_t h = 0; h < a.heads; ++h) {
        const Values p = probabilities(q, k, t, begin, length, h, a.heads, a.head_dim);
        for (uint64_t j = 0; j < length; ++j)
          for (uint64_t i = 0; i < a.head_dim; ++i)
            out[(t * a.heads + h) * a.head_dim + i] += p[j] * v[((begin + j) * a.heads + h) * a.head_dim + i];
      }
  }
  store(image, a.out, out);
}

void run(const PoolMean& a, Image image) {
  const Values x = load(image, a.x, uint64_t(a.tokens) * a.width);
  const auto cu_seqlens = load_integers(image, a.cu_seqlens, a.sequences + 1);
  Values out(uint64_t(a.sequences) * a.width);
  for (uint64_t b = 0; b < a.sequences; ++b) {
    const int32_t first = cu_seqlens[b] + 1, last = cu_seqlens[b + 1] - 1;
    for (int32_t t = first; t < last; ++t)
      for (uint64_t i = 0; i < a.width; ++i) out[b * a.width + i] += x[uint64_t(t) * a.width + i] / (last - first);
  }
  store(image, a.out, out);
}

void run(const AttentionMaps& a, Image image) {
  const uint64_t size = uint64_t(a.tokens) * a.heads * a.head_dim, length = a.length;
  const Values q = load(image, a.q, size), k = load(image, a.k, size);
  Values out;
  out.reserve(a.heads * length * length);
  for (uint64_t h = 0; h < a.heads; ++h)
    for (uint64_t i = 0; i < length; ++i) {
      const Values p = probabilities(q, k, a.begin + i, a.begin, length, h, a.heads, a.head_dim);
      out.insert(out.end(), p.begin(), p.end());
    }
  store(image, a.out, out);
}

// S[i, j] of one head: the map plus its transpose at residues i and j, <cls> skipped.
double symmetric(const Values& maps, uint64_t length, uint64_t head, uint64_t i, uint64_t j) {
  const double* map = &maps[head * length * length];
  return map[(i + 1) * length + j + 1] + map[(j + 1) * length + i + 1];
}

void run(const ContactSums& a, Image image) {
  const uint64_t length = a.length, residues = length - 2;
  const Values maps = load(image, a.maps, a.heads * length * length);
  Values sums(a.heads * (length - 1));
  for (uint64_t h = 0; h < a.heads; ++h)
    for (uint64_t i = 0; i < residues; ++i)
      for (uint64_t j = 0; j < residues; ++j) {
        const double s = symmetric(maps, length, h, i, j);
        sums[h * (length - 1) + i] += s;
        sums[h * (length - 1) + residues] += s;
      }
  store(image, a.sums, sums);
}

void run(const ContactAccumulate& a, Image image) {
  const uint64_t length = a.length, residues = length - 2;
  const Values maps = load(image, a.maps, a.heads * length * length);
  const Values sums = load(image, a.sums, a.heads * (length - 1)), weight = load(image, a.weight, a.heads);
  Values logits = load(image, a.logits, residues * residues);
  for (uint64_t h = 0; h < a.heads; ++h) {
    const double* s = &sums[h * (length - 1)];
    for (uint64_t i = 0; i < residues; ++i)
      for (uint64_t j = 0; j < residues; ++j)
        logits[i * residues + j] += weight[h] * (symmetric(maps, length, h, i, j) - s[i] * s[j] / s[residues]);
  }
  store(image, a.logits, logits);
}

void run(const Fill& a, Image image) { store(image, a.out, Values(a.out.count, double(a.value))); }

void run(const RandomNormal& a, Image image) {
  Values out(a.out.count);
  for (uint64_t i = 0; i < out.size(); i += 2) {
    float even = 0, odd = 0;
    random_normal_pair(a.seed, uint32_t(i / 2), even, odd);
    out[i] = double(a.stddev) * even;
    out[i + 1] = double(a.stddev) * odd;
  }
  store(image, a.out, out);
}

void run(const Copy& a, Image image) {
  if (a.destination.bytes() == 0) return;
  std::memmove(image.data() + a.destination.offset, image.data() + a.source.offset, a.destination.bytes());
}

}  // namespace

void run_plainly(const Operation& operation, std::span<std::byte> image) {
  std::visit([&](const auto& a) { run(a, image); }, operation);
}

}  // namespace turboesm::conformance
