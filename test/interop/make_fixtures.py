#!/usr/bin/env python3
"""Writes test/fixtures/hf: small folders by save_pretrained itself and the logits that transformers computes from them.

    build/interop-venv/bin/python test/interop/make_fixtures.py        after `make test-interop`, which makes that

test/engine/test_interop.cpp replays them without Python. NAME/ is a model folder; NAME.safetensors holds tokens (T) and
logits (T,V), computed in double precision and both stored as F32.
"""

import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import stock_folders
from stock_folders import Stock


def shape(n_embd, n_head, n_layer, vocab_size, n_positions, **more):
    return dict(more, n_embd=n_embd, n_head=n_head, n_layer=n_layer, vocab_size=vocab_size, n_positions=n_positions)


def other(hidden_size, heads, layers, intermediate_size, vocab_size, positions, **more):
    return dict(
        more, hidden_size=hidden_size, num_attention_heads=heads, num_hidden_layers=layers, vocab_size=vocab_size,
        intermediate_size=intermediate_size, max_position_embeddings=positions)  # fmt: skip


# eos_token_id stays at its default, 50256, in some: transformers writes it whatever the vocabulary is.
FIXTURES = [
    Stock("f32", shape(16, 4, 2, 53, 41, eos_token_id=52)),
    Stock("f32_sharded", shape(15, 3, 2, 47, 39), shard_size="14KB"),
    Stock("f16_inner", shape(12, 2, 2, 59, 37, n_inner=29), torch.float16),
    Stock("bf16_sharded", shape(20, 5, 2, 43, 33, eos_token_id=0), torch.bfloat16, shard_size="12KB"),
    Stock("no_prefix", shape(14, 1, 1, 61, 43, layer_norm_epsilon=0.03), prefix=False),
    Stock("masks", shape(12, 3, 1, 31, 23), masks=True),
    Stock("layernorm_free", shape(16, 2, 2, 53, 41), layernorm_free=True),
    Stock("layernorm_free_bf16", shape(12, 2, 1, 31, 29), torch.bfloat16, layernorm_free=True),
    Stock("untied_gelu", shape(12, 2, 1, 31, 29, activation_function="gelu", tie_word_embeddings=False)),
    Stock("neox", other(16, 2, 2, 29, 43, 37, attention_bias=False), family="gpt_neox"),
    Stock("neox_sharded", other(18, 3, 2, 41, 31, 33, rotary_pct=0.7, use_parallel_residual=False,
                                tie_word_embeddings=True), torch.bfloat16, "10KB", family="gpt_neox"),
    Stock("neox_free", other(16, 2, 1, 29, 43, 37), layernorm_free=True, family="gpt_neox"),
    Stock("llama", other(18, 3, 2, 29, 43, 37, num_key_value_heads=1, rope_theta=500.0), family="llama"),
    Stock("llama_biases", other(12, 4, 1, 31, 37, 41, num_key_value_heads=2, head_dim=4, attention_bias=True,
                                mlp_bias=True, tie_word_embeddings=True), torch.float16, family="llama"),
    Stock("llama_free", other(16, 4, 2, 23, 29, 31), layernorm_free=True, family="llama"),
]  # fmt: skip


def main():
    out = pathlib.Path("test/fixtures/hf")
    shutil.rmtree(out, ignore_errors=True)
    for seed, stock in enumerate(FIXTURES):
        folder = out / stock.name
        stock_folders.write(stock, folder, seed)
        generator = torch.Generator().manual_seed(seed)
        positions = stock.shape.get("n_positions") or stock.shape["max_position_embeddings"]
        tokens = torch.randint(stock.shape["vocab_size"], (positions,), generator=generator)
        expected = stock_folders.logits(folder, tokens, torch.float64).float()
        save_file({"tokens": tokens.float(), "logits": expected}, out / f"{stock.name}.safetensors")
        print(f"{stock.name:20} logits up to {expected.abs().max():.2f}")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {size:,} bytes under {out}")


if __name__ == "__main__":
    main()
