#!/usr/bin/env python3
"""Writes data/unicode_classes.h: the code points that tiktoken's regex engine takes for \\p{L}, \\p{N} and \\s.

    pip install tiktoken && python3 test/oracle/make_unicode_classes.py > data/unicode_classes.h

tiktoken itself is asked, one code point at a time: with a pattern of one class, a character outside the class gives no
tokens. Run it again when tiktoken moves to a newer Unicode; a test compares the result with PCRE2's tables.
"""

import sys

import tiktoken

BYTES = {bytes([b]): b for b in range(256)}


def ranges_of(pattern):
    """[first, last] ranges of the code points that `pattern` matches (surrogates are not characters)."""
    encoding = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=BYTES, special_tokens={})
    ranges = []
    for code_point in range(0x110000):
        if 0xD800 <= code_point < 0xE000 or not encoding.encode_ordinary(chr(code_point)):
            continue
        if ranges and ranges[-1][1] == code_point - 1:
            ranges[-1][1] = code_point
        else:
            ranges.append([code_point, code_point])
    return ranges


def table(name, comment, ranges):
    """A C++ array of ranges, filled to 120 columns."""
    lines = [f"// {comment}", f"inline constexpr CodePointRange {name}[] = {{"]
    line = "   "
    for first, last in ranges:
        item = f" {{0x{first:X}, 0x{last:X}}},"
        if len(line) + len(item) > 120:
            lines.append(line)
            line = "   "
        line += item
    return "\n".join(lines + [line, "};"])


def main():
    letters, numbers, spaces = ranges_of(r"\p{L}"), ranges_of(r"\p{N}"), ranges_of(r"\s")
    print(f"""\
// The character classes of GPT-2's pre-tokenisation pattern (data/pretokenize.h), as tiktoken {tiktoken.__version__} has them.
// Written by test/oracle/make_unicode_classes.py; not edited by hand.
#pragma once

#include <cstdint>

namespace lnfree {{

// Code points first ... last, both included.
struct CodePointRange {{
    uint32_t first, last;
}};

// clang-format off
{table("unicode_letters", chr(92) + "p{L}: general category Lu, Ll, Lt, Lm or Lo", letters)}

{table("unicode_numbers", chr(92) + "p{N}: general category Nd, Nl or No", numbers)}

{table("unicode_spaces", chr(92) + "s: property White_Space", spaces)}
// clang-format on

}}  // namespace lnfree""")


if __name__ == "__main__":
    sys.exit(main())
