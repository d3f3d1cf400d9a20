"""What transformers' Llama makes of a text: its loss, and sigma at the input of every norm, position 0 beside the rest.

    build/interop-venv/bin/python test/interop/sigma_in_transformers.py FOLDER TEXT.jsonl.gz [--sequences 128]

To hold `eval` and `analyze norms` against, by hand, and to see a model before anything is done to it. Documents
(JSON lines, key "text", plain or .gz) follow one another, each ended by <|endoftext|> (the model's end of sequence
where its vocabulary has none); of their sequences of T + 1 tokens, each beginning with the last token of the one
before, as many as --sequences says are taken, evenly spread (--first: the first). sigma is the root of a position's mean square,
epsilon included. Prints a Markdown table: per site sigma's mean at position 0, its mean, median and largest value at
the others, how many of these are above ten medians, and position 0's mean over the median.
"""

import argparse
import gzip
import json
import math
import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from transformers import AutoTokenizer, LlamaForCausalLM


def read_tokens(path, tokenizer):
    """The tokens of all documents, as one tensor."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    end = tokenizer.eos_token_id if end is None else end
    tokens = []
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        for line in file:
            tokens += [*tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids, end]
    return torch.tensor(tokens)


def choose_sequences(tokens, seq, count, spread):
    """(count, seq + 1) tokens: the first of those that there are, or some evenly spread over them."""
    there = (len(tokens) - 1) // seq
    count = min(count, there)
    first = torch.arange(count) * (there if spread else count) // count * seq
    return tokens[first[:, None] + torch.arange(seq + 1)]


class Sigmas:
    """Collects sigma at the input of every norm of a model: name -> list of (B, T)."""

    def __init__(self, model):
        self.found = {}
        for layer, block in enumerate(model.model.layers):
            self.watch(f"layers.{layer}.input_layernorm", block.input_layernorm)
            self.watch(f"layers.{layer}.post_attention_layernorm", block.post_attention_layernorm)
        self.watch("norm", model.model.norm)

    def watch(self, name, norm):
        values = self.found[name] = []

        def note(_, inputs):
            mean_square = inputs[0].double().square().mean(-1)
            values.append((mean_square + norm.variance_epsilon).sqrt())

        norm.register_forward_pre_hook(note)

    def rows(self):
        for name, values in self.found.items():
            sigma = torch.cat(values)
            first, rest = sigma[:, 0].mean().item(), sigma[:, 1:]
            median = rest.median().item()
            long = (rest > 10 * median).sum().item()
            yield name, first, rest.mean().item(), median, rest.max().item(), long, first / median


def measure(model, sequences, batch):
    """Cross-entropy of every prediction, (N, T)."""
    losses = []
    with torch.no_grad():
        for part in sequences.split(batch):
            logits = model(part[:, :-1]).logits.transpose(1, 2)
            losses.append(torch.nn.functional.cross_entropy(logits, part[:, 1:], reduction="none"))
    return torch.cat(losses)


def main():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("folder")
    flags.add_argument("text")
    flags.add_argument("--seq", type=int, default=256)
    flags.add_argument("--sequences", type=int, default=128)
    flags.add_argument("--first", action="store_true")
    flags.add_argument("--batch", type=int, default=8)
    flags = flags.parse_args()
    model = LlamaForCausalLM.from_pretrained(flags.folder, dtype=torch.float32).eval()
    tokens = read_tokens(flags.text, AutoTokenizer.from_pretrained(flags.folder))
    sequences = choose_sequences(tokens, flags.seq, flags.sequences, not flags.first)
    sigmas = Sigmas(model)
    losses = measure(model, sequences, flags.batch)
    interval = 1.96 * losses.mean(1).std().item() / math.sqrt(len(losses))
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; {len(tokens):,} tokens of text")
    print(f"loss {losses.mean():.4f} +- {interval:.4f} (95 %, by sequence), {len(losses)} sequences of {flags.seq}\n")
    print("| site | position 0 | others: mean | median | largest | above 10 medians | position 0 / median |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in sigmas.rows():
        print("| {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {} | {:.1f} |".format(*row))


if __name__ == "__main__":
    main()
