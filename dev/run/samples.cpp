#include "dev/run/samples.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/shards.h"

namespace lnfree {

namespace {

// What the top_k-th largest of the logits (V) is; minus infinity where all may be drawn.
real smallest_allowed(const real* logits, int64_t V, int64_t top_k) {
    if (top_k <= 0 || top_k >= V) return -std::numeric_limits<real>::infinity();
    std::vector<real> sorted(logits, logits + V);
    std::nth_element(sorted.begin(), sorted.begin() + (top_k - 1), sorted.end(), std::greater<real>());
    return sorted[static_cast<size_t>(top_k - 1)];
}

}  // namespace

std::vector<int32_t> ids_without_text(const Tokenizer* tokenizer, int64_t V) {
    std::vector<int32_t> ids;
    if (tokenizer == nullptr) return ids;
    for (int32_t id = 0; id < V; id++)
        if (!tokenizer->has(id)) ids.push_back(id);
    if (static_cast<int64_t>(ids.size()) == V)
        throw BadInput("the tokenizer has no text for any of the model's " + std::to_string(V) +
                       " tokens; the two do not belong together");
    return ids;
}

int32_t sample_token(real* logits, int64_t V, const Sampling& sampling, SplitMix64& random) {
    for (const int32_t id : sampling.never) logits[id] = -std::numeric_limits<real>::infinity();
    const auto largest = static_cast<int32_t>(std::max_element(logits, logits + V) - logits);
    if (sampling.temperature == 0) return largest;
    const real threshold = smallest_allowed(logits, V, sampling.top_k), top = logits[largest];
    double total = 0;
    for (int64_t i = 0; i < V; i++) {
        logits[i] = logits[i] < threshold
                        ? real(0)
                        : static_cast<real>(std::exp(static_cast<double>(logits[i] - top) / sampling.temperature));
        total += static_cast<double>(logits[i]);
    }
    double draw = random.uniform() * total;
    for (int64_t i = 0; i < V; i++) {
        draw -= static_cast<double>(logits[i]);
        if (draw < 0) return static_cast<int32_t>(i);
    }
    return largest;
}

void continue_tokens(Engine& model, std::vector<int32_t>& tokens, const Sampling& sampling,
                     const std::function<bool(int32_t)>& take) {
    const int64_t V = model.config.V, n_ctx = model.config.n_ctx;
    SplitMix64 random(sampling.seed);
    std::vector<real> logits(static_cast<size_t>(V));
    model.start_decoding(1);
    int64_t decoded = 0;
    while (true) {
        const auto length = static_cast<int64_t>(tokens.size());
        if (length <= n_ctx)
            model.decode(logits.data(), tokens.data() + decoded, 1, length - decoded);
        else
            model.logits(logits.data(), tokens.data() + length - n_ctx, 1, n_ctx, n_ctx - 1);
        decoded = length;
        const int32_t next = sample_token(logits.data(), V, sampling, random);
        if (!take(next)) break;
        tokens.push_back(next);
    }
    model.start_decoding(0);
}

namespace {

// Drawn uniformly.
int32_t any_token(int64_t V, const Sampling& sampling, SplitMix64& random) {
    const std::vector<int32_t>& never = sampling.never;
    while (true) {
        const auto id = static_cast<int32_t>(random.below(static_cast<uint64_t>(V)));
        if (!std::binary_search(never.begin(), never.end(), id)) return id;
    }
}

// Sequences first .. first + B - 1, out (B,n_ctx).
void sample_sequences(Engine& model, const SampleRequest& r, uint64_t first, int64_t B, std::vector<int32_t>& out) {
    const int64_t V = model.config.V, n_ctx = model.config.n_ctx;
    std::vector<SplitMix64> random;
    const bool begins_anywhere = r.prompt.empty() && model.config.end_of_text < 0;
    std::vector<int32_t> prompt = r.prompt;
    if (prompt.empty()) prompt.push_back(model.config.end_of_text);
    auto begun = static_cast<int64_t>(prompt.size());
    out.resize(static_cast<size_t>(B * n_ctx));
    std::vector<int32_t> next;  // (B,begun), then (B,1)
    for (int64_t b = 0; b < B; b++) {
        random.emplace_back(r.sampling.seed * 0x9E3779B97F4A7C15ull + first + static_cast<uint64_t>(b));
        if (begins_anywhere) prompt[0] = any_token(V, r.sampling, random.back());
        std::copy(prompt.begin(), prompt.end(), out.begin() + b * n_ctx);
        next.insert(next.end(), prompt.begin(), prompt.end());
    }
    std::vector<real> logits(static_cast<size_t>(B * V));
    model.start_decoding(B);
    for (int64_t t = begun; t < n_ctx; t++) {
        model.decode(logits.data(), next.data(), B, begun);
        begun = 1;
        next.resize(static_cast<size_t>(B));
        for (int64_t b = 0; b < B; b++) {
            const auto row = static_cast<size_t>(b);
            next[row] = sample_token(logits.data() + b * V, V, r.sampling, random[row]);
            out[static_cast<size_t>(b * n_ctx + t)] = next[row];
        }
    }
}

}  // namespace

void write_samples(Engine& model, const Tokenizer* tokenizer, const SampleRequest& request, const std::string& label) {
    SampleRequest r = request;
    r.sampling.never = ids_without_text(tokenizer, model.config.V);
    const auto n_ctx = static_cast<uint64_t>(model.config.n_ctx);
    if (r.prompt.size() >= n_ctx)
        throw BadInput("the prompt has " + std::to_string(r.prompt.size()) + " tokens, and the model reads " +
                       std::to_string(n_ctx) + "; shorten it");
    const auto V = static_cast<uint32_t>(model.config.V);
    const uint64_t train = (r.tokens + n_ctx - 1) / n_ctx, val = (r.val_tokens + n_ctx - 1) / n_ctx;
    std::vector<int32_t> sequences;
    ProgressBar progress(label, train + val);
    for (const bool of_val : {false, true}) {
        const uint64_t count = of_val ? val : train, offset = of_val ? train : 0;
        ShardWriter writer(r.prefix + (of_val ? "_val" : "_train"), V, 100'000'000);
        for (uint64_t i = 0; i < count; i += static_cast<uint64_t>(r.batch)) {
            const auto B = static_cast<int64_t>(std::min<uint64_t>(static_cast<uint64_t>(r.batch), count - i));
            sample_sequences(model, r, offset + i, B, sequences);
            writer.append(sequences.data(), sequences.size());
            progress.update(offset + i + static_cast<uint64_t>(B));
        }
        writer.finish();  // without tokens it removes those of an earlier run
    }
    model.start_decoding(0);
    progress.hide();
    Json about = {{"version", 1}};
    if (tokenizer != nullptr)
        about["tokenizer"] = {{"name", tokenizer->name()},
                              {"fingerprint", tokenizer->fingerprint()},
                              {"vocab_size", tokenizer->vocab_size()},
                              {"end_of_text", tokenizer->end_of_text()}};
    about["tokens"] = {{"train", train * n_ctx}, {"val", val * n_ctx}};
    about["sampled"] = {{"seed", r.sampling.seed},
                        {"temperature", r.sampling.temperature},
                        {"top_k", r.sampling.top_k},
                        {"prompt", r.prompt}};
    write_file_atomically(r.prefix + ".json", about.dump(2) + "\n");
}

}  // namespace lnfree
