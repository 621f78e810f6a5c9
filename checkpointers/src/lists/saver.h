// Lists of checkpoints over one storage: commits, evicts, finds its lists again. What best_k and key_metric have in common.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "marlin/checkpointers/best_k_checkpointer.h"
#include "marlin/checkpointers/keep_policy.h"
#include "marlin/checkpointers/name_pattern.h"
#include "marlin/checkpointers/retention_list.h"
#include "marlin/checkpointers/storage.h"
#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/logger.h"

namespace marlin {

/// A list, and the names of what is in it.
struct Series {
  std::string title;     ///< Of the list, in commit records: "best".
  NamePattern pattern;
  NameParts parts;       ///< All but name, score and step.
  RetentionList list;
};

struct SaverOptions {
  std::string owner;                       ///< Whose lists they are, in commit records: "best_k".
  std::shared_ptr<Storage> storage;
  Logger* logger = &null_logger();
  LogLevel level = LogLevel::kInfo;
  std::string log_name = {};               ///< Stands before each line. Empty: nothing does.
  std::vector<std::string> objects = {};   ///< Parts of a run's state that do_save keeps.
  std::string objects_option = {};         ///< How messages name them.
  KeepPolicy keep = {};
  bool require_empty = true;
  bool delete_existing = false;
  std::optional<std::string> load_dir = {};
  std::optional<std::string> load_filename = {};
};

/// One save at a time, and no reset() or load_list() meanwhile; what is const may be called from other threads at any time.
class Saver {
 public:
  /// @throws Error kInvalidArgument: an object that is no part of a run's state, or twice; none at all.
  explicit Saver(SaverOptions options);

  /// Before anything else. A name that two series could have is the earlier one's. @return its place.
  size_t add(Series series);

  /// The state of a run as objects: those that are kept.
  [[nodiscard]] StateDict objects_of(const Checkpoint& checkpoint) const;
  /// "model" of one object, "checkpoint" of several. @throws Error kInvalidArgument: none; or "checkpointer" is among them and `own` is set.
  [[nodiscard]] static std::string name_of(const StateDict& objects, bool own);
  /// The name that these parts make in that series.
  [[nodiscard]] std::string name(size_t series, const NameParts& parts) const { return series_[series].pattern.name(parts); }
  /// Whether a file of a series could have that name, of whatever objects; and of those that a run keeps.
  [[nodiscard]] bool could_be_called(std::string_view file) const;
  [[nodiscard]] bool run_could_write(std::string_view file) const;

  struct Request {
    size_t series = 0;
    double priority = 0.0;
    bool ranked = false;    ///< The priority is a score: names and the record have it.
    int64_t step = 0;       ///< As names count.
    std::string name = {};  ///< Of the objects.
    bool suspect = false;   ///< Kept beside the list: takes nobody's name, and nothing leaves for it.
    std::function<StateDict(const std::vector<RetentionList>&)> own_state = {};  ///< Goes into the file under "checkpointer", from the lists as
                                                                                 ///< they will be. Empty: does not.
  };
  /// Commits, then removes what left the list. @return where it is. @throws Error: nothing has changed then.
  std::string save(const Request& request, StateDict objects, const SavePoint& point);

  template <class Call> auto with_list(size_t series, const Call& call) const {
    const std::lock_guard lock(mutex_);
    return call(series_[series].list);
  }
  [[nodiscard]] std::vector<RetentionList> lists() const;
  void reset(size_t series);
  /// What RetentionList::load_state() takes; names that are not there are left out with a warning.
  void load_list(size_t series, const StateDict& state);
  [[nodiscard]] std::string where(const RetentionList::Entry* entry) const { return entry == nullptr ? "" : options_.storage->where(entry->name); }

  void open(const RunStart& start);
  [[nodiscard]] bool wants_load() const;
  [[nodiscard]] Checkpoint load(const LoadRequest& request) const;

  void on_saved(std::function<void(const SavedCheckpoint&)> listener);
  /// Has `link` lead there; what goes wrong is a warning, once.
  void point(const std::string& link, const std::string& name);
  void log(LogLevel level, const std::string& line) const;
  [[nodiscard]] Storage& storage() const noexcept { return *options_.storage; }

 private:
  using Candidate = KeepPolicy::Candidate;
  /// A file of this run that is there.
  struct Owned {
    int64_t step = 0;                 // as in its name
    bool suspect = false;
    std::optional<size_t> ruled = {};  // its place among those that rules look at
  };
  /// A name that is there, and what its file says of itself.
  struct Seen {
    std::string name;
    std::optional<CommitRecord> record;  // unset: broken, or another's
    bool broken = false;
  };

  [[nodiscard]] std::string host_name() const;
  [[nodiscard]] std::string list_id(const Series& series) const;
  [[nodiscard]] std::optional<size_t> series_of(std::string_view file, const std::string& object_name) const;
  [[nodiscard]] bool could_write(std::string_view file) const;
  [[nodiscard]] Seen look_at(const std::string& name) const;
  [[nodiscard]] bool is_own(const Seen& seen) const;
  [[nodiscard]] const Series& series_with(const std::string& id) const;
  [[nodiscard]] bool is_kept_for_resume(const Seen& seen) const;

  void note_what_is_there();
  void refuse_to_mix(const RunStart& start, const std::vector<std::string>& names) const;
  void delete_own(const std::vector<std::string>& names, const std::string& but);
  void find_lists(const std::vector<std::string>& names, const std::string& run_id);
  void refuse_fixed_names_of_others() const;

  [[nodiscard]] std::string free_name(const Request& request) const;
  [[nodiscard]] bool is_taken(const std::string& name, const Request& request) const;
  void warn_of_restart(const Request& request) const;
  [[nodiscard]] CommitRecord record_for(const Request& request, const StateDict& objects, const SavePoint& point) const;
  [[nodiscard]] static Candidate candidate_of(const CommitRecord& record);
  void own(const std::string& name, Owned owned, Candidate candidate);
  void leave_to_nobody(const std::string& name);
  void evict(const std::vector<std::string>& left);
  void discard(const std::string& name);
  void tell(const SavedCheckpoint& saved);

  [[nodiscard]] Checkpoint load_newest(const Storage& from, const std::string& folder, Verify verify) const;
  [[nodiscard]] Checkpoint read(const std::filesystem::path& file, Verify verify) const;
  void note_unverified(const std::string& source, Verified verified) const;

  SaverOptions options_;
  mutable std::mutex mutex_;  // of all below
  std::vector<Series> series_;
  std::vector<std::function<void(const SavedCheckpoint&)>> listeners_;
  bool opened_ = false;
  bool point_failed_ = false;
  std::unordered_set<std::string> foreign_;  // names that are others'
  std::unordered_map<std::string, Owned> owned_;
  std::vector<std::string> ruled_;      // of those that rules look at, the name and,
  std::vector<Candidate> candidates_;   // place by place, what they may know; empty without rules
};

}  // namespace marlin
