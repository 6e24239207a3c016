// What the attention kernels of Hopper share: barriers, bulk tensor copies and wgmma. Shared memory is addressed by its
// own 32-bit addresses throughout.
#pragma once

#include <cstdint>

#include "runtime/cuda/attention.cuh"
#include "runtime/cuda/tensor_map.h"

namespace turboesm::cuda::hopper {

inline constexpr uint32_t kRows = 64;            // queries of a warpgroup
inline constexpr uint32_t kWarpgroup = 128;      // threads
inline constexpr uint32_t kPanel = 64;           // elements of a panel's row: 128 bytes
inline constexpr uint32_t kSwizzleBytes = 1024;  // after which the pattern repeats; panels begin at multiples of it

// ---- Barriers and copies --------------------------------------------------------------------------------------------

__device__ __forceinline__ void initialise(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Arrives, and makes the phase wait for `bytes` of copies.
__device__ __forceinline__ void expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the barrier's phase of this parity is complete; that before the first phase has parity 1 and is.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// What was at the address before.
__device__ __forceinline__ uint32_t add_one(uint32_t address) {
  uint32_t before;
  asm volatile("atom.acq_rel.cta.shared::cta.add.u32 %0, [%1], 1;" : "=r"(before) : "r"(address) : "memory");
  return before;
}
__device__ __forceinline__ void store_word(uint32_t address, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// One panel: 64 elements from `dim` on of each of the map's rows from `token` on.
__device__ __forceinline__ void copy_panel(uint32_t to, const CUtensorMap& map, uint32_t dim, uint32_t head,
                                           uint32_t token, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(&map), "r"(dim), "r"(head), "r"(token), "r"(barrier)
      : "memory");
}

// ---- Products -------------------------------------------------------------------------------------------------------

// What wgmma knows of an operand in shared memory: swizzled panels whose groups of 8 rows are 1024 bytes apart, and the
// distance between panels (used where the operand runs across the sum and is wider than one).
__device__ __forceinline__ uint64_t matrix(uint32_t address, uint32_t panel_bytes) {
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t(address / 16) | uint64_t(panel_bytes / 16) << 16 | uint64_t(1024 / 16) << 32 | kSwizzle128 << 62;
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `groups` groups of products run.
template <int groups>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}
// The compiler does not know that registers belong to running products: their uses must not move across this.
template <uint32_t size>
__device__ __forceinline__ void pin(float (&values)[size]) {
#pragma unroll
  for (uint32_t i = 0; i < size; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <uint32_t size>
__device__ __forceinline__ void pin(uint32_t (&values)[size][4]) {
#pragma unroll
  for (uint32_t i = 0; i < 4 * size; ++i) asm volatile("" : "+r"(values[i / 4][i % 4])::"memory");
}

#define TURBOESM_8(d, i)                                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define TURBOESM_32(d, i) TURBOESM_8(d, i), TURBOESM_8(d, i + 8), TURBOESM_8(d, i + 16), TURBOESM_8(d, i + 24)
#define TURBOESM_NAMES_32                                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TURBOESM_NAMES_64                                                                                            \
  TURBOESM_NAMES_32                                                                                                  \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d = a b, or d += a b where `add` is not 0; a [64, 16] and b [columns, 16] in shared memory.
#define TURBOESM_SHARED_64(TYPE)                                                                                \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE \
               "." TYPE " {" TURBOESM_NAMES_32 "}, %32, %33, add, 1, 1, 0, 0;\n}\n"                             \
               : TURBOESM_32(d, 0)                                                                              \
               : "l"(a), "l"(b), "r"(add))
#define TURBOESM_SHARED_128(TYPE)                                                                                \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE \
               "." TYPE " {" TURBOESM_NAMES_64 "}, %64, %65, add, 1, 1, 0, 0;\n}\n"                              \
               : TURBOESM_32(d, 0), TURBOESM_32(d, 32)                                                           \
               : "l"(a), "l"(b), "r"(add))
template <class T>
__device__ __forceinline__ void multiply(float (&d)[32], uint64_t a, uint64_t b, uint32_t add) {
  if constexpr (std::is_same_v<T, __half>)
    TURBOESM_SHARED_64("f16");
  else
    TURBOESM_SHARED_64("bf16");
}
template <class T>
__device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, uint32_t add) {
  if constexpr (std::is_same_v<T, __half>)
    TURBOESM_SHARED_128("f16");
  else
    TURBOESM_SHARED_128("bf16");
}

// d = a b, or d += a b where `add` is not 0; a [64, 16] in registers, b in shared memory: [16, columns] where it runs
// `across` the sum, else [columns, 16]^T.
#define TURBOESM_REGISTERS_64(TYPE)                                                                             \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE \
               "." TYPE " {" TURBOESM_NAMES_32 "}, {%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}\n"             \
               : TURBOESM_32(d, 0)                                                                              \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(int(across)))
#define TURBOESM_REGISTERS_128(TYPE)                                                                             \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE \
               "." TYPE " {" TURBOESM_NAMES_64 "}, {%64, %65, %66, %67}, %68, add, 1, 1, %70;\n}\n"              \
               : TURBOESM_32(d, 0), TURBOESM_32(d, 32)                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(int(across)))
template <class T, bool across>
__device__ __forceinline__ void multiply_held(float (&d)[32], const uint32_t (&a)[4], uint64_t b, uint32_t add) {
  if constexpr (std::is_same_v<T, __half>)
    TURBOESM_REGISTERS_64("f16");
  else
    TURBOESM_REGISTERS_64("bf16");
}
template <class T, bool across>
__device__ __forceinline__ void multiply_held(float (&d)[64], const uint32_t (&a)[4], uint64_t b, uint32_t add) {
  if constexpr (std::is_same_v<T, __half>)
    TURBOESM_REGISTERS_128("f16");
  else
    TURBOESM_REGISTERS_128("bf16");
}
#undef TURBOESM_8
#undef TURBOESM_32
#undef TURBOESM_NAMES_32
#undef TURBOESM_NAMES_64
#undef TURBOESM_SHARED_64
#undef TURBOESM_SHARED_128
#undef TURBOESM_REGISTERS_64
#undef TURBOESM_REGISTERS_128

// ---- On the host ----------------------------------------------------------------------------------------------------

// Describes [tokens, heads, head_dim] to the copy engine, which takes panels of `rows` tokens. False when refused.
inline bool describe(CUtensorMap& map, const Tensor& tensor, const Attention& a, uint32_t rows) {
  const cuuint64_t sizes[3] = {a.head_dim, a.heads, a.tokens};
  const cuuint64_t strides[2] = {cuuint64_t(a.head_dim) * 2, cuuint64_t(a.head_dim) * a.heads * 2};  // bytes
  const cuuint32_t box[3] = {kPanel, 1, rows}, steps[3] = {1, 1, 1};
  const CUtensorMapDataType type =
      tensor.dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return tensor_map_encoder()(&map, type, 3, pointer<void>(tensor), sizes, strides, box, steps,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace turboesm::cuda::hopper
