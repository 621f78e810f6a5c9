// How a shared library says that it is a plugin of libmarlin.
#pragma once

#include <torch/headeronly/version.h>

#include <cstdint>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/options.h"

namespace marlin {

class AbstractCheckpointer;
class TrainerBackend;
class Writer;

/// What the author of a plugin fills in, by name: MARLIN_PLUGIN(.name = "mine", .version = "1.0", .make_checkpointer = &make).
/// Exactly one make_ function is set; it says of what kind the plugin is. What it returns is owned by the host.
struct PluginInfo {
  const char* name = nullptr;     ///< The `mine` of libmine.so.
  const char* version = nullptr;
  OptionTable (*options)() = nullptr;  ///< What the plugin's options are; null: it has none.
  AbstractCheckpointer* (*make_checkpointer)(HostContext& host, const Options& options) = nullptr;
  TrainerBackend* (*make_backend)(HostContext& host, const Options& options) = nullptr;
  Writer* (*make_writer)(HostContext& host, const Options& options) = nullptr;
};

/// How a library was built: what must agree between a plugin and its host.
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
#if defined(__SANITIZE_ADDRESS__)
  uint32_t sanitizer = 1;
#elif defined(__SANITIZE_THREAD__)
  uint32_t sanitizer = 2;
#else
  uint32_t sanitizer = 0;
#endif
};

/// The exported descriptor. Plain data, constant-initialised: the host reads it before it calls anything.
struct PluginDescriptor {
  char magic[8] = {'M', 'A', 'R', 'L', 'I', 'N', 'P', '1'};
  uint32_t size = sizeof(PluginDescriptor);
  BuildFacts facts = {};
  PluginInfo info;
};

}  // namespace marlin

/// Once in a plugin, at namespace scope.
#define MARLIN_PLUGIN(...)                                                              \
  extern "C" __attribute__((visibility("default"))) const ::marlin::PluginDescriptor marlin_plugin; \
  constinit const ::marlin::PluginDescriptor marlin_plugin { .info = {__VA_ARGS__} }
