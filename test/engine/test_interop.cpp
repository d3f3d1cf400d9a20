// Folders that transformers' own save_pretrained wrote (test/interop/make_fixtures.py), read by the engine and held
// against the logits that transformers computes from them. `make test-interop` does the same with the clients at hand.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/error.h"
#include "data/json.h"
#include "data/model_card.h"
#include "data/model_folder.h"
#include "data/random.h"
#include "data/safetensors.h"
#include "data/text.h"
#include "dev/commands/commands.h"
#include "dev/engine.h"
#include "dev/method.h"
#include "dev/run/models.h"
#include "test/file_helpers.h"
#include "test/quiet.h"
#include "test/test_models.h"

using namespace lnfree;
namespace fs = std::filesystem;

static const std::string hf_fixtures = "test/fixtures/hf/";

static std::vector<real> values_of(const SafetensorsFile& file, const std::string& name) {
    const TensorView* tensor = file.find(name);
    REQUIRE(tensor != nullptr);
    std::vector<real> values(tensor->count());
    copy_tensor(*tensor, values.data());
    return values;
}

// The recorded tokens (T) and logits (T,V) of a fixture.
struct Recorded {
    std::vector<int32_t> tokens;
    std::vector<real> logits;

    explicit Recorded(const std::string& name) {
        const SafetensorsFile file(hf_fixtures + name + ".safetensors");
        for (const real token : values_of(file, "tokens")) tokens.push_back(static_cast<int32_t>(token));
        logits = values_of(file, "logits");
    }
};

static std::vector<real> logits_of(const std::string& folder, const std::vector<int32_t>& tokens) {
    const LoadedModel loaded = load_model(folder);
    std::vector<real> out(tokens.size() * static_cast<size_t>(loaded.model->config.V));
    loaded.model->logits(out.data(), tokens.data(), 1, static_cast<int64_t>(tokens.size()));
    return out;
}

// Exports and returns the new folder's lnfree.json.
static Json export_model(const std::string& model, const std::string& out, const std::string& form,
                         const std::string& dtype = "f32") {
    const Quiet quiet(1);
    ExportOptions o;
    o.model = model;
    o.out = out;
    o.form = form;
    o.dtype = dtype;
    const int status = export_command(o);
    CHECK(status == 0);
    return parse_json(read_bytes(out + "/lnfree.json"), "test");
}

TEST_CASE("text is shown up to its last whole character") {
    const std::string a = "a", two = "\xC3\xA9", three = "\xE2\x82\xAC", four = "\xF0\x9F\x98\x80";
    CHECK(complete_utf8_prefix("") == 0);
    CHECK(complete_utf8_prefix(a) == 1);
    for (const std::string& character : {two, three, four}) {
        CHECK(complete_utf8_prefix(a + character) == 1 + character.size());
        for (size_t bytes = 1; bytes < character.size(); bytes++) {
            CAPTURE(bytes);
            CHECK(complete_utf8_prefix(a + character.substr(0, bytes)) == 1);
        }
    }
    CHECK(complete_utf8_prefix(std::string(5, '\x80')) == 5);  // no character begins there: shown as it is
}

// The object that a command prints with --json.
template <class Command>
static Json printed_by(const Command& command) {
    const TemporaryFolder scratch;
    std::fflush(stdout);
    const int kept = dup(1);
    REQUIRE(std::freopen((scratch / "out").c_str(), "w", stdout) != nullptr);
    const int status = command();
    std::fflush(stdout);
    dup2(kept, 1);
    close(kept);
    CHECK(status == 0);
    return parse_json(read_bytes(scratch / "out"), "test");
}

TEST_CASE("folders written by save_pretrained give transformers' logits") {
    for (const char* name : {"f32", "f32_sharded", "f16_inner", "bf16_sharded", "no_prefix", "masks", "untied_gelu",
                             "neox", "neox_sharded", "llama", "llama_biases"}) {
        CAPTURE(name);
        const Recorded recorded(name);
        CHECK(largest_difference(logits_of(hf_fixtures + name, recorded.tokens), recorded.logits) < 1e-4);
        CHECK(load_model(hf_fixtures + name).model->sites.removed() == 0);
    }
}

TEST_CASE("the comparison can tell: another epsilon or another token is not within its bounds") {
    const Recorded recorded("no_prefix");  // epsilon 0.03
    LoadedModel loaded = load_model(hf_fixtures + "no_prefix");
    loaded.model->config.epsilon = 1e-5;
    std::vector<real> out(recorded.logits.size());
    loaded.model->logits(out.data(), recorded.tokens.data(), 1, static_cast<int64_t>(recorded.tokens.size()));
    CHECK(largest_difference(out, recorded.logits) > 1e-3);
    std::vector<int32_t> tokens = recorded.tokens;
    tokens[0] ^= 1;
    CHECK(largest_difference(logits_of(hf_fixtures + "no_prefix", tokens), recorded.logits) > 1e-3);
}

TEST_CASE("an end-of-text token outside the vocabulary, transformers' default, is none") {
    CHECK(load_model(hf_fixtures + "f32_sharded").model->config.end_of_text == -1);  // 50256 of 47
    CHECK(load_model(hf_fixtures + "f32").model->config.end_of_text == 52);          // of 53
    CHECK(load_model(hf_fixtures + "bf16_sharded").model->config.end_of_text == 0);
    const TemporaryFolder scratch;
    export_model(hf_fixtures + "f32_sharded", scratch / "hf", "hf");
    const Json config = read_json(scratch / "hf/config.json");
    REQUIRE(config.contains("eos_token_id"));
    CHECK(config["eos_token_id"].is_null());
}

TEST_CASE("LayerNorm-free folders that others published are recognised, keep their logits and export in every form") {
    for (const std::string name : {"layernorm_free", "layernorm_free_bf16", "neox_free", "llama_free"}) {
        CAPTURE(name);
        const bool gpt2 = begins_with(name, "layernorm");
        const TemporaryFolder scratch;
        const Recorded recorded(name);
        CHECK_FALSE(fs::exists(hf_fixtures + name + "/lnfree.json"));
        LoadedModel loaded = load_model(hf_fixtures + name);
        CHECK(loaded.model->sites.all_linear_everywhere());
        CHECK(largest_difference(logits_of(hf_fixtures + name, recorded.tokens), recorded.logits) < 1e-4);
        for (const char* form : {"hf", "folded"}) {
            CAPTURE(form);
            const Json record = export_model(hf_fixtures + name, scratch / form, form);
            CHECK(record["layernorm_free"] == true);
            CHECK(largest_difference(logits_of(scratch / form, recorded.tokens), recorded.logits) < 1e-4);
            const std::string card = read_bytes(scratch / (std::string(form) + "/README.md"));
            CHECK(contains(card, "## Loading"));
            CHECK(contains(card, "center_unembed") == gpt2);
            const char* const epsilon = gpt2                  ? "layer_norm_epsilon"
                                        : name == "neox_free" ? "layer_norm_eps"
                                                              : "rms_norm_eps";
            CHECK(contains(card, epsilon) == (std::string(form) == "hf"));
        }
    }
}

TEST_CASE("a GPT-2 with the exact GELU and a head of its own goes out as it came") {
    const TemporaryFolder scratch;
    export_model(hf_fixtures + "untied_gelu", scratch / "hf", "hf");
    const Json config = read_json(scratch / "hf/config.json");
    CHECK(config["activation_function"] == "gelu");
    CHECK(config["tie_word_embeddings"] == false);
    const Recorded recorded("untied_gelu");
    CHECK(largest_difference(logits_of(scratch / "hf", recorded.tokens), recorded.logits) < 1e-4);
}

TEST_CASE("a card has one loading section, the one of its form, however often it is exported") {
    const std::string card = "# Mine\n\n## Loading\n\nold words\n\n## Protocol\n\ntable\n";
    ModelConfig of_folded, of_stock;
    of_folded.form = ModelForm::folded;
    const std::string folded = card_for_form(card, of_folded);
    CHECK(contains(folded, "no norm at all"));
    CHECK_FALSE(contains(folded, "old words"));
    CHECK(contains(folded, "\n\n## Protocol\n\ntable\n"));
    const std::string stock = card_for_form(folded, of_stock);
    CHECK_FALSE(contains(stock, "no norm at all"));
    CHECK(card_for_form(stock, of_folded) == folded);
    const std::string added = card_for_form("---\nlicense: mit\n---\n# Theirs", of_folded);
    CHECK(added.find("---\nlicense: mit\n---\n# Theirs\n\n## Loading\n\n") == 0);
    CHECK(card_for_form(added, of_folded) == added);
}

TEST_CASE("half-precision exports stay close to the model and the impossible one is refused") {
    const TemporaryFolder scratch;
    const Recorded recorded("layernorm_free");
    const struct {
        const char *form, *dtype;
        double error;
    } cases[] = {{"hf", "bf16", 0.1}, {"folded", "bf16", 0.1}, {"folded", "f16", 0.01}};
    for (const auto& c : cases) {
        CAPTURE(c.form);
        CAPTURE(c.dtype);
        const std::string out = scratch / (std::string(c.form) + c.dtype);
        export_model(hf_fixtures + "layernorm_free", out, c.form, c.dtype);
        const double difference = largest_difference(logits_of(out, recorded.tokens), recorded.logits);
        CHECK(difference < c.error);
        CHECK(difference > 0);
    }
    CHECK(contains(
        message_of<BadInput>([&] { export_model(hf_fixtures + "layernorm_free", scratch / "f16", "hf", "f16"); }),
        "f16"));
    CHECK_FALSE(fs::exists(scratch / "f16"));
}

static void write_shard(const std::string& path, const std::vector<int32_t>& tokens) {
    std::string bytes(1024, '\0');
    const int32_t header[3] = {20240520, 1, static_cast<int32_t>(tokens.size())};
    std::memcpy(bytes.data(), header, sizeof header);
    for (const int32_t token : tokens) bytes += {static_cast<char>(token), '\0'};
    write_bytes(path, bytes);
}

TEST_CASE("eval --logits writes the first sequence's logits") {
    const TemporaryFolder scratch;
    const Recorded recorded("f32");
    const std::string shard = scratch / "tokens.bin";
    write_shard(shard, recorded.tokens);
    EvalOptions o;
    o.models = {hf_fixtures + "f32"};
    o.data = {shard};
    o.seq = static_cast<int64_t>(recorded.tokens.size()) - 1;
    o.logits = scratch / "new/logits.safetensors";
    o.json_output = true;
    const Json result = printed_by([&] { return eval_command(o); });
    std::vector<real> expected = recorded.logits;
    expected.resize(expected.size() - 53);  // the last token is only predicted
    const SafetensorsFile written(o.logits);
    CHECK(written.find("logits")->shape == std::vector<uint64_t>{40, 53});
    CHECK(largest_difference(values_of(written, "logits"), expected) < 1e-4);
    double loss = 0;
    for (size_t t = 0; t < 40; t++) {
        double sum = 0;
        for (size_t v = 0; v < 53; v++) sum += std::exp(static_cast<double>(expected[t * 53 + v]));
        loss += std::log(sum) - static_cast<double>(expected[t * 53 + static_cast<size_t>(recorded.tokens[t + 1])]);
    }
    CHECK(result["loss"].get<double>() == doctest::Approx(loss / 40).epsilon(1e-5));

    CHECK(contains(message_of<BadInput>([&] { eval_command(o); }), "already exists"));
    o.models.push_back(o.models[0]);
    CHECK(contains(message_of<BadInput>([&] { eval_command(o); }), "--logits"));
}

TEST_CASE(
    "eval --baseline: divergence and agreement are those of the two models' --logits, losses stay what they were") {
    const TemporaryFolder scratch;
    const std::vector<int32_t> tokens = Recorded("f32").tokens;
    write_shard(scratch / "tokens.bin", tokens);
    EvalOptions o;
    o.data = {scratch / "tokens.bin"};
    o.seq = static_cast<int64_t>(tokens.size()) - 1;
    o.json_output = true;
    // The fixture, and the same with other weights.
    const LoadedModel original = load_model(hf_fixtures + "f32");
    const int64_t V = original.model->config.V;
    const std::unique_ptr<Engine> changed = make_reference(original.model->config);
    SplitMix64 random(3);
    for (int64_t i = 0; i < changed->parameters(); i++)
        changed->params.data()[i] = original.model->params.data()[i] + static_cast<real>(0.05 * random.normal());
    ModelConfig config;
    const std::vector<TensorRecipe> recipes = hugging_face_recipes(*changed, config);
    write_model(scratch / "changed", config, recipes, WeightType::f32, {{"version", kFormatVersion}}, nullptr, "");

    std::vector<std::vector<real>> logits;
    std::vector<double> losses;
    for (const std::string& folder : {hf_fixtures + "f32", scratch / "changed"}) {
        o.models = {folder};
        o.logits = scratch / ("logits" + std::to_string(logits.size()));
        losses.push_back(printed_by([&] { return eval_command(o); })["loss"].number());
        logits.push_back(values_of(SafetensorsFile(o.logits), "logits"));
    }
    double kl = 0, agreement = 0;
    for (int64_t t = 0; t < o.seq; t++) {
        const real *a = logits[0].data() + t * V, *b = logits[1].data() + t * V;
        double sum_a = 0, sum_b = 0;
        for (int64_t v = 0; v < V; v++) {
            sum_a += std::exp(static_cast<double>(a[v]));
            sum_b += std::exp(static_cast<double>(b[v]));
        }
        for (int64_t v = 0; v < V; v++)
            kl += std::exp(static_cast<double>(a[v])) / sum_a *
                  (static_cast<double>(a[v]) - static_cast<double>(b[v]) - std::log(sum_a) + std::log(sum_b));
        agreement += std::max_element(a, a + V) - a == std::max_element(b, b + V) - b ? 1 : 0;
    }
    kl /= static_cast<double>(o.seq);
    agreement /= static_cast<double>(o.seq);
    CHECK(kl > 0.001);

    // The baseline may stand anywhere, the interval of one sequence has no width.
    o.logits.clear();
    o.baseline = hf_fixtures + "f32";
    o.models = {scratch / "changed", o.baseline};
    Json result = printed_by([&] { return eval_command(o); })["models"];
    const Json& f = result[0]["faithfulness"];
    CHECK(f["kl"].get<double>() == doctest::Approx(kl).epsilon(1e-4));
    CHECK(f["kl_interval"] == Json::array({f["kl"], f["kl"]}));
    CHECK(f["agreement"].get<double>() == doctest::Approx(agreement).epsilon(1e-12));
    CHECK(f["loss_minus_baseline"].get<double>() == doctest::Approx(losses[1] - losses[0]).epsilon(1e-4));
    CHECK(result[0]["loss"].get<double>() == doctest::Approx(losses[1]).epsilon(1e-6));
    CHECK(result[0]["baseline"] == o.baseline);
    CHECK_FALSE(result[1].contains("faithfulness"));
    CHECK(result[1]["loss"] == losses[0]);

    // What cannot be compared says why, and is evaluated all the same.
    o.models.push_back(hf_fixtures + "no_prefix");
    result = printed_by([&] { return eval_command(o); })["models"];
    CHECK(result[2]["faithfulness"].is_null());
    CHECK(result[2]["not_compared"] == "another vocabulary");
    CHECK(result[2]["loss"].number() > 0);
    o.json_output = false;
    const Quiet quiet(1);
    CHECK(eval_command(o) == 0);
}
