// marlin-ckpt inspect FILE
#include <algorithm>
#include <iostream>
#include <unordered_map>

#include "commands.h"
#include "contents.h"
#include "marlin/checkpointers/archive_reader.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/text.h"

namespace marlin::ckpt {
namespace {

// Which tensor was the first over each storage, in the order in which the state names them.
class Storages {
 public:
  /// The path of the tensor that shares it; empty: this is the first.
  const std::string& first(const at::Tensor& tensor, const std::string& path) {
    const auto [at, is_new] = first_.try_emplace(tensor.storage().unsafeGetStorageImpl(), path);
    return is_new ? none_ : at->second;
  }

 private:
  std::unordered_map<const c10::StorageImpl*, std::string> first_;
  std::string none_;
};

struct Totals {
  uint64_t tensors = 0, bytes = 0, values = 0;
};

Json key_to_json(const Key& key) {
  if (const auto* number = std::get_if<int64_t>(&key)) return *number;
  return std::get<std::string>(key);
}

// For scripts: everything.
class JsonTree {
 public:
  explicit JsonTree(Totals& totals) : totals_(totals) {}

  Json dict(const StateDict& dict, const std::string& path) {
    Json entries = Json::array();
    for (const StateDict::Entry& entry : dict) {
      Json json = {{"key", key_to_json(entry.key)}};
      json.update(value(entry.value, joined(path, marlin::to_string(entry.key))));
      entries.push_back(std::move(json));
    }
    Json json = {{"kind", "dict"}, {"ordered", dict.ordered_dict}, {"entries", std::move(entries)}};
    if (dict.attributes) json["attributes"] = this->dict(*dict.attributes, path);
    return json;
  }

 private:
  Json value(const Value& value, const std::string& path) {
    if (const auto* found = value.get_if<StateDict>()) return dict(*found, path);
    if (const auto* found = value.get_if<at::Tensor>()) return tensor(*found, path);
    if (is_container(value)) {
      Json items = Json::array();
      for (const Value& item : value.as_items()) items.push_back(this->value(item, joined(path, std::to_string(items.size()))));
      return {{"kind", value.kind()}, {"items", std::move(items)}};
    }
    ++totals_.values;
    return {{"kind", value.kind()}, {"value", scalar_to_json(value)}};
  }

  Json tensor(const at::Tensor& tensor, const std::string& path) {
    ++totals_.tensors, totals_.bytes += tensor.nbytes();
    Json json = {{"kind", "tensor"},
                 {"dtype", dtype_name(tensor.scalar_type())},
                 {"shape", tensor.sizes().vec()},
                 {"bytes", tensor.nbytes()}};
    if (const std::string& first = storages_.first(tensor, path); !first.empty()) json["shares_storage_with"] = first;
    return json;
  }

  Totals& totals_;
  Storages storages_;
};

// For people: long lists are abbreviated.
class TextTree {
 public:
  TextTree() : table_({{"name"}, {"type"}, {"shape or value"}, {"bytes", true}, {""}}) {}

  std::string text(const StateDict& root) {
    entries(root, "", 0);
    return concat(table_.text(), "\n", counted(totals_.tensors, "tensor"), " of ", human_size(totals_.bytes), ", ",
                  counted(totals_.values, "other value"), "\n");
  }

 private:
  static constexpr size_t kMaxItems = 8;

  void entries(const StateDict& dict, const std::string& path, size_t depth) {
    for (const StateDict::Entry& entry : dict) {
      const std::string key = marlin::to_string(entry.key);
      add(key, entry.value, joined(path, key), depth);
    }
    // PyTorch keeps the versions of modules there.
    if (dict.attributes) add("(attributes)", *dict.attributes, joined(path, "(attributes)"), depth);
  }

  void add(const std::string& name, const Value& value, const std::string& path, size_t depth) {
    const std::string shown = std::string(2 * depth, ' ') + (name.empty() ? "\"\"" : printable(name));
    if (const auto* dict = value.get_if<StateDict>()) {
      table_.add({shown, dict->ordered_dict ? "OrderedDict" : "dict", dict->empty() ? "empty" : entry_count(dict->size())});
      entries(*dict, path, depth + 1);
    } else if (is_container(value)) {
      add_items(shown, value, path, depth);
    } else if (const auto* tensor = value.get_if<at::Tensor>()) {
      ++totals_.tensors, totals_.bytes += tensor->nbytes();
      const std::string& first = storages_.first(*tensor, path);
      table_.add({shown, dtype_name(tensor->scalar_type()), shape_text(*tensor), std::to_string(tensor->nbytes()),
                  first.empty() ? "" : "shares storage with " + printable(first)});
    } else {
      ++totals_.values;
      table_.add({shown, value.kind(), short_text(value)});
    }
  }

  void add_items(const std::string& shown, const Value& value, const std::string& path, size_t depth) {
    const std::vector<Value>& items = value.as_items();
    const auto has_parts = [](const Value& item) { return is_container(item) || item.get_if<at::Tensor>() != nullptr; };
    if (std::none_of(items.begin(), items.end(), has_parts)) {
      totals_.values += items.size();
      table_.add({shown, value.kind(), flat_text(items)});
      return;
    }
    table_.add({shown, value.kind(), counted(items.size(), "item")});
    const size_t num_shown = std::min(items.size(), kMaxItems);
    for (size_t i = 0; i < num_shown; ++i) add(std::to_string(i), items[i], joined(path, std::to_string(i)), depth + 1);
    if (num_shown == items.size()) return;
    for (size_t i = num_shown; i < items.size(); ++i) count(items[i]);
    table_.add({concat(std::string(2 * depth + 2, ' '), "... and ", items.size() - num_shown, " more (--json shows all)")});
  }

  // What is not shown is counted all the same.
  void count(const Value& value) {
    if (const auto* dict = value.get_if<StateDict>()) {
      for (const StateDict::Entry& entry : *dict) count(entry.value);
    } else if (is_container(value)) {
      for (const Value& item : value.as_items()) count(item);
    } else if (const auto* tensor = value.get_if<at::Tensor>()) {
      ++totals_.tensors, totals_.bytes += tensor->nbytes();
    } else {
      ++totals_.values;
    }
  }

  static std::string entry_count(size_t size) { return size == 1 ? "1 entry" : concat(size, " entries"); }

  static std::string flat_text(const std::vector<Value>& items) {
    std::vector<std::string> parts;
    for (const Value& item : items) {
      if (parts.size() == kMaxItems) break;
      parts.push_back(short_text(item));
    }
    return concat("[", join(parts), items.size() > kMaxItems ? concat(", ...] ", items.size(), " items") : "]");
  }

  Table table_;
  Totals totals_;
  Storages storages_;
};

std::string record_text(const CommitRecord& record) {
  uint64_t bytes = 0;
  for (const RecordEntry& entry : record.records) bytes += entry.size;
  Table table({{""}, {""}});
  const auto add = [&](const std::string& key, const std::string& value) {
    table.add({"  " + printable(key), value.empty() ? "-" : printable(value)});
  };
  add("format_version", std::to_string(record.format_version));
  add("kind", record.kind);
  add("index", concat(record.index, record.unit.empty() ? "" : concat(" (", record.unit, ")")));
  add("epoch", std::to_string(record.epoch));
  add("global_step", std::to_string(record.global_step));
  add("cause", record.cause);
  add("run_id", record.run_id);
  add("marlin_version", record.marlin_version);
  add("torch_version", record.torch_version);
  for (const auto& [name, value] : record.metrics) add("metrics." + name, shortest(value));
  add("records", record.records.empty() ? "no hashes" : concat(record.records.size(), ", ", human_size(bytes), ", each with its hash"));
  return "record (marlin.json)\n" + table.text();
}

int run(const Arguments& arguments) {
  const std::filesystem::path file = arguments.file(0);
  ArchiveReader reader(file, Verify::kOff);
  const StateDict root = reader.state();
  const Summary summary = summarise(root, reader.record());
  if (arguments.has("json")) {
    Totals totals;
    Json state = JsonTree(totals).dict(root, "");
    print({{"file", file.string()},
           {"bytes", std::filesystem::file_size(file)},
           {"kind", summary.kind},
           {"record", reader.record() ? to_json(*reader.record()) : Json()},
           {"tensors", totals.tensors},
           {"tensor_bytes", totals.bytes},
           {"values", totals.values},
           {"state", std::move(state)}});
    return kGood;
  }
  std::cout << printable(file.string()) << ": " << summary.kind << ", " << human_size(std::filesystem::file_size(file)) << "\n\n"
            << (reader.record() ? record_text(*reader.record()) : "no record (marlin.json): libmarlin did not write this file\n") << '\n'
            << TextTree().text(root);
  return kGood;
}

}  // namespace

Command inspect_command() {
  return {"inspect", {"FILE"}, "What a file holds: names, shapes, dtypes, bytes, values, and its record.",
          "What a file holds: its record, and the tree of its state with shapes, dtypes, bytes and values. Long lists are abbreviated;\n"
          "--json has all of them. Bytes are those of the tensor, also where several look at one storage, which is then in the file\n"
          "once. Tensors are not read, so changed bytes in them are not noticed: see `marlin-ckpt verify --help`.",
          {}, &run};
}

}  // namespace marlin::ckpt
