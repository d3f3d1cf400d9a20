#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/tokenizer.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/run/models.h"
#include "dev/run/samples.h"

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

// The prompt's tokens; none for none. BadInput if there is a prompt and no tokenizer, or one that does not belong to the
// model.
std::vector<int32_t> prompt_tokens(const LoadedModel& loaded, const GenerateOptions& o) {
    std::vector<int32_t> tokens;
    if (o.prompt.empty()) return tokens;
    // Special tokens too, as AutoTokenizer lets a prompt hold them.
    required_tokenizer(loaded, o.model, "a prompt").encode(o.prompt, tokens, true);
    for (const int32_t token : tokens)
        if (token < 0 || token >= loaded.model->config.V)
            throw BadInput(o.model + ": the tokenizer's token " + std::to_string(token) +
                           " is outside the model's vocabulary");
    return tokens;
}

// Token shards of the model's own text, for tools that read shards.
int write_shards(const LoadedModel& loaded, const GenerateOptions& o) {
    SampleRequest r;
    r.prefix = o.shards;
    r.tokens = o.tokens;
    r.val_tokens = static_cast<uint64_t>(o.val_fraction * static_cast<double>(o.tokens));
    r.tokens -= r.val_tokens;
    r.prompt = prompt_tokens(loaded, o);
    r.batch = o.batch;
    r.sampling = o.sampling;
    const std::filesystem::path folder = std::filesystem::path(o.shards).parent_path();
    if (!folder.empty()) std::filesystem::create_directories(folder);
    write_samples(*loaded.model, loaded.tokenizer.get(), r, "writing");
    print_json(o.json_output, {{"shards", o.shards}, {"tokens", r.tokens}, {"val_tokens", r.val_tokens}});
    if (!o.json_output)
        std::printf("%s: %s tokens to train on, %s to validate\n", o.shards.c_str(), format_count(r.tokens).c_str(),
                    format_count(r.val_tokens).c_str());
    return 0;
}

}  // namespace

int generate_command(const GenerateOptions& o) {
    if (!(o.sampling.temperature >= 0) || o.max_tokens < 1 || o.sampling.top_k < 0)
        throw BadInput("generate: --temperature and --top-k must not be negative, --max-tokens at least 1");
    if (o.shards.empty() != (o.tokens == 0)) throw BadInput("generate: --shards PREFIX and --tokens N go together");
    if (o.batch < 1 || !(o.val_fraction >= 0 && o.val_fraction < 1))
        throw BadInput("generate: --batch must be at least 1, --val-fraction at least 0 and below 1");
    backend().use_precision(o.precision);
    const LoadedModel loaded = load_model(o.model);
    if (!o.shards.empty()) return write_shards(loaded, o);
    std::vector<int32_t> tokens = prompt_tokens(loaded, o);
    const Tokenizer& tokenizer = required_tokenizer(loaded, o.model, "showing text (unless --shards writes tokens)");
    if (tokens.empty()) tokens.push_back(tokenizer.end_of_text());
    if (tokens[0] >= loaded.model->config.V)
        throw BadInput(o.model + ": the tokenizer's token " + std::to_string(tokens[0]) +
                       " is outside the model's vocabulary");
    const size_t prompt_length = tokens.size();
    Sampling sampling = o.sampling;
    sampling.never = ids_without_text(loaded.tokenizer.get(), loaded.model->config.V);
    TextStream screen;
    if (!o.json_output) screen.add(o.prompt);
    int64_t made = 0;
    continue_tokens(*loaded.model, tokens, sampling, [&](int32_t token) {
        if (made++ == o.max_tokens || token == loaded.tokenizer->end_of_text()) return false;
        if (!o.json_output) screen.add(loaded.tokenizer->decode(&token, 1));
        return true;
    });
    if (o.json_output) {
        const std::vector<int32_t> added(tokens.begin() + static_cast<std::ptrdiff_t>(prompt_length), tokens.end());
        const std::string text = loaded.tokenizer->decode(added.data(), added.size());
        print_json(true, {{"prompt", o.prompt}, {"text", text}, {"tokens", added}});
        return 0;
    }
    screen.finish();
    std::printf("\n");
    return 0;
}

}  // namespace lnfree
