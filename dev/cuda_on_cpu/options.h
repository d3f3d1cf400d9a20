// Emulation: what it checks and in which order it runs threads.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <system_error>

#include "../../data/error.h"

namespace lnfree::cuda {

namespace emulation {

// The value of LNFREE_EMULATION_<name>. Throws BadInput where it is no number.
inline uint64_t number_in(const std::string& text, const std::string& name) {
    uint64_t value = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || rest != end)
        throw BadInput("LNFREE_EMULATION_" + name + "=" + text + ": give a whole number that is not negative");
    return value;
}

}  // namespace emulation

struct EmulationOptions {
    // Look for uninitialised reads, races and copies in flight in Shared<T>. Its bounds, barriers and warp operations are
    // checked in any case. Off: kernels that work in shared memory run several times faster.
    bool checks = true;
    // 0: threads and blocks start in the order of their numbers. Otherwise in a random order, and whenever a thread
    // waits any other may be next; the same seed gives the same order within each block.
    uint64_t seed = 0;
};

// The options of this process, for every launch from now on; change them only between launches. They begin as the
// environment says: LNFREE_EMULATION_CHECKS=0 switches the checks off, LNFREE_EMULATION_SEED=N sets the seed.
inline EmulationOptions& emulation_options() {
    static EmulationOptions options = [] {
        EmulationOptions from_environment;
        const char* const checks = std::getenv("LNFREE_EMULATION_CHECKS");
        if (checks != nullptr && *checks != '\0') from_environment.checks = emulation::number_in(checks, "CHECKS") != 0;
        const char* const seed = std::getenv("LNFREE_EMULATION_SEED");
        if (seed != nullptr && *seed != '\0') from_environment.seed = emulation::number_in(seed, "SEED");
        return from_environment;
    }();
    return options;
}

// Other options as long as it lives; then they are as they were.
class TemporaryEmulationOptions {
  public:
    TemporaryEmulationOptions(bool checks, uint64_t seed) : before_(emulation_options()) {
        emulation_options().checks = checks;
        emulation_options().seed = seed;
    }
    TemporaryEmulationOptions(const TemporaryEmulationOptions&) = delete;
    TemporaryEmulationOptions& operator=(const TemporaryEmulationOptions&) = delete;
    ~TemporaryEmulationOptions() { emulation_options() = before_; }

  private:
    EmulationOptions before_;
};

}  // namespace lnfree::cuda
