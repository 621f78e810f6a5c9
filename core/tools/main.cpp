// marlin-plugin: starts plugins, lists them, tells what they say of themselves, and checks them.
#include "commands.h"

int main(int argc, char** argv) {
  using namespace marlin::plugin_tool;
  return run_program({"marlin-plugin", "0 in order, 1 broken or refused, 2 usage", {new_command(), list_command(), info_command(), check_command()}}, argc, argv);
}
