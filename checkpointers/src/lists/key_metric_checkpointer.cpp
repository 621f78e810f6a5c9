#include "marlin/checkpointers/key_metric_checkpointer.h"

#include <array>
#include <atomic>
#include <cmath>
#include <numeric>
#include <utility>

#include "checkpoint_parts.h"
#include "lists/list_options.h"
#include "lists/saver.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw Error(Errc::kInvalidArgument, concat("checkpointer.", why)); }

// Of a run, or of as much of it as there will be.
bool is_last(const SavePoint& point) { return point.cause == Cause::kEnd || point.cause == Cause::kStop || point.cause == Cause::kException; }

// A file's name that never changes.
NamePattern fixed_pattern(const std::string& file_name, const char* option) {
  std::string text;
  for (const char c : file_name) text += c == '{' || c == '}' ? std::string(2, c) : std::string(1, c);
  return NamePattern(text, option);
}

}  // namespace

std::vector<OptionField<KeyMetricOptions>> KeyMetricOptions::option_fields() {
  using O = KeyMetricOptions;
  std::vector<OptionField<O>> fields = {
      option_field("save_dir", &O::save_dir, "Folder for checkpoints; made when first needed."),
      option_field("save_dict", &O::save_dict, "Parts of the state that are kept; a run can be resumed only from all three."),
      option_field("name", &O::name, "Stands before this checkpointer's lines in the log; empty: nothing does."),
      option_field("file_prefix", &O::file_prefix, "First part of every file name; empty: none."),
      option_field("save_final", &O::save_final, "Keep the state at the end of the run, when it is stopped, and after an exception."),
      option_field("final_filename", &O::final_filename, "Name of that file; not given: ..._final_iteration=N.pt."),
      option_field("save_key_metric", &O::save_key_metric, "Keep the best by a metric, looked at when an epoch ends."),
      option_field("key_metric_name", &O::key_metric_name, "That metric."),
      option_field("key_metric_n_saved", &O::key_metric_n_saved, "How many of the best stay.", {.min = 1}),
      option_field("key_metric_filename", &O::key_metric_filename, "Name of that file; not given: ..._key_metric=0.9387.pt. Wants key_metric_n_saved 1."),
      option_field("key_metric_save_state", &O::key_metric_save_state, "Keep the lists in the files of the key metric, under 'checkpointer'."),
      option_field("key_metric_greater_or_equal", &O::key_metric_greater_or_equal, "One as good as the worst that is kept takes its place, too."),
      option_field("key_metric_negative_sign", &O::key_metric_negative_sign, "The lowest value is the best; names have it with the sign turned."),
      option_field("epoch_level", &O::epoch_level, "save_interval counts epochs; false: optimizer steps."),
      option_field("save_interval", &O::save_interval, "Keep a state every so many epochs or steps, counted from 1; 0: none.", {.min = 0}),
      count_field("n_saved", &O::n_saved, "How many of those of the interval stay."),
  };
  for (OptionField<O>& field : list_option_fields<O>()) fields.push_back(std::move(field));
  return fields;
}

class KeyMetricCheckpointer::Impl {
 public:
  Impl(KeyMetricOptions options, const HostContext& host, std::shared_ptr<Storage> storage);

  [[nodiscard]] bool is_due(const SavePoint& point, const SaveSchedule& schedule) const;
  std::vector<std::string> save(const StateDict& objects, const SavePoint& point, const SaveSchedule& schedule);
  [[nodiscard]] StateDict state(const std::vector<RetentionList>& lists) const;
  void load_state(const StateDict& state);

  const KeyMetricOptions options_;
  Saver saver_;
  // Places in the saver; of parts that are off they are unset. States of epochs and of steps have lists of their own, since their numbers
  // cannot be compared: one is the interval's, the other takes what is asked for by name, or by the host's periods.
  std::optional<size_t> final_, key_metric_, interval_, requested_;

  mutable OncePerStep is_new_;  // is_due() and do_save() look at the same point

 private:
  void check(const KeyMetricOptions& options) const;
  size_t add_part(const char* title, const char* score_name, const std::optional<std::string>& file_name, const char* option, RetentionRules rules, const char* count_option);
  [[nodiscard]] bool is_at_interval(const SavePoint& point, const SaveSchedule& schedule) const;
  [[nodiscard]] bool is_shown(const RetentionList& list, std::optional<size_t> place) const;
  [[nodiscard]] std::optional<double> metric_of(const SavePoint& point) const;
  [[nodiscard]] bool is_better(const SavePoint& point) const;

  struct Part {
    const char* name;
    std::optional<size_t> Impl::* place;
  };
  static constexpr std::array<Part, 4> kParts = {{{"final", &Impl::final_}, {"key_metric", &Impl::key_metric_}, {"interval", &Impl::interval_}, {"requested", &Impl::requested_}}};
  mutable std::atomic<int64_t> looked_at_ = -1;  // the newest epoch whose metric has had its chance
  std::atomic<int64_t> newest_interval_ = -1;    // the number that was saved last for the interval
};

namespace {

SaverOptions saver_options_of(const KeyMetricOptions& options, const HostContext& host, std::shared_ptr<Storage> storage) {
  SaverOptions result = saver_options(options, "key_metric", host, storage ? std::move(storage) : std::make_shared<DiskStorage>(options.save_dir, /*create=*/true, host));
  result.log_name = options.name;
  result.objects = options.save_dict;
  result.objects_option = "checkpointer.save_dict";
  return result;
}

}  // namespace

void KeyMetricCheckpointer::Impl::check(const KeyMetricOptions& options) const {
  if (!options.save_final && !options.save_key_metric && options.save_interval == 0) refuse("save_final, save_key_metric, save_interval: none of them is on, so nothing would be kept; give at least one");
  if (options.save_key_metric && (!options.key_metric_name || options.key_metric_name->empty())) refuse("key_metric_name: save_key_metric needs the name of a metric, as logs show it: val/accuracy");
  if (options.key_metric_filename && options.key_metric_n_saved > 1) refuse(concat("key_metric_filename: '", *options.key_metric_filename, "' is one file, but key_metric_n_saved is ", options.key_metric_n_saved));
  if (options.final_filename && options.final_filename == options.key_metric_filename) refuse(concat("final_filename, key_metric_filename: both are '", *options.final_filename, "', so that one would replace the other"));
  check_prefix("checkpointer.file_prefix", options.file_prefix);
}

size_t KeyMetricCheckpointer::Impl::add_part(const char* title, const char* score_name, const std::optional<std::string>& file_name, const char* option, RetentionRules rules, const char* count_option) {
  NameParts parts;
  parts.filename_prefix = options_.file_prefix;
  parts.score_name = score_name;
  const bool by_age = rules.order == RetentionRules::Order::kAge;
  const std::string text = concat(options_.file_prefix.empty() ? "" : "{filename_prefix}_", "{name}_{score_name}=", by_age ? "{global_step}" : "{score}", ".{ext}");
  return saver_.add({title, file_name ? fixed_pattern(*file_name, option) : NamePattern(text), parts, RetentionList(rules, count_option)});
}

KeyMetricCheckpointer::Impl::Impl(KeyMetricOptions options, const HostContext& host, std::shared_ptr<Storage> storage)
    : options_(std::move(options)), saver_(saver_options_of(options_, host, std::move(storage))) {
  check(options_);
  using Order = RetentionRules::Order;
  if (options_.save_final) final_ = add_part("final", "final_iteration", options_.final_filename, "checkpointer.final_filename", {Order::kAge, 1}, "n_saved");
  if (options_.save_key_metric) {
    key_metric_ = add_part("key metric", "key_metric", options_.key_metric_filename, "checkpointer.key_metric_filename",
                           {Order::kScore, options_.key_metric_n_saved, options_.key_metric_greater_or_equal}, "checkpointer.key_metric_n_saved");
  }
  const RetentionRules rules{Order::kAge, options_.n_saved};
  const size_t epochs = add_part("epoch", "epoch", {}, "", rules, "checkpointer.n_saved");
  const size_t iterations = add_part("iteration", "iteration", {}, "", rules, "checkpointer.n_saved");
  interval_ = options_.epoch_level ? epochs : iterations;
  requested_ = options_.epoch_level ? iterations : epochs;
}

// At the end, what the interval should have had and has not: that save failed, or was left out.
bool KeyMetricCheckpointer::Impl::is_at_interval(const SavePoint& point, const SaveSchedule& schedule) const {
  if (point.cause == Cause::kException) return false;
  const bool is_epoch = point.unit == Unit::kEpoch;
  const int64_t number = is_epoch ? completed_epochs(point) : point.global_step;
  const bool by_number = is_epoch == options_.epoch_level && options_.save_interval > 0 && number % options_.save_interval == 0;
  if (is_last(point)) return by_number && newest_interval_ != number;
  const bool by_host = !is_epoch && (schedule.period_seconds || schedule.also_when || (schedule.period_steps && point.global_step % *schedule.period_steps == 0));
  return by_number || by_host || point.cause == Cause::kRequest;
}

// A metric that a validation makes says nothing of a point between two epochs.
std::optional<double> KeyMetricCheckpointer::Impl::metric_of(const SavePoint& point) const {
  if (!key_metric_ || point.unit != Unit::kEpoch || point.cause == Cause::kException) return std::nullopt;
  const double metric = *get_default_score_fn(*options_.key_metric_name, options_.key_metric_negative_sign ? -1 : 1)(point);
  if (!std::isnan(metric)) return metric;
  if (is_new_(point)) {
    saver_.log(LogLevel::kWarning, concat("the key metric '", *options_.key_metric_name, "' of step ", point.global_step, " is not a number (NaN); that state does not enter the list of the best"));
  }
  return std::nullopt;
}

// An epoch that was looked at is not looked at again for being the last.
bool KeyMetricCheckpointer::Impl::is_better(const SavePoint& point) const {
  if (is_last(point) && looked_at_ == point.epoch) return false;
  const auto metric = metric_of(point);
  return metric && saver_.with_list(*key_metric_, [&](const RetentionList& list) { return list.wants(*metric); });
}

bool KeyMetricCheckpointer::Impl::is_due(const SavePoint& point, const SaveSchedule& schedule) const {
  const bool better = is_better(point);
  if (!better && point.unit == Unit::kEpoch) looked_at_ = point.epoch;
  return better || is_at_interval(point, schedule);
}

std::vector<std::string> KeyMetricCheckpointer::Impl::save(const StateDict& objects, const SavePoint& point, const SaveSchedule& schedule) {
  Saver::Request request;
  request.name = Saver::name_of(objects, options_.key_metric_save_state);
  std::vector<std::string> written;
  if (is_better(point)) {
    request.series = *key_metric_;
    request.priority = *metric_of(point);
    request.ranked = true;
    request.step = point.global_step;
    if (options_.key_metric_save_state) request.own_state = [this](const std::vector<RetentionList>& lists) { return state(lists); };
    written.push_back(saver_.save(request, objects, point));
    request.own_state = {};
    request.ranked = false;
  }
  if (point.unit == Unit::kEpoch) looked_at_ = point.epoch;
  if (is_at_interval(point, schedule)) {
    const bool is_epoch = point.unit == Unit::kEpoch;
    request.series = is_epoch == options_.epoch_level ? *interval_ : *requested_;
    request.step = is_epoch ? completed_epochs(point) : point.global_step;
    request.priority = static_cast<double>(request.step);
    written.push_back(saver_.save(request, objects, point));
    if (request.series == *interval_) newest_interval_ = request.step;
  }
  if (final_ && is_last(point)) {
    request.series = *final_;
    request.step = point.global_step;
    request.priority = static_cast<double>(request.step);
    request.suspect = point.cause == Cause::kException;
    written.push_back(saver_.save(request, objects, point));
  }
  return written;
}

// A part that is off has a list only if something was asked for.
bool KeyMetricCheckpointer::Impl::is_shown(const RetentionList& list, std::optional<size_t> place) const {
  return !list.entries().empty() || !(place == requested_ || (place == interval_ && options_.save_interval == 0));
}

StateDict KeyMetricCheckpointer::Impl::state(const std::vector<RetentionList>& lists) const {
  StateDict state;
  for (const Part& part : kParts) {
    const auto& place = this->*part.place;
    if (!place || !is_shown(lists[*place], place)) continue;
    state.set(part.name, lists[*place].state());
  }
  return state;
}

void KeyMetricCheckpointer::Impl::load_state(const StateDict& state) {
  for (const Part& part : kParts) {
    const Value* own = state.find(part.name);
    if (own != nullptr && !own->get_if<StateDict>()) throw Error(Errc::kInvalidArgument, concat("the state of key_metric: '", part.name, "' is a ", own->kind(), ", not a dict"));
    if (const auto& place = this->*part.place; place && own != nullptr) RetentionList(saver_.lists()[*place].rules()).load_state(own->as_dict());  // throws before anything changes
  }
  for (const Part& part : kParts) {
    const auto& place = this->*part.place;
    if (!place) continue;
    if (!state.contains(part.name) && !is_shown(RetentionList({}), place)) continue;
    if (const Value* own = state.find(part.name)) {
      saver_.load_list(*place, own->as_dict());
    } else {
      saver_.log(LogLevel::kWarning, concat("the state that is restored has no '", part.name, "'; that list stays as it is"));
    }
  }
}

KeyMetricCheckpointer::KeyMetricCheckpointer(KeyMetricOptions options, const HostContext& host, std::shared_ptr<Storage> storage)
    : impl_(std::make_unique<Impl>(std::move(options), host, std::move(storage))) {
  set_name("key_metric");
  set_schedule({});
}

KeyMetricCheckpointer::~KeyMetricCheckpointer() = default;

std::vector<std::string> KeyMetricCheckpointer::save_objects(const StateDict& objects, const SavePoint& point) {
  impl_->is_new_.reset();
  std::vector<std::string> written = impl_->save(objects, point, schedule());
  for (const std::string& where : written) impl_->saver_.log(LogLevel::kInfo, concat("saved ", where));
  return written;
}

namespace {

template <class Saver>
std::string where_of(const Saver& saver, const std::optional<size_t>& place, bool best) {
  if (!place) return {};
  return saver.with_list(*place, [&](const RetentionList& list) { return saver.where(best ? list.best() : list.last()); });
}

}  // namespace

std::string KeyMetricCheckpointer::final_checkpoint() const { return where_of(impl_->saver_, impl_->final_, false); }
std::string KeyMetricCheckpointer::best_checkpoint() const { return where_of(impl_->saver_, impl_->key_metric_, true); }
std::string KeyMetricCheckpointer::last_interval_checkpoint() const { return where_of(impl_->saver_, impl_->interval_, false); }
StateDict KeyMetricCheckpointer::state() const { return impl_->state(impl_->saver_.lists()); }
void KeyMetricCheckpointer::load_state(const StateDict& state) { impl_->load_state(state); }
void KeyMetricCheckpointer::on_saved(std::function<void(const SavedCheckpoint&)> listener) { impl_->saver_.on_saved(std::move(listener)); }

// The host asks at optimizer steps only if told to.
void KeyMetricCheckpointer::do_schedule(SaveSchedule& schedule) const {
  const KeyMetricOptions& options = impl_->options_;
  if (options.save_interval == 0) return;
  // Periods count epochs from 0 and intervals from 1: with a common divisor they never meet.
  if (options.epoch_level && std::gcd(schedule.period, options.save_interval) != 1) {
    throw Error(Errc::kInvalidArgument, concat("checkpointer.period: ", schedule.period, " and checkpointer.save_interval: ", options.save_interval, " (of epochs) never meet; give one of them"));
  }
  if (options.epoch_level) return;
  if (schedule.period_steps && *schedule.period_steps != options.save_interval) {
    throw Error(Errc::kInvalidArgument, concat("checkpointer.period_steps: ", *schedule.period_steps, " and checkpointer.save_interval: ", options.save_interval, " (of optimizer steps) say two things; give one of them"));
  }
  schedule.period_steps = options.save_interval;
}

void KeyMetricCheckpointer::do_open(const RunStart& start) { impl_->saver_.open(start); }
bool KeyMetricCheckpointer::do_saves_again(const SavePoint& point) const { return impl_->final_ && is_last(point); }
bool KeyMetricCheckpointer::is_due(const SavePoint& point) const { return impl_->is_due(point, schedule()); }
std::vector<std::string> KeyMetricCheckpointer::do_save(const Checkpoint& checkpoint, const SavePoint& point) { return impl_->save(impl_->saver_.objects_of(checkpoint), point, schedule()); }
// Each of its files has the model's state; a file of the model alone is others' to write.
std::vector<std::string> KeyMetricCheckpointer::do_save_model(const StateDict&, int64_t) { return {}; }
bool KeyMetricCheckpointer::do_has_model(int64_t) const { return true; }
bool KeyMetricCheckpointer::do_wants_load() const { return impl_->saver_.wants_load(); }
Checkpoint KeyMetricCheckpointer::do_load(const LoadRequest& request) { return impl_->saver_.load(request); }

}  // namespace marlin
