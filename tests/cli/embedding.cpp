#include "tests/cli/embedding.h"

#include <algorithm>

#include "runtime/random.h"

namespace turboesm::test {

Arguments operator+(Arguments left, const Arguments& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

std::filesystem::path tiny_model(const std::string& name) { return golden::model_directory(name); }

Arguments embed_arguments(const std::filesystem::path& input, const std::filesystem::path& output) {
  return {"embed", input.string(), "-o", output.string(), "--device", "cpu", "--model", tiny_model().string()};
}

std::string random_fasta(const std::vector<size_t>& lengths) {
  constexpr std::string_view kResidues = "ACDEFGHIKLMNPQRSTVWY";
  std::string text;
  uint32_t counter = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    text += fmt::format(">r{}\n", i);
    for (size_t k = 0; k < lengths[i]; ++k) text += kResidues[pcg_hash(++counter) % kResidues.size()];
    text += '\n';
  }
  return text;
}

std::vector<float> Embedding::row(const std::string& tensor, size_t index) const {
  const golden::Values all = values(tensor);
  REQUIRE(all.shape.size() == 2);
  REQUIRE(index < all.shape[0]);
  const auto begin = all.data.begin() + ptrdiff_t(index * all.shape[1]);
  return {begin, begin + ptrdiff_t(all.shape[1])};
}

nlohmann::json Embedding::metadata(const std::string& key) const {
  const auto found = file.metadata().find(key);
  INFO("metadata " << key);
  REQUIRE(found != file.metadata().end());
  return nlohmann::json::parse(found->second);
}

Embedding embed(const TemporaryFolder& folder, const std::filesystem::path& input, const Arguments& extra,
                const ProcessOptions& options) {
  const std::filesystem::path output = unique_sibling(folder / "x").replace_extension(".safetensors");
  ProcessResult result = run(embed_arguments(input, output) + extra, options);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  return {std::move(result), SafetensorsFile::open(output)};
}

Embedding embed_text(const TemporaryFolder& folder, std::string_view fasta, const Arguments& extra) {
  return embed(folder, folder.write("text.fasta", fasta), extra);
}

double relative_error(std::span<const float> actual, std::span<const float> expected) {
  const auto zero = [](float value) { return value == 0; };
  if (std::ranges::all_of(expected, zero) && std::ranges::equal(actual, expected)) return 0;
  return golden::relative_error(actual, expected);
}

void check_equal(const SafetensorsFile& actual, const SafetensorsFile& expected) {
  CHECK(actual.names() == expected.names());
  for (const auto& [name, tensor] : expected.tensors()) {
    INFO(name);
    const TensorEntry* other = actual.find(name);
    REQUIRE(other);
    CHECK(other->shape == tensor.shape);
    CHECK(std::ranges::equal(other->data, tensor.data));
  }
}

void check_refusal(const ProcessResult& result, int exit_code, std::initializer_list<std::string_view> parts,
                   std::string_view program) {
  INFO("standard error: " << result.err);
  CHECK(result.exit_code == exit_code);
  CHECK(result.out.empty());
  CHECK(result.err.starts_with(std::string(program) + ": "));
  CHECK(std::ranges::count(result.err, '\n') == 1);
  CHECK(result.err.ends_with('\n'));
  for (std::string_view part : parts) {
    INFO("must contain: " << part);
    CHECK(result.err.find(part) != std::string::npos);
  }
}

void check_embed_refused(const std::filesystem::path& input, const std::filesystem::path& model, int exit_code,
                         std::initializer_list<std::string_view> parts) {
  for (const char* name : {"out.safetensors", "out.npz"}) {
    INFO(name);
    const TemporaryFolder folder;
    check_refusal(run({"embed", input.string(), "-o", (folder / name).string(), "--device", "cpu", "--model",
                       model.string(), "--include", "mean,residues", "--quiet"}),
                  exit_code, parts);
    CHECK(folder.list().empty());
  }
}

}  // namespace turboesm::test
