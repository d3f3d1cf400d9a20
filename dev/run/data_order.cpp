#include "dev/run/data_order.h"

#include <utility>

#include "data/random.h"

namespace lnfree {

uint64_t SequenceOrder::at(uint64_t i) {
    const uint64_t epoch = i / order_.size();
    if (!shuffled_ || epoch != epoch_) shuffle(epoch);
    return order_[i % order_.size()];
}

void SequenceOrder::shuffle(uint64_t epoch) {
    shuffled_ = true;
    epoch_ = epoch;
    SplitMix64 random(seed_ * 0x9E3779B97F4A7C15ull + epoch);
    for (uint64_t i = 0; i < order_.size(); i++) order_[i] = i;
    for (uint64_t i = order_.size() - 1; i > 0; i--) std::swap(order_[i], order_[random.below(i + 1)]);
}

void read_step(StepBatches& batches, const TokenShards& shards, SequenceOrder& order, const Settings& s, int64_t step) {
    const size_t count = static_cast<size_t>(s.grad_accum), tokens = static_cast<size_t>(s.batch * s.seq);
    batches.inputs.resize(count);
    batches.targets.resize(count);
    uint64_t next = static_cast<uint64_t>(step * s.grad_accum * s.batch);
    for (size_t a = 0; a < count; a++) {
        batches.inputs[a].resize(tokens);
        batches.targets[a].resize(tokens);
        for (int64_t b = 0; b < s.batch; b++)
            shards.read(order.at(next++), static_cast<uint64_t>(s.seq), batches.inputs[a].data() + b * s.seq,
                        batches.targets[a].data() + b * s.seq);
    }
}

}  // namespace lnfree
