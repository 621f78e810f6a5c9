// A checkpointer that keeps what it is given in memory, and fails when told to.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "marlin/core/trainer.h"
#include "marlin/sdk/checkpointer.h"

namespace marlin::testing {

/// What happened to a RecordingCheckpointer; outlives it.
struct Recorded {
  struct Saved {
    SavePoint point;
    Checkpoint state;
  };
  std::vector<Saved> saves;
  std::vector<int64_t> models;
  std::vector<RunStart> opened;
  int due_asked = 0, loads = 0, closed = 0, failed = 0;

  std::function<void(const SavePoint&)> before_save = {};  ///< May throw.
  std::function<void()> before_save_model = {}, at_close = {}, at_due = {};
  Checkpoint to_load = {};

  [[nodiscard]] std::vector<int64_t> indices() const {
    std::vector<int64_t> result;
    for (const Saved& save : saves) result.push_back(save.point.index);
    return result;
  }
};

class RecordingCheckpointer final : public AbstractCheckpointer {
 public:
  explicit RecordingCheckpointer(std::shared_ptr<Recorded> recorded, const SaveSchedule& schedule = {}) : recorded_(std::move(recorded)) { set_schedule(schedule); }

 protected:
  void do_open(const RunStart& start) override { recorded_->opened.push_back(start); }
  bool is_due(const SavePoint&) const override {
    ++recorded_->due_asked;
    if (recorded_->at_due) recorded_->at_due();
    return true;
  }
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    attempt([&] { if (recorded_->before_save) recorded_->before_save(point); });
    recorded_->saves.push_back({point, {clone(checkpoint.module_interface_state), clone(checkpoint.trainer_state), clone(checkpoint.trainer_backend_state), {}}});
    return {"memory:" + std::to_string(point.index)};
  }
  std::vector<std::string> do_save_model(const StateDict&, int64_t index) override {
    attempt([&] { if (recorded_->before_save_model) recorded_->before_save_model(); });
    recorded_->models.push_back(index);
    return {"memory:model" + std::to_string(index)};
  }
  bool do_has_model(int64_t index) const override {
    for (const int64_t model : recorded_->models) {
      if (model == index) return true;
    }
    return false;
  }
  Checkpoint do_load(const LoadRequest&) override {
    ++recorded_->loads;
    return recorded_->to_load;
  }
  void do_close() override {
    ++recorded_->closed;
    if (recorded_->at_close) recorded_->at_close();
  }

 private:
  template <class Call> void attempt(const Call& call) {
    try {
      call();
    } catch (...) {
      ++recorded_->failed;
      throw;
    }
  }

  std::shared_ptr<Recorded> recorded_;
};

[[nodiscard]] inline Checkpointers recording_checkpointer(std::shared_ptr<Recorded> recorded, const SaveSchedule& schedule = {}) {
  Checkpointers result;
  result.push_back(std::make_unique<RecordingCheckpointer>(std::move(recorded), schedule));
  return result;
}

}  // namespace marlin::testing
