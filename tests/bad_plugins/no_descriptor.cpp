// A shared library that is no plugin: it exports something else.
extern "C" __attribute__((visibility("default"))) int marlin_plugin_of_another_kind;
int marlin_plugin_of_another_kind = 1;
