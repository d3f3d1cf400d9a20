// How far a result is from what the reference makes of the same operands. A NaN that the reference does not have is
// infinitely far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "../../data/error.h"
#include "operands.h"

namespace lnfree::cuda {

// "1.2e-05"
inline std::string format_error(double error) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", error);
    return text;
}

// What rounding to X alone may change of a value, relative to it: bf16 has 8 bits of significand.
template <class X>
constexpr double kRounding = sizeof(X) == 2 ? 1.0 / 256 : 0.0;

// |a - b| in units of what is allowed.
inline double error_in(double a, double b, double allowed) {
    const double error = a == b ? 0.0 : std::fabs(a - b) / allowed;
    return std::isnan(error) ? INFINITY : error;
}

// The largest error in units of what is allowed, relative * (|reference| + floor), and `rounding` * |reference| besides. At
// most 1 is right. `floor` is the size of the terms that were summed, where they may cancel. NaN is right where the
// reference has one.
template <class T, class R>
double worst_error(const std::vector<T>& value, const std::vector<R>& reference, double relative, double floor = 1,
                   double rounding = 0) {
    if (value.size() != reference.size()) throw RunFailure("worst_error: arrays of different sizes");
    double worst = 0;
    for (size_t i = 0; i < value.size(); i++) {
        const double a = static_cast<double>(value[i]), b = static_cast<double>(reference[i]);
        if (std::isnan(a) && std::isnan(b)) continue;
        worst = std::max(worst, error_in(a, b, rounding * std::fabs(b) + relative * (std::fabs(b) + floor)));
    }
    return worst;
}

// For outputs in X: the tolerance of arithmetic in float, and half a last place of X.
template <class X, class R>
double worst_rounded_error(const std::vector<X>& value, const std::vector<R>& reference, double relative,
                           double floor = 1) {
    return worst_error(floats(value), reference, relative, floor, kRounding<X>);
}

inline double root_mean_square(const float* x, size_t n) {
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return std::sqrt(squares / static_cast<double>(n));
}

// The largest |ours - reference| / (|reference| + root mean square of the reference): relative, but values that are small
// by cancellation are measured by the others. Infinite where there is a NaN, or the sizes differ. With `row`, the root mean
// square is that of the value's own row of so many where that is larger, for results whose rows differ in size.
inline double largest_error(const Floats& ours, const Floats& reference, size_t row = 0) {
    if (ours.size() != reference.size() || ours.empty()) return INFINITY;
    if (row == 0) row = reference.size();
    const double overall = root_mean_square(reference.data(), reference.size());
    double largest = 0;
    for (size_t begin = 0; begin < ours.size(); begin += row) {
        const double typical = std::max(overall, root_mean_square(reference.data() + begin, row));
        for (size_t i = begin; i < begin + row; i++) {
            const double a = static_cast<double>(ours[i]), b = static_cast<double>(reference[i]);
            largest = std::max(largest, error_in(a, b, std::fabs(b) + typical));
        }
    }
    return largest;
}

// What largest_error may be after `roundings` roundings to X, where it is `in_float` without any.
template <class X>
double tolerance(double in_float, int roundings) {
    return in_float + roundings * kRounding<X>;
}

}  // namespace lnfree::cuda
