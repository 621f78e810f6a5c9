#include "marlin/checkpointers/durable_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <span>
#include <stdexcept>
#include <string>

#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using testing::content_of;
using testing::names_in;
using testing::TempFolder;
using testing::ThrowsError;
using testing::write_file;

void put(WritableFile& file, uint64_t offset, const std::string& text) { file.write_at(offset, std::as_bytes(std::span(text))); }

bool any_name(std::string_view) { return true; }

TEST(DurableFileTest, WritesAllOfItUnderItsNameAlone) {
  const TempFolder folder;
  const std::string large(3'000'000, 'x');
  write_atomically(folder / "deep/er/file.pt", large.size() + 10, [&](WritableFile& file) {
    put(file, 5 + large.size(), " tail");  // in any order
    put(file, 0, "head ");
    put(file, 5, "");
    put(file, 5, large);
  });
  EXPECT_EQ(content_of(folder / "deep/er/file.pt"), "head " + large + " tail");
  EXPECT_THAT(names_in(folder / "deep/er"), ElementsAre("file.pt"));
}

TEST(DurableFileTest, UntilItIsWholeTheTargetIsAsItWas) {
  const TempFolder folder;
  write_file(folder / "file.pt", "before");
  write_atomically(folder / "file.pt", 5, [&](WritableFile& file) {
    put(file, 0, "after");
    EXPECT_EQ(content_of(folder / "file.pt"), "before");
    EXPECT_THAT(names_in(folder.path()), UnorderedElementsAre("file.pt", temporary_name("file.pt")));
  });
  EXPECT_EQ(content_of(folder / "file.pt"), "after");
}

TEST(DurableFileTest, AThrowingWriterLeavesTheTargetAndNoTemporary) {
  const TempFolder folder;
  write_file(folder / "file.pt", "before");
  const auto broken = [](WritableFile& file) {
    put(file, 0, "half");
    throw std::runtime_error("no more");
  };
  EXPECT_THROW(write_atomically(folder / "file.pt", 8, broken), std::runtime_error);
  EXPECT_THROW(write_atomically(folder / "new.pt", 8, broken), std::runtime_error);
  EXPECT_EQ(content_of(folder / "file.pt"), "before");
  EXPECT_THAT(names_in(folder.path()), ElementsAre("file.pt"));
}

TEST(DurableFileTest, RefusalsOfTheSystemNamePathAndReason) {
  const TempFolder folder;
  write_file(folder / "file", "x");
  const auto nothing = [](WritableFile&) {};
  EXPECT_THAT([&] { write_atomically(folder / "file/below/x.pt", 0, nothing); }, ThrowsError(Errc::kIo, AllOf(HasSubstr("file"), HasSubstr("Not a directory"))));
  std::filesystem::create_directories(folder / "taken.pt/full");
  EXPECT_THAT([&] { write_atomically(folder / "taken.pt", 0, nothing); }, ThrowsError(Errc::kIo, HasSubstr("taken.pt: Is a directory")));
  EXPECT_THAT([&] { write_atomically("/proc/self/x.pt", 0, nothing); }, ThrowsError(Errc::kIo, HasSubstr("cannot write /proc/self/")));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("file", "taken.pt"));
}

TEST(DurableFileTest, PermissionsFollowTheUmask) {
  const TempFolder folder;
  for (const mode_t mask : {mode_t{022}, mode_t{077}, mode_t{002}}) {
    const mode_t before = ::umask(mask);
    write_atomically(folder / "file.pt", 1, [](WritableFile& file) { put(file, 0, "x"); });
    ::umask(before);
    struct stat status = {};
    ASSERT_EQ(::stat((folder / "file.pt").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777u, 0666u & ~mask);
  }
}

// The parts between the name and ".tmp" of a temporary that this process would make: host, pid, start time.
struct Temporary {
  std::string host, pid, start;
  [[nodiscard]] std::string name(const std::string& of) const { return "." + of + "." + host + "." + pid + "." + start + ".tmp"; }
};

Temporary own() {
  const std::string name = temporary_name("x");
  const size_t host_end = name.find('.', 3), pid_end = name.find('.', host_end + 1);
  return {name.substr(3, host_end - 3), name.substr(host_end + 1, pid_end - host_end - 1), name.substr(pid_end + 1, name.size() - pid_end - 5)};
}

TEST(DurableFileTest, TemporaryNamesSayWhoseTheyAre) {
  EXPECT_EQ(temporary_name("a.b_1.pt"), own().name("a.b_1.pt"));
  EXPECT_EQ(own().pid, std::to_string(::getpid()));
  EXPECT_NE(own().start, "0");
}

TEST(DurableFileTest, TemporariesOfDeadProcessesGoAndThoseOfLiveOnesStay) {
  const TempFolder folder;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);

  Temporary dead = own(), reused = own(), other_host = own();
  dead.pid = std::to_string(child);
  reused.start += "1";  // the number now belongs to another process: this one
  other_host.host += "-else";
  other_host.pid = dead.pid;
  for (const std::string& name : {dead.name("a.pt"), reused.name("b.pt"), other_host.name("c.pt"), own().name("d.pt"), std::string(".e.pt.tmp"), std::string("f.tmp"),
                                  dead.name("g.pt").substr(1), std::string(".h." + own().host + ".x.y.tmp"), std::string("i.pt")}) {
    write_file(folder / name, "x");
  }
  EXPECT_EQ(remove_stale_temporaries(folder.path(), any_name), 2);
  EXPECT_THAT(names_in(folder.path()), UnorderedElementsAre(other_host.name("c.pt"), own().name("d.pt"), ".e.pt.tmp", "f.tmp", dead.name("g.pt").substr(1),
                                                            ".h." + own().host + ".x.y.tmp", "i.pt"));
}

TEST(DurableFileTest, TemporariesOfALiveChildStay) {
  const TempFolder folder;
  int ready[2], done[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(done), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    char byte = 0;
    const std::string name = temporary_name("a.pt");
    if (::write(ready[1], name.data(), name.size()) < 0 || ::read(done[0], &byte, 1) < 0) ::_exit(1);
    ::_exit(0);
  }
  char name[512] = {};
  ASSERT_GT(::read(ready[0], name, sizeof name - 1), 0);
  EXPECT_NE(std::string(name), temporary_name("a.pt"));
  write_file(folder / name, "x");
  EXPECT_EQ(remove_stale_temporaries(folder.path(), any_name), 0);
  ASSERT_EQ(::write(done[1], "x", 1), 1);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(remove_stale_temporaries(folder.path(), any_name), 1);
  for (const int end : {ready[0], ready[1], done[0], done[1]}) ::close(end);
}

TEST(DurableFileTest, OnlyNamesThatAreOnesOwnAreRemoved) {
  const TempFolder folder;
  Temporary reused = own();
  reused.start += "1";
  write_file(folder / reused.name("mine_1.pt"), "x");
  write_file(folder / reused.name("other_1.pt"), "x");
  EXPECT_EQ(remove_stale_temporaries(folder.path(), [](std::string_view name) { return name == "mine_1.pt"; }), 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre(reused.name("other_1.pt")));
  EXPECT_EQ(remove_stale_temporaries(folder / "no such folder", any_name), 0);
}

}  // namespace
}  // namespace marlin
