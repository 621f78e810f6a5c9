// The options that checkpointers of files have in common, of whichever struct has them.
#pragma once

#include <string>
#include <vector>

#include "marlin/checkpointers/folder_checkpointer.h"
#include "marlin/sdk/options.h"

namespace marlin {

/// Fields of those names, and `file_ext` if there is one.
template <class O>
[[nodiscard]] std::vector<OptionField<O>> folder_option_fields() {
  std::vector<OptionField<O>> fields = {
      option_field("save_dir", &O::save_dir, "Folder for checkpoints; made when first needed."),
      option_field("model_state_save_dir", &O::model_state_save_dir, "Folder for bare model files; not given: save_dir; empty: none are written."),
      option_field("file_prefix", &O::file_prefix, "First part of every file name."),
  };
  if constexpr (requires { &O::file_ext; }) {
    fields.push_back(option_field("file_ext", &O::file_ext, "Extension of every file name, without the dot."));
  }
  const std::vector<OptionField<O>> rest = {
      option_field("load_dir", &O::load_dir, "Folder to resume from; its newest checkpoint is taken. None there is an error."),
      option_field("load_filename", &O::load_filename, "File in load_dir to resume from, instead of the newest."),
      option_field("delete_existing_checkpoints", &O::delete_existing_checkpoints, "Start over: remove files that an earlier run of this checkpointer left."),
      option_field("keep_last", &O::keep_last, "Remove older checkpoints once this many are there, of epochs and of steps each; 0: none; never model files.", {.min = 0}),
      option_field("keep", &O::keep, "Remove checkpoints that no rule keeps, a union: last:N,best:K:METRIC[:min],every:N,pin:N. The newest two always stay. Empty: none."),
      option_field("log_level", &O::log_level, "The least that this checkpointer logs.", {.choices = {"DEBUG", "INFO", "WARNING", "ERROR", "OFF"}}),
  };
  fields.insert(fields.end(), rest.begin(), rest.end());
  return fields;
}

/// @throws Error kInvalidArgument: one of them, or of the others that the struct has, is out of its range.
template <class O>
[[nodiscard]] FolderOptions checked_folder_options(const O& options) {
  validate(options, "checkpointer.");
  return {.save_dir = options.save_dir,
          .model_state_save_dir = options.model_state_save_dir,
          .load_dir = options.load_dir,
          .load_filename = options.load_filename,
          .delete_existing_checkpoints = options.delete_existing_checkpoints,
          .keep_last = options.keep_last,
          .keep = options.keep,
          .log_level = options.log_level};
}

}  // namespace marlin
