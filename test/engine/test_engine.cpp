// The engine as a whole, in single precision: schedules, the exact forms of a finished model, folders, resuming,
// and independence of the number of threads.
#include <doctest/doctest.h>

#include "train_gpt2_lnfree.cpp"

// after the program that it is about
#include "test/test_models.h"
#include "test/tiny_task.h"

using namespace lnfree;

static const GPT2Config kTrained = shape_of(3, 2, 22, 257, 50, 70);

static GPT2 finished_model() {
    GPT2 model(kTrained);
    randomise(model, 3);
    double sigma = 0.6;
    for (Site& site : model.sites.all) {
        site.norm = Norm::fake_ln;
        site.sigma_bar = sigma += 0.17;  // all different, so sigma_qk != sigma_v
    }
    return model;
}

static std::vector<int32_t> random_tokens(int64_t n, int64_t V) {
    SplitMix64 random(4);
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    for (int32_t& t : tokens) t = static_cast<int32_t>(random.below(static_cast<uint64_t>(V)));
    return tokens;
}

static std::vector<real> logits_of(GPT2& model, const std::vector<int32_t>& tokens, int64_t B, int64_t T) {
    std::vector<real> out(tokens.size() * static_cast<size_t>(model.config.V));
    model.logits(out.data(), tokens.data(), B, T);
    return out;
}

static void write_form(const std::string& folder, GPT2& model, bool folded, bool with_record) {
    GPT2Config config;
    const TensorRecipes recipes = folded ? folded_recipes(model, config) : hugging_face_recipes(model, config);
    ordered_json record{{"version", kFormatVersion}};
    if (with_record) record["sites"] = sites_json(model.sites);
    write_model_folder(folder, config, recipes, DType::F32, record, nullptr, "");
}

// ---------------------------------------------------------------------------------------------------------------------
// the method

static Protocol resolved(const char* preset, int L, int64_t parameters = 1'000'000) {
    ProtocolFlags flags;
    flags.preset = preset;
    return resolve_protocol(flags, true, L, 1024, parameters);
}

TEST_CASE("the paper's presets reproduce the paper's Table 4") {
    struct Row {
        const char* preset;
        int L;
        int64_t start[4], last[3], stop, tokens;
    };
    const std::vector<Row> rows = {{"small", 12, {20, 44, 68, 104}, {42, 66, 101}, 300, 524288},
                                   {"medium", 24, {20, 68, 116, 188}, {66, 114, 185}, 500, 518144},
                                   {"large", 36, {30, 174, 318, 534}, {170, 314, 528}, 600, 516096},
                                   {"xl", 48, {50, 242, 434, 722}, {238, 430, 716}, 800, 516096}};
    for (const Row& row : rows) {
        CAPTURE(row.preset);
        const Protocol p = resolved(row.preset, row.L);
        Sites sites(row.L);
        CHECK(removal_step(p, sites.mlp(0)) == row.start[0]);
        CHECK(removal_step(p, sites.qk(0)) == row.start[1]);
        CHECK(removal_step(p, sites.v(0)) == row.start[2]);
        CHECK(removal_step(p, sites.f()) == row.start[3]);
        CHECK(removal_step(p, sites.mlp(row.L - 1)) == row.last[0]);
        CHECK(removal_step(p, sites.qk(row.L - 1)) == row.last[1]);
        CHECK(removal_step(p, sites.v(row.L - 1)) == row.last[2]);
        CHECK(p.stop == row.stop);
        CHECK(p.tokens_per_step() == row.tokens);
    }
}

TEST_CASE("the precursor releases end-of-text 20 steps after f and position 0 another 100 later") {
    const Protocol p = resolved("precursor", 12);
    CHECK(p.start_f == 1040);
    CHECK(p.release_end_of_text == 1060);
    CHECK(p.release_position0 == 1160);
    CHECK(p.stop == 1180);
    CHECK(p.tokens_per_step() == 491520);
}

TEST_CASE("paper removes everything within the first 45 % of the steps, with the paper's learning rates") {
    const Protocol p = resolved("paper", 4);
    CHECK(p.warmup == 15);
    CHECK(p.start_mlp == 15);
    CHECK(p.start_f == doctest::Approx(0.45 * 300));
    CHECK(p.gap_v == doctest::Approx(1.5 * p.gap_mlp));
    CHECK(p.lr == 6e-4);
    CHECK(p.min_lr == 3e-4);
    CHECK(resolved("paper", 4, 700'000'000).lr == 3e-4);
    CHECK(resolved("paper", 4, 1'500'000'000).sigma_ema == 0.19);
}

TEST_CASE("auto adapts, unless flags say when sites go; its learning rate is one for the model's size") {
    ProtocolFlags flags;
    const auto resolve = [&](bool removes) { return resolve_protocol(flags, removes, 4, 1024, 1'000'000); };
    CHECK(resolve(true).adaptive());
    CHECK_FALSE(resolve(false).adaptive());
    CHECK(resolve(true).lr == resolve(false).lr);  // the control's are the same
    CHECK(resolve(true).min_lr == resolve(false).min_lr);
    CHECK(resolve(true).lr == doctest::Approx(1.31e-3).epsilon(0.01));
    CHECK(resolve(true).warmup == 15);
    flags.steps = 60;
    CHECK(resolve(true).warmup == 10);
    flags.steps = 20;
    CHECK(resolve(true).warmup == 5);
    CHECK(resolved("auto", 4, 124'000'000).lr == 6e-4);
    CHECK(resolved("auto", 4, 99'000'000).lr == doctest::Approx(6.7e-4).epsilon(0.01));
    CHECK(resolved("auto", 4, 1'500'000'000).min_lr == 2e-5);
    flags.gap_mlp = 0;
    CHECK(resolve(true).preset == "paper");
    flags.preset = "adaptive";
    CHECK_THROWS_WITH_AS(resolve(true), doctest::Contains("--preset adaptive chooses when"), BadInput);
}

TEST_CASE("combinations that cannot work are refused") {
    ProtocolFlags flags;
    const auto resolve = [&] { return resolve_protocol(flags, true, 12, 1024, 1'000'000); };
    flags.preset = "small";
    flags.steps = 100;  // start_f is 104
    CHECK_THROWS_WITH_AS(resolve(), doctest::Contains("the last removal is due at step 104"), BadInput);
    flags = {};
    flags.preset = "smal";
    CHECK_THROWS_WITH_AS(resolve(), doctest::Contains("no such preset"), BadInput);
    flags = {};
    flags.steps = 10;
    flags.tokens = 1000;
    CHECK_THROWS_AS(resolve(), BadInput);
    flags = {};
    flags.seq = 1025;
    CHECK_THROWS_WITH_AS(resolve(), doctest::Contains("--seq 1025"), BadInput);
    flags = {};
    flags.sigma_ema = 1.0;
    CHECK_THROWS_AS(resolve(), BadInput);
}

TEST_CASE("the learning rate warms up from 0 and ends at its floor") {
    Protocol p;
    p.steps = 101;
    p.warmup = 10;
    p.lr = 1;
    p.min_lr = 0.2;
    CHECK(learning_rate(p, 0) == 0);
    CHECK(learning_rate(p, 5) == 0.5);
    CHECK(learning_rate(p, 10) == 1);
    CHECK(learning_rate(p, 100) > 0.2);
    CHECK(learning_rate(p, 101) == doctest::Approx(0.2));
}

// ---------------------------------------------------------------------------------------------------------------------
// the result

TEST_CASE("in-engine, hf and folded forms give the same logits on 1,000 random tokens") {
    const ScratchFolder scratch;
    GPT2 model = finished_model();
    const std::vector<int32_t> tokens = random_tokens(1000, model.config.V);
    const std::vector<real> expected = logits_of(model, tokens, 20, 50);
    double size = 0;
    for (const real x : expected) size = std::max(size, static_cast<double>(std::abs(x)));
    REQUIRE(size > 1);
    for (const bool folded : {false, true}) {
        for (const bool with_record : {false, true}) {
            CAPTURE(folded);
            CAPTURE(with_record);
            const std::string folder = scratch / (std::string(folded ? "folded" : "hf") + (with_record ? "1" : "0"));
            write_form(folder, model, folded, with_record);
            LoadedModel loaded = load_model(folder);
            CHECK(loaded.model->sites.all_linear_everywhere());
            CHECK(largest_difference(logits_of(*loaded.model, tokens, 20, 50), expected) < 1e-4);
        }
    }
}

TEST_CASE("nothing non-linear is left: doubling the residual before ln_f doubles logits - bias") {
    const ScratchFolder scratch;
    GPT2 in_engine = finished_model();
    write_form(scratch / "folded", in_engine, true, true);
    LoadedModel folded = load_model(scratch / "folded");
    for (GPT2* model : {&in_engine, folded.model.get()}) {
        const int64_t N = 31, C = model->config.C, V = model->config.V;
        std::vector<real> residual(static_cast<size_t>(N * C)), doubled, zero(residual.size());
        SplitMix64 random(5);
        for (real& x : residual) x = static_cast<real>(3 * random.normal());
        for (const real x : residual) doubled.push_back(2 * x);
        std::vector<real> once(static_cast<size_t>(N * V)), twice = once, bias = once;
        model->unembed_residual(once.data(), residual.data(), N);
        model->unembed_residual(twice.data(), doubled.data(), N);
        model->unembed_residual(bias.data(), zero.data(), N);
        double off = 0, size = 0;
        for (size_t i = 0; i < once.size(); i++) {
            off += std::pow(static_cast<double>(twice[i] - bias[i]) - 2 * static_cast<double>(once[i] - bias[i]), 2);
            size += std::pow(static_cast<double>(twice[i] - bias[i]), 2);
        }
        CHECK(std::sqrt(off / size) < 1e-6);
        if (model == &in_engine) {  // and the test can tell: with LayerNorm nothing doubles
            model->sites.f().norm = Norm::layer_norm;
            model->unembed_residual(twice.data(), doubled.data(), N);
            model->unembed_residual(once.data(), residual.data(), N);
            CHECK(largest_difference(twice, once) < 1e-3);
        }
    }
}

TEST_CASE("an unfinished model has no exported form, and a folded one no hf form") {
    const ScratchFolder scratch;
    GPT2 model = finished_model();
    GPT2Config config;
    model.sites.v(1).own_position0 = true;
    CHECK_THROWS_WITH_AS(hugging_face_recipes(model, config), doctest::Contains("v[1]"), BadInput);
    model.sites.v(1).own_position0 = false;
    model.sites.f().norm = Norm::layer_norm;
    CHECK_THROWS_WITH_AS(folded_recipes(model, config), doctest::Contains("site f"), BadInput);
    model.sites.f().norm = Norm::fake_ln;
    write_form(scratch / "folded", model, true, true);
    CHECK_THROWS_AS(hugging_face_recipes(*load_model(scratch / "folded").model, config), BadInput);
}

// ---------------------------------------------------------------------------------------------------------------------
// the training run

// Shards of the story world and a pretrained-looking model, small enough for runs of a second.
TEST_CASE("remove ends LayerNorm-free, whatever the number of threads with the same bits") {
    TinyTask task(kTrained);
    std::string expected;
    for (const int threads : {1, 2, 3, 5}) {
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        RunOptions o = task.options;
        o.out = task.scratch / ("threads" + std::to_string(threads));
        const ordered_json summary = task.run(o);
        CHECK(summary["layernorm_free"] == true);
        CHECK(summary["sites_removed"] == 10);
        if (expected.empty()) expected = task.weights(o.out);
        CHECK(task.weights(o.out) == expected);
    }
}

// The run `o`, stopped by a signal in the middle of a step and resumed; returns its folder.
static std::string run_in_two_parts(TinyTask& task, const RunOptions& o, int64_t stopped_at) {
    RunOptions part = o;
    part.out = task.scratch / ("part" + std::to_string(stopped_at));
    part.save_every = 4;
    part.on_step = [stopped_at](int64_t s) {
        if (s == stopped_at) raise(SIGTERM);
    };
    CHECK_THROWS_AS(task.run(part), Interrupted);
    g_signal = 0;
    CHECK_FALSE(fs::exists(part.out + "/config.json"));
    RunOptions again;
    again.command = "remove";
    again.out = part.out;
    again.resume = again.json_output = true;
    task.run(again);
    return part.out;
}

TEST_CASE("a run resumed from any step ends with the weights of one that was never stopped") {
    TinyTask task(kTrained);
    RunOptions o = task.options;
    o.out = task.scratch / "whole";
    o.save_every = 1;
    o.keep_checkpoints = 2;
    task.run(o);
    const std::string expected = task.weights(o.out);
    for (int64_t step = 0; step < 12; step++) {
        CAPTURE(step);
        const std::string out = run_in_two_parts(task, o, step);
        CHECK(task.weights(out) == expected);
        std::vector<int64_t> steps;
        std::istringstream lines(read_file(out + "/log.jsonl", 1 << 20));
        for (std::string line; std::getline(lines, line);)
            if (json::parse(line).contains("loss")) steps.push_back(json::parse(line)["step"]);
        CHECK(steps == std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    }
}

TEST_CASE("a gradual removal lowers the share of a site's own sigma step by step and is done when it is 0") {
    Protocol p;
    p.steps = p.stop = 20;
    p.start_mlp = p.start_qk = p.start_v = 100;
    p.start_f = 3;
    p.gradual = 4;
    Sites sites(1);
    for (Site& site : sites.all) site.running = 2;
    for (int64_t s = 0; s < 10; s++) {
        CAPTURE(s);
        sites.f().running = 2 + 0.1 * static_cast<double>(s);
        const std::vector<Event> events = apply_due_events(p, sites, s);
        CHECK(sites.f().own_share == doctest::Approx(s < 3 || s >= 6 ? 0 : 1 - 0.25 * static_cast<double>(s - 2)));
        CHECK(events.size() == (s == 6 ? 1 : 0));
        if (s >= 6) CHECK(sites.f().sigma_bar == doctest::Approx(2.6));
    }
    CHECK(sites.mlp(0).norm == Norm::layer_norm);
}

TEST_CASE("position 0's own sigma is released geometrically") {
    Protocol p;
    p.own_position0 = true;
    p.release_position0 = 5;
    p.release_steps = 3;
    p.release_end_of_text = 100;
    Sites sites(0);
    Site& f = sites.f();
    f.norm = Norm::fake_ln;
    f.own_position0 = true;
    f.sigma_bar = 1;
    f.sigma_bar_0 = 16;
    p.start_f = 1000;
    std::vector<double> seen;
    for (int64_t s = 3; s < 9; s++) {
        apply_due_events(p, sites, s);
        seen.push_back(f.own_position0 ? f.sigma_bar_0 : f.sigma_bar);
    }
    const std::vector<double> expected = {16, 16, 8, 4, 2, 1};
    for (size_t i = 0; i < seen.size(); i++) CHECK(seen[i] == doctest::Approx(expected[i]));
}

TEST_CASE("a planted position 0 stands out, and shrinking brings it back") {
    GPT2 model(kTrained);
    randomise(model, 3);
    model.prepare_training();
    const std::vector<int32_t> tokens = random_tokens(60, 257);
    const auto ratio = [&] {
        model.clear_sigma_sums();
        model.measure_sigmas(tokens.data(), 3, 20);
        const SigmaSum& first = model.sigma_sums[static_cast<size_t>(model.sites.L)];
        return first.mean_at_0() / first.mean_elsewhere();
    };
    const double natural = ratio();
    plant_position0(model, 50, 9);
    CHECK(ratio() > 20 * natural);
    double sum = 0;
    for (int64_t c = 0; c < 22; c++) sum += static_cast<double>(model.tensor("wpe.weight")[c]);
    CHECK(std::abs(sum / 22) < 1);  // the direction is centred
    Protocol p;
    p.shrink_steps = 10;
    for (int64_t s = 0; s < 20; s++) {
        ratio();
        shrink_position0(model, p, s);
    }
    CHECK(ratio() < 1.5);
}

static std::vector<json> decisions_of(const std::string& run) {
    std::vector<json> found;
    std::istringstream lines(read_file(run + "/log.jsonl", 1 << 20));
    for (std::string line; std::getline(lines, line);)
        if (json::parse(line).contains("decision")) found.push_back(json::parse(line));
    return found;
}

// Those of the task, which say when sites go, without that.
static ProtocolFlags adaptive_flags(const TinyTask& task) {
    ProtocolFlags flags = task.options.flags;
    flags.preset = "adaptive";
    flags.start_mlp = flags.gap_mlp = flags.gap_qk = flags.gap_v = std::nullopt;
    flags.lr = 6e-4;
    return flags;
}

// The largest ratio of sigma at position 0 to sigma elsewhere that `info --data` would show.
static double largest_ratio(const TinyTask& task, const std::string& folder) {
    LoadedModel loaded = load_model(folder);
    const TokenShards shards(task.options.val);
    double largest = 0;
    for (const SigmaSum& sum : measured_sigmas(*loaded.model, shards, 17))
        largest = std::max(largest, sum.mean_at_0() / sum.mean_elsewhere());
    return largest;
}

// Fine-tunes the task's model with these flags and returns the folder.
static std::string with_long_position0(TinyTask& task, double planted, double grown) {
    RunOptions o = task.options;
    o.command = "finetune";
    o.flags.steps = 250;
    o.flags.lr = 1e-2;
    o.flags.plant_position0 = planted;
    o.flags.grow_position0 = grown;
    o.out = task.scratch / "long";
    task.run(o);
    return o.out;
}

TEST_CASE("layers learn to make position 0 long") {
    TinyTask task(kTrained);
    CHECK(largest_ratio(task, task.options.model) < 2);
    CHECK(largest_ratio(task, with_long_position0(task, 0, 8)) > 3);
}

TEST_CASE("the schedule that adapts brings a long position 0 down before it removes anything") {
    TinyTask task(kTrained);
    RunOptions o = task.options;
    SUBCASE("its embedding is long") {
        o.model = with_long_position0(task, 30, 1);
    }
    SUBCASE("the layers make it long") {
        o.model = with_long_position0(task, 0, 8);
    }
    o.flags = adaptive_flags(task);
    o.flags.steps = 40;
    o.flags.batch = 16;
    o.out = task.scratch / "removed";
    CHECK(task.run(o)["layernorm_free"] == true);
    std::vector<std::string> what;
    for (const json& decision : decisions_of(o.out)) what.push_back(decision["decision"]);
    REQUIRE(what.size() > 2);
    CHECK(what[0] == "position 0 stands out");
    CHECK(what[1].find("position 0 ") == 0);
    CHECK(what[2] == "remove");
    CHECK(decisions_of(o.out)[1]["sigma_ratio"] < decisions_of(o.out)[0]["sigma_ratio"]);
    CHECK(read_file(o.out + "/loss.svg", 1 << 20).find("position 0 comes down") != std::string::npos);
}

// Some of its steps go wrong: their loss and gradients are those of a batch that makes no sense.
class PoisonedGPT2 : public GPT2 {
  public:
    static inline int64_t calls = 0;
    static inline std::set<int64_t> poisoned;
    static inline double poison = 0;  // on top of the loss
    using GPT2::GPT2;
    BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                               const AuxSettings& aux, int64_t grad_accum) override {
        BatchLoss loss = GPT2::forward_backward(inputs, targets, B, T, aux, grad_accum);
        if (poisoned.count(calls++) > 0) loss.loss += poison;
        return loss;
    }
};

TEST_CASE("the schedule that adapts goes back after a spike and still ends LayerNorm-free") {
    TinyTask task(kTrained);
    RunOptions o = task.options;
    o.flags = adaptive_flags(task);
    o.flags.steps = 20;
    const auto make_model = engine().make_model;
    engine().make_model = [](const GPT2Config& c) -> std::unique_ptr<GPT2> {
        return std::make_unique<PoisonedGPT2>(c);
    };
    PoisonedGPT2::calls = 0;
    PoisonedGPT2::poisoned.clear();
    size_t expected_back = 0;
    SUBCASE("nothing goes wrong") {}
    SUBCASE("a batch after the first removal that makes no sense") {
        PoisonedGPT2::poisoned = {6};  // two micro-batches a step
        PoisonedGPT2::poison = 9;
        expected_back = 1;
    }
    SUBCASE("a learning rate ten times too high") {
        o.flags.lr = 0.3;
        expected_back = 3;
    }
    SUBCASE("losses that are not finite, twice") {
        PoisonedGPT2::poisoned = {4, 11};
        PoisonedGPT2::poison = NAN;
        expected_back = 2;
    }
    o.out = task.scratch / "adaptive";
    const ordered_json summary = task.run(o);
    engine().make_model = make_model;
    CHECK(summary["layernorm_free"] == true);
    size_t back = 0, removals = 0;
    for (const json& decision : decisions_of(o.out)) {
        back += decision["decision"] == "roll back";
        removals += decision["decision"] == "remove";
    }
    CHECK(back == expected_back);
    CHECK(removals > 0);
    const std::string picture = read_file(o.out + "/loss.svg", 1 << 20);
    CHECK((picture.find("went back") != std::string::npos) == (expected_back > 0));
    CHECK_FALSE(fs::exists(o.out + "/checkpoints"));
}

TEST_CASE("an adaptive run that was stopped and resumed decides and ends as one that was never stopped") {
    TinyTask task(kTrained);
    RunOptions o = task.options;
    o.flags = adaptive_flags(task);
    std::vector<int64_t> stops = {0, 1, 2, 6, 11};
    SUBCASE("nothing stands out") {}
    SUBCASE("it waits for position 0") {
        o.model = with_long_position0(task, 0, 8);
        o.flags.batch = 16;
        stops.back() = 9;  // it ends after step 10
    }
    o.out = task.scratch / "whole";
    task.run(o);
    const std::string expected = task.weights(o.out);
    const std::vector<json> decisions = decisions_of(o.out);
    CHECK((decisions[0]["decision"] == "position 0 stands out") == (o.model != task.options.model));
    for (const int64_t step : stops) {
        CAPTURE(step);
        const std::string out = run_in_two_parts(task, o, step);
        CHECK(task.weights(out) == expected);
        CHECK(decisions_of(out) == decisions);
    }
}

TEST_CASE("a budget in hours sets the steps, and goes with no other length of the run") {
    TinyTask task(kTrained);
    RunOptions o = task.options;
    o.out = task.scratch / "budget";
    o.dry_run = true;
    o.flags.steps.reset();
    o.hours = 0.002;
    const int64_t few = task.run(o)["tokens"];
    o.hours = 2;
    CHECK(task.run(o)["tokens"] > few);
    o.flags.steps = 20;
    CHECK_THROWS_WITH_AS(task.run(o), doctest::Contains("--hours, --steps and --tokens"), BadInput);
    CHECK_FALSE(fs::exists(o.out));
}

TEST_CASE("the control sees the same data, removes nothing and has no auxiliary loss") {
    TinyTask task(kTrained);
    RunOptions o = task.options;
    o.command = "finetune";
    o.out = task.scratch / "control";
    const ordered_json summary = task.run(o);
    CHECK(summary["sites_removed"] == 0);
    o.command = "remove";
    o.out = task.scratch / "removal";
    task.run(o);
    std::vector<double> first_losses, aux_losses;
    for (const char* name : {"control", "removal"}) {
        std::istringstream lines(read_file(task.scratch / (std::string(name) + "/log.jsonl"), 1 << 20));
        for (std::string line; std::getline(lines, line);) {
            const json j = json::parse(line);
            if (!j.contains("loss") || j["step"] != 0) continue;
            first_losses.push_back(j["loss"]);
            aux_losses.push_back(j["aux_loss"]);
        }
    }
    REQUIRE(first_losses.size() == 2);
    CHECK(first_losses[0] == first_losses[1]);
    CHECK(aux_losses[0] == 0);
    CHECK(aux_losses[1] > 0);
}

TEST_CASE("a run that diverges stops, says where, and keeps its last good checkpoint") {
    TinyTask task(kTrained);
    RunOptions o = task.options;
    o.out = task.scratch / "diverges";
    o.flags.lr = 1e30;
    o.save_every = 1;
    CHECK_THROWS_WITH_AS(task.run(o), doctest::Contains("not finite"), RunFailure);
    const auto kept = list_checkpoints(o.out);
    REQUIRE_FALSE(kept.empty());
    CHECK_NOTHROW(load_model(kept.back().string()));  // which also checks that every weight is finite
    CHECK_FALSE(fs::exists(o.out + "/config.json"));
}

TEST_CASE("a finished model is fine-tuned further without getting its LayerNorms back") {
    TinyTask task(kTrained);
    RunOptions o = task.options;
    o.out = task.scratch / "free";
    task.run(o);
    RunOptions further = task.options;
    further.command = "finetune";
    further.model = o.out;
    further.out = task.scratch / "further";
    const ordered_json summary = task.run(further);
    CHECK(summary["layernorm_free"] == true);
    CHECK(summary["val_loss_first"].get<double>() < 8);
    CHECK(load_model(further.out).model->sites.all_linear_everywhere());
    further.command = "remove";
    further.out = task.scratch / "again";
    CHECK_THROWS_WITH_AS(task.run(further), doctest::Contains("no LayerNorm left"), BadInput);
}

TEST_CASE("mean_loss is the mean over all predictions, however they are batched") {
    TinyTask task(kTrained);
    LoadedModel loaded = load_model(task.options.model);
    const TokenShards shards(task.options.val);
    double sum = 0;
    uint64_t predictions = 0;
    const auto each = [&](uint64_t, const real* losses, const int32_t*, const int32_t*, int64_t P) {
        for (int64_t t = 0; t < P; t++) sum += static_cast<double>(losses[t]);
        predictions += static_cast<uint64_t>(P);
    };
    const double by_one = mean_loss(*loaded.model, shards, 19, 1, 500, false, "", each);
    CHECK(predictions == 494);  // 26 sequences of 19
    CHECK(by_one == doctest::Approx(sum / static_cast<double>(predictions)).epsilon(1e-12));
    CHECK(mean_loss(*loaded.model, shards, 19, 4, 500, false, "") == doctest::Approx(by_one).epsilon(1e-6));
}

// ---------------------------------------------------------------------------------------------------------------------
// --precision bf16

static std::vector<double> logged(const std::string& out, const char* key) {
    std::vector<double> values;
    std::istringstream lines(read_file(out + "/log.jsonl", 1 << 30));
    for (std::string line; std::getline(lines, line);) {
        const json j = json::parse(line);
        if (j.contains(key)) values.push_back(j[key]);
    }
    return values;
}

TEST_CASE("a removal run in bf16 stays within 0.01 nats of fp32 at every step, and is another run") {
    TinyTask task(kTrained);
    task.options.flags.steps = 40;
    task.options.out = task.scratch / "fp32";
    task.run(task.options);
    setenv("LNFREE_BF16", "slow", 1);
    task.options.flags.precision = "bf16";
    task.options.out = task.scratch / "bf16";
    CHECK(task.run(task.options)["layernorm_free"] == true);
    unsetenv("LNFREE_BF16");
    use_precision("fp32");
    for (const char* key : {"loss", "val_loss"}) {
        const std::vector<double> fp32 = logged(task.scratch / "fp32", key), bf16 = logged(task.scratch / "bf16", key);
        REQUIRE(fp32.size() == bf16.size());
        double largest = 0;
        for (size_t i = 0; i < fp32.size(); i++) largest = std::max(largest, std::abs(fp32[i] - bf16[i]));
        CHECK(largest < 0.01);
        CHECK(largest > 0);
    }
    CHECK(read_lnfree_json(task.scratch / "bf16")["protocol"]["precision"] == "bf16");
}

TEST_CASE("bf16 is refused where it would be slower than fp32") {
    if (bf16_is_fast()) {
        std::puts("SKIPPED: the refusal of bf16: this processor has AVX512_BF16");
        return;
    }
    TinyTask task(kTrained);
    task.options.flags.precision = "bf16";
    task.options.out = task.scratch / "out";
    CHECK_THROWS_WITH_AS(task.run(task.options), doctest::Contains("AVX512_BF16"), BadInput);
    task.options.flags.precision = "fp8";
    CHECK_THROWS_WITH_AS(task.run(task.options), doctest::Contains("use fp32 or bf16"), BadInput);
    CHECK_FALSE(fs::exists(task.options.out));
}
