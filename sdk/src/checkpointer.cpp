#include "marlin/sdk/checkpointer.h"

#include <exception>
#include <utility>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

// Whatever a hook throws reaches the caller as an Error of ours: a type of the plugin's own must not cross the seam.
template <class Call>
auto guarded(const std::string& name, const char* call, Call&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(Errc::kPlugin, concat("checkpointer '", name, "': ", call, " failed: ", error.what()));
  } catch (...) {
    throw Error(Errc::kPlugin, concat("checkpointer '", name, "': ", call, " failed with an exception of unknown type"));
  }
}

bool is_triggered(const SaveSchedule& schedule, const SavePoint& point) {
  if (point.unit == Unit::kEpoch && point.index % schedule.period == 0) return true;
  if (point.unit == Unit::kStep && schedule.period_steps && point.global_step % *schedule.period_steps == 0) return true;
  if (schedule.period_seconds && point.seconds_since_save >= *schedule.period_seconds) return true;
  return schedule.also_when && schedule.also_when(point);
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

AbstractCheckpointer::AbstractCheckpointer() = default;
AbstractCheckpointer::~AbstractCheckpointer() = default;

void AbstractCheckpointer::set_name(std::string name) { name_ = std::move(name); }

void AbstractCheckpointer::set_schedule(const SaveSchedule& schedule) {
  validate(schedule, "checkpointer.");
  schedule_ = schedule;
}

void AbstractCheckpointer::open(const RunStart& start) {
  if (!schedule_.checkpoint) return;
  closed_ = false;
  guarded(name_, "open", [&] { do_open(start); });
}

bool AbstractCheckpointer::due(const SavePoint& point) const {
  if (!schedule_.checkpoint) return false;
  if (point.force) return true;
  if (!guarded(name_, "also_when", [&] { return is_triggered(schedule_, point); })) return false;
  return guarded(name_, "is_due", [&] { return is_due(point); });
}

std::vector<std::string> AbstractCheckpointer::save(const Checkpoint& checkpoint, const SavePoint& point) {
  check_index(name_, "save", point.index);
  if (!schedule_.checkpoint) return {};
  closed_ = false;
  return guarded(name_, "save", [&] { return do_save(checkpoint, point); });
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
  return guarded(name_, "save_model", [&] { return do_save_model(model_state, index); });
}

bool AbstractCheckpointer::has_model(int64_t index) const {
  return guarded(name_, "has_model", [&] { return do_has_model(index); });
}

bool AbstractCheckpointer::wants_load() const {
  return guarded(name_, "wants_load", [&] { return do_wants_load(); });
}

Checkpoint AbstractCheckpointer::load(const LoadRequest& request) {
  return guarded(name_, "load", [&] { return do_load(request); });
}

void AbstractCheckpointer::close() {
  if (closed_) return;
  closed_ = true;
  guarded(name_, "close", [&] { do_close(); });
}

void AbstractCheckpointer::do_open(const RunStart&) {}
bool AbstractCheckpointer::is_due(const SavePoint&) const { return true; }
bool AbstractCheckpointer::do_has_model(int64_t) const { return false; }
bool AbstractCheckpointer::do_wants_load() const { return false; }
void AbstractCheckpointer::do_close() {}

}  // namespace marlin
