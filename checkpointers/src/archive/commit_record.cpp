#include "archive/commit_record.h"

#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "archive/hash.h"
#include "archive/report.h"

namespace marlin::archive {
namespace {

using OrderedJson = nlohmann::ordered_json;  // what is written has an order

constexpr const char* kScoreKey = "score";
constexpr const char* kListKey = "list";
constexpr const char* kMetricsKey = "metrics";
constexpr const char* kRecordsKey = "records";
constexpr const char* kHashKey = "xxh3_128";

// JSON has no NaN and no infinities.
OrderedJson number_to_json(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

double number_of(std::string_view where, const std::string& name, const nlohmann::json& json) {
  if (json.is_number()) return json.get<double>();
  if (json == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (json == "inf") return std::numeric_limits<double>::infinity();
  if (json == "-inf") return -std::numeric_limits<double>::infinity();
  corrupt(where, concat("metrics: '", printable(name), "' is no number"));
}

int64_t integer_at(std::string_view where, const nlohmann::json& json, const char* key) {
  const auto at = json.find(key);
  bool fits = at != json.end() && at->is_number_integer();
  if (fits && at->is_number_unsigned()) fits = at->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()};
  if (!fits) corrupt(where, concat("'", key, "' is missing, or not a whole number"));
  return at->get<int64_t>();
}

std::string text_at(std::string_view where, const nlohmann::json& json, const char* key) {
  const auto at = json.find(key);
  if (at == json.end()) return {};
  if (!at->is_string()) corrupt(where, concat("'", key, "' is not text"));
  return at->get<std::string>();
}

// In the order of their names: an object in the order of the text looks at every key for each that it gets. So the names of the
// metrics are noted as they come.
nlohmann::json parse(std::string_view where, std::string_view text, int max_depth, std::vector<std::string>& metrics) {
  using Event = nlohmann::json::parse_event_t;
  bool in_metrics = false;
  const auto wanted = [&](int depth, Event event, const nlohmann::json& value) {
    // Deeper than anything that is written; the parser itself takes any depth.
    if (depth > max_depth) corrupt(where, "is nested too deeply");
    if (event == Event::key && depth == 1) in_metrics = value == kMetricsKey;
    if (event == Event::key && depth == 2 && in_metrics) metrics.push_back(value.get<std::string>());
    return true;
  };
  try {
    nlohmann::json json = nlohmann::json::parse(text, wanted);
    if (!json.is_object()) corrupt(where, "is no JSON object");
    return json;
  } catch (const nlohmann::json::exception&) {
    corrupt(where, "is not JSON");
  }
}

// The record ends with its own hash, which covers every byte before the digits; the bytes after them can be only these.
constexpr std::string_view kBeforeHash = ",\n \"xxh3_128\": \"";
constexpr std::string_view kAfterHash = "\"\n}\n";

std::string records_to_json(const std::vector<RecordEntry>& records) {
  std::string json = ",\n \"records\": {";
  for (const RecordEntry& record : records) {
    json += concat(&record == &records.front() ? "\n  " : ",\n  ", OrderedJson(record.name).dump(), ": {\"size\": ", record.size, ", \"xxh3_128\": \"", record.xxh3_128, "\"}");
  }
  return json + "\n }";
}

std::vector<RecordEntry> records_of(std::string_view where, const nlohmann::json& json) {
  if (!json.is_object()) corrupt(where, "its list of records is no JSON object");
  std::vector<RecordEntry> records;
  records.reserve(json.size());
  for (const auto& [name, entry] : json.items()) {
    const bool sized = entry.is_object() && entry.contains("size") && entry["size"].is_number_unsigned();
    const bool hashed = sized && entry.contains("xxh3_128") && entry["xxh3_128"].is_string();
    if (!hashed || !hash_of_hex(entry["xxh3_128"].get<std::string>())) corrupt(where, concat("records: '", printable(name), "' has no size and hash"));
    records.push_back({name, entry["size"].get<uint64_t>(), entry["xxh3_128"].get<std::string>()});
  }
  return records;
}

void check_own_hash(std::string_view where, std::string_view text) {
  const size_t after = text.size() - std::min(text.size(), kAfterHash.size());
  const size_t digits = after - std::min(after, kHexDigits);
  const bool in_place = text.substr(after) == kAfterHash && text.substr(0, digits).ends_with(kBeforeHash);
  if (!in_place) corrupt(where, "does not end with its own hash");
  if (hash_of_hex(text.substr(digits, kHexDigits)) != hash_of(text.substr(0, digits))) corrupt(where, "its bytes do not match its own hash (XXH3)");
}

}  // namespace

std::string to_json(const CommitRecord& record, std::string_view more) {
  OrderedJson metrics = OrderedJson::object();
  for (const auto& [name, value] : record.metrics) metrics[name] = number_to_json(value);
  OrderedJson json = {
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
  };
  if (record.score) json[kScoreKey] = number_to_json(*record.score);
  if (!record.list.empty()) json[kListKey] = record.list;
  json[kMetricsKey] = metrics;
  std::string text = json.dump(1, ' ', false, OrderedJson::error_handler_t::replace);
  text.resize(text.size() - std::string_view("\n}").size());
  text += more;
  text += records_to_json(record.records);
  text += kBeforeHash;
  const std::string hash = to_hex(hash_of(text));
  return text.append(hash).append(kAfterHash);
}

CommitRecord commit_record_of(std::string_view text, std::string_view where, int max_depth, nlohmann::json* document) {
  std::vector<std::string> metrics;
  nlohmann::json json = parse(where, text, max_depth, metrics);
  CommitRecord record;
  record.format_version = integer_at(where, json, "format_version");
  if (record.format_version > kFormatVersion) {
    if (json.contains(kHashKey)) check_own_hash(where, text);  // the number may be what is broken
    unsupported(where, concat("written by a later libmarlin (format version ", record.format_version, "; this one reads ", kFormatVersion,
                                      "); update libmarlin"));
  }
  if (record.format_version < 1) corrupt(where, concat("there is no format version ", record.format_version));
  record.kind = text_at(where, json, "kind");
  record.unit = text_at(where, json, "unit");
  record.index = integer_at(where, json, "index");
  record.epoch = integer_at(where, json, "epoch");
  record.global_step = integer_at(where, json, "global_step");
  record.cause = text_at(where, json, "cause");
  record.run_id = text_at(where, json, "run_id");
  record.marlin_version = text_at(where, json, "marlin_version");
  record.torch_version = text_at(where, json, "torch_version");
  if (const auto found = json.find(kScoreKey); found != json.end()) record.score = number_of(where, kScoreKey, *found);
  if (json.contains(kListKey)) record.list = text_at(where, json, kListKey);
  if (const auto found = json.find(kMetricsKey); found != json.end()) {
    if (!found->is_object()) corrupt(where, "'metrics' is no JSON object");
    for (const std::string& name : metrics) record.metrics.set(name, number_of(where, name, found->value(name, nlohmann::json())));
  }
  if (json.contains(kHashKey) != json.contains(kRecordsKey)) corrupt(where, "has a list of records without a hash of its own, or the reverse");
  if (json.contains(kHashKey)) {  // this version's first writers wrote neither
    check_own_hash(where, text);
    record.records = records_of(where, json[kRecordsKey]);
  }
  if (document != nullptr) *document = std::move(json);
  return record;
}

}  // namespace marlin::archive
