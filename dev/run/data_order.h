// Which sequence comes when.
#pragma once

#include <cstdint>
#include <vector>

#include "data/shards.h"
#include "dev/engine.h"

namespace lnfree {

// A fresh permutation of all sequences in every epoch, made from (seed, epoch) alone, so that a resumed run and the
// control see the same data.
class SequenceOrder {
  public:
    SequenceOrder(uint64_t sequences, uint64_t seed) : order_(sequences), seed_(seed) {}

    // The number of the sequence that comes i-th, counted over all epochs.
    uint64_t at(uint64_t i);

  private:
    void shuffle(uint64_t epoch);

    std::vector<uint64_t> order_;
    uint64_t seed_, epoch_ = 0;
    bool shuffled_ = false;
};

// The micro-batches of a step.
void read_step(StepBatches& batches, const TokenShards& shards, SequenceOrder& order, const Settings& s, int64_t step);

}  // namespace lnfree
