// What a checkpoint says of itself, as text and as JSON.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "commands.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/sdk/metrics.h"
#include "marlin/sdk/state_dict.h"
#include "marlin/tools/json.h"

namespace marlin::ckpt {

using tool::to_json;

/// The three parts of a whole state are there, though a part may be null.
[[nodiscard]] bool is_full(const StateDict& root);

/// Kind, epoch and step are taken from the state; the record stands in where that does not say.
struct Summary {
  std::string kind;                    ///< "full", "model" or "other".
  std::optional<int64_t> epoch;        ///< From 0. Of a step file: the one that was being trained.
  std::optional<int64_t> global_step;  ///< Not known of a model.
  std::string cause, run_id;           ///< Empty: not known.
  Metrics metrics;
};
[[nodiscard]] Summary summarise(const StateDict& root, const std::optional<CommitRecord>& record);

[[nodiscard]] Json to_json(const Metrics& metrics);
[[nodiscard]] Json to_json(const CommitRecord& record);
/// A number, text, bool or null; anything else is null.
[[nodiscard]] Json scalar_to_json(const Value& value);

/// As Python has it: "float32".
[[nodiscard]] std::string dtype_name(at::ScalarType dtype);
/// "[128, 64]".
[[nodiscard]] std::string shape_text(const at::Tensor& tensor);
/// A value on one line: a scalar itself, long text cut; of a container or a tensor what it is: "list of 3", "float32 [128, 64]".
[[nodiscard]] std::string short_text(const Value& value);

[[nodiscard]] bool is_container(const Value& value);
/// "a" and "b" to "a.b"; the root's path is empty.
[[nodiscard]] std::string joined(const std::string& path, const std::string& key);

}  // namespace marlin::ckpt
