#include "dev/analysis/norms.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "data/error.h"
#include "data/json.h"
#include "dev/analysis/heads.h"
#include "dev/analysis/loss.h"
#include "dev/run/records.h"
#include "dev/run/statistics.h"

namespace lnfree {
namespace analysis {

namespace {

constexpr double kSinkThreshold = 0.3;  // of a head's attention (Sec. 5.3)
constexpr size_t kPaperBatch = 8;       // sequences whose common rate is one of those that the paper's interval spans

// Two rates: of heads that give position 0 at least kSinkThreshold on average over a sequence's queries, and of single
// queries that do. The query at position 0, which sees nothing else, is left out. The paper's code knows the second
// alone, counts that query too, and wants more than the threshold.
class Sinks {
  public:
    Sinks(Engine& model, const Sample& sample, bool paper)
        : model_(model),
          sample_(sample),
          paper_(paper),
          first_query_(paper ? 0 : 1),
          heads_(static_cast<size_t>(model.config.L)),
          queries_(heads_.size()) {
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

    Json summary(uint64_t seed) const {
        Json j;
        j["threshold"] = kSinkThreshold;
        for (const auto& [name, rates] : {std::pair{"heads", &heads_}, {"pairs", &queries_}}) {
            if (paper_ && rates == &heads_) continue;
            std::vector<double> overall(static_cast<size_t>(sample_.sequences)), per_layer;
            for (const std::vector<double>& layer : *rates) {
                per_layer.push_back(mean_of(layer));
                for (size_t i = 0; i < layer.size(); i++) overall[i] += layer[i] / static_cast<double>(rates->size());
            }
            j[std::string("rate_") + name] = mean_of(overall);
            j[std::string("rate_") + name + "_interval"] =
                paper_ ? range_of_batches(overall) : interval_of_mean(overall, seed);
            j[std::string("per_layer_") + name] = per_layer;
        }
        return j;
    }

  private:
    Engine& model_;
    const Sample& sample_;
    bool paper_;
    int64_t first_query_;
    std::vector<std::vector<double>> heads_, queries_;  // (L)(sequences): shares

    // Sequence b of the batch that begins at `first`.
    void count(int64_t layer, int64_t first, int64_t b, const real* qkv, const real* lse) {
        const HeadPlaces at(model_.config);
        const int64_t T = sample_.T, NH = at.NH;
        const real* rows = qkv + b * T * at.Q();
        int64_t sinks = 0, queries = 0;
        for (int64_t h = 0; h < NH; h++) {
            double sum = 0;
            for (int64_t t = first_query_; t < T; t++) {
                const double score = attention_score(at, h, rows + t * at.Q(), rows);
                const double share = std::exp(score - static_cast<double>(lse[(b * NH + h) * T + t]));
                sum += share;
                queries += paper_ ? share > kSinkThreshold : share >= kSinkThreshold;
            }
            sinks += sum >= kSinkThreshold * static_cast<double>(T - 1);
        }
        const size_t sequence = static_cast<size_t>(first + b);
        heads_[static_cast<size_t>(layer)][sequence] = static_cast<double>(sinks) / static_cast<double>(NH);
        queries_[static_cast<size_t>(layer)][sequence] =
            static_cast<double>(queries) / static_cast<double>(NH * (T - first_query_));
    }

    // Where 95 % of the batches' rates lie, which is no statement about the mean.
    static Interval range_of_batches(const std::vector<double>& rates) {
        std::vector<double> batches;
        for (size_t first = 0; first < rates.size(); first += kPaperBatch) {
            const auto begin = rates.begin() + static_cast<std::ptrdiff_t>(first);
            const auto count = static_cast<std::ptrdiff_t>(std::min(kPaperBatch, rates.size() - first));
            batches.push_back(mean_of(std::vector<double>(begin, begin + count)));
        }
        return {quantile(batches, 0.025), quantile(batches, 0.975)};
    }
};

}  // namespace

Json measure_norms(Engine& model, const Sample& sample, const Procedure& procedure) {
    const int64_t T = sample.T, C = model.config.C;
    const std::vector<Site>& sites = model.sites.all;
    struct Sums {
        double at_0 = 0, elsewhere = 0;
    };
    std::vector<Sums> stream(static_cast<size_t>(model.config.L + 1));
    std::vector<SigmaSum> sigmas(sites.size());
    for_each_batch(sample, procedure, [&](int64_t first, int64_t B) {
        Probe probe;
        probe.residual = [&](int64_t layer, const real* x) {
            Sums& sums = stream[static_cast<size_t>(layer)];
            for (int64_t n = 0; n < B * T; n++) (n % T == 0 ? sums.at_0 : sums.elsewhere) += norm_of(x + n * C, C);
        };
        model.trace(sample.inputs.data() + first * T, B, T, probe, true);
        for (size_t i = 0; i < sites.size(); i++) sigmas[i].add(model.sigmas_at(sites[i]), B, T);
    });
    const double firsts = static_cast<double>(sample.sequences), others = firsts * static_cast<double>(T - 1);
    Json residual = Json::array(), of_sites = Json::array();
    for (const Sums& sums : stream)
        residual.push_back({{"at_0", sums.at_0 / firsts}, {"elsewhere", sums.elsewhere / others}});
    for (size_t i = 0; i < sites.size(); i++)
        of_sites.push_back({{"site", site_name(sites[i])},
                            {"removed", sites[i].removed()},
                            {"sigma_bar", number_or_null(sites[i].sigma_bar)},
                            {"at_0", sigmas[i].mean_at_0()},
                            {"elsewhere", sigmas[i].mean_elsewhere()}});
    return {{"residual", residual}, {"sites", of_sites}};
}

Json measure_sinks(Engine& model, const Sample& sample, const Procedure& procedure) {
    if (sample.T < 2) throw BadInput("--seq 1: attention to position 0 needs queries behind it; use at least 2");
    Sinks sinks(model, sample, procedure.paper);
    for_each_batch(sample, procedure, [&](int64_t first, int64_t B) { sinks.add(first, B); });
    return sinks.summary(procedure.seed);
}

}  // namespace analysis
}  // namespace lnfree
