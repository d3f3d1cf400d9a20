// The directory of a zip archive (PKWARE's APPNOTE.TXT 6.3, zip64 included) whose files lie in it as they are, not
// compressed: so torch.save writes its files, and what is in them can be used where it lies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/error.h"

namespace lnfree {

// A file in an archive: its bytes are [offset, offset + size) of the archive's.
struct ZipEntry {
    std::string name;
    uint64_t offset = 0;
    uint64_t size = 0;
};

// Whether these bytes begin as a zip archive that holds something does.
bool begins_as_zip(const unsigned char* bytes, uint64_t size);

// The files in the archive of `size` bytes, in the order of its directory; `file` names it in messages. Untrusted: every
// entry is checked to lie within the archive, and what is allocated is bounded by the directory that is really there.
// BadInput if it is damaged or cut off, spread over several disks, or holds a compressed or encrypted file, or one name
// twice.
std::vector<ZipEntry> read_zip_directory(const unsigned char* bytes, uint64_t size, const std::string& file);

}  // namespace lnfree
