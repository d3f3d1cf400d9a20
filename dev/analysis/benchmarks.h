// Question answering as a measure of a model: HellaSwag, PIQA, WinoGrande, BoolQ and LAMBADA, asked and scored as
// EleutherAI's lm-evaluation-harness does (0.4.13: its tasks hellaswag, piqa, winogrande, boolq and lambada_openai,
// without examples in the prompt). Included by train_gpt2_lnfree.cpp, after the model and its folders.
//
// Nothing is generated. Every answer is a context and a continuation, and its score is the log-likelihood of the
// continuation's tokens; the model's choice is the answer with the best score.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/tokenizer.h"

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// Text as Python sees it: the harness's prompts come from its string functions

// The characters that str.strip() takes away.
inline bool is_python_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Where the first character that is no space begins, and where the last one ends; 0, 0 if there is none.
inline std::pair<size_t, size_t> content_range(const std::string& text) {
    size_t begin = 0, end = 0;
    for (size_t next = 0; next < text.size();) {
        const size_t start = next;
        if (is_python_space(console_detail::next_code_point(text, next))) continue;
        if (end == 0) begin = start;
        end = next;
    }
    return {begin, end};
}

inline std::string stripped(const std::string& text) {
    const auto [begin, end] = content_range(text);
    return text.substr(begin, end - begin);
}

// Length in characters, not bytes.
inline int64_t characters(const std::string& text) {
    return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

// Every `from`, left to right and none of them twice.
inline std::string replaced(const std::string& text, const std::string& from, const std::string& to) {
    std::string out;
    size_t start = 0;
    for (size_t at; (at = text.find(from, start)) != std::string::npos; start = at + from.size())
        out += text.substr(start, at - start) + to;
    return out + text.substr(start);
}

// str.capitalize() for ASCII letters: the first is a capital, the others are not. Others stay as they are.
inline std::string capitalised(std::string text) {
    for (size_t i = 0; i < text.size(); i++) {
        const bool small = text[i] >= 'a' && text[i] <= 'z', capital = text[i] >= 'A' && text[i] <= 'Z';
        if (i == 0 ? small : capital) text[i] = static_cast<char>(text[i] ^ 0x20);
    }
    return text;
}

// Without what stands in brackets on one line.
inline std::string without_brackets(const std::string& text) {
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
        const size_t end = text[i] == '[' ? text.find_first_of("]\n", i) : std::string::npos;
        if (end != std::string::npos && text[end] == ']') {
            i = end;
        } else {
            out += text[i];
        }
    }
    return out;
}

// HellaSwag's texts from WikiHow carry marks such as [title] and [step].
inline std::string without_wikihow_marks(const std::string& text) {
    return replaced(without_brackets(replaced(stripped(text), " [title]", ". ")), "  ", " ");
}

// ---------------------------------------------------------------------------------------------------------------------
// The data sets' files

// A context and what may follow it. The space between the two belongs to the continuation.
struct Answer {
    std::string context, continuation;
    int64_t length;  // of the answer's own text, in characters; acc_norm divides by it
};

struct Question {
    std::vector<Answer> answers;  // LAMBADA: the one right word
    int64_t gold = 0;             // index of the right answer
};

// One line of a jsonl file. Its fields, or BadInput with file, line and what is wrong.
class Record {
  public:
    Record(const std::string& text, const std::string& path, int64_t line)
        : where_(path + " line " + std::to_string(line)), fields_(parse_json(text, where_)) {
        if (!fields_.is_object()) throw BadInput(where_ + ": is not a JSON object");
    }

    bool has(const char* key) const { return fields_.contains(key); }
    const nlohmann::json& field(const char* key) const {
        if (!has(key)) fail(std::string("has no \"") + key + '"');
        return fields_[key];
    }
    std::string text(const char* key) const {
        if (!field(key).is_string()) fail(std::string("\"") + key + "\" is not a text");
        return field(key).get<std::string>();
    }
    // A list of so many texts.
    std::vector<std::string> texts(const char* key, size_t count) const {
        const nlohmann::json& list = field(key);
        const bool good = list.is_array() && list.size() == count &&
                          std::all_of(list.begin(), list.end(), [](const auto& x) { return x.is_string(); });
        if (!good) fail(std::string("\"") + key + "\" is not a list of " + std::to_string(count) + " texts");
        return list.get<std::vector<std::string>>();
    }
    // Index of the right answer, 0 to count - 1, as a number or its digit.
    int64_t index(const char* key, int64_t count) const {
        const nlohmann::json& value = field(key);
        for (int64_t i = 0; i < count; i++)
            if (value == i || value == std::to_string(i)) return i;
        fail(std::string("\"") + key + "\" is " + quoted_name(value.dump()) + ", not one of 0 to " +
             std::to_string(count - 1));
    }
    [[noreturn]] void fail(const std::string& what) const { throw BadInput(where_ + ": " + what); }

  private:
    std::string where_;
    nlohmann::json fields_;
};

inline Answer answer_after(const std::string& context, const std::string& text) {
    return {context, " " + text, characters(text)};
}

// The data set's own fields, or, under another name, AbstainQA's: the whole context as "question" without the activity's
// label, so that these accuracies are not quite the published ones. Half of its contexts end in an unfinished sentence,
// the data set's ctx_b, which the harness begins with a capital.
inline Question hellaswag_question(const Record& r) {
    Question q;
    std::string context;
    std::vector<std::string> endings;
    if (r.has("endings")) {
        context = r.text("activity_label") + ": " + r.text("ctx_a") + " " + capitalised(r.text("ctx_b"));
        endings = r.texts("endings", 4);
        q.gold = r.index("label", 4);
    } else if (r.has("question")) {
        context = r.text("question");
        const size_t stop = context.find_last_of(".!?");
        if (stop != std::string::npos && stop + 2 < context.size() && context[stop + 1] == ' ' &&
            context[stop + 2] >= 'a' && context[stop + 2] <= 'z')
            context = context.substr(0, stop + 2) + capitalised(context.substr(stop + 2));
        const nlohmann::json& choices = r.field("choices");
        const std::string letters = "ABCD", answer = r.text("answer");
        const size_t right = letters.find(answer);
        if (answer.size() != 1 || right == std::string::npos)
            r.fail("\"answer\" is " + quoted_name(answer) + ", not A, B, C or D");
        q.gold = static_cast<int64_t>(right);
        for (const char letter : letters) {
            const auto ending = choices.find(std::string(1, letter));
            if (ending == choices.end() || !ending->is_string()) r.fail("\"choices\" are not four texts A, B, C and D");
            endings.push_back(ending->get<std::string>());
        }
    } else {
        r.fail("is no item of HellaSwag: neither \"endings\" nor \"question\"");
    }
    for (const std::string& ending : endings)
        q.answers.push_back(answer_after(without_wikihow_marks(context), without_wikihow_marks(ending)));
    return q;
}

// The label is in the record, or in a second file (read_benchmark).
inline Question piqa_question(const Record& r) {
    const std::string context = "Question: " + r.text("goal") + "\nAnswer:";
    Question q;
    for (const char* key : {"sol1", "sol2"}) q.answers.push_back(answer_after(context, r.text(key)));
    if (r.has("label")) q.gold = r.index("label", 2);
    return q;
}

// Partial scoring (arXiv 1806.02847): the options stand in the context, and what follows the gap is scored.
inline Question winogrande_question(const Record& r) {
    Question q;
    std::vector<std::string> contexts;
    std::string rest;
    if (r.has("sentence")) {
        const std::string sentence = r.text("sentence"), answer = r.text("answer");
        const size_t gap = sentence.find('_');
        if (gap == std::string::npos) r.fail("\"sentence\" has no gap _");
        if (answer != "1" && answer != "2") r.fail("\"answer\" is " + quoted_name(answer) + ", not 1 or 2");
        for (const char* key : {"option1", "option2"}) contexts.push_back(sentence.substr(0, gap) + r.text(key));
        rest = stripped(sentence.substr(gap + 1));
        q.gold = answer == "1" ? 0 : 1;
    } else if (r.has("context_options")) {
        contexts = r.texts("context_options", 2);
        rest = r.text("continuation");
        q.gold = r.index("gold", 2);
    } else {
        r.fail("is no item of WinoGrande: neither \"sentence\" nor \"context_options\"");
    }
    for (const std::string& context : contexts) q.answers.push_back(answer_after(context, rest));
    return q;
}

// As BoolQ's authors publish it (the title apart), as SuperGLUE does (the title in front of the passage), or MosaicML's
// (no title, which makes another prompt than the harness's).
inline Question boolq_question(const Record& r) {
    Question q;
    std::string context;
    const auto truth = [&](const char* key) {
        return r.field(key).is_boolean() ? static_cast<int64_t>(r.field(key).get<bool>()) : r.index(key, 2);
    };
    if (r.has("passage")) {
        const std::string title = r.has("title") ? r.text("title") + " -- " : "";
        context = title + r.text("passage") + "\nQuestion: " + r.text("question") + "?";
        q.gold = truth(r.has("answer") ? "answer" : "label");
    } else if (r.has("query")) {
        context = r.text("query");
        const std::string passage = "Passage: ";
        if (context.compare(0, passage.size(), passage) != 0 || context.find("\nQuestion: ") == std::string::npos)
            r.fail("\"query\" is not made of \"Passage: \", a line break and \"Question: \"");
        if (r.texts("choices", 2) != std::vector<std::string>{"no", "yes"}) r.fail("\"choices\" are not no and yes");
        context = context.substr(passage.size());
        q.gold = r.index("gold", 2);
    } else {
        r.fail("is no item of BoolQ: neither \"passage\" nor \"query\"");
    }
    for (const char* word : {"no", "yes"}) q.answers.push_back(answer_after(context + "\nAnswer:", word));
    return q;
}

// The last word is what follows the last space: "text", or already cut in two.
inline Question lambada_question(const Record& r) {
    if (r.has("context")) return {{answer_after(r.text("context"), r.text("continuation"))}};
    const std::string text = r.text("text");
    const size_t space = text.rfind(' ');
    if (space == std::string::npos) return {{answer_after("", text)}};
    return {{answer_after(text.substr(0, space), text.substr(space + 1))}};
}

struct Benchmark {
    const char *name, *title;
    Question (*read)(const Record&);
    bool normalised;  // acc_norm is defined
    bool greedy;      // right is what greedy decoding would write; there is nothing to choose from
};

inline const std::vector<Benchmark>& benchmarks() {
    static const std::vector<Benchmark> all = {{"hellaswag", "HellaSwag", hellaswag_question, true, false},
                                               {"piqa", "PIQA", piqa_question, true, false},
                                               {"winogrande", "WinoGrande", winogrande_question, false, false},
                                               {"boolq", "BoolQ", boolq_question, false, false},
                                               {"lambada", "LAMBADA", lambada_question, false, true}};
    return all;
}

inline const Benchmark& benchmark_named(const std::string& name) {
    std::string names;
    for (const Benchmark& b : benchmarks()) {
        if (name == b.name) return b;
        names += std::string(names.empty() ? "" : ", ") + b.name;
    }
    throw BadInput("--tasks " + name + ": is none of " + names);
}

// The jsonl file of a task in a folder: the one whose name begins with the task's. "" if there is none, BadInput if there
// are two.
inline std::string benchmark_file(const std::string& folder, const std::string& task) {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        if (entry.path().filename().string().compare(0, task.size(), task) == 0 && entry.path().extension() == ".jsonl")
            found.push_back(entry.path().string());
    std::sort(found.begin(), found.end());
    if (found.size() > 1)
        throw BadInput("--evals " + folder + ": has two files for " + task + ", " + found[0] + " and " + found[1] +
                       "; keep one of them there");
    return found.empty() ? "" : found[0];
}

// The lines of a text file; an unfinished last one counts, an empty one behind the last line break does not.
inline std::vector<std::string> read_lines(const std::string& path) {
    const std::string text = read_file(path, uint64_t(1) << 30);
    std::vector<std::string> lines;
    for (size_t start = 0, end; start < text.size(); start = end + 1) {
        end = std::min(text.find('\n', start), text.size());
        lines.push_back(text.substr(start, end - start));
    }
    return lines;
}

// PIQA's labels lie beside valid.jsonl, in valid-labels.lst: a line 0 or 1 for each item.
inline void read_piqa_labels(std::vector<Question>& questions, const std::string& path) {
    const std::string labels_path = path.substr(0, path.size() - std::string(".jsonl").size()) + "-labels.lst";
    const std::vector<std::string> labels = read_lines(labels_path);
    if (labels.size() != questions.size())
        throw BadInput(labels_path + ": has " + std::to_string(labels.size()) + " labels for the " +
                       std::to_string(questions.size()) + " items of " + path);
    for (size_t i = 0; i < labels.size(); i++) {
        const std::string label = stripped(labels[i]);
        if (label != "0" && label != "1")
            throw BadInput(labels_path + " line " + std::to_string(i + 1) + ": is " + quoted_name(label) +
                           ", not 0 or 1");
        questions[i].gold = label == "1" ? 1 : 0;
    }
}

// All questions of a file. BadInput names the file and the line.
inline std::vector<Question> read_benchmark(const Benchmark& benchmark, const std::string& path) {
    const std::vector<std::string> lines = read_lines(path);
    if (lines.empty()) throw BadInput(path + ": is empty");
    std::vector<Question> questions;
    size_t labelled = 0;
    for (size_t i = 0; i < lines.size(); i++) {
        const Record record(lines[i], path, static_cast<int64_t>(i + 1));
        questions.push_back(benchmark.read(record));
        labelled += record.has("label") ? 1 : 0;
    }
    if (benchmark.read == piqa_question && labelled == 0) {
        read_piqa_labels(questions, path);
    } else if (benchmark.read == piqa_question && labelled < lines.size()) {
        throw BadInput(path + ": some items have a \"label\" and others have none");
    }
    return questions;
}

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
inline Request request_for(const Answer& answer, const Tokenizer& tokenizer, int64_t n_ctx) {
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

struct Score {
    double loglikelihood = 0;  // of the continuation, in nats
    bool greedy = true;        // each of its tokens is the likeliest
};

// Requests that read the same tokens are answered by one sequence: both of a BoolQ item's are. Their indices, the longest
// sequences first, so that memory is allocated once and the time left is not underestimated.
inline std::vector<std::vector<size_t>> groups_by_input(const std::vector<Request>& requests) {
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

// Positions of one micro-batch: enough rows for the matrix product, few enough for the cache.
constexpr int64_t kBenchmarkPositions = 2048;

// The micro-batch of groups [first, last): sequences filled up on their right, which a causal model does not see.
inline void score_batch(GPT2& model, std::vector<Score>& scores, const std::vector<Request>& requests,
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

// `pause` is called between micro-batches and may throw to end the measurement; it may be empty.
inline std::vector<Score> score_requests(GPT2& model, const std::vector<Request>& requests, const std::string& label,
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

// Floating-point operations of it: 2 per weight and token, attention, and the unembedding of what is scored.
inline double scoring_flops(const GPT2Config& c, const std::vector<Request>& requests) {
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

// ---------------------------------------------------------------------------------------------------------------------
// The measurement

struct BenchmarkOptions {
    std::string evals;               // folder with the data sets' files
    std::vector<std::string> tasks;  // names of benchmarks(); empty: all that the folder has
    int64_t limit = 0;               // the first so many items of each; 0: all
    std::string choices;             // jsonl file for what was chosen, item by item; empty: none
    bool force = false;              // replace that file
    std::function<void()> pause;     // as in score_requests
};

// One task, ready to be asked.
struct BenchmarkTask {
    const Benchmark* benchmark;
    std::string file;
    std::vector<Question> questions;
    std::vector<Request> requests;  // those of question 0, those of question 1, ...
    std::string unfit;              // why this model cannot be asked; empty: it can
};

inline BenchmarkTask prepare_task(const LoadedModel& loaded, const Benchmark& benchmark, const std::string& file,
                                  int64_t limit) {
    const GPT2Config& c = loaded.model->config;
    BenchmarkTask task{&benchmark, file, read_benchmark(benchmark, file), {}, ""};
    if (limit > 0 && limit < static_cast<int64_t>(task.questions.size()))
        task.questions.resize(static_cast<size_t>(limit));
    for (size_t i = 0; i < task.questions.size(); i++) {
        const std::string where = file + " line " + std::to_string(i + 1);
        for (const Answer& answer : task.questions[i].answers) {
            Request r = request_for(answer, *loaded.tokenizer, c.n_ctx);
            for (const int32_t token : r.tokens)
                if (token < 0 || token >= c.V)
                    throw BadInput(where + ": the tokenizer's token " + std::to_string(token) +
                                   " is outside the model's vocabulary of " + std::to_string(c.V));
            if (r.scored == 0) throw BadInput(where + ": an answer without text cannot be scored");
            if (r.scored > c.n_ctx && task.unfit.empty())
                task.unfit = where + ": an answer of " + std::to_string(r.scored) +
                             " tokens is longer than the model's " + std::to_string(c.n_ctx) + " positions";
            task.requests.push_back(std::move(r));
        }
    }
    return task;
}

// Reads and tokenises what is asked for, and runs nothing. BadInput if a file, an option or the model does not do.
inline std::vector<BenchmarkTask> prepare_benchmarks(const LoadedModel& loaded, const BenchmarkOptions& o) {
    if (!std::filesystem::is_directory(o.evals))
        throw BadInput("--evals " + quoted_name(o.evals) +
                       ": no such folder; name the one with the data sets' jsonl files");
    if (!o.choices.empty() && std::filesystem::exists(o.choices) && !o.force)
        throw BadInput("--choices " + o.choices + ": already exists; name another file or give --force");
    if (!loaded.tokenizer)
        throw BadInput(
            "benchmarks: the model's folder has no tokenizer files (tokenizer.json, or vocab.json and merges.txt); "
            "copy "
            "them into it");
    for (const std::string& name : o.tasks) benchmark_named(name);
    std::vector<BenchmarkTask> tasks;
    for (const Benchmark& b : benchmarks()) {
        const bool named = std::find(o.tasks.begin(), o.tasks.end(), b.name) != o.tasks.end();
        if (!o.tasks.empty() && !named) continue;
        const std::string file = benchmark_file(o.evals, b.name);
        if (file.empty() && named)
            throw BadInput("--evals " + o.evals + ": has no file " + b.name + "*.jsonl, which --tasks " + b.name +
                           " reads");
        if (!file.empty()) tasks.push_back(prepare_task(loaded, b, file, o.limit));
    }
    if (tasks.empty())
        throw BadInput("--evals " + o.evals +
                       ": has none of hellaswag*.jsonl, piqa*.jsonl, winogrande*.jsonl, boolq*.jsonl, lambada*.jsonl");
    return tasks;
}

// Seconds that run_benchmarks will take on this processor, about. Whole passes reach 0.7 to 0.9 of what one matrix product does.
inline double benchmark_seconds(const LoadedModel& loaded, const std::vector<BenchmarkTask>& tasks) {
    const GPT2Config& c = loaded.model->config;
    double flops = 0;
    for (const BenchmarkTask& task : tasks)
        if (task.unfit.empty()) flops += scoring_flops(c, task.requests);
    return flops / (0.8 * measure_flops(c));
}

// Index of the largest value, of the first one where several are.
inline int64_t best_of(const std::vector<double>& values) {
    return std::max_element(values.begin(), values.end()) - values.begin();
}

// What a model answered to one question.
struct Reply {
    std::vector<double> loglikelihoods;  // of its answers
    int64_t choice = 0, choice_norm = 0;
    bool right = false, right_norm = false;
};

inline std::vector<Reply> replies_of(const BenchmarkTask& task, const std::vector<Score>& scores) {
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

// A mean and its standard error, from the sample's standard deviation (n - 1); that of a single value is not known.
struct Estimate {
    double mean, error;
};
inline Estimate estimate_of(const std::vector<double>& values) {
    const double n = static_cast<double>(values.size());
    double sum = 0, squares = 0;
    for (const double x : values) sum += x;
    for (const double x : values) squares += (x - sum / n) * (x - sum / n);
    return {sum / n, std::sqrt(squares / (n - 1) / n)};
}

// One object per task: data/README.md has the keys.
inline ordered_json benchmark_summary(const BenchmarkTask& task, const std::vector<Reply>& replies) {
    std::vector<double> right, right_norm, loglikelihood;
    for (const Reply& reply : replies) {
        right.push_back(reply.right ? 1 : 0);
        right_norm.push_back(reply.right_norm ? 1 : 0);
        loglikelihood.push_back(reply.loglikelihoods[0]);
    }
    ordered_json j;
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

// One line of the --choices file per question.
inline std::string choice_lines(const BenchmarkTask& task, const std::vector<Reply>& replies) {
    std::string lines;
    for (size_t i = 0; i < replies.size(); i++) {
        const Reply& reply = replies[i];
        ordered_json j{{"task", task.benchmark->name}, {"item", i}};
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

// Asks, and writes --choices. RunFailure if the model's predictions are not finite.
inline ordered_json run_benchmarks(LoadedModel& loaded, const std::vector<BenchmarkTask>& tasks,
                                   const BenchmarkOptions& o) {
    ordered_json results = ordered_json::array();
    std::string choices;
    for (const BenchmarkTask& task : tasks) {
        ordered_json j{{"task", task.benchmark->name}, {"file", task.file}, {"items", task.questions.size()}};
        if (!task.unfit.empty()) {
            j["skipped"] = task.unfit;
            results.push_back(j);
            continue;
        }
        const double begin = seconds_now();
        const std::vector<Score> scores = score_requests(*loaded.model, task.requests, task.benchmark->name, o.pause);
        for (const Score& score : scores)
            if (!std::isfinite(score.loglikelihood))
                throw RunFailure(std::string(task.benchmark->name) +
                                 ": a log-likelihood is not finite; the model has diverged, take an earlier one");
        const std::vector<Reply> replies = replies_of(task, scores);
        j.update(benchmark_summary(task, replies));
        j["seconds"] = seconds_now() - begin;
        results.push_back(j);
        choices += choice_lines(task, replies);
    }
    if (!o.choices.empty()) write_file_atomically(o.choices, choices);
    return {{"evals", o.evals}, {"limit", o.limit}, {"tasks", results}};
}

// A row per task and model, out of (model's name, what run_benchmarks gave).
inline Table benchmark_table(const std::vector<std::pair<std::string, ordered_json>>& models) {
    const auto percent = [](const ordered_json& j, const std::string& name) -> std::string {
        if (!j.contains(name)) return "";
        const ordered_json& error = j[name + "_stderr"];
        return format_fixed(100 * j[name].get<double>(), 1) +
               (error.is_null() ? "" : " ± " + format_fixed(100 * error.get<double>(), 1));
    };
    Table table({"benchmark", "model", "items", "accuracy (%)", "per character (%)", "chance (%)", "perplexity"});
    for (const Benchmark& b : benchmarks())
        for (const auto& [name, result] : models)
            for (const ordered_json& j : result["tasks"]) {
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
