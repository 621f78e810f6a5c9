#include "distributed/address.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <resolv.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "marlin/sdk/error.h"

namespace marlin::distributed {
namespace {

using namespace std::chrono_literals;

constexpr auto kAgain = 20ms;         // between two attempts
constexpr auto kOneAttempt = 3000ms;  // at an address that does not say no either

class Socket {
 public:
  explicit Socket(int family) : number_(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  ~Socket() { if (number_ >= 0) close(number_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  [[nodiscard]] int number() const { return number_; }
  [[nodiscard]] int release() { return std::exchange(number_, -1); }
  void set(int level, int option, int value) const { setsockopt(number_, level, option, &value, sizeof value); }

 private:
  int number_;
};

Address any_address(int family, int port) {
  Address any;
  any.storage.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET6) reinterpret_cast<sockaddr_in6*>(&any.storage)->sin6_port = htons(static_cast<uint16_t>(port));
  else reinterpret_cast<sockaddr_in*>(&any.storage)->sin_port = htons(static_cast<uint16_t>(port));
  any.size = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  return any;
}

// errno of what failed; 0: it listens.
int try_to_listen(Socket& socket, const Address& address) {
  if (socket.number() < 0) return errno;
  socket.set(SOL_SOCKET, SO_REUSEADDR, 1);  // after a run that has just ended, and beside the launcher, which holds the port for us
  if (address.get()->sa_family == AF_INET6) socket.set(IPPROTO_IPV6, IPV6_V6ONLY, 0);
  return bind(socket.number(), address.get(), address.size) == 0 && listen(socket.number(), SOMAXCONN) == 0 ? 0 : errno;
}

// errno of what failed; 0: connected.
int try_to_connect(const Socket& socket, const Address& address, Clock::time_point until) {
  if (socket.number() < 0) return errno;
  fcntl(socket.number(), F_SETFL, O_NONBLOCK);
  if (connect(socket.number(), address.get(), address.size) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  pollfd ready = {socket.number(), POLLOUT, 0};
  const auto left = std::clamp<std::chrono::milliseconds>(std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()), 0ms, kOneAttempt);
  const int count = poll(&ready, 1, static_cast<int>(left.count()));
  if (count <= 0) return count == 0 ? ETIMEDOUT : errno;
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(socket.number(), SOL_SOCKET, SO_ERROR, &error, &size);
  return error;
}

std::string own_address(const Socket& socket) {
  Address here;
  here.size = sizeof here.storage;
  getsockname(socket.number(), reinterpret_cast<sockaddr*>(&here.storage), &here.size);
  return here.text();
}

}  // namespace

std::string Address::text() const {
  char host[NI_MAXHOST];
  return getnameinfo(get(), size, host, sizeof host, nullptr, 0, NI_NUMERICHOST) == 0 ? host : "?";
}

bool is_loopback(const std::string& address) { return address.starts_with("127.") || address.starts_with("::ffff:127.") || address == "::1"; }

std::vector<Address> resolve(const std::string& host, int port, Clock::time_point until) {
  addrinfo wanted{}, *first = nullptr;
  wanted.ai_socktype = SOCK_STREAM;
  int error = 0;
  while ((error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &first)) == EAI_AGAIN && Clock::now() + kAgain < until) std::this_thread::sleep_for(kAgain);
  if (error != 0) {
    const std::string reason = error == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(error);
    throw Error(error == EAI_AGAIN || error == EAI_SYSTEM ? Errc::kIo : Errc::kInvalidArgument,
                concat("cannot find rank 0: MASTER_ADDR='", one_line(host), "': ", reason, "; set MASTER_ADDR to the name or address of rank 0's machine"));
  }
  std::vector<Address> addresses;
  for (const addrinfo* at = first; at != nullptr; at = at->ai_next) {
    Address& address = addresses.emplace_back();
    std::memcpy(&address.storage, at->ai_addr, at->ai_addrlen);
    address.size = at->ai_addrlen;
  }
  freeaddrinfo(first);
  return addresses;
}

void ask_no_name_service() {
  if (res_init() == 0) _res.nscount = 0;  // of this thread
}

int listen_on(int port, const Address* only) {
  std::vector<Address> candidates = {any_address(AF_INET6, port), any_address(AF_INET, port)};  // the first one takes both families
  if (only != nullptr) candidates = {*only};
  int error = 0;
  for (const Address& address : candidates) {
    Socket socket(address.get()->sa_family);
    error = try_to_listen(socket, address);
    if (error == 0) return socket.release();
    if (error == EADDRINUSE) break;
  }
  throw Error(Errc::kInvalidArgument, concat("rank 0 cannot listen on port ", port, ": ", std::strerror(error),
                                             "; set MASTER_PORT to a free port of this machine, the same for every rank", error == EADDRINUSE ? ", or end the run that uses this one" : ""));
}

Route reach(const std::vector<Address>& addresses, Clock::time_point until) {
  while (true) {
    int error = 0;
    for (const Address& address : addresses) {
      const Socket socket(address.get()->sa_family);
      error = try_to_connect(socket, address, until);
      if (error == 0) return {address.text(), own_address(socket)};
    }
    if (Clock::now() + kAgain >= until) throw std::system_error(error, std::generic_category());
    std::this_thread::sleep_for(kAgain);  // rank 0 comes when it comes; nobody could wake us
  }
}

}  // namespace marlin::distributed
