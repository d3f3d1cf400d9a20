// Products of few rows, as `generate` makes them, one token after another: all of B is read for a handful of multiply-adds
// a number, so what counts is that it comes from memory as fast as memory gives it. Version 6 would pack it first, or jump
// from row to row of it within a tile.
//
//   B (K,N): a thread takes a strip of columns, 8 KiB wide, and adds eight rows of it at a time to sums that stay in L1; the
//            eight rows after them are asked for meanwhile.
//   B (N,K): a thread takes WIDTH rows of it, from their beginning to their end, and turns four of their columns at a time
//            into vectors, in registers; the WIDTH rows after them are asked for meanwhile.
//
// An element of C is summed as version 6 sums it, in the order of k and over the same parts of K: the same bits, so that a
// row of C still does not depend on how many others are computed with it, nor on the number of threads.
// (Functions here are in a namespace without a name: they are compiled once per instruction set, and of several copies of
// one function a linker would keep the first that it meets.)
#pragma once

#include <algorithm>
#include <cstdint>

#include "matmul_v6.h"

namespace lnfree {
namespace matmul_rows {
namespace {

using matmul_v6::divide_up;
using matmul_v6::load;
using matmul_v6::Operands;
using matmul_v6::store;
using matmul_v6::Vec;
using matmul_v6::WIDTH;

constexpr int64_t MOST_ROWS = 4;
constexpr int64_t STRIP = 2048;  // columns of C that are added up at a time
constexpr int IN_L2 = 2;         // where __builtin_prefetch brings what is asked for: L1 is full of sums

// Whether a product is one for this file: A (M,K) of few rows.
inline bool takes(Transpose ta, int64_t M, int64_t N, int64_t K) {
    return ta == Transpose::No && M > 0 && M <= MOST_ROWS && N > 0 && K > 0;
}

// Columns j0 to j0 + columns of C, and their sums over one part of K, from k0 on.
struct Strip {
    int64_t j0, columns, k0, k;
    float sums[MOST_ROWS * STRIP];
};

// One step in k, with the arithmetic of version 6's tiles, also where less than a vector is left: a compiler may round a
// plain loop otherwise.
inline Vec multiply_add(Vec sum, Vec b, float a) {
    return matmul_v6::Float32::multiply_add(sum, b, a);
}

// `count` numbers, at most WIDTH, `step` apart; zeros after them.
inline Vec gather(const float* p, int64_t step, int64_t count) {
    float lanes[WIDTH] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = p[i * step];
    return load(lanes);
}

// Adds `ROWS` rows of B (K,N), from k on, to the sums of row m.
template <int ROWS>
void add_rows(const Operands& o, Strip& s, int64_t m, int64_t k) {
    const float *const a = o.A + m * o.lda + k, *const b = o.B + k * o.ldb + s.j0;
    float* const sums = s.sums + m * STRIP;
    int64_t j = 0;
    for (; j + WIDTH <= s.columns; j += WIDTH) {
        Vec sum = load(sums + j);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            if (m == 0) __builtin_prefetch(b + (r + ROWS) * o.ldb + j, 0, IN_L2);
            sum = multiply_add(sum, load(b + r * o.ldb + j), a[r]);
        }
        store(sums + j, sum);
    }
    if (j == s.columns) return;
    Vec sum = load(sums + j);  // STRIP is a multiple of WIDTH
    for (int r = 0; r < ROWS; ++r) sum = multiply_add(sum, gather(b + r * o.ldb + j, 1, s.columns - j), a[r]);
    store(sums + j, sum);
}

// B (K,N)
inline void sum_rows(const Operands& o, Strip& s) {
    constexpr int ROWS = 8;
    int64_t k = s.k0;
    for (; k + ROWS <= s.k0 + s.k; k += ROWS)
        for (int64_t m = 0; m < o.M; ++m) add_rows<ROWS>(o, s, m, k);
    for (; k < s.k0 + s.k; ++k)
        for (int64_t m = 0; m < o.M; ++m) add_rows<1>(o, s, m, k);
}

// B (N,K), whose rows are C's columns. Of the next WIDTH rows a line each is asked for in the time that one takes.
inline void sum_columns(const Operands& o, Strip& s) {
    constexpr int64_t LINE = 16, ASKED = WIDTH / 4;
    const float* const a = o.A + s.k0;
    for (int64_t j = 0; j < s.columns; j += WIDTH) {
        const float* const b = o.B + (s.j0 + j) * o.ldb + s.k0;
        const int64_t count = std::min<int64_t>(WIDTH, s.columns - j);
        Vec sum[MOST_ROWS] = {};
        int64_t p = 0;
        for (; count == WIDTH && p + 4 <= s.k; p += 4) {
            const float* const next = b + (WIDTH + p % LINE / 4 * ASKED) * o.ldb + p;
#pragma GCC unroll 4
            for (int64_t r = 0; r < ASKED; ++r) __builtin_prefetch(next + r * o.ldb, 0, IN_L2);
            const matmul_v6::FourColumns four = matmul_v6::transpose_four(b + p, o.ldb);
            for (int64_t m = 0; m < o.M; ++m)
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) sum[m] = multiply_add(sum[m], four.column[i], a[m * o.lda + p + i]);
        }
        for (; p < s.k; ++p) {
            const Vec column = gather(b + p, o.ldb, count);
            for (int64_t m = 0; m < o.M; ++m) sum[m] = multiply_add(sum[m], column, a[m * o.lda + p]);
        }
        for (int64_t m = 0; m < o.M; ++m) store(s.sums + m * STRIP + j, sum[m]);
    }
}

// The sums are C's, with the bias, or are added to what it holds.
inline void write(const Operands& o, const Strip& s) {
    const bool first = s.k0 == 0;
    for (int64_t m = 0; m < o.M; ++m)
        for (int64_t j = 0; j < s.columns; ++j) {
            float* const c = o.C + m * o.ldc + s.j0 + j;
            float x = s.sums[m * STRIP + j];
            if (first && o.bias) x += o.bias[s.j0 + j];
            if (o.accumulate || !first) x += *c;
            *c = x;
        }
}

inline void multiply_strip(const Operands& o, int64_t j0, int64_t columns) {
    const matmul_v6::Parts parts(o);
    Strip s;
    s.j0 = j0;
    s.columns = columns;
    for (int64_t outer = 0; outer < o.K; outer += parts.k_outer) {
        const int64_t length = std::min(parts.k_outer, o.K - outer), block = matmul_v6::Parts::block_of(length);
        for (int64_t k = 0; k < length; k += block) {
            s.k0 = outer + k;
            s.k = std::min(block, length - k);
            for (int64_t m = 0; m < o.M; ++m) std::fill_n(s.sums + m * STRIP, divide_up(columns, WIDTH) * WIDTH, 0.0f);
            o.tb ? sum_columns(o, s) : sum_rows(o, s);
            write(o, s);
        }
    }
}

// As matmul_v6::matmul, of a product that takes() takes.
inline void matmul(const Operands& o) {
    const int threads = matmul_v6::team_size(o.M, o.N, o.K);
    const int64_t strips = threads * divide_up(o.N, threads * STRIP);
    const int64_t columns = o.tb ? WIDTH : divide_up(divide_up(o.N, strips), WIDTH) * WIDTH;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t j = 0; j < o.N; j += columns) multiply_strip(o, j, std::min(columns, o.N - j));
}

}  // namespace
}  // namespace matmul_rows
}  // namespace lnfree
