// What the tests of MONAI's case table share: an engine, which is a loop of save points, and states that say where they were made.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <torch/torch.h>

#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "faulty_file_system.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/key_metric_checkpointer.h"
#include "marlin/checkpointers/load_objects.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin::testing {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline KeyMetricOptions in(const TempFolder& folder) {
  KeyMetricOptions options;
  options.save_dir = folder.text();
  return options;
}
inline KeyMetricOptions final_in(const TempFolder& folder) {
  KeyMetricOptions options = in(folder);
  options.save_final = true;
  return options;
}
inline KeyMetricOptions key_metric_in(const TempFolder& folder, int64_t n_saved = 1) {
  KeyMetricOptions options = in(folder);
  options.save_key_metric = true;
  options.key_metric_name = "val_loss";
  options.key_metric_n_saved = n_saved;
  return options;
}
inline KeyMetricOptions interval_in(const TempFolder& folder, int64_t every) {
  KeyMetricOptions options = in(folder);
  options.save_interval = every;
  return options;
}

// States that say at which iteration they were made.
inline StateDict net_at(int64_t iteration) { return {{"weight", torch::full({1}, static_cast<double>(iteration))}}; }
inline StateDict one_at(int64_t iteration) { return {{"net", net_at(iteration)}}; }
inline StateDict two_at(int64_t iteration) { return {{"net", net_at(iteration)}, {"opt", StateDict{{"lr", 0.02}, {"step", iteration}}}}; }

inline int64_t iteration_of(const std::filesystem::path& file) {
  return static_cast<int64_t>(read_archive(file).root.at("net").as_dict().at("weight").as_tensor().item<double>());
}

inline SavePoint epoch_point(int64_t epoch, int64_t iteration, std::optional<double> val_loss = {}) {
  SavePoint point;
  point.index = point.epoch = epoch - 1;
  point.global_step = iteration;
  if (val_loss) point.metrics.set("val_loss", *val_loss);
  return point;
}
inline SavePoint forced(SavePoint point, Cause cause) {
  point.cause = cause;
  point.force = true;
  return point;
}

// An engine over `items` items: the metric is a function of the iteration, and by default the iteration. run() goes on where it was.
struct Engine {
  KeyMetricCheckpointer& saver;
  int64_t items = 8;
  StateDict (*objects)(int64_t iteration) = two_at;
  std::function<double(int64_t)> metric = [](int64_t at) { return static_cast<double>(at); };
  int64_t save_steps = 0;  // a host gives the points of steps that are due
  int64_t epoch = 0, iteration = 0;

  void run(int64_t max_epochs) {
    if (iteration == 0) saver.open({});
    while (epoch < max_epochs) {
      for (int64_t item = 0; item < items; ++item) {
        ++iteration;
        if (save_steps == 0 || iteration % save_steps != 0) continue;
        SavePoint point = epoch_point(epoch + 1, iteration, metric(iteration));
        point.unit = Unit::kStep;
        point.index = iteration;
        saver.save_objects(objects(iteration), point);
      }
      ++epoch;
      saver.save_objects(objects(iteration), epoch_point(epoch, iteration, metric(iteration)));
    }
    saver.save_objects(objects(iteration), forced(epoch_point(epoch, iteration, metric(iteration)), Cause::kEnd));
  }
};

using Listed = std::vector<std::pair<double, std::string>>;

inline Listed listed(const StateDict& state, const std::string& part) {
  Listed result;
  for (const Value& entry : state.at(part).as_dict().at("_saved").as_items()) {
    const std::vector<Value>& pair = entry.as_items();
    EXPECT_THAT(pair, ::testing::SizeIs(2));
    result.emplace_back(pair.at(0).as_double(), pair.at(1).as_string());
  }
  return result;
}

inline void expect_refused(const KeyMetricOptions& options, const ::testing::Matcher<std::string>& text) {
  EXPECT_THAT([&] { KeyMetricCheckpointer checkpointer(options); }, ThrowsError(Errc::kInvalidArgument, text));
}

}  // namespace marlin::testing
