// Loads parts of a checkpoint file into things that exist: all of them are looked at before any is changed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "marlin/checkpointers/archive.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/logger.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// How exactly tensors must fit.
struct LoadRules {
  bool strict = true;        ///< Names that are missing, and ones that nobody has, are errors; false: they are passed over.
  bool strict_shape = true;  ///< So are other shapes; false: they are passed over. Takes `strict` off, too.
};

/// One thing that a state is loaded into.
struct LoadTarget {
  /// What keeps it from taking that state, one sentence each; `skipped`: what it would pass over. Changes nothing.
  std::function<std::vector<std::string>(const Value& state, const LoadRules& rules, std::vector<std::string>& skipped)> differences;
  /// Takes it. Asked only after differences() of every target found none.
  std::function<void(const Value& state, const LoadRules& rules)> apply;
};

/// Targets by name or by position, nested as the states in the file are.
class MARLIN_ABI LoadTargets {
 public:
  using Named = std::vector<std::pair<std::string, LoadTargets>>;
  using Listed = std::vector<LoadTargets>;

  LoadTargets(LoadTarget target) : is_(std::move(target)) {}
  LoadTargets(Named named) : is_(std::move(named)) {}
  LoadTargets(Listed listed) : is_(std::move(listed)) {}

  [[nodiscard]] const std::variant<LoadTarget, Named, Listed>& is() const noexcept { return is_; }

 private:
  std::variant<LoadTarget, Named, Listed> is_;
};

/// Live tensors under their names, such as model_state() gives: values are copied in, across dtypes of the same kind and to their device.
[[nodiscard]] MARLIN_ABI LoadTarget tensors_target(StateDict live);
/// Anything that takes a dict as it is. @param differences  empty: everything fits.
[[nodiscard]] MARLIN_ABI LoadTarget state_target(std::function<void(const StateDict&)> update_state,
                                                 std::function<std::vector<std::string>(const StateDict&)> differences = {});

/// What load_objects() passed over, as `strict` and `strict_shape` let it: "net.1.weight: shape [3] in the file, [5] here".
using LoadReport = std::vector<std::string>;

/// Loads each target from the entry of its name; what else the state holds is left alone. Lists must be of one length.
/// @throws Error kInvalidArgument: no targets. kMismatch with all that is missing or different; nothing has been changed then.
/// @par Source ignite Checkpoint.load_objects. Differs: looks at everything first.
MARLIN_ABI LoadReport load_objects(const LoadTargets::Named& to_load, const StateDict& objects, const LoadRules& rules = {});
/// The same from a file. One that holds a bare state (a model file, or one of Python's) fits a single target.
/// @throws Error kNotFound, kCorrupt, kIo for the file, too.
MARLIN_ABI LoadReport load_objects(const LoadTargets::Named& to_load, const std::filesystem::path& file, const LoadRules& rules = {}, Verify verify = Verify::kFull);
MARLIN_ABI LoadReport load_objects(const LoadTargets::Named& to_load, const Archive& archive, const LoadRules& rules = {});

/// Loads parts of a checkpoint once, before training.
/// @par Source MONAI CheckpointLoader. Differs: `strict_shape false` copies what fits; nothing is changed unless all is well; tensors
/// are read to the CPU and copied to where they belong, so that there is no map_location.
class MARLIN_ABI CheckpointLoader {
 public:
  struct Options {
    std::filesystem::path load_path = {};
    LoadTargets::Named load_dict = {};
    std::string name = {};       ///< Stands before its lines in the log. Empty: nothing does.
    bool strict = true;
    bool strict_shape = true;
    Verify verify = Verify::kFull;
  };
  /// @throws Error kInvalidArgument: no path, or nothing to load.
  explicit CheckpointLoader(Options options, Logger& logger = null_logger());

  /// @param epochs  of the run that goes on, in total: a checkpoint that has completed more is refused. Unset: any. @return what was
  /// passed over; it is a warning in the log, too. @throws as load_objects().
  LoadReport load(std::optional<int64_t> epochs = {});

 private:
  Options options_;
  Logger& logger_;
};

}  // namespace marlin
