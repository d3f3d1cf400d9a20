"""What the programs in_*.py share: each loads the same model in one client, in that client's own virtual environment.

    in_CLIENT.py HUGGING_FACE_FORM FOLDED_FORM INPUTS.safetensors

INPUTS holds tokens (T) and the engine's logits (T,V) for them, and what `analyze cache` wrote of blocks.1.hook_resid_pre
(B,T,C) with its cached_tokens (B,T). A program prints one line of JSON, what it did and the largest difference that it saw,
and ends with 1 and one line if a difference is larger than EXACT.
"""

import json
import os
import sys
import warnings
from importlib.metadata import version

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false"
)
warnings.filterwarnings("ignore")

import torch
from safetensors.torch import load_file

EXACT = 1e-4  # largest difference between logits that are computed in F32 from the same weights


class Comparison:
    """The model's folders, the engine's numbers for it, and the largest difference so far."""

    def __init__(self, *packages):
        torch.set_num_threads(1)
        self.packages = packages
        self.stock, self.folded, inputs = sys.argv[1:]
        inputs = load_file(inputs)
        self.tokens, self.logits = inputs["tokens"].long()[None], inputs["logits"]
        self.activations, self.cached_tokens = inputs["blocks.1.hook_resid_pre"], inputs["cached_tokens"].long()
        self.worst, self.done = 0.0, []

    def require(self, condition, message):
        if not condition:
            sys.exit(f"{sys.argv[0]}: {message}")

    def same(self, what, theirs, ours=None, bound=EXACT):
        """Ends the program unless `theirs` are the engine's logits, or `ours`, to `bound`."""
        ours = self.logits if ours is None else ours
        theirs = theirs.detach().reshape(ours.shape)
        difference = (ours.double() - theirs.double()).abs().max().item()
        self.require(difference <= bound, f"{what}: differs by {difference:.2e}, more than {bound:g}")
        self.worst = max(self.worst, difference)
        self.done.append(what)

    def finish(self):
        installed = ", ".join(f"{name} {version(name)}" for name in (*self.packages, "torch", "transformers"))
        print(json.dumps({"installed": installed, "done": "; ".join(self.done), "worst": self.worst}))
