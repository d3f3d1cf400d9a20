// Tensors as they lie in a mapped file of weights, of whatever format: type, shape, strides and where the elements are.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/error.h"

namespace lnfree {

// The element types of safetensors, except those that pack elements into parts of a byte (F4, F6_E2M3, F6_E3M2), which
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
    const char* name;  // as in a safetensors header
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

// The type's name in a safetensors header, such as "BF16".
inline const char* dtype_name(DType dtype) {
    return dtype_info(dtype).name;
}

// Bytes per element.
inline uint64_t dtype_bytes(DType dtype) {
    return dtype_info(dtype).bytes;
}

// One tensor of a mapped file; valid as long as what it came from.
struct TensorView {
    std::string name;
    DType dtype = DType::F32;
    std::vector<uint64_t> shape;                   // outermost first; empty for a scalar
    const unsigned char* data = nullptr;           // the first element; nothing is aligned
    uint64_t bytes = 0;                            // from data to the end of the last element
    std::shared_ptr<const std::string> file = {};  // the path, for messages
    bool mapped = false;                           // data lies in a MappedFile, whose pages can be given back
    std::vector<uint64_t> strides = {};            // in elements, one per extent; empty: row-major, without gaps

    // Elements: the product of the shape, 1 for a scalar.
    uint64_t count() const {
        uint64_t elements = 1;
        for (const uint64_t extent : shape) elements *= extent;
        return elements;
    }
};

// Copies a tensor's count() elements to out, row-major, converted to T (float or double) on all cores. The pages of a mapped file
// are given back as their copies come, so that a model is never in memory twice. BadInput, naming file and tensor, if
// its type is not F64, F32, F16 or BF16, or an F64 value is beyond the range of float.
template <class T>
void copy_tensor(const TensorView& tensor, T* out);

// Whether two tensors have one shape and, converted to double, the same elements bit for bit. BadInput as copy_tensor.
bool same_values(const TensorView& a, const TensorView& b);

// A number for a message: the fewest digits that tell it from its neighbours.
template <class T>
std::string exact_text(T value);

}  // namespace lnfree
