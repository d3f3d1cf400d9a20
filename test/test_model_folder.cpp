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

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

GPT2Config tiny_config(ModelForm form) {
    GPT2Config c;
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
    write_model_folder(folder, tiny_config(form),
                       recipes_of(values, form == ModelForm::hugging_face ? "transformer." : ""), dtype_of<T>(),
                       {{"version", kFormatVersion}, {"note", "σ"}}, tokenizer, "# A card\n");
}

template <class T>
std::vector<T> values_in(const ModelFolder& folder) {
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
        const std::string path = scratch / model_type_of(form);
        write_tiny(path, form, values, bytes.get());
        const ModelFolder folder(path);
        CHECK(folder.config().form == form);
        CHECK(folder.config().V == 3);
        CHECK(folder.config().end_of_text == 2);
        CHECK(values_in<T>(folder) == values);
        CHECK(folder.lnfree().at("note") == "σ");
        REQUIRE(folder.tokenizer() != nullptr);
        CHECK(folder.tokenizer()->fingerprint() == bytes->fingerprint());
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
    const std::vector<TensorView> views = first.tensors(tiny_table());
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
    CHECK(folder.tokenizer() == nullptr);
}

TEST_CASE("what is no model folder is refused with what is needed") {
    const TemporaryFolder scratch;
    const std::string needed = "; --model takes a folder with config.json and model.safetensors";
    CHECK(message_of<BadInput>([&] { ModelFolder(scratch / "nowhere"); }) ==
          scratch / "nowhere" + ": no such folder" + needed);
    CHECK(message_of<BadInput>([&] { ModelFolder(scratch.path()); }) ==
          scratch.path() + ": has no config.json" + needed);
    write_tiny(scratch / "m", ModelForm::hugging_face, random_values<float>());
    fs::remove(scratch / "m/model.safetensors");
    CHECK(contains(message_of<BadInput>([&] { ModelFolder(scratch / "m"); }), "holds no weights"));
}

TEST_CASE("tensors that do not fit the table are named") {
    const TemporaryFolder scratch;
    write_tiny(scratch / "m", ModelForm::checkpoint, random_values<float>());
    const ModelFolder folder(scratch / "m");
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
    CHECK(contains(refusal(table), "tensor \"ln_f.weight\" is not part of a GPT-2 model"));
}

TEST_CASE("a head is accepted where it is the embedding, and only where heads are tied") {
    const std::vector<float> wte = {1, 2, 3, 4, 5, 6}, other = {1, 2, 3, 4, 5, 7};
    const auto view = [](const std::string& name, const std::vector<float>& values) {
        TensorView v;
        v.name = name;
        v.shape = {3, 2};
        v.data = reinterpret_cast<const unsigned char*>(values.data());
        v.bytes = values.size() * sizeof(float);
        return v;
    };
    const std::vector<Tensor> table = {{"wte.weight", {3, 2}, true, 0, 6}};
    const auto match = [&](const std::vector<TensorView>& found, bool tied) {
        return message_of<BadInput>([&] { match_tensors(table, found, tied, "m"); });
    };
    CHECK(match({view("transformer.wte.weight", wte), view("lm_head.weight", wte)}, true).empty());
    CHECK(contains(match({view("wte.weight", wte), view("lm_head.weight", other)}, true), "untied head"));
    CHECK(contains(match({view("wte.weight", wte), view("lm_head.weight", wte)}, false), "lm_head.weight"));
    CHECK(
        match({view("wte.weight", wte), view("h.0.attn.bias", wte), view("h.11.attn.masked_bias", wte)}, true).empty());
    CHECK(contains(match({view("wte.weight", wte), view("transformer.wte.weight", wte)}, true), "is there twice"));
}

TEST_CASE("weights that are not finite are refused by tensor and element") {
    const TemporaryFolder scratch;
    for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
        std::vector<float> values = random_values<float>();
        values[6 + 3] = bad;
        write_tiny(scratch / "m", ModelForm::checkpoint, values);
        const ModelFolder folder(scratch / "m");
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
