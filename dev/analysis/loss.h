// What models predict on the same text: loss, entropy, calibration, and how far two models' predictions are apart
// (2507.02559, Sec. 4 and App. E). Included by train_gpt2_lnfree.cpp, after the model.
#pragma once

#include "dev/analysis/sample.h"

namespace lnfree {
namespace analysis {

constexpr double kOverconfident = 50;  // nats; App. E.1 lists the tokens above
constexpr int kCalibrationBins = 10;

// One prediction.
struct Prediction {
    double loss = 0, entropy = 0;
    double confidence = 0;  // probability of the likeliest token
    bool right = false;     // it is the target
};

// Turns a row of logits (V) into log-probabilities and says what it predicts.
inline Prediction predict(real* logits, int32_t target, int64_t V) {
    const real largest = largest_of(logits, V);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < V; v++) sum += static_cast<double>(fast_exp(logits[v] - largest));
    const double log_sum = std::log(sum);
    Prediction p;
    p.confidence = 1 / sum;
    p.right = logits[target] == largest;
    p.loss = log_sum + static_cast<double>(largest - logits[target]);
    double entropy = 0;
    const real shift = largest + static_cast<real>(log_sum);
#pragma omp simd reduction(+ : entropy)
    for (int64_t v = 0; v < V; v++) {
        logits[v] -= shift;
        entropy -= static_cast<double>(fast_exp(logits[v]) * logits[v]);
    }
    p.entropy = entropy;
    return p;
}

// Jensen-Shannon divergence, in nats, of two rows of log-probabilities (V):
//     (KL(p || m) + KL(q || m)) / 2   with   m = (p + q) / 2
inline double jensen_shannon(const real* log_p, const real* log_q, int64_t V) {
    double sum = 0;
    for (int64_t v = 0; v < V; v++) {
        const real p = fast_exp(log_p[v]), q = fast_exp(log_q[v]);
        if (p + q <= 0) continue;
        const real log_m = std::log((p + q) / 2);
        sum += static_cast<double>(p * (log_p[v] - log_m) + q * (log_q[v] - log_m));
    }
    return sum / 2;
}

// A token that a model was sure would not come.
struct Surprise {
    int64_t sequence, position;
    double loss, residual_norm;
};

// What is collected of one model.
struct Predictions {
    std::vector<Prediction> all;  // (sequences,T)
    double norm_sum = 0;          // of the stream in front of ln_f
    std::vector<Surprise> surprises;
};

inline double norm_of(const real* x, int64_t n) {
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return std::sqrt(squares);
}

inline void note_norms(Predictions& p, const GPT2& model, int64_t first, int64_t rows, int64_t T) {
    const int64_t C = model.config.C;
    for (int64_t n = 0; n < rows; n++) {
        const double norm = norm_of(model.final_residual() + n * C, C);
        p.norm_sum += norm;
        const double loss = p.all[static_cast<size_t>(first + n)].loss;
        if (!(loss <= kOverconfident)) p.surprises.push_back({(first + n) / T, (first + n) % T, loss, norm});
    }
}

// Expected calibration error: how far confidence and accuracy are apart, over bins of equal width in confidence.
inline double calibration_error(const std::vector<Prediction>& all) {
    double confidence[kCalibrationBins] = {}, right[kCalibrationBins] = {};
    for (const Prediction& p : all) {
        const int bin =
            std::max(0, std::min(kCalibrationBins, static_cast<int>(std::ceil(p.confidence * kCalibrationBins))) - 1);
        confidence[bin] += p.confidence;
        right[bin] += p.right;
    }
    double error = 0;
    for (int bin = 0; bin < kCalibrationBins; bin++) error += std::abs(right[bin] - confidence[bin]);
    return error / static_cast<double>(all.size());
}

inline ordered_json loss_summary(const Predictions& p, const Sample& sample, uint64_t seed) {
    const size_t T = static_cast<size_t>(sample.T), sequences = static_cast<size_t>(sample.sequences);
    std::vector<double> sorted, loss(sequences), entropy(sequences), per_position(T);
    for (size_t i = 0; i < p.all.size(); i++) {
        sorted.push_back(p.all[i].loss);
        loss[i / T] += p.all[i].loss / static_cast<double>(T);
        entropy[i / T] += p.all[i].entropy / static_cast<double>(T);
        per_position[i % T] += p.all[i].loss / static_cast<double>(sequences);
    }
    std::sort(sorted.begin(), sorted.end());
    const auto range = [&](double share) {
        return ordered_json{quantile(sorted, (1 - share) / 2), quantile(sorted, (1 + share) / 2)};
    };
    ordered_json j;
    j["loss"] = mean_of(loss);
    j["loss_interval"] = interval_of_mean(loss, seed);
    j["median"] = quantile(sorted, 0.5);
    j["range_50"] = range(0.5);
    j["range_95"] = range(0.95);
    j["range_99_9"] = range(0.999);
    j["entropy"] = mean_of(entropy);
    j["entropy_interval"] = interval_of_mean(entropy, seed);
    j["ece"] = calibration_error(p.all);
    j["final_norm"] = p.norm_sum / static_cast<double>(p.all.size());
    j["per_position"] = per_position;
    j["over_50"] = ordered_json::array();
    for (const Surprise& s : p.surprises) {
        const int32_t* inputs = sample.inputs.data() + s.sequence * sample.T;
        j["over_50"].push_back({{"window", sample.windows[static_cast<size_t>(s.sequence)]},
                                {"position", s.position},
                                {"token", sample.targets[static_cast<size_t>(s.sequence * sample.T + s.position)]},
                                {"loss", s.loss},
                                {"residual_norm", s.residual_norm},
                                {"context", std::vector<int32_t>(inputs + std::max<int64_t>(0, s.position - 15),
                                                                 inputs + s.position + 1)}});
    }
    return j;
}

// All models (at least one, of one vocabulary) on the same sample: {"models": [...], "divergences": [{"a", "b", "js"}]}, a
// and b by their places among the models.
inline ordered_json measure_loss(const std::vector<GPT2*>& models, const Sample& sample, const Settings& settings) {
    const int64_t V = models[0]->config.V, T = sample.T;
    std::vector<Predictions> predictions(models.size());
    for (Predictions& p : predictions) p.all.resize(sample.inputs.size());
    std::vector<double> divergence(models.size() * models.size());
    const int64_t rows_at_a_time = classifier_rows(settings.batch * T, V);
    std::vector<Buffer> logits(models.size());
    for (Buffer& rows : logits) rows.allocate(rows_at_a_time * V);
    std::vector<double> apart(static_cast<size_t>(rows_at_a_time));
    for_each_batch(sample, settings, [&](int64_t first, int64_t B) {
        const int32_t *inputs = sample.inputs.data() + first * T, *targets = sample.targets.data() + first * T;
        for (GPT2* model : models) model->trace(inputs, B, T, {});
        for (int64_t n = 0; n < B * T; n += rows_at_a_time) {
            const int64_t rows = std::min(rows_at_a_time, B * T - n);
            for (size_t m = 0; m < models.size(); m++) {
                real* z = logits[m].data();
                Prediction* out = predictions[m].all.data() + first * T + n;
                models[m]->final_logits(z, n, rows);
#pragma omp parallel for schedule(static)
                for (int64_t r = 0; r < rows; r++) out[r] = predict(z + r * V, targets[n + r], V);
            }
            for (size_t a = 0; a < models.size(); a++)
                for (size_t b = a + 1; b < models.size(); b++) {
                    const real *p = logits[a].data(), *q = logits[b].data();
#pragma omp parallel for schedule(static)
                    for (int64_t r = 0; r < rows; r++)
                        apart[static_cast<size_t>(r)] = jensen_shannon(p + r * V, q + r * V, V);
                    for (int64_t r = 0; r < rows; r++)
                        divergence[a * models.size() + b] += apart[static_cast<size_t>(r)];
                }
        }
        for (size_t m = 0; m < models.size(); m++) note_norms(predictions[m], *models[m], first * T, B * T, T);
    });
    ordered_json j;
    j["models"] = ordered_json::array();
    for (const Predictions& p : predictions) j["models"].push_back(loss_summary(p, sample, settings.seed));
    j["divergences"] = ordered_json::array();
    for (size_t a = 0; a < models.size(); a++)
        for (size_t b = a + 1; b < models.size(); b++)
            j["divergences"].push_back(
                {{"a", a},
                 {"b", b},
                 {"js", divergence[a * models.size() + b] / static_cast<double>(sample.inputs.size())}});
    return j;
}

}  // namespace analysis
}  // namespace lnfree
