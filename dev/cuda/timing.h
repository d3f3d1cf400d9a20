// How long the device takes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "../cuda_on_cpu/cuda.h"
#include "device_memory.h"

namespace lnfree::cuda {

inline double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

// How often something is timed: `least` times, then until `budget` seconds are used, at most `most` times; after `ignored`
// times that do not count, because they load the kernel. In emulation once is enough.
struct Repetitions {
    int ignored, least, most;
    double budget = 0;
};

// The median of what `once` returns, seconds.
inline double median_seconds(const Repetitions& r, const std::function<double()>& once) {
    if (kEmulated) return once();
    for (int i = 0; i < r.ignored; i++) once();
    std::vector<double> times;
    double sum = 0;
    for (int i = 0; i < r.least || (sum < r.budget && i < r.most); i++) {
        times.push_back(once());
        sum += times.back();
    }
    return median(times);
}

// Times what is launched on the default stream. Before each time, if wanted, the caches are filled with something else.
class DeviceClock {
  public:
    DeviceClock() {
        cudaDeviceProp properties;
        int device = 0;
        require_cuda(cudaGetDevice(&device), "cudaGetDevice");
        require_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
        const int64_t cache = properties.l2CacheSize;
        more_than_caches_.allocate(kEmulated ? 64 : std::max<int64_t>(4 * cache, int64_t{1} << 28));
        require_cuda(cudaEventCreate(&begin_), "cudaEventCreate");
        require_cuda(cudaEventCreate(&end_), "cudaEventCreate");
    }
    DeviceClock(const DeviceClock&) = delete;
    DeviceClock& operator=(const DeviceClock&) = delete;
    ~DeviceClock() {
        static_cast<void>(cudaEventDestroy(begin_));
        static_cast<void>(cudaEventDestroy(end_));
    }

    double seconds_of(const std::function<void()>& run, const Repetitions& repetitions, bool empty_caches = true) {
        return median_seconds(repetitions, [&] { return once(run, empty_caches); });
    }

  private:
    DeviceArray<char> more_than_caches_;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;

    double once(const std::function<void()>& run, bool empty_caches) {
        if (empty_caches) more_than_caches_.zero(nullptr);
        require_cuda(cudaEventRecord(begin_, nullptr), "cudaEventRecord");
        run();
        require_cuda(cudaEventRecord(end_, nullptr), "cudaEventRecord");
        require_cuda(cudaEventSynchronize(end_), "what is timed");
        float milliseconds = 0;
        require_cuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
        return static_cast<double>(milliseconds) * 1e-3;
    }
};

}  // namespace lnfree::cuda
