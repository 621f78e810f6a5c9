// What the tests of Ignite's case table share: a storage in memory, points of a run, small states.
#pragma once

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "marlin/checkpointers/best_k_checkpointer.h"
#include "marlin/checkpointers/storage.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin::testing {

/// Keeps clones in memory and notes what is put and removed, in this order.
class RecordingStorage final : public Storage {
 public:
  struct Kept {
    StateDict root;
    CommitRecord record;
  };
  std::vector<std::string> calls;                          ///< "put model_0.pt", "remove model_0.pt"
  std::map<std::string, Kept> kept;
  std::function<void(const std::string& name)> before_put; ///< May throw.
  bool removes = true;                                     ///< False: remove() is noted, and does nothing.

  std::string put(const std::string& name, const StateDict& root, const CommitRecord& record) override {
    if (before_put) before_put(name);
    calls.push_back("put " + name);
    kept.insert_or_assign(name, Kept{clone(root), record});
    return where(name);
  }
  [[nodiscard]] Archive get(const std::string& name, Verify) const override {
    const auto at = kept.find(name);
    if (at == kept.end()) throw Error(Errc::kNotFound, name + ": not kept");
    return {at->second.root, at->second.record, Verified::kHashes};
  }
  [[nodiscard]] std::vector<std::string> list() const override {
    std::vector<std::string> names;
    for (const auto& [name, is] : kept) names.push_back(name);
    return names;
  }
  bool remove(const std::string& name) override {
    calls.push_back("remove " + name);
    return removes && kept.erase(name) > 0;
  }
};

/// The end of an epoch (from 1) after so many iterations, which are optimizer steps.
[[nodiscard]] inline SavePoint point(int64_t epoch, int64_t iteration) {
  SavePoint result;
  result.index = epoch == 0 ? 0 : epoch - 1;
  result.epoch = epoch - 1;
  result.global_step = iteration;
  return result;
}
/// The same with a metric.
[[nodiscard]] inline SavePoint point(int64_t epoch, int64_t iteration, double value, const std::string& metric = "score") {
  SavePoint result = point(epoch, iteration);
  result.metrics.set(metric, value);
  return result;
}

/// A linear 1 -> 1 layer, and SGD over it.
[[nodiscard]] inline StateDict model_state(double value = 1.0) { return {{"weight", torch::full({1, 1}, value)}, {"bias", torch::full({1}, -value)}}; }
[[nodiscard]] inline StateDict optimizer_state(double lr = 0.1) {
  return {{"state", StateDict{}}, {"param_groups", List{{Value(StateDict{{"lr", lr}, {"params", List{{Value(0), Value(1)}}}})}}}};
}
[[nodiscard]] inline StateDict one(double value = 1.0) { return {{"model", model_state(value)}}; }
[[nodiscard]] inline StateDict two(double value = 1.0) { return {{"model", model_state(value)}, {"optimizer", optimizer_state()}}; }

/// A score function: the metric "score" of the point.
[[nodiscard]] inline std::optional<double> by_score(const SavePoint& at) { return at.metrics.at("score"); }

/// What a state() lists: priority and name, in its order.
using Listed = std::vector<std::pair<double, std::string>>;
[[nodiscard]] inline Listed listed(const StateDict& state) {
  Listed result;
  for (const Value& entry : state.at("_saved").as_items()) result.emplace_back(entry.as_items().at(0).as_double(), entry.as_items().at(1).as_string());
  return result;
}
[[nodiscard]] inline Value entry(double priority, const std::string& name) { return Tuple{{Value(priority), Value(name)}}; }

/// A dict's keys, in its order.
[[nodiscard]] inline std::vector<std::string> keys_of(const StateDict& state) {
  std::vector<std::string> keys;
  for (const auto& entry : state) keys.push_back(to_string(entry.key));
  return keys;
}

/// The number at a test's end is the row of the case table.
class IgniteCases : public ::testing::Test {
 protected:
  /// Keeps what it saves in `storage`.
  [[nodiscard]] std::unique_ptr<BestKCheckpointer> in_memory(BestKOptions options = {}, BestKHooks hooks = {}) {
    hooks.storage = storage;
    return std::make_unique<BestKCheckpointer>(std::move(options), std::move(hooks), HostContext{.logger = &logger});
  }
  /// Keeps what it saves in `folder`, without links.
  [[nodiscard]] std::unique_ptr<BestKCheckpointer> on_disk(BestKOptions options = {}, BestKHooks hooks = {}) {
    options.save_dir = folder.text();
    options.links = false;
    return std::make_unique<BestKCheckpointer>(std::move(options), std::move(hooks), HostContext{.logger = &logger});
  }
  [[nodiscard]] std::vector<std::string> files() const { return names_in(folder.path()); }
  [[nodiscard]] std::string file(const std::string& name) const { return (folder / name).string(); }
  [[nodiscard]] const RecordingStorage::Kept& kept(const std::string& name) const { return storage->kept.at(name); }

  RecordingLogger logger;
  std::shared_ptr<RecordingStorage> storage = std::make_shared<RecordingStorage>();
  TempFolder folder;
};

}  // namespace marlin::testing
