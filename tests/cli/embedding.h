#pragma once

#include <filesystem>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/safetensors.h"
#include "tests/cli/process.h"
#include "tests/golden/golden.h"
#include "tests/unit/files.h"

// What the tests of `embed` share.
namespace turboesm::test {

using Arguments = std::vector<std::string>;

Arguments operator+(Arguments left, const Arguments& right);

std::filesystem::path tiny_model(const std::string& name = "tiny_hd32");  // H = 64, 2 layers, 2 heads

// `embed INPUT -o OUTPUT --device cpu --model` tiny_hd32.
Arguments embed_arguments(const std::filesystem::path& input, const std::filesystem::path& output);

// FASTA text of random proteins of these lengths, named r0, r1, ...; the same for the same arguments.
std::string random_fasta(const std::vector<size_t>& lengths);

// What a run of `embed` left behind.
struct Embedding {
  ProcessResult process;
  SafetensorsFile file;

  golden::Values values(const std::string& tensor) const { return golden::read_floats(file, tensor); }
  std::vector<float> row(const std::string& tensor, size_t index) const;
  nlohmann::json metadata(const std::string& key) const;  // parsed as JSON
};

// Runs embed_arguments() on a safetensors file in `folder`, with `extra` behind them; it must succeed.
Embedding embed(const TemporaryFolder& folder, const std::filesystem::path& input, const Arguments& extra = {},
                const ProcessOptions& options = {});
// The same for FASTA text.
Embedding embed_text(const TemporaryFolder& folder, std::string_view fasta, const Arguments& extra = {});

// golden::relative_error(); 0 also where both sides are equal and hold nothing but zeros, or nothing at all.
double relative_error(std::span<const float> actual, std::span<const float> expected);

// Both hold exactly the same tensors.
void check_equal(const SafetensorsFile& actual, const SafetensorsFile& expected);

// The program ended with `exit_code`, wrote nothing to standard output, and standard error is the one line
// "turboesm: ..." (the program's name) with all of `parts` in it.
void check_refusal(const ProcessResult& result, int exit_code, std::initializer_list<std::string_view> parts,
                   std::string_view program = "turboesm");

// `embed --quiet` of `input` is refused with check_refusal() and leaves nothing in the output's folder.
void check_embed_refused(const std::filesystem::path& input, const std::filesystem::path& model, int exit_code,
                         std::initializer_list<std::string_view> parts);

}  // namespace turboesm::test
