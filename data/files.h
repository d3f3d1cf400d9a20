// Files, read and written so that no failure goes unnoticed: read-only memory maps, small files in one piece, and new
// files that appear under their name only when they are complete and on the disk. POSIX; little-endian hosts only.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "data/error.h"

namespace lnfree {

// Safetensors, llm.c's and nanoGPT's files are little-endian on every machine, and are mapped here as they are.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "only little-endian machines are supported");

// The operating system's words for an errno value.
inline std::string errno_text(int error) {
    return std::generic_category().message(error);
}

// `text` in double quotes, fit for one line of an error message: for names that come out of a file and may hold
// anything. Control characters and quotes become '?', and what is longer than 120 bytes is cut.
inline std::string quoted_name(const std::string& text) {
    constexpr size_t longest = 120;
    std::string line = text.substr(0, longest);
    for (char& c : line) {
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '"') c = '?';
    }
    return '"' + line + (text.size() > longest ? "...\"" : "\"");
}

// Owns a file descriptor; closes it when it goes.
class FileDescriptor {
  public:
    explicit FileDescriptor(int descriptor = -1) : descriptor_(descriptor) {}
    FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
    FileDescriptor& operator=(FileDescriptor&& other) noexcept {
        std::swap(descriptor_, other.descriptor_);
        return *this;
    }
    ~FileDescriptor() {
        if (descriptor_ >= 0) ::close(descriptor_);
    }

    int get() const { return descriptor_; }
    bool is_open() const { return descriptor_ >= 0; }

    // Closes now, so that an error can be seen: network file systems report a failed write here. Returns errno or 0.
    int close() { return ::close(std::exchange(descriptor_, -1)) == 0 ? 0 : errno; }

  private:
    int descriptor_;
};

// A whole file mapped into memory, read-only. The mapping stays valid, at the same address, when the object is moved.
// BadInput if the file cannot be opened, is not a regular file, or cannot be mapped. Whoever shortens the file while it
// is mapped gets this process a SIGBUS; files that are replaced by rename (as everything here does) are safe.
class MappedFile {
  public:
    explicit MappedFile(std::string path) : path_(std::move(path)) {
        // O_NONBLOCK: opening a named pipe must fail below, not wait for a writer. Regular files ignore it.
        FileDescriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
        if (!file.is_open()) throw BadInput("cannot open " + path_ + ": " + errno_text(errno));
        struct stat status {};
        if (::fstat(file.get(), &status) != 0) throw BadInput("cannot read " + path_ + ": " + errno_text(errno));
        if (S_ISDIR(status.st_mode)) throw BadInput(path_ + " is a folder; a file is needed");
        if (!S_ISREG(status.st_mode)) throw BadInput(path_ + " is not a regular file; copy it into one first");
        size_ = static_cast<uint64_t>(status.st_size);
        if (size_ == 0) return;  // mmap refuses length 0; an empty file is for the reader of the format to judge
        void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
        if (address == MAP_FAILED) throw BadInput("cannot map " + path_ + " into memory: " + errno_text(errno));
        data_ = static_cast<const unsigned char*>(address);
    }
    MappedFile(MappedFile&& other) noexcept
        : path_(std::move(other.path_)),
          data_(std::exchange(other.data_, nullptr)),
          size_(std::exchange(other.size_, 0)) {}
    MappedFile& operator=(MappedFile&& other) noexcept {
        std::swap(path_, other.path_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~MappedFile() {
        if (data_ != nullptr) ::munmap(const_cast<unsigned char*>(data_), size_);
    }

    // Tells the system that these bytes of some mapped file are not needed for now: whole pages among them leave this
    // process's memory, and are read again if they are looked at again.
    static void give_back(const unsigned char* from, uint64_t bytes) {
        const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
        const uint64_t to_next_page = (page - reinterpret_cast<uintptr_t>(from) % page) % page;
        if (bytes < to_next_page + page) return;
        const uint64_t whole_pages = (bytes - to_next_page) / page * page;
        ::madvise(const_cast<unsigned char*>(from) + to_next_page, whole_pages, MADV_DONTNEED);
    }

    const unsigned char* data() const { return data_; }  // null for an empty file
    uint64_t size() const { return size_; }              // bytes
    const std::string& path() const { return path_; }

  private:
    std::string path_;
    const unsigned char* data_ = nullptr;
    uint64_t size_ = 0;
};

// The whole file as bytes. BadInput if it cannot be read or is larger than max_bytes; no more than that is ever held.
inline std::string read_file(const std::string& path, uint64_t max_bytes) {
    FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.is_open()) throw BadInput("cannot open " + path + ": " + errno_text(errno));
    std::string text;
    char buffer[1 << 16];
    for (;;) {
        const ssize_t got = ::read(file.get(), buffer, sizeof(buffer));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw BadInput("cannot read " + path + ": " + errno_text(errno));
        if (got == 0) return text;
        if (static_cast<uint64_t>(got) > max_bytes - text.size()) {
            throw BadInput(path + " is larger than the " + std::to_string(max_bytes) +
                           " bytes that a file of this kind may have; is it the right file?");
        }
        text.append(buffer, static_cast<size_t>(got));
    }
}

// The folder that holds `path`, "." for a bare file name.
inline std::string folder_of(const std::string& path) {
    const std::string parent = std::filesystem::path(path).parent_path().string();
    return parent.empty() ? "." : parent;
}

// Makes what was created, renamed or removed in a folder survive a power cut. RunFailure if the disk reports an error;
// file systems that cannot sync folders at all are accepted.
inline void fsync_folder(const std::string& folder) {
    FileDescriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!descriptor.is_open()) throw RunFailure("cannot open the folder " + folder + ": " + errno_text(errno));
    if (::fsync(descriptor.get()) != 0 && errno != EINVAL && errno != ENOTSUP) {
        throw RunFailure("cannot sync the folder " + folder + ": " + errno_text(errno));
    }
}

// A file being written. It lies in the folder of `path` under a temporary name until publish() gives it its own;
// destroyed before that, it leaves nothing behind. Every member throws RunFailure naming the file when the system does.
class NewFile {
  public:
    explicit NewFile(std::string path) : path_(std::move(path)) {
        // Another run may be writing the same file, and a killed one may have left its own: take the first free name.
        for (int attempt = 0; !file_.is_open(); ++attempt) {
            temporary_ = path_ + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
            file_ = FileDescriptor(::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
            if (!file_.is_open() && errno != EEXIST) throw failure("cannot create", errno);
        }
    }
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;
    ~NewFile() {
        if (!published_) ::unlink(temporary_.c_str());
    }

    // Appends n bytes.
    void write(const void* bytes, uint64_t n) {
        overwrite(size_, bytes, n);
        size_ += n;
    }

    // Writes n bytes at an offset, without moving where write() goes on: for headers that are known last.
    void overwrite(uint64_t offset, const void* bytes, uint64_t n) {
        constexpr uint64_t most_at_once = 1 << 30;  // Linux writes at most 2 GiB in one call
        const char* next = static_cast<const char*>(bytes);
        for (uint64_t done = 0; done < n;) {
            const ssize_t wrote =
                ::pwrite(file_.get(), next + done, std::min(n - done, most_at_once), static_cast<off_t>(offset + done));
            if (wrote < 0 && errno == EINTR) continue;
            if (wrote < 0) throw failure("cannot write", errno);
            done += static_cast<uint64_t>(wrote);
        }
    }

    // Everything on the disk and the descriptor given back, still under the temporary name.
    void close() {
        if (::fsync(file_.get()) != 0) throw failure("cannot write", errno);
        if (const int error = file_.close()) throw failure("cannot write", error);
    }

    // The file, closed if it was not, takes its own name and replaces what had it.
    void publish() {
        if (file_.is_open()) close();
        if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw failure("cannot rename into place", errno);
        published_ = true;
        fsync_folder(folder_of(path_));
    }

    const std::string& path() const { return path_; }
    uint64_t size() const { return size_; }  // bytes appended so far

  private:
    RunFailure failure(const std::string& what, int error) const {
        const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
        return RunFailure(what + " " + path_ + ": " + errno_text(error) +
                          (full ? "; make room or write to another disk" : ""));
    }

    std::string path_;
    std::string temporary_;
    FileDescriptor file_;
    uint64_t size_ = 0;
    bool published_ = false;
};

// Writes a small file whole: afterwards `path` holds `text`, or, after a RunFailure, what it held before.
inline void write_file_atomically(const std::string& path, const std::string& text) {
    NewFile file(path);
    file.write(text.data(), text.size());
    file.publish();
}

}  // namespace lnfree
