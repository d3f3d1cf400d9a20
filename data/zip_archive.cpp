#include "data/zip_archive.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "data/files.h"

namespace lnfree {

namespace {

constexpr uint32_t local_header_signature = 0x04034b50, directory_entry_signature = 0x02014b50;
constexpr uint32_t end_signature = 0x06054b50, end64_signature = 0x06064b50, end64_locator_signature = 0x07064b50;
constexpr uint64_t local_header_bytes = 30, directory_entry_bytes = 46;
constexpr uint64_t end_bytes = 22, end64_bytes = 56, end64_locator_bytes = 20;
constexpr uint64_t longest_comment = 0xffff;
constexpr uint64_t in_zip64_16 = 0xffff, in_zip64_32 = 0xffffffff;  // "see the zip64 record"

// An archive's bytes, with every access checked.
class ArchiveBytes {
  public:
    ArchiveBytes(const unsigned char* bytes, uint64_t size, const std::string& file)
        : bytes_(bytes), size_(size), file_(file) {}

    uint64_t size() const { return size_; }

    bool holds(uint64_t offset, uint64_t n) const { return offset <= size_ && n <= size_ - offset; }

    // An unsigned number of `width` bytes.
    uint64_t number(uint64_t offset, uint64_t width) const {
        require(offset, width);
        uint64_t value = 0;
        std::memcpy(&value, bytes_ + offset, width);
        return value;
    }

    std::string text(uint64_t offset, uint64_t n) const {
        require(offset, n);
        return std::string(reinterpret_cast<const char*>(bytes_) + offset, n);
    }

    [[noreturn]] void damaged(const std::string& what) const {
        throw BadInput(file_ + " is a damaged zip archive: " + what + "; fetch it again");
    }

  private:
    void require(uint64_t offset, uint64_t n) const {
        if (!holds(offset, n)) damaged("its directory points beyond its end");
    }

    const unsigned char* bytes_;
    uint64_t size_;
    const std::string& file_;
};

// The last record of an archive says where its directory is. A comment may follow it.
uint64_t find_end(const ArchiveBytes& zip) {
    if (zip.size() >= end_bytes) {
        const uint64_t last = zip.size() - end_bytes;
        const uint64_t first = last > longest_comment ? last - longest_comment : 0;
        for (uint64_t at = last + 1; at-- > first;)
            if (zip.number(at, 4) == end_signature && zip.number(at + 20, 2) == last - at) return at;
    }
    zip.damaged("it is cut off in front of its directory");
}

struct Directory {
    uint64_t entries, bytes, offset;
};

Directory find_directory(const ArchiveBytes& zip) {
    const uint64_t end = find_end(zip);
    Directory d{zip.number(end + 10, 2), zip.number(end + 12, 4), zip.number(end + 16, 4)};
    bool several_disks = zip.number(end + 4, 2) % in_zip64_16 != 0 || zip.number(end + 8, 2) != d.entries;
    if (d.entries == in_zip64_16 || d.bytes == in_zip64_32 || d.offset == in_zip64_32) {
        if (end < end64_locator_bytes || zip.number(end - end64_locator_bytes, 4) != end64_locator_signature)
            zip.damaged("it has no zip64 record");
        const uint64_t end64 = zip.number(end - end64_locator_bytes + 8, 8);
        if (!zip.holds(end64, end64_bytes) || zip.number(end64, 4) != end64_signature)
            zip.damaged("its zip64 record is not where it should be");
        d = {zip.number(end64 + 32, 8), zip.number(end64 + 40, 8), zip.number(end64 + 48, 8)};
        several_disks = zip.number(end64 + 16, 4) != 0 || zip.number(end64 + 24, 8) != d.entries;
    }
    if (several_disks) zip.damaged("a part of it lies on another disk");
    if (!zip.holds(d.offset, d.bytes) || d.entries > d.bytes / directory_entry_bytes)
        zip.damaged("its directory is larger than the file");
    return d;
}

// What a directory entry says of a file, zip64's numbers in their places.
struct DirectoryEntry {
    std::string name;
    uint64_t flags, method, stored_size, size, local_header;
    uint64_t bytes;  // of the entry itself
};

// Numbers that do not fit 32 bits stand in the extra field, in this order, those that fit left out.
void take_zip64_numbers(const ArchiveBytes& zip, uint64_t extra, uint64_t extra_bytes, DirectoryEntry& entry) {
    constexpr uint64_t zip64_id = 1;
    const uint64_t end = extra + extra_bytes;
    uint64_t field = extra;
    while (end - field >= 4 && zip.number(field, 2) != zip64_id) {
        const uint64_t bytes = 4 + zip.number(field + 2, 2);
        if (bytes > end - field) zip.damaged("the directory's entry of " + quoted_name(entry.name) + " is cut off");
        field += bytes;
    }
    for (uint64_t* number : {&entry.size, &entry.stored_size, &entry.local_header}) {
        if (*number != in_zip64_32) continue;
        if (end - field < 12) zip.damaged("the directory's entry of " + quoted_name(entry.name) + " is cut off");
        *number = zip.number(field + 4, 8);
        field += 8;
    }
}

DirectoryEntry read_entry(const ArchiveBytes& zip, uint64_t at, uint64_t end) {
    if (end - at < directory_entry_bytes || zip.number(at, 4) != directory_entry_signature)
        zip.damaged("its directory is not what its end says it is");
    const uint64_t name = zip.number(at + 28, 2), extra = zip.number(at + 30, 2), comment = zip.number(at + 32, 2);
    const uint64_t bytes = directory_entry_bytes + name + extra + comment;
    if (bytes > end - at) zip.damaged("its directory is cut off");
    DirectoryEntry entry{zip.text(at + directory_entry_bytes, name),
                         zip.number(at + 8, 2),
                         zip.number(at + 10, 2),
                         zip.number(at + 20, 4),
                         zip.number(at + 24, 4),
                         zip.number(at + 42, 4),
                         bytes};
    take_zip64_numbers(zip, at + directory_entry_bytes + name, extra, entry);
    return entry;
}

// Where the file lies: behind its local header, whose name and extra field have lengths of their own.
ZipEntry locate(const ArchiveBytes& zip, const DirectoryEntry& entry, const std::string& file) {
    const std::string what = file + ": " + quoted_name(entry.name) + " in this zip archive is ";
    if ((entry.flags & 1) != 0) throw BadInput(what + "encrypted; torch.save does not write such files");
    if (entry.method != 0)
        throw BadInput(what + "compressed (method " + std::to_string(entry.method) +
                       "); torch.save stores files as they are: load it with torch and save it again");
    if (entry.stored_size != entry.size) zip.damaged(quoted_name(entry.name) + " has two sizes");
    const uint64_t at = entry.local_header;
    if (!zip.holds(at, local_header_bytes) || zip.number(at, 4) != local_header_signature)
        zip.damaged(quoted_name(entry.name) + " is not where its directory says");
    const uint64_t offset = at + local_header_bytes + zip.number(at + 26, 2) + zip.number(at + 28, 2);
    if (!zip.holds(offset, entry.size)) zip.damaged(quoted_name(entry.name) + " reaches beyond its end");
    return {entry.name, offset, entry.size};
}

}  // namespace

bool begins_as_zip(const unsigned char* bytes, uint64_t size) {
    return size >= 4 && std::memcmp(bytes, "PK\3\4", 4) == 0;
}

std::vector<ZipEntry> read_zip_directory(const unsigned char* bytes, uint64_t size, const std::string& file) {
    const ArchiveBytes zip(bytes, size, file);
    const Directory directory = find_directory(zip);
    const uint64_t end = directory.offset + directory.bytes;
    std::set<std::string> names;
    std::vector<ZipEntry> entries;
    uint64_t at = directory.offset;
    for (uint64_t i = 0; i < directory.entries; i++) {
        const DirectoryEntry entry = read_entry(zip, at, end);
        if (!names.insert(entry.name).second) zip.damaged("it holds " + quoted_name(entry.name) + " twice");
        entries.push_back(locate(zip, entry, file));
        at += entry.bytes;
    }
    return entries;
}

}  // namespace lnfree
