#include "marlin/core/stop_signals.h"

#include <atomic>

#include "marlin/sdk/error.h"

namespace marlin {
namespace {

std::atomic<Trainer*> g_trainer = nullptr;
std::atomic<bool> g_save_remembered = false;
static_assert(std::atomic<Trainer*>::is_always_lock_free && std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free, "a handler may touch nothing else");

void on_stop(int signal) {
  if (Trainer* trainer = g_trainer.load()) trainer->stop(signal);
}

void on_save(int) {
  g_save_remembered.store(true);  // first: a trainer that comes just now looks at it
  Trainer* trainer = g_trainer.load();
  if (trainer != nullptr && g_save_remembered.exchange(false)) trainer->request_save();
}

struct sigaction action(void (*handler)(int), int flags) {
  struct sigaction result {};
  result.sa_handler = handler;
  result.sa_flags = flags;
  sigemptyset(&result.sa_mask);
  return result;
}

}  // namespace

StopSignals::StopSignals(Trainer& trainer) {
  Trainer* none = nullptr;
  if (!g_trainer.compare_exchange_strong(none, &trainer)) throw Error(Errc::kInvalidArgument, "signals stop another Trainer of this process already");
  const struct sigaction stop = action(on_stop, SA_RESTART), save = action(on_save, SA_RESTART);
  const struct sigaction stop_once = action(on_stop, static_cast<int>(SA_RESTART | SA_RESETHAND));  // the second ends the process
  sigaction(SIGTERM, &stop, &term_);
  sigaction(SIGINT, &stop_once, &int_);
  sigaction(SIGUSR1, &save, &usr1_);
  if (g_save_remembered.exchange(false)) trainer.request_save();
}

StopSignals::~StopSignals() {
  sigaction(SIGTERM, &term_, nullptr);
  sigaction(SIGINT, &int_, nullptr);
  sigaction(SIGUSR1, &usr1_, nullptr);
  g_trainer.store(nullptr);
}

void remember_save_signal() noexcept {
  const struct sigaction save = action(on_save, SA_RESTART);
  sigaction(SIGUSR1, &save, nullptr);
}

}  // namespace marlin
