#include "apps/desktop/worker.h"

#include <chrono>
#include <new>
#include <optional>
#include <utility>

#include "apps/desktop/heat_map.h"
#include "model/fasta.h"
#include "model/kv_file.h"
#include "model/tokenizer.h"
#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm::desktop {
namespace {

constexpr size_t kMaxProteins = 1000;  // of a dropped file, kept to choose from
constexpr auto kMemoryInterval = std::chrono::milliseconds(100);

std::vector<int32_t> residues_of(const std::string& sequence, const std::string& name) {
  const std::vector<int32_t> ids = Tokenizer::esm2().encode(sequence, name).ids;
  return {ids.begin() + 1, ids.end() - 1};
}

}  // namespace

// What is open, all of it used by the worker's thread alone.
class Worker::Session {
 public:
  explicit Session(Worker& worker) : worker_(worker) {}

  void run(const command::ListDevices&) { worker_.report(event::Devices{list_devices()}); }

  // A folder that holds no model costs nothing; a model that then turns out to be broken, or not to fit, gives way to
  // the one before.
  void run(const command::Open& asked) {
    Checkpoint checkpoint = Checkpoint::open(asked.model);
    try {
      open(asked, std::move(checkpoint));
    } catch (...) {
      close();
      if (opened_) reopen();
      throw;
    }
    opened_ = asked;
  }

  void run(const command::Generate& asked) {
    GenerateOptions options = asked.options;
    options.prompt = residues_of(asked.prompt, "the prompt");
    if (options.prompt.size() >= options.length)
      throw_error(ErrorKind::usage, "the prompt has {} residues, a length of {} leaves no room after it",
                  options.prompt.size(), options.length);
    Esm2& model = require_model();
    const KvTables tables = (*tables_)(parse_kv_preset(asked.preset));
    worker_.report(event::GenerationStarted{options, asked.preset});
    const auto progress = [&](const GenerateProgress&) { worker_.check_stopped(); };
    GenerateReport report = generate(model, tables, options, progress, [&](const GenerateStep& step) {
      worker_.check_stopped();
      worker_.report(event::Step{step});
      report_memory();
    });
    worker_.report(event::Generated{std::move(report)});
  }

  void run(const command::ReadFasta& asked) {
    FastaReader reader(asked.path.string());
    event::Records records{asked.path, {}, false};
    for (FastaRecord record; reader.next(record);) {
      if (records.proteins.size() == kMaxProteins) {
        records.more = true;
        break;
      }
      Tokenizer::esm2().encode(record.sequence, record.id);  // for its errors, before the record is offered
      if (!record.sequence.empty()) records.proteins.push_back({record.id, record.sequence});
    }
    if (records.proteins.empty()) throw_error(ErrorKind::input, "{}: no record with residues", asked.path.string());
    worker_.report(std::move(records));
  }

  void run(const command::MapSubstitutions& asked) {
    const std::vector<int32_t> residues = residues_of(asked.protein.sequence, asked.protein.name);
    if (residues.empty()) throw_error(ErrorKind::input, "{}: there are no residues", asked.protein.name);
    worker_.report(event::Map{asked.protein.name, substitution_map(require_model(), residues)});
  }

  void run(const command::Compare& asked) {
    CompareRecord record{asked.protein.name, residues_of(asked.protein.sequence, asked.protein.name)};
    if (record.ids.size() < 2)
      throw_error(ErrorKind::input, "{}: two residues or more are needed, the second half is decoded", record.name);
    record.ids.insert(record.ids.begin(), Tokenizer::kCls);
    Esm2& model = require_model();
    const KvTables f32 = (*tables_)(parse_kv_preset("f32"));
    for (size_t i = 0; i < asked.presets.size(); ++i) {
      const KvPreset preset = parse_kv_preset(asked.presets[i]);
      event::Compared result{
          asked.protein, preset.name, kv_bits_per_value(preset.format(), model.config().head_dim()), {}, {}};
      result.positions = compare_positions(model, f32, (*tables_)(preset), record, [&](double share) {
        worker_.check_stopped();
        worker_.report(event::Progress{(double(i) + share) / double(asked.presets.size())});
        report_memory();
      });
      result.summary = summary(result.positions);
      worker_.report(std::move(result));
    }
  }

  void run(const command::SaveMap& asked) {
    if (asked.path.extension() == ".png")
      write_png(heat_map_image(asked.map, asked.log_odds), asked.path);
    else
      write_csv(asked.map, asked.log_odds ? asked.map.log_odds : asked.map.logits, asked.path);
    worker_.report(event::Saved{asked.path});
  }

  // At most so often, unless it is to be exact.
  void report_memory(bool exact = false) {
    if (!device_) return;
    const auto now = std::chrono::steady_clock::now();
    if (!exact && now - memory_reported_ < kMemoryInterval) return;
    memory_reported_ = now;
    worker_.report(event::Memory{device_->memory(), std::chrono::duration<double>(now - begin_).count()});
  }

  void close() {
    model_.reset();
    tables_.reset();
    checkpoint_.reset();
    device_.reset();
    worker_.report(event::Closed{});
  }

 private:
  void open(const command::Open& asked, Checkpoint checkpoint) {
    const bool same_device = device_ && opened_ && opened_->device == asked.device;
    model_.reset();
    tables_.reset();
    checkpoint_.reset();
    if (!same_device) {
      device_.reset();
      DeviceOptions options;
      options.validation = worker_.validation_;
      options.cache_dir = user_cache_dir();
      OpenedDevice opened = open_device(asked.device, options);
      device_ = std::move(opened.device);
      explanation_ = std::move(opened.explanation);
    }
    const uint64_t budget = device_->memory().limit_bytes();
    checkpoint_ = std::move(checkpoint);
    const DType dtype = *parse_dtype(asked.dtype);
    model_.emplace(*device_, Esm2Weights::load(*device_, *checkpoint_, dtype));
    tables_.emplace(default_calibration_file(asked.model), *checkpoint_);
    worker_.report(event::Opened{asked, device_->info(), explanation_, checkpoint_->config(), dtype, budget});
    report_memory(true);
  }

  void reopen() {
    const command::Open before = *std::exchange(opened_, std::nullopt);
    try {
      open(before, Checkpoint::open(before.model));
      opened_ = before;
    } catch (const Error&) {  // the caller's error says what went wrong first
      close();
    }
  }

  Esm2& require_model() {
    if (!model_) throw_error(ErrorKind::usage, "no model is open: choose a device and a model first");
    return *model_;
  }

  Worker& worker_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point memory_reported_{};
  std::optional<command::Open> opened_;
  std::string explanation_;
  std::unique_ptr<Device> device_;  // before what lives on it
  std::optional<Checkpoint> checkpoint_;
  std::optional<KvTableMaker> tables_;
  std::optional<Esm2> model_;
};

Worker::Worker(bool validation) : validation_(validation), thread_([this] { work(); }) {}

Worker::~Worker() {
  stop();
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Worker::post(Command command) {
  {
    const std::lock_guard lock(mutex_);
    commands_.push_back(std::move(command));
  }
  wake_.notify_one();
}

void Worker::stop() {
  const std::lock_guard lock(mutex_);
  if (!commands_.empty()) events_.push_back(event::Dropped{commands_.size()});
  commands_.clear();
  stopped_ = true;
}

std::vector<Event> Worker::take_events() {
  const std::lock_guard lock(mutex_);
  return std::exchange(events_, {});
}

void Worker::report(Event event) {
  const std::lock_guard lock(mutex_);
  events_.push_back(std::move(event));
}

void Worker::check_stopped() const {
  if (stopped_) throw_error(ErrorKind::cancelled, "stopped");
}

// One command, or none, and a look at the memory, now or when it is time (see report_memory). What is thrown is
// reported. A device that failed is of no use any more and closed; one that could not be opened never was open.
void Worker::run(Session& session, const std::optional<Command>& command, bool exact) {
  try {
    if (command) std::visit([&](const auto& asked) { session.run(asked); }, *command);
    session.report_memory(exact);
    return;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::device && !(command && std::holds_alternative<command::Open>(*command)))
      session.close();
    report(event::Failed{error.kind(), error.what()});
  } catch (const std::bad_alloc&) {
    report(event::Failed{ErrorKind::out_of_memory, "out of memory on the host"});
  } catch (const std::exception& error) {
    report(event::Failed{ErrorKind::device, error.what()});
  }
  if (command) run(session, std::nullopt, exact);  // what the failure left
}

void Worker::work() {
  Session session(*this);
  for (;;) {
    std::optional<Command> command;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, kMemoryInterval, [&] { return ending_ || !commands_.empty(); });
      if (ending_) return;
      if (!commands_.empty()) {
        command = std::move(commands_.front());
        commands_.pop_front();
        stopped_ = false;
        std::visit([&]<class C>(const C&) { events_.push_back(event::Started{C::kWhat, C::kStoppable}); }, *command);
      }
    }
    run(session, command, command.has_value());
    if (command) report(event::Finished{});
  }
}

}  // namespace turboesm::desktop
