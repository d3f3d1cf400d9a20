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

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "data/files.h"
#include "data/tensor_view.h"

namespace lnfree {

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
