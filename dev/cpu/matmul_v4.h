// Version 4 of the matrix product: a tile of C stays in registers while its sums are taken.
//
// Six rows of C by a few vectors are summed at once. One step in k loads the vectors of B and six numbers of A, and
// does six multiply-adds with each vector: version 3 did one, and loaded and stored C for it. B is now read once for
// every six rows of C instead of once for every row.
//
// What is left: B stored as (N,K) has no vectors along j, so each is put together from single numbers. Stored as (K,N),
// a tile reads a short piece of each row, every one from another page, and for the next six rows of C all of B comes
// again from the L3 cache or from memory.
#pragma once

#include <cstdint>

#include "matmul_types.h"

namespace lnfree {
namespace matmul_v4 {

// WIDTH floats per vector register. 32 registers hold 6 x 4 sums, 16 hold 6 x 2.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, TILE_VECTORS = 4;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, TILE_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, TILE_VECTORS = 4;
#else
constexpr int WIDTH = 4, TILE_VECTORS = 2;
#endif
constexpr int TILE_ROWS = 6, TILE_COLS = WIDTH * TILE_VECTORS;

typedef float Vec __attribute__((vector_size(WIDTH * 4)));                                  // in a register
typedef float UnalignedVec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));  // anywhere in memory

inline Vec load(const float* p) {
    return *reinterpret_cast<const UnalignedVec*>(p);
}

inline void store(float* p, Vec v) {
    *reinterpret_cast<UnalignedVec*>(p) = v;
}

// The product as the caller gave it: a(i, k) = A[i * a_row + k * a_k], b(k, j) = B[k * b_k + j * b_col].
struct Operands {
    int64_t M, N, K;
    const float* A;
    int64_t a_row, a_k;
    const float* B;
    int64_t b_k, b_col;
    float* C;
    int64_t ldc;
    bool accumulate;
    const float* bias;  // (N), or null
};

// b(k, j) .. b(k, j + WIDTH - 1). CONTIGUOUS: b_col is 1.
template <bool CONTIGUOUS>
Vec load_b(const Operands& o, int64_t k, int64_t j) {
    const float* b = o.B + k * o.b_k + j * o.b_col;
    if constexpr (CONTIGUOUS) return load(b);
    Vec x{};
    for (int lane = 0; lane < WIDTH; ++lane) x[lane] = b[lane * o.b_col];
    return x;
}

// ROWS x TILE_COLS of C, from (i, j) on.
template <int ROWS, bool CONTIGUOUS>
void multiply(const Operands& o, int64_t i, int64_t j) {
    Vec sum[ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] = Vec{};

    for (int64_t k = 0; k < o.K; ++k) {
        Vec x[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) x[v] = load_b<CONTIGUOUS>(o, k, j + v * WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const float y = o.A[(i + r) * o.a_row + k * o.a_k];
#pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] += x[v] * y;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) {
            float* c = o.C + (i + r) * o.ldc + j + v * WIDTH;
            Vec x = sum[r][v];
            if (o.bias) x += load(o.bias + j + v * WIDTH);
            if (o.accumulate) x += load(c);
            store(c, x);
        }
}

// The columns from j on, fewer than a tile, one element at a time.
inline void multiply_rest(const Operands& o, int64_t i, int64_t rows, int64_t j_begin) {
    for (int64_t r = i; r < i + rows; ++r)
        for (int64_t j = j_begin; j < o.N; ++j) {
            float sum = 0.0f;
            for (int64_t k = 0; k < o.K; ++k) sum += o.A[r * o.a_row + k * o.a_k] * o.B[k * o.b_k + j * o.b_col];
            if (o.bias) sum += o.bias[j];
            if (o.accumulate) sum += o.C[r * o.ldc + j];
            o.C[r * o.ldc + j] = sum;
        }
}

// Rows i .. i + rows of C, 1 <= rows <= ROWS: the loops inside need their counts at compile time.
template <int ROWS = TILE_ROWS>
void multiply_rows(const Operands& o, int64_t i, int64_t rows) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return multiply_rows<ROWS - 1>(o, i, rows);
    }
    int64_t j = 0;
    for (; j + TILE_COLS <= o.N; j += TILE_COLS) {
        if (o.b_col == 1)
            multiply<ROWS, true>(o, i, j);
        else
            multiply<ROWS, false>(o, i, j);
    }
    multiply_rest(o, i, rows, j);
}

// C (M,N) = op(A) (M,K) op(B) (K,N) [+ bias (N) in every row] [+ C if accumulate]; arguments as in version 1.
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    const bool a_turned = ta == Transpose::Yes, b_turned = tb == Transpose::Yes;
    const Operands o{
        M, N,   K,          A,   a_turned ? 1 : lda, a_turned ? lda : 1, B, b_turned ? 1 : ldb, b_turned ? ldb : 1,
        C, ldc, accumulate, bias};
#pragma omp parallel for
    for (int64_t i = 0; i < M; i += TILE_ROWS) multiply_rows(o, i, M - i < TILE_ROWS ? M - i : TILE_ROWS);
}

}  // namespace matmul_v4
}  // namespace lnfree
