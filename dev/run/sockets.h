// TCP connections between machines (over IPv4), for processes that no MPI joins. Only what processes_sockets.cpp needs: bytes
// that all arrive or do not, and an end that is noticed, of the process at the other side as well as of its machine.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "data/files.h"

namespace lnfree {

// False: the connection is over, whatever the reason. A call that the other side keeps waiting longer than the connection's
// patience is the same.
bool send_all(int connection, const void* bytes, size_t n);
bool receive_all(int connection, void* bytes, size_t n);

// Whether the other side has closed it.
bool is_over(int connection);

// Seconds that one of these waits for the other side at most; 0: as long as that lives.
void set_patience(int connection, double seconds);

// Listens on all of this machine's addresses, at a free port that it tells. RunFailure if the system refuses.
FileDescriptor listen_anywhere(int& port);

// The next who connects; closed if nobody does within so many seconds.
FileDescriptor accept_within(int listener, double seconds);

// Closed if nobody listens there, or answers within so many seconds.
FileDescriptor connect_to(const std::string& address, int port, double seconds);

// By which others may reach this machine, as "10.0.0.7"; without its loopback.
std::vector<std::string> addresses_of_this_machine();

}  // namespace lnfree
