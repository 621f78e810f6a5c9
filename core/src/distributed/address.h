// Where rank 0 is, and how it is reached from here.
#pragma once

#include <sys/socket.h>

#include <string>
#include <vector>

#include "distributed/within.h"

namespace marlin::distributed {

/// An IPv4 or IPv6 address and a port.
struct Address {
  sockaddr_storage storage{};
  socklen_t size = 0;

  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  [[nodiscard]] std::string text() const;  ///< "10.0.0.5", without the port.
};

/// Whether nobody but this machine reaches what listens at `address`, as Address::text() gives it.
[[nodiscard]] bool is_loopback(const std::string& address);

/// The addresses of a host. A name service that does not answer is asked again until `until`.
/// @throws Error kInvalidArgument: there is no such host; kIo: the name service does not answer.
[[nodiscard]] std::vector<Address> resolve(const std::string& host, int port, Clock::time_point until);

/// From here on the calling thread finds names in files only (/etc/hosts). c10d asks for the name of the other end of each connection, for
/// its messages; where the name service is out of reach that would take 10 s each time, even for 127.0.0.1.
void ask_no_name_service();

/// Listens on `port`: at `only` if it is given, else at every address of this machine. @return the descriptor; close it.
/// A port that launch_local() holds can be taken.
/// @throws Error kInvalidArgument: in use, or not for this user.
[[nodiscard]] int listen_on(int port, const Address* only);

/// A way between two machines.
struct Route {
  std::string there;  ///< The address that answered.
  std::string here;   ///< This machine's, on the way to it.
};

/// Connects, and closes at once: tries `addresses` over and over until one answers.
/// @throws std::system_error: none did until `until`; why the last of them did not.
[[nodiscard]] Route reach(const std::vector<Address>& addresses, Clock::time_point until);

}  // namespace marlin::distributed
