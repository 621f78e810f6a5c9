// Which checkpoints a list of the best, or of the newest, keeps. Knows nothing of files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// The rules of a RetentionList.
struct RetentionRules {
  enum class Order : uint8_t {
    kScore,  ///< The highest priorities stay; of equal ones the newer.
    kAge,    ///< The newest stay, whatever their priority. Priorities are step numbers.
  };
  Order order = Order::kAge;
  std::optional<int64_t> n_saved = 1;  ///< How many stay; unset: all. Range: >= 1.
  bool greater_or_equal = false;       ///< Of kScore: one as good as the worst of a full list takes its place, too.
};

/// A list of names with priorities, of which the lowest leave once it is full. Deciding takes less than a millisecond with 10,000 of them.
/// @par Source ignite handlers/checkpoint.py (_saved). Differs: NaN never enters; the newest and the best are two things.
class MARLIN_ABI RetentionList {
 public:
  struct Entry {
    double priority = 0.0;
    std::string name;
    friend bool operator==(const Entry&, const Entry&) = default;
  };

  /// @throws Error kInvalidArgument: n_saved is below 1. @param option  how the message names it.
  explicit RetentionList(RetentionRules rules, std::string_view option = "n_saved");

  /// Whether one of that priority would enter. NaN: never.
  [[nodiscard]] bool wants(double priority) const noexcept;
  /// Enters it, unasked. A name that is listed already gets the new priority, and counts as the newest.
  /// @return what left the list for it, in the order in which it should be removed; never `name`.
  std::vector<std::string> add(double priority, std::string name);
  /// The list anew, in the order in which they entered. It may be too long: what is too much leaves with the next add().
  void assign(std::vector<Entry> oldest_first);
  /// Takes it out. @return whether it was there.
  bool remove(std::string_view name);
  void reset() noexcept;

  [[nodiscard]] const RetentionRules& rules() const noexcept { return rules_; }
  /// The first to leave comes first; of kScore the best comes last.
  [[nodiscard]] const std::vector<Entry>& entries() const noexcept { return entries_; }
  [[nodiscard]] const Entry* find(std::string_view name) const noexcept;
  /// The one that entered last; null: none, or it has left.
  [[nodiscard]] const Entry* last() const noexcept { return find(last_); }
  /// The highest priority, of equal ones the newest; null: none.
  [[nodiscard]] const Entry* best() const noexcept;

  /// {"_saved": [(priority, name), ...], "last": name}, Ignite's form and one entry more.
  [[nodiscard]] StateDict state() const;
  /// Takes Ignite's form, too. The list may be longer than n_saved: what is too much leaves with the next add(). NaN is left out.
  /// @throws Error kInvalidArgument that says what is missing or of a wrong kind. The list is then as it was.
  void load_state(const StateDict& state);

 private:

  RetentionRules rules_;
  std::vector<Entry> entries_;
  std::string last_;
};

}  // namespace marlin
