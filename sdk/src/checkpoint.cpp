#include "marlin/sdk/checkpoint.h"

#include "marlin/sdk/writer.h"

namespace marlin {

int64_t Checkpoint::global_step() const {
  const Value* step = trainer_backend_state.find("global_step_completed");
  const auto* number = step == nullptr ? nullptr : step->get_if<int64_t>();
  return number == nullptr ? -1 : *number;
}

const char* to_string(Unit unit) noexcept { return unit == Unit::kEpoch ? "epoch" : "step"; }

const char* to_string(Cause cause) noexcept {
  switch (cause) {
    case Cause::kPeriod: return "period";
    case Cause::kEnd: return "end";
    case Cause::kRequest: return "request";
    case Cause::kStop: return "stop";
    case Cause::kException: return "exception";
  }
  return "unknown";
}

const char* to_string(MetricsEvent::Kind kind) noexcept {
  switch (kind) {
    case MetricsEvent::Kind::kStep: return "step";
    case MetricsEvent::Kind::kValidation: return "validation";
    case MetricsEvent::Kind::kEpoch: return "epoch";
  }
  return "unknown";
}

Writer::~Writer() = default;
void Writer::open() {}
void Writer::flush() {}
std::string Writer::name() const { return {}; }
StateDict Writer::get_state() { return {}; }
void Writer::update_state(const StateDict&, Logger&) {}

}  // namespace marlin
