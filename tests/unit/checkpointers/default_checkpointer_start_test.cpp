// What DefaultCheckpointer does when a run begins: refuse to mix runs, delete what it was told to.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/checkpointers/durable_file.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAreArray;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;
using testing::write_file;

Checkpoint state_at(int64_t epoch) {
  return {{{"weight", torch::ones({2})}}, {{"last_epoch", epoch}}, {{"global_step_completed", epoch}, {"batches_completed", epoch}}, {}};
}

class DefaultCheckpointerStartTest : public ::testing::Test {
 protected:
  DefaultCheckpointerStartTest() { options_.save_dir = (folder_ / "save").string(); }
  [[nodiscard]] std::unique_ptr<DefaultCheckpointer> make() { return std::make_unique<DefaultCheckpointer>(options_, HostContext{&logger_}); }
  [[nodiscard]] std::string file(const std::string& name) const { return (std::filesystem::path(options_.save_dir) / name).string(); }
  [[nodiscard]] std::vector<std::string> saved() const { return names_in(options_.save_dir); }
  void put(const std::vector<std::string>& names) {
    for (const std::string& name : names) write_file(file(name), "content");
  }

  TempFolder folder_;
  RecordingLogger logger_;
  DefaultCheckpointerOptions options_;
};

const std::vector<std::string> kForeign = {"a.pt",  "x.opt",  "receipt",  "keep.txt",  "checkpoint_best.pt",  "checkpointing_1.pt",  "checkpoint_1.pt2",
                                           "best_1.pt",  "checkpoint_best_1.pt",  "checkpoint_01.pt",  "checkpoint_1.tar",  "Checkpoint_1.pt"};
const std::vector<std::string> kOwn = {"checkpoint_0.pt", "checkpoint_12.pt", "checkpoint_step_7.pt", "checkpoint_suspect_8.pt", "checkpoint_model_12.pt"};

TEST_F(DefaultCheckpointerStartTest, AFreshStartIsRefusedWhileAnyOfItsNamesIsThere) {
  for (const std::string& name : kOwn) {
    put({name});
    EXPECT_THAT([&] { make()->open({}); },
                ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr(name), HasSubstr("--resume auto"), HasSubstr("--checkpointer.delete_existing_checkpoints"),
                                                          HasSubstr("--checkpointer.save_dir"), HasSubstr(options_.save_dir))));
    EXPECT_THAT(saved(), ElementsAre(name)) << "untouched";
    std::filesystem::remove(file(name));
  }
  put(kForeign);
  std::filesystem::create_directory(file("checkpoint_3.pt"));
  EXPECT_NO_THROW(make()->open({})) << "none of these is its own";
}

TEST_F(DefaultCheckpointerStartTest, TheRefusalNamesTheFolderThatHoldsThem) {
  options_.model_state_save_dir = (folder_ / "models").string();
  write_file(folder_ / "models" / "checkpoint_model_1.pt", "x");
  EXPECT_THAT([&] { make()->open({}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("models' holds checkpoints of an earlier run (checkpoint_model_1.pt)")));
}

TEST_F(DefaultCheckpointerStartTest, AResumedRunGoesOnBesideItsFiles) {
  put(kOwn);
  EXPECT_NO_THROW(make()->open({file("checkpoint_12.pt")}));
  EXPECT_THAT(saved(), UnorderedElementsAreArray(kOwn));
}

TEST_F(DefaultCheckpointerStartTest, WithTheSwitchOffNothingIsRefusedNorDeleted) {
  put(kOwn);
  options_.checkpoint = false;
  options_.delete_existing_checkpoints = true;
  EXPECT_NO_THROW(make()->open({}));
  EXPECT_THAT(saved(), UnorderedElementsAreArray(kOwn));
}

TEST_F(DefaultCheckpointerStartTest, DeletesItsOwnNamesAndNothingElse) {
  options_.delete_existing_checkpoints = true;
  put(kOwn);
  put(kForeign);
  write_file(file("old/checkpoint_3.pt"), "in a folder below");
  std::filesystem::create_directory(file("checkpoint_5.pt"));
  make()->open({});
  std::vector<std::string> left = kForeign;
  left.insert(left.end(), {"old", "checkpoint_5.pt"});
  EXPECT_THAT(saved(), UnorderedElementsAreArray(left));
  EXPECT_THAT(names_in(file("old")), ElementsAre("checkpoint_3.pt"));
}

TEST_F(DefaultCheckpointerStartTest, ALinkIsNotFollowed) {
  options_.delete_existing_checkpoints = true;
  put({"checkpoint_0.pt"});
  write_file(folder_ / "elsewhere.pt", "content");
  std::filesystem::create_symlink(folder_ / "elsewhere.pt", file("checkpoint_1.pt"));
  make()->open({});
  EXPECT_TRUE(std::filesystem::exists(folder_ / "elsewhere.pt"));
}

TEST_F(DefaultCheckpointerStartTest, ASeparateModelFolderLosesItsModelFilesOnly) {
  options_.delete_existing_checkpoints = true;
  options_.model_state_save_dir = (folder_ / "models").string();
  put({"checkpoint_1.pt", "checkpoint_model_1.pt"});
  for (const char* name : {"checkpoint_1.pt", "checkpoint_model_1.pt", "checkpoint_step_1.pt", "other_model_1.pt"}) write_file(folder_ / "models" / name, "x");
  make()->open({});
  EXPECT_THAT(saved(), ElementsAre("checkpoint_model_1.pt")) << "models are not written here";
  EXPECT_THAT(names_in(folder_ / "models"), ElementsAre("checkpoint_1.pt", "checkpoint_step_1.pt", "other_model_1.pt"));
}

TEST_F(DefaultCheckpointerStartTest, TheSameFolderUnderTwoNamesIsOneFolder) {
  options_.delete_existing_checkpoints = true;
  options_.model_state_save_dir = (folder_ / "save" / ".." / "save").string();
  put({"checkpoint_1.pt", "checkpoint_model_1.pt"});
  make()->open({});
  EXPECT_THAT(saved(), IsEmpty());
}

TEST_F(DefaultCheckpointerStartTest, WithoutModelFilesThoseOfOthersStay) {
  options_.delete_existing_checkpoints = true;
  options_.model_state_save_dir = "";
  put({"checkpoint_1.pt", "checkpoint_model_1.pt"});
  make()->open({});
  EXPECT_THAT(saved(), ElementsAre("checkpoint_model_1.pt"));
  options_.delete_existing_checkpoints = false;
  EXPECT_NO_THROW(make()->open({})) << "not a name that it could write";
}

TEST_F(DefaultCheckpointerStartTest, TheFileThatIsResumedFromStaysUntilANewOneIsCommitted) {
  options_.delete_existing_checkpoints = true;
  for (int64_t epoch = 0; epoch < 3; ++epoch) write_checkpoint(file("checkpoint_" + std::to_string(epoch) + ".pt"), state_at(epoch), {});
  const auto checkpointer = make();
  checkpointer->open({file("checkpoint_2.pt")});
  EXPECT_THAT(saved(), ElementsAre("checkpoint_2.pt"));

  Checkpoint unwritable = state_at(3);
  unwritable.trainer_state.set("bad", torch::zeros({1}, torch::kMeta));
  EXPECT_THAT([&] { checkpointer->save(unwritable, 3); }, ThrowsError(Errc::kUnsupported, HasSubstr("bad")));
  checkpointer->save_model(state_at(3).module_interface_state, 3);
  EXPECT_THAT(saved(), ElementsAre("checkpoint_2.pt", "checkpoint_model_3.pt")) << "neither a failed save nor a model replaces it";

  checkpointer->save(state_at(3), 3);
  EXPECT_THAT(saved(), ElementsAre("checkpoint_3.pt", "checkpoint_model_3.pt"));
  checkpointer->save(state_at(4), 4);
  EXPECT_THAT(saved(), ElementsAre("checkpoint_3.pt", "checkpoint_4.pt", "checkpoint_model_3.pt")) << "its own new ones are kept";
}

TEST_F(DefaultCheckpointerStartTest, TheFileThatIsResumedFromMayBeWrittenAnew) {
  options_.delete_existing_checkpoints = true;
  write_checkpoint(file("checkpoint_2.pt"), state_at(2), {});
  const auto checkpointer = make();
  checkpointer->open({file("checkpoint_2.pt")});
  checkpointer->save(state_at(2), 2);
  EXPECT_THAT(saved(), ElementsAre("checkpoint_2.pt"));
}

TEST_F(DefaultCheckpointerStartTest, ResumedFromElsewhereDeletesHereOnly) {
  options_.delete_existing_checkpoints = true;
  put({"checkpoint_0.pt"});
  write_checkpoint(folder_ / "load" / "checkpoint_9.pt", state_at(9), {});
  const auto checkpointer = make();
  checkpointer->open({(folder_ / "load" / "checkpoint_9.pt").string()});
  EXPECT_THAT(saved(), IsEmpty());
  checkpointer->save(state_at(10), 10);
  EXPECT_THAT(names_in(folder_ / "load"), ElementsAre("checkpoint_9.pt"));
}

// As a process left it that is gone: this process's name for it with another start time.
std::string of_a_dead_process(const std::string& name) {
  std::string temporary = temporary_name(name);
  const size_t end = temporary.size() - std::string(".tmp").size();
  return temporary.insert(end, "9");
}

TEST_F(DefaultCheckpointerStartTest, StaleTemporariesOfItsOwnNamesGoInBothFolders) {
  options_.model_state_save_dir = (folder_ / "models").string();
  const std::string live = temporary_name("checkpoint_4.pt");
  put({of_a_dead_process("checkpoint_3.pt"), of_a_dead_process("other_3.pt"), live});
  write_file(folder_ / "models" / of_a_dead_process("checkpoint_model_3.pt"), "x");
  make()->open({});
  EXPECT_THAT(saved(), UnorderedElementsAreArray({of_a_dead_process("other_3.pt"), live}));
  EXPECT_THAT(names_in(folder_ / "models"), IsEmpty());
}

// A run that was killed within the file of its bare model has nothing left to train: the next one writes that file, and opens nothing.
TEST_F(DefaultCheckpointerStartTest, StaleTemporariesOfModelsGoWhereAModelIsAllThatIsWritten) {
  put({of_a_dead_process("checkpoint_model_3.pt"), of_a_dead_process("other_3.pt")});
  make()->save_model(state_at(3).module_interface_state, 3);
  EXPECT_THAT(saved(), UnorderedElementsAreArray({of_a_dead_process("other_3.pt"), std::string("checkpoint_model_3.pt")}));
}

}  // namespace
}  // namespace marlin
