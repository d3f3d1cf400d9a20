// An engine against the independent oracle (test/oracle/): the same checks in float and in double, for GPT-2 and for two
// other shapes, with the tolerances that the test files state. Errors are norms: |ours - oracle| / |oracle|.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/config.h"
#include "data/files.h"
#include "data/safetensors.h"
#include "dev/engine.h"
#include "dev/method.h"
#include "dev/run/experiments.h"

namespace lnfree {

struct OracleTolerance {
    double forward_and_gradients;  // tensors of the static cases
    double trajectory_losses;      // of 40 training steps, relative
    double final_weights;          // after them
    bool key_bias_too;             // its true gradient is zero, and Adam turns rounding noise into steps
};

inline Activation activation_named(const std::string& name) {
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "gelu_erf") return Activation::gelu_erf;
    REQUIRE(name == "gated_silu");
    return Activation::gated_silu;
}

// The shape that oracle.json's `model` describes: GPT-2's, or another one in full.
inline ModelConfig oracle_shape(const nlohmann::json& m) {
    ModelConfig c;
    c.L = m["n_layer"];
    c.NH = m["n_head"];
    c.C = m["n_embd"];
    c.V = m["vocab_size"];
    c.n_ctx = m["n_ctx"];
    c.n_inner = 4 * c.C;
    c.epsilon = m["layer_norm_epsilon"];
    c.end_of_text = m["end_of_text"];
    if (m.count("activation") == 0) return c;
    c.n_inner = m["n_inner"];
    c.shared_heads = m["n_key_head"];
    c.own_head_size = m["head_size"];
    c.centred = c.norm_bias = m["centred"];
    c.rotary = m["rotary"];
    c.rotary_base = m["rotary_base"];
    c.parallel = m["parallel"];
    c.activation = activation_named(m["activation"]);
    c.attention_bias = c.mlp_bias = m["bias"];
    c.tied = m["tied"];
    return c;
}

// Which engine is held against the oracle: how one is made, and where its gradients are.
struct EngineUnderTest {
    std::function<std::unique_ptr<Engine>(const ModelConfig&)> make;
    std::function<std::vector<real>(Engine&)> gradients;
};

inline EngineUnderTest reference_engine() {
    return {make_reference, [](Engine& model) {
                return std::vector<real>(model.grads.data(), model.grads.data() + model.parameters());
            }};
}

// What the oracle stored of one model: "gpt2", "neox" or "llama".
class Oracle {
  public:
    const std::string files;
    const nlohmann::json settings = nlohmann::json::parse(read_file(files + ".json", 1 << 24));
    const SafetensorsFile parameters{files + "_parameters.safetensors"};
    const SafetensorsFile statics{files + "_static.safetensors"};
    const SafetensorsFile trajectories{files + "_trajectories.safetensors"};

    explicit Oracle(const std::string& model) : files("test/fixtures/oracle" + (model == "gpt2" ? "" : "_" + model)) {}

    std::unique_ptr<Engine> model(const EngineUnderTest& engine) const {
        std::unique_ptr<Engine> model = engine.make(oracle_shape(settings["model"]));
        for (const Tensor& t : model->tensors) {
            REQUIRE_MESSAGE(parameters.find(t.name) != nullptr, t.name);
            copy_tensor(*parameters.find(t.name), model->params.data() + t.offset);
        }
        model->prepare_training();
        return model;
    }

    static std::vector<double> doubles(const SafetensorsFile& file, const std::string& name) {
        const TensorView* view = file.find(name);
        REQUIRE_MESSAGE(view != nullptr, name);
        std::vector<double> values(view->count());
        copy_tensor(*view, values.data());
        return values;
    }

    static std::vector<int32_t> tokens(const SafetensorsFile& file, const std::string& name) {
        const TensorView* view = file.find(name);
        REQUIRE_MESSAGE(view != nullptr, name);
        const auto* ids = reinterpret_cast<const int64_t*>(view->data);
        return std::vector<int32_t>(ids, ids + view->count());
    }
};

// Of elements begin .. end - 1. A part whose true value is zero, as the key bias's gradient, is held against the whole.
inline double relative_error(const real* ours, const std::vector<double>& oracle, size_t begin, size_t end) {
    double difference = 0, size = 0;
    for (size_t i = begin; i < end; i++) {
        const double d = static_cast<double>(ours[i]) - oracle[i];
        difference += d * d;
        size += oracle[i] * oracle[i];
    }
    if (size == 0)
        for (const double x : oracle) size += x * x;
    return std::sqrt(difference) / std::max(std::sqrt(size), 1e-30);
}

inline Site& site_named(Sites& sites, const std::string& name) {
    for (Site& site : sites.all)
        if (site_name(site) == name) return site;
    FAIL("no site is named " << name);
    return sites.all[0];
}

inline void freeze_as_recorded(Engine& model, const nlohmann::json& test_case) {
    for (const auto& [name, frozen] : test_case["removed"].items()) {
        Site& site = site_named(model.sites, name);
        site.a = 1;
        site.sigma_bar = frozen["sigma_bar"];
        if (frozen["sigma_bar_0"].is_null()) continue;
        site.sigma_bar_0 = frozen["sigma_bar_0"];
        site.own_position0 = test_case["position_0"];
        site.own_end_of_text = test_case["end_of_text"] && site.kind == SiteKind::v;
    }
}

// A constant added to all keys changes no attention weight, unless it turns with the position.
inline bool is_idle_key_bias(const ModelConfig& c, int64_t i) {
    return i >= c.heads_width() && i < c.qk_width() && i % c.head_size() >= c.rotary;
}

// Queries' and keys' part of c_attn.bias apart from the values', so that neither hides behind the other.
inline double attention_bias_error(const ModelConfig& c, const real* ours, const std::vector<double>& oracle) {
    std::vector<real> acting;
    std::vector<double> expected;
    size_t values = 0;
    for (int64_t i = 0; i < c.qkv_width(); i++) {
        if (i == c.qk_width()) values = acting.size();
        if (is_idle_key_bias(c, i)) continue;
        acting.push_back(ours[i]);
        expected.push_back(oracle[static_cast<size_t>(i)]);
    }
    return std::max(relative_error(acting.data(), expected, 0, values),
                    relative_error(acting.data(), expected, values, acting.size()));
}

inline double tensor_error(const ModelConfig& c, const Tensor& t, const real* ours, const std::vector<double>& oracle,
                           bool key_bias_too) {
    REQUIRE(static_cast<int64_t>(oracle.size()) == t.size);
    if (key_bias_too || t.name.find("c_attn.bias") == std::string::npos)
        return relative_error(ours, oracle, 0, oracle.size());
    return attention_bias_error(c, ours, oracle);
}

// Returns how many cases there are.
inline int check_static_cases(const std::string& which, const OracleTolerance& tolerance,
                              const EngineUnderTest& engine = reference_engine()) {
    CAPTURE(which);
    const Oracle oracle(which);
    int cases = 0;
    for (const nlohmann::json& test_case : oracle.settings["static"]) {
        const std::string name = test_case["name"], batch = test_case["batch"];
        CAPTURE(name);
        const std::unique_ptr<Engine> made = oracle.model(engine);
        Engine& model = *made;
        freeze_as_recorded(model, test_case);
        const TensorView* shape = oracle.statics.find(batch + ".inputs");
        const auto B = static_cast<int64_t>(shape->shape[0]), T = static_cast<int64_t>(shape->shape[1]);
        const auto inputs = Oracle::tokens(oracle.statics, batch + ".inputs"),
                   targets = Oracle::tokens(oracle.statics, batch + ".targets");

        const double share = test_case["distill"];
        const std::unique_ptr<Engine> teacher = share > 0 ? oracle.model(engine) : nullptr;
        const BatchLoss loss = model.forward_backward(inputs.data(), targets.data(), B, T, {test_case["aux_weight"]}, 1,
                                                      {share, teacher.get()});
        if (share > 0)
            CHECK(loss.kl == doctest::Approx(test_case["kl"].get<double>()).epsilon(tolerance.forward_and_gradients));
        CHECK(loss.loss == doctest::Approx(test_case["loss"].get<double>()).epsilon(tolerance.forward_and_gradients));
        CHECK(loss.aux ==
              doctest::Approx(test_case["aux_loss"].get<double>()).epsilon(tolerance.forward_and_gradients));
        for (size_t i = 0; i < model.sites.all.size(); i++) {
            const double expected = test_case["sigma_avg"][site_name(model.sites.all[i])];
            CHECK(model.sigma_sums[i].mean() == doctest::Approx(expected).epsilon(tolerance.forward_and_gradients));
        }
        const std::vector<real> gradients = engine.gradients(model);
        for (const Tensor& t : model.tensors) {
            CAPTURE(t.name);
            const auto expected = Oracle::doubles(oracle.statics, name + ".grad." + t.name);
            CHECK(tensor_error(model.config, t, gradients.data() + t.offset, expected, tolerance.key_bias_too) <=
                  tolerance.forward_and_gradients);
        }
        std::vector<real> logits(static_cast<size_t>(B * T * model.config.V));
        model.logits(logits.data(), inputs.data(), B, T);
        const auto expected = Oracle::doubles(oracle.statics, name + ".logits");
        CHECK(relative_error(logits.data(), expected, 0, expected.size()) <= tolerance.forward_and_gradients);
        cases++;
    }
    return cases;
}

inline Settings settings_of_run(const nlohmann::json& recorded, int64_t B, int64_t T) {
    Settings s;
    s.preset = "paper";
    s.steps = s.stop = recorded["steps"];
    s.batch = B;
    s.seq = T;
    s.grad_accum = recorded["accum"];
    s.lr = recorded["lr"];
    s.min_lr = recorded["min_lr"];
    s.warmup = recorded["warmup"];
    s.weight_decay = recorded["weight_decay"];
    s.beta1 = recorded["beta1"];
    s.beta2 = recorded["beta2"];
    s.adam_eps = recorded["adam_eps"];
    s.clip = recorded["clip"];
    s.aux_weight = recorded["aux_weight"];
    s.distill = recorded["distill"];
    s.sigma_ema = recorded["sigma_ema"];
    s.removes = !recorded["start"].is_null();
    s.experiment.own_position0 = recorded["precursor"];
    if (!s.removes) return s;
    s.start_mlp = recorded["start"]["mlp"];
    s.start_qk = recorded["start"]["qk"];
    s.start_v = recorded["start"]["v"];
    s.start_f = recorded["start"]["f"];
    s.gap_mlp = recorded["gap"]["mlp"];
    s.gap_qk = recorded["gap"]["qk"];
    s.gap_v = recorded["gap"]["v"];
    return s;
}

// The oracle's events name what was released; the steps are the schedule's.
inline void take_release_steps(Settings& s, const nlohmann::json& run) {
    for (const nlohmann::json& step : run["steps"])
        for (const nlohmann::json& e : step["events"])
            if (e["kind"] == "released")
                (e["special"] == "end_of_text" ? s.experiment.release_end_of_text : s.experiment.release_position0) =
                    step["step"];
}

inline void check_events(const std::vector<Event>& ours, const nlohmann::json& expected, const Sites& sites,
                         double epsilon) {
    std::map<std::string, double> removed;
    for (const Event& e : ours)
        if (e.action == "removed") removed[site_name(sites.all[static_cast<size_t>(e.site)])] = e.sigma_bar;
    size_t count = 0;
    for (const nlohmann::json& e : expected) {
        if (e["kind"] != "removed") {
            CHECK(!ours.empty());
            continue;
        }
        count++;
        REQUIRE(removed.count(e["site"]) == 1);
        CHECK(removed[e["site"]] == doctest::Approx(e["sigma_bar"].get<double>()).epsilon(epsilon));
    }
    CHECK(removed.size() == count);
}

// Feeds the recorded micro-batches and holds every step against the recorded one.
class FollowOracle : public Seams {
  public:
    FollowOracle(Engine& model, const Settings& s, const nlohmann::json& run, const Oracle& oracle, double epsilon)
        : model_(model), s_(s), steps_(run["steps"]), epsilon_(epsilon) {
        const std::string name = run["name"];
        inputs_ = Oracle::tokens(oracle.trajectories, name + ".inputs");
        targets_ = Oracle::tokens(oracle.trajectories, name + ".targets");
    }

    void read_batches(int64_t step, StepBatches& batches) override {
        const int64_t size = s_.batch * s_.seq;
        batches = {};
        for (int64_t a = 0; a < s_.grad_accum; a++) {
            const int64_t first = (step * s_.grad_accum + a) * size;
            batches.inputs.emplace_back(inputs_.begin() + first, inputs_.begin() + first + size);
            batches.targets.emplace_back(targets_.begin() + first, targets_.begin() + first + size);
        }
    }
    void before_step(int64_t step, const StepBatches& batches) override {
        events_.clear();
        if (loop_removes(s_, model_.sites)) return;
        if (step == 0) measure_own_sigmas(model_, s_, batches);
        events_ = advance_removals(s_, model_.sites, step, sites_due(s_, model_.sites, step));
    }
    void after_loss(const StepReport& report) override {
        CAPTURE(report.step);
        const nlohmann::json& expected = steps_[static_cast<size_t>(report.step)];
        events_.insert(events_.end(), report.removed.begin(), report.removed.end());
        check_events(events_, expected["events"], model_.sites, epsilon_);
        CHECK(report.loss.loss == doctest::Approx(expected["loss"].get<double>()).epsilon(epsilon_));
        if (s_.distill > 0) CHECK(report.loss.kl == doctest::Approx(expected["kl"].get<double>()).epsilon(epsilon_));
        CHECK(report.loss.aux == doctest::Approx(expected["aux_loss"].get<double>()).epsilon(epsilon_));
        CHECK(report.gradient_norm == doctest::Approx(expected["grad_norm"].get<double>()).epsilon(epsilon_));
        CHECK(report.lr == doctest::Approx(expected["lr"].get<double>()).epsilon(1e-12));
    }
    void after_step(const StepReport& report) override { CHECK(report.step == steps_taken++); }

    int64_t steps_taken = 0;

  private:
    Engine& model_;
    const Settings& s_;
    const nlohmann::json& steps_;
    double epsilon_;
    std::vector<int32_t> inputs_, targets_;  // (steps,accum,B,T)
    std::vector<Event> events_;              // of this step
};

// Returns how many there are.
inline int check_trajectories(const std::string& which, const OracleTolerance& tolerance,
                              const EngineUnderTest& engine = reference_engine()) {
    CAPTURE(which);
    const Oracle oracle(which);
    int runs = 0;
    for (const nlohmann::json& run : oracle.settings["trajectories"]) {
        const std::string name = run["name"];
        CAPTURE(name);
        const std::vector<uint64_t> shape = oracle.trajectories.find(name + ".inputs")->shape;  // (steps,accum,B,T)
        Settings s = settings_of_run(run["settings"], static_cast<int64_t>(shape[2]), static_cast<int64_t>(shape[3]));
        take_release_steps(s, run);
        const std::unique_ptr<Engine> model = oracle.model(engine);
        model->prepare_optimiser();
        FollowOracle seams(*model, s, run, oracle, tolerance.trajectory_losses);
        const bool by_the_loop = loop_removes(s, model->sites);
        CHECK(by_the_loop == (s.removes && !s.experiment.own_position0));
        const std::unique_ptr<Engine> teacher = s.distill > 0 ? oracle.model(engine) : nullptr;
        train(*model, s, by_the_loop ? removal_schedule(s, model->sites.L) : std::vector<Removal>(), seams, 0,
              teacher.get());
        CHECK(seams.steps_taken == s.steps);
        model->fetch_parameters();
        for (Site& site : model->sites.all) {
            const double running = run["final_running"][site_name(site)];
            CHECK(site.running == doctest::Approx(running).epsilon(tolerance.trajectory_losses));
        }
        for (const Tensor& t : model->tensors) {
            CAPTURE(t.name);
            const auto expected = Oracle::doubles(oracle.trajectories, name + ".final." + t.name);
            CHECK(tensor_error(model->config, t, model->params.data() + t.offset, expected, tolerance.key_bias_too) <=
                  tolerance.final_weights);
        }
        runs++;
    }
    return runs;
}

}  // namespace lnfree
