#include "data/npy.h"

#include <algorithm>
#include <map>

#include "data/files.h"

namespace lnfree {

namespace {

constexpr std::string_view magic = "\x93NUMPY";
constexpr uint64_t longest_header = 1 << 16;  // NumPy writes 64 to 128 bytes for a row of numbers

BadInput damaged(const std::string& source, const std::string& what) {
    return BadInput(source + " is a damaged .npy file: " + what + "; save it again with numpy.save");
}

// The value behind 'key': in a Python dictionary written out, up to the comma or bracket that ends it; empty if there is
// no such key.
std::string value_of(std::string_view header, const std::string& key) {
    const uint64_t at = header.find("'" + key + "':");
    if (at == std::string_view::npos) return "";
    const uint64_t begin = header.find_first_not_of(' ', at + key.size() + 3);
    if (begin == std::string_view::npos) return "";
    const bool tuple = header[begin] == '(';
    const uint64_t end = header.find_first_of(tuple ? ")" : ",}", begin);
    if (end == std::string_view::npos) return "";
    return std::string(header.substr(begin, end - begin + (tuple ? 1 : 0)));
}

// The text of the header and where the data begins.
std::string_view header_of(std::string_view file, const std::string& source, uint64_t& data_at) {
    if (file.size() < 12) throw damaged(source, "it ends within its header");
    const auto byte = [&](uint64_t i) { return static_cast<uint64_t>(static_cast<uint8_t>(file[i])); };
    const uint64_t version = byte(6), begin = version == 1 ? 10 : 12;
    if (version < 1 || version > 3) throw damaged(source, "its version is " + std::to_string(version));
    const uint64_t size = byte(8) | byte(9) << 8 | (version == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
    if (size > file.size() - begin) throw damaged(source, "it ends within its header");
    if (size > longest_header) throw damaged(source, "a header of " + std::to_string(size) + " bytes");
    data_at = begin + size;
    return file.substr(begin, size);
}

// Sizes and sign of the types that hold token ids; others, and those of big-endian machines, are refused.
void take_type(const std::string& descr, const std::string& source, NpyIntegers& out) {
    static const std::map<std::string, std::pair<uint32_t, bool>> types = {{"'<u2'", {2, false}}, {"'<i2'", {2, true}},
                                                                           {"'<u4'", {4, false}}, {"'<i4'", {4, true}},
                                                                           {"'<u8'", {8, false}}, {"'<i8'", {8, true}}};
    const auto type = types.find(descr);
    if (type == types.end()) {
        throw BadInput(source + ": its numbers are " + quoted_name(descr) +
                       ", not integers of 2, 4 or 8 bytes; save them with ids.astype(numpy.uint16) or uint32");
    }
    out.bytes = type->second.first;
    out.is_signed = type->second.second;
}

// "(123,)"
uint64_t length_in(const std::string& shape, const std::string& source) {
    const bool number = shape.size() > 3 && shape.size() < 22 && shape.front() == '(' &&
                        shape.compare(shape.size() - 2, 2, ",)") == 0 &&
                        shape.find_first_not_of("0123456789", 1) == shape.size() - 2;
    if (number) return std::stoull(shape.substr(1));
    throw BadInput(source + ": its shape is " + quoted_name(shape) +
                   "; token ids are wanted in one row: numpy.save(FILE, ids.reshape(-1))");
}

}  // namespace

bool is_npy(std::string_view file) {
    return file.substr(0, magic.size()) == magic;
}

NpyIntegers parse_npy(std::string_view file, const std::string& source) {
    NpyIntegers out;
    const std::string_view header = header_of(file, source, out.offset);
    take_type(value_of(header, "descr"), source, out);
    out.count = length_in(value_of(header, "shape"), source);
    const uint64_t expected = file.size() - out.offset;
    if (out.count != expected / out.bytes || expected % out.bytes != 0) {
        throw damaged(source, std::to_string(out.count) + " numbers of " + std::to_string(out.bytes) + " bytes, and " +
                                  std::to_string(expected) + " bytes behind its header");
    }
    return out;
}

}  // namespace lnfree
