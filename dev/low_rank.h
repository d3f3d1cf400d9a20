// Low-rank updates: what is trained of a model, how it is laid out, how it starts. What a step does with it: section 4 of
// train_gpt2_lnfree.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../data/random.h"
#include "engine.h"

namespace lnfree {

// A tensor that has a matrix of its own is a weight matrix inside a block; all others are trained as they are or not at all.
inline bool gets_low_rank_update(const Tensor& t) {
    return t.shape.size() == 2 && t.name.compare(0, 2, "h.") == 0;
}

// What is trained instead of these tensors: NAME.lora_A and NAME.lora_B of every weight matrix, and norms, and embeddings.
inline std::vector<Tensor> low_rank_table(const std::vector<Tensor>& tensors, int64_t R, bool embeddings) {
    std::vector<Tensor> table;
    int64_t offset = 0;
    const auto add = [&](const std::string& name, const std::vector<uint64_t>& shape, bool decay) {
        int64_t size = 1;
        for (const uint64_t extent : shape) size *= static_cast<int64_t>(extent);
        table.push_back({name, shape, decay, offset, size, 1});
        offset += size;
    };
    for (const Tensor& t : tensors) {
        const bool norm = t.name.find("ln_") != std::string::npos, embedding = t.shape.size() == 2;
        if (gets_low_rank_update(t)) {
            add(t.name + ".lora_A", {t.shape[0], static_cast<uint64_t>(R)}, true);
            add(t.name + ".lora_B", {static_cast<uint64_t>(R), t.shape[1]}, true);
        } else if (norm || (embedding && embeddings)) {
            add(t.name, t.shape, t.decay);
        }
    }
    return table;
}

// Calls of_matrix(tensor, A, B) and of_copy(tensor, copy) with the offsets of what is trained for each tensor.
template <class OfMatrix, class OfCopy>
void for_each_trained(const std::vector<Tensor>& tensors, const std::vector<Tensor>& table, OfMatrix of_matrix,
                      OfCopy of_copy) {
    size_t next = 0;
    for (const Tensor& t : tensors) {
        if (next == table.size()) return;
        if (gets_low_rank_update(t)) {
            of_matrix(t, table[next].offset, table[next + 1].offset);
            next += 2;
        } else if (table[next].name == t.name) {
            of_copy(t, table[next++].offset);
        }
    }
}

// What is trained as it is becomes what it is in the model.
inline void take_copies(Engine& model) {
    const auto copy = [&](const Tensor& t, int64_t at) {
        const real* from = model.params.data() + t.offset;
        std::copy(from, from + t.size, model.low_rank.values.data() + at);
    };
    for_each_trained(
        model.tensors, model.low_rank.table, [](const Tensor&, int64_t, int64_t) {}, copy);
}

// From now on low-rank updates of rank R are trained, and embeddings if asked. Before the engine's prepare_training and
// prepare_optimiser. A is random and B is 0, so that the model starts as it is and B has a gradient.
inline void start_low_rank(Engine& model, int64_t R, bool embeddings, uint64_t seed) {
    LowRank& low_rank = model.low_rank;
    low_rank.R = R;
    low_rank.table = low_rank_table(model.tensors, R, embeddings);
    low_rank.values.allocate(model.trained_numbers());
    SplitMix64 random(seed);
    const auto start = [&](const Tensor& t, int64_t A, int64_t) {
        const double spread = std::sqrt(1 / static_cast<double>(t.shape[0]));
        const int64_t n = static_cast<int64_t>(t.shape[0]) * R;
        for (int64_t i = 0; i < n; i++) low_rank.values.data()[A + i] = static_cast<real>(spread * random.normal());
    };
    for_each_trained(model.tensors, low_rank.table, start, [](const Tensor&, int64_t) {});
    take_copies(model);
}

}  // namespace lnfree
