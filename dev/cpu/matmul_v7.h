// Version 7 of the matrix product, the engine's: version 6 on every core by itself, on numbers that this core wrote.
//
// What it gains over the versions below it: the table in dev/cpu/README.md, which `dev/cpu/matmul --readme` measures.
//
// The idea. What another core wrote has to come over from its caches. That is slow everywhere, and six times as slow where
// two cores have no cache in common, as a virtual machine may give them out without saying so, and take them back within
// minutes (dev/cpu/README.md). In version 6 all cores pack A together, into memory that they write again and again, and
// each takes whatever task is next. Here
//
//   C is cut into shares, and a share is a product of its own: whoever computes it packs its part of A and of B for
//     itself. Packing the same number twice costs less than fetching it.
//   The longer side of C is cut, since shares beside each other along it have only one operand in common, the smaller one.
//     With many positions that side is the rows of C, cut in the same order as all other operations cut the positions: a
//     thread reads the rows that it has just written.
//   Where the sums are long for the size of C, as for the gradients of a small model's weights, they are shared out instead:
//     a thread sums over the positions that it wrote, block by block, and the sums of the blocks are added up at the end.
//
// A thread begins with its own shares; who is done takes what is left of the others', so that a core that is slow, or busy
// with something else, does not hold up the rest.
//
// The same bits for any number of threads, those of version 6: its sums do not depend on how C is cut, and the sums of its
// k-blocks are added to C in the same order.
// (Functions here are in a namespace without a name: they are compiled once per instruction set, and of several copies of
// one function a linker would keep the first that it meets.)
#pragma once

#include <algorithm>
#include <cstdint>

#include "matmul_v6.h"

namespace lnfree {
namespace matmul_v7 {
namespace {

using matmul_v6::cut;
using matmul_v6::divide_up;
using matmul_v6::Operands;
using matmul_v6::TILE_COLS;
using matmul_v6::TILE_ROWS;

// Shares per thread, so that one may help another; and what a share has at least, so that packing pays: each number of B is
// used once per row, each of A once per column, if it is packed at all.
constexpr int64_t SHARES = 4, SHARE_ROWS = 192, SHARE_COLUMNS = 2 * TILE_COLS, SHARE_COLUMNS_PACKED = 512;

// A sum is long if it has so many times the terms that C has rows or columns. Of its blocks at most MOST_BLOCKS are summed
// before they are added up, and at most as many as take BLOCK_SUMS floats.
constexpr int64_t LONG = 4, MOST_BLOCKS = 64, BLOCK_SUMS = int64_t{4} << 20;

constexpr int MOST_THREADS = 256;

// work(share) for each of `shares`, by all threads: the first thread begins with the first of them, and so on.
template <class Work>
void share_out(int64_t shares, int threads, const Work& work) {
    struct alignas(64) Next {
        int64_t share;
    };
    Next next[MOST_THREADS];
    for (int t = 0; t < threads; ++t) next[t].share = cut(shares, t, threads);
#pragma omp parallel num_threads(threads)
    for (int i = 0; i < threads; ++i) {
        const int owner = (matmul_v6::thread_index() + i) % threads;
        const int64_t end = cut(shares, owner + 1, threads);
        for (;;) {
            int64_t share;
#pragma omp atomic capture
            share = next[owner].share++;
            if (share >= end) break;
            work(share);
        }
    }
}

// How C is cut: into rows x columns shares.
struct Grid {
    int64_t rows = 1, columns = 1;

    int64_t shares() const { return rows * columns; }

    // Halves all shares, along the side that is longer for what it must have at least, while there are too few and both
    // halves have that.
    void refine(const Operands& o, int64_t wanted, int64_t least_rows, int64_t least_columns) {
        while (shares() < wanted) {
            const int64_t across_rows = o.M / rows / least_rows, across_columns = o.N / columns / least_columns;
            if (std::max(across_rows, across_columns) < 2) return;
            (across_rows >= across_columns ? rows : columns) *= 2;
        }
    }
};

inline Grid make_grid(const Operands& o, int threads) {
    Grid grid;
    grid.refine(o, SHARES * threads, SHARE_ROWS, o.ta ? SHARE_COLUMNS_PACKED : SHARE_COLUMNS);
    grid.refine(o, threads, TILE_ROWS, TILE_COLS);  // rather small shares than a thread without one
    return grid;
}

// The product that a share is. Shares follow each other along a row of the grid.
inline Operands share_of(const Operands& o, const Grid& grid, int64_t share) {
    const int64_t r = share / grid.columns, c = share % grid.columns;
    const int64_t tiles = divide_up(o.M, TILE_ROWS), panels = divide_up(o.N, TILE_COLS);
    const int64_t i = cut(tiles, r, grid.rows) * TILE_ROWS, j = cut(panels, c, grid.columns) * TILE_COLS;
    Operands s = o;
    s.M = std::min(o.M, cut(tiles, r + 1, grid.rows) * TILE_ROWS) - i;
    s.N = std::min(o.N, cut(panels, c + 1, grid.columns) * TILE_COLS) - j;
    s.A += o.ta ? i : i * o.lda;
    s.B += o.tb ? j * o.ldb : j;
    s.C += i * o.ldc + j;
    if (o.bias) s.bias += j;
    return s;
}

inline bool has_long_sums(const Operands& o) {
    return o.K >= LONG * std::max(o.M, o.N) && 2 * o.M * o.N <= BLOCK_SUMS;
}

// Some of version 6's k-blocks, which follow each other.
struct LongSum {
    const Operands& o;
    float* sums;  // (blocks,M,N)
    int64_t blocks = 0;
    struct {
        int64_t k, length;
    } block[MOST_BLOCKS] = {};

    bool full() const { return blocks == MOST_BLOCKS || (blocks + 1) * o.M * o.N > BLOCK_SUMS; }
    bool is_first(int64_t b) const { return block[b].k == 0; }

    template <class Arithmetic>
    void multiply(int64_t b) const {
        const int64_t k = block[b].k;
        Operands s = o;
        s.K = block[b].length;
        s.A += o.ta ? k * o.lda : k;
        s.B += o.tb ? k : k * o.ldb;
        s.C = sums + b * o.M * o.N;
        s.ldc = o.N;
        s.accumulate = false;
        s.bias = is_first(b) ? o.bias : nullptr;
        matmul_v6::multiply_blocks<Arithmetic>(s);
    }

    void add_to_row(int64_t i) const {
        float* const c = o.C + i * o.ldc;
        for (int64_t b = 0; b < blocks; ++b) {
            const float* const sum = sums + (b * o.M + i) * o.N;
            if (is_first(b) && !o.accumulate) {
                std::copy(sum, sum + o.N, c);
                continue;
            }
#pragma omp simd
            for (int64_t j = 0; j < o.N; ++j) c[j] += sum[j];
        }
    }

    // Sums the blocks, adds them to C, and has none any more.
    template <class Arithmetic>
    void finish(int threads) {
        share_out(blocks, threads, [&](int64_t b) { multiply<Arithmetic>(b); });
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t i = 0; i < o.M; ++i) add_to_row(i);
        blocks = 0;
    }
};

template <class Arithmetic>
void multiply_long_sums(const Operands& o, int threads) {
    static thread_local matmul_v6::Workspace workspace;
    LongSum sum{o, workspace.reserve(static_cast<size_t>(std::min(BLOCK_SUMS, MOST_BLOCKS * o.M * o.N)))};
    const int64_t k_outer = matmul_v6::Parts(o).k_outer;
    for (int64_t k0 = 0; k0 < o.K; k0 += k_outer) {
        const int64_t end = std::min(k0 + k_outer, o.K), k_block = matmul_v6::Parts::block_of(end - k0);
        for (int64_t k = k0; k < end; k += k_block) {
            sum.block[sum.blocks++] = {k, std::min(k_block, end - k)};
            if (sum.full()) sum.finish<Arithmetic>(threads);
        }
    }
    if (sum.blocks > 0) sum.finish<Arithmetic>(threads);
}

// The product of o's operands in an Arithmetic. o.M, o.N, o.K > 0.
template <class Arithmetic>
void multiply_shares(const Operands& o) {
    const int threads = std::min(matmul_v6::team_size(o.M, o.N, o.K), MOST_THREADS);
    if (threads == 1) return matmul_v6::multiply_blocks<Arithmetic>(o);
    if (has_long_sums(o)) return multiply_long_sums<Arithmetic>(o, threads);
    const Grid grid = make_grid(o, threads);
    share_out(grid.shares(), threads,
              [&](int64_t share) { matmul_v6::multiply_blocks<Arithmetic>(share_of(o, grid, share)); });
}

// As matmul_v6::matmul.
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    if (M <= 0 || N <= 0) return;
    if (K <= 0) return matmul_v6::empty_product(M, N, C, ldc, accumulate, bias);
    multiply_shares<matmul_v6::Float32>(
        {ta == Transpose::Yes, tb == Transpose::Yes, M, N, K, A, lda, B, ldb, C, ldc, accumulate, bias});
}

}  // namespace
}  // namespace matmul_v7
}  // namespace lnfree
