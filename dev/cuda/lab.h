// What the programs of the kernel laboratory share: operands, comparison, timing, the table that they print.
//
// A program offers versions of one operation (NAME.h) and problems to try them on. Every version is held to the CPU's
// function on small, odd sizes; on a GPU each is then timed on GPT-2's sizes with an empty cache, beside its floor: the
// bytes that it can not avoid at the speed at which this very device copies memory. Under the emulation nothing is timed.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "../../data/console.h"
#include "../../data/error.h"
#include "../cpu/operations.h"
#include "../method.h"
#include "compare.h"
#include "kernels.h"
#include "operands.h"
#include "timing.h"

namespace lnfree {
namespace cuda {
namespace lab {

// "bf16 16 x 1024 x 768"
template <class X, class... Sizes>
std::string label(Sizes... sizes) {
    std::string text = sizeof(X) == 2 ? "bf16" : "float", between = " ";
    for (const int64_t size : {int64_t{sizes}...}) {
        text += between + std::to_string(size);
        between = " x ";
    }
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// In kernels, besides block_sum and the engine's other helpers

// The largest of a block's values, in every thread. `partial` holds a value per warp.
__device__ __forceinline__ float block_max(float x, const Shared<float>& partial) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
    if (lane_index() == 0) partial[warp_index()] = x;
    __syncthreads();
    for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; w++) x = fmaxf(x, partial[w]);
    __syncthreads();
    return x;
}

// ---------------------------------------------------------------------------------------------------------------------
// Time

// Median seconds of 20 times, with empty caches; the first ones pay for loading the kernel.
inline double seconds_of(const std::function<void()>& run) {
    static DeviceClock clock;
    return clock.seconds_of(run, {3, 20, 20});
}

// Bytes per second, read and written, of the runtime's own copy within the device: the yardstick of everything that is
// bound by memory.
inline double copy_bandwidth() {
    constexpr int64_t floats = int64_t{1} << 27;
    const DeviceArray<float> from(floats), to(floats);
    const double seconds = seconds_of([&] {
        require_cuda(cudaMemcpyAsync(to.data(), from.data(), sizeof(float) * floats, cudaMemcpyDeviceToDevice, nullptr),
                     "cudaMemcpyAsync");
    });
    return 2.0 * sizeof(float) * floats / seconds;
}

// ---------------------------------------------------------------------------------------------------------------------
// The laboratory

// A version of an operation. F is a pointer to its launcher, the same type for all versions; NAME.h describes the arguments.
template <class F>
struct Version {
    int number;
    const char* name;
    const char* idea;  // one line, for the table
    F function;
};

// "3" or "v3" as a number, 0 for no word: every version. BadInput for anything else.
inline int parse_version(const std::vector<std::string>& words) {
    if (words.empty()) return 0;
    const std::string digits = words[0].substr(words[0].substr(0, 1) == "v" ? 1 : 0);
    if (words.size() > 1 || digits.size() != 1 || digits[0] < '1' || digits[0] > '9')
        throw BadInput("give the number of one version, or nothing for all of them");
    return digits[0] - '0';
}

// problem.flops(), or 0 where it has none.
template <class Problem>
auto flops_of(const Problem& problem, int) -> decltype(problem.flops()) {
    return problem.flops();
}
template <class Problem>
double flops_of(const Problem&, long) {
    return 0;
}

// Holds versions to the CPU's function and times them; one of these per program. What they are tried on is a Problem:
//
//     Problem::versions()         a vector of Version
//     Problem::small(), large()   sizes to check them on, and the size to time them on
//     Problem(shape)              makes operands on the device
//     std::string name()          type and sizes
//     double bytes()              what the operation can not do without reading and writing
//     double flops()              its floating-point operations; only where those are what bounds it
//     void prepare()              puts operands that the operation changes back as they were
//     void run(function)          calls a version
//     double worst()              what worst_error makes of the result and of the CPU's
class Laboratory {
  public:
    Laboratory(const char* name, int wanted) : name_(name), wanted_(wanted) {
        if (!kEmulated) bandwidth_ = copy_bandwidth();
    }

    // Every version that was asked for on all of the small problems, then, on a GPU, against the clock on the large one.
    // RunFailure, naming the version and the problem, where one is wrong.
    template <class Problem>
    void try_versions() {
        const auto versions = Problem::versions();
        for (const auto& shape : Problem::small()) {
            const Problem problem(shape);
            for (const auto& version : versions)
                if (is_wanted(version.number)) check(problem, version);
        }
        if (kEmulated) return;
        const Problem problem(Problem::large());
        problem.prepare();
        for (const auto& version : versions) {
            if (!is_wanted(version.number)) continue;
            const double seconds = seconds_of([&] { problem.run(version.function); });
            timed_.push_back({problem.name(), version.number, version.name, version.idea, problem.bytes(),
                              flops_of(problem, 0), seconds});
        }
    }

    // What was found, for people.
    void report() const {
        if (checked_ == 0) throw BadInput(std::string(name_) + " has no version " + std::to_string(wanted_));
        std::printf("%s: right in all of %d comparisons with the CPU's function\n", name_, checked_);
        if (kEmulated) {
            std::printf("Emulated on this processor, not timed.\n");
            return;
        }
        Table table({"problem", "version", "us", "GB/s", "% of copy", "TFLOP/s", "the idea"});
        for (const Timed& t : timed_)
            table.add_row({t.problem, "v" + std::to_string(t.number) + " " + t.name, format_fixed(t.seconds * 1e6, 1),
                           format_fixed(t.bytes / t.seconds * 1e-9, 1),
                           format_fixed(100 * t.bytes / t.seconds / bandwidth_, 1),
                           t.flops > 0 ? format_fixed(t.flops / t.seconds * 1e-12, 1) : "-", t.idea});
        std::printf(
            "%sThe device copies %s GB/s (bytes read and written). The floor counts what must be moved at least.\n",
            table.text().c_str(), format_fixed(bandwidth_ * 1e-9, 1).c_str());
    }

  private:
    struct Timed {
        std::string problem;
        int number;
        const char *name, *idea;
        double bytes, flops, seconds;
    };
    template <class Problem, class F>
    void check(const Problem& problem, const Version<F>& version) {
        problem.prepare();
        problem.run(version.function);
        const double error = problem.worst();
        if (!(error <= 1))
            throw RunFailure("v" + std::to_string(version.number) + " (" + version.name + ") is wrong for " +
                             problem.name() + ": off by " + format_error(error) + " times the tolerance");
        checked_++;
    }
    bool is_wanted(int number) const { return wanted_ == 0 || wanted_ == number; }

    const char* name_;
    int wanted_, checked_ = 0;
    double bandwidth_ = 0;
    std::vector<Timed> timed_;
};

// The main() of a program that tries these problems. Returns 0; 1 if a version is wrong, 2 for bad use, 3 where a program
// for the GPU finds none (data/error.h).
template <class... Problems>
int laboratory_main(int argc, char** argv, const char* name) {
    const auto fail = [&](const std::exception& error, int status) {
        std::fprintf(stderr, "dev/cuda/%s: %s\n", name, error.what());
        return status;
    };
    try {
        const int wanted = parse_version({argv + 1, argv + argc});
        int devices = 0;
        if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
            throw NoGpu("there is no GPU here; make builds the emulated program where nvcc is not used");
        Laboratory laboratory(name, wanted);
        (laboratory.try_versions<Problems>(), ...);
        laboratory.report();
        return 0;
    } catch (const BadInput& error) {
        return fail(error, 2);
    } catch (const NoGpu& error) {
        return fail(error, 3);
    } catch (const std::exception& error) {
        return fail(error, 1);
    }
}

}  // namespace lab
}  // namespace cuda
}  // namespace lnfree
