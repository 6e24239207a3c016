#include "apps/desktop/worker.h"

#include <catch2/catch_test_macros.hpp>
#include <chrono>

#include "tests/options.h"
#include "tests/unit/files.h"

namespace turboesm::desktop {
namespace {

using namespace std::chrono_literals;

std::filesystem::path fixture(const char* name) {
  return test_options().source_dir / "tests" / "fixtures" / "golden" / name;
}

// A worker, and all that it said.
class Talk {
 public:
  Talk() : worker(true) {}

  // Waits until a Finished came for each command since, and hands out what was said.
  std::vector<Event> finish(size_t commands = 1) {
    std::vector<Event> said;
    const auto end = std::chrono::steady_clock::now() + 100s;
    while (commands > 0) {
      REQUIRE(std::chrono::steady_clock::now() < end);
      for (Event& event : worker.take_events()) {
        commands -= std::holds_alternative<event::Finished>(event);
        said.push_back(std::move(event));
      }
      std::this_thread::sleep_for(1ms);
    }
    return said;
  }

  template <class T>
  static const T* find(const std::vector<Event>& said) {
    const T* found = nullptr;
    for (const Event& event : said)
      if (const T* one = std::get_if<T>(&event)) found = one;
    return found;
  }

  void open(const std::string& device, const std::filesystem::path& model) {
    worker.post(command::Open{device, "f32", model});
    REQUIRE(find<event::Opened>(finish()));
  }

  Worker worker;
};

command::Generate generation(uint32_t count, uint32_t length) {
  return {"wht3", "MK", {.prompt = {}, .count = count, .length = length, .pseudo_perplexity = false}};
}

TEST_CASE("a worker opens, generates, maps and compares", "[unit][desktop-worker]") {
  Talk talk;
  talk.open("cpu", fixture("tiny_hd64"));
  talk.worker.post(generation(2, 20));
  std::vector<Event> said = talk.finish();
  REQUIRE(Talk::find<event::Generated>(said));
  CHECK(Talk::find<event::Generated>(said)->report.proteins.size() == 2);
  CHECK(Talk::find<event::Step>(said)->step.tokens.size() == 2);
  CHECK(Talk::find<event::Memory>(said)->report[MemoryLabel::kv].bytes == 0);  // given back at the end

  talk.worker.post(command::MapSubstitutions{{"p", "MKTAYIAK"}});
  said = talk.finish();
  CHECK(Talk::find<event::Map>(said)->map.sequence == "MKTAYIAK");
  talk.worker.post(command::Compare{{"p", "MKTAYIAK"}, {"f16", "wht3"}});
  said = talk.finish();
  CHECK(Talk::find<event::Compared>(said)->preset == "wht3");
  CHECK(Talk::find<event::Compared>(said)->positions.size() == 5);
}

TEST_CASE("what a worker cannot do is a message, and it goes on", "[unit][desktop-worker]") {
  const test::TemporaryFolder folder;
  Talk talk;
  talk.worker.post(command::Generate{"f16", "", {}});
  CHECK(Talk::find<event::Failed>(talk.finish())->message.find("no model is open") != std::string::npos);
  talk.worker.post(command::Open{"cpu", "f32", folder.path()});
  CHECK(Talk::find<event::Failed>(talk.finish())->message.find("config.json") != std::string::npos);
  talk.open("cpu", fixture("tiny_hd24"));

  const std::pair<Command, const char*> kBad[] = {
      {command::Generate{"f16", "MK?", {}}, "'?'"},
      {command::Generate{"f16", "MKT", {.prompt = {}, .length = 3}}, "no room"},
      {command::Generate{"turbo", "", {}}, "model.kv.safetensors"},
      {command::ReadFasta{folder / "none.fasta"}, "none.fasta"},
      {command::ReadFasta{folder.write("bad.fasta", ">one\nMK1T\n")}, "one"},
      {command::MapSubstitutions{{"p", ""}}, "no residues"},
      {command::Compare{{"p", "M"}, {"f16"}}, "two residues"},
      {command::Open{"nonsense", "f32", fixture("tiny_hd24")}, "nonsense"},
  };
  for (const auto& [bad, word] : kBad) {
    INFO(word);
    talk.worker.post(bad);
    const std::vector<Event> said = talk.finish();
    REQUIRE(Talk::find<event::Failed>(said));
    CHECK(Talk::find<event::Failed>(said)->message.find(word) != std::string::npos);
  }
  // The last of these closed the device that was open, and opened it again.
  talk.worker.post(command::Generate{"f16", "", {.prompt = {}, .length = 3, .pseudo_perplexity = false}});
  CHECK(Talk::find<event::Generated>(talk.finish()));
}

TEST_CASE("stopping drops what waits and ends what runs", "[unit][desktop-worker]") {
  Talk talk;
  talk.open("cpu", fixture("tiny_hd64"));
  talk.worker.post(generation(4, 4000));
  talk.worker.post(generation(4, 4000));
  const auto end = std::chrono::steady_clock::now() + 100s;
  for (bool stepping = false; !stepping;) {
    REQUIRE(std::chrono::steady_clock::now() < end);
    for (const Event& event : talk.worker.take_events()) stepping |= std::holds_alternative<event::Step>(event);
    std::this_thread::sleep_for(1ms);
  }
  talk.worker.stop();
  const std::vector<Event> said = talk.finish();
  CHECK(Talk::find<event::Failed>(said)->kind == ErrorKind::cancelled);
  CHECK_FALSE(Talk::find<event::Generated>(said));
  std::this_thread::sleep_for(50ms);
  for (const Event& event : talk.worker.take_events()) CHECK_FALSE(std::holds_alternative<event::Started>(event));
}

TEST_CASE("a worker that goes away takes its work with it", "[unit][desktop-worker]") {
  Talk talk;
  talk.open("cpu", fixture("tiny_hd64"));
  talk.worker.post(generation(8, 4000));
  std::this_thread::sleep_for(20ms);
}

}  // namespace
}  // namespace turboesm::desktop
