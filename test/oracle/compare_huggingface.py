#!/usr/bin/env python3
"""Compares the tokenizer files of a folder as Hugging Face's AutoTokenizer reads them with data/tokenizer.h, id by id.

    pip install transformers tiktoken
    python3 test/oracle/compare_huggingface.py FOLDER

Run from the project root; FOLDER is any model folder that this project wrote. Exit status 1 if anything differs.
"""

import sys
import tempfile

from transformers import AutoTokenizer

from compare_tiktoken import build_encoder, encode_here
from gpt2_tiktoken import END_OF_TEXT, random_strings


def main():
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = random_strings(20000, seed=3)
    with tempfile.TemporaryDirectory() as build:
        ours, _ = encode_here(build_encoder(build), folder, texts, special=True)  # Hugging Face always allows it
    wrong = [i for i, text in enumerate(texts) if tokenizer.encode(text) != ours[i]]
    lost = [i for i, text in enumerate(texts) if tokenizer.decode(ours[i]) != text]
    end = tokenizer.encode(END_OF_TEXT)
    print(f"{type(tokenizer).__name__}, {len(tokenizer)} tokens, end-of-text {end}, eos_token_id {tokenizer.eos_token_id}")
    print(f"{len(texts)} texts: {len(wrong)} have other ids, {len(lost)} are not decoded to themselves")
    for i in (wrong + lost)[:3]:
        print(f"    {texts[i]!r}\n    here         {ours[i]}\n    Hugging Face {tokenizer.encode(texts[i])}")
    return 1 if wrong or lost or end != [tokenizer.eos_token_id] else 0


if __name__ == "__main__":
    sys.exit(main())
