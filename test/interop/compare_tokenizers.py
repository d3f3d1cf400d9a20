#!/usr/bin/env python3
"""Holds `tokenize` against transformers' AutoTokenizer, id by id, on tokenizer folders of every kind that the engine runs.

    pip install transformers && python3 test/interop/compare_tokenizers.py ENGINE
    python3 test/interop/compare_tokenizers.py ENGINE --folder FOLDER --text FILE...     a real tokenizer, on real text

The first form trains small byte-level BPEs with the parts of GPT-NeoX's (Pythia's), SmolLM2's, Llama 3's and Qwen2's
tokenizers and compares on hard text: every character of Unicode, and strings made of what meets badly. FILE is .txt or
.jsonl, .gz or not. One line per comparison; exit status 1 if a text differs. No network, no torch.
"""

import argparse
import gzip
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

END = "<|endoftext|>"
CL100K = (  # Llama 3's pattern; Qwen2's has one number character a piece
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# ---- tokenizers -------------------------------------------------------------------------------------------------------


def corpus():
    """Text to train on: characters with their names, numbers, code, accents in both forms."""
    named = (c for c in map(chr, range(0x20, 0x1FFFF)) if unicodedata.name(c, "") and ord(c) % 7 < 2)
    lines = [f"{unicodedata.name(c).title()} {c}{c} {c}, it's {ord(c)}   {c}" for c in named]
    code = [line for path in sorted(pathlib.Path(__file__).parent.glob("*.py")) for line in path.read_text().splitlines(True)]
    accents = ["Zoë naïve café déjà vu über Ångström số 한국어 조선글 " + str(n) for n in range(999)]
    return lines + code + accents + [unicodedata.normalize("NFD", line) for line in accents]


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False)])


def digits_then_bytes():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)])


def trained(pre_tokenizer, normalizer, special):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, ByteLevelDecoder()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def write(folder, tokenizer, name, change=None):
    """A folder with tokenizer.json and a tokenizer_config.json that names the class; `change` edits the former."""
    folder.mkdir()
    file = json.loads(tokenizer.to_str())
    if change is not None:
        change(file)
    (folder / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False))
    config = {"tokenizer_class": name, "add_prefix_space": False, "eos_token": END, "bos_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_folders(work):
    """(name, folder, whether transformers' class does as tokenizer.json says) of every kind."""
    neox = trained(byte_level(True), normalizers.NFC(), [END, "<|padding|>"])
    neox.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    yield "GPT-NeoX", write(work / "neox", neox, "GPTNeoXTokenizer"), True
    neox.add_tokens([AddedToken(unicodedata.normalize("NFD", "é1"), normalized=True), AddedToken("\u0301!", normalized=False)])
    neox.add_tokens([AddedToken("<l>", lstrip=True, normalized=True), AddedToken("<r>", rstrip=True, normalized=False)])
    yield "NFC, more added tokens", write(work / "added", neox, "PreTrainedTokenizerFast"), True

    smollm2 = trained(digits_then_bytes(), None, [END, "<|im_start|>", "<|im_end|>"])

    def lack_bytes(file):  # as SmolLM2's own vocabulary does: here NUL and DEL
        for symbol in ("\u0100", "\u0121"):
            del file["model"]["vocab"][symbol]

    yield "SmolLM2", write(work / "smollm2", smollm2, "PreTrainedTokenizerFast", lack_bytes), True
    yield "SmolLM2, its own class", write(work / "smollm2_class", smollm2, "GPT2Tokenizer"), False

    llama3 = trained(split_then_bytes(CL100K % "{1,3}"), None, [END, "<|begin_of_text|>"])
    llama3.post_processor = TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 1)])

    def ignore_merges(file):  # a token that no merge makes, and ids beyond 65,535
        file["model"]["ignore_merges"] = True
        file["model"]["vocab"]["Ġunmade"] = 70000
        file["model"]["vocab"]["<|eot_id|>"] = 70001
        file["added_tokens"].append(dict(file["added_tokens"][0], id=70001, content="<|eot_id|>"))

    yield "Llama 3", write(work / "llama3", llama3, "PreTrainedTokenizerFast", ignore_merges), True
    qwen2 = trained(split_then_bytes(CL100K % ""), normalizers.NFC(), [END, "<|im_start|>"])
    yield "Qwen2", write(work / "qwen2", qwen2, "Qwen2Tokenizer"), True


# ---- texts ------------------------------------------------------------------------------------------------------------


# Number characters of Unicode 17, which Digits knows and tiktoken's table (data/unicode_classes.h) does not.
NEWER = {*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)}


def every_character():
    """Every character of Unicode's assigned planes, alone and where it may join, reorder or part its neighbours."""
    for first in [*range(0, 0x24000, 64), *range(0x2F800, 0x2FA40, 64), *range(0xE0000, 0xE0200, 64)]:
        characters = [chr(c) for c in range(first, first + 64) if not 0xD800 <= c < 0xE000 and c not in NEWER]
        for form in ("%s", "a%s", " %s", "  %s1", "e\u0301%s\u0323x", "'%s", "\u1100%s"):
            yield ".".join(form % c for c in characters)


def random_texts(count, seed=7):
    """Strings made of what meets badly."""
    parts = """a e o s t 've 's 'S 'LL 'ſ don't word Word 1 23 4567 ½ ² ٣٤ Ⅷ é ê ñ ạ ộ Å Å Ω 각 한 漢字 ひらがな だ は゛ 。 、 😀 👩‍👩‍👧 🇩🇪 ﬁ ½x
        \u0301 \u0323 \u0327 \u0345 \u0308 \u093C \u0F71 \u1161 \u11A8 \u3099 \u200D \u00AD \uFEFF \uFFFD \u180E . , ! ... (x) [y] <l> <r> - _ / \\ " #
        <|endoftext|> <|padding|> <|im_start|> <|im_end|> <|begin_of_text|> <|eot_id|> <|endoftext unmade""".split(" ")
    parts = [part.strip("\n") for part in parts if part.strip("\n")]
    parts += [" ", " ", " ", "  ", "   ", " " * 7, " " * 24, " " * 31, "\n", "\r\n", "\n\n", "\t", "\r", "\u00A0", "\u2000", "\u3000", "\u0085", "\x00"]
    chance = random.Random(seed)
    for _ in range(count):
        yield "".join(chance.choice(parts) for _ in range(chance.randrange(1, 25)))


def texts_of(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        return [json.loads(line)["text"] for line in file if line.strip()] if ".jsonl" in path.suffixes else [file.read()]


# ---- comparison -------------------------------------------------------------------------------------------------------


def our_ids(engine, folder, texts, special, work):
    """All ids that `tokenize` writes, end-of-text behind every text, and the size of one in the shard."""
    (work / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [engine, "tokenize", "--input", work / "texts.jsonl", "--tokenizer", folder, "--out", work / "ids", "--val-fraction", "0"]
    ended = subprocess.run(command + ["--json"] + ["--allow-special"] * special, capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(ended.stderr.strip())
    ids, width = [], 0
    for shard in sorted(work.glob("ids_train_*.bin")):
        content = shard.read_bytes()
        width = {20240520: 2, 20240801: 4}[struct.unpack("<i", content[:4])[0]]
        ids += memoryview(content[1024:]).cast("H" if width == 2 else "I").tolist()
        shard.unlink()
    return ids, width


def compare(engine, name, folder, texts, special, by_class, work):
    """Prints a line; returns how many texts differ."""
    auto = AutoTokenizer.from_pretrained(folder)
    backend = auto.backend_tokenizer if by_class else Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.encode_special_tokens = not special
    end = auto.convert_tokens_to_ids(auto.eos_token)
    theirs = [encoding.ids + [end] for encoding in backend.encode_batch(texts, add_special_tokens=False)]
    ours, width = our_ids(engine, folder, texts, special, work)
    wrong, at, examples = 0, 0, []
    for text, ids in zip(texts, theirs):
        mine = ours[at : at + len(ids)]
        at += len(ids)
        if mine == ids:
            continue
        wrong += 1
        examples.append(f"    {text[:120]!r}\n    here   {mine[:30]}\n    theirs {ids[:30]}")
        if end not in ids[:-1] and end in mine:  # shorter here: go on with the next text
            at += mine.index(end) + 1 - len(ids)
        else:
            at = ours.index(end, at - 1) + 1 if end in ours[at - 1 :] else len(ours)
    wrong += at != len(ours)
    against = "AutoTokenizer" if by_class else "tokenizer.json"
    print(f"{name}, {len(texts)} texts, special tokens {'on' if special else 'off'}, against {against}: "
          f"{len(ours)} tokens of {width} bytes, {wrong} texts differ", flush=True)  # fmt: skip
    print("\n".join(examples[:3]), end="\n" if examples else "")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--by-file", action="store_true", help="tokenizer.json by itself is the yardstick, not its class")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--strings", type=int, default=20000)
    arguments = parser.parse_args()
    engine = arguments.engine.resolve()
    hard = [*every_character(), *random_texts(arguments.strings)]
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="lnfree-tokenizers-") as name:
        work = pathlib.Path(name)
        folders = write_folders(work) if arguments.folder is None else [(str(arguments.folder), arguments.folder, not arguments.by_file)]
        for kind, folder, by_class in folders:
            for special in (False, True):
                wrong += compare(engine, kind, folder, hard, special, by_class, work)
            for path in arguments.text:
                wrong += compare(engine, f"{kind} on {path.name}", folder, texts_of(path), False, by_class, work)
    print("identical" if wrong == 0 else f"{wrong} texts differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
