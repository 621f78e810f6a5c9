// Checkpoint files: a state dict as a ZIP archive in torch.save's layout. FORMAT.md describes the bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "marlin/checkpointers/byte_sink.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/metrics.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// What a file says about itself: its record `marlin.json`. It repeats what the state says, so that a person or a tool need
/// not read the state; torch.load ignores it.
struct CommitRecord {
  int64_t format_version = 1;  ///< This build writes 1, whatever is set here, and reads 1.
  std::string kind = {};       ///< "full" (a whole run) or "model" (a bare module state).
  std::string unit = {};       ///< What `index` counts: "epoch" or "step".
  int64_t index = 0;           ///< The epoch or step as in the file's name.
  int64_t epoch = 0;           ///< From 0.
  int64_t global_step = 0;     ///< Optimizer steps completed.
  std::string cause = {};      ///< Why it was saved: "period", "end", "request" or "stop".
  std::string run_id = {};
  std::string marlin_version = {};  ///< Empty: the writer puts its own.
  std::string torch_version = {};   ///< Empty: the writer puts the LibTorch it was built with.
  Metrics metrics = {};             ///< NaN and infinities survive.
};

/// What a file holds.
struct Archive {
  StateDict root;
  std::optional<CommitRecord> record;  ///< Nothing if the file has no marlin.json, as files that Python wrote.
};

/// Writes `root` as a file that `torch.load(file, weights_only=True)` opens, `mmap=True` included.
///
/// Each storage is written once and whole, however many tensors look at it, and straight from its memory; one that is not on
/// the CPU is copied there for as long as it takes to write it, and is "cpu" in the file. Conjugate and negative views are
/// resolved first. requires_grad is not kept: a state's tensors are detached. A state dict with attributes is written as an
/// OrderedDict, the only dict that has them in Python.
/// @param sink  receives the whole file from its first byte; naming, renaming and syncing are the caller's.
/// @throws Error kUnsupported that names the entry, e.g. "trainer_state.optimizers.0.state.3.exp_avg: ...": a tensor that is
///   undefined, sparse, quantised or without memory (meta), text that is not UTF-8, nesting deeper than 64. Nothing has been
///   written then. What the sink throws passes through.
/// @note Borrows the state for the call. It must not change meanwhile, nor its tensors, or the file is torn.
/// @par Source torch/serialization.py (torch.save). Differs: storages viewed as several dtypes are written, too.
MARLIN_ABI void write_archive(ByteSink& sink, const StateDict& root, const CommitRecord& record);

/// The exact number of bytes that write_archive() writes for the same arguments. @throws what write_archive() throws.
[[nodiscard]] MARLIN_ABI uint64_t archive_size(const StateDict& root, const CommitRecord& record);

/// Reads a file that write_archive() or Python's torch.save wrote, and verifies it: the checksum of every record is compared
/// before anything is built. Runs no code from the file: it is read by an unpickler that knows dicts, lists, tuples, numbers,
/// text and tensors, and refuses everything else by name.
///
/// Tensors are on the CPU, strided, without requires_grad, and share storage where they did when saved. They alias a private
/// mapping of the file that lives as long as they do: writing to them is allowed and does not reach the file; a file that is
/// made shorter meanwhile ends the process (SIGBUS), one that is replaced by a rename or removed does no harm. Storages start
/// at multiples of 64 bytes. nn.Parameter is read as its tensor, torch.Size as a tuple, Counter as a dict.
/// @throws Error whose text is "<file>: <record>: <reason>". kNotFound: there is no such file. kIo: it cannot be read.
///   kCorrupt: truncated, changed, or no checkpoint at all; take another file. kUnsupported: whole, but of a later format
///   version, a TorchScript or torch::save archive, or with something in it that a state dict cannot hold.
[[nodiscard]] MARLIN_ABI Archive read_archive(const std::filesystem::path& file);

}  // namespace marlin
