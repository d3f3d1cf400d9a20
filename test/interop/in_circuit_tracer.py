#!/usr/bin/env python3
"""circuit-tracer: the Hugging Face form as a ReplacementModel of its TransformerLens backend, with transcoders that were
drawn at random; the edges into a logit and what the biases give add up to that logit. Called as client.py says."""

import functools
import logging
import pathlib
import sys

from client import EXACT, Comparison, torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
from load_in_transformer_lens import load

POSITIONS = 12


def transcoders(layers, width):
    torch.manual_seed(1)
    made = {}
    for layer in range(layers):
        made[layer] = SingleLayerTranscoder(width, 32, torch.nn.functional.relu, layer, dtype=torch.float32)
        for name, parameter in made[layer].named_parameters():
            torch.nn.init.normal_(
                parameter, std=0.0 if name == "b_dec" else 0.05
            )  # b_dec would be no node of the graph
    return TranscoderSet(made, feature_input_hook="ln2.hook_normalized", feature_output_hook="hook_mlp_out")


def constant_part(model, tokens):
    """The logits at the last position of what is no node of a graph, attention held: positions, biases, the MLPs at position 0."""
    _, cache = model.run_with_cache(tokens)
    first_only = torch.zeros(tokens.shape[1], 1)
    first_only[0] = 1
    hooks = [("hook_embed", lambda values, hook: 0 * values)]
    for layer in range(model.cfg.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_pattern", lambda values, hook: cache[hook.name]))
        hooks.append((f"blocks.{layer}.hook_mlp_out", lambda values, hook: cache[hook.name] * first_only))
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def main():
    logging.disable(logging.WARNING)
    comparison = Comparison("circuit-tracer", "transformer-lens")
    shape = load(comparison.stock).cfg
    build = functools.partial(ReplacementModel.from_config, transcoders=transcoders(shape.n_layers, shape.d_model))
    model = load(comparison.stock, build=build)
    with torch.no_grad():
        comparison.same("ReplacementModel.from_config", model(comparison.tokens))
    graph = attribute(comparison.tokens[0, :POSITIONS], model, max_n_logits=3)
    tokens = graph.input_tokens[None]  # with the end-of-text that it puts in front
    with torch.no_grad():
        logits, constant = model(tokens)[0, -1], constant_part(model, tokens)
    targets = [target.vocab_idx for target in graph.logit_targets]
    edges = graph.adjacency_matrix[-len(targets) :].sum(1)
    comparison.require(edges.abs().min() > 0, "a graph without edges")
    comparison.same(
        "edges into logits add up",
        edges + (constant - constant.mean())[targets],
        (logits - logits.mean())[targets],
        EXACT,
    )
    comparison.finish()


if __name__ == "__main__":
    main()
