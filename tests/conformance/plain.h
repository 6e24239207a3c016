#pragma once

#include <cstddef>
#include <span>

#include "runtime/operations.h"

namespace turboesm::conformance {

// Computes the operation on host memory, in double precision, by loops as plain as its definition in
// runtime/operations.h: the oracle of the CPU back end. The operands' offsets count from the start of `image`; their
// buffers are not used.
void run_plainly(const Operation& operation, std::span<std::byte> image);

}  // namespace turboesm::conformance
