#include "dev/commands/model_shape.h"

#include <algorithm>
#include <iterator>

#include "data/error.h"
#include "data/files.h"

namespace lnfree {
namespace {

// GPT-2's sizes, and one for a laptop.
struct NamedSize {
    const char* name;
    int64_t L, NH, C, n_ctx;
};
constexpr NamedSize named_sizes[] = {{"tiny", 4, 4, 128, 128},
                                     {"small", 12, 12, 768, 1024},
                                     {"medium", 24, 16, 1024, 1024},
                                     {"large", 36, 20, 1280, 1024},
                                     {"xl", 48, 25, 1600, 1024}};

// What the models of a family do by default, as transformers describes them: Pythia, and Llama with an embedding that is the
// unembedding too, as its small kin have it. Llama's gated MLP gets as many parameters as GPT-2's.
void take_family(ModelConfig& c, const std::string& family) {
    if (family == "gpt2") return;
    const int64_t HS = c.C / c.NH;
    if (family == "neox") {
        c.family = Family::neox;
        c.rotary = std::max<int64_t>(2, HS / 4 / 2 * 2);
        c.parallel = true;
        c.activation = Activation::gelu_erf;
        c.tied = false;
    } else if (family == "llama") {
        c.family = Family::llama;
        c.rotary = HS;
        c.centred = c.norm_bias = c.attention_bias = c.mlp_bias = false;
        c.activation = Activation::gated_silu;
        c.n_inner = std::max<int64_t>(1, 8 * c.C / 3 / 8 * 8);
    } else {
        throw BadInput("--family " + quoted_name(family) + ": use gpt2, neox or llama");
    }
    if (HS % 2 != 0)
        throw BadInput("--n-embd " + std::to_string(c.C) + " / --n-head " + std::to_string(c.NH) +
                       ": heads of rotary models need an even size");
}

}  // namespace

ModelConfig ModelShape::config(int64_t data_V) const {
    const auto* const found = std::find_if(std::begin(named_sizes), std::end(named_sizes),
                                           [&](const NamedSize& named) { return size == named.name; });
    if (found == std::end(named_sizes)) throw BadInput("--size " + size + ": use tiny, small, medium, large or xl");
    ModelConfig c;
    c.L = L.value_or(found->L);
    c.NH = NH.value_or(found->NH);
    c.C = C.value_or(found->C);
    c.n_ctx = n_ctx.value_or(found->n_ctx);
    c.V = V.value_or(data_V);
    c.n_inner = 4 * c.C;
    if (c.V == 0) throw BadInput("--vocab-size is needed: the shards come without a PREFIX.json that says it");
    if (c.L < 1 || c.NH < 1 || c.C < 1 || c.n_ctx < 1 || c.V < 1)
        throw BadInput("--n-layer, --n-head, --n-embd, --n-ctx and --vocab-size must be at least 1");
    if (c.C % c.NH != 0)
        throw BadInput("--n-embd " + std::to_string(c.C) + " must be a multiple of --n-head " + std::to_string(c.NH));
    take_family(c, family);
    if (!KH) return c;
    if (*KH < 1 || c.NH % *KH != 0)
        throw BadInput("--n-key-head " + std::to_string(*KH) + ": must divide --n-head " + std::to_string(c.NH));
    if (family != "llama") throw BadInput("--n-key-head: only --family llama has heads of keys that are shared");
    c.shared_heads = *KH == c.NH ? 0 : *KH;
    return c;
}

}  // namespace lnfree
