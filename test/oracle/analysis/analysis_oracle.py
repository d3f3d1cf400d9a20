"""A second, independent computation of what `analyze` measures: transformers' GPT-2 with hooks, in float64.

    cd test/fixtures && python3 ../oracle/analysis/analysis_oracle.py --fixtures analysis --out analysis/expected.json

Written from the paper (arXiv 2507.02559, Sec. 5, App. E-H; the numbers of equations are its) and the description of
the measurements, not from the engine. Needs torch, numpy, safetensors and transformers. --compare-float32 also does
everything in float32 and prints how far that lies off: what a float32 engine may differ by.

expected.json: {seq, sequences, window_numbers, loss, dla, norms, sinks, confidence, patching}, each measurement with
"models" in the order original, lnfree. Bootstrap intervals are left out. All numbers have float64's full precision.
"""
import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

torch.set_num_threads(1)
SITE_EPSILON = 1e-5  # GPT-2's own, for the standard deviation of a site's input whether it is removed or not
SINK = 0.3
HEADER_INTS, MAGIC = 256, 20240520


# ---- data and models -------------------------------------------------------------------------------------------------


def sample(shard, seq, sequences):
    """Windows floor(i*W/N) of T tokens, (N, T), with their targets (N, T) and numbers."""
    header = np.fromfile(shard, dtype="<i4", count=HEADER_INTS)
    assert header[0] == MAGIC and header[1] == 1
    tokens = np.fromfile(shard, dtype="<u2", offset=4 * HEADER_INTS).astype(np.int64)
    assert len(tokens) == header[2]
    windows = (len(tokens) - 1) // seq
    numbers = [i * windows // sequences for i in range(sequences)]
    cut = np.stack([tokens[w * seq:w * seq + seq + 1] for w in numbers])
    return torch.from_numpy(cut[:, :-1]), torch.from_numpy(cut[:, 1:]), numbers


class Model:
    def __init__(self, folder, dtype):
        self.name = folder.name
        self.sites = json.loads((folder / "lnfree.json").read_text())["sites"]
        self.gpt2 = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
        self.gpt2 = self.gpt2.to(dtype).eval()
        self.blocks = self.gpt2.transformer.h
        self.ln_f = self.gpt2.transformer.ln_f
        self.unembedding = self.gpt2.lm_head.weight  # (V, C)
        self.layers, self.heads = len(self.blocks), self.gpt2.config.n_head

    def run(self, tokens):
        """One forward pass. residual[l] (B, T, C): in front of block l, and of ln_f for l = L; middle[l]: in front of
        ln_2; attention[l] (B, H, T, T); mixed[l] (B, T, C): heads side by side, in front of the attention's c_proj;
        activation[l]: after GELU; mlp[l]: output with bias; logits (B, T, V)."""
        seen = {key: [None] * self.layers for key in ("middle", "attention", "mixed", "activation", "mlp")}
        seen["residual"] = [None] * (self.layers + 1)

        def keep_input(key, l):
            return lambda module, inputs: seen[key].__setitem__(l, inputs[0])

        def keep_output(key, l, pick=lambda output: output):
            return lambda module, inputs, output: seen[key].__setitem__(l, pick(output))

        hooks = [self.ln_f.register_forward_pre_hook(keep_input("residual", self.layers))]
        for l, block in enumerate(self.blocks):
            hooks += [block.register_forward_pre_hook(keep_input("residual", l)),
                      block.ln_2.register_forward_pre_hook(keep_input("middle", l)),
                      block.attn.c_proj.register_forward_pre_hook(keep_input("mixed", l)),
                      block.attn.register_forward_hook(keep_output("attention", l, lambda output: output[1])),
                      block.mlp.c_proj.register_forward_pre_hook(keep_input("activation", l)),
                      block.mlp.register_forward_hook(keep_output("mlp", l))]
        seen["logits"] = self.gpt2(tokens, use_cache=False).logits
        for hook in hooks:
            hook.remove()
        return seen

    def logits_with(self, module, change, tokens):
        """Logits when the first input of `module` is replaced by change(input)."""
        hook = module.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]),) + inputs[1:])
        logits = self.gpt2(tokens, use_cache=False).logits
        hook.remove()
        return logits


def losses(logits, targets):
    """Cross-entropy of every prediction, nats, (N, T)."""
    return -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def entropies(logits):
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


# ---- measurements ----------------------------------------------------------------------------------------------------


def calibration_error(logits, targets, bins=10):
    """Expected calibration error: bins (0, .1], (.1, .2], ... of the top-1 probability."""
    confidence, guess = logits.softmax(-1).max(-1)
    correct = (guess == targets).to(confidence.dtype)
    which = (torch.ceil(confidence * bins).long() - 1).clamp(max=bins - 1)  # rounding can take a probability above 1
    gaps = [(correct[which == b].sum() - confidence[which == b].sum()).abs() / which.numel() for b in range(bins)]
    return sum(gaps).item()


def loss_statistics(model, seen, targets):
    """Tab. 1, footnotes 3 and 4, App. E (tokens with loss > 50)."""
    logits = seen["logits"]
    loss = losses(logits, targets)
    flat = loss.double().numpy().ravel()
    quantiles = lambda *percent: [float(q) for q in np.percentile(flat, percent)]
    return {"model": model.name, "loss": loss.mean().item(), "median": quantiles(50)[0],
            "range_50": quantiles(25, 75), "range_95": quantiles(2.5, 97.5), "range_99_9": quantiles(0.05, 99.95),
            "per_position": loss.mean(0).tolist(), "entropy": entropies(logits).mean().item(),
            "ece": calibration_error(logits, targets),
            "over_50": [{"loss": loss[i, t].item(), "position": t} for i, t in (loss > 50).nonzero().tolist()],
            "final_norm": seen["residual"][-1].norm(dim=-1).mean().item()}


def jensen_shannon(logits_p, logits_q):
    """Mean over predictions of KL(p||m)/2 + KL(q||m)/2 with m = (p+q)/2, nats."""
    p, q = logits_p.softmax(-1), logits_q.softmax(-1)
    m = (p + q) / 2
    kl = lambda a: torch.special.xlogy(a, a / m).sum(-1)
    return ((kl(p) + kl(q)) / 2).mean().item()


def components(model, seen, tokens):
    """What the final residual stream is the sum of, but for the attention's output biases: {name: (N, T, C)}."""
    size = seen["mixed"][0].shape[-1] // model.heads
    wte, wpe = model.gpt2.transformer.wte.weight, model.gpt2.transformer.wpe.weight
    parts = {"embedding": wte[tokens] + wpe[:tokens.shape[1]]}
    for l, block in enumerate(model.blocks):
        for h in range(model.heads):
            rows = slice(h * size, (h + 1) * size)
            parts["head", l, h] = seen["mixed"][l][..., rows] @ block.attn.c_proj.weight[rows]
        parts["mlp", l] = seen["mlp"][l]
    return parts


def direct_effect(model, residual, part, targets):
    """Eq. 4, for the target's logit: the final norm's sigma is that of r - c in the second term."""
    difference = model.ln_f(residual) - model.ln_f(residual - part)
    return (difference * model.unembedding[targets]).sum(-1)


def direct_logit_attribution(model, residual, part, targets):
    """Eq. 5: the final norm with the sigma of r; its centring acts on c, its beta belongs to no component."""
    sigma = (residual.var(-1, unbiased=False, keepdim=True) + model.ln_f.eps).sqrt()
    normed = (part - part.mean(-1, keepdim=True)) / sigma * model.ln_f.weight
    return (normed * model.unembedding[targets]).sum(-1)


def attribution(model, seen, tokens, targets):
    """Eq. 9 for every component, eq. 10 over the heads."""
    residual = seen["residual"][-1]
    nmae, rounding = {}, {}
    for name, part in components(model, seen, tokens).items():
        effect = direct_effect(model, residual, part, targets)
        error = (direct_logit_attribution(model, residual, part, targets) - effect).abs()
        nmae[name] = (100 * error.sum() / effect.abs().sum()).item()
        rounding[name] = (error.max() / effect.abs().mean()).item()
    heads = [[nmae["head", l, h] for h in range(model.heads)] for l in range(model.layers)]
    return {"model": model.name, "nmae": float(np.mean(heads)), "nmae_head": heads,
            "nmae_mlp": [nmae["mlp", l] for l in range(model.layers)], "nmae_embedding": nmae["embedding"],
            "rounding": max(value for name, value in rounding.items() if name[0] == "head")}


def norms(model, seen):
    """Fig. 3, Sec. 5.3; and sigma at the input of every site, qk[l] and v[l] both reading ln_1's."""
    split = lambda values: {"at_0": values[:, 0].mean().item(), "elsewhere": values[:, 1:].mean().item()}

    def site_input(site):
        if site == "f":
            return seen["residual"][-1]
        kind, l = re.fullmatch(r"(\w+)\[(\d+)\]", site).groups()
        return seen["middle" if kind == "mlp" else "residual"][int(l)]

    sites = []
    for site in model.sites:
        sigma = (site_input(site["site"]).var(-1, unbiased=False) + SITE_EPSILON).sqrt()
        sites.append({"site": site["site"], "removed": site["norm"] != "layernorm", "sigma_bar": site["sigma_bar"],
                      **split(sigma)})
    return {"model": model.name, "residual": [split(r.norm(dim=-1)) for r in seen["residual"]], "sites": sites}


def sinks(model, seen):
    """Sec. 5.3: attention of the queries t >= 1 to position 0, by head and by (head, query)."""
    to_first = torch.stack([a[:, :, 1:, 0] for a in seen["attention"]])  # (L, N, H, T-1)
    heads = (to_first.mean(-1) >= SINK).double()
    pairs = (to_first >= SINK).double()
    return {"model": model.name, "rate_heads": heads.mean().item(), "per_layer_heads": heads.mean((1, 2)).tolist(),
            "rate_pairs": pairs.mean().item(), "per_layer_pairs": pairs.mean((1, 2, 3)).tolist()}


def confidence(model, seen, tokens, targets):
    """App. H: eq. 11 and 12, the unembedding's singular vectors (Fig. 7), mean ablation (Fig. 4, 8, 9)."""
    unembedding = model.unembedding.detach().numpy()
    written = model.blocks[-1].mlp.c_proj.weight.detach().numpy()  # (4C, C): row i is w_out of neuron i
    norm = np.linalg.norm(written, axis=1)
    cosines = (unembedding @ written.T) / np.linalg.norm(unembedding, axis=1)[:, None] / norm  # (V, 4C)
    logit_var = cosines.var(axis=0)
    cn = norm / logit_var
    top = [int(i) for i in np.argsort(-cn, kind="stable")[:3]]
    _, singular, right = np.linalg.svd(unembedding, full_matrices=False)  # rows of `right` are unit vectors

    loss, entropy = losses(seen["logits"], targets), entropies(seen["logits"])
    mean_activation = seen["activation"][-1].mean((0, 1))

    def ablated(neurons):
        def change(activation):
            activation = activation.clone()
            activation[..., neurons] = mean_activation[neurons]
            return activation
        logits = model.logits_with(model.blocks[-1].mlp.c_proj, change, tokens)
        difference = losses(logits, targets) - loss
        return {"neurons": neurons, "loss_change": difference.mean().item(),
                "entropy_change": (entropies(logits) - entropy).mean().item(),
                "loss_change_abs": difference.abs().mean().item()}

    return {"model": model.name, "norm": norm.tolist(), "logit_var": logit_var.tolist(), "cn": cn.tolist(), "top": top,
            "singular_values": (singular / singular[0]).tolist(),
            "cosines": np.abs(right @ written[top[0]] / norm[top[0]]).tolist(),
            "ablations": [ablated(neurons) for neurons in (top[:1], top[1:2], top[2:3], top[:2], top[:3])]}


def patch_set(model, prompts, answers):
    """Eq. 6 and 7 on one set of prompts; prompt i is corrupted by prompt i^1. All (L, T)."""
    clean = torch.tensor([list(prompt.encode()) for prompt in prompts])  # byte tokenizer: ids are bytes
    corrupted = clean[[i ^ 1 for i in range(len(clean))]]
    right, wrong = (torch.tensor([pair[k].encode()[0] for pair in answers]) for k in (0, 1))
    rows = torch.arange(len(clean))
    f = lambda logits: logits[rows, -1, right] - logits[rows, -1, wrong]

    seen_clean = model.run(clean)
    with torch.enable_grad():
        seen_corrupted = model.run(corrupted)
        f_corrupted = f(seen_corrupted["logits"])
        gradients = torch.autograd.grad(f_corrupted.sum(), seen_corrupted["residual"][:-1])
    f_clean, f_corrupted = f(seen_clean["logits"]), f_corrupted.detach()
    scale = f_clean.mean() - f_corrupted.mean()

    act, attr = [], []
    for l, block in enumerate(model.blocks):
        clean_residual = seen_clean["residual"][l]
        step = clean_residual - seen_corrupted["residual"][l].detach()
        attr.append(((gradients[l] * step).sum(-1).mean(0) / scale).tolist())

        def patched(t):
            def change(residual):
                residual = residual.clone()
                residual[:, t] = clean_residual[:, t]
                return residual
            return f(model.logits_with(block, change, corrupted))

        assert torch.allclose(patched(slice(None)), f_clean, atol=1e-4), "a clean stream must give the clean answer"
        act.append([((patched(t).mean() - f_corrupted.mean()) / scale).item() for t in range(clean.shape[1])])
    return {"ld_clean": f_clean.mean().item(), "ld_corr": f_corrupted.mean().item(), "act": act, "attr": attr}, f_clean


def patching(model, sets):
    result, right_answers = [], []
    for name, content in sets.items():
        numbers, f_clean = patch_set(model, content["prompts"], content["answers"])
        result.append({"name": name, **numbers})
        right_answers += (f_clean > 0).tolist()
    errors = np.mean([np.abs(np.subtract(s["attr"], s["act"])).sum(axis=1) for s in result], axis=0)
    return {"model": model.name, "sets": result, "error": errors.tolist(), "accuracy": float(np.mean(right_answers))}


def improvement(a, b):
    """Sec. 5.2: positive where b's attribution patching is the better one."""
    per_layer = np.subtract(a["error"], b["error"])
    return {"a": a["model"], "b": b["model"], "per_layer": per_layer.tolist(), "mean": float(per_layer.mean()),
            "std": float(per_layer.std())}


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_parts(model, seen, tokens, targets):
    """The hooks see what they should: attention is causal and sums to one, the components and output biases add up to
    the final residual stream, and so do their attributions to the target's logit."""
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=1e-8 if a.dtype == torch.float64 else 1e-3)
    for attention in seen["attention"]:
        assert (attention.triu(1) == 0).all()
        close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    parts = components(model, seen, tokens)
    for l, block in enumerate(model.blocks):
        parts["bias", l] = block.attn.c_proj.bias.expand_as(parts["embedding"])
    residual = seen["residual"][-1]
    close(sum(parts.values()), residual)
    beta = (model.ln_f.bias * model.unembedding[targets]).sum(-1)
    attributed = sum(direct_logit_attribution(model, residual, part, targets) for part in parts.values())
    close(attributed + beta, seen["logits"].gather(-1, targets[..., None])[..., 0])


def margins(models, seen, targets):
    """How near the sample comes to places where a number jumps: below 1e-4, rounding could decide."""
    for model, s in zip(models, seen):
        to_first = torch.stack([a[:, :, 1:, 0] for a in s["attention"]])
        best = s["logits"].softmax(-1).topk(2, dim=-1).values
        edges = torch.arange(1, 10, dtype=best.dtype) / 10
        print(f"{model.name}: nearest to the sink threshold: head {(to_first.mean(-1) - SINK).abs().min():.1e}, "
              f"pair {(to_first - SINK).abs().min():.1e}; top-1 to an inner edge of a bin "
              f"{(best[..., :1] - edges).abs().min():.1e}, to the second {(best[..., 0] - best[..., 1]).min():.1e}")


# ---- all of it -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(args, dtype, verbose):
    models = [Model(args.fixtures / name, dtype) for name in ("original", "lnfree")]
    tokens, targets, numbers = sample(args.fixtures / "text_val_000000.bin", args.seq, args.sequences)
    sets = json.loads((args.fixtures / "prompts.json").read_text())
    seen = [model.run(tokens) for model in models]
    for model, s in zip(models, seen):
        check_parts(model, s, tokens, targets)
    if verbose:
        margins(models, seen, targets)
    names = [model.name for model in models]
    patched = [patching(model, sets) for model in models]
    both = list(zip(models, seen))
    return {
        "seq": args.seq, "sequences": args.sequences, "window_numbers": numbers,
        "loss": {"models": [loss_statistics(m, s, targets) for m, s in both],
                 "divergences": [{"a": names[0], "b": names[1], "js": jensen_shannon(*(s["logits"] for s in seen))}]},
        "dla": {"models": [attribution(m, s, tokens, targets) for m, s in both]},
        "norms": {"models": [norms(m, s) for m, s in both]},
        "sinks": {"models": [sinks(m, s) for m, s in both]},
        "confidence": {"models": [confidence(m, s, tokens, targets) for m, s in both]},
        "patching": {"models": patched, "improvements": [improvement(*patched)]},
    }


def differences(exact, other, path=""):
    """Yields (path without indices, |difference|, |exact|) of every number."""
    if isinstance(exact, dict):
        for key in exact:
            yield from differences(exact[key], other[key], f"{path}.{key}".lstrip("."))
    elif isinstance(exact, list):
        assert len(exact) == len(other), path
        for a, b in zip(exact, other):
            yield from differences(a, b, path)
    elif isinstance(exact, (int, float)):
        yield path, abs(exact - other), abs(exact)


def compare(exact, other):
    largest = {}
    for path, difference, size in differences(exact, other):
        d, s = largest.get(path, (0, 0))
        largest[path] = (max(d, difference), max(s, size))
    for path, (difference, size) in largest.items():
        print(f"{path:45s} float32 off by at most {difference:.1e}; largest value {size:.3g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, required=True, help="folder that make_fixtures.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="expected.json")
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--seq", type=int, default=31)
    parser.add_argument("--compare-float32", action="store_true", help="print how far float32 lies off")
    args = parser.parse_args()

    result = measure(args, torch.float64, verbose=True)
    text = json.dumps(result, indent=1, allow_nan=False)
    text = re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda m: "[" + re.sub(r",\s+", ", ", m[1]) + "]", text)
    assert json.loads(text) == result
    args.out.write_text(text + "\n")
    if args.compare_float32:
        compare(result, measure(args, torch.float32, verbose=False))


if __name__ == "__main__":
    main()
