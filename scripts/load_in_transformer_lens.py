#!/usr/bin/env python3
"""Loads a model of this project in TransformerLens: the Hugging Face form and the folded form, in 4.x, 3.x and 2.x.

    python scripts/load_in_transformer_lens.py FOLDER [--prompt TEXT]      what the model makes of a prompt

    from load_in_transformer_lens import load
    model = load("lnfree_folded")                                          in a program or notebook

TransformerLens 4 gives a TransformerBridge: around the stock GPT-2 for the Hugging Face form, around its own model with
normalization_type None for the folded form. TransformerLens 2 and 3 give a HookedTransformer for both, or what is built on
it: SAELens's HookedSAETransformer, circuit-tracer's ReplacementModel (`build=`).

The logits are those of `train_gpt2_lnfree eval --logits`, and stay so under TransformerLens's own processing (folding,
centring of writing weights, value biases), with one exception: center_unembed takes each position's mean logit away. Log
probabilities and losses stay the same, logits do not; so it is off here unless it is asked for.
"""

import argparse
import json
import pathlib
import re
import sys
from importlib.metadata import version

TESTED = "4.3.0, 3.9.0, 3.2.1 and 2.18.0"
PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


class CannotLoad(Exception):
    """Why a folder cannot be loaded, in one line."""


def read_config(folder):
    """config.json of a model folder, either form."""
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise CannotLoad(f"{folder}: has no config.json; name a folder written by `export` or `remove`")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CannotLoad(f"{path}: is not JSON ({error}); export the model again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "gpt2_lnfree_checkpoint":
        raise CannotLoad(f"{folder}: is a checkpoint of an unfinished run; finish it with `remove --resume`")
    if kind not in ("gpt2", "gpt2_lnfree_folded"):
        raise CannotLoad(f"{folder}: model_type is {kind}; only gpt2 and gpt2_lnfree_folded can be loaded")
    return config


def activation(config):
    """TransformerLens's name for the GELU: the exact one (nanoGPT's), or GPT-2's tanh form, which has several names."""
    return "gelu" if config.get("activation_function") in ("gelu", "gelu_python") else "gelu_new"


def read_folded(folder):
    """The folded form's tensors by name (data/README.md describes them)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = pathlib.Path(folder) / "weights.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CannotLoad(f"{path}: {error}; export the model again") from error


def read_stock(folder, dtype):
    """The stock GPT-2 of a folder in Hugging Face form."""
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:  # "eager" keeps the attention patterns, which hooks want to see
        return GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").to(dtype).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise CannotLoad(f"{folder}: {' '.join(str(error).split())}") from error


def read_tokenizer(folder):
    """The folder's tokenizer, or None if it has none."""
    from transformers import AutoTokenizer, GPT2Config

    if not any((pathlib.Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return None
    return AutoTokenizer.from_pretrained(folder, config=GPT2Config())


# ---- TransformerLens 4 ------------------------------------------------------------------------------------------------


def native_weights(tensors, config):
    """Folded tensors under the names of TransformerLens's native model, whose weights are (out, in)."""
    width = config["n_embd"]
    weights = {
        "tok_embed.weight": tensors["wte.weight"],
        "pos.weight": tensors["wpe.weight"],
        "head.weight": tensors["lm_head.weight"],
        "head.bias": tensors["lm_head.bias"],
    }
    for layer in range(config["n_layer"]):
        ours, theirs = f"h.{layer}.", f"layers.{layer}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", tensors[f"{ours}attn.c_attn.{kind}"].split(width, dim=-1)):
                weights[f"{theirs}attn.{name}.{kind}"] = part.T if kind == "weight" else part
            for name, source in (("attn.o", "attn.c_proj"), ("mlp.fc_in", "mlp.c_fc"), ("mlp.fc_out", "mlp.c_proj")):
                part = tensors[f"{ours}{source}.{kind}"]
                weights[f"{theirs}{name}.{kind}"] = part.T if kind == "weight" else part
    return weights


def bridge_around_folded(folder, config, dtype, device):
    from torch import nn
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.model_bridge.sources.native import NativeModel

    width = config["n_embd"]
    shape = TransformerBridgeConfig(
        d_model=width,
        d_head=width // config["n_head"],
        n_heads=config["n_head"],
        n_layers=config["n_layer"],
        n_ctx=config["n_positions"],
        d_vocab=config["vocab_size"],
        d_mlp=config["n_inner"] or 4 * width,
        act_fn=activation(config),
        normalization_type=None,
        positional_embedding_type="standard",
        init_weights=False,
    )
    model = NativeModel(shape)
    model.head = nn.Linear(width, config["vocab_size"], bias=True)  # theirs has no bias, ours holds ln_f's
    model.load_state_dict(native_weights(read_folded(folder), config))
    model.to(device=device, dtype=dtype).eval()
    return build_bridge_from_module(
        model,
        "TransformerLensNative",
        tl_config=shape,
        tokenizer=read_tokenizer(folder),
        model_name=pathlib.Path(folder).name,
    )


def bridge_around_stock(folder, dtype, device):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = read_stock(folder, dtype).to(device)
    return build_bridge_from_module(
        model,
        "GPT2LMHeadModel",
        hf_config=model.config,
        tokenizer=read_tokenizer(folder),
        model_name=pathlib.Path(folder).name,
    )


def load_bridge(folder, config, dtype, device, processing):
    if config["model_type"] == "gpt2":
        model = bridge_around_stock(folder, dtype, device)
    else:
        model = bridge_around_folded(folder, config, dtype, device)
    if any(processing.values()):
        model.enable_compatibility_mode(disable_warnings=True, **processing)
    return model


# ---- TransformerLens 2 and 3 --------------------------------------------------------------------------------------------


def hooked_weights(tensors, config):
    """GPT-2's tensors under HookedTransformer's names and shapes, with norms if there are any."""
    heads, width = config["n_head"], config["n_embd"]
    size = width // heads
    weights = {
        "embed.W_E": tensors["wte.weight"],
        "pos_embed.W_pos": tensors["wpe.weight"],
        "unembed.W_U": tensors["lm_head.weight"].T,
        "unembed.b_U": tensors.get("lm_head.bias", tensors["lm_head.weight"].new_zeros(config["vocab_size"])),
    }
    norms = [("ln_final", "ln_f")]
    for layer in range(config["n_layer"]):
        ours, theirs = f"h.{layer}.", f"blocks.{layer}."
        norms += [(f"{theirs}ln1", f"{ours}ln_1"), (f"{theirs}ln2", f"{ours}ln_2")]
        matrices = tensors[f"{ours}attn.c_attn.weight"].split(width, dim=1)
        biases = tensors[f"{ours}attn.c_attn.bias"].split(width)
        for name, matrix, bias in zip("QKV", matrices, biases):
            weights[f"{theirs}attn.W_{name}"] = matrix.reshape(width, heads, size).permute(1, 0, 2)
            weights[f"{theirs}attn.b_{name}"] = bias.reshape(heads, size)
        weights[f"{theirs}attn.W_O"] = tensors[f"{ours}attn.c_proj.weight"].reshape(heads, size, width)
        weights[f"{theirs}attn.b_O"] = tensors[f"{ours}attn.c_proj.bias"]
        for name, source in (("in", "c_fc"), ("out", "c_proj")):
            weights[f"{theirs}mlp.W_{name}"] = tensors[f"{ours}mlp.{source}.weight"]
            weights[f"{theirs}mlp.b_{name}"] = tensors[f"{ours}mlp.{source}.bias"]
    for theirs, ours in norms:
        if f"{ours}.weight" in tensors:
            weights[f"{theirs}.w"], weights[f"{theirs}.b"] = tensors[f"{ours}.weight"], tensors[f"{ours}.bias"]
    return weights


def load_hooked(folder, config, dtype, device, processing, build):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    stock = config["model_type"] == "gpt2"
    if stock:
        named = read_stock(folder, dtype).state_dict()
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in named.items()}
    else:
        tensors = read_folded(folder)
    width = config["n_embd"]
    shape = HookedTransformerConfig(
        model_name=pathlib.Path(folder).name,
        original_architecture="GPT2LMHeadModel",
        d_model=width,
        d_head=width // config["n_head"],
        n_heads=config["n_head"],
        n_layers=config["n_layer"],
        n_ctx=config.get("n_positions") or config["n_ctx"],
        d_vocab=config["vocab_size"],
        d_mlp=config.get("n_inner") or 4 * width,
        act_fn=activation(config),
        normalization_type="LN" if stock else None,
        eps=config.get("layer_norm_epsilon", 1e-5),
        init_weights=False,
        device=str(device),
        dtype=dtype,
    )
    if processing["fold_ln"] and stock:  # it leaves norms without parameters, which are another kind of module
        shape.normalization_type = "LNPre"
    model = (build or HookedTransformer)(shape, tokenizer=read_tokenizer(folder))
    weights = model.state_dict()  # with what is no part of GPT-2: masks, and the transcoders that circuit-tracer adds
    places = {re.sub(r"\.old_(mlp|unembed)", "", name): name for name in weights}  # and where it wraps what is
    weights |= {places.get(name, name): tensor.to(dtype) for name, tensor in hooked_weights(tensors, config).items()}
    model.load_and_process_state_dict(weights, **(processing if stock else {**processing, "fold_ln": False}))
    return model.eval()


# ---- both -------------------------------------------------------------------------------------------------------------


def load(folder, device="cpu", dtype=None, build=None, **processing):
    """Loads a model folder in the TransformerLens that is installed, ready for run_with_cache and hooks.

    folder      Hugging Face form or folded form, as `remove` and `export` write them
    dtype       a torch type; float32 unless given, whatever the folder holds
    build       TransformerLens 2 and 3: makes the empty model from a HookedTransformerConfig and tokenizer=, where it is to
                be another than HookedTransformer: HookedSAETransformer, or for circuit-tracer (Hugging Face form alone)
                functools.partial(ReplacementModel.from_config, transcoders=transcoders)
    processing  fold_ln, center_writing_weights, center_unembed, fold_value_biases: TransformerLens's own, all off

    Raises CannotLoad with one clear line.
    """
    unknown = sorted(set(processing) - set(PROCESSING))
    if unknown:
        raise TypeError(f"load() takes no {', '.join(unknown)}; processing is one of {', '.join(PROCESSING)}")
    config = read_config(folder)
    try:
        import torch
        import transformer_lens  # noqa: F401, so that its absence is noticed here
    except ImportError as error:
        raise CannotLoad(f"{error}; pip install transformer_lens (tested: {TESTED})") from error
    dtype = dtype or torch.float32
    if config["model_type"] == "gpt2" and dtype == torch.float16 and config.get("layer_norm_epsilon", 0) >= 1e10:
        raise CannotLoad(f"{folder}: gammas of the order of 1e6 overflow in float16; use float32 or the folded form")
    chosen = {name: bool(processing.get(name, False)) for name in PROCESSING}
    native = int(version("transformer_lens").split(".")[0]) >= 4
    if native and build:
        raise CannotLoad(
            f"build= is for HookedTransformer's kind; TransformerLens {version('transformer_lens')} has bridges"
        )
    try:
        if native:
            return load_bridge(str(folder), config, dtype, device, chosen)
        return load_hooked(str(folder), config, dtype, device, chosen, build)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CannotLoad(f"{folder}: config.json and weights do not fit together ({reason}); export again") from error


def report(folder, prompt):
    """Prints what a model makes of a prompt: its loss, and the likeliest next tokens."""
    import torch

    model = load(folder)
    kind, installed = type(model).__name__, version("transformer_lens")
    print(f"{folder}: {kind} of TransformerLens {installed} (tested: {TESTED})")
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise CannotLoad(f"{folder}: has no tokenizer files, so it can be loaded but not prompted")
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    if not 1 <= tokens.shape[1] <= model.cfg.n_ctx:
        raise CannotLoad(f"--prompt has {tokens.shape[1]} tokens; the model reads 1 to {model.cfg.n_ctx}")
    with torch.no_grad():
        log_probabilities = model(tokens, return_type="logits")[0].log_softmax(-1)
    if tokens.shape[1] > 1:
        losses = -log_probabilities[:-1].gather(1, tokens[0, 1:, None])
        print(f"loss {losses.mean():.4f} nats over the {losses.numel()} predictions in {prompt!r}")
    best = log_probabilities[-1].topk(min(5, model.cfg.d_vocab))
    print("next:", "  ".join(f"{tokenizer.decode([i])!r} {p.exp():.3f}" for p, i in zip(*best)))


def main():
    parser = argparse.ArgumentParser(description="Loads a model folder in TransformerLens and tries it on a prompt.")
    parser.add_argument("folder", help="Hugging Face form or folded form")
    parser.add_argument("--prompt", default="Once upon a time", help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        report(arguments.folder, arguments.prompt)
    except CannotLoad as error:
        print(f"load_in_transformer_lens.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
