// libFuzzer target for tokenizer files. The first byte says what the bytes up to the first 0xFF are: a tokenizer.json, a
// vocab.json, or merges, whose tokens are then all put into a vocabulary so that most inputs get as far as encoding. What
// follows is a text. Every file must be read or refused with BadInput; a tokenizer that comes out must give any text back.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/json.h"
#include "data/tokenizer.h"

namespace {

using namespace lnfree;

void require(bool condition) {
    if (!condition) std::abort();
}

BpeVocabulary parse_file(uint8_t kind, const std::string& file) {
    BpeVocabulary vocabulary;
    if (kind % 3 == 0) return parse_tokenizer_json(file, "file");
    if (kind % 3 == 1) {
        parse_bpe_vocab(parse_json(file, "file"), "file", vocabulary);
        return vocabulary;
    }
    parse_bpe_merges(file, "file", vocabulary);
    const auto add = [&](const std::string& token) {
        vocabulary.ids.emplace(token, static_cast<int32_t>(vocabulary.ids.size()));
    };
    for (const std::string& symbol : byte_symbols()) add(symbol);
    add(end_of_text_string);
    for (const auto& [left, right] : vocabulary.merges) {
        for (const std::string& token : {left, right, left + right}) add(token);
    }
    return vocabulary;
}

// Whether it normalizes a text, may leave bytes out, puts a space before it, or takes white space along with a token: then it does not come back
// whole.
bool changes_text(const BpeVocabulary& vocabulary) {
    return vocabulary.prefix_space || vocabulary.nfc || vocabulary.lacks_bytes ||
           std::any_of(vocabulary.added.begin(), vocabulary.added.end(),
                       [](const auto& entry) { return entry.second.lstrip || entry.second.rstrip; });
}

void try_tokenizer(const Tokenizer& tokenizer, const std::string& text, bool changes_text) {
    for (const bool allow_special : {false, true}) {
        std::vector<int32_t> tokens;
        require(tokenizer.encode(text, tokens, allow_special) == 0 || !allow_special);
        if (!changes_text) require(tokenizer.decode(tokens.data(), tokens.size()) == text);
        for (const int32_t token : tokens) {
            require(token >= 0 && static_cast<uint32_t>(token) < tokenizer.vocab_size());
            require(!tokenizer.token_text(token).empty());
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const uint8_t* const separator = std::find(data + 1, data + size, 0xFF);
    const std::string file(data + 1, separator);
    const std::string text(separator, data + size);
    try {
        const BpeVocabulary vocabulary = parse_file(data[0], file);
        try_tokenizer(BpeTokenizer(vocabulary, {}, "file"), text, changes_text(vocabulary));
    } catch (const BadInput&) {
    }
    return 0;
}
