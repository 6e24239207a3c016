#include "runtime/cuda/products.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "runtime/cuda/product_hopper.h"
#include "runtime/error.h"
#include "runtime/random.h"

namespace turboesm::cuda {
namespace {

void require(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const ErrorKind kind = status == CUBLAS_STATUS_ALLOC_FAILED ? ErrorKind::out_of_memory : ErrorKind::device;
  throw_error(kind, "[cuda] {} failed: {}", call, cublasLtGetStatusString(status));
}

// cuBLASLt's descriptions as values.
template <class Handle, cublasStatus_t (*destroy)(Handle)>
struct DestroyDescription {
  void operator()(Handle handle) const { destroy(handle); }
};
using Operation_ =
    std::unique_ptr<cublasLtMatmulDescOpaque_t, DestroyDescription<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t,
                               DestroyDescription<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t,
                                   DestroyDescription<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>>;

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::f16 ? CUDA_R_16F : dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

Layout layout(cudaDataType_t type, uint64_t rows, uint64_t columns) {
  cublasLtMatrixLayout_t made = nullptr;
  require(cublasLtMatrixLayoutCreate(&made, type, rows, columns, int64_t(rows)), "cublasLtMatrixLayoutCreate");
  return Layout(made);
}

template <class Value>
void set(const Operation_& operation, cublasLtMatmulDescAttributes_t which, const Value& value) {
  require(cublasLtMatmulDescSetAttribute(operation.get(), which, &value, sizeof value),
          "cublasLtMatmulDescSetAttribute");
}

// Between kCounters and what sums of products without an epilogue of cuBLASLt's take.
constexpr uint64_t kWorkspaceAt = kCounters * 4;
constexpr uint64_t kWorkspaceBytes = uint64_t(32) << 20;
constexpr uint64_t kSumsAt = kWorkspaceAt + kWorkspaceBytes;
constexpr uint64_t kSumsBytes = kScratchBytes - kSumsAt;  // stays in the L2 cache of large GPUs

// Bias and residual are cuBLASLt's where y is f32; GELU is not, for its GELU is the tanh approximation.
bool is_direct(const Product& p) { return p.heads == 0 && !p.gelu && p.y_dtype == DType::f32; }

// cuBLASLt's matrices are column-major: y^T [outputs, rows] = weight [inputs, outputs]^T x^T [inputs, rows].
struct Matmul {
  Operation_ operation;
  Layout weight, x, y;

  Matmul(const Product& p, uint32_t rows, bool tf32) {
    cublasLtMatmulDesc_t made = nullptr;
    const cublasComputeType_t compute =
        p.dtype == DType::f32 && tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    require(cublasLtMatmulDescCreate(&made, compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
    operation.reset(made);
    set(operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (is_direct(p) && p.bias) {
      set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    }
    weight = layout(type_of(p.dtype), p.inputs, p.outputs);
    x = layout(type_of(p.dtype), p.inputs, rows);
    y = layout(CUDA_R_32F, p.outputs, rows);
  }
};

// The algorithms that cuBLASLt takes to be the fastest, best first. Operands are aligned to 16 bytes, y to an element.
std::vector<cublasLtMatmulAlgo_t> algorithms(cublasLtHandle_t cublaslt, const Matmul& matmul) {
  constexpr int kMost = 6;
  constexpr uint32_t kAligned = 16;
  cublasLtMatmulPreference_t made = nullptr;
  require(cublasLtMatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate");
  const Preference preference(made);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
    require(cublasLtMatmulPreferenceSetAttribute(made, which, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  for (const auto operand : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                             CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    prefer(operand, kAligned);
  std::array<cublasLtMatmulHeuristicResult_t, kMost> results{};
  int count = 0;
  std::vector<cublasLtMatmulAlgo_t> found;
  if (cublasLtMatmulAlgoGetHeuristic(cublaslt, matmul.operation.get(), matmul.weight.get(), matmul.x.get(),
                                     matmul.y.get(), matmul.y.get(), made, kMost, results.data(),
                                     &count) != CUBLAS_STATUS_SUCCESS)
    return found;
  for (int i = 0; i < count; ++i)
    if (results[i].state == CUBLAS_STATUS_SUCCESS) found.push_back(results[i].algo);
  return found;
}

constexpr size_t kFinalists = 5;  // that are timed more closely

// A number that differs from product to product and is the same in every run.
uint32_t scattered(const Product& p) {
  uint32_t hash = pcg_hash(p.rows);
  for (const uint32_t value :
       {p.inputs, p.outputs, uint32_t(p.dtype), uint32_t(p.y_dtype), p.heads,
        uint32_t(p.gelu) + 2 * uint32_t(p.bias != nullptr) + 4 * uint32_t(p.residual != nullptr)})
    hash = pcg_hash(hash ^ value);
  return hash;
}

uint32_t rows_at_once(const Product& p) {
  if (is_direct(p)) return p.rows;
  const uint64_t rows = std::max<uint64_t>(1, kSumsBytes / (uint64_t(p.outputs) * 4));
  return uint32_t(std::min<uint64_t>(rows > 128 ? rows / 128 * 128 : rows, p.rows));
}

}  // namespace

Product product_of(const Linear& a) {
  return {.x = pointer<void>(a.x),
          .weight = pointer<void>(a.weight),
          .bias = pointer<float>(a.bias),
          .residual = pointer<float>(a.residual),
          .y = pointer<void>(a.y),
          .dtype = a.x.dtype,
          .y_dtype = a.y.dtype,
          .rows = a.rows,
          .inputs = a.inputs,
          .outputs = a.outputs,
          .gelu = a.gelu};
}

Product product_of(const QkvRope& a) {
  return {.x = pointer<void>(a.x),
          .weight = pointer<void>(a.weight),
          .bias = pointer<float>(a.bias),
          .y = pointer<void>(a.qkv),
          .dtype = a.x.dtype,
          .y_dtype = a.qkv.dtype,
          .rows = a.tokens,
          .inputs = a.inputs,
          .outputs = uint32_t(a.outputs()),
          .positions = pointer<int32_t>(a.positions),
          .table = pointer<float>(a.table),
          .heads = a.heads,
          .head_dim = a.head_dim,
          .q_scale = a.q_scale};
}

void launch(const Linear& a, const Launch& l) { l.products->launch(product_of(a), l); }
void launch(const QkvRope& a, const Launch& l) { l.products->launch(product_of(a), l); }

Products::Products(const Gpu& gpu, cudaMemPool_t pool) : gpu_(gpu), pool_(pool) {
  require(cublasLtCreate(&cublaslt_), "cublasLtCreate");
}

Products::~Products() { cublasLtDestroy(cublaslt_); }

Products::Kind Products::kind_of(const Product& p) {
  // Steps of an eighth of a power of two.
  const uint32_t step = std::max(8u, std::bit_floor(p.rows) / 8);
  const uint32_t rows = (p.rows + step - 1) / step * step;
  return {p.dtype, p.y_dtype, rows, p.inputs, p.outputs, p.gelu, p.bias != nullptr, p.residual != nullptr, p.heads};
}

std::vector<Products::Choice> Products::candidates(const Product& p) const {
  std::vector<Choice> found;
  for (uint32_t variant = 0; variant < hopper_variants(); ++variant)
    if (hopper_can(p, variant, gpu_)) found.push_back({.engine = Engine::hopper, .variant = variant});
  for (uint32_t variant = 0; variant < kNarrowVariants; ++variant)
    if (narrow_can(p, variant, gpu_)) found.push_back({.engine = Engine::narrow, .variant = variant});
  if (p.dtype == DType::f32 || gpu_.matrix_cores) {
    for (const cublasLtMatmulAlgo_t& algorithm : algorithms(cublaslt_, Matmul(p, rows_at_once(p), gpu_.tf32)))
      found.push_back({.engine = Engine::cublaslt, .algorithm = algorithm});
  }
  if (found.empty()) found.push_back({.engine = Engine::plain});
  return found;
}

void Products::run(const Product& p, const Choice& choice, const Launch& place) const {
  if (choice.engine == Engine::plain) return launch_plain(p, place);
  if (choice.engine == Engine::narrow) return launch_narrow(p, choice.variant, place);
  if (choice.engine == Engine::hopper) return launch_hopper(p, choice.variant, place);
  const uint32_t most = rows_at_once(p);
  const float one = 1, residual = is_direct(p) && p.residual ? 1 : 0;
  float* sums = reinterpret_cast<float*>(place.scratch + kSumsAt);
  for (uint32_t first = 0; first < p.rows; first += most) {
    const uint32_t rows = std::min(most, p.rows - first);
    const Matmul matmul(p, rows, gpu_.tf32);
    const void* x = static_cast<const std::byte*>(p.x) + uint64_t(first) * p.inputs * size_of(p.dtype);
    void* y = is_direct(p) ? p.y : sums;
    const void* added = residual != 0 ? p.residual : y;
    const auto multiply = [&](const cublasLtMatmulAlgo_t& algorithm) {
      return cublasLtMatmul(cublaslt_, matmul.operation.get(), &one, p.weight, matmul.weight.get(), x, matmul.x.get(),
                            &residual, added, matmul.y.get(), y, matmul.y.get(), &algorithm,
                            place.scratch + kWorkspaceAt, kWorkspaceBytes, place.stream);
    };
    cublasStatus_t status = multiply(choice.algorithm);
    // What was chosen for some number of rows may not do for another of its kind, or for the last rows of many.
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE)
      for (const cublasLtMatmulAlgo_t& other : algorithms(cublaslt_, matmul))
        if ((status = multiply(other)) == CUBLAS_STATUS_SUCCESS) break;
    require(status, "cublasLtMatmul");
    place.follows_kernel = false;  // what cuBLASLt launches is its own affair
    if (!is_direct(p)) launch_epilogue(p, sums, first, rows, place);
  }
}

// By a graph of some launches, for a launch by itself takes longer than a small product; the best of some rounds.
float Products::time(const Product& p, const Choice& choice, int launches, int rounds, const Launch& place) const {
  try {
    Capture capture(place.stream);
    place.follows_kernel = false;
    for (int i = 0; i < launches; ++i) run(p, choice, place);
    const GraphExec executable = capture.end();
    float least = INFINITY;
    for (int round = 0; round <= rounds; ++round) {  // the first may still load the kernel's code
      const float microseconds = stopwatch_.microseconds(
          place.stream, [&] { cuda::require(cudaGraphLaunch(executable.get(), place.stream), "cudaGraphLaunch"); });
      if (round > 0) least = std::min(least, microseconds / float(launches));
    }
    return least;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::out_of_memory) throw;
    return INFINITY;  // an algorithm may refuse what the heuristic promised
  }
}

void Products::prepare(const Product& p, const Launch& place) {
  const Kind kind = kind_of(p);
  if (p.rows == 0 || p.outputs == 0 || chosen_.contains(kind)) return;
  std::vector<Choice> choices = candidates(p);
  if (gpu_.arbitrary_products) {
    chosen_.insert_or_assign(kind, choices[scattered(p) % choices.size()]);
    return;
  }
  if (choices.size() > 1) {
    // Activations have memory of their own: the operands' holds nothing yet, and may not be written before the
    // recording runs. Zeros would be multiplied faster than numbers are.
    Product trial = p;
    const auto aligned = [](uint64_t bytes) { return (bytes + 255) / 256 * 256; };
    const uint64_t x_count = (uint64_t(p.rows) * p.inputs + 1) / 2 * 2;
    const uint64_t x_bytes = aligned(x_count * size_of(p.dtype));
    const uint64_t y_bytes = aligned(uint64_t(p.rows) * p.outputs * (p.residual ? 4 : size_of(p.y_dtype)));
    const uint64_t bytes = x_bytes + y_bytes + (p.positions ? uint64_t(p.rows) * 4 : 0);
    void* memory = nullptr;
    const cudaError_t result = cudaMallocFromPoolAsync(&memory, bytes, pool_, place.stream);
    if (result == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      chosen_.insert_or_assign(kind, choices.front());  // no room to try them
      return;
    }
    cuda::require(result, "cudaMallocFromPoolAsync");
    cuda::require(cudaMemsetAsync(memory, 0, bytes, place.stream), "cudaMemsetAsync");
    std::byte* at = static_cast<std::byte*>(memory);
    fill_random(at, x_count, p.dtype, place);
    trial.x = at;
    trial.y = at + x_bytes;
    if (p.residual) trial.residual = static_cast<const float*>(trial.y);
    if (p.positions) trial.positions = reinterpret_cast<const int32_t*>(at + x_bytes + y_bytes);
    for (Choice& choice : choices) choice.microseconds = time(trial, choice, 3, 1, place);
    std::ranges::stable_sort(choices, {}, &Choice::microseconds);
    std::erase_if(choices, [](const Choice& choice) { return std::isinf(choice.microseconds); });
    choices.resize(std::min(choices.size(), kFinalists));
    for (Choice& choice : choices) choice.microseconds = time(trial, choice, 10, 3, place);
    cuda::require(cudaFreeAsync(memory, place.stream), "cudaFreeAsync");
    if (choices.empty()) choices.push_back({.engine = Engine::plain});
  }
  chosen_[kind] = *std::ranges::min_element(choices, {}, &Choice::microseconds);
}

void Products::launch(const Product& p, const Launch& place) const {
  if (p.rows == 0 || p.outputs == 0) return;
  run(p, chosen_.at(kind_of(p)), place);
}

}  // namespace turboesm::cuda
