// `analyze` on two trained models, one without LayerNorm, held against test/oracle/analysis: transformers with hooks in
// float64, written from the paper. The numbers are recorded in test/fixtures/analysis/expected.json.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "data/json.h"
#include "dev/analysis/measurements.h"
#include "dev/analysis/patching.h"
#include "dev/analysis/subjects.h"

using namespace lnfree;
using namespace lnfree::analysis;

namespace {

const std::string fixtures = "test/fixtures/analysis/";

const Json& expected() {
    static const Json file = read_json(fixtures + "expected.json");
    return file;
}

Subjects& subjects() {
    static Subjects s = [] {
        Options o;
        o.models = {fixtures + "original", fixtures + "lnfree"};
        o.data = {fixtures + "text_val_000000.bin"};
        o.prompts = fixtures + "prompts.json";
        o.seq = expected().at("seq").get<int64_t>();
        o.sequences = expected().at("sequences").get<int64_t>();
        o.batch = 5;
        Subjects made = load_subjects(o);
        prepare(made, TakenOn::text, o);
        prepare(made, TakenOn::prompts, o);
        return made;
    }();
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
void check_models(const Json& ours, const char* what, const std::vector<const char*>& keys, double floor = 0) {
    for (const size_t i : {0u, 1u})
        for (const char* key : keys) {
            CAPTURE(i);
            CAPTURE(key);
            check_value(ours["models"][i].at(key), expected().at(what).at("models").at(i).at(key), floor);
        }
}

Json measured(const char* name) {
    return find_measurement(name)->measure(subjects());
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
