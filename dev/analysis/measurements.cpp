#include "dev/analysis/measurements.h"

#include <cmath>

#include "data/json.h"
#include "dev/analysis/attribution.h"
#include "dev/analysis/confidence.h"
#include "dev/analysis/loss.h"
#include "dev/analysis/norms.h"
#include "dev/analysis/report.h"
#include "dev/run/evaluate.h"
#include "dev/run/records.h"
#include "dev/run/statistics.h"

namespace lnfree {
namespace analysis {

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Tables

std::string fixed(const Json& number, int digits) {
    return format_fixed(number.number(), digits);
}
std::string interval(const Json& ends, int digits) {
    return fixed(ends[0], digits) + " to " + fixed(ends[1], digits);
}

std::vector<Table> tables_of_loss(const Json& j) {
    Table table({"model", "loss (nats)", "95 % interval", "median", "entropy", "ECE", "tokens above 50", "final norm"});
    for (const Json& m : j["models"])
        table.add_row({m["model"].string(), fixed(m["loss"], 4), interval(m["loss_interval"], 4), fixed(m["median"], 4),
                       fixed(m["entropy"], 4), fixed(m["ece"], 4), std::to_string(m["over_50"].size()),
                       fixed(m["final_norm"], 1)});
    if (j["divergences"].empty()) return {table};
    Table apart({"model", "and", "Jensen-Shannon divergence (nats)"});
    for (const Json& d : j["divergences"])
        apart.add_row({j["models"][d["a"].get<size_t>()]["model"].string(),
                       j["models"][d["b"].get<size_t>()]["model"].string(), fixed(d["js"], 4)});
    return {table, apart};
}

// Of the first column, with --paper.
constexpr char kModelAsPaper[] = "model, measured as the paper's code";

std::vector<Table> tables_of_attribution_as_paper(const Json& j) {
    Table table({kModelAsPaper, "target", "NMAE of heads, last position (%)", "95 % interval", "largest difference"});
    for (const Json& m : j["models"])
        for (const auto& [target, part] : {std::pair{"next token", m}, {"token read", m["token_read"]}})
            table.add_row({m["model"].string(), target, fixed(part["nmae"], 2), interval(part["nmae_interval"], 2),
                           format_general(part["largest_difference"].number())});
    return {table};
}

std::vector<Table> tables_of_attribution(const Json& j) {
    if (is_as_paper(j)) return tables_of_attribution_as_paper(j);
    Table table(
        {"model", "NMAE of heads (%)", "95 % interval", "of MLPs, mean", "of the embedding", "largest difference"});
    for (const Json& m : j["models"])
        table.add_row({m["model"].string(), fixed(m["nmae"], 2), interval(m["nmae_interval"], 2),
                       format_fixed(mean_of(m["nmae_mlp"].get<std::vector<double>>()), 2),
                       fixed(m["nmae_embedding"], 2), format_general(m["largest_difference"].number())});
    return {table};
}

std::vector<Table> tables_of_norms(const Json& j) {
    Table table({"model", "stream in front of", "norm at position 0", "elsewhere"});
    for (const Json& m : j["models"])
        for (size_t l = 0; l < m["residual"].size(); l++) {
            const Json& point = m["residual"][l];
            table.add_row({m["model"].string(), l + 1 < m["residual"].size() ? "block " + std::to_string(l) : "ln_f",
                           format_general(point["at_0"].number()), format_general(point["elsewhere"].number())});
        }
    return {table};
}

std::string percent(const Json& share) {
    return format_fixed(100 * share.number(), 1);
}

std::vector<Table> tables_of_sinks_as_paper(const Json& j) {
    Table table({kModelAsPaper, "sinks among (head, query) pairs, query 0 too (%)", "95 % of batches of 8"});
    for (const Json& m : j["models"]) {
        const Json& range = m["rate_pairs_interval"];
        table.add_row({m["model"].string(), percent(m["rate_pairs"]), percent(range[0]) + " to " + percent(range[1])});
    }
    return {table};
}

std::vector<Table> tables_of_sinks(const Json& j) {
    if (is_as_paper(j)) return tables_of_sinks_as_paper(j);
    Table table({"model", "sinks among heads (%)", "95 % interval", "among (head, query) pairs (%)", "95 % interval "});
    for (const Json& m : j["models"]) {
        const Json &heads = m["rate_heads_interval"], &pairs = m["rate_pairs_interval"];
        table.add_row({m["model"].string(), percent(m["rate_heads"]), percent(heads[0]) + " to " + percent(heads[1]),
                       percent(m["rate_pairs"]), percent(pairs[0]) + " to " + percent(pairs[1])});
    }
    return {table};
}

std::string neuron_list(const Json& neurons) {
    std::string list;
    for (const Json& neuron : neurons) list += (list.empty() ? "" : ", ") + std::to_string(neuron.get<int64_t>());
    return list;
}

std::string thousandths_of_percent(const Json& share) {
    return format_fixed(100 * share.number(), 3);
}

std::vector<Table> tables_of_confidence_as_paper(const Json& j) {
    Table table({kModelAsPaper, "the first model's neurons set to their mean", "loss (%)", "|loss|, median (nats)",
                 "entropy (%)", "|entropy|, median (nats)"});
    for (const Json& m : j["models"])
        for (const Json& a : m["ablations"])
            table.add_row(
                {m["model"].string(), neuron_list(a["neurons"]), thousandths_of_percent(a["loss_change_relative"]),
                 fixed(a["loss_change_abs_quartiles"][1], 5), thousandths_of_percent(a["entropy_change_relative"]),
                 fixed(a["entropy_change_abs_quartiles"][1], 5)});
    return {table};
}

std::vector<Table> tables_of_confidence(const Json& j) {
    if (is_as_paper(j)) return tables_of_confidence_as_paper(j);
    Table table({"model", "neurons set to their mean", "loss (%)", "|loss| (nats)", "entropy (%)"});
    for (const Json& m : j["models"])
        for (const Json& a : m["ablations"])
            table.add_row({m["model"].string(), neuron_list(a["neurons"]),
                           thousandths_of_percent(a["loss_change_relative"]), fixed(a["loss_change_abs"], 5),
                           thousandths_of_percent(a["entropy_change_relative"])});
    return {table};
}

// Mean over layers, in a cell.
std::string mean_error(const Json& errors) {
    return errors.is_null() ? "n/a" : format_fixed(mean_of(errors.get<std::vector<double>>()), 3);
}

// The cells that say what a model gains over the first, which has none.
void add_gains(std::vector<std::string>& row, const Json& m) {
    for (const char* key : {"improvement_mean", "improvement_std"})
        row.push_back(m.contains(key) && !m[key].is_null() ? format_fixed(m[key].number(), 3)
                      : !m["error"].is_null()              ? ""
                                                           : "n/a");
}

std::vector<Table> tables_of_patching_as_paper(const Json& j) {
    Table table({kModelAsPaper, "prompts solved (%)", "prompts that count", "error per prompt, mean over layers",
                 "improvement on the first", "spread over layers", "error of the means"});
    for (const Json& m : j["models"]) {
        std::vector<std::string> row = {
            m["model"].string(), percent(m["accuracy"]),
            std::to_string(m["prompts_counted"].get<int64_t>()) + " of " + std::to_string(m["prompts"].get<int64_t>()),
            mean_error(m["error"])};
        add_gains(row, m);
        row.push_back(mean_error(m["error_of_means"]));
        table.add_row(row);
    }
    return {table};
}

// Mean over layers of the errors of attribution patching, and what it gains over the first model.
std::vector<Table> tables_of_patching(const Json& j) {
    if (is_as_paper(j)) return tables_of_patching_as_paper(j);
    Table table({"model", "prompts solved (%)", "sets that count", "error, mean over layers",
                 "improvement on the first", "spread over layers"});
    for (const Json& m : j["models"]) {
        std::vector<std::string> row = {
            m["model"].string(), percent(m["accuracy"]),
            std::to_string(m["sets_counted"].get<int64_t>()) + " of " + std::to_string(m["sets"].size()),
            mean_error(m["error"])};
        add_gains(row, m);
        table.add_row(row);
    }
    return {table};
}

std::vector<Table> tables_of_benchmarks(const Json& j) {
    std::vector<std::pair<std::string, Json>> models;
    for (const Json& m : j["models"]) models.emplace_back(m["model"].string(), m);
    return {benchmark_table(models)};
}

// ---------------------------------------------------------------------------------------------------------------------
// What the measurements add to their parts

// error of the first model minus error of each other one, layer by layer; the first being the control makes positive
// values gains (Sec. 5.2).
void add_improvements(Json& models) {
    for (size_t i = 1; i < models.size(); i++) {
        const Json &first = models[0]["error"], &error = models[i]["error"];
        if (first.is_null() || error.is_null() || first.size() != error.size()) continue;
        std::vector<double> gains;
        for (size_t l = 0; l < error.size(); l++) gains.push_back(first[l].number() - error[l].number());
        const double mean = mean_of(gains);
        double squares = 0;
        for (const double gain : gains) squares += (gain - mean) * (gain - mean);
        models[i]["improvement"] = gains;
        models[i]["improvement_mean"] = mean;
        models[i]["improvement_std"] = std::sqrt(squares / static_cast<double>(gains.size()));
    }
}

// Hugging Face's form has room for one sigma_bar for qk[l] and v[l]; what they were stands in lnfree.json.
Json norms_of(Subjects& s, size_t i) {
    Json j = measure_norms(s.model(i), s.sample, s.procedure);
    const Json lnfree = lnfree_of(s.loaded[i]);
    if (!lnfree.is_object() || !lnfree.contains("sites")) return j;
    const Sites recorded =
        sites_from_json(lnfree["sites"], static_cast<int>(s.model(i).config.L), s.folders[i] + "/lnfree.json");
    for (size_t k = 0; k < recorded.all.size(); k++)
        if (std::isfinite(recorded.all[k].sigma_bar)) j["sites"][k]["sigma_bar"] = recorded.all[k].sigma_bar;
    return j;
}

// The first model's confidence neurons, which --paper takes out of all models. BadInput where another model has none that
// could be the same: they are of the last MLP, by their number.
std::vector<int64_t> neurons_for_all(const Subjects& s) {
    const ModelConfig& first = s.model(0).config;
    for (size_t i = 1; i < s.loaded.size(); i++) {
        const ModelConfig& c = s.model(i).config;
        if (c.L != first.L || c.C != first.C || c.n_inner != first.n_inner)
            throw BadInput(s.folders[i] + ": --paper takes the confidence neurons of " + s.folders[0] +
                           " out of every model, and this one has another shape; compare models made from the first");
    }
    return confidence_neurons_as_paper(s.model(0));
}

Json confidence_of_all(Subjects& s) {
    Json j;
    j["models"] = Json::array();
    const std::vector<int64_t> ablated = s.procedure.paper ? neurons_for_all(s) : std::vector<int64_t>();
    for (size_t i = 0; i < s.loaded.size(); i++)
        j["models"].push_back(s.procedure.paper
                                  ? measure_confidence_as_paper(s.model(i), s.sample, s.procedure, ablated)
                                  : measure_confidence(s.model(i), s.sample, s.procedure));
    return j;
}

Json patching_of(Subjects& s, size_t i) {
    return s.procedure.paper ? measure_patching_as_paper(s.model(i), s.prompts, s.procedure)
                             : measure_patching(s.model(i), s.prompts, s.procedure);
}

// One model's part of a measurement.
using MeasureOne = Json (*)(Subjects& s, size_t i);

Json one_by_one(Subjects& s, MeasureOne measure) {
    Json j;
    j["models"] = Json::array();
    for (size_t i = 0; i < s.loaded.size(); i++) j["models"].push_back(measure(s, i));
    return j;
}

// Tokens of forward passes that patching takes, about: two passes, one back, and per layer every position once.
double patching_tokens(const std::vector<PromptSet>& sets, int64_t L) {
    double tokens = 0;
    for (const PromptSet& set : sets)
        tokens += static_cast<double>(set.T) * static_cast<double>(set.prompts.size()) *
                  (6 + static_cast<double>(set.T) * static_cast<double>(L) / 2);
    return tokens;
}

double forward_flops(const Measurement& m, const Subjects& s, size_t i) {
    const ModelConfig& c = s.model(i).config;
    if (m.on == TakenOn::questions) return benchmark_flops(c, s.tasks[i]);
    const bool patches = m.on == TakenOn::prompts;
    const double tokens =
        patches ? patching_tokens(s.prompts, c.L) : m.passes * static_cast<double>(s.sample.inputs.size());
    return tokens * training_flops_per_token(c, s.model(i).parameters(), patches ? 1 : s.sample.T) / 3;
}

}  // namespace

const std::vector<Measurement>& measurements() {
    static const std::vector<Measurement> all = {
        {"loss", "loss with interval and ranges, entropy, calibration, divergence between models",
         "Loss, confidence and divergence",
         "What the models predict on the same text. Intervals are 95 %, by bootstrap over sequences. ECE is the "
         "expected calibration error: how far confidence and accuracy are apart.",
         nullptr, TakenOn::text, 1.3,
         [](Subjects& s) {
             std::vector<Engine*> models;
             for (const LoadedModel& loaded : s.loaded) models.push_back(loaded.model.get());
             return measure_loss(models, s.sample, s.procedure);
         },
         tables_of_loss, pictures_of_loss},
        {"dla", "direct logit attribution against direct effect, per head, MLP and embedding",
         "Direct logit attribution",
         "Direct logit attribution takes the last norm for linear. Its error is the mean distance from the direct "
         "effect (the stream with and without the component, through the last norm), in percent of the mean size of "
         "that effect. Without norms both are the same number.",
         "heads alone, without their value biases, at the last position of every sequence, read by the centred "
         "unembedding; errors and effects are summed over heads and sequences before one is divided by the other. The "
         "target is the token that follows; their code takes the token that is read there, which is given too.",
         TakenOn::text, 2.5,
         [](Subjects& s) {
             return one_by_one(
                 s, [](Subjects& t, size_t i) { return measure_attribution(t.model(i), t.sample, t.procedure); });
         },
         tables_of_attribution, pictures_of_attribution},
        {"patching", "activation patching against attribution patching of the stream",
         "Activation and attribution patching",
         "The stream of a prompt with the other answer is replaced, layer by layer and position by position, by that "
         "of the clean prompt. 1 means that the patch brings the clean answer back. Attribution patching estimates "
         "that from one gradient.",
         "end-of-text stands in front of every prompt (position 0), and a prompt's effects are divided by its own "
         "difference between clean and corrupted before they are averaged.",
         TakenOn::prompts, 0,
         [](Subjects& s) {
             Json j = one_by_one(s, patching_of);
             add_improvements(j["models"]);
             return j;
         },
         tables_of_patching, pictures_of_patching},
        {"norms", "norms of the stream and sigmas of every site, position 0 against the rest",
         "Norm of the first position",
         "In models with norms the stream at position 0 is often many times longer than elsewhere; a model without "
         "has no use for that.",
         nullptr, TakenOn::text, 1,
         [](Subjects& s) { return one_by_one(s, [](Subjects& t, size_t i) { return norms_of(t, i); }); },
         tables_of_norms, pictures_of_norms},
        {"sinks", "share of heads, and of queries, that attend to position 0", "Attention sinks",
         "A head is a sink in a sequence if its queries, but for the first, give position 0 at least 30 % of their "
         "attention on average.",
         "single (head, query) pairs that give position 0 more than 30 % are counted, query 0, which has nowhere else "
         "to look, among them. The range is that of 95 % of batches of 8 sequences.",
         TakenOn::text, 1,
         [](Subjects& s) {
             return one_by_one(s,
                               [](Subjects& t, size_t i) { return measure_sinks(t.model(i), t.sample, t.procedure); });
         },
         tables_of_sinks, pictures_of_sinks},
        {"confidence", "confidence neurons, the unembedding's spectrum, mean ablation", "Confidence neurons",
         "Neurons of the last MLP that write much and move all tokens alike: with norms they set how confident the "
         "model is. Neurons are set to their mean over the sample; the change is what they did.",
         "neurons are scored by weights with ln_f's gamma folded in and centred, and the three top ones of the first "
         "model are taken out of every model.",
         TakenOn::text, 3.5, confidence_of_all, tables_of_confidence, pictures_of_confidence},
        {"benchmarks", "HellaSwag, PIQA, WinoGrande, BoolQ, LAMBADA from --evals", "Benchmarks",
         "Questions with given answers: the model chooses the likeliest. Asked and scored as lm-evaluation-harness "
         "does, without examples.",
         nullptr, TakenOn::questions, 0,
         [](Subjects& s) {
             return one_by_one(
                 s, [](Subjects& t, size_t i) { return run_benchmarks(t.loaded[i], t.tasks[i], t.benchmarks); });
         },
         tables_of_benchmarks, [](const Json&) { return std::string(); }}};
    return all;
}

const Measurement* find_measurement(const std::string& name) {
    for (const Measurement& m : measurements())
        if (name == m.name) return &m;
    return nullptr;
}

// Whole passes reach 0.7 to 0.9 of what one matrix product does, the short ones of analyses less than benchmarks.
double estimated_seconds(const Measurement& m, const Subjects& s, double flops) {
    double needed = 0;
    for (size_t i = 0; i < s.loaded.size(); i++) needed += forward_flops(m, s, i);
    return needed / ((m.on == TakenOn::questions ? 0.8 : 0.7) * flops);
}

}  // namespace analysis
}  // namespace lnfree
