#include <fmt/format.h>
#include <fmt/ranges.h>

#include "apps/cli/commands.h"
#include "apps/cli/common.h"
#include "runtime/registry.h"

namespace turboesm::cli {
namespace {

void print(const DeviceListing& device) {
  fmt::print("{:<10} {}\n", device.info.spec, device.info.name);
  fmt::print("           {}, {}", name_of(device.info.kind), device.info.driver);
  if (device.info.memory_bytes) fmt::print(", {}", format_bytes(device.info.memory_bytes));
  fmt::print("\n");
  if (!device.info.features.empty()) fmt::print("           {}\n", fmt::join(device.info.features, ", "));
  if (!device.problem.empty()) fmt::print("           cannot be used: {}\n", device.problem);
}

void run(const Common& common) {
  const DeviceList list = list_devices();
  nlohmann::json json{{"devices", nlohmann::json::array()}, {"problems", list.problems}};
  for (const DeviceListing& device : list.devices) {
    json["devices"].push_back(to_json(device.info));
    json["devices"].back()["problem"] = device.problem;
  }
  common.write_json(json);
  if (common.json_on_stdout()) return;
  for (const DeviceListing& device : list.devices) print(device);
  for (const std::string& problem : list.problems) fmt::print("{}\n", problem);
}

}  // namespace

void add_devices(CLI::App& app) {
  auto common = std::make_shared<Common>();
  CLI::App* command = app.add_subcommand("devices", "List the devices that can compute, and what each offers");
  common->add_json(*command);
  command->callback([common] { run(*common); });
}

}  // namespace turboesm::cli
