#include "marlin/core/trainer.h"

#include <algorithm>
#include <utility>

#include "distributed/agreement.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/backends/ddp_backend.h"
#include "marlin/core/backends/sp_backend.h"
#include "marlin/core/communicator.h"
#include "trainer/epoch_progress.h"
#include "trainer/save_service.h"
#include "trainer/time_limit.h"

namespace marlin {
namespace {

void note_work(TimeLimit& limit, SaveService& saves, TimeLimit::Work work) {
  if (limit.enabled()) limit.note(work, saves.busy());
}

}  // namespace

// Between the backend's training steps and everything that follows them: sums, progress, writers, saves, the end of the run.
class Trainer::TrainListener final : public StepListener {
 public:
  explicit TrainListener(Trainer& trainer) : trainer_(trainer) {}

  bool on_train_step(const StepReport& step) override {
    EpochProgress& progress = *trainer_.progress_;
    trainer_.take_agreed(step.wishes);
    if (step.skipped) return skip(step);
    trainer_.ran_ = true;
    progress.epoch.add(*step.metrics);
    progress.window.add(*step.metrics);
    if (step.outputs != nullptr) progress.outputs.add(*step.outputs);
    if (step.global_step % trainer_.options_.log_steps == 0) trainer_.flush_window(step.epoch);
    if (trainer_.services_.progress) trainer_.services_.progress->step(step.loss);
    progress.mark_step(step.global_step, trainer_.train_loader_->consumed_samples());
    trainer_.save_after_step();
    note_work(*trainer_.time_limit_, *trainer_.saves_, TimeLimit::Work::kStep);
    return !trainer_.should_stop() && !trainer_.out_of_steps();
  }
  bool on_val_step(const StepReport&) override { return true; }

 private:
  // Its batch is used up, and nothing was learned from it.
  bool skip(const StepReport& step) {
    trainer_.services_.logger->debug("epoch ", step.epoch, ": a step was skipped, for its gradients overflowed (", trainer_.backend_->skipped_steps(), " so far)");
    trainer_.progress_->mark_step(step.global_step, trainer_.train_loader_->consumed_samples());
    note_work(*trainer_.time_limit_, *trainer_.saves_, TimeLimit::Work::kStep);
    return !trainer_.should_stop();
  }

  Trainer& trainer_;
};

// Gathers what a loader's validation comes to.
class Trainer::ValListener final : public StepListener {
 public:
  explicit ValListener(Trainer& trainer) : trainer_(trainer) {}

  bool on_train_step(const StepReport&) override { return true; }
  bool on_val_step(const StepReport& step) override {
    metrics.add(*step.metrics);
    if (step.outputs != nullptr) outputs.add(*step.outputs);
    trainer_.take_agreed(step.wishes);
    if (trainer_.services_.progress) trainer_.services_.progress->step(step.loss);
    if (!trainer_.training_) return true;
    note_work(*trainer_.time_limit_, *trainer_.saves_, TimeLimit::Work::kValBatch);
    return !trainer_.should_stop();
  }

  MetricSums metrics;
  OutputCollector outputs;

 private:
  Trainer& trainer_;
};

Trainer::Trainer(std::shared_ptr<ModuleInterface> module, std::unique_ptr<TrainerBackend> backend, Checkpointers checkpointers,
                 TrainerOptions options, TrainerServices services)
    : module_(std::move(module)), backend_(std::move(backend)), checkpointers_(std::move(checkpointers)), options_(std::move(options)), services_(std::move(services)) {
  if (!module_) throw Error(Errc::kInvalidArgument, "Trainer: the module is null");
  marlin::validate(options_);
  if (options_.resume && *options_.resume != "never" && *options_.resume != "auto" && *options_.resume != "must" && options_.resume->find('/') == std::string::npos) {
    throw Error(Errc::kInvalidArgument, concat("--resume: must be never, auto, must or a path with a '/', got '", *options_.resume, "'",
                                               options_.resume->empty() ? "" : "; a file here is ./" + *options_.resume));
  }
  if (services_.ranks && services_.ranks->world_size() > 1) agreement_ = std::make_unique<Agreement>(*services_.ranks);
  if (!backend_) backend_ = is_alone() ? std::make_unique<SingleProcessBackend>() : std::make_unique<DistributedBackend>();
  if (!is_alone() && dynamic_cast<SingleProcessBackend*>(backend_.get()) != nullptr && dynamic_cast<DistributedBackend*>(backend_.get()) == nullptr) {
    throw Error(Errc::kInvalidArgument, "Trainer: its services have several ranks, but its backend is that of one process: give it a DistributedBackend, or none");
  }
  if (checkpointers_.empty()) checkpointers_.push_back(std::make_unique<DefaultCheckpointer>(DefaultCheckpointerOptions{}, HostContext{services_.logger}));
  saved_step_.assign(checkpointers_.size(), -1);
  saved_index_ = saved_step_;
  failed_.assign(checkpointers_.size(), 0);
  if (!services_.clock) services_.clock = std::chrono::steady_clock::now;
  asked_.assign(checkpointers_.size(), services_.clock());
  if (!is_main()) {
    services_.writers.clear();
    services_.progress.reset();
  }
  saves_ = std::make_unique<SaveService>(*services_.logger);
  progress_ = std::make_unique<EpochProgress>();
  early_stopping_ = EarlyStopping(options_.early_stopping);
  time_limit_ = std::make_unique<TimeLimit>(options_.max_seconds, services_.began.value_or(services_.clock()), services_.clock, checkpointers_.size());
}

Trainer::Trainer(std::shared_ptr<ModuleInterface> module, TrainerOptions options) : Trainer(std::move(module), nullptr, {}, std::move(options)) {}

Trainer::~Trainer() = default;

int64_t Trainer::global_step() const noexcept { return backend_->global_step_completed(); }

bool Trainer::anything_left() const {
  if (in_epoch_ && progress_->phase == EpochProgress::Phase::kValidation) return true;
  if (last_epoch_ + 1 >= options_.epochs || early_stopping_.is_over()) return false;
  // The epoch that max_steps end is validated, too; a run that was left before that has it left.
  return !out_of_steps() || (in_epoch_ && global_step() == *options_.max_steps && ended_at_step_ != global_step());
}

bool Trainer::out_of_steps() const { return options_.max_steps && global_step() >= *options_.max_steps; }

bool Trainer::should_stop() const { return is_alone() ? stop_requested() || time_limit_->is_up() : agreed_.ends_run(); }

RunResult Trainer::train() {
  if (options_.validate_only) throw Error(Errc::kInvalidArgument, "train() with validate_only: call validate()");
  return telling_others([this] { return train_here(); });
}

Metrics Trainer::validate() {
  if (training_) throw Error(Errc::kInvalidArgument, "validate() was called from within train(), which validates at the end of every epoch by itself");
  return telling_others([this] { return validate_here(); });
}

RunResult Trainer::train_here() {
  set_up();
  ran_ = false;
  failed_.assign(checkpointers_.size(), 0);
  if (!anything_left()) {
    services_.logger->info("nothing to do: ", last_epoch_ + 1, " of ", options_.epochs, " epochs and ", global_step(), " steps are done",
                           early_stopping_.is_over() ? concat("; stopped early: ", early_stopping_.reason()) : "");
    if (last_epoch_ >= 0 || in_epoch_) save_models();
    return result(RunResult::Outcome::kNothingToDo);
  }
  check_time();
  if (services_.before_training) services_.before_training();
  if (!is_alone()) static_cast<void>(meet("the begin of training", {}));  // nothing on disk is changed before signals stop every rank
  open_writers();
  open_checkpointers();
  move_writers();
  asked_.assign(checkpointers_.size(), services_.clock());
  started_ = training_ = true;
  ended_by_save_ = false;
  RunResult::Outcome outcome = RunResult::Outcome::kDone;
  try {
    time_limit_->resume();
    agree();
    if (!train_left()) outcome = RunResult::Outcome::kStopped;
    end_run(outcome == RunResult::Outcome::kDone);
  } catch (...) {
    tell_others();  // before anything that takes time
    save_after_exception();
    training_ = false;
    finish_saves();
    if (services_.progress) services_.progress->clear_line();
    each_writer([](Writer& writer) { writer.flush(); });
    throw;
  }
  training_ = false;
  const RunResult ended = result(outcome);
  if (ended.out_of_time && time_limit_->save_seconds() >= *options_.max_seconds) {
    services_.logger->warning("--max_seconds ", *options_.max_seconds, " is shorter than one save, which took ", time_limit_->save_seconds(), " s: give more, or save to a faster disk");
  }
  if (outcome == RunResult::Outcome::kDone) before_ending_.reset();
  stop_.store(false, std::memory_order_relaxed);
  stop_signal_.store(0, std::memory_order_relaxed);
  return ended;
}

RunResult Trainer::result(RunResult::Outcome outcome) const {
  RunResult result;
  result.outcome = outcome;
  result.epochs = last_epoch_ + 1;
  result.global_step = global_step();
  result.metrics = newest_;
  if (in_epoch_) result.metrics.merge(progress_->epoch.means("train/"));
  result.checkpoint = newest_checkpoint_;
  result.last_save_failed = std::find(failed_.begin(), failed_.end(), 1) != failed_.end();
  if (outcome == RunResult::Outcome::kStopped) {
    result.signal = is_alone() ? stop_signal_.load(std::memory_order_relaxed) : agreed_.signal;
    result.out_of_time = is_alone() ? !stop_requested() && time_limit_->is_up() : !agreed_.stop && agreed_.out_of_time;
  }
  return result;
}

// What cannot be done in time is better told than begun.
void Trainer::check_time() const {
  if (!time_limit_->enabled()) return;
  double bytes = 0.0;
  for (const at::Tensor& tensor : module_->parameters()) bytes += 3.0 * static_cast<double>(tensor.nbytes());  // and two moments
  const auto saves = [](const auto& checkpointer) { return checkpointer->schedule().checkpoint; };
  const auto num_saves = static_cast<double>(std::count_if(checkpointers_.begin(), checkpointers_.end(), saves));
  constexpr double kAtLeast = 0.02, kFastDisk = 2e9, kSlowDisk = 2e8;  // seconds; bytes a second
  const double needed = num_saves * (kAtLeast + bytes / kFastDisk), left = time_limit_->seconds_left();
  if (left <= needed) {
    throw Error(Errc::kInvalidArgument, concat("--max_seconds ", *options_.max_seconds, ": ", *options_.max_seconds - left, " s have gone by before training could begin, and one save is expected to take ",
                                               needed, " s, so nothing would be trained: give more"));
  }
  const double expected = std::min(num_saves * (kAtLeast + bytes / kSlowDisk), left / 2.0);  // some steps are made, whatever is expected
  time_limit_->expect_saves(expected);
}

// False: stopped before all of it was done.
bool Trainer::train_left() {
  while (anything_left()) {
    if (should_stop() || !run_epoch(last_epoch_ + 1)) return false;
  }
  return true;
}

// False: left before its end, but not because max_steps are done. What is left comes with the resumed run.
bool Trainer::run_epoch(int64_t epoch) {
  begin_epoch(epoch);
  bool partial = false;  // max_steps end the run within the epoch
  if (progress_->phase == EpochProgress::Phase::kTrain) {
    partial = !train_epoch(epoch);
    if (partial && !out_of_steps()) return false;
    if (!before_ending_) end_training_part(epoch, partial);
  }
  if (!validate_epoch(epoch, *progress_)) return false;
  EpochSummary summary{epoch, global_step(), progress_->epoch.means("train/"), progress_->outputs.joined()};
  summary.metrics.merge(progress_->validated);
  module_->train();
  module_->on_end_train_epoch(summary);
  each_writer([](Writer& writer) { writer.flush(); });
  if (partial) {
    ended_at_step_ = global_step();
    ran_ = true;
    std::fill(saved_step_.begin(), saved_step_.end(), -1);  // what was saved at this step does not know of its end
    progress_->forget_validation();
  } else {
    complete_epoch(epoch);
  }
  return true;
}

void Trainer::end_training_part(int64_t epoch, bool partial) {
  if (partial) before_ending_ = progress_state();
  flush_window(epoch);
  const Metrics metrics = progress_->epoch.means("train/");
  write(MetricsEvent::Kind::kEpoch, epoch, metrics);
  newest_.merge(metrics);
  if (partial) return;
  for (const auto& scheduler : optimizers_schedulers_.schedulers) {
    if (scheduler->per() == optim::LRScheduler::Per::kEpoch) scheduler->step();
  }
  progress_->phase = EpochProgress::Phase::kValidation;
}

// Where a run goes on within an epoch the callback sets up what is not in the state; numbers that it draws have been drawn before.
void Trainer::begin_epoch(int64_t epoch) {
  module_->train();
  StateDict generators = generators_state(device_);
  if (in_epoch_) {
    if (begun_epoch_ != epoch) module_->on_begin_train_epoch(epoch, global_step());
    static_cast<void>(set_generators_state(generators, device_));
  } else {
    module_->on_begin_train_epoch(epoch, global_step());
    train_loader_->begin_epoch(epoch);
    *progress_ = {};
    progress_->before_begin = std::move(generators);
    epoch_start_step_ = global_step();
    in_epoch_ = true;
  }
  begun_epoch_ = epoch;
  progress_->mark_step(global_step(), train_loader_->consumed_samples());
}

// False: there is more to train in it.
bool Trainer::train_epoch(int64_t epoch) {
  const auto cap = options_.max_train_steps_per_epoch;
  if (out_of_steps()) return (cap && steps_in_epoch() >= *cap) || train_loader_->at_end().value_or(false);  // of a run that was left right then
  if (services_.progress) services_.progress->begin(concat("epoch ", epoch + 1, "/", options_.epochs), plan_.steps_per_epoch, steps_in_epoch());
  TrainListener listener(*this);
  const EpochResult trained = backend_->train(*train_loader_, epoch, steps_in_epoch(), listener);
  if (services_.progress) services_.progress->end(progress_->epoch.means("train/"));
  const bool interrupted = train_loader_->interrupted();
  if (interrupted && steps_in_epoch() == 0) {  // nothing of it is done
    in_epoch_ = false;
    begun_epoch_ = -1;
    if (!progress_->before_begin.empty()) static_cast<void>(set_generators_state(progress_->before_begin, device_));
  }
  return trained.complete && !interrupted;
}

void Trainer::complete_epoch(int64_t epoch) {
  last_epoch_ = epoch;
  in_epoch_ = false;
  ran_ = true;
  Metrics metrics = progress_->epoch.means("train/");
  metrics.merge(progress_->validated);
  early_stopping_.observe(metrics);
  if (early_stopping_.is_over()) services_.logger->info("stopping early: ", early_stopping_.reason());
  agree();
  const bool requested = take_save_request();
  save_where_due(save_point(requested ? Cause::kRequest : Cause::kPeriod, requested), /*wait=*/false);
  note_work(*time_limit_, *saves_, TimeLimit::Work::kEpochEnd);
}

Metrics Trainer::validate_here() {
  set_up();
  EpochProgress progress;
  static_cast<void>(validate_epoch(std::max<int64_t>(last_epoch_, 0), progress));
  return progress.validated;
}

// False: stopped. The loaders that are through stay so; the others come with the resumed run.
bool Trainer::validate_epoch(int64_t epoch, EpochProgress& progress) {
  const auto& through = progress.validated_loaders;
  for (const auto& [name, loader] : val_loaders_) {
    if (std::find(through.begin(), through.end(), name) != through.end()) continue;
    if ((training_ && should_stop()) || !validate_loader(name, *loader, epoch, progress)) return false;
  }
  if (progress.recorded) return true;
  newest_.merge(progress.validated);
  if (!val_loaders_.empty()) write(MetricsEvent::Kind::kValidation, epoch, progress.validated);
  progress.recorded = true;
  return true;
}

// One that is left goes back to where it began, and begins again with the same random numbers.
bool Trainer::validate_loader(const std::string& name, DataLoader& loader, int64_t epoch, EpochProgress& progress) {
  if (progress.before_loader.empty()) progress.before_loader = generators_state(device_);
  else static_cast<void>(set_generators_state(progress.before_loader, device_));
  std::vector<at::Tensor> buffers;  // in which a module may gather what it validates
  for (const at::Tensor& buffer : module_->buffers()) buffers.push_back(buffer.clone());
  const auto go_back = [&] {
    const at::NoGradGuard no_grad;
    const std::vector<at::Tensor> present = module_->buffers();
    for (size_t i = 0; i < std::min(present.size(), buffers.size()); ++i) {
      if (present[i].sizes() == buffers[i].sizes()) at::Tensor(present[i]).copy_(buffers[i]);
    }
  };
  try {
    const bool complete = run_validation(name, loader, epoch, progress);
    if (!complete) go_back();
    return complete;
  } catch (...) {
    go_back();
    throw;
  }
}

bool Trainer::run_validation(const std::string& name, DataLoader& loader, int64_t epoch, EpochProgress& progress) {
  module_->on_begin_val_epoch(name, epoch, global_step());
  loader.begin_epoch(epoch);
  auto total = loader.num_batches();
  if (options_.max_val_steps_per_epoch) total = std::min(total.value_or(*options_.max_val_steps_per_epoch), *options_.max_val_steps_per_epoch);
  if (services_.progress) services_.progress->begin(val_loaders_.size() == 1 ? "validation" : "validation " + name, total, 0);
  ValListener listener(*this);
  const EpochResult validated = backend_->validate(loader, name, epoch, listener);
  EpochSummary summary{epoch, global_step(), listener.metrics.means(val_loaders_.size() == 1 ? "val/" : "val/" + name + "/"), {}};
  if (services_.progress) services_.progress->end(summary.metrics);
  if (!validated.complete || loader.interrupted()) return false;
  summary.outputs = listener.outputs.joined();
  module_->on_end_val_epoch(name, summary);
  progress.validated.merge(summary.metrics);
  progress.validated_loaders.push_back(name);
  progress.before_loader = {};
  return true;
}

// What has gathered since the last record.
void Trainer::flush_window(int64_t epoch) {
  if (progress_->window.empty()) return;
  write(MetricsEvent::Kind::kStep, epoch, progress_->window.means("train/"));
  progress_->window.clear();
}

void Trainer::write(MetricsEvent::Kind kind, int64_t epoch, const Metrics& metrics) {
  if (services_.writers.empty()) return;
  if (services_.progress) services_.progress->clear_line();
  const MetricsEvent event{kind, epoch, global_step(), metrics};
  each_writer([&](Writer& writer) { writer.write(event); });
}

void Trainer::open_writers() {
  for (const auto& writer : services_.writers) {
    try {
      writer->open();
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error(Errc::kPlugin, concat("a writer of metrics cannot begin: ", error.what()));
    }
  }
}

// One that cannot go back to where the checkpoint was is told of, and appends.
void Trainer::move_writers() {
  const StateDict positions = std::exchange(writers_loaded_, {});
  for (size_t i = 0; i < services_.writers.size(); ++i) {
    try {
      const Value* position = positions.find(writer_key(i));
      if (position != nullptr) services_.writers[i]->update_state(position->as_dict(), *services_.logger);
    } catch (const std::exception& error) {
      services_.logger->warning("a writer of metrics does not know where the checkpoint was, so steps may be in its record twice: ", one_line(error.what()));
    }
  }
}

// Training is worth more than its record: a writer that fails is told of once and left out from then on.
void Trainer::each_writer(const std::function<void(Writer&)>& call) {
  auto& writers = services_.writers;
  for (auto writer = writers.begin(); writer != writers.end();) {
    try {
      call(**writer);
      ++writer;
    } catch (const std::exception& error) {
      services_.logger->error("a writer of metrics failed and is left out from now on: ", error.what());
      writer = writers.erase(writer);
    }
  }
}

// The last state is saved whatever the period says, once; a run that has more to do gets no model file.
void Trainer::end_run(bool complete) {
  save_requested_.store(false, std::memory_order_relaxed);
  agreed_.save = false;
  if (ran_) save_where_due(save_point(complete ? Cause::kEnd : Cause::kStop, true), /*wait=*/true);
  if (complete) {
    save_models();
    module_->on_end_train(global_step());
  }
  std::vector<std::string> none;
  for (size_t i = 0; i < checkpointers_.size(); ++i) {
    if (!is_main()) break;
    const auto close = [&] { return checkpointers_[i]->close(), std::vector<std::string>(); };
    failed_[i] |= !save_or_report(*checkpointers_[i], "last of what it has", close, none);
  }
  each_writer([](Writer& writer) { writer.flush(); });
  follow_main();
  if (!is_alone()) static_cast<void>(meet("the end of the run", {}));  // what goes wrong on one rank up to here, all are told
}

}  // namespace marlin
