// What is looked at before the first save into a folder.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "marlin/sdk/logger.h"

namespace marlin {

/// The name of the file that check_writable() makes for a moment, should it be killed meanwhile.
inline constexpr std::string_view kWriteProbe = "probe";

/// Makes the folder if it is not there, and a file in it for a moment: permissions alone do not tell of a read-only file system or of
/// /proc. @param option  how messages name it. @param create  false: it has to be there.
/// @throws Error kInvalidArgument: it is no folder, or cannot be made or written to.
void check_writable(std::string_view option, const std::filesystem::path& folder, bool create);

/// Of the option log_level: DEBUG, INFO, WARNING, ERROR or OFF, in this order. @throws Error kInvalidArgument: another word.
[[nodiscard]] LogLevel log_level_of(const std::string& name);

}  // namespace marlin
