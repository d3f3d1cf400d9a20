#!/usr/bin/env python3
"""Holds the engine against the programs that its users load models with (README.md beside this file).

    make test-interop

    build/interop-venv/bin/python test/interop/check.py ENGINE        the same on a program that is built already

One line per check; the last line is "N passed, N failed, N skipped". Exit 0 if nothing failed, else 1.
"""

import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
from importlib.metadata import version

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2LMHeadModel

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import stock_folders
from stock_folders import Stock

POSITIONS = 512
EXACT = 1e-4  # largest difference between logits that are computed in F32 from the same weights


def shape(n_embd, n_head, n_layer, vocab_size, n_positions=POSITIONS, **more):
    return dict(more, n_embd=n_embd, n_head=n_head, n_layer=n_layer, vocab_size=vocab_size, n_positions=n_positions)


STOCK_FOLDERS = [
    Stock("gpt2's vocabulary, F32, sharded", shape(192, 6, 3, 50257), shard_size="20MB"),
    Stock("F16, n_inner 77", shape(48, 4, 2, 1009, n_inner=77), torch.float16),
    Stock("BF16, sharded, n_inner 500", shape(60, 5, 4, 257, n_inner=500), torch.bfloat16, shard_size="150KB"),
    Stock("no prefix, epsilon 0.01", shape(51, 3, 2, 5003, layer_norm_epsilon=0.01), prefix=False),
    Stock("one head, 700 positions", shape(33, 1, 1, 101, 700, eos_token_id=100)),
    Stock("12 layers, F16, sharded", shape(64, 8, 12, 311), torch.float16, shard_size="400KB"),
    Stock("attention masks, tied head stored", shape(40, 2, 2, 97), masks=True),
    Stock("128 wide, BF16, no prefix", shape(128, 2, 2, 2003), torch.bfloat16, prefix=False),
]
PUBLISHED = [
    Stock("published LayerNorm-free, F32", shape(64, 4, 3, 257), layernorm_free=True),
    Stock("published LayerNorm-free, BF16", shape(48, 4, 2, 257), torch.bfloat16, layernorm_free=True),
]


class Checks:
    """Runs checks one after the other and counts them."""

    def __init__(self):
        self.passed = self.failed = 0

    def run(self, name, check, *arguments):
        """check() returns what is worth printing, and raises whatever it finds wrong."""
        try:
            told = check(*arguments)
        except Exception as error:  # noqa: BLE001, the next check is worth running whatever went wrong in this one
            self.failed += 1
            print(f"FAILED  {name}: {' '.join(str(error).split()) or type(error).__name__}", flush=True)
        else:
            self.passed += 1
            print(f"ok      {name}{f': {told}' if told else ''}", flush=True)

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed, 0 skipped")
        return 1 if self.failed else 0


def require(condition, message):
    if not condition:
        raise AssertionError(message)


def same_logits(ours, theirs, bound=EXACT):
    require(ours.shape == theirs.shape, f"logits have shapes {tuple(ours.shape)} and {tuple(theirs.shape)}")
    require(torch.isfinite(theirs).all(), "the client's logits are not finite")
    difference = (ours.double() - theirs.double()).abs().max().item()
    require(difference <= bound, f"logits differ by {difference:.2e}, more than {bound:g}")
    return f"largest difference {difference:.1e} of logits up to {theirs.abs().max():.1f}"


class Engine:
    """The program under test, on one set of token shards."""

    def __init__(self, program, work):
        self.program = pathlib.Path(program).resolve()
        self.work = work

    def run(self, *arguments):
        """Runs a command with --json and returns the object; RuntimeError with its error line if it fails."""
        ended = subprocess.run(
            [self.program, *map(str, arguments), "--json"], check=False, capture_output=True, text=True
        )
        if ended.returncode != 0:
            raise RuntimeError(ended.stderr.strip().splitlines()[-1] if ended.stderr else f"ended {ended.returncode}")
        return json.loads(ended.stdout)

    def evaluate(self, folder, tokens):
        """What eval says about tokens (T + 1), and its logits (T,V)."""
        shard, out = self.work / "tokens.bin", self.work / "logits.safetensors"
        header = struct.pack("<3i", 20240520, 1, len(tokens)).ljust(1024, b"\0")
        shard.write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens.tolist()))
        result = self.run(
            "eval", "--model", folder, "--data", shard, "--seq", len(tokens) - 1, "--logits", out, "--force"
        )
        return result, load_file(out)["logits"].clone()


def random_tokens(vocab_size, seed):
    return torch.randint(vocab_size, (POSITIONS + 1,), generator=torch.Generator().manual_seed(seed))


# ---- models in --------------------------------------------------------------------------------------------------------


def check_stock_folder(engine, folder, stock, seed):
    """A folder of save_pretrained: the engine's logits and loss are transformers'."""
    stock_folders.write(stock, folder, seed)
    tokens = random_tokens(stock.shape["vocab_size"], 1)
    theirs = stock_folders.logits(folder, tokens[:-1])
    result, ours = engine.evaluate(folder, tokens)
    told = same_logits(ours, theirs)
    loss = torch.nn.functional.cross_entropy(theirs, tokens[1:]).item()
    require(abs(result["loss"] - loss) < 1e-4, f"eval says {result['loss']}, transformers {loss}")
    require(result["layernorm_free"] == stock.layernorm_free, f"layernorm_free is {result['layernorm_free']}")
    return told


def check_round_trip(engine, folder, stock):
    """The same folder exported again is the same model to transformers."""
    out = engine.work / "again"
    engine.run("export", "--model", folder, "--out", out, "--force")
    tokens = random_tokens(stock.shape["vocab_size"], 2)[:-1]
    return same_logits(stock_folders.logits(out, tokens), stock_folders.logits(folder, tokens))


def check_published(engine, folder):
    """A LayerNorm-free folder without lnfree.json: folded, then fine-tuned without getting its LayerNorms back."""
    tokens = random_tokens(257, 3)
    _, ours = engine.evaluate(folder, tokens)
    out = engine.work / f"{folder.name}_folded"
    engine.run("export", "--model", folder, "--form", "folded", "--out", out)
    told = same_logits(engine.evaluate(out, tokens)[1], ours)
    tuned = engine.work / f"{folder.name}_tuned"
    brief = ("--steps", 3, "--batch", 2, "--seq", 32, "--grad-accum", 1)
    engine.run("finetune", "--model", folder, *training_flags(engine.work), *brief, "--out", tuned)
    result, ours = engine.evaluate(tuned, tokens)
    require(result["layernorm_free"], "fine-tuning brought LayerNorms back")
    same_logits(ours, stock_folders.logits(tuned, tokens[:-1]))
    return told


# ---- models out -------------------------------------------------------------------------------------------------------


def training_flags(work):
    return ("--data", work / "stories_train_*.bin", "--val", work / "stories_val_*.bin", "--val-tokens", 512)


def check_removal(engine):
    """Makes a small byte model of the story world, trained for a moment, and takes its LayerNorms out."""
    work = engine.work
    engine.run("stories", "--count", 200, "--out", work / "stories.jsonl")
    engine.run("tokenize", "--input", work / "stories.jsonl", "--out", work / "stories", "--val-fraction", 0.1)
    small = ("--n-layer", 3, "--n-head", 3, "--n-embd", 48, "--n-ctx", POSITIONS)
    brief = ("--steps", 40, "--batch", 4, "--seq", 64, "--grad-accum", 1, *training_flags(work))
    engine.run("pretrain", *small, *brief, "--lr", 3e-3, "--out", work / "base")
    summary = engine.run("remove", "--model", work / "base", *brief, "--out", work / "lnfree")
    require(summary["layernorm_free"], "is not LayerNorm-free")
    return f"validation loss {summary['val_loss_last']:.2f}"


def check_hugging_face_form(engine, name, tokens):
    """from_pretrained finds every key and no other, in the type of the file, and computes what the engine does."""
    folder = engine.work / name
    result, ours = engine.evaluate(folder, tokens)
    require(result["layernorm_free"], "is not LayerNorm-free")
    told = same_logits(ours, stock_folders.logits(folder, tokens[:-1]))
    stored = torch.bfloat16 if "bf16" in name else torch.float32
    loaded = GPT2LMHeadModel.from_pretrained(folder, dtype="auto")
    require(loaded.dtype == stored, f"from_pretrained takes it for {loaded.dtype}")
    require(loaded.config.layer_norm_epsilon == 1e12, f"epsilon is {loaded.config.layer_norm_epsilon}")
    return told


def check_tokenizer(engine, name):
    text = 'Once upon a time, Zoë said "no".\n'
    ids = AutoTokenizer.from_pretrained(engine.work / name, config=transformers.GPT2Config())(text).input_ids
    require(ids == list(text.encode()), f"AutoTokenizer encodes to {ids}")


def check_generation(engine, name):
    """transformers and the engine continue a prompt alike, both taking the likeliest token."""
    folder, prompt = engine.work / name, "Once upon a time"
    ours = engine.run("generate", "--model", folder, "--prompt", prompt, "--temperature", 0, "--max-tokens", 20)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([list(prompt.encode())])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    theirs = made[0, len(prompt) :].tolist()
    require(theirs[: len(ours["tokens"])] == ours["tokens"], f"{theirs} and {ours['tokens']}")
    return f"{len(ours['tokens'])} tokens"


def check_export(engine, name, form, dtype, tokens, exports):
    """The export is close to the model, whatever its precision. Its logits go into `exports`."""
    out = engine.work / name
    engine.run("export", "--model", engine.work / "lnfree", "--form", form, "--dtype", dtype, "--out", out)
    result, exports[name] = engine.evaluate(out, tokens)
    loss, exact = result["loss"], engine.evaluate(engine.work / "lnfree", tokens)[0]["loss"]
    require(abs(loss - exact) < (1e-5 if dtype == "f32" else 0.02), f"its loss is {loss}, the model's {exact}")
    return f"loss {loss:.4f}, the model's {exact:.4f}"


def check_refused(engine, words, *arguments):
    try:
        engine.run(*arguments)
    except RuntimeError as error:
        require(words in str(error), f"refused for another reason: {error}")
        return
    raise AssertionError("was not refused")


# ---- TransformerLens --------------------------------------------------------------------------------------------------


def load_in_lens(engine, path, tokens, logits):
    """Fills logits[folder][processing] with what lens_logits.py computes where PYTHONPATH is `path`."""
    require(logits, "there is no export to load")
    inputs, out = engine.work / "lens_tokens.safetensors", engine.work / "lens_logits.safetensors"
    save_file({"tokens": tokens.int()}, inputs)
    environment = dict(os.environ, PYTHONPATH=path, PYTHONWARNINGS="ignore")
    command = [sys.executable, HERE / "lens_logits.py", inputs, out, *(engine.work / name for name in logits)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if ended.returncode != 0:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1])
    for key, values in load_file(out).items():
        folder, processing = key.rsplit(":", 1)
        logits[pathlib.Path(folder).name][processing] = values


def check_lens(logits, ours):
    """Folding and centring change nothing; center_unembed takes each position's mean logit away, and nothing else."""
    told = same_logits(ours, logits["as loaded"])
    same_logits(ours, logits["folded and centred"])
    centred = logits["center_unembed as well"]
    same_logits(ours - ours.mean(-1, keepdim=True), centred)
    same_logits(ours.log_softmax(-1), centred.log_softmax(-1))
    return told


def check_compatibility_mode(engine, name, tokens, exports):
    """What README.md and the model card tell users of TransformerLens 4 to type."""
    from transformer_lens.model_bridge import TransformerBridge

    ours = exports[name]
    bridge = TransformerBridge.boot_transformers(str(engine.work / name), device="cpu")
    with torch.no_grad():
        told = same_logits(ours, bridge(tokens[None])[0])
        bridge.enable_compatibility_mode(disable_warnings=True, center_unembed=False)
        same_logits(ours, bridge(tokens[None])[0])
    return told


def check_lens_program(engine, name):
    script = HERE.parents[1] / "scripts" / "load_in_transformer_lens.py"
    command = [sys.executable, script, engine.work / name, "--prompt", "Once upon a time"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    require(ended.returncode == 0 and "next:" in ended.stdout, ended.stderr or ended.stdout)
    ended = subprocess.run([sys.executable, script, engine.work], check=False, capture_output=True, text=True)
    one_line = len(ended.stderr.splitlines()) == 1 and "config.json" in ended.stderr
    require(ended.returncode == 2 and one_line, f"a folder that is no model: {ended.stderr}")


# ---- other clients ----------------------------------------------------------------------------------------------------


def check_explain(engine, folders):
    """`analyze explain` is TransformerLens 4's direct logit attribution, `analyze cache` its hooks (explain_in_lens.py)."""
    work = engine.work
    command = [sys.executable, HERE / "explain_in_lens.py", engine.program, work / "stories_val_*.bin", "97", "98"]
    ended = subprocess.run([*command, *(work / name for name in folders)], check=False, capture_output=True, text=True)
    require(ended.returncode == 0, ended.stderr.strip())
    return "; ".join(line.removeprefix(f"{work}/") for line in ended.stdout.strip().splitlines())


def check_gguf():
    """GGUF files become folders with the logits and ids of what they were made from (gguf_folders.py)."""
    command = [sys.executable, HERE / "gguf_folders.py"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    require(ended.returncode == 0, ended.stderr.strip().splitlines()[-1] if ended.stderr else "no word why")
    return "; ".join(line[4:] for line in ended.stdout.splitlines() if line.startswith("ok  "))


def check_lm_eval(engine, name):
    """lm-evaluation-harness scores made-up items as `analyze benchmarks` does (compare_with_lm_eval.py)."""
    evals = engine.work / "evals"
    evals.mkdir()
    choices = [
        ("Once upon a time there was a", "little girl.", "girl little."),
        ("Tom gave the ball", "to Anna.", "Anna."),
    ]
    items = [dict(zip(("goal", "sol1", "sol2"), texts)) for texts in choices]
    (evals / "piqa_valid.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (evals / "piqa_valid-labels.lst").write_text("0\n0\n")
    texts = ("Tom and Anna went home. Tom thanked Anna", "The boy had a red ball")
    (evals / "lambada_openai.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [sys.executable, HERE / "compare_with_lm_eval.py", engine.work / name, evals]
    command += ["--program", engine.program, "--tasks", "piqa", "lambada"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    require(ended.returncode == 0, f"{ended.stdout.strip()} {ended.stderr.strip().splitlines()[-1:]}")
    found = [line[4:] for line in ended.stdout.splitlines() if line.startswith("ok")]
    return f"lm_eval {version('lm_eval')}: {'; '.join(found)}"


def write_client_inputs(engine, name, tokens, logits):
    """What the programs in_*.py compare with (client.py)."""
    cached, inputs = engine.work / "cached.safetensors", engine.work / "client_inputs.safetensors"
    place = "blocks.1.hook_resid_pre"
    shards = engine.work / "stories_val_*.bin"
    engine.run("analyze", "cache", "--model", engine.work / name, "--data", shards, "--hooks", place, "--tokens", 4096,
               "--seq", 64, "--out", cached)  # fmt: skip
    arrays = load_file(cached)
    save_file(
        {"tokens": tokens.int(), "logits": logits, place: arrays[place], "cached_tokens": arrays["tokens"].int()},
        inputs,
    )
    return inputs


def check_client(engine, python, program, inputs):
    folders = [engine.work / "hf_f32", engine.work / "folded_f32"]
    command = [python, HERE / program, *folders, inputs]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=engine.work)
    require(
        ended.returncode == 0, ended.stderr.strip().splitlines()[-1] if ended.stderr else f"ended {ended.returncode}"
    )
    result = json.loads(ended.stdout.strip().splitlines()[-1])
    return f"{result['installed']}: {result['done']}; largest difference {result['worst']:.1e}"


def check_clients(engine, checks, tokens, exports):
    checks.run("analyze explain and cache in TransformerLens 4", check_explain, engine, ["hf_f32", "folded_f32"])
    checks.run("lm-evaluation-harness", check_lm_eval, engine, "hf_f32")
    inputs = write_client_inputs(engine, "hf_f32", tokens, exports["hf_f32"])
    here = pathlib.Path(sys.prefix)
    for name, environment, program in (
        ("nnsight", here, "in_nnsight.py"),
        ("SAELens", here / "saelens", "in_saelens.py"),
        ("circuit-tracer", here / "circuits", "in_circuit_tracer.py"),
        ("nnterp", here / "circuits", "in_nnsight.py"),
    ):
        checks.run(name, check_client, engine, environment / "bin" / "python", program, inputs)


def check_all(engine, checks):
    checks.run("data/gguf_to_hf.py", check_gguf)
    checks.run("a LayerNorm-free model is made", check_removal, engine)
    for seed, stock in enumerate(STOCK_FOLDERS + PUBLISHED):
        folder = engine.work / f"stock_{seed}"
        checks.run(f"{stock.name}: transformers' logits", check_stock_folder, engine, folder, stock, seed)
        if stock.layernorm_free:
            checks.run(f"{stock.name}: folded, fine-tuned", check_published, engine, folder)
        checks.run(f"{stock.name}: exported again", check_round_trip, engine, folder, stock)

    import check_families  # which takes its tools from here

    check_families.check_families(checks, engine)

    tokens = random_tokens(257, 4)
    exports = {}  # our logits by folder
    for form, dtype in (("hf", "f32"), ("hf", "bf16"), ("folded", "f32"), ("folded", "bf16"), ("folded", "f16")):
        name = f"{form}_{dtype}"
        checks.run(f"{name}: re-imported", check_export, engine, name, form, dtype, tokens, exports)
        checks.run(f"{name}: AutoTokenizer", check_tokenizer, engine, name)
    for name in ("lnfree", "hf_f32", "hf_bf16"):
        checks.run(f"{name}: from_pretrained", check_hugging_face_form, engine, name, tokens)
    checks.run("hf_f32: generates what the engine generates", check_generation, engine, "hf_f32")
    impossible = ("export", "--model", engine.work / "lnfree", "--dtype", "f16", "--out", engine.work / "none")
    checks.run("hf_f16 is refused", check_refused, engine, "overflow", *impossible)

    for lens, path in (("4", ""), ("2", str(pathlib.Path(sys.prefix) / "lens2"))):
        logits = {name: {} for name in exports}  # by folder, then by processing
        loading = (engine, path, tokens[:-1], logits)
        checks.run(f"TransformerLens {lens} loads every export", load_in_lens, *loading)
        for name, ours in exports.items():
            checks.run(f"TransformerLens {lens}, {name}", check_lens, logits[name], ours)
    boot = (engine, "hf_f32", tokens[:-1], exports)
    checks.run("TransformerLens 4, hf_f32, boot_transformers and compatibility mode", check_compatibility_mode, *boot)
    for name in ("hf_f32", "folded_f32"):
        checks.run(f"load_in_transformer_lens.py {name}", check_lens_program, engine, name)
    check_clients(engine, checks, tokens[:-1], exports)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: check.py ENGINE")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="lnfree-interop-") as work:
        check_all(Engine(sys.argv[1], pathlib.Path(work)), checks)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
