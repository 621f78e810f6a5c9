#include "marlin/checkpointers/best_k_checkpointer.h"

#include <atomic>
#include <cmath>
#include <utility>

#include "checkpoint_parts.h"
#include "lists/list_options.h"
#include "lists/saver.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

using Field = NamePattern::Field;

constexpr const char* kBestLink = "best.pt";
constexpr const char* kLastLink = "last.pt";

[[noreturn]] void refuse(const std::string& why) { throw Error(Errc::kInvalidArgument, concat("checkpointer.", why)); }

double value_of(const SavePoint& point, const std::string& metric, const std::string& asked_by) {
  if (const double* value = point.metrics.find(metric)) return *value;
  std::vector<std::string> names;
  for (const auto& [name, value] : point.metrics) names.push_back(name);
  throw Error(Errc::kNotFound, concat(asked_by, ": there is no metric '", metric, "'; there are: ", names.empty() ? "none" : join(names)));
}

void check_sign(const char* who, int64_t sign) {
  if (sign != 1 && sign != -1) throw Error(Errc::kInvalidArgument, concat(who, ": must be 1 or -1, got ", sign));
}

}  // namespace

std::function<std::optional<double>(const SavePoint&)> get_default_score_fn(std::string metric_name, int64_t sign) {
  check_sign("get_default_score_fn: sign", sign);
  return [metric_name = std::move(metric_name), sign](const SavePoint& point) { return std::optional(static_cast<double>(sign) * value_of(point, metric_name, "the score")); };
}

std::vector<OptionField<BestKOptions>> BestKOptions::option_fields() {
  using O = BestKOptions;
  std::vector<OptionField<O>> fields = {
      option_field("save_dir", &O::save_dir, "Folder for checkpoints."),
      option_field("create_dir", &O::create_dir, "Make the folder if it is not there."),
      option_field("require_empty", &O::require_empty, "Refuse a fresh start while the folder holds names that this checkpointer could write."),
      option_field("filename_prefix", &O::filename_prefix, "First part of every file name; empty: none."),
      option_field("filename_pattern", &O::filename_pattern, "Names of files, of {filename_prefix} {name} {global_step} {score_name} {score} {ext}; not given: the parts there are."),
      option_field("objects", &O::objects, "Parts of the state that are kept; a run can be resumed only from all three."),
      count_field("n_saved", &O::n_saved, "How many stay: the best, or without a score the newest."),
      option_field("score_name", &O::score_name, "The metric that decides, looked at when an epoch ends; not given: the newest stay."),
      option_field("score_sign", &O::score_sign, "-1: the lowest value of the metric is the best.", {.min = -1, .max = 1}),
      option_field("greater_or_equal", &O::greater_or_equal, "One as good as the worst that is kept takes its place, too."),
      option_field("global_step", &O::global_step, "What {global_step} in names counts: step, epoch (both as completed, from 1); auto: step, and only without a score.", {.choices = {"auto", "step", "epoch"}}),
      option_field("include_self", &O::include_self, "Keep the list of what is kept in every file, under 'checkpointer'."),
      option_field("keep_latest", &O::keep_latest, "Keep the newest state beside the best; auto: if no other checkpointer does.", {.choices = {"auto", "true", "false"}}),
      option_field("links", &O::links, "Have best.pt and last.pt lead to the best and the newest."),
      option_field("save_interval", &O::save_interval, "Ignite 0.4's; 1 only: give period or period_steps."),
      option_field("archived", &O::archived, "Ignite 0.4's; has no effect."),
      option_field("save_as_state_dict", &O::save_as_state_dict, "Ignite 0.4's; true only."),
  };
  for (OptionField<O>& field : list_option_fields<O>()) fields.push_back(std::move(field));
  return fields;
}

class BestKCheckpointer::Impl {
 public:
  Impl(BestKOptions options, BestKHooks hooks, const HostContext& host);

  [[nodiscard]] std::optional<double> priority_of(const SavePoint& point) const;
  [[nodiscard]] bool wants(const SavePoint& point) const;
  [[nodiscard]] bool keeps_latest() const noexcept { return options_.keep_latest == KeepLatest::kYes || (options_.keep_latest == KeepLatest::kAuto && scored_ && alone_); }
  [[nodiscard]] int64_t step_of(const SavePoint& point) const;
  std::vector<std::string> save(StateDict objects, const SavePoint& point, bool keep_latest);
  void start(const RunStart& start);

  const BestKOptions options_;
  const BestKHooks hooks_;
  const bool scored_;
  Saver saver_;
  size_t latest_ = 0, list_ = 0;
  std::atomic<bool> alone_ = true;

  mutable OncePerStep is_new_;  // is_due() and do_save() look at the same point

 private:
  [[nodiscard]] NamePattern pattern() const;
  void check_legacy() const;
  void warn_of(const SavePoint& point, const std::string& what) const;
  void set_links(const Saver::Request& saved);

};

namespace {

SaverOptions saver_options_of(const BestKOptions& options, const BestKHooks& hooks, const HostContext& host) {
  SaverOptions result = saver_options(options, "best_k", host, hooks.storage ? hooks.storage : std::make_shared<DiskStorage>(options.save_dir, options.create_dir, host));
  result.objects = options.objects;
  result.objects_option = "checkpointer.objects";
  result.require_empty = options.require_empty;
  return result;
}

}  // namespace

BestKCheckpointer::Impl::Impl(BestKOptions options, BestKHooks hooks, const HostContext& host)
    : options_(std::move(options)), hooks_(std::move(hooks)), scored_(hooks_.score_function || options_.score_name), saver_(saver_options_of(options_, hooks_, host)) {
  check_sign("checkpointer.score_sign", options_.score_sign);
  check_prefix("checkpointer.filename_prefix", options_.filename_prefix);
  if (options_.score_name && options_.score_name->empty()) refuse("score_name: must not be empty");
  check_legacy();
  NameParts parts;
  parts.filename_prefix = options_.filename_prefix;
  parts.score_name = options_.score_name.value_or("");
  const NamePattern latest(options_.filename_prefix.empty() ? "{name}_latest_{global_step}.{ext}" : "{filename_prefix}_{name}_latest_{global_step}.{ext}");
  latest_ = saver_.add({"latest", latest, parts, RetentionList({})});
  const NamePattern names = pattern();
  RetentionRules rules{scored_ ? RetentionRules::Order::kScore : RetentionRules::Order::kAge, options_.n_saved, options_.greater_or_equal};
  static_cast<void>(RetentionList(rules, "checkpointer.n_saved"));
  if (names.is_fixed()) rules.n_saved = 1;  // there is room for one, so it has to be the best
  list_ = saver_.add({"list", names, parts, RetentionList(rules, "checkpointer.n_saved")});
  for (const char* link : {kBestLink, kLastLink}) {
    if (options_.links && saver_.run_could_write(link)) refuse(concat("filename_pattern: '", names.text(), "' may make the name ", link, ", which is a link's; give another pattern, or links false"));
  }
}

NamePattern BestKCheckpointer::Impl::pattern() const {
  const bool has_step = !scored_ || options_.global_step != GlobalStepOf::kAuto || hooks_.global_step_transform;
  const std::string text = options_.filename_pattern ? *options_.filename_pattern : setup_filename_pattern(!options_.filename_prefix.empty(), scored_, scored_ && options_.score_name, has_step);
  NamePattern pattern(text, "checkpointer.filename_pattern");
  if (pattern.has(Field::kScore) && !scored_) refuse(concat("filename_pattern: '", text, "' asks for {score}, but no score decides; give score_name, or a score function"));
  if (pattern.has(Field::kScoreName) && !options_.score_name) refuse(concat("filename_pattern: '", text, "' asks for {score_name}, and there is none"));
  return pattern;
}

void BestKCheckpointer::Impl::check_legacy() const {
  if (options_.save_interval && *options_.save_interval != 1) {
    refuse(concat("save_interval: ", *options_.save_interval, " is not taken any more; give checkpointer.period ", *options_.save_interval, " (epochs) or checkpointer.period_steps ", *options_.save_interval, " (optimizer steps)"));
  }
  if (options_.save_as_state_dict == false) refuse("save_as_state_dict: false is not taken any more; states are all that is kept");
  if (options_.save_interval) saver_.log(LogLevel::kWarning, "save_interval has no effect: every point that is due is looked at; leave it out");
  if (options_.archived) saver_.log(LogLevel::kWarning, "archived has no effect: files are always ZIP archives, not compressed; leave it out");
  if (options_.save_as_state_dict) saver_.log(LogLevel::kWarning, "save_as_state_dict has no effect: states are all that is kept; leave it out");
}

void BestKCheckpointer::Impl::warn_of(const SavePoint& point, const std::string& what) const {
  if (is_new_(point)) saver_.log(LogLevel::kWarning, what);
}

// A metric that a validation makes says nothing of a point between two epochs. Nothing: the point has no place in the list.
std::optional<double> BestKCheckpointer::Impl::priority_of(const SavePoint& point) const {
  if (!scored_) return static_cast<double>(step_of(point));
  if (point.cause == Cause::kException) return std::nullopt;  // whatever it scores, it is not one to choose
  std::optional<double> score;
  if (hooks_.score_function) {
    score = hooks_.score_function(point);
    if (!score) warn_of(point, concat("the score of step ", point.global_step, " is no number; that state is not looked at"));
  } else if (point.unit == Unit::kEpoch) {
    score = static_cast<double>(options_.score_sign) * value_of(point, *options_.score_name, "checkpointer.score_name");
  }
  if (!score || !std::isnan(*score)) return score;
  warn_of(point, concat("the score", options_.score_name ? concat(" '", *options_.score_name, "'") : "", " of step ", point.global_step, " is not a number (NaN); that state does not enter the list of the best"));
  return std::nullopt;
}

bool BestKCheckpointer::Impl::wants(const SavePoint& point) const {
  const auto priority = priority_of(point);
  return priority && saver_.with_list(list_, [&](const RetentionList& list) { return list.wants(*priority); });
}

int64_t BestKCheckpointer::Impl::step_of(const SavePoint& point) const {
  if (hooks_.global_step_transform) return hooks_.global_step_transform(point);
  return options_.global_step == GlobalStepOf::kEpoch ? completed_epochs(point) : point.global_step;
}

std::vector<std::string> BestKCheckpointer::Impl::save(StateDict objects, const SavePoint& point, bool keep_latest) {
  Saver::Request request;
  request.name = Saver::name_of(objects, options_.include_self);
  request.suspect = point.cause == Cause::kException;
  if (options_.include_self) request.own_state = [list = list_](const std::vector<RetentionList>& lists) { return lists[list].state(); };
  const auto priority = priority_of(point);
  const bool enters = priority && saver_.with_list(list_, [&](const RetentionList& kept) { return kept.wants(*priority); });
  if (!enters && !keep_latest && !request.suspect) return {};
  request.series = enters ? list_ : latest_;
  request.priority = enters ? *priority : static_cast<double>(point.global_step);
  request.ranked = enters && scored_;
  request.step = enters ? step_of(point) : point.global_step;
  std::vector<std::string> written = {saver_.save(request, std::move(objects), point)};
  if (options_.links && !request.suspect) set_links(request);
  return written;
}

void BestKCheckpointer::Impl::set_links(const Saver::Request& saved) {
  const auto last = [](const RetentionList& kept) { return kept.last() ? kept.last()->name : std::string(); };
  const auto best = [](const RetentionList& kept) { return kept.best() ? kept.best()->name : std::string(); };
  if (const std::string name = saver_.with_list(saved.series, last); !name.empty()) saver_.point(kLastLink, name);
  if (!saved.ranked) return;
  if (const std::string name = saver_.with_list(list_, best); !name.empty()) saver_.point(kBestLink, name);
}

void BestKCheckpointer::Impl::start(const RunStart& start) {
  alone_ = start.alone;
  if (!start.alone && !scored_ && options_.filename_prefix.empty() && !options_.filename_pattern) {
    refuse("filename_prefix: give one: without a score the names of this checkpointer and of others in one folder cannot be told apart");
  }
  saver_.open(start);
}

BestKCheckpointer::BestKCheckpointer(BestKOptions options, BestKHooks hooks, const HostContext& host) : impl_(std::make_unique<Impl>(std::move(options), std::move(hooks), host)) {
  set_name("best_k");
}

BestKCheckpointer::~BestKCheckpointer() = default;

std::vector<std::string> BestKCheckpointer::save_objects(const StateDict& objects, const SavePoint& point) {
  impl_->is_new_.reset();
  std::vector<std::string> written = impl_->save(objects, point, impl_->options_.keep_latest == KeepLatest::kYes);
  for (const std::string& where : written) impl_->saver_.log(LogLevel::kInfo, concat("saved ", where));
  return written;
}

std::string BestKCheckpointer::last_checkpoint() const {
  return impl_->saver_.with_list(impl_->list_, [&](const RetentionList& list) { return impl_->saver_.where(list.last()); });
}

std::string BestKCheckpointer::best_checkpoint() const {
  return impl_->saver_.with_list(impl_->list_, [&](const RetentionList& list) { return impl_->saver_.where(impl_->scored_ ? list.best() : list.last()); });
}

void BestKCheckpointer::reset() { impl_->saver_.reset(impl_->list_); }

StateDict BestKCheckpointer::state() const {
  return impl_->saver_.with_list(impl_->list_, [](const RetentionList& list) { return list.state(); });
}

void BestKCheckpointer::load_state(const StateDict& state) { impl_->saver_.load_list(impl_->list_, state); }

LoadReport BestKCheckpointer::reload_objects(const LoadTargets::Named& to_load, NameParts parts, const LoadRules& rules) {
  if (parts.filename_prefix.empty()) parts.filename_prefix = impl_->options_.filename_prefix;
  if (parts.score_name.empty()) parts.score_name = impl_->options_.score_name.value_or("");
  return load_objects(to_load, impl_->saver_.storage().get(impl_->saver_.name(impl_->list_, parts), Verify::kFull), rules);
}

void BestKCheckpointer::on_saved(std::function<void(const SavedCheckpoint&)> listener) { impl_->saver_.on_saved(std::move(listener)); }

void BestKCheckpointer::do_open(const RunStart& start) { impl_->start(start); }
bool BestKCheckpointer::is_due(const SavePoint& point) const { return impl_->wants(point) || impl_->keeps_latest(); }

std::vector<std::string> BestKCheckpointer::do_save(const Checkpoint& checkpoint, const SavePoint& point) {
  return impl_->save(impl_->saver_.objects_of(checkpoint), point, impl_->keeps_latest());
}

// Each of its files has the model's state; a file of the model alone is others' to write.
std::vector<std::string> BestKCheckpointer::do_save_model(const StateDict&, int64_t) { return {}; }
bool BestKCheckpointer::do_has_model(int64_t) const { return true; }
bool BestKCheckpointer::do_wants_load() const { return impl_->saver_.wants_load(); }
Checkpoint BestKCheckpointer::do_load(const LoadRequest& request) { return impl_->saver_.load(request); }

}  // namespace marlin
