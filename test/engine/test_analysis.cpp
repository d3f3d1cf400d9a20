// `analyze`: what must hold for any model, and the report. test_analysis_oracle.cpp holds the numbers against an independent computation.
#include <doctest/doctest.h>

#define LNFREE_LIBRARY_ONLY
#include "train_gpt2_lnfree.cpp"

// after the program that it is about
#include "test/test_models.h"

using namespace lnfree;
using namespace lnfree::analysis;

namespace {

static const GPT2Config kAnalysed = shape_of(3, 3, 15, 37, 13, 22);

void make_linear(GPT2& model) {
    double sigma = 0.5;
    for (Site& site : model.sites.all) {
        site.norm = Norm::fake_ln;
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

Settings settings_with(int64_t batch) {
    Settings s;
    s.batch = batch;
    return s;
}

// Numbers in two JSON values that differ by more than `allowed` of the larger, or anything else that differs.
void check_alike(const ordered_json& a, const ordered_json& b, double allowed) {
    if (a.is_number() && b.is_number()) {
        CHECK(a.get<double>() == doctest::Approx(b.get<double>()).epsilon(allowed).scale(1e-3));
        return;
    }
    REQUIRE(a.type() == b.type());
    if (!a.is_structured()) {
        CHECK(a == b);
        return;
    }
    REQUIRE(a.size() == b.size());
    if (a.is_array())
        for (size_t i = 0; i < a.size(); i++) check_alike(a[i], b[i], allowed);
    else
        for (const auto& [key, value] : a.items()) {
            CAPTURE(key);
            check_alike(value, b.at(key), allowed);
        }
}

}  // namespace

TEST_CASE(
    "the direct effect is what the engine's own last norm and unembedding make of the stream without a component") {
    for (const bool linear : {false, true}) {
        CAPTURE(linear);
        GPT2 model(kAnalysed);
        randomise(model, 3);
        if (linear) make_linear(model);
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
        const FinalNorm norm{true,
                             linear,
                             model.weights().lnf_gamma,
                             model.config.epsilon,
                             model.final_residual(),
                             model.final_means(),
                             model.final_divisors(no_tokens.data())};
        for (int64_t n = 0; n < N; n++)
            for (int64_t v = 0; v < V; v += 5) {
                const Attribution a = attribute(norm, n, c.data() + n * C, model.weights().head + v * C, C);
                const double expected = static_cast<double>(with[static_cast<size_t>(n * V + v)]) -
                                        static_cast<double>(without[static_cast<size_t>(n * V + v)]);
                CHECK(a.direct_effect == doctest::Approx(expected).epsilon(1e-4).scale(0.1));
                if (linear) CHECK(std::abs(a.dla - a.direct_effect) < 1e-12);
            }
    }
}

TEST_CASE("attribution misses the direct effect of a model with LayerNorm and none of a model without") {
    GPT2 model(kAnalysed);
    randomise(model, 3);
    const Sample sample = random_sample(5, 11, model.config.V);
    CHECK(measure_attribution(model, sample, settings_with(2))["nmae"].get<double>() > 1);
    make_linear(model);
    const ordered_json free = measure_attribution(model, sample, settings_with(2));
    CHECK(free["nmae"].get<double>() < 1e-9);
    CHECK(free["nmae_embedding"].get<double>() < 1e-9);
    CHECK(free["nmae_head"].size() == 3);
    CHECK(free["nmae_head"][0].size() == 3);
}

TEST_CASE("no measurement depends on how many sequences are taken at a time") {
    GPT2 model(kAnalysed);
    randomise(model, 3);
    const Sample sample = random_sample(5, 11, model.config.V);
    for (const auto measure : {measure_attribution, measure_norms, measure_sinks, measure_confidence}) {
        const ordered_json one = measure(model, sample, settings_with(1));
        check_alike(one, measure(model, sample, settings_with(2)), 1e-4);
        check_alike(one, measure(model, sample, settings_with(64)), 1e-4);
    }
    check_alike(measure_loss({&model}, sample, settings_with(1)), measure_loss({&model}, sample, settings_with(3)),
                1e-4);
}

TEST_CASE("a model is no distance from itself, and its loss is what eval computes") {
    GPT2 model(kAnalysed), other(kAnalysed);
    randomise(model, 3);
    randomise(other, 4);
    const Sample sample = random_sample(4, 13, model.config.V);
    const ordered_json j = measure_loss({&model, &other, &model}, sample, settings_with(3));
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
    GPT2 model(kAnalysed);
    randomise(model, 3);
    real* wte = model.tensor("wte.weight");
    for (int64_t i = 0; i < model.config.V * model.config.C; i++) wte[i] *= 40;
    const Sample sample = random_sample(4, 13, model.config.V);
    const ordered_json j = measure_loss({&model}, sample, settings_with(3));
    const ordered_json& listed = j["models"][0]["over_50"];
    const real* losses = model.token_losses(sample.inputs.data(), sample.targets.data(), 4, 13);
    size_t k = 0;
    for (size_t n = 0; n < 52; n++) {
        if (!(losses[n] > 50)) continue;
        CAPTURE(n);
        REQUIRE(k < listed.size());
        const ordered_json& entry = listed[k++];
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
    GPT2 model(kAnalysed);
    randomise(model, 3);
    PromptSet set;
    set.name = "random";
    set.T = 6;
    SplitMix64 random(2);
    for (int i = 0; i < 4; i++) {
        std::vector<int32_t> prompt;
        for (int t = 0; t < 6; t++) prompt.push_back(static_cast<int32_t>(random.below(37)));
        set.prompts.push_back(prompt);
        set.right.push_back(static_cast<int32_t>(i));
        set.wrong.push_back(static_cast<int32_t>(i ^ 1));
    }
    for (size_t i = 1; i < 4; i += 2) {  // partners share the last token and differ in the first
        set.prompts[i] = set.prompts[i - 1];
        set.prompts[i][0] = (set.prompts[i][0] + 1) % 37;
    }
    const PatchedSet p = Patching(model, set).measure(5, -INFINITY);
    // All positions together carry all that a layer knows; after the first block positions 1..5 know of position 0 too.
    CHECK(p.activation[0] == doctest::Approx(1).epsilon(1e-3));  // layer 0: position 0 is all the difference
    for (int64_t t = 1; t < 6; t++) CHECK(std::abs(p.activation[static_cast<size_t>(t)]) < 1e-3);
    CHECK(Patching(model, set).measure(64, -INFINITY).activation[7] == doctest::Approx(p.activation[7]).epsilon(1e-3));
    CHECK(p.attribution[0] != doctest::Approx(1).epsilon(1e-3));  // an estimate
}

TEST_CASE("the spectrum's singular vectors give the unembedding back") {
    GPT2 model(kAnalysed);
    randomise(model, 3);
    const Spectrum s = spectrum(model);
    const int64_t C = model.config.C, V = model.config.V;
    double squares = 0, expected = 0;
    for (int64_t i = 0; i < V * C; i++) {
        const double u = static_cast<double>(model.weights().head[i]);
        expected += u * u;
    }
    for (int64_t j = 0; j < C; j++) {
        if (j > 0) CHECK(s.values[j] <= s.values[j - 1]);
        squares += s.values[j] * s.values[j];
        double length = 0;  // |u v_j|
        for (int64_t v = 0; v < V; v++) {
            double product = 0;
            for (int64_t c = 0; c < C; c++)
                product += static_cast<double>(model.weights().head[v * C + c]) * s.vectors(c, j);
            length += product * product;
        }
        CHECK(std::sqrt(length) == doctest::Approx(s.values[j]).epsilon(1e-9));
    }
    CHECK(squares == doctest::Approx(expected).epsilon(1e-9));
}

TEST_CASE("quantiles interpolate, and intervals hold the mean and narrow with the number of sequences") {
    CHECK(quantile({1, 2, 4}, 0.5) == 2);
    CHECK(quantile({1, 2, 4}, 0.75) == 3);
    CHECK(quantile({7}, 0.99) == 7);
    SplitMix64 random(1);
    std::vector<double> few, many;
    for (int i = 0; i < 1600; i++) {
        many.push_back(random.normal());
        if (i < 100) few.push_back(many.back());
    }
    const ordered_json wide = interval_of_mean(few, 3), narrow = interval_of_mean(many, 3);
    CHECK(wide[0].get<double>() < mean_of(few));
    CHECK(wide[1].get<double>() > mean_of(few));
    CHECK(narrow[1].get<double>() - narrow[0].get<double>() == doctest::Approx(2 * 1.96 / 40).epsilon(0.15));
    CHECK(wide[1].get<double>() - wide[0].get<double>() == doctest::Approx(2 * 1.96 / 10).epsilon(0.3));
    CHECK(interval_of_mean(few, 3) == wide);
}

TEST_CASE("a sample spreads over the data and takes no window twice") {
    const std::string path =
        (fs::temp_directory_path() / ("lnfree-sample-" + std::to_string(getpid()) + ".bin")).string();
    std::string raw;
    for (uint16_t i = 0; i < 100; i++) raw.append(reinterpret_cast<const char*>(&i), 2);
    write_file_atomically(path, raw);
    const TokenShards shards({"raw:" + path});
    const Sample some = take_sample(shards, 7, 4), all = take_sample(shards, 7, 1000);
    CHECK(some.windows == std::vector<uint64_t>{0, 3, 7, 10});  // of 14
    CHECK(some.inputs[7] == 21);
    CHECK(some.targets[7] == 22);
    CHECK(all.sequences == 14);
    CHECK_THROWS_AS(take_sample(shards, 100, 1), BadInput);
    fs::remove(path);
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
    const ordered_json model = ordered_json::parse(R"({"sets": [
        {"counts": true, "activation": [[0, 1]]}, {"counts": true, "activation": [[1, 1]]},
        {"counts": true, "activation": [[5, 5, 5]]}, {"counts": false}]})");
    size_t sets = 0;
    CHECK(mean_effects(model, "activation", sets) == std::vector<std::vector<double>>{{0.5, 1}});
    CHECK(sets == 2);
    CHECK(mean_effects(ordered_json::parse(R"({"sets": [{"counts": false}]})"), "activation", sets).empty());
}

TEST_CASE("a page holds its parts, says what was not measured, and can be saved from") {
    Table table({"model", "value"});
    table.add_row({"a & b", "1.5"});
    ReportPart measured{"loss", "Loss", "What it is.", {table}, "", {{"loss", 1.5}}, ""};
    ReportPart missing{"patching", "Patching", "What it is.", {}, "", nullptr, "--prompts is required"};
    const std::string page = render_report("A title", "About.", table, {measured, missing});
    CHECK(page.find("a &amp; b") != std::string::npos);
    CHECK(page.find("<th scope=\"row\">") != std::string::npos);
    CHECK(page.find(base64(R"({"loss":1.5})")) != std::string::npos);
    CHECK(page.find("<strong>Not measured:</strong> --prompts is required") != std::string::npos);
    CHECK(page.find("<script") == std::string::npos);
    CHECK(page.find("href=\"http") == std::string::npos);
}
