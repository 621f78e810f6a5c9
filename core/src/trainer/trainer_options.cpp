#include "marlin/core/trainer.h"

namespace marlin {

std::vector<OptionField<TrainerOptions>> TrainerOptions::option_fields() {
  using O = TrainerOptions;
  std::vector<OptionField<O>> fields = {
      option_field("epochs", &O::epochs, "Epochs in total; a resumed run does what is left of them.", {.min = 0}),
      option_field("max_steps", &O::max_steps, "End after so many optimizer steps in total.", {.min = 1}),
      option_field("max_train_steps_per_epoch", &O::max_train_steps_per_epoch, "End each epoch after so many optimizer steps.", {.min = 1}),
      option_field("max_val_steps_per_epoch", &O::max_val_steps_per_epoch, "End each validation after so many batches of a loader.", {.min = 1}),
      option_field("train_batch_size", &O::train_batch_size, "Samples of one optimizer step.", {.unit = "samples", .min = 1}),
      option_field("val_batch_size", &O::val_batch_size, "Samples of one validation batch; not given: train_batch_size.", {.unit = "samples", .min = 1}),
      option_field("micro_batch_limit", &O::micro_batch_limit, "Largest batch worked on at once; larger ones are cut and their gradients added up.", {.unit = "samples", .min = 1}),
      option_field("clip_grads", &O::clip_grads, "Scale gradients down to max_grad_norm."),
      option_field("max_grad_norm", &O::max_grad_norm, "Largest 2-norm of all gradients together.", {.min = 1e-300}),
      option_field("reset_optimizers_schedulers", &O::reset_optimizers_schedulers, "On a resume: new optimizers and schedules, for the epochs that remain."),
      option_field("seed", &O::seed, "Seed of initial weights and of the order of the data.", {.min = 0}),
      option_field("device", &O::device, "auto, cpu, cuda or cuda:N."),
      option_field("resume", &O::resume, "never; auto: go on if there is a checkpoint; must: go on; or a file or folder (with a '/') to go on from."),
      option_field("init_from", &O::init_from, "File to take the initial weights from; not used when a run is resumed."),
      option_field("validate_only", &O::validate_only, "One validation, no training."),
      option_field("max_seconds", &O::max_seconds, "Stop and save so early that the run ends within so many seconds of its start.", {.unit = "seconds", .min = 0.001}),
      option_field("log_steps", &O::log_steps, "Steps from one 'step' record of the writers to the next.", {.unit = "optimizer steps", .min = 1}),
  };
  for (OptionField<O>& field : option_part(&O::early_stopping)) fields.push_back(std::move(field));
  return fields;
}

std::string RunResult::summary() const {
  std::string line = concat(outcome == Outcome::kDone ? "done" : outcome == Outcome::kStopped ? "stopped" : "nothing to do",
                            " epochs=", epochs, " global_step=", global_step);
  const auto add = [&](bool losses) {
    for (const auto& [name, value] : metrics) {
      if (!name.starts_with("val/") || name.ends_with("/loss") != losses) continue;
      char text[32];
      std::snprintf(text, sizeof text, "%.4f", value);
      line += concat(" ", name, "=", text);
    }
  };
  add(false);
  add(true);
  if (!checkpoint.empty()) line += concat(" checkpoint=", checkpoint);
  return line;
}

int RunResult::exit_code() const noexcept {
  if (last_save_failed) return 4;
  if (signal != 0) return 128 + signal;
  return out_of_time ? 5 : 0;
}

}  // namespace marlin
