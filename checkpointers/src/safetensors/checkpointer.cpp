#include <map>
#include <system_error>
#include <utility>

#include "archive/report.h"
#include "checkpoint_parts.h"
#include "folder_options.h"
#include "marlin/checkpointers/safetensors.h"
#include "marlin/checkpointers/safetensors_checkpointer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "safetensors/pair.h"

namespace marlin {
namespace fs = std::filesystem;
using namespace safetensors;
namespace {

FolderOptions checked(const SafetensorsCheckpointerOptions& options) {
  if (!archive::is_utf8(options.file_prefix)) {
    throw Error(Errc::kInvalidArgument, "checkpointer.file_prefix: must be UTF-8: names of files stand in the checkpoints");
  }
  return checked_folder_options(options);
}

void add_tensors(std::vector<NamedTensor>& tensors, const Value& value, const std::string& path);

void add_tensors(std::vector<NamedTensor>& tensors, const StateDict& dict, const std::string& path) {
  for (const StateDict::Entry& entry : dict) add_tensors(tensors, entry.value, concat(path, path.empty() ? "" : ".", to_string(entry.key)));
}

void add_tensors(std::vector<NamedTensor>& tensors, const Value& value, const std::string& path) {
  if (const auto* dict = value.get_if<StateDict>()) return add_tensors(tensors, *dict, path);
  const auto* tensor = value.get_if<at::Tensor>();
  if (tensor == nullptr) archive::unsupported(archive::printable(path), concat("is no tensor (", value.kind(), "), and a safetensors file holds nothing else"));
  tensors.push_back({path, *tensor});
}

}  // namespace

std::vector<OptionField<SafetensorsCheckpointerOptions>> SafetensorsCheckpointerOptions::option_fields() {
  return folder_option_fields<SafetensorsCheckpointerOptions>();
}

SafetensorsCheckpointer::SafetensorsCheckpointer(const SafetensorsCheckpointerOptions& options, const HostContext& host)
    : FolderCheckpointer(checked(options), {options.file_prefix, kRecordExtension}, {options.file_prefix, kTensorsExtension}, host) {
  set_name("safetensors");
}

SafetensorsCheckpointer::~SafetensorsCheckpointer() = default;

void SafetensorsCheckpointer::write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) {
  const fs::path tensors = write_pair(file, checkpoint, point, file_system());
  try {
    for (const fs::path& other : tensor_files_of(file, file_system())) {
      if (other != tensors && is_of_a_checkpoint(other)) file_system().remove(other);
    }
  } catch (const Error& error) {  // removed when the next run begins
    log(LogLevel::kWarning, error.what());
  }
}

void SafetensorsCheckpointer::write_model(const fs::path& file, const StateDict& model_state, int64_t index) {
  std::vector<NamedTensor> tensors;
  add_tensors(tensors, model_state, "");
  const SafetensorsMetadata metadata = {{"format", "pt"}, {"kind", "model"}, {"epoch", std::to_string(index)}};
  write_safetensors(file, std::move(tensors), metadata, Hashes::kXxh3, Durability::kDurable, file_system());
}

// The record that a file of tensors would belong to, by its name.
std::optional<std::string> SafetensorsCheckpointer::record_name_for(std::string_view tensors_name) const {
  const std::optional<std::string> stem = stem_of_tensors(tensors_name);
  if (!stem) return std::nullopt;
  std::string record = concat(*stem, ".", kRecordExtension);
  const auto parsed = checkpoint_names().parse(record);
  if (!parsed || parsed->form == CheckpointNames::Form::kModel) return std::nullopt;
  return record;
}

// What is loaded for a file that was named: itself, or the record that names it.
fs::path SafetensorsCheckpointer::record_for(const fs::path& file) const {
  const std::optional<std::string> stem = stem_of_tensors(file.filename().string());
  std::error_code error;
  if (!stem || !fs::exists(file, error)) return file;
  const fs::path record = file.parent_path() / concat(*stem, ".", kRecordExtension);
  try {
    if (read_record(record).tensors == file) return record;
  } catch (const Error& failure) {
    if (failure.code() != Errc::kNotFound) throw;
    throw Error(Errc::kMismatch, concat(file.string(), ": is no whole state: there is no ", record.filename().string(), " beside it"));
  }
  throw Error(Errc::kMismatch, concat(file.string(), ": is no whole state: ", record.filename().string(), " names another file as its tensors"));
}

Checkpoint SafetensorsCheckpointer::read(const fs::path& file, Verify verify) const {
  Checkpoint found = read_pair(record_for(file), verify);
  if (verify == Verify::kOff) log_unverified(file);
  return found;
}

FolderCheckpointer::Facts SafetensorsCheckpointer::facts_of(const fs::path& file) const {
  const CommitRecord record = open_pair(file).record;
  return {record.run_id, record.metrics};
}

// The record first, and for good, so that no power cut leaves one without its tensors.
void SafetensorsCheckpointer::remove(const fs::path& file) {
  const bool is_record = checkpoint_names().parse(file.filename().string()).has_value();
  const std::vector<fs::path> tensors = is_record ? tensor_files_of(file, file_system()) : std::vector<fs::path>();
  fs::path named;
  try {
    if (is_record) named = read_record(file).tensors;
  } catch (const Error&) {  // broken: its tensors are known by themselves
  }
  file_system().remove(file);
  if (tensors.empty()) return;
  file_system().sync_directory(file.parent_path());
  for (const fs::path& each : tensors) {
    if (each == named || is_of_a_checkpoint(each)) file_system().remove(each);
  }
}

// Tensors whose record was not written any more, or was written anew with others. Where there is one file and a record, it is the record's.
void SafetensorsCheckpointer::sweep(const fs::path& folder) {
  std::map<fs::path, std::vector<fs::path>> by_record;
  for (const std::string& name : file_system().list(folder)) {
    const auto record = record_name_for(name);
    std::error_code ignored;
    if (record && fs::is_regular_file(folder / name, ignored) && is_of_a_checkpoint(folder / name)) by_record[folder / *record].push_back(folder / name);
  }
  for (const auto& [record, files] : by_record) {
    std::error_code error;
    fs::path named;
    if (fs::exists(record, error)) {
      if (files.size() == 1) continue;
      try {
        named = read_record(record).tensors;
      } catch (const Error&) {
        continue;  // which are its own cannot be told: left for a person to look at
      }
    } else if (error) {
      continue;
    }
    for (const fs::path& file : files) {
      if (file != named) discard(file, " (left by a save that was cut short)");
    }
  }
}

bool SafetensorsCheckpointer::owns(std::string_view file_name) const { return FolderCheckpointer::owns(file_name) || record_name_for(file_name); }

}  // namespace marlin
