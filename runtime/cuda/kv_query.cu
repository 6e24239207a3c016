// KvQuery by itself (kv_query.cuh).
#include "runtime/cuda/kv_query.cuh"

namespace turboesm::cuda {
namespace {

template <class T, class Position>
__global__ void __launch_bounds__(kv_query::kWarps* kWarp) turn_queries(const kv_query::Arguments a) {
  extern __shared__ __align__(16) float memory[];
  let_next_start();
  kv_query::run<T, Position>(a, memory, blockIdx.x, blockIdx.y);
}

}  // namespace

void launch(const KvQuery& a, const Launch& l) {
  const kv_query::Arguments arguments = kv_query::arguments_of(a, kv_query::kWarps, l.gpu);
  with_type(a.q.dtype, [&](auto type) {
    with_type(a.position ? a.position.dtype : DType::f32, [&](auto position) {
      start(turn_queries<decltype(type), decltype(position)>, dim3(a.heads, arguments.blocks()),
            dim3(kv_query::kWarps * kWarp), arguments.shared_bytes(), l, arguments);
    });
  });
}

}  // namespace turboesm::cuda
