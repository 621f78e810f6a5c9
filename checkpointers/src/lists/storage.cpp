#include "marlin/checkpointers/storage.h"

#include <system_error>

#include "folder_check.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace fs = std::filesystem;

Storage::~Storage() = default;
void Storage::prepare(const std::function<bool(std::string_view)>&) {}
void Storage::point(const std::string&, const std::string&) {}
std::string Storage::where(const std::string& name) const { return name; }

DiskStorage::DiskStorage(const fs::path& folder, bool create, const HostContext& host) : folder_(host.in_run_dir(folder)), create_(create), file_system_(file_system_of(host)) {
  if (folder.empty()) throw Error(Errc::kInvalidArgument, "checkpointer.save_dir: must not be empty; '.' is the working directory");
}

std::string DiskStorage::put(const std::string& name, const StateDict& root, const CommitRecord& record) {
  write_archive(folder_ / name, root, record, Durability::kDurable, file_system_);
  return where(name);
}

Archive DiskStorage::get(const std::string& name, Verify verify) const { return read_archive(folder_ / name, verify); }

std::vector<std::string> DiskStorage::list() const {
  std::vector<std::string> names;
  for (std::string& name : file_system_.list(folder_)) {
    std::error_code error;
    if (!name.starts_with('.') && fs::is_regular_file(fs::symlink_status(folder_ / name, error))) names.push_back(std::move(name));
  }
  return names;
}

bool DiskStorage::remove(const std::string& name) {
  std::error_code error;
  const bool there = fs::exists(fs::symlink_status(folder_ / name, error));
  file_system_.remove(folder_ / name);
  return there;
}

void DiskStorage::prepare(const std::function<bool(std::string_view)>& owns) {
  check_writable("save_dir", folder_, create_);
  remove_stale_temporaries(folder_, [&](std::string_view name) { return name == kWriteProbe || owns(name); });
}

void DiskStorage::point(const std::string& link, const std::string& name) {
  std::error_code error;
  const fs::file_status there = fs::symlink_status(folder_ / link, error);
  if (fs::exists(there) && !fs::is_symlink(there)) throw Error(Errc::kIo, concat((folder_ / link).string(), " is a file, so it cannot become a link to ", name));
  const fs::path temporary = folder_ / temporary_name(link);
  file_system_.remove(temporary);
  file_system_.symlink(name, temporary);
  file_system_.rename(temporary, folder_ / link);
}

std::string DiskStorage::where(const std::string& name) const { return (folder_ / name).string(); }

}  // namespace marlin
