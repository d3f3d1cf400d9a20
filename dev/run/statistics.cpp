#include "dev/run/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "data/random.h"

namespace lnfree {

double mean_of(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(values.size());
}

double mean_of(const float* values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += static_cast<double>(values[i]);
    return sum / static_cast<double>(n);
}

namespace {

template <class T>
double interpolated(std::vector<T>& values, double share) {
    const double rank = share * static_cast<double>(values.size() - 1);
    const size_t below = static_cast<size_t>(std::floor(rank));
    const auto at = values.begin() + static_cast<std::ptrdiff_t>(below);
    std::nth_element(values.begin(), at, values.end());
    const double low = static_cast<double>(*at), part = rank - static_cast<double>(below);
    if (part == 0) return low;
    const double high = static_cast<double>(*std::min_element(at + 1, values.end()));
    return low + part * (high - low);
}

}  // namespace

double quantile(std::vector<float>& values, double share) {
    return interpolated(values, share);
}
double quantile(std::vector<double>& values, double share) {
    return interpolated(values, share);
}

namespace {

constexpr int kResamples = 2000;

}  // namespace

Interval interval(int64_t n, uint64_t seed,
                  const std::function<double(const std::vector<int64_t>& chosen)>& statistic) {
    SplitMix64 random(seed);
    std::vector<double> values;
    std::vector<int64_t> chosen(static_cast<size_t>(n));
    for (int r = 0; r < kResamples; r++) {
        for (int64_t& i : chosen) i = static_cast<int64_t>(random.below(static_cast<uint64_t>(n)));
        values.push_back(statistic(chosen));
    }
    return {quantile(values, 0.025), quantile(values, 0.975)};
}

Interval interval_of_mean(const std::vector<double>& per_sequence, uint64_t seed) {
    return interval(static_cast<int64_t>(per_sequence.size()), seed, [&](const std::vector<int64_t>& chosen) {
        double sum = 0;
        for (const int64_t i : chosen) sum += per_sequence[static_cast<size_t>(i)];
        return sum / static_cast<double>(chosen.size());
    });
}

}  // namespace lnfree
