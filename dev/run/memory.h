// How much memory training on the processor takes, process by process.
#pragma once

#include <cstdint>

#include "dev/engine.h"

namespace lnfree {

// Bytes of one of several processes, the one that holds most.
struct TrainingMemory {
    int64_t weights = 0;
    int64_t gradients = 0;    // with the sums that wait for others (dev/cpu/gradient_tree.h)
    int64_t moments = 0;      // of its part of the parameters
    int64_t exchange = 0;     // what it receives of the others' gradients at a time
    int64_t activations = 0;  // of one micro-batch

    int64_t all() const { return weights + gradients + moments + exchange + activations; }
};

// A step is grad_accum micro-batches of B sequences of T positions, shared by so many processes.
TrainingMemory training_memory(const GPT2Config& c, int64_t B, int64_t T, int64_t grad_accum, int64_t processes);

// Bytes of moments that each of several processes, at least, does not hold because the others do.
int64_t moments_elsewhere(const GPT2Config& c, int64_t processes);

// Bytes that a process sends in a step, the one that sends most: sums of gradients to who owns each part, and its part of the
// new parameters to all. It receives about as many.
int64_t traffic_per_step(const GPT2Config& c, int64_t grad_accum, int64_t processes);

}  // namespace lnfree
