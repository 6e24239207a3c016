#pragma once

#include <cstddef>
#include <span>
#include <variant>

#include "runtime/cuda/kernels.h"

// What a layer of a decoding step does ahead of its attention over the cache, as one kernel (kv_step.cu).
namespace turboesm::cuda {

// A KvQuery and, where they follow it and can be computed with it, the Linear that makes the bias of its positions, and
// the KvAppend of at most one token a sequence.
struct KvStep {
  const KvQuery* query = nullptr;
  const Linear* bias = nullptr;
  const KvAppend* append = nullptr;

  bool has(const Operation& operation) const {
    const void* which = std::visit([](const auto& a) -> const void* { return &a; }, operation);
    return which == query || which == bias || which == append;
  }
};
inline constexpr size_t kMostOfKvStep = 3;  // operations, from the query on, that a step is made of

// The step that `operations` begin with; without a query where there is none, or nothing to compute it with.
KvStep kv_step_of(std::span<const Operation> operations, const Gpu& gpu);

void launch(const KvStep& a, const Launch& l);

}  // namespace turboesm::cuda
