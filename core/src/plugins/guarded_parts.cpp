#include "guarded_parts.h"

#include <utility>

#include "marlin/sdk/error.h"

namespace marlin {
namespace {

using Watch = Seam::Watch;

// What a destructor throws has nowhere to go: close() and flush() are there to report.
template <class Part>
void destroy(const Seam& seam, std::unique_ptr<Part>& part) noexcept {
  try {
    seam.call("destructor", Watch::kCall, [&] { part.reset(); });
  } catch (const Error&) {
  }
}

class GuardedWriter final : public Writer {
 public:
  GuardedWriter(std::shared_ptr<const Seam> seam, std::unique_ptr<Writer> writer) : seam_(std::move(seam)), writer_(std::move(writer)) {}
  ~GuardedWriter() override { destroy(*seam_, writer_); }

  void open() override {
    seam_->call("open", Watch::kCall, [&] { writer_->open(); });
  }
  void write(const MetricsEvent& event) override {
    seam_->call("write", Watch::kCall, [&] { writer_->write(event); });
  }
  void flush() override {
    seam_->call("flush", Watch::kCall, [&] { writer_->flush(); });
  }
  std::string name() const override {
    return seam_->call("name", Watch::kNothing, [&] { return writer_->name(); });
  }
  StateDict get_state() override {
    return seam_->call("get_state", Watch::kCall, [&] { return writer_->get_state(); });
  }
  void update_state(const StateDict& state, Logger& log) override {
    seam_->call("update_state", Watch::kCall, [&] { writer_->update_state(state, log); });
  }

 private:
  std::shared_ptr<const Seam> seam_;
  std::unique_ptr<Writer> writer_;
};

class GuardedBackend final : public TrainerBackend {
 public:
  GuardedBackend(std::shared_ptr<const Seam> seam, std::unique_ptr<TrainerBackend> backend) : seam_(std::move(seam)), backend_(std::move(backend)) {}
  ~GuardedBackend() override { destroy(*seam_, backend_); }

  void init(const BackendSetup& setup) override {
    seam_->call("init", Watch::kCall, [&] { backend_->init(setup); });
  }
  EpochResult train(DataLoader& loader, int64_t epoch, int64_t steps_done, StepListener& listener) override {
    return seam_->call("train", Watch::kNothing, [&] { return backend_->train(loader, epoch, steps_done, listener); }, Seam::Phase::kShared);
  }
  EpochResult validate(DataLoader& loader, const std::string& name, int64_t epoch, StepListener& listener) override {
    return seam_->call("validate", Watch::kNothing, [&] { return backend_->validate(loader, name, epoch, listener); }, Seam::Phase::kShared);
  }
  int64_t global_step_completed() const override {
    return call("global_step_completed", [&] { return backend_->global_step_completed(); });
  }
  int64_t batches_completed() const override {
    return call("batches_completed", [&] { return backend_->batches_completed(); });
  }
  StateDict get_state() const override {
    return seam_->call("get_state", Watch::kCall, [&] { return backend_->get_state(); });
  }
  std::vector<std::string> differences(const StateDict& state) const override {
    return seam_->call("differences", Watch::kCall, [&] { return backend_->differences(state); });
  }
  void update_state(const StateDict& state) override {
    seam_->call("update_state", Watch::kCall, [&] { backend_->update_state(state); });
  }

 private:
  template <class Body>
  std::invoke_result_t<Body> call(const char* name, Body&& body) const {
    return seam_->call(name, Watch::kNothing, body);
  }
  std::shared_ptr<const Seam> seam_;
  std::unique_ptr<TrainerBackend> backend_;
};

}  // namespace

std::unique_ptr<Writer> guarded_writer(std::shared_ptr<const Seam> seam, std::unique_ptr<Writer> writer) {
  return std::make_unique<GuardedWriter>(std::move(seam), std::move(writer));
}

std::unique_ptr<TrainerBackend> guarded_backend(std::shared_ptr<const Seam> seam, std::unique_ptr<TrainerBackend> backend) {
  return std::make_unique<GuardedBackend>(std::move(seam), std::move(backend));
}

}  // namespace marlin
