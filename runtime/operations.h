#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <variant>

#include "runtime/kv_operations.h"
#include "runtime/tensor.h"

namespace turboesm {

// Every operation is plain data: it can be built, checked, counted and printed without a device. Its operands() hands
// each operand to `visit(name, tensor, elements, access, dtypes)`; from that one declaration come the shape checks
// (check), the barriers that a back end places, and the bytes that `bench` counts. Operands said to be optional may be
// empty tensors. Sequences are packed: `cu_seqlens` [sequences + 1] i32 starts at 0, never falls and ends at `tokens`;
// sequence b is rows cu_seqlens[b] .. cu_seqlens[b + 1]. A weight matrix is [outputs, inputs], row-major, as
// PyTorch's Linear stores it. "D" is f32, f16 or bf16, one for all of an operation's D operands; "any" is one of them
// by itself. Arithmetic is fp32 throughout; the products of 16-bit operands are exact and summed in fp32.

// scale[b] = (1 - 0.12) / (1 - share of mask_id among the ids of sequence b): ESM-2's token dropout, at inference too
// (0.12 = 0.15 x 0.8, the share of <mask> tokens in training). A sequence of masks only has scale 0.
struct TokenDropout {
  static constexpr std::string_view kName = "token_dropout";
  Tensor ids;         // [tokens] i32
  Tensor cu_seqlens;  // [sequences + 1] i32
  Tensor scale;       // out [sequences] f32
  uint32_t tokens = 0, sequences = 0;
  int32_t mask_id = 32;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("ids", ids, tokens, Access::read, kI32);
    visit("cu_seqlens", cu_seqlens, uint64_t(sequences) + 1, Access::read, kI32);
    visit("scale", scale, sequences, Access::write, kF32);
  }
  double flops() const { return 0; }
};

// out[t] = table[ids[t]] x scale[sequence of t], and 0 where ids[t] is mask_id; without scale: out[t] = table[ids[t]].
// Ids outside [0, vocab) read row `unk_id`.
struct Embed {
  static constexpr std::string_view kName = "embed";
  Tensor ids;         // [tokens] i32
  Tensor cu_seqlens;  // [sequences + 1] i32
  Tensor scale;       // [sequences] f32, optional
  Tensor table;       // [vocab, width] any
  Tensor out;         // out [tokens, width] f32
  uint32_t tokens = 0, sequences = 0, vocab = 0, width = 0;
  int32_t mask_id = 32, unk_id = 3;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("ids", ids, tokens, Access::read, kI32);
    visit("cu_seqlens", cu_seqlens, uint64_t(sequences) + 1, Access::read, kI32);
    if (scale) visit("scale", scale, sequences, Access::read, kF32);
    visit("table", table, uint64_t(vocab) * width, Access::read, kFloat);
    visit("out", out, uint64_t(tokens) * width, Access::write, kF32);
  }
  double flops() const { return double(tokens) * width; }
};

// y = (x - mean) / sqrt(var + epsilon) x weight + bias over each row; var is the biased variance, computed from the
// deviations (two passes), not from E[x^2]. width is even.
struct LayerNorm {
  static constexpr std::string_view kName = "layer_norm";
  Tensor x;             // [rows, width] f32
  Tensor weight, bias;  // [width] f32
  Tensor y;             // out [rows, width] any; may be x itself when f32
  uint32_t rows = 0, width = 0;
  float epsilon = 1e-5f;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("x", x, uint64_t(rows) * width, Access::read, kF32);
    visit("weight", weight, width, Access::read, kF32);
    visit("bias", bias, width, Access::read, kF32);
    visit("y", y, uint64_t(rows) * width, Access::write, kFloat);
  }
  double flops() const { return 8.0 * rows * width; }
};

// y = epilogue(x weight^T + bias) + residual, with epilogue either nothing or GELU(z) = z/2 (1 + erf(z / sqrt 2)).
// inputs is even; outputs is even when y is a 16-bit type. y may be the residual itself (each element is read once,
// before it is written, by the same thread).
struct Linear {
  static constexpr std::string_view kName = "linear";
  Tensor x;         // [rows, inputs] D
  Tensor weight;    // [outputs, inputs] D
  Tensor bias;      // [outputs] f32, optional
  Tensor residual;  // [rows, outputs] f32, optional
  Tensor y;         // out [rows, outputs] any
  uint32_t rows = 0, inputs = 0, outputs = 0;
  bool gelu = false;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("x", x, uint64_t(rows) * inputs, Access::read, kFloat);
    visit("weight", weight, uint64_t(outputs) * inputs, Access::read, kFloat);
    if (bias) visit("bias", bias, outputs, Access::read, kF32);
    if (residual) visit("residual", residual, uint64_t(rows) * outputs, Access::read, kF32);
    visit("y", y, uint64_t(rows) * outputs, Access::write, kFloat);
  }
  double flops() const { return 2.0 * rows * inputs * outputs; }
};

// The joint projection of attention and rotary embedding (Su et al. 2021) of q and k by their positions:
//   q = rope(q_scale x (Wq x + bq)),  k = rope(Wk x + bk),  v = Wv x + bv
// Pairs of neighbouring values of a head are turned, with i < head_dim / 2 and p = positions[t]:
//   (a, b) = (z[2i], z[2i + 1])  ->  (a cos - b sin, b cos + a sin),  cos = table[p, 2i], sin = table[p, 2i + 1]
// weight is Wq, Wk and Wv, one below the other, and bias likewise. inputs is even; head_dim is a multiple of 8, at most
// 256.
struct QkvRope {
  static constexpr std::string_view kName = "qkv_rope";
  Tensor x;          // [tokens, inputs] D
  Tensor weight;     // [3, heads, head_dim, inputs] D
  Tensor bias;       // [3, heads, head_dim] f32
  Tensor positions;  // [tokens] i32, each in [0, table_rows)
  Tensor table;      // [table_rows, head_dim] f32: a cosine, its sine, the next cosine ...
  Tensor qkv;        // out [3, tokens, heads, head_dim] any: q, then k, then v
  uint32_t tokens = 0, inputs = 0, heads = 0, head_dim = 0, table_rows = 0;
  float q_scale = 1.0f;

  uint64_t outputs() const { return 3 * uint64_t(heads) * head_dim; }

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("x", x, uint64_t(tokens) * inputs, Access::read, kFloat);
    visit("weight", weight, outputs() * inputs, Access::read, kFloat);
    visit("bias", bias, outputs(), Access::read, kF32);
    visit("positions", positions, tokens, Access::read, kI32);
    visit("table", table, uint64_t(table_rows) * head_dim, Access::read, kF32);
    visit("qkv", qkv, tokens * outputs(), Access::write, kFloat);
  }
  double flops() const { return 2.0 * tokens * inputs * double(outputs()); }
};

// Bidirectional attention inside each sequence: out = softmax(q k^T) v per head, with an online softmax in fp32 (Dao
// et al. 2022; Milakov & Gimelshein 2018), so that memory does not grow with length squared. q is already scaled.
// head_dim is a multiple of 8, at most 256. max_length >= the longest sequence (it sizes the launch).
struct Attention {
  static constexpr std::string_view kName = "attention";
  Tensor q, k, v;     // [tokens, heads, head_dim] D
  Tensor cu_seqlens;  // [sequences + 1] i32
  Tensor out;         // out [tokens, heads, head_dim] any
  uint32_t tokens = 0, sequences = 0, heads = 0, head_dim = 0, max_length = 0;
  double score_pairs = 0;  // sum of length^2 over the sequences, for flops() only; 0 if unknown

  template <class Visit>
  void operands(Visit&& visit) const {
    const uint64_t size = uint64_t(tokens) * heads * head_dim;
    visit("q", q, size, Access::read, kFloat);
    visit("k", k, size, Access::read, kFloat);
    visit("v", v, size, Access::read, kFloat);
    visit("cu_seqlens", cu_seqlens, uint64_t(sequences) + 1, Access::read, kI32);
    visit("out", out, size, Access::write, kFloat);
  }
  double flops() const { return 4.0 * score_pairs * heads * head_dim; }
};

// out[b] = mean of the rows of sequence b without its first and last (<cls> and <eos>); 0 when no row is left.
struct PoolMean {
  static constexpr std::string_view kName = "pool_mean";
  Tensor x;           // [tokens, width] f32
  Tensor cu_seqlens;  // [sequences + 1] i32
  Tensor out;         // out [sequences, width] f32
  uint32_t tokens = 0, sequences = 0, width = 0;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("x", x, uint64_t(tokens) * width, Access::read, kF32);
    visit("cu_seqlens", cu_seqlens, uint64_t(sequences) + 1, Access::read, kI32);
    visit("out", out, uint64_t(sequences) * width, Access::write, kF32);
  }
  double flops() const { return double(tokens) * width; }
};

// The attention maps themselves, for one sequence: rows begin .. begin + length of q and k. Only the contact head asks
// for them; their size is heads x length^2.
struct AttentionMaps {
  static constexpr std::string_view kName = "attention_maps";
  Tensor q, k;  // [tokens, heads, head_dim] D
  Tensor out;   // out [heads, length, length] f32, each row a softmax
  uint32_t tokens = 0, begin = 0, length = 0, heads = 0, head_dim = 0;

  template <class Visit>
  void operands(Visit&& visit) const {
    const uint64_t size = uint64_t(tokens) * heads * head_dim;
    visit("q", q, size, Access::read, kFloat);
    visit("k", k, size, Access::read, kFloat);
    visit("out", out, uint64_t(heads) * length * length, Access::write, kF32);
  }
  double flops() const { return 2.0 * length * length * heads * head_dim; }
};

// One layer's share of the contact head (Rao et al. 2020), first half. With S = A + A^T over the residues of a map
// (first and last row and column, <cls> and <eos>, dropped; n = length - 2): sums[h, i] = sum_j S[i, j] for i < n,
// and sums[h, n] = sum_i sums[h, i].
struct ContactSums {
  static constexpr std::string_view kName = "contact_sums";
  Tensor maps;  // [heads, length, length] f32
  Tensor sums;  // out [heads, length - 1] f32
  uint32_t heads = 0, length = 0;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("maps", maps, uint64_t(heads) * length * length, Access::read, kF32);
    visit("sums", sums, uint64_t(heads) * (length - 1), Access::write, kF32);
  }
  double flops() const { return 2.0 * heads * length * length; }
};

// Second half: logits[i, j] += sum_h weight[h] (S_h[i, j] - sums[h, i] sums[h, j] / sums[h, n]), the average product
// correction. The contact probability is sigmoid(logits + regression bias) after the last layer.
struct ContactAccumulate {
  static constexpr std::string_view kName = "contact_accumulate";
  Tensor maps;    // [heads, length, length] f32
  Tensor sums;    // [heads, length - 1] f32
  Tensor weight;  // [heads] f32
  Tensor logits;  // in and out [length - 2, length - 2] f32
  uint32_t heads = 0, length = 0;

  template <class Visit>
  void operands(Visit&& visit) const {
    const uint64_t residues = uint64_t(length) - 2;
    visit("maps", maps, uint64_t(heads) * length * length, Access::read, kF32);
    visit("sums", sums, uint64_t(heads) * (length - 1), Access::read, kF32);
    visit("weight", weight, heads, Access::read, kF32);
    visit("logits", logits, residues * residues, Access::read_write, kF32);
  }
  double flops() const { return 6.0 * heads * length * length; }
};

// out[i] = value. count is even for 16-bit types.
struct Fill {
  static constexpr std::string_view kName = "fill";
  Tensor out;  // out [out.count] any
  float value = 0;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("out", out, out.count, Access::write, kFloat);
  }
  double flops() const { return 0; }
};

// out[i] = stddev x n_i with n_i ~ N(0, 1) a function of (seed, i) alone, the same on every back end up to rounding:
// the pair (2j, 2j+1) is Box-Muller of two 24-bit uniforms from pcg-like hashes (runtime/random.h states it). count is
// even.
struct RandomNormal {
  static constexpr std::string_view kName = "random_normal";
  Tensor out;  // out [out.count] any
  uint32_t seed = 0;
  float stddev = 1;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("out", out, out.count, Access::write, kFloat);
  }
  double flops() const { return 0; }
};

// destination = source, byte for byte; equal dtypes and counts. The bytes are a multiple of 4.
struct Copy {
  static constexpr std::string_view kName = "copy";
  Tensor source;
  Tensor destination;

  template <class Visit>
  void operands(Visit&& visit) const {
    visit("source", source, destination.count, Access::read, kFloat | kI32);
    visit("destination", destination, destination.count, Access::write, kFloat | kI32);
  }
  double flops() const { return 0; }
};

using Operation =
    std::variant<TokenDropout, Embed, LayerNorm, Linear, QkvRope, Attention, PoolMean, AttentionMaps, ContactSums,
                 ContactAccumulate, Fill, RandomNormal, Copy, KvAppend, KvQuery, KvAttention, Sample>;

std::string_view name_of(const Operation& operation);

// Throws Error(usage) naming the operation, the operand and the values when an operand is missing, too small, of the
// wrong type or misaligned, or a size is out of bounds. Every back end calls it on what it is asked to record.
void check(const Operation& operation);

double flops(const Operation& operation);    // multiply and add counted as two
uint64_t bytes(const Operation& operation);  // each operand read or written once

}  // namespace turboesm
