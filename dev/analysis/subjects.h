// The models that `analyze` measures and what it measures them on: text, prompts or questions, read and checked, each with
// a fingerprint that says whether it is still what it was.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dev/analysis/benchmarks.h"
#include "dev/analysis/patching.h"
#include "dev/analysis/sample.h"
#include "dev/engine.h"
#include "dev/run/models.h"

namespace lnfree {
namespace analysis {

// What `analyze` was asked for.
struct Options {
    std::vector<std::string> models, data;
    std::string prompts;  // file; empty: the story world's own, for byte models
    std::string out;      // folder for the results as JSON; empty: none
    int64_t seq = 0;      // 0: n_ctx, at most 512 as in the paper
    int64_t sequences = 100, batch = 8;
    uint64_t seed = 1;
    BenchmarkOptions benchmarks;
    std::vector<std::string> parts;  // of a report; empty: all measurements
    bool paper = false;              // as the paper's code measures
    bool markdown = false, json_output = false, force = false;
};

enum class TakenOn { text, prompts, questions };

struct Subjects {
    std::vector<std::string> folders;
    std::vector<LoadedModel> loaded;
    std::vector<uint64_t> model_fingerprints;
    Sample sample;                   // what a measurement is taken on: text,
    std::vector<PromptSet> prompts;  // prompts,
    uint64_t prompts_fingerprint = 0;
    BenchmarkOptions benchmarks;                    // or questions,
    uint64_t questions_fingerprint = 0;             // of their files,
    std::vector<std::vector<BenchmarkTask>> tasks;  // tokenised for each model
    Procedure procedure;

    Engine& model(size_t i) const { return *loaded[i].model; }
};

// BadInput if a folder cannot be read, or the models have not one vocabulary.
Subjects load_subjects(const Options& o);

// Reads what measurements are taken on, once; of questions only which files they are in. BadInput if that is not given or
// does not fit.
void prepare(Subjects& s, TakenOn on, const Options& o);

// Reads the questions and tokenises them, once. BadInput as prepare_benchmarks.
void prepare_tasks(Subjects& s);

// {"name": {"prompts": [...], "answers": [[right, wrong], ...]}, ...}; neighbours 0 and 1, 2 and 3, ... are each other's
// corrupted partners. The sets come in the order of their names. BadInput says what is wrong.
std::vector<PromptSet> read_prompts(const std::string& path, const Tokenizer& tokenizer);

// Two models with the same fingerprint measure alike: of shape, sites, weights, tokenizer and lnfree.json, wherever the
// folder lies.
uint64_t fingerprint_of(const LoadedModel& loaded);

}  // namespace analysis
}  // namespace lnfree
