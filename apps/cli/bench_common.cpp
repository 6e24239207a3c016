#include "apps/cli/bench_common.h"

#include <fmt/format.h>

#include "version.h"

namespace turboesm::cli {

void BenchCommand::add_timing(CLI::App& command) {
  command.add_option("--seconds", bench.seconds, "Time to spend on repeats")->capture_default_str();
  command.add_flag("--roofline", roofline,
                   "Also measure the device's bandwidth (a copy) and rate (a large product), and say how much of the "
                   "faster possible time was reached, and which of the two sets it");
  common.add_device(command);
  common.add_json(command);
  common.add_quiet(command);
}

Limits BenchCommand::measure_limits(Device& device) const {
  if (!roofline) return std::nullopt;
  return turboesm::measure_limits(device, common.parsed_dtype());
}

nlohmann::json bench_header(const Device& device) {
  return {{"turboesm", fmt::format("{} ({})", TURBOESM_VERSION, TURBOESM_COMMIT)},
          {"device", cli::to_json(device.info())}};
}

nlohmann::json to_json(const Timing& t) {
  return {{"median_s", t.median},
          {"fastest_s", t.fastest},
          {"slowest_s", t.slowest},
          {"repeats", t.repeats},
          {"warm_up", t.warm_up}};
}

nlohmann::json to_json(const Profile& profile, const Limits& limits) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Profile::Row& row : profile.rows()) {
    rows.push_back({{"operation", row.name}, {"count", row.count}, {"seconds", row.seconds}});
    add_roofline(rows.back(), {row.flops, double(row.bytes)}, row.seconds, limits);
  }
  return rows;
}

std::string format_ms(double seconds) {
  const double ms = seconds * 1e3;
  return fmt::format("{:.{}f} ms", ms, ms < 1 ? 4 : ms < 100 ? 3 : 1);
}

std::string format_rate(double flops_per_second) {
  return flops_per_second < 1e12 ? fmt::format("{:.1f} GFLOP/s", flops_per_second / 1e9)
                                 : fmt::format("{:.2f} TFLOP/s", flops_per_second / 1e12);
}

std::string spread(const Timing& t) {
  return fmt::format("{} (median of {}, {} to {})", format_ms(t.median), t.repeats, format_ms(t.fastest),
                     format_ms(t.slowest));
}

void add_limits(nlohmann::json& report, const Limits& limits) {
  if (limits)
    report["limits"] = {{"bytes_per_second", limits->bytes_per_second}, {"flops_per_second", limits->flops_per_second}};
}

void add_roofline(nlohmann::json& row, const Work& work, double seconds, const Limits& limits) {
  row["flops"] = work.flops;
  row["least_bytes"] = work.bytes;
  if (!limits) return;
  const Roofline floors = roofline(work, *limits);
  row["memory_floor_s"] = floors.memory;
  row["arithmetic_floor_s"] = floors.arithmetic;
  row["floor_s"] = floors.floor();
  row["bound_by"] = floors.bound_by();
  row["share_of_limit"] = floors.floor() / seconds;
}

void print_roofline(const Work& work, double seconds, const Limits& limits) {
  if (!limits) return;
  const Roofline floors = roofline(work, *limits);
  fmt::print("  floor   {} by {} (memory {}, arithmetic {}): {:.1f} % reached\n", format_ms(floors.floor()),
             floors.bound_by(), format_ms(floors.memory), format_ms(floors.arithmetic), 100 * floors.floor() / seconds);
  print_limits(limits);
}

void print_limits(const Limits& limits) {
  if (limits)
    fmt::print("  limits  {:.1f} GB/s copied, {} in a large product, as measured\n", limits->bytes_per_second / 1e9,
               format_rate(limits->flops_per_second));
}

}  // namespace turboesm::cli
