// Holds attention kernels against the CPU reference: for the laboratory and for test/cuda. A and Q are the heads' width and
// row (dev/cpu/operations.h).
//
// In float a result may be off by 1e-5 of the largest value. In bf16 the reference is computed in float from the same
// bf16 inputs, and the bound follows from what the kernels round. To the nearest bf16 is a step of at most 2^-8 of the
// value: it happens once to every result, and in the tensor-core kernels also to every weight (p or ds) before it
// multiplies a row. So a result r, a sum of weight * value, may be off by
//
//     2^-8 |r|  +  2^-8 sum |weight * value|  (tensor cores only)  +  1e-5 * the largest such sum
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../data/random.h"
#include "../cuda_on_cpu/cuda.h"
#include "lab.h"

namespace lnfree::cuda::attention_check {

template <class X>
using Forward = void (*)(X* out, float* lse, const X* qkv, int64_t B, int64_t T, const Heads& heads,
                         cudaStream_t stream);
template <class X>
using Backward = void (*)(X* dqkv, float* delta_scratch, const X* dout, const X* qkv, const X* out, const float* lse,
                          int64_t B, int64_t T, const Heads& heads, cudaStream_t stream);

struct Sizes {
    int64_t B, T, NH, HS;
    int64_t sharing = 1;  // heads of queries to each of keys

    Heads heads() const { return {NH, NH / sharing, HS}; }
    int64_t C() const { return NH * HS; }
    size_t positions() const { return static_cast<size_t>(B * T); }
    size_t width() const { return static_cast<size_t>(C()); }
    size_t row() const { return static_cast<size_t>(heads().row()); }  // of qkv
    size_t rows() const { return positions() * static_cast<size_t>(NH); }
    std::string text() const {
        return "B " + std::to_string(B) + ", T " + std::to_string(T) + ", NH " + std::to_string(NH) + ", HS " +
               std::to_string(HS) + ", " + std::to_string(sharing) + " to a key's";
    }
};

// What the laboratory checks versions with: sizes around the tiles' edges, and for bf16 only head sizes that tensor
// cores take, every one of them.
template <class X>
std::vector<Sizes> odd_sizes() {
    if (std::is_same_v<X, bf16>)
        return {{2, 65, 1, 64}, {1, 200, 3, 64}, {1, 70, 1, 32}, {1, 70, 1, 96}, {1, 70, 1, 128}};
    return {{2, 3, 1, 5}, {1, 65, 3, 16}, {2, 129, 1, 64}, {1, 40, 1, 200}};
}

// A micro-batch of GPT-2 Small: what is timed.
constexpr Sizes gpt2_small = {16, 1024, 12, 64};

// Floating-point operations of a forward: two products over the half of the T x T square that is causal.
inline double forward_flops(const Sizes& s) {
    return 2 * 2 * static_cast<double>(s.B * s.C()) * static_cast<double>(s.T * s.T) / 2;
}

template <class X>
std::string name(const Sizes& s, double flops) {
    return lab::label<X>(s.B, s.T, s.NH, s.HS) + " (B, T, NH, HS), " + format_fixed(1e-9 * flops, 1) + " GFLOP";
}

// As X can hold them.
template <class X>
std::vector<float> as_held(const std::vector<float>& values) {
    return floats(rounded<X>(values));
}

// Made-up inputs, already rounded to X. Queries and keys are uniform in [-spread, spread], values and dout in [-1, 1].
template <class X>
struct Problem {
    Sizes sizes;
    std::vector<float> qkv, dout;  // (B,T,Q), (B,T,A)

    Problem(const Sizes& s, double spread, uint64_t seed)
        : sizes(s), qkv(s.positions() * s.row()), dout(s.positions() * s.width()) {
        SplitMix64 random(seed);
        for (size_t i = 0; i < qkv.size(); ++i) {
            const bool is_value = i % s.row() >= (s.width() + s.row()) / 2;
            qkv[i] = static_cast<float>((is_value ? 1.0 : spread) * (2 * random.uniform() - 1));
        }
        for (float& d : dout) d = static_cast<float>(2 * random.uniform() - 1);
        qkv = as_held<X>(qkv);
        dout = as_held<X>(dout);
    }
};

// What the reference makes of a problem; terms: for each result the sum of its terms' magnitudes.
struct ForwardAnswer {
    std::vector<float> out, lse, terms;  // (B,T,A), (B,NH,T), (B,T,A)
};
struct BackwardAnswer {
    std::vector<float> dqkv, terms;  // (B,T,Q)
};

// The rows of qkv, and of what is shaped like it, that belong to a pair of positions in one head: where they begin.
struct Pair {
    size_t query, key, value;

    Pair(const Sizes& s, int64_t b, int64_t h, int64_t t, int64_t u) {
        const auto head = [&](int64_t position, int64_t index) {
            return static_cast<size_t>((b * s.T + position) * s.heads().row() + index * s.HS);
        };
        query = head(t, h);
        key = head(u, s.NH + h / s.sharing);
        value = head(u, s.NH + s.NH / s.sharing + h / s.sharing);
    }
};

// visit(pair, row, p): row is where query t begins in out, p its weight for key u <= t.
template <class X, class Visit>
void for_each_pair(const Problem<X>& problem, const std::vector<float>& lse, const Visit& visit) {
    const Sizes& s = problem.sizes;
    const float scale = 1 / std::sqrt(static_cast<float>(s.HS));
    for (int64_t b = 0; b < s.B; ++b)
        for (int64_t h = 0; h < s.NH; ++h)
            for (int64_t t = 0; t < s.T; ++t)
                for (int64_t u = 0; u <= t; ++u) {
                    const Pair pair(s, b, h, t, u);
                    float score = 0;
                    for (size_t d = 0; d < static_cast<size_t>(s.HS); ++d)
                        score += problem.qkv[pair.query + d] * problem.qkv[pair.key + d];
                    const float row_lse = lse[static_cast<size_t>((b * s.NH + h) * s.T + t)];
                    visit(pair, static_cast<size_t>((b * s.T + t) * s.C() + h * s.HS),
                          std::exp(scale * score - row_lse));
                }
}

template <class X>
ForwardAnswer answer_forward(const Problem<X>& problem) {
    const Sizes& s = problem.sizes;
    const std::vector<float> nothing(problem.dout.size());
    ForwardAnswer answer = {nothing, std::vector<float>(s.rows()), nothing};
    operations().attention_forward(answer.out.data(), answer.lse.data(), problem.qkv.data(), s.B, s.T, s.heads(), 0,
                                   s.T);
    for_each_pair(problem, answer.lse, [&](const Pair& pair, size_t row, float p) {
        for (size_t d = 0; d < static_cast<size_t>(s.HS); ++d)
            answer.terms[row + d] += p * std::abs(problem.qkv[pair.value + d]);
    });
    return answer;
}

// From the `out`, as X can hold it, and the lse that the kernels get.
template <class X>
BackwardAnswer answer_backward(const Problem<X>& problem, const std::vector<float>& out,
                               const std::vector<float>& lse) {
    const Sizes& s = problem.sizes;
    const std::vector<float>&qkv = problem.qkv, &dout = problem.dout, nothing(qkv.size());
    BackwardAnswer answer = {nothing, nothing};
    operations().attention_backward(answer.dqkv.data(), dout.data(), qkv.data(), out.data(), lse.data(), s.B, s.T,
                                    s.heads());
    const auto HS = static_cast<size_t>(s.HS);
    const float scale = 1 / std::sqrt(static_cast<float>(HS));
    for_each_pair(problem, lse, [&](const Pair& pair, size_t row, float p) {
        float dp_less_delta = 0;
        for (size_t d = 0; d < HS; ++d) dp_less_delta += dout[row + d] * (qkv[pair.value + d] - out[row + d]);
        const float ds = std::abs(scale * p * dp_less_delta);
        for (size_t d = 0; d < HS; ++d) {
            answer.terms[pair.query + d] += ds * std::abs(qkv[pair.key + d]);
            answer.terms[pair.key + d] += ds * std::abs(qkv[pair.query + d]);
            answer.terms[pair.value + d] += p * std::abs(dout[row + d]);
        }
    });
    return answer;
}

inline float largest_of(const std::vector<float>& values) {
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(value));
    return largest;
}

// What a kernel rounds to bf16: nothing, its results, or also its weights.
enum class Rounds { nothing, results, weights_too };

// The largest error in units of the bound above; at most 1 is right, and a NaN is infinitely wrong. `terms`, the sums
// of magnitudes, are only looked at if something is rounded.
inline double worst_error(const std::vector<float>& got, const std::vector<float>& expected,
                          const std::vector<float>& terms, Rounds rounds) {
    const double unit = kRounding<bf16>;
    const double floor = 1e-5 * static_cast<double>(largest_of(rounds == Rounds::nothing ? expected : terms));
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        double bound = floor;
        if (rounds != Rounds::nothing) bound += unit * static_cast<double>(std::abs(expected[i]));
        if (rounds == Rounds::weights_too) bound += unit * static_cast<double>(terms[i]);
        const double error = static_cast<double>(std::abs(got[i] - expected[i])) / bound;
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    return worst;
}

// out and lse.
template <class X>
std::pair<std::vector<float>, std::vector<float>> run_forward(Forward<X> forward, const Problem<X>& problem) {
    const Sizes& s = problem.sizes;
    const DeviceArray<X> qkv(rounded<X>(problem.qkv)), out(s.B * s.T * s.C());
    const DeviceArray<float> lse(s.B * s.NH * s.T);
    forward(out.data(), lse.data(), qkv.data(), s.B, s.T, s.heads(), nullptr);
    return {floats(out.host()), lse.host()};
}

// dqkv, from the reference's out and lse.
template <class X>
std::vector<float> run_backward(Backward<X> backward, const Problem<X>& problem, const ForwardAnswer& forward) {
    const Sizes& s = problem.sizes;
    const DeviceArray<X> qkv(rounded<X>(problem.qkv)), out(rounded<X>(forward.out)), dout(rounded<X>(problem.dout)),
        dqkv(qkv.size());
    const DeviceArray<float> lse(forward.lse), delta(lse.size());
    backward(dqkv.data(), delta.data(), dout.data(), qkv.data(), out.data(), lse.data(), s.B, s.T, s.heads(), nullptr);
    return floats(dqkv.host());
}

// See worst_error.
template <class X>
double worst_forward_error(Forward<X> forward, const Problem<X>& problem, Rounds rounds) {
    const ForwardAnswer answer = answer_forward(problem);
    const auto [out, lse] = run_forward(forward, problem);
    return std::max(worst_error(out, answer.out, answer.terms, rounds),
                    worst_error(lse, answer.lse, {}, Rounds::nothing));
}

template <class X>
double worst_backward_error(Backward<X> backward, const Problem<X>& problem, Rounds rounds) {
    const ForwardAnswer forward = answer_forward(problem);
    const BackwardAnswer answer = answer_backward(problem, as_held<X>(forward.out), forward.lse);
    return worst_error(run_backward(backward, problem, forward), answer.dqkv, answer.terms, rounds);
}

}  // namespace lnfree::cuda::attention_check
