#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <ctime>
#include <csignal>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "marlin/core/data/dataset_loader.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;
using torch::data::Example;
using Examples = std::vector<Example<>>;

LoaderRequest request(int64_t batch_size, uint64_t seed = 4) { return {.stage = Stage::kTrain, .batch_size = batch_size, .seed = seed}; }

// What the samples of a data set and its copies have in common.
struct Log {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<int64_t> read;  // indices, as they were asked for
  std::set<std::thread::id> threads;
  int64_t open_until = std::numeric_limits<int64_t>::max();  // reads beyond this many wait
  int64_t entered = 0;
  std::map<int64_t, std::string> broken;

  void enter(int64_t index) {
    std::unique_lock lock(mutex);
    ++entered;
    read.push_back(index);
    threads.insert(std::this_thread::get_id());
    changed.notify_all();
    changed.wait(lock, [&] { return entered_before(index) < open_until; });
    if (const auto found = broken.find(index); found != broken.end()) throw std::runtime_error(found->second);
  }
  int64_t entered_before(int64_t index) const { return std::find(read.begin(), read.end(), index) - read.begin(); }
  void open(int64_t until = std::numeric_limits<int64_t>::max()) {
    const std::lock_guard lock(mutex);
    open_until = until;
    changed.notify_all();
  }
  void wait_for_reads(int64_t count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return entered >= count; });
  }
  size_t num_reads() {
    const std::lock_guard lock(mutex);
    return read.size();
  }
};

// Sample i is (random numbers of the sample, i).
class Numbers {
 public:
  explicit Numbers(size_t size, std::shared_ptr<Log> log = std::make_shared<Log>()) : size_(size), log_(std::move(log)) {}
  Example<> get(SampleContext& context) {
    log_->enter(context.index());
    return {torch::rand({3}, context.generator()) + static_cast<double>(context.epoch()), torch::tensor(context.index())};
  }
  size_t size() const { return size_; }

 private:
  size_t size_;
  std::shared_ptr<Log> log_;
};

struct Unique : Numbers {
  using Numbers::Numbers;
  Unique(Unique&&) = default;
  Unique(const Unique&) = delete;
};

std::vector<Batch> rest(DataLoader& loader) {
  std::vector<Batch> batches;
  for (Batch batch; loader.next(batch);) batches.push_back(batch);
  return batches;
}

std::vector<Batch> epoch(DataLoader& loader, int64_t number) {
  loader.begin_epoch(number);
  return rest(loader);
}

void expect_same(const std::vector<Batch>& a, const std::vector<Batch>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].tensors.size(), b[i].tensors.size());
    for (size_t j = 0; j < a[i].tensors.size(); ++j) EXPECT_TRUE(torch::equal(a[i].tensors[j], b[i].tensors[j])) << "batch " << i << ", tensor " << j;
    EXPECT_EQ(a[i].num_samples, b[i].num_samples);
    EXPECT_EQ(a[i].num_global_samples, b[i].num_global_samples);
  }
}

std::vector<int64_t> samples_of(const std::vector<Batch>& batches) {
  std::vector<int64_t> samples;
  for (const Batch& batch : batches) {
    const at::Tensor& targets = batch.tensors.at(1);
    for (int64_t i = 0; i < targets.size(0); ++i) samples.push_back(targets[i].item<int64_t>());
  }
  return samples;
}

auto noisy(Example<> example, SampleContext& context) {
  return Example<>(example.data * 2 + torch::randn({3}, context.generator()), example.target);
}

TEST(DatasetLoaderWorkersTest, AnyNumberOfWorkersGivesTheSameBits) {
  const auto straight = make_dataset_loader(transformed(Numbers(53), noisy), request(7));
  const std::vector<Batch> first = epoch(*straight, 0), second = epoch(*straight, 1);
  for (const int64_t workers : {1, 3}) {
    for (const int64_t factor : {1, 2, 5}) {
      const auto loader = make_dataset_loader(transformed(Numbers(53), noisy), request(7), {.num_workers = workers, .prefetch_factor = factor});
      expect_same(epoch(*loader, 0), first);
      expect_same(epoch(*loader, 1), second);
      expect_same(epoch(*loader, 0), first);
    }
  }
}

TEST(DatasetLoaderWorkersTest, RandomNumbersAreTheSamplesOwnInEachEpoch) {
  const auto loader = make_dataset_loader(Numbers(8), request(8), {.shuffle = false});
  const at::Tensor first = epoch(*loader, 0).at(0).data(), second = epoch(*loader, 1).at(0).data() - 1.0;
  EXPECT_EQ(std::get<0>(at::_unique(first)).numel(), 24) << "no two samples share numbers";
  EXPECT_FALSE(torch::allclose(first, second));
}

TEST(DatasetLoaderWorkersTest, FromEachPositionTheStraightRestFollowsAndNoEarlierSampleIsRead) {
  const auto straight = make_dataset_loader(Numbers(23), request(4));
  const std::vector<Batch> whole = epoch(*straight, 3);
  for (const int64_t workers : {0, 1, 3}) {
    for (size_t done = 0; done <= whole.size(); ++done) {
      const auto before = make_dataset_loader(Numbers(23), request(4), {.num_workers = workers});
      before->begin_epoch(3);
      Batch batch;
      for (size_t i = 0; i < done; ++i) ASSERT_TRUE(before->next(batch));
      EXPECT_EQ(before->consumed_samples(), std::min<int64_t>(23, 4 * static_cast<int64_t>(done)));
      const auto log = std::make_shared<Log>();
      const auto after = make_dataset_loader(Numbers(23, log), request(4), {.num_workers = workers});
      after->update_state(before->get_state());
      const std::vector<Batch> left = rest(*after);
      expect_same(left, {whole.begin() + static_cast<std::ptrdiff_t>(done), whole.end()});
      std::vector<int64_t> expected = samples_of(left);
      std::sort(expected.begin(), expected.end());
      std::sort(log->read.begin(), log->read.end());
      EXPECT_EQ(log->read, expected) << workers << " workers, after " << done << " batches";
    }
  }
}

TEST(DatasetLoaderWorkersTest, ReadsNoFurtherAheadThanItsWorkersMayHoldBatches) {
  const auto log = std::make_shared<Log>();
  const auto loader = make_dataset_loader(Numbers(40, log), request(1), {.num_workers = 2, .prefetch_factor = 3});
  Batch batch;
  for (int64_t delivered = 1; delivered <= 34; ++delivered) {
    ASSERT_TRUE(loader->next(batch));
    log->wait_for_reads(delivered + 6);  // so far they do read by themselves, and
    EXPECT_EQ(log->num_reads(), static_cast<size_t>(delivered + 6));
  }
  EXPECT_LE(log->threads.size(), 2u);
  EXPECT_FALSE(log->threads.contains(std::this_thread::get_id()));
}

TEST(DatasetLoaderWorkersTest, ABlockedWorkerHoldsNoMoreThanTheLimit) {
  const auto log = std::make_shared<Log>();
  log->open_until = 0;
  bool stop = true;
  LoaderRequest asking = request(1);
  asking.stop_requested = [&] { return stop; };
  const auto loader = make_dataset_loader(Numbers(40, log), asking, {.num_workers = 3, .prefetch_factor = 2});
  Batch batch;
  EXPECT_FALSE(loader->next(batch));
  log->wait_for_reads(3);
  EXPECT_EQ(log->num_reads(), 3u) << "each waits in its first sample";
  log->open();
  stop = false;
  log->wait_for_reads(6);
  EXPECT_TRUE(loader->next(batch));
}

TEST(DatasetLoaderWorkersTest, AFailureComesInItsPlaceAndNamesTheSample) {
  for (const int64_t workers : {0, 1, 3}) {
    const auto log = std::make_shared<Log>();
    log->broken[17] = "the file is\nempty";
    const auto loader = make_dataset_loader(Numbers(40, log), request(4), {.shuffle = false, .num_workers = workers});
    loader->begin_epoch(3);
    Batch batch;
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(loader->next(batch)) << "batches before it are delivered";
    for (int i = 0; i < 2; ++i) {
      EXPECT_THAT([&] { (void)loader->next(batch); }, ThrowsError(Errc::kTraining, ::testing::StrEq("data set: sample 17 of epoch 3: the file is\\nempty")));
    }
    EXPECT_EQ(loader->consumed_samples(), 16);
    {
      const std::lock_guard lock(log->mutex);
      log->broken.clear();
    }
    loader->begin_epoch(3);
    EXPECT_EQ(rest(*loader).size(), 10u) << "a new epoch begins anew";
  }
}

TEST(DatasetLoaderWorkersTest, WhateverIsThrownIsTold) {
  struct Throwing {
    int what;
    int64_t get(SampleContext&) const {
      if (what == 0) TORCH_CHECK(false, "no such row");
      if (what == 1) throw 7;
      if (what == 2) throw std::runtime_error("");
      throw Error(Errc::kIo, "a.png: no such file");
    }
    size_t size() const { return 1; }
  };
  const char* texts[] = {"sample 0 of epoch 0: no such row", "an exception of type int, which is no std::exception", "an exception of type std::runtime_error, which says nothing",
                         "sample 0 of epoch 0: a.png: no such file"};
  const auto collate = [](std::vector<int64_t>&&) { return Batch(); };
  for (int what = 0; what < 4; ++what) {
    for (const int64_t workers : {0, 1}) {
      const auto loader = make_dataset_loader(Throwing{what}, request(1), {.num_workers = workers}, collate);
      Batch batch;
      EXPECT_THAT([&] { (void)loader->next(batch); }, ThrowsError(Errc::kTraining, ::testing::EndsWith(texts[what])));
    }
  }
}

// LibTorch's sort: a whole batch is asked for.
class Batches : public torch::data::datasets::BatchDataset<Batches, Examples> {
 public:
  Batches(int64_t broken, size_t most) : broken_(broken), most_(most) {}
  Examples get_batch(c10::ArrayRef<size_t> indices) override {
    if (indices.size() > most_) throw std::runtime_error("too many at once");
    Examples examples;
    for (const size_t index : indices) {
      if (static_cast<int64_t>(index) == broken_) throw std::runtime_error("broken");
      examples.emplace_back(torch::zeros({1}), torch::tensor(static_cast<int64_t>(index)));
    }
    return examples;
  }
  std::optional<size_t> size() const override { return 12; }

 private:
  int64_t broken_;
  size_t most_;
};

TEST(DatasetLoaderWorkersTest, OfAWholeBatchThatFailsTheSampleIsLookedFor) {
  for (const int64_t workers : {0, 2}) {
    const auto one = make_dataset_loader(Batches(5, 99), request(4), {.shuffle = false, .num_workers = workers});
    Batch batch;
    ASSERT_TRUE(one->next(batch));
    EXPECT_THAT([&] { (void)one->next(batch); }, ThrowsError(Errc::kTraining, ::testing::StrEq("data set: sample 5 of epoch 0: broken")));
    const auto together = make_dataset_loader(Batches(-1, 3), request(4), {.shuffle = false, .num_workers = workers});
    EXPECT_THAT([&] { (void)together->next(batch); }, ThrowsError(Errc::kTraining, ::testing::StrEq("data set: samples 0, 1, 2, 3 of epoch 0: too many at once")));
  }
}

TEST(DatasetLoaderWorkersTest, ACollateFunctionThatFailsNamesItsBatch) {
  for (const int64_t workers : {0, 1}) {
    const auto loader = make_dataset_loader(Numbers(20), request(10), {.shuffle = false, .num_workers = workers},
                                            [](Examples&&) -> Batch { throw std::runtime_error("ragged"); });
    Batch batch;
    EXPECT_THAT([&] { (void)loader->next(batch); },
                ThrowsError(Errc::kTraining, ::testing::StrEq("data set: samples 0, 1, 2, 3, 4, 5, 6, 7, ... (10) of epoch 0: they cannot be made a batch: ragged")));
  }
}

TEST(DatasetLoaderWorkersTest, WaitingEndsWhenTheRunIsToStopAndNothingIsLost) {
  const auto log = std::make_shared<Log>();
  log->open_until = 6;
  std::atomic<bool> stop = false;
  LoaderRequest asking = request(3);
  asking.stop_requested = [&] { return stop.load(); };
  const auto loader = make_dataset_loader(Numbers(12, log), asking, {.num_workers = 1});
  std::vector<Batch> got(4);
  ASSERT_TRUE(loader->next(got[0]));
  ASSERT_TRUE(loader->next(got[1]));
  stop = true;
  EXPECT_FALSE(loader->next(got[2]));
  EXPECT_TRUE(loader->interrupted());
  EXPECT_EQ(loader->consumed_samples(), 6);
  EXPECT_FALSE(*loader->at_end());
  log->open();
  log->wait_for_reads(12);  // batch 2 is there
  stop = false;
  ASSERT_TRUE(loader->next(got[2]));
  EXPECT_FALSE(loader->interrupted());
  ASSERT_TRUE(loader->next(got[3]));
  expect_same(got, epoch(*make_dataset_loader(Numbers(12), request(3)), 0));
}

TEST(DatasetLoaderWorkersTest, ABatchThatIsThereIsDeliveredWithoutAsking) {
  const auto log = std::make_shared<Log>();
  bool asked = false;
  LoaderRequest asking = request(1);
  asking.stop_requested = [&] { return asked = true; };
  const auto loader = make_dataset_loader(Numbers(3, log), asking, {.num_workers = 1, .prefetch_factor = 3});
  Batch batch;
  while (!loader->next(batch)) ASSERT_TRUE(loader->interrupted());
  log->wait_for_reads(3);  // the second one is there: the thread is at the third
  asked = false;
  EXPECT_TRUE(loader->next(batch));
  EXPECT_FALSE(asked);
}

TEST(DatasetLoaderWorkersTest, ANewEpochDropsWhatIsInFlight) {
  const auto straight = make_dataset_loader(Numbers(30), request(4));
  const std::vector<Batch> expected = epoch(*straight, 7);
  const auto log = std::make_shared<Log>();
  const auto loader = make_dataset_loader(Numbers(30, log), request(4), {.num_workers = 3});
  Batch batch;
  for (int64_t begun = 0; begun < 5; ++begun) {
    loader->begin_epoch(begun);
    for (int64_t i = 0; i < begun; ++i) ASSERT_TRUE(loader->next(batch));
  }
  StateDict position;
  {
    const auto other = make_dataset_loader(Numbers(30), request(4));
    other->begin_epoch(7);
    ASSERT_TRUE(other->next(batch));
    position = other->get_state();
  }
  loader->update_state(position);
  expect_same(rest(*loader), {expected.begin() + 1, expected.end()});
  expect_same(epoch(*loader, 7), expected);
  EXPECT_LE(log->threads.size(), 3u) << "no thread is started anew";
}

TEST(DatasetLoaderWorkersTest, ANewEpochDoesNotWaitForASlowRead) {
  const auto log = std::make_shared<Log>();
  log->open_until = 0;
  std::atomic<bool> stop = true;
  LoaderRequest asking = request(2);
  asking.stop_requested = [&] { return stop.load(); };
  const auto loader = make_dataset_loader(Numbers(6, log), asking, {.num_workers = 1});
  Batch batch;
  EXPECT_FALSE(loader->next(batch));
  log->wait_for_reads(1);
  loader->begin_epoch(1);  // would hang here
  EXPECT_FALSE(loader->next(batch)) << "the new epoch's jobs wait behind the old read, which must not be taken for one of them";
  stop = false;
  log->open();
  expect_same(rest(*loader), epoch(*make_dataset_loader(Numbers(6), request(2)), 1));
}

TEST(DatasetLoaderWorkersTest, TheEndWaitsForARunningReadOnly) {
  const auto log = std::make_shared<Log>();
  log->open_until = 0;
  std::thread opener;
  {
    LoaderRequest asking = request(2);
    asking.stop_requested = [] { return true; };
    const auto loader = make_dataset_loader(Numbers(100, log), asking, {.num_workers = 2, .prefetch_factor = 10});
    Batch batch;
    EXPECT_FALSE(loader->next(batch));
    log->wait_for_reads(2);
    opener = std::thread([&] { log->open(); });
  }
  opener.join();
  EXPECT_LE(log->num_reads(), 40u);
}

TEST(DatasetLoaderWorkersTest, ADataSetThatCannotBeCopiedIsReadByOneThread) {
  static_assert(!DatasetLoader<Unique>::kCopyable && DatasetLoader<Numbers>::kCopyable);
  const auto straight = make_dataset_loader(Numbers(20), request(6));
  const auto log = std::make_shared<Log>();
  const auto loader = make_dataset_loader(Unique(20, log), request(6), {.num_workers = 1});
  expect_same(epoch(*loader, 0), epoch(*straight, 0));
  EXPECT_EQ(log->threads.size(), 1u);
  EXPECT_THAT([] { (void)make_dataset_loader(Unique(20), request(6), {.num_workers = 2}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("cannot be copied")));
}

TEST(DatasetLoaderWorkersTest, RaggedSamplesArePaddedByACollateFunction) {
  struct Ragged {
    at::Tensor get(SampleContext& context) { return torch::full({context.index() % 5 + 1}, context.index()); }
    size_t size() const { return 11; }
  };
  const auto pad = [](std::vector<at::Tensor>&& samples) {
    Batch batch;
    batch.tensors = {torch::nn::utils::rnn::pad_sequence(samples, /*batch_first=*/true, /*padding_value=*/-1)};
    return batch;
  };
  const auto straight = make_dataset_loader(Ragged(), request(4), {}, pad);
  const auto loader = make_dataset_loader(Ragged(), request(4), {.num_workers = 2}, pad);
  const std::vector<Batch> expected = epoch(*straight, 0);
  expect_same(epoch(*loader, 0), expected);
  EXPECT_EQ(expected.at(0).tensors[0].dim(), 2);
}

TEST(DatasetLoaderWorkersTest, AnotherSeedOrBatchSizeWithinAnEpochGivesEachSampleOnce) {
  const auto log = std::make_shared<Log>();
  const auto before = make_dataset_loader(Numbers(50), request(4, 1), {.num_workers = 2});
  before->begin_epoch(1);
  std::vector<Batch> batches(3);
  for (Batch& batch : batches) ASSERT_TRUE(before->next(batch));
  const auto after = make_dataset_loader(Numbers(50), request(7, 2), {.num_workers = 2});
  after->update_state(before->get_state());
  for (Batch& batch : rest(*after)) batches.push_back(std::move(batch));
  std::vector<int64_t> samples = samples_of(batches);
  std::sort(samples.begin(), samples.end());
  ASSERT_EQ(samples.size(), 50u);
  for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(samples[static_cast<size_t>(i)], i);
  expect_same(epoch(*after, 2), epoch(*make_dataset_loader(Numbers(50), request(7, 2)), 2));
}

TEST(DatasetLoaderWorkersTest, ADataSetThatTakesAnIndexIsReadByIndex) {
  struct Squares {
    int64_t get(size_t index) const { return static_cast<int64_t>(index * index); }
    int64_t size() const { return 5; }
  };
  const auto collate = [](std::vector<int64_t>&& squares) {
    Batch batch;
    batch.tensors = {torch::tensor(squares)};
    return batch;
  };
  const auto loader = make_dataset_loader(Squares(), request(5), {.shuffle = false, .num_workers = 1}, collate);
  Batch batch;
  ASSERT_TRUE(loader->next(batch));
  EXPECT_TRUE(torch::equal(batch.data(), torch::tensor({0, 1, 4, 9, 16})));
}

TEST(DatasetLoaderWorkersTest, WorkersTakeNoSignalsAndStartNoThreadsOfTheirOwn) {
  struct Probe {
    at::Tensor get(SampleContext&) {
      sigset_t blocked;
      pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
      return torch::tensor({sigismember(&blocked, SIGTERM), sigismember(&blocked, SIGINT), sigismember(&blocked, SIGUSR1), at::get_num_threads()});
    }
    size_t size() const { return 4; }
  };
  const auto collate = [](std::vector<at::Tensor>&& samples) {
    Batch batch;
    batch.tensors = {torch::stack(samples)};
    return batch;
  };
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  const auto loader = make_dataset_loader(Probe(), request(2), {.num_workers = 2}, collate);
  for (const Batch& batch : rest(*loader)) EXPECT_TRUE(torch::equal(batch.tensors[0], torch::ones({2, 4}, torch::kInt)));
  EXPECT_EQ(at::get_num_threads(), 2) << "the caller's are as they were";
  at::set_num_threads(before);
  sigset_t blocked;
  pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
  EXPECT_FALSE(sigismember(&blocked, SIGTERM));
}

TEST(DatasetLoaderWorkersTest, OptionsOutOfRangeAreRefused) {
  const auto make = [](const DatasetLoaderOptions& options) { return [=] { (void)make_dataset_loader(Numbers(3), request(1), options); }; };
  EXPECT_THAT(make({.num_workers = -1}), ThrowsError(Errc::kInvalidArgument, HasSubstr("num_workers must be at least 0, got -1")));
  EXPECT_THAT(make({.prefetch_factor = 0}), ThrowsError(Errc::kInvalidArgument, HasSubstr("prefetch_factor must be at least 1, got 0")));
  EXPECT_THAT(make({.shuffle = true, .sampler = std::make_shared<SequentialSampler>(3)}), ThrowsError(Errc::kInvalidArgument, HasSubstr("not both")));
}

}  // namespace
}  // namespace marlin
