// A removal that takes a tenth of a second, for tests of the training run: stories, shards, an untrained model's folder, and
// the request for a run.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "data/files.h"
#include "data/json.h"
#include "data/model_folder.h"
#include "data/story_world.h"
#include "data/tokenize.h"
#include "data/tokenizer.h"
#include "dev/engine.h"
#include "dev/method.h"
#include "dev/run/models.h"
#include "dev/run/run.h"
#include "dev/run/settings.h"
#include "test/file_helpers.h"
#include "test/quiet.h"

namespace lnfree {

// The lines of a run's log.
inline std::vector<Json> log_of(const std::string& out) {
    std::vector<Json> lines;
    std::istringstream text(read_bytes(out + "/log.jsonl"));
    for (std::string line; std::getline(text, line);) lines.push_back(parse_json(line, "test"));
    return lines;
}

// What the lines that have this key say under it.
template <class Value = double>
std::vector<Value> logged(const std::string& out, const char* key) {
    std::vector<Value> values;
    for (const Json& line : log_of(out))
        if (line.contains(key)) values.push_back(line[key].get<Value>());
    return values;
}

struct TinyTask {
    TemporaryFolder scratch;
    RunRequest request;

    explicit TinyTask(const ModelConfig& c) {
        StoryWorld world(7);
        std::string text;
        for (int i = 0; i < 30; i++) text += Json{{"text", world.next_story()}}.dump() + "\n";
        write_bytes(scratch / "stories.jsonl", text);
        TokenizeOptions tokenize;
        tokenize.inputs = {scratch / "stories.jsonl"};
        tokenize.out = scratch / "stories";
        tokenize.val_fraction = 0.1;
        tokenize_files(tokenize);
        const std::unique_ptr<Engine> model = make_reference(c);
        initialise(*model, 1);
        write_model(scratch / "base", c, plain_recipes(*model), WeightType::f32, {{"version", kFormatVersion}},
                    load_tokenizer("byte").get(), "");
        request.command = "remove";
        request.json_output = true;  // keeps standard output clean
        request.settings.model = scratch / "base";
        request.settings.data = {scratch / "stories_train_*.bin"};
        request.settings.val = {scratch / "stories_val_*.bin"};
        const std::vector<std::pair<const char*, const char*>> values = {
            {"val_tokens", "200"}, {"eval_every", "5"},  {"steps", "12"},    {"batch", "3"}, {"seq", "17"},
            {"grad_accum", "2"},   {"gap_mlp", "1"},     {"gap_qk", "1"},    {"gap_v", "1"}, {"warmup", "1"},
            {"start_mlp", "1"},    {"sigma_ema", "0.3"}, {"preset", "paper"}};
        for (const auto& [key, value] : values) set(request.settings, key, value);
    }
    // The task with the default preset, which says when sites go.
    RunRequest automatic() const {
        RunRequest r = request;
        for (const char* key : {"preset", "start_mlp", "gap_mlp", "gap_qk", "gap_v"}) r.settings.given.erase(key);
        return r;
    }
    // Runs quietly; the run's lines would drown the tests' output.
    Json run(const RunRequest& r) const {
        const Quiet quiet(2);
        return lnfree::run(r);
    }
    // The same into a folder of the task's, which is returned.
    std::string run_into(const std::string& name, RunRequest r) const {
        r.settings.out = scratch / name;
        run(r);
        return r.settings.out;
    }
    // A model whose position 0 stands out: its embedding longer by `planted`, or its layers trained to make it `grown` times
    // as long as the others.
    std::string with_long_position0(const char* planted, const char* grown) const {
        RunRequest r = request;
        r.command = "finetune";
        set(r.settings, "steps", "250");
        set(r.settings, "lr", "1e-2");
        set(r.settings, "plant_position0", planted);
        set(r.settings, "grow_position0", grown);
        return run_into("long", r);
    }
    static std::string weights(const std::string& out) { return read_bytes(out + "/model.safetensors"); }
};

}  // namespace lnfree
