#include "dev/analysis/patching.h"

#include <algorithm>
#include <cmath>

#include "data/console.h"
#include "data/json.h"
#include "dev/run/statistics.h"

namespace lnfree {
namespace analysis {

namespace {

// LD(clean) - LD(corrupted) below this, in logits, is nothing that could be restored: the set is left out and counted.
constexpr double kLeastEffect = 0.1;

// Measures one set on one model.
class Patching {
  public:
    Patching(Engine& model, const PromptSet& set)
        : model_(model),
          set_(set),
          L_(model.config.L),
          T_(set.T),
          C_(model.config.C),
          count_(static_cast<int64_t>(set.prompts.size())) {}

    // `batch` sequences at a time. Below `least_effect` there is nothing to bring back, and no effects are measured.
    PatchedSet measure(int64_t batch, double least_effect) {
        PatchedSet result;
        clean_ = inputs(0);
        corrupted_ = inputs(1);
        streams(clean_stream_, clean_, false);
        for (const double f : differences(count_)) {
            result.clean += f / static_cast<double>(count_);
            result.solved += f > 0;
        }
        streams(corrupted_stream_, corrupted_, true);
        result.corrupted = mean_of(differences(count_));
        if (result.effect() < least_effect) return result;
        result.activation.resize(static_cast<size_t>(L_ * T_));
        result.attribution.resize(result.activation.size());
        estimate(result.attribution);
        for (int64_t layer = 0; layer < L_; layer++)
            patch(result.activation.data() + layer * T_, layer, batch, result.corrupted);
        for (auto* effects : {&result.activation, &result.attribution})
            for (double& effect : *effects) effect /= result.effect();
        return result;
    }

  private:
    Engine& model_;
    const PromptSet& set_;
    int64_t L_, T_, C_, count_;
    std::vector<int32_t> clean_, corrupted_;             // (count,T)
    std::vector<real> clean_stream_, corrupted_stream_;  // (L,count,T,C)

    // All prompts, or with `partner` 1 everybody's neighbour.
    std::vector<int32_t> inputs(size_t partner) const {
        std::vector<int32_t> all;
        for (size_t i = 0; i < set_.prompts.size(); i++)
            all.insert(all.end(), set_.prompts[i ^ partner].begin(), set_.prompts[i ^ partner].end());
        return all;
    }

    void streams(std::vector<real>& stream, const std::vector<int32_t>& tokens, bool keep) {
        const int64_t size = count_ * T_ * C_;
        stream.resize(static_cast<size_t>(L_ * size));
        Probe probe;
        probe.residual = [&](int64_t layer, const real* x) {
            if (layer < L_) std::copy(x, x + size, stream.data() + layer * size);
        };
        model_.trace(tokens.data(), count_, T_, probe, keep);
    }

    // f of the pass that was traced last: `rows` prompts, the set's over and over. Two logits of each, not all V.
    std::vector<double> differences(int64_t rows) {
        const Weights& w = model_.weights();
        std::vector<double> all;
        for (int64_t i = 0; i < rows; i++) {
            const size_t prompt = static_cast<size_t>(i % count_);
            const int64_t right = set_.right[prompt], wrong = set_.wrong[prompt];
            const real* x = model_.final_normed() + (i * T_ + T_ - 1) * C_;
            double f = w.head_bias == nullptr ? 0 : static_cast<double>(w.head_bias[right] - w.head_bias[wrong]);
            for (int64_t c = 0; c < C_; c++)
                f += static_cast<double>(x[c]) * static_cast<double>(w.head[right * C_ + c] - w.head[wrong * C_ + c]);
            all.push_back(f);
        }
        return all;
    }

    // Eq. 7, means over the prompts; after the corrupted prompts were traced and kept.
    void estimate(std::vector<double>& effects) {
        const int64_t NC = count_ * T_ * C_;
        std::vector<real> dnormed(static_cast<size_t>(NC));
        const real* u = model_.weights().head;
        for (int64_t i = 0; i < count_; i++)
            for (int64_t c = 0; c < C_; c++)
                dnormed[static_cast<size_t>((i * T_ + T_ - 1) * C_ + c)] =
                    u[set_.right[static_cast<size_t>(i)] * C_ + c] - u[set_.wrong[static_cast<size_t>(i)] * C_ + c];
        model_.stream_gradients(dnormed.data(), corrupted_.data(), [&](int64_t layer, const real* gradient) {
            const real *from = corrupted_stream_.data() + layer * NC, *to = clean_stream_.data() + layer * NC;
            for (int64_t i = 0; i < NC; i++)
                effects[static_cast<size_t>(layer * T_ + i / C_ % T_)] += static_cast<double>(gradient[i]) *
                                                                          static_cast<double>(to[i] - from[i]) /
                                                                          static_cast<double>(count_);
        });
    }

    // Positions of two streams (count,T,C) that differ in any prompt: in front of the first name they are the same, and
    // patching would change nothing.
    std::vector<int64_t> positions_apart(const real* a, const real* b) const {
        std::vector<int64_t> apart;
        for (int64_t t = 0; t < T_; t++) {
            bool same = true;
            for (int64_t i = 0; i < count_ && same; i++) {
                const int64_t at = (i * T_ + t) * C_;
                same = std::equal(a + at, a + at + C_, b + at);
            }
            if (!same) apart.push_back(t);
        }
        return apart;
    }

    // Eq. 6 for all positions of a layer, means over the prompts; `batch` sequences at a time, whole sets of them.
    void patch(double* effects, int64_t layer, int64_t batch, double corrupted) {
        const int64_t size = count_ * T_ * C_, at_a_time = std::max<int64_t>(1, batch / count_);
        const real *from = corrupted_stream_.data() + layer * size, *to = clean_stream_.data() + layer * size;
        const std::vector<int64_t> positions = positions_apart(from, to);
        const auto all = static_cast<int64_t>(positions.size());
        std::vector<real> patched;
        std::vector<int32_t> tokens;
        for (int64_t first = 0; first < all; first += at_a_time) {
            const int64_t taken = std::min(at_a_time, all - first);
            patched.clear();
            tokens.clear();
            for (int64_t k = first; k < first + taken; k++) {
                const int64_t t = positions[k];
                patched.insert(patched.end(), from, from + size);
                tokens.insert(tokens.end(), corrupted_.begin(), corrupted_.end());
                for (int64_t i = 0; i < count_; i++)
                    std::copy(to + (i * T_ + t) * C_, to + (i * T_ + t + 1) * C_,
                              patched.end() - size + (i * T_ + t) * C_);
            }
            model_.trace_from(layer, patched.data(), tokens.data(), taken * count_, T_);
            const std::vector<double> f = differences(taken * count_);
            for (int64_t k = 0; k < taken; k++) {
                const std::vector<double> of_position(f.begin() + k * count_, f.begin() + (k + 1) * count_);
                effects[positions[first + k]] = mean_of(of_position) - corrupted;
            }
        }
    }
};

// effects (L,T) as L lists.
std::vector<std::vector<double>> by_layer(const std::vector<double>& effects, int64_t T) {
    std::vector<std::vector<double>> rows;
    for (auto row = effects.begin(); row != effects.end(); row += T) rows.emplace_back(row, row + T);
    return rows;
}

// Adds |attribution - activation|, summed over positions, to error (L).
void add_errors(std::vector<double>& error, const PatchedSet& p, int64_t T) {
    for (size_t i = 0; i < p.activation.size(); i++)
        error[i / static_cast<size_t>(T)] += std::abs(p.attribution[i] - p.activation[i]);
}

}  // namespace

PatchedSet patch_set(Engine& model, const PromptSet& set, int64_t batch, double least_effect) {
    return Patching(model, set).measure(batch, least_effect);
}

Json measure_patching(Engine& model, const std::vector<PromptSet>& sets, const Procedure& procedure) {
    Json entries = Json::array();
    std::vector<double> error(static_cast<size_t>(model.config.L));
    int64_t prompts = 0, solved = 0, counted = 0;
    ProgressBar bar(procedure.label, sets.size(), stderr);
    for (const PromptSet& set : sets) {
        if (procedure.pause) procedure.pause();
        const PatchedSet p = patch_set(model, set, procedure.batch, kLeastEffect);
        const bool counts = !p.activation.empty();
        prompts += static_cast<int64_t>(set.prompts.size());
        solved += p.solved;
        counted += counts;
        Json entry = {{"name", set.name}, {"clean", p.clean}, {"corrupted", p.corrupted}, {"counts", counts}};
        if (counts) {
            entry["activation"] = by_layer(p.activation, set.T);
            entry["attribution"] = by_layer(p.attribution, set.T);
            add_errors(error, p, set.T);
        }
        entries.push_back(entry);
        bar.update(entries.size());
    }
    for (double& e : error) e /= static_cast<double>(std::max<int64_t>(1, counted));
    Json j;
    j["sets"] = entries;
    j["prompts"] = prompts;
    j["accuracy"] = static_cast<double>(solved) / static_cast<double>(prompts);
    j["sets_counted"] = counted;
    j["error"] = counted > 0 ? Json(error) : Json();
    return j;
}

}  // namespace analysis
}  // namespace lnfree
