#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "data/shards.h"
#include "dev/analysis/sample.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/cpu/machine.h"
#include "dev/processes.h"
#include "dev/run/evaluate.h"
#include "dev/run/launch.h"
#include "dev/run/models.h"
#include "dev/run/statistics.h"

namespace lnfree {

namespace fs = std::filesystem;

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

Json worst_json(const std::vector<WorstToken>& worst, const Tokenizer* tokenizer) {
    Json list = Json::array();
    for (const WorstToken& w : worst)
        list.push_back({{"loss", w.loss},
                        {"sequence", w.sequence},
                        {"position", w.position},
                        {"token", w.token},
                        {"text", tokenizer != nullptr ? tokenizer->token_text(w.token) : ""},
                        {"context", context_text(tokenizer, w)}});
    return list;
}

Json percentiles_json(std::vector<float>& losses) {
    static const std::pair<const char*, double> shares[] = {{"p0.05", 0.0005}, {"p2.5", 0.025}, {"p25", 0.25},
                                                            {"p50", 0.5},      {"p75", 0.75},   {"p97.5", 0.975},
                                                            {"p99.95", 0.9995}};
    Json j;
    for (const auto& [name, share] : shares) j[name] = quantile(losses, share);
    return j;
}

void require_sequences(const TokenShards& shards, int64_t T, bool paper_windows) {
    if (shards.sequences(static_cast<uint64_t>(T), paper_windows) > 0) return;
    throw BadInput("--data " + shards.paths()[0] + ": fewer than " + std::to_string(T + (paper_windows ? 0 : 1)) +
                   " tokens; use more text or a smaller --seq");
}

// A model, and what others are held against.
struct Evaluated {
    std::string folder;
    LoadedModel loaded;
    int64_t T = 0;
    std::vector<double> losses;  // mean of every sequence
};

// Why two models' predictions cannot be held against each other, in words; empty: they can.
std::string why_not_comparable(const Evaluated& a, const Evaluated& b) {
    const Tokenizer *one = a.loaded.tokenizer.get(), *other = b.loaded.tokenizer.get();
    const bool same_tokenizer = one == nullptr || other == nullptr || one->fingerprint() == other->fingerprint();
    if (a.loaded.model->config.V != b.loaded.model->config.V || !same_tokenizer) return "another vocabulary";
    if (a.T != b.T) return "another length of sequences: give --seq";
    return "";
}

// How far a model is from the baseline, sequence by sequence (protocol.md 11).
struct Distance {
    std::vector<double> kl, agreement;

    void add(const Comparison& c, int64_t P) {
        kl.push_back(mean_of(c.kls, P));
        agreement.push_back(static_cast<double>(std::count(c.agree, c.agree + P, 1)) / static_cast<double>(P));
    }
};

// Means with their intervals; sequences are what is resampled, and the two models' stay paired.
Json faithfulness_json(const Distance& distance, const std::vector<double>& losses,
                       const std::vector<double>& baseline) {
    constexpr uint64_t kSeed = 1;  // of the resampling
    std::vector<double> minus(losses.size());
    for (size_t i = 0; i < minus.size(); i++) minus[i] = losses[i] - baseline[i];
    Json j;
    for (const auto& [key, values] : {std::pair{"kl", &distance.kl},
                                      {"agreement", &distance.agreement},
                                      {"loss_minus_baseline", &std::as_const(minus)}}) {
        j[key] = mean_of(*values);
        j[std::string(key) + "_interval"] = interval_of_mean(*values, kSeed);
    }
    return j;
}

// What is beside a given baseline, if there is one.
void add_faithfulness(Json& j, const Evaluated& model, const Evaluated* baseline, const Distance& distance) {
    if (baseline == nullptr) return;
    const std::string why_not = why_not_comparable(model, *baseline);
    j["baseline"] = baseline->folder;
    j["faithfulness"] = why_not.empty() ? faithfulness_json(distance, model.losses, baseline->losses) : Json();
    if (!why_not.empty()) j["not_compared"] = why_not;
}

TokenShards shards_for(const Evaluated& e, const EvalOptions& o) {
    TokenShards shards(o.data);
    shards.check_vocabulary(static_cast<uint32_t>(e.loaded.model->config.V));
    require_same_tokenizer(shards, e.loaded.tokenizer.get(), "--data");
    require_sequences(shards, e.T, o.windows == "paper");
    return shards;
}

// Measures a model in one pass over the data, of both models where there is a baseline to hold this one against.
Json evaluate(Evaluated& e, const std::string& folder, const EvalOptions& o, const Evaluated* baseline) {
    const double begin = seconds_now();
    e.folder = folder;
    e.loaded = load_model(folder);
    Engine& model = *e.loaded.model;
    const int64_t T = e.T = sequence_length(o.seq, model.config, folder);
    const bool paper_windows = o.windows == "paper";
    const TokenShards shards = shards_for(e, o);

    require_alike([&] {
        Hash64 hash;
        add_model(hash, model);
        return std::vector<Common>{{"other --data", shards.fingerprint()}, {"another --model", hash.value()}};
    });
    LossCollector seen(o.worst);
    Distance distance;
    const auto add = [&](uint64_t sequence, const real* losses, const int32_t* inputs, const int32_t* targets,
                         int64_t P) {
        seen.add(sequence, losses, inputs, targets, P);
        e.losses.push_back(mean_of(losses, P));
    };
    const int64_t batch =
        std::min(o.batch, static_cast<int64_t>(shards.sequences(static_cast<uint64_t>(T), paper_windows)));
    const auto tokens = static_cast<uint64_t>(o.max_tokens);
    double mean = 0;
    if (baseline != nullptr && why_not_comparable(e, *baseline).empty())
        mean = mean_faithfulness(model, *baseline->loaded.model, shards, T, batch, tokens, paper_windows, "eval",
                                 [&](uint64_t sequence, const Comparison& c, const int32_t* inputs,
                                     const int32_t* targets, int64_t P) {
                                     add(sequence, c.losses, inputs, targets, P);
                                     distance.add(c, P);
                                 })
                   .loss;
    else
        mean = mean_loss(model, shards, T, batch, tokens, paper_windows, "eval", add);
    if (!std::isfinite(mean))
        throw RunFailure(folder + ": its loss is not finite; the model has diverged, take an earlier one");
    if (!o.logits.empty() && processes().leads()) write_logits(o.logits, model, shards, T, paper_windows);

    Json j;
    j["model"] = folder;
    j["loss"] = mean;
    j["perplexity"] = std::exp(mean);
    j["tokens"] = seen.losses.size();
    j["seq"] = T;
    j["windows"] = o.windows;
    j["precision"] = o.precision;
    j["percentiles"] = percentiles_json(seen.losses);
    j["worst"] = worst_json(seen.worst, e.loaded.tokenizer.get());
    j["layernorm_free"] = model.sites.all_linear_everywhere();
    add_faithfulness(j, e, baseline, distance);
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

// What was measured of each, in the order of --model; a given baseline first, because the others are held against it.
Json evaluate_all(const EvalOptions& o) {
    const size_t first = baseline_index(o);
    std::vector<Json> all(o.models.size());
    Evaluated baseline;
    if (!o.baseline.empty()) all[first] = evaluate(baseline, o.models[first], o, nullptr);
    for (size_t i = 0; i < all.size(); i++) {
        if (!all[i].is_null()) continue;
        Evaluated model;
        all[i] = evaluate(model, o.models[i], o, o.baseline.empty() ? nullptr : &baseline);
    }
    return all;
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

// "0.0162 [0.0150, 0.0174]"; empty where nothing was compared.
std::string with_interval(const Json& model, const std::string& key, double unit, int digits) {
    if (!model.contains("faithfulness") || model["faithfulness"].is_null()) return "";
    const Json &f = model["faithfulness"], &ends = f[key + "_interval"];
    const auto fixed = [&](const Json& x) { return format_fixed(unit * x.get<double>(), digits); };
    return fixed(f[key]) + " [" + fixed(ends[0]) + ", " + fixed(ends[1]) + "]";
}

// A row for each model.
Table comparison(const Json& models, size_t baseline, bool faithfulness) {
    const double reference = models[baseline]["loss"].get<double>();
    std::vector<std::string> columns = {
        "model",  "loss (nats)", "minus " + models[baseline]["model"].get<std::string>(), "perplexity", "median loss",
        "tokens", "LayerNorm"};
    if (faithfulness) columns.insert(columns.end(), {"KL (nats)", "same likeliest token (%)", "loss minus baseline"});
    Table table(columns);
    for (const Json& j : models) {
        std::vector<std::string> cells = {j["model"].get<std::string>(),
                                          format_fixed(j["loss"].get<double>(), 4),
                                          format_fixed(j["loss"].get<double>() - reference, 4),
                                          format_fixed(j["perplexity"].get<double>(), 3),
                                          format_fixed(j["percentiles"]["p50"].get<double>(), 4),
                                          format_count(j["tokens"].get<uint64_t>()),
                                          j["layernorm_free"].get<bool>() ? "none" : "yes"};
        if (faithfulness)
            cells.insert(cells.end(), {with_interval(j, "kl", 1, 4), with_interval(j, "agreement", 100, 1),
                                       with_interval(j, "loss_minus_baseline", 1, 4)});
        table.add_row(cells);
    }
    return table;
}

// Below the table: what its columns are, and which cells are empty for what reason.
std::string notes(const Json& models, const std::string& baseline) {
    std::string text = "\nKL(" + baseline + " || model) per token; 95 % intervals by the bootstrap over sequences.\n";
    for (const Json& j : models)
        if (j.contains("not_compared"))
            text += j["model"].get<std::string>() + " was not compared with " + baseline + ": " +
                    j["not_compared"].get<std::string>() + ".\n";
    return text;
}

Table worst_table(const Json& worst) {
    Table table({"worst tokens: loss", "sequence", "position", "token", "after"});
    for (const Json& w : worst) {
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
    const Json all = evaluate_all(o);
    if (o.json_output) {
        print_json(true, all.size() == 1 ? all[0] : Json{{"models", all}});
        return 0;
    }
    const bool faithfulness = !o.baseline.empty() && all.size() > 1;
    const Table table = comparison(all, baseline_index(o), faithfulness);
    std::printf("%s", o.markdown ? table.markdown().c_str() : table.text().c_str());
    if (faithfulness) std::printf("%s", notes(all, o.baseline).c_str());
    if (all.size() == 1 && !o.markdown) std::printf("\n%s", worst_table(all[0]["worst"]).text().c_str());
    return 0;
}

}  // namespace lnfree
