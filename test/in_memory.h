// Puts this program's temporary folders into memory, if there is a file system for that with room and nobody has chosen
// another place: a run syncs every file that it writes, and a disk would take most of the test's time.
#pragma once

#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdlib>

namespace lnfree {

inline const bool temporary_folders_in_memory = [] {
    const char* const folder = "/dev/shm";
    struct statvfs room {};
    if (::access(folder, W_OK) != 0 || ::statvfs(folder, &room) != 0) return false;
    if (room.f_bavail * room.f_frsize < (256u << 20)) return false;
    return ::setenv("TMPDIR", folder, 0) == 0;
}();

}  // namespace lnfree
