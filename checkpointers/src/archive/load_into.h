// Copies what a file holds into tensors that exist.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "archive/binder.h"
#include "archive/zip_reader.h"
#include "marlin/sdk/state_dict.h"

namespace marlin::archive {

struct LoadPlan {
  struct Copy {
    at::Tensor to, from;
  };
  std::vector<Copy> copies;
  std::vector<const ZipRecord*> records;  ///< What the copies read.
  std::vector<std::string> problems;      ///< One for every tensor of `live` that the file cannot fill. Not empty: nothing may be copied.
};

/// By equal keys; reads no tensor's elements.
[[nodiscard]] LoadPlan plan_load(const BoundState& file, const StateDict& live);
void load(const LoadPlan& plan);

}  // namespace marlin::archive
