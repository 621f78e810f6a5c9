// What a power cut would leave of a folder: of bytes and of names, those that were synced.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "system_faults.h"

namespace marlin::testing::detail {

/// Follows what is on disk from the first time that it is armed, and looks, whenever it is disarmed, at the regular files that were
/// made or changed since it was last armed: their bytes must have been synced after the last write, and the folders that lead to them
/// after the name came there. Which file a call is about is told by device and inode, so that it may be renamed meanwhile.
/// Not heard of: truncate() by name, and what is written through a mapping to a file that was synced before.
class DiskWatch final : public CallListener {
 public:
  /// @param folder  is there.
  explicit DiskWatch(std::filesystem::path folder) : folder_(std::move(folder)) {}

  void armed() override;
  void before(const PendingCall& call) override;
  void disarmed() override;

  /// The first file that a power cut would take back, in a sentence that says why; empty: none.
  [[nodiscard]] const std::string& problem() const noexcept { return problem_; }
  /// Files that were looked at.
  [[nodiscard]] size_t num_files() const noexcept { return num_files_; }

 private:
  struct FileId {
    dev_t device;
    ino_t inode;
    auto operator<=>(const FileId&) const = default;
  };
  using Names = std::map<std::string, FileId>;

  static std::optional<FileId> id_of(const std::filesystem::path& path);
  static Names names_in(const std::filesystem::path& folder);

  void wrote(const std::filesystem::path& file, bool through);
  void synced(const std::filesystem::path& path);
  void synced_all();
  [[nodiscard]] std::string loss_of(const std::filesystem::path& name) const;
  [[nodiscard]] std::string lost_name(const std::filesystem::path& name) const;

  const std::filesystem::path folder_;
  std::map<FileId, Names> names_;           // of each folder, as it was synced last
  std::set<FileId> synced_, dirty_;         // files that were synced after the last write, and that were not
  std::set<FileId> written_;                // since it was armed
  std::map<std::string, FileId> at_first_;  // files when it was armed, by relative path
  std::string problem_;
  size_t num_files_ = 0;
};

}  // namespace marlin::testing::detail
