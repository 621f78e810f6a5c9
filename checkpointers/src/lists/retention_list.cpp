#include "marlin/checkpointers/retention_list.h"

#include <algorithm>
#include <cmath>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

constexpr const char* kSavedKey = "_saved";
constexpr const char* kLastKey = "last";

RetentionList::Entry entry_of(const Value& value, size_t place) {
  const auto refuse = [&](const std::string& why) { throw Error(Errc::kInvalidArgument, concat("the state of a list of checkpoints: entry ", place, " of '", kSavedKey, "' ", why)); };
  if (!value.get_if<Tuple>() && !value.get_if<List>()) refuse(concat("is a ", value.kind(), ", not a pair of priority and name"));
  const auto& items = value.as_items();
  if (items.size() != 2) refuse(concat("has ", items.size(), " items, not the two of a pair of priority and name"));
  const bool is_number = items[0].get_if<double>() || items[0].get_if<int64_t>();
  if (!is_number || !items[1].get_if<std::string>()) refuse("is not a pair of a number and a name");
  return {items[0].as_double(), items[1].as_string()};
}

}  // namespace

RetentionList::RetentionList(RetentionRules rules, std::string_view option) : rules_(rules) {
  if (rules_.n_saved && *rules_.n_saved < 1) throw Error(Errc::kInvalidArgument, concat(option, ": must be at least 1, or 'all', got ", *rules_.n_saved));
}

bool RetentionList::wants(double priority) const noexcept {
  if (std::isnan(priority)) return false;
  if (rules_.order == RetentionRules::Order::kAge || !rules_.n_saved || static_cast<int64_t>(entries_.size()) < *rules_.n_saved) return true;
  // A list that was loaded may be too long; what is too much counts no more.
  const double worst = entries_[entries_.size() - static_cast<size_t>(*rules_.n_saved)].priority;
  return rules_.greater_or_equal ? priority >= worst : priority > worst;
}

void RetentionList::assign(std::vector<Entry> oldest_first) {
  std::erase_if(oldest_first, [](const Entry& entry) { return std::isnan(entry.priority); });
  last_ = oldest_first.empty() ? "" : oldest_first.back().name;
  entries_ = std::move(oldest_first);
  if (rules_.order == RetentionRules::Order::kScore) {
    std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.priority < b.priority; });
  }
}

std::vector<std::string> RetentionList::add(double priority, std::string name) {
  remove(name);
  last_ = name;
  const auto after = [](double one, const Entry& other) { return one < other.priority; };
  const auto place = rules_.order == RetentionRules::Order::kAge ? entries_.end() : std::upper_bound(entries_.begin(), entries_.end(), priority, after);
  entries_.insert(place, {priority, std::move(name)});

  const size_t surplus = rules_.n_saved && entries_.size() > static_cast<size_t>(*rules_.n_saved) ? entries_.size() - static_cast<size_t>(*rules_.n_saved) : 0;
  std::vector<std::string> left;
  std::vector<Entry> kept;  // one that was entered unasked stays, however low it is
  for (size_t i = 0; i < entries_.size() && left.size() < surplus; ++i) {
    if (entries_[i].name == last_) kept.push_back(std::move(entries_[i]));
    else left.push_back(std::move(entries_[i].name));
  }
  const size_t looked_at = left.size() + kept.size();
  std::move(kept.begin(), kept.end(), entries_.begin() + static_cast<std::ptrdiff_t>(left.size()));
  entries_.erase(entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>(looked_at - kept.size()));
  return left;
}

bool RetentionList::remove(std::string_view name) {
  return std::erase_if(entries_, [&](const Entry& entry) { return entry.name == name; }) > 0;
}

void RetentionList::reset() noexcept {
  entries_.clear();
  last_.clear();
}

const RetentionList::Entry* RetentionList::find(std::string_view name) const noexcept {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

const RetentionList::Entry* RetentionList::best() const noexcept {
  if (entries_.empty()) return nullptr;
  if (rules_.order == RetentionRules::Order::kScore) return &entries_.back();
  return &*std::max_element(entries_.rbegin(), entries_.rend(), [](const Entry& a, const Entry& b) { return a.priority < b.priority; });
}

StateDict RetentionList::state() const {
  List saved;
  for (const Entry& entry : entries_) saved.items.emplace_back(Tuple{{Value(entry.priority), Value(entry.name)}});
  return {{kSavedKey, std::move(saved)}, {kLastKey, last_}};
}

void RetentionList::load_state(const StateDict& state) {
  const Value* saved = state.find(kSavedKey);
  if (saved == nullptr) throw Error(Errc::kInvalidArgument, concat("the state of a list of checkpoints has no '", kSavedKey, "'"));
  if (!saved->get_if<List>() && !saved->get_if<Tuple>()) throw Error(Errc::kInvalidArgument, concat("the state of a list of checkpoints: '", kSavedKey, "' is a ", saved->kind(), ", not a list"));
  std::vector<Entry> entries;
  for (size_t place = 0; const Value& item : saved->as_items()) entries.push_back(entry_of(item, place++));
  assign(std::move(entries));
  const Value* last = state.find(kLastKey);
  if (last != nullptr && last->get_if<std::string>()) last_ = last->as_string();
}

}  // namespace marlin
