#!/usr/bin/env python3
"""Seconds of the same training step in PyTorch, for the column beside `train_gpt2_lnfree bench`.

    pip install torch transformers
    python3 dev/bench/pytorch_step.py [--size small] [--batch 4] [--seq 64] [--threads 2] [--steps 5] [--json]

A step is what `bench` times: forward, cross-entropy, backward, clipping by the gradient's norm, AdamW, in fp32, on
random weights and tokens, dropout off. Prints the first step, the median of the others, and the process's peak memory.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = {  # layers, heads, width, positions, vocabulary
    "tiny": (4, 4, 128, 128, 257),
    "small": (12, 12, 768, 1024, 50257),
    "medium": (24, 16, 1024, 1024, 50257),
    "large": (36, 20, 1280, 1024, 50257),
    "xl": (48, 25, 1600, 1024, 50257),
}


def make_model(size):
    layers, heads, width, positions, vocabulary = SIZES[size]
    config = GPT2Config(
        n_layer=layers, n_head=heads, n_embd=width, n_positions=positions, vocab_size=vocabulary,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
    )
    return GPT2LMHeadModel(config).train()


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--size", choices=SIZES, default="small")
    flags.add_argument("--batch", type=int, default=4)
    flags.add_argument("--seq", type=int, default=64)
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags.add_argument("--steps", type=int, default=5)
    flags.add_argument("--json", action="store_true")
    flags = flags.parse_args()

    torch.set_num_threads(flags.threads)
    torch.manual_seed(1)
    model = make_model(flags.size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    tokens = torch.randint(0, SIZES[flags.size][4], (flags.batch, flags.seq + 1))

    def step():
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    def seconds_of(run):
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    first = seconds_of(step)
    median = statistics.median(seconds_of(step) for _ in range(flags.steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"version": torch.__version__, "size": flags.size, "batch": flags.batch, "seq": flags.seq,
              "threads": flags.threads, "first_seconds": first, "seconds": median,
              "tokens_per_s": flags.batch * flags.seq / median, "peak_bytes": peak}
    if flags.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"PyTorch {torch.__version__}, {flags.size}, B = {flags.batch}, T = {flags.seq}, {flags.threads} threads: "
              f"first step {first:.3f} s, median {median:.3f} s, {peak / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
