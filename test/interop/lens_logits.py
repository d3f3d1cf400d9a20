#!/usr/bin/env python3
"""Loads model folders with scripts/load_in_transformer_lens.py and writes their logits; a program of its own, so that
check.py can run it under TransformerLens 4 and 2 in turn.

    lens_logits.py TOKENS.safetensors OUT.safetensors FOLDER...

OUT holds one tensor (T,V) per folder and processing, named FOLDER:PROCESSING.
"""

import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
from load_in_transformer_lens import PROCESSING, TESTED, load, version

PROCESSINGS = {
    "as loaded": {},
    "folded and centred": {name: name != "center_unembed" for name in PROCESSING},
    "center_unembed as well": {name: True for name in PROCESSING},
}


def main():
    torch.set_num_threads(1)
    tokens_path, out, *folders = sys.argv[1:]
    installed = version("transformer_lens")
    if installed not in TESTED:
        sys.exit(f"lens_logits.py: TransformerLens {installed} is here, load_in_transformer_lens.py names {TESTED}")
    tokens = load_file(tokens_path)["tokens"].long()
    logits = {}
    with torch.no_grad():
        for folder in folders:
            for name, processing in PROCESSINGS.items():
                model = load(folder, **processing)
                logits[f"{folder}:{name}"] = model(tokens[None], return_type="logits")[0].contiguous()
            _, cache = model.run_with_cache(tokens[None])
            if not any(name.endswith("hook_resid_post") for name in cache):
                sys.exit(f"lens_logits.py: {folder}: hooks do not see the residual stream")
    save_file(logits, out, {"transformer_lens": installed})


if __name__ == "__main__":
    main()
