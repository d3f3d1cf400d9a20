#!/usr/bin/env python3
"""nnsight: the Hugging Face form as LanguageModel, and, where nnterp is installed, as its StandardizedTransformer, on ids and
on text. Called as client.py says."""

from importlib.util import find_spec

from client import Comparison, torch
from nnsight import LanguageModel

TEXT = "Once upon a time"


def trace_standardized(comparison):
    from nnterp import StandardizedTransformer

    model = StandardizedTransformer(comparison.stock, device_map="cpu", enable_attention_probs=True)
    last = model.num_layers - 1
    with torch.no_grad(), model.trace(comparison.tokens):
        attention = model.attention_probabilities[0].save()
        projected = model.project_on_vocab(model.layers_output[last]).save()
        logits = model.logits.save()
    comparison.same("StandardizedTransformer", logits)
    comparison.same("project_on_vocab", projected)
    comparison.same("attention adds up to one", attention.sum(-1), torch.ones(attention.shape[:-1]))


def trace_text(comparison, model):
    """Text goes through the folder's tokenizer, which must name no inputs that GPT-2 would add to the embeddings."""
    ids = torch.tensor([list(TEXT.encode())])
    with torch.no_grad(), model.trace(ids):
        expected = model.lm_head.output.save()
    with torch.no_grad(), model.trace(TEXT):
        logits = model.lm_head.output.save()
    comparison.same("text", logits, expected)


def main():
    standardized = find_spec("nnterp") is not None
    comparison = Comparison("nnsight", *(["nnterp"] if standardized else []))
    model = LanguageModel(comparison.stock, device_map="cpu", dispatch=True)
    with torch.no_grad(), model.trace(comparison.tokens):
        logits = model.lm_head.output.save()
    comparison.same("LanguageModel", logits)
    trace_text(comparison, model)
    if standardized:
        trace_standardized(comparison)
    comparison.finish()


if __name__ == "__main__":
    main()
