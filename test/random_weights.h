// Include it after train_gpt2_lnfree.cpp or train_gpt2_lnfree.cu.
#pragma once

#include "data/random.h"

namespace lnfree {

// Weights far from their initial values, so that no term of a formula is close to zero by chance.
inline void randomise(GPT2& model, uint64_t seed) {
    SplitMix64 random(seed);
    for (const Tensor& t : model.tensors) {
        const bool gamma = t.name.find("ln_") != std::string::npos && t.name.back() == 't';
        for (int64_t i = 0; i < t.size; i++)
            model.params.data()[t.offset + i] = static_cast<real>((gamma ? 1.0 : 0.0) + 0.15 * random.normal());
    }
}

}  // namespace lnfree
