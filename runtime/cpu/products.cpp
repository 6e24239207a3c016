// Linear and QkvRope on the CPU: x weight^T, tile by tile, with bias, GELU, residual and RoPE on a tile's rows while
// they are in the nearest cache.
#include <optional>

#include "runtime/cpu/amx.h"
#include "runtime/cpu/panels.h"
#include "runtime/cpu/variant.h"
#include "shaders/include/gelu_coefficients.h"

namespace turboesm::cpu::TURBOESM_CPU_VARIANT {
namespace {

// Inputs of one pass over a tile: kProductOutputs x kDepth words of weights stay in the second-level cache, kBlockRows
// x kDepth of x in the first.
constexpr uint64_t kDepth = 512;

// As gelu_coefficients.h states it. A NaN stays one.
Vector gelu(Vector z) {
  const Vector h = smaller(larger(z, -z), splat(TURBOESM_GELU_LIMIT));
  Vector p = splat(TURBOESM_GELU_P6);
  for (const float c :
       {TURBOESM_GELU_P5, TURBOESM_GELU_P4, TURBOESM_GELU_P3, TURBOESM_GELU_P2, TURBOESM_GELU_P1, TURBOESM_GELU_P0})
    p = p * h + c;
  return larger(z, splat(0.0f)) - h * exp(p * 0.69314718055994531f);
}

// A tile of a product: its rows row .. row + rows, its outputs output .. output + outputs.
struct Tile {
  uint64_t row, output, rows, outputs;
};

// Tile number `index`, output tiles innermost.
Tile tile_at(uint64_t index, uint64_t rows, uint64_t outputs) {
  const uint64_t output_tiles = (outputs + kProductOutputs - 1) / kProductOutputs;
  const uint64_t row = index / output_tiles * kProductRows, output = index % output_tiles * kProductOutputs;
  return {row, output, min_of(kProductRows, rows - row), min_of(kProductOutputs, outputs - output)};
}

// Words of both operands as the kernels multiply them: pairs of bf16 where the processor has that, else floats.
struct Words {
  const Tensor& tensor;
  uint64_t inputs;  // of a row

  // `count` inputs of a row from input `first` on: where they are, or as floats in `scratch`.
  const float* at(uint64_t row, uint64_t first, uint64_t count, float* scratch) const {
    const uint64_t element = row * inputs + first;
    if (in_place()) return reinterpret_cast<const float*>(data_of(tensor) + element * size_of(tensor.dtype));
    load(tensor, element, count, scratch);
    return scratch;
  }

  bool pairs() const {
#if defined(__AVX512BF16__)
    return tensor.dtype == DType::bf16;
#else
    return false;
#endif
  }
  bool in_place() const { return tensor.dtype == DType::f32 || pairs(); }

  // Whether amx.h multiplies them.
  bool by_amx() const {
#if defined(TURBOESM_AMX)
    return pairs() && inputs % (2 * kAmx) == 0;
#else
    return false;
#endif
  }
};

// Inputs first .. first + count of the tile's weights into panels.
void pack_weight(const Words& weight, const Tile& t, uint64_t first, uint64_t count, float* panels) {
  float scratch[kVector][kDepth];
  uint64_t calls = 0;
  pack_transposed(t.outputs, weight.pairs() ? count / 2 : count, panels,
                  [&](uint64_t row) { return weight.at(t.output + row, first, count, scratch[calls++ % kVector]); });
}

#if defined(TURBOESM_AMX)
// So every pass is of whole registers, and a tile's sums have room for its rows rounded up to them.
static_assert(kDepth % (2 * kAmx) == 0 && kProductRows % kAmx == 0);

// multiply_part() for up to kAmxBlockRows rows. Rows of sums up to a multiple of kAmx are written.
void multiply_part_by_amx(const Words& x, uint64_t row, uint64_t rows, uint64_t first, uint64_t count,
                          const float* panels, uint64_t panel_count, float* sums) {
  constexpr uint64_t kWords = kDepth / 2;
  const uint64_t depth = count / 2, registers = (rows + kAmx - 1) / kAmx;
  alignas(64) float padded[kAmxBlockRows][kWords];
  const float* block = x.at(row, first, count, padded[0]);
  uint64_t stride = x.inputs / 2;
  if (rows % kAmx != 0) {  // there may be no more memory behind the last row
    for (uint64_t r = 0; r < registers * kAmx; ++r) {
      if (r < rows)
        std::memcpy(padded[r], block + r * stride, depth * sizeof(float));
      else
        std::memset(padded[r], 0, depth * sizeof(float));
    }
    block = padded[0], stride = kWords;
  }
  const auto multiply = registers == 2 ? multiply_by_amx<2> : multiply_by_amx<1>;
  for (uint64_t p = 0; p < panel_count; ++p)
    multiply(block, stride, panels + p * depth * kPanel, depth, sums + p * kPanel, kProductOutputs, first > 0);
}
#endif

// Adds the part of a product that inputs first .. first + count make, for rows row .. row + rows of x.
void multiply_part(const Words& x, uint64_t row, uint64_t rows, uint64_t first, uint64_t count, const float* panels,
                   uint64_t panel_count, float* sums) {
  const bool add = first > 0;
  float scratch[kBlockRows][kDepth];
  const float* block = x.at(row, first, count, scratch[0]);
#if defined(__AVX512BF16__)
  if (x.pairs())
    return multiply_block<MultiplyPairs>(block, x.inputs / 2, rows, panels, panel_count, count / 2, sums,
                                         kProductOutputs, add);
#endif
  if (!x.in_place())
    for (uint64_t r = 1; r < rows; ++r) x.at(row + r, first, count, scratch[r]);
  multiply_block<MultiplyFloats>(block, x.in_place() ? x.inputs : kDepth, rows, panels, panel_count, count, sums,
                                 kProductOutputs, add);
}

// The tile of x [rows, inputs] times weight [outputs, inputs], transposed. Calls epilogue(row of the product, values
// [kProductOutputs]) once for each row of the tile.
template <class Epilogue>
void multiply_tile(const Tensor& x, const Tensor& weight, uint64_t inputs, const Tile& t, Epilogue&& epilogue) {
  static thread_local Scratch scratch;
  const uint64_t panel_count = panels_of(t.outputs);
  float* sums = scratch.get(kProductRows * kProductOutputs + panel_count * kPanel * kDepth);  // of the tile's rows
  float* panels = sums + kProductRows * kProductOutputs;
  const Words x_words{x, inputs}, weight_words{weight, inputs};
#if defined(TURBOESM_AMX)
  std::optional<AmxRegisters> registers;
  if (x_words.by_amx()) registers.emplace();
  const uint64_t block_rows = registers ? kAmxBlockRows : kBlockRows;
  const auto multiply = registers ? multiply_part_by_amx : multiply_part;
#else
  constexpr uint64_t block_rows = kBlockRows;
  const auto multiply = multiply_part;
#endif
  for (uint64_t first = 0; first < inputs; first += kDepth) {
    const uint64_t count = min_of(kDepth, inputs - first);
    pack_weight(weight_words, t, first, count, panels);
    for (uint64_t row = 0; row < t.rows; row += block_rows) {
      const uint64_t rows = min_of(block_rows, t.rows - row);
      float* block = sums + row * kProductOutputs;
      multiply(x_words, t.row + row, rows, first, count, panels, panel_count, block);
      if (first + count < inputs) continue;
      for (uint64_t r = 0; r < rows; ++r) epilogue(t.row + row + r, block + r * kProductOutputs);
    }
  }
}

// values [kProductOutputs] += the bias of the tile's outputs, then GELU if asked for.
void add_bias(const float* bias, bool with_gelu, const Tile& t, float* values) {
  for (uint64_t i = 0; i < t.outputs; i += kVector) {
    const Vector z = load_vector(values + i) + load_vector(bias + i);
    store_vector(values + i, with_gelu ? gelu(z) : z);
  }
}

// The bias of a tile's outputs, zeros where there is none, in whole vectors.
struct TileBias {
  float values[kProductOutputs] = {};
  TileBias(const Tensor& bias, const Tile& t) {
    if (bias) std::memcpy(values, as<const float>(bias) + t.output, t.outputs * sizeof(float));
  }
};

// Scales and turns `count` values of q or k, from value `first` of a head on, by an angle for each pair. `angles` is
// the table's row; the values may go on into the heads that follow.
void turn(float* values, uint64_t count, uint64_t first, uint64_t head_dim, const float* angles, float scale) {
  for (uint64_t done = 0, at = first, run; done < count; done += run, at = 0) {
    run = min_of(count - done, head_dim - at);
    float* pairs = values + done;
    for (uint64_t i = 0; i < run; i += 2) {
      const float x = pairs[i] * scale, y = pairs[i + 1] * scale, cosine = angles[at + i], sine = angles[at + i + 1];
      pairs[i] = x * cosine - y * sine;
      pairs[i + 1] = y * cosine + x * sine;
    }
  }
}

}  // namespace

void linear(const Linear& a, Range tiles) {
  for (uint64_t index = tiles.begin; index < tiles.end; ++index) {
    const Tile t = tile_at(index, a.rows, a.outputs);
    const TileBias bias(a.bias, t);
    multiply_tile(a.x, a.weight, a.inputs, t, [&](uint64_t row, float* values) {
      const uint64_t first = row * a.outputs + t.output;
      add_bias(bias.values, a.gelu, t, values);
      if (a.residual) {
        const float* residual = as<const float>(a.residual) + first;
        for (uint64_t i = 0; i < t.outputs; ++i) values[i] += residual[i];
      }
      store(a.y, first, t.outputs, values);
    });
  }
}

void qkv_rope(const QkvRope& a, Range tiles) {
  const uint64_t width = uint64_t(a.heads) * a.head_dim;  // of q, k and v each
  for (uint64_t index = tiles.begin; index < tiles.end; ++index) {
    const Tile t = tile_at(index, a.tokens, a.outputs());
    const TileBias bias(a.bias, t);
    multiply_tile(a.x, a.weight, a.inputs, t, [&](uint64_t token, float* row) {
      add_bias(bias.values, false, t, row);
      const float* angles = as<const float>(a.table) + uint64_t(as<const int32_t>(a.positions)[token]) * a.head_dim;
      // A tile may have a share in more than one of q, k and v.
      const uint64_t end = t.output + t.outputs;
      for (uint64_t output = t.output, next; output < end; output = next) {
        const uint64_t part = output / width, column = output - part * width;
        next = min_of(end, (part + 1) * width);
        float* values = row + (output - t.output);
        if (part < 2)
          turn(values, next - output, column % a.head_dim, a.head_dim, angles, part == 0 ? a.q_scale : 1.0f);
        store(a.qkv, (part * a.tokens + token) * width + column, next - output, values);
      }
    });
  }
}

}  // namespace turboesm::cpu::TURBOESM_CPU_VARIANT
