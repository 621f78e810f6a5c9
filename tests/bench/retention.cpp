// retention: what deciding costs a save while 10,000 checkpoints are kept: is_due(), save and what leaves, over a storage that keeps nothing.
#include <marlin/checkpointers/best_k_checkpointer.h>
#include <marlin/checkpointers/keep_policy.h>
#include <marlin/checkpointers/key_metric_checkpointer.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "bench.h"

namespace marlin::bench {
namespace {

constexpr int kBlocks = 31, kSaves = 50;
constexpr int64_t kKept = 10000;

// Says yes and keeps nothing, so that all the time is the checkpointer's.
class NoStorage : public Storage {
 public:
  std::string put(const std::string& name, const StateDict&, const CommitRecord&) override { return name; }
  [[nodiscard]] Archive get(const std::string&, Verify) const override { return {}; }
  [[nodiscard]] std::vector<std::string> list() const override { return {}; }
  bool remove(const std::string&) override { return true; }
};

// Epochs whose metric grows a little each time, so that each enters and one leaves.
template <class Checkpointer>
class Saver {
 public:
  explicit Saver(std::unique_ptr<Checkpointer> checkpointer) : checkpointer_(std::move(checkpointer)) {
    for (int64_t i = 0; i < kKept; ++i) save();
  }
  void save() {
    SavePoint point;
    point.index = point.epoch = epoch_++;
    point.global_step = 10 * epoch_;
    point.metrics.set("train/loss", 1.0 / static_cast<double>(epoch_));
    point.metrics.set("val/accuracy", static_cast<double>(epoch_) / 1e6 + 0.00001);
    if (!checkpointer_->due(point) || checkpointer_->save(checkpoint_, point).empty()) throw std::runtime_error("the checkpointer did not save");
  }

 private:
  std::unique_ptr<Checkpointer> checkpointer_;
  Checkpoint checkpoint_;
  int64_t epoch_ = 0;
};

template <class Checkpointer>
Contender saves(const std::string& name, std::unique_ptr<Checkpointer> checkpointer) {
  return {name, [saver = std::make_shared<Saver<Checkpointer>>(std::move(checkpointer))] {
            const auto start = std::chrono::steady_clock::now();
            for (int i = 0; i < kSaves; ++i) saver->save();
            return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kSaves;
          }};
}

BestKHooks no_storage() { return {.storage = std::make_shared<NoStorage>()}; }

Contender policy() {
  std::vector<KeepPolicy::Candidate> candidates;
  for (int64_t i = 0; i < kKept; ++i) {
    KeepPolicy::Candidate candidate{Unit::kEpoch, i, {}, {}};
    candidate.metrics.set("train/loss", 1.0);
    candidate.metrics.set("val/accuracy", static_cast<double>(i * 7919 % kKept));
    candidates.push_back(std::move(candidate));
  }
  return {"keep_policy", [candidates = std::move(candidates), rules = KeepPolicy("last:3,best:2:val/accuracy,every:10,pin:5")] {
            const auto start = std::chrono::steady_clock::now();
            for (int i = 0; i < kSaves; ++i) {
              if (rules.reasons(candidates).size() != candidates.size()) throw std::runtime_error("a reason is missing");
            }
            return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kSaves;
          }};
}

}  // namespace

bool retention() {
  print_machine("retention", "kept=" + std::to_string(kKept) + " saves_per_block=" + std::to_string(kSaves));
  print_csv_header("us");
  std::vector<Contender> contenders = {
      saves("best_k_by_score", std::make_unique<BestKCheckpointer>(BestKOptions{.n_saved = kKept, .score_name = "val/accuracy", .keep_latest = KeepLatest::kNo}, no_storage())),
      saves("best_k_by_age", std::make_unique<BestKCheckpointer>(BestKOptions{.n_saved = kKept}, no_storage())),
      saves("best_k_with_keep", std::make_unique<BestKCheckpointer>(BestKOptions{.n_saved = 2, .score_name = "val/accuracy", .keep_latest = KeepLatest::kNo, .keep = "last:10000,best:2:val/accuracy,every:10,pin:5"}, no_storage())),
      saves("key_metric", std::make_unique<KeyMetricCheckpointer>(KeyMetricOptions{.save_key_metric = true, .key_metric_name = "val/accuracy", .key_metric_n_saved = kKept, .save_interval = 1, .n_saved = kKept},
                                                                  HostContext{}, std::make_shared<NoStorage>())),
      policy(),
  };
  run_interleaved(contenders, blocks(kBlocks));
  bool good = true;
  for (const Contender& contender : contenders) print_csv("retention", contender, 1e6);
  for (const Contender& contender : contenders) good &= print_bound("retention", contender.name + ", a save, ms", median(contender.seconds) * 1e3, 1.0);
  return good;
}

}  // namespace marlin::bench
