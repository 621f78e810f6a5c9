#include "guarded_parts.h"

#include <utility>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "marlin/core/communicator.h"
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
    unless_lost("init", [&] { backend_->init(setup); });
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
  int64_t skipped_steps() const override {
    return call("skipped_steps", [&] { return backend_->skipped_steps(); });
  }
  StateDict get_state() const override {
    StateDict state;
    unless_lost("get_state", [&] { state = backend_->get_state(); });
    return state;
  }
  std::vector<std::string> differences(const StateDict& state) const override {
    std::vector<std::string> found;
    unless_lost("differences", [&] { found = backend_->differences(state); });
    return found;
  }
  void update_state(const StateDict& state) override {
    unless_lost("update_state", [&] { backend_->update_state(state); });
  }

 private:
  template <class Body>
  std::invoke_result_t<Body> call(const char* name, Body&& body) const {
    return seam_->call(name, Watch::kNothing, body);
  }
  // That a rank is lost is not the plugin's fault, and stays what it is.
  template <class Body>
  void unless_lost(const char* name, const Body& body) const {
    std::exception_ptr lost;
    seam_->call(name, Watch::kCall, [&] {
      try {
        body();
      } catch (const PeerLost&) {
        lost = std::current_exception();
      }
    });
    if (lost) std::rethrow_exception(lost);
  }
  std::shared_ptr<const Seam> seam_;
  std::unique_ptr<TrainerBackend> backend_;
};

class GuardedDevice final : public DeviceSupport {
 public:
  GuardedDevice(std::shared_ptr<const Seam> seam, std::unique_ptr<DeviceSupport> device) : seam_(std::move(seam)), device_(std::move(device)) {}
  ~GuardedDevice() override { destroy(*seam_, device_); }

  int num_devices() override {
    return seam_->call("num_devices", Watch::kCall, [&] { return device_->num_devices(); });
  }
  void use(int index) override {
    seam_->call("use", Watch::kCall, [&] { device_->use(index); });
  }
  ProcessGroupPtr make_process_group(const StorePtr& store, int rank, int size, std::chrono::milliseconds limit) override {
    return seam_->call("make_process_group", Watch::kCall, [&] { return device_->make_process_group(store, rank, size, limit); });
  }

 private:
  std::shared_ptr<const Seam> seam_;
  std::unique_ptr<DeviceSupport> device_;
};

}  // namespace

std::unique_ptr<DeviceSupport> guarded_device(std::shared_ptr<const Seam> seam, std::unique_ptr<DeviceSupport> device) {
  return std::make_unique<GuardedDevice>(std::move(seam), std::move(device));
}

std::unique_ptr<Writer> guarded_writer(std::shared_ptr<const Seam> seam, std::unique_ptr<Writer> writer) {
  return std::make_unique<GuardedWriter>(std::move(seam), std::move(writer));
}

std::unique_ptr<TrainerBackend> guarded_backend(std::shared_ptr<const Seam> seam, std::unique_ptr<TrainerBackend> backend) {
  return std::make_unique<GuardedBackend>(std::move(seam), std::move(backend));
}

}  // namespace marlin
