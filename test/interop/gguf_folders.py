"""data/gguf_to_hf.py on made-up GGUF files: logits and token ids are those of their origin.

    build/interop-venv/bin/python test/interop/gguf_folders.py

Prints a line per check; ends with exit status 1 at the first that fails. Needs torch, transformers, gguf, safetensors.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

CONVERTER = pathlib.Path(__file__).resolve().parents[2] / "data" / "gguf_to_hf.py"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<file_sep>"]
TEXTS = [
    "Hello 2026, it's 12:30!\n\n  tabs\tand   spaces  ",
    'Zoë said "no" to 3.14159<|endoftext|>then ½ and ² <file_sep>of 日本',
    "def f(x):\n    return x + 1000\n",
]
# hidden, heads, key heads, head width (None: hidden / heads), layers, inner width, biases, tied, theta
SHAPES = [
    (36, 3, 1, None, 2, 50, False, True, 10000.0),
    (48, 6, 2, None, 3, 77, False, False, 100000.0),
    (40, 4, 4, None, 1, 33, True, True, 500.0),
    (24, 6, 3, 10, 2, 31, False, True, 1e6),
]
OURS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
OURS |= {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"}
OURS |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}


def require(condition, message):
    if not condition:
        raise AssertionError(message)


def make_tokenizer():
    """A small BPE that cuts text as SmolLM2's does. Its merges, from text cut as GPT-2 does, also join digits."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), made.pre_tokenizer])
    return made


def make_model(shape, vocab_size):
    hidden, heads, key_heads, head_width, layers, inner, biases, tied, theta = shape
    torch.manual_seed(hidden)
    config = LlamaConfig(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=key_heads,
        head_dim=head_width or hidden // heads, num_hidden_layers=layers, intermediate_size=inner,
        vocab_size=vocab_size, attention_bias=biases, mlp_bias=biases, tie_word_embeddings=tied, rope_theta=theta,
        rms_norm_eps=3e-4, max_position_embeddings=300, bos_token_id=1, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1 if parameter.dim() == 1 else 0, 0.3)
    return model


def as_llama_cpp(rows, width):
    """A projection's rows in llama.cpp's order: in every head its row i of the first half, then i of the second."""
    order = []
    for head in range(len(rows) // width):
        for i in range(width // 2):
            order += [head * width + i, head * width + width // 2 + i]
    return rows[order]


def write_gguf(path, model, tokenizer, kind=None, change=None):
    """Writes the model as llama.cpp does; change(writer) adds what makes the file another one."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_license("cc0-1.0")
    add_tokenizer(writer, tokenizer)
    if change is not None:
        change(writer)

    def add(theirs, ours):
        values = state[ours].numpy()
        if theirs.startswith("blk.") and (".attn_q." in theirs or ".attn_k." in theirs):
            values = as_llama_cpp(values, config.head_dim)
        if kind is not None and values.ndim == 2:
            writer.add_tensor(theirs, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, values)

    add("token_embd.weight", "model.embed_tokens.weight")
    add("output_norm.weight", "model.norm.weight")
    if not config.tie_word_embeddings:
        add("output.weight", "lm_head.weight")
    for layer in range(config.num_hidden_layers):
        for theirs, ours in OURS.items():
            for part in ("weight", "bias"):
                if f"model.layers.{layer}.{ours}.{part}" in state:
                    add(f"blk.{layer}.{theirs}.{part}", f"model.layers.{layer}.{ours}.{part}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer, tokenizer):
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_types([3 if text in SPECIAL else 1 for text, _ in vocabulary])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def convert(path, folder):
    command = [sys.executable, CONVERTER, path, "--out", folder, "--force"]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def load(folder):
    model, loading = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    require(not any(loading.values()), f"from_pretrained reports {loading}")
    return model.eval()


def check_logits(work, shape, tokenizer):
    """A file in float32 comes out as the model that it was made from, to the bit."""
    model = make_model(shape, tokenizer.get_vocab_size())
    write_gguf(work / "model.gguf", model, tokenizer)
    ended = convert(work / "model.gguf", work / "folder")
    require(ended.returncode == 0, ended.stderr)
    found = load(work / "folder")
    tokens = torch.randint(model.config.vocab_size, (2, 67), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (found(tokens).logits - model(tokens).logits).abs().max().item()
    require(difference == 0, f"logits differ by {difference:.2e}")
    stored = load_file(work / "folder" / "model.safetensors")
    tied = model.config.tie_word_embeddings
    require(("lm_head.weight" in stored) != tied, "a head is stored exactly if it is not tied")
    require("license: cc0-1.0" in (work / "folder" / "README.md").read_text(), "the card does not name the licence")


def check_quantised(work, kind, levels):
    """Blocks of 32 come out within half a step of what was quantised, the model loads, and the card says so."""
    tokenizer = make_tokenizer()
    model = make_model((64, 4, 2, None, 2, 96, False, True, 10000.0), tokenizer.get_vocab_size())
    write_gguf(work / "model.gguf", model, tokenizer, kind)
    ended = convert(work / "model.gguf", work / "folder")
    require(ended.returncode == 0, ended.stderr)
    stored = load_file(work / "folder" / "model.safetensors")
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" or values.dim() == 1:
            continue
        blocks, found = values.reshape(-1, 32), stored[name].reshape(-1, 32)
        if kind == gguf.GGMLQuantizationType.Q8_0:  # symmetric
            step = 2 * blocks.abs().amax(1, keepdim=True) / levels
        else:
            step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / levels
        largest = blocks.abs().amax(1, keepdim=True)
        bound = step / 2 + 2**-9 * largest  # a block's scale and minimum are float16, of 11 bits
        require(((found - blocks).abs() <= bound).all(), f"{name} is off by more than half a step")
        require((found != blocks).any(), f"{name} was not quantised")
    card = (work / "folder" / "README.md").read_text()
    require("not bit for bit" in card, "the card does not say that it is quantised")
    load(work / "folder")


def check_tokenizer(work, tokenizer):
    """AutoTokenizer on the folder of check_logits gives the ids of the tokenizer that the file was made from."""
    found = AutoTokenizer.from_pretrained(work / "folder")
    tokenizer.add_special_tokens(SPECIAL)
    for text in TEXTS:
        ids = found(text).input_ids
        require(ids == tokenizer.encode(text).ids, f"{text!r} becomes {found.convert_ids_to_tokens(ids)}")
        require(found.decode(ids) == text, f"{text!r} comes back as {found.decode(ids)!r}")
        plain = found.decode(ids, skip_special_tokens=True)
        require(plain == text.replace("<|endoftext|>", "").replace("<file_sep>", ""), f"without special tokens it is {plain!r}")
    chat = found.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    special = (found.bos_token, found.eos_token)
    require((*special, chat) == ("<|im_start|>", "<|endoftext|>", "Hello"), f"special tokens {special}, chat {chat!r}")


def check_refused(work, words, change):
    """A file that asks for more than a plain Llama is refused in one line with exit status 2, and no folder is made."""
    tokenizer = make_tokenizer()
    model = make_model(SHAPES[0], tokenizer.get_vocab_size())
    write_gguf(work / "other.gguf", model, tokenizer, change=change)
    expect_refusal(work, "other.gguf", words)


def expect_refusal(work, name, words):
    ended = convert(work / name, work / "refused")
    require(ended.returncode == 2, f"{words}: ended with {ended.returncode}: {ended.stderr}")
    lines = ended.stderr.strip().splitlines()
    require(len(lines) == 1 and words in lines[0] and name in lines[0], f"refused in other words: {ended.stderr}")
    require(not (work / "refused").exists(), "a folder was made")


def replace(key, value):
    """A change: another value of a key that is there."""

    def change(writer):
        writer.kv_data[0][key].value = value

    return change


def add_ones(name, size):
    """A change: one tensor more."""
    return lambda writer: writer.add_tensor(name, np.ones(size, np.float32))


REFUSALS = [
    ("general.architecture is qwen2", replace("general.architecture", "qwen2")),
    ("llama.rope.scaling.type is yarn", lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)),
    ("llama.rope.scaling.factor is 4", lambda writer: writer.add_rope_scaling_factor(4.0)),
    ("llama.expert_count is 8", lambda writer: writer.add_expert_count(8)),
    ("llama.rope.dimension_count is 6, but a head is 12", replace("llama.rope.dimension_count", 6)),
    ("rope_freqs.weight is not part", add_ones("rope_freqs.weight", 6)),
    ("blk.0.attn_q_norm.weight is not part", add_ones("blk.0.attn_q_norm.weight", 12)),
    ("but its metadata ask for (51, 36)", replace("llama.feed_forward_length", 51)),
    ("lacks the tensor model.layers.2", replace("llama.block_count", 3)),
    ("does not count", replace("llama.block_count", 1)),
    ("tokenizer.ggml.model is llama", replace("tokenizer.ggml.model", "llama")),
    ("tokenizer.ggml.pre is qwen2", replace("tokenizer.ggml.pre", "qwen2")),
    ("tokenizer.ggml.add_bos_token is True", lambda writer: writer.add_add_bos_token(True)),
    ("tokenizer.ggml.eos_token_id is 5000", replace("tokenizer.ggml.eos_token_id", 5000)),
]


def check_refusals(work):
    for words, change in REFUSALS:
        check_refused(work, words, change)
    whole = (work / "model.gguf").read_bytes()
    (work / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    expect_refusal(work, "cut.gguf", "is not a whole GGUF file")
    (work / "text.gguf").write_text("no model at all, but long enough to look at")
    expect_refusal(work, "text.gguf", "is not a whole GGUF file")
    expect_refusal(work, "nowhere.gguf", "there is no file")
    ended = subprocess.run([sys.executable, CONVERTER, work / "model.gguf", "--out", work / "folder"],
                           check=False, capture_output=True, text=True)  # fmt: skip
    require(ended.returncode == 2 and "--force" in ended.stderr, f"a folder was replaced: {ended.stderr}")


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory(prefix="lnfree-gguf-") as name:
        work = pathlib.Path(name)
        for shape in SHAPES:
            check_logits(work, shape, tokenizer)
            print(f"ok  {shape[1]} query heads, {shape[2]} key heads{', biases' if shape[6] else ''}: the same logits")
        check_tokenizer(work, tokenizer)
        print("ok  the same token ids")
        check_refusals(work)
        print(f"ok  {len(REFUSALS) + 4} refusals")
        check_quantised(work, gguf.GGMLQuantizationType.Q4_1, 15)
        check_quantised(work, gguf.GGMLQuantizationType.Q8_0, 254)
        print("ok  Q4_1 and Q8_0 within half a step")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as problem:
        sys.exit(f"FAILED  {problem}")
