#pragma once

#include <cstdint>
#include <string_view>

#include "runtime/kv_operations.h"

// What check() asks of an operation beyond what its operands() say, for the files that state the rules.
namespace turboesm {

inline constexpr uint32_t kMaxHeadDim = 256;
inline constexpr uint32_t kMaxCandidates = 64;
inline constexpr uint32_t kMaxQueries = 4;
inline constexpr uint32_t kMaxGrid = 65535;  // workgroups in one dimension that Vulkan guarantees

// Throws Error(usage) "[operation] rule" unless the condition holds.
void require(bool condition, std::string_view operation, std::string_view rule);
void check_head_dim(std::string_view operation, uint32_t head_dim);

void check_sizes(const KvAppend& a);
void check_sizes(const KvQuery& a);
void check_sizes(const KvAttention& a);
void check_sizes(const Sample& a);

}  // namespace turboesm
