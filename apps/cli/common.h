#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "model/checkpoint.h"
#include "model/profile.h"
#include "model/roofline.h"
#include "runtime/backend.h"
#include "runtime/format.h"

namespace turboesm::cli {

// Options that several commands share; each add_* declares one with its help text.
struct Common {
  std::string model;  // folder; empty: the one that ships
  std::string device = "auto";
  std::string dtype = "f32";
  std::string json;  // file, "-" for standard output, empty for none
  bool quiet = false;
  bool profile = false;
  bool plain_kernels = false;
  bool no_pipeline_cache = false;
  bool stable_sums = false;  // DeviceOptions::stable_sums, which no option sets
  uint32_t threads = 0;      // of the CPU back end; 0: one a core

  void add_model(CLI::App& app);
  void add_device(CLI::App& app);  // --device, --threads, --no-matrix-cores
  void add_dtype(CLI::App& app);
  void add_json(CLI::App& app);
  void add_quiet(CLI::App& app);
  void add_profile(CLI::App& app);
  void add_usual(CLI::App& app);  // all of the above but --profile

  std::filesystem::path model_directory() const;
  DType parsed_dtype() const;
  // The sizes of an official model, or those of --model when `size` is empty.
  Esm2Config config_of(const std::string& size) const;
  // Opens the device and says on standard error, unless quiet, what was taken and why.
  std::unique_ptr<Device> open() const;
  // Writes to the file (or standard output); nothing when --json was not given.
  void write_json(const nlohmann::json& json) const;
  // True when standard output belongs to the JSON.
  bool json_on_stdout() const { return json == "-"; }
};

// For CLI11's check() of an option that names a file to write: throws what writing would, while the command line is
// read and not after the work. "-" is fine.
std::string check_output_file(const std::string& name);

// Writes to standard output ("-") or to a file: aside first, then under its name.
void write_text(const std::string& name, const std::string& text);

// Columns padded to their widest cell; the first left-aligned, the others right-aligned.
void print_table(const std::vector<std::vector<std::string>>& rows);

// The device's limits where --roofline asked for them.
using Limits = std::optional<DeviceLimits>;

// The roofline's columns of a table, none without limits: the heading's cells, and those of a row that took `seconds`.
std::vector<std::string> roofline_heading(const Limits& limits);
std::vector<std::string> roofline_cells(const Work& work, double seconds, const Limits& limits);
void add_columns(std::vector<std::string>& row, const std::vector<std::string>& columns);

// A row for each kind of operation: count, time, rates, the roofline.
void print_profile(const Profile& profile, const Limits& limits = {});

nlohmann::json to_json(const DeviceInfo& info);
nlohmann::json to_json(const MemoryReport& report);

// Error(usage) unless `batch` sequences of `length` tokens make a batch.
void check_batch(uint32_t batch, uint32_t length);

// A note or warning on standard error.
void note(const std::string& text);
void warn(const std::string& text);

}  // namespace turboesm::cli
