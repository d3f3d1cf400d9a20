#include "data/added_tokens.h"

#include <algorithm>

#include "data/files.h"
#include "data/nfc.h"
#include "data/pretokenize.h"

namespace lnfree {

namespace {

bool is_space(const char* p, const char* end, uint32_t& bytes) {
    uint32_t code_point = 0;
    bytes = decode_utf8(p, end, code_point);
    return bytes > 0 && char_classes()[code_point] == CharClass::Space;
}

// Where the white space behind `at` ends.
uint64_t end_of_space(std::string_view text, uint64_t at) {
    uint32_t bytes = 0;
    while (at < text.size() && is_space(text.data() + at, text.data() + text.size(), bytes)) at += bytes;
    return at;
}

// Where the white space before `at` begins.
uint64_t begin_of_space(std::string_view text, uint64_t at) {
    while (at > 0) {
        uint64_t first = at - 1;
        while (first > 0 && at - first < 4 && (text[first] & 0xC0) == 0x80) --first;
        uint32_t bytes = 0;
        if (!is_space(text.data() + first, text.data() + at, bytes) || first + bytes != at) return at;
        at = first;
    }
    return at;
}

bool holds_space(std::string_view text) {
    for (uint64_t i = 0; i < text.size(); ++i) {
        if (end_of_space(text, i) > i) return true;
    }
    return false;
}

}  // namespace

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens, const std::string& source, bool nfc)
    : source_(source), nfc_(nfc) {
    for (AddedToken token : tokens) {
        if (token.single_word && !token.special) {
            throw BadInput(source + ": the added token " + quoted_name(token.text) +
                           " is single_word, which is not supported; tokenise with transformers and give its ids as a "
                           ".npy file");
        }
        std::string storage;
        if (nfc && token.normalized) token.text = std::string(to_nfc(token.text, storage));
        (token.normalized ? normalized_ : exact_).add(token);
    }
}

uint64_t AddedTokens::split(std::string_view text, bool allow_special, const Ordinary& ordinary,
                            const Found& found) const {
    uint64_t left_ordinary = 0;
    std::string storage;
    const auto rest = [&](std::string_view part) {
        const std::string_view normal = nfc_ ? to_nfc(part, storage) : part;
        left_ordinary += split_by(normalized_, normal, allow_special, ordinary, found);
    };
    left_ordinary += split_by(exact_, text, allow_special, rest, found);
    return left_ordinary;
}

std::vector<std::string> AddedTokens::unbroken(bool all) const {
    std::vector<std::string> texts;
    for (const Pass* pass : {&exact_, &normalized_}) {
        for (const char first : pass->first_bytes) {
            for (const AddedToken& token : pass->beginning_with[static_cast<uint8_t>(first)]) {
                const bool looks_around = token.lstrip || token.rstrip || token.single_word;
                if (all || looks_around || holds_space(token.text)) texts.push_back(token.text);
            }
        }
    }
    return texts;
}

void AddedTokens::Pass::add(const AddedToken& token) {
    std::vector<AddedToken>& same = beginning_with[static_cast<uint8_t>(token.text[0])];
    if (same.empty()) first_bytes += token.text[0];
    second_bytes.resize(256 * 256);
    for (uint32_t second = 0; second < 256; ++second) {
        const bool begins_so = token.text.size() == 1 || static_cast<uint8_t>(token.text[1]) == second;
        if (begins_so) second_bytes[static_cast<uint8_t>(token.text[0]) << 8 | second] = true;
    }
    same.push_back(token);
    std::stable_sort(same.begin(), same.end(),
                     [](const AddedToken& a, const AddedToken& b) { return a.text.size() > b.text.size(); });
}

const AddedToken* AddedTokens::Pass::find(std::string_view text, uint64_t from, uint64_t& at) const {
    const auto next_start = [&](uint64_t i) {
        if (first_bytes.size() == 1) return text.find(first_bytes[0], i);  // most often: by memchr, the fastest
        while (i < text.size() && beginning_with[static_cast<uint8_t>(text[i])].empty()) ++i;
        return i < text.size() ? i : std::string_view::npos;
    };
    if (first_bytes.empty()) return nullptr;
    for (at = next_start(from); at != std::string_view::npos; at = next_start(at + 1)) {
        const uint32_t first = static_cast<uint8_t>(text[at]);
        if (at + 1 < text.size() && !second_bytes[first << 8 | static_cast<uint8_t>(text[at + 1])]) continue;
        for (const AddedToken& token : beginning_with[first]) {
            if (text.compare(at, token.text.size(), token.text) == 0) return &token;
        }
    }
    return nullptr;
}

uint64_t AddedTokens::split_by(const Pass& pass, std::string_view text, bool allow_special, const Ordinary& ordinary,
                               const Found& found) const {
    uint64_t left_ordinary = 0;
    uint64_t done = 0;  // of the text
    uint64_t at = 0;
    for (uint64_t from = 0; const AddedToken* token = pass.find(text, from, at); from = at + token->text.size()) {
        if (token->special && !allow_special) {
            ++left_ordinary;
            continue;
        }
        if (token->id < 0 || token->single_word) {
            throw BadInput(source_ + ": the special token " + quoted_name(token->text) +
                           (token->id < 0 ? " has no id there" : " is single_word, which is not supported") +
                           "; leave special tokens ordinary text, or tokenise with transformers");
        }
        const uint64_t begin = token->lstrip ? std::max(begin_of_space(text, at), done) : at;
        const uint64_t after = at + token->text.size();
        const uint64_t end = token->rstrip ? end_of_space(text, after) : after;
        if (done < begin) ordinary(text.substr(done, begin - done));
        if (begin < end) found(token->id);  // else the token before has taken all of it along
        done = end;
    }
    if (done < text.size()) ordinary(text.substr(done));
    return left_ordinary;
}

}  // namespace lnfree
