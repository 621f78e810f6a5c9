#include "lists/saver.h"

#include <algorithm>
#include <utility>

#include "checkpoint_parts.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

using Order = RetentionRules::Order;

constexpr const char* kParts[] = {"module_interface_state", "trainer_state", "trainer_backend_state"};
constexpr const char* kOwnKey = "checkpointer";
constexpr const char* kSeveral = "checkpoint";

[[noreturn]] void refuse(const std::string& why) { throw Error(Errc::kInvalidArgument, why); }

bool is_whole_run(const StateDict& objects) {
  return std::all_of(std::begin(kParts), std::end(kParts), [&](const char* part) { return objects.contains(part); });
}

}  // namespace

Saver::Saver(SaverOptions options) : options_(std::move(options)) {
  const auto& objects = options_.objects;
  const std::string there_are = join({kParts[0], kParts[1], kParts[2]});
  if (objects.empty()) refuse(concat(options_.objects_option, ": names nothing to keep; there are: ", there_are));
  for (const std::string& object : objects) {
    if (std::find(std::begin(kParts), std::end(kParts), object) == std::end(kParts)) {
      refuse(concat(options_.objects_option, ": '", object, "' is ", object == kOwnKey ? "reserved for the checkpointer's own state" : "no part of a run's state", "; there are: ", there_are));
    }
    if (std::count(objects.begin(), objects.end(), object) > 1) refuse(concat(options_.objects_option, ": '", object, "' stands there twice"));
  }
}

size_t Saver::add(Series series) {
  series_.push_back(std::move(series));
  return series_.size() - 1;
}

void Saver::log(LogLevel level, const std::string& line) const {
  if (level < options_.level || !options_.logger->enabled(level)) return;
  options_.logger->log(level, options_.log_name.empty() ? line : concat(options_.log_name, ": ", line));
}

StateDict Saver::objects_of(const Checkpoint& checkpoint) const {
  StateDict objects;
  for (const auto& part : root_of(checkpoint)) {
    if (std::find(options_.objects.begin(), options_.objects.end(), to_string(part.key)) != options_.objects.end()) objects.set(part.key, part.value);
  }
  return objects;
}

std::string Saver::name_of(const StateDict& objects, bool own) {
  if (objects.empty()) refuse("there are no objects to checkpoint");
  if (own && objects.contains(kOwnKey)) refuse(concat("an object is called '", kOwnKey, "', which is the name of the checkpointer's own state"));
  if (objects.size() > 1) return kSeveral;
  const std::string name = to_string(objects.begin()->key);
  if (name.empty() || name.starts_with('.') || holds_separator(name)) refuse(concat("an object is called '", name, "', which cannot be part of a file's name"));
  return name;
}

std::string Saver::host_name() const { return options_.objects.size() == 1 ? options_.objects.front() : kSeveral; }

std::string Saver::list_id(const Series& series) const {
  const std::string& prefix = series.parts.filename_prefix;
  return concat(options_.owner, ":", series.title, prefix.empty() ? "" : ":", prefix);
}

std::vector<RetentionList> Saver::lists() const {
  const std::lock_guard lock(mutex_);
  std::vector<RetentionList> lists;
  for (const Series& series : series_) lists.push_back(series.list);
  return lists;
}

void Saver::reset(size_t series) {
  const std::lock_guard lock(mutex_);
  for (const RetentionList::Entry& entry : series_[series].list.entries()) leave_to_nobody(entry.name);
  series_[series].list.reset();
}

void Saver::load_list(size_t series, const StateDict& state) {
  RetentionList loaded(series_[series].list.rules());
  loaded.load_state(state);
  const std::vector<std::string> names = options_.storage->list();
  const std::unordered_set<std::string> there(names.begin(), names.end());
  std::vector<Seen> found;
  for (const RetentionList::Entry& entry : std::vector(loaded.entries())) {
    if (there.contains(entry.name)) {
      found.push_back(options_.keep.empty() ? Seen{entry.name, {}} : look_at(entry.name));
      continue;
    }
    log(LogLevel::kWarning, concat("the restored list has ", options_.storage->where(entry.name), ", which is not there any more; it is left out"));
    loaded.remove(entry.name);
  }
  const std::lock_guard lock(mutex_);
  for (const RetentionList::Entry& entry : series_[series].list.entries()) leave_to_nobody(entry.name);
  for (const Seen& seen : found) {
    foreign_.erase(seen.name);
    NameParts parts = series_[series].parts;
    parts.name.clear();
    const auto parsed = series_[series].pattern.parse(seen.name, parts);
    own(seen.name, {parsed ? parsed->global_step.value_or(-1) : -1}, seen.record ? candidate_of(*seen.record) : Candidate());
  }
  series_[series].list = std::move(loaded);
}

// A name may be written over by the state that has it already, and by any where all names are one; never otherwise.
bool Saver::is_taken(const std::string& name, const Request& request) const {
  const Series& series = series_[request.series];
  if (series.pattern.is_fixed()) return request.suspect && name == series.pattern.name([&] { NameParts parts = series.parts; parts.name = request.name; return parts; }());
  if (foreign_.contains(name)) return true;
  const auto found = owned_.find(name);
  if (found == owned_.end()) return false;
  const bool says_step = series.pattern.has(NamePattern::Field::kGlobalStep);
  return request.suspect || found->second.suspect || !says_step || found->second.step != request.step;
}

std::string Saver::free_name(const Request& request) const {
  const std::lock_guard lock(mutex_);
  const Series& series = series_[request.series];
  NameParts parts = series.parts;
  parts.name = request.name;
  parts.global_step = request.step;
  if (request.ranked) parts.score = request.priority;
  return unique_name(series.pattern.name(parts), request.step, [&](const std::string& name) { return is_taken(name, request); });
}

void Saver::warn_of_restart(const Request& request) const {
  const std::string newest = with_list(request.series, [&](const RetentionList& list) {
    const bool below = list.rules().order == Order::kAge && !list.entries().empty() && request.priority < list.entries().back().priority;
    return below ? list.entries().back().name : std::string();
  });
  if (newest.empty() || request.suspect) return;
  log(LogLevel::kWarning, concat("step ", request.step, " is below the newest that is kept (", newest, "): the run has gone on from an earlier state; it is saved all the same"));
}

CommitRecord Saver::record_for(const Request& request, const StateDict& objects, const SavePoint& point) const {
  CommitRecord record = record_of(point);
  record.kind = is_whole_run(objects) ? "full" : "objects";
  record.list = list_id(series_[request.series]);
  if (request.ranked) record.score = request.priority;
  return record;
}

std::string Saver::save(const Request& request, StateDict objects, const SavePoint& point) {
  if (!opened_) note_what_is_there();
  const std::string name = free_name(request);
  warn_of_restart(request);
  const CommitRecord record = record_for(request, objects, point);
  if (request.own_state) {
    std::vector<RetentionList> after = lists();
    if (!request.suspect) static_cast<void>(after[request.series].add(request.priority, name));
    objects.set(kOwnKey, request.own_state(after));
  }
  const std::string where = options_.storage->put(name, objects, record);
  std::vector<std::string> left;
  {
    const std::lock_guard lock(mutex_);
    own(name, {request.step, request.suspect}, candidate_of(record));
    if (!request.suspect) left = series_[request.series].list.add(request.priority, name);
  }
  if (!request.suspect) evict(left);
  tell({name, where, record.score, point});
  return where;
}

// Numbers count what is completed, from 1, as names do.
KeepPolicy::Candidate Saver::candidate_of(const CommitRecord& record) {
  const bool is_step = record.unit == to_string(Unit::kStep);
  return {is_step ? Unit::kStep : Unit::kEpoch, is_step ? record.global_step : record.epoch + 1, record.global_step, record.metrics};
}

void Saver::own(const std::string& name, Owned owned, Candidate candidate) {
  Owned& known = owned_[name];
  owned.ruled = known.ruled;
  if (!options_.keep.empty() && !owned.suspect) {
    if (!owned.ruled) {
      owned.ruled = ruled_.size();
      ruled_.push_back(name);
      candidates_.emplace_back();
    }
    candidates_[*owned.ruled] = std::move(candidate);
  }
  known = owned;
}

// The file stays for ever, and so its name stays taken.
void Saver::leave_to_nobody(const std::string& name) {
  const auto found = owned_.find(name);
  if (found == owned_.end() || !found->second.ruled) return;
  const size_t place = *std::exchange(found->second.ruled, std::nullopt);
  ruled_[place] = std::move(ruled_.back());
  candidates_[place] = std::move(candidates_.back());
  ruled_.pop_back();
  candidates_.pop_back();
  if (place < ruled_.size()) owned_[ruled_[place]].ruled = place;
}

// What left a list goes, unless a rule keeps it; and what only a rule kept goes once none does any more.
void Saver::evict(const std::vector<std::string>& left) {
  if (options_.keep.empty()) {
    for (const std::string& name : left) discard(name);
    return;
  }
  std::vector<std::string> gone;
  {
    const std::lock_guard lock(mutex_);
    const std::vector<std::string> reasons = options_.keep.reasons(candidates_);
    for (const std::string& name : left) {
      const auto found = owned_.find(name);
      if (found == owned_.end() || !found->second.ruled) gone.push_back(name);
    }
    std::unordered_set<std::string_view> listed;
    for (const Series& series : series_) {
      for (const RetentionList::Entry& entry : series.list.entries()) listed.insert(entry.name);
    }
    for (size_t i = 0; i < reasons.size(); ++i) {
      if (reasons[i].empty() && !listed.contains(ruled_[i])) gone.push_back(ruled_[i]);
    }
  }
  for (const std::string& name : gone) discard(name);
}

void Saver::discard(const std::string& name) {
  const std::string where = options_.storage->where(name);
  try {
    const bool was_there = options_.storage->remove(name);
    log(was_there ? LogLevel::kInfo : LogLevel::kWarning, was_there ? concat("removed ", where) : concat("could not remove ", where, ": it was gone already"));
  } catch (const std::exception& error) {
    log(LogLevel::kWarning, one_line(error.what()));
    const std::lock_guard lock(mutex_);
    return leave_to_nobody(name);  // it is still there, so its name stays taken
  }
  const std::lock_guard lock(mutex_);
  leave_to_nobody(name);
  owned_.erase(name);
}

void Saver::on_saved(std::function<void(const SavedCheckpoint&)> listener) {
  const std::lock_guard lock(mutex_);
  listeners_.push_back(std::move(listener));
}

// What is saved is saved, whatever those who hear of it throw.
void Saver::tell(const SavedCheckpoint& saved) {
  std::vector<std::function<void(const SavedCheckpoint&)>> listeners;
  {
    const std::lock_guard lock(mutex_);
    listeners = listeners_;
  }
  for (const auto& listener : listeners) {
    try {
      listener(saved);
    } catch (const std::exception& error) {
      log(LogLevel::kWarning, concat("a listener that was told of ", saved.where, " failed: ", one_line(error.what())));
    } catch (...) {
      log(LogLevel::kWarning, concat("a listener that was told of ", saved.where, " failed"));
    }
  }
}

void Saver::point(const std::string& link, const std::string& name) {
  try {
    options_.storage->point(link, name);
  } catch (const std::exception& error) {
    if (!std::exchange(point_failed_, true)) log(LogLevel::kWarning, concat(one_line(error.what()), "; the links that lead to the best and the newest are left as they are"));
  }
}

}  // namespace marlin
