#include "model/packing.h"

#include <algorithm>
#include <numeric>

namespace turboesm {

std::vector<uint32_t> longest_first(std::span<const uint32_t> lengths) {
  std::vector<uint32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return lengths[a] > lengths[b]; });
  return order;
}

size_t batch_size(std::span<const uint32_t> lengths, std::span<const uint32_t> next, uint32_t max_tokens,
                  size_t max_sequences) {
  size_t count = 0;
  for (uint64_t tokens = 0; count < std::min(next.size(), max_sequences); ++count) {
    tokens += lengths[next[count]];
    if (count > 0 && tokens > max_tokens) break;
  }
  return count;
}

}  // namespace turboesm
