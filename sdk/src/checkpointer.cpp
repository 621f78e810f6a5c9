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

void check_index(const std::string& name, const char* call, int64_t index) {
  if (index < 0) throw Error(Errc::kInvalidArgument, concat("checkpointer '", name, "': ", call, ": index must be at least 0, got ", index));
}

}  // namespace

AbstractCheckpointer::AbstractCheckpointer() = default;
AbstractCheckpointer::~AbstractCheckpointer() = default;

void AbstractCheckpointer::set_name(std::string name) { name_ = std::move(name); }

void AbstractCheckpointer::set_schedule(const SaveSchedule& schedule) {
  if (schedule.period < 1) {
    throw Error(Errc::kInvalidArgument, concat("checkpointer.period: must be at least 1 (epochs), got ", schedule.period));
  }
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
  if (point.unit != Unit::kEpoch || point.index % schedule_.period != 0) return false;
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
