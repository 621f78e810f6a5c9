// The part of Saver that looks at what is there: before a run, and to resume one.
#include <algorithm>
#include <system_error>
#include <tuple>

#include "checkpoint_parts.h"
#include "lists/saver.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

bool is_set(const std::optional<std::string>& option) { return option && !option->empty(); }

}  // namespace

bool Saver::could_be_called(std::string_view file) const { return series_of(file, {}).has_value(); }
bool Saver::run_could_write(std::string_view file) const { return series_of(file, host_name()).has_value(); }

// @param object_name  empty: whatever it is.
std::optional<size_t> Saver::series_of(std::string_view file, const std::string& object_name) const {
  for (size_t i = 0; i < series_.size(); ++i) {
    NameParts parts = series_[i].parts;
    parts.name = object_name;
    if (series_[i].pattern.parse(file, parts)) return i;
  }
  return std::nullopt;
}

// A prefix says whose a file is; without one, only names of what a run keeps do.
bool Saver::could_write(std::string_view file) const {
  return std::any_of(series_.begin(), series_.end(), [&](const Series& series) {
    NameParts parts = series.parts;
    const bool has_prefix = !parts.filename_prefix.empty() && series.pattern.has(NamePattern::Field::kPrefix);
    parts.name = has_prefix ? std::string() : host_name();
    return series.pattern.parse(file, parts).has_value();
  });
}

Saver::Seen Saver::look_at(const std::string& name) const {
  Seen seen{name, {}};
  try {
    seen.record = options_.storage->get(name, Verify::kOff).record;
  } catch (const Error& error) {
    log(LogLevel::kWarning, concat(error.what(), "; it is left where it is, and counts no more"));
    seen.broken = true;
  }
  return seen;
}

bool Saver::is_own(const Seen& seen) const {
  const auto series = series_of(seen.name, {});
  return series && seen.record && std::any_of(series_.begin(), series_.end(), [&](const Series& each) { return list_id(each) == seen.record->list; });
}

// Of one that is_own().
const Series& Saver::series_with(const std::string& id) const {
  return *std::find_if(series_.begin(), series_.end(), [&](const Series& series) { return list_id(series) == id; });
}

bool Saver::is_kept_for_resume(const Seen& seen) const { return seen.record && seen.record->cause != to_string(Cause::kException); }

// Used without a run: nothing that is there is ours but what a list that was loaded has.
void Saver::note_what_is_there() {
  const std::vector<std::string> names = options_.storage->list();
  const std::lock_guard lock(mutex_);
  opened_ = true;
  for (const std::string& name : names) {
    if (!owned_.contains(name)) foreign_.insert(name);
  }
}

// What one that threw before its first save left does not keep it from being started again.
void Saver::refuse_to_mix(const RunStart& start, const std::vector<std::string>& names) const {
  std::vector<std::string> own;
  for (const std::string& name : names) {
    if (!could_write(name)) continue;
    const bool is_suspect = start.looked && [&] {
      const Seen seen = look_at(name);
      return seen.record && !is_kept_for_resume(seen);
    }();
    if (!is_suspect) own.push_back(name);
  }
  if (own.empty()) return;
  std::sort(own.begin(), own.end());
  throw Error(Errc::kInvalidArgument, concat("'", fs::path(options_.storage->where(own.front())).parent_path().string(), "' holds checkpoints of an earlier run (", own.front(),
      own.size() > 1 ? concat(" and ", own.size() - 1, " more") : "", "): give --resume auto to go on with it, --checkpointer.delete_existing_checkpoints to start over, or another --checkpointer.save_dir"));
}

// Of any run, but of these lists alone; what is broken is known by its name.
void Saver::delete_own(const std::vector<std::string>& names, const std::string& but) {
  for (const std::string& name : names) {
    if (!could_write(name) || options_.storage->where(name) == but) continue;
    const Seen seen = look_at(name);
    if (is_own(seen) || (seen.broken && series_of(name, host_name()))) discard(name);
  }
}

// The files themselves say which lists they were in: what was in memory when a run was killed is not needed.
void Saver::find_lists(const std::vector<std::string>& names, const std::string& run_id) {
  struct Found {
    int64_t global_step;
    size_t series;
    RetentionList::Entry entry;
  };
  std::vector<Found> found;
  for (const std::string& name : names) {
    const bool could_be = could_be_called(name);
    const Seen seen = could_be ? look_at(name) : Seen{name, {}};
    const std::lock_guard lock(mutex_);
    if (!is_own(seen) || seen.record->run_id != run_id) {
      const bool replaceable = seen.broken && std::any_of(series_.begin(), series_.end(), [&](const Series& each) { return each.pattern.is_fixed() && each.pattern.parse(name, each.parts); });
      if (!replaceable) foreign_.insert(name);
      continue;
    }
    const Series& series = series_with(seen.record->list);
    const auto place = static_cast<size_t>(&series - series_.data());
    NameParts parts = series.parts;
    parts.name.clear();
    const auto parsed = series.pattern.parse(name, parts);
    const int64_t step = parsed ? parsed->global_step.value_or(seen.record->global_step) : seen.record->global_step;
    const bool suspect = !is_kept_for_resume(seen);
    own(name, {step, suspect}, candidate_of(*seen.record));
    const bool by_age = series.list.rules().order == RetentionRules::Order::kAge;
    if (suspect || (!by_age && !seen.record->score)) continue;
    found.push_back({seen.record->global_step, place, {by_age ? static_cast<double>(step) : *seen.record->score, name}});
  }
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return std::tie(a.global_step, a.entry.name) < std::tie(b.global_step, b.entry.name); });
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < series_.size(); ++i) {
    std::vector<RetentionList::Entry> entries;
    for (Found& each : found) {
      if (each.series == i) entries.push_back(std::move(each.entry));
    }
    series_[i].list.assign(std::move(entries));
  }
}

void Saver::refuse_fixed_names_of_others() const {
  for (const Series& series : series_) {
    if (!series.pattern.is_fixed()) continue;
    NameParts parts = series.parts;
    parts.name = host_name();
    if (const std::string name = series.pattern.name(parts); foreign_.contains(name)) {
      throw Error(Errc::kInvalidArgument, concat(options_.storage->where(name), " is not of this run, and this checkpointer would write over it: give another name for it, or another --checkpointer.save_dir"));
    }
  }
}

void Saver::open(const RunStart& start) {
  options_.storage->prepare([this](std::string_view name) { return could_be_called(name); });
  const bool fresh = start.loaded_from.empty();
  std::vector<std::string> names = options_.storage->list();
  if (options_.delete_existing) {
    delete_own(names, start.loaded_from);
    names = options_.storage->list();
  } else if (fresh && options_.require_empty) {
    refuse_to_mix(start, names);
  }
  {
    const std::lock_guard lock(mutex_);
    opened_ = true;
    foreign_.clear();
    owned_.clear();
    ruled_.clear();
    candidates_.clear();
    for (Series& series : series_) series.list.reset();
    if (fresh) foreign_.insert(names.begin(), names.end());
  }
  if (!fresh) find_lists(names, start.run_id);
  refuse_fixed_names_of_others();
}

bool Saver::wants_load() const { return is_set(options_.load_dir) || is_set(options_.load_filename); }

void Saver::note_unverified(const std::string& source, Verified verified) const {
  if (verified == Verified::kNothing) log(LogLevel::kWarning, concat(source, ": its tensors were not verified (checkpointer.verify off)"));
}

Checkpoint Saver::read(const fs::path& file, Verify verify) const {
  Verified verified = Verified::kNothing;
  Checkpoint found = read_checkpoint(file, verify, &verified);
  note_unverified(file.string(), verified);
  return found;
}

Checkpoint Saver::load(const LoadRequest& request) const {
  if (request.from == LoadRequest::From::kPath) {
    std::error_code error;
    if (!fs::is_directory(request.path, error)) return read(request.path, request.verify);
    Checkpoint found = load_newest(DiskStorage(request.path), request.path, request.verify);
    if (found.empty() && request.required) throw Error(Errc::kNotFound, concat("no checkpoint of this checkpointer's in ", request.path));
    return found;
  }
  const std::string own_folder = fs::path(options_.storage->where("x")).parent_path().string();
  if (is_set(options_.load_filename)) return read(fs::path(is_set(options_.load_dir) ? *options_.load_dir : own_folder) / *options_.load_filename, request.verify);
  std::vector<std::string> searched;
  if (is_set(options_.load_dir)) {
    searched.push_back(*options_.load_dir);
    if (Checkpoint found = load_newest(DiskStorage(*options_.load_dir), *options_.load_dir, request.verify); !found.empty()) return found;
  }
  if (request.from == LoadRequest::From::kAnywhere) {
    searched.push_back(own_folder);
    if (Checkpoint found = load_newest(*options_.storage, own_folder, request.verify); !found.empty()) return found;
  }
  if (request.required) {
    throw Error(Errc::kNotFound, concat("no checkpoint to resume from: no file of this checkpointer's in ", searched.empty() ? "any folder" : join(searched), "; --resume auto starts afresh if there is none"));
  }
  return {};
}

// Names need not say the step, so the files are asked. One that was kept after an exception is not resumed from by itself.
Checkpoint Saver::load_newest(const Storage& from, const std::string& folder, Verify verify) const {
  struct Found {
    int64_t global_step;
    bool is_epoch, by_age;
    std::string name, run_id;
  };
  std::vector<Found> found;
  std::string problem;
  for (const std::string& name : from.list()) {
    if (!series_of(name, host_name())) continue;
    try {
      const Seen seen{name, from.get(name, Verify::kOff).record};
      if (!is_own(seen) || !is_kept_for_resume(seen)) continue;
      const bool by_age = series_with(seen.record->list).list.rules().order == RetentionRules::Order::kAge;  // saved each time, so never the older one
      found.push_back({seen.record->global_step, seen.record->unit == to_string(Unit::kEpoch), by_age, name, seen.record->run_id});
    } catch (const Error& error) {
      problem = error.what();
    }
  }
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return std::tie(a.global_step, a.is_epoch, a.by_age, a.name) > std::tie(b.global_step, b.is_epoch, b.by_age, b.name); });
  const auto other = std::find_if(found.begin(), found.end(), [&](const Found& each) { return each.run_id != found.front().run_id; });
  if (other != found.end()) {
    throw Error(Errc::kMismatch, concat(folder, " holds checkpoints of several runs (", found.front().name, " and ", other->name, "): name the one to go on from with --resume PATH"));
  }
  for (const Found& each : found) {
    try {
      Archive archive = from.get(each.name, verify);
      Checkpoint checkpoint = checkpoint_of(std::move(archive.root), from.where(each.name));
      note_unverified(checkpoint.source, archive.verified);
      if (!problem.empty()) log(LogLevel::kWarning, concat("a checkpoint is broken and was passed over: ", problem));
      return checkpoint;
    } catch (const Error& error) {
      if (problem.empty()) problem = error.what();
    }
  }
  if (!problem.empty()) throw Error(Errc::kCorrupt, concat("no checkpoint in ", folder, " is whole; the newest: ", problem));
  return {};
}

}  // namespace marlin
