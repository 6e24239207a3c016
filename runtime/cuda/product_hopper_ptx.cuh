// Hopper's instructions: mbarriers, TMA loads, clusters, wgmma. Shared memory is named by its 32-bit addresses.
#pragma once

#include <cstdint>

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace turboesm::cuda::hopper {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// ---- mbarriers: phases of (arrivals, bytes), waited for by the parity of the phase ----------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After barrier_init, before other threads, blocks of the cluster or TMA use the barriers.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// ---- Clusters -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ uint32_t cluster_index() {
  uint32_t index;
  asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}
// The address of the same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
// The arriving warp has waited for its wgmmas, so that nothing need be released to the other block's TMA.
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(in_block(barrier, rank)) : "memory");
}
// Four floats into shared memory of a block of the cluster, without waiting; `barrier` lies in the same block and
// counts their 16 bytes. Who has waited for the barrier sees them.
__device__ __forceinline__ void store_async4(uint32_t to, float a, float b, float c, float d, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "f"(a), "f"(b), "f"(c), "f"(d), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_shared4(uint32_t to, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}
__device__ __forceinline__ float4 load_shared4(uint32_t from) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ float2 load_shared2(uint32_t from) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
  return v;
}
__device__ __forceinline__ uint2 load_shared_words2(uint32_t from) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
  return v;
}
// The relaxed arrival says only that the thread has come so far, not what it has written: the released one waits until
// all that it has can be seen on the whole GPU. What barrier_init_fence() follows needs no other.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Barriers of some warps of a block.
__device__ __forceinline__ void named_sync(uint32_t name, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(uint32_t name, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// ---- TMA: boxes of a two-dimensional tensor, (column, row) its first element ----------------------------------------

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap* map, uint32_t column, uint32_t row,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
// The same of weights that are dealt out (kDealt): `group` is the first of 32 outputs.
__device__ __forceinline__ void load_dealt(uint32_t to, const CUtensorMap* map, uint32_t column, uint32_t group,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %3, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(map), "r"(column), "r"(0), "r"(group), "r"(barrier)
      : "memory");
}
// Into every block of the cluster whose bit is set in `blocks`, at the same place, counted by each one's own barrier.
__device__ __forceinline__ void load_dealt_all(uint32_t to, const CUtensorMap* map, uint32_t column, uint32_t group,
                                               uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3, %3, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(column), "r"(0), "r"(group), "r"(barrier), "h"(blocks)
      : "memory");
}
// `bytes`, a multiple of 16, from and to addresses that are multiples of 16; counted by the barrier.
__device__ __forceinline__ void load_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
// 4 or 8 bytes, or zeros (then `from` is not read), for the thread itself once it has called wait_for_copies().
__device__ __forceinline__ void copy_4(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void copy_8(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(valid ? 8 : 0) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
__device__ __forceinline__ void prefetch_box(const CUtensorMap* map, uint32_t column, uint32_t row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(column), "r"(row)
               : "memory");
}

// ---- wgmma: d [64, n] f32 += a [64, 16] b [n, 16]^T, both in swizzled shared memory ---------------------------------

// d[4 j + 2 h + e] of lane l of the warpgroup's warp w is row 16 w + 8 h + l / 4, column 8 j + 2 (l % 4) + e.

// Descriptor of rows of 128 bytes, 128-byte swizzle, 8 rows 1024 bytes apart from the next 8. A step of 16 elements
// along K adds 32 bytes to the address.
__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = 1, kLeading = 1, kStride = 1024 >> 4;
  return uint64_t((address & 0x3ffff) >> 4) | kLeading << 16 | kStride << 32 | kSwizzle128 << 62;
}
inline constexpr uint64_t kStepDescriptor = 32 >> 4;

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <class T, uint32_t kColumns>
struct Wgmma;

#define TURBOESM_R4 "%0, %1, %2, %3"
#define TURBOESM_R8 TURBOESM_R4 ", %4, %5, %6, %7"
#define TURBOESM_R12 TURBOESM_R8 ", %8, %9, %10, %11"
#define TURBOESM_R16 TURBOESM_R12 ", %12, %13, %14, %15"
#define TURBOESM_R20 TURBOESM_R16 ", %16, %17, %18, %19"
#define TURBOESM_R24 TURBOESM_R20 ", %20, %21, %22, %23"
#define TURBOESM_R32 TURBOESM_R24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define TURBOESM_R40 TURBOESM_R32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define TURBOESM_R44 TURBOESM_R40 ", %40, %41, %42, %43"
#define TURBOESM_R48 TURBOESM_R44 ", %44, %45, %46, %47"
#define TURBOESM_R64 \
  TURBOESM_R48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TURBOESM_R76 TURBOESM_R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75"
#define TURBOESM_R80 TURBOESM_R76 ", %76, %77, %78, %79"
#define TURBOESM_R96 \
  TURBOESM_R80       \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define TURBOESM_R128                                                                            \
  TURBOESM_R96                                                                                   \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define TURBOESM_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TURBOESM_D8(i) TURBOESM_D4(i), TURBOESM_D4(i + 4)
#define TURBOESM_D16(i) TURBOESM_D8(i), TURBOESM_D8(i + 8)
#define TURBOESM_D32(i) TURBOESM_D16(i), TURBOESM_D16(i + 16)
#define TURBOESM_D64(i) TURBOESM_D32(i), TURBOESM_D32(i + 32)

// `a`, `b` and `more` number the operands behind the registers; d is overwritten where accumulate is 0.
#define TURBOESM_WGMMA_OF(type, name, columns, registers, a, b, more, ...)                                        \
  template <>                                                                                                     \
  struct Wgmma<type, columns> {                                                                                   \
    static __device__ __forceinline__ void run(float (&d)[columns / 2], uint64_t at_a, uint64_t at_b,             \
                                               uint32_t accumulate) {                                             \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #more                                                     \
                   ", 0;\n"                                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name " {" registers "}, %" #a \
                   ", %" #b ", p, 1, 1, 0, 0;\n}\n"                                                               \
                   : __VA_ARGS__                                                                                  \
                   : "l"(at_a), "l"(at_b), "r"(accumulate));                                                      \
    }                                                                                                             \
  };
#define TURBOESM_WGMMA(...)                     \
  TURBOESM_WGMMA_OF(__half, "f16", __VA_ARGS__) \
  TURBOESM_WGMMA_OF(__nv_bfloat16, "bf16", __VA_ARGS__)

TURBOESM_WGMMA(8, TURBOESM_R4, 4, 5, 6, TURBOESM_D4(0))
TURBOESM_WGMMA(16, TURBOESM_R8, 8, 9, 10, TURBOESM_D8(0))
TURBOESM_WGMMA(24, TURBOESM_R12, 12, 13, 14, TURBOESM_D8(0), TURBOESM_D4(8))
TURBOESM_WGMMA(32, TURBOESM_R16, 16, 17, 18, TURBOESM_D16(0))
TURBOESM_WGMMA(40, TURBOESM_R20, 20, 21, 22, TURBOESM_D16(0), TURBOESM_D4(16))
TURBOESM_WGMMA(48, TURBOESM_R24, 24, 25, 26, TURBOESM_D16(0), TURBOESM_D8(16))
TURBOESM_WGMMA(64, TURBOESM_R32, 32, 33, 34, TURBOESM_D32(0))
TURBOESM_WGMMA(80, TURBOESM_R40, 40, 41, 42, TURBOESM_D32(0), TURBOESM_D8(32))
TURBOESM_WGMMA(88, TURBOESM_R44, 44, 45, 46, TURBOESM_D32(0), TURBOESM_D8(32), TURBOESM_D4(40))
TURBOESM_WGMMA(96, TURBOESM_R48, 48, 49, 50, TURBOESM_D32(0), TURBOESM_D16(32))
TURBOESM_WGMMA(128, TURBOESM_R64, 64, 65, 66, TURBOESM_D64(0))
TURBOESM_WGMMA(152, TURBOESM_R76, 76, 77, 78, TURBOESM_D64(0), TURBOESM_D8(64), TURBOESM_D4(72))
TURBOESM_WGMMA(160, TURBOESM_R80, 80, 81, 82, TURBOESM_D64(0), TURBOESM_D16(64))
TURBOESM_WGMMA(192, TURBOESM_R96, 96, 97, 98, TURBOESM_D64(0), TURBOESM_D32(64))
TURBOESM_WGMMA(256, TURBOESM_R128, 128, 129, 130, TURBOESM_D64(0), TURBOESM_D64(64))

}  // namespace turboesm::cuda::hopper
