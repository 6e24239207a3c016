// embed_spirv OUT.cpp MODULE.spv...: writes a C++ file that defines turboesm::spirv_modules() (shaders/shaders.h), each
// module under its file's stem.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <map>
#include <string>

#include "shaders/tools/spirv_file.h"

namespace {

void write_words(std::ofstream& out, const std::vector<uint32_t>& words) {
  constexpr size_t kWordsPerLine = 10;
  for (size_t i = 0; i < words.size(); ++i) out << words[i] << (i % kWordsPerLine == kWordsPerLine - 1 ? ",\n" : ",");
}

void embed(const std::filesystem::path& output, const std::map<std::string, std::filesystem::path>& modules) {
  std::ofstream out(output);
  out << "#include \"shaders/shaders.h\"\n\n#include <array>\n\nnamespace turboesm {\nnamespace {\n\n";
  for (const auto& [name, path] : modules) {
    out << "constexpr uint32_t k_" << name << "[] = {\n";
    write_words(out, read_spirv(path));
    out << "};\n\n";
  }
  out << "constexpr std::array<SpirvModule, " << modules.size() << "> kModules{{\n";
  for (const auto& [name, path] : modules) out << "    {\"" << name << "\", k_" << name << "},\n";
  out << "}};\n\n}  // namespace\n\nstd::span<const SpirvModule> spirv_modules() { return kModules; }\n\n"
      << "}  // namespace turboesm\n";
  out.close();
  if (!out) throw std::runtime_error(output.string() + ": cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: embed_spirv OUT.cpp MODULE.spv...\n");
    return 2;
  }
  try {
    std::map<std::string, std::filesystem::path> modules;  // sorted by name, as spirv() searches them
    for (int i = 2; i < argc; ++i) modules.emplace(std::filesystem::path(argv[i]).stem().string(), argv[i]);
    embed(argv[1], modules);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "embed_spirv: %s\n", error.what());
    return 1;
  }
}
