// Ignite's behaviour, row by row: folders, files, what fails. The number at a test's end is the row of the case table; a comment says
// where this project differs.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <stdexcept>

#include "faulty_file_system.h"
#include "ignite_support.h"
#include "marlin/checkpointers/durable_file.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::by_score;
using testing::content_of;
using testing::damage;
using testing::entry;
using testing::FaultyFileSystem;
using testing::FsOp;
using testing::IgniteCases;
using testing::listed;
using testing::Listed;
using testing::model_state;
using testing::names_in;
using testing::one;
using testing::point;
using testing::ThrowsError;
using testing::write_file;

const StateDict kUnwritable{{"model", StateDict{{"weight", at::Tensor()}}}};

// The umask of a block.
class Umask {
 public:
  explicit Umask(mode_t mask) : before_(::umask(mask)) {}
  ~Umask() { ::umask(before_); }
  Umask(const Umask&) = delete;
  Umask& operator=(const Umask&) = delete;

 private:
  mode_t before_;
};

mode_t mode_of(const std::filesystem::path& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0) throw std::runtime_error("no " + file.string());
  return status.st_mode & 0777;
}

// ---- folders

TEST_F(IgniteCases, AFolderIsADiskStorageRow9) {
  BestKCheckpointer checkpointer({.save_dir = folder.text(), .links = false});
  EXPECT_THAT(checkpointer.save_objects(one(), point(1, 1)), ElementsAre(file("model_1.pt")));
  EXPECT_THAT(files(), ElementsAre("model_1.pt"));
  BestKCheckpointer below({.save_dir = "below", .links = false}, {}, {.run_dir = folder.path()});
  below.open({});
  below.save_objects(one(), point(1, 1));
  EXPECT_THAT(names_in(folder / "below"), ElementsAre("model_1.pt")) << "relative folders start from the run's";
}

TEST_F(IgniteCases, AMissingFolderIsRefusedRows12And16) {
  const std::string missing = file("non-existing");
  EXPECT_THAT([&] { BestKCheckpointer({.save_dir = missing, .create_dir = false}).open({}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr(missing)));
  EXPECT_THAT([&] { DiskStorage(missing, /*create=*/false).prepare([](std::string_view) { return true; }); },
              ThrowsError(Errc::kInvalidArgument, HasSubstr(missing)));
  EXPECT_THAT(files(), IsEmpty());
  EXPECT_THAT(DiskStorage(missing, false).list(), IsEmpty());
}

TEST_F(IgniteCases, FoldersAreMadeRecursivelyRow162) {
  BestKCheckpointer checkpointer({.save_dir = file("a/b/c"), .links = false});
  checkpointer.open({});
  checkpointer.save_objects(one(), point(1, 1));
  EXPECT_THAT(names_in(folder / "a/b/c"), ElementsAre("model_1.pt"));
}

TEST_F(IgniteCases, AFileWhereTheFolderShouldBeIsNamedRow162) {
  write_file(folder / "taken", "x");
  EXPECT_THAT([&] { BestKCheckpointer({.save_dir = file("taken")}).open({}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr(file("taken"))));
  EXPECT_EQ(content_of(folder / "taken"), "x");
}

TEST_F(IgniteCases, ConstructionTouchesNothing) {
  (void)BestKCheckpointer({.save_dir = file("later")});
  EXPECT_THAT(files(), IsEmpty());
}

// ---- require_empty

TEST_F(IgniteCases, AFreshStartIsRefusedWhereItsNamesAreRows11And17) {
  for (const std::string name : {"PREFIX_name_0.pt", "PREFIX_obj_1.pt", "PREFIX_checkpoint_0.pt"}) {
    std::filesystem::remove(folder / "PREFIX_name_0.pt");
    std::filesystem::remove(folder / "PREFIX_obj_1.pt");
    write_file(folder / name, "x");
    EXPECT_THAT([&] { on_disk({.filename_prefix = "PREFIX"})->open({}); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr(name), HasSubstr(folder.text()))));
  }
  RunStart resume;
  resume.loaded_from = file("PREFIX_checkpoint_0.pt");
  resume.run_id = "this run";
  EXPECT_NO_THROW(on_disk({.filename_prefix = "PREFIX"})->open(resume)) << "asked of a fresh start only";
  EXPECT_THAT(files(), ElementsAre("PREFIX_checkpoint_0.pt"));
}

TEST_F(IgniteCases, OtherFilesAreLeftAloneRow113) {
  write_file(folder / "PREFIX_obj_1.txt", "x");
  const auto checkpointer = on_disk({.filename_prefix = "PREFIX"});
  checkpointer->open({});
  checkpointer->save_objects(one(), point(0, 1));
  EXPECT_THAT(files(), ElementsAre("PREFIX_model_1.pt", "PREFIX_obj_1.txt"));
  EXPECT_EQ(content_of(folder / "PREFIX_obj_1.txt"), "x");
}

TEST_F(IgniteCases, WithoutRequireEmptyOldFilesStayRow114) {
  write_file(folder / "PREFIX_obj_1.pt", "x");
  const auto checkpointer = on_disk({.require_empty = false, .filename_prefix = "PREFIX"});
  checkpointer->open({});
  checkpointer->save_objects(one(), point(1, 1));
  checkpointer->save_objects(one(), point(1, 2));
  EXPECT_THAT(files(), ElementsAre("PREFIX_model_2.pt", "PREFIX_obj_1.pt"));
  EXPECT_EQ(content_of(folder / "PREFIX_obj_1.pt"), "x");
}

// Ignite counts every *.pt, folders too.
TEST_F(IgniteCases, OnlyItsOwnNamesCountDiffersFromRow160) {
  for (const char* name : {"other.pt", "other_checkpoint_1.pt", "checkpoint_1.pt", "PREFIX_checkpoint_1.pth", "PREFIX_checkpoint_1.PT", "PREFIX_checkpoint_x.pt"}) {
    write_file(folder / name, "x");
  }
  std::filesystem::create_directory(folder / "PREFIX_checkpoint_2.pt");
  const auto first = on_disk({.filename_prefix = "PREFIX"});
  EXPECT_NO_THROW(first->open({}));
  EXPECT_THAT(files(), SizeIs(7));
}

TEST_F(IgniteCases, AFolderInUseIsRefusedRow160) {
  const auto first = on_disk();
  first->open({});
  Checkpoint state;
  state.module_interface_state = model_state();
  first->save(state, point(1, 1));
  ASSERT_THAT(files(), ElementsAre("checkpoint_1.pt"));
  EXPECT_THAT([&] { on_disk()->open({}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpoint_1.pt")));
  EXPECT_NO_THROW(on_disk({.filename_prefix = "other"})->open({}));
}

TEST_F(IgniteCases, StartingOverRemovesItsOwnNamesOnly) {
  for (const char* name : {"PREFIX_checkpoint_1.pt", "PREFIX_checkpoint_1.txt", "checkpoint_1.pt"}) write_file(folder / name, "x");
  on_disk({.delete_existing_checkpoints = true, .filename_prefix = "PREFIX"})->open({});
  EXPECT_THAT(files(), ElementsAre("PREFIX_checkpoint_1.txt", "checkpoint_1.pt"));
}

// ---- files

TEST_F(IgniteCases, AFileIsReadableByAllRows107And109) {
  const Umask usual(022);
  on_disk()->save_objects(one(), point(1, 1));
  EXPECT_THAT(files(), ElementsAre("model_1.pt"));
  EXPECT_EQ(mode_of(folder / "model_1.pt"), 0644u);
}

// Ignite makes atomic files readable for everybody.
TEST_F(IgniteCases, TheUmaskDecidesDiffersFromRow161) {
  const Umask mine(077);
  on_disk()->save_objects(one(), point(1, 1));
  EXPECT_EQ(mode_of(folder / "model_1.pt"), 0600u);
}

TEST_F(IgniteCases, WhatCannotBeWrittenLeavesNoFileRows108And110) {
  EXPECT_THAT([&] { on_disk()->save_objects(kUnwritable, point(1, 1)); }, ThrowsError(Errc::kUnsupported, HasSubstr("model.weight")));
  EXPECT_THAT(files(), IsEmpty());
}

TEST_F(IgniteCases, RemovingWhatIsGoneIsNoFailureRow163) {
  DiskStorage disk(folder.path());
  disk.put("model_1.pt", one(), {});
  EXPECT_TRUE(disk.remove("model_1.pt"));
  EXPECT_FALSE(disk.remove("model_1.pt"));
}

TEST_F(IgniteCases, AFileIsOfTheMomentOfItsSaveRow168) {
  const auto checkpointer = on_disk();
  const StateDict live = one(1.0);
  checkpointer->save_objects(live, point(1, 1));
  live.at("model").as_dict().at("weight").as_tensor().fill_(7.0);
  EXPECT_TRUE(equal(read_archive(file("model_1.pt")).root, one(1.0)));
}

TEST_F(IgniteCases, AFolderListsItsRegularFilesOnly) {
  DiskStorage disk(folder.path());
  disk.put("model_1.pt", one(), {});
  disk.point("last.pt", "model_1.pt");
  std::filesystem::create_directory(folder / "model_2.pt");
  write_file(folder / temporary_name("model_3.pt"), "x");
  EXPECT_THAT(disk.list(), ElementsAre("model_1.pt"));
  EXPECT_EQ(disk.where("model_1.pt"), file("model_1.pt"));
}

// ---- failures

// Ignite has removed the first already, and lists a file that was never written.
TEST_F(IgniteCases, AFailedPutLeavesAllAsItWasDiffersFromRow136) {
  const auto checkpointer = in_memory({.include_self = true});
  checkpointer->save_objects(one(1.0), point(1, 1));
  const StateDict before = checkpointer->state();
  storage->before_put = [](const std::string& name) { throw Error(Errc::kIo, "cannot write " + name + ": no room"); };
  EXPECT_THAT([&] { checkpointer->save_objects(one(2.0), point(1, 2)); }, ThrowsError(Errc::kIo, HasSubstr("cannot write model_2.pt: no room")));
  EXPECT_THAT(storage->list(), ElementsAre("model_1.pt"));
  EXPECT_TRUE(equal(checkpointer->state(), before));
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_1.pt");
  storage->before_put = {};
  checkpointer->save_objects(one(3.0), point(1, 3));
  EXPECT_THAT(storage->calls, ElementsAre("put model_1.pt", "put model_3.pt", "remove model_1.pt"));
}

TEST_F(IgniteCases, AFullDiskLeavesAllAsItWasRow136) {
  FaultyFileSystem fs;
  BestKCheckpointer checkpointer({.save_dir = folder.text(), .links = false}, {}, {.file_system = &fs});
  checkpointer.save_objects(one(1.0), point(1, 1));
  for (const FsOp op : {FsOp::kCreate, FsOp::kWrite, FsOp::kSync, FsOp::kRename}) {
    fs.fail_next(op, ENOSPC);
    EXPECT_THAT([&] { checkpointer.save_objects(one(2.0), point(1, 2)); }, ThrowsError(Errc::kIo, HasSubstr("model_2.pt")));
    EXPECT_THAT(files(), ElementsAre("model_1.pt"));
    EXPECT_EQ(checkpointer.last_checkpoint(), file("model_1.pt"));
  }
  checkpointer.save_objects(one(2.0), point(1, 2));
  EXPECT_THAT(files(), ElementsAre("model_2.pt"));
}

// Ignite leaves an empty folder.
TEST_F(IgniteCases, WhatCannotBeWrittenRemovesNothingDiffersFromRow159) {
  const auto checkpointer = on_disk();
  checkpointer->save_objects(one(), point(1, 1));
  EXPECT_THAT([&] { checkpointer->save_objects(kUnwritable, point(1, 2)); }, ThrowsError(Errc::kUnsupported, HasSubstr("model.weight")));
  EXPECT_THAT(files(), ElementsAre("model_1.pt"));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{1.0, "model_1.pt"}}));
  EXPECT_TRUE(equal(read_archive(file("model_1.pt")).root, one()));
}

TEST_F(IgniteCases, AListenerIsNotCalledForAFailedSaveRow131) {
  const auto checkpointer = on_disk();
  int called = 0;
  checkpointer->on_saved([&](const SavedCheckpoint&) { ++called; });
  EXPECT_THROW(checkpointer->save_objects(kUnwritable, point(1, 1)), Error);
  EXPECT_EQ(called, 0);
}

// Ignite fails, and saves nothing from then on.
TEST_F(IgniteCases, AFileThatIsGoneWhenItsTurnComesIsAWarningDiffersFromRow156) {
  const auto checkpointer = on_disk();
  checkpointer->save_objects(one(), point(1, 1));
  std::filesystem::remove(folder / "model_1.pt");
  EXPECT_THAT(checkpointer->save_objects(one(), point(1, 2)), ElementsAre(file("model_2.pt")));
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("model_1.pt")));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{2.0, "model_2.pt"}}));
}

TEST_F(IgniteCases, AListRestoredInAnotherFolderIsEmptyWithAWarningDiffersFromRow156) {
  const auto checkpointer = on_disk();
  checkpointer->load_state({{"_saved", List{{entry(1.0, "model_1.pt")}}}});
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("model_1.pt")));
  checkpointer->save_objects(one(), point(1, 2));
  EXPECT_THAT(files(), ElementsAre("model_2.pt"));
}

// ---- files of other runs

TEST_F(IgniteCases, AFileOfAnotherRunIsNotWrittenOverRow114) {
  write_file(folder / "model_0.5000.pt", "x");
  const auto checkpointer = on_disk({.require_empty = false}, {.score_function = by_score});
  checkpointer->open({});
  EXPECT_THAT(checkpointer->save_objects(one(), point(1, 10, 0.5)), ElementsAre(file("model_0.5000_10.pt")));
  checkpointer->save_objects(one(), point(2, 20, 0.6));
  EXPECT_THAT(files(), ElementsAre("model_0.5000.pt", "model_0.6000.pt"));
  EXPECT_EQ(content_of(folder / "model_0.5000.pt"), "x");
}

// ---- links

TEST_F(IgniteCases, LinksLeadToTheBestAndTheNewest) {
  BestKCheckpointer checkpointer({.save_dir = folder.text(), .n_saved = 2}, {.score_function = by_score});
  checkpointer.save_objects(one(), point(1, 1, 0.9));
  checkpointer.save_objects(one(), point(2, 2, 0.5));
  EXPECT_THAT(files(), ElementsAre("best.pt", "last.pt", "model_0.5000.pt", "model_0.9000.pt"));
  EXPECT_EQ(std::filesystem::read_symlink(folder / "best.pt"), "model_0.9000.pt");
  EXPECT_EQ(std::filesystem::read_symlink(folder / "last.pt"), "model_0.5000.pt");
  checkpointer.save_objects(one(), point(3, 3, 0.95));
  EXPECT_EQ(std::filesystem::read_symlink(folder / "best.pt"), "model_0.9500.pt");
  EXPECT_EQ(std::filesystem::read_symlink(folder / "last.pt"), "model_0.9500.pt");
}

TEST_F(IgniteCases, WithoutAScoreThereIsNoBest) {
  BestKCheckpointer checkpointer({.save_dir = folder.text()});
  checkpointer.save_objects(one(), point(1, 1));
  checkpointer.save_objects(one(), point(1, 2));
  EXPECT_THAT(files(), ElementsAre("last.pt", "model_2.pt"));
  EXPECT_EQ(std::filesystem::read_symlink(folder / "last.pt"), "model_2.pt");
}

// ---- a run that goes on

class IgniteResume : public IgniteCases {
 protected:
  static Checkpoint state_at(int64_t step) {
    return {{{"weight", torch::full({50}, static_cast<double>(step))}}, {{"last_epoch", 0}}, {{"global_step_completed", step}, {"batches_completed", step}}, {}};
  }
  static SavePoint at(int64_t step, double score, const std::string& run = "this run", Cause cause = Cause::kPeriod) {
    SavePoint result = point(step / 10, step, score, "acc");
    result.run_id = run;
    result.cause = cause;
    return result;
  }
  [[nodiscard]] RunStart resume() const {
    RunStart start;
    start.loaded_from = file("checkpoint_10_acc=0.5000.pt");
    start.run_id = "this run";
    return start;
  }
  [[nodiscard]] std::unique_ptr<BestKCheckpointer> make() {
    return on_disk({.require_empty = false, .n_saved = 2, .score_name = "acc", .global_step = GlobalStepOf::kStep, .keep_latest = KeepLatest::kNo});
  }
  [[nodiscard]] static int64_t step_of(AbstractCheckpointer& checkpointer) { return checkpointer.load({LoadRequest::From::kAnywhere}).global_step(); }
};

TEST_F(IgniteResume, TheListIsFoundAgainFromTheRunsFiles) {
  const auto first = make();
  first->save(state_at(10), at(10, 0.5));
  first->save(state_at(20), at(20, 0.7));
  make()->save(state_at(30), at(30, 0.9, "another run"));
  const auto second = make();
  second->open(resume());
  EXPECT_EQ(listed(second->state()), listed(first->state()));
  second->save(state_at(40), at(40, 0.6));
  EXPECT_THAT(files(), ElementsAre("checkpoint_20_acc=0.7000.pt", "checkpoint_30_acc=0.9000.pt", "checkpoint_40_acc=0.6000.pt"));
}

TEST_F(IgniteResume, AnotherRunsFilesAreNotItsList) {
  make()->save(state_at(10), at(10, 0.5, "another run"));
  const auto fresh = make();
  RunStart start;
  start.run_id = "this run";
  fresh->open(start);
  EXPECT_THAT(listed(fresh->state()), IsEmpty());
}

TEST_F(IgniteResume, TheNewestWholeStateIsLoaded) {
  const auto checkpointer = make();
  checkpointer->save(state_at(10), at(10, 0.9));
  checkpointer->save(state_at(20), at(20, 0.7));
  EXPECT_EQ(step_of(*make()), 20) << "the newest, not the best";
  damage(folder / "checkpoint_20_acc=0.7000.pt");
  EXPECT_EQ(step_of(*make()), 10);
  EXPECT_THAT(logger.warnings(), ::testing::Contains(HasSubstr("checkpoint_20_acc=0.7000.pt")));
  damage(folder / "checkpoint_10_acc=0.9000.pt");
  EXPECT_THAT([&] { (void)step_of(*make()); }, ThrowsError(Errc::kCorrupt, HasSubstr("checkpoint_")));
}

TEST_F(IgniteResume, AnExceptionsStateIsLeftOut) {
  const auto checkpointer = make();
  checkpointer->save(state_at(10), at(10, 0.5));
  checkpointer->save(state_at(20), at(20, 0.7, "this run", Cause::kException));
  ASSERT_THAT(files(), ElementsAre("checkpoint_10_acc=0.5000.pt", "checkpoint_latest_20.pt")) << "whatever it scores, it is not one to choose";
  EXPECT_EQ(step_of(*make()), 10);
}

TEST_F(IgniteResume, NothingToLoadIsEmpty) { EXPECT_TRUE(make()->load({LoadRequest::From::kAnywhere}).empty()); }

}  // namespace
}  // namespace marlin
