// The machine that a measurement was made on: what it is called, its threads, its clock, and how much memory was used.
#pragma once

#include <sys/resource.h>
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lnfree {

// As Linux names the processor; elsewhere only its kind.
inline std::string processor_name() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const size_t colon = line.find(": ");
        if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
    }
    struct utsname names {};
    return uname(&names) == 0 ? std::string("unknown ") + names.machine : "unknown";
}

// Threads of the next parallel region; 1 without OpenMP.
inline int thread_count() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

inline void set_thread_count(int threads) {
#ifdef _OPENMP
    omp_set_num_threads(threads);
#else
    static_cast<void>(threads);
#endif
}

// Seconds since some moment, of a clock that never goes back.
inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The largest resident set that this process has had.
inline int64_t peak_memory_bytes() {
    struct rusage usage {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

// FLOP/s of all threads together over `seconds` of tries of multiply_adds (peak.h), each by its own clock and at its fastest:
// none waits for another that had to give way.
inline double fastest_multiply_adds(double (*multiply_adds)(int64_t rounds), double seconds) {
    constexpr int64_t rounds = 1 << 16;  // a fraction of a millisecond
    double all = 0;
#pragma omp parallel reduction(+ : all)
    {
        double best = 0;
        for (const double begin = seconds_now(); best == 0 || seconds_now() - begin < seconds;) {
            const double before = seconds_now();
            const double flops = multiply_adds(rounds);
            best = std::max(best, flops / (seconds_now() - before));
        }
        all += best;
    }
    return all;
}

}  // namespace lnfree
