// Random numbers that are the same on every platform; std::uniform_* and std::normal_* differ between libraries.
#pragma once

#include <cmath>
#include <cstdint>

namespace lnfree {

// SplitMix64 (Steele, Lea and Flood 2014): 64 bits of state, any seed is good.
class SplitMix64 {
  public:
    explicit SplitMix64(uint64_t seed) : state_(seed) {}

    uint64_t next() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    // In [0, count), count > 0. The bias is below count / 2^64.
    uint64_t below(uint64_t count) {
        return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * count) >> 64);
    }
    // In [0, 1), 53 random bits.
    double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
    // Standard normal, by Box and Muller's method (the second value of each pair is not used).
    double normal() {
        const double radius = std::sqrt(-2 * std::log(1 - uniform()));
        return radius * std::cos(6.283185307179586477 * uniform());
    }

  private:
    uint64_t state_;
};

}  // namespace lnfree
