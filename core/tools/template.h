// The files that a new plugin begins with.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace marlin::plugin_tool {

/// The kinds of plugins there are templates for.
[[nodiscard]] const std::vector<std::string>& template_kinds();

/// What stands in the templates for the plugin's name: "mean_loss" -> "MeanLoss". A word for the kind at its end is left out.
[[nodiscard]] std::string class_of(const std::string& name, const std::string& kind);

/// Writes the project of that kind into `folder`, which is made. @return the files, relative to it.
/// @throws Error kNotFound: the templates are not installed; kIo.
std::vector<std::string> write_project(const std::filesystem::path& folder, const std::string& name, const std::string& kind);

/// The prefix that this program was installed to; empty: it was not.
[[nodiscard]] std::filesystem::path install_prefix();

}  // namespace marlin::plugin_tool
