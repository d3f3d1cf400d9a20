// train_gpt2_lnfree.cu: the CUDA engine.
//
//     nvcc -std=c++17 -O2 -arch=native train_gpt2_lnfree.cu -lcublasLt -o lnfree_cuda && ./lnfree_cuda
//
// Takes the LayerNorms out of a trained GPT-2, as train_gpt2_lnfree.cpp does and explains, at the speed of a GPU. Schedule,
// training loop and files are the reference's and know an engine by dev/engine.h alone. What is here is the arithmetic,
// every operation's forward and backward as a kernel of ours, matrix products by cuBLASLt:
//
//     1. Streaming kernels       encoder, norms, statistics, GELU, classifier, optimiser: bound by memory
//     2. Causal self-attention   flash attention, forward and backward, with and without tensor cores
//     3. Matrix products         cuBLASLt, with bias and GELU on the way out
//     4. The model on the device what is kept, what is remade, the passes over a micro-batch
//     5. The engine              what the rest of the program sees
//
// dev/cuda/main.cu is the program around it. dev/cuda/engine_check.h holds all of it against the reference on your own GPU,
// engine_bench.h times it.
//
// Activations and products are bf16 (--precision fp32: float); master weights, gradients, moments and statistics are
// float. Everything is deterministic: no float atomics, every sum in an order that depends on sizes alone.
//
// Without nvcc the same source compiles against dev/cuda_on_cpu, an emulation of the CUDA execution model, in which the
// tests run every kernel on any processor.
//
// LNFREE_LIBRARY_ONLY leaves main() out. LNFREE_KERNELS_ONLY leaves sections 4 and 5 out as well, for the laboratory and for
// tests (dev/cuda/kernels.h): then only the kernels that are called are compiled.
#ifndef LNFREE_TRAIN_GPT2_LNFREE_CU
#define LNFREE_TRAIN_GPT2_LNFREE_CU

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __CUDACC__
#include <cublasLt.h>
#endif

#include "data/random.h"
#include "dev/cpu/operations.h"
#include "dev/cuda/collectives.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda/cudnn_attention.h"
#include "dev/cuda/device_memory.h"
#include "dev/cuda/product_choices.h"
#include "dev/cuda/recorded_work.h"
#include "dev/cuda/timing.h"
#include "dev/cuda_on_cpu/cuda.h"
#include "dev/processes.h"

// Loops over registers: a GPU can not index those, so nvcc must write such loops out. Other compilers need not.
#ifdef __CUDACC__
#define LNFREE_PRAGMA(text) _Pragma(#text)
#define LNFREE_UNROLL _Pragma("unroll")
#define LNFREE_UNROLL_BY(n) LNFREE_PRAGMA(unroll n)
#else
#define LNFREE_UNROLL
#define LNFREE_UNROLL_BY(n)
#endif

namespace lnfree {
namespace cuda {

// =====================================================================================================================
// 1. Streaming kernels
// =====================================================================================================================
//
// None of these operations computes much: each is as fast as its bytes travel, so each reads what it needs once, writes
// what it makes once, in accesses of 16 bytes, and keeps a row in registers or shared memory where it is needed twice.
// A GPU hides the time of an access behind other accesses: an H200 needs some 30 KiB on the way per multiprocessor, which
// is why threads load everything that they can before they compute.
//
// X is the type of activations and of the weights that the products read, float or bf16; arithmetic is in float, sums over
// a whole batch in double. Gradients of parameters are float and ADDED to what is there. Sums are taken in an order that
// depends on the sizes alone, neither on the GPU nor on timing: the same bits from every run, and no float atomics.
//
// Every launcher takes any C, V and any pointer: where a row does not begin on 16 bytes, one element at a time. Launchers
// return at once; the work is done in the order of `stream`.

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Elements of one 16-byte access.
template <class X>
constexpr int kVector = static_cast<int>(16 / sizeof(X));

inline bool is_aligned(const void* p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Whether rows of `row` elements at all of these places (null counts as aligned) can be read 16 bytes at a time.
template <class X, class... P>
bool rows_are_aligned(int64_t row, const P*... p) {
    return row % kVector<X> == 0 && (is_aligned(p) && ...);
}

// f(width), where the type of `width` says how many elements of X an access takes: 16 bytes' worth, or 1.
template <class X, class F>
void with_width(bool aligned, F f) {
    if (aligned)
        f(std::integral_constant<int, kVector<X>>());
    else
        f(std::integral_constant<int, 1>());
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

inline dim3 blocks(int64_t count) {
    return dim3(static_cast<unsigned>(count));
}

// Bytes of shared memory that a block may have on the current device.
inline int64_t largest_shared_memory() {
    static const int64_t bytes = [] {
        int device = 0, value = 0;
        if (cudaGetDevice(&device) != cudaSuccess ||
            cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
            value = 48 * 1024;  // every device has that much
        return int64_t{value};
    }();
    return bytes;
}

// What every kernel does first: the launch may have come before the kernel in front of it was done.
__device__ __forceinline__ void begin_kernel() {
    wait_for_previous_kernel();
    let_next_kernel_start();
}

__device__ __forceinline__ int lane_index() {
    return static_cast<int>(threadIdx.x) % kWarp;
}

__device__ __forceinline__ int warp_index() {
    return static_cast<int>(threadIdx.x) / kWarp;
}

// Where every warp takes a row: which one. Blocks are one-dimensional.
__device__ __forceinline__ int64_t row_of_warp() {
    return static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
}

// The sum over a warp, or over each group of so many neighbouring lanes, in every lane the same bits.
template <int lanes = kWarp, class T>
__device__ __forceinline__ T warp_sum(T x) {
    LNFREE_UNROLL
    for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
    return x;
}

// The sum over a block, in every thread the same bits. `partial` holds a value per warp.
template <class T>
__device__ __forceinline__ T block_sum(T x, Shared<T> partial) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    x = warp_sum(x);
    if (lane_index() == 0) partial[warp_index()] = x;
    __syncthreads();
    T sum = 0;
    for (int w = 0; w < warps; w++) sum += partial[w];
    __syncthreads();  // `partial` may be used again
    return sum;
}

// Parameters are float beside activations of 2 bytes, so `width` of them may take two accesses.
template <int width>
__device__ __forceinline__ void load_floats(float (&out)[width], const float* p) {
    constexpr int step = width < 4 ? width : 4;
    LNFREE_UNROLL
    for (int i = 0; i < width; i += step) {
        const Vec<float, step> piece = load_vec<step>(p + i);
        LNFREE_UNROLL
        for (int j = 0; j < step; j++) out[i + j] = piece.v[j];
    }
}

// 2^x as the hardware has it: to about 2^-22 of the result, and 0 where that would be denormal.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#else
    return exp2f(x);
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums over rows, in two stages: blocks leave rows of partial sums in scratch memory, add_partial_sums adds those up.

// The number of blocks that share out the rows: four for each of an H200's 132 multiprocessors. A constant, because the
// order of the sums follows from it: asked of the device, every kind of GPU would train to other bits.
constexpr int64_t kSummingBlocks = 528;

// Up to three outputs of n values each, whose partial sums lie behind one another in every row; what is summed for b is not
// kept where b is null.
struct SummedColumns {
    float *a, *b, *c;
    int64_t n;
};

// A block sums 32 columns of partial (rows,columns); warp w takes rows w, w + 16, ...
constexpr int kPartialWarps = 16;
template <int warps>
__global__ void add_partial_sums_kernel(SummedColumns out, int64_t columns, const float* partial, int64_t rows) {
    begin_kernel();
    SharedMemory shared;
    Shared<float> sums = shared.take<float>(warps * kWarp);
    const int lane = lane_index(), warp = warp_index();
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
    float sum = 0;
    if (column < columns) {
        LNFREE_UNROLL_BY(8)
        for (int64_t row = warp; row < rows; row += warps) sum += partial[row * columns + column];
    }
    sums[warp * kWarp + lane] = sum;
    __syncthreads();
    if (warp != 0 || column >= columns) return;
    float total = 0;
    for (int w = 0; w < warps; w++) total += sums[w * kWarp + lane];
    if (column < out.n)
        out.a[column] += total;
    else if (column >= 2 * out.n)
        out.c[column - 2 * out.n] += total;
    else if (out.b != nullptr)
        out.b[column - out.n] += total;
}

// partial (rows,columns) is added, row by row, to the outputs.
inline void add_partial_sums(const SummedColumns& out, int64_t columns, const float* partial, int64_t rows,
                             cudaStream_t stream) {
    const size_t bytes = shared_bytes_of<float>(kPartialWarps * kWarp);
    launch_dependent(add_partial_sums_kernel<kPartialWarps>, blocks(ceil_div(columns, kWarp)),
                     dim3(kPartialWarps * kWarp), bytes, stream, out, columns, partial, rows);
}

// ---------------------------------------------------------------------------------------------------------------------
// Encoder: token embedding plus position embedding,  out[n] = wte[tokens[n]] + wpe[n % T]

constexpr int kRowsPerBlock = 4;  // where every warp takes a row

template <class X, int width>
__global__ void encoder_forward_kernel(X* out, const int32_t* tokens, const X* wte, const X* wpe, int64_t N, int64_t T,
                                       int64_t C) {
    begin_kernel();
    const int64_t n = row_of_warp();
    if (n >= N) return;
    const X* token = wte + static_cast<int64_t>(tokens[n]) * C;
    const X* position = wpe + n % T * C;
    for (int64_t c = lane_index() * width; c < C; c += kWarp * width) {
        const Vec<X, width> a = load_vec<width>(token + c), b = load_vec<width>(position + c);
        Vec<X, width> sum;
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) sum.v[i] = from_float<X>(to_float(a.v[i]) + to_float(b.v[i]));
        store_vec(out + n * C + c, sum);
    }
}

// out (B,T,C), tokens (B,T), wte (V,C), wpe (at least T,C)
template <class X>
void encoder_forward(X* out, const int32_t* tokens, const X* wte, const X* wpe, int64_t B, int64_t T, int64_t C,
                     cudaStream_t stream) {
    with_width<X>(rows_are_aligned<X>(C, out, wte, wpe), [&](auto width) {
        launch_dependent(encoder_forward_kernel<X, decltype(width)::value>, blocks(ceil_div(B * T, kRowsPerBlock)),
                         dim3(kRowsPerBlock * kWarp), 0, stream, out, tokens, wte, wpe, B * T, T, C);
    });
}

// Backward adds row n of dout to row tokens[n] of dwte and to row n % T of dwpe. Rows of one token meet in one row of dwte
// and must be added in a fixed order. So the host, which has the tokens first and time to spare, sorts the positions by
// token; a run of positions with one token is then summed by one warp. Runs can be long (a comma, or a vocabulary of
// bytes): they are cut into pieces, whose sums a second kernel adds.

// Positions that one warp sums: short enough not to be waited for.
constexpr int32_t kPositionsPerPiece = 64;

// Positions sorted by token, as one array of int32 that travels to the device in one copy:
//   header   number of pieces, number of long runs, 0, 0
//   (N)      positions, by token, ascending within a token; padded to a multiple of 4
//   (N,4)    pieces: first and last + 1 of the sorted positions, token, -1 if the piece is a run by itself and else the
//            row of `partial` that takes its sum
//   (,4)     runs of more than one piece: token, first row and last row + 1 of `partial`, 0
struct SortedPositions {
    int64_t N;

    __device__ __host__ int64_t positions() const { return 4; }
    __device__ __host__ int64_t pieces() const { return 4 + (N + 3) / 4 * 4; }
    __device__ __host__ int64_t runs() const { return pieces() + 4 * N; }
    // A run of more than one piece has more than 64 positions.
    int64_t max_runs() const { return N / kPositionsPerPiece + 1; }
    int64_t size() const { return runs() + 4 * max_runs(); }
    // Every run of more than one piece has at least one that is full, and at most one that is not.
    int64_t max_partial_rows() const { return 2 * (N / kPositionsPerPiece) + 1; }
};

// Number of int32 that sort_positions writes for N positions.
inline int64_t sorted_positions_size(int64_t N) {
    return SortedPositions{N}.size();
}

// Sorts the positions of tokens (N), each in [0,V), into sorted (sorted_positions_size(N)), in N + V operations. N is
// below 2^31.
inline void sort_positions(int32_t* sorted, const int32_t* tokens, int64_t N, int64_t V) {
    const SortedPositions layout{N};
    std::vector<int32_t> next(static_cast<size_t>(V + 1), 0);  // where the next position of each token goes
    for (int64_t n = 0; n < N; n++) next[static_cast<size_t>(tokens[n]) + 1]++;
    for (int64_t v = 0; v < V; v++) next[static_cast<size_t>(v) + 1] += next[static_cast<size_t>(v)];
    int32_t* positions = sorted + layout.positions();
    for (int64_t n = 0; n < N; n++) positions[next[static_cast<size_t>(tokens[n])]++] = static_cast<int32_t>(n);

    int32_t *piece = sorted + layout.pieces(), *run = sorted + layout.runs(), partial_rows = 0, begin = 0;
    for (int64_t v = 0; v < V; v++) {
        const int32_t end = next[static_cast<size_t>(v)], token = static_cast<int32_t>(v);
        const bool is_long = end - begin > kPositionsPerPiece;
        const int32_t first_row = partial_rows;
        for (int32_t i = begin; i < end; i += kPositionsPerPiece) {
            *piece++ = i;
            *piece++ = std::min(end, i + kPositionsPerPiece);
            *piece++ = token;
            *piece++ = is_long ? partial_rows++ : -1;
        }
        if (is_long)
            for (const int32_t value : {token, first_row, partial_rows, 0}) *run++ = value;
        begin = end;
    }
    sorted[0] = static_cast<int32_t>((piece - sorted - layout.pieces()) / 4);
    sorted[1] = static_cast<int32_t>((run - sorted - layout.runs()) / 4);
    sorted[2] = sorted[3] = 0;
}

// sum[i] += the elements c to c + width of row rows(i), for i in [begin,end)
template <int width, class X, class Rows>
__device__ __forceinline__ void sum_rows(float (&sum)[width], const X* values, int64_t C, int64_t c, int32_t begin,
                                         int32_t end, Rows rows) {
    LNFREE_UNROLL_BY(8)
    for (int32_t i = begin; i < end; i++) {
        const Vec<X, width> row = load_vec<width>(values + rows(i) * C + c);
        LNFREE_UNROLL
        for (int j = 0; j < width; j++) sum[j] += to_float(row.v[j]);
    }
}

template <int width>
__device__ __forceinline__ void add_floats(float* out, const float (&sum)[width]) {
    float before[width];
    load_floats<width>(before, out);
    constexpr int step = width < 4 ? width : 4;
    LNFREE_UNROLL
    for (int i = 0; i < width; i += step) {
        Vec<float, step> piece;
        LNFREE_UNROLL
        for (int j = 0; j < step; j++) piece.v[j] = before[i + j] + sum[i + j];
        store_vec(out + i, piece);
    }
}

// A warp takes a piece and 32 * width channels of it. The number of pieces is known to the device only, so that a captured
// launch serves every batch: a fixed number of warps shares them out.
template <class X, int width>
__global__ void sum_pieces_kernel(float* dwte, float* partial, const X* dout, const int32_t* sorted,
                                  SortedPositions layout, int64_t C) {
    begin_kernel();
    const int64_t c = (static_cast<int64_t>(blockIdx.y) * kWarp + lane_index()) * width;
    if (c >= C) return;
    const int32_t* positions = sorted + layout.positions();
    const int64_t pieces = sorted[0], step = static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp);
    for (int64_t p = row_of_warp(); p < pieces; p += step) {
        const Vec<int32_t, 4> piece = load_vec<4>(sorted + layout.pieces() + 4 * p);
        const int32_t begin = piece.v[0], end = piece.v[1], token = piece.v[2], row = piece.v[3];
        float sum[width] = {};
        sum_rows<width>(sum, dout, C, c, begin, end, [&](int32_t i) { return static_cast<int64_t>(positions[i]); });
        if (row < 0) {
            add_floats<width>(dwte + static_cast<int64_t>(token) * C + c, sum);
        } else {
            for (int i = 0; i < width; i++) partial[static_cast<int64_t>(row) * C + c + i] = sum[i];
        }
    }
}

// Adds up the pieces of long runs, a warp per run and 32 * width channels.
template <int width>
__global__ void sum_runs_kernel(float* dwte, const float* partial, const int32_t* sorted, SortedPositions layout,
                                int64_t C) {
    begin_kernel();
    const int64_t c = (static_cast<int64_t>(blockIdx.y) * kWarp + lane_index()) * width;
    if (c >= C) return;
    const int64_t runs = sorted[1], step = static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp);
    for (int64_t r = row_of_warp(); r < runs; r += step) {
        const Vec<int32_t, 4> run = load_vec<4>(sorted + layout.runs() + 4 * r);
        const int32_t token = run.v[0], begin = run.v[1], end = run.v[2];
        float sum[width] = {};
        sum_rows<width>(sum, partial, C, c, begin, end, [](int32_t row) { return static_cast<int64_t>(row); });
        add_floats<width>(dwte + static_cast<int64_t>(token) * C + c, sum);
    }
}

// A warp takes 32 * width channels of position t of every sequence.
template <class X, int width>
__global__ void sum_sequences_kernel(float* dwpe, const X* dout, int64_t B, int64_t T, int64_t C) {
    begin_kernel();
    const int64_t t = row_of_warp(), c = (static_cast<int64_t>(blockIdx.y) * kWarp + lane_index()) * width;
    if (t >= T || c >= C) return;
    float sum[width] = {};
    sum_rows<width>(sum, dout, C, c, 0, static_cast<int32_t>(B), [&](int32_t b) { return b * T + t; });
    add_floats<width>(dwpe + t * C + c, sum);
}

// Number of floats of `scratch` for encoder_backward.
inline int64_t encoder_backward_scratch(int64_t N, int64_t C) {
    return SortedPositions{N}.max_partial_rows() * C;
}

// dwte (V,C) and dwpe (at least T,C), which may be null, are added to. dout (B,T,C); sorted: the device's copy of what
// sort_positions made of the tokens (B,T), which begins on 16 bytes.
template <class X>
void encoder_backward(float* dwte, float* dwpe, float* scratch, const X* dout, const int32_t* sorted, int64_t B,
                      int64_t T, int64_t C, cudaStream_t stream) {
    const SortedPositions layout{B * T};
    const dim3 threads(kRowsPerBlock * kWarp);
    with_width<X>(rows_are_aligned<X>(C, dwte, dwpe, scratch, dout), [&](auto w) {
        constexpr int width = decltype(w)::value;
        const unsigned slices = static_cast<unsigned>(ceil_div(C, kWarp * width));
        const unsigned warps = static_cast<unsigned>(std::min(ceil_div(B * T, kRowsPerBlock), 4 * kSummingBlocks));
        launch_dependent(sum_pieces_kernel<X, width>, dim3(warps, slices), threads, 0, stream, dwte, scratch, dout,
                         sorted, layout, C);
        if (dwpe != nullptr)
            launch_dependent(sum_sequences_kernel<X, width>,
                             dim3(static_cast<unsigned>(ceil_div(T, kRowsPerBlock)), slices), threads, 0, stream, dwpe,
                             dout, B, T, C);
        launch_dependent(sum_runs_kernel<width>,
                         dim3(static_cast<unsigned>(ceil_div(layout.max_runs(), kRowsPerBlock)), slices), threads, 0,
                         stream, dwte, scratch, sorted, layout, C);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Norms. LayerNorm and FakeLN are one kernel: they differ in what they divide by. RMSNorm, which is not `centred`, is
// LayerNorm with 0 for the mean, from here on to its backward; its beta may be null, as any norm's.

// The longest row that the norms keep in registers; half of it with fewer of them, so that more warps fit. GPT-2 Small and
// Medium have 768 and 1024 channels, Large and XL 1280 and 1600.
constexpr int kHeldChannels = 2048;

// What a norm site divides by (Site in dev/engine.h): LayerNorm by the position's own sigma; FakeLN by sigma_bar, except for
// the precursor's two special cases, which divide by sigma_bar_0; a site on its way from one to the other by
// sigma^w sigma_bar^(1 - w). The backward pass follows from it too: a position's own sigma depends on x, the others are
// constants.
struct Divisor {
    float own_share = 1;  // 1 - a
    bool tapers = false, centred = true;
    float sigma_bar = 1, sigma_bar_0 = 1;
    bool own_position0 = false, own_end_of_text = false;
    int32_t end_of_text = -1;
    int64_t T = 1;                    // positions of a sequence; read if own_position0
    const int32_t* tokens = nullptr;  // (B,T) on the device; read if own_end_of_text
};

inline Divisor divisor_of(const Site& site, const int32_t* tokens, int32_t end_of_text, int64_t T) {
    Divisor d;
    d.own_share = static_cast<float>(1 - site.a);
    d.tapers = site.tapers;
    d.centred = site.centred;
    d.sigma_bar = static_cast<float>(site.sigma_bar);
    d.sigma_bar_0 = static_cast<float>(site.sigma_bar_0);
    d.own_position0 = site.own_position0;
    d.own_end_of_text = site.own_end_of_text;
    d.end_of_text = end_of_text;
    d.T = T;
    d.tokens = tokens;
    return d;
}

// The constant of position n.
__device__ __forceinline__ float frozen_divisor(const Divisor& d, int64_t n) {
    const bool special = (d.own_position0 && n % d.T == 0) || (d.own_end_of_text && d.tokens[n] == d.end_of_text);
    return special ? d.sigma_bar_0 : d.sigma_bar;
}

// 1 / what position n is divided by; sigma is its own.
__device__ __forceinline__ float norm_scale(const Divisor& d, float sigma, int64_t n) {
    if (d.own_share == 1) return 1.0f / sigma;
    const float fixed = frozen_divisor(d, n);
    if (d.own_share == 0) return 1.0f / fixed;
    return d.tapers ? d.own_share / sigma + (1 - d.own_share) / fixed : powf(sigma / fixed, -d.own_share) / fixed;
}

// Residual addition, mean, sigma and norm in one pass over memory:
//     sum = x + y;   mean, sigma of every row of sum;   normed = (sum - mean) / divisor * gamma + beta
// In bf16 the sum is rounded first: mean and sigma are those of the values that backward will read.
template <class X>
struct ResidualNorm {
    X *sum, *normed_a, *normed_b;
    float *mean, *sigma;
    const float *known_mean, *known_sigma;  // where a row has been measured before; else null
    const X *x, *y;
    const float *gamma, *beta;
    Divisor a, b;
    float eps;
    int64_t N, C;
};

// A row of x + y (x alone if y is null) as one warp sees it: lane i has elements i * width, (i + 32) * width, ... The
// vectors lie in registers, at most `held` per lane. Rows longer than that (held = 0) are made from memory each time.
template <class X, int width, int held>
class WarpRow {
  public:
    __device__ __forceinline__ WarpRow(const X* x, const X* y, int64_t C) : x_(x), y_(y), C_(C) {
        if constexpr (held > 0) {
            Vec<X, width> y_kept[held];
            LNFREE_UNROLL
            for (int k = 0; k < held; k++)
                if (column(k) < C) kept_[k] = load_vec_streaming<width>(x + column(k));
            if (y == nullptr) return;
            LNFREE_UNROLL
            for (int k = 0; k < held; k++)
                if (column(k) < C) y_kept[k] = load_vec_streaming<width>(y + column(k));
            LNFREE_UNROLL
            for (int k = 0; k < held; k++)
                if (column(k) < C) kept_[k] = sum_of(kept_[k], y_kept[k]);
        }
    }
    // f(column of its first element, vector) for every vector of this lane
    template <class F>
    __device__ __forceinline__ void for_each(F f) const {
        if constexpr (held > 0) {
            LNFREE_UNROLL
            for (int k = 0; k < held; k++)
                if (column(k) < C_) f(column(k), kept_[k]);
        } else {
            for (int k = 0; column(k) < C_; k++) {
                const Vec<X, width> x = load_vec<width>(x_ + column(k));
                f(column(k), y_ == nullptr ? x : sum_of(x, load_vec<width>(y_ + column(k))));
            }
        }
    }

  private:
    static __device__ __forceinline__ int64_t column(int k) {
        return (static_cast<int64_t>(k) * kWarp + lane_index()) * width;
    }
    static __device__ __forceinline__ Vec<X, width> sum_of(const Vec<X, width>& a, const Vec<X, width>& b) {
        Vec<X, width> sum;
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) sum.v[i] = from_float<X>(to_float(a.v[i]) + to_float(b.v[i]));
        return sum;
    }

    const X *x_, *y_;
    int64_t C_;
    Vec<X, width> kept_[held > 0 ? held : 1];
};

template <class X, int width>
__device__ __forceinline__ void store_normed(X* out, const Vec<X, width>& x, float mean, float scale,
                                             const float (&gamma)[width], const float (&beta)[width]) {
    Vec<X, width> normed;
    LNFREE_UNROLL
    for (int i = 0; i < width; i++) normed.v[i] = from_float<X>((to_float(x.v[i]) - mean) * scale * gamma[i] + beta[i]);
    store_vec(out, normed);
}

struct RowMoments {
    float mean, sigma;
};

// Of a row that a warp holds. The mean comes first and the squares are of what is left: no cancellation.
template <class X, int width, int held>
__device__ __forceinline__ RowMoments measure(const WarpRow<X, width, held>& row, float eps, bool centred, int64_t C) {
    float sum = 0, squares = 0;
    row.for_each([&](int64_t, const Vec<X, width>& x) {
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) sum += to_float(x.v[i]);
    });
    const float mean = centred ? warp_sum(sum) / static_cast<float>(C) : 0.0f;
    row.for_each([&](int64_t, const Vec<X, width>& x) {
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) {
            const float off = to_float(x.v[i]) - mean;
            squares += off * off;
        }
    });
    return {mean, sqrtf(warp_sum(squares) / static_cast<float>(C) + eps)};
}

template <class X, int width, int held>
__global__ void __launch_bounds__(kRowsPerBlock* kWarp) residual_norm_kernel(ResidualNorm<X> p) {
    begin_kernel();
    const int64_t n = row_of_warp(), C = p.C;
    if (n >= p.N) return;
    const WarpRow<X, width, held> row(p.x + n * C, p.y == nullptr ? nullptr : p.y + n * C, C);
    RowMoments moments = {};
    if (p.known_mean != nullptr) {
        moments = {p.known_mean[n], p.known_sigma[n]};
    } else if (p.mean != nullptr) {
        moments = measure(row, p.eps, p.a.centred, C);
        if (lane_index() == 0) {
            p.mean[n] = moments.mean;
            p.sigma[n] = moments.sigma;
        }
    }
    if (p.normed_a == nullptr) {
        if (p.sum == nullptr) return;
        row.for_each([&](int64_t c, const Vec<X, width>& x) { store_vec(p.sum + n * C + c, x); });
        return;
    }
    const float scale_a = norm_scale(p.a, moments.sigma, n);
    const float scale_b = p.normed_b == nullptr ? 0.0f : norm_scale(p.b, moments.sigma, n);
    row.for_each([&](int64_t c, const Vec<X, width>& x) {
        float gamma[width], beta[width] = {};
        load_floats<width>(gamma, p.gamma + c);
        if (p.beta != nullptr) load_floats<width>(beta, p.beta + c);
        if (p.sum != nullptr) store_vec(p.sum + n * C + c, x);
        store_normed(p.normed_a + n * C + c, x, moments.mean, scale_a, gamma, beta);
        if (p.normed_b != nullptr) store_normed(p.normed_b + n * C + c, x, moments.mean, scale_b, gamma, beta);
    });
}

template <class X>
void launch_residual_norm(const ResidualNorm<X>& p, cudaStream_t stream) {
    const dim3 grid = blocks(ceil_div(p.N, kRowsPerBlock)), threads(kRowsPerBlock * kWarp);
    constexpr int width = kVector<X>, most = kHeldChannels / (kWarp * width);
    const bool aligned = rows_are_aligned<X>(p.C, p.sum, p.normed_a, p.normed_b, p.x, p.y, p.gamma, p.beta);
    const auto kernel = !aligned                   ? residual_norm_kernel<X, 1, 0>
                        : p.C <= kHeldChannels / 2 ? residual_norm_kernel<X, width, most / 2>
                        : p.C <= kHeldChannels     ? residual_norm_kernel<X, width, most>
                                                   : residual_norm_kernel<X, width, 0>;
    launch_dependent(kernel, grid, threads, 0, stream, p);
}

// sum, normed_a, normed_b, x, y (N,C); mean, sigma (N); gamma, beta (C). y null: nothing is added. sum null: the sum is not
// kept; it may be x or y itself. normed_b, the same norm with divisor b, may be null: it is wanted only while a layer's qk
// and v divide by different numbers. normed_a may be null as well: a folded model has no norm, and nothing but the sum and
// its moments is wanted; then mean and sigma may be null too.
template <class X>
void residual_norm_forward(X* sum, X* normed_a, X* normed_b, float* mean, float* sigma, const X* x, const X* y,
                           const float* gamma, const float* beta, const Divisor& a, const Divisor& b, float eps,
                           int64_t N, int64_t C, cudaStream_t stream) {
    launch_residual_norm<X>(
        {sum, normed_a, normed_b, mean, sigma, nullptr, nullptr, x, y, gamma, beta, a, b, eps, N, C}, stream);
}

// Remakes what residual_norm_forward made of x = its sum, (N,C), for a backward pass that did not keep it. normed_b may be
// null.
template <class X>
void norm_forward(X* normed_a, X* normed_b, const X* x, const float* mean, const float* sigma, const float* gamma,
                  const float* beta, const Divisor& a, const Divisor& b, int64_t N, int64_t C, cudaStream_t stream) {
    launch_residual_norm<X>(
        {nullptr, normed_a, normed_b, nullptr, nullptr, mean, sigma, x, nullptr, gamma, beta, a, b, 0.0f, N, C},
        stream);
}

// The auxiliary loss as the device keeps it (aux_loss, below): what norm_backward needs of it, and what a step reports.
struct AuxTerm {
    float sigma_hat;    // mean of sigma over all positions but t = 0 and end-of-text
    float target_at_0;  // the same, but for experiments (AuxSettings)
    float factor;       // weight * 2 / (B * T) * scale, for the gradient
    unsigned T;         // positions of a sequence
    double loss;        // lambda included
    int active;         // 0: lambda is 0 or every position is excluded; then there is neither loss nor gradient
};

// Norm backward. With g = dout * gamma and xhat = (x - mean) / divisor,
//     LayerNorm:  dx = (g - mean(g) - xhat * mean(g * xhat)) / sigma
//     FakeLN:     dx = (g - mean(g)) / divisor
//     dgamma = sum over n of dout * xhat,   dbeta = sum over n of dout
// Written for both at once, with a share w of the position's own sigma in the divisor that is 1 for LayerNorm, 0 for FakeLN
// and between them while a site is removed gradually, and for two branches a and b that read one x through the same gamma
// with divisors of their own (s = 1 / divisor):
//     e  = dout_a * s_a + dout_b * s_b
//     l  = dout_a * s_a * w_a + dout_b * s_b * w_b
//     dx = gamma * e - mean(gamma * e) + slope * (x - mean)
//     slope = -mean(gamma * l * (x - mean)) / sigma^2 + the auxiliary loss's, factor * (sigma - target) / (C * sigma)
//     dgamma = sum over n of e * (x - mean),   dbeta = sum over n of dout_a + dout_b
// so that a second branch and the auxiliary loss cost no more than reading what is theirs. With one branch, e and l are dout
// times numbers of the row, which are taken out of the sums over it; with that branch frozen and no auxiliary loss (most
// norms after their removal) slope is 0, half of the sums and the second look at x with it. What the stream's gradient has become is
// also the gradient of the projection that was added to the stream just before the norm: its sum over n is the gradient of that
// projection's bias.
template <class X>
struct NormBackward {
    X* dresidual;
    float*
        partial;  // (blocks,sums C): each block's sums for dgamma, for dbeta, and with 3 sums for the projection's bias
    int64_t sums;
    const X *dout_a, *dout_b, *x;
    const float *gamma, *mean, *sigma;
    Divisor a, b;
    const AuxTerm* aux;
    bool overwrite;
    int64_t N, C, rows_per_block;
};

// The numbers of one row that every thread needs.
struct NormRow {
    float mean, inverse_sigma, scale_a, scale_b, aux_slope;
};

// What norm_backward_kernel is compiled for.
enum class NormKind { frozen, one_branch, two_branches };

template <class X>
NormKind kind_of(const NormBackward<X>& p) {
    if (p.dout_b != nullptr) return NormKind::two_branches;
    return p.a.own_share == 0 && p.aux == nullptr ? NormKind::frozen : NormKind::one_branch;
}

template <NormKind kind, class X>
__device__ __forceinline__ NormRow norm_row(const NormBackward<X>& p, int64_t n, float mean, float sigma) {
    NormRow row = {};
    row.mean = mean;
    if (kind == NormKind::frozen) {
        row.scale_a = 1.0f / frozen_divisor(p.a, n);
        return row;
    }
    row.inverse_sigma = 1.0f / sigma;
    row.scale_a = norm_scale(p.a, sigma, n);
    row.scale_b = p.dout_b == nullptr ? 0.0f : norm_scale(p.b, sigma, n);
    if (p.aux != nullptr && p.aux->active != 0) {
        const float target = n % p.aux->T == 0 ? p.aux->target_at_0 : p.aux->sigma_hat;
        row.aux_slope = p.aux->factor * (sigma - target) / (static_cast<float>(p.C) * sigma);
    }
    return row;
}

// The factor of (x - mean) in dx, once the sum over the row of gamma * l * (x - mean) is known.
__device__ __forceinline__ float norm_slope(const NormRow& row, float sum_gx, int64_t C) {
    const float mean_gx = sum_gx / static_cast<float>(C) * row.inverse_sigma;
    return row.aux_slope - mean_gx * row.inverse_sigma;
}

// dout of an element, in the combinations that backward needs: over the divisor; that, by as much as the divisor follows
// sigma (train_gpt2_lnfree.cpp, layernorm_dinput; for TaperNorm the divisor cancels); of both branches together.
struct NormGradient {
    float e, l, sum;
};

__device__ __forceinline__ NormGradient norm_gradient(const NormRow& row, const Divisor& a, const Divisor& b, float da,
                                                      float db) {
    const float ea = da * row.scale_a, eb = db * row.scale_b;
    const float la = a.tapers ? da * row.inverse_sigma : ea, lb = b.tapers ? db * row.inverse_sigma : eb;
    return {ea + eb, a.own_share * la + b.own_share * lb, da + db};
}
// What l is to dout where there is one branch.
__device__ __forceinline__ float norm_l_factor(const NormRow& row, const Divisor& a) {
    return a.own_share * (a.tapers ? row.inverse_sigma : row.scale_a);
}

// What a round of norm_backward_kernel works on: R rows, on their way from memory while the round before is computed. Every
// thread copies and reads its own channels alone, so that nobody waits for anybody else's copies.
template <class X, int width, int R, NormKind kind>
class NormRounds {
  public:
    enum Array { kX, kDoutA, kDresidual, kDoutB };
    static constexpr bool two_branches = kind == NormKind::two_branches;
    static constexpr int kArrays = two_branches ? 4 : 3, kStages = 2;

    __device__ __forceinline__ NormRounds(const NormBackward<X>& p, SharedMemory& shared, int64_t end)
        : p_(p),
          tile_(shared.take<X>(kStages * R * kArrays * static_cast<int64_t>(blockDim.x) * width)),
          channel_(static_cast<int64_t>(threadIdx.x) * width),
          end_(end) {}
    static size_t shared_bytes(unsigned threads) {
        return shared_bytes_of<X>(kStages * R * kArrays * static_cast<int64_t>(threads) * width);
    }

    __device__ __forceinline__ bool is_ours(int64_t n) const { return n < end_ && channel_ < p_.C; }

    // Sends for rows n0 to n0 + R - 1.
    __device__ __forceinline__ void fetch(int stage, int64_t n0) const {
        LNFREE_UNROLL
        for (int r = 0; r < R; r++) {
            const int64_t at = (n0 + r) * p_.C + channel_;
            if (!is_ours(n0 + r)) continue;
            copy_async_16(slot(stage, r, kX), p_.x + at);
            copy_async_16(slot(stage, r, kDoutA), p_.dout_a + at);
            if (!p_.overwrite) copy_async_16(slot(stage, r, kDresidual), p_.dresidual + at);
            if (two_branches) copy_async_16(slot(stage, r, kDoutB), p_.dout_b + at);
        }
        copy_async_commit();
    }
    __device__ __forceinline__ Vec<X, width> load(int stage, int r, Array array) const {
        return slot(stage, r, array).template load_vec<width>(0);
    }

  private:
    __device__ __forceinline__ Shared<X> slot(int stage, int r, int array) const {
        const int64_t index = (stage * R + r) * kArrays + array;
        return tile_ + (index * blockDim.x + threadIdx.x) * width;
    }
    const NormBackward<X>& p_;
    Shared<X> tile_;
    int64_t channel_, end_;
};

// Sums over a row that dx needs: of gamma * e, and unless the divisor is frozen of gamma * l * (x - mean).
template <NormKind kind>
constexpr int kNormRowSums = kind == NormKind::frozen ? 1 : 2;

// A thread owns `width` channels, keeps their sums in registers and walks down the block's rows with them, R at a time,
// which share a barrier.
template <class X, int width, int R, NormKind kind>
__global__ void __launch_bounds__(kHeldChannels / width) norm_backward_kernel(NormBackward<X> p) {
    begin_kernel();
    typedef NormRounds<X, width, R, kind> Rounds;
    constexpr bool two_branches = kind == NormKind::two_branches, frozen = kind == NormKind::frozen;
    constexpr int row_sums = kNormRowSums<kind>, round_sums = R * row_sums;
    SharedMemory shared;
    const int warps = static_cast<int>(blockDim.x) / kWarp, warp = warp_index();
    const Shared<float> sums = shared.take<float>(2 * warps * round_sums);  // twice: one barrier per round is enough
    const int64_t C = p.C, c = static_cast<int64_t>(threadIdx.x) * width;
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * p.rows_per_block;
    const int64_t end = begin + p.rows_per_block < p.N ? begin + p.rows_per_block : p.N;
    const Rounds rounds(p, shared, end);
    float gamma[width] = {}, dgamma[width] = {}, dbeta[width] = {}, dbias[width] = {};
    float next_mean[R] = {}, next_sigma[R] = {};
    const auto fetch = [&](int stage, int64_t n0) {
        rounds.fetch(stage, n0);
        LNFREE_UNROLL
        for (int r = 0; r < R; r++) {
            if (n0 + r >= end) continue;
            next_mean[r] = p.mean[n0 + r];
            if (!frozen) next_sigma[r] = p.sigma[n0 + r];
        }
    };
    fetch(0, begin);
    if (c < C) load_floats<width>(gamma, p.gamma + c);

    int stage = 0;
    for (int64_t n0 = begin; n0 < end; n0 += R, stage ^= 1) {
        NormRow row[R];
        LNFREE_UNROLL
        for (int r = 0; r < R; r++) row[r] = norm_row<kind>(p, n0 + r < end ? n0 + r : n0, next_mean[r], next_sigma[r]);
        fetch(stage ^ 1, n0 + R);
        copy_async_wait<1>();
        // With one branch dout itself, to be multiplied by the row's factors afterwards.
        const auto gradient_of = [&](int r, const Vec<X, width>& da, const Vec<X, width>& db, int i) {
            const float a = to_float(da.v[i]);
            if constexpr (two_branches) return norm_gradient(row[r], p.a, p.b, a, to_float(db.v[i]));
            return NormGradient{a, a, a};
        };
        const auto e_factor = [&](int r) { return two_branches ? 1.0f : row[r].scale_a; };
        float partial[round_sums] = {};
        LNFREE_UNROLL
        for (int r = 0; r < R; r++) {
            if (rounds.is_ours(n0 + r)) {
                const Vec<X, width> x = rounds.load(stage, r, Rounds::kX), da = rounds.load(stage, r, Rounds::kDoutA);
                const Vec<X, width> db = two_branches ? rounds.load(stage, r, Rounds::kDoutB) : da;
                LNFREE_UNROLL
                for (int i = 0; i < width; i++) {
                    const NormGradient d = gradient_of(r, da, db, i);
                    const float centred = to_float(x.v[i]) - row[r].mean;
                    const float ge = gamma[i] * d.e, gl = two_branches ? gamma[i] * d.l : ge;
                    partial[row_sums * r] += ge;
                    if (!frozen) partial[row_sums * r + 1] += gl * centred;
                    dgamma[i] += d.e * e_factor(r) * centred;
                    dbeta[i] += d.sum;
                }
            }
            float* const of_row = partial + row_sums * r;
            of_row[0] = warp_sum(of_row[0]) * e_factor(r);
            if (!frozen) of_row[1] = warp_sum(of_row[1]) * (two_branches ? 1.0f : norm_l_factor(row[r], p.a));
        }
        const Shared<float> of_warps = sums + stage * warps * round_sums;
        if (lane_index() == 0) {
            LNFREE_UNROLL
            for (int j = 0; j < round_sums; j++) of_warps[warp * round_sums + j] = partial[j];
        }
        __syncthreads();
        float total[round_sums] = {};
        constexpr int step = round_sums < 4 ? round_sums : 4;
        for (int w = 0; w < warps; w++) {
            LNFREE_UNROLL
            for (int j = 0; j < round_sums; j += step) {
                const Vec<float, step> some = of_warps.template load_vec<step>(w * round_sums + j);
                LNFREE_UNROLL
                for (int k = 0; k < step; k++) total[j + k] += some.v[k];
            }
        }
        LNFREE_UNROLL
        for (int r = 0; r < R; r++) {
            if (!rounds.is_ours(n0 + r)) continue;
            const float mean_g = p.a.centred ? total[row_sums * r] / static_cast<float>(C) : 0.0f;
            const float slope = frozen ? 0.0f : norm_slope(row[r], total[row_sums * r + row_sums - 1], C);
            const Vec<X, width> x = rounds.load(stage, r, Rounds::kX), da = rounds.load(stage, r, Rounds::kDoutA);
            const Vec<X, width> db = two_branches ? rounds.load(stage, r, Rounds::kDoutB) : da;
            Vec<X, width> dx = {};
            if (!p.overwrite) dx = rounds.load(stage, r, Rounds::kDresidual);
            LNFREE_UNROLL
            for (int i = 0; i < width; i++) {
                float here = gamma[i] * gradient_of(r, da, db, i).e * e_factor(r) - mean_g;
                if (!frozen) here += slope * (to_float(x.v[i]) - row[r].mean);
                dx.v[i] = from_float<X>(to_float(dx.v[i]) + here);
                dbias[i] += to_float(dx.v[i]);
            }
            store_vec(p.dresidual + (n0 + r) * C + c, dx);
        }
    }
    copy_async_wait<0>();
    if (c >= C) return;
    float* partial = p.partial + static_cast<int64_t>(blockIdx.x) * p.sums * C + c;
    LNFREE_UNROLL
    for (int i = 0; i < width; i++) {
        partial[i] = dgamma[i];
        partial[C + i] = dbeta[i];
        if (p.sums == 3) partial[2 * C + i] = dbias[i];
    }
}

// The same for any C: one element at a time, the sums kept in the block's own row of `partial`.
template <class X>
__global__ void norm_backward_plain_kernel(NormBackward<X> p) {
    begin_kernel();
    SharedMemory shared;
    Shared<float> sums = shared.take<float>(kWarp);
    const int64_t C = p.C, begin = static_cast<int64_t>(blockIdx.x) * p.rows_per_block;
    const int64_t end = begin + p.rows_per_block < p.N ? begin + p.rows_per_block : p.N;
    float* dgamma = p.partial + static_cast<int64_t>(blockIdx.x) * p.sums * C;
    float *dbeta = dgamma + C, *dbias = p.sums == 3 ? dbeta + C : nullptr;
    for (int64_t c = threadIdx.x; c < p.sums * C; c += blockDim.x) dgamma[c] = 0;
    __syncthreads();
    for (int64_t n = begin; n < end; n++) {
        const NormRow row = norm_row<NormKind::two_branches>(p, n, p.mean[n], p.sigma[n]);
        const auto gradient_at = [&](int64_t at) {
            const float da = to_float(p.dout_a[at]), db = p.dout_b == nullptr ? 0.0f : to_float(p.dout_b[at]);
            return norm_gradient(row, p.a, p.b, da, db);
        };
        float sum_g = 0, sum_gx = 0;
        for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
            const NormGradient d = gradient_at(n * C + c);
            const float centred = to_float(p.x[n * C + c]) - row.mean;
            sum_g += p.gamma[c] * d.e;
            sum_gx += p.gamma[c] * d.l * centred;
            dgamma[c] += d.e * centred;
            dbeta[c] += d.sum;
        }
        const float mean_g = p.a.centred ? block_sum(sum_g, sums) / static_cast<float>(C) : 0.0f;
        const float slope = norm_slope(row, block_sum(sum_gx, sums), C);
        for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
            const int64_t at = n * C + c;
            const float before = p.overwrite ? 0.0f : to_float(p.dresidual[at]);
            const float centred = to_float(p.x[at]) - row.mean;
            const X dx = from_float<X>(before + (p.gamma[c] * gradient_at(at).e - mean_g + slope * centred));
            p.dresidual[at] = dx;
            if (dbias != nullptr) dbias[c] += to_float(dx);
        }
    }
}

// Launches norm_backward_kernel if its rounds of R rows fit the device's shared memory.
template <int R, NormKind kind, class X>
bool launch_norm_backward(const NormBackward<X>& p, int64_t blocks_of_rows, cudaStream_t stream) {
    constexpr int width = kVector<X>;
    const unsigned threads = static_cast<unsigned>(ceil_div(p.C / width, kWarp) * kWarp);
    const size_t bytes = shared_bytes_of<float>(2 * static_cast<int64_t>(threads / kWarp) * R * kNormRowSums<kind>) +
                         NormRounds<X, width, R, kind>::shared_bytes(threads);
    if (static_cast<int64_t>(bytes) > largest_shared_memory()) return false;
    launch_dependent(norm_backward_kernel<X, width, R, kind>, blocks(blocks_of_rows), dim3(threads), bytes, stream, p);
    return true;
}

// Rows of each block of norm_backward, whole rounds of four.
inline int64_t norm_backward_rows_per_block(int64_t N) {
    return ceil_div(ceil_div(N, kSummingBlocks), 4) * 4;
}

// Number of floats of `scratch` for norm_backward.
inline int64_t norm_backward_scratch(int64_t N, int64_t C) {
    return ceil_div(N, norm_backward_rows_per_block(N)) * 3 * C;
}

// dresidual (N,C), dgamma (C), dbeta (C) or null are added to; with `overwrite` dresidual is set instead, and need not be zeroed
// before. dout_a, dout_b, x (N,C); gamma (C); mean, sigma (N). dout_b is the gradient of the second branch's normed_b, null
// where there is none. aux (on the device) adds the gradient of the auxiliary loss at this input, null where there is none.
// The sum over n of the new dresidual is added to dbias (C), null where it is not wanted.
template <class X>
void norm_backward(X* dresidual, bool overwrite, float* dgamma, float* dbeta, float* dbias, float* scratch,
                   const X* dout_a, const X* dout_b, const X* x, const float* gamma, const float* mean,
                   const float* sigma, const Divisor& a, const Divisor& b, const AuxTerm* aux, int64_t N, int64_t C,
                   cudaStream_t stream) {
    const int64_t rows_per_block = norm_backward_rows_per_block(N), count = ceil_div(N, rows_per_block);
    const int64_t sums = dbias != nullptr ? 3 : 2;
    const NormBackward<X> p{dresidual, scratch, sums, dout_a, dout_b,    x, gamma, mean,
                            sigma,     a,       b,    aux,    overwrite, N, C,     rows_per_block};
    constexpr int R = sizeof(X) == 2 ? 4 : 2;  // as many bytes in float
    const auto launch_rounds = [&] {
        if (!rows_are_aligned<X>(C, dresidual, dout_a, dout_b, x, gamma) || C > kHeldChannels) return false;
        switch (kind_of(p)) {
            case NormKind::frozen:
                return launch_norm_backward<R, NormKind::frozen>(p, count, stream);
            case NormKind::one_branch:
                return launch_norm_backward<R, NormKind::one_branch>(p, count, stream);
            default:
                return launch_norm_backward<R, NormKind::two_branches>(p, count, stream) ||
                       launch_norm_backward<2, NormKind::two_branches>(p, count, stream);
        }
    };
    if (!launch_rounds())
        launch_dependent(norm_backward_plain_kernel<X>, blocks(count), dim3(256), shared_bytes_of<float>(kWarp), stream,
                         p);
    add_partial_sums({dgamma, dbeta, dbias, C}, sums * C, scratch, count, stream);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sigma statistics (protocol.md 3): the sum of sigma over a micro-batch for each of S arrays, position 0 apart.

constexpr int kStatisticsThreads = 1024;

template <int threads>
__global__ void __launch_bounds__(threads)
    sigma_statistics_kernel(double* sums, const float* sigma, int64_t stride, int64_t N, unsigned T) {
    begin_kernel();
    SharedMemory shared;
    Shared<double> partial = shared.take<double>(kWarp);
    const float* s = sigma + static_cast<int64_t>(blockIdx.x) * stride;
    double at_0 = 0, elsewhere = 0;
    LNFREE_UNROLL_BY(8)
    for (unsigned n = threadIdx.x; n < N; n += threads) {
        const double value = s[n];
        if (n % T == 0)
            at_0 += value;
        else
            elsewhere += value;
    }
    at_0 = block_sum(at_0, partial);
    elsewhere = block_sum(elsewhere, partial);
    if (threadIdx.x != 0) return;
    sums[2 * static_cast<int64_t>(blockIdx.x)] += at_0;
    sums[2 * static_cast<int64_t>(blockIdx.x) + 1] += elsewhere;
}

// sums (S,2), added to: at position 0, elsewhere. sigma: S arrays (B,T), `stride` floats from one to the next.
inline void sigma_statistics(double* sums, const float* sigma, int64_t stride, int64_t S, int64_t B, int64_t T,
                             cudaStream_t stream) {
    launch_dependent(sigma_statistics_kernel<kStatisticsThreads>, blocks(S), dim3(kStatisticsThreads),
                     shared_bytes_of<double>(kWarp), stream, sums, sigma, stride, B * T, static_cast<unsigned>(T));
}

// The auxiliary loss (paper, eq. 3; protocol.md 6): weight * mean over all positions of (sigma - target)^2, with weight
// lambda, or if it is relative lambda / sigma_hat^2. One block: there are B * T numbers to read, a few hundred KiB.
template <int threads>
__global__ void __launch_bounds__(threads)
    aux_loss_kernel(AuxTerm* out, const float* sigma, const int32_t* tokens, int32_t end_of_text, AuxSettings settings,
                    double scale, int64_t N, unsigned T) {
    begin_kernel();
    SharedMemory shared;
    Shared<double> partial = shared.take<double>(kWarp);
    double sum = 0, counted = 0;
    LNFREE_UNROLL_BY(8)
    for (unsigned n = threadIdx.x; n < N; n += threads) {
        const float value = sigma[n];
        if (n % T == 0 || tokens[n] == end_of_text) continue;
        sum += value;
        counted += 1;
    }
    sum = block_sum(sum, partial);
    counted = block_sum(counted, partial);
    const bool active = settings.weight != 0 && counted > 0;
    const double sigma_hat = active ? sum / counted : 0, target_at_0 = settings.position0 * sigma_hat;
    const double weight = active && settings.relative ? settings.weight / (sigma_hat * sigma_hat) : settings.weight;
    double squares = 0;
    LNFREE_UNROLL_BY(8)
    for (unsigned n = threadIdx.x; n < N; n += threads) {
        const double off = sigma[n] - (n % T == 0 ? target_at_0 : sigma_hat);
        squares += off * off;
    }
    squares = block_sum(squares, partial);
    if (threadIdx.x != 0) return;
    out->sigma_hat = static_cast<float>(sigma_hat);
    out->target_at_0 = static_cast<float>(target_at_0);
    out->T = T;
    out->factor = static_cast<float>(scale * weight * 2.0 / static_cast<double>(N));
    out->loss = active ? weight / static_cast<double>(N) * squares : 0.0;
    out->active = active;
}

// sigma, tokens (B,T). `scale` is 1 / accumulation steps, for the gradient alone.
inline void aux_loss(AuxTerm* out, const float* sigma, const int32_t* tokens, int32_t end_of_text,
                     const AuxSettings& settings, double scale, int64_t B, int64_t T, cudaStream_t stream) {
    launch_dependent(aux_loss_kernel<kStatisticsThreads>, blocks(1), dim3(kStatisticsThreads),
                     shared_bytes_of<double>(kWarp), stream, out, sigma, tokens, end_of_text, settings, scale, B * T,
                     static_cast<unsigned>(T));
}

// What the auxiliary loss adds to the stream's gradient where no norm_backward does it, in a folded model:
//     dresidual += factor * (sigma - target) / (C * sigma) * (x - mean)
template <class X>
__global__ void aux_loss_backward_kernel(X* dresidual, const X* x, const float* mean, const float* sigma,
                                         const AuxTerm* aux, int64_t N, int64_t C) {
    begin_kernel();
    const int64_t n = row_of_warp();
    if (n >= N || aux->active == 0) return;
    const float target = n % aux->T == 0 ? aux->target_at_0 : aux->sigma_hat;
    const float slope = aux->factor * (sigma[n] - target) / (static_cast<float>(C) * sigma[n]);
    for (int64_t i = n * C + lane_index(); i < (n + 1) * C; i += kWarp)
        dresidual[i] = from_float<X>(to_float(dresidual[i]) + slope * (to_float(x[i]) - mean[n]));
}

// dresidual, x (N,C), mean, sigma (N)
template <class X>
void aux_loss_backward(X* dresidual, const X* x, const float* mean, const float* sigma, const AuxTerm* aux, int64_t N,
                       int64_t C, cudaStream_t stream) {
    launch_dependent(aux_loss_backward_kernel<X>, blocks(ceil_div(N, kRowsPerBlock)), dim3(kRowsPerBlock * kWarp), 0,
                     stream, dresidual, x, mean, sigma, aux, N, C);
}

// sum += values (n) in double precision and a fixed order: the losses of a micro-batch.
template <int threads>
__global__ void __launch_bounds__(threads) add_sum_kernel(double* sum, const float* values, int64_t n) {
    begin_kernel();
    SharedMemory shared;
    Shared<double> partial = shared.take<double>(kWarp);
    double mine = 0;
    LNFREE_UNROLL_BY(8)
    for (int64_t i = threadIdx.x; i < n; i += threads) mine += values[i];
    mine = block_sum(mine, partial);
    if (threadIdx.x == 0) *sum += mine;
}

inline void add_sum(double* sum, const float* values, int64_t n, cudaStream_t stream) {
    launch_dependent(add_sum_kernel<kStatisticsThreads>, blocks(1), dim3(kStatisticsThreads),
                     shared_bytes_of<double>(kWarp), stream, sum, values, n);
}

// ---------------------------------------------------------------------------------------------------------------------
// Element by element: out[i] = f(in[i]).

constexpr int kMapThreads = 256, kMapVectors = 2;  // vectors that a thread loads before it computes

// An access of `width` elements takes 16 bytes of the wider of the two types.
template <class Out, class In, int width, class F>
__global__ void __launch_bounds__(kMapThreads) map_kernel(Out* out, const In* in, int64_t n, F f) {
    begin_kernel();
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kMapThreads * kMapVectors + threadIdx.x) * width;
    constexpr int64_t step = kMapThreads * width;
    Vec<In, width> values[kMapVectors];
    LNFREE_UNROLL
    for (int k = 0; k < kMapVectors; k++) {
        const int64_t i = first + k * step;
        if (i + width <= n) values[k] = load_vec_streaming<width>(in + i);
    }
    LNFREE_UNROLL
    for (int k = 0; k < kMapVectors; k++) {
        const int64_t i = first + k * step;
        if (i + width > n) {  // the last elements, fewer than a vector
            for (int64_t j = i; j < n; j++) out[j] = from_float<Out>(f(to_float(in[j])));
            continue;
        }
        Vec<Out, width> result;
        LNFREE_UNROLL
        for (int j = 0; j < width; j++) result.v[j] = from_float<Out>(f(to_float(values[k].v[j])));
        store_vec(out + i, result);
    }
}

template <class F, class Out, class In>
void map(Out* out, const In* in, int64_t n, F f, cudaStream_t stream) {
    typedef std::conditional_t<(sizeof(Out) > sizeof(In)), Out, In> Wider;
    with_width<Wider>(is_aligned(out) && is_aligned(in), [&](auto w) {
        constexpr int width = decltype(w)::value;
        launch_dependent(map_kernel<Out, In, width, F>, blocks(ceil_div(n, int64_t{kMapThreads} * kMapVectors * width)),
                         dim3(kMapThreads), 0, stream, out, in, n, f);
    });
}

struct Copy {
    __device__ float operator()(float x) const { return x; }
};

// out (n) = in (n) in another type, rounded to nearest even.
template <class Out, class In>
void convert(Out* out, const In* in, int64_t n, cudaStream_t stream) {
    map(out, in, n, Copy(), stream);
}

// GELU in GPT-2's tanh form. (1 + tanh u) / 2 = 1 / (1 + e^-2u) = s, which takes one exponential and one division and keeps
// its relative accuracy where tanh is close to -1:
//     u = sqrt(2/pi) * (x + 0.044715 x^3),   gelu(x) = x * s,   gelu'(x) = s + x * s * (1 - s) * 2 u'
constexpr float kGeluScale = 0.79788456080286535588f;  // sqrt(2/pi)

__device__ __forceinline__ float gelu_share(float x) {
    const float u = kGeluScale * x * (1.0f + 0.044715f * x * x);
    return __fdividef(1.0f, 1.0f + __expf(-2.0f * u));
}

struct Gelu {
    __device__ float operator()(float x) const { return x * gelu_share(x); }
    // dout * gelu'(x)
    static __device__ __forceinline__ float through(float dout, float x) {
        const float s = gelu_share(x);
        const float twice_du = 2.0f * kGeluScale * (1.0f + 3 * 0.044715f * x * x);
        return dout * (s + x * s * (1.0f - s) * twice_du);
    }
};

// out, inp (n)
template <class X>
void gelu_forward(X* out, const X* inp, int64_t n, cudaStream_t stream) {
    map(out, inp, n, Gelu(), stream);
}

// ---------------------------------------------------------------------------------------------------------------------
// Column by column: biases and their gradients. A lane owns `width` columns, the eight warps of a block take turns at the
// block's rows.

constexpr int kColumnWarps = 8, kColumnRows = 4;  // rows of a warp that are on their way together

// How a kernel over the columns of (N,M) is shared out: the tiles of 32 * width columns, and the parts of the rows.
struct ColumnGrid {
    int64_t tiles, rows_per_block, parts;

    ColumnGrid(int64_t N, int64_t M, int width) : tiles(ceil_div(M, int64_t{kWarp} * width)) {
        const int64_t wanted = std::max<int64_t>(1, 2 * kSummingBlocks / tiles);
        rows_per_block = ceil_div(ceil_div(N, wanted), kColumnWarps) * kColumnWarps;
        parts = ceil_div(N, rows_per_block);
    }
    dim3 grid() const { return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts)); }
};

// What a thread of such a kernel works on.
struct ColumnWalk {
    int64_t column, row, end;  // its first column; its rows: row, row + 8, ... below end

    __device__ ColumnWalk(int64_t N, int64_t rows_per_block, int width) {
        column = (static_cast<int64_t>(blockIdx.x) * kWarp + lane_index()) * width;
        const int64_t begin = static_cast<int64_t>(blockIdx.y) * rows_per_block;
        row = begin + threadIdx.x / kWarp;
        end = begin + rows_per_block < N ? begin + rows_per_block : N;
    }
    // Row r of a round that begins with row n0: whether it is ours, and where it lies.
    __device__ __forceinline__ bool has(int64_t n0, int r) const { return n0 + r * kColumnWarps < end; }
    __device__ __forceinline__ int64_t at(int64_t n0, int r, int64_t stride) const {
        return (n0 + r * kColumnWarps) * stride + column;
    }
};

// with_gelu: hidden = gelu(out + bias) as well
template <class X, int width, bool with_gelu>
__global__ void __launch_bounds__(kColumnWarps* kWarp)
    add_bias_kernel(X* out, X* hidden, const X* bias, int64_t N, int64_t M, int64_t stride, int64_t rows_per_block) {
    begin_kernel();
    const ColumnWalk walk(N, rows_per_block, width);
    if (walk.column >= M) return;
    Vec<X, width> add = {};
    if (bias != nullptr) add = load_vec<width>(bias + walk.column);
    for (int64_t n0 = walk.row; n0 < walk.end; n0 += kColumnWarps * kColumnRows) {
        Vec<X, width> values[kColumnRows], activated;
        LNFREE_UNROLL
        for (int r = 0; r < kColumnRows; r++)
            if (walk.has(n0, r)) values[r] = load_vec<width>(out + walk.at(n0, r, stride));
        LNFREE_UNROLL
        for (int r = 0; r < kColumnRows; r++) {
            if (!walk.has(n0, r)) continue;
            LNFREE_UNROLL
            for (int i = 0; i < width; i++) {
                values[r].v[i] = from_float<X>(to_float(values[r].v[i]) + to_float(add.v[i]));
                if (with_gelu) activated.v[i] = from_float<X>(Gelu()(to_float(values[r].v[i])));
            }
            store_vec(out + walk.at(n0, r, stride), values[r]);
            if (with_gelu) store_vec(hidden + walk.at(n0, r, M), activated);
        }
    }
}

// out (N,M), rows `stride` apart, += bias (M)
template <class X>
void add_bias(X* out, const X* bias, int64_t N, int64_t M, int64_t stride, cudaStream_t stream) {
    const bool aligned = rows_are_aligned<X>(M, out, bias) && stride % kVector<X> == 0;
    with_width<X>(aligned, [&](auto w) {
        constexpr int width = decltype(w)::value;
        const ColumnGrid grid(N, M, width);
        launch_dependent(add_bias_kernel<X, width, false>, grid.grid(), dim3(kColumnWarps * kWarp), 0, stream, out,
                         static_cast<X*>(nullptr), bias, N, M, stride, grid.rows_per_block);
    });
}

// For products whose library fuses neither: fc (N,M) += bias (M) or null, then hidden (N,M) = gelu(fc).
template <class X>
void bias_gelu_forward(X* hidden, X* fc, const X* bias, int64_t N, int64_t M, cudaStream_t stream) {
    with_width<X>(rows_are_aligned<X>(M, hidden, fc, bias), [&](auto w) {
        constexpr int width = decltype(w)::value;
        const ColumnGrid grid(N, M, width);
        launch_dependent(add_bias_kernel<X, width, true>, grid.grid(), dim3(kColumnWarps * kWarp), 0, stream, fc,
                         hidden, bias, N, M, M, grid.rows_per_block);
    });
}

// partial (parts,M): each block's sums of its columns of values. With an Activation, values first
// become their product with its derivative at `inp`.
template <class X, int width, class Activation>
__global__ void __launch_bounds__(kColumnWarps* kWarp)
    column_sums_kernel(float* partial, X* dinp, const X* dout, const X* inp, int64_t N, int64_t M, int64_t stride,
                       int64_t rows_per_block) {
    begin_kernel();
    constexpr bool activates = !std::is_void_v<Activation>;
    SharedMemory shared;
    Shared<float> sums = shared.take<float>(kColumnWarps * kWarp * width);
    const ColumnWalk walk(N, rows_per_block, width);
    float sum[width] = {};
    for (int64_t n0 = walk.row; n0 < walk.end && walk.column < M; n0 += kColumnWarps * kColumnRows) {
        Vec<X, width> values[kColumnRows], x[kColumnRows];
        LNFREE_UNROLL
        for (int r = 0; r < kColumnRows; r++) {
            if (!walk.has(n0, r)) continue;
            values[r] = load_vec<width>(dout + walk.at(n0, r, stride));
            if (activates) x[r] = load_vec_streaming<width>(inp + walk.at(n0, r, stride));
        }
        LNFREE_UNROLL
        for (int r = 0; r < kColumnRows; r++) {
            if (!walk.has(n0, r)) continue;
            if constexpr (activates) {
                LNFREE_UNROLL
                for (int i = 0; i < width; i++)
                    values[r].v[i] = from_float<X>(Activation::through(to_float(values[r].v[i]), to_float(x[r].v[i])));
                store_vec(dinp + walk.at(n0, r, stride), values[r]);
            }
            LNFREE_UNROLL
            for (int i = 0; i < width; i++) sum[i] += to_float(values[r].v[i]);
        }
    }
    // Column i of lane l at i * 32 + l: neighbouring lanes write to neighbouring banks.
    const int lane = lane_index(), warp = warp_index();
    LNFREE_UNROLL
    for (int i = 0; i < width; i++) sums[(warp * width + i) * kWarp + lane] = sum[i];
    __syncthreads();
    for (int i = warp; i < width; i += kColumnWarps) {
        float total = 0;
        for (int w = 0; w < kColumnWarps; w++) total += sums[(w * width + i) * kWarp + lane];
        if (walk.column < M) partial[static_cast<int64_t>(blockIdx.y) * M + walk.column + i] = total;
    }
}

// Number of floats of `scratch` for column_sums and gelu_backward_bias.
inline int64_t column_sums_scratch(int64_t N, int64_t M) {
    return std::max({ColumnGrid(N, M, 1).parts, ColumnGrid(N, M, 4).parts, ColumnGrid(N, M, 8).parts}) * M;
}

template <class Activation, class X>
void launch_column_sums(float* sums, float* scratch, X* dinp, const X* dout, const X* inp, int64_t N, int64_t M,
                        int64_t stride, cudaStream_t stream) {
    const bool aligned = rows_are_aligned<X>(M, dinp, dout, inp) && stride % kVector<X> == 0;
    with_width<X>(aligned, [&](auto w) {
        constexpr int width = decltype(w)::value;
        const ColumnGrid grid(N, M, width);
        launch_dependent(column_sums_kernel<X, width, Activation>, grid.grid(), dim3(kColumnWarps * kWarp),
                         shared_bytes_of<float>(kColumnWarps * kWarp * width), stream, scratch, dinp, dout, inp, N, M,
                         stride, grid.rows_per_block);
        if (sums != nullptr) add_partial_sums({sums, nullptr, nullptr, M}, M, scratch, grid.parts, stream);
    });
}

// dbias (M), added to: the sums of the columns of dout (N,M), rows `stride` apart.
template <class X>
void column_sums(float* dbias, float* scratch, const X* dout, int64_t N, int64_t M, int64_t stride,
                 cudaStream_t stream) {
    launch_column_sums<void, X>(dbias, scratch, nullptr, dout, nullptr, N, M, stride, stream);
}

// For products whose library fuses neither: dinp = dout * gelu'(inp), all (N,M), and dbias (M) or null += the sums of
// dinp's columns. dinp may be dout.
template <class X>
void gelu_backward_bias(X* dinp, float* dbias, float* scratch, const X* dout, const X* inp, int64_t N, int64_t M,
                        cudaStream_t stream) {
    launch_column_sums<Gelu>(dbias, scratch, dinp, dout, inp, N, M, M, stream);
}

// ---------------------------------------------------------------------------------------------------------------------
// Classifier: softmax, cross-entropy and their gradient, in place:
//     loss = log sum exp z - z[target],   dz = scale * (softmax(z) - one-hot(target))
// A block takes a row. One read finds maximum and sum together: whenever the maximum grows, the sum so far shrinks by the
// factor that it was too large by. The row stays in shared memory until the gradient is written, where it fits twice into
// a multiprocessor (so that one block loads while another computes); longer rows are read a second time.

constexpr int kClassifierThreads = 512;
constexpr int64_t kClassifierHeldBytes =
    113 * 1024 - 1024;  // half of an H200's 228 KiB, less what each block needs besides

// So many rows of logits are made at a time (cuda_engine.h).
template <class X>
int64_t logits_rows(int64_t N, int64_t V) {
    return logits_rows(N, V, static_cast<int64_t>(sizeof(X)));
}

// exp(z - largest), without what __expf does for results that are denormal: three instructions instead of seven.
__device__ __forceinline__ float exp_beside(float z, float largest) {
    constexpr float log2_e = 1.4426950408889634f;
    return fast_exp2((z - largest) * log2_e);
}

// Largest value and sum of exp(value - largest) of some logits.
struct SoftmaxSum {
    float largest = -3.402823466e38f;  // finite, so that nothing minus nothing is not NaN
    float sum = 0;
};

__device__ __forceinline__ SoftmaxSum combine(const SoftmaxSum& a, const SoftmaxSum& b) {
    SoftmaxSum both;
    both.largest = fmaxf(a.largest, b.largest);
    both.sum = a.sum * __expf(a.largest - both.largest) + b.sum * __expf(b.largest - both.largest);
    return both;
}

template <int width>
__device__ __forceinline__ void add_logits(SoftmaxSum& all, const float (&z)[width]) {
    float largest = all.largest;
    LNFREE_UNROLL
    for (int i = 0; i < width; i++) largest = fmaxf(largest, z[i]);
    float sum = all.sum * exp_beside(all.largest, largest);
    LNFREE_UNROLL
    for (int i = 0; i < width; i++) sum += exp_beside(z[i], largest);
    all.largest = largest;
    all.sum = sum;
}

// The logits of one row, and how a thread goes over its vectors of them: threadIdx.x, threadIdx.x + blockDim.x, ...
// held: a copy in shared memory; every thread reads its own vectors alone.
template <class X, int width, bool held>
class LogitsRow {
  public:
    __device__ __forceinline__ LogitsRow(const X* z, SharedMemory& shared, int64_t V)
        : z_(z), V_(V), kept_(shared.take<X>(held ? ceil_div(V, width) * width : 0)) {}

    // The thread's sum over the row. A held row is sent for as a whole before anything is computed; the first half is
    // added up while the second is on its way.
    __device__ __forceinline__ SoftmaxSum sum() const {
        SoftmaxSum all;
        if constexpr (held) {
            const int64_t half = ceil_div(ceil_div(V_, step()), 2) * step();
            fetch(0, half);
            fetch(half, V_);
            copy_async_wait<1>();
            add(all, 0, half);
            copy_async_wait<0>();
            add(all, half, V_);
        } else {
            add(all, 0, V_);
        }
        return all;
    }
    __device__ __forceinline__ Vec<X, width> vector(int64_t c) const {
        if constexpr (held)
            return kept_.template load_vec<width>(c);
        else
            return load_vec<width>(z_ + c);
    }
    static __device__ __forceinline__ int64_t first() { return static_cast<int64_t>(threadIdx.x) * width; }
    static __device__ __forceinline__ int64_t step() { return static_cast<int64_t>(blockDim.x) * width; }

  private:
    __device__ __forceinline__ void fetch(int64_t begin, int64_t end) const {
        for (int64_t c = begin + first(); c < end && c < V_; c += step()) copy_async_16(kept_ + c, z_ + c);
        copy_async_commit();
    }
    // Whole vectors without a question asked of any logit; the last one, if V ends within it, apart.
    __device__ __forceinline__ void add(SoftmaxSum& all, int64_t begin, int64_t end) const {
        int64_t c = begin + first();
        LNFREE_UNROLL_BY(4)
        for (; c < end && c + width <= V_; c += step()) {
            const Vec<X, width> v = vector(c);
            float value[width];
            LNFREE_UNROLL
            for (int i = 0; i < width; i++) value[i] = to_float(v.v[i]);
            add_logits<width>(all, value);
        }
        if (c >= end || c >= V_) return;
        const Vec<X, width> v = vector(c);
        float value[width];
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) value[i] = c + i < V_ ? to_float(v.v[i]) : -INFINITY;
        add_logits<width>(all, value);
    }
    const X* z_;
    int64_t V_;
    Shared<X> kept_;
};

template <class X, int width, bool held>
__global__ void __launch_bounds__(kClassifierThreads)
    classifier_kernel(X* logits, float* losses, const int32_t* targets, float gradient_scale, bool with_gradient,
                      int64_t V, int64_t Vp) {
    begin_kernel();
    SharedMemory shared;
    Shared<float> partial = shared.take<float>(2 * kWarp);
    const int64_t row =
        static_cast<int64_t>(gridDim.x) - 1 - blockIdx.x;  // what the product wrote last is still in the cache
    X* z = logits + row * Vp;
    // The thread whose vectors hold the target's logit sees to all that is special about it.
    const int64_t target = targets[row];
    const bool has_target = static_cast<int64_t>(threadIdx.x) == target / width % blockDim.x;
    const float target_logit = has_target ? to_float(z[target]) : 0.0f;

    const LogitsRow<X, width, held> logits_row(z, shared, V);
    SoftmaxSum mine = logits_row.sum();
    LNFREE_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        SoftmaxSum other;
        other.largest = __shfl_xor_sync(kAllLanes, mine.largest, offset);
        other.sum = __shfl_xor_sync(kAllLanes, mine.sum, offset);
        mine = combine(mine, other);
    }
    const int warps = static_cast<int>(blockDim.x) / kWarp, warp = warp_index();
    if (lane_index() == 0) {
        partial[2 * warp] = mine.largest;
        partial[2 * warp + 1] = mine.sum;
    }
    __syncthreads();
    SoftmaxSum all;
    for (int w = 0; w < warps; w++) {
        SoftmaxSum other;
        other.largest = partial[2 * w];
        other.sum = partial[2 * w + 1];
        all = combine(all, other);
    }
    if (has_target) losses[row] = logf(all.sum) + all.largest - target_logit;
    if (!with_gradient) return;

    const float factor = gradient_scale / all.sum;
    int64_t c = logits_row.first();
    for (; c + width <= V; c += logits_row.step()) {
        Vec<X, width> v = logits_row.vector(c);
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) v.v[i] = from_float<X>(exp_beside(to_float(v.v[i]), all.largest) * factor);
        store_vec(z + c, v);
    }
    for (; c < Vp; c += logits_row.step()) {  // the last vector of logits, if V ends within it, and the padding
        Vec<X, width> v = {};
        if (c < V) v = logits_row.vector(c);
        LNFREE_UNROLL
        for (int i = 0; i < width; i++)
            v.v[i] = from_float<X>(c + i < V ? exp_beside(to_float(v.v[i]), all.largest) * factor : 0.0f);
        store_vec(z + c, v);
    }
    if (has_target) z[target] = from_float<X>(exp_beside(target_logit, all.largest) * factor - gradient_scale);
}

// logits (rows,Vp): in the first V columns logits, the others are ignored. losses (rows) in nats; targets (rows) in [0,V).
// with_gradient: logits become gradient_scale * (softmax - one-hot), columns V to Vp - 1 become 0.
template <class X>
void classifier(X* logits, float* losses, const int32_t* targets, float gradient_scale, bool with_gradient,
                int64_t rows, int64_t V, int64_t Vp, cudaStream_t stream) {
    with_width<X>(rows_are_aligned<X>(Vp, logits), [&](auto w) {
        constexpr int width = decltype(w)::value;
        const int64_t kept = ceil_div(V, width) * width;
        const unsigned threads =
            static_cast<unsigned>(std::min<int64_t>(kClassifierThreads, ceil_div(kept / width, kWarp) * kWarp));
        const size_t partial = shared_bytes_of<float>(2 * kWarp), held = partial + shared_bytes_of<X>(kept);
        const int64_t limit = std::min<int64_t>(kClassifierHeldBytes, largest_shared_memory());
        if (width > 1 && with_gradient && static_cast<int64_t>(held) <= limit)
            launch_dependent(classifier_kernel<X, width, width != 1>, blocks(rows), dim3(threads), held, stream, logits,
                             losses, targets, gradient_scale, with_gradient, V, Vp);
        else
            launch_dependent(classifier_kernel<X, width, false>, blocks(rows), dim3(threads), partial, stream, logits,
                             losses, targets, gradient_scale, with_gradient, V, Vp);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Distillation (section 1 of the reference), in place of the classifier: with p and p_o the softmax of a row of logits z and
// of the teacher's o, y its target and w the teacher's share
//     loss = -log p[y],   kl = KL(p_o || p),   dz = scale * (p - (1 - w) * one-hot(y) - w * p_o)
// A block takes a row of both. One read finds what all three need; KL's sum follows the teacher's maximum as it grows:
//     kl = sum exp(o - max o) * (o - z) / sum exp(o - max o) + log sum exp z - log sum exp o
// Equal rows have kl 0 and, for w = 1, gradient 0 to the bit: both go through the same arithmetic.
struct DistillationSums {
    SoftmaxSum model, teacher;
    float apart = 0;  // sum of exp(o - teacher.largest) * (o - z)
};
constexpr int kDistillationSums = 5;  // floats in it

__device__ __forceinline__ DistillationSums combine(const DistillationSums& a, const DistillationSums& b) {
    DistillationSums both;
    both.model = combine(a.model, b.model);
    both.teacher = combine(a.teacher, b.teacher);
    both.apart = a.apart * __expf(a.teacher.largest - both.teacher.largest) +
                 b.apart * __expf(b.teacher.largest - both.teacher.largest);
    return both;
}

// Of a vector of logits of each, of which those from `end` on lie behind the row's end; whole: none does.
template <class X, int width, bool whole>
__device__ __forceinline__ void add_logits(DistillationSums& all, const X* z, const X* o, int64_t end) {
    const Vec<X, width> a = load_vec<width>(z), b = load_vec<width>(o);
    float of_model[width], of_teacher[width];
    LNFREE_UNROLL
    for (int i = 0; i < width; i++) {
        of_model[i] = whole || i < end ? to_float(a.v[i]) : -INFINITY;
        of_teacher[i] = whole || i < end ? to_float(b.v[i]) : -INFINITY;
    }
    const float before = all.teacher.largest;
    add_logits<width>(all.model, of_model);
    add_logits<width>(all.teacher, of_teacher);
    all.apart *= exp_beside(before, all.teacher.largest);
    LNFREE_UNROLL
    for (int i = 0; i < width; i++)
        if (whole || i < end)
            all.apart += exp_beside(of_teacher[i], all.teacher.largest) * (of_teacher[i] - of_model[i]);
}

// The block's sum of every thread's, in every thread.
__device__ __forceinline__ DistillationSums block_combine(DistillationSums mine, const Shared<float>& partial) {
    LNFREE_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        DistillationSums other;
        other.model.largest = __shfl_xor_sync(kAllLanes, mine.model.largest, offset);
        other.model.sum = __shfl_xor_sync(kAllLanes, mine.model.sum, offset);
        other.teacher.largest = __shfl_xor_sync(kAllLanes, mine.teacher.largest, offset);
        other.teacher.sum = __shfl_xor_sync(kAllLanes, mine.teacher.sum, offset);
        other.apart = __shfl_xor_sync(kAllLanes, mine.apart, offset);
        mine = combine(mine, other);
    }
    if (lane_index() == 0) {
        const int at = kDistillationSums * warp_index();
        partial[at] = mine.model.largest;
        partial[at + 1] = mine.model.sum;
        partial[at + 2] = mine.teacher.largest;
        partial[at + 3] = mine.teacher.sum;
        partial[at + 4] = mine.apart;
    }
    __syncthreads();
    DistillationSums all;
    for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; w++) {
        DistillationSums other;
        const int at = kDistillationSums * w;
        other.model.largest = partial[at];
        other.model.sum = partial[at + 1];
        other.teacher.largest = partial[at + 2];
        other.teacher.sum = partial[at + 3];
        other.apart = partial[at + 4];
        all = combine(all, other);
    }
    return all;
}

template <class X, int width>
__global__ void __launch_bounds__(kClassifierThreads)
    distillation_kernel(X* logits, float* losses, float* kls, const X* teacher_logits, const int32_t* targets,
                        float share, float gradient_scale, bool with_gradient, int64_t V, int64_t Vp) {
    begin_kernel();
    SharedMemory shared;
    const Shared<float> partial = shared.take<float>(kDistillationSums * kWarp);
    const int64_t row = static_cast<int64_t>(gridDim.x) - 1 - blockIdx.x;  // as the classifier
    X* z = logits + row * Vp;
    const X* o = teacher_logits + row * Vp;
    const int64_t target = targets[row], first = static_cast<int64_t>(threadIdx.x) * width,
                  step = static_cast<int64_t>(blockDim.x) * width;
    const bool has_target = static_cast<int64_t>(threadIdx.x) == target / width % blockDim.x;
    const float target_logit = has_target ? to_float(z[target]) : 0.0f;

    DistillationSums all;
    int64_t c = first;
    for (; c + width <= V; c += step) add_logits<X, width, true>(all, z + c, o + c, width);
    if (c < V) add_logits<X, width, false>(all, z + c, o + c, V - c);
    all = block_combine(all, partial);
    if (has_target) {
        const float log_sum = logf(all.model.sum) + all.model.largest;
        losses[row] = log_sum - target_logit;
        kls[row] = all.apart / all.teacher.sum + (log_sum - (logf(all.teacher.sum) + all.teacher.largest));
    }
    if (!with_gradient) return;

    const float factor = gradient_scale / all.model.sum, ratio = share * (all.model.sum / all.teacher.sum);
    const auto gradient = [&](float of_model, float of_teacher) {
        return factor * (exp_beside(of_model, all.model.largest) - ratio * exp_beside(of_teacher, all.teacher.largest));
    };
    for (c = first; c + width <= V; c += step) {
        Vec<X, width> a = load_vec<width>(z + c);
        const Vec<X, width> b = load_vec<width>(o + c);
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) a.v[i] = from_float<X>(gradient(to_float(a.v[i]), to_float(b.v[i])));
        store_vec(z + c, a);
    }
    for (; c < Vp; c += step) {  // as the classifier
        Vec<X, width> a = {}, b = {};
        if (c < V) a = load_vec<width>(z + c), b = load_vec<width>(o + c);
        LNFREE_UNROLL
        for (int i = 0; i < width; i++)
            a.v[i] = from_float<X>(c + i < V ? gradient(to_float(a.v[i]), to_float(b.v[i])) : 0.0f);
        store_vec(z + c, a);
    }
    if (has_target)
        z[target] = from_float<X>(gradient(target_logit, to_float(o[target])) - gradient_scale * (1 - share));
}

// logits, teacher_logits (rows,Vp), losses, kls (rows) in nats, targets (rows); else as the classifier. The teacher's stay
// as they are.
template <class X>
void distillation(X* logits, float* losses, float* kls, const X* teacher_logits, const int32_t* targets, float share,
                  float gradient_scale, bool with_gradient, int64_t rows, int64_t V, int64_t Vp, cudaStream_t stream) {
    with_width<X>(rows_are_aligned<X>(Vp, logits, teacher_logits), [&](auto w) {
        constexpr int width = decltype(w)::value;
        const int64_t vectors = ceil_div(V, width);
        const unsigned threads =
            static_cast<unsigned>(std::min<int64_t>(kClassifierThreads, ceil_div(vectors, kWarp) * kWarp));
        launch_dependent(distillation_kernel<X, width>, blocks(rows), dim3(threads),
                         shared_bytes_of<float>(kDistillationSums * kWarp), stream, logits, losses, kls, teacher_logits,
                         targets, share, gradient_scale, with_gradient, V, Vp);
    });
}

// Whether two models find the same token likeliest, the first of equals. A warp takes a row.
struct Likeliest {
    float logit = -INFINITY;
    int token = 0;
    __device__ __forceinline__ void take(float other, int its_token) {
        if (!(other > logit) && (other != logit || its_token > token)) return;
        logit = other;
        token = its_token;
    }
};

template <class X>
__device__ __forceinline__ int likeliest_of(const X* z, int V) {
    Likeliest best;
    for (int v = lane_index(); v < V; v += kWarp) best.take(to_float(z[v]), v);
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
        best.take(__shfl_xor_sync(kAllLanes, best.logit, offset), __shfl_xor_sync(kAllLanes, best.token, offset));
    return best.token;
}

template <class X>
__global__ void same_likeliest_kernel(uint8_t* same, const X* a, const X* b, int64_t rows, int V, int64_t Vp) {
    begin_kernel();
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_index();
    if (row >= rows) return;
    const bool agree = likeliest_of(a + row * Vp, V) == likeliest_of(b + row * Vp, V);
    if (lane_index() == 0) same[row] = agree ? 1 : 0;
}

// same (rows), of logits a, b (rows,Vp)
template <class X>
void same_likeliest(uint8_t* same, const X* a, const X* b, int64_t rows, int64_t V, int64_t Vp, cudaStream_t stream) {
    constexpr int warps = 8;
    launch_dependent(same_likeliest_kernel<X>, blocks(ceil_div(rows, warps)), dim3(warps * kWarp), 0, stream, same, a,
                     b, rows, static_cast<int>(V), Vp);
}

template <class X>
__global__ void is_likeliest_kernel(uint8_t* is, const X* logits, const int32_t* targets, int64_t rows, int V,
                                    int64_t Vp) {
    begin_kernel();
    const int64_t row = row_of_warp();
    if (row >= rows) return;
    const int token = likeliest_of(logits + row * Vp, V);
    if (lane_index() == 0) is[row] = token == targets[row] ? 1 : 0;
}

// Whether each row's target is its likeliest token: is, targets (rows), logits (rows,Vp).
template <class X>
void is_likeliest(uint8_t* is, const X* logits, const int32_t* targets, int64_t rows, int64_t V, int64_t Vp,
                  cudaStream_t stream) {
    constexpr int warps = 8;
    launch_dependent(is_likeliest_kernel<X>, blocks(ceil_div(rows, warps)), dim3(warps * kWarp), 0, stream, is, logits,
                     targets, rows, static_cast<int>(V), Vp);
}

template <class X>
__global__ void gather_rows_kernel(X* out, const X* from, const int32_t* rows, int64_t n, int64_t C) {
    begin_kernel();
    const int64_t i = row_of_warp();
    if (i >= n) return;
    const X* row = from + static_cast<int64_t>(rows[i]) * C;
    for (int64_t c = lane_index(); c < C; c += kWarp) out[i * C + c] = row[c];
}

// out (n,C): row rows[i] of from, which has rows of C values.
template <class X>
void gather_rows(X* out, const X* from, const int32_t* rows, int64_t n, int64_t C, cudaStream_t stream) {
    launch_dependent(gather_rows_kernel<X>, blocks(ceil_div(n, kRowsPerBlock)), dim3(kRowsPerBlock * kWarp), 0, stream,
                     out, from, rows, n, C);
}

// ---------------------------------------------------------------------------------------------------------------------
// Norm of the whole gradient, and what clipping makes of it.

struct GradientNorm {
    double norm;       // before clipping; not finite if any gradient is not
    float clip_scale;  // what adamw multiplies gradients by
};

constexpr int kNormThreads = 512;
constexpr int64_t kNormBlocks = 2 * kSummingBlocks;

template <int width>
__global__ void __launch_bounds__(kNormThreads) sum_of_squares_kernel(double* partial, const float* values, int64_t n) {
    begin_kernel();
    SharedMemory shared;
    Shared<double> sums = shared.take<double>(kWarp);
    const int64_t step = static_cast<int64_t>(gridDim.x) * kNormThreads * width;
    const int64_t full = n / width * width;
    double sum = 0;
    LNFREE_UNROLL_BY(4)
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kNormThreads + threadIdx.x) * width; i < full; i += step) {
        const Vec<float, width> v = load_vec<width>(values + i);
        LNFREE_UNROLL
        for (int j = 0; j < width; j++) sum += static_cast<double>(v.v[j]) * static_cast<double>(v.v[j]);
    }
    if (blockIdx.x == 0 && full + threadIdx.x < n) {  // the last elements, fewer than a vector
        const double last = values[full + threadIdx.x];
        sum += last * last;
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <int threads>
__global__ void __launch_bounds__(threads)
    finish_norm_kernel(GradientNorm* out, const double* partial, int64_t count, double clip) {
    begin_kernel();
    SharedMemory shared;
    Shared<double> sums = shared.take<double>(kWarp);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += threads) sum += partial[i];
    sum = block_sum(sum, sums);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum);
    out->norm = norm;
    out->clip_scale = static_cast<float>(norm > clip ? clip / norm : 1.0);
}

// Number of doubles of `scratch` for global_norm.
inline int64_t global_norm_scratch() {
    return kNormBlocks;
}

// out (on the device): the Euclidean norm of values (n), and the factor that brings it down to `clip`.
inline void global_norm(GradientNorm* out, double* scratch, const float* values, int64_t n, double clip,
                        cudaStream_t stream) {
    with_width<float>(is_aligned(values), [&](auto w) {
        constexpr int width = decltype(w)::value;
        const int64_t count = std::min(kNormBlocks, ceil_div(n, int64_t{kNormThreads} * width));
        launch_dependent(sum_of_squares_kernel<width>, blocks(count), dim3(kNormThreads),
                         shared_bytes_of<double>(kWarp), stream, scratch, values, n);
        launch_dependent(finish_norm_kernel<kNormThreads>, blocks(1), dim3(kNormThreads),
                         shared_bytes_of<double>(kWarp), stream, out, scratch, count, clip);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// AdamW over all tensors in one launch (section 4 of train_gpt2_lnfree.cpp):
//     m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   w = keep * w - step * m / (sqrt(v) * root2 + eps)
// Weights, gradients and moments are flat float buffers, so a block takes a stretch of them, whichever tensors lie there.
// All of a tensor that matters is whether it decays, and the unit in which its numbers are trained (LayerNorm Scaling):
// the gradient and the step are multiplied by it.

struct TensorRange {
    int64_t offset, size;
    bool decay;
    float unit = 1;
};

// What a thread keeps of the tensor that it is in.
struct CurrentTensor {
    int64_t end;
    float keep, unit;
};

struct AdamWConstants {
    float beta1, beta2, rest1, rest2;  // rest: 1 - beta, rounded once
    float step, root2, eps, keep;      // keep: 1 - lr * weight_decay, for tensors that decay
};

// `updates` counts from 1.
inline AdamWConstants adamw_constants(const AdamWStep& step, int64_t updates) {
    const double t = static_cast<double>(updates);
    AdamWConstants s;
    s.beta1 = static_cast<float>(step.beta1);
    s.beta2 = static_cast<float>(step.beta2);
    s.rest1 = static_cast<float>(1 - step.beta1);
    s.rest2 = static_cast<float>(1 - step.beta2);
    s.step = static_cast<float>(step.lr / (1 - std::pow(step.beta1, t)));
    s.root2 = static_cast<float>(1 / std::sqrt(1 - std::pow(step.beta2, t)));
    s.eps = static_cast<float>(step.eps);
    s.keep = static_cast<float>(1 - step.lr * step.weight_decay);
    return s;
}

// 32 random bits for element `index` of an update: SplitMix64's mixing function of a counter, so that no state is kept and
// no order of the threads matters.
__device__ __forceinline__ uint32_t random_bits(uint64_t key, uint64_t index) {
    uint64_t z = key + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
}

constexpr int kAdamThreads = 256, kAdamVectors = 8;  // 8192 elements per block pay for the search of the table

template <class X>
struct AdamWBuffers {
    float *master, *grad, *m, *v;
    X* copy;  // what the products read; null where that is `master` itself
    const GradientNorm* norm;
    const TensorRange* tensors;
    int64_t tensor_count, n;
    AdamWConstants s;
    bool stochastic;
    uint64_t key;
};

// The last tensor that begins at or before element i.
template <class X>
__device__ __forceinline__ CurrentTensor find_tensor(const AdamWBuffers<X>& p, int64_t i) {
    int64_t low = 0, high = p.tensor_count - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (p.tensors[middle].offset <= i)
            low = middle;
        else
            high = middle - 1;
    }
    const TensorRange t = p.tensors[low];
    return {t.offset + t.size, t.decay ? p.s.keep : 1.0f, t.unit};
}

// Elements i to i + width; `tensor` is the one that the elements before lay in.
template <int width, class X>
__device__ __forceinline__ void adamw_update(const AdamWBuffers<X>& p, CurrentTensor& tensor, int64_t i, float scale) {
    const AdamWConstants& s = p.s;
    Vec<float, width> w = load_vec_streaming<width>(p.master + i), g = load_vec_streaming<width>(p.grad + i);
    Vec<float, width> m = load_vec_streaming<width>(p.m + i), v = load_vec_streaming<width>(p.v + i);
    LNFREE_UNROLL
    for (int j = 0; j < width; j++) {
        if (i + j >= tensor.end) tensor = find_tensor(p, i + j);
        const float gradient = g.v[j] * (tensor.unit * scale);
        m.v[j] = s.beta1 * m.v[j] + s.rest1 * gradient;
        v.v[j] = s.beta2 * v.v[j] + s.rest2 * gradient * gradient;
        w.v[j] = tensor.keep * w.v[j] - tensor.unit * s.step * m.v[j] / (sqrtf(v.v[j]) * s.root2 + s.eps);
    }
    store_vec_streaming(p.master + i, w);
    store_vec_streaming(p.m + i, m);
    store_vec_streaming(p.v + i, v);
    store_vec_streaming(p.grad + i, Vec<float, width>{});
    if (p.copy == nullptr) return;
    Vec<X, width> copy;
    LNFREE_UNROLL
    for (int j = 0; j < width; j++)
        copy.v[j] = p.stochastic ? from_float_stochastic<X>(w.v[j], random_bits(p.key, static_cast<uint64_t>(i) + j))
                                 : from_float<X>(w.v[j]);
    store_vec(p.copy + i, copy);
}

template <class X, int width>
__global__ void __launch_bounds__(kAdamThreads) adamw_kernel(AdamWBuffers<X> p) {
    begin_kernel();
    const float scale = p.norm->clip_scale;
    CurrentTensor tensor = {0, 1, 1};
    for (int k = 0; k < kAdamVectors; k++) {
        const int64_t vector = (static_cast<int64_t>(blockIdx.x) * kAdamVectors + k) * kAdamThreads + threadIdx.x;
        const int64_t i = vector * width;
        if (i + width <= p.n) {
            adamw_update<width>(p, tensor, i, scale);
        } else {
            for (int64_t j = i; j < p.n; j++) adamw_update<1>(p, tensor, j, scale);
        }
    }
}

// master, grad, m, v (n): weights, their gradients, which are set to 0, and the moments. copy (n): the weights in the type
// that the products read, or null. norm: what global_norm left on the device. tensors (tensor_count), on the device, by
// offset, not overlapping. With `stochastic_key`, bf16 copies are rounded up or down at random, in proportion to what lies between,
// with bits that depend on the key and the element alone.
template <class X>
void adamw(float* master, float* grad, float* m, float* v, X* copy, const GradientNorm* norm,
           const TensorRange* tensors, int64_t tensor_count, int64_t n, const AdamWConstants& step,
           std::optional<uint64_t> stochastic_key, cudaStream_t stream) {
    const AdamWBuffers<X> p{master,
                            grad,
                            m,
                            v,
                            copy,
                            norm,
                            tensors,
                            tensor_count,
                            n,
                            step,
                            stochastic_key.has_value(),
                            stochastic_key.value_or(0)};
    const bool aligned = is_aligned(master) && is_aligned(grad) && is_aligned(m) && is_aligned(v) && is_aligned(copy);
    with_width<float>(aligned, [&](auto w) {
        constexpr int width = decltype(w)::value;
        launch_dependent(adamw_kernel<X, width>, blocks(ceil_div(n, int64_t{kAdamThreads} * kAdamVectors * width)),
                         dim3(kAdamThreads), 0, stream, p);
    });
}

template <class X>
__global__ void __launch_bounds__(kAdamThreads)
    round_stochastically_kernel(X* copy, const float* master, int64_t n, uint64_t key) {
    begin_kernel();
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kAdamThreads + threadIdx.x;
    if (i < n) copy[i] = from_float_stochastic<X>(master[i], random_bits(key, static_cast<uint64_t>(i)));
}

// copy (n) as the adamw of this key left it beside master (n): a checkpoint holds the masters only.
template <class X>
void round_stochastically(X* copy, const float* master, int64_t n, uint64_t key, cudaStream_t stream) {
    launch_dependent(round_stochastically_kernel<X>, blocks(ceil_div(n, int64_t{kAdamThreads})), dim3(kAdamThreads), 0,
                     stream, copy, master, n, key);
}

// What adamw takes as its key for stochastic rounding: different for every run and every update.
inline uint64_t stochastic_key(uint64_t seed, int64_t updates) {
    return SplitMix64(seed ^ (static_cast<uint64_t>(updates) * 0xD1342543DE82EF95u)).next();
}

// ---------------------------------------------------------------------------------------------------------------------
// Low-rank updates (section 4 of train_gpt2_lnfree.cpp): a few products of float matrices per step, of which one side or
// the depth is the rank. A block takes a tile of the result; a thread, one number, whose terms it adds in their order.

constexpr int kThinTile = 16, kThinDepth = 64, kThinPitch = kThinDepth + 1;  // rows begin in different banks
constexpr int kThinThreads = kThinTile * kThinTile;

// data - minus (null: 0). Number k of the depth in row i lies at i * row + k * depth.
struct ThinOperand {
    const float *data, *minus;
    int64_t row, depth;

    __device__ __forceinline__ float at(int64_t i, int64_t k) const {
        const int64_t place = i * row + k * depth;
        return minus == nullptr ? data[place] : data[place] - minus[place];
    }
};

// tile (kThinTile,kThinPitch): rows from i0 on, of `rows`, and the depth from k0 on, of K; 0 where there is nothing.
// Neighbouring threads read what lies side by side.
__device__ __forceinline__ void load_thin_tile(const Shared<float>& tile, const ThinOperand& from, int64_t i0,
                                               int64_t rows, int64_t k0, int64_t K) {
    const bool along_depth = from.depth == 1;
    for (int e = static_cast<int>(threadIdx.x); e < kThinTile * kThinDepth; e += kThinThreads) {
        const int i = along_depth ? e / kThinDepth : e % kThinTile, k = along_depth ? e % kThinDepth : e / kThinTile;
        tile[i * kThinPitch + k] = i0 + i < rows && k0 + k < K ? from.at(i0 + i, k0 + k) : 0.0f;
    }
}

template <int threads>
__global__ void __launch_bounds__(threads)
    thin_product_kernel(float* out, bool adds, ThinOperand x, ThinOperand y, int64_t I, int64_t J, int64_t K) {
    begin_kernel();
    SharedMemory shared;
    const Shared<float> xs = shared.take<float>(kThinTile * kThinPitch);
    const Shared<float> ys = shared.take<float>(kThinTile * kThinPitch);
    const int64_t i0 = static_cast<int64_t>(blockIdx.y) * kThinTile, j0 = static_cast<int64_t>(blockIdx.x) * kThinTile;
    const int i = static_cast<int>(threadIdx.x) / kThinTile, j = static_cast<int>(threadIdx.x) % kThinTile;
    float sum = 0;
    for (int64_t k0 = 0; k0 < K; k0 += kThinDepth) {
        load_thin_tile(xs, x, i0, I, k0, K);
        load_thin_tile(ys, y, j0, J, k0, K);
        __syncthreads();
        const int depth = static_cast<int>(min(int64_t{kThinDepth}, K - k0));
        LNFREE_UNROLL_BY(8)
        for (int k = 0; k < depth; k++) sum += xs[i * kThinPitch + k] * ys[j * kThinPitch + k];
        __syncthreads();
    }
    if (i0 + i >= I || j0 + j >= J) return;
    float& to = out[(i0 + i) * J + j0 + j];
    to = adds ? to + sum : sum;
}

// out (I,J) = x (I,K) y (J,K)^T, or with `adds` += that.
inline void thin_product(float* out, bool adds, const ThinOperand& x, const ThinOperand& y, int64_t I, int64_t J,
                         int64_t K, cudaStream_t stream) {
    const dim3 tiles(static_cast<unsigned>(ceil_div(J, kThinTile)), static_cast<unsigned>(ceil_div(I, kThinTile)));
    launch_dependent(thin_product_kernel<kThinThreads>, tiles, dim3(kThinThreads),
                     shared_bytes_of<float, float>(kThinTile * kThinPitch, kThinTile * kThinPitch), stream, out, adds,
                     x, y, I, J, K);
}

// ---------------------------------------------------------------------------------------------------------------------
// What models of other families do and GPT-2 does not. The formulas are the reference's (section 2 there).

// A warp takes a position of the N, and each lane every 32nd vector of what turns in its heads.
template <class X, int width>
__global__ void rotary_kernel(X* qkv, const float* turns, int64_t N, int64_t T, int64_t row, int heads, int HS,
                              int half, float way) {
    begin_kernel();
    const int64_t n = row_of_warp();
    if (n >= N) return;
    const int vectors = half / width;
    for (int i = lane_index(); i < heads * vectors; i += kWarp) {
        const int first = i % vectors * width;
        X* const at = qkv + n * row + i / vectors * HS + first;
        Vec<X, width> x = load_vec<width>(at), y = load_vec<width>(at + half);
        float turn[2 * width];
        load_floats<2 * width>(turn, turns + (n % T * half + first) * 2);
        LNFREE_UNROLL
        for (int j = 0; j < width; j++) {
            const float cosine = turn[2 * j], sine = way * turn[2 * j + 1], a = to_float(x.v[j]), b = to_float(y.v[j]);
            x.v[j] = from_float<X>(cosine * a - sine * b);
            y.v[j] = from_float<X>(cosine * b + sine * a);
        }
        store_vec(at, x);
        store_vec(at + half, y);
    }
}

// Rotary positions: queries and keys of qkv (B,T,Q) turn in place, the first R numbers of every head; turns (T,R/2,2): cosine
// and sine of every angle. way: 1, or -1 for the gradients, which turn back.
template <class X>
void rotary(X* qkv, const float* turns, int64_t B, int64_t T, const Heads& heads, int64_t R, float way,
            cudaStream_t stream) {
    constexpr int vector = kVector<X>;
    const bool aligned = rows_are_aligned<X>(heads.row(), qkv, turns) && heads.HS % vector == 0 && R / 2 % vector == 0;
    with_width<X>(aligned, [&](auto w) {
        launch_dependent(rotary_kernel<X, decltype(w)::value>, blocks(ceil_div(B * T, kRowsPerBlock)),
                         dim3(kRowsPerBlock * kWarp), 0, stream, qkv, turns, B * T, T, heads.row(),
                         static_cast<int>(heads.NH + heads.KH), static_cast<int>(heads.HS), static_cast<int>(R / 2),
                         way);
    });
}

// GELU itself:  gelu(x) = x * Phi(x),   gelu'(x) = Phi(x) + x * e^(-x^2/2) / sqrt(2 pi)
struct GeluErf {
    static __device__ __forceinline__ float share(float x) { return 0.5f * (1.0f + erff(0.70710678118654752440f * x)); }
    __device__ float operator()(float x) const { return x * share(x); }
    static __device__ __forceinline__ float through(float dout, float x) {
        return dout * (share(x) + x * 0.39894228040143267794f * __expf(-0.5f * x * x));
    }
};

// out, inp (n)
template <class X>
void gelu_erf_forward(X* out, const X* inp, int64_t n, cudaStream_t stream) {
    map(out, inp, n, GeluErf(), stream);
}

// As gelu_backward_bias.
template <class X>
void gelu_erf_backward_bias(X* dinp, float* dbias, float* scratch, const X* dout, const X* inp, int64_t N, int64_t M,
                            cudaStream_t stream) {
    launch_column_sums<GeluErf>(dbias, scratch, dinp, dout, inp, N, M, M, stream);
}

// Gated SiLU, a warp per row of inp (N,2H): gates g, then values u. With s = 1 / (1 + e^-g):
//     out = g * s * u,   dg = dout * u * s * (1 + g * (1 - s)),   du = dout * g * s
__device__ __forceinline__ float logistic(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

template <class X, int width>
__global__ void gated_silu_forward_kernel(X* out, const X* inp, int64_t N, int64_t H) {
    begin_kernel();
    const int64_t n = row_of_warp();
    if (n >= N) return;
    LNFREE_UNROLL_BY(4)
    for (int64_t h = lane_index() * width; h < H; h += kWarp * width) {
        Vec<X, width> g = load_vec<width>(inp + n * 2 * H + h);
        const Vec<X, width> u = load_vec<width>(inp + n * 2 * H + H + h);
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) {
            const float gate = to_float(g.v[i]);
            g.v[i] = from_float<X>(gate * logistic(gate) * to_float(u.v[i]));
        }
        store_vec(out + n * H + h, g);
    }
}

template <class X, int width>
__global__ void gated_silu_backward_kernel(X* dinp, const X* dout, const X* inp, int64_t N, int64_t H) {
    begin_kernel();
    const int64_t n = row_of_warp();
    if (n >= N) return;
    LNFREE_UNROLL_BY(2)
    for (int64_t h = lane_index() * width; h < H; h += kWarp * width) {
        const int64_t gate = n * 2 * H + h;
        Vec<X, width> g = load_vec<width>(inp + gate), u = load_vec<width>(inp + gate + H);
        const Vec<X, width> d = load_vec<width>(dout + n * H + h);
        LNFREE_UNROLL
        for (int i = 0; i < width; i++) {
            const float x = to_float(g.v[i]), s = logistic(x), d_i = to_float(d.v[i]);
            g.v[i] = from_float<X>(d_i * to_float(u.v[i]) * s * (1.0f + x * (1.0f - s)));
            u.v[i] = from_float<X>(d_i * x * s);
        }
        store_vec(dinp + gate, g);
        store_vec(dinp + gate + H, u);
    }
}

// out (N,H), inp (N,2H)
template <class X>
void gated_silu_forward(X* out, const X* inp, int64_t N, int64_t H, cudaStream_t stream) {
    with_width<X>(rows_are_aligned<X>(H, out, inp), [&](auto w) {
        launch_dependent(gated_silu_forward_kernel<X, decltype(w)::value>, blocks(ceil_div(N, kRowsPerBlock)),
                         dim3(kRowsPerBlock * kWarp), 0, stream, out, inp, N, H);
    });
}

// dinp (N,2H), overwritten, dout (N,H), inp (N,2H)
template <class X>
void gated_silu_backward(X* dinp, const X* dout, const X* inp, int64_t N, int64_t H, cudaStream_t stream) {
    with_width<X>(rows_are_aligned<X>(H, dinp, dout, inp), [&](auto w) {
        launch_dependent(gated_silu_backward_kernel<X, decltype(w)::value>, blocks(ceil_div(N, kRowsPerBlock)),
                         dim3(kRowsPerBlock * kWarp), 0, stream, dinp, dout, inp, N, H);
    });
}

// =====================================================================================================================
// 2. Causal self-attention
// =====================================================================================================================
//
//     scores(t,u) = scale * q(t) . k(u)     for u <= t, scale = 1 / sqrt(HS)
//     p(t,u)      = exp(scores(t,u) - lse(t)),   lse(t) = log sum_u exp(scores(t,u))
//     out(t)      = sum_u p(t,u) v(u)
//
// qkv (B,T,Q) holds queries, keys and values, heads side by side within each; out, dout (B,T,A); lse, delta (B,NH,T). In a
// GPT-2 A = C and Q = 3C; in others a head of keys and values may serve several of queries (Heads, dev/cpu/operations.h).
//
// A T x T matrix never exists. As in flash attention (Dao et al. 2022, arXiv 2205.14135; Dao 2023, 2307.08691) a block
// of threads owns some rows of one head and walks over tiles of the other side:
//
//     forward            owns queries, walks over keys up to the diagonal. The softmax is taken online: each row keeps
//                        its largest score m and the sum of exp(score - m) so far; when m grows, the sum and the row
//                        of the output are scaled down by exp(old m - new m).
//     backward, keys     owns keys, walks over queries from the diagonal on, remakes p from lse, and sums
//                        dv(u) = sum_t p(t,u) dout(t)  and  dk(u) = sum_t ds(t,u) q(t),
//                        over the heads of queries that share the keys, one after the other
//     backward, queries  owns queries, walks over keys again for  dq(t) = sum_u ds(t,u) k(u)
//
//     dp(t,u) = dout(t) . v(u),   delta(t) = sum_u p(t,u) dp(t,u) = dout(t) . out(t),   ds = scale * p * (dp - delta)
//
// Making the scores twice in backward costs 7 products instead of 5, but every sum belongs to one thread: no atomics,
// no partial sums in memory, the same bits in every run.
//
// Two families of kernels. The plain one takes any type, any T and any head size up to 256, works in float, and shows
// the method. The other uses tensor cores: bf16, head sizes 32, 64, 96 and 128, any T.

namespace attention {

// What all kernels are told. Offsets within a sequence fit an int (checked_shape sees to it); where a sequence or head
// begins takes 64 bits.
struct Shape {
    int T, NH, KH, HS;  // as in Heads
    float scale;        // of the scores, 1 / sqrt(HS)

    __host__ __device__ int width() const { return NH * HS; }
    // Heads of queries to each of keys.
    __host__ __device__ int sharing() const { return NH / KH; }
    // Elements from one position to the next in qkv.
    __host__ __device__ int qkv_stride() const { return (NH + 2 * KH) * HS; }
    // Where a head of queries (b * NH + h) begins in qkv, in out, and in lse.
    __host__ __device__ int64_t in_qkv(int head) const {
        return static_cast<int64_t>(head / NH) * T * qkv_stride() + head % NH * HS;
    }
    __host__ __device__ int64_t in_out(int head) const {
        return static_cast<int64_t>(head / NH) * T * width() + head % NH * HS;
    }
    __host__ __device__ int64_t in_rows(int head) const { return static_cast<int64_t>(head) * T; }
    // From there to the keys that the head looks at, and from keys to their values: C and C in a GPT-2.
    __host__ __device__ int to_keys(int head) const {
        const int h = head % NH;
        return (NH - h + h / sharing()) * HS;
    }
    __host__ __device__ int to_values() const { return KH * HS; }
    __host__ __device__ int blocks(int rows_per_block) const { return (T + rows_per_block - 1) / rows_per_block; }
};

// The rows that a block owns, of a head of queries or of keys. The grid is one-dimensional: the blocks of a head follow each other, because they read
// the same keys and values and so find them in L2. Within a head the longest walk comes first, so that the short ones
// fill the last gaps: late queries see the most keys, early keys are seen by the most queries.
struct OwnedRows {
    int head, first;

    static __device__ OwnedRows of_queries(const Shape& shape, int rows_per_block) {
        const int blocks = shape.blocks(rows_per_block), index = static_cast<int>(blockIdx.x);
        return {index / blocks, (blocks - 1 - index % blocks) * rows_per_block};
    }
    static __device__ OwnedRows of_keys(const Shape& shape, int rows_per_block) {
        const int blocks = shape.blocks(rows_per_block), index = static_cast<int>(blockIdx.x);
        return {index / blocks, index % blocks * rows_per_block};
    }
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2e = 1.44269504088896341f;

__device__ inline int smaller(int a, int b) {
    return a < b ? a : b;
}

// ---------------------------------------------------------------------------------------------------------------------
// delta (B,NH,T) = dout . out of every row of every head: memory-bound, so eight lanes share a row and read it in
// pieces of `width` values, 16 bytes where the head size allows. Rows are numbered as they lie in dout: (b * T + t) *
// NH + h.

constexpr int kLanesPerRow = 8;

template <class X, int width>
__global__ void delta_kernel(float* delta, const X* dout, const X* out, int64_t rows, Shape shape) {
    begin_kernel();
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t row = thread / kLanesPerRow;
    const int lane = static_cast<int>(thread % kLanesPerRow);
    float sum = 0;
    if (row < rows) {
        for (int i = lane * width; i < shape.HS; i += kLanesPerRow * width) {
            const Vec<X, width> a = load_vec<width>(dout + row * shape.HS + i);
            const Vec<X, width> b = load_vec<width>(out + row * shape.HS + i);
            LNFREE_UNROLL
            for (int j = 0; j < width; ++j) sum += to_float(a.v[j]) * to_float(b.v[j]);
        }
    }
    sum = warp_sum<kLanesPerRow>(sum);
    if (row < rows && lane == 0) {
        const int64_t position = row / shape.NH, h = row % shape.NH, b = position / shape.T, t = position % shape.T;
        delta[(b * shape.NH + h) * shape.T + t] = sum;
    }
}

template <class X>
void compute_delta(float* delta, const X* dout, const X* out, int64_t B, const Shape& shape, cudaStream_t stream) {
    constexpr int width = 16 / sizeof(X), threads = 256;
    const int64_t rows = B * shape.T * shape.NH;
    const dim3 grid(static_cast<unsigned>((rows * kLanesPerRow + threads - 1) / threads));
    const auto kernel = shape.HS % width == 0 ? delta_kernel<X, width> : delta_kernel<X, 1>;
    launch_dependent(kernel, grid, dim3(threads), 0, stream, delta, dout, out, rows, shape);
}

// ---------------------------------------------------------------------------------------------------------------------
// The plain family. A block owns 32 rows, eight per warp, and walks over tiles of 32. In the products that make scores,
// a lane stands for one row of the tile; in those that sum rows of the tile, a lane stands for the columns lane, lane +
// 32, ... of the head. Between the two, weights (32 owned rows x 32 rows of the tile) pass through shared memory.

constexpr int kPlainTile = 32, kPlainRows = 8, kPlainThreads = kPlainTile / kPlainRows * kWarp;

// 32 rows of one head in float, in shared memory. Rows are padded with zeros to a multiple of four values, and lie at a
// distance that is an odd multiple of 16 bytes: eight lanes that read 16 bytes of eight rows then touch all 32 banks.
struct PlainTile {
    Shared<float> data;
    int width, distance;

    static __host__ __device__ int padded(int HS) { return (HS + 3) / 4 * 4; }
    static __host__ __device__ int row_distance(int HS) { return padded(HS) + (padded(HS) / 4 % 2 == 0 ? 4 : 0); }

    __device__ PlainTile(SharedMemory& shared, int HS)
        : data(shared.take<float>(kPlainTile * row_distance(HS))), width(padded(HS)), distance(row_distance(HS)) {}

    __device__ Vec<float, 4> four(int row, int column) const {
        return data.template load_vec<4>(row * distance + column);
    }

    // Rows first, first + 1, ... of a head; rows from T on become zero.
    template <class X>
    __device__ void load(const X* head, int stride, int first, const Shape& shape) const {
        for (int row = warp_index(); row < kPlainTile; row += kPlainThreads / kWarp) {
            const bool exists = first + row < shape.T;
            const X* source = head + (exists ? first + row : 0) * stride;
            for (int i = lane_index(); i < width; i += kWarp)
                data[row * distance + i] = exists && i < shape.HS ? to_float(source[i]) : 0.0f;
        }
    }
};

// products[r] = row (first + r) of left . row `lane` of right
__device__ inline void multiply_rows(float (&products)[kPlainRows], const PlainTile& left, int first,
                                     const PlainTile& right) {
    LNFREE_UNROLL
    for (int r = 0; r < kPlainRows; ++r) products[r] = 0;
    for (int i = 0; i < left.width; i += 4) {
        const Vec<float, 4> b = right.four(lane_index(), i);
        LNFREE_UNROLL
        for (int r = 0; r < kPlainRows; ++r) {
            const Vec<float, 4> a = left.four(first + r, i);
            products[r] += a.v[0] * b.v[0] + a.v[1] * b.v[1] + a.v[2] * b.v[2] + a.v[3] * b.v[3];
        }
    }
}

// sums[r][c] += sum over j < 32 of weights(first + r, j) * right(j, lane + 32 c). Lanes beyond the head's width repeat
// its last column; nobody stores what they sum.
template <int columns>
__device__ inline void add_weighted_rows(float (&sums)[kPlainRows][columns], Shared<float> weights, int first,
                                         const PlainTile& right) {
    int column[columns];
    LNFREE_UNROLL
    for (int c = 0; c < columns; ++c) column[c] = smaller(lane_index() + c * kWarp, right.width - 1);
    for (int j = 0; j < kPlainTile; j += 4) {
        Vec<float, 4> w[kPlainRows];
        LNFREE_UNROLL
        for (int r = 0; r < kPlainRows; ++r) w[r] = weights.template load_vec<4>((first + r) * kPlainTile + j);
        LNFREE_UNROLL
        for (int i = 0; i < 4; ++i) {
            LNFREE_UNROLL
            for (int c = 0; c < columns; ++c) {
                const float x = right.data[(j + i) * right.distance + column[c]];
                LNFREE_UNROLL
                for (int r = 0; r < kPlainRows; ++r) sums[r][c] += w[r].v[i] * x;
            }
        }
    }
}

// Rows first, first + 1, ... of a head = factor[r] * sums[r]
template <class X, int columns>
__device__ inline void store_plain(X* head, int stride, int first, const Shape& shape,
                                   const float (&sums)[kPlainRows][columns], const float (&factor)[kPlainRows]) {
    LNFREE_UNROLL
    for (int r = 0; r < kPlainRows; ++r) {
        LNFREE_UNROLL
        for (int c = 0; c < columns; ++c) {
            const int column = lane_index() + c * kWarp;
            if (first + r < shape.T && column < shape.HS)
                head[(first + r) * stride + column] = from_float<X>(factor[r] * sums[r][c]);
        }
    }
}

__device__ inline float warp_max(float x) {
    LNFREE_UNROLL
    for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
    return x;
}

template <class X, int columns>
__global__ void __launch_bounds__(kPlainThreads) forward_plain_kernel(X* out, float* lse, const X* qkv, Shape shape) {
    SharedMemory shared;
    const PlainTile queries(shared, shape.HS), keys(shared, shape.HS), values(shared, shape.HS);
    const Shared<float> weights = shared.take<float>(kPlainTile * kPlainTile);
    const OwnedRows owned = OwnedRows::of_queries(shape, kPlainTile);
    const int row = warp_index() * kPlainRows, first_query = owned.first + row;
    const float scale = shape.scale;
    wait_for_previous_kernel();
    let_next_kernel_start();

    const X* q = qkv + shape.in_qkv(owned.head);
    const X *k = q + shape.to_keys(owned.head), *v = k + shape.to_values();
    queries.load(q, shape.qkv_stride(), owned.first, shape);
    float largest[kPlainRows], sum[kPlainRows], sums[kPlainRows][columns] = {};
    LNFREE_UNROLL
    for (int r = 0; r < kPlainRows; ++r) {
        largest[r] = -kInfinity;
        sum[r] = 0;
    }
    for (int first_key = 0; first_key <= owned.first; first_key += kPlainTile) {
        __syncthreads();  // everyone is done with the tile before
        keys.load(k, shape.qkv_stride(), first_key, shape);
        values.load(v, shape.qkv_stride(), first_key, shape);
        __syncthreads();
        float s[kPlainRows];
        multiply_rows(s, queries, row, keys);
        LNFREE_UNROLL
        for (int r = 0; r < kPlainRows; ++r) {
            const float score = first_key + lane_index() <= first_query + r ? scale * s[r] : -kInfinity;
            const float largest_now = fmaxf(largest[r], warp_max(score));
            const float shrink = expf(largest[r] - largest_now), p = expf(score - largest_now);
            largest[r] = largest_now;
            sum[r] = shrink * sum[r] + warp_sum(p);
            LNFREE_UNROLL
            for (int c = 0; c < columns; ++c) sums[r][c] *= shrink;
            weights[(row + r) * kPlainTile + lane_index()] = p;
        }
        __syncwarp();  // a warp reads back only what it wrote itself
        add_weighted_rows(sums, weights, row, values);
    }
    float share[kPlainRows];
    LNFREE_UNROLL
    for (int r = 0; r < kPlainRows; ++r) {
        share[r] = 1.0f / sum[r];
        if (first_query + r < shape.T && lane_index() == 0)
            lse[shape.in_rows(owned.head) + first_query + r] = largest[r] + logf(sum[r]);
    }
    store_plain(out + shape.in_out(owned.head), shape.width(), first_query, shape, sums, share);
}

template <class X, int columns>
__global__ void __launch_bounds__(kPlainThreads)
    backward_keys_plain_kernel(X* dqkv, const X* dout, const X* qkv, const float* lse, const float* delta,
                               Shape shape) {
    SharedMemory shared;
    const PlainTile keys(shared, shape.HS), values(shared, shape.HS), queries(shared, shape.HS),
        douts(shared, shape.HS);
    const Shared<float> p = shared.take<float>(kPlainTile * kPlainTile);
    const Shared<float> ds = shared.take<float>(kPlainTile * kPlainTile);
    const OwnedRows owned = OwnedRows::of_keys(shape, kPlainTile);
    const int row = warp_index() * kPlainRows, first_key = owned.first + row;
    const float scale = shape.scale;
    wait_for_previous_kernel();
    let_next_kernel_start();

    const int first_head = owned.head * shape.sharing(), to_keys = shape.to_keys(first_head);
    const int64_t first_q = shape.in_qkv(first_head);
    keys.load(qkv + first_q + to_keys, shape.qkv_stride(), owned.first, shape);
    values.load(qkv + first_q + to_keys + shape.to_values(), shape.qkv_stride(), owned.first, shape);
    float dk[kPlainRows][columns] = {}, dv[kPlainRows][columns] = {};
    for (int head = first_head; head < first_head + shape.sharing(); ++head) {
        for (int first_query = owned.first; first_query < shape.T; first_query += kPlainTile) {
            __syncthreads();
            queries.load(qkv + shape.in_qkv(head), shape.qkv_stride(), first_query, shape);
            douts.load(dout + shape.in_out(head), shape.width(), first_query, shape);
            __syncthreads();
            const int query = first_query + lane_index();
            const bool exists = query < shape.T;
            const float query_lse = exists ? lse[shape.in_rows(head) + query] : kInfinity;  // exp gives 0
            const float query_delta = exists ? delta[shape.in_rows(head) + query] : 0.0f;
            float s[kPlainRows], dp[kPlainRows];
            multiply_rows(s, keys, row, queries);
            multiply_rows(dp, values, row, douts);
            LNFREE_UNROLL
            for (int r = 0; r < kPlainRows; ++r) {
                const float weight = first_key + r <= query ? expf(scale * s[r] - query_lse) : 0.0f;
                p[(row + r) * kPlainTile + lane_index()] = weight;
                ds[(row + r) * kPlainTile + lane_index()] = weight * (dp[r] - query_delta);
            }
            __syncwarp();
            add_weighted_rows(dv, p, row, douts);
            add_weighted_rows(dk, ds, row, queries);
        }
    }
    float one[kPlainRows], scales[kPlainRows];
    LNFREE_UNROLL
    for (int r = 0; r < kPlainRows; ++r) {
        one[r] = 1.0f;
        scales[r] = scale;
    }
    X* const to = dqkv + first_q + to_keys;
    store_plain(to, shape.qkv_stride(), first_key, shape, dk, scales);
    store_plain(to + shape.to_values(), shape.qkv_stride(), first_key, shape, dv, one);
}

template <class X, int columns>
__global__ void __launch_bounds__(kPlainThreads)
    backward_queries_plain_kernel(X* dqkv, const X* dout, const X* qkv, const float* lse, const float* delta,
                                  Shape shape) {
    SharedMemory shared;
    const PlainTile queries(shared, shape.HS), douts(shared, shape.HS), keys(shared, shape.HS),
        values(shared, shape.HS);
    const Shared<float> ds = shared.take<float>(kPlainTile * kPlainTile);
    const OwnedRows owned = OwnedRows::of_queries(shape, kPlainTile);
    const int row = warp_index() * kPlainRows, first_query = owned.first + row;
    const float scale = shape.scale;
    wait_for_previous_kernel();
    let_next_kernel_start();

    const X* q = qkv + shape.in_qkv(owned.head);
    const X *k = q + shape.to_keys(owned.head), *v = k + shape.to_values();
    queries.load(q, shape.qkv_stride(), owned.first, shape);
    douts.load(dout + shape.in_out(owned.head), shape.width(), owned.first, shape);
    float row_lse[kPlainRows], row_delta[kPlainRows], scales[kPlainRows], dq[kPlainRows][columns] = {};
    LNFREE_UNROLL
    for (int r = 0; r < kPlainRows; ++r) {
        const int64_t at = shape.in_rows(owned.head) + smaller(first_query + r, shape.T - 1);
        row_lse[r] = lse[at];
        row_delta[r] = delta[at];
        scales[r] = scale;
    }
    for (int first_key = 0; first_key <= owned.first; first_key += kPlainTile) {
        __syncthreads();
        keys.load(k, shape.qkv_stride(), first_key, shape);
        values.load(v, shape.qkv_stride(), first_key, shape);
        __syncthreads();
        float s[kPlainRows], dp[kPlainRows];
        multiply_rows(s, queries, row, keys);
        multiply_rows(dp, douts, row, values);
        LNFREE_UNROLL
        for (int r = 0; r < kPlainRows; ++r) {
            const bool seen = first_key + lane_index() <= first_query + r;
            const float weight = seen ? expf(scale * s[r] - row_lse[r]) : 0.0f;
            ds[(row + r) * kPlainTile + lane_index()] = weight * (dp[r] - row_delta[r]);
        }
        __syncwarp();
        add_weighted_rows(dq, ds, row, keys);
    }
    store_plain(dqkv + shape.in_qkv(owned.head), shape.qkv_stride(), first_query, shape, dq, scales);
}

// ---------------------------------------------------------------------------------------------------------------------
// The tensor-core family. The unit of work is mma.m16n8k16: a 16 x 16 piece of the left operand times a 16 x 8 piece of
// the right one, bf16 in, float sums; each lane of a warp holds fixed elements of the pieces (PTX ISA, "matrix
// fragments for mma.m16n8k16"). Of an accumulator of 16 x 8, lane l holds
//
//     d[0], d[1]:  row l / 4,      columns 2 (l % 4), 2 (l % 4) + 1
//     d[2], d[3]:  row l / 4 + 8,  the same columns
//
// and two accumulators side by side, rounded to bf16, are exactly the left operand that the next product wants. So the
// weights p and ds, made as one product's result, enter the next without leaving the registers; for dk and dv, which
// need them transposed, the scores are made transposed in the first place, keys times queries.
//
// A block owns 128 rows or 64. A warp takes 16 or 32 of them as the rows of its accumulators: with 32, each piece of
// the right operand read from shared memory serves two products, which keeps shared memory's bandwidth from being the
// limit. The walk over the other side goes in tiles of 64 rows, the next one being copied while the present one is
// used.

constexpr int kTile = 64;

// Rows of one head in shared memory, in chunks of eight values (16 bytes). Chunks of a row are permuted by its number
// so that eight rows' same chunk, which one step of ldmatrix reads, lie in different banks.
template <int HS>
struct Tile {
    static_assert(HS % 32 == 0, "rows of 64 bytes or a multiple");
    Shared<bf16> data;

    // A chunk of row first + r, first a multiple of 8: the permutation repeats after eight rows, so r alone decides,
    // and the compiler sees it.
    __device__ Shared<bf16> chunk(int first, int r, int index) const {
        const int permuted = index ^ (HS % 64 == 0 ? r % 8 : r / 2 % 4);
        return data + ((first + r) * HS + permuted * 8);
    }
    __device__ Tile part(int first) const { return {data + first * HS}; }
};

// Starts to copy `rows` rows of a head from row `first` on. Beyond the sequence's end the last row is repeated: what
// comes of it is finite where the data are, and is either masked or not stored.
template <int rows, int threads, int HS>
__device__ __forceinline__ void copy_rows(const Tile<HS>& tile, const bf16* head, int stride, int first, int T) {
    constexpr int wide = HS % 64 == 0 ? 8 : 4, at_once = threads / wide;  // chunks of a row, and rows, per step
    const int row = static_cast<int>(threadIdx.x) / wide, chunk = static_cast<int>(threadIdx.x) % wide;
    LNFREE_UNROLL
    for (int r = 0; r < rows; r += at_once) {
        const bf16* source = head + (smaller(first + row + r, T - 1) * stride + chunk * 8);
        LNFREE_UNROLL
        for (int c = 0; c < HS / 8; c += wide) copy_async_16(tile.chunk(r, row, chunk) + c * 8, source + c * 8);
    }
}

// The left operand of the products that make scores: the warp's rows of an owned tile. In registers if there is room,
// else read anew for every product.
template <int HS, int row_tiles>
struct LeftInRegisters {
    uint32_t pieces[row_tiles][HS / 16][4];

    __device__ __forceinline__ LeftInRegisters(const Tile<HS>& tile, int row) {
        LNFREE_UNROLL
        for (int m = 0; m < row_tiles; ++m) {
            LNFREE_UNROLL
            for (int k = 0; k < HS / 16; ++k)
                ldmatrix_x4(pieces[m][k], tile.chunk(row + 16 * m, lane_index() % 16, 2 * k + lane_index() / 16));
        }
    }
    __device__ __forceinline__ void piece(uint32_t (&a)[4], int m, int k) const {
        LNFREE_UNROLL
        for (int i = 0; i < 4; ++i) a[i] = pieces[m][k][i];
    }
};

template <int HS, int row_tiles>
struct LeftInShared {
    Tile<HS> tile;
    int row;

    __device__ __forceinline__ LeftInShared(const Tile<HS>& t, int r) : tile(t), row(r) {}
    __device__ __forceinline__ void piece(uint32_t (&a)[4], int m, int k) const {
        ldmatrix_x4(a, tile.chunk(row + 16 * m, lane_index() % 16, 2 * k + lane_index() / 16));
    }
};

template <bool in_registers, int HS, int row_tiles>
using Left = std::conditional_t<in_registers, LeftInRegisters<HS, row_tiles>, LeftInShared<HS, row_tiles>>;

// visit(m, n, i) for every element that a lane holds of accumulators [row_tiles][n_tiles][4].
template <int row_tiles, int n_tiles, class Visit>
__device__ __forceinline__ void for_each_element(const Visit& visit) {
    LNFREE_UNROLL
    for (int m = 0; m < row_tiles; ++m) {
        LNFREE_UNROLL
        for (int n = 0; n < n_tiles; ++n) {
            LNFREE_UNROLL
            for (int i = 0; i < 4; ++i) visit(m, n, i);
        }
    }
}

// visit(m, half) for the rows of which a lane holds elements: 16 m + 8 half + lane / 4, elements 2 half and 2 half + 1.
template <int row_tiles, class Visit>
__device__ __forceinline__ void for_each_row(const Visit& visit) {
    LNFREE_UNROLL
    for (int m = 0; m < row_tiles; ++m) {
        visit(m, 0);
        visit(m, 1);
    }
}

// d += a * b for the two pieces of 16 x 8 that one ldmatrix_x4 brings.
__device__ __forceinline__ void multiply_pair(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[4]) {
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    mma_m16n8k16(d0, a, b0);
    mma_m16n8k16(d1, a, b1);
}

// sums (16 row_tiles, 8 n) = left rows (.., HS) times the transpose of n * 8 rows of right: dot products of rows.
template <int HS, int row_tiles, int n_tiles, class Left>
__device__ __forceinline__ void dot_rows(float (&sums)[row_tiles][n_tiles][4], const Left& left,
                                         const Tile<HS>& right) {
    const int lane = lane_index();
    for_each_element<row_tiles, n_tiles>([&](int m, int n, int i) { sums[m][n][i] = 0; });
    LNFREE_UNROLL
    for (int k = 0; k < HS / 16; ++k) {
        uint32_t a[row_tiles][4];
        LNFREE_UNROLL
        for (int m = 0; m < row_tiles; ++m) left.piece(a[m], m, k);
        LNFREE_UNROLL
        for (int n = 0; n < n_tiles; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, right.chunk(8 * n + lane / 16 * 8, lane % 8, 2 * k + lane / 8 % 2));
            LNFREE_UNROLL
            for (int m = 0; m < row_tiles; ++m) multiply_pair(sums[m][n], sums[m][n + 1], a[m], b);
        }
    }
}

// sums (16 row_tiles, HS) += weights (16 row_tiles, 8 n) rounded to bf16, times n * 8 rows of right: sums of rows.
template <int HS, int row_tiles, int n_tiles>
__device__ __forceinline__ void add_rows(float (&sums)[row_tiles][HS / 8][4],
                                         const float (&weights)[row_tiles][n_tiles][4], const Tile<HS>& right) {
    const int lane = lane_index();
    LNFREE_UNROLL
    for (int k = 0; k < n_tiles / 2; ++k) {
        uint32_t a[row_tiles][4];
        LNFREE_UNROLL
        for (int m = 0; m < row_tiles; ++m) {
            LNFREE_UNROLL
            for (int i = 0; i < 4; ++i) {
                const float(&d)[4] = weights[m][2 * k + i / 2];
                a[m][i] = pack_bf16(d[i % 2 * 2], d[i % 2 * 2 + 1]);
            }
        }
        LNFREE_UNROLL
        for (int n = 0; n < HS / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, right.chunk(16 * k + lane / 8 % 2 * 8, lane % 8, n + lane / 16));
            LNFREE_UNROLL
            for (int m = 0; m < row_tiles; ++m) multiply_pair(sums[m][n], sums[m][n + 1], a[m], b);
        }
    }
}

// Rows first, first + 1, ... of a head = factor * sums. They pass through rows of a tile that belong to this warp and
// that nobody needs any more, so that global memory is written in pieces of 16 bytes, whole rows at a time.
template <int HS, int row_tiles>
__device__ __forceinline__ void store_rows(bf16* head, int stride, int first, int T,
                                           const float (&sums)[row_tiles][HS / 8][4],
                                           const float (&factor)[row_tiles][2], const Tile<HS>& own) {
    constexpr int chunks = HS / 8;
    const int lane = lane_index();
    __syncwarp();
    for_each_row<row_tiles>([&](int m, int half) {
        const float f = factor[m][half];
        LNFREE_UNROLL
        for (int n = 0; n < HS / 8; ++n) {
            const Vec<bf16, 2> pair = {from_float<bf16>(f * sums[m][n][2 * half]),
                                       from_float<bf16>(f * sums[m][n][2 * half + 1])};
            own.chunk(16 * m + 8 * half, lane / 4, n).store_vec(lane % 4 * 2, pair);
        }
    });
    __syncwarp();
    LNFREE_UNROLL
    for (int i = 0; i < 16 * row_tiles * chunks / kWarp; ++i) {
        const int index = i * kWarp + lane, row = index / chunks, chunk = index % chunks;
        if (first + row < T)
            store_vec(head + (first + row) * stride + chunk * 8,
                      own.chunk(row / 8 * 8, row % 8, chunk).template load_vec<8>(0));
    }
}

// Scores of a warp's rows (from first_query on) with keys from first_key on: -infinity where a key is not to be seen.
template <int row_tiles, int n_tiles>
__device__ __forceinline__ void mask_scores(float (&scores)[row_tiles][n_tiles][4], int first_query, int first_key) {
    const int lane = lane_index();
    for_each_element<row_tiles, n_tiles>([&](int m, int n, int i) {
        const int query = first_query + 16 * m + lane / 4 + i / 2 * 8;
        const int key = first_key + 8 * n + lane % 4 * 2 + i % 2;
        if (key > query) scores[m][n][i] = -kInfinity;
    });
}

// The online softmax of a warp's rows. Four lanes share a row and hold the same `reference`: weights are exp(score -
// reference). Any number not much below the row's largest score will do as reference, because it cancels when the
// output is divided by the sum of weights. So it is raised, and everything so far scaled down, only when a score
// exceeds it by a factor of more than 2^8 in the weights: after the first tile that is rare. (The idea of rescaling
// rarely is FlashAttention-4's.) All exponents are of 2, which is what the hardware has: factor = scale * log2(e).
template <int row_tiles>
struct OnlineSoftmax {
    static constexpr float kRoom = 8;
    float factor;
    float reference[row_tiles][2];        // times factor
    float weight_sum[row_tiles][2] = {};  // of this lane's columns

    __device__ __forceinline__ explicit OnlineSoftmax(float f) : factor(f) {
        for_each_row<row_tiles>([&](int m, int half) { reference[m][half] = -kInfinity; });
    }

    // Scores become weights; sums (16 row_tiles, 8 columns), the output so far, follow the reference.
    template <int n_tiles, int columns>
    __device__ __forceinline__ void step(float (&scores)[row_tiles][n_tiles][4], float (&sums)[row_tiles][columns][4]) {
        raise_reference(scores, sums);
        for_each_element<row_tiles, n_tiles>([&](int m, int n, int i) {
            scores[m][n][i] = fast_exp2(scores[m][n][i] * factor - reference[m][i / 2]);
            weight_sum[m][i / 2] += scores[m][n][i];
        });
    }

    // The sum of weights of a row, known to all its lanes.
    __device__ __forceinline__ float row_sum(int m, int half) const {
        float sum = weight_sum[m][half];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        return sum + __shfl_xor_sync(kAllLanes, sum, 2);
    }

  private:
    template <int n_tiles, int columns>
    __device__ __forceinline__ void raise_reference(const float (&scores)[row_tiles][n_tiles][4],
                                                    float (&sums)[row_tiles][columns][4]) {
        float largest[row_tiles][2];
        bool exceeded = false;
        for_each_row<row_tiles>([&](int m, int half) {
            float x = -kInfinity;
            LNFREE_UNROLL
            for (int n = 0; n < n_tiles; ++n) x = fmaxf(x, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            largest[m][half] = x * factor;
            exceeded = exceeded || largest[m][half] > reference[m][half] + kRoom;
        });
        if (!__any_sync(kAllLanes, exceeded)) return;
        for_each_row<row_tiles>([&](int m, int half) {
            float x = fmaxf(reference[m][half], largest[m][half]);
            x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
            x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
            const float shrink = fast_exp2(reference[m][half] - x);
            reference[m][half] = x;
            weight_sum[m][half] *= shrink;
            LNFREE_UNROLL
            for (int n = 0; n < columns; ++n) {
                sums[m][n][2 * half] *= shrink;
                sums[m][n][2 * half + 1] *= shrink;
            }
        });
    }
};

// How a block is made, per head size. What must stay in registers: the sums (16 kRowTiles x HS floats of a warp), a
// tile's scores, and the owned rows if they still fit.
template <int HS>
struct ForwardPlan {
    static constexpr int kOwned = 128, kRowTiles = 2, kThreads = kOwned / (16 * kRowTiles) * kWarp;
    static constexpr bool kLeftInRegisters = HS <= 64;
    static constexpr size_t kSharedBytes = (kOwned + 4 * kTile) * HS * sizeof(bf16);
};

template <int HS>
__global__ void __launch_bounds__(ForwardPlan<HS>::kThreads, 2)
    forward_tensor_kernel(bf16* out, float* lse, const bf16* qkv, Shape shape) {
    using Plan = ForwardPlan<HS>;
    constexpr int kOwned = Plan::kOwned, row_tiles = Plan::kRowTiles, threads = Plan::kThreads;
    SharedMemory shared;
    const Tile<HS> queries{shared.take<bf16>(kOwned * HS)};
    const Tile<HS> keys{shared.take<bf16>(2 * kTile * HS)}, values{shared.take<bf16>(2 * kTile * HS)};
    const OwnedRows owned = OwnedRows::of_queries(shape, kOwned);
    const int T = shape.T, lane = lane_index(), row = warp_index() * 16 * row_tiles, first_query = owned.first + row;
    const int stride = shape.qkv_stride();
    wait_for_previous_kernel();
    let_next_kernel_start();

    const bf16* q = qkv + shape.in_qkv(owned.head);
    const bf16 *k = q + shape.to_keys(owned.head), *v = k + shape.to_values();
    const auto copy_tile = [&](int tile) {
        copy_rows<kTile, threads>(keys.part(tile % 2 * kTile), k, stride, tile * kTile, T);
        copy_rows<kTile, threads>(values.part(tile % 2 * kTile), v, stride, tile * kTile, T);
        copy_async_commit();
    };
    copy_rows<kOwned, threads>(queries, q, stride, owned.first, T);
    copy_async_commit();
    copy_tile(0);
    copy_async_wait<1>();
    __syncthreads();
    const Left<Plan::kLeftInRegisters, HS, row_tiles> left(queries, row);

    OnlineSoftmax<row_tiles> softmax(shape.scale * kLog2e);
    float sums[row_tiles][HS / 8][4] = {};
    const int tiles = (smaller(owned.first + kOwned, T) + kTile - 1) / kTile;
    for (int tile = 0; tile < tiles; ++tile) {
        copy_async_wait<0>();
        __syncthreads();  // this tile is here, and everyone is done with the one before
        if (tile + 1 < tiles) copy_tile(tile + 1);
        const int first_key = tile * kTile, last_query = first_query + 16 * row_tiles - 1;
        if (first_key > last_query || first_query >= T) continue;  // nothing that this warp's queries may see
        float scores[row_tiles][kTile / 8][4];
        dot_rows(scores, left, keys.part(tile % 2 * kTile));
        if (first_key + kTile - 1 > first_query) mask_scores(scores, first_query, first_key);
        softmax.step(scores, sums);
        add_rows(sums, scores, values.part(tile % 2 * kTile));
    }

    float share[row_tiles][2];
    for_each_row<row_tiles>([&](int m, int half) {
        const float sum = softmax.row_sum(m, half);
        const int query = first_query + 16 * m + 8 * half + lane / 4;
        if (query < T && lane % 4 == 0)
            lse[shape.in_rows(owned.head) + query] = softmax.reference[m][half] / kLog2e + logf(sum);
        share[m][half] = __fdividef(1.0f, sum);
    });
    store_rows(out + shape.in_out(owned.head), shape.width(), first_query, T, sums, share, queries.part(row));
}

// Backward keeps more sums, so the walk's tile is used in two halves of 32 rows. With heads of 128 a block owns 64
// rows, so that its shared memory stays below the 99 KiB that small cards have.
template <int HS>
struct BackwardPlan {
    static constexpr int kOwned = HS <= 96 ? 128 : 64, kRowTiles = HS <= 64 ? 2 : 1;
    static constexpr int kThreads = kOwned / (16 * kRowTiles) * kWarp, kBlocksPerMultiprocessor = 256 / kThreads;
    static constexpr int kStep = 32;
    static constexpr bool kQueriesInRegisters = HS <= 64;
    static constexpr size_t kSharedBytes = (2 * kOwned + 4 * kTile) * HS * sizeof(bf16);
    static constexpr size_t kStatisticsBytes = 4 * kTile * sizeof(float);
};

// dk and dv. Scores stand transposed: rows are keys, columns queries. share: several heads of queries do; a kernel apart,
// because counting them costs registers, of which there are none to spare.
template <int HS, bool share>
__global__ void __launch_bounds__(BackwardPlan<HS>::kThreads, BackwardPlan<HS>::kBlocksPerMultiprocessor)
    backward_keys_tensor_kernel(bf16* dqkv, const bf16* dout, const bf16* qkv, const float* lse, const float* delta,
                                Shape shape) {
    using Plan = BackwardPlan<HS>;
    constexpr int kOwned = Plan::kOwned, row_tiles = Plan::kRowTiles, threads = Plan::kThreads, step = Plan::kStep;
    SharedMemory shared;
    const Tile<HS> keys{shared.take<bf16>(kOwned * HS)}, values{shared.take<bf16>(kOwned * HS)};
    const Tile<HS> queries{shared.take<bf16>(2 * kTile * HS)}, douts{shared.take<bf16>(2 * kTile * HS)};
    const Shared<float> statistics = shared.take<float>(4 * kTile);  // (2, {lse * log2(e), delta}, kTile)
    const OwnedRows owned = OwnedRows::of_keys(shape, kOwned);
    const int T = shape.T, lane = lane_index(), row = warp_index() * 16 * row_tiles, first_key = owned.first + row;
    const int stride = shape.qkv_stride();
    const float scale = shape.scale, factor = scale * kLog2e;
    wait_for_previous_kernel();
    let_next_kernel_start();

    const int sharing = share ? shape.sharing() : 1;
    int head = owned.head * sharing;  // of queries: the first of those that share the keys
    const bf16 *q = qkv + shape.in_qkv(head), *dout_head = dout + shape.in_out(head);
    const int to_keys = share ? shape.to_keys(head) : shape.width();
    const auto copy_tile = [&](int tile) {
        copy_rows<kTile, threads>(queries.part(tile % 2 * kTile), q, stride, tile * kTile, T);
        copy_rows<kTile, threads>(douts.part(tile % 2 * kTile), dout_head, shape.width(), tile * kTile, T);
        copy_async_commit();
    };
    // Each of the first 128 threads fetches one number of the next tile into a register while the present tile is used,
    // and puts it into shared memory afterwards. A query beyond the end gets lse = infinity, which makes its p zero.
    const auto fetch_statistic = [&](int tile) {
        const int index = static_cast<int>(threadIdx.x) % (2 * kTile), query = tile * kTile + index % kTile;
        const bool is_lse = index < kTile;
        if (query >= T) return is_lse ? kInfinity : 0.0f;
        const int64_t at = shape.in_rows(head) + query;
        return is_lse ? lse[at] * kLog2e : delta[at];
    };
    const auto keep_statistic = [&](int tile, float value) {
        if (threadIdx.x < 2 * kTile) statistics[tile % 2 * 2 * kTile + static_cast<int>(threadIdx.x)] = value;
    };
    const int first_tile = owned.first / kTile, tiles = (T + kTile - 1) / kTile;
    copy_rows<kOwned, threads>(keys, q + to_keys, stride, owned.first, T);
    copy_rows<kOwned, threads>(values, q + to_keys + shape.to_values(), stride, owned.first, T);

    const LeftInShared<HS, row_tiles> left_keys(keys, row), left_values(values, row);
    float dk[row_tiles][HS / 8][4] = {}, dv[row_tiles][HS / 8][4] = {};
    for (int done = 0; done < sharing; ++done, ++head, q += HS, dout_head += HS) {
        if (share) __syncthreads();  // everyone is done with the head before
        copy_tile(first_tile);
        keep_statistic(first_tile, fetch_statistic(first_tile));
        for (int tile = first_tile; tile < tiles; ++tile) {
            copy_async_wait<0>();
            __syncthreads();
            float next_statistic = 0;
            if (tile + 1 < tiles) {
                copy_tile(tile + 1);
                next_statistic = fetch_statistic(tile + 1);
            }
            // masked: are some of these queries before some of this warp's keys? Compiled twice, because most are not.
            const auto use_queries = [&](int part, auto masked) {
                const int first_query = tile * kTile + part;
                const Tile<HS> query_rows = queries.part(tile % 2 * kTile + part);
                const Tile<HS> dout_rows = douts.part(tile % 2 * kTile + part);
                const Shared<float> lse2 = statistics + (tile % 2 * 2 * kTile + part), deltas = lse2 + kTile;
                float p[row_tiles][step / 8][4], ds[row_tiles][step / 8][4];
                dot_rows(p, left_keys, query_rows);
                LNFREE_UNROLL
                for (int n = 0; n < step / 8; ++n) {
                    const Vec<float, 2> columns_lse = lse2.template load_vec<2>(8 * n + lane % 4 * 2);
                    LNFREE_UNROLL
                    for (int m = 0; m < row_tiles; ++m) {
                        LNFREE_UNROLL
                        for (int i = 0; i < 4; ++i) {
                            const int key = first_key + 16 * m + lane / 4 + i / 2 * 8;
                            const int query = first_query + 8 * n + lane % 4 * 2 + i % 2;
                            p[m][n][i] = fast_exp2(p[m][n][i] * factor - columns_lse.v[i % 2]);
                            if (masked.value && key > query) p[m][n][i] = 0;
                        }
                    }
                }
                add_rows(dv, p, dout_rows);
                dot_rows(ds, left_values, dout_rows);
                LNFREE_UNROLL
                for (int n = 0; n < step / 8; ++n) {
                    const Vec<float, 2> columns_delta = deltas.template load_vec<2>(8 * n + lane % 4 * 2);
                    LNFREE_UNROLL
                    for (int m = 0; m < row_tiles; ++m) {
                        LNFREE_UNROLL
                        for (int i = 0; i < 4; ++i) ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - columns_delta.v[i % 2]);
                    }
                }
                add_rows(dk, ds, query_rows);
            };
            LNFREE_UNROLL_BY(1)
            for (int part = 0; part < kTile; part += step) {
                const int first_query = tile * kTile + part;
                if (first_key > first_query + step - 1 || first_key >= T) continue;
                if (first_key + 16 * row_tiles - 1 > first_query)
                    use_queries(part, std::true_type());
                else
                    use_queries(part, std::false_type());
            }
            if (tile + 1 < tiles) keep_statistic(tile + 1, next_statistic);
        }
    }

    float one[row_tiles][2], scales[row_tiles][2];
    for_each_row<row_tiles>([&](int m, int half) {
        one[m][half] = 1.0f;
        scales[m][half] = scale;
    });
    bf16* const to = dqkv + shape.in_qkv(owned.head * sharing) + to_keys;
    store_rows(to, stride, first_key, T, dk, scales, keys.part(row));
    store_rows(to + shape.to_values(), stride, first_key, T, dv, one, values.part(row));
}

template <int HS>
__global__ void __launch_bounds__(BackwardPlan<HS>::kThreads, BackwardPlan<HS>::kBlocksPerMultiprocessor)
    backward_queries_tensor_kernel(bf16* dqkv, const bf16* dout, const bf16* qkv, const float* lse, const float* delta,
                                   Shape shape) {
    using Plan = BackwardPlan<HS>;
    constexpr int kOwned = Plan::kOwned, row_tiles = Plan::kRowTiles, threads = Plan::kThreads, step = Plan::kStep;
    SharedMemory shared;
    const Tile<HS> queries{shared.take<bf16>(kOwned * HS)}, douts{shared.take<bf16>(kOwned * HS)};
    const Tile<HS> keys{shared.take<bf16>(2 * kTile * HS)}, values{shared.take<bf16>(2 * kTile * HS)};
    const OwnedRows owned = OwnedRows::of_queries(shape, kOwned);
    const int T = shape.T, lane = lane_index(), row = warp_index() * 16 * row_tiles, first_query = owned.first + row;
    const int stride = shape.qkv_stride();
    const float scale = shape.scale, factor = scale * kLog2e;
    wait_for_previous_kernel();
    let_next_kernel_start();

    const bf16* q = qkv + shape.in_qkv(owned.head);
    const bf16 *k = q + shape.to_keys(owned.head), *v = k + shape.to_values();
    const auto copy_tile = [&](int tile) {
        copy_rows<kTile, threads>(keys.part(tile % 2 * kTile), k, stride, tile * kTile, T);
        copy_rows<kTile, threads>(values.part(tile % 2 * kTile), v, stride, tile * kTile, T);
        copy_async_commit();
    };
    copy_rows<kOwned, threads>(queries, q, stride, owned.first, T);
    copy_rows<kOwned, threads>(douts, dout + shape.in_out(owned.head), shape.width(), owned.first, T);
    copy_async_commit();
    copy_tile(0);
    float lse2[row_tiles][2], row_delta[row_tiles][2], scales[row_tiles][2];
    for_each_row<row_tiles>([&](int m, int half) {
        const int query = smaller(first_query + 16 * m + 8 * half + lane / 4, T - 1);
        lse2[m][half] = lse[shape.in_rows(owned.head) + query] * kLog2e;
        row_delta[m][half] = delta[shape.in_rows(owned.head) + query];
        scales[m][half] = scale;
    });
    copy_async_wait<1>();
    __syncthreads();
    const Left<Plan::kQueriesInRegisters, HS, row_tiles> left_queries(queries, row), left_douts(douts, row);

    float dq[row_tiles][HS / 8][4] = {};
    const int tiles = (smaller(owned.first + kOwned, T) + kTile - 1) / kTile;
    for (int tile = 0; tile < tiles; ++tile) {
        copy_async_wait<0>();
        __syncthreads();
        if (tile + 1 < tiles) copy_tile(tile + 1);
        const auto use_keys = [&](int part, auto masked) {
            const int first_key = tile * kTile + part;
            const Tile<HS> key_rows = keys.part(tile % 2 * kTile + part);
            float p[row_tiles][step / 8][4], ds[row_tiles][step / 8][4];
            dot_rows(p, left_queries, key_rows);
            if (masked.value) mask_scores(p, first_query, first_key);
            dot_rows(ds, left_douts, values.part(tile % 2 * kTile + part));
            for_each_element<row_tiles, step / 8>([&](int m, int n, int i) {
                const float weight = fast_exp2(p[m][n][i] * factor - lse2[m][i / 2]);
                ds[m][n][i] = weight * (ds[m][n][i] - row_delta[m][i / 2]);
            });
            add_rows(dq, ds, key_rows);
        };
        LNFREE_UNROLL_BY(1)
        for (int part = 0; part < kTile; part += step) {
            const int first_key = tile * kTile + part;
            if (first_key > first_query + 16 * row_tiles - 1 || first_query >= T) continue;
            if (first_key + step - 1 > first_query)
                use_keys(part, std::true_type());
            else
                use_keys(part, std::false_type());
        }
    }
    store_rows(dqkv + shape.in_qkv(owned.head), stride, first_query, T, dq, scales, queries.part(row));
}

// ---------------------------------------------------------------------------------------------------------------------
// Choosing among the compiled kernels

// Throws BadInput unless the sizes are those of an attention that kernels here can compute.
inline Shape checked_shape(int64_t B, int64_t T, const Heads& heads, int64_t largest_head) {
    const auto& [NH, KH, HS] = heads;
    if (HS < 1 || HS > largest_head)
        throw BadInput("attention: the head size is " + std::to_string(HS) + "; it can be from 1 to " +
                       std::to_string(largest_head));
    if (B < 1 || T < 1 || KH < 1 || NH < KH || NH % KH != 0)
        throw BadInput("attention: " + std::to_string(NH) + " heads of queries can not share " + std::to_string(KH) +
                       " of keys; their number must be a multiple");
    constexpr int64_t most = std::numeric_limits<int>::max();
    if (T > most / heads.row() - 128)
        throw BadInput("attention: sequences of " + std::to_string(T) + " positions of width " +
                       std::to_string(heads.width()) + " are too long; use a smaller --seq");
    if (B * NH > most / (T / kPlainTile + 1))
        throw BadInput("attention: a batch of " + std::to_string(B) + " sequences is too large; use a smaller --batch");
    return {static_cast<int>(T), static_cast<int>(NH), static_cast<int>(KH), static_cast<int>(HS),
            static_cast<float>(1.0 / std::sqrt(static_cast<double>(HS)))};
}

// Blocks that own rows of every head: of NH of queries, or KH of keys.
inline dim3 grid_of(int64_t B, int heads, const Shape& shape, int rows_per_block) {
    return dim3(static_cast<unsigned>(B * heads * shape.blocks(rows_per_block)));
}

// visit(columns), columns a std::integral_constant: how many columns of a head each lane of the plain kernels takes.
template <class Visit>
void for_columns(int HS, const Visit& visit) {
    if (HS <= 64) return visit(std::integral_constant<int, 2>());
    if (HS <= 128) return visit(std::integral_constant<int, 4>());
    visit(std::integral_constant<int, 8>());
}

// visit(HS), HS a std::integral_constant, for the head sizes of the tensor-core kernels.
template <class Visit>
void for_head_size(int HS, const Visit& visit) {
    if (HS == 32) return visit(std::integral_constant<int, 32>());
    if (HS == 64) return visit(std::integral_constant<int, 64>());
    if (HS == 96) return visit(std::integral_constant<int, 96>());
    if (HS == 128) return visit(std::integral_constant<int, 128>());
    throw BadInput("attention on tensor cores: head size " + std::to_string(HS) + "; it can be 32, 64, 96 or 128");
}

inline size_t plain_shared_bytes(int HS, int row_tiles, int weight_tiles) {
    return static_cast<size_t>(row_tiles * kPlainTile * PlainTile::row_distance(HS) +
                               weight_tiles * kPlainTile * kPlainTile) *
           sizeof(float);
}

}  // namespace attention

// Do the tensor-core kernels take this type and head size? (Any T.)
template <class X>
bool attention_has_tensor_cores(int64_t HS) {
    return std::is_same_v<X, bf16> && (HS == 32 || HS == 64 || HS == 96 || HS == 128);
}

// out (B,T,A) and lse (B,NH,T) from qkv (B,T,Q), by the kernels that take any head size up to 256.
template <class X>
void attention_forward_plain(X* out, float* lse, const X* qkv, int64_t B, int64_t T, const Heads& heads,
                             cudaStream_t stream) {
    using namespace attention;
    const Shape shape = checked_shape(B, T, heads, 256);
    for_columns(shape.HS, [&](auto columns) {
        launch_dependent(forward_plain_kernel<X, columns()>, grid_of(B, shape.NH, shape, kPlainTile),
                         dim3(kPlainThreads), plain_shared_bytes(shape.HS, 3, 1), stream, out, lse, qkv, shape);
    });
}

// The same by tensor cores, for X = bf16. BadInput if the head size is none of theirs. (A template only so that
// programs that do not call it need not compile its kernels.)
template <class X>
void attention_forward_tensor_cores(X* out, float* lse, const X* qkv, int64_t B, int64_t T, const Heads& heads,
                                    cudaStream_t stream) {
    static_assert(std::is_same_v<X, bf16>, "these kernels compute with bf16");
    using namespace attention;
    const Shape shape = checked_shape(B, T, heads, 128);
    for_head_size(shape.HS, [&](auto HS) {
        using Plan = ForwardPlan<HS()>;
        launch_dependent(forward_tensor_kernel<HS()>, grid_of(B, shape.NH, shape, Plan::kOwned), dim3(Plan::kThreads),
                         Plan::kSharedBytes, stream, out, lse, qkv, shape);
    });
}

// The same by the fastest kernels that apply.
template <class X>
void attention_forward(X* out, float* lse, const X* qkv, int64_t B, int64_t T, const Heads& heads,
                       cudaStream_t stream) {
    if constexpr (std::is_same_v<X, bf16>) {
        if (attention_has_tensor_cores<X>(heads.HS))
            return attention_forward_tensor_cores(out, lse, qkv, B, T, heads, stream);
    }
    attention_forward_plain(out, lse, qkv, B, T, heads, stream);
}

// For decoding: T new positions of each sequence attend to themselves and to the `first` ones before them, whose keys and
// values lie in cache (B,capacity,2 KH HS). There are few queries and one key after another is read once: a warp takes a head
// of a position, and each lane every 32nd of its channels.
constexpr int kCachedChannels = 8;  // of a lane: heads of up to 256

template <class X>
__global__ void append_to_cache_kernel(X* cache, const X* qkv, int64_t B, int64_t T, int64_t first, int64_t capacity,
                                       int64_t A, int64_t kept) {
    begin_kernel();
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= B * T * kept) return;
    const int64_t n = i / kept, c = i % kept, b = n / T, t = n % T;
    cache[(b * capacity + first + t) * kept + c] = qkv[n * (A + kept) + A + c];
}

template <class X>
__global__ void attention_cached_kernel(X* out, const X* qkv, const X* cache, int64_t B, int64_t T, int64_t first,
                                        int64_t capacity, int64_t NH, int64_t KH, int64_t HS) {
    begin_kernel();
    const int64_t row = row_of_warp();
    if (row >= B * T * NH) return;
    const int64_t n = row / NH, head = row % NH, to_values = KH * HS;
    const X* q = qkv + n * (NH + 2 * KH) * HS + head * HS;
    const X* key = cache + n / T * capacity * 2 * to_values + head / (NH / KH) * HS;
    const float scale = rsqrtf(static_cast<float>(HS));
    float query[kCachedChannels], mean[kCachedChannels] = {};
    float largest = -INFINITY, sum = 0;
    LNFREE_UNROLL
    for (int i = 0; i < kCachedChannels; i++) {
        const int c = lane_index() + i * kWarp;
        query[i] = c < HS ? to_float(q[c]) * scale : 0.0f;
    }
    for (int64_t t = 0; t <= first + n % T; t++, key += 2 * to_values) {
        float score = 0;
        LNFREE_UNROLL
        for (int i = 0; i < kCachedChannels; i++) {
            const int c = lane_index() + i * kWarp;
            if (c < HS) score += query[i] * to_float(key[c]);
        }
        score = warp_sum(score);
        const float now = fmaxf(largest, score), shrink = __expf(largest - now), p = __expf(score - now);
        largest = now;
        sum = shrink * sum + p;
        LNFREE_UNROLL
        for (int i = 0; i < kCachedChannels; i++) {
            const int c = lane_index() + i * kWarp;
            if (c < HS) mean[i] = shrink * mean[i] + p * to_float(key[to_values + c]);
        }
    }
    LNFREE_UNROLL
    for (int i = 0; i < kCachedChannels; i++) {
        const int c = lane_index() + i * kWarp;
        if (c < HS) out[row * HS + c] = from_float<X>(mean[i] / sum);
    }
}

// out (B,T,A) from qkv (B,T,Q), whose keys and values go into the cache.
template <class X>
void attention_cached(X* out, X* cache, const X* qkv, int64_t B, int64_t T, int64_t first, int64_t capacity,
                      const Heads& heads, cudaStream_t stream) {
    attention::checked_shape(B, T, heads, kCachedChannels * kWarp);
    constexpr int warps = 4;
    const int64_t A = heads.width(), kept = heads.row() - A;
    launch_dependent(append_to_cache_kernel<X>, blocks(ceil_div(B * T * kept, 256)), dim3(256), 0, stream, cache, qkv,
                     B, T, first, capacity, A, kept);
    launch_dependent(attention_cached_kernel<X>, blocks(ceil_div(B * T * heads.NH, warps)), dim3(warps * kWarp), 0,
                     stream, out, qkv, static_cast<const X*>(cache), B, T, first, capacity, heads.NH, heads.KH,
                     heads.HS);
}

// dqkv (B,T,Q), overwritten, from dout (B,T,A) and what forward read and wrote; delta_scratch (B,NH,T) is overwritten.
template <class X>
void attention_backward_plain(X* dqkv, float* delta_scratch, const X* dout, const X* qkv, const X* out,
                              const float* lse, int64_t B, int64_t T, const Heads& heads, cudaStream_t stream) {
    using namespace attention;
    const Shape shape = checked_shape(B, T, heads, 256);
    compute_delta(delta_scratch, dout, out, B, shape, stream);
    for_columns(shape.HS, [&](auto columns) {
        const dim3 grid = grid_of(B, shape.NH, shape, kPlainTile), block(kPlainThreads);
        launch_dependent(backward_keys_plain_kernel<X, columns()>, grid_of(B, shape.KH, shape, kPlainTile), block,
                         plain_shared_bytes(shape.HS, 4, 2), stream, dqkv, dout, qkv, lse, delta_scratch, shape);
        launch_dependent(backward_queries_plain_kernel<X, columns()>, grid, block, plain_shared_bytes(shape.HS, 4, 1),
                         stream, dqkv, dout, qkv, lse, delta_scratch, shape);
    });
}

// The same by tensor cores, as for forward.
template <class X>
void attention_backward_tensor_cores(X* dqkv, float* delta_scratch, const X* dout, const X* qkv, const X* out,
                                     const float* lse, int64_t B, int64_t T, const Heads& heads, cudaStream_t stream) {
    static_assert(std::is_same_v<X, bf16>, "these kernels compute with bf16");
    using namespace attention;
    const Shape shape = checked_shape(B, T, heads, 128);
    compute_delta(delta_scratch, dout, out, B, shape, stream);
    for_head_size(shape.HS, [&](auto HS) {
        using Plan = BackwardPlan<HS()>;
        const dim3 grid = grid_of(B, shape.NH, shape, Plan::kOwned), block(Plan::kThreads);
        const auto keys_kernel =
            shape.sharing() == 1 ? backward_keys_tensor_kernel<HS(), false> : backward_keys_tensor_kernel<HS(), true>;
        launch_dependent(keys_kernel, grid_of(B, shape.KH, shape, Plan::kOwned), block,
                         Plan::kSharedBytes + Plan::kStatisticsBytes, stream, dqkv, dout, qkv, lse, delta_scratch,
                         shape);
        launch_dependent(backward_queries_tensor_kernel<HS()>, grid, block, Plan::kSharedBytes, stream, dqkv, dout, qkv,
                         lse, delta_scratch, shape);
    });
}

// The same by the fastest kernels that apply.
template <class X>
void attention_backward(X* dqkv, float* delta_scratch, const X* dout, const X* qkv, const X* out, const float* lse,
                        int64_t B, int64_t T, const Heads& heads, cudaStream_t stream) {
    if constexpr (std::is_same_v<X, bf16>) {
        if (attention_has_tensor_cores<X>(heads.HS))
            return attention_backward_tensor_cores(dqkv, delta_scratch, dout, qkv, out, lse, B, T, heads, stream);
    }
    attention_backward_plain(dqkv, delta_scratch, dout, qkv, out, lse, B, T, heads, stream);
}

inline void require_own_keys(const Heads& heads) {
    if (heads.KH != heads.NH)
        throw BadInput("--attention cudnn: every head of queries must have its own keys; use flash for this model");
}

// By cuDNN in programs that have it, for X = bf16; else by the fastest kernels here.
template <class X>
void attention_forward_cudnn(X* out, float* lse, const X* qkv, int64_t B, int64_t T, const Heads& heads,
                             cudaStream_t stream) {
    if constexpr (kHasCudnn && std::is_same_v<X, bf16>) {
        require_own_keys(heads);
        cudnn_attention_forward(out, lse, qkv, B, T, heads.width(), heads.NH, stream);
    } else {
        attention_forward(out, lse, qkv, B, T, heads, stream);
    }
}
template <class X>
void attention_backward_cudnn(X* dqkv, float* delta_scratch, const X* dout, const X* qkv, const X* out,
                              const float* lse, int64_t B, int64_t T, const Heads& heads, cudaStream_t stream) {
    if constexpr (kHasCudnn && std::is_same_v<X, bf16>) {
        cudnn_attention_backward(dqkv, dout, qkv, out, lse, B, T, heads.width(), heads.NH, stream);
    } else {
        attention_backward(dqkv, delta_scratch, dout, qkv, out, lse, B, T, heads, stream);
    }
}

// A choice of kernels: what forward writes, the same choice's backward reads.
template <class X>
struct AttentionKernels {
    const char* name;
    void (*forward)(X* out, float* lse, const X* qkv, int64_t B, int64_t T, const Heads& heads, cudaStream_t stream);
    void (*backward)(X* dqkv, float* delta_scratch, const X* dout, const X* qkv, const X* out, const float* lse,
                     int64_t B, int64_t T, const Heads& heads, cudaStream_t stream);
};

// --attention. BadInput if there is no such choice in this program.
template <class X>
AttentionKernels<X> attention_kernels(const std::string& name) {
    if (name == "flash") return {"flash", attention_forward<X>, attention_backward<X>};
    if (name == "plain") return {"plain", attention_forward_plain<X>, attention_backward_plain<X>};
    if (name == "cudnn" && kHasCudnn) return {"cudnn", attention_forward_cudnn<X>, attention_backward_cudnn<X>};
    if (name == "cudnn")
        throw BadInput(
            "--attention cudnn: this program was made without cuDNN; make it with USE_CUDNN=1, or use flash");
    throw BadInput("--attention " + name + ": use flash, plain or cudnn");
}

// =====================================================================================================================
// 3. Matrix products
// =====================================================================================================================
//
// C (M,N) = op(A) (M,K) op(B) (K,N), row-major with leading dimensions as in the reference, by cuBLASLt, in float sums.
// cuBLASLt thinks in columns: a row-major matrix is the transpose of the column-major one in the same memory, so what it
// is asked for is C^T = op(B)^T op(A)^T, with N rows. A bias then runs along its rows, which is what it can add on the way
// out, as it can apply GELU and its derivative. Where it declines, our own kernels do that part afterwards.

// What happens to a product on its way out.
template <class Out>
struct Epilogue {
    const Out* bias = nullptr;          // (N), added to every row
    Out* before_gelu = nullptr;         // (M,N), rows N apart: forward; gets the product with bias, and C its GELU
    const Out* through_gelu = nullptr;  // (M,N), rows N apart: backward; C becomes the product times gelu'(this)
};

// Everything that cuBLASLt's choice of a kernel may depend on. `alignment`: bytes that all three pointers are multiples of.
template <class In, class Out>
ProductChoices::Product product_of(int64_t alignment, Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K,
                                   int64_t lda, int64_t ldb, int64_t ldc, bool accumulate, const Epilogue<Out>& e) {
    return {alignment,
            static_cast<int64_t>(ta),
            static_cast<int64_t>(tb),
            M,
            N,
            K,
            lda,
            ldb,
            ldc,
            accumulate,
            sizeof(In),
            sizeof(Out),
            e.bias != nullptr,
            e.before_gelu != nullptr,
            e.through_gelu != nullptr};
}

#ifdef __CUDACC__

inline void require_blas(cublasStatus_t status, const char* doing) {
    if (status != CUBLAS_STATUS_SUCCESS)
        throw RunFailure(std::string("cuBLASLt: ") + doing + ": " + cublasLtGetStatusString(status));
}

template <class X>
constexpr cudaDataType_t blas_type() {
    return std::is_same_v<X, bf16> ? CUDA_R_16BF : CUDA_R_32F;
}

// Deleters for cuBLASLt's descriptions, so that an exception leaves none behind.
template <class Handle, cublasStatus_t (*destroy)(Handle)>
struct BlasObject {
    Handle handle = nullptr;
    BlasObject() = default;
    BlasObject(const BlasObject&) = delete;
    BlasObject& operator=(const BlasObject&) = delete;
    ~BlasObject() {
        if (handle != nullptr) destroy(handle);
    }
};
using BlasDescription = BlasObject<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using BlasLayout = BlasObject<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using BlasPreference = BlasObject<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

// With `tf32`, operands in float lose 13 of their 23 bits on the way into the tensor cores; sums stay float.
class MatrixProducts {
  public:
    explicit MatrixProducts(bool tf32, std::shared_ptr<ProductChoices> choices = nullptr)
        : float_(tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F), choices_(std::move(choices)) {
        require_blas(cublasLtCreate(&handle_), "cannot be started");
        workspace_.allocate(int64_t{64} << 20);  // Hopper's fastest products ask for 32 MiB
    }
    MatrixProducts(const MatrixProducts&) = delete;
    MatrixProducts& operator=(const MatrixProducts&) = delete;
    ~MatrixProducts() { cublasLtDestroy(handle_); }

    // Whether it was done, epilogue included; false: cuBLASLt has no kernel for that epilogue.
    template <class In, class Out>
    bool multiply(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const In* A, int64_t lda, const In* B,
                  int64_t ldb, Out* C, int64_t ldc, bool accumulate, const Epilogue<Out>& epilogue,
                  cudaStream_t stream) {
        BlasDescription description;
        const cublasComputeType_t compute = std::is_same_v<In, float> ? float_ : CUBLAS_COMPUTE_32F;
        require_blas(cublasLtMatmulDescCreate(&description.handle, compute, CUDA_R_32F), "a product");
        const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
            require_blas(cublasLtMatmulDescSetAttribute(description.handle, attribute, &value, sizeof value),
                         "a product's description");
        };
        set(CUBLASLT_MATMUL_DESC_TRANSA, tb == Transpose::Yes ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_TRANSB, ta == Transpose::Yes ? CUBLAS_OP_T : CUBLAS_OP_N);
        if (!set_epilogue(set, epilogue, N)) return false;

        BlasLayout a, b, c;  // B takes the first place
        const bool a_transposed = ta == Transpose::Yes, b_transposed = tb == Transpose::Yes;
        create_layout<In>(a, b_transposed ? K : N, b_transposed ? N : K, ldb);
        create_layout<In>(b, a_transposed ? M : K, a_transposed ? K : M, lda);
        create_layout<Out>(c, N, M, ldc);

        // What all three pointers are aligned to: cuBLASLt assumes 16 bytes unless told. Odd shapes give less.
        uint32_t alignment = 16;
        for (const void* pointer :
             {static_cast<const void*>(A), static_cast<const void*>(B), static_cast<const void*>(C)})
            while (reinterpret_cast<uintptr_t>(pointer) % alignment != 0) alignment /= 2;
        const auto run = [&](const cublasLtMatmulAlgo_t& algorithm, Out* out) {
            const float one = 1, beta = accumulate ? 1 : 0;
            return cublasLtMatmul(handle_, description.handle, &one, B, a.handle, A, b.handle, &beta, C, c.handle, out,
                                  c.handle, &algorithm, workspace_.data(), static_cast<size_t>(workspace_.size()),
                                  stream);
        };
        const Product product = product_of<In>(alignment, ta, tb, M, N, K, lda, ldb, ldc, accumulate, epilogue);
        if (chosen_.count(product) == 0) {
            const auto guesses = [&](int most) {
                return heuristics(most, alignment, sums_in_float<Out>(), description, a, b, c);
            };
            chosen_[product] = choose<Out>(product, M * ldc, guesses, run);
        }
        const std::optional<cublasLtMatmulAlgo_t>& algorithm = chosen_[product];
        if (!algorithm && !has_epilogue(epilogue)) throw RunFailure("cuBLASLt has no kernel for a product");
        if (!algorithm) return false;
        require_blas(run(*algorithm, C), "a product failed");
        return true;
    }

  private:
    using Product = ProductChoices::Product;
    cublasComputeType_t float_;  // how products of float operands compute
    std::shared_ptr<ProductChoices> choices_;
    cublasLtHandle_t handle_ = nullptr;
    DeviceArray<char> workspace_;
    std::map<Product, std::optional<cublasLtMatmulAlgo_t>> chosen_;

    template <class Out>
    static bool has_epilogue(const Epilogue<Out>& e) {
        return e.bias != nullptr || e.before_gelu != nullptr || e.through_gelu != nullptr;
    }

    // False if cuBLASLt cannot even be asked: it wants the pre-activations in rows of a multiple of 8, and a choice that
    // is remembered must suit the next bias too, so every bias lies on 16 bytes. In float our own kernels apply GELU:
    // cuBLASLt does not say how exactly it would, and --precision fp32 is there to be exact.
    template <class Set, class Out>
    static bool set_epilogue(const Set& set, const Epilogue<Out>& e, int64_t N) {
        const bool aux = e.before_gelu != nullptr || e.through_gelu != nullptr;
        if (aux && (N % 8 != 0 || std::is_same_v<Out, float>)) return false;
        if (reinterpret_cast<uintptr_t>(e.bias) % 16 != 0) return false;
        const auto gelu = e.bias != nullptr ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, e.before_gelu != nullptr    ? gelu
                                           : e.through_gelu != nullptr ? CUBLASLT_EPILOGUE_DGELU
                                           : e.bias != nullptr         ? CUBLASLT_EPILOGUE_BIAS
                                                                       : CUBLASLT_EPILOGUE_DEFAULT);
        if (e.bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(e.bias));
        if (!aux) return true;
        const void* saved = e.before_gelu != nullptr ? e.before_gelu : e.through_gelu;
        set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, saved);
        set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, N);
        return true;
    }

    template <class X>
    static void create_layout(BlasLayout& layout, int64_t rows, int64_t columns, int64_t ld) {
        require_blas(cublasLtMatrixLayoutCreate(&layout.handle, blas_type<X>(), static_cast<uint64_t>(rows),
                                                static_cast<uint64_t>(columns), ld),
                     "a matrix's description");
    }

    // How a product that is cut along K may add up its parts: in float. What cuBLASLt calls "in place" and "output type"
    // adds them in the type of C, which for bf16 loses what float sums are for.
    template <class Out>
    static constexpr uint32_t sums_in_float() {
        return std::is_same_v<Out, float> ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    }

    // The kernel for a product whose result takes `size` values: as the file has it; or the fastest of eight, if they are to be
    // timed; or cuBLASLt's own first guess. Remembered, because asking takes longer than launching.
    template <class Out, class Guesses, class Run>
    std::optional<cublasLtMatmulAlgo_t> choose(const Product& product, int64_t size, const Guesses& guesses,
                                               const Run& run) {
        if (choices_ != nullptr && choices_->find(product) != nullptr) {
            cublasLtMatmulAlgo_t algorithm;
            std::copy_n(choices_->find(product)->begin(), 8, algorithm.data);
            return algorithm;
        }
        const bool timed = choices_ != nullptr && choices_->times_anew;
        const std::vector<cublasLtMatmulAlgo_t> candidates = guesses(timed ? 8 : 1);
        if (candidates.empty()) return std::nullopt;
        if (!timed) return candidates[0];
        return fastest<Out>(product, size, candidates, run);
    }

    // Results go elsewhere meanwhile: what a product is added to must stay as it is.
    template <class Out, class Run>
    cublasLtMatmulAlgo_t fastest(const Product& product, int64_t size,
                                 const std::vector<cublasLtMatmulAlgo_t>& candidates, const Run& run) {
        const DeviceArray<Out> elsewhere(size);
        DeviceClock clock;
        const cublasLtMatmulAlgo_t* best = &candidates[0];
        double least = INFINITY;
        for (const cublasLtMatmulAlgo_t& candidate : candidates) {
            if (run(candidate, elsewhere.data()) != CUBLAS_STATUS_SUCCESS) continue;
            const auto once = [&] { require_blas(run(candidate, elsewhere.data()), "a product failed"); };
            const double seconds = clock.seconds_of(once, {1, 5, 5});
            if (seconds >= least) continue;
            least = seconds;
            best = &candidate;
        }
        ProductChoices::Algorithm words;
        std::copy_n(best->data, 8, words.begin());
        choices_->enter(product, words, least * 1e6);
        return *best;
    }

    // cuBLASLt's first guesses, `most` at most; none if it has no kernel for this.
    std::vector<cublasLtMatmulAlgo_t> heuristics(int most, uint32_t alignment, uint32_t reductions,
                                                 const BlasDescription& description, const BlasLayout& a,
                                                 const BlasLayout& b, const BlasLayout& c) {
        BlasPreference preference;
        require_blas(cublasLtMatmulPreferenceCreate(&preference.handle), "a preference");
        const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
            require_blas(cublasLtMatmulPreferenceSetAttribute(preference.handle, attribute, &value, sizeof value),
                         "a preference");
        };
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<size_t>(workspace_.size()));
        prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
        for (const auto attribute :
             {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
              CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
            prefer(attribute, alignment);
        std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
        int found = 0;
        const cublasStatus_t status =
            cublasLtMatmulAlgoGetHeuristic(handle_, description.handle, a.handle, b.handle, c.handle, c.handle,
                                           preference.handle, most, results.data(), &found);
        std::vector<cublasLtMatmulAlgo_t> algorithms;
        if (status != CUBLAS_STATUS_SUCCESS) return algorithms;
        for (int i = 0; i < found; i++) algorithms.push_back(results[static_cast<size_t>(i)].algo);
        return algorithms;
    }
};

#else

// In emulation the reference multiplies; epilogues are always left to our kernels, which tests them. A tensor core does not
// see the 13 lowest bits of a float.
class MatrixProducts {
  public:
    explicit MatrixProducts(bool tf32, std::shared_ptr<ProductChoices> choices = nullptr)
        : tf32_(tf32), choices_(std::move(choices)) {}

    template <class In, class Out>
    bool multiply(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const In* A, int64_t lda, const In* B,
                  int64_t ldb, Out* C, int64_t ldc, bool accumulate, const Epilogue<Out>& epilogue, cudaStream_t) {
        if (epilogue.bias != nullptr || epilogue.before_gelu != nullptr || epilogue.through_gelu != nullptr)
            return false;
        const auto product = product_of<In>(16, ta, tb, M, N, K, lda, ldb, ldc, accumulate, epilogue);
        if (choices_ != nullptr && choices_->times_anew) choices_->enter(product, {}, 0);
        emulation::do_or_record([=] {
            emulation::note_done("product");
            multiply_now(ta, tb, M, N, K, A, lda, B, ldb, C, ldc, accumulate);
        });
        return true;
    }

  private:
    bool tf32_;
    std::shared_ptr<ProductChoices> choices_;

    template <class In, class Out>
    void multiply_now(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const In* A, int64_t lda,
                      const In* B, int64_t ldb, Out* C, int64_t ldc, bool accumulate) const {
        const std::vector<float> a = floats(A, ta == Transpose::Yes ? K : M, ta == Transpose::Yes ? M : K, lda);
        const std::vector<float> b = floats(B, tb == Transpose::Yes ? N : K, tb == Transpose::Yes ? K : N, ldb);
        std::vector<float> c(static_cast<size_t>(M * N));
        operations().matmul(ta, tb, M, N, K, a.data(), ta == Transpose::Yes ? M : K, b.data(),
                            tb == Transpose::Yes ? K : N, c.data(), N, false, nullptr);
        for (int64_t i = 0; i < M; i++)
            for (int64_t j = 0; j < N; j++) {
                Out& out = C[i * ldc + j];
                out = from_float<Out>(c[static_cast<size_t>(i * N + j)] + (accumulate ? to_float(out) : 0.0f));
            }
    }
    template <class X>
    std::vector<float> floats(const X* x, int64_t rows, int64_t columns, int64_t ld) const {
        std::vector<float> out(static_cast<size_t>(rows * columns));
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) {
                const float value = to_float(x[r * ld + c]);
                out[static_cast<size_t>(r * columns + c)] = tf32_ ? without_low_bits(value) : value;
            }
        return out;
    }
    static float without_low_bits(float value) {
        uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof bits);
        bits &= 0xffffe000u;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
};

#endif

#ifndef LNFREE_KERNELS_ONLY
// =====================================================================================================================
// 4. The model on the device
// =====================================================================================================================
//
// The same passes as the reference's, in the same order, with three differences. A block's output is added to the
// stream by the norm that reads it next (residual_norm_forward). What backward needs of norms and GELU may be kept instead
// of remade (--recompute). And the stream's gradient, like all activations, is of type X, while gradients of parameters
// are float whatever X is.

// How much backward remakes: 0 nothing, 1 GELU's output, 2 the norms' outputs as well.
constexpr int kMostRecompute = 2;

// Bytes of memory that hold n values, so that what follows begins on 256 bytes.
template <class T>
int64_t padded_bytes(int64_t n) {
    return ceil_div(n * static_cast<int64_t>(sizeof(T)), 256) * 256;
}

// What a micro-batch leaves in the device's memory: one arena, laid out by lay_out, which also tells its size.
template <class X>
struct DeviceActivations {
    struct Layer {
        X *residual, *residual_mid;  // (B,T,C) stream before attention, and before the MLP
        X *normed1, *normed2;        // (B,T,C); scratch of all layers with recompute 2
        X *qkv, *att;                // (B,T,Q), (B,T,A): 3C and C in a GPT-2
        X *fc, *hidden;  // (B,T,F), (B,T,n_inner) before and after GELU; hidden is scratch with recompute 1 and 2
        float* lse;      // (B,NH,T)
    };
    std::vector<Layer> layers;
    float *mean, *sigma;                        // (2L+1,N): ln_1 and ln_2 of every layer, then ln_f
    X *final_residual, *normedf;                // (B,T,C); a folded model's are one, as are all its normed and streams
    X* normed_v;                                // (B,T,C) the values' input, while a layer's qk and v differ
    X* branch;                                  // (B,T,C)
    X* logits;                                  // (rows_per_chunk,Vp)
    X *dresidual, *dnormed, *dnormed_v, *datt;  // (B,T,C), the last (B,T,A)
    X *dqkv, *dhidden, *dfc;                // (B,T,Q), (B,T,n_inner), (B,T,F); the last two are one where F = n_inner
    float *delta, *losses, *kls, *scratch;  // (B,NH,T), (B,T), (B,T) with a teacher, partial sums
    uint8_t* agreements;                    // (B,T) beside another model
    double* statistics;                     // (2L+1,2) sums of sigma, then of the losses, then of kls
    AuxTerm* aux;                           // (2L+1), of which the last alone is used unless asked for all
    GradientNorm* norm;
    int32_t *tokens, *targets, *sorted;  // (B,T), (B,T), see sort_positions
    int64_t rows_per_chunk = 0, Vp = 0;
    int64_t stride = 0;  // floats from one row of mean and sigma to the next

    // Bytes needed for B sequences of T positions; with `base` also sets the pointers.
    int64_t lay_out(char* base, const ModelConfig& c, int64_t B, int64_t T, bool training, int recompute) {
        int64_t used = 0;
        const auto take = [&](auto*& pointer, int64_t n) {
            using T_ = std::remove_reference_t<decltype(*pointer)>;
            pointer = base == nullptr ? nullptr : reinterpret_cast<T_*>(base + used);
            used += padded_bytes<T_>(n);
        };
        const int64_t N = B * T, NC = N * c.C, NH = N * c.n_inner, sites = 2 * c.L + 1;
        const int64_t Q = c.qkv_width(), A = c.heads_width(), F = c.fc_width();
        const bool norms = c.has_norms();  // without them the products read the stream itself
        layers.resize(static_cast<size_t>(c.L));
        for (int64_t l = 0; l < c.L; l++) {
            Layer &y = layers[static_cast<size_t>(l)], &first = layers[0];
            if (!training && l > 0) {
                y = first;
                continue;
            }
            take(y.residual, NC);
            take(y.residual_mid, NC);
            take(y.qkv, N * Q);
            take(y.att, N * A);
            take(y.fc, N * F);
            take(y.lse, N * c.NH);
            const bool keeps_norms = norms && (recompute < 2 || l == 0), keeps_hidden = recompute < 1 || l == 0;
            if (keeps_norms) take(y.normed1, NC);
            if (keeps_norms) take(y.normed2, NC);
            if (keeps_hidden) take(y.hidden, NH);
            if (!keeps_norms) y.normed1 = norms ? first.normed1 : y.residual;
            if (!keeps_norms) y.normed2 = norms ? first.normed2 : c.parallel ? y.residual : y.residual_mid;
            if (!keeps_hidden) y.hidden = first.hidden;
        }
        stride = ceil_div(N, 64) * 64;
        take(mean, sites * stride);
        take(sigma, sites * stride);
        take(final_residual, NC);
        normedf = final_residual;
        if (norms) take(normedf, NC);
        if (norms) take(normed_v, NC);
        take(branch, NC);
        Vp = padded_vocabulary(c.V);
        rows_per_chunk = logits_rows<X>(N, c.V);
        take(logits, rows_per_chunk * Vp);
        take(losses, N);
        take(kls, N);
        take(agreements, N);
        take(statistics, 2 * sites + 2);
        take(aux, 2 * c.L + 1);
        take(norm, 1);
        take(tokens, N);
        take(targets, N);
        if (!training) return used;
        take(sorted, sorted_positions_size(N));
        take(dresidual, NC);
        dnormed = dresidual;
        if (norms) take(dnormed, NC);
        if (norms) take(dnormed_v, NC);
        take(datt, N * A);
        take(dqkv, N * Q);
        take(dhidden, NH);
        dfc = dhidden;
        if (c.gated()) take(dfc, N * F);
        take(delta, N * c.NH);
        int64_t floats = std::max({encoder_backward_scratch(N, c.C), norm_backward_scratch(N, c.C),
                                   column_sums_scratch(N, std::max(Q, F)), 2 * global_norm_scratch()});
        if (!norms)  // of the unembedding's bias; the last chunk of logits has fewer rows
            floats = std::max({floats, column_sums_scratch(rows_per_chunk, c.V),
                               column_sums_scratch((N - 1) % rows_per_chunk + 1, c.V)});
        take(scratch, floats);
        return used;
    }
};

// Bytes of weights, gradients and moments: float, and a copy of the weights in X if that is another type.
static int64_t state_bytes(int64_t parameters, bool training, bool in_bf16) {
    return parameters * ((training ? 16 : 4) + (in_bf16 ? 2 : 0));
}

int64_t device_bytes(const ModelConfig& c, int64_t B, int64_t T, bool training, bool in_bf16, int recompute) {
    const int64_t parameters = parameter_count(tensor_table(c));
    const int64_t activations = in_bf16 ? DeviceActivations<bf16>().lay_out(nullptr, c, B, T, training, recompute)
                                        : DeviceActivations<float>().lay_out(nullptr, c, B, T, training, recompute);
    const int64_t turns = c.n_ctx * c.rotary * static_cast<int64_t>(sizeof(float));
    return state_bytes(parameters, training, in_bf16) + activations + turns + (int64_t{64} << 20);
}

// All work goes to one stream: a teacher's kernels run in order with its student's.
inline cudaStream_t the_stream() {
    static const cudaStream_t stream = [] {
        cudaStream_t made = nullptr;
        require_cuda(cudaStreamCreate(&made), "cudaStreamCreate");
        return made;
    }();
    return stream;
}

// out (rows,width) of the host, from rows in another type that lie `stride` apart.
template <class Out, class In>
void convert_on_host(Out* out, const In* in, int64_t rows, int64_t width, int64_t stride) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) out[r * width + i] = from_float<Out>(to_float(in[r * stride + i]));
}

// What AdamW works on where low-rank updates are trained (LowRank in dev/engine.h): as in the reference, but that the
// gradients of A and B follow from the weights' once, when those of all micro-batches have been added up.
class DeviceLowRank {
  public:
    // Room for what `host` trains of these tensors, and its values.
    void start(const std::vector<Tensor>& tensors, const LowRank& host, cudaStream_t stream) {
        R_ = host.R;
        const int64_t n = parameter_count(host.table);
        for (DeviceArray<float>* array : {&values_, &before_, &grads_}) array->allocate(n);
        const auto at = [&](const std::string& name) {
            for (const Tensor& t : host.table)
                if (t.name == name) return t.offset;
            return int64_t{-1};
        };
        for (const Tensor& t : tensors) {
            const int64_t A = at(t.name + ".lora_A"), copy = at(t.name);
            if (A >= 0)
                matrices_.push_back({t.offset, static_cast<int64_t>(t.shape[0]), static_cast<int64_t>(t.shape[1]), A,
                                     at(t.name + ".lora_B")});
            if (copy >= 0) copies_.push_back({t.offset, t.size, copy});
        }
        upload(host, stream);
    }
    void upload(const LowRank& host, cudaStream_t stream) const {
        values_.upload(host.values.data(), values_.size(), stream);
    }
    void fetch(LowRank& host, cudaStream_t stream) const {
        values_.download(host.values.data(), values_.size(), stream);
    }
    bool is_trained() const { return R_ > 0; }
    float* values() const { return values_.data(); }
    float* grads() const { return grads_.data(); }

    // The gradients, from those of all weights.
    void follow_gradients(const float* dW, cudaStream_t stream) const {
        for (const OfMatrix& u : matrices_) {
            const float* const d = dW + u.W;
            thin_product(grads() + u.A, false, {d, nullptr, u.M, 1}, {values() + u.B, nullptr, u.M, 1}, u.K, R_, u.M,
                         stream);
            thin_product(grads() + u.B, false, {values() + u.A, nullptr, 1, R_}, {d, nullptr, 1, u.M}, R_, u.M, u.K,
                         stream);
        }
        for (const OfCopy& c : copies_) copy(grads() + c.at, dW + c.W, c.n, stream);
    }
    // What is trained as it is, from weights that were changed by hand.
    void follow_weights(const float* W, cudaStream_t stream) const {
        for (const OfCopy& c : copies_) copy(values() + c.at, W + c.W, c.n, stream);
    }
    // Before an update of the values.
    void remember(cudaStream_t stream) const { copy(before_.data(), values(), values_.size(), stream); }
    // After it: what it does to the weights W.
    void add_update(float* W, cudaStream_t stream) const {
        const float* const before = before_.data();
        for (const OfMatrix& u : matrices_) {
            const ThinOperand dA = {values() + u.A, before + u.A, R_, 1}, A = {before + u.A, nullptr, R_, 1};
            const ThinOperand dB = {values() + u.B, before + u.B, 1, u.M}, B = {values() + u.B, nullptr, 1, u.M};
            thin_product(W + u.W, true, dA, B, u.K, u.M, R_, stream);
            thin_product(W + u.W, true, A, dB, u.K, u.M, R_, stream);
        }
        for (const OfCopy& c : copies_) copy(W + c.W, values() + c.at, c.n, stream);
    }

  private:
    // Where W (K,M) begins among all weights, and A (K,R) and B (R,M) among the values; what is trained as it is.
    struct OfMatrix {
        int64_t W, K, M, A, B;
    };
    struct OfCopy {
        int64_t W, n, at;
    };
    int64_t R_ = 0;
    std::vector<OfMatrix> matrices_;
    std::vector<OfCopy> copies_;
    DeviceArray<float> values_, before_, grads_;

    static void copy(float* to, const float* from, int64_t n, cudaStream_t stream) {
        const size_t bytes = static_cast<size_t>(n) * sizeof(float);
        require_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copying on the GPU");
    }
};

using SeeGradient = std::function<void(int64_t layer, const float* gradient)>;

// A model's state and passes, whatever X is.
class DeviceModel {
  public:
    virtual ~DeviceModel() = default;
    // Room for gradients, moments, and micro-batches of B sequences of T positions (0: not yet).
    virtual void prepare_training(int64_t B, int64_t T) = 0;
    virtual BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                                       const AuxSettings& aux, int64_t grad_accum, double share,
                                       DeviceModel* teacher) = 0;
    virtual void compare(float* losses, float* kls, uint8_t* agreements, DeviceModel& original, const int32_t* inputs,
                         const int32_t* targets, int64_t B, int64_t T) = 0;
    virtual void measure_sigmas(const int32_t* inputs, int64_t B, int64_t T) = 0;
    virtual void token_losses(float* losses, const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) = 0;
    virtual void logits(float* out, const int32_t* inputs, int64_t B, int64_t T, int64_t from) = 0;
    virtual void start_decoding(int64_t B) = 0;
    virtual void decode(float* out, const int32_t* tokens, int64_t B, int64_t T) = 0;
    // For analyses, as in dev/engine.h.
    virtual void trace(const int32_t* inputs, int64_t B, int64_t T, const Probe& probe, bool keep) = 0;
    virtual void trace_from(int64_t layer, const float* residual, const int32_t* inputs, int64_t B, int64_t T) = 0;
    virtual void final_logits(float* out, int64_t first, int64_t count) = 0;
    virtual void score(float* losses, uint8_t* likeliest, const int32_t* inputs, int64_t B, int64_t T,
                       const std::vector<int64_t>& rows, const int32_t* targets) = 0;
    virtual const float* final_residual() = 0;
    virtual const float* final_normed() = 0;
    virtual const float* final_means() = 0;
    virtual const float* final_divisors(const int32_t* inputs) = 0;
    virtual const float* sigmas_at(const Site& site) = 0;
    virtual void stream_gradients(const float* dnormed, const int32_t* inputs, const SeeGradient& see) = 0;
    virtual void unembed_residual(float* out, const float* residual, int64_t n) = 0;
    virtual void zero_gradients() = 0;
    virtual double gradient_norm() = 0;
    virtual void update(const AdamWConstants& step, double gradient_scale, std::optional<uint64_t> stochastic_key) = 0;
    virtual void round_weights(uint64_t stochastic_key) = 0;
    virtual void edit_parameters(Slice slice, double factor, const float* added) = 0;
    virtual void upload_parameters(const float* from) = 0;
    virtual void upload_moments(const float* m, const float* v) = 0;
    virtual void fetch_moments(float* m, float* v) = 0;
    virtual void fetch_parameters(float* to) = 0;
    virtual void fetch_gradients(float* to) = 0;
};

template <class X>
class DeviceModelOf : public DeviceModel {
  public:
    // `host` has the parameters, the sites and their sums, and must outlive this.
    DeviceModelOf(Engine& host, const DeviceOptions& options)
        : host_(host),
          c_(host.config),
          products_(options.in_tf32, options.choices),
          wished_recompute_(static_cast<int>(options.recompute)),
          attention_(attention_kernels<X>(options.attention)),
          with_graphs_(options.cuda_graphs) {
        master_.allocate(host.parameters());
        w_ = WeightsOf<float>(master_.data(), host.tensors, c_);
        if constexpr (std::is_same_v<X, float>) {
            x_ = w_;
        } else {
            copy_.allocate(host.parameters());
            x_ = WeightsOf<X>(copy_.data(), host.tensors, c_);
        }
        const std::vector<real> turns = rotary_turns(c_);
        turns_.allocate(static_cast<int64_t>(turns.size()));
        turns_.upload(turns.data(), turns_.size(), stream_);
        upload(host.params.data());
    }
    void prepare_training(int64_t B, int64_t T) override {
        prepare_gradients();
        if (m_.size() == 0)
            for (DeviceArray<float>* array : {&m_, &v_}) {
                array->allocate(part_.size());
                array->zero(stream_);
            }
        if (B * T > 0) reserve(B, T, true);
    }

    BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                               const AuxSettings& aux, int64_t grad_accum, double share,
                               DeviceModel* teacher) override {
        prepare_training(B, T);
        upload_tokens(inputs, targets);
        with_aux_everywhere_ = aux.everywhere;
        gradients_are_zero_ = false;
        const Teaching teaching = taught_by(teacher, share, inputs);
        const auto pass = [&] { forward_and_backward(aux, grad_accum, teaching); };
        const bool is_last_pass = ++passes_ == processes().share(grad_accum).size();
        sum_blocks_ = is_last_pass && !with_graphs_ && !low_rank_.is_trained();  // a graph is of all passes
        if (with_graphs_)
            recorded_.run(frozen_in_a_pass(aux, grad_accum, teaching), stream_, pass);
        else
            pass();
        // The GPU is busy now; the encoder's backward pass, which wants the positions by token, comes last.
        const int64_t count = sorted_positions_size(N());
        int32_t* sorted = pinned_sorted_.reserve(count);
        sort_positions(sorted, inputs, N(), c_.V);
        copy_to_device(a_.sorted, sorted, count);
        encoder_backward(d_.wte, d_.wpe, a_.scratch, a_.dresidual, a_.sorted, B_, T_, c_.C, stream_);
        return collect();
    }

    void measure_sigmas(const int32_t* inputs, int64_t B, int64_t T) override {
        reserve(B, T, false);
        upload_tokens(inputs, nullptr);
        run_blocks();
        sigma_statistics(a_.statistics, a_.sigma, a_.stride, 2 * c_.L + 1, B, T, stream_);
        collect_sigma_sums();
    }

    void token_losses(float* losses, const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) override {
        reserve(B, T, false);
        upload_tokens(inputs, targets);
        run_blocks();
        classify(0, {});
        copy_from_device(losses, a_.losses, N());
    }

    void compare(float* losses, float* kls, uint8_t* agreements, DeviceModel& original, const int32_t* inputs,
                 const int32_t* targets, int64_t B, int64_t T) override {
        reserve(B, T, false);
        upload_tokens(inputs, targets);
        const Teaching teaching = taught_by(&original, 1, inputs);
        run_blocks();
        teaching.teacher->run_blocks();
        classify(0, teaching);
        copy_from_device(losses, a_.losses, N());
        copy_from_device(kls, a_.kls, N());
        copy_from_device(agreements, a_.agreements, N());
    }

    void logits(float* out, const int32_t* inputs, int64_t B, int64_t T, int64_t from) override {
        reserve(B, T, false);
        upload_tokens(inputs, nullptr);
        run_blocks();
        for (int64_t b = 0; b < B; b++) fetch_logits(out + b * (T - from) * c_.V, b * T + from, T - from);
    }

    void start_decoding(int64_t B) override {
        cache_.allocate(c_.L * B * c_.n_ctx * (heads_.row() - heads_.width()));
        decoded_ = 0;
    }
    void decode(float* out, const int32_t* tokens, int64_t B, int64_t T) override {
        reserve(B, T, false);
        upload_tokens(tokens, nullptr);
        decoding_ = true;
        run_blocks();
        decoding_ = false;
        decoded_ += T;
        if (T == 1) return fetch_logits(out, 0, B);
        for (int64_t b = 0; b < B; b++) fetch_logits(out + b * c_.V, (b + 1) * T - 1, 1);
    }

    // ----- for analyses: what a probe asks for is copied, layer by layer, and nothing else

    void trace(const int32_t* inputs, int64_t B, int64_t T, const Probe& probe, bool keep) override {
        reserve(B, T, keep);
        upload_tokens(inputs, nullptr);
        run_blocks(probe);
    }
    void trace_from(int64_t layer, const float* residual, const int32_t* inputs, int64_t B, int64_t T) override {
        reserve(B, T, false);
        upload_tokens(inputs, nullptr);
        put(stream_at(layer), residual, N(), c_.C);
        run_blocks_from(layer);
    }
    void final_logits(float* out, int64_t first, int64_t count) override { fetch_logits(out, first, count); }
    void score(float* losses, uint8_t* likeliest, const int32_t* inputs, int64_t B, int64_t T,
               const std::vector<int64_t>& rows, const int32_t* targets) override {
        reserve(B, T, false);
        upload_tokens(inputs, nullptr);
        run_blocks();
        const std::vector<int32_t> all(rows.begin(), rows.end());
        const int64_t n = static_cast<int64_t>(all.size());
        for (int64_t first = 0; first < n; first += a_.rows_per_chunk) {
            const int64_t count = std::min(a_.rows_per_chunk, n - first);
            copy_to_device(a_.tokens, all.data() + first, count);  // the blocks are done with the tokens
            copy_to_device(a_.targets, targets + first, count);
            gather_rows(a_.branch, a_.normedf, a_.tokens, count, c_.C, stream_);
            unembed(a_.branch, count);
            is_likeliest(a_.agreements, a_.logits, a_.targets, count, c_.V, a_.Vp, stream_);
            classifier(a_.logits, a_.losses, a_.targets, 0.0f, false, count, c_.V, a_.Vp, stream_);
            copy_from_device(losses + first, a_.losses, count);
            copy_from_device(likeliest + first, a_.agreements, count);
        }
    }
    const float* final_residual() override { return seen(last_.residual, a_.final_residual); }
    const float* final_normed() override { return seen(last_.normed, a_.normedf); }
    const float* final_means() override { return seen_moments(last_.means, a_.mean) + 2 * c_.L * a_.stride; }
    const float* final_divisors(const int32_t* inputs) override {
        const Site& f = host_.sites.f();
        if (f.has_layer_norm()) return sigmas_at(f);
        last_.divisors.assign(static_cast<size_t>(N()), 1);
        if (!f.folded)
            operations().norm_divisors(last_.divisors.data(), f, sigmas_at(f), inputs, c_.end_of_text, B_, T_);
        return last_.divisors.data();
    }
    const float* sigmas_at(const Site& site) override {
        return seen_moments(last_.sigmas, a_.sigma) + norm_index(site) * a_.stride;
    }
    void stream_gradients(const float* dnormed, const int32_t*, const SeeGradient& see) override {
        if (!training_) throw RunFailure("an analysis asks for gradients of a pass that was not kept");
        prepare_gradients();
        gradients_are_zero_ = false;
        const size_t bytes = static_cast<size_t>(2 * c_.L + 1) * sizeof(AuxTerm);
        require_cuda(cudaMemsetAsync(a_.aux, 0, bytes, stream_), "clearing memory");  // there is no auxiliary loss
        put(a_.dnormed, dnormed, N(), c_.C);
        backward(see);
    }
    void unembed_residual(float* out, const float* residual, int64_t n) override {
        const std::vector<int32_t> no_tokens(static_cast<size_t>(n), -1);
        trace_from(c_.L, residual, no_tokens.data(), n, 1);
        fetch_logits(out, 0, n);
    }

    void zero_gradients() override {
        prepare_training(0, 0);
        if (!gradients_are_zero_) grads_.zero(stream_);
        gradients_are_zero_ = true;
        passes_ = 0;
        sum_blocks_ = false;
    }

    // After a micro-batch: the arena must be there. Of several processes (dev/processes.h) each sums its part of the gradients,
    // updates its part of the parameters, and gives that to the others.
    double gradient_norm() override {
        if (low_rank_.is_trained())
            sum_low_rank();
        else
            sum_all_weights();
        sums_.finish(stream_);
        GradientNorm norm{};
        if (part_.size() > 0) {
            global_norm(a_.norm, reinterpret_cast<double*>(a_.scratch), trained_grads() + part_.first, part_.size(),
                        INFINITY, stream_);
            copy_from_device(&norm, a_.norm, 1);
        }
        return norm_over_processes(norm.norm);
    }

    // Gradients are multiplied by gradient_scale (clipping), and are 0 afterwards.
    void update(const AdamWConstants& step, double gradient_scale, std::optional<uint64_t> stochastic_key) override {
        const GradientNorm clipping{NAN, static_cast<float>(gradient_scale)};
        copy_to_device(a_.norm, &clipping, 1);
        const bool of_weights = !low_rank_.is_trained();
        X* copy = nullptr;
        if constexpr (!std::is_same_v<X, float>) copy = of_weights ? copy_.data() + part_.first : nullptr;
        if (!of_weights) low_rank_.remember(stream_);
        if (part_.size() > 0)
            adamw<X>(trained() + part_.first, trained_grads() + part_.first, m_.data(), v_.data(), copy, a_.norm,
                     ranges_.data(), ranges_.size(), part_.size(), step, stochastic_key, stream_);
        share_over_processes(trained(), host_.trained_numbers(), stream_);
        if (!of_weights) {
            low_rank_.add_update(master_.data(), stream_);
            refresh_copies(stochastic_key);
        } else if constexpr (!std::is_same_v<X, float>) {
            share_over_processes(copy_.data(), copy_.size(), stream_);
        }
        gradients_are_zero_ = of_weights && part_.size() == grads_.size();
        passes_ = 0;
    }
    // The copies as the update of this key left them.
    void round_weights(uint64_t stochastic_key) override {
        prepare_gradients();
        if (low_rank_.is_trained()) return refresh_copies(stochastic_key);
        if constexpr (!std::is_same_v<X, float>) {
            if (part_.size() > 0)
                round_stochastically(copy_.data() + part_.first, master_.data() + part_.first, part_.size(),
                                     stochastic_key, stream_);
            share_over_processes(copy_.data(), copy_.size(), stream_);
        }
    }
    // Few, and rarely: by way of the host, with all that lies between them.
    void edit_parameters(Slice slice, double factor, const float* added) override {
        const int64_t first = slice.first, span = (slice.n - 1) * slice.stride + 1;
        std::vector<float> x(static_cast<size_t>(span));
        copy_from_device(x.data(), master_.data() + first, span);
        Slice{0, slice.n, slice.stride}.edit(x.data(), factor, added);
        copy_to_device(master_.data() + first, x.data(), span);
        if constexpr (!std::is_same_v<X, float>) convert(copy_.data() + first, master_.data() + first, span, stream_);
        if (low_rank_.is_trained()) low_rank_.follow_weights(master_.data(), stream_);
        require_cuda(cudaStreamSynchronize(stream_), "changing some parameters");
    }
    void upload_parameters(const float* from) override { upload(from); }
    void upload_moments(const float* m, const float* v) override {
        prepare_training(0, 0);
        if (low_rank_.is_trained()) low_rank_.upload(host_.low_rank, stream_);
        m_.upload(m + part_.first, m_.size(), stream_);
        v_.upload(v + part_.first, v_.size(), stream_);
    }
    void fetch_moments(float* m, float* v) override {
        m_.download(m + part_.first, m_.size(), stream_);
        v_.download(v + part_.first, v_.size(), stream_);
        for (float* moments : {m, v}) first_has_all(moments, host_.trained_numbers());  // it writes them
    }

    void fetch_parameters(float* to) override {
        master_.download(to, master_.size(), stream_);
        if (low_rank_.is_trained()) low_rank_.fetch(host_.low_rank, stream_);
    }
    void fetch_gradients(float* to) override { grads_.download(to, grads_.size(), stream_); }

  private:
    using Layer = typename DeviceActivations<X>::Layer;

    Engine& host_;
    const ModelConfig& c_;
    const Heads heads_{c_.NH, c_.key_heads(), c_.head_size()};
    Range part_;  // of what is trained, that this process updates
    MatrixProducts products_;
    DeviceArray<float> master_, grads_, m_, v_;
    bool gradients_are_zero_ = false;  // AdamW leaves them so
    DeviceLowRank low_rank_;
    GradientSums sums_;
    int64_t passes_ = 0;       // since they were zero
    bool sum_blocks_ = false;  // backward gives every block's gradients away as soon as they are complete, or has
    DeviceArray<X> copy_;
    DeviceArray<TensorRange> ranges_;
    DeviceArray<float> turns_;  // (n_ctx,R/2,2) of rotary positions
    WeightsOf<float> w_, d_;    // norms' parameters are read from the masters
    WeightsOf<X> x_;            // all else
    cudaStream_t stream_ = the_stream();
    DeviceArray<char> arena_;
    DeviceActivations<X> a_;
    int64_t B_ = 0, T_ = 0;
    bool training_ = false;
    int64_t layouts_ = 0;  // times that the arena has been laid out
    int wished_recompute_, recompute_ = 0;
    AttentionKernels<X> attention_;
    bool with_graphs_, with_aux_everywhere_ = false;
    RecordedWork recorded_;
    PinnedArray<int32_t> pinned_tokens_, pinned_sorted_;
    DeviceArray<X> cache_;  // (L,B,n_ctx,Q-A) keys and values of the positions that were decoded
    int64_t decoded_ = 0;   // so many of each sequence
    bool decoding_ = false;
    PinnedArray<X> staging_;                   // what is on its way to or from the host
    std::array<std::vector<float>, 3> shown_;  // to a probe
    struct {
        std::vector<float> residual, normed, means, divisors, sigmas;
    } last_;                     // what was asked about the last pass, in the host's memory; empty: not yet
    bool stream_alone_ = false;  // backward leaves gradients of weights out

    int64_t N() const { return B_ * T_; }
    bool has_norms() const { return c_.has_norms(); }
    float* mean(int64_t site) const { return a_.mean + site * a_.stride; }
    float* sigma(int64_t site) const { return a_.sigma + site * a_.stride; }
    // Where a site's moments lie among those of all norms.
    int64_t norm_index(const Site& site) const {
        return site.kind == SiteKind::f ? 2 * c_.L : 2 * site.layer + (site.kind == SiteKind::mlp ? 1 : 0);
    }
    // What the auxiliary loss adds at a norm's input, null where it does not act.
    const AuxTerm* aux_at(int64_t site) const {
        return with_aux_everywhere_ || site == 2 * c_.L ? a_.aux + site : nullptr;
    }
    Divisor divisor(const Site& site) const {
        Divisor d = divisor_of(site, a_.tokens, c_.end_of_text, T_);
        if (first_position() > 0) d.own_position0 = false;  // position 0 is not among these
        return d;
    }
    int64_t first_position() const { return decoding_ ? decoded_ : 0; }
    const Site& qk(int64_t l) const { return host_.sites.qk(l); }
    const Site& v(int64_t l) const { return host_.sites.v(l); }
    const Site& mlp(int64_t l) const { return host_.sites.mlp(l); }

    // ----- memory

    void prepare_gradients() {
        if (grads_.size() > 0) return;
        grads_.allocate(host_.parameters());
        grads_.zero(stream_);
        gradients_are_zero_ = true;
        d_ = WeightsOf<float>(grads_.data(), host_.tensors, c_);
        if (host_.low_rank.R > 0) low_rank_.start(host_.tensors, host_.low_rank, stream_);
        part_ = processes().part(host_.trained_numbers());
        std::vector<TensorRange> ranges;
        for (const Tensor& t : host_.trained()) {
            const Range mine = common(part_, {t.offset, t.offset + t.size});
            if (mine.size() > 0)
                ranges.push_back({mine.first - part_.first, mine.size(), t.decay, static_cast<float>(t.unit)});
        }
        ranges_.allocate(static_cast<int64_t>(ranges.size()));
        ranges_.upload(ranges.data(), ranges_.size(), stream_);
    }

    // What AdamW works on.
    float* trained() const { return low_rank_.is_trained() ? low_rank_.values() : master_.data(); }
    float* trained_grads() const { return low_rank_.is_trained() ? low_rank_.grads() : grads_.data(); }

    // The sums over the processes: of all gradients but those that backward has given away already; or of the few that
    // low-rank updates have.
    void sum_all_weights() {
        if (!sum_blocks_)
            for (int64_t l = c_.L - 1; l >= 0; l--) sum_block(l);
        sum_blocks_ = false;
        const Range blocks = {range_of_block(host_.tensors, 0).first, range_of_block(host_.tensors, c_.L - 1).last};
        for (const Range rest : {Range{0, blocks.first}, Range{blocks.last, grads_.size()}})
            sums_.sum(grads_.data(), grads_.size(), rest, stream_);
    }
    void sum_low_rank() {
        low_rank_.follow_gradients(grads_.data(), stream_);
        const int64_t n = host_.trained_numbers();
        sums_.sum(low_rank_.grads(), n, {0, n}, stream_);
    }
    // All of them, also of weights that have not changed: stochastic rounding then draws again.
    void refresh_copies(std::optional<uint64_t> stochastic_key) {
        if constexpr (!std::is_same_v<X, float>) {
            if (stochastic_key)
                round_stochastically(copy_.data(), master_.data(), master_.size(), *stochastic_key, stream_);
            else
                convert(copy_.data(), master_.data(), master_.size(), stream_);
        }
    }

    void upload(const float* parameters) {
        master_.upload(parameters, master_.size(), stream_);
        if constexpr (!std::is_same_v<X, float>) convert(copy_.data(), master_.data(), master_.size(), stream_);
    }

    // The arena grows when it must; one for training serves evaluation of the same shape too.
    void reserve(int64_t B, int64_t T, bool training) {
        if (B == B_ && T == T_ && (training_ || !training)) return;
        recompute_ = choose_recompute(B, T, training);
        const int64_t needed = a_.lay_out(nullptr, c_, B, T, training, recompute_);
        require_cuda(cudaStreamSynchronize(stream_), "the work before");
        recorded_.forget();
        if (needed > arena_.size()) arena_.allocate(needed);
        a_.lay_out(arena_.data(), c_, B, T, training, recompute_);
        // So that the emulation sees what is read before it is written, whatever lay there with other sizes.
        if (kEmulated)
            require_cuda(cudaMemsetAsync(arena_.data(), 0xff, static_cast<size_t>(arena_.size()), stream_),
                         "marking memory");
        // Products leave the columns behind the vocabulary as they are, and vectors of logits reach into them.
        const size_t logits_bytes = static_cast<size_t>(a_.rows_per_chunk * a_.Vp) * sizeof(X);
        require_cuda(cudaMemsetAsync(a_.logits, 0, logits_bytes, stream_), "clearing memory");
        layouts_++;
        B_ = B;
        T_ = T;
        training_ = training;
    }

    // As asked for; else the least that fits into the memory that is free, a twentieth kept for others.
    int choose_recompute(int64_t B, int64_t T, bool training) {
        if (wished_recompute_ >= 0 || !training) return std::max(0, wished_recompute_);
        size_t free = 0, total = 0;
        require_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
        const int64_t room = static_cast<int64_t>(free) - static_cast<int64_t>(total / 20) + arena_.size();
        for (int level = 0; level < kMostRecompute; level++)
            if (DeviceActivations<X>().lay_out(nullptr, c_, B, T, training, level) <= room) return level;
        return kMostRecompute;
    }

    template <class T>
    void copy_to_device(T* to, const T* from, int64_t n) {
        const size_t bytes = static_cast<size_t>(n) * sizeof(T);
        require_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copying to the GPU");
    }
    template <class T>
    void copy_from_device(T* to, const T* from, int64_t n) {
        const size_t bytes = static_cast<size_t>(n) * sizeof(T);
        require_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "copying from the GPU");
        require_cuda(cudaStreamSynchronize(stream_), "a pass over a micro-batch");
    }

    // Rows of X (rows,width), so far apart on the device, as floats of the host (rows,width); and the other way.
    void fetch(float* to, const X* from, int64_t rows, int64_t width, int64_t stride) {
        X* staged = staging_.reserve(rows * stride);
        copy_from_device(staged, from, rows * stride);
        convert_on_host(to, staged, rows, width, stride);
    }
    void put(X* to, const float* from, int64_t rows, int64_t width) {
        X* staged = staging_.reserve(rows * width);
        convert_on_host(staged, from, rows, width, width);
        copy_to_device(to, staged, rows * width);
        require_cuda(cudaStreamSynchronize(stream_), "copying to the GPU");
    }
    // For a probe (B,T,width), which may have up to two of X and one of float.
    float* show(size_t which, const X* from, int64_t width) {
        std::vector<float>& to = shown_[which];
        to.resize(static_cast<size_t>(N() * width));
        fetch(to.data(), from, N(), width, width);
        return to.data();
    }
    float* show_float(size_t which, const float* from, int64_t width) {
        std::vector<float>& to = shown_[which];
        to.resize(static_cast<size_t>(N() * width));
        copy_from_device(to.data(), from, N() * width);
        return to.data();
    }
    // Of the last pass, kept until the next.
    const float* seen(std::vector<float>& kept, const X* from) {
        if (kept.empty()) {
            kept.resize(static_cast<size_t>(N() * c_.C));
            fetch(kept.data(), from, N(), c_.C, c_.C);
        }
        return kept.data();
    }
    // (2L+1,stride), as they lie on the device.
    const float* seen_moments(std::vector<float>& kept, const float* from) {
        if (kept.empty()) {
            kept.resize(static_cast<size_t>((2 * c_.L + 1) * a_.stride));
            copy_from_device(kept.data(), from, (2 * c_.L + 1) * a_.stride);
        }
        return kept.data();
    }

    // Every pass begins with it.
    void upload_tokens(const int32_t* inputs, const int32_t* targets) {
        for (auto* kept : {&last_.residual, &last_.normed, &last_.means, &last_.divisors, &last_.sigmas}) kept->clear();
        int32_t* pinned = pinned_tokens_.reserve(2 * N());  // every pass ends with a wait for its results
        std::copy(inputs, inputs + N(), pinned);
        copy_to_device(a_.tokens, pinned, N());
        if (targets != nullptr) {
            std::copy(targets, targets + N(), pinned + N());
            copy_to_device(a_.targets, pinned + N(), N());
        }
        const size_t bytes = static_cast<size_t>(4 * c_.L + 4) * sizeof(double);
        require_cuda(cudaMemsetAsync(a_.statistics, 0, bytes, stream_), "clearing memory");
    }

    // ----- products

    // A part of a bias that may not be there.
    static X* behind(X* bias, int64_t n) { return bias == nullptr ? nullptr : bias + n; }

    // out (N,M) = inp (N,K) weight (K,M) + bias, rows of weight and out `stride` apart.
    void linear(X* out, const X* inp, const X* weight, const X* bias, int64_t K, int64_t M, int64_t stride) {
        product_and_bias(Transpose::No, N(), M, K, inp, weight, stride, bias, out, stride);
    }

    // out (rows,M) = inp (rows,K) op(weight) + bias (null: none), rows of `weight` and `out` so far apart.
    void product_and_bias(Transpose op, int64_t rows, int64_t M, int64_t K, const X* inp, const X* weight,
                          int64_t weight_stride, const X* bias, X* out, int64_t out_stride) {
        Epilogue<X> epilogue;
        epilogue.bias = bias;
        if (products_.multiply(Transpose::No, op, rows, M, K, inp, K, weight, weight_stride, out, out_stride, false,
                               epilogue, stream_))
            return;
        products_.multiply(Transpose::No, op, rows, M, K, inp, K, weight, weight_stride, out, out_stride, false,
                           Epilogue<X>(), stream_);
        add_bias(out, bias, rows, M, out_stride, stream_);
    }

    // fc (N,M) = inp (N,K) weight (K,M) + bias; hidden = gelu(fc)
    void linear_gelu(X* hidden, X* fc, const X* inp, const X* weight, const X* bias, int64_t K, int64_t M) {
        Epilogue<X> epilogue;
        epilogue.bias = bias;
        epilogue.before_gelu = fc;
        if (products_.multiply(Transpose::No, Transpose::No, N(), M, K, inp, K, weight, M, hidden, M, false, epilogue,
                               stream_))
            return;
        products_.multiply(Transpose::No, Transpose::No, N(), M, K, inp, K, weight, M, fc, M, false, Epilogue<X>(),
                           stream_);
        bias_gelu_forward(hidden, fc, bias, N(), M, stream_);
    }

    // dinp (N,K) = dout (N,M) weight^T
    void linear_dinput(X* dinp, const X* dout, const X* weight, int64_t K, int64_t M, int64_t stride) {
        products_.multiply(Transpose::No, Transpose::Yes, N(), K, M, dout, stride, weight, stride, dinp, K, false,
                           Epilogue<X>(), stream_);
    }

    // dweight (K,M) += inp^T dout
    void linear_dweight(float* dweight, const X* inp, const X* dout, int64_t K, int64_t M, int64_t stride) {
        if (stream_alone_) return;
        products_.multiply(Transpose::Yes, Transpose::No, K, M, N(), inp, K, dout, stride, dweight, stride, true,
                           Epilogue<float>(), stream_);
    }

    // dbias (M), which may be null, += the sums of the columns of dout (N,M).
    void bias_gradient(float* dbias, const X* dout, int64_t M) {
        if (dbias != nullptr) column_sums(dbias, a_.scratch, dout, N(), M, M, stream_);
    }

    // ----- a pass

    // Who teaches in this pass, and how much. The teacher has its own arena, which a forward pass alone needs.
    struct Teaching {
        double share = 0;
        DeviceModelOf* teacher = nullptr;
    };
    // A teacher (null: none) with the tokens of this micro-batch in its memory.
    Teaching taught_by(DeviceModel* teacher, double share, const int32_t* inputs) const {
        if (teacher == nullptr) return {};
        auto& one_of_us = dynamic_cast<DeviceModelOf&>(*teacher);  // both have the program's precision
        one_of_us.reserve(B_, T_, false);
        one_of_us.upload_tokens(inputs, nullptr);
        return {share, &one_of_us};
    }

    // All but the encoder's backward pass, whose operands the host prepares meanwhile.
    void forward_and_backward(const AuxSettings& aux, int64_t grad_accum, const Teaching& teaching) {
        if (teaching.teacher != nullptr) teaching.teacher->run_blocks();
        run_blocks();
        const int64_t f = 2 * c_.L, terms = aux.everywhere ? f + 1 : 1;
        AuxSettings each = aux;
        each.weight /= static_cast<double>(terms);
        sigma_statistics(a_.statistics, a_.sigma, a_.stride, f + 1, B_, T_, stream_);
        for (int64_t i = f + 1 - terms; i <= f; i++)
            aux_loss(a_.aux + i, sigma(i), a_.tokens, c_.end_of_text, each, 1.0 / static_cast<double>(grad_accum), B_,
                     T_, stream_);
        classify(1.0 / static_cast<double>(N() * grad_accum), teaching);
        backward();
    }
    // What forward_and_backward passes by value and can change while the memory stays. Numbers that a site does not use are
    // left out: they may be NaN, which equals nothing.
    std::vector<double> frozen_in_a_pass(const AuxSettings& aux, int64_t grad_accum, const Teaching& teaching) const {
        const int64_t teachers_layouts = teaching.teacher == nullptr ? 0 : teaching.teacher->layouts_;
        std::vector<double> frozen = {aux.weight,
                                      aux.everywhere ? 1.0 : 0,
                                      aux.relative ? 1.0 : 0,
                                      aux.position0,
                                      static_cast<double>(grad_accum),
                                      teaching.share,
                                      static_cast<double>(teachers_layouts)};
        for (const Site& site : host_.sites.all) {
            const bool is_fake = !site.has_layer_norm() && !site.folded;
            const double position0 = site.own_position0 ? 1 : 0, end_of_text = site.own_end_of_text ? 1 : 0;
            const double tapers = site.tapers ? 1 : 0;
            frozen.insert(frozen.end(), {is_fake ? site.sigma_bar : 0, site.a, tapers, position0, end_of_text});
            frozen.push_back(is_fake && position0 + end_of_text > 0 ? site.sigma_bar_0 : 0);
        }
        return frozen;
    }

    // ----- forward

    // residual, the sum of x and y (null: nothing), and the norms that read it, or none: site `index` of mean and sigma.
    void add_and_norm(X* residual, X* normed_a, X* normed_b, const X* x, const X* y, const float* gamma,
                      const float* beta, const Site& a, const Site& b, int64_t index) {
        residual_norm_forward(residual, has_norms() ? normed_a : nullptr, normed_b, mean(index), sigma(index), x, y,
                              gamma, beta, divisor(a), divisor(b), static_cast<float>(c_.epsilon), N(), c_.C, stream_);
    }

    void run_blocks(const Probe& probe = {}) {
        if (c_.rotary > 0)
            gather_rows(stream_at(0), x_.wte, a_.tokens, N(), c_.C, stream_);
        else
            encoder_forward(stream_at(0), a_.tokens, x_.wte, x_.wpe + first_position() * c_.C, B_, T_, c_.C, stream_);
        run_blocks_from(0, probe);
    }
    // From the stream in front of block `first`, or of ln_f (first = L).
    void run_blocks_from(int64_t first, const Probe& probe = {}) {
        for (int64_t l = first; l < c_.L; l++) {
            enter(l, l == first, probe);
            attention_block_forward(l, probe);
            mlp_forward(l, probe);
        }
        enter(c_.L, c_.L == first, probe);
    }

    // The stream in front of block 0..L-1, or in front of ln_f.
    X* stream_at(int64_t l) const { return l < c_.L ? a_.layers[static_cast<size_t>(l)].residual : a_.final_residual; }

    // Makes the stream in front of block l (L: of ln_f), unless it is there already, and its norms; anew if a probe has had
    // it in its hands.
    void enter(int64_t l, bool is_there, const Probe& probe) {
        X* stream = stream_at(l);
        if (is_there)
            norm_stream(l, nullptr, stream, nullptr);
        else
            norm_stream(l, stream, a_.layers[static_cast<size_t>(l - 1)].residual_mid, a_.branch);
        if (!probe.residual) return;
        float* shown = show(0, stream, c_.C);
        probe.residual(l, shown);
        put(stream, shown, N(), c_.C);
        norm_stream(l, nullptr, stream, nullptr);
    }
    void norm_stream(int64_t l, X* sum, const X* x, const X* y) {
        if (l == c_.L) {
            const Site& f = host_.sites.f();
            add_and_norm(sum, a_.normedf, nullptr, x, y, w_.lnf_gamma, w_.lnf_beta, f, f, 2 * l);
            return;
        }
        const auto& w = w_.layers[static_cast<size_t>(l)];
        X* normed_v = divide_alike(qk(l), v(l)) ? nullptr : a_.normed_v;
        add_and_norm(sum, a_.layers[static_cast<size_t>(l)].normed1, normed_v, x, y, w.ln1_gamma, w.ln1_beta, qk(l),
                     v(l), 2 * l);
    }

    void attention_block_forward(int64_t l, const Probe& probe) {
        const int64_t C = c_.C, A = heads_.width(), Q = heads_.row(), QK = c_.qk_width();
        const Layer& a = a_.layers[static_cast<size_t>(l)];
        const auto& x = x_.layers[static_cast<size_t>(l)];
        if (divide_alike(qk(l), v(l))) {  // then one product makes queries, keys and values
            linear(a.qkv, a.normed1, x.qkv, x.qkv_bias, C, Q, Q);
        } else {
            linear(a.qkv, a.normed1, x.qkv, x.qkv_bias, C, QK, Q);
            linear(a.qkv + QK, a_.normed_v, x.qkv + QK, behind(x.qkv_bias, QK), C, Q - QK, Q);
        }
        if (c_.rotary > 0)
            rotary(a.qkv, turns_.data() + first_position() * c_.rotary, B_, T_, heads_, c_.rotary, 1, stream_);
        if (decoding_)
            attention_cached(a.att, cache_.data() + l * (cache_.size() / c_.L), a.qkv, B_, T_, decoded_, c_.n_ctx,
                             heads_, stream_);
        else
            attention_.forward(a.att, a.lse, a.qkv, B_, T_, heads_, stream_);
        if (probe.attention) probe.attention(l, show(0, a.att, A), show(1, a.qkv, Q), show_float(2, a.lse, c_.NH));
        linear(a_.branch, a.att, x.proj, x.proj_bias, A, C, C);
    }

    void mlp_forward(int64_t l, const Probe& probe) {
        const int64_t C = c_.C, H = c_.n_inner, F = c_.fc_width();
        const Layer& a = a_.layers[static_cast<size_t>(l)];
        const auto& w = w_.layers[static_cast<size_t>(l)];
        const auto& x = x_.layers[static_cast<size_t>(l)];
        if (c_.parallel)  // the sum is for the next block alone
            residual_norm_forward<X>(a.residual_mid, nullptr, nullptr, nullptr, nullptr, a.residual, a_.branch, nullptr,
                                     nullptr, {}, {}, 0, N(), C, stream_);
        add_and_norm(c_.parallel ? nullptr : a.residual_mid, a.normed2, nullptr, a.residual,
                     c_.parallel ? nullptr : a_.branch, w.ln2_gamma, w.ln2_beta, mlp(l), mlp(l), 2 * l + 1);
        if (c_.activation == Activation::gelu_tanh) {
            linear_gelu(a.hidden, a.fc, a.normed2, x.fc, x.fc_bias, C, H);
        } else {
            linear(a.fc, a.normed2, x.fc, x.fc_bias, C, F, F);
            activate(a);
        }
        linear(a_.branch, a.hidden, x.fcproj, x.fcproj_bias, H, C, C);
        if (probe.mlp) probe.mlp(l, show(0, a.hidden, H), show(1, a_.branch, C));
    }

    // hidden = what the neurons make of fc
    void activate(const Layer& a) {
        const int64_t H = c_.n_inner;
        switch (c_.activation) {
            case Activation::gelu_tanh:
                return gelu_forward(a.hidden, a.fc, N() * H, stream_);
            case Activation::gelu_erf:
                return gelu_erf_forward(a.hidden, a.fc, N() * H, stream_);
            case Activation::gated_silu:
                return gated_silu_forward(a.hidden, a.fc, N(), H, stream_);
        }
    }

    // The stream that the MLP's norm reads.
    X* in_front_of_mlp(const Layer& a) const { return c_.parallel ? a.residual : a.residual_mid; }

    // logits (rows,Vp) of normed (rows,C)
    void unembed(const X* normed, int64_t rows) {
        product_and_bias(Transpose::Yes, rows, c_.V, c_.C, normed, x_.head, c_.C, x_.head_bias, a_.logits, a_.Vp);
    }

    // out (rows,V): what a pass makes of the positions from n on
    void fetch_logits(float* out, int64_t n, int64_t rows) {
        for (int64_t r0 = 0; r0 < rows; r0 += a_.rows_per_chunk) {
            const int64_t count = std::min(a_.rows_per_chunk, rows - r0);
            unembed(a_.normedf + (n + r0) * c_.C, count);
            fetch(out + r0 * c_.V, a_.logits, count, c_.V, a_.Vp);
        }
    }

    // Losses, and beside a teacher, whose blocks have run, the distance to it; with gradient_scale != 0 also the gradients of
    // the unembedding, and in dnormed those of ln_f's output.
    void classify(double gradient_scale, const Teaching& teaching) {
        const int64_t C = c_.C, V = c_.V, Vp = a_.Vp;
        const bool with_gradient = gradient_scale != 0;
        for (int64_t n = 0; n < N(); n += a_.rows_per_chunk) {
            const int64_t rows = std::min(a_.rows_per_chunk, N() - n);
            unembed(a_.normedf + n * C, rows);
            if (teaching.teacher == nullptr)
                classifier(a_.logits, a_.losses + n, a_.targets + n, static_cast<float>(gradient_scale), with_gradient,
                           rows, V, Vp, stream_);
            else
                distil(n, rows, gradient_scale, teaching);
            if (!with_gradient) continue;
            products_.multiply(Transpose::No, Transpose::No, rows, C, V, a_.logits, Vp, x_.head, C, a_.dnormed + n * C,
                               C, false, Epilogue<X>(), stream_);
            products_.multiply(Transpose::Yes, Transpose::No, V, C, rows, a_.logits, Vp, a_.normedf + n * C, C, d_.head,
                               C, true, Epilogue<float>(), stream_);
            if (d_.head_bias != nullptr) column_sums(d_.head_bias, a_.scratch, a_.logits, rows, V, Vp, stream_);
        }
        add_sum(a_.statistics + 4 * c_.L + 2, a_.losses, N(), stream_);
        if (teaching.teacher != nullptr) add_sum(a_.statistics + 4 * c_.L + 3, a_.kls, N(), stream_);
    }

    // Some rows' losses and gradients from their logits and the teacher's.
    void distil(int64_t n, int64_t rows, double gradient_scale, const Teaching& teaching) {
        teaching.teacher->unembed(teaching.teacher->a_.normedf + n * c_.C, rows);
        const X* original = teaching.teacher->a_.logits;
        if (gradient_scale == 0) same_likeliest(a_.agreements + n, a_.logits, original, rows, c_.V, a_.Vp, stream_);
        distillation(a_.logits, a_.losses + n, a_.kls + n, original, a_.targets + n, static_cast<float>(teaching.share),
                     static_cast<float>(gradient_scale), gradient_scale != 0, rows, c_.V, a_.Vp, stream_);
    }

    // ----- backward

    // From dnormed to the stream in front of block 0. `see`, if given, gets the stream's gradient in front of every block.
    void backward(const SeeGradient& see = {}) {
        const int64_t L = c_.L;
        const Divisor f = divisor(host_.sites.f());
        stream_alone_ = static_cast<bool>(see);
        if (has_norms())
            norm_backward(a_.dresidual, true, d_.lnf_gamma, d_.lnf_beta, bias_of_mlp(L - 1), a_.scratch, a_.dnormed,
                          static_cast<X*>(nullptr), a_.final_residual, w_.lnf_gamma, mean(2 * L), sigma(2 * L), f, f,
                          aux_at(2 * L), N(), c_.C, stream_);
        else
            finish_dresidual(bias_of_mlp(L - 1), a_.final_residual, 2 * L);
        for (int64_t l = L - 1; l >= 0; l--) {
            // Where both read the same stream, neither's gradient is part of what the other's begins with.
            if (c_.parallel) heads_backward(l);
            mlp_backward(l);
            if (!c_.parallel) heads_backward(l);
            qkv_backward(l);
            if (sum_blocks_) sum_block(l);
            if (see) see(l, show(0, a_.dresidual, c_.C));
        }
    }

    void sum_block(int64_t l) { sums_.sum(grads_.data(), grads_.size(), range_of_block(host_.tensors, l), stream_); }

    // What norm_backward does in a folded model, where a branch (its gradient dout (N,M), its weight (C,M)) reads the stream
    // x itself.
    void stream_backward(float* dbias, const X* dout, const X* weight, int64_t M, const X* x, int64_t site) {
        products_.multiply(Transpose::No, Transpose::Yes, N(), c_.C, M, dout, M, weight, M, a_.dresidual, c_.C, true,
                           Epilogue<X>(), stream_);
        finish_dresidual(dbias, x, site);
    }
    void finish_dresidual(float* dbias, const X* x, int64_t site) {
        if (const AuxTerm* aux = aux_at(site))
            aux_loss_backward(a_.dresidual, x, mean(site), sigma(site), aux, N(), c_.C, stream_);
        bias_gradient(dbias, a_.dresidual, c_.C);
    }

    // The gradient of the bias of what layer l's MLP adds to the stream: the next norm's backward pass sums it up.
    float* bias_of_mlp(int64_t l) const { return d_.layers[static_cast<size_t>(l)].fcproj_bias; }

    // From the gradient behind block l, through its MLP to the stream in front of that.
    void mlp_backward(int64_t l) {
        const int64_t C = c_.C, H = c_.n_inner, F = c_.fc_width(), site = 2 * l + 1;
        const Layer& a = a_.layers[static_cast<size_t>(l)];
        const auto& w = w_.layers[static_cast<size_t>(l)];
        const auto& x = x_.layers[static_cast<size_t>(l)];
        const auto& d = d_.layers[static_cast<size_t>(l)];
        const Divisor s = divisor(mlp(l));
        const bool norms = has_norms();
        const X* const stream = in_front_of_mlp(a);
        float* const dbias = c_.parallel ? nullptr : d.proj_bias;
        if (recompute_ >= 1) activate(a);
        linear_dweight(d.fcproj, a.hidden, a_.dresidual, H, C, C);
        neurons_backward(a, x, d);
        if (norms && recompute_ >= 2)
            norm_forward(a.normed2, static_cast<X*>(nullptr), stream, mean(site), sigma(site), w.ln2_gamma, w.ln2_beta,
                         s, s, N(), C, stream_);
        linear_dweight(d.fc, a.normed2, a_.dfc, C, F, F);
        if (!norms) return stream_backward(dbias, a_.dfc, x.fc, F, stream, site);
        linear_dinput(a_.dnormed, a_.dfc, x.fc, C, F, F);
        norm_backward(a_.dresidual, false, d.ln2_gamma, d.ln2_beta, dbias, a_.scratch, a_.dnormed,
                      static_cast<X*>(nullptr), stream, w.ln2_gamma, mean(site), sigma(site), s, s, aux_at(site), N(),
                      C, stream_);
    }

    // The gradient in front of the activation, dfc, and of the bias there.
    void neurons_backward(const Layer& a, const typename WeightsOf<X>::Layer& x, const WeightsOf<float>::Layer& d) {
        const int64_t C = c_.C, H = c_.n_inner;
        Epilogue<X> epilogue;
        epilogue.through_gelu = a.fc;
        if (c_.activation == Activation::gelu_tanh &&
            products_.multiply(Transpose::No, Transpose::Yes, N(), H, C, a_.dresidual, C, x.fcproj, C, a_.dhidden, H,
                               false, epilogue, stream_))
            return bias_gradient(d.fc_bias, a_.dhidden, H);
        linear_dinput(a_.dhidden, a_.dresidual, x.fcproj, H, C, C);
        switch (c_.activation) {
            case Activation::gelu_tanh:
                return gelu_backward_bias(a_.dfc, d.fc_bias, a_.scratch, a_.dhidden, a.fc, N(), H, stream_);
            case Activation::gelu_erf:
                return gelu_erf_backward_bias(a_.dfc, d.fc_bias, a_.scratch, a_.dhidden, a.fc, N(), H, stream_);
            case Activation::gated_silu:
                gated_silu_backward(a_.dfc, a_.dhidden, a.fc, N(), H, stream_);
                return bias_gradient(d.fc_bias, a_.dfc, 2 * H);
        }
    }

    // From the gradient behind attention to that of its queries, keys and values, in dqkv.
    void heads_backward(int64_t l) {
        const int64_t C = c_.C, A = heads_.width(), Q = heads_.row();
        const Layer& a = a_.layers[static_cast<size_t>(l)];
        const auto& x = x_.layers[static_cast<size_t>(l)];
        const auto& d = d_.layers[static_cast<size_t>(l)];
        if (c_.parallel) bias_gradient(d.proj_bias, a_.dresidual, C);
        linear_dweight(d.proj, a.att, a_.dresidual, A, C, C);
        linear_dinput(a_.datt, a_.dresidual, x.proj, A, C, C);
        attention_.backward(a_.dqkv, a_.delta, a_.datt, a.qkv, a.att, a.lse, B_, T_, heads_, stream_);
        if (c_.rotary > 0) rotary(a_.dqkv, turns_.data(), B_, T_, heads_, c_.rotary, -1, stream_);
        bias_gradient(d.qkv_bias, a_.dqkv, Q);
    }

    // From there to the stream in front of attention: qk and v each through its own norm.
    void qkv_backward(int64_t l) {
        const int64_t C = c_.C, Q = heads_.row(), QK = c_.qk_width(), site = 2 * l;
        const Layer& a = a_.layers[static_cast<size_t>(l)];
        const auto& w = w_.layers[static_cast<size_t>(l)];
        const auto& x = x_.layers[static_cast<size_t>(l)];
        const auto& d = d_.layers[static_cast<size_t>(l)];
        const Divisor s_qk = divisor(qk(l)), s_v = divisor(v(l));
        const bool agree = divide_alike(qk(l), v(l));
        if (has_norms() && (recompute_ >= 2 || !agree))
            norm_forward(a.normed1, agree ? nullptr : a_.normed_v, a.residual, mean(site), sigma(site), w.ln1_gamma,
                         w.ln1_beta, s_qk, s_v, N(), C, stream_);
        float* const dbias = l > 0 ? bias_of_mlp(l - 1) : nullptr;
        if (agree) {
            linear_dweight(d.qkv, a.normed1, a_.dqkv, C, Q, Q);
            if (!has_norms()) return stream_backward(dbias, a_.dqkv, x.qkv, Q, a.residual, site);
            linear_dinput(a_.dnormed, a_.dqkv, x.qkv, C, Q, Q);
        } else {
            linear_dweight(d.qkv, a.normed1, a_.dqkv, C, QK, Q);
            linear_dweight(d.qkv + QK, a_.normed_v, a_.dqkv + QK, C, Q - QK, Q);
            linear_dinput(a_.dnormed, a_.dqkv, x.qkv, C, QK, Q);
            linear_dinput(a_.dnormed_v, a_.dqkv + QK, x.qkv + QK, C, Q - QK, Q);
        }
        norm_backward(a_.dresidual, false, d.ln1_gamma, d.ln1_beta, dbias, a_.scratch, a_.dnormed,
                      agree ? nullptr : a_.dnormed_v, a.residual, w.ln1_gamma, mean(site), sigma(site), s_qk, s_v,
                      aux_at(site), N(), C, stream_);
    }

    // ----- what the host learns

    BatchLoss collect() {
        const int64_t f = 2 * c_.L, first = with_aux_everywhere_ ? 0 : f;
        std::vector<AuxTerm> terms(static_cast<size_t>(f + 1 - first));
        copy_from_device(terms.data(), a_.aux + first, f + 1 - first);
        BatchLoss result;
        for (const AuxTerm& aux : terms) result.aux += aux.active != 0 ? aux.loss : 0;
        const auto [loss, kl] = collect_sigma_sums();
        result.loss = loss / static_cast<double>(N());
        result.kl = kl / static_cast<double>(N());
        return result;
    }

    // Adds this micro-batch's sigmas to the host's sums; returns the sums of its losses and of the distances to a teacher.
    std::pair<double, double> collect_sigma_sums() {
        std::vector<double> sums(static_cast<size_t>(4 * c_.L + 4));
        copy_from_device(sums.data(), a_.statistics, static_cast<int64_t>(sums.size()));
        for (size_t i = 0; i < host_.sites.all.size(); i++) {
            const Site& site = host_.sites.all[i];
            const size_t index = static_cast<size_t>(norm_index(site));
            SigmaSum& sum = host_.sigma_sums[i];
            sum.at_0 += sums[2 * index];
            sum.elsewhere += sums[2 * index + 1];
            sum.n_at_0 += B_;
            sum.n_elsewhere += B_ * (T_ - 1);
        }
        return {sums[sums.size() - 2], sums.back()};
    }
};

// =====================================================================================================================
// 5. The engine
// =====================================================================================================================
//
// What the rest of the program sees. The device's copies are made when they are first needed, so that commands that only
// read and write files need no GPU.

DeviceOptions& device_options() {
    static DeviceOptions options;
    return options;
}

void require_gpu() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) return;
    static_cast<void>(cudaGetLastError());
    throw NoGpu("no CUDA GPU was found" +
                (error == cudaSuccess ? std::string() : " (" + std::string(cudaGetErrorString(error)) + ")") +
                "; train_gpt2_lnfree does the same on the CPU");
}

std::string products_made_for() {
    cudaDeviceProp properties;
    require_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
#ifdef __CUDACC__
    return std::string(properties.name) + ", cuBLASLt " + std::to_string(cublasLtGetVersion());
#else
    return properties.name;
#endif
}

namespace {

class CudaEngine : public Engine {
  public:
    explicit CudaEngine(const ModelConfig& c) : Engine(c), weights_(params.data(), tensors, config) {}

    // ----- training

    void prepare_training(int64_t B, int64_t T) override { device().prepare_training(B, T); }
    void prepare_optimiser() override {
        m.allocate(trained_numbers());
        v.allocate(trained_numbers());
        updates = 0;
        device_has_moments_ = false;
    }
    void zero_gradients() override { device().zero_gradients(); }
    BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                               const AuxSettings& aux, int64_t grad_accum, const Distillation& distillation) override {
        DeviceModel* const teacher = distillation.teacher == nullptr ? nullptr : &device_of(*distillation.teacher);
        return device().forward_backward(inputs, targets, B, T, aux, grad_accum, distillation.share, teacher);
    }
    double gradient_norm() override {
        upload_moments();
        return device().gradient_norm();
    }
    void update(const AdamWStep& step) override {
        upload_moments();
        updates++;
        std::optional<uint64_t> key;
        if (device_options().stochastic_rounding) key = stochastic_key(step.seed, updates);
        device().update(adamw_constants(step, updates), step.gradient_scale, key);
    }
    void resume(uint64_t seed) override {
        if (device_) device_->upload_parameters(params.data());
        device_has_moments_ = false;
        if (device_options().stochastic_rounding) device().round_weights(stochastic_key(seed, updates));
    }
    void edit_parameters(Slice slice, double factor, const real* added) override {
        if (device_) return device_->edit_parameters(slice, factor, added);
        slice.edit(params.data(), factor, added);
    }
    void fetch_parameters() override {
        if (device_) device_->fetch_parameters(params.data());
    }
    void fetch_moments() override {
        if (device_has_moments_) device_->fetch_moments(m.data(), v.data());
    }

    bool has_copies() const override { return device_ != nullptr; }

    // ----- passes that train nothing

    void measure_sigmas(const int32_t* inputs, int64_t B, int64_t T) override { device().measure_sigmas(inputs, B, T); }
    const real* token_losses(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) override {
        losses_.resize(static_cast<size_t>(B * T));
        device().token_losses(losses_.data(), inputs, targets, B, T);
        return losses_.data();
    }
    Comparison compare(Engine& original, const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) override {
        for (std::vector<real>* each : {&losses_, &kls_}) each->resize(static_cast<size_t>(B * T));
        agreements_.resize(losses_.size());
        device().compare(losses_.data(), kls_.data(), agreements_.data(), device_of(original), inputs, targets, B, T);
        return {losses_.data(), kls_.data(), agreements_.data()};
    }
    void logits(real* out, const int32_t* inputs, int64_t B, int64_t T, int64_t from) override {
        device().logits(out, inputs, B, T, from);
    }

    // ----- generation

    void start_decoding(int64_t B) override { device().start_decoding(B); }
    void decode(real* out, const int32_t* tokens, int64_t B, int64_t T) override { device().decode(out, tokens, B, T); }

    // ----- for analyses

    const Weights& weights() const override { return weights_; }
    void trace(const int32_t* inputs, int64_t B, int64_t T, const Probe& probe, bool keep) override {
        device().trace(inputs, B, T, probe, keep);
    }
    void trace_from(int64_t layer, const real* residual, const int32_t* inputs, int64_t B, int64_t T) override {
        device().trace_from(layer, residual, inputs, B, T);
    }
    void final_logits(real* out, int64_t first, int64_t count) override { last_pass().final_logits(out, first, count); }
    void score(real* losses, uint8_t* likeliest, const int32_t* inputs, int64_t B, int64_t T,
               const std::vector<int64_t>& rows, const int32_t* targets) override {
        device().score(losses, likeliest, inputs, B, T, rows, targets);
    }
    const real* final_residual() const override { return last_pass().final_residual(); }
    const real* final_normed() const override { return last_pass().final_normed(); }
    const real* final_means() const override { return last_pass().final_means(); }
    const real* final_divisors(const int32_t* inputs) override { return last_pass().final_divisors(inputs); }
    const real* sigmas_at(const Site& site) const override { return last_pass().sigmas_at(site); }
    void stream_gradients(const real* dnormed, const int32_t* inputs, const SeeGradient& see) override {
        last_pass().stream_gradients(dnormed, inputs, see);
    }
    void unembed_residual(real* out, const real* residual, int64_t n) override {
        device().unembed_residual(out, residual, n);
    }

    DeviceModel& device() {
        if (device_) return *device_;
        require_gpu();
        const DeviceOptions& o = device_options();
        if (o.choices != nullptr && o.choices->made_for != products_made_for())
            throw BadInput("--products " + o.products + ": was made for " + o.choices->made_for + ", not for " +
                           products_made_for() + "; make another by `bench --products`");
        if (o.in_bf16) {
            device_ = std::make_unique<DeviceModelOf<bf16>>(*this, o);
        } else {
            device_ = std::make_unique<DeviceModelOf<float>>(*this, o);
        }
        return *device_;
    }

  private:
    Weights weights_;
    std::unique_ptr<DeviceModel> device_;
    bool device_has_moments_ = false;  // else m, v and what low_rank holds are what counts
    std::vector<real> losses_, kls_;
    std::vector<uint8_t> agreements_;

    void upload_moments() {
        if (device_has_moments_ || m.size() == 0) return;
        device().upload_moments(m.data(), v.data());
        device_has_moments_ = true;
    }

    // Both are made by make_engine.
    static DeviceModel& device_of(Engine& other) { return dynamic_cast<CudaEngine&>(other).device(); }

    DeviceModel& last_pass() const {
        if (!device_) throw RunFailure("an analysis asks for a pass that was never made");
        return *device_;
    }
};

}  // namespace

std::unique_ptr<Engine> make_engine(const ModelConfig& c) {
    return std::make_unique<CudaEngine>(c);
}

std::vector<float> gradients_of(Engine& model) {
    std::vector<float> gradients(static_cast<size_t>(model.parameters()));
    if (auto* gpu = dynamic_cast<CudaEngine*>(&model)) {
        gpu->device().fetch_gradients(gradients.data());
    } else {
        std::copy(model.grads.data(), model.grads.data() + model.parameters(), gradients.begin());
    }
    return gradients;
}

void use_cuda_engine() {
    Backend& b = backend();
    b.training_precision = "bf16";
    b.make = make_engine;
    b.evaluation_precision = "tf32";
    b.precisions = {"tf32", "fp32", "bf16"};
    b.use_precision = [](const std::string& precision) {
        device_options().in_bf16 = precision == "bf16";
        device_options().in_tf32 = precision == "tf32";
    };
    b.use_options = [](const EngineOptions& o) {
        attention_kernels<float>(o.attention);  // refuses what this program has not
        static_cast<EngineOptions&>(device_options()) = o;
        device_options().choices.reset();
        if (!o.products.empty())
            device_options().choices = std::make_shared<ProductChoices>(ProductChoices::read(o.products));
    };
    b.device_bytes = device_bytes;
}
#endif  // LNFREE_KERNELS_ONLY

}  // namespace cuda
}  // namespace lnfree

// Alone: the reference shows the method on a text of its own (section 7 there), by this engine.
#if !defined(LNFREE_LIBRARY_ONLY) && !defined(LNFREE_KERNELS_ONLY)
static const bool made_by_the_gpu = [] {
    lnfree::cuda::use_cuda_engine();
    return true;
}();
#include "train_gpt2_lnfree.cpp"
#endif

#endif  // LNFREE_TRAIN_GPT2_LNFREE_CU
