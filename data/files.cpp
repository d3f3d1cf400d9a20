#include "data/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

namespace lnfree {

std::string errno_text(int error) {
    return std::generic_category().message(error);
}

std::string quoted_name(const std::string& text) {
    constexpr size_t longest = 120;
    std::string line = text.substr(0, longest);
    for (char& c : line) {
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '"') c = '?';
    }
    return '"' + line + (text.size() > longest ? "...\"" : "\"");
}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
}

FileDescriptor::~FileDescriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

int FileDescriptor::close() {
    return ::close(std::exchange(descriptor_, -1)) == 0 ? 0 : errno;
}

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
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

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<unsigned char*>(data_), size_);
}

void MappedFile::give_back(const unsigned char* from, uint64_t bytes) {
    const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
    const uint64_t to_next_page = (page - reinterpret_cast<uintptr_t>(from) % page) % page;
    if (bytes < to_next_page + page) return;
    const uint64_t whole_pages = (bytes - to_next_page) / page * page;
    ::madvise(const_cast<unsigned char*>(from) + to_next_page, whole_pages, MADV_DONTNEED);
}

std::string read_file(const std::string& path, uint64_t max_bytes) {
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

std::string folder_of(const std::string& path) {
    const std::string parent = std::filesystem::path(path).parent_path().string();
    return parent.empty() ? "." : parent;
}

void fsync_folder(const std::string& folder) {
    FileDescriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!descriptor.is_open()) throw RunFailure("cannot open the folder " + folder + ": " + errno_text(errno));
    if (::fsync(descriptor.get()) != 0 && errno != EINVAL && errno != ENOTSUP) {
        throw RunFailure("cannot sync the folder " + folder + ": " + errno_text(errno));
    }
}

NewFile::NewFile(std::string path) : path_(std::move(path)) {
    // Another run may be writing the same file, and a killed one may have left its own: take the first free name.
    for (int attempt = 0; !file_.is_open(); ++attempt) {
        temporary_ = path_ + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
        file_ = FileDescriptor(::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
        if (!file_.is_open() && errno != EEXIST) throw failure("cannot create", errno);
    }
}

NewFile::~NewFile() {
    if (!published_) ::unlink(temporary_.c_str());
}

void NewFile::write(const void* bytes, uint64_t n) {
    overwrite(size_, bytes, n);
    size_ += n;
}

void NewFile::overwrite(uint64_t offset, const void* bytes, uint64_t n) {
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

void NewFile::close() {
    if (::fsync(file_.get()) != 0) throw failure("cannot write", errno);
    if (const int error = file_.close()) throw failure("cannot write", error);
}

void NewFile::publish() {
    if (file_.is_open()) close();
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw failure("cannot rename into place", errno);
    published_ = true;
    fsync_folder(folder_of(path_));
}

RunFailure NewFile::failure(const std::string& what, int error) const {
    const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    return RunFailure(what + " " + path_ + ": " + errno_text(error) +
                      (full ? "; make room or write to another disk" : ""));
}

void write_file_atomically(const std::string& path, const std::string& text) {
    NewFile file(path);
    file.write(text.data(), text.size());
    file.publish();
}

}  // namespace lnfree
