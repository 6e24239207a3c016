#include "apps/desktop/choices.h"

#include <catch2/catch_test_macros.hpp>

#include "tests/unit/files.h"

namespace turboesm::desktop {
namespace {

TEST_CASE("choices come back as they were saved", "[unit][desktop-choices]") {
  const test::TemporaryFolder folder;
  Choices choices;
  choices.device = "vulkan:1";
  choices.dtype = "bf16";
  choices.model = "/models/with \"quotes\"";
  choices.preset = "turboesm";
  choices.plan = {"15B", 4096, 2};
  choices.generation = {"MKT", 100, 8, 4294967295u, 0.25f, 0.5f};
  save_choices(choices, folder / "new" / "desktop.json");
  CHECK(load_choices(folder / "new" / "desktop.json") == choices);
}

TEST_CASE("a missing, damaged or senseless file is a first start", "[unit][desktop-choices]") {
  const test::TemporaryFolder folder;
  CHECK(load_choices(folder / "none.json") == Choices{});
  for (const char* text :
       {"", "{\"device\":", "[1, 2]", "\xff\xfe", R"({"device": 5, "plan": 7, "generation": [], "preset": "no such"})",
        R"({"dtype": "f8", "plan": {"size": "7B", "length": "long"}})"})
    CHECK(load_choices(folder.write("file.json", text)) == Choices{});
  const Choices clamped = load_choices(folder.write(
      "file.json",
      R"({"plan": {"length": 1e30, "batch": -4}, "generation": {"count": 0, "top_p": 7, "seed": 1e300}})"));
  CHECK(clamped.plan.length == kLongestPlan);
  CHECK(clamped.plan.batch == 1);
  CHECK(clamped.generation.count == 1);
  CHECK(clamped.generation.top_p == 1);
}

TEST_CASE("choices that cannot be saved are an error that names the file", "[unit][desktop-choices]") {
  const test::TemporaryFolder folder;
  folder.write("file", "no folder");
  test::check_error(ErrorKind::input, {"desktop.json"}, [&] { save_choices({}, folder / "file" / "desktop.json"); });
}

}  // namespace
}  // namespace turboesm::desktop
