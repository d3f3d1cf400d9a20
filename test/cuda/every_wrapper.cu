// One kernel that uses everything that dev/cuda_on_cpu/cuda.h gives beyond CUDA C++, for every type it is given for:
// test_nvcc.cpp has nvcc compile it for the architectures that we support, test_emulation.cpp runs it.
#include "dev/cuda_on_cpu/cuda.h"

namespace lnfree::cuda {

constexpr int wrapper_threads = 64;
constexpr int wrapper_row = 72;  // bf16 from one row of the tile to the next: 8 more than are used, for other banks

// Adds 1 to `in` (wrapper_threads * 8) with vector accesses and gives `out`, and to every one of `sums` (3 per block):
// the sum of the numbers 0 to 31 by shuffles, what atomics counted, and an element of a product by tensor cores.
template <class X>
__global__ void __launch_bounds__(wrapper_threads)
    every_wrapper(X* __restrict__ out, const X* __restrict__ in, const bf16* __restrict__ ones, float* sums,
                  int* counts) {
    let_next_kernel_start();
    SharedMemory shared;
    Shared<bf16> tile = shared.take<bf16>(16 * wrapper_row);
    Shared<float> numbers = shared.take<float>(32);
    Shared<int> count = shared.take<int>(1);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % warpSize;
    wait_for_previous_kernel();

    constexpr int n = 16 / sizeof(X);
    for (int i = thread * n; i < wrapper_threads * 8; i += wrapper_threads * n) {
        Vec<X, n> some = blockIdx.x == 0 ? load_vec<n>(in + i) : load_vec_streaming<n>(in + i);
        for (int j = 0; j < n; ++j) some.v[j] = from_float_stochastic<X>(to_float(some.v[j]) + 1.0f, 0x8000u);
        if (blockIdx.x == 0) {
            store_vec(out + i, some);
        } else {
            store_vec_streaming(out + wrapper_threads * 8 * blockIdx.x + i, some);
        }
    }

    if (thread < 32) numbers[thread] = static_cast<float>(thread);
    if (thread == 0) count[0] = 0;
    if (thread < 32) {  // 16 rows of 16, and zeros where a second tile would begin
        Shared<bf16> row = tile + (thread / 2 * wrapper_row + thread % 2 * 8);
        copy_async_16(row, ones);
        copy_async_commit();
        copy_async_16_or_zero(row + 16, ones, false);
    }
    copy_async_commit();
    copy_async_wait<1>();
    copy_async_wait<0>();
    __syncthreads();

    float sum = numbers[lane];
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffff, sum, i);
    const Vec<float, 4> four = numbers.template load_vec<4>(4);
    __syncthreads();
    if (thread == 0) numbers.store_vec(0, four);
    atomicAdd(&count[0], 1);
    __syncthreads();

    uint32_t a[4], a_trans[4], b[2], b_trans[2];
    Shared<bf16> row = tile;
    row += lane % 16 * wrapper_row + lane / 16 * 8;
    ldmatrix_x4(a, row);
    ldmatrix_x4_trans(a_trans, row);
    ldmatrix_x2(b, row);
    ldmatrix_x2_trans(b_trans, row);
    float d[4] = {};
    mma_m16n8k16(d, a, b);
    mma_m16n8k16(d, a_trans, b_trans);

    if (thread == 0) {
        sums[blockIdx.x * 3] = sum + numbers[0] - 4.0f;
        sums[blockIdx.x * 3 + 1] = static_cast<float>(count[0]);
        sums[blockIdx.x * 3 + 2] = d[0] + __uint_as_float(pack_bf16(0.0f, 1.0f));
        __threadfence();
        atomicMax(counts, static_cast<int>(blockIdx.x));
    }
}

// Two blocks, by both kinds of launch; see every_wrapper.
template <class X>
void launch_every_wrapper(X* out, const X* in, const bf16* ones, float* sums, int* counts, cudaStream_t stream) {
    const size_t bytes = shared_bytes_of<bf16, float, int>(16 * wrapper_row, 32, 1);
    launch(every_wrapper<X>, dim3(2), dim3(wrapper_threads), bytes, stream, out, in, ones, sums, counts);
    launch_dependent(every_wrapper<X>, 2, wrapper_threads, bytes, stream, out, in, ones, sums, counts);
}
template void launch_every_wrapper<float>(float*, const float*, const bf16*, float*, int*, cudaStream_t);
template void launch_every_wrapper<bf16>(bf16*, const bf16*, const bf16*, float*, int*, cudaStream_t);

}  // namespace lnfree::cuda
