#include "folder_check.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "marlin/checkpointers/durable_file.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void refuse_folder(std::string_view option, const fs::path& folder, const std::string& why) {
  throw Error(Errc::kInvalidArgument, concat("checkpointer.", option, ": cannot write to '", folder.string(), "': ", why));
}

// What was made below a folder that was there is to outlive a power cut, or no checkpoint in it does.
void sync_made(const fs::path& existing, const fs::path& folder) {
  for (fs::path made = folder; made != existing && made.has_relative_path(); made = made.parent_path()) posix_file_system().sync_directory(made.parent_path());
}

}  // namespace

void check_writable(std::string_view option, const fs::path& folder, bool create) {
  const fs::path whole = fs::absolute(folder).lexically_normal();
  fs::path existing = whole;
  std::error_code error;
  while (!fs::exists(fs::symlink_status(existing, error)) && existing.has_relative_path()) existing = existing.parent_path();
  if (!fs::is_directory(existing, error)) {
    // Below a file even asking fails, so climb to the file itself.
    while (existing.has_relative_path() && fs::is_directory(existing.parent_path(), error) == false) existing = existing.parent_path();
    refuse_folder(option, folder, concat("'", existing.string(), "' is not a folder"));
  }
  if (!create && !fs::is_directory(folder, error)) refuse_folder(option, folder, "it is not there, and create_dir is false");
  fs::create_directories(folder, error);
  if (error) refuse_folder(option, folder, concat("it cannot be made in '", existing.string(), "': ", error.message()));
  try {
    sync_made(existing, whole);
  } catch (const Error& problem) {
    refuse_folder(option, folder, problem.what());
  }
  const fs::path probe = folder / temporary_name(kWriteProbe);
  const int file = ::open(probe.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (file < 0) refuse_folder(option, folder, std::strerror(errno));
  ::close(file);
  ::unlink(probe.c_str());
}

LogLevel log_level_of(const std::string& name) {
  static const std::vector<std::string> kLevels = {"DEBUG", "INFO", "WARNING", "ERROR", "OFF"};
  const auto found = std::find(kLevels.begin(), kLevels.end(), name);
  if (found == kLevels.end()) throw Error(Errc::kInvalidArgument, concat("checkpointer.log_level: must be one of ", join(kLevels), ", got '", name, "'"));
  return static_cast<LogLevel>(found - kLevels.begin());
}

}  // namespace marlin
