#include "data/model_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "data/companions.h"
#include "data/files.h"
#include "data/json.h"

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

// An integer within [low, high].
int64_t checked_integer(const Json& value, const char* key, int64_t low, int64_t high, const std::string& path) {
    const bool whole = value.is_number_integer();
    if (!whole || (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(high)) ||
        value.get<int64_t>() < low || value.get<int64_t>() > high)
        throw wrong(path, std::string(key) + " is " + value.dump().substr(0, 60) + "; expected a whole number from " +
                              std::to_string(low) + " to " + std::to_string(high));
    return value.get<int64_t>();
}

// The value of a key, `fallback` if it is absent or null.
int64_t integer(const Json& j, const char* key, int64_t fallback, int64_t low, int64_t high, const std::string& path) {
    const Json* const it = j.find(key);
    return it == nullptr || it->is_null() ? fallback : checked_integer(*it, key, low, high, path);
}

// The same of a key that transformers also reads under the name that it has in other models.
int64_t size(const Json& j, const char* key, const char* other, int64_t fallback, int64_t high,
             const std::string& path) {
    return integer(j, j.contains(key) ? key : other, fallback, 1, high, path);
}

// eos_token_id, of several the first; -1 for none. transformers writes its default, 50256, for any vocabulary: a token that
// cannot occur is none.
int32_t end_of_text_in(const Json& j, int64_t vocabulary, const std::string& path) {
    const char* const key = "eos_token_id";
    const Json* it = j.find(key);
    if (it != nullptr && it->is_array()) it = it->empty() ? nullptr : &it->at(size_t{0});
    if (it == nullptr || it->is_null()) return -1;
    const int64_t id = checked_integer(*it, key, -1, (int64_t(1) << 31) - 1, path);
    return id < vocabulary ? static_cast<int32_t>(id) : -1;
}

bool option(const Json& j, const char* key, bool otherwise, const std::string& path) {
    const Json* const it = j.find(key);
    if (it == nullptr || it->is_null()) return otherwise;
    if (!it->is_boolean())
        throw wrong(path, std::string(key) + " is " + it->dump().substr(0, 60) + "; expected true or false");
    return it->get<bool>();
}

// Refuses an option whose value changes what the model computes in a way that this engine does not implement.
void require_option(const Json& j, const char* key, bool only, const std::string& path) {
    const Json* const it = j.find(key);
    if (it == nullptr || it->is_null() || (it->is_boolean() && it->get<bool>() == only)) return;
    throw wrong(path, std::string(key) + " = " + it->dump().substr(0, 60) + " is not supported; only models with " +
                          key + (only ? " = true" : " = false") + " are");
}

void require_supported_options(const Json& j, const std::string& path) {
    const std::string activation = j.value("activation_function", std::string("gelu_new"));
    // All of these are GPT-2's tanh form; "gelu" is another function.
    const auto known = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"};
    if (std::find(known.begin(), known.end(), activation) == known.end())
        throw wrong(path, "activation_function " + quoted_name(activation) +
                              " is not supported; only gelu_new (GPT-2's tanh form) is");
    require_option(j, "add_cross_attention", false, path);
    for (const char* adapters : {"adapters", "adapter_fusion_models", "peft_config"})
        if (j.contains(adapters) && !j[adapters].empty())
            throw wrong(path,
                        std::string(adapters) + " found: models with adapters are not supported; merge them first");
    for (const char* changes : {"pruned_heads", "quantization_config"})
        if (j.contains(changes) && !j[changes].empty())
            throw wrong(path, std::string(changes) +
                                  " found: such models are not supported; save the whole model "
                                  "in float32, float16 or bfloat16");
}

// What is brought to GPT-2's own form while the weights are read. The two forms of this program have nothing to bring.
// (reorder_and_upcast_attn changes in which precision attention is computed, and nothing else.)
ConfigOptions options_in(const Json& j, ModelForm form, int64_t vocabulary, const std::string& path) {
    ConfigOptions options;
    options.kept = companion_keys(j, vocabulary);
    if (form != ModelForm::hugging_face) {
        require_option(j, "scale_attn_weights", true, path);
        require_option(j, "scale_attn_by_inverse_layer_idx", false, path);
        return options;
    }
    options.tied_head = option(j, "tie_word_embeddings", true, path);
    options.scores_over_width = option(j, "scale_attn_weights", true, path);
    options.scores_over_layer = option(j, "scale_attn_by_inverse_layer_idx", false, path);
    return options;
}

ModelForm form_of(const Json& j, const std::string& path) {
    const std::string type = j.value("model_type", std::string("gpt2"));
    for (ModelForm form : {ModelForm::hugging_face, ModelForm::checkpoint, ModelForm::folded})
        if (type == model_type_of(Family::gpt2, form)) return form;
    throw wrong(path, "model_type " + quoted_name(type) + " is not supported; only gpt2 is");
}

}  // namespace

namespace {

constexpr int64_t largest_width = 1 << 24, most_layers = 4096, largest_vocabulary = 1 << 30;

void require_consistent(const GPT2Config& c, const std::string& path) {
    if (c.C % c.NH != 0)
        throw wrong(path, "n_embd " + std::to_string(c.C) + " is not a multiple of n_head " + std::to_string(c.NH));
    const double C = static_cast<double>(c.C), inner = static_cast<double>(c.n_inner);
    const double parameters =
        static_cast<double>(c.V + c.n_ctx) * C + static_cast<double>(c.L) * C * (4 * C + 2 * inner);
    if (parameters > 1e12)
        throw wrong(path, "describes a model of more than 1e12 parameters; that is too large for this program");
}

}  // namespace

GPT2Config parse_config(const std::string& text, const std::string& path, ConfigOptions* options) {
    const Json j = parse_json(text, path);
    if (!j.is_object()) throw wrong(path, "is not a JSON object; a model folder needs a valid config.json");
    try {
        require_supported_options(j, path);
        GPT2Config c;
        c.form = form_of(j, path);
        c.C = size(j, "n_embd", "hidden_size", c.C, largest_width, path);
        c.L = size(j, "n_layer", "num_hidden_layers", c.L, most_layers, path);
        c.NH = size(j, "n_head", "num_attention_heads", c.NH, c.C, path);
        c.V = integer(j, "vocab_size", c.V, 1, largest_vocabulary, path);
        c.n_ctx = size(j, "n_positions", j.contains("n_ctx") ? "n_ctx" : "max_position_embeddings", c.n_ctx,
                       largest_width, path);
        c.n_inner = integer(j, "n_inner", 4 * c.C, 1, 4 * largest_width, path);
        c.end_of_text = end_of_text_in(j, c.V, path);
        require_consistent(c, path);
        c.epsilon = j.value("layer_norm_epsilon", 1e-5);
        if (!(c.epsilon > 0) || !std::isfinite(c.epsilon))
            throw wrong(path, "layer_norm_epsilon must be a positive number");
        const ConfigOptions found = options_in(j, c.form, c.V, path);
        if (options != nullptr) *options = found;
        return c;
    } catch (const JsonError& e) {
        throw wrong(path, std::string("a value has the wrong type: ") + e.what());
    }
}

GPT2Config read_config(const std::string& folder, ConfigOptions* options) {
    const std::string path = folder + "/config.json";
    return parse_config(read_file(path, 16 << 20), path, options);
}

GPT2Config parse_nanogpt_config(const Json& model_args, const std::string& path) {
    const auto required = [&](const char* key, int64_t high) {
        if (!model_args.contains(key)) throw wrong(path, std::string("its model_args have no ") + key);
        return checked_integer(model_args.at(key), key, 1, high, path);
    };
    GPT2Config c;
    c.C = required("n_embd", largest_width);
    c.L = required("n_layer", most_layers);
    c.NH = required("n_head", c.C);
    c.V = required("vocab_size", largest_vocabulary);
    c.n_ctx = required("block_size", largest_width);
    c.n_inner = 4 * c.C;
    // Its vocabularies of this size are GPT-2's, the second padded; others have no token that ends a text.
    constexpr int64_t of_gpt2 = 50257, padded = 50304;
    c.end_of_text = c.V == of_gpt2 || c.V == padded ? of_gpt2 - 1 : -1;
    require_consistent(c, path);
    return c;
}

Json config_json(const GPT2Config& c, const char* dtype, const Json& kept) {
    Json j;
    j["model_type"] = model_type_of(c.family, c.form);
    if (c.form == ModelForm::hugging_face) j["architectures"] = Json::array({"GPT2LMHeadModel"});
    j["activation_function"] = "gelu_new";
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
    j["tie_word_embeddings"] = c.form != ModelForm::folded;
    j["use_cache"] = true;
    // Left out, transformers would take 50256 for both.
    j["bos_token_id"] = c.end_of_text >= 0 ? Json(c.end_of_text) : Json();
    j["eos_token_id"] = j["bos_token_id"];
    j["torch_dtype"] = dtype;
    if (kept.is_object()) j.update(kept);
    return j;
}

}  // namespace lnfree
