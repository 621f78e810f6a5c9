// A checkpoint file, opened: its tensors one by one, or into tensors that exist.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/checkpointers/archive.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// A tensor of a file, as far as can be told without reading it.
struct TensorInfo {
  std::string path;  ///< The keys on the way to it, joined by dots: "module_interface_state.fc.weight".
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  std::vector<int64_t> sizes;
  std::string record;  ///< The record that holds its storage: "data/3".
};

/// An open file that write_archive() or Python's torch.save wrote. Runs no code from the file: it is read by an unpickler that
/// knows dicts, lists, tuples, numbers, text and tensors, and refuses everything else by name.
///
/// What `verify` says is compared with the hashes of the commit record; without one, with the CRC-32s. Large files are verified
/// by two threads.
///
/// Tensors are on the CPU, strided, without requires_grad, and share storage where they did when saved. They alias a private
/// mapping of the file that lives as long as they do: writing to them is allowed, does not reach the file, and is seen by who
/// takes the same tensor again; a file that is made shorter meanwhile ends the process (SIGBUS), one that is replaced by a
/// rename or removed does no harm. Storages start at multiples of 64 bytes. nn.Parameter is read as its tensor, torch.Size as a
/// tuple, Counter as a dict.
///
/// Every failure is an Error whose text is "<file>: <record>: <reason>". kNotFound: there is no such file. kIo: it cannot be
/// read. kCorrupt: truncated, changed, or no checkpoint at all; take another file. kUnsupported: whole, but of a later format
/// version, a TorchScript or torch::save archive, or with something in it that a state dict cannot hold.
/// @note One thread at a time.
class MARLIN_ABI ArchiveReader {
 public:
  explicit ArchiveReader(const std::filesystem::path& file, Verify verify = Verify::kFull);
  ~ArchiveReader();
  ArchiveReader(ArchiveReader&&) noexcept;
  ArchiveReader& operator=(ArchiveReader&&) noexcept;

  [[nodiscard]] const std::optional<CommitRecord>& record() const noexcept;
  [[nodiscard]] Verified verified() const noexcept;

  /// In the order in which the state names them.
  [[nodiscard]] const std::vector<TensorInfo>& tensors() const noexcept;
  /// The tensor of that path, the first if there are several. @throws Error kNotFound: there is none; and as above.
  [[nodiscard]] at::Tensor tensor(std::string_view path);
  /// All of it.
  [[nodiscard]] StateDict state();

  /// Copies into the tensors of `live`, of the same dtype and sizes, from those of the same keys; what else the file holds is
  /// passed over, and what else `live` holds is left alone. The fastest way into tensors that exist.
  /// @throws Error kMismatch that names each tensor that is missing or different; and as above. `live` is then unchanged.
  void load_into(const StateDict& live);

 private:
  class Impl;
  std::filesystem::path path_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace marlin
