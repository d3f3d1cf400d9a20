// What the processor can do at the most: the yardsticks of `bench`, compiled per instruction set like the operations.
// Included by train_gpt2_lnfree.cpp alone; others call operations().multiply_adds and operations().triad.
//
// A library can fool who measures by it: one that does not know the processor runs at a third of its speed. These two ask
// the processor itself.
#pragma once

#include <cstdint>

#include "../buffer.h"
#include "matmul_v6.h"

namespace lnfree {
namespace {

// `rounds` of multiply-adds, by the calling thread, that never leave the registers and do not wait for each other: two can
// start per cycle and each takes 4 or 5, so twelve sums keep both units busy, and leave room for the factors where there
// are 16 registers. Returns how many floating-point operations that were.
inline double multiply_adds(int64_t rounds) {
    using matmul_v6::Vec, matmul_v6::WIDTH;
    constexpr int SUMS = 12;
    const volatile float factor = 0.75f, summand = 0.25f;  // which the compiler takes for unknown
    const Vec x = Vec{} + factor, y = Vec{} + summand;
    Vec sum[SUMS];
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; ++i) sum[i] = y * static_cast<float>(i);
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; ++i) sum[i] = y + sum[i] * x;
    Vec total = sum[0];
#pragma GCC unroll 12
    for (int i = 1; i < SUMS; ++i) total += sum[i];
    for (int lane = 0; lane < WIDTH; ++lane) {
        const volatile float kept = total[lane];  // so that none of it can be left out
        static_cast<void>(kept);
    }
    return 2.0 * SUMS * WIDTH * static_cast<double>(rounds);
}

// a (n) += factor * b (n), `times` times, every thread on its own share, so that a small share stays in that thread's
// cache. Two numbers are read and one is written, 3 n sizeof(real) bytes a time: written where it was read, so that no
// memory is fetched only to be overwritten. b may be a: then it is 2 n sizeof(real).
inline void triad(real* a, const real* b, real factor, int64_t n, int64_t times) {
#pragma omp parallel
    for (int64_t time = 0; time < times; ++time) {
#pragma omp for simd schedule(static) nowait
        for (int64_t i = 0; i < n; i++) a[i] += factor * b[i];
    }
}

}  // namespace
}  // namespace lnfree
