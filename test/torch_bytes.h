// Files as torch.save writes them, and such as it never would: made by hand, opcode by opcode.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace lnfree::torch_bytes {

inline std::string little_endian(uint64_t value, int width) {
    std::string bytes;
    for (int i = 0; i < width; i++) bytes += static_cast<char>(value >> (8 * i) & 0xff);
    return bytes;
}

// -- values of a pickle

inline std::string text(const std::string& s) {
    return "X" + little_endian(s.size(), 4) + s;
}

inline std::string integer(int64_t n) {
    return "\x8a\x08" + little_endian(static_cast<uint64_t>(n), 8);
}

inline std::string name(const std::string& module, const std::string& name) {
    return "c" + module + "\n" + name + "\n";
}

inline std::string tuple(const std::vector<std::string>& items) {
    std::string bytes = "(";
    for (const std::string& item : items) bytes += item;
    return bytes + "t";
}

inline std::string numbers(const std::vector<int64_t>& items) {
    std::vector<std::string> each;
    for (const int64_t item : items) each.push_back(integer(item));
    return tuple(each);
}

inline std::string call(const std::string& module, const std::string& function, const std::vector<std::string>& given) {
    return name(module, function) + tuple(given) + "R";
}

inline std::string dictionary(const std::vector<std::pair<std::string, std::string>>& items) {
    std::string bytes = "}(";
    for (const auto& [key, value] : items) bytes += text(key) + value;
    return bytes + "u";
}

inline std::string storage(const std::string& type, const std::string& key, int64_t elements) {
    return tuple({text("storage"), name("torch", type), text(key), text("cpu"), integer(elements)}) + "Q";
}

inline std::string tensor(const std::string& in_storage, int64_t offset, const std::vector<int64_t>& shape,
                          const std::vector<int64_t>& strides) {
    return call("torch._utils", "_rebuild_tensor_v2",
                {in_storage, integer(offset), numbers(shape), numbers(strides), "\x89",
                 call("collections", "OrderedDict", {})});
}

inline std::string pickle(const std::string& value) {
    return "\x80\x02" + value + ".";
}

// -- zip archives

struct ZipFile {
    std::string name, bytes;
};

// Not compressed, without checksums, which nobody reads. With `zip64` its numbers stand in the records of that name.
inline std::string zip(const std::vector<ZipFile>& files, bool zip64 = false) {
    std::string archive, directory;
    for (const ZipFile& file : files) {
        const uint64_t size = file.bytes.size(), at = archive.size(), all = 0xffffffff;
        const std::string numbers = zip64 ? little_endian(1, 2) + little_endian(24, 2) + little_endian(size, 8) +
                                                little_endian(size, 8) + little_endian(at, 8)
                                          : "";
        const std::string sizes = little_endian(zip64 ? all : size, 4) + little_endian(zip64 ? all : size, 4);
        const std::string common =
            std::string("\0\0\0\0\0\0\0\0\0\0\0\0", 12) + sizes + little_endian(file.name.size(), 2);
        directory += "PK\1\2" + little_endian(45, 2) + little_endian(45, 2) + common +
                     little_endian(numbers.size(), 2) + std::string(10, '\0') + little_endian(zip64 ? all : at, 4) +
                     file.name + numbers;
        archive += "PK\3\4" + little_endian(45, 2) + common + little_endian(3, 2) + file.name + "pad" + file.bytes;
    }
    const uint64_t at = archive.size(), n = files.size();
    archive += directory;
    if (zip64) {
        const uint64_t end64 = archive.size();
        archive += "PK\6\6" + little_endian(44, 8) + little_endian(45, 2) + little_endian(45, 2) + little_endian(0, 8) +
                   little_endian(n, 8) + little_endian(n, 8) + little_endian(directory.size(), 8) +
                   little_endian(at, 8);
        archive += "PK\6\7" + little_endian(0, 4) + little_endian(end64, 8) + little_endian(1, 4);
    }
    const uint64_t all16 = 0xffff, all32 = 0xffffffff;
    return archive + "PK\5\6" + little_endian(0, 4) + little_endian(zip64 ? all16 : n, 2) +
           little_endian(zip64 ? all16 : n, 2) + little_endian(zip64 ? all32 : directory.size(), 4) +
           little_endian(zip64 ? all32 : at, 4) + little_endian(0, 2);
}

// What torch.save makes of a value, its storages "0", "1", ...
inline std::string file(const std::string& value, const std::vector<std::string>& storages, bool zip64 = false) {
    std::vector<ZipFile> files = {{"model/data.pkl", pickle(value)}, {"model/byteorder", "little"}};
    for (size_t i = 0; i < storages.size(); i++) files.push_back({"model/data/" + std::to_string(i), storages[i]});
    return zip(files, zip64);
}

inline std::string floats(const std::vector<float>& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

}  // namespace lnfree::torch_bytes
