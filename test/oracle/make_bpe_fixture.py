#!/usr/bin/env python3
"""Writes test/fixtures/bpe_tiktoken.json: strings and their gpt2 ids according to tiktoken, replayed by test_tokenizer.cpp.

    pip install tiktoken
    python3 test/oracle/make_bpe_fixture.py ../shared/data/gpt2-bpe > test/fixtures/bpe_tiktoken.json
"""

import json
import pathlib
import sys

import tiktoken

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from gpt2_tiktoken import END_OF_TEXT, FRAGMENTS, load_encoding, random_strings

SENTENCES = [
    "When Mary and John went to the store, John gave a drink to",
    "It's 5 o'clock; they'll say we've done what she'd want, I'm sure you're fine, isn't it? IT'S! YOU'RE!",
    "def f(x):\n    return x ** 2  # tabs\tand   spaces \n\n\n    pass\n",
    "Ein Übermaß an Zungenspitzengefühl. Το τέλος της ημέρας. Съешь же ещё этих мягких булок.",
    "吾輩は猫である。名前はまだ無い。 我能吞下玻璃而不伤身体。 다람쥐 헌 쳇바퀴에 타고파.",
    "  leading, trailing and\u3000wide\u00a0spaces \u2003 \u2028 \u0085 end  ",
    "a" * 300,
    "=" * 257 + " " * 129 + "1" * 200,
    "ab" * 100 + "é" * 100 + "漢" * 70 + "😀" * 40,
]


def main():
    encoding = load_encoding(sys.argv[1])
    texts = SENTENCES + FRAGMENTS + random_strings(320, seed=20)
    cases = []
    for text in texts:
        cases.append({"text": text, "ids": encoding.encode_ordinary(text)})
        if END_OF_TEXT in text:
            ids = encoding.encode(text, allowed_special={END_OF_TEXT})
            cases.append({"text": text, "allow_special": True, "ids": ids})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    print(f'{{"tiktoken": "{tiktoken.__version__}", "encoding": "gpt2", "cases": [\n{lines}\n]}}')


if __name__ == "__main__":
    main()
