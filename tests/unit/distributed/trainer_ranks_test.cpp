// Promise: several ranks make the run of one, and what goes wrong on one of them ends all, with its words, and nothing is saved of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <limits>
#include <thread>
#include <utility>

#include "marlin/core/backends/ddp_backend.h"
#include "marlin/core/trainer.h"
#include "marlin/sdk/writer.h"
#include "on_ranks.h"
#include "recording_checkpointer.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::on_ranks;
using testing::Recorded;
using testing::run_of;
using testing::TinyModule;
using testing::TinyOptions;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One rank's part of a run.
struct Rank {
  explicit Rank(Communicator& communicator, TinyOptions options = {.num_samples = 24}) : number(communicator.rank()), ranks(communicator), module(std::make_shared<TinyModule>(std::move(options))) {}

  [[nodiscard]] std::unique_ptr<Trainer> trainer(int64_t epochs, const SaveSchedule& schedule = {}) {
    TrainerServices services;
    services.ranks = std::shared_ptr<Communicator>(&ranks, [](Communicator*) {});
    if (!backend) backend = std::make_unique<DistributedBackend>();
    return std::make_unique<Trainer>(module, std::move(backend), testing::recording_checkpointer(recorded, schedule), run_of(epochs), std::move(services));
  }
  // Every training step's loss, put through `change` where this is that rank, at that step.
  void change_loss(int of_rank, int64_t at_step, const std::function<at::Tensor(const at::Tensor&)>& change) {
    module->instead_of_train_step = [this, of_rank, at_step, change](const StepContext& step, Batch& batch) -> StepOutput {
      const at::Tensor loss = (module->predict(batch.data()) - batch.target()).square().mean();
      return number == of_rank && step.global_step == at_step ? change(loss) : loss;
    };
  }

  const int number;
  Communicator& ranks;
  std::shared_ptr<TinyModule> module;
  std::shared_ptr<Recorded> recorded = std::make_shared<Recorded>();
  std::unique_ptr<TrainerBackend> backend;
};

// What train() throws; on no rank does it end well.
std::string failure_of(Trainer& trainer) {
  try {
    trainer.train();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(TrainerRanksTest, AnExceptionOnOneRankEndsAllWithItsWordsAndNothingIsSaved) {
  on_ranks(3, [](Communicator& communicator) {
    Rank rank(communicator);
    rank.change_loss(1, 8, [](const at::Tensor&) -> at::Tensor { throw std::runtime_error("no more fuel"); });
    const std::string failure = failure_of(*rank.trainer(4));
    if (rank.number == 1) EXPECT_EQ(failure, "no more fuel");
    else EXPECT_EQ(failure, "rank 1 failed: no more fuel");
    if (rank.number == 0) EXPECT_THAT(rank.recorded->indices(), ElementsAre(0)) << "that of the first epoch";
    else EXPECT_THAT(rank.recorded->indices(), IsEmpty());
  });
}

TEST(TrainerRanksTest, ALossThatIsNoNumberOnOneRankEndsAll) {
  on_ranks(3, [](Communicator& communicator) {
    Rank rank(communicator);
    rank.change_loss(2, 3, [](const at::Tensor& loss) { return loss * std::numeric_limits<double>::quiet_NaN(); });
    EXPECT_THAT(failure_of(*rank.trainer(1)), AllOf(HasSubstr("epoch 0, step 4: "), HasSubstr(" is nan"), ::testing::StartsWith(rank.number == 2 ? "epoch" : "rank 2 failed: ")));
    EXPECT_THAT(rank.recorded->indices(), IsEmpty());
  });
}

TEST(TrainerRanksTest, ASaveThatFailsAndEndsTheRunEndsAll) {
  for (const bool async : {false, true}) {
    on_ranks(2, [async](Communicator& communicator) {
      Rank rank(communicator);
      rank.recorded->before_save = [](const SavePoint& point) {
        if (point.index == 1) throw Error(Errc::kIo, "the disk is full");
      };
      EXPECT_THAT(failure_of(*rank.trainer(100, {.async = async, .on_error = OnError::kFail})), AllOf(HasSubstr("the disk is full"), ::testing::StartsWith(rank.number == 1 ? "rank 0 failed: " : "")));
      EXPECT_GE(rank.module->times("end_epoch"), 2);
      EXPECT_LT(rank.module->times("end_epoch"), async ? 100 : 3);
    });
  }
}

TEST(TrainerRanksTest, ASaveThatFailsAndOnlyWarnsEndsNobody) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    rank.recorded->before_save = [](const SavePoint& point) {
      if (point.index == 1) throw Error(Errc::kIo, "the disk is full");
    };
    EXPECT_EQ(rank.trainer(4)->train().epochs, 4);
    EXPECT_EQ(rank.recorded->failed, rank.number == 0 ? 1 : 0);
  });
}

TEST(TrainerRanksTest, ARankWithFewerBatchesIsFoundAtTheFirstThatItLacks) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator, {.num_samples = communicator.rank() == 1 ? 16 : 24});
    EXPECT_THAT(failure_of(*rank.trainer(1)), AllOf(HasSubstr("ranks have gone different ways: rank 0 is at a training step"), HasSubstr("rank 1 at the end of its batches"), HasSubstr("4 steps done")));
  });
}

TEST(TrainerRanksTest, AnExceptionInACallbackOfOneRankEndsAll) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    rank.module->at_end_epoch = [&](const EpochSummary& summary) {
      if (rank.number == 1 && summary.epoch == 1) throw std::runtime_error("nobody listens");
    };
    EXPECT_EQ(failure_of(*rank.trainer(4)), rank.number == 1 ? "nobody listens" : "rank 1 failed: nobody listens");
  });
}

TEST(TrainerRanksTest, AStopOnOneRankStopsAllAtTheSameStep) {
  on_ranks(3, [](Communicator& communicator) {
    Rank rank(communicator);
    std::unique_ptr<Trainer> trainer = rank.trainer(100);
    rank.module->at_end_step = [&](const StepSummary& step) {
      if (rank.number == 2 && step.global_step == 9) trainer->stop();
    };
    const RunResult result = trainer->train();
    EXPECT_EQ(result.outcome, RunResult::Outcome::kStopped);
    const std::vector<std::string> steps = communicator.gather_bytes(std::to_string(result.global_step));
    if (rank.number == 0) {
      EXPECT_THAT(steps, ElementsAre("10", "10", "10"));  // told with the step after
      EXPECT_EQ(rank.recorded->saves.back().point.global_step, 10);
    }
  });
}

class WriterThatOpens final : public Writer {
 public:
  explicit WriterThatOpens(std::function<void()> at_open) : at_open_(std::move(at_open)) {}
  void open() override { at_open_(); }
  void write(const MetricsEvent&) override {}

 private:
  std::function<void()> at_open_;
};

// Who sees a record begin may send a signal to any rank.
TEST(TrainerRanksTest, NothingOnDiskIsChangedBeforeSignalsStopEveryRank) {
  auto* ready = static_cast<std::atomic<int>*>(mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  on_ranks(3, [ready](Communicator& communicator) {
    TrainerServices services;
    services.ranks = std::shared_ptr<Communicator>(&communicator, [](Communicator*) {});
    services.before_training = [&] {
      if (communicator.rank() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));  // as one that is late, not to wait for anything
      ++*ready;
    };
    if (communicator.rank() == 0) services.writers.push_back(std::make_unique<WriterThatOpens>([ready] { EXPECT_EQ(*ready, 3); }));
    static_cast<void>(testing::unsaved_trainer(std::make_shared<TinyModule>(TinyOptions{.num_samples = 24}), run_of(1), std::move(services))->train());
  });
  munmap(ready, sizeof *ready);
}

TEST(TrainerRanksTest, OutputsComeInDataSetOrderFromUnequalAndEmptyShards) {
  for (const int64_t samples : {7, 5, 1}) {
    on_ranks(3, [samples](Communicator& communicator) {
      Rank rank(communicator, {.num_samples = 12, .val = {{"default", samples}}});
      rank.module->instead_of_val_step = [&](const StepContext&, Batch& batch) {
        StepOutput output(batch.target().square().mean());
        output.outputs = {batch.data(), batch.target().squeeze(1), batch.num_samples == 0 ? at::empty({0}) : batch.target().sum()};  // the last without a dimension
        return output;
      };
      static_cast<void>(rank.trainer(1)->train());
      const std::vector<at::Tensor> all = rank.module->data(samples);
      ASSERT_EQ(rank.module->val_summaries.size(), 1);
      const EpochSummary& summary = rank.module->val_summaries.front();
      ASSERT_EQ(summary.outputs.size(), 3);
      EXPECT_TRUE(torch::equal(summary.outputs[0], all[0]));
      EXPECT_TRUE(torch::equal(summary.outputs[1], all[1].squeeze(1)));
      EXPECT_NEAR(summary.outputs[2].sum().item<double>(), all[1].sum().item<double>(), 1e-5);
      EXPECT_NEAR(summary.metrics.at("val/loss"), all[1].square().mean().item<double>(), 1e-6) << "each sample counts once";
    });
  }
}

TEST(TrainerRanksTest, OutputsStayWhereTheyAreIfNobodyWantsThem) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator, {.num_samples = 4, .val = {{"default", 8}}});
    rank.backend = std::make_unique<DistributedBackend>(DdpOptions{.gather_outputs = false});
    rank.module->instead_of_val_step = [&](const StepContext&, Batch& batch) {
      StepOutput output(batch.target().square().mean());
      output.outputs = {batch.data()};
      return output;
    };
    static_cast<void>(rank.trainer(1)->train());
    EXPECT_EQ(rank.module->val_summaries.front().outputs.front().size(0), 4);
  });
}

// With buffers that each rank's own samples change.
class Normed : public TinyModule {
 public:
  explicit Normed(const TinyOptions& options) : TinyModule(options) { norm_ = register_module("norm", torch::nn::BatchNorm1d(3)); }
  StepOutput train_step(const StepContext&, Batch& batch) override { return (predict(norm_->forward(batch.data())) - batch.target()).square().mean(); }

 private:
  torch::nn::BatchNorm1d norm_ = nullptr;
};

TEST(TrainerRanksTest, BuffersThatStepsChangeAreThoseOfRank0OnAllRanks) {
  for (const bool broadcast : {true, false}) {
    on_ranks(2, [broadcast](Communicator& communicator) {
      Rank rank(communicator);
      rank.module = std::make_shared<Normed>(TinyOptions{.num_samples = 24});
      rank.backend = std::make_unique<DistributedBackend>(DdpOptions{.broadcast_buffers = broadcast});
      std::string seen;
      rank.module->at_end_epoch = [&](const EpochSummary&) {  // after the validation, before which they are made the same
        const at::Tensor mean = rank.module->named_buffers()["norm.running_mean"];
        seen.assign(static_cast<const char*>(mean.data_ptr()), mean.nbytes());
      };
      static_cast<void>(rank.trainer(2)->train());
      const std::vector<std::string> all = communicator.gather_bytes(seen);
      EXPECT_TRUE(rank.number != 0 || (all[0] == all[1]) == broadcast);
    });
  }
}

TEST(TrainerRanksTest, AnOverflowOnOneRankIsSkippedByAllAndMovesNoSchedule) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator, {.num_samples = 24, .adamw = true});
    AmpOptions amp{.dtype = "bfloat16", .grad_scaler = "on", .init_scale = 1024.0, .growth_interval = 1000};
    auto backend = std::make_unique<DistributedBackend>(DdpOptions{.check_every = 1}, amp);
    const DistributedBackend& told = *backend;
    rank.backend = std::move(backend);
    bool done = false;
    rank.change_loss(1, 2, [&done](const at::Tensor& loss) { return std::exchange(done, true) ? loss : loss * kInfinity; });
    std::unique_ptr<Trainer> trainer = rank.trainer(1);
    EXPECT_EQ(trainer->train().global_step, 5) << "of 6 batches";
    EXPECT_EQ(told.skipped_steps(), 1);
    EXPECT_EQ(told.batches_completed(), 6);
    EXPECT_EQ(told.get_state().at("scaler").as_dict().at("scale").as_double(), 512.0);
    EXPECT_NEAR(rank.module->made.optimizers.front()->param_groups().front().options().get_lr(), 0.1 / 6, 1e-9) << "5 of 6 steps down to 0";
  });
}

TEST(TrainerRanksTest, AnOverflowAtTheVeryFirstStepIsSkipped) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    auto backend = std::make_unique<DistributedBackend>(DdpOptions{}, AmpOptions{.dtype = "bfloat16", .grad_scaler = "on"});
    const DistributedBackend& told = *backend;
    rank.backend = std::move(backend);
    bool done = false;
    rank.change_loss(1, 0, [&done](const at::Tensor& loss) { return std::exchange(done, true) ? loss : loss * kInfinity; });
    const std::unique_ptr<Trainer> trainer = rank.trainer(1);
    EXPECT_EQ(trainer->train().global_step, 5);
    EXPECT_EQ(told.skipped_steps(), 1);
  });
}

TEST(TrainerRanksTest, OtherNumbersOfBatchesAreFoundAlsoWhereStepsSendBuffersAndCheckReplicas) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    rank.module = std::make_shared<Normed>(TinyOptions{.num_samples = communicator.rank() == 1 ? 16 : 24});
    rank.backend = std::make_unique<DistributedBackend>(DdpOptions{.check_every = 1});
    EXPECT_THAT(failure_of(*rank.trainer(1)), AllOf(HasSubstr("rank 0 is at a training step"), HasSubstr("rank 1 at the end of its batches")));
  });
}

TEST(TrainerRanksTest, OtherValidationLoadersAreFound) {
  on_ranks(2, [](Communicator& communicator) {
    std::vector<std::pair<std::string, int64_t>> val = {{"a", 4}};
    if (communicator.rank() == 0) val.emplace_back("b", 4);
    Rank rank(communicator, {.num_samples = 8, .val = std::move(val)});
    EXPECT_THAT(failure_of(*rank.trainer(1)), AllOf(HasSubstr("ranks have gone different ways"), HasSubstr("the begin of validation 'b'")));
  });
}

TEST(TrainerRanksTest, ParametersThatAreTrainedFromALaterEpochOnAreSummed) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    rank.module->weight().requires_grad_(false);
    const at::Tensor before = rank.module->weight().clone();
    rank.backend = std::make_unique<DistributedBackend>(DdpOptions{.check_every = 1});
    rank.module->at_end_epoch = [&](const EpochSummary& summary) {
      EXPECT_EQ(torch::equal(rank.module->weight(), before), summary.epoch == 0);
      rank.module->weight().requires_grad_(true);
    };
    static_cast<void>(rank.trainer(3)->train());
    TinyModule& module = *rank.module;
    // One rank alone comes to the same.
    auto alone = std::make_shared<TinyModule>(TinyOptions{.num_samples = 24});
    alone->weight().requires_grad_(false);
    alone->at_end_epoch = [&](const EpochSummary&) { alone->weight().requires_grad_(true); };
    static_cast<void>(testing::unsaved_trainer(alone, run_of(3))->train());
    EXPECT_TRUE(torch::allclose(module.weight(), alone->weight(), 1e-5, 1e-6));
  });
}

TEST(TrainerRanksTest, AParameterThatOnlyOneRankTrainsIsFound) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    rank.module->at_end_step = [&](const StepSummary& step) {
      if (rank.number == 1 && step.global_step == 2) rank.module->bias().requires_grad_(false);
    };
    EXPECT_THAT(failure_of(*rank.trainer(1)), AllOf(HasSubstr("2 parameters that are trained"), HasSubstr("1 parameters that are trained")));
  });
}

TEST(TrainerRanksTest, ASaveThatIsAskedForAndFailsIsToldToAll) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    std::unique_ptr<Trainer> trainer = rank.trainer(1, {.on_error = OnError::kFail});
    static_cast<void>(trainer->train());
    rank.recorded->before_save_model = [] { throw Error(Errc::kIo, "the disk is full"); };
    try {
      static_cast<void>(trainer->save_model_checkpoint());
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("the disk is full"));
    }
  });
}

TEST(TrainerRanksTest, WhatFailsAtTheVeryEndOfOneRankIsToldToAll) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    rank.recorded->at_close = [] { throw Error(Errc::kIo, "the last of it is not on disk"); };
    EXPECT_THAT(failure_of(*rank.trainer(1, {.on_error = OnError::kFail})), HasSubstr("the last of it is not on disk"));
  });
}

TEST(TrainerRanksTest, OnlyRank0sCheckpointersCount) {
  on_ranks(2, [](Communicator& communicator) {
    Rank rank(communicator);
    const SaveSchedule often{.period_steps = 4}, never{.checkpoint = false};
    EXPECT_EQ(rank.trainer(1, rank.number == 0 ? often : never)->train().global_step, 6);
    if (rank.number == 0) {
      EXPECT_EQ(rank.recorded->saves.front().point.global_step, 4);
    }
  });
}

TEST(TrainerRanksTest, WithoutABackendSeveralRanksTrainOneModel) {
  on_ranks(2, [](Communicator& communicator) {
    auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 24});
    TrainerServices services;
    services.ranks = std::shared_ptr<Communicator>(&communicator, [](Communicator*) {});
    static_cast<void>(testing::unsaved_trainer(module, run_of(1), std::move(services))->train());
    const at::Tensor weight = module->weight().detach().contiguous();
    const std::vector<std::string> all = communicator.gather_bytes({static_cast<const char*>(weight.data_ptr()), weight.nbytes()});
    EXPECT_TRUE(communicator.rank() != 0 || all[0] == all[1]);
    TrainerServices again;
    again.ranks = std::shared_ptr<Communicator>(&communicator, [](Communicator*) {});
    EXPECT_THAT([&] { Trainer(module, std::make_unique<SingleProcessBackend>(), {}, run_of(1), std::move(again)); },
                testing::ThrowsError(Errc::kInvalidArgument, HasSubstr("give it a DistributedBackend")));
  });
}

}  // namespace
}  // namespace marlin
