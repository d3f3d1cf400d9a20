// Question answering as a measure of a model: HellaSwag, PIQA, WinoGrande, BoolQ and LAMBADA, scored as EleutherAI's
// lm-evaluation-harness does (2507.02559, App. F; benchmark_items.h has the questions).
//
// Nothing is generated. Every answer is a context and a continuation, and its score is the log-likelihood of the
// continuation's tokens; the model's choice is the answer with the best score.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "data/console.h"
#include "data/json.h"
#include "data/tokenizer.h"
#include "dev/analysis/benchmark_items.h"
#include "dev/engine.h"
#include "dev/run/models.h"

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// Tokens

// What the model reads and is scored on: the last `scored` of its tokens, each predicted from those in front of it.
struct Request {
    std::vector<int32_t> tokens;
    int64_t scored = 0;
    bool truncated = false;  // the context lost tokens on its left

    int64_t inputs() const { return static_cast<int64_t>(tokens.size()) - 1; }
};

// The harness's rule: white space at the end of the context goes over to the continuation, where GPT-2's tokens have it;
// the context is tokenised by itself, and the continuation's tokens are those that the whole text has beyond as many. An
// empty context becomes the end-of-text token. A model of n_ctx positions reads the last n_ctx + 1 tokens.
Request request_for(const Answer& answer, const Tokenizer& tokenizer, int64_t n_ctx);

// ---------------------------------------------------------------------------------------------------------------------
// Scores

struct Score {
    double loglikelihood = 0;  // of the continuation, in nats
    bool greedy = true;        // each of its tokens is the likeliest
};

// Requests that read the same tokens are answered by one sequence: both of a BoolQ item's are. Their indices, the longest
// sequences first, so that memory is allocated once and the time left is not underestimated.
std::vector<std::vector<size_t>> groups_by_input(const std::vector<Request>& requests);

// `pause` is called between micro-batches and may throw to end the measurement; it may be empty.
std::vector<Score> score_requests(Engine& model, const std::vector<Request>& requests, const std::string& label,
                                  const std::function<void()>& pause);

// ---------------------------------------------------------------------------------------------------------------------
// Reading what is asked

struct BenchmarkOptions {
    std::string evals;               // folder with the data sets' files
    std::vector<std::string> tasks;  // names of benchmarks(); empty: all that the folder has
    int64_t limit = 0;               // the first so many items of each; 0: all
    std::string choices;             // jsonl file for what was chosen, item by item; empty: none
    bool force = false;              // replace that file
    std::function<void()> pause;     // as in score_requests
};

struct BenchmarkFile {
    const Benchmark* benchmark;
    std::string path;
};

// The files of the tasks that are asked for. BadInput if there is none, or one is not there.
std::vector<BenchmarkFile> benchmark_files(const BenchmarkOptions& o);

// Of their contents, PIQA's labels too.
uint64_t fingerprint_of(const std::vector<BenchmarkFile>& files);

// One task, ready to be asked.
struct BenchmarkTask {
    const Benchmark* benchmark;
    std::string file;
    std::vector<Question> questions;
    std::vector<Request> requests;  // those of question 0, those of question 1, ...
    std::string unfit;              // why this model cannot be asked; empty: it can
};

// Reads and tokenises what is asked for, and runs nothing. BadInput if a file, an option or the model does not do.
std::vector<BenchmarkTask> prepare_benchmarks(const LoadedModel& loaded, const BenchmarkOptions& o);

// Floating-point operations that run_benchmarks will take, about.
double benchmark_flops(const ModelConfig& c, const std::vector<BenchmarkTask>& tasks);

// ---------------------------------------------------------------------------------------------------------------------
// Results

// What a model answered to one question.
struct Reply {
    std::vector<double> loglikelihoods;  // of its answers
    int64_t choice = 0, choice_norm = 0;
    bool right = false, right_norm = false;
};

std::vector<Reply> replies_of(const BenchmarkTask& task, const std::vector<Score>& scores);

// One object per task: data/README.md has the keys.
Json benchmark_summary(const BenchmarkTask& task, const std::vector<Reply>& replies);

// One line of the --choices file per question.
std::string choice_lines(const BenchmarkTask& task, const std::vector<Reply>& replies);

// Asks, and writes --choices. RunFailure if the model's predictions are not finite.
Json run_benchmarks(const LoadedModel& loaded, const std::vector<BenchmarkTask>& tasks, const BenchmarkOptions& o);

// A row per task and model, out of (model's name, what run_benchmarks gave).
Table benchmark_table(const std::vector<std::pair<std::string, Json>>& models);

}  // namespace analysis
}  // namespace lnfree
