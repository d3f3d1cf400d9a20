// `analyze` on two trained models, one without LayerNorm, held against test/oracle/analysis: transformers with hooks in
// float64, written from the paper. The numbers are recorded in test/fixtures/analysis/expected.json; expected_paper.json has
// those of --paper, from a model whose weights are rewritten as the authors' tools rewrite them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "data/json.h"
#include "dev/analysis/measurements.h"
#include "dev/analysis/patching.h"
#include "dev/analysis/subjects.h"
#include "dev/run/statistics.h"

using namespace lnfree;
using namespace lnfree::analysis;

namespace {

const std::string fixtures = "test/fixtures/analysis/";

const Json& expected() {
    static const Json file = read_json(fixtures + "expected.json");
    return file;
}

const Json& expected_as_paper() {
    static const Json file = read_json(fixtures + "expected_paper.json");
    return file;
}

Subjects make_subjects(bool paper) {
    Options o;
    o.models = {fixtures + "original", fixtures + "lnfree"};
    o.data = {fixtures + "text_val_000000.bin"};
    o.prompts = fixtures + "prompts.json";
    o.seq = expected().at("seq").get<int64_t>();
    o.sequences = expected().at("sequences").get<int64_t>();
    o.batch = 5;
    o.paper = paper;
    Subjects made = load_subjects(o);
    prepare(made, TakenOn::text, o);
    prepare(made, TakenOn::prompts, o);
    return made;
}

Subjects& subjects() {
    static Subjects s = make_subjects(false);
    return s;
}

Subjects& subjects_as_paper() {
    static Subjects s = make_subjects(true);
    return s;
}

// Relative error 1e-4. What is a small difference of large numbers is held to rounding of those instead: `floor`.
void check_number(double ours, double oracles, double floor) {
    const double allowed = std::max(1e-4 * std::abs(oracles), floor);
    CAPTURE(ours);
    CAPTURE(oracles);
    CHECK(std::abs(ours - oracles) <= allowed);
}

// Everything in the oracle's value is in ours too.
void check_value(const Json& ours, const Json& oracles, double floor) {
    if (oracles.is_number()) return check_number(ours.get<double>(), oracles.get<double>(), floor);
    if (oracles.is_array()) {
        REQUIRE(ours.size() == oracles.size());
        for (size_t i = 0; i < oracles.size(); i++) {
            CAPTURE(i);
            check_value(ours[i], oracles[i], floor);
        }
    } else if (oracles.is_object()) {
        for (const auto& [key, value] : oracles.items()) {
            const std::string name = key;  // a binding cannot be captured
            CAPTURE(name);
            check_value(ours.at(key), value, floor);
        }
    } else {
        CHECK(ours == Json(oracles));
    }
}

// Keys of both models' results.
void check_models_of(const Json& oracle, const Json& ours, const char* what, const std::vector<const char*>& keys,
                     double floor) {
    for (const size_t i : {0u, 1u})
        for (const char* key : keys) {
            CAPTURE(i);
            CAPTURE(key);
            check_value(ours["models"][i].at(key), oracle.at(what).at("models").at(i).at(key), floor);
        }
}
void check_models(const Json& ours, const char* what, const std::vector<const char*>& keys, double floor = 0) {
    check_models_of(expected(), ours, what, keys, floor);
}
void check_models_as_paper(const Json& ours, const char* what, const std::vector<const char*>& keys, double floor = 0) {
    check_models_of(expected_as_paper(), ours, what, keys, floor);
}

Json measured(const char* name) {
    return find_measurement(name)->measure(subjects());
}
Json measured_as_paper(const char* name) {
    return find_measurement(name)->measure(subjects_as_paper());
}

}  // namespace

TEST_CASE("the sample is the oracle's") {
    CHECK(Json(subjects().sample.windows) == expected().at("window_numbers"));
}

TEST_CASE("loss, ranges, entropy, calibration and divergence are the oracle's") {
    const Json j = measured("loss");
    check_models(j, "loss", {"loss", "median", "range_50", "per_position", "entropy", "ece", "final_norm"});
    check_models(j, "loss", {"range_95", "range_99_9"}, 2e-6);  // losses near 0 are logits' rounding
    check_number(j["divergences"][0]["js"].number(), expected().at("loss").at("divergences").at(0).at("js").number(),
                 0);
    CHECK(j["models"][0]["over_50"].size() == expected().at("loss").at("models").at(0).at("over_50").size());
}

TEST_CASE("errors of direct logit attribution are the oracle's, per head, MLP and embedding") {
    const Json j = measured("dla");
    check_models(j, "dla", {"nmae", "nmae_head", "nmae_mlp", "nmae_embedding"},
                 1e-4);  // percent; the LN-free model's are 0
    CHECK(j["models"][0]["nmae"].get<double>() > 1);
    CHECK(j["models"][1]["nmae"].get<double>() < 1e-9);
}

TEST_CASE("norms and sigmas are the oracle's") {
    const Json j = measured("norms");
    check_models(j, "norms", {"residual", "sites"});
}

TEST_CASE("attention sinks are the oracle's") {
    const Json j = measured("sinks");
    check_models(j, "sinks", {"rate_heads", "per_layer_heads", "rate_pairs", "per_layer_pairs"});
}

TEST_CASE("confidence neurons, spectrum and ablations are the oracle's") {
    const Json j = measured("confidence");
    check_models(j, "confidence", {"norm", "logit_var", "cn", "top", "singular_values"});
    check_models(j, "confidence", {"cosines"}, 1e-6);
    check_models(j, "confidence", {"ablations"}, 2e-7);  // differences of losses
}

TEST_CASE("activation and attribution patching are the oracle's, set by set") {
    const Subjects& s = subjects();
    for (const size_t i : {0u, 1u}) {
        const Json& oracles = expected().at("patching").at("models").at(i);
        int64_t solved = 0, prompts = 0;
        for (size_t k = 0; k < s.prompts.size(); k++) {
            const PatchedSet p = patch_set(s.model(i), s.prompts[k], 24, -INFINITY);
            const Json& sets = oracles.at("sets");
            const auto found = std::find_if(sets.begin(), sets.end(),
                                            [&](const Json& set) { return set.at("name") == s.prompts[k].name; });
            REQUIRE(found != sets.end());
            const Json& set = *found;
            CAPTURE(i);
            CAPTURE(k);
            check_number(p.clean, set.at("ld_clean").number(), 2e-6);
            check_number(p.corrupted, set.at("ld_corr").number(), 2e-6);
            const double rounding =
                4e-6 / std::abs(p.effect());  // of logits, over the difference that effects are divided by
            for (size_t n = 0; n < p.activation.size(); n++) {
                const size_t l = n / static_cast<size_t>(s.prompts[k].T), t = n % static_cast<size_t>(s.prompts[k].T);
                CAPTURE(n);
                check_number(p.activation[n], set.at("act").at(l).at(t).number(), rounding);
                check_number(p.attribution[n], set.at("attr").at(l).at(t).number(), rounding);
            }
            solved += p.solved;
            prompts += static_cast<int64_t>(s.prompts[k].prompts.size());
        }
        CHECK(static_cast<double>(solved) / static_cast<double>(prompts) == oracles.at("accuracy").get<double>());
    }
}

TEST_CASE("as the paper's code measures: attribution of heads at the last position, to either token") {
    const Json j = measured_as_paper("dla");
    check_models_as_paper(j, "dla", {"nmae", "nmae_head", "token_read"}, 1e-4);  // percent; the LN-free model's are 0
    CHECK(j["models"][0]["nmae"].get<double>() > 60);
    CHECK(j["models"][1]["nmae"].get<double>() < 1e-9);
    for (const char* end : {"nmae", "largest_difference"}) CHECK_FALSE(j["models"][0][end].is_null());
    const Json& interval = j["models"][0]["nmae_interval"];
    CHECK(interval[0].get<double>() < j["models"][0]["nmae"].get<double>());
    CHECK(interval[1].get<double>() > j["models"][0]["nmae"].get<double>());
    CHECK_FALSE(j["models"][0].contains("nmae_mlp"));  // their code looks at heads
}

TEST_CASE("as the paper's code measures: sinks among (query, head) pairs, query 0 too") {
    const Json j = measured_as_paper("sinks");
    check_models_as_paper(j, "sinks", {"rate_pairs", "per_layer_pairs", "rate_pairs_interval"});
    CHECK_FALSE(j["models"][0].contains("rate_heads"));
    // query 0 of every head is a sink, the others are counted alike: no pair lies at the threshold here
    const double T = expected().at("seq").get<double>();
    const double without = measured("sinks")["models"][0]["rate_pairs"].number();
    check_number(j["models"][0]["rate_pairs"].number(), (1 + without * (T - 1)) / T, 0);
}

TEST_CASE("as the paper's code measures: the first model's confidence neurons, taken out of both") {
    const Json j = measured_as_paper("confidence");
    check_models_as_paper(j, "confidence", {"norm", "logit_var", "cn", "top", "singular_values"}, 1e-7);
    check_models_as_paper(j, "confidence", {"cosines"}, 1e-6);
    check_models_as_paper(j, "confidence", {"ablations"}, 2e-6);  // differences of single losses
    const Json &first = j["models"][0], &second = j["models"][1];
    REQUIRE(first["top"] != second["top"]);  // or nothing would show whose were taken out
    for (const Json& m : j["models"]) CHECK(m["ablations"].back()["neurons"] == first["top"]);
}

TEST_CASE("as the paper's code measures: patching with end-of-text in front, prompt by prompt") {
    const Json j = measured_as_paper("patching");
    for (const size_t i : {0u, 1u}) {
        const Json &ours = j["models"][i], &oracles = expected_as_paper().at("patching").at("models").at(i);
        CAPTURE(i);
        // differences are 8 logits and more: rounding of logits over them, summed over 40 positions for the errors
        check_value(ours["error"], oracles.at("error"), 4e-5);
        check_value(ours["error_of_means"], oracles.at("error_of_means"), 4e-5);
        CHECK(ours["accuracy"] == Json(oracles.at("accuracy")));
        CHECK(ours["prompts_counted"] == ours["prompts"]);
        CHECK(ours["prompts_weak"] == 0);
        for (size_t k = 0; k < ours["sets"].size(); k++) {
            const Json& set = ours["sets"][k];
            const Json& sets = oracles.at("sets");
            const auto found = std::find_if(sets.begin(), sets.end(),
                                            [&](const Json& other) { return other.at("name") == set["name"]; });
            REQUIRE(found != sets.end());
            CAPTURE(k);
            check_value(set["activation"], (*found).at("activation"), 1e-6);
            check_value(set["attribution"], (*found).at("attribution"), 1e-6);
            check_number(set["clean"].number(), mean_of((*found).at("clean").get<std::vector<double>>()), 2e-6);
        }
    }
}
