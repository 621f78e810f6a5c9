#include "marlin/core/plugin_crashes.h"

#include <cxxabi.h>
#include <execinfo.h>
#include <link.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <mutex>
#include <string_view>
#include <typeinfo>

#include "marlin/sdk/plugin.h"
#include "marlin/sdk/seam.h"
#include "marlin/sdk/text.h"
#include "plugin_code.h"

namespace marlin {
namespace {

// --- where plugins' code lies: written under a lock, read by signal handlers ---------------------------------------------------

struct CodeRange {
  uintptr_t begin = 0, end = 0;
  const char* title = nullptr;
};
std::array<CodeRange, 256> g_ranges;
std::atomic<size_t> g_num_ranges = 0;
std::mutex g_ranges_mutex;

struct Search {
  uintptr_t within;  // an address of the library
  const char* title;
};

bool holds(const dl_phdr_info& info, uintptr_t address) {
  for (size_t i = 0; i < info.dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info.dlpi_phdr[i];
    const uintptr_t begin = info.dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD && address >= begin && address < begin + segment.p_memsz) return true;
  }
  return false;
}

int add_ranges(dl_phdr_info* info, size_t, void* data) {
  const auto& search = *static_cast<Search*>(data);
  if (!holds(*info, search.within)) return 0;
  for (size_t i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    const size_t count = g_num_ranges.load(std::memory_order_relaxed);
    if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X) || count == g_ranges.size()) continue;
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    g_ranges[count] = {begin, begin + segment.p_memsz, search.title};
    g_num_ranges.store(count + 1, std::memory_order_release);
  }
  return 1;
}

// --- one line, made of pieces, without memory or locks -------------------------------------------------------------------------

class Line {
 public:
  Line& operator<<(std::string_view text) {
    const size_t fits = std::min(text.size(), sizeof text_ - 1 - size_);
    std::memcpy(text_ + size_, text.data(), fits);
    size_ += fits;
    return *this;
  }
  Line& number(uintptr_t value, unsigned base) {
    char digits[24];
    size_t count = 0;
    do digits[count++] = "0123456789abcdef"[value % base];
    while ((value /= base) != 0);
    while (count > 0) *this << std::string_view(&digits[--count], 1);
    return *this;
  }
  [[noreturn]] void end(int code) {
    text_[size_++] = '\n';
    for (size_t done = 0; done < size_;) {
      const ssize_t wrote = ::write(STDERR_FILENO, text_ + done, size_ - done);
      if (wrote <= 0) break;
      done += static_cast<size_t>(wrote);
    }
    ::_exit(code);
  }

 private:
  char text_[2 * PATH_MAX];
  size_t size_ = 0;
};

int code_of(const Seam::Frame* frame) { return frame && frame->phase == Seam::Phase::kMaking ? 2 : 1; }

// Of the code on this thread's stack, the first that is a plugin's. Not to be asked twice: unwinding may itself meet what is broken.
const char* owner_of_stack() {
  void* frames[64];
  const int count = ::backtrace(frames, static_cast<int>(std::size(frames)));
  for (int i = 0; i < count; ++i) {
    if (const char* owner = plugin_at(reinterpret_cast<uintptr_t>(frames[i]))) return owner;
  }
  return nullptr;
}

// The innermost call of a plugin on this thread; calls of built-in parts do not count.
const Seam::Frame* plugin_call() noexcept {
  const Seam::Frame* frame = Seam::innermost();
  while (frame && !frame->seam->foreign()) frame = frame->outer;
  return frame;
}

constexpr const char* kOwnThread = "a thread of its own";
constexpr std::string_view kRemedy = "; that is a defect of the plugin, and checkpoints written before are untouched";

// --- fatal signals -------------------------------------------------------------------------------------------------------------

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
struct sigaction g_before[std::size(kSignals)];

std::string_view name_of(int signal) {
  switch (signal) {
    case SIGSEGV: return "SIGSEGV";
    case SIGBUS: return "SIGBUS";
    case SIGFPE: return "SIGFPE";
    case SIGILL: return "SIGILL";
    default: return "SIGABRT";
  }
}

uintptr_t program_counter(void* context) {
  const auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return static_cast<uintptr_t>(machine->gregs[REG_RIP]);
#else
  return static_cast<uintptr_t>(machine->pc);
#endif
}

// The plugin in whose code a signal was met. abort() is met in the C library, so there the stack is asked; that may hang where memory is
// broken, and then the process is ended by an alarm.
const char* owner_of_signal(int signal, void* context) {
  if (const char* owner = plugin_at(program_counter(context))) return owner;
  if (signal != SIGABRT || g_num_ranges.load(std::memory_order_acquire) == 0) return nullptr;
  ::signal(SIGALRM, SIG_DFL);
  ::alarm(5);
  const char* owner = owner_of_stack();
  ::alarm(0);
  return owner;
}

// While a plugin's call runs on another thread, a crash on this one may come of that call's exit(), which takes things away from
// under threads that still run. Then that thread says so in a moment, and ends the process.
void wait_for_exit_called() {
  const timespec moment{.tv_sec = 0, .tv_nsec = 10'000'000};
  for (int i = 0; i < 50 && Seam::num_running() > 0; ++i) ::nanosleep(&moment, nullptr);
}

void on_fatal_signal(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  const Seam::Frame* call = plugin_call();
  const bool shared = call && call->phase == Seam::Phase::kShared;  // then it is the plugin's only if its code is met
  const char* owner = !call || shared ? owner_of_signal(signal, context) : nullptr;
  if (shared && !owner) call = nullptr;
  if (call || owner) {
    Line line;
    line << "error: ";
    line << (call ? call->seam->title() : owner) << ": " << (call ? call->call : kOwnThread) << " ended with " << name_of(signal);
    if (signal == SIGSEGV || signal == SIGBUS) (line << " at address 0x").number(reinterpret_cast<uintptr_t>(info->si_addr), 16);
    (line << kRemedy).end(code_of(call));
  }
  if (!Seam::innermost()) wait_for_exit_called();
  // Not ours: what was there before is put back, and meets the signal when this returns.
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    if (kSignals[i] == signal) ::sigaction(signal, &g_before[i], nullptr);
  }
  if (info->si_code <= 0) ::raise(signal);  // sent, not caused by an instruction that will be met again
  errno = saved;
}

void catch_fatal_signals() {
#if !defined(__SANITIZE_ADDRESS__) && !MARLIN_CLANG_HAS(address_sanitizer)
  alignas(16) static char stack[64 * 1024];  // for a plugin that has used up the main thread's
  const stack_t alternate{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
  ::sigaltstack(&alternate, nullptr);
  struct sigaction action {};
  action.sa_sigaction = &on_fatal_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < std::size(kSignals); ++i) ::sigaction(kSignals[i], &action, &g_before[i]);
#endif
}

// --- exit and terminate --------------------------------------------------------------------------------------------------------

void on_exit_called(int status, void*) {
  const Seam::Frame* call = plugin_call();
  if (!call) return;
  Line line;
  line << "error: " << call->seam->title() << ": " << call->call << " called exit(" << (status < 0 ? "-" : "");
  line.number(static_cast<uintptr_t>(std::abs(static_cast<long>(status))), 10);
  (line << "); a plugin throws an exception instead").end(code_of(call));
}

// What was registered last is called first. LibTorch registers the end of its own things as they come up, and a training thread that
// still runs crashes without them, so this has to be registered again now and then.
void hear_of_exit_first() noexcept { ::on_exit(&on_exit_called, nullptr); }

void on_quick_exit() {
  const Seam::Frame* call = plugin_call();
  if (!call) return;
  Line line;
  (line << "error: " << call->seam->title() << ": " << call->call << " called quick_exit(); a plugin throws an exception instead").end(code_of(call));
}

std::terminate_handler g_terminate_before = nullptr;

void on_terminate() {
  const Seam::Frame* call = plugin_call();
  if (call && call->phase == Seam::Phase::kShared) call = nullptr;  // the module's or the listener's, as likely
  const char* owner = call ? nullptr : owner_of_stack();
  if (!call && (!owner || Seam::innermost())) {
    if (g_terminate_before) g_terminate_before();
    std::abort();
  }
  std::string why = "without an exception";
  if (const std::type_info* type = abi::__cxa_current_exception_type()) {
    why = concat("by an exception of type ", demangled(*type));
    try {
      std::rethrow_exception(std::current_exception());
    } catch (const std::exception& error) {
      if (*error.what()) why = concat("by an exception: ", one_line(error.what()));
    } catch (...) {  // has no text
    }
  }
  Line line;
  (line << "error: " << (call ? call->seam->title() : owner) << ": " << (call ? call->call : kOwnThread) << " ended " << why << ", which nothing can catch there" << kRemedy).end(code_of(call));
}

}  // namespace

void remember_plugin_code(const void* within, const std::string& title) {
  const std::lock_guard lock(g_ranges_mutex);
  Search search{reinterpret_cast<uintptr_t>(within), ::strdup(title.c_str())};  // never freed: a signal handler may read it at any time
  ::dl_iterate_phdr(&add_ranges, &search);
}

const char* plugin_at(uintptr_t address) noexcept {
  const size_t count = g_num_ranges.load(std::memory_order_acquire);
  for (size_t i = 0; i < count; ++i) {
    if (address >= g_ranges[i].begin && address < g_ranges[i].end) return g_ranges[i].title;
  }
  return nullptr;
}

void report_plugin_crashes() {
  static std::once_flag once;
  std::call_once(once, [] {
    void* frame = nullptr;
    ::backtrace(&frame, 1);  // the first call loads what it needs; a signal handler must not
    catch_fatal_signals();
    Seam::set_hook_of_some_calls(&hear_of_exit_first);
    hear_of_exit_first();
    std::at_quick_exit(&on_quick_exit);
    g_terminate_before = std::set_terminate(&on_terminate);
  });
}

}  // namespace marlin
