#include "dev/run/evaluate.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "dev/cpu/machine.h"
#include "dev/cpu/operations.h"
#include "dev/processes.h"

namespace lnfree {

// ---------------------------------------------------------------------------------------------------------------------
// Losses

namespace {

// Which sequences mean_loss takes, and how many at a time.
struct Sequences {
    int64_t T, batch;
    uint64_t max_tokens;
    bool paper_windows;
    const std::string& label;
    bool beside_another;  // a whole Comparison is found; else losses alone
};

// Some sequences as an engine takes them, and what was found of each prediction; those that fill up a last batch are not
// counted.
struct Batch {
    uint64_t first;
    int64_t counted, P;               // P predictions each
    const int32_t *inputs, *targets;  // (batch,P)
    Comparison found;                 // (batch,P)
};

// A batch as it is read, for an engine.
using Measure = std::function<Comparison(const int32_t* inputs, const int32_t* targets, int64_t P)>;

// What several processes found of a batch each. Alone, there is nothing to bring together.
class Gathered {
  public:
    // Of so many predictions each.
    Gathered(int64_t predictions, bool beside_another)
        : n_(predictions),
          beside_another_(beside_another),
          losses_(all()),
          kls_(all()),
          agree_(all()),
          counts_(processes().shares(processes().size())) {
        for (int64_t& count : counts_) count *= n_;
    }
    // Collective. What process r found is Gathered::of(r) afterwards; one that has no batch this time brings null.
    void bring(const Comparison& mine) {
        const auto put = [&](const auto* from, auto& to) {
            if (from != nullptr) std::copy(from, from + n_, to.data() + processes().rank() * n_);
            processes().all_gather(to.data(), sizeof to[0], counts_);
        };
        put(mine.losses, losses_);
        if (!beside_another_) return;
        put(mine.kls, kls_);
        put(mine.agree, agree_);
    }
    Comparison of(int r) const { return {losses_.data() + r * n_, kls_.data() + r * n_, agree_.data() + r * n_}; }

  private:
    int64_t n_;
    bool beside_another_;
    std::vector<real> losses_, kls_;
    std::vector<uint8_t> agree_;
    std::vector<int64_t> counts_;

    size_t all() const { return static_cast<size_t>(n_ * processes().size()); }
};

// Has batch after batch measured, several processes one each at a time, and calls `add` with all of them in their order, in
// every process: what is added up does not depend on how many there are. Returns how many predictions were counted.
double for_each_batch(const TokenShards& shards, const Sequences& q, const Measure& measure,
                      const std::function<void(const Batch&)>& add) {
    const int64_t P = q.paper_windows ? q.T - 1 : q.T;
    const auto T = static_cast<uint64_t>(q.T), batch = static_cast<uint64_t>(q.batch);
    uint64_t sequences = shards.sequences(T, q.paper_windows);
    if (q.max_tokens > 0)
        sequences = std::min<uint64_t>(sequences, std::max<uint64_t>(1, q.max_tokens / static_cast<uint64_t>(P)));
    std::vector<int32_t> inputs(static_cast<size_t>(q.batch * P)), targets(inputs.size());
    // The last batch is filled up with its last sequence, so that every batch has one shape.
    const auto read = [&](uint64_t first) {
        for (int64_t b = 0; b < q.batch; b++)
            shards.read(std::min(first + static_cast<uint64_t>(b), sequences - 1), T, inputs.data() + b * P,
                        targets.data() + b * P, q.paper_windows);
    };
    ProgressBar progress(q.label, sequences);
    const int size = processes().size();
    Gathered gathered(size > 1 ? q.batch * P : 0, q.beside_another);
    for (uint64_t at = 0; at < sequences; at += batch * static_cast<uint64_t>(size)) {
        const auto first_of = [&](int r) { return at + static_cast<uint64_t>(r) * batch; };
        Comparison mine{};
        if (first_of(processes().rank()) < sequences) {
            read(first_of(processes().rank()));
            mine = measure(inputs.data(), targets.data(), P);
        }
        if (size > 1) gathered.bring(mine);
        for (int r = 0; r < size && first_of(r) < sequences; r++) {
            const uint64_t first = first_of(r);
            if (size > 1) read(first);
            const auto counted = static_cast<int64_t>(std::min(batch, sequences - first));
            add({first, counted, P, inputs.data(), targets.data(), size > 1 ? gathered.of(r) : mine});
            progress.update(std::min(first + batch, sequences));
        }
    }
    progress.hide();
    return static_cast<double>(sequences) * static_cast<double>(P);
}

}  // namespace

double mean_loss(Engine& model, const TokenShards& shards, int64_t T, int64_t batch, uint64_t max_tokens,
                 bool paper_windows, const std::string& label, const SequenceVisitor& each) {
    double sum = 0;
    const auto measure = [&](const int32_t* inputs, const int32_t* targets, int64_t P) {
        return Comparison{model.token_losses(inputs, targets, batch, P), nullptr, nullptr};
    };
    const auto add = [&](const Batch& now) {
        const real* losses = now.found.losses;
        for (int64_t n = 0; n < now.counted * now.P; n++) sum += static_cast<double>(losses[n]);
        if (!each) return;
        for (int64_t b = 0; b < now.counted; b++)
            each(now.first + static_cast<uint64_t>(b), losses + b * now.P, now.inputs + b * now.P,
                 now.targets + b * now.P, now.P);
    };
    const double predictions =
        for_each_batch(shards, {T, batch, max_tokens, paper_windows, label, false}, measure, add);
    return sum / predictions;
}

Faithfulness mean_faithfulness(Engine& model, Engine& original, const TokenShards& shards, int64_t T, int64_t batch,
                               uint64_t max_tokens, bool paper_windows, const std::string& label,
                               const ComparisonVisitor& each) {
    Faithfulness sum;
    const auto measure = [&](const int32_t* inputs, const int32_t* targets, int64_t P) {
        return model.compare(original, inputs, targets, batch, P);
    };
    const auto add = [&](const Batch& now) {
        const Comparison& c = now.found;
        for (int64_t n = 0; n < now.counted * now.P; n++) {
            sum.loss += static_cast<double>(c.losses[n]);
            sum.kl += static_cast<double>(c.kls[n]);
            sum.agreement += static_cast<double>(c.agree[n]);
        }
        if (!each) return;
        for (int64_t b = 0; b < now.counted; b++) {
            const int64_t at = b * now.P;
            each(now.first + static_cast<uint64_t>(b), {c.losses + at, c.kls + at, c.agree + at}, now.inputs + at,
                 now.targets + at, now.P);
        }
    };
    const double predictions = for_each_batch(shards, {T, batch, max_tokens, paper_windows, label, true}, measure, add);
    return {sum.loss / predictions, sum.kl / predictions, sum.agreement / predictions};
}

// ---------------------------------------------------------------------------------------------------------------------
// Whether model and shards belong together

Json tokenizer_of_shard(const std::string& shard) {
    const auto sidecar = read_sidecar(shard);
    if (!sidecar || !sidecar->contains("tokenizer")) return Json();
    const Json& tokenizer = (*sidecar)["tokenizer"];
    const auto is = [&](const char* key, auto check) { return tokenizer.contains(key) && (tokenizer[key].*check)(); };
    if (!is("name", &Json::is_string) || !is("fingerprint", &Json::is_string) ||
        !is("vocab_size", &Json::is_number_integer))
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
        const Json made_by = tokenizer_of_shard(path);
        if (made_by.is_object() && made_by["fingerprint"] != tokenizer->fingerprint())
            throw BadInput(flag + " " + path + " was tokenised with another tokenizer (" +
                           quoted_name(made_by["fingerprint"].get<std::string>()) + ") than the model's (" +
                           tokenizer->fingerprint() + "); run `tokenize --tokenizer MODEL_FOLDER` on the text");
    }
}

int64_t sequence_length(int64_t seq, const ModelConfig& config, const std::string& folder) {
    if (seq > config.n_ctx)
        throw BadInput("--seq " + std::to_string(seq) + ": " + folder + " reads at most " +
                       std::to_string(config.n_ctx) + " positions (n_ctx); choose --seq within that");
    return seq > 0 ? seq : config.n_ctx;
}

// ---------------------------------------------------------------------------------------------------------------------
// How much there is to compute, and how fast this machine is

double training_flops_per_token(const ModelConfig& c, int64_t parameters, int64_t T) {
    const int64_t looked_up = c.has_own_head() ? c.V * c.C : 0;  // wte multiplies where it is the unembedding alone
    return 6.0 * static_cast<double>(parameters - looked_up) + 6.0 * static_cast<double>(c.L * c.heads_width() * T);
}

double measure_flops(const ModelConfig& c) {
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
