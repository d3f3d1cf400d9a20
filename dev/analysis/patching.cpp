#include "dev/analysis/patching.h"

#include <algorithm>
#include <cmath>
#include <map>

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
        estimate([&](int64_t at, int64_t, double effect) {
            result.attribution[static_cast<size_t>(at)] += effect / static_cast<double>(count_);
        });
        patch(batch, [&](int64_t at, const std::vector<double>& f) {
            result.activation[static_cast<size_t>(at)] = mean_of(f) - result.corrupted;
        });
        for (auto* effects : {&result.activation, &result.attribution})
            for (double& effect : *effects) effect /= result.effect();
        return result;
    }

    PatchedPrompts measure_each(int64_t batch) {
        PatchedPrompts result;
        clean_ = inputs(0);
        corrupted_ = inputs(1);
        streams(clean_stream_, clean_, false);
        result.clean = differences(count_);
        streams(corrupted_stream_, corrupted_, true);
        result.corrupted = differences(count_);
        result.activation.resize(static_cast<size_t>(L_ * T_ * count_));
        result.attribution.resize(result.activation.size());
        estimate([&](int64_t at, int64_t prompt, double effect) {
            result.attribution[static_cast<size_t>(at * count_ + prompt)] += effect;
        });
        patch(batch, [&](int64_t at, const std::vector<double>& f) {
            for (size_t i = 0; i < f.size(); i++)
                result.activation[static_cast<size_t>(at * count_) + i] = f[i] - result.corrupted[i];
        });
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

    // Eq. 7: add(layer * T + position, prompt, effect) for every number in the stream; after the corrupted prompts were
    // traced and kept.
    template <typename Add>
    void estimate(const Add& add) {
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
                add(layer * T_ + i / C_ % T_, i / (T_ * C_),
                    static_cast<double>(gradient[i]) * static_cast<double>(to[i] - from[i]));
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

    // Eq. 6: take(layer * T + position, f of every prompt) where a patch changes anything.
    template <typename Take>
    void patch(int64_t batch, const Take& take) {
        for (int64_t layer = 0; layer < L_; layer++) patch(layer, batch, take);
    }

    // All positions of a layer; `batch` sequences at a time, whole sets of them.
    template <typename Take>
    void patch(int64_t layer, int64_t batch, const Take& take) {
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
                take(layer * T_ + positions[first + k], of_position);
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

PatchedPrompts patch_prompts(Engine& model, const PromptSet& set, int64_t batch) {
    return Patching(model, set).measure_each(batch);
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

// ---------------------------------------------------------------------------------------------------------------------
// As the paper's code measures

namespace {

// Normalised effects over prompts: their sums, and the sum over prompts of |attribution - activation|.
struct PromptSums {
    int64_t prompts = 0, weak = 0;  // that counted; those of them that divide by less than kLeastEffect
    std::vector<double> activation, attribution, error;  // (L,T), (L,T), (L)

    PromptSums(int64_t L, int64_t T)
        : activation(static_cast<size_t>(L * T)), attribution(activation.size()), error(static_cast<size_t>(L)) {}

    // Each prompt over its own f(clean) - f(corrupted); nothing to divide by where that is 0.
    void add(const PatchedPrompts& p) {
        const size_t count = p.clean.size(), T = activation.size() / error.size();
        for (size_t i = 0; i < count; i++) {
            const double scale = p.clean[i] - p.corrupted[i];
            if (scale == 0) continue;
            prompts++;
            weak += std::abs(scale) < kLeastEffect;
            for (size_t at = 0; at < activation.size(); at++) {
                const double act = p.activation[at * count + i] / scale, attr = p.attribution[at * count + i] / scale;
                activation[at] += act;
                attribution[at] += attr;
                error[at / T] += std::abs(attr - act);
            }
        }
    }
    void add(const PromptSums& other) {
        prompts += other.prompts;
        weak += other.weak;
        const auto sum = [](std::vector<double>& to, const std::vector<double>& from) {
            for (size_t i = 0; i < to.size(); i++) to[i] += from[i];
        };
        sum(activation, other.activation);
        sum(attribution, other.attribution);
        sum(error, other.error);
    }
    std::vector<double> mean(std::vector<double> sums) const {
        for (double& value : sums) value /= static_cast<double>(prompts);
        return sums;
    }
    // (L): of the means over prompts, which Fig. 2 shows.
    std::vector<double> error_of_means() const {
        std::vector<double> errors(error.size());
        const size_t T = activation.size() / error.size();
        for (size_t at = 0; at < activation.size(); at++)
            errors[at / T] += std::abs(attribution[at] - activation[at]) / static_cast<double>(prompts);
        return errors;
    }
};

Json entry_of(const PromptSet& set, const PatchedPrompts& p, const PromptSums& sums) {
    Json entry = {{"name", set.name},
                  {"clean", mean_of(p.clean)},
                  {"corrupted", mean_of(p.corrupted)},
                  {"counts", sums.prompts > 0},
                  {"prompts_counted", sums.prompts}};
    if (sums.prompts == 0) return entry;
    entry["activation"] = by_layer(sums.mean(sums.activation), set.T);
    entry["attribution"] = by_layer(sums.mean(sums.attribution), set.T);
    return entry;
}

// Over all lengths for what is summed over positions; for means by position, those of the length that most prompts have.
void add_errors(Json& j, const std::map<int64_t, PromptSums>& by_length, int64_t L) {
    const PromptSums* most = nullptr;
    int64_t prompts = 0, weak = 0;
    std::vector<double> error(static_cast<size_t>(L));
    for (const auto& [length, sums] : by_length) {
        if (most == nullptr || sums.prompts > most->prompts) most = &sums;
        prompts += sums.prompts;
        weak += sums.weak;
        for (size_t l = 0; l < error.size(); l++) error[l] += sums.error[l];
    }
    for (double& e : error) e /= static_cast<double>(prompts);
    j["prompts_counted"] = prompts;
    j["prompts_weak"] = weak;
    j["error"] = prompts > 0 ? Json(error) : Json();
    j["error_of_means"] = prompts > 0 ? Json(most->error_of_means()) : Json();
}

}  // namespace

Json measure_patching_as_paper(Engine& model, const std::vector<PromptSet>& sets, const Procedure& procedure) {
    const int64_t L = model.config.L;
    Json entries = Json::array();
    std::map<int64_t, PromptSums> by_length;
    int64_t prompts = 0, solved = 0;
    ProgressBar bar(procedure.label, sets.size(), stderr);
    for (const PromptSet& set : sets) {
        if (procedure.pause) procedure.pause();
        const PatchedPrompts p = patch_prompts(model, set, procedure.batch);
        PromptSums sums(L, set.T);
        sums.add(p);
        by_length.try_emplace(set.T, L, set.T).first->second.add(sums);
        entries.push_back(entry_of(set, p, sums));
        prompts += static_cast<int64_t>(p.clean.size());
        solved += std::count_if(p.clean.begin(), p.clean.end(), [](double f) { return f > 0; });
        bar.update(entries.size());
    }
    Json j;
    j["sets"] = entries;
    j["prompts"] = prompts;
    j["accuracy"] = static_cast<double>(solved) / static_cast<double>(prompts);
    add_errors(j, by_length, L);
    return j;
}

}  // namespace analysis
}  // namespace lnfree
