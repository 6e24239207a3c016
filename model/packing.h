#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// How sequences of unlike lengths are put together to batches. They are packed without padding, so that the order
// decides only how alike the batches' shapes are.
namespace turboesm {

// The indices of `lengths`, the longest first: what does not fit in memory fails before the rest is computed. Equal
// lengths stay in order.
std::vector<uint32_t> longest_first(std::span<const uint32_t> lengths);

// Sequences of a batch at most, where no operation is needed for each of them.
inline constexpr size_t kMaxBatchSequences = 4096;

// How many of the sequences next[0], next[1] ..., indices of `lengths`, make one batch: as many as have at most
// max_tokens together and are at most max_sequences (>= 1), and at least one.
size_t batch_size(std::span<const uint32_t> lengths, std::span<const uint32_t> next, uint32_t max_tokens,
                  size_t max_sequences);

}  // namespace turboesm
