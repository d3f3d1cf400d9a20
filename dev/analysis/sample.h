// What every measurement shares: the text that it is taken on, in batches.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/shards.h"

namespace lnfree {
namespace analysis {

// Some windows of T tokens each, and as targets the tokens that follow.
struct Sample {
    int64_t T = 0, sequences = 0;
    std::vector<uint64_t> windows;         // their numbers in the shards
    std::vector<int32_t> inputs, targets;  // (sequences,T)
    uint64_t data_fingerprint = 0;         // of the shards (TokenShards::fingerprint)
};

// `wanted` windows, spread evenly over the shards; all of them if there are no more. BadInput if there is not one.
Sample take_sample(const TokenShards& shards, int64_t T, int64_t wanted);

// Called between batches; throws to end a measurement early (a signal). Empty: never.
using Pause = std::function<void()>;

// How a measurement is taken.
struct Procedure {
    int64_t batch = 8;   // sequences at a time
    uint64_t seed = 1;   // of the resampling
    bool paper = false;  // as the paper's code measures, where that differs from our definitions (README.md here)
    std::string label;   // of the progress bar
    Pause pause;
};

// f(first sequence, how many) for batch after batch, with a progress bar.
void for_each_batch(const Sample& sample, const Procedure& procedure,
                    const std::function<void(int64_t first, int64_t B)>& f);

}  // namespace analysis
}  // namespace lnfree
