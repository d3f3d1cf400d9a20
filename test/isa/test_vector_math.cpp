// The errors that dev/cpu/vector_math.h states, against double precision, over every 97th float.
#include <doctest/doctest.h>

#include <limits>

#include "dev/cpu/vector_math.h"

using lnfree::fast_exp;
using lnfree::fast_tanh;
using lnfree::vector_math::from_bits;

TEST_CASE("exp is within its stated error for normal results") {
    double worst = 0;
    for (uint64_t bits = 0; bits < 0x100000000ull; bits += 97) {
        const float x = from_bits(static_cast<uint32_t>(bits));
        if (!(x > -87.3f && x < 88.7f)) continue;
        const double exact = std::exp(static_cast<double>(x));
        worst = std::max(worst, std::abs(static_cast<double>(fast_exp(x)) - exact) / exact);
    }
    CHECK(worst < 2e-7);
    CHECK(worst > 1e-8);  // a comparison with itself would give 0
}

TEST_CASE("exp at the ends of its range") {
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK(fast_exp(0.0f) == 1.0f);
    CHECK(fast_exp(88.8f) == infinity);
    CHECK(fast_exp(1e30f) == infinity);
    CHECK(fast_exp(infinity) == infinity);
    CHECK(fast_exp(-105.0f) == 0.0f);
    CHECK(fast_exp(-infinity) == 0.0f);
    CHECK(fast_exp(-95.0f) == doctest::Approx(std::exp(-95.0)).epsilon(1e-2));  // subnormal: few bits
    CHECK(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("tanh is within its stated errors") {
    double worst_relative = 0, worst_absolute = 0;
    for (uint64_t bits = 0; bits < 0x100000000ull; bits += 97) {
        const float x = from_bits(static_cast<uint32_t>(bits));
        if (!std::isfinite(x) || std::fabs(x) < 1e-30f) continue;
        const double exact = std::tanh(static_cast<double>(x));
        const double error = std::abs(static_cast<double>(fast_tanh(x)) - exact);
        worst_absolute = std::max(worst_absolute, error);
        worst_relative = std::max(worst_relative, error / std::abs(exact));
    }
    CHECK(worst_relative < 5e-7);
    CHECK(worst_absolute < 1.2e-7);
    CHECK(worst_absolute > 1e-9);
}

TEST_CASE("tanh at the ends of its range") {
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK(fast_tanh(infinity) == 1.0f);
    CHECK(fast_tanh(-infinity) == -1.0f);
    CHECK(fast_tanh(0.0f) == 0.0f);
    CHECK(std::isnan(fast_tanh(std::numeric_limits<float>::quiet_NaN())));
}
