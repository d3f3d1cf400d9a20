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

bool same(const ModelConfig& a, const ModelConfig& b) {
    return a.form == b.form && a.family == b.family && a.C == b.C && a.L == b.L && a.NH == b.NH && a.V == b.V &&
           a.n_ctx == b.n_ctx && a.n_inner == b.n_inner && a.end_of_text == b.end_of_text && a.epsilon == b.epsilon &&
           a.centred == b.centred && a.norm_bias == b.norm_bias && a.rotary == b.rotary &&
           a.rotary_base == b.rotary_base && a.parallel == b.parallel && a.activation == b.activation &&
           a.shared_heads == b.shared_heads && a.own_head_size == b.own_head_size &&
           a.attention_bias == b.attention_bias && a.mlp_bias == b.mlp_bias && a.has_own_head() == b.has_own_head();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        const ModelConfig c = parse_config(std::string(data, data + size), "file");
        require(c.C >= 1 && c.L >= 1 && c.V >= 1 && c.n_ctx >= 1 && c.n_inner >= 1);
        require(c.NH >= 1 && (c.C % c.NH == 0 || c.own_head_size > 0));
        require(c.head_size() >= 1 && c.NH % c.key_heads() == 0 && c.qkv_width() >= 3);
        require(c.rotary <= c.head_size() && c.rotary % 2 == 0 && c.rotary_base > 0);
        require(!c.norm_bias || (c.attention_bias && c.mlp_bias));
        require(c.end_of_text < c.V && c.epsilon > 0);
        require(same(c, parse_config(config_json(c, "float32").dump(), "written")));
    } catch (const BadInput& refused) {
        require(std::string(refused.what()).find('\n') == std::string::npos);
    }
    return 0;
}
