// Documents for scripts.
#pragma once

#include <nlohmann/json.hpp>

namespace marlin::tool {

using Json = nlohmann::ordered_json;

/// The number, or, as in marlin.json, "nan", "inf" or "-inf".
[[nodiscard]] Json to_json(double value);

/// Writes the one document of a call to standard output. Bytes that are not UTF-8, as names of files may hold, are replaced.
void print(const Json& document);

}  // namespace marlin::tool
