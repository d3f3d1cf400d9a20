"""Documents -> GPT-2 token shards: what data/openwebtext.py and data/pile.py share.

The files are those of `./train_gpt2_lnfree tokenize` (data/shards.h, data/tokenize.h): from the same documents, seed
and share both write the same bytes.

    PREFIX_train_000000.bin, ...   256 int32 (magic 20240520, version 1, number of tokens), then the tokens as uint16
    PREFIX_val_000000.bin, ...     the documents that are held out
    PREFIX.json                    tokenizer and counts; there when everything is
    PREFIX.state.npz               there until then: where to go on, and the tokens behind the last whole shard

A run that was interrupted, however that was, is taken up by the same command and ends in the same bytes. Memory holds
the tokens of a few shards at most. Exit status: 0 done, 1 failed, 2 bad use, 130 and 143 interrupted.
"""

import argparse
import concurrent.futures
import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import signal
import sys
import time
import zipfile
import zlib

try:
    import numpy as np
except ImportError:
    print(f"{sys.argv[0]}: numpy is not installed; pip install -r data/requirements.txt", file=sys.stderr)
    sys.exit(2)

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 1024
VOCAB_SIZE = 50257
END_OF_TEXT = 50256
BATCH_DOCUMENTS = 1024


class BadInput(Exception):
    """The request cannot be carried out as given; one line for the user. Exit 2."""


# ----------------------------------------------------------------------------------------------------------------------
# The tokenizer

# What fingerprint() gives for GPT-2's vocab.bpe and encoder.json.
GPT2_FINGERPRINT = "16c511db76cab20e"

# How GPT-2 cuts text into pieces before merging (openai/gpt-2, encoder.py), in the fancy_regex syntax of tiktoken.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def byte_symbols():
    """The character that stands for each byte in GPT-2's files: visible Latin-1 for itself, others from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


def fingerprint(ids, merges):
    """Fingerprint of data/tokenizer.h: 64-bit FNV-1a over little-endian 32-bit numbers: the id of every byte, that of
    end-of-text, and left, right and merged id of every merge, in order."""
    numbers = [ids[symbol] for symbol in byte_symbols()] + [ids["<|endoftext|>"]]
    for left, right in merges:
        numbers += [ids[left], ids[right], ids[left + right]]
    state = 0xCBF29CE484222325
    for byte in np.array(numbers, dtype="<u4").tobytes():
        state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def read_vocabulary(folder):
    """The ids (symbols -> id) and merges (pairs of symbols) of a folder with GPT-2's tokenizer files."""
    for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if not (folder / vocab).is_file() or not (folder / merges).is_file():
            continue
        try:
            ids = json.loads((folder / vocab).read_text(encoding="utf-8"))
            lines = (folder / merges).read_text(encoding="utf-8").split("\n")
        except ValueError:
            raise BadInput(f"{folder / vocab} or {merges} is damaged; get GPT-2's files again") from None
        if len(ids) != VOCAB_SIZE or ids.get("<|endoftext|>") != END_OF_TEXT:
            raise BadInput(f"{folder} does not hold GPT-2's vocabulary; use `train_gpt2_lnfree tokenize`")
        return ids, [line.split(" ") for line in lines if line and not line.startswith("#version")]
    raise BadInput(f"{folder} holds neither encoder.json and vocab.bpe nor vocab.json and merges.txt")


def token_bytes(ids):
    """id -> the bytes of each token, end-of-text left out."""
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    return {token: bytes(map(byte_of.get, symbols)) for symbols, token in ids.items() if token != END_OF_TEXT}


class Gpt2Tokenizer:
    """tiktoken's gpt2, from its own download or, with a folder, from the tokenizer files in it."""

    def __init__(self, folder=None):
        try:
            import tiktoken
        except ImportError:
            raise BadInput("tiktoken is not installed; pip install -r data/requirements.txt") from None
        if folder is None:
            self.folder, self.fingerprint = "gpt2", GPT2_FINGERPRINT
            self.encoding = tiktoken.get_encoding("gpt2")
            return
        ids, merges = read_vocabulary(folder)
        self.folder = folder.resolve().name
        try:
            self.fingerprint = fingerprint(ids, merges)
        except (KeyError, ValueError):
            raise BadInput(f"the merges in {folder} do not belong to its vocabulary") from None
        ranks = {symbols: token for token, symbols in token_bytes(ids).items()}
        special = {"<|endoftext|>": END_OF_TEXT}
        self.encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)

    def encode(self, text):
        """The tokens of a document and end-of-text, uint16. <|endoftext|> inside the text is ordinary text."""
        try:
            tokens = self.encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # halves of surrogate pairs, which some crawls hold: U+FFFD, as data/documents.h
            mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            tokens = self.encoding.encode_to_numpy(mended, disallowed_special=())
        return np.append(tokens, END_OF_TEXT).astype("<u2")


# ----------------------------------------------------------------------------------------------------------------------
# Where documents come from: iterate for their text; position() and go_to() are for an interrupted run


class LocalDocuments:
    """JSON lines (key "text") and .txt files (one document each), plain or .gz."""

    JSON_LINES, TEXT = (".jsonl", ".jsonlines", ".ndjson"), (".txt", ".text", ".md")

    def __init__(self, paths):
        self.paths, self.done = paths, 0
        for path in paths:
            if not path.is_file():
                raise BadInput(f"there is no file {path}")
            if not self.plain_name(path).endswith(self.JSON_LINES + self.TEXT):
                raise BadInput(f"{path}: only .jsonl and .txt, plain or .gz, are read here; "
                               "`train_gpt2_lnfree tokenize` looks at the content too")

    @staticmethod
    def plain_name(path):
        return path.name.lower().removesuffix(".gz")

    def position(self):
        return self.done

    def go_to(self, position):
        self.done = position

    def __iter__(self):
        for text in itertools.islice(self.read(), self.done, None):
            self.done += 1
            yield text

    def read(self):
        for path in self.paths:
            try:
                with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
                    if self.plain_name(path).endswith(self.JSON_LINES):
                        for number, line in enumerate(file, 1):
                            if line.strip():
                                yield self.text_of(line, f"{path} line {number}")
                    elif text := file.read():
                        yield text.decode("utf-8-sig")  # a byte-order mark is no text
            except (gzip.BadGzipFile, EOFError, zlib.error):
                raise BadInput(f"{path} holds damaged gzip data") from None
            except UnicodeDecodeError:
                raise BadInput(f"{path} is not UTF-8; for such text there is `train_gpt2_lnfree tokenize`") from None

    @staticmethod
    def text_of(line, where):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise BadInput(f'{where} is not a JSON object with a string under the key "text"')
        return text


class HubDocuments:
    """The column "text" of a data set on the Hugging Face hub, streamed: of it nothing lies on the disk."""

    def __init__(self, repository, split, revision=None):
        try:
            import datasets
        except ImportError:
            raise BadInput("datasets is not installed; pip install -r data/requirements.txt") from None
        self.repository = repository
        try:
            rows = datasets.load_dataset(repository, split=split, revision=revision, streaming=True)
            self.rows = rows.select_columns("text")
        except Exception as problem:
            raise self.failure(problem) from problem

    def failure(self, problem):
        """datasets passes on the errors of several libraries; for the user all of them are one."""
        return ConnectionError(f"cannot read the data set {self.repository} ({type(problem).__name__}: {problem})")

    def position(self):
        return self.rows.state_dict()

    def go_to(self, position):
        self.rows.load_state_dict(position)

    def __iter__(self):
        try:
            for row in self.rows:
                yield row["text"]
        except Exception as problem:
            raise self.failure(problem) from problem


# ----------------------------------------------------------------------------------------------------------------------
# Shards


def split_mix(state):
    """The first number of data/random.h's SplitMix64 with this seed."""
    mask = 0xFFFFFFFFFFFFFFFF
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def is_held_out(seed, index, fraction):
    """Whether document number `index` is for validation: data/tokenize.h's is_held_out."""
    return (split_mix(split_mix(seed) ^ index) >> 11) * 2.0**-53 < fraction


def write_atomically(path, write):
    """Calls write(file), and gives the file its name when all of it is on the disk. On failure nothing new stays."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        raise OSError(f"cannot write {path}: {problem.strerror or problem}") from None
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path, content):
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


class Shards:
    """One stream of tokens, cut into files of shard_tokens: PREFIX_000000.bin, ..."""

    def __init__(self, prefix, shard_tokens):
        self.prefix, self.shard_tokens = prefix, shard_tokens
        self.written = 0  # shards
        self.tokens = 0  # in them and waiting
        self.waiting = []  # arrays of the shard to come
        self.waiting_tokens = 0

    def path(self, number):
        return pathlib.Path(f"{self.prefix}_{number:06d}.bin")

    def append(self, tokens):
        self.waiting.append(tokens)
        self.waiting_tokens += len(tokens)
        self.tokens += len(tokens)

    def write_whole(self):
        """Writes what fills whole shards; true if there was any."""
        before = self.written
        while self.waiting_tokens >= self.shard_tokens:
            self.write(self.shard_tokens)
        return self.written > before

    def finish(self):
        """Writes the rest, as a shorter shard."""
        self.write_whole()
        if self.waiting_tokens:
            self.write(self.waiting_tokens)

    def write(self, count):
        tokens = self.rest()
        header = np.zeros(HEADER_BYTES // 4, "<i4")
        header[:3] = MAGIC, VERSION, count

        def write(file):
            file.write(header.data)
            file.write(tokens[:count].data)

        write_atomically(self.path(self.written), write)
        self.written += 1
        self.waiting = [tokens[count:].copy()]
        self.waiting_tokens -= count

    def rest(self):
        return np.concatenate(self.waiting) if self.waiting else np.empty(0, "<u2")

    def remove(self):
        """Removes all files of this name, so that a glob does not read an earlier run's along with these."""
        for number in itertools.count():
            if not self.path(number).exists():
                return
            self.path(number).unlink()


@dataclasses.dataclass
class Settings:
    """What decides the content of the files; an interrupted run goes on only with the same."""

    inputs: list
    val_fraction: float  # 1: all
    seed: int = 0
    shard_tokens: int = 100_000_000
    limit: int = 0  # documents; 0: all
    most_tokens: int = 0  # 0: all; the last document is cut there
    tokenizer: str = ""  # fingerprint


class SplitWriter:
    """Sends each document to the training or the validation shards, as data/tokenize.h does. The last document waits
    for the end: if all others went to one side it goes to the other, and if it is the only one it is divided."""

    def __init__(self, prefix, settings):
        self.settings = settings
        self.state_path = pathlib.Path(f"{prefix}.state.npz")
        self.report_path = pathlib.Path(f"{prefix}.json")
        self.shards = {side: Shards(f"{prefix}_{side}", settings.shard_tokens) for side in ("train", "val")}
        self.documents = {"train": 0, "val": 0}
        self.last = np.empty(0, "<u2")  # the document that waits; documents are never empty

    def seen(self):
        """Documents appended."""
        return sum(self.documents.values()) + (len(self.last) > 0)

    def tokens(self):
        return sum(shards.tokens for shards in self.shards.values()) + len(self.last)

    def append(self, tokens):
        """False if no more are wanted."""
        most = self.settings.most_tokens
        if most and self.tokens() + len(tokens) > most:
            tokens = tokens[: most - self.tokens()]
        if len(self.last):
            self.release(self.side_of_last())
        self.last = tokens
        return not most or self.tokens() < most

    def side_of_last(self):
        held_out = is_held_out(self.settings.seed, sum(self.documents.values()), self.settings.val_fraction)
        return "val" if held_out else "train"

    def release(self, side, tokens=None):
        self.shards[side].append(self.last if tokens is None else tokens)
        self.documents[side] += 1
        self.last = self.last[:0]

    def release_last(self):
        document = self.last
        if not 0 < self.settings.val_fraction < 1 or all(self.documents.values()):
            self.release(self.side_of_last())
        elif any(self.documents.values()):
            self.release("train" if self.documents["val"] else "val")
        else:
            val = min(max(int(self.settings.val_fraction * len(document) + 0.5), 1), len(document) - 1)
            self.release("train", document[: len(document) - val])
            if val:
                self.release("val", document[len(document) - val :])

    def finish(self, tokenizer):
        """Writes what is left and PREFIX.json."""
        if not len(self.last):
            raise BadInput("there are no documents")
        self.release_last()
        for shards in self.shards.values():
            shards.finish()
        about = {
            "name": "bpe",
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": VOCAB_SIZE,
            "end_of_text": END_OF_TEXT,
            "folder": tokenizer.folder,
        }
        report = {
            "version": 1,
            "tokenizer": about,
            "documents": self.documents,
            "tokens": {side: shards.tokens for side, shards in self.shards.items()},
            "seed": self.settings.seed,
            "val_fraction": self.settings.val_fraction,
            "allow_special": False,
            "inputs": self.settings.inputs,
        }
        write_json(self.report_path, report)
        self.state_path.unlink(missing_ok=True)

    def remove(self):
        """Removes all that a run of this PREFIX wrote."""
        self.report_path.unlink(missing_ok=True)
        for shards in self.shards.values():
            shards.remove()
        self.state_path.unlink(missing_ok=True)

    def begin(self):
        """Leaves a state from the start on: as long as it is there, the shards are not complete."""
        for shards in self.shards.values():
            if shards.path(0).exists():
                raise BadInput(f"{shards.path(0)} is there and not of an interrupted run; --force replaces it")
        self.save(None)

    def save(self, position):
        """Where the source goes on, and everything behind the last whole shard."""
        state = {
            "settings": dataclasses.asdict(self.settings),
            "position": position,
            "documents": self.documents,
            "written": {side: shards.written for side, shards in self.shards.items()},
            "tokens": {side: shards.tokens for side, shards in self.shards.items()},
        }
        arrays = {side: shards.rest() for side, shards in self.shards.items()} | {"last": self.last}
        write_atomically(self.state_path, lambda file: np.savez(file, state=np.array(json.dumps(state)), **arrays))

    def restore(self):
        """Takes up an interrupted run; returns the position of its source, or None for its beginning."""
        try:
            with np.load(self.state_path, allow_pickle=False) as saved:
                state = json.loads(str(saved["state"]))
                arrays = {name: saved[name] for name in ("train", "val", "last")}
        except (EOFError, ValueError, KeyError, zipfile.BadZipFile):
            raise BadInput(f"{self.state_path} is damaged; --force begins again") from None
        for name, value in dataclasses.asdict(self.settings).items():
            before = state["settings"].get(name)
            if before != value:
                raise BadInput(
                    f"{self.state_path} is of a run with {name} {before}, not {value}; repeat its flags, "
                    "choose another --out, or begin again with --force"
                )
        self.documents = state["documents"]
        for side, shards in self.shards.items():
            shards.written, shards.tokens = state["written"][side], state["tokens"][side]
            shards.waiting, shards.waiting_tokens = [arrays[side]], len(arrays[side])
        self.last = arrays["last"]
        return state["position"]


# ----------------------------------------------------------------------------------------------------------------------
# The run


class Progress:
    """A line about every second on a terminal, otherwise one per shard."""

    def __init__(self, writer):
        self.writer = writer
        self.first = writer.tokens()
        self.start = self.shown = time.monotonic()

    def show(self, whole_shard):
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if not whole_shard and not (terminal and now - self.shown > 1):
            return
        self.shown = now
        rate = (self.writer.tokens() - self.first) / max(now - self.start, 1e-9)
        shards = sum(shards.written for shards in self.writer.shards.values())
        line = f"{self.writer.seen():,} documents, {self.writer.tokens():,} tokens, {shards} shards"
        line += f", {rate / 1e6:.2f} M tokens/s"
        print(f"\r{line}   " if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)


def run(source, tokenizer, writer, threads):
    """Tokenises the source from where the writer is on. Reading and writing take turns with the threads."""
    progress = Progress(writer)
    documents = iter(source)
    limit = writer.settings.limit
    wanted = True
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        while wanted:
            left = limit - writer.seen() if limit else BATCH_DOCUMENTS
            batch = list(itertools.islice(documents, min(BATCH_DOCUMENTS, left)))
            if not batch:
                break
            for tokens in pool.map(tokenizer.encode, batch):
                wanted = writer.append(tokens)
                if not wanted:
                    break
            whole = [shards.write_whole() for shards in writer.shards.values()]
            if any(whole) and wanted:
                writer.save(source.position())
            progress.show(any(whole))
    writer.finish(tokenizer)


def parser(description, out):
    """The flags that both programs have."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flags.add_argument("--out", default=out, metavar="PREFIX", help="writes PREFIX_val_000000.bin, ..., PREFIX.json")
    flags.add_argument("--source", nargs="+", type=pathlib.Path, metavar="FILE",
                       help="local .jsonl or .txt, plain or .gz, in place of the data set on the hub")
    flags.add_argument("--bpe", type=pathlib.Path, metavar="DIR",
                       help="folder with GPT-2's tokenizer files, such as models/gpt2-small; without it tiktoken "
                            "downloads them")
    flags.add_argument("--limit", type=int, default=0, metavar="N", help="use only the first N documents; 0: all")
    flags.add_argument("--shard-tokens", type=int, default=100_000_000, metavar="N", help="tokens per shard")
    flags.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="that tokenise")
    flags.add_argument("--force", action="store_true", help="replace what is there under the same PREFIX")
    return flags


def make(flags, repository, split, revision=None, **settings):
    """The program, once its flags are known: exits with its status."""

    def stop(signal_number, _):
        raise SystemExit(128 + signal_number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        make_files(flags, repository, split, revision, settings)
    except BadInput as problem:
        sys.exit(fail(problem, 2))
    except OSError as problem:  # disk and network
        sys.exit(fail(f"{problem}; the same command goes on after the last whole shard", 1))
    except SystemExit as stopped:
        if stopped.code in (130, 143):
            fail("interrupted; the same command goes on after the last whole shard", stopped.code)
        raise


def fail(message, status):
    """Prints one line; returns the status."""
    line = " ".join(str(message).split())
    print(f"\n{sys.argv[0]}: {line}" if sys.stderr.isatty() else f"{sys.argv[0]}: {line}", file=sys.stderr)
    return status


def make_files(flags, repository, split, revision, settings):
    if not 0 < flags.shard_tokens < 2**31 or flags.limit < 0 or flags.threads < 1:
        raise BadInput("--shard-tokens and --threads are at least 1, --limit at least 0")
    tokenizer = Gpt2Tokenizer(flags.bpe)
    inputs = [path.name for path in flags.source] if flags.source else [f"{repository} {split}"]
    writer = SplitWriter(
        flags.out,
        Settings(inputs=inputs, shard_tokens=flags.shard_tokens, limit=flags.limit, tokenizer=tokenizer.fingerprint,
                 **settings),
    )
    if flags.force:
        writer.remove()
    elif writer.report_path.exists():
        writer.state_path.unlink(missing_ok=True)
        print(f"{writer.report_path} is there: {flags.out} is finished (--force makes it again)")
        return
    writer.report_path.parent.mkdir(parents=True, exist_ok=True)
    source = LocalDocuments(flags.source) if flags.source else HubDocuments(repository, split, revision)
    if not writer.state_path.exists():
        writer.begin()
    elif (position := writer.restore()) is not None:
        source.go_to(position)
        print(f"goes on after {writer.seen():,} documents", file=sys.stderr)
    run(source, tokenizer, writer, flags.threads)
    counts = ", ".join(
        f"{side}: {writer.documents[side]:,} documents, {shards.tokens:,} tokens in {shards.written} shards"
        for side, shards in writer.shards.items() if shards.tokens
    )
    print(("\n" if sys.stderr.isatty() else "") + f"{flags.out}: {counts}")
