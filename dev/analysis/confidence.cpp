#include "dev/analysis/confidence.h"

// GCC 12 takes AVX-512's "undefined" registers within Eigen for a mistake.
#pragma GCC diagnostic push
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <eigen3/Eigen/Eigenvalues>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cmath>
#include <utility>

#include "data/json.h"
#include "dev/analysis/loss.h"
#include "dev/cpu/operations.h"
#include "dev/run/statistics.h"

namespace lnfree {
namespace analysis {

namespace {

constexpr size_t kTopNeurons = 3;

// What eq. 11 and 12 read: w (n_inner,C), what the neurons of the last MLP write, and u (V,C), the unembedding.
struct Directions {
    const real *w, *u;
};

Directions stored_directions(const Engine& model) {
    return {model.weights().layers.back().fcproj, model.weights().head};
}

// row (C) -= its mean.
void centre(real* row, int64_t C) {
    double mean = 0;
    for (int64_t c = 0; c < C; c++) mean += static_cast<double>(row[c]) / static_cast<double>(C);
    for (int64_t c = 0; c < C; c++) row[c] = static_cast<real>(static_cast<double>(row[c]) - mean);
}

// u (V,C) as stored times ln_f's gamma, less the mean over tokens: what raises all logits alike.
std::vector<real> centred_unembedding(const Engine& model) {
    const int64_t C = model.config.C, V = model.config.V;
    const real *u = model.weights().head, *gamma = model.weights().lnf_gamma;
    std::vector<double> mean(static_cast<size_t>(C));
    for (int64_t v = 0; v < V; v++)
        for (int64_t c = 0; c < C; c++) mean[static_cast<size_t>(c)] += static_cast<double>(u[v * C + c]);
    std::vector<real> centred(static_cast<size_t>(V * C));
    for (int64_t v = 0; v < V; v++)
        for (int64_t c = 0; c < C; c++)
            centred[static_cast<size_t>(v * C + c)] = static_cast<real>(
                (static_cast<double>(u[v * C + c]) - mean[static_cast<size_t>(c)] / static_cast<double>(V)) *
                (gamma == nullptr ? 1.0 : static_cast<double>(gamma[c])));
    return centred;
}

// Directions without the one that ln_f takes out (RMSNorm: none), as TransformerLens centres them when it loads a model.
// Neurons score alike in every form of a model then.
class CentredDirections {
  public:
    explicit CentredDirections(const Engine& model) : u_(centred_unembedding(model)) {
        const int64_t C = model.config.C;
        const real* w = model.weights().layers.back().fcproj;
        w_.assign(w, w + model.config.n_inner * C);
        if (!model.config.centred) return;
        for (auto* rows : {&w_, &u_})
            for (size_t first = 0; first < rows->size(); first += static_cast<size_t>(C))
                centre(rows->data() + first, C);
    }
    Directions get() const { return {w_.data(), u_.data()}; }

  private:
    std::vector<real> w_, u_;
};

// A neuron of the last MLP with what eq. 11 and 12 make of it.
struct Neuron {
    int64_t index;
    double norm, logit_var, score;  // |w|; variance over tokens of cos(u, w); norm / logit_var
};

// products (V): of the neuron's weights w (C) and the rows of the unembedding, whose norms are u_norm (V).
Neuron neuron_of(int64_t index, const real* w, const real* products, const std::vector<double>& u_norm, int64_t C) {
    Neuron neuron{index, norm_of(w, C), 0, 0};
    double sum = 0, squares = 0;
    for (size_t v = 0; v < u_norm.size(); v++) {
        const double cosine = static_cast<double>(products[v]) / (u_norm[v] * neuron.norm);
        sum += cosine;
        squares += cosine * cosine;
    }
    const double V = static_cast<double>(u_norm.size()), mean = sum / V;
    neuron.logit_var = squares / V - mean * mean;
    neuron.score = neuron.norm / neuron.logit_var;
    return neuron;
}

// All of the last MLP.
std::vector<Neuron> confidence_neurons(const ModelConfig& config, const Directions& d) {
    const int64_t C = config.C, V = config.V, H = config.n_inner, rows = rows_at_a_time(H, V);
    const real *w = d.w, *u = d.u;
    std::vector<double> u_norm;
    for (int64_t v = 0; v < V; v++) u_norm.push_back(norm_of(u + v * C, C));
    Buffer products(rows * V);
    std::vector<Neuron> neurons(static_cast<size_t>(H));
    for (int64_t first = 0; first < H; first += rows) {
        const int64_t count = std::min(rows, H - first);
        operations().matmul(Transpose::No, Transpose::Yes, count, V, C, w + first * C, C, u, C, products.data(), V,
                            false, nullptr);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < count; i++)
            neurons[static_cast<size_t>(first + i)] =
                neuron_of(first + i, w + (first + i) * C, products.data() + i * V, u_norm, C);
    }
    return neurons;
}

// The same with the sample variance, over V - 1, of centred directions.
std::vector<Neuron> confidence_neurons_as_paper(const ModelConfig& config, const Directions& d) {
    std::vector<Neuron> neurons = confidence_neurons(config, d);
    const double V = static_cast<double>(config.V);
    for (Neuron& neuron : neurons) {
        neuron.logit_var *= V / (V - 1);
        neuron.score = neuron.norm / neuron.logit_var;
    }
    return neurons;
}

// Those with the highest scores, highest first.
std::vector<int64_t> top_neurons(std::vector<Neuron> neurons) {
    const size_t top = std::min(kTopNeurons, neurons.size());
    std::partial_sort(neurons.begin(), neurons.begin() + static_cast<std::ptrdiff_t>(top), neurons.end(),
                      [](const Neuron& a, const Neuron& b) { return a.score > b.score; });
    std::vector<int64_t> indices;
    for (size_t i = 0; i < top; i++) indices.push_back(neurons[i].index);
    return indices;
}

// Each alone, then the first two, the first three, ...
std::vector<std::vector<int64_t>> ablated_sets(const std::vector<int64_t>& top) {
    std::vector<std::vector<int64_t>> sets;
    for (const int64_t neuron : top) sets.push_back({neuron});
    for (size_t n = 2; n <= top.size(); n++)
        sets.emplace_back(top.begin(), top.begin() + static_cast<std::ptrdiff_t>(n));
    return sets;
}

// |cosine| of w (C) with each singular vector.
std::vector<double> cosines_with(const Spectrum& s, const real* w, int64_t C) {
    const double norm = norm_of(w, C);
    std::vector<double> cosines;
    for (const std::vector<double>& vector : s.vectors) {
        double product = 0;
        for (int64_t c = 0; c < C; c++) product += static_cast<double>(w[c]) * vector[static_cast<size_t>(c)];
        cosines.push_back(std::abs(product / norm));
    }
    return cosines;
}

// Quartiles of sizes, which are reordered: low, median, high.
std::vector<double> quartiles(std::vector<double>& sizes) {
    return {quantile(sizes, 0.25), quantile(sizes, 0.5), quantile(sizes, 0.75)};
}

// Mean ablation: what the predictions become when a set of neurons gives its mean over the sample at every position. Only
// the last MLP's output changes, so ln_f and the unembedding are all that is computed again.
class Ablations {
  public:
    Ablations(Engine& model, const Sample& sample, std::vector<std::vector<int64_t>> sets)
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
            for (size_t n = 0; n < whole.size(); n++) {
                changes_[s].absolute += std::abs(ablated[n].loss - whole[n].loss);
                changes_[s].losses.push_back(std::abs(ablated[n].loss - whole[n].loss));
                changes_[s].entropies.push_back(std::abs(ablated[n].entropy - whole[n].entropy));
            }
        }
    }

    Json summary() const {
        const double all = static_cast<double>(sample_.inputs.size());
        Json j = Json::array();
        for (size_t s = 0; s < sets_.size(); s++)
            j.push_back({{"neurons", sets_[s]},
                         {"loss_change", changes_[s].loss / all},
                         {"loss_change_abs", changes_[s].absolute / all},
                         {"entropy_change", changes_[s].entropy / all},
                         {"loss_change_relative", changes_[s].loss / loss_},
                         {"entropy_change_relative", changes_[s].entropy / entropy_}});
        return j;
    }

    // With the quartiles of single predictions' changes, which the paper's boxes show (Fig. 4, 8). Once, at the end.
    Json summary_as_paper() {
        Json j = summary();
        for (size_t s = 0; s < sets_.size(); s++) {
            j[s]["loss_change_abs_quartiles"] = quartiles(changes_[s].losses);
            j[s]["entropy_change_abs_quartiles"] = quartiles(changes_[s].entropies);
        }
        return j;
    }

  private:
    struct Change {
        double loss = 0, entropy = 0, absolute = 0;
        std::vector<double> losses, entropies;  // sizes, of every prediction
    };
    Engine& model_;
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
        const int64_t rows = rows_at_a_time(N, model_.config.V);
        const int32_t* targets = sample_.targets.data() + first * sample_.T;
        Buffer logits(rows * model_.config.V);
        std::vector<Prediction> all(static_cast<size_t>(N));
        for (int64_t n = 0; n < N; n += rows)
            predict_rows(model_, all.data() + n, logits.data(), targets + n, n, std::min(rows, N - n));
        return all;
    }

    static double total(const std::vector<Prediction>& all, double Prediction::*what) {
        double sum = 0;
        for (const Prediction& p : all) sum += p.*what;
        return sum;
    }
};

// Of u (V,C), from the eigenvalues of u^T u, which is (C,C) however long the vocabulary, in double precision.
Spectrum spectrum_of(const real* all, int64_t V, int64_t C) {
    const int64_t rows = 1024;
    Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(C, C);
    for (int64_t first = 0; first < V; first += rows) {
        typedef Eigen::Matrix<real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> Rows;
        const Eigen::Map<const Rows> u(all + first * C, std::min(rows, V - first), C);
        gram.selfadjointView<Eigen::Lower>().rankUpdate(u.template cast<double>().transpose());
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram);
    Spectrum s;
    for (int64_t i = C - 1; i >= 0; i--) {  // the solver's come smallest first
        s.values.push_back(std::sqrt(std::max(0.0, solver.eigenvalues()[i])));
        const auto vector = solver.eigenvectors().col(i);
        s.vectors.emplace_back(vector.begin(), vector.end());
    }
    return s;
}

// What is known of all neurons, which three are the top, and what the unembedding does with what the first of them writes.
Json describe(const ModelConfig& config, const Directions& d, const std::vector<Neuron>& neurons) {
    Json j;
    for (const auto& [key, value] :
         {std::pair{"norm", &Neuron::norm}, {"logit_var", &Neuron::logit_var}, {"cn", &Neuron::score}}) {
        j[key] = Json::array();
        for (const Neuron& neuron : neurons) j[key].push_back(neuron.*value);
    }
    const std::vector<int64_t> top = top_neurons(neurons);
    j["top"] = top;

    Spectrum of_unembedding = spectrum_of(d.u, config.V, config.C);
    const double largest = of_unembedding.values[0];
    for (double& value : of_unembedding.values) value /= largest;
    j["singular_values"] = of_unembedding.values;
    j["cosines"] = cosines_with(of_unembedding, d.w + top[0] * config.C, config.C);
    return j;
}

// Takes out each of the neurons alone, the first two, the first three.
Ablations ablate(Engine& model, const Sample& sample, const Procedure& procedure, const std::vector<int64_t>& neurons) {
    Ablations ablations(model, sample, ablated_sets(neurons));
    for_each_batch(sample, procedure, [&](int64_t first, int64_t B) { ablations.add_means(first, B); });
    for_each_batch(sample, procedure, [&](int64_t first, int64_t B) { ablations.add_changes(first, B); });
    return ablations;
}

}  // namespace

Spectrum spectrum(const Engine& model) {
    return spectrum_of(model.weights().head, model.config.V, model.config.C);
}

std::vector<int64_t> confidence_neurons_as_paper(const Engine& model) {
    return top_neurons(confidence_neurons_as_paper(model.config, CentredDirections(model).get()));
}

Json measure_confidence(Engine& model, const Sample& sample, const Procedure& procedure) {
    const Directions d = stored_directions(model);
    const std::vector<Neuron> neurons = confidence_neurons(model.config, d);
    Json j = describe(model.config, d, neurons);
    j["ablations"] = ablate(model, sample, procedure, top_neurons(neurons)).summary();
    return j;
}

Json measure_confidence_as_paper(Engine& model, const Sample& sample, const Procedure& procedure,
                                 const std::vector<int64_t>& ablated) {
    const CentredDirections d(model);
    Json j = describe(model.config, d.get(), confidence_neurons_as_paper(model.config, d.get()));
    j["ablations"] = ablate(model, sample, procedure, ablated).summary_as_paper();
    return j;
}

}  // namespace analysis
}  // namespace lnfree
