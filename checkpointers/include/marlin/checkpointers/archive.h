// Checkpoint files: a state dict as a ZIP archive in torch.save's layout. FORMAT.md describes the bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "marlin/checkpointers/durable_file.h"
#include "marlin/checkpointers/file_system.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/metrics.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// What the commit record says of another record of the file.
struct RecordEntry {
  std::string name;       ///< Without the root folder: "data/0".
  uint64_t size = 0;      ///< Bytes.
  std::string xxh3_128;   ///< Of its bytes: 32 lower-case hexadecimal digits, as `xxhsum -H2` prints them.
};

/// What a file says about itself: its record `marlin.json`. It repeats what the state says, so that a person or a tool need
/// not read the state; torch.load ignores it.
struct CommitRecord {
  int64_t format_version = 1;  ///< This build writes 1, whatever is set here, and reads 1.
  std::string kind = {};       ///< "full" (a whole run), "model" (a bare module state) or "objects" (states by name, but not the three of a run).
  std::string unit = {};       ///< What `index` counts: "epoch" or "step".
  int64_t index = 0;           ///< The epoch or step as in the file's name.
  int64_t epoch = 0;           ///< From 0.
  int64_t global_step = 0;     ///< Optimizer steps completed.
  std::string cause = {};      ///< Why it was saved: "period", "end", "request", "stop" or "exception".
  std::string run_id = {};
  std::string marlin_version = {};  ///< Empty: the writer puts its own.
  std::string torch_version = {};   ///< Empty: the writer puts the LibTorch it was built with.
  std::optional<double> score = {};  ///< What a checkpointer ranked it by; higher is better. Unset: it was not ranked.
  std::string list = {};            ///< Of which list of which checkpointer it is, so that no other takes it for its own. Empty: of none.
  Metrics metrics = {};             ///< NaN and infinities survive.
  std::vector<RecordEntry> records = {};  ///< Every record of the file but marlin.json itself, in no order. The writer puts its own.
};

/// What is known of a file's tensors once it is open.
enum class Verified : uint8_t {
  kHashes,     ///< All bytes are those that were written.
  kChecksums,  ///< The file has no commit record with hashes (Python wrote it, or an early libmarlin): only its CRC-32s hold,
               ///< of everything or, with Verify::kLazy, of what is taken.
  kAsTaken,    ///< Verify::kLazy.
  kNothing,    ///< Verify::kOff.
};

/// What a file holds.
struct Archive {
  StateDict root;
  std::optional<CommitRecord> record;  ///< Nothing if the file has no marlin.json, as files that Python wrote.
  Verified verified = Verified::kNothing;
};

/// Writes `root` as a file that `torch.load(file, weights_only=True)` opens, `mmap=True` included; by write_atomically().
///
/// Each storage is written once and whole, however many tensors look at it, and straight from its memory; one that is not on
/// the CPU is copied there for as long as it takes to write it, and is "cpu" in the file. Conjugate and negative views are
/// resolved first. requires_grad is not kept: a state's tensors are detached. A state dict with attributes is written as an
/// OrderedDict, the only dict that has them in Python. Beside the tensors, at most a few MiB are in use; large states are
/// written by two threads.
/// @throws Error kUnsupported that names the entry, e.g. "trainer_state.optimizers.0.state.3.exp_avg: ...": a tensor that is
///   undefined, sparse, quantised or without memory (meta), text that is not UTF-8, nesting deeper than 64. Nothing has been
///   written then. kIo as write_atomically().
/// @note Borrows the state for the call. It must not change meanwhile, nor its tensors, or the file is torn.
/// @par Source torch/serialization.py (torch.save). Differs: storages viewed as several dtypes are written, too.
MARLIN_ABI void write_archive(const std::filesystem::path& file, const StateDict& root, const CommitRecord& record,
                              Durability durability = Durability::kDurable, FileSystem& file_system = posix_file_system());

/// The exact number of bytes that write_archive() writes for the same arguments. @throws what write_archive() throws, but kIo.
[[nodiscard]] MARLIN_ABI uint64_t archive_size(const StateDict& root, const CommitRecord& record);

/// Reads a file that write_archive() or Python's torch.save wrote: ArchiveReader(file, verify), then its state().
/// @throws as ArchiveReader.
[[nodiscard]] MARLIN_ABI Archive read_archive(const std::filesystem::path& file, Verify verify = Verify::kFull);

}  // namespace marlin
