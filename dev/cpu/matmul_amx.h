// The bf16 product on AMX, the tiles of Intel's server processors from Sapphire Rapids on (Intel's manual, volume 1, chapter
// 18): registers of 16 rows by 64 bytes, and one instruction that multiplies two of them and adds the product to a third.
// Never timed: no processor that has them was at hand. What it computes is tested without them, by Emulated below.
//
// A tile of A is 16 rows of 16 pairs, pairs that follow each other in k as in matmul_bf16.h; a tile of B 16 rows, each a pair
// of k, of 16 columns; their product a tile of C, 16 by 16 floats. So both operands are rounded, paired and packed, tile
// after tile along k, filled up with zeros; then blocks of C, 2 by 2 tiles, are summed over all of K in four tiles, while two
// hold A and two hold B: four multiplications for four loads.
//
// The same bits for any number of threads: a block of C belongs to one thread and is summed in the order of k.
// (Functions here are in a namespace without a name: they are compiled once per instruction set, and of several copies of
// one function a linker would keep the first that it meets.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "matmul_bf16.h"
#include "vector_math.h"

#if defined(__x86_64__) && defined(__AVX512F__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define LNFREE_AMX 1
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lnfree {
namespace matmul_amx {
namespace {

using matmul_v6::divide_up;

constexpr int64_t TILE = 16, TILE_FLOATS = TILE * TILE;  // rows; 32-bit numbers of a row
constexpr int64_t BLOCK = 2 * TILE;                      // rows and columns of C that are summed at a time

// ---- packing --------------------------------------------------------------------------------------------------------

// op(A) or the transpose of op(B): x(i, k) = data[i * step_i + k * step_k].
struct Source {
    const float* data;
    int64_t step_i, step_k, rows, K;

    float pair(int64_t i, int64_t p) const {
        if (i >= rows || 2 * p >= K) return 0;
        const float* const x = data + i * step_i + 2 * p * step_k;
        const uint32_t second = 2 * p + 1 < K ? matmul_bf16::round_to_bf16(x[step_k]) : 0;
        return matmul_bf16::as_pair(matmul_bf16::round_to_bf16(x[0]), second);
    }
    int64_t strips() const { return divide_up(rows, BLOCK) * 2; }  // of TILE rows
    int64_t k_tiles() const { return divide_up(K, 2 * TILE); }
    int64_t packed_floats() const { return strips() * k_tiles() * TILE_FLOATS; }
};

// Where the pair p of row i lies in a tile: a row's pairs beside each other, or a pair's rows.
template <bool pairs_first>
int64_t place(int64_t i, int64_t p) {
    return pairs_first ? p * TILE + i : i * TILE + p;
}

// The tile of the rows from i0 on and the pairs from p0 on. One of the source's steps is 1.
template <bool pairs_first>
void pack_tile(const Source& s, int64_t i0, int64_t p0, float* tile) {
    using matmul_bf16::as_pair, matmul_bf16::round_to_bf16;
    const float* const x = s.data + i0 * s.step_i + 2 * p0 * s.step_k;
    if (i0 + TILE > s.rows || 2 * (p0 + TILE) > s.K) {
        for (int64_t i = 0; i < TILE; ++i)
            for (int64_t p = 0; p < TILE; ++p) tile[place<pairs_first>(i, p)] = s.pair(i0 + i, p0 + p);
    } else if (s.step_k == 1) {
        for (int64_t i = 0; i < TILE; ++i) {
            const float* const row = x + i * s.step_i;
#pragma omp simd
            for (int64_t p = 0; p < TILE; ++p)
                tile[place<pairs_first>(i, p)] = as_pair(round_to_bf16(row[2 * p]), round_to_bf16(row[2 * p + 1]));
        }
    } else {
        for (int64_t p = 0; p < TILE; ++p) {
            const float *const first = x + 2 * p * s.step_k, *const second = first + s.step_k;
#pragma omp simd
            for (int64_t i = 0; i < TILE; ++i)
                tile[place<pairs_first>(i, p)] = as_pair(round_to_bf16(first[i]), round_to_bf16(second[i]));
        }
    }
}

// Strips of TILE rows, each a row of tiles along k.
template <bool pairs_first>
void pack(const Source& s, float* out, [[maybe_unused]] int threads) {
    const int64_t k_tiles = s.k_tiles();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t strip = 0; strip < s.strips(); ++strip)
        for (int64_t kt = 0; kt < k_tiles; ++kt)
            pack_tile<pairs_first>(s, strip * TILE, kt * TILE, out + (strip * k_tiles + kt) * TILE_FLOATS);
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// What the instructions do, in plain code.
struct Emulated {
    float c[2][2][TILE_FLOATS];

    static void begin() {}
    static void end() {}
    void clear() { std::memset(c, 0, sizeof c); }
    static void multiply_add(float* sum, const float* a, const float* b) {
        using vector_math::bits_of, vector_math::from_bits;
        for (int64_t i = 0; i < TILE; ++i)
            for (int64_t p = 0; p < TILE; ++p) {
                const uint32_t x = bits_of(a[i * TILE + p]);
                for (int64_t j = 0; j < TILE; ++j) {
                    const uint32_t y = bits_of(b[p * TILE + j]);
                    sum[i * TILE + j] += from_bits(x << 16) * from_bits(y << 16);
                    sum[i * TILE + j] += from_bits(x & 0xFFFF0000u) * from_bits(y & 0xFFFF0000u);
                }
            }
    }
    void step(const float* a0, const float* a1, const float* b0, const float* b1) {
        multiply_add(c[0][0], a0, b0);
        multiply_add(c[0][1], a0, b1);
        multiply_add(c[1][0], a1, b0);
        multiply_add(c[1][1], a1, b1);
    }
    // out (BLOCK,BLOCK)
    void store(float* out) const {
        for (int64_t i = 0; i < BLOCK; ++i)
            for (int64_t j = 0; j < BLOCK; ++j) out[i * BLOCK + j] = c[i / TILE][j / TILE][i % TILE * TILE + j % TILE];
    }
};

#ifdef LNFREE_AMX
#define LNFREE_TILES __attribute__((target("amx-tile,amx-bf16")))

// Tiles 0 to 3 hold C, 4 and 5 A, 6 and 7 B.
struct Hardware {
    // Of the calling thread: all eight tiles have 16 rows of 64 bytes.
    LNFREE_TILES static void begin() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shapes;
        _tile_loadconfig(&shapes);
    }
    LNFREE_TILES static void end() { _tile_release(); }
    LNFREE_TILES static void clear() {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    LNFREE_TILES static void step(const float* a0, const float* a1, const float* b0, const float* b1) {
        _tile_loadd(4, a0, 64);
        _tile_loadd(6, b0, 64);
        _tile_loadd(7, b1, 64);
        _tile_loadd(5, a1, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    LNFREE_TILES static void store(float* out) {
        constexpr int64_t row = BLOCK * sizeof(float);
        _tile_stored(0, out, row);
        _tile_stored(1, out + TILE, row);
        _tile_stored(2, out + TILE * BLOCK, row);
        _tile_stored(3, out + TILE * BLOCK + TILE, row);
    }
};

// Whether the processor has tiles for bf16 and Linux lets this process use them, for which it has to ask.
inline bool has_hardware() {
    static const bool has = [] {
        constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
        constexpr long ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        unsigned a, b, c, d = 0;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
        return (d & amx_bf16) != 0 && (d & amx_tile) != 0 && syscall(SYS_arch_prctl, ask, tile_data) == 0;
    }();
    return has;
}
#else
using Hardware = Emulated;
inline bool has_hardware() {
    return false;
}
#endif

// ---- the product ----------------------------------------------------------------------------------------------------

// A block's sums, of which `rows` by `columns` are C's.
inline void write_block(const float* sums, float* c, int64_t ldc, int64_t rows, int64_t columns, bool add,
                        const float* bias) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
            float x = sums[i * BLOCK + j];
            if (bias) x += bias[j];
            if (add) x += c[i * ldc + j];
            c[i * ldc + j] = x;
        }
}

// As matmul_bf16::matmul, on Tiles.
template <class Tiles>
void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda, const float* B,
            int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    if (M <= 0 || N <= 0) return;
    if (K <= 0) return matmul_v6::empty_product(M, N, C, ldc, accumulate, bias);
    const bool a_transposed = ta == Transpose::Yes, b_transposed = tb == Transpose::Yes;
    const Source rows = {A, a_transposed ? 1 : lda, a_transposed ? lda : 1, M, K};
    const Source columns = {B, b_transposed ? ldb : 1, b_transposed ? 1 : ldb, N, K};
    const int threads = matmul_v6::team_size(M, N, K);

    static thread_local matmul_v6::Workspace workspace;
    float* const a = workspace.reserve(static_cast<size_t>(rows.packed_floats() + columns.packed_floats()));
    float* const b = a + rows.packed_floats();
    pack<false>(rows, a, threads);
    pack<true>(columns, b, threads);

    const int64_t m_blocks = divide_up(M, BLOCK), n_blocks = divide_up(N, BLOCK), k_tiles = rows.k_tiles();
    const int64_t strip = k_tiles * TILE_FLOATS;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Tiles tiles;
        tiles.begin();
#pragma omp for schedule(static)
        for (int64_t block = 0; block < m_blocks * n_blocks; ++block) {
            const int64_t m = block % m_blocks, n = block / m_blocks, i = m * BLOCK, j = n * BLOCK;
            const float *const a0 = a + 2 * m * strip, *const b0 = b + 2 * n * strip;
            tiles.clear();
            for (int64_t at = 0; at < strip; at += TILE_FLOATS)
                tiles.step(a0 + at, a0 + strip + at, b0 + at, b0 + strip + at);
            alignas(64) float sums[BLOCK * BLOCK];
            tiles.store(sums);
            write_block(sums, C + i * ldc + j, ldc, std::min(BLOCK, M - i), std::min(BLOCK, N - j), accumulate,
                        bias ? bias + j : nullptr);
        }
        tiles.end();
    }
}

}  // namespace
}  // namespace matmul_amx
}  // namespace lnfree
