// Version 6 of the matrix product, the engine's: version 5, and the sums cut into blocks, so that every operand is read
// from a cache that holds it; A packed too where it enters transposed; packing and edges as vector code.
//
// What it gains over the versions below it: the table in dev/cpu/README.md, which `dev/cpu/matmul --readme` measures.
//
// The idea. A core does two vector multiply-adds per cycle and loads about as many vectors, from L1; from further away
// it loads fewer. So each number that comes closer to the core must be used many times there:
//
//   registers   a tile of C, TILE_ROWS x TILE_COLS, while a whole k-block is summed. One step in k loads TILE_VECTORS
//               vectors of B and TILE_ROWS numbers of A for TILE_ROWS * TILE_VECTORS multiply-adds.
//   L1          the tile's rows of A over one k-block: at most 9 KiB. They serve all tiles beside each other.
//   L2          the chunk of B: CHUNK_PANELS panels of TILE_COLS columns over one k-block, packed in the order in which
//               the tiles read them: 192 KiB with AVX-512, 96 KiB with AVX2 and on Arm, else 64 KiB. It serves all
//               rows of C.
//   L3          the outer block of A, K_OUTER columns of it, which every chunk of B reads again.
//   memory      B itself. While the tiles of one chunk are multiplied they ask for the next one, so that packing it does
//               not wait for memory.
//
// The tile is as large as the registers allow: of 16 or 32, TILE_VECTORS hold B, one a number of A, the rest sums.
// Two multiply-adds start per cycle and each takes 4 or 5, so with fewer than ten sums the core would wait for itself.
// A is read where it lies if its rows are contiguous in k. Transposed, each step in k would touch another page, so
// outer blocks of A are then packed by tile, A_STRIDE numbers per step, unless its rows are short.
//
// Parallel: first the packing of A, then tasks, each a chunk of B's columns by a share of A's rows. A task packs its
// chunk into its thread's own buffer, and no two tasks write the same element of C.
//
// The same bits for any number of threads: an element of C is the sum over one k-block in the order of k, from zero, in
// one accumulator; then + bias (in the first block), then + C. Which tile, task or thread it falls to changes nothing
// in that, and where k is cut depends on K and A's orientation only. So a row of C does not even depend on how many
// other rows are computed with it.
// (Functions here are in a namespace without a name: they are compiled once per instruction set, and of several copies of
// one function a linker would keep the first that it meets.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "matmul_types.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace lnfree {
namespace matmul_v6 {
namespace {

// ---- sizes ----------------------------------------------------------------------------------------------------------

// WIDTH floats per vector register. 32 registers hold 6 x 4 accumulators, 16 hold 6 x 2.
// K_BLOCK and CHUNK_PANELS were found by trying, around what the caches suggest (see above).
#if defined(__AVX512F__)
constexpr int WIDTH = 16, TILE_VECTORS = 4;
constexpr int64_t K_BLOCK = 384, CHUNK_PANELS = 2;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, TILE_VECTORS = 2;
constexpr int64_t K_BLOCK = 256, CHUNK_PANELS = 6;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, TILE_VECTORS = 4;
constexpr int64_t K_BLOCK = 256, CHUNK_PANELS = 6;
#else
constexpr int WIDTH = 4, TILE_VECTORS = 2;
constexpr int64_t K_BLOCK = 256, CHUNK_PANELS = 8;
#endif
constexpr int TILE_ROWS = 6, TILE_COLS = WIDTH * TILE_VECTORS;
constexpr bool ASKS_AHEAD = TILE_VECTORS == 4 && WIDTH == 16;  // in shorter steps asking costs more than it saves

constexpr int64_t K_OUTER = 4096;         // columns of A that are at work at a time, where A is read in place
constexpr int64_t K_OUTER_PACKED = 1024;  // and where it is packed
constexpr int64_t A_STRIDE = 8;           // floats per step of k in packed A: a tile's 6, and 2 to keep 32-byte steps
constexpr int64_t A_BUFFER = int64_t{3} << 19;  // floats of packed A, about: 6 MiB

// Floats of a packed chunk of B. k-blocks are rounded up to a multiple of 4, which may pass K_BLOCK.
constexpr int64_t B_BUFFER = CHUNK_PANELS * TILE_COLS * (K_BLOCK + 4);

inline int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Where part `index` begins when `size` things are cut into `count` nearly equal parts.
inline int64_t cut(int64_t size, int64_t index, int64_t count) {
    return size * index / count;
}

// ---- vectors --------------------------------------------------------------------------------------------------------

typedef float Vec __attribute__((vector_size(WIDTH * 4)));                                  // in a register
typedef float UnalignedVec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));  // anywhere in memory

inline Vec load(const float* p) {
    return *reinterpret_cast<const UnalignedVec*>(p);
}

inline void store(float* p, Vec v) {
    *reinterpret_cast<UnalignedVec*>(p) = v;
}

// ---- one tile of C --------------------------------------------------------------------------------------------------

// C (rows, columns) = A (rows, k) B (k, columns) [+ bias (columns)] [+ C]. No alignment is asked of anything.
struct Tile {
    int64_t k;
    const float* a;  // a(r, p) = a[r * a_row + p * a_k]
    int64_t a_row, a_k;
    const float* b;  // b(p, j) = b[p * b_row + j]
    int64_t b_row;
    float* c;  // c(r, j) = c[r * ldc + j]
    int64_t ldc;
    const float* bias;   // null: none
    bool add;            // to what C holds, which is not read otherwise
    const float* ahead;  // what memory is asked for meanwhile, a line per step of k
    int64_t ahead_step;
};

// What one step in k does to a vector of sums. matmul_bf16.h has another, whose 32 bits hold two numbers each.
struct Float32 {
    static Vec multiply_add(Vec sum, Vec b, float a) { return sum + b * a; }
};

// The kernel: ROWS x VECTORS accumulators that the unrolled loops keep in registers. The tile's fields are copied
// first: the compiler cannot know that storing to C leaves them as they are.
template <class Arithmetic, int ROWS, int VECTORS>
void multiply(const Tile& t) {
    constexpr int LINE = 16 / WIDTH;  // vectors per cache line
    float* const c = t.c;
    const float* const bias = t.bias;
    const int64_t ldc = t.ldc;
    const bool add = t.add;
    Vec sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = Vec{};
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v += LINE) __builtin_prefetch(c + r * ldc + v * WIDTH, 1);

    // Two pointers into A: x86 finds base + 0, 1 or 2 rows within the instruction that loads, but not base + 5 rows.
    const int64_t a_row = t.a_row, a_k = t.a_k, b_row = t.b_row;
    const float *a = t.a, *a3 = t.a + (ROWS > 3 ? 3 * a_row : 0), *b = t.b;
    const float* ahead = t.ahead;
    const int64_t ahead_step = t.ahead_step;
    for (int64_t p = 0; p < t.k; ++p) {
        if (ASKS_AHEAD) {
            __builtin_prefetch(ahead);
            ahead += ahead_step;
        }
        Vec x[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) x[v] = load(b + v * WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const float y = r < 3 ? a[r * a_row] : a3[(r - 3) * a_row];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = Arithmetic::multiply_add(sum[r][v], x[v], y);
        }
        a += a_k;
        a3 += a_k;
        b += b_row;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            Vec x = sum[r][v];
            if (bias) x += load(bias + v * WIDTH);
            if (add) x += load(c + r * ldc + v * WIDTH);
            store(c + r * ldc + v * WIDTH, x);
        }
}

// multiply<Arithmetic, rows, vectors>: picks the instance, for 1..TILE_ROWS rows and 1..TILE_VECTORS vectors.
template <class Arithmetic, int ROWS = TILE_ROWS, int VECTORS = TILE_VECTORS>
void multiply_tile(int rows, int vectors, const Tile& t) {
    if constexpr (VECTORS > 1) {
        if (vectors < VECTORS) return multiply_tile<Arithmetic, ROWS, VECTORS - 1>(rows, vectors, t);
    }
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return multiply_tile<Arithmetic, ROWS - 1, VECTORS>(rows, vectors, t);
    }
    multiply<Arithmetic, ROWS, VECTORS>(t);
}

// The same for a tile at C's right edge, which must not be written beyond: B is packed and padded to whole vectors.
template <class Arithmetic>
void multiply_edge_tile(int rows, int columns, const Tile& t) {
    alignas(64) float sums[TILE_ROWS * TILE_COLS];
    Tile inner = t;
    inner.c = sums;
    inner.ldc = TILE_COLS;
    inner.bias = nullptr;
    inner.add = false;
    multiply_tile<Arithmetic>(rows, static_cast<int>(divide_up(columns, WIDTH)), inner);
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < columns; ++j) {
            float x = sums[r * TILE_COLS + j];
            if (t.bias) x += t.bias[j];
            if (t.add) x += t.c[r * t.ldc + j];
            t.c[r * t.ldc + j] = x;
        }
}

// ---- packing B: out[p * TILE_COLS + j] = b(p, j) --------------------------------------------------------------------

// Within each group of 4 lanes takes the four that CHOSEN names: 0..3 from a's group, 4..7 from b's.
template <int... CHOSEN, int... LANE>
Vec shuffle_groups(Vec a, Vec b, std::integer_sequence<int, CHOSEN...>, std::integer_sequence<int, LANE...>) {
    constexpr int chosen[] = {CHOSEN...};
    constexpr int source[] = {((LANE & ~3) + (chosen[LANE & 3] & 3) + (chosen[LANE & 3] < 4 ? 0 : WIDTH))...};
#ifdef __clang__
    return __builtin_shufflevector(a, b, source[LANE]...);
#else
    typedef int Index __attribute__((vector_size(WIDTH * 4)));
    return __builtin_shuffle(a, b, Index{source[LANE]...});
#endif
}

template <int... CHOSEN>
Vec shuffle_groups(Vec a, Vec b) {
    return shuffle_groups(a, b, std::integer_sequence<int, CHOSEN...>{}, std::make_integer_sequence<int, WIDTH>{});
}

// Four floats from each of the rows 0, 4, 8, ... (below WIDTH) into one vector.
inline Vec load_groups(const float* row, int64_t ld) {
#if defined(__AVX512F__)
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(row));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(row + 4 * ld), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(row + 8 * ld), 2);
    return Vec(_mm512_insertf32x4(x, _mm_loadu_ps(row + 12 * ld), 3));
#elif defined(__AVX2__)
    return Vec(_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(row + 4 * ld), 1));
#else
    static_cast<void>(ld);
    return load(row);
#endif
}

// WIDTH rows of `source` (WIDTH, 4), ld apart, become four columns: WIDTH / 4 4 x 4 transposes at once.
struct FourColumns {
    Vec column[4];
};
inline FourColumns transpose_four(const float* source, int64_t ld) {
    const Vec row0 = load_groups(source, ld), row1 = load_groups(source + ld, ld);
    const Vec row2 = load_groups(source + 2 * ld, ld), row3 = load_groups(source + 3 * ld, ld);
    const Vec low01 = shuffle_groups<0, 4, 1, 5>(row0, row1), high01 = shuffle_groups<2, 6, 3, 7>(row0, row1);
    const Vec low23 = shuffle_groups<0, 4, 1, 5>(row2, row3), high23 = shuffle_groups<2, 6, 3, 7>(row2, row3);
    return {{shuffle_groups<0, 1, 4, 5>(low01, low23), shuffle_groups<2, 3, 6, 7>(low01, low23),
             shuffle_groups<0, 1, 4, 5>(high01, high23), shuffle_groups<2, 3, 6, 7>(high01, high23)}};
}

// WIDTH rows of `source` (WIDTH, k), ld apart, become WIDTH columns of the panel.
inline void pack_transposed(const float* source, int64_t ld, int64_t k, float* out) {
    int64_t p = 0;
    for (; p + 4 <= k; p += 4) {
        const FourColumns four = transpose_four(source + p, ld);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store(out + (p + i) * TILE_COLS, four.column[i]);
    }
    for (; p < k; ++p)
        for (int j = 0; j < WIDTH; ++j) out[p * TILE_COLS + j] = source[j * ld + p];
}

// The same from `source` (k, columns), rows ld apart, which has the order of a panel already.
inline void pack_rows(const float* source, int64_t ld, int columns, int64_t k, float* out) {
    if (columns == TILE_COLS) {
        for (int64_t p = 0; p < k; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < TILE_COLS; v += WIDTH) store(out + p * TILE_COLS + v, load(source + p * ld + v));
        return;
    }
    for (int64_t p = 0; p < k; ++p) {
        int j = 0;
        for (; j + WIDTH <= columns; j += WIDTH) store(out + p * TILE_COLS + j, load(source + p * ld + j));
        for (; j < columns; ++j) out[p * TILE_COLS + j] = source[p * ld + j];
    }
}

// And from `source` (columns, k).
inline void pack_columns(const float* source, int64_t ld, int columns, int64_t k, float* out) {
    int j = 0;
    for (; j + WIDTH <= columns; j += WIDTH) pack_transposed(source + j * ld, ld, k, out + j);
    for (; j < columns; ++j)
        for (int64_t p = 0; p < k; ++p) out[p * TILE_COLS + j] = source[j * ld + p];
}

// A panel of op(B) (k, columns), columns <= TILE_COLS. B lies as (columns, k) if `transposed`, else as (k, columns),
// rows ld apart. The last vector that has columns is filled up with zeros; `out` holds TILE_COLS floats for each k.
inline void pack_panel(bool transposed, const float* source, int64_t ld, int columns, int64_t k, float* out) {
    if (columns % WIDTH != 0)
        for (int64_t p = 0; p < k; ++p) store(out + p * TILE_COLS + columns / WIDTH * WIDTH, Vec{});
    if (transposed)
        pack_columns(source, ld, columns, k, out);
    else
        pack_rows(source, ld, columns, k, out);
}

// ---- one outer block ------------------------------------------------------------------------------------------------

// The product as the caller gave it.
struct Operands {
    bool ta, tb;
    int64_t M, N, K;
    const float* A;  // (M,K), or (K,M) if ta; rows lda apart
    int64_t lda;
    const float* B;  // (K,N), or (N,K) if tb; rows ldb apart
    int64_t ldb;
    float* C;  // (M,N); rows ldc apart
    int64_t ldc;
    bool accumulate;
    const float* bias;  // (N), or null
};

// Rows i0 .. i0 + m of C with the part k0 .. k0 + k of the sums.
struct Block {
    int64_t i0, m, tiles;    // the rows in `tiles` tiles of nearly equal height, at most TILE_ROWS
    int64_t k0, k, k_block;  // the sums in parts of k_block
    float* a_packed;         // op(A) (m, k) by k-block, within it by tile: [k_block][A_STRIDE]; if packs_a()

    int64_t tile_row(int64_t tile) const { return cut(m, tile, tiles); }

    // A tile's rows over the k-block that begins at k_offset and is `length` long.
    float* packed_tile(int64_t k_offset, int64_t tile, int64_t length) const {
        return a_packed + (k_offset * tiles + tile * length) * A_STRIDE;
    }
};

// Packing costs more than it saves where few rows use B, and where a sum runs over short rows of an operand, a block of
// which stays in L2 as it lies. B is then read where it lies by whole panels, if it is (K,N).
constexpr int64_t SHORT_ROW = 256;

inline bool packs_a(const Operands& o) {
    return o.ta && o.lda > SHORT_ROW;
}

inline bool reads_b_in_place(const Operands& o) {
    return !o.tb && (o.M <= 2 * TILE_ROWS || (o.ta && o.ldb <= SHORT_ROW));
}

constexpr int64_t PACK_TILES = 8;                   // tiles of A that are packed in one piece
constexpr int64_t ROWS_AHEAD = 8, CACHE_LINE = 16;  // rows of A at which one is asked for; floats

// Pieces of A to pack, each PACK_TILES tiles over one k-block.
inline int64_t pack_pieces(const Operands& o, const Block& block) {
    return packs_a(o) ? divide_up(block.tiles, PACK_TILES) * divide_up(block.k, block.k_block) : 0;
}

// Packs one of them. A tile's numbers are copied with those that follow, A_STRIDE in all, if A has so many.
// Rows of A lie in pages of their own, into which the processor does not fetch ahead by itself: so all tiles take their part
// of a row before the next one, and a later row is asked for meanwhile.
inline void pack_a(const Operands& o, const Block& block, int64_t piece) {
    const int64_t k_blocks = divide_up(block.k, block.k_block), groups = divide_up(block.tiles, PACK_TILES);
    const int64_t group = piece / k_blocks, k_offset = piece % k_blocks * block.k_block;
    const int64_t k = std::min(block.k_block, block.k - k_offset);
    const int64_t first = cut(block.tiles, group, groups), tiles = cut(block.tiles, group + 1, groups) - first;
    int64_t row[PACK_TILES];
    for (int64_t t = 0; t < tiles; ++t) row[t] = block.i0 + block.tile_row(first + t);
    int64_t whole = tiles;
    while (whole > 0 && row[whole - 1] + A_STRIDE > o.M) --whole;

    const int64_t end = block.i0 + block.tile_row(first + tiles);
    float* const out = block.packed_tile(k_offset, first, k);
    for (int64_t p = 0; p < k; ++p) {
        const float* const source = o.A + (block.k0 + k_offset + p) * o.lda;
        for (int64_t i = row[0]; i < end; i += CACHE_LINE) __builtin_prefetch(source + ROWS_AHEAD * o.lda + i);
        for (int64_t t = 0; t < whole; ++t)
            std::memcpy(out + (t * k + p) * A_STRIDE, source + row[t], A_STRIDE * sizeof(float));
        for (int64_t t = whole; t < tiles; ++t)
            std::memcpy(out + (t * k + p) * A_STRIDE, source + row[t],
                        static_cast<size_t>(std::min(A_STRIDE, o.M - row[t])) * sizeof(float));
    }
}

// The part of B (K,N) that is packed after columns [j_begin, j_end) of the k-block that begins at k_begin and is k long: the
// next k-block of the same columns, or the next columns. Null if there is none, or if B lies as (N,K), where a row of it
// is contiguous in k and the processor fetches ahead by itself.
inline const float* packed_next(const Operands& o, const Block& block, int64_t k_begin, int64_t k, int64_t j_begin,
                                int64_t j_end) {
    if (o.tb) return nullptr;
    if (k_begin + k < block.k0 + block.k) return o.B + (k_begin + k) * o.ldb + j_begin;
    return j_end < o.N ? o.B + block.k0 * o.ldb + j_end : nullptr;
}

// Tiles [tile_begin, tile_end) by columns [j_begin, j_end), as many as fit b_packed, B_BUFFER floats of this thread;
// j_begin is a multiple of TILE_COLS.
template <class Arithmetic>
void multiply_chunk(const Operands& o, const Block& block, int64_t tile_begin, int64_t tile_end, int64_t j_begin,
                    int64_t j_end, float* b_packed) {
    const bool in_place = reads_b_in_place(o);
    const int64_t a_p = o.ta ? o.lda : 1, a_i = o.ta ? 1 : o.lda, b_p = o.tb ? 1 : o.ldb, b_j = o.tb ? o.ldb : 1;
    for (int64_t k_offset = 0; k_offset < block.k; k_offset += block.k_block) {
        const int64_t k = std::min(block.k_block, block.k - k_offset), k_begin = block.k0 + k_offset;
        for (int64_t j = j_begin; j < j_end; j += TILE_COLS) {
            const int columns = static_cast<int>(std::min<int64_t>(TILE_COLS, j_end - j));
            if (in_place && columns == TILE_COLS) continue;
            pack_panel(o.tb, o.B + k_begin * b_p + j * b_j, o.ldb, columns, k, b_packed + (j - j_begin) * k);
        }
        const float* const next = in_place ? nullptr : packed_next(o, block, k_begin, k, j_begin, j_end);
        int64_t lines_ahead = next ? (j_end - j_begin) / CACHE_LINE : 0;  // a tile asks for one of every row
        for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
            const int64_t row = block.tile_row(tile);
            const int rows = static_cast<int>(block.tile_row(tile + 1) - row);
            Tile t;
            t.k = k;
            t.a = packs_a(o) ? block.packed_tile(k_offset, tile, k) : o.A + (block.i0 + row) * a_i + k_begin * a_p;
            t.a_row = a_i;
            t.a_k = packs_a(o) ? A_STRIDE : a_p;
            t.ldc = o.ldc;
            t.add = o.accumulate || k_begin > 0;
            for (int64_t j = j_begin; j < j_end; j += TILE_COLS) {
                const int columns = static_cast<int>(std::min<int64_t>(TILE_COLS, j_end - j));
                const bool whole = columns == TILE_COLS;
                t.b = in_place && whole ? o.B + k_begin * o.ldb + j : b_packed + (j - j_begin) * k;
                t.b_row = in_place && whole ? o.ldb : TILE_COLS;
                t.c = o.C + (block.i0 + row) * o.ldc + j;
                t.bias = o.bias && k_begin == 0 ? o.bias + j : nullptr;
                const bool asks = lines_ahead > 0;
                t.ahead = asks ? next + --lines_ahead * CACHE_LINE : t.b;
                t.ahead_step = asks ? o.ldb : 0;
                if (columns % WIDTH == 0)
                    multiply_tile<Arithmetic>(rows, columns / WIDTH, t);
                else
                    multiply_edge_tile<Arithmetic>(rows, columns, t);
            }
        }
    }
}

// ---- the whole product ----------------------------------------------------------------------------------------------

// The parts in which K is summed: outer blocks of k_outer, and in each, k long, blocks of block_of(k).
struct Parts {
    int64_t k_outer;
    explicit Parts(const Operands& o) {
        const int64_t outer_blocks = divide_up(o.K, o.ta ? K_OUTER_PACKED : K_OUTER);
        k_outer = divide_up(divide_up(o.K, outer_blocks), 4) * 4;
    }
    static int64_t block_of(int64_t k) { return divide_up(divide_up(k, divide_up(k, K_BLOCK)), 4) * 4; }
};

// How a product is cut into outer blocks, and each of those into tasks.
struct Plan {
    int64_t k_outer, m_block;                 // extent of an outer block
    int64_t panels, column_tasks, row_tasks;  // tasks of a block: their columns, in panels, by their rows, in tiles
};

inline Plan make_plan(const Operands& o, int threads) {
    Plan plan;
    plan.k_outer = Parts(o).k_outer;
    const int64_t packed_rows = A_BUFFER / A_STRIDE * TILE_ROWS / plan.k_outer - TILE_ROWS;
    plan.m_block = divide_up(o.M, divide_up(o.M, o.ta ? std::max<int64_t>(TILE_ROWS, packed_rows) : o.M));

    plan.panels = divide_up(o.N, TILE_COLS);
    // A sum shorter than a k-block leaves room for more columns in a chunk, so that more of a row of C is written at a time.
    const int64_t chunk_panels = CHUNK_PANELS * K_BLOCK / std::min(o.K, K_BLOCK);
    const int64_t panels_per_task = std::max<int64_t>(1, std::min<int64_t>(chunk_panels, plan.panels / (2 * threads)));
    plan.column_tasks = divide_up(plan.panels, panels_per_task);

    // Each share of the rows packs B anew. So they are cut until there are 4 tasks per thread to balance the load, but
    // not below 16 tiles, which is enough to pay for it; below that only as long as some thread would have nothing.
    plan.row_tasks = 1;
    if (threads == 1) return plan;
    const int64_t tiles = divide_up(plan.m_block, TILE_ROWS);
    while (plan.row_tasks * plan.column_tasks < 4 * threads && tiles / (plan.row_tasks * 2) >= 16) plan.row_tasks *= 2;
    while (plan.row_tasks * plan.column_tasks < threads && tiles / (plan.row_tasks * 2) >= 1) plan.row_tasks *= 2;
    return plan;
}

template <class Arithmetic>
void run_task(const Operands& o, const Plan& plan, const Block& block, int64_t task, float* b_packed) {
    const int64_t r = task % plan.row_tasks, c = task / plan.row_tasks;
    multiply_chunk<Arithmetic>(o, block, cut(block.tiles, r, plan.row_tasks), cut(block.tiles, r + 1, plan.row_tasks),
                               cut(plan.panels, c, plan.column_tasks) * TILE_COLS,
                               std::min(o.N, cut(plan.panels, c + 1, plan.column_tasks) * TILE_COLS), b_packed);
}

inline int thread_index() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// b_packed: B_BUFFER floats for each thread. Alone, the caller does without a parallel region: small products would
// spend more time opening one than computing.
template <class Arithmetic>
void run_block(const Operands& o, const Plan& plan, const Block& block, int threads, float* b_packed) {
    const int64_t pieces = pack_pieces(o, block), tasks = plan.row_tasks * plan.column_tasks;
    if (threads == 1) {
        for (int64_t piece = 0; piece < pieces; ++piece) pack_a(o, block, piece);
        for (int64_t task = 0; task < tasks; ++task) run_task<Arithmetic>(o, plan, block, task, b_packed);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        if (pieces > 0) {  // all of A is packed before the first task begins: the loop ends with a barrier
#pragma omp for schedule(dynamic)
            for (int64_t piece = 0; piece < pieces; ++piece) pack_a(o, block, piece);
        }
#pragma omp for schedule(dynamic) nowait
        for (int64_t task = 0; task < tasks; ++task)
            run_task<Arithmetic>(o, plan, block, task, b_packed + thread_index() * B_BUFFER);
    }
}

// Memory for packed operands, kept from call to call, on huge pages where the system has them: panels lie at large
// strides, and with small pages the processor would wait for page tables.
struct Workspace {
    float* data = nullptr;
    size_t floats = 0;

    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(data); }

    // At least `wanted` floats on a HUGE_PAGE boundary, with any contents. std::bad_alloc if there are no more.
    float* reserve(size_t wanted) {
        constexpr size_t HUGE_PAGE = size_t{1} << 21;
        if (wanted <= floats) return data;
        std::free(data);
        floats = 0;
        const size_t bytes = (wanted * sizeof(float) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        data = static_cast<float*>(std::aligned_alloc(HUGE_PAGE, bytes));
        if (!data) throw std::bad_alloc();
#ifdef __linux__
        madvise(data, bytes, MADV_HUGEPAGE);  // a wish; nothing is lost if it is not granted
#endif
        floats = bytes / sizeof(float);
        return data;
    }
};

// All threads, but the caller alone inside a parallel region and where waking the others takes longer than the product.
inline int team_size(int64_t M, int64_t N, int64_t K) {
#ifdef _OPENMP
    const double multiplications = static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
    return omp_in_parallel() || multiplications < 64.0 * 64.0 * 16.0 ? 1 : omp_get_max_threads();
#else
    static_cast<void>(M), static_cast<void>(N), static_cast<void>(K);
    return 1;
#endif
}

// C (M,N) = [bias (N) in every row], [+ C]: what is left of the product when K is 0.
inline void empty_product(int64_t M, int64_t N, float* C, int64_t ldc, bool accumulate, const float* bias) {
    for (int64_t i = 0; i < M; ++i)
        for (int64_t j = 0; j < N; ++j) C[i * ldc + j] = (accumulate ? C[i * ldc + j] : 0.0f) + (bias ? bias[j] : 0.0f);
}

// The product of o's operands in an Arithmetic. o.M, o.N, o.K > 0.
template <class Arithmetic>
void multiply_blocks(const Operands& o) {
    const int threads = team_size(o.M, o.N, o.K);
    const Plan plan = make_plan(o, threads);

    static thread_local Workspace workspace;
    const int64_t a_floats = packs_a(o) ? (divide_up(plan.m_block, TILE_ROWS) + 1) * plan.k_outer * A_STRIDE : 0;
    float* const a_packed = workspace.reserve(static_cast<size_t>(a_floats + threads * B_BUFFER));

    for (int64_t k0 = 0; k0 < o.K; k0 += plan.k_outer)
        for (int64_t i0 = 0; i0 < o.M; i0 += plan.m_block) {
            Block block;
            block.i0 = i0;
            block.m = std::min(plan.m_block, o.M - i0);
            block.tiles = divide_up(block.m, TILE_ROWS);
            block.k0 = k0;
            block.k = std::min(plan.k_outer, o.K - k0);
            block.k_block = Parts::block_of(block.k);
            block.a_packed = a_packed;
            run_block<Arithmetic>(o, plan, block, threads, a_packed + a_floats);
        }
}

// C (M,N) = op(A) (M,K) op(B) (K,N) [+ bias (N) in every row] [+ C if accumulate].
// A is stored as (M,K), with ta as (K,M), its rows lda floats apart; B as (K,N), with tb as (N,K), rows ldb apart; C's
// rows are ldc apart. None of them needs alignment; C must not overlap the others, and is not read unless accumulate.
// std::bad_alloc if there is no memory for packing.
inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    if (M <= 0 || N <= 0) return;
    if (K <= 0) return empty_product(M, N, C, ldc, accumulate, bias);
    multiply_blocks<Float32>(
        {ta == Transpose::Yes, tb == Transpose::Yes, M, N, K, A, lda, B, ldb, C, ldc, accumulate, bias});
}

}  // namespace
}  // namespace matmul_v6
}  // namespace lnfree
