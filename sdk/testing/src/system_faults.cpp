#include "system_faults.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string_view>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::testing::detail {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "system calls are watched on x86-64 and AArch64 only"
#endif

// What of a call tells whether it changes a file.
enum class Looks : uint8_t {
  kAlways,
  kDescriptor,  // the first argument is a file's or a folder's
  kTarget,      // the third is: splice
  kFlags1,      // the second argument opens for writing
  kFlags2,      // the third
};

struct Watched {
  int number;
  FileCall call;
  Looks looks;
};

// Opening needs no space: a full disk still empties a file that is there, and mostly still takes a name.
constexpr Watched kWatched[] = {
    {SYS_write, {"write", true, Effect::kWrites}, Looks::kDescriptor},
    {SYS_pwrite64, {"pwrite64", true, Effect::kWrites}, Looks::kDescriptor},
    {SYS_writev, {"writev", true, Effect::kWrites}, Looks::kDescriptor},
    {SYS_pwritev, {"pwritev", true, Effect::kWrites}, Looks::kDescriptor},
    {SYS_pwritev2, {"pwritev2", true, Effect::kWrites}, Looks::kDescriptor},
    {SYS_sendfile, {"sendfile", true, Effect::kWrites}, Looks::kDescriptor},
    {SYS_splice, {"splice", true, Effect::kWrites}, Looks::kTarget},
    {SYS_copy_file_range, {"copy_file_range", true, Effect::kWrites}, Looks::kTarget},
    {SYS_fallocate, {"fallocate", true, Effect::kWrites}, Looks::kDescriptor},
    {SYS_ftruncate, {"ftruncate", false, Effect::kWrites}, Looks::kDescriptor},
    {SYS_truncate, {"truncate", false}, Looks::kAlways},
    // File systems that choose a block late say here that there is none.
    {SYS_fsync, {"fsync", true, Effect::kSyncs}, Looks::kDescriptor},
    {SYS_fdatasync, {"fdatasync", true, Effect::kSyncs}, Looks::kDescriptor},
    {SYS_sync_file_range, {"sync_file_range", false}, Looks::kDescriptor},
    {SYS_msync, {"msync", false, Effect::kSyncsMapped}, Looks::kAlways},
    {SYS_syncfs, {"syncfs", true, Effect::kSyncsAll}, Looks::kDescriptor},
    {SYS_sync, {"sync", false, Effect::kSyncsAll}, Looks::kAlways},
    {SYS_openat, {"openat", false}, Looks::kFlags2},
    {SYS_openat2, {"openat2", false}, Looks::kAlways},
    {SYS_renameat, {"renameat", false}, Looks::kAlways},
    {SYS_renameat2, {"renameat2", false}, Looks::kAlways},
    {SYS_linkat, {"linkat", false}, Looks::kAlways},
    {SYS_symlinkat, {"symlinkat", false}, Looks::kAlways},
    {SYS_unlinkat, {"unlinkat", false}, Looks::kAlways},
    {SYS_mkdirat, {"mkdirat", true}, Looks::kAlways},
#ifdef SYS_open  // those that AArch64 never had
    {SYS_open, {"open", false}, Looks::kFlags1},
    {SYS_creat, {"creat", false}, Looks::kAlways},
    {SYS_rename, {"rename", false}, Looks::kAlways},
    {SYS_link, {"link", false}, Looks::kAlways},
    {SYS_symlink, {"symlink", false}, Looks::kAlways},
    {SYS_unlink, {"unlink", false}, Looks::kAlways},
    {SYS_rmdir, {"rmdir", false}, Looks::kAlways},
    {SYS_mkdir, {"mkdir", true}, Looks::kAlways},
#endif
};
static_assert(std::size(kWatched) < 200, "a jump in the filter reaches 255 instructions");

[[noreturn]] void refuse(const char* call) {
  throw Error(Errc::kUnsupported, concat("this system does not let a process watch the system calls of another (", call, ": ", std::strerror(errno), ")"));
}

// Every watched call is handed on, all others go on at once.
int install_filter() {
  constexpr auto kCount = static_cast<uint8_t>(std::size(kWatched));
  std::vector<sock_filter> filter = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 0, kCount + 1),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
  };
  for (uint8_t i = 0; i < kCount; ++i) {
    filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(kWatched[i].number), static_cast<uint8_t>(kCount - i), 0));
  }
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF));
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
  return static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
}

// A message of one byte on the control socket, with a descriptor or without.
struct ControlMessage {
  explicit ControlMessage(char what) : letter(what) {
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = space.data();
    message.msg_controllen = space.size();
  }
  char letter;
  iovec bytes{&letter, 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> space{};
  msghdr message{};
};

void send_listener(int control, int listener) {
  ControlMessage sent('l');
  cmsghdr* header = CMSG_FIRSTHDR(&sent.message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &listener, sizeof listener);
  if (::sendmsg(control, &sent.message, MSG_NOSIGNAL) != 1) ::_exit(70);
}

// Decides about each call of the watched process.
class Supervisor final : public Service {
 public:
  Supervisor(const Faults& faults, int control, CallListener* listener) : faults_(faults), control_(control), call_listener_(listener) {
    seccomp_notif_sizes sizes{};
    if (::syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) != 0) refuse("seccomp");
    call_.resize(std::max<size_t>(sizes.seccomp_notif, sizeof(seccomp_notif)));
    answer_.resize(std::max<size_t>(sizes.seccomp_notif_resp, sizeof(seccomp_notif_resp)));
  }
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;
  ~Supervisor() {
    if (listener_ >= 0) ::close(listener_);
  }

  [[nodiscard]] std::vector<int> descriptors() const override {
    std::vector<int> result;
    if (control_ >= 0) result.push_back(control_);
    if (listener_ >= 0) result.push_back(listener_);
    return result;
  }

  void ready(int descriptor) override {
    if (descriptor == control_) {
      hear();
    } else {
      decide();
    }
  }

  WatchedEnding result;

 private:
  void hear() {
    ControlMessage heard(0);
    if (::recvmsg(control_, &heard.message, MSG_CMSG_CLOEXEC) != 1) {
      control_ = -1;  // the other end is closed
      return;
    }
    if (heard.letter == 'l') {
      if (const cmsghdr* header = CMSG_FIRSTHDR(&heard.message)) std::memcpy(&listener_, CMSG_DATA(header), sizeof listener_);
    } else {
      armed_ = heard.letter == 'a';
      if (call_listener_) armed_ ? call_listener_->armed() : call_listener_->disarmed();
    }
    (void)::send(control_, "k", 1, MSG_NOSIGNAL);
  }

  void decide() {
    std::fill(call_.begin(), call_.end(), 0);
    auto* call = reinterpret_cast<seccomp_notif*>(call_.data());
    if (::ioctl(listener_, SECCOMP_IOCTL_NOTIF_RECV, call) != 0) {
      if (errno == ENOENT || errno == EINTR) return;  // the caller ended meanwhile
      ::close(listener_);                             // all of them did
      listener_ = -1;
      return;
    }
    const auto watched = std::ranges::find(kWatched, call->data.nr, &Watched::number);
    int error = 0;
    if (armed_ && watched != std::end(kWatched) && changes_files(*watched, *call)) {
      result.calls.push_back(watched->call);
      if (call_listener_) call_listener_->before(pending(*watched, *call));
      const bool begun = static_cast<int64_t>(result.calls.size()) >= faults_.at;
      if (begun && faults_.kind == Faults::Kind::kKill) {
        result.killed = true;
        return kill_process(static_cast<pid_t>(call->pid));  // and never answer: the call is not made
      }
      if (begun && faults_.kind == Faults::Kind::kDiskFull && watched->call.needs_space) error = ENOSPC;
    }
    result.failed += error != 0;
    std::fill(answer_.begin(), answer_.end(), 0);
    auto* answer = reinterpret_cast<seccomp_notif_resp*>(answer_.data());
    answer->id = call->id;
    answer->error = -error;
    answer->flags = error == 0 ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0;
    (void)::ioctl(listener_, SECCOMP_IOCTL_NOTIF_SEND, answer);  // fails only if the caller has ended
  }

  static void kill_process(pid_t thread) { ::kill(thread, SIGKILL); }  // a thread's number ends its process, too

  static PendingCall pending(const Watched& watched, const seccomp_notif& call) {
    PendingCall made{watched.call, call.pid};
    std::ranges::copy(call.data.args, made.arguments.begin());
    if (watched.looks == Looks::kDescriptor) made.descriptor = static_cast<int>(call.data.args[0]);
    if (watched.looks == Looks::kTarget) made.descriptor = static_cast<int>(call.data.args[2]);
    return made;
  }

  static bool changes_files(const Watched& watched, const seccomp_notif& call) {
    const auto opens_for_writing = [](uint64_t flags) { return (flags & (O_ACCMODE | O_CREAT | O_TRUNC)) != O_RDONLY; };
    switch (watched.looks) {
      case Looks::kAlways: return true;
      case Looks::kDescriptor: return is_file(call.pid, call.data.args[0]);
      case Looks::kTarget: return is_file(call.pid, call.data.args[2]);
      case Looks::kFlags1: return opens_for_writing(call.data.args[1]);
      case Looks::kFlags2: return opens_for_writing(call.data.args[2]);
    }
    return true;
  }

  // Whether a process's descriptor is a file or a folder on a disk, rather than a terminal, a pipe, a socket or the like.
  static bool is_file(uint32_t process, uint64_t descriptor) {
    const auto number = static_cast<int>(descriptor);
    if (number >= 0 && number <= 2) return false;
    const std::string link = concat("/proc/", process, "/fd/", number);
    struct stat status {};
    if (::stat(link.c_str(), &status) != 0 || (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode))) return false;
    char target[64] = {};
    (void)::readlink(link.c_str(), target, sizeof target - 1);
    return std::ranges::none_of(std::array<std::string_view, 3>{"/proc/", "/sys/", "/memfd:"},
                                [&](std::string_view start) { return std::string_view(target).starts_with(start); });
  }

  Faults faults_;
  int control_;
  int listener_ = -1;
  bool armed_ = false;
  CallListener* call_listener_;
  std::vector<char> call_, answer_;
};

constexpr std::string_view kRefused = "refused: ", kDone = "done: ";

}  // namespace

void Gate::tell(char what) const {
  char answer = 0;
  if (::send(control_, &what, 1, MSG_NOSIGNAL) != 1 || ::recv(control_, &answer, 1, 0) != 1) ::_exit(70);
}

WatchedEnding run_with_faults(const Faults& faults, const std::function<std::string(const Gate&)>& body, CallListener* listener) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) refuse("socketpair");
  WatchedEnding result;
  try {
    Supervisor supervisor(faults, ends[0], listener);
    Ending ending = run_forked(
        [&] {
          ::close(ends[0]);
          const int notices = install_filter();
          if (notices < 0) return concat(kRefused, std::strerror(errno));
          send_listener(ends[1], notices);
          char answer = 0;
          if (::recv(ends[1], &answer, 1, 0) != 1) ::_exit(70);
          ::close(notices);
          return concat(kDone, body(Gate(ends[1])));
        },
        {.service = &supervisor});
    result = std::move(supervisor.result);
    result.ending = std::move(ending);
  } catch (...) {
    ::close(ends[0]), ::close(ends[1]);
    throw;
  }
  ::close(ends[0]), ::close(ends[1]);
  if (result.ending.returned && result.ending.said.starts_with(kRefused)) {
    throw Error(Errc::kUnsupported, concat("this system does not let a process watch the system calls of another (seccomp: ", result.ending.said.substr(kRefused.size()), ")"));
  }
  if (result.ending.returned && result.ending.said.starts_with(kDone)) result.ending.said.erase(0, kDone.size());
  return result;
}

}  // namespace marlin::testing::detail
