// Emulation: the two warp instructions behind matrix products on tensor cores, with the layout of fragments that the PTX
// ISA manual gives ("Matrix Fragments for mma.m16n8k16", "Warp-level matrix load instruction: ldmatrix").
#pragma once

#include <cstdint>
#include <cstring>

#include "bf16.h"
#include "block.h"
#include "shared_memory.h"

namespace lnfree::cuda {

namespace emulation {

// ---- mma -------------------------------------------------------------------------------------------------------------

struct MmaLane {
    float* d;           // [4]
    const uint32_t* a;  // [4]
    const uint32_t* b;  // [2]
};

// The lower and the upper bf16 of a register.
inline float low_half(uint32_t pair) {
    return float_of(pair << 16);
}
inline float high_half(uint32_t pair) {
    return float_of(pair & 0xffff0000);
}

// Four floats in a vector register, as g++ and clang++ both know them. The product is most of the emulation's work on
// tensor cores, and at -O1 neither compiler makes vector code of plain loops.
using Four = float __attribute__((vector_size(16)));

// Element (row, column) of a matrix with 8 columns.
inline float& element(Four (*matrix)[2], int row, int column) {
    return reinterpret_cast<float*>(matrix[row])[column];
}

// D (16,8) += A (16,16) B (16,8). The lane l = 4 g + t holds, as pairs of neighbours:
//   A   rows g, g + 8, g, g + 8 in columns 2t, 2t, 2t + 8, 2t + 8 (registers 0 to 3)      B   rows 2t, 2t + 8 in column g
//   D   rows g, g, g + 8, g + 8 in columns 2t, 2t + 1, 2t, 2t + 1
// Products of two bf16 are exact in float; sums are rounded after every term, here in the order of k.
inline void complete_mma(BlockRunner&, int, void* const* lanes, unsigned) {
    float a[16][16];
    Four b[16][2], d[16][2];
    for (int l = 0; l < 32; ++l) {
        const auto& lane = *static_cast<const MmaLane*>(lanes[l]);
        const int g = l / 4, column = l % 4 * 2;
        for (int r = 0; r < 4; ++r) {
            const int row = g + r % 2 * 8, first = column + r / 2 * 8;
            a[row][first] = low_half(lane.a[r]);
            a[row][first + 1] = high_half(lane.a[r]);
            element(d, g + r / 2 * 8, column + r % 2) = lane.d[r];
        }
        for (int r = 0; r < 2; ++r) {
            element(b, column + r * 8, g) = low_half(lane.b[r]);
            element(b, column + r * 8 + 1, g) = high_half(lane.b[r]);
        }
    }
    for (int m = 0; m < 16; ++m) {
        for (int k = 0; k < 16; ++k) {
            for (int half = 0; half < 2; ++half) d[m][half] += a[m][k] * b[k][half];
        }
    }
    for (int l = 0; l < 32; ++l) {
        const auto& lane = *static_cast<const MmaLane*>(lanes[l]);
        for (int r = 0; r < 4; ++r) lane.d[r] = element(d, l / 4 + r / 2 * 8, l % 4 * 2 + r % 2);
    }
}

// ---- ldmatrix --------------------------------------------------------------------------------------------------------

struct LdmatrixLane {
    const bf16* row;  // the address that this lane gives, or null
    uint32_t* r;
};

// Matrix i is the 8 rows that lanes 8i to 8i + 7 give. Lane 4 g + t gets of each the pair (g, 2t), (g, 2t + 1), or
// transposed (2t, g), (2t + 1, g). Each lane reads its own values, so that a race is found between the lanes that it
// concerns.
template <int matrices, bool transposed>
void complete_ldmatrix(BlockRunner& runner, int warp, void* const* lanes, unsigned) {
    for (int l = 0; l < 32; ++l) {
        for (int i = 0; i < matrices; ++i) {
            bf16 pair[2];
            for (int j = 0; j < 2; ++j) {
                const int row = transposed ? l % 4 * 2 + j : l / 4;
                const int column = transposed ? l / 4 : l % 4 * 2 + j;
                const bf16* const at = static_cast<const LdmatrixLane*>(lanes[i * 8 + row])->row + column;
                runner.shared().read(at, sizeof(bf16), warp * 32 + l);
                pair[j] = *at;
            }
            static_cast<LdmatrixLane*>(lanes[l])->r[i] = static_cast<uint32_t>(pair[1].bits) << 16 | pair[0].bits;
        }
    }
}

template <int matrices, bool transposed>
void ldmatrix(uint32_t* r, Shared<bf16> row_address, const char* name, Where where) {
    BlockRunner& runner = runner_for(name);
    const bool gives_row = runner.thread() % 32 < matrices * 8;
    LdmatrixLane exchange = {gives_row ? row_address.aligned_address(16) : nullptr, r};
    runner.meet_lanes(0xffffffff, name, where, &complete_ldmatrix<matrices, transposed>, &exchange);
}

}  // namespace emulation

// D += A B on a tensor core: all 32 lanes of the warp together, fragments of a (16,16), b (16,8) and d (16,8) in registers.
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         emulation::Where where = emulation::Where::here()) {
    emulation::MmaLane exchange = {d, a, b};
    emulation::runner_for("mma_m16n8k16")
        .meet_lanes(0xffffffff, "mma_m16n8k16", where, &emulation::complete_mma, &exchange);
}

// Loads matrices of 8 rows of 8 bf16 (16 bytes, aligned to 16) from shared memory as fragments: four of them, lane i giving
// the address of row i % 8 of matrix i / 8; _trans transposes each. Of _x2 the upper 16 lanes' addresses are not used.
inline void ldmatrix_x4(uint32_t (&r)[4], Shared<bf16> row_address, emulation::Where where = emulation::Where::here()) {
    emulation::ldmatrix<4, false>(r, row_address, "ldmatrix_x4", where);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], Shared<bf16> row_address,
                              emulation::Where where = emulation::Where::here()) {
    emulation::ldmatrix<4, true>(r, row_address, "ldmatrix_x4_trans", where);
}
inline void ldmatrix_x2(uint32_t (&r)[2], Shared<bf16> row_address, emulation::Where where = emulation::Where::here()) {
    emulation::ldmatrix<2, false>(r, row_address, "ldmatrix_x2", where);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], Shared<bf16> row_address,
                              emulation::Where where = emulation::Where::here()) {
    emulation::ldmatrix<2, true>(r, row_address, "ldmatrix_x2_trans", where);
}

}  // namespace lnfree::cuda
