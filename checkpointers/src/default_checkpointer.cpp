#include "marlin/checkpointers/default_checkpointer.h"

#include <utility>

#include "folder_options.h"
#include "marlin/checkpointers/archive_reader.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace fs = std::filesystem;

std::vector<OptionField<DefaultCheckpointerOptions>> DefaultCheckpointerOptions::option_fields() { return folder_option_fields<DefaultCheckpointerOptions>(); }

DefaultCheckpointer::DefaultCheckpointer(DefaultCheckpointerOptions options, const HostContext& host)
    : FolderCheckpointer(checked_folder_options(options), {options.file_prefix, options.file_ext}, {options.file_prefix, options.file_ext}, host),
      options_(std::move(options)) {
  set_schedule({.checkpoint = options_.checkpoint, .period = options_.period});
  set_name("default");
}

DefaultCheckpointer::~DefaultCheckpointer() = default;

void DefaultCheckpointer::write(const fs::path& file, const Checkpoint& checkpoint, const SavePoint& point) {
  write_checkpoint(file, checkpoint, point, Durability::kDurable, file_system());
}

void DefaultCheckpointer::write_model(const fs::path& file, const StateDict& model_state, int64_t index) {
  marlin::write_model(file, model_state, index, Durability::kDurable, file_system());
}

Checkpoint DefaultCheckpointer::read(const fs::path& file, Verify verify) const {
  Verified verified = Verified::kNothing;
  Checkpoint found = read_checkpoint(file, verify, &verified);
  if (verified == Verified::kChecksums) {
    log(LogLevel::kInfo, concat(file.string(), " could not be verified: it has no commit record with hashes; its checksums (CRC-32) are right"));
  }
  if (verified == Verified::kNothing) log_unverified(file);
  return found;
}

FolderCheckpointer::Facts DefaultCheckpointer::facts_of(const fs::path& file) const {
  const auto record = ArchiveReader(file, Verify::kOff).record();
  return record ? Facts{record->run_id, record->metrics} : Facts{};
}

}  // namespace marlin
