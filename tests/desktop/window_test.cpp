// The window under Xvfb, driven by scripts.
#include <cstdlib>
#include <set>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "model/config.h"
#include "tests/cli/embedding.h"
#include "tests/desktop/desktop.h"
#include "tests/desktop/models.h"
#include "tests/options.h"
#include "tests/unit/files.h"

namespace turboesm {
namespace {

using namespace test;
using Json = nlohmann::json;

Json wait() { return {{"wait", "idle"}}; }
Json screenshot(const TemporaryFolder& folder, std::string_view name) {
  return {{"screenshot", (folder / name).string()}};
}
Json report(const TemporaryFolder& folder, std::string_view name) { return {{"report", (folder / name).string()}}; }
Json open_tiny() { return {{"open_model", (test_options().source_dir / "tests/fixtures/golden/tiny_hd64").string()}}; }
const Json kClose{{"close", true}};

Json run_cli_json(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), {"--json", "-", "--quiet"});
  const ProcessResult result = run(arguments);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  return Json::parse(result.out);
}

TEST_CASE("the memory plan on the screen is that of turboesm plan, to the byte", "[desktop]") {
  const std::string device = GENERATE("cpu", "vulkan:0");
  INFO(device);
  const TemporaryFolder folder;
  run_desktop_well({{{"choose_device", {{"device", device}, {"dtype", "f16"}}}},
                    wait(),
                    {{"plan", {{"size", "650M"}, {"length", 777}, {"batch", 5}}}},
                    report(folder, "650M.json"),
                    {{"plan", {{"size", "15B"}, {"length", 64}, {"batch", 2}}}},
                    report(folder, "15B.json"),
                    {{"plan", {{"size", ""}, {"length", 300}, {"batch", 1}}}},
                    report(folder, "own.json"),
                    kClose});
  struct Shape {
    const char *size, *file;
    uint32_t length, batch;
  };
  for (const Shape& shape :
       {Shape{"650M", "650M.json", 777, 5}, {"15B", "15B.json", 64, 2}, {"", "own.json", 300, 1}}) {
    const Json drawn = read_json(folder / shape.file);
    CHECK(drawn["plan/length"] == shape.length);
    for (const char* preset : {"f32", "int8", "turboesm", "turbo", "turboquant-2.5-qjl"}) {
      INFO(shape.size << " " << preset);
      std::vector<std::string> arguments{"plan",
                                         "--length",
                                         std::to_string(shape.length),
                                         "--batch",
                                         std::to_string(shape.batch),
                                         "--kv",
                                         preset,
                                         "--device",
                                         device,
                                         "--dtype",
                                         "f16"};
      if (*shape.size) arguments.insert(arguments.end(), {"--size", shape.size});
      const Json plan = run_cli_json(arguments);
      const std::string label = std::string("plan/") + preset;
      CHECK(drawn[label + "/total"] == plan["total_bytes"]);
      for (const char* part : {"weights", "activations", "kv", "staging"})
        CHECK(drawn[label + "/" + part] == plan["by_label"][part]);
    }
  }
}

TEST_CASE("the devices to choose among are those of turboesm devices", "[desktop]") {
  const TemporaryFolder folder;
  run_desktop_well({wait(), report(folder, "devices.json"), kClose});
  const Json drawn = read_json(folder / "devices.json");
  const ProcessResult listed = run({"devices", "--json", "-"});
  const Json devices = Json::parse(listed.out)["devices"];
  REQUIRE(devices.size() >= 2);  // the CPU and Mesa's software driver
  size_t shown = 0;
  for (const auto& [label, value] : drawn.items()) shown += label.starts_with("devices/");
  CHECK(shown == devices.size());
  for (const Json& device : devices) CHECK(drawn["devices/" + device["spec"].get<std::string>()] == device["name"]);
}

TEST_CASE("what a generation shows is what turboesm generate does, and what the allocator says", "[desktop]") {
  const std::string device = GENERATE("cpu", "vulkan:0");
  INFO(device);
  const TemporaryFolder folder;
  const Json settings{{"prompt", "MKTAY"}, {"length", 15}, {"count", 2}, {"seed", 7}, {"top_p", 0.5}};
  run_desktop_well({{{"choose_device", device}},
                    {{"choose_preset", "turbo"}},
                    wait(),
                    {{"tab", "generate"}},
                    {{"generate", settings}},
                    wait(),
                    report(folder, "end.json"),
                    kClose});
  const Json drawn = read_json(folder / "end.json");
  const Json cli = run_cli_json({"generate", "--prompt", "MKTAY", "--length", "15", "-n", "2", "--seed", "7", "--top-p",
                                 "0.5", "--kv", "turbo", "--device", device, "--no-pseudo-perplexity"});
  CHECK(drawn["generated/0"] == cli["proteins"][0]["sequence"]);
  CHECK(drawn["generated/1"] == cli["proteins"][1]["sequence"]);
  CHECK(drawn["cache/bytes"] == cli["cache_bytes"]);
  for (const char* label : {"weights", "activations", "kv", "staging"})
    CHECK(drawn[std::string("memory/") + label] == cli["memory"][label]["bytes"]);
  CHECK(drawn["memory/total"] == cli["memory"]["total"]["bytes"]);
  double sum = 0;
  for (const char letter : std::string_view("ACDEFGHIKLMNPQRSTVWY"))
    sum += drawn[std::string("probabilities/") + letter].get<double>();
  CHECK(std::abs(sum - 1) < 1e-4);
}

TEST_CASE("a whole session: every part shows something else, and the validation layers are silent", "[desktop]") {
  const TemporaryFolder folder;
  const std::string fasta = (test_options().source_dir / "apps/example.fasta").string();
  run_desktop_well({{{"choose_device", {{"device", "vulkan:0"}, {"dtype", "f32"}}}},
                    wait(),
                    screenshot(folder, "plan.png"),
                    {{"choose_preset", "turbo-xs"}},
                    screenshot(folder, "preset.png"),
                    {{"choose_device", {{"device", "cpu"}, {"dtype", "f16"}}}},
                    wait(),
                    {{"expect", {{"opened/device", "cpu"}, {"opened/dtype", "f16"}, {"preset", "turbo-xs"}}}},
                    open_tiny(),
                    wait(),
                    {{"choose_preset", "wht3"}},
                    {{"tab", "generate"}},
                    screenshot(folder, "empty.png"),
                    {{"generate", {{"length", 60}, {"count", 2}}}},
                    wait(),
                    {{"click", "generate/prompt"}},
                    {{"type", "MKWVTF"}},
                    {{"expect", {{"generate/prompt", "MKWVTF"}}}},
                    {{"click", "generate/start"}},
                    wait(),
                    report(folder, "typed.json"),
                    {{"hover", "residue/0/1"}},
                    screenshot(folder, "generated.png"),
                    {{"drop", fasta}},
                    wait(),
                    {{"expect", {{"tab", "substitutions"}, {"map/records", 12}, {"map/residues", "*"}}}},
                    screenshot(folder, "map.png"),
                    {{"click", "map/logits"}},
                    screenshot(folder, "logits.png"),
                    {{"paste", "MKWVTFISLLFLFSSAYS"}},
                    wait(),
                    {{"expect", {{"map/name", "pasted"}, {"map/residues", 18}}}},
                    {{"save", (folder / "map.png.saved.png").string()}},
                    {{"save", (folder / "map.csv").string()}},
                    wait(),
                    {{"tab", "quality"}},
                    {{"compare", {"wht3", "int8"}}},
                    wait(),
                    {{"expect", {{"quality/wht3/top1", "*"}, {"quality/int8/kl", "*"}, {"quality/positions", "*"}}}},
                    screenshot(folder, "quality.png"),
                    {{"resize", {900, 620}}},
                    screenshot(folder, "small.png"),
                    {{"resize", {1500, 900}}},
                    screenshot(folder, "large.png"),
                    kClose});
  std::vector<desktop::Image> images;
  for (const char* name : {"plan.png", "preset.png", "empty.png", "generated.png", "map.png", "logits.png",
                           "quality.png", "small.png", "large.png"}) {
    INFO(name);
    images.push_back(read_png(folder / name));
    CHECK(colours(images.back()) > 50);
    for (size_t i = 0; i + 1 < images.size(); ++i) CHECK(images[i].rgb != images.back().rgb);
  }
  CHECK(images[7].width == 900);
  CHECK(images[7].height == 620);
  CHECK(images[8].width == 1500);
  CHECK(read_json(folder / "typed.json")["generated/1"].get<std::string>().starts_with("MKWVTF"));
  const desktop::Image saved = read_png(folder / "map.png.saved.png");
  const std::string csv = read_file(folder / "map.csv");
  CHECK(size_t(std::ranges::count(csv, '\n')) == 1 + saved.width / (saved.height / 20));
  CHECK(csv.starts_with("position,residue,L,A,G,V,"));
  CHECK(csv.find("\n3,W,") != std::string::npos);
}

TEST_CASE("what goes wrong is a message, and the window goes on", "[desktop]") {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "empty");
  const std::filesystem::path broken = folder / "broken", large = folder / "large";
  std::filesystem::copy(test_options().source_dir / "tests/fixtures/golden/tiny_hd24", broken);
  std::filesystem::resize_file(broken / "model.safetensors", 5000);
  write_huge_model(large);
  run_desktop_well({{{"choose_device", "vulkan:0"}},
                    open_tiny(),
                    wait(),
                    {{"drop", (folder / "empty").string()}},
                    wait(),
                    report(folder, "empty.json"),
                    screenshot(folder, "message.png"),
                    {{"open_model", broken.string()}},
                    wait(),
                    report(folder, "broken.json"),
                    {{"open_model", large.string()}},
                    wait(),
                    report(folder, "large.json"),
                    {{"drop", (folder / "none.fasta").string()}},
                    wait(),
                    report(folder, "none.json"),
                    {{"choose_device", "vulkan:99"}},
                    wait(),
                    report(folder, "device.json"),
                    {{"choose_preset", "f16"}},
                    {{"generate", {{"length", 8}, {"count", 1}}}},
                    {{"tab", "generate"}},
                    wait(),
                    {{"expect", {{"generated/0", "*"}, {"opened/device", "vulkan:0"}}}},
                    kClose});
  const std::pair<const char*, std::vector<std::string>> kExpected[] = {
      {"empty.json", {"empty", "config.json"}},
      {"broken.json", {"broken", "model.safetensors"}},
      {"large.json", {"vulkan:0", "bytes for weights"}},
      {"none.json", {"none.fasta"}},
      {"device.json", {"vulkan:99"}},
  };
  for (const auto& [file, words] : kExpected) {
    const Json drawn = read_json(folder / file);
    INFO(file << ": " << drawn["message"]);
    CHECK(drawn["message/error"] == true);
    for (const std::string& word : words) CHECK(drawn["message"].get<std::string>().find(word) != std::string::npos);
    CHECK(drawn["opened/device"] == "vulkan:0");  // the one before is open again
    CHECK(drawn["opened/model"].get<std::string>().ends_with("tiny_hd64"));
  }
}

TEST_CASE("the window is drawn while the model works, and a stop ends the work", "[desktop]") {
  const TemporaryFolder folder;
  run_desktop_well({{{"choose_device", "cpu"}},
                    {{"choose_preset", "f16"}},
                    wait(),
                    {{"tab", "generate"}},
                    {{"generate", {{"length", 4000}, {"count", 4}}}},
                    {{"wait", {{"residues", 30}}}},
                    report(folder, "a.json"),
                    {{"frames", 10}},
                    report(folder, "b.json"),
                    {{"stop", true}},
                    wait(),
                    report(folder, "c.json"),
                    kClose});
  const Json a = read_json(folder / "a.json"), b = read_json(folder / "b.json"), c = read_json(folder / "c.json");
  CHECK(a["generate/running"] == true);
  CHECK(a["memory/kv"] == a["cache/bytes"]);  // what the allocator has is what the cache was said to take
  CHECK(b["generate/running"] == true);
  CHECK(b["frame"].get<int>() >= a["frame"].get<int>() + 10);
  CHECK(b["generate/drawn"] > a["generate/drawn"]);
  CHECK(c["generate/running"] == false);
  CHECK(c["message"] == "stopped");
  CHECK(c["message/error"] == false);
  CHECK(c["memory/kv"] == 0);
}

TEST_CASE("the next start remembers what was chosen", "[desktop]") {
  const TemporaryFolder folder;
  const std::vector<std::string> settings{"--settings", (folder / "sub" / "desktop.json").string()};
  run_desktop_well({{{"choose_device", {{"device", "vulkan:0"}, {"dtype", "f16"}}}},
                    open_tiny(),
                    wait(),
                    {{"choose_preset", "int4"}},
                    {{"plan", {{"size", "3B"}, {"length", 2048}, {"batch", 3}}}},
                    {{"generate", {{"length", 5}, {"seed", 11}}}},
                    {{"open_model", (folder / "nothing").string()}},  // is not what was chosen, since it is nothing
                    wait(),
                    kClose},
                   settings);
  run_desktop_well({wait(),
                    {{"expect",
                      {{"opened/device", "vulkan:0"},
                       {"opened/dtype", "f16"},
                       {"preset", "int4"},
                       {"plan/size", "3B"},
                       {"plan/length", 2048},
                       {"plan/batch", 3},
                       {"opened/model", open_tiny()["open_model"]}}}},
                    {{"tab", "generate"}},
                    {{"expect", {{"generate/seed", 11}, {"generate/length", 5}}}},
                    kClose},
                   settings);
}

TEST_CASE("twice the scale makes everything twice as large", "[desktop]") {
  const TemporaryFolder folder;
  const auto shot = [&](const char* scale, const char* name) {
    run_desktop_well({wait(), screenshot(folder, name), report(folder, std::string(name) + ".json"), kClose},
                     {"--scale", scale, "--width", "1500", "--height", "900"});
    return read_json(folder / (std::string(name) + ".json"));
  };
  const Json one = shot("1", "one.png"), two = shot("2", "two.png");
  CHECK(one["scale"] == 1);
  CHECK(two["scale"] == 2);
  CHECK(two["text/height"].get<double>() == 2 * one["text/height"].get<double>());
  CHECK(read_png(folder / "one.png").rgb != read_png(folder / "two.png").rgb);
}

TEST_CASE("everything can be reached from the keyboard", "[desktop]") {
  const TemporaryFolder folder;
  Json steps = {open_tiny(), {{"choose_preset", "f16"}}, wait()};
  for (const char* tab : {"Ctrl+2", "Ctrl+3", "Ctrl+4", "Ctrl+1"}) steps.push_back({{"key", tab}});
  steps.push_back({{"expect", {{"tab", "plan"}}}});
  steps.push_back({{"key", "Ctrl+2"}});
  steps.push_back({{"expect", {{"tab", "generate"}}}});
  // Along the header, down into the tab, and along its fields to the button at their end.
  std::vector<const char*> moves{"Right", "Right", "Right", "Down", "Down", "Down"};
  moves.insert(moves.end(), 14, "Right");
  for (size_t i = 0; i < moves.size(); ++i) {
    steps.push_back({{"key", moves[i]}});
    steps.push_back(report(folder, std::to_string(i) + ".json"));
  }
  steps.push_back({{"key", "Space"}});  // presses the button that is reached in the end
  steps.push_back(wait());
  steps.push_back({{"expect", {{"generated/0", "*"}}}});
  steps.push_back({{"key", "Ctrl+Enter"}});
  steps.push_back({{"key", "Escape"}});
  steps.push_back(wait());
  steps.push_back({{"key", "Ctrl+Q"}});
  steps.push_back({{"frames", 5}});
  run_desktop_well(steps, {"--width", "1600", "--height", "900"});
  std::set<std::string> reached;
  for (size_t i = 0; i < moves.size(); ++i)
    if (const Json drawn = read_json(folder / (std::to_string(i) + ".json")); drawn.contains("focus"))
      reached.insert(drawn["focus"].get<std::string>());
  for (const char* label : {"dtype", "preset", "model", "generate/prompt", "generate/start"}) {
    INFO(label);
    CHECK(reached.contains(label));
  }
}

TEST_CASE("a script that cannot be followed is refused in one sentence", "[desktop]") {
  const TemporaryFolder folder;
  const auto refused = [&](const Json& steps, std::initializer_list<std::string_view> words) {
    check_refusal(run_desktop(steps), 2, words, "turboesm-desktop");
  };
  const Json fly{{"fly", true}}, expectation{{"expect", {{"plan/turbo/total", 1}}}}, click{{"click", "no such thing"}};
  refused(Json::array({fly}), {"turboesm-desktop: ", "step 1", "\"fly\""});
  refused(Json::array({wait(), expectation}), {"step 2", "plan/turbo/total", "not 1"});
  refused(Json::array({click}), {"no such thing"});
  check_refusal(run({"--script", (folder / "none.json").string()}, {.program = test_options().desktop_binary}), 2,
                {"none.json"}, "turboesm-desktop");
  check_refusal(run({"--frobnicate"}, {.program = test_options().desktop_binary}), 2, {"--frobnicate"},
                "turboesm-desktop");
}

TEST_CASE("the last frame is written as it was", "[desktop]") {
  const TemporaryFolder folder;
  run_desktop_well({wait(), kClose},
                   {"--screenshot", (folder / "a.png").string(), "--report", (folder / "a.json").string()});
  CHECK(colours(read_png(folder / "a.png")) > 50);
  CHECK(read_json(folder / "a.json").contains("memory/weights"));
}

#ifdef TURBOESM_DESKTOP_LEAKS
// The program again, linked with LeakSanitizer; tests/desktop/leaks.txt lists what drivers keep.
TEST_CASE("two hundred generations that are started and stopped leave nothing behind", "[desktop]") {
  const std::string device = GENERATE("cpu", "vulkan:0");
  INFO(device);
  const TemporaryFolder folder;
  const std::string leaks = (test_options().source_dir / "tests/desktop/leaks.txt").string();
  ::setenv("LSAN_OPTIONS", ("print_suppressions=0:suppressions=" + leaks).c_str(), 1);
  const auto cycles = [](int times) {
    return Json{{"repeat",
                 {{"times", times},
                  {"steps",
                   {{{"generate", {{"length", 500}, {"count", 2}, {"temperature", 2}, {"top_p", 1}}}},
                    {{"wait", {{"residues", 2}}}},
                    {{"stop", true}},
                    wait()}}}}};
  };
  const ProcessResult result = run_desktop({{{"choose_device", device}},
                                            open_tiny(),
                                            {{"choose_preset", "wht3"}},
                                            wait(),
                                            cycles(1),
                                            report(folder, "before.json"),
                                            cycles(200),
                                            report(folder, "after.json"),
                                            kClose},
                                           {"--width", "640", "--height", "400"}, TURBOESM_DESKTOP_LEAKS);
  INFO(result.err);
  CHECK(result.exit_code == 0);
  CHECK(result.err.empty());
  const Json before = read_json(folder / "before.json"), after = read_json(folder / "after.json");
  CHECK(before["memory/allocations"] == after["memory/allocations"]);
  CHECK(before["memory/total"] == after["memory/total"]);
}
#endif

}  // namespace
}  // namespace turboesm
