#include "runtime/memory.h"

#include <thread>

#include <catch2/catch_test_macros.hpp>

namespace turboesm {

TEST_CASE("the ledger counts bytes and allocations by label", "[unit]") {
  MemoryLedger ledger;
  ledger.add(MemoryLabel::weights, 100);
  ledger.add(MemoryLabel::weights, 50);
  ledger.add(MemoryLabel::kv, 7);
  ledger.remove(MemoryLabel::weights, 100);

  const MemoryReport report = ledger.report();
  CHECK(report[MemoryLabel::weights].bytes == 50);
  CHECK(report[MemoryLabel::weights].peak == 150);
  CHECK(report[MemoryLabel::weights].count == 1);
  CHECK(report[MemoryLabel::kv].bytes == 7);
  CHECK(report[MemoryLabel::activations].bytes == 0);
  CHECK(report[MemoryLabel::activations].peak == 0);
  CHECK(report.total.bytes == 57);
  CHECK(report.total.count == 2);
}

TEST_CASE("the ledger's total peak is of the sum, not the sum of the peaks", "[unit]") {
  MemoryLedger ledger;
  ledger.add(MemoryLabel::weights, 100);
  ledger.remove(MemoryLabel::weights, 100);
  ledger.add(MemoryLabel::activations, 60);
  CHECK(ledger.report().total.peak == 100);
  ledger.add(MemoryLabel::staging, 50);
  CHECK(ledger.report().total.peak == 110);
}

TEST_CASE("the ledger can be used from several threads", "[unit]") {
  MemoryLedger ledger;
  const auto work = [&] {
    for (int i = 0; i < 10'000; ++i) {
      ledger.add(MemoryLabel::kv, 3);
      ledger.remove(MemoryLabel::kv, 3);
    }
  };
  std::thread other(work);
  work();
  other.join();
  const MemoryReport report = ledger.report();
  CHECK(report.total.bytes == 0);
  CHECK(report.total.count == 0);
  CHECK(report.total.peak >= 3);
  CHECK(report.total.peak <= 6);
}

TEST_CASE("memory labels have names", "[unit]") {
  CHECK(name_of(MemoryLabel::weights) == "weights");
  CHECK(name_of(MemoryLabel::activations) == "activations");
  CHECK(name_of(MemoryLabel::kv) == "kv");
  CHECK(name_of(MemoryLabel::staging) == "staging");
}

TEST_CASE("what is free is never negative, whatever a driver says", "[unit][memory]") {
  MemoryReport report;
  report.device_bytes = 100;
  report.total.bytes = 30;
  CHECK(report.limit_bytes() == 100);  // no word of the driver
  CHECK(report.other_bytes() == 0);
  CHECK(report.free_bytes() == 70);
  report.budget_bytes = 80;
  report.driver_bytes = 45;
  CHECK(report.limit_bytes() == 80);
  CHECK(report.other_bytes() == 15);
  CHECK(report.free_bytes() == 35);
  report.driver_bytes = 7;  // less than we have
  CHECK(report.other_bytes() == 0);
  CHECK(report.free_bytes() == 50);
  report.driver_bytes = 500;  // more than there is
  CHECK(report.free_bytes() == 0);
}

}  // namespace turboesm
