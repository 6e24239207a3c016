#include <optional>

#include <fmt/format.h>

#include "apps/cli/bench_common.h"
#include "apps/cli/commands.h"
#include "runtime/error.h"

namespace turboesm::cli {
namespace {

struct Options : BenchCommand {
  uint64_t megabytes = 0;
  LinearShape linear;
  bool tune = false;
  AttentionShape attention;
  std::string size;
  uint32_t batch = 1, length = 1024, prompt = 1, seed = 1;
  std::string kv;
  DecodeShape decode;
};

using cli::to_json;

nlohmann::json to_json(const std::vector<VariantTiming>& variants) {
  nlohmann::json json = nlohmann::json::array();
  for (const VariantTiming& variant : variants)
    json.push_back({{"name", variant.name}, {"time", to_json(variant.device)}});
  return json;
}

void print_variants(const std::vector<VariantTiming>& variants, double flops) {
  for (const VariantTiming& variant : variants)
    fmt::print("  {:<32} {:>9.1f} us {:>7.2f} TFLOP/s\n", variant.name, variant.device.median * 1e6,
               flops / variant.device.median / 1e12);
}

void print_rates(Device& device) {
  const std::string rates = device.tune();
  if (rates.empty())
    throw_error(ErrorKind::usage, "--tune: {} chooses its kernels by no file of rates", device.info().spec);
  fmt::print("{}", rates);
}

void check_decode(const DecodeShape& shape) {
  if (shape.sequences == 0 || shape.context == 0 || shape.heads == 0 || shape.queries == 0 || shape.queries > 4)
    throw_error(ErrorKind::usage, "--batch, --context and --heads must be at least 1, --queries from 1 to 4");
  if (shape.head_dim == 0 || shape.head_dim % 8 != 0 || shape.head_dim > 256)
    throw_error(ErrorKind::usage, "--head-dim {}: a multiple of 8, at most 256", shape.head_dim);
  constexpr uint64_t kMost = uint64_t(1) << 31;
  if (uint64_t(shape.sequences) * shape.context >= kMost ||
      uint64_t(shape.sequences) * shape.context * shape.heads >= kMost * 8)
    throw_error(ErrorKind::usage, "--batch {} x --context {}: too many tokens", shape.sequences, shape.context);
}

void run_copy(const Options& o) {
  const std::unique_ptr<Device> device = o.common.open();
  const uint64_t megabytes = o.megabytes ? o.megabytes : runs_on_gpu(*device) ? 1024 : 256;
  const CopyBench bench = bench_copy(*device, megabytes << 20, o.bench);
  const Limits limits = o.measure_limits(*device);
  nlohmann::json json = bench_header(*device);
  json["copy"] = {
      {"bytes", bench.bytes}, {"bytes_per_second", bench.bytes_per_second()}, {"time", to_json(bench.device)}};
  add_roofline(json["copy"], bench.work(), bench.device.median, limits);
  add_limits(json, limits);
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("copy of {}: {}, {:.1f} GB/s read and written\n", format_bytes(bench.bytes), spread(bench.device),
             bench.bytes_per_second() / 1e9);
  print_roofline(bench.work(), bench.device.median, limits);
}

void run_linear(const Options& o) {
  LinearShape shape = o.linear;
  shape.dtype = o.common.parsed_dtype();
  if (shape.rows == 0 || shape.inputs == 0 || shape.outputs == 0)
    throw_error(ErrorKind::usage, "--rows, --inputs and --outputs must be at least 1");
  if (shape.epilogue == "rope" && shape.outputs % 192 != 0)
    throw_error(ErrorKind::usage, "--outputs {}: with --epilogue rope a multiple of 192, three times heads of 64",
                shape.outputs);
  const std::unique_ptr<Device> device = o.common.open();
  if (o.tune) return print_rates(*device);
  const LinearBench bench = bench_linear(*device, shape, o.bench);
  const Limits limits = o.measure_limits(*device);
  nlohmann::json json = bench_header(*device);
  json["linear"] = {{"rows", shape.rows},           {"inputs", shape.inputs},
                    {"outputs", shape.outputs},     {"dtype", o.common.dtype},
                    {"epilogue", shape.epilogue},   {"flops_per_second", bench.flops_per_second()},
                    {"time", to_json(bench.device)}};
  add_roofline(json["linear"], bench.work, bench.device.median, limits);
  add_limits(json, limits);
  json["variants"] = to_json(bench.variants);
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("linear {} x {} x {} {} {}: {}, {:.2f} TFLOP/s\n", shape.rows, shape.inputs, shape.outputs, o.common.dtype,
             shape.epilogue, spread(bench.device), bench.flops_per_second() / 1e12);
  print_roofline(bench.work, bench.device.median, limits);
  print_variants(bench.variants, shape.flops());
}

void run_attention(const Options& o) {
  AttentionShape shape = o.attention;
  shape.dtype = o.common.parsed_dtype();
  check_batch(shape.sequences, shape.length);
  if (shape.heads == 0 || shape.head_dim == 0 || shape.head_dim % 8 != 0 || shape.head_dim > 256)
    throw_error(ErrorKind::usage, "--heads must be at least 1, --head-dim a multiple of 8 and at most 256");
  const std::unique_ptr<Device> device = o.common.open();
  const AttentionBench bench = bench_attention(*device, shape, o.bench);
  const Limits limits = o.measure_limits(*device);
  nlohmann::json json = bench_header(*device);
  json["attention"] = {{"batch", shape.sequences},     {"length", shape.length},
                       {"heads", shape.heads},         {"head_dim", shape.head_dim},
                       {"dtype", o.common.dtype},      {"flops_per_second", bench.flops_per_second()},
                       {"time", to_json(bench.device)}};
  add_roofline(json["attention"], bench.work, bench.device.median, limits);
  add_limits(json, limits);
  json["variants"] = to_json(bench.variants);
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("attention {} x {}, {} heads of {}, {}: {}, {:.2f} TFLOP/s\n", shape.sequences, shape.length, shape.heads,
             shape.head_dim, o.common.dtype, spread(bench.device), bench.flops_per_second() / 1e12);
  print_roofline(bench.work, bench.device.median, limits);
  print_variants(bench.variants, bench.work.flops);
}

void run_prefill(const Options& o) {
  check_batch(o.batch, o.length);
  const Esm2Config config = o.common.config_of(o.size);
  const std::unique_ptr<Device> device = o.common.open();
  Esm2 model(*device, Esm2Weights::random(*device, config, o.common.parsed_dtype(), o.seed));
  BenchOptions options = o.bench;
  options.profile = o.common.profile;
  const PrefillBench bench = bench_prefill(model, o.batch, o.length, options);

  nlohmann::json json = bench_header(*device);
  json["memory"] = to_json(device->memory());
  json["prefill"] = {{"parameters", config.parameter_count()},
                     {"size", o.size},
                     {"dtype", o.common.dtype},
                     {"batch", o.batch},
                     {"length", o.length},
                     {"device_time", to_json(bench.device)},
                     {"host_time", to_json(bench.host)},
                     {"residues_per_second", bench.residues_per_second()},
                     {"flops_per_second", bench.flops_per_second()}};
  std::optional<PrefillBench> filling;
  if (!o.kv.empty()) {
    const KvCache cache(*device, config, random_kv_tables(parse_kv_preset(o.kv), config), o.batch, o.length);
    filling = bench_prefill(model, o.batch, o.length, options, &cache);
    json["filling"] = {{"kv", o.kv},
                       {"device_time", to_json(filling->device)},
                       {"share", filling->device.median / bench.device.median - 1}};
  }
  const Limits limits = o.measure_limits(*device);
  add_limits(json, limits);
  add_roofline(json["prefill"], bench.work, bench.device.median, limits);
  if (o.common.profile) json["profile"] = to_json(bench.profile, limits);
  if (filling) add_roofline(json["filling"], filling->work, filling->device.median, limits);
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("prefill {} {}, {} x {} tokens (random weights)\n", o.size.empty() ? "model" : o.size, o.common.dtype,
             o.batch, o.length);
  fmt::print("  device  {}\n  host    {}\n", spread(bench.device), spread(bench.host));
  fmt::print("  {} residues/s, {:.2f} TFLOP/s\n", format_count(bench.residues_per_second()),
             bench.flops_per_second() / 1e12);
  print_roofline(bench.work, bench.device.median, limits);
  if (filling)
    fmt::print("  filling a {} cache: {}, {:+.1f} %\n", o.kv, spread(filling->device),
               100 * (filling->device.median / bench.device.median - 1));
  if (o.common.profile) print_profile(filling ? filling->profile : bench.profile, limits);
}

void run_generate(const Options& o) {
  check_batch(o.batch, o.length);
  if (o.prompt < 1 || o.prompt >= o.length)
    throw_error(ErrorKind::usage, "--prompt {}: at least 1 token, <cls>, and fewer than --length {}", o.prompt,
                o.length);
  const KvPreset preset = parse_kv_preset(o.kv);
  const Esm2Config config = o.common.config_of(o.size);
  const std::unique_ptr<Device> device = o.common.open();
  Esm2 model(*device, Esm2Weights::random(*device, config, o.common.parsed_dtype(), o.seed));
  BenchOptions options = o.bench;
  options.min_repeats = 1;  // one is some hundreds of steps
  options.profile = o.common.profile;
  const GenerateBench bench = bench_generate(model, preset, o.batch, o.prompt, o.length, options);
  const MemoryReport memory = device->memory();
  const Limits limits = o.measure_limits(*device);
  nlohmann::json json = bench_header(*device);
  json["generate"] = {{"size", o.size},
                      {"dtype", o.common.dtype},
                      {"kv", preset.name},
                      {"batch", bench.sequences},
                      {"prompt", bench.prompt},
                      {"length", bench.length},
                      {"steps", bench.steps},
                      {"prefill_time", to_json(bench.prefill)},
                      {"decode_time", to_json(bench.decode)},
                      {"step_s", bench.seconds_per_step()},
                      {"residues_per_second", bench.residues_per_second()},
                      {"cache_bytes", bench.cache_bytes},
                      {"planned_bytes", bench.planned_bytes}};
  add_roofline(json["generate"], bench.work, bench.seconds_per_step(), limits);
  add_limits(json, limits);
  if (o.common.profile) json["profile"] = to_json(bench.profile, limits);
  json["memory"] = to_json(memory);
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("generate {} {}, {} sequences from {} to {} tokens on {} (random weights)\n",
             o.size.empty() ? "model" : o.size, o.common.dtype, bench.sequences, bench.prompt, bench.length,
             preset.name);
  fmt::print("  prompts {}\n  steps   {}\n", spread(bench.prefill), spread(bench.decode));
  fmt::print("  {} a step, {} residues/s\n", format_ms(bench.seconds_per_step()),
             format_count(bench.residues_per_second()));
  fmt::print("  memory {} at most, planned {} ({:+.1f} %); cache {}\n", format_bytes(memory.total.peak),
             format_bytes(bench.planned_bytes), 100 * (double(memory.total.peak) / double(bench.planned_bytes) - 1),
             format_bytes(bench.cache_bytes));
  print_roofline(bench.work, bench.seconds_per_step(), limits);
  if (o.common.profile) print_profile(bench.profile, limits);
}

nlohmann::json to_json(const DecodeBench& bench) {
  return {{"kv", bench.preset.name},
          {"bits_per_value", kv_bits_per_value(bench.preset.format(), bench.shape.head_dim)},
          {"cache_bytes", bench.cache_bytes},
          {"bytes_per_second", bench.bytes_per_second()},
          {"time", to_json(bench.device)},
          {"variants", to_json(bench.variants)}};
}

void run_decode(const Options& o) {
  const std::vector<KvPreset> presets = parse_kv_presets(o.kv + ",f16");
  check_decode(o.decode);
  const std::unique_ptr<Device> device = o.common.open();
  BenchOptions options = o.bench;
  options.profile = o.common.profile;
  std::vector<DecodeBench> rows;
  for (const KvPreset& preset : presets) {
    if (&preset == &presets.back() && rows.back().preset.name == preset.name) break;  // f16 was asked for
    rows.push_back(bench_decode(*device, preset, o.decode, o.common.parsed_dtype(), options));
  }
  nlohmann::json json = bench_header(*device);
  json["shape"] = {{"batch", o.decode.sequences},   {"context", o.decode.context}, {"heads", o.decode.heads},
                   {"head_dim", o.decode.head_dim}, {"queries", o.decode.queries}, {"dtype", o.common.dtype}};
  const Limits limits = o.measure_limits(*device);
  add_limits(json, limits);
  for (const DecodeBench& row : rows) {
    json["decode"].push_back(to_json(row));
    add_roofline(json["decode"].back(), row.work, row.device.median, limits);
  }
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("decode attention of one layer: {} sequences x {} cached tokens, {} heads of {}, {} quer{} a sequence\n",
             o.decode.sequences, o.decode.context, o.decode.heads, o.decode.head_dim, o.decode.queries,
             o.decode.queries == 1 ? "y" : "ies");
  std::vector<std::vector<std::string>> table{{"cache", "bits", "us", "fastest", "slowest", "MB", "GB/s"}};
  for (const DecodeBench& row : rows)
    table.push_back({row.preset.name, fmt::format("{:.3f}", kv_bits_per_value(row.preset.format(), row.shape.head_dim)),
                     fmt::format("{:.1f}", row.device.median * 1e6), fmt::format("{:.1f}", row.device.fastest * 1e6),
                     fmt::format("{:.1f}", row.device.slowest * 1e6),
                     fmt::format("{:.1f}", double(row.cache_bytes) / 1e6),
                     fmt::format("{:.0f}", row.bytes_per_second() / 1e9)});
  add_columns(table.front(), roofline_heading(limits));
  for (size_t i = 0; i < rows.size(); ++i)
    add_columns(table[i + 1], roofline_cells(rows[i].work, rows[i].device.median, limits));
  print_table(table);
  for (const DecodeBench& row : rows)
    print_variants(row.variants, 4.0 * double(o.decode.sequences) * o.decode.context * o.decode.queries *
                                     o.decode.heads * o.decode.head_dim);
  print_limits(limits);
  if (o.common.profile)
    for (const DecodeBench& row : rows) print_profile(row.profile, limits);
}

void add_variants(CLI::App& command, Options& o) {
  command
      .add_option_function<std::string>(
          "--variants", [&o](const std::string& text) { o.bench.variants = text; },
          "Compare the kernels and tile sizes that the device could use, those whose names contain TEXT")
      ->type_name("TEXT")
      ->expected(0, 1);
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure this device: medians after a warm-up");
  bench->require_subcommand(1);

  auto copy = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("copy", "Memory bandwidth: a copy inside the device");
  command->add_option("--megabytes", copy->megabytes, "Size of the source (default: 1024, on the CPU 256)");
  copy->add_timing(*command);
  command->callback([copy] { run_copy(*copy); });

  auto linear = std::make_shared<Options>();
  command = bench->add_subcommand("linear", "One linear layer");
  command->add_option("--rows", linear->linear.rows, "Rows of x (tokens)")->capture_default_str();
  command->add_option("--inputs", linear->linear.inputs, "Columns of x")->capture_default_str();
  command->add_option("--outputs", linear->linear.outputs, "Columns of y")->capture_default_str();
  command
      ->add_option("--epilogue", linear->linear.epilogue,
                   "What is fused with it, see docs/performance.md; none: no bias either, results in f32")
      ->capture_default_str()
      ->check(CLI::IsMember({"none", "bias", "gelu", "residual", "rope"}));
  add_variants(*command, *linear);
  command->add_flag("--tune", linear->tune,
                    "Measure all tiles and print the file by which Vulkan chooses among them on such devices");
  linear->common.add_dtype(*command);
  linear->add_timing(*command);
  command->callback([linear] { run_linear(*linear); });

  auto attention = std::make_shared<Options>();
  command = bench->add_subcommand("attention", "Attention inside sequences of one length, one layer");
  command->add_option("--batch", attention->attention.sequences, "Sequences at once")->capture_default_str();
  command->add_option("--length", attention->attention.length, "Tokens a sequence")->capture_default_str();
  command->add_option("--heads", attention->attention.heads, "Heads of the layer")->capture_default_str();
  command->add_option("--head-dim", attention->attention.head_dim, "Values of a head")->capture_default_str();
  add_variants(*command, *attention);
  attention->common.add_dtype(*command);
  attention->add_timing(*command);
  command->callback([attention] { run_attention(*attention); });

  auto prefill = std::make_shared<Options>();
  command = bench->add_subcommand("prefill", "The whole forward pass to the logits, with random weights");
  command->add_option("--size", prefill->size, "8M, 35M, 150M, 650M, 3B or 15B (default: the sizes of --model)");
  command->add_option("--batch", prefill->batch, "Sequences at once")->capture_default_str();
  command->add_option("--length", prefill->length, "Tokens a sequence, <cls> and <eos> counted")->capture_default_str();
  command->add_option("--seed", prefill->seed, "Of the random weights")->capture_default_str();
  command->add_option("--kv", prefill->kv, "Also measure filling a KV cache of this preset")->type_name("PRESET");
  prefill->common.add_model(*command);
  prefill->common.add_dtype(*command);
  prefill->common.add_profile(*command);
  prefill->add_timing(*command);
  command->callback([prefill] { run_prefill(*prefill); });

  add_bench_embed(*bench);
  add_bench_load(*bench);

  auto generate = std::make_shared<Options>();
  generate->kv = kDefaultKvPreset;
  command = bench->add_subcommand("generate", "Decoding on a KV cache, the whole model, with random weights");
  command->add_option("--size", generate->size, "8M, 35M, 150M, 650M, 3B or 15B (default: the sizes of --model)");
  command->add_option("--batch", generate->batch, "Sequences at once")->capture_default_str();
  command->add_option("--prompt", generate->prompt, "Tokens that a sequence begins with, <cls> counted")
      ->capture_default_str();
  command->add_option("--length", generate->length, "Tokens at which it ends")->capture_default_str();
  command->add_option("--kv", generate->kv, "Preset of the KV cache")->capture_default_str()->type_name("PRESET");
  command->add_option("--seed", generate->seed, "Of the random weights")->capture_default_str();
  generate->common.add_model(*command);
  generate->common.add_dtype(*command);
  generate->common.add_profile(*command);
  generate->add_timing(*command);
  command->callback([generate] { run_generate(*generate); });

  auto decode = std::make_shared<Options>();
  decode->kv = kDefaultKvPreset;
  command = bench->add_subcommand("decode", "Decode attention of one layer over a KV cache, beside an f16 cache");
  command->add_option("--kv", decode->kv, "Presets, comma-separated")->capture_default_str()->type_name("LIST");
  command->add_option("--batch", decode->decode.sequences, "Sequences at once")->capture_default_str();
  command->add_option("--context", decode->decode.context, "Cached tokens a sequence")->capture_default_str();
  command->add_option("--heads", decode->decode.heads, "Heads of the layer")->capture_default_str();
  command->add_option("--head-dim", decode->decode.head_dim, "Values of a head")->capture_default_str();
  command->add_option("--queries", decode->decode.queries, "Queries a sequence; a generation step has 2")
      ->capture_default_str();
  add_variants(*command, *decode);
  decode->common.add_dtype(*command);
  decode->common.add_profile(*command);
  decode->add_timing(*command);
  command->callback([decode] { run_decode(*decode); });
}

}  // namespace turboesm::cli
