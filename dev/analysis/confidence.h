// Confidence neurons: those of the last MLP that write much and change no token's rank; with LayerNorm they scale all
// logits at once (2507.02559, Sec. 5.4 and App. H; Stolfo et al. 2024). Included by train_gpt2_lnfree.cpp, after the model.
#pragma once

// GCC 12 takes AVX-512's "undefined" registers within Eigen for a mistake.
#pragma GCC diagnostic push
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <eigen3/Eigen/Eigenvalues>
#pragma GCC diagnostic pop

#include "dev/analysis/loss.h"
#include "dev/analysis/sample.h"

namespace lnfree {
namespace analysis {

constexpr size_t kTopNeurons = 3;

// A neuron of the last MLP with what eq. 11 and 12 make of it.
struct Neuron {
    int64_t index;
    double norm, logit_var, score;  // |w|; variance over tokens of cos(u, w); norm / logit_var
};

// w: rows of the last c_proj (n_inner,C); u: rows of the unembedding as it is stored (V,C).
inline std::vector<Neuron> confidence_neurons(const GPT2& model) {
    const int64_t C = model.config.C, V = model.config.V, H = model.config.n_inner;
    const real *w = model.weights().layers.back().fcproj, *u = model.weights().head;
    std::vector<double> u_norm(static_cast<size_t>(V));
    for (int64_t v = 0; v < V; v++) u_norm[static_cast<size_t>(v)] = norm_of(u + v * C, C);
    const int64_t rows = std::min(H, classifier_rows(H, V));
    Buffer products(rows * V);
    std::vector<Neuron> neurons(static_cast<size_t>(H));
    for (int64_t first = 0; first < H; first += rows) {
        const int64_t count = std::min(rows, H - first);
        matmul(Transpose::No, Transpose::Yes, count, V, C, w + first * C, C, u, C, products.data(), V, false);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < count; i++) {
            Neuron& neuron = neurons[static_cast<size_t>(first + i)];
            neuron.index = first + i;
            neuron.norm = norm_of(w + (first + i) * C, C);
            double sum = 0, squares = 0;
            for (int64_t v = 0; v < V; v++) {
                const double cosine =
                    static_cast<double>(products.data()[i * V + v]) / (u_norm[static_cast<size_t>(v)] * neuron.norm);
                sum += cosine;
                squares += cosine * cosine;
            }
            const double mean = sum / static_cast<double>(V);
            neuron.logit_var = squares / static_cast<double>(V) - mean * mean;
            neuron.score = neuron.norm / neuron.logit_var;
        }
    }
    return neurons;
}

// The unembedding's singular values, largest first, and its right singular vectors as columns in that order: from the
// eigenvalues of u^T u (C,C), which is C x C however long the vocabulary, in double precision.
struct Spectrum {
    Eigen::VectorXd values;
    Eigen::MatrixXd vectors;
};

inline Spectrum spectrum(const GPT2& model) {
    const int64_t C = model.config.C, V = model.config.V, rows = 1024;
    Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(C, C);
    for (int64_t first = 0; first < V; first += rows) {
        typedef Eigen::Matrix<real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> Rows;
        const Eigen::Map<const Rows> u(model.weights().head + first * C, std::min(rows, V - first), C);
        gram.selfadjointView<Eigen::Lower>().rankUpdate(u.template cast<double>().transpose());
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram);
    return {solver.eigenvalues().reverse().cwiseMax(0).cwiseSqrt(), solver.eigenvectors().rowwise().reverse()};
}

// Mean ablation: what the predictions become when a set of neurons gives its mean over the sample at every position. Only
// the last MLP's output changes, so ln_f and the unembedding are all that is computed again.
class Ablations {
  public:
    Ablations(GPT2& model, const Sample& sample, std::vector<std::vector<int64_t>> sets)
        : model_(model), sample_(sample), sets_(std::move(sets)), changes_(sets_.size()) {
        for (const std::vector<int64_t>& set : sets_) neurons_.insert(neurons_.end(), set.begin(), set.end());
        std::sort(neurons_.begin(), neurons_.end());
        neurons_.erase(std::unique(neurons_.begin(), neurons_.end()), neurons_.end());
        means_.resize(neurons_.size());
    }

    // First over the whole sample, then add_changes likewise.
    void add_means(int64_t first, int64_t B) {
        read_activations(first, B);
        for (size_t i = 0; i < neurons_.size(); i++)
            means_[i] += mean_of(activations_[i]) * static_cast<double>(B) / static_cast<double>(sample_.sequences);
    }

    void add_changes(int64_t first, int64_t B) {
        read_activations(first, B);
        const int64_t C = model_.config.C, N = B * sample_.T;
        const int32_t* inputs = sample_.inputs.data() + first * sample_.T;
        const std::vector<Prediction> whole = predictions(first, N);
        loss_ += total(whole, &Prediction::loss);
        entropy_ += total(whole, &Prediction::entropy);
        const std::vector<real> stream(model_.final_residual(), model_.final_residual() + N * C);
        for (size_t s = 0; s < sets_.size(); s++) {
            std::vector<real> without = stream;
            for (const int64_t neuron : sets_[s]) take_out(without, neuron, N);
            model_.trace_from(model_.config.L, without.data(), inputs, B, sample_.T);
            const std::vector<Prediction> ablated = predictions(first, N);
            changes_[s].loss += total(ablated, &Prediction::loss) - total(whole, &Prediction::loss);
            changes_[s].entropy += total(ablated, &Prediction::entropy) - total(whole, &Prediction::entropy);
            for (size_t n = 0; n < whole.size(); n++) changes_[s].absolute += std::abs(ablated[n].loss - whole[n].loss);
        }
    }

    ordered_json summary() const {
        const double all = static_cast<double>(sample_.inputs.size());
        ordered_json j = ordered_json::array();
        for (size_t s = 0; s < sets_.size(); s++)
            j.push_back({{"neurons", sets_[s]},
                         {"loss_change", changes_[s].loss / all},
                         {"loss_change_abs", changes_[s].absolute / all},
                         {"entropy_change", changes_[s].entropy / all},
                         {"loss_change_relative", changes_[s].loss / loss_},
                         {"entropy_change_relative", changes_[s].entropy / entropy_}});
        return j;
    }

  private:
    struct Change {
        double loss = 0, entropy = 0, absolute = 0;
    };
    GPT2& model_;
    const Sample& sample_;
    std::vector<std::vector<int64_t>> sets_;
    std::vector<Change> changes_;
    std::vector<int64_t> neurons_;                  // that any set names
    std::vector<double> means_;                     // of their activations
    std::vector<std::vector<double>> activations_;  // of the last batch, (neurons)(N)
    double loss_ = 0, entropy_ = 0;

    void read_activations(int64_t first, int64_t B) {
        const int64_t N = B * sample_.T, H = model_.config.n_inner;
        activations_.assign(neurons_.size(), std::vector<double>(static_cast<size_t>(N)));
        Probe probe;
        probe.mlp = [&](int64_t layer, const real* hidden, const real*) {
            if (layer + 1 < model_.config.L) return;
            for (size_t i = 0; i < neurons_.size(); i++)
                for (int64_t n = 0; n < N; n++)
                    activations_[i][static_cast<size_t>(n)] = static_cast<double>(hidden[n * H + neurons_[i]]);
        };
        model_.trace(sample_.inputs.data() + first * sample_.T, B, sample_.T, probe);
    }

    // stream (N,C) += (mean - activation) * w
    void take_out(std::vector<real>& stream, int64_t neuron, int64_t N) {
        const int64_t C = model_.config.C;
        const size_t i =
            static_cast<size_t>(std::lower_bound(neurons_.begin(), neurons_.end(), neuron) - neurons_.begin());
        const real* w = model_.weights().layers.back().fcproj + neuron * C;
        for (int64_t n = 0; n < N; n++) {
            const real change = static_cast<real>(means_[i] - activations_[i][static_cast<size_t>(n)]);
            for (int64_t c = 0; c < C; c++) stream[static_cast<size_t>(n * C + c)] += change * w[c];
        }
    }

    // Of the batch that was traced last.
    std::vector<Prediction> predictions(int64_t first, int64_t N) {
        const int64_t V = model_.config.V, rows_at_a_time = classifier_rows(N, V);
        const int32_t* targets = sample_.targets.data() + first * sample_.T;
        Buffer logits(rows_at_a_time * V);
        std::vector<Prediction> all(static_cast<size_t>(N));
        for (int64_t n = 0; n < N; n += rows_at_a_time) {
            const int64_t rows = std::min(rows_at_a_time, N - n);
            model_.final_logits(logits.data(), n, rows);
#pragma omp parallel for schedule(static)
            for (int64_t r = 0; r < rows; r++)
                all[static_cast<size_t>(n + r)] = predict(logits.data() + r * V, targets[n + r], V);
        }
        return all;
    }

    static double total(const std::vector<Prediction>& all, double Prediction::*what) {
        double sum = 0;
        for (const Prediction& p : all) sum += p.*what;
        return sum;
    }
};

// Neurons, the unembedding's spectrum, and ablations of the top neurons, singly and together.
inline ordered_json measure_confidence(GPT2& model, const Sample& sample, const Settings& settings) {
    std::vector<Neuron> neurons = confidence_neurons(model);
    ordered_json j;
    for (const auto& [key, value] :
         {std::pair{"norm", &Neuron::norm}, {"logit_var", &Neuron::logit_var}, {"cn", &Neuron::score}}) {
        j[key] = ordered_json::array();
        for (const Neuron& neuron : neurons) j[key].push_back(neuron.*value);
    }
    const size_t top = std::min(kTopNeurons, neurons.size());
    std::partial_sort(neurons.begin(), neurons.begin() + static_cast<std::ptrdiff_t>(top), neurons.end(),
                      [](const Neuron& a, const Neuron& b) { return a.score > b.score; });
    neurons.resize(top);
    std::vector<int64_t> named;
    std::vector<std::vector<int64_t>> singles, together;
    for (const Neuron& neuron : neurons) {
        named.push_back(neuron.index);
        singles.push_back({neuron.index});
        if (named.size() > 1) together.push_back(named);
    }
    j["top"] = named;

    const Spectrum of_unembedding = spectrum(model);
    const Eigen::VectorXd values = of_unembedding.values / of_unembedding.values[0];
    j["singular_values"] = std::vector<double>(values.begin(), values.end());
    typedef Eigen::Matrix<real, Eigen::Dynamic, 1> Row;
    const Eigen::VectorXd w =
        Eigen::Map<const Row>(model.weights().layers.back().fcproj + named[0] * model.config.C, model.config.C)
            .template cast<double>()
            .normalized();
    const Eigen::VectorXd cosines = (of_unembedding.vectors.transpose() * w).cwiseAbs();
    j["cosines"] = std::vector<double>(cosines.begin(), cosines.end());

    singles.insert(singles.end(), together.begin(), together.end());
    Ablations ablations(model, sample, singles);
    for_each_batch(sample, settings, [&](int64_t first, int64_t B) { ablations.add_means(first, B); });
    for_each_batch(sample, settings, [&](int64_t first, int64_t B) { ablations.add_changes(first, B); });
    j["ablations"] = ablations.summary();
    return j;
}

}  // namespace analysis
}  // namespace lnfree
