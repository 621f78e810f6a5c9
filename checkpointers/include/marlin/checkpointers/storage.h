// Where checkpoints of names lie: four calls, and the disk as one way to carry them out.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/file_system.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/host.h"

namespace marlin {

/// A place for checkpoints under names without folders. One call at a time, but from different threads; where() at any time.
/// @par Source ignite BaseSaveHandler. Differs: it reads and lists, too.
class MARLIN_ABI Storage {
 public:
  Storage() = default;
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  virtual ~Storage();

  /// Keeps `root` under `name`, or fails and leaves what was there. What it returns is safe: others may be removed then.
  /// @param record  kind, index, step, metrics and score of it. @return where it is, as users are told.
  /// @note Borrows the state for the call: one that keeps it clones it.
  virtual std::string put(const std::string& name, const StateDict& root, const CommitRecord& record) = 0;
  /// @throws Error kNotFound, kCorrupt, kIo.
  [[nodiscard]] virtual Archive get(const std::string& name, Verify verify) const = 0;
  /// All names, in no order.
  [[nodiscard]] virtual std::vector<std::string> list() const = 0;
  /// @return whether it was there. @throws Error kIo.
  virtual bool remove(const std::string& name) = 0;

  /// Called when a run begins, so that what put() would say late is said early. Default: nothing.
  /// @param owns  whether a name is one that the caller writes: what a killed put() of such a name left may be cleared away.
  virtual void prepare(const std::function<bool(std::string_view)>& owns);
  /// Has `link` lead to `name`, for people to find it; a hint that nobody relies on. Default: nothing.
  virtual void point(const std::string& link, const std::string& name);
  /// How users are told where `name` is. Default: the name.
  [[nodiscard]] virtual std::string where(const std::string& name) const;
};

/// A folder of `.pt` files that torch.load(weights_only=True) opens; each appears whole or not at all, and durably.
/// @par Source ignite DiskSaver. Differs: syncs; the umask decides on permissions; a name that is gone already is not removed.
class MARLIN_ABI DiskStorage : public Storage {
 public:
  /// @param folder  relative ones start from the host's run_dir. @param create  false: prepare() wants it to be there.
  explicit DiskStorage(const std::filesystem::path& folder, bool create = true, const HostContext& host = {});

  std::string put(const std::string& name, const StateDict& root, const CommitRecord& record) override;
  [[nodiscard]] Archive get(const std::string& name, Verify verify) const override;
  /// Regular files only: no folders, no links, no temporary files. A folder that is not there has none.
  [[nodiscard]] std::vector<std::string> list() const override;
  bool remove(const std::string& name) override;
  /// @throws Error kInvalidArgument: the folder is missing, or cannot be made or written to.
  void prepare(const std::function<bool(std::string_view)>& owns) override;
  /// A relative symbolic link, replaced by a rename. @throws Error kIo; one that says that there is a file, not a link.
  void point(const std::string& link, const std::string& name) override;
  [[nodiscard]] std::string where(const std::string& name) const override;

  [[nodiscard]] const std::filesystem::path& folder() const noexcept { return folder_; }

 private:
  std::filesystem::path folder_;
  bool create_;
  FileSystem& file_system_;
};

}  // namespace marlin
