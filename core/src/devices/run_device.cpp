#include "devices/run_device.h"

#include <dlfcn.h>

#include <charconv>
#include <optional>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

constexpr const char* kCuda = "cuda";

bool is_cuda(const std::string& wanted) { return wanted == kCuda || wanted.starts_with("cuda:"); }

// Asks the driver itself, so that a run that ends up on the CPU has not loaded LibTorch's CUDA library.
bool driver_has_gpu() {
  void* driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return false;
  const auto init = reinterpret_cast<int (*)(unsigned)>(::dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(::dlsym(driver, "cuDeviceGetCount"));
  int number = 0;
  return init != nullptr && count != nullptr && init(0) == 0 && count(&number) == 0 && number > 0;
}

std::string names(int num_devices) { return num_devices == 1 ? "cuda:0" : concat("cuda:0 to cuda:", num_devices - 1); }

int index_of(const std::string& wanted, const launch::Ranks& ranks, int num_devices) {
  if (wanted == kCuda) {
    if (ranks.local_world_size <= num_devices) return ranks.local_rank;
    if (num_devices == 1 && (ranks.launcher == launch::Launcher::kSlurm || ranks.launcher == launch::Launcher::kMpi)) return 0;  // each may be shown its own
    throw Error(Errc::kInvalidArgument, concat("there are not enough GPUs: ", ranks.local_world_size, " processes run on this machine, and it has ", num_devices, " (",
                                               names(num_devices), "); start one process a GPU, or give --device cpu"));
  }
  int index = -1;
  const char* end = wanted.data() + wanted.size();
  const auto [parsed, error] = std::from_chars(wanted.data() + std::string_view("cuda:").size(), end, index);
  if (error != std::errc() || parsed != end || index < 0) throw Error(Errc::kInvalidArgument, "must be auto, cpu, cuda or cuda:N");
  if (index >= num_devices) throw Error(Errc::kInvalidArgument, concat("there is no such GPU: this process can use ", names(num_devices)));
  if (ranks.local_world_size > 1) {
    throw Error(Errc::kInvalidArgument, concat(ranks.local_world_size, " processes run on this machine, and each needs a GPU of its own: give --device cuda"));
  }
  return index;
}

std::unique_ptr<DeviceSupport> load_support(PluginHost& plugins) {
  const LoadedPlugin& plugin = plugins.load(kCuda, PluginKind::kDevice);
  return plugins.make_device(plugin, Options(plugin.options));
}

[[noreturn]] void refuse(const std::string& wanted, const Error& error) { throw Error(error.code(), concat("--device ", wanted, ": ", error.what())); }

RunDevice take_gpu(const std::string& wanted, const launch::Ranks& ranks, PluginHost& plugins) {
  RunDevice device{wanted, load_support(plugins)};
  const int index = index_of(wanted, ranks, device.support->num_devices());
  device.support->use(index);
  device.name = concat("cuda:", index);
  return device;
}

}  // namespace

RunDevice find_device(const std::string& wanted, const launch::Ranks& ranks, PluginHost& plugins, Logger& logger) {
  const bool automatic = wanted == "auto";
  if (!is_cuda(wanted) && !(automatic && driver_has_gpu())) return {automatic ? "cpu" : wanted};
  try {
    return take_gpu(automatic ? kCuda : wanted, ranks, plugins);
  } catch (const Error& error) {
    if (!automatic) refuse(wanted, error);
    logger.info("training on the CPU, although there is a GPU driver: ", error.what());
    return {};
  }
}

void check_device(const std::string& wanted, int num_ranks, PluginHost& plugins) {
  if (!is_cuda(wanted)) return;
  launch::Ranks last;
  last.rank = last.local_rank = num_ranks - 1;
  last.world_size = last.local_world_size = num_ranks;
  last.launcher = launch::Launcher::kLocal;
  try {
    static_cast<void>(index_of(wanted, last, load_support(plugins)->num_devices()));
  } catch (const Error& error) {
    refuse(wanted, error);
  }
}

}  // namespace marlin
