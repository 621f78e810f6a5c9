// What ranks tell each other at every step.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "marlin/core/communicator.h"
#include "marlin/core/trainer_backend.h"

namespace marlin {

/// Sums numbers over all ranks, joins their wishes, and finds out whether they are at the same place. All of them make the same calls. One
/// message of one size, for a process whose peer sends another size is ended by Gloo; so ranks that have gone different ways can be told.
class Agreement {
 public:
  /// Where a rank is: what they compare, and how to say it. Called only if they differ.
  struct Place {
    uint32_t mark = 0;
    std::function<std::string()> description;
  };

  explicit Agreement(Communicator& ranks);

  /// Sends, and does not wait. One at a time.
  void send(const Place& place, const Wishes& wishes, const std::vector<double>& numbers);
  [[nodiscard]] bool is_sent() const noexcept { return sent_; }
  /// Waits for what was sent. @param numbers the sums. @return what any rank wishes; of signals the one with the highest number.
  /// @throws PeerLost; Error kTraining on all ranks if they are not at the same place: who is where.
  [[nodiscard]] Wishes receive(std::vector<double>& numbers);

 private:
  void compare() const;

  Communicator& ranks_;
  Place place_;
  std::vector<double> numbers_;
  at::Tensor message_;   // a word of each rank, then the first numbers
  std::unique_ptr<Communicator::Work> work_;
  bool sent_ = false;
};

/// A mark of anything that can be compared.
template <class... Parts>
[[nodiscard]] uint32_t mark_of(const Parts&... parts) {
  size_t mark = 0;
  ((mark = mark * 0x9E3779B97F4A7C15ULL + std::hash<Parts>()(parts) + 1), ...);
  return static_cast<uint32_t>(mark ^ (mark >> 32));
}

}  // namespace marlin
