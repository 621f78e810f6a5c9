#include "marlin/sdk/seam.h"

#include <c10/util/Exception.h>
#include <cxxabi.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <exception>
#include <utility>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

// A signal handler reads it, so it must not be allocated at its first use on a thread.
__attribute__((tls_model("initial-exec"))) thread_local const Seam::Frame* t_innermost = nullptr;

int64_t now() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

std::string working_folder() {
  char folder[PATH_MAX];
  return ::getcwd(folder, sizeof folder) ? folder : "";
}

}  // namespace

Seam::Seam(std::string title, bool foreign, Logger* logger) : title_(std::move(title)), foreign_(foreign), logger_(logger) {}
Seam::~Seam() = default;

const Seam::Frame* Seam::innermost() noexcept { return t_innermost; }

std::optional<Seam::Running> Seam::running() const noexcept {
  const char* call = call_.load(std::memory_order_acquire);
  if (!call) return std::nullopt;
  return Running{call, std::chrono::nanoseconds(now() - began_.load(std::memory_order_relaxed))};
}

void Seam::translate(const char* call) const {
  const auto failed = [&](const auto&... why) { return concat(title_, ": ", call, " failed", why...); };
  try {
    throw;
  } catch (const abi::__forced_unwind&) {  // the thread is being ended; nobody may stop that
    throw;
  } catch (const Error& error) {
    if (!foreign_ || std::string_view(error.what()).starts_with(title_)) throw;
    throw Error(error.code(), failed(": ", one_line(error.what())));
  } catch (const c10::Error& error) {  // its what() is a page of frames
    throw Error(Errc::kPlugin, failed(": ", one_line(error.what_without_backtrace())));
  } catch (const std::exception& error) {
    throw Error(Errc::kPlugin, failed(": ", one_line(error.what())));
  } catch (...) {
    throw Error(Errc::kPlugin, failed(" with an exception of type ", demangled(*abi::__cxa_current_exception_type()), ", which is no std::exception"));
  }
}

// Relative paths of the whole process start from there.
void Seam::restore(const std::string& folder, const char* call) const {
  const std::string now = working_folder();
  if (folder.empty() || now == folder) return;
  const bool back = ::chdir(folder.c_str()) == 0;
  logger_->warning(title_, ": ", call, " changed the working folder to '", now, "'; ",
                   back ? concat("it is '", folder, "' again") : concat("it cannot be changed back to '", folder, "': ", std::strerror(errno)),
                   "; a plugin names files by their whole paths instead");
}

Seam::Scope::Scope(const Seam& seam, const char* call, Watch watch, Phase phase) noexcept
    : frame_{&seam, call, phase, t_innermost}, watched_(seam.foreign_ && watch == Watch::kCall) {
  if (watched_) {
    folder_ = working_folder();
    seam.began_.store(now(), std::memory_order_relaxed);
    seam.call_.store(call, std::memory_order_release);
  }
  t_innermost = &frame_;
}

Seam::Scope::~Scope() {
  t_innermost = frame_.outer;
  if (!watched_) return;
  frame_.seam->call_.store(nullptr, std::memory_order_release);
  frame_.seam->restore(folder_, frame_.call);
}

}  // namespace marlin
