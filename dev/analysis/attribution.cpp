#include "dev/analysis/attribution.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "data/json.h"
#include "dev/cpu/operations.h"
#include "dev/run/statistics.h"

namespace lnfree {
namespace analysis {

namespace {

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

// The components of one model and what is known of them.
class Attributions {
  public:
    Attributions(Engine& model, const Sample& sample) : model_(model), sample_(sample) {
        const GPT2Config& c = model.config;
        heads_.resize(static_cast<size_t>(c.L * c.NH));
        mlps_.resize(static_cast<size_t>(c.L));
        for (auto* group : {&heads_, &mlps_})
            for (AttributionError& e : *group) e.resize(sample.sequences);
        embedding_.resize(sample.sequences);
    }

    // Sequences [first, first + B). Components are kept until the pass has reached ln_f, which alone knows r.
    void add(int64_t first, int64_t B) {
        const int64_t L = model_.config.L, NH = model_.config.NH, N = B * sample_.T, C = model_.config.C;
        if (kept_.size() < (2 * L + 1) * N * C) kept_.allocate((2 * L + 1) * N * C);
        if (component_.size() < N * C) component_.allocate(N * C);
        real *heads = kept_.data(), *outputs = heads + L * N * C, *embedding = outputs + L * N * C;
        trace_components(first, B, heads, outputs, embedding);
        compare(embedding_, embedding, first, B);
        for (int64_t l = 0; l < L; l++) {
            compare(mlps_[static_cast<size_t>(l)], outputs + l * N * C, first, B);
            for (int64_t h = 0; h < NH; h++) {
                make_head(l, h, heads + l * N * C, N);
                compare(heads_[static_cast<size_t>(l * NH + h)], component_.data(), first, B);
            }
        }
    }

    Json summary(uint64_t seed) const {
        std::vector<int64_t> all(static_cast<size_t>(sample_.sequences));
        std::iota(all.begin(), all.end(), 0);
        const auto over_heads = [this](const std::vector<int64_t>& chosen) {  // eq. 10
            double sum = 0;
            for (const AttributionError& head : heads_) sum += head.nmae(chosen);
            return 100 * sum / static_cast<double>(heads_.size());
        };
        Json j;
        j["nmae"] = over_heads(all);
        j["nmae_interval"] = interval(sample_.sequences, seed, over_heads);
        j["nmae_embedding"] = 100 * embedding_.nmae(all);
        j["nmae_mlp"] = Json::array();
        for (const AttributionError& mlp : mlps_) j["nmae_mlp"].push_back(100 * mlp.nmae(all));
        j["nmae_head"] = Json::array();
        double largest = 0;
        for (size_t i = 0; i < heads_.size(); i++) {
            if (i % static_cast<size_t>(model_.config.NH) == 0) j["nmae_head"].push_back(Json::array());
            j["nmae_head"].back().push_back(100 * heads_[i].nmae(all));
            largest = std::max(largest, heads_[i].largest);
        }
        j["largest_difference"] = largest;
        return j;
    }

  private:
    Engine& model_;
    const Sample& sample_;
    std::vector<AttributionError> heads_, mlps_;  // (L,NH), (L)
    AttributionError embedding_;
    Buffer kept_, component_;

    // heads, outputs (L,N,C): what the heads bring, side by side, and what the MLPs add; embedding (N,C).
    void trace_components(int64_t first, int64_t B, real* heads, real* outputs, real* embedding) {
        const int64_t NC = B * sample_.T * model_.config.C;
        Probe probe;
        probe.residual = [&](int64_t layer, const real* x) {
            if (layer == 0) std::copy(x, x + NC, embedding);
        };
        probe.attention = [&](int64_t layer, const real* x, const real*, const real*) {
            std::copy(x, x + NC, heads + layer * NC);
        };
        probe.mlp = [&](int64_t layer, const real*, const real* x) { std::copy(x, x + NC, outputs + layer * NC); };
        model_.trace(sample_.inputs.data() + first * sample_.T, B, sample_.T, probe);
    }

    // component_ (N,C) becomes what head h of layer l adds: its columns of what the heads bring, by its rows of c_proj.
    void make_head(int64_t l, int64_t h, const real* heads, int64_t N) {
        const int64_t C = model_.config.C, HS = C / model_.config.NH;
        const real* proj = model_.weights().layers[static_cast<size_t>(l)].proj;
        operations().matmul(Transpose::No, Transpose::No, N, C, HS, heads + h * HS, C, proj + h * HS * C, C,
                            component_.data(), C, false, nullptr);
    }

    // component (N,C), of the batch that was traced last.
    void compare(AttributionError& error, const real* component, int64_t first, int64_t B) {
        const int64_t T = sample_.T, C = model_.config.C;
        const int32_t* targets = sample_.targets.data() + first * T;
        const real* head = model_.weights().head;
        const FinalNorm norm = final_norm_of(model_, sample_.inputs.data() + first * T);
        std::vector<double> largest(static_cast<size_t>(B));
#pragma omp parallel for schedule(static)
        for (int64_t b = 0; b < B; b++) {
            double off = 0, effect = 0, most = 0;
            for (int64_t n = b * T; n < (b + 1) * T; n++) {
                const Attribution a =
                    attribute(norm, n, component + n * C, head + static_cast<int64_t>(targets[n]) * C, C);
                off += std::abs(a.dla - a.direct_effect);
                effect += std::abs(a.direct_effect);
                most = std::max(most, std::abs(a.dla - a.direct_effect));
            }
            error.off[static_cast<size_t>(first + b)] = off;
            error.effect[static_cast<size_t>(first + b)] = effect;
            largest[static_cast<size_t>(b)] = most;
        }
        error.largest = std::max(error.largest, *std::max_element(largest.begin(), largest.end()));
    }
};

}  // namespace

FinalNorm final_norm_of(Engine& model, const int32_t* inputs) {
    const Site& f = model.sites.f();
    return {!f.folded,
            f.folded ? 1.0 : f.a,
            model.weights().lnf_gamma,
            model.config.epsilon,
            model.final_residual(),
            model.final_means(),
            model.final_divisors(inputs)};
}

// All sums in double.
Attribution attribute(const FinalNorm& norm, int64_t n, const real* c, const real* u, int64_t C) {
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
    if (norm.a < 1) {
        const double variance = std::max(0.0, (r_r - 2 * r_c + c_c) / width - mean_c * mean_c);
        const double sigma = std::sqrt(variance + norm.epsilon);
        // of sigma^(1-a) * s^a the first factor alone changes
        without = norm.a == 0 ? sigma : divisor * std::pow(sigma / std::sqrt(r_r / width + norm.epsilon), 1 - norm.a);
    }
    const double whole = g_r / divisor, rest = (g_r - g_c + g * mean_c) / without;
    return {whole - rest, (g_c - g * mean_c) / divisor};
}

Json measure_attribution(Engine& model, const Sample& sample, const Procedure& procedure) {
    Attributions attributions(model, sample);
    for_each_batch(sample, procedure, [&](int64_t first, int64_t B) { attributions.add(first, B); });
    return attributions.summary(procedure.seed);
}

}  // namespace analysis
}  // namespace lnfree
