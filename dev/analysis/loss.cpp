#include "dev/analysis/loss.h"

#include <algorithm>
#include <cmath>

#include "data/json.h"
#include "dev/cpu/vector_math.h"
#include "dev/processes.h"
#include "dev/run/evaluate.h"
#include "dev/run/statistics.h"

namespace lnfree {
namespace analysis {

namespace {

constexpr double kOverconfident = 50;  // nats; App. E.1 lists the tokens above
constexpr int kCalibrationBins = 10;

// Turns a row of logits (V) into log-probabilities and says what it predicts.
Prediction predict(real* logits, int32_t target, int64_t V) {
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
double jensen_shannon(const real* log_p, const real* log_q, int64_t V) {
    double sum = 0;
    for (int64_t v = 0; v < V; v++) {
        const real p = fast_exp(log_p[v]), q = fast_exp(log_q[v]);
        if (p + q <= 0) continue;
        const real log_m = std::log((p + q) / 2);
        sum += static_cast<double>(p * (log_p[v] - log_m) + q * (log_q[v] - log_m));
    }
    return sum / 2;
}

// Summed over rows; in the order of the rows, whatever the number of threads.
double summed_divergence(const real* log_p, const real* log_q, int64_t rows, int64_t V) {
    std::vector<double> apart(static_cast<size_t>(rows));
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) apart[static_cast<size_t>(r)] = jensen_shannon(log_p + r * V, log_q + r * V, V);
    double sum = 0;
    for (const double d : apart) sum += d;
    return sum;
}

// A token that a model was sure would not come.
struct Surprise {
    int64_t sequence, position;
    double loss, residual_norm;
};

std::vector<Surprise> surprises_among(const std::vector<Prediction>& all, int64_t T) {
    std::vector<Surprise> surprises;
    for (size_t i = 0; i < all.size(); i++) {
        const auto n = static_cast<int64_t>(i);
        if (!(all[i].loss <= kOverconfident)) surprises.push_back({n / T, n % T, all[i].loss, all[i].norm});
    }
    return surprises;
}

// Expected calibration error: how far confidence and accuracy are apart, over bins of equal width in confidence.
double calibration_error(const std::vector<Prediction>& all) {
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

Json surprises_json(const std::vector<Surprise>& surprises, const Sample& sample) {
    Json list = Json::array();
    for (const Surprise& s : surprises) {
        const int32_t* inputs = sample.inputs.data() + s.sequence * sample.T;
        list.push_back({{"window", sample.windows[static_cast<size_t>(s.sequence)]},
                        {"position", s.position},
                        {"token", sample.targets[static_cast<size_t>(s.sequence * sample.T + s.position)]},
                        {"loss", s.loss},
                        {"residual_norm", s.residual_norm},
                        {"context", std::vector<int32_t>(inputs + std::max<int64_t>(0, s.position - 15),
                                                         inputs + s.position + 1)}});
    }
    return list;
}

// all: (sequences,T)
Json loss_summary(const std::vector<Prediction>& all, const Sample& sample, uint64_t seed) {
    const size_t T = static_cast<size_t>(sample.T), sequences = static_cast<size_t>(sample.sequences);
    std::vector<double> losses, loss(sequences), entropy(sequences), per_position(T);
    double norm_sum = 0;
    for (size_t i = 0; i < all.size(); i++) {
        losses.push_back(all[i].loss);
        loss[i / T] += all[i].loss / static_cast<double>(T);
        entropy[i / T] += all[i].entropy / static_cast<double>(T);
        per_position[i % T] += all[i].loss / static_cast<double>(sequences);
        norm_sum += all[i].norm;
    }
    const auto range = [&](double share) {
        return Interval{quantile(losses, (1 - share) / 2), quantile(losses, (1 + share) / 2)};
    };
    Json j;
    j["loss"] = mean_of(loss);
    j["loss_interval"] = interval_of_mean(loss, seed);
    j["median"] = quantile(losses, 0.5);
    j["range_50"] = range(0.5);
    j["range_95"] = range(0.95);
    j["range_99_9"] = range(0.999);
    j["entropy"] = mean_of(entropy);
    j["entropy_interval"] = interval_of_mean(entropy, seed);
    j["ece"] = calibration_error(all);
    j["final_norm"] = norm_sum / static_cast<double>(all.size());
    j["per_position"] = per_position;
    j["over_50"] = surprises_json(surprises_among(all, sample.T), sample);
    return j;
}

// Several models on one sample.
class Losses {
  public:
    Losses(const std::vector<Engine*>& models, const Sample& sample, int64_t batch)
        : models_(models),
          sample_(sample),
          V_(models[0]->config.V),
          rows_(rows_at_a_time(batch * sample.T, V_)),
          batch_(batch),
          batches_((sample.sequences + batch - 1) / batch),
          chunks_((batch * sample.T + rows_ - 1) / rows_),
          pairs_(static_cast<int64_t>(models.size() * (models.size() - 1) / 2)),
          predictions_(models.size()),
          divergence_(static_cast<size_t>(batches_ * chunks_ * pairs_)),
          log_probabilities_(models.size()) {
        for (std::vector<Prediction>& p : predictions_) p.resize(sample.inputs.size());
        for (Buffer& rows : log_probabilities_) rows.allocate(rows_ * V_);
    }

    // Sequences [first, first + B), if they are this process's.
    void add(int64_t first, int64_t B) {
        if (!processes().share(batches_).holds(first / batch_)) return;
        const int64_t T = sample_.T, N = B * T;
        for (Engine* model : models_) model->trace(sample_.inputs.data() + first * T, B, T, {});
        for (int64_t n = 0; n < N; n += rows_) add_rows(first * T, n, std::min(rows_, N - n));
        for (size_t m = 0; m < models_.size(); m++) note_norms(predictions_[m].data() + first * T, *models_[m], N);
    }

    // What the other processes found. Collective.
    void gather() {
        std::vector<int64_t> positions, chunks;
        for (int r = 0; r < processes().size(); r++) {
            const Range share = share_of(batches_, r, processes().size());
            const auto sequence = [&](int64_t b) { return std::min(sample_.sequences, b * batch_); };
            static_assert(sizeof(Prediction) % 8 == 0);
            positions.push_back((sequence(share.last) - sequence(share.first)) * sample_.T *
                                static_cast<int64_t>(sizeof(Prediction) / 8));
            chunks.push_back(share.size() * chunks_ * pairs_);
        }
        for (std::vector<Prediction>& p : predictions_) processes().all_gather(p.data(), 8, positions);
        processes().all_gather(divergence_.data(), 8, chunks);
    }

    Json summary(uint64_t seed) const {
        Json models = Json::array(), divergences = Json::array();
        for (const std::vector<Prediction>& p : predictions_) models.push_back(loss_summary(p, sample_, seed));
        const double predictions = static_cast<double>(sample_.inputs.size());
        size_t pair = 0;
        for (size_t a = 0; a < models_.size(); a++)
            for (size_t b = a + 1; b < models_.size(); b++, pair++) {
                double sum = 0;
                for (size_t i = pair; i < divergence_.size(); i += static_cast<size_t>(pairs_)) sum += divergence_[i];
                divergences.push_back({{"a", a}, {"b", b}, {"js", sum / predictions}});
            }
        return {{"models", models}, {"divergences", divergences}};
    }

  private:
    const std::vector<Engine*>& models_;
    const Sample& sample_;
    int64_t V_, rows_;                  // rows of logits at a time
    int64_t batch_, batches_, chunks_;  // chunks of so many rows in a batch
    int64_t pairs_;                     // of models
    std::vector<std::vector<Prediction>> predictions_;
    std::vector<double> divergence_;         // sums, (batches,chunks,pairs)
    std::vector<Buffer> log_probabilities_;  // (rows,V) of every model

    // Positions n .. n + rows - 1 of the batch that begins at position `start` of the sample.
    void add_rows(int64_t start, int64_t n, int64_t rows) {
        const size_t M = models_.size();
        for (size_t m = 0; m < M; m++)
            predict_rows(*models_[m], predictions_[m].data() + start + n, log_probabilities_[m].data(),
                         sample_.targets.data() + start + n, n, rows);
        double* sum = divergence_.data() + (start / (batch_ * sample_.T) * chunks_ + n / rows_) * pairs_;
        for (size_t a = 0; a < M; a++)
            for (size_t b = a + 1; b < M; b++)
                *sum++ = summed_divergence(log_probabilities_[a].data(), log_probabilities_[b].data(), rows, V_);
    }

    static void note_norms(Prediction* p, const Engine& model, int64_t rows) {
        const int64_t C = model.config.C;
        for (int64_t n = 0; n < rows; n++) p[n].norm = norm_of(model.final_residual() + n * C, C);
    }
};

}  // namespace

void predict_rows(Engine& model, Prediction* out, real* logits, const int32_t* targets, int64_t first, int64_t count) {
    const int64_t V = model.config.V;
    model.final_logits(logits, first, count);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < count; r++) out[r] = predict(logits + r * V, targets[r], V);
}

int64_t rows_at_a_time(int64_t N, int64_t V) {
    return std::max<int64_t>(1, std::min(N, (int64_t{1} << 24) / V));
}

double norm_of(const real* x, int64_t n) {
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return std::sqrt(squares);
}

Json measure_loss(const std::vector<Engine*>& models, const Sample& sample, const Procedure& procedure) {
    Losses losses(models, sample, procedure.batch);
    for_each_batch(sample, procedure, [&](int64_t first, int64_t B) { losses.add(first, B); });
    losses.gather();
    return losses.summary(procedure.seed);
}

}  // namespace analysis
}  // namespace lnfree
