// A removal that takes a tenth of a second, for tests of the training run: stories, shards, an untrained model's folder, and
// the options of a run. Include it after train_gpt2_lnfree.cpp or train_gpt2_lnfree.cu.
#pragma once

#include <doctest/doctest.h>

namespace lnfree {

// A folder of its own for a test, removed afterwards.
struct ScratchFolder {
    fs::path path;
    ScratchFolder() {
        std::string name = (fs::temp_directory_path() / "lnfree-engine-XXXXXX").string();
        REQUIRE(mkdtemp(name.data()) != nullptr);
        path = name;
    }
    ~ScratchFolder() { fs::remove_all(path); }
    std::string operator/(const std::string& name) const { return (path / name).string(); }
};

struct TinyTask {
    ScratchFolder scratch;
    RunOptions options;

    explicit TinyTask(const GPT2Config& c) {
        StoryWorld world(7);
        std::string text;
        for (int i = 0; i < 30; i++) text += ordered_json{{"text", world.next_story()}}.dump() + "\n";
        write_file_atomically(scratch / "stories.jsonl", text);
        TokenizeOptions tokenize;
        tokenize.inputs = {scratch / "stories.jsonl"};
        tokenize.out = scratch / "stories";
        tokenize.val_fraction = 0.1;
        tokenize_files(tokenize);
        GPT2 model(c);
        initialise(model, 1);
        write_model_folder(scratch / "base", c, plain_recipes(model, "transformer."), DType::F32,
                           {{"version", kFormatVersion}}, load_tokenizer("byte").get(), "");
        options.command = "remove";
        options.model = scratch / "base";
        options.data = {scratch / "stories_train_*.bin"};
        options.val = {scratch / "stories_val_*.bin"};
        options.val_tokens = 200;
        options.eval_every = 5;
        options.json_output = true;  // keeps standard output clean
        options.flags.steps = 12;
        options.flags.batch = 3;
        options.flags.seq = 17;
        options.flags.grad_accum = 2;
        options.flags.gap_mlp = options.flags.gap_qk = options.flags.gap_v = 1;
        options.flags.warmup = 1;
        options.flags.start_mlp = 1;
        options.flags.sigma_ema = 0.3;
    }
    // Runs quietly; the run's lines would drown the tests' output.
    ordered_json run(const RunOptions& o) {
        std::fflush(stderr);
        const int kept = dup(2), null = open("/dev/null", O_WRONLY);
        dup2(null, 2);
        ordered_json summary;
        try {
            summary = TrainingRun(o).execute();
        } catch (...) {
            std::fflush(stderr);
            dup2(kept, 2);
            close(kept);
            close(null);
            throw;
        }
        std::fflush(stderr);
        dup2(kept, 2);
        close(kept);
        close(null);
        return summary;
    }
    std::string weights(const std::string& out) { return read_file(out + "/model.safetensors", 1 << 30); }
};

}  // namespace lnfree
