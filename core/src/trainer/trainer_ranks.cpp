// The part of Trainer that keeps several ranks together.
#include "distributed/agreement.h"
#include "distributed/value_bytes.h"
#include "marlin/core/data/batch_reader.h"
#include "marlin/core/trainer.h"
#include "trainer/epoch_progress.h"
#include "trainer/time_limit.h"

namespace marlin {

int Trainer::rank() const noexcept { return services_.ranks ? services_.ranks->rank() : 0; }
int Trainer::world_size() const noexcept { return services_.ranks ? services_.ranks->world_size() : 1; }

// What this rank wants, once: a request that was told is not told again.
Wishes Trainer::take_wishes() {
  Wishes wishes;
  wishes.stop = stop_requested();
  wishes.signal = stop_signal_.load(std::memory_order_relaxed);
  wishes.out_of_time = time_limit_->is_up();
  wishes.save = save_requested_.exchange(false, std::memory_order_relaxed);
  for (size_t i = 0; is_main() && i < checkpointers_.size(); ++i) wishes.ask |= is_worth_asking(i, global_step() + 1);  // told before the step is done
  return wishes;
}

// A save that was asked for and is not made yet stays so.
void Trainer::take_agreed(const Wishes& wishes) {
  const bool save = agreed_.save;
  agreed_ = wishes;
  agreed_.save |= save;
}

Wishes Trainer::meet(const std::string& where, const Wishes& wishes) {
  const auto here = [&] { return concat(where, " (", last_epoch_ + 1, " epochs, ", global_step(), " steps done)"); };
  agreement_->send({mark_of(where, last_epoch_, global_step()), here}, wishes, {});
  std::vector<double> none;
  return agreement_->receive(none);
}

// Where no step does so by the way.
void Trainer::agree() {
  if (!is_alone()) take_agreed(meet("the end of an epoch, or the begin of the run", take_wishes()));
}

// Rank 0 may have been saving for as long as that takes.
void Trainer::follow_main() {
  if (is_alone()) return;
  services_.ranks->follow(0);
  if (!is_main() && time_limit_->enabled()) time_limit_->resume();
}

bool Trainer::take_save_request() {
  if (!is_alone()) return std::exchange(agreed_.save, false);
  return save_requested_.load(std::memory_order_relaxed) && save_requested_.exchange(false, std::memory_order_relaxed);
}

// Folders need not be shared: rank 0 has read it, all have it.
void Trainer::share(Checkpoint& resumed) {
  if (is_alone()) return;
  services_.ranks->follow(0);   // reading may take longer than a call may
  const std::string bytes = services_.ranks->broadcast_bytes(is_main() ? to_bytes(resumed) : "", 0);
  if (!is_main()) resumed = checkpoint_of_bytes(bytes);
}

// As a run that goes on from here needs them.
StateDict Trainer::generators_to_save() const {
  if (before_ending_) return before_ending_->at("generators").as_dict();
  const bool validating = in_epoch_ && !progress_->before_loader.empty();
  return validating ? progress_->before_loader : generators_state(device_);
}

void Trainer::gather_generators(bool wanted) {
  rank_generators_.items.clear();
  if (is_alone() || !wanted) return;
  for (const std::string& bytes : services_.ranks->gather_bytes(to_bytes(Value(generators_to_save())))) rank_generators_.items.push_back(value_of_bytes(bytes));
}

// Called while an exception is handled.
void Trainer::tell_others() const noexcept {
  if (is_alone()) return;
  try {
    throw;
  } catch (const PeerLost&) {  // they know
  } catch (...) {
    services_.ranks->fail(detail::current_exception_text());
  }
}

}  // namespace marlin
