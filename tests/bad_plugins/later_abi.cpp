// Built with the headers of a later libmarlin; its code leaves a trace if it runs.
#include <cstdlib>

#include "marlin/sdk/plugin.h"

static const int ran = ::setenv("MARLIN_TEST_PLUGIN_CODE_RAN", "later_abi", 1);

extern "C" __attribute__((visibility("default"))) const marlin::PluginDescriptor marlin_plugin;
constinit const marlin::PluginDescriptor marlin_plugin{.facts = {.abi = marlin::kPluginAbi + 1}, .info = {.name = "later_abi", .version = "1"}};
