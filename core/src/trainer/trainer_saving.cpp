// The part of Trainer that hands states to checkpointers.
#include <algorithm>

#include "marlin/core/communicator.h"
#include "marlin/core/trainer.h"
#include "trainer/save_service.h"
#include "trainer/time_limit.h"

namespace marlin {
namespace {

std::string what_is_saved(const SavePoint& point) { return concat("epoch ", point.epoch, ", step ", point.global_step); }

void add_storages(const Value& value, Snapshot::Storages& into) {
  if (const auto* tensor = value.get_if<at::Tensor>()) {
    if (tensor->defined() && tensor->has_storage()) into.insert(tensor->storage().unsafeGetStorageImpl());
  } else if (const auto* dict = value.get_if<StateDict>()) {
    for (const auto& entry : *dict) add_storages(entry.value, into);
  } else if (value.get_if<List>() || value.get_if<Tuple>()) {
    for (const Value& item : value.as_items()) add_storages(item, into);
  }
}

// Parameters and the optimizers' own tensors: nothing moves them but an optimizer's step.
Snapshot::Storages changed_by_steps(const ModuleInterface& module, const Checkpoint& checkpoint) {
  Snapshot::Storages storages;
  for (const at::Tensor& parameter : module.parameters()) add_storages(parameter, storages);
  if (const Value* optimizers = checkpoint.trainer_state.find("optimizers")) add_storages(*optimizers, storages);
  return storages;
}

// Of a checkpointer that was told something that cannot be, a metric that there is not, say: no later epoch would mend that.
bool is_about_options(const Error& error) { return error.code() == Errc::kInvalidArgument || error.code() == Errc::kNotFound; }

constexpr double kTryAgainAfter = 60.0;  // seconds

}  // namespace

Checkpoint Trainer::make_checkpoint() const {
  return {module_->get_state(), get_state(), backend_->get_state(), {}};
}

// Between epochs a save point is that of the epoch just completed; within one, that of the step.
SavePoint Trainer::save_point(Cause cause, bool force) const {
  SavePoint point;
  point.unit = in_epoch_ ? Unit::kStep : Unit::kEpoch;
  point.index = in_epoch_ ? global_step() : last_epoch_;
  point.epoch = model_index();
  point.global_step = global_step();
  point.cause = cause;
  point.force = force;
  point.metrics = newest_;
  point.run_id = run_id_;
  return point;
}

int64_t Trainer::model_index() const { return in_epoch_ ? last_epoch_ + 1 : last_epoch_; }

// A failed save is reported and remembered, and the last good checkpoint stays. Training goes on, unless it is told not to.
bool Trainer::save_or_report(const AbstractCheckpointer& checkpointer, const std::string& what, const std::function<std::vector<std::string>()>& call,
                             std::vector<std::string>& written) {
  if (services_.progress) services_.progress->clear_line();
  try {
    const std::vector<std::string> places = call();
    for (const std::string& place : places) services_.logger->info("saved ", place, " (", what, ")");
    written.insert(written.end(), places.begin(), places.end());
    return true;
  } catch (const Error& error) {
    const std::string line = concat("checkpointer '", checkpointer.name(), "' could not save the ", what, ": ", error.what());
    if (checkpointer.schedule().on_error == OnError::kFail) {
      ended_by_save_ = true;
      throw Error(error.code(), line);
    }
    services_.logger->error(line);
    return false;
  }
}

double Trainer::seconds_since_save(size_t place) const {
  return std::chrono::duration<double>(services_.clock() - asked_[place]).count();
}

bool Trainer::is_to_be_tried_again(size_t place) const { return failed_[place] && seconds_since_save(place) >= kTryAgainAfter; }

// Asked after every step, so without building what a checkpointer is asked with.
bool Trainer::is_worth_asking(size_t place, int64_t step) const {
  const SaveSchedule& schedule = checkpointers_[place]->schedule();
  if (!schedule.checkpoint) return false;
  return (schedule.period_steps && step % *schedule.period_steps == 0) || schedule.also_when || is_to_be_tried_again(place) ||
         (schedule.period_seconds && seconds_since_save(place) >= *schedule.period_seconds);
}

void Trainer::save_after_step() {
  if (saves_->has_outcomes()) collect_saves();
  const bool requested = take_save_request();
  bool worth_asking = requested || (!is_alone() && agreed_.ask);  // of several ranks only the one that saves knows
  for (size_t i = 0; i < checkpointers_.size() && is_alone() && !worth_asking; ++i) worth_asking = is_worth_asking(i, global_step());
  if (worth_asking) save_where_due(save_point(requested ? Cause::kRequest : Cause::kPeriod, requested), /*wait=*/false);
}

// One that was not kept by choice is none, and makes no failure before it good.
void Trainer::note_save(size_t place, bool done, const SavePoint& point, bool kept) {
  if (done) saved_step_[place] = point.global_step, saved_index_[place] = point.index;
  if (!done || kept) failed_[place] = !done;
}

void Trainer::save_now(size_t place, const Checkpoint& checkpoint, const SavePoint& point, std::vector<std::string>& written) {
  AbstractCheckpointer& checkpointer = *checkpointers_[place];
  saves_->drain();  // no two calls at once
  asked_[place] = services_.clock();
  const size_t before = written.size();
  const bool done = save_or_report(checkpointer, what_is_saved(point), [&] { return checkpointer.save(checkpoint, point); }, written);
  note_save(place, done, point, written.size() > before);
  if (!time_limit_->enabled()) return;
  if (done) time_limit_->note_save(place, seconds_since_save(place));
  time_limit_->resume();
}

// Whether a save point that is due is left out because the save before it is still being written.
bool Trainer::is_skipped(const AbstractCheckpointer& checkpointer, const SavePoint& point) {
  if (point.force || !checkpointer.schedule().async || checkpointer.schedule().when_busy != WhenBusy::kSkip || !saves_->busy()) return false;
  if (services_.progress) services_.progress->clear_line();
  services_.logger->info("checkpointer '", checkpointer.name(), "' does not save the ", what_is_saved(point), ": the save before it is still being written (when_busy skip)");
  return true;
}

void Trainer::save_in_background(const std::vector<size_t>& places, const Checkpoint& checkpoint, const SavePoint& point, std::vector<std::string>& written) {
  std::vector<SaveService::Target> targets;
  for (const size_t place : places) {
    targets.push_back({place, checkpointers_[place].get()});
    asked_[place] = services_.clock();
  }
  std::string problem;
  try {
    saves_->submit(checkpoint, changed_by_steps(*module_, checkpoint), point, std::move(targets));
    return;
  } catch (const c10::Error& error) {
    problem = error.what_without_backtrace();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  services_.logger->warning("no snapshot could be taken (", problem, "), so training stands still until the ", what_is_saved(point), " is saved");
  for (const size_t place : places) save_now(place, checkpoint, point, written);
}

// A save that failed is tried again whatever the periods say, once it is long enough ago.
bool Trainer::is_due(size_t place, const SavePoint& point, std::vector<std::string>& written, std::optional<Error>& told_wrong) {
  const AbstractCheckpointer& checkpointer = *checkpointers_[place];
  if (is_to_be_tried_again(place)) return true;
  SavePoint its_own = point;
  its_own.seconds_since_save = seconds_since_save(place);
  bool due = false;
  const auto ask = [&] {
    try {
      due = checkpointer.due(its_own);
    } catch (const Error& error) {
      if (!is_about_options(error)) throw;
      told_wrong = error;
    }
    return std::vector<std::string>();
  };
  const bool asked = save_or_report(checkpointer, what_is_saved(point), ask, written);
  if (!asked) failed_[place] = 1;
  return due;
}

std::vector<size_t> Trainer::places_due(const SavePoint& point, std::vector<std::string>& written, std::optional<Error>& told_wrong) {
  std::vector<size_t> places;
  for (size_t i = 0; i < checkpointers_.size(); ++i) {
    AbstractCheckpointer& checkpointer = *checkpointers_[i];
    const bool just_saved = saved_step_[i] == point.global_step && saved_index_[i] == point.index;
    if (just_saved && !(point.force && checkpointer.saves_again(point))) continue;
    if (is_due(i, point, written, told_wrong) && !is_skipped(checkpointer, point)) places.push_back(i);
  }
  return places;
}

// With `wait` everything due is on disk when this returns; else those that may be saved in the background are. Of several ranks the first
// one saves, and needs to hear from all.
std::vector<std::string> Trainer::save_where_due(const SavePoint& point, bool wait) {
  std::vector<std::string> written;
  if (wait) {
    saves_->drain();
    collect_saves();
  }
  std::optional<Error> told_wrong;       // ends the run, once those are saved that are due
  const std::vector<size_t> places = is_main() ? places_due(point, written, told_wrong) : std::vector<size_t>();
  const bool any = is_alone() ? !places.empty() : services_.ranks->broadcast_bytes(places.empty() ? "" : "save", 0) == "save";
  gather_generators(any);
  if (!places.empty()) {
    const Checkpoint checkpoint = make_checkpoint();
    std::vector<size_t> background;
    for (const size_t place : places) {
      if (!wait && checkpointers_[place]->schedule().async) background.push_back(place);
      else save_now(place, checkpoint, point, written);
    }
    if (!background.empty()) save_in_background(background, checkpoint, point, written);
  }
  rank_generators_.items.clear();
  if (!written.empty()) newest_checkpoint_ = written.front();
  if (told_wrong) throw *told_wrong;
  if (any) follow_main();
  return written;
}

// What background saves came to, as if they had been made on this thread. All are told before one of them may end the run.
void Trainer::collect_saves() {
  std::optional<Error> ends_the_run;
  for (const SaveService::Outcome& outcome : saves_->take_outcomes()) {
    const size_t i = outcome.checkpointer;
    std::vector<std::string> written;
    bool done = false;
    try {
      done = save_or_report(*checkpointers_[i], what_is_saved(outcome.point), [&] {
        if (outcome.error) throw *outcome.error;
        return outcome.written;
      }, written);
    } catch (const Error& error) {
      ends_the_run = error;
    }
    note_save(i, done, outcome.point, !written.empty());
    if (done) time_limit_->note_save(i, outcome.seconds);
    if (!written.empty()) newest_checkpoint_ = written.front();
  }
  if (ends_the_run) throw *ends_the_run;
}

// What a run that throws has learned is kept once, where it cannot be taken for a good state; one that is on disk already is not.
// Nothing may replace what was thrown.
void Trainer::save_after_exception() noexcept {
  if (ended_by_save_ || !started_ || !is_alone()) return;  // the state of several ranks is that of all or none
  try {
    saves_->drain();
    collect_saves();
  } catch (const std::exception& error) {
    services_.logger->error(one_line(error.what()));
  } catch (...) {
    services_.logger->error("what a background save came to could not be told");
  }
  try {
    const SavePoint point = save_point(Cause::kException, true);
    std::optional<Checkpoint> checkpoint;
    for (size_t i = 0; i < checkpointers_.size(); ++i) {
      const bool on_disk = saved_step_[i] == point.global_step && saved_index_[i] == point.index;
      if (point.global_step == 0 || on_disk || !checkpointers_[i]->keeps_suspects()) continue;
      if (!checkpoint) {
        checkpoint = make_checkpoint();
        rewind_to_last_step(*checkpoint);
      }
      save_suspect(*checkpointers_[i], *checkpoint, point);
    }
  } catch (const std::exception& error) {
    services_.logger->error("the state after an exception could not be saved: ", one_line(error.what()));
  } catch (...) {
    services_.logger->error("the state after an exception could not be saved");
  }
}

void Trainer::save_suspect(AbstractCheckpointer& checkpointer, const Checkpoint& checkpoint, const SavePoint& point) {
  std::vector<std::string> written;
  try {
    save_or_report(checkpointer, concat("state after an exception, ", what_is_saved(point)), [&] { return checkpointer.save(checkpoint, point); }, written);
  } catch (const Error& error) {
    services_.logger->error(error.what());
  }
}

// On the way out of a run that failed: nothing may replace the reason why it did.
void Trainer::finish_saves() {
  try {
    saves_->drain();
    collect_saves();
  } catch (const std::exception& error) {
    services_.logger->error(error.what());
  }
  for (const auto& checkpointer : checkpointers_) {
    if (!is_main()) break;
    try {
      checkpointer->close();
    } catch (const std::exception& error) {
      services_.logger->error(error.what());
    }
  }
}

// Whoever asks for a save outside train() may be the first to do so.
void Trainer::require_something_to_save(const char* call) {
  set_up();
  if (!train_loader_) throw Error(Errc::kInvalidArgument, concat(call, ": a run that trains nothing (validate_only, or no epochs) has no whole state to save"));
  if (last_epoch_ < 0 && !in_epoch_) throw Error(Errc::kInvalidArgument, concat(call, ": nothing has been trained yet"));
  open_checkpointers();
}

void Trainer::open_checkpointers() {
  if (opened_ || !is_main()) return;  // after a stop the same run goes on
  const auto keeps = [](const auto& checkpointer) { return checkpointer->schedule().checkpoint; };
  const bool alone = std::count_if(checkpointers_.begin(), checkpointers_.end(), keeps) == 1;
  for (const auto& checkpointer : checkpointers_) checkpointer->open({newest_checkpoint_, run_id_, newest_checkpoint_.empty() && options_.resume == "auto", alone});
  opened_ = true;
}

std::vector<std::string> Trainer::save_models() {
  saves_->drain();
  collect_saves();
  std::vector<std::string> written;
  const int64_t index = model_index();
  for (size_t i = 0; i < checkpointers_.size() && is_main(); ++i) {
    AbstractCheckpointer& checkpointer = *checkpointers_[i];
    if (!checkpointer.schedule().checkpoint) continue;
    const auto save = [&] { return !ran_ && checkpointer.has_model(index) ? std::vector<std::string>() : checkpointer.save_model(module_->get_state(), index); };
    failed_[i] |= !save_or_report(checkpointer, concat("model of epoch ", index), save, written);
  }
  follow_main();
  return written;
}

std::vector<std::string> Trainer::save_checkpoint(bool force) {
  return telling_others([&] {
    require_something_to_save("save_checkpoint");
    std::vector<std::string> written = save_where_due(save_point(Cause::kRequest, force), /*wait=*/true);
    if (training_) std::fill(saved_step_.begin(), saved_step_.end(), -1);  // in a callback not all of the step is in it yet: it is saved again
    return written;
  });
}

std::vector<std::string> Trainer::save_model_checkpoint() {
  return telling_others([this] {
    require_something_to_save("save_model_checkpoint");
    return save_models();
  });
}

}  // namespace marlin
