#include "dev/run/models.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "data/error.h"
#include "data/model_folder.h"
#include "data/random.h"
#include "dev/run/records.h"

namespace lnfree {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

// The sites that the folder's weights were trained with become the model's. `record` is its lnfree.json, or null. Throws
// BadInput where the two contradict each other.
void take_sites(Engine& model, const json& record, const std::string& folder) {
    const int L = static_cast<int>(model.config.L);
    const bool recorded = record.is_object() && record.contains("sites");
    const Sites sites = recorded ? sites_from_json(record["sites"], L, folder + "/lnfree.json") : Sites(L);
    if (model.config.epsilon_freezes_sigma()) {
        adopt_frozen_layernorms(model, recorded && sites.all_removed() ? &sites : nullptr);
    } else if (model.config.form == ModelForm::checkpoint) {
        if (!recorded) throw BadInput(folder + ": a checkpoint without lnfree.json cannot be read");
        model.sites = sites;
    } else if (model.config.form == ModelForm::hugging_face && !sites.none_removed()) {
        throw BadInput(folder +
                       ": lnfree.json lists removed LayerNorms but config.json's layer_norm_epsilon would run them; "
                       "the two files do not belong together");
    }
}

// Kept as text: who includes models.h need not know JSON.
std::string text_of(const json& record) {
    return record.is_null() ? "" : record.dump();
}

DType stored_as(WeightType type) {
    switch (type) {
        case WeightType::bf16:
            return DType::BF16;
        case WeightType::f16:
            return DType::F16;
        case WeightType::of_real:
            return dtype_of<real>();
        default:
            return DType::F32;
    }
}

}  // namespace

LoadedModel load_model(const std::string& folder) {
    const ModelFolder files(folder);
    const std::vector<Tensor> table = tensor_table(files.config());
    const std::vector<TensorView> views = files.tensors(table);  // before anything is allocated
    const json record = files.lnfree();
    if (files.config().form == ModelForm::checkpoint && record.is_object()) require_checkpoint_version(record, folder);

    LoadedModel loaded;
    loaded.lnfree = text_of(record);
    loaded.model = backend().make(files.config());
    copy_tensors(loaded.model->params.data(), table, views, folder);
    take_sites(*loaded.model, record, folder);
    loaded.tokenizer = files.tokenizer();
    return loaded;
}

json lnfree_of(const LoadedModel& loaded) {
    return loaded.lnfree.empty() ? json() : json::parse(loaded.lnfree);
}

void write_model(const std::string& folder, const GPT2Config& config, const std::vector<TensorRecipe>& recipes,
                 WeightType type, const ordered_json& lnfree, const Tokenizer* tokenizer, const std::string& card) {
    TensorRecipes<real> tensors;
    for (const TensorRecipe& r : recipes) tensors.push_back({r.name, r.shape, r.fill});
    write_model_folder<real>(folder, config, tensors, stored_as(type), lnfree, tokenizer, card);
}

void initialise(Engine& model, uint64_t seed) {
    SplitMix64 random(seed);
    const auto ends_with = [](const std::string& s, const std::string& end) {
        return s.size() >= end.size() && s.compare(s.size() - end.size(), end.size(), end) == 0;
    };
    for (const Tensor& t : model.tensors) {
        real* w = model.params.data() + t.offset;
        const bool gamma = t.name.find("ln_") != std::string::npos && ends_with(t.name, ".weight");
        const bool onto_residual = ends_with(t.name, "c_proj.weight");
        const double scale = 0.02 / (onto_residual ? std::sqrt(2.0 * static_cast<double>(model.config.L)) : 1.0);
        for (int64_t i = 0; i < t.size; i++)
            w[i] = static_cast<real>(gamma ? 1.0 : t.decay ? scale * random.normal() : 0.0);
    }
}

}  // namespace lnfree
