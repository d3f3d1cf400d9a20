#include "dev/analysis/explain_record.h"

#include <algorithm>
#include <cmath>

#include "dev/analysis/heads.h"

namespace lnfree {
namespace analysis {

double dot(const real* a, const double* v, int64_t n) {
    double sum = 0;
    if (a == nullptr) return sum;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += static_cast<double>(a[i]) * v[i];
    return sum;
}

void times(const real* matrix, const double* v, int64_t rows, int64_t n, double* out) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) out[i] = dot(matrix + i * n, v, n);
}

namespace {

// shares (T): the softmax over positions 0..position of attention's scores, 0 behind. qkv (T,Q) of one sequence.
void attention_row(double* shares, const real* qkv, int64_t position, int64_t T, int64_t h, const HeadPlaces& at) {
    std::fill(shares, shares + T, 0.0);
    double largest = -INFINITY, sum = 0;
    for (int64_t t = 0; t <= position; t++) {
        shares[t] = attention_score(at, h, qkv + position * at.Q(), qkv + t * at.Q());
        largest = std::max(largest, shares[t]);
    }
    for (int64_t t = 0; t <= position; t++) sum += shares[t] = std::exp(shares[t] - largest);
    for (int64_t t = 0; t <= position; t++) shares[t] /= sum;
}

}  // namespace

void record_pass(PassRecord& r, Engine& model, const int32_t* tokens, int64_t B, int64_t T, const int64_t* positions) {
    const ModelConfig& c = model.config;
    const HeadPlaces at(c);
    const int64_t C = c.C, H = c.n_inner, NH = c.NH, N = B * T, A = at.A(), Q = at.Q(), VW = at.values_width();
    r.B = B;
    r.T = T;
    const auto reserve = [&](Buffer& buffer, int64_t width) {
        if (buffer.size() < c.L * N * width) buffer.allocate(c.L * N * width);
    };
    reserve(r.heads, A);
    reserve(r.values, VW);
    reserve(r.outputs, C);
    r.hidden.resize(static_cast<size_t>(c.L * B * H));
    r.attention.resize(static_cast<size_t>(c.L * B * NH * T));
    Probe probe;
    probe.attention = [&](int64_t l, const real* heads, const real* qkv, const real*) {
        std::copy(heads, heads + N * A, r.heads.data() + l * N * A);
        for (int64_t n = 0; n < N; n++)
            std::copy(qkv + n * Q + at.first_value(), qkv + (n + 1) * Q, r.values.data() + (l * N + n) * VW);
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t h = 0; h < NH; h++)
                attention_row(r.attention.data() + ((l * B + b) * NH + h) * T, qkv + b * T * Q, positions[b], T, h, at);
    };
    probe.mlp = [&](int64_t l, const real* hidden, const real* output) {
        std::copy(output, output + N * C, r.outputs.data() + l * N * C);
        for (int64_t b = 0; b < B; b++) {
            const real* row = hidden + (b * T + positions[b]) * H;
            std::copy(row, row + H, r.hidden.data() + (l * B + b) * H);
        }
    };
    model.trace(tokens, B, T, probe);
    const real* divisors = model.final_divisors(tokens);
    r.divisors.assign(divisors, divisors + N);
}

Direction direction_of(Engine& model, int32_t target, int32_t against) {
    const Weights& w = model.weights();
    const int64_t C = model.config.C, L = model.config.L, A = model.config.heads_width();
    Direction d;
    d.stream.resize(static_cast<size_t>(C));
    d.heads.resize(static_cast<size_t>(L * A));
    const auto difference = [&](const real* of, int64_t stride, int64_t i) {
        const double theirs = against < 0 ? 0 : static_cast<double>(of[against * stride + i]);
        return static_cast<double>(of[target * stride + i]) - theirs;
    };
    double mean = 0;
    for (int64_t i = 0; i < C; i++) {
        const double u = difference(w.head, C, i);
        d.stream[static_cast<size_t>(i)] = w.lnf_gamma == nullptr ? u : u * static_cast<double>(w.lnf_gamma[i]);
        mean += d.stream[static_cast<size_t>(i)] / static_cast<double>(C);
        if (w.lnf_beta != nullptr) d.constant += u * static_cast<double>(w.lnf_beta[i]);
    }
    if (w.head_bias != nullptr) d.constant += difference(w.head_bias, 1, 0);
    if (model.config.centred && !model.sites.f().folded)
        for (double& g : d.stream) g -= mean;
    for (int64_t l = 0; l < L; l++)
        times(w.layers[static_cast<size_t>(l)].proj, d.stream.data(), A, C, d.heads.data() + l * A);
    return d;
}

}  // namespace analysis
}  // namespace lnfree
