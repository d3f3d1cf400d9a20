// Reads and writes weights in the safetensors format (github.com/huggingface/safetensors, README "Format"):
//
//     8 bytes   N, the header's length, an unsigned little-endian integer, at most 100,000,000
//     N bytes   JSON, beginning with '{' and padded with spaces:
//               {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [BEGIN, END]}, ..., "__metadata__": {...}}
//     the rest  the elements, row-major and little-endian, at the offsets given from here; no gaps, nothing behind
//
// A file is untrusted input: every field is checked against the file's size before anything relies on it, and what the
// reader allocates is bounded by the header that is really there. Nothing in the data is aligned.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "data/error.h"
#include "data/files.h"
#include "data/float_formats.h"
#include "data/json.h"

namespace lnfree {

// The element types of the format, except those that pack elements into parts of a byte (F4, F6_E2M3, F6_E3M2), which
// are refused by name.
enum class DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    BOOL,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    C64,
};

struct DTypeInfo {
    DType dtype;
    const char* name;  // as in the header
    uint64_t bytes;    // of one element
};

inline constexpr std::array<DTypeInfo, 19> dtype_table = {{
    {DType::F64, "F64", 8},
    {DType::F32, "F32", 4},
    {DType::F16, "F16", 2},
    {DType::BF16, "BF16", 2},
    {DType::I64, "I64", 8},
    {DType::I32, "I32", 4},
    {DType::I16, "I16", 2},
    {DType::I8, "I8", 1},
    {DType::U64, "U64", 8},
    {DType::U32, "U32", 4},
    {DType::U16, "U16", 2},
    {DType::U8, "U8", 1},
    {DType::BOOL, "BOOL", 1},
    {DType::F8_E5M2, "F8_E5M2", 1},
    {DType::F8_E4M3, "F8_E4M3", 1},
    {DType::F8_E8M0, "F8_E8M0", 1},
    {DType::F8_E4M3FNUZ, "F8_E4M3FNUZ", 1},
    {DType::F8_E5M2FNUZ, "F8_E5M2FNUZ", 1},
    {DType::C64, "C64", 8},
}};

inline const DTypeInfo& dtype_info(DType dtype) {
    return dtype_table[static_cast<size_t>(dtype)];
}

// The type's name in the header, such as "BF16".
inline const char* dtype_name(DType dtype) {
    return dtype_info(dtype).name;
}

// Bytes per element.
inline uint64_t dtype_bytes(DType dtype) {
    return dtype_info(dtype).bytes;
}

// One tensor of a mapped file; valid as long as the SafetensorsFile or SafetensorsFolder that it came from.
struct TensorView {
    std::string name;
    DType dtype = DType::F32;
    std::vector<uint64_t> shape;                   // outermost first; empty for a scalar
    const unsigned char* data = nullptr;           // count() elements, row-major, not aligned
    uint64_t bytes = 0;                            // of data
    std::shared_ptr<const std::string> file = {};  // the path, for messages
    bool mapped = false;                           // data lies in a MappedFile, whose pages can be given back

    // Elements: the product of the shape, 1 for a scalar.
    uint64_t count() const {
        uint64_t elements = 1;
        for (const uint64_t extent : shape) elements *= extent;
        return elements;
    }
};

constexpr uint64_t safetensors_length_bytes = 8;
constexpr uint64_t safetensors_longest_header = 100'000'000;  // the format's own limit
constexpr uint64_t safetensors_most_dimensions = 64;          // ours, and PyTorch's; the format sets none

// What a file holds: its tensors in the order of their data, and the strings of "__metadata__".
struct SafetensorsContents {
    std::vector<TensorView> tensors;
    std::map<std::string, std::string> metadata;
};

// Bytes of a tensor of this type and shape. False if they do not fit 64 bits.
inline bool tensor_bytes(DType dtype, const std::vector<uint64_t>& shape, uint64_t& bytes) {
    bytes = dtype_bytes(dtype);
    for (const uint64_t extent : shape) {
        if (__builtin_mul_overflow(bytes, extent, &bytes)) return false;
    }
    return true;
}

// Takes the header's JSON as it is parsed and accepts nothing but the format: memory grows with the tensors that are
// described, whatever else a hostile header holds, and no key is read twice. BadInput names the file and the tensor.
class SafetensorsHeaderReader : public nlohmann::json_sax<nlohmann::json> {
  public:
    struct Entry {
        std::string name;
        DType dtype;
        std::vector<uint64_t> shape;
        uint64_t begin, end;  // data_offsets
    };

    explicit SafetensorsHeaderReader(std::string file) : file_(std::move(file)) {}

    std::vector<Entry> entries;
    std::map<std::string, std::string> metadata;

    bool start_object(size_t) override {
        if (inside_ == Inside::nothing) {
            inside_ = Inside::header;
        } else if (inside_ == Inside::header && key_ == "__metadata__") {
            inside_ = Inside::metadata;
        } else if (inside_ == Inside::header) {
            inside_ = Inside::tensor;
            entries.push_back({key_, DType::F32, {}, 0, 0});
            has_dtype_ = has_shape_ = has_offsets_ = false;
        } else {
            refuse_value("an object");
        }
        return true;
    }

    bool key(std::string& name) override {
        key_ = name;
        if (inside_ == Inside::header && !names_.insert(name).second)
            refuse("the name " + quoted_name(name) + " twice");
        if (inside_ == Inside::metadata && metadata.count(name) != 0) {
            refuse("the key " + quoted_name(name) + " twice in __metadata__");
        }
        if (inside_ == Inside::tensor) {
            bool* seen = name == "dtype"          ? &has_dtype_
                         : name == "shape"        ? &has_shape_
                         : name == "data_offsets" ? &has_offsets_
                                                  : nullptr;
            if (seen == nullptr) refuse(tensor() + " with the unknown field " + quoted_name(name));
            if (std::exchange(*seen, true)) refuse(tensor() + " with the field " + name + " twice");
        }
        return true;
    }

    bool end_object() override {
        if (inside_ == Inside::tensor && !(has_dtype_ && has_shape_ && has_offsets_)) {
            refuse(tensor() + " without " + (!has_dtype_ ? "dtype" : !has_shape_ ? "shape" : "data_offsets"));
        }
        inside_ = Inside::header;
        return true;
    }

    bool string(std::string& text) override {
        if (inside_ == Inside::metadata) {
            metadata[key_] = text;
        } else if (inside_ == Inside::tensor && key_ == "dtype") {
            entries.back().dtype = dtype_named(text);
        } else {
            refuse_value("a string");
        }
        return true;
    }

    bool start_array(size_t) override {
        if (inside_ == Inside::tensor && key_ == "shape") {
            inside_ = Inside::shape;
        } else if (inside_ == Inside::tensor && key_ == "data_offsets") {
            inside_ = Inside::offsets;
            offsets_ = 0;
        } else {
            refuse_value("an array");
        }
        return true;
    }

    bool number_unsigned(uint64_t number) override {
        if (inside_ == Inside::shape) {
            if (entries.back().shape.size() == safetensors_most_dimensions) {
                refuse(tensor() + " with more than " + std::to_string(safetensors_most_dimensions) + " dimensions");
            }
            entries.back().shape.push_back(number);
        } else if (inside_ == Inside::offsets && offsets_ < 2) {
            (offsets_++ == 0 ? entries.back().begin : entries.back().end) = number;
        } else {
            refuse_value("the number " + std::to_string(number));
        }
        return true;
    }

    bool end_array() override {
        if (inside_ == Inside::offsets && offsets_ != 2) refuse(tensor() + " without two data_offsets");
        inside_ = Inside::tensor;
        return true;
    }

    bool number_integer(int64_t number) override { return refuse_value("the number " + std::to_string(number)); }
    bool number_float(double, const std::string& text) override {
        return refuse_value("the number " + quoted_name(text));
    }
    bool boolean(bool) override { return refuse_value("a boolean"); }
    bool null() override { return refuse_value("null"); }
    bool binary(nlohmann::json::binary_t&) override { return refuse_value("binary data"); }

    bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
        throw BadInput(file_ + " is not a safetensors file: its header is not JSON at byte " +
                       std::to_string(safetensors_length_bytes + position));
    }

  private:
    enum class Inside { nothing, header, metadata, tensor, shape, offsets };

    [[noreturn]] void refuse(const std::string& what) const {
        throw BadInput(file_ + " is not a valid safetensors file: its header holds " + what);
    }

    // A value of the wrong kind; says where. Never returns; bool for the callbacks that can do nothing else.
    bool refuse_value(const std::string& what) const {
        switch (inside_) {
            case Inside::nothing:
                refuse(what + " instead of an object");
            case Inside::header:
                refuse(what + " instead of an object at " + quoted_name(key_));
            case Inside::metadata:
                refuse(what + " instead of a string at " + quoted_name(key_) + " in __metadata__");
            case Inside::tensor:
                refuse(tensor() + " with " + what + " as its " + key_);
            case Inside::shape:
                refuse(tensor() + " with " + what + " in its shape");
            case Inside::offsets:
                refuse(tensor() + " with " + what + " in its data_offsets");
        }
        return false;
    }

    std::string tensor() const { return "the tensor " + quoted_name(entries.back().name); }

    DType dtype_named(const std::string& name) const {
        for (const DTypeInfo& info : dtype_table) {
            if (name == info.name) return info.dtype;
        }
        refuse(tensor() + " with the dtype " + quoted_name(name) +
               ", which this program does not know; store the weights as F32, F16 or BF16");
    }

    std::string file_;
    std::set<std::string> names_;
    Inside inside_ = Inside::nothing;
    std::string key_;
    bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
    int offsets_ = 0;
};

// Length of the JSON header of a file of `size` bytes. BadInput, in terms of `file`, unless it can be there.
inline uint64_t safetensors_header_length(const unsigned char* bytes, uint64_t size, const std::string& file) {
    constexpr char lfs_pointer[] = "version https://git-lfs";  // what a clone without Git LFS holds in its place
    if (size >= sizeof(lfs_pointer) && std::memcmp(bytes, lfs_pointer, sizeof(lfs_pointer) - 1) == 0) {
        throw BadInput(file + " is only a Git LFS pointer to the weights; fetch them with `git lfs pull`");
    }
    if (size < safetensors_length_bytes) {
        throw BadInput(file + " is not a safetensors file: it has only " + std::to_string(size) + " bytes");
    }
    uint64_t length;
    std::memcpy(&length, bytes, sizeof(length));
    if (length == 0 || length > safetensors_longest_header) {
        throw BadInput(file + " is not a safetensors file: its header would have " + std::to_string(length) +
                       " bytes (1 to 100000000 are possible)");
    }
    if (length > size - safetensors_length_bytes) {
        throw BadInput(file + " is truncated: its header has " + std::to_string(length) + " bytes, the whole file " +
                       std::to_string(size) + "; fetch it again");
    }
    if (bytes[safetensors_length_bytes] != '{') {
        throw BadInput(file + " is not a safetensors file: its header does not begin with '{'");
    }
    if (std::memchr(bytes + safetensors_length_bytes, '\0', length) != nullptr) {  // nlohmann-json would stop there
        throw BadInput(file + " is not a safetensors file: its header holds a zero byte");
    }
    return length;
}

// Checks that the entries, sorted by offset, cover data_size bytes exactly, each with as many as its shape needs.
inline void check_safetensors_layout(const std::vector<SafetensorsHeaderReader::Entry>& entries, uint64_t data_size,
                                     const std::string& file) {
    const auto number = [](uint64_t value) { return std::to_string(value); };
    uint64_t covered = 0;
    const std::string* previous = nullptr;
    for (const auto& entry : entries) {
        const std::string tensor = file + ": the tensor " + quoted_name(entry.name);
        const std::string offsets = "[" + number(entry.begin) + ", " + number(entry.end) + "]";
        uint64_t needed = 0;
        if (!tensor_bytes(entry.dtype, entry.shape, needed)) {
            throw BadInput(tensor + " has a shape of more than 2^64 bytes; the header is damaged");
        }
        if (entry.begin > entry.end) throw BadInput(tensor + " ends before it begins: data_offsets " + offsets);
        if (entry.end - entry.begin != needed) {
            throw BadInput(tensor + " needs " + number(needed) + " bytes for its shape and dtype " +
                           dtype_name(entry.dtype) + ", its data_offsets " + offsets + " give it " +
                           number(entry.end - entry.begin));
        }
        if (entry.end > data_size) {
            throw BadInput(tensor + " lies at data_offsets " + offsets + ", but the file holds only " +
                           number(data_size) + " bytes of data; it is truncated, fetch it again");
        }
        if (entry.begin < covered) throw BadInput(tensor + " overlaps the tensor " + quoted_name(*previous));
        if (entry.begin > covered) {
            throw BadInput(tensor + " begins at " + number(entry.begin) + ", which leaves a gap of " +
                           number(entry.begin - covered) + " bytes before it");
        }
        covered = entry.end;
        previous = &entry.name;
    }
    if (covered != data_size) {
        throw BadInput(file + " has " + number(data_size - covered) + " bytes behind its last tensor; fetch it again");
    }
}

// The contents of the `size` bytes of a whole file; the views point into `bytes`. `file` names it in messages.
// BadInput, naming the tensor where there is one, for anything that the format does not allow.
inline SafetensorsContents parse_safetensors(const unsigned char* bytes, uint64_t size, const std::string& file) {
    const uint64_t length = safetensors_header_length(bytes, size, file);
    const unsigned char* const json = bytes + safetensors_length_bytes;
    const unsigned char* const data = json + length;

    SafetensorsHeaderReader reader(file);
    nlohmann::json::sax_parse(json, data, &reader);
    auto& entries = reader.entries;
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
    check_safetensors_layout(entries, size - safetensors_length_bytes - length, file);

    SafetensorsContents contents;
    contents.metadata = std::move(reader.metadata);
    contents.tensors.reserve(entries.size());
    const auto path = std::make_shared<const std::string>(file);
    for (auto& entry : entries) {
        contents.tensors.push_back({std::move(entry.name), entry.dtype, std::move(entry.shape), data + entry.begin,
                                    entry.end - entry.begin, path});
    }
    return contents;
}

// Tensors by name.
class TensorIndex {
  public:
    explicit TensorIndex(const std::vector<TensorView>& tensors) {
        for (size_t i = 0; i < tensors.size(); ++i) positions_[tensors[i].name] = i;
    }
    const TensorView* find(const std::vector<TensorView>& tensors, const std::string& name) const {
        const auto found = positions_.find(name);
        return found == positions_.end() ? nullptr : &tensors[found->second];
    }

  private:
    std::map<std::string, size_t> positions_;
};

// A memory-mapped .safetensors file; move-only, and views stay valid across moves. BadInput if it is not a valid one.
class SafetensorsFile {
  public:
    explicit SafetensorsFile(const std::string& path)
        : map_(path), contents_(parse_safetensors(map_.data(), map_.size(), path)), index_(contents_.tensors) {
        for (TensorView& tensor : contents_.tensors) tensor.mapped = true;
    }

    const std::vector<TensorView>& tensors() const { return contents_.tensors; }  // in the order of their data
    const std::map<std::string, std::string>& metadata() const { return contents_.metadata; }
    const std::string& path() const { return map_.path(); }

    // The tensor of this name, null if the file has none.
    const TensorView* find(const std::string& name) const { return index_.find(contents_.tensors, name); }

  private:
    MappedFile map_;
    SafetensorsContents contents_;
    TensorIndex index_;
};

// The "weight_map" of a model.safetensors.index.json: which file holds which tensor. `source` names the index in
// messages. BadInput if it is not one, or if a file name is not a plain one: an index must not reach out of its folder.
inline std::map<std::string, std::string> parse_weight_map(const std::string& text, const std::string& source) {
    const nlohmann::json index = parse_json(text, source);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
        throw BadInput(source + " is not an index of safetensors files: it has no object \"weight_map\"");
    }
    std::map<std::string, std::string> files;
    for (const auto& [tensor, file] : index["weight_map"].items()) {
        if (!file.is_string())
            throw BadInput(source + ": the tensor " + quoted_name(tensor) + " is not given a file name");
        const std::string name = file.get<std::string>();
        const bool plain = name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
        if (!plain || name.empty() || name == "." || name == "..") {
            throw BadInput(source + ": the tensor " + quoted_name(tensor) + " is said to lie in " + quoted_name(name) +
                           ", which is not the plain name of a file in the same folder");
        }
        files[tensor] = name;
    }
    if (files.empty()) throw BadInput(source + " names no tensor in its \"weight_map\"");
    return files;
}

// The weights of a Hugging Face model folder: model.safetensors or, where that is missing, the files named by
// model.safetensors.index.json. Move-only. BadInput if neither is there, a file is not valid, or index and files do not
// hold exactly the same tensors.
class SafetensorsFolder {
  public:
    explicit SafetensorsFolder(const std::string& folder) : files_(open_files(folder)), index_({}) {
        for (const SafetensorsFile& file : files_) {
            tensors_.insert(tensors_.end(), file.tensors().begin(), file.tensors().end());
        }
        index_ = TensorIndex(tensors_);
    }

    SafetensorsFolder(SafetensorsFolder&&) = default;
    SafetensorsFolder& operator=(SafetensorsFolder&&) = default;

    const std::vector<TensorView>& tensors() const { return tensors_; }
    const std::vector<SafetensorsFile>& files() const { return files_; }

    // The tensor of this name, null if no file has it.
    const TensorView* find(const std::string& name) const { return index_.find(tensors_, name); }

  private:
    static std::vector<SafetensorsFile> open_files(const std::string& folder) {
        namespace fs = std::filesystem;
        const std::string single = (fs::path(folder) / "model.safetensors").string();
        const std::string index = (fs::path(folder) / "model.safetensors.index.json").string();
        std::error_code ignored;
        if (!fs::is_directory(folder, ignored)) throw BadInput(folder + " is not a model folder: no such folder");
        std::vector<SafetensorsFile> files;
        if (fs::exists(single, ignored)) {
            files.emplace_back(single);
        } else if (fs::exists(index, ignored)) {
            files = open_indexed(folder, index);
        } else {
            throw BadInput(folder + " holds no weights: neither model.safetensors nor model.safetensors.index.json" +
                           (fs::exists(fs::path(folder) / "pytorch_model.bin", ignored)
                                ? "; convert its pytorch_model.bin with save_pretrained(safe_serialization=True)"
                                : "; fetch one of them"));
        }
        return files;
    }

    static std::vector<SafetensorsFile> open_indexed(const std::string& folder, const std::string& index) {
        constexpr uint64_t longest_index = 64 << 20;
        const auto file_of_tensor = parse_weight_map(read_file(index, longest_index), index);
        std::map<std::string, std::vector<std::string>> tensors_of_file;
        for (const auto& [tensor, file] : file_of_tensor) tensors_of_file[file].push_back(tensor);

        std::vector<SafetensorsFile> files;
        for (const auto& [name, expected] : tensors_of_file) {
            files.emplace_back((std::filesystem::path(folder) / name).string());
            const SafetensorsFile& file = files.back();
            for (const std::string& tensor : expected) {
                if (file.find(tensor) == nullptr) {
                    throw BadInput(file.path() + " lacks the tensor " + quoted_name(tensor) + " that " + index +
                                   " says it holds; fetch both again");
                }
            }
            for (const TensorView& tensor : file.tensors()) {
                const auto listed = file_of_tensor.find(tensor.name);
                if (listed == file_of_tensor.end() || listed->second != name) {
                    throw BadInput(file.path() + " holds the tensor " + quoted_name(tensor.name) + " that " + index +
                                   " does not place there; fetch both again");
                }
            }
        }
        return files;
    }

    std::vector<SafetensorsFile> files_;
    std::vector<TensorView> tensors_;
    TensorIndex index_;
};

// A number for a message: the fewest digits that tell it from its neighbours.
template <class T>
std::string exact_text(T value) {
    char text[40];
    return std::string(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

// Converts n elements of a stored type; returns what convert_elements returns. BadInput for a type that weights do not have.
template <class T>
uint64_t convert_from_stored(const unsigned char* from, DType stored_as, T* out, uint64_t n, const std::string& where) {
    unsigned char* const to = reinterpret_cast<unsigned char*>(out);
    switch (stored_as) {
        case DType::F64:
            return convert_elements<T, double>(from, to, n);
        case DType::F32:
            return convert_elements<T, float>(from, to, n);
        case DType::F16:
            return convert_elements<T, Half>(from, to, n);
        case DType::BF16:
            return convert_elements<T, BFloat>(from, to, n);
        default:
            throw BadInput(where + " is of type " + dtype_name(stored_as) +
                           "; weights are read from F32, F16, BF16 or F64");
    }
}

// Copies a tensor's count() elements to out, converted to T (float or double) on all cores. The pages of a mapped file
// are given back as their copies come, so that a model is never in memory twice. BadInput, naming file and tensor, if
// its type is not F64, F32, F16 or BF16, or an F64 value is beyond the range of float.
template <class T>
void copy_tensor(const TensorView& tensor, T* out) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "weights are float or double");
    constexpr uint64_t chunk = 1 << 22;  // elements
    const std::string where = (tensor.file ? *tensor.file + ": " : "") + "the tensor " + quoted_name(tensor.name);
    const uint64_t count = tensor.count(), element = dtype_bytes(tensor.dtype);
    for (uint64_t begin = 0; begin < count; begin += chunk) {
        const uint64_t n = std::min(chunk, count - begin);
        const unsigned char* const from = tensor.data + begin * element;
        const uint64_t beyond = convert_from_stored(from, tensor.dtype, out + begin, n, where);
        if (beyond < n) {
            double value;
            std::memcpy(&value, from + beyond * sizeof(value), sizeof(value));
            throw BadInput(where + " holds " + exact_text(value) + " at element " + std::to_string(begin + beyond) +
                           ", which is beyond the range of float");
        }
        if (tensor.mapped) MappedFile::give_back(from, n * element);
    }
}

// A tensor to be written. `fill` is called once, while the file is written, and writes the whole tensor (the product of
// the shape, row-major) to out; so one tensor at a time is in memory.
template <class T>
struct TensorSource {
    std::string name;
    std::vector<uint64_t> shape;  // outermost first
    std::function<void(T* out)> fill;
};

// Length and JSON of a file that holds these tensors as `stored_as`, one behind the other, padded to a multiple of 8
// bytes as the format's own writer does. BadInput for a name that is repeated, reserved or not UTF-8.
template <class T>
std::string safetensors_header(const std::vector<TensorSource<T>>& tensors, DType stored_as,
                               const std::map<std::string, std::string>& metadata, const std::string& path) {
    using nlohmann::json;
    std::set<std::string> names = {"__metadata__"};
    std::string text = "{";
    try {
        if (!metadata.empty()) text += "\"__metadata__\":" + json(metadata).dump();
        uint64_t offset = 0;
        for (const TensorSource<T>& tensor : tensors) {
            uint64_t bytes = 0;
            if (!names.insert(tensor.name).second || !tensor_bytes(stored_as, tensor.shape, bytes) ||
                tensor.shape.size() > safetensors_most_dimensions) {
                throw BadInput("cannot write " + path + ": the tensor " + quoted_name(tensor.name) +
                               " has a name that is taken or a shape that is too large");
            }
            const json entry = {
                {"dtype", dtype_name(stored_as)}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
            if (text.size() > 1) text += ',';
            text += json(tensor.name).dump() + ":" + entry.dump();
            offset += bytes;
        }
    } catch (const json::exception&) {
        throw BadInput("cannot write " + path + ": a tensor's name or the metadata is not UTF-8");
    }
    text += '}';
    text.resize((text.size() + 7) / 8 * 8, ' ');
    if (text.size() > safetensors_longest_header) {
        throw BadInput("cannot write " + path + ": its header would exceed the format's 100000000 bytes");
    }
    const uint64_t length = text.size();
    return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text;
}

// Converts n elements to the stored type; returns what convert_elements returns. BadInput for another type.
template <class T>
uint64_t convert_to_stored(const T* from, unsigned char* to, uint64_t n, DType stored_as) {
    const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(from);
    switch (stored_as) {
        case DType::F64:
            return convert_elements<double, T>(bytes, to, n);
        case DType::F32:
            return convert_elements<float, T>(bytes, to, n);
        case DType::F16:
            return convert_elements<Half, T>(bytes, to, n);
        case DType::BF16:
            return convert_elements<BFloat, T>(bytes, to, n);
        default:
            throw BadInput(std::string("weights are not written as ") + dtype_name(stored_as));
    }
}

// Writes a safetensors file of these tensors, in the order given (F32, F16, BF16 or F64, rounded to nearest even),
// under a temporary name that becomes `path` when all of it is on the disk. Hugging Face's transformers wants
// {"format": "pt"} as metadata. BadInput for a finite value beyond the range of `stored_as`; RunFailure when the disk
// is full or fails; after either, or an exception of a `fill`, nothing is left behind and an older file is untouched.
template <class T>
void write_safetensors(const std::string& path, const std::vector<TensorSource<T>>& tensors, DType stored_as,
                       const std::map<std::string, std::string>& metadata = {}) {
    constexpr uint64_t chunk = 1 << 20;  // elements converted and written at once
    const std::string header = safetensors_header(tensors, stored_as, metadata, path);
    NewFile file(path);
    file.write(header.data(), header.size());
    std::vector<unsigned char> stored(chunk * dtype_bytes(stored_as));
    for (const TensorSource<T>& tensor : tensors) {
        const TensorView view{tensor.name, stored_as, tensor.shape};
        std::vector<T> values(view.count());
        tensor.fill(values.data());
        for (uint64_t begin = 0; begin < values.size(); begin += chunk) {
            const uint64_t n = std::min<uint64_t>(chunk, values.size() - begin);
            const uint64_t beyond = convert_to_stored(values.data() + begin, stored.data(), n, stored_as);
            if (beyond < n) {
                throw BadInput("cannot write " + path + ": the tensor " + quoted_name(tensor.name) + " holds " +
                               exact_text(values[begin + beyond]) + ", which is beyond the range of " +
                               dtype_name(stored_as) + "; store it as " +
                               (stored_as == DType::F16    ? "bf16 or f32"
                                : stored_as == DType::BF16 ? "f32"
                                                           : "f64"));
            }
            file.write(stored.data(), n * dtype_bytes(stored_as));
        }
    }
    file.publish();
}

}  // namespace lnfree
