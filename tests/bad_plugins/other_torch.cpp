// Built for another LibTorch and in another way, so that its symbols would not be found either.
#include "marlin/sdk/plugin.h"

extern "C" marlin::AbstractCheckpointer* marlin_test_function_of_another_torch();

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return marlin_test_function_of_another_torch(); }

extern "C" __attribute__((visibility("default"))) const marlin::PluginDescriptor marlin_plugin;
constinit const marlin::PluginDescriptor marlin_plugin{
    .facts = {.torch_major = 99, .torch_minor = 1, .cxx11_abi = 7, .glibcxx_debug = 8, .sanitizer = 9},
    .info = {.name = "other_torch", .version = "1", .make_checkpointer = &make}};
