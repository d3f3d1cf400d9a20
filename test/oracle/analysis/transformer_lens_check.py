"""Holds expected_paper.json against TransformerLens 2.18, which the paper's code measures in.

    F=test/fixtures/analysis; python3 test/oracle/analysis/transformer_lens_check.py --fixtures $F

Needs what analysis_oracle.py needs, and transformer_lens==2.18.0 (4.x has no HookedTransformer). Loads both models with
TransformerLens's own processing, takes each number from its caches and hooks in float64, and prints how far it lies from
the oracle's. Exit status 1 if any lies further than 1e-9 of the largest: README.md says what was seen.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

from analysis_oracle import sample
from paper_oracle import END_OF_TEXT, SINK

torch.set_num_threads(1)
torch.set_grad_enabled(False)
ALLOWED = 1e-9


def load(folder):
    """The model, and whether it is free of LayerNorm: then its norms in Hugging Face's form divide by 1e6."""
    hf = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).double().eval()
    c = hf.config
    free = c.layer_norm_epsilon > 1
    if free:
        for norm in [hf.transformer.ln_f] + [n for block in hf.transformer.h for n in (block.ln_1, block.ln_2)]:
            norm.weight /= c.layer_norm_epsilon ** 0.5
    config = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, n_heads=c.n_head, d_head=c.n_embd // c.n_head,
        d_mlp=4 * c.n_embd, d_vocab=c.vocab_size, act_fn="gelu_new", normalization_type="LN", dtype=torch.float64,
        eps=1e-5 if free else c.layer_norm_epsilon, device="cpu", init_weights=False, seed=0)
    model = HookedTransformer(config)
    weights = convert_gpt2_weights(hf, config)
    weights["unembed.b_U"] = torch.zeros(c.vocab_size, dtype=torch.float64)
    model.load_and_process_state_dict(weights, fold_ln=True, center_writing_weights=True, center_unembed=True,
                                      fold_value_biases=True)
    if free:
        for block in model.blocks:
            block.ln1 = block.ln2 = torch.nn.Identity()
        model.ln_final = torch.nn.Identity()
    model.cfg.use_attn_result = True
    return model.double(), free


def head_errors(model, free, cache, target):
    """Percent over heads and sequences at once, and by head."""
    final = cache["resid_post", -1][:, -1]
    heads = cache.stack_head_results(layer=-1, pos_slice=-1)
    scaled = lambda x: x if free else cache.apply_ln_to_stack(x, layer=-1, pos_slice=-1)
    normed = lambda x: x if free else torch.nn.functional.layer_norm(x, x.shape[-1:], eps=model.cfg.eps)
    logit = lambda x: (x * model.W_U[:, target].T).sum(-1)
    effect = logit(scaled(final)) - logit(normed(final - heads))
    off = (logit(scaled(heads)) - effect).abs()
    return {"nmae": 100 * off.sum() / effect.abs().sum(), "nmae_head": 100 * off.sum(1) / effect.abs().sum(1)}


def patched(model, content):
    """(L, T): share of the difference that a patch brings back, mean over prompts."""
    clean = torch.tensor([[END_OF_TEXT, *prompt.encode()] for prompt in content["prompts"]])
    corrupted = clean[[i ^ 1 for i in range(len(clean))]]
    rows = torch.arange(len(clean))
    right, wrong = (torch.tensor([pair[k].encode()[0] for pair in content["answers"]]) for k in (0, 1))
    f = lambda logits: logits[rows, -1, right] - logits[rows, -1, wrong]
    logits, cache = model.run_with_cache(clean)
    before = f(model(corrupted))

    def effect(l, t):
        def put(stream, hook):
            stream[:, t] = cache["resid_pre", l][:, t]
            return stream
        after = f(model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{l}.hook_resid_pre", put)]))
        return ((after - before) / (f(logits) - before)).mean()

    return [[effect(l, t) for t in range(clean.shape[1])] for l in range(model.cfg.n_layers)]


def numbers(model, free, tokens, targets, sets):
    """(what, ours) of everything, in the shape of expected_paper.json."""
    _, cache = model.run_with_cache(tokens)
    rates = [(cache["pattern", l][..., 0] > SINK).double().mean() for l in range(model.cfg.n_layers)]
    written, unembedding = model.blocks[-1].mlp.W_out, model.W_U
    cosines = (written / written.norm(dim=1, keepdim=True)) @ (unembedding / unembedding.norm(dim=0))
    singular = torch.linalg.svdvals(unembedding)
    return {"dla": {**head_errors(model, free, cache, targets[:, -1]),
                    "token_read": head_errors(model, free, cache, tokens[:, -1])},
            "sinks": {"per_layer_pairs": rates},
            "confidence": {"cn": written.norm(dim=1) / cosines.var(1), "singular_values": singular / singular[0]},
            "patching": {"sets": [{"activation": patched(model, content)} for content in sets.values()]}}


def compare(ours, oracles, path):
    """The worst difference below `path`, over the largest number there and 1."""
    if isinstance(ours, dict):
        return max(compare(value, oracles[key], f"{path}.{key}") for key, value in ours.items())
    if isinstance(ours, list) and ours and isinstance(ours[0], dict):
        return max(compare(value, oracles[i], f"{path}.{i}") for i, value in enumerate(ours))
    a, b = (np.asarray(torch.as_tensor(x).tolist() if torch.is_tensor(x) else x, dtype=float).ravel()
            for x in (ours, oracles))
    assert a.shape == b.shape, path
    difference = float(np.abs(a - b).max())
    print(f"{path:45s} differs by at most {difference:.1e}; largest value {np.abs(b).max():.3g}")
    return difference / max(1.0, float(np.abs(b).max()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, required=True, help="folder that make_fixtures.py wrote")
    args = parser.parse_args()
    oracle = json.loads((args.fixtures / "expected_paper.json").read_text())
    tokens, targets, _ = sample(args.fixtures / "text_val_000000.bin", oracle["seq"], oracle["sequences"])
    sets = json.loads((args.fixtures / "prompts.json").read_text())
    worst = 0
    for i, name in enumerate(("original", "lnfree")):
        for what, ours in numbers(*load(args.fixtures / name), tokens, targets, sets).items():
            worst = max(worst, compare(ours, oracle[what]["models"][i], f"{name}.{what}"))
    sys.exit(0 if worst <= ALLOWED else f"differs from TransformerLens by {worst:.1e}")


if __name__ == "__main__":
    main()
