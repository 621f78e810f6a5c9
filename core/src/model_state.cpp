#include "marlin/core/model_state.h"

#include <torch/torch.h>

#include "marlin/checkpointers/archive.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

// Python's order: a module's own parameters, its own buffers, then its children, each with all of its own.
void collect(const torch::nn::Module& module, const std::string& prefix, StateDict& state) {
  for (const auto& item : module.named_parameters(/*recurse=*/false)) {
    if (item.value().defined()) state.set(prefix + item.key(), item.value());
  }
  for (const auto& item : module.named_buffers(/*recurse=*/false)) {
    if (item.value().defined()) state.set(prefix + item.key(), item.value());
  }
  for (const auto& item : module.named_children()) collect(*item.value(), prefix + item.key() + ".", state);
}

std::string shape(const at::Tensor& tensor) {
  std::vector<std::string> sizes;
  for (const int64_t size : tensor.sizes()) sizes.push_back(std::to_string(size));
  return "[" + join(sizes) + "]";
}

enum class Dtypes { kEqual, kFloatingConvert };

// Empty: `value` can be copied into `into`.
std::string difference(const Key& key, const at::Tensor& into, const Value& value, Dtypes dtypes) {
  const auto* tensor = value.get_if<at::Tensor>();
  if (tensor == nullptr || !tensor->defined()) return concat(to_string(key), ": is a ", value.kind(), " in the file, a tensor in the model");
  if (tensor->sizes() != into.sizes()) return concat(to_string(key), ": shape ", shape(*tensor), " in the file, ", shape(into), " in the model");
  const bool convertible = dtypes == Dtypes::kFloatingConvert && tensor->is_floating_point() && into.is_floating_point();
  if (tensor->scalar_type() != into.scalar_type() && !convertible) {
    return concat(to_string(key), ": ", tensor->scalar_type(), " in the file, ", into.scalar_type(), " in the model");
  }
  return {};
}

std::vector<std::string> list_differences(const StateDict& model, const StateDict& state, Dtypes dtypes) {
  std::vector<std::string> result;
  for (const auto& [key, value] : model) {
    if (const Value* found = state.find(key)) {
      if (std::string text = difference(key, value.as_tensor(), *found, dtypes); !text.empty()) result.push_back(std::move(text));
    } else {
      result.push_back(concat(to_string(key), ": missing in the file"));
    }
  }
  for (const auto& entry : state) {
    if (!model.contains(entry.key)) result.push_back(concat(to_string(entry.key), ": in the file, not in the model"));
  }
  return result;
}

void copy(const StateDict& model, const StateDict& state) {
  const torch::NoGradGuard no_grad;
  for (const auto& [key, value] : model) {
    if (const Value* found = state.find(key)) at::Tensor(value.as_tensor()).copy_(found->as_tensor());
  }
}

StateDict weights_of(Archive archive) {
  if (const Value* module_state = archive.root.find("module_interface_state")) {
    if (const auto* dict = module_state->get_if<StateDict>()) return *dict;
  }
  return std::move(archive.root);
}

}  // namespace

StateDict model_state(const torch::nn::Module& module) {
  StateDict state;
  state.ordered_dict = true;
  collect(module, "", state);
  return state;
}

std::vector<std::string> model_differences(const torch::nn::Module& module, const StateDict& state) {
  return list_differences(model_state(module), state, Dtypes::kEqual);
}

void load_model_state(torch::nn::Module& module, const StateDict& state) {
  const StateDict model = model_state(module);
  if (const auto found = list_differences(model, state, Dtypes::kEqual); !found.empty()) {
    throw Error(Errc::kMismatch, concat("the state is of another model: ", join(found, "; ")));
  }
  copy(model, state);
}

std::vector<std::string> load_model_state(torch::nn::Module& module, const std::filesystem::path& file, bool strict) {
  StateDict state = weights_of(read_archive(file));
  const StateDict model = model_state(module);
  const auto found = list_differences(model, state, Dtypes::kFloatingConvert);
  if (strict && !found.empty()) throw Error(Errc::kMismatch, concat(file.string(), ": is of another model: ", join(found, "; ")));

  std::vector<std::string> left;
  for (const auto& [key, value] : model) {
    const Value* given = state.find(key);
    if (given != nullptr && difference(key, value.as_tensor(), *given, Dtypes::kFloatingConvert).empty()) continue;
    state.erase(key);
    left.push_back(to_string(key));
  }
  copy(model, state);
  return left;
}

}  // namespace marlin
