// Activation patching and its linear estimate, attribution patching, of the stream in front of every block at every
// position (2507.02559, Sec. 5.2, eq. 6 and 7, Fig. 2). Included by train_gpt2_lnfree.cpp, after the model.
//
// A prompt's corrupted partner is its neighbour in the set (0 and 1, 2 and 3, ...). f is the logit of the right answer
// minus that of the wrong one at the last position, right and wrong being the clean prompt's. With LD a mean of f over a
// set, every effect is divided by LD(clean) - LD(corrupted): 1 means that the patch brings the clean behaviour back.
#pragma once

#include "dev/analysis/sample.h"

namespace lnfree {
namespace analysis {

// Prompts of equal length T, clean; answers by their first tokens.
struct PromptSet {
    std::string name;
    int64_t T = 0;
    std::vector<std::vector<int32_t>> prompts;
    std::vector<int32_t> right, wrong;
};

struct PatchedSet {
    double clean = 0, corrupted = 0;              // LD
    int64_t solved = 0;                           // prompts with f > 0
    std::vector<double> activation, attribution;  // (L,T), normalised

    double effect() const { return clean - corrupted; }
};

// Measures one set on one model.
class Patching {
  public:
    Patching(GPT2& model, const PromptSet& set)
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
    GPT2& model_;
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

    // Eq. 6 for all positions of a layer, means over the prompts; `batch` sequences at a time, whole sets of them.
    void patch(double* effects, int64_t layer, int64_t batch, double corrupted) {
        const int64_t size = count_ * T_ * C_, positions = std::max<int64_t>(1, batch / count_);
        const real *from = corrupted_stream_.data() + layer * size, *to = clean_stream_.data() + layer * size;
        std::vector<real> patched;
        std::vector<int32_t> tokens;
        for (int64_t first = 0; first < T_; first += positions) {
            const int64_t taken = std::min(positions, T_ - first);
            patched.clear();
            tokens.clear();
            for (int64_t t = first; t < first + taken; t++) {
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
                effects[first + k] = mean_of(of_position) - corrupted;
            }
        }
    }
};

// LD(clean) - LD(corrupted) below this, in logits, is nothing that could be restored: the set is left out and counted.
constexpr double kLeastEffect = 0.1;

// All sets on one model. Effects by position are means over the sets of the length that most have; "error" (L) is a mean
// over all sets that count.
inline ordered_json measure_patching(GPT2& model, const std::vector<PromptSet>& sets, const Settings& settings) {
    const size_t L = static_cast<size_t>(model.config.L);
    ordered_json j;
    j["sets"] = ordered_json::array();
    std::vector<double> error(L);
    int64_t prompts = 0, solved = 0, counted = 0;
    ProgressBar bar(settings.label, sets.size(), stderr);
    for (const PromptSet& set : sets) {
        if (settings.pause) settings.pause();
        const PatchedSet p = Patching(model, set).measure(settings.batch, kLeastEffect);
        prompts += static_cast<int64_t>(set.prompts.size());
        solved += p.solved;
        const bool counts = !p.activation.empty();
        ordered_json entry = {{"name", set.name}, {"clean", p.clean}, {"corrupted", p.corrupted}, {"counts", counts}};
        if (counts) {
            counted++;
            entry["activation"] = ordered_json::array();
            entry["attribution"] = ordered_json::array();
            for (size_t l = 0; l < L; l++) {
                const auto row = [&](const std::vector<double>& effects) {
                    return std::vector<double>(effects.begin() + static_cast<std::ptrdiff_t>(l) * set.T,
                                               effects.begin() + static_cast<std::ptrdiff_t>(l + 1) * set.T);
                };
                entry["activation"].push_back(row(p.activation));
                entry["attribution"].push_back(row(p.attribution));
                for (int64_t t = 0; t < set.T; t++) {
                    const size_t i = l * static_cast<size_t>(set.T) + static_cast<size_t>(t);
                    error[l] += std::abs(p.attribution[i] - p.activation[i]);
                }
            }
        }
        j["sets"].push_back(entry);
        bar.update(j["sets"].size());
    }
    for (double& e : error) e /= static_cast<double>(std::max<int64_t>(1, counted));
    j["prompts"] = prompts;
    j["accuracy"] = static_cast<double>(solved) / static_cast<double>(prompts);
    j["sets_counted"] = counted;
    j["error"] = counted > 0 ? ordered_json(error) : ordered_json();
    return j;
}

}  // namespace analysis
}  // namespace lnfree
