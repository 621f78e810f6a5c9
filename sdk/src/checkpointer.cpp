#include "marlin/sdk/checkpointer.h"

#include <utility>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

bool is_periodic(const SaveSchedule& schedule, const SavePoint& point) {
  if (point.unit == Unit::kEpoch && point.index % schedule.period == 0) return true;
  if (point.unit == Unit::kStep && schedule.period_steps && point.global_step % *schedule.period_steps == 0) return true;
  if (schedule.period_seconds && point.seconds_since_save >= *schedule.period_seconds) return true;
  return false;
}

void check_index(const std::string& name, const char* call, int64_t index) {
  if (index < 0) throw Error(Errc::kInvalidArgument, concat("checkpointer '", name, "': ", call, ": index must be at least 0, got ", index));
}

}  // namespace

std::vector<OptionField<SaveSchedule>> SaveSchedule::option_fields() {
  using S = SaveSchedule;
  return {
      option_field("checkpoint", &S::checkpoint, "Master switch: off, nothing is written."),
      option_field("period", &S::period, "Save when epoch % period == 0, epochs counted from 0; the last one always.", {.unit = "epochs", .min = 1}),
      option_field("period_steps", &S::period_steps, "Save when global_step % period_steps == 0, too.", {.unit = "optimizer steps", .min = 1}),
      option_field("period_seconds", &S::period_seconds, "Save when the newest save is so long ago, too.", {.unit = "seconds", .min = 0.001}),
      option_field("async", &S::async, "Save in the background while training goes on."),
      option_field("when_busy", &S::when_busy, "When the save before is still being written: wait for it; or skip this one, unless it is the last.", {.choices = {"wait", "skip"}}),
      option_field("on_error", &S::on_error, "When a save fails: warn, go on and try again at the next save point; or fail, end the run.", {.choices = {"warn", "fail"}}),
      option_field("verify", &S::verify, "On a resume, compare with the file's hashes: full, all of it first; lazy, what is taken; or off.", {.choices = {"full", "lazy", "off"}}),
  };
}

AbstractCheckpointer::AbstractCheckpointer() { set_name("checkpointer"); }
AbstractCheckpointer::~AbstractCheckpointer() = default;

void AbstractCheckpointer::set_name(std::string name) {
  name_ = std::move(name);
  if (!seam_ || !seam_->foreign()) seam_ = std::make_shared<const Seam>(concat("checkpointer '", name_, "'"));
}

void AbstractCheckpointer::set_seam(std::shared_ptr<const Seam> seam) { seam_ = std::move(seam); }

void AbstractCheckpointer::set_schedule(const SaveSchedule& schedule) {
  validate(schedule, "checkpointer.");
  SaveSchedule fitted = schedule;
  std::shared_ptr(seam_)->call("schedule", Seam::Watch::kNothing, [&] { do_schedule(fitted); });
  validate(fitted, "checkpointer.");
  schedule_ = std::move(fitted);
}

void AbstractCheckpointer::open(const RunStart& start) {
  if (!schedule_.checkpoint) return;
  closed_ = false;
  std::shared_ptr(seam_)->call("open", Seam::Watch::kCall, [&] { do_open(start); });
}

bool AbstractCheckpointer::due(const SavePoint& point) const {
  if (!schedule_.checkpoint) return false;
  if (point.force) return true;
  if (!is_periodic(schedule_, point)) {  // the program's own function is asked in the program's name
    if (!schedule_.also_when) return false;
    if (!Seam(concat("checkpointer '", name_, "'")).call("also_when", Seam::Watch::kNothing, [&] { return schedule_.also_when(point); })) return false;
  }
  return std::shared_ptr(seam_)->call("is_due", Seam::Watch::kNothing, [&] { return is_due(point); });
}

bool AbstractCheckpointer::keeps_suspects() const {
  return schedule_.checkpoint && std::shared_ptr(seam_)->call("keeps_suspects", Seam::Watch::kNothing, [&] { return do_keeps_suspects(); });
}

bool AbstractCheckpointer::saves_again(const SavePoint& point) const {
  return schedule_.checkpoint && std::shared_ptr(seam_)->call("saves_again", Seam::Watch::kNothing, [&] { return do_saves_again(point); });
}

std::vector<std::string> AbstractCheckpointer::save(const Checkpoint& checkpoint, const SavePoint& point) {
  check_index(name_, "save", point.index);
  if (!schedule_.checkpoint) return {};
  closed_ = false;
  return std::shared_ptr(seam_)->call("save", Seam::Watch::kCall, [&] { return do_save(checkpoint, point); });
}

std::vector<std::string> AbstractCheckpointer::save(const Checkpoint& checkpoint, int64_t index, bool force) {
  check_index(name_, "save", index);
  SavePoint point;
  point.index = point.epoch = index;
  point.force = force;
  if (!due(point)) return {};
  return save(checkpoint, point);
}

std::vector<std::string> AbstractCheckpointer::save_model(const StateDict& model_state, int64_t index) {
  check_index(name_, "save_model", index);
  if (!schedule_.checkpoint) return {};
  closed_ = false;
  return std::shared_ptr(seam_)->call("save_model", Seam::Watch::kCall, [&] { return do_save_model(model_state, index); });
}

bool AbstractCheckpointer::has_model(int64_t index) const {
  return std::shared_ptr(seam_)->call("has_model", Seam::Watch::kNothing, [&] { return do_has_model(index); });
}

bool AbstractCheckpointer::wants_load() const {
  return std::shared_ptr(seam_)->call("wants_load", Seam::Watch::kNothing, [&] { return do_wants_load(); });
}

Checkpoint AbstractCheckpointer::load(const LoadRequest& request) {
  return std::shared_ptr(seam_)->call("load", Seam::Watch::kCall, [&] { return do_load(request); });
}

void AbstractCheckpointer::close() {
  if (closed_) return;
  closed_ = true;
  std::shared_ptr(seam_)->call("close", Seam::Watch::kCall, [&] { do_close(); });
}

void AbstractCheckpointer::do_schedule(SaveSchedule&) const {}
bool AbstractCheckpointer::do_keeps_suspects() const { return false; }
bool AbstractCheckpointer::do_saves_again(const SavePoint&) const { return false; }
void AbstractCheckpointer::do_open(const RunStart&) {}
bool AbstractCheckpointer::is_due(const SavePoint&) const { return true; }
bool AbstractCheckpointer::do_has_model(int64_t) const { return false; }
bool AbstractCheckpointer::do_wants_load() const { return false; }
void AbstractCheckpointer::do_close() {}

}  // namespace marlin
