// KvAppend by itself: the exact kernel (kv_append.cuh), unless kv_append_many.cu has one.
#include "runtime/cuda/kv_append.cuh"

namespace turboesm::cuda {
namespace {

template <uint32_t kValues, bool kFull>
__global__ void __launch_bounds__(kv_append::kMostWarps* kWarp, kValues <= 2 ? 3 : 2)
    append_exactly(const __grid_constant__ KvAppendArguments a, const __grid_constant__ kv_append::Shape shape) {
  extern __shared__ __align__(16) float memory[];
  let_next_start();
  kv_append::run<kValues, kFull>(a, shape, memory, blockIdx.x, blockIdx.y);
}

template <uint32_t kValues, bool kFull>
void launch_exact(const KvAppendArguments& a, const Launch& l) {
  const kv_append::Shape shape = kv_append::shape_of(a, l.gpu);
  start(append_exactly<kValues, kFull>, dim3(shape.blocks(), 2 * a.heads), shape.warps * kWarp, shape.shared_bytes, l,
        a, shape);
}

}  // namespace

void launch(const KvAppend& a, const Launch& l) {
  const uint32_t d = a.head_dim;
  const KvAppendArguments arguments = kv_append::arguments_of(a);
  if (launch_kv_append_many(arguments, l)) return;
  static_assert(kMaxHeadDim == 8 * kWarp);
  switch (d) {
    case 32: return launch_exact<1, true>(arguments, l);
    case 64: return launch_exact<2, true>(arguments, l);
    case 128: return launch_exact<4, true>(arguments, l);
  }
  if (d < 32) return launch_exact<1, false>(arguments, l);
  if (d < 64) return launch_exact<2, false>(arguments, l);
  if (d < 128) return launch_exact<4, false>(arguments, l);
  launch_exact<8, false>(arguments, l);
}

}  // namespace turboesm::cuda
