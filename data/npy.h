// The header of NumPy's .npy files (numpy.lib.format): what numpy.save writes. Token ids come in them from build-nanogpt
// and from anyone who tokenises with transformers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "data/error.h"

namespace lnfree {

// A row of integers in a file.
struct NpyIntegers {
    uint64_t offset = 0;     // where the first lies, in bytes
    uint64_t count = 0;      //
    uint32_t bytes = 0;      // of each: 2, 4 or 8
    bool is_signed = false;  //
};

// Whether these bytes begin a .npy file.
bool is_npy(std::string_view file);

// What the header of a whole .npy file says. BadInput, naming `source`, if it is damaged, does not fit the file's size, or
// holds something else than a one-dimensional array of little-endian uint16, int16, uint32, int32, uint64 or int64.
NpyIntegers parse_npy(std::string_view file, const std::string& source);

}  // namespace lnfree
