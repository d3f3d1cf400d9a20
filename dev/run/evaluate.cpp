#include "dev/run/evaluate.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "dev/cpu/machine.h"
#include "dev/cpu/operations.h"

namespace lnfree {

using nlohmann::json;

// ---------------------------------------------------------------------------------------------------------------------
// Losses

double mean_loss(Engine& model, const TokenShards& shards, int64_t T, int64_t batch, uint64_t max_tokens,
                 bool paper_windows, const std::string& label, const SequenceVisitor& each) {
    const int64_t P = paper_windows ? T - 1 : T;  // predictions per sequence
    uint64_t sequences = shards.sequences(static_cast<uint64_t>(T), paper_windows);
    if (max_tokens > 0)
        sequences = std::min<uint64_t>(sequences, std::max<uint64_t>(1, max_tokens / static_cast<uint64_t>(P)));
    std::vector<int32_t> inputs(static_cast<size_t>(batch * P)), targets(inputs.size());
    double sum = 0;
    ProgressBar progress(label, sequences);
    for (uint64_t first = 0; first < sequences; first += static_cast<uint64_t>(batch)) {
        // The last batch is filled up with its last sequence, so that every batch has one shape; the filling is not counted.
        for (int64_t b = 0; b < batch; b++)
            shards.read(std::min(first + static_cast<uint64_t>(b), sequences - 1), static_cast<uint64_t>(T),
                        inputs.data() + b * P, targets.data() + b * P, paper_windows);
        const real* losses = model.token_losses(inputs.data(), targets.data(), batch, P);
        for (int64_t b = 0; b < batch && first + static_cast<uint64_t>(b) < sequences; b++) {
            for (int64_t t = 0; t < P; t++) sum += static_cast<double>(losses[b * P + t]);
            if (each)
                each(first + static_cast<uint64_t>(b), losses + b * P, inputs.data() + b * P, targets.data() + b * P,
                     P);
        }
        progress.update(std::min(first + static_cast<uint64_t>(batch), sequences));
    }
    progress.hide();
    return sum / (static_cast<double>(sequences) * static_cast<double>(P));
}

namespace {

template <class T>
double interpolated(std::vector<T>& values, double share) {
    const double rank = share * static_cast<double>(values.size() - 1);
    const size_t below = static_cast<size_t>(std::floor(rank));
    const auto at = values.begin() + static_cast<std::ptrdiff_t>(below);
    std::nth_element(values.begin(), at, values.end());
    const double low = static_cast<double>(*at), part = rank - static_cast<double>(below);
    if (part == 0) return low;
    const double high = static_cast<double>(*std::min_element(at + 1, values.end()));
    return low + part * (high - low);
}

}  // namespace

double quantile(std::vector<float>& values, double share) {
    return interpolated(values, share);
}
double quantile(std::vector<double>& values, double share) {
    return interpolated(values, share);
}

// ---------------------------------------------------------------------------------------------------------------------
// Whether model and shards belong together

json tokenizer_of_shard(const std::string& shard) {
    const auto sidecar = read_sidecar(shard);
    if (!sidecar || !sidecar->contains("tokenizer")) return json();
    const json& tokenizer = (*sidecar)["tokenizer"];
    const auto is = [&](const char* key, auto check) { return tokenizer.contains(key) && (tokenizer[key].*check)(); };
    if (!is("name", &json::is_string) || !is("fingerprint", &json::is_string) ||
        !is("vocab_size", &json::is_number_integer))
        throw BadInput(
            *sidecar_path(shard) +
            ": \"tokenizer\" lacks its name, fingerprint or vocab_size; make the shards again with `tokenize`");
    return tokenizer;
}

void require_same_tokenizer(const TokenShards& shards, const Tokenizer* tokenizer, const std::string& flag) {
    if (tokenizer == nullptr) return;
    std::set<std::string> seen;
    for (const std::string& path : shards.paths()) {
        if (!seen.insert(sidecar_path(path).value_or("")).second) continue;
        const json made_by = tokenizer_of_shard(path);
        if (made_by.is_object() && made_by["fingerprint"] != tokenizer->fingerprint())
            throw BadInput(flag + " " + path + " was tokenised with another tokenizer (" +
                           quoted_name(made_by["fingerprint"].get<std::string>()) + ") than the model's (" +
                           tokenizer->fingerprint() + "); run `tokenize --tokenizer MODEL_FOLDER` on the text");
    }
}

int64_t sequence_length(int64_t seq, const GPT2Config& config, const std::string& folder) {
    if (seq > config.n_ctx)
        throw BadInput("--seq " + std::to_string(seq) + ": " + folder + " reads at most " +
                       std::to_string(config.n_ctx) + " positions (n_ctx); choose --seq within that");
    return seq > 0 ? seq : config.n_ctx;
}

// ---------------------------------------------------------------------------------------------------------------------
// How much there is to compute, and how fast this machine is

double training_flops_per_token(const GPT2Config& c, int64_t parameters, int64_t T) {
    return 6.0 * static_cast<double>(parameters) + 6.0 * static_cast<double>(c.L * c.C * T);
}

double measure_flops(const GPT2Config& c) {
    const int64_t N = 256, K = c.C, M = c.n_inner;
    Buffer a(N * K), b(K * M), out(N * M);
    const auto multiply = [&] { operations().matmul_forward(out.data(), a.data(), b.data(), nullptr, N, K, M, M); };
    multiply();
    double done = 0;
    const double begin = seconds_now();
    double now = begin;
    for (; now - begin < 0.25; now = seconds_now()) {
        multiply();
        done += 2.0 * static_cast<double>(N * K * M);
    }
    return done / (now - begin);
}

}  // namespace lnfree
