#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/json.h"
#include "data/model_card.h"
#include "data/shards.h"
#include "data/stock_layout.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/run/evaluate.h"
#include "dev/run/models.h"
#include "dev/run/records.h"
#include "dev/run/report.h"

namespace lnfree {

namespace {

// The sigmas of every site over the first sequences of the data, position 0 apart: where it is far above the rest, as in
// GPT-2, one sigma_bar cannot fit both (paper, Fig. 3 and App. D).
std::vector<SigmaSum> measured_sigmas(Engine& model, const TokenShards& shards, int64_t T) {
    const uint64_t length = static_cast<uint64_t>(T);
    const uint64_t sequences = std::min<uint64_t>(64, shards.sequences(length));
    if (sequences == 0)
        throw BadInput("--data " + shards.paths()[0] + ": fewer than " + std::to_string(T + 1) +
                       " tokens; use more text or a smaller --seq");
    std::vector<int32_t> inputs(length), targets(length);
    model.clear_sigma_sums();
    for (uint64_t i = 0; i < sequences; i++) {
        shards.read(i, length, inputs.data(), targets.data());
        model.measure_sigmas(inputs.data(), 1, T);
    }
    return model.sigma_sums;
}

void add_measured_sigmas(Json& sites, const LoadedModel& loaded, const InfoOptions& o) {
    Engine& model = *loaded.model;
    const int64_t T = sequence_length(o.seq, model.config, o.model);
    const TokenShards shards(o.data);
    shards.check_vocabulary(static_cast<uint32_t>(model.config.V));
    require_same_tokenizer(shards, loaded.tokenizer.get(), "--data");
    const std::vector<SigmaSum> sums = measured_sigmas(model, shards, T);
    for (size_t i = 0; i < sums.size(); i++) {
        const double at_0 = sums[i].mean_at_0();
        const double elsewhere = T > 1 ? sums[i].mean_elsewhere() : NAN;
        sites[i]["sigma_position0"] = at_0;
        sites[i]["sigma_elsewhere"] = number_or_null(elsewhere);
        sites[i]["position0_ratio"] = number_or_null(at_0 / elsewhere);
    }
}

const char* form_name(ModelForm form) {
    if (form == ModelForm::hugging_face) return "hf";
    return form == ModelForm::checkpoint ? "checkpoint" : "folded";
}

Json describe(const LoadedModel& loaded, const InfoOptions& o) {
    const Engine& model = *loaded.model;
    const ModelConfig& c = model.config;
    Json j;
    j["model"] = o.model;
    j["form"] = form_name(c.form);
    j["family"] = stock_names(c.family).model;
    j["norm"] = norm_of(c);
    j["layernorm_free"] = model.sites.all_linear_everywhere();
    j["parameters"] = model.parameters();
    j["n_layer"] = c.L;
    j["n_head"] = c.NH;
    j["n_key_head"] = c.key_heads();
    j["head_size"] = c.head_size();
    j["rotary"] = c.rotary;
    j["n_embd"] = c.C;
    j["n_ctx"] = c.n_ctx;
    j["n_inner"] = c.n_inner;
    j["vocab_size"] = c.V;
    j["eos_token_id"] = c.end_of_text;
    j["tokenizer"] = loaded.tokenizer ? loaded.tokenizer->name() : "";
    if (!loaded.tokenizer_refusal.empty()) j["tokenizer_refusal"] = loaded.tokenizer_refusal;
    j["sites_removed"] = model.sites.removed();
    const Json lnfree = lnfree_of(loaded);
    const bool recorded = lnfree.is_object() && lnfree.contains("sites");
    j["sites"] = recorded
                     ? sites_json(sites_from_json(lnfree["sites"], static_cast<int>(c.L), o.model + "/lnfree.json"))
                     : sites_json(model.sites);
    if (recorded && lnfree.contains("events")) j["events"] = lnfree["events"];
    if (!o.data.empty()) add_measured_sigmas(j["sites"], loaded, o);
    return j;
}

// Everything but the lists.
Table facts_table(const Json& j) {
    Table table({"model", j["model"].get<std::string>()});
    for (const auto& [key, value] : j.items())
        if (key != "model" && !value.is_array())
            table.add_row({key, value.is_string() ? value.get<std::string>() : value.dump()});
    return table;
}

Table sites_table(const Json& sites, bool measured) {
    std::vector<std::string> head = {"site", "norm", "sigma_bar", "mean sigma at last step"};
    std::vector<const char*> numbers = {"sigma_bar", "sigma_avg"};
    if (measured) {
        head.insert(head.end(), {"sigma at position 0", "elsewhere", "ratio"});
        numbers.insert(numbers.end(), {"sigma_position0", "sigma_elsewhere", "position0_ratio"});
    }
    Table table(head);
    for (const Json& site : sites) {
        std::vector<std::string> row = {site["site"].get<std::string>(), site["norm"].get<std::string>()};
        for (const char* key : numbers) {
            const double value = number_or_nan(site, key);
            row.push_back(std::isnan(value) ? "" : format_general(value));
        }
        table.add_row(row);
    }
    return table;
}

int model_command(const InfoOptions& o) {
    backend().use_precision(o.precision);
    const Json j = describe(load_model(o.model), o);
    print_json(o.json_output, j);
    if (!o.json_output)
        std::printf("%s\n%s", facts_table(j).text().c_str(), sites_table(j["sites"], !o.data.empty()).text().c_str());
    return 0;
}

}  // namespace

int info_command(const InfoOptions& o) {
    if (o.settings) return settings_command(o);
    if (o.markdown) throw BadInput("--markdown goes with --settings");
    if (o.model.empty() == o.size.empty())
        throw BadInput("info wants --model FOLDER, or --memory with --size, or --settings; see --help");
    if (o.size.empty() && o.family != "gpt2")
        throw BadInput("--family goes with --memory --size; a folder says itself what it is");
    if (!o.memory && !o.size.empty()) throw BadInput("--size goes with --memory; give --model FOLDER");
    return o.memory ? memory_command(o) : model_command(o);
}

}  // namespace lnfree
