// What is special about the first position: norms of the stream, sigmas, attention sinks (2507.02559, Sec. 5.3, Fig. 3).
// Included by train_gpt2_lnfree.cpp, after the model.
#pragma once

#include "dev/analysis/loss.h"
#include "dev/analysis/sample.h"

namespace lnfree {
namespace analysis {

// Mean norms (L2) of the stream in front of every block and of ln_f, at position 0 and elsewhere, and every site's sigma
// likewise: {"residual": [{"at_0", "elsewhere"}], "sites": [{"site", "removed", "sigma_bar", "at_0", "elsewhere"}]}.
// T must be at least 2.
inline ordered_json measure_norms(GPT2& model, const Sample& sample, const Settings& settings) {
    const int64_t T = sample.T, C = model.config.C;
    struct Sums {
        double at_0 = 0, elsewhere = 0;
    };
    std::vector<Sums> stream(static_cast<size_t>(model.config.L + 1));
    Probe probe;
    int64_t batch = 0;
    probe.residual = [&](int64_t layer, const real* x) {
        Sums& sums = stream[static_cast<size_t>(layer)];
        for (int64_t n = 0; n < batch * T; n++) (n % T == 0 ? sums.at_0 : sums.elsewhere) += norm_of(x + n * C, C);
    };
    model.clear_sigma_sums();
    for_each_batch(sample, settings, [&](int64_t first, int64_t B) {
        batch = B;
        model.trace(sample.inputs.data() + first * T, B, T, probe, true);
        model.collect_sigma_sums();
    });
    const double firsts = static_cast<double>(sample.sequences), others = firsts * static_cast<double>(T - 1);
    const auto number = [](double x) { return std::isfinite(x) ? ordered_json(x) : ordered_json(); };
    ordered_json j;
    j["residual"] = ordered_json::array();
    for (const Sums& sums : stream)
        j["residual"].push_back({{"at_0", sums.at_0 / firsts}, {"elsewhere", sums.elsewhere / others}});
    j["sites"] = ordered_json::array();
    for (size_t i = 0; i < model.sites.all.size(); i++) {
        const Site& site = model.sites.all[i];
        const SigmaSum& sums = model.sigma_sums[i];
        j["sites"].push_back({{"site", site_name(site)},
                              {"removed", site.norm != Norm::layer_norm},
                              {"sigma_bar", number(site.sigma_bar)},
                              {"at_0", sums.at_0 / firsts},
                              {"elsewhere", sums.elsewhere / others}});
    }
    return j;
}

constexpr double kSinkThreshold = 0.3;  // of a head's attention (Sec. 5.3)

// How much of its attention each head gives to position 0. The query at position 0, which sees nothing else, is left out.
// Two rates: of heads that give it at least kSinkThreshold on average over a sequence's queries, and of single queries.
class Sinks {
  public:
    Sinks(GPT2& model, const Sample& sample)
        : model_(model), sample_(sample), heads_(static_cast<size_t>(model.config.L)), queries_(heads_.size()) {
        for (auto* rates : {&heads_, &queries_})
            for (std::vector<double>& layer : *rates) layer.resize(static_cast<size_t>(sample.sequences));
    }

    void add(int64_t first, int64_t B) {
        Probe probe;
        probe.attention = [&](int64_t layer, const real*, const real* qkv, const real* lse) {
#pragma omp parallel for schedule(static)
            for (int64_t b = 0; b < B; b++) count(layer, first, b, qkv, lse);
        };
        model_.trace(sample_.inputs.data() + first * sample_.T, B, sample_.T, probe);
    }

    ordered_json summary(uint64_t seed) const {
        ordered_json j;
        j["threshold"] = kSinkThreshold;
        for (const auto& [name, rates] : {std::pair{"heads", &heads_}, {"pairs", &queries_}}) {
            std::vector<double> overall(static_cast<size_t>(sample_.sequences));
            ordered_json per_layer = ordered_json::array();
            for (const std::vector<double>& layer : *rates) {
                per_layer.push_back(mean_of(layer));
                for (size_t i = 0; i < layer.size(); i++) overall[i] += layer[i] / static_cast<double>(rates->size());
            }
            j[std::string("rate_") + name] = mean_of(overall);
            j[std::string("rate_") + name + "_interval"] = interval_of_mean(overall, seed);
            j[std::string("per_layer_") + name] = per_layer;
        }
        return j;
    }

  private:
    GPT2& model_;
    const Sample& sample_;
    std::vector<std::vector<double>> heads_, queries_;  // (L)(sequences): shares

    // Sequence b of the batch that begins at `first`.
    void count(int64_t layer, int64_t first, int64_t b, const real* qkv, const real* lse) {
        const int64_t T = sample_.T, C = model_.config.C, NH = model_.config.NH, HS = C / NH;
        const double scale = 1 / std::sqrt(static_cast<double>(HS));
        int64_t sinks = 0, queries = 0;
        for (int64_t h = 0; h < NH; h++) {
            const real *q = qkv + b * T * 3 * C + h * HS, *key = q + C;
            double sum = 0;
            for (int64_t t = 1; t < T; t++) {
                double score = 0;
                for (int64_t d = 0; d < HS; d++)
                    score += static_cast<double>(q[t * 3 * C + d]) * static_cast<double>(key[d]);
                const double share = std::exp(scale * score - static_cast<double>(lse[(b * NH + h) * T + t]));
                sum += share;
                queries += share >= kSinkThreshold;
            }
            sinks += sum >= kSinkThreshold * static_cast<double>(T - 1);
        }
        const size_t sequence = static_cast<size_t>(first + b);
        heads_[static_cast<size_t>(layer)][sequence] = static_cast<double>(sinks) / static_cast<double>(NH);
        queries_[static_cast<size_t>(layer)][sequence] =
            static_cast<double>(queries) / static_cast<double>(NH * (T - 1));
    }
};

// T must be at least 2.
inline ordered_json measure_sinks(GPT2& model, const Sample& sample, const Settings& settings) {
    if (sample.T < 2) throw BadInput("--seq 1: attention to position 0 needs queries behind it; use at least 2");
    Sinks sinks(model, sample);
    for_each_batch(sample, settings, [&](int64_t first, int64_t B) { sinks.add(first, B); });
    return sinks.summary(settings.seed);
}

}  // namespace analysis
}  // namespace lnfree
