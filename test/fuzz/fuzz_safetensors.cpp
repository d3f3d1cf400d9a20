// libFuzzer target for everything that reads a model folder's weights from bytes. Its first byte chooses how the rest
// is read: as a whole .safetensors file, as the JSON of a header in front of as many zeros as the next two bytes say,
// or as the text of model.safetensors.index.json. Every input must be read or refused with BadInput, and what is
// read must lie within the input.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "data/safetensors.h"
#include "data/weight_files.h"

namespace {

using namespace lnfree;

void require(bool condition) {
    if (!condition) std::abort();
}

void read_weights(const std::string& file) {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(file.data());
    const SafetensorsContents contents = parse_safetensors(bytes, file.size(), "file");
    uint64_t covered = 0;
    for (const TensorView& tensor : contents.tensors) {
        require(tensor.bytes == tensor.count() * dtype_bytes(tensor.dtype));
        require(tensor.data >= bytes && tensor.data + tensor.bytes <= bytes + file.size());
        covered += tensor.bytes;
        std::vector<float> values(tensor.bytes);  // at least one byte per element, so never too short
        try {
            copy_tensor(tensor, values.data());
        } catch (const BadInput&) {  // a type or a value that float cannot hold
        }
    }
    require(covered <= file.size());
}

void read_header(const std::string& input) {
    if (input.size() < 2) return;
    const size_t data_bytes = static_cast<unsigned char>(input[0]) * 256u + static_cast<unsigned char>(input[1]);
    const uint64_t length = input.size() - 2;
    const std::string length_bytes(reinterpret_cast<const char*>(&length), sizeof(length));
    read_weights(length_bytes + input.substr(2) + std::string(data_bytes, '\0'));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        switch (data[0] % 3) {
            case 0:
                read_weights(rest);
                break;
            case 1:
                read_header(rest);
                break;
            default:
                for (const auto& [tensor, file] : parse_weight_map(rest, "index")) {
                    require(file.find('/') == std::string::npos && file != ".." && !file.empty());
                }
        }
    } catch (const lnfree::BadInput& refused) {
        require(std::string(refused.what()).find('\n') == std::string::npos);
    }
    return 0;
}
