// Notes what reaches the disk, and in which order: stands in for the C library's fsync and rename in the program that
// includes it (once). A kill -9 cannot show that a sync is missing, and a power cut is no unit test.
#pragma once

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <string>
#include <vector>

namespace lnfree {

// "sync PATH" and "rename FROM TO", by the files' last names.
inline std::vector<std::string>& noted_syncs() {
    static std::vector<std::string> all;
    return all;
}

inline std::string last_name(const std::string& path) {
    return path.substr(path.rfind('/') + 1);
}

}  // namespace lnfree

extern "C" int fsync(int descriptor) {
    char path[PATH_MAX];
    const ssize_t n = readlink(("/proc/self/fd/" + std::to_string(descriptor)).c_str(), path, sizeof path);
    if (n > 0) lnfree::noted_syncs().push_back("sync " + lnfree::last_name(std::string(path, static_cast<size_t>(n))));
    return static_cast<int>(syscall(SYS_fsync, descriptor));
}

extern "C" int rename(const char* from, const char* to) noexcept {
    lnfree::noted_syncs().push_back("rename " + lnfree::last_name(from) + " " + lnfree::last_name(to));
    return static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
