#include "marlin/sdk/seam.h"

#include <c10/util/Exception.h>
#include <cxxabi.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <new>
#include <typeinfo>
#include <utility>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

// A signal handler reads it, so it must not be allocated at its first use on a thread.
__attribute__((tls_model("initial-exec"))) thread_local const Seam::Frame* t_innermost = nullptr;

// Memory that the last call on this thread used for its folder, so that most calls ask for none.
thread_local std::string t_spare;

// Watched calls of plugins, on whatever thread: how many began so far, and how many run.
std::atomic<uint64_t> g_entered = 0;
std::atomic<int> g_running = 0;
std::atomic<void (*)() noexcept> g_hook = nullptr;

// Good to a few milliseconds, and ten times as fast as the exact one.
int64_t now() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void get_working_folder(char (&folder)[PATH_MAX]) {
  if (!::getcwd(folder, sizeof folder)) folder[0] = '\0';
}

}  // namespace

Seam::Seam(std::string title, bool foreign, Logger* logger) : title_(std::move(title)), foreign_(foreign), logger_(logger) {}
Seam::~Seam() = default;

const Seam::Frame* Seam::innermost() noexcept { return t_innermost; }
int Seam::num_running() noexcept { return g_running.load(std::memory_order_relaxed); }
void Seam::set_hook_of_some_calls(void (*hook)() noexcept) noexcept { g_hook.store(hook); }

std::optional<Seam::Running> Seam::running() const noexcept {
  const char* call = call_.load(std::memory_order_acquire);
  if (!call) return std::nullopt;
  return Running{call, std::chrono::nanoseconds(now() - began_.load(std::memory_order_relaxed))};
}

void Seam::translate(const char* call, Phase phase) const {
  const auto failed = [&](const auto&... why) { return concat(title_, ": ", call, " failed", why...); };
  const auto because = [&](const std::exception& error, const char* text) {
    return *text ? failed(": ", one_line(text)) : failed(" with an exception of type ", demangled(typeid(error)), ", which says nothing");
  };
  try {
    throw;
  } catch (const abi::__forced_unwind&) {  // pthread_exit: the thread is the host's, and somebody waits for what it does
    if (foreign_) std::abort();
    throw;
  } catch (const Error& error) {
    const bool told = *error.what() && (!foreign_ || std::string_view(error.what()).starts_with(title_));
    if (told || phase == Phase::kShared) throw;
    throw Error(error.code(), because(error, error.what()));
  } catch (const c10::Error& error) {  // its what() is a page of frames
    throw Error(Errc::kPlugin, because(error, error.what_without_backtrace()));
  } catch (const std::exception& error) {
    throw Error(Errc::kPlugin, because(error, error.what()));
  } catch (...) {
    throw Error(Errc::kPlugin, failed(" with an exception of type ", demangled(*abi::__cxa_current_exception_type()), ", which is no std::exception"));
  }
}

Seam::Scope::Scope(const Seam& seam, const char* call, Watch watch, Phase phase) noexcept
    : frame_{&seam, call, phase, t_innermost}, watched_(seam.foreign_ && watch == Watch::kCall) {
  if (watched_) {
    char folder[PATH_MAX];
    get_working_folder(folder);
    try {
      folder_.swap(t_spare);
      folder_ = folder;
    } catch (const std::bad_alloc&) {  // then it is not compared
      folder_.clear();
    }
    entered_ = g_entered.fetch_add(1) + 1;
    if (std::has_single_bit(entered_)) {
      if (const auto hook = g_hook.load()) hook();
    }
    g_running.fetch_add(1);
    seam.began_.store(now(), std::memory_order_relaxed);
    seam.call_.store(call, std::memory_order_release);
  }
  t_innermost = &frame_;
}

Seam::Scope::~Scope() {
  t_innermost = frame_.outer;
  if (!watched_) return;
  frame_.seam->call_.store(nullptr, std::memory_order_release);
  try {
    compare_folder();
  } catch (...) {  // no memory for the line, or a sink that throws
  }
  folder_.swap(t_spare);
  g_running.fetch_sub(1);
}

// Relative paths of the whole process start from the working folder. If another call ran meanwhile, nobody knows whose change it was.
void Seam::Scope::compare_folder() const {
  char now[PATH_MAX];
  get_working_folder(now);
  if (folder_.empty() || now[0] == '\0' || folder_ == now) return;
  const Seam& seam = *frame_.seam;
  if (g_running.load() != 1 || g_entered.load() != entered_) {
    return seam.logger_->warning(seam.title_, ": the working folder changed from '", folder_, "' to '", now, "' during ", frame_.call,
                                 " and calls beside it; a plugin names files by their whole paths instead");
  }
  const bool back = ::chdir(folder_.c_str()) == 0;
  seam.logger_->warning(seam.title_, ": ", frame_.call, " changed the working folder to '", now, "'; ",
                        back ? concat("it is '", folder_, "' again") : concat("it cannot be changed back to '", folder_, "': ", std::strerror(errno)),
                        "; a plugin names files by their whole paths instead");
}

}  // namespace marlin
