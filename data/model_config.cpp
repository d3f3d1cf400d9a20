#include "data/model_config.h"

#include <map>

#include "data/companions.h"
#include "data/config_reader.h"
#include "data/family_configs.h"
#include "data/files.h"
#include "data/json.h"
#include "data/stock_layout.h"

namespace lnfree {

std::string model_type_of(Family family, ModelForm form) {
    const char* const families[] = {"gpt2", "gpt_neox", "llama"};
    const char* const forms[] = {"", "_lnfree_checkpoint", "_lnfree_folded"};
    return families[static_cast<int>(family)] + std::string(forms[static_cast<int>(form)]);
}

namespace {

BadInput wrong(const std::string& path, const std::string& what) {
    return BadInput(path + ": " + what);
}

// What keeps models from being read that are close to one of the three families.
std::string reason_against(const std::string& model_type) {
    static const std::map<std::string, const char*> reasons = {
        {"mistral", ": its attention slides over a window"},
        {"qwen2", ": its queries, keys and values alone have biases"},
        {"qwen3", ": its queries and keys have norms of their own"},
        {"olmo2", ": its queries and keys have norms of their own"},
        {"gemma", ": its gammas are 1 + weight and its embeddings scaled"},
        {"gemma2", ": its gammas are 1 + weight and its embeddings scaled"},
        {"smollm3", ": some of its layers have no positions"},
        {"gptj", ": it turns neighbouring numbers of a head together"},
    };
    const auto found = reasons.find(model_type);
    return found == reasons.end() ? "" : found->second;
}

// Sets family and form.
void read_model_type(const ConfigReader& keys, Family& family, ModelForm& form) {
    const std::string type = keys.text("model_type", "gpt2");
    for (const Family f : {Family::gpt2, Family::neox, Family::llama})
        for (const ModelForm of : {ModelForm::hugging_face, ModelForm::checkpoint, ModelForm::folded}) {
            if (type != model_type_of(f, of)) continue;
            family = f;
            form = of;
            return;
        }
    throw keys.wrong("model_type " + quoted_name(type) + " is not supported" + reason_against(type) +
                     "; only gpt2, gpt_neox and llama are");
}

void refuse_in_all_families(const ConfigReader& keys) {
    keys.require_option("add_cross_attention", false);
    keys.refuse({"adapters", "adapter_fusion_models", "peft_config"},
                "models with adapters are not supported; merge them first");
    keys.refuse({"pruned_heads", "quantization_config"},
                "such models are not supported; save the whole model in float32, float16 or bfloat16");
}

ModelConfig read_gpt2_keys(const ConfigReader& keys) {
    ModelConfig c;
    c.activation = read_gelu(keys, "activation_function", "gelu_new");
    c.C = keys.size("n_embd", "hidden_size", c.C, largest_width);
    c.L = keys.size("n_layer", "num_hidden_layers", c.L, most_layers);
    c.NH = keys.size("n_head", "num_attention_heads", c.NH, c.C);
    c.V = keys.integer("vocab_size", c.V, 1, largest_vocabulary);
    c.n_ctx = keys.size("n_positions", keys.has("n_ctx") ? "n_ctx" : "max_position_embeddings", c.n_ctx, largest_width);
    c.n_inner = keys.integer("n_inner", 4 * c.C, 1, 4 * largest_width);
    c.end_of_text = keys.end_of_text(c.V, -1);
    c.tied = keys.option("tie_word_embeddings", true);
    c.epsilon = keys.positive("layer_norm_epsilon", 1e-5);
    return c;
}

// What is brought to the form of the family while the weights are read. The two forms of this program have nothing to
// bring. (reorder_and_upcast_attn changes in which precision attention is computed, and nothing else.)
ConfigOptions options_in(const ConfigReader& keys, const ModelConfig& c) {
    ConfigOptions options;
    if (c.form != ModelForm::hugging_face) {
        keys.require_option("scale_attn_weights", true);
        keys.require_option("scale_attn_by_inverse_layer_idx", false);
    } else if (c.family == Family::gpt2) {
        options.scores_over_width = keys.option("scale_attn_weights", true);
        options.scores_over_layer = keys.option("scale_attn_by_inverse_layer_idx", false);
    } else {
        options.no_attention_biases = c.norm_bias && !c.attention_bias;
    }
    return options;
}

void require_consistent(const ModelConfig& c, const std::string& path) {
    if (c.own_head_size == 0 && c.C % c.NH != 0)
        throw wrong(path, "n_embd " + std::to_string(c.C) + " is not a multiple of n_head " + std::to_string(c.NH));
    const auto d = [](int64_t size) { return static_cast<double>(size); };
    const double positions = d(c.n_ctx) * d(c.rotary > 0 ? c.rotary : c.C);
    const double widths = d(c.qkv_width()) + d(c.heads_width()) + d(c.fc_width()) + d(c.n_inner);
    if (d(c.V) * d(c.C) * 2 + positions + d(c.L) * d(c.C) * widths > 1e12)
        throw wrong(path, "describes a model of more than 1e12 parameters; that is too large for this program");
}

}  // namespace

ModelConfig parse_config(const std::string& text, const std::string& path, ConfigOptions* options) {
    const Json j = parse_json(text, path);
    if (!j.is_object()) throw wrong(path, "is not a JSON object; a model folder needs a valid config.json");
    try {
        const ConfigReader keys(j, path);
        Family family = Family::gpt2;
        ModelForm form = ModelForm::hugging_face;
        read_model_type(keys, family, form);
        refuse_in_all_families(keys);
        ModelConfig c = family == Family::neox    ? read_neox_keys(keys)
                        : family == Family::llama ? read_llama_keys(keys)
                                                  : read_gpt2_keys(keys);
        c.form = form;
        require_consistent(c, path);
        ConfigOptions found = options_in(keys, c);
        found.kept = companion_keys(j, c.V);
        if (c.norm_bias) c.attention_bias = c.mlp_bias = true;
        if (options != nullptr) *options = found;
        return c;
    } catch (const JsonError& e) {
        throw wrong(path, std::string("a value has the wrong type: ") + e.what());
    }
}

ModelConfig read_config(const std::string& folder, ConfigOptions* options) {
    const std::string path = folder + "/config.json";
    return parse_config(read_file(path, 16 << 20), path, options);
}

ModelConfig parse_nanogpt_config(const Json& model_args, const std::string& path) {
    const auto required = [&](const char* key, int64_t high) {
        if (!model_args.contains(key)) throw wrong(path, std::string("its model_args have no ") + key);
        return checked_integer(model_args.at(key), key, 1, high, path);
    };
    ModelConfig c;
    c.C = required("n_embd", largest_width);
    c.L = required("n_layer", most_layers);
    c.NH = required("n_head", c.C);
    c.V = required("vocab_size", largest_vocabulary);
    c.n_ctx = required("block_size", largest_width);
    c.n_inner = 4 * c.C;
    c.activation = Activation::gelu_erf;
    // Its vocabularies of this size are GPT-2's, the second padded; others have no token that ends a text.
    constexpr int64_t of_gpt2 = 50257, padded = 50304;
    c.end_of_text = c.V == of_gpt2 || c.V == padded ? of_gpt2 - 1 : -1;
    require_consistent(c, path);
    return c;
}

namespace {

void write_gpt2_keys(Json& j, const ModelConfig& c) {
    j["activation_function"] = name_of_gelu(c.activation);
    j["vocab_size"] = c.V;
    j["n_positions"] = c.n_ctx;
    j["n_ctx"] = c.n_ctx;
    j["n_embd"] = c.C;
    j["n_layer"] = c.L;
    j["n_head"] = c.NH;
    j["n_inner"] = c.n_inner == 4 * c.C ? Json() : Json(c.n_inner);
    j["layer_norm_epsilon"] = c.epsilon;
    j["resid_pdrop"] = 0.0;
    j["embd_pdrop"] = 0.0;
    j["attn_pdrop"] = 0.0;
    j["initializer_range"] = 0.02;
    j["scale_attn_weights"] = true;
    j["scale_attn_by_inverse_layer_idx"] = false;
    j["reorder_and_upcast_attn"] = false;
}

}  // namespace

Json config_json(const ModelConfig& c, const char* dtype, const Json& kept) {
    Json j;
    j["model_type"] = model_type_of(c.family, c.form);
    if (c.form == ModelForm::hugging_face) j["architectures"] = Json::array({stock_names(c.family).model_class});
    if (c.family == Family::gpt2) write_gpt2_keys(j, c);
    if (c.family == Family::neox) write_neox_keys(j, c);
    if (c.family == Family::llama) write_llama_keys(j, c);
    j["tie_word_embeddings"] = c.form != ModelForm::folded && c.tied;
    j["use_cache"] = true;
    // Left out, transformers would take a token of the family's own vocabulary. GPT-2's texts begin with the token that ends
    // them.
    const Json end = c.end_of_text >= 0 ? Json(c.end_of_text) : Json();
    if (c.family == Family::gpt2) j["bos_token_id"] = end;
    j["eos_token_id"] = end;
    j["torch_dtype"] = dtype;
    if (kept.is_object()) j.update(kept);
    return j;
}

}  // namespace lnfree
