#include "trainer/epoch_progress.h"

namespace marlin {

StateDict to_state(const Metrics& metrics) {
  StateDict state;
  for (const auto& [name, value] : metrics) state.set(name, value);
  return state;
}

Metrics to_metrics(const StateDict& state) {
  Metrics metrics;
  for (const auto& [name, value] : state) metrics.set(to_string(name), value.as_double());
  return metrics;
}

StateDict EpochProgress::get_state() const {
  List loaders;
  for (const std::string& name : validated_loaders) loaders.items.emplace_back(name);
  StateDict state = {{"phase", phase == Phase::kTrain ? "train" : "validation"}, {"epoch_metrics", epoch.get_state()}, {"step_metrics", window.get_state()}};
  state.set("outputs", outputs.get_state());
  state.set("validated", StateDict{{"loaders", std::move(loaders)}, {"metrics", to_state(validated)}, {"recorded", recorded}});
  return state;
}

EpochProgress EpochProgress::of(const StateDict& state) {
  EpochProgress progress;
  if (const Value* phase = state.find("phase")) {
    const std::string& name = phase->as_string();
    if (name != "train" && name != "validation") throw Error(Errc::kMismatch, concat("trainer_state.phase: must be train or validation, is '", name, "'"));
    progress.phase = name == "train" ? Phase::kTrain : Phase::kValidation;
  }
  if (const Value* sums = state.find("epoch_metrics")) progress.epoch.update_state(sums->as_dict());
  if (const Value* sums = state.find("step_metrics")) progress.window.update_state(sums->as_dict());
  if (const Value* outputs = state.find("outputs")) progress.outputs.update_state(outputs->as_items());
  if (const Value* validated = state.find("validated")) {
    for (const Value& name : validated->as_dict().at("loaders").as_items()) progress.validated_loaders.push_back(name.as_string());
    progress.validated = to_metrics(validated->as_dict().at("metrics").as_dict());
    progress.recorded = validated->as_dict().at("recorded").as_bool();
  }
  return progress;
}

}  // namespace marlin
