#include "tests/conformance/harness.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>
#include <catch2/interfaces/catch_interfaces_capture.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>

#include "runtime/registry.h"
#include "tests/conformance/plain.h"
#include "tests/options.h"

namespace turboesm::conformance {
namespace {

// Around and between operands lies a guard of 256 bytes (64 f32, 128 f16) or a little more, so that alignment varies.
// Guards and outputs hold bits that are NaN in f32, f16 and bf16: what is read out of bounds or never written shows.
constexpr uint64_t kGuardBytes = 256;
constexpr uint16_t kGuardBits = 0x7fc1;
constexpr uint16_t kPoisonBits = 0x7fe5;

constexpr size_t kBatchCases = 64;  // recorded together: they share no memory, so a device may overlap them
constexpr uint64_t kBatchBytes = 16 << 20;
constexpr uint64_t kReportedFailures = 20;  // in each test case; the rest is only counted

std::atomic<uint64_t>& total_cases() {
  static std::atomic<uint64_t> total{0};
  return total;
}

class CaseCounter : public Catch::EventListenerBase {
 public:
  using EventListenerBase::EventListenerBase;
  void testRunEnded(const Catch::TestRunStats&) override {
    if (total_cases() > 0) fmt::print("conformance: {} cases in all\n", total_cases().load());
  }
};
CATCH_REGISTER_LISTENER(CaseCounter)

void append(std::vector<std::byte>& image, uint64_t bytes, uint16_t pattern) {
  const uint64_t begin = image.size();
  image.resize(begin + bytes);
  for (uint64_t i = begin; i < image.size(); ++i) image[i] = std::byte(i % 2 ? pattern >> 8 : pattern & 0xff);
}

// Stands for the buffer of a device that is not chosen yet.
class Placeholder final : public Buffer {
 public:
  Placeholder() : Buffer(0, MemoryLabel::activations) {}
};

Buffer* placeholder() {
  static Placeholder buffer;
  return &buffer;
}

// The same operation on operands at the same offsets of another buffer.
Operation rebound(Operation operation, Buffer& buffer) {
  std::visit(
      [&](auto& a) {
        // operands() shows the members of `a`, which is not const.
        a.operands([&](auto, const Tensor& tensor, auto...) { const_cast<Tensor&>(tensor).buffer = &buffer; });
      },
      operation);
  return operation;
}

std::vector<float> as_floats(DType dtype, std::span<const std::byte> bytes, uint64_t count) {
  std::vector<float> values(count);
  convert(dtype, bytes.data(), DType::f32, values.data(), count);
  return values;
}

double rms(std::span<const float> values) {
  double sum = 0;
  for (float value : values) sum += double(value) * value;
  return values.empty() ? 0 : std::sqrt(sum / double(values.size()));
}

std::unique_ptr<Device> open_for_tests(std::string_view spec, bool matrix_cores) {
  DeviceOptions options;
  options.matrix_cores = matrix_cores;
  options.arbitrary_products = test_options().arbitrary_products;
  options.validation = test_options().validation;
  return open_device(spec, options).device;
}

}  // namespace

std::unique_ptr<Device> open_device_under_test(bool matrix_cores) {
  return open_for_tests(test_options().device, matrix_cores);
}

std::vector<std::unique_ptr<Device>> open_devices_of_backend() {
  std::vector<std::unique_ptr<Device>> devices;
  devices.push_back(open_device_under_test());
  const auto backend_of = [](std::string_view spec) { return spec.substr(0, spec.find(':')); };
  const std::string spec = devices.front()->info().spec;
  for (const DeviceListing& listing : list_devices().devices)
    if (listing.problem.empty() && backend_of(listing.info.spec) == backend_of(spec))
      devices.push_back(open_for_tests(listing.info.spec, /*matrix_cores=*/true));
  return devices;
}

double sum_error(uint64_t terms) { return 1e-6 + 0x1p-24 * std::sqrt(double(terms)); }

Tolerance rounded(DType stored, uint64_t count, double fp32_error, double scale) {
  if (stored == DType::f32) return {fp32_error, scale};
  const double ulp = stored == DType::f16 ? 0x1p-10 : 0x1p-7;
  const double share = std::min(1.0, 4 * fp32_error / ulp + 16 / double(std::max<uint64_t>(count, 1)));
  const double relative = fp32_error + ulp * std::sqrt(share);
  return {relative, scale, std::max(8.0, 2 * ulp / relative)};
}

double product_error(const Harness& harness, DType dtype, uint32_t inputs) {
  // Matrix units add the products of a step at once and may cut off what the sum so far is too large for, where fp32
  // rounds to nearest: NVIDIA's keep about the same number of bits but lose on average half of the last one per step.
  return harness.on_matrix_cores(dtype) ? 8 * sum_error(inputs) : sum_error(inputs);
}

// ---- Case -----------------------------------------------------------------------------------------------------------

Tensor Case::input(DType dtype, std::span<const float> values) {
  const Tensor tensor = harness_.place(dtype, values.size(), false, kExact);
  convert(DType::f32, values.data(), dtype, harness_.image_.data() + tensor.offset, values.size());
  return tensor;
}

Tensor Case::input(std::span<const int32_t> values) {
  const Tensor tensor = harness_.place(DType::i32, values.size(), false, kExact);
  if (!values.empty()) std::memcpy(harness_.image_.data() + tensor.offset, values.data(), values.size_bytes());
  return tensor;
}

Tensor Case::random_bits(DType dtype, uint64_t count) {
  const Tensor tensor = harness_.place(dtype, count, false, kExact);
  for (uint64_t i = 0; i < tensor.bytes(); ++i)
    harness_.image_[tensor.offset + i] = std::byte(harness_.rng_.next() & 0xff);
  return tensor;
}

Tensor Case::output(DType dtype, uint64_t count, Tolerance tolerance) {
  return harness_.place(dtype, count, true, tolerance);
}

Tensor Case::in_out(std::span<const float> values, Tolerance tolerance) {
  const Tensor tensor = harness_.place(DType::f32, values.size(), true, tolerance);
  if (!values.empty()) std::memcpy(harness_.image_.data() + tensor.offset, values.data(), values.size_bytes());
  return tensor;
}

Tensor Case::in_out(std::span<const int32_t> values) {
  const Tensor tensor = harness_.place(DType::i32, values.size(), true, kExact);
  if (!values.empty()) std::memcpy(harness_.image_.data() + tensor.offset, values.data(), values.size_bytes());
  return tensor;
}

// ---- Harness --------------------------------------------------------------------------------------------------------

// Runs operations on an image of memory: on a device through one buffer that serves all batches, or as plain loops.
class Harness::Runner {
 public:
  explicit Runner(Device* device, std::optional<uint32_t> variant = {}) : device_(device), variant_(variant) {}

  void run(std::span<const Added> cases, std::vector<std::byte>& image) {
    if (!device_) {
      for (const Added& added : cases) run_plainly(added.operation, image);
      return;
    }
    if (!buffer_ || buffer_->size() < image.size()) {
      buffer_.reset();
      buffer_ = device_->allocate(std::max<uint64_t>(image.size(), 2 * kBatchBytes), MemoryLabel::activations);
    }
    std::vector<Operation> operations;
    for (const Added& added : cases) operations.push_back(rebound(added.operation, *buffer_));
    device_->upload(*buffer_, 0, std::span<const std::byte>(image));
    const auto recording = device_->record(operations, {.variant = variant_});
    device_->wait(device_->submit(*recording));
    device_->download(*buffer_, 0, std::span<std::byte>(image));
  }

 private:
  Device* device_;
  std::optional<uint32_t> variant_;
  std::unique_ptr<Buffer> buffer_;
};

Harness::Harness(std::unique_ptr<Device> device, uint32_t seed, std::optional<uint32_t> variant)
    : device_(std::move(device)), matrix_cores_(device_->info().matrix_core_dtypes), rng_(seed) {
  if (device_->info().kind != DeviceKind::cpu) oracle_device_ = open_device("cpu", {}).device;
  runner_ = std::make_unique<Runner>(device_.get(), variant);
  if (variant) variant_ = fmt::format(", variant {}", *variant);
  oracle_ = std::make_unique<Runner>(oracle_device_.get());
}

Harness::~Harness() = default;

Tensor Harness::place(DType dtype, uint64_t count, bool written, Tolerance tolerance) {
  append(image_, (image_.size() + 15) / 16 * 16 - image_.size() + kGuardBytes + 16 * rng_.below(8), kGuardBits);
  const Tensor tensor{placeholder(), image_.size(), count, dtype};
  append(image_, tensor.bytes(), kPoisonBits);
  operands_.push_back({tensor.offset, image_.size(), count, cases_.size(), dtype, written, tolerance});
  return tensor;
}

void Harness::add(const std::string& what, const std::function<Operation(Case&)>& build) {
  if (added_++ % test_options().every != 0) return;
  Case operands(*this);
  const Operation operation = build(operands);
  most_variants_ = std::max(most_variants_, device_->variants(operation).size());
  cases_.push_back({what, operation});
  if (cases_.size() == kBatchCases || image_.size() > kBatchBytes) flush();
}

void Harness::flush() {
  if (cases_.empty()) return;
  append(image_, kGuardBytes, kGuardBits);
  std::vector<std::byte> want = image_, got = image_;
  oracle_->run(cases_, want);
  runner_->run(cases_, got);
  uint64_t untouched = 0;
  for (const Operand& operand : operands_) {
    if (!operand.written) continue;
    compare_untouched(untouched, operand.begin, got);
    compare_output(operand, want, got);
    untouched = operand.end;
  }
  compare_untouched(untouched, image_.size(), got);
  cases_run_ += cases_.size();
  cases_.clear();
  operands_.clear();
  image_.clear();
}

void Harness::compare_untouched(uint64_t begin, uint64_t end, std::span<const std::byte> got) {
  if (std::memcmp(&image_[begin], &got[begin], end - begin) == 0) return;
  uint64_t byte = begin;
  while (image_[byte] == got[byte]) ++byte;
  // The last operand that begins at or before the byte, or the first one of all.
  auto after = std::upper_bound(operands_.begin(), operands_.end(), byte,
                                [](uint64_t value, const Operand& operand) { return value < operand.begin; });
  const Operand& before = after == operands_.begin() ? *after : *std::prev(after);
  if (byte >= before.begin && byte < before.end) return fail(before, "an input was written to");
  if (after != operands_.end() && after->begin - byte < byte - before.end)
    return fail(*after, fmt::format("the byte {} before it was written to", after->begin - byte));
  fail(before, fmt::format("byte {} after its end was written to", byte - before.end));
}

void Harness::compare_output(const Operand& operand, std::span<const std::byte> want_bytes,
                             std::span<const std::byte> got_bytes) {
  const auto wanted = want_bytes.subspan(operand.begin, operand.end - operand.begin);
  const auto gotten = got_bytes.subspan(operand.begin, operand.end - operand.begin);
  const Tolerance& tolerance = operand.tolerance;
  if (tolerance.relative == 0) {
    if (!wanted.empty() && std::memcmp(wanted.data(), gotten.data(), wanted.size()) != 0) {
      const auto differ = std::mismatch(wanted.begin(), wanted.end(), gotten.begin());
      fail(operand,
           fmt::format("differs from element {} on", uint64_t(differ.first - wanted.begin()) / size_of(operand.dtype)));
    }
    return;
  }
  std::vector<float> want = as_floats(operand.dtype, wanted, operand.count);
  std::vector<float> got = as_floats(operand.dtype, gotten, operand.count);
  if (tolerance.nans)
    for (uint64_t i = 0; i < operand.count; ++i)
      if (std::isnan(want[i]) && std::isnan(got[i])) want[i] = got[i] = 0;
  const double size = std::max(rms(want), tolerance.scale);
  double squares = 0;
  for (uint64_t i = 0; i < operand.count; ++i) {
    const double error = std::abs(double(got[i]) - want[i]);
    const double allowed = tolerance.stragglers * tolerance.relative * (size + std::abs(want[i]));
    if (!(error <= allowed) || !std::isfinite(want[i]))
      return fail(operand, fmt::format("[{}] of {} is {}, not {} (off by {:.2e}, {:.2e} allowed)", i, operand.count,
                                       got[i], want[i], error, allowed));
    squares += error * error;
    if (allowed > 0) note_error(operand, error / allowed);
  }
  const double error = std::sqrt(squares / double(std::max<uint64_t>(operand.count, 1)));
  if (error > tolerance.relative * size)
    fail(operand, fmt::format("of {} elements has relative L2 error {:.2e}, {:.2e} allowed", operand.count,
                              error / size, tolerance.relative));
  if (size > 0) note_error(operand, error / size / tolerance.relative);
}

void Harness::note_error(const Operand& operand, double share) {
  if (share <= worst_) return;
  worst_ = share;
  worst_case_ = describe(operand);
}

std::string Harness::name_of_operand(const Operand& operand) const {
  std::string_view found = "operand";
  std::visit(
      [&](const auto& a) {
        a.operands([&](std::string_view name, const Tensor& tensor, auto...) {
          if (tensor.offset == operand.begin) found = name;
        });
      },
      cases_[operand.of_case].operation);
  return std::string(found);
}

std::string Harness::describe(const Operand& operand) const {
  const Added& added = cases_[operand.of_case];
  return fmt::format("{} case {} ({}{}): {} {}", name_of(added.operation), cases_run_ + operand.of_case, added.what,
                     variant_, name_of(operand.dtype), name_of_operand(operand));
}

void Harness::fail(const Operand& operand, const std::string& problem) {
  if (++failures_ <= kReportedFailures) FAIL_CHECK(fmt::format("{}: {}", describe(operand), problem));
}

void Harness::finish() {
  flush();
  device_->wait(0);  // a message of the validation layers comes out as an Error here at the latest
  total_cases() += cases_run_;
  fmt::print("{}: {} cases on {}{}, {} wrong", Catch::getResultCapture().getCurrentTestName(), cases_run_,
             device_->info().name, matrix_cores_ ? " with matrix cores" : "", failures_);
  if (worst_ > 0) fmt::print("; closest to its limit, at {:.0f} %: {}", 100 * worst_, worst_case_);
  fmt::print("\n");
  std::fflush(stdout);
  CHECK(cases_run_ > 0);
  CHECK(failures_ == 0);
}

void conform(uint32_t seed, Units units, const std::function<void(Harness&)>& add_cases) {
  for (const bool matrix_cores : {true, false}) {
    auto device = open_device_under_test(matrix_cores);
    const bool again = units == Units::matrix_cores_too && device->info().matrix_core_dtypes != 0;
    Harness harness(std::move(device), seed);
    add_cases(harness);
    harness.finish();
    if (!again) return;
  }
}

void conform_variants(uint32_t seed, const std::function<void(Harness&)>& add_cases) {
  size_t most = 1;
  for (uint32_t variant = 0; variant < most; ++variant) {
    Harness harness(open_device_under_test(), seed, variant);
    add_cases(harness);
    harness.finish();
    most = std::max(most, harness.most_variants());
  }
}

}  // namespace turboesm::conformance
