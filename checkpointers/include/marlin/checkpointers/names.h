// Names of checkpoint files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "marlin/sdk/abi.h"

namespace marlin {

/// The names that one prefix and extension stand for: `prefix_<epoch>.ext`, `prefix_step_<global_step>.ext`,
/// `prefix_suspect_<global_step>.ext`, `prefix_model_<index>.ext`. Numbers are decimal, without sign or leading zeros.
class MARLIN_ABI CheckpointNames {
 public:
  enum class Form : uint8_t { kEpoch, kStep, kSuspect, kModel };
  struct Parsed {
    Form form;
    int64_t index;
  };

  /// @throws Error kInvalidArgument: empty, holds a separator, or a prefix that ends in `_model`, `_step` or `_suspect`, so
  /// that its names could be taken for another form's.
  CheckpointNames(std::string prefix, std::string extension);

  [[nodiscard]] std::string name(Form form, int64_t index) const;
  /// What a file's whole name says; nothing if it is not one of ours.
  [[nodiscard]] std::optional<Parsed> parse(std::string_view file_name) const;

 private:
  std::string prefix_;
  std::string extension_;
};

}  // namespace marlin
