// The engine's matrix product against sums written out in double precision: every orientation, sizes that fit no tile,
// leading dimensions larger than needed, accumulation, bias, special values, and equality for any number of threads.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "dev/cpu/matmul.h"

#ifdef _OPENMP
#include <omp.h>
#endif

using lnfree::Transpose;

namespace {

constexpr float SENTINEL = -12345.0f;  // what lies between the end of a row and the leading dimension

// Small reproducible values in [-1, 1).
template <class Real>
std::vector<Real> random_values(int64_t count, uint32_t seed) {
    std::vector<Real> values(static_cast<size_t>(count));
    for (Real& value : values) {
        seed = seed * 1664525u + 1013904223u;
        value = static_cast<Real>(static_cast<int32_t>(seed) / 2147483648.0);
    }
    return values;
}

struct Shape {
    int64_t M, N, K;
};

// One product with padded rows; A and B are filled from fixed seeds, C starts from its own.
template <class Real>
struct Problem {
    Transpose ta, tb;
    int64_t M, N, K, lda, ldb, ldc;
    std::vector<Real> a, b, c, bias;

    Problem(Transpose ta_, Transpose tb_, Shape shape, int64_t padding)
        : ta(ta_), tb(tb_), M(shape.M), N(shape.N), K(shape.K) {
        lda = (ta == Transpose::Yes ? M : K) + padding;
        ldb = (tb == Transpose::Yes ? K : N) + 2 * padding;
        ldc = N + 3 * padding;
        a = random_values<Real>(lda * (ta == Transpose::Yes ? K : M), 1);
        b = random_values<Real>(ldb * (tb == Transpose::Yes ? N : K), 2);
        c = random_values<Real>(ldc * M, 3);
        bias = random_values<Real>(N, 4);
        for (int64_t i = 0; i < M; ++i) std::fill(c.begin() + i * ldc + N, c.begin() + (i + 1) * ldc, Real(SENTINEL));
    }

    std::vector<Real> product(bool accumulate, bool with_bias) const {
        std::vector<Real> out = c;
        lnfree::matmul(ta, tb, M, N, K, a.data(), lda, b.data(), ldb, out.data(), ldc, accumulate,
                       with_bias ? bias.data() : nullptr);
        return out;
    }

    // The largest |difference| to the written-out sum, in units of what rounding may do: sum of |a*b| times K epsilons.
    double worst_error(const std::vector<Real>& out, bool accumulate, bool with_bias) const {
        double worst = 0.0;
        for (int64_t i = 0; i < M; ++i)
            for (int64_t j = 0; j < N; ++j) {
                double sum = 0.0, size = 0.0;
                for (int64_t k = 0; k < K; ++k) {
                    const double term = double(ta == Transpose::Yes ? a[k * lda + i] : a[i * lda + k]) *
                                        double(tb == Transpose::Yes ? b[j * ldb + k] : b[k * ldb + j]);
                    sum += term;
                    size += std::abs(term);
                }
                if (accumulate) sum += double(c[i * ldc + j]), size += std::abs(double(c[i * ldc + j]));
                if (with_bias) sum += double(bias[j]), size += std::abs(double(bias[j]));
                const double bound = size * double(K + 2) * double(std::numeric_limits<Real>::epsilon()) + 1e-300;
                worst = std::max(worst, std::abs(double(out[i * ldc + j]) - sum) / bound);
            }
        return worst;
    }

    bool padding_untouched(const std::vector<Real>& out) const {
        for (int64_t i = 0; i < M; ++i)
            for (int64_t j = N; j < ldc; ++j)
                if (out[i * ldc + j] != Real(SENTINEL)) return false;
        return true;
    }
};

constexpr Transpose BOTH[] = {Transpose::No, Transpose::Yes};

template <class Real>
void check_shape(Shape shape, int64_t padding) {
    for (const Transpose ta : BOTH)
        for (const Transpose tb : BOTH) {
            const Problem<Real> problem(ta, tb, shape, padding);
            for (const bool accumulate : {false, true})
                for (const bool with_bias : {false, true}) {
                    CAPTURE(shape.M);
                    CAPTURE(shape.N);
                    CAPTURE(shape.K);
                    CAPTURE(padding);
                    CAPTURE((ta == Transpose::Yes));
                    CAPTURE((tb == Transpose::Yes));
                    CAPTURE(accumulate);
                    CAPTURE(with_bias);
                    const std::vector<Real> out = problem.product(accumulate, with_bias);
                    CHECK(problem.worst_error(out, accumulate, with_bias) <= 1.0);
                    CHECK(problem.padding_untouched(out));
                }
        }
}

struct ThreadCount {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    explicit ThreadCount(int count) {
        omp_set_num_threads(count);
    }
    ~ThreadCount() {
        omp_set_num_threads(before);
    }
#else
    explicit ThreadCount(int) {}
#endif
};

}  // namespace

TEST_CASE("matmul equals the written-out sum for every orientation and for sizes that fit no tile") {
    const int64_t sizes[] = {1, 3, 17, 255, 257};
    for (const int64_t M : sizes)
        for (const int64_t N : sizes)
            for (const int64_t K : sizes)
                if (M * N * K <= 257 * 257 * 17) check_shape<float>({M, N, K}, 0);
    check_shape<float>({255, 257, 257}, 0);
}

TEST_CASE("matmul respects leading dimensions larger than needed") {
    for (const Shape shape :
         {Shape{1, 1, 1}, Shape{3, 17, 5}, Shape{17, 255, 3}, Shape{65, 66, 257}, Shape{13, 129, 31}})
        for (const int64_t padding : {1, 7}) check_shape<float>(shape, padding);
}

TEST_CASE("matmul adds up sums longer than one block") {
    check_shape<float>({7, 33, 1031}, 0);
    check_shape<float>({5, 3, 9001}, 2);
}

TEST_CASE("matmul in double precision equals the written-out sum") {
    for (const Shape shape : {Shape{1, 1, 1}, Shape{3, 17, 5}, Shape{17, 63, 33}}) check_shape<double>(shape, 3);
}

TEST_CASE("matmul of an empty sum gives zero, the bias, or C unchanged") {
    std::vector<float> c(6, 7.0f);
    const std::vector<float> bias = {1.0f, 2.0f, 3.0f};
    lnfree::matmul(Transpose::No, Transpose::No, 2, 3, 0, nullptr, 1, nullptr, 3, c.data(), 3, true);
    CHECK(c == std::vector<float>(6, 7.0f));
    lnfree::matmul(Transpose::No, Transpose::No, 2, 3, 0, nullptr, 1, nullptr, 3, c.data(), 3, false, bias.data());
    CHECK(c == std::vector<float>{1.0f, 2.0f, 3.0f, 1.0f, 2.0f, 3.0f});
    lnfree::matmul(Transpose::No, Transpose::No, 2, 3, 0, nullptr, 1, nullptr, 3, c.data(), 3, false);
    CHECK(c == std::vector<float>(6, 0.0f));
}

TEST_CASE("matmul gives the same bits for any number of threads") {
    for (const Shape shape : {Shape{1, 513, 300}, Shape{5, 257, 64}, Shape{97, 255, 131}, Shape{300, 129, 1100}})
        for (const Transpose ta : BOTH)
            for (const Transpose tb : BOTH) {
                const Problem<float> problem(ta, tb, shape, 1);
                std::vector<float> one;
                {
                    const ThreadCount threads(1);
                    one = problem.product(true, true);
                }
                for (const int count : {2, 3, 5, 8}) {
                    CAPTURE(count);
                    CAPTURE(shape.M);
                    const ThreadCount threads(count);
                    CHECK(problem.product(true, true) == one);
                }
            }
}

#ifdef _OPENMP
TEST_CASE("matmul called by the threads of a parallel region gives the same bits") {
    const ThreadCount threads(3);
    const Problem<float> problem(Transpose::Yes, Transpose::No, {64, 70, 65}, 0);
    const std::vector<float> expected = problem.product(false, true);
    int differing = 0;
#pragma omp parallel reduction(+ : differing)
    for (int repeat = 0; repeat < 5; ++repeat) differing += problem.product(false, true) == expected ? 0 : 1;
    CHECK(differing == 0);
}
#endif

TEST_CASE("matmul carries NaN and infinity into exactly the row or column they belong to") {
    constexpr float INF = std::numeric_limits<float>::infinity(), NOT = std::numeric_limits<float>::quiet_NaN();
    for (const Transpose ta : BOTH)
        for (const Transpose tb : BOTH) {
            Problem<float> problem(ta, tb, {19, 67, 21}, 0);
            problem.a[ta == Transpose::Yes ? 20 * problem.lda + 18 : 18 * problem.lda + 20] = INF;
            problem.b[tb == Transpose::Yes ? 66 * problem.ldb + 5 : 5 * problem.ldb + 66] = NOT;
            const std::vector<float> out = problem.product(false, false);
            int wrong = 0;
            for (int64_t i = 0; i < 19; ++i)
                for (int64_t j = 0; j < 67; ++j) {
                    const float x = out[i * problem.ldc + j];
                    const bool as_expected = j == 66 ? std::isnan(x) : i == 18 ? std::isinf(x) : std::isfinite(x);
                    wrong += as_expected ? 0 : 1;
                }
            CHECK(wrong == 0);
        }
}

TEST_CASE("matmul without accumulation does not read C") {
    Problem<float> problem(Transpose::No, Transpose::No, {31, 65, 33}, 0);
    std::fill(problem.c.begin(), problem.c.end(), std::numeric_limits<float>::quiet_NaN());
    const std::vector<float> out = problem.product(false, true);
    CHECK(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
}
