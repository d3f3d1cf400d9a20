#include "dev/analysis/attribution.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "data/json.h"
#include "data/random.h"
#include "dev/analysis/heads.h"
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

std::vector<int64_t> counting(int64_t n) {
    std::vector<int64_t> numbers(static_cast<size_t>(n));
    std::iota(numbers.begin(), numbers.end(), 0);
    return numbers;
}

// (L) lists of NH numbers, in percent.
Json nmae_by_layer(const std::vector<AttributionError>& heads, int64_t NH, const std::vector<int64_t>& chosen) {
    Json layers = Json::array();
    for (size_t i = 0; i < heads.size(); i++) {
        if (i % static_cast<size_t>(NH) == 0) layers.push_back(Json::array());
        layers.back().push_back(100 * heads[i].nmae(chosen));
    }
    return layers;
}

double largest_of(const std::vector<AttributionError>& heads) {
    double largest = 0;
    for (const AttributionError& head : heads) largest = std::max(largest, head.largest);
    return largest;
}

// The components of one model and what is known of them.
class Attributions {
  public:
    Attributions(Engine& model, const Sample& sample) : model_(model), sample_(sample) {
        const ModelConfig& c = model.config;
        heads_.resize(static_cast<size_t>(c.L * c.NH));
        mlps_.resize(static_cast<size_t>(c.L));
        for (auto* group : {&heads_, &mlps_})
            for (AttributionError& e : *group) e.resize(sample.sequences);
        embedding_.resize(sample.sequences);
    }

    // Sequences [first, first + B). Components are kept until the pass has reached ln_f, which alone knows r.
    void add(int64_t first, int64_t B) {
        const int64_t L = model_.config.L, NH = model_.config.NH, N = B * sample_.T, C = model_.config.C;
        const int64_t NA = N * model_.config.heads_width(), needed = L * NA + (L + 1) * N * C;
        if (kept_.size() < needed) kept_.allocate(needed);
        if (component_.size() < N * C) component_.allocate(N * C);
        real *heads = kept_.data(), *outputs = heads + L * NA, *embedding = outputs + L * N * C;
        trace_components(first, B, heads, outputs, embedding);
        compare(embedding_, embedding, first, B);
        for (int64_t l = 0; l < L; l++) {
            compare(mlps_[static_cast<size_t>(l)], outputs + l * N * C, first, B);
            for (int64_t h = 0; h < NH; h++) {
                head_output(model_, l, h, heads + l * NA, N, component_.data(), C);
                compare(heads_[static_cast<size_t>(l * NH + h)], component_.data(), first, B);
            }
        }
    }

    Json summary(uint64_t seed) const {
        const std::vector<int64_t> all = counting(sample_.sequences);
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
        j["nmae_head"] = nmae_by_layer(heads_, model_.config.NH, all);
        j["largest_difference"] = largest_of(heads_);
        return j;
    }

  private:
    Engine& model_;
    const Sample& sample_;
    std::vector<AttributionError> heads_, mlps_;  // (L,NH), (L)
    AttributionError embedding_;
    Buffer kept_, component_;

    // heads (L,N,A), outputs (L,N,C): what the heads bring, side by side, and what the MLPs add; embedding (N,C).
    void trace_components(int64_t first, int64_t B, real* heads, real* outputs, real* embedding) {
        const int64_t NC = B * sample_.T * model_.config.C, NA = B * sample_.T * model_.config.heads_width();
        Probe probe;
        probe.residual = [&](int64_t layer, const real* x) {
            if (layer == 0) std::copy(x, x + NC, embedding);
        };
        probe.attention = [&](int64_t layer, const real* x, const real*, const real*) {
            std::copy(x, x + NA, heads + layer * NA);
        };
        probe.mlp = [&](int64_t layer, const real*, const real* x) { std::copy(x, x + NC, outputs + layer * NC); };
        model_.trace(sample_.inputs.data() + first * sample_.T, B, sample_.T, probe);
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

// ---------------------------------------------------------------------------------------------------------------------
// As the paper's code measures

// Column j of the values' bias, ln_1's beta through the weights among it.
double value_bias(const Weights::Layer& w, int64_t j, int64_t C, int64_t Q) {
    double sum = w.qkv_bias == nullptr ? 0 : static_cast<double>(w.qkv_bias[j]);
    for (int64_t c = 0; w.ln1_beta != nullptr && c < C; c++)
        sum += static_cast<double>(w.ln1_beta[c]) * static_cast<double>(w.qkv[c * Q + j]);
    return sum;
}

// What the value biases bring through every head (A): queries weigh values to a sum of 1, so it is the same at every
// position. TransformerLens counts it among the output's biases and not to the heads.
std::vector<real> value_biases(const Engine& model, int64_t layer) {
    const Weights::Layer& w = model.weights().layers[static_cast<size_t>(layer)];
    const HeadPlaces at(model.config);
    std::vector<real> biases;
    for (int64_t h = 0; h < at.NH; h++)
        for (int64_t d = 0; d < at.HS; d++)
            biases.push_back(static_cast<real>(value_bias(w, at.value_in_row(h) + d, model.config.C, at.Q())));
    return biases;
}

// The mean row of the unembedding (C): it raises all logits alike, which no prediction sees.
std::vector<double> mean_row(const Engine& model) {
    const int64_t C = model.config.C, V = model.config.V;
    std::vector<double> mean(static_cast<size_t>(C));
    for (int64_t v = 0; v < V; v++)
        for (int64_t c = 0; c < C; c++)
            mean[static_cast<size_t>(c)] += static_cast<double>(model.weights().head[v * C + c]);
    for (double& m : mean) m /= static_cast<double>(V);
    return mean;
}

// Heads alone, without value biases, at the last position of every sequence, for the centred unembedding of two tokens:
// the one that follows, and the one that is read there.
class LastAttributions {
  public:
    LastAttributions(Engine& model, const Sample& sample) : model_(model), sample_(sample), mean_row_(mean_row(model)) {
        const ModelConfig& c = model.config;
        for (int64_t l = 0; l < c.L; l++) value_biases_.push_back(value_biases(model, l));
        for (auto* heads : {&next_, &read_}) {
            heads->resize(static_cast<size_t>(c.L * c.NH));
            for (AttributionError& e : *heads) e.resize(sample.sequences);
        }
    }

    // Sequences [first, first + B).
    void add(int64_t first, int64_t B) {
        const int64_t L = model_.config.L, NH = model_.config.NH, C = model_.config.C;
        const int64_t A = model_.config.heads_width();
        const std::vector<real> heads = last_heads(first, B);
        std::vector<real> component(static_cast<size_t>(B * C));
        const FinalNorm norm = final_norm_of(model_, sample_.inputs.data() + first * sample_.T);
        for (int64_t l = 0; l < L; l++)
            for (int64_t h = 0; h < NH; h++) {
                head_output(model_, l, h, heads.data() + l * B * A, B, component.data(), C);
                const auto i = static_cast<size_t>(l * NH + h);
                compare(next_[i], norm, component.data(), sample_.targets, first, B);
                compare(read_[i], norm, component.data(), sample_.inputs, first, B);
            }
    }

    Json summary(uint64_t seed) const {
        Json j = summary_of(next_, seed);
        j["token_read"] = summary_of(read_, seed);
        return j;
    }

  private:
    Engine& model_;
    const Sample& sample_;
    std::vector<double> mean_row_;
    std::vector<std::vector<real>> value_biases_;  // (L)(A)
    std::vector<AttributionError> next_, read_;    // (L,NH), for the token that follows and for the one that is read

    // (L,B,A): what the heads bring to the last position, side by side.
    std::vector<real> last_heads(int64_t first, int64_t B) {
        const int64_t T = sample_.T, A = model_.config.heads_width();
        std::vector<real> heads(static_cast<size_t>(model_.config.L * B * A));
        Probe probe;
        probe.attention = [&](int64_t layer, const real* x, const real*, const real*) {
            const std::vector<real>& biases = value_biases_[static_cast<size_t>(layer)];
            for (int64_t b = 0; b < B; b++)
                for (int64_t a = 0; a < A; a++)
                    heads[static_cast<size_t>((layer * B + b) * A + a)] =
                        x[(b * T + T - 1) * A + a] - biases[static_cast<size_t>(a)];
        };
        model_.trace(sample_.inputs.data() + first * T, B, T, probe);
        return heads;
    }

    // u (C): a token's row of the unembedding, centred.
    void centred_row(int32_t token, std::vector<real>& u) const {
        const real* row = model_.weights().head + static_cast<int64_t>(token) * model_.config.C;
        for (size_t c = 0; c < u.size(); c++) u[c] = static_cast<real>(static_cast<double>(row[c]) - mean_row_[c]);
    }

    // component (B,C); tokens (sequences,T), of which the last of each sequence counts.
    void compare(AttributionError& error, const FinalNorm& norm, const real* component,
                 const std::vector<int32_t>& tokens, int64_t first, int64_t B) const {
        const int64_t T = sample_.T, C = model_.config.C;
        std::vector<real> u(static_cast<size_t>(C));
        for (int64_t b = 0; b < B; b++) {
            centred_row(tokens[static_cast<size_t>((first + b + 1) * T - 1)], u);
            const Attribution a = attribute(norm, b * T + T - 1, component + b * C, u.data(), C);
            const double off = std::abs(a.dla - a.direct_effect);
            error.off[static_cast<size_t>(first + b)] = off;
            error.effect[static_cast<size_t>(first + b)] = std::abs(a.direct_effect);
            error.largest = std::max(error.largest, off);
        }
    }

    // In percent, over some heads and sequences at once: large effects weigh more than in eq. 10.
    static double pooled(const std::vector<AttributionError>& heads, const std::vector<int64_t>& chosen_heads,
                         const std::vector<int64_t>& chosen) {
        double off = 0, effect = 0;
        for (const int64_t h : chosen_heads)
            for (const int64_t i : chosen) {
                off += heads[static_cast<size_t>(h)].off[static_cast<size_t>(i)];
                effect += heads[static_cast<size_t>(h)].effect[static_cast<size_t>(i)];
            }
        return effect > 0 ? 100 * off / effect : 0;
    }

    // The interval draws heads anew as well as sequences.
    Json summary_of(const std::vector<AttributionError>& heads, uint64_t seed) const {
        const std::vector<int64_t> all = counting(sample_.sequences);
        std::vector<int64_t> drawn = counting(static_cast<int64_t>(heads.size()));
        Json j;
        j["nmae"] = pooled(heads, drawn, all);
        SplitMix64 random(seed + 1);
        j["nmae_interval"] = interval(sample_.sequences, seed, [&](const std::vector<int64_t>& chosen) {
            for (int64_t& h : drawn) h = static_cast<int64_t>(random.below(heads.size()));
            return pooled(heads, drawn, chosen);
        });
        j["nmae_head"] = nmae_by_layer(heads, model_.config.NH, all);
        j["largest_difference"] = largest_of(heads);
        return j;
    }
};

}  // namespace

FinalNorm final_norm_of(Engine& model, const int32_t* inputs) {
    const Site& f = model.sites.f();
    return {model.config.centred && !f.folded,
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

namespace {

template <typename Measured>
Json measure_with(Measured attributions, const Sample& sample, const Procedure& procedure) {
    for_each_batch(sample, procedure, [&](int64_t first, int64_t B) { attributions.add(first, B); });
    return attributions.summary(procedure.seed);
}

}  // namespace

Json measure_attribution(Engine& model, const Sample& sample, const Procedure& procedure) {
    return procedure.paper ? measure_with(LastAttributions(model, sample), sample, procedure)
                           : measure_with(Attributions(model, sample), sample, procedure);
}

}  // namespace analysis
}  // namespace lnfree
