// The part of `checkpoint` about saving while training goes on: how long the training thread stands still, what the background
// write does to its steps, and what memory it takes.
//
// The Trainer trains five layers of 2992x2992 with AdamW: parameters and moments are 512 MiB. A round is an epoch without a save, a
// clone of all tensors into fresh memory, a save with the epoch during which it is copied and written, and another one that writes
// several files. A first save of a run, which has no memory to copy into yet, is one of a new Trainer each time.
#include <marlin/marlin.h>
#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint_parts.h"

namespace marlin::bench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

// A tensor is larger than 32 MiB, from which on malloc maps memory anew and gives it back: fresh memory is fresh in every round.
constexpr int64_t kLayers = 5, kWidth = 2992;
constexpr int64_t kBatch = 64, kSamples = 640;
constexpr int64_t kSteps = 4;     // of an epoch
constexpr size_t kFiles = 4;      // of the longer save, one after the other, so that whole steps lie in the time that it takes

double between(Time from, Time to) { return std::chrono::duration<double>(to - from).count(); }

// What an epoch looked like from the training thread.
struct Epoch {
  int64_t number = 0;
  double save_point = 0.0;          // from the end of the epoch before to its begin
  double fence = 0.0;               // waited in all of its steps
  std::vector<Time> times = {};     // its begin, and the end of each step
};

// The mean of the steps for which `counts(begin, end)`; 0 if there are none.
double mean_step(const Epoch& epoch, const std::function<bool(Time, Time)>& counts) {
  double sum = 0.0;
  int count = 0;
  for (size_t i = 1; i < epoch.times.size(); ++i) {
    if (!counts(epoch.times[i - 1], epoch.times[i])) continue;
    sum += between(epoch.times[i - 1], epoch.times[i]);
    ++count;
  }
  return count == 0 ? 0.0 : sum / count;
}
double mean_step(const Epoch& epoch) {
  return mean_step(epoch, [](Time, Time) { return true; });
}

class Mlp : public ModuleInterface {
 public:
  Mlp() {
    net_ = register_module("net", torch::nn::Sequential());
    for (int64_t i = 0; i < kLayers; ++i) {
      if (i > 0) net_->push_back(torch::nn::Tanh());  // no unit dies, so no moment decays into denormal numbers
      net_->push_back(torch::nn::Linear(kWidth, kWidth));
    }
  }

  OptimizersSchedulers get_optimizers_schedulers(const TrainingPlan&) override {
    return {{std::make_shared<optim::AdamW>(parameters(), torch::optim::AdamWOptions(1e-4))}};
  }
  std::unique_ptr<DataLoader> get_train_dataloader(const LoaderRequest& request) override {
    return std::make_unique<TensorLoader>(std::vector<at::Tensor>{torch::rand({kSamples, kWidth}), torch::rand({kSamples, kWidth})}, request);
  }
  StepOutput train_step(const StepContext&, Batch& batch) override { return torch::nn::functional::mse_loss(net_->forward(batch.data()), batch.target()); }

  void on_begin_train_epoch(int64_t epoch, int64_t) override {
    const Time now = Clock::now();
    epoch_ = {epoch, between(left_, now), 0.0, {now}};
  }
  void on_end_train_step(const StepSummary&) override { epoch_.times.push_back(Clock::now()); }
  void on_end_train_epoch(const EpochSummary&) override {
    at_end_of_epoch(epoch_);
    left_ = Clock::now();
  }
  void add_fence(double seconds) { epoch_.fence += seconds; }

  std::function<void(const Epoch&)> at_end_of_epoch;  // right before the save point

 private:
  torch::nn::Sequential net_ = nullptr;
  Epoch epoch_;
  Time left_ = Clock::now();
};

// Measures what keeps an optimizer's step waiting.
class TimedBackend : public SingleProcessBackend {
 public:
  explicit TimedBackend(Mlp& module) : module_(module) {}
  void init(const BackendSetup& setup) override {
    BackendSetup timed = setup;
    timed.before_optimizer_step = [this, fence = setup.before_optimizer_step] { module_.add_fence(seconds_of(fence)); };
    SingleProcessBackend::init(timed);
  }

 private:
  Mlp& module_;
};

// Writes as the built-in one does, durably, and says when.
class TimedCheckpointer : public DefaultCheckpointer {
 public:
  explicit TimedCheckpointer(const fs::path& folder) : DefaultCheckpointer(DefaultCheckpointerOptions{.save_dir = folder.string()}), folder_(folder) {}

  // Not while a save is in flight: the switch would hold for it, too.
  void save_at_next_point(bool save) { set_schedule({.checkpoint = save, .on_error = OnError::kFail}); }
  // Returns when the save in flight has ended.
  void wait() {
    written_.wait(false);
    written_ = false;
  }
  [[nodiscard]] Time began() const { return began_; }
  [[nodiscard]] Time ended() const { return ended_; }
  [[nodiscard]] const fs::path& folder() const { return folder_; }

 protected:
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    const Ending ending(*this);
    began_ = Clock::now();
    return DefaultCheckpointer::do_save(checkpoint, point);
  }

 private:
  struct Ending {
    explicit Ending(TimedCheckpointer& whose) : whose(whose) {}
    ~Ending() {
      whose.ended_ = Clock::now();
      whose.written_ = true;
      whose.written_.notify_all();
    }
    TimedCheckpointer& whose;
  };

  fs::path folder_;
  Time began_, ended_;
  std::atomic<bool> written_ = false;
};

// A Trainer that saves when it is told to, and a place to look at it from.
class Run {
 public:
  Run(const fs::path& folder, size_t num_files, int64_t epochs, int64_t steps = kSteps) : module_(std::make_shared<Mlp>()) {
    Checkpointers checkpointers;
    for (size_t i = 0; i < num_files; ++i) {
      auto checkpointer = std::make_unique<TimedCheckpointer>(folder / std::to_string(i));
      checkpointers_.push_back(checkpointer.get());
      checkpointers.push_back(std::move(checkpointer));
    }
    TrainerOptions options;
    options.device = "cpu";
    options.epochs = epochs;
    options.train_batch_size = kBatch;
    options.max_train_steps_per_epoch = steps;
    trainer_ = std::make_unique<Trainer>(module_, std::make_unique<TimedBackend>(*module_), std::move(checkpointers), options);
  }

  void train(const std::function<void(const Epoch&)>& at_end_of_epoch) {
    module_->at_end_of_epoch = at_end_of_epoch;
    static_cast<void>(trainer_->train());
  }
  // To be called at every end of an epoch: what was to be saved at the point before is then written.
  void save_at_next_point(size_t num_files) {
    for (size_t i = 0; i < checkpointers_.size(); ++i) checkpointers_[i]->save_at_next_point(i < num_files);
    in_flight_ = num_files;
  }
  void wait_for_writes() {
    for (size_t i = 0; i < in_flight_; ++i) checkpointers_[i]->wait();
  }
  void remove_files() {
    for (TimedCheckpointer* checkpointer : checkpointers_) fs::remove_all(checkpointer->folder());
    settle();
  }
  [[nodiscard]] Time write_began() const { return checkpointers_.front()->began(); }
  [[nodiscard]] Time write_ended() const { return checkpointers_[in_flight_ - 1]->ended(); }
  [[nodiscard]] fs::path newest_file() const { return checkpointers_.front()->folder() / ("checkpoint_" + std::to_string(trainer_->last_epoch()) + ".pt"); }
  [[nodiscard]] Checkpoint live() const { return {module_->get_state(), trainer_->get_state(), {}, {}}; }
  double clone_seconds() const {
    const Checkpoint from = live();
    Checkpoint to;
    return seconds_of([&] { to = {clone(from.module_interface_state), clone(from.trainer_state), {}, {}}; });
  }

 private:
  std::shared_ptr<Mlp> module_;
  std::vector<TimedCheckpointer*> checkpointers_;
  size_t in_flight_ = 0;
  std::unique_ptr<Trainer> trainer_;
};

// What is on disk is the state at the save point, although steps were made since.
void require_saved_state(const Folder& folder) {
  Run run(folder / "checked", 1, 2);
  Checkpoint expected;
  run.train([&](const Epoch& epoch) {
    const Checkpoint live = run.live();
    if (epoch.number == 0) {
      expected = {clone(live.module_interface_state), clone(live.trainer_state), {}, {}};
      return run.save_at_next_point(1);
    }
    run.wait_for_writes();
    const Checkpoint read = read_checkpoint(run.newest_file());
    require(equal(read.module_interface_state, expected.module_interface_state), "the model is saved as it was at the save point");
    require(equal(*read.trainer_state.find("optimizers"), *expected.trainer_state.find("optimizers")), "the optimizer is saved as it was at the save point");
    require(!equal(live.module_interface_state, expected.module_interface_state), "steps were made since");
    run.save_at_next_point(0);
  });
  run.remove_files();
}

// All that is measured of saves that are not the first of their run, round by round.
struct Saves {
  Contender cloned{"clone_into_fresh_memory", {}}, still{"async_save_stands_still", {}}, fence{"of_that_in_the_fence", {}};
  Contender usual{"step_undisturbed", {}}, saving{"step_until_saved", {}}, write{"background_write", {}};
  // Of a save of several files: steps that lie wholly within the write, and the undisturbed ones of the same rounds.
  Contender within{"step_within_a_longer_write", {}}, beside{"step_undisturbed_then", {}};

  void add_usual(const Epoch& epoch) { usual.seconds.push_back(mean_step(epoch)); }
  void add_save(const Epoch& epoch, Time began, Time ended) {
    still.seconds.push_back(epoch.save_point + epoch.fence);
    fence.seconds.push_back(epoch.fence);
    write.seconds.push_back(between(began, ended));
    saving.seconds.push_back(mean_step(epoch, [&](Time begin, Time) { return begin < ended; }));
  }
  void add_longer_save(const Epoch& epoch, Time began, Time ended) {
    const double step = mean_step(epoch, [&](Time begin, Time end) { return began <= begin && end <= ended; });
    if (step == 0.0) return;
    within.seconds.push_back(step);
    beside.seconds.push_back(usual.seconds.back());
  }
};

Saves measure_later_saves(const Folder& folder) {
  const int rounds = blocks(kCheckpointBlocks);
  Saves saves;
  Run run(folder / "later", kFiles, 3 * (rounds + 1));
  run.train([&](const Epoch& epoch) {
    if (epoch.number % 3 == 0) {
      if (epoch.number == 3) saves = {};  // the first round was for warming up
      saves.add_usual(epoch);
      saves.cloned.seconds.push_back(run.clone_seconds());
      return run.save_at_next_point(1);
    }
    run.wait_for_writes();
    const bool longer = epoch.number % 3 == 2;
    (saves.*(longer ? &Saves::add_longer_save : &Saves::add_save))(epoch, run.write_began(), run.write_ended());
    run.remove_files();
    run.save_at_next_point(longer ? 0 : kFiles);
  });
  return saves;
}

bool judge_later_saves(const Folder& folder) {
  const Saves saves = measure_later_saves(folder);
  for (const Contender* contender : {&saves.cloned, &saves.still, &saves.fence, &saves.usual, &saves.saving, &saves.write}) print_csv("checkpoint", *contender, 1e3);
  if (!saves.within.seconds.empty()) {
    print_csv("checkpoint", saves.within, 1e3);
    print_ratio("checkpoint", "step wholly within a write of several files / undisturbed step", saves.within, saves.beside);
  }
  print_ratio("checkpoint", "training stands still for a save / clone", saves.still, saves.cloned);
  print_ratio("checkpoint", "steps from a save point until it is written / undisturbed steps", saves.saving, saves.usual);
  bool ok = print_bound("checkpoint", "training stands still for a save / clone", median_ratio(saves.still, saves.cloned), 0.05);
  ok &= print_bound("checkpoint", "steps from a save point until it is written / undisturbed steps", median_ratio(saves.saving, saves.usual), 1.0 / 0.9);
  return ok;
}

bool judge_first_saves(const Folder& folder) {
  Contender cloned{"clone_before_a_first_save", {}}, still{"first_async_save_stands_still", {}}, fence{"of_that_in_the_first_fence", {}};
  for (int i = 0; i <= blocks(kCheckpointBlocks); ++i) {
    Run run(folder / "first", 1, 2, 1);
    run.train([&](const Epoch& epoch) {
      if (epoch.number == 0) {
        cloned.seconds.push_back(run.clone_seconds());
        return run.save_at_next_point(1);
      }
      run.wait_for_writes();
      still.seconds.push_back(epoch.save_point + epoch.fence);
      fence.seconds.push_back(epoch.fence);
      run.save_at_next_point(0);
    });
    run.remove_files();
    if (i > 0) continue;
    for (Contender* contender : {&cloned, &still, &fence}) contender->seconds.clear();
  }
  for (const Contender* contender : {&cloned, &still, &fence}) print_csv("checkpoint", *contender, 1e3);
  print_ratio("checkpoint", "training stands still for the first save of a run / clone", still, cloned);
  return print_bound("checkpoint", "training stands still for the first save of a run / clone", median_ratio(still, cloned), 0.3);
}

// Steps take memory, too; so what they take without a save is looked at, and printed, first.
bool judge_memory(const Folder& folder) {
  Run run(folder / "memory", 1, 3);
  std::unique_ptr<PeakMemory> memory;
  double without = 0.0, with = 0.0, snapshot = 0.0;
  run.train([&](const Epoch& epoch) {
    if (epoch.number == 1) without = memory->added_mib();
    if (epoch.number == 2) {
      run.wait_for_writes();
      with = memory->added_mib();
      snapshot = static_cast<double>(fs::file_size(run.newest_file())) / (1 << 20);
    }
    run.save_at_next_point(epoch.number == 1 ? 1 : 0);
    memory = std::make_unique<PeakMemory>();
  });
  run.remove_files();
  std::printf("memory,checkpoint,MiB added by steps alone,%.2f\nmemory,checkpoint,MiB added by steps and an asynchronous save,%.2f\nmemory,checkpoint,MiB of a snapshot,%.2f\n", without, with, snapshot);
  return print_bound("checkpoint", "memory added by an asynchronous save / one snapshot", with / snapshot, 1.0);
}

}  // namespace

bool judge_background_saves(const Folder& folder) {
  torch::manual_seed(1);
  require_saved_state(folder);
  bool ok = judge_later_saves(folder);
  ok &= judge_first_saves(folder);
  ok &= judge_memory(folder);
  return ok;
}

}  // namespace marlin::bench
