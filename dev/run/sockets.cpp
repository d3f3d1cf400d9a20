#include "dev/run/sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cmath>

namespace lnfree {

namespace {

void set_option(int connection, int level, int option, int value) {
    ::setsockopt(connection, level, option, &value, sizeof value);
}

// A machine that falls silent without closing its connections (no power, no cable) is given up after half a minute: Linux
// would wait for hours.
void prepare(int connection) {
    set_option(connection, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(connection, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(connection, IPPROTO_TCP, TCP_KEEPIDLE, 10);
    set_option(connection, IPPROTO_TCP, TCP_KEEPINTVL, 5);
    set_option(connection, IPPROTO_TCP, TCP_KEEPCNT, 4);
    set_option(connection, IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

int milliseconds(double seconds) {
    return static_cast<int>(std::ceil(std::max(0.0, seconds) * 1000));
}

bool is_ready(int descriptor, short events, double seconds) {
    pollfd wanted = {descriptor, events, 0};
    return ::poll(&wanted, 1, milliseconds(seconds)) > 0;
}

}  // namespace

bool send_all(int connection, const void* bytes, size_t n) {
    const char* next = static_cast<const char*>(bytes);
    while (n > 0) {
        const ssize_t sent = ::send(connection, next, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        next += sent;
        n -= static_cast<size_t>(sent);
    }
    return true;
}

bool receive_all(int connection, void* bytes, size_t n) {
    char* next = static_cast<char*>(bytes);
    while (n > 0) {
        const ssize_t received = ::recv(connection, next, n, 0);
        if (received < 0 && errno == EINTR) continue;
        if (received <= 0) return false;
        next += received;
        n -= static_cast<size_t>(received);
    }
    return true;
}

bool is_over(int connection) {
    return is_ready(connection, POLLRDHUP, 0);
}

void set_patience(int connection, double seconds) {
    timeval time{};
    time.tv_sec = static_cast<time_t>(seconds);
    time.tv_usec = static_cast<suseconds_t>((seconds - std::floor(seconds)) * 1e6);
    ::setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    ::setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

FileDescriptor listen_anywhere(int& port) {
    FileDescriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in any{};
    any.sin_family = AF_INET;
    socklen_t length = sizeof any;
    auto* const address = reinterpret_cast<sockaddr*>(&any);
    if (!listener.is_open() || ::bind(listener.get(), address, length) != 0 ||
        ::listen(listener.get(), SOMAXCONN) != 0 || ::getsockname(listener.get(), address, &length) != 0)
        throw RunFailure("the processes of this run cannot be joined: no socket (" + errno_text(errno) + ")");
    port = ntohs(any.sin_port);
    return listener;
}

FileDescriptor accept_within(int listener, double seconds) {
    if (!is_ready(listener, POLLIN, seconds)) return FileDescriptor();
    FileDescriptor accepted(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (accepted.is_open()) prepare(accepted.get());
    return accepted;
}

FileDescriptor connect_to(const std::string& address, int port, double seconds) {
    sockaddr_in there{};
    there.sin_family = AF_INET;
    there.sin_port = htons(static_cast<uint16_t>(port));
    if (::inet_pton(AF_INET, address.c_str(), &there.sin_addr) != 1) return FileDescriptor();
    FileDescriptor connection(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!connection.is_open()) return connection;
    const auto* const to = reinterpret_cast<const sockaddr*>(&there);
    if (::connect(connection.get(), to, sizeof there) != 0) {
        int error = errno;
        socklen_t length = sizeof error;
        if (error != EINPROGRESS || !is_ready(connection.get(), POLLOUT, seconds)) return FileDescriptor();
        ::getsockopt(connection.get(), SOL_SOCKET, SO_ERROR, &error, &length);
        if (error != 0) return FileDescriptor();
    }
    ::fcntl(connection.get(), F_SETFL, 0);  // blocking from here on
    prepare(connection.get());
    return connection;
}

std::vector<std::string> addresses_of_this_machine() {
    std::vector<std::string> all;
    ifaddrs* first = nullptr;
    if (::getifaddrs(&first) != 0) return all;
    for (const ifaddrs* i = first; i != nullptr; i = i->ifa_next) {
        if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
        if ((i->ifa_flags & IFF_UP) == 0 || (i->ifa_flags & IFF_LOOPBACK) != 0) continue;
        char text[INET_ADDRSTRLEN] = "";
        const auto* const address = reinterpret_cast<const sockaddr_in*>(i->ifa_addr);
        if (::inet_ntop(AF_INET, &address->sin_addr, text, sizeof text) != nullptr) all.emplace_back(text);
    }
    ::freeifaddrs(first);
    return all;
}

}  // namespace lnfree
