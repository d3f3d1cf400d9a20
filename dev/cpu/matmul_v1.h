// Version 1 of the matrix product: the definition, as three loops. The yardstick for reading, not for running.
//
// One sum at a time, each addition waiting for the one before it (about 4 cycles), on one thread: one multiply-add
// where a core could do 32 to 128 in that time. And where op(B)'s columns are not contiguous (tb = No) each step of the
// inner loop fetches another cache line of 16 floats and uses one of them.
#pragma once

#include <cstdint>

#include "matmul_types.h"

namespace lnfree {
namespace matmul_v1 {

// C (M,N) = op(A) (M,K) op(B) (K,N) [+ bias (N) in every row] [+ C if accumulate].
// A is stored as (M,K), with ta as (K,M), its rows lda floats apart; B as (K,N), with tb as (N,K), rows ldb apart; C's
// rows are ldc apart. None of them needs alignment; C must not overlap the others, and is not read unless accumulate.
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    for (int64_t i = 0; i < M; ++i)
        for (int64_t j = 0; j < N; ++j) {
            float sum = 0.0f;
            for (int64_t k = 0; k < K; ++k) {
                const float a = ta == Transpose::Yes ? A[k * lda + i] : A[i * lda + k];
                const float b = tb == Transpose::Yes ? B[j * ldb + k] : B[k * ldb + j];
                sum += a * b;
            }
            if (bias) sum += bias[j];
            if (accumulate) sum += C[i * ldc + j];
            C[i * ldc + j] = sum;
        }
}

}  // namespace matmul_v1
}  // namespace lnfree
