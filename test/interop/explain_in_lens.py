#!/usr/bin/env python3
"""Holds `analyze explain` and `analyze cache` against TransformerLens 4, NumPy and safetensors.

    explain_in_lens.py ENGINE SHARDS TARGET AGAINST FOLDER...

FOLDER...: models without LayerNorm, either form; SHARDS: token shards for them, whose first 24 tokens are the prompt;
TARGET, AGAINST: ids of two tokens. Checks that
    - the terms are those of TransformerLens's direct_logit_attribution, by component and by head (to 1e-5 of the largest)
    - .safetensors and .npz hold the same numbers, and these are the terms
    - cached activations are those that TransformerLens hooks
One line per folder; exit 1 at the first that fails.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
from safetensors.numpy import load_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
from load_in_transformer_lens import load
from transformer_lens.tools.analysis import direct_logit_attribution

EXACT = 1e-5
POSITIONS = 24
HOOKS = ("hook_embed", "hook_pos_embed", "blocks.*.hook_resid_pre", "blocks.*.attn.hook_z", "blocks.*.hook_mlp_out",
         "blocks.*.hook_resid_post", "blocks.*.hook_attn_out", "blocks.*.attn.hook_v", "blocks.*.mlp.hook_post")


def require(condition, message):
    if not condition:
        sys.exit(f"explain_in_lens.py: {message}")


def analyze(engine, *arguments):
    run = subprocess.run([engine, "analyze", *map(str, arguments), "--json"], capture_output=True, text=True, check=False)
    require(run.returncode == 0, run.stderr)
    return json.loads(run.stdout)


def ours_by_label(explanation):
    """Our terms under TransformerLens's labels: attentions with their biases, MLPs, and heads alone."""
    terms = {}
    for c in explanation["components"]:
        layer, kind = c["layer"], c["hook"].rsplit(".", 1)[-1]
        if kind in ("hook_embed", "hook_pos_embed"):
            terms[kind[len("hook_"):]] = c["contribution"]
        elif kind == "hook_mlp_out":
            terms[f"{layer}_mlp_out"] = c["contribution"]
        elif kind in ("hook_result", "b_O"):
            terms[f"{layer}_attn_out"] = terms.get(f"{layer}_attn_out", 0) + c["contribution"]
        if kind == "hook_result":
            terms[f"L{layer}H{c['head']}"] = c["contribution"]
    return terms


def compare_terms(model, explanation):
    """The largest difference of a term, over the largest term."""
    terms, worst = ours_by_label(explanation), 0
    for unit in ("component", "head"):
        theirs = direct_logit_attribution(model, torch.tensor([explanation["tokens"]]), explanation["target"]["token"],
                                          explanation["against"]["token"], unit=unit)
        pairs = zip(theirs.labels, theirs.attribution.flatten().tolist())
        compared = [abs(terms[label] - value) for label, value in pairs if label in terms]
        require(len(compared) >= 4, f"labels have changed: {theirs.labels}")
        worst = max(worst, *compared)
    return worst / max(map(abs, terms.values()))


def compare_saved(folder, explanation):
    """That both files hold the same, and the terms."""
    arrays, zipped = load_file(folder / "x.safetensors"), numpy.load(folder / "x.npz")
    require(sorted(arrays) == sorted(zipped.files), "the two files hold other arrays")
    for name, values in arrays.items():
        require(numpy.array_equal(values, zipped[name], equal_nan=values.dtype.kind == "f"), f"{name} differs")
    for c in explanation["components"]:
        values = arrays[c["hook"]][0]
        values = values[explanation["position"]] if values.ndim else values
        values = values if c["head"] is None else values[c["head"]]
        require(abs(values - c["contribution"]) < 1e-12, f"{c['name']} is saved as another number")


def compare_activations(model, path):
    """The largest difference of an activation, over the largest of its place."""
    arrays, worst = load_file(path), 0
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor(arrays.pop("tokens")).long())
    for name, ours in arrays.items():
        theirs = cache[name].numpy().reshape(ours.shape)
        worst = max(worst, numpy.abs(ours - theirs).max() / numpy.abs(theirs).max())
    return worst


def check(engine, shards, target, against, model_folder, work):
    cached = work / "cache.safetensors"
    analyze(engine, "cache", "--model", model_folder, "--data", shards, "--hooks", ",".join(HOOKS), "--tokens",
            2 * POSITIONS, "--seq", POSITIONS, "--out", cached, "--force")
    tokens = load_file(cached)["tokens"][0].tolist()
    (work / "prompt.jsonl").write_text(json.dumps({"tokens": tokens, "target": f"#{target}", "against": f"#{against}"}))
    for kind in ("safetensors", "npz"):
        result = analyze(engine, "explain", "--model", model_folder, "--prompts", work / "prompt.jsonl", "--save",
                         work / f"x.{kind}", "--force")
    explanation = result["explanations"][0]
    compare_saved(work, explanation)
    model = load(model_folder)
    activations = compare_activations(model, cached)
    model.enable_compatibility_mode(disable_warnings=True, center_unembed=False, fold_value_biases=False)
    terms = compare_terms(model, explanation)
    print(f"{model_folder}: terms differ by {terms:.1e} of the largest, activations by {activations:.1e}")
    require(terms < EXACT and activations < EXACT, f"{model_folder}: more than {EXACT}")


def main():
    engine, shards, target, against, *folders = sys.argv[1:]
    with tempfile.TemporaryDirectory() as work:
        for folder in folders:
            check(engine, shards, int(target), int(against), folder, pathlib.Path(work))


if __name__ == "__main__":
    main()
