// The number formats in which weights are stored, and the conversions between them: IEEE 754 binary64, binary32 and
// binary16 (F64, F32, F16), and BF16, which is binary32 without its lower 16 fraction bits.
//
// Widening is exact. Narrowing rounds to nearest, ties to even, once: straight from the value that is there, never by
// way of a third format. Infinities stay, NaNs stay NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "data/parallel.h"

namespace lnfree {

// A stored 16-bit value, as its bit pattern.
struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

// The value with this bit pattern: sign, 5 exponent bits biased by 15, 10 fraction bits.
inline float half_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1f;
    const uint32_t fraction = bits & 0x3ff;
    if (exponent == 0) {  // zero and subnormals count in units of 2^-24; as floats they are normal
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return sign != 0 ? -magnitude : magnitude;
    }
    const uint32_t wide_exponent = exponent == 0x1f ? 0xff : exponent - 15 + 127;
    const uint32_t wide = sign | wide_exponent << 23 | fraction << 13;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
}

// The value with this bit pattern: the upper half of a float.
inline float bfloat_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
}

// The bit pattern, in a 16-bit format of one sign bit, ExponentBits and FractionBits, that is nearest to `value`, ties
// to even; infinity where IEEE 754 rounds to it. Whole numbers only, so that no floating-point mode changes the result.
template <int ExponentBits, int FractionBits>
uint16_t round_to_16_bits(double value) {
    static_assert(1 + ExponentBits + FractionBits == 16, "a sign, an exponent and a fraction in 16 bits");
    constexpr int bias = (1 << (ExponentBits - 1)) - 1;
    constexpr uint64_t infinity = ((uint64_t{1} << ExponentBits) - 1) << FractionBits;
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint64_t sign = bits >> 63 << 15;
    const int wide_exponent = static_cast<int>(bits >> 52 & 0x7ff);
    const uint64_t wide_fraction = bits & ((uint64_t{1} << 52) - 1);
    if (wide_exponent == 0x7ff) {  // a NaN keeps the top of its payload and becomes quiet, so that it stays a NaN
        const uint64_t payload = wide_fraction >> (52 - FractionBits) | uint64_t{1} << (FractionBits - 1);
        return static_cast<uint16_t>(sign | infinity | (wide_fraction != 0 ? payload : 0));
    }
    if (wide_exponent == 0) return static_cast<uint16_t>(sign);  // below 2^-1022: far under half the smallest value

    // Drop the fraction bits that do not fit; below the smallest exponent, one more for every step.
    const int exponent = wide_exponent - 1023 + bias;
    const int dropped = 52 - FractionBits + (exponent < 1 ? 1 - exponent : 0);
    if (dropped > 53) return static_cast<uint16_t>(sign);  // under half the smallest value
    const uint64_t significand = wide_fraction | uint64_t{1} << 52;
    const uint64_t rest = significand & ((uint64_t{1} << dropped) - 1);
    const uint64_t tie = uint64_t{1} << (dropped - 1);
    uint64_t kept = significand >> dropped;
    if (rest > tie || (rest == tie && kept % 2 == 1)) ++kept;

    // `kept` holds the leading one, which counts as one step of the exponent; a carry out of it is another.
    const uint64_t steps = exponent > 1 ? static_cast<uint64_t>(exponent - 1) << FractionBits : 0;
    return static_cast<uint16_t>(sign | std::min(kept + steps, infinity));
}

inline uint16_t half_from_double(double value) {
    return round_to_16_bits<5, 10>(value);
}
inline uint16_t bfloat_from_double(double value) {
    return round_to_16_bits<8, 7>(value);
}

// One element from any stored format to any other, as described at the top of this file.
inline float widened(Half stored) {
    return half_to_float(stored.bits);
}
inline float widened(BFloat stored) {
    return bfloat_to_float(stored.bits);
}
inline float widened(float stored) {
    return stored;
}
inline double widened(double stored) {
    return stored;
}

template <class To, class From>
To convert_element(From stored) {
    const auto value = widened(stored);
    if constexpr (std::is_same_v<To, Half>) {
        return Half{half_from_double(value)};
    } else if constexpr (std::is_same_v<To, BFloat>) {
        return BFloat{bfloat_from_double(value)};
    } else {
        return static_cast<To>(value);
    }
}

// Converts n elements; neither address needs any alignment. Returns the index of the first finite element whose value
// is beyond the range of To (it has become infinite), n if there is none.
template <class To, class From>
uint64_t convert_elements(const unsigned char* from, unsigned char* to, uint64_t n) {
    constexpr uint64_t block = 1 << 16;  // elements; large enough to pay for a turn, small enough to share out evenly
    const uint64_t blocks = (n + block - 1) / block;
    std::vector<uint64_t> first_beyond(blocks, n);
    parallel_for(blocks, [&](uint64_t b) {
        const uint64_t end = std::min(n, (b + 1) * block);
        if constexpr (std::is_same_v<To, From>) {
            std::memcpy(to + b * block * sizeof(To), from + b * block * sizeof(From), (end - b * block) * sizeof(To));
            return;
        }
        for (uint64_t i = b * block; i < end; ++i) {
            From stored;
            std::memcpy(&stored, from + i * sizeof(From), sizeof(From));
            const To converted = convert_element<To>(stored);
            std::memcpy(to + i * sizeof(To), &converted, sizeof(To));
            if constexpr (sizeof(To) < sizeof(From) || std::is_same_v<To, Half>) {
                if (std::isinf(widened(converted)) && std::isfinite(widened(stored))) {
                    first_beyond[b] = i;
                    return;
                }
            }
        }
    });
    for (const uint64_t index : first_beyond) {
        if (index < n) return index;
    }
    return n;
}

}  // namespace lnfree
