// How a shared library says that it is a plugin of libmarlin.
#pragma once

#include <torch/headeronly/version.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/options.h"

#if defined(__has_feature)
#define MARLIN_CLANG_HAS(feature) __has_feature(feature)
#else
#define MARLIN_CLANG_HAS(feature) 0
#endif

namespace marlin {

class AbstractCheckpointer;
class DeviceSupport;
class TrainerBackend;
class Writer;

/// A text that lies in place, so that it can be read from a plugin's file before the plugin is loaded.
class PluginText {
 public:
  constexpr PluginText() = default;
  /// From a literal of at most 63 bytes; a longer one does not compile.
  consteval PluginText(const char* text) : PluginText(cut(text)) {
    if (std::string_view(text).size() >= sizeof bytes_) throw "a text in a plugin's descriptor has at most 63 bytes";
  }
  [[nodiscard]] static consteval PluginText cut(std::string_view text) {
    PluginText result;
    for (size_t i = 0; i + 1 < sizeof bytes_ && i < text.size(); ++i) result.bytes_[i] = text[i];
    return result;
  }
  [[nodiscard]] constexpr std::string_view view() const {
    size_t size = 0;
    while (size < sizeof bytes_ && bytes_[size] != '\0') ++size;
    return {bytes_, size};
  }

 private:
  char bytes_[64] = {};
};

/// What the author of a plugin fills in, by name: MARLIN_PLUGIN(.name = "mine", .version = "1.0", .make_checkpointer = &make).
/// Exactly one make_ function is set; it says of what kind the plugin is. What it returns is owned by the host.
struct PluginInfo {
  PluginText name = {};     ///< The `mine` of libmine.so.
  PluginText version = {};
  OptionTable (*options)() = nullptr;  ///< What the plugin's options are; null: it has none.
  AbstractCheckpointer* (*make_checkpointer)(HostContext& host, const Options& options) = nullptr;
  TrainerBackend* (*make_backend)(HostContext& host, const Options& options) = nullptr;
  Writer* (*make_writer)(HostContext& host, const Options& options) = nullptr;
  DeviceSupport* (*make_device)(HostContext& host, const Options& options) = nullptr;
};

/// How a library was built. The first six must agree between a plugin and its host; they stay where they are for ever, so that any
/// host can read them of any plugin. The rest is only told.
struct BuildFacts {
  uint32_t abi = kPluginAbi;
  uint32_t torch_major = TORCH_VERSION_MAJOR;
  uint32_t torch_minor = TORCH_VERSION_MINOR;
  uint32_t cxx11_abi = _GLIBCXX_USE_CXX11_ABI;
#ifdef _GLIBCXX_DEBUG
  uint32_t glibcxx_debug = 1;
#else
  uint32_t glibcxx_debug = 0;
#endif
#if defined(__SANITIZE_ADDRESS__) || MARLIN_CLANG_HAS(address_sanitizer)
  uint32_t sanitizer = 1;
#elif defined(__SANITIZE_THREAD__) || MARLIN_CLANG_HAS(thread_sanitizer)
  uint32_t sanitizer = 2;
#else
  uint32_t sanitizer = 0;
#endif
#ifdef NDEBUG
  uint32_t ndebug = 1;
#else
  uint32_t ndebug = 0;
#endif
#ifdef CUDART_VERSION
  uint32_t cuda = CUDART_VERSION;
#else
  uint32_t cuda = 0;  ///< Built without CUDA's headers.
#endif
  uint32_t cxx_standard = __cplusplus;  ///< 202002: C++20.
#if defined(__clang__)
  PluginText compiler = PluginText::cut("clang " __clang_version__);
#else
  PluginText compiler = PluginText::cut("g++ " __VERSION__);
#endif
  PluginText marlin = MARLIN_VERSION;
  PluginText torch = PluginText::cut(TORCH_VERSION);
};

enum class PluginKind : uint8_t { kCheckpointer, kBackend, kWriter, kDevice };
inline constexpr PluginKind kPluginKinds[] = {PluginKind::kCheckpointer, PluginKind::kBackend, PluginKind::kWriter, PluginKind::kDevice};
[[nodiscard]] MARLIN_ABI const char* to_string(PluginKind kind) noexcept;  ///< "checkpointer", "backend", "writer" or "device"

/// The exported descriptor. Plain data, constant-initialised: the host reads it before it calls anything.
struct PluginDescriptor {
  char magic[8] = {'M', 'A', 'R', 'L', 'I', 'N', 'P', '1'};
  uint32_t size = sizeof(PluginDescriptor);
  BuildFacts facts = {};
  uint32_t kinds = 0;  ///< Bit k: it makes what PluginKind k is.
  PluginInfo info;
};

[[nodiscard]] consteval PluginDescriptor describe(const PluginInfo& info) {
  const auto bit = [](PluginKind kind) { return 1U << static_cast<unsigned>(kind); };
  const uint32_t kinds = (info.make_checkpointer ? bit(PluginKind::kCheckpointer) : 0) | (info.make_backend ? bit(PluginKind::kBackend) : 0) |
                         (info.make_writer ? bit(PluginKind::kWriter) : 0) | (info.make_device ? bit(PluginKind::kDevice) : 0);
  return {.kinds = kinds, .info = info};
}

}  // namespace marlin

/// Once in a plugin, at namespace scope.
#define MARLIN_PLUGIN(...)                                                              \
  extern "C" __attribute__((visibility("default"))) const ::marlin::PluginDescriptor marlin_plugin; \
  constinit const ::marlin::PluginDescriptor marlin_plugin = ::marlin::describe(::marlin::PluginInfo{__VA_ARGS__})
