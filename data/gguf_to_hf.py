"""A GGUF file -> the Hugging Face folder that it was made from: weights in float32, config.json, tokenizer, model card.

    pip install -r data/requirements.txt
    python3 data/gguf_to_hf.py model.gguf --out models/model

For models of Llama's kind with a byte-level BPE tokenizer; whatever else a file asks for is refused by its name.
Quantised weights come out as the numbers that they stand for: nothing brings back what rounding took.

Memory: twice the weights in float32. The folder is complete when model.safetensors is in it. Exit status: 0 done,
1 failed, 2 bad use.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re
import sys

import shard_writer
from shard_writer import BadInput

np = shard_writer.np

try:
    import gguf
    import safetensors.numpy
except ImportError as missing:
    sys.exit(shard_writer.fail(f"{missing.name} is not installed; pip install -r data/requirements.txt", 2))

# The keys under "llama." that this program understands (gguf.md of ggml-org/ggml). All others change what the model
# computes, so they are refused.
ARCHITECTURE_KEYS = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
}

# What llama.cpp names tensors, and what transformers' LlamaForCausalLM does.
OUTER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# tokenizer.ggml.pre names how a text is cut before merging: GPT-2's pattern, and before it, for SmolLM, every digit by
# itself (llama.cpp, src/llama-vocab.cpp).
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [SINGLE_DIGITS, BYTE_LEVEL]},
}

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # of tokenizer.ggml.token_type


# ----------------------------------------------------------------------------------------------------------------------
# Reading


class Metadata:
    """The keys and values of a GGUF file."""

    def __init__(self, reader, path):
        self.path = path
        try:
            self.values = {key: field.contents() for key, field in reader.fields.items()}
        except UnicodeDecodeError:
            raise BadInput(f"{path}: its metadata are not UTF-8; the file is damaged") from None

    def get(self, key, kind, default=None):
        """The value of `key`, of the Python type `kind`; without a default it must be there."""
        value = self.values.get(key, default)
        if value is None:
            raise BadInput(f"{self.path} has no {key}, which a model of Llama's kind needs")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BadInput(f"{self.path}: {key} is {str(value)[:60]}, not one {kind.__name__}; that is not supported")
        return value

    def require(self, key, kind, default, supported):
        """BadInput unless the value of `key` is one of `supported`."""
        value = self.get(key, kind, default)
        if value not in supported:
            names = " and ".join(map(str, supported))
            raise BadInput(f"{self.path}: {key} is {value}, which is not supported; only {names}")
        return value


def open_gguf(path):
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError) as problem:  # the package's ways to say so
        raise BadInput(f"{path} is not a whole GGUF file ({type(problem).__name__}: {problem})") from None


def shortest(value):
    """The number of fewest digits that is `value` in float32, as GGUF stores it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def read_shape(metadata):
    """config.json's numbers."""
    metadata.require("general.architecture", str, None, ["llama"])
    for key in metadata.values:
        if key.startswith("llama.") and key.removeprefix("llama.") not in ARCHITECTURE_KEYS:
            raise BadInput(f"{metadata.path}: {key} is {metadata.values[key]}; models that have it are not supported")
    metadata.require("llama.rope.scaling.type", str, "none", ["none"])

    def number(key, default=None):
        value = metadata.get(f"llama.{key}", int, default)
        if value < 1:
            raise BadInput(f"{metadata.path}: llama.{key} is {value}, not at least 1")
        return value

    width, heads = number("embedding_length"), number("attention.head_count")
    key_heads = number("attention.head_count_kv", heads)
    head_width = number("attention.key_length", width // heads)
    if heads % key_heads or head_width % 2:
        raise BadInput(f"{metadata.path}: {heads} query heads of {head_width} do not go with {key_heads} key heads")
    for key in ("rope.dimension_count", "attention.value_length"):
        if number(key, head_width) != head_width:
            raise BadInput(f"{metadata.path}: llama.{key} is {number(key)}, but a head is {head_width} wide")
    return {
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_width,
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": shortest(metadata.get("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": shortest(metadata.get("llama.rope.freq_base", float, 10000.0)),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Weights


def tensor_name(name):
    """What transformers calls the tensor; None if it has no such tensor."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if block is None:
        return OUTER_TENSORS.get(name)
    number, part, kind = block.groups()
    if part not in BLOCK_TENSORS or (kind == "bias" and part.endswith("_norm")):
        return None
    return f"model.layers.{number}.{BLOCK_TENSORS[part]}.{kind}"


def halves_together(rows, heads):
    """The rows of a query or key projection, or its bias, in transformers' order; rows: (heads * width, ...).

    Rotary embeddings turn pairs of a head's elements. llama.cpp's are neighbours, 2i and 2i + 1; transformers' are
    i and i + width/2. llama.cpp's convert_hf_to_gguf.py (`permute`) interleaves the halves; this undoes it.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def expected_tensors(shape, vocab_size, names):
    """Name -> shape of every tensor of the model. The head and biases are of it if `names` has any of them."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    linear = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
    linear = {f"self_attn.{part}_proj": size for part, size in linear.items()}
    mlp = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    linear |= {f"mlp.{part}_proj": size for part, size in mlp.items()}
    biased = {name.split(".")[3] for name in names if name.endswith(".bias")}

    tensors = {"model.embed_tokens.weight": (vocab_size, width), "model.norm.weight": (width,)}
    if "lm_head.weight" in names:
        tensors["lm_head.weight"] = (vocab_size, width)
    for layer in range(shape["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{norm}.weight"] = (width,)
        for part, size in linear.items():
            tensors[f"{block}.{part}.weight"] = size
            if part.split(".")[0] in biased:
                tensors[f"{block}.{part}.bias"] = size[:1]
    return tensors


def check_tensors(found, expected, path):
    """BadInput unless the names and shapes of `found` are those of `expected`."""
    for name, size in expected.items():
        if name not in found:
            raise BadInput(f"{path} lacks the tensor {name}")
        if found[name] != size:
            raise BadInput(f"{path}: {name} is {found[name]}, but its metadata ask for {size}")
    for name in found:
        if name not in expected:
            raise BadInput(f"{path}: {name} is of a block that llama.block_count does not count")


def read_weights(reader, shape, path):
    """Name -> float32 array of transformers' tensors, and how many tensors of which type the file holds."""
    named, types = {}, collections.Counter()
    for tensor in reader.tensors:
        name = tensor_name(tensor.name)
        if name is None:
            # rope_freqs.weight, experts, norms of queries and keys, ...: they change what the model computes.
            raise BadInput(f"{path}: {tensor.name} is not part of a plain Llama; models that have it are not supported")
        named[name] = tensor
        types[tensor.tensor_type.name] += 1
    sizes = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in named.items()}
    vocab_size = sizes.get("model.embed_tokens.weight", (0,))[0]
    check_tensors(sizes, expected_tensors(shape, vocab_size, sizes), path)

    heads = {"q_proj": shape["num_attention_heads"], "k_proj": shape["num_key_value_heads"]}
    weights = {}
    for name, tensor in named.items():
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(sizes[name])
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise BadInput(f"{path}: {tensor.name} is {kind}, which the package gguf cannot dequantise") from None
        if not np.isfinite(values).all():
            raise BadInput(f"{path}: {tensor.name} holds a value that is not finite")
        part = name.split(".")[-2]
        weights[name] = np.ascontiguousarray(halves_together(values, heads[part]) if part in heads else values)
    return weights, types


# ----------------------------------------------------------------------------------------------------------------------
# The tokenizer


def read_tokens(metadata):
    """(text, type) of every token, in the order of their ids."""
    tokens = metadata.get("tokenizer.ggml.tokens", list)
    types = metadata.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise BadInput(f"{metadata.path}: {len(types)} token types for {len(tokens)} tokens")
    for token, kind in zip(tokens, types):
        if kind not in (NORMAL, CONTROL, USER_DEFINED, UNUSED):
            raise BadInput(f"{metadata.path}: token {token!r} is of type {kind}, which byte-level BPE does not have")
    return list(zip(tokens, types))


def tokenizer_json(metadata):
    """tokenizer.json, as tokenizers (Hugging Face) reads it."""
    metadata.require("tokenizer.ggml.model", str, None, ["gpt2"])
    pre = metadata.require("tokenizer.ggml.pre", str, None, list(PRE_TOKENIZERS))
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        metadata.require(f"tokenizer.ggml.{key}", bool, False, [False])
    tokens = read_tokens(metadata)
    added = [
        {"id": token, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == CONTROL}
        for token, (text, kind) in enumerate(tokens) if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    vocabulary = {text: token for token, (text, kind) in enumerate(tokens) if kind != UNUSED}
    merges = metadata.get("tokenizer.ggml.merges", list)
    for merge in merges:
        parts = merge.split(" ")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= vocabulary.keys():
            raise BadInput(f"{metadata.path}: the merge {merge!r} does not belong to its vocabulary")
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocabulary, "merges": merges}  # fmt: skip
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": PRE_TOKENIZERS[pre], "post_processor": None, "decoder": BYTE_LEVEL,
            "model": model}  # fmt: skip


def special_ids(metadata, vocab_size):
    """config.json's ids of special tokens: those that the file gives."""
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found = {}
    for ours, theirs in keys.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        if key in metadata.values:
            found[ours] = metadata.get(key, int)
            if not 0 <= found[ours] < vocab_size:
                raise BadInput(f"{metadata.path}: {key} is {found[ours]}, outside the vocabulary of {vocab_size}")
    return found


def tokenizer_config(metadata, ids):
    tokens = metadata.values["tokenizer.ggml.tokens"]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
              "clean_up_tokenization_spaces": False,
              "model_max_length": metadata.values["llama.context_length"]}  # fmt: skip
    config |= {f"{name}_token": tokens[token] for name, token in ids.items()}
    if "tokenizer.chat_template" in metadata.values:
        config["chat_template"] = metadata.get("tokenizer.chat_template", str)
    return config


# ----------------------------------------------------------------------------------------------------------------------
# The folder


def model_config(shape, weights, ids):
    linear_bias = {kind: f"model.layers.0.{kind}.bias" in weights for kind in ("self_attn.q_proj", "mlp.up_proj")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "vocab_size": len(weights["model.embed_tokens.weight"]),
        "hidden_act": "silu",
        "attention_bias": linear_bias["self_attn.q_proj"],
        "mlp_bias": linear_bias["mlp.up_proj"],
        "attention_dropout": 0.0,
        "rope_scaling": None,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": "float32",
        **{f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad") if name in ids},
    }


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card_header(values):
    """The lines that the hub reads."""
    lines = ["---", "library_name: transformers"]
    if "general.license" in values:
        lines.append(f"license: {values['general.license']}")
    if "general.languages" in values:
        lines += ["language:", *(f"- {language}" for language in values["general.languages"])]
    return [*lines, "---"]


def model_card(metadata, types, origin):
    """README.md: where the model comes from, its licence, and what was done to it."""
    values, path = metadata.values, metadata.path
    authors = values.get("general.organization", values.get("general.author"))
    licence = values.get("general.license")
    held = ", ".join(f"{kind} ({count} of its tensors)" for kind, count in types.most_common())
    if types.keys() <= {"F64", "F32", "F16", "BF16"}:
        fidelity = "Here all are float32, of the same values."
    else:
        fidelity = (
            "Here all are float32, each the number that its quantised one stands for: this is the quantised model, and "
            "**not bit for bit** the one that it was quantised from."
        )
    lines = [
        *card_header(values),
        "",
        f"# {values.get('general.name', path.stem)}",
        "",
        " ".join([f"* From `{path.name}`, SHA-256 `{sha256(path)}`.", *origin.split()]),
        f"* By {authors}, as the file says." if authors else "* The file does not say by whom.",
        f"* Licence, as the file says: {licence}." if licence else "* The file names no licence; ask where it is from.",
        f"* The file holds {held}. {fidelity}",
        "* Queries and keys are in the order of transformers' rotary embeddings. The tokenizer is the file's.",
        "",
        "Converted by data/gguf_to_hf.py of gpt2-lnfree.",
        "",
    ]
    return "\n".join(lines)


def write_folder(folder, files, weights):
    """Writes the texts `files` (name -> content), then the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    for name, content in files.items():
        if isinstance(content, str):
            shard_writer.write_atomically(folder / name, lambda file: file.write(content.encode()))
        else:
            shard_writer.write_json(folder / name, content)
    data = safetensors.numpy.save(weights, metadata={"format": "pt"})
    shard_writer.write_atomically(folder / "model.safetensors", lambda file: file.write(data))


def convert(flags):
    if (flags.out / "config.json").exists() and not flags.force:
        raise BadInput(f"{flags.out} holds a model already; --force replaces it")
    reader = open_gguf(flags.gguf)
    metadata = Metadata(reader, flags.gguf)
    shape = read_shape(metadata)
    tokenizer = tokenizer_json(metadata)
    weights, types = read_weights(reader, shape, flags.gguf)
    vocab_size = len(weights["model.embed_tokens.weight"])
    tokens = len(metadata.values["tokenizer.ggml.tokens"])
    if tokens != vocab_size or metadata.get("llama.vocab_size", int, vocab_size) != vocab_size:
        raise BadInput(f"{flags.gguf}: its tokens ({tokens}) or llama.vocab_size are not its {vocab_size} embeddings")
    ids = special_ids(metadata, vocab_size)
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config(metadata, ids),
        "generation_config.json": {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad") if name in ids},
        "README.md": model_card(metadata, types, flags.origin),
        "config.json": model_config(shape, weights, ids),
    }
    write_folder(flags.out, files, weights)
    parameters = sum(values.size for values in weights.values())
    print(f"{flags.out}: {parameters:,} parameters in float32, {vocab_size:,} tokens")


def parse_flags():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("gguf", type=pathlib.Path, metavar="FILE.gguf")
    flags.add_argument("--out", type=pathlib.Path, required=True, metavar="FOLDER")
    flags.add_argument("--origin", default="", metavar="TEXT", help="where the file is from, for the model card")
    flags.add_argument("--force", action="store_true", help="replace a model in FOLDER")
    return flags.parse_args()


if __name__ == "__main__":
    try:
        convert(parse_flags())
    except BadInput as problem:
        sys.exit(shard_writer.fail(problem, 2))
    except OSError as problem:
        sys.exit(shard_writer.fail(problem, 1))
