#include "data/pretokenize.h"

#include <algorithm>
#include <vector>

#include "data/unicode_classes.h"

namespace lnfree {

const CharClass* char_classes() {
    static const std::vector<CharClass> table = [] {
        std::vector<CharClass> classes(0x110000, CharClass::Other);
        const auto fill = [&](const auto& ranges, CharClass c) {
            for (const CodePointRange& r : ranges) std::fill(&classes[r.first], &classes[r.last] + 1, c);
        };
        fill(unicode_letters, CharClass::Letter);
        fill(unicode_numbers, CharClass::Number);
        fill(unicode_spaces, CharClass::Space);
        return classes;
    }();
    return table.data();
}

namespace {

// One character of a text: its class and how many bytes it takes.
struct TextChar {
    CharClass type;
    uint32_t bytes;
};

}  // namespace

uint32_t decode_utf8(const char* p, const char* end, uint32_t& code_point) {
    const auto byte = [p](int i) { return static_cast<uint8_t>(p[i]); };
    const auto continues = [&](int i) { return (byte(i) & 0xC0) == 0x80; };
    const uint32_t b0 = byte(0);
    if (b0 < 0x80) {
        code_point = b0;
        return 1;
    }
    const int64_t left = end - p;
    if (b0 >= 0xC2 && b0 < 0xE0 && left >= 2 && continues(1)) {
        code_point = (b0 & 0x1F) << 6 | (byte(1) & 0x3F);
        return 2;
    }
    if (b0 >= 0xE0 && b0 < 0xF0 && left >= 3 && continues(1) && continues(2)) {
        code_point = (b0 & 0x0F) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3F);
        const bool surrogate = code_point >= 0xD800 && code_point < 0xE000;
        return code_point >= 0x800 && !surrogate ? 3 : 0;
    }
    if (b0 >= 0xF0 && b0 < 0xF5 && left >= 4 && continues(1) && continues(2) && continues(3)) {
        code_point = (b0 & 0x07) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3F);
        return code_point >= 0x10000 && code_point < 0x110000 ? 4 : 0;
    }
    return 0;
}

namespace {

// The character at p. A byte that belongs to no well-formed sequence is one character of class Other, as U+FFFD,
// which usually stands in for it, would be.
TextChar char_at(const char* p, const char* end, const CharClass* classes) {
    uint32_t code_point = 0;
    const uint32_t bytes = decode_utf8(p, end, code_point);
    if (bytes == 0) return {CharClass::Other, 1};
    return {classes[code_point], bytes};
}

// Length of the contraction ('s 't 're 've 'm 'll 'd) at p, or 0.
uint32_t contraction_length(const char* p, const char* end) {
    if (*p != '\'' || end - p < 2) return 0;
    if (p[1] == 's' || p[1] == 't' || p[1] == 'm' || p[1] == 'd') return 2;
    if (end - p < 3) return 0;
    const bool two_letters =
        (p[1] == 'r' && p[2] == 'e') || (p[1] == 'v' && p[2] == 'e') || (p[1] == 'l' && p[2] == 'l');
    return two_letters ? 3 : 0;
}

// Length of the run of characters of class `type` that starts at p.
uint64_t run_length(const char* p, const char* end, CharClass type, const CharClass* classes) {
    const char* q = p;
    while (q < end) {
        const TextChar c = char_at(q, end, classes);
        if (c.type != type) break;
        q += c.bytes;
    }
    return static_cast<uint64_t>(q - p);
}

// Length of the white-space piece at p (a space character): \s+(?!\S)|\s+. The run is one piece if the text ends with
// it; otherwise its last character is left to the next piece, unless the run is that one character.
uint64_t space_piece_length(const char* p, const char* end, const CharClass* classes) {
    const char* q = p;
    uint32_t last_bytes = 0;
    while (q < end) {
        const TextChar c = char_at(q, end, classes);
        if (c.type != CharClass::Space) break;
        q += c.bytes;
        last_bytes = c.bytes;
    }
    const uint64_t run = static_cast<uint64_t>(q - p);
    return q == end || run == last_bytes ? run : run - last_bytes;
}

}  // namespace

uint64_t piece_length(const char* p, const char* end, const CharClass* classes) {
    if (const uint32_t n = contraction_length(p, end)) return n;
    const TextChar first = char_at(p, end, classes);
    if (first.type != CharClass::Space) return run_length(p, end, first.type, classes);
    if (*p == ' ' && end - p > 1) {
        const TextChar second = char_at(p + 1, end, classes);
        if (second.type != CharClass::Space) return 1 + run_length(p + 1, end, second.type, classes);
    }
    return space_piece_length(p, end, classes);
}

uint64_t digits_piece_length(const char* p, const char* end, const CharClass* classes) {
    const TextChar first = char_at(p, end, classes);
    if (first.type == CharClass::Number) return first.bytes;
    if (first.type != CharClass::Space) return piece_length(p, end, classes);
    const uint64_t spaces = run_length(p, end, CharClass::Space, classes);
    const bool ends_what_is_between = p + spaces < end && char_at(p + spaces, end, classes).type == CharClass::Number;
    return ends_what_is_between ? spaces : piece_length(p, end, classes);
}

namespace {

bool is_line_end(char c) {
    return c == '\n' || c == '\r';
}

// As contraction_length, in capitals too, and with the long s, which is an s to whoever ignores case.
uint32_t contraction_length_any_case(const char* p, const char* end) {
    const std::string_view rest(p, static_cast<uint64_t>(end - p));
    if (rest.substr(0, 3) == "'\u017F") return 3;
    char lower[3] = {};
    for (uint32_t i = 0; i < std::min<uint64_t>(rest.size(), 3); ++i) {
        lower[i] = rest[i] >= 'A' && rest[i] <= 'Z' ? static_cast<char>(rest[i] - 'A' + 'a') : rest[i];
    }
    return contraction_length(lower, lower + std::min<uint64_t>(rest.size(), 3));
}

// \s*[\r\n]+|\s+(?!\S)|\s+ at a white-space character: up to the last line end of the run if it has one.
uint64_t llama3_space_length(const char* p, const char* end, const CharClass* classes) {
    const char* last = p + run_length(p, end, CharClass::Space, classes);
    while (last > p && !is_line_end(last[-1])) --last;
    return last > p ? static_cast<uint64_t>(last - p) : space_piece_length(p, end, classes);
}

}  // namespace

uint64_t llama3_piece_length(const char* p, const char* end, const CharClass* classes, uint32_t most_numbers) {
    if (const uint32_t n = contraction_length_any_case(p, end)) return n;
    const TextChar first = char_at(p, end, classes);
    if (first.type == CharClass::Letter) return run_length(p, end, CharClass::Letter, classes);
    if (first.type == CharClass::Number) {
        const char* q = p;
        for (uint32_t n = 0; n < most_numbers && q < end; ++n) {
            const TextChar c = char_at(q, end, classes);
            if (c.type != CharClass::Number) break;
            q += c.bytes;
        }
        return static_cast<uint64_t>(q - p);
    }
    const char* const behind = p + first.bytes;
    const CharClass second = behind < end ? char_at(behind, end, classes).type : CharClass::Space;
    if (second == CharClass::Letter && !is_line_end(*p)) {
        return first.bytes + run_length(behind, end, CharClass::Letter, classes);
    }
    if (first.type == CharClass::Space && (*p != ' ' || second != CharClass::Other)) {
        return llama3_space_length(p, end, classes);
    }
    const char* const symbols = first.type == CharClass::Space ? behind : p;
    const char* q = symbols + run_length(symbols, end, CharClass::Other, classes);
    while (q < end && is_line_end(*q)) ++q;
    return static_cast<uint64_t>(q - p);
}

namespace {

// The class of the character that ends just before p; needs begin < p, and that no character spans p.
CharClass class_before(const char* begin, const char* p, const CharClass* classes) {
    const char* first = p - 1;
    while (first > begin && p - first < 4 && (*first & 0xC0) == 0x80) --first;
    const TextChar c = char_at(first, p, classes);
    return first + c.bytes == p ? c.type : CharClass::Other;  // Other: p is preceded by a stray byte
}

}  // namespace

namespace {

// For Llama 3's pattern.
bool is_safe_cut_of_lines(std::string_view text, uint64_t i, const CharClass* classes) {
    const char* const begin = text.data();
    const char* const end = begin + text.size();
    if (text[i] == ' ') return class_before(begin, begin + i, classes) != CharClass::Space;
    return text[i - 1] == '\n' && char_at(begin + i, end, classes).type != CharClass::Space;
}

}  // namespace

uint64_t last_safe_cut(std::string_view text, Split split) {
    const CharClass* const classes = char_classes();
    if (split == Split::llama3 || split == Split::qwen2) {
        for (uint64_t i = text.size(); i-- > 1;) {
            if (is_safe_cut_of_lines(text, i, classes)) return i;
        }
        return 0;
    }
    for (uint64_t i = text.size(); i-- > 1;) {
        const bool space = text[i] == ' ' || text[i] == '\n';
        if (space && class_before(text.data(), text.data() + i, classes) != CharClass::Space) return i;
    }
    return 0;
}

}  // namespace lnfree
