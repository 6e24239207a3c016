#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <variant>
#include <vector>

#include "model/compare.h"
#include "model/generate.h"
#include "model/substitutions.h"
#include "runtime/error.h"
#include "runtime/registry.h"

namespace turboesm::desktop {

struct Protein {
  std::string name, sequence;
};

// What the window asks of the worker; kWhat says what it does then, kStoppable whether stop() ends that.
namespace command {

struct ListDevices {
  static constexpr std::string_view kWhat = "looking for devices";
  static constexpr bool kStoppable = false;
};
struct Open {  // a device, and a model on it
  static constexpr std::string_view kWhat = "opening the model";
  static constexpr bool kStoppable = false;
  std::string device, dtype;
  std::filesystem::path model;
};
struct Generate {
  static constexpr std::string_view kWhat = "generating";
  static constexpr bool kStoppable = true;
  std::string preset, prompt;
  GenerateOptions options;  // but for the prompt
};
struct ReadFasta {
  static constexpr std::string_view kWhat = "reading FASTA";
  static constexpr bool kStoppable = false;
  std::filesystem::path path;
};
struct MapSubstitutions {
  static constexpr std::string_view kWhat = "mapping substitutions";
  static constexpr bool kStoppable = false;
  Protein protein;
};
struct Compare {  // the caches of these presets, one after another, with the f32 cache
  static constexpr std::string_view kWhat = "comparing caches";
  static constexpr bool kStoppable = true;
  Protein protein;
  std::vector<std::string> presets;
};
struct SaveMap {  // as a picture where the name ends in .png, else as CSV
  static constexpr std::string_view kWhat = "saving";
  static constexpr bool kStoppable = false;
  SubstitutionMap map;
  bool log_odds = true;
  std::filesystem::path path;
};

}  // namespace command

using Command = std::variant<command::ListDevices, command::Open, command::Generate, command::ReadFasta,
                             command::MapSubstitutions, command::Compare, command::SaveMap>;

// What the worker has to say.
namespace event {

struct Devices {
  DeviceList list;
};
struct Started {  // on a command
  std::string_view what;
  bool stoppable = false;
};
struct Finished {};  // it, in whatever way
struct Dropped {     // before they were started
  size_t commands = 0;
};
struct Failed {
  ErrorKind kind;
  std::string message;
};
struct Opened {
  command::Open asked;
  DeviceInfo device;
  std::string explanation;  // of the choice of the device
  Esm2Config config;
  DType dtype;
  uint64_t budget = 0;  // bytes, before the model was there: what `turboesm plan` measures by
};
struct Closed {};  // neither device nor model is open
struct Memory {
  MemoryReport report;
  double seconds = 0;  // since the program started
};
struct GenerationStarted {
  GenerateOptions options;
  std::string preset;
};
struct Step {
  GenerateStep step;
};
struct Generated {
  GenerateReport report;
};
struct Progress {
  double share = 0;
};
struct Records {
  std::filesystem::path path;
  std::vector<Protein> proteins;
  bool more = false;  // than are kept
};
struct Map {
  std::string name;
  SubstitutionMap map;
};
struct Compared {
  Protein protein;
  std::string preset;
  double bits_per_value = 0;
  std::vector<PositionAgreement> positions;
  LogitAgreement summary;
};
struct Saved {
  std::filesystem::path path;
};

}  // namespace event

using Event =
    std::variant<event::Devices, event::Started, event::Finished, event::Dropped, event::Failed, event::Opened,
                 event::Closed, event::Memory, event::GenerationStarted, event::Step, event::Generated, event::Progress,
                 event::Records, event::Map, event::Compared, event::Saved>;

// Owns the device and the model, and the one thread that may touch them: does one command after another and reports
// through a queue, so that the window never waits. Its thread ends with it; what runs then is stopped.
class Worker {
 public:
  explicit Worker(bool validation);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void post(Command command);
  // Drops what is waiting and ends what runs, where it can be ended: between decoding steps.
  void stop();
  std::vector<Event> take_events();

 private:
  class Session;
  void work();
  void run(Session& session, const std::optional<Command>& command, bool exact);
  void report(Event event);
  void check_stopped() const;  // throws Error(cancelled)

  const bool validation_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Command> commands_;
  std::vector<Event> events_;
  std::atomic<bool> stopped_ = false;
  bool ending_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace turboesm::desktop
