#include "marlin/core/optim/optimizer_state.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/util/Type.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "marlin/core/optim/fused.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "optim/optimizer_fields.h"

namespace marlin::optim {

using torch::optim::Optimizer;
using torch::optim::OptimizerParamGroup;

Stateful::~Stateful() = default;

namespace {

using Betas = std::tuple<double, double>;

// Python counts steps in a float32 tensor. A count that it cannot hold goes into float64, which Python takes as well.
at::Tensor step_tensor(int64_t step) {
  const bool exact = static_cast<int64_t>(static_cast<float>(step)) == step;
  return at::scalar_tensor(static_cast<double>(step), at::TensorOptions().dtype(exact ? at::kFloat : at::kDouble));
}

// ---- writing

struct GroupWriter {
  StateDict& group;
  void operator()(const char* name, double value, Given) const { group.set(name, value); }
  void operator()(const char* name, bool value, Given) const { group.set(name, value); }
  void operator()(const char* name, const Betas& value, Given) const { group.set(name, Tuple{{std::get<0>(value), std::get<1>(value)}}); }
};

struct EntryWriter {
  StateDict& entry;
  void operator()(const char* name, int64_t step, bool) const { entry.set(name, step_tensor(step)); }
  void operator()(const char* name, const at::Tensor& tensor, bool) const {
    if (tensor.defined()) entry.set(name, tensor);
  }
};

// Whether Python may go on with its fused kernels, as this optimizer does: they take no other parameters and gradients.
bool is_fused(const Optimizer& optimizer, const OptimizerParamGroup& group) {
  const bool is_ours = dynamic_cast<const SGD*>(&optimizer) != nullptr || dynamic_cast<const Adam*>(&optimizer) != nullptr ||
                       dynamic_cast<const AdamW*>(&optimizer) != nullptr || dynamic_cast<const Adagrad*>(&optimizer) != nullptr;
  return is_ours && std::all_of(group.params().begin(), group.params().end(), [](const at::Tensor& parameter) {
    return parameter.is_floating_point() && parameter.is_non_overlapping_and_dense() && !(parameter.grad().defined() && parameter.grad().is_sparse());
  });
}

template <class Fields>
StateDict written_group(const Optimizer& optimizer, const OptimizerParamGroup& group, List parameters) {
  StateDict written;
  Fields::options(static_cast<const typename Fields::Options&>(group.options()), GroupWriter{written});
  for (const Foreign& foreign : Fields::kForeign) written.set(foreign.name, foreign.value ? Value(*foreign.value) : Value());
  if (is_fused(optimizer, group)) written.set(kFused.name, true);
  written.set("params", std::move(parameters));
  return written;
}

template <class Fields>
StateDict written_state(const Optimizer& optimizer) {
  StateDict entries;
  List groups;
  std::unordered_map<const void*, int64_t> numbers;  // a parameter that stands twice has its first number, as in Python
  int64_t next_number = 0;
  for (const OptimizerParamGroup& group : optimizer.param_groups()) {
    const auto& options = static_cast<const typename Fields::Options&>(group.options());
    List parameters;
    for (const at::Tensor& parameter : group.params()) {
      void* const key = parameter.unsafeGetTensorImpl();
      const auto [number, is_new] = numbers.try_emplace(key, next_number++);
      parameters.items.emplace_back(number->second);
      const auto state = optimizer.state().find(key);
      if (!is_new || state == optimizer.state().end()) continue;
      StateDict entry;
      Fields::state(static_cast<const typename Fields::State&>(*state->second), options, EntryWriter{entry});
      entries.set(number->second, std::move(entry));
    }
    groups.items.emplace_back(written_group<Fields>(optimizer, group, std::move(parameters)));
  }
  return {{"state", std::move(entries)}, {"param_groups", std::move(groups)}};
}

// ---- reading

// A number of Python's may be an int, or a tensor of one element.
std::optional<double> as_number(const Value& value) {
  if (const auto* number = value.get_if<double>()) return *number;
  if (const auto* number = value.get_if<int64_t>()) return static_cast<double>(*number);
  const auto* tensor = value.get_if<at::Tensor>();
  if (tensor == nullptr || !tensor->defined() || tensor->numel() != 1 || tensor->is_complex()) return std::nullopt;
  return tensor->item<double>();
}

struct Differences {
  std::vector<std::string>& sentences;
  std::string where;
  template <class... Args> void add(const Args&... args) { sentences.push_back(concat(where, ": ", args...)); }
};

// Fills options from a group, and says what does not fit.
struct GroupReader {
  const StateDict& group;
  Differences& differences;
  std::unordered_set<std::string>& known;

  const Value* find(const char* name, Given given) const {
    known.insert(name);
    const Value* value = group.find(name);
    if (value == nullptr && given == Given::kAlways) differences.add(name, " is missing");
    return value;
  }
  void operator()(const char* name, double& field, Given given) const {
    const Value* value = find(name, given);
    const std::optional<double> number = value != nullptr ? as_number(*value) : 0.0;
    if (!number) differences.add(name, " must be a number, found ", value->kind());
    field = number.value_or(0.0);
  }
  void operator()(const char* name, bool& field, Given given) const {
    const Value* value = find(name, given);
    const bool* flag = value != nullptr ? value->get_if<bool>() : nullptr;
    if (value != nullptr && flag == nullptr) differences.add(name, " must be a bool, found ", value->kind());
    field = flag != nullptr && *flag;
  }
  void operator()(const char* name, Betas& field, Given given) const {
    const Value* value = find(name, given);
    if (value == nullptr) return;
    const bool is_sequence = value->get_if<Tuple>() != nullptr || value->get_if<List>() != nullptr;
    const bool is_pair = is_sequence && value->as_items().size() == 2;
    const std::optional<double> first = is_pair ? as_number(value->as_items()[0]) : std::nullopt;
    const std::optional<double> second = is_pair ? as_number(value->as_items()[1]) : std::nullopt;
    if (!first || !second) return differences.add(name, " must be two numbers");
    field = {*first, *second};
  }
};

// Fills a parameter's state from an entry, with the entry's own tensors, and says what does not fit.
struct EntryReader {
  const StateDict& entry;
  const at::Tensor& parameter;
  Differences& differences;
  std::unordered_set<std::string>& known;

  const Value* find(const char* name, bool needed) const {
    known.insert(name);
    const Value* value = entry.find(name);
    if (value != nullptr && value->is_null()) value = nullptr;
    if (value == nullptr && needed) differences.add(name, " is missing");
    return value;
  }
  void operator()(const char* name, int64_t& field, bool needed) const {
    const Value* value = find(name, needed);
    if (value == nullptr) return;
    if (const auto* step = value->get_if<int64_t>()) {
      field = *step;
    } else {
      const double count = as_number(*value).value_or(-1.0);
      field = count >= 0 && count < 0x1p62 ? std::llround(count) : -1;
    }
    if (field < 0) differences.add(name, " must be a count, a tensor of one element at most");
  }
  void operator()(const char* name, at::Tensor& field, bool needed) const {
    const Value* value = find(name, needed);
    if (value == nullptr) return;
    const auto* tensor = value->get_if<at::Tensor>();
    if (tensor == nullptr || !tensor->defined()) return differences.add(name, " must be a tensor, found ", value->kind());
    if (tensor->sizes() != parameter.sizes()) differences.add(name, " has shape ", tensor->sizes(), ", parameter has ", parameter.sizes());
    field = *tensor;
  }
};

void add_unknown(const StateDict& dict, const std::unordered_set<std::string>& known, Differences& differences, const char* optimizer) {
  for (const StateDict::Entry& entry : dict) {
    const std::string name = to_string(entry.key);
    if (!known.contains(name)) differences.add("'", name, "' is not known to ", optimizer);
  }
}

// A state as far as it could be read. Its tensors are those of the StateDict.
template <class Fields>
struct Incoming {
  struct Entry {
    at::Tensor parameter;
    size_t group = 0;
    typename Fields::State state;
  };
  std::vector<typename Fields::Options> options;  // by group
  std::vector<Entry> entries;
  std::vector<std::string> differences;           // empty: what is above is whole
};

using Parameters = std::unordered_map<Key, std::pair<at::Tensor, size_t>>;  // by the number that the state gives it: tensor, group

// The optimizer's parameters in their order under the state's numbers in theirs. False: they are not as many.
bool map_parameters(const OptimizerParamGroup& group, size_t index, const StateDict& saved, Parameters& parameters, Differences& differences) {
  const Value* numbers = saved.find("params");
  if (numbers == nullptr || (numbers->get_if<List>() == nullptr && numbers->get_if<Tuple>() == nullptr)) {
    differences.add("params must be a list, found ", numbers == nullptr ? "nothing" : numbers->kind());
    return false;
  }
  const std::vector<Value>& items = numbers->as_items();
  if (items.size() != group.params().size()) {
    differences.add("the state has ", items.size(), " parameters, the optimizer has ", group.params().size());
    return false;
  }
  for (size_t i = 0; i < items.size(); ++i) {
    if (const auto* number = items[i].get_if<int64_t>()) {
      parameters.try_emplace(*number, group.params()[i], index);
    } else if (const auto* name = items[i].get_if<std::string>()) {
      parameters.try_emplace(*name, group.params()[i], index);
    } else {
      differences.add("params must hold numbers, found ", items[i].kind());
      return false;
    }
  }
  return true;
}

template <class Fields>
typename Fields::Options read_group(const OptimizerParamGroup& group, const StateDict& saved, Differences& differences) {
  // What Python keeps there for its own use: a schedule's base rate and the parameters' names.
  std::unordered_set<std::string> known = {"params", "param_names", "initial_lr"};
  auto options = static_cast<const typename Fields::Options&>(group.options());
  Fields::options(options, GroupReader{saved, differences, known});
  for (const Foreign& foreign : Fields::kForeign) {
    known.insert(foreign.name);
    const Value* value = saved.find(foreign.name);
    if (!foreign.changes_results || value == nullptr || value->is_null()) continue;
    const bool* flag = value->get_if<bool>();
    if (flag == nullptr || *flag != foreign.value) {
      differences.add(foreign.name, " must be ", *foreign.value ? "true" : "false", ": torch::optim::", Fields::kName, " knows no other");
    }
  }
  add_unknown(saved, known, differences, Fields::kName);
  return options;
}

template <class Fields>
void read_entry(const StateDict::Entry& saved, const Parameters& parameters, Incoming<Fields>& incoming) {
  Differences differences{incoming.differences, concat("optimizer state ", to_string(saved.key))};
  const auto parameter = parameters.find(saved.key);
  if (parameter == parameters.end()) return differences.add("there is no such parameter in param_groups");
  const auto* values = saved.value.template get_if<StateDict>();
  if (values == nullptr) return differences.add("must be a dict, found ", saved.value.kind());
  const bool nothing = std::all_of(values->begin(), values->end(), [](const StateDict::Entry& entry) { return entry.value.is_null(); });
  if (nothing) return;  // Python makes such entries for parameters that have no state yet
  const auto& [tensor, group] = parameter->second;
  typename Incoming<Fields>::Entry entry{tensor, group, {}};
  std::unordered_set<std::string> known;
  Fields::state(entry.state, incoming.options[group], EntryReader{*values, tensor, differences, known});
  add_unknown(*values, known, differences, Fields::kName);
  incoming.entries.push_back(std::move(entry));
}

template <class Fields>
void require_all_entries(const Parameters& parameters, Incoming<Fields>& incoming) {
  std::unordered_set<const void*> present;
  for (const auto& entry : incoming.entries) present.insert(entry.parameter.unsafeGetTensorImpl());
  for (const auto& [number, parameter] : parameters) {
    if (present.contains(parameter.first.unsafeGetTensorImpl())) continue;
    incoming.differences.push_back(concat("optimizer state ", to_string(number), ": is missing, and ", Fields::kName, " needs it from the start"));
  }
}

template <class Fields>
Incoming<Fields> read_state(const Optimizer& optimizer, const StateDict& state) {
  Incoming<Fields> incoming;
  Differences differences{incoming.differences, concat("optimizer ", Fields::kName)};
  const Value* groups = state.find("param_groups");
  const Value* entries = state.find("state");
  if (groups == nullptr || (groups->get_if<List>() == nullptr && groups->get_if<Tuple>() == nullptr)) {
    differences.add("'param_groups' must be a list, found ", groups == nullptr ? "nothing" : groups->kind());
  }
  if (entries == nullptr || entries->get_if<StateDict>() == nullptr) {
    differences.add("'state' must be a dict, found ", entries == nullptr ? "nothing" : entries->kind());
  }
  if (!incoming.differences.empty()) return incoming;

  const std::vector<Value>& saved_groups = groups->as_items();
  const std::vector<OptimizerParamGroup>& own_groups = optimizer.param_groups();
  if (saved_groups.size() != own_groups.size()) {
    differences.add("the state has ", saved_groups.size(), " parameter groups, the optimizer has ", own_groups.size());
    return incoming;
  }
  Parameters parameters;
  bool mapped = true;
  for (size_t i = 0; i < own_groups.size(); ++i) {
    Differences in_group{incoming.differences, concat("param group ", i)};
    const auto* saved = saved_groups[i].get_if<StateDict>();
    if (saved == nullptr) {
      in_group.add("must be a dict, found ", saved_groups[i].kind());
      return incoming;
    }
    incoming.options.push_back(read_group<Fields>(own_groups[i], *saved, in_group));
    mapped = map_parameters(own_groups[i], i, *saved, parameters, in_group) && mapped;
  }
  if (!mapped) return incoming;
  for (const StateDict::Entry& entry : entries->as_dict()) read_entry<Fields>(entry, parameters, incoming);
  const bool is_made_late = dynamic_cast<const Adagrad*>(&optimizer) != nullptr;
  if (Fields::kFromStart && !is_made_late) require_all_entries<Fields>(parameters, incoming);
  return incoming;
}

// ---- taking over

struct TensorCopier {
  const at::Tensor& parameter;
  void operator()(const char*, int64_t&, bool) const {}
  void operator()(const char*, at::Tensor& tensor, bool) const {
    if (!tensor.defined()) return;
    // Laid out and typed as the optimizer would have made it, whatever the file's layout was. Python converts types, too.
    at::Tensor copy = at::empty_like(parameter.detach());
    copy.copy_(tensor.detach());
    tensor = std::move(copy);
  }
};

template <class Fields>
void take_over(Optimizer& optimizer, Incoming<Fields> incoming) {
  std::remove_reference_t<decltype(optimizer.state())> states;
  for (auto& entry : incoming.entries) {
    Fields::state(entry.state, incoming.options[entry.group], TensorCopier{entry.parameter});
    states[entry.parameter.unsafeGetTensorImpl()] = std::make_unique<typename Fields::State>(std::move(entry.state));
  }
  // All memory is there: from here on nothing fails.
  optimizer.state() = std::move(states);
  for (size_t i = 0; i < incoming.options.size(); ++i) {
    static_cast<typename Fields::Options&>(optimizer.param_groups()[i].options()) = incoming.options[i];
  }
}

// Calls with the fields of the optimizer's type.
template <class Call>
auto with_fields(const Optimizer& optimizer, const Call& call) {
  if (dynamic_cast<const torch::optim::SGD*>(&optimizer) != nullptr) return call(SgdFields());
  if (dynamic_cast<const torch::optim::Adam*>(&optimizer) != nullptr) return call(AdamFields());
  if (dynamic_cast<const torch::optim::AdamW*>(&optimizer) != nullptr) return call(AdamWFields());
  if (dynamic_cast<const torch::optim::Adagrad*>(&optimizer) != nullptr) return call(AdagradFields());
  if (dynamic_cast<const torch::optim::RMSprop*>(&optimizer) != nullptr) return call(RmspropFields());
  const std::string type = c10::demangle(typeid(optimizer).name());
  throw Error(Errc::kUnsupported, concat("the state of an optimizer of type ", type, " cannot be saved: known are SGD, Adam, AdamW, Adagrad and ",
                                         "RMSprop, and what derives from marlin::optim::Stateful"));
}

[[noreturn]] void throw_mismatch(const std::vector<std::string>& differences) {
  throw Error(Errc::kMismatch, concat("the optimizer cannot take this state: ", join(differences, "; ")));
}

}  // namespace

StateDict get_state(const Optimizer& optimizer) {
  if (const auto* own = dynamic_cast<const Stateful*>(&optimizer)) return own->get_state();
  return with_fields(optimizer, [&]<class Fields>(Fields) { return written_state<Fields>(optimizer); });
}

std::vector<std::string> differences(const Optimizer& optimizer, const StateDict& state) {
  if (const auto* own = dynamic_cast<const Stateful*>(&optimizer)) return own->differences(state);
  return with_fields(optimizer, [&]<class Fields>(Fields) { return read_state<Fields>(optimizer, state).differences; });
}

void update_state(Optimizer& optimizer, const StateDict& state) {
  if (auto* own = dynamic_cast<Stateful*>(&optimizer)) {
    if (const std::vector<std::string> found = own->differences(state); !found.empty()) throw_mismatch(found);
    return own->update_state(state);
  }
  with_fields(optimizer, [&]<class Fields>(Fields) {
    Incoming<Fields> incoming = read_state<Fields>(optimizer, state);
    if (!incoming.differences.empty()) throw_mismatch(incoming.differences);
    take_over<Fields>(optimizer, std::move(incoming));
  });
}

}  // namespace marlin::optim
