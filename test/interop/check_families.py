#!/usr/bin/env python3
"""Holds folders of GPT-NeoX (Pythia) and Llama (SmolLM2) against transformers: in, out and without norms.

    build/interop-venv/bin/python test/interop/check_families.py ENGINE [FOLDER ...]

Needs torch, transformers and safetensors alone. FOLDER: models to be compared as they are, with those made here. check.py
runs this as a part of `make test-interop`.
"""

import dataclasses
import pathlib
import sys
import tempfile

import torch
import transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import check
import stock_folders
from check import POSITIONS, require, same_logits
from stock_folders import Stock


def neox(name, hidden, heads, layers, inner, vocab, more=None, **options):
    shape = dict(
        hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=inner,
        vocab_size=vocab, max_position_embeddings=POSITIONS, **(more or {}))  # fmt: skip
    return Stock(f"GPT-NeoX, {name}", shape, family="gpt_neox", **options)


def llama(name, hidden, heads, key_heads, layers, inner, vocab, more=None, **options):
    shape = dict(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=key_heads, num_hidden_layers=layers,
        intermediate_size=inner, vocab_size=vocab, max_position_embeddings=POSITIONS, **(more or {}))  # fmt: skip
    return Stock(f"Llama, {name}", shape, family="llama", **options)


STOCK_FOLDERS = [
    neox("a quarter turns, parallel, untied", 48, 3, 3, 192, 257),
    neox("half turns, one after the other, tied", 60, 5, 2, 77, 101,
         {"rotary_pct": 0.5, "use_parallel_residual": False, "tie_word_embeddings": True}),
    neox("all turn, base 500, tanh GELU, no attention biases", 56, 7, 2, 100, 1009,
         {"rotary_pct": 1.0, "rotary_emb_base": 500, "hidden_act": "gelu_new", "attention_bias": False}),
    neox("BF16, sharded, 18 of 52 turn", 104, 2, 2, 416, 307, {"rotary_pct": 0.36}, dtype=torch.bfloat16,
         shard_size="150KB"),
    neox("F16, one head, epsilon 0.01, no prefix", 34, 1, 1, 35, 61,
         {"layer_norm_eps": 0.01, "tie_word_embeddings": True}, dtype=torch.float16, prefix=False),
    llama("a head of keys for each of queries, untied", 48, 6, 6, 2, 131, 257),
    llama("one head of keys, tied", 60, 6, 1, 3, 77, 101, {"tie_word_embeddings": True}),
    llama("two heads of keys, base 100,000", 72, 6, 2, 2, 200, 1009, {"rope_theta": 100000.0, "rms_norm_eps": 1e-5}),
    llama("heads of 10, wider than the stream", 36, 6, 3, 2, 55, 211, {"head_dim": 10}),
    llama("biases everywhere, heads of 4", 40, 5, 5, 2, 33, 97,
          {"attention_bias": True, "mlp_bias": True, "head_dim": 4, "tie_word_embeddings": True}),
    llama("BF16, sharded", 64, 8, 4, 4, 172, 311, dtype=torch.bfloat16, shard_size="60KB"),
    llama("F16, no prefix", 64, 4, 2, 1, 97, 61, {"tie_word_embeddings": True}, dtype=torch.float16, prefix=False),
]  # fmt: skip
PUBLISHED = [
    neox("LayerNorm-free", 48, 3, 2, 192, 257, layernorm_free=True),
    llama("RMSNorm-free", 48, 6, 2, 2, 131, 257, layernorm_free=True),
]


def close_logits(ours, theirs):
    """As same_logits, of logits beyond 10 to 1e-5 of the largest: float32's own error grows with them."""
    return same_logits(ours, theirs, check.EXACT * max(1, theirs.abs().max().item() / 10))


def check_folder(engine, folder):
    """A folder as it is."""
    tokens = check.random_tokens(engine.run("info", "--model", folder)["vocab_size"], 1)
    return close_logits(engine.evaluate(folder, tokens)[1], stock_folders.logits(folder, tokens[:-1]))


def check_forms(engine, stock, number):
    """All norms taken out in a few steps: from_pretrained loads the hf form, and the folded one computes the same.

    Embeddings are long, for gated neurons square whatever stands out where no norm holds it back.
    """
    work = engine.work
    folder, made = work / f"long_{number}", work / f"removed_{number}"
    stock_folders.write(dataclasses.replace(stock, embedding=2), folder, number)
    tokens = check.random_tokens(stock.shape["vocab_size"], 4)
    shard = work / "tokens.bin"
    engine.evaluate(folder, tokens)  # leaves the shard
    brief = ("--steps", 24, "--batch", 2, "--seq", 64, "--grad-accum", 1, "--val-tokens", 256, "--lr", 1e-6)
    engine.run("remove", "--model", folder, "--data", shard, "--val", shard, *brief, "--out", made)
    result, ours = engine.evaluate(made, tokens)
    require(result["layernorm_free"], "is not free of norms")
    told = close_logits(ours, stock_folders.logits(made, tokens[:-1]))
    folded = work / f"folded_{number}"
    engine.run("export", "--model", made, "--form", "folded", "--out", folded)
    close_logits(engine.evaluate(folded, tokens)[1], ours)
    return told


def check_families(checks, engine, folders=()):
    work = engine.work
    for number, stock in enumerate(STOCK_FOLDERS):
        folder = work / f"family_{number}"
        checks.run(f"in:  {stock.name}", check.check_stock_folder, engine, folder, stock, number)
        checks.run(f"out: {stock.name}", check.check_round_trip, engine, folder, stock)
        checks.run(f"without norms: {stock.name}", check_forms, engine, stock, number)
    for number, stock in enumerate(PUBLISHED):
        folder = work / f"family_published_{number}"
        checks.run(f"in:  {stock.name}", check.check_stock_folder, engine, folder, stock, number)
    for folder in folders:
        checks.run(f"in:  {folder}", check_folder, engine, folder)


def main():
    if len(sys.argv) < 2:
        print(f"usage: {sys.argv[0]} ENGINE [FOLDER ...]", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    checks = check.Checks()
    with tempfile.TemporaryDirectory() as work:
        check_families(checks, check.Engine(sys.argv[1], pathlib.Path(work)), sys.argv[2:])
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
