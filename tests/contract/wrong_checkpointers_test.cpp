// Checkpointers that are wrong in one place: each fails the check that is meant for it, and only that.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>

#include "marlin/testing/checkpointer_contract.h"
#include "simple_checkpointer.h"
#include "wrong_checkpointer.h"

namespace marlin::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;

// Whole in the end, but for a while under its own name and not yet whole; what fails is taken away.
struct WritesInPlace : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    const std::string bytes = bytes_of(checkpoint, point);
    std::FILE* stream = std::fopen(file.c_str(), "wb");
    const bool good = stream && std::fwrite(bytes.data(), 1, bytes.size(), stream) == bytes.size();
    if ((stream && std::fclose(stream) != 0) || !good || !sync(file) || !sync(folder_)) {
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
    (void)sync(temporary);
    fs::rename(temporary, file);
    (void)sync(folder_);
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

struct EndsAtOnce : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override { ::_exit(3); }
};

// What a process that it starts does is not told of as its own.
struct StartsOneThatExits : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save_model(const StateDict& state, int64_t index) override {
    const pid_t child = ::fork();
    if (child == 0) std::exit(4);
    ::waitpid(child, nullptr, 0);
    return SimpleCheckpointer::do_save_model(state, index);
  }
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

// What is done with the complex numbers of a model is for others to say.
struct MeetsComplexNumbers : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    Checkpoint kept = checkpoint;
    for (const StateDict::Entry& entry : checkpoint.module_interface_state) {
      const auto* tensor = entry.value.get_if<at::Tensor>();
      if (tensor && tensor->is_complex()) meet(kept.module_interface_state, entry.key);
    }
    SimpleCheckpointer::write(file, kept, point);
  }
  virtual void meet(StateDict& kept, const Key& key) = 0;
};

struct DropsComplexNumbers : MeetsComplexNumbers {
  using MeetsComplexNumbers::MeetsComplexNumbers;
  void meet(StateDict& kept, const Key& key) override { kept.erase(key); }
};

struct RefusesComplexNumbers : MeetsComplexNumbers {  // as the contract allows
  using MeetsComplexNumbers::MeetsComplexNumbers;
  void meet(StateDict&, const Key& key) override { throw Error(Errc::kUnsupported, concat("model.", to_string(key), ": a complex number")); }
};

struct RefusesComplexNumbersWithoutAName : MeetsComplexNumbers {
  using MeetsComplexNumbers::MeetsComplexNumbers;
  void meet(StateDict&, const Key&) override { throw Error(Errc::kUnsupported, "a complex number"); }
};

struct ForgetsSharingAndStrides : SimpleCheckpointer {  // as the contract allows
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    Checkpoint plain = checkpoint;
    for (StateDict::Entry& entry : plain.module_interface_state) entry.value = entry.value.as_tensor().clone(at::MemoryFormat::Contiguous);
    SimpleCheckpointer::write(file, plain, point);
  }
};

struct TakesBrokenForLater : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  Checkpoint read(const fs::path& file) override {
    try {
      return SimpleCheckpointer::read(file);
    } catch (const Error& error) {
      if (error.code() != Errc::kCorrupt) throw;
      throw Error(Errc::kUnsupported, concat("of a later version: ", error.what()));
    }
  }
  [[nodiscard]] bool passes_over() const override { return false; }
};

struct KeepsOneFile : SimpleCheckpointer {  // as the contract allows
  using SimpleCheckpointer::SimpleCheckpointer;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    write(file_, checkpoint, point);
    return {file_.string()};
  }
  Checkpoint do_load(const LoadRequest& request) override {
    if (request.from == LoadRequest::From::kPath) return SimpleCheckpointer::do_load(request);
    if (fs::exists(file_)) return load_file();
    if (request.required) throw Error(Errc::kNotFound, concat("there is no ", file_.string()));
    return {};
  }
  virtual Checkpoint load_file() {
    try {
      return read(file_);
    } catch (const Error& error) {
      throw Error(Errc::kCorrupt, error.what());
    }
  }
  fs::path file_ = folder_ / "only.pt";
};

struct TakesItsBrokenFileForNone : KeepsOneFile {
  using KeepsOneFile::KeepsOneFile;
  Checkpoint load_file() override {
    try {
      return read(file_);
    } catch (const Error&) {
      return {};
    }
  }
};

// In the runs that are to meet a full disk, the save that is to meet it is not the one that was counted before.
struct IsAnotherOnAFullDisk : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  [[nodiscard]] bool on_a_full_disk(const SavePoint& point) const { return folder_.filename().string().starts_with("full_") && point.index == 1; }
};

struct WritesNothingOnAFullDisk : IsAnotherOnAFullDisk {
  using IsAnotherOnAFullDisk::IsAnotherOnAFullDisk;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    if (on_a_full_disk(point)) return {"nowhere"};
    return SimpleCheckpointer::do_save(checkpoint, point);
  }
};

// From the second such run on: the first leaves a mark beside its folder with its last save.
struct WritesToOneFullDisk : IsAnotherOnAFullDisk {
  using IsAnotherOnAFullDisk::IsAnotherOnAFullDisk;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    const fs::path mark = folder_.parent_path() / "was_full";
    if (on_a_full_disk(point) && fs::exists(mark)) return {"nowhere"};
    if (point.index == 2) std::ofstream{mark};
    return SimpleCheckpointer::do_save(checkpoint, point);
  }
};

struct ExitsBeforeItMeetsAFullDisk : IsAnotherOnAFullDisk {
  using IsAnotherOnAFullDisk::IsAnotherOnAFullDisk;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    if (on_a_full_disk(point)) std::exit(3);
    return SimpleCheckpointer::do_save(checkpoint, point);
  }
};

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
TEST(WrongCheckpointerTest, WhereThereAreNoFilesAPowerCutIsNotChecked) {
  const ContractCheck check = check_checkpointer(contract_of<KeepsItsStateInAStatic>(), "power cut");
  EXPECT_EQ(check.status, CheckStatus::kNotRun) << to_line(check);
  EXPECT_EQ(check.detail, "not applicable: a save left no files");
}
TEST(WrongCheckpointerTest, TwoInOneProcessDoNotShare) { EXPECT_THAT(failures<SharesAStatic>(), ElementsAre(is("two in one process", "the second finds what the first saved"))); }
TEST(WrongCheckpointerTest, AnExitIsOneFailedCheck) { EXPECT_THAT(failures<Exits>(), ElementsAre(is("models", "called exit(3)"))); }
TEST(WrongCheckpointerTest, AnEndThatIsNoExitIsNotCalledOne) {
  EXPECT_THAT(check_checkpointer(contract_of<EndsAtOnce>(), "models"), is("models", "the process ended with code 3"));
  const ContractCheck check = check_checkpointer(contract_of<StartsOneThatExits>(), "models");
  EXPECT_EQ(check.status, CheckStatus::kPassed) << to_line(check);
}
TEST(WrongCheckpointerTest, AnEndlessLoopIsOneFailedCheck) {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) { return std::make_unique<Hangs>(host); };
  contract.time_limit = std::chrono::milliseconds(1500);
  const ContractCheck check = check_checkpointer(contract, "models");
  EXPECT_EQ(check.status, CheckStatus::kFailed);
  EXPECT_THAT(check, is("models", "took longer than 1.5 s"));
  EXPECT_TRUE(check.late);
  EXPECT_LT(check.seconds, 30);
}
TEST(WrongCheckpointerTest, ACrashIsOneFailedCheckWithItsLastWords) {
  EXPECT_THAT(failures<DereferencesNull>(), ElementsAre(is("models", "ended by SIGSEGV; the last line that it wrote: about to look")));
}
TEST(WrongCheckpointerTest, WhatIsSavedIsNotChangedByTraining) { EXPECT_THAT(failures<KeepsWhatItWasLent>(), ElementsAre(is("round trip", "as it was when it was saved"))); }
TEST(WrongCheckpointerTest, TenIsNewerThanNine) { EXPECT_THAT(failures<OrdersNamesAsTexts>(), ElementsAre(is("newest wins", "the newest is 10"))); }
TEST(WrongCheckpointerTest, AFailureForgetsNothing) { EXPECT_THAT(failures<ForgetsAfterAFailure>(), ElementsAre(is("exceptions", "what was saved before stays"))); }

TEST(WrongCheckpointerTest, WhatAFormatLacksIsNotDroppedInSilence) {
  EXPECT_THAT(failures<DropsComplexNumbers>(), ElementsAre(is("round trip", "save of a state with a tensor of complex64 did not fail, so that load gives it, but")));
}
TEST(WrongCheckpointerTest, WhatAFormatLacksIsRefusedByName) {
  EXPECT_THAT(failures<RefusesComplexNumbersWithoutAName>(), ElementsAre(is("round trip", "names the entry 'dtype.complex64', but it failed with: ")));
  const ContractCheck check = check_checkpointer(contract_of<RefusesComplexNumbers>(), "round trip");
  EXPECT_EQ(check.status, CheckStatus::kPassed) << to_line(check);
  EXPECT_EQ(check.detail, "refuses complex64, complex128, complex32");
}
TEST(WrongCheckpointerTest, SharingAndStridesNeedNotBeKept) { EXPECT_THAT(failures<ForgetsSharingAndStrides>(), IsEmpty()); }
TEST(WrongCheckpointerTest, ABrokenFileIsNotOfALaterVersion) {
  EXPECT_THAT(failures<TakesBrokenForLater>(), ElementsAre(is("broken file", "load says that the damaged file is of another version, where it is broken: ")));
}
TEST(WrongCheckpointerTest, WhereTheOnlyFileIsGoneThereIsNoCheckpoint) { EXPECT_THAT(failures<KeepsOneFile>(), IsEmpty()); }
TEST(WrongCheckpointerTest, WhereTheOnlyFileIsBrokenThereIsOne) {
  EXPECT_THAT(failures<TakesItsBrokenFileForNone>(), ElementsAre(is("broken file", "load found nothing and did not say why")));
}
TEST(WrongCheckpointerTest, ADiskThatWasNeverFullIsNotAPass) {
  const ContractCheck check = check_checkpointer(contract_of<WritesNothingOnAFullDisk>(), "full disk");
  EXPECT_EQ(check.status, CheckStatus::kNotRun) << to_line(check);
  EXPECT_EQ(check.detail, "not run: no save came as far as the call from which on the disk was to be full");
}
TEST(WrongCheckpointerTest, OnlyDisksThatWereFullAreCounted) {
  const ContractCheck check = check_checkpointer(contract_of<WritesToOneFullDisk>(), "full disk");
  EXPECT_THAT(check.detail, MatchesRegex("full at 1 of [0-9]+ calls that need space"));
}
TEST(WrongCheckpointerTest, AnExitBeforeTheDiskIsFullIsAFailure) {
  EXPECT_THAT(failures<ExitsBeforeItMeetsAFullDisk>(), ElementsAre(is("full disk", "called exit(3)")));
}

}  // namespace
}  // namespace marlin::testing
