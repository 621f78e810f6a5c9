#include "disk_watch.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <system_error>

#include "marlin/sdk/text.h"

namespace marlin::testing::detail {
namespace {

namespace fs = std::filesystem;

fs::path opened_by(const PendingCall& call) { return concat("/proc/", call.thread, "/fd/", call.descriptor); }

// Whether it was opened so that a write returns when it is on disk.
bool writes_through(const PendingCall& call) {
  std::ifstream facts(concat("/proc/", call.thread, "/fdinfo/", call.descriptor));
  std::string name;
  while (facts >> name && name != "flags:") {}
  int flags = 0;
  return facts >> std::oct >> flags && (flags & O_DSYNC) != 0;
}

// The file of which a part is mapped there; empty: none.
fs::path mapped_at(int64_t thread, uint64_t address) {
  std::ifstream maps(concat("/proc/", thread, "/maps"));
  for (std::string line; std::getline(maps, line);) {
    uint64_t from = 0, to = 0;
    int path = 0;
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %*s %*s %*s %*s %n", &from, &to, &path) == 2 && from <= address && address < to) return line.substr(static_cast<size_t>(path));
  }
  return {};
}

// Whatever is below a folder, with the name that it has there. Files may come and go meanwhile.
template <class Visit>
void each_below(const fs::path& folder, const Visit& visit) {
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    visit(entry->path(), entry->symlink_status(error));
  }
}

}  // namespace

std::optional<DiskWatch::FileId> DiskWatch::id_of(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return FileId{status.st_dev, status.st_ino};
}

DiskWatch::Names DiskWatch::names_in(const fs::path& folder) {
  Names names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (const auto id = id_of(folder / entry->path().filename())) names.emplace(entry->path().filename().string(), *id);
  }
  return names;
}

void DiskWatch::armed() {
  if (names_.empty()) synced_all();  // what is there before anything is watched
  written_.clear();
  at_first_.clear();
  each_below(folder_, [&](const fs::path& path, fs::file_status) {
    if (const auto id = id_of(path)) at_first_.emplace(path.lexically_relative(folder_).string(), *id);
  });
}

void DiskWatch::before(const PendingCall& call) {
  switch (call.call.effect) {
    case Effect::kNone: return;
    case Effect::kWrites: return wrote(opened_by(call), writes_through(call));
    case Effect::kSyncs: return synced(opened_by(call));
    case Effect::kSyncsMapped:
      if ((call.arguments[2] & MS_SYNC) != 0) synced(mapped_at(call.thread, call.arguments[0]));
      return;
    case Effect::kSyncsAll: return synced_all();
  }
}

void DiskWatch::wrote(const fs::path& file, bool through) {
  const auto id = id_of(file);
  if (!id) return;
  written_.insert(*id);
  std::error_code error;
  if (fs::file_size(file, error) == 0) dirty_.erase(*id);  // it may have the inode of one that is gone
  if (through && !dirty_.contains(*id)) {
    synced_.insert(*id);
  } else if (!through) {
    dirty_.insert(*id);
    synced_.erase(*id);
  }
}

void DiskWatch::synced(const fs::path& path) {
  const auto id = id_of(path);
  if (!id) return;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    names_[*id] = names_in(path);
  } else {
    synced_.insert(*id);
    dirty_.erase(*id);
  }
}

void DiskWatch::synced_all() {
  synced(folder_);
  each_below(folder_, [&](const fs::path& path, fs::file_status status) {
    if (!fs::is_symlink(status)) synced(path);
  });
}

void DiskWatch::disarmed() {
  std::string first;
  size_t lost = 0;
  each_below(folder_, [&](const fs::path& path, fs::file_status status) {
    const auto id = id_of(path);
    if (!id || !fs::is_regular_file(status)) return;
    const fs::path name = path.lexically_relative(folder_);
    const auto before = at_first_.find(name.string());
    if (before != at_first_.end() && before->second == *id && !written_.contains(*id)) return;
    ++num_files_;
    const std::string loss = loss_of(name);
    if (!loss.empty() && ++lost == 1) first = concat("'", name.string(), "': ", loss);
  });
  if (lost == 0 || !problem_.empty()) return;
  problem_ = lost == 1 ? first : concat(first, " (and so with ", lost - 1, lost == 2 ? " other file)" : " other files)");
}

// An empty file has no bytes to lose.
std::string DiskWatch::loss_of(const fs::path& name) const {
  const auto id = id_of(folder_ / name);
  std::error_code error;
  const bool lost_bytes = id && !synced_.contains(*id) && fs::file_size(folder_ / name, error) > 0 && !error;
  const std::string bytes = lost_bytes ? "its bytes were not synced after the last write" : "", at = lost_name(name);
  return concat(bytes, bytes.empty() || at.empty() ? "" : ", and ", at);
}

// Along the folders that lead to a file, those of the watched folder included.
std::string DiskWatch::lost_name(const fs::path& name) const {
  fs::path folder;
  for (const fs::path& part : name) {
    const auto holder = id_of(folder_ / folder), id = id_of(folder_ / folder / part);
    if (!holder || !id) return {};  // gone meanwhile
    const auto names = names_.find(*holder);
    const bool is_there = names != names_.end() && names->second.contains(part.string()) && names->second.at(part.string()) == *id;
    if (!is_there) return concat("the folder '", folder.empty() ? "." : folder.string(), "' was not synced after the name '", part.string(), "' came there");
    folder /= part;
  }
  return {};
}

}  // namespace marlin::testing::detail
