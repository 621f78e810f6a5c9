// Built with the headers of an earlier libmarlin, whose descriptor was shorter.
#include <cstdint>

#include "marlin/sdk/abi.h"

extern "C" __attribute__((visibility("default"))) const struct {
  char magic[8];
  uint32_t size, abi, torch_major, torch_minor, cxx11_abi, glibcxx_debug, sanitizer;
} marlin_plugin = {{'M', 'A', 'R', 'L', 'I', 'N', 'P', '1'}, 36, marlin::kPluginAbi - 1, 2, 15, 1, 0, 0};
