// The items of HellaSwag, PIQA, WinoGrande, BoolQ and LAMBADA, read from their files and asked as EleutherAI's
// lm-evaluation-harness asks them (0.4.13: its tasks hellaswag, piqa, winogrande, boolq and lambada_openai, without
// examples in the prompt).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// Text as Python sees it: the harness's prompts come from its string functions

// Where the first character that is no space begins, and where the last one ends; 0, 0 if there is none.
std::pair<size_t, size_t> content_range(const std::string& text);

// str.strip()
std::string stripped(const std::string& text);

// Length in characters, not bytes.
int64_t characters(const std::string& text);

// Every `from`, left to right and none of them twice.
std::string replaced(const std::string& text, const std::string& from, const std::string& to);

// str.capitalize() for ASCII letters: the first is a capital, the others are not. Others stay as they are.
std::string capitalised(std::string text);

// HellaSwag's texts from WikiHow carry marks such as [title] and [step].
std::string without_wikihow_marks(const std::string& text);

// ---------------------------------------------------------------------------------------------------------------------
// Questions

// A context and what may follow it. The space between the two belongs to the continuation.
struct Answer {
    std::string context, continuation;
    int64_t length;  // of the answer's own text, in characters; acc_norm divides by it
};

struct Question {
    std::vector<Answer> answers;  // LAMBADA: the one right word
    int64_t gold = 0;             // index of the right answer
};

class Record;

struct Benchmark {
    const char *name, *title;
    Question (*read)(const Record&);
    bool normalised;  // acc_norm is defined
    bool greedy;      // right is what greedy decoding would write; there is nothing to choose from
};

const std::vector<Benchmark>& benchmarks();

// BadInput if there is none of that name.
const Benchmark& benchmark_named(const std::string& name);

// One line of a jsonl file. BadInput with file, line and what is wrong.
Question read_question(const Benchmark& benchmark, const std::string& text, const std::string& path, int64_t line);

// ---------------------------------------------------------------------------------------------------------------------
// The data sets' files

// The jsonl file of a task in a folder: the one whose name begins with the task's. "" if there is none, BadInput if there
// are two.
std::string benchmark_file(const std::string& folder, const std::string& task);

// PIQA's labels lie beside valid.jsonl, in valid-labels.lst: a line 0 or 1 for each item.
std::string labels_file(const std::string& path);

// The lines of a text file; an unfinished last one counts, an empty one behind the last line break does not.
std::vector<std::string> read_lines(const std::string& path);

// All questions of a file. BadInput names the file and the line.
std::vector<Question> read_benchmark(const Benchmark& benchmark, const std::string& path);

}  // namespace analysis
}  // namespace lnfree
