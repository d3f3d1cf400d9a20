// libFuzzer target for token shards, NumPy's among them. The two lowest bits of the first byte say whether the rest is a
// file with a header or one of uint16, uint32 or int64 without, the others how long the windows are that are read from it. Every input must be read or refused with BadInput, and
// every window must lie within the input (the sanitizer looks).
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "data/shards.h"

namespace {

using namespace lnfree;

void require(bool condition) {
    if (!condition) std::abort();
}

void read_windows(const TokenSpan& span, uint64_t T) {
    const uint32_t largest = span.largest(0, span.count);
    std::vector<int32_t> window(T);
    for (uint64_t first = 0; first + T <= span.count; first += T) {
        span.copy(first, T, window.data());
        for (uint64_t i = 0; i < T; ++i) {
            require(static_cast<uint32_t>(window[i]) == span.at(first + i));
            require(span.at(first + i) <= largest && !span.written_id(first + i).empty());
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    static const char* const prefixes[] = {"", "raw:", "raw32:", "raw64:"};
    const std::vector<unsigned char> file(data + 1, data + size);  // a copy of exactly this size, for the sanitizer
    try {
        const TokenSpan span =
            parse_shard(file.data(), file.size(), parse_shard_name(prefixes[data[0] % 4] + std::string("file")));
        require(span.count > 0 && span.data + span.count * span.token_bytes == file.data() + file.size());
        read_windows(span, data[0] / 4 + 1);
    } catch (const BadInput&) {
    }
    const std::string name(file.begin(), file.end());
    if (const auto sidecar = sidecar_path(name)) require(sidecar->size() < name.size());
    return 0;
}
