// marlin-ckpt: looks at checkpoint files, compares, exports and prunes them.
#include "commands.h"

int main(int argc, char** argv) {
  using namespace marlin::ckpt;
  return run_program({"marlin-ckpt",
                      "0 whole or equal, 1 broken or different, 2 usage",
                      {ls_command(), inspect_command(), verify_command(), diff_command(), export_command(), prune_command()}},
                     argc, argv);
}
