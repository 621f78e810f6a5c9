#include "safetensors/pair.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <system_error>
#include <utility>

#include "archive/commit_record.h"
#include "archive/mapped_file.h"
#include "archive/report.h"
#include "checkpoint_parts.h"
#include "marlin/checkpointers/durable_file.h"
#include "marlin/checkpointers/safetensors.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "safetensors/state_json.h"

namespace marlin::safetensors {
namespace fs = std::filesystem;
namespace {

using archive::corrupt;
using archive::printable;

bool is_number(std::string_view text) { return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos; }

std::string tensors_name(const fs::path& record, uint64_t attempt) {
  return concat(record.stem().string(), attempt == 0 ? "" : concat(".", attempt), ".", kTensorsExtension);
}

// Any that is there is left alone: it may be what the record names.
fs::path free_name(const fs::path& record) {
  for (uint64_t attempt = 0;; ++attempt) {
    const fs::path file = record.parent_path() / tensors_name(record, attempt);
    std::error_code error;
    if (fs::symlink_status(file, error).type() == fs::file_type::not_found) return file;
    if (error) throw Error(Errc::kIo, concat("cannot look at ", file.string(), ": ", error.message()));
  }
}

struct Parsed {
  PairRecord pair;
  RecordEntry tensors;
  nlohmann::json state;
};

Parsed parse_record(const fs::path& file) {
  const std::string where = file.string();
  const auto named = [&](const auto& call) {
    try {
      return call();
    } catch (const Error& error) {
      throw Error(error.code(), concat(where, ": ", error.what()));
    }
  };
  Parsed parsed;
  nlohmann::json document;
  named([&] {
    const archive::MappedFile mapped(file);
    if (mapped.bytes().empty()) throw Error(Errc::kCorrupt, "the file is empty");
    archive::bring_in(mapped.bytes());
    const std::string_view text(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
    parsed.pair.record = archive::commit_record_of(text, "record", kMaxJsonDepth, &document);
  });
  if (parsed.pair.record.records.size() != 1 || !document.contains("state")) {
    corrupt(where, "is not the record of a checkpoint: it names no file of tensors, or holds no state");
  }
  parsed.tensors = parsed.pair.record.records.front();
  const std::string& name = parsed.tensors.name;
  if (name.empty() || name == "." || name == ".." || name.find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
    corrupt(where, concat("names '", printable(name), "' as the file of its tensors, which is no plain name"));
  }
  parsed.pair.tensors = file.parent_path() / name;
  parsed.state = std::move(document["state"]);
  return parsed;
}

SafetensorsReader open_tensors(const fs::path& file, const Parsed& parsed, Verify verify) {
  const std::string where = parsed.pair.tensors.string();
  try {
    SafetensorsReader reader(parsed.pair.tensors, verify);
    const SafetensorsWritten& found = reader.written();
    if (found.size_bytes != parsed.tensors.size || found.xxh3_128 != parsed.tensors.xxh3_128) {
      corrupt(where, concat("is not the file that ", file.string(), " was written with"));
    }
    return reader;
  } catch (const Error& error) {
    if (error.code() == Errc::kNotFound) corrupt(file.string(), concat("the file of its tensors, ", where, ", is missing"));
    throw;
  }
}

// Whether the record may need these tensors. The old record still being there, they are not needed, nor if there is none.
bool may_name(const fs::path& record, const fs::path& tensors) {
  try {
    return read_record(record).tensors == tensors;
  } catch (const Error& error) {
    return error.code() != Errc::kNotFound;
  }
}

SafetensorsMetadata metadata_of(const CommitRecord& record) {
  return {{"format", "pt"}, {"kind", record.kind}, {"unit", record.unit}, {"index", std::to_string(record.index)}, {"epoch", std::to_string(record.epoch)},
          {"global_step", std::to_string(record.global_step)}};
}

}  // namespace

std::optional<std::string> stem_of_tensors(std::string_view file_name) {
  const std::string ending = concat(".", kTensorsExtension);
  if (!file_name.ends_with(ending)) return std::nullopt;
  file_name.remove_suffix(ending.size());
  const size_t dot = file_name.rfind('.');
  if (dot != std::string_view::npos && is_number(file_name.substr(dot + 1))) file_name = file_name.substr(0, dot);
  return std::string(file_name);
}

std::vector<fs::path> tensor_files_of(const fs::path& record, const FileSystem& file_system) {
  std::vector<fs::path> files;
  for (const std::string& name : file_system.list(record.parent_path())) {
    if (stem_of_tensors(name) == record.stem().string()) files.push_back(record.parent_path() / name);
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool is_of_a_checkpoint(const fs::path& tensors) {
  try {
    const SafetensorsReader reader(tensors, Verify::kOff);
    const auto& metadata = reader.metadata();
    return !reader.written().xxh3_128.empty() && std::find(metadata.begin(), metadata.end(), SafetensorsMetadata::value_type{"kind", "full"}) != metadata.end();
  } catch (const Error&) {
    return false;
  }
}

fs::path write_pair(const fs::path& record_file, const Checkpoint& checkpoint, const SavePoint& point, FileSystem& file_system) {
  const FlatState flat = flatten(root_of(checkpoint));
  CommitRecord record = record_of(point);
  const fs::path tensors = free_name(record_file);
  try {
    const SafetensorsWritten written = write_safetensors(tensors, flat.tensors, metadata_of(record), Hashes::kXxh3, Durability::kDurable, file_system);
    record.records = {{tensors.filename().string(), written.size_bytes, written.xxh3_128}};
    const std::string text = archive::to_json(record, concat(",\n \"state\": ", flat.json));
    write_atomically(record_file, text.size(), [&](WritableFile& out) { out.write_at(0, std::as_bytes(std::span(text))); }, Durability::kDurable, file_system);
  } catch (...) {
    try {
      if (!may_name(record_file, tensors)) file_system.remove(tensors);
    } catch (const Error&) {  // removed when the next run begins
    }
    throw;
  }
  return tensors;
}

PairRecord read_record(const fs::path& record) { return parse_record(record).pair; }

PairRecord open_pair(const fs::path& record) {
  Parsed parsed = parse_record(record);
  static_cast<void>(open_tensors(record, parsed, Verify::kOff));
  return std::move(parsed.pair);
}

Checkpoint read_pair(const fs::path& record, Verify verify) {
  const Parsed parsed = parse_record(record);
  SafetensorsReader tensors = open_tensors(record, parsed, verify);
  return checkpoint_of(unflatten(parsed.state, tensors, record), record);
}

}  // namespace marlin::safetensors
