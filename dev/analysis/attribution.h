// Direct logit attribution against the direct effect (2507.02559, Sec. 5.1 and App. G). Included by
// train_gpt2_lnfree.cpp, after the model.
//
// With r the stream in front of ln_f, c what one component adds to it, and u the target's row of the unembedding:
//     DE(c)  = (LN(r) - LN(r - c)) . u              the component's direct effect (eq. 4): ln_f sees the stream without it
//     DLA(c) = gamma * (c - mean(c)) / sigma(r) . u   its linearisation (eq. 5): ln_f's scale stays what it was
// Where the last norm is FakeLN, or folded away, they are the same number.
#pragma once

#include "dev/analysis/sample.h"

namespace lnfree {
namespace analysis {

// Sums over predictions of |DLA - DE| and |DE|, per sequence.
struct AttributionError {
    std::vector<double> off, effect;  // (sequences)
    double largest = 0;               // |DLA - DE|

    void resize(int64_t sequences) {
        off.assign(static_cast<size_t>(sequences), 0);
        effect.assign(static_cast<size_t>(sequences), 0);
    }
    // Normalised mean absolute error over some sequences (eq. 9), as a share; 0 where nothing has an effect.
    double nmae(const std::vector<int64_t>& chosen) const {
        double error = 0, size = 0;
        for (const int64_t i : chosen) {
            error += off[static_cast<size_t>(i)];
            size += effect[static_cast<size_t>(i)];
        }
        return size > 0 ? error / size : 0;
    }
};

// What ln_f is at each position, in the terms of eq. 4 and 5.
struct FinalNorm {
    bool centred, fixed;  // whether it subtracts the mean; whether its divisor is the same without the component
    const real* gamma;    // (C); null: ones
    double epsilon;
    const real *residual, *mean, *divisor;  // (N,C), (N), (N)
};

struct Attribution {
    double direct_effect, dla;
};

// Of component c (C) at position n, for the token whose row of the unembedding is u (C). All sums in double.
inline Attribution attribute(const FinalNorm& norm, int64_t n, const real* c, const real* u, int64_t C) {
    const real *r = norm.residual + n * C, *gamma = norm.gamma;
    const double mean_r = norm.centred ? static_cast<double>(norm.mean[n]) : 0;
    double sum_c = 0, c_c = 0, r_c = 0, r_r = 0, g = 0, g_r = 0, g_c = 0;
#pragma omp simd reduction(+ : sum_c, c_c, r_c, r_r, g, g_r, g_c)
    for (int64_t i = 0; i < C; i++) {
        const double ci = static_cast<double>(c[i]), ri = static_cast<double>(r[i]) - mean_r;
        const double gi = static_cast<double>(u[i]) * (gamma == nullptr ? 1.0 : static_cast<double>(gamma[i]));
        sum_c += ci;
        c_c += ci * ci;
        r_c += ri * ci;
        r_r += ri * ri;
        g += gi;
        g_r += gi * ri;
        g_c += gi * ci;
    }
    const double width = static_cast<double>(C), mean_c = norm.centred ? sum_c / width : 0;
    const double divisor = static_cast<double>(norm.divisor[n]);
    double without = divisor;
    if (!norm.fixed) without = std::sqrt(std::max(0.0, (r_r - 2 * r_c + c_c) / width - mean_c * mean_c) + norm.epsilon);
    const double whole = g_r / divisor, rest = (g_r - g_c + g * mean_c) / without;
    return {whole - rest, (g_c - g * mean_c) / divisor};
}

// The components of one model and what is known of them.
class Attributions {
  public:
    Attributions(GPT2& model, const Sample& sample) : model_(model), sample_(sample) {
        const GPT2Config& c = model.config;
        heads_.resize(static_cast<size_t>(c.L * c.NH));
        mlps_.resize(static_cast<size_t>(c.L));
        for (auto* group : {&heads_, &mlps_})
            for (AttributionError& e : *group) e.resize(sample.sequences);
        embedding_.resize(sample.sequences);
    }

    // Sequences [first, first + B). Components are kept until the pass has reached ln_f, which alone knows r.
    void add(int64_t first, int64_t B) {
        const GPT2Config& c = model_.config;
        const int64_t N = B * sample_.T, C = c.C, HS = C / c.NH;
        const int32_t* inputs = sample_.inputs.data() + first * sample_.T;
        if (kept_.size() < (2 * c.L + 1) * N * C) kept_.allocate((2 * c.L + 1) * N * C);
        real *heads = kept_.data(), *outputs = heads + c.L * N * C, *embedding = outputs + c.L * N * C;
        Probe probe;
        probe.residual = [&](int64_t layer, const real* x) {
            if (layer == 0) std::copy(x, x + N * C, embedding);
        };
        probe.attention = [&](int64_t layer, const real* x, const real*, const real*) {
            std::copy(x, x + N * C, heads + layer * N * C);
        };
        probe.mlp = [&](int64_t layer, const real*, const real* x) {
            std::copy(x, x + N * C, outputs + layer * N * C);
        };
        model_.trace(inputs, B, sample_.T, probe);
        compare(embedding_, embedding, first, B);
        if (component_.size() < N * C) component_.allocate(N * C);
        for (int64_t l = 0; l < c.L; l++) {
            compare(mlps_[static_cast<size_t>(l)], outputs + l * N * C, first, B);
            for (int64_t h = 0; h < c.NH; h++) {
                // c (N,C): this head's columns of what the heads bring, by its rows of c_proj
                matmul(Transpose::No, Transpose::No, N, C, HS, heads + l * N * C + h * HS, C,
                       model_.weights().layers[static_cast<size_t>(l)].proj + h * HS * C, C, component_.data(), C,
                       false);
                compare(heads_[static_cast<size_t>(l * c.NH + h)], component_.data(), first, B);
            }
        }
    }

    ordered_json summary(uint64_t seed) const {
        std::vector<int64_t> all(static_cast<size_t>(sample_.sequences));
        for (size_t i = 0; i < all.size(); i++) all[i] = static_cast<int64_t>(i);
        const auto over_heads = [this](const std::vector<int64_t>& chosen) {  // eq. 10
            double sum = 0;
            for (const AttributionError& head : heads_) sum += head.nmae(chosen);
            return 100 * sum / static_cast<double>(heads_.size());
        };
        ordered_json j;
        j["nmae"] = over_heads(all);
        j["nmae_interval"] = interval(sample_.sequences, seed, over_heads);
        j["nmae_embedding"] = 100 * embedding_.nmae(all);
        j["nmae_mlp"] = ordered_json::array();
        for (const AttributionError& mlp : mlps_) j["nmae_mlp"].push_back(100 * mlp.nmae(all));
        j["nmae_head"] = ordered_json::array();
        double largest = 0;
        for (size_t i = 0; i < heads_.size(); i++) {
            if (i % static_cast<size_t>(model_.config.NH) == 0) j["nmae_head"].push_back(ordered_json::array());
            j["nmae_head"].back().push_back(100 * heads_[i].nmae(all));
            largest = std::max(largest, heads_[i].largest);
        }
        j["largest_difference"] = largest;
        return j;
    }

  private:
    GPT2& model_;
    const Sample& sample_;
    std::vector<AttributionError> heads_, mlps_;  // (L,NH), (L)
    AttributionError embedding_;
    Buffer kept_, component_;

    // component (N,C), of the batch that was traced last.
    void compare(AttributionError& error, const real* component, int64_t first, int64_t B) {
        const int64_t T = sample_.T, C = model_.config.C;
        const int32_t* targets = sample_.targets.data() + first * T;
        const Norm kind = model_.sites.f().norm;
        const FinalNorm norm{kind != Norm::folded,
                             kind != Norm::layer_norm,
                             model_.weights().lnf_gamma,
                             model_.config.epsilon,
                             model_.final_residual(),
                             model_.final_means(),
                             model_.final_divisors(sample_.inputs.data() + first * T)};
        std::vector<double> largest(static_cast<size_t>(B));
#pragma omp parallel for schedule(static)
        for (int64_t b = 0; b < B; b++) {
            double off = 0, effect = 0;
            for (int64_t n = b * T; n < (b + 1) * T; n++) {
                const real* u = model_.weights().head + static_cast<int64_t>(targets[n]) * C;
                const Attribution a = attribute(norm, n, component + n * C, u, C);
                off += std::abs(a.dla - a.direct_effect);
                effect += std::abs(a.direct_effect);
                largest[static_cast<size_t>(b)] =
                    std::max(largest[static_cast<size_t>(b)], std::abs(a.dla - a.direct_effect));
            }
            error.off[static_cast<size_t>(first + b)] = off;
            error.effect[static_cast<size_t>(first + b)] = effect;
        }
        error.largest = std::max(error.largest, *std::max_element(largest.begin(), largest.end()));
    }
};

inline ordered_json measure_attribution(GPT2& model, const Sample& sample, const Settings& settings) {
    Attributions attributions(model, sample);
    for_each_batch(sample, settings, [&](int64_t first, int64_t B) { attributions.add(first, B); });
    return attributions.summary(settings.seed);
}

}  // namespace analysis
}  // namespace lnfree
