"""Compares the oracle with parts that others wrote: transformers' models and schedule, torch's AdamW and clipping.

Run with `python test/oracle/oracle.py --self-check`. Prints the largest difference of each comparison and exits 1 when
one of them is above its tolerance.
"""
import math

import torch
from torch import nn
from transformers import (GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM,
                          get_cosine_with_min_lr_schedule_with_warmup)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import oracle

TOLERANCE = 1e-11  # absolute; the values compared are of order 1, at most a few tens
SPECIAL_CASES = ("position_0", "end_of_text")


class Worst:
    """The largest difference seen under each heading."""

    def __init__(self):
        self.found = {}

    def add(self, heading, ours, other):
        difference = torch.as_tensor(ours) - torch.as_tensor(other)
        largest = difference.abs().max().item() if difference.numel() else 0.0
        self.found[heading] = max(self.found.get(heading, 0.0), largest, key=lambda d: (math.isnan(d), d))

    def report(self, title, tolerances):
        failed = False
        print(title)
        for heading, largest in self.found.items():
            tolerance = tolerances.get(heading, TOLERANCE)
            ok = largest <= tolerance  # false for NaN too
            failed |= not ok
            print(f"{'ok  ' if ok else 'FAIL'} {heading}: largest difference {largest:.1e} (tolerance {tolerance:.0e})")
        if failed:
            raise SystemExit(1)


class Sites:
    """What the patched norms of one model share."""

    def __init__(self):
        self.removed, self.special = {}, dict.fromkeys(SPECIAL_CASES, False)
        self.inputs, self.sigma = None, {}
        self.aux_weight, self.aux_value, self.aux_share = 0.0, 0.0, 1.0


class PatchedNorm(nn.Module):
    """torch's layer_norm or rms_norm, or position by position a frozen divisor; adds the aux loss's gradient by formula.

    rms_norm and not transformers' own module, which works in float32 whatever it is given.
    """

    def __init__(self, norm, site, sites):
        super().__init__()
        self.weight, self.bias, self.site, self.sites = norm.weight, getattr(norm, "bias", None), site, sites
        self.centred = isinstance(norm, nn.LayerNorm)

    def forward(self, x):
        squares = x.detach().var(-1, unbiased=False) if self.centred else x.detach().norm(dim=-1) ** 2 / x.shape[-1]
        sigma = (squares + oracle.EPS).sqrt()
        self.sites.sigma[self.site] = sigma
        if self.site == "f":
            self.add_aux(x, sigma)
        if self.site not in self.sites.removed:
            return self.stock_norm(x)
        rows = [torch.stack([self.frozen_norm(x[b, t], b, t) for t in range(x.shape[1])]) for b in range(x.shape[0])]
        return torch.stack(rows)

    def stock_norm(self, x):
        if self.centred:
            return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, oracle.EPS)
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight, oracle.EPS)

    def frozen_norm(self, x, b, t):
        scalars, special = self.sites.removed[self.site], self.sites.special
        at_start = special["position_0"] and t == 0
        after_text = special["end_of_text"] and self.site[0] == "v" and self.sites.inputs[b][t] == oracle.END_OF_TEXT
        s = scalars["sigma_bar_0" if at_start or after_text else "sigma_bar"]
        if not self.centred:
            return x / s * self.weight
        return (x - x.sum() / len(x)) / s * self.weight + self.bias

    def add_aux(self, x, sigma):
        n_seq, n_pos, width = x.shape
        target = [sigma[b, t] for b in range(n_seq) for t in range(1, n_pos)
                  if self.sites.inputs[b][t] != oracle.END_OF_TEXT]
        self.sites.aux_value = 0.0
        if not target:
            return
        deviation = sigma - sum(target) / len(target)
        weight = self.sites.aux_weight
        self.sites.aux_value = weight * (deviation**2).mean().item()
        centred = x.detach()
        if self.centred:
            centred = centred - centred.mean(-1, keepdim=True)
        gradient = weight * 2 / (n_seq * n_pos) * (deviation / (width * sigma)).unsqueeze(-1) * centred
        x.register_hook(lambda dx: dx + self.sites.aux_share * gradient)


class PatchedAttentionInput(nn.Module):
    """c_attn behind two norms: one for its query and key columns, one for its value columns."""

    def __init__(self, c_attn, norm_qk, norm_v):
        super().__init__()
        self.c_attn, self.norm_qk, self.norm_v = c_attn, norm_qk, norm_v

    def forward(self, x):
        n = 2 * x.shape[-1]
        w, b = self.c_attn.weight, self.c_attn.bias
        return torch.cat([self.norm_qk(x) @ w[:, :n] + b[:n], self.norm_v(x) @ w[:, n:] + b[n:]], dim=-1)


class PatchedFusedInput(nn.Module):
    """GPT-NeoX's query_key_value, head by head query, key and value, behind the same two norms."""

    def __init__(self, linear, shape, norm_qk, norm_v):
        super().__init__()
        self.linear, self.norm_qk, self.norm_v = linear, norm_qk, norm_v
        part = torch.arange(3).view(1, 3, 1).expand(shape.n_head, 3, shape.head_size)
        self.is_value = part.flatten() == 2

    def forward(self, x):
        return torch.where(self.is_value, self.linear(self.norm_v(x)), self.linear(self.norm_qk(x)))


class PatchedRotary(nn.Module):
    """Cosine and sine in float64, of the very angles that the stock module takes them of in float32."""

    def __init__(self, stock):
        super().__init__()
        self.speeds = stock.inv_freq.float()

    def forward(self, x, position_ids):
        angles = (position_ids.unsqueeze(-1).float() * self.speeds).double()
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def patch_gpt2(model, shape, sites):
    body = model.transformer
    for l, block in enumerate(body.h):
        norms = [PatchedNorm(block.ln_1, f"{kind}[{l}]", sites) for kind in ("qk", "v")]
        block.attn.c_attn = PatchedAttentionInput(block.attn.c_attn, *norms)
        block.ln_1 = nn.Identity()
        block.ln_2 = PatchedNorm(block.ln_2, f"mlp[{l}]", sites)
    body.ln_f = PatchedNorm(body.ln_f, "f", sites)


def patch_neox(model, shape, sites):
    body = model.gpt_neox
    for l, block in enumerate(body.layers):
        norms = [PatchedNorm(block.input_layernorm, f"{kind}[{l}]", sites) for kind in ("qk", "v")]
        block.attention.query_key_value = PatchedFusedInput(block.attention.query_key_value, shape, *norms)
        block.input_layernorm = nn.Identity()
        block.post_attention_layernorm = PatchedNorm(block.post_attention_layernorm, f"mlp[{l}]", sites)
    body.final_layer_norm = PatchedNorm(body.final_layer_norm, "f", sites)
    body.rotary_emb = PatchedRotary(body.rotary_emb)


def patch_llama(model, shape, sites):
    body = model.model
    for l, block in enumerate(body.layers):
        attention = block.self_attn
        norm_qk, norm_v = (PatchedNorm(block.input_layernorm, f"{kind}[{l}]", sites) for kind in ("qk", "v"))
        attention.q_proj = nn.Sequential(norm_qk, attention.q_proj)
        attention.k_proj = nn.Sequential(norm_qk, attention.k_proj)
        attention.v_proj = nn.Sequential(norm_v, attention.v_proj)
        block.input_layernorm = nn.Identity()
        block.post_attention_layernorm = PatchedNorm(block.post_attention_layernorm, f"mlp[{l}]", sites)
    body.norm = PatchedNorm(body.norm, "f", sites)
    body.rotary_emb = PatchedRotary(body.rotary_emb)


PATCHES = {"gpt2": patch_gpt2, "neox": patch_neox, "llama": patch_llama}


def parts_of_gpt2(stock, shape):
    return {name.removeprefix("transformer."): [value] for name, value in stock.items()}


def parts_of_neox(stock, shape):
    parts = {"wte.weight": [stock["gpt_neox.embed_in.weight"]], "lm_head.weight": [stock["lm_head.weight"]]}
    own_names = {"ln_1": "input_layernorm", "attn.c_proj": "attention.dense", "ln_2": "post_attention_layernorm",
                 "mlp.c_fc": "mlp.dense_h_to_4h", "mlp.c_proj": "mlp.dense_4h_to_h"}
    for which in (".weight", ".bias"):
        parts["ln_f" + which] = [stock["gpt_neox.final_layer_norm" + which]]
        for l in range(oracle.L):
            block = f"gpt_neox.layers.{l}."
            for name, own in own_names.items():
                parts[f"h.{l}.{name}{which}"] = [stock[block + own + which]]
            fused = stock[block + "attention.query_key_value" + which]
            by_head = fused.view(shape.n_head, 3, shape.head_size, *fused.shape[1:])
            parts[f"h.{l}.attn.c_attn{which}"] = [by_head[:, i] for i in range(3)]
    return parts


def parts_of_llama(stock, shape):
    parts = {"wte.weight": [stock["model.embed_tokens.weight"]], "ln_f.weight": [stock["model.norm.weight"]]}
    own_names = {"ln_1": ["input_layernorm"], "ln_2": ["post_attention_layernorm"],
                 "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                 "attn.c_proj": ["self_attn.o_proj"],
                 "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"], "mlp.c_proj": ["mlp.down_proj"]}
    for l in range(oracle.L):
        for name, own in own_names.items():
            parts[f"h.{l}.{name}.weight"] = [stock[f"model.layers.{l}.{one}.weight"] for one in own]
    return parts


# Per name of the oracle's, views of the stock tensors that it is made of, in order.
PARTS = {"gpt2": parts_of_gpt2, "neox": parts_of_neox, "llama": parts_of_llama}


def is_transposed(model, name):
    """torch's Linear keeps (out, in), GPT-2's Conv1D and the oracle (in, out)."""
    return model != "gpt2" and (".attn." in name or ".mlp." in name) and name.endswith(".weight")


def joined(model, stock):
    """Stock tensors by the oracle's names and in its layout."""
    result = {}
    for name, parts in PARTS[model](stock, oracle.SHAPES[model]).items():
        if is_transposed(model, name):
            result[name] = torch.cat([part.reshape(-1, part.shape[-1]).T for part in parts], dim=1)
        else:
            result[name] = parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])
    return result


def fill(model, stock, parameters):
    """Writes the oracle's parameters into stock tensors."""
    parts = PARTS[model](stock, oracle.SHAPES[model])
    assert parts.keys() == parameters.keys(), parts.keys() ^ parameters.keys()
    for name, value in parameters.items():
        rest = (value.T if is_transposed(model, name) else value).flatten()
        for part in parts[name]:
            part.copy_(rest[: part.numel()].view(part.shape))
            rest = rest[part.numel() :]
        assert len(rest) == 0, name


def stock_config(model, epsilon):
    shape = oracle.SHAPES[model]
    tokens = {"vocab_size": oracle.V, "bos_token_id": oracle.END_OF_TEXT, "eos_token_id": oracle.END_OF_TEXT}
    if model == "gpt2":
        return GPT2Config(n_positions=oracle.N_CTX, n_embd=shape.n_embd, n_layer=oracle.L, n_head=shape.n_head,
                          resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, layer_norm_epsilon=epsilon, **tokens)
    rope = {"rope_type": "default", "rope_theta": shape.rotary_base}
    common = tokens | {"hidden_size": shape.n_embd, "num_hidden_layers": oracle.L, "num_attention_heads": shape.n_head,
                       "intermediate_size": shape.n_inner, "max_position_embeddings": oracle.N_CTX,
                       "tie_word_embeddings": shape.tied, "rope_parameters": rope}
    if model == "neox":
        rope["partial_rotary_factor"] = shape.rotary / shape.head_size
        return GPTNeoXConfig(layer_norm_eps=epsilon, **common)
    return LlamaConfig(rms_norm_eps=epsilon, num_key_value_heads=shape.n_key_head, head_dim=shape.head_size, **common)


STOCK_MODELS = {"gpt2": GPT2LMHeadModel, "neox": GPTNeoXForCausalLM, "llama": LlamaForCausalLM}


def stock_model(model, parameters, epsilon=oracle.EPS):
    stock = STOCK_MODELS[model](stock_config(model, epsilon)).double().eval()
    with torch.no_grad():
        fill(model, dict(stock.named_parameters()), parameters)
    return stock


class PatchedModel:
    """transformers' model with its norms replaced by PatchedNorm, and the oracle's names for its parameters."""

    def __init__(self, name, parameters):
        self.name, self.model, self.sites = name, stock_model(name, parameters), Sites()
        self.stock = dict(self.model.named_parameters())
        PATCHES[name](self.model, oracle.SHAPES[name], self.sites)

    def parameters(self):
        return joined(self.name, {name: value.detach() for name, value in self.stock.items()})

    def gradients(self):
        return joined(self.name, {name: value.grad for name, value in self.stock.items()})

    def predictions(self, inputs):
        """logits of the model as it is, as a constant"""
        self.sites.inputs = inputs.tolist()
        return self.model(input_ids=inputs, use_cache=False).logits.detach()

    def run(self, inputs, targets, share=1.0, distill=0.0, teacher=None):
        """Adds share * gradient of ((1 - distill) loss + distill KL + aux) to .grad; returns logits, loss and KL."""
        self.sites.inputs, self.sites.aux_share = inputs.tolist(), share
        logits = self.model(input_ids=inputs, use_cache=False).logits
        log_p = logits.log_softmax(-1)
        positions = [(b, t) for b in range(inputs.shape[0]) for t in range(inputs.shape[1])]
        loss = -sum(log_p[b, t, targets[b, t]] for b, t in positions) / len(positions)
        kl = torch.zeros(())
        if teacher is not None:
            log_p_o = teacher.predictions(inputs).log_softmax(-1)
            kl = nn.functional.kl_div(log_p, log_p_o, reduction="sum", log_target=True) / len(positions)
        (share * ((1 - distill) * loss + distill * kl)).backward()
        return logits.detach(), loss.item(), kl.item()


def check_static(worst, model, description, files):
    tensors = files["static"]
    teacher = PatchedModel(model, files["parameters"])
    for case in description["static"]:
        patched = PatchedModel(model, files["parameters"])
        patched.sites.removed, patched.sites.aux_weight = case["removed"], case["aux_weight"]
        patched.sites.special = {special: case[special] for special in SPECIAL_CASES}
        logits, loss, kl = patched.run(tensors[case["batch"] + ".inputs"], tensors[case["batch"] + ".targets"],
                                       distill=case["distill"], teacher=teacher)
        worst.add("static KL", kl, case["kl"])
        worst.add("static logits", logits, tensors[case["name"] + ".logits"])
        worst.add("static loss", loss, case["loss"])
        worst.add("static aux loss", patched.sites.aux_value, case["aux_loss"])
        for site, value in case["sigma_avg"].items():
            worst.add("static sigma_avg", patched.sites.sigma[site].mean(), value)
        for name, value in patched.gradients().items():
            worst.add("static gradients", value, tensors[f"{case['name']}.grad.{name}"])


def check_stock(worst, model, description, files):
    """The unmodified model against the stock one as it comes, and the statistics of its sigmas."""
    static = files["static"]
    stock = stock_model(model, files["parameters"])
    worst.add("stock logits", stock(static["batch.inputs"]).logits.detach(), static["none_main.logits"])

    patched = PatchedModel(model, files["parameters"])
    patched.predictions(static["batch.inputs"])
    for site, scalars in description["precursor_statistics"]["sites"].items():
        sigma = patched.sites.sigma[site]
        worst.add("precursor statistics", sigma[:, 1:].mean(), scalars["sigma_bar"])
        worst.add("precursor statistics", sigma[:, 0].mean(), scalars["sigma_bar_0"])


def check_exported(worst, description, files):
    """The LN-free GPT-2 against its Hugging Face form (protocol 9)."""
    static, width = files["static"], oracle.SHAPES["gpt2"].n_embd
    case = next(case for case in description["static"] if case["name"] == "all_main")
    sigma = {site: scalars["sigma_bar"] for site, scalars in case["removed"].items()}
    p = {name: value.clone() for name, value in files["parameters"].items()}
    p["ln_f.weight"] *= 1e6 / sigma["f"]
    for l in range(oracle.L):
        w, b = p[f"h.{l}.attn.c_attn.weight"], p[f"h.{l}.attn.c_attn.bias"]
        beta, values, s = p[f"h.{l}.ln_1.bias"], slice(2 * width, None), sigma[f"qk[{l}]"] / sigma[f"v[{l}]"]
        b[values] += (1 - s) * (beta @ w[:, values])
        w[:, values] *= s
        p[f"h.{l}.ln_1.weight"] *= 1e6 / sigma[f"qk[{l}]"]
        p[f"h.{l}.ln_2.weight"] *= 1e6 / sigma[f"mlp[{l}]"]
    exported = stock_model("gpt2", p, epsilon=1e12)
    worst.add("exported form logits", exported(static["batch.inputs"]).logits.detach(), static["all_main.logits"])


def clip_to_one(parameters):
    """torch's clipping without the 1e-6 that it adds to the norm; returns the norm."""
    norm = nn.utils.clip_grad_norm_(parameters, math.inf)
    if norm > 1:
        nn.utils.clip_grad_norm_(parameters, 1 + 1e-6 / norm)
    return norm.item()


def compare_final(worst, shape, name, value, final):
    if name.endswith("c_attn.bias"):
        # A constant added to all keys changes no attention weight unless it turns with the position, so the gradient of
        # such key biases is zero but for rounding, which Adam then magnifies: they are compared by themselves.
        free = torch.zeros(3, shape.n_head, shape.head_size, dtype=torch.bool)
        free[1, :, shape.rotary :] = True
        free = free.flatten()
        worst.add("trajectory final key biases", value[free], final[free])
        value, final = value[~free], final[~free]
    worst.add("trajectory final parameters", value, final)


# A model's heads are larger than the oracle's, and its bases others: pairs of Pythia, SmolLM2 and Llama 3.
ROTARY_SIZES = [(16, 10000.0), (20, 10000.0), (64, 10000.0), (64, 100000.0), (128, 500000.0)]


def check_speeds(worst):
    for size, base in ROTARY_SIZES:
        shape = oracle.Shape(n_head=1, n_key_head=1, head_size=size, n_embd=size, n_inner=1, rotary=size, rotary_base=base)
        config = LlamaConfig(head_dim=size, rope_parameters={"rope_type": "default", "rope_theta": base})
        stock = LlamaRotaryEmbedding(config).inv_freq.double()
        worst.add("rotary speeds, in units of their last place", (oracle.turning_speeds(shape) / stock - 1) * 2**24, 0.0)


def check_trajectory(worst, model, run, files):
    """Trains the patched model with torch's optimiser and transformers' learning rate, given the run's events."""
    s, tensors = run["settings"], files["trajectories"]
    patched, teacher = PatchedModel(model, files["parameters"]), PatchedModel(model, files["parameters"])
    patched.sites.aux_weight = s["aux_weight"]
    patched.sites.special = dict.fromkeys(SPECIAL_CASES, s["precursor"])
    is_plain = [name.endswith("bias") or "ln_" in name or "norm" in name for name in patched.stock]
    groups = [{"params": [p for p, plain in zip(patched.stock.values(), is_plain) if plain == no_decay],
               "weight_decay": 0.0 if no_decay else s["weight_decay"]} for no_decay in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=s["lr"], betas=(s["beta1"], s["beta2"]), eps=s["adam_eps"])
    scheduler = get_cosine_with_min_lr_schedule_with_warmup(optimizer, s["warmup"], s["steps"], min_lr=s["min_lr"])

    for record in run["steps"]:
        step = record["step"]
        for event in record["events"]:
            if event["kind"] == "removed":
                patched.sites.removed[event["site"]] = event
            else:
                patched.sites.special[event["special"]] = False
        optimizer.zero_grad()
        loss = kl = aux = 0.0
        sigma_avg = torch.zeros(len(oracle.SITES))
        for inputs, targets in zip(tensors[f"{run['name']}.inputs"][step], tensors[f"{run['name']}.targets"][step]):
            _, one_loss, one_kl = patched.run(inputs, targets, 1 / s["accum"], s["distill"], teacher)
            loss += one_loss / s["accum"]
            kl += one_kl / s["accum"]
            aux += patched.sites.aux_value / s["accum"]
            sigma_avg += torch.stack([patched.sites.sigma[site].mean() for site in oracle.SITES]) / s["accum"]
        worst.add("trajectory loss", loss, record["loss"])
        worst.add("trajectory KL", kl, record["kl"])
        worst.add("trajectory aux loss", aux, record["aux_loss"])
        worst.add("trajectory sigma_avg", sigma_avg, tensors[f"{run['name']}.sigma_avg"][step])
        worst.add("trajectory gradient norm", clip_to_one(patched.stock.values()), record["grad_norm"])
        worst.add("trajectory learning rate", scheduler.get_last_lr()[0], record["lr"])
        optimizer.step()
        scheduler.step()
    for name, value in patched.parameters().items():
        compare_final(worst, oracle.SHAPES[model], name, value, tensors[f"{run['name']}.final.{name}"])


EXPECTED_EVENTS = {  # written out by hand from the settings and protocol section 4
    "batch_value": "4 mlp[0], 6 mlp[1], 8 qk[0], 10 qk[1], 12 v[0], 15 v[1], 18 f",
    "ema": "4 mlp[0], 6 mlp[1], 8 qk[0], 10 qk[1], 12 v[0], 15 v[1], 18 f",
    "from_step_0": "0 mlp[0], 0 mlp[1], 0 qk[0], 2 qk[1], 4 v[0], 7 v[1], 10 f",
    "all_at_step_0": "0 mlp[0], 0 mlp[1], 0 qk[0], 0 qk[1], 0 v[0], 0 v[1], 0 f",
    "vanilla": "",
    "distilled": "4 mlp[0], 6 mlp[1], 8 qk[0], 10 qk[1], 12 v[0], 15 v[1], 18 f",
    "precursor": "4 mlp[0], 6 mlp[1], 8 qk[0], 10 qk[1], 12 v[0], 15 v[1], 18 f, 21 end_of_text, 26 position_0",
}
# layers, start_mlp, gaps; starts as the paper's Tab. 3 lists them, and the precursor's step of f
PRESETS = [
    (12, 20, 2, 2, 3, [20, 44, 68, 104]),
    (24, 20, 2, 2, 3, [20, 68, 116, 188]),
    (36, 30, 4, 4, 6, [30, 174, 318, 534]),
    (48, 50, 4, 4, 6, [50, 242, 434, 722]),
    (12, 200, 20, 20, 30, [200, 440, 680, 1040]),
]


def moving_average(m, values):
    """The running value after all of `values`, written out as a weighted sum."""
    last = len(values) - 1
    weights = [(1 - m if i else 1.0) * m ** (last - i) for i in range(len(values))]  # 0.0 ** 0 is 1
    return sum(w * value.item() for w, value in zip(weights, values))


def expected_sigma(run, site, step, before, table):
    """(sigma_bar, sigma_bar_0) as protocol sections 3 and 8 define them, from step 0's batch or the table."""
    if run["settings"]["precursor"]:
        return before[:, 1:].mean().item(), before[:, 0].mean().item()
    if step == 0:
        return before.mean().item(), None
    return moving_average(run["settings"]["sigma_ema"], table[:step, oracle.SITES.index(site)]), None


def check_events(worst, model, run, files):
    steps = [(record["step"], event) for record in run["steps"] for event in record["events"]]
    text = ", ".join(f"{step} {event.get('site') or event['special']}" for step, event in steps)
    worst.add("event steps", float(text != EXPECTED_EVENTS[run["name"]]), 0.0)

    patched = PatchedModel(model, files["parameters"])
    batch = files["trajectories"][run["name"] + ".inputs"][0].flatten(0, 1)
    patched.predictions(batch)
    table = files["trajectories"][run["name"] + ".sigma_avg"]
    for column, value in zip(table.T, run["final_running"].values()):
        worst.add("final running sigma", moving_average(run["settings"]["sigma_ema"], column), value)
    for step, event in steps:
        if event["kind"] == "removed":
            before = patched.sites.sigma[event["site"]]
            sigma_bar, sigma_bar_0 = expected_sigma(run, event["site"], step, before, table)
            worst.add("event sigma_bar", sigma_bar, event["sigma_bar"])
            worst.add("event sigma_bar_0", float((sigma_bar_0 is None) != (event["sigma_bar_0"] is None)), 0.0)
            worst.add("event sigma_bar_0", sigma_bar_0 or 0.0, event["sigma_bar_0"] or 0.0)


# Llama's and GPT-NeoX's stock modules compute norms (Llama's) and turns in float32 in a model of doubles too; what is
# patched computes them in double, so that all other comparisons have the tolerance of GPT-2's.
STOCK_LOGITS = {"gpt2": TOLERANCE, "neox": 1e-5, "llama": 1e-5}


def self_check(model, description, files):
    worst = Worst()
    check_stock(worst, model, description, files)
    check_static(worst, model, description, files)
    for run in description["trajectories"]:
        check_events(worst, model, run, files)
        check_trajectory(worst, model, run, files)
    if model == "llama":
        check_speeds(worst)
    if model == "gpt2":
        check_exported(worst, description, files)
        for n_layer, start, gap_mlp, gap_qk, gap_v, expected in PRESETS:
            starts = list(oracle.derived_starts(start, gap_mlp, gap_qk, gap_v, n_layer).values())
            worst.add("starts of the published schedules", starts, expected)
    worst.report(model, {"stock logits": STOCK_LOGITS[model], "exported form logits": 1e-9,
                         "trajectory final key biases": 1e-8})
