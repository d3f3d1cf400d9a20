// Files, read and written so that no failure goes unnoticed: read-only memory maps, small files in one piece, and new
// files that appear under their name only when they are complete and on the disk. POSIX; little-endian hosts only.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "data/error.h"

namespace lnfree {

// Safetensors, llm.c's and nanoGPT's files are little-endian on every machine, and are mapped here as they are.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "only little-endian machines are supported");

// The operating system's words for an errno value.
std::string errno_text(int error);

// `text` in double quotes, fit for one line of an error message: for names that come out of a file and may hold
// anything. Control characters and quotes become '?', and what is longer than 120 bytes is cut.
std::string quoted_name(const std::string& text);

// Owns a file descriptor; closes it when it goes.
class FileDescriptor {
  public:
    explicit FileDescriptor(int descriptor = -1) : descriptor_(descriptor) {}
    FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
    FileDescriptor& operator=(FileDescriptor&& other) noexcept;
    ~FileDescriptor();

    int get() const { return descriptor_; }
    bool is_open() const { return descriptor_ >= 0; }

    // Closes now, so that an error can be seen: network file systems report a failed write here. Returns errno or 0.
    int close();

  private:
    int descriptor_;
};

// A whole file mapped into memory, read-only. The mapping stays valid, at the same address, when the object is moved.
// BadInput if the file cannot be opened, is not a regular file, or cannot be mapped. Whoever shortens the file while it
// is mapped gets this process a SIGBUS; files that are replaced by rename (as everything here does) are safe.
class MappedFile {
  public:
    explicit MappedFile(std::string path);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();

    // Tells the system that these bytes of some mapped file are not needed for now: whole pages among them leave this
    // process's memory, and are read again if they are looked at again.
    static void give_back(const unsigned char* from, uint64_t bytes);

    const unsigned char* data() const { return data_; }  // null for an empty file
    uint64_t size() const { return size_; }              // bytes
    const std::string& path() const { return path_; }

  private:
    std::string path_;
    const unsigned char* data_ = nullptr;
    uint64_t size_ = 0;
};

// The whole file as bytes. BadInput if it cannot be read or is larger than max_bytes; no more than that is ever held.
std::string read_file(const std::string& path, uint64_t max_bytes);

// The folder that holds `path`, "." for a bare file name.
std::string folder_of(const std::string& path);

// Makes what was created, renamed or removed in a folder survive a power cut. RunFailure if the disk reports an error;
// file systems that cannot sync folders at all are accepted.
void fsync_folder(const std::string& folder);

// A file being written. It lies in the folder of `path` under a temporary name until publish() gives it its own;
// destroyed before that, it leaves nothing behind. Every member throws RunFailure naming the file when the system does.
class NewFile {
  public:
    explicit NewFile(std::string path);
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;
    ~NewFile();

    // Appends n bytes.
    void write(const void* bytes, uint64_t n);

    // Writes n bytes at an offset, without moving where write() goes on: for headers that are known last.
    void overwrite(uint64_t offset, const void* bytes, uint64_t n);

    // Everything on the disk and the descriptor given back, still under the temporary name.
    void close();

    // The file, closed if it was not, takes its own name and replaces what had it.
    void publish();

    const std::string& path() const { return path_; }
    uint64_t size() const { return size_; }  // bytes appended so far

  private:
    RunFailure failure(const std::string& what, int error) const;

    std::string path_;
    std::string temporary_;
    FileDescriptor file_;
    uint64_t size_ = 0;
    bool published_ = false;
};

// Writes a small file whole: afterwards `path` holds `text`, or, after a RunFailure, what it held before.
void write_file_atomically(const std::string& path, const std::string& text);

}  // namespace lnfree
