// What a pickle may look up and call, and what comes of it. No LibTorch header.
#pragma once

#include <memory>
#include <string>

#include "archive/pickle_reader.h"

namespace marlin::archive {

inline constexpr const char* kPickleRecord = "data.pkl";

/// For every name that read_pickle() knows; no code of that name runs anywhere.
/// @throws Error kUnsupported that names any other.
[[nodiscard]] PickleValue allowed_global(const std::string& name);

/// The storage that a persistent id stands for: ("storage", type, key, location, number of elements).
[[nodiscard]] PickleValue storage_of(const PickleValue& id);

/// What calling `function` (a global) with `arguments` (a tuple) makes.
[[nodiscard]] PickleValue call_global(const PickleValue& function, const PickleValue& arguments);

}  // namespace marlin::archive
