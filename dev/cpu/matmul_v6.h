#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "dev/cpu/matmul_types.h"
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
namespace lnfree {
namespace matmul_v6 {
#if defined(__AVX512F__)
constexpr int WIDTH = 16, TILE_VECTORS = 4;
constexpr int64_t K_BLOCK = 384, CHUNK_TILES = 2;
#elif defined(__AVX2__)
constexpr int WIDTH = 8, TILE_VECTORS = 2;
constexpr int64_t K_BLOCK = 256, CHUNK_TILES = 6;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, TILE_VECTORS = 4;
constexpr int64_t K_BLOCK = 256, CHUNK_TILES = 6;
#else
constexpr int WIDTH = 4, TILE_VECTORS = 2;
constexpr int64_t K_BLOCK = 256, CHUNK_TILES = 8;
#endif
#ifndef KB
#define KB K_BLOCK
#endif
#ifndef CT
#define CT CHUNK_TILES
#endif
constexpr int TILE_ROWS = 6, TILE_COLS = WIDTH * TILE_VECTORS, A_STRIDE = 8;
constexpr int64_t K_OUTER = 4096, A_BUFFER = int64_t{3} << 19;

typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef float VecU __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
inline Vec load(const float* p) {
    return *reinterpret_cast<const VecU*>(p);
}
inline void store(float* p, Vec v) {
    *reinterpret_cast<VecU*>(p) = v;
}
inline int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
inline int64_t cut(int64_t size, int64_t index, int64_t count) {
    return size * index / count;
}

template <int ROWS, int VECTORS>
void tile(int64_t k, const float* __restrict a, int64_t row_stride, int64_t k_stride, const float* __restrict b,
          int64_t b_stride, float* __restrict c, int64_t ldc, bool add, const float* bias) {
    Vec acc[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) acc[r][v] = Vec{};
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v += 16 / WIDTH) __builtin_prefetch(c + r * ldc + v * WIDTH, 1);
    const float* a3 = a + 3 * row_stride;
#ifndef UNR
#define UNR 1
#endif
#define STR(x) _Pragma(#x)
#define UNROLL(n) STR(GCC unroll n)

    for (int64_t p = 0; p < k; ++p) {
        Vec bv[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) bv[v] = load(b + v * WIDTH);
#ifdef PB
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS * WIDTH; v += 16) __builtin_prefetch(b + v + PB);
#endif
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const float x = r < 3 ? a[r * row_stride] : a3[(r - 3) * row_stride];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) acc[r][v] += bv[v] * x;
        }
        a += k_stride;
        a3 += k_stride;
        b += b_stride;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            Vec x = acc[r][v];
            if (bias) x += load(bias + v * WIDTH);
            if (add) x += load(c + r * ldc + v * WIDTH);
            store(c + r * ldc + v * WIDTH, x);
        }
}

template <int VECTORS>
void run_rows(int rows, int64_t k, const float* a, int64_t rs, int64_t ks, const float* b, int64_t bs, float* c,
              int64_t ldc, bool add, const float* bias) {
    switch (rows) {
        case 1:
            return tile<1, VECTORS>(k, a, rs, ks, b, bs, c, ldc, add, bias);
        case 2:
            return tile<2, VECTORS>(k, a, rs, ks, b, bs, c, ldc, add, bias);
        case 3:
            return tile<3, VECTORS>(k, a, rs, ks, b, bs, c, ldc, add, bias);
        case 4:
            return tile<4, VECTORS>(k, a, rs, ks, b, bs, c, ldc, add, bias);
        case 5:
            return tile<5, VECTORS>(k, a, rs, ks, b, bs, c, ldc, add, bias);
        default:
            return tile<6, VECTORS>(k, a, rs, ks, b, bs, c, ldc, add, bias);
    }
}

inline void run_edge(int rows, int columns, int64_t k, const float* a, int64_t rs, int64_t ks, const float* b, float* c,
                     int64_t ldc, bool add, const float* bias) {
    alignas(64) float buffer[TILE_ROWS * TILE_COLS];
    switch ((columns + WIDTH - 1) / WIDTH) {
        case 1:
            run_rows<1>(rows, k, a, rs, ks, b, TILE_COLS, buffer, TILE_COLS, false, nullptr);
            break;
        case 2:
            run_rows<2>(rows, k, a, rs, ks, b, TILE_COLS, buffer, TILE_COLS, false, nullptr);
            break;
#if !defined(__AVX2__) || defined(__AVX512F__)
        case 3:
            run_rows<3>(rows, k, a, rs, ks, b, TILE_COLS, buffer, TILE_COLS, false, nullptr);
            break;
        default:
            run_rows<4>(rows, k, a, rs, ks, b, TILE_COLS, buffer, TILE_COLS, false, nullptr);
            break;
#endif
    }
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < columns; ++j) {
            float x = buffer[r * TILE_COLS + j];
            if (bias) x += bias[j];
            if (add) x += c[r * ldc + j];
            c[r * ldc + j] = x;
        }
}

template <int S0, int S1, int S2, int S3, int... LANE>
Vec shuffle_quads(Vec a, Vec b, std::integer_sequence<int, LANE...>) {
    constexpr int chosen[4] = {S0, S1, S2, S3};
#define LNFREE_LANE ((LANE & ~3) + (chosen[LANE & 3] & 3) + (chosen[LANE & 3] < 4 ? 0 : WIDTH))
#ifdef __clang__
    return __builtin_shufflevector(a, b, LNFREE_LANE...);
#else
    typedef int Index __attribute__((vector_size(WIDTH * 4)));
    return __builtin_shuffle(a, b, Index{LNFREE_LANE...});
#endif
#undef LNFREE_LANE
}
inline Vec load_quads(const float* row, int64_t ld) {
#if defined(__AVX512F__)
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(row));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(row + 4 * ld), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(row + 8 * ld), 2);
    return Vec(_mm512_insertf32x4(x, _mm_loadu_ps(row + 12 * ld), 3));
#elif defined(__AVX2__)
    return Vec(_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(row + 4 * ld), 1));
#else
    (void)ld;
    return load(row);
#endif
}
// out[k][TILE_COLS] = transpose of WIDTH rows contiguous along k
inline void pack_transposed(const float* source, int64_t ld, int64_t k, float* out) {
    constexpr std::make_integer_sequence<int, WIDTH> lanes{};
    int64_t p = 0;
    for (; p + 4 <= k; p += 4) {
        const float* s = source + p;
        float* o = out + p * TILE_COLS;
        const Vec x0 = load_quads(s, ld), x1 = load_quads(s + ld, ld), x2 = load_quads(s + 2 * ld, ld),
                  x3 = load_quads(s + 3 * ld, ld);
        const Vec low01 = shuffle_quads<0, 4, 1, 5>(x0, x1, lanes), high01 = shuffle_quads<2, 6, 3, 7>(x0, x1, lanes);
        const Vec low23 = shuffle_quads<0, 4, 1, 5>(x2, x3, lanes), high23 = shuffle_quads<2, 6, 3, 7>(x2, x3, lanes);
        store(o, shuffle_quads<0, 1, 4, 5>(low01, low23, lanes));
        store(o + TILE_COLS, shuffle_quads<2, 3, 6, 7>(low01, low23, lanes));
        store(o + 2 * TILE_COLS, shuffle_quads<0, 1, 4, 5>(high01, high23, lanes));
        store(o + 3 * TILE_COLS, shuffle_quads<2, 3, 6, 7>(high01, high23, lanes));
    }
    for (; p < k; ++p)
        for (int i = 0; i < WIDTH; ++i) out[p * TILE_COLS + i] = source[i * ld + p];
}

// B panel: k rows of TILE_COLS, columns valid
inline void pack_b(bool k_contiguous, const float* source, int64_t ld, int columns, int64_t k, float* out) {
    if (k_contiguous) {
        int i = 0;
        for (; i + WIDTH <= columns; i += WIDTH) pack_transposed(source + i * ld, ld, k, out + i);
        for (; i < columns; ++i)
            for (int64_t p = 0; p < k; ++p) out[p * TILE_COLS + i] = source[i * ld + p];
        return;
    }
    if (columns == TILE_COLS) {
        for (int64_t p = 0; p < k; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; ++v)
                store(out + p * TILE_COLS + v * WIDTH, load(source + p * ld + v * WIDTH));
        return;
    }
    for (int64_t p = 0; p < k; ++p)
        for (int i = 0; i < columns; ++i) out[p * TILE_COLS + i] = source[p * ld + i];
}

struct Workspace {
    float* data = nullptr;
    size_t floats = 0;
    ~Workspace() { std::free(data); }
    float* reserve(size_t wanted) {
        if (wanted <= floats) return data;
        std::free(data);
        floats = 0;
        const size_t bytes = (wanted * sizeof(float) + (size_t{1} << 21) - 1) >> 21 << 21;
        data = static_cast<float*>(std::aligned_alloc(size_t{1} << 21, bytes));
        if (!data) throw std::bad_alloc();
#if defined(__linux__)
        madvise(data, bytes, MADV_HUGEPAGE);
#endif
        floats = bytes / sizeof(float);
        return data;
    }
};

inline int team_size(int64_t M, int64_t N, int64_t K) {
#ifdef _OPENMP
    if (omp_in_parallel() || double(M) * double(N) * double(K) < 64.0 * 64.0 * 16.0) return 1;
    return omp_get_max_threads();
#else
    (void)M, (void)N, (void)K;
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

struct Product {
    const float *A, *B, *bias;
    float* C;
    int64_t N, lda, ldb, ldc;
    bool ta, tb, accumulate, direct_b;
    // block now at work
    int64_t i0, m, tiles, k0, k_outer, k_block;
    float* a_packed;

    // first/last tile of A's rows
    int64_t tile_row(int64_t q) const { return cut(m, q, tiles); }

    // A packed: per k block, per tile: [k][8]
    float* packed_tile(int64_t k_offset, int64_t q, int64_t k) const {
        return a_packed + (k_offset * tiles + q * k) * A_STRIDE;
    }

    void pack_a(int64_t unit) const {
        const int64_t kb = divide_up(k_outer, k_block);
        const int64_t q0 = cut(tiles, unit / kb, divide_up(tiles, 8)),
                      q1 = cut(tiles, unit / kb + 1, divide_up(tiles, 8));
        const int64_t k_offset = unit % kb * k_block, k = std::min(k_block, k_outer - k_offset);
        for (int64_t q = q0; q < q1; ++q) {
            const int64_t row = tile_row(q), rows = tile_row(q + 1) - row;
            float* out = packed_tile(k_offset, q, k);
            const float* source = A + (k0 + k_offset) * lda + i0 + row;
            if (row + A_STRIDE <= m)
                for (int64_t p = 0; p < k; ++p)
                    std::memcpy(out + p * A_STRIDE, source + p * lda, A_STRIDE * sizeof(float));
            else
                for (int64_t p = 0; p < k; ++p)
                    for (int64_t r = 0; r < rows; ++r) out[p * A_STRIDE + r] = source[p * lda + r];
        }
    }

    void compute(int64_t q0, int64_t q1, int64_t j0, int64_t j1, float* b_packed) const {
        for (int64_t k_offset = 0; k_offset < k_outer; k_offset += k_block) {
            const int64_t k = std::min(k_block, k_outer - k_offset), kk = k0 + k_offset;
            const bool first = kk == 0;
            for (int64_t j = j0; j < j1; j += TILE_COLS) {
                const int columns = int(std::min<int64_t>(TILE_COLS, j1 - j));
                if (!direct_b || columns < TILE_COLS)
                    pack_b(tb, tb ? B + j * ldb + kk : B + kk * ldb + j, ldb, columns, k, b_packed + (j - j0) * k);
            }
            for (int64_t q = q0; q < q1; ++q) {
                const int64_t row = tile_row(q);
                const int rows = int(tile_row(q + 1) - row);
                const float* a = ta ? packed_tile(k_offset, q, k) : A + (i0 + row) * lda + kk;
                const int64_t rs = ta ? 1 : lda, ks = ta ? A_STRIDE : 1;
                for (int64_t j = j0; j < j1; j += TILE_COLS) {
                    float* c = C + (i0 + row) * ldc + j;
                    const float* tile_bias = first && bias ? bias + j : nullptr;
                    const bool add = accumulate || !first;
                    if (j1 - j < TILE_COLS)
                        run_edge(rows, int(j1 - j), k, a, rs, ks, b_packed + (j - j0) * k, c, ldc, add, tile_bias);
                    else if (direct_b)
                        run_rows<TILE_VECTORS>(rows, k, a, rs, ks, B + kk * ldb + j, ldb, c, ldc, add, tile_bias);
                    else
                        run_rows<TILE_VECTORS>(rows, k, a, rs, ks, b_packed + (j - j0) * k, TILE_COLS, c, ldc, add,
                                               tile_bias);
                }
            }
        }
    }
};

inline void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                   const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate, const float* bias = nullptr) {
    if (M <= 0 || N <= 0) return;
    if (K <= 0) {
        for (int64_t i = 0; i < M; ++i)
            for (int64_t j = 0; j < N; ++j)
                C[i * ldc + j] = (accumulate ? C[i * ldc + j] : 0.0f) + (bias ? bias[j] : 0.0f);
        return;
    }
    Product p{A,     B, bias, C, N, lda, ldb, ldc,    ta == Transpose::Yes, tb == Transpose::Yes, accumulate,
              false, 0, 0,    0, 0, 0,   0,   nullptr};
    p.direct_b = M <= 2 * TILE_ROWS && !p.tb;
    const int threads = team_size(M, N, K);
    const int64_t k_outers = divide_up(K, p.ta ? 1024 : K_OUTER), k_outer = divide_up(divide_up(K, k_outers), 4) * 4;
    const int64_t m_limit = p.ta ? std::max<int64_t>(TILE_ROWS, A_BUFFER / A_STRIDE * TILE_ROWS / k_outer - 6) : M;
    const int64_t m_blocks = divide_up(M, m_limit), m_block = divide_up(M, m_blocks);
    // tasks
    const int64_t panels = divide_up(N, TILE_COLS), tiles_max = divide_up(m_block, TILE_ROWS);
    const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(CT, panels / (2 * threads)));
    const int64_t column_tasks = divide_up(panels, chunk);
    int64_t row_tasks = 1;
    if (threads > 1)
        while (row_tasks * column_tasks < 4 * threads && tiles_max / (row_tasks * 2) >= 16) row_tasks *= 2;
    if (threads > 1)
        while (row_tasks * column_tasks < threads && tiles_max / (row_tasks * 2) >= 1) row_tasks *= 2;
    static thread_local Workspace workspace;
    const int64_t a_floats = p.ta ? (tiles_max + 1) * k_outer * A_STRIDE : 0;
    const int64_t b_floats = CT * TILE_COLS * (KB + 4);
    p.a_packed = workspace.reserve(a_floats + threads * b_floats);
    float* const b_all = p.a_packed + a_floats;
    for (p.k0 = 0; p.k0 < K; p.k0 += k_outer)
        for (p.i0 = 0; p.i0 < M; p.i0 += m_block) {
            p.k_outer = std::min(k_outer, K - p.k0);
            p.k_block = divide_up(divide_up(p.k_outer, divide_up(p.k_outer, KB)), 4) * 4;
            p.m = std::min(m_block, M - p.i0);
            p.tiles = divide_up(p.m, TILE_ROWS);
            const int64_t pack_tasks = p.ta ? divide_up(p.tiles, 8) * divide_up(p.k_outer, p.k_block) : 0;
            const auto task = [&](int64_t t) {
                const int64_t r = t % row_tasks, c = t / row_tasks;
                p.compute(cut(p.tiles, r, row_tasks), cut(p.tiles, r + 1, row_tasks),
                          cut(panels, c, column_tasks) * TILE_COLS,
                          std::min(N, cut(panels, c + 1, column_tasks) * TILE_COLS), b_all + thread_index() * b_floats);
            };
            if (threads == 1) {
                for (int64_t t = 0; t < pack_tasks; ++t) p.pack_a(t);
                for (int64_t t = 0; t < row_tasks * column_tasks; ++t) {
                    const int64_t r = t % row_tasks, c = t / row_tasks;
                    p.compute(cut(p.tiles, r, row_tasks), cut(p.tiles, r + 1, row_tasks),
                              cut(panels, c, column_tasks) * TILE_COLS,
                              std::min(N, cut(panels, c + 1, column_tasks) * TILE_COLS), b_all);
                }
                continue;
            }
#pragma omp parallel num_threads(threads)
            {
                if (pack_tasks > 0) {
#pragma omp for schedule(dynamic)
                    for (int64_t t = 0; t < pack_tasks; ++t) p.pack_a(t);
                }
#pragma omp for schedule(dynamic) nowait
                for (int64_t t = 0; t < row_tasks * column_tasks; ++t) task(t);
            }
        }
}
}  // namespace matmul_v6
}  // namespace lnfree
