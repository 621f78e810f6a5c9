// Files for the tests of safetensors: made by the writer, or by hand.
#pragma once

#include <torch/torch.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "marlin/checkpointers/safetensors.h"
#include "marlin/sdk/checkpoint.h"
#include "temp_folder.h"

namespace marlin::test {

/// A file of that header and those bytes.
inline std::string safetensors_bytes(const std::string& header, const std::string& data = {}) {
  const uint64_t size = header.size();
  std::string bytes(sizeof size, '\0');
  std::memcpy(bytes.data(), &size, sizeof size);
  return bytes + header + data;
}

/// For files that are written again and again: one that is replaced, rather than truncated, is not flushed to the disk by ext4.
inline void replace_file(const std::filesystem::path& file, const std::string& content) {
  std::filesystem::remove(file);
  testing::write_file(file, content);
}

/// A state with all that a state can hold, and tensors of several dtypes and shapes. `marker` is in most of it.
inline Checkpoint rich_checkpoint(int64_t marker) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  Checkpoint state;
  state.module_interface_state = {{"net.0.weight", torch::full({3, 2}, static_cast<double>(marker))}, {"net.0.bias", torch::arange(3, at::kHalf)}, {"steps", torch::tensor(marker)}};
  state.module_interface_state.ordered_dict = true;
  StateDict metadata = {{"", StateDict{{"version", 1}}}};
  metadata.ordered_dict = true;
  state.module_interface_state.attributes = std::make_shared<const StateDict>(StateDict{{"_metadata", metadata}});
  const StateDict moments = {{0, StateDict{{"step", torch::tensor(3.f)}, {"exp_avg", torch::ones({3, 2})}}}, {-7, nullptr}, {"0", "a text key"}};
  state.trainer_state = {
      {"last_epoch", marker},
      {"optimizers", List{{StateDict{{"state", moments}, {"param_groups", List{{StateDict{{"lr", 0.1}, {"betas", Tuple{{0.9, 0.999}}}}}}}}}}},
      {"numbers", List{{0, -1, INT64_MAX, INT64_MIN, 0.0, -0.0, 1.0, 1e300, 5e-324, kInf, -kInf, true, false}}},
      {"a.b", torch::ones({1})},
      {"a", StateDict{{"b", torch::zeros({2, 0})}}},
      {"empty", Tuple{{"", List{}, Tuple{}, StateDict()}}},
      {"text", "\u00e9\u6f22\U0001f600 \"quoted\" \\ \n\t\x01"},
  };
  state.trainer_backend_state = {{"global_step_completed", marker * 10}, {"batches_completed", marker * 10}};
  return state;
}

inline bool equal(const Checkpoint& a, const Checkpoint& b) {
  return marlin::equal(a.module_interface_state, b.module_interface_state) && marlin::equal(a.trainer_state, b.trainer_state) &&
         marlin::equal(a.trainer_backend_state, b.trainer_backend_state);
}

inline SavePoint point_at(int64_t epoch) {
  SavePoint point;
  point.index = point.epoch = epoch;
  point.global_step = epoch * 10;
  point.run_id = "r1";
  return point;
}

}  // namespace marlin::test
