// Holds a matrix product against sums written out in double precision: for the laboratory and for test/isa.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "matmul_types.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lnfree {

// Reproducible values in [-1, 1).
template <class Real>
std::vector<Real> random_values(int64_t count, uint32_t seed) {
    std::vector<Real> values(static_cast<size_t>(count));
    for (Real& value : values) {
        seed = seed * 1664525u + 1013904223u;
        value = static_cast<Real>(static_cast<int32_t>(seed) / 2147483648.0);
    }
    return values;
}

// Sizes of a product; `padding` makes rows longer than needed, by another multiple of it for each matrix.
struct MatmulShape {
    int64_t M, N, K, padding;
};

// What every version is checked with: sizes that fit no tile, each with each where that is not too much; longer rows;
// sums longer than a block; random sizes.
inline std::vector<MatmulShape> matmul_check_shapes() {
    std::vector<MatmulShape> shapes;
    const int64_t odd[] = {1, 3, 17, 255, 257};
    for (const int64_t M : odd)
        for (const int64_t N : odd)
            for (const int64_t K : odd)
                if (M * N * K <= 255 * 257 * 17) shapes.push_back({M, N, K, 0});
    shapes.insert(shapes.end(), {{255, 257, 257, 0}, {3, 17, 5, 7}, {65, 66, 257, 1}, {13, 129, 31, 7}});
    shapes.insert(shapes.end(), {{7, 33, 1031, 0}, {5, 3, 9001, 2}});
    std::mt19937 random(5);  // its numbers are the same everywhere, those of the standard distributions are not
    const auto size = [&] { return static_cast<int64_t>(random() % 150 + 1); };
    for (int repeat = 0; repeat < 12; ++repeat) {
        const int64_t M = size(), N = size(), K = size();
        shapes.push_back({M, N, K, repeat % 3});
    }
    return shapes;
}

// C (M,N) = op(A) (M,K) op(B) (K,N) over made-up values.
template <class Real>
struct MatmulProblem {
    static constexpr Real UNTOUCHED = -12345;  // lies between the end of a row of C and the next row

    Transpose ta, tb;
    int64_t M, N, K, lda, ldb, ldc;
    std::vector<Real> a, b, c, bias;
    std::vector<double> sums;   // (M,N): op(A) op(B)
    std::vector<double> sizes;  // (M,N): what an error is measured in, |row of op(A)| * |column of op(B)|

    // Without `with_sums` only for product(): large sums take their time.
    MatmulProblem(Transpose ta_, Transpose tb_, MatmulShape shape, bool with_sums = true)
        : ta(ta_), tb(tb_), M(shape.M), N(shape.N), K(shape.K) {
        lda = (ta == Transpose::Yes ? M : K) + shape.padding;
        ldb = (tb == Transpose::Yes ? K : N) + 2 * shape.padding;
        ldc = N + 3 * shape.padding;
        a = random_values<Real>(lda * (ta == Transpose::Yes ? K : M), 1);
        b = random_values<Real>(ldb * (tb == Transpose::Yes ? N : K), 2);
        c = random_values<Real>(ldc * M, 3);
        bias = random_values<Real>(N, 4);
        for (int64_t i = 0; i < M; ++i) std::fill(c.begin() + i * ldc + N, c.begin() + (i + 1) * ldc, UNTOUCHED);
        if (with_sums) write_out_sums();
    }

    // What matmul(ta, tb, ..., bias) makes of C.
    template <class Matmul>
    std::vector<Real> product(const Matmul& matmul, bool accumulate, bool with_bias) const {
        std::vector<Real> out = c;
        matmul(ta, tb, M, N, K, a.data(), lda, b.data(), ldb, out.data(), ldc, accumulate,
               with_bias ? bias.data() : nullptr);
        return out;
    }

    // Whether every element is within 8 epsilons (float: 1e-6) of |row of op(A)| * |column of op(B)| + |bias| + |C|,
    // and nothing beside C was written. Rounding stays well below that, whatever the order of a sum: its terms have
    // random signs. One term too many or too few is about 1 / K of that product of norms: far more.
    bool is_right(const std::vector<Real>& out, bool accumulate, bool with_bias) const {
        constexpr double tolerance = 8.0 * std::numeric_limits<Real>::epsilon();
        for (int64_t i = 0; i < M; ++i) {
            for (int64_t j = 0; j < N; ++j) {
                const double start = accumulate ? c[i * ldc + j] : 0.0, shift = with_bias ? bias[j] : 0.0;
                const double error = std::abs(out[i * ldc + j] - (sums[i * N + j] + shift + start));
                const double bound = tolerance * (sizes[i * N + j] + std::abs(shift) + std::abs(start));
                if (!(error <= bound)) return false;  // a NaN is not right either
            }
            for (int64_t j = N; j < ldc; ++j)
                if (out[i * ldc + j] != UNTOUCHED) return false;
        }
        return true;
    }

    // Again after a change of a or b.
    void write_out_sums() {
        sums.resize(static_cast<size_t>(M * N));
        sizes.resize(static_cast<size_t>(M * N));
        const int64_t a_row = ta == Transpose::Yes ? 1 : lda, a_k = ta == Transpose::Yes ? lda : 1;
        const int64_t b_k = tb == Transpose::Yes ? 1 : ldb, b_col = tb == Transpose::Yes ? ldb : 1;
        for (int64_t i = 0; i < M; ++i)
            for (int64_t j = 0; j < N; ++j) {
                double sum = 0.0, a_square = 0.0, b_square = 0.0;
                for (int64_t k = 0; k < K; ++k) {
                    const double x = a[i * a_row + k * a_k], y = b[k * b_k + j * b_col];
                    sum += x * y;
                    a_square += x * x;
                    b_square += y * y;
                }
                sums[i * N + j] = sum;
                sizes[i * N + j] = std::sqrt(a_square * b_square);
            }
    }
};

// Sets the number of threads that parallel regions get, as long as it lives. Without OpenMP it is always one.
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
    ~ThreadCount() {}
#endif
    ThreadCount(const ThreadCount&) = delete;
    ThreadCount& operator=(const ThreadCount&) = delete;
};

inline constexpr Transpose BOTH_ORIENTATIONS[] = {Transpose::No, Transpose::Yes};

// "M 17, N 3, ...": a problem in a message.
template <class Real>
std::string describe(const MatmulProblem<Real>& problem) {
    return "M " + std::to_string(problem.M) + ", N " + std::to_string(problem.N) + ", K " + std::to_string(problem.K) +
           (problem.ta == Transpose::Yes ? ", A transposed" : "") +
           (problem.tb == Transpose::Yes ? ", B transposed" : "") + ", rows of C " + std::to_string(problem.ldc) +
           " apart";
}

// With and without accumulation and bias: an empty string, or the first that is wrong.
template <class Real, class Matmul>
std::string wrong_product(const Matmul& matmul, const MatmulProblem<Real>& problem) {
    for (const bool accumulate : {false, true})
        for (const bool with_bias : {false, true}) {
            if (problem.is_right(problem.product(matmul, accumulate, with_bias), accumulate, with_bias)) continue;
            return "wrong result for " + describe(problem) + (accumulate ? ", added to C" : "") +
                   (with_bias ? ", with bias" : "");
        }
    return "";
}

// The same bits with 1, 2, 3 and 5 threads: an empty string, or the first number of threads that gives others.
template <class Real, class Matmul>
std::string differs_by_threads(const Matmul& matmul, const MatmulProblem<Real>& problem) {
    const auto product = [&](int thread_count) {
        const ThreadCount threads(thread_count);
        return problem.product(matmul, true, true);
    };
    const std::vector<Real> one = product(1);
    for (const int count : {2, 3, 5}) {
        const std::vector<Real> out = product(count);
        if (std::memcmp(out.data(), one.data(), one.size() * sizeof(Real)) != 0)
            return "other bits with " + std::to_string(count) + " threads than with one for " + describe(problem);
    }
    return "";
}

// Shapes for that: few rows, few columns, several blocks of everything.
inline constexpr MatmulShape matmul_thread_shapes[] = {
    {1, 513, 300, 1}, {5, 257, 64, 0}, {97, 255, 131, 2}, {255, 3, 17, 0}, {61, 129, 1100, 1}};

}  // namespace lnfree
