"""OpenWebText -> token shards for training and validation, as the paper's runs use it.

    pip install -r data/requirements.txt
    python3 data/openwebtext.py                                    shards/openwebtext_train_000000.bin, ... (18 GB)
    python3 data/openwebtext.py --limit 20000 --out shards/little  a part of it, to try

About 9 billion tokens from 8,013,769 documents (Skylion007/openwebtext), each followed by end-of-text; 0.05 % of the
documents are held out. Streams, needs no disk beyond the shards, and goes on where it was interrupted.
"""

import shard_writer

REVISION = "79d93d786212f7344586290adb811d4ae6a1762c"  # 80 Parquet files; an interrupted run must find them unchanged

if __name__ == "__main__":
    parser = shard_writer.parser(__doc__.splitlines()[0], "shards/openwebtext")
    parser.add_argument("--val-fraction", type=float, default=0.0005, help="share of the documents held out")
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    flags = parser.parse_args()
    if not 0 <= flags.val_fraction < 1 or not 0 <= flags.seed < 2**64:
        parser.error("--val-fraction is in [0, 1), --seed in [0, 2^64)")
    shard_writer.make(
        flags, "Skylion007/openwebtext", "train", REVISION, val_fraction=flags.val_fraction, seed=flags.seed
    )
