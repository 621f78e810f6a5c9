// A checkpointer that keeps nothing and does what its plugin is bad at in each of its calls.
#pragma once

#include <string>
#include <string_view>

#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/plugin.h"

namespace bad {

class Checkpointer : public marlin::AbstractCheckpointer {
 public:
  /// @param fault  is told which call this is.
  explicit Checkpointer(void (*fault)(std::string_view call, const marlin::Options& options), marlin::Options options)
      : fault_(fault), options_(std::move(options)) {}

 protected:
  void do_open(const marlin::RunStart&) override { fault("open"); }
  bool is_due(const marlin::SavePoint&) const override { return fault("is_due"), true; }
  std::vector<std::string> do_save(const marlin::Checkpoint&, const marlin::SavePoint& point) override { return fault("save"), kept(point.index); }
  std::vector<std::string> do_save_model(const marlin::StateDict&, int64_t index) override { return fault("save_model"), kept(index); }
  bool do_has_model(int64_t) const override { return fault("has_model"), false; }
  bool do_wants_load() const override { return fault("wants_load"), false; }
  marlin::Checkpoint do_load(const marlin::LoadRequest&) override { return fault("load"), marlin::Checkpoint{}; }
  void do_close() override { fault("close"); }

 private:
  static std::vector<std::string> kept(int64_t index) { return {"nowhere:" + std::to_string(index)}; }
  void fault(std::string_view call) const { fault_(call, options_); }

  void (*fault_)(std::string_view, const marlin::Options&);
  marlin::Options options_;
};

}  // namespace bad
