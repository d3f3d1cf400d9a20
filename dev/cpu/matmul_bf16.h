// The matrix product with its operands rounded to bf16 and its sums in fp32: `--precision bf16`.
//
// bf16 is the upper half of a float. Two of them that follow each other in k share 32 bits, and AVX512_BF16 multiplies
// such pairs and adds both products to a float in one instruction: half the instructions and half the memory of fp32.
// So this is version 6 over K/2 pairs: the operands are rounded and paired first, one pass over each, and everything
// that moves 32 bits (tiles, packing, caches) stays as it is. Weights stay fp32; what is rounded is used once.
//
// Without AVX512_BF16 the same pairs are taken apart by shifts: right, but slower than fp32. The instruction is no promise
// either (README.md), so the program measures (bf16_speed.h) and refuses bf16 where it is slower; tests use it
// everywhere.
// (Functions here are in a namespace without a name: they are compiled once per instruction set, and of several copies of
// one function a linker would keep the first that it meets.)
#pragma once

#include <cstdint>
#include <cstring>

#include "matmul_v7.h"

namespace lnfree {
namespace matmul_bf16 {
namespace {

using matmul_v6::divide_up;
using matmul_v6::Vec;
using matmul_v6::WIDTH;

// The nearest bf16, ties to even; a NaN stays one, whatever its payload. Below 2^16: the bits of the bf16.
inline uint32_t round_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40;
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded;
}

inline float as_pair(uint32_t first, uint32_t second) {
    const uint32_t bits = first | second << 16;
    float pair;
    std::memcpy(&pair, &bits, 4);
    return pair;
}

// Pairs along a row: x (rows,k), rows ld apart -> out (rows, ceil(k/2)). An odd k ends with a pair whose second is 0.
inline void pair_along_rows(const float* x, int64_t ld, int64_t rows, int64_t k, float* out,
                            [[maybe_unused]] int threads) {
    const int64_t pairs = divide_up(k, 2);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; ++r) {
        const float* row = x + r * ld;
        float* o = out + r * pairs;
#pragma omp simd
        for (int64_t p = 0; p < k / 2; ++p) o[p] = as_pair(round_to_bf16(row[2 * p]), round_to_bf16(row[2 * p + 1]));
        if (k % 2 != 0) o[pairs - 1] = as_pair(round_to_bf16(row[k - 1]), 0);
    }
}

// Pairs of rows: x (k,columns), rows ld apart -> out (ceil(k/2), columns).
inline void pair_rows(const float* x, int64_t ld, int64_t columns, int64_t k, float* out,
                      [[maybe_unused]] int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < divide_up(k, 2); ++p) {
        const float *first = x + 2 * p * ld, *second = first + ld;
        float* o = out + p * columns;
        if (2 * p + 1 < k) {
#pragma omp simd
            for (int64_t j = 0; j < columns; ++j) o[j] = as_pair(round_to_bf16(first[j]), round_to_bf16(second[j]));
        } else {
            for (int64_t j = 0; j < columns; ++j) o[j] = as_pair(round_to_bf16(first[j]), 0);
        }
    }
}

typedef uint32_t Bits __attribute__((vector_size(WIDTH * 4)));

// One step over a pair: sum + first * first + second * second.
struct Shifted {
    static Vec multiply_add(Vec sum, Vec b, float a) {
        Bits pairs, pair = {};
        uint32_t bits;
        std::memcpy(&pairs, &b, sizeof b);
        std::memcpy(&bits, &a, sizeof a);
        pair += bits;
        return sum + as_floats(pairs << 16) * as_floats(pair << 16) +
               as_floats(pairs & 0xFFFF0000u) * as_floats(pair & 0xFFFF0000u);
    }
    static Vec as_floats(Bits bits) {
        Vec v;
        std::memcpy(&v, &bits, sizeof v);
        return v;
    }
};

// The AVX-512 build may contain this instruction, and runs it only where the processor has it.
#ifdef __AVX512BF16__
struct Hardware {
    static Vec multiply_add(Vec sum, Vec b, float a) {
        return Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(__m512(b)), __m512bh(_mm512_set1_ps(a))));
    }
};
inline bool has_hardware() {
    static const bool has = __builtin_cpu_supports("avx512bf16");
    return has;
}
#else
using Hardware = Shifted;
inline bool has_hardware() {
    return false;
}
#endif

// As matmul_v6::matmul, with op(A) and op(B) rounded to bf16. bias and C are not rounded.
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    if (M <= 0 || N <= 0) return;
    if (K <= 0) return matmul_v6::empty_product(M, N, C, ldc, accumulate, bias);
    const bool a_transposed = ta == Transpose::Yes, b_transposed = tb == Transpose::Yes;
    const int64_t pairs = divide_up(K, 2);
    const int threads = matmul_v6::team_size(M, N, K);

    static thread_local matmul_v6::Workspace workspace;
    float* const a = workspace.reserve(static_cast<size_t>((M + N) * pairs));
    float* const b = a + M * pairs;
    a_transposed ? pair_rows(A, lda, M, K, a, threads) : pair_along_rows(A, lda, M, K, a, threads);
    b_transposed ? pair_along_rows(B, ldb, N, K, b, threads) : pair_rows(B, ldb, N, K, b, threads);

    const matmul_v6::Operands o{
        a_transposed, b_transposed, M,   N, pairs, a, a_transposed ? M : pairs, b, b_transposed ? pairs : N, C,
        ldc,          accumulate,   bias};
    has_hardware() ? matmul_v7::multiply_shares<Hardware>(o) : matmul_v7::multiply_shares<Shifted>(o);
}

}  // namespace
}  // namespace matmul_bf16
}  // namespace lnfree
