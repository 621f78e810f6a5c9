// Whose fault it was, in front of the reason.
#pragma once

#include <c10/util/Exception.h>

#include <filesystem>
#include <string>

#include "archive/report.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::archive {

/// What `call` returns; its Errors with the file in front. @param part  of the file, for what LibTorch refuses: "data.pkl: ".
template <class Call>
auto with_file_name(const std::filesystem::path& file, const Call& call, const std::string& part = {}) {
  try {
    return call();
  } catch (const Error& error) {
    throw Error(error.code(), concat(file.string(), ": ", error.what()));
  } catch (const c10::Error& error) {
    throw Error(Errc::kCorrupt, concat(file.string(), ": ", part, "LibTorch refuses a tensor: ", printable(error.what_without_backtrace())));
  }
}

}  // namespace marlin::archive
