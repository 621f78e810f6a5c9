// Exports a function of LibTorch's, as a plugin does that LibTorch was linked into.
#include "marlin/sdk/plugin.h"

extern "C" __attribute__((visibility("default"))) void own_allocator() __asm__("_ZN3c1012GetAllocatorERKNS_10DeviceTypeE");
void own_allocator() {}

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "holds_torch", .version = "1", .make_checkpointer = &make);
