#include "data/array_file.h"

#include <zlib.h>

#include <cstring>
#include <limits>
#include <set>
#include <type_traits>

#include "data/error.h"
#include "data/json.h"
#include "data/text.h"

namespace lnfree {

uint64_t ArrayInfo::bytes() const {
    uint64_t total = dtype_bytes(dtype);
    for (const uint64_t extent : shape) {
        if (extent != 0 && total > (uint64_t{1} << 63) / extent)
            throw BadInput("the array " + quoted_name(name) + " is too large to be written");
        total *= extent;
    }
    return total;
}

// ---------------------------------------------------------------------------------------------------------------------
// Safetensors

namespace {

// Length and JSON, padded so that the numbers begin at a multiple of 8 bytes.
std::string header_of(const std::string& path, const std::vector<ArrayInfo>& arrays,
                      const std::map<std::string, std::string>& metadata) {
    constexpr uint64_t longest_header = 100000000;
    std::set<std::string> names = {"__metadata__"};
    Json header = Json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    uint64_t offset = 0;
    for (const ArrayInfo& array : arrays) {
        if (!names.insert(array.name).second)
            throw BadInput("cannot write " + path + ": two arrays would be called " + quoted_name(array.name));
        const uint64_t end = offset + array.bytes();
        header.append(
            array.name,
            {{"dtype", dtype_name(array.dtype)}, {"shape", array.shape}, {"data_offsets", Json::array({offset, end})}});
        offset = end;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    if (text.size() > longest_header)
        throw BadInput("cannot write " + path + ": its header would exceed the format's 100000000 bytes");
    const uint64_t length = text.size();
    return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text;
}

}  // namespace

ArrayStream::ArrayStream(const std::string& path, const std::vector<ArrayInfo>& arrays,
                         const std::map<std::string, std::string>& metadata)
    : file_(path) {
    const std::string header = header_of(path, arrays, metadata);
    file_.write(header.data(), header.size());
    uint64_t offset = header.size();
    for (const ArrayInfo& array : arrays) {
        begin_.push_back(offset);
        offset += array.bytes();
    }
    next_ = begin_;
    begin_.push_back(offset);
}

void ArrayStream::append(size_t array, const void* values, uint64_t bytes) {
    if (bytes > begin_[array + 1] - next_[array])
        throw RunFailure("internal error: more numbers than " + file_.path() + " has room for");
    file_.overwrite(next_[array], values, bytes);
    next_[array] += bytes;
}

void ArrayStream::publish() {
    for (size_t i = 0; i < next_.size(); i++)
        if (next_[i] != begin_[i + 1]) throw RunFailure("internal error: " + file_.path() + " is not complete");
    file_.publish();
}

// ---------------------------------------------------------------------------------------------------------------------
// NumPy: a zip archive, its members stored as they are, each an array in the .npy format

namespace {

void put(std::string& out, uint64_t number, int bytes) {
    for (int i = 0; i < bytes; i++) out += static_cast<char>(number >> (8 * i) & 0xff);
}

const char* numpy_type(DType dtype, const std::string& path) {
    switch (dtype) {
        case DType::F64:
            return "<f8";
        case DType::F32:
            return "<f4";
        case DType::F16:
            return "<f2";
        case DType::I64:
            return "<i8";
        case DType::I32:
            return "<i4";
        default:
            throw BadInput("cannot write " + path + ": NumPy has no " + dtype_name(dtype) + "; write .safetensors");
    }
}

// Version 1.0: magic, the length of what follows, a Python dictionary, padded so that the numbers begin at a multiple of 64.
std::string npy_header(const ArrayInfo& array, const std::string& path) {
    std::string shape;
    for (const uint64_t extent : array.shape) shape += std::to_string(extent) + ",";
    std::string text = std::string("{'descr': '") + numpy_type(array.dtype, path) +
                       "', 'fortran_order': False, 'shape': (" + shape + "), }";
    constexpr size_t before = 10;
    text.resize((before + text.size() + 1 + 63) / 64 * 64 - before - 1, ' ');
    text += '\n';
    std::string header("\x93NUMPY\x01\x00", 8);
    put(header, text.size(), 2);
    return header + text;
}

// What the archive says of a member, in front of it and again in the directory at the end.
std::string zip_fields(uint32_t checksum, uint64_t size, const std::string& name) {
    std::string fields;
    put(fields, 20, 2);  // version 2.0 reads it
    put(fields, 0, 2);   // no flags
    put(fields, 0, 2);   // stored, not compressed
    put(fields, 0, 2);   // midnight,
    put(fields, 33, 2);  // 1 January 1980: the same arrays give the same file
    put(fields, checksum, 4);
    put(fields, size, 4);  // compressed and not
    put(fields, size, 4);
    put(fields, name.size(), 2);
    put(fields, 0, 2);  // nothing extra
    return fields;
}

uint32_t checksum_of(const std::string& header, const std::string& bytes) {
    uLong sum = ::crc32(0, reinterpret_cast<const Bytef*>(header.data()), static_cast<uInt>(header.size()));
    sum = ::crc32_z(sum, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
    return static_cast<uint32_t>(sum);
}

void write_npz(const std::string& path, const std::vector<Array>& arrays) {
    NewFile file(path);
    std::string directory;
    for (const Array& array : arrays) {
        const std::string header = npy_header(array.info, path), name = array.info.name + ".npy";
        const uint64_t size = header.size() + array.bytes.size(), offset = file.size();
        if (offset + size > std::numeric_limits<uint32_t>::max() - (1 << 20))
            throw BadInput("cannot write " + path + ": a .npz holds 4 GiB at most; write .safetensors");
        const std::string fields = zip_fields(checksum_of(header, array.bytes), size, name);
        const std::string local = "PK\x03\x04" + fields + name + header;
        file.write(local.data(), local.size());
        file.write(array.bytes.data(), array.bytes.size());
        directory += "PK\x01\x02";
        put(directory, 20, 2);  // made by version 2.0
        directory += fields;
        directory.append(10, '\0');  // no comment, first disk, no attributes
        put(directory, offset, 4);
        directory += name;
    }
    std::string end = "PK\x05\x06";
    put(end, 0, 4);  // one disk
    put(end, arrays.size(), 2);
    put(end, arrays.size(), 2);
    put(end, directory.size(), 4);
    put(end, file.size(), 4);
    put(end, 0, 2);  // no comment
    file.write(directory.data(), directory.size());
    file.write(end.data(), end.size());
    file.publish();
}

template <class T>
Array array_from(const std::string& name, const std::vector<uint64_t>& shape, const std::vector<T>& values,
                 DType dtype) {
    Array array{{name, dtype, shape}, {}};
    if (array.info.bytes() != values.size() * sizeof(T))
        throw RunFailure("internal error: the array " + name + " has not the numbers of its shape");
    array.bytes.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    return array;
}

}  // namespace

Array array_of(const std::string& name, const std::vector<uint64_t>& shape, const std::vector<double>& values) {
    return array_from(name, shape, values, DType::F64);
}

Array array_of(const std::string& name, const std::vector<uint64_t>& shape, const std::vector<int32_t>& values) {
    return array_from(name, shape, values, DType::I32);
}

bool is_array_file(const std::string& path) {
    return ends_with(path, ".safetensors") || ends_with(path, ".npz");
}

void write_arrays(const std::string& path, const std::vector<Array>& arrays,
                  const std::map<std::string, std::string>& metadata) {
    if (!is_array_file(path))
        throw BadInput("cannot write " + path + ": give a name that ends in .safetensors or .npz");
    if (ends_with(path, ".npz")) return write_npz(path, arrays);
    std::vector<ArrayInfo> infos;
    for (const Array& array : arrays) infos.push_back(array.info);
    ArrayStream stream(path, infos, metadata);
    for (size_t i = 0; i < arrays.size(); i++) stream.append(i, arrays[i].bytes.data(), arrays[i].bytes.size());
    stream.publish();
}

}  // namespace lnfree
