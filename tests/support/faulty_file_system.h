// A file system whose calls fail when they are told to, and which can forget all that was not synced, as a power cut does.
#pragma once

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "marlin/checkpointers/file_system.h"

namespace marlin::testing {

enum class FsOp : uint8_t { kCreate, kReserve, kWrite, kFlush, kSync, kClose, kRename, kRemove, kSyncDirectory, kMakeDirectories, kFreeSpace, kList };

/// What a power cut leaves of names and bytes that were not synced. A careful program survives each.
enum class Unsynced : uint8_t {
  kLost,        ///< Neither names nor bytes.
  kNamesStay,   ///< New names, and files that are empty or as they were synced last.
  kHalfStays,   ///< New names, and the first half of the bytes.
};

/// Works on real folders, through the system's own calls. Folders themselves are never lost. Any thread.
class FaultyFileSystem final : public FileSystem {
 public:
  /// The n-th call from now, from 0, fails.
  void fail_call(int64_t n, int error) { with_lock([&] { at_call_ = {log_.size() + static_cast<size_t>(n), error}; }); }
  /// The next call of that kind fails.
  void fail_next(FsOp op, int error) { with_lock([&] { next_of_[op] = error; }); }
  /// From the n-th call on, from 0, nothing is done any more: each fails with EIO, until crash().
  void cut_power_at(int64_t n) { with_lock([&] { power_until_ = log_.size() + static_cast<size_t>(n); }); }
  /// A write takes at most so many bytes.
  void limit_writes(size_t bytes) { write_limit_ = bytes; }
  void set_free_space(uint64_t bytes) { free_space_ = bytes; }

  /// The calls so far, in their order.
  [[nodiscard]] std::vector<FsOp> log() const {
    const std::lock_guard lock(mutex_);
    return log_;
  }

  /// Power is cut and comes back. Files that are open are lost.
  void crash(Unsynced unsynced) {
    const std::lock_guard lock(mutex_);
    for (const auto& [path, node] : current_) std::filesystem::remove(path);
    std::map<std::filesystem::path, std::string> left;
    for (const auto& [path, node] : unsynced == Unsynced::kLost ? durable_ : current_) {
      left[path] = unsynced == Unsynced::kHalfStays && !node->all_synced ? node->written.substr(0, node->written.size() / 2) : node->synced;
    }
    for (const auto& [path, content] : left) std::ofstream(path, std::ios::binary) << content;
    current_.clear();
    durable_.clear();
    folders_.clear();
    power_until_.reset();
  }

 private:
  // A file's bytes: what is on the device for certain, and what was written.
  struct Node {
    std::string synced, written;
    bool all_synced = false;
  };
  using NodePtr = std::shared_ptr<Node>;
  class File;

  template <class Call>
  void with_lock(const Call& call) const {
    const std::lock_guard lock(mutex_);
    call();
  }

  // Counts the call; what it is to fail with.
  int begin(FsOp op) const {
    const std::lock_guard lock(mutex_);
    const size_t number = log_.size();
    log_.push_back(op);
    if (power_until_ && number >= *power_until_) return EIO;
    if (at_call_ && at_call_->first == number) return at_call_->second;
    const auto at = next_of_.find(op);
    return at == next_of_.end() ? 0 : next_of_.extract(at).mapped();
  }

  // What was in a folder before this file system was used on it is on the device.
  void know(const std::filesystem::path& folder) {
    if (!folders_.emplace(folder, true).second) return;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream stream(entry.path(), std::ios::binary);
      const auto node = std::make_shared<Node>(Node{std::string(std::istreambuf_iterator<char>(stream), {}), {}, true});
      current_[entry.path()] = durable_[entry.path()] = node;
    }
  }

  int do_create(const std::filesystem::path& path, const std::filesystem::path& said, std::unique_ptr<WritableFile>& file) override;
  int do_rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
    if (const int error = begin(FsOp::kRename); error != 0) return error;
    const std::lock_guard lock(mutex_);
    know(from.parent_path());
    know(to.parent_path());
    posix_file_system().rename(from, to);
    current_[to] = current_.at(from);
    current_.erase(from);
    return 0;
  }
  int do_remove(const std::filesystem::path& path) override {
    if (const int error = begin(FsOp::kRemove); error != 0) return error;
    const std::lock_guard lock(mutex_);
    know(path.parent_path());
    posix_file_system().remove(path);
    current_.erase(path);
    return 0;
  }
  int do_sync_directory(const std::filesystem::path& folder) override {
    if (const int error = begin(FsOp::kSyncDirectory); error != 0) return error;
    const std::lock_guard lock(mutex_);
    std::erase_if(durable_, [&](const auto& entry) { return entry.first.parent_path() == folder; });
    for (const auto& [path, node] : current_) {
      if (path.parent_path() == folder) durable_[path] = node;
    }
    return 0;
  }
  int do_make_directories(const std::filesystem::path& folder) override {
    if (const int error = begin(FsOp::kMakeDirectories); error != 0) return error;
    posix_file_system().make_directories(folder);
    return 0;
  }
  int do_free_space(const std::filesystem::path& folder, uint64_t& size_bytes) const override {
    if (const int error = begin(FsOp::kFreeSpace); error != 0) return error;
    size_bytes = free_space_ ? *free_space_ : posix_file_system().free_space(folder);
    return 0;
  }
  int do_list(const std::filesystem::path& folder, std::vector<std::string>& names) const override {
    if (const int error = begin(FsOp::kList); error != 0) return error;
    names = posix_file_system().list(folder);
    return 0;
  }

  mutable std::mutex mutex_;
  mutable std::vector<FsOp> log_;
  mutable std::map<FsOp, int> next_of_;
  std::optional<std::pair<size_t, int>> at_call_;
  std::optional<size_t> power_until_;
  size_t write_limit_ = SIZE_MAX;
  std::optional<uint64_t> free_space_;
  std::map<std::filesystem::path, bool> folders_;
  std::map<std::filesystem::path, NodePtr> current_, durable_;  // by name: now, and after a power cut
};

class FaultyFileSystem::File final : public WritableFile {
 public:
  File(FaultyFileSystem& file_system, const std::filesystem::path& said, std::unique_ptr<WritableFile> real, NodePtr node)
      : WritableFile(file_system, said), fs_(file_system), real_(std::move(real)), node_(std::move(node)) {}

 private:
  int do_reserve(uint64_t size_bytes) override {
    if (const int error = fs_.begin(FsOp::kReserve); error != 0) return error;
    real_->reserve(size_bytes);
    fs_.with_lock([&] { node_->written.resize(size_bytes); });
    return 0;
  }
  int do_write_at(uint64_t offset, std::span<const std::byte> bytes, size_t& written) override {
    if (const int error = fs_.begin(FsOp::kWrite); error != 0) return error;
    written = std::min(bytes.size(), fs_.write_limit_);
    real_->write_at(offset, bytes.first(written));
    fs_.with_lock([&] {
      if (node_->written.size() < offset + written) node_->written.resize(offset + written);
      node_->written.replace(offset, written, reinterpret_cast<const char*>(bytes.data()), written);
      node_->all_synced = false;
    });
    return 0;
  }
  int do_start_flush(uint64_t, uint64_t) override { return fs_.begin(FsOp::kFlush); }
  int do_sync() override {
    if (const int error = fs_.begin(FsOp::kSync); error != 0) return error;
    fs_.with_lock([&] {
      node_->synced = node_->written;
      node_->all_synced = true;
    });
    return 0;
  }
  int do_close() override {
    if (const int error = fs_.begin(FsOp::kClose); error != 0) return error;
    real_->close();
    return 0;
  }

  FaultyFileSystem& fs_;
  std::unique_ptr<WritableFile> real_;
  NodePtr node_;
};

inline int FaultyFileSystem::do_create(const std::filesystem::path& path, const std::filesystem::path& said, std::unique_ptr<WritableFile>& file) {
  if (const int error = begin(FsOp::kCreate); error != 0) return error;
  const std::lock_guard lock(mutex_);
  know(path.parent_path());
  std::unique_ptr<WritableFile> real = posix_file_system().create(path);
  const auto node = std::make_shared<Node>();
  current_[path] = node;
  file = std::make_unique<File>(*this, said, std::move(real), node);
  return 0;
}

}  // namespace marlin::testing
