// Attention in blocks of queries against plain loops in double precision, on sizes around the block's. Compiled once;
// run once per instruction set, which LNFREE_ISA names.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "dev/cpu/operations.h"
#include "test/threads.h"

using namespace lnfree;

namespace {

const Operations& op = operations();

struct Shape {
    int64_t B, T, NH, HS;
};
const Shape kShapes[] = {{1, 1, 1, 1},   {2, 3, 2, 5},  {1, 31, 3, 8},  {2, 32, 1, 17},
                         {1, 33, 2, 16}, {3, 65, 2, 3}, {1, 100, 2, 64}};

std::vector<real> values(int64_t n, int seed) {
    std::vector<real> x(static_cast<size_t>(n));
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<real>(std::sin(1.7 * static_cast<double>(i) + seed) * 1.5);
    return x;
}

double relative_error(const std::vector<real>& got, const std::vector<double>& expected) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < got.size(); i++) {
        difference += std::pow(static_cast<double>(got[i]) - expected[i], 2);
        norm += expected[i] * expected[i];
    }
    return std::sqrt(difference / norm);
}

// One query after another, straight from the definition: out (B,T,C) and, for the gradient dout of out, dqkv (B,T,3C).
void plain_attention(std::vector<double>& out, std::vector<double>& dqkv, const std::vector<real>& qkv,
                     const std::vector<real>& dout, const Shape& s) {
    const int64_t C = s.NH * s.HS;
    const double scale = 1 / std::sqrt(static_cast<double>(s.HS));
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.NH; h++)
            for (int64_t t = 0; t < s.T; t++) {
                const auto at = [&](int64_t u, int64_t which, int64_t d) {
                    return static_cast<size_t>((b * s.T + u) * 3 * C + which * C + h * s.HS + d);
                };
                const auto result = [&](int64_t d) { return static_cast<size_t>((b * s.T + t) * C + h * s.HS + d); };
                std::vector<double> p(static_cast<size_t>(t + 1)), dp(p.size());
                double sum = 0, dot = 0;
                for (int64_t u = 0; u <= t; u++) {
                    double score = 0;
                    for (int64_t d = 0; d < s.HS; d++)
                        score += static_cast<double>(qkv[at(t, 0, d)]) * static_cast<double>(qkv[at(u, 1, d)]);
                    p[u] = std::exp(score * scale);
                    sum += p[u];
                }
                for (int64_t u = 0; u <= t; u++) {
                    p[u] /= sum;
                    for (int64_t d = 0; d < s.HS; d++) {
                        out[result(d)] += p[u] * static_cast<double>(qkv[at(u, 2, d)]);
                        dp[u] += static_cast<double>(dout[result(d)]) * static_cast<double>(qkv[at(u, 2, d)]);
                        dqkv[at(u, 2, d)] += p[u] * static_cast<double>(dout[result(d)]);
                    }
                    dot += p[u] * dp[u];
                }
                for (int64_t u = 0; u <= t; u++)
                    for (int64_t d = 0; d < s.HS; d++) {
                        const double ds = scale * p[u] * (dp[u] - dot);
                        dqkv[at(t, 0, d)] += ds * static_cast<double>(qkv[at(u, 1, d)]);
                        dqkv[at(u, 1, d)] += ds * static_cast<double>(qkv[at(t, 0, d)]);
                    }
            }
}

}  // namespace

TEST_CASE("the operations are those of the instruction set that LNFREE_ISA names") {
    const char* wanted = std::getenv("LNFREE_ISA");
    if (wanted != nullptr) CHECK(op.isa == std::string(wanted));
}

TEST_CASE("attention, forward and backward, equals plain loops") {
    for (const Shape& s : kShapes) {
        CAPTURE(s.T);
        CAPTURE(s.HS);
        const int64_t C = s.NH * s.HS, N = s.B * s.T;
        const auto qkv = values(N * 3 * C, 1), dout = values(N * C, 2);
        std::vector<real> out(static_cast<size_t>(N * C)), lse(static_cast<size_t>(N * s.NH)), dqkv(qkv.size(), 9);
        op.attention_forward(out.data(), lse.data(), qkv.data(), s.B, s.T, {s.NH, s.NH, C / s.NH}, 0, s.T);
        op.attention_backward(dqkv.data(), dout.data(), qkv.data(), out.data(), lse.data(), s.B, s.T,
                              {s.NH, s.NH, C / s.NH});
        std::vector<double> expected(out.size()), expected_gradient(qkv.size());
        plain_attention(expected, expected_gradient, qkv, dout, s);
        CHECK(relative_error(out, expected) < 2e-6);
        CHECK(relative_error(dqkv, expected_gradient) < 5e-6);
    }
}

TEST_CASE("attention gives the same bits with any number of threads") {
    const Shape s = {2, 67, 3, 16};
    const int64_t C = s.NH * s.HS, N = s.B * s.T;
    const auto qkv = values(N * 3 * C, 3), dout = values(N * C, 4);
    std::vector<std::vector<real>> results;
    for (const int threads : {1, 2, 3, 5}) {
        const Threads here(threads);
        std::vector<real> out(static_cast<size_t>(N * C)), lse(static_cast<size_t>(N * s.NH)), dqkv(qkv.size());
        op.attention_forward(out.data(), lse.data(), qkv.data(), s.B, s.T, {s.NH, s.NH, C / s.NH}, 0, s.T);
        op.attention_backward(dqkv.data(), dout.data(), qkv.data(), out.data(), lse.data(), s.B, s.T,
                              {s.NH, s.NH, C / s.NH});
        out.insert(out.end(), dqkv.begin(), dqkv.end());
        results.push_back(out);
    }
    for (const auto& result : results) CHECK(result == results[0]);
}
