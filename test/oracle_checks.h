// The engine against the independent oracle (test/oracle/): the same checks in float and in double, with the tolerances
// that the two test files state. Errors are norms: |ours - oracle| / |oracle|.
#pragma once

#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

#include "data/json.h"
#include "data/safetensors.h"
#include "train_gpt2_lnfree.cpp"

namespace lnfree {

struct OracleTolerance {
    double forward_and_gradients;  // tensors of the static cases
    double trajectory_losses;      // of 40 training steps, relative
    double final_weights;          // after them
    bool key_bias_too;             // its true gradient is zero, and Adam turns rounding noise into steps
};

class Oracle {
  public:
    const nlohmann::json settings = read_json("test/fixtures/oracle.json");
    const SafetensorsFile parameters{"test/fixtures/oracle_parameters.safetensors"};
    const SafetensorsFile statics{"test/fixtures/oracle_static.safetensors"};
    const SafetensorsFile trajectories{"test/fixtures/oracle_trajectories.safetensors"};

    GPT2 model() const {
        const nlohmann::json& m = settings["model"];
        GPT2Config c;
        c.L = m["n_layer"];
        c.NH = m["n_head"];
        c.C = m["n_embd"];
        c.V = m["vocab_size"];
        c.n_ctx = m["n_ctx"];
        c.n_inner = 4 * c.C;
        c.epsilon = m["layer_norm_epsilon"];
        c.end_of_text = m["end_of_text"];
        GPT2 model(c);
        for (const Tensor& t : model.tensors) copy_tensor(*parameters.find(t.name), model.params.data() + t.offset);
        model.prepare_training();
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

inline double relative_error(const real* ours, const std::vector<double>& oracle, size_t begin, size_t end) {
    double difference = 0, size = 0;
    for (size_t i = begin; i < end; i++) {
        const double d = static_cast<double>(ours[i]) - oracle[i];
        difference += d * d;
        size += oracle[i] * oracle[i];
    }
    return std::sqrt(difference) / std::max(std::sqrt(size), 1e-30);
}

inline Site& site_named(Sites& sites, const std::string& name) {
    for (Site& site : sites.all)
        if (site_name(site) == name) return site;
    FAIL("no site is named " << name);
    return sites.all[0];
}

inline void freeze_as_recorded(GPT2& model, const nlohmann::json& test_case) {
    for (const auto& [name, frozen] : test_case["removed"].items()) {
        Site& site = site_named(model.sites, name);
        site.norm = Norm::fake_ln;
        site.sigma_bar = frozen["sigma_bar"];
        if (frozen["sigma_bar_0"].is_null()) continue;
        site.sigma_bar_0 = frozen["sigma_bar_0"];
        site.own_position0 = test_case["position_0"];
        site.own_end_of_text = test_case["end_of_text"] && site.kind == SiteKind::v;
    }
}

// The key bias is the middle third of c_attn.bias.
inline double tensor_error(const Tensor& t, const real* ours, const std::vector<double>& oracle, bool key_bias_too) {
    const size_t n = oracle.size();
    if (key_bias_too || t.name.find("c_attn.bias") == std::string::npos) return relative_error(ours, oracle, 0, n);
    return std::max(relative_error(ours, oracle, 0, n / 3), relative_error(ours, oracle, 2 * n / 3, n));
}

inline void check_static_cases(const OracleTolerance& tolerance) {
    const Oracle oracle;
    int cases = 0;
    for (const nlohmann::json& test_case : oracle.settings["static"]) {
        const std::string name = test_case["name"], batch = test_case["batch"];
        CAPTURE(name);
        GPT2 model = oracle.model();
        freeze_as_recorded(model, test_case);
        const TensorView* shape = oracle.statics.find(batch + ".inputs");
        const auto B = static_cast<int64_t>(shape->shape[0]), T = static_cast<int64_t>(shape->shape[1]);
        const auto inputs = Oracle::tokens(oracle.statics, batch + ".inputs"),
                   targets = Oracle::tokens(oracle.statics, batch + ".targets");

        const BatchLoss loss =
            model.forward_backward(inputs.data(), targets.data(), B, T, {test_case["aux_weight"]}, 1);
        CHECK(loss.loss == doctest::Approx(test_case["loss"].get<double>()).epsilon(tolerance.forward_and_gradients));
        CHECK(loss.aux ==
              doctest::Approx(test_case["aux_loss"].get<double>()).epsilon(tolerance.forward_and_gradients));
        for (size_t i = 0; i < model.sites.all.size(); i++) {
            const double expected = test_case["sigma_avg"][site_name(model.sites.all[i])];
            CHECK(model.sigma_sums[i].mean() == doctest::Approx(expected).epsilon(tolerance.forward_and_gradients));
        }
        for (const Tensor& t : model.tensors) {
            CAPTURE(t.name);
            const auto expected = Oracle::doubles(oracle.statics, name + ".grad." + t.name);
            CHECK(tensor_error(t, model.grads.data() + t.offset, expected, tolerance.key_bias_too) <=
                  tolerance.forward_and_gradients);
        }
        std::vector<real> logits(static_cast<size_t>(B * T * model.config.V));
        model.logits(logits.data(), inputs.data(), B, T);
        const auto expected = Oracle::doubles(oracle.statics, name + ".logits");
        CHECK(relative_error(logits.data(), expected, 0, expected.size()) <= tolerance.forward_and_gradients);
        cases++;
    }
    CHECK(cases == 27);
}

inline Protocol protocol_of_run(const nlohmann::json& s, int64_t B, int64_t T) {
    Protocol p;
    p.steps = p.stop = s["steps"];
    p.batch = B;
    p.seq = T;
    p.grad_accum = s["accum"];
    p.lr = s["lr"];
    p.min_lr = s["min_lr"];
    p.warmup = s["warmup"];
    p.weight_decay = s["weight_decay"];
    p.beta1 = s["beta1"];
    p.beta2 = s["beta2"];
    p.adam_eps = s["adam_eps"];
    p.clip = s["clip"];
    p.aux_weight = s["aux_weight"];
    p.sigma_ema = s["sigma_ema"];
    p.removes = !s["start"].is_null();
    p.own_position0 = s["precursor"];
    if (!p.removes) return p;
    p.start_mlp = s["start"]["mlp"];
    p.start_qk = s["start"]["qk"];
    p.start_v = s["start"]["v"];
    p.start_f = s["start"]["f"];
    p.gap_mlp = s["gap"]["mlp"];
    p.gap_qk = s["gap"]["qk"];
    p.gap_v = s["gap"]["v"];
    return p;
}

// The oracle's events name what was released; the steps are the schedule's.
inline void take_release_steps(Protocol& p, const nlohmann::json& run) {
    for (const nlohmann::json& step : run["steps"])
        for (const nlohmann::json& e : step["events"])
            if (e["kind"] == "released")
                (e["special"] == "end_of_text" ? p.release_end_of_text : p.release_position0) = step["step"];
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

inline void check_trajectories(const OracleTolerance& tolerance) {
    const Oracle oracle;
    const double losses = tolerance.trajectory_losses;
    for (const nlohmann::json& run : oracle.settings["trajectories"]) {
        const std::string name = run["name"];
        CAPTURE(name);
        const auto inputs = Oracle::tokens(oracle.trajectories, name + ".inputs"),
                   targets = Oracle::tokens(oracle.trajectories, name + ".targets");
        const std::vector<uint64_t> shape = oracle.trajectories.find(name + ".inputs")->shape;  // (steps,accum,B,T)
        const auto B = static_cast<int64_t>(shape[2]), T = static_cast<int64_t>(shape[3]);
        Protocol p = protocol_of_run(run["settings"], B, T);
        take_release_steps(p, run);
        GPT2 model = oracle.model();
        AdamW adam;
        adam.prepare(model.parameters());
        for (int64_t s = 0; s < p.steps; s++) {
            CAPTURE(s);
            const nlohmann::json& expected = run["steps"][static_cast<size_t>(s)];
            std::vector<std::vector<int32_t>> micro_batches;
            for (int64_t a = 0; a < p.grad_accum; a++) {
                const auto first = inputs.begin() + (s * p.grad_accum + a) * B * T;
                micro_batches.emplace_back(first, first + B * T);
            }
            const std::vector<Event> events = begin_step(model, p, s, micro_batches);
            check_events(events, expected["events"], model.sites, losses);
            BatchLoss mean;
            for (int64_t a = 0; a < p.grad_accum; a++) {
                const BatchLoss l = model.forward_backward(micro_batches[static_cast<size_t>(a)].data(),
                                                           targets.data() + (s * p.grad_accum + a) * B * T, B, T,
                                                           p.aux(), p.grad_accum);
                mean.loss += l.loss / static_cast<double>(p.grad_accum);
                mean.aux += l.aux / static_cast<double>(p.grad_accum);
            }
            const double norm = finish_step(model, adam, p, s);
            CHECK(mean.loss == doctest::Approx(expected["loss"].get<double>()).epsilon(losses));
            CHECK(mean.aux == doctest::Approx(expected["aux_loss"].get<double>()).epsilon(losses));
            CHECK(norm == doctest::Approx(expected["grad_norm"].get<double>()).epsilon(losses));
            CHECK(learning_rate(p, s) == doctest::Approx(expected["lr"].get<double>()).epsilon(1e-12));
        }
        for (Site& site : model.sites.all) {
            const double running = run["final_running"][site_name(site)];
            CHECK(site.running == doctest::Approx(running).epsilon(losses));
        }
        for (const Tensor& t : model.tensors) {
            CAPTURE(t.name);
            const auto expected = Oracle::doubles(oracle.trajectories, name + ".final." + t.name);
            CHECK(tensor_error(t, model.params.data() + t.offset, expected, tolerance.key_bias_too) <=
                  tolerance.final_weights);
        }
    }
}

}  // namespace lnfree
