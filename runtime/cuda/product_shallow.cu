// Products of few inputs (product_shallow.cuh).
#include "runtime/cuda/product_shallow.cuh"

namespace turboesm::cuda {
namespace {

using namespace shallow;

constexpr uint32_t kThreads = kWarps * kWarp;
constexpr uint32_t kLeastOutputs = 64;  // below, other kernels do as well

constexpr uint32_t pieces_of(uint32_t inputs) {
  return inputs <= kPiece ? 1 : inputs <= 2 * kPiece ? 2 : kMostInputs / kPiece;
}
constexpr uint32_t rows_of_block(uint32_t inputs) { return kWarps * 16 * tiles_of(pieces_of(inputs), false); }

template <class T, class Y, uint32_t kPieces>
__global__ void __launch_bounds__(kThreads) multiply_shallow(const Product p, uint32_t block_outputs) {
  let_next_start();
  run<T, Y, kPieces, false>(p, {}, block_outputs, blockIdx.x, blockIdx.y);
}

template <class T, class Y>
void launch_types(const Product& p, uint32_t variant, const Launch& l) {
  const uint32_t outputs = kBlockOutputs[variant];
  const dim3 grid(blocks_of(p.outputs, outputs), blocks_of(p.rows, rows_of_block(p.inputs)));
  const uint32_t pieces = pieces_of(p.inputs);
  const auto kernel = pieces == 1   ? multiply_shallow<T, Y, 1>
                      : pieces == 2 ? multiply_shallow<T, Y, 2>
                                    : multiply_shallow<T, Y, kMostInputs / kPiece>;
  start(kernel, grid, dim3(kThreads), 0, l, p, outputs);
}

}  // namespace

bool shallow_can(const Product& p, uint32_t variant, const Gpu& gpu) {
  constexpr int kNeeded = 80;  // compute capability: m16n8k16
  const auto aligned = [](const void* address, size_t bytes) {
    return reinterpret_cast<uint64_t>(address) % bytes == 0;
  };
  if (p.dtype == DType::f32 || !gpu.matrix_cores || gpu.compute_capability < kNeeded) return false;
  if (p.heads != 0 || p.gelu || p.residual != nullptr) return false;
  if (p.inputs == 0 || p.inputs % 8 != 0 || p.inputs > kMostInputs) return false;
  if (p.outputs % 4 != 0 || p.outputs < kLeastOutputs || blocks_of(p.rows, rows_of_block(p.inputs)) > 65535)
    return false;
  if (variant > 0 && p.outputs <= kBlockOutputs[variant - 1]) return false;  // as many blocks as that one
  return aligned(p.x, 16) && aligned(p.weight, 16) && aligned(p.bias, 16) && aligned(p.y, 4 * size_of(p.y_dtype));
}

void launch_shallow(const Product& p, uint32_t variant, const Launch& l) {
  with_type(p.y_dtype, [&](auto y) {
    using Y = decltype(y);
    if (p.dtype == DType::f16) return launch_types<__half, Y>(p, variant, l);
    launch_types<__nv_bfloat16, Y>(p, variant, l);
  });
}

}  // namespace turboesm::cuda
