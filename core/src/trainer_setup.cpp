// The part of Trainer that runs before the first step: what to resume, what fits, what is left to do.
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>
#include <random>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/model_state.h"
#include "marlin/core/optim/optimizer_state.h"
#include "marlin/core/trainer.h"
#include "save_service.h"

namespace marlin {
namespace {

constexpr int64_t kStateVersion = 1;

int64_t int_or(const StateDict& state, const char* key, int64_t otherwise) {
  const Value* value = state.find(key);
  const auto* number = value == nullptr ? nullptr : value->get_if<int64_t>();
  return number == nullptr ? otherwise : *number;
}

const std::vector<Value>& items_or_none(const StateDict& state, const char* key) {
  static const std::vector<Value> kNone;
  const Value* value = state.find(key);
  return value == nullptr || value->is_null() ? kNone : value->as_items();
}

std::string random_id() {
  std::random_device source;
  std::string id;
  for (int i = 0; i < 16; ++i) id += "0123456789abcdef"[source() % 16];
  return id;
}

// From LibTorch's default generator dropout and random augmentation draw.
at::Tensor cpu_generator_state() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

// False: it is not a state of this LibTorch's generator.
bool set_cpu_generator_state(const at::Tensor& state) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const at::Tensor present = cpu_generator_state();
  if (state.scalar_type() != present.scalar_type() || state.sizes() != present.sizes()) return false;
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
  return true;
}

// A file that was asked for and holds what no checkpoint of ours can is, to a run, a checkpoint that does not fit.
Error as_checkpoint_error(const Error& error) {
  return error.code() == Errc::kUnsupported ? Error(Errc::kMismatch, error.what()) : error;
}

void prefix_all(std::vector<std::string>& into, const std::string& prefix, const std::vector<std::string>& texts) {
  for (const std::string& text : texts) into.push_back(prefix + text);
}

}  // namespace

at::Device Trainer::resolve_device() const {
  if (options_.device == "auto" || options_.device == "cpu") return at::kCPU;
  if (options_.device == "cuda" || options_.device.starts_with("cuda:")) {
    throw Error(Errc::kUnsupported, concat("--device ", options_.device, ": this build trains on the CPU only; give --device cpu"));
  }
  throw Error(Errc::kInvalidArgument, concat("--device: must be auto, cpu, cuda or cuda:N, got '", options_.device, "'"));
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
  const Checkpoint resumed = while_loading([&] { return load_checkpoints(); });
  module_->to(device_);
  make_loaders();
  plan_ = make_plan(resumed);
  if (train_loader_) make_optimizers();
  backend_->init({module_.get(), optimizers_schedulers_.optimizers, optimizers_schedulers_.schedulers, device_, options_.micro_batch_limit,
                  options_.max_train_steps_per_epoch, options_.max_val_steps_per_epoch, options_.clip_grads, options_.max_grad_norm,
                  services_.logger, [this] { saves_->fence(); }});
  while_loading([&] {
    if (resumed.empty()) take_initial_weights();
    else check(resumed);
    return 0;
  });
  if (resumed.empty()) run_id_ = random_id();
  else while_loading([&] { return apply(resumed), 0; });
  set_up_ = true;
}

void Trainer::make_loaders() {
  LoaderRequest request;
  request.seed = static_cast<uint64_t>(options_.seed);
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
  try {
    load_model_state(*module_, std::filesystem::path(*options_.init_from));
  } catch (const Error& error) {
    throw as_checkpoint_error(error);
  }
  services_.logger->info("took the initial weights from ", *options_.init_from);
}

// Everything is looked at before anything is changed, so that a checkpoint of another model leaves the module as it was.
void Trainer::check(const Checkpoint& checkpoint) const {
  std::vector<std::string> found = module_->differences(checkpoint.module_interface_state);
  try {
    if (train_loader_ && !options_.reset_optimizers_schedulers) {
      const auto& optimizers = items_or_none(checkpoint.trainer_state, "optimizers");
      const auto& schedulers = items_or_none(checkpoint.trainer_state, "schedulers");
      const auto& here = optimizers_schedulers_;
      if (optimizers.size() != here.optimizers.size()) {
        found.push_back(concat("optimizers: ", optimizers.size(), " in the file, ", here.optimizers.size(), " in this run"));
      } else {
        for (size_t i = 0; i < optimizers.size(); ++i) {
          prefix_all(found, concat("optimizer ", i, ": "), optim::differences(*here.optimizers[i], optimizers[i].as_dict()));
        }
      }
      if (schedulers.size() != here.schedulers.size()) {
        found.push_back(concat("schedulers: ", schedulers.size(), " in the file, ", here.schedulers.size(), " in this run"));
      } else {
        for (size_t i = 0; i < schedulers.size(); ++i) {
          prefix_all(found, concat("scheduler ", i, ": "), here.schedulers[i]->differences(schedulers[i].as_dict()));
        }
      }
    }
    for (const char* key : {"global_step_completed", "batches_completed"}) static_cast<void>(checkpoint.trainer_backend_state.at(key).as_int());
    static_cast<void>(checkpoint.trainer_state.at("last_epoch").as_int());
    if (const int64_t version = int_or(checkpoint.trainer_state, "version", kStateVersion); version > kStateVersion) {
      found.push_back(concat("it was written by a later libmarlin (trainer state version ", version, ", this one knows ", kStateVersion, ")"));
    }
  } catch (const Error& error) {
    found.push_back(error.what());
  }
  prefix_all(found, "", backend_->differences(checkpoint.trainer_backend_state));
  prefix_all(found, "", differences(checkpoint.trainer_state));
  try {
    // A position that does not fit leaves the loader as it was.
    const Value* in_epoch = checkpoint.trainer_state.find("in_epoch");
    if (train_loader_ && in_epoch != nullptr && in_epoch->as_bool()) train_loader_->update_state(checkpoint.trainer_state.at("loader").as_dict());
  } catch (const Error& error) {
    found.push_back(error.what());
  }
  if (found.empty()) return;
  throw Error(Errc::kMismatch, concat(checkpoint.source.empty() ? "the checkpoint" : checkpoint.source, " does not fit this run: ", join(found, "; "), ". Nothing was changed."));
}

void Trainer::apply(const Checkpoint& checkpoint) {
  module_->update_state(checkpoint.module_interface_state);
  backend_->update_state(checkpoint.trainer_backend_state);
  update_state(checkpoint.trainer_state);
  newest_checkpoint_ = checkpoint.source;
  services_.logger->info("resumed from ", checkpoint.source, ": ", last_epoch_ + 1, " epochs", in_epoch_ ? " and a part of the next" : "", ", ", global_step(), " steps done");
}

std::vector<std::string> Trainer::differences(const StateDict&) const { return {}; }

StateDict Trainer::get_state() const {
  List optimizers, schedulers;
  for (const auto& optimizer : optimizers_schedulers_.optimizers) optimizers.items.emplace_back(optim::get_state(*optimizer));
  for (const auto& scheduler : optimizers_schedulers_.schedulers) schedulers.items.emplace_back(scheduler->get_state());
  StateDict state = {{"version", kStateVersion}, {"last_epoch", last_epoch_}, {"optimizers", std::move(optimizers)}, {"schedulers", std::move(schedulers)}, {"run_id", run_id_}};
  state.set("in_epoch", in_epoch_);
  state.set("steps_in_epoch", steps_in_epoch());
  state.set("loader", train_loader_ ? Value(train_loader_->get_state()) : Value());
  state.set("generators", StateDict{{"cpu", cpu_generator_state()}});
  return state;
}

void Trainer::update_state(const StateDict& state) {
  if (train_loader_ && !options_.reset_optimizers_schedulers) {
    const auto& optimizers = items_or_none(state, "optimizers");
    const auto& schedulers = items_or_none(state, "schedulers");
    for (size_t i = 0; i < optimizers.size(); ++i) optim::update_state(*optimizers_schedulers_.optimizers[i], optimizers[i].as_dict());
    for (size_t i = 0; i < schedulers.size(); ++i) optimizers_schedulers_.schedulers[i]->update_state(schedulers[i].as_dict());
  }
  last_epoch_ = state.at("last_epoch").as_int();
  const Value* id = state.find("run_id");
  run_id_ = id != nullptr && id->get_if<std::string>() ? id->as_string() : random_id();
  const Value* in_epoch = state.find("in_epoch");
  in_epoch_ = in_epoch != nullptr && in_epoch->as_bool();
  epoch_start_step_ = global_step() - int_or(state, "steps_in_epoch", 0);
  const Value* generators = state.find("generators");
  const Value* cpu = generators != nullptr && generators->get_if<StateDict>() ? generators->as_dict().find("cpu") : nullptr;
  if (cpu != nullptr && cpu->get_if<at::Tensor>() && !set_cpu_generator_state(cpu->as_tensor())) {
    services_.logger->warning("the checkpoint's generator state is of another LibTorch: random numbers do not go on as they would have");
  }
  if (in_epoch_ && train_loader_) train_loader_->update_state(state.at("loader").as_dict());
}

}  // namespace marlin
