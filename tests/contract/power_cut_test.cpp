// Checkpointers that leave something unsynced, and some that sync in ways of their own.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>

#include "simple_checkpointer.h"
#include "wrong_checkpointer.h"

namespace marlin::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

struct NeverSyncs : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override { write_checkpoint(file, checkpoint, point, Durability::kUnsynced); }
};

struct SyncsNoFolder : NeverSyncs {
  using NeverSyncs::NeverSyncs;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    NeverSyncs::write(file, checkpoint, point);
    if (!sync(file)) throw Error(Errc::kIo, "cannot sync " + file.string());
  }
};

struct SyncsTheFolderTooEarly : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    const fs::path temporary = file.string() + ".tmp";
    SimpleCheckpointer::write(temporary, checkpoint, point);  // syncs the file, and the folder
    fs::rename(temporary, file);
  }
};

struct WritesAfterItsSync : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    SimpleCheckpointer::write(file, checkpoint, point);
    const fs::path log = folder_ / "log.txt";
    std::ofstream(log, std::ios::app) << "one line\n";
    if (!sync(log) || !sync(folder_)) throw Error(Errc::kIo, "cannot sync " + log.string());
    std::ofstream(log, std::ios::app) << "and one more\n";
  }
};

struct SyncsNoFolderOfAFolder : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    const fs::path below = folder_ / "steps";
    SimpleCheckpointer::write(file, checkpoint, point);
    fs::create_directories(below);
    SimpleCheckpointer::write(below / file.filename(), checkpoint, point);
  }
};

// As the contract allows: each in its way, whatever it is called with.
template <void (*Sync)(int file, int folder)>
struct SyncsAnotherWay : NeverSyncs {
  using NeverSyncs::NeverSyncs;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    NeverSyncs::write(file, checkpoint, point);
    const int opened = ::open(file.c_str(), O_RDWR | O_CLOEXEC), folder = ::open(folder_.c_str(), O_RDONLY | O_CLOEXEC);
    Sync(opened, folder);
    ::close(opened), ::close(folder);
  }
};

void sync_file_system(int file, int) { (void)::syncfs(file); }
void sync_everything(int, int) { ::sync(); }
void sync_mapping(int file, int folder) {
  constexpr size_t kSize = 1;  // all of its page
  void* mapped = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  (void)::msync(mapped, kSize, MS_SYNC);
  (void)::munmap(mapped, kSize);
  (void)::fsync(folder);
}

struct WritesThrough : SimpleCheckpointer {
  using SimpleCheckpointer::SimpleCheckpointer;
  void write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) override {
    const std::string bytes = bytes_of(checkpoint, point);
    const fs::path temporary = file.string() + ".tmp";
    const int opened = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_DSYNC, 0666);
    const bool good = ::write(opened, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
    ::close(opened);
    if (!good) throw Error(Errc::kIo, "cannot write " + temporary.string());
    fs::rename(temporary, file);
    if (!sync(folder_)) throw Error(Errc::kIo, "cannot sync " + folder_.string());
  }
};

constexpr const char* kUnsyncedBytes = "its bytes were not synced after the last write";

TEST(PowerCutTest, WhatIsNeverSyncedDoesNotOutliveAPowerCut) {
  const std::vector<ContractCheck> failed = failures<NeverSyncs>();
  ASSERT_THAT(failed, ElementsAre(is("power cut", kUnsyncedBytes)));
  EXPECT_EQ(failed.front().detail,
            "save reported success, but a power cut would take back 'state_10.pt': its bytes were not synced after the last write, and the folder '.' was not synced "
            "after the name 'state_10.pt' came there; write it with marlin::write_atomically(), or fsync the file before it is renamed, and its folder afterwards");
}

template <class Wrong>
ContractCheck power_cut() {
  return check_checkpointer(contract_of<Wrong>(), "power cut");
}

TEST(PowerCutTest, EveryPartOfADurableSaveIsAskedFor) {
  EXPECT_THAT(power_cut<SyncsNoFolder>(), is("power cut", "'state_10.pt': the folder '.' was not synced after the name 'state_10.pt' came there"));
  EXPECT_THAT(power_cut<SyncsTheFolderTooEarly>(), is("power cut", "'state_10.pt': the folder '.' was not synced after the name 'state_10.pt' came there"));
  EXPECT_THAT(power_cut<WritesAfterItsSync>(), is("power cut", "'log.txt': its bytes were not synced after the last write; write it with"));
  EXPECT_THAT(power_cut<SyncsNoFolderOfAFolder>(), is("power cut", "the folder '.' was not synced after the name 'steps' came there"));
}
TEST(PowerCutTest, HowItIsSyncedIsNotAsked) {
  for (const ContractCheck& check : {power_cut<SyncsAnotherWay<sync_file_system>>(), power_cut<SyncsAnotherWay<sync_everything>>(), power_cut<SyncsAnotherWay<sync_mapping>>(), power_cut<WritesThrough>()}) {
    EXPECT_EQ(check.status, CheckStatus::kPassed) << to_line(check);
    EXPECT_EQ(check.detail, "2 files of two saves synced, with their names");
  }
}

}  // namespace
}  // namespace marlin::testing
