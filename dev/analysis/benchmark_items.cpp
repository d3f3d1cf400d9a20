#include "dev/analysis/benchmark_items.h"

#include <algorithm>
#include <filesystem>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/json.h"

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// Text

namespace {

// The characters that str.strip() takes away.
bool is_python_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Without what stands in brackets on one line.
std::string without_brackets(const std::string& text) {
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

}  // namespace

std::pair<size_t, size_t> content_range(const std::string& text) {
    size_t begin = 0, end = 0;
    for (size_t next = 0; next < text.size();) {
        const size_t start = next;
        if (is_python_space(console_detail::next_code_point(text, next))) continue;
        if (end == 0) begin = start;
        end = next;
    }
    return {begin, end};
}

std::string stripped(const std::string& text) {
    const auto [begin, end] = content_range(text);
    return text.substr(begin, end - begin);
}

int64_t characters(const std::string& text) {
    return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

std::string replaced(const std::string& text, const std::string& from, const std::string& to) {
    std::string out;
    size_t start = 0;
    for (size_t at; (at = text.find(from, start)) != std::string::npos; start = at + from.size())
        out += text.substr(start, at - start) + to;
    return out + text.substr(start);
}

std::string capitalised(std::string text) {
    for (size_t i = 0; i < text.size(); i++) {
        const bool small = text[i] >= 'a' && text[i] <= 'z', capital = text[i] >= 'A' && text[i] <= 'Z';
        if (i == 0 ? small : capital) text[i] = static_cast<char>(text[i] ^ 0x20);
    }
    return text;
}

std::string without_wikihow_marks(const std::string& text) {
    return replaced(without_brackets(replaced(stripped(text), " [title]", ". ")), "  ", " ");
}

// ---------------------------------------------------------------------------------------------------------------------
// Questions

// One line of a jsonl file. Its fields, or BadInput with file, line and what is wrong.
class Record {
  public:
    Record(const std::string& text, const std::string& path, int64_t line)
        : where_(path + " line " + std::to_string(line)), fields_(parse_json(text, where_)) {
        if (!fields_.is_object()) throw BadInput(where_ + ": is not a JSON object");
    }

    bool has(const char* key) const { return fields_.contains(key); }
    const Json& field(const char* key) const {
        if (!has(key)) fail(std::string("has no \"") + key + '"');
        return fields_[key];
    }
    std::string text(const char* key) const {
        if (!field(key).is_string()) fail(std::string("\"") + key + "\" is not a text");
        return field(key).get<std::string>();
    }
    // A list of so many texts.
    std::vector<std::string> texts(const char* key, size_t count) const {
        const Json& list = field(key);
        const bool good = list.is_array() && list.size() == count &&
                          std::all_of(list.begin(), list.end(), [](const auto& x) { return x.is_string(); });
        if (!good) fail(std::string("\"") + key + "\" is not a list of " + std::to_string(count) + " texts");
        return list.get<std::vector<std::string>>();
    }
    // Index of the right answer, 0 to count - 1, as a number or its digit.
    int64_t index(const char* key, int64_t count) const {
        const Json& value = field(key);
        for (int64_t i = 0; i < count; i++)
            if (value == i || value == std::to_string(i)) return i;
        fail(std::string("\"") + key + "\" is " + quoted_name(value.dump()) + ", not one of 0 to " +
             std::to_string(count - 1));
    }
    [[noreturn]] void fail(const std::string& what) const { throw BadInput(where_ + ": " + what); }

  private:
    std::string where_;
    Json fields_;
};

namespace {

Answer answer_after(const std::string& context, const std::string& text) {
    return {context, " " + text, characters(text)};
}

Question hellaswag_item(const std::string& context, const std::vector<std::string>& endings, int64_t gold) {
    Question q;
    for (const std::string& ending : endings)
        q.answers.push_back(answer_after(without_wikihow_marks(context), without_wikihow_marks(ending)));
    q.gold = gold;
    return q;
}

// Half of AbstainQA's contexts end in an unfinished sentence, the data set's ctx_b, which the harness begins with a
// capital.
std::string with_last_sentence_capitalised(const std::string& context) {
    const size_t stop = context.find_last_of(".!?");
    const bool unfinished = stop != std::string::npos && stop + 2 < context.size() && context[stop + 1] == ' ' &&
                            context[stop + 2] >= 'a' && context[stop + 2] <= 'z';
    return unfinished ? context.substr(0, stop + 2) + capitalised(context.substr(stop + 2)) : context;
}

// AbstainQA's form has the whole context as "question" without the activity's label, so that these accuracies are not quite
// the published ones.
Question abstainqa_question(const Record& r) {
    const Json& choices = r.field("choices");
    const std::string letters = "ABCD", answer = r.text("answer");
    const size_t right = letters.find(answer);
    if (answer.size() != 1 || right == std::string::npos)
        r.fail("\"answer\" is " + quoted_name(answer) + ", not A, B, C or D");
    std::vector<std::string> endings;
    for (const char letter : letters) {
        const Json* const ending = choices.find(std::string(1, letter));
        if (ending == nullptr || !ending->is_string()) r.fail("\"choices\" are not four texts A, B, C and D");
        endings.push_back(ending->get<std::string>());
    }
    return hellaswag_item(with_last_sentence_capitalised(r.text("question")), endings, static_cast<int64_t>(right));
}

Question hellaswag_question(const Record& r) {
    if (r.has("question") && !r.has("endings")) return abstainqa_question(r);
    if (!r.has("endings")) r.fail("is no item of HellaSwag: neither \"endings\" nor \"question\"");
    const std::string context = r.text("activity_label") + ": " + r.text("ctx_a") + " " + capitalised(r.text("ctx_b"));
    const std::vector<std::string> endings = r.texts("endings", 4);  // the first thing wrong is the one that is named
    return hellaswag_item(context, endings, r.index("label", 4));
}

// The label is in the record, or in a second file (read_benchmark).
Question piqa_question(const Record& r) {
    const std::string context = "Question: " + r.text("goal") + "\nAnswer:";
    Question q;
    for (const char* key : {"sol1", "sol2"}) q.answers.push_back(answer_after(context, r.text(key)));
    if (r.has("label")) q.gold = r.index("label", 2);
    return q;
}

// Partial scoring (arXiv 1806.02847): the options stand in the context, and what follows the gap is scored.
Question winogrande_question(const Record& r) {
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
Question boolq_question(const Record& r) {
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
Question lambada_question(const Record& r) {
    if (r.has("context")) return {{answer_after(r.text("context"), r.text("continuation"))}};
    const std::string text = r.text("text");
    const size_t space = text.rfind(' ');
    if (space == std::string::npos) return {{answer_after("", text)}};
    return {{answer_after(text.substr(0, space), text.substr(space + 1))}};
}

}  // namespace

const std::vector<Benchmark>& benchmarks() {
    static const std::vector<Benchmark> all = {{"hellaswag", "HellaSwag", hellaswag_question, true, false},
                                               {"piqa", "PIQA", piqa_question, true, false},
                                               {"winogrande", "WinoGrande", winogrande_question, false, false},
                                               {"boolq", "BoolQ", boolq_question, false, false},
                                               {"lambada", "LAMBADA", lambada_question, false, true}};
    return all;
}

const Benchmark& benchmark_named(const std::string& name) {
    std::string names;
    for (const Benchmark& b : benchmarks()) {
        if (name == b.name) return b;
        names += std::string(names.empty() ? "" : ", ") + b.name;
    }
    throw BadInput("--tasks " + name + ": is none of " + names);
}

Question read_question(const Benchmark& benchmark, const std::string& text, const std::string& path, int64_t line) {
    return benchmark.read(Record(text, path, line));
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

std::string benchmark_file(const std::string& folder, const std::string& task) {
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

std::string labels_file(const std::string& path) {
    return path.substr(0, path.size() - std::string(".jsonl").size()) + "-labels.lst";
}

std::vector<std::string> read_lines(const std::string& path) {
    const std::string text = read_file(path, uint64_t(1) << 30);
    std::vector<std::string> lines;
    for (size_t start = 0, end; start < text.size(); start = end + 1) {
        end = std::min(text.find('\n', start), text.size());
        lines.push_back(text.substr(start, end - start));
    }
    return lines;
}

namespace {

void read_piqa_labels(std::vector<Question>& questions, const std::string& path) {
    const std::string labels_path = labels_file(path);
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

}  // namespace

std::vector<Question> read_benchmark(const Benchmark& benchmark, const std::string& path) {
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

}  // namespace analysis
}  // namespace lnfree
