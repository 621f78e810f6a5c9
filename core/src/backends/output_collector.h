// What steps return as outputs.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <string>
#include <vector>

#include "marlin/sdk/error.h"
#include "marlin/sdk/state_dict.h"
#include "marlin/sdk/text.h"

namespace marlin {

/// Keeps the outputs of steps on the CPU, position by position; joins once, when somebody gets them.
class OutputCollector {
 public:
  /// @throws Error kTraining: not as many as the steps before returned.
  void add(const std::vector<at::Tensor>& outputs) {
    if (outputs.empty()) return;
    if (positions_.empty()) positions_.resize(outputs.size());
    if (positions_.size() != outputs.size()) {
      throw Error(Errc::kTraining, concat("a step returned ", outputs.size(), " outputs, the steps before it ", positions_.size(), ": return the same number from each"));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      at::Tensor output = outputs[i].detach().cpu();
      positions_[i].push_back(output.dim() == 0 ? output.reshape({1}) : output);
    }
  }
  [[nodiscard]] std::vector<at::Tensor> joined() const {
    std::vector<at::Tensor> result;
    for (const auto& tensors : positions_) result.push_back(tensors.size() == 1 ? tensors.front() : at::cat(tensors));
    return result;
  }
  void clear() { positions_.clear(); }

  [[nodiscard]] List get_state() const {
    List state;
    for (const at::Tensor& tensor : joined()) state.items.emplace_back(tensor);
    return state;
  }
  void update_state(const std::vector<Value>& state) {
    positions_.clear();
    for (const Value& tensor : state) positions_.push_back({tensor.as_tensor()});
  }

 private:
  std::vector<std::vector<at::Tensor>> positions_;
};

}  // namespace marlin
