// Keeps small gradients from vanishing in float16.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/options.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

struct MARLIN_ABI GradScalerOptions {
  double init_scale = 65536.0;      ///< Range: > 0.
  double growth_factor = 2.0;       ///< The scale grows by it after growth_interval steps without overflow. Range: > 1.
  double backoff_factor = 0.5;      ///< The scale shrinks by it after an overflow. Range: > 0, < 1.
  int64_t growth_interval = 2000;   ///< Range: >= 1.
};

/// Multiplies losses by a scale, so that gradients do not underflow in float16, divides the gradients by it again, and adapts it: a
/// step whose gradients are not finite is to be left out.
/// @par Source torch.amp.GradScaler, with its numbers and its names in the state. Differs: who steps the optimizer asks unscale().
class MARLIN_ABI GradScaler {
 public:
  /// @throws Error kInvalidArgument: an option is out of its range.
  explicit GradScaler(const GradScalerOptions& options = {});

  /// The loss times the scale, in the loss' type.
  [[nodiscard]] at::Tensor scale(const at::Tensor& loss) const;
  /// Divides gradients by the scale, in place; undefined ones are left out. Reads one number a device: waits for a GPU.
  /// @return whether all are finite. If not, they are not to be used.
  /// @throws Error kUnsupported: gradients in float16, in which the division itself would underflow.
  [[nodiscard]] bool unscale(const std::vector<at::Tensor>& gradients) const;
  /// Once a step, after unscale().
  void update(bool overflowed);

  [[nodiscard]] double get_scale() const noexcept { return scale_; }
  /// "scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker".
  [[nodiscard]] StateDict get_state() const;
  /// @throws Error kMismatch: an entry is missing, of another kind or out of its range. Nothing is then changed.
  void update_state(const StateDict& state);

 private:
  GradScalerOptions options_;
  double scale_;                 // a float's value
  int64_t growth_tracker_ = 0;   // steps without overflow since it last changed
};

}  // namespace marlin
