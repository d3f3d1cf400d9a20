// Means, percentiles and how sure they are. Sequences are what is drawn: predictions within one depend on each other.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

namespace lnfree {

double mean_of(const std::vector<double>& values);
double mean_of(const float* values, int64_t n);

// The value below which a share of `values` lies, 0 <= share <= 1, interpolated linearly between the two nearest ranks (as
// NumPy's default). The one definition of a percentile in this program: eval and analyze use it. Reorders `values`.
double quantile(std::vector<float>& values, double share);
double quantile(std::vector<double>& values, double share);

using Interval = std::array<double, 2>;  // low, high

// 95 % interval of a statistic of n sequences by the percentile bootstrap: statistic(chosen) of 2,000 choices of n
// sequences with replacement.
Interval interval(int64_t n, uint64_t seed, const std::function<double(const std::vector<int64_t>& chosen)>& statistic);

// The same for a mean of one value per sequence.
Interval interval_of_mean(const std::vector<double>& per_sequence, uint64_t seed);

}  // namespace lnfree
