// The C++ half of ignite_differential_test.py: has BestKCheckpointer do what a script on standard input says. Its lines:
//
//   config N_SAVED SCORE GREATER_OR_EQUAL GLOBAL_STEP INCLUDE_SELF PREFIX FOLDER    a new sequence, in an empty folder
//       N_SAVED: a number or all. SCORE: none, function or named. GLOBAL_STEP: none, step or epoch. 0 or 1 for flags. PREFIX: - is none
//   save EPOCH GLOBAL_STEP [SCORE]   the end of an epoch, counted from 1
//   open NAME                        a new process that resumes from the file of that name; - for a fresh start
//   load                             a new checkpointer takes the state of the old one
//
// Each is answered by one line of JSON: {"saved": name or null, "put": [...], "evicted": [...], "list": [[priority, name], ...],
// "directory": [...], "warnings": [...]}, or {"error": text}. Priorities are text, since JSON has no infinity. "saved" is what
// save_objects() said, "put" and "evicted" are what was asked of the storage, in this order; "warnings" has errors of the log, too.
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "marlin/checkpointers/best_k_checkpointer.h"
#include "marlin/sdk/error.h"

namespace marlin {
namespace {

constexpr const char* kRunId = "differential";
constexpr const char* kScoreOfFunction = "given";  // where the script's score stands for the score function
constexpr const char* kScoreByName = "acc";

std::vector<std::string> taken(std::vector<std::string>& lines) { return std::exchange(lines, {}); }

class Warnings final : public Logger {
 public:
  void log(LogLevel level, std::string_view line) noexcept override {
    if (level >= LogLevel::kWarning) lines.emplace_back(line);
  }
  std::vector<std::string> lines = {};
};

struct StorageCalls {
  std::vector<std::string> put = {}, removed = {};
};

class RecordingDisk final : public DiskStorage {
 public:
  RecordingDisk(const std::filesystem::path& folder, StorageCalls& calls, const HostContext& host) : DiskStorage(folder, true, host), calls_(calls) {}

  std::string put(const std::string& name, const StateDict& root, const CommitRecord& record) override {
    calls_.put.push_back(name);
    return DiskStorage::put(name, root, record);
  }
  bool remove(const std::string& name) override {
    calls_.removed.push_back(name);
    return DiskStorage::remove(name);
  }

 private:
  StorageCalls& calls_;
};

class Sequence {
 public:
  Sequence(BestKOptions options, BestKHooks hooks) : options_(std::move(options)), hooks_(std::move(hooks)) {
    host_.logger = &warnings_;
    start();
    checkpointer_->open({.loaded_from = {}, .run_id = kRunId});
  }

  void save(int64_t epoch, int64_t global_step, const std::string& score) {
    SavePoint point{.index = epoch - 1, .unit = Unit::kEpoch, .epoch = epoch - 1, .global_step = global_step};
    point.run_id = kRunId;
    if (!score.empty()) point.metrics.set(options_.score_name.value_or(kScoreOfFunction), std::stod(score));
    saved_ = checkpointer_->save_objects({{"m", StateDict{{"weight", torch::full({2}, static_cast<double>(global_step))}}}}, point);
  }

  void open(const std::string& name) {
    start();
    checkpointer_->open({.loaded_from = name == "-" ? std::string() : (std::filesystem::path(options_.save_dir) / name).string(), .run_id = kRunId});
  }

  void load() {
    const StateDict state = checkpointer_->state();
    start();
    checkpointer_->load_state(state);
  }

  // What happened since it was called last.
  nlohmann::json answer() {
    nlohmann::json result;
    if (saved_.size() > 1) throw Error(Errc::kInvalidArgument, "save_objects() named more than one place");
    result["saved"] = saved_.empty() ? nlohmann::json() : nlohmann::json(std::filesystem::path(saved_.front()).filename().string());
    saved_.clear();
    result["put"] = taken(calls_.put);
    result["evicted"] = taken(calls_.removed);
    result["list"] = nlohmann::json::array();
    const StateDict state = checkpointer_->state();
    for (const Value& item : state.at("_saved").as_items()) {
      char priority[32];
      std::snprintf(priority, sizeof priority, "%.17g", item.as_items().at(0).as_double());
      result["list"].push_back({priority, item.as_items().at(1).as_string()});
    }
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(options_.save_dir)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    result["directory"] = names;
    result["warnings"] = taken(warnings_.lines);
    return result;
  }

 private:
  void start() {
    if (checkpointer_) checkpointer_->close();
    hooks_.storage = std::make_shared<RecordingDisk>(options_.save_dir, calls_, host_);
    checkpointer_ = std::make_unique<BestKCheckpointer>(options_, hooks_, host_);
  }

  BestKOptions options_;
  BestKHooks hooks_;
  Warnings warnings_;
  StorageCalls calls_;
  HostContext host_;
  std::vector<std::string> saved_;
  std::unique_ptr<BestKCheckpointer> checkpointer_;
};

std::unique_ptr<Sequence> configured(std::istream& words) {
  std::string n_saved, score, global_step, prefix, folder;
  bool greater_or_equal = false, include_self = false;
  words >> n_saved >> score >> greater_or_equal >> global_step >> include_self >> prefix >> std::ws;
  std::getline(words, folder);
  BestKOptions options;
  BestKHooks hooks;
  options.save_dir = folder;
  options.n_saved = n_saved == "all" ? std::nullopt : std::optional<int64_t>(std::stoll(n_saved));
  if (score == "named") options.score_name = kScoreByName;
  if (score == "function") hooks.score_function = [](const SavePoint& point) { return std::optional(point.metrics.at(kScoreOfFunction)); };
  options.greater_or_equal = greater_or_equal;
  options.global_step = global_step == "step" ? GlobalStepOf::kStep : global_step == "epoch" ? GlobalStepOf::kEpoch : GlobalStepOf::kAuto;
  options.include_self = include_self;
  options.filename_prefix = prefix == "-" ? "" : prefix;
  options.keep_latest = KeepLatest::kNo;
  options.links = false;
  return std::make_unique<Sequence>(std::move(options), std::move(hooks));
}

void obey(const std::string& line, std::unique_ptr<Sequence>& sequence) {
  std::istringstream words(line);
  std::string command;
  words >> command;
  if (command == "config") {
    sequence = nullptr;
    sequence = configured(words);
    return;
  }
  if (!sequence) throw Error(Errc::kInvalidArgument, "there is no sequence");
  if (command == "save") {
    int64_t epoch = 0, global_step = 0;
    std::string score;
    words >> epoch >> global_step >> score;
    sequence->save(epoch, global_step, score);
  } else if (command == "open") {
    std::string name;
    words >> name;
    sequence->open(name);
  } else if (command == "load") {
    sequence->load();
  } else {
    throw Error(Errc::kInvalidArgument, "unknown line: " + line);
  }
}

}  // namespace
}  // namespace marlin

int main() {
  std::unique_ptr<marlin::Sequence> sequence;
  for (std::string line; std::getline(std::cin, line);) {
    nlohmann::json answer;
    try {
      marlin::obey(line, sequence);
      answer = sequence->answer();
    } catch (const std::exception& error) {
      answer = {{"error", error.what()}};
    }
    std::cout << answer.dump() << "\n";
  }
  return 0;
}
