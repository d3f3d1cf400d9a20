// The ladder of the matrix product: every version that dev/cpu/matmul checks and times. A new one is a file and a row.
#pragma once

#include <cstdint>

#include "matmul_types.h"
#include "matmul_v1.h"
#include "matmul_v2.h"
#include "matmul_v3.h"
#include "matmul_v4.h"
#include "matmul_v5.h"
#include "matmul_v6.h"
#include "matmul_v7.h"

namespace lnfree {

// What every version looks like; matmul_v1.h describes the arguments.
using MatmulFunction = void (*)(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A,
                                int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate,
                                const float* bias);

struct MatmulVersion {
    int number;
    const char* name;
    MatmulFunction function;
    const char* idea;  // one line, for the table
};

// From the bottom up.
inline constexpr MatmulVersion matmul_versions[] = {
    {1, "plain", matmul_v1::matmul, "three loops, as the product is defined"},
    {2, "contiguous", matmul_v2::matmul, "inner loops run along the rows of B and C"},
    {3, "parallel", matmul_v3::matmul, "rows on all cores, vector instructions (OpenMP)"},
    {4, "tile", matmul_v4::matmul, "a tile of C is summed in registers"},
    {5, "packed", matmul_v5::matmul, "panels of B copied into the order in which they are read"},
    {6, "blocked", matmul_v6::matmul, "long sums cut to fit the caches, A packed too, packing in vectors"},
    {7, "apart", matmul_v7::matmul, "every core packs for itself and reads the rows that it wrote"},
};

}  // namespace lnfree
