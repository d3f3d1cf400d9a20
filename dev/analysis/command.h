// `analyze`: the measurements of this folder on model folders, as tables and as JSON. Included by train_gpt2_lnfree.cpp,
// section 8, after the folders.
#pragma once

#include "dev/analysis/attribution.h"
#include "dev/analysis/benchmarks.h"
#include "dev/analysis/confidence.h"
#include "dev/analysis/loss.h"
#include "dev/analysis/norms.h"
#include "dev/analysis/patching.h"
#include "dev/analysis/report.h"

namespace lnfree {
namespace analysis {

struct Options {
    std::vector<std::string> models, data;
    std::string prompts;  // file; empty: the story world's own, for byte models
    std::string out;      // folder for the results as JSON; empty: none
    int64_t seq = 0;      // 0: n_ctx, at most 512 as in the paper
    int64_t sequences = 100, batch = 8;
    uint64_t seed = 1;
    BenchmarkOptions benchmarks;
    bool markdown = false, json_output = false, force = false;
};

// The models and what they are measured on.
struct Subjects {
    std::vector<std::string> folders;
    std::vector<LoadedModel> loaded;
    Sample sample;                                  // what a measurement is taken on: text,
    std::vector<PromptSet> prompts;                 // prompts,
    BenchmarkOptions benchmarks;                    // or questions,
    std::vector<std::vector<BenchmarkTask>> tasks;  // tokenised for each model
    Settings settings;

    GPT2& model(size_t i) const { return *loaded[i].model; }
};

// ---------------------------------------------------------------------------------------------------------------------
// What to measure on

inline void require_one_vocabulary(const Subjects& s) {
    const auto fingerprint = [&](size_t i) {
        return s.loaded[i].tokenizer ? s.loaded[i].tokenizer->fingerprint() : "";
    };
    for (size_t i = 1; i < s.loaded.size(); i++)
        if (s.model(i).config.V != s.model(0).config.V || fingerprint(i) != fingerprint(0))
            throw BadInput(s.folders[i] + ": has another vocabulary than " + s.folders[0] +
                           "; compare models with the same tokenizer");
}

inline Sample sample_for(const Subjects& s, const Options& o) {
    if (o.data.empty()) throw BadInput("--data is required: token shards made by `tokenize`");
    int64_t T = o.seq > 0 ? o.seq : 512;
    for (size_t i = 0; i < s.loaded.size(); i++) {
        if (o.seq == 0) T = std::min(T, s.model(i).config.n_ctx);
        sequence_length(T, s.model(i).config, s.folders[i]);
    }
    if (T < 2)
        throw BadInput("--seq " + std::to_string(T) +
                       ": what position 0 is to the others needs others; use at least 2");
    const TokenShards shards(o.data);
    for (const LoadedModel& loaded : s.loaded) {
        shards.check_vocabulary(static_cast<uint32_t>(loaded.model->config.V));
        require_same_tokenizer(shards, loaded.tokenizer.get(), "--data");
    }
    return take_sample(shards, T, o.sequences);
}

inline std::vector<int32_t> tokens_of(const Tokenizer& tokenizer, const std::string& text) {
    std::vector<int32_t> tokens;
    tokenizer.encode(text, tokens);
    return tokens;
}

// One prompt with its two answers into a set. BadInput, naming `where`, unless it has the set's length and the answers
// differ in their first token.
inline void add_prompt(PromptSet& set, const Tokenizer& tokenizer, const std::string& prompt, const std::string& right,
                       const std::string& wrong, const std::string& where) {
    const std::vector<int32_t> tokens = tokens_of(tokenizer, prompt);
    const std::vector<int32_t> answers[] = {tokens_of(tokenizer, right), tokens_of(tokenizer, wrong)};
    if (set.prompts.empty()) set.T = static_cast<int64_t>(tokens.size());
    if (tokens.empty() || static_cast<int64_t>(tokens.size()) != set.T)
        throw BadInput(where + ": has " + std::to_string(tokens.size()) + " tokens, the set's first prompt " +
                       std::to_string(set.T) + "; all prompts of a set must have equally many");
    if (answers[0].empty() || answers[1].empty() || answers[0][0] == answers[1][0])
        throw BadInput(where + ": the two answers begin with the same token; nothing tells them apart");
    set.prompts.push_back(tokens);
    set.right.push_back(answers[0][0]);
    set.wrong.push_back(answers[1][0]);
}

// {"name": {"prompts": [...], "answers": [[right, wrong], ...]}, ...}; neighbours 0 and 1, 2 and 3, ... are each other's
// corrupted partners. The sets come in the order of their names. BadInput says what is wrong.
inline std::vector<PromptSet> read_prompts(const std::string& path, const Tokenizer& tokenizer) {
    const json file = read_json(path, uint64_t{64} << 20);
    std::vector<PromptSet> sets;
    try {
        for (const auto& [name, entry] : file.items()) {
            const auto prompts = entry.at("prompts").get<std::vector<std::string>>();
            const auto answers = entry.at("answers").get<std::vector<std::vector<std::string>>>();
            if (prompts.empty() || prompts.size() % 2 != 0 || prompts.size() != answers.size())
                throw BadInput(path + ": set " + name + " has " + std::to_string(prompts.size()) + " prompts and " +
                               std::to_string(answers.size()) + " pairs of answers; give an even number of both");
            PromptSet set;
            set.name = name;
            for (size_t i = 0; i < prompts.size(); i++) {
                const std::string where = path + ": set " + name + ", prompt " + std::to_string(i);
                if (answers[i].size() != 2) throw BadInput(where + ": needs two answers, the right and the wrong one");
                add_prompt(set, tokenizer, prompts[i], answers[i][0], answers[i][1], where);
            }
            sets.push_back(std::move(set));
        }
    } catch (const json::exception& e) {
        throw BadInput(path + ": is no file of prompts: " + e.what());
    }
    if (sets.empty()) throw BadInput(path + ": holds no prompts");
    return sets;
}

// The story world's indirect-object prompts, one set per form of sentence.
inline std::vector<PromptSet> story_prompts(const Tokenizer& tokenizer) {
    const size_t forms = story::indirect_forms().size();
    std::vector<PromptSet> sets(forms);
    for (const IndirectObjectPrompt& p : indirect_object_prompts(1, static_cast<int>(16 * forms))) {
        PromptSet& set = sets[p.form];
        set.name = "story form " + std::to_string(p.form + 1);
        add_prompt(set, tokenizer, p.clean, p.correct, p.wrong, set.name);
        add_prompt(set, tokenizer, p.corrupted, p.wrong, p.correct, set.name);
    }
    return sets;
}

inline std::vector<PromptSet> prompts_for(const Subjects& s, const Options& o) {
    const Tokenizer* tokenizer = s.loaded[0].tokenizer.get();
    if (tokenizer == nullptr)
        throw BadInput(s.folders[0] + ": has no tokenizer files, which patching needs for its prompts");
    if (o.prompts.empty() && tokenizer->name() != "byte")
        throw BadInput("--prompts is required: the built-in ones are for byte models");
    std::vector<PromptSet> sets = o.prompts.empty() ? story_prompts(*tokenizer) : read_prompts(o.prompts, *tokenizer);
    for (size_t i = 0; i < s.loaded.size(); i++)
        for (const PromptSet& set : sets)
            if (set.T > s.model(i).config.n_ctx)
                throw BadInput("--prompts: those of set " + set.name + " have " + std::to_string(set.T) +
                               " tokens, and " + s.folders[i] + " reads at most " +
                               std::to_string(s.model(i).config.n_ctx) + " (n_ctx); give shorter ones");
    return sets;
}

// ---------------------------------------------------------------------------------------------------------------------
// The measurements, by name

inline std::vector<Table> tables_of_loss(const ordered_json& j) {
    Table table({"model", "loss (nats)", "95 % interval", "median", "entropy", "ECE", "tokens above 50", "final norm"});
    for (const ordered_json& m : j["models"])
        table.add_row({m["model"], format_fixed(m["loss"], 4),
                       format_fixed(m["loss_interval"][0], 4) + " to " + format_fixed(m["loss_interval"][1], 4),
                       format_fixed(m["median"], 4), format_fixed(m["entropy"], 4), format_fixed(m["ece"], 4),
                       std::to_string(m["over_50"].size()), format_fixed(m["final_norm"], 1)});
    if (j["divergences"].empty()) return {table};
    Table apart({"model", "and", "Jensen-Shannon divergence (nats)"});
    for (const ordered_json& d : j["divergences"])
        apart.add_row({j["models"][d["a"].get<size_t>()]["model"], j["models"][d["b"].get<size_t>()]["model"],
                       format_fixed(d["js"], 4)});
    return {table, apart};
}

inline std::vector<Table> tables_of_attribution(const ordered_json& j) {
    Table table(
        {"model", "NMAE of heads (%)", "95 % interval", "of MLPs, mean", "of the embedding", "largest difference"});
    for (const ordered_json& m : j["models"])
        table.add_row({m["model"], format_fixed(m["nmae"], 2),
                       format_fixed(m["nmae_interval"][0], 2) + " to " + format_fixed(m["nmae_interval"][1], 2),
                       format_fixed(mean_of(m["nmae_mlp"].get<std::vector<double>>()), 2),
                       format_fixed(m["nmae_embedding"], 2), format_general(m["largest_difference"])});
    return {table};
}

inline std::vector<Table> tables_of_norms(const ordered_json& j) {
    Table table({"model", "stream in front of", "norm at position 0", "elsewhere"});
    for (const ordered_json& m : j["models"])
        for (size_t l = 0; l < m["residual"].size(); l++) {
            const ordered_json& point = m["residual"][l];
            table.add_row({m["model"], l + 1 < m["residual"].size() ? "block " + std::to_string(l) : "ln_f",
                           format_general(point["at_0"]), format_general(point["elsewhere"])});
        }
    return {table};
}

inline std::vector<Table> tables_of_sinks(const ordered_json& j) {
    Table table({"model", "sinks among heads (%)", "95 % interval", "among (head, query) pairs (%)", "95 % interval "});
    const auto percent = [](const ordered_json& share) { return format_fixed(100 * share.get<double>(), 1); };
    for (const ordered_json& m : j["models"]) {
        const ordered_json &heads = m["rate_heads_interval"], &pairs = m["rate_pairs_interval"];
        table.add_row({m["model"], percent(m["rate_heads"]), percent(heads[0]) + " to " + percent(heads[1]),
                       percent(m["rate_pairs"]), percent(pairs[0]) + " to " + percent(pairs[1])});
    }
    return {table};
}

inline std::vector<Table> tables_of_confidence(const ordered_json& j) {
    Table table({"model", "neurons set to their mean", "loss (%)", "|loss| (nats)", "entropy (%)"});
    for (const ordered_json& m : j["models"])
        for (const ordered_json& a : m["ablations"]) {
            std::string neurons;
            for (const ordered_json& neuron : a["neurons"])
                neurons += (neurons.empty() ? "" : ", ") + std::to_string(neuron.get<int64_t>());
            table.add_row({m["model"], neurons, format_fixed(100 * a["loss_change_relative"].get<double>(), 3),
                           format_fixed(a["loss_change_abs"], 5),
                           format_fixed(100 * a["entropy_change_relative"].get<double>(), 3)});
        }
    return {table};
}

// Mean over layers of the errors of attribution patching, and what it gains over the first model.
inline std::vector<Table> tables_of_patching(const ordered_json& j) {
    Table table({"model", "prompts solved (%)", "sets that count", "error, mean over layers",
                 "improvement on the first", "spread over layers"});
    for (const ordered_json& m : j["models"]) {
        std::vector<std::string> row = {
            m["model"], format_fixed(100 * m["accuracy"].get<double>(), 1),
            std::to_string(m["sets_counted"].get<int64_t>()) + " of " + std::to_string(m["sets"].size())};
        const bool measured = !m["error"].is_null();
        row.push_back(measured ? format_fixed(mean_of(m["error"].get<std::vector<double>>()), 3) : "n/a");
        for (const char* key : {"improvement_mean", "improvement_std"})
            row.push_back(m.contains(key) && !m[key].is_null() ? format_fixed(m[key], 3) : measured ? "" : "n/a");
        table.add_row(row);
    }
    return {table};
}

inline std::vector<Table> tables_of_benchmarks(const ordered_json& j) {
    std::vector<std::pair<std::string, ordered_json>> models;
    for (const ordered_json& m : j["models"]) models.emplace_back(m["model"], m);
    return {benchmark_table(models)};
}

// error of the first model minus error of each other one, layer by layer; the first being the control makes positive
// values gains (Sec. 5.2).
inline void add_improvements(ordered_json& models) {
    for (size_t i = 1; i < models.size(); i++) {
        const ordered_json &first = models[0]["error"], &error = models[i]["error"];
        if (first.is_null() || error.is_null() || first.size() != error.size()) continue;
        std::vector<double> gains;
        for (size_t l = 0; l < error.size(); l++) gains.push_back(first[l].get<double>() - error[l].get<double>());
        const double mean = mean_of(gains);
        double squares = 0;
        for (const double gain : gains) squares += (gain - mean) * (gain - mean);
        models[i]["improvement"] = gains;
        models[i]["improvement_mean"] = mean;
        models[i]["improvement_std"] = std::sqrt(squares / static_cast<double>(gains.size()));
    }
}

// Hugging Face's form has room for one sigma_bar for qk[l] and v[l]; what they were stands in lnfree.json.
inline ordered_json norms_of(Subjects& s, size_t i) {
    ordered_json j = measure_norms(s.model(i), s.sample, s.settings);
    const json& lnfree = s.loaded[i].lnfree;
    if (!lnfree.is_object() || !lnfree.contains("sites")) return j;
    const Sites recorded =
        sites_from_json(lnfree["sites"], static_cast<int>(s.model(i).config.L), s.folders[i] + "/lnfree.json");
    for (size_t k = 0; k < recorded.all.size(); k++)
        if (std::isfinite(recorded.all[k].sigma_bar)) j["sites"][k]["sigma_bar"] = recorded.all[k].sigma_bar;
    return j;
}

// One model's part of a measurement.
using MeasureOne = ordered_json (*)(Subjects& s, size_t i);

inline ordered_json one_by_one(Subjects& s, MeasureOne measure) {
    ordered_json j;
    j["models"] = ordered_json::array();
    for (size_t i = 0; i < s.loaded.size(); i++) j["models"].push_back(measure(s, i));
    return j;
}

enum class TakenOn { text, prompts, questions };

struct Measurement {
    const char* name;
    const char* what;
    const char* title;  // in the report, and what it says there
    const char* explanation;
    TakenOn on;
    double passes;                         // over the sample, forward, that it costs about; for text
    ordered_json (*measure)(Subjects& s);  // {"models": [...], ...}
    std::vector<Table> (*tables)(const ordered_json& j);
    std::string (*pictures)(const ordered_json& j);
};

inline const std::vector<Measurement>& measurements() {
    static const std::vector<Measurement> all = {
        {"loss", "loss with interval and ranges, entropy, calibration, divergence between models",
         "Loss, confidence and divergence",
         "What the models predict on the same text. Intervals are 95 %, by bootstrap over sequences. ECE is the "
         "expected calibration error: how far confidence and accuracy are apart.",
         TakenOn::text, 1.3,
         [](Subjects& s) {
             std::vector<GPT2*> models;
             for (const LoadedModel& loaded : s.loaded) models.push_back(loaded.model.get());
             return measure_loss(models, s.sample, s.settings);
         },
         tables_of_loss, pictures_of_loss},
        {"dla", "direct logit attribution against direct effect, per head, MLP and embedding",
         "Direct logit attribution",
         "Direct logit attribution takes the last LayerNorm for linear. Its error is the mean distance from the direct "
         "effect (the stream with and without the component, through the last norm), in percent of the mean size of "
         "that effect. Without LayerNorm both are the same number.",
         TakenOn::text, 2.5,
         [](Subjects& s) {
             return one_by_one(
                 s, [](Subjects& t, size_t i) { return measure_attribution(t.model(i), t.sample, t.settings); });
         },
         tables_of_attribution, pictures_of_attribution},
        {"patching", "activation patching against attribution patching of the stream",
         "Activation and attribution patching",
         "The stream of a prompt with the other answer is replaced, layer by layer and position by position, by that "
         "of the clean prompt. 1 means that the patch brings the clean answer back. Attribution patching estimates "
         "that from one gradient.",
         TakenOn::prompts, 0,
         [](Subjects& s) {
             ordered_json j = one_by_one(
                 s, [](Subjects& t, size_t i) { return measure_patching(t.model(i), t.prompts, t.settings); });
             add_improvements(j["models"]);
             return j;
         },
         tables_of_patching, pictures_of_patching},
        {"norms", "norms of the stream and sigmas of every site, position 0 against the rest",
         "Norm of the first position",
         "In models with LayerNorm the stream at position 0 is often many times longer than elsewhere; a model without "
         "has no use for that.",
         TakenOn::text, 1,
         [](Subjects& s) { return one_by_one(s, [](Subjects& t, size_t i) { return norms_of(t, i); }); },
         tables_of_norms, pictures_of_norms},
        {"sinks", "share of heads, and of queries, that attend to position 0", "Attention sinks",
         "A head is a sink in a sequence if its queries, but for the first, give position 0 at least 30 % of their "
         "attention on average.",
         TakenOn::text, 1,
         [](Subjects& s) {
             return one_by_one(s,
                               [](Subjects& t, size_t i) { return measure_sinks(t.model(i), t.sample, t.settings); });
         },
         tables_of_sinks, pictures_of_sinks},
        {"confidence", "confidence neurons, the unembedding's spectrum, mean ablation", "Confidence neurons",
         "Neurons of the last MLP that write much and move all tokens alike: with LayerNorm they set how confident the "
         "model is. Neurons are set to their mean over the sample; the change is what they did.",
         TakenOn::text, 3.5,
         [](Subjects& s) {
             return one_by_one(
                 s, [](Subjects& t, size_t i) { return measure_confidence(t.model(i), t.sample, t.settings); });
         },
         tables_of_confidence, pictures_of_confidence},
        {"benchmarks", "HellaSwag, PIQA, WinoGrande, BoolQ, LAMBADA from --evals", "Benchmarks",
         "Questions with given answers: the model chooses the likeliest. Asked and scored as lm-evaluation-harness "
         "does, without examples.",
         TakenOn::questions, 0,
         [](Subjects& s) {
             return one_by_one(
                 s, [](Subjects& t, size_t i) { return run_benchmarks(t.loaded[i], t.tasks[i], t.benchmarks); });
         },
         tables_of_benchmarks, [](const ordered_json&) { return std::string(); }}};
    return all;
}

// Tokens of forward passes that patching takes, about: two passes, one back, and per layer every position once.
inline double patching_tokens(const std::vector<PromptSet>& sets, int64_t L) {
    double tokens = 0;
    for (const PromptSet& set : sets)
        tokens += static_cast<double>(set.T) * static_cast<double>(set.prompts.size()) *
                  (6 + static_cast<double>(set.T) * static_cast<double>(L) / 2);
    return tokens;
}

inline double estimated_seconds(const Measurement& m, const Subjects& s) {
    double flops = 0;
    if (m.on == TakenOn::questions) {
        double seconds = 0;
        for (size_t i = 0; i < s.loaded.size(); i++) seconds += benchmark_seconds(s.loaded[i], s.tasks[i]);
        return seconds;
    }
    for (size_t i = 0; i < s.loaded.size(); i++) {
        const GPT2Config& c = s.model(i).config;
        const double tokens = m.on == TakenOn::prompts ? patching_tokens(s.prompts, c.L)
                                                       : m.passes * static_cast<double>(s.sample.inputs.size());
        flops += tokens *
                 training_flops_per_token(c, s.model(i).parameters(), m.on == TakenOn::prompts ? 1 : s.sample.T) / 3;
    }
    return flops / (0.7 * measure_flops(s.model(0).config));
}

// What a result was measured on: the same request need not be measured again.
inline ordered_json request_of(const Measurement& m, const Options& o) {
    ordered_json j{{"models", o.models}};
    if (m.on == TakenOn::prompts) j["prompts"] = o.prompts;
    if (m.on == TakenOn::questions)
        j.update({{"evals", o.benchmarks.evals},
                  {"tasks", o.benchmarks.tasks},
                  {"limit", o.benchmarks.limit},
                  {"choices", o.benchmarks.choices}});
    if (m.on == TakenOn::text)
        j.update({{"data", o.data}, {"seq", o.seq}, {"sequences", o.sequences}, {"seed", o.seed}});
    return j;
}

inline std::string result_file(const Measurement& m, const Options& o) {
    return o.out + "/" + m.name + ".json";
}

inline void save_result(const ordered_json& j, const Measurement& m, const Options& o) {
    fs::create_directories(o.out);
    write_file_atomically(result_file(m, o), j.dump(1) + "\n");
}

inline ordered_json run_measurement(const Measurement& m, const Options& o, Subjects& s, FILE* screen) {
    std::fprintf(screen, "%s: %s; about %s\n", m.name, m.what, format_duration(estimated_seconds(m, s)).c_str());
    s.settings.label = m.name;
    ordered_json measured = m.measure(s), j;
    j["version"] = kFormatVersion;
    j["what"] = m.name;
    j["request"] = request_of(m, o);
    if (m.on == TakenOn::text) {
        j["seq"] = s.sample.T;
        j["sequences"] = s.sample.sequences;
    }
    for (size_t i = 0; i < s.loaded.size(); i++) {
        ordered_json model{{"model", s.folders[i]}, {"layernorm_free", s.model(i).sites.all_linear_everywhere()}};
        model.update(measured["models"][i]);
        measured["models"][i] = model;
    }
    j.update(measured);
    return j;
}

inline Subjects load_subjects(const Options& o) {
    Subjects s;
    s.folders = o.models;
    for (const std::string& folder : o.models) s.loaded.push_back(load_model(folder));
    require_one_vocabulary(s);
    s.settings.batch = o.batch;
    s.settings.seed = o.seed;
    s.settings.pause = [] {
        if (g_signal != 0) throw Interrupted{g_signal};
    };
    return s;
}

// Reads what a measurement is taken on, once. BadInput if that is not given or does not fit.
inline void prepare(Subjects& s, const Measurement& m, const Options& o) {
    if (m.on == TakenOn::text && s.sample.sequences == 0) s.sample = sample_for(s, o);
    if (m.on == TakenOn::prompts && s.prompts.empty()) s.prompts = prompts_for(s, o);
    if (m.on != TakenOn::questions || !s.tasks.empty()) return;
    if (o.benchmarks.evals.empty()) throw BadInput("--evals is required: the folder with the benchmarks' files");
    if (!o.benchmarks.choices.empty() && o.models.size() > 1)
        throw BadInput("--choices " + o.benchmarks.choices + ": is for one model; give a single --model");
    s.benchmarks = o.benchmarks;
    s.benchmarks.pause = s.settings.pause;
    s.benchmarks.force = o.force;
    for (const LoadedModel& loaded : s.loaded) s.tasks.push_back(prepare_benchmarks(loaded, s.benchmarks));
}

// ---------------------------------------------------------------------------------------------------------------------
// The report

// One line per model with the figure that each measurement is about. A part that was not measured leaves its cell empty.
inline Table overview(const Options& o, const std::map<std::string, ordered_json>& results) {
    Table table({"model", "LayerNorm", "loss (nats)", "DLA error (%)", "norm at position 0 / elsewhere, largest",
                 "sinks (%)", "entropy without the top neurons (%)", "indirect objects solved (%)", "patching error"});
    const auto part = [&](const char* name, size_t i) -> const ordered_json* {
        const auto found = results.find(name);
        return found == results.end() ? nullptr : &found->second["models"][i];
    };
    for (size_t i = 0; i < o.models.size(); i++) {
        std::vector<std::string> row(9);
        for (const auto& [name, result] : results) {
            row[0] = name_of(result["models"][i]);
            row[1] = result["models"][i]["layernorm_free"].get<bool>() ? "none" : "yes";
        }
        if (const ordered_json* m = part("loss", i)) row[2] = format_fixed((*m)["loss"], 4);
        if (const ordered_json* m = part("dla", i)) row[3] = format_fixed((*m)["nmae"], 2);
        if (const ordered_json* m = part("norms", i)) {
            double largest = 0;
            for (const ordered_json& point : (*m)["residual"])
                largest = std::max(largest, point["at_0"].get<double>() / point["elsewhere"].get<double>());
            row[4] = format_fixed(largest, 2);
        }
        if (const ordered_json* m = part("sinks", i)) row[5] = format_fixed(100 * (*m)["rate_heads"].get<double>(), 1);
        if (const ordered_json* m = part("confidence", i))
            row[6] = format_fixed(100 * (*m)["ablations"].back()["entropy_change_relative"].get<double>(), 3);
        if (const ordered_json* m = part("patching", i)) {
            row[7] = format_fixed(100 * (*m)["accuracy"].get<double>(), 1);
            row[8] =
                (*m)["error"].is_null() ? "n/a" : format_fixed(mean_of((*m)["error"].get<std::vector<double>>()), 3);
        }
        table.add_row(row);
    }
    return table;
}

// The result of an earlier run in --out, if it was asked for the same; null otherwise.
inline ordered_json earlier_result(const Measurement& m, const Options& o) {
    if (o.force || !fs::exists(result_file(m, o))) return nullptr;
    const ordered_json j = ordered_json::parse(read_file(result_file(m, o), uint64_t{1} << 30), nullptr, false);
    const bool same =
        j.is_object() && j.contains("request") && j["request"] == request_of(m, o) && j["version"] == kFormatVersion;
    return same ? j : ordered_json(nullptr);
}

inline int report_command(const Options& o) {
    if (o.out.empty()) throw BadInput("--out is required: the folder for report.html, report.json and the parts");
    stop_on_signals();
    Subjects subjects = load_subjects(o);
    subjects.sample = sample_for(subjects, o);
    std::map<std::string, ordered_json> results;
    std::vector<ReportPart> parts;
    for (const Measurement& m : measurements()) {
        ReportPart part{m.name, m.title, m.explanation, {}, "", nullptr, ""};
        try {
            part.data = earlier_result(m, o);
            if (part.data.is_null()) {
                prepare(subjects, m, o);
                part.data = run_measurement(m, o, subjects, stderr);
                save_result(part.data, m, o);
            }
        } catch (const BadInput& e) {  // the other parts can be measured
            part.missing = e.what();
            parts.push_back(part);
            continue;
        }
        part.tables = m.tables(part.data);
        part.pictures = m.pictures(part.data);
        results[m.name] = part.data;
        parts.push_back(part);
    }
    const std::string about =
        std::to_string(subjects.sample.sequences) + " sequences of " + std::to_string(subjects.sample.T) +
        " tokens, spread evenly over the data; the measurements of 2507.02559, made by train_gpt2_lnfree analyze.";
    const Table summary = overview(o, results);
    write_file_atomically(o.out + "/report.html",
                          render_report("Models with and without LayerNorm", about, summary, parts));
    ordered_json all{{"version", kFormatVersion}, {"what", "report"}};
    for (const ReportPart& part : parts) all[part.name] = part.data;
    write_file_atomically(o.out + "/report.json", all.dump(1) + "\n");
    if (o.markdown)
        std::printf("%s", summary.markdown().c_str());
    else if (!o.json_output)
        std::printf("%s\nwrote %s/report.html and report.json\n", summary.text().c_str(), o.out.c_str());
    print_json(o.json_output, all);
    return 0;
}

}  // namespace analysis

// `what` is one of the measurements' names.
inline int analyze_command(const std::string& what, const analysis::Options& o) {
    using namespace analysis;
    if (what == "report") return report_command(o);
    const auto& all = measurements();
    const auto found = std::find_if(all.begin(), all.end(), [&](const Measurement& m) { return what == m.name; });
    if (found == all.end())
        throw BadInput("analyze " + quoted_name(what) + ": there is no such measurement; see --help");
    if (!o.out.empty() && fs::exists(result_file(*found, o)) && !o.force)
        throw BadInput("--out " + result_file(*found, o) + ": already exists; name another folder or give --force");
    stop_on_signals();
    Subjects subjects = load_subjects(o);
    prepare(subjects, *found, o);
    const ordered_json j = run_measurement(*found, o, subjects, stderr);
    if (!o.out.empty()) save_result(j, *found, o);
    if (!o.json_output)
        for (const Table& table : found->tables(j))
            std::printf("%s\n", o.markdown ? table.markdown().c_str() : table.text().c_str());
    print_json(o.json_output, j);
    return 0;
}

}  // namespace lnfree
