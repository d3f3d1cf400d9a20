"""Makes the fixtures of the analyses' tests: two small trained models, a token shard, indirect-object prompts.

    python3 test/oracle/analysis/make_fixtures.py --program ./train_gpt2_lnfree --out test/fixtures/analysis

needs the project's program and no Python package; about two minutes on one core. The stored models depend on the
machine in their last digits: after making them again, make expected.json again too (analysis_oracle.py).

OUT/original              a GPT-2 with LayerNorm (2 layers, 3 heads, 24 channels, bytes) of the story world. One head is
                          made an attention sink and trained on: a model this small does not grow one by itself
OUT/lnfree                what `remove` makes of it: no LayerNorm left, in Hugging Face form
OUT/text_val_000000.bin   961 held-out tokens: 20 windows of 48, or 30 of 31
OUT/text.json             what stands beside a shard
OUT/prompts.json          {set: {"prompts": [...], "answers": [[right, wrong], ...]}}; prompts i, i^1 differ only in
                          who acts. A prompt ends within the actor's name, the answers are what is left of the two
                          names: so small a model knows names, but not who of two people has received something
"""
import argparse
import array
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

STORIES = 1500
# Where the shard is cut: with these 961 tokens no number of the sample lies within 5e-5 of a threshold.
SHARD_BEGIN, SHARD_TOKENS = 12000, 20 * 48 + 1
HEADER_INTS, MAGIC = 256, 20240520
END_OF_TEXT = 256
CHANNELS, HEADS = 24, 3
SINK_LAYER, SINK_HEAD, SINK_STRENGTH = 1, 2, 7.5
KEPT = ("config.json", "lnfree.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

# Indirect-object sentences as the story world tells them, up to the first letters of the actor, {s}. {a} and {b}: who
# is named first and second. Names have four letters and places six, so that all prompts of a set have the same length.
LETTERS = {"went": 2, "met": 3}
FORMS = {"went": "When {a} and {b} went to the {place}, {s}", "met": "Later {a} and {b} met at the {place}, and {s}"}
WORLDS = {"went": [("Mary", "John", "market"), ("Kate", "Paul", "garden")],
          "met": [("Tina", "Hugo", "bakery"), ("Vera", "Seth", "office")]}


def prompts():
    result = {}
    for name, form in FORMS.items():
        texts, answers = [], []
        for (one, two, place), swap, first_acts in itertools.product(WORLDS[name], (False, True), (True, False)):
            a, b = (two, one) if swap else (one, two)
            actor, other = (a, b) if first_acts else (b, a)
            texts.append(form.format(a=a, b=b, s=actor[:LETTERS[name]], place=place))
            answers.append([actor[LETTERS[name]:], other[LETTERS[name]:]])
        assert len({len(text.encode()) for text in texts}) == 1, f"{name}: prompts differ in length"
        assert all(right[0] != wrong[0] for right, wrong in answers), f"{name}: answers begin alike"
        result[name] = {"prompts": texts, "answers": answers}
    return result


def write_shard(source, target):
    """SHARD_TOKENS tokens of a shard, as a shard of their own."""
    words = array.array("H", source.read_bytes()[4 * HEADER_INTS:])[SHARD_BEGIN:SHARD_BEGIN + SHARD_TOKENS]
    header = array.array("i", [MAGIC, 1, len(words)] + [0] * (HEADER_INTS - 3))
    target.write_bytes(header.tobytes() + words.tobytes())
    return words


def make_sink(path, strength=SINK_STRENGTH):
    """Changes one head so that every query attends to position 0: its keys get a component along e that tells position
    0 from the others, its query bias points along e. e is the head's first dimension; the component is read along what
    sets the position embedding of 0 apart."""
    raw = bytearray(path.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])

    def tensor(name):
        start, end = header[name]["data_offsets"]
        return 8 + size + start, array.array("f", raw[8 + size + start:8 + size + end])

    def store(at, values):
        raw[at:at + 4 * len(values)] = values.tobytes()

    _, wpe = tensor("transformer.wpe.weight")  # (n_ctx, C)
    rows = [wpe[i:i + CHANNELS] for i in range(0, len(wpe), CHANNELS)]
    apart = [rows[0][c] - sum(row[c] for row in rows[1:]) / (len(rows) - 1) for c in range(CHANNELS)]
    length = math.sqrt(sum(a * a for a in apart))
    first = SINK_HEAD * CHANNELS // HEADS
    at, weight = tensor(f"transformer.h.{SINK_LAYER}.attn.c_attn.weight")  # (C, 3C): queries, keys, values
    for c in range(CHANNELS):
        weight[c * 3 * CHANNELS + CHANNELS + first] += strength * apart[c] / length
    store(at, weight)
    at, bias = tensor(f"transformer.h.{SINK_LAYER}.attn.c_attn.bias")
    bias[first] += strength
    store(at, bias)
    path.write_bytes(raw)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="./train_gpt2_lnfree", help="the project's program [%(default)s]")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--pretrain-steps", type=int, default=1500, help="[%(default)s]")
    parser.add_argument("--tune-steps", type=int, default=100, help="of finetune and of remove [%(default)s]")
    args = parser.parse_args()
    program = str(Path(args.program).resolve())
    args.out.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as work:
        work = Path(work)

        def run(*words):
            subprocess.run([program, *map(str, words)], cwd=work, check=True, stdout=sys.stderr)

        run("stories", "--count", STORIES, "--seed", 7, "--out", "stories.jsonl")
        run("tokenize", "--input", "stories.jsonl", "--tokenizer", "byte", "--out", "text")
        data = ["--data", "text_train_000000.bin", "--val", "text_val_000000.bin", "--val-tokens", 16384,
                "--save-every", 0]
        run("pretrain", *data, "--out", "pretrained", "--n-layer", 2, "--n-head", HEADS, "--n-embd", CHANNELS,
            "--n-ctx", 64, "--vocab-size", 257, "--steps", args.pretrain_steps, "--lr", 5e-3, "--min-lr", 4e-4)
        make_sink(work / "pretrained" / "model.safetensors")
        run("finetune", *data, "--model", "pretrained", "--out", "original", "--steps", args.tune_steps,
            "--lr", 1e-3, "--min-lr", 1e-4)
        run("remove", *data, "--model", "original", "--out", "lnfree", "--preset", "auto", "--steps", args.tune_steps,
            "--lr", 1e-3, "--min-lr", 1e-4)

        for model in ("original", "lnfree"):
            (args.out / model).mkdir(exist_ok=True)
            for name in KEPT:
                shutil.copyfile(work / model / name, args.out / model / name)
        tokens = write_shard(work / "text_val_000000.bin", args.out / "text_val_000000.bin")
        beside = json.loads((work / "text.json").read_text())
    beside["documents"] = {"train": 0, "val": tokens.count(END_OF_TEXT)}
    beside["tokens"] = {"train": 0, "val": len(tokens)}
    (args.out / "text.json").write_text(json.dumps(beside, indent=2) + "\n")
    (args.out / "prompts.json").write_text(json.dumps(prompts(), indent=1) + "\n")


if __name__ == "__main__":
    main()
