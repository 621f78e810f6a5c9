// The line between libmarlin and what it calls: plugins, above all.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/logger.h"

namespace marlin {

/// A party that is called across the line, as messages name it. Its calls are known while they run, and whatever they throw reaches
/// the caller as an Error. call() is for one thread at a time where it is watched; the rest is for any thread.
class MARLIN_ABI Seam {
 public:
  enum class Phase : uint8_t {
    kMaking,   ///< Loading a plugin, or making something with it.
    kWorking,
    kShared,   ///< Much of what runs in there is others': a backend's epoch runs the module and the listener. Errors stay as they are.
  };
  /// What a call is watched for.
  enum class Watch : uint8_t {
    kNothing,  ///< Short calls that may come from any thread, and from several at once.
    kCall,     ///< How long it takes; and that the working folder afterwards is that of before.
  };

  /// @param title    the beginning of every message: "checkpointer 'default'", "plugin 'mine' (/lib/libmine.so)".
  /// @param foreign  code of a plugin: its Errors are given the title, too, and its calls are watched.
  explicit Seam(std::string title, bool foreign = false, Logger* logger = &null_logger());
  Seam(const Seam&) = delete;
  Seam& operator=(const Seam&) = delete;
  ~Seam();

  [[nodiscard]] const std::string& title() const noexcept { return title_; }
  [[nodiscard]] bool foreign() const noexcept { return foreign_; }

  /// Runs `body` as the party's call `name`, which must be a literal.
  /// @throws Error: one of a party that is not foreign as it is; kPlugin for what is no Error, whatever its type.
  template <class Body>
  std::invoke_result_t<Body> call(const char* name, Watch watch, Body&& body, Phase phase = Phase::kWorking) const {
    const Scope scope(*this, name, watch, phase);
    try {
      return body();
    } catch (...) {
      translate(name, phase);
    }
  }

  struct Running {
    const char* call = nullptr;
    std::chrono::nanoseconds elapsed{};
  };
  /// The watched call that runs now, if one does.
  [[nodiscard]] std::optional<Running> running() const noexcept;

  /// A call that runs on a thread.
  struct Frame {
    const Seam* seam = nullptr;
    const char* call = nullptr;
    Phase phase = Phase::kWorking;
    const Frame* outer = nullptr;  ///< The call that this one was made from.
  };
  /// The innermost call that runs on this thread; null: none. Safe in a signal handler.
  [[nodiscard]] static const Frame* innermost() noexcept;
  /// How many watched calls run now, on whatever thread. Safe in a signal handler.
  [[nodiscard]] static int num_running() noexcept;
  /// From now on `hook` runs before the first, second, fourth, eighth ... watched call of the process, on the thread that makes it.
  static void set_hook_of_some_calls(void (*hook)() noexcept) noexcept;

 private:
  class MARLIN_ABI Scope {
   public:
    Scope(const Seam& seam, const char* call, Watch watch, Phase phase) noexcept;
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

   private:
    void compare_folder() const;

    Frame frame_;
    bool watched_;
    uint64_t entered_ = 0;  // watched calls of the process so far, with this one
    std::string folder_;
  };

  [[noreturn]] void translate(const char* call, Phase phase) const;

  std::string title_;
  bool foreign_;
  Logger* logger_;
  mutable std::atomic<const char*> call_ = nullptr;
  mutable std::atomic<int64_t> began_ = 0;  // steady clock, nanoseconds
};

}  // namespace marlin
