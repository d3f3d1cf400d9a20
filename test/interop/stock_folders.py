"""Model folders as transformers itself writes them, with weights that leave no term of the model close to zero."""

import json
import math
import pathlib
from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

CLASSES = {
    "gpt2": (GPT2Config, GPT2LMHeadModel, "layer_norm_epsilon"),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, "layer_norm_eps"),
    "llama": (LlamaConfig, LlamaForCausalLM, "rms_norm_eps"),
}
FROZEN_EPSILON = 1e12  # of LayerNorm-free models: LayerNorm then divides every position by 1e6


@dataclass
class Stock:
    """One folder: what is in its config, and how it is stored."""

    name: str
    shape: dict
    dtype: torch.dtype = torch.float32
    shard_size: str = "50GB"  # of save_pretrained
    prefix: bool = True  # names that begin with transformer.
    masks: bool = False  # the attention-mask buffers that older versions of transformers stored, and the tied head
    layernorm_free: bool = False
    config: dict = field(default_factory=dict)
    family: str = "gpt2"
    embedding: float = 0  # standard deviation of its numbers; 0: that of other matrices


def random_model(stock, seed):
    torch.manual_seed(seed)
    config_class, model_class, epsilon = CLASSES[stock.family]
    config = config_class(**stock.shape, **stock.config)
    if stock.layernorm_free:
        setattr(config, epsilon, FROZEN_EPSILON)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gamma = ("ln_" in name or "norm" in name) and name.endswith("weight")
            scale = min(0.15, 1.2 / math.sqrt(config.hidden_size)) if parameter.dim() == 2 else 0.15
            if stock.embedding and "embed" in name:
                scale = stock.embedding
            parameter.normal_(1 if gamma else 0, scale)
            if gamma and stock.layernorm_free:
                sigma_bar = 0.5 + torch.rand(()).item()
                parameter.mul_(math.sqrt(FROZEN_EPSILON) / sigma_bar)
    return model.to(stock.dtype).eval()


def add_masks(folder, model):
    """Writes the tensors again with what transformers 2 to 4.2x stored beside them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    positions = model.config.n_positions
    for layer in range(model.config.n_layer):
        name = f"transformer.h.{layer}.attn."
        tensors[name + "bias"] = torch.ones(positions, positions, dtype=torch.uint8).tril()[None, None]
        tensors[name + "masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, path, {"format": "pt"})


def write(stock, folder, seed):
    """Writes the folder with save_pretrained."""
    folder = pathlib.Path(folder)
    model = random_model(stock, seed)
    (model if stock.prefix else model.base_model).save_pretrained(folder, max_shard_size=stock.shard_size)
    if stock.masks:
        add_masks(folder, model)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    stored = {tensor.dtype for name in files for tensor in load_file(folder / name).values() if tensor.is_floating_point()}
    if stored != {stock.dtype}:
        raise RuntimeError(f"{folder}: save_pretrained stored {stored}, not {stock.dtype}")
    if (len(files) > 1) != (stock.shard_size != "50GB"):
        raise RuntimeError(f"{folder}: save_pretrained wrote {files}")
    if json.loads((folder / "config.json").read_text())["model_type"] != stock.family:
        raise RuntimeError(f"{folder}: save_pretrained wrote another model_type")


def logits(folder, tokens, dtype=torch.float32):
    """What transformers' own model makes of tokens (T), in float32 unless told: (T, V).

    RuntimeError if from_pretrained finds a key too many or too few. Attention masks are no weights and do not count.
    """
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for kind, names in loading.items():
        wrong = [name for name in names if not str(name).endswith(".attn.masked_bias")]
        if wrong:
            raise RuntimeError(f"{folder}: from_pretrained reports {kind}: {wrong}")
    with torch.no_grad():
        return model.eval()(tokens[None]).logits[0]
