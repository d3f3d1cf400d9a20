#include "dev/analysis/explain_record.h"

#include <algorithm>
#include <cmath>

namespace lnfree {
namespace analysis {

double dot(const real* a, const double* v, int64_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += static_cast<double>(a[i]) * v[i];
    return sum;
}

void times(const real* matrix, const double* v, int64_t rows, int64_t n, double* out) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) out[i] = dot(matrix + i * n, v, n);
}

namespace {

// shares (T): the softmax over positions 0..position of q . k / sqrt(HS), 0 behind. qkv (T,3C) of one sequence.
void attention_row(double* shares, const real* qkv, int64_t position, int64_t T, int64_t h, int64_t HS, int64_t C) {
    const real *query = qkv + position * 3 * C + h * HS, *keys = qkv + C + h * HS;
    const double scale = 1 / std::sqrt(static_cast<double>(HS));
    std::fill(shares, shares + T, 0.0);
    double largest = -INFINITY, sum = 0;
    for (int64_t t = 0; t <= position; t++) {
        double score = 0;
        for (int64_t d = 0; d < HS; d++)
            score += static_cast<double>(query[d]) * static_cast<double>(keys[t * 3 * C + d]);
        shares[t] = scale * score;
        largest = std::max(largest, shares[t]);
    }
    for (int64_t t = 0; t <= position; t++) sum += shares[t] = std::exp(shares[t] - largest);
    for (int64_t t = 0; t <= position; t++) shares[t] /= sum;
}

}  // namespace

void record_pass(PassRecord& r, Engine& model, const int32_t* tokens, int64_t B, int64_t T, const int64_t* positions) {
    const GPT2Config& c = model.config;
    const int64_t C = c.C, H = c.n_inner, NH = c.NH, N = B * T;
    r.B = B;
    r.T = T;
    for (Buffer* buffer : {&r.heads, &r.values, &r.outputs})
        if (buffer->size() < c.L * N * C) buffer->allocate(c.L * N * C);
    r.hidden.resize(static_cast<size_t>(c.L * B * H));
    r.attention.resize(static_cast<size_t>(c.L * B * NH * T));
    Probe probe;
    probe.attention = [&](int64_t l, const real* heads, const real* qkv, const real*) {
        std::copy(heads, heads + N * C, r.heads.data() + l * N * C);
        for (int64_t n = 0; n < N; n++)
            std::copy(qkv + n * 3 * C + 2 * C, qkv + (n + 1) * 3 * C, r.values.data() + (l * N + n) * C);
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t h = 0; h < NH; h++)
                attention_row(r.attention.data() + ((l * B + b) * NH + h) * T, qkv + b * T * 3 * C, positions[b], T, h,
                              C / NH, C);
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
    const int64_t C = model.config.C, L = model.config.L;
    Direction d;
    d.stream.resize(static_cast<size_t>(C));
    d.heads.resize(static_cast<size_t>(L * C));
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
    if (!model.sites.f().folded)
        for (double& g : d.stream) g -= mean;
    for (int64_t l = 0; l < L; l++)
        times(w.layers[static_cast<size_t>(l)].proj, d.stream.data(), C, C, d.heads.data() + l * C);
    return d;
}

}  // namespace analysis
}  // namespace lnfree
