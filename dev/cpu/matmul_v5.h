// Version 5 of the matrix product: B is packed, panel by panel, in the order in which the tiles read it.
//
// A panel is as wide as a tile. Each thread copies the panel at work into a buffer of its own, one row of it after the
// other without gaps, and then takes all tiles of C below each other: they read the copy from front to back, the way
// that caches and prefetchers like best. Both orientations of B look the same afterwards, so the kernel is one, and the
// last panel is filled up with zeros, so that no column needs a loop of its own.
//
// What is left: a panel is as long as the sum; with long sums (K of thousands) it outgrows the L2 cache. A transposed
// is still read where it lies, six numbers from each of K cache lines. Threads share the work by whole panels only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "matmul_types.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lnfree {
namespace matmul_v5 {

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

// out (ROWS, TILE_COLS) = A (ROWS,K) panel (K, TILE_COLS), with a(r, k) = a[r * a_row + k * a_k].
template <int ROWS>
void multiply(int64_t K, const float* a, int64_t a_row, int64_t a_k, const float* panel, float* out) {
    Vec sum[ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] = Vec{};

    for (int64_t k = 0; k < K; ++k) {
        Vec x[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) x[v] = load(panel + k * TILE_COLS + v * WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const float y = a[r * a_row + k * a_k];
#pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] += x[v] * y;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) store(out + r * TILE_COLS + v * WIDTH, sum[r][v]);
}

// multiply<rows>, for 1..TILE_ROWS rows: the loops inside need their counts at compile time.
template <int ROWS = TILE_ROWS>
void multiply_rows(int64_t rows, int64_t K, const float* a, int64_t a_row, int64_t a_k, const float* panel,
                   float* out) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return multiply_rows<ROWS - 1>(rows, K, a, a_row, a_k, panel, out);
    }
    multiply<ROWS>(K, a, a_row, a_k, panel, out);
}

// panel (K, TILE_COLS) = b(k, j) = b[k * b_k + j * b_col] for j < columns, 0 beyond.
inline void pack_panel(int64_t K, int64_t columns, const float* b, int64_t b_k, int64_t b_col, float* panel) {
    for (int64_t k = 0; k < K; ++k) {
        float* row = panel + k * TILE_COLS;
        for (int64_t j = 0; j < columns; ++j) row[j] = b[k * b_k + j * b_col];
        std::fill(row + columns, row + TILE_COLS, 0.0f);
    }
}

// C (rows, columns) = sums (rows, TILE_COLS) [+ bias] [+ C].
inline void write_tile(int64_t rows, int64_t columns, const float* sums, float* c, int64_t ldc, bool accumulate,
                       const float* bias) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < columns; ++j) {
            float x = sums[r * TILE_COLS + j];
            if (bias) x += bias[j];
            if (accumulate) x += c[r * ldc + j];
            c[r * ldc + j] = x;
        }
}

// How many threads a parallel region may have, and which of them runs this.
inline int max_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

inline int thread_index() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// C (M,N) = op(A) (M,K) op(B) (K,N) [+ bias (N) in every row] [+ C if accumulate]; arguments as in version 1.
// std::bad_alloc if there is no memory for a panel per thread.
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    const int64_t a_row = ta == Transpose::Yes ? 1 : lda, a_k = ta == Transpose::Yes ? lda : 1;
    const int64_t b_k = tb == Transpose::Yes ? 1 : ldb, b_col = tb == Transpose::Yes ? ldb : 1;
    const int64_t panel_size = K * TILE_COLS;
    const std::unique_ptr<float[]> panels(new float[static_cast<size_t>(max_threads() * panel_size)]);
#pragma omp parallel for schedule(dynamic)
    for (int64_t j = 0; j < N; j += TILE_COLS) {
        float* panel = panels.get() + thread_index() * panel_size;
        const int64_t columns = std::min<int64_t>(TILE_COLS, N - j);
        pack_panel(K, columns, B + j * b_col, b_k, b_col, panel);
        for (int64_t i = 0; i < M; i += TILE_ROWS) {
            const int64_t rows = std::min<int64_t>(TILE_ROWS, M - i);
            float sums[TILE_ROWS * TILE_COLS];
            multiply_rows(rows, K, A + i * a_row, a_row, a_k, panel, sums);
            write_tile(rows, columns, sums, C + i * ldc + j, ldc, accumulate, bias ? bias + j : nullptr);
        }
    }
}

}  // namespace matmul_v5
}  // namespace lnfree
