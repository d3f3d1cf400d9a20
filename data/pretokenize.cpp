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

namespace {

// The class of the character that ends just before p; needs begin < p, and that no character spans p.
CharClass class_before(const char* begin, const char* p, const CharClass* classes) {
    const char* first = p - 1;
    while (first > begin && p - first < 4 && (*first & 0xC0) == 0x80) --first;
    const TextChar c = char_at(first, p, classes);
    return first + c.bytes == p ? c.type : CharClass::Other;  // Other: p is preceded by a stray byte
}

}  // namespace

uint64_t last_safe_cut(std::string_view text) {
    const CharClass* const classes = char_classes();
    for (uint64_t i = text.size(); i-- > 1;) {
        const bool space = text[i] == ' ' || text[i] == '\n';
        if (space && class_before(text.data(), text.data() + i, classes) != CharClass::Space) return i;
    }
    return 0;
}

}  // namespace lnfree
