#include "dev/analysis/benchmarks.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/shards.h"
#include "dev/analysis/sample.h"
#include "dev/run/records.h"

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// Tokens

Request request_for(const Answer& answer, const Tokenizer& tokenizer, int64_t n_ctx) {
    const size_t end = content_range(answer.context).second;
    const std::string context = answer.context.substr(0, end);
    const std::string continuation = answer.context.substr(end) + answer.continuation;
    Request r;
    std::vector<int32_t> whole;
    tokenizer.encode(context, r.tokens, true);
    tokenizer.encode(context + continuation, whole, true);
    if (context.empty()) {
        r.tokens = {tokenizer.end_of_text()};
        if (whole.empty() || whole[0] != r.tokens[0]) whole.insert(whole.begin(), r.tokens[0]);
    }
    const size_t cut = std::min(r.tokens.size(), whole.size());
    r.scored = static_cast<int64_t>(whole.size() - cut);
    r.tokens.insert(r.tokens.end(), whole.begin() + static_cast<std::ptrdiff_t>(cut), whole.end());
    const int64_t excess = r.inputs() - n_ctx;
    r.truncated = excess > 0;
    if (r.truncated) r.tokens.erase(r.tokens.begin(), r.tokens.begin() + excess);
    return r;
}

// ---------------------------------------------------------------------------------------------------------------------
// Scores

std::vector<std::vector<size_t>> groups_by_input(const std::vector<Request>& requests) {
    std::vector<size_t> order(requests.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    const auto compare = [&](size_t a, size_t b) {  // as strcmp
        const Request &x = requests[a], &y = requests[b];
        if (x.inputs() != y.inputs()) return x.inputs() > y.inputs() ? -1 : 1;
        const auto differ = std::mismatch(x.tokens.begin(), x.tokens.end() - 1, y.tokens.begin());
        if (differ.first == x.tokens.end() - 1) return 0;
        return *differ.first < *differ.second ? -1 : 1;
    };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return compare(a, b) < 0; });
    std::vector<std::vector<size_t>> groups;
    for (const size_t i : order) {
        if (groups.empty() || compare(groups.back()[0], i) != 0) groups.emplace_back();
        groups.back().push_back(i);
    }
    return groups;
}

namespace {

// Positions of one micro-batch: enough rows for the matrix product, few enough for the cache.
constexpr int64_t kBenchmarkPositions = 2048;

// The micro-batch of groups [first, last): sequences filled up on their right, which a causal model does not see.
void score_batch(Engine& model, std::vector<Score>& scores, const std::vector<Request>& requests,
                 const std::vector<std::vector<size_t>>& groups, size_t first, size_t last) {
    const int64_t B = static_cast<int64_t>(last - first), T = requests[groups[first][0]].inputs();
    std::vector<int32_t> inputs(static_cast<size_t>(B * T), 0), targets;
    std::vector<int64_t> rows;
    std::vector<size_t> owners;
    for (int64_t b = 0; b < B; b++) {
        const std::vector<size_t>& group = groups[first + static_cast<size_t>(b)];
        const Request& any = requests[group[0]];
        std::copy(any.tokens.begin(), any.tokens.end() - 1, inputs.begin() + b * T);
        for (const size_t i : group) {
            const Request& r = requests[i];
            for (int64_t t = r.inputs() - r.scored; t < r.inputs(); t++) {
                rows.push_back(b * T + t);
                targets.push_back(r.tokens[static_cast<size_t>(t + 1)]);
                owners.push_back(i);
            }
        }
    }
    std::vector<real> losses(rows.size());
    std::vector<uint8_t> likeliest(rows.size());
    model.score(losses.data(), likeliest.data(), inputs.data(), B, T, rows, targets.data());
    for (size_t n = 0; n < rows.size(); n++) {
        scores[owners[n]].loglikelihood -= static_cast<double>(losses[n]);
        scores[owners[n]].greedy &= likeliest[n] != 0;
    }
}

}  // namespace

std::vector<Score> score_requests(Engine& model, const std::vector<Request>& requests, const std::string& label,
                                  const std::function<void()>& pause) {
    const std::vector<std::vector<size_t>> groups = groups_by_input(requests);
    const auto length = [&](size_t g) { return requests[groups[g][0]].inputs(); };
    int64_t total = 0, done = 0;
    for (size_t g = 0; g < groups.size(); g++) total += length(g);
    std::vector<Score> scores(requests.size());
    ProgressBar progress(label + " tokens", static_cast<uint64_t>(total));
    for (size_t first = 0, last; first < groups.size(); first = last) {
        if (pause) pause();
        const size_t most = static_cast<size_t>(std::max<int64_t>(1, kBenchmarkPositions / length(first)));
        last = std::min(groups.size(), first + most);
        score_batch(model, scores, requests, groups, first, last);
        for (size_t g = first; g < last; g++) done += length(g);
        progress.update(static_cast<uint64_t>(done));
    }
    return scores;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

std::vector<BenchmarkFile> benchmark_files(const BenchmarkOptions& o) {
    if (!std::filesystem::is_directory(o.evals))
        throw BadInput("--evals " + quoted_name(o.evals) +
                       ": no such folder; name the one with the data sets' jsonl files");
    for (const std::string& name : o.tasks) benchmark_named(name);
    std::vector<BenchmarkFile> files;
    for (const Benchmark& b : benchmarks()) {
        const bool named = std::find(o.tasks.begin(), o.tasks.end(), b.name) != o.tasks.end();
        if (!o.tasks.empty() && !named) continue;
        const std::string path = benchmark_file(o.evals, b.name);
        if (path.empty() && named)
            throw BadInput("--evals " + o.evals + ": has no file " + b.name + "*.jsonl, which --tasks " + b.name +
                           " reads");
        if (!path.empty()) files.push_back({&b, path});
    }
    if (files.empty())
        throw BadInput("--evals " + o.evals +
                       ": has none of hellaswag*.jsonl, piqa*.jsonl, winogrande*.jsonl, boolq*.jsonl, lambada*.jsonl");
    return files;
}

uint64_t fingerprint_of(const std::vector<BenchmarkFile>& files) {
    Hash64 hash;
    const auto add = [&](const std::string& path) {
        const MappedFile file(path);
        hash.add(file.size());
        hash.add(file.data(), file.size());
    };
    for (const BenchmarkFile& file : files) {
        add(file.path);
        if (std::filesystem::exists(labels_file(file.path))) add(labels_file(file.path));
    }
    return hash.value();
}

namespace {

// Throws BadInput for what the model cannot read at all.
void check_request(const Request& r, int64_t V, const std::string& where) {
    for (const int32_t token : r.tokens)
        if (token < 0 || token >= V)
            throw BadInput(where + ": the tokenizer's token " + std::to_string(token) +
                           " is outside the model's vocabulary of " + std::to_string(V));
    if (r.scored == 0) throw BadInput(where + ": an answer without text cannot be scored");
}

BenchmarkTask prepare_task(const LoadedModel& loaded, const BenchmarkFile& file, int64_t limit) {
    const ModelConfig& c = loaded.model->config;
    BenchmarkTask task{file.benchmark, file.path, read_benchmark(*file.benchmark, file.path), {}, ""};
    if (limit > 0 && limit < static_cast<int64_t>(task.questions.size()))
        task.questions.resize(static_cast<size_t>(limit));
    for (size_t i = 0; i < task.questions.size(); i++) {
        const std::string where = file.path + " line " + std::to_string(i + 1);
        for (const Answer& answer : task.questions[i].answers) {
            Request r = request_for(answer, *loaded.tokenizer, c.n_ctx);
            check_request(r, c.V, where);
            if (r.scored > c.n_ctx && task.unfit.empty())
                task.unfit = where + ": an answer of " + std::to_string(r.scored) +
                             " tokens is longer than the model's " + std::to_string(c.n_ctx) + " positions";
            task.requests.push_back(std::move(r));
        }
    }
    return task;
}

}  // namespace

std::vector<BenchmarkTask> prepare_benchmarks(const LoadedModel& loaded, const BenchmarkOptions& o) {
    const std::vector<BenchmarkFile> files = benchmark_files(o);
    if (!o.choices.empty() && std::filesystem::exists(o.choices) && !o.force)
        throw BadInput("--choices " + o.choices + ": already exists; name another file or give --force");
    required_tokenizer(loaded, "--model", "analyze benchmarks");
    std::vector<BenchmarkTask> tasks;
    for (const BenchmarkFile& file : files) tasks.push_back(prepare_task(loaded, file, o.limit));
    return tasks;
}

namespace {

// 2 per weight and token, attention, and the unembedding of what is scored.
double scoring_flops(const ModelConfig& c, const std::vector<Request>& requests) {
    const double C = static_cast<double>(c.C), L = static_cast<double>(c.L);
    const double per_token = 2 * L * C * static_cast<double>(4 * c.C + 2 * c.n_inner);
    double flops = 0;
    for (const std::vector<size_t>& group : groups_by_input(requests)) {
        const double T = static_cast<double>(requests[group[0]].inputs());
        flops += T * (per_token + 2 * L * C * T);
        for (const size_t i : group)
            flops += 2 * C * static_cast<double>(c.V) * static_cast<double>(requests[i].scored);
    }
    return flops;
}

}  // namespace

double benchmark_flops(const ModelConfig& c, const std::vector<BenchmarkTask>& tasks) {
    double flops = 0;
    for (const BenchmarkTask& task : tasks)
        if (task.unfit.empty()) flops += scoring_flops(c, task.requests);
    return flops;
}

// ---------------------------------------------------------------------------------------------------------------------
// Results

namespace {

// Index of the largest value, of the first one where several are.
int64_t best_of(const std::vector<double>& values) {
    return std::max_element(values.begin(), values.end()) - values.begin();
}

}  // namespace

std::vector<Reply> replies_of(const BenchmarkTask& task, const std::vector<Score>& scores) {
    std::vector<Reply> replies;
    size_t next = 0;
    for (const Question& question : task.questions) {
        Reply reply;
        std::vector<double> per_character;
        bool greedy = true;
        for (const Answer& answer : question.answers) {
            const Score& score = scores[next++];
            reply.loglikelihoods.push_back(score.loglikelihood);
            per_character.push_back(score.loglikelihood / static_cast<double>(answer.length));
            greedy = score.greedy;
        }
        reply.choice = best_of(reply.loglikelihoods);
        reply.choice_norm = best_of(per_character);
        reply.right = task.benchmark->greedy ? greedy : reply.choice == question.gold;
        reply.right_norm = reply.choice_norm == question.gold;
        replies.push_back(std::move(reply));
    }
    return replies;
}

namespace {

// A mean and its standard error, from the sample's standard deviation (n - 1); that of a single value is not known.
struct Estimate {
    double mean, error;
};
Estimate estimate_of(const std::vector<double>& values) {
    const double n = static_cast<double>(values.size());
    double sum = 0, squares = 0;
    for (const double x : values) sum += x;
    for (const double x : values) squares += (x - sum / n) * (x - sum / n);
    return {sum / n, std::sqrt(squares / (n - 1) / n)};
}

}  // namespace

Json benchmark_summary(const BenchmarkTask& task, const std::vector<Reply>& replies) {
    std::vector<double> right, right_norm, loglikelihood;
    for (const Reply& reply : replies) {
        right.push_back(reply.right ? 1 : 0);
        right_norm.push_back(reply.right_norm ? 1 : 0);
        loglikelihood.push_back(reply.loglikelihoods[0]);
    }
    Json j;
    const auto add = [&](const std::string& name, const Estimate& e) {
        j[name] = e.mean;
        j[name + "_stderr"] = number_or_null(e.error);
    };
    add("acc", estimate_of(right));
    if (task.benchmark->normalised) add("acc_norm", estimate_of(right_norm));
    if (task.benchmark->greedy) {
        // The harness draws the standard error by bootstrap; to first order it is this one.
        const Estimate e = estimate_of(loglikelihood);
        add("perplexity", {std::exp(-e.mean), std::exp(-e.mean) * e.error});
    } else {
        j["chance"] = 1.0 / static_cast<double>(task.questions[0].answers.size());
    }
    j["truncated"] =
        std::count_if(task.requests.begin(), task.requests.end(), [](const Request& r) { return r.truncated; });
    return j;
}

std::string choice_lines(const BenchmarkTask& task, const std::vector<Reply>& replies) {
    std::string lines;
    for (size_t i = 0; i < replies.size(); i++) {
        const Reply& reply = replies[i];
        Json j{{"task", task.benchmark->name}, {"item", i}};
        if (task.benchmark->greedy) {
            j["greedy"] = reply.right;
        } else {
            j["gold"] = task.questions[i].gold;
            j["choice"] = reply.choice;
            if (task.benchmark->normalised) j["choice_norm"] = reply.choice_norm;
        }
        j["loglikelihoods"] = reply.loglikelihoods;
        lines += j.dump() + "\n";
    }
    return lines;
}

Json run_benchmarks(const LoadedModel& loaded, const std::vector<BenchmarkTask>& tasks, const BenchmarkOptions& o) {
    Json results = Json::array();
    std::string choices;
    for (const BenchmarkTask& task : tasks) {
        Json j{{"task", task.benchmark->name}, {"file", task.file}, {"items", task.questions.size()}};
        if (!task.unfit.empty()) {
            j["skipped"] = task.unfit;
            results.push_back(j);
            continue;
        }
        const double begin = steady_seconds();
        const std::vector<Score> scores = score_requests(*loaded.model, task.requests, task.benchmark->name, o.pause);
        for (const Score& score : scores)
            if (!std::isfinite(score.loglikelihood))
                throw RunFailure(std::string(task.benchmark->name) +
                                 ": a log-likelihood is not finite; the model has diverged, take an earlier one");
        const std::vector<Reply> replies = replies_of(task, scores);
        j.update(benchmark_summary(task, replies));
        j["seconds"] = steady_seconds() - begin;
        results.push_back(j);
        choices += choice_lines(task, replies);
    }
    if (!o.choices.empty()) write_file_atomically(o.choices, choices);
    return {{"evals", o.evals}, {"limit", o.limit}, {"tasks", results}};
}

Table benchmark_table(const std::vector<std::pair<std::string, Json>>& models) {
    const auto percent = [](const Json& j, const std::string& name) -> std::string {
        if (!j.contains(name)) return "";
        const Json& error = j[name + "_stderr"];
        return format_fixed(100 * j[name].get<double>(), 1) +
               (error.is_null() ? "" : " ± " + format_fixed(100 * error.get<double>(), 1));
    };
    Table table({"benchmark", "model", "items", "accuracy (%)", "per character (%)", "chance (%)", "perplexity"});
    for (const Benchmark& b : benchmarks())
        for (const auto& [name, result] : models)
            for (const Json& j : result["tasks"]) {
                if (j["task"] != b.name) continue;
                table.add_row({b.title, name, format_count(j["items"].get<uint64_t>()),
                               j.contains("skipped") ? "n/a" : percent(j, "acc"), percent(j, "acc_norm"),
                               j.contains("chance") ? format_fixed(100 * j["chance"].get<double>(), 1) : "",
                               j.contains("perplexity") ? format_general(j["perplexity"].get<double>()) : ""});
            }
    return table;
}

}  // namespace analysis
}  // namespace lnfree
