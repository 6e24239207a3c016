#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/operations.h"

namespace turboesm::vulkan {

// What the choice of a kernel variant may depend on; filled in by device.cpp from what the driver reports.
struct Traits {
  uint32_t subgroup_size = 32;      // what a pipeline gets when it asks for nothing
  uint32_t min_subgroup_size = 32;  // the range that a pipeline may ask for (equal when the size cannot be chosen)
  uint32_t max_subgroup_size = 32;
  uint32_t max_shared_bytes = 32768;
  uint32_t max_workgroup_invocations = 1024;
  uint32_t compute_units = 0;               // streaming multiprocessors, compute units; 0: unknown
  bool software = false;                    // a driver that runs on the CPU
  bool stable_sums = false;                 // as DeviceOptions::stable_sums
  std::string_view device_class = "other";  // device_class_of() it: whose rates decide among tiles (linear_rates.h)
  bool lanes = false;  // one that can run the kernels made for such drivers (shaders/include/lanes.glsl)
  // Memory that kernels may use while they run, zero where a kernel's header says so; 0 bytes: none.
  uint64_t scratch_address = 0;
  uint64_t scratch_bytes = 0;
  // 16x16x16 products with fp32 accumulation at subgroup scope, by component type.
  bool matrix_f16 = false;
  bool matrix_bf16 = false;
  bool matrix2 = false;  // VK_NV_cooperative_matrix2's operations on such matrices, where the program has their kernels
};

// One compute dispatch: which SPIR-V module (shaders/<shader>.comp), with which specialization constants (constant_id
// 0, 1, 2 ...), push constants and number of workgroups. Equal shader, constants and subgroup size share a pipeline.
struct Dispatch {
  std::string_view shader;
  std::vector<uint32_t> constants;
  uint32_t subgroup_size = 0;  // required size; 0: the driver's choice
  std::array<uint32_t, 3> groups{1, 1, 1};
  std::array<std::byte, 128> push{};
  uint32_t push_bytes = 0;
  bool uses_scratch = false;  // must not overlap with another that does

  template <class Push>
  void set_push(const Push& value) {
    static_assert(sizeof(Push) <= sizeof(push), "Vulkan guarantees 128 bytes of push constants");
    std::memcpy(push.data(), &value, sizeof(Push));
    push_bytes = sizeof(Push);
  }
};

// Of no workgroups in some dimension: it is not recorded.
inline bool is_empty(const Dispatch& dispatch) {
  return dispatch.groups[0] == 0 || dispatch.groups[1] == 0 || dispatch.groups[2] == 0;
}

// Device address of a tensor's first element; 0 for an empty tensor.
uint64_t address_of(const Tensor& tensor);

// The dispatch that computes `operation` on a device with these traits. Pure: the operation has been check()ed.
Dispatch lower(const Operation& operation, const Traits& traits);

// All ways to compute it that a benchmark may compare; none where there is no choice.
struct Variant {
  std::string name;  // kernel and tile sizes
  Dispatch dispatch;
};
std::vector<Variant> variants(const Operation& operation, const Traits& traits);

// A product by one of the tiles among which rates decide, and what it is to tile_microseconds().
struct ProductTile {
  std::string name;       // as in the files of rates/
  uint32_t units, steps;  // compute units that share the dispatch's workgroups; steps of a workgroup
  Dispatch dispatch;
};
std::vector<ProductTile> product_tiles(const Linear& op, const Traits& traits);

}  // namespace turboesm::vulkan
