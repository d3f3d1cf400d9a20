// The benchmarks of `analyze`: how the data sets' files become prompts, how prompts become tokens, and what is made of the
// model's log-likelihoods. test/interop/compare_with_lm_eval.py holds the same against lm-evaluation-harness itself.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "data/error.h"
#include "data/json.h"
#include "data/random.h"
#include "data/tokenizer.h"
#include "dev/analysis/benchmarks.h"
#include "dev/cpu/operations.h"
#include "dev/engine.h"
#include "test/file_helpers.h"
#include "test/test_models.h"

using namespace lnfree;
using namespace lnfree::analysis;
namespace fs = std::filesystem;

static Question question_of(const char* task, const std::string& line) {
    return read_question(benchmark_named(task), line, "items.jsonl", 7);
}

static void check_answer(const Answer& answer, const std::string& context, const std::string& continuation,
                         int64_t length) {
    CHECK(answer.context == context);
    CHECK(answer.continuation == continuation);
    CHECK(answer.length == length);
}

static std::string error_of(const char* task, const std::string& line) {
    return message_of<BadInput>([&] { question_of(task, line); });
}

// A case that needs a folder beside the project counts as skipped where that is not there (test/run.sh).
static bool is_missing(const std::string& folder) {
    if (fs::exists(folder)) return false;
    std::printf("SKIPPED: %s is not there\n", folder.c_str());
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// prompts

TEST_CASE("text is stripped, capitalised and measured as Python does") {
    CHECK(stripped(" \t a b\u00A0\u3000\n") == "a b");
    CHECK(stripped("\u2003\x1c") == "");
    CHECK(stripped("") == "");
    CHECK(stripped("\u200B") == "\u200B");  // zero width space is no space to Python
    CHECK(capitalised("the man KEEPS it") == "The man keeps it");
    CHECK(capitalised("A") == "A");
    CHECK(capitalised("") == "");
    CHECK(characters("na\u00EFve \U0001F600") == 7);
    CHECK(replaced("aaaa aaa", "aa", "a") == "aa aa");
}

TEST_CASE("WikiHow's marks go as the harness takes them away") {
    CHECK(without_wikihow_marks(" How to fly [title] Buy wings. [step] Flap.  ") == "How to fly. Buy wings. Flap.");
    CHECK(without_wikihow_marks("[header] How to fly") == " How to fly");  // spaces inside are left where they are
    CHECK(without_wikihow_marks("a [b\nc] d") == "a [b\nc] d");
    CHECK(without_wikihow_marks("x[[y]z]") == "xz]");
    CHECK(without_wikihow_marks("one   two") == "one  two");
    CHECK(without_wikihow_marks("open [ end") == "open [ end");
}

TEST_CASE("HellaSwag: the data set's fields") {
    for (const char* label : {"2", "\"2\""}) {
        const Question q = question_of(
            "hellaswag",
            std::string(R"({"activity_label": "Baking bread", "ctx_a": "A cook kneads dough.", "ctx_b": "the Cook",)") +
                R"("endings": ["sleeps.", "[step] sings.", "bakes it.", "is caf\u00e9."], "label": )" + label + "}");
        REQUIRE(q.answers.size() == 4);
        CHECK(q.gold == 2);
        check_answer(q.answers[0], "Baking bread: A cook kneads dough. The cook", " sleeps.", 7);
        check_answer(q.answers[1], "Baking bread: A cook kneads dough. The cook", "  sings.", 7);
        check_answer(q.answers[3], "Baking bread: A cook kneads dough. The cook", " is caf\u00e9.", 8);
    }
}

TEST_CASE("HellaSwag: AbstainQA's fields") {
    const auto line = [](const std::string& question) {
        return R"({"question": ")" + question +
               R"(", "choices": {"A": "runs.", "B": "[title] sits.", "C": "eats.", "D": "[step] naps."}, "answer": "B", "id": 3})";
    };
    Question q = question_of("hellaswag", line("A dog wakes up. It yawns. then the DOG"));
    REQUIRE(q.answers.size() == 4);
    CHECK(q.gold == 1);
    check_answer(q.answers[0], "A dog wakes up. It yawns. Then the dog", " runs.", 5);
    check_answer(q.answers[1], "A dog wakes up. It yawns. Then the dog", "  sits.", 6);
    q = question_of("hellaswag", line("[header] How to nap [title] Lie down. [step] Close both eyes."));
    check_answer(q.answers[2], " How to nap. Lie down. Close both eyes.", " eats.", 5);
}

TEST_CASE("PIQA") {
    const Question q =
        question_of("piqa", R"({"goal": "Dry a cup.", "sol1": "Use a towel ", "sol2": "Use soup", "label": 1})");
    REQUIRE(q.answers.size() == 2);
    CHECK(q.gold == 1);
    check_answer(q.answers[0], "Question: Dry a cup.\nAnswer:", " Use a towel ", 12);
    check_answer(q.answers[1], "Question: Dry a cup.\nAnswer:", " Use soup", 8);
}

TEST_CASE("WinoGrande is scored on what follows the gap") {
    for (
        const char* line :
        {R"({"sentence": "The spoon missed the bowl because the _  was too far away.", "option1": "spoon",
              "option2": "bowl", "answer": "2", "qID": "x"})",
         R"({"context_options": ["The spoon missed the bowl because the spoon", "The spoon missed the bowl because the bowl"],
              "continuation": "was too far away.", "gold": 1})"}) {
        const Question q = question_of("winogrande", line);
        REQUIRE(q.answers.size() == 2);
        CHECK(q.gold == 1);
        check_answer(q.answers[0], "The spoon missed the bowl because the spoon", " was too far away.", 17);
        check_answer(q.answers[1], "The spoon missed the bowl because the bowl", " was too far away.", 17);
    }
}

TEST_CASE("BoolQ, in the forms of its authors, of SuperGLUE and of MosaicML") {
    const std::string untitled = "Tea is drunk warm.\nQuestion: is tea cold?\nAnswer:", titled = "Tea -- " + untitled;
    const std::vector<std::pair<std::string, std::string>> cases = {
        {R"({"question": "is tea cold", "title": "Tea", "answer": true, "passage": "Tea is drunk warm."})", titled},
        {R"({"question": "is tea cold", "passage": "Tea -- Tea is drunk warm.", "idx": 3, "label": 1})", titled},
        {R"({"question": "is tea cold", "passage": "Tea -- Tea is drunk warm.", "label": true})", titled},
        {R"({"query": "Passage: Tea is drunk warm.\nQuestion: is tea cold?", "choices": ["no", "yes"], "gold": 1})",
         untitled}};
    for (const auto& [line, context] : cases) {
        const Question q = question_of("boolq", line);
        REQUIRE(q.answers.size() == 2);
        CHECK(q.gold == 1);
        check_answer(q.answers[0], context, " no", 2);
        check_answer(q.answers[1], context, " yes", 3);
    }
}

TEST_CASE("LAMBADA asks for the last word, which begins behind the last space") {
    for (const char* line : {R"({"text": "She put on her\nnew \"hat"})",
                             R"({"context": "She put on her\nnew", "continuation": "\"hat"})"}) {
        const Question q = question_of("lambada", line);
        REQUIRE(q.answers.size() == 1);
        check_answer(q.answers[0], "She put on her\nnew", " \"hat", 4);
    }
    check_answer(question_of("lambada", R"({"text": "alone"})").answers[0], "", " alone", 5);
}

TEST_CASE("a wrong item is refused with its file, its line and what is wrong") {
    const std::string at = "items.jsonl line 7: ";
    CHECK(error_of("piqa", "[1]") == at + "is not a JSON object");
    CHECK(error_of("piqa", "{") == "items.jsonl line 7 is not valid JSON: wrong at byte 2");
    CHECK(error_of("piqa", R"({"goal": "g", "sol1": 3})") == at + "\"sol1\" is not a text");
    CHECK(error_of("piqa", R"({"goal": "g", "sol1": "a"})") == at + "has no \"sol2\"");
    CHECK(error_of("piqa", R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 2})") ==
          at + "\"label\" is \"2\", not one of 0 to 1");
    CHECK(error_of("hellaswag", "{}") == at + "is no item of HellaSwag: neither \"endings\" nor \"question\"");
    CHECK(error_of("hellaswag", R"({"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d"]})") ==
          at + "\"endings\" is not a list of 4 texts");
    CHECK(error_of("hellaswag", R"({"question": "q", "choices": {"A": "a"}, "answer": "A"})") ==
          at + "\"choices\" are not four texts A, B, C and D");
    CHECK(error_of("hellaswag", R"({"question": "q", "choices": {}, "answer": "BC"})") ==
          at + "\"answer\" is \"BC\", not A, B, C or D");
    CHECK(error_of("winogrande", "{}") ==
          at + "is no item of WinoGrande: neither \"sentence\" nor \"context_options\"");
    CHECK(error_of("winogrande", R"({"sentence": "no gap", "answer": "1"})") == at + "\"sentence\" has no gap _");
    CHECK(error_of("winogrande", R"({"sentence": "a _", "answer": ""})") == at + "\"answer\" is \"\", not 1 or 2");
    CHECK(error_of("boolq", R"({"query": "What?", "choices": ["no", "yes"], "gold": 0})") ==
          at + "\"query\" is not made of \"Passage: \", a line break and \"Question: \"");
    CHECK(error_of("boolq", R"({"query": "Passage: p\nQuestion: q?", "choices": ["yes", "no"], "gold": 0})") ==
          at + "\"choices\" are not no and yes");
    CHECK(error_of("boolq", "{}") == at + "is no item of BoolQ: neither \"passage\" nor \"query\"");
    CHECK(error_of("lambada", "{}") == at + "has no \"text\"");
    CHECK(message_of<BadInput>([] { benchmark_named("arc"); }) ==
          "--tasks arc: is none of hellaswag, piqa, winogrande, boolq, lambada");
}

TEST_CASE("PIQA's labels come from the file beside it, and must be as many") {
    const TemporaryFolder folder;
    const std::string file = folder / "piqa_valid.jsonl", labels = folder / "piqa_valid-labels.lst";
    const Benchmark& piqa = benchmark_named("piqa");
    const std::string item = R"({"goal": "g", "sol1": "a", "sol2": "b"})";
    write_bytes(file, item + "\n" + item + "\n" + item);
    const auto error = [&] { return message_of<BadInput>([&] { read_benchmark(piqa, file); }); };
    CHECK(contains(error(), "cannot open " + labels));
    write_bytes(labels, "1\n0\n");
    CHECK(error() == labels + ": has 2 labels for the 3 items of " + file);
    write_bytes(labels, "1\n0\n2\n");
    CHECK(error() == labels + " line 3: is \"2\", not 0 or 1");
    write_bytes(labels, "1\n0\r\n1\n");
    const std::vector<Question> questions = read_benchmark(piqa, file);
    REQUIRE(questions.size() == 3);
    CHECK(questions[0].gold == 1);
    CHECK(questions[1].gold == 0);
    CHECK(questions[2].gold == 1);
    write_bytes(file, item + "\n" + R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 0})" + "\n");
    CHECK(error() == file + ": some items have a \"label\" and others have none");
    write_bytes(file, "");
    CHECK(error() == file + ": is empty");
    write_bytes(file, item + "\n\n");
    CHECK(error() == file + " line 2 is not valid JSON: wrong at byte 1");
}

// ---------------------------------------------------------------------------------------------------------------------
// tokens

static std::vector<int32_t> bytes_of(const std::string& text) {
    std::vector<int32_t> tokens;
    ByteTokenizer().encode(text, tokens);
    return tokens;
}

TEST_CASE("spaces at the end of the context are scored with the continuation") {
    const ByteTokenizer tokenizer;
    Request r = request_for({"one two \u00A0", " six", 3}, tokenizer, 100);
    CHECK(r.tokens == bytes_of("one two \u00A0 six"));
    CHECK(r.scored == 7);
    CHECK_FALSE(r.truncated);
    r = request_for({"one", " six", 3}, tokenizer, 100);
    CHECK(r.scored == 4);
}

TEST_CASE("an empty context is an end-of-text token") {
    const ByteTokenizer tokenizer;
    std::vector<int32_t> expected = bytes_of(" six");
    expected.insert(expected.begin(), 256);
    for (const char* context : {"", " "}) {
        const Request r = request_for({context, *context ? "six" : " six", 3}, tokenizer, 100);
        CHECK(r.tokens == expected);
        CHECK(r.scored == 4);
    }
    // one that is there already serves
    const Request r = request_for({"", "<|endoftext|>six", 3}, tokenizer, 100);
    expected = bytes_of("six");
    expected.insert(expected.begin(), 256);
    CHECK(r.tokens == expected);
    CHECK(r.scored == 3);
}

TEST_CASE("what is too long loses tokens on its left, and n_ctx + 1 of them just fit") {
    const ByteTokenizer tokenizer;
    const Answer answer{"abcdefg", " hij", 3};  // 11 tokens
    CHECK(request_for(answer, tokenizer, 10).tokens == bytes_of("abcdefg hij"));
    const Request r = request_for(answer, tokenizer, 6);
    CHECK(r.truncated);
    CHECK(r.tokens == bytes_of("efg hij"));
    CHECK(r.scored == 4);
    CHECK(r.inputs() == 6);
    CHECK(request_for(answer, tokenizer, 3).scored > 3);  // prepare_task sets such a task aside
}

TEST_CASE("GPT-2's tokens: the continuation is what the whole text has beyond the context's") {
    const std::string folder = "../shared/data/gpt2-bpe";
    if (is_missing(folder)) return;
    const auto tokenizer = load_tokenizer(folder);
    const auto tokens = [&](const std::string& text) {
        std::vector<int32_t> out;
        tokenizer->encode(text, out);
        return out;
    };
    Request r = request_for({"Question: Dry a cup.\nAnswer: ", "towel", 5}, *tokenizer, 100);
    CHECK(r.tokens == tokens("Question: Dry a cup.\nAnswer: towel"));
    CHECK(r.scored == static_cast<int64_t>(tokens(" towel").size()));
    // "hel" and "hello" share no first token: the context keeps its own, the rest comes from the whole
    r = request_for({"say hel", "lo again", 8}, *tokenizer, 100);
    std::vector<int32_t> expected = tokens("say hel");
    const std::vector<int32_t> whole = tokens("say hello again");
    expected.insert(expected.end(), whole.begin() + static_cast<std::ptrdiff_t>(expected.size()), whole.end());
    CHECK(r.tokens == expected);
    CHECK(r.scored == static_cast<int64_t>(whole.size()) - static_cast<int64_t>(tokens("say hel").size()));
}

// ---------------------------------------------------------------------------------------------------------------------
// scores

static const ModelConfig kAsked = shape_of(2, 3, 21, 257, 67, 50);

static std::unique_ptr<Engine> random_model(uint64_t seed) {
    auto model = make_reference(kAsked);
    randomise(*model, seed);
    return model;
}

// Requests of all lengths, some of which read the same tokens.
static std::vector<Request> random_requests(size_t count, int64_t V, int64_t n_ctx) {
    SplitMix64 random(11);
    std::vector<Request> requests;
    for (size_t i = 0; i < count; i++) {
        Request r;
        if (i % 5 == 4) {
            r = requests[i - 1];
            r.tokens.back() = static_cast<int32_t>(random.below(static_cast<uint64_t>(V)));
        } else {
            r.tokens.resize(2 + random.below(static_cast<uint64_t>(n_ctx)));
            for (int32_t& t : r.tokens) t = static_cast<int32_t>(random.below(static_cast<uint64_t>(V)));
        }
        r.scored = 1 + static_cast<int64_t>(random.below(static_cast<uint64_t>(r.inputs())));
        requests.push_back(r);
    }
    return requests;
}

// One request at a time, from all logits, in double.
static Score plain_score(Engine& model, const Request& r) {
    const int64_t V = model.config.V, T = r.inputs();
    std::vector<real> logits(static_cast<size_t>(T * V));
    model.logits(logits.data(), r.tokens.data(), 1, T);
    Score score;
    for (int64_t t = T - r.scored; t < T; t++) {
        const real* z = logits.data() + t * V;
        const int32_t target = r.tokens[static_cast<size_t>(t + 1)];
        double sum = 0;
        for (int64_t v = 0; v < V; v++) sum += std::exp(static_cast<double>(z[v]));
        score.loglikelihood += static_cast<double>(z[target]) - std::log(sum);
        score.greedy &= std::max_element(z, z + V) - z == target;
    }
    return score;
}

TEST_CASE("scores of batched requests are those of the whole logits, one by one") {
    const auto made = random_model(5);
    Engine& model = *made;
    std::vector<Request> requests = random_requests(131, model.config.V, model.config.n_ctx);  // several micro-batches
    for (size_t i = 0; i < 40; i++) {  // what the model itself would say
        Request& r = requests[i];
        std::vector<real> logits(static_cast<size_t>(model.config.V));
        r.scored = 1;
        model.logits(logits.data(), r.tokens.data(), 1, r.inputs(), r.inputs() - 1);
        r.tokens.back() = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
    const std::vector<Score> scores = score_requests(model, requests, "test", nullptr);
    REQUIRE(scores.size() == requests.size());
    int64_t greedy = 0;
    for (size_t i = 0; i < requests.size(); i++) {
        CAPTURE(i);
        const Score expected = plain_score(model, requests[i]);
        CHECK(scores[i].loglikelihood == doctest::Approx(expected.loglikelihood).epsilon(1e-5));
        CHECK(scores[i].greedy == expected.greedy);
        greedy += scores[i].greedy;
    }
    CHECK(greedy >= 40);
    CHECK(greedy < 131);
}

TEST_CASE("rows may be asked for in any order and more often than there are positions") {
    const auto made = random_model(6);
    Engine& model = *made;
    const std::vector<int32_t> inputs = {1, 2, 3, 4, 5, 6};  // (2,3)
    std::vector<int64_t> rows;
    std::vector<int32_t> targets;
    for (int64_t i = 0; i < 23; i++) {
        rows.push_back((5 * i + 2) % 6);
        targets.push_back(static_cast<int32_t>((40 * i) % 257));
    }
    std::vector<real> losses(rows.size()), logits(static_cast<size_t>(6 * 257));
    std::vector<uint8_t> likeliest(rows.size());
    model.score(losses.data(), likeliest.data(), inputs.data(), 2, 3, rows, targets.data());
    model.logits(logits.data(), inputs.data(), 2, 3);
    for (size_t i = 0; i < rows.size(); i++) {
        const real* z = logits.data() + rows[i] * 257;
        double sum = 0;
        for (int v = 0; v < 257; v++) sum += std::exp(static_cast<double>(z[v]));
        CHECK(static_cast<double>(losses[i]) ==
              doctest::Approx(std::log(sum) - static_cast<double>(z[targets[i]])).epsilon(1e-5));
    }
}

TEST_CASE("of equal logits the first is the likeliest") {
    const std::vector<real> logits = {0, 3, 3, 1, 3, 3, 0, 0};  // (2,4)
    uint8_t likeliest[2];
    const int32_t first[] = {1, 0}, second[] = {2, 1};
    operations().is_likeliest(likeliest, logits.data(), first, 2, 4);
    CHECK(likeliest[0] == 1);
    CHECK(likeliest[1] == 1);
    operations().is_likeliest(likeliest, logits.data(), second, 2, 4);
    CHECK(likeliest[0] == 0);
    CHECK(likeliest[1] == 0);
}

TEST_CASE("requests that read the same tokens make one group, longest first") {
    const auto request = [](std::vector<int32_t> tokens) { return Request{std::move(tokens), 1, false}; };
    const std::vector<Request> requests = {request({1, 2, 3}), request({7, 7}), request({1, 2, 4}), request({1, 1, 3}),
                                           request({7, 9})};
    const std::vector<std::vector<size_t>> expected = {{3}, {0, 2}, {1, 4}};
    CHECK(groups_by_input(requests) == expected);
}

TEST_CASE("a measurement ends between micro-batches when it is told to") {
    const auto made = random_model(5);
    Engine& model = *made;
    int calls = 0;
    const auto pause = [&] {
        if (++calls == 2) throw std::runtime_error("stop");
    };
    CHECK_THROWS_AS(score_requests(model, random_requests(300, 257, 67), "test", pause), std::runtime_error);
    CHECK(calls == 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// results

static BenchmarkTask task_of(const char* name, std::vector<Question> questions) {
    return {&benchmark_named(name), "file", std::move(questions), {}, ""};
}

TEST_CASE("accuracies and their standard errors, by hand") {
    // lengths 2 and 8: the second wins per character unless it is more than four times as unlikely
    const std::vector<Answer> answers = {{"c", " ab", 2}, {"c", " abcdefgh", 8}};
    const BenchmarkTask task = task_of("piqa", {{answers, 0}, {answers, 1}, {answers, 1}, {answers, 0}, {answers, 0}});
    const std::vector<double> scores = {-1, -3, /**/ -1, -2, /**/ -5, -4, /**/ -1, -5, /**/ -2, -2};
    std::vector<Score> list;
    for (const double s : scores) list.push_back({s, false});
    const std::vector<Reply> replies = replies_of(task, list);
    const std::vector<int64_t> choices = {0, 0, 1, 0, 0}, choices_norm = {1, 1, 1, 0, 1};  // the last is a tie
    for (size_t i = 0; i < 5; i++) {
        CHECK(replies[i].choice == choices[i]);
        CHECK(replies[i].choice_norm == choices_norm[i]);
    }
    const Json j = benchmark_summary(task, replies);
    CHECK(j["acc"] == 0.8);
    CHECK(j["acc_stderr"].get<double>() == doctest::Approx(0.2));  // sqrt(5 * 0.8 * 0.2 / 4 / 5)
    CHECK(j["acc_norm"] == 0.6);
    CHECK(j["acc_norm_stderr"].get<double>() == doctest::Approx(std::sqrt(0.06)));
    CHECK(j["chance"] == 0.5);
    CHECK_FALSE(j.contains("perplexity"));
    const std::string lines = choice_lines(task, replies);
    CHECK(lines.substr(0, lines.find('\n')) ==
          R"({"task":"piqa","item":0,"gold":0,"choice":0,"choice_norm":1,"loglikelihoods":[-1.0,-3.0]})");
}

TEST_CASE("LAMBADA: accuracy of greedy decoding, and perplexity") {
    const BenchmarkTask task =
        task_of("lambada", {{{{"c", " a", 1}}, 0}, {{{"c", " b", 1}}, 0}, {{{"c", " d", 1}}, 0}});
    const std::vector<Reply> replies = replies_of(task, {{-1, true}, {-2, false}, {-6, true}});
    const Json j = benchmark_summary(task, replies);
    CHECK(j["acc"].get<double>() == doctest::Approx(2.0 / 3));
    CHECK(j["perplexity"].get<double>() == doctest::Approx(std::exp(3.0)));
    CHECK(j["perplexity_stderr"].get<double>() == doctest::Approx(std::exp(3.0) * std::sqrt(7.0 / 3)));
    CHECK_FALSE(j.contains("acc_norm"));
    CHECK_FALSE(j.contains("chance"));
    CHECK(choice_lines(task, {replies[1]}) ==
          "{\"task\":\"lambada\",\"item\":0,\"greedy\":false,\"loglikelihoods\":[-2.0]}\n");
}

TEST_CASE("the standard error of a single item is not known") {
    const BenchmarkTask task = task_of("boolq", {{{{"c", " no", 2}, {"c", " yes", 3}}, 1}});
    const Json j = benchmark_summary(task, replies_of(task, {{-2, false}, {-1, false}}));
    CHECK(j["acc"] == 1.0);
    CHECK(j["acc_stderr"].is_null());
    CHECK_FALSE(j.contains("acc_norm"));
}

// A folder with a few made-up items of every task, and a byte model.
struct TinyEvals {
    TemporaryFolder folder;
    LoadedModel loaded;
    BenchmarkOptions options;

    TinyEvals() {
        loaded.model = random_model(9);
        loaded.tokenizer = load_tokenizer("byte");
        options.evals = folder.path();
        std::string lambada, piqa, boolq, winogrande, hellaswag;
        for (int i = 0; i < 9; i++) {
            const std::string n = std::to_string(i);
            lambada += R"({"text": "Number )" + n + R"( is here"})" + "\n";
            piqa += R"({"goal": "Count to )" + n + R"(", "sol1": "slowly", "sol2": "on fingers", "label": 0})" + "\n";
            boolq +=
                R"({"passage": "There were )" + n + R"( cups.", "question": "were there cups", "label": true})" + "\n";
            winogrande += R"({"sentence": "Box )" + n + R"( held a jar; the _ broke.", "option1": "box",)" +
                          R"("option2": "jar", "answer": "2"})" + "\n";
            hellaswag += R"({"activity_label": "Game", "ctx_a": "Player )" + n + R"( runs.", "ctx_b": "he",)" +
                         R"("endings": ["falls.", "wins.", "is tired.", "eats."], "label": 3})" + "\n";
        }
        write_bytes(folder / "lambada_test.jsonl", lambada);
        write_bytes(folder / "piqa.jsonl", piqa);
        write_bytes(folder / "boolq.val.jsonl", boolq);
        write_bytes(folder / "winogrande_dev.jsonl", winogrande);
        write_bytes(folder / "hellaswag_val.jsonl", hellaswag);
        write_bytes(folder / "hellaswag_notes.txt", "");
    }
    std::string error() {
        return message_of<BadInput>([&] { prepare_benchmarks(loaded, options); });
    }
};

TEST_CASE("all five tasks run on one model, and choices are written item by item") {
    TinyEvals t;
    t.options.choices = t.folder / "choices.txt";
    t.options.limit = 7;
    const std::vector<BenchmarkTask> tasks = prepare_benchmarks(t.loaded, t.options);
    REQUIRE(tasks.size() == 5);
    CHECK(benchmark_flops(t.loaded.model->config, tasks) > 0);
    const Json j = run_benchmarks(t.loaded, tasks, t.options);
    CHECK(j["limit"] == 7);
    REQUIRE(j["tasks"].size() == 5);
    const std::vector<std::string> names = {"hellaswag", "piqa", "winogrande", "boolq", "lambada"};
    for (size_t i = 0; i < 5; i++) {
        CHECK(j["tasks"][i]["task"] == names[i]);
        CHECK(j["tasks"][i]["items"] == 7);
        CHECK(j["tasks"][i]["acc"].get<double>() >= 0);
    }
    // the same again from the lines that were written and from plain scores
    const std::vector<std::string> lines = read_lines(t.options.choices);
    REQUIRE(lines.size() == 35);
    for (size_t i = 0; i < 5; i++) {
        double right = 0;
        for (size_t item = 0; item < 7; item++) {
            const Json line = parse_json(lines[7 * i + item], "test");
            CHECK(line["task"] == names[i]);
            CHECK(line["item"] == item);
            const size_t answers = tasks[i].questions[item].answers.size();
            REQUIRE(line["loglikelihoods"].size() == answers);
            bool greedy = false;
            for (size_t a = 0; a < answers; a++) {
                const Score expected = plain_score(*t.loaded.model, tasks[i].requests[answers * item + a]);
                CHECK(line["loglikelihoods"][a].get<double>() == doctest::Approx(expected.loglikelihood).epsilon(1e-5));
                greedy = expected.greedy;
            }
            right += i == 4 ? greedy : line["choice"] == line["gold"];
        }
        CHECK(j["tasks"][i]["acc"].get<double>() == doctest::Approx(right / 7));
    }
    CHECK(t.error() == "--choices " + t.options.choices + ": already exists; name another file or give --force");
    t.options.force = true;
    CHECK(t.error() == "");
}

TEST_CASE("tasks are chosen by name, and what cannot be done is said before anything runs") {
    TinyEvals t;
    t.options.tasks = {"lambada", "piqa"};
    const std::vector<BenchmarkTask> tasks = prepare_benchmarks(t.loaded, t.options);
    REQUIRE(tasks.size() == 2);
    CHECK(std::string(tasks[0].benchmark->name) == "piqa");
    CHECK(tasks[1].questions.size() == 9);
    CHECK(tasks[1].requests.size() == 9);
    t.options.tasks = {"arc"};
    CHECK(contains(t.error(), "--tasks arc: is none of"));
    t.options.tasks = {"boolq"};
    write_bytes(t.folder / "boolq.train.jsonl", "");
    CHECK(contains(t.error(), "has two files for boolq, "));
    fs::remove(t.folder / "boolq.train.jsonl");
    fs::remove(t.folder / "boolq.val.jsonl");
    CHECK(t.error() == "--evals " + t.folder.path() + ": has no file boolq*.jsonl, which --tasks boolq reads");
    t.options.tasks = {};
    CHECK(prepare_benchmarks(t.loaded, t.options).size() == 4);
    t.options.evals = t.folder / "nowhere";
    CHECK(contains(t.error(), "no such folder"));
    fs::create_directory(t.folder / "empty");
    t.options.evals = t.folder / "empty";
    CHECK(contains(t.error(), "has none of hellaswag*.jsonl"));
    t.options.evals = t.folder.path();
    t.loaded.model->config.V = 100;
    CHECK(contains(t.error(), "hellaswag_val.jsonl line 1: the tokenizer's token"));
    t.loaded.tokenizer.reset();
    CHECK(contains(t.error(), "no tokenizer files"));
}

TEST_CASE("a task whose answers are longer than the model reads is left out, and the table says so") {
    TinyEvals t;
    t.options.tasks = {"piqa", "boolq"};
    const std::string item = R"({"goal": "g", "sol1": "a", "sol2": ")" + std::string(67, 'b') + R"(", "label": 1})";
    write_bytes(t.folder / "piqa.jsonl", item);  // 68 tokens with the space, 67 positions
    const Json j = run_benchmarks(t.loaded, prepare_benchmarks(t.loaded, t.options), t.options);
    CHECK(j["tasks"][0]["skipped"] ==
          t.folder / "piqa.jsonl line 1: an answer of 68 tokens is longer than the model's 67 positions");
    CHECK_FALSE(j["tasks"][0].contains("acc"));
    const std::string table = benchmark_table({{"a", j}, {"b", j}}).markdown();
    CHECK(contains(table, "| PIQA      | a     |     1 | "));
    CHECK(contains(table, " n/a |"));
    CHECK(contains(table, "| BoolQ     | b     |     9 | "));
    CHECK(contains(table, " ± "));
}

TEST_CASE("a model that has diverged is a failed run") {
    TinyEvals t;
    t.options.tasks = {"boolq"};
    t.loaded.model->tensor("wpe.weight")[0] = std::numeric_limits<real>::quiet_NaN();
    const std::vector<BenchmarkTask> tasks = prepare_benchmarks(t.loaded, t.options);
    CHECK(contains(message_of<RunFailure>([&] { run_benchmarks(t.loaded, tasks, t.options); }), "not finite"));
}

TEST_CASE("the published files are read whole") {
    const std::string folder = "../shared/data/evals";
    if (is_missing(folder)) return;
    const std::vector<std::pair<const char*, size_t>> sizes = {
        {"hellaswag", 2000}, {"piqa", 1838}, {"winogrande", 1267}, {"boolq", 3270}, {"lambada", 5153}};
    for (const auto& [task, size] : sizes) {
        const Benchmark& b = benchmark_named(task);
        const std::vector<Question> questions = read_benchmark(b, benchmark_file(folder, task));
        CHECK(questions.size() == size);
        for (const Question& q : questions) {
            REQUIRE_FALSE(q.answers.empty());
            CHECK(q.gold < static_cast<int64_t>(q.answers.size()));
            for (const Answer& a : q.answers) REQUIRE(a.length > 0);
        }
    }
}
