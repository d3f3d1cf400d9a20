#include "dev/run/models.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

#include "data/error.h"
#include "data/json.h"
#include "data/model_folder.h"
#include "data/parallel.h"
#include "data/random.h"
#include "data/stock_layout.h"
#include "data/text.h"
#include "dev/run/records.h"

namespace lnfree {

namespace {

// The sites that the folder's weights were trained with become the model's. `record` is its lnfree.json, or null. Throws
// BadInput where the two contradict each other.
void take_sites(Engine& model, const Json& record, const std::string& folder) {
    const int L = static_cast<int>(model.config.L);
    const bool recorded = record.is_object() && record.contains("sites");
    const Sites sites = recorded ? sites_from_json(record["sites"], L, folder + "/lnfree.json") : Sites(L);
    if (model.config.epsilon_freezes_sigma()) {
        adopt_frozen_layernorms(model, recorded && sites.all_removed() ? &sites : nullptr);
    } else if (model.config.form == ModelForm::checkpoint) {
        if (!recorded) throw BadInput(folder + ": a checkpoint without lnfree.json cannot be read");
        set_sites(model, sites);
    } else if (model.config.form == ModelForm::hugging_face && !sites.none_removed()) {
        throw BadInput(folder + ": lnfree.json lists removed norms but config.json's " +
                       stock_names(model.config.family).epsilon +
                       " would run them; "
                       "the two files do not belong together");
    }
}

// A removal reads its model a second time, as the teacher: what was said once is enough.
void print_note(const std::string& note) {
    static std::set<std::string> printed;
    if (printed.insert(note).second) std::fprintf(stderr, "note: %s\n", note.c_str());
}

// Kept as text: who includes models.h need not know JSON.
std::string text_of(const Json& record) {
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
    ModelFolder files(folder);
    const std::vector<Tensor> table = tensor_table(files.config());
    const std::vector<MatchedTensor> views = files.tensors(table);  // before anything is allocated
    const Json record = files.lnfree();
    if (files.config().form == ModelForm::checkpoint && record.is_object()) require_checkpoint_version(record, folder);

    LoadedModel loaded;
    loaded.lnfree = text_of(record);
    loaded.model = backend().make(files.config());
    copy_tensors(loaded.model->params.data(), table, views, folder);
    files.fold_options(loaded.model->params.data(), table);
    take_sites(*loaded.model, record, folder);
    FolderTokenizer tokenizer = files.tokenizer();
    loaded.tokenizer = std::move(tokenizer.tokenizer);
    loaded.tokenizer_refusal = tokenizer.refusal;
    loaded.companions = files.companions();
    loaded.path = files.path();
    for (const std::string& note : files.notes()) print_note(note);
    return loaded;
}

const Tokenizer& required_tokenizer(const LoadedModel& loaded, const std::string& folder, const std::string& command) {
    if (loaded.tokenizer) return *loaded.tokenizer;
    if (loaded.tokenizer_refusal.empty())
        throw BadInput(folder + ": has no tokenizer files (tokenizer.json, or vocab.json and merges.txt), which " +
                       command + " needs; copy them into the folder");
    throw BadInput(folder + ": " + command + " needs the tokenizer, and this program cannot run it (" +
                   loaded.tokenizer_refusal +
                   "); what works on token shards works: let Python write them with that tokenizer, as uint16 for "
                   "--data raw:FILE");
}

Json lnfree_of(const LoadedModel& loaded) {
    return loaded.lnfree.empty() ? Json() : parse_json(loaded.lnfree, "lnfree.json");
}

void write_model(const std::string& folder, const ModelConfig& config, const std::vector<TensorRecipe>& recipes,
                 WeightType type, const Json& lnfree, const Tokenizer* tokenizer, const std::string& card,
                 const Companions& companions) {
    TensorRecipes<real> tensors;
    for (const TensorRecipe& r : recipes) tensors.push_back({r.name, r.shape, r.fill});
    write_model_folder<real>(folder, config, tensors, stored_as(type), lnfree, tokenizer, card, companions);
}

// ---------------------------------------------------------------------------------------------------------------------
// Fingerprints

// Blocks of 1 MiB.
void add_bytes(Hash64& hash, const void* bytes, uint64_t n) {
    constexpr uint64_t block = 1 << 20;
    const auto* first = static_cast<const unsigned char*>(bytes);
    std::vector<uint64_t> hashes((n + block - 1) / block);
    parallel_for(hashes.size(), [&](uint64_t b) {
        Hash64 of_block;
        of_block.add(first + b * block, std::min(block, n - b * block));
        hashes[b] = of_block.value();
    });
    hash.add(n);
    for (const uint64_t of_block : hashes) hash.add(of_block);
}

namespace {

void add_number(Hash64& hash, double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    hash.add(bits);
}

void add_config(Hash64& hash, const ModelConfig& c) {
    for (const int64_t size : {c.L, c.NH, c.C, c.V, c.n_ctx, c.n_inner, static_cast<int64_t>(c.end_of_text)})
        hash.add(static_cast<uint64_t>(size));
    add_number(hash, c.epsilon);
    if (c.family == Family::gpt2 && c.activation == Activation::gelu_tanh && (c.tied || !c.has_norms())) return;
    // What has come later: models that were GPT-2 in all of it keep their fingerprint.
    for (const int64_t size : {static_cast<int64_t>(c.activation), c.rotary, c.key_heads(), c.head_size()})
        hash.add(static_cast<uint64_t>(size));
    for (const bool is : {c.centred, c.norm_bias, c.parallel, c.attention_bias, c.mlp_bias, c.has_own_head()})
        hash.add(is);
    add_number(hash, c.rotary_base);
}

void add_site(Hash64& hash, const Site& site) {
    for (const bool is : {site.folded, site.tapers, site.own_position0, site.own_end_of_text}) hash.add(is);
    for (const double x : {site.a, site.sigma_bar, site.sigma_bar_0}) add_number(hash, x);
}

}  // namespace

void add_model(Hash64& hash, const Engine& model) {
    add_config(hash, model.config);
    for (const Site& site : model.sites.all) add_site(hash, site);
    add_bytes(hash, model.params.data(), static_cast<uint64_t>(model.params.size()) * sizeof(real));
}

// ---------------------------------------------------------------------------------------------------------------------

void initialise(Engine& model, uint64_t seed) {
    SplitMix64 random(seed);
    for (const Tensor& t : model.tensors) {
        real* w = model.params.data() + t.offset;
        const bool gamma = t.name.find("ln_") != std::string::npos && ends_with(t.name, ".weight");
        const bool onto_residual = ends_with(t.name, "c_proj.weight");
        const double scale = 0.02 / (onto_residual ? std::sqrt(2.0 * static_cast<double>(model.config.L)) : 1.0);
        for (int64_t i = 0; i < t.size; i++)
            w[i] = static_cast<real>(gamma ? t.unit : t.decay ? scale * random.normal() : 0.0);
    }
}

}  // namespace lnfree
