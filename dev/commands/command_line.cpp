// Declares the flags of all commands with CLI11. This is the one unit that sees it (10 s to compile): what a command does
// is in the file of its name, and changes there do not come by here.
#include "dev/commands/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "data/error.h"
#include "data/files.h"
#include "dev/analysis/cache.h"
#include "dev/analysis/explain_questions.h"
#include "dev/analysis/subjects.h"
#include "dev/commands/commands.h"
#include "dev/cpu/machine.h"
#include "dev/processes.h"
#include "dev/run/settings.h"

namespace lnfree {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Numbers. CLI11 alone takes 99999999999999999999 as the largest integer, -1 as an unsigned one, nan and inf.

// Refuses what the row does not allow, in the words of dev/run/settings.cpp.
CLI::Validator allowed_by(const Setting& row) {
    return CLI::Validator([row](std::string& text) { return problem_with(row, text); }, "");
}

// For flags that are no row of the table. 1e15 keeps products of a few such numbers within 64 bits.
CLI::Validator whole_number(double lowest, double highest = 1e15) {
    Setting row{};
    row.low = lowest;
    row.high = highest;
    return allowed_by(row);
}

CLI::Validator finite_number() {
    Setting row{};
    row.field = static_cast<double& (*)(RunSettings&)>(nullptr);
    row.low = std::numeric_limits<double>::lowest();
    row.high = std::numeric_limits<double>::max();
    return allowed_by(row);
}

// What every number must be, beside the bounds of its own.
void check_numbers(CLI::App& command) {
    for (CLI::App* inner : command.get_subcommands({})) check_numbers(*inner);
    for (CLI::Option* option : command.get_options()) {
        const std::string type = option->get_type_name();
        if (type == "INT") option->check(whole_number(0));
        if (type == "UINT") option->check(whole_number(0, 9223372036854775807.0));
        if (type == "FLOAT") option->check(finite_number());
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What all commands share

// The command line as far as it is declared. Options that parsing fills live as long as the action that uses them.
struct CommandLine {
    CLI::App app{"Takes the LayerNorms out of a trained GPT-2 by fine-tuning (arXiv 2409.13710, 2507.02559).",
                 "train_gpt2_lnfree"};
    int threads = 0;
    std::function<int()> action;  // of the command that was given
};

// In `parent`, the program or a command that has others in it. Of one within another the inner one is carried out: CLI11
// calls back from the inside.
CLI::App& add_command(CommandLine& line, CLI::App& parent, const char* name, const char* description, bool& json_output,
                      std::function<int()> action) {
    CLI::App& command = *parent.add_subcommand(name, description);
    command.add_option("--threads", line.threads, "processor threads [all]")->check(whole_number(1, 1024));
    command.add_flag("--json", json_output, "one JSON object on standard output, progress on standard error");
    command.callback([&line, action = std::move(action)] {
        if (!line.action) line.action = action;
    });
    return command;
}

CLI::App& add_command(CommandLine& line, const char* name, const char* description, bool& json_output,
                      std::function<int()> action) {
    return add_command(line, line.app, name, description, json_output, std::move(action));
}

// For commands that run a finished model.
void add_precision_flag(CLI::App& command, std::string& precision) {
    precision = backend().evaluation_precision;
    command
        .add_option("--precision", precision,
                    "of matrix products: fp32; tf32: on a GPU's tensor cores; bf16 where the machine is fast with it")
        ->capture_default_str()
        ->check(CLI::IsMember(backend().precisions));
}

void add_shape_flags(CLI::App& command, ModelShape& shape, const std::string& default_V) {
    command.add_option("--size", shape.size, "tiny (4 layers x 128), or GPT-2's small, medium, large, xl")
        ->capture_default_str();
    command.add_option("--n-layer", shape.L, "layers [from --size]");
    command.add_option("--family", shape.family, "gpt2, neox (as Pythia) or llama (RMSNorm, rotary, gated SiLU)")
        ->capture_default_str();
    command.add_option("--n-head", shape.NH, "attention heads [from --size]");
    command.add_option("--n-key-head", shape.KH, "heads of keys and values, of a llama [as many]");
    command.add_option("--n-embd", shape.C, "width of the residual stream [from --size]");
    command.add_option("--n-ctx", shape.n_ctx, "longest sequence [from --size]");
    command.add_option("--vocab-size", shape.V, "vocabulary " + default_V);
}

// ---------------------------------------------------------------------------------------------------------------------
// pretrain, remove, finetune: rows of the table of settings

// A number, a word, a flag or a list, by the type of the field. The field's own value is shown as what holds unless
// given, if the row does not say it in words.
template <class Value>
void add_row(CLI::App& command, const Setting& row, const std::string& help, Value& value) {
    CLI::Option* option = command.add_option(row.flag, value, help)->check(allowed_by(row));
    if (*row.fallback == '\0') option->capture_default_str();
}
void add_row(CLI::App& command, const Setting& row, const std::string& help, bool& value) {
    command.add_flag(row.flag, value, help);
}
void add_row(CLI::App& command, const Setting& row, const std::string& help, std::vector<std::string>& value) {
    command.add_option(row.flag, value, help);
}

// One row of the table as an option that fills its field of `settings`.
void add_setting(CLI::App& command, const Setting& row, RunSettings& settings) {
    const std::string fallback = row.fallback;
    const std::string help = row.help + (fallback.empty() ? "" : " [" + fallback + "]");
    std::visit([&](const auto& field) { add_row(command, row, help, field(settings)); }, row.field);
}

bool is_offered(const Setting& row, unsigned command) {
    return row.flag != nullptr && (row.commands & command) != 0 &&
           (!row.engine_only || backend().use_options != nullptr);
}

// With --resume only flags may be given that leave what the run has saved alone.
bool is_resumable(const std::string& flag) {
    for (const Setting& row : setting_table())
        if (row.flag != nullptr && flag == row.flag) return !row.trajectory;
    return flag == "--resume" || flag == "--threads" || flag == "--json" || flag == "--help";
}

void require_resumable_flags(const CLI::App& command) {
    for (const CLI::Option* option : command.get_options())
        if (option->count() > 0 && !is_resumable(option->get_name()))
            throw BadInput(option->get_name() +
                           " cannot be given with --resume: the run goes on with its saved values");
}

int run_parsed(const CLI::App& command, unsigned bit, RunRequest& request) {
    if (request.resume) require_resumable_flags(command);
    if (request.processes > 0 && !request.dry_run)
        throw BadInput("--processes: is for --dry-run; mpirun -np " + std::to_string(request.processes) +
                       " starts so many");
    for (const Setting& row : setting_table())
        if (is_offered(row, bit) && command.get_option(row.flag)->count() > 0) request.settings.given.insert(row.key);
    return run_command(request);
}

CLI::App& add_run_command(CommandLine& line, unsigned bit, const char* name, const char* description) {
    const auto request = std::make_shared<RunRequest>();
    request->command = name;
    CLI::App& command = add_command(line, name, description, request->json_output, [&line, bit, request] {
        return run_parsed(*line.app.get_subcommand(request->command), bit, *request);
    });
    for (const Setting& row : setting_table())
        if (is_offered(row, bit)) add_setting(command, row, request->settings);
    command.get_option("--out")->required();
    command.add_flag("--resume", request->resume,
                     "go on from the last checkpoint in --out, with the values saved there");
    command.add_flag("--force", request->force, "replace an earlier run in --out");
    command.add_flag("--dry-run", request->dry_run, "print schedule, memory and estimated time; write nothing");
    command
        .add_option("--processes", request->processes,
                    "with --dry-run: as if mpirun started so many [those that it did]")
        ->check(whole_number(1, 65536));
    if (bit != kPretrain) return command;
    const auto shape = std::make_shared<ModelShape>();
    add_shape_flags(command, *shape, "[from the data's PREFIX.json]");
    request->shape = [shape](int64_t data_V) { return shape->config(data_V); };
    return command;
}

void add_run_commands(CommandLine& line) {
    add_run_command(line, kPretrain, "pretrain", "Train a new GPT-2 with LayerNorm.");
    add_run_command(line, kRemove, "remove", "Remove every LayerNorm from a model: the main job.");
    add_run_command(line, kFinetune, "finetune",
                    "The vanilla control: the same run as remove, without removal and auxiliary loss.");
}

// ---------------------------------------------------------------------------------------------------------------------
// The others

void add_eval(CommandLine& line) {
    const auto o = std::make_shared<EvalOptions>();
    CLI::App& c = add_command(line, "eval", "Mean cross-entropy of one model, or of several side by side.",
                              o->json_output, [o] { return eval_command(*o); });
    c.add_option("--model", o->models, "one or more model folders")->required();
    c.add_option("--data", o->data, "token shards")->required();
    c.add_option("--seq", o->seq, "positions per sequence [n_ctx]")->check(whole_number(1));
    c.add_option("--batch", o->batch, "sequences at a time")->capture_default_str()->check(whole_number(1));
    c.add_option("--val-tokens", o->max_tokens, "stop after this many tokens [all]")->check(whole_number(0));
    c.add_option("--windows", o->windows,
                 "shifted: T predictions per sequence; paper: windows of T tokens, T - 1 predictions")
        ->capture_default_str();
    add_precision_flag(c, o->precision);
    c.add_option("--baseline", o->baseline,
                 "model that the others are held against: losses [the first]; if given, KL and likeliest tokens too");
    c.add_flag("--markdown", o->markdown, "print the table as Markdown");
    c.add_option("--worst", o->worst, "how many of the worst tokens to list")
        ->capture_default_str()
        ->check(whole_number(0));
    c.add_option("--logits", o->logits,
                 "file for the first sequence's logits: safetensors with one F32 tensor (T, vocabulary)");
    c.add_flag("--force", o->force, "replace the --logits file");
}

void add_export(CommandLine& line) {
    const auto o = std::make_shared<ExportOptions>();
    CLI::App& c =
        add_command(line, "export", "Write a model in Hugging Face form or, without any norm, in folded form.",
                    o->json_output, [o] { return export_command(*o); });
    c.add_option("--model", o->model, "model folder")->required();
    c.add_option("--out", o->out, "folder to write")->required();
    c.add_option("--form", o->form, "hf or folded")->capture_default_str();
    c.add_option("--dtype", o->dtype, "f32, bf16 or f16")->capture_default_str();
    c.add_flag("--force", o->force, "write into a folder that is not empty");
}

void add_generate(CommandLine& line) {
    const auto o = std::make_shared<GenerateOptions>();
    CLI::App& c = add_command(line, "generate", "Continue a prompt, or write shards of the model's own text.",
                              o->json_output, [o] { return generate_command(*o); });
    c.add_option("--model", o->model, "model folder with tokenizer files")->required();
    c.add_option("--prompt", o->prompt, "text to continue");
    c.add_option("--max-tokens", o->max_tokens, "tokens to make at most")->capture_default_str();
    c.add_option("--temperature", o->sampling.temperature, "0: always the most likely token")->capture_default_str();
    c.add_option("--top-k", o->sampling.top_k, "draw from the k most likely tokens; 0: from all")
        ->capture_default_str();
    c.add_option("--seed", o->sampling.seed, "of the draws")->capture_default_str();
    c.add_option("--shards", o->shards,
                 "PREFIX: writes PREFIX_train_000000.bin, PREFIX_val_000000.bin, PREFIX.json instead of text");
    c.add_option("--tokens", o->tokens, "with --shards: how many, in sequences of n_ctx");
    c.add_option("--val-fraction", o->val_fraction, "with --shards: share of them for validation")
        ->capture_default_str();
    c.add_option("--batch", o->batch, "with --shards: sequences at a time")->capture_default_str();
    add_precision_flag(c, o->precision);
}

void add_tokenize(CommandLine& line) {
    const auto o = std::make_shared<TokenizeOptions>();
    const auto json_output = std::make_shared<bool>(false);
    CLI::App& c = add_command(line, "tokenize", "Turn text into token shards, with a held-out split by document.",
                              *json_output, [&line, o, json_output] {
                                  o->threads = line.threads;
                                  return tokenize_command(*o, *json_output);
                              });
    c.add_option("--input", o->inputs, ".txt, .jsonl (key text), .gz of both, or - for standard input")->required();
    c.add_option("--format", o->format, "auto: by name and first bytes; or what the inputs are: text, jsonl")
        ->capture_default_str();
    c.add_option("--tokenizer", o->tokenizer, "byte, or a folder with tokenizer files")->capture_default_str();
    c.add_option("--out", o->out, "PREFIX: writes PREFIX_train_000000.bin, PREFIX_val_000000.bin, PREFIX.json")
        ->required();
    c.add_option("--val-fraction", o->val_fraction, "share of the documents held out")->capture_default_str();
    c.add_option("--seed", o->seed, "of the split")->capture_default_str();
    c.add_option("--shard-tokens", o->shard_tokens, "tokens per shard")->capture_default_str();
    c.add_option("--document-separator", o->document_separator, "what separates the documents of a .txt");
    c.add_option("--text-key", o->text_key, "key of the text in .jsonl")->capture_default_str();
    c.add_flag("--skip-bad-lines", o->skip_bad_lines, "pass over JSON lines without a text, and count them");
    c.add_flag("--allow-special", o->allow_special,
               "let special tokens in the text, such as <|endoftext|>, be tokens, as AutoTokenizer does");
}

void add_info(CommandLine& line) {
    const auto o = std::make_shared<InfoOptions>();
    CLI::App& c = add_command(line, "info", "Describe a model folder: shape, form, sigma of every site.",
                              o->json_output, [o] { return info_command(*o); });
    c.add_option("--model", o->model, "model folder");
    c.add_option("--size", o->size, "instead of a folder, with --memory: tiny, small, medium, large, xl");
    c.add_option("--family", o->family, "with --size: gpt2, neox (as Pythia) or llama")->capture_default_str();
    c.add_flag(
        "--memory", o->memory,
        "what training holds in memory: on the CPU by kind, on GPUs of 24, 80 and 141 GB what fits (CUDA engine)");
    c.add_option("--processes", o->processes, "with --memory: of so many processes each")
        ->capture_default_str()
        ->check(whole_number(1, 65536));
    c.add_option("--batch", o->batch, "with --memory: sequences per micro-batch")
        ->capture_default_str()
        ->check(whole_number(1, 65536));
    c.add_option("--lora", o->lora, "with --memory: training low-rank updates of this rank")
        ->check(whole_number(1, 65536));
    c.add_flag("--lora-embeddings", o->lora_embeddings, "with --memory and --lora: and the embeddings");
    c.add_option("--grad-accum", o->grad_accum, "with --memory: micro-batches per step [16, or one for each process]")
        ->check(whole_number(1, 65536));
    c.add_option("--data", o->data, "shards: also measure sigma at position 0 and elsewhere, on 64 sequences");
    c.add_option("--seq", o->seq, "positions per sequence [n_ctx]")->check(whole_number(1));
    add_precision_flag(c, o->precision);
    c.add_flag("--settings", o->settings, "instead: every setting of pretrain, remove and finetune");
    c.add_flag("--markdown", o->markdown, "print the settings as Markdown");
}

void add_stories(CommandLine& line) {
    const auto o = std::make_shared<StoriesOptions>();
    CLI::App& c = add_command(line, "stories", "Write the built-in story corpus as .jsonl.", o->json_output,
                              [o] { return stories_command(*o); });
    c.add_option("--out", o->out, "file to write, or - for standard output")->required();
    c.add_option("--count", o->count, "stories")->capture_default_str();
    c.add_option("--seed", o->seed, "of the stories")->capture_default_str();
    c.add_flag("--force", o->force, "replace the file");
}

void add_check(CommandLine& line) {
    const auto json_output = std::make_shared<bool>(false);
    add_command(line, "check", "Hold the GPU's operations and whole steps against the reference (CUDA engine).",
                *json_output, [json_output] { return check_command(*json_output); });
}

void add_bench(CommandLine& line) {
    const auto o = std::make_shared<BenchOptions>();
    CLI::App& c =
        add_command(line, "bench", "What this machine makes of the operations, of a training step and of evaluation.",
                    o->json_output, [o] { return bench_command(*o); });
    add_shape_flags(c, o->shape, "[257 for tiny, else 50257]");
    c.add_option("--batch", o->batch, "sequences")->capture_default_str()->check(whole_number(1, 1 << 20));
    c.add_option("--seq", o->seq, "positions per sequence")->capture_default_str()->check(whole_number(1, 1 << 20));
    add_precision_flag(c, o->precision);
    o->precision = backend().training_precision;
    c.add_option("--products", o->products,
                 "file: time cuBLASLt's eight best kernels for every product, and note the fastest (CUDA engine)");
    c.add_option("--seconds", o->seconds, "time for each figure of a whole step; a tenth for each operation")
        ->capture_default_str();
    CLI::Option* growth = c.add_option(
        "--growth", o->growth, "instead: tokens/s over widths and lengths beside the roofline, as this SVG file");
    CLI::Option* floors =
        c.add_flag("--floors", o->floors,
                   "instead, computed without a GPU: a step of the CUDA engine launch by launch, in bf16, with bytes, "
                   "flops and the least time on an H100 and an H200")
            ->excludes(growth)
            ->excludes(c.get_option("--precision"))
            ->excludes(c.get_option("--seconds"));
    c.add_option("--phase", o->phase,
                 "of a removal, for --floors: layernorm, apart (mlp and qk are removed) or removed")
        ->capture_default_str()
        ->needs(floors);
    c.add_option("--recompute", o->recompute, "for --floors: what backward remakes, 1: GELU, 2: the norms too")
        ->capture_default_str()
        ->check(whole_number(0, 2))
        ->needs(floors);
    c.add_flag("--distill", o->distill, "for --floors: beside a teacher")->needs(floors);
    c.add_flag("--markdown", o->markdown, "print the tables of --floors as Markdown")->needs(floors);
}

void add_explain(CommandLine& line, CLI::App& analyze) {
    const auto o = std::make_shared<analysis::ExplainOptions>();
    CLI::App& c =
        add_command(line, analyze, "explain", "Take one prediction apart: what every component adds to its logit.",
                    o->json_output, [&analyze, o] {
                        o->has_prompt = analyze.get_subcommand("explain")->count("--prompt") > 0;
                        return explain_and_print(*o);
                    });
    c.add_option("--model", o->model, "model folder")->required();
    c.add_option("--prompt", o->prompt, "text whose next token is explained");
    c.add_option(
        "--prompts", o->prompts,
        "instead: a file with a prompt per line, or JSON lines with prompt or tokens, target, against, position");
    c.add_option("--target", o->target, "text of one token, or #ID [the likeliest]");
    c.add_option("--against", o->against, "explain the target's logit minus this token's");
    c.add_option("--position", o->position, "whose next token, counted from 0 [the last]");
    c.add_flag("--bos", o->bos, "end-of-text in front of every prompt, as TransformerLens puts it");
    c.add_flag("--sources", o->sources, "in --json and --save: what each head brings from every position");
    c.add_flag("--neurons", o->neurons, "every neuron of every MLP");
    c.add_flag("--paths", o->paths, "paths of length two: what a head brings of each component in front of it");
    c.add_option("--top", o->top, "rows of each table")->capture_default_str()->check(whole_number(1));
    c.add_option("--html", o->html, "write a page to look into it, for any browser");
    c.add_option("--save", o->save, "write the contributions of every position, as .safetensors or .npz");
    c.add_flag("--markdown", o->markdown, "print the tables as Markdown");
    c.add_flag("--force", o->force, "replace the --html and --save files");
}

void add_cache(CommandLine& line, CLI::App& analyze) {
    const auto o = std::make_shared<analysis::CacheOptions>();
    CLI::App& c = add_command(line, analyze, "cache", "Write activations at chosen places, on shards, as safetensors.",
                              o->json_output, [o] { return cache_and_print(*o); });
    c.add_option("--model", o->model, "model folder")->required();
    c.add_option("--data", o->data, "token shards")->required();
    c.add_option("--hooks", o->hooks,
                 "places by TransformerLens's names, with commas: blocks.0.hook_mlp_out; * for all layers")
        ->required()
        ->delimiter(',');
    c.add_option("--tokens", o->tokens, "how many, from the shards' beginning, in whole sequences")->required();
    c.add_option("--out", o->out, "FILE.safetensors")->required();
    c.add_option("--dtype", o->dtype, "f32 or bf16")->capture_default_str();
    c.add_option("--seq", o->seq, "positions per sequence [n_ctx]")->check(whole_number(1));
    c.add_option("--batch", o->batch, "sequences at a time")->capture_default_str()->check(whole_number(1, 65536));
    c.add_flag("--force", o->force, "replace the file");
}

void add_analyze(CommandLine& line) {
    const auto o = std::make_shared<analysis::Options>();
    const auto measurement = std::make_shared<std::string>();
    CLI::App& c =
        add_command(line, "analyze",
                    "The paper's measurements of one model or several side by side; or, with a word of its own, "
                    "one prediction explained, or activations written.",
                    o->json_output, [o, measurement] {
                        if (measurement->empty()) throw BadInput("analyze: name a measurement; see --help");
                        if (o->models.empty()) throw BadInput("analyze: --model is required");
                        return analyze_and_print(*measurement, *o);
                    });
    add_explain(line, c);
    add_cache(line, c);
    c.require_subcommand(0, 1);
    c.add_option("measurement", *measurement, "one of:" + measurement_list());
    c.add_option("--model", o->models, "model folders; the first is what others are compared with");
    c.add_option("--data", o->data, "token shards to measure on; patching needs none");
    c.add_option("--prompts", o->prompts,
                 "JSON file of prompt sets, for patching [the story world's, for byte models]");
    c.add_option("--evals", o->benchmarks.evals, "folder with the benchmarks' files");
    c.add_option("--tasks", o->benchmarks.tasks, "benchmarks by name [all that the folder has]");
    c.add_option("--limit", o->benchmarks.limit, "the first so many questions of each benchmark; 0: all")
        ->capture_default_str();
    c.add_option("--choices", o->benchmarks.choices, "file for the benchmarks' answers, question by question");
    c.add_option("--parts", o->parts, "of the report: these measurements [all]");
    c.add_flag("--paper", o->paper,
               "dla, patching, sinks and confidence as the paper's code measures them (dev/analysis/README.md)");
    c.add_option("--seq", o->seq, "positions per sequence [n_ctx, at most 512]");
    c.add_option("--sequences", o->sequences, "sequences, spread evenly over the data")
        ->capture_default_str()
        ->check(whole_number(1));
    c.add_option("--batch", o->batch, "sequences at a time")->capture_default_str()->check(whole_number(1, 65536));
    c.add_option("--seed", o->seed, "of the resampling behind the intervals")->capture_default_str();
    c.add_option("--out", o->out, "folder in which to leave the result as MEASUREMENT.json as well");
    c.add_flag("--markdown", o->markdown, "print the tables as Markdown");
    c.add_flag("--force", o->force, "replace an earlier result there");
}

void add_plot(CommandLine& line) {
    const auto o = std::make_shared<PlotOptions>();
    CLI::App& c = add_command(line, "plot", "Draw the loss curves of runs, or a table's columns, as an SVG picture.",
                              o->json_output, [o] { return plot_command(*o); });
    c.add_option("--run", o->runs, "NAME=FOLDER of each run, the first one's start as reference");
    c.add_option("--table", o->table,
                 "CSV file: names in the first line; x in the first column, a line for each other");
    c.add_option("--out", o->out, "SVG file to write")->required();
    c.add_option("--title", o->title, "title of the picture")->capture_default_str();
    c.add_option("--y-label", o->y_label, "what is on the y axis");
    c.add_flag("--log-x", o->log_x, "a logarithmic x axis");
    c.add_flag("--log-y", o->log_y, "a logarithmic y axis");
    c.add_flag("--force", o->force, "replace the file");
}

// ---------------------------------------------------------------------------------------------------------------------

// CLI11 would take an unknown command for a stray argument.
void require_known_command(const CLI::App& app, int argc, char** argv) {
    if (argc < 2 || argv[1][0] == '-') return;
    const std::vector<const CLI::App*> commands = app.get_subcommands([](const CLI::App*) { return true; });
    const bool known = std::any_of(commands.begin(), commands.end(),
                                   [&](const CLI::App* command) { return command->get_name() == argv[1]; });
    if (!known) throw BadInput("there is no command " + quoted_name(argv[1]) + "; see --help");
}

// Of several processes each would do the same work and write the same files.
void require_several_can(const CLI::App& app) {
    static const std::set<std::string> shared = {"pretrain", "remove", "finetune", "eval"};
    const CLI::App& command = *app.get_subcommands().front();
    const bool loss = command.get_name() == "analyze" && command.count("measurement") > 0 &&
                      command.get_option("measurement")->as<std::string>() == "loss";
    if (processes().size() > 1 && shared.count(command.get_name()) == 0 && !loss)
        throw BadInput(command.get_name() + ": runs in one process; start it once");
}

}  // namespace

std::function<int()> parse_command_line(int argc, char** argv) {
    const auto line = std::make_shared<CommandLine>();
    line->app.require_subcommand(1);
    for (const auto add : {add_run_commands, add_eval, add_export, add_generate, add_tokenize, add_info, add_stories,
                           add_check, add_bench, add_analyze, add_plot})
        add(*line);
    for (CLI::App* command : line->app.get_subcommands({})) check_numbers(*command);
    require_known_command(line->app, argc, argv);
    try {
        line->app.parse(argc, argv);
    } catch (const CLI::Success& help) {
        line->app.exit(help);
        return [] { return 0; };
    } catch (const CLI::ParseError& e) {
        throw BadInput(std::string(e.what()) + "; see --help");
    }
    if (line->threads > 0) set_thread_count(line->threads);
    require_several_can(line->app);
    return [line] { return line->action(); };
}

}  // namespace lnfree
