// The checkpoints of a run, OUT/checkpoints/step_N, and the lock that gives OUT to one process at a time. A checkpoint
// is one folder; what lies in it is for its writer to say. Its name appears when it is complete and on the disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/error.h"
#include "data/files.h"

namespace lnfree {

// "step_000500": six digits at least, so that a listing shows the first million steps in order.
std::string checkpoint_name(int64_t step);

// The complete checkpoints of a run, oldest first: by the number in the name. Other names are passed over, and so are
// unfinished ones, whose name starts with a dot. fs::filesystem_error if the folder cannot be read.
std::vector<std::filesystem::path> list_checkpoints(const std::string& out);

// Writes the checkpoint of a step and returns its path. `fill` is called with the path of an empty folder and writes the
// files, each synced as write_file_atomically does; the folder then gets its name. A checkpoint that is there already is
// left alone and `fill` not called: a run that resumed from it and stopped at once would write the same bits. RunFailure
// when the disk fails; after that, or an exception of `fill`, which passes, nothing is left behind.
std::filesystem::path write_checkpoint(const std::string& out, int64_t step,
                                       const std::function<void(const std::string& folder)>& fill);

// Removes what a killed process left half-written in its output folder. Only for the owner of that folder: what another
// process is writing looks the same.
void remove_leftovers(const std::string& out);

// Removes all but the last `keep` checkpoints, and spares the one named `also`.
void prune_checkpoints(const std::string& out, size_t keep, const std::string& also = "");

// Whether a folder holds anything besides the file of a FolderLock. False if there is no such folder.
bool holds_files(const std::string& folder);

// Makes this process the only one that writes into a folder, for as long as it lives: an exclusive flock() on
// FOLDER/.lock, which the system gives back however the process ends. The file says who holds it, for people and for the
// message of whoever comes second; its owner removes it. Where the file system has no locks (some network disks), a line
// on standard error says so and the run goes on without.
class FolderLock {
  public:
    // The folder must exist. BadInput if another process or another FolderLock of this one holds the lock, naming who
    // does, or if the file cannot be made. `flock` is the system's; tests put another in its place.
    explicit FolderLock(const std::string& folder, int (*flock)(int descriptor, int operation) = nullptr);
    FolderLock(const FolderLock&) = delete;
    FolderLock& operator=(const FolderLock&) = delete;
    ~FolderLock();

    bool held() const { return file_.is_open(); }  // false: the file system has no locks

  private:
    bool still_has_name() const;
    void write_owner();

    std::string path_;
    FileDescriptor file_;
    int64_t process_;  // whose lock it is; a fork()ed child shares the descriptor and must leave the file alone
};

}  // namespace lnfree
