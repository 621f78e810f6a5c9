// What random numbers come from: LibTorch's default generators, from which dropout and random augmentation draw.
#pragma once

#include <ATen/core/MT19937RNGEngine.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "marlin/sdk/state_dict.h"

namespace marlin {

/// "cpu": the state of the CPU's default generator, uint8; where `device` is a GPU "cuda": a list of those of all GPUs. The CUDA part
/// has not been run on a GPU.
[[nodiscard]] StateDict generators_state(at::Device device);
/// Sets what fits. @return one sentence for each that does not.
[[nodiscard]] std::vector<std::string> set_generators_state(const StateDict& state, at::Device device);

/// The state of the CPU's default generator, taken so cheaply that it can be taken every step.
class GeneratorMark {
 public:
  void take();
  /// As generators_state() would have given then. Only after take().
  [[nodiscard]] at::Tensor state() const;

 private:
  at::mt19937 engine_;
  std::optional<float> next_float_;
  std::optional<double> next_double_;
};

}  // namespace marlin
