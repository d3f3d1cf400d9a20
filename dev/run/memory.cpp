#include "dev/run/memory.h"

#include <algorithm>

#include "dev/cpu/gradient_tree.h"
#include "dev/low_rank.h"
#include "dev/processes.h"

namespace lnfree {

namespace {

int64_t trained_numbers(const ModelConfig& c, const StepShape& step) {
    const std::vector<Tensor> tensors = tensor_table(c);
    return parameter_count(step.lora > 0 ? low_rank_table(tensors, step.lora, step.lora_embeddings) : tensors);
}

}  // namespace

TrainingMemory training_memory(const ModelConfig& c, const StepShape& step) {
    const int64_t bytes = sizeof(real), parameters = parameter_count(tensor_table(c)), N = step.processes;
    const int64_t trained = trained_numbers(c, step);
    TrainingMemory m;
    int64_t buffers = 0;
    for (int64_t r = 0; r < N; r++)
        buffers = std::max(buffers, gradient_buffers(share_of(step.grad_accum, r, N), step.grad_accum));
    m.weights = parameters * bytes;
    m.gradients = buffers * trained * bytes;
    if (step.lora > 0) {
        m.weights +=
            3 * trained * bytes;  // what is trained, and while W follows it, what it was and by how much it changed
        m.gradients += parameters * bytes;
    }
    m.moments = 2 * part_of(trained, 0, N).size() * bytes;
    m.exchange = GradientTree::received_numbers(step.grad_accum, N) * bytes;
    m.activations = reference_activation_bytes(c, step.B, step.T, true);
    return m;
}

int64_t bytes_saved(const ModelConfig& c, const StepShape& step) {
    const int64_t parameters = parameter_count(tensor_table(c)), trained = trained_numbers(c, step);
    const int64_t own = 2 * part_of(trained, 0, step.processes).size() + (step.lora > 0 ? 3 * trained : 0);
    return (2 * parameters - own) * static_cast<int64_t>(sizeof(real));
}

int64_t traffic_per_step(const ModelConfig& c, const StepShape& step) {
    const int64_t bytes = sizeof(real), trained = trained_numbers(c, step), N = step.processes;
    int64_t most = 0;
    for (int64_t r = 0; r < N; r++) {
        const int64_t part = part_of(trained, r, N).size();
        const Range run = share_of(step.grad_accum, r, N);
        const auto sums = static_cast<int64_t>(tree_nodes(run, step.grad_accum).left.size());
        most = std::max(most, sums * (trained - part) + (N - 1) * part);
    }
    return most * bytes;
}

}  // namespace lnfree
