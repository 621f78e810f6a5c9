#include "contents.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <array>

#include "marlin/sdk/text.h"
#include "marlin/tools/text.h"

namespace marlin::ckpt {
namespace {

constexpr std::array<const char*, 3> kParts = {"module_interface_state", "trainer_state", "trainer_backend_state"};

std::optional<int64_t> int_of(const StateDict& root, const char* part, const char* key) {
  const Value* found = root.find(part);
  const StateDict* dict = found == nullptr ? nullptr : found->get_if<StateDict>();
  const Value* value = dict == nullptr ? nullptr : dict->find(key);
  const auto* number = value == nullptr ? nullptr : value->get_if<int64_t>();
  return number == nullptr ? std::nullopt : std::optional(*number);
}

bool is_in_epoch(const StateDict& root) {
  const Value* state = root.find(kParts[1]);
  const StateDict* dict = state == nullptr ? nullptr : state->get_if<StateDict>();
  const Value* flag = dict == nullptr ? nullptr : dict->find("in_epoch");
  return flag != nullptr && flag->get_if<bool>() != nullptr && flag->as_bool();
}

std::string size_text(const char* what, size_t size) { return concat(what, " of ", size); }

}  // namespace

bool is_full(const StateDict& root) {
  return std::all_of(kParts.begin(), kParts.end(), [&](const char* part) {
    const Value* value = root.find(part);
    return value != nullptr && (value->is_null() || value->get_if<StateDict>() != nullptr);
  });
}

Summary summarise(const StateDict& root, const std::optional<CommitRecord>& record) {
  Summary summary;
  const auto is_tensor = [](const StateDict::Entry& entry) { return entry.value.get_if<at::Tensor>() != nullptr; };
  const bool only_tensors = !root.empty() && std::all_of(root.begin(), root.end(), is_tensor);
  if (is_full(root)) {
    summary.kind = "full";
    summary.epoch = int_of(root, kParts[1], "last_epoch");
    if (summary.epoch && *summary.epoch < INT64_MAX && is_in_epoch(root)) ++*summary.epoch;
    summary.global_step = int_of(root, kParts[2], "global_step_completed");
  } else {
    summary.kind = only_tensors || (record && record->kind == "model") ? "model" : "other";
  }
  if (!record) return summary;
  if (!summary.epoch) summary.epoch = record->epoch;
  if (!summary.global_step && summary.kind != "model") summary.global_step = record->global_step;
  summary.cause = record->cause;
  summary.run_id = record->run_id;
  summary.metrics = record->metrics;
  return summary;
}

Json to_json(const Metrics& metrics) {
  Json json = Json::object();
  for (const auto& [name, value] : metrics) json[name] = to_json(value);
  return json;
}

Json to_json(const CommitRecord& record) {
  nlohmann::json records = nlohmann::json::object();  // an ordered one looks at every key for each that it gets
  for (const RecordEntry& entry : record.records) records[entry.name] = {{"size", entry.size}, {"xxh3_128", entry.xxh3_128}};
  return {{"format_version", record.format_version},
          {"kind", record.kind},
          {"unit", record.unit},
          {"index", record.index},
          {"epoch", record.epoch},
          {"global_step", record.global_step},
          {"cause", record.cause},
          {"run_id", record.run_id},
          {"marlin_version", record.marlin_version},
          {"torch_version", record.torch_version},
          {"metrics", to_json(record.metrics)},
          {"records", Json(std::move(records))}};
}

Json scalar_to_json(const Value& value) {
  if (const auto* flag = value.get_if<bool>()) return *flag;
  if (const auto* number = value.get_if<int64_t>()) return *number;
  if (const auto* number = value.get_if<double>()) return to_json(*number);
  if (const auto* text = value.get_if<std::string>()) return *text;
  return nullptr;
}

std::string dtype_name(at::ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

std::string shape_text(const at::Tensor& tensor) {
  std::vector<std::string> sizes;
  for (const int64_t size : tensor.sizes()) sizes.push_back(std::to_string(size));
  return concat("[", join(sizes), "]");
}

std::string short_text(const Value& value) {
  constexpr size_t kMaxBytes = 60;
  if (const auto* flag = value.get_if<bool>()) return *flag ? "true" : "false";
  if (const auto* number = value.get_if<int64_t>()) return std::to_string(*number);
  if (const auto* number = value.get_if<double>()) return shortest(*number);
  if (const auto* text = value.get_if<std::string>()) return quoted(*text, kMaxBytes);
  if (const auto* tensor = value.get_if<at::Tensor>()) return concat(dtype_name(tensor->scalar_type()), " ", shape_text(*tensor));
  if (const auto* dict = value.get_if<StateDict>()) return size_text("dict", dict->size());
  if (is_container(value)) return size_text(value.kind(), value.as_items().size());
  return "null";
}

bool is_container(const Value& value) {
  return value.get_if<StateDict>() != nullptr || value.get_if<List>() != nullptr || value.get_if<Tuple>() != nullptr;
}

std::string joined(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

}  // namespace marlin::ckpt
