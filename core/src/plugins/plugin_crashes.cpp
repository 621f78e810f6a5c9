#include "marlin/core/plugin_crashes.h"

#include <cxxabi.h>
#include <execinfo.h>
#include <link.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <string_view>
#include <typeinfo>

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
  const char* file;
  const char* title;
};

int add_ranges(dl_phdr_info* info, size_t, void* data) {
  const auto& search = *static_cast<Search*>(data);
  if (std::strcmp(info->dlpi_name, search.file) != 0) return 0;
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
  char text_[1024];
  size_t size_ = 0;
};

int code_of(const Seam::Frame* frame) { return frame && frame->phase == Seam::Phase::kMaking ? 2 : 1; }

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

void on_fatal_signal(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  const Seam::Frame* call = plugin_call();
  const char* owner = call ? nullptr : plugin_at(program_counter(context));
  if (call || owner) {
    Line line;
    line << "error: ";
    line << (call ? call->seam->title() : owner) << ": " << (call ? call->call : kOwnThread) << " ended with " << name_of(signal);
    if (signal == SIGSEGV || signal == SIGBUS) (line << " at address 0x").number(reinterpret_cast<uintptr_t>(info->si_addr), 16);
    (line << kRemedy).end(code_of(call));
  }
  // Not ours: what was there before is put back, and meets the signal when this returns.
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    if (kSignals[i] == signal) ::sigaction(signal, &g_before[i], nullptr);
  }
  if (info->si_code <= 0) ::raise(signal);  // sent, not caused by an instruction that will be met again
  errno = saved;
}

void catch_fatal_signals() {
#ifndef __SANITIZE_ADDRESS__
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
  (line << "error: " << call->seam->title() << ": " << call->call << " called exit(").number(static_cast<uintptr_t>(status), 10);
  (line << "); a plugin throws an exception instead").end(code_of(call));
}

void on_quick_exit() {
  const Seam::Frame* call = plugin_call();
  if (!call) return;
  Line line;
  (line << "error: " << call->seam->title() << ": " << call->call << " called quick_exit(); a plugin throws an exception instead").end(code_of(call));
}

std::terminate_handler g_terminate_before = nullptr;

// Of a thread that is in no call: the plugin whose code is on its stack.
const char* owner_of_stack() {
  void* frames[64];
  const int count = ::backtrace(frames, static_cast<int>(std::size(frames)));
  for (int i = 0; i < count; ++i) {
    if (const char* owner = plugin_at(reinterpret_cast<uintptr_t>(frames[i]))) return owner;
  }
  return nullptr;
}

void on_terminate() {
  const Seam::Frame* call = plugin_call();
  const char* owner = call ? nullptr : owner_of_stack();
  if (!call && !owner) {
    if (g_terminate_before) g_terminate_before();
    std::abort();
  }
  std::string why = "without an exception";
  if (const std::type_info* type = abi::__cxa_current_exception_type()) {
    why = concat("by an exception of type ", demangled(*type));
    try {
      std::rethrow_exception(std::current_exception());
    } catch (const std::exception& error) {
      why = concat("by an exception: ", one_line(error.what()));
    } catch (...) {  // has no text
    }
  }
  Line line;
  (line << "error: " << (call ? call->seam->title() : owner) << ": " << (call ? call->call : kOwnThread) << " ended " << why << ", which nothing can catch there" << kRemedy).end(code_of(call));
}

}  // namespace

void remember_plugin_code(const std::string& file, const std::string& title) {
  const std::lock_guard lock(g_ranges_mutex);
  Search search{file.c_str(), ::strdup(title.c_str())};  // never freed: a signal handler may read it at any time
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
    catch_fatal_signals();
    ::on_exit(&on_exit_called, nullptr);
    std::at_quick_exit(&on_quick_exit);
    g_terminate_before = std::set_terminate(&on_terminate);
  });
}

}  // namespace marlin
