"""A second, independent computation of what the engine computes: PyTorch, float64, gradients by autograd.

It was written from the two papers (arXiv 2507.02559, 2409.13710) and the project's protocol, not from the engine, so
that a wrong reading or a wrong derivative in one of them shows up as a difference. What GPT-NeoX and Llama do otherwise
than GPT-2 is written from RMSNorm's paper (1910.07467), RoPE's (2104.09864), that of grouped queries (2305.13245) and
that of gated units (2002.05202), with the conventions that transformers documents.
test/oracle/README.md says how to run it.

Files written to --out, and their keys. Numbers are F64, token ids I64; scalars in JSON read back exactly. Those of
GPT-2 are called oracle..., those of the two other shapes oracle_neox... and oracle_llama....

oracle_parameters.safetensors    the initial parameters of everything below
    wte.weight (V, C)  ...  h.0.attn.c_attn.weight (C, 3C: stored (in, out))  ...  ln_f.bias (C)
    Hugging Face's GPT-2 names without `transformer.`. Every value is a float32 number, so that a float32 engine starts
    from the same point. The other shapes have the same names, less what they lack, and lm_head.weight (V, C) if untied;
    the columns of c_attn are the heads of the queries, then of the keys, then of the values, each of head_size numbers;
    those of a gated c_fc the gates, then the neurons that they multiply.
oracle_static.safetensors        one forward and backward pass per case; CASE is the case's "name" in oracle.json
    BATCH.inputs, BATCH.targets   (B, T)     token ids; the case's "batch" names BATCH
    CASE.logits                   (B, T, V)
    CASE.grad.PARAMETER           like PARAMETER: gradient of (1 - distill) loss + distill kl + aux_loss
oracle_trajectories.safetensors  training runs; RUN is the run's "name" in oracle.json
    RUN.inputs, RUN.targets       (steps, accum, B, T)    cut from one stream of tokens, sequences T apart, so that
                                  flattened inputs and the very last target are that stream
    RUN.sigma_avg                 (steps, number of sites)   every site's sigma_avg; columns in the order of "sites"
    RUN.final.PARAMETER           like PARAMETER: after the last step

oracle.json
    version, model {n_layer, n_head, n_embd, vocab_size, n_ctx, end_of_text, layer_norm_epsilon; of another shape than
                    GPT-2's also every field of Shape},
    sites [names in removal order]
    static [{name, batch, aux_weight, distill (share w of the teacher, which is the model before any removal),
             removed {site: {sigma_bar, sigma_bar_0 (null: there is none)}},
             position_0, end_of_text (are these special cases active?),
             loss, kl (of the teacher's predictions and the model's), aux_loss (lambda included), sigma_avg {site: mean of sigma at its input, removed or not}}]
    precursor_statistics {batch, sites {site: {sigma_bar, sigma_bar_0}}}   of the unmodified model
    trajectories [{name, settings {every setting, starts resolved}, final_running {site: running sigma},
                   steps [{step, loss, kl, aux_loss, grad_norm (before clipping), lr, events [EVENT]}]}]
    EVENT, taking effect before the step's forward pass, one of
        {"kind": "removed", "site", "sigma_bar", "sigma_bar_0" (null: there is none)}
        {"kind": "released", "special": "end_of_text" | "position_0"}
"""
import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the same summation order on every machine

L, V, N_CTX = 2, 19, 7
B, T = 3, 6
END_OF_TEXT = 18
EPS = 1e-5
SITES = [f"{kind}[{l}]" for kind in ("mlp", "qk", "v") for l in range(L)] + ["f"]


# ---- model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What a model computes, besides the numbers that all three have in common."""

    n_head: int
    n_key_head: int  # heads of keys and values; fewer than n_head: each serves as many heads of queries in a row
    head_size: int
    n_embd: int
    n_inner: int
    centred: bool = True  # norms: LayerNorm, or RMSNorm, which takes no mean away and has no bias
    rotary: int = 0  # the first so many numbers of a head turn with the position; 0: learned positions, wpe
    rotary_base: float = 10000.0
    parallel: bool = False  # attention and MLP of a block read the same stream
    activation: str = "gelu_tanh"  # or gelu_erf, gated_silu
    bias: bool = True  # of all products with a weight matrix but the last
    tied: bool = True  # the unembedding is wte


# Widths differ where the shape allows it, so that none can be taken for another; two pairs of every head turn, at two
# speeds. 1 / sqrt(300) rounded at once is another float32 number than rounded step by step.
SHAPES = {
    "gpt2": Shape(n_head=2, n_key_head=2, head_size=4, n_embd=8, n_inner=32),
    "neox": Shape(n_head=2, n_key_head=2, head_size=6, n_embd=12, n_inner=20, rotary=4, parallel=True,
                  activation="gelu_erf", tied=False),
    "llama": Shape(n_head=4, n_key_head=2, head_size=4, n_embd=12, n_inner=18, centred=False, rotary=4, rotary_base=300.0,
                   activation="gated_silu", bias=False),
}

@dataclass
class Frozen:
    """The scalars that replaced one site's sigma. sigma_bar_0 is None outside the precursor protocol."""

    sigma_bar: float
    sigma_bar_0: float | None = None


@dataclass
class Removal:
    """Which sites are removed, and which of the precursor's two special cases are active."""

    frozen: dict[str, Frozen] = field(default_factory=dict)
    position_0: bool = False
    end_of_text: bool = False


def divisor(site, sigma, inputs, removal):
    """What x - mu is divided by, (B, T): sigma itself, or the frozen scalars of a removed site."""
    if site not in removal.frozen:
        return sigma
    frozen = removal.frozen[site]
    result = torch.full_like(sigma, frozen.sigma_bar)
    if removal.position_0:
        result[:, 0] = frozen.sigma_bar_0
    if removal.end_of_text and site.startswith("v"):
        result[inputs == END_OF_TEXT] = frozen.sigma_bar_0
    return result


def turning_speeds(shape):
    """base^(-2i/R) of the R/2 pairs of a head, (R/2), with every step rounded to float32, as transformers computes it."""
    exponents = as_float32([2 * i / shape.rotary for i in range(shape.rotary // 2)])
    return as_float32(1 / as_float32(shape.rotary_base**exponents))


def turned(x, shape):
    """x (B, heads, T, head_size) with its first `rotary` numbers turned by their position.

    2104.09864, eq. 13 to 15: pair i of R/2 is a complex number, multiplied by exp(i t base^(-2i/R)) at position t. The
    pair's numbers lie R/2 apart, as in transformers (its rotate_half), not side by side as in the paper. Speeds and
    angles are rounded to float32 in between, because transformers and GPT-NeoX do so whatever the model's precision:
    what models have learned are these angles, which at long positions differ from the exact ones by far more than
    float32's rounding of anything else.
    """
    half = shape.rotary // 2
    positions = torch.arange(x.shape[2], dtype=torch.float64)
    angles = as_float32(positions[:, None] * turning_speeds(shape))
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag, x[..., 2 * half :]], dim=-1)


def activated(x, activation):
    """What an MLP makes of c_fc's output: of a gated one (2002.05202, SwiGLU) half the width."""
    if activation == "gated_silu":
        gate, neurons = x.chunk(2, dim=-1)
        return gate * torch.sigmoid(gate) * neurons
    if activation == "gelu_erf":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return torch.nn.functional.gelu(x, approximate="tanh")


def forward(p, inputs, removal, shape):
    """logits (B, T, V) and, per site, sigma (B, T) of its input."""
    n_seq, n_pos = inputs.shape
    causal = torch.ones(n_pos, n_pos, dtype=torch.bool).tril()
    width, key_width = shape.n_head * shape.head_size, shape.n_key_head * shape.head_size
    sigmas = {}

    def norm(x, site, name):
        centred = x - x.mean(-1, keepdim=True) if shape.centred else x
        sigmas[site] = (centred.square().mean(-1) + EPS).sqrt()
        scale = divisor(site, sigmas[site], inputs, removal)
        scaled = centred / scale.unsqueeze(-1) * p[name + ".weight"]
        return scaled + p[name + ".bias"] if shape.centred else scaled

    def linear(x, name):
        product = x @ p[name + ".weight"]
        return product + p[name + ".bias"] if shape.bias else product

    def heads(x):  # (B, T, n * head_size) -> (B, n, T, head_size)
        return x.view(n_seq, n_pos, -1, shape.head_size).transpose(1, 2)

    def for_every_query(x):  # 2305.13245: heads of keys or values, each repeated for the queries that share it
        sharers = shape.n_head // shape.n_key_head
        return x if sharers == 1 else torch.stack([x[:, i // sharers] for i in range(shape.n_head)], dim=1)

    def attention(x, l):
        h = f"h.{l}."
        widths = [width, key_width, key_width]
        q, k, _ = linear(norm(x, f"qk[{l}]", h + "ln_1"), h + "attn.c_attn").split(widths, dim=-1)
        _, _, v = linear(norm(x, f"v[{l}]", h + "ln_1"), h + "attn.c_attn").split(widths, dim=-1)
        q, k, v = heads(q), heads(k), heads(v)
        if shape.rotary:
            q, k = turned(q, shape), turned(k, shape)
        scores = q @ for_every_query(k).transpose(2, 3) / math.sqrt(shape.head_size)
        weights = scores.masked_fill(~causal, -math.inf).softmax(-1)
        mixed = (weights @ for_every_query(v)).transpose(1, 2).reshape(n_seq, n_pos, width)
        return linear(mixed, h + "attn.c_proj")

    def mlp(x, l):
        h = f"h.{l}."
        hidden = linear(norm(x, f"mlp[{l}]", h + "ln_2"), h + "mlp.c_fc")
        return linear(activated(hidden, shape.activation), h + "mlp.c_proj")

    x = p["wte.weight"][inputs]
    if not shape.rotary:
        x = x + p["wpe.weight"][:n_pos]
    for l in range(L):
        if shape.parallel:
            x = x + attention(x, l) + mlp(x, l)
        else:
            x = x + attention(x, l)
            x = x + mlp(x, l)
    return norm(x, "f", "ln_f") @ p["wte.weight" if shape.tied else "lm_head.weight"].T, sigmas


def aux_loss(sigma_f, inputs, weight):
    """weight * mean over all (b,t) of (sigma - sigma_hat)^2; sigma_hat, the mean over ordinary ones, is a constant.

    RMSNorm's sigma is sqrt(mean x^2 + eps); autograd makes x / (C sigma) of it (protocol.md 11)."""
    ordinary = inputs != END_OF_TEXT
    ordinary[:, 0] = False
    if not ordinary.any():
        return torch.zeros(())
    sigma_hat = sigma_f[ordinary].mean().detach()
    return weight * (sigma_f - sigma_hat).square().mean()


def losses(p, inputs, targets, removal, aux_weight, shape):
    """logits, main loss, aux loss and sigmas of one micro-batch."""
    logits, sigmas = forward(p, inputs, removal, shape)
    main = torch.nn.functional.cross_entropy(logits.view(-1, V), targets.reshape(-1))
    return logits, main, aux_loss(sigmas["f"], inputs, aux_weight), sigmas


def divergence(logits, teacher_logits):
    """KL(teacher || model) of the predictions, mean over (b,t)."""
    log_p, log_p_o = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (log_p_o.exp() * (log_p_o - log_p)).sum(-1).mean()


def predictions(p, inputs, shape):
    """logits (B, T, V) of the unmodified model, as a constant."""
    with torch.no_grad():
        return forward(p, inputs, Removal(), shape)[0]


def initial_sigmas(p, inputs, shape):
    """Per site, sigma (sequences, T) of the unmodified model."""
    with torch.no_grad():
        return forward(p, inputs, Removal(), shape)[1]


def precursor_scalars(sigma):
    """2409.13710: one mean for position 0, one for all others, end-of-text among them."""
    return Frozen(sigma[:, 1:].mean().item(), sigma[:, 0].mean().item())


# ---- training --------------------------------------------------------------------------------------------------------


def learning_rate(s, step):
    if step < s["warmup"]:
        return s["lr"] * step / s["warmup"]
    phase = math.pi * (step - s["warmup"]) / (s["steps"] - s["warmup"])
    return s["min_lr"] + (s["lr"] - s["min_lr"]) / 2 * (1 + math.cos(phase))


def derived_starts(start_mlp, gap_mlp, gap_qk, gap_v, n_layer=L):
    start_qk = start_mlp + n_layer * gap_mlp
    start_v = start_qk + n_layer * gap_qk
    return {"mlp": start_mlp, "qk": start_qk, "v": start_v, "f": start_v + n_layer * gap_v}


def removal_step(s, site):
    kind, _, rest = site.partition("[")
    return s["start"][kind] + (int(rest[:-1]) * s["gap"][kind] if rest else 0)


def due_events(s, step, removal, running, initial):
    """Applies to `removal` what happens at the start of `step`; returns it as the list of EVENTs."""
    events = []
    for site in SITES:
        if s["start"] is None or removal_step(s, site) != step:
            continue
        if s["precursor"]:
            frozen = precursor_scalars(initial[site])
        else:
            frozen = Frozen(running[site] if step > 0 else initial[site].mean().item())
        removal.frozen[site] = frozen
        events.append({"kind": "removed", "site": site, **vars(frozen)})
    for special in ("end_of_text", "position_0"):
        if s["precursor"] and step == s["release_" + special]:
            setattr(removal, special, False)
            events.append({"kind": "released", "special": special})
    return events


def adamw(s, p, grads, moments, step, lr):
    """One decoupled-decay AdamW update in place; only matrices and embeddings, the 2-D parameters, are decayed."""
    for name, g in grads.items():
        m, v = moments[name]
        m.mul_(s["beta1"]).add_((1 - s["beta1"]) * g)
        v.mul_(s["beta2"]).add_((1 - s["beta2"]) * g * g)
        m_hat = m / (1 - s["beta1"] ** (step + 1))
        v_hat = v / (1 - s["beta2"] ** (step + 1))
        if p[name].dim() == 2:
            p[name].mul_(1 - lr * s["weight_decay"])
        p[name].sub_(lr * m_hat / (v_hat.sqrt() + s["adam_eps"]))


def train(s, initial_parameters, inputs, targets, shape):
    """Runs one trajectory over inputs, targets (steps, accum, B, T)."""
    p = {name: value.clone().requires_grad_() for name, value in initial_parameters.items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in initial_parameters.items()}
    initial = initial_sigmas(p, inputs[0].flatten(0, 1), shape)
    removal = Removal(position_0=s["precursor"], end_of_text=s["precursor"])
    running, sigma_table, records = {}, [], []

    for step in range(s["steps"]):
        events = due_events(s, step, removal, running, initial)
        main_sum, kl_sum, aux_sum, sigma_sum = 0.0, 0.0, 0.0, dict.fromkeys(SITES, 0.0)
        total = torch.zeros(())
        for micro in range(s["accum"]):
            batch = inputs[step, micro], targets[step, micro]
            logits, main, aux, sigmas = losses(p, *batch, removal, s["aux_weight"], shape)
            kl = divergence(logits, predictions(initial_parameters, batch[0], shape))
            w = s["distill"]
            total = total + ((1 - w) * main + w * kl + aux) / s["accum"]
            main_sum += main.item()
            kl_sum += kl.item()
            aux_sum += aux.item()
            for site in SITES:
                sigma_sum[site] += sigmas[site].mean().item()

        grads = dict(zip(p, torch.autograd.grad(total, list(p.values()))))
        grad_norm = math.sqrt(sum(g.square().sum().item() for g in grads.values()))
        clip = min(1.0, s["clip"] / grad_norm)
        lr = learning_rate(s, step)
        with torch.no_grad():
            adamw(s, p, {name: g * clip for name, g in grads.items()}, moments, step, lr)

        sigma_avg = {site: value / s["accum"] for site, value in sigma_sum.items()}
        for site, value in sigma_avg.items():
            m = s["sigma_ema"] if site in running else 0.0
            running[site] = m * running.get(site, 0.0) + (1 - m) * value
        sigma_table.append(list(sigma_avg.values()))
        records.append({"step": step, "loss": main_sum / s["accum"], "kl": kl_sum / s["accum"], "aux_loss": aux_sum / s["accum"],
                        "grad_norm": grad_norm, "lr": lr, "events": events})
    return {name: value.detach() for name, value in p.items()}, torch.tensor(sigma_table), running, records


# ---- inputs ----------------------------------------------------------------------------------------------------------


def as_float32(values):
    return torch.from_numpy(np.asarray(values).astype(np.float32).astype(np.float64))


def make_parameters(rng, shape):
    """Every parameter away from its neutral value, so that no term of any gradient vanishes."""
    C = shape.n_embd
    width, rows = shape.n_head * shape.head_size, (shape.n_head + 2 * shape.n_key_head) * shape.head_size
    gated = shape.activation == "gated_silu"
    p = {}

    def normal(std, *extents):
        return as_float32(std * rng.standard_normal(extents))

    def add_norm(name):
        p[name + ".weight"] = as_float32(1 + rng.uniform(-0.3, 0.3, C))
        if shape.centred:
            p[name + ".bias"] = normal(0.2, C)

    def add_linear(name, std, n_in, n_out):
        p[name + ".weight"] = normal(std, n_in, n_out)
        if shape.bias:
            p[name + ".bias"] = normal(0.2, n_out)

    p["wte.weight"] = normal(0.5, V, C)
    if not shape.rotary:
        p["wpe.weight"] = normal(0.3, N_CTX, C)
    for l in range(L):
        h = f"h.{l}."
        add_norm(h + "ln_1")
        add_linear(h + "attn.c_attn", 0.4, C, rows)
        add_linear(h + "attn.c_proj", 0.4, width, C)
        add_norm(h + "ln_2")
        add_linear(h + "mlp.c_fc", 0.25 if gated else 0.4, C, shape.n_inner * (2 if gated else 1))
        add_linear(h + "mlp.c_proj", 0.3, shape.n_inner, C)
    add_norm("ln_f")
    if not shape.tied:
        p["lm_head.weight"] = normal(0.5, V, C)
    return p


def make_stream(rng, length):
    """Tokens of which two thirds follow from their predecessor, so that there is something to learn."""
    stream = rng.integers(0, V, length)
    for i in range(1, length):
        choice = rng.random()
        if choice < 0.65:
            stream[i] = (5 * stream[i - 1] + 3) % V
        elif choice < 0.75:
            stream[i] = END_OF_TEXT
    return torch.from_numpy(stream)


def static_cases(rng):
    """name, Removal: each path through the normalisation, alone and together."""
    sigma_bar = {site: as_float32(rng.uniform(0.5, 2)).item() for site in SITES}
    sigma_bar_0 = {site: as_float32(rng.uniform(0.5, 2)).item() for site in SITES}

    def plain(*sites):
        return Removal({site: Frozen(sigma_bar[site]) for site in sites})

    def precursor(sites, position_0, end_of_text):
        frozen = {site: Frozen(sigma_bar[site], sigma_bar_0[site]) for site in sites}
        return Removal(frozen, position_0, end_of_text)

    return [
        ("none", plain()),
        ("mlp0", plain("mlp[0]")),
        ("mlp", plain("mlp[0]", "mlp[1]")),
        ("mlp_qk0", plain("mlp[0]", "mlp[1]", "qk[0]")),
        ("mlp_qk_v0", plain("mlp[0]", "mlp[1]", "qk[0]", "qk[1]", "v[0]")),
        ("qk0", plain("qk[0]")),
        ("v1", plain("v[1]")),
        ("all_but_f", plain(*SITES[:-1])),
        ("f", plain("f")),
        ("all", plain(*SITES)),
        ("precursor", precursor(SITES, True, True)),
        ("precursor_end_of_text_released", precursor(SITES, True, False)),
        ("precursor_some_sites", precursor(["mlp[0]", "qk[0]", "v[0]", "v[1]"], True, True)),
    ]


def all_static_cases(rng):
    """name, batch, Removal, aux_weight, share of every static case of GPT-2's."""
    removals = static_cases(rng)
    cases = [(f"{name}_{label}", "batch", removal, weight, 0.0) for name, removal in removals
             for label, weight in (("main", 0.0), ("aux", 0.1))]
    cases.append(("no_aux_target", "single", Removal(), 0.1, 0.0))
    cases += [(f"{name}_{label}", "batch", removal, 0.1, share) for name, removal in removals
              if name in ("mlp0", "mlp_qk_v0", "all", "precursor")
              for label, share in (("distilled_in_part", 0.3), ("distilled", 1.0))]
    return cases


def few_static_cases(rng, initial):
    """Those of the other shapes: what does not depend on the shape is in GPT-2's.

    sigma_bar is near the site's mean of `initial`, because a gated MLP grows with the square of what it is given: behind
    divisors from anywhere a loss of hundreds would hide all that is small.
    """
    frozen = {site: Frozen(as_float32(initial[site].mean() * rng.uniform(0.7, 1.4)).item()) for site in SITES}
    some = Removal({site: frozen[site] for site in ("mlp[0]", "mlp[1]", "qk[0]", "qk[1]", "v[0]")})
    every = Removal(frozen)
    return [
        ("none_main", "batch", Removal(), 0.0, 0.0),
        ("none_aux", "batch", Removal(), 0.1, 0.0),
        ("mlp_qk_v0_aux", "batch", some, 0.1, 0.0),
        ("mlp_qk_v0_distilled_in_part", "batch", some, 0.1, 0.3),
        ("all_main", "batch", every, 0.0, 0.0),
        ("all_distilled_in_part", "batch", every, 0.1, 0.3),
    ]


def trajectory_settings():
    base = {"steps": 40, "accum": 1, "lr": 3e-3, "min_lr": 1e-3, "warmup": 4, "weight_decay": 0.01, "beta1": 0.9,
            "beta2": 0.999, "adam_eps": 1e-8, "clip": 1.0, "aux_weight": 0.1, "sigma_ema": 0.0, "precursor": False, "distill": 0.0,
            "gap": {"mlp": 2, "qk": 2, "v": 3}, "start": derived_starts(4, 2, 2, 3)}
    at_0 = {"gap": {"mlp": 0, "qk": 2, "v": 3}, "start": derived_starts(0, 0, 2, 3)}
    all_at_0 = {"gap": {"mlp": 0, "qk": 0, "v": 0}, "start": derived_starts(0, 0, 0, 0)}
    last = base["start"]["f"]
    return {
        "batch_value": base,
        "ema": base | {"sigma_ema": 0.4, "accum": 2},
        "from_step_0": base | {"sigma_ema": 0.4} | at_0,
        "all_at_step_0": base | all_at_0,
        # also the run whose gradient norm crosses the clipping threshold in both directions
        "vanilla": base | {"start": None, "gap": None, "aux_weight": 0.0, "accum": 3, "lr": 2e-2, "min_lr": 4e-3},
        "precursor": base | {"precursor": True, "accum": 2, "beta2": 0.95, "weight_decay": 0.1, "aux_weight": 0.0,
                             "min_lr": 3e-4, "release_end_of_text": last + 3, "release_position_0": last + 8},
        "distilled": base | {"distill": 0.6, "accum": 2},
    }


def make_run_data(rng, name, s):
    stream = make_stream(rng, s["steps"] * s["accum"] * B * T + 1)
    if name == "ema":  # one micro-batch without an aux loss: nothing but end-of-text after position 0
        first = (7 * s["accum"] + 1) * B * T
        stream[first : first + B * T].view(B, T)[:, 1:] = END_OF_TEXT
    shape = (s["steps"], s["accum"], B, T)
    return stream[:-1].view(shape), stream[1:].view(shape)


# ---- fixtures --------------------------------------------------------------------------------------------------------


def static_batches(rng):
    stream = make_stream(rng, B * T + 1)
    stream[[0, 3, T + 2, 2 * T + 5]] = END_OF_TEXT  # at position 0 of one sequence, and once inside each
    inputs, targets = stream[:-1].view(B, T), stream[1:].view(B, T)
    # T = 1: the only position is position 0, so the aux loss has no target
    return {"batch": (inputs, targets), "single": (inputs[:, :1], targets[:, :1])}


def run_static(name, batch_name, batch, parameters, removal, aux_weight, share, shape):
    """One case: its JSON record and its tensors."""
    p = {key: value.clone().requires_grad_() for key, value in parameters.items()}
    logits, main, aux, sigmas = losses(p, *batch, removal, aux_weight, shape)
    kl = divergence(logits, predictions(parameters, batch[0], shape))
    grads = torch.autograd.grad((1 - share) * main + share * kl + aux, list(p.values()))
    record = {"name": name, "batch": batch_name, "aux_weight": aux_weight, "distill": share,
              "removed": {site: vars(frozen) for site, frozen in removal.frozen.items()},
              "position_0": removal.position_0, "end_of_text": removal.end_of_text,
              "loss": main.item(), "kl": kl.item(), "aux_loss": aux.item(),
              "sigma_avg": {site: sigmas[site].mean().item() for site in SITES}}
    tensors = {f"{name}.grad.{key}": g for key, g in zip(p, grads)}
    return record, tensors | {f"{name}.logits": logits.detach()}


def compute(model):
    """All fixtures of one of SHAPES: the JSON object and, per file, its tensors."""
    shape, is_gpt2 = SHAPES[model], model == "gpt2"
    rng = np.random.default_rng({"gpt2": 20250702559, "neox": 220406745, "llama": 230213971}[model])
    parameters = make_parameters(rng, shape)
    batches = static_batches(rng)

    static_tensors = {}
    for name, (inputs, targets) in batches.items():
        static_tensors |= {f"{name}.inputs": inputs, f"{name}.targets": targets}
    static_records = []
    initial = initial_sigmas(parameters, batches["batch"][0], shape)
    cases = all_static_cases(rng) if is_gpt2 else few_static_cases(rng, initial)
    for name, batch_name, removal, weight, share in cases:
        batch = batches[batch_name]
        record, tensors = run_static(name, batch_name, batch, parameters, removal, weight, share, shape)
        static_records.append(record)
        static_tensors |= tensors

    run_records, run_tensors = [], {}
    for name, s in trajectory_settings().items():
        if not is_gpt2 and name != "distilled":
            continue
        inputs, targets = make_run_data(rng, name, s)
        final, sigma_avg, running, steps = train(s, parameters, inputs, targets, shape)
        run_records.append({"name": name, "settings": s, "final_running": running, "steps": steps})
        run_tensors |= {f"{name}.inputs": inputs, f"{name}.targets": targets, f"{name}.sigma_avg": sigma_avg}
        run_tensors |= {f"{name}.final.{key}": value for key, value in final.items()}

    statistics = {site: vars(precursor_scalars(initial[site])) for site in SITES}
    description = {
        "version": 1,
        "model": {"n_layer": L, "n_head": shape.n_head, "n_embd": shape.n_embd, "vocab_size": V, "n_ctx": N_CTX,
                  "end_of_text": END_OF_TEXT, "layer_norm_epsilon": EPS} | ({} if is_gpt2 else vars(shape)),
        "sites": SITES,
        "static": static_records,
        "precursor_statistics": {"batch": "batch", "sites": statistics},
        "trajectories": run_records,
    }
    return description, {"parameters": parameters, "static": static_tensors, "trajectories": run_tensors}


def pretty(value, indent=""):
    """JSON with one record per line. Python prints a float with the digits (at most 17) that read back exactly."""
    line = json.dumps(value, allow_nan=False)
    if len(line) < 110 or not isinstance(value, (dict, list)):
        return line
    inner = indent + " "
    if isinstance(value, list):
        items = [pretty(item, inner) for item in value]
    else:
        items = [f"{json.dumps(key)}: {pretty(item, inner)}" for key, item in value.items()]
    opening, closing = "[]" if isinstance(value, list) else "{}"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{closing}"


def write(folder, model, description, files):
    prefix = "oracle" if model == "gpt2" else f"oracle_{model}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        owned = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
        save_file(owned, folder / f"{prefix}_{name}.safetensors")
    (folder / f"{prefix}.json").write_text(pretty(description) + "\n")


def main():
    parser = argparse.ArgumentParser(description="Write the fixtures that the engine's tests compare against.")
    parser.add_argument("--out", type=Path, help="folder to write the fixtures to, e.g. test/fixtures")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES), help="which; otherwise all")
    parser.add_argument("--self-check", action="store_true", help="compare the oracle with other code")
    args = parser.parse_args()
    if not args.out and not args.self_check:
        parser.error("nothing to do: give --out, --self-check or both")

    for model in args.models:
        description, files = compute(model)
        if args.self_check:
            from self_check import self_check

            self_check(model, description, files)
        if args.out:
            write(args.out, model, description, files)


if __name__ == "__main__":
    main()
