// What the programs of the kernel laboratory share: operands, comparison, timing, the table that they print.
//
// A program offers versions of one operation (NAME.h) and problems to try them on. Every version is held to the CPU's
// function on small, odd sizes; on a GPU each is then timed on GPT-2's sizes with an empty cache, beside its floor: the
// bytes that it can not avoid at the speed at which this very device copies memory. Under the emulation nothing is timed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/random.h"
#include "dev/cuda_on_cpu/cuda.h"

#ifndef LNFREE_LIBRARY_ONLY
#define LNFREE_LIBRARY_ONLY
#endif
#ifndef LNFREE_KERNELS_ONLY
#define LNFREE_KERNELS_ONLY
#endif
#ifndef LNFREE_METHOD_ONLY
#define LNFREE_METHOD_ONLY
#endif
#include "train_gpt2_lnfree.cu"  // the engine's kernels and, with them, the CPU's functions

namespace lnfree {
namespace cuda {
namespace lab {

// Throws RunFailure for whatever the CUDA runtime refuses; `doing` is what was tried.
inline void require(cudaError_t error, const char* doing) {
    if (error != cudaSuccess) throw RunFailure(std::string(doing) + ": " + cudaGetErrorString(error));
}

// ---------------------------------------------------------------------------------------------------------------------
// Operands

// Elements on the device. They begin `offset` elements behind a multiple of 256 bytes, so that kernels also meet rows
// that are not aligned.
template <class T>
class DeviceArray {
  public:
    explicit DeviceArray(int64_t n, int64_t offset = 0) : n_(n), offset_(offset) {
        require(cudaMalloc(&memory_, static_cast<size_t>(n + offset) * sizeof(T)), "cudaMalloc");
    }
    explicit DeviceArray(const std::vector<T>& values, int64_t offset = 0)
        : DeviceArray(static_cast<int64_t>(values.size()), offset) {
        set(values);
    }
    DeviceArray(DeviceArray&& other) noexcept
        : memory_(std::exchange(other.memory_, nullptr)), n_(other.n_), offset_(other.offset_) {}
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;
    ~DeviceArray() { static_cast<void>(cudaFree(memory_)); }

    T* data() const { return memory_ + offset_; }
    int64_t size() const { return n_; }
    void set(const std::vector<T>& values) const {
        require(cudaMemcpy(data(), values.data(), bytes(), cudaMemcpyHostToDevice), "a copy to the device");
    }
    // Waits for the kernels before it.
    std::vector<T> host() const {
        std::vector<T> values(static_cast<size_t>(n_));
        require(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDeviceToHost),
                "a kernel, or a copy from the device");
        return values;
    }

  private:
    size_t bytes() const { return static_cast<size_t>(n_) * sizeof(T); }
    T* memory_ = nullptr;
    int64_t n_, offset_;
};

// Normally distributed around `mean`, always the same for a seed. Repeats itself after 2^20 values.
inline std::vector<float> normal_values(int64_t n, uint64_t seed, double deviation = 1, double mean = 0) {
    constexpr size_t period = size_t{1} << 20;
    SplitMix64 random(seed);
    std::vector<float> values(static_cast<size_t>(n));
    for (size_t i = 0; i < values.size(); i++)
        values[i] = i < period ? static_cast<float>(mean + deviation * random.normal()) : values[i - period];
    return values;
}

// In [0,V), small numbers far more often than large ones, as in text.
inline std::vector<int32_t> made_up_tokens(int64_t n, int64_t V, uint64_t seed = 7) {
    SplitMix64 random(seed);
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    for (int32_t& token : tokens) {
        const double u = random.uniform();
        token = static_cast<int32_t>(u * u * u * static_cast<double>(V));
    }
    return tokens;
}

template <class X>
std::vector<X> rounded(const std::vector<float>& values) {
    std::vector<X> out(values.size());
    for (size_t i = 0; i < values.size(); i++) out[i] = from_float<X>(values[i]);
    return out;
}

template <class X>
std::vector<float> floats(const std::vector<X>& values) {
    std::vector<float> out(values.size());
    for (size_t i = 0; i < values.size(); i++) out[i] = to_float(values[i]);
    return out;
}

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
// Comparison

// What rounding to X alone may change of a value, relative to it: bf16 has 8 bits of significand.
template <class X>
constexpr double kRounding = sizeof(X) == 2 ? 1.0 / 256 : 0.0;

// The largest |value - reference| in units of what is allowed: relative * |reference| + relative * floor. At most 1 is
// right. `floor` is the size of the terms that were summed, where they may cancel. A NaN on one side only is infinitely
// wrong.
template <class T, class R>
double worst_error(const std::vector<T>& value, const std::vector<R>& reference, double relative, double floor = 1) {
    if (value.size() != reference.size()) throw RunFailure("worst_error: arrays of different sizes");
    double worst = 0;
    for (size_t i = 0; i < value.size(); i++) {
        const double a = static_cast<double>(value[i]), b = static_cast<double>(reference[i]);
        if (std::isnan(a) && std::isnan(b)) continue;
        const double error = a == b ? 0.0 : std::fabs(a - b) / (relative * (std::fabs(b) + floor));
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    return worst;
}

// For outputs in X: the tolerance of arithmetic in float, and half a last place of X.
template <class X, class R>
double worst_rounded_error(const std::vector<X>& value, const std::vector<R>& reference, double relative,
                           double floor = 1) {
    if (sizeof(X) == sizeof(float)) return worst_error(floats(value), reference, relative, floor);
    const std::vector<float> got = floats(value);
    double worst = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const double a = got[i], b = static_cast<double>(reference[i]);
        const double allowed = kRounding<X> * std::fabs(b) + relative * (std::fabs(b) + floor);
        const double error = a == b ? 0.0 : std::fabs(a - b) / allowed;
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    return worst;
}

// ---------------------------------------------------------------------------------------------------------------------
// Time

// Median seconds of what `run` launches on the default stream, each time after the caches were emptied by writing more
// than they hold.
inline double seconds_of(const std::function<void()>& run) {
    constexpr int64_t floats = int64_t{1} << 26;
    static const DeviceArray<float> more_than_the_cache(floats);
    cudaEvent_t begin, end;
    require(cudaEventCreate(&begin), "cudaEventCreate");
    require(cudaEventCreate(&end), "cudaEventCreate");
    std::vector<double> times;
    for (int i = 0; i < 23; i++) {
        require(cudaMemsetAsync(more_than_the_cache.data(), i, sizeof(float) * floats, nullptr), "cudaMemsetAsync");
        require(cudaEventRecord(begin, nullptr), "cudaEventRecord");
        run();
        require(cudaEventRecord(end, nullptr), "cudaEventRecord");
        require(cudaEventSynchronize(end), "a kernel");
        float milliseconds = 0;
        require(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
        if (i >= 3) times.push_back(milliseconds * 1e-3);  // the first ones pay for loading the kernel
    }
    static_cast<void>(cudaEventDestroy(begin));
    static_cast<void>(cudaEventDestroy(end));
    std::nth_element(times.begin(), times.begin() + 10, times.end());
    return times[10];
}

// Bytes per second, read and written, of the runtime's own copy within the device: the yardstick of everything that is
// bound by memory.
inline double copy_bandwidth() {
    constexpr int64_t floats = int64_t{1} << 27;
    const DeviceArray<float> from(floats), to(floats);
    const double seconds = seconds_of([&] {
        require(cudaMemcpyAsync(to.data(), from.data(), sizeof(float) * floats, cudaMemcpyDeviceToDevice, nullptr),
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

#ifdef __CUDACC__
constexpr bool kEmulated = false;
#else
constexpr bool kEmulated = true;
#endif

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
                             problem.name() + ": off by " + format_general(error) + " times the tolerance");
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
