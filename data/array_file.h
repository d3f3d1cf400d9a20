// Arrays for other programs: numbers under names, as .safetensors or as NumPy's .npz, of several types in one file. What
// data/safetensors.h writes is a model, tensor by tensor and all in one type; here arrays can also grow side by side.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/files.h"
#include "data/safetensors.h"

namespace lnfree {

// What a file says of one array. Row-major, little-endian.
struct ArrayInfo {
    std::string name;
    DType dtype = DType::F32;
    std::vector<uint64_t> shape;  // outermost first; empty for a single number

    // BadInput if that is beyond 2^63.
    uint64_t bytes() const;
};

// A safetensors file whose arrays' sizes are known and whose numbers come in pieces: what is larger than memory is
// written as it is made. The file appears under its name in publish(); destroyed before that, it leaves nothing behind.
// RunFailure when the disk is full or fails.
class ArrayStream {
  public:
    // BadInput for a repeated name, or a header larger than the format allows.
    ArrayStream(const std::string& path, const std::vector<ArrayInfo>& arrays,
                const std::map<std::string, std::string>& metadata = {});

    // The next `bytes` bytes of an array, by its index; each is written from its beginning to its end.
    void append(size_t array, const void* values, uint64_t bytes);

    // RunFailure unless every array is complete.
    void publish();

    uint64_t bytes() const { return begin_.back(); }  // of the whole file

  private:
    NewFile file_;
    std::vector<uint64_t> begin_;  // of each array in the file, and the file's end
    std::vector<uint64_t> next_;   // where each goes on
};

// An array in memory.
struct Array {
    ArrayInfo info;
    std::string bytes;  // info.bytes() of them
};

Array array_of(const std::string& name, const std::vector<uint64_t>& shape, const std::vector<double>& values);
Array array_of(const std::string& name, const std::vector<uint64_t>& shape, const std::vector<int32_t>& values);

// Whether write_arrays knows what to write under such a name: .safetensors or .npz.
bool is_array_file(const std::string& path);

// Writes them all under a temporary name that becomes `path`. Metadata has no place in .npz and is left out there.
// BadInput for another ending, a type that NumPy lacks (.npz), or a .npz of 4 GiB or more; RunFailure as ArrayStream.
void write_arrays(const std::string& path, const std::vector<Array>& arrays,
                  const std::map<std::string, std::string>& metadata = {});

}  // namespace lnfree
