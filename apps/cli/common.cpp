#include "apps/cli/common.h"

#include <algorithm>
#include <cstdio>
#include <fstream>

#include <fmt/format.h>

#include "runtime/error.h"
#include "runtime/files.h"
#include "runtime/platform.h"
#include "runtime/registry.h"

namespace turboesm::cli {
namespace {

constexpr const char* kTf32 = "tf32";

}  // namespace

void Common::add_model(CLI::App& app) {
  app.add_option("--model", model, "Hugging Face folder of an ESM-2 model (default: the small one that ships)")
      ->type_name("DIR");
}

void Common::add_device(CLI::App& app) {
  app.add_option("--device", device, "auto, cpu, vulkan or cuda, the latter also as vulkan:N, cuda:N")
      ->capture_default_str()
      ->type_name("SPEC");
  app.add_option("--threads", threads, "Threads of the CPU back end (default: one a core)")->type_name("N");
  app.add_flag("--no-matrix-cores", plain_kernels, "Use the plain kernels even where the device has matrix cores");
}

void Common::add_dtype(CLI::App& app) {
  app.add_option("--dtype", dtype,
                 "Type of weights and activations on the device: f32, f16 or bf16; tf32: f32 with "
                 "products in NVIDIA's TF32 (CUDA only)")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "f16", "bf16", kTf32}));
}

void Common::add_json(CLI::App& app) {
  app.add_option("--json", json, "Write the result as JSON to a file (-: standard output)")
      ->type_name("FILE")
      ->check(check_output_file);
}

void Common::add_quiet(CLI::App& app) { app.add_flag("-q,--quiet", quiet, "Say nothing but errors"); }

void Common::add_profile(CLI::App& app) {
  app.add_flag("--profile", profile, "Time every operation on the device and print a table");
}

void Common::add_usual(CLI::App& app) {
  add_model(app);
  add_device(app);
  add_dtype(app);
  add_json(app);
  add_quiet(app);
}

std::filesystem::path Common::model_directory() const {
  return model.empty() ? default_model_directory() : std::filesystem::path(model);
}

DType Common::parsed_dtype() const { return dtype == kTf32 ? DType::f32 : *parse_dtype(dtype); }

Esm2Config Common::config_of(const std::string& size) const {
  return size.empty() ? load_config(model_directory() / "config.json") : official_config(size);
}

std::unique_ptr<Device> Common::open() const {
  DeviceOptions options;
  options.matrix_cores = !plain_kernels;
  options.stable_sums = stable_sums;
  options.tf32 = dtype == kTf32;
  options.threads = threads;
  if (!no_pipeline_cache) options.cache_dir = user_cache_dir();
  OpenedDevice opened = open_device(device, options);
  if (options.tf32 && !opened.device->info().spec.starts_with("cuda"))
    throw_error(ErrorKind::usage, "--dtype {}: {} does not have it, only CUDA devices do", kTf32,
                opened.device->info().spec);
  if (!quiet) note(opened.explanation);
  return std::move(opened.device);
}

void Common::write_json(const nlohmann::json& value) const {
  if (json.empty()) return;
  write_text(json, value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

std::string check_output_file(const std::string& name) {
  if (name == "-") return {};
  std::error_code error;
  if (std::filesystem::is_directory(name, error)) throw_error(ErrorKind::input, "{}: is a directory", name);
  const std::filesystem::path probe = unique_sibling(name);
  const bool writable = std::ofstream(probe, std::ios::binary).is_open();
  std::filesystem::remove(probe, error);
  if (!writable) throw_error(ErrorKind::input, "{}: cannot write in its folder", name);
  return {};
}

void write_text(const std::string& name, const std::string& text) {
  if (name == "-") {
    std::fputs(text.c_str(), stdout);
    return;
  }
  write_file(name, text);
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) {
      if (widths.size() <= i) widths.push_back(0);
      widths[i] = std::max(widths[i], row[i].size());
    }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i)
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
    line.erase(line.find_last_not_of(' ') + 1);
    fmt::print("{}\n", line);
  }
}

std::vector<std::string> roofline_heading(const Limits& limits) {
  if (!limits) return {};
  return {"memory ms", "arithmetic ms", "bound by", "reached"};
}

std::vector<std::string> roofline_cells(const Work& work, double seconds, const Limits& limits) {
  if (!limits) return {};
  const Roofline floors = roofline(work, *limits);
  return {fmt::format("{:.4f}", floors.memory * 1e3), fmt::format("{:.4f}", floors.arithmetic * 1e3),
          std::string(floors.bound_by()), fmt::format("{:.1f} %", 100 * floors.floor() / seconds)};
}

void add_columns(std::vector<std::string>& row, const std::vector<std::string>& columns) {
  row.insert(row.end(), columns.begin(), columns.end());
}

void print_profile(const Profile& profile, const Limits& limits) {
  std::vector<std::vector<std::string>> table{{"operation", "count", "ms", "TFLOP/s", "GB/s"}};
  add_columns(table.front(), roofline_heading(limits));
  for (const Profile::Row& row : profile.rows()) {
    table.push_back({row.name, std::to_string(row.count), fmt::format("{:.3f}", row.seconds * 1e3),
                     fmt::format("{:.2f}", row.flops / row.seconds / 1e12),
                     fmt::format("{:.0f}", double(row.bytes) / row.seconds / 1e9)});
    add_columns(table.back(), roofline_cells({row.flops, double(row.bytes)}, row.seconds, limits));
  }
  print_table(table);
}

nlohmann::json to_json(const DeviceInfo& info) {
  return {{"spec", info.spec},
          {"name", info.name},
          {"driver", info.driver},
          {"kind", name_of(info.kind)},
          {"memory_bytes", info.memory_bytes},
          {"matrix_cores",
           {{"f16", bool(info.matrix_core_dtypes & kF16)}, {"bf16", bool(info.matrix_core_dtypes & kBF16)}}},
          {"features", info.features}};
}

nlohmann::json to_json(const MemoryReport& report) {
  nlohmann::json json;
  for (uint32_t i = 0; i < kMemoryLabels; ++i)
    json[std::string(name_of(MemoryLabel(i)))] = {{"bytes", report.by_label[i].bytes},
                                                  {"peak", report.by_label[i].peak}};
  json["total"] = {{"bytes", report.total.bytes}, {"peak", report.total.peak}};
  json["device_bytes"] = report.device_bytes;
  json["budget_bytes"] = report.budget_bytes;
  json["driver_bytes"] = report.driver_bytes;
  return json;
}

void check_batch(uint32_t batch, uint32_t length) {
  if (length < 2)
    throw_error(ErrorKind::usage, "--length {}: a sequence has at least 2 tokens, <cls> and <eos>", length);
  if (batch < 1 || uint64_t(batch) * length > INT32_MAX)
    throw_error(ErrorKind::usage, "--batch {} x --length {}: between 1 and 2^31 - 1 tokens", batch, length);
}

void note(const std::string& text) { fmt::print(stderr, "{}\n", text); }
void warn(const std::string& text) { fmt::print(stderr, "warning: {}\n", text); }

}  // namespace turboesm::cli
