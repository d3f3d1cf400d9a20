// `analyze`: what must hold for any model, and the report. test_analysis_oracle.cpp holds the numbers against an independent computation.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "data/error.h"
#include "data/json.h"
#include "data/model_folder.h"
#include "data/random.h"
#include "data/shards.h"
#include "data/svg_chart.h"
#include "data/svg_heat_map.h"
#include "data/tokenizer.h"
#include "dev/analysis/attribution.h"
#include "dev/analysis/command.h"
#include "dev/analysis/confidence.h"
#include "dev/analysis/explain.h"
#include "dev/analysis/loss.h"
#include "dev/analysis/norms.h"
#include "dev/analysis/patching.h"
#include "dev/analysis/report.h"
#include "dev/engine.h"
#include "dev/method.h"
#include "dev/run/evaluate.h"
#include "dev/run/models.h"
#include "dev/run/statistics.h"
#include "test/alike.h"
#include "test/file_helpers.h"
#include "test/test_models.h"

using namespace lnfree;
using namespace lnfree::analysis;

namespace {

const ModelConfig kAnalysed = shape_of(3, 3, 15, 37, 13, 22);

std::unique_ptr<Engine> random_model(uint64_t seed, const ModelConfig& config = kAnalysed) {
    auto model = make_reference(config);
    randomise(*model, seed);
    return model;
}

// A GPT-2's, and others.
std::vector<ModelConfig> shapes() {
    std::vector<ModelConfig> all = other_shapes();
    all.insert(all.begin(), kAnalysed);
    return all;
}

// a as in Site: FakeLN, or on the way there.
void make_linear(Engine& model, double a = 1) {
    double sigma = 0.5;
    for (Site& site : model.sites.all) {
        site.a = a;
        site.sigma_bar = sigma += 0.1;
    }
}

Sample random_sample(int64_t sequences, int64_t T, int64_t V) {
    SplitMix64 random(5);
    Sample s;
    s.T = T;
    s.sequences = sequences;
    for (int64_t i = 0; i < sequences; i++) s.windows.push_back(static_cast<uint64_t>(i));
    for (int64_t i = 0; i < sequences * T; i++) {
        s.inputs.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(V))));
        s.targets.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(V))));
    }
    return s;
}

Procedure batches_of(int64_t batch) {
    Procedure p;
    p.batch = batch;
    return p;
}

// The same but for rounding.
void check_alike(const Json& a, const Json& b, double allowed) {
    lnfree::check_alike(a, b, allowed, 1e-3);
}

}  // namespace

TEST_CASE(
    "the direct effect is what the engine's own last norm and unembedding make of the stream without a component") {
    for (const auto& [shape, a] :
         {std::pair{0, 0.0}, {0, 0.4}, {0, 1.0}, {1, 0.0}, {2, 0.0}, {2, 1.0}, {4, 0.4}, {5, 1.0}}) {
        CAPTURE(shape);
        CAPTURE(a);
        const auto made = random_model(3, shapes()[static_cast<size_t>(shape)]);
        Engine& model = *made;
        if (a > 0) make_linear(model, a);
        const int64_t N = 7, C = model.config.C, V = model.config.V;
        SplitMix64 random(9);
        std::vector<real> r(static_cast<size_t>(N * C)), c(r.size()), rest(r.size());
        for (size_t i = 0; i < r.size(); i++) {
            r[i] = static_cast<real>(random.normal());
            c[i] = static_cast<real>(random.normal());
            rest[i] = r[i] - c[i];
        }
        std::vector<real> with(static_cast<size_t>(N * V)), without(with.size());
        model.unembed_residual(without.data(), rest.data(), N);
        model.unembed_residual(with.data(), r.data(), N);
        std::vector<int32_t> no_tokens(static_cast<size_t>(N), -1);
        const FinalNorm norm = final_norm_of(model, no_tokens.data());
        for (int64_t n = 0; n < N; n++)
            for (int64_t v = 0; v < V; v += 5) {
                const Attribution got = attribute(norm, n, c.data() + n * C, model.weights().head + v * C, C);
                const double expected = static_cast<double>(with[static_cast<size_t>(n * V + v)]) -
                                        static_cast<double>(without[static_cast<size_t>(n * V + v)]);
                CHECK(got.direct_effect == doctest::Approx(expected).epsilon(1e-4).scale(0.1));
                if (a == 1) CHECK(std::abs(got.dla - got.direct_effect) < 1e-12);
            }
    }
}

TEST_CASE("attribution misses the direct effect of a model with norms and none of a model without") {
    for (const ModelConfig& config : shapes()) {
        const auto made = random_model(3, config);
        Engine& model = *made;
        const Sample sample = random_sample(5, 6, config.V);
        CHECK(measure_attribution(model, sample, batches_of(2))["nmae"].get<double>() > 1);
        make_linear(model);
        const Json free = measure_attribution(model, sample, batches_of(2));
        CHECK(free["nmae"].get<double>() < 1e-9);
        CHECK(free["nmae_embedding"].get<double>() < 1e-9);
        CHECK(free["nmae_head"].size() == static_cast<size_t>(config.L));
        CHECK(free["nmae_head"][0].size() == static_cast<size_t>(config.NH));
    }
}

TEST_CASE("heads' direct effects are those that explain finds, whatever they share") {
    for (const ModelConfig& config : shapes()) {
        const auto made = random_model(3, config);
        const int64_t T = 6, L = config.L, NH = config.NH;
        Sample sample = random_sample(1, T, config.V);
        std::fill(sample.targets.begin(), sample.targets.end(), 5);
        const Json j = measure_attribution(*made, sample, batches_of(1));
        std::vector<double> off(static_cast<size_t>(L * NH)), size(off.size());
        const ComponentOrder order(config);
        for (int64_t t = 0; t < T; t++) {
            const Explanation e = explain(*made, {{"", sample.inputs, t, 5, -1}}, {})[0];
            for (int64_t i = 0; i < L * NH; i++) {
                const int64_t c = order.head(i / NH, i % NH);
                off[static_cast<size_t>(i)] += std::abs(e.at_position()[c] - e.direct_effects[static_cast<size_t>(c)]);
                size[static_cast<size_t>(i)] += std::abs(e.direct_effects[static_cast<size_t>(c)]);
            }
        }
        for (size_t i = 0; i < off.size(); i++)
            CHECK(j["nmae_head"][i / static_cast<size_t>(NH)][i % static_cast<size_t>(NH)].get<double>() ==
                  doctest::Approx(100 * off[i] / size[i]).epsilon(1e-3));
    }
}

TEST_CASE("sinks are counted in the attention that explain shows, turned and shared as it is") {
    for (const ModelConfig& config : shapes()) {
        const auto made = random_model(3, config);
        randomise(*made, 3, 0.6);  // so that attention is not even
        const int64_t T = 6, L = config.L, NH = config.NH;
        const Sample sample = random_sample(1, T, config.V);
        const Json j = measure_sinks(*made, sample, batches_of(1));
        std::vector<double> counted(static_cast<size_t>(L));
        for (int64_t t = 1; t < T; t++) {
            const Explanation e = explain(*made, {{"", sample.inputs, t, 5, -1}}, {})[0];
            for (int64_t i = 0; i < L * NH; i++)
                counted[static_cast<size_t>(i / NH)] += e.attention[static_cast<size_t>(i * T)] >= 0.3;
        }
        for (size_t l = 0; l < counted.size(); l++)
            CHECK(j["per_layer_pairs"][l].get<double>() ==
                  doctest::Approx(counted[l] / static_cast<double>(NH * (T - 1))));
    }
}

TEST_CASE("taking a neuron out is what a model does whose neuron writes its mean as a bias") {
    for (const ModelConfig& config : shapes()) {
        if (!config.mlp_bias) continue;
        const auto made = random_model(3, config);
        Engine& model = *made;
        const Sample sample = random_sample(4, 6, config.V);
        const Json ablated = measure_confidence(model, sample, batches_of(4))["ablations"][0];
        const int64_t k = ablated["neurons"][0].get<int64_t>(), C = config.C, N = 4 * 6;
        double mean = 0;
        Probe probe;
        probe.mlp = [&](int64_t l, const real* hidden, const real*) {
            for (int64_t n = 0; n < N && l + 1 == config.L; n++)
                mean += static_cast<double>(hidden[n * config.n_inner + k]) / static_cast<double>(N);
        };
        model.trace(sample.inputs.data(), 4, 6, probe);
        const auto loss = [&] {
            return measure_loss({&model}, sample, batches_of(4))["models"][0]["loss"].get<double>();
        };
        const double before = loss();
        const std::string mlp = "h." + std::to_string(config.L - 1) + ".mlp.c_proj.";
        real *row = model.tensor(mlp + "weight") + k * C, *bias = model.tensor(mlp + "bias");
        for (int64_t c = 0; c < C; c++) {
            bias[c] += static_cast<real>(mean) * row[c];
            row[c] = 0;
        }
        CHECK(ablated["loss_change"].get<double>() == doctest::Approx(loss() - before).epsilon(1e-2).scale(1e-3));
    }
}

TEST_CASE("no measurement depends on how many sequences are taken at a time") {
    for (const ModelConfig& config : {kAnalysed, other_shapes()[2]}) {
        const auto made = random_model(3, config);
        Engine& model = *made;
        const Sample sample = random_sample(5, 6, model.config.V);
        for (const auto measure : {measure_attribution, measure_norms, measure_sinks, measure_confidence}) {
            const Json one = measure(model, sample, batches_of(1));
            check_alike(one, measure(model, sample, batches_of(2)), 1e-4);
            check_alike(one, measure(model, sample, batches_of(64)), 1e-4);
        }
        check_alike(measure_loss({&model}, sample, batches_of(1)), measure_loss({&model}, sample, batches_of(3)), 1e-4);
    }
}

TEST_CASE("as the paper's code measures: nothing depends on how many sequences are taken at a time") {
    const auto made = random_model(3);
    Engine& model = *made;
    const Sample sample = random_sample(5, 11, model.config.V);
    const std::vector<int64_t> neurons = confidence_neurons_as_paper(model);
    const auto confidence = [&](Engine& m, const Sample& s, const Procedure& p) {
        return measure_confidence_as_paper(m, s, p, neurons);
    };
    const std::function<Json(Engine&, const Sample&, const Procedure&)> all[] = {measure_attribution, measure_sinks,
                                                                                 confidence};
    for (const auto& measure : all) {
        Procedure one = batches_of(1), two = batches_of(2);
        one.paper = two.paper = true;
        check_alike(measure(model, sample, one), measure(model, sample, two), 1e-4);
    }
}

TEST_CASE("as the paper's code measures: a head that writes nothing but its value biases has no effect at all") {
    std::vector<ModelConfig> all = shapes();
    all.push_back(other_shapes()[1]);
    all.back().attention_bias = true;  // and heads in groups
    for (const ModelConfig& config : all) {
        const auto made = random_model(3, config);
        Engine& model = *made;
        for (int64_t l = 0; l < config.L; l++)  // values no longer depend on what is read, only on beta and the biases
            std::fill_n(model.tensor("h." + std::to_string(l) + ".ln_1.weight"), config.C, real(0));
        const Sample sample = random_sample(5, 6, config.V);
        Procedure p = batches_of(2);
        CHECK((measure_attribution(model, sample, p)["largest_difference"].get<double>() > 1e-3) ==
              (config.attention_bias || config.norm_bias));
        p.paper = true;
        const Json j = measure_attribution(model, sample, p);
        CHECK(j["largest_difference"].get<double>() < 1e-6);
        CHECK(j["token_read"]["largest_difference"].get<double>() < 1e-6);
    }
}

TEST_CASE("as the paper's code measures: folding the norms away changes no neuron's score") {
    for (const ModelConfig& shape : shapes()) {
        const auto made = random_model(3, shape);
        make_linear(*made);
        ModelConfig config;
        const auto recipes = folded_recipes(*made, config);
        const auto folded = make_reference(config);
        for (const TensorRecipe& recipe : recipes) recipe.fill(folded->tensor(recipe.name));
        const Sample sample = random_sample(3, 6, shape.V);
        const std::vector<int64_t> neurons = confidence_neurons_as_paper(*made);
        const Json before = measure_confidence_as_paper(*made, sample, batches_of(3), neurons),
                   after = measure_confidence_as_paper(*folded, sample, batches_of(3), neurons);
        CHECK(before["top"] == after["top"]);
        for (const char* key : {"norm", "logit_var", "cn"}) check_alike(before[key], after[key], 1e-4);
        const double stored =
            norm_of(made->weights().layers.back().fcproj, shape.C);  // RMSNorm takes nothing out of it
        CHECK((std::abs(before["norm"][0].get<double>() - stored) > 1e-4 * stored) == shape.centred);
    }
}

TEST_CASE("as the paper's code measures: a prompt that is its own corrupted partner does not count") {
    const auto made = random_model(3);
    PromptSet set;
    set.name = "half";
    set.T = 3;
    set.prompts = {{1, 2, 3}, {4, 2, 3}, {5, 6, 7}, {5, 6, 7}};
    set.right = {1, 2, 3, 3};
    set.wrong = {2, 1, 4, 4};
    Procedure p = batches_of(4);
    const Json j = measure_patching_as_paper(*made, {set}, p);
    CHECK(j["prompts"] == 4);
    CHECK(j["prompts_counted"] == 2);
    CHECK(j["sets"][0]["prompts_counted"] == 2);
    // The first token is all that differs: putting it back in front of the first block is the whole effect, prompt by prompt.
    CHECK(j["sets"][0]["activation"][0][0].get<double>() == doctest::Approx(1).epsilon(1e-4));
    CHECK(j["sets"][0]["activation"][0][1].get<double>() == 0);
    set.prompts[0] = set.prompts[1];
    const Json none = measure_patching_as_paper(*made, {set}, p);
    CHECK(none["prompts_counted"] == 0);
    CHECK(none["error"].is_null());
    CHECK(none["error_of_means"].is_null());
    CHECK(none["sets"][0]["counts"] == false);
}

TEST_CASE("a model is no distance from itself, and its loss is what eval computes") {
    const auto made = random_model(3), other = random_model(4);
    Engine& model = *made;
    const Sample sample = random_sample(4, 13, model.config.V);
    const Json j = measure_loss({&model, other.get(), &model}, sample, batches_of(3));
    REQUIRE(j["divergences"].size() == 3);
    CHECK(std::abs(j["divergences"][1]["js"].get<double>()) < 1e-6);  // first and third
    CHECK(j["divergences"][0]["js"].get<double>() > 1e-3);
    check_alike(j["divergences"][0]["js"], j["divergences"][2]["js"], 1e-6);
    const real* losses = model.token_losses(sample.inputs.data(), sample.targets.data(), 4, 13);
    double sum = 0;
    for (int64_t n = 0; n < 4 * 13; n++) sum += static_cast<double>(losses[n]);
    CHECK(j["models"][0]["loss"].get<double>() == doctest::Approx(sum / 52).epsilon(1e-6));
    CHECK(j["models"][0]["per_position"].size() == 13);
}

TEST_CASE("every token that a model is sure will not come is listed with what stood before it") {
    const auto made = random_model(3);
    Engine& model = *made;
    real* wte = model.tensor("wte.weight");
    for (int64_t i = 0; i < model.config.V * model.config.C; i++) wte[i] *= 40;
    const Sample sample = random_sample(4, 13, model.config.V);
    const Json j = measure_loss({&model}, sample, batches_of(3));
    const Json& listed = j["models"][0]["over_50"];
    const real* losses = model.token_losses(sample.inputs.data(), sample.targets.data(), 4, 13);
    size_t k = 0;
    for (size_t n = 0; n < 52; n++) {
        if (!(losses[n] > 50)) continue;
        CAPTURE(n);
        REQUIRE(k < listed.size());
        const Json& entry = listed[k++];
        const size_t position = n % 13;
        CHECK(entry["window"] == n / 13);
        CHECK(entry["position"] == position);
        CHECK(entry["token"] == sample.targets[n]);
        CHECK(entry["loss"].get<double>() == doctest::Approx(static_cast<double>(losses[n])).epsilon(1e-5));
        CHECK(entry["residual_norm"].get<double>() > 0);
        CHECK(entry["context"].size() == position + 1);
        CHECK(entry["context"].back() == sample.inputs[n]);
    }
    CHECK(k == listed.size());
    CHECK(k > 5);
    CHECK(k < 52);
}

TEST_CASE("patching the last layer's input at the last position brings all of the clean behaviour back") {
    for (const ModelConfig& config : shapes()) {
        const auto made = random_model(3, config);
        Engine& model = *made;
        PromptSet set;
        set.name = "random";
        set.T = 6;
        SplitMix64 random(2);
        for (int i = 0; i < 4; i++) {
            std::vector<int32_t> prompt;
            for (int t = 0; t < 6; t++)
                prompt.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(config.V))));
            set.prompts.push_back(prompt);
            set.right.push_back(static_cast<int32_t>(i));
            set.wrong.push_back(static_cast<int32_t>(i ^ 1));
        }
        for (size_t i = 1; i < 4; i += 2) {  // partners share the last token and differ in the first
            set.prompts[i] = set.prompts[i - 1];
            set.prompts[i][0] = static_cast<int32_t>((set.prompts[i][0] + 1) % config.V);
        }
        const PatchedSet p = patch_set(model, set, 5, -INFINITY);
        // All positions together carry all that a layer knows; after the first block positions 1..5 know of position 0 too.
        CHECK(p.activation[0] == doctest::Approx(1).epsilon(1e-3));  // layer 0: position 0 is all the difference
        for (int64_t t = 1; t < 6; t++) CHECK(std::abs(p.activation[static_cast<size_t>(t)]) < 1e-3);
        CHECK(patch_set(model, set, 64, -INFINITY).activation[7] == doctest::Approx(p.activation[7]).epsilon(1e-3));
        CHECK(p.attribution[0] != doctest::Approx(1).epsilon(1e-3));  // an estimate
    }
}

TEST_CASE("the spectrum's singular vectors give the unembedding back") {
    const auto made = random_model(3);
    Engine& model = *made;
    const Spectrum s = spectrum(model);
    const int64_t C = model.config.C, V = model.config.V;
    double squares = 0, expected = 0;
    for (int64_t i = 0; i < V * C; i++) {
        const double u = static_cast<double>(model.weights().head[i]);
        expected += u * u;
    }
    for (int64_t j = 0; j < C; j++) {
        const size_t k = static_cast<size_t>(j);
        if (j > 0) CHECK(s.values[k] <= s.values[k - 1]);
        squares += s.values[k] * s.values[k];
        double length = 0;  // |u v_j|
        for (int64_t v = 0; v < V; v++) {
            double product = 0;
            for (int64_t c = 0; c < C; c++)
                product += static_cast<double>(model.weights().head[v * C + c]) * s.vectors[k][static_cast<size_t>(c)];
            length += product * product;
        }
        CHECK(std::sqrt(length) == doctest::Approx(s.values[k]).epsilon(1e-9));
    }
    CHECK(squares == doctest::Approx(expected).epsilon(1e-9));
}

TEST_CASE("quantiles interpolate, and intervals hold the mean and narrow with the number of sequences") {
    const auto of = [](std::vector<double> values, double share) { return quantile(values, share); };
    CHECK(of({4, 1, 2}, 0.5) == 2);
    CHECK(of({4, 1, 2}, 0.75) == 3);
    CHECK(of({7}, 0.99) == 7);
    SplitMix64 random(1);
    std::vector<double> few, many;
    for (int i = 0; i < 1600; i++) {
        many.push_back(random.normal());
        if (i < 100) few.push_back(many.back());
    }
    const Interval wide = interval_of_mean(few, 3), narrow = interval_of_mean(many, 3);
    CHECK(wide[0] < mean_of(few));
    CHECK(wide[1] > mean_of(few));
    CHECK(40 * (narrow[1] - narrow[0]) / (2 * 1.96) == doctest::Approx(1).epsilon(0.04));
    CHECK(10 * (wide[1] - wide[0]) / (2 * 1.96) == doctest::Approx(1).epsilon(0.1));
    CHECK(interval_of_mean(few, 3) == wide);
}

TEST_CASE("a sample spreads over the data and takes no window twice") {
    const TemporaryFolder folder;
    const std::string path = folder / "tokens.bin";
    std::string raw;
    for (uint16_t i = 0; i < 100; i++) raw.append(reinterpret_cast<const char*>(&i), 2);
    write_bytes(path, raw);
    const TokenShards shards({"raw:" + path});
    const Sample some = take_sample(shards, 7, 4), all = take_sample(shards, 7, 1000);
    CHECK(some.windows == std::vector<uint64_t>{0, 3, 7, 10});  // of 14
    CHECK(some.inputs[7] == 21);
    CHECK(some.targets[7] == 22);
    CHECK(all.sequences == 14);
    CHECK(all.data_fingerprint == shards.fingerprint());
    CHECK_THROWS_AS(take_sample(shards, 100, 1), BadInput);
}

// ---------------------------------------------------------------------------------------------------------------------
// The report and its pictures

TEST_CASE("base64 of any length") {
    CHECK(base64("").empty());
    CHECK(base64("f") == "Zg==");
    CHECK(base64("fo") == "Zm8=");
    CHECK(base64("foo") == "Zm9v");
    CHECK(base64("foob\xff") == "Zm9vYv8=");
}

TEST_CASE("a heat map shows a number in every cell and leaves out what is not finite") {
    HeatMap map;
    map.title = "a < b";
    map.rows = {"0", "1"};
    map.columns = {"x", "y", "z"};
    map.values = {{0, 0.5, 1}, {NAN, 2.25, INFINITY}};
    map.decimals = 2;
    const std::string svg = render_svg(map);
    CHECK(svg.find("<title>a &lt; b</title>") != std::string::npos);
    CHECK(svg.find(">2.25</text>") != std::string::npos);
    CHECK(svg.find("1, y: 2.25") != std::string::npos);
    CHECK(svg.find("1, x:") == std::string::npos);
    CHECK(svg.find("nan") == std::string::npos);
    CHECK(svg.find("inf") == std::string::npos);
    map.values.pop_back();
    CHECK_THROWS_AS(render_svg(map), std::invalid_argument);
}

TEST_CASE("shades go from light to dark") {
    CHECK(svg::shade(0) == "#F7FBFF");
    CHECK(svg::shade(1) == "#08306B");
    CHECK(svg::shade(-5) == svg::shade(0));
    CHECK(svg::shade(7) == svg::shade(1));
}

TEST_CASE("a chart draws dots without a line") {
    Chart chart;
    chart.series.push_back({"neurons", {1, 2, 3}, {3, 1, 2}});
    CHECK(render_svg(chart).find("<polyline") != std::string::npos);
    chart.series[0].dots = true;
    const std::string dots = render_svg(chart);
    CHECK(dots.find("<polyline") == std::string::npos);
    CHECK(dots.find("h0M") != std::string::npos);
}

TEST_CASE("patching pictures average the sets that count, of the commonest length") {
    const Json model = parse_json(R"({"sets": [
        {"counts": true, "activation": [[0, 1]]}, {"counts": true, "activation": [[1, 1]]},
        {"counts": true, "activation": [[5, 5, 5]]}, {"counts": false}]})",
                                  "test");
    size_t sets = 0;
    CHECK(mean_effects(model, "activation", sets) == std::vector<std::vector<double>>{{0.5, 1}});
    CHECK(sets == 2);
    CHECK(mean_effects(parse_json(R"({"sets": [{"counts": false}]})", "test"), "activation", sets).empty());
}

TEST_CASE("a report's overview has the columns of its parts, and leaves out what was not measured") {
    const Json all = parse_json(R"({"version": 1, "what": "report",
        "loss": {"models": [{"model": "runs/a", "layernorm_free": true, "loss": 1.25}]}, "dla": null})",
                                "test");
    const Table table = overview(all, 1);
    REQUIRE(table.row_count() == 1);
    CHECK(table.rows()[0] == std::vector<std::string>{"a", "none", "1.2500", ""});
    CHECK(table.text().find("LayerNorm") != std::string::npos);
    CHECK(overview(all, 1, "RMSNorm").text().find("RMSNorm") != std::string::npos);
}

TEST_CASE("a page holds its parts, says what was not measured, and can be saved from") {
    Table table({"model", "value"});
    table.add_row({"a & b", "1.5"});
    ReportPart measured{"loss", "Loss", "What it is.", {table}, "", R"({"loss":1.5})", ""};
    ReportPart missing{"patching", "Patching", "What it is.", {}, "", "", "--prompts is required"};
    const std::string page = render_report("A title", "About.", table, {measured, missing});
    CHECK(page.find("a &amp; b") != std::string::npos);
    CHECK(page.find("<th scope=\"row\">") != std::string::npos);
    CHECK(page.find(base64(R"({"loss":1.5})")) != std::string::npos);
    CHECK(page.find("<strong>Not measured:</strong> --prompts is required") != std::string::npos);
    CHECK(page.find("<script") == std::string::npos);
    CHECK(page.find("href=\"http") == std::string::npos);
}

// ---------------------------------------------------------------------------------------------------------------------
// Reports that go on

namespace {

// A byte model, and a little of everything that can be measured on it.
struct Reported {
    TemporaryFolder folder;
    Options options;

    Reported() {
        write_weights("model", 3);
        write_text(1);
        write_prompts("Ann met B");
        std::filesystem::create_directory(folder / "evals");
        write_questions("It is here");
        options.models = {folder / "model"};
        options.data = {"raw:" + (folder / "text.bin")};
        options.prompts = folder / "prompts.json";
        options.benchmarks.evals = folder / "evals";
        options.out = folder / "report";
        options.seq = 12;
        options.sequences = 4;
        options.json_output = true;  // keeps standard output clean
    }
    void write_weights(const std::string& name, uint64_t seed) {
        const ModelConfig config = shape_of(2, 3, 15, 257, 32, 22);
        const auto model = random_model(seed, config);
        write_model(folder / name, config, plain_recipes(*model), WeightType::f32, {{"version", kFormatVersion}},
                    load_tokenizer("byte").get(), "");
    }
    void write_text(uint64_t seed) {
        SplitMix64 random(seed);
        std::string raw;
        for (int i = 0; i < 200; i++) raw += {static_cast<char>(random.below(256)), '\0'};
        write_bytes(folder / "text.bin", raw);
    }
    void write_prompts(const std::string& first) {
        write_bytes(folder / "prompts.json",
                    R"({"a": {"prompts": [")" + first + R"(", "Bea met A"], "answers": [["x", "y"], ["y", "x"]]}})");
    }
    void write_questions(const std::string& text) {
        write_bytes(folder / "evals/lambada.jsonl", R"({"text": ")" + text + "\"}\n");
    }

    // Marks what earlier runs have left: the mark shows in whatever is taken from there.
    void mark() const {
        for (const Measurement& m : measurements()) {
            const std::string path = options.out + "/" + m.name + ".json";
            Json j = parse_json(read_bytes(path), "test");
            j["marked"] = true;
            write_bytes(path, j.dump());
        }
    }
    // The measurements that a report takes from an earlier run, in the table's order.
    std::vector<std::string> reused() const {
        mark();
        const Json report = analyze_command("report", options);
        std::vector<std::string> names;
        for (const Measurement& m : measurements()) {
            CAPTURE(m.name);
            REQUIRE(report[m.name].is_object());
            if (report[m.name].contains("marked")) names.push_back(m.name);
        }
        return names;
    }
};

}  // namespace

TEST_CASE("a report takes earlier results for what was measured, not for what it was called") {
    typedef std::vector<std::string> Names;
    Reported r;
    const Json first = analyze_command("report", r.options);
    CHECK(r.reused() == Names{"loss", "dla", "patching", "norms", "sinks", "confidence", "benchmarks"});

    SUBCASE("other weights in the same folder") {
        r.write_weights("model", 4);
        CHECK(r.reused().empty());
        const Json second = analyze_command("report", r.options);
        Options alone = r.options;
        alone.out = "";
        CHECK(second["dla"]["models"] == analyze_command("dla", alone)["models"]);
        CHECK(second["dla"]["models"] != first["dla"]["models"]);
    }
    SUBCASE("the same weights in another folder, whose name is shown") {
        r.write_weights("another", 3);
        r.options.models = {r.folder / "another"};
        CHECK(r.reused().empty());
        CHECK(analyze_command("report", r.options)["dla"]["models"][0]["model"] == r.folder / "another");
    }
    SUBCASE("other text in the same file") {
        r.write_text(2);
        CHECK(r.reused() == Names{"patching", "benchmarks"});
    }
    SUBCASE("other prompts in the same file") {
        r.write_prompts("Ann saw B");
        CHECK(r.reused() == Names{"loss", "dla", "norms", "sinks", "confidence", "benchmarks"});
    }
    SUBCASE("other questions in the same file") {
        r.write_questions("It is gone");
        CHECK(r.reused() == Names{"loss", "dla", "patching", "norms", "sinks", "confidence"});
    }
    SUBCASE("the paper's definitions, where it has others") {
        r.options.paper = true;
        CHECK(r.reused() == Names{"loss", "norms", "benchmarks"});
        const Json second = analyze_command("report", r.options);
        for (const Measurement& m : measurements()) {
            CAPTURE(m.name);
            CHECK(second[m.name].contains("definitions") == (m.as_paper != nullptr));
            CHECK(second[m.name]["request"].contains("definitions") == (m.as_paper != nullptr));
            CHECK_FALSE(first[m.name].contains("definitions"));
        }
        const std::string page = read_bytes(r.options.out + "/report.html");
        CHECK(page.find("Attention sinks, as the paper's code measures") != std::string::npos);
        CHECK(page.find("and the three top ones of the first model are taken out of every model.") !=
              std::string::npos);
        CHECK(overview(second, 1).text().find("sinks, as the paper's code (%)") != std::string::npos);
        CHECK(overview(first, 1).text().find("paper") == std::string::npos);
        for (const char* name : {"dla", "patching", "sinks", "confidence"})
            for (const Table& table : find_measurement(name)->tables(second[name]))
                CHECK(table.headers()[0] == "model, measured as the paper's code");
    }
    SUBCASE("another setting") {
        r.options.sequences = 5;
        CHECK(r.reused() == Names{"patching", "benchmarks"});
    }
    SUBCASE("a file of choices that is not there") {
        r.options.benchmarks.choices = r.folder / "choices.jsonl";
        analyze_command("report", r.options);
        CHECK(r.reused().size() == 7);
        std::filesystem::remove(r.options.benchmarks.choices);
        CHECK(r.reused().size() == 6);
        CHECK(std::filesystem::exists(r.options.benchmarks.choices));
    }
    SUBCASE("a result that is damaged") {
        r.mark();
        write_bytes(r.options.out + "/dla.json", "[]");
        CHECK(analyze_command("report", r.options)["dla"]["models"] == first["dla"]["models"]);
    }
}

TEST_CASE("--paper says what it cannot measure") {
    Reported r;
    r.options.paper = true;
    r.options.out = "";
    SUBCASE("the first model's neurons in a model that has others") {
        const ModelConfig config = shape_of(2, 3, 15, 257, 32, 23);
        write_model(r.folder / "wider", config, plain_recipes(*random_model(3, config)), WeightType::f32,
                    {{"version", kFormatVersion}}, load_tokenizer("byte").get(), "");
        r.options.models.push_back(r.folder / "wider");
        CHECK_THROWS_WITH_AS(analyze_command("confidence", r.options), doctest::Contains("another shape"), BadInput);
        r.options.paper = false;
        CHECK(analyze_command("confidence", r.options)["models"].size() == 2);
    }
    SUBCASE("prompts that fill the context already") {
        write_bytes(r.folder / "prompts.json",
                    R"({"a": {"prompts": ["Ann met A01234567890123456789012", "Bea met A01234567890123456789012"],)"
                    R"( "answers": [["x", "y"], ["y", "x"]]}})");
        CHECK_THROWS_WITH_AS(analyze_command("patching", r.options),
                             doctest::Contains("have 33 tokens, end-of-text in front"), BadInput);
        r.options.paper = false;
        CHECK(analyze_command("patching", r.options)["models"].size() == 1);
    }
}

TEST_CASE("a model's fingerprint depends on all that is measured of it") {
    LoadedModel loaded;
    loaded.model = random_model(3);
    const uint64_t before = fingerprint_of(loaded);
    Engine& model = *loaded.model;
    const auto changed_by = [&](auto& value, auto other) {
        const auto old = value;
        value = other;
        const bool changed = fingerprint_of(loaded) != before;
        value = old;
        return changed;
    };
    CHECK(changed_by(model.params.data()[0], real(9)));
    CHECK(changed_by(model.params.data()[model.params.size() - 1], real(9)));
    CHECK(changed_by(model.config.NH, 5));
    CHECK(changed_by(model.config.epsilon, 1e-6));
    CHECK(changed_by(model.sites.v(2).a, 1.0));
    CHECK(changed_by(model.sites.v(2).sigma_bar, 0.5));
    CHECK(changed_by(model.sites.f().own_position0, true));
    CHECK(changed_by(loaded.lnfree, "{}"));
    CHECK(fingerprint_of(loaded) == before);
}
