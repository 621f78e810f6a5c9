// What the contenders of case ddp have in common.
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "marlin/core/communicator.h"

namespace marlin::bench {

inline constexpr int64_t kDdpLayers = 12, kDdpWidth = 256, kDdpBatch = 32;  // a batch of one rank
inline constexpr double kDdpRate = 1e-3;

struct DdpData {
  at::Tensor inputs, targets;
};

[[nodiscard]] DdpData make_ddp_data(int64_t num_samples);
[[nodiscard]] torch::nn::Sequential make_ddp_net();
[[nodiscard]] int64_t gradient_bytes();

/// The loop that is written by hand over LibTorch's c10d::Reducer, as Python's DDP has it, with libmarlin's AdamW.
class ReducerLoop {
 public:
  virtual ~ReducerLoop() = default;
  virtual void epoch() = 0;
  [[nodiscard]] virtual std::vector<at::Tensor> parameters() const = 0;
};
/// All ranks together.
[[nodiscard]] std::unique_ptr<ReducerLoop> make_reducer_loop(Communicator& ranks, int64_t steps);

}  // namespace marlin::bench
