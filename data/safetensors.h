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

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/files.h"

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

// A row of dtype_table.
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

// What a file holds: its tensors in the order of their data, and the strings of "__metadata__".
struct SafetensorsContents {
    std::vector<TensorView> tensors;
    std::map<std::string, std::string> metadata;
};

// The contents of the `size` bytes of a whole file; the views point into `bytes`. `file` names it in messages.
// BadInput, naming the tensor where there is one, for anything that the format does not allow.
SafetensorsContents parse_safetensors(const unsigned char* bytes, uint64_t size, const std::string& file);

// Tensors by name.
class TensorIndex {
  public:
    explicit TensorIndex(const std::vector<TensorView>& tensors);
    const TensorView* find(const std::vector<TensorView>& tensors, const std::string& name) const;

  private:
    std::map<std::string, size_t> positions_;
};

// A memory-mapped .safetensors file; move-only, and views stay valid across moves. BadInput if it is not a valid one.
class SafetensorsFile {
  public:
    explicit SafetensorsFile(const std::string& path);

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
std::map<std::string, std::string> parse_weight_map(const std::string& text, const std::string& source);

// The weights of a Hugging Face model folder: model.safetensors or, where that is missing, the files named by
// model.safetensors.index.json. Move-only. BadInput if neither is there, a file is not valid, or index and files do not
// hold exactly the same tensors.
class SafetensorsFolder {
  public:
    explicit SafetensorsFolder(const std::string& folder);

    SafetensorsFolder(SafetensorsFolder&&) = default;
    SafetensorsFolder& operator=(SafetensorsFolder&&) = default;

    const std::vector<TensorView>& tensors() const { return tensors_; }
    const std::vector<SafetensorsFile>& files() const { return files_; }

    // The tensor of this name, null if no file has it.
    const TensorView* find(const std::string& name) const { return index_.find(tensors_, name); }

  private:
    std::vector<SafetensorsFile> files_;
    std::vector<TensorView> tensors_;
    TensorIndex index_;
};

// Copies a tensor's count() elements to out, converted to T (float or double) on all cores. The pages of a mapped file
// are given back as their copies come, so that a model is never in memory twice. BadInput, naming file and tensor, if
// its type is not F64, F32, F16 or BF16, or an F64 value is beyond the range of float.
template <class T>
void copy_tensor(const TensorView& tensor, T* out);

// A tensor to be written. `fill` is called once, while the file is written, and writes the whole tensor (the product of
// the shape, row-major) to out; so one tensor at a time is in memory.
template <class T>
struct TensorSource {
    std::string name;
    std::vector<uint64_t> shape;  // outermost first
    std::function<void(T* out)> fill;
};

// Writes a safetensors file of these tensors, in the order given (F32, F16, BF16 or F64, rounded to nearest even),
// under a temporary name that becomes `path` when all of it is on the disk. Hugging Face's transformers wants
// {"format": "pt"} as metadata. BadInput for a finite value beyond the range of `stored_as`; RunFailure when the disk
// is full or fails; after either, or an exception of a `fill`, nothing is left behind and an older file is untouched.
template <class T>
void write_safetensors(const std::string& path, const std::vector<TensorSource<T>>& tensors, DType stored_as,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace lnfree
