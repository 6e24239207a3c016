#include "runtime/device_choice.h"

#include <charconv>
#include <optional>

#include "runtime/error.h"

namespace turboesm {
namespace {

// Place in the order of preference, 0 first; nothing for what "auto" never takes.
std::optional<int> rank(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::discrete_gpu: return 0;
    case DeviceKind::integrated_gpu: return 1;
    case DeviceKind::virtual_gpu: return 2;
    case DeviceKind::cpu: return 3;
    case DeviceKind::software_gpu: return std::nullopt;
  }
  return std::nullopt;
}

bool is_candidate(const DeviceListing& listing) { return listing.problem.empty() && rank(listing.info.kind); }

std::string reason_against(const DeviceListing& listing, const DeviceListing& taken) {
  if (!listing.problem.empty()) return listing.problem;
  if (listing.info.kind == DeviceKind::software_gpu) return "a software driver, used only when named";
  if (listing.info.kind == taken.info.kind) return fmt::format("{} comes first", taken.info.spec);
  return fmt::format("{}s rank after {}s", name_of(listing.info.kind), name_of(taken.info.kind));
}

std::string why_nothing(std::span<const DeviceListing> listings, std::span<const std::string> problems) {
  std::string reasons;
  const auto add = [&](std::string_view reason) {
    reasons += fmt::format("{}{}", reasons.empty() ? "" : "; ", reason);
  };
  for (const DeviceListing& listing : listings)
    add(fmt::format("{} ({}): {}", listing.info.spec, listing.info.name, reason_against(listing, listing)));
  for (const std::string& problem : problems) add(problem);
  return reasons.empty() ? "none is listed" : reasons;
}

}  // namespace

DeviceSpec parse_device_spec(std::string_view spec) {
  const size_t colon = spec.find(':');
  DeviceSpec result{spec.substr(0, colon), 0};
  bool valid = !result.backend.empty();
  if (colon != std::string_view::npos) {
    const std::string_view digits = spec.substr(colon + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), result.index);
    valid = valid && error == std::errc() && end == digits.data() + digits.size();
  }
  if (!valid)
    throw_error(ErrorKind::usage,
                "device '{}' means nothing: write auto, or a back end with or without a number, such "
                "as cpu, vulkan or vulkan:1",
                spec);
  return result;
}

DeviceChoice choose_device(std::span<const DeviceListing> listings, std::span<const std::string> problems) {
  const DeviceListing* best = nullptr;
  for (const DeviceListing& listing : listings)
    if (is_candidate(listing) && (!best || *rank(listing.info.kind) < *rank(best->info.kind))) best = &listing;
  if (!best) throw_error(ErrorKind::device, "no device can be used: {}", why_nothing(listings, problems));

  DeviceChoice choice{size_t(best - listings.data()), {}};
  choice.explanation = fmt::format("took {} ({}, {})", best->info.spec, best->info.name, name_of(best->info.kind));
  for (const DeviceListing& listing : listings)
    if (&listing != best)
      choice.explanation += fmt::format("\npassed over {} ({}): {}", listing.info.spec, listing.info.name,
                                        reason_against(listing, *best));
  for (const std::string& problem : problems) choice.explanation += fmt::format("\n{}", problem);
  return choice;
}

}  // namespace turboesm
