#include "data/tensor_view.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <type_traits>

#include "data/files.h"
#include "data/float_formats.h"
#include "data/parallel.h"

namespace lnfree {

template <class T>
std::string exact_text(T value) {
    char text[40];
    return std::string(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

namespace {

std::string words_for(const TensorView& tensor) {
    return (tensor.file ? *tensor.file + ": " : "") + "the tensor " + quoted_name(tensor.name);
}

// Copies n elements of a strided tensor to `to`, one behind the other, from element `begin` in row-major order on.
void gather_some(const TensorView& tensor, uint64_t begin, uint64_t n, unsigned char* to) {
    const uint64_t element = dtype_bytes(tensor.dtype);
    const size_t dimensions = tensor.shape.size();
    std::vector<uint64_t> at(dimensions);
    uint64_t place = 0;  // in elements, from data
    for (size_t d = dimensions; d-- > 0;) {
        at[d] = begin % tensor.shape[d];
        begin /= tensor.shape[d];
        place += at[d] * tensor.strides[d];
    }
    for (uint64_t i = 0; i < n; ++i) {
        std::memcpy(to + i * element, tensor.data + place * element, element);
        for (size_t d = dimensions; d-- > 0;) {  // the next one, as an odometer turns
            place += tensor.strides[d];
            if (++at[d] < tensor.shape[d]) break;
            place -= tensor.shape[d] * tensor.strides[d];
            at[d] = 0;
        }
    }
}

// The same on all cores.
void gather(const TensorView& tensor, uint64_t begin, uint64_t n, unsigned char* to) {
    constexpr uint64_t block = 1 << 16;
    parallel_for((n + block - 1) / block, [&](uint64_t b) {
        const uint64_t first = b * block;
        gather_some(tensor, begin + first, std::min(block, n - first), to + first * dtype_bytes(tensor.dtype));
    });
}

// Converts n elements of a stored type; returns what convert_elements returns. BadInput for a type that weights do not have.
template <class T>
uint64_t convert_from_stored(const unsigned char* from, const TensorView& tensor, T* out, uint64_t n) {
    unsigned char* const to = reinterpret_cast<unsigned char*>(out);
    switch (tensor.dtype) {
        case DType::F64:
            return convert_elements<T, double>(from, to, n);
        case DType::F32:
            return convert_elements<T, float>(from, to, n);
        case DType::F16:
            return convert_elements<T, Half>(from, to, n);
        case DType::BF16:
            return convert_elements<T, BFloat>(from, to, n);
        default:
            throw BadInput(words_for(tensor) + " is of type " + dtype_name(tensor.dtype) +
                           "; weights are read from F32, F16, BF16 or F64");
    }
}

// Elements of a tensor in row-major order, a part at a time.
class ElementReader {
  public:
    explicit ElementReader(const TensorView& tensor) : tensor_(tensor) {}

    // Converts n elements from element `begin` on.
    template <class T>
    void read(uint64_t begin, uint64_t n, T* out) {
        const uint64_t element = dtype_bytes(tensor_.dtype);
        const unsigned char* from = tensor_.data + (tensor_.strides.empty() ? begin * element : 0);
        if (!tensor_.strides.empty()) {
            gathered_.resize(n * element);
            gather(tensor_, begin, n, gathered_.data());
            from = gathered_.data();
        }
        const uint64_t beyond = convert_from_stored(from, tensor_, out, n);
        if (beyond < n) {
            double value;
            std::memcpy(&value, from + beyond * sizeof(value), sizeof(value));
            throw BadInput(words_for(tensor_) + " holds " + exact_text(value) + " at element " +
                           std::to_string(begin + beyond) + ", which is beyond the range of float");
        }
        if (tensor_.mapped && tensor_.strides.empty()) MappedFile::give_back(from, n * element);
    }

    // When all of it has been read. A strided tensor's pages are needed to the end.
    void done() const {
        if (tensor_.mapped && !tensor_.strides.empty()) MappedFile::give_back(tensor_.data, tensor_.bytes);
    }

  private:
    const TensorView& tensor_;
    std::vector<unsigned char> gathered_;
};

}  // namespace

template <class T>
void copy_tensor(const TensorView& tensor, T* out) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "weights are float or double");
    constexpr uint64_t chunk = 1 << 22;  // elements
    const uint64_t count = tensor.count();
    ElementReader elements(tensor);
    for (uint64_t begin = 0; begin < count; begin += chunk)
        elements.read(begin, std::min(chunk, count - begin), out + begin);
    elements.done();
}

bool same_values(const TensorView& a, const TensorView& b) {
    if (a.shape != b.shape) return false;
    if (a.data == b.data && a.dtype == b.dtype && a.strides == b.strides) return true;
    constexpr uint64_t chunk = 1 << 20;  // elements
    const uint64_t count = a.count();
    ElementReader of_a(a), of_b(b);
    std::vector<double> x(std::min(chunk, count)), y(x.size());
    for (uint64_t begin = 0; begin < count; begin += chunk) {
        const uint64_t n = std::min(chunk, count - begin);
        of_a.read(begin, n, x.data());
        of_b.read(begin, n, y.data());
        if (std::memcmp(x.data(), y.data(), n * sizeof(double)) != 0) return false;
    }
    of_a.done();
    of_b.done();
    return true;
}

template std::string exact_text(float);
template std::string exact_text(double);
template void copy_tensor(const TensorView&, float*);
template void copy_tensor(const TensorView&, double*);

}  // namespace lnfree
