// A run that is interrupted and goes on is the run that was never interrupted: its whole state, at every step, under every
// kind of schedule. What a run holds on to and lets go of its folder for.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "data/checkpoints.h"
#include "data/error.h"
#include "data/json.h"
#include "dev/engine.h"
#include "dev/run/records.h"
#include "dev/run/run.h"
#include "dev/run/settings.h"
#include "dev/run/signals.h"
#include "dev/run/state.h"
#include "test/file_helpers.h"
#include "test/in_memory.h"
#include "test/test_models.h"
#include "test/tiny_task.h"
#include "test/wrapped_engine.h"

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

const ModelConfig kTrained = shape_of(3, 2, 22, 257, 50, 70);

// ---------------------------------------------------------------------------------------------------------------------
// What is compared

uint64_t hash_of(const void* data, size_t bytes) {
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
    return hash;
}

uint64_t hash_of(const Buffer& buffer) {
    return hash_of(buffer.data(), static_cast<size_t>(buffer.size()) * sizeof(real));
}

// What an engine is as it begins with a micro-batch, and that micro-batch.
struct Moment {
    uint64_t data, weights, m, v;
    int64_t updates;
    std::string sites, aux;
};

// Watches a run.
class WatchedEngine : public WrappedEngine {
  public:
    static inline std::vector<Moment> moments;
    using WrappedEngine::WrappedEngine;

    BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                               const AuxSettings& aux, int64_t grad_accum, const Distillation& distillation) override {
        const uint64_t data = hash_of(inputs, static_cast<size_t>(B * T) * sizeof *inputs);
        const Json settings = Json::array({aux.weight, aux.everywhere, aux.relative, aux.position0});
        moments.push_back(
            {data, hash_of(params), hash_of(m), hash_of(v), updates, sites_json(sites).dump(), settings.dump()});
        return WrappedEngine::forward_backward(inputs, targets, B, T, aux, grad_accum, distillation);
    }
};

// A file's text if it is one for people, else its bytes' hash.
std::string contents(const fs::path& path) {
    const std::string bytes = read_bytes(path);
    return path.extension() == ".safetensors" ? hex(hash_of(bytes.data(), bytes.size())) : bytes;
}

using Listing = std::map<std::string, std::string>;

Listing listing_of(const fs::path& folder) {
    Listing listing;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
        if (entry.is_regular_file()) listing[fs::relative(entry.path(), folder)] = contents(entry.path());
    return listing;
}

// A finished run's files; the log without what depends on the clock.
Listing result_of(const std::string& out) {
    Listing listing;
    for (const auto& entry : fs::directory_iterator(out))
        if (entry.is_regular_file()) listing[entry.path().filename()] = contents(entry.path());
    std::string log;
    for (Json line : log_of(out)) {
        line.erase("tokens_per_s");
        log += line.dump() + "\n";
    }
    listing["log.jsonl"] = log;
    return listing;
}

void check_same(const Listing& got, const Listing& expected) {
    CHECK(got.size() == expected.size());
    for (const auto& entry : expected) {
        CAPTURE(entry.first);
        REQUIRE(got.count(entry.first) == 1);
        CHECK(got.at(entry.first) == entry.second);
    }
}

void check_same(const Moment& got, const Moment& expected) {
    CHECK(got.data == expected.data);
    CHECK(got.weights == expected.weights);
    CHECK(got.m == expected.m);
    CHECK(got.v == expected.v);
    CHECK(got.updates == expected.updates);
    CHECK(got.sites == expected.sites);
    CHECK(got.aux == expected.aux);
}

// A run with every checkpoint that it wrote and every micro-batch that it took.
struct Recorded {
    std::string out;
    std::map<std::string, Listing> checkpoints;  // by name
    std::vector<Moment> moments;

    void see_checkpoints() {
        for (const fs::path& path : list_checkpoints(out)) {
            Listing& known = checkpoints[path.filename()];
            if (known.empty()) known = listing_of(path);
        }
    }
};

// Carries `request` out, stopped by SIGTERM at a step if that is not negative.
Recorded record(const TinyTask& task, RunRequest request, int64_t stop_at = -1) {
    Recorded r;
    r.out = request.settings.out;
    request.on_step = [&](int64_t step) {
        r.see_checkpoints();
        if (step == stop_at) raise(SIGTERM);
    };
    WatchedEngine::moments.clear();
    if (stop_at < 0) {
        task.run(request);
    } else {
        CHECK_THROWS_AS(task.run(request), Interrupted);
        CHECK(g_signal == SIGTERM);
        g_signal = 0;
        CHECK_FALSE(fs::exists(r.out + "/config.json"));
    }
    r.see_checkpoints();
    r.moments = std::move(WatchedEngine::moments);
    return r;
}

RunRequest resumption_of(const RunRequest& request) {
    RunRequest again;
    again.command = request.command;
    again.settings.out = request.settings.out;
    again.resume = again.json_output = true;
    return again;
}

// ---------------------------------------------------------------------------------------------------------------------
// The kinds of run

struct Kind {
    std::string name;
    RunRequest request;
    std::vector<int64_t> stops;  // empty: every step
};

RunRequest with(RunRequest r, const std::vector<std::pair<const char*, const char*>>& values) {
    for (const auto& [key, value] : values) set(r.settings, key, value);
    return r;
}

std::vector<std::string> decisions_of(const std::string& run) {
    return logged<std::string>(run, "decision");
}

void check_resumes_identically(const TinyTask& task, const Kind& kind) {
    CAPTURE(kind.name);
    RunRequest request = with(kind.request, {{"save_every", "1"}, {"keep_checkpoints", "1"}});
    request.settings.out = task.scratch / "whole";
    const Recorded whole = record(task, request);
    const Listing result = result_of(whole.out);
    const int64_t accum = request.settings.values.grad_accum,
                  steps = static_cast<int64_t>(whole.moments.size()) / accum;
    REQUIRE(steps > 5);
    CHECK(whole.checkpoints.size() == static_cast<size_t>(steps - 1));  // of every step but the first

    std::vector<int64_t> stops = kind.stops;
    if (stops.empty()) {
        stops.resize(static_cast<size_t>(steps));
        std::iota(stops.begin(), stops.end(), 0);
    }
    for (const int64_t stop : stops) {
        CAPTURE(stop);
        RunRequest part = request;
        part.settings.out = task.scratch / "part";
        fs::remove_all(part.settings.out);
        const Recorded before = record(task, part, stop);
        const Recorded after = record(task, resumption_of(part));

        // Every checkpoint holds the whole state before its step.
        CHECK(before.checkpoints.count(checkpoint_name(stop)) == 1);
        for (const Recorded* part_of_it : {&before, &after})
            for (const auto& checkpoint : part_of_it->checkpoints) {
                CAPTURE(checkpoint.first);
                const auto expected = whole.checkpoints.find(checkpoint.first);
                if (expected != whole.checkpoints.end())
                    check_same(checkpoint.second, expected->second);
                else  // saved because of the signal
                    CHECK(checkpoint.first == checkpoint_name(stop));
            }
        // And every micro-batch was taken in the same state, the one in which the run stopped twice.
        REQUIRE(before.moments.size() >= static_cast<size_t>(stop * accum));
        REQUIRE(after.moments.size() == whole.moments.size() - static_cast<size_t>(stop * accum));
        for (size_t i = 0; i < before.moments.size(); i++) check_same(before.moments[i], whole.moments[i]);
        for (size_t i = 0; i < after.moments.size(); i++)
            check_same(after.moments[i], whole.moments[i + static_cast<size_t>(stop * accum)]);
        check_same(result_of(after.out), result);
    }
    fs::remove_all(whole.out);
}

}  // namespace

TEST_CASE("a run resumed from any step has the state, at every step, of one that was never stopped") {
    const OtherBackend watching(
        [](const ModelConfig& c) -> std::unique_ptr<Engine> { return std::make_unique<WatchedEngine>(c); });
    const TinyTask task(kTrained);
    const RunRequest paper = task.request, automatic = task.automatic();
    SUBCASE("paper") {
        check_resumes_identically(task, {"paper", with(paper, {{"preset", "paper"}}), {}});
    }
    SUBCASE("the paper's small and xl, shortened") {
        check_resumes_identically(task, {"small", with(paper, {{"preset", "small"}}), {0, 1, 5, 11}});
        check_resumes_identically(task, {"xl", with(paper, {{"preset", "xl"}}), {2, 9}});
    }
    SUBCASE("low-rank updates") {
        check_resumes_identically(task,
                                  {"low_rank", with(paper, {{"lora", "2"}, {"lora_embeddings", "true"}}), {1, 7}});
    }
    SUBCASE("precursor") {
        const RunRequest r = with(paper, {{"preset", "precursor"},
                                          {"steps", "36"},
                                          {"stop", "36"},
                                          {"release_position0", "32"},
                                          {"release_steps", "3"}});
        // f goes before step 10, end-of-text 20 later
        check_resumes_identically(task, {"precursor", r, {0, 1, 4, 10, 29, 30, 31, 33, 35}});
    }
    SUBCASE("own sigma of position 0, gradual removal, smoothed statistics without position 0") {
        const RunRequest own =
            with(paper, {{"own_position0", "true"}, {"release_position0", "14"}, {"gradual", "2"}, {"steps", "33"}});
        check_resumes_identically(task, {"own position 0", own, {1, 3, 14, 30}});
        const RunRequest gradual = with(paper, {{"gradual", "3"}, {"steps", "15"}, {"sigma_skips_position0", "true"}});
        check_resumes_identically(task, {"gradual", gradual, {0, 1, 3, 6, 13}});
    }
    SUBCASE("auxiliary loss everywhere, position 0 comes down") {
        const RunRequest r = with(paper, {{"aux_everywhere", "true"}, {"aux_relative", "true"}, {"shrink_steps", "6"}});
        check_resumes_identically(task, {"shrink", r, {0, 2, 5, 6}});
        const RunRequest neurons = with(paper, {{"shrink_neurons", "0:3 0:1"}, {"shrink_steps", "6"}});
        check_resumes_identically(task, {"shrink neurons", neurons, {0, 2, 6}});
    }
    SUBCASE("with a teacher: the model as it was, another") {
        check_resumes_identically(task, {"own teacher", with(paper, {{"distill", "0.7"}}), {0, 1, 6, 11}});
        RunRequest r = with(paper, {{"distill", "1"}, {"preset", "paper"}});
        set(r.settings, "teacher", task.run_into("teacher", r));  // which has no LayerNorm left
        check_resumes_identically(task, {"another teacher", r, {2, 9}});
        r.command = "finetune";
        check_resumes_identically(task, {"finetune", r, {0, 8}});
    }
    SUBCASE("finetune, with a position 0 that is planted and grows; pretrain") {
        RunRequest r = with(paper, {{"plant_position0", "3"}, {"plant_step", "5"}, {"grow_position0", "2"}});
        r.command = "finetune";
        check_resumes_identically(task, {"finetune", r, {0, 4, 5, 8}});
        r = paper;
        r.command = "pretrain";
        r.settings.model.clear();
        r.shape = [](int64_t V) { return shape_of(1, 2, 16, V, 20, 32); };
        check_resumes_identically(task, {"pretrain", r, {0, 1, 7}});
    }
    SUBCASE("auto") {
        check_resumes_identically(task, {"auto", automatic, {}});
    }
    SUBCASE("auto, with a position 0 that stands out") {
        RunRequest r = with(automatic, {{"batch", "16"}, {"steps", "25"}});
        r.settings.model = task.with_long_position0("0", "8");
        check_resumes_identically(task, {"outlier", r, {0, 1, 2, 5, 12}});
        CHECK(decisions_of(task.scratch / "part").at(0) == "position 0 stands out");
    }
    SUBCASE("tapernorm") {
        check_resumes_identically(task, {"tapernorm", with(automatic, {{"preset", "tapernorm"}}), {0, 1, 3, 7}});
    }
}

TEST_CASE("a run goes on with the teacher that it began with, wherever that lies now, and with no other") {
    const TinyTask task(kTrained);
    RunRequest r = with(task.request, {{"distill", "0.5"}, {"save_every", "1"}});
    const std::string teacher = task.scratch / "teacher", moved = task.scratch / "moved";
    fs::copy(r.settings.model, teacher);
    set(r.settings, "teacher", teacher);
    const std::string whole = task.run_into("whole", r);
    r.settings.out = task.scratch / "part";
    record(task, r, 6);

    RunRequest again = resumption_of(r);
    fs::rename(teacher, moved);
    CHECK(contains(message_of<BadInput>([&] { task.run(again); }), teacher));
    fs::copy(task.run_into("other", task.request), teacher);
    const Listing before = listing_of(r.settings.out);
    const std::string why = message_of<BadInput>([&] { task.run(again); });
    for (const char* words : {"--teacher", "no longer the model", "fingerprint"}) CHECK(contains(why, words));
    CHECK(contains(why, teacher));
    CHECK(listing_of(r.settings.out) == before);
    set(again.settings, "teacher", moved);
    task.run(again);
    CHECK(TinyTask::weights(r.settings.out) == TinyTask::weights(whole));
}

TEST_CASE("a run goes on with its shards wherever they lie now, to the same bytes, and with no others") {
    const TinyTask task(kTrained);
    RunRequest r = with(task.request, {{"save_every", "1"}});
    const std::string here = task.scratch / "here", there = task.scratch / "there";
    fs::create_directory(here);
    for (const char* split : {"train", "val"}) {
        const std::string name = std::string("/stories_") + split + "_000000.bin";
        fs::copy_file(task.scratch / ("." + name), here + name);
    }
    r.settings.data = {here + "/stories_train_*.bin"};
    r.settings.val = {here + "/stories_val_*.bin"};
    const std::string whole = task.run_into("whole", r);
    r.settings.out = task.scratch / "part";
    record(task, r, 6);
    fs::rename(here, there);

    RunRequest again = resumption_of(r);
    CHECK(contains(message_of<BadInput>([&] { task.run(again); }), "--resume --data"));
    again.settings.data = {there + "/stories_train_*.bin"};
    again.settings.given.insert("data");
    CHECK(contains(message_of<BadInput>([&] { task.run(again); }), "--resume --val"));
    again.settings.val = again.settings.data;
    again.settings.given.insert("val");
    CHECK(contains(message_of<BadInput>([&] { task.run(again); }), "not the shards"));
    again.settings.val = {there + "/stories_val_*.bin"};
    const Recorded stopped_again = record(task, again, 9);  // the new places are saved
    RunRequest rest = resumption_of(r);
    task.run(rest);
    check_same(result_of(r.settings.out), result_of(whole));
}

TEST_CASE("a run that wrote its own text goes on after its folder has moved, with --data self") {
    const TinyTask task(shape_of(1, 2, 16, 257, 17, 40));
    RunRequest r = with(task.request, {{"distill", "1"}, {"save_every", "1"}});
    r.settings.data = {"self"};
    r.settings.val.clear();
    const std::string whole = task.run_into("whole", r);
    r.settings.out = task.scratch / "part";
    record(task, r, 4);
    RunRequest again = resumption_of(r);
    again.settings.out = task.scratch / "moved";
    fs::rename(r.settings.out, again.settings.out);
    CHECK(contains(message_of<BadInput>([&] { task.run(again); }), "--resume --data"));
    again.settings.data = again.settings.val = {"self"};
    again.settings.given = {"data", "val"};
    task.run(again);
    CHECK(TinyTask::weights(again.settings.out) == TinyTask::weights(whole));
}

TEST_CASE("the whole state goes through JSON and comes back the same") {
    RunState state;
    state.step = 17;
    state.settings.preset = "auto";
    state.settings.experiment.taper = true;
    state.settings.lr = 1.0 / 3;
    state.settings.seed = 12345;
    state.settings.experiment.shrink_steps = 5;
    state.settings.distill = 0.3;
    state.sites = Sites(2);
    for (Site& site : state.sites.all) site.running = 0.1 * (&site - state.sites.all.data() + 3);
    freeze(state.sites.mlp(1), 1.0 / 7);
    state.sites.qk(0).a = 0.3;
    state.sites.qk(0).tapers = true;
    state.sites.qk(0).sigma_bar = 2.0 / 7;
    state.events = {{3, 1, "removed", 1.0 / 7}};
    state.adam_updates = 15;
    state.first_val_loss = 5.0 / 3;
    state.last_val_kl = 1.0 / 9;
    state.last_val_agreement = 8.0 / 9;
    state.last_val_loss = 4.0 / 3;
    const Json written = state_json(state);
    const RunState read = state_from_json(parse_json(written.dump(), "test"), 2, "file");
    CHECK(state_json(read) == written);
    CHECK(read.step == state.step);
    CHECK(read.adam_updates == state.adam_updates);
    CHECK(read.settings.lr == state.settings.lr);
    CHECK(read.settings.seed == state.settings.seed);
    CHECK(read.settings.experiment.shrink_steps == 5);
    CHECK(read.sites.mlp(1).sigma_bar == 1.0 / 7);
    CHECK(read.sites.qk(0).a == doctest::Approx(0.3).epsilon(1e-15));
    CHECK(read.sites.qk(0).tapers);
    CHECK(read.settings.experiment.taper);
    CHECK(read.sites.qk(0).running == state.sites.qk(0).running);
    CHECK(read.events.at(0).sigma_bar == 1.0 / 7);
    CHECK(read.first_val_loss == state.first_val_loss);
    CHECK(read.last_val_loss == state.last_val_loss);
    CHECK(read.last_val_kl == state.last_val_kl);
    CHECK(read.last_val_agreement == state.last_val_agreement);
    // Runs from before --distill had no teacher, and knew nothing of TaperNorm.
    Json older = parse_json(written.dump(), "test");
    for (const char* key : {"distill", "taper", "keep_f"}) older["protocol"].erase(key);
    CHECK(state_from_json(older, 2, "file").settings.distill == 0);
    older["protocol"]["preset"] = "adaptive";  // whose schedule is no more: it must not go on by another one
    CHECK(contains(message_of<BadInput>([&] { state_from_json(older, 2, "file"); }), "cannot go on"));
    older["protocol"]["preset"] = "auto";
    older["protocol"].erase("lr");
    CHECK_THROWS_AS(state_from_json(older, 2, "file"), JsonError);
}

// ---------------------------------------------------------------------------------------------------------------------
// Checkpoints and the folder

// The names of all checkpoints that were ever there at the beginning of a step.
std::set<std::string> checkpoints_seen(const TinyTask& task, RunRequest r, const std::string& name) {
    std::set<std::string> seen;
    r.settings.out = task.scratch / name;
    r.on_step = [&](int64_t) {
        if (!fs::exists(r.settings.out + "/checkpoints")) return;
        for (const auto& entry : fs::directory_iterator(r.settings.out + "/checkpoints"))
            seen.insert(entry.path().filename());
    };
    task.run(r);
    return seen;
}

TEST_CASE("--save-every says how often a run saves, and 0 that it never does, whatever the schedule") {
    const OtherBackend watching(
        [](const ModelConfig& c) -> std::unique_ptr<Engine> { return std::make_unique<WatchedEngine>(c); });
    const TinyTask task(kTrained);
    for (const bool automatic : {true, false}) {
        CAPTURE(automatic);
        const RunRequest r = automatic ? task.automatic() : task.request;
        const std::string name = automatic ? "auto" : "paper";
        CHECK(checkpoints_seen(task, with(r, {{"save_every", "0"}}), name + "0").empty());
        const std::set<std::string> every4 = {"step_000004", "step_000008"};
        CHECK(checkpoints_seen(task, with(r, {{"save_every", "4"}}), name + "4") == every4);
        CHECK_FALSE(fs::exists(task.scratch / (name + "4/checkpoints")));
    }
}

TEST_CASE("while a run goes on, no other may begin, resume or replace it in its folder") {
    const TinyTask task(kTrained);
    for (const bool automatic : {true, false}) {
        CAPTURE(automatic);
        RunRequest r = with(automatic ? task.automatic() : task.request, {{"save_every", "2"}});
        r.settings.out = task.scratch / (automatic ? "auto" : "paper");
        RunRequest first = r;
        int refused = 0;
        first.on_step = [&](int64_t step) {
            if (step != 5) return;
            const Listing before = listing_of(r.settings.out);
            RunRequest replacing = r;
            replacing.force = true;
            for (const RunRequest& second : {r, resumption_of(r), replacing}) {
                const std::string why = message_of<BadInput>([&] { lnfree::run(second); });
                CAPTURE(why);
                CHECK(contains(why, r.settings.out));
                if (second.resume || second.force) CHECK(contains(why, std::to_string(::getpid())));  // who holds it
                refused += why.empty() ? 0 : 1;
            }
            CHECK(listing_of(r.settings.out) == before);
        };
        CHECK(task.run(first)["layernorm_free"] == true);
        CHECK(refused == 3);
        const std::string undisturbed = task.run_into(automatic ? "auto2" : "paper2", r);
        CHECK(TinyTask::weights(r.settings.out) == TinyTask::weights(undisturbed));
    }
}
