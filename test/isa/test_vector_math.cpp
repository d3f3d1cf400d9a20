// The errors that dev/cpu/vector_math.h states, against double precision, over every 97th float.
#include <doctest/doctest.h>

#include <limits>
#include <vector>

#include "dev/cpu/vector_math.h"

using lnfree::fast_erf;
using lnfree::fast_exp;
using lnfree::fast_logistic;
using lnfree::largest_of;
using lnfree::vector_math::from_bits;

TEST_CASE("exp is within its stated error for normal results") {
    double worst = 0;
    for (uint64_t bits = 0; bits < 0x100000000ull; bits += 97) {
        const float x = from_bits(static_cast<uint32_t>(bits));
        if (!(x > -87.3f && x < 88.3f)) continue;
        const double exact = std::exp(static_cast<double>(x));
        worst = std::max(worst, std::abs(static_cast<double>(fast_exp(x)) - exact) / exact);
    }
    CHECK(worst < 2e-7);
    CHECK(worst > 1e-8);  // a comparison with itself would give 0
}

TEST_CASE("exp at the ends of its range") {
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK(fast_exp(0.0f) == 1.0f);
    CHECK(fast_exp(88.3f) < infinity);
    CHECK(fast_exp(88.4f) == infinity);
    CHECK(fast_exp(88.8f) == infinity);
    CHECK(fast_exp(1e30f) == infinity);
    CHECK(fast_exp(infinity) == infinity);
    CHECK(fast_exp(-87.6f) > 0.0f);
    CHECK(fast_exp(-87.7f) == 0.0f);
    CHECK(fast_exp(-105.0f) == 0.0f);
    CHECK(fast_exp(-infinity) == 0.0f);
    CHECK(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("the logistic function is within its stated error for normal results") {
    double worst = 0;
    for (uint64_t bits = 0; bits < 0x100000000ull; bits += 97) {
        const float x = from_bits(static_cast<uint32_t>(bits));
        if (!(std::fabs(x) < 87.3f)) continue;
        const double exact = 1 / (1 + std::exp(-static_cast<double>(x)));
        worst = std::max(worst, std::abs(static_cast<double>(fast_logistic(x)) - exact) / exact);
    }
    CHECK(worst < 4e-7);
    CHECK(worst > 1e-8);
}

TEST_CASE("the logistic function at the ends of its range") {
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK(fast_logistic(infinity) == 1.0f);
    CHECK(fast_logistic(-infinity) == 0.0f);
    CHECK(fast_logistic(-89.0f) == 0.0f);
    CHECK(fast_logistic(0.0f) == 0.5f);
    CHECK(std::isnan(fast_logistic(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("the error function is within its stated error, and odd") {
    double worst = 0;
    for (uint64_t bits = 0; bits < 0x100000000ull; bits += 97) {
        const float x = from_bits(static_cast<uint32_t>(bits));
        if (std::isnan(x)) continue;
        worst = std::max(worst, std::abs(static_cast<double>(fast_erf(x)) - std::erf(static_cast<double>(x))));
        if (fast_erf(-x) != -fast_erf(x)) CHECK(x == 0);
    }
    CHECK(worst < 7e-7);
    CHECK(worst > 1e-8);
    CHECK(std::isnan(fast_erf(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("the largest of any number of elements, wherever it stands") {
    for (int64_t n = 1; n <= 70; n++) {
        for (int64_t at = 0; at < n; at++) {
            std::vector<float> x(static_cast<size_t>(n));
            for (int64_t i = 0; i < n; i++) x[static_cast<size_t>(i)] = -2 - static_cast<float>(i * 7 % 11);
            x[static_cast<size_t>(at)] = -1;
            CHECK(largest_of(x.data(), n) == -1);
            x[static_cast<size_t>(at)] = std::numeric_limits<float>::infinity();
            CHECK(std::isinf(largest_of(x.data(), n)));
        }
        const std::vector<double> hidden(static_cast<size_t>(n), -std::numeric_limits<double>::infinity());
        CHECK(largest_of(hidden.data(), n) < 0);
    }
}
