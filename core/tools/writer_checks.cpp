// What is checked of a writer: that it takes whatever a Trainer gives it.
#include <limits>

#include "marlin/sdk/text.h"
#include "plugin_under_check.h"

namespace marlin::plugin_tool {
namespace {

namespace fs = std::filesystem;
using Kind = MetricsEvent::Kind;

MetricsEvent event(Kind kind, int64_t global_step) {
  MetricsEvent result{.kind = kind, .epoch = global_step / 10, .global_step = global_step, .metrics = {}};
  result.metrics.set(kind == Kind::kValidation ? "val/other/accuracy" : "train/loss", 1.0 / static_cast<double>(global_step + 1));
  return result;
}

size_t files_in(const fs::path& folder) {
  size_t count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) count += entry.is_regular_file();
  return count;
}

std::string writes_events(const PluginUnderCheck& plugin, const fs::path& folder) {
  const auto writer = plugin.make_writer({.run_dir = folder});
  writer->open();
  int64_t step = 0;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    for (int i = 0; i < 10; ++i) writer->write(event(Kind::kStep, ++step));
    writer->write(event(Kind::kValidation, step));
    writer->write(event(Kind::kEpoch, step));
    writer->flush();
  }
  writer->flush();
  const size_t files = files_in(folder);
  return concat("36 events, ", files, files == 1 ? " file" : " files", " in the run's folder");
}

std::string writes_odd_values(const PluginUnderCheck& plugin, const fs::path& folder) {
  using Limits = std::numeric_limits<double>;
  const auto writer = plugin.make_writer({.run_dir = folder});
  writer->open();
  writer->write({});
  MetricsEvent odd = event(Kind::kStep, std::numeric_limits<int64_t>::max());
  for (const double value : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(), -0.0, Limits::max(), Limits::denorm_min()}) {
    odd.metrics.set(concat("train/", odd.metrics.size(), " \"quoted\", \xc3\xa4"), value);
  }
  writer->write(odd);
  writer->write(event(Kind::kStep, 0));  // a run that went on from an earlier checkpoint
  writer->flush();
  return {};
}

std::string goes_on(const PluginUnderCheck& plugin, const fs::path& folder) {
  for (int run = 0; run < 2; ++run) {
    const auto writer = plugin.make_writer({.run_dir = folder});
    writer->open();
    writer->write(event(Kind::kEpoch, 10 * (run + 1)));
    writer->flush();
  }
  const auto never_used = plugin.make_writer({.run_dir = folder});
  return {};
}

}  // namespace

const std::vector<PartCheck>& writer_checks() {
  static const std::vector<PartCheck> kChecks = {
      {"writes events", &writes_events}, {"odd names and numbers", &writes_odd_values}, {"a second run in the same folder", &goes_on}};
  return kChecks;
}

}  // namespace marlin::plugin_tool
