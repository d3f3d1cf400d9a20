// How much memory training on the processor takes, process by process.
#pragma once

#include <cstdint>

#include "dev/engine.h"

namespace lnfree {

// Bytes of one of several processes, the one that holds most.
struct TrainingMemory {
    int64_t weights = 0;      // with the low-rank updates that are trained instead of them
    int64_t gradients = 0;    // with the sums that wait for others (dev/cpu/gradient_tree.h)
    int64_t moments = 0;      // of its part of the parameters
    int64_t exchange = 0;     // what it receives of the others' gradients at a time
    int64_t activations = 0;  // of one micro-batch

    int64_t all() const { return weights + gradients + moments + exchange + activations; }
};

// A step of grad_accum micro-batches of B sequences of T positions, shared by so many processes, which train low-rank updates
// of rank `lora` unless that is 0.
struct StepShape {
    int64_t B = 1, T = 1, grad_accum = 1, processes = 1, lora = 0;
    bool lora_embeddings = false;
};

TrainingMemory training_memory(const ModelConfig& c, const StepShape& step);

// Bytes that a GPU of several does not hold, of those that training all parameters in one process takes: the others' moments,
// and all moments that low-rank updates do without, less what they need themselves.
int64_t bytes_saved(const ModelConfig& c, const StepShape& step);

// Bytes that a process sends in a step, the one that sends most: sums of gradients to who owns each part, and its part of what
// was trained to all. It receives about as many.
int64_t traffic_per_step(const ModelConfig& c, const StepShape& step);

}  // namespace lnfree
