// How GPT-2 cuts text into pieces before byte-pair encoding, and where a long text may be cut without changing them.
//
// The definition is one regular expression (GPT-2's encoder.py):
//
//     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// Its six kinds of piece need four classes of character (space, letter, number, anything else) and one character of
// look-ahead, so the loop in pretokenize.cpp is the whole of it. It is written by hand rather than given to a regex library for
// three reasons: the classes come from a frozen table, so that ids do not depend on the Unicode version of whatever
// library a machine has; bytes that are not UTF-8 have a defined meaning; and it is several times faster. The tests
// run the expression itself through PCRE2 and demand the same pieces.
#pragma once

#include <cstdint>
#include <string_view>

namespace lnfree {

// The classes of characters that the pattern tells apart.
enum class CharClass : uint8_t { Other, Letter, Number, Space };

// Class of every code point, 1 byte each, filled once from the ranges of unicode_classes.h.
const CharClass* char_classes();

// Length of the well-formed UTF-8 sequence at p (Unicode 15, table 3-7: no overlong forms, no surrogates, nothing
// above U+10FFFF), its code point in `code_point`; 0 if the bytes at p are no such sequence. Needs p < end.
uint32_t decode_utf8(const char* p, const char* end, uint32_t& code_point);

// The patterns that tokenizers of this kind split by.
enum class Split : uint8_t {
    gpt2,         // the one above
    gpt2_digits,  // every number character (\p{N}) is a piece, and the one above splits what is between (SmolLM2)
    llama3,       // below, with up to three number characters a piece
    qwen2,        // below, with one
};

// Length in bytes of the first piece of [p, end), which must not be empty. Every byte belongs to exactly one piece.
uint64_t piece_length(const char* p, const char* end, const CharClass* classes);

// The same for Split::gpt2_digits.
uint64_t digits_piece_length(const char* p, const char* end, const CharClass* classes);

// The same for the pattern of Llama 3, which is OpenAI's cl100k_base but for greed, and Qwen2's:
//
//     (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,most_numbers}|
//      ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
uint64_t llama3_piece_length(const char* p, const char* end, const CharClass* classes, uint32_t most_numbers);

// The last place in `text` where it may be cut in two without changing any piece of either half, or 0 if there is none.
//
// With GPT-2's pattern it is a place where a character that is not white space is followed by a space or line feed. No
// piece can span it: in every branch of the pattern white space comes first or stands alone. Nor can a piece before it
// depend on what follows: the only look-ahead, in \s+(?!\S), ends at the next character that is not white space, which is
// still before the cut. And no piece looks back, so what comes after the cut is split as if the text began there.
// <|endoftext|> holds no white space and is not cut either. The same holds where numbers are pieces.
//
// Llama 3's pattern has line feeds behind symbols too (".\n"). There it is in front of a space that follows something
// visible, or behind a line feed in front of something visible: every branch that takes a line feed ends with the last one.
//
// Form NFC (data/nfc.h) moves nothing over such places: no mark joins a space or line feed, nor these anything.
uint64_t last_safe_cut(std::string_view text, Split split = Split::gpt2);

}  // namespace lnfree
