// Whether --precision bf16 pays on this processor, asked of the processor itself: that it has an instruction for bf16 is no
// promise. Zen 4 and Emerald Rapids both have AVX512_BF16, and only the first gains by it (README.md).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "machine.h"
#include "operations.h"

namespace lnfree {

// How many times as fast as in fp32 a product is in bf16, by all threads: the fastest of a few tries of both in turn, about
// 20 ms. Leaves fp32 in use.
inline double bf16_speed() {
    constexpr int64_t M = 192, N = 512, K = 512;
    const Operations& op = operations();
    const std::vector<real> A(M * K, real(0.5)), B(K * N, real(0.25));
    std::vector<real> C(M * N);
    double fastest[2] = {1e9, 1e9};
    for (int i = 0; i < 5; i++)
        for (const bool bf16 : {false, true}) {
            op.use_bf16(bf16);
            const double begin = seconds_now();
            op.matmul(Transpose::No, Transpose::No, M, N, K, A.data(), K, B.data(), N, C.data(), N, false, nullptr);
            fastest[bf16] = std::min(fastest[bf16], seconds_now() - begin);
        }
    op.use_bf16(false);
    return fastest[0] / fastest[1];
}

}  // namespace lnfree
