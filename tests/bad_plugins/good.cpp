// A plugin that is in order: a checkpointer that keeps the newest checkpoint in memory.
#include <stdexcept>

#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/plugin.h"

namespace {

struct MemoryOptions {
  std::string label = "memory";
  int64_t limit = 3;

  static std::vector<marlin::OptionField<MemoryOptions>> option_fields() {
    return {marlin::option_field("label", &MemoryOptions::label, "What stands before the index in the name of what was saved."),
            marlin::option_field("limit", &MemoryOptions::limit, "An index above it is not kept.", {.min = 0})};
  }
};

class MemoryCheckpointer final : public marlin::AbstractCheckpointer {
 public:
  MemoryCheckpointer(const marlin::HostContext& host, MemoryOptions options) : host_(host), options_(std::move(options)) {}

 protected:
  std::vector<std::string> do_save(const marlin::Checkpoint& checkpoint, const marlin::SavePoint& point) override {
    if (point.index > options_.limit) return {};
    kept_ = checkpoint;
    host_.logger->info("kept ", point.index);
    return {options_.label + ":" + std::to_string(point.index)};
  }
  std::vector<std::string> do_save_model(const marlin::StateDict&, int64_t) override { throw std::runtime_error("no room for models"); }
  marlin::Checkpoint do_load(const marlin::LoadRequest&) override { return kept_; }

 private:
  const marlin::HostContext& host_;
  MemoryOptions options_;
  marlin::Checkpoint kept_;
};

marlin::AbstractCheckpointer* make(marlin::HostContext& host, const marlin::Options& options) {
  return new MemoryCheckpointer(host, marlin::parse<MemoryOptions>(options));
}

}  // namespace

MARLIN_PLUGIN(.name = "good", .version = "1.2.3", .options = &marlin::options_of<MemoryOptions>, .make_checkpointer = &make);
