// Text that a model writes itself: tokens drawn from its own predictions, for a reader (generate) or as training data
// (generate --shards, remove --data self).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/random.h"
#include "data/tokenizer.h"
#include "dev/engine.h"

namespace lnfree {

struct Sampling {
    double temperature = 1;  // 0: always the likeliest token
    int64_t top_k = 0;       // only the k likeliest; 0: all
    uint64_t seed = 1;
    std::vector<int32_t> never;  // ids that are not drawn, ascending
};

// The ids below V that have no text: rows with which a vocabulary was padded, and gaps in it. None without a tokenizer.
// BadInput if there are no others.
std::vector<int32_t> ids_without_text(const Tokenizer* tokenizer, int64_t V);

// The next token, drawn from softmax(logits / temperature) over what sampling.never leaves. logits (V) are overwritten.
int32_t sample_token(real* logits, int64_t V, const Sampling& sampling, SplitMix64& random);

// Appends token after token to `tokens`, which holds at least one, as long as take(token) says so. Up to n_ctx positions
// each costs one position's work; beyond, the window of the last n_ctx tokens moves, every position in it is another one,
// and each token costs a pass over the whole window.
void continue_tokens(Engine& model, std::vector<int32_t>& tokens, const Sampling& sampling,
                     const std::function<bool(int32_t)>& take);

struct SampleRequest {
    std::string prefix;                   // of the shards: PREFIX_train_000000.bin, PREFIX_val_..., PREFIX.json
    uint64_t tokens = 0, val_tokens = 0;  // of either split, rounded up to whole sequences of n_ctx
    std::vector<int32_t> prompt;  // every sequence begins so; empty: with end-of-text, or uniformly where there is none
    int64_t batch = 32;           // sequences at a time
    Sampling sampling;
};

// Writes shards of sequences of n_ctx tokens, each drawn by itself (its draws depend on the seed and its number alone), and
// PREFIX.json beside them. `tokenizer` may be null; ids that it has no text for are not drawn. BadInput if the prompt fills n_ctx; RunFailure when the disk fails.
void write_samples(Engine& model, const Tokenizer* tokenizer, const SampleRequest& request, const std::string& label);

}  // namespace lnfree
