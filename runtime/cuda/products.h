#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include <cublasLt.h>

#include "runtime/cuda/handles.h"
#include "runtime/cuda/product.h"

// How each matrix product is computed: by one of this module's own kernels or one of cuBLASLt's algorithms, whichever
// was fastest when they were first timed on this device for a product of that kind: by themselves first, then, where
// they are so short that what surrounds them matters, in the order of the recording and between its other operations.
namespace turboesm::cuda {

class Products {
 public:
  Products(const Gpu& gpu, cudaMemPool_t pool);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  // The operations of a recording, in their order.
  struct Step {
    const Operation* operation;
    std::optional<Product> product;  // if it is one
  };
  using Steps = std::vector<Step>;

  // Times the ways to compute these products, unless others of their kind have been. Reads the operands, writes none of
  // them. Not during a capture.
  void prepare(const Steps& steps, const Launch& place);

  void launch(const Product& p, const Launch& place) const;  // after prepare()

 private:
  // Products of one kind are computed the same way. Rows are rounded up, so that batches of about one size share it.
  using Kind = std::tuple<DType, DType, uint32_t, uint32_t, uint32_t, bool, bool, bool, uint32_t>;
  static uint32_t kind_rows(uint32_t rows);
  static Kind kind_of(const Product& p);

  enum class Engine { plain, narrow, shallow, hopper, cublaslt };
  struct Choice {
    Engine engine = Engine::plain;
    uint32_t variant = 0;              // of the module's own kernels
    cublasLtMatmulAlgo_t algorithm{};  // of cuBLASLt
    float microseconds = 0;
  };
  std::vector<Choice> candidates(const Product& p) const;
  std::vector<Choice> fastest(const Product& p, const Launch& place) const;
  using Finalists = std::map<Kind, std::vector<Choice>>;  // best first
  void refine(const Steps& steps, Finalists finalists, const Launch& place);
  void choose_together(Finalists finalists, const std::function<void()>& chain, const Launch& place);
  void run(const Product& p, const Choice& choice, const Launch& place) const;
  template <class Body>
  GraphExec capture(const Launch& place, Body&& body) const;
  std::vector<float> least_microseconds(std::span<const GraphExec> graphs, int rounds, const Launch& place) const;

  const Gpu& gpu_;
  cudaMemPool_t pool_;
  cublasLtHandle_t cublaslt_ = nullptr;
  std::map<Kind, Choice> chosen_;
  Stopwatch stopwatch_;
};

}  // namespace turboesm::cuda
