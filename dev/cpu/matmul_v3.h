// Version 3 of the matrix product: version 2 on all cores and with vector instructions: three pragmas, nothing else.
//
// `omp simd` lets the compiler take the inner loop a vector at a time; `reduction` lets it split a sum into a part per
// lane, which changes the order of the additions, but always in the same way. `omp parallel for` gives each thread some
// rows of C. A row is computed by one thread from beginning to end: the same bits for any number of threads.
//
// What is left: each multiply-add loads a vector of B and loads and stores a vector of C. The core could do two
// multiply-adds in the time of these three, and all of B comes from the L3 cache or memory once for every row of C.
#pragma once

#include <algorithm>
#include <cstdint>

#include "matmul_types.h"

namespace lnfree {
namespace matmul_v3 {

// c (N) += a (K) B (K,N), where a[k * a_step] is the k-th number of a row of op(A).
inline void add_rows(int64_t N, int64_t K, const float* a, int64_t a_step, const float* B, int64_t ldb, float* c) {
    for (int64_t k = 0; k < K; ++k) {
        const float x = a[k * a_step];
        const float* b = B + k * ldb;
#pragma omp simd
        for (int64_t j = 0; j < N; ++j) c[j] += x * b[j];
    }
}

// c (N) += a (K) B^T, with B (N,K).
inline void add_dots(int64_t N, int64_t K, const float* a, int64_t a_step, const float* B, int64_t ldb, float* c) {
    for (int64_t j = 0; j < N; ++j) {
        const float* b = B + j * ldb;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < K; ++k) sum += a[k * a_step] * b[k];
        c[j] += sum;
    }
}

// C (M,N) = op(A) (M,K) op(B) (K,N) [+ bias (N) in every row] [+ C if accumulate]; arguments as in version 1.
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    const int64_t a_row = ta == Transpose::Yes ? 1 : lda, a_step = ta == Transpose::Yes ? lda : 1;
#pragma omp parallel for
    for (int64_t i = 0; i < M; ++i) {
        float* c = C + i * ldc;
        if (!accumulate) std::fill(c, c + N, 0.0f);
        if (bias)
            for (int64_t j = 0; j < N; ++j) c[j] += bias[j];
        if (tb == Transpose::Yes)
            add_dots(N, K, A + i * a_row, a_step, B, ldb, c);
        else
            add_rows(N, K, A + i * a_row, a_step, B, ldb, c);
    }
}

}  // namespace matmul_v3
}  // namespace lnfree
