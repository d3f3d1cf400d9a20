// A model's loss on shards, and whether model and shards belong together.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/json.h"
#include "data/shards.h"
#include "data/tokenizer.h"
#include "dev/engine.h"

namespace lnfree {

// Receives (index of the sequence, losses, inputs, targets, predictions per sequence).
using SequenceVisitor = std::function<void(uint64_t, const real*, const int32_t*, const int32_t*, int64_t)>;

// Several processes share the passes; every one visits every sequence, in order, and returns the same bits as one alone.

// Mean cross-entropy over the first sequences of `shards`, at least one, at most max_tokens predictions (0: all).
// paper_windows: T tokens and T - 1 predictions each instead of T. `label` is the progress bar's.
double mean_loss(Engine& model, const TokenShards& shards, int64_t T, int64_t batch, uint64_t max_tokens,
                 bool paper_windows, const std::string& label, const SequenceVisitor& each = nullptr);

// Means over predictions of a model beside the one that it was made from: cross-entropy, KL(original || model), both in
// nats, and the share of predictions whose likeliest token is the same (protocol.md 11). Both must have one vocabulary.
struct Faithfulness {
    double loss = 0, kl = 0, agreement = 0;
};

// As SequenceVisitor.
using ComparisonVisitor = std::function<void(uint64_t, const Comparison&, const int32_t*, const int32_t*, int64_t)>;

Faithfulness mean_faithfulness(Engine& model, Engine& original, const TokenShards& shards, int64_t T, int64_t batch,
                               uint64_t max_tokens, bool paper_windows, const std::string& label,
                               const ComparisonVisitor& each = nullptr);

// The tokenizer that made a shard, as its PREFIX.json describes it; null if there is none. BadInput if it is damaged.
Json tokenizer_of_shard(const std::string& shard);

// Throws BadInput if any shard was made with another tokenizer than the model's. Shards and models that do not say are
// taken as they are. `flag` names where the shards were given.
void require_same_tokenizer(const TokenShards& shards, const Tokenizer* tokenizer, const std::string& flag);

// --seq, or n_ctx for 0. Throws BadInput if the model in `folder` reads no such sequences.
int64_t sequence_length(int64_t seq, const ModelConfig& config, const std::string& folder);

// Floating-point operations per token of one training step: 2 per weight and product forward, twice that backward (6 in
// all), and the attention products. What this machine's matrix product does on a shape of this model, measured for a
// quarter of a second (FLOP/s).
double training_flops_per_token(const ModelConfig& c, int64_t parameters, int64_t T);
double measure_flops(const ModelConfig& c);

}  // namespace lnfree
