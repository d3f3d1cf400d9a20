#!/usr/bin/env python3
"""SAELens: both forms as HookedSAETransformer, the Hugging Face form as SAETransformerBridge, a dictionary attached with its
error term, and one trained on what `analyze cache` writes. Called as client.py says."""

import pathlib
import sys

from client import Comparison, torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
from load_in_transformer_lens import load
from sae_lens import (
    HookedSAETransformer,
    SAETrainer,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.config import SAETrainerConfig

PLACE = "blocks.1.hook_resid_pre"


def attach(comparison, name, model):
    """That the model has our logits and activations, keeps them with a dictionary and its error, and not without the error."""
    tokens, width = comparison.tokens, comparison.activations.shape[-1]
    comparison.same(name, model(tokens))
    _, cache = model.run_with_cache(comparison.cached_tokens)
    theirs = cache[PLACE if PLACE in cache else "blocks.1.hook_in"]  # a bridge's own name for it
    comparison.same(f"{name}, activations", theirs, comparison.activations)
    torch.manual_seed(1)
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=4 * width))
    sae.cfg.metadata.hook_name = PLACE
    model.add_sae(sae, use_error_term=True)
    comparison.same(f"{name}, dictionary attached", model(tokens))
    model.reset_saes()
    model.add_sae(sae, use_error_term=False)
    change = (model(tokens)[0] - comparison.logits).abs().max()
    comparison.require(change > 1e-2, f"{name}: the dictionary is not on the model's way")


def train(comparison, steps=200, batch=64):
    """A dictionary on cached activations: its error falls."""
    activations = comparison.activations.flatten(0, 1)
    activations = activations / activations.std()
    torch.manual_seed(2)

    def batches():
        while True:
            yield activations[torch.randint(len(activations), (batch,))]

    width = activations.shape[1]
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=width, d_sae=2 * width, l1_coefficient=0.01))

    def error():
        return (sae(activations) - activations).square().mean().item()

    before = error()
    config = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, lr=3e-3, lr_end=3e-4
    )
    SAETrainer(config, sae, batches()).fit()
    comparison.require(error() < before / 2, f"training goes from {before:.3f} to {error():.3f}")
    comparison.done.append(f"a dictionary trained on cached activations, error {before:.2f} to {error():.2f}")


def main():
    comparison = Comparison("sae-lens", "transformer-lens")
    with torch.no_grad():
        attach(
            comparison, "SAETransformerBridge", SAETransformerBridge.boot_transformers(comparison.stock, device="cpu")
        )
        for form in ("stock", "folded"):
            model = load(getattr(comparison, form), build=HookedSAETransformer)
            attach(comparison, f"HookedSAETransformer, {form}", model)
    train(comparison)
    comparison.finish()


if __name__ == "__main__":
    main()
