// Operands for those who try kernels: made-up values, on the device and, as the device's type can hold them, for the
// reference.
#pragma once

#include <cstdint>
#include <vector>

#include "../../data/random.h"
#include "../cuda_on_cpu/cuda.h"
#include "device_memory.h"

namespace lnfree::cuda {

typedef std::vector<float> Floats;

// Normally distributed around `mean`, always the same for a seed. Repeats itself after 2^20 values.
inline Floats normal_values(int64_t n, uint64_t seed, double deviation = 1, double mean = 0) {
    constexpr size_t period = size_t{1} << 20;
    SplitMix64 random(seed);
    Floats values(static_cast<size_t>(n));
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
std::vector<X> rounded(const Floats& values) {
    std::vector<X> out(values.size());
    for (size_t i = 0; i < values.size(); i++) out[i] = from_float<X>(values[i]);
    return out;
}

template <class X>
Floats floats(const std::vector<X>& values) {
    Floats out(values.size());
    for (size_t i = 0; i < values.size(); i++) out[i] = to_float(values[i]);
    return out;
}

// Values of type X on the device, and the same values in float.
template <class X>
struct Operand {
    Floats reference;
    DeviceArray<X> device;

    explicit Operand(const Floats& values, int64_t offset = 0)
        : reference(floats(rounded<X>(values))), device(rounded<X>(values), offset) {}

    X* data() const { return device.data(); }
    // What is on the device now.
    Floats ours() const { return floats(device.host()); }
    // Puts the reference's values there.
    void reset() const { device.set(rounded<X>(reference)); }
};

// Random; every seed gives others.
template <class X>
Operand<X> random_operand(int64_t n, uint64_t seed, double deviation = 1, double mean = 0, int64_t offset = 0) {
    return Operand<X>(normal_values(n, seed, deviation, mean), offset);
}

}  // namespace lnfree::cuda
