#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "runtime/error.h"
#include "tests/conformance/harness.h"
#include "tests/conformance/plain.h"

// What backend.h promises of buffers, recordings and submissions, whatever the operations compute.
namespace turboesm::conformance {
namespace {

using Catch::Matchers::ContainsSubstring;

std::unique_ptr<Buffer> allocate(Device& device, uint64_t size) {
  return device.allocate(size, MemoryLabel::activations);
}

// Where the tensor differs from `want` first, in words; empty when nowhere.
std::string difference(Device& device, const Tensor& tensor, const std::vector<float>& want) {
  std::vector<float> got(tensor.count);
  device.download<float>(tensor, got);
  for (uint64_t i = 0; i < got.size(); ++i)
    if (got[i] != want[i]) return fmt::format("[{}] is {}, not {}", i, got[i], want[i]);
  return "";
}

std::vector<float> repeated(uint64_t count, float value) { return std::vector<float>(count, value); }

std::vector<std::byte> random_bytes(Rng& rng, uint64_t count) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = std::byte(rng.next() & 0xff);
  return bytes;
}

// Equal, without printing megabytes when not.
bool equal(std::span<const std::byte> a, std::span<const std::byte> b) { return std::ranges::equal(a, b); }

Operation copy(const Tensor& source, const Tensor& destination) {
  return Copy{.source = source, .destination = destination};
}
Operation fill(const Tensor& out, float value) { return Fill{.out = out, .value = value}; }

// y[i] = x[i + 1], cyclically, plus residual: exact in fp32, and slow enough on any device to be still running when the
// next operation would start too early.
struct Shift {
  Tensor weight;  // [width, width]
  uint32_t rows, width;

  static std::vector<float> weights(uint32_t width) {
    std::vector<float> weight(uint64_t(width) * width);
    for (uint32_t i = 0; i < width; ++i) weight[uint64_t(i) * width + (i + 1) % width] = 1;
    return weight;
  }
  Operation operator()(const Tensor& x, const Tensor& y, const Tensor& residual = {}) const {
    return Linear{.x = x,
                  .weight = weight,
                  .bias = {},
                  .residual = residual,
                  .y = y,
                  .rows = rows,
                  .inputs = width,
                  .outputs = width};
  }
};

// The kind and the message of the Error that `body` throws.
template <class Body>
std::pair<ErrorKind, std::string> error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  }
  FAIL("no Error was thrown");
  throw std::logic_error("not reached");
}

}  // namespace

TEST_CASE("a recording reads what its buffers hold at each submission", "[conformance]") {
  const auto device = open_device_under_test();
  constexpr uint64_t kCount = 1000;
  const auto source = allocate(*device, 4 * kCount), destination = allocate(*device, 4 * kCount);
  const Tensor from{source.get(), 0, kCount, DType::f32}, to{destination.get(), 0, kCount, DType::f32};
  const Operation operations[] = {copy(from, to)};
  const auto recording = device->record(operations);

  Rng rng(40);
  Ticket last = 0;
  for (int replay = 0; replay < 5; ++replay) {
    const std::vector<float> values = rng.normals(kCount);
    device->upload<float>(from, values);
    const Ticket ticket = device->submit(*recording);
    CHECK(ticket > last);
    last = ticket;
    device->wait(ticket);
    CHECK(difference(*device, to, values) == "");
  }
}

TEST_CASE("submissions that are not waited for follow one another", "[conformance]") {
  const auto device = open_device_under_test();
  constexpr uint32_t kWidth = 64, kRows = 256, kCount = kWidth * kRows;
  const auto buffer = allocate(*device, 4 * (3 * kCount + kWidth * kWidth));
  const auto tensor = [&](uint64_t i) { return Tensor{buffer.get(), 4 * i * kCount, kCount, DType::f32}; };
  const Shift shift{{buffer.get(), 12 * kCount, kWidth * kWidth, DType::f32}, kRows, kWidth};
  device->upload<float>(shift.weight, Shift::weights(kWidth));
  device->upload<float>(tensor(0), std::vector<float>(kCount, 1));
  device->upload<float>(tensor(1), std::vector<float>(kCount, 0));

  SECTION("of one recording, three times") {
    const Operation add[] = {shift(tensor(0), tensor(1), tensor(1))};
    const auto recording = device->record(add);
    for (int i = 0; i < 3; ++i) device->submit(*recording);
    CHECK(difference(*device, tensor(1), repeated(kCount, 3)) == "");
  }
  SECTION("of two recordings in turn") {
    const Operation add[] = {shift(tensor(0), tensor(1), tensor(1))},
                    add_back[] = {shift(tensor(1), tensor(0), tensor(0))};
    const auto forth = device->record(add), back = device->record(add_back);
    // (a, b) = (1, 0) -> b += a, a += b: Fibonacci's numbers.
    for (int i = 0; i < 5; ++i) {
      device->submit(*forth);
      device->submit(*back);
    }
    CHECK(difference(*device, tensor(0), repeated(kCount, 89)) == "");
    CHECK(difference(*device, tensor(1), repeated(kCount, 55)) == "");
  }
  SECTION("and an upload comes after them") {
    const Operation add[] = {shift(tensor(0), tensor(1)), shift(tensor(1), tensor(2)),
                             shift(tensor(0), tensor(1), tensor(2))};
    const auto recording = device->record(add);
    device->submit(*recording);
    device->upload<float>(tensor(0), std::vector<float>(kCount, 7));
    CHECK(difference(*device, tensor(1), repeated(kCount, 2)) == "");
    CHECK(difference(*device, tensor(0), repeated(kCount, 7)) == "");
  }
}

TEST_CASE("several devices and one opened twice do not disturb each other", "[conformance]") {
  constexpr uint32_t kWidth = 64, kRows = 256, kCount = kWidth * kRows;
  struct Open {
    std::unique_ptr<Device> device;
    std::unique_ptr<Buffer> buffer;
    std::unique_ptr<Recording> forth, back;
    Tensor tensor(uint64_t i) const { return {buffer.get(), 4 * i * kCount, kCount, DType::f32}; }
  };
  std::vector<Open> all;
  for (std::unique_ptr<Device>& device : open_devices_of_backend()) {
    Open& open = all.emplace_back();
    open.device = std::move(device);
    open.buffer = allocate(*open.device, 4 * (2 * kCount + kWidth * kWidth));
  }
  REQUIRE(all.size() >= 2);
  for (Open& open : all) {
    const Shift shift{{open.buffer.get(), 8 * kCount, kWidth * kWidth, DType::f32}, kRows, kWidth};
    const Operation add[] = {shift(open.tensor(0), open.tensor(1), open.tensor(1))},
                    add_back[] = {shift(open.tensor(1), open.tensor(0), open.tensor(0))};
    open.device->upload<float>(shift.weight, Shift::weights(kWidth));
    open.device->upload<float>(open.tensor(0), repeated(kCount, float(&open - all.data() + 1)));
    open.device->upload<float>(open.tensor(1), repeated(kCount, 0));
    open.forth = open.device->record(add);
    open.back = open.device->record(add_back);
  }
  for (int i = 0; i < 5; ++i) {
    for (Open& open : all) {
      open.device->submit(*open.forth);
      open.device->submit(*open.back);
    }
  }
  all.front().forth.reset(), all.front().back.reset();  // while the others run
  all.front().buffer.reset(), all.front().device.reset();
  for (const Open& open : std::span(all).subspan(1)) {
    INFO(open.device->info().spec);
    const float first = float(&open - all.data() + 1);
    CHECK(difference(*open.device, open.tensor(0), repeated(kCount, 89 * first)) == "");
    CHECK(difference(*open.device, open.tensor(1), repeated(kCount, 55 * first)) == "");
  }
}

TEST_CASE("accumulating operations add at each submission", "[conformance]") {
  const auto device = open_device_under_test();
  constexpr uint32_t kHeads = 3, kLength = 40, kResidues = kLength - 2;
  constexpr uint64_t kMaps = kHeads * kLength * kLength, kSums = kHeads * (kLength - 1),
                     kLogits = kResidues * kResidues;
  const auto buffer = allocate(*device, 1 << 20);
  uint64_t end = 0;
  const auto place = [&](uint64_t count) {
    const Tensor tensor{buffer.get(), end, count, DType::f32};
    end = (end + tensor.bytes() + 255) / 256 * 256;
    return tensor;
  };
  const Operation operation = ContactAccumulate{.maps = place(kMaps),
                                                .sums = place(kSums),
                                                .weight = place(kHeads),
                                                .logits = place(kLogits),
                                                .heads = kHeads,
                                                .length = kLength};
  Rng rng(41);
  const std::vector<float> start = rng.uniforms((1 << 20) / 4, 1, 2);
  device->upload(*buffer, 0, std::as_bytes(std::span(start)));
  const auto recording = device->record({&operation, 1});
  std::vector<std::byte> want(1 << 20), got(1 << 20);
  std::memcpy(want.data(), start.data(), want.size());
  for (int i = 0; i < 3; ++i) {
    device->submit(*recording);
    run_plainly(operation, want);
  }
  device->download(*buffer, 0, got);
  double largest = 0;
  for (uint64_t i = 0; i < got.size(); i += 4) {
    float a, b;
    std::memcpy(&a, &want[i], 4);
    std::memcpy(&b, &got[i], 4);
    largest = std::max(largest, double(std::abs(a - b)));
  }
  CHECK(largest < 1e-3);  // of logits near 100
}

TEST_CASE("operations of a recording run as if one after another", "[conformance]") {
  const auto device = open_device_under_test();

  SECTION("a chain of 100 through two buffers") {
    constexpr uint32_t kWidth = 128, kRows = 64, kCount = kWidth * kRows;
    const auto buffer = allocate(*device, 4 * (2 * kCount + kWidth * kWidth));
    const Tensor ends[] = {{buffer.get(), 0, kCount, DType::f32}, {buffer.get(), 4 * kCount, kCount, DType::f32}};
    const Shift shift{{buffer.get(), 8 * kCount, kWidth * kWidth, DType::f32}, kRows, kWidth};
    std::vector<float> values(kCount);
    std::iota(values.begin(), values.end(), 0.0f);
    device->upload<float>(ends[0], values);
    device->upload<float>(shift.weight, Shift::weights(kWidth));
    std::vector<Operation> chain;
    for (int i = 0; i < 100; ++i) chain.push_back(shift(ends[i % 2], ends[(i + 1) % 2]));
    device->run(chain);
    std::vector<float> want(kCount);
    for (uint32_t i = 0; i < kCount; ++i) want[i] = values[i / kWidth * kWidth + (i + 100) % kWidth];
    CHECK(difference(*device, ends[0], want) == "");
  }

  SECTION("operands overwritten while they are read") {
    constexpr uint32_t kWidth = 128, kRows = 64, kCount = kWidth * kRows;
    const auto buffer = allocate(*device, 4 * (2 * kCount + kWidth * kWidth));
    const Tensor x{buffer.get(), 0, kCount, DType::f32}, sum{buffer.get(), 4 * kCount, kCount, DType::f32};
    const Shift shift{{buffer.get(), 8 * kCount, kWidth * kWidth, DType::f32}, kRows, kWidth};
    device->upload<float>(shift.weight, Shift::weights(kWidth));
    std::vector<Operation> program{fill(sum, 0)};
    for (int i = 1; i <= 30; ++i) {
      program.push_back(fill(x, float(i)));
      program.push_back(shift(x, sum, sum));
    }
    device->run(program);
    CHECK(difference(*device, sum, repeated(kCount, 30 * 31 / 2)) == "");
  }

  // Random programs over one small buffer, their operands overlapping in every way, against the same programs run on
  // the host one operation after another.
  SECTION("random programs") {
    constexpr uint64_t kCells = 2048, kCell = 4;  // cells of 16 bytes, the alignment of operands
    const auto buffer = allocate(*device, kCells * kCell * 4);
    const Tensor all{buffer.get(), 0, kCells * kCell, DType::f32};
    Rng rng(42);
    for (int trial = 0; trial < 10; ++trial) {
      const std::vector<float> start = rng.normals(all.count);
      std::vector<std::byte> want(all.bytes());
      std::memcpy(want.data(), start.data(), want.size());
      std::vector<Operation> program;
      while (program.size() < 200) {
        const uint64_t cells = 1 + rng.below(600), a = rng.below(uint32_t(kCells - cells)),
                       b = rng.below(uint32_t(kCells - cells));
        const Tensor from{buffer.get(), 16 * a, cells * kCell, DType::f32},
            to{buffer.get(), 16 * b, cells * kCell, DType::f32};
        const bool disjoint = a + cells <= b || b + cells <= a;
        if (rng.below(4) == 0)
          program.push_back(fill(to, rng.uniform(-1, 1)));
        else if (disjoint)
          program.push_back(copy(from, to));
      }
      for (const Operation& operation : program) run_plainly(operation, want);
      device->upload<float>(all, start);
      device->run(program);
      std::vector<std::byte> got(all.bytes());
      device->download(*buffer, 0, got);
      CHECK(equal(got, want));
    }
  }
}

TEST_CASE("uploads and downloads move any bytes", "[conformance]") {
  const auto device = open_device_under_test();
  Rng rng(43);

  SECTION("of any size at any offset, and no others") {
    constexpr uint64_t kSize = 10'000;
    const auto buffer = allocate(*device, kSize);
    std::vector<std::byte> mirror = random_bytes(rng, kSize);
    device->upload(*buffer, 0, mirror);
    for (int repeat = 0; repeat < 50; ++repeat) {
      const uint64_t size = rng.pick({0u, 1u, 2u, 3u, 5u, 17u, 255u, 1001u, 4099u}),
                     offset = rng.below(uint32_t(kSize - size));
      const std::vector<std::byte> bytes = random_bytes(rng, size);
      device->upload(*buffer, offset, std::span<const std::byte>(bytes));
      std::copy(bytes.begin(), bytes.end(), mirror.begin() + int64_t(offset));
      std::vector<std::byte> part(rng.below(3000)), whole(kSize);
      const uint64_t begin = rng.below(uint32_t(kSize - part.size()));
      device->download(*buffer, begin, part);
      CHECK(equal(part, std::span(mirror).subspan(begin, part.size())));
      device->download(*buffer, 0, whole);
      CHECK(equal(whole, mirror));
    }
  }

  SECTION("larger than any staging area, in chunks that follow one another") {
    constexpr uint64_t kSize = 50'000'003, kOffset = 5;
    const auto buffer = allocate(*device, kSize + 8);
    const uint64_t staging_before = device->memory()[MemoryLabel::staging].bytes;
    const auto byte_at = [](uint64_t i) { return std::byte((i * 2654435761u >> 13) & 0xff); };
    uint64_t filled = 0;
    device->upload(*buffer, kOffset, kSize, [&](std::span<std::byte> chunk, uint64_t offset) {
      CHECK(offset == filled);
      for (uint64_t i = 0; i < chunk.size(); ++i) chunk[i] = byte_at(offset + i);
      filled += chunk.size();
    });
    CHECK(filled == kSize);
    CHECK(device->memory()[MemoryLabel::staging].bytes - staging_before < kSize);
    std::vector<std::byte> got(kSize);
    device->download(*buffer, kOffset, got);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < kSize; ++i) wrong += got[i] != byte_at(i);
    CHECK(wrong == 0);
  }

  SECTION("and an upload whose source fails leaves a working device") {
    const auto buffer = allocate(*device, 1000);
    const auto failing = [](std::span<std::byte>, uint64_t) { throw_error(ErrorKind::input, "the source failed"); };
    CHECK(error_of([&] { device->upload(*buffer, 0, 1000, failing); }).first == ErrorKind::input);
    const std::vector<std::byte> bytes = random_bytes(rng, 1000);
    std::vector<std::byte> got(1000);
    device->upload(*buffer, 0, std::span<const std::byte>(bytes));
    device->download(*buffer, 0, got);
    CHECK(equal(got, bytes));
  }

  SECTION("but none outside the buffer") {
    const auto buffer = allocate(*device, 1000);
    std::vector<std::byte> bytes(10);
    CHECK(error_of([&] { device->upload(*buffer, 991, std::span<const std::byte>(bytes)); }).first == ErrorKind::usage);
    CHECK(error_of([&] { device->download(*buffer, 991, bytes); }).first == ErrorKind::usage);
    CHECK(error_of([&] { device->download(*buffer, ~uint64_t(0) - 4, bytes); }).first == ErrorKind::usage);
  }
}

TEST_CASE("memory is counted by label and given back", "[conformance]") {
  const auto device = open_device_under_test();
  constexpr MemoryLabel kLabels[] = {MemoryLabel::weights, MemoryLabel::activations, MemoryLabel::kv};
  for (const MemoryLabel label : kLabels) {
    CHECK(device->memory()[label].bytes == 0);
    CHECK(device->memory()[label].count == 0);
  }
  {
    const auto weights = device->allocate(3'000'000, MemoryLabel::weights);
    const auto more_weights = device->allocate(1, MemoryLabel::weights);
    const auto kv = device->allocate(100'000, MemoryLabel::kv);
    CHECK(weights->size() == 3'000'000);
    CHECK(weights->label() == MemoryLabel::weights);
    const MemoryReport report = device->memory();
    CHECK(report[MemoryLabel::weights].count == 2);
    CHECK(report[MemoryLabel::weights].bytes >= 3'000'001);
    CHECK(report[MemoryLabel::weights].bytes < 3'500'000);  // as the allocator rounded it, and no more
    CHECK(report[MemoryLabel::kv].bytes >= 100'000);
    CHECK(report[MemoryLabel::activations].bytes == 0);
    CHECK(report.total.bytes ==
          report[MemoryLabel::weights].bytes + report[MemoryLabel::kv].bytes + report[MemoryLabel::staging].bytes);
  }
  const MemoryReport report = device->memory();
  for (const MemoryLabel label : kLabels) {
    CHECK(report[label].bytes == 0);
    CHECK(report[label].count == 0);
  }
  CHECK(report[MemoryLabel::weights].peak >= 3'000'001);
  CHECK(report.total.peak >= 3'100'001);
  CHECK(report.device_bytes > 0);
}

TEST_CASE("an allocation that cannot fit is an error and the device goes on", "[conformance]") {
  const auto device = open_device_under_test();
  const auto [kind, message] = error_of([&] { allocate(*device, uint64_t(1) << 50); });
  CHECK(kind == ErrorKind::out_of_memory);
  CHECK_THAT(message, ContainsSubstring(fmt::format("{}", uint64_t(1) << 50)));
  CHECK(device->memory()[MemoryLabel::activations].bytes == 0);

  const auto buffer = allocate(*device, 4096);
  const Tensor out{buffer.get(), 0, 1024, DType::f32};
  const Operation operation = fill(out, 3);
  device->run({&operation, 1});
  CHECK(difference(*device, out, repeated(1024, 3)) == "");
}

TEST_CASE("profiling gives each operation's time", "[conformance]") {
  const auto device = open_device_under_test();
  constexpr uint32_t kWidth = 256, kRows = 256, kCount = kWidth * kRows;
  const auto buffer = allocate(*device, 4 * (2 * kCount + kWidth * kWidth));
  const Tensor x{buffer.get(), 0, kCount, DType::f32}, y{buffer.get(), 4 * kCount, kCount, DType::f32};
  const Shift shift{{buffer.get(), 8 * kCount, kWidth * kWidth, DType::f32}, kRows, kWidth};
  const Operation operations[] = {fill(x, 1), fill(shift.weight, 0.5f), shift(x, y), copy(y, x)};

  const auto profiled = device->record(operations, {.profile = true});
  double least[std::size(operations)];
  std::ranges::fill(least, INFINITY);
  for (int run = 0; run < 5; ++run) {
    device->wait(device->submit(*profiled));
    const std::vector<double> seconds = profiled->operation_seconds();
    REQUIRE(seconds.size() == std::size(operations));
    for (const double s : seconds) CHECK((s > 0 && s < 10));
    const double sum = std::accumulate(seconds.begin(), seconds.end(), 0.0);
    CHECK(profiled->device_seconds() >= 0.5 * sum);
    for (size_t i = 0; i < seconds.size(); ++i) least[i] = std::min(least[i], seconds[i]);
  }
  CHECK(least[2] > least[0]);  // 33 million operations against 65 thousand; a single run may be interrupted
  const auto plain = device->record(operations);
  device->wait(device->submit(*plain));
  CHECK(plain->operation_seconds().empty());
  CHECK(plain->device_seconds() > 0);
}

TEST_CASE("an empty recording runs", "[conformance]") {
  const auto device = open_device_under_test();
  const auto recording = device->record(std::span<const Operation>());
  device->wait(device->submit(*recording));
  CHECK(recording->operation_seconds().empty());
}

TEST_CASE("what cannot be recorded is refused by name", "[conformance]") {
  const auto device = open_device_under_test();
  const auto buffer = allocate(*device, 4096);
  const auto tensor = [&](uint64_t offset, uint64_t count, DType dtype = DType::f32) {
    return Tensor{buffer.get(), offset, count, dtype};
  };
  const auto refused = [&](const Operation& operation) {
    const auto [kind, message] = error_of([&] { device->record({&operation, 1}); });
    CHECK(kind == ErrorKind::usage);
    return message;
  };
  const LayerNorm good{.x = tensor(0, 64),
                       .weight = tensor(256, 16),
                       .bias = tensor(320, 16),
                       .y = tensor(512, 64),
                       .rows = 4,
                       .width = 16};
  const Operation fits = good;
  CHECK(device->record({&fits, 1}) != nullptr);

  LayerNorm bad = good;
  bad.weight.dtype = DType::f16;
  CHECK_THAT(refused(bad), ContainsSubstring("layer_norm") && ContainsSubstring("weight") && ContainsSubstring("f16"));
  bad = good;
  bad.y.count = 63;
  CHECK_THAT(refused(bad), ContainsSubstring("layer_norm") && ContainsSubstring("y") && ContainsSubstring("63"));
  bad = good;
  bad.bias.offset = 324;
  CHECK_THAT(refused(bad), ContainsSubstring("bias") && ContainsSubstring("324"));
  bad = good;
  bad.x = tensor(4096 - 128, 64);
  CHECK_THAT(refused(bad), ContainsSubstring("x") && ContainsSubstring("4096"));
  bad = good;
  bad.y = {};
  CHECK_THAT(refused(bad), ContainsSubstring("y") && ContainsSubstring("missing"));
}

}  // namespace turboesm::conformance
