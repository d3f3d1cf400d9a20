#include "data/family_configs.h"

#include <cmath>
#include <set>

#include "data/files.h"

namespace lnfree {

// transformers, activations.py: each of these computes one of the two forms.
Activation read_gelu(const ConfigReader& keys, const char* key, const char* fallback) {
    static const std::set<std::string> by_tanh = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate",
                                                  "gelu_python_tanh"};
    static const std::set<std::string> exact = {"gelu", "gelu_python"};
    const std::string name = keys.text(key, fallback);
    if (by_tanh.count(name) != 0) return Activation::gelu_tanh;
    if (exact.count(name) != 0) return Activation::gelu_erf;
    throw keys.wrong(std::string(key) + " " + quoted_name(name) +
                     " is not supported; only gelu_new (GPT-2's tanh form) and gelu (the exact one) are");
}

const char* name_of_gelu(Activation activation) {
    return activation == Activation::gelu_erf ? "gelu" : "gelu_new";
}

// ---------------------------------------------------------------------------------------------------------------------
// Rotary positions

namespace {

// Where config.json describes them: version 5 of transformers has one object, rope_parameters, earlier ones had rope_scaling
// for what is not the default, and keys beside it.
constexpr const char* rope_objects[] = {"rope_parameters", "rope_scaling"};

void require_default_kind(const ConfigReader& keys, const Json& rope, const char* object) {
    if (!rope.is_object()) throw keys.wrong(std::string(object) + " is " + rope.dump(-1, true).substr(0, 60));
    for (const auto& [key, value] : rope.items()) {
        const bool kind = key == "rope_type" || key == "type";
        if (value.is_null() || (kind && value == Json("default"))) continue;
        if (kind)
            throw keys.wrong(std::string(object) + " of the kind " + value.dump(-1, true).substr(0, 60) +
                             " is not supported; only positions that are not scaled (\"default\") are");
        if (key != "rope_theta" && key != "partial_rotary_factor")
            throw keys.wrong(std::string(object) + "' " + quoted_name(key) +
                             " is not supported; only rope_theta and partial_rotary_factor are");
    }
}

// A positive number that is kept under one key of those objects and under others beside them. BadInput where two differ:
// which one counts depends on the version of transformers.
double rope_number(const ConfigReader& keys, const char* inside, std::initializer_list<const char*> beside,
                   double fallback) {
    double value = 0;
    std::string where;
    const auto take = [&](const ConfigReader& reader, const char* key, const std::string& place) {
        if (!reader.has(key)) return;
        const double found = reader.positive(key, fallback);
        if (!where.empty() && found != value)
            throw keys.wrong(place + " is " + Json(found).dump() + ", but " + where + " is " + Json(value).dump() +
                             "; of the two keep the one that the model was trained with");
        value = found;
        where = place;
    };
    for (const char* object : rope_objects) {
        const Json* const rope = keys.find(object);
        if (rope == nullptr) continue;
        require_default_kind(keys, *rope, object);
        take(keys.inside(*rope), inside, std::string(object) + "' " + inside);
    }
    for (const char* key : beside) take(keys, key, key);
    return where.empty() ? fallback : value;
}

Json rope_parameters(const ModelConfig& c) {
    return {{"rope_theta", c.rotary_base}, {"rope_type", "default"}};
}

// transformers takes int(head_size * share) numbers: the share that gives exactly c.rotary.
double rotary_share(const ModelConfig& c) {
    const auto head_size = static_cast<double>(c.head_size()), rotary = static_cast<double>(c.rotary);
    double share = rotary / head_size;
    while (head_size * share < rotary) share = std::nextafter(share, 2.0);
    return share;
}

void require_even_rotary(const ConfigReader& keys, const ModelConfig& c) {
    if (c.rotary >= 2 && c.rotary % 2 == 0) return;
    throw keys.wrong("rotary positions of " + std::to_string(c.rotary) + " of the " + std::to_string(c.head_size()) +
                     " numbers of a head are not supported; an even number of them must turn");
}

void require_heads_share_width(const ConfigReader& keys, const ModelConfig& c) {
    if (c.C % c.NH != 0)
        throw keys.wrong("hidden_size " + std::to_string(c.C) + " is not a multiple of num_attention_heads " +
                         std::to_string(c.NH));
}

ModelConfig read_common_keys(const ConfigReader& keys, const ModelConfig& defaults) {
    ModelConfig c = defaults;
    c.C = keys.integer("hidden_size", c.C, 1, largest_width);
    c.L = keys.integer("num_hidden_layers", c.L, 1, most_layers);
    c.NH = keys.integer("num_attention_heads", c.NH, 1, largest_width);
    c.V = keys.integer("vocab_size", c.V, 1, largest_vocabulary);
    c.n_ctx = keys.integer("max_position_embeddings", c.n_ctx, 1, largest_width);
    c.n_inner = keys.integer("intermediate_size", c.n_inner, 1, 4 * largest_width);
    c.tied = keys.option("tie_word_embeddings", false);
    c.end_of_text = keys.end_of_text(c.V, 2);
    keys.refuse({"sliding_window", "attention_chunk_size", "use_qk_norm", "qk_norm", "qk_layernorm", "clip_qkv",
                 "attn_logit_softcapping", "final_logit_softcapping", "logit_scale"},
                "models that compute with it are not supported");
    return c;
}

void write_common_keys(Json& j, const ModelConfig& c) {
    j["vocab_size"] = c.V;
    j["hidden_size"] = c.C;
    j["num_hidden_layers"] = c.L;
    j["num_attention_heads"] = c.NH;
    j["intermediate_size"] = c.n_inner;
    j["max_position_embeddings"] = c.n_ctx;
    j["initializer_range"] = 0.02;
    j["attention_bias"] = c.attention_bias;
    j["attention_dropout"] = 0.0;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------

// Defaults: transformers, configuration_gpt_neox.py.
ModelConfig read_neox_keys(const ConfigReader& keys) {
    ModelConfig defaults;
    defaults.family = Family::neox;
    defaults.C = 6144;
    defaults.L = 44;
    defaults.NH = 64;
    defaults.V = 50432;
    defaults.n_ctx = 2048;
    defaults.n_inner = 24576;
    ModelConfig c = read_common_keys(keys, defaults);
    require_heads_share_width(keys, c);
    if (keys.integer("head_dim", c.head_size(), 1, largest_width) != c.head_size())
        throw keys.wrong("head_dim differs from hidden_size / num_attention_heads, which GPT-NeoX does not have");
    c.activation = read_gelu(keys, "hidden_act", "gelu");
    c.epsilon = keys.positive("layer_norm_eps", 1e-5);
    c.parallel = keys.option("use_parallel_residual", true);
    c.attention_bias = keys.option("attention_bias", true);
    c.rotary_base = rope_number(keys, "rope_theta", {"rotary_emb_base", "rope_theta"}, 10000);
    const double share = rope_number(keys, "partial_rotary_factor", {"rotary_pct", "partial_rotary_factor"}, 0.25);
    if (share > 1) throw keys.wrong("rotary_pct is " + Json(share).dump() + "; it is a share of a head, at most 1");
    c.rotary = static_cast<int64_t>(static_cast<double>(c.head_size()) * share);
    require_even_rotary(keys, c);
    return c;
}

void write_neox_keys(Json& j, const ModelConfig& c) {
    write_common_keys(j, c);
    j["hidden_act"] = name_of_gelu(c.activation);
    j["layer_norm_eps"] = c.epsilon;
    j["use_parallel_residual"] = c.parallel;
    j["hidden_dropout"] = 0.0;
    j["rotary_emb_base"] = c.rotary_base;
    j["rotary_pct"] = rotary_share(c);
    j["rope_parameters"] = rope_parameters(c);
    j["rope_parameters"]["partial_rotary_factor"] = rotary_share(c);
}

// Defaults: transformers, configuration_llama.py.
ModelConfig read_llama_keys(const ConfigReader& keys) {
    ModelConfig defaults;
    defaults.family = Family::llama;
    defaults.C = 4096;
    defaults.L = 32;
    defaults.NH = 32;
    defaults.V = 32000;
    defaults.n_ctx = 2048;
    defaults.n_inner = 11008;
    defaults.centred = defaults.norm_bias = false;
    defaults.activation = Activation::gated_silu;
    ModelConfig c = read_common_keys(keys, defaults);
    if (keys.has("head_dim")) {
        const int64_t head_size = keys.integer("head_dim", 0, 1, largest_width);
        c.own_head_size = head_size * c.NH == c.C ? 0 : head_size;
    } else {
        require_heads_share_width(keys, c);
    }
    const int64_t key_heads = keys.integer("num_key_value_heads", c.NH, 1, c.NH);
    if (c.NH % key_heads != 0)
        throw keys.wrong("num_attention_heads " + std::to_string(c.NH) + " is not a multiple of num_key_value_heads " +
                         std::to_string(key_heads));
    c.shared_heads = key_heads == c.NH ? 0 : key_heads;
    const std::string activation = keys.text("hidden_act", "silu");
    if (activation != "silu" && activation != "swish")
        throw keys.wrong("hidden_act " + quoted_name(activation) + " is not supported; only silu is, in a Llama");
    c.epsilon = keys.positive("rms_norm_eps", 1e-6);
    c.attention_bias = keys.option("attention_bias", false);
    c.mlp_bias = keys.option("mlp_bias", false);
    c.rotary_base = rope_number(keys, "rope_theta", {"rope_theta"}, 10000);
    if (rope_number(keys, "partial_rotary_factor", {"partial_rotary_factor"}, 1) != 1)
        throw keys.wrong(
            "partial_rotary_factor other than 1 is not supported in a Llama: versions of transformers differ "
            "in what they make of it");
    c.rotary = c.head_size();
    require_even_rotary(keys, c);
    return c;
}

void write_llama_keys(Json& j, const ModelConfig& c) {
    write_common_keys(j, c);
    j["num_key_value_heads"] = c.key_heads();
    j["head_dim"] = c.head_size();
    j["hidden_act"] = "silu";
    j["rms_norm_eps"] = c.epsilon;
    j["mlp_bias"] = c.mlp_bias;
    j["rope_theta"] = c.rotary_base;
    j["rope_parameters"] = rope_parameters(c);
}

}  // namespace lnfree
