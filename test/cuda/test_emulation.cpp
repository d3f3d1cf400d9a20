// dev/cuda_on_cpu: correct kernels give their results, in any order of threads, and each kind of mistake is named.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "data/random.h"
#include "dev/cuda_on_cpu/cuda.h"
#include "test/cuda/every_wrapper.cu"
#include "test/file_helpers.h"

namespace lnfree::cuda {

namespace {

// Runs what a test does in the order of the threads' numbers and in several random ones, checks on; then as it was.
template <class F>
void in_several_orders(const F& test) {
    const EmulationOptions before = emulation_options();
    for (const uint64_t seed : {0, 1, 2, 77}) {
        CAPTURE(seed);
        emulation_options().seed = seed;
        emulation_options().checks = true;
        test();
    }
    emulation_options() = before;
}

// The message of a launch that must fail, in every order.
template <class F>
void must_fail(const F& launch_it, const std::vector<std::string>& parts) {
    in_several_orders([&] {
        const std::string message = message_of<RunFailure>(launch_it);
        CHECK(is_one_line(message));
        for (const std::string& part : parts) {
            CAPTURE(message);
            CAPTURE(part);
            CHECK(contains(message, part));
        }
    });
}

std::vector<float> random_floats(size_t count, uint64_t seed) {
    SplitMix64 random(seed);
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(random.normal());
    return values;
}

}  // namespace

// ---- threads and blocks ----------------------------------------------------------------------------------------------

__global__ void note_place(int* visits, int* linear) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
    ++visits[i];
    linear[i] = static_cast<int>(i);
}

TEST_CASE("every thread of every block runs once and knows where it is") {
    in_several_orders([] {
        const dim3 grid(3, 5, 2), block(7, 3, 2);
        const size_t count = 30 * 42;
        std::vector<int> visits(count, 0), linear(count, -1), expected(count);
        std::iota(expected.begin(), expected.end(), 0);
        launch(note_place, grid, block, 0, nullptr, visits.data(), linear.data());
        CHECK(visits == std::vector<int>(count, 1));
        CHECK(linear == expected);
    });
}

struct Parameters {
    float scale;
    int64_t large;
};
__global__ void take_parameters(float* out, Parameters parameters, bf16 small, double wide) {
    out[0] = parameters.scale;
    out[1] = static_cast<float>(parameters.large >> 33);
    out[2] = to_float(small);
    out[3] = static_cast<float>(wide);
    parameters.scale = 0;  // each thread has its own copy
}

TEST_CASE("arguments are converted to the kernel's parameters, and each thread gets its own copy") {
    float out[4] = {};
    launch(take_parameters, 1, 40, 0, nullptr, out, Parameters{2.5f, int64_t{3} << 33}, from_float<bf16>(1.5f), 7);
    CHECK(out[0] == 2.5f);
    CHECK(out[1] == 3.0f);
    CHECK(out[2] == 1.5f);
    CHECK(out[3] == 7.0f);
}

__global__ void do_nothing() {}

TEST_CASE("launches that a GPU refuses are refused") {
    CHECK(contains(message_of<RunFailure>([] { launch(do_nothing, 1, 1025, 0, nullptr); }), "1024 threads"));
    CHECK(contains(message_of<RunFailure>([] { launch(do_nothing, 1, 0, 0, nullptr); }), "1024 threads"));
    CHECK(contains(message_of<RunFailure>([] { launch(do_nothing, 0, 32, 0, nullptr); }), "a grid"));
    CHECK(contains(message_of<RunFailure>([] { launch(do_nothing, dim3(1, 65536), 32, 0, nullptr); }), "65535"));
    CHECK(contains(message_of<RunFailure>([] { launch(do_nothing, 1, 32, 227 * 1024 + 1, nullptr); }), "232448"));
    CHECK_NOTHROW(launch(do_nothing, 1, 1024, 227 * 1024, nullptr));
}

TEST_CASE("what only means something in a kernel fails outside one") {
    CHECK(contains(message_of<RunFailure>([] { __syncthreads(); }), "outside a kernel"));
    CHECK(contains(message_of<RunFailure>([] { __shfl_sync(1, 1.0f, 0); }), "outside a kernel"));
    CHECK(contains(message_of<RunFailure>([] { SharedMemory().take<float>(1); }), "outside a kernel"));
}

__global__ void launch_from_kernel() {
    launch(do_nothing, 1, 1, 0, nullptr);
}
__global__ void throw_number() {
    if (threadIdx.x == 2) throw 7;
}
__global__ void throw_in_block(unsigned first_bad) {
    if (blockIdx.x >= first_bad && threadIdx.x == 3) throw RunFailure("thrown");
    __syncthreads();
}

TEST_CASE("an exception in a kernel ends its launch with a message that names kernel, launch, block and thread") {
    must_fail([] { launch(throw_in_block, 300, dim3(5, 2), 16, nullptr, 17u); },
              {"kernel throw_in_block <<<(300,1,1), (5,2,1), 16>>>, block (17,0,0), thread (3,", "thrown"});
    must_fail([] { launch(throw_number, 1, 4, 0, nullptr); }, {"thread (2,0,0)", "unknown type"});
    must_fail([] { launch(launch_from_kernel, 1, 1, 0, nullptr); }, {"kernel do_nothing", "inside a kernel"});
}

template <class X, int n>
__global__ void fail_as_template(X*) {
    throw RunFailure("thrown");
}

TEST_CASE("the message has the kernel's template arguments") {
    must_fail([] { launch(fail_as_template<bf16, 7>, 1, 1, 0, nullptr, nullptr); },
              {"kernel fail_as_template<bf16, 7> <<<"});
}

struct CountsDestructions {
    int* count;
    ~CountsDestructions() { ++*count; }
};
__global__ void hold_objects(int* destroyed) {
    const CountsDestructions object = {destroyed};
    __syncwarp();
    if (threadIdx.x == 20) throw RunFailure("thrown");
    __syncthreads();
}

TEST_CASE("when one thread fails the objects of the waiting ones are destroyed, and the next launch is whole") {
    in_several_orders([] {
        int destroyed = 0;
        CHECK_THROWS_AS(launch(hold_objects, 1, 32, 0, nullptr, &destroyed), RunFailure);
        CHECK(destroyed == 32);  // all of them had begun, because they met in __syncwarp
        std::vector<int> visits(64, 0), linear(64);
        launch(note_place, 1, 64, 0, nullptr, visits.data(), linear.data());
        CHECK(visits == std::vector<int>(64, 1));
    });
}

// ---- barriers --------------------------------------------------------------------------------------------------------

// Every round each thread reads what its neighbour wrote in the round before.
__global__ void pass_around(int* out, int rounds) {
    SharedMemory shared;
    Shared<int> ring = shared.take<int>(blockDim.x);
    const unsigned t = threadIdx.x;
    ring[t] = static_cast<int>(t);
    __syncthreads();
    for (int i = 0; i < rounds; ++i) {
        const int next = ring[(t + 1) % blockDim.x];
        __syncthreads();
        ring[t] = next;
        __syncthreads();
    }
    out[blockIdx.x * blockDim.x + t] = ring[t];
}

TEST_CASE("__syncthreads orders what the threads of a block write and read") {
    in_several_orders([] {
        for (const unsigned threads : {1, 2, 33, 160, 1024}) {
            std::vector<int> out(3 * threads, -1);
            launch(pass_around, 3, threads, shared_bytes_of<int>(threads), nullptr, out.data(), 5);
            for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == static_cast<int>((i + 5) % threads));
        }
    });
}

__global__ void some_skip_barrier(unsigned first) {
    if (threadIdx.x < first) __syncthreads();
}
__global__ void two_barriers(unsigned first) {
    if (threadIdx.x < first) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
__global__ void barrier_and_shuffle() {
    if (threadIdx.x < 5) {
        __shfl_xor_sync(0xffffffff, 1, 1);
    } else {
        __syncthreads();
    }
}

TEST_CASE("a barrier that not all threads reach is named") {
    must_fail([] { launch(some_skip_barrier, 2, 70, 0, nullptr, 40u); },
              {"thread (0,0,0) waits at __syncthreads() of ", "test_emulation.cpp:", "for thread (40,0,0)",
               "left the kernel"});
    must_fail([] { launch(two_barriers, 1, 64, 0, nullptr, 9u); },
              {"while others wait at that of", "same way to a barrier"});
    must_fail([] { launch(barrier_and_shuffle, 1, 64, 0, nullptr); },
              {"waits at __shfl_xor_sync()", "0xffffffff", "for thread (5,0,0), which waits at __syncthreads()"});
    CHECK_NOTHROW(launch(some_skip_barrier, 2, 70, 0, nullptr, 70u));
    CHECK_NOTHROW(launch(some_skip_barrier, 2, 70, 0, nullptr, 0u));
}

// ---- warps -----------------------------------------------------------------------------------------------------------

template <class T>
__global__ void shuffle_all(T* out, int width) {
    const int lane = static_cast<int>(threadIdx.x);
    const T own = static_cast<T>(lane * 3 + 1);
    out[lane] = __shfl_sync(0xffffffff, own, lane * 7 + 3, width);
    out[32 + lane] = __shfl_up_sync(0xffffffff, own, 3, width);
    out[64 + lane] = __shfl_down_sync(0xffffffff, own, 3, width);
    out[96 + lane] = __shfl_xor_sync(0xffffffff, own, 5, width);
}

template <class T>
void check_shuffles() {
    for (const int width : {32, 16, 8, 4}) {
        std::vector<T> out(128);
        launch(shuffle_all<T>, 1, 32, 0, nullptr, out.data(), width);
        for (int lane = 0; lane < 32; ++lane) {
            const int first = lane - lane % width;
            const auto value_of = [](int source) { return static_cast<T>(source * 3 + 1); };
            CHECK(out[static_cast<size_t>(lane)] == value_of(first + (lane * 7 + 3) % width));
            CHECK(out[static_cast<size_t>(32 + lane)] == value_of(lane - 3 < first ? lane : lane - 3));
            CHECK(out[static_cast<size_t>(64 + lane)] == value_of(lane + 3 >= first + width ? lane : lane + 3));
            CHECK(out[static_cast<size_t>(96 + lane)] == value_of((lane ^ 5) < first + width ? lane ^ 5 : lane));
        }
    }
}

TEST_CASE("the four shuffles, whole warps and segments of them, for every type") {
    in_several_orders([] {
        check_shuffles<int>();
        check_shuffles<unsigned>();
        check_shuffles<float>();
        check_shuffles<double>();
        check_shuffles<int64_t>();
        check_shuffles<unsigned long long>();
    });
}

__global__ void vote_all(unsigned* out) {
    const unsigned lane = threadIdx.x % 32;
    const unsigned half = lane < 16 ? 0x0000ffff : 0xffff0000;
    unsigned* const own = out + threadIdx.x * 6;
    own[0] = __ballot_sync(0xffffffff, lane % 3 == 0);
    own[1] = __ballot_sync(half, lane % 2);
    own[2] = static_cast<unsigned>(__any_sync(0xffffffff, lane == 31));
    own[3] = static_cast<unsigned>(__any_sync(0xffffffff, 0));
    own[4] = static_cast<unsigned>(__all_sync(half, lane < 16));
    own[5] = static_cast<unsigned>(__all_sync(0xffffffff, 4));
}

TEST_CASE("votes, of whole warps and of halves with masks of their own") {
    in_several_orders([] {
        std::vector<unsigned> out(64 * 6);
        launch(vote_all, 1, 64, 0, nullptr, out.data());
        for (unsigned thread = 0; thread < 64; ++thread) {
            const unsigned* const own = &out[thread * 6];
            const bool lower = thread % 32 < 16;
            CHECK(own[0] == 0x49249249u);
            CHECK(own[1] == (lower ? 0x0000aaaau : 0xaaaa0000u));
            CHECK(own[2] == 1);
            CHECK(own[3] == 0);
            CHECK(own[4] == (lower ? 1u : 0u));
            CHECK(own[5] == 1);
        }
    });
}

__global__ void lanes_leave_early(unsigned remaining) {
    if (threadIdx.x >= remaining) return;
    __shfl_down_sync(0xffffffff, 1.0f, 1);
}
__global__ void name_lanes(unsigned mask) {
    __syncwarp(mask);
}
__global__ void different_operations() {
    if (threadIdx.x % 2 == 0) {
        __shfl_xor_sync(0xffffffff, 1.0f, 2);
    } else {
        __shfl_sync(0xffffffff, 1.0f, 3);
    }
}
__global__ void different_types() {
    if (threadIdx.x % 2 == 0) {
        __shfl_xor_sync(0xffffffff, 1.0f, 2);
    } else {
        __shfl_xor_sync(0xffffffff, 1, 2);
    }
}
__global__ void read_beyond_mask() {
    if (threadIdx.x < 4) __shfl_down_sync(0xf, 1.0f, 2);
}
__global__ void odd_width() {
    __shfl_xor_sync(0xffffffff, 1.0f, 1, 12);
}

TEST_CASE("warp operations with absent lanes, wrong masks or different operations are named") {
    must_fail(
        [] { launch(lanes_leave_early, 1, 64, 0, nullptr, 40u); },
        {"thread (32,0,0) waits at __shfl_down_sync()", "0xffffffff", "thread (40,0,0), which has left the kernel"});
    must_fail([] { launch(name_lanes, 1, 33, 0, nullptr, 0xffffffffu); },
              {"thread (32,0,0)", "does not have", "0xffffffff"});
    must_fail([] { launch(name_lanes, 1, 32, 0, nullptr, 0x7fffffffu); },
              {"thread (31,0,0)", "its own mask 0x7fffffff"});
    must_fail([] { launch(different_operations, 1, 32, 0, nullptr); }, {"__shfl_xor_sync()", "__shfl_sync()"});
    must_fail([] { launch(different_types, 1, 32, 0, nullptr); }, {"another operation"});
    must_fail([] { launch(read_beyond_mask, 1, 32, 0, nullptr); }, {"reads lane 4", "not in the mask"});
    must_fail([] { launch(odd_width, 1, 32, 0, nullptr); }, {"width 12"});
}

// ---- shared memory ---------------------------------------------------------------------------------------------------

__global__ void use_elements(float* out) {
    SharedMemory shared;
    Shared<float> a = shared.take<float>(5);
    Shared<bf16> b = shared.take<bf16>(9);
    Shared<float4> c = shared.take<float4>(2);
    if (threadIdx.x != 0) return;
    for (int i = 0; i < 5; ++i) a[i] = static_cast<float>(i);
    a[1] += 10.0f;
    a[2] -= a[1];
    a[3] *= 4.0f;
    a[4] /= 8.0f;
    a[0] = a[3];
    b[8] = from_float<bf16>(3.0f);
    c[1] = make_float4(1, 2, 3, 4);
    const float4 four = c[1];
    Shared<float> tail = a + 2;
    tail += 1;
    out[0] = a[0];
    out[1] = a[1];
    out[2] = tail[-1];
    out[3] = tail[1];
    out[4] = to_float(b[8]);
    out[5] = four.z;
    out[6] = fmaxf(a[0], a[1]) + max(a[0], 1.0f);
    out[7] = __shfl_sync(1, a[1], 0);
}

TEST_CASE("elements of shared arrays can be used as numbers") {
    float out[8];
    launch(use_elements, 1, 3, shared_bytes_of<float, bf16, float4>(5, 9, 2), nullptr, out);
    const float expected[8] = {12, 11, -9, 0.5f, 3, 3, 24, 11};
    for (int i = 0; i < 8; ++i) CHECK(out[i] == expected[i]);
}

TEST_CASE("shared_bytes_of counts arrays rounded up to 16 bytes") {
    CHECK(shared_bytes_of<float>(4) == 16);
    CHECK(shared_bytes_of<float>(5) == 32);
    CHECK(shared_bytes_of<float, bf16, float4>(5, 9, 2) == 32 + 32 + 32);
    CHECK(shared_bytes_of<bf16>(int64_t{1} << 33) == size_t{1} << 34);
}

__global__ void out_of_range(int64_t index, int writes) {
    SharedMemory shared;
    Shared<float> before = shared.take<float>(8);
    Shared<float> a = shared.take<float>(7);
    before[0] = 1.0f;
    if (writes != 0) {
        a[index] = 1.0f;
    } else {
        const float value = a[index];
        static_cast<void>(value);
    }
}
__global__ void vector_out_of_range() {
    SharedMemory shared;
    shared.take<float>(7).store_vec(4, Vec<float, 4>{});
}
__global__ void vector_misaligned() {
    SharedMemory shared;
    shared.take<float>(8).store_vec(2, Vec<float, 4>{});
}
__global__ void take_too_much() {
    SharedMemory shared;
    shared.take<float>(4);
    shared.take<bf16>(9);
}

TEST_CASE("shared memory out of range is named, even where another array lies") {
    must_fail([] { launch(out_of_range, 1, 1, 64, nullptr, 7, 1); },
              {"out of range: element 7 of the shared array of 7 taken at ", "test_emulation.cpp:"});
    must_fail([] { launch(out_of_range, 1, 1, 64, nullptr, -1, 0); }, {"element -1 of the shared array of 7"});
    must_fail([] { launch(out_of_range, 1, 1, 64, nullptr, int64_t{1} << 32, 1); }, {"element 4294967296"});
    must_fail([] { launch(vector_out_of_range, 1, 1, 64, nullptr); }, {"elements 4 to 7 of the shared array of 7"});
    must_fail([] { launch(vector_misaligned, 1, 1, 64, nullptr); }, {"element 2", "aligned to 16"});
    must_fail([] { launch(take_too_much, 1, 1, 33, nullptr); },
              {"takes 9 elements of 2 bytes at byte 16", "gave 33 bytes"});
    CHECK_NOTHROW(launch(take_too_much, 1, 1, 34, nullptr));
    CHECK_NOTHROW(launch(out_of_range, 1, 1, 64, nullptr, 6, 1));
}

__global__ void read_unwritten(float* out, int writes) {
    SharedMemory shared;
    Shared<float> a = shared.take<float>(4);
    if (writes != 0) a[2] = 5.0f;
    if (blockIdx.x == 1) out[0] = a[2];
}

TEST_CASE("shared memory that this block has not written is named, though the block before it wrote there") {
    float out = 0;
    launch(read_unwritten, 2, 1, 16, nullptr, &out, 1);
    CHECK(out == 5.0f);
    must_fail([&] { launch(read_unwritten, 2, 1, 16, nullptr, &out, 0); },
              {"block (1,0,0)", "reads element 2 of the shared array of 4", "no thread of this block has written"});
}

enum class Order { none, block, warp, late_warp };

// Lane 1 writes, then another thread reads, then lane 1 writes again.
__global__ void write_read_write(unsigned reader, Order first, Order second, float* out) {
    SharedMemory shared;
    Shared<float> a = shared.take<float>(4);
    if (threadIdx.x == 1) a[3] = 1.0f;
    if (first == Order::block) __syncthreads();
    if (first == Order::warp) __syncwarp();
    if (first == Order::none) __shfl_xor_sync(0xffffffff, 0, 1);  // the lanes meet, but memory is not ordered
    if (threadIdx.x == reader) out[0] = a[3];
    if (second == Order::block) __syncthreads();
    if (second == Order::warp) __syncwarp();
    if (second == Order::late_warp) {  // the writer meets others, not the reader
        if (threadIdx.x < 16) __syncwarp(0x0000ffff);
    }
    if (threadIdx.x == 1) a[3] = 2.0f;
}

TEST_CASE("a read and a write of different threads need a barrier between them") {
    float out = 0;
    const auto run = [&](unsigned reader, Order first, Order second) {
        launch(write_read_write, 1, 64, 16, nullptr, reader, first, second, &out);
    };
    in_several_orders([&] {
        CHECK_NOTHROW(run(20, Order::block, Order::block));
        CHECK_NOTHROW(run(20, Order::warp, Order::warp));
        CHECK_NOTHROW(run(50, Order::block, Order::block));
        CHECK_NOTHROW(run(1, Order::none, Order::none));  // the same thread
        CHECK(out == 1.0f);
    });
    must_fail([&] { run(20, Order::none, Order::block); }, {"thread (20,0,0) reads element 3", "of 4"});
    must_fail([&] { run(50, Order::warp, Order::block); }, {"element 3"});
    must_fail([&] { run(20, Order::block, Order::none); }, {"element 3", "(race)"});
    must_fail([&] { run(50, Order::block, Order::warp); }, {"element 3", "(race)"});
    must_fail([&] { run(20, Order::warp, Order::late_warp); }, {"element 3", "(race)"});
}

// Meetings of half warps carry what they know on to the next meeting.
__global__ void chain_of_meetings(int complete, float* out) {
    SharedMemory shared;
    Shared<float> a = shared.take<float>(1);
    const unsigned t = threadIdx.x;
    if (t == 0) a[0] = 3.0f;
    if (t < 16) __syncwarp(0x0000ffff);
    if (t >= 8 && t < 24 && complete != 0) __syncwarp(0x00ffff00);
    if (t >= 16) __syncwarp(0xffff0000);
    if (t == 31) out[0] = a[0];
}

TEST_CASE("order is carried on from one __syncwarp to the next") {
    float out = 0;
    in_several_orders([&] { launch(chain_of_meetings, 1, 32, 16, nullptr, 1, &out); });
    CHECK(out == 3.0f);
    must_fail([&] { launch(chain_of_meetings, 1, 32, 16, nullptr, 0, &out); }, {"element 0"});
}

__global__ void many_readers_one_writer(unsigned writer) {
    SharedMemory shared;
    Shared<float> a = shared.take<float>(1);
    if (threadIdx.x == 0) a[0] = 1.0f;
    __syncthreads();
    const float value = a[0];
    static_cast<void>(value);
    if (threadIdx.x < 32) __syncwarp();  // whoever writes is ordered behind the readers of its own warp only
    if (threadIdx.x == writer) a[0] = 2.0f;
}

TEST_CASE("all readers of an element count, not only the last") {
    must_fail([] { launch(many_readers_one_writer, 1, 96, 16, nullptr, 3u); }, {"element 0", "(race)"});
    must_fail([] { launch(many_readers_one_writer, 1, 96, 16, nullptr, 40u); }, {"element 0", "(race)"});
    CHECK_NOTHROW(launch(many_readers_one_writer, 1, 32, 16, nullptr, 3u));
}

__global__ void write_twice() {
    SharedMemory shared;
    shared.take<bf16>(4)[threadIdx.x / 33] = bf16{0};
}
__global__ void write_neighbours() {
    SharedMemory shared;
    shared.take<bf16>(64)[threadIdx.x] = bf16{0};
}

TEST_CASE("two writes to one element race, writes to neighbouring ones do not") {
    must_fail([] { launch(write_twice, 1, 64, 16, nullptr); }, {"(race)"});
    CHECK_NOTHROW(launch(write_neighbours, 1, 64, 128, nullptr));
}

TEST_CASE("checks can be switched off") {
    emulation_options().checks = false;
    CHECK_NOTHROW(launch(write_twice, 1, 64, 16, nullptr));
    emulation_options() = EmulationOptions();
    CHECK_THROWS_AS(launch(write_twice, 1, 64, 16, nullptr), RunFailure);
}

__global__ void raw_shared(int* out) {
    __shared__ int numbers[64];
    numbers[threadIdx.x] = static_cast<int>(threadIdx.x + blockIdx.x);
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = numbers[63 - threadIdx.x];
}

TEST_CASE("a raw __shared__ array belongs to the block") {
    in_several_orders([] {
        std::vector<int> out(20 * 64);
        launch(raw_shared, 20, 64, 0, nullptr, out.data());
        for (int i = 0; i < 20 * 64; ++i) CHECK(out[static_cast<size_t>(i)] == 63 - i % 64 + i / 64);
    });
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------------

// Sums `tiles` tiles of 4 floats for each thread, copying two ahead. `slack` 0 is right; 1 waits for too few.
template <int slack>
__global__ void sum_tiles(float* out, const float* in, int tiles) {
    SharedMemory shared;
    Shared<float> buffer = shared.take<float>(3 * 4 * blockDim.x) + 4 * threadIdx.x;
    const auto fetch = [&](int tile) {
        const float* const from = in + (static_cast<size_t>(tile) * blockDim.x + threadIdx.x) * 4;
        copy_async_16_or_zero(buffer + tile % 3 * 4 * blockDim.x, tile < tiles ? from : nullptr, tile < tiles);
        copy_async_commit();
    };
    fetch(0);
    fetch(1);
    float sum = 0;
    for (int tile = 0; tile < tiles; ++tile) {
        fetch(tile + 2);
        copy_async_wait<2 + slack>();
        const Vec<float, 4> four = buffer.template load_vec<4>(tile % 3 * 4 * blockDim.x);
        for (const float value : four.v) sum += value;
    }
    out[threadIdx.x] = sum;
}
__global__ void read_others_copy(const float* in, int with_barrier) {
    SharedMemory shared;
    Shared<float> a = shared.take<float>(4 * blockDim.x);
    copy_async_16(a + 4 * threadIdx.x, in);
    copy_async_commit();
    copy_async_wait<0>();
    if (with_barrier != 0) __syncthreads();
    const float value = a[4 * (threadIdx.x ^ 1)];
    static_cast<void>(value);
}
__global__ void wait_without_commit(const float* in) {
    SharedMemory shared;
    Shared<float> a = shared.take<float>(4);
    copy_async_16(a, in);
    copy_async_wait<0>();
    const float value = a[0];
    static_cast<void>(value);
}
__global__ void copy_misaligned(const float* in, int to, int from) {
    SharedMemory shared;
    copy_async_16(shared.take<float>(12) + to, in + from);
}

TEST_CASE("asynchronous copies arrive when they are waited for, and not before") {
    const int tiles = 7, threads = 40;
    alignas(16) static float in[tiles * threads * 4];
    const std::vector<float> values = random_floats(tiles * threads * 4, 5);
    std::copy(values.begin(), values.end(), in);
    in_several_orders([&] {
        std::vector<float> out(threads);
        launch(sum_tiles<0>, 1, threads, shared_bytes_of<float>(12 * threads), nullptr, out.data(), in, tiles);
        for (int t = 0; t < threads; ++t) {
            float expected = 0;
            for (int i = 0; i < tiles; ++i) {
                for (int j = 0; j < 4; ++j) expected += in[(i * threads + t) * 4 + j];
            }
            CHECK(out[static_cast<size_t>(t)] == expected);
        }
    });
    float sum = 0;
    must_fail([&] { launch(sum_tiles<1>, 1, 1, 48, nullptr, &sum, in, tiles); },
              {"asynchronous copy", "copy_async_wait"});
    must_fail([&] { launch(wait_without_commit, 1, 1, 16, nullptr, in); }, {"asynchronous copy"});
    must_fail([&] { launch(read_others_copy, 1, 8, 128, nullptr, in, 0); }, {"thread ("});
    CHECK_NOTHROW(launch(read_others_copy, 1, 8, 128, nullptr, in, 1));
    must_fail([&] { launch(copy_misaligned, 1, 1, 48, nullptr, in, 2, 0); }, {"aligned to 16"});
    must_fail([&] { launch(copy_misaligned, 1, 1, 48, nullptr, in, 0, 1); }, {"no multiple of 16"});
    must_fail([&] { launch(copy_misaligned, 1, 1, 48, nullptr, in, 12, 0); }, {"out of range: elements 12 to 15"});
}

// ---- atomics ---------------------------------------------------------------------------------------------------------

__global__ void count_all(int* counts, unsigned* smallest, unsigned long long* sum) {
    SharedMemory shared;
    Shared<int> in_block = shared.take<int>(1);
    if (threadIdx.x == 0) in_block[0] = 0;
    __syncthreads();
    atomicAdd(&in_block[0], 2);
    const unsigned number = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&counts[0], 1);
    atomicMax(&counts[1], static_cast<int>(number));
    atomicMin(smallest, number + 5);
    atomicAdd(sum, 1ull << 33);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&counts[2], in_block[0]);
    int old = counts[3], expected;  // a sum by compare and swap
    do {
        expected = old;
        old = atomicCAS(&counts[3], expected, expected + 3);
    } while (old != expected);
    if (number == 77) atomicExch(&counts[4], 9);
}
__global__ void mix_atomic_and_plain(int writes) {
    SharedMemory shared;
    Shared<int> a = shared.take<int>(1);
    if (threadIdx.x == 0) a[0] = 0;
    __syncthreads();
    if (threadIdx.x != 5) {
        atomicAdd(&a[0], 1);
    } else if (writes != 0) {
        a[0] = 1;
    } else {
        const int value = a[0];
        static_cast<void>(value);
    }
}

TEST_CASE("atomics, in global and in shared memory") {
    in_several_orders([] {
        int counts[5] = {};
        unsigned smallest = ~0u;
        unsigned long long sum = 0;
        launch(count_all, 19, 96, 16, nullptr, counts, &smallest, &sum);
        const int threads = 19 * 96;
        CHECK(counts[0] == threads);
        CHECK(counts[1] == threads - 1);
        CHECK(counts[2] == 2 * threads);
        CHECK(counts[3] == 3 * threads);
        CHECK(counts[4] == 9);
        CHECK(smallest == 5);
        CHECK(sum == static_cast<unsigned long long>(threads) << 33);
    });
    must_fail([] { launch(mix_atomic_and_plain, 1, 8, 16, nullptr, 0); }, {"(race)"});
    must_fail([] { launch(mix_atomic_and_plain, 1, 8, 16, nullptr, 1); }, {"(race)"});
}

// ---- order -----------------------------------------------------------------------------------------------------------

// The threads' numbers in the order in which they come by, before the barrier and after it.
__global__ void append_number(int* count, int* numbers) {
    numbers[atomicAdd(count, 1)] = static_cast<int>(threadIdx.x);
    __syncthreads();
    numbers[atomicAdd(count, 1)] = static_cast<int>(threadIdx.x);
}

TEST_CASE("a random order exposes a kernel whose result depends on it, and the same seed repeats it") {
    struct Numbers {
        std::vector<int> before, after;
    };
    const auto order_of = [](uint64_t seed) {
        emulation_options().seed = seed;
        int count = 0;
        std::vector<int> numbers(200);
        launch(append_number, 1, 100, 0, nullptr, &count, numbers.data());
        emulation_options() = EmulationOptions();
        return Numbers{{numbers.begin(), numbers.begin() + 100}, {numbers.begin() + 100, numbers.end()}};
    };
    std::vector<int> sorted(100);
    std::iota(sorted.begin(), sorted.end(), 0);
    CHECK(order_of(0).before == sorted);
    Numbers random = order_of(1);
    CHECK(random.before == order_of(1).before);
    CHECK(random.after == order_of(1).after);
    CHECK(random.before != order_of(2).before);
    const auto steps_up = [](const std::vector<int>& numbers) {
        int count = 0;
        for (size_t i = 1; i < numbers.size(); ++i) count += numbers[i - 1] < numbers[i];
        return count;
    };
    CHECK(std::abs(steps_up(random.before) - 50) < 15);
    CHECK(std::abs(steps_up(random.after) - 50) < 15);
    int last_goes_first = 0;  // the thread that opens the barrier gets no advantage
    for (uint64_t seed = 1; seed <= 20; ++seed)
        last_goes_first += order_of(seed).before.back() == order_of(seed).after[0];
    CHECK(last_goes_first < 5);
    for (std::vector<int>& numbers : {std::ref(random.before), std::ref(random.after)}) {
        std::sort(numbers.begin(), numbers.end());
        CHECK(numbers == sorted);
    }
}

// ---- tensor cores ----------------------------------------------------------------------------------------------------

// C (16,8) = A (16,16) B (16,8) + C, fragments gathered element by element as the PTX manual describes them.
__global__ void one_mma(float* c, const bf16* a, const bf16* b) {
    const int lane = static_cast<int>(threadIdx.x), group = lane >> 2, in_group = lane & 3;
    uint32_t a_registers[4], b_registers[2];
    const auto pair = [](bf16 low, bf16 high) { return static_cast<uint32_t>(high.bits) << 16 | low.bits; };
    for (int i = 0; i < 8; i += 2) {
        const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        a_registers[i / 2] = pair(a[row * 16 + column], a[row * 16 + column + 1]);
    }
    for (int i = 0; i < 4; i += 2) {
        const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
        b_registers[i / 2] = pair(b[row * 8 + group], b[(row + 1) * 8 + group]);
    }
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
    mma_m16n8k16(d, a_registers, b_registers);
    for (int i = 0; i < 4; ++i) c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = d[i];
}

TEST_CASE("mma_m16n8k16 is a matrix product in the fragments of the PTX manual") {
    const std::vector<float> values = random_floats(16 * 16 + 16 * 8 + 16 * 8, 3);
    std::vector<bf16> a(16 * 16), b(16 * 8);
    for (size_t i = 0; i < a.size(); ++i) a[i] = from_float<bf16>(values[i]);
    for (size_t i = 0; i < b.size(); ++i) b[i] = from_float<bf16>(values[a.size() + i]);
    in_several_orders([&] {
        std::vector<float> c(values.end() - 16 * 8, values.end());
        const std::vector<float> before = c;
        launch(one_mma, 1, 32, 0, nullptr, c.data(), a.data(), b.data());
        for (int m = 0; m < 16; ++m) {
            for (int n = 0; n < 8; ++n) {
                double expected = before[static_cast<size_t>(m * 8 + n)];
                for (int k = 0; k < 16; ++k)
                    expected += double{to_float(a[static_cast<size_t>(m * 16 + k)])} *
                                to_float(b[static_cast<size_t>(k * 8 + n)]);
                CHECK(c[static_cast<size_t>(m * 8 + n)] == doctest::Approx(expected).epsilon(1e-5));
            }
        }
    });
}

// C (16 blocks, 8) = A (16 blocks, K) B^T, B (8, K), as kernels do it: tiles in shared memory, fragments by ldmatrix.
// With `transposed` A and B come as (K, 16 blocks) and (K, 8).
__global__ void product_by_ldmatrix(float* c, const bf16* a, const bf16* b, int K, int transposed) {
    SharedMemory shared;
    constexpr int row = 24;  // 16 elements and 8 more
    Shared<bf16> a_tile = shared.take<bf16>(16 * row), b_tile = shared.take<bf16>(16 * row);
    const int lane = static_cast<int>(threadIdx.x), first_row = static_cast<int>(blockIdx.x) * 16;
    const int rows = static_cast<int>(gridDim.x) * 16;
    float d[4] = {};
    for (int k = 0; k < K; k += 16) {
        for (int i = lane; i < 256; i += 32) {
            const int y = i / 16, x = i % 16;
            a_tile[y * row + x] = transposed != 0 ? a[(k + y) * rows + first_row + x] : a[(first_row + y) * K + k + x];
        }
        for (int i = lane; i < 128; i += 32) {
            const int y = transposed != 0 ? i / 8 : i / 16, x = transposed != 0 ? i % 8 : i % 16;
            b_tile[y * row + x] = transposed != 0 ? b[(k + y) * 8 + x] : b[y * K + k + x];
        }
        __syncwarp();
        uint32_t a_registers[4], b_registers[2];
        if (transposed != 0) {
            ldmatrix_x4_trans(a_registers, a_tile + (lane % 8 + lane / 16 * 8) * row + lane / 8 % 2 * 8);
            ldmatrix_x2_trans(b_registers, b_tile + lane % 16 * row);
        } else {
            ldmatrix_x4(a_registers, a_tile + lane % 16 * row + lane / 16 * 8);
            ldmatrix_x2(b_registers, b_tile + lane % 8 * row + lane / 8 % 2 * 8);
        }
        mma_m16n8k16(d, a_registers, b_registers);
        __syncwarp();
    }
    for (int i = 0; i < 4; ++i) c[(first_row + lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

TEST_CASE("ldmatrix, plain and transposed, gives mma its fragments") {
    const int blocks = 3, K = 80, M = blocks * 16, N = 8;
    const std::vector<float> values = random_floats(static_cast<size_t>((M + N) * K), 4);
    const auto a_at = [&](int m, int k) { return from_float<bf16>(values[static_cast<size_t>(m * K + k)]); };
    const auto b_at = [&](int n, int k) { return from_float<bf16>(values[static_cast<size_t>((M + n) * K + k)]); };
    for (const int transposed : {0, 1}) {
        std::vector<bf16> a(static_cast<size_t>(M * K)), b(static_cast<size_t>(N * K));
        for (int k = 0; k < K; ++k) {
            for (int m = 0; m < M; ++m) a[static_cast<size_t>(transposed != 0 ? k * M + m : m * K + k)] = a_at(m, k);
            for (int n = 0; n < N; ++n) b[static_cast<size_t>(transposed != 0 ? k * N + n : n * K + k)] = b_at(n, k);
        }
        in_several_orders([&] {
            std::vector<float> c(static_cast<size_t>(M * N), NAN);
            launch(product_by_ldmatrix, blocks, 32, shared_bytes_of<bf16, bf16>(384, 384), nullptr, c.data(), a.data(),
                   b.data(), K, transposed);
            for (int m = 0; m < M; ++m) {
                for (int n = 0; n < N; ++n) {
                    double expected = 0, magnitude = 0;
                    for (int k = 0; k < K; ++k) {
                        const double product = double{to_float(a_at(m, k))} * to_float(b_at(n, k));
                        expected += product;
                        magnitude += std::fabs(product);
                    }
                    CHECK(std::fabs(c[static_cast<size_t>(m * N + n)] - expected) < 1e-6 * magnitude);
                }
            }
        });
    }
}

__global__ void ldmatrix_wrongly(int mistake) {
    SharedMemory shared;
    Shared<bf16> a = shared.take<bf16>(32 * 8);
    const int lane = static_cast<int>(threadIdx.x);
    a.store_vec(lane * 8, Vec<bf16, 8>{});
    if (mistake != 0) __syncwarp();
    if (mistake == 2 && lane == 9) return;
    uint32_t r[4];
    ldmatrix_x4(r, a + (mistake == 1 ? lane * 8 + 4 : lane * 8));
}

TEST_CASE("mistakes around ldmatrix are named") {
    must_fail([] { launch(ldmatrix_wrongly, 1, 32, 512, nullptr, 0); }, {"reads element", "(race)"});
    must_fail([] { launch(ldmatrix_wrongly, 1, 32, 512, nullptr, 1); }, {"thread ("});
    must_fail([] { launch(ldmatrix_wrongly, 1, 32, 512, nullptr, 2); }, {"waits at ldmatrix_x4", "for thread (9,0,0)"});
    CHECK_NOTHROW(launch(ldmatrix_wrongly, 1, 32, 512, nullptr, 3));
}

// ---- vectors, runtime, everything together -----------------------------------------------------------------------------

__global__ void copy_vectors(float* out, const float* in, int offset) {
    store_vec(out, load_vec<4>(in + offset));
}

TEST_CASE("vector accesses move n values and insist on their alignment") {
    alignas(16) float in[8] = {0, 1, 2, 3, 4, 5, 6, 7}, out[4] = {};
    launch(copy_vectors, 1, 1, 0, nullptr, out, in, 4);
    for (int i = 0; i < 4; ++i) CHECK(out[i] == static_cast<float>(4 + i));
    must_fail([&] { launch(copy_vectors, 1, 1, 0, nullptr, out, in, 1); }, {"thread (0,0,0)", "no multiple of 16"});
    static_assert(sizeof(Vec<bf16, 8>) == 16 && alignof(Vec<bf16, 8>) == 16 && sizeof(Vec<bf16, 1>) == 2);
}

__global__ void forget_to_wait() {}

TEST_CASE("a kernel launched early must wait for the one before") {
    must_fail([] { launch_dependent(forget_to_wait, 2, 4, 0, nullptr); },
              {"kernel forget_to_wait", "wait_for_previous_kernel()"});
}

TEST_CASE("memory of the emulated device begins as NaN, events measure time") {
    float* device = nullptr;
    REQUIRE(cudaMalloc(&device, 7 * sizeof(float)) == cudaSuccess);
    CHECK(reinterpret_cast<uintptr_t>(device) % 256 == 0);
    for (int i = 0; i < 7; ++i) CHECK(std::isnan(device[i]));
    const float host[7] = {1, 2, 3, 4, 5, 6, 7};
    float back[7] = {};
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
    CHECK(cudaMemcpyAsync(device, host, sizeof(host), cudaMemcpyHostToDevice, stream) == cudaSuccess);
    CHECK(cudaMemcpy(back, device, sizeof(back), cudaMemcpyDeviceToHost) == cudaSuccess);
    CHECK(std::memcmp(host, back, sizeof(host)) == 0);
    CHECK(cudaMemset(device, 0, 3 * sizeof(float)) == cudaSuccess);
    CHECK(device[2] == 0.0f);
    CHECK(device[3] == 4.0f);
    CHECK(cudaFree(device) == cudaSuccess);

    cudaEvent_t begin = nullptr, end = nullptr;
    float milliseconds = -1;
    CHECK(cudaEventCreate(&begin) == cudaSuccess);
    CHECK(cudaEventCreate(&end) == cudaSuccess);
    CHECK(cudaEventRecord(begin, stream) == cudaSuccess);
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end) == cudaErrorInvalidResourceHandle);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(cudaEventRecord(end, stream) == cudaSuccess);
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end) == cudaSuccess);
    CHECK(milliseconds >= 0);
    CHECK(cudaEventDestroy(begin) == cudaSuccess);
    CHECK(cudaEventDestroy(end) == cudaSuccess);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);

    CHECK(cudaMemcpy(nullptr, host, 4, cudaMemcpyDefault) == cudaErrorInvalidValue);
    CHECK(std::string(cudaGetErrorString(cudaGetLastError())) == "cudaErrorInvalidValue");
    void* huge = &device;
    CHECK(cudaMalloc(&huge, size_t{1} << 60) == cudaErrorMemoryAllocation);
    CHECK(huge == nullptr);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
}

template <class X>
void check_every_wrapper() {
    const size_t count = wrapper_threads * 8;
    std::vector<Vec<X, 16 / sizeof(X)>> in(count * sizeof(X) / 16), out(2 * in.size());
    X* const from = in.data()->v;
    const X* const to = out.data()->v;
    for (size_t i = 0; i < count; ++i) from[i] = from_float<X>(static_cast<float>(i % 61));
    alignas(16) bf16 ones[8];
    for (bf16& one : ones) one = from_float<bf16>(1.0f);
    std::vector<float> sums(6, NAN);
    int counts = -1;
    launch_every_wrapper(out.data()->v, from, ones, sums.data(), &counts, nullptr);
    for (size_t i = 0; i < 2 * count; ++i) CHECK(to_float(to[i]) == static_cast<float>(i % count % 61) + 1.0f);
    CHECK(sums == std::vector<float>{496, 64, 33, 496, 64, 33});
    CHECK(counts == 1);
}

TEST_CASE("a stream beside the others is as late as events allow, and must wait for what it needs") {
    using emulation::do_late;
    int done = 0, there = 0;
    cudaStream_t stream = nullptr, beside = nullptr;
    cudaEvent_t event = nullptr;
    CHECK(cudaStreamCreate(&stream) == cudaSuccess);
    CHECK(cudaStreamCreateWithFlags(&beside, cudaStreamNonBlocking) == cudaSuccess);
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
    const auto give = [&] {
        CHECK(cudaEventRecord(event, stream) == cudaSuccess);
        CHECK(cudaStreamWaitEvent(beside, event, 0) == cudaSuccess);
        do_late(beside, [&] { done++; });
    };
    do_late(stream, [&] { done++; });
    CHECK(done == 1);  // not beside
    give();
    CHECK(cudaMemsetAsync(&there, 0, sizeof there, stream) == cudaSuccess);
    CHECK_THROWS_WITH_AS(do_late(beside, [&] { done++; }), doctest::Contains("does not wait for what was given before"),
                         RunFailure);
    give();
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(done == 1);
    CHECK(cudaEventRecord(event, beside) == cudaSuccess);
    CHECK(done == 1);
    CHECK(cudaStreamWaitEvent(stream, event, 0) == cudaSuccess);
    CHECK(done == 3);
    give();
    CHECK(cudaStreamSynchronize(beside) == cudaSuccess);
    CHECK(done == 4);
    emulation::streams_are_late() = false;
    give();
    CHECK(done == 5);
    emulation::streams_are_late() = true;
    CHECK(cudaEventDestroy(event) == cudaSuccess);
    CHECK(cudaStreamDestroy(beside) == cudaSuccess);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("everything that cuda.h gives, in one kernel") {
    in_several_orders([] {
        check_every_wrapper<float>();
        check_every_wrapper<bf16>();
    });
}

}  // namespace lnfree::cuda
