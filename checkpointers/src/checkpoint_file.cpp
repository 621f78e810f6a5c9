#include <utility>

#include "checkpoint_parts.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

constexpr const char* kParts[] = {"module_interface_state", "trainer_state", "trainer_backend_state"};

StateDict take_part(StateDict& root, const char* part, const std::filesystem::path& file) {
  Value* value = root.find(part);
  StateDict* dict = value == nullptr ? nullptr : value->get_if<StateDict>();
  if (dict != nullptr) return std::move(*dict);
  if (value != nullptr && value->is_null()) return {};
  throw Error(Errc::kMismatch, concat(file.string(), ": holds no ", part, ", so it is no whole state; a file of weights is taken by --init_from"));
}

}  // namespace

StateDict root_of(const Checkpoint& checkpoint) {
  return {{kParts[0], checkpoint.module_interface_state}, {kParts[1], checkpoint.trainer_state}, {kParts[2], checkpoint.trainer_backend_state}};
}

Checkpoint checkpoint_of(StateDict root, const std::filesystem::path& file) {
  Checkpoint checkpoint;
  checkpoint.module_interface_state = take_part(root, kParts[0], file);
  checkpoint.trainer_state = take_part(root, kParts[1], file);
  checkpoint.trainer_backend_state = take_part(root, kParts[2], file);
  checkpoint.source = file.string();
  return checkpoint;
}

CommitRecord record_of(const SavePoint& point) {
  CommitRecord record;
  record.kind = "full";
  record.unit = to_string(point.unit);
  record.index = point.index;
  record.epoch = point.epoch;
  record.global_step = point.global_step;
  record.cause = to_string(point.cause);
  record.run_id = point.run_id;
  record.metrics = point.metrics;
  return record;
}

CommitRecord record_of_model(int64_t index) {
  CommitRecord record;
  record.kind = "model";
  record.unit = to_string(Unit::kEpoch);
  record.index = record.epoch = index;
  return record;
}

Checkpoint read_checkpoint(const std::filesystem::path& file, Verify verify, Verified* verified) {
  Archive archive = read_archive(file, verify);
  if (verified != nullptr) *verified = archive.verified;
  return checkpoint_of(std::move(archive.root), file);
}

void write_checkpoint(const std::filesystem::path& file, const Checkpoint& checkpoint, const SavePoint& point, Durability durability, FileSystem& file_system) {
  write_archive(file, root_of(checkpoint), record_of(point), durability, file_system);
}

void write_model(const std::filesystem::path& file, const StateDict& model_state, int64_t index, Durability durability, FileSystem& file_system) {
  write_archive(file, model_state, record_of_model(index), durability, file_system);
}

}  // namespace marlin
