// The training loop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/core/early_stopping.h"
#include "marlin/core/module_interface.h"
#include "marlin/core/progress.h"
#include "marlin/core/trainer_backend.h"
#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/options.h"
#include "marlin/sdk/writer.h"

namespace marlin {

/// What a Trainer is told. Flags have the fields' names.
struct MARLIN_ABI TrainerOptions {
  int64_t epochs = 1;                                      ///< In total, not more. Range: >= 0.
  std::optional<int64_t> max_steps = {};                   ///< End after so many optimizer steps in total. Range: >= 1.
  std::optional<int64_t> max_train_steps_per_epoch = {};   ///< Range: >= 1.
  std::optional<int64_t> max_val_steps_per_epoch = {};     ///< Per loader. Range: >= 1.
  int64_t train_batch_size = 1;                            ///< Samples of one optimizer step, over all ranks. Range: >= 1.
  std::optional<int64_t> val_batch_size = {};              ///< Unset: train_batch_size. Range: >= 1.
  std::optional<int64_t> micro_batch_limit = {};           ///< Largest batch worked on at once, per device. Range: >= 1.
  bool clip_grads = true;
  double max_grad_norm = 1.0;                              ///< 2-norm over all parameters. Range: > 0.
  bool reset_optimizers_schedulers = false;                ///< On a resume: new ones, made for the epochs that remain.
  int64_t seed = 0;                                        ///< Orders the data; MARLIN_MAIN seeds LibTorch with it, too. Range: >= 0.
  std::string device = "auto";                             ///< auto, cpu, cuda or cuda:N.
  std::optional<std::string> resume = {};                  ///< never, auto, must or a path (that holds a '/'). Unset: never, or
                                                           ///< must if a checkpointer was told what to load.
  std::optional<std::string> init_from = {};               ///< A file to start the weights from, if nothing is resumed.
  bool validate_only = false;                              ///< One validation, no training.
  std::optional<double> max_seconds = {};                  ///< Stop, save and end within so many seconds of TrainerServices::began. Range: >= 0.001.
  EarlyStoppingOptions early_stopping = {};                ///< End when a metric no longer gets better.
  int64_t log_steps = 50;                                  ///< Optimizer steps from one "step" event for writers to the next. Range: >= 1.

  static std::vector<OptionField<TrainerOptions>> option_fields();
};

/// How train() ended.
struct MARLIN_ABI RunResult {
  enum class Outcome : uint8_t { kDone, kStopped, kNothingToDo };
  Outcome outcome = Outcome::kDone;
  int64_t epochs = 0;             ///< Completed, of the whole run.
  int64_t global_step = 0;        ///< Optimizer steps completed, of the whole run.
  Metrics metrics;                ///< The newest of every name.
  std::string checkpoint;         ///< The newest one written, or else loaded; empty: none.
  bool last_save_failed = false;  ///< Something that should be on disk is not; the log says why.
  bool out_of_time = false;       ///< kStopped because of max_seconds.
  int signal = 0;                 ///< kStopped by stop() with this signal's number; 0: with none.

  /// `done epochs=5 global_step=115 val/accuracy=0.9667 checkpoint=checkpoints/checkpoint_4.pt`
  [[nodiscard]] std::string summary() const;
  /// 4 if last_save_failed, else 128 + signal, else 5 if out_of_time, else 0.
  [[nodiscard]] int exit_code() const noexcept;
};

/// What a Trainer gets from its surroundings; everything may be left out.
struct TrainerServices {
  Logger* logger = &null_logger();                  ///< Must live as long as the Trainer.
  std::vector<std::unique_ptr<Writer>> writers = {};
  std::unique_ptr<Progress> progress = {};          ///< Null: nothing is shown.
  std::function<std::chrono::steady_clock::time_point()> clock = std::chrono::steady_clock::now;  ///< For `period_seconds` and `max_seconds`.
  std::optional<std::chrono::steady_clock::time_point> began = {};  ///< What `max_seconds` counts from. Unset: the Trainer's construction.
  std::shared_ptr<Communicator> ranks = {};         ///< Null: the run is one process. Else all ranks make the same calls to their Trainers; see below.
  std::function<void()> before_training = {};       ///< Called by train() when all is set up, and on all ranks before anything on disk is changed.
};

class Agreement;
class Communicator;
class SaveService;
class TimeLimit;
struct EpochProgress;

using Checkpointers = std::vector<std::unique_ptr<AbstractCheckpointer>>;

/// Trains a module: epochs, validation, save points, resume. Installs no signal handler, ends no process, touches no global
/// state; several Trainers may live in one process, each used from one thread (stop() from any). One exception: checkpoints
/// keep the state of LibTorch's default CPU generator, and a resume sets it, so that random numbers go on as they would have.
///
/// With several ranks each has a Trainer, made with the same options, and calls train(), validate(), save_checkpoint() and
/// save_model_checkpoint() when the others do. stop() and request_save() on one rank hold for all, at the same step. Rank 0 decides on saves, writes,
/// has the writers and shows the progress; the other ranks' checkpointers and writers are not used. What rank 0 resumes from is
/// sent to all, random numbers of each rank included; it alone reads `init_from`. RunResult's `checkpoint` and `last_save_failed` are known on rank 0 only. An exception
/// on one rank ends all, with a PeerLost that holds its message on the others, and nothing is saved then. A loader that waits for data is not interrupted
/// by a stop. Saves are not asked for from within train_step, val_step or on_end_backward, which ranks call at times of their own.
/// @par Source pymarlin core/trainer.py. Differs: a resume that finds nothing is an error, and everything is looked at before anything is applied.
class MARLIN_ABI Trainer {
 public:
  /// @param backend null: "sp", or with several ranks "ddp". @param checkpointers empty: one DefaultCheckpointer with its defaults.
  /// @throws Error kInvalidArgument: an option is out of its range, the module is null.
  Trainer(std::shared_ptr<ModuleInterface> module, std::unique_ptr<TrainerBackend> backend, Checkpointers checkpointers,
          TrainerOptions options, TrainerServices services = {});
  explicit Trainer(std::shared_ptr<ModuleInterface> module, TrainerOptions options = {});
  virtual ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// Runs the epochs that are left. Called again after a stop() it goes on where it was; else nothing is left.
  /// @throws Error: kInvalidArgument, kPlugin, kUnsupported before the first step; kNotFound, kCorrupt, kMismatch for a
  /// checkpoint (nothing is then applied); kTraining during it. What a module throws goes through as it is.
  RunResult train();
  /// Validates once, with what was resumed or initialised, over all validation loaders. @return "val/..." of all of them.
  Metrics validate();

  /// Ends train() after the running step, or the running batch of a validation, which the resumed run then repeats; with a forced
  /// checkpoint. From any thread and from signal handlers, and before train(), too.
  /// @param signal the number of the signal that asks for it, for the exit code; 0: none.
  void stop(int signal = 0) noexcept {
    if (signal != 0) stop_signal_.store(signal, std::memory_order_relaxed);
    stop_.store(true, std::memory_order_release);
  }
  [[nodiscard]] bool stop_requested() const noexcept { return stop_.load(std::memory_order_acquire); }

  /// Has the state saved, whatever the periods say, after the running step or, once an epoch's steps are done, with its end. From
  /// callbacks, any thread and signal handlers, and before train(), too. Several requests before that are one.
  void request_save() noexcept { save_requested_.store(true, std::memory_order_relaxed); }

  /// Saves the present state, where due or forced: that of the last completed epoch, or of the step within one. In a callback not all of what
  /// is going on is in it yet (a step's metrics, say): request_save() there saves right after. @return where.
  std::vector<std::string> save_checkpoint(bool force = false);
  /// Saves the bare model under the last completed epoch's index. @return where.
  std::vector<std::string> save_model_checkpoint();
  /// What the options say should be resumed; empty: nothing. Applies nothing.
  [[nodiscard]] Checkpoint load_checkpoints();

  /// All that decides the next number, besides the module's and the backend's: "last_epoch", "in_epoch", "phase", "optimizers",
  /// "schedulers", "loader", "generators", metrics, positions of writers (checkpointers/FORMAT.md). Overriders add to it.
  [[nodiscard]] virtual StateDict get_state() const;
  virtual void update_state(const StateDict& state);
  /// What keeps update_state() from taking such a state, one sentence each, besides what the Trainer looks at itself; looked at before
  /// anything is applied. Overriders that add to the state say here what they need of it. Default: nothing.
  [[nodiscard]] virtual std::vector<std::string> differences(const StateDict& state) const;

  /// Whether a checkpoint or a file of weights is being looked for, read or applied: what is thrown meanwhile is about that.
  [[nodiscard]] bool loading() const noexcept { return loading_; }
  /// Whether train() has come as far as its first epoch: what is thrown from then on is no longer about flags or files to load.
  [[nodiscard]] bool started() const noexcept { return started_; }
  [[nodiscard]] ModuleInterface& module() noexcept { return *module_; }
  [[nodiscard]] const TrainerOptions& options() const noexcept { return options_; }
  [[nodiscard]] int64_t last_epoch() const noexcept { return last_epoch_; }   ///< Last completed epoch, from 0; -1: none.
  [[nodiscard]] int64_t global_step() const noexcept;                         ///< Optimizer steps completed.
  [[nodiscard]] const std::string& newest_checkpoint() const noexcept { return newest_checkpoint_; }  ///< Written, or else loaded; empty: none.

 private:
  class TrainListener;
  class ValListener;

  RunResult train_here();
  Metrics validate_here();
  template <class Call>
  auto telling_others(const Call& call) {
    try {
      return call();
    } catch (...) {
      tell_others();
      throw;
    }
  }
  void tell_others() const noexcept;
  [[nodiscard]] int rank() const noexcept;
  [[nodiscard]] int world_size() const noexcept;
  [[nodiscard]] bool is_main() const noexcept { return rank() == 0; }
  [[nodiscard]] bool is_alone() const noexcept { return agreement_ == nullptr; }
  [[nodiscard]] Wishes take_wishes();
  void agree();
  [[nodiscard]] Wishes meet(const std::string& where, const Wishes& wishes);
  void follow_main();
  void take_agreed(const Wishes& wishes);
  [[nodiscard]] bool take_save_request();
  void share(Checkpoint& resumed);
  [[nodiscard]] StateDict generators_to_save() const;
  void gather_generators(bool wanted);

  void set_up();
  template <class Call> auto while_loading(const Call& call);
  void make_loaders();
  void make_optimizers();
  void take_initial_weights();
  [[nodiscard]] at::Device resolve_device() const;
  [[nodiscard]] TrainingPlan make_plan(const Checkpoint& resumed) const;
  void check(const Checkpoint& checkpoint) const;
  void check_epochs(const Checkpoint& checkpoint) const;
  [[nodiscard]] std::vector<std::string> optimizer_differences(const StateDict& trainer_state) const;
  void tell_what_changed(const StateDict& trainer_state) const;
  void tell_of_rates(const StateDict& trainer_state) const;
  void apply(const Checkpoint& checkpoint);
  [[nodiscard]] bool anything_left() const;
  [[nodiscard]] int64_t steps_in_epoch() const noexcept { return in_epoch_ ? global_step() - epoch_start_step_ : 0; }

  void check_time() const;
  [[nodiscard]] bool should_stop() const;
  [[nodiscard]] bool train_left();
  [[nodiscard]] bool run_epoch(int64_t epoch);
  void begin_epoch(int64_t epoch);
  [[nodiscard]] bool train_epoch(int64_t epoch);
  [[nodiscard]] bool validate_epoch(int64_t epoch, EpochProgress& progress);
  [[nodiscard]] bool validate_loader(const std::string& name, DataLoader& loader, int64_t epoch, EpochProgress& progress);
  [[nodiscard]] bool run_validation(const std::string& name, DataLoader& loader, int64_t epoch, EpochProgress& progress);
  void end_training_part(int64_t epoch, bool partial);
  [[nodiscard]] bool out_of_steps() const;
  void complete_epoch(int64_t epoch);
  void flush_window(int64_t epoch);
  [[nodiscard]] RunResult result(RunResult::Outcome outcome) const;
  void end_run(bool complete);
  void open_writers();
  void move_writers();
  [[nodiscard]] std::string writer_key(size_t place) const;
  void each_writer(const std::function<void(Writer&)>& call);
  void write(MetricsEvent::Kind kind, int64_t epoch, const Metrics& metrics);

  [[nodiscard]] StateDict progress_state() const;
  [[nodiscard]] StateDict writers_state() const;
  void rewind_to_last_step(Checkpoint& checkpoint) const;
  [[nodiscard]] Checkpoint make_checkpoint() const;
  void collect_saves();
  void save_after_exception() noexcept;
  void save_suspect(AbstractCheckpointer& checkpointer, const Checkpoint& checkpoint, const SavePoint& point);
  void note_save(size_t place, bool done, const SavePoint& point, bool kept);
  void finish_saves();
  void require_something_to_save(const char* call);
  void open_checkpointers();
  [[nodiscard]] SavePoint save_point(Cause cause, bool force) const;
  [[nodiscard]] int64_t model_index() const;
  void save_after_step();
  [[nodiscard]] double seconds_since_save(size_t place) const;
  [[nodiscard]] bool is_worth_asking(size_t place, int64_t step) const;
  [[nodiscard]] std::vector<size_t> places_due(const SavePoint& point, std::vector<std::string>& written, std::optional<Error>& told_wrong);
  [[nodiscard]] bool is_to_be_tried_again(size_t place) const;
  void save_now(size_t place, const Checkpoint& checkpoint, const SavePoint& point, std::vector<std::string>& written);
  [[nodiscard]] bool is_due(size_t place, const SavePoint& point, std::vector<std::string>& written, std::optional<Error>& told_wrong);
  [[nodiscard]] bool is_skipped(const AbstractCheckpointer& checkpointer, const SavePoint& point);
  void save_in_background(const std::vector<size_t>& places, const Checkpoint& checkpoint, const SavePoint& point, std::vector<std::string>& written);
  std::vector<std::string> save_where_due(const SavePoint& point, bool wait);
  std::vector<std::string> save_models();
  bool save_or_report(const AbstractCheckpointer& checkpointer, const std::string& what, const std::function<std::vector<std::string>()>& call, std::vector<std::string>& written);

  std::shared_ptr<ModuleInterface> module_;
  std::unique_ptr<TrainerBackend> backend_;
  Checkpointers checkpointers_;
  TrainerOptions options_;
  TrainerServices services_;
  std::atomic<bool> stop_ = false, save_requested_ = false;
  std::atomic<int> stop_signal_ = 0;
  std::unique_ptr<Agreement> agreement_;   // null: one process
  Wishes agreed_;                          // as of the last exchange
  List rank_generators_;                   // on rank 0, for the save that is being made: the generators of all ranks

  bool set_up_ = false;
  at::Device device_ = at::kCPU;
  std::unique_ptr<DataLoader> train_loader_;
  NamedLoaders val_loaders_;
  OptimizersSchedulers optimizers_schedulers_;
  TrainingPlan plan_;
  std::string run_id_;
  int64_t last_epoch_ = -1;
  bool in_epoch_ = false;             // a part of epoch last_epoch_ + 1 is done
  int64_t epoch_start_step_ = 0;      // the global step at which that epoch began
  std::unique_ptr<EpochProgress> progress_;     // what has gathered in it
  std::optional<StateDict> before_ending_;      // progress_state() as the run's last epoch was left in its middle for max_steps
  int64_t begun_epoch_ = -1;          // the module has heard of the begin of this one here
  int64_t ended_at_step_ = -1;        // max_steps ended the run here, within an epoch, and that is validated
  StateDict writers_loaded_;          // positions that the writers have still to be moved to
  EarlyStopping early_stopping_;
  std::unique_ptr<TimeLimit> time_limit_;
  Metrics newest_;
  std::string newest_checkpoint_;
  bool started_ = false, loading_ = false;
  std::atomic<bool> training_ = false;
  bool ended_by_save_ = false;        // a save that failed ends the run
  bool opened_ = false;               // the checkpointers know of this run
  bool ran_ = false;                  // steps were made since the last end of a run
  // By checkpointer: what its newest save was of (-1: none yet), and whether the newest try of one failed.
  std::vector<int64_t> saved_step_, saved_index_;
  std::vector<char> failed_;
  std::vector<std::chrono::steady_clock::time_point> asked_;  // when it was asked to save last or, before that, when training began
  std::unique_ptr<SaveService> saves_;  // ends before what it works with
};

}  // namespace marlin
