"""What `analyze --paper` measures, computed a second time: PyTorch in float64, the way round that the paper's code takes.

    F=test/fixtures/analysis; python3 test/oracle/analysis/paper_oracle.py --fixtures $F --out $F/expected_paper.json

The authors load every model into TransformerLens, which rewrites its weights: norms folded into what reads them, all that
writes to the stream centred over channels, the unembedding centred over tokens, value biases moved into the output's. So
does this file, and then runs the rewritten model, a few lines of its own; nothing is corrected afterwards, as the engine
does. That both are one model is checked against transformers' logits. README.md names the file of their repository that
each choice is from. Needs what analysis_oracle.py needs.

expected_paper.json: {seq, sequences, dla, sinks, confidence, patching}, each with "models" in the order original, lnfree.
"""
import argparse
import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from analysis_oracle import entropies, losses, sample

torch.set_num_threads(1)
SINK, SEQUENCES_PER_BATCH = 0.3, 8
END_OF_TEXT = 256  # the byte tokenizer's


# ---- a model with its weights rewritten -------------------------------------------------------------------------------


def centred(rows):
    return rows - rows.mean(-1, keepdim=True)


class Rewritten:
    """Weights map rows: x @ W. Without LayerNorm (epsilon 1e12 in Hugging Face's form) a norm is a factor, folded too."""

    def __init__(self, folder):
        self.name = folder.name
        self.hf = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).double().eval()
        for parameter in self.hf.parameters():
            parameter.requires_grad_(False)
        self.heads, self.epsilon = self.hf.config.n_head, self.hf.config.layer_norm_epsilon
        self.linear = self.epsilon > 1
        gpt2 = self.hf.transformer
        self.embedding, self.positions = centred(gpt2.wte.weight), centred(gpt2.wpe.weight)
        self.blocks = [self.rewrite(block) for block in gpt2.h]
        weight, bias = self.fold(gpt2.ln_f, self.hf.lm_head.weight.T, 0)
        self.unembedding = centred(weight)  # (C, V)
        self.bias = bias - bias.mean()

    def fold(self, norm, weight, bias):
        """What reads a norm: its beta into the bias, its gamma into the weight, whose columns are then centred."""
        gamma = norm.weight / math.sqrt(self.epsilon) if self.linear else norm.weight
        folded = gamma[:, None] * weight
        return folded - folded.mean(0), bias + norm.bias @ weight

    def rewrite(self, block):
        width = block.ln_1.weight.numel()
        qkv, qkv_bias = self.fold(block.ln_1, block.attn.c_attn.weight, block.attn.c_attn.bias)
        fc, fc_bias = self.fold(block.ln_2, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        out = centred(block.attn.c_proj.weight)
        out_bias = centred(block.attn.c_proj.bias) + qkv_bias[2 * width:] @ out
        qkv_bias = torch.cat([qkv_bias[:2 * width], torch.zeros(width, dtype=qkv_bias.dtype)])
        return {"qkv": qkv, "qkv_bias": qkv_bias, "out": out, "out_bias": out_bias, "fc": fc, "fc_bias": fc_bias,
                "w_out": centred(block.mlp.c_proj.weight), "b_out": centred(block.mlp.c_proj.bias)}

    def normed(self, x):
        return x if self.linear else centred(x) / (x.var(-1, unbiased=False, keepdim=True) + self.epsilon).sqrt()

    def attention(self, w, x):
        """Patterns (N, H, T, T) and what every head writes (N, H, T, C)."""
        N, T, C = x.shape
        q, k, v = ((self.normed(x) @ w["qkv"] + w["qkv_bias"]).view(N, T, 3, self.heads, C // self.heads)
                   .permute(2, 0, 3, 1, 4))
        scores = q @ k.mT / math.sqrt(C // self.heads)
        pattern = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        return pattern, pattern @ v @ w["out"].view(self.heads, C // self.heads, C)

    def run(self, tokens, change={}):
        """change[l]: what becomes of the stream in front of block l."""
        seen = {"stream": [], "pattern": [], "head": [], "activation": []}
        x = self.embedding[tokens] + self.positions[:tokens.shape[1]]
        for l, w in enumerate(self.blocks):
            x = change.get(l, lambda stream: stream)(x)
            seen["stream"].append(x)
            pattern, head = self.attention(w, x)
            x = x + head.sum(1) + w["out_bias"]
            activation = torch.nn.functional.gelu(self.normed(x) @ w["fc"] + w["fc_bias"], approximate="tanh")
            if l + 1 == len(self.blocks):
                seen["before_mlp"] = x
            x = x + activation @ w["w_out"] + w["b_out"]
            for key, value in (("pattern", pattern), ("head", head), ("activation", activation)):
                seen[key].append(value)
        seen["stream"].append(x)
        seen["logits"] = self.read(x)
        return seen

    def read(self, x):
        return self.normed(x) @ self.unembedding + self.bias


# ---- measurements -----------------------------------------------------------------------------------------------------


def attribution(model, seen, tokens, targets):
    """At the last position: every head's term of the logit, and what the logit loses without it."""
    r = seen["stream"][-1][:, -1]  # (N, C)
    heads = torch.stack([head[:, :, -1] for head in seen["head"]])  # (L, N, H, C)
    sigma = 1 if model.linear else (r.var(-1, unbiased=False) + model.epsilon).sqrt()[:, None, None]

    def errors(target):
        u = model.unembedding[:, target].T[:, None]  # (N, 1, C)
        linear = (heads / sigma * u).sum(-1)  # all that writes is centred already
        effect = (model.normed(r)[:, None] * u).sum(-1) - (model.normed(r[:, None] - heads) * u).sum(-1)
        off = (linear - effect).abs()
        return {"nmae": (100 * off.sum() / effect.abs().sum()).item(),
                "nmae_head": (100 * off.sum(1) / effect.abs().sum(1)).tolist()}

    return {"model": model.name, **errors(targets[:, -1]), "token_read": errors(tokens[:, -1])}


def sinks(model, seen):
    """Share of (query, head) pairs, all queries, by layer and sequence."""
    rates = torch.stack([(p[..., 0] > SINK).double().mean((1, 2)) for p in seen["pattern"]])  # (L, N)
    batches = [batch.mean().item() for batch in rates.mean(0).split(SEQUENCES_PER_BATCH)]
    return {"model": model.name, "rate_pairs": rates.mean().item(), "per_layer_pairs": rates.mean(1).tolist(),
            "rate_pairs_interval": np.percentile(batches, [2.5, 97.5]).tolist()}


def neurons(model):
    written, u = model.blocks[-1]["w_out"], model.unembedding
    norm = written.norm(dim=1)
    variance = (written / norm[:, None] @ (u / u.norm(dim=0))).var(1)  # over V - 1
    score = norm / variance
    return norm, variance, score, score.argsort(descending=True)[:3].tolist()


def confidence(model, seen, targets, ablated):
    """Last MLP and what follows once more, with neurons at their mean over all predictions."""
    norm, variance, score, top = neurons(model)
    last, activation = model.blocks[-1], seen["activation"][-1]
    left, singular, _ = torch.linalg.svd(model.unembedding, full_matrices=False)
    first = last["w_out"][top[0]]
    loss, entropy = losses(seen["logits"], targets), entropies(seen["logits"])

    def without(chosen):
        changed = activation.clone()
        changed[..., chosen] = activation.mean((0, 1))[chosen]
        logits = model.read(seen["before_mlp"] + changed @ last["w_out"] + last["b_out"])
        d_loss, d_entropy = losses(logits, targets) - loss, entropies(logits) - entropy
        quartiles = lambda d: np.percentile(d.abs().numpy(), [25, 50, 75]).tolist()
        return {"neurons": chosen, "loss_change_relative": (d_loss.mean() / loss.mean()).item(),
                "entropy_change_relative": (d_entropy.mean() / entropy.mean()).item(),
                "loss_change_abs_quartiles": quartiles(d_loss), "entropy_change_abs_quartiles": quartiles(d_entropy)}

    return {"model": model.name, "norm": norm.tolist(), "logit_var": variance.tolist(), "cn": score.tolist(), "top": top,
            "singular_values": (singular / singular[0]).tolist(),
            "cosines": (left.T @ first / first.norm()).abs().tolist(),
            "ablations": [without(chosen) for chosen in
                          (ablated[:1], ablated[1:2], ablated[2:3], ablated[:2], ablated[:3])]}


def patch(model, content):
    """(L, T, prompts) of activation and attribution, over each prompt's own difference; f of all."""
    clean = torch.tensor([[END_OF_TEXT, *prompt.encode()] for prompt in content["prompts"]])
    corrupted = clean[[i ^ 1 for i in range(len(clean))]]
    rows = torch.arange(len(clean))
    right, wrong = (torch.tensor([pair[k].encode()[0] for pair in content["answers"]]) for k in (0, 1))
    f = lambda seen: seen["logits"][rows, -1, right] - seen["logits"][rows, -1, wrong]
    seen_clean, activation, attribution = model.run(clean), [], []
    f_clean, f_corrupted = f(seen_clean), f(model.run(corrupted))
    scale = f_clean - f_corrupted
    for l, target in enumerate(seen_clean["stream"][:-1]):
        kept = {}

        def keep(x):
            kept["x"] = x.detach().requires_grad_()
            return kept["x"]

        def put(t):
            def change(x):
                x = x.clone()
                x[:, t] = target[:, t]
                return x
            return change

        with torch.enable_grad():
            gradient, = torch.autograd.grad(f(model.run(corrupted, {l: keep})).sum(), kept["x"])
        attribution.append(((gradient * (target - kept["x"].detach())).sum(-1) / scale[:, None]).T)
        activation.append(torch.stack([(f(model.run(corrupted, {l: put(t)})) - f_corrupted) / scale
                                       for t in range(clean.shape[1])]))
    return torch.stack(activation), torch.stack(attribution), f_clean, f_corrupted


def patching(model, sets):
    entries, by_length, errors, solved = [], {}, [], []
    for name, content in sets.items():
        act, attr, f_clean, f_corrupted = patch(model, content)
        entries.append({"name": name, "clean": f_clean.tolist(), "corrupted": f_corrupted.tolist(),
                        "activation": act.mean(-1).tolist(), "attribution": attr.mean(-1).tolist()})
        by_length.setdefault(act.shape[1], []).append((act, attr))
        errors.append((attr - act).abs().sum(1))
        solved += (f_clean > 0).tolist()
    most = max(by_length.values(), key=lambda sets_of_length: sum(act.shape[-1] for act, _ in sets_of_length))
    act, attr = (torch.cat([pair[k] for pair in most], dim=-1).mean(-1) for k in (0, 1))
    return {"model": model.name, "sets": entries, "error": torch.cat(errors, dim=-1).mean(-1).tolist(),
            "error_of_means": (attr - act).abs().sum(1).tolist(), "accuracy": float(np.mean(solved))}


# ---- all of it --------------------------------------------------------------------------------------------------------


def check(model, seen, tokens):
    """The rewritten model predicts as the one it was made from, and its final stream is the sum of its parts."""
    whole = model.hf(tokens, use_cache=False).logits
    torch.testing.assert_close(seen["logits"], whole - whole.mean(-1, keepdim=True), rtol=0, atol=1e-6)
    nearest = min((p[:, :, 1:, 0] - SINK).abs().min().item() for p in seen["pattern"])
    print(f"{model.name}: nearest pair to the sink threshold {nearest:.1e}")


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, required=True, help="folder that make_fixtures.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="expected_paper.json")
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--seq", type=int, default=31)
    args = parser.parse_args()

    models = [Rewritten(args.fixtures / name) for name in ("original", "lnfree")]
    tokens, targets, _ = sample(args.fixtures / "text_val_000000.bin", args.seq, args.sequences)
    sets = json.loads((args.fixtures / "prompts.json").read_text())
    both = [(model, model.run(tokens)) for model in models]
    for model, seen in both:
        check(model, seen, tokens)
    ablated = neurons(models[0])[-1]
    result = {"seq": args.seq, "sequences": args.sequences,
              "dla": {"models": [attribution(m, s, tokens, targets) for m, s in both]},
              "sinks": {"models": [sinks(m, s) for m, s in both]},
              "confidence": {"models": [confidence(m, s, targets, ablated) for m, s in both]},
              "patching": {"models": [patching(m, sets) for m in models]}}
    text = json.dumps(result, indent=1, allow_nan=False)
    text = re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda m: "[" + re.sub(r",\s+", ", ", m[1]) + "]", text)
    assert json.loads(text) == result
    args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
