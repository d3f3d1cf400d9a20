#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/model_card.h"
#include "data/model_folder.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/method.h"
#include "dev/run/models.h"
#include "dev/run/records.h"

namespace lnfree {

namespace fs = std::filesystem;

namespace {

void check_options(const ExportOptions& o) {
    if (o.form != "hf" && o.form != "folded") throw BadInput("--form " + o.form + ": use hf or folded");
    if (o.dtype != "f32" && o.dtype != "bf16" && o.dtype != "f16")
        throw BadInput("--dtype " + o.dtype + ": use f32, bf16 or f16");
}

// Whether it is new or empty. BadInput unless it is, or --force was given.
bool check_output_folder(const ExportOptions& o, const std::string& model) {
    if (fs::exists(o.out) && !fs::is_directory(o.out)) throw BadInput("--out " + o.out + ": is a file; name a folder");
    require_other_folder(o.out, model);
    const bool fresh = !fs::exists(o.out) || fs::is_empty(o.out);
    if (!fresh && !o.force)
        throw BadInput("--out " + o.out + ": already exists and is not empty; name another folder or give --force");
    return fresh;
}

// What the model's lnfree.json says, in the new form.
Json lnfree_for(const LoadedModel& loaded, const std::string& form) {
    const Json recorded = lnfree_of(loaded);
    Json j = recorded.is_object() ? recorded : Json{{"version", kFormatVersion}};
    for (const char* of_a_run : {"resume", "checkpoint_version"}) j.erase(of_a_run);
    j["form"] = form;
    j["layernorm_free"] = loaded.model->sites.all_linear_everywhere();
    if (!j.contains("sites")) j["sites"] = sites_json(loaded.model->sites);
    if (form != "folded") return j;
    Site folded;
    folded.folded = true;
    for (Json& site : j["sites"]) site["norm"] = norm_name(folded);
    return j;
}

// The model's card, which tells how to load this form. sigmas are known where lnfree.json has recorded them.
std::string card_for(const LoadedModel& loaded, const ModelConfig& config, const Json& lnfree) {
    std::string card;
    const std::string file = loaded.path + "/README.md";
    if (fs::exists(file)) card = read_file(file, 16 << 20);
    if (!loaded.model->sites.all_linear_everywhere()) return card;
    const bool recorded = !loaded.lnfree.empty() && lnfree.contains("sites");
    const int L = static_cast<int>(config.L);
    return card_for_form(
        card, config,
        recorded ? largest_sigma(sites_from_json(lnfree["sites"], L, loaded.path + "/lnfree.json")) : NAN);
}

}  // namespace

int export_command(const ExportOptions& o) {
    check_options(o);
    const WeightType type = o.dtype == "f32" ? WeightType::f32 : o.dtype == "bf16" ? WeightType::bf16 : WeightType::f16;
    const LoadedModel loaded = load_model(o.model);
    const bool stock = o.form == "hf";
    ModelConfig config;
    const std::vector<TensorRecipe> recipes =
        stock ? hugging_face_recipes(*loaded.model, config) : folded_recipes(*loaded.model, config);
    if (type == WeightType::f16 && stock && loaded.model->sites.removed() > 0)
        throw BadInput(
            "--dtype f16: the hf form's gammas (of the order of 1e6) overflow in float16; use bf16 or f32, or --form "
            "folded");
    const bool fresh = check_output_folder(o, loaded.path);
    const Json lnfree = lnfree_for(loaded, o.form);
    const bool layernorm_free = loaded.model->sites.all_linear_everywhere();
    const std::string card = card_for(loaded, config, lnfree);
    if (!fresh) remove_model_files(o.out);
    try {
        write_model(o.out, config, recipes, type, lnfree, loaded.tokenizer.get(), card, loaded.companions);
    } catch (...) {
        if (fresh) fs::remove_all(o.out);  // no half of a model stays behind
        throw;
    }
    if (!o.json_output) std::printf("wrote %s (%s form, %s)\n", o.out.c_str(), o.form.c_str(), o.dtype.c_str());
    print_json(o.json_output,
               {{"out", o.out}, {"form", o.form}, {"dtype", o.dtype}, {"layernorm_free", layernorm_free}});
    return 0;
}

}  // namespace lnfree
