#include "distributed/process_settings.h"

#include <c10/util/Logging.h>
#include <pthread.h>

#include <csignal>
#include <cstdlib>
#include <mutex>

namespace marlin::distributed {
namespace {

constexpr int kSilent = 3;  // only what is fatal

std::mutex mutex;
int alive = 0;
bool ignores_pipe = false, silenced = false;  // by us
int log_level = 0;                            // before

void set_pipe(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigaction(SIGPIPE, &action, nullptr);
}

bool pipe_is(void (*handler)(int)) {
  struct sigaction action {};
  sigaction(SIGPIPE, nullptr, &action);
  return (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == handler;
}

}  // namespace

ProcessSettings::ProcessSettings() {
  const std::lock_guard lock(mutex);
  if (alive++ > 0) return;
  ignores_pipe = pipe_is(SIG_DFL);
  if (ignores_pipe) set_pipe(SIG_IGN);
  silenced = std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr && FLAGS_caffe2_log_level < kSilent;
  log_level = FLAGS_caffe2_log_level;
  if (silenced) FLAGS_caffe2_log_level = kSilent;
}

ProcessSettings::~ProcessSettings() {
  const std::lock_guard lock(mutex);
  if (--alive > 0) return;
  if (ignores_pipe && pipe_is(SIG_IGN)) set_pipe(SIG_DFL);
  if (silenced && FLAGS_caffe2_log_level == kSilent) FLAGS_caffe2_log_level = log_level;
}

void block_signals() {
  sigset_t blocked;
  sigfillset(&blocked);
  for (const int error : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) sigdelset(&blocked, error);
  pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
}

}  // namespace marlin::distributed
