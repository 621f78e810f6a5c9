#include "marlin/checkpointers/load_objects.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

std::string shape_of(const at::Tensor& tensor) {
  std::vector<std::string> sizes;
  for (const int64_t size : tensor.sizes()) sizes.push_back(std::to_string(size));
  return concat("[", join(sizes), "]");
}

// What keeps a tensor from being copied into another, but its shape.
std::string kind_difference(const std::string& name, const at::Tensor& live, const Value& value) {
  const auto* tensor = value.get_if<at::Tensor>();
  if (tensor == nullptr || !tensor->defined()) return concat(name, ": a ", value.kind(), " in the file, a tensor here");
  const bool both_floating = tensor->is_floating_point() && live.is_floating_point();
  if (tensor->scalar_type() != live.scalar_type() && !both_floating) return concat(name, ": ", tensor->scalar_type(), " in the file, ", live.scalar_type(), " here");
  return {};
}

struct Fit {
  std::vector<std::string> different, skipped;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;  // from, to
};

Fit fit(const StateDict& live, const Value& state, const LoadRules& rules) {
  Fit fit;
  const auto* dict = state.get_if<StateDict>();
  if (dict == nullptr) {
    fit.different.push_back(concat("a ", state.kind(), " in the file, a dict of tensors here"));
    return fit;
  }
  const bool strict = rules.strict && rules.strict_shape;
  for (const auto& [key, value] : live) {
    const std::string name = to_string(key);
    const Value* found = dict->find(key);
    if (found == nullptr) {
      (strict ? fit.different : fit.skipped).push_back(concat(name, ": missing in the file"));
      continue;
    }
    if (std::string text = kind_difference(name, value.as_tensor(), *found); !text.empty()) {
      fit.different.push_back(std::move(text));
      continue;
    }
    const at::Tensor& from = found->as_tensor();
    if (from.sizes() != value.as_tensor().sizes()) {
      (rules.strict_shape ? fit.different : fit.skipped).push_back(concat(name, ": shape ", shape_of(from), " in the file, ", shape_of(value.as_tensor()), " here"));
      continue;
    }
    fit.copies.emplace_back(from, value.as_tensor());
  }
  for (const auto& entry : *dict) {
    if (!live.contains(entry.key)) (strict ? fit.different : fit.skipped).push_back(concat(to_string(entry.key), ": in the file, not here"));
  }
  return fit;
}

// One target and what it is loaded from.
struct Pair {
  std::string name;
  const LoadTarget* target;
  const Value* state;
};

void collect(const std::string& name, const LoadTargets& targets, const Value& state, std::vector<Pair>& pairs, std::vector<std::string>& problems);

void collect_named(const std::string& name, const LoadTargets::Named& named, const Value& state, std::vector<Pair>& pairs, std::vector<std::string>& problems) {
  const auto* dict = state.get_if<StateDict>();
  if (dict == nullptr) return problems.push_back(concat(name, ": a ", state.kind(), " in the file, a dict of ", named.size(), " here"));
  for (const auto& [key, target] : named) {
    const std::string path = name.empty() ? key : concat(name, ".", key);
    if (const Value* found = dict->find(key)) collect(path, target, *found, pairs, problems);
    else problems.push_back(concat("'", path, "' is not in the file"));
  }
}

void collect_listed(const std::string& name, const LoadTargets::Listed& listed, const Value& state, std::vector<Pair>& pairs, std::vector<std::string>& problems) {
  if (!state.get_if<List>() && !state.get_if<Tuple>()) return problems.push_back(concat(name, ": a ", state.kind(), " in the file, a list of ", listed.size(), " here"));
  const auto& items = state.as_items();
  if (items.size() != listed.size()) return problems.push_back(concat(name, ": a list of ", items.size(), " in the file, of ", listed.size(), " here"));
  for (size_t i = 0; i < items.size(); ++i) collect(concat(name, ".", i), listed[i], items[i], pairs, problems);
}

void collect(const std::string& name, const LoadTargets& targets, const Value& state, std::vector<Pair>& pairs, std::vector<std::string>& problems) {
  if (const auto* target = std::get_if<LoadTarget>(&targets.is())) pairs.push_back({name, target, &state});
  else if (const auto* named = std::get_if<LoadTargets::Named>(&targets.is())) collect_named(name, *named, state, pairs, problems);
  else collect_listed(name, std::get<LoadTargets::Listed>(targets.is()), state, pairs, problems);
}

// Everything is looked at before anything is changed.
LoadReport load_pairs(const std::string& source, const std::vector<Pair>& pairs, std::vector<std::string> problems, const LoadRules& rules) {
  LoadReport report;
  for (const Pair& pair : pairs) {
    std::vector<std::string> skipped;
    const std::vector<std::string> found = pair.target->differences ? pair.target->differences(*pair.state, rules, skipped) : std::vector<std::string>();
    for (const std::string& text : found) problems.push_back(concat(pair.name, ": ", text));
    for (const std::string& text : skipped) report.push_back(concat(pair.name, text.starts_with(": ") ? "" : ".", text));
  }
  if (!problems.empty()) throw Error(Errc::kMismatch, concat(source.empty() ? "the checkpoint" : source, " does not fit: ", join(problems, "; "), ". Nothing was changed."));
  for (const Pair& pair : pairs) pair.target->apply(*pair.state, rules);
  return report;
}

LoadReport load(const LoadTargets::Named& to_load, const Value& objects, const std::string& source, const LoadRules& rules) {
  if (to_load.empty()) throw Error(Errc::kInvalidArgument, "load_objects: there is nothing to load into");
  std::vector<Pair> pairs;
  std::vector<std::string> problems;
  collect_named("", to_load, objects, pairs, problems);
  return load_pairs(source, pairs, std::move(problems), rules);
}

bool is_bare(const Archive& archive, const LoadTargets::Named& to_load) {
  if (archive.record) return archive.record->kind == "model";
  return std::none_of(to_load.begin(), to_load.end(), [&](const auto& target) { return archive.root.contains(target.first); });
}

LoadReport load(const LoadTargets::Named& to_load, const Archive& archive, const std::string& source, const LoadRules& rules) {
  if (to_load.size() != 1 || !is_bare(archive, to_load)) return load(to_load, Value(archive.root), source, rules);
  const StateDict keyed = {{to_load.front().first, archive.root}};
  return load(to_load, Value(keyed), source, rules);
}

}  // namespace

LoadTarget tensors_target(StateDict live) {
  const auto tensors = std::make_shared<const StateDict>(std::move(live));
  LoadTarget target;
  target.differences = [tensors](const Value& state, const LoadRules& rules, std::vector<std::string>& skipped) {
    Fit found = fit(*tensors, state, rules);
    skipped.insert(skipped.end(), found.skipped.begin(), found.skipped.end());
    return std::move(found.different);
  };
  target.apply = [tensors](const Value& state, const LoadRules& rules) {
    const at::NoGradGuard no_grad;
    for (auto& [from, to] : fit(*tensors, state, rules).copies) to.copy_(from);
  };
  return target;
}

// One that does not fit is left alone where shapes may differ: a part of an optimizer's state is worse than none.
LoadTarget state_target(std::function<void(const StateDict&)> update_state, std::function<std::vector<std::string>(const StateDict&)> differences) {
  const auto found_in = [differences](const Value& state) -> std::vector<std::string> {
    const auto* dict = state.get_if<StateDict>();
    if (dict == nullptr) return {concat("a ", state.kind(), " in the file, a dict here")};
    return differences ? differences(*dict) : std::vector<std::string>();
  };
  LoadTarget target;
  target.differences = [found_in](const Value& state, const LoadRules& rules, std::vector<std::string>& skipped) {
    std::vector<std::string> found = found_in(state);
    if (rules.strict_shape || found.empty()) return found;
    skipped.push_back(concat(": left as it is: ", join(found, "; ")));
    return std::vector<std::string>();
  };
  target.apply = [found_in, update_state](const Value& state, const LoadRules&) {
    if (found_in(state).empty()) update_state(state.as_dict());
  };
  return target;
}

LoadReport load_objects(const LoadTargets::Named& to_load, const StateDict& objects, const LoadRules& rules) { return load(to_load, Value(objects), "", rules); }
LoadReport load_objects(const LoadTargets::Named& to_load, const Archive& archive, const LoadRules& rules) { return load(to_load, archive, "", rules); }
LoadReport load_objects(const LoadTargets::Named& to_load, const std::filesystem::path& file, const LoadRules& rules, Verify verify) {
  return load(to_load, read_archive(file, verify), file.string(), rules);
}

CheckpointLoader::CheckpointLoader(Options options, Logger& logger) : options_(std::move(options)), logger_(logger) {
  if (options_.load_path.empty()) throw Error(Errc::kInvalidArgument, "CheckpointLoader: load_path: must not be empty");
  if (options_.load_dict.empty()) throw Error(Errc::kInvalidArgument, "CheckpointLoader: load_dict: there is nothing to load into");
}

LoadReport CheckpointLoader::load(std::optional<int64_t> epochs) {
  const std::string start = options_.name.empty() ? "" : concat(options_.name, ": ");
  const std::string file = options_.load_path.string();
  if (!options_.strict_shape && options_.strict) logger_.warning(start, "strict_shape false takes strict off, too: what does not fit is passed over");
  const Archive archive = read_archive(options_.load_path, options_.verify);
  if (epochs && archive.record && archive.record->kind != "model") {
    const int64_t completed = archive.record->unit == "epoch" ? archive.record->epoch + 1 : archive.record->epoch;
    if (completed > *epochs) throw Error(Errc::kMismatch, concat(file, ": has completed ", completed, " epochs, and this run has ", *epochs, "; ask for more epochs, or take an earlier checkpoint. Nothing was changed."));
  }
  const LoadReport report = marlin::load(options_.load_dict, archive, file, {options_.strict, options_.strict_shape});
  for (const std::string& text : report) logger_.warning(start, file, ": ", text);
  logger_.info(start, "loaded ", file);
  return report;
}

}  // namespace marlin
