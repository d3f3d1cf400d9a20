// libFuzzer target for config.json. Every text must be read or refused with BadInput in one line; a config that was read
// must describe a model whose sizes can be computed with, and must come back the same from what we write of it.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "data/model_config.h"

namespace {

using namespace lnfree;

void require(bool condition) {
    if (!condition) std::abort();
}

bool same(const GPT2Config& a, const GPT2Config& b) {
    return a.form == b.form && a.C == b.C && a.L == b.L && a.NH == b.NH && a.V == b.V && a.n_ctx == b.n_ctx &&
           a.n_inner == b.n_inner && a.end_of_text == b.end_of_text && a.epsilon == b.epsilon;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        const GPT2Config c = parse_config(std::string(data, data + size), "file");
        require(c.C >= 1 && c.L >= 1 && c.V >= 1 && c.n_ctx >= 1 && c.n_inner >= 1);
        require(c.NH >= 1 && c.C % c.NH == 0);
        require(c.end_of_text < c.V && c.epsilon > 0);
        require(same(c, parse_config(config_json(c, "float32").dump(), "written")));
    } catch (const BadInput& refused) {
        require(std::string(refused.what()).find('\n') == std::string::npos);
    }
    return 0;
}
