#include "dev/run/memory.h"

#include <algorithm>

#include "dev/cpu/gradient_tree.h"
#include "dev/processes.h"

namespace lnfree {

TrainingMemory training_memory(const GPT2Config& c, int64_t B, int64_t T, int64_t grad_accum, int64_t processes) {
    const int64_t bytes = sizeof(real), parameters = parameter_count(tensor_table(c));
    TrainingMemory m;
    int64_t buffers = 0;
    for (int64_t r = 0; r < processes; r++)
        buffers = std::max(buffers, gradient_buffers(share_of(grad_accum, r, processes), grad_accum));
    m.weights = parameters * bytes;
    m.gradients = buffers * parameters * bytes;
    m.moments = 2 * part_of(parameters, 0, processes).size() * bytes;
    m.exchange = GradientTree::received_numbers(grad_accum, processes) * bytes;
    m.activations = reference_activation_bytes(c, B, T, true);
    return m;
}

int64_t moments_elsewhere(const GPT2Config& c, int64_t processes) {
    const int64_t parameters = parameter_count(tensor_table(c));
    return 2 * (parameters - part_of(parameters, 0, processes).size()) * static_cast<int64_t>(sizeof(real));
}

int64_t traffic_per_step(const GPT2Config& c, int64_t grad_accum, int64_t processes) {
    const int64_t bytes = sizeof(real), parameters = parameter_count(tensor_table(c));
    int64_t most = 0;
    for (int64_t r = 0; r < processes; r++) {
        const int64_t part = part_of(parameters, r, processes).size();
        const auto sums = static_cast<int64_t>(tree_nodes(share_of(grad_accum, r, processes), grad_accum).left.size());
        most = std::max(most, sums * (parameters - part) + (processes - 1) * part);
    }
    return most * bytes;
}

}  // namespace lnfree
