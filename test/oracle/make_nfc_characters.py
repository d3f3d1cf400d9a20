#!/usr/bin/env python3
"""Writes data/nfc_characters.h: the code points that form NFC may change or move in Hugging Face's tokenizers.

    pip install tokenizers && python3 test/oracle/make_nfc_characters.py > data/nfc_characters.h

tokenizers itself is asked, one code point at a time. Its edition of Unicode is older than most; run this again when it moves
to a newer one. test/interop/compare_tokenizers.py compares what comes of it.
"""

import sys

import tokenizers
from tokenizers import normalizers

NFC, NFD = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
LOWEST, HIGHEST = "\u0334", "\u0345"  # marks of combining classes 1 and 240: every other mark moves before or behind one


def is_mark(c):
    """Whether its combining class is not 0, of a character that does not decompose."""
    return NFD(c) == c and (NFD(c + LOWEST) != c + LOWEST or NFD(HIGHEST + c) != HIGHEST + c)


def unsettled():
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    joins_another = {part for c in characters for part in NFD(c)[1:]}
    return [ord(c) for c in characters if c in joins_another or NFC(c) != c or is_mark(c)]


def main():
    ranges = []
    for c in unsettled():
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    print(f"""// The characters that form NFC (data/nfc.h) may change or move, as tokenizers {tokenizers.__version__} has them.
// Written by test/oracle/make_nfc_characters.py; not edited by hand.
#pragma once

#include "data/unicode_classes.h"

namespace lnfree {{

// clang-format off
// Changed by itself, of a combining class other than 0, or joining a character before it.
inline constexpr CodePointRange nfc_unsettled[] = {{""")
    line = "   "
    for first, last in ranges:
        item = f" {{0x{first:X}, 0x{last:X}}},"
        if len(line) + len(item) > 120:
            print(line)
            line = "   "
        line += item
    print(f"{line}\n}};\n// clang-format on\n\n}}  // namespace lnfree")


if __name__ == "__main__":
    sys.exit(main())
