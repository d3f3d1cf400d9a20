"""Pile-filtered: the sequences of one set of shards without the tokens that another set never has.

    python3 data/pile.py --sequences 1000000 --out shards/pile_1m
    python3 data/pile_filtered.py                              shards/pile_filtered_val_000000.bin and ....json

As in appendix E of the paper (2507.02559): tokens are counted over a million sequences of each set, those which The
Pile has and OpenWebText has not are listed with their counts (its Tab. 5), and the first 10,000 sequences of The Pile
that hold none of them are written. Sequence i of a shard is its tokens i T to i T + T - 1, and what is left at its end
is dropped, so `eval --windows paper` sees each sequence whole and by itself.

PREFIX.json holds the tokenizer (from the shards' own .json), the counts of sequences and the whole list. Memory does
not grow with the shards. Exit status: 0 done, 1 failed, 2 bad use.
"""

import argparse
import glob
import json
import pathlib
import re
import sys

import shard_writer
from shard_writer import BadInput

np = shard_writer.np
IDS = 1 << 16  # what a uint16 token can be
BLOCK_TOKENS = 1 << 22


def open_shard(path):
    """The tokens of a shard, mapped. Only uint16 shards with a header, which is what GPT-2's vocabulary has."""
    header = np.fromfile(path, "<u4", 3)
    if len(header) < 3 or tuple(header[:2]) != (shard_writer.MAGIC, shard_writer.VERSION):
        raise BadInput(f"{path} is not a shard of uint16 tokens (magic {shard_writer.MAGIC}, version 1)")
    expected = shard_writer.HEADER_BYTES + 2 * int(header[2])
    if path.stat().st_size != expected or not header[2]:
        raise BadInput(f"{path} is damaged or empty: its header makes {expected} bytes, it has {path.stat().st_size}")
    return np.memmap(path, "<u2", "r", shard_writer.HEADER_BYTES, (int(header[2]),))


def find_shards(patterns):
    """The paths that paths and globs mean, sorted within a glob."""
    paths = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            raise BadInput(f"no token shard matches '{pattern}'")
        paths += [pathlib.Path(path) for path in found]
    return paths


def read_sequences(paths, seq, limit):
    """The first `limit` sequences (0: all) of the shards, in blocks of shape (n, seq)."""
    left = limit or sys.maxsize
    per_block = max(BLOCK_TOKENS // seq, 1)
    for path in paths:
        tokens = open_shard(path)
        sequences = min(len(tokens) // seq, left)
        left -= sequences
        for first in range(0, sequences, per_block):
            n = min(per_block, sequences - first)
            yield np.array(tokens[first * seq : (first + n) * seq]).reshape(n, seq)


def count_tokens(paths, seq, limit):
    """How often each token occurs in the first `limit` sequences, and how many sequences there were."""
    counts, sequences = np.zeros(IDS, np.int64), 0
    for block in read_sequences(paths, seq, limit):
        counts += np.bincount(block.ravel(), minlength=IDS)
        sequences += len(block)
    if not sequences:
        raise BadInput(f"{paths[0]} and what follows it hold no sequence of {seq} tokens")
    return counts, sequences


def description(paths):
    """What PREFIX.json beside the shards says of their tokenizer; all must agree. None if none is there."""
    found = {}
    for path in paths:
        named = re.fullmatch(r"(.+)_(train|val)_\d{6,}\.bin", path.name)
        sidecar = path.with_name(named[1] + ".json") if named else path
        if not named or not sidecar.is_file():
            continue
        try:
            tokenizer = json.loads(sidecar.read_text(encoding="utf-8"))["tokenizer"]
            found[tokenizer["fingerprint"]] = tokenizer
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{sidecar} does not describe token shards") from None
    if len(found) > 1:
        raise BadInput("the shards were made with different tokenizers: " + ", ".join(sorted(found)))
    return next(iter(found.values()), None)


def token_texts(folder):
    """id -> a printable form of its bytes; empty without a folder."""
    if folder is None:
        return {}
    by_id = shard_writer.token_bytes(shard_writer.read_vocabulary(folder)[0])
    return {token: text.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
            for token, text in by_id.items()}


def list_missing(counts, reference_counts, texts):
    """The tokens that only the first counts have, most frequent first."""
    missing = np.flatnonzero((counts > 0) & (reference_counts == 0))
    missing = missing[np.argsort(-counts[missing], kind="stable")]
    return [{"id": int(id), "text": texts.get(int(id), ""), "count": int(counts[id])} for id in missing]


def print_table(missing, most=10):
    """The paper's Tab. 5, as Markdown."""
    print(f"{len(missing):,} tokens occur in --data and not in --reference; the most frequent:\n")
    print("| token id | token | count |\n| ---: | --- | ---: |")
    for token in missing[:most]:
        print(f"| {token['id']} | {token['text'].replace('|', '&#124;')} | {token['count']:,} |")
    print()


def write_sequences(paths, shards, flags, missing):
    """Writes the first sequences without a missing token; returns how many were read and kept."""
    is_missing = np.zeros(IDS, bool)
    is_missing[[token["id"] for token in missing]] = True
    read = kept = 0
    for block in read_sequences(paths, flags.seq, 0):
        good = np.flatnonzero(~is_missing[block].any(axis=1))
        if flags.sequences:
            good = good[: flags.sequences - kept]
        kept += len(good)
        full = kept == flags.sequences
        read += int(good[-1]) + 1 if full else len(block)
        if len(good):
            shards.append(block[good].ravel())
            shards.write_whole()
        if full:
            break
    if not kept:
        raise BadInput(f"none of the {read:,} sequences is without a token of the list; nothing is written")
    shards.finish()
    return read, kept


def make(flags):
    if flags.seq < 2 or flags.sequences < 0 or flags.count < 0:
        raise BadInput("--seq is at least 2, --sequences and --count at least 0")
    texts = token_texts(flags.bpe)
    data, reference = find_shards(flags.data), find_shards(flags.reference)
    tokenizer = description(data + reference)
    report_path = pathlib.Path(f"{flags.out}.json")
    shards = shard_writer.Shards(f"{flags.out}_val", 100_000_000)
    if any(shards.path(0).resolve() == path.resolve() for path in data + reference):
        raise BadInput(f"--out {flags.out} is where the shards lie that are read; choose another")
    if not flags.force and (report_path.exists() or shards.path(0).exists()):
        raise BadInput(f"{flags.out} is there already; --force replaces it")

    counts, sequences = count_tokens(data, flags.seq, flags.count)
    reference_counts, reference_sequences = count_tokens(reference, flags.seq, flags.count)
    print(f"counted {sequences:,} sequences of --data, {reference_sequences:,} of --reference", file=sys.stderr)
    missing = list_missing(counts, reference_counts, texts)
    print_table(missing)

    report_path.parent.mkdir(parents=True, exist_ok=True)
    report_path.unlink(missing_ok=True)
    shards.remove()
    read, kept = write_sequences(data, shards, flags, missing)
    report = {"version": 1, **({"tokenizer": tokenizer} if tokenizer else {})}
    report |= {
        "tokens": {"train": 0, "val": shards.tokens},
        "seq": flags.seq,
        "sequences": {"counted": sequences, "counted_reference": reference_sequences, "read": read, "kept": kept},
        "inputs": [path.name for path in data],
        "reference": [path.name for path in reference],
        "missing": missing,
    }
    shard_writer.write_json(report_path, report)
    print(f"{flags.out}: {kept:,} of the first {read:,} sequences, {shards.tokens:,} tokens")


def parse_flags():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flags.add_argument("--data", nargs="+", default=["shards/pile_1m_val_*.bin"], metavar="SHARDS",
                       help="what is filtered: paths or globs")
    flags.add_argument("--reference", nargs="+", default=["shards/openwebtext_train_*.bin"], metavar="SHARDS",
                       help="where a token has to occur")
    flags.add_argument("--out", default="shards/pile_filtered", metavar="PREFIX",
                       help="writes PREFIX_val_000000.bin, ..., PREFIX.json")
    flags.add_argument("--seq", type=int, default=1024, metavar="T", help="tokens in a sequence")
    flags.add_argument("--count", type=int, default=1_000_000, metavar="N", help="sequences of each to count; 0: all")
    flags.add_argument("--sequences", type=int, default=10_000, metavar="N", help="sequences to write; 0: all")
    flags.add_argument("--bpe", type=pathlib.Path, metavar="DIR",
                       help="folder with GPT-2's tokenizer files, such as models/gpt2-small, for the tokens' text")
    flags.add_argument("--force", action="store_true", help="replace what is there under the same PREFIX")
    return flags.parse_args()


if __name__ == "__main__":
    try:
        make(parse_flags())
    except BadInput as problem:
        sys.exit(shard_writer.fail(problem, 2))
    except OSError as problem:
        sys.exit(shard_writer.fail(problem, 1))
