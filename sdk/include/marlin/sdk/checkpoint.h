// What is saved, when, and what is asked for when loading.
#pragma once

#include <cstdint>
#include <string>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/metrics.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// The whole state of a run, in pymarlin's three parts.
struct Checkpoint {
  StateDict module_interface_state;  ///< Flat: parameter or buffer name -> tensor, as Python's `model.state_dict()`.
  StateDict trainer_state;           ///< last_epoch, optimizers, schedulers, loader position, run id.
  StateDict trainer_backend_state;   ///< global_step_completed, batches_completed.
  std::string source;                ///< Where it was loaded from; empty: not loaded. Not saved.

  /// Optimizer steps completed, as the backend's state says; -1: it does not.
  [[nodiscard]] MARLIN_ABI int64_t global_step() const;
  /// Nothing was there to load.
  [[nodiscard]] bool empty() const noexcept {
    return module_interface_state.empty() && trainer_state.empty() && trainer_backend_state.empty();
  }
};

/// What an index counts.
enum class Unit : uint8_t { kEpoch, kStep };
/// Why a save point came up.
enum class Cause : uint8_t {
  kPeriod,
  kEnd,
  kRequest,
  kStop,
  kException,  ///< Of what threw in the middle of a run: such a state is kept for a person to look at, and never resumed from by itself.
};

[[nodiscard]] MARLIN_ABI const char* to_string(Unit unit) noexcept;    ///< "epoch" or "step"
[[nodiscard]] MARLIN_ABI const char* to_string(Cause cause) noexcept;  ///< "period", "end", "request", "stop" or "exception"

/// A moment of a run at which a checkpoint may be written.
struct SavePoint {
  int64_t index = 0;        ///< The epoch (from 0) or the number of optimizer steps completed, as `unit` says. Range: >= 0.
  Unit unit = Unit::kEpoch;
  int64_t epoch = 0;        ///< The epoch that is running or was just completed, from 0.
  int64_t global_step = 0;  ///< Optimizer steps completed.
  Cause cause = Cause::kPeriod;
  bool force = false;       ///< Beats the period, not the master switch.
  double seconds_since_save = 0.0;  ///< Since this checkpointer was last asked to save or, if it never was, since training began.
  Metrics metrics = {};     ///< The newest of every name.
  std::string run_id = {};  ///< Set by the Trainer; the same for a run and what resumes it.
};

/// How much of a file's tensors is compared with the hashes that it was written with; whatever else a file holds always is.
enum class Verify : uint8_t {
  kFull,  ///< All of it, before anything is handed out.
  kLazy,  ///< What is taken, when it is taken first.
  kOff,   ///< None: tensors are not even read.
};

/// Which checkpoint to load, and how.
struct LoadRequest {
  enum class From : uint8_t {
    kLoadDir,   ///< `load_dir` (with `load_filename`, if set). Not set: nothing.
    kAnywhere,  ///< The same; if there is none, `save_dir`.
    kPath,      ///< `path`: a file, or a folder of which the newest is taken.
  };
  From from = From::kLoadDir;
  std::string path = {};
  bool required = false;  ///< None there is Error kNotFound, which says where was looked.
  Verify verify = Verify::kFull;
};

}  // namespace marlin
