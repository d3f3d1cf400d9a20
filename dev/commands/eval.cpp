#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/safetensors.h"
#include "data/shards.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/cpu/machine.h"
#include "dev/run/evaluate.h"
#include "dev/run/models.h"

namespace lnfree {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

struct WorstToken {
    double loss;
    uint64_t sequence;
    int64_t position;
    int32_t token;
    std::vector<int32_t> context;  // up to 16 tokens before it
};

// The losses of all predictions, and the largest of them with where they were met.
class LossCollector {
  public:
    std::vector<float> losses;
    std::vector<WorstToken> worst;  // largest first

    explicit LossCollector(int64_t limit) : limit_(static_cast<size_t>(limit)) {}

    // One sequence of P predictions, as SequenceVisitor.
    void add(uint64_t sequence, const real* l, const int32_t* inputs, const int32_t* targets, int64_t P) {
        for (int64_t t = 0; t < P; t++) {
            losses.push_back(static_cast<float>(l[t]));
            const double loss = static_cast<double>(l[t]);
            if (!among_worst(loss)) continue;
            keep({loss, sequence, t, targets[t], {inputs + std::max<int64_t>(0, t - 15), inputs + t + 1}});
        }
    }

  private:
    bool among_worst(double loss) const { return limit_ > 0 && (worst.size() < limit_ || loss > worst.back().loss); }
    void keep(const WorstToken& candidate) {
        const auto greater = [](const WorstToken& a, const WorstToken& b) { return a.loss > b.loss; };
        worst.insert(std::upper_bound(worst.begin(), worst.end(), candidate, greater), candidate);
        if (worst.size() > limit_) worst.pop_back();
    }

    size_t limit_;
};

// Writes what the model makes of the first sequence as a safetensors file with the one tensor "logits", (P,V) in F32, P
// predictions: for holding the model against other programs.
void write_logits(const std::string& path, Engine& model, const TokenShards& shards, int64_t T, bool paper_windows) {
    const int64_t P = paper_windows ? T - 1 : T;
    std::vector<int32_t> inputs(static_cast<size_t>(P)), targets(inputs.size());
    shards.read(0, static_cast<uint64_t>(T), inputs.data(), targets.data(), paper_windows);
    const std::vector<uint64_t> shape = {static_cast<uint64_t>(P), static_cast<uint64_t>(model.config.V)};
    if (fs::path(path).has_parent_path()) fs::create_directories(fs::path(path).parent_path());
    write_safetensors<real>(path, {{"logits", shape, [&](real* out) { model.logits(out, inputs.data(), 1, P); }}},
                            DType::F32);
}

std::string context_text(const Tokenizer* tokenizer, const WorstToken& w) {
    std::string text;
    if (tokenizer == nullptr) return text;
    for (const int32_t token : w.context) text += tokenizer->token_text(token);
    return text;
}

ordered_json worst_json(const std::vector<WorstToken>& worst, const Tokenizer* tokenizer) {
    ordered_json list = ordered_json::array();
    for (const WorstToken& w : worst)
        list.push_back({{"loss", w.loss},
                        {"sequence", w.sequence},
                        {"position", w.position},
                        {"token", w.token},
                        {"text", tokenizer != nullptr ? tokenizer->token_text(w.token) : ""},
                        {"context", context_text(tokenizer, w)}});
    return list;
}

ordered_json percentiles_json(std::vector<float>& losses) {
    static const std::pair<const char*, double> shares[] = {{"p0.05", 0.0005}, {"p2.5", 0.025}, {"p25", 0.25},
                                                            {"p50", 0.5},      {"p75", 0.75},   {"p97.5", 0.975},
                                                            {"p99.95", 0.9995}};
    ordered_json j;
    for (const auto& [name, share] : shares) j[name] = quantile(losses, share);
    return j;
}

void require_sequences(const TokenShards& shards, int64_t T, bool paper_windows) {
    if (shards.sequences(static_cast<uint64_t>(T), paper_windows) > 0) return;
    throw BadInput("--data " + shards.paths()[0] + ": fewer than " + std::to_string(T + (paper_windows ? 0 : 1)) +
                   " tokens; use more text or a smaller --seq");
}

ordered_json evaluate(const std::string& folder, const EvalOptions& o) {
    const double begin = seconds_now();
    const LoadedModel loaded = load_model(folder);
    Engine& model = *loaded.model;
    const int64_t T = sequence_length(o.seq, model.config, folder);
    const bool paper_windows = o.windows == "paper";
    const TokenShards shards(o.data);
    shards.check_vocabulary(static_cast<uint32_t>(model.config.V));
    require_same_tokenizer(shards, loaded.tokenizer.get(), "--data");
    require_sequences(shards, T, paper_windows);

    LossCollector seen(o.worst);
    const int64_t batch =
        std::min(o.batch, static_cast<int64_t>(shards.sequences(static_cast<uint64_t>(T), paper_windows)));
    const double mean =
        mean_loss(model, shards, T, batch, static_cast<uint64_t>(o.max_tokens), paper_windows, "eval",
                  [&](uint64_t sequence, const real* losses, const int32_t* inputs, const int32_t* targets, int64_t P) {
                      seen.add(sequence, losses, inputs, targets, P);
                  });
    if (!std::isfinite(mean))
        throw RunFailure(folder + ": its loss is not finite; the model has diverged, take an earlier one");
    if (!o.logits.empty()) write_logits(o.logits, model, shards, T, paper_windows);

    ordered_json j;
    j["model"] = folder;
    j["loss"] = mean;
    j["perplexity"] = std::exp(mean);
    j["tokens"] = seen.losses.size();
    j["seq"] = T;
    j["windows"] = o.windows;
    j["precision"] = o.precision;
    j["percentiles"] = percentiles_json(seen.losses);
    j["worst"] = worst_json(seen.worst, loaded.tokenizer.get());
    j["layernorm_free"] = model.sites.all_linear_everywhere();
    j["seconds"] = seconds_now() - begin;
    return j;
}

// Index of --baseline among the models. BadInput if it is none of them.
size_t baseline_index(const EvalOptions& o) {
    if (o.baseline.empty()) return 0;
    const auto found = std::find(o.models.begin(), o.models.end(), o.baseline);
    if (found == o.models.end()) throw BadInput("--baseline " + o.baseline + ": is none of the --model folders");
    return static_cast<size_t>(found - o.models.begin());
}

void check_options(const EvalOptions& o) {
    baseline_index(o);
    if (o.windows != "shifted" && o.windows != "paper")
        throw BadInput("--windows " + o.windows +
                       ": use shifted (T predictions each) or paper (T tokens, T - 1 predictions)");
    if (o.batch < 1) throw BadInput("--batch must be at least 1");
    if (!o.logits.empty() && o.models.size() > 1)
        throw BadInput("--logits " + o.logits + ": is for one model; give a single --model");
    if (!o.logits.empty() && fs::exists(o.logits) && !o.force)
        throw BadInput("--logits " + o.logits + ": already exists; name another file or give --force");
}

// A row for each model.
Table comparison(const ordered_json& models, size_t baseline) {
    const double reference = models[baseline]["loss"].get<double>();
    Table table({"model", "loss (nats)", "minus " + models[baseline]["model"].get<std::string>(), "perplexity",
                 "median loss", "tokens", "LayerNorm"});
    for (const ordered_json& j : models)
        table.add_row({j["model"].get<std::string>(), format_fixed(j["loss"].get<double>(), 4),
                       format_fixed(j["loss"].get<double>() - reference, 4),
                       format_fixed(j["perplexity"].get<double>(), 3),
                       format_fixed(j["percentiles"]["p50"].get<double>(), 4),
                       format_count(j["tokens"].get<uint64_t>()), j["layernorm_free"].get<bool>() ? "none" : "yes"});
    return table;
}

Table worst_table(const ordered_json& worst) {
    Table table({"worst tokens: loss", "sequence", "position", "token", "after"});
    for (const ordered_json& w : worst) {
        const std::string text = w["text"].get<std::string>();
        table.add_row({format_fixed(w["loss"].get<double>(), 3), w["sequence"].dump(), w["position"].dump(),
                       text.empty() ? w["token"].dump() : text, w["context"].get<std::string>()});
    }
    return table;
}

}  // namespace

int eval_command(const EvalOptions& o) {
    check_options(o);
    backend().use_precision(o.precision);
    ordered_json all = ordered_json::array();
    for (const std::string& folder : o.models) all.push_back(evaluate(folder, o));
    if (o.json_output) {
        print_json(true, all.size() == 1 ? all[0] : ordered_json{{"models", all}});
        return 0;
    }
    const Table table = comparison(all, baseline_index(o));
    std::printf("%s", o.markdown ? table.markdown().c_str() : table.text().c_str());
    if (all.size() == 1 && !o.markdown) std::printf("\n%s", worst_table(all[0]["worst"]).text().c_str());
    return 0;
}

}  // namespace lnfree
