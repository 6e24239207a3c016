// Bidirectional attention inside each packed sequence, for each head: out = softmax(q k^T) v, with Hopper's wgmma and
// bulk tensor copies, in the manner of FlashAttention-3 (Shah et al. 2024).
//
//   q, k, v [tokens, heads, head_dim] f16 or bf16, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, head_dim] any
//   head_dim is 64 or 128; q is already scaled
//
// A block takes 64 x kConsumers queries of one head and sequence (grid: query tiles, heads, sequences), 64 for each of
// its warpgroups, and walks over tiles of kKeys keys and values, of which kStages are in shared memory or on their way
// there. The warp that is the last to leave a tile starts the copies that refill its stage; so no warp but copies, and
// none waits for another to leave. A warpgroup starts the scores of the next tile, S = Q K^T, and the products of this
// one, O += P V, and computes the weights of the next while the latter run. The weights stay in registers: the
// accumulator of S, rounded to 16 bits, is the left operand of P V. The sum of a row's weights is that of the values
// before they were rounded: the roundings are unbiased.
//
// Accumulator of wgmma.m64nNk16, of warp w of its warpgroup with g = lane / 4 and t = lane % 4 (PTX ISA, "Register
// Fragments for wgmma.mma_async.m64nNk16"): d[4 n + i] is row 16 w + g + 8 (i / 2), column 8 n + 2 t + i % 2. The left
// operand's registers a0 .. a3 hold columns 16 k + 2 t + {0, 1}, of rows g and g + 8, and then columns 8 further: what
// d[8 k ..] are of the scores.
//
// Tiles in shared memory are panels [rows][64] of 128-byte rows, in which bulk copies swizzle the groups of 16 bytes.
// Queries and keys are operands that run along the summed dimension ("K-major"), values such that run across it
// ("MN-major"); both are groups of 8 rows, 1024 bytes apart.
//
// A tile may reach beyond the end of its sequence, into rows of the next or, where there is none, zeros. Scores there
// are masked; values there are set to 0, because 0 x NaN is not 0.
#include <cstdint>

#include "runtime/cuda/attention_hopper.cuh"

namespace turboesm::cuda {
namespace {

using namespace hopper;

template <uint32_t dim, uint32_t consumers, uint32_t keys, uint32_t stages, uint32_t blocks, bool held>
struct Tiling {
  static constexpr uint32_t kDim = dim, kConsumers = consumers, kKeys = keys, kStages = stages;
  static constexpr uint32_t kBlocks = blocks;  // of a multiprocessor
  static constexpr bool kHeld = held;          // queries are kept in registers
  static constexpr uint32_t kThreads = kConsumers * kWarpgroup;
  static constexpr uint32_t kQueries = kConsumers * kRows;  // of a block
  static constexpr uint32_t kPanels = kDim / kPanel;
  static constexpr uint32_t kQueryBytes = kRows * kPanels * 128;  // of a warpgroup's queries
  static constexpr uint32_t kTileBytes = kKeys * kPanels * 128;   // of a tile of keys or values
  static constexpr uint32_t kBarriers = 1 + 2 * kStages;
  static constexpr uint32_t kSharedBytes =
      kSwizzleBytes + kConsumers * kQueryBytes + 2 * kStages * kTileBytes + 8 * kBarriers + 4 * kStages;
  static_assert(kDim % kPanel == 0 && (kKeys == 64 || (kKeys == 128 && !kHeld)) && kStages >= 3);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

extern __shared__ uint8_t shared_memory[];

// Shared memory is addressed by its own 32-bit addresses throughout.
template <class Tile>
struct Shared {
  uint32_t base;
  __device__ Shared() {
    const uint32_t start = uint32_t(__cvta_generic_to_shared(shared_memory));
    base = (start + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes;
  }
  __device__ uint32_t queries(uint32_t consumer) const { return base + consumer * Tile::kQueryBytes; }
  __device__ uint32_t keys(uint32_t stage) const { return queries(Tile::kConsumers) + stage * Tile::kTileBytes; }
  __device__ uint32_t values(uint32_t stage) const { return keys(Tile::kStages + stage); }
  __device__ uint32_t barrier(uint32_t index) const { return values(Tile::kStages) + 8 * index; }
  __device__ uint32_t queries_full() const { return barrier(0); }
  __device__ uint32_t keys_full(uint32_t stage) const { return barrier(1 + stage); }
  __device__ uint32_t values_full(uint32_t stage) const { return barrier(1 + Tile::kStages + stage); }
  __device__ uint32_t left(uint32_t stage) const { return barrier(Tile::kBarriers) + 4 * stage; }  // warps, a count
};

// ---- Tiles ----------------------------------------------------------------------------------------------------------

// What the copies of a sequence's head need to know.
struct Source {
  const CUtensorMap &k, &v;
  uint32_t begin, length, consumers;  // first token, tokens; warpgroups that have a query
};

// Starts the copies of a tile's keys and values. One thread calls it.
template <class Tile>
__device__ __forceinline__ void copy_tile(const Shared<Tile>& shared, const Source& source, uint32_t tile,
                                          uint32_t stage) {
  const uint32_t token = source.begin + tile * Tile::kKeys;
  expect(shared.keys_full(stage), Tile::kTileBytes);
#pragma unroll
  for (uint32_t panel = 0; panel < Tile::kPanels; ++panel)
    copy_panel(shared.keys(stage) + panel * Tile::kKeys * 128, source.k, panel * kPanel, blockIdx.y, token,
               shared.keys_full(stage));
  expect(shared.values_full(stage), Tile::kTileBytes);
#pragma unroll
  for (uint32_t panel = 0; panel < Tile::kPanels; ++panel)
    copy_panel(shared.values(stage) + panel * Tile::kKeys * 128, source.v, panel * kPanel, blockIdx.y, token,
               shared.values_full(stage));
}

// This warp has used the tile in `stage`; the last warp to say so starts the copies of what follows there.
template <class Tile>
__device__ __forceinline__ void leave_tile(const Shared<Tile>& shared, const Source& source, uint32_t tile,
                                           uint32_t stage) {
  const uint32_t next = tile + Tile::kStages;
  if (next * Tile::kKeys >= source.length || threadIdx.x % kWarp != 0) return;
  if (add_one(shared.left(stage)) + 1 < source.consumers * (kWarpgroup / kWarp)) return;
  store_word(shared.left(stage), 0);
  copy_tile(shared, source, next, stage);
}

// Sets the values' rows from `keys` on to 0 in a stage that has been filled, by all warpgroups that have a query.
template <class Tile>
__device__ __forceinline__ void clear_values(const Shared<Tile>& shared, const Source& source, uint32_t stage,
                                             uint32_t keys) {
  const uint32_t chunks = (Tile::kKeys - keys) * 8;  // of 16 bytes, of a panel
  const uint32_t threads = source.consumers * kWarpgroup;
  for (uint32_t i = threadIdx.x; i < Tile::kPanels * chunks; i += threads) {
    const uint32_t to = shared.values(stage) + (i / chunks * Tile::kKeys + keys) * 128 + i % chunks * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("barrier.sync 1, %0;" ::"r"(threads) : "memory");
}

// ---- The warpgroups that compute ------------------------------------------------------------------------------------

// What a thread knows of its two rows, g and g + 8 of its warp. Weights are 2^(score x log2 e - reference), with a
// reference that is raised only where a score exceeds it by kSlack, so that sums are seldom corrected.
struct Rows {
  float reference[2] = {minus_infinity(), minus_infinity()};
  float weights[2] = {};  // their sum, over this lane's keys
};
constexpr float kSlack = 6;  // f16 has room for weights of 2^6

// A warpgroup's queries: in shared memory and, if the tiling says so, as left operands in registers, which spares
// products of 64 keys the half of what they read.
template <class Tile>
struct Queries {
  uint32_t shared;
  uint32_t held[Tile::kHeld ? Tile::kDim / 16 : 1][4];

  __device__ __forceinline__ explicit Queries(uint32_t address) : shared(address) {
    if constexpr (Tile::kHeld) {
      const uint32_t lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp % 4 * 16 + lane / 4;
#pragma unroll
      for (uint32_t i = 0; i < Tile::kDim / 4; ++i) {
        const uint32_t step = i / 4, panel = step / 4, group = (step % 4 * 2 + i % 4 / 2) ^ (row % 8);  // of 16 bytes
        const uint32_t from = shared + (panel * kRows + row + i % 2 * 8) * 128 + group * 16 + lane % 4 * 4;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(held[step][i % 4]) : "r"(from) : "memory");
      }
      pin(held);
    }
  }
};

// Starts scores = q k^T.
template <class T, class Tile>
__device__ __forceinline__ void start_scores(float (&scores)[Tile::kKeys / 2], const Queries<Tile>& q, uint32_t k) {
#pragma unroll
  for (uint32_t step = 0; step < Tile::kDim / 16; ++step) {
    const uint32_t panel = step / 4, within = step % 4 * 32;  // bytes
    const uint64_t keys = matrix(k + panel * Tile::kKeys * 128 + within, 16);
    if constexpr (Tile::kHeld)
      multiply_held<T, false>(scores, q.held[step], keys, step);
    else
      multiply<T>(scores, matrix(q.shared + panel * kRows * 128 + within, 16), keys, step);
  }
  end_products();
}

// Starts sum += p v.
template <class T, class Tile>
__device__ __forceinline__ void start_values(float (&sum)[Tile::kDim / 2], const uint32_t (&p)[Tile::kKeys / 16][4],
                                             uint32_t v) {
#pragma unroll
  for (uint32_t step = 0; step < Tile::kKeys / 16; ++step)
    multiply_held<T, true>(sum, p[step], matrix(v + step * 16 * 128, Tile::kKeys * 128), 1);
  end_products();
}

// Scores of keys from `keys` on become -infinity.
template <uint32_t size>
__device__ __forceinline__ void mask(float (&scores)[size], uint32_t keys) {
#pragma unroll
  for (uint32_t i = 0; i < size; ++i)
    if (8 * (i / 4) + 2 * (threadIdx.x % 4) + i % 2 >= keys) scores[i] = minus_infinity();
}

// Turns scores into weights; what was summed before is to be multiplied by `correction`.
template <uint32_t size>
__device__ __forceinline__ void weigh(Rows& rows, float (&scores)[size], float (&correction)[2]) {
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    float largest = fmaxf(scores[2 * half], scores[2 * half + 1]);
#pragma unroll
    for (uint32_t i = 4 + 2 * half; i < size; i += 4) largest = fmaxf(largest, fmaxf(scores[i], scores[i + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float before = rows.reference[half];
    if (largest * kLog2E > before + kSlack) rows.reference[half] = largest * kLog2E;
    correction[half] = power_of_two(before - rows.reference[half]);
  }
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    float weights[2] = {rows.weights[half] * correction[half], 0};
#pragma unroll
    for (uint32_t i = 2 * half; i < size; i += 4) {
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        scores[i + j] = power_of_two(fmaf(scores[i + j], kLog2E, -rows.reference[half]));
        weights[j] += scores[i + j];
      }
    }
    rows.weights[half] = weights[0] + weights[1];
  }
}

template <class T, uint32_t size>
__device__ __forceinline__ void pack(uint32_t (&p)[size / 8][4], const float (&weights)[size]) {
#pragma unroll
  for (uint32_t i = 0; i < size / 2; ++i) p[i / 4][i % 4] = pack_pair<T>(weights[2 * i], weights[2 * i + 1]);
  pin(p);
}

// Waits for the sum's products and makes it, and the weights, ready for the next.
template <class T, class Tile>
__device__ __forceinline__ void finish(float (&sum)[Tile::kDim / 2], uint32_t (&p)[Tile::kKeys / 16][4],
                                       const float (&weights)[Tile::kKeys / 2], const float (&correction)[2]) {
  wait_for_products<0>();
  pin(sum);
  if (__any_sync(kAllLanes, correction[0] != 1 || correction[1] != 1)) {
#pragma unroll
    for (uint32_t i = 0; i < Tile::kDim / 2; ++i) sum[i] *= correction[i / 2 % 2];
  }
  pin(sum);
  pack<T>(p, weights);
}

template <class T, class Tile>
__device__ __forceinline__ void attend(float (&sum)[Tile::kDim / 2], Rows& rows, const Shared<Tile>& shared,
                                       const Source& source) {
  const uint32_t tiles = (source.length + Tile::kKeys - 1) / Tile::kKeys;
  const uint32_t last_keys = source.length - (tiles - 1) * Tile::kKeys;  // of the last tile
  float scores[Tile::kKeys / 2], correction[2];
  uint32_t p[Tile::kKeys / 16][4];

  wait(shared.queries_full(), 0);
  const Queries<Tile> q(shared.queries(threadIdx.x / kWarpgroup));
  wait(shared.keys_full(0), 0);
  begin_products();
  start_scores<T, Tile>(scores, q, shared.keys(0));
  wait_for_products<0>();
  pin(scores);
  if (tiles == 1) mask(scores, last_keys);
  weigh(rows, scores, correction);

  // The products of a tile's weights and values begin in one round of the loop and end in the next: as the compiler
  // would otherwise wait for them before it computes the weights that they are to overlap with.
  uint32_t stage = 0, parity = 0;  // of the tile before `tile`
  uint32_t last_stage = 0;         // of that before
#pragma unroll 1
  for (uint32_t tile = 1; tile < tiles; ++tile) {
    finish<T, Tile>(sum, p, scores, correction);
    if (tile > 1) leave_tile(shared, source, tile - 2, last_stage);
    const uint32_t next_stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
    const uint32_t next_parity = next_stage == 0 ? parity ^ 1 : parity;
    wait(shared.keys_full(next_stage), next_parity);
    begin_products();
    start_scores<T, Tile>(scores, q, shared.keys(next_stage));
    wait(shared.values_full(stage), parity);
    begin_products();
    start_values<T, Tile>(sum, p, shared.values(stage));

    wait_for_products<1>();
    pin(scores);
    if (tile + 1 == tiles) mask(scores, last_keys);
    weigh(rows, scores, correction);
    last_stage = stage;
    stage = next_stage;
    parity = next_parity;
  }
  finish<T, Tile>(sum, p, scores, correction);
  wait(shared.values_full(stage), parity);
  if (last_keys < Tile::kKeys) clear_values(shared, source, stage, last_keys);
  begin_products();
  start_values<T, Tile>(sum, p, shared.values(stage));
  wait_for_products<0>();
  pin(sum);
}

#endif

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    hopper_attention([[maybe_unused]] const __grid_constant__ CUtensorMap q,
                     [[maybe_unused]] const __grid_constant__ CUtensorMap k,
                     [[maybe_unused]] const __grid_constant__ CUtensorMap v, [[maybe_unused]] AttentionOperands o) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  let_next_start();
  const Shared<Tile> shared;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    prefetch(q);
    prefetch(k);
    prefetch(v);
    initialise(shared.queries_full(), 1);
    for (uint32_t stage = 0; stage < Tile::kStages; ++stage) {
      initialise(shared.keys_full(stage), 1);
      initialise(shared.values_full(stage), 1);
      store_word(shared.left(stage), 0);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  wait_for_inputs();
  const uint32_t begin = uint32_t(o.cu_seqlens[blockIdx.z]);
  const uint32_t length = uint32_t(o.cu_seqlens[blockIdx.z + 1]) - begin;
  const uint32_t first = blockIdx.x * Tile::kQueries;
  if (first >= length) return;  // the whole block
  const uint32_t left = (length - first + kRows - 1) / kRows;
  const Source source = {k, v, begin, length, left < Tile::kConsumers ? left : Tile::kConsumers};
  const uint32_t warpgroup = threadIdx.x / kWarpgroup;
  if (threadIdx.x == 0) {
    expect(shared.queries_full(), source.consumers * Tile::kQueryBytes);
    for (uint32_t consumer = 0; consumer < source.consumers; ++consumer) {
      for (uint32_t panel = 0; panel < Tile::kPanels; ++panel)
        copy_panel(shared.queries(consumer) + panel * kRows * 128, q, panel * kPanel, blockIdx.y,
                   begin + first + consumer * kRows, shared.queries_full());
    }
    for (uint32_t tile = 0; tile < Tile::kStages && tile * Tile::kKeys < length; ++tile)
      copy_tile(shared, source, tile, tile);
  }
  __syncthreads();

  if (warpgroup < source.consumers) {
    float sum[Tile::kDim / 2] = {};
    Rows rows;
    attend<T, Tile>(sum, rows, shared, source);

    const size_t width = size_t(o.heads) * o.head_dim;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      float weights = rows.weights[half];
      weights += __shfl_xor_sync(kAllLanes, weights, 1);
      weights += __shfl_xor_sync(kAllLanes, weights, 2);
      const float scale = 1 / weights;
      const uint32_t row = first + warpgroup * kRows + warp % 4 * 16 + lane / 4 + 8 * half;
      if (row >= length) continue;
      const size_t index = (begin + row) * width + blockIdx.y * Tile::kDim + 2 * (lane % 4);
#pragma unroll
      for (uint32_t n = 0; n < Tile::kDim / 8; ++n)
        store_pair(o.out, o.out_dtype, index + 8 * n,
                   {sum[4 * n + 2 * half] * scale, sum[4 * n + 2 * half + 1] * scale});
    }
  }
#else
  __trap();  // without the instructions of sm_90a: never launched (Gpu::hopper)
#endif
}

// ---- On the host ----------------------------------------------------------------------------------------------------

template <class T, class Tile>
bool launch_tiling(const Attention& a, const Launch& l) {
  CUtensorMap q, k, v;
  if (!describe(q, a.q, a, kRows) || !describe(k, a.k, a, Tile::kKeys) || !describe(v, a.v, a, Tile::kKeys))
    return false;
  const auto kernel = hopper_attention<T, Tile>;
  start(kernel, dim3(blocks_of(a.max_length, Tile::kQueries), a.heads, a.sequences), Tile::kThreads, Tile::kSharedBytes,
        l, q, k, v, attention_operands(a));
  return true;
}

// head_dim, warpgroups, keys of a tile, stages, blocks of a multiprocessor, whether queries are held. Heads of 64 spend
// as much time on powers of two as on products: four warpgroups of a multiprocessor keep both busy. Three stages are
// the least that keeps one on its way, since a tile is left one round after it has been used.
using Tiling64 = Tiling<64, 2, 64, 3, 2, true>;
using Tiling128 = Tiling<128, 2, 128, 3, 1, false>;

using Tiling64Few = Tiling<64, 1, 64, 3, 3, true>;  // for few blocks, which it makes twice as many
constexpr uint32_t kFewWaves = 4;                   // blocks of Tiling64 to a multiprocessor that are few

// For long sequences, which have the time to fill a multiprocessor with one block: larger tiles have fewer rounds.
using Tiling64Long = Tiling<64, 3, 128, 3, 1, false>;
constexpr uint32_t kLong = 1536;  // tokens of the longest sequence

uint64_t blocks(const Attention& a, uint32_t warpgroups) {
  return uint64_t(blocks_of(a.max_length, warpgroups * kRows)) * a.heads * a.sequences;
}

template <class T>
bool launch_type(const Attention& a, const Launch& l) {
  if (a.head_dim == 128) return launch_tiling<T, Tiling128>(a, l);
  if (blocks(a, 2) < kFewWaves * l.gpu.multiprocessors) return launch_tiling<T, Tiling64Few>(a, l);
  return a.max_length < kLong ? launch_tiling<T, Tiling64>(a, l) : launch_tiling<T, Tiling64Long>(a, l);
}

}  // namespace

bool launch_hopper_attention(const Attention& a, const Launch& l) {
  if (!l.gpu.matrix_cores || a.q.dtype == DType::f32 || !l.gpu.hopper) return false;
  if (a.head_dim != 64 && a.head_dim != 128) return false;
  if (launch_short_hopper_attention(a, l)) return true;
  // Fewer blocks would leave multiprocessors idle; smaller ones fill them better.
  if (blocks(a, a.head_dim == 64 ? 1 : 2) < l.gpu.multiprocessors) return false;
  if (!tensor_map_encoder()) return false;
  return a.q.dtype == DType::f16 ? launch_type<__half>(a, l) : launch_type<__nv_bfloat16>(a, l);
}

}  // namespace turboesm::cuda
