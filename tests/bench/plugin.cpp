// plugin: what a plugin costs: found, checked, loaded and made, once; and each call through the seam, over a direct call.
//
// What is loaded stays loaded, so each block loads a copy of the plugin `safetensors` from a folder of its own, as the first
// program does that uses it; LibTorch, libmarlin and the file are in memory by then. The calls do nothing.
#include <marlin/core/plugin_host.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>

#include "bench.h"

namespace marlin::bench {
namespace {

namespace fs = std::filesystem;

constexpr int kBlocks = 41, kCalls = 20000;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class Folder {
 public:
  Folder() : path_(fs::path(option("dir", fs::temp_directory_path().string())) / ("marlin_bench_plugin_" + std::to_string(::getpid()))) { fs::create_directories(path_); }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Does nothing in its hooks, and lets them be called without the seam.
class Idle : public AbstractCheckpointer {
 public:
  using AbstractCheckpointer::is_due;
  std::vector<std::string> do_save(const Checkpoint&, const SavePoint&) override { return {}; }
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override { return {}; }
  Checkpoint do_load(const LoadRequest&) override { return {}; }
  bool is_due(const SavePoint& point) const override { return point.index >= 0; }
};

template <class Call>
Contender repeated(const std::string& name, Call call) {
  return {name, [call] {
            const auto start = std::chrono::steady_clock::now();
            for (int i = 0; i < kCalls; ++i) call();
            return seconds_since(start) / kCalls;
          }};
}

Contender start_up(const Folder& folder) {
  return {"find_check_load_make", [&folder, number = 0]() mutable {
            const fs::path own = folder.path() / std::to_string(number++);
            fs::create_directories(own);
            fs::copy_file(MARLIN_BINARY_DIR "/lib/marlin/plugins/libsafetensors.so", own / "libsafetensors.so");
            const auto start = std::chrono::steady_clock::now();
            PluginHost host({own.string()}, {});
            const LoadedPlugin& plugin = host.load("safetensors", PluginKind::kCheckpointer);
            const auto checkpointer = host.make_checkpointer(plugin, Options(plugin.options));
            const double seconds = seconds_since(start);
            if (plugin.file != own / "libsafetensors.so") throw std::runtime_error("another file was loaded");
            return seconds;
          }};
}

double added(const Contender& through, const Contender& direct) {
  std::vector<double> differences;
  for (size_t i = 0; i < through.seconds.size(); ++i) differences.push_back(through.seconds[i] - direct.seconds[i]);
  return median(differences);
}

}  // namespace

bool plugin() {
  const Folder folder;
  Idle idle;
  idle.set_seam(std::make_shared<const Seam>("plugin 'idle' (libidle.so)", true));
  const Checkpoint checkpoint;
  const SavePoint point;
  // Through pointers that the compiler cannot see through, as the host's are.
  Idle* volatile direct = &idle;
  AbstractCheckpointer* volatile host = &idle;
  std::vector<Contender> contenders = {start_up(folder),
                                       repeated("is_due_direct", [&] { static_cast<void>(direct->is_due(point)); }),
                                       repeated("is_due_through_seam", [&] { static_cast<void>(host->due(point)); }),
                                       repeated("save_direct", [&] { direct->do_save(checkpoint, point); }),
                                       repeated("save_through_seam", [&] { host->save(checkpoint, point); })};
  run_interleaved(contenders, blocks(kBlocks));

  print_machine("plugin", "warmup=1 blocks=" + std::to_string(blocks(kBlocks)) + " calls_per_block=" + std::to_string(kCalls));
  print_csv_header("us");
  for (const Contender& contender : contenders) print_csv("plugin", contender, 1e6);
  bool ok = print_bound("plugin", "find + check + load + make, ms", median(contenders[0].seconds) * 1e3, 5.0);
  ok &= print_bound("plugin", "due() through the seam - direct, us", added(contenders[2], contenders[1]) * 1e6, 1.0);
  ok &= print_bound("plugin", "save() through the seam - direct, us", added(contenders[4], contenders[3]) * 1e6, 1.0);
  return ok;
}

}  // namespace marlin::bench
