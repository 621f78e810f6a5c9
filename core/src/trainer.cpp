#include "marlin/core/trainer.h"

#include <algorithm>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/backends/sp_backend.h"
#include "save_service.h"

namespace marlin {

// Between the backend's steps and everything that follows them: progress, writers, the end of the run.
class Trainer::Listener final : public StepListener {
 public:
  explicit Listener(Trainer& trainer) : trainer_(trainer) {}

  bool on_train_step(const StepReport& step) override {
    trainer_.ran_ = true;
    window_.add(*step.metrics);
    if (step.global_step % trainer_.options_.log_steps == 0) flush(step.epoch);
    if (trainer_.services_.progress) trainer_.services_.progress->step(step.loss);
    trainer_.save_after_step();
    return !trainer_.stop_requested() && !(trainer_.options_.max_steps && step.global_step >= *trainer_.options_.max_steps);
  }

  bool on_val_step(const StepReport& step) override {
    if (trainer_.services_.progress) trainer_.services_.progress->step(step.loss);
    return true;
  }

  // What has gathered since the last record; nothing at the end of an epoch is left out.
  void flush(int64_t epoch) {
    if (window_.empty()) return;
    trainer_.write(MetricsEvent::Kind::kStep, epoch, window_.means("train/"));
    window_.clear();
  }

 private:
  Trainer& trainer_;
  MetricSums window_;
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
  if (!backend_) backend_ = std::make_unique<SingleProcessBackend>();
  if (checkpointers_.empty()) checkpointers_.push_back(std::make_unique<DefaultCheckpointer>(DefaultCheckpointerOptions{}, HostContext{services_.logger}));
  saved_step_.assign(checkpointers_.size(), -1);
  saved_index_ = saved_step_;
  failed_.assign(checkpointers_.size(), 0);
  if (!services_.clock) services_.clock = std::chrono::steady_clock::now;
  asked_.assign(checkpointers_.size(), services_.clock());
  saves_ = std::make_unique<SaveService>(*services_.logger);
}

Trainer::Trainer(std::shared_ptr<ModuleInterface> module, TrainerOptions options) : Trainer(std::move(module), nullptr, {}, std::move(options)) {}

Trainer::~Trainer() = default;

int64_t Trainer::global_step() const noexcept { return backend_->global_step_completed(); }

bool Trainer::anything_left() const {
  return last_epoch_ + 1 < options_.epochs && !(options_.max_steps && global_step() >= *options_.max_steps);
}

RunResult Trainer::train() {
  if (options_.validate_only) throw Error(Errc::kInvalidArgument, "train() with validate_only: call validate()");
  set_up();
  ran_ = false;
  failed_.assign(checkpointers_.size(), 0);
  RunResult result;
  if (!anything_left()) {
    result.outcome = RunResult::Outcome::kNothingToDo;
    services_.logger->info("nothing to do: ", last_epoch_ + 1, " of ", options_.epochs, " epochs and ", global_step(), " steps are done");
    if (last_epoch_ >= 0 || in_epoch_) save_models();
  } else {
    open_writers();
    open_checkpointers();
    asked_.assign(checkpointers_.size(), services_.clock());
    started_ = training_ = true;
    ended_by_save_ = false;
    try {
      run_epochs();
      result.outcome = anything_left() ? RunResult::Outcome::kStopped : RunResult::Outcome::kDone;
      end_run(result.outcome == RunResult::Outcome::kDone);
    } catch (...) {
      save_after_exception();
      training_ = false;
      finish_saves();
      if (services_.progress) services_.progress->clear_line();
      each_writer([](Writer& writer) { writer.flush(); });
      throw;
    }
    training_ = false;
    stop_.store(false, std::memory_order_relaxed);
  }
  result.epochs = last_epoch_ + 1;
  result.global_step = global_step();
  result.metrics = newest_;
  result.checkpoint = newest_checkpoint_;
  result.last_save_failed = std::find(failed_.begin(), failed_.end(), 1) != failed_.end();
  return result;
}

void Trainer::run_epochs() {
  for (int64_t epoch = last_epoch_ + 1; anything_left() && !stop_requested(); ++epoch) run_epoch(epoch);
}

void Trainer::run_epoch(int64_t epoch) {
  module_->train();
  module_->on_begin_train_epoch(epoch, global_step());
  if (!in_epoch_) {
    train_loader_->begin_epoch(epoch);
    epoch_start_step_ = global_step();
    in_epoch_ = true;
  }
  if (services_.progress) services_.progress->begin(concat("epoch ", epoch + 1, "/", options_.epochs), plan_.steps_per_epoch, steps_in_epoch());
  Listener listener(*this);
  EpochResult trained = backend_->train(*train_loader_, epoch, steps_in_epoch(), listener);
  listener.flush(epoch);
  EpochSummary summary{epoch, global_step(), trained.metrics.means("train/"), std::move(trained.outputs)};
  if (services_.progress) services_.progress->end(summary.metrics);
  newest_.merge(summary.metrics);
  const bool out_of_steps = options_.max_steps && global_step() >= *options_.max_steps;
  if (!trained.complete && !out_of_steps) return;  // stopped: what is left of the epoch comes with the resumed run

  for (const auto& scheduler : optimizers_schedulers_.schedulers) {
    if (trained.complete && scheduler->per() == optim::LRScheduler::Per::kEpoch) scheduler->step();
  }
  write(MetricsEvent::Kind::kEpoch, epoch, summary.metrics);
  summary.metrics.merge(validate_epoch(epoch));
  module_->train();
  module_->on_end_train_epoch(summary);
  each_writer([](Writer& writer) { writer.flush(); });
  if (!trained.complete) return;
  last_epoch_ = epoch;
  in_epoch_ = false;
  const bool requested = save_requested_.exchange(false, std::memory_order_relaxed);
  save_where_due(save_point(requested ? Cause::kRequest : Cause::kPeriod, requested), /*wait=*/false);
}

Metrics Trainer::validate() {
  if (training_) throw Error(Errc::kInvalidArgument, "validate() was called from within train(), which validates at the end of every epoch by itself");
  set_up();
  return validate_epoch(std::max<int64_t>(last_epoch_, 0));
}

Metrics Trainer::validate_epoch(int64_t epoch) {
  Metrics all;
  Listener listener(*this);
  for (const auto& [name, loader] : val_loaders_) {
    loader->begin_epoch(epoch);
    auto total = loader->num_batches();
    if (options_.max_val_steps_per_epoch) total = std::min(total.value_or(*options_.max_val_steps_per_epoch), *options_.max_val_steps_per_epoch);
    if (services_.progress) services_.progress->begin(val_loaders_.size() == 1 ? "validation" : "validation " + name, total, 0);
    EpochResult validated = backend_->validate(*loader, name, epoch, listener);
    EpochSummary summary{epoch, global_step(), validated.metrics.means(val_loaders_.size() == 1 ? "val/" : "val/" + name + "/"), std::move(validated.outputs)};
    if (services_.progress) services_.progress->end(summary.metrics);
    all.merge(summary.metrics);
    module_->on_end_val_epoch(name, summary);
  }
  newest_.merge(all);
  if (!val_loaders_.empty()) write(MetricsEvent::Kind::kValidation, epoch, all);
  return all;
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
  if (ran_) save_where_due(save_point(complete ? Cause::kEnd : Cause::kStop, true), /*wait=*/true);
  if (complete) {
    save_models();
    module_->on_end_train(global_step());
  }
  std::vector<std::string> none;
  for (size_t i = 0; i < checkpointers_.size(); ++i) {
    const auto close = [&] { return checkpointers_[i]->close(), std::vector<std::string>(); };
    failed_[i] |= !save_or_report(*checkpointers_[i], "last of what it has", close, none);
  }
  each_writer([](Writer& writer) { writer.flush(); });
}

}  // namespace marlin
