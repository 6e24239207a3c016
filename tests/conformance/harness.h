#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/backend.h"
#include "tests/conformance/data.h"
#include "tests/options.h"

// Runs operations on the device under test (--device) and on an oracle, and compares what they leave in memory. The
// oracle is the CPU back end, whose own oracle are the loops of plain.h.
namespace turboesm::conformance {

// The device under test, with Vulkan's validation layers unless --no-validation.
std::unique_ptr<Device> open_device_under_test(bool matrix_cores = true);
// The same and all others of its back end; itself once more, at least.
std::vector<std::unique_ptr<Device>> open_devices_of_backend();

// What an output may differ by from the oracle's, `got` from `want`, both [n]:
//   rms(got - want) <= relative x max(rms(want), scale)                        and, so that no single element hides,
//   |got - want|    <= stragglers x relative x (max(rms(want), scale) + |want|)  for each one;
// an infinite element is always wrong, and so is a NaN unless `nans`: then it must be one where the oracle's is.
// relative == 0 asks for equal bits.
struct Tolerance {
  double relative = 0;
  double scale = 0;  // what the terms of a sum measure, where they may cancel
  double stragglers = 8;
  bool nans = false;
};

inline constexpr Tolerance kExact{};

// Tolerance of an output of `count` elements in `stored`, of a value that fp32 arithmetic gets right to `fp32_error`.
// Storing in 16 bits rounds both sides alike, except for the elements between whose two values a rounding boundary
// lies: a share of about fp32_error / ulp, and now and then one more, which may be several times the rms. Each of those
// is off by one ulp. `count` is the number of elements with errors of their own.
Tolerance rounded(DType stored, uint64_t count, double fp32_error, double scale = 0);

// Error, relative to its rms, of a sum of `terms` products of independent sign in fp32: each of the partial sums, which
// grow like sqrt(n), is rounded to 2^-24 of itself, whatever the order.
double sum_error(uint64_t terms);

// The operands of one case, placed in the memory of its batch.
class Case {
 public:
  Tensor input(DType dtype, std::span<const float> values);  // rounded to dtype
  Tensor input(std::span<const int32_t> values);
  Tensor random_bits(DType dtype, uint64_t count);
  Tensor output(DType dtype, uint64_t count, Tolerance tolerance);    // holds NaN before the run
  Tensor in_out(std::span<const float> values, Tolerance tolerance);  // f32: read and written
  Tensor in_out(std::span<const int32_t> values);                     // bits: read and written, compared exactly

 private:
  friend class Harness;
  explicit Case(class Harness& harness) : harness_(harness) {}
  Harness& harness_;
};

class Harness {
 public:
  // With `variant`, operations of several variants() by that one.
  Harness(std::unique_ptr<Device> device, uint32_t seed, std::optional<uint32_t> variant = {});
  ~Harness();

  // `build` allocates its operands and returns the operation; `what` tells the case from others in a failure's message.
  void add(const std::string& what, const std::function<Operation(Case&)>& build);
  void finish();  // runs what has not run yet and fails the test case if anything was wrong

  Rng& rng() { return rng_; }
  // Whether products of this type run on matrix units, which sum and round in their own way.
  bool on_matrix_cores(DType dtype) const { return matrix_cores_ & (1u << uint32_t(dtype)); }
  // Whether attention over a cache with results of this type may round its centroids to 8 bits (KvAttention).
  bool rounds_centroids(DType out) const {
    return out != DType::f32 && on_matrix_cores(out) && device_->info().spec.starts_with("cuda");
  }
  // Whether larger cases can be put to it: a GPU proper, and --no-large was not said.
  bool takes_large() const {
    const DeviceKind kind = device_->info().kind;
    return kind != DeviceKind::cpu && kind != DeviceKind::software_gpu && test_options().large;
  }
  // The largest number of variants() that an operation so far has had.
  size_t most_variants() const { return most_variants_; }
  // Whether each kind of case has a kernel of its own to compile, so that their number counts.
  bool compiles() const { return device_->info().kind != DeviceKind::cpu; }

 private:
  friend class Case;
  struct Added {
    std::string what;
    Operation operation;
  };
  struct Operand {  // bytes [begin, end) of the image
    uint64_t begin, end, count;
    size_t of_case;
    DType dtype;
    bool written;
    Tolerance tolerance;
  };
  class Runner;

  Tensor place(DType dtype, uint64_t count, bool written, Tolerance tolerance);
  void flush();
  void compare_output(const Operand& operand, std::span<const std::byte> want, std::span<const std::byte> got);
  void compare_untouched(uint64_t begin, uint64_t end, std::span<const std::byte> got);
  void note_error(const Operand& operand, double share);
  std::string name_of_operand(const Operand& operand) const;
  std::string describe(const Operand& operand) const;
  void fail(const Operand& operand, const std::string& problem);

  std::unique_ptr<Device> device_, oracle_device_;  // no oracle device: plain loops
  std::unique_ptr<Runner> runner_, oracle_;
  uint32_t matrix_cores_;
  Rng rng_;
  std::vector<Added> cases_;       // of the batch being built, like the next two
  std::vector<Operand> operands_;  // in the order of their bytes
  std::vector<std::byte> image_;
  std::string variant_;  // what failures are said to be of
  size_t most_variants_ = 0;
  uint64_t added_ = 0, cases_run_ = 0, failures_ = 0;
  double worst_ = 0;  // largest error, as a share of what its tolerance allows, and where it was
  std::string worst_case_;
};

enum class Units { any, matrix_cores_too };

// sum_error() of a product's outputs on the harness's device, for operands of this type.
double product_error(const Harness& harness, DType dtype, uint32_t inputs);

// Adds cases to a harness for the device under test and runs them; with Units::matrix_cores_too on a device that has
// such units a second time without them.
void conform(uint32_t seed, Units units, const std::function<void(Harness&)>& add_cases);

// The same for every one of the operations' variants(), or once by the device's own choice where it has none.
void conform_variants(uint32_t seed, const std::function<void(Harness&)>& add_cases);

}  // namespace turboesm::conformance
