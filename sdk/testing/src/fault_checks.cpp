// Saves that are interrupted, by the end of the process or of the disk, and what is on disk after one that was not.
#include <signal.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "disk_watch.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "states.h"
#include "system_faults.h"

namespace marlin::testing::detail {
namespace {

namespace fs = std::filesystem;

// What a process says, instead of what encoded() does, if the save that was to fail reported success. Only the watching process
// knows whether a call of it was failed at all.
constexpr const char* kSucceeded = "succeeded";

// @param body  false: the save that was to fail reported success.
WatchedEnding watch(const Faults& faults, const std::function<bool(const Gate&)>& body, CallListener* listener = nullptr) {
  try {
    return run_with_faults(faults, [&](const Gate& gate) {
      bool as_meant = true;
      const std::string said = encoded([&] { as_meant = body(gate); });
      return as_meant ? said : std::string(kSucceeded);
    }, listener);
  } catch (const Error& error) {
    if (error.code() == Errc::kUnsupported) throw NotRun(concat("not run: ", error.what()));
    throw;
  }
}

// Of 1 to `count`, all or as many as are allowed, evenly chosen.
std::vector<int64_t> chosen(int64_t count, int64_t most) {
  std::vector<int64_t> result;
  const int64_t size = std::min(count, most);
  for (int64_t i = 0; i < size; ++i) result.push_back(1 + i * count / size);
  return result;
}

std::string how_many(size_t places, size_t all, const char* what) {
  if (places == all) return concat("at each of ", all, " ", what);
  return concat("at ", places, " of ", all, " ", what);
}

// The save that is interrupted.
void second_save(Subject& subject, const Gate& gate) {
  gate.arm();
  subject.try_save(state_at(1), subject.epoch_point(1));
  gate.disarm();
}

std::vector<FileCall> calls_of_a_save(const Stage& stage) {
  const WatchedEnding dry = watch({}, [&](const Gate& gate) {
    Subject subject(stage, stage.fresh("dry_run"));
    subject.open();
    subject.save_epoch(0);
    second_save(subject, gate);
    return true;
  });
  hand_on("a save that is not interrupted", dry.ending);
  if (dry.calls.empty()) throw NotRun("not applicable: a save made no system call that changes files");
  return dry.calls;
}

// The state before or the new one; then a further save.
void look_after(const Stage& stage, const fs::path& folder) {
  Subject subject(stage, folder);
  const Checkpoint found = subject.load();
  if (found.empty()) throw Broken("load found nothing, though a whole checkpoint had been saved before");
  const std::string from_old = difference(state_at(0), found), from_new = difference(state_at(1), found);
  if (!from_old.empty() && !from_new.empty()) throw Broken(concat("load gave neither the state before nor the new one: ", from_new));
  subject.open({.loaded_from = found.source, .run_id = "contract"});
  subject.save_epoch(2);
  Subject(stage, folder).expect(state_at(2), "the next save is kept");
}

}  // namespace

std::string check_kill(const Stage& stage) {
  const std::vector<FileCall> calls = calls_of_a_save(stage);
  const std::vector<int64_t> places = chosen(static_cast<int64_t>(calls.size()), stage.contract.max_interruptions);
  size_t killed = 0;
  for (const int64_t place : places) {
    const fs::path folder = stage.fresh(concat("kill_", place));
    const WatchedEnding run = watch({Faults::Kind::kKill, place}, [&](const Gate& gate) {
      Subject subject(stage, folder);
      subject.open();
      subject.save_epoch(0);
      second_save(subject, gate);
      return true;
    });
    const std::string where = concat("after a kill before call ", place, " of ", calls.size(), " (", run.calls.empty() ? "none" : run.calls.back().name, ") of a save");
    if (!run.killed || run.ending.signal != SIGKILL) hand_on(concat("a save that is to be killed before call ", place), run.ending);
    in_new_process(where, [&] { look_after(stage, folder); });
    fs::remove_all(folder);
    killed += run.killed;  // or this time the save needed fewer calls
  }
  if (killed == 0) throw NotRun("not run: no save came as far as the call before which it was to be killed");
  return concat("killed ", how_many(killed, calls.size(), "calls that change files"));
}

std::string check_full_disk(const Stage& stage) {
  const std::vector<FileCall> calls = calls_of_a_save(stage);
  std::vector<int64_t> needing;  // the numbers of the calls that a full disk fails
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].needs_space) needing.push_back(static_cast<int64_t>(i) + 1);
  }
  if (needing.empty()) throw NotRun("not applicable: a save made no system call that needs space");
  const std::vector<int64_t> places = chosen(static_cast<int64_t>(needing.size()), stage.contract.max_interruptions);
  size_t full = 0;
  for (const int64_t place : places) {
    const int64_t at = needing[static_cast<size_t>(place) - 1];
    const std::string when = concat("with a disk that is full from call ", at, " of ", calls.size(), " (", calls[static_cast<size_t>(at) - 1].name, ") of a save on");
    const fs::path folder = stage.fresh(concat("full_", at));
    const WatchedEnding run = watch({Faults::Kind::kDiskFull, at}, [&](const Gate& gate) {
      Subject subject(stage, folder);
      subject.open();
      subject.save_epoch(0);
      std::string refusal;
      try {
        second_save(subject, gate);
      } catch (const Error& error) {
        gate.disarm();
        refusal = error.what();
      }
      if (refusal.empty()) return false;
      {
        Subject other(stage, folder);
        const Checkpoint found = other.load();
        const std::string from_old = difference(state_at(0), found), from_new = difference(state_at(1), found);
        if (!from_old.empty() && !from_new.empty()) throw Broken(concat("save failed, but load did not give the state before: ", from_old));
      }
      subject.save_epoch(2);  // there is space again
      subject.expect(state_at(2), "with space again the next save is kept");
      return true;
    });
    const bool succeeded = run.ending.returned && run.ending.said == kSucceeded;
    if (succeeded && run.failed > 0) throw Broken(concat(when, ": save reported success"));
    hand_on(run.failed > 0 ? when : concat("a save of which no call was failed, though the disk was to be full from call ", at, " on"), run.ending);
    if (run.failed > 0) {  // or this time the save needed fewer calls
      in_new_process(concat(when, ", then freed"), [&] { Subject(stage, folder).expect(state_at(2), "the next save is found in a new process"); });
      ++full;
    }
    fs::remove_all(folder);
  }
  if (full == 0) throw NotRun("not run: no save came as far as the call from which on the disk was to be full");
  return concat("full ", how_many(full, needing.size(), "calls that need space"));
}

std::string check_power_cut(const Stage& stage) {
  const fs::path folder = stage.fresh("power_cut");
  DiskWatch disk(folder);
  const WatchedEnding run = watch({}, [&](const Gate& gate) {
    gate.arm();  // folders that are made before the first save lead to its files, too
    Subject subject(stage, folder);
    subject.open();
    for (const int64_t epoch : {0, 1}) {
      gate.arm();
      subject.save_epoch(epoch);
      gate.disarm();
    }
    return true;
  }, &disk);
  hand_on("a save that is not interrupted", run.ending);
  if (disk.num_files() == 0) throw NotRun("not applicable: a save left no files");
  if (!disk.problem().empty()) {
    throw Broken(concat("save reported success, but a power cut would take back ", disk.problem(),
                        "; write it with marlin::write_atomically(), or fsync the file before it is renamed, and its folder afterwards"));
  }
  return concat(disk.num_files(), disk.num_files() == 1 ? " file" : " files", " of two saves synced, with their names");
}

}  // namespace marlin::testing::detail
