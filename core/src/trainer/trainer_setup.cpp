// The part of Trainer that runs before the first step: what to resume, what fits, what is left to do.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <algorithm>
#include <charconv>
#include <random>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/communicator.h"
#include "marlin/core/model_state.h"
#include "marlin/core/optim/optimizer_state.h"
#include "marlin/core/trainer.h"
#include "trainer/save_service.h"
#include "trainer/trainer_state.h"

namespace marlin {
namespace {

// A file that was asked for and holds what no checkpoint of ours can is, to a run, a checkpoint that does not fit.
Error as_checkpoint_error(const Error& error) {
  return error.code() == Errc::kUnsupported ? Error(Errc::kMismatch, error.what()) : error;
}

}  // namespace

at::Device Trainer::resolve_device() const {
  const std::string& wanted = options_.device;
  if (wanted == "auto" || wanted == "cpu") return at::kCPU;
  int64_t index = 0;
  if (const std::string_view number = std::string_view(wanted).substr(std::min<size_t>(wanted.size(), 5)); wanted.starts_with("cuda:")) {
    const auto [end, error] = std::from_chars(number.begin(), number.end(), index);
    if (error != std::errc() || end != number.end() || index < 0) index = -1;
  }
  if (index < 0 || (wanted != "cuda" && !wanted.starts_with("cuda:"))) {
    throw Error(Errc::kInvalidArgument, concat("--device: must be auto, cpu, cuda or cuda:N, got '", one_line(wanted), "'"));
  }
  if (!at::globalContext().hasCUDA()) {
    throw Error(Errc::kUnsupported, concat("--device ", wanted, ": LibTorch's CUDA library is not in this process, or finds no GPU; link libtorch_cuda, or give --device cpu"));
  }
  const int64_t count = at::detail::getCUDAHooks().deviceCount();
  if (index >= count) throw Error(Errc::kInvalidArgument, concat("--device ", wanted, ": there is no such GPU: this process can use ", count));
  return {at::kCUDA, static_cast<at::DeviceIndex>(index)};
}

Checkpoint Trainer::load_checkpoints() {
  LoadRequest request{LoadRequest::From::kAnywhere};
  std::string resume = options_.resume.value_or("");
  if (resume.empty()) {
    bool wanted = false;
    for (const auto& checkpointer : checkpointers_) wanted |= checkpointer->wants_load();
    if (!wanted) return {};
    request.from = LoadRequest::From::kLoadDir;
    resume = "must";
  }
  if (resume == "never") return {};
  if (resume != "auto" && resume != "must") {
    request.from = LoadRequest::From::kPath;
    request.path = resume;
  }
  request.required = resume != "auto" && checkpointers_.size() == 1;

  Checkpoint newest;
  int64_t newest_step = -1;
  std::optional<Error> problem;
  for (const auto& checkpointer : checkpointers_) {
    try {
      request.verify = checkpointer->schedule().verify;
      Checkpoint found = checkpointer->load(request);
      const int64_t step = std::max<int64_t>(found.global_step(), 0);  // one that does not say is looked at all the same
      if (found.empty() || step <= newest_step) continue;
      newest = std::move(found);
      newest_step = step;
    } catch (const Error& error) {
      if (!problem) problem = as_checkpoint_error(error);
    }
  }
  if (newest.empty()) {
    if (problem && problem->code() == Errc::kCorrupt) throw Error(Errc::kCorrupt, concat(problem->what(), "; name another checkpoint with --resume"));
    if (problem) throw *problem;
    if (resume != "auto") throw Error(Errc::kNotFound, concat("--resume ", resume, ": no checkpointer found a checkpoint"));
    services_.logger->info("no checkpoint to resume from: starting afresh");
  } else if (problem) {
    services_.logger->warning("going on from ", newest.source, ", although: ", problem->what());
  }
  return newest;
}

TrainingPlan Trainer::make_plan(const Checkpoint& resumed) const {
  TrainingPlan plan;
  plan.epochs = options_.epochs;
  plan.max_steps = options_.max_steps;
  plan.train_batch_size = options_.train_batch_size;
  plan.steps_per_epoch = options_.max_train_steps_per_epoch;
  if (train_loader_) {
    if (const auto batches = train_loader_->num_batches()) {
      plan.steps_per_epoch = std::min(*batches, options_.max_train_steps_per_epoch.value_or(*batches));
    }
  }
  if (!options_.reset_optimizers_schedulers || resumed.empty()) return plan;

  const int64_t epochs_left = options_.epochs - (int_or(resumed.trainer_state, "last_epoch", -1) + 1);
  const int64_t steps_done = std::max<int64_t>(resumed.global_step(), 0);
  if (epochs_left <= 0 || (plan.max_steps && *plan.max_steps <= steps_done)) return plan;  // nothing will be run by it
  plan.epochs = epochs_left;
  if (plan.max_steps) *plan.max_steps -= steps_done;
  const int64_t begun = int_or(resumed.trainer_state, "steps_in_epoch", 0);  // of the first of these epochs
  if (begun > 0 && plan.steps_per_epoch) {
    const int64_t steps_left = epochs_left * *plan.steps_per_epoch - begun;
    plan.max_steps = std::min(steps_left, plan.max_steps.value_or(steps_left));
  }
  return plan;
}

// Says what a failure meanwhile is about: a file that was asked for, not the run's own options.
template <class Call>
auto Trainer::while_loading(const Call& call) {
  loading_ = true;
  auto result = call();
  loading_ = false;
  return result;
}

void Trainer::set_up() {
  if (set_up_) return;
  device_ = resolve_device();
  Checkpoint resumed = while_loading([&] { return is_main() ? load_checkpoints() : Checkpoint(); });
  share(resumed);
  module_->to(device_);
  make_loaders();
  plan_ = make_plan(resumed);
  if (train_loader_) make_optimizers();
  backend_->init({module_.get(), optimizers_schedulers_.optimizers, optimizers_schedulers_.schedulers, device_, options_.micro_batch_limit,
                  options_.max_train_steps_per_epoch, options_.max_val_steps_per_epoch, options_.clip_grads, options_.max_grad_norm,
                  services_.logger, services_.ranks.get(), [this] { return is_alone() ? Wishes() : take_wishes(); }, [this] { saves_->fence(); }});
  while_loading([&] {
    if (resumed.empty()) take_initial_weights();  // rank 0; the backend gives them to all
    else check(resumed);
    return 0;
  });
  if (resumed.empty()) run_id_ = new_run_id();
  else while_loading([&] { return apply(resumed), 0; });
  set_up_ = true;
}

void Trainer::make_loaders() {
  LoaderRequest request;
  request.seed = static_cast<uint64_t>(options_.seed);
  if (is_alone()) request.stop_requested = [this] { return training_ && should_stop(); };  // else all ranks must get the same batches
  request.rank = rank();
  request.world_size = world_size();
  request.batch_size = options_.train_batch_size;
  if (!options_.validate_only && options_.epochs > 0) {
    train_loader_ = module_->get_train_dataloader(request);
    if (!train_loader_) throw Error(Errc::kInvalidArgument, "the module has no training loader: get_train_dataloader returned null; give --validate_only if there is nothing to train");
    if (train_loader_->num_batches() == 0) throw Error(Errc::kInvalidArgument, "the training loader has no batch: its data set is smaller than one batch and drop_last is set");
  }
  request.stage = Stage::kVal;
  request.batch_size = options_.val_batch_size.value_or(options_.train_batch_size);
  val_loaders_ = module_->get_val_dataloaders(request);
}

void Trainer::make_optimizers() {
  optimizers_schedulers_ = module_->get_optimizers_schedulers(plan_);
  if (optimizers_schedulers_.optimizers.empty()) throw Error(Errc::kInvalidArgument, "get_optimizers_schedulers returned no optimizer");
  bool saves = false;
  for (const auto& checkpointer : checkpointers_) saves |= checkpointer->schedule().checkpoint;
  for (const auto& optimizer : optimizers_schedulers_.optimizers) {
    if (saves) static_cast<void>(optim::get_state(*optimizer));  // one that cannot be saved throws now, not after an epoch
  }
}

void Trainer::take_initial_weights() {
  if (!options_.init_from) return;
  if (!is_main()) return follow_main();
  try {
    load_model_state(*module_, std::filesystem::path(*options_.init_from));
  } catch (const Error& error) {
    throw as_checkpoint_error(error);
  }
  services_.logger->info("took the initial weights from ", *options_.init_from);
  follow_main();
}

void Trainer::apply(const Checkpoint& checkpoint) {
  module_->update_state(checkpoint.module_interface_state);
  backend_->update_state(checkpoint.trainer_backend_state);
  update_state(checkpoint.trainer_state);
  newest_checkpoint_ = checkpoint.source;
  services_.logger->info("resumed from ", checkpoint.source, ": ", last_epoch_ + 1, " epochs", in_epoch_ ? " and a part of the next" : "", ", ", global_step(), " steps done");
}

}  // namespace marlin
