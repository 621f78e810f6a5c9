// What a check works with: a checkpointer in a folder, and words for what it did.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "marlin/sdk/logger.h"
#include "marlin/testing/checkpointer_contract.h"
#include "process.h"

namespace marlin::testing::detail {

/// A promise that was not kept; what() is the detail.
struct Broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// Where a check takes place. It is the working folder.
struct Stage {
  const CheckpointerContract& contract;
  std::filesystem::path folder;
  uint64_t seed = 0;

  /// A fresh folder in it.
  [[nodiscard]] std::filesystem::path fresh(const std::string& name) const;
};

/// Log lines to standard error, which is caught and told of where a process ends before its time.
class StderrLogger final : public Logger {
 public:
  void log(LogLevel level, std::string_view line) noexcept override;
};

/// One checkpointer, as a host uses it: its calls are made with its folder as working folder. What they throw, and a promise that
/// they break whatever is checked, is Broken; only the try_ calls let an Error through.
class Subject {
 public:
  Subject(const Stage& stage, std::filesystem::path folder);
  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;

  [[nodiscard]] AbstractCheckpointer& checkpointer() noexcept { return *checkpointer_; }

  void open(const RunStart& start = {});
  /// Saves state_at(epoch) and wants it kept.
  void save_epoch(int64_t epoch);
  void save(const Checkpoint& state, const SavePoint& point);
  void try_save(const Checkpoint& state, const SavePoint& point);
  /// The newest there is.
  [[nodiscard]] Checkpoint load();
  [[nodiscard]] Checkpoint try_load(const LoadRequest& request);
  /// Loads, and it is to be this state. @param promise  how messages say what was promised.
  Checkpoint expect(const Checkpoint& state, const std::string& promise);

  [[nodiscard]] SavePoint epoch_point(int64_t epoch) const;
  [[nodiscard]] SavePoint step_point(int64_t global_step) const;

 private:
  void enter() const;

  const Stage& stage_;
  std::filesystem::path folder_;
  StderrLogger logger_;
  HostContext host_;
  std::unique_ptr<AbstractCheckpointer> checkpointer_;
};

/// The request for the newest there is.
[[nodiscard]] LoadRequest newest();

/// Regular files below a folder, by relative path, with what they hold.
using Files = std::map<std::string, std::string>;
[[nodiscard]] Files files_below(const std::filesystem::path& folder);
void write(const std::filesystem::path& file, const std::string& content);

/// Runs `body` in a further process of the check and hands on what it throws. @param doing  "loading in a new process": a process that
/// does not end by itself is Broken with it.
void in_new_process(const std::string& doing, const std::function<void()>& body);
/// The same for what such a process said.
[[nodiscard]] std::string encoded(const std::function<void()>& body);
void hand_on(const std::string& doing, const Ending& ending);

}  // namespace marlin::testing::detail
