// Tests of data/tokenizer.h and data/pretokenize.h: bytes, byte-pair encoding on a vocabulary small enough to follow by
// hand, GPT-2's pattern against PCRE2, and GPT-2's ids against a record of tiktoken's.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <doctest/doctest.h>
#include <pcre2.h>
#include <utf8proc.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "data/json.h"
#include "data/nfc.h"
#include "data/pretokenize.h"
#include "data/random.h"
#include "data/tokenizer.h"
#include "test/file_helpers.h"

using namespace lnfree;

namespace {

using Ids = std::vector<int32_t>;

Ids encode(const Tokenizer& tokenizer, std::string_view text, bool allow_special = false) {
    Ids ids;
    tokenizer.encode(text, ids, allow_special);
    return ids;
}

std::string decode(const Tokenizer& tokenizer, const Ids& ids) {
    return tokenizer.decode(ids.data(), ids.size());
}

std::string random_bytes(SplitMix64& random, uint64_t n) {
    std::string bytes(n, '\0');
    for (char& c : bytes) c = static_cast<char>(random.next());
    return bytes;
}

void append_utf8(std::string& text, uint32_t c) {
    if (c < 0x80) {
        text += static_cast<char>(c);
    } else if (c < 0x800) {
        text += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
    } else if (c < 0x10000) {
        text += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
                 static_cast<char>(0x80 | (c & 63))};
    } else {
        text += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
                 static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
    }
}

// ---- a small vocabulary ----------------------------------------------------------------------------------------------

// The 256 bytes have the ids 0 ... 255 in the order of their values; merge number i makes the id 256 + i.
const std::vector<std::pair<std::string, std::string>> small_merges = {
    {"l", "o"},      // 256 lo
    {"Ġ", "lo"},     // 257 " lo"
    {"a", "a"},      // 258 aa
    {"Ġlo", "w"},    // 259 " low"
    {"e", "r"},      // 260 er
    {"aa", "aa"},    // 261 aaaa
    {"Ġlow", "er"},  // 262 " lower"
    {"Ã", "©"},      // 263 é
    {"Ċ", "Ċ"},      // 264 two line feeds
    {"'", "s"},      // 265 's
    {"Ġ", "Ġ"},      // 266 two spaces
    {"ĠĠ", "ĠĠ"},    // 267 four spaces
};
constexpr int32_t small_end_of_text = 268;

nlohmann::ordered_json small_vocab() {
    nlohmann::ordered_json vocab;
    for (uint32_t b = 0; b < 256; ++b) vocab[byte_symbols()[b]] = b;
    for (const auto& [left, right] : small_merges) vocab[left + right] = vocab.size();
    vocab["<|endoftext|>"] = small_end_of_text;
    return vocab;
}

std::string small_merges_text() {
    std::string text = "#version: 0.2\n";
    for (const auto& [left, right] : small_merges) text += left + " " + right + "\n";
    return text;
}

nlohmann::ordered_json small_tokenizer_json(bool merges_as_pairs) {
    nlohmann::ordered_json merges = nlohmann::ordered_json::array();
    for (const auto& [left, right] : small_merges) {
        if (merges_as_pairs) {
            merges.push_back({left, right});
        } else {
            merges.push_back(left + " " + right);
        }
    }
    const nlohmann::ordered_json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
    return {{"version", "1.0"},
            {"added_tokens", {{{"id", small_end_of_text}, {"content", "<|endoftext|>"}, {"special", true}}}},
            {"normalizer", nullptr},
            {"pre_tokenizer", byte_level},
            {"model", {{"type", "BPE"}, {"vocab", small_vocab()}, {"merges", merges}}}};
}

void write_small_folder(const TemporaryFolder& folder) {
    write_bytes(folder / "vocab.json", small_vocab().dump());
    write_bytes(folder / "merges.txt", small_merges_text());
}

std::unique_ptr<Tokenizer> small_tokenizer() {
    const TemporaryFolder folder;
    write_small_folder(folder);
    return load_tokenizer(folder.path());
}

// ---- GPT-2's pattern itself ------------------------------------------------------------------------------------------

// A regular expression, run by PCRE2 over well-formed UTF-8.
class Pattern {
  public:
    explicit Pattern(const char* pattern) {
        int error = 0;
        PCRE2_SIZE where = 0;
        code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                              &error, &where, nullptr);
        REQUIRE(code_ != nullptr);
        pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE);
        match_ = pcre2_match_data_create_from_pattern(code_, nullptr);
    }
    Pattern(const Pattern&) = delete;
    Pattern& operator=(const Pattern&) = delete;
    ~Pattern() {
        pcre2_match_data_free(match_);
        pcre2_code_free(code_);
    }

    // The parts of the text that match, one after the other.
    std::vector<std::string> find_all(const std::string& text) const {
        std::vector<std::string> found;
        for (PCRE2_SIZE at = 0; at < text.size();) {
            const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
            if (pcre2_match(code_, subject, text.size(), at, PCRE2_NO_UTF_CHECK, match_, nullptr) < 0) break;
            const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match_);
            found.push_back(text.substr(bounds[0], bounds[1] - bounds[0]));
            at = bounds[1];
        }
        return found;
    }

  private:
    pcre2_code* code_;
    pcre2_match_data* match_;
};

// GPT-2's pattern. Two edits, for U+180E, the Mongolian vowel separator: it has been no white space since Unicode 6.3,
// but PCRE2's \s takes it for one.
#define SPACE R"([^\S\x{180E}])"
#define VISIBLE R"([\S\x{180E}])"
constexpr char gpt2_pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?(?:(?![\p{L}\p{N}]))" VISIBLE ")+|" SPACE
                                "+(?!" VISIBLE ")|" SPACE "+";

uint64_t length_of_piece(const char* p, const char* end, Split split) {
    if (split == Split::gpt2_digits) return digits_piece_length(p, end, char_classes());
    if (split == Split::llama3) return llama3_piece_length(p, end, char_classes(), 3);
    if (split == Split::qwen2) return llama3_piece_length(p, end, char_classes(), 1);
    return piece_length(p, end, char_classes());
}

std::vector<std::string> pieces_of(std::string_view text, Split split = Split::gpt2) {
    std::vector<std::string> pieces;
    for (const char *p = text.data(), *end = p + text.size(); p < end; p += pieces.back().size()) {
        pieces.emplace_back(p, length_of_piece(p, end, split));
    }
    return pieces;
}

// Llama 3's pattern and Qwen2's, with the same two edits.
#define CL100K(numbers)                                                                                          \
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})" numbers R"(| ?(?:(?![\p{L}\p{N}]))" VISIBLE \
    R"()+[\r\n]*|)" SPACE R"(*[\r\n]+|)" SPACE "+(?!" VISIBLE ")|" SPACE "+"

// The pieces by PCRE2: of gpt2_digits in two steps, as its tokenizer.json has them.
std::vector<std::string> pieces_by_pcre2(const std::string& text, Split split) {
    static const Pattern gpt2(gpt2_pattern), numbers(R"(\p{N}|\P{N}+)"), llama3(CL100K("{1,3}")), qwen2(CL100K(""));
    if (split == Split::llama3) return llama3.find_all(text);
    if (split == Split::qwen2) return qwen2.find_all(text);
    if (split == Split::gpt2) return gpt2.find_all(text);
    std::vector<std::string> pieces;
    for (const std::string& part : numbers.find_all(text)) {
        for (const std::string& piece : gpt2.find_all(part)) pieces.push_back(piece);
    }
    return pieces;
}

constexpr Split all_splits[] = {Split::gpt2, Split::gpt2_digits, Split::llama3, Split::qwen2};

// The code points that this PCRE2's edition of Unicode has assigned; later ones it cannot judge.
std::vector<bool> assigned_code_points() {
    std::vector<bool> assigned(0x110000, false);
    std::string all;
    for (uint32_t c = 0; c < 0x110000; ++c) {
        if (c < 0xD800 || c >= 0xE000) append_utf8(all, c);
    }
    for (const std::string& character : Pattern(R"(\P{Cn})").find_all(all)) {
        uint32_t code_point = 0;
        decode_utf8(character.data(), character.data() + character.size(), code_point);
        assigned[code_point] = true;
    }
    return assigned;
}

// A character of a random kind, so that runs, contractions and all classes meet each other.
uint32_t random_code_point(SplitMix64& random, const std::vector<bool>& assigned) {
    static const std::u32string favourites =
        U" '  stremvldSD\n\r\t0a9.é漢٣\u0085\u00A0\u180E\u200B\u2028\u3000\u0301ⅧÀ😀";
    for (;;) {
        const uint64_t kind = random.below(10);
        const uint32_t c = kind < 7   ? static_cast<uint32_t>(favourites[random.below(favourites.size())])
                           : kind < 9 ? static_cast<uint32_t>(random.below(0x3000))
                                      : static_cast<uint32_t>(random.below(0x110000));
        if (assigned[c]) return c;
    }
}

}  // namespace

// ---- bytes -----------------------------------------------------------------------------------------------------------

TEST_CASE("the byte tokenizer gives every byte as its own id") {
    const auto tokenizer = load_tokenizer("byte");
    std::string all;
    Ids expected;
    for (int32_t b = 0; b < 256; ++b) {
        all += static_cast<char>(b);
        expected.push_back(b);
    }
    CHECK(encode(*tokenizer, all) == expected);
    CHECK(decode(*tokenizer, expected) == all);
    CHECK(encode(*tokenizer, "") == Ids());
    CHECK(tokenizer->vocab_size() == 257);
    CHECK(tokenizer->end_of_text() == 256);
    CHECK(tokenizer->name() == "byte");
}

TEST_CASE("encode appends to what is there") {
    Ids ids = {7};
    load_tokenizer("byte")->encode("ab", ids);
    CHECK(ids == Ids{7, 97, 98});
}

TEST_CASE("end-of-text in a text is special only where that is allowed") {
    const auto tokenizer = load_tokenizer("byte");
    CHECK(encode(*tokenizer, "a<|endoftext|>", true) == Ids{97, 256});
    CHECK(encode(*tokenizer, "<|endoftext|><|endoftext|>b", true) == Ids{256, 256, 98});
    CHECK(encode(*tokenizer, "<|endoftext|", true).size() == 12);
    CHECK(encode(*tokenizer, "<|endoftext|>").size() == 13);
    CHECK(decode(*tokenizer, {97, 256, 98}) == "a<|endoftext|>b");
}

TEST_CASE("ids outside the vocabulary cannot be decoded") {
    for (const char* kind : {"byte", "bpe"}) {
        const auto tokenizer = std::string(kind) == "byte" ? load_tokenizer("byte") : small_tokenizer();
        const int32_t above = static_cast<int32_t>(tokenizer->vocab_size());
        for (const int32_t id : {-1, above, 1 << 30}) {
            const std::string message = message_of<BadInput>([&] { decode(*tokenizer, {id}); });
            CHECK(contains(message, std::to_string(id)));
            CHECK(contains(tokenizer->token_text(id), "unknown"));
        }
    }
}

TEST_CASE("token_text shows what cannot be printed") {
    const auto tokenizer = load_tokenizer("byte");
    CHECK(tokenizer->token_text('a') == "a");
    CHECK(tokenizer->token_text(' ') == " ");
    CHECK(tokenizer->token_text('\n') == "\\n");
    CHECK(tokenizer->token_text('\t') == "\\t");
    CHECK(tokenizer->token_text('\\') == "\\\\");
    CHECK(tokenizer->token_text(0) == "\\x00");
    CHECK(tokenizer->token_text(0xC3) == "\\xC3");
    CHECK(tokenizer->token_text(256) == "<|endoftext|>");
    CHECK(printable("é\u0085漢\xE2\x82") == "é\\xC2\\x85漢\\xE2\\x82");
}

TEST_CASE("a saved byte tokenizer is loaded as one, and its file lists the bytes for Hugging Face") {
    const TemporaryFolder folder;
    const auto tokenizer = load_tokenizer("byte");
    tokenizer->save(folder.path());
    const auto loaded = load_tokenizer(folder.path());
    CHECK(loaded->name() == "byte");
    CHECK(loaded->fingerprint() == tokenizer->fingerprint());
    const Json file = read_json(folder / "tokenizer.json");
    CHECK(file["model"]["vocab"]["a"] == 97);
    CHECK(file["model"]["vocab"]["Ġ"] == 32);
    CHECK(file["model"]["vocab"]["Ã"] == 0xC3);
    CHECK(file["model"]["vocab"].size() == 257);
    CHECK(file["added_tokens"][0]["id"] == 256);
    const Json config = read_json(folder / "tokenizer_config.json");
    CHECK(config["eos_token"] == "<|endoftext|>");
    CHECK(config["model_input_names"].dump() == R"(["input_ids","attention_mask"])");  // no token_type_ids
}

// ---- pre-tokenisation ------------------------------------------------------------------------------------------------

TEST_CASE("well-formed UTF-8 is told from everything else") {
    uint32_t code_point = 0;
    const auto length = [&](std::string_view bytes) {
        return decode_utf8(bytes.data(), bytes.data() + bytes.size(), code_point);
    };
    for (uint32_t c = 0; c < 0x110000; ++c) {
        std::string character;
        append_utf8(character, c);
        const bool surrogate = c >= 0xD800 && c < 0xE000;
        const uint32_t expected = surrogate ? 0 : static_cast<uint32_t>(character.size());
        if (length(character) != expected || (!surrogate && code_point != c)) FAIL("code point " << c);
        if (length(character.substr(0, character.size() - 1)) != 0 && c >= 0x80) FAIL("cut code point " << c);
    }
    for (const char* bad :
         {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC3(", "\xE0\x9F\xBF", "\xE2\x82(", "\xE2(\xA1", "\xED\xA0\x80",
          "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFE", "\xFF"}) {
        CHECK(length(bad) == 0);
    }
}

TEST_CASE("text is split where GPT-2's pattern splits it") {
    using Pieces = std::vector<std::string>;
    CHECK(pieces_of("Hello world") == Pieces{"Hello", " world"});
    CHECK(pieces_of("it's they'll 'sand 'S") == Pieces{"it", "'s", " they", "'ll", " '", "sand", " '", "S"});
    CHECK(pieces_of("I've I'dn't") == Pieces{"I", "'ve", " I", "'d", "n", "'t"});
    CHECK(pieces_of("a  b   ") == Pieces{"a", " ", " b", "   "});
    CHECK(pieces_of("a\n\nb\n") == Pieces{"a", "\n", "\n", "b", "\n"});
    CHECK(pieces_of("\t\tx \t y") == Pieces{"\t", "\t", "x", " \t", " y"});
    CHECK(pieces_of("x1 22,333") == Pieces{"x", "1", " 22", ",", "333"});
    CHECK(pieces_of("' '' '") == Pieces{"'", " ''", " '"});
    CHECK(pieces_of("\u3000\u3000a") == Pieces{"\u3000", "\u3000", "a"});
}

TEST_CASE("a byte outside UTF-8 counts as a symbol") {
    using Pieces = std::vector<std::string>;
    CHECK(pieces_of("a\xFF\x80z") == Pieces{"a", "\xFF\x80", "z"});
    CHECK(pieces_of("a \xC3.\xC3") == Pieces{"a", " \xC3.\xC3"});
    CHECK(pieces_of("  \xE2\x82 b") == Pieces{" ", " \xE2\x82", " b"});
    CHECK(pieces_of("\xED\xA0\x80 1\xC3") == Pieces{"\xED\xA0\x80", " 1", "\xC3"});
}

TEST_CASE("every character has the class that PCRE2 gives it") {
    const std::vector<bool> assigned = assigned_code_points();
    std::string all;
    for (uint32_t c = 0; c < 0x110000; ++c) {
        if (assigned[c]) append_utf8(all, c);
    }
    const std::pair<const char*, CharClass> kinds[] = {
        {R"(\p{L})", CharClass::Letter}, {R"(\p{N})", CharClass::Number}, {SPACE, CharClass::Space}};
    for (const auto& [pattern, expected] : kinds) {
        std::vector<std::string> ours;
        for (uint32_t c = 0; c < 0x110000; ++c) {
            if (!assigned[c] || char_classes()[c] != expected) continue;
            ours.emplace_back();
            append_utf8(ours.back(), c);
        }
        CHECK(ours.size() > 9);
        CHECK(ours == Pattern(pattern).find_all(all));
    }
}

TEST_CASE("random texts are split as PCRE2 splits them") {
    const std::vector<bool> assigned = assigned_code_points();
    SplitMix64 random(11);
    for (int i = 0; i < 40000; ++i) {
        std::string text;
        for (uint64_t n = random.below(31); n > 0; --n) append_utf8(text, random_code_point(random, assigned));
        for (const Split split : all_splits) {
            if (pieces_of(text, split) != pieces_by_pcre2(text, split)) {
                FAIL("split differently by " << static_cast<int>(split) << ": " << printable(text));
            }
        }
    }
}

TEST_CASE("a text cut at a safe place has the pieces of its two halves") {
    SplitMix64 random(12);
    const std::vector<bool> assigned(0x110000, true);
    uint64_t cuts = 0;
    for (int i = 0; i < 20000; ++i) {
        std::string text;
        for (uint64_t n = random.below(25); n > 0; --n) {
            if (random.below(4) == 0) {
                text += static_cast<char>(random.next());
            } else {
                append_utf8(text, random_code_point(random, assigned));
            }
        }
        for (const Split split : all_splits) {
            const uint64_t cut = last_safe_cut(text, split);
            if (cut == 0) continue;
            ++cuts;
            std::vector<std::string> halves = pieces_of(text.substr(0, cut), split);
            for (const std::string& piece : pieces_of(text.substr(cut), split)) halves.push_back(piece);
            if (halves != pieces_of(text, split)) FAIL("cut at " << cut << ": " << printable(text));
        }
    }
    CHECK(cuts > 20000);
}

TEST_CASE("a safe cut lies before white space that follows something visible, as late as possible") {
    CHECK(last_safe_cut("one two  three") == 7);
    CHECK(last_safe_cut("one two.\n") == 8);
    CHECK(last_safe_cut("漢字。\n\n") == 9);
    CHECK(last_safe_cut("a\xFF b") == 2);
    CHECK(last_safe_cut("one\ttwo") == 0);
    CHECK(last_safe_cut(" one") == 0);
    CHECK(last_safe_cut("\u3000 one") == 0);
    CHECK(last_safe_cut("") == 0);
    CHECK(last_safe_cut("one two.\n", Split::gpt2_digits) == 8);
    CHECK(last_safe_cut("one two.\n", Split::llama3) == 3);
    CHECK(last_safe_cut("漢字。\n\n漢", Split::qwen2) == 11);
}

TEST_CASE("where numbers are pieces, a space before one is a piece too, and so is all white space") {
    using Pieces = std::vector<std::string>;
    CHECK(pieces_of("in 1999, it's", Split::gpt2_digits) == Pieces{"in", " ", "1", "9", "9", "9", ",", " it", "'s"});
    CHECK(pieces_of("a  \t1 \n b½", Split::gpt2_digits) == Pieces{"a", "  \t", "1", " \n", " b", "½"});
    CHECK(pieces_of("1", Split::gpt2_digits) == Pieces{"1"});
    CHECK(pieces_of("  ", Split::gpt2_digits) == Pieces{"  "});
}

TEST_CASE("Llama 3's pattern takes one symbol in front of a word, three numbers, and line feeds behind symbols") {
    using Pieces = std::vector<std::string>;
    CHECK(pieces_of("(it'S 12345.\r\n\tx", Split::llama3) == Pieces{"(it", "'S", " ", "123", "45", ".\r\n", "\tx"});
    CHECK(pieces_of("12", Split::qwen2) == Pieces{"1", "2"});
    CHECK(pieces_of(" \n \n  a", Split::llama3) == Pieces{" \n \n", " ", " a"});
    CHECK(pieces_of("'\u017Fx 'LL \n", Split::llama3) == Pieces{"'\u017F", "x", " '", "LL", " \n"});
    CHECK(pieces_of("\xFFz \xFF\n", Split::llama3) == Pieces{"\xFFz", " \xFF\n"});
}

// ---- form NFC --------------------------------------------------------------------------------------------------------

namespace {

std::string nfc(std::string_view text) {
    std::string storage;
    return std::string(to_nfc(text, storage));
}

}  // namespace

TEST_CASE("form NFC joins accents and Hangul, reorders marks, and leaves everything else where it is") {
    CHECK(nfc("e\u0301") == "é");
    CHECK(nfc("xe\u0301e\u0301 y") == "xéé y");
    CHECK(nfc("a\u0301\u0323") == "\u1EA1\u0301");  // the dot below comes first and joins
    CHECK(nfc("\u1112\u1161\u11AB") == "한");
    CHECK(nfc("\u212B\u2126\uF900") == "\u00C5\u03A9\u8C48");
    CHECK(nfc("\u0301e") == "\u0301e");
    CHECK(nfc("e\xFF\u0301\u0323") == "e\xFF\u0323\u0301");  // not over a byte that is no character
    CHECK(nfc("e\xCC") == "e\xCC");
    CHECK(nfc("ﬁ½") == "ﬁ½");  // NFKC would change these
    CHECK(nfc("") == "");
    CHECK_MESSAGE(nfc("\u0898\u0323") == "\u0898\u0323", "a mark of Unicode 14 stays, as in tokenizers");
    CHECK_MESSAGE(nfc("\U00011935\U00011930") == "\U00011935\U00011930", "a pair of Unicode 13 too");
    std::string storage = "untouched";
    const std::string text = "Zoë — 漢字 ’ ½";
    CHECK(to_nfc(text, storage).data() == text.data());
    CHECK(storage == "untouched");
}

TEST_CASE("random texts come into form NFC as a whole as they do by utf8proc") {
    static const std::u32string joining =
        U"aeAo "
        U"\u0300\u0301\u0323\u0327\u0345\u0308\u093C\u0F71\u0F72\u1100\u1161\u11A8\uAC00\u3099\u304B\u0958\u212B\u2ADC"
        U"\u00C5\u1EA1\U0001D15E";
    SplitMix64 random(16);
    for (int i = 0; i < 40000; ++i) {
        std::string text;
        for (uint64_t n = 1 + random.below(20); n > 0; --n) {
            const bool any = random.below(4) == 0;
            append_utf8(text,
                        any ? static_cast<uint32_t>(1 + random.below(0x590)) : joining[random.below(joining.size())]);
        }
        utf8proc_uint8_t* const theirs = utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str()));
        const bool same = nfc(text) == reinterpret_cast<const char*>(theirs);
        std::free(theirs);
        if (!same) FAIL("normalized differently: " << printable(text));
        CHECK(nfc(nfc(text)) == nfc(text));
    }
}

// ---- byte-pair encoding ----------------------------------------------------------------------------------------------

TEST_CASE("byte-pair encoding merges the earliest pair first, from the left") {
    const auto tokenizer = small_tokenizer();
    CHECK(encode(*tokenizer, "lo") == Ids{256});
    CHECK(encode(*tokenizer, " lower") == Ids{262});
    CHECK(encode(*tokenizer, "slower") == Ids{'s', 256, 'w', 260});
    CHECK(encode(*tokenizer, "low low") == Ids{256, 'w', 259});
    CHECK(encode(*tokenizer, "aaa") == Ids{258, 'a'});
    CHECK(encode(*tokenizer, "aaaaa") == Ids{261, 'a'});
    CHECK(encode(*tokenizer, "aaaaaaa") == Ids{261, 258, 'a'});
    CHECK(encode(*tokenizer, "é\xC3") == Ids{263, 0xC3});
    CHECK(encode(*tokenizer, "") == Ids());
}

TEST_CASE("no token reaches over the border of a piece") {
    const auto tokenizer = small_tokenizer();
    CHECK(encode(*tokenizer, "\n\n") == Ids{264});
    CHECK(encode(*tokenizer, "\n\nx") == Ids{'\n', '\n', 'x'});
    CHECK(encode(*tokenizer, "it's") == Ids{'i', 't', 265});
    CHECK(encode(*tokenizer, "     lo") == Ids{267, 257});
    CHECK(encode(*tokenizer, "    ") == Ids{267});
}

TEST_CASE("end-of-text in a BPE text is special only where that is allowed") {
    const auto tokenizer = small_tokenizer();
    CHECK(tokenizer->end_of_text() == small_end_of_text);
    CHECK(encode(*tokenizer, "lo<|endoftext|> lo", true) == Ids{256, small_end_of_text, 257});
    CHECK(encode(*tokenizer, "  <|endoftext|>lo", true) == Ids{266, small_end_of_text, 256});
    CHECK(encode(*tokenizer, "<|endoftext|>").size() == 13);
    CHECK(tokenizer->token_text(small_end_of_text) == "<|endoftext|>");
    CHECK(tokenizer->token_text(259) == " low");
}

TEST_CASE("any bytes survive encoding and decoding") {
    SplitMix64 random(13);
    const auto tokenizer = small_tokenizer();
    for (int i = 0; i < 5000; ++i) {
        const std::string bytes = random_bytes(random, random.below(70));
        if (decode(*tokenizer, encode(*tokenizer, bytes)) != bytes) FAIL("lost: " << printable(bytes));
    }
}

TEST_CASE("long pieces are merged like short ones") {
    SplitMix64 random(14);
    MergeTable table(small_merges.size() + 40);
    std::vector<int32_t> known = {0, 1, 2};
    for (uint32_t rank = 0; rank < 40; ++rank) {  // tokens made of tokens, with ranks in any order
        const int32_t token = 3 + static_cast<int32_t>(rank);
        table.insert(known[random.below(known.size())], known[random.below(known.size())],
                     {static_cast<uint32_t>(random.below(1000)), token});
        known.push_back(token);
    }
    for (int i = 0; i < 3000; ++i) {
        Ids tokens(random.below(129));
        for (int32_t& token : tokens) token = static_cast<int32_t>(random.below(3));
        Ids in_place = tokens;
        std::vector<MergeTable::Merge> pairs(tokens.size() + 1);
        in_place.resize(merge_short(table, in_place.data(), static_cast<uint32_t>(tokens.size()), pairs.data()));
        merge_long(table, tokens);
        CHECK(in_place == tokens);
    }
}

TEST_CASE("a word of a million letters takes no more than a moment") {
    const auto tokenizer = small_tokenizer();
    const Ids ids = encode(*tokenizer, std::string(1000003, 'a'));
    CHECK(ids.size() == 250002);
    CHECK(ids[250000] == 258);
    CHECK(ids[250001] == 'a');
}

TEST_CASE("tokenizers of different vocabularies do not mix up their words") {
    const TemporaryFolder folder;
    const auto first = small_tokenizer();
    write_bytes(folder / "vocab.json", small_vocab().dump());
    write_bytes(folder / "merges.txt", "l o\n");
    const auto second = load_tokenizer(folder.path());
    CHECK(encode(*first, " lower") == Ids{262});
    CHECK(encode(*second, " lower") == Ids{' ', 256, 'w', 'e', 'r'});
    CHECK(encode(*first, " lower") == Ids{262});
    CHECK(first->fingerprint() != second->fingerprint());
}

TEST_CASE("many threads may encode at once") {
    const auto tokenizer = small_tokenizer();
    SplitMix64 random(15);
    std::string text;
    for (int i = 0; i < 20000; ++i) text += "lo wer's a\n\xC3\xA9"[random.below(13)];
    const Ids expected = encode(*tokenizer, text);
    std::vector<Ids> ids(4);
    std::vector<std::thread> threads;
    for (Ids& mine : ids) threads.emplace_back([&] { tokenizer->encode(text, mine); });
    for (std::thread& thread : threads) thread.join();
    for (const Ids& mine : ids) CHECK(mine == expected);
}

// ---- files -----------------------------------------------------------------------------------------------------------

TEST_CASE("every file form of a vocabulary gives the same tokenizer") {
    const TemporaryFolder hugging_face, openai, strings, pairs, windows;
    write_small_folder(hugging_face);
    write_bytes(openai / "encoder.json", small_vocab().dump());
    write_bytes(openai / "vocab.bpe", small_merges_text());
    write_bytes(strings / "tokenizer.json", small_tokenizer_json(false).dump());
    write_bytes(pairs / "tokenizer.json", small_tokenizer_json(true).dump());
    std::string carriage_returns;
    for (const char c : small_merges_text()) carriage_returns += c == '\n' ? "\r\n" : std::string(1, c);
    write_bytes(windows / "vocab.json", small_vocab().dump(4));
    write_bytes(windows / "merges.txt", carriage_returns);
    const auto expected = load_tokenizer(hugging_face.path());
    const std::string text = " lower é's  aaaaaaa\n\n<|endoftext|>";
    for (const TemporaryFolder* folder : {&openai, &strings, &pairs, &windows}) {
        const auto tokenizer = load_tokenizer(folder->path());
        CHECK(tokenizer->name() == "bpe");
        CHECK(tokenizer->vocab_size() == 269);
        CHECK(tokenizer->fingerprint() == expected->fingerprint());
        CHECK(encode(*tokenizer, text, true) == encode(*expected, text, true));
        const TemporaryFolder saved;
        tokenizer->save(saved.path());
        CHECK(load_tokenizer(saved.path())->fingerprint() == expected->fingerprint());
        CHECK(read_json(saved / "tokenizer_config.json")["model_input_names"].size() == 2);
    }
    CHECK(expected->fingerprint().size() == 16);
    CHECK(expected->fingerprint().find_first_not_of("0123456789abcdef") == std::string::npos);
}

TEST_CASE("the end-of-text token is the one that the folder's configuration names") {
    const TemporaryFolder folder;
    nlohmann::ordered_json file = small_tokenizer_json(true);
    file["added_tokens"].push_back({{"id", 270}, {"content", "</s>"}, {"special", true}});
    write_bytes(folder / "tokenizer.json", file.dump());
    write_bytes(folder / "tokenizer_config.json", R"({"eos_token": {"content": "</s>"}})");
    const auto tokenizer = load_tokenizer(folder.path());
    CHECK(tokenizer->end_of_text() == 270);
    CHECK(tokenizer->vocab_size() == 271);
    CHECK(encode(*tokenizer, "lo</s>", true) == Ids{256, 270});
    CHECK(decode(*tokenizer, {270, 256}) == "</s>lo");
    CHECK(contains(message_of<BadInput>([&] { decode(*tokenizer, {269}); }), "269"));
    write_bytes(folder / "tokenizer_config.json", R"({"eos_token": "<end>"})");
    CHECK(contains(message_of<BadInput>([&] { load_tokenizer(folder.path()); }), "<end>"));
}

TEST_CASE("tokens added beside vocab.json are known") {
    const TemporaryFolder folder;
    write_small_folder(folder);
    write_bytes(folder / "added_tokens.json", R"({"<pad>": 269})");
    write_bytes(folder / "tokenizer_config.json",
                R"({"pad_token": "<pad>", "added_tokens_decoder": {"268": {"content": "<|endoftext|>"},
                    "270": {"content": "<user>", "special": true}}})");
    const auto tokenizer = load_tokenizer(folder.path());
    CHECK(tokenizer->vocab_size() == 271);
    CHECK(decode(*tokenizer, {269, 270, 256}) == "<pad><user>lo");
    CHECK(encode(*tokenizer, "<pad>lo<user>", true) == Ids{269, 256, 270});
    CHECK(encode(*tokenizer, "<pad>lo<user>").size() == 11);
    CHECK_MESSAGE(tokenizer->fingerprint() == small_tokenizer()->fingerprint(), "special tokens change no document");
    write_bytes(folder / "added_tokens.json", "[269]");
    CHECK(contains(message_of<BadInput>([&] { load_tokenizer(folder.path()); }), "added_tokens.json"));
    write_bytes(folder / "added_tokens.json", R"({"<user>": 269})");
    CHECK(contains(message_of<BadInput>([&] { load_tokenizer(folder.path()); }), "\"<user>\" the id 269"));
    write_bytes(folder / "added_tokens.json", "{}");
    for (const char* bad : {R"({"added_tokens_decoder": {"x": {"content": "a"}}})", R"({"added_tokens_decoder": 3})",
                            R"({"added_tokens_decoder": {"271": "a"}})", R"({"add_prefix_space": 1})", "[]"}) {
        write_bytes(folder / "tokenizer_config.json", bad);
        CHECK(contains(message_of<BadInput>([&] { load_tokenizer(folder.path()); }), "tokenizer_config.json"));
    }
}

namespace {

// A folder with a tokenizer.json of the small vocabulary, these added tokens, and add_prefix_space.
std::unique_ptr<Tokenizer> tokenizer_with(const std::vector<nlohmann::ordered_json>& added, bool prefix_space = false) {
    const TemporaryFolder folder;
    nlohmann::ordered_json file = small_tokenizer_json(true);
    for (const auto& token : added) file["added_tokens"].push_back(token);
    file["pre_tokenizer"]["add_prefix_space"] = prefix_space;
    write_bytes(folder / "tokenizer.json", file.dump());
    write_bytes(folder / "tokenizer_config.json", R"({"tokenizer_class": "PreTrainedTokenizerFast"})");
    return load_tokenizer(folder.path());
}

nlohmann::ordered_json added_token(int id, const std::string& content, const std::vector<std::string>& flags = {}) {
    nlohmann::ordered_json token = {{"id", id}, {"content", content}};
    for (const std::string& flag : flags) token[flag] = true;
    return token;
}

}  // namespace

TEST_CASE("added tokens are cut out of a text, the longest at the earliest place") {
    const auto tokenizer =
        tokenizer_with({added_token(269, "<a>"), added_token(270, "<a><b>"), added_token(271, "lo")});
    CHECK(encode(*tokenizer, "<a>") == Ids{269});
    CHECK(encode(*tokenizer, "<a><b><a>") == Ids{270, 269});
    CHECK(encode(*tokenizer, "<a><a><b>") == Ids{269, 270});
    CHECK(encode(*tokenizer, "<a") == Ids{'<', 'a'});
    CHECK(encode(*tokenizer, " lower") == Ids{' ', 271, 'w', 260});  // the word is cut, and does not merge
    CHECK(decode(*tokenizer, {' ', 271, 'w', 260, 270}) == " lower<a><b>");
    CHECK(tokenizer->fingerprint() != small_tokenizer()->fingerprint());
}

TEST_CASE("normalized tokens are looked for after the others, wherever they stand") {
    const nlohmann::ordered_json later = added_token(269, "xab", {"normalized"}), first = added_token(270, "abc");
    CHECK(encode(*tokenizer_with({later, first}), "xabc") == Ids{'x', 270});
    const nlohmann::ordered_json too = added_token(270, "abc", {"normalized"});
    CHECK(encode(*tokenizer_with({later, too}), "xabc") == Ids{269, 'c'});
}

TEST_CASE("lstrip and rstrip take white space along, of every kind, and no more than is left") {
    const auto tokenizer = tokenizer_with({added_token(269, "<l>", {"lstrip"}), added_token(270, "<r>", {"rstrip"})});
    CHECK(encode(*tokenizer, "a \n\u3000<l> b") == Ids{'a', 269, ' ', 'b'});
    CHECK(encode(*tokenizer, "a <r> \t\u00A0b") == Ids{'a', ' ', 270, 'b'});
    CHECK(encode(*tokenizer, " <l>") == Ids{269});
    CHECK(encode(*tokenizer, "<r>  <l>") == Ids{270, 269});
    CHECK(encode(*tokenizer, "<r>  ") == Ids{270});
    const auto of_spaces = tokenizer_with(
        {added_token(269, "<r>", {"rstrip"}), added_token(270, "  "), added_token(271, "\n", {"lstrip"})});
    CHECK(encode(*of_spaces, "<r>  a") == Ids{269, 270, 'a'});  // found once more in what <r> took along
    CHECK(encode(*of_spaces, "<r>\na") == Ids{269, 'a'});       // of which lstrip leaves nothing
}

TEST_CASE("special tokens that stay ordinary text are counted, and hide what they overlap") {
    const auto tokenizer =
        tokenizer_with({added_token(269, "<pad>", {"special"}), added_token(270, "pad"), added_token(271, "d>")});
    Ids ids;
    CHECK(tokenizer->encode("<pad> pad<|endoftext|>", ids) == 2);
    CHECK(ids.size() == 5 + 1 + 1 + 13);  // "d>" stands only in what "<pad>" covers; " " and "pad" follow
    CHECK(ids[6] == 270);
    ids.clear();
    CHECK(tokenizer->encode("<pad><|endoftext|>pad", ids, true) == 0);
    CHECK(ids == Ids{269, small_end_of_text, 270});
    Ids bytes;
    CHECK(load_tokenizer("byte")->encode("<|endoftext|><|endoftext|", bytes) == 1);
}

TEST_CASE("special tokens that cannot be used are refused where they stand in a text") {
    const TemporaryFolder folder;
    write_small_folder(folder);
    write_bytes(folder / "tokenizer_config.json", R"({"pad_token": "<pad>", "mask_token": {"content": "<m>"}})");
    const auto tokenizer = load_tokenizer(folder.path());
    CHECK(encode(*tokenizer, "lo", true) == Ids{256});
    CHECK(encode(*tokenizer, "<pad>").size() == 5);
    const auto refusal = [](const Tokenizer& t, const char* text) {
        return message_of<BadInput>([&] { encode(t, text, true); });
    };
    CHECK(contains(refusal(*tokenizer, "lo<pad>"), "\"<pad>\" has no id"));
    CHECK(contains(refusal(*tokenizer, "<m>"), "\"<m>\" has no id"));
    const auto of_words = tokenizer_with({added_token(269, "<w>", {"special", "single_word"})});
    CHECK(contains(refusal(*of_words, "<w>"), "single_word"));
    CHECK(contains(message_of<BadInput>([] { tokenizer_with({added_token(269, "<w>", {"single_word"})}); }),
                   "\"<w>\" is single_word"));
}

TEST_CASE("a prefix space comes before every stretch of text that has none, and not where a text goes on") {
    const auto tokenizer = tokenizer_with({added_token(269, "<a>")}, true);
    CHECK(encode(*tokenizer, "low") == Ids{259});
    CHECK(encode(*tokenizer, " low") == Ids{259});
    CHECK(encode(*tokenizer, "\nlow") == Ids{' ', '\n', 256, 'w'});
    CHECK(encode(*tokenizer, "low<a>low<a> lo<|endoftext|>lo", true) ==
          Ids{259, 269, 259, 269, 257, small_end_of_text, 257});
    CHECK(encode(*tokenizer, "") == Ids());
    Ids ids;
    tokenizer->encode("low<a>low", ids, false, true);
    CHECK(ids == Ids{256, 'w', 269, 259});
    CHECK(tokenizer->fingerprint() != tokenizer_with({added_token(269, "<a>")})->fingerprint());
    CHECK(tokenizer_with({})->fingerprint() == small_tokenizer()->fingerprint());
}

TEST_CASE("tokenizer.json is what counts beside vocab.json, and what contradicts it is refused") {
    const auto refusal = [](auto change) {
        const TemporaryFolder folder;
        write_small_folder(folder);
        nlohmann::ordered_json file = small_tokenizer_json(true), config = nlohmann::ordered_json::object();
        change(file, config, folder);
        write_bytes(folder / "tokenizer.json", file.dump());
        write_bytes(folder / "tokenizer_config.json", config.dump());
        return message_of<BadInput>([&] { load_tokenizer(folder.path()); });
    };
    using J = nlohmann::ordered_json;
    const auto nothing = [](J&, J&, const TemporaryFolder&) {};
    CHECK(refusal(nothing) == "");
    CHECK(contains(refusal([](J& file, J&, auto&) {
                       file["normalizer"] = {{"type", "Lowercase"}};
                   }),
                   "its normalizer, \"Lowercase\""));
    CHECK(contains(refusal([](J& file, J&, auto&) {
                       file["pre_tokenizer"] = {
                           {"type", "Sequence"},
                           {"pretokenizers", J::array({J{{"type", "Digits"}}, file["pre_tokenizer"]})}};
                   }),
                   "\"Sequence of Digits, ByteLevel\""));
    CHECK(contains(refusal([](J& file, J& config, auto&) {
                       file["pre_tokenizer"]["add_prefix_space"] = true;
                       config["add_prefix_space"] = false;
                   }),
                   "contradict each other about add_prefix_space: false and true"));
    const auto with_prefix = [](const char* name) {
        return [name](J& file, J& config, auto&) {
            file["pre_tokenizer"]["add_prefix_space"] = true;
            config["tokenizer_class"] = name;
        };
    };
    CHECK(refusal(with_prefix("PreTrainedTokenizerFast")) == "");
    CHECK(contains(refusal(with_prefix("GPT2Tokenizer")), "contradict each other about add_prefix_space"));
    CHECK(contains(refusal([](J&, J& config, auto&) { config["tokenizer_class"] = "Qwen2Tokenizer"; }),
                   "\"Qwen2Tokenizer\""));
    CHECK(
        contains(refusal([](J& file, J&, auto&) { std::swap(file["model"]["merges"][0], file["model"]["merges"][2]); }),
                 "about the merges"));
    CHECK(contains(refusal([](J& file, J&, auto&) {
                       file["model"]["vocab"]["lo"] = 257;
                       file["model"]["vocab"]["Ġlo"] = 256;
                   }),
                   "about the token"));
    CHECK(contains(refusal([](J&, J& config, auto&) {
                       config["added_tokens_decoder"]["300"] = {{"content", "<|endoftext|>"}};
                   }),
                   "the id 300"));
    CHECK(refusal([](J& file, J&, auto&) { file["added_tokens"].push_back(added_token(269, "<x>")); }) == "");
}

TEST_CASE("a pattern written out as GPT-2's is GPT-2's") {
    const auto loaded = [](const std::string& pattern, bool invert) {
        const TemporaryFolder folder;
        nlohmann::ordered_json file = small_tokenizer_json(true);
        const nlohmann::ordered_json split = {
            {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", invert}};
        file["pre_tokenizer"]["use_regex"] = false;
        file["pre_tokenizer"] = {
            {"type", "Sequence"},
            {"pretokenizers", nlohmann::ordered_json::array({split, nlohmann::ordered_json(file["pre_tokenizer"])})}};
        write_bytes(folder / "tokenizer.json", file.dump());
        return load_tokenizer(folder.path());
    };
    const std::string gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
    CHECK(loaded(gpt2, false)->fingerprint() == small_tokenizer()->fingerprint());
    CHECK_THROWS_AS(loaded(gpt2, true), BadInput);
    CHECK_THROWS_AS(loaded("(?i:" + gpt2 + ")", false), BadInput);
}

TEST_CASE("vocab.json and merges.txt are GPT-2's unless a class says otherwise") {
    const TemporaryFolder folder;
    write_small_folder(folder);
    write_bytes(folder / "tokenizer_config.json", R"({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true})");
    CHECK(encode(*load_tokenizer(folder.path()), "low") == Ids{259});
    write_bytes(folder / "tokenizer_config.json", R"({"tokenizer_class": "CLIPTokenizer"})");
    CHECK(contains(message_of<BadInput>([&] { load_tokenizer(folder.path()); }), "\"CLIPTokenizer\""));
}

TEST_CASE("blank lines between merges are none") {
    const TemporaryFolder folder;
    write_small_folder(folder);
    std::string merges = "\n \n";
    for (const char c : small_merges_text()) merges += c == '\n' ? "\n\t\r\n" : std::string(1, c);
    write_bytes(folder / "merges.txt", merges.substr(3));
    CHECK(load_tokenizer(folder.path())->fingerprint() == small_tokenizer()->fingerprint());
}

TEST_CASE("a folder without a tokenizer is refused, saying what was looked for") {
    const TemporaryFolder folder;
    write_bytes(folder / "merges.txt", small_merges_text());
    const std::string message = message_of<BadInput>([&] { load_tokenizer(folder.path()); });
    CHECK(is_one_line(message));
    for (const char* name : {"vocab.json", "merges.txt", "encoder.json", "vocab.bpe", "tokenizer.json"}) {
        CHECK(contains(message, name));
    }
    CHECK(contains(message_of<BadInput>([&] { load_tokenizer(folder / "nowhere"); }), "nowhere"));
}

TEST_CASE("broken vocabularies and merges are refused, saying where") {
    const auto message = [](const std::string& vocab, const std::string& merges) {
        const TemporaryFolder folder;
        write_bytes(folder / "vocab.json", vocab);
        write_bytes(folder / "merges.txt", merges);
        std::string text = message_of<BadInput>([&] { load_tokenizer(folder.path()); });
        CHECK(is_one_line(text));
        return text;
    };
    const auto vocab_with = [](const std::string& token, const nlohmann::ordered_json& id) {
        nlohmann::ordered_json vocab = small_vocab();
        vocab[token] = id;
        return vocab.dump();
    };
    const std::string vocab = small_vocab().dump();
    const std::string merges = small_merges_text();
    CHECK(contains(message("[1, 2]", merges), "vocab.json"));
    CHECK(contains(message("{\"a\": 1", merges), "not valid JSON"));
    CHECK(contains(message(vocab_with("x", -1), merges), "\"x\""));
    CHECK(contains(message(vocab_with("x", 1.5), merges), "\"x\""));
    CHECK(contains(message(vocab_with("x", 1 << 20), merges), "\"x\""));
    CHECK(contains(message(vocab_with("xyz", 17), merges), "17"));
    nlohmann::ordered_json without_byte = small_vocab();
    without_byte.erase(byte_symbols()[10]);
    CHECK(contains(message(without_byte.dump(), merges), "byte 10"));
    CHECK(contains(message(vocab, "#version: 0.2\nl o\nlo\n"), "merges.txt line 3"));
    CHECK(contains(message(vocab, "l o w\n"), "merges.txt line 1"));
    CHECK(contains(message(vocab, " l o\n"), "merges.txt line 1"));
    CHECK(contains(message(vocab, "l  o\n"), "merges.txt line 1"));
    CHECK(contains(message(vocab, "l o\ne r\nl o\n"), "merge 3"));
    CHECK(contains(message(vocab, "l o\nz z\n"), "merge 2"));
}

namespace {

using J = nlohmann::ordered_json;

constexpr char llama3_pattern[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
                                  R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char qwen2_pattern[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
                                 R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const J digits = {{"type", "Digits"}, {"individual_digits", true}};

J byte_level(bool use_regex) {
    return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", use_regex}};
}

J split_by(const char* pattern) {
    return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

J sequence(const std::vector<J>& members, const char* key = "pretokenizers") {
    J list = J::array();
    for (const J& member : members) list.push_back(member);
    return {{"type", "Sequence"}, {key, list}};
}

}  // namespace

TEST_CASE("tokenizer.json files that would give other ids elsewhere are refused, saying why") {
    const auto message = [](const std::string& pointer, const nlohmann::ordered_json& value) {
        const TemporaryFolder folder;
        nlohmann::ordered_json file = small_tokenizer_json(true);
        file[nlohmann::ordered_json::json_pointer(pointer)] = value;
        write_bytes(folder / "tokenizer.json", file.dump());
        return message_of<BadInput>([&] { load_tokenizer(folder.path()); });
    };
    CHECK(message("/version", "1.1") == "");
    CHECK(message("/post_processor", {{"type", "ByteLevel"}}) == "");
    CHECK(message("/model/dropout", nullptr) == "");
    CHECK(message("/model/end_of_word_suffix", "") == "");
    CHECK(contains(message("/model/type", "WordPiece"), "model.type"));
    CHECK(contains(message("/model/dropout", 0.1), "dropout"));
    CHECK(contains(message("/model/ignore_merges", "yes"), "ignore_merges"));
    CHECK(contains(message("/model/byte_fallback", true), "byte_fallback"));
    CHECK(contains(message("/model/end_of_word_suffix", "</w>"), "end_of_word_suffix"));
    CHECK(contains(message("/normalizer", {{"type", "NFKC"}}), "its normalizer, \"NFKC\", is not NFC"));
    CHECK(contains(message("/normalizer", sequence({{{"type", "NFC"}}, {{"type", "Lowercase"}}}, "normalizers")),
                   "\"Sequence of NFC, Lowercase\""));
    CHECK(message("/normalizer", sequence({{{"type", "NFC"}}}, "normalizers")) == "");
    CHECK(contains(message("/pre_tokenizer", {{"type", "Metaspace"}}), "\"Metaspace\""));
    CHECK(contains(
        message("/pre_tokenizer", sequence({{{"type", "Digits"}, {"individual_digits", false}}, byte_level(true)})),
        "\"Sequence of Digits, ByteLevel\""));
    CHECK(contains(message("/pre_tokenizer", sequence({digits, byte_level(false)})), "pre_tokenizer"));
    CHECK(contains(message("/pre_tokenizer", sequence({byte_level(true), digits})), "pre_tokenizer"));
    CHECK(contains(message("/pre_tokenizer", sequence({split_by(llama3_pattern), byte_level(true)})), "pre_tokenizer"));
    CHECK(contains(message("/pre_tokenizer", sequence({split_by("\\s+"), byte_level(false)})), "pre_tokenizer"));
    CHECK(contains(message("/model/type", "Unigram"), "model.type"));
    CHECK(contains(message("/pre_tokenizer", nullptr), "pre_tokenizer"));
    CHECK(contains(message("/pre_tokenizer/type", "Whitespace"), "pre_tokenizer"));
    CHECK(contains(message("/pre_tokenizer/add_prefix_space", nullptr), "add_prefix_space"));
    CHECK(message("/model/dropout", 0.0) == "");
    CHECK(contains(message("/pre_tokenizer/use_regex", false), "use_regex"));
    CHECK(contains(message("/model/merges", 7), "merges"));
    CHECK(contains(message("/model/merges/3", {"l", "o", "w"}), "merges[3]"));
    CHECK(contains(message("/model/merges/3", "low"), "merges[3]"));
    CHECK(contains(message("/model/vocab", nlohmann::ordered_json::array()), "vocabulary"));
    CHECK(contains(message("/added_tokens/0/content", 5), "added token"));
    CHECK(contains(message("/added_tokens/0/id", "x"), "<|endoftext|>"));
    CHECK(contains(message("/added_tokens/0/id", 300), "") == true);
    CHECK(contains(message("/added_tokens", 3), "added token"));
}

// ---- other models' tokenizers ----------------------------------------------------------------------------------------

namespace {

// The small vocabulary with changes to its tokenizer.json, under a class.
std::unique_ptr<Tokenizer> tokenizer_like(const std::vector<std::pair<std::string, nlohmann::ordered_json>>& changes,
                                          const std::vector<nlohmann::ordered_json>& added = {},
                                          const std::string& name = "PreTrainedTokenizerFast") {
    const TemporaryFolder folder;
    nlohmann::ordered_json file = small_tokenizer_json(true);
    for (const auto& token : added) file["added_tokens"].push_back(token);
    for (const auto& [pointer, value] : changes) file[nlohmann::ordered_json::json_pointer(pointer)] = value;
    write_bytes(folder / "tokenizer.json", file.dump());
    write_bytes(folder / "tokenizer_config.json", R"({"tokenizer_class": ")" + name + R"("})");
    return load_tokenizer(folder.path());
}

const nlohmann::ordered_json nfc_normalizer = {{"type", "NFC"}};

}  // namespace

TEST_CASE("GPT-NeoX's tokenizer brings text into form NFC, and its runs of spaces are tokens, the longest first") {
    std::vector<nlohmann::ordered_json> runs;
    for (int n = 7; n > 1; --n)
        runs.push_back(added_token(276 - n, std::string(static_cast<size_t>(n), ' '), {"normalized"}));
    const auto tokenizer = tokenizer_like({{"/normalizer", nfc_normalizer}}, runs, "GPTNeoXTokenizer");
    CHECK(tokenizer->vocab_size() == 275);
    CHECK(encode(*tokenizer, "e\u0301") == Ids{263});
    CHECK(decode(*tokenizer, encode(*tokenizer, "e\u0301")) == "é");
    CHECK(encode(*tokenizer, "   lo") == Ids{273, 256});  // three spaces, not two and " lo"
    CHECK(encode(*tokenizer, std::string(9, ' ') + "lo") == Ids{269, 274, 256});
    CHECK(encode(*tokenizer, " lo") == Ids{257});
    CHECK(encode(*tokenizer, "e<|endoftext|>\u0301", true) == Ids{'e', small_end_of_text, 0xCC, 0x81});
    CHECK(decode(*tokenizer, {274, 268, 271}) == "  <|endoftext|>     ");
    CHECK(tokenizer->fingerprint() != tokenizer_like({}, runs)->fingerprint());
    const auto loaded_again = [&] {
        const TemporaryFolder folder;
        tokenizer->save(folder.path());
        return load_tokenizer(folder.path());
    }();
    CHECK(loaded_again->fingerprint() == tokenizer->fingerprint());
    CHECK(encode(*loaded_again, "e\u0301  ") == Ids{263, 274});
}

TEST_CASE("a normalized token is looked for in its normal form, one that is not in the text as it came") {
    const std::vector<nlohmann::ordered_json> tokens = {added_token(269, "e\u0301x", {"normalized"}),
                                                        added_token(270, "o\u0301")};
    const auto tokenizer = tokenizer_like({{"/normalizer", nfc_normalizer}}, tokens);
    CHECK(encode(*tokenizer, "éx") == Ids{269});
    CHECK(encode(*tokenizer, "e\u0301xe\u0301") == Ids{269, 263});
    CHECK(encode(*tokenizer, "o\u0301") == Ids{270});
    CHECK(encode(*tokenizer, "ó") == Ids{0xC3, 0xB3});
}

TEST_CASE("SmolLM2's tokenizer makes every digit a piece, also under the class GPT2Tokenizer") {
    const std::pair<std::string, nlohmann::ordered_json> smollm2 = {"/pre_tokenizer",
                                                                    sequence({digits, byte_level(true)})};
    for (const char* name : {"PreTrainedTokenizerFast", "GPT2Tokenizer"}) {
        const auto tokenizer = tokenizer_like({smollm2}, {}, name);
        CHECK(encode(*tokenizer, "lo  1") == Ids{256, 266, '1'});
        CHECK(encode(*tokenizer, "lo  lo") == Ids{256, ' ', 257});
        CHECK(tokenizer->fingerprint() != small_tokenizer()->fingerprint());
    }
    CHECK(encode(*small_tokenizer(), "lo  1") == Ids{256, ' ', ' ', '1'});
}

TEST_CASE("bytes that a tokenizer.json's vocabulary lacks are left out of a text, or its unknown token") {
    J vocab = small_vocab();
    vocab.erase(byte_symbols()[4]);
    const auto leaving_out = tokenizer_like({{"/model/vocab", vocab}});
    CHECK(encode(*leaving_out, " l\4ow\4\4er") == Ids{' ', 'l', 'o', 'w', 260});
    CHECK(encode(*leaving_out, "\4") == Ids());
    CHECK(encode(*leaving_out, std::string(200, 'a') + "\4" + std::string(200, 'a')).size() == 100);
    const auto with_unknown = tokenizer_like({{"/model/vocab", vocab}, {"/model/unk_token", "<|endoftext|>"}});
    CHECK(encode(*with_unknown, "lo\4\4") == Ids{256, small_end_of_text, small_end_of_text});
    CHECK(leaving_out->fingerprint() != with_unknown->fingerprint());
    CHECK_THROWS_AS(tokenizer_like({{"/model/vocab", vocab}, {"/model/unk_token", "<?>"}}), BadInput);
    CHECK_THROWS_AS(
        tokenizer_like({{"/model/vocab", vocab}, {"/model/unk_token", "<|endoftext|>"}, {"/model/fuse_unk", true}}),
        BadInput);
}

TEST_CASE("with ignore_merges a piece that is a token needs no merges") {
    const std::string unmade(150, 'x');
    const auto tokenizer = tokenizer_like({{"/pre_tokenizer", sequence({split_by(llama3_pattern), byte_level(false)})},
                                           {"/model/ignore_merges", true},
                                           {"/model/vocab/Ġsun", 269},
                                           {"/model/vocab/" + unmade, 270}});
    CHECK(encode(*tokenizer, " sun sunlo") == Ids{269, ' ', 's', 'u', 'n', 256});
    CHECK(encode(*tokenizer, unmade) == Ids{270});
    CHECK(encode(*tokenizer, " lower") == Ids{262});
    CHECK(encode(*tokenizer, ".\n\nlo") == Ids{'.', 264, 256});
    CHECK(tokenizer->fingerprint() != tokenizer_like({{"/model/ignore_merges", true}})->fingerprint());
}

TEST_CASE("a class and a tokenizer.json that do different things are refused") {
    const auto refusal = [](const char* name,
                            const std::vector<std::pair<std::string, nlohmann::ordered_json>>& changes) {
        return message_of<BadInput>([&] { tokenizer_like(changes, {}, name); });
    };
    const nlohmann::ordered_json qwen2 = sequence({split_by(qwen2_pattern), byte_level(false)});
    CHECK(contains(refusal("GPTNeoXTokenizer", {}), "\"GPTNeoXTokenizer\", and tokenizer.json has another normalizer"));
    CHECK(refusal("GPTNeoXTokenizerFast", {{"/normalizer", nfc_normalizer}}) == "");
    CHECK(contains(refusal("GPT2TokenizerFast", {{"/normalizer", nfc_normalizer}}), "name PreTrainedTokenizerFast"));
    CHECK(contains(refusal("GPT2Tokenizer", {{"/model/ignore_merges", true}}), "GPT2Tokenizer"));
    CHECK(refusal("Qwen2Tokenizer", {{"/normalizer", nfc_normalizer}, {"/pre_tokenizer", qwen2}}) == "");
    CHECK(contains(refusal("Qwen2Tokenizer", {{"/normalizer", nfc_normalizer}}), "Qwen2Tokenizer"));
    CHECK(contains(refusal("LlamaTokenizer", {}), "\"LlamaTokenizer\", which may split texts otherwise"));
    CHECK(contains(refusal("PreTrainedTokenizer", {}), "\"PreTrainedTokenizer\""));
    const TemporaryFolder folder;
    write_small_folder(folder);
    write_bytes(folder / "tokenizer_config.json", R"({"tokenizer_class": "GPTNeoXTokenizer"})");
    CHECK(encode(*load_tokenizer(folder.path()), "e\u0301") == Ids{263});
}

// ---- GPT-2 -----------------------------------------------------------------------------------------------------------

TEST_CASE("GPT-2's ids are those that tiktoken gives") {
    const std::string folder = "../shared/data/gpt2-bpe";
    if (!std::filesystem::exists(folder + "/vocab.bpe")) {
        std::printf("SKIPPED: GPT-2's vocabulary is not in %s\n", folder.c_str());
        return;
    }
    const auto tokenizer = load_tokenizer(folder);
    CHECK(tokenizer->vocab_size() == 50257);
    CHECK(tokenizer->end_of_text() == 50256);
    const Json fixture = read_json("test/fixtures/bpe_tiktoken.json");
    REQUIRE(fixture["cases"].size() > 400);
    for (const Json& item : fixture["cases"]) {
        const std::string text = item["text"].string();
        const Ids expected = item["ids"].get<Ids>();
        CAPTURE(printable(text));
        CHECK(encode(*tokenizer, text, item.contains("allow_special")) == expected);
        CHECK(decode(*tokenizer, expected) == text);
    }
}
