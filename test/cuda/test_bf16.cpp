// dev/cuda_on_cpu/bf16.h on the host: against the definition of rounding for every bit pattern and the halfway cases
// between them, and against the toolkit's own functions where its headers are found.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <vector>

// This header brings types that our emulation has as well, so it comes without cuda.h. <nv/target> is what it includes from
// outside its own folder; where that lies in include/cccl only nvcc looks for it, unless -I says so.
#if __has_include("/usr/local/cuda/include/cuda_bf16.h") && __has_include(<nv/target>)
#include "/usr/local/cuda/include/cuda_bf16.h"
#define HAVE_TOOLKIT 1
#endif

#include "data/float_formats.h"
#include "data/random.h"
#include "dev/cuda_on_cpu/bf16.h"

namespace lnfree::cuda {

namespace {

bool is_nan_pattern(uint32_t bits) {
    return (bits & 0x7fff) > 0x7f80;
}

// Floats that try every decision of the rounding: every bf16, and near it the halfway point to the next, from both sides.
template <class F>
void for_interesting_floats(const F& check) {
    for (uint32_t upper = 0; upper < 0x10000; ++upper) {
        for (const uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
            check(float_of(upper << 16 | lower));
    }
    SplitMix64 random(1);
    for (int i = 0; i < 300000; ++i) check(float_of(static_cast<uint32_t>(random.next() >> 32)));
}

}  // namespace

TEST_CASE("every bf16 becomes the float of its bits and back again") {
    int wrong = 0;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const float value = to_float(bf16{static_cast<uint16_t>(bits)});
        const uint16_t back = from_float<bf16>(value).bits;
        if (is_nan_pattern(bits)) {
            wrong += !std::isnan(value) || back != bf16_nan;
        } else {
            wrong += bits_of(value) != bits << 16 || back != bits;
        }
    }
    CHECK(wrong == 0);
    CHECK(to_float(2.5f) == 2.5f);
    CHECK(from_float<float>(0.1f) == 0.1f);
}

TEST_CASE("rounding is to the nearest, ties to even, to infinity where it overflows") {
    CHECK(from_float<bf16>(float_of(0x3f808000)).bits == 0x3f80);  // half way, down to even
    CHECK(from_float<bf16>(float_of(0x3f818000)).bits == 0x3f82);  // half way, up to even
    CHECK(from_float<bf16>(float_of(0x3f808001)).bits == 0x3f81);
    CHECK(from_float<bf16>(float_of(0x3fffffff)).bits == 0x4000);  // a carry into the exponent
    CHECK(from_float<bf16>(float_of(0x7f7f8000)).bits == 0x7f80);  // overflow
    CHECK(from_float<bf16>(float_of(0x7f7f7fff)).bits == 0x7f7f);
    CHECK(from_float<bf16>(float_of(0x00008001)).bits == 0x0001);  // subnormal
    CHECK(from_float<bf16>(-0.0f).bits == 0x8000);
    CHECK(from_float<bf16>(float_of(0x7f800001)).bits == bf16_nan);  // its upper half alone would be infinity
    // The conversion for files is another implementation, in double precision; it keeps a NaN's payload, the GPU does not.
    int wrong = 0;
    for_interesting_floats([&](float value) {
        const uint16_t expected = std::isnan(value) ? bf16_nan : bfloat_from_double(value);
        wrong += from_float<bf16>(value).bits != expected;
    });
    CHECK(wrong == 0);
}

TEST_CASE("stochastic rounding goes to one of the two neighbours, with the right frequency") {
    const uint32_t bits = 0x3f80'4000;  // a quarter of the way from 1 to the next
    int up = 0;
    for (uint32_t random = 0; random < 0x10000; ++random) {
        const uint16_t rounded = from_float_stochastic<bf16>(float_of(bits), 0xabcd0000u | random).bits;
        CHECK_MESSAGE((rounded == 0x3f80 || rounded == 0x3f81), rounded);
        up += rounded == 0x3f81;
    }
    CHECK(up == 0x4000);
    int wrong = 0;
    for (uint32_t upper = 0; upper < 0x10000; ++upper) {  // what bf16 can hold stays, infinities too
        const uint16_t rounded = from_float_stochastic<bf16>(float_of(upper << 16), 0xffff).bits;
        wrong += rounded != (is_nan_pattern(upper) ? bf16_nan : upper);
    }
    CHECK(wrong == 0);
    CHECK(from_float_stochastic<bf16>(float_of(0x7f800001), 0).bits == bf16_nan);
    CHECK(from_float_stochastic<bf16>(float_of(0x7fffffff), 0xffff).bits == bf16_nan);
    CHECK(from_float_stochastic<float>(0.1f, 0xffff) == 0.1f);
}

TEST_CASE("pack_bf16 puts its first value into the lower half") {
    CHECK(pack_bf16(1.0f, -2.0f) == 0xc0003f80u);
    CHECK(pack_bf16(float_of(0x3f818000), float_of(0xffc00000)) == (uint32_t{bf16_nan} << 16 | 0x3f82));
}

TEST_CASE("conversions agree with the CUDA toolkit's, bit for bit") {
#ifdef HAVE_TOOLKIT
    int wrong = 0;
    for_interesting_floats([&](float value) {
        const __nv_bfloat16_raw theirs = __float2bfloat16_rn(value);
        wrong += from_float<bf16>(value).bits != theirs.x;
    });
    CHECK(wrong == 0);
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        __nv_bfloat16_raw theirs;
        theirs.x = static_cast<uint16_t>(bits);
        wrong += bits_of(to_float(bf16{theirs.x})) != bits_of(__bfloat162float(__nv_bfloat16(theirs)));
    }
    CHECK(wrong == 0);
#else
    std::puts("SKIPPED: bf16 against the CUDA toolkit: cuda_bf16.h or nv/target was not found");
#endif
}

}  // namespace lnfree::cuda
