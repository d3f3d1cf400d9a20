// What models predict on the same text: loss, entropy, calibration, and how far two models' predictions are apart
// (2507.02559, Sec. 4 and App. E).
#pragma once

#include <cstdint>
#include <vector>

#include "data/json.h"
#include "dev/analysis/sample.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// One prediction.
struct Prediction {
    double loss = 0, entropy = 0;
    double confidence = 0;  // probability of the likeliest token
    double norm = 0;        // of the stream in front of ln_f; measure_loss alone fills it in
    bool right = false;     // it is the target
};

// The predictions of positions first .. first + count - 1 of the last pass, counted through the batch, into out (count).
// logits (count,V) become log-probabilities.
void predict_rows(Engine& model, Prediction* out, real* logits, const int32_t* targets, int64_t first, int64_t count);

// Rows of logits that are made at a time of N: at most 2^24 values, 64 MiB.
int64_t rows_at_a_time(int64_t N, int64_t V);

// Euclidean norm.
double norm_of(const real* x, int64_t n);

// All models (at least one, of one vocabulary) on the same sample, which several processes share; each gets the result of
// all: {"models": [...], "divergences": [{"a", "b", "js"}]}, a and b by their places among the models.
Json measure_loss(const std::vector<Engine*>& models, const Sample& sample, const Procedure& procedure);

}  // namespace analysis
}  // namespace lnfree
