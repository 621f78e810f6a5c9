#include "marlin/core/module_interface.h"

#include "marlin/core/model_state.h"
#include "marlin/sdk/error.h"

namespace marlin {

void StepContext::optimize(const at::Tensor& loss, size_t optimizer_index, bool retain_graph) const {
  if (optimizer == nullptr) throw Error(Errc::kInvalidArgument, "step.optimize() is for train_step; a validation step has nothing to optimize");
  optimizer->optimize(loss, optimizer_index, retain_graph);
}

ModuleInterface::ModuleInterface() = default;
ModuleInterface::~ModuleInterface() = default;

NamedLoaders ModuleInterface::get_val_dataloaders(const LoaderRequest&) { return {}; }

StepOutput ModuleInterface::val_step(const StepContext&, Batch&) {
  throw Error(Errc::kInvalidArgument, "the module has validation loaders, but no val_step: override val_step");
}

void ModuleInterface::on_begin_train_epoch(int64_t, int64_t) {}
void ModuleInterface::on_begin_val_epoch(const std::string&, int64_t, int64_t) {}
void ModuleInterface::on_end_backward(int64_t, const at::Tensor&) {}
void ModuleInterface::on_end_train_step(const StepSummary&) {}
void ModuleInterface::on_end_val_epoch(const std::string&, const EpochSummary&) {}
void ModuleInterface::on_end_train_epoch(const EpochSummary&) {}
void ModuleInterface::on_end_train(int64_t) {}

StateDict ModuleInterface::get_state() const { return model_state(*this); }
std::vector<std::string> ModuleInterface::differences(const StateDict& state) const { return model_differences(*this, state); }
void ModuleInterface::update_state(const StateDict& state) { load_model_state(*this, state); }

}  // namespace marlin
