// libFuzzer target for files of torch.save. Its first byte chooses how the rest is read: as a whole file, a zip archive; or
// as a pickle whose storages all are the same few bytes. Every input must be read or refused with BadInput, in one line,
// and every tensor that is found must lie within the bytes that it came from.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "data/pickle.h"
#include "data/torch_file.h"

namespace {

using namespace lnfree;

void require(bool condition) {
    if (!condition) std::abort();
}

// Its elements are read, unless they are many (strides of 0 repeat a few of them without end).
void read_tensor(const TensorView& tensor, const unsigned char* bytes, uint64_t size) {
    require(tensor.strides.empty() || tensor.strides.size() == tensor.shape.size());
    require(tensor.data >= bytes && tensor.data <= bytes + size);
    require(tensor.bytes <= static_cast<uint64_t>(bytes + size - tensor.data));
    if (tensor.count() > 4096) return;
    std::vector<float> values(tensor.count());
    try {
        copy_tensor(tensor, values.data());
    } catch (const BadInput&) {  // a type or a value that float cannot hold
    }
}

void read_file(const std::string& file) {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(file.data());
    const TorchContents contents = parse_torch_file(bytes, file.size(), "file");
    for (const TensorView& tensor : contents.tensors) read_tensor(tensor, bytes, file.size());
    require(contents.model_args.is_null() || contents.model_args.is_object());
}

void read_pickle(const std::string& text) {
    const std::string storage(64, '\1');
    const auto* const bytes = reinterpret_cast<const unsigned char*>(storage.data());
    const auto everywhere = [&](const std::string&) { return StorageBytes{bytes, storage.size()}; };
    const Pickle pickle(reinterpret_cast<const unsigned char*>(text.data()), text.size(), everywhere, "file");
    const PickleValue& root = pickle.root();
    for (const PickleValue* const item : root.items)
        if (item->kind == PickleValue::Kind::tensor) read_tensor(pickle.tensor(*item), bytes, storage.size());
    root.find("model");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        if (data[0] % 2 == 0) {
            read_file(rest);
        } else {
            read_pickle(rest);
        }
    } catch (const lnfree::BadInput& refused) {
        require(std::string(refused.what()).find('\n') == std::string::npos);
    }
    return 0;
}
