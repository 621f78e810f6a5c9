#include "archive/commit_record.h"

#include <torch/version.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "archive/report.h"

namespace marlin::archive {
namespace {

using Json = nlohmann::ordered_json;  // metrics keep their order

// JSON has no NaN and no infinities.
Json number_to_json(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

double number_of(const std::string& name, const Json& json) {
  if (json.is_number()) return json.get<double>();
  if (json == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (json == "inf") return std::numeric_limits<double>::infinity();
  if (json == "-inf") return -std::numeric_limits<double>::infinity();
  corrupt(kCommitRecord, concat("metrics: '", printable(name), "' is no number"));
}

int64_t integer_at(const Json& json, const char* key) {
  const auto at = json.find(key);
  bool fits = at != json.end() && at->is_number_integer();
  if (fits && at->is_number_unsigned()) fits = at->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()};
  if (!fits) corrupt(kCommitRecord, concat("'", key, "' is missing, or not a whole number"));
  return at->get<int64_t>();
}

std::string text_at(const Json& json, const char* key) {
  const auto at = json.find(key);
  if (at == json.end()) return {};
  if (!at->is_string()) corrupt(kCommitRecord, concat("'", key, "' is not text"));
  return at->get<std::string>();
}

Json parse(std::string_view text) {
  // Deeper than anything that is written; the parser itself takes any depth.
  const auto shallow = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) corrupt(kCommitRecord, "is nested too deeply");
    return true;
  };
  try {
    Json json = Json::parse(text, shallow);
    if (!json.is_object()) corrupt(kCommitRecord, "is no JSON object");
    return json;
  } catch (const Json::exception&) {
    corrupt(kCommitRecord, "is not JSON");
  }
}

}  // namespace

std::string to_json(const CommitRecord& record) {
  Json metrics = Json::object();
  for (const auto& [name, value] : record.metrics) metrics[name] = number_to_json(value);
  const Json json = {
      {"format_version", kFormatVersion},
      {"kind", record.kind},
      {"unit", record.unit},
      {"index", record.index},
      {"epoch", record.epoch},
      {"global_step", record.global_step},
      {"cause", record.cause},
      {"run_id", record.run_id},
      {"marlin_version", record.marlin_version.empty() ? MARLIN_VERSION : record.marlin_version},
      {"torch_version", record.torch_version.empty() ? TORCH_VERSION : record.torch_version},
      {"metrics", metrics},
  };
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

CommitRecord commit_record_of(std::string_view text) {
  const Json json = parse(text);
  CommitRecord record;
  record.format_version = integer_at(json, "format_version");
  if (record.format_version > kFormatVersion) {
    unsupported(kCommitRecord, concat("written by a later libmarlin (format version ", record.format_version, "; this one reads ", kFormatVersion,
                                      "); update libmarlin"));
  }
  if (record.format_version < 1) corrupt(kCommitRecord, concat("there is no format version ", record.format_version));
  record.kind = text_at(json, "kind");
  record.unit = text_at(json, "unit");
  record.index = integer_at(json, "index");
  record.epoch = integer_at(json, "epoch");
  record.global_step = integer_at(json, "global_step");
  record.cause = text_at(json, "cause");
  record.run_id = text_at(json, "run_id");
  record.marlin_version = text_at(json, "marlin_version");
  record.torch_version = text_at(json, "torch_version");
  if (const auto metrics = json.find("metrics"); metrics != json.end()) {
    if (!metrics->is_object()) corrupt(kCommitRecord, "'metrics' is no JSON object");
    for (const auto& [name, value] : metrics->items()) record.metrics.set(name, number_of(name, value));
  }
  return record;
}

}  // namespace marlin::archive
