// What every measurement shares: the text it is taken on, intervals, quantiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/random.h"
#include "data/shards.h"

namespace lnfree {
namespace analysis {

using nlohmann::ordered_json;

// Some windows of T tokens each, and as targets the tokens that follow.
struct Sample {
    int64_t T = 0, sequences = 0;
    std::vector<uint64_t> windows;         // their numbers in the shards
    std::vector<int32_t> inputs, targets;  // (sequences,T)
};

// `wanted` windows, spread evenly over the shards; all of them if there are no more. BadInput if there is not one.
inline Sample take_sample(const TokenShards& shards, int64_t T, int64_t wanted) {
    const uint64_t length = static_cast<uint64_t>(T), available = shards.sequences(length);
    if (available == 0)
        throw BadInput("--data " + shards.paths()[0] + ": fewer than " + std::to_string(T + 1) +
                       " tokens; use more text or a smaller --seq");
    Sample s;
    s.T = T;
    s.sequences = std::min(wanted, static_cast<int64_t>(available));
    s.inputs.resize(static_cast<size_t>(s.sequences * T));
    s.targets.resize(s.inputs.size());
    for (int64_t i = 0; i < s.sequences; i++) {
        s.windows.push_back(static_cast<uint64_t>(i) * available / static_cast<uint64_t>(s.sequences));
        shards.read(s.windows.back(), length, s.inputs.data() + i * T, s.targets.data() + i * T);
    }
    return s;
}

// Called between batches; throws to end a measurement early (a signal). Empty: never.
using Pause = std::function<void()>;

struct Settings {
    int64_t batch = 8;  // sequences at a time
    uint64_t seed = 1;  // of the resampling
    std::string label;  // of the progress bar
    Pause pause;
};

// f(first sequence, how many) for batch after batch, with a progress bar.
template <class F>
void for_each_batch(const Sample& sample, const Settings& settings, F f) {
    ProgressBar bar(settings.label, static_cast<uint64_t>(sample.sequences), stderr);
    for (int64_t i = 0; i < sample.sequences; i += settings.batch) {
        if (settings.pause) settings.pause();
        f(i, std::min(settings.batch, sample.sequences - i));
        bar.update(static_cast<uint64_t>(std::min(sample.sequences, i + settings.batch)));
    }
}

// Linear interpolation between the two values beside position share * (n - 1); `sorted` ascending, not empty.
inline double quantile(const std::vector<double>& sorted, double share) {
    const double at = share * static_cast<double>(sorted.size() - 1);
    const size_t below = static_cast<size_t>(at), above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

constexpr int kResamples = 2000;

// 95 % interval of a statistic of n sequences by the percentile bootstrap: statistic(chosen) of kResamples choices of n
// sequences with replacement, as [low, high].
inline ordered_json interval(int64_t n, uint64_t seed,
                             const std::function<double(const std::vector<int64_t>& chosen)>& statistic) {
    SplitMix64 random(seed);
    std::vector<double> values;
    std::vector<int64_t> chosen(static_cast<size_t>(n));
    for (int r = 0; r < kResamples; r++) {
        for (int64_t& i : chosen) i = static_cast<int64_t>(random.below(static_cast<uint64_t>(n)));
        values.push_back(statistic(chosen));
    }
    std::sort(values.begin(), values.end());
    return {quantile(values, 0.025), quantile(values, 0.975)};
}

// The same for a mean of one value per sequence.
inline ordered_json interval_of_mean(const std::vector<double>& per_sequence, uint64_t seed) {
    return interval(static_cast<int64_t>(per_sequence.size()), seed, [&](const std::vector<int64_t>& chosen) {
        double sum = 0;
        for (const int64_t i : chosen) sum += per_sequence[static_cast<size_t>(i)];
        return sum / static_cast<double>(chosen.size());
    });
}

inline double mean_of(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(values.size());
}

}  // namespace analysis
}  // namespace lnfree
