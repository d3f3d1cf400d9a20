"""The Pile -> token shards for evaluation: 10,000 sequences of 1024 tokens, as in the paper's table 1.

    pip install -r data/requirements.txt
    python3 data/pile.py                                           shards/pile_val_000000.bin (20 MB)
    python3 data/pile.py --sequences 1000000 --out shards/pile_1m  for data/pile_filtered.py (2 GB)

The first documents of monology/pile-uncopyrighted, each followed by end-of-text, up to --sequences times --seq tokens
and one more, the last one's target. All of it is validation data.
"""

import shard_writer

if __name__ == "__main__":
    parser = shard_writer.parser(__doc__.splitlines()[0], "shards/pile")
    parser.add_argument("--sequences", type=int, default=10_000, metavar="N", help="how many")
    parser.add_argument("--seq", type=int, default=1024, metavar="T", help="tokens in each")
    parser.add_argument("--split", default="train", help="of the data set: train, validation or test")
    flags = parser.parse_args()
    if flags.sequences < 1 or flags.seq < 1:
        parser.error("--sequences and --seq are at least 1")
    shard_writer.make(
        flags,
        "monology/pile-uncopyrighted",
        flags.split,
        val_fraction=1.0,
        most_tokens=flags.sequences * flags.seq + 1,
    )
