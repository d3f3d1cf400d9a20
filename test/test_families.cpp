// data/stock_layout.h, data/family_configs.h: folders of GPT-NeoX and Llama are read and written as transformers has them, and
// what computes something else is refused by its name.
#include <doctest/doctest.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "data/json.h"
#include "data/model_config.h"
#include "data/model_folder.h"
#include "data/random.h"
#include "data/safetensors.h"
#include "test/file_helpers.h"

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// config.json

const Json pythia = {{"model_type", "gpt_neox"}, {"hidden_size", 70},       {"num_attention_heads", 5},
                     {"num_hidden_layers", 3},   {"intermediate_size", 33}, {"vocab_size", 50304},
                     {"rotary_pct", 0.29},       {"rotary_emb_base", 5000}};
const Json smollm = {{"model_type", "llama"},           {"hidden_size", 30}, {"num_attention_heads", 6},
                     {"num_key_value_heads", 2},        {"head_dim", 4},     {"num_hidden_layers", 2},
                     {"intermediate_size", 19},         {"vocab_size", 101}, {"rms_norm_eps", 1e-5},
                     {"max_position_embeddings", 8192}, {"rope_theta", 1e5}, {"tie_word_embeddings", true}};

Json with(Json config, const std::string& key, const Json& value) {
    config[key] = value;
    return config;
}

ModelConfig parsed(const Json& config, ConfigOptions* options = nullptr) {
    return parse_config(config.dump(), "config.json", options);
}

std::string refusal_of(const Json& config) {
    return message_of<BadInput>([&] { parsed(config); });
}

bool same(const ModelConfig& a, const ModelConfig& b) {
    return a.L == b.L && a.NH == b.NH && a.C == b.C && a.V == b.V && a.n_ctx == b.n_ctx && a.n_inner == b.n_inner &&
           a.epsilon == b.epsilon && a.end_of_text == b.end_of_text && a.form == b.form && a.family == b.family &&
           a.centred == b.centred && a.norm_bias == b.norm_bias && a.rotary == b.rotary &&
           a.rotary_base == b.rotary_base && a.parallel == b.parallel && a.activation == b.activation &&
           a.shared_heads == b.shared_heads && a.own_head_size == b.own_head_size &&
           a.attention_bias == b.attention_bias && a.mlp_bias == b.mlp_bias && a.tied == b.tied;
}

}  // namespace

TEST_CASE("a GPT-NeoX's config.json says all that it computes, in the words of every version of transformers") {
    const ModelConfig c = parsed(pythia);
    CHECK(c.family == Family::neox);
    CHECK(c.head_size() == 14);
    CHECK(c.rotary == 4);  // int(14 * 0.29)
    CHECK(c.rotary_base == 5000);
    CHECK((c.parallel && c.centred && c.norm_bias && !c.tied));
    CHECK(c.activation == Activation::gelu_erf);
    CHECK(c.n_ctx == 2048);
    CHECK(c.epsilon == 1e-5);
    CHECK(c.end_of_text == 2);

    Json v5 = pythia;
    v5.erase("rotary_pct");
    v5.erase("rotary_emb_base");
    v5["rope_parameters"] = {{"rope_theta", 5000.0}, {"partial_rotary_factor", 0.29}, {"rope_type", "default"}};
    CHECK(same(parsed(v5), c));
    Json of_model = with(with(pythia, "use_parallel_residual", false), "hidden_act", "gelu_new");
    of_model["tie_word_embeddings"] = true;
    of_model["eos_token_id"] = 0;
    const ModelConfig other = parsed(of_model);
    CHECK((!other.parallel && other.tied));
    CHECK(other.activation == Activation::gelu_tanh);
    CHECK(other.end_of_text == 0);
}

TEST_CASE("a Llama's config.json says all that it computes") {
    const ModelConfig c = parsed(smollm);
    CHECK(c.family == Family::llama);
    CHECK((!c.centred && !c.norm_bias && !c.parallel && c.tied && !c.attention_bias && !c.mlp_bias));
    CHECK(c.activation == Activation::gated_silu);
    CHECK(c.key_heads() == 2);
    CHECK(c.head_size() == 4);
    CHECK(c.rotary == 4);
    CHECK(c.rotary_base == 1e5);
    CHECK(c.epsilon == 1e-5);
    CHECK(c.n_ctx == 8192);
    Json plain = {{"model_type", "llama"}, {"rope_parameters", {{"rope_theta", 1e5}}}, {"rope_theta", 1e5}};
    const ModelConfig defaults = parsed(plain);  // those of Llama 2
    CHECK(defaults.C == 4096);
    CHECK(defaults.V == 32000);
    CHECK(defaults.shared_heads == 0);
    CHECK(defaults.own_head_size == 0);
    CHECK(defaults.epsilon == 1e-6);
    CHECK_FALSE(defaults.tied);
    const ModelConfig biased = parsed(with(with(smollm, "attention_bias", true), "mlp_bias", true));
    CHECK((biased.attention_bias && biased.mlp_bias));
}

TEST_CASE("what is written of a config is read again as it was, in every form") {
    for (const Json& from : {pythia, smollm, with(smollm, "mlp_bias", true), with(pythia, "hidden_act", "gelu_fast"),
                             with(smollm, "num_key_value_heads", 6)})
        for (const ModelForm form : {ModelForm::hugging_face, ModelForm::checkpoint, ModelForm::folded}) {
            ModelConfig c = parsed(from);
            c.form = form;
            if (form == ModelForm::folded) c.tied = false;
            CHECK(same(parsed(config_json(c, "float32")), c));
        }
    CHECK(config_json(parsed(pythia), "float32")["architectures"] == Json::array({"GPTNeoXForCausalLM"}));
    CHECK(config_json(parsed(smollm), "float32")["architectures"] == Json::array({"LlamaForCausalLM"}));
}

TEST_CASE("any even number of a head's numbers can be written as the share that gives it") {
    ModelConfig c = parsed(pythia);
    for (int64_t head = 2; head <= 128; head++)
        for (int64_t rotary = 2; rotary <= head; rotary += 2) {
            c.C = 5 * head;
            c.rotary = rotary;
            const Json written = config_json(c, "float32");
            const double share = written["rotary_pct"].number();
            const auto made = static_cast<int64_t>(static_cast<double>(head) * share);
            if (made != rotary) FAIL("head " << head << ", rotary " << rotary << ": " << made);
            if (written["rope_parameters"]["partial_rotary_factor"].number() != share) FAIL("two shares");
        }
}

TEST_CASE("norms with biases are given biases behind them, for the exact forms to use") {
    ConfigOptions options;
    const ModelConfig c = parsed(with(pythia, "attention_bias", false), &options);
    CHECK(c.attention_bias);
    CHECK(options.no_attention_biases);
    CHECK(config_json(c, "float32")["attention_bias"] == true);
    parsed(pythia, &options);
    CHECK_FALSE(options.no_attention_biases);
    parsed(smollm, &options);
    CHECK_FALSE(options.no_attention_biases);
}

TEST_CASE("what would compute something else is refused by its name") {
    struct Case {
        const Json* of;
        const char* key;
        Json value;
        const char* expected;
    };
    const Case cases[] = {
        {&smollm, "rope_scaling", {{"type", "linear"}, {"factor", 2.0}}, "rope_scaling of the kind \"linear\""},
        {&smollm, "rope_scaling", {{"rope_type", "llama3"}}, "rope_scaling of the kind \"llama3\""},
        {&smollm, "rope_parameters", {{"rope_type", "yarn"}}, "rope_parameters of the kind \"yarn\""},
        {&smollm, "rope_parameters", {{"rope_type", "longrope"}}, "rope_parameters of the kind \"longrope\""},
        {&pythia, "rope_scaling", {{"type", "dynamic"}}, "rope_scaling of the kind \"dynamic\""},
        {&smollm, "rope_parameters", {{"factor", 8.0}}, "rope_parameters' \"factor\""},
        {&smollm, "rope_parameters", 7, "rope_parameters is 7"},
        {&smollm,
         "rope_parameters",
         {{"rope_theta", 500.0}},
         "rope_theta is 100000.0, but rope_parameters' rope_theta"},
        {&smollm, "rope_theta", -1, "rope_theta is -1"},
        {&smollm, "rope_theta", "10000", "rope_theta is \"10000\""},
        {&smollm, "partial_rotary_factor", 0.5, "partial_rotary_factor other than 1"},
        {&pythia, "rope_theta", 10000, "rope_theta is 10000.0, but rotary_emb_base is 5000.0"},
        {&pythia, "rotary_pct", 1.5, "rotary_pct is 1.5"},
        {&pythia, "rotary_pct", 0.22, "rotary positions of 3 of the 14 numbers"},
        {&pythia, "rotary_pct", 0.01, "rotary positions of 0 of the 14 numbers"},
        {&pythia, "hidden_act", "silu", "hidden_act \"silu\""},
        {&pythia, "hidden_size", 71, "hidden_size 71 is not a multiple of num_attention_heads 5"},
        {&pythia, "head_dim", 16, "head_dim"},
        {&smollm, "hidden_act", "gelu", "hidden_act \"gelu\""},
        {&smollm, "head_dim", 5, "rotary positions of 5 of the 5 numbers"},
        {&smollm, "num_key_value_heads", 4, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"},
        {&smollm, "num_key_value_heads", 7, "num_key_value_heads is 7"},
        {&smollm, "rms_norm_eps", 0, "rms_norm_eps is 0"},
        {&smollm, "attention_bias", "yes", "attention_bias is \"yes\""},
        {&smollm, "quantization_config", {{"bits", 4}}, "quantization_config found"},
        {&smollm, "sliding_window", 4096, "sliding_window found"},
        {&smollm, "use_qk_norm", true, "use_qk_norm found"},
        {&smollm, "hidden_size", 1 << 24, "more than 1e12 parameters"},
        {&smollm, "model_type", "mistral", "model_type \"mistral\" is not supported: its attention slides"},
        {&smollm, "model_type", "qwen3", "norms of their own; only gpt2, gpt_neox and llama"},
        {&smollm, "model_type", "mamba", "model_type \"mamba\" is not supported; only"},
    };
    for (const Case& c : cases) {
        CAPTURE(c.expected);
        Json config = with(*c.of, c.key, c.value);
        if (std::string(c.expected).find("1e12") != std::string::npos) config["num_hidden_layers"] = 4096;
        const std::string refusal = refusal_of(config);
        CAPTURE(refusal);
        CHECK(contains(refusal, c.expected));
        CHECK(is_one_line(refusal));
    }
    for (const char* off : {"sliding_window", "quantization_config", "rope_scaling"})
        CHECK(refusal_of(with(smollm, off, nullptr)).empty());
    CHECK(refusal_of(with(smollm, "use_qk_norm", false)).empty());
    CHECK(refusal_of(with(smollm, "rope_scaling", {{"rope_type", "default"}})).empty());
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensors

namespace {

// The table of a model, written down once more.
std::vector<Tensor> table_of(const ModelConfig& c) {
    std::vector<Tensor> table;
    const auto add = [&](const std::string& name, int64_t rows, int64_t columns) {
        Tensor t{name, {}, false, table.empty() ? 0 : table.back().offset + table.back().size, columns};
        if (rows > 0) t.shape.push_back(static_cast<uint64_t>(rows));
        if (rows > 0) t.size *= rows;
        t.shape.push_back(static_cast<uint64_t>(columns));
        table.push_back(t);
    };
    const auto add_norm = [&](const std::string& name) {
        add(name + ".weight", 0, c.C);
        if (c.norm_bias) add(name + ".bias", 0, c.C);
    };
    const auto add_linear = [&](const std::string& name, int64_t in, int64_t out, bool bias) {
        add(name + ".weight", in, out);
        if (bias) add(name + ".bias", 0, out);
    };
    add("wte.weight", c.V, c.C);
    for (int64_t l = 0; l < c.L; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        add_norm(h + "ln_1");
        add_linear(h + "attn.c_attn", c.C, c.qkv_width(), c.attention_bias);
        add_linear(h + "attn.c_proj", c.heads_width(), c.C, c.attention_bias);
        add_norm(h + "ln_2");
        add_linear(h + "mlp.c_fc", c.C, c.fc_width(), c.mlp_bias);
        add_linear(h + "mlp.c_proj", c.n_inner, c.C, c.mlp_bias);
    }
    add_norm("ln_f");
    if (!c.tied) add("lm_head.weight", c.V, c.C);
    return table;
}

// A model as one list of numbers, and the way to each of them.
struct Numbers {
    std::vector<Tensor> table;
    std::vector<float> values;

    explicit Numbers(const ModelConfig& c) : table(table_of(c)) {
        SplitMix64 random(3);
        for (int64_t i = 0; i < table.back().offset + table.back().size; i++)
            values.push_back(static_cast<float>(random.normal()));
    }
    // Element (in, out) of a weight, element `out` of a bias.
    float at(const std::string& name, int64_t in, int64_t out) const {
        for (const Tensor& t : table)
            if (t.name == name) return values[static_cast<size_t>(t.offset + in * int64_t(t.shape.back()) + out)];
        FAIL("no tensor is named " << name);
        return 0;
    }
    TensorRecipes<float> recipes() const {
        TensorRecipes<float> recipes;
        for (const Tensor& t : table) {
            const float* from = values.data() + t.offset;
            recipes.push_back({t.name, t.shape, [from, n = t.size](float* out) { std::copy(from, from + n, out); }});
        }
        return recipes;
    }
};

using Stored = std::map<std::string, std::vector<float>>;

Stored stored_in(const std::string& file) {
    const SafetensorsFile weights(file);
    Stored stored;
    for (const TensorView& view : weights.tensors()) {
        stored[view.name].resize(view.count());
        copy_tensor(view, stored[view.name].data());
    }
    return stored;
}

ModelConfig small_neox() {
    Json config = with(with(pythia, "vocab_size", 11), "max_position_embeddings", 16);
    return parsed(with(config, "num_hidden_layers", 2));
}

ModelConfig small_llama(bool biases) {
    Json config = with(with(smollm, "attention_bias", biases), "mlp_bias", biases);
    return parsed(with(config, "tie_word_embeddings", !biases));
}

void write_stock(const std::string& folder, const ModelConfig& c, const Numbers& numbers) {
    write_model_folder<float>(folder, c, numbers.recipes(), DType::F32, {{"version", kFormatVersion}}, nullptr, "");
}

// What a folder's reader makes of it.
struct Read {
    std::vector<float> values;
    std::vector<std::string> notes;
    std::string refusal;
};

Read read_folder(const std::string& path, const std::vector<Tensor>& table) {
    Read read;
    read.values.resize(static_cast<size_t>(table.back().offset + table.back().size), NAN);
    read.refusal = message_of<BadInput>([&] {
        ModelFolder folder(path);
        copy_tensors(read.values.data(), table, folder.tensors(table), path);
        read.notes = folder.notes();
    });
    return read;
}

// Writes some tensors of a stock folder anew, as they are or with another name.
void rewrite(const std::string& folder,
             const std::function<void(Stored&, std::map<std::string, std::vector<uint64_t>>&)>& edit) {
    Stored stored = stored_in(folder + "/model.safetensors");
    std::map<std::string, std::vector<uint64_t>> shapes;
    {
        const SafetensorsFile weights(folder + "/model.safetensors");
        for (const TensorView& view : weights.tensors()) shapes[view.name] = view.shape;
    }
    edit(stored, shapes);
    std::vector<TensorSource<float>> sources;
    for (const auto& [name, numbers] : stored)
        sources.push_back({name, shapes.count(name) != 0 ? shapes[name] : std::vector<uint64_t>{numbers.size()},
                           [from = numbers](float* out) { std::copy(from.begin(), from.end(), out); }});
    write_safetensors<float>(folder + "/model.safetensors", sources, DType::F32);
}

}  // namespace

TEST_CASE("GPT-NeoX's rows of queries, keys and values lie head by head, and come back") {
    const TemporaryFolder scratch;
    const ModelConfig c = small_neox();
    const Numbers n(c);
    write_stock(scratch / "m", c, n);
    const Stored stored = stored_in(scratch / "m/model.safetensors");
    CHECK(stored.size() == 2 * 12 + 4);
    const std::string layer = "gpt_neox.layers.1.";
    const std::vector<float>&rows = stored.at(layer + "attention.query_key_value.weight"),
          &biases = stored.at(layer + "attention.query_key_value.bias");
    REQUIRE(rows.size() == 210 * 70);
    for (int64_t head = 0; head < 5; head++)
        for (int64_t part = 0; part < 3; part++)
            for (int64_t i = 0; i < 14; i++) {
                const int64_t row = (head * 3 + part) * 14 + i, column = part * 70 + head * 14 + i;
                CHECK(biases[row] == n.at("h.1.attn.c_attn.bias", 0, column));
                for (const int64_t in : {0, 1, 37, 69})
                    CHECK(rows[row * 70 + in] == n.at("h.1.attn.c_attn.weight", in, column));
            }
    const std::vector<float>& fc = stored.at(layer + "mlp.dense_h_to_4h.weight");
    const std::vector<float>& proj = stored.at(layer + "mlp.dense_4h_to_h.weight");
    for (int64_t j = 0; j < 33; j++)
        for (int64_t i = 0; i < 70; i++) {
            CHECK(fc[j * 70 + i] == n.at("h.1.mlp.c_fc.weight", i, j));
            CHECK(proj[i * 33 + j] == n.at("h.1.mlp.c_proj.weight", j, i));
        }
    CHECK(stored.at(layer + "attention.dense.weight")[3 * 70 + 5] == n.at("h.1.attn.c_proj.weight", 5, 3));
    CHECK(stored.at(layer + "input_layernorm.bias")[5] == n.at("h.1.ln_1.bias", 0, 5));
    CHECK(stored.at(layer + "post_attention_layernorm.weight")[5] == n.at("h.1.ln_2.weight", 0, 5));
    CHECK(stored.at("gpt_neox.final_layer_norm.weight")[5] == n.at("ln_f.weight", 0, 5));
    CHECK(stored.at("gpt_neox.embed_in.weight")[3 * 70 + 5] == n.at("wte.weight", 3, 5));
    CHECK(stored.at("embed_out.weight")[3 * 70 + 5] == n.at("lm_head.weight", 3, 5));
    const Read read = read_folder(scratch / "m", n.table);
    CHECK(read.refusal.empty());
    CHECK(read.notes.empty());
    CHECK(read.values == n.values);
}

TEST_CASE("Llama's projections lie side by side in the table, and come back") {
    for (const bool biases : {false, true}) {
        const TemporaryFolder scratch;
        const ModelConfig c = small_llama(biases);
        const Numbers n(c);
        write_stock(scratch / "m", c, n);
        const Stored stored = stored_in(scratch / "m/model.safetensors");
        CHECK(stored.size() == (biases ? 2 * 16 + 3 : 2 * 9 + 2));
        struct Projection {
            const char *stock, *table;
            int64_t in, out, first;
        };
        const Projection projections[] = {
            {"self_attn.q_proj", "attn.c_attn", 30, 24, 0}, {"self_attn.k_proj", "attn.c_attn", 30, 8, 24},
            {"self_attn.v_proj", "attn.c_attn", 30, 8, 32}, {"self_attn.o_proj", "attn.c_proj", 24, 30, 0},
            {"mlp.gate_proj", "mlp.c_fc", 30, 19, 0},       {"mlp.up_proj", "mlp.c_fc", 30, 19, 19},
            {"mlp.down_proj", "mlp.c_proj", 19, 30, 0}};
        for (const Projection& p : projections) {
            CAPTURE(p.stock);
            const std::string stock = std::string("model.layers.1.") + p.stock, table = std::string("h.1.") + p.table;
            const std::vector<float>& weight = stored.at(stock + ".weight");
            REQUIRE(weight.size() == static_cast<size_t>(p.in * p.out));
            for (int64_t j = 0; j < p.out; j++) {
                if (biases) CHECK(stored.at(stock + ".bias")[j] == n.at(table + ".bias", 0, p.first + j));
                for (int64_t i = 0; i < p.in; i++)
                    CHECK(weight[j * p.in + i] == n.at(table + ".weight", i, p.first + j));
            }
        }
        CHECK(stored.at("model.norm.weight")[7] == n.at("ln_f.weight", 0, 7));
        CHECK(stored.at("model.embed_tokens.weight")[4 * 30 + 7] == n.at("wte.weight", 4, 7));
        CHECK(stored.count("lm_head.weight") == (biases ? 1 : 0));
        const Read read = read_folder(scratch / "m", n.table);
        CHECK(read.refusal.empty());
        CHECK(read.notes.empty());
        CHECK(read.values == n.values);
    }
}

TEST_CASE("a model of another family keeps the table's names in the two forms of this program") {
    const TemporaryFolder scratch;
    for (const bool neox : {false, true}) {
        ModelConfig c = neox ? small_neox() : small_llama(false);
        const Numbers n(c);
        c.form = ModelForm::checkpoint;
        const std::string folder = scratch / model_type_of(c.family, c.form);
        write_stock(folder, c, n);
        CHECK(stored_in(folder + "/weights.safetensors").count("h.0.attn.c_attn.weight") == 1);
        CHECK(read_folder(folder, n.table).values == n.values);
    }
}

TEST_CASE("names of Llama and GPT-NeoX are found behind every prefix, buffers and other heads passed over") {
    const TemporaryFolder scratch;
    const ModelConfig c = small_llama(false);
    const Numbers n(c);
    for (const std::string before : {"", "model.", "module.model.", "_orig_mod.model.", "base.llm."}) {
        CAPTURE(before);
        write_stock(scratch / "m", c, n);
        rewrite(scratch / "m", [&](Stored& stored, auto& shapes) {
            Stored renamed;
            std::map<std::string, std::vector<uint64_t>> its_shapes;
            for (const auto& [name, numbers] : stored) {
                renamed[before + name.substr(6)] = numbers;
                its_shapes[before + name.substr(6)] = shapes[name];
            }
            renamed[before + "layers.0.self_attn.rotary_emb.inv_freq"] = {1, 0.5};
            renamed["score.weight"] = {1};
            stored = renamed;
            shapes = its_shapes;
        });
        const Read read = read_folder(scratch / "m", n.table);
        CHECK(read.refusal.empty());
        CHECK(read.values == n.values);
        REQUIRE(read.notes.size() == 1);
        CHECK(contains(read.notes[0], "\"score.weight\""));
    }
    const ModelConfig neox = small_neox();
    const Numbers of_neox(neox);
    write_stock(scratch / "neox", neox, of_neox);
    rewrite(scratch / "neox", [&](Stored& stored, auto& shapes) {
        stored["lm_head.weight"] = stored["embed_out.weight"];  // as version 5 names it within
        shapes["lm_head.weight"] = shapes["embed_out.weight"];
        stored.erase("embed_out.weight");
        for (const char* buffer : {"bias", "masked_bias", "rotary_emb.inv_freq"})
            stored[std::string("gpt_neox.layers.1.attention.") + buffer] = {1};
    });
    const Read read = read_folder(scratch / "neox", of_neox.table);
    CHECK(read.refusal.empty());
    CHECK(read.notes.empty());
    CHECK(read.values == of_neox.values);
}

TEST_CASE("attention without biases in a GPT-NeoX is read as zeros, with a line that says so") {
    const TemporaryFolder scratch;
    const ModelConfig c = small_neox();
    const Numbers n(c);
    write_stock(scratch / "m", c, n);
    const std::string config = scratch / "m/config.json";
    write_bytes(config, with(read_json(config), "attention_bias", false).dump());
    CHECK(contains(read_folder(scratch / "m", n.table).refusal, "attention.dense.bias\" is not part of the model"));
    rewrite(scratch / "m", [](Stored& stored, auto&) {
        for (const char* layer : {"0", "1"})
            for (const char* module : {"query_key_value", "dense"})
                stored.erase(std::string("gpt_neox.layers.") + layer + ".attention." + module + ".bias");
    });
    const Read read = read_folder(scratch / "m", n.table);
    CHECK(read.refusal.empty());
    REQUIRE(read.notes.size() == 1);
    CHECK(contains(read.notes[0], "zeros"));
    for (const Tensor& t : n.table) {
        const bool gone = contains(t.name, ".attn.") && contains(t.name, ".bias");
        for (int64_t i = t.offset; i < t.offset + t.size; i++)
            if (read.values[i] != (gone ? 0 : n.values[i])) FAIL(t.name);
    }
}

TEST_CASE("tensors that do not fit are refused by the names that they have in the file") {
    const TemporaryFolder scratch;
    const ModelConfig c = small_llama(true);
    const Numbers n(c);
    const auto refusal = [&](const std::function<void(Stored&, std::map<std::string, std::vector<uint64_t>>&)>& edit) {
        write_stock(scratch / "m", c, n);
        rewrite(scratch / "m", edit);
        const std::string said = read_folder(scratch / "m", n.table).refusal;
        CHECK(is_one_line(said));
        return said;
    };
    CHECK(contains(refusal([](Stored& s, auto&) { s.erase("model.layers.1.self_attn.k_proj.weight"); }),
                   "tensor model.layers.1.self_attn.k_proj.weight is missing"));
    CHECK(contains(refusal([](Stored& s, auto&) { s.erase("model.layers.0.mlp.up_proj.bias"); }),
                   "tensor model.layers.0.mlp.up_proj.bias is missing"));
    CHECK(contains(refusal([](Stored&, auto& shapes) {
                       shapes["model.layers.1.self_attn.k_proj.weight"] = {30, 8};
                   }),
                   "model.layers.1.self_attn.k_proj.weight has shape [30,8], but config.json asks for [8,30]"));
    CHECK(contains(refusal([](Stored& s, auto&) {
                       s["model.layers.0.self_attn.q_norm.weight"] = {1, 1, 1, 1};
                   }),
                   "\"model.layers.0.self_attn.q_norm.weight\" is not part of the model"));
    CHECK(contains(refusal([](Stored& s, auto&) { s["model.layers.2.mlp.up_proj.bias"] = {1}; }),
                   "num_hidden_layers does not count"));
    CHECK(contains(refusal([](Stored& s, auto&) { s.erase("lm_head.weight"); }), "\"tie_word_embeddings\": false"));
    CHECK(contains(refusal([](Stored& s, auto&) { s["model.layers.1.self_attn.v_proj.weight"][7] = INFINITY; }),
                   "tensor model.layers.1.self_attn.v_proj.weight holds a value that is not finite at element 7"));
    write_stock(scratch / "m", c, n);
    const std::string config = scratch / "m/config.json";
    write_bytes(config, with(read_json(config), "tie_word_embeddings", true).dump());
    CHECK(contains(read_folder(scratch / "m", n.table).refusal, "lm_head.weight differs from embed_tokens.weight"));
}
