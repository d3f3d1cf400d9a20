// Tokens that stand beside a byte-pair vocabulary: end-of-text, <|im_start|>, a domain's own words. They are cut out of a
// text, whole, before it is split into words, by the rules of Hugging Face's tokenizers (AutoTokenizer), which are these:
//
//     of several that begin at one place the longest counts, and the search goes on behind it
//     those that are not `normalized` are looked for first, the others in what is left, after it was normalized
//     `lstrip` and `rstrip` take the white space before and behind the token along
//
// A special token is looked for only where that is allowed: a document that holds its text is no reason to end there.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/error.h"

namespace lnfree {

struct AddedToken {
    std::string text;         // as it stands in a text; not empty
    int32_t id = -1;          // -1: a special token that some file names and none gives an id
    bool special = false;     // else it is cut out of every text
    bool normalized = false;  // looked for after those that are not
    bool lstrip = false;
    bool rstrip = false;
    bool single_word = false;  // only between what is no word: not supported, see AddedTokens
};

class AddedTokens {
  public:
    using Ordinary = std::function<void(std::string_view part)>;
    using Found = std::function<void(int32_t id)>;

    AddedTokens() = default;

    // BadInput, naming `source`, for a token that is both single_word and not special: which characters make a word is
    // more than the table of characters here says. With `nfc` what is left of a text by tokens that are not normalized
    // comes into form NFC (data/nfc.h), and so do the texts of those that are.
    AddedTokens(const std::vector<AddedToken>& tokens, const std::string& source, bool nfc = false);

    // Calls ordinary(part) for every stretch of `text` between added tokens, never an empty one, and found(id) for every
    // token, in their order. Returns how often a special token's text stayed ordinary because special tokens are not
    // allowed. BadInput if one is allowed that has no id or is single_word. Any number of threads may call it at once.
    uint64_t split(std::string_view text, bool allow_special, const Ordinary& ordinary, const Found& found) const;

    // The texts that a cut through a document may neither divide nor touch, lest the parts have other tokens than the
    // whole: of tokens that hold white space or look at their neighbours; `all`: of all tokens.
    std::vector<std::string> unbroken(bool all) const;

  private:
    // Tokens that are looked for together, by their first byte, the longest first.
    struct Pass {
        std::array<std::vector<AddedToken>, 256> beginning_with;
        std::string first_bytes;         // each once
        std::vector<bool> second_bytes;  // [first << 8 | second], whether a token may begin so; empty: there are none

        void add(const AddedToken& token);
        // The first token at or behind `from`, and in `at` where it begins; null if there is none.
        const AddedToken* find(std::string_view text, uint64_t from, uint64_t& at) const;
    };

    uint64_t split_by(const Pass& pass, std::string_view text, bool allow_special, const Ordinary& ordinary,
                      const Found& found) const;

    Pass exact_;       // not normalized
    Pass normalized_;  //
    std::string source_;
    bool nfc_ = false;
};

}  // namespace lnfree
