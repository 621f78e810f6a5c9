// Checkpointers that are wrong in one place: each fails the check that is meant for it, and only that.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <ostream>

#include "marlin/testing/checkpointer_contract.h"
#include "simple_checkpointer.h"
#include "temp_folder.h"

namespace marlin::testing {

void PrintTo(const ContractCheck& check, std::ostream* stream) { *stream << to_line(check); }

namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What write_checkpoint() would write.
std::string bytes_of(const Checkpoint& checkpoint, const SavePoint& point) {
  const TempFolder folder;
  write_checkpoint(folder / "bytes", checkpoint, point, Durability::kUnsynced);
  return content_of(folder / "bytes");
}

// Whole in the end, but for a while under its own name and not yet whole; what fails is taken away.
struct WritesInPlace : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    const std::string bytes = bytes_of(checkpoint, point);
    std::FILE* stream = std::fopen(file.c_str(), "wb");
    const bool good = stream && std::fwrite(bytes.data(), 1, bytes.size(), stream) == bytes.size();
    if ((stream && std::fclose(stream) != 0) || !good) {
      fs::remove(file);
      throw Error(Errc::kIo, "cannot write " + file.string());
    }
  }
  [[nodiscard]] bool passes_over() const override { return false; }
};

struct IgnoresAFullDisk : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    const fs::path temporary = file.string() + ".tmp";
    std::ofstream(temporary, std::ios::binary) << bytes_of(checkpoint, point);  // whether that worked is not asked
    fs::rename(temporary, file);
  }
};

struct LoadsAFlippedByte : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  Checkpoint read(const fs::path& file) override { return read_checkpoint(file, Verify::kOff); }
};

struct IgnoresForce : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    if (schedule().period > 1 && point.index % schedule().period != 0) return {};
    return SimpleCheckpointer::do_save(checkpoint, point);
  }
};

struct ThrowsOnAnEmptyFolder : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  Checkpoint do_load(const LoadRequest& request) override {
    if (request.from != LoadRequest::From::kPath && !opened_ && steps().empty()) throw Error(Errc::kNotFound, "there is nothing in " + folder_.string());
    return SimpleCheckpointer::do_load(request);
  }
  void do_open(const RunStart&) override { opened_ = true; }
  bool opened_ = false;
};

// Of this process only.
struct KeepsItsStateInAStatic : AbstractCheckpointer {
  explicit KeepsItsStateInAStatic(const HostContext& host) : folder_(host.run_dir.string()) {}
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    StateDict parts = clone({{"module", checkpoint.module_interface_state}, {"trainer", checkpoint.trainer_state}, {"backend", checkpoint.trainer_backend_state}});
    kept()[folder_] = {parts.at("module").as_dict(), parts.at("trainer").as_dict(), parts.at("backend").as_dict(), "memory"};
    return {"memory"};
  }
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override { return {}; }
  Checkpoint do_load(const LoadRequest& request) override {
    if (kept().contains(folder_) && request.from != LoadRequest::From::kPath) {
      const Checkpoint& found = kept()[folder_];
      return {clone(found.module_interface_state), clone(found.trainer_state), clone(found.trainer_backend_state), found.source};
    }
    if (request.required) throw Error(Errc::kNotFound, "nothing was saved");
    return {};
  }
  static std::map<std::string, Checkpoint>& kept() {
    static std::map<std::string, Checkpoint> all;
    return all;
  }
  std::string folder_;
};

struct SharesAStatic : SimpleCheckpointer {
  explicit SharesAStatic(const HostContext& host) : SimpleCheckpointer(host) { shared() = host.run_dir; }
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    folder_ = shared();
    return SimpleCheckpointer::do_save(checkpoint, point);
  }
  static fs::path& shared() {
    static fs::path folder;
    return folder;
  }
};

struct Exits : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override { std::exit(3); }
};

struct Hangs : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override {
    while (true) ::pause();
  }
};

struct DereferencesNull : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override {
    const std::string* volatile nothing = nullptr;
    std::fputs("about to look\n", stderr);
    return {*nothing};
  }
};

struct KeepsWhatItWasLent : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    std::vector<std::string> where = SimpleCheckpointer::do_save(checkpoint, point);
    kept_ = checkpoint;
    kept_.source = "memory";
    return where;
  }
  Checkpoint do_load(const LoadRequest& request) override {
    return kept_.empty() || request.from == LoadRequest::From::kPath ? SimpleCheckpointer::do_load(request) : kept_;
  }
  Checkpoint kept_;
};

struct OrdersNamesAsTexts : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  Checkpoint do_load(const LoadRequest& request) override {
    std::string last;
    for (const int64_t step : steps()) last = std::max(last, concat("state_", step, ".pt"));
    return last.empty() || request.from == LoadRequest::From::kPath ? SimpleCheckpointer::do_load(request) : read(folder_ / last);
  }
};

struct ForgetsAfterAFailure : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    if (checkpoint.trainer_state.contains("odd")) {
      for (const auto& entry : fs::directory_iterator(folder_)) fs::remove(entry.path());
    }
    return SimpleCheckpointer::do_save(checkpoint, point);
  }
};

// Runs all checks. @return what failed.
template <class Wrong>
std::vector<ContractCheck> failures() {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) { return std::make_unique<Wrong>(host); };
  contract.max_interruptions = 10;
  contract.max_flips = 12;
  contract.seed = 1;
  std::vector<ContractCheck> failed;
  for (ContractCheck& check : check_checkpointer(contract)) {
    if (check.status == CheckStatus::kFailed) failed.push_back(std::move(check));
  }
  return failed;
}

auto is(const char* name, const char* detail) {
  return ::testing::AllOf(::testing::Field("name", &ContractCheck::name, name), ::testing::Field("detail", &ContractCheck::detail, HasSubstr(detail)));
}

TEST(WrongCheckpointerTest, WritingInPlaceDoesNotOutliveAKill) {
  EXPECT_THAT(failures<WritesInPlace>(), ElementsAre(is("kill in the middle of a save", "load failed: ")));
}
TEST(WrongCheckpointerTest, AFullDiskIsNotASuccess) { EXPECT_THAT(failures<IgnoresAFullDisk>(), ElementsAre(is("full disk", "save reported success"))); }
TEST(WrongCheckpointerTest, AFlippedByteIsNotLoaded) { EXPECT_THAT(failures<LoadsAFlippedByte>(), ElementsAre(is("broken file", "a state that was never saved"))); }
TEST(WrongCheckpointerTest, AForcedSaveIsKept) { EXPECT_THAT(failures<IgnoresForce>(), ElementsAre(is("period and force", "save of epoch 1 (force) kept nothing"))); }
TEST(WrongCheckpointerTest, AnEmptyFolderIsNoError) {
  EXPECT_THAT(failures<ThrowsOnAnEmptyFolder>(), ElementsAre(is("load of nothing", "there is nothing in")));
}
TEST(WrongCheckpointerTest, StateOfOneProcessIsNotSaved) {
  EXPECT_THAT(failures<KeepsItsStateInAStatic>(), ElementsAre(is("resume into a new process", "a second process: what an earlier process saved is found, but load found nothing")));
}
TEST(WrongCheckpointerTest, TwoInOneProcessDoNotShare) { EXPECT_THAT(failures<SharesAStatic>(), ElementsAre(is("two in one process", "the second finds what the first saved"))); }
TEST(WrongCheckpointerTest, AnExitIsOneFailedCheck) { EXPECT_THAT(failures<Exits>(), ElementsAre(is("models", "called exit(3)"))); }
TEST(WrongCheckpointerTest, AnEndlessLoopIsOneFailedCheck) {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) { return std::make_unique<Hangs>(host); };
  contract.time_limit = std::chrono::milliseconds(1500);
  const ContractCheck check = check_checkpointer(contract, "models");
  EXPECT_EQ(check.status, CheckStatus::kFailed);
  EXPECT_THAT(check, is("models", "took longer than 1.5 s"));
  EXPECT_LT(check.seconds, 30);
}
TEST(WrongCheckpointerTest, ACrashIsOneFailedCheckWithItsLastWords) {
  EXPECT_THAT(failures<DereferencesNull>(), ElementsAre(is("models", "ended by SIGSEGV; the last line that it wrote: about to look")));
}
TEST(WrongCheckpointerTest, WhatIsSavedIsNotChangedByTraining) { EXPECT_THAT(failures<KeepsWhatItWasLent>(), ElementsAre(is("round trip", "as it was when it was saved"))); }
TEST(WrongCheckpointerTest, TenIsNewerThanNine) { EXPECT_THAT(failures<OrdersNamesAsTexts>(), ElementsAre(is("newest wins", "the newest is 10"))); }
TEST(WrongCheckpointerTest, AFailureForgetsNothing) { EXPECT_THAT(failures<ForgetsAfterAFailure>(), ElementsAre(is("exceptions", "what was saved before stays"))); }

}  // namespace
}  // namespace marlin::testing
