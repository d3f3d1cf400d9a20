"""The first documents of a data set on the Hugging Face hub, as text: one JSON object a line, under the key "text".

    pip install -r data/requirements.txt
    python3 scripts/fetch_text.py openwebtext 1000 runs/texts/openwebtext.jsonl       (or tinystories)

For the small runs that train on bytes (scripts/find_text.sh); data/openwebtext.py makes GPT-2's token shards of the same
data set. FILE appears when it is complete. Exit status: 0 done, 1 network or disk, 2 bad use, 130 and 143 interrupted.
"""

import itertools
import json
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "data"))
import openwebtext
import shard_writer

# Name -> repository, revision.
SETS = {"openwebtext": ("Skylion007/openwebtext", openwebtext.REVISION), "tinystories": ("roneneldan/TinyStories", None)}


def fetch(repository, revision, documents, path):
    texts = list(itertools.islice(shard_writer.HubDocuments(repository, "train", revision), documents))
    if len(texts) < documents:
        raise ConnectionError(f"{repository} ended after {len(texts)} documents")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    shard_writer.write_atomically(path, lambda file: file.write(lines.encode()))


def main(arguments):
    if len(arguments) != 3 or arguments[0] not in SETS or not arguments[1].isdecimal() or int(arguments[1]) < 1:
        return shard_writer.fail(f"usage: scripts/fetch_text.py {'|'.join(SETS)} DOCUMENTS FILE", 2)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        fetch(*SETS[arguments[0]], int(arguments[1]), pathlib.Path(arguments[2]))
    except shard_writer.BadInput as problem:
        return shard_writer.fail(problem, 2)
    except OSError as problem:  # disk and network
        return shard_writer.fail(f"{problem}; try again, or name a text of your own by TEXT=FILE", 1)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
