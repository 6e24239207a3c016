#include "runtime/registry.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "runtime/device_choice.h"
#include "runtime/error.h"

namespace turboesm {

// Each back end that this build has defines its own.
#define TURBOESM_BACKEND(name) const Backend& name##_backend();
#include "backends.inc"
#undef TURBOESM_BACKEND

namespace {

constexpr std::array<std::string_view, 3> kFastestFirst{"cuda", "vulkan", "cpu"};

size_t place(const Backend* backend) {
  return size_t(std::find(kFastestFirst.begin(), kFastestFirst.end(), backend->name) - kFastestFirst.begin());
}

std::vector<const Backend*> built_backends() {
  std::vector<const Backend*> built{
#define TURBOESM_BACKEND(name) &name##_backend(),
#include "backends.inc"
#undef TURBOESM_BACKEND
  };
  std::ranges::stable_sort(built, {}, place);
  return built;
}

std::string names_of_backends() {
  std::string names;
  for (const Backend* backend : backends()) names += fmt::format("{}{}", names.empty() ? "" : ", ", backend->name);
  return names;
}

OpenedDevice open_named(std::string_view spec, const DeviceOptions& options) {
  const DeviceSpec wanted = parse_device_spec(spec);
  const Backend* backend = find_backend(wanted.backend);
  if (!backend)
    throw_error(ErrorKind::usage, "device '{}': this build has no back end of that name; it has {}", spec,
                names_of_backends());
  OpenedDevice opened{backend->open(wanted.index, options), {}};
  const DeviceInfo& info = opened.device->info();
  opened.explanation = fmt::format("took {} ({}, {}), as asked", info.spec, info.name, name_of(info.kind));
  return opened;
}

}  // namespace

std::span<const Backend* const> backends() {
  static const std::vector<const Backend*> built = built_backends();
  return built;
}

const Backend* find_backend(std::string_view name) {
  for (const Backend* backend : backends())
    if (backend->name == name) return backend;
  return nullptr;
}

DeviceList list_devices() {
  DeviceList list;
  for (const Backend* backend : backends()) {
    std::string problem;
    std::ranges::move(backend->list(problem), std::back_inserter(list.devices));
    if (!problem.empty()) list.problems.push_back(std::move(problem));
  }
  return list;
}

OpenedDevice open_device(std::string_view spec, const DeviceOptions& options) {
  if (spec != "auto") return open_named(spec, options);
  const DeviceList list = list_devices();
  DeviceChoice choice = choose_device(list.devices, list.problems);
  const DeviceSpec taken = parse_device_spec(list.devices[choice.index].info.spec);
  return {find_backend(taken.backend)->open(taken.index, options), std::move(choice.explanation)};
}

}  // namespace turboesm
