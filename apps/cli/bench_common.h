#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/cli/common.h"
#include "model/bench.h"

// What the benchmarks share: options, and how they report.
namespace turboesm::cli {

struct BenchCommand {
  Common common;
  BenchOptions bench;
  bool roofline = false;

  void add_timing(CLI::App& command);  // --seconds, --roofline and what all commands have

  // Nothing without --roofline. To be called last: the measurement takes memory of its own.
  Limits measure_limits(Device& device) const;
};

// The subcommands that have files of their own.
void add_bench_embed(CLI::App& bench);
void add_bench_load(CLI::App& bench);

// Program and device: where the figures of a report come from.
nlohmann::json bench_header(const Device& device);
nlohmann::json to_json(const Timing& timing);
nlohmann::json to_json(const Profile& profile, const Limits& limits);  // its rows, each with its roofline

std::string format_ms(double seconds);
std::string format_rate(double flops_per_second);  // in TFLOP/s, or in GFLOP/s below one
std::string spread(const Timing& timing);          // "1.27 ms (median of 40, 1.26 ms to 1.30 ms)"

// The roofline beside a row: `seconds` is what it took. Without limits the JSON gets the work alone and nothing is
// printed.
void add_limits(nlohmann::json& report, const Limits& limits);
void add_roofline(nlohmann::json& row, const Work& work, double seconds, const Limits& limits);
void print_roofline(const Work& work, double seconds, const Limits& limits);
void print_limits(const Limits& limits);

}  // namespace turboesm::cli
