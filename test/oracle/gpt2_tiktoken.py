"""tiktoken's gpt2 encoding, built by hand from OpenAI's two files, and strings that are hard to split; for the other scripts."""

import json
import pathlib
import random

import tiktoken

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END_OF_TEXT = "<|endoftext|>"


def load_encoding(folder):
    """The Encoding of a folder with encoder.json and vocab.bpe (or vocab.json and merges.txt)."""
    folder = pathlib.Path(folder)
    openai_names = (folder / "encoder.json").exists()
    vocab = folder / ("encoder.json" if openai_names else "vocab.json")
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}
    ids = json.loads(vocab.read_text(encoding="utf-8"))
    special = {END_OF_TEXT: ids.pop(END_OF_TEXT)}
    ranks = {bytes(byte_of[c] for c in symbols): token for symbols, token in ids.items()}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


FRAGMENTS = [
    *" \t\n\r\v\f\0\x1c\x1d\x1e\x1f\x85\xa0",
    *"\u1680\u180e\u2000\u2003\u200a\u200b\u200c\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufffd\uffff",
    "  ", "   ", "\n\n", "\r\n", " \n", "\n ", "\t ", " \t\n  ", "\u3000 ", " \u3000", "\xa0\xa0", "\u2028\n",
    *"aZsStTdDmMéßıİſKÅ漢字かなカナ한글عربעבריתहिन्दीไทยქართულიǅʰªº",
    *"0123456789²³¼½Ⅷ①٣०௧一〇零\U0001D7D8\U00010107\U00011C5A",
    *".,;:!?-_'\"`’‘“”()[]{}<>|/\\@#$%^&*+=~§€£¥°±×÷…–—•→∀∑√≈",
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'LL", "'r", "'v", "'l", "'", "''", "’s", "'\u0301",
    "\u0301", "\u0308", "\u0903", "\u20e3", "\ufe0f", "\u1ab0", "\U000E0100", "e\u0301", "n\u0303",
    "😀", "👩\u200d👩\u200d👧\u200d👦", "🇩🇪", "👍🏽", "1\ufe0f\u20e3", "❤\ufe0f", "🏴\U000E0067\U000E0062\U000E007F",
    "<|endoftext|>", "<|endoftext|", "|endoftext|>", "<|endoftext|><|endoftext|>", "<|", "|>", " <|endoftext|> ",
    "the", " the", "The", " of", "ing", "don", "can", "you", "I", "hello", "world", " 1234567890", "aaaaaaaa", "=====",
    "--------", "........", "    ", "\t\t\t", "http://", "www.", ".com", "foo_bar", "x=1;", "Überraschung", "naïve",
]


def random_string(rng):
    """A short text of troublesome fragments, characters of all planes, or both."""
    kind = rng.random()
    parts = []
    for _ in range(rng.randrange(1, 24)):
        r = rng.random()
        if kind < 0.5 or r < 0.5:
            parts.append(rng.choice(FRAGMENTS))
        elif r < 0.7:
            parts.append(random_character(rng, 0x250))
        elif r < 0.85:
            parts.append(random_character(rng, 0x10000))
        else:
            parts.append(random_character(rng, 0x110000))
        if rng.random() < 0.1:
            parts.append(parts[-1] * rng.randrange(2, 9))
    return "".join(parts)


def random_character(rng, below):
    """Any code point below a bound that is a character."""
    while True:
        code_point = rng.randrange(below)
        if not 0xD800 <= code_point < 0xE000:
            return chr(code_point)


def random_strings(n, seed=1):
    """n strings, the same every time."""
    rng = random.Random(seed)
    return [random_string(rng) for _ in range(n)]


def every_character():
    """Every character of Unicode between letters, digits, spaces and itself."""
    for code_point in range(0x110000):
        if not 0xD800 <= code_point < 0xE000:
            c = chr(code_point)
            yield f"a{c}b {c}{c} 1{c}2  {c} \n{c}'{c}s{c}"
