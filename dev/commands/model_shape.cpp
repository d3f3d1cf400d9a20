#include "dev/commands/model_shape.h"

#include <algorithm>
#include <iterator>

#include "data/error.h"

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

}  // namespace

GPT2Config ModelShape::config(int64_t data_V) const {
    const auto* const found = std::find_if(std::begin(named_sizes), std::end(named_sizes),
                                           [&](const NamedSize& named) { return size == named.name; });
    if (found == std::end(named_sizes)) throw BadInput("--size " + size + ": use tiny, small, medium, large or xl");
    GPT2Config c;
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
    return c;
}

}  // namespace lnfree
