#include "data/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "data/nfc_characters.h"
#include "data/pretokenize.h"

namespace lnfree {

namespace {

// 1 for every code point that is in form C by itself and joins no character before it, whatever that is: before such a
// character a text may be cut and its parts be normalized one by one (annex 15, "Detecting Normalization Forms").
const uint8_t* settled_table() {
    static const std::vector<uint8_t> table = [] {
        std::vector<uint8_t> settled(0x110000, 1);
        for (const CodePointRange& r : nfc_unsettled) std::fill(&settled[r.first], &settled[r.last] + 1, uint8_t{0});
        return settled;
    }();
    return table.data();
}

// The first character at or behind `p` that is not settled; `end` if there is none.
const char* find_unsettled(const char* p, const char* end, const uint8_t* settled) {
    constexpr uint8_t lead_of_u0300 = 0xCC;  // of the first character that is not settled
    while (p < end) {
        if (static_cast<uint8_t>(*p) < lead_of_u0300) {
            ++p;
            continue;
        }
        uint32_t c = 0;
        const uint32_t n = decode_utf8(p, end, c);
        if (n > 0 && settled[c] == 0) return p;
        p += n > 0 ? n : 1;
    }
    return end;
}

// Where the character that ends just before `p` begins, which a mark at `p` may join; `p` if there is none, or a stray byte,
// or a mark that is newer than the table: utf8proc would move it.
const char* character_before(const char* begin, const char* p) {
    if (p == begin) return p;
    const char* first = p - 1;
    while (first > begin && p - first < 4 && (*first & 0xC0) == 0x80) --first;
    uint32_t c = 0;
    if (first + decode_utf8(first, p, c) != p) return p;
    return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class == 0 ? first : p;
}

// Where the run of characters that are not settled, which begins at `p`, ends.
const char* end_of_unsettled(const char* p, const char* end, const uint8_t* settled) {
    uint32_t c = 0;
    while (p < end) {
        const uint32_t n = decode_utf8(p, end, c);
        if (n == 0 || settled[c] != 0) return p;
        p += n;
    }
    return p;
}

void append_normalized(const char* p, const char* end, std::string& out) {
    struct Free {
        void operator()(utf8proc_uint8_t* bytes) const { std::free(bytes); }
    };
    utf8proc_uint8_t* made = nullptr;
    const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    const utf8proc_ssize_t n = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(p), end - p, &made, options);
    const std::unique_ptr<utf8proc_uint8_t, Free> owner(made);
    if (n < 0) throw std::bad_alloc();  // the text is well-formed, so that memory is all that can be missing
    out.append(reinterpret_cast<const char*>(made), static_cast<uint64_t>(n));
}

}  // namespace

std::string_view to_nfc(std::string_view text, std::string& storage) {
    static const uint8_t* const settled = settled_table();
    const char* const begin = text.data();
    const char* const end = begin + text.size();
    const char* unsettled = find_unsettled(begin, end, settled);
    if (unsettled == end) return text;
    storage.clear();
    const char* done = begin;
    for (; unsettled < end; unsettled = find_unsettled(done, end, settled)) {
        const char* const first = character_before(done, unsettled);
        storage.append(done, first);
        done = end_of_unsettled(unsettled, end, settled);
        append_normalized(first, done, storage);
    }
    return storage.append(done, end);
}

}  // namespace lnfree
