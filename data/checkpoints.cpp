#include "data/checkpoints.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <optional>
#include <system_error>
#include <utility>

namespace lnfree {

namespace fs = std::filesystem;

// ---------------------------------------------------------------------------------------------------------------------
// Checkpoints

namespace {

constexpr char name_prefix[] = "step_";
constexpr char lock_name[] = ".lock";

// The step in a checkpoint's name; nothing for any other name.
std::optional<int64_t> step_of(const std::string& name) {
    const std::string prefix = name_prefix;
    if (name.compare(0, prefix.size(), prefix) != 0) return {};
    const std::string digits = name.substr(prefix.size());
    if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) return {};
    int64_t step = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
    if (error != std::errc()) return {};
    return step;
}

}  // namespace

std::string checkpoint_name(int64_t step) {
    char name[32];
    std::snprintf(name, sizeof name, "%s%06lld", name_prefix, static_cast<long long>(step));
    return name;
}

std::vector<fs::path> list_checkpoints(const std::string& out) {
    const fs::path folder = fs::path(out) / "checkpoints";
    if (!fs::is_directory(folder)) return {};
    std::vector<std::pair<int64_t, fs::path>> found;
    for (const auto& entry : fs::directory_iterator(folder)) {
        const std::optional<int64_t> step = step_of(entry.path().filename().string());
        if (step && entry.is_directory()) found.emplace_back(*step, entry.path());
    }
    std::sort(found.begin(), found.end());
    std::vector<fs::path> paths;
    for (auto& [step, path] : found) paths.push_back(std::move(path));
    return paths;
}

// Written under a temporary name, synced, then renamed whole: a checkpoint is there completely or not at all.
fs::path write_checkpoint(const std::string& out, int64_t step,
                          const std::function<void(const std::string& folder)>& fill) {
    const fs::path parent = fs::path(out) / "checkpoints";
    fs::path final_name = parent / checkpoint_name(step);
    const fs::path temporary = parent / ("." + checkpoint_name(step) + ".tmp");
    std::error_code ignored;
    if (fs::exists(final_name, ignored)) return final_name;
    try {
        fs::remove_all(temporary);
        fs::create_directories(temporary);
        fill(temporary.string());
        fsync_folder(temporary.string());
        fs::rename(temporary, final_name);
        fsync_folder(parent.string());
    } catch (const fs::filesystem_error& e) {
        fs::remove_all(temporary, ignored);
        throw RunFailure("cannot write checkpoint " + final_name.string() + ": " + e.code().message());
    } catch (...) {
        fs::remove_all(temporary, ignored);
        throw;
    }
    return final_name;
}

void remove_leftovers(const std::string& out) {
    std::error_code ignored;
    std::vector<fs::path> leftovers;
    for (const fs::path& folder : {fs::path(out), fs::path(out) / "checkpoints"})
        for (const auto& entry : fs::directory_iterator(folder, ignored)) {
            const std::string name = entry.path().filename().string();
            const bool of_a_file =
                entry.is_regular_file() && name.find(".tmp-") != std::string::npos;  // data/files.cpp, NewFile
            if (of_a_file || (entry.is_directory() && name.compare(0, 6, ".step_") == 0))
                leftovers.push_back(entry.path());
        }
    for (const fs::path& path : leftovers) fs::remove_all(path, ignored);
}

// Each first loses its name, so that none is ever there by halves.
void prune_checkpoints(const std::string& out, size_t keep, const std::string& also) {
    const std::vector<fs::path> all = list_checkpoints(out);
    std::error_code ignored;
    for (size_t i = 0; i + keep < all.size(); i++) {
        if (all[i].filename() == also) continue;
        const fs::path doomed = all[i].parent_path() / ("." + all[i].filename().string() + ".old");
        fs::rename(all[i], doomed, ignored);
        fs::remove_all(doomed, ignored);
    }
}

bool holds_files(const std::string& folder) {
    if (!fs::is_directory(folder)) return false;
    return std::any_of(fs::directory_iterator(folder), fs::directory_iterator(),
                       [](const fs::directory_entry& entry) { return entry.path().filename() != lock_name; });
}

// ---------------------------------------------------------------------------------------------------------------------
// The lock

namespace {

// "pid 123 on host h since 2026-11-28 17:59:21 UTC"
std::string this_process() {
    char host[256] = "?";
    if (::gethostname(host, sizeof host) == 0) host[sizeof host - 1] = '\0';
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    char time[32] = "?";
    if (::gmtime_r(&now, &utc) != nullptr) std::strftime(time, sizeof time, "%Y-%m-%d %H:%M:%S UTC", &utc);
    return "pid " + std::to_string(::getpid()) + " on host " + host + " since " + time;
}

// The first line of an open lock file, fit for a message; "" if there is none yet, just after it was locked.
std::string owner_in(int descriptor) {
    char text[200];
    const ssize_t got = ::pread(descriptor, text, sizeof text, 0);
    std::string line(text, static_cast<size_t>(std::max<ssize_t>(got, 0)));
    line = line.substr(0, line.find('\n'));
    for (char& c : line)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    return line;
}

// What flock() says where there are no locks: NFS without a lock service, some FUSE and parallel file systems.
bool means_no_locks(int error) {
    return error == ENOLCK || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL;
}

bool has_content(int descriptor) {
    struct stat status {};
    return ::fstat(descriptor, &status) == 0 && status.st_size > 0;
}

}  // namespace

FolderLock::FolderLock(const std::string& folder, int (*flock)(int descriptor, int operation))
    : path_((fs::path(folder) / lock_name).string()), process_(::getpid()) {
    if (flock == nullptr) flock = ::flock;
    // Between our open() and our flock() the owner may have removed the file, and a third process made another of the
    // same name: only a lock on the file that has the name now counts.
    do {
        file_ = FileDescriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666));
        if (!file_.is_open()) throw BadInput("--out " + folder + ": cannot open " + path_ + ": " + errno_text(errno));
        int failed;
        do {
            failed = flock(file_.get(), LOCK_EX | LOCK_NB);
        } while (failed != 0 && errno == EINTR);
        if (failed == 0) continue;
        const int error = errno;
        if (error == EWOULDBLOCK) {
            const std::string owner = owner_in(file_.get());
            throw BadInput("--out " + folder + ": another process is writing there" +
                           (owner.empty() ? "" : " (" + owner + ")") + "; wait for it or stop it first");
        }
        if (!means_no_locks(error)) {
            throw BadInput("--out " + folder + ": cannot lock " + path_ + ": " + errno_text(error));
        }
        std::fprintf(stderr,
                     "warning: --out %s: this file system has no locks (%s); take care that no other process writes "
                     "there\n",
                     folder.c_str(), errno_text(error).c_str());
        if (!has_content(file_.get())) ::unlink(path_.c_str());
        file_ = FileDescriptor();
        return;
    } while (!still_has_name());
    write_owner();
}

// Removed while it is still locked: afterwards it might be somebody else's.
FolderLock::~FolderLock() {
    if (file_.is_open() && process_ == ::getpid() && still_has_name()) ::unlink(path_.c_str());
}

bool FolderLock::still_has_name() const {
    struct stat opened {
    }, named{};
    return ::fstat(file_.get(), &opened) == 0 && ::lstat(path_.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
}

// A disk too full for this line is no reason to stop: the lock is what counts.
void FolderLock::write_owner() {
    const std::string line = this_process() + "\n";
    const bool written = ::ftruncate(file_.get(), 0) == 0 && ::pwrite(file_.get(), line.data(), line.size(), 0) > 0;
    static_cast<void>(written);
}

}  // namespace lnfree
