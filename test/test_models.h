// Models for tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/config.h"
#include "data/random.h"
#include "dev/engine.h"

namespace lnfree {

// A shape of which nothing need be round; the vocabulary's last token ends a text.
inline ModelConfig shape_of(int64_t L, int64_t NH, int64_t C, int64_t V, int64_t n_ctx, int64_t n_inner) {
    ModelConfig c;
    c.L = L;
    c.NH = NH;
    c.C = C;
    c.V = V;
    c.n_ctx = n_ctx;
    c.n_inner = n_inner;
    c.end_of_text = static_cast<int32_t>(V - 1);
    return c;
}

// Shapes beyond GPT-2's, each with something that the others do not have.
inline std::vector<ModelConfig> other_shapes() {
    const ModelConfig base = shape_of(2, 4, 12, 13, 6, 10);
    std::vector<ModelConfig> shapes(5, base);
    ModelConfig &pythia = shapes[0], &llama = shapes[1], &wide = shapes[2], &rms = shapes[3], &untied = shapes[4];
    pythia.rotary = 2;
    pythia.parallel = true;
    pythia.activation = Activation::gelu_erf;
    pythia.tied = false;
    llama.NH = 6;
    llama.rotary = 2;
    llama.rotary_base = 100;
    llama.shared_heads = 2;
    llama.centred = llama.norm_bias = llama.attention_bias = llama.mlp_bias = false;
    llama.activation = Activation::gated_silu;
    wide = llama;
    wide.own_head_size = 4;
    wide.rotary = 4;
    wide.shared_heads = 1;
    wide.attention_bias = true;
    wide.tied = false;
    rms.centred = false;
    untied.norm_bias = untied.attention_bias = untied.mlp_bias = false;
    untied.tied = false;
    return shapes;
}

// Infinity if the sizes differ or a difference is not a number.
inline double largest_difference(const std::vector<real>& a, const std::vector<real>& b) {
    if (a.size() != b.size()) return INFINITY;
    double largest = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (std::isnan(difference)) return INFINITY;
        largest = std::max(largest, difference);
    }
    return largest;
}

// Weights far from their initial values, so that no term of a formula is close to zero by chance.
inline void randomise(Engine& model, uint64_t seed, double spread = 0.15) {
    SplitMix64 random(seed);
    for (const Tensor& t : model.tensors) {
        const bool gamma = t.name.find("ln_") != std::string::npos && t.name.back() == 't';
        for (int64_t i = 0; i < t.size; i++)
            model.params.data()[t.offset + i] = static_cast<real>((gamma ? 1.0 : 0.0) + spread * random.normal());
    }
}

// A reference engine with such weights.
inline std::unique_ptr<Engine> random_model(const ModelConfig& c, uint64_t seed, double spread = 0.15) {
    std::unique_ptr<Engine> model = make_reference(c);
    randomise(*model, seed, spread);
    return model;
}

inline std::vector<int32_t> random_tokens(int64_t n, int64_t V) {
    SplitMix64 random(4);
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    for (int32_t& t : tokens) t = static_cast<int32_t>(random.below(static_cast<uint64_t>(V)));
    return tokens;
}

// FakeLN with this divisor.
inline void freeze(Site& site, double sigma_bar) {
    site.a = 1;
    site.sigma_bar = sigma_bar;
}

}  // namespace lnfree
