#include <optional>

#include <fmt/format.h>

#include "apps/cli/commands.h"
#include "apps/cli/common.h"
#include "model/plan.h"

namespace turboesm::cli {
namespace {

struct Options {
  Common common;
  std::string size;
  uint32_t length = 1024, batch = 1;
  std::vector<std::string> include;
  std::string kv;
};

ForwardOptions forward_options(const Options& o, const Esm2Config& config) {
  ForwardOptions forward = plan_options(config);
  for (const std::string& what : o.include) {
    if (what == "residues" || what == "bos") forward.hidden = true;
    if (what == "logits") forward.logits = true;
    if (what == "contacts") forward.contacts = true;
  }
  return forward;
}

void run(const Options& o) {
  check_batch(o.batch, o.length);
  const Esm2Config config = o.common.config_of(o.size);
  const DType dtype = o.common.parsed_dtype();
  const std::unique_ptr<Device> device = o.common.open();
  const ForwardOptions forward = forward_options(o, config);
  const std::optional<KvPreset> kv = o.kv.empty() ? std::nullopt : std::optional(parse_kv_preset(o.kv));
  const KvPreset* preset = kv ? &*kv : nullptr;
  const MemoryPlan plan =
      plan_memory(config, dtype, BatchShape::uniform(o.batch, o.length), forward, device->info(), preset);
  const uint64_t budget = device->memory().limit_bytes();
  const uint32_t most = max_batch(config, dtype, o.length, forward, device->info(), budget, preset);

  nlohmann::json json{{"parameters", config.parameter_count()},
                      {"dtype", o.common.dtype},
                      {"length", o.length},
                      {"batch", o.batch},
                      {"total_bytes", plan.total()},
                      {"budget_bytes", budget},
                      {"fits", most >= o.batch},
                      {"max_batch", most},
                      {"device", to_json(device->info())},
                      {"rows", nlohmann::json::array()}};
  for (uint32_t i = 0; i < kMemoryLabels; ++i)
    json["by_label"][std::string(name_of(MemoryLabel(i)))] = plan.bytes(MemoryLabel(i));
  std::vector<std::vector<std::string>> table;
  for (const MemoryPlan::Row& row : plan.rows) {
    json["rows"].push_back({{"what", row.what}, {"label", name_of(row.label)}, {"bytes", row.bytes}});
    table.push_back({row.what, std::string(name_of(row.label)), format_bytes(row.bytes)});
  }
  table.push_back({"total", "", format_bytes(plan.total())});
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("{} parameters in {}, {} x {} tokens\n", format_count(double(config.parameter_count())), o.common.dtype,
             o.batch, o.length);
  print_table(table);
  fmt::print("{}: {} of {}; at most {} sequences of this length at once\n", most >= o.batch ? "fits" : "does not fit",
             format_bytes(plan.total()), format_bytes(budget), most);
}

}  // namespace

void add_plan(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plan", "Say what device memory a run takes, before anything runs");
  command->add_option("--size", o->size, "An official size instead of --model: 8M, 35M, 150M, 650M, 3B or 15B");
  command->add_option("--length", o->length, "Tokens a sequence, <cls> and <eos> counted")->capture_default_str();
  command->add_option("--batch", o->batch, "Sequences at once")->capture_default_str();
  command->add_option("--include", o->include, "As for embed: residues, logits, bos, contacts (means always)")
      ->delimiter(',')
      ->check(CLI::IsMember({"mean", "residues", "logits", "bos", "contacts"}));
  command->add_option("--kv", o->kv, "Also a KV cache of this preset for these sequences, and decoding on it")
      ->type_name("PRESET");
  o->common.add_usual(*command);
  command->callback([o] { run(*o); });
}

}  // namespace turboesm::cli
