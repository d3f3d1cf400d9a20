// Emulation: a launch. Blocks run beside each other on OpenMP's threads, each wholly on one of them; the launch returns
// when all have finished.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "block.h"
#include "capture.h"
#include "kernel_name.h"
#include "launch_log.h"
#include "runtime.h"

namespace lnfree::cuda {

namespace emulation {

// What an H200 allows (compute capability 9.0, CUDA C++ Programming Guide, "Technical Specifications").
constexpr size_t most_shared_bytes = 227 * 1024;

// Empty, or why a GPU would refuse.
inline std::string why_not(const Grid& g) {
    const auto count = [](dim3 d) { return static_cast<uint64_t>(d.x) * d.y * d.z; };
    if (count(g.grid) == 0 || g.grid.x > 2147483647u || g.grid.y > 65535 || g.grid.z > 65535)
        return "a grid must have 1 to 2^31 - 1 blocks in x, 1 to 65535 in y and z";
    if (count(g.block) == 0 || count(g.block) > BlockRunner::max_threads || g.block.z > 64)
        return "a block must have 1 to 1024 threads, at most 64 in z";
    if (g.shared_bytes > most_shared_bytes)
        return std::to_string(g.shared_bytes) + " bytes of shared memory: a block has at most " +
               std::to_string(most_shared_bytes);
    return "";
}

// The failure of the block with the lowest number, so that the same mistake gives the same message in every run.
class FirstFailure {
  public:
    void note(int64_t block, const std::string& message) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (block >= block_) return;
        block_ = block;
        message_ = message;
    }
    // Blocks after the one that failed need not run.
    bool comes_before(int64_t block) const { return block_ < block; }
    const std::string& message() const { return message_; }

  private:
    std::mutex mutex_;
    std::atomic<int64_t> block_{INT64_MAX};
    std::string message_;
};

// Block numbers in the order in which they begin: as they are, or shuffled.
class BlockOrder {
  public:
    BlockOrder(int64_t count, uint64_t seed) {
        if (seed == 0) return;
        SplitMix64 random(seed);
        numbers_.resize(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) numbers_[static_cast<size_t>(i)] = i;
        for (size_t i = numbers_.size() - 1; i > 0; --i) std::swap(numbers_[i], numbers_[random.below(i + 1)]);
    }
    int64_t operator[](int64_t i) const { return numbers_.empty() ? i : numbers_[static_cast<size_t>(i)]; }

  private:
    std::vector<int64_t> numbers_;
};

// Beside each other. Every one keeps a stack for each thread of its blocks, and Linux limits how many areas of memory a
// process may have (65530, two of them for a stack).
inline int workers() {
#ifdef _OPENMP
    return std::min(omp_get_max_threads(), 16);
#else
    return 1;
#endif
}

// This operating-system thread's own; it keeps its fibres for the next launch.
inline BlockRunner& own_runner() {
    static thread_local const std::unique_ptr<BlockRunner> runner = std::make_unique<BlockRunner>();
    return *runner;
}

// Throws RunFailure, naming kernel, block and thread, when a block fails.
inline void run_grid(const Grid& g, const void* kernel) {
    const auto name = [&] {
        return "kernel " + kernel_name(kernel) + " <<<" + text_of(g.grid) + ", " + text_of(g.block) + ", " +
               std::to_string(g.shared_bytes) + ">>>";
    };
    if (BlockRunner::current_runner() != nullptr) throw RunFailure(name() + ": launched from inside a kernel");
    if (const std::string reason = why_not(g); !reason.empty()) throw RunFailure(name() + ": " + reason);

    const uint64_t seed = emulation_options().seed;
    const auto count = static_cast<int64_t>(g.grid.x) * g.grid.y * g.grid.z;
    const BlockOrder order(count, seed);
    FirstFailure failure;
    std::atomic<bool> waited{false};
#pragma omp parallel for schedule(dynamic) num_threads(workers()) if (count > 1)
    for (int64_t i = 0; i < count; ++i) {
        const int64_t number = order[i];
        if (failure.comes_before(number)) continue;
        const auto n = static_cast<uint64_t>(number);
        const uint3 index = {static_cast<unsigned>(n % g.grid.x), static_cast<unsigned>(n / g.grid.x % g.grid.y),
                             static_cast<unsigned>(n / g.grid.x / g.grid.y)};
        try {
            BlockRunner& runner = own_runner();
            runner.run(g, index, seed == 0 ? 0 : SplitMix64(seed + n).next() | 1);
            if (runner.waited_for_previous_kernel()) waited = true;
        } catch (const std::exception& error) {
            failure.note(number, "block " + text_of(index) + ", " + error.what());
        }
    }
    if (!failure.message().empty()) throw RunFailure(name() + ", " + failure.message());
    if (g.is_dependent && !waited)
        throw RunFailure(name() + ": by launch_dependent, but no thread called wait_for_previous_kernel()");
}

template <class... P, class... A>
void launch_with(bool is_dependent, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A&&... args) {
    static_assert(sizeof...(P) == sizeof...(A), "one argument for every parameter of the kernel");
    // As on a GPU: converted to the parameters' types once, and every thread gets its own copy.
    using Call = std::pair<void (*)(P...), std::tuple<std::decay_t<P>...>>;
    const Call call(kernel, std::tuple<std::decay_t<P>...>(std::forward<A>(args)...));
    const auto run_thread = [](const void* what) {
        const auto& [function, arguments] = *static_cast<const Call*>(what);
        std::apply(function, arguments);
    };
    do_or_record([=] {
        note_done(reinterpret_cast<const void*>(kernel));
        run_grid({grid, block, shared_bytes, run_thread, &call, is_dependent}, reinterpret_cast<const void*>(kernel));
    });
}

}  // namespace emulation

// Runs `kernel` on grid.x * grid.y * grid.z blocks of block.x * block.y * block.z threads with `shared_bytes` of dynamic
// shared memory each, after what was given to `stream` before. Throws RunFailure where the launch is refused; the
// emulation also where the kernel makes one of the mistakes that it looks for.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, A&&... args) {
    emulation::launch_with(false, kernel, grid, block, shared_bytes, std::forward<A>(args)...);
}

// The same for kernels that may begin before the stream's previous kernel has ended (programmatic dependent launch, from
// compute capability 9.0 on). They call wait_for_previous_kernel() before they first touch global memory.
template <class... P, class... A>
void launch_dependent(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, A&&... args) {
    emulation::launch_with(true, kernel, grid, block, shared_bytes, std::forward<A>(args)...);
}

// In a kernel: returns when the kernels before it in the stream have ended and what they wrote can be read.
inline void wait_for_previous_kernel() {
    emulation::runner_for("wait_for_previous_kernel()").waited_for_previous_kernel() = true;
}
// In a kernel: the next one may begin as soon as all blocks of this one have called this or ended.
inline void let_next_kernel_start() {}

}  // namespace lnfree::cuda
