// The part of Trainer that hands states to checkpointers.
#include <algorithm>

#include "marlin/core/trainer.h"

namespace marlin {

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

// A failed save is reported and remembered; training goes on, and the last good checkpoint stays.
bool Trainer::save_or_report(const AbstractCheckpointer& checkpointer, const std::string& what, const std::function<std::vector<std::string>()>& call,
                             std::vector<std::string>& written) {
  if (services_.progress) services_.progress->clear_line();
  try {
    const std::vector<std::string> places = call();
    for (const std::string& place : places) services_.logger->info("saved ", place, " (", what, ")");
    written.insert(written.end(), places.begin(), places.end());
    return true;
  } catch (const Error& error) {
    services_.logger->error("checkpointer '", checkpointer.name(), "' could not save the ", what, ": ", error.what());
    return false;
  }
}

std::vector<std::string> Trainer::save_where_due(const SavePoint& point) {
  std::vector<std::string> written;
  std::optional<Checkpoint> checkpoint;  // built once, and only if somebody wants it
  for (size_t i = 0; i < checkpointers_.size(); ++i) {
    AbstractCheckpointer& checkpointer = *checkpointers_[i];
    if (saved_step_[i] == point.global_step && saved_index_[i] == point.index) continue;  // just saved
    const std::string what = concat("epoch ", point.epoch, ", step ", point.global_step);
    bool due = false;
    const bool asked = save_or_report(checkpointer, what, [&] { return due = checkpointer.due(point), std::vector<std::string>(); }, written);
    if (asked && !due) continue;
    if (asked && !checkpoint) checkpoint = make_checkpoint();
    const bool done = asked && save_or_report(checkpointer, what, [&] { return checkpointer.save(*checkpoint, point); }, written);
    if (done) saved_step_[i] = point.global_step, saved_index_[i] = point.index;
    failed_[i] = !done;
  }
  if (!written.empty()) newest_checkpoint_ = written.front();
  return written;
}

std::vector<std::string> Trainer::save_models() {
  std::vector<std::string> written;
  const int64_t index = model_index();
  for (size_t i = 0; i < checkpointers_.size(); ++i) {
    AbstractCheckpointer& checkpointer = *checkpointers_[i];
    if (!checkpointer.schedule().checkpoint) continue;
    const auto save = [&] { return !ran_ && checkpointer.has_model(index) ? std::vector<std::string>() : checkpointer.save_model(module_->get_state(), index); };
    failed_[i] |= !save_or_report(checkpointer, concat("model of epoch ", index), save, written);
  }
  return written;
}

std::vector<std::string> Trainer::save_checkpoint(bool force) {
  set_up();
  if (last_epoch_ < 0 && !in_epoch_) throw Error(Errc::kInvalidArgument, "save_checkpoint: nothing has been trained yet");
  return save_where_due(save_point(Cause::kRequest, force));
}

std::vector<std::string> Trainer::save_model_checkpoint() {
  set_up();
  if (last_epoch_ < 0 && !in_epoch_) throw Error(Errc::kInvalidArgument, "save_model_checkpoint: nothing has been trained yet");
  return save_models();
}

}  // namespace marlin
