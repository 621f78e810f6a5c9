// Turns what a pickle says into a state dict whose tensors lie in the mapping of their file.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "archive/mapped_file.h"
#include "archive/pickle_reader.h"
#include "archive/zip_reader.h"
#include "marlin/sdk/state_dict.h"

namespace marlin::archive {

struct BoundTensor {
  std::string path;          ///< The keys on the way to it, joined by dots.
  at::Tensor tensor;         ///< The one in the state dict.
  const ZipRecord* record;   ///< Of its storage.
};

struct BoundState {
  StateDict root;
  std::vector<BoundTensor> tensors;  ///< In the order of a walk: entries, then attributes, depth first.
};

/// Reads no tensor, but for storages that do not start at a multiple of kAlignment in the file: they are copied.
/// @throws Error kCorrupt: a storage's record is missing, or not of the size that the pickle says.
[[nodiscard]] BoundState bind_state(const PickleDict& root, const std::shared_ptr<const MappedFile>& file, const ZipReader& zip);

}  // namespace marlin::archive
