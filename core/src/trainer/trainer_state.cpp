// The part of Trainer that says what its state is, whether another fits, and takes it.
#include "trainer/trainer_state.h"

#include <cmath>
#include <random>

#include "marlin/core/optim/optimizer_state.h"
#include "marlin/core/trainer.h"
#include "trainer/epoch_progress.h"

namespace marlin {
namespace {

constexpr int64_t kStateVersion = 2;  // 2: phases within an epoch

const std::vector<Value>& items_or_none(const StateDict& state, const char* key) {
  static const std::vector<Value> kNone;
  const Value* value = state.find(key);
  return value == nullptr || value->is_null() ? kNone : value->as_items();
}

// Null: there is none, or it is no dict.
const StateDict* dict_or_none(const StateDict& state, const char* key) {
  const Value* value = state.find(key);
  return value == nullptr ? nullptr : value->get_if<StateDict>();
}

// Those of this rank, if there were as many. Null: none.
const StateDict* generators_of(const StateDict& state, int rank, int world_size) {
  const std::vector<Value>& ranks = items_or_none(state, "rank_generators");
  if (ranks.size() == static_cast<size_t>(world_size)) return ranks[static_cast<size_t>(rank)].get_if<StateDict>();
  return rank == 0 ? dict_or_none(state, "generators") : nullptr;  // another rank's own go on as they began
}

bool bool_or_false(const StateDict& state, const char* key) {
  const Value* value = state.find(key);
  return value != nullptr && value->as_bool();
}

void prefix_all(std::vector<std::string>& into, const std::string& prefix, const std::vector<std::string>& texts) {
  for (const std::string& text : texts) into.push_back(prefix + text);
}

// Whoever reads the state of the training loader as of a step knows how many of its samples are consumed; the rest of it is a position
// only the loader understands.
bool is_position_by_samples(const StateDict& loader) { return loader.contains("consumed_samples") && !loader.contains("dataset"); }

}  // namespace

int64_t int_or(const StateDict& state, const char* key, int64_t otherwise) {
  const Value* value = state.find(key);
  const auto* number = value == nullptr ? nullptr : value->get_if<int64_t>();
  return number == nullptr ? otherwise : *number;
}

std::string new_run_id() {
  std::random_device source;
  std::string id;
  for (int i = 0; i < 16; ++i) id += "0123456789abcdef"[source() % 16];
  return id;
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
  state.set("ended_at_step", in_epoch_ && ended_at_step_ == global_step() ? ended_at_step_ : -1);
  for (const auto& [key, value] : before_ending_ ? *before_ending_ : progress_state()) state.set(key, value);
  if (early_stopping_.enabled()) state.set("early_stopping", early_stopping_.get_state());
  // Not how long the run was to be: a state is the same however much was still asked for.
  state.set("plan", StateDict{{"train_batch_size", options_.train_batch_size}, {"seed", options_.seed}, {"world_size", world_size()}});
  if (!rank_generators_.items.empty()) state.set("rank_generators", rank_generators_);
  return state;
}

// What moves between an epoch's steps, besides what steps themselves change.
StateDict Trainer::progress_state() const {
  StateDict state = in_epoch_ ? progress_->get_state() : EpochProgress().get_state();
  state.set("generators", generators_to_save());
  state.set("metrics", to_state(newest_));
  state.set("writers", writers_state());
  return state;
}

// A position that cannot be told is not kept: the record may then have a step twice, the checkpoint is whole.
StateDict Trainer::writers_state() const {
  StateDict state;
  for (size_t i = 0; i < services_.writers.size(); ++i) {
    try {
      const std::string key = writer_key(i);
      StateDict position = key.empty() ? StateDict() : services_.writers[i]->get_state();
      if (!position.empty()) state.set(key, std::move(position));
    } catch (const std::exception& error) {
      services_.logger->warning("where a writer of metrics stands is not in the checkpoint: ", one_line(error.what()));
    }
  }
  return state;
}

// Its name; with its number for the second of one name and those after it. Empty: it has none.
std::string Trainer::writer_key(size_t place) const {
  std::string name = services_.writers[place]->name();
  int64_t before = 0;
  for (size_t i = 0; i < place; ++i) before += services_.writers[i]->name() == name;
  return name.empty() || before == 0 ? name : concat(name, " ", before + 1);
}

// A step that threw has drawn random numbers and taken a batch: what is kept of it is as if it had not begun.
void Trainer::rewind_to_last_step(Checkpoint& checkpoint) const {
  if (!in_epoch_ || progress_->phase != EpochProgress::Phase::kTrain || progress_->marked_step != global_step() || before_ending_) return;
  StateDict& state = checkpoint.trainer_state;
  Value* generators = state.find("generators");
  if (auto* dict = generators == nullptr ? nullptr : generators->get_if<StateDict>()) dict->set("cpu", progress_->mark.state());
  Value* loader = state.find("loader");
  auto* position = loader == nullptr ? nullptr : loader->get_if<StateDict>();
  if (position != nullptr && is_position_by_samples(*position)) position->set("consumed_samples", progress_->marked_samples);
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
  run_id_ = id != nullptr && id->get_if<std::string>() ? id->as_string() : new_run_id();
  in_epoch_ = bool_or_false(state, "in_epoch");
  epoch_start_step_ = global_step() - int_or(state, "steps_in_epoch", 0);
  ended_at_step_ = int_or(state, "ended_at_step", -1);
  begun_epoch_ = -1;
  before_ending_.reset();
  *progress_ = EpochProgress::of(state);
  if (const StateDict* metrics = dict_or_none(state, "metrics")) newest_ = to_metrics(*metrics);
  if (const StateDict* early = dict_or_none(state, "early_stopping")) early_stopping_.update_state(*early);
  if (const StateDict* writers = dict_or_none(state, "writers")) writers_loaded_ = *writers;
  if (in_epoch_ && train_loader_) train_loader_->update_state(state.at("loader").as_dict());
  if (const StateDict* generators = generators_of(state, rank(), world_size())) {
    for (const std::string& problem : set_generators_state(*generators, device_)) services_.logger->warning(problem);
  }
  tell_what_changed(state);
}

std::vector<std::string> Trainer::optimizer_differences(const StateDict& state) const {
  std::vector<std::string> found;
  const auto& optimizers = items_or_none(state, "optimizers");
  const auto& schedulers = items_or_none(state, "schedulers");
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
  return found;
}

// A run that has done more than it is now asked for cannot do less.
void Trainer::check_epochs(const Checkpoint& checkpoint) const {
  if (!train_loader_) return;
  const int64_t done = int_or(checkpoint.trainer_state, "last_epoch", -1) + 1;
  const bool begun = bool_or_false(checkpoint.trainer_state, "in_epoch");
  const int64_t needed = done + (begun ? 1 : 0);
  if (needed <= options_.epochs) return;
  throw Error(Errc::kInvalidArgument, concat("--epochs ", options_.epochs, ": ", checkpoint.source.empty() ? "the checkpoint" : checkpoint.source, " has ", done, done == 1 ? " epoch" : " epochs",
                                             begun ? " and a part of the next" : "", " done; give --epochs ", needed, " or more, or name an older checkpoint with --resume"));
}

// Everything is looked at before anything is changed, so that a checkpoint of another model leaves the module as it was.
void Trainer::check(const Checkpoint& checkpoint) const {
  const StateDict& state = checkpoint.trainer_state;
  std::vector<std::string> found = module_->differences(checkpoint.module_interface_state);
  try {
    if (train_loader_ && !options_.reset_optimizers_schedulers) prefix_all(found, "", optimizer_differences(state));
    for (const char* key : {"global_step_completed", "batches_completed"}) static_cast<void>(checkpoint.trainer_backend_state.at(key).as_int());
    if (state.at("last_epoch").as_int() < -1) found.push_back(concat("trainer_state.last_epoch: is ", state.at("last_epoch").as_int(), ", and must be at least -1"));
    static_cast<void>(bool_or_false(state, "in_epoch"));
    const Value* steps = state.find("steps_in_epoch");
    if (steps != nullptr && steps->as_int() < 0) found.push_back(concat("trainer_state.steps_in_epoch: is ", steps->as_int(), ", and must be at least 0"));
    if (const int64_t version = int_or(state, "version", kStateVersion); version > kStateVersion) {
      found.push_back(concat("it was written by a later libmarlin (trainer state version ", version, ", this one knows ", kStateVersion, ")"));
    }
    static_cast<void>(EpochProgress::of(state));
    if (const StateDict* metrics = dict_or_none(state, "metrics")) static_cast<void>(to_metrics(*metrics));
    if (const StateDict* early = dict_or_none(state, "early_stopping")) EarlyStopping(options_.early_stopping).update_state(*early);
  } catch (const Error& error) {
    found.push_back(error.what());
  }
  prefix_all(found, "", backend_->differences(checkpoint.trainer_backend_state));
  prefix_all(found, "", differences(state));
  try {
    const StateDict* loader = dict_or_none(state, "loader");
    std::vector<std::string> data;
    if (train_loader_ && loader != nullptr) data = train_loader_->differences(*loader);
    prefix_all(found, "", data);
    // A position that does not fit leaves the loader as it was.
    if (train_loader_ && data.empty() && bool_or_false(state, "in_epoch")) train_loader_->update_state(state.at("loader").as_dict());
  } catch (const Error& error) {
    found.push_back(error.what());
  }
  if (!found.empty()) {
    throw Error(Errc::kMismatch, concat(checkpoint.source.empty() ? "the checkpoint" : checkpoint.source, " does not fit this run: ", join(found, "; "), ". Nothing was changed."));
  }
  check_epochs(checkpoint);
}

// What makes a resumed run another one than the straight run, though nothing forbids it.
void Trainer::tell_what_changed(const StateDict& state) const {
  if (!train_loader_) return;
  if (const StateDict* plan = dict_or_none(state, "plan")) {
    std::vector<std::string> changed;
    const auto compare = [&](const char* key, int64_t here) {
      if (const int64_t there = int_or(*plan, key, here); there != here) changed.push_back(concat(key, " was ", there, ", is ", here));
    };
    compare("train_batch_size", options_.train_batch_size);
    compare("world_size", world_size());
    compare("seed", options_.seed);
    if (!changed.empty()) {
      services_.logger->warning("the run goes on with another set-up (", join(changed, "; "), "): each sample still comes once an epoch, but the numbers cannot be exactly those of a run that never stopped");
    }
  }
  if (options_.reset_optimizers_schedulers) return;
  tell_of_rates(state);
}

// Where the plan of a schedule has become another, what was trained before was trained with other rates than it would have been.
void Trainer::tell_of_rates(const StateDict& state) const {
  const auto& schedulers = items_or_none(state, "schedulers");
  for (size_t i = 0; i < schedulers.size(); ++i) {
    const Value* rates = schedulers[i].as_dict().find("_last_lr");
    if (rates == nullptr || (!rates->get_if<List>() && !rates->get_if<Tuple>())) continue;
    const std::vector<double> here = optimizers_schedulers_.schedulers[i]->get_last_lr();
    for (size_t group = 0; group < std::min(here.size(), rates->as_items().size()); ++group) {
      const Value& rate = rates->as_items()[group];
      if (!rate.get_if<double>() && !rate.get_if<int64_t>()) continue;
      const double there = rate.as_double();
      if (std::abs(there - here[group]) <= 1e-9 * std::max(std::abs(there), std::abs(here[group]))) continue;
      services_.logger->warning("scheduler ", i, ": the rate at this point was ", there, " and is ", here[group], " in this run's schedule: it is not as if the run had been asked for this from its start");
      break;
    }
  }
}

}  // namespace marlin
