// data/model_folder.h: what is written can be read, and what does not fit together is refused by name.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/json.h"
#include "data/model_folder.h"
#include "data/random.h"
#include "data/safetensors.h"
#include "data/tokenizer.h"
#include "test/file_helpers.h"
#include "test/torch_bytes.h"

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

ModelConfig tiny_config(ModelForm form) {
    ModelConfig c;
    c.L = 1, c.NH = 1, c.C = 2, c.V = 3, c.n_ctx = 4, c.n_inner = 8;
    c.end_of_text = 2;
    c.form = form;
    return c;
}

// Not a whole GPT-2: what is tested here takes any table.
std::vector<Tensor> tiny_table() {
    return {{"wte.weight", {3, 2}, true, 0, 6}, {"wpe.weight", {4, 2}, true, 6, 8}, {"ln_f.weight", {2}, false, 14, 2}};
}

template <class T>
std::vector<T> random_values() {
    SplitMix64 random(5);
    std::vector<T> values(16);
    for (T& value : values) value = static_cast<T>(random.normal());
    return values;
}

template <class T>
TensorRecipes<T> recipes_of(const std::vector<T>& values, const std::string& prefix) {
    TensorRecipes<T> recipes;
    for (const Tensor& t : tiny_table()) {
        const T* from = values.data() + t.offset;
        recipes.push_back({prefix + t.name, t.shape, [from, n = t.size](T* out) { std::copy(from, from + n, out); }});
    }
    return recipes;
}

template <class T>
void write_tiny(const std::string& folder, ModelForm form, const std::vector<T>& values,
                const Tokenizer* tokenizer = nullptr) {
    write_model_folder(folder, tiny_config(form), recipes_of(values, ""), dtype_of<T>(),
                       {{"version", kFormatVersion}, {"note", "σ"}}, tokenizer, "# A card\n");
}

template <class T>
std::vector<T> values_in(ModelFolder& folder) {
    std::vector<T> values(16);
    copy_tensors(values.data(), tiny_table(), folder.tensors(tiny_table()), folder.path());
    return values;
}

}  // namespace

TEST_CASE_TEMPLATE("a model folder of every form comes back as it was", T, float, double) {
    const TemporaryFolder scratch;
    const std::vector<T> values = random_values<T>();
    const std::unique_ptr<Tokenizer> bytes = load_tokenizer("byte");
    for (const ModelForm form : {ModelForm::hugging_face, ModelForm::checkpoint, ModelForm::folded}) {
        const std::string path = scratch / model_type_of(Family::gpt2, form);
        write_tiny(path, form, values, bytes.get());
        ModelFolder folder(path);
        CHECK(folder.config().form == form);
        CHECK(folder.config().V == 3);
        CHECK(folder.config().end_of_text == 2);
        CHECK(values_in<T>(folder) == values);
        CHECK(folder.lnfree().at("note") == "σ");
        REQUIRE(folder.tokenizer().tokenizer != nullptr);
        CHECK(folder.tokenizer().tokenizer->fingerprint() == bytes->fingerprint());
        CHECK(read_bytes(path + "/README.md") == "# A card\n");
        CHECK(fs::exists(path + "/generation_config.json") == (form == ModelForm::hugging_face));
        remove_model_files(path);
        CHECK(fs::is_empty(path));
    }
}

TEST_CASE("config.json names its architecture in a list, as transformers reads it, and only where it has one") {
    const TemporaryFolder scratch;
    const std::vector<float> values = random_values<float>();
    write_tiny<float>(scratch / "hf", ModelForm::hugging_face, values, nullptr);
    write_tiny<float>(scratch / "folded", ModelForm::folded, values, nullptr);
    CHECK(read_json(scratch / "hf/config.json")["architectures"] == Json::array({"GPT2LMHeadModel"}));
    CHECK_FALSE(read_json(scratch / "folded/config.json").contains("architectures"));
}

TEST_CASE("views stay valid when the folder's object moves") {
    const TemporaryFolder scratch;
    const std::vector<float> values = random_values<float>();
    write_tiny(scratch / "m", ModelForm::checkpoint, values);
    ModelFolder first(scratch / "m");
    const std::vector<MatchedTensor> views = first.tensors(tiny_table());
    const ModelFolder second = std::move(first);
    std::vector<float> copied(16);
    copy_tensors(copied.data(), tiny_table(), views, second.path());
    CHECK(copied == values);
}

TEST_CASE("a folder without lnfree.json and tokenizer has null for both") {
    const TemporaryFolder scratch;
    write_tiny(scratch / "m", ModelForm::hugging_face, random_values<float>());
    fs::remove(scratch / "m/lnfree.json");
    const ModelFolder folder(scratch / "m");
    CHECK(folder.lnfree().is_null());
    CHECK(folder.tokenizer().tokenizer == nullptr);
    CHECK(folder.tokenizer().refusal.empty());
}

TEST_CASE("a folder without weights is refused") {
    const TemporaryFolder scratch;
    write_tiny(scratch / "m", ModelForm::hugging_face, random_values<float>());
    fs::remove(scratch / "m/model.safetensors");
    CHECK(contains(message_of<BadInput>([&] { ModelFolder(scratch / "m"); }), "holds no weights"));
}

TEST_CASE("a tokenizer that this program cannot run does not stop the model, and says why") {
    const TemporaryFolder scratch;
    write_tiny(scratch / "m", ModelForm::hugging_face, random_values<float>());
    const auto refusal = [&] {
        const FolderTokenizer found = ModelFolder(scratch / "m").tokenizer();
        CHECK(found.tokenizer == nullptr);
        return found.refusal;
    };
    write_bytes(scratch / "m/vocab.txt", "[UNK]\n");
    CHECK(contains(refusal(), "m/vocab.txt is not of GPT-2's"));
    write_bytes(scratch / "m/vocab.json", R"({"a": 0})");
    CHECK(contains(refusal(), "m/vocab.json has no merges beside it"));
    write_bytes(scratch / "m/tokenizer.json", R"({"model": {"type": "WordPiece"}})");
    CHECK(contains(refusal(), "m/tokenizer.json"));
    CHECK(contains(refusal(), "BPE"));
    ModelFolder folder(scratch / "m");
    CHECK(values_in<float>(folder) == random_values<float>());
}

TEST_CASE("what came with a model goes out as it came, and is removed with it") {
    const TemporaryFolder scratch;
    const std::unique_ptr<Tokenizer> bytes = load_tokenizer("byte");
    write_tiny(scratch / "m", ModelForm::hugging_face, random_values<float>(), bytes.get());
    Json config = read_json(scratch / "m/config.json");
    config["bos_token_id"] = 0;
    config["eos_token_id"] = std::vector<int>{2, 1};
    config["pad_token_id"] = nullptr;
    config["sep_token_id"] = 50256;  // beyond the vocabulary
    config["task_specific_params"] = Json{{"max_length", 50}};
    config["reorder_and_upcast_attn"] = true;
    write_bytes(scratch / "m/config.json", config.dump());
    const std::string generation = R"({"eos_token_id": [2, 1], "do_sample": true})";
    write_bytes(scratch / "m/generation_config.json", generation);
    write_bytes(scratch / "m/chat_template.jinja", "{{ messages }}");
    write_bytes(scratch / "m/vocab.txt", "[UNK]\n");
    write_bytes(scratch / "m/notes.txt", "mine");
    std::string from = scratch / "m";
    for (const ModelForm form : {ModelForm::checkpoint, ModelForm::hugging_face}) {  // and on from there
        const std::string out = scratch / model_type_of(Family::gpt2, form);
        const ModelFolder folder(from);
        CHECK(folder.config().end_of_text == 2);
        ModelConfig c = folder.config();
        c.form = form;
        write_model_folder(out, c, recipes_of(random_values<float>(), ""), DType::F32, {{"version", kFormatVersion}},
                           nullptr, "", folder.companions());
        const Json written = read_json(out + "/config.json");
        CHECK(written["bos_token_id"] == 0);
        CHECK(written["eos_token_id"] == Json(std::vector<int>{2, 1}));
        CHECK(written["pad_token_id"].is_null());
        CHECK_FALSE(written.contains("sep_token_id"));
        CHECK(written["task_specific_params"]["max_length"] == 50);
        CHECK(written["reorder_and_upcast_attn"] == false);
        CHECK(read_bytes(out + "/generation_config.json") == generation);
        for (const char* file : {"chat_template.jinja", "vocab.txt", "tokenizer.json", "tokenizer_config.json"})
            CHECK(read_bytes(out + "/" + file) == read_bytes(scratch / "m/" + file));
        CHECK_FALSE(fs::exists(out + "/notes.txt"));
        from = out;
    }
    remove_model_files(from);
    CHECK(fs::is_empty(from));
}

TEST_CASE("options that scale attention's scores go into the query weights") {
    const TemporaryFolder scratch;
    const std::vector<Tensor> table = {{"h.0.attn.c_attn.weight", {2, 6}, true, 0, 12},
                                       {"h.0.attn.c_attn.bias", {6}, false, 12, 6},
                                       {"h.1.attn.c_attn.weight", {2, 6}, true, 18, 12},
                                       {"h.1.attn.c_attn.bias", {6}, false, 30, 6}};
    write_tiny(scratch / "m", ModelForm::hugging_face, random_values<float>());
    Json config = read_json(scratch / "m/config.json");
    config["n_layer"] = 2;
    const auto factors = [&](bool over_width, bool over_layer) {
        config["scale_attn_weights"] = over_width;
        config["scale_attn_by_inverse_layer_idx"] = over_layer;
        write_bytes(scratch / "m/config.json", config.dump());
        std::vector<float> weights(36, 1.0f);
        ModelFolder(scratch / "m").fold_options(weights.data(), table);
        for (size_t i = 0; i < weights.size(); i++)
            if (i % 6 >= 2) CHECK(weights[i] == 1.0f);  // keys and values
        CHECK(weights[0] == weights[13]);               // every row, and the bias
        CHECK(weights[18] == weights[31]);
        return std::pair<float, float>(weights[0], weights[18]);
    };
    const float width = std::sqrt(2.0f);
    CHECK(factors(true, false) == std::pair<float, float>(1, 1));
    CHECK(factors(true, true) == std::pair<float, float>(1, 0.5f));
    CHECK(factors(false, false) == std::pair<float, float>(width, width));
    CHECK(factors(false, true) == std::pair<float, float>(width, width / 2));
}

TEST_CASE("nanoGPT's ckpt.pt is a model by itself, or in a folder without config.json") {
    using namespace torch_bytes;
    const TemporaryFolder scratch;
    const std::string state = dictionary(
        {{"_orig_mod.transformer.wte.weight", torch_bytes::tensor(storage("FloatStorage", "0", 16), 0, {3, 2}, {2, 1})},
         {"_orig_mod.transformer.wpe.weight", torch_bytes::tensor(storage("FloatStorage", "0", 16), 6, {4, 2}, {2, 1})},
         {"_orig_mod.transformer.ln_f.weight", torch_bytes::tensor(storage("FloatStorage", "0", 16), 14, {2}, {1})},
         {"_orig_mod.lm_head.weight", torch_bytes::tensor(storage("FloatStorage", "0", 16), 0, {3, 2}, {2, 1})}});
    const auto checkpoint = [&](const std::string& args) {
        return file(dictionary({{"model", state}, {"model_args", args}}), {floats(random_values<float>())});
    };
    const auto args = [](int64_t vocabulary) {
        return dictionary({{"n_layer", "K\1"},
                           {"n_head", "K\1"},
                           {"n_embd", "K\2"},
                           {"block_size", "K\4"},
                           {"vocab_size", torch_bytes::integer(vocabulary)},
                           {"bias", "\x89"}});
    };
    write_bytes(scratch / "ckpt.pt", checkpoint(args(3)));
    for (const std::string& name : {scratch.path(), scratch / "ckpt.pt"}) {
        ModelFolder model(name);
        CHECK(model.config().V == 3);
        CHECK(model.config().n_ctx == 4);
        CHECK(model.config().end_of_text == -1);
        CHECK(values_in<float>(model) == random_values<float>());
        CHECK(model.notes().empty());
        CHECK(model.config().activation == Activation::gelu_erf);
        CHECK(model.lnfree().is_null());
    }
    const auto refusal = [&](const std::string& bytes) {
        write_bytes(scratch / "ckpt.pt", bytes);
        return message_of<BadInput>([&] { ModelFolder(scratch / "ckpt.pt"); });
    };
    CHECK(refusal(checkpoint(args(50304))).empty());
    CHECK(ModelFolder(scratch.path()).config().end_of_text == 50256);
    CHECK(contains(refusal(checkpoint(args(-3))), "vocab_size is -3"));
    CHECK(contains(refusal(checkpoint(dictionary({}))), "model_args have no n_embd"));
    CHECK(contains(refusal(file(state, {floats(random_values<float>())})), "without the \"model_args\""));
}

TEST_CASE("tensors that do not fit the table are named") {
    const TemporaryFolder scratch;
    write_tiny(scratch / "m", ModelForm::checkpoint, random_values<float>());
    ModelFolder folder(scratch / "m");
    const auto refusal = [&](const std::vector<Tensor>& table) {
        return message_of<BadInput>([&] { folder.tensors(table); });
    };
    std::vector<Tensor> table = tiny_table();
    table.push_back({"ln_f.bias", {2}, false, 16, 2});
    CHECK(contains(refusal(table), "tensor ln_f.bias is missing"));
    table = tiny_table();
    table[1].shape = {4, 3};
    CHECK(contains(refusal(table), "tensor wpe.weight has shape [4,2], but config.json asks for [4,3]"));
    table = tiny_table();
    table.pop_back();
    CHECK(contains(refusal(table), "tensor \"ln_f.weight\" is not part of the model"));
}

TEST_CASE("weights that are not finite are refused by tensor and element") {
    const TemporaryFolder scratch;
    for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
        std::vector<float> values = random_values<float>();
        values[6 + 3] = bad;
        write_tiny(scratch / "m", ModelForm::checkpoint, values);
        ModelFolder folder(scratch / "m");
        CHECK(contains(message_of<BadInput>([&] { values_in<float>(folder); }),
                       "tensor wpe.weight holds a value that is not finite at element 3"));
    }
}

TEST_CASE("lnfree.json of another version is refused") {
    CHECK(parse_lnfree_json(R"({"version": 1})", "x").at("version") == 1);
    CHECK(contains(message_of<BadInput>([] { parse_lnfree_json(R"({"version": 2})", "x"); }),
                   "x: version 2 is not supported; this program reads version 1"));
    for (const char* text : {"[]", "{}", R"({"version": "1"})"})
        CHECK(message_of<BadInput>([&] { parse_lnfree_json(text, "x"); }) == "x: not a lnfree.json (no version)");
}

TEST_CASE("the folder of the model cannot be written over") {
    const TemporaryFolder scratch;
    fs::create_directories(scratch / "runs/base");
    require_other_folder(scratch / "new", scratch / "runs/base");
    require_other_folder(scratch / "runs/base/sub", scratch / "runs/base");
    require_other_folder(scratch / "runs", "");
    CHECK(contains(message_of<BadInput>([&] { require_other_folder(scratch / "runs/base/", scratch / "runs/base"); }),
                   "is the --model folder itself"));
    CHECK(contains(message_of<BadInput>([&] { require_other_folder(scratch / "runs", scratch / "runs/base"); }),
                   "holds the --model folder"));
}
