#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "data/error.h"
#include "data/random.h"
#include "data/tokenizer.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/run/models.h"

namespace lnfree {

namespace {

// Bytes of the UTF-8 character that begins with this one; 1 for what begins none (Unicode, table 3-7).
size_t utf8_length(unsigned char first) {
    if (first >= 0xC2 && first <= 0xDF) return 2;
    if (first >= 0xE0 && first <= 0xEF) return 3;
    if (first >= 0xF0 && first <= 0xF4) return 4;
    return 1;
}

}  // namespace

size_t complete_utf8_prefix(const std::string& text) {
    for (size_t back = 1; back <= std::min<size_t>(3, text.size()); back++) {
        const auto byte = static_cast<unsigned char>(text[text.size() - back]);
        const bool continues = byte >= 0x80 && byte <= 0xBF;  // the character begins further back
        if (!continues) return utf8_length(byte) > back ? text.size() - back : text.size();
    }
    return text.size();
}

namespace {

// Standard output for text that comes token by token: a character of several bytes, which may be spread over several
// tokens, appears when it is whole.
class TextStream {
  public:
    void add(const std::string& text) {
        pending_ += text;
        const size_t ready = complete_utf8_prefix(pending_);
        write(ready);
    }
    // What is left: bytes that became no character.
    void finish() { write(pending_.size()); }

  private:
    void write(size_t bytes) {
        if (bytes == 0) return;
        std::fwrite(pending_.data(), 1, bytes, stdout);
        std::fflush(stdout);
        pending_.erase(0, bytes);
    }

    std::string pending_;
};

// What the top_k-th largest of the logits (V) is; minus infinity where all may be drawn.
real smallest_allowed(const real* logits, int64_t V, int64_t top_k) {
    if (top_k <= 0 || top_k >= V) return -std::numeric_limits<real>::infinity();
    std::vector<real> sorted(logits, logits + V);
    std::nth_element(sorted.begin(), sorted.begin() + (top_k - 1), sorted.end(), std::greater<real>());
    return sorted[static_cast<size_t>(top_k - 1)];
}

// The next token: the most likely one at temperature 0, else a draw from softmax(logits / temperature), from the top_k
// most likely tokens if top_k > 0. logits (V) are overwritten.
int32_t sample_token(real* logits, int64_t V, double temperature, int64_t top_k, SplitMix64& random) {
    const auto largest = static_cast<int32_t>(std::max_element(logits, logits + V) - logits);
    if (temperature == 0) return largest;
    const real threshold = smallest_allowed(logits, V, top_k), top = logits[largest];
    double total = 0;
    for (int64_t i = 0; i < V; i++) {
        logits[i] = logits[i] < threshold
                        ? real(0)
                        : static_cast<real>(std::exp(static_cast<double>(logits[i] - top) / temperature));
        total += static_cast<double>(logits[i]);
    }
    double draw = random.uniform() * total;
    for (int64_t i = 0; i < V; i++) {
        draw -= static_cast<double>(logits[i]);
        if (draw < 0) return static_cast<int32_t>(i);
    }
    return largest;
}

// The prompt's tokens, at least one. BadInput if the tokenizer and the model do not belong together.
std::vector<int32_t> prompt_tokens(const LoadedModel& loaded, const GenerateOptions& o) {
    if (!loaded.tokenizer)
        throw BadInput(
            o.model +
            ": has no tokenizer files (tokenizer.json, or vocab.json and merges.txt); copy them into the folder");
    std::vector<int32_t> tokens;
    loaded.tokenizer->encode(o.prompt, tokens);
    if (tokens.empty()) tokens.push_back(loaded.tokenizer->end_of_text());
    for (const int32_t token : tokens)
        if (token < 0 || token >= loaded.model->config.V)
            throw BadInput(o.model + ": the tokenizer's token " + std::to_string(token) +
                           " is outside the model's vocabulary");
    return tokens;
}

// Appends up to max_tokens tokens, until the end of the text, and shows each as it comes.
void continue_tokens(std::vector<int32_t>& tokens, const LoadedModel& loaded, const GenerateOptions& o,
                     const std::function<void(int32_t)>& show) {
    Engine& model = *loaded.model;
    const int64_t V = model.config.V;
    SplitMix64 random(o.seed);
    std::vector<real> logits(static_cast<size_t>(V));
    for (int64_t i = 0; i < o.max_tokens; i++) {
        const int64_t T = std::min<int64_t>(static_cast<int64_t>(tokens.size()), model.config.n_ctx);
        model.logits(logits.data(), tokens.data() + tokens.size() - static_cast<size_t>(T), 1, T, T - 1);
        const int32_t next = sample_token(logits.data(), V, o.temperature, o.top_k, random);
        if (next == loaded.tokenizer->end_of_text()) return;
        tokens.push_back(next);
        show(next);
    }
}

}  // namespace

int generate_command(const GenerateOptions& o) {
    if (!(o.temperature >= 0) || o.max_tokens < 1 || o.top_k < 0)
        throw BadInput("generate: --temperature and --top-k must not be negative, --max-tokens at least 1");
    backend().use_precision(o.precision);
    const LoadedModel loaded = load_model(o.model);
    std::vector<int32_t> tokens = prompt_tokens(loaded, o);
    const size_t prompt_length = tokens.size();
    if (o.json_output) {
        continue_tokens(tokens, loaded, o, [](int32_t) {});
        const std::vector<int32_t> made(tokens.begin() + static_cast<std::ptrdiff_t>(prompt_length), tokens.end());
        const std::string text = loaded.tokenizer->decode(made.data(), made.size());
        print_json(true, {{"prompt", o.prompt}, {"text", text}, {"tokens", made}});
        return 0;
    }
    TextStream screen;
    screen.add(o.prompt);
    continue_tokens(tokens, loaded, o, [&](int32_t token) { screen.add(loaded.tokenizer->decode(&token, 1)); });
    screen.finish();
    std::printf("\n");
    return 0;
}

}  // namespace lnfree
