#include "marlin/core/data/iterable_loader.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;
using torch::data::Example;

// Sample i of an epoch is ([seed, epoch], 1000 * seed + i).
class Stream : public IterableDataset<Example<>> {
 public:
  struct Log {
    std::mutex mutex;
    std::condition_variable changed;
    int64_t reads = 0, open_until = 1 << 30, broken = -1;
    bool alone = true, told = false, inside = false;
    void open(int64_t until = 1 << 30) {
      const std::lock_guard lock(mutex);
      open_until = until;
      changed.notify_all();
    }
    void wait_for_reads(int64_t count) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return reads >= count; });
    }
  };

  explicit Stream(int64_t size, std::shared_ptr<Log> log = std::make_shared<Log>()) : size_(size), log_(std::move(log)) {}
  void begin_epoch(uint64_t seed, int64_t epoch) override {
    {
      const std::lock_guard lock(log_->mutex);
      log_->alone = log_->alone && !log_->inside;
    }
    seed_ = static_cast<int64_t>(seed);
    epoch_ = epoch;
    at_ = 0;
  }
  std::optional<Example<>> next() override {
    {
      std::unique_lock lock(log_->mutex);
      log_->inside = true;
      ++log_->reads;
      log_->changed.notify_all();
      log_->changed.wait(lock, [&] { return log_->reads <= log_->open_until; });
      log_->inside = false;
      if (at_ == log_->broken) throw std::runtime_error("connection lost");
    }
    if (at_ == size_) return std::nullopt;
    const int64_t number = 1000 * seed_ + at_++;
    return Example<>(torch::tensor({seed_, epoch_}), torch::tensor(number));
  }
  std::optional<int64_t> num_samples() const override { return log_->told ? std::optional(size_) : std::nullopt; }
  StateDict get_state() const override { return {{"at", at_}}; }
  void update_state(const StateDict& state) override {
    const int64_t at = state.at("at").as_int();
    if (at > size_) throw std::runtime_error("no such row");
    at_ = at;
  }

 private:
  int64_t size_;
  std::shared_ptr<Log> log_;
  int64_t seed_ = 0, epoch_ = 0, at_ = 0;
};

LoaderRequest request(int64_t batch_size, uint64_t seed = 2, int rank = 0, int world_size = 1) {
  return {.stage = Stage::kTrain, .batch_size = batch_size, .rank = rank, .world_size = world_size, .seed = seed};
}

IterableLoader<Example<>> loader_of(int64_t size, const LoaderRequest& asked, const IterableLoaderOptions& options = {},
                                    std::shared_ptr<Stream::Log> log = std::make_shared<Stream::Log>()) {
  return IterableLoader<Example<>>(std::make_unique<Stream>(size, std::move(log)), asked, options);
}

std::vector<std::vector<int64_t>> rest(DataLoader& loader) {
  std::vector<std::vector<int64_t>> batches;
  for (Batch batch; loader.next(batch);) {
    const at::Tensor target = batch.target().contiguous();
    batches.emplace_back(target.const_data_ptr<int64_t>(), target.const_data_ptr<int64_t>() + target.numel());
    EXPECT_EQ(batch.num_samples, target.numel());
  }
  return batches;
}

using Batches = std::vector<std::vector<int64_t>>;

TEST(IterableLoaderTest, BatchesComeInOrderWithAndWithoutAThread) {
  for (const int64_t workers : {0, 1}) {
    auto loader = loader_of(7, request(3), {.num_workers = workers});
    for (const int64_t epoch : {0, 1}) {
      loader.begin_epoch(epoch);
      EXPECT_EQ(rest(loader), (Batches{{2000, 2001, 2002}, {2003, 2004, 2005}, {2006}}));
      Batch batch;
      EXPECT_FALSE(loader.next(batch)) << "at the end it stays";
      EXPECT_FALSE(loader.interrupted());
      EXPECT_EQ(loader.consumed_samples(), 7);
    }
    auto shorter = loader_of(7, request(3), {.drop_last = true, .num_workers = workers});
    EXPECT_EQ(rest(shorter), (Batches{{2000, 2001, 2002}, {2003, 2004, 2005}}));
    EXPECT_EQ(shorter.consumed_samples(), 6);
  }
}

TEST(IterableLoaderTest, ALengthIsKnownIfTheDataSetKnowsIt) {
  auto log = std::make_shared<Stream::Log>();
  auto unknown = loader_of(7, request(3), {}, log);
  EXPECT_FALSE(unknown.num_batches().has_value());
  EXPECT_FALSE(unknown.get_state().contains("num_samples"));
  log->told = true;
  auto known = loader_of(7, request(3), {}, log);
  EXPECT_EQ(known.num_batches(), 3);
  EXPECT_EQ(known.get_state().at("num_samples").as_int(), 7);
  EXPECT_THAT([&] { loader_of(8, request(3), {}, log).update_state(known.get_state()); },
              ThrowsError(Errc::kMismatch, ::testing::StrEq("data set: 7 samples an epoch in the file, 8 in this run")));
}

TEST(IterableLoaderTest, FromEachPositionTheStraightRestFollowsAndNothingIsReadTwice) {
  auto straight = loader_of(11, request(2));
  straight.begin_epoch(4);
  const Batches whole = rest(straight);
  for (const int64_t workers : {0, 1}) {
    for (size_t done = 0; done <= whole.size(); ++done) {
      auto before = loader_of(11, request(2), {.num_workers = workers, .prefetch_factor = 4});
      before.begin_epoch(4);
      Batch batch;
      for (size_t i = 0; i < done; ++i) ASSERT_TRUE(before.next(batch));
      auto log = std::make_shared<Stream::Log>();
      auto after = loader_of(11, request(2), {.num_workers = workers}, log);
      after.update_state(before.get_state());
      EXPECT_EQ(after.consumed_samples(), std::min<int64_t>(11, 2 * static_cast<int64_t>(done)));
      EXPECT_EQ(rest(after), (Batches(whole.begin() + static_cast<std::ptrdiff_t>(done), whole.end())));
      EXPECT_EQ(log->reads, 11 - after.consumed_samples() + (11 - before.consumed_samples()) + 1) << "the rest, and its end";
    }
  }
}

TEST(IterableLoaderTest, WithinAnEpochAnotherSeedOrBatchSizeLosesNoSample) {
  auto before = loader_of(9, request(2, 3), {.num_workers = 1});
  Batch batch;
  ASSERT_TRUE(before.next(batch));
  auto after = loader_of(9, request(4, 5), {.num_workers = 1});
  after.update_state(before.get_state());
  EXPECT_EQ(rest(after), (Batches{{3002, 3003, 3004, 3005}, {3006, 3007, 3008}}));
  after.begin_epoch(0);
  EXPECT_EQ(rest(after)[0][0], 5000);
}

TEST(IterableLoaderTest, RanksTogetherHaveTheGlobalBatch) {
  for (int ranks = 2; ranks <= 4; ++ranks) {
    Batches joined(3);
    for (int rank = 0; rank < ranks; ++rank) {
      auto loader = loader_of(9, request(4, 2, rank, ranks), {.num_workers = rank % 2});
      const Batches own = rest(loader);
      ASSERT_EQ(own.size(), 3u) << "every rank has a part in every batch";
      for (size_t i = 0; i < 3; ++i) joined[i].insert(joined[i].end(), own[i].begin(), own[i].end());
      EXPECT_EQ(loader.consumed_samples(), 9);
    }
    EXPECT_EQ(joined, (Batches{{2000, 2001, 2002, 2003}, {2004, 2005, 2006, 2007}, {2008}}));
  }
}

TEST(IterableLoaderTest, AFailureComesInItsPlaceAndNamesTheSample) {
  for (const int64_t workers : {0, 1}) {
    auto log = std::make_shared<Stream::Log>();
    log->broken = 5;
    auto loader = loader_of(9, request(2), {.num_workers = workers}, log);
    loader.begin_epoch(1);
    Batch batch;
    ASSERT_TRUE(loader.next(batch));
    ASSERT_TRUE(loader.next(batch));
    for (int i = 0; i < 2; ++i) {
      EXPECT_THAT([&] { (void)loader.next(batch); }, ThrowsError(Errc::kTraining, ::testing::StrEq("data set: sample 5 of epoch 1: connection lost")));
    }
    EXPECT_EQ(loader.get_state().at("dataset").as_dict().at("at").as_int(), 4);
    auto ragged = IterableLoader<Example<>>(std::make_unique<Stream>(9), request(2), {.num_workers = workers},
                                            [](std::vector<Example<>>&&) -> Batch { throw std::runtime_error("ragged"); });
    EXPECT_THAT([&] { (void)ragged.next(batch); }, ThrowsError(Errc::kTraining, ::testing::StrEq("data set: samples 0 to 1 of epoch 0: they cannot be made a batch: ragged")));
  }
}

TEST(IterableLoaderTest, ReadsNoFurtherAheadThanItMay) {
  auto log = std::make_shared<Stream::Log>();
  auto loader = loader_of(1000, request(2), {.num_workers = 1, .prefetch_factor = 3}, log);
  Batch batch;
  for (int64_t delivered = 1; delivered < 20; ++delivered) {
    ASSERT_TRUE(loader.next(batch));
    log->wait_for_reads(2 * (delivered + 3));
    const std::lock_guard lock(log->mutex);
    EXPECT_EQ(log->reads, 2 * (delivered + 3));
  }
}

TEST(IterableLoaderTest, WaitingEndsWhenTheRunIsToStopAndNothingIsLost) {
  auto log = std::make_shared<Stream::Log>();
  log->open_until = 2;
  std::atomic<bool> stop = false;
  LoaderRequest asking = request(2);
  asking.stop_requested = [&] { return stop.load(); };
  auto loader = loader_of(5, asking, {.num_workers = 1}, log);
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  stop = true;
  EXPECT_FALSE(loader.next(batch));
  EXPECT_TRUE(loader.interrupted());
  EXPECT_EQ(loader.consumed_samples(), 2);
  stop = false;
  log->open();
  EXPECT_EQ(rest(loader), (Batches{{2002, 2003}, {2004}}));
}

TEST(IterableLoaderTest, ANewEpochWaitsForTheReadThatRuns) {
  auto log = std::make_shared<Stream::Log>();
  auto loader = loader_of(50, request(2), {.num_workers = 1, .prefetch_factor = 8}, log);
  Batch batch;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    loader.begin_epoch(epoch);
    ASSERT_TRUE(loader.next(batch));
    EXPECT_EQ(batch.target()[0].item<int64_t>(), 2000);
    EXPECT_EQ(batch.data()[0][1].item<int64_t>(), epoch);
  }
  EXPECT_TRUE(log->alone) << "the data set is never called from two threads at once";
}

TEST(IterableLoaderTest, APositionThatIsNotTakenChangesNothing) {
  auto loader = loader_of(7, request(2), {.num_workers = 1});
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  const StateDict before = loader.get_state();
  StateDict beyond = before;
  beyond.set("dataset", StateDict{{"at", 99}});
  EXPECT_THAT([&] { loader.update_state(beyond); }, ThrowsError(Errc::kMismatch, ::testing::StrEq("data set: it does not take the position in the file: no such row")));
  EXPECT_THAT([&] { loader.update_state({{"epoch", 1}}); }, ThrowsError(Errc::kMismatch, HasSubstr("'consumed_samples' must be an int, found nothing")));
  EXPECT_TRUE(equal(loader.get_state(), before));
  EXPECT_EQ(rest(loader), (Batches{{2002, 2003}, {2004, 2005}, {2006}}));
}

TEST(IterableLoaderTest, RefusesWhatCannotBeRead) {
  EXPECT_THAT([] { loader_of(7, request(2), {.num_workers = 2}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("give 0 or 1")));
  EXPECT_THAT([] { loader_of(7, request(0)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("batch_size must be at least 1")));
  EXPECT_THAT([] { loader_of(7, request(2), {.prefetch_factor = 0}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("prefetch_factor")));
  EXPECT_THAT([] { IterableLoader<Example<>>(nullptr, request(2)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("null")));
}

}  // namespace
}  // namespace marlin
