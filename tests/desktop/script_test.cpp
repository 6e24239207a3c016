#include "apps/desktop/script.h"

#include <catch2/catch_test_macros.hpp>

#include "tests/unit/files.h"

namespace turboesm::desktop {
namespace {

TEST_CASE("a script is read step by step", "[unit][desktop-script]") {
  const std::vector<Step> steps = parse_script(R"([
    {"choose_device": {"device": "cpu", "dtype": "bf16"}}, {"choose_preset": "turbo"},
    {"plan": {"size": "3B", "length": 2048, "batch": 4}}, {"generate": {"length": 12, "temperature": 0.5}},
    {"wait": {"residues": 3}}, {"key": "Ctrl+Enter"}, {"tab": "quality"}, {"resize": [800, 600]},
    {"repeat": {"times": 3, "steps": [{"stop": true}, {"wait": "idle"}]}}, {"click": "stop"}, {"close": true}])",
                                               "test");
  REQUIRE(steps.size() == 8 + 6 + 2);
  CHECK(std::get<step::ChooseDevice>(steps[0]).device == "cpu");
  CHECK(std::get<step::ChooseDevice>(steps[0]).dtype == "bf16");
  CHECK(std::get<step::Plan>(steps[2]).plan == Choices::Plan{"3B", 2048, 4});
  CHECK(std::get<step::Wait>(steps[4]).residues == 3);
  CHECK(std::get<step::Key>(steps[5]).control);
  CHECK(std::get<step::Key>(steps[5]).key == 257);
  CHECK(std::get<step::ShowTab>(steps[6]).tab == Tab::quality);
  CHECK(std::get<step::Resize>(steps[7]).width == 800);
  CHECK(std::holds_alternative<step::Stop>(steps[12]));
  CHECK_FALSE(std::get<step::Wait>(steps[13]).residues);
  CHECK(std::get<step::Point>(steps[14]).click);

  Choices::Generation generation{.prompt = "MK", .length = 99};
  apply_settings(std::get<step::Generate>(steps[3]).settings, generation);
  CHECK(generation.length == 12);
  CHECK(generation.temperature == 0.5f);
  CHECK(generation.prompt == "MK");
}

TEST_CASE("what is wrong with a script is said of its step", "[unit][desktop-script]") {
  const std::pair<const char*, std::vector<std::string_view>> kBad[] = {
      {"[", {"s.json", "not JSON"}},
      {"{}", {"array of steps"}},
      {"[1]", {"step 1", "one key"}},
      {R"([{"close": true, "stop": true}])", {"step 1", "one key"}},
      {R"([{"stop": true}, {"fly": 1}])", {"step 2", "\"fly\""}},
      {R"([{"choose_preset": "turbofish"}])", {"step 1", "choose_preset", "turbofish"}},
      {R"([{"choose_device": {"dtype": "f8"}}])", {"f8"}},
      {R"([{"plan": {"size": "7B"}}])", {"7B"}},
      {R"([{"plan": {"length": 1}}])", {"length", "from 2"}},
      {R"([{"generate": {"lenght": 1}}])", {"lenght"}},
      {R"([{"generate": {"count": -1}}])", {"count", "-1"}},
      {R"([{"key": "Hyper"}])", {"Hyper", "Enter"}},
      {R"([{"tab": "settings"}])", {"settings", "quality"}},
      {R"([{"resize": [10]}])", {"width, height"}},
      {R"([{"wait": "forever"}])", {"forever"}},
      {R"([{"save": "map.jpg"}])", {".png"}},
      {R"([{"repeat": {"times": 3}}])", {"steps"}},
      {R"([{"repeat": {"times": 100000, "steps": [{"stop": true}, {"stop": true}]}}])", {"more than"}},
      {R"([{"screenshot": 5}])", {"text"}},
  };
  for (const auto& [script, words] : kBad) {
    INFO(script);
    std::string message;
    try {
      parse_script(script, "s.json");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::usage);
      message = error.what();
    }
    for (const std::string_view word : words) CHECK(message.find(word) != std::string::npos);
  }
  CHECK_THROWS_AS(load_script("/nowhere/steps.json"), Error);
}

TEST_CASE("what is expected is found by label and value", "[unit][desktop-script]") {
  const nlohmann::json drawn{{"a", 5}, {"b", "text"}, {"c", 1.5}};
  CHECK(mismatch({{"a", 5.0}, {"b", "text"}, {"c", "*"}}, drawn).empty());
  CHECK(mismatch({{"a", 6}}, drawn) == "\"a\" is 5, not 6");
  CHECK(mismatch({{"d", "*"}}, drawn) == "\"d\" is not drawn");
}

}  // namespace
}  // namespace turboesm::desktop
