// What a layer of a decoding step does ahead of its attention over the cache, as one kernel: KvAppend, KvQuery, and the
// Linear for the bias of positions, which need nothing of each other, since who makes the bias can make the positions
// from the queries. Of a few blocks each, they are bound by latencies: as kernels of their own they would wait for each
// other's launches and ends.
//
// The first blocks append, which takes longest; then some make the queries, the others the bias.
#include "runtime/cuda/kv_step.h"

#include <algorithm>

#include "runtime/accesses.h"
#include "runtime/cuda/kv_append.cuh"
#include "runtime/cuda/kv_query.cuh"
#include "runtime/cuda/product_shallow.cuh"

namespace turboesm::cuda {
namespace {

struct Arguments {
  KvAppendArguments append;
  kv_append::Shape append_shape;
  kv_query::Arguments query;
  Product bias;
  shallow::PositionMeans means;
  uint32_t bias_outputs;  // of a block
  // Of each kind, one after another. Along x are K and V of the heads, the heads, and what the outputs take.
  uint32_t append_blocks, query_blocks, bias_blocks;
};

template <uint32_t kValues, class T>
__global__ void __launch_bounds__(kv_append::kMostWarps* kWarp, kValues <= 2 ? 3 : 2)
    kv_step(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) float memory[];
  let_next_start();
  uint32_t block = blockIdx.x;
  if (block < a.append_blocks) {
    const uint32_t sides = 2 * a.append.heads;
    return kv_append::run<kValues, true>(a.append, a.append_shape, memory, block / sides, block % sides);
  }
  block -= a.append_blocks;
  if (block < a.query_blocks)
    return kv_query::run<T, T, kValues * kWarp, 1>(a.query, memory, block % a.query.heads, block / a.query.heads);
  block -= a.query_blocks;
  if constexpr (sizeof(T) == 2) {
    const uint32_t width = (a.bias.outputs + a.bias_outputs - 1) / a.bias_outputs;
    // kValues = head_dim / 32, which are the pieces of a row of positions.
    shallow::run<T, float, kValues, true>(a.bias, a.means, a.bias_outputs, block % width, block / width);
  }
}

// Whether neither operation writes what the other touches.
bool are_independent(const Operation& first, const Operation& second) {
  return !conflict(accesses_of(first, address_of), accesses_of(second, address_of));
}

// The product with the queries in place of their positions.
Product bias_of(const KvQuery& query, const Linear& linear) {
  Product product = product_of(linear);
  product.x = pointer<const void>(query.q);
  return product;
}

// Whether `linear` makes the bias of the query's positions and can make them from the queries.
bool is_bias_of(const Linear& linear, const KvQuery& query, const Gpu& gpu) {
  // Beyond, making them again for every block of outputs takes longer than waiting for them (a thousand outputs, an
  // H200).
  constexpr uint32_t kMostRows = 2560;
  if (!query.position_mean || address_of(query.position) != address_of(linear.x)) return false;
  if (query.position.dtype != linear.x.dtype || query.head_dim != linear.inputs) return false;
  if (uint64_t(query.rows) * query.heads != linear.rows || linear.rows > kMostRows) return false;
  if (linear.y.dtype != DType::f32) return false;
  Linear without_x = linear;
  without_x.x = {};
  return shallow_can(bias_of(query, linear), 0, gpu) && are_independent(query, without_x);
}

}  // namespace

KvStep kv_step_of(std::span<const Operation> operations, const Gpu& gpu) {
  const auto* query = operations.empty() ? nullptr : std::get_if<KvQuery>(&operations[0]);
  if (!query || query->rows == 0 || query->heads == 0 || !kv_query::has_kernel(*query)) return {};
  KvStep step{query};
  size_t next = 1;
  if (const auto* linear = next < operations.size() ? std::get_if<Linear>(&operations[next]) : nullptr) {
    if (is_bias_of(*linear, *query, gpu)) step.bias = linear;
    ++next;
  }
  const auto* append = next < operations.size() ? std::get_if<KvAppend>(&operations[next]) : nullptr;
  if (append && append->max_count == 1 && append->sequences > 0 && append->head_dim == query->head_dim) {
    const auto is_free = [&](const Operation& other) { return are_independent(other, operations[next]); };
    if (std::ranges::all_of(operations.first(next), is_free)) step.append = append;
  }
  return step.bias || step.append ? step : KvStep{};
}

void launch(const KvStep& step, const Launch& l) {
  Arguments a{};
  uint32_t warps = kv_query::kWarps;
  if (step.append) {
    a.append = kv_append::arguments_of(*step.append);
    a.append_shape = kv_append::shape_of(a.append, l.gpu);
    a.append_blocks = a.append_shape.blocks() * 2 * a.append.heads;
    warps = a.append_shape.warps;
  }
  a.query = kv_query::arguments_of(*step.query, warps, 1, l.gpu);
  a.query_blocks = a.query.heads * a.query.blocks();
  const uint32_t shared = std::max(a.query.shared_bytes(), a.append_shape.shared_bytes);
  if (step.bias) {
    a.bias = bias_of(*step.query, *step.bias);
    a.means = {pointer<const float>(step.query->position_mean), step.query->heads};
    const uint32_t rows = warps * 16 * shallow::tiles_of(a.bias.inputs / shallow::kPiece, true);  // of a block
    const auto blocks = [&](uint32_t outputs) {
      return blocks_of(a.bias.outputs, outputs) * blocks_of(a.bias.rows, rows);
    };
    // As few as occupy the device.
    uint32_t variant = kShallowVariants - 1;
    while (variant > 0 && blocks(shallow::kBlockOutputs[variant]) < 2 * l.gpu.multiprocessors) --variant;
    a.bias_outputs = shallow::kBlockOutputs[variant];
    a.bias_blocks = blocks(a.bias_outputs);
  }
  with_type(step.query->q.dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = a.query.head_dim == 32 ? kv_step<1, T> : a.query.head_dim == 64 ? kv_step<2, T> : kv_step<4, T>;
    start(kernel, dim3(a.append_blocks + a.query_blocks + a.bias_blocks), dim3(warps * kWarp), shared, l, a);
  });
}

}  // namespace turboesm::cuda
