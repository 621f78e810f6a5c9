#include "trainer/save_service.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <condition_variable>
#include <mutex>

#include "recording_logger.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;

// Keeps a deep copy of what it is given; can be held up in the middle of a save.
class Keeping : public AbstractCheckpointer {
 public:
  std::vector<Checkpoint> kept;
  std::function<void()> during_save = [] {};
  bool fails = false;

 protected:
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    during_save();
    if (fails) throw Error(Errc::kIo, "no room");
    kept.push_back({clone(checkpoint.module_interface_state), clone(checkpoint.trainer_state), clone(checkpoint.trainer_backend_state), {}});
    return {"place " + std::to_string(point.index)};
  }
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override { return {}; }
  Checkpoint do_load(const LoadRequest&) override { return {}; }
};

// A door that stays shut until it is opened.
class Door {
 public:
  void open() {
    {
      const std::lock_guard lock(mutex_);
      open_ = true;
    }
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

class SaveServiceTest : public ::testing::Test {
 protected:
  SaveServiceTest() {
    torch::manual_seed(3);
    parameter_ = torch::randn({64, 64});
    view_ = parameter_.narrow(0, 8, 4);
    buffer_ = torch::randn({16});
  }

  Checkpoint live() const {
    Checkpoint checkpoint;
    checkpoint.module_interface_state = {{"parameter", parameter_}, {"view", view_}, {"buffer", buffer_}};
    checkpoint.trainer_backend_state = {{"global_step_completed", 7}};
    return checkpoint;
  }
  Snapshot::Storages may_wait() const { return {parameter_.storage().unsafeGetStorageImpl()}; }

  testing::RecordingLogger logger_;
  at::Tensor parameter_, view_, buffer_;
};

TEST_F(SaveServiceTest, ASnapshotEqualsTheStateAtItsSavePointWhileStepsGoOn) {
  Keeping checkpointer;
  SaveService service(logger_);
  for (int64_t step = 0; step < 200; ++step) {
    const StateDict expected = clone(live().module_interface_state);
    service.submit(live(), may_wait(), {.index = step}, {{0, &checkpointer}});
    buffer_.add_(1.0);  // forward moves buffers before the fence
    service.fence();
    parameter_.add_(0.5);  // the optimizer's step
    service.drain();
    ASSERT_EQ(checkpointer.kept.size(), static_cast<size_t>(step + 1));
    ASSERT_TRUE(equal(checkpointer.kept.back().module_interface_state, expected)) << step;
  }
  EXPECT_TRUE(checkpointer.kept.back().module_interface_state.at("view").as_tensor().is_alias_of(
      checkpointer.kept.back().module_interface_state.at("parameter").as_tensor()));
  EXPECT_EQ(service.take_outcomes().size(), 200U);
  EXPECT_TRUE(logger_.warnings().empty());
}

TEST_F(SaveServiceTest, WritingDoesNotHoldTheStepsUp) {
  Door door;
  Keeping checkpointer;
  checkpointer.during_save = [&] { door.pass(); };
  SaveService service(logger_);
  const StateDict expected = clone(live().module_interface_state);
  service.submit(live(), may_wait(), {}, {{0, &checkpointer}});
  service.fence();
  for (int step = 0; step < 10; ++step) {  // all of these are made while the save stands still
    service.fence();
    parameter_.mul_(1.1);
  }
  EXPECT_FALSE(service.has_outcomes());
  door.open();
  service.drain();
  ASSERT_EQ(checkpointer.kept.size(), 1U);
  EXPECT_TRUE(equal(checkpointer.kept[0].module_interface_state, expected));
}

TEST_F(SaveServiceTest, AFailedSaveIsReportedAndTheNextOneIsMade) {
  Keeping checkpointer;
  SaveService service(logger_);
  checkpointer.fails = true;
  service.submit(live(), may_wait(), {.index = 1}, {{4, &checkpointer}});
  service.drain();
  checkpointer.fails = false;
  service.submit(live(), may_wait(), {.index = 2}, {{4, &checkpointer}});
  service.drain();
  const auto outcomes = service.take_outcomes();
  ASSERT_EQ(outcomes.size(), 2U);
  ASSERT_TRUE(outcomes[0].error);
  EXPECT_THAT(outcomes[0].error->what(), HasSubstr("no room"));
  EXPECT_EQ(outcomes[0].checkpointer, 4U);
  EXPECT_FALSE(outcomes[1].error);
  EXPECT_THAT(outcomes[1].written, ::testing::ElementsAre("place 2"));
  EXPECT_FALSE(service.has_outcomes()) << "each outcome is told once";
}

TEST_F(SaveServiceTest, SeveralCheckpointersShareOneSnapshot) {
  Keeping first, second;
  SaveService service(logger_);
  service.submit(live(), may_wait(), {}, {{0, &first}, {1, &second}});
  service.fence();
  parameter_.zero_();
  service.drain();
  EXPECT_TRUE(equal(first.kept.at(0).module_interface_state, second.kept.at(0).module_interface_state));
}

// The copy's own half of what happens on two threads, in an order that is certain.
TEST_F(SaveServiceTest, AParameterChangedOutsideTheStepIsNoticedAndNeverTorn) {
  Snapshot snapshot;
  const Checkpoint first = snapshot.begin(live(), may_wait());
  parameter_.clamp_(-0.1, 0.1);  // before the background copy came to it
  snapshot.copy_rest();
  EXPECT_EQ(snapshot.repair(), 1);
  EXPECT_TRUE(torch::equal(first.module_interface_state.at("parameter").as_tensor(), parameter_));

  // From now on it is copied at the save point itself.
  const at::Tensor expected = parameter_.clone();
  const Checkpoint second = snapshot.begin(live(), may_wait());
  parameter_.zero_();
  snapshot.copy_rest();
  EXPECT_EQ(snapshot.repair(), 0);
  EXPECT_TRUE(torch::equal(second.module_interface_state.at("parameter").as_tensor(), expected));
}

TEST_F(SaveServiceTest, AChangeWhileTheCopyIsMadeIsFoundByTheFence) {
  Keeping checkpointer;
  SaveService service(logger_);
  std::vector<at::Tensor> rounds;  // all stay, so that none has the place of one that was changed before and is copied at once
  for (int64_t round = 0; round < 50; ++round) {
    const at::Tensor fresh = rounds.emplace_back(torch::rand({256, 256}));
    Checkpoint checkpoint;
    checkpoint.module_interface_state = {{"parameter", fresh}};
    service.submit(checkpoint, {fresh.storage().unsafeGetStorageImpl()}, {.index = round}, {{0, &checkpointer}});
    fresh.mul_(2.0);  // whenever the copy is made: before, during or after this
    service.fence();
    const at::Tensor expected = fresh.clone();
    fresh.zero_();
    service.drain();
    ASSERT_TRUE(torch::equal(checkpointer.kept.back().module_interface_state.at("parameter").as_tensor(), expected)) << round;
  }
  EXPECT_EQ(logger_.warnings().size(), 1U) << "told once";
}

TEST_F(SaveServiceTest, AConjugateViewIsSavedByItsValues) {
  Snapshot snapshot;
  const at::Tensor base = torch::randn({4}, torch::kComplexFloat);
  Checkpoint checkpoint;
  checkpoint.module_interface_state = {{"conj", base.conj()}};
  const Checkpoint copy = snapshot.begin(checkpoint, {});
  EXPECT_TRUE(torch::equal(copy.module_interface_state.at("conj").as_tensor(), base.conj().resolve_conj()));
}

TEST_F(SaveServiceTest, BuffersAreUsedAgainUnlessSomebodyKeptTheState) {
  Snapshot snapshot;
  const void* place = nullptr;
  {
    const Checkpoint state = snapshot.begin(live(), {});
    place = state.module_interface_state.at("parameter").as_tensor().const_data_ptr();
  }
  const Checkpoint kept = snapshot.begin(live(), {});
  EXPECT_EQ(kept.module_interface_state.at("parameter").as_tensor().const_data_ptr(), place);
  const at::Tensor before = kept.module_interface_state.at("parameter").as_tensor().clone();
  parameter_.zero_();
  const Checkpoint next = snapshot.begin(live(), {});
  EXPECT_NE(next.module_interface_state.at("parameter").as_tensor().const_data_ptr(), place);
  EXPECT_TRUE(torch::equal(kept.module_interface_state.at("parameter").as_tensor(), before));
}

}  // namespace
}  // namespace marlin
