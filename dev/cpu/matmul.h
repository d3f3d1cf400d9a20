// The matrix product of the engine: the winner of the ladder in this folder. Included by train_gpt2_lnfree.cpp alone,
// once per instruction set, hence the namespace without a name; others call operations().matmul.
#pragma once

#include "matmul_amx.h"
#include "matmul_bf16.h"
#include "matmul_rows.h"
#include "matmul_v7.h"

namespace lnfree {
namespace {

// What the operands of every product of floats are rounded to: set once, before the first.
bool operands_in_bf16 = false;

inline void use_bf16(bool on) {
    operands_in_bf16 = on;
}

// C (M,N) = op(A) (M,K) op(B) (K,N), row-major with leading dimensions; [+ C if accumulate] [+ bias (N) to every row].
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    if (operands_in_bf16 && matmul_amx::has_hardware())
        return matmul_amx::matmul<matmul_amx::Hardware>(ta, tb, M, N, K, A, lda, B, ldb, C, ldc, accumulate, bias);
    if (operands_in_bf16) return matmul_bf16::matmul(ta, tb, M, N, K, A, lda, B, ldb, C, ldc, accumulate, bias);
    if (matmul_rows::takes(ta, M, N, K))
        return matmul_rows::matmul({false, tb == Transpose::Yes, M, N, K, A, lda, B, ldb, C, ldc, accumulate, bias});
    matmul_v7::matmul(ta, tb, M, N, K, A, lda, B, ldb, C, ldc, accumulate, bias);
}

// The same in double precision, for gradient checks: plain loops.
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const double* A, int64_t lda,
                   const double* B, int64_t ldb, double* C, int64_t ldc, bool accumulate,
                   const double* bias = nullptr) {
#pragma omp parallel for
    for (int64_t i = 0; i < M; ++i)
        for (int64_t j = 0; j < N; ++j) {
            double sum = 0.0;
            for (int64_t k = 0; k < K; ++k)
                sum += (ta == Transpose::Yes ? A[k * lda + i] : A[i * lda + k]) *
                       (tb == Transpose::Yes ? B[j * ldb + k] : B[k * ldb + j]);
            C[i * ldc + j] = (accumulate ? C[i * ldc + j] : 0.0) + sum + (bias ? bias[j] : 0.0);
        }
}

}  // namespace
}  // namespace lnfree
