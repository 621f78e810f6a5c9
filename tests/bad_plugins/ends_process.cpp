// Ends the process, in the way and in the call that its options name.
#include <pthread.h>

#include <csignal>
#include <cstdlib>
#include <thread>

#include "bad_checkpointer.h"

// Not static, and read through a volatile: the compiler must not know.
static int* volatile nothing = nullptr;

static void throw_string() { throw std::string("not caught"); }
static void end_noexcept() noexcept { throw_string(); }

static void end(const std::string& how) {
  if (how == "exit") std::exit(3);
  if (how == "quick_exit") std::quick_exit(3);
  if (how == "_exit") std::_Exit(3);
  if (how == "null") *nothing = 1;
  if (how == "abort") std::abort();
  if (how == "negative") std::exit(-1);
  if (how == "pthread_exit") ::pthread_exit(nullptr);
  if (how == "thread_abort") std::thread([] { std::abort(); }).join();
  if (how == "thread_null") std::thread([] { *nothing = 1; }).join();
  if (how == "thread_throw") std::thread([] { throw 1; }).join();
  if (how == "noexcept") end_noexcept();
}

static void fault(std::string_view call, const marlin::Options& options) {
  if (options.text("call") == call) end(options.text("how"));
}
static marlin::OptionTable table() {
  return {{.name = "call", .default_value = "save", .help = "The call that ends the process."}, {.name = "how", .default_value = "exit", .help = "How."}};
}
static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options& options) {
  fault("make", options);
  return new bad::Checkpointer(&fault, options);
}

MARLIN_PLUGIN(.name = "ends_process", .version = "1", .options = &table, .make_checkpointer = &make);
