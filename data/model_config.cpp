#include "data/model_config.h"

#include <cmath>
#include <cstdint>

#include "data/files.h"
#include "data/json.h"

namespace lnfree {

namespace {

BadInput wrong(const std::string& path, const std::string& what) {
    return BadInput(path + ": " + what);
}

// An integer within [low, high]; `fallback` if the key is absent or null (fallback < low: the key is required).
int64_t integer(const Json& j, const char* key, int64_t fallback, int64_t low, int64_t high, const std::string& path) {
    const Json* const it = j.find(key);
    if (it == nullptr || it->is_null()) {
        if (fallback < low) throw wrong(path, std::string("key ") + key + " is missing; a GPT-2 config.json has it");
        return fallback;
    }
    const bool whole = it->is_number_integer();
    if (!whole || (it->is_number_unsigned() && it->get<uint64_t>() > static_cast<uint64_t>(high)) ||
        it->get<int64_t>() < low || it->get<int64_t>() > high)
        throw wrong(path, std::string(key) + " is " + it->dump().substr(0, 60) + "; expected a whole number from " +
                              std::to_string(low) + " to " + std::to_string(high));
    return it->get<int64_t>();
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
    if (activation != "gelu_new" && activation != "gelu_pytorch_tanh")
        throw wrong(path, "activation_function " + quoted_name(activation) +
                              " is not supported; only gelu_new (GPT-2's tanh form) is");
    require_option(j, "scale_attn_weights", true, path);
    require_option(j, "scale_attn_by_inverse_layer_idx", false, path);
    require_option(j, "reorder_and_upcast_attn", false, path);
    require_option(j, "add_cross_attention", false, path);
    for (const char* adapters : {"adapters", "adapter_fusion_models", "peft_config"})
        if (j.contains(adapters) && !j[adapters].empty())
            throw wrong(path,
                        std::string(adapters) + " found: models with adapters are not supported; merge them first");
}

ModelForm form_of(const Json& j, const std::string& path) {
    const std::string type = j.value("model_type", std::string("gpt2"));
    for (ModelForm form : {ModelForm::hugging_face, ModelForm::checkpoint, ModelForm::folded})
        if (type == model_type_of(form)) return form;
    throw wrong(path, "model_type " + quoted_name(type) + " is not supported; only gpt2 is");
}

}  // namespace

GPT2Config parse_config(const std::string& text, const std::string& path) {
    const Json j = parse_json(text, path);
    if (!j.is_object()) throw wrong(path, "is not a JSON object; a model folder needs a valid config.json");
    try {
        require_supported_options(j, path);
        GPT2Config c;
        c.form = form_of(j, path);
        constexpr int64_t largest = 1 << 24;
        c.C = integer(j, "n_embd", -1, 1, largest, path);
        c.L = integer(j, "n_layer", -1, 1, 4096, path);
        c.NH = integer(j, "n_head", -1, 1, c.C, path);
        c.V = integer(j, "vocab_size", -1, 1, 1 << 30, path);
        c.n_ctx = integer(j, j.contains("n_positions") ? "n_positions" : "n_ctx", -1, 1, largest, path);
        c.n_inner = integer(j, "n_inner", 4 * c.C, 1, 4 * largest, path);
        // transformers writes its default, 50256, for any vocabulary: a token that cannot occur is none.
        const int64_t end_of_text = integer(j, "eos_token_id", -1, -1, (int64_t(1) << 31) - 1, path);
        c.end_of_text = end_of_text < c.V ? static_cast<int32_t>(end_of_text) : -1;
        if (c.C % c.NH != 0)
            throw wrong(path, "n_embd " + std::to_string(c.C) + " is not a multiple of n_head " + std::to_string(c.NH));
        const double C = static_cast<double>(c.C), inner = static_cast<double>(c.n_inner);
        const double parameters =
            static_cast<double>(c.V + c.n_ctx) * C + static_cast<double>(c.L) * C * (4 * C + 2 * inner);
        if (parameters > 1e12)
            throw wrong(path, "describes a model of more than 1e12 parameters; that is too large for this program");
        c.epsilon = j.value("layer_norm_epsilon", 1e-5);
        if (!(c.epsilon > 0) || !std::isfinite(c.epsilon))
            throw wrong(path, "layer_norm_epsilon must be a positive number");
        return c;
    } catch (const JsonError& e) {
        throw wrong(path, std::string("a value has the wrong type: ") + e.what());
    }
}

GPT2Config read_config(const std::string& folder) {
    const std::string path = folder + "/config.json";
    return parse_config(read_file(path, 16 << 20), path);
}

Json config_json(const GPT2Config& c, const char* dtype) {
    Json j;
    j["model_type"] = model_type_of(c.form);
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
    return j;
}

}  // namespace lnfree
