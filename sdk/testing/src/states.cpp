#include "states.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/ScalarType.h>

#include <limits>

#include "marlin/sdk/text.h"

namespace marlin::testing::detail {
namespace {

at::Tensor numbers(int64_t count, double offset) { return at::arange(count, at::kFloat).add(offset); }

Checkpoint state_of(int64_t epoch, int64_t global_step) {
  const auto mark = static_cast<double>(global_step);
  Checkpoint state;
  state.module_interface_state = {{"layer.weight", numbers(120 * 64, mark).reshape({120, 64})}, {"layer.bias", numbers(120, -mark)}};
  const StateDict moments = {{"step", at::scalar_tensor(mark)},
                             {"exp_avg", numbers(120 * 64, mark / 2).reshape({120, 64})},
                             {"exp_avg_sq", numbers(120 * 64, mark / 3).reshape({120, 64})}};
  const StateDict optimizer = {{"state", StateDict{{int64_t{0}, moments}}},
                               {"param_groups", List{{StateDict{{"lr", 0.1 / (1 + mark)}, {"params", List{{int64_t{0}, int64_t{1}}}}}}}}};
  state.trainer_state = {{"last_epoch", epoch}, {"optimizers", List{{optimizer}}}, {"schedulers", List{}}, {"run_id", "contract"}};
  state.trainer_backend_state = {{"global_step_completed", global_step}, {"batches_completed", global_step}};
  return state;
}

std::string difference(const std::string& at, const StateDict& saved, const StateDict& loaded);

std::string difference(const std::string& at, const Value& saved, const Value& loaded) {
  if (equal(saved, loaded)) return {};
  if (std::string(saved.kind()) != loaded.kind()) return concat(at, ": ", saved.kind(), " was saved, ", loaded.kind(), " loaded");
  if (saved.get_if<StateDict>()) return difference(at, saved.as_dict(), loaded.as_dict());
  if (saved.get_if<List>() || saved.get_if<Tuple>()) {
    const auto &ours = saved.as_items(), &theirs = loaded.as_items();
    if (ours.size() != theirs.size()) return concat(at, ": ", ours.size(), " items were saved, ", theirs.size(), " loaded");
    for (size_t i = 0; i < ours.size(); ++i) {
      if (std::string found = difference(concat(at, ".", i), ours[i], theirs[i]); !found.empty()) return found;
    }
  }
  if (const auto* tensor = saved.get_if<at::Tensor>(); tensor && tensor->defined() && loaded.as_tensor().defined()) {
    const at::Tensor& other = loaded.as_tensor();
    if (tensor->scalar_type() != other.scalar_type()) return concat(at, ": ", tensor->scalar_type(), " was saved, ", other.scalar_type(), " loaded");
    if (tensor->sizes() != other.sizes()) return concat(at, ": shape ", tensor->sizes(), " was saved, ", other.sizes(), " loaded");
  }
  return concat(at, ": not the ", saved.kind(), " that was saved");
}

std::string difference(const std::string& at, const StateDict& saved, const StateDict& loaded) {
  if (saved.size() != loaded.size()) return concat(at, ": ", saved.size(), " entries were saved, ", loaded.size(), " loaded");
  for (const auto *ours = saved.begin(), *theirs = loaded.begin(); ours != saved.end(); ++ours, ++theirs) {
    const std::string key = concat(at, ".", to_string(ours->key));
    if (ours->key != theirs->key) return concat(key, ": was saved, '", to_string(theirs->key), "' was loaded in its place");
    if (std::string found = difference(key, ours->value, theirs->value); !found.empty()) return found;
  }
  return {};
}

void change(Value& value) {
  if (const auto* tensor = value.get_if<at::Tensor>()) {
    if (tensor->defined() && tensor->is_floating_point()) tensor->add_(1);
  } else if (auto* dict = value.get_if<StateDict>()) {
    for (StateDict::Entry& entry : *dict) change(entry.value);
  } else if (auto* list = value.get_if<List>()) {
    for (Value& item : list->items) change(item);
  }
}

}  // namespace

Checkpoint state_at(int64_t epoch) { return state_of(epoch, (epoch + 1) * kStepsPerEpoch); }
Checkpoint state_at_step(int64_t global_step) { return state_of(global_step / kStepsPerEpoch, global_step); }

Checkpoint varied_state() {
  using Limits = std::numeric_limits<double>;
  Checkpoint state = state_at(0);
  StateDict& module = state.module_interface_state;
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kBool}) {
    module.set(concat("dtype.", dtype), numbers(7, -3).to(dtype));
  }
  module.set("scalar", at::scalar_tensor(2.5));
  module.set("empty", at::empty({0, 3}));
  module.set("not_contiguous", numbers(12, 0).reshape({3, 4}).t());
  module.set("every_second", numbers(12, 0).slice(0, 1, 12, 2));
  module.set("expanded", numbers(3, 0).reshape({3, 1}).expand({3, 4}));
  const at::Tensor shared = numbers(10, 5);  // that these two share storage need not be kept
  module.set("shared", shared);
  module.set("part_of_shared", shared.slice(0, 2, 6));
  module.set("not_finite", at::full({2}, Limits::quiet_NaN()).mul(-1));
  state.trainer_state.set("values", StateDict{{"null", nullptr},
                                              {"true", true},
                                              {"negative", int64_t{-1}},
                                              {"large", std::numeric_limits<int64_t>::min()},
                                              {"tenth", 0.1},
                                              {"negative_zero", -0.0},
                                              {"infinite", Limits::infinity()},
                                              {"text", "a 'text'\nof two lines, \xc3\xa4\xe2\x82\xac"},
                                              {"no_text", ""},
                                              {"list", List{{int64_t{1}, "two", List{}, nullptr}}},
                                              {"tuple", Tuple{{0.9, 0.999}}},
                                              {"no_tuple", Tuple{}},
                                              {"dict", StateDict{{int64_t{7}, "seven"}, {"7", int64_t{7}}, {"none", StateDict{}}}},
                                              {"", "a key without letters"}});
  return state;
}

std::vector<RareTensor> rare_tensors() {
  using enum c10::ScalarType;
  constexpr int64_t kBytes = 128;  // a whole number of each
  std::vector<RareTensor> result;
  for (const c10::ScalarType dtype : {ComplexFloat, ComplexDouble, ComplexHalf, UInt16, UInt32, UInt64, Float8_e5m2, Float8_e4m3fn, Float8_e8m0fnu, Float8_e5m2fnuz, Float8_e4m3fnuz}) {
    const std::string_view name = c10::getDtypeNames(dtype).first;
    // Not converted from numbers: LibTorch cannot for all of them.
    const at::Tensor bytes = at::arange(kBytes, at::kByte);
    const auto count = kBytes / static_cast<int64_t>(c10::elementSize(dtype));
    result.push_back({name, concat("dtype.", name), at::empty({0}, at::TensorOptions().dtype(dtype)).set_(bytes.storage(), 0, {count}, {1})});
  }
  return result;
}

std::string difference(const Checkpoint& saved, const Checkpoint& loaded) {
  for (const auto& [name, part] : {std::pair("module_interface_state", &Checkpoint::module_interface_state), std::pair("trainer_state", &Checkpoint::trainer_state),
                                   std::pair("trainer_backend_state", &Checkpoint::trainer_backend_state)}) {
    if (std::string found = difference(name, saved.*part, loaded.*part); !found.empty()) return found;
  }
  return {};
}

void go_on_training(Checkpoint& state) {
  for (StateDict* part : {&state.module_interface_state, &state.trainer_state}) {
    for (StateDict::Entry& entry : *part) change(entry.value);
  }
}

}  // namespace marlin::testing::detail
