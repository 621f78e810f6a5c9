// What a checkpointer implements.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/options.h"
#include "marlin/sdk/seam.h"

namespace marlin {

/// What a run does when a save fails. Whatever it does, the last good checkpoint stays.
enum class OnError : uint8_t {
  kWarn,  ///< Report it, go on training, and try again at the next save point.
  kFail,  ///< End the run.
};

/// What a run does at a save point that comes up while the save before it is still being written.
enum class WhenBusy : uint8_t {
  kWait,  ///< Training stands still until that one is on disk.
  kSkip,  ///< Not saved, and a line in the log says so. Forced saves always wait.
};

/// When and how the host asks a checkpointer to save and to load. Every checkpointer has these as options, under these names.
struct MARLIN_ABI SaveSchedule {
  bool checkpoint = true;  ///< Master switch: off, nothing is written and nobody is asked for state.
  int64_t period = 1;      ///< Save at an epoch's end when index % period == 0. Unit: epochs. Range: >= 1.
  std::optional<int64_t> period_steps = {};   ///< Save when global_step % period_steps == 0, too. Unit: optimizer steps. Range: >= 1.
  std::optional<double> period_seconds = {};  ///< Save when the newest save is so long ago, too: after the step that is then running.
                                              ///< Unit: seconds. Range: >= 0.001.
  bool async = true;       ///< Save from a snapshot on another thread while training goes on.
  WhenBusy when_busy = WhenBusy::kWait;
  OnError on_error = OnError::kWarn;
  Verify verify = Verify::kFull;  ///< LoadRequest::verify of a resume.

  /// Save when it says so, too. Asked after every step and every epoch, on the training thread: it should be quick. Empty: never.
  /// From C++ only.
  std::function<bool(const SavePoint&)> also_when = {};

  static constexpr size_t kFieldsWithoutOption = 1;
  static std::vector<OptionField<SaveSchedule>> option_fields();
};

/// What a checkpointer learns when a run begins.
struct RunStart {
  std::string loaded_from = {};  ///< The file that this run resumes from; empty: a fresh start.
  std::string run_id = {};       ///< Of this run, and of those that it goes on from; empty: not known.
  bool looked = false;           ///< It was asked to go on from whatever there is (`--resume auto`), and there was nothing.
  bool alone = true;             ///< No other checkpointer keeps the states of this run.
};

/// Keeps checkpoints. Public calls check and guard; an implementation writes the do_ hooks.
///
/// Synchronous; calls of save, save_model, load and close never overlap, but may come from different threads: with `async` the host
/// calls save() on a thread of its own, which the system runs at the lowest priority, and due(), which changes nothing, on the
/// training thread meanwhile. In a run of several processes only rank 0 saves. Exceptions of any type that leave a hook reach the
/// caller as marlin::Error with this checkpointer's name and the call.
/// @par Source pymarlin checkpoint_utils.py AbstractCheckpointer. Differs: save() says where it wrote, load() is asked for.
class MARLIN_ABI AbstractCheckpointer {
 public:
  AbstractCheckpointer();
  virtual ~AbstractCheckpointer();
  AbstractCheckpointer(const AbstractCheckpointer&) = delete;
  AbstractCheckpointer& operator=(const AbstractCheckpointer&) = delete;

  /// The name under which it was asked for, used in messages. Default "checkpointer".
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// Not from a hook.
  void set_name(std::string name);
  /// How its calls are named and watched from now on: the host's, for what a plugin made. Default: Seam("checkpointer '<name>'").
  void set_seam(std::shared_ptr<const Seam> seam);

  [[nodiscard]] const SaveSchedule& schedule() const noexcept { return schedule_; }
  /// @throws Error kInvalidArgument if a field is out of its range; the schedule is then as it was.
  void set_schedule(const SaveSchedule& schedule);

  /// Called once before the first save of a run, after anything was loaded: checks what can be checked early (can it write
  /// there?) and clears away what it was told to. Does nothing with the master switch off.
  /// @throws Error kInvalidArgument if a fresh start would mix with files that are there.
  void open(const RunStart& start);

  /// Whether a state should be built for this point: master switch, force, then, if a period or `also_when` says so, the hook
  /// is_due(). No I/O.
  [[nodiscard]] bool due(const SavePoint& point) const;

  /// Whether it can tell a state that was kept after an exception (Cause::kException) from others, so that no run goes on from it unless
  /// somebody names its file. Only then is it asked to save one. From any thread.
  [[nodiscard]] bool keeps_suspects() const;

  /// Whether it wants a state that it has just saved once more for the end of the run: one that keeps the last state apart does.
  [[nodiscard]] bool saves_again(const SavePoint& point) const;

  /// Writes. Does not ask due() again, but the master switch holds. @return where it was written; empty: not kept.
  /// @throws Error kIo (path, reason). What was saved before is then untouched.
  std::vector<std::string> save(const Checkpoint& checkpoint, const SavePoint& point);
  /// pymarlin's call: the epoch `index`, saved if due().
  std::vector<std::string> save(const Checkpoint& checkpoint, int64_t index, bool force = false);
  /// Writes the bare model state. No period; the master switch holds.
  std::vector<std::string> save_model(const StateDict& model_state, int64_t index);
  /// Whether save_model(index) has been done before, so that a run with nothing left to do need not do it again.
  [[nodiscard]] bool has_model(int64_t index) const;

  /// Whether its options ask for a checkpoint to be loaded (`load_dir` is set), so that none to be found is an error.
  [[nodiscard]] bool wants_load() const;
  /// Reads. Not held back by the master switch. Empty: there is none.
  /// @throws Error kNotFound (a file that was named is missing), kCorrupt (a file is broken), kIo.
  [[nodiscard]] Checkpoint load(const LoadRequest& request = {});

  /// Ends the run's writing; reports what a destructor cannot. May be called again without effect.
  void close();

 protected:
  /// Changes what the host says so that it fits: a checkpointer with an interval of its own has itself asked then. It is checked again
  /// afterwards. Default: nothing.
  virtual void do_schedule(SaveSchedule& schedule) const;
  virtual void do_open(const RunStart& start);                                     ///< Default: nothing.
  [[nodiscard]] virtual bool is_due(const SavePoint& point) const;                 ///< Default: true. Periods, also_when and force were checked.
  [[nodiscard]] virtual bool do_keeps_suspects() const;                            ///< Default: false.
  [[nodiscard]] virtual bool do_saves_again(const SavePoint& point) const;         ///< Default: false.
  virtual std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) = 0;
  virtual std::vector<std::string> do_save_model(const StateDict& model_state, int64_t index) = 0;
  [[nodiscard]] virtual bool do_has_model(int64_t index) const;                    ///< Default: false.
  [[nodiscard]] virtual bool do_wants_load() const;                                ///< Default: false.
  virtual Checkpoint do_load(const LoadRequest& request) = 0;
  virtual void do_close();                                                         ///< Default: nothing.

 private:
  std::string name_;
  std::shared_ptr<const Seam> seam_;
  SaveSchedule schedule_;
  bool closed_ = false;
};

}  // namespace marlin
