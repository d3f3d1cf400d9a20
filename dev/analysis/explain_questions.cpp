#include "dev/analysis/explain_questions.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <sstream>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/tokenizer.h"

namespace lnfree {
namespace analysis {

namespace {

constexpr uint64_t kLargestPrompts = uint64_t{256} << 20;  // bytes of a file

const Tokenizer& tokenizer_of(const LoadedModel& loaded, const std::string& folder) {
    if (!loaded.tokenizer)
        throw BadInput(
            folder +
            ": has no tokenizer files (tokenizer.json, or vocab.json and merges.txt), and text is nothing to "
            "it; copy them into the folder, or give ids: \"#ID\", and {\"tokens\": [...]} in --prompts");
    return *loaded.tokenizer;
}

int32_t checked(int64_t token, const LoadedModel& loaded, const std::string& where) {
    if (token < 0 || token >= loaded.model->config.V)
        throw BadInput(where + ": token " + std::to_string(token) + " is outside the model's vocabulary of " +
                       std::to_string(loaded.model->config.V));
    return static_cast<int32_t>(token);
}

// "#123" and nothing behind it.
bool is_token_id(const std::string& text) {
    return text.size() > 1 && text.size() < 12 && text[0] == '#' &&
           text.find_first_not_of("0123456789", 1) == std::string::npos;
}

std::string quoted_pieces(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
    std::string pieces;
    for (size_t i = 0; i < tokens.size() && i < 8; i++)
        pieces += (i > 0 ? ", " : "") + quoted_name(tokenizer.token_text(tokens[i]));
    return pieces + (tokens.size() > 8 ? ", ..." : "");
}

}  // namespace

int32_t token_named(const std::string& text, const LoadedModel& loaded, const std::string& folder,
                    const std::string& where) {
    const std::string named = where + " " + quoted_name(text);
    if (is_token_id(text)) return checked(std::stoll(text.substr(1)), loaded, named);
    const Tokenizer& tokenizer = tokenizer_of(loaded, folder);
    std::vector<int32_t> tokens;
    tokenizer.encode(text, tokens);
    if (tokens.size() != 1)
        throw BadInput(named + ": is " + std::to_string(tokens.size()) + " tokens to this model" +
                       (tokens.empty() ? "" : " (" + quoted_pieces(tokenizer, tokens) + ")") +
                       "; name one, with the space in front that belongs to it, or its id as \"#ID\"");
    return checked(tokens[0], loaded, named);
}

namespace {

// Reads questions, filling up what is not said from the flags.
class Reader {
  public:
    Reader(const ExplainOptions& o, const LoadedModel& loaded) : o_(o), loaded_(loaded) {
        if (!o.target.empty()) target_ = token_named(o.target, loaded, o.model, "--target");
        if (!o.against.empty()) against_ = token_named(o.against, loaded, o.model, "--against");
    }

    PromptQuestion of_text(const std::string& prompt, const std::string& where) const {
        PromptQuestion q = blank();
        q.prompt = prompt;
        tokenizer_of(loaded_, o_.model).encode(prompt, q.tokens);
        return finished(q, o_.position, where);
    }

    PromptQuestion of_json(const Json& line, const std::string& where) const {
        try {
            static const char* const known[] = {"prompt", "tokens", "target", "against", "position"};
            for (const auto& [key, value] : line.items())
                if (std::find(std::begin(known), std::end(known), key) == std::end(known))
                    throw BadInput(where + ": has the key " + quoted_name(key) +
                                   "; those known are prompt, tokens, target, against, position");
            if (line.contains("prompt") == line.contains("tokens"))
                throw BadInput(where + ": needs either \"prompt\" or \"tokens\"");
            PromptQuestion q = blank();
            if (line.contains("prompt")) {
                q.prompt = line["prompt"].string();
                tokenizer_of(loaded_, o_.model).encode(q.prompt, q.tokens);
            } else {
                for (const Json& id : line["tokens"].elements())
                    q.tokens.push_back(checked(id.get<int64_t>(), loaded_, where));
            }
            if (line.contains("target")) q.target = token_of(line, "target", where);
            if (line.contains("against")) q.against = token_of(line, "against", where);
            return finished(q, line.value("position", o_.position), where);
        } catch (const JsonError& e) {
            throw BadInput(where + ": " + e.what());
        }
    }

  private:
    const ExplainOptions& o_;
    const LoadedModel& loaded_;
    int32_t target_ = -1, against_ = -1;

    PromptQuestion blank() const {
        PromptQuestion q;
        q.target = target_;
        q.against = against_;
        if (o_.bos) q.tokens.push_back(end_of_text());
        return q;
    }

    int32_t end_of_text() const {
        const int32_t own = loaded_.tokenizer ? loaded_.tokenizer->end_of_text() : loaded_.model->config.end_of_text;
        if (own < 0) throw BadInput("--bos: " + o_.model + " names no end-of-text token; leave --bos out");
        return checked(own, loaded_, "--bos");
    }

    int32_t token_of(const Json& line, const char* key, const std::string& where) const {
        return token_named(line[key].string(), loaded_, o_.model, where + ": " + key);
    }

    PromptQuestion finished(PromptQuestion q, int64_t position, const std::string& where) const {
        const int64_t T = static_cast<int64_t>(q.tokens.size()), n_ctx = loaded_.model->config.n_ctx;
        if (T == 0) throw BadInput(where + ": holds no token; give some text, or --bos for end-of-text in front of it");
        if (T > n_ctx)
            throw BadInput(where + ": has " + std::to_string(T) + " tokens, and " + o_.model + " reads at most " +
                           std::to_string(n_ctx) + " (n_ctx); give a shorter one");
        for (const int32_t token : q.tokens) checked(token, loaded_, where);
        if (position >= T)
            throw BadInput(where + ": has " + std::to_string(T) + " tokens and no position " +
                           std::to_string(position) + "; positions count from 0");
        q.position = position < 0 ? T - 1 : position;
        if (q.target >= 0 && q.target == q.against)
            throw BadInput(where + ": target and against are the same token, " + std::to_string(q.target) +
                           "; name two");
        return q;
    }
};

std::vector<std::string> lines_of(const std::string& path) {
    std::string text = read_file(path, kLargestPrompts);
    if (text.compare(0, 3, "\xEF\xBB\xBF") == 0) text.erase(0, 3);
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
        if (!line.empty() && line.back() == '\r') line.pop_back();
        lines.push_back(line);
    }
    return lines;
}

bool is_blank(const std::string& line) {
    return line.find_first_not_of(" \t") == std::string::npos;
}

}  // namespace

std::vector<PromptQuestion> read_questions(const ExplainOptions& o, const LoadedModel& loaded) {
    if (o.has_prompt != o.prompts.empty()) throw BadInput("explain: give either --prompt TEXT or --prompts FILE");
    const Reader reader(o, loaded);
    if (o.has_prompt) return {reader.of_text(o.prompt, "--prompt")};
    std::vector<PromptQuestion> questions;
    const std::vector<std::string> lines = lines_of(o.prompts);
    bool as_json = false;
    for (size_t i = 0; i < lines.size(); i++) {
        if (is_blank(lines[i])) continue;
        const std::string where = o.prompts + ", line " + std::to_string(i + 1);
        const auto is_object = [](const std::optional<Json>& j) { return j && j->is_object(); };
        if (questions.empty()) as_json = is_object(json_in(lines[i]));
        if (!as_json) {
            questions.push_back(reader.of_text(lines[i], where));
            continue;
        }
        const Json line = parse_json(lines[i], where);
        if (!line.is_object()) throw BadInput(where + ": is no JSON object, as the first line is");
        questions.push_back(reader.of_json(line, where));
    }
    if (questions.empty()) throw BadInput(o.prompts + ": holds no prompts");
    return questions;
}

}  // namespace analysis
}  // namespace lnfree
