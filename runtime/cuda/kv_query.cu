// KvQuery by itself (kv_query.cuh).
#include "runtime/cuda/kv_query.cuh"

namespace turboesm::cuda {
namespace {

// Of a warp at a time, where they share a matrix and there are enough of them to occupy the device.
constexpr uint32_t kManyRows = 4;

template <class T, class Position, uint32_t kHeadDim, uint32_t kRows>
__global__ void __launch_bounds__(kv_query::kWarps* kWarp) turn_queries(const kv_query::Arguments a) {
  extern __shared__ __align__(16) float memory[];
  let_next_start();
  kv_query::run<T, Position, kHeadDim, kRows>(a, memory, blockIdx.x, blockIdx.y);
}

template <class T, class Position, uint32_t kHeadDim, uint32_t kRows = 1>
void start_queries(const KvQuery& a, const Launch& l) {
  const kv_query::Arguments arguments = kv_query::arguments_of(a, kv_query::kWarps, kRows, l.gpu);
  start(turn_queries<T, Position, kHeadDim, kRows>, dim3(a.heads, arguments.blocks()), dim3(kv_query::kWarps * kWarp),
        arguments.shared_bytes(), l, arguments);
}

template <class T, uint32_t kHeadDim>
void start_queries_of(const KvQuery& a, const Launch& l) {
  const bool many = (a.transform || a.projection) &&
                    uint64_t(a.rows) * a.heads >= 2ull * kManyRows * kv_query::kWarps * l.gpu.multiprocessors;
  many ? start_queries<T, T, kHeadDim, kManyRows>(a, l) : start_queries<T, T, kHeadDim>(a, l);
}

}  // namespace

void launch(const KvQuery& a, const Launch& l) {
  with_type(a.q.dtype, [&](auto type) {
    using T = decltype(type);
    if (kv_query::has_kernel(a)) {
      const auto start_of = a.head_dim == 32   ? start_queries_of<T, 32>
                            : a.head_dim == 64 ? start_queries_of<T, 64>
                                               : start_queries_of<T, 128>;
      return start_of(a, l);
    }
    with_type(a.position ? a.position.dtype : DType::f32,
              [&](auto position) { start_queries<T, decltype(position), 0>(a, l); });
  });
}

}  // namespace turboesm::cuda
