// Work that is worth a second thread. No LibTorch header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace marlin::archive {

/// Below this many bytes a second thread costs more than it brings.
inline constexpr uint64_t kWorthAThread = uint64_t{4} << 20;

/// Calls work(i) once for every i below `count`, in this order as far as it goes: from this thread and, if `two`, from one more.
/// What work() throws stops both and is thrown here when both have stopped; of two exceptions that of the smaller i.
void for_each_on_two_threads(size_t count, bool two, const std::function<void(size_t)>& work);

}  // namespace marlin::archive
