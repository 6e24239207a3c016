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

constexpr size_t kFinalists = 16;  // that are tried in the recording's order
constexpr size_t kChain = 36;      // operations of a recording, some five layers, that they are tried in
// Over the kinds, as the best way for one depends on what was chosen for the others: so many of its finalists, in so
// many rounds.
constexpr struct {
  size_t finalists;
  int rounds;
} kSweeps[] = {{kFinalists, 3}, {6, 6}, {3, 12}};
// Then over combinations of the best of each kind, and more often over the best of these.
constexpr size_t kTogether = 2, kMostCombinations = 64, kBestCombinations = 6;
constexpr int kRoundsOfAll = 6, kRoundsOfBest = 20;

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

// The most rows of a kind of products. Kinds are eight rows apart, as are boxes of x (product_hopper.cu), on which it
// depends what has room; of many rows an eighth of a power of two.
uint32_t Products::kind_rows(uint32_t rows) {
  const uint32_t step = rows <= 256 ? 8 : std::bit_floor(rows) / 8;
  return (rows + step - 1) / step * step;
}

Products::Kind Products::kind_of(const Product& p) {
  return {p.dtype, p.y_dtype,         kind_rows(p.rows),     p.inputs, p.outputs,
          p.gelu,  p.bias != nullptr, p.residual != nullptr, p.heads};
}

std::vector<Products::Choice> Products::candidates(const Product& p) const {
  std::vector<Choice> found;
  Product largest = p;  // of its kind, all of which are computed in the way that is chosen for one
  largest.rows = kind_rows(p.rows);
  const auto add = [&](Engine engine, uint32_t variants, const auto& can) {
    for (uint32_t variant = 0; variant < variants; ++variant)
      if (can(p, variant, gpu_) && can(largest, variant, gpu_)) found.push_back({.engine = engine, .variant = variant});
  };
  add(Engine::hopper, hopper_variants(), hopper_can);
  add(Engine::narrow, kNarrowVariants, narrow_can);
  add(Engine::shallow, kShallowVariants, shallow_can);
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
  if (choice.engine == Engine::shallow) return launch_shallow(p, choice.variant, place);
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

// What `body` launches, as a graph, for a launch by itself takes longer than a small product. Null where it cannot be
// launched: an algorithm may refuse what the heuristic promised.
template <class Body>
GraphExec Products::capture(const Launch& place, Body&& body) const {
  try {
    Capture capture(place.stream);
    place.follows_kernel = false;
    body();
    return capture.end();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::out_of_memory) throw;
    return nullptr;
  }
}

// Of each graph the least of some rounds, in which they take turns, so that a clock that rises or falls meanwhile
// favours none. Infinite for those that cannot be launched.
std::vector<float> Products::least_microseconds(std::span<const GraphExec> graphs, int rounds,
                                                const Launch& place) const {
  std::vector<float> least(graphs.size(), INFINITY);
  for (int round = 0; round <= rounds; ++round)  // the first may still load the kernels' code
    for (size_t i = 0; i < graphs.size(); ++i) {
      if (!graphs[i]) continue;
      const float microseconds = stopwatch_.microseconds(
          place.stream, [&] { cuda::require(cudaGraphLaunch(graphs[i].get(), place.stream), "cudaGraphLaunch"); });
      if (round > 0) least[i] = std::min(least[i], microseconds);
    }
  return least;
}

namespace {

// Memory for operations on trial: their operands' own holds nothing yet, and may not be written before the recording
// runs. Zeros would be multiplied faster than numbers are, so x is random.
class Trial {
 public:
  // Room for the operations; none where memory does not suffice.
  Trial(std::span<const Products::Step> steps, cudaMemPool_t pool, const Launch& place) : place_(place) {
    uint64_t y_bytes = 0, result_bytes = 0, position_bytes = 0;
    for (const auto& [operation, product] : steps) {
      if (product) {
        const Product& p = *product;
        dtype_ = p.dtype;
        x_count_ = std::max(x_count_, (uint64_t(p.rows) * p.inputs + 1) / 2 * 2);
        y_bytes = std::max(y_bytes, uint64_t(p.rows) * p.outputs * (p.residual ? 4 : size_of(p.y_dtype)));
        if (p.positions) position_bytes = std::max(position_bytes, uint64_t(p.rows) * 4);
      } else if (const auto* norm = std::get_if<LayerNorm>(operation)) {
        y_bytes = std::max(y_bytes, uint64_t(norm->rows) * norm->width * 4);
        result_bytes = std::max(result_bytes, uint64_t(norm->rows) * norm->width * size_of(norm->y.dtype));
      } else if (const auto* attention = std::get_if<Attention>(operation)) {
        const uint64_t count = uint64_t(attention->tokens) * attention->heads * attention->head_dim;
        y_bytes = std::max(y_bytes, 3 * count * size_of(attention->q.dtype));
        result_bytes = std::max(result_bytes, count * size_of(attention->out.dtype));
        attention_ = attention;
      }
    }
    const uint64_t x_bytes = aligned(x_count_ * size_of(dtype_));
    const uint64_t sequence_bytes = attention_ ? (uint64_t(attention_->sequences) + 1) * 4 : 0;
    y_at_ = x_bytes;
    result_at_ = y_at_ + aligned(y_bytes);
    positions_at_ = result_at_ + aligned(result_bytes);
    cu_seqlens_at_ = positions_at_ + aligned(position_bytes);
    const uint64_t bytes = cu_seqlens_at_ + aligned(sequence_bytes);
    void* memory = nullptr;
    const cudaError_t result = cudaMallocFromPoolAsync(&memory, bytes, pool, place.stream);
    if (result == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return;
    }
    cuda::require(result, "cudaMallocFromPoolAsync");
    memory_ = static_cast<std::byte*>(memory);
    buffer_.emplace(bytes, reinterpret_cast<uint64_t>(memory));
    cuda::require(cudaMemsetAsync(memory_, 0, bytes, place.stream), "cudaMemsetAsync");
    fill_random(memory_, x_count_, dtype_, place_);
    if (!attention_) return;
    std::vector<int32_t> cu_seqlens(sequence_bytes / 4);  // long ones first, as long as there are tokens
    for (uint32_t i = 0; i < attention_->sequences; ++i)
      cu_seqlens[i + 1] = std::min(cu_seqlens[i] + int32_t(attention_->max_length), int32_t(attention_->tokens));
    cuda::require(cudaMemcpyAsync(memory_ + cu_seqlens_at_, cu_seqlens.data(), sequence_bytes, cudaMemcpyHostToDevice,
                                  place.stream),
                  "cudaMemcpyAsync");
    cuda::require(cudaStreamSynchronize(place.stream), "cudaStreamSynchronize");
  }
  ~Trial() {
    if (memory_) cudaFreeAsync(memory_, place_.stream);
  }
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

  explicit operator bool() const { return memory_ != nullptr; }

  Product of(Product p) const {
    p.x = memory_;
    p.y = memory_ + y_at_;
    if (p.residual) p.residual = static_cast<const float*>(p.y);
    if (p.positions) p.positions = reinterpret_cast<const int32_t*>(memory_ + positions_at_);
    return p;
  }

  // An operation that is not a product, or a short kernel on rows of activations in its place.
  void launch_other(const Operation& operation) const {
    if (const auto* norm = std::get_if<LayerNorm>(&operation)) {
      LayerNorm tried = *norm;
      tried.x = tensor(y_at_, norm->x), tried.y = tensor(result_at_, norm->y);
      return launch(tried, place_);
    }
    const auto* attention = std::get_if<Attention>(&operation);
    if (attention && attention->sequences == attention_->sequences && attention->tokens == attention_->tokens) {
      Attention tried = *attention;
      const uint64_t bytes = attention->q.bytes();
      tried.q = tensor(y_at_, attention->q), tried.k = tensor(y_at_ + bytes, attention->k);
      tried.v = tensor(y_at_ + 2 * bytes, attention->v), tried.out = tensor(result_at_, attention->out);
      tried.cu_seqlens = tensor(cu_seqlens_at_, attention->cu_seqlens);
      return launch(tried, place_);
    }
    fill_random(memory_, std::min(x_count_, kOtherCount), dtype_, place_);
  }

 private:
  static constexpr uint64_t kOtherCount = 1 << 16;
  static uint64_t aligned(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

  class TrialBuffer : public CudaBuffer {
   public:
    TrialBuffer(uint64_t size, uint64_t address) : CudaBuffer(size, MemoryLabel::activations, address) {}
  };
  Tensor tensor(uint64_t at, Tensor like) const {
    like.buffer = const_cast<TrialBuffer*>(&*buffer_), like.offset = at;
    return like;
  }

  const Launch& place_;
  const Attention* attention_ = nullptr;  // whose sequences cu_seqlens has
  DType dtype_ = DType::f32;
  uint64_t x_count_ = 0;
  uint64_t y_at_ = 0, result_at_ = 0, positions_at_ = 0, cu_seqlens_at_ = 0;  // bytes
  std::byte* memory_ = nullptr;
  std::optional<TrialBuffer> buffer_;  // the same memory
};

}  // namespace

// The best ways of all, best first.
std::vector<Products::Choice> Products::fastest(const Product& p, const Launch& place) const {
  std::vector<Choice> choices = candidates(p);
  if (gpu_.arbitrary_products) return {choices[scattered(p) % choices.size()]};
  if (choices.size() == 1) return choices;
  const Step step{nullptr, p};
  const Trial trial({&step, 1}, pool_, place);
  if (!trial) return {choices.front()};
  const Product tried = trial.of(p);
  const auto sort = [&](int launches, int rounds) {
    std::vector<GraphExec> graphs;
    for (const Choice& choice : choices)
      graphs.push_back(capture(place, [&] {
        for (int i = 0; i < launches; ++i) run(tried, choice, place);
      }));
    const std::vector<float> microseconds = least_microseconds(graphs, rounds, place);
    for (size_t i = 0; i < choices.size(); ++i) choices[i].microseconds = microseconds[i];
    std::ranges::stable_sort(choices, {}, &Choice::microseconds);
    std::erase_if(choices, [](const Choice& choice) { return std::isinf(choice.microseconds); });
    choices.resize(std::min(choices.size(), kFinalists));
  };
  sort(3, 2);
  sort(5, 3);
  if (choices.empty()) choices.push_back({.engine = Engine::plain});
  return choices;
}

// Short products depend on their surroundings: their weights come from memory rather than from the L2 cache, and
// kernels overlap with what precedes and follows them. So the finalists are tried in the recording's order: first a
// kind at a time, then the best of each together.
void Products::refine(const Steps& steps, Finalists finalists, const Launch& place) {
  const std::span<const Step> first(steps.data(), std::min(steps.size(), kChain));
  std::vector<Product> products;
  for (const auto& [operation, p] : first)
    if (p && p->rows != 0 && p->outputs != 0) products.push_back(*p);
  if (products.size() < 2) return;
  for (const Product& p : products)
    if (uint64_t(p.rows) * (p.inputs + p.outputs) * size_of(p.dtype) > gpu_.l2_bytes / 4) return;  // long
  std::erase_if(finalists, [&](const auto& entry) {
    return std::ranges::none_of(products, [&](const Product& p) { return kind_of(p) == entry.first; });
  });
  if (finalists.empty()) return;
  const Trial trial(first, pool_, place);
  if (!trial) return;
  const auto chain = [&] {
    for (const auto& [operation, p] : first) {
      if (p)
        launch(trial.of(*p), place);
      else
        trial.launch_other(*operation);
    }
  };
  for (const auto& [count, rounds] : kSweeps)
    for (auto& [kind, choices] : finalists) {
      choices.resize(std::min(choices.size(), count));
      Choice& chosen = chosen_.at(kind);
      std::vector<GraphExec> graphs;
      for (const Choice& choice : choices) {
        chosen = choice;
        graphs.push_back(capture(place, chain));
      }
      const std::vector<float> microseconds = least_microseconds(graphs, rounds, place);
      for (size_t i = 0; i < choices.size(); ++i) choices[i].microseconds = microseconds[i];
      std::ranges::stable_sort(choices, {}, &Choice::microseconds);
      chosen = choices.front();
    }
  choose_together(std::move(finalists), chain, place);
}

// A kind at a time the choice can end where no kind alone has a better way, but several together have.
void Products::choose_together(Finalists finalists, const std::function<void()>& chain, const Launch& place) {
  size_t count = 1;  // combination i has choice i % n of the first kind's n, i / n % m of the second's m, and so on
  for (auto& [kind, choices] : finalists) {
    choices.resize(count * kTogether <= kMostCombinations ? std::min(choices.size(), kTogether) : 1);
    count *= choices.size();
  }
  if (count == 1) return;
  const auto choose = [&](size_t combination) {
    for (const auto& [kind, choices] : finalists) {
      chosen_.at(kind) = choices[combination % choices.size()];
      combination /= choices.size();
    }
  };
  std::vector<GraphExec> graphs;
  std::vector<size_t> combinations;
  for (size_t i = 0; i < count; ++i) {
    choose(i);
    graphs.push_back(capture(place, chain));
    combinations.push_back(i);
  }
  std::vector<float> microseconds = least_microseconds(graphs, kRoundsOfAll, place);
  std::ranges::stable_sort(combinations, {}, [&](size_t i) { return microseconds[i]; });
  combinations.resize(std::min(count, kBestCombinations));
  std::vector<GraphExec> best;
  for (const size_t i : combinations) best.push_back(std::move(graphs[i]));
  microseconds = least_microseconds(best, kRoundsOfBest, place);
  choose(combinations[size_t(std::ranges::min_element(microseconds) - microseconds.begin())]);
}

void Products::prepare(const Steps& steps, const Launch& place) {
  Finalists finalists;
  for (const auto& [operation, p] : steps) {
    if (!p || p->rows == 0 || p->outputs == 0) continue;
    const Kind kind = kind_of(*p);
    if (chosen_.contains(kind)) continue;
    std::vector<Choice> choices = fastest(*p, place);
    chosen_.emplace(kind, choices.front());
    if (choices.size() > 1) finalists.emplace(kind, std::move(choices));
  }
  if (!finalists.empty()) refine(steps, std::move(finalists), place);
}

void Products::launch(const Product& p, const Launch& place) const {
  if (p.rows == 0 || p.outputs == 0) return;
  run(p, chosen_.at(kind_of(p)), place);
}

}  // namespace turboesm::cuda
