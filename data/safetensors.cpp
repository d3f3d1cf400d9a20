#include "data/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>

#include "data/error.h"
#include "data/float_formats.h"
#include "data/json.h"

namespace lnfree {

namespace {

constexpr uint64_t safetensors_length_bytes = 8;
constexpr uint64_t safetensors_longest_header = 100'000'000;  // the format's own limit
constexpr uint64_t safetensors_most_dimensions = 64;          // ours, and PyTorch's; the format sets none

// Bytes of a tensor of this type and shape. False if they do not fit 64 bits.
bool tensor_bytes(DType dtype, const std::vector<uint64_t>& shape, uint64_t& bytes) {
    bytes = dtype_bytes(dtype);
    for (const uint64_t extent : shape) {
        if (__builtin_mul_overflow(bytes, extent, &bytes)) return false;
    }
    return true;
}

// Takes the header's JSON as it is parsed and accepts nothing but the format: memory grows with the tensors that are
// described, whatever else a hostile header holds, and no key is read twice. BadInput names the file and the tensor.
class SafetensorsHeaderReader : public JsonEvents {
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

    bool start_object() override {
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

    bool start_array() override {
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
    // Some writers have no metadata and say so; to the format's own reader that is as if the key were not there.
    bool null() override {
        const bool no_metadata = inside_ == Inside::header && key_ == "__metadata__";
        return no_metadata || refuse_value("null");
    }

    bool parse_error(size_t position, bool) override {
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
uint64_t safetensors_header_length(const unsigned char* bytes, uint64_t size, const std::string& file) {
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
void check_safetensors_layout(const std::vector<SafetensorsHeaderReader::Entry>& entries, uint64_t data_size,
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

}  // namespace

SafetensorsContents parse_safetensors(const unsigned char* bytes, uint64_t size, const std::string& file) {
    const uint64_t length = safetensors_header_length(bytes, size, file);
    const char* const header = reinterpret_cast<const char*>(bytes) + safetensors_length_bytes;
    const unsigned char* const data = bytes + safetensors_length_bytes + length;

    SafetensorsHeaderReader reader(file);
    read_json_events({header, length}, reader);
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

TensorIndex::TensorIndex(const std::vector<TensorView>& tensors) {
    for (size_t i = 0; i < tensors.size(); ++i) positions_[tensors[i].name] = i;
}

const TensorView* TensorIndex::find(const std::vector<TensorView>& tensors, const std::string& name) const {
    const auto found = positions_.find(name);
    return found == positions_.end() ? nullptr : &tensors[found->second];
}

SafetensorsFile::SafetensorsFile(const std::string& path)
    : map_(path), contents_(parse_safetensors(map_.data(), map_.size(), path)), index_(contents_.tensors) {
    for (TensorView& tensor : contents_.tensors) tensor.mapped = true;
}

namespace {

// Length and JSON of a file that holds these tensors as `stored_as`, one behind the other, padded to a multiple of 8
// bytes as the format's own writer does. BadInput for a name that is repeated, reserved or not UTF-8.
template <class T>
std::string safetensors_header(const std::vector<TensorSource<T>>& tensors, DType stored_as,
                               const std::map<std::string, std::string>& metadata, const std::string& path) {
    std::set<std::string> names = {"__metadata__"};
    std::string text = "{";
    try {
        if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump();
        uint64_t offset = 0;
        for (const TensorSource<T>& tensor : tensors) {
            uint64_t bytes = 0;
            if (!names.insert(tensor.name).second || !tensor_bytes(stored_as, tensor.shape, bytes) ||
                tensor.shape.size() > safetensors_most_dimensions) {
                throw BadInput("cannot write " + path + ": the tensor " + quoted_name(tensor.name) +
                               " has a name that is taken or a shape that is too large");
            }
            const Json entry = {{"data_offsets", Json::array({offset, offset + bytes})},
                                {"dtype", dtype_name(stored_as)},
                                {"shape", tensor.shape}};
            if (text.size() > 1) text += ',';
            text += Json(tensor.name).dump() + ":" + entry.dump();
            offset += bytes;
        }
    } catch (const JsonError&) {
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

}  // namespace

template <class T>
void write_safetensors(const std::string& path, const std::vector<TensorSource<T>>& tensors, DType stored_as,
                       const std::map<std::string, std::string>& metadata) {
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

template void write_safetensors(const std::string&, const std::vector<TensorSource<float>>&, DType,
                                const std::map<std::string, std::string>&);
template void write_safetensors(const std::string&, const std::vector<TensorSource<double>>&, DType,
                                const std::map<std::string, std::string>&);

}  // namespace lnfree
