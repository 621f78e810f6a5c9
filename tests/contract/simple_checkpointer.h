// A small checkpointer that keeps the contract, to be broken in one place at a time.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::testing {

/// One file per global step, state_<step>.pt. A broken newest is passed over.
class SimpleCheckpointer : public AbstractCheckpointer {
 public:
  explicit SimpleCheckpointer(const HostContext& host) : folder_(host.run_dir) {}

 protected:
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override {
    const std::filesystem::path file = folder_ / concat("state_", point.global_step, ".pt");
    write(file, checkpoint, point);
    return {file.string()};
  }
  std::vector<std::string> do_save_model(const StateDict& model_state, int64_t index) override {
    const std::filesystem::path file = folder_ / concat("model_", index, ".pt");
    write_model(file, model_state, index);
    return {file.string()};
  }
  Checkpoint do_load(const LoadRequest& request) override {
    if (request.from == LoadRequest::From::kPath) return read(request.path);
    std::string problem;
    for (const int64_t step : steps()) {
      try {
        return read(folder_ / concat("state_", step, ".pt"));
      } catch (const Error& error) {
        problem = error.what();
        if (!passes_over()) throw;
      }
    }
    if (!problem.empty()) throw Error(Errc::kCorrupt, problem);
    if (request.required) throw Error(Errc::kNotFound, concat("no checkpoint in ", folder_.string()));
    return {};
  }

  virtual void write(const std::filesystem::path& file, const Checkpoint& checkpoint, const SavePoint& point) { write_checkpoint(file, checkpoint, point); }
  virtual Checkpoint read(const std::filesystem::path& file) { return read_checkpoint(file); }
  /// Whether an older file is taken if the newest is broken.
  [[nodiscard]] virtual bool passes_over() const { return true; }

  /// Highest first.
  [[nodiscard]] std::vector<int64_t> steps() const {
    std::vector<int64_t> result;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("state_") && name.ends_with(".pt")) result.push_back(std::stoll(name.substr(6)));
    }
    std::ranges::sort(result, std::greater<>());
    return result;
  }

  std::filesystem::path folder_;
};

}  // namespace marlin::testing
