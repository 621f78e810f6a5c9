#include "distributed/agreement.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "marlin/sdk/text.h"

namespace marlin {
namespace {

constexpr size_t kNumbers = 64;   // that go with the message; more of them go with a second one

// A double holds integers of 53 bits exactly: flags, a signal's number, and the mark.
constexpr int kSignalShift = 4, kMarkShift = 11;
static_assert(kMarkShift + 32 <= 53);

uint64_t word_of(const Wishes& wishes, uint32_t mark) {
  const uint64_t flags = (wishes.stop ? 1U : 0U) | (wishes.out_of_time ? 2U : 0U) | (wishes.save ? 4U : 0U) | (wishes.ask ? 8U : 0U);
  return flags | (static_cast<uint64_t>(wishes.signal & 127) << kSignalShift) | (static_cast<uint64_t>(mark) << kMarkShift);
}

uint32_t mark_in(uint64_t word) { return static_cast<uint32_t>(word >> kMarkShift); }

void join(Wishes& all, uint64_t word) {
  all.stop |= (word & 1U) != 0;
  all.out_of_time |= (word & 2U) != 0;
  all.save |= (word & 4U) != 0;
  all.ask |= (word & 8U) != 0;
  all.signal = std::max(all.signal, static_cast<int>((word >> kSignalShift) & 127U));
}

}  // namespace

Agreement::Agreement(Communicator& ranks) : ranks_(ranks), message_(at::empty({ranks.world_size() + static_cast<int64_t>(kNumbers)}, at::kDouble)) {}

void Agreement::send(const Place& place, const Wishes& wishes, const std::vector<double>& numbers) {
  place_ = place;
  numbers_ = numbers;
  auto* values = message_.mutable_data_ptr<double>();
  std::fill_n(values, message_.numel(), 0.0);
  values[ranks_.rank()] = static_cast<double>(word_of(wishes, place.mark));
  std::copy_n(numbers_.begin(), std::min(numbers_.size(), kNumbers), values + ranks_.world_size());
  work_ = ranks_.all_reduce(message_);
  sent_ = true;
}

Wishes Agreement::receive(std::vector<double>& numbers) {
  sent_ = false;
  work_->wait();
  work_.reset();
  compare();
  const auto* values = message_.const_data_ptr<double>();
  Wishes all;
  for (int rank = 0; rank < ranks_.world_size(); ++rank) join(all, static_cast<uint64_t>(values[rank]));
  numbers.assign(values + ranks_.world_size(), values + ranks_.world_size() + std::min(numbers_.size(), kNumbers));
  if (numbers_.size() > kNumbers) {  // on all ranks, for they are at the same place
    const auto rest = static_cast<int64_t>(numbers_.size() - kNumbers);
    at::Tensor more = at::empty({rest}, at::kDouble);
    std::copy(numbers_.begin() + kNumbers, numbers_.end(), more.mutable_data_ptr<double>());
    ranks_.all_reduce(more)->wait();
    numbers.insert(numbers.end(), more.const_data_ptr<double>(), more.const_data_ptr<double>() + rest);
  }
  return all;
}

// All ranks see the same words, so all of them go on here in the same way.
void Agreement::compare() const {
  const auto* values = message_.const_data_ptr<double>();
  const uint32_t first = mark_in(static_cast<uint64_t>(values[0]));
  for (int rank = 1; rank < ranks_.world_size(); ++rank) {
    if (mark_in(static_cast<uint64_t>(values[rank])) == first) continue;
    const std::string mine = place_.description ? place_.description() : "somewhere else";
    const std::string here = ranks_.broadcast_bytes(mine, 0), there = ranks_.broadcast_bytes(mine, rank);
    throw Error(Errc::kTraining, concat("ranks have gone different ways: rank 0 is at ", here, ", rank ", rank, " at ", there,
                                        ": every rank must get the same number of batches, and its steps must return the same metrics and make the same calls"));
  }
}

}  // namespace marlin
