// The commands of the program: what each is asked for (the flags' values; command_line.cpp declares the flags) and the
// function that carries it out, in the file of its name in this folder. Each prints its result for people or, with
// json_output, as one JSON object (data/README.md), and returns the exit status. What goes wrong is thrown: BadInput,
// RunFailure, NoGpu (data/error.h), Interrupted (dev/run/signals.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenize.h"
#include "dev/commands/model_shape.h"
#include "dev/run/run.h"
#include "dev/run/samples.h"

namespace lnfree {

namespace analysis {
struct Options;         // dev/analysis/subjects.h
struct ExplainOptions;  // dev/analysis/explain_questions.h
struct CacheOptions;    // dev/analysis/cache.h
}  // namespace analysis

// What main() is: sets the process up, then run_program. It may start the program once more, in this process.
int program_main(int argc, char** argv);
// The whole program: parses, carries a command out by the engine that backend() names, and says in one
// line on standard error what went wrong. Exit status: 0 done, 1 the run failed, 2 bad use, 3 no GPU, 128 + n stopped by
// signal n after saving.
int run_program(int argc, char** argv);

// pretrain, remove, finetune
int run_command(const RunRequest& request);

// eval: mean cross-entropy of one model, or of several side by side, and how faithful they are to a baseline
struct EvalOptions {
    std::vector<std::string> models, data;
    int64_t seq = 0, batch = 8, max_tokens = 0, worst = 10;
    std::string windows = "shifted", precision = "fp32";
    std::string baseline;  // one of `models`: what the others are held against; empty: the first, and losses alone
    std::string logits;    // file for the first sequence's logits; empty: none
    bool markdown = false, json_output = false, force = false;
};
int eval_command(const EvalOptions& o);

// export: a finished model in one of its two linear forms
struct ExportOptions {
    std::string model, out, form = "hf", dtype = "f32";
    bool force = false, json_output = false;
};
int export_command(const ExportOptions& o);

// generate: a prompt continued, or shards of the model's own text
struct GenerateOptions {
    std::string model, prompt, shards, precision = "fp32";
    int64_t max_tokens = 200, batch = 32;
    Sampling sampling;
    uint64_t tokens = 0;  // of all shards together
    double val_fraction = 0.05;
    bool json_output = false;
};
int generate_command(const GenerateOptions& o);

// Bytes of `text` that can be shown already: all but a UTF-8 character at the end that lacks bytes. Bytes that begin no
// character are not waited for.
size_t complete_utf8_prefix(const std::string& text);

// tokenize: text into token shards
int tokenize_command(const TokenizeOptions& o, bool json_output);

// info: a model folder described; or what training holds in memory; or the table of settings
struct InfoOptions {
    std::string model;
    std::vector<std::string> data;  // shards on which to measure sigma; empty: nothing is measured
    int64_t seq = 0;                // 0: n_ctx
    std::string size;               // instead of a model, for `memory`
    std::string family = "gpt2";    // of the size
    std::string precision = "fp32";
    int64_t processes = 1, batch = 1, lora = 0;  // of `memory`
    bool lora_embeddings = false;
    int64_t grad_accum = 0;  // 0: 16, or one for each process
    bool memory = false, settings = false;
    bool markdown = false, json_output = false;  // markdown: of `settings`
};
int info_command(const InfoOptions& o);
int memory_command(const InfoOptions& o);    // --memory, info_memory.cpp
int settings_command(const InfoOptions& o);  // --settings, info_settings.cpp

// stories: the built-in corpus, one JSON line per story
struct StoriesOptions {
    std::string out;  // "-": standard output
    uint64_t count = 1000, seed = 1;
    bool force = false, json_output = false;
};
int stories_command(const StoriesOptions& o);

// plot: loss curves of several runs, or the columns of a table, in one picture
struct PlotOptions {
    std::vector<std::string> runs;  // NAME=FOLDER, or FOLDER
    std::string table, out, title = "Loss while LayerNorms are removed", y_label;
    bool log_x = false, log_y = false, force = false, json_output = false;
};
int plot_command(const PlotOptions& o);

// check: another engine held against the reference
int check_command(bool json_output);

// bench: what this machine makes of the operations, of a training step and of evaluation
struct BenchOptions {
    ModelShape shape{"small"};
    int64_t batch = 4, seq = 64;
    double seconds = 1;  // for every figure
    std::string precision, products;
    std::string growth;               // instead: tokens/s over widths and lengths, as this SVG file
    bool floors = false;              // instead: how long each launch of the CUDA engine must take at the least
    std::string phase = "layernorm";  // of `floors`, as the next ones
    int64_t recompute = 0;
    bool distill = false, markdown = false;
    bool json_output = false;
};
int bench_command(const BenchOptions& o);
int floors_command(const BenchOptions& o);  // --floors, bench_floors.cpp

// analyze: the paper's measurements (dev/analysis), `what` by name, or "report". For --help, one line on each.
int analyze_and_print(const std::string& what, const analysis::Options& o);
std::string measurement_list();
int explain_and_print(const analysis::ExplainOptions& o);  // analyze explain
int cache_and_print(const analysis::CacheOptions& o);      // analyze cache

}  // namespace lnfree
