#include "runtime/memory.h"

namespace turboesm {

std::string_view name_of(MemoryLabel label) {
  switch (label) {
    case MemoryLabel::weights: return "weights";
    case MemoryLabel::activations: return "activations";
    case MemoryLabel::kv: return "kv";
    case MemoryLabel::staging: return "staging";
  }
  return "?";
}

void MemoryLedger::Counter::add(uint64_t amount) {
  const uint64_t now = bytes.fetch_add(amount) + amount;
  uint64_t seen = peak.load();
  while (seen < now && !peak.compare_exchange_weak(seen, now)) {
  }
  ++count;
}

void MemoryLedger::Counter::remove(uint64_t amount) {
  bytes.fetch_sub(amount);
  --count;
}

void MemoryLedger::add(MemoryLabel label, uint64_t bytes) {
  labels_[uint32_t(label)].add(bytes);
  total_.add(bytes);
}

void MemoryLedger::remove(MemoryLabel label, uint64_t bytes) {
  labels_[uint32_t(label)].remove(bytes);
  total_.remove(bytes);
}

MemoryReport MemoryLedger::report() const {
  MemoryReport report;
  for (uint32_t i = 0; i < kMemoryLabels; ++i) report.by_label[i] = labels_[i].use();
  report.total = total_.use();
  return report;
}

}  // namespace turboesm
