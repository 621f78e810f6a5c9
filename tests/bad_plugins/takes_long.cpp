// Takes long to save: so many seconds or, if a file is named, until it is there.
#include <sys/stat.h>

#include <chrono>
#include <thread>

#include "bad_checkpointer.h"

static bool is_there(const std::string& file) {
  struct stat status {};
  return ::stat(file.c_str(), &status) == 0;
}

static void fault(std::string_view call, const marlin::Options& options) {
  using namespace std::chrono_literals;
  if (call != "save") return;
  const std::string file = options.text("until");
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(options.get<double>("seconds"));
  while (file.empty() ? std::chrono::steady_clock::now() < end : !is_there(file)) std::this_thread::sleep_for(10ms);
}
static marlin::OptionTable table() {
  return {{.name = "seconds", .type = marlin::OptionType::kDouble, .default_value = "10", .help = "How long a save takes."},
          {.name = "until", .default_value = "", .help = "Wait for this file instead."}};
}
static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options& options) { return new bad::Checkpointer(&fault, options); }

MARLIN_PLUGIN(.name = "takes_long", .version = "1", .options = &table, .make_checkpointer = &make);
