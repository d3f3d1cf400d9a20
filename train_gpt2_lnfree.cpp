// train_gpt2_lnfree.cpp: takes the LayerNorms out of a trained GPT-2, on the CPU.
//
//     g++ -O2 -fopenmp train_gpt2_lnfree.cpp -o lnfree && ./lnfree
//
// makes a small text in memory, trains a small GPT-2 on it and takes its LayerNorms out, in about a minute on two cores.
// `make` builds the program that does the same to your own model (README.md).
//
// A LayerNorm divides every position of the residual stream by that position's own standard deviation sigma. That
// division is the one non-linear thing between a transformer block and the logits, and it ties every component to
// every other. Two papers (arXiv 2409.13710 and 2507.02559) showed that a trained GPT-2 can be weaned off it: one after
// another, while fine-tuning goes on, each LayerNorm is replaced by FakeLN, the same formula with sigma frozen to a
// single number. FakeLN is linear, so the finished model has none left.
//
// This file is the whole method and reads from top to bottom:
//
//     1. The method       sites, FakeLN, sigma, the schedule, the paper's presets
//     2. The operations   every forward beside its backward: plain loops around one matrix product
//     3. The model        GPT-2 out of those operations: forward and backward
//     4. The optimiser    AdamW, clipping, learning rate
//     5. The loop         what happens in a step of training
//     6. The result       the two exact linear forms of a finished model
//     7. main
//
// Letters for shapes: B sequences in a micro-batch, T positions in a sequence, N = B * T, C width of the residual stream,
// V vocabulary, L layers, NH heads, HS = C / NH their size, H neurons of an MLP. "Paper" is 2507.02559; "precursor" is
// 2409.13710. The structs that other parts of the program share are in dev/engine.h: Site, Settings, the interface Engine.
//
// Read it as if there were GPT-2 alone. Pythia and Llama differ in what a short description says (data/config.h): for
// them A, Q and F are the widths of all heads, of c_attn's output and of c_fc's, which in a GPT-2 are C, 3C and H, and the few
// operations of theirs stand at the end of section 2.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "data/config.h"
#include "data/error.h"
#include "dev/cpu/bf16_speed.h"
#include "dev/cpu/gradient_tree.h"
#include "dev/cpu/operations.h"
#include "dev/engine.h"
#include "dev/low_rank.h"
#include "dev/method.h"
#include "dev/processes.h"

// The operations alone are compiled once per instruction set, which LNFREE_OPERATIONS names (Makefile); the rest of this
// file once. LNFREE_DISPATCH: operations() is dev/cpu/dispatch.cpp's. With neither, this file is all there is.
#ifndef LNFREE_OPERATIONS

namespace lnfree {

// =====================================================================================================================
// 1. The method
// =====================================================================================================================
//
// With mu the mean over the C channels of position (b,t) and sigma the standard deviation (paper, eq. 1 and 2):
//
//     LayerNorm(x) = (x - mu) / sigma[b,t] * gamma + beta        sigma[b,t] = sqrt(mean((x - mu)^2) + 1e-5)
//     FakeLN(x)    = (x - mu) / sigma_bar  * gamma + beta        sigma_bar: one frozen number per site
//
// A GPT-2 of L layers has 3L + 1 sites: mlp[l], qk[l] and v[l] in every layer, and f (dev/engine.h). Removal goes through
// all mlp sites, then all qk, then all v, then f, with gaps in which the model recovers. An auxiliary loss at the input of
// ln_f keeps sigma even across positions, so that one number can stand for all of them (paper, eq. 3):
//
//     L_aux = lambda * mean over all positions of (sigma - sigma_hat)^2
//
// sigma_hat is the mean over the positions other than t = 0 and end-of-text; no gradient flows through it.
//
// Cross-entropy alone trains the model further on whatever text it is given. With a teacher (ours, protocol.md 11; the papers
// have none: w = 0) it is also to stay what it was: p_o is what the original, LayerNorms and all, predicts, y the target,
//
//     L = (1 - w) * -log p[y] + w * KL(p_o || p)              KL(p_o || p) = sum p_o * (log p_o - log p)

// sigma of one step, averaged over all of its positions, folded into the running value: m = 0 keeps this step's own value,
// as for GPT-2 Small and Medium; Large and XL smooth it (paper, Sec. 3).
void update_running_sigma(Site& site, double sigma_avg, double m) {
    site.sigma_avg = sigma_avg;
    site.running = std::isnan(site.running) ? sigma_avg : m * site.running + (1 - m) * sigma_avg;
}

// From here on the site divides by sigma_bar at every position.
Event remove_site(Sites& sites, int site, int64_t step) {
    Site& s = sites.all[site];
    s.sigma_bar = s.running;
    s.a = 1;
    return {step, site, "removed", s.sigma_bar};
}

// Paper, Tables 3 and 4; the precursor's schedule from its section on the procedure. Micro-batches are for T = 1024.
const std::vector<Preset>& presets() {
    static const std::vector<Preset> all = {
        // name, batch, accumulation, steps, stop, warm-up, lr, min_lr, lambda, m, start_mlp, gaps of mlp, qk, v
        {"small", 32, 16, 300, 300, 25, 6e-4, 3e-4, 0.1, 0.0, 20, 2, 2, 3},
        {"medium", 22, 23, 500, 500, 10, 6e-4, 3e-4, 0.1, 0.0, 20, 2, 2, 3},
        {"large", 28, 18, 1200, 600, 15, 3e-4, 4e-5, 0.03, 0.19, 30, 4, 4, 6},
        {"xl", 18, 28, 1200, 800, 20, 1e-4, 2e-5, 0.01, 0.19, 50, 4, 4, 6},
        {"precursor", 30, 16, 2000, 0, 100, 6e-4, 6e-5, 0.0, 0.0, 200, 20, 20, 30},
    };
    return all;
}

const Preset* find_preset(const std::string& name) {
    for (const Preset& preset : presets())
        if (name == preset.name) return &preset;
    return nullptr;
}

void apply_preset(Settings& s, const Preset& preset) {
    s.batch = preset.batch;
    s.grad_accum = preset.grad_accum;
    s.steps = preset.steps;
    s.stop = preset.stop;
    s.warmup = preset.warmup;
    s.lr = preset.lr;
    s.min_lr = preset.min_lr;
    s.aux_weight = preset.aux_weight;
    s.sigma_ema = preset.sigma_ema;
    s.start_mlp = preset.start_mlp;
    s.gap_mlp = preset.gap_mlp;
    s.gap_qk = preset.gap_qk;
    s.gap_v = preset.gap_v;
    if (std::string(preset.name) != "precursor") return;
    s.weight_decay = 0.1;
    s.beta2 = 0.95;
    s.experiment.own_position0 = true;  // dev/run/experiments.cpp
}

// The paper's schedule for any model and length: all removals within the first 45 % of the steps, v sites with 1.5 times
// the gap of the others.
void fit_schedule(Settings& s, int L) {
    const double unit = (0.45 * static_cast<double>(s.steps) - static_cast<double>(s.warmup)) / (3.5 * L);
    s.start_mlp = static_cast<double>(s.warmup);
    s.gap_mlp = s.gap_qk = unit;
    s.gap_v = 1.5 * unit;
}

// Each group of sites begins where the one before it ends.
void derive_starts(Settings& s, int L) {
    s.start_qk = s.start_mlp + L * s.gap_mlp;
    s.start_v = s.start_qk + L * s.gap_qk;
    s.start_f = s.start_v + L * s.gap_v;
}

std::vector<Removal> removal_schedule(const Settings& s, int L) {
    std::vector<Removal> schedule;
    const auto add = [&](double start, double gap, int count) {
        for (int l = 0; l < count; l++)
            schedule.push_back({static_cast<int64_t>(std::floor(start + l * gap)), static_cast<int>(schedule.size())});
    };
    add(s.start_mlp, s.gap_mlp, L);
    add(s.start_qk, s.gap_qk, L);
    add(s.start_v, s.gap_v, L);
    add(s.start_f, 0, 1);
    return schedule;
}

}  // namespace lnfree

#endif  // LNFREE_OPERATIONS

// =====================================================================================================================
// 2. The operations
// =====================================================================================================================
//
// Each operation is a pair: forward, and backward, which receives the gradient of the loss with respect to the output
// and ADDS the gradients of the inputs and parameters to what is there (unless its comment says that it overwrites).
// Loops over positions run in parallel. No sum depends on the number of threads: a run gives the same bits on any machine
// of the same instruction set.
//
// Plain pointers and loops only, and no name that a linker sees (hence the namespace without one): of two copies of a
// function, compiled for two instruction sets, it would keep the first that it meets.

#ifndef LNFREE_DISPATCH

#include "dev/cpu/matmul.h"
#include "dev/cpu/peak.h"
#include "dev/cpu/vector_math.h"

namespace lnfree {
namespace {

// Sums over positions are taken in chunks of so many positions, one after the other; threads share out the columns.
constexpr int64_t kPositionsPerChunk = 64, kColumnsPerTask = 64;

// out[j] += sum over n < N of term(n, j), for j < width
template <class Term>
void sum_over_positions(real* out, int64_t N, int64_t width, Term term) {
#pragma omp parallel for schedule(static)
    for (int64_t j0 = 0; j0 < width; j0 += kColumnsPerTask) {
        const int64_t j1 = std::min(width, j0 + kColumnsPerTask);
        real total[kColumnsPerTask] = {};
        for (int64_t n0 = 0; n0 < N; n0 += kPositionsPerChunk) {
            real partial[kColumnsPerTask] = {};
            for (int64_t n = n0; n < std::min(N, n0 + kPositionsPerChunk); n++) {
#pragma omp simd
                for (int64_t j = j0; j < j1; j++) partial[j - j0] += term(n, j);
            }
            for (int64_t j = j0; j < j1; j++) total[j - j0] += partial[j - j0];
        }
        for (int64_t j = j0; j < j1; j++) out[j] += total[j - j0];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Encoder: token embedding plus position embedding.
// out (B,T,C), tokens (B,T), wte (V,C), wpe (n_ctx,C), or null where positions are rotary
void encoder_forward(real* out, const int32_t* tokens, const real* wte, const real* wpe, int64_t B, int64_t T,
                     int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < B * T; n++) {
        const real* token = wte + tokens[n] * C;
        real* o = out + n * C;
        for (int64_t c = 0; c < C; c++) o[c] = token[c];
        if (wpe == nullptr) continue;
        const real* position = wpe + n % T * C;
        for (int64_t c = 0; c < C; c++) o[c] += position[c];
    }
}

// Two positions may hold the same token, so threads share out the channels, not the positions: every element of dwte is
// summed by one thread, in the order of the positions.
void encoder_backward(real* dwte, real* dwpe, const real* dout, const int32_t* tokens, int64_t B, int64_t T,
                      int64_t C) {
    constexpr int64_t kChannels = 32;
#pragma omp parallel for schedule(static)
    for (int64_t c0 = 0; c0 < C; c0 += kChannels) {
        const int64_t c1 = std::min(C, c0 + kChannels);
        for (int64_t n = 0; n < B * T; n++) {
            real* token = dwte + tokens[n] * C;
            const real* d = dout + n * C;
#pragma omp simd
            for (int64_t c = c0; c < c1; c++) token[c] += d[c];
            if (dwpe == nullptr) continue;
            real* position = dwpe + n % T * C;
#pragma omp simd
            for (int64_t c = c0; c < c1; c++) position[c] += d[c];
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Mean and standard deviation of every position: what LayerNorm divides by, what FakeLN replaces, what the statistics
// average and what the auxiliary loss evens out. sigma includes eps (paper, eq. 2). RMSNorm, which is not `centred`, is
// LayerNorm with 0 for the mean, from here on to its backward.
// mean, sigma (N), inp (N,C)
void moments_forward(real* mean, real* sigma, const real* inp, double eps, bool centred, int64_t N, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* x = inp + n * C;
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++) sum += x[c];
        const real m = centred ? sum / real(C) : real(0);
        real squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < C; c++) squares += (x[c] - m) * (x[c] - m);
        mean[n] = m;
        sigma[n] = std::sqrt(squares / real(C) + real(eps));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The norm: LayerNorm and FakeLN differ in what they divide by, and nothing else.
//
//     LayerNorm (a = 0)   divisor = sigma[b,t]
//     FakeLN    (a = 1)   divisor = sigma_bar
//     on the way          divisor = sigma[b,t]^(1-a) * sigma_bar^a
//     TaperNorm's way     1 / divisor = (1-a) / sigma[b,t] + a / sigma_bar
//
// where sigma_bar may be another number at position 0 and at end-of-text (precursor).
// divisor, sigma (B,T), tokens (B,T)
void norm_divisors(real* divisor, const Site& site, const real* sigma, const int32_t* tokens, int32_t end_of_text,
                   int64_t B, int64_t T) {
    for (int64_t n = 0; n < B * T; n++) {
        const bool special = (site.own_position0 && n % T == 0) || (site.own_end_of_text && tokens[n] == end_of_text);
        double d = special ? site.sigma_bar_0 : site.sigma_bar;
        if (site.a < 1 && site.tapers)
            d = 1 / ((1 - site.a) / double(sigma[n]) + site.a / d);
        else if (site.a < 1)
            d *= std::pow(double(sigma[n]) / d, 1 - site.a);
        divisor[n] = real(d);
    }
}

// out (N,C) = (inp - mean) / divisor * gamma + beta, which may be null
void norm_forward(real* out, const real* inp, const real* mean, const real* divisor, const real* gamma,
                  const real* beta, int64_t N, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* x = inp + n * C;
        real* o = out + n * C;
        const real m = mean[n], scale = real(1) / divisor[n];
#pragma omp simd
        for (int64_t c = 0; c < C; c++) o[c] = (x[c] - m) * scale * gamma[c] + (beta == nullptr ? real(0) : beta[c]);
    }
}

// FakeLN's divisor is a constant, and of the gradient g = dout * gamma only the centring is taken away:
//     dx = (g - mean(g)) / sigma_bar
void fakeln_dinput(real* dinp, const real* dout, const real* gamma, const real* divisor, bool centred, int64_t N,
                   int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* d = dout + n * C;
        real* dx = dinp + n * C;
        real sum_g = 0;
#pragma omp simd reduction(+ : sum_g)
        for (int64_t c = 0; c < C; c++) sum_g += d[c] * gamma[c];
        const real mean_g = centred ? sum_g / real(C) : real(0), scale = real(1) / divisor[n];
#pragma omp simd
        for (int64_t c = 0; c < C; c++) dx[c] += (d[c] * gamma[c] - mean_g) * scale;
    }
}

// A divisor that depends on x also takes away the gradient's component along x, by as much as the divisor follows sigma:
// e = d log divisor / d log sigma, which is 1 for LayerNorm, 1 - a on the way, (1 - a) * divisor / sigma on TaperNorm's.
// With xhat = (x - mean) / divisor:
//     dx = (g - mean(g)) / divisor - e * (x - mean) / sigma^2 * mean(g * xhat)
void layernorm_dinput(real* dinp, const real* dout, const real* inp, const real* gamma, const real* mean,
                      const real* sigma, const real* divisor, const Site& site, int64_t N, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* x = inp + n * C;
        const real* d = dout + n * C;
        real* dx = dinp + n * C;
        const real m = mean[n], scale = real(1) / divisor[n];
        real sum_g = 0, sum_gx = 0;
#pragma omp simd reduction(+ : sum_g, sum_gx)
        for (int64_t c = 0; c < C; c++) {
            const real g = d[c] * gamma[c];
            sum_g += g;
            sum_gx += g * (x[c] - m) * scale;
        }
        const real mean_g = site.centred ? sum_g / real(C) : real(0), mean_gx = sum_gx / real(C);
        const real e = real(1 - site.a) * (site.tapers ? divisor[n] / sigma[n] : real(1));
        const real slope = e * mean_gx / (sigma[n] * sigma[n]);
#pragma omp simd
        for (int64_t c = 0; c < C; c++) dx[c] += (d[c] * gamma[c] - mean_g) * scale - slope * (x[c] - m);
    }
}

// dinp (N,C), dgamma, dbeta (C) unless null; divisor (N) is what the forward pass divided by
void norm_backward(real* dinp, real* dgamma, real* dbeta, const real* dout, const real* inp, const real* gamma,
                   const real* mean, const real* sigma, const real* divisor, const Site& site, int64_t N, int64_t C) {
    if (site.a == 1)
        fakeln_dinput(dinp, dout, gamma, divisor, site.centred, N, C);
    else
        layernorm_dinput(dinp, dout, inp, gamma, mean, sigma, divisor, site, N, C);
    sum_over_positions(dgamma, N, C, [=](int64_t n, int64_t c) {
        return dout[n * C + c] * (inp[n * C + c] - mean[n]) * (real(1) / divisor[n]);
    });
    if (dbeta != nullptr) sum_over_positions(dbeta, N, C, [=](int64_t n, int64_t c) { return dout[n * C + c]; });
}

// ---------------------------------------------------------------------------------------------------------------------
// The auxiliary loss (section 1), at the input of a norm. For experiments it can be relative, of sigma / sigma_hat - 1, and
// have another target at position 0 (AuxSettings).
// sigma (B,T), tokens (B,T)
AuxLoss aux_loss_forward(const real* sigma, const int32_t* tokens, int32_t end_of_text, const AuxSettings& settings,
                         int64_t B, int64_t T) {
    AuxLoss aux;
    int64_t counted = 0;
    for (int64_t n = 0; n < B * T; n++) {
        if (n % T == 0 || tokens[n] == end_of_text) continue;
        aux.sigma_hat += double(sigma[n]);
        counted++;
    }
    if (settings.weight == 0 || counted == 0) return aux;
    aux.active = true;
    aux.sigma_hat /= double(counted);
    aux.target_at_0 = settings.position0 * aux.sigma_hat;
    aux.weight = settings.relative ? settings.weight / (aux.sigma_hat * aux.sigma_hat) : settings.weight;
    for (int64_t n = 0; n < B * T; n++) {
        const double off = double(sigma[n]) - aux.target(n % T);
        aux.loss += off * off;
    }
    aux.loss *= aux.weight / double(B * T);
    return aux;
}

// d sigma / d x = (x - mean) / (C * sigma), so  dx += weight * 2 / N * (sigma - sigma_hat) * (x - mean) / (C * sigma).
// `scale` is 1 / accumulation steps.
void aux_loss_backward(real* dinp, const AuxLoss& aux, const real* inp, const real* mean, const real* sigma,
                       double scale, int64_t B, int64_t T, int64_t C) {
    if (!aux.active) return;
    const double factor = scale * aux.weight * 2.0 / double(B * T * C);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < B * T; n++) {
        const real* x = inp + n * C;
        real* dx = dinp + n * C;
        const double s = double(sigma[n]);
        const real slope = real(factor * (s - aux.target(n % T)) / s);
        const real m = mean[n];
#pragma omp simd
        for (int64_t c = 0; c < C; c++) dx[c] += slope * (x[c] - m);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrix product with bias, weights as GPT-2's Conv1D stores them: inp (N,K), weight (K,M), bias (M), out (N,M).
// `stride` is the length of a row of weight, out and dout in memory; with stride > M a product takes some columns only,
// which is how the q and k columns of c_attn read another input than its v columns. The product itself is dev/cpu/'s.
void matmul_forward(real* out, const real* inp, const real* weight, const real* bias, int64_t N, int64_t K, int64_t M,
                    int64_t stride) {
    matmul(Transpose::No, Transpose::No, N, M, K, inp, K, weight, stride, out, stride, false, bias);
}

void bias_backward(real* dbias, const real* dout, int64_t N, int64_t M, int64_t stride) {
    sum_over_positions(dbias, N, M, [=](int64_t n, int64_t m) { return dout[n * stride + m]; });
}

// dinp (N,K) is overwritten; dweight (K,M) and dbias (M), unless null, are added to.
void matmul_backward(real* dinp, real* dweight, real* dbias, const real* dout, const real* inp, const real* weight,
                     int64_t N, int64_t K, int64_t M, int64_t stride) {
    matmul(Transpose::No, Transpose::Yes, N, K, M, dout, stride, weight, stride, dinp, K, false);
    matmul(Transpose::Yes, Transpose::No, K, M, N, inp, K, dout, stride, dweight, stride, true);
    if (dbias != nullptr) bias_backward(dbias, dout, N, M, stride);
}

// ---------------------------------------------------------------------------------------------------------------------
// Causal self-attention. qkv (B,T,Q) holds queries, keys and values, heads side by side within each; the values may
// have been made from another input than queries and keys. out (B,T,A). lse (B,NH,T) keeps log sum exp of every row of
// scores, from which backward remakes the probabilities. In a GPT-2 A = C and Q = 3C; in others a head of keys and values
// may serve several of queries (grouped-query attention, arXiv 2305.13245).
//
// A head belongs to one thread, which takes its queries in blocks: what it holds at a time is a block's rows of scores,
// (rows,T), never a T x T matrix. A block [t0,t1) of queries reads the keys [0,t1). Forward can begin at position `first`,
// where the outputs before are known; out (B,T-first,A) and lse (B,NH,T-first) then begin there as well, and of qkv
// (B,capacity,Q) the first T positions are read.
constexpr int64_t kQueriesPerBlock = 32;

// A thread's own memory for n numbers, with any contents.
struct Scratch {
    real* data;
    explicit Scratch(int64_t n) : data(static_cast<real*>(std::malloc(n * sizeof(real)))) {
        if (data != nullptr) return;
        std::fprintf(stderr, "no memory for a block of attention; use a smaller --seq\n");
        std::_Exit(1);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(data); }
};

// What query t must not see, u = t+1 .. t1-1, has probability 0: its scores become -infinity first, so that all rows of a
// block are t1 long, which vectors divide.
void hide_the_future(real* p, int64_t t, int64_t t1) {
    for (int64_t u = t + 1; u < t1; u++) p[u] = -std::numeric_limits<real>::infinity();
}

// Row t of a block's scores becomes probabilities.
void softmax_row(real* p, real* lse, real scale, int64_t t, int64_t t1) {
    hide_the_future(p, t, t1);
    const real largest = largest_of(p, t1);
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t u = 0; u < t1; u++) {
        p[u] = fast_exp(scale * (p[u] - largest));
        sum += p[u];
    }
    const real share = real(1) / sum;
#pragma omp simd
    for (int64_t u = 0; u < t1; u++) p[u] *= share;
    *lse = scale * largest + std::log(sum);
}

void attention_forward(real* out, real* lse, const real* qkv, int64_t B, int64_t T, const Heads& heads, int64_t first,
                       int64_t capacity) {
    const int64_t NH = heads.NH, KH = heads.KH, HS = heads.HS, A = heads.width(), row = heads.row(), made = T - first;
    const real scale = real(1) / std::sqrt(real(HS));
#pragma omp parallel
    {
        const Scratch scratch(kQueriesPerBlock * T);
        real* p = scratch.data;  // (rows,T)
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++) {
            for (int64_t h = 0; h < NH; h++) {
                const real *q = qkv + b * capacity * row + h * HS, *k = qkv + b * capacity * row + A + h * KH / NH * HS;
                const real* v = k + KH * HS;
                for (int64_t t0 = first; t0 < T; t0 += kQueriesPerBlock) {
                    const int64_t t1 = std::min(T, t0 + kQueriesPerBlock), rows = t1 - t0;
                    matmul(Transpose::No, Transpose::Yes, rows, t1, HS, q + t0 * row, row, k, row, p, T, false);
                    for (int64_t t = t0; t < t1; t++)
                        softmax_row(p + (t - t0) * T, lse + (b * NH + h) * made + t - first, scale, t, t1);
                    matmul(Transpose::No, Transpose::No, rows, HS, t1, p, T, v, row,
                           out + (b * made + t0 - first) * A + h * HS, A, false);
                }
            }
        }
    }
}

// Turns row t of a block's scores back into probabilities p, and of dp = dout . v into the scores' gradients
//     ds = scale * p * (dp - dout . out)
// both 0 where the query must not see.
void softmax_backward_row(real* p, real* ds, const real* dout, const real* out, real lse, real scale, int64_t t,
                          int64_t t1, int64_t HS) {
    hide_the_future(p, t, t1);
    real dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t d = 0; d < HS; d++) dot += dout[d] * out[d];
#pragma omp simd
    for (int64_t u = 0; u < t1; u++) {
        p[u] = fast_exp(scale * p[u] - lse);
        ds[u] = scale * p[u] * (ds[u] - dot);
    }
}

// dqkv (B,T,Q) is overwritten:  dq = ds k,   dk = ds^T q,   dv = p^T dout,   the last two summed over the queries' heads that
// share them, by one thread.
void attention_backward(real* dqkv, const real* dout, const real* qkv, const real* out, const real* lse, int64_t B,
                        int64_t T, const Heads& heads) {
    const int64_t NH = heads.NH, KH = heads.KH, HS = heads.HS, A = heads.width(), row = heads.row();
    const real scale = real(1) / std::sqrt(real(HS));
#pragma omp parallel
    {
        const Scratch scratch(2 * kQueriesPerBlock * T);
        real *p = scratch.data, *ds = p + kQueriesPerBlock * T;  // (rows,T)
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++) {
            for (int64_t kh = 0; kh < KH; kh++) {
                const real *k = qkv + b * T * row + A + kh * HS, *v = k + KH * HS;
                real *dk = dqkv + b * T * row + A + kh * HS, *dv = dk + KH * HS;
                for (int64_t t = 0; t < T; t++)
                    for (int64_t d = 0; d < HS; d++) dk[t * row + d] = dv[t * row + d] = 0;
                for (int64_t h = kh * NH / KH; h < (kh + 1) * NH / KH; h++) {
                    const real* q = qkv + b * T * row + h * HS;
                    real* dq = dqkv + b * T * row + h * HS;
                    for (int64_t t0 = 0; t0 < T; t0 += kQueriesPerBlock) {
                        const int64_t t1 = std::min(T, t0 + kQueriesPerBlock), rows = t1 - t0;
                        const real *queries = q + t0 * row, *d_o = dout + (b * T + t0) * A + h * HS;
                        matmul(Transpose::No, Transpose::Yes, rows, t1, HS, queries, row, k, row, p, T, false);
                        matmul(Transpose::No, Transpose::Yes, rows, t1, HS, d_o, A, v, row, ds, T, false);
                        for (int64_t t = t0; t < t1; t++)
                            softmax_backward_row(p + (t - t0) * T, ds + (t - t0) * T, d_o + (t - t0) * A,
                                                 out + (b * T + t) * A + h * HS, lse[(b * NH + h) * T + t], scale, t,
                                                 t1, HS);
                        matmul(Transpose::No, Transpose::No, rows, HS, t1, ds, T, k, row, dq + t0 * row, row, false);
                        matmul(Transpose::Yes, Transpose::No, t1, HS, rows, ds, T, queries, row, dk, row, true);
                        matmul(Transpose::Yes, Transpose::No, t1, HS, rows, p, T, d_o, A, dv, row, true);
                    }
                }
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// GELU in GPT-2's tanh form. With u = sqrt(2/pi) * (x + 0.044715 x^3) and s = (1 + tanh u) / 2 = 1 / (1 + e^-2u):
//     gelu(x) = x * s,   gelu'(x) = s + x * s * (1 - s) * 2u'
constexpr double kGeluScale = 0.79788456080286535588;  // sqrt(2/pi)

inline real gelu_share(real x) {
    return fast_logistic(real(2 * kGeluScale) * x * (1 + real(0.044715) * x * x));
}

void gelu_forward(real* out, const real* inp, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = inp[i] * gelu_share(inp[i]);
}

// Overwrites dinp, which may be dout itself.
void gelu_backward(real* dinp, const real* dout, const real* inp, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const real x = inp[i], s = gelu_share(x);
        const real twice_du = real(2 * kGeluScale) * (1 + real(3 * 0.044715) * x * x);
        dinp[i] = dout[i] * (s + x * s * (1 - s) * twice_du);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Residual connection. Its backward is the identity on both inputs, so the model simply keeps using one gradient buffer.
void residual_forward(real* out, const real* stream, const real* branch, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = stream[i] + branch[i];
}

// ---------------------------------------------------------------------------------------------------------------------
// Softmax and cross-entropy of some rows of logits (rows,V), fused with their gradient: losses (rows) in nats; if
// `with_gradient`, logits are overwritten by d loss / d logits = scale * (softmax - one-hot).
void softmax_cross_entropy(real* losses, real* logits, const int32_t* targets, double scale, bool with_gradient,
                           int64_t rows, int64_t V) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        real* z = logits + n * V;
        const real largest = largest_of(z, V), target = z[targets[n]];
        real sum = 0;
        if (!with_gradient) {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < V; i++) sum += fast_exp(z[i] - largest);
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < V; i++) {
                z[i] = fast_exp(z[i] - largest);
                sum += z[i];
            }
            const real factor = real(scale) / sum;
#pragma omp simd
            for (int64_t i = 0; i < V; i++) z[i] *= factor;
            z[targets[n]] -= real(scale);
        }
        losses[n] = std::log(sum) + largest - target;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Distillation (section 1), forward and backward in one. With p and p_o the softmax of a row of logits and of the teacher's,
// y its target and w the teacher's share:
//     d loss / d logits = p - (1 - w) * one-hot(y) - w * p_o
// losses (rows): -log p[y]; kls (rows): KL(p_o || p). logits (rows,V) are overwritten by the gradient times `scale`, unless
// that is 0; what is left in the teacher's (rows,V) has no meaning. Equal logits have KL 0 and, for w = 1, gradient 0 to the
// bit: both rows go through the same arithmetic, and `ratio` is then exactly 1.
constexpr int64_t kLogitsPerSum = 1024;  // KL is a small difference: longer sums of floats would show in it

void softmax_distillation(real* losses, real* kls, real* logits, real* teacher_logits, const int32_t* targets,
                          double share, double scale, int64_t rows, int64_t V) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        real *z = logits + n * V, *o = teacher_logits + n * V;
        const real largest = largest_of(z, V), largest_o = largest_of(o, V), target = z[targets[n]];
        double sum = 0, sum_o = 0, apart = 0;
        for (int64_t i0 = 0; i0 < V; i0 += kLogitsPerSum) {
            real s = 0, s_o = 0, d = 0;
#pragma omp simd reduction(+ : s, s_o, d)
            for (int64_t i = i0; i < std::min(V, i0 + kLogitsPerSum); i++) {
                const real below = z[i] - largest, below_o = o[i] - largest_o;
                z[i] = fast_exp(below);
                o[i] = fast_exp(below_o);
                s += z[i];
                s_o += o[i];
                d += o[i] * (below_o - below);
            }
            sum += double(s), sum_o += double(s_o), apart += double(d);
        }
        losses[n] = real(std::log(sum)) + largest - target;
        kls[n] = real(apart / sum_o + std::log(sum / sum_o));
        if (scale == 0) continue;
        const real factor = real(scale / sum), ratio = real(share * sum / sum_o);
#pragma omp simd
        for (int64_t i = 0; i < V; i++) z[i] = factor * (z[i] - ratio * o[i]);
        z[targets[n]] -= real(scale * (1 - share));
    }
}

// What greedy decoding would take: the largest logit, the first of equals.
int64_t likeliest_of(const real* z, int64_t V) {
    int64_t best = 0;
    for (int64_t i = 1; i < V; i++)
        if (z[i] > z[best]) best = i;
    return best;
}

// Whether each row's target is the likeliest token. logits (rows,V)
void is_likeliest(uint8_t* likeliest, const real* logits, const int32_t* targets, int64_t rows, int64_t V) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; n++) likeliest[n] = likeliest_of(logits + n * V, V) == targets[n];
}

// Whether two models find the same token likeliest, row by row. a, b (rows,V)
void same_likeliest(uint8_t* same, const real* a, const real* b, int64_t rows, int64_t V) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; n++) same[n] = likeliest_of(a + n * V, V) == likeliest_of(b + n * V, V);
}

// ---------------------------------------------------------------------------------------------------------------------
// What models of other families do and GPT-2 does not.

// Rotary positions (arXiv 2104.09864): numbers i and i + R/2 of a head, i < R/2, are a point of the plane, which position t
// turns by t * base^(-2i/R); what a query and a key come to then depends on how far apart they are. Of each head's HS
// numbers the first R turn. turns (T,R/2,2): cosine and sine of every angle; `way` -1 turns back, which is the backward.
void turn(real* qkv, const real* turns, int64_t B, int64_t T, const Heads& heads, int64_t R, int way) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < B * T; n++) {
        const real* angle = turns + n % T * R;
        for (int64_t h = 0; h < heads.NH + heads.KH; h++) {
            real *x = qkv + n * heads.row() + h * heads.HS, *y = x + R / 2;
#pragma omp simd
            for (int64_t i = 0; i < R / 2; i++) {
                const real cosine = angle[2 * i], sine = real(way) * angle[2 * i + 1], x_i = x[i];
                x[i] = cosine * x_i - sine * y[i];
                y[i] = cosine * y[i] + sine * x_i;
            }
        }
    }
}

void rotary_forward(real* qkv, const real* turns, int64_t B, int64_t T, const Heads& heads, int64_t R) {
    turn(qkv, turns, B, T, heads, R, 1);
}

void rotary_backward(real* dqkv, const real* turns, int64_t B, int64_t T, const Heads& heads, int64_t R) {
    turn(dqkv, turns, B, T, heads, R, -1);
}

// GELU itself, x times the share Phi(x) of the normal distribution below x:  gelu'(x) = Phi(x) + x * e^(-x^2/2) / sqrt(2 pi)
inline real normal_share(real x) {
    return real(0.5) * (1 + fast_erf(real(0.70710678118654752440) * x));
}

void gelu_erf_forward(real* out, const real* inp, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = inp[i] * normal_share(inp[i]);
}

// Overwrites dinp, which may be dout itself.
void gelu_erf_backward(real* dinp, const real* dout, const real* inp, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const real x = inp[i], density = real(0.39894228040143267794) * fast_exp(real(-0.5) * x * x);
        dinp[i] = dout[i] * (normal_share(x) + x * density);
    }
}

// Gated SiLU: of a row's 2H numbers the first H, g, open gates for the others, u. With s = 1 / (1 + e^-g):
//     out = g * s * u,   dg = dout * u * s * (1 + g * (1 - s)),   du = dout * g * s
// out (N,H), inp (N,2H)
void gated_silu_forward(real* out, const real* inp, int64_t N, int64_t H) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real *g = inp + n * 2 * H, *u = g + H;
        real* o = out + n * H;
#pragma omp simd
        for (int64_t h = 0; h < H; h++) o[h] = g[h] * fast_logistic(g[h]) * u[h];
    }
}

// Overwrites dinp (N,2H).
void gated_silu_backward(real* dinp, const real* dout, const real* inp, int64_t N, int64_t H) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real *g = inp + n * 2 * H, *u = g + H, *d = dout + n * H;
        real *dg = dinp + n * 2 * H, *du = dg + H;
#pragma omp simd
        for (int64_t h = 0; h < H; h++) {
            const real s = fast_logistic(g[h]);
            dg[h] = d[h] * u[h] * s * (1 + g[h] * (1 - s));
            du[h] = d[h] * g[h] * s;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The optimiser's numbers (section 4).

// partial (ceil(n / kNormBlock)): sums of squares in double. Fixed blocks: the same for any number of threads.
void sum_squares(double* partial, const real* g, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < n; begin += kNormBlock) {
        double sum = 0;
        const int64_t end = std::min(n, begin + kNormBlock);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = begin; j < end; j++) sum += double(g[j]) * double(g[j]);
        partial[begin / kNormBlock] = sum;
    }
}

// AdamW as PyTorch computes it: decoupled decay before the update, bias-corrected moments (protocol.md 5). The gradients
// become 0 while they are at hand, which saves the next step a pass over memory.
void adamw(real* w, real* m, real* v, real* g, const AdamWNumbers& a, int64_t n) {
    const real b1 = a.b1, b2 = a.b2, c1 = a.one_minus_b1, c2 = a.one_minus_b2;
    const real keep = a.keep, step = a.step, root2 = a.root2, eps = a.eps, scale = a.scale;
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const real gradient = g[i] * scale;
        m[i] = b1 * m[i] + c1 * gradient;
        v[i] = b2 * v[i] + c2 * gradient * gradient;
        w[i] = keep * w[i] - step * m[i] / (std::sqrt(v[i]) * root2 + eps);
        g[i] = 0;
    }
}

void zero(real* x, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) x[i] = 0;
}

}  // namespace

#ifndef LNFREE_OPERATIONS
#define LNFREE_OPERATIONS native
#define LNFREE_ALONE
#endif
#define LNFREE_TABLE_OF(isa) lnfree_operations_##isa
#define LNFREE_NAME_OF(isa) #isa
#define LNFREE_TABLE(isa) LNFREE_TABLE_OF(isa)
#define LNFREE_NAME(isa) LNFREE_NAME_OF(isa)

extern const Operations LNFREE_TABLE(LNFREE_OPERATIONS);
const Operations LNFREE_TABLE(LNFREE_OPERATIONS) = {
    .isa = LNFREE_NAME(LNFREE_OPERATIONS),
    .encoder_forward = encoder_forward,
    .encoder_backward = encoder_backward,
    .moments_forward = moments_forward,
    .norm_divisors = norm_divisors,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .aux_loss_forward = aux_loss_forward,
    .aux_loss_backward = aux_loss_backward,
    .matmul = matmul,
    .matmul_forward = matmul_forward,
    .matmul_backward = matmul_backward,
    .bias_backward = bias_backward,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .rotary_forward = rotary_forward,
    .rotary_backward = rotary_backward,
    .gelu_forward = gelu_forward,
    .gelu_backward = gelu_backward,
    .gelu_erf_forward = gelu_erf_forward,
    .gelu_erf_backward = gelu_erf_backward,
    .gated_silu_forward = gated_silu_forward,
    .gated_silu_backward = gated_silu_backward,
    .residual_forward = residual_forward,
    .softmax_cross_entropy = softmax_cross_entropy,
    .softmax_distillation = softmax_distillation,
    .is_likeliest = is_likeliest,
    .same_likeliest = same_likeliest,
    .sum_squares = sum_squares,
    .adamw = adamw,
    .zero = zero,
    .multiply_adds = multiply_adds,
    .triad = triad,
    .use_bf16 = use_bf16,
};

}  // namespace lnfree

#endif  // LNFREE_DISPATCH

#if !defined(LNFREE_OPERATIONS) || defined(LNFREE_ALONE)

namespace lnfree {

#ifdef LNFREE_ALONE
const Operations& operations() {
    return LNFREE_TABLE(LNFREE_OPERATIONS);
}
#endif

// =====================================================================================================================
// 3. The model
// =====================================================================================================================

// This table drives allocation, folders, the optimiser, norms and tests.
std::vector<Tensor> tensor_table(const ModelConfig& c) {
    std::vector<Tensor> table;
    int64_t offset = 0;
    const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
        const bool decay = shape.size() == 2;  // weight matrices and embeddings, no biases, no norm parameters
        Tensor t{name, {}, decay, offset, 1, 1};
        for (const int64_t extent : shape) {
            t.shape.push_back(static_cast<uint64_t>(extent));
            t.size *= extent;
        }
        offset += t.size;
        table.push_back(t);
    };
    const auto add_norm = [&](const std::string& name) {
        if (c.has_norms()) add(name + ".weight", {c.C});
        if (c.has_norms() && c.norm_bias) add(name + ".bias", {c.C});
    };
    const auto add_linear = [&](const std::string& name, int64_t in, int64_t out, bool bias) {
        add(name + ".weight", {in, out});
        if (bias) add(name + ".bias", {out});
    };
    add("wte.weight", {c.V, c.C});
    if (c.rotary == 0) add("wpe.weight", {c.n_ctx, c.C});
    for (int64_t l = 0; l < c.L; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        add_norm(h + "ln_1");
        add_linear(h + "attn.c_attn", c.C, c.qkv_width(), c.attention_bias);
        add_linear(h + "attn.c_proj", c.heads_width(), c.C, c.attention_bias);
        add_norm(h + "ln_2");
        add_linear(h + "mlp.c_fc", c.C, c.fc_width(), c.mlp_bias);
        add_linear(h + "mlp.c_proj", c.n_inner, c.C, c.mlp_bias);
    }
    add_norm("ln_f");
    if (c.has_own_head()) add("lm_head.weight", {c.V, c.C});
    if (!c.has_norms()) add("lm_head.bias", {c.V});
    return table;
}

// Exponents, powers, speeds and angles are each rounded to float, as models have learned them in transformers: rounding
// base^(-2i/R) once gives other speeds, by which positions near 2,000 are up to 1e-4 of a radian off.
std::vector<real> rotary_turns(const ModelConfig& c) {
    std::vector<float> speeds;
    for (int64_t i = 0; i < c.rotary / 2; i++) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(c.rotary);
        speeds.push_back(1 / static_cast<float>(std::pow(c.rotary_base, static_cast<double>(exponent))));
    }
    std::vector<real> turns;
    for (int64_t t = 0; c.rotary > 0 && t < c.n_ctx; t++)
        for (const float speed : speeds) {
            const float angle = static_cast<float>(t) * speed;
            turns.push_back(static_cast<real>(std::cos(static_cast<double>(angle))));
            turns.push_back(static_cast<real>(std::sin(static_cast<double>(angle))));
        }
    return turns;
}

namespace {

// What forward keeps for backward, and where both work. Outputs of norms and of GELU are not kept: backward remakes them
// from these. Evaluation needs no more than one layer's worth, so every layer then writes to the same place.
struct Activations {
    struct Layer {
        real *residual, *residual_mid;          // (B,T,C) stream before attention, and before the MLP
        real *mean1, *sigma1, *mean2, *sigma2;  // (B,T)
        real *qkv, *lse, *att;                  // (B,T,Q), (B,NH,T), (B,T,A)
        real* fc;                               // (B,T,F) before GELU
    };
    std::vector<Layer> layers;
    real *final_residual, *meanf, *sigmaf;  // (B,T,C), (B,T), (B,T)
    // scratch
    real *normed, *branch;  // (B,T,C)
    real* hidden;           // (B,T,H) after GELU
    real* divisor;          // (B,T)
    real *losses, *kls;     // (B,T) of every prediction; kls only with a teacher
    real* logits;           // (rows_per_chunk,V): logits of the whole batch are never stored
    int64_t rows_per_chunk = 0;
    // gradients, reused by every layer
    real *dresidual, *dbranch;   // (B,T,C), dbranch also (B,T,A)
    real *dqkv, *dhidden, *dfc;  // (B,T,Q), (B,T,H), (B,T,F); the last two are one where F = H

    int64_t B = 0, T = 0;
    bool training = false;
    Buffer memory;

    // Number of values needed; with `base` also sets the pointers.
    int64_t lay_out(real* base, const ModelConfig& c) {
        int64_t used = 0;
        const auto take = [&](int64_t n) {
            real* p = base == nullptr ? nullptr : base + used;
            used += (n + 15) / 16 * 16;
            return p;
        };
        const int64_t N = B * T, NC = N * c.C, NA = N * c.heads_width(), NH = N * c.n_inner;
        layers.resize(c.L);
        for (int64_t l = 0; l < c.L; l++) {
            Layer& y = layers[l];
            if (!training && l > 0) {
                y = layers[0];
                continue;
            }
            y.residual = take(NC);
            y.residual_mid = take(NC);
            for (real** p : {&y.mean1, &y.sigma1, &y.mean2, &y.sigma2}) *p = take(N);
            y.qkv = take(N * c.qkv_width());
            y.lse = take(c.NH * N);
            y.att = take(NA);
            y.fc = take(N * c.fc_width());
        }
        final_residual = training ? take(NC) : layers[0].residual;
        for (real** p : {&meanf, &sigmaf, &divisor, &losses, &kls}) *p = take(N);
        normed = take(NC);
        branch = take(NC);
        hidden = take(NH);
        rows_per_chunk = classifier_rows(N, c.V);
        logits = take(rows_per_chunk * c.V);
        if (training) {
            dresidual = take(NC);
            dbranch = take(std::max(NC, NA));
            dqkv = take(N * c.qkv_width());
            dhidden = take(NH);
            dfc = c.gated() ? take(2 * NH) : dhidden;
        }
        return used;
    }

    // Memory only grows: shorter sequences use the front of it.
    void reserve(int64_t batch, int64_t seq, bool for_training, const ModelConfig& c) {
        if (batch == B && seq == T && (training || !for_training)) return;  // a training arena serves evaluation too
        B = batch;
        T = seq;
        training = for_training;
        const int64_t needed = lay_out(nullptr, c);
        if (needed > memory.size()) memory.allocate(needed);
        lay_out(memory.data(), c);
    }
};

// A part of a bias that may not be there.
real* behind(real* bias, int64_t n) {
    return bias == nullptr ? nullptr : bias + n;
}

// The reference engine: the model on the processor. What each function does is said in dev/engine.h.
class Reference : public Engine {
  public:
    explicit Reference(const ModelConfig& c) : Engine(c), w(params.data(), tensors, config), turns(rotary_turns(c)) {}

    // ----- forward

    // From tokens (B,T) to the input of ln_f.
    void forward(const int32_t* tokens, const Probe& probe = {}) {
        const real* const positions = w.wpe == nullptr ? nullptr : w.wpe + past.length * config.C;
        op.encoder_forward(act.layers[0].residual, tokens, w.wte, positions, act.B, act.T, config.C);
        forward_from(0, tokens, probe);
    }

    // From the stream in front of layer `first` to the input of ln_f, in the order of the data.
    void forward_from(int64_t first, const int32_t* tokens, const Probe& probe) {
        const int64_t B = act.B, T = act.T, N = B * T, C = config.C, L = config.L;
        const int64_t A = heads.width(), Q = heads.row(), QK = config.qk_width(), F = config.fc_width();
        for (int64_t l = first; l < L; l++) {
            const Weights::Layer& y = w.layers[l];
            const Activations::Layer& a = act.layers[l];
            if (probe.residual) probe.residual(l, a.residual);

            // attention: qk and v read the same stream, each through its own norm
            op.moments_forward(a.mean1, a.sigma1, a.residual, config.epsilon, config.centred, N, C);
            norm_forward(a.residual, a.mean1, a.sigma1, y.ln1_gamma, y.ln1_beta, sites.qk(l), tokens);
            if (divide_alike(sites.qk(l), sites.v(l))) {
                op.matmul_forward(a.qkv, act.normed, y.qkv, y.qkv_bias, N, C, Q, Q);
            } else {
                op.matmul_forward(a.qkv, act.normed, y.qkv, y.qkv_bias, N, C, QK, Q);
                norm_forward(a.residual, a.mean1, a.sigma1, y.ln1_gamma, y.ln1_beta, sites.v(l), tokens);
                op.matmul_forward(a.qkv + QK, act.normed, y.qkv + QK, behind(y.qkv_bias, QK), N, C, Q - QK, Q);
            }
            if (config.rotary > 0) op.rotary_forward(a.qkv, turns_from(past.length), B, T, heads, config.rotary);
            if (past.capacity == 0)
                op.attention_forward(a.att, a.lse, a.qkv, B, T, heads, 0, T);
            else
                op.attention_forward(a.att, a.lse, remember(l, a.qkv), B, past.length + T, heads, past.length,
                                     past.capacity);
            if (probe.attention) probe.attention(l, a.att, a.qkv, a.lse);
            op.matmul_forward(act.branch, a.att, y.proj, y.proj_bias, N, A, C, C);
            op.residual_forward(a.residual_mid, a.residual, act.branch, N * C);

            // MLP
            const real* stream = in_front_of_mlp(a);
            op.moments_forward(a.mean2, a.sigma2, stream, config.epsilon, config.centred, N, C);
            norm_forward(stream, a.mean2, a.sigma2, y.ln2_gamma, y.ln2_beta, sites.mlp(l), tokens);
            op.matmul_forward(a.fc, act.normed, y.fc, y.fc_bias, N, C, F, F);
            activation_forward(a.fc);
            op.matmul_forward(act.branch, act.hidden, y.fcproj, y.fcproj_bias, N, config.n_inner, C, C);
            if (probe.mlp) probe.mlp(l, act.hidden, act.branch);
            op.residual_forward(stream_at(l + 1), a.residual_mid, act.branch, N * C);
        }
        if (probe.residual) probe.residual(L, act.final_residual);
        op.moments_forward(act.meanf, act.sigmaf, act.final_residual, config.epsilon, config.centred, N, C);
    }

    // Final norm, unembedding and the main loss, some rows of logits at a time. With gradient_scale != 0 also the gradients
    // of the unembedding, and in dbranch those of ln_f's output. Returns the mean losses; act.losses and act.kls have each.
    BatchLoss classify(const int32_t* tokens, const int32_t* targets, double gradient_scale,
                       const Distillation& distillation = {}) {
        const int64_t N = act.B * act.T, C = config.C, V = config.V;
        real* logits = act.logits;
        if (distillation.teacher != nullptr) distillation.teacher->trace(tokens, act.B, act.T, {});
        final_norm(tokens);
        for (int64_t n = 0; n < N; n += act.rows_per_chunk) {
            const int64_t rows = std::min(act.rows_per_chunk, N - n);
            const real* normed = act.normed + n * C;
            unembed(logits, normed, rows);
            if (distillation.teacher == nullptr)
                op.softmax_cross_entropy(act.losses + n, logits, targets + n, gradient_scale, gradient_scale != 0, rows,
                                         V);
            else
                distil(n, rows, targets, gradient_scale, distillation);
            if (gradient_scale == 0) continue;
            op.matmul(Transpose::No, Transpose::No, rows, C, V, logits, V, w.head, C, act.dbranch + n * C, C, false,
                      nullptr);
            op.matmul(Transpose::Yes, Transpose::No, V, C, rows, logits, V, normed, C, d.head, C, true, nullptr);
            if (d.head_bias != nullptr) op.bias_backward(d.head_bias, logits, rows, V, V);
        }
        return {mean_of(act.losses), 0, distillation.teacher == nullptr ? 0 : mean_of(act.kls)};
    }

    // Some rows' losses and gradients from their logits and those that the teacher's last pass gives them.
    void distil(int64_t n, int64_t rows, const int32_t* targets, double gradient_scale,
                const Distillation& distillation) {
        if (teacher_logits.size() < act.rows_per_chunk * config.V)
            teacher_logits.allocate(act.rows_per_chunk * config.V);
        distillation.teacher->final_logits(teacher_logits.data(), n, rows);
        if (gradient_scale == 0)
            op.same_likeliest(agreements.data() + n, act.logits, teacher_logits.data(), rows, config.V);
        op.softmax_distillation(act.losses + n, act.kls + n, act.logits, teacher_logits.data(), targets + n,
                                distillation.share, gradient_scale, rows, config.V);
    }

    // The auxiliary loss at f; for experiments at every norm, of which it is the mean (qk and v share one).
    double auxiliary_losses(const int32_t* tokens, AuxSettings settings) {
        aux.assign(sites.all.size(), AuxLoss());
        if (settings.everywhere) settings.weight /= static_cast<double>(2 * config.L + 1);
        double sum = 0;
        for (int i = 0; i < sites.size(); i++) {
            const Site& site = sites.all[i];
            if (site.kind == SiteKind::v || (site.kind != SiteKind::f && !settings.everywhere)) continue;
            aux[i] = op.aux_loss_forward(sigmas_at(site), tokens, config.end_of_text, settings, act.B, act.T);
            sum += aux[i].loss;
        }
        return sum;
    }

    // ----- backward

    // From dbranch, the gradient of ln_f's output, to the embeddings. act.dresidual holds the gradient of the stream
    // behind each branch and becomes that in front of it. `see`, if given, gets it in front of every block; the embeddings
    // are then left alone. aux_scale: 1 / accumulation steps.
    using SeeGradient = std::function<void(int64_t layer, const real* gradient)>;
    void backward(const int32_t* tokens, double aux_scale, const SeeGradient& see = {}) {
        const int64_t B = act.B, T = act.T, C = config.C;
        gradients_are_zero = false;
        op.zero(act.dresidual, B * T * C);
        norm_backward(act.final_residual, act.meanf, act.sigmaf, w.lnf_gamma, d.lnf_gamma, d.lnf_beta, sites.f(),
                      tokens);
        aux_backward(act.final_residual, act.meanf, sites.f(), aux_scale);
        for (int64_t l = config.L - 1; l >= 0; l--) {
            // Where attention and MLP read the same stream, neither's gradient is part of what the other's begins with.
            if (config.parallel) backward_heads(l);
            backward_mlp(l, tokens, aux_scale);
            if (!config.parallel) backward_heads(l);
            backward_qkv(l, tokens, aux_scale);
            if (see) see(l, act.dresidual);
        }
        if (!see) op.encoder_backward(d.wte, d.wpe, act.dresidual, tokens, B, T, C);
    }

    // From the gradient behind block l, through its MLP to the stream in front of that.
    void backward_mlp(int64_t l, const int32_t* tokens, double aux_scale) {
        const int64_t N = act.B * act.T, C = config.C, F = config.fc_width();
        const Weights::Layer &y = w.layers[l], &g = d.layers[l];
        const Activations::Layer& a = act.layers[l];
        const real* stream = in_front_of_mlp(a);
        activation_forward(a.fc);
        op.matmul_backward(act.dhidden, g.fcproj, g.fcproj_bias, act.dresidual, act.hidden, y.fcproj, N, config.n_inner,
                           C, C);
        activation_backward(a.fc);
        norm_forward(stream, a.mean2, a.sigma2, y.ln2_gamma, y.ln2_beta, sites.mlp(l), tokens);
        op.matmul_backward(act.dbranch, g.fc, g.fc_bias, act.dfc, act.normed, y.fc, N, C, F, F);
        norm_backward(stream, a.mean2, a.sigma2, y.ln2_gamma, g.ln2_gamma, g.ln2_beta, sites.mlp(l), tokens);
        aux_backward(stream, a.mean2, sites.mlp(l), aux_scale);
    }

    // From the gradient behind attention to that of its queries, keys and values, in dqkv.
    void backward_heads(int64_t l) {
        const int64_t B = act.B, T = act.T, C = config.C;
        const Weights::Layer &y = w.layers[l], &g = d.layers[l];
        const Activations::Layer& a = act.layers[l];
        op.matmul_backward(act.dbranch, g.proj, g.proj_bias, act.dresidual, a.att, y.proj, B * T, heads.width(), C, C);
        op.attention_backward(act.dqkv, act.dbranch, a.qkv, a.att, a.lse, B, T, heads);
        if (config.rotary > 0) op.rotary_backward(act.dqkv, turns.data(), B, T, heads, config.rotary);
    }

    // From there to the stream in front of attention: qk and v each through its own norm.
    void backward_qkv(int64_t l, const int32_t* tokens, double aux_scale) {
        const int64_t N = act.B * act.T, C = config.C, Q = heads.row(), QK = config.qk_width();
        const Weights::Layer &y = w.layers[l], &g = d.layers[l];
        const Activations::Layer& a = act.layers[l];
        const bool alike = divide_alike(sites.qk(l), sites.v(l));
        norm_forward(a.residual, a.mean1, a.sigma1, y.ln1_gamma, y.ln1_beta, sites.qk(l), tokens);
        op.matmul_backward(act.dbranch, g.qkv, g.qkv_bias, act.dqkv, act.normed, y.qkv, N, C, alike ? Q : QK, Q);
        norm_backward(a.residual, a.mean1, a.sigma1, y.ln1_gamma, g.ln1_gamma, g.ln1_beta, sites.qk(l), tokens);
        if (!alike) {
            norm_forward(a.residual, a.mean1, a.sigma1, y.ln1_gamma, y.ln1_beta, sites.v(l), tokens);
            op.matmul_backward(act.dbranch, g.qkv + QK, behind(g.qkv_bias, QK), act.dqkv + QK, act.normed, y.qkv + QK,
                               N, C, Q - QK, Q);
            norm_backward(a.residual, a.mean1, a.sigma1, y.ln1_gamma, g.ln1_gamma, g.ln1_beta, sites.v(l), tokens);
        }
        aux_backward(a.residual, a.mean1, sites.qk(l), aux_scale);
    }

    // ----- the passes of a training step

    void prepare_training(int64_t B, int64_t T) override {
        if (grads.size() == 0) grads.allocate(params.size());
        if (low_rank.grads.size() == 0 && low_rank.R > 0) low_rank.grads.allocate(trained_numbers());
        d = Weights(grads.data(), tensors, config);
        if (B * T > 0) act.reserve(B, T, true, config);
    }
    void zero_gradients() override {
        if (!gradients_are_zero) op.zero(grads.data(), grads.size());
        gradients_are_zero = true;
        tree.clear();
    }

    BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                               const AuxSettings& aux_settings, int64_t grad_accum,
                               const Distillation& distillation) override {
        if (tree.holds_some() || low_rank.R > 0) op.zero(grads.data(), grads.size());
        act.reserve(B, T, true, config);
        forward(inputs);
        collect_sigmas();
        BatchLoss result = classify(inputs, targets, 1.0 / static_cast<double>(B * T * grad_accum), distillation);
        result.aux = auxiliary_losses(inputs, aux_settings);
        backward(inputs, 1.0 / static_cast<double>(grad_accum));
        if (low_rank.R > 0) gradients_of_low_rank();
        tree.take(op, trained_grads(), grad_accum);
        return result;
    }

    // ----- the optimiser: section 4

    void prepare_optimiser() override;
    double gradient_norm() override;
    void update(const AdamWStep& step) override;
    Buffer& trained_grads() { return low_rank.R > 0 ? low_rank.grads : grads; }
    void gradients_of_low_rank();
    void add_low_rank_update(const std::vector<real>& before);
    void resume(uint64_t) override {}
    void fetch_parameters() override {}
    void fetch_moments() override {}

    void edit_parameters(Slice slice, double factor, const real* added) override {
        slice.edit(params.data(), factor, added);
        if (low_rank.R > 0) take_copies(*this);
    }

    // ----- passes that train nothing

    void measure_sigmas(const int32_t* inputs, int64_t B, int64_t T) override {
        act.reserve(B, T, true, config);
        forward(inputs);
        collect_sigmas();
    }
    const real* token_losses(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) override {
        act.reserve(B, T, false, config);
        forward(inputs);
        classify(inputs, targets, 0);
        return act.losses;
    }
    Comparison compare(Engine& original, const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) override {
        act.reserve(B, T, false, config);
        agreements.resize(B * T);
        forward(inputs);
        classify(inputs, targets, 0, {1, &original});
        return {act.losses, act.kls, agreements.data()};
    }
    void start_decoding(int64_t B) override {
        past_qkv.allocate(config.L * B * config.n_ctx * heads.row());
        decoded = 0;
    }
    void decode(real* out, const int32_t* tokens, int64_t B, int64_t T) override {
        act.reserve(B, T, false, config);
        past = {decoded, config.n_ctx};
        forward(tokens);
        final_norm(tokens);
        past = {};
        decoded += T;
        for (int64_t b = 0; b < B; b++) {
            const real* last = act.normed + ((b + 1) * T - 1) * config.C;
            std::copy(last, last + config.C, act.branch + b * config.C);
        }
        unembed(out, act.branch, B);
    }
    void logits(real* out, const int32_t* inputs, int64_t B, int64_t T, int64_t from) override {
        act.reserve(B, T, false, config);
        forward(inputs);
        final_norm(inputs);
        for (int64_t b = 0; b < B; b++)
            unembed(out + b * (T - from) * config.V, act.normed + (b * T + from) * config.C, T - from);
    }

    // ----- for analyses

    const Weights& weights() const override { return w; }
    void trace(const int32_t* inputs, int64_t B, int64_t T, const Probe& probe, bool keep) override {
        if (keep) prepare_training(0, 0);
        act.reserve(B, T, keep, config);
        forward(inputs, probe);
        final_norm(inputs);
    }
    void trace_from(int64_t layer, const real* residual, const int32_t* inputs, int64_t B, int64_t T) override {
        act.reserve(B, T, false, config);
        std::copy(residual, residual + B * T * config.C, stream_at(layer));
        forward_from(layer, inputs, {});
        final_norm(inputs);
    }
    void final_logits(real* out, int64_t first, int64_t count) override {
        unembed(out, act.normed + first * config.C, count);
    }
    void score(real* losses, uint8_t* likeliest, const int32_t* inputs, int64_t B, int64_t T,
               const std::vector<int64_t>& rows, const int32_t* targets) override {
        act.reserve(B, T, false, config);
        forward(inputs);
        final_norm(inputs);
        const int64_t C = config.C, V = config.V, n = static_cast<int64_t>(rows.size());
        for (int64_t first = 0; first < n; first += act.rows_per_chunk) {
            const int64_t count = std::min(act.rows_per_chunk, n - first);
            for (int64_t i = 0; i < count; i++) {
                const real* row = act.normed + rows[first + i] * C;
                std::copy(row, row + C, act.branch + i * C);
            }
            unembed(act.logits, act.branch, count);
            op.is_likeliest(likeliest + first, act.logits, targets + first, count, V);
            op.softmax_cross_entropy(losses + first, act.logits, targets + first, 0, false, count, V);
        }
    }
    const real* final_residual() const override { return act.final_residual; }
    const real* final_normed() const override { return act.normed; }
    const real* final_means() const override { return act.meanf; }
    const real* final_divisors(const int32_t* inputs) override {
        if (!sites.f().folded) return divisors(sites.f(), act.sigmaf, inputs);
        std::fill(act.divisor, act.divisor + act.B * act.T, real(1));
        return act.divisor;
    }
    const real* sigmas_at(const Site& site) const override {
        if (site.kind == SiteKind::f) return act.sigmaf;
        const Activations::Layer& a = act.layers[site.layer];
        return site.kind == SiteKind::mlp ? a.sigma2 : a.sigma1;
    }
    void stream_gradients(const real* dnormed, const int32_t* inputs, const SeeGradient& see) override {
        aux.clear();
        std::copy(dnormed, dnormed + act.B * act.T * config.C, act.dbranch);
        backward(inputs, 0, see);
    }
    void unembed_residual(real* out, const real* residual, int64_t n) override {
        act.reserve(n, 1, false, config);
        std::copy(residual, residual + n * config.C, act.final_residual);
        op.moments_forward(act.meanf, act.sigmaf, act.final_residual, config.epsilon, config.centred, n, config.C);
        const std::vector<int32_t> no_tokens(n, -1);
        final_norm(no_tokens.data());
        unembed(out, act.normed, n);
    }

  private:
    const Operations& op = operations();
    Weights w, d;  // parameters and their gradients
    const Heads heads{config.NH, config.key_heads(), config.head_size()};
    const std::vector<real> turns;    // (n_ctx,R/2,2) of rotary positions
    bool gradients_are_zero = false;  // as an update leaves them, unless others have updated a part
    GradientTree tree;                // of the step in progress
    Activations act;
    std::vector<AuxLoss> aux;         // of the pass in progress, one per site; empty: there is none
    Buffer teacher_logits;            // (rows_per_chunk,V)
    std::vector<uint8_t> agreements;  // (B,T) of compare
    // While decoding: how many positions came before those of this pass, and for how many there is room.
    struct Past {
        int64_t length = 0, capacity = 0;
    } past;
    Buffer past_qkv;  // (L,B,n_ctx,Q)
    int64_t decoded = 0;

    // Puts a layer's new queries, keys and values (B,T,Q) behind its earlier ones, and returns all (B,capacity,Q).
    const real* remember(int64_t layer, const real* qkv) {
        const int64_t rows = act.T * heads.row(), capacity = past.capacity * heads.row();
        real* const all = past_qkv.data() + layer * act.B * capacity;
        for (int64_t b = 0; b < act.B; b++)
            std::copy(qkv + b * rows, qkv + (b + 1) * rows, all + b * capacity + past.length * heads.row());
        return all;
    }

    const real* turns_from(int64_t position) const { return turns.data() + position * config.rotary; }

    // The stream that the MLP's norm reads.
    const real* in_front_of_mlp(const Activations::Layer& a) const {
        return config.parallel ? a.residual : a.residual_mid;
    }

    // act.hidden = what the neurons make of fc (B,T,F).
    void activation_forward(const real* fc) {
        const int64_t N = act.B * act.T, H = config.n_inner;
        switch (config.activation) {
            case Activation::gelu_tanh:
                return op.gelu_forward(act.hidden, fc, N * H);
            case Activation::gelu_erf:
                return op.gelu_erf_forward(act.hidden, fc, N * H);
            case Activation::gated_silu:
                return op.gated_silu_forward(act.hidden, fc, N, H);
        }
    }

    // From act.dhidden to act.dfc.
    void activation_backward(const real* fc) {
        const int64_t N = act.B * act.T, H = config.n_inner;
        switch (config.activation) {
            case Activation::gelu_tanh:
                return op.gelu_backward(act.dfc, act.dhidden, fc, N * H);
            case Activation::gelu_erf:
                return op.gelu_erf_backward(act.dfc, act.dhidden, fc, N * H);
            case Activation::gated_silu:
                return op.gated_silu_backward(act.dfc, act.dhidden, fc, N, H);
        }
    }

    // The stream in front of layer 0..L-1, or in front of ln_f.
    real* stream_at(int64_t layer) { return layer < config.L ? act.layers[layer].residual : act.final_residual; }

    const real* divisors(const Site& site, const real* sigma, const int32_t* tokens) {
        if (site.has_layer_norm()) return sigma;
        Site here = site;
        here.own_position0 &= past.length == 0;  // else position 0 is not among these
        op.norm_divisors(act.divisor, here, sigma, tokens, config.end_of_text, act.B, act.T);
        return act.divisor;
    }

    // act.normed = the norm of `inp`, or `inp` itself where the norm is folded into the next weights.
    void norm_forward(const real* inp, const real* mean, const real* sigma, const real* gamma, const real* beta,
                      const Site& site, const int32_t* tokens) {
        const int64_t N = act.B * act.T, C = config.C;
        if (site.folded)
            std::copy(inp, inp + N * C, act.normed);
        else
            op.norm_forward(act.normed, inp, mean, divisors(site, sigma, tokens), gamma, beta, N, C);
    }

    // From act.dbranch, the gradient of the norm's output: adds to act.dresidual, dgamma, dbeta.
    void norm_backward(const real* inp, const real* mean, const real* sigma, const real* gamma, real* dgamma,
                       real* dbeta, const Site& site, const int32_t* tokens) {
        const int64_t N = act.B * act.T, C = config.C;
        if (site.folded)
            op.residual_forward(act.dresidual, act.dresidual, act.dbranch, N * C);
        else
            op.norm_backward(act.dresidual, dgamma, dbeta, act.dbranch, inp, gamma, mean, sigma,
                             divisors(site, sigma, tokens), site, N, C);
    }

    void aux_backward(const real* inp, const real* mean, const Site& site, double scale) {
        if (aux.empty()) return;
        op.aux_loss_backward(act.dresidual, aux[&site - sites.all.data()], inp, mean, sigmas_at(site), scale, act.B,
                             act.T, config.C);
    }

    void final_norm(const int32_t* tokens) {
        norm_forward(act.final_residual, act.meanf, act.sigmaf, w.lnf_gamma, w.lnf_beta, sites.f(), tokens);
    }

    // out (n,V) = normed (n,C) head^T (C,V) + bias
    void unembed(real* out, const real* normed, int64_t n) {
        const int64_t C = config.C, V = config.V;
        op.matmul(Transpose::No, Transpose::Yes, n, V, C, normed, C, w.head, C, out, V, false, w.head_bias);
    }

    double mean_of(const real* values) const {  // (B,T)
        const int64_t N = act.B * act.T;
        double sum = 0;
        for (int64_t n = 0; n < N; n++) sum += static_cast<double>(values[n]);
        return sum / static_cast<double>(N);
    }

    // Of the last pass, which must have kept every layer's.
    void collect_sigmas() {
        for (int i = 0; i < sites.size(); i++) sigma_sums[i].add(sigmas_at(sites.all[i]), act.B, act.T);
    }
};

}  // namespace

std::unique_ptr<Engine> make_reference(const ModelConfig& c) {
    return std::make_unique<Reference>(c);
}

int64_t reference_activation_bytes(const ModelConfig& c, int64_t B, int64_t T, bool training) {
    Activations a;
    a.B = B;
    a.T = T;
    a.training = training;
    return a.lay_out(nullptr, c) * static_cast<int64_t>(sizeof(real));
}

// LNFREE_BF16=slow takes bf16 where it is slower all the same, to see what rounding does to a loss.
void use_reference_precision(const std::string& precision) {
    const char* wish = std::getenv("LNFREE_BF16");
    const bool all_the_same = wish != nullptr && std::string(wish) == "slow";
    if (precision == "bf16" && !all_the_same) {
        const double speed = bf16_speed();
        if (speed < 1)
            throw BadInput("--precision bf16: products in bf16 have " + std::to_string(std::lround(100 * speed)) +
                           " % of the speed of fp32 on this processor (with LNFREE_ISA " + operations().isa +
                           "); leave the flag out");
    }
    operations().use_bf16(precision == "bf16");
}

// =====================================================================================================================
// 4. The optimiser
// =====================================================================================================================

// Linear warm-up from 0, then a cosine that ends at min_lr (protocol.md 5).
double learning_rate(const Settings& s, int64_t step) {
    if (step < s.warmup) return s.lr * static_cast<double>(step) / static_cast<double>(s.warmup);
    if (s.steps == s.warmup) return s.min_lr;
    const double progress = static_cast<double>(step - s.warmup) / static_cast<double>(s.steps - s.warmup);
    return s.min_lr + 0.5 * (s.lr - s.min_lr) * (1 + std::cos(M_PI * progress));
}

double clip_scale(double norm, double clip) {
    return norm > clip ? clip / norm : 1.0;
}

// Several processes share the optimiser out (ZeRO-1, arXiv 1910.02054): each has the whole model, and of the summed gradient
// and of the moments one part of the flat buffer, which it updates; then all get all parameters. Alone, the part is the whole.

double Reference::gradient_norm() {
    Buffer& g = trained_grads();
    tree.reduce(op, g);
    const Range part = processes().part(g.size());
    std::vector<double> partial((g.size() + kNormBlock - 1) / kNormBlock);
    op.sum_squares(partial.data() + part.first / kNormBlock, g.data() + part.first, part.size());
    processes().all_gather(partial.data(), sizeof partial[0], processes().shares(partial.size()));
    double total = 0;
    for (const double sum : partial) total += sum;
    return std::sqrt(total);
}

void Reference::prepare_optimiser() {
    const int64_t part = processes().part(trained_numbers()).size();
    m.allocate(part);
    v.allocate(part);
    updates = 0;
}

void Reference::update(const AdamWStep& s) {
    updates++;
    const double t = static_cast<double>(updates);
    AdamWNumbers a{};
    a.b1 = static_cast<real>(s.beta1);
    a.b2 = static_cast<real>(s.beta2);
    a.one_minus_b1 = static_cast<real>(1 - s.beta1);
    a.one_minus_b2 = static_cast<real>(1 - s.beta2);
    a.eps = static_cast<real>(s.eps);
    a.root2 = static_cast<real>(1 / std::sqrt(1 - std::pow(s.beta2, t)));
    Buffer& values = low_rank.R > 0 ? low_rank.values : params;
    const std::vector<real> before(values.data(), values.data() + (low_rank.R > 0 ? values.size() : 0));
    const Range part = processes().part(values.size());
    for (const Tensor& tensor : trained()) {
        const Range mine = common(part, {tensor.offset, tensor.offset + tensor.size});
        const int64_t at = mine.first, in_part = at - part.first;
        a.keep = static_cast<real>(tensor.decay ? 1 - s.lr * s.weight_decay : 1);
        a.step = static_cast<real>(tensor.unit * s.lr / (1 - std::pow(s.beta1, t)));
        a.scale = static_cast<real>(tensor.unit * s.gradient_scale);
        op.adamw(values.data() + at, m.data() + in_part, v.data() + in_part, trained_grads().data() + at, a,
                 mine.size());
    }
    gradients_are_zero = processes().size() == 1 && low_rank.R == 0;
    processes().complete(values.data(), values.size());
    if (low_rank.R > 0) add_low_rank_update(before);
}

// ---------------------------------------------------------------------------------------------------------------------
// Low-rank updates (dev/engine.h): W = W_0 + A B. Both passes know W alone; what AdamW trains is A and B, whose gradients
// follow from W's:    dA = dW B^T,    dB = A^T dW.    That is exact, and the whole gradient of one micro-batch is in memory anyway;
// what low rank saves is AdamW's moments, sums of gradients, and what processes send each other.

// Of the micro-batch whose gradients are in `grads`.
void Reference::gradients_of_low_rank() {
    const int64_t R = low_rank.R;
    const auto of_matrix = [&](const Tensor& t, int64_t A, int64_t B) {
        const int64_t K = static_cast<int64_t>(t.shape[0]), M = static_cast<int64_t>(t.shape[1]);
        const real *dW = grads.data() + t.offset, *values = low_rank.values.data();
        real* g = low_rank.grads.data();
        op.matmul(Transpose::No, Transpose::Yes, K, R, M, dW, M, values + B, M, g + A, R, false, nullptr);
        op.matmul(Transpose::Yes, Transpose::No, R, M, K, values + A, R, dW, M, g + B, M, false, nullptr);
    };
    const auto of_copy = [&](const Tensor& t, int64_t at) {
        std::copy(grads.data() + t.offset, grads.data() + t.offset + t.size, low_rank.grads.data() + at);
    };
    for_each_trained(tensors, low_rank.table, of_matrix, of_copy);
}

// What an update of A and B does to W:   A B - A_0 B_0 = (A - A_0) B + A_0 (B - B_0),   small numbers, which round less than W
// would if A_0 B_0 were taken from it. `before` holds A_0 and B_0.
void Reference::add_low_rank_update(const std::vector<real>& before) {
    const int64_t R = low_rank.R;
    const real* now = low_rank.values.data();
    std::vector<real> step(before.size());
    for (size_t i = 0; i < step.size(); i++) step[i] = now[i] - before[i];
    const auto of_matrix = [&](const Tensor& t, int64_t A, int64_t B) {
        const int64_t K = static_cast<int64_t>(t.shape[0]), M = static_cast<int64_t>(t.shape[1]);
        real* W = params.data() + t.offset;
        op.matmul(Transpose::No, Transpose::No, K, M, R, step.data() + A, R, now + B, M, W, M, true, nullptr);
        op.matmul(Transpose::No, Transpose::No, K, M, R, before.data() + A, R, step.data() + B, M, W, M, true, nullptr);
    };
    const auto of_copy = [&](const Tensor& t, int64_t at) {
        std::copy(now + at, now + at + t.size, params.data() + t.offset);
    };
    for_each_trained(tensors, low_rank.table, of_matrix, of_copy);
}

// =====================================================================================================================
// 5. The loop
// =====================================================================================================================
//
// Written once, for every engine. dev/run watches it through its seams (dev/method.h): there it is logged, saved and
// stopped, there experiments bend it. Nothing of that is needed to understand what happens to the model.

// The micro-batches of a step. Several processes take a run of them each (dev/processes.h), and what is averaged over all,
// losses and sigmas, is added up in the order of the micro-batches whoever took them. (Gradients are summed in the engine:
// dev/cpu/gradient_tree.h.)
class MicroBatches {
  public:
    const Range mine;

    MicroBatches(Engine& model, int64_t count)
        : mine(processes().share(count)), model_(model), width_(3 + 4 * model.sites.size()), count_(count) {
        noted_.resize(count * width_);
        model.clear_sigma_sums();
    }

    // Notes what the pass over micro-batch `a` came to.
    void add(int64_t a, const BatchLoss& loss) {
        double* next = noted_.data() + a * width_;
        for (const double x : {loss.loss, loss.aux, loss.kl}) *next++ = x;
        for (const SigmaSum& sum : model_.sigma_sums)
            for (const double x : {sum.at_0, sum.elsewhere, double(sum.n_at_0), double(sum.n_elsewhere)}) *next++ = x;
        model_.clear_sigma_sums();
    }

    // The mean losses over all micro-batches; the model's sigma_sums become those of all.
    BatchLoss sum() {
        std::vector<int64_t> counts = processes().shares(count_);
        for (int64_t& count : counts) count *= width_;
        processes().all_gather(noted_.data(), sizeof noted_[0], counts);
        BatchLoss mean;
        const double* next = noted_.data();
        for (int64_t a = 0; a < count_; a++) {
            for (double* total : {&mean.loss, &mean.aux, &mean.kl}) *total += *next++ / static_cast<double>(count_);
            for (SigmaSum& sum : model_.sigma_sums) {
                sum.at_0 += *next++;
                sum.elsewhere += *next++;
                sum.n_at_0 += static_cast<int64_t>(*next++);
                sum.n_elsewhere += static_cast<int64_t>(*next++);
            }
        }
        return mean;
    }

  private:
    Engine& model_;
    int64_t width_, count_;
    std::vector<double> noted_;  // (count,width)
};

// A site that is due at step 0 has no running value yet: it is frozen at this (protocol.md 3).
void measure_sigmas_before_training(Engine& model, const StepBatches& batches, int64_t B, int64_t T,
                                    bool without_position0) {
    MicroBatches parts(model, static_cast<int64_t>(batches.inputs.size()));
    for (int64_t a = parts.mine.first; a < parts.mine.last; a++) {
        model.measure_sigmas(batches.inputs[a].data(), B, T);
        parts.add(a, {});
    }
    parts.sum();
    for (int i = 0; i < model.sites.size(); i++)
        model.sites.all[i].running = model.sigma_sums[i].mean(without_position0);
}

// Removes what is due, before the forward pass of `step`.
static std::vector<Event> remove_due_sites(Engine& model, const Settings& s, const std::vector<Removal>& schedule,
                                           const StepBatches& batches, int64_t step) {
    std::vector<int> due;
    for (const Removal& removal : schedule)
        if (removal.step == step && model.sites.all[removal.site].has_layer_norm()) due.push_back(removal.site);
    if (step == 0 && !due.empty())
        measure_sigmas_before_training(model, batches, s.batch, s.seq, s.experiment.sigma_skips_position0);
    std::vector<Event> events;
    for (const int site : due) events.push_back(remove_site(model.sites, site, step));
    if (step == 0)
        for (Site& site : model.sites.all) site.running = NAN;  // the running value starts with step 0's training
    return events;
}

void train(Engine& model, const Settings& s, const std::vector<Removal>& schedule, Seams& seams, int64_t first,
           Engine* teacher) {
    StepBatches batches;
    for (int64_t step = first; step < s.stop; step++) {
        seams.read_batches(step, batches);
        seams.before_step(step, batches);
        if (step >= s.stop) break;

        StepReport report;
        report.step = step;
        report.removed = remove_due_sites(model, s, schedule, batches, step);

        MicroBatches parts(model, s.grad_accum);
        model.zero_gradients();
        for (int64_t a = parts.mine.first; a < parts.mine.last; a++) {
            const BatchLoss loss = model.forward_backward(batches.inputs[a].data(), batches.targets[a].data(), s.batch,
                                                          s.seq, s.aux(), s.grad_accum, {s.distill, teacher});
            parts.add(a, loss);
            seams.after_micro_batch(step, loss);
        }
        report.loss = parts.sum();
        report.gradient_norm = model.gradient_norm();
        report.lr = learning_rate(s, step);
        seams.after_loss(report);

        for (int i = 0; i < model.sites.size(); i++)
            update_running_sigma(model.sites.all[i], model.sigma_sums[i].mean(s.experiment.sigma_skips_position0),
                                 s.sigma_ema);
        model.update({report.lr, s.beta1, s.beta2, s.adam_eps, s.weight_decay, clip_scale(report.gradient_norm, s.clip),
                      s.seed});
        seams.after_step(report);
    }
}

// =====================================================================================================================
// 6. The result
// =====================================================================================================================
//
// When every site is linear, the model has two exact forms (protocol.md 9). Each function lists the tensors of one form
// as recipes: a tensor is made while it is written, so that no second copy of the model is ever in memory.

// LayerNorm with this epsilon divides by 1e6 whatever comes in, as long as the variance is far below 1e12.
constexpr double kFreezingEpsilon = 1e12;

std::vector<TensorRecipe> plain_recipes(const Engine& model) {
    std::vector<TensorRecipe> recipes;
    for (const Tensor& t : model.tensors) {
        const real* from = model.params.data() + t.offset;
        recipes.push_back({t.name, t.shape, [from, n = t.size](real* out) { std::copy(from, from + n, out); }});
    }
    return recipes;
}

static TensorRecipe& recipe_named(std::vector<TensorRecipe>& recipes, const std::string& name) {
    for (TensorRecipe& r : recipes)
        if (r.name == name) return r;
    throw RunFailure("internal error: no tensor is named " + name);
}

// gamma becomes gamma * sqrt(epsilon) / sigma_bar: stock LayerNorm divides by sqrt(epsilon).
static void scale_gamma_for_stock_layernorm(std::vector<TensorRecipe>& recipes, const std::string& name,
                                            const real* gamma, int64_t C, double sigma_bar) {
    recipe_named(recipes, name).fill = [=](real* out) {
        const double factor = std::sqrt(kFreezingEpsilon) / sigma_bar;
        for (int64_t c = 0; c < C; c++) out[c] = static_cast<real>(static_cast<double>(gamma[c]) * factor);
    };
}

// A stock model has one ln_1 for two sites. It gets sigma_qk; the v columns make up for it with s = sigma_qk / sigma_v:
// W_v becomes s W_v, and b_v becomes b_v + (1 - s) beta W_v. Exact, because both norms are linear.
static void move_sigma_v_into_c_attn(std::vector<TensorRecipe>& recipes, Engine& model, int64_t l) {
    const std::string name = "h." + std::to_string(l) + ".";
    const int64_t C = model.config.C, Q = model.config.qkv_width(), QK = model.config.qk_width();
    const double s = model.sites.qk(l).sigma_bar / model.sites.v(l).sigma_bar;
    const real* weight = model.tensor(name + "attn.c_attn.weight");
    const real* bias = model.tensor(name + "attn.c_attn.bias");
    const real* beta = model.tensor(name + "ln_1.bias");
    recipe_named(recipes, name + "attn.c_attn.weight").fill = [=](real* out) {
        for (int64_t i = 0; i < C; i++)
            for (int64_t j = 0; j < Q; j++)
                out[i * Q + j] =
                    j < QK ? weight[i * Q + j] : static_cast<real>(s * static_cast<double>(weight[i * Q + j]));
    };
    if (beta == nullptr) return;
    recipe_named(recipes, name + "attn.c_attn.bias").fill = [=](real* out) {
        std::copy(bias, bias + QK, out);
        for (int64_t j = QK; j < Q; j++) {
            double beta_W = 0;
            for (int64_t i = 0; i < C; i++)
                beta_W += static_cast<double>(beta[i]) * static_cast<double>(weight[i * Q + j]);
            out[j] = static_cast<real>(static_cast<double>(bias[j]) + (1 - s) * beta_W);
        }
    };
}

static void require_exportable(const Engine& model, const char* form) {
    for (const Site& site : model.sites.all) {
        const char* reason = site.has_layer_norm()  ? "still has its LayerNorm"
                             : !site.removed()      ? "is still on its way to FakeLN"
                             : site.own_position0   ? "still has its own sigma at position 0"
                             : site.own_end_of_text ? "still has its own sigma at end-of-text"
                                                    : nullptr;
        if (reason != nullptr)
            throw BadInput("site " + site_name(site) + " " + reason + ": the " + form +
                           " form is for finished models; let `remove` go to its end first");
    }
}

std::vector<TensorRecipe> hugging_face_recipes(Engine& model, ModelConfig& config) {
    if (model.config.form == ModelForm::folded)
        throw BadInput(
            "a folded model has no norm parameters left and cannot become the hf form; export that from the model it "
            "was folded from");
    config = model.config;
    config.form = ModelForm::hugging_face;
    std::vector<TensorRecipe> recipes = plain_recipes(model);
    if (model.sites.none_removed()) return recipes;
    require_exportable(model, "hf");
    config.epsilon = kFreezingEpsilon;
    const auto scale = [&](const std::string& norm, double sigma_bar) {
        const std::string name = norm + ".weight";
        scale_gamma_for_stock_layernorm(recipes, name, model.tensor(name), config.C, sigma_bar);
    };
    for (int64_t l = 0; l < config.L; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        scale(h + "ln_1", model.sites.qk(l).sigma_bar);
        scale(h + "ln_2", model.sites.mlp(l).sigma_bar);
        move_sigma_v_into_c_attn(recipes, model, l);
    }
    scale("ln_f", model.sites.f().sigma_bar);
    return recipes;
}

// What a weight matrix reads: FakeLN(x), of a norm's gamma (C), beta (C) or null, centred or not.
struct FrozenNorm {
    const real *gamma, *beta;
    bool centred;
    int64_t C;
};

static FrozenNorm frozen_norm(Engine& model, const std::string& name) {
    return {model.tensor(name + ".weight"), model.tensor(name + ".bias"), model.config.centred, model.config.C};
}

// One column w of such a matrix, as a column that reads x: centring, gamma and 1 / sigma_bar go in.
//     FakeLN(x) w = x w' + beta w   with   w' = (gamma w - mean(gamma w)) / sigma_bar
// `in` and `out` are strided by `stride`; out may be null. Returns beta w, which belongs into the bias.
static double fold_column(real* out, const real* in, int64_t stride, const FrozenNorm& norm, double sigma_bar) {
    double mean = 0, beta_w = 0;
    for (int64_t c = 0; c < norm.C; c++) {
        mean += static_cast<double>(norm.gamma[c]) * static_cast<double>(in[c * stride]);
        if (norm.beta != nullptr) beta_w += static_cast<double>(norm.beta[c]) * static_cast<double>(in[c * stride]);
    }
    mean = norm.centred ? mean / static_cast<double>(norm.C) : 0;
    if (out != nullptr)
        for (int64_t c = 0; c < norm.C; c++)
            out[c * stride] = static_cast<real>(
                (static_cast<double>(norm.gamma[c]) * static_cast<double>(in[c * stride]) - mean) / sigma_bar);
    return beta_w;
}

// Folds the norm in front of a Conv1D weight (C,M) and its bias (M); sigma_bar may differ from column to column.
static void fold_linear(std::vector<TensorRecipe>& recipes, Engine& model, const std::string& linear,
                        const std::string& name, const std::function<double(int64_t)>& sigma_bar, int64_t M) {
    const real *weight = model.tensor(linear + ".weight"), *bias = model.tensor(linear + ".bias");
    const FrozenNorm norm = frozen_norm(model, name);
    recipe_named(recipes, linear + ".weight").fill = [=](real* out) {
        for (int64_t j = 0; j < M; j++) fold_column(out + j, weight + j, M, norm, sigma_bar(j));
    };
    if (bias == nullptr) return;
    recipe_named(recipes, linear + ".bias").fill = [=](real* out) {
        for (int64_t j = 0; j < M; j++)
            out[j] = static_cast<real>(static_cast<double>(bias[j]) + fold_column(nullptr, weight + j, M, norm, 1));
    };
}

// ln_f goes into an unembedding of its own, untied from wte and with a bias.
std::vector<TensorRecipe> folded_recipes(Engine& model, ModelConfig& config) {
    require_exportable(model, "folded");
    config = model.config;
    config.form = ModelForm::folded;
    std::vector<TensorRecipe> recipes = plain_recipes(model);
    if (model.config.form == ModelForm::folded) return recipes;
    recipes.erase(std::remove_if(recipes.begin(), recipes.end(),
                                 [](const TensorRecipe& r) {
                                     return r.name.find("ln_") != std::string::npos || r.name == "lm_head.weight";
                                 }),
                  recipes.end());
    const int64_t C = config.C, V = config.V, QK = config.qk_width();
    for (int64_t l = 0; l < config.L; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        const double qk = model.sites.qk(l).sigma_bar, v = model.sites.v(l).sigma_bar,
                     mlp = model.sites.mlp(l).sigma_bar;
        const auto of_column = [=](int64_t j) { return j < QK ? qk : v; };
        fold_linear(recipes, model, h + "attn.c_attn", h + "ln_1", of_column, config.qkv_width());
        fold_linear(
            recipes, model, h + "mlp.c_fc", h + "ln_2", [=](int64_t) { return mlp; }, config.fc_width());
    }
    const real* head = model.weights().head;
    const FrozenNorm norm = frozen_norm(model, "ln_f");
    const double sigma_f = model.sites.f().sigma_bar;
    recipes.push_back({"lm_head.weight", {static_cast<uint64_t>(V), static_cast<uint64_t>(C)}, [=](real* out) {
                           for (int64_t i = 0; i < V; i++) fold_column(out + i * C, head + i * C, 1, norm, sigma_f);
                       }});
    recipes.push_back({"lm_head.bias", {static_cast<uint64_t>(V)}, [=](real* out) {
                           for (int64_t i = 0; i < V; i++)
                               out[i] = static_cast<real>(fold_column(nullptr, head + i * C, 1, norm, sigma_f));
                       }});
    return recipes;
}

// A site's gamma and sigma_bar only matter as gamma / sigma_bar, so where the folder does not say (LN-free models that others
// published), sigma_bar is chosen to bring gamma to unit root mean square, where Adam trains it well.
void adopt_frozen_layernorms(Engine& model, const Sites* recorded) {
    const double divisor = std::sqrt(model.config.epsilon);
    const int64_t C = model.config.C;
    const auto adopt = [&](const std::string& name, Site& site) {
        real* gamma = model.tensor(name);
        double squares = 0;
        for (int64_t c = 0; c < C; c++) squares += static_cast<double>(gamma[c]) * static_cast<double>(gamma[c]);
        const double rms = std::sqrt(squares / static_cast<double>(C));
        site.a = 1;
        site.sigma_bar = recorded != nullptr ? recorded->all[&site - model.sites.all.data()].sigma_bar
                         : rms > 0           ? divisor / rms
                                             : divisor;
        for (int64_t c = 0; c < C; c++)
            gamma[c] = static_cast<real>(static_cast<double>(gamma[c]) * site.sigma_bar / divisor);
    };
    for (int64_t l = 0; l < model.config.L; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        adopt(h + "ln_1.weight", model.sites.qk(l));
        model.sites.v(l).a = 1;
        model.sites.v(l).sigma_bar = model.sites.qk(l).sigma_bar;  // its own one is in the v columns of c_attn
        adopt(h + "ln_2.weight", model.sites.mlp(l));
    }
    adopt("ln_f.weight", model.sites.f());
    model.config.epsilon = 1e-5;  // what sigma statistics are measured with from here on
}

}  // namespace lnfree

// =====================================================================================================================
// 7. main
// =====================================================================================================================
//
// The program hands its words to dev/commands. This file alone shows the method on a text of its own.

#if defined(LNFREE_PROGRAM)

#include "dev/commands/commands.h"

int main(int argc, char** argv) {
    return lnfree::program_main(argc, argv);
}

#elif !defined(LNFREE_NO_MAIN)

#include "data/random.h"

namespace lnfree {
namespace {

// Sentences whose second half follows from the first, one token per byte; token 256 ends each.
std::vector<int32_t> made_up_text(int64_t tokens) {
    const char* const names[] = {"Anna", "Ben", "Clara", "David", "Ella", "Frank"};
    const char* const things[] = {"ball", "book", "apple", "drum"};
    SplitMix64 random(1);
    std::vector<int32_t> text;
    while (static_cast<int64_t>(text.size()) < tokens) {
        const auto from = random.below(6), to = (from + 1 + random.below(5)) % 6;
        const std::string thing = things[random.below(4)];
        std::string s = std::string(names[from]) + " had a " + thing + " and met " + names[to] + ". ";
        s += std::string(names[from]) + " gave the " + thing + " to " + names[to] + ". Now " + names[to] + " has it.";
        for (const unsigned char c : s) text.push_back(c);
        text.push_back(256);
    }
    return text;
}

void initialise_weights(Engine& model) {
    SplitMix64 random(2);
    for (const Tensor& t : model.tensors)
        for (int64_t i = 0; i < t.size; i++) {
            const bool gamma = t.name.find("ln_") != std::string::npos && t.name.back() == 't';
            model.params.data()[t.offset + i] = static_cast<real>(gamma ? 1 : t.decay ? 0.02 * random.normal() : 0);
        }
}

// Random windows of the text as batches, and a line of the screen now and then.
class Demonstration : public Seams {
  public:
    Demonstration(const std::vector<int32_t>& text, const Settings& s) : text_(text), s_(s), random_(s.seed) {}

    void read_batches(int64_t, StepBatches& batches) override {
        batches.inputs.assign(1, {});
        batches.targets.assign(1, {});
        for (int64_t b = 0; b < s_.batch; b++) {
            const auto window = text_.begin() + static_cast<int64_t>(random_.below(text_.size() - s_.seq));
            batches.inputs[0].insert(batches.inputs[0].end(), window, window + s_.seq);
            batches.targets[0].insert(batches.targets[0].end(), window + 1, window + s_.seq + 1);
        }
    }
    void after_step(const StepReport& r) override {
        if (r.step % 50 != 0 && r.removed.empty() && r.step != s_.stop - 1) return;
        std::printf("step %4lld  loss %.4f  aux %.5f", static_cast<long long>(r.step), r.loss.loss, r.loss.aux);
        for (const Event& e : r.removed) std::printf("  %d gone, sigma_bar %.3f", e.site, e.sigma_bar);
        std::printf("\n");
        std::fflush(stdout);
    }

  private:
    const std::vector<int32_t>& text_;
    const Settings& s_;
    SplitMix64 random_;
};

void run(Engine& model, const Settings& s, const std::vector<int32_t>& text, const std::vector<Removal>& schedule) {
    Demonstration seams(text, s);
    model.prepare_training(s.batch, s.seq);
    model.prepare_optimiser();
    train(model, s, schedule, seams, 0);
}

// Mean loss on sequences of T tokens that no training has seen.
double held_out_loss(Engine& model, const std::vector<int32_t>& text, int64_t T) {
    double sum = 0;
    int64_t counted = 0;
    for (size_t at = 0; at + T < text.size(); at += T, counted += T) {
        const real* losses = model.token_losses(text.data() + at, text.data() + at + 1, 1, T);
        for (int64_t t = 0; t < T; t++) sum += static_cast<double>(losses[t]);
    }
    return sum / static_cast<double>(counted);
}

std::unique_ptr<Engine> folded(Engine& model) {
    ModelConfig config;
    const std::vector<TensorRecipe> recipes = folded_recipes(model, config);
    std::unique_ptr<Engine> made = make_reference(config);
    for (const TensorRecipe& recipe : recipes) recipe.fill(made->tensor(recipe.name));
    return made;
}

int demonstrate() {
    const std::vector<int32_t> all = made_up_text(240'000);
    const std::vector<int32_t> text(all.begin(), all.end() - 20'000), held_out(all.end() - 20'000, all.end());
    ModelConfig c;
    c.L = 2;
    c.NH = 4;
    c.C = 64;
    c.n_inner = 4 * c.C;
    c.V = 257;
    c.n_ctx = 64;
    c.end_of_text = 256;
    const std::unique_ptr<Engine> model = backend().make(c);
    initialise_weights(*model);

    std::printf("A GPT-2 of 2 layers x 64 learns a made-up text.\n");
    Settings pretraining;
    pretraining.batch = 16;
    pretraining.seq = c.n_ctx;
    pretraining.steps = pretraining.stop = 500;
    pretraining.warmup = 50;
    pretraining.lr = 3e-3;
    pretraining.min_lr = 3e-4;
    pretraining.aux_weight = 0;
    run(*model, pretraining, text, {});
    const double with_layernorm = held_out_loss(*model, held_out, c.n_ctx);

    std::printf("\nIts %d LayerNorms go, by the paper's schedule.\n", model->sites.size());
    Settings removal = pretraining;
    removal.seed = 3;
    removal.steps = removal.stop = 300;
    removal.warmup = 15;
    removal.lr = 6e-4;
    removal.aux_weight = 0.1;
    fit_schedule(removal, model->sites.L);
    derive_starts(removal, model->sites.L);
    run(*model, removal, text, removal_schedule(removal, model->sites.L));

    std::printf("\nheld-out loss   with LayerNorm %.4f   without %.4f   folded, no norm at all %.4f\n", with_layernorm,
                held_out_loss(*model, held_out, c.n_ctx), held_out_loss(*folded(*model), held_out, c.n_ctx));
    return 0;
}

}  // namespace
}  // namespace lnfree

int main() try { return lnfree::demonstrate(); } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}

#endif

#endif  // the rest of this file
