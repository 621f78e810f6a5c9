#include "subject.h"

#include <unistd.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <system_error>
#include <utility>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "states.h"

namespace marlin::testing::detail {
namespace {

namespace fs = std::filesystem;

Metrics usual_metrics(int64_t index) {
  const auto step = static_cast<double>(index + 1);
  Metrics metrics;
  metrics.set("train/loss", 1 / step);
  metrics.set("val/loss", 2 / step);
  metrics.set("val/accuracy", 1 - 1 / (step + 1));
  return metrics;
}

// Runs a call that is to succeed.
template <class Call>
auto must(const char* what, Call&& call) {
  try {
    return call();
  } catch (const std::exception& error) {
    throw Broken(concat(what, " failed: ", error.what()));
  }
}

}  // namespace

fs::path Stage::fresh(const std::string& name) const {
  const fs::path result = folder / name;
  fs::create_directories(result);
  return result;
}

void StderrLogger::log(LogLevel level, std::string_view line) noexcept {
  if (level >= LogLevel::kWarning) std::cerr << line << '\n';
}

Subject::Subject(const Stage& stage, fs::path folder) : stage_(stage), folder_(std::move(folder)) {
  host_.logger = &logger_;
  host_.run_dir = folder_;
  enter();
  checkpointer_ = must("making the checkpointer", [&] { return stage_.contract.make(host_); });
  if (!checkpointer_) throw Broken("what makes the checkpointer returned null");
}

void Subject::enter() const { fs::current_path(folder_); }

void Subject::open(const RunStart& start) {
  enter();
  must("open", [&] { checkpointer_->open(start); });
}

void Subject::try_save(const Checkpoint& state, const SavePoint& point) {
  enter();
  checkpointer_->save(state, point);
}

void Subject::save(const Checkpoint& state, const SavePoint& point) {
  enter();
  const std::vector<std::string> where = must("save", [&] { return checkpointer_->save(state, point); });
  if (where.empty()) throw Broken(concat("save of ", to_string(point.unit), " ", point.index, " (force) kept nothing"));
}

void Subject::save_epoch(int64_t epoch) { save(state_at(epoch), epoch_point(epoch)); }

Checkpoint Subject::try_load(const LoadRequest& request) {
  enter();
  return checkpointer_->load(request);
}

Checkpoint Subject::load() {
  return must("load", [&] { return try_load(newest()); });
}

Checkpoint Subject::expect(const Checkpoint& state, const std::string& promise) {
  Checkpoint found = load();
  if (found.empty()) throw Broken(concat(promise, ", but load found nothing"));
  if (const std::string differs = difference(state, found); !differs.empty()) throw Broken(concat(promise, ", but load gave another state: ", differs));
  return found;
}

SavePoint Subject::epoch_point(int64_t epoch) const {
  SavePoint point = step_point((epoch + 1) * kStepsPerEpoch);
  point.unit = Unit::kEpoch;
  point.index = point.epoch = epoch;
  return point;
}

SavePoint Subject::step_point(int64_t global_step) const {
  SavePoint point;
  point.unit = Unit::kStep;
  point.index = point.global_step = global_step;
  point.epoch = global_step / kStepsPerEpoch;
  point.cause = Cause::kRequest;
  point.force = true;
  point.metrics = stage_.contract.metrics ? stage_.contract.metrics(global_step) : usual_metrics(global_step);
  point.run_id = "contract";
  return point;
}

LoadRequest newest() { return {.from = LoadRequest::From::kAnywhere}; }

Files files_below(const fs::path& folder) {
  Files result;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (!entry->is_regular_file(error) || entry->is_symlink(error)) continue;
    std::ifstream stream(entry->path(), std::ios::binary);
    result.emplace(entry->path().lexically_relative(folder).string(), std::string(std::istreambuf_iterator<char>(stream), {}));
  }
  return result;
}

void write(const fs::path& file, const std::string& content) {
  fs::create_directories(file.parent_path());
  std::ofstream stream(file, std::ios::binary | std::ios::trunc);
  stream << content;
  if (!stream.flush()) throw NotRun(concat("not run: cannot write ", file.string(), " to damage it"));
}

std::string encoded(const std::function<void()>& body) {
  try {
    body();
    return "ok";
  } catch (const std::exception& error) {
    return concat("broken ", error.what());
  } catch (...) {
    return "broken an exception that is no std::exception";
  }
}

void hand_on(const std::string& doing, const Ending& ending) {
  if (!ending.returned) throw Broken(concat(doing, ": the process ", ending.last_words()));
  if (ending.said.starts_with("broken ")) throw Broken(concat(doing, ": ", ending.said.substr(7)));
}

void in_new_process(const std::string& doing, const std::function<void()>& body) {
  hand_on(doing, run_forked([&] { return encoded(body); }));
}

}  // namespace marlin::testing::detail
