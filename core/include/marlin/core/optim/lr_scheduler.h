// Learning-rate schedules that can be saved and resumed.
#pragma once

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "marlin/sdk/state_dict.h"

namespace marlin::optim {

/// Sets the learning rate of every parameter group of one optimizer. PyTorch's closed forms and state names.
/// Constructors throw Error kInvalidArgument for an argument that is out of its range.
/// @par Source torch.optim.lr_scheduler.LRScheduler. LibTorch's own schedulers cannot be saved.
class MARLIN_ABI LRScheduler {
 public:
  enum class Per : uint8_t { kStep, kEpoch };  ///< What the Trainer calls step() after.

  virtual ~LRScheduler();
  LRScheduler(const LRScheduler&) = delete;
  LRScheduler& operator=(const LRScheduler&) = delete;

  [[nodiscard]] Per per() const noexcept { return per_; }
  /// Steps or epochs done; the rates are those for this count.
  [[nodiscard]] int64_t last_epoch() const noexcept { return last_epoch_; }
  [[nodiscard]] const std::vector<double>& base_lrs() const noexcept { return base_lrs_; }
  [[nodiscard]] std::vector<double> get_last_lr() const;

  /// One step or epoch is done: sets the rates for the next.
  void step();

  /// "last_epoch", "base_lrs", "_last_lr", "_step_count", as PyTorch's.
  [[nodiscard]] virtual StateDict get_state() const;
  /// What keeps such a state from being taken, one sentence each; empty: update_state() will take it.
  [[nodiscard]] virtual std::vector<std::string> differences(const StateDict& state) const;
  /// Sets the rates for that count, from that state's base rates. What shapes the schedule (T_max, gamma, ...) stays as it was
  /// constructed, so that a resumed run may have a longer plan. Takes Python's states, too.
  /// @throws Error kMismatch: other number of parameter groups, an entry missing or not of its kind. Nothing is then changed.
  virtual void update_state(const StateDict& state);

 protected:
  /// Takes the optimizer's present rates as base rates. The optimizer must live as long, and keep its number of parameter groups.
  /// Derived constructors end with apply().
  LRScheduler(torch::optim::Optimizer& optimizer, Per per);
  /// What the base rate of parameter group `group` is multiplied with after `count` steps or epochs.
  [[nodiscard]] virtual double factor(int64_t count, size_t group) const = 0;
  /// The rate itself: base * factor, unless a schedule is not of that form (it has a lowest rate, say).
  [[nodiscard]] virtual double rate(int64_t count, size_t group) const;
  void apply();

 private:
  struct Position;
  [[nodiscard]] Position read(const StateDict& state) const;

  torch::optim::Optimizer& optimizer_;
  Per per_;
  int64_t last_epoch_ = 0;
  std::vector<double> base_lrs_;
};

/// base * function(count). The function must not be empty, and must depend on nothing but the count, or a resumed run differs.
class MARLIN_ABI LambdaLR : public LRScheduler {
 public:
  LambdaLR(torch::optim::Optimizer& optimizer, std::function<double(int64_t)> function, Per per = Per::kStep);

 protected:
  [[nodiscard]] double factor(int64_t count, size_t group) const override;

 private:
  std::function<double(int64_t)> function_;
};

/// base * gamma ^ (count / step_size), whole division. step_size >= 1.
class MARLIN_ABI StepLR : public LRScheduler {
 public:
  StepLR(torch::optim::Optimizer& optimizer, int64_t step_size, double gamma = 0.1, Per per = Per::kEpoch);

 protected:
  [[nodiscard]] double factor(int64_t count, size_t group) const override;

 private:
  int64_t step_size_;
  double gamma_;
};

/// From base * start_factor to base * end_factor over total_iters counts, in a straight line; then it stays, exactly
/// there. total_iters >= 1; factors are finite and >= 0.
class MARLIN_ABI LinearLR : public LRScheduler {
 public:
  LinearLR(torch::optim::Optimizer& optimizer, double start_factor, double end_factor, int64_t total_iters, Per per = Per::kStep);

 protected:
  [[nodiscard]] double factor(int64_t count, size_t group) const override;

 private:
  double start_factor_, end_factor_;
  int64_t total_iters_;
};

/// From base to eta_min over T_max counts, along half a cosine. T_max >= 1. Counts past T_max rise again, as in PyTorch's closed form.
class MARLIN_ABI CosineAnnealingLR : public LRScheduler {
 public:
  CosineAnnealingLR(torch::optim::Optimizer& optimizer, int64_t T_max, double eta_min = 0.0, Per per = Per::kStep);

 protected:
  [[nodiscard]] double factor(int64_t count, size_t group) const override;
  [[nodiscard]] double rate(int64_t count, size_t group) const override;

 private:
  int64_t T_max_;
  double eta_min_;
};

}  // namespace marlin::optim
