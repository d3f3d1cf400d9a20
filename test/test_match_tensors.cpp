// data/match_tensors.h: a GPT-2's tensors are found under the names that people give them, and nothing else is taken for them.
#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

#include "data/match_tensors.h"
#include "test/file_helpers.h"

using namespace lnfree;

namespace {

// One block of width 2, less what nothing here depends on.
const std::vector<Tensor> table = {
    {"wte.weight", {3, 2}, true, 0, 6},
    {"wpe.weight", {4, 2}, true, 6, 8},
    {"h.0.ln_1.weight", {2}, false, 14, 2},
    {"h.0.ln_1.bias", {2}, false, 16, 2},
    {"h.0.attn.c_attn.weight", {2, 6}, true, 18, 12},
    {"h.0.attn.c_attn.bias", {6}, false, 30, 6},
    {"h.0.attn.c_proj.weight", {2, 2}, true, 36, 4},
    {"h.0.attn.c_proj.bias", {2}, false, 40, 2},
    {"ln_f.weight", {2}, false, 42, 2},
    {"ln_f.bias", {2}, false, 44, 2},
};

const std::vector<float> values = [] {
    std::vector<float> numbers(46);
    for (size_t i = 0; i < numbers.size(); i++) numbers[i] = static_cast<float>(i);
    return numbers;
}();

template <class T>
TensorView view_of(const std::string& name, const std::vector<uint64_t>& shape, const T* values, DType dtype) {
    TensorView view;
    view.name = name;
    view.shape = shape;
    view.dtype = dtype;
    view.data = reinterpret_cast<const unsigned char*>(values);
    view.bytes = view.count() * sizeof(T);
    return view;
}

// The table's tensors, as GPT2LMHeadModel names them. A test adds, drops and renames.
std::map<std::string, TensorView> stock() {
    std::map<std::string, TensorView> tensors;
    for (const Tensor& t : table)
        tensors["transformer." + t.name] = view_of("", t.shape, values.data() + t.offset, DType::F32);
    return tensors;
}

struct Result {
    std::vector<std::vector<float>> tensors;
    std::vector<std::string> notes;
    std::string refusal;
};

Result match(const std::map<std::string, TensorView>& found, bool tied_head = true) {
    std::vector<TensorView> views;
    for (const auto& [name, view] : found) {
        views.push_back(view);
        views.back().name = name;
    }
    Result result;
    result.refusal = message_of<BadInput>([&] {
        ModelConfig c;
        c.L = 1;
        c.tied = tied_head;
        std::vector<Tensor> wanted = table;
        if (!tied_head) wanted.push_back({"lm_head.weight", {3, 2}, true, 46, 6});
        for (const MatchedTensor& matched : match_stock_tensors(c, {}, wanted, views, "m", result.notes)) {
            REQUIRE(matched.size() == 1);
            result.tensors.emplace_back(matched[0].view.count());
            copy_tensor(matched[0].view, result.tensors.back().data());
        }
    });
    return result;
}

std::vector<std::vector<float>> whole() {
    std::vector<std::vector<float>> tensors;
    for (const Tensor& t : table) tensors.emplace_back(values.begin() + t.offset, values.begin() + t.offset + t.size);
    return tensors;
}

bool is_whole(const Result& result) {
    CAPTURE(result.refusal);
    CHECK(result.refusal.empty());
    return result.tensors == whole();
}

}  // namespace

TEST_CASE("names are found behind every prefix that all of them have, and behind those of wrapped modules") {
    for (const std::string before : {"transformer.", "", "module.transformer.", "_orig_mod.transformer.", "model.",
                                     "module._orig_mod.transformer.", "backbone.gpt2.transformer."}) {
        CAPTURE(before);
        std::map<std::string, TensorView> found;
        for (const auto& [name, view] : stock()) found[before + name.substr(12)] = view;
        const std::string beside = before.substr(0, before.size() < 12 ? 0 : before.size() - 12);
        found[beside + "lm_head.weight"] = found[before + "wte.weight"];
        const Result result = match(found);
        CHECK(is_whole(result));
        CHECK(result.notes.empty());
    }
    std::map<std::string, TensorView> wrapped;
    for (const auto& [name, view] : stock()) {
        std::string inside = name;
        const size_t block = name.find("h.0.");
        if (block != std::string::npos) inside.insert(block + 4, "_fsdp_wrapped_module._checkpoint_wrapped_module.");
        wrapped["_fsdp_wrapped_module." + inside] = view;
    }
    CHECK(is_whole(match(wrapped)));
}

TEST_CASE("a tied head may be there alone, or beside the embedding in any type that has its values") {
    auto found = stock();
    found["lm_head.weight"] = found["transformer.wte.weight"];
    CHECK(is_whole(match(found)));
    found.erase("transformer.wte.weight");
    CHECK(is_whole(match(found)));
    CHECK(contains(match(found, false).refusal, "wte.weight is missing"));
    CHECK(contains(match(found, false).refusal, "tie_word_embeddings"));
    CHECK(contains(match(stock(), false).refusal, "lm_head.weight is missing"));

    found = stock();
    const std::vector<double> wide(values.begin(), values.begin() + 6), other = {0, 1, 2, 3, 4, 5.5};
    const std::vector<uint16_t> half = {0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500};
    found["lm_head.weight"] = view_of("", {3, 2}, wide.data(), DType::F64);
    CHECK(is_whole(match(found)));
    found["lm_head.weight"] = view_of("", {3, 2}, half.data(), DType::F16);
    CHECK(is_whole(match(found)));
    found["lm_head.weight"] = view_of("", {3, 2}, other.data(), DType::F64);
    CHECK(contains(match(found).refusal, "lm_head.weight differs from wte.weight"));
    found.erase("transformer.wte.weight");
    found["lm_head.weight"].shape = {2, 3};
    CHECK(contains(match(found).refusal, "lm_head.weight has shape [2,3]"));
    found.erase("lm_head.weight");
    CHECK(contains(match(found).refusal, "wte.weight is missing"));
}

TEST_CASE("an untied head is a tensor of its own, and has to be there") {
    auto found = stock();
    const std::vector<float> head = {6, 5, 4, 3, 2, 1};
    found["lm_head.weight"] = view_of("", {3, 2}, head.data(), DType::F32);
    auto expected = whole();
    expected.push_back(head);
    CHECK(match(found, false).tensors == expected);
    CHECK(contains(match(found).refusal, "set \"tie_word_embeddings\" to false"));
    found["lm_head.weight"].shape = {2, 3};
    CHECK(contains(match(found, false).refusal, "lm_head.weight has shape [2,3], but config.json asks for [3,2]"));
}

TEST_CASE("biases of a kind that the model does not have are zeros; one that is missing alone is damage") {
    auto found = stock();
    for (const char* name : {"h.0.attn.c_attn.bias", "h.0.ln_1.bias", "ln_f.bias"})
        found.erase(std::string("transformer.") + name);
    const Result result = match(found);
    CHECK(result.refusal.empty());
    auto expected = whole();
    expected[3] = expected[9] = {0, 0};
    expected[5] = std::vector<float>(6);
    CHECK(result.tensors == expected);
    REQUIRE(result.notes.size() == 1);
    CHECK(contains(result.notes[0], "attn.c_attn.bias"));
    CHECK(contains(result.notes[0], "ln_*.bias"));
    CHECK(contains(result.notes[0], "zeros"));

    found = stock();
    found.erase("transformer.ln_f.bias");
    CHECK(contains(match(found).refusal, "ln_f.bias is missing"));
    found = stock();
    found.erase("transformer.ln_f.weight");
    CHECK(contains(match(found).refusal, "ln_f.weight is missing"));
}

TEST_CASE("weights of nn.Linear are read transposed, the square ones too") {
    auto found = stock();
    std::vector<float> c_attn(12), c_proj(4);
    for (size_t i = 0; i < 2; i++) {
        for (size_t j = 0; j < 6; j++) c_attn[j * 2 + i] = values[18 + i * 6 + j];
        for (size_t j = 0; j < 2; j++) c_proj[j * 2 + i] = values[36 + i * 2 + j];
    }
    found["transformer.h.0.attn.c_attn.weight"] = view_of("", {6, 2}, c_attn.data(), DType::F32);
    found["transformer.h.0.attn.c_proj.weight"] = view_of("", {2, 2}, c_proj.data(), DType::F32);
    CHECK(is_whole(match(found)));
}

TEST_CASE("heads of other tasks are passed over and named; masks are passed over") {
    for (const std::string before : {"transformer.", ""}) {
        std::map<std::string, TensorView> found;
        for (const auto& [name, view] : stock()) found[before + name.substr(12)] = view;
        found[before + "h.0.attn.bias"] = found[before + "h.0.attn.masked_bias"] = found[before + "wte.weight"];
        found["score.weight"] = found["v_head.summary.bias"] = found[before + "wte.weight"];
        const Result result = match(found);
        CHECK(is_whole(result));
        REQUIRE(result.notes.size() == 1);
        CHECK(contains(result.notes[0], "\"score.weight\""));
        CHECK(contains(result.notes[0], "\"v_head.summary.bias\""));
        CHECK_FALSE(contains(result.notes[0], "masked"));
        CHECK(is_one_line(result.notes[0]));
    }
}

TEST_CASE("what changes the model is refused, with what helps") {
    struct Case {
        std::string name, expected;
    };
    const Case cases[] = {
        {"transformer.h.0.crossattention.c_attn.weight",
         "\"transformer.h.0.crossattention.c_attn.weight\" is not part"},
        {"transformer.h.0.attn.c_attn.lora_A.default.weight", "merge_and_unload"},
        {"lm_head.lora_B.weight", "merge_and_unload"},
        {"lm_head.bias", "\"lm_head.bias\" is not part"},
        {"transformer.h.1.ln_1.weight", "n_layer does not count"},
        {"transformer.h.12.attn.bias", "n_layer does not count"},
        {"wte.weight", "is there twice"},
        {"ref_model.transformer.wpe.weight", "holds two models"},
    };
    for (const Case& other : cases) {
        CAPTURE(other.name);
        auto found = stock();
        found[other.name] = found["transformer.ln_f.weight"];
        CHECK(contains(match(found).refusal, other.expected));
        CHECK(is_one_line(match(found).refusal));
    }
    auto found = stock();
    found["transformer.wpe.weight"].shape = {2, 4};
    CHECK(contains(match(found).refusal, "wpe.weight has shape [2,4], but config.json asks for [4,2]"));
    found.erase("transformer.wpe.weight");
    CHECK(contains(match(found).refusal, "wpe.weight is missing"));
    CHECK(contains(match({}).refusal, "wpe.weight is missing"));
}

TEST_CASE("this program's own files have the table's names and no others") {
    std::vector<TensorView> found;
    for (const Tensor& t : table) found.push_back(view_of(t.name, t.shape, values.data() + t.offset, DType::F32));
    const auto refusal = [&] { return message_of<BadInput>([&] { match_tensors(table, found, "m"); }); };
    CHECK(refusal().empty());
    found.push_back(view_of("lm_head.weight", {3, 2}, values.data(), DType::F32));
    CHECK(contains(refusal(), "\"lm_head.weight\" is not part"));
    found.pop_back();
    found.back().name = "transformer.ln_f.bias";
    CHECK(contains(refusal(), "ln_f.bias is missing"));
}
