#!/usr/bin/env python3
"""Compares data/tokenizer.h with tiktoken's gpt2 encoding, id by id, and both in speed on one thread
(processor time, so that it can be run beside other things).

    pip install tiktoken
    python3 test/oracle/compare_tiktoken.py [--data ../shared/data] [--strings 200000]

Run from the project root. Texts: every .txt, .jsonl and .gz of DATA/text, generated strings, every character of
Unicode, each also with <|endoftext|> as a special token. Exit status 1 if anything differs.
"""

import argparse
import array
import gzip
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from gpt2_tiktoken import END_OF_TEXT, every_character, load_encoding, random_strings


def documents(path):
    """The texts of one file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        if ".jsonl" in path.suffixes:
            return [json.loads(line)["text"] for line in file if line.strip()]
        return [file.read()]


def build_encoder(folder):
    """Compiles encode_stream.cpp with the project's headers."""
    program = str(pathlib.Path(folder) / "encode_stream")
    source = str(pathlib.Path(__file__).parent / "encode_stream.cpp")
    subprocess.run(["g++", "-std=c++17", "-O2", "-I.", source, "-o", program], check=True)
    return program


def encode_here(program, vocabulary, texts, special):
    """Our ids of each text, and the processor seconds that the second run of encode took."""
    encoded = [text.encode("utf-8") for text in texts]
    stream = b"".join(struct.pack("<IB", len(t), special) + t for t in encoded)
    done = subprocess.run([program, vocabulary], input=stream, capture_output=True)
    if done.returncode != 0:
        sys.exit(done.stderr.decode())
    numbers = array.array("i", done.stdout)
    ids, at = [], 0
    for _ in texts:
        n = numbers[at]
        ids.append(numbers[at + 1 : at + 1 + n].tolist())
        at += 1 + n
    return ids, float(done.stderr.split()[1])


def encode_tiktoken(encoding, texts, special):
    """tiktoken's ids of each text, and the processor seconds that its second run took."""
    allowed = {END_OF_TEXT} if special else set()
    encode = lambda text: encoding.encode(text, allowed_special=allowed, disallowed_special=())
    ids = [encode(text) for text in texts]
    start = time.process_time()
    for text in texts:
        encode(text)
    return ids, time.process_time() - start


def compare(name, texts, program, vocabulary, encoding, special):
    """Prints one line; returns how many texts differ."""
    ours, our_seconds = encode_here(program, vocabulary, texts, special)
    theirs, their_seconds = encode_tiktoken(encoding, texts, special)
    wrong = [i for i in range(len(texts)) if ours[i] != theirs[i]]
    megabytes = sum(len(t.encode("utf-8")) for t in texts) / 1e6
    tokens = sum(map(len, theirs))
    print(
        f"{name:40} {len(texts):8} texts {tokens:9} tokens {len(wrong):6} differ   "
        f"MB/s {megabytes / our_seconds:6.1f} here, {megabytes / their_seconds:6.1f} tiktoken",
        flush=True,
    )
    for i in wrong[:3]:
        print(f"    {texts[i][:200]!r}\n    here     {ours[i][:40]}\n    tiktoken {theirs[i][:40]}")
    return len(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--strings", type=int, default=200000)
    arguments = parser.parse_args()
    vocabulary = str(pathlib.Path(arguments.data) / "gpt2-bpe")
    if not pathlib.Path(vocabulary).exists():
        print(f"skipped: {vocabulary} is not there")
        return 0
    encoding = load_encoding(vocabulary)
    sets = {path.name: lambda path=path: documents(path) for path in sorted(pathlib.Path(arguments.data, "text").iterdir())}
    sets["generated strings"] = lambda: random_strings(arguments.strings)
    sets["every character of Unicode"] = lambda: list(every_character())
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        program = build_encoder(folder)
        for name, make in sets.items():
            texts = make()
            wrong += compare(name, texts, program, vocabulary, encoding, special=False)
            if name == "generated strings":
                wrong += compare(name + ", special", texts, program, vocabulary, encoding, special=True)
    print("identical" if wrong == 0 else f"{wrong} texts differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
