// The contact head (Rao et al. 2020; runtime/operations.h), from one layer's attention maps A of a sequence. With S = A
// + A^T over the residues (n = length - 2, first and last token dropped):
//   sums[h, i] = sum_j S[i, j],  sums[h, n] = sum_i sums[h, i]
//   logits[i, j] += sum_h weight[h] (S_h[i, j] - sums[h, i] sums[h, j] / sums[h, n])
#include "runtime/cuda/kernel_tools.cuh"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kThreads = 256;

// A warp a row of a map: along it neighbours are read together; down the column each lane reads a line of its own,
// which the neighbouring rows' warps read again from the cache.
__global__ void contact_sums(const float* maps, float* sums, uint32_t length) {
  let_next_start();
  wait_for_inputs();
  const uint32_t i = blockIdx.y * (kThreads / kWarp) + threadIdx.x / kWarp + 1, head = blockIdx.x;
  if (i + 1 >= length) return;
  const float* map = maps + uint64_t(head) * length * length;
  float sum = 0;
  for (uint32_t j = 1 + threadIdx.x % kWarp; j + 1 < length; j += kWarp)
    sum += map[uint64_t(i) * length + j] + map[uint64_t(j) * length + i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) sums[uint64_t(head) * (length - 1) + i - 1] = sum;
}

__global__ void contact_total(float* sums, uint32_t length) {
  let_next_start();
  wait_for_inputs();
  float* row = sums + uint64_t(blockIdx.x) * (length - 1);
  float total = 0;
  for (uint32_t i = threadIdx.x; i + 2 < length; i += kWarp) total += row[i];
  total = warp_sum(total);
  if (threadIdx.x == 0) row[length - 2] = total;
}

__global__ void contact_accumulate(const float* maps, const float* sums, const float* weight, float* logits,
                                   uint32_t heads, uint32_t length) {
  let_next_start();
  wait_for_inputs();
  const uint32_t residues = length - 2, i = blockIdx.y, j = blockIdx.x * kThreads + threadIdx.x;
  if (j >= residues) return;
  float logit = 0;
  for (uint32_t head = 0; head < heads; ++head) {
    const float* map = maps + uint64_t(head) * length * length;
    const float* of_head = sums + uint64_t(head) * (length - 1);
    const float symmetric = map[uint64_t(i + 1) * length + j + 1] + map[uint64_t(j + 1) * length + i + 1];
    logit += weight[head] * (symmetric - of_head[i] / of_head[residues] * of_head[j]);
  }
  logits[uint64_t(i) * residues + j] += logit;
}

}  // namespace

void launch(const ContactSums& a, const Launch& l) {
  start(contact_sums, dim3(a.heads, blocks_of(a.length - 2, kThreads / kWarp)), kThreads, 0, l,
        pointer<const float>(a.maps), pointer<float>(a.sums), a.length);
  start(contact_total, a.heads, kWarp, 0, l, pointer<float>(a.sums), a.length);
}

void launch(const ContactAccumulate& a, const Launch& l) {
  start(contact_accumulate, dim3(blocks_of(a.length - 2, kThreads), a.length - 2), kThreads, 0, l,
        pointer<const float>(a.maps), pointer<const float>(a.sums), pointer<const float>(a.weight),
        pointer<float>(a.logits), a.heads, a.length);
}

}  // namespace turboesm::cuda
