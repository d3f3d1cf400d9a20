// train_gpt2_lnfree.cpp: takes the LayerNorms out of a trained GPT-2, on the CPU.
//
// A LayerNorm divides every position of the residual stream by that position's own standard deviation sigma. That
// division is the one non-linear thing between a transformer block and the logits, and it ties every component to
// every other. Two papers (arXiv 2409.13710 and 2507.02559) showed that a trained GPT-2 can be weaned off it: one after
// another, while fine-tuning goes on, each LayerNorm is replaced by FakeLN, the same formula with sigma frozen to a
// single number. FakeLN is linear, so the finished model has none left.
//
// This file is the whole method and reads from top to bottom:
//
//     1. The method       sites, sigma statistics, schedule, presets
//     2. The operations   every forward beside its backward: plain loops around one matrix product
//     3. The model        GPT-2 out of those operations
//     4. The optimiser    AdamW, clipping, learning rate
//     5. The result       the two exact linear forms of a finished model
//     6. The folders      models and checkpoints on disk
//     7. The training run
//     8. The commands     what `train_gpt2_lnfree --help` lists
//
// Letters for shapes: B sequences in a micro-batch, T positions in a sequence, C width of the residual stream, V
// vocabulary, L layers, NH heads, HS = C / NH their size. "Paper" is 2507.02559; "precursor" is 2409.13710.
// File formats and plumbing are in data/, the matrix product's fast version is in dev/cpu/.

#ifndef LNFREE_TRAIN_GPT2_LNFREE_CPP
#define LNFREE_TRAIN_GPT2_LNFREE_CPP

#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/gpt2_config.h"
#include "dev/cpu/matmul.h"
#include "dev/cpu/vector_math.h"

namespace lnfree {

// The type of weights, activations and gradients. The tests compile this file a second time with double, so that
// gradients can be held against finite differences and against an independent program to many digits.
#ifndef LNFREE_REAL
#define LNFREE_REAL float
#endif
typedef LNFREE_REAL real;

// The instruction set that this file is compiled for, as the Makefile calls it.
#ifndef LNFREE_ISA_NAME
#define LNFREE_ISA_NAME "native"
#endif

// A number in as few digits as tell it apart at a glance.
inline std::string format_general(double x) {
    char text[64];
    std::snprintf(text, sizeof text, "%.6g", x);
    return text;
}

// =====================================================================================================================
// 1. The method
// =====================================================================================================================
//
// A GPT-2 of L layers has 3L + 1 sites (paper, Sec. 3). A block's first LayerNorm counts twice, because the query/key
// path and the value path can be weaned separately although they share gamma and beta:
//
//     qk[l]   in front of the queries and keys of layer l    (ln_1)
//     v[l]    in front of the values of layer l              (ln_1 as well)
//     mlp[l]  in front of the MLP of layer l                 (ln_2)
//     f       in front of the unembedding                    (ln_f)
//
// Removal goes through all mlp sites, then all qk, then all v, then f, with gaps in which the model recovers.

enum class SiteKind { mlp, qk, v, f };

enum class Norm {
    layer_norm,  // (x - mean) / sigma * gamma + beta, sigma from this very position
    fake_ln,     // the same with a frozen sigma: linear
    folded       // no norm at all: gamma, beta, sigma and the centring live in the next weights (section 5)
};

struct Site {
    SiteKind kind = SiteKind::f;
    int layer = 0;
    Norm norm = Norm::layer_norm;
    double sigma_bar = NAN;    // what FakeLN divides by; frozen at removal
    double running = NAN;      // sigma averaged over the training batches so far, what sigma_bar will be
    double last_sigma = NAN;   // the last step's average alone; a removed site keeps reporting it
    double own_share = 0;      // gradual removal: FakeLN divides by sigma^own_share * sigma_bar^(1 - own_share)
    double sigma_bar_0 = NAN;  // what position 0 is divided by while own_position0 holds
    bool own_position0 = false;
    bool own_end_of_text = false;  // precursor only, v sites: end-of-text positions use sigma_bar_0 as well
};

inline const char* kind_name(SiteKind kind) {
    static const char* names[] = {"mlp", "qk", "v", "f"};
    return names[static_cast<int>(kind)];
}

inline std::string site_name(const Site& site) {
    if (site.kind == SiteKind::f) return "f";
    return std::string(kind_name(site.kind)) + "[" + std::to_string(site.layer) + "]";
}

// All sites of an L-layer model in the order of their removal: mlp[0..L-1], qk[0..L-1], v[0..L-1], f.
struct Sites {
    int L = 0;
    std::vector<Site> all;

    explicit Sites(int n_layer = 0) : L(n_layer) {
        for (SiteKind kind : {SiteKind::mlp, SiteKind::qk, SiteKind::v})
            for (int l = 0; l < L; l++) add(kind, l);
        add(SiteKind::f, L);
    }
    Site& mlp(int l) { return all[l]; }
    Site& qk(int l) { return all[L + l]; }
    Site& v(int l) { return all[2 * L + l]; }
    Site& f() { return all[3 * L]; }
    int removed() const {
        return static_cast<int>(
            std::count_if(all.begin(), all.end(), [](const Site& s) { return s.norm != Norm::layer_norm; }));
    }
    bool all_removed() const { return removed() == static_cast<int>(all.size()); }
    bool all_linear_everywhere() const {
        return all_removed() && std::none_of(all.begin(), all.end(), [](const Site& s) {
                   return s.own_share > 0 || s.own_position0 || s.own_end_of_text;
               });
    }

  private:
    void add(SiteKind kind, int layer) {
        Site site;
        site.kind = kind;
        site.layer = layer;
        all.push_back(site);
    }
};

// What happened to a site, and when. The list of events, not the flags, is what a checkpoint and lnfree.json record.
struct Event {
    int64_t step;
    int site;            // index into Sites::all
    std::string action;  // "removed", "end-of-text released", "position 0 released"
    double sigma_bar;
};

// Where the auxiliary loss acts (section 2): at ln_f as in the paper, or at the input of every norm; on sigma's distance
// from its target, or on that relative to the target. With position0 other than 1 it does the opposite of its purpose: the
// target of position 0 is so many times that of the others.
struct AuxSettings {
    double weight = 0;  // lambda
    bool everywhere = false, relative = false;
    double position0 = 1;
};

// Every value that a run depends on, after presets and flags have been resolved (protocol.md 4, 5, 8).
struct Protocol {
    std::string preset = "auto";
    int64_t steps = 300;  // horizon of the learning rate
    int64_t stop = 300;   // the run ends before this step
    int64_t batch = 8, seq = 0, grad_accum = 1;
    double lr = 6e-4, min_lr = 3e-4;
    int64_t warmup = 0;
    double weight_decay = 0.01, beta1 = 0.9, beta2 = 0.999, adam_eps = 1e-8, clip = 1.0;
    double aux_weight = 0.1;  // lambda
    bool aux_everywhere = false, aux_relative = false;
    double sigma_ema = 0.0;              // m: share of the running sigma that survives a step
    bool sigma_skips_position0 = false;  // sigma statistics leave position 0 out
    int64_t gradual = 0;                 // steps from LayerNorm's divisor to FakeLN's; 0: at once
    bool removes = true;                 // false for pretrain and for the vanilla control
    double start_mlp = 0, start_qk = 0, start_v = 0, start_f = 0;
    double gap_mlp = 0, gap_qk = 0, gap_v = 0;
    bool own_position0 = false;  // the precursor's special cases
    double release_end_of_text = 0, release_position0 = 0;
    int64_t release_steps = 0;   // in which position 0's own sigma becomes sigma_bar, geometrically; 0: at once
    int64_t shrink_steps = 0;    // in which position 0's embedding comes down to the others' length; 0: left alone
    double plant_position0 = 0;  // pretrain and finetune, for experiments (section 7); 0: nothing is planted
    int64_t plant_step = 0;
    double grow_position0 = 1;  // finetune, for experiments: what the auxiliary loss makes of sigma at position 0
    uint64_t seed = 1;
    std::string precision = "fp32";  // of the operands of matrix products; weights, sums and the optimiser stay fp32

    int64_t tokens_per_step() const { return batch * seq * grad_accum; }
    // No starts and gaps: the run decides (section 7).
    bool adaptive() const { return preset == "adaptive" && removes; }
    AuxSettings aux() const { return {aux_weight, aux_everywhere, aux_relative, grow_position0}; }
};

// Flags that were given on the command line; each overrides what the preset says.
struct ProtocolFlags {
    std::string preset = "auto";
    std::optional<int64_t> steps, stop, tokens, batch, seq, grad_accum, warmup;
    std::optional<double> lr, min_lr, weight_decay, aux_weight, sigma_ema;
    std::optional<double> start_mlp, start_qk, start_v, start_f, gap_mlp, gap_qk, gap_v;
    std::optional<int64_t> gradual, release_position0, release_steps, shrink_steps, plant_step;
    double plant_position0 = 0, grow_position0 = 1;
    bool sigma_skips_position0 = false, own_position0 = false, aux_everywhere = false, aux_relative = false;
    uint64_t seed = 1;
    std::string precision;  // empty: the engine's choice

    // Whether they say when sites go, and how.
    bool schedule_given() const {
        return start_mlp || start_qk || start_v || start_f || gap_mlp || gap_qk || gap_v || gradual || own_position0 ||
               release_position0 || release_steps;
    }
};

// Paper, Tables 3 and 4; the precursor's schedule from its Section on the procedure. Micro-batches are for T = 1024.
struct PaperPreset {
    const char* name;
    int64_t batch, grad_accum, steps, stop, warmup;
    double lr, min_lr, aux_weight, sigma_ema, start_mlp, gap_mlp, gap_qk, gap_v;
};
inline const std::vector<PaperPreset>& paper_presets() {
    static const std::vector<PaperPreset> presets = {
        {"small", 32, 16, 300, 300, 25, 6e-4, 3e-4, 0.1, 0.0, 20, 2, 2, 3},
        {"medium", 22, 23, 500, 500, 10, 6e-4, 3e-4, 0.1, 0.0, 20, 2, 2, 3},
        {"large", 28, 18, 1200, 600, 15, 3e-4, 4e-5, 0.03, 0.19, 30, 4, 4, 6},
        {"xl", 18, 28, 1200, 800, 20, 1e-4, 2e-5, 0.01, 0.19, 50, 4, 4, 6},
        {"precursor", 30, 16, 2000, 0, 100, 6e-4, 6e-5, 0.0, 0.0, 200, 20, 20, 30},
    };
    return presets;
}

// The learning rate that GPT-2s of this size are trained with from scratch, which is what the paper weans GPT-2 Small with.
// Up to 100M parameters a fit by Kaplan et al. 2020 (arXiv 2001.08361, appendix D.6; 6.4e-4 for GPT-2 Small); from there on
// the paper's. With the paper's 6e-4 a small model needs several times as many steps (README, "What makes removal hard").
inline double learning_rate_by_size(int64_t parameters) {
    if (parameters > 1'000'000'000) return 1e-4;
    if (parameters > 500'000'000) return 3e-4;
    if (parameters > 100'000'000) return 6e-4;
    return 0.003239 - 0.0001395 * std::log(static_cast<double>(parameters));
}

// Sizes that fit any model (protocol.md 4): tokens per step grow with the model, 0.5M from 100M parameters on as in the
// paper; a micro-batch stays within 8,192 positions so that activations fit a laptop. `paper`: its learning rates also for
// models smaller than its own.
inline void set_sizes_by_model(Protocol& p, int64_t parameters, const ProtocolFlags& flags) {
    const int64_t tokens_per_step = parameters >= 100'000'000 ? 524'288 : parameters >= 10'000'000 ? 65'536 : 4'096;
    p.batch = flags.batch.value_or(std::max<int64_t>(1, std::min<int64_t>(tokens_per_step, 8'192) / p.seq));
    p.grad_accum = std::max<int64_t>(1, tokens_per_step / (p.batch * p.seq));
    const int64_t size = p.preset == "paper" ? std::max<int64_t>(parameters, 124'439'808) : parameters;
    const bool up_to_100M = size <= 100'000'000, up_to_500M = size <= 500'000'000, up_to_1B = size <= 1'000'000'000;
    p.lr = learning_rate_by_size(size);
    p.min_lr = up_to_100M ? p.lr / 10 : up_to_500M ? 3e-4 : up_to_1B ? 4e-5 : 2e-5;
    p.aux_weight = up_to_500M ? 0.1 : up_to_1B ? 0.03 : 0.01;
    p.sigma_ema = up_to_500M ? 0.0 : 0.19;
}

inline void set_paper_sizes(Protocol& p, const PaperPreset& preset) {
    p.batch = preset.batch;
    p.grad_accum = preset.grad_accum;
    p.steps = preset.steps;
    p.stop = preset.stop;
    p.warmup = preset.warmup;
    p.lr = preset.lr;
    p.min_lr = preset.min_lr;
    p.aux_weight = preset.aux_weight;
    p.sigma_ema = preset.sigma_ema;
    p.start_mlp = preset.start_mlp;
    p.gap_mlp = preset.gap_mlp;
    p.gap_qk = preset.gap_qk;
    p.gap_v = preset.gap_v;
    if (p.preset != "precursor") return;
    p.weight_decay = 0.1;
    p.beta2 = 0.95;
    p.own_position0 = true;
}

// The paper's schedule, fitted to any model and length: all removals spread over the first 45 % of the steps, v sites with
// 1.5 times the gap.
inline void set_fitted_schedule(Protocol& p, int L) {
    const double unit = (0.45 * static_cast<double>(p.steps) - static_cast<double>(p.warmup)) / (3.5 * L);
    p.start_mlp = static_cast<double>(p.warmup);
    p.gap_mlp = p.gap_qk = unit;
    p.gap_v = 1.5 * unit;
}

constexpr double kGrowthWeight = 0.1;  // of the auxiliary loss that makes position 0 grow, for experiments

inline void check_protocol(const Protocol& p, int L);

// `auto` is the schedule that adapts (section 7), unless flags say when sites go: then it is the paper's, fitted, which they
// override. Throws BadInput for flags that would be ignored.
inline std::string resolved_preset(const ProtocolFlags& flags, bool removes) {
    if (flags.preset == "adaptive" && flags.schedule_given())
        throw BadInput(
            "--preset adaptive chooses when and how sites go; leave out --start-*, --gap-*, --gradual, "
            "--own-position0 and --release-*, or give --preset paper");
    if (flags.preset != "auto" || !removes) return flags.preset;
    return flags.schedule_given() ? "paper" : "adaptive";
}

// Presets set, flags override, starts follow from gaps (protocol.md 4). L layers, n_ctx the model's longest sequence.
// Throws BadInput for an unknown preset and for combinations that cannot work.
inline Protocol resolve_protocol(const ProtocolFlags& flags, bool removes, int L, int64_t n_ctx, int64_t parameters) {
    Protocol p;
    p.preset = resolved_preset(flags, removes);
    p.removes = removes;
    p.seed = flags.seed;
    if (!flags.precision.empty()) p.precision = flags.precision;
    p.seq = flags.seq.value_or(n_ctx);
    if (p.seq < 1 || p.seq > n_ctx)
        throw BadInput("--seq " + std::to_string(p.seq) + ": the model reads 1 to " + std::to_string(n_ctx) +
                       " positions (n_ctx); choose --seq within that");
    const auto& presets = paper_presets();
    const auto found =
        std::find_if(presets.begin(), presets.end(), [&](const PaperPreset& q) { return p.preset == q.name; });
    const bool fits_any = p.preset == "auto" || p.preset == "adaptive" || p.preset == "paper";
    if (!fits_any && found == presets.end())
        throw BadInput("--preset " + p.preset +
                       ": there is no such preset; use auto, adaptive, paper, small, medium, large, xl or precursor");

    if (fits_any) {
        set_sizes_by_model(p, parameters, flags);
    } else {
        set_paper_sizes(p, *found);
    }
    p.batch = flags.batch.value_or(p.batch);
    p.grad_accum = flags.grad_accum.value_or(p.grad_accum);
    if (p.batch < 1 || p.grad_accum < 1) throw BadInput("--batch and --grad-accum must be at least 1");

    if (flags.steps && flags.tokens) throw BadInput("--steps and --tokens both set the length of the run; give one");
    if (flags.tokens) p.steps = std::max<int64_t>(1, *flags.tokens / p.tokens_per_step());
    if (flags.steps) p.steps = *flags.steps;
    if (fits_any) p.warmup = p.steps / 20;
    // (Ours: Adam's moments know little before ten steps, and in a short run what they do wrong is not made good again.)
    if (fits_any && p.preset != "paper") p.warmup = std::max(p.warmup, std::min<int64_t>(10, p.steps / 4));
    p.warmup = flags.warmup.value_or(p.warmup);
    if (fits_any) set_fitted_schedule(p, L);
    p.lr = flags.lr.value_or(p.lr);
    p.min_lr = flags.min_lr.value_or(std::min(p.min_lr, p.lr));
    p.weight_decay = flags.weight_decay.value_or(p.weight_decay);
    p.aux_weight = flags.aux_weight.value_or(p.aux_weight);
    p.aux_everywhere = flags.aux_everywhere;
    p.aux_relative = flags.aux_relative;
    p.sigma_ema = flags.sigma_ema.value_or(p.sigma_ema);
    p.sigma_skips_position0 = flags.sigma_skips_position0;
    p.gradual = flags.gradual.value_or(0);
    p.shrink_steps = flags.shrink_steps.value_or(0);
    p.start_mlp = flags.start_mlp.value_or(p.start_mlp);
    p.gap_mlp = flags.gap_mlp.value_or(p.gap_mlp);
    p.gap_qk = flags.gap_qk.value_or(p.gap_qk);
    p.gap_v = flags.gap_v.value_or(p.gap_v);
    p.start_qk = flags.start_qk.value_or(p.start_mlp + L * p.gap_mlp);
    p.start_v = flags.start_v.value_or(p.start_qk + L * p.gap_qk);
    p.start_f = flags.start_f.value_or(p.start_v + L * p.gap_v);
    p.own_position0 = p.own_position0 || flags.own_position0;
    p.release_steps = flags.release_steps.value_or(0);
    if (p.own_position0) {
        p.release_end_of_text = p.start_f + 20;
        p.release_position0 =
            static_cast<double>(flags.release_position0.value_or(static_cast<int64_t>(p.release_end_of_text) + 100));
        p.stop = static_cast<int64_t>(p.release_position0) + p.release_steps + 20;
    }
    p.stop = flags.stop.value_or(fits_any ? p.steps : std::min(p.stop, p.steps));
    p.plant_position0 = flags.plant_position0;
    p.plant_step = flags.plant_step.value_or(1);
    p.grow_position0 = flags.grow_position0;
    if (!removes) p.aux_weight = 0;
    if (p.grow_position0 != 1) {
        p.aux_weight = kGrowthWeight;
        p.aux_relative = p.aux_everywhere = true;
    }
    check_protocol(p, L);
    return p;
}

inline void check_protocol(const Protocol& p, int L) {
    const auto number = [](double x) { return format_general(x); };
    if (p.steps < 1) throw BadInput("--steps " + std::to_string(p.steps) + ": at least 1 step is needed");
    if (p.precision != "fp32" && p.precision != "bf16")
        throw BadInput("--precision " + p.precision + ": use fp32 or bf16");
    if (p.stop < 1 || p.stop > p.steps)
        throw BadInput("--stop " + std::to_string(p.stop) + ": must lie between 1 and --steps (" +
                       std::to_string(p.steps) + ")");
    if (static_cast<double>(p.steps) * static_cast<double>(p.batch) * static_cast<double>(p.seq) *
            static_cast<double>(p.grad_accum) >
        1e15)
        throw BadInput("--steps " + std::to_string(p.steps) +
                       ": the run would take more than 1e15 tokens; give fewer steps");
    if (p.warmup < 0 || p.warmup > p.steps)
        throw BadInput("--warmup " + std::to_string(p.warmup) + ": must lie between 0 and --steps (" +
                       std::to_string(p.steps) + ")");
    if (!(p.lr > 0) || !(p.min_lr >= 0) || p.min_lr > p.lr)
        throw BadInput("--lr " + number(p.lr) + " --min-lr " + number(p.min_lr) +
                       ": need lr > 0 and 0 <= min-lr <= lr");
    if (!(p.sigma_ema >= 0 && p.sigma_ema < 1))
        throw BadInput("--sigma-ema " + number(p.sigma_ema) + ": must be at least 0 and below 1");
    const auto require_positive_or_zero = [&](const char* flag, double value) {
        if (!(value >= 0)) throw BadInput(std::string(flag) + " " + number(value) + ": must not be negative");
    };
    require_positive_or_zero("--weight-decay", p.weight_decay);
    require_positive_or_zero("--aux-weight", p.aux_weight);
    if (!p.removes || p.adaptive()) return;
    require_positive_or_zero("--start-mlp", p.start_mlp);
    require_positive_or_zero("--start-qk", p.start_qk);
    require_positive_or_zero("--start-v", p.start_v);
    require_positive_or_zero("--start-f", p.start_f);
    require_positive_or_zero("--gap-mlp", p.gap_mlp);
    require_positive_or_zero("--gap-qk", p.gap_qk);
    require_positive_or_zero("--gap-v", p.gap_v);
    const double last =
        std::floor(std::max({p.start_mlp + (L - 1) * p.gap_mlp, p.start_qk + (L - 1) * p.gap_qk,
                             p.start_v + (L - 1) * p.gap_v, p.own_position0 ? p.release_position0 : p.start_f}));
    if (last >= static_cast<double>(p.stop))
        throw BadInput("the last removal is due at step " + number(last) + " but the run ends before step " +
                       std::to_string(p.stop) + "; give more --steps, or smaller --gap-mlp, --gap-qk, --gap-v");
}

// When each site goes: at the start of step floor(start + l * gap), before its forward pass.
inline int64_t removal_step(const Protocol& p, const Site& site) {
    switch (site.kind) {
        case SiteKind::mlp:
            return static_cast<int64_t>(std::floor(p.start_mlp + site.layer * p.gap_mlp));
        case SiteKind::qk:
            return static_cast<int64_t>(std::floor(p.start_qk + site.layer * p.gap_qk));
        case SiteKind::v:
            return static_cast<int64_t>(std::floor(p.start_v + site.layer * p.gap_v));
        case SiteKind::f:
            return static_cast<int64_t>(std::floor(p.start_f));
    }
    return 0;
}

// sigma of one step, averaged over all of its positions, folded into the running value (protocol.md 3): m = 0 keeps
// this step's own value, as for GPT-2 Small and Medium; Large and XL smooth it (paper, Sec. 3).
inline void update_running_sigma(Site& site, double sigma_avg, double m) {
    site.last_sigma = sigma_avg;
    site.running = std::isnan(site.running) ? sigma_avg : m * site.running + (1 - m) * sigma_avg;
}

// A site sets out; lower_own_share takes it the rest of the way.
inline void begin_removal(const Protocol& p, Site& site) {
    site.norm = Norm::fake_ln;
    site.own_share = 1;
    site.own_position0 = p.own_position0;
    site.own_end_of_text = p.own_position0 && site.kind == SiteKind::v;
}

// One step of gradual removal: `steps` of them bring the share from 1 to 0.
inline void lower_own_share(Site& site, int64_t steps) {
    const double next = steps > 0 ? site.own_share - 1 / static_cast<double>(steps) : 0;
    site.own_share = next > 1e-9 ? next : 0;
}

// Removes what is due at step s: freezes sigma_bar at the running value after step s - 1 and lets FakeLN take over, at once
// or (ours) in `gradual` steps, during which sigma_bar goes on following the running value. The precursor froze its
// sigma_bar before training and only switches here; later it releases its special cases.
inline std::vector<Event> apply_due_events(const Protocol& p, Sites& sites, int64_t s) {
    std::vector<Event> events;
    if (!p.removes) return events;
    for (size_t i = 0; i < sites.all.size(); i++) {
        Site& site = sites.all[i];
        const int index = static_cast<int>(i);
        if (site.norm == Norm::layer_norm && !p.adaptive() && removal_step(p, site) == s) begin_removal(p, site);
        if (site.own_share > 0) {
            if (!p.own_position0) site.sigma_bar = site.running;
            lower_own_share(site, p.gradual);
            if (site.own_share == 0) events.push_back({s, index, "removed", site.sigma_bar});
        }
        if (site.own_end_of_text && s == static_cast<int64_t>(p.release_end_of_text)) {
            site.own_end_of_text = false;
            events.push_back({s, index, "end-of-text released", site.sigma_bar});
        }
        if (site.own_position0 && s >= static_cast<int64_t>(p.release_position0)) {
            const int64_t left = static_cast<int64_t>(p.release_position0) + p.release_steps - s;
            if (left > 0) {
                site.sigma_bar_0 *= std::pow(site.sigma_bar / site.sigma_bar_0, 1 / static_cast<double>(left + 1));
                continue;
            }
            site.own_position0 = false;
            events.push_back({s, index, "position 0 released", site.sigma_bar});
        }
    }
    return events;
}

// =====================================================================================================================
// 2. The operations
// =====================================================================================================================
//
// Each operation is a pair: forward, and backward, which receives the gradient of the loss with respect to the output
// and ADDS the gradients of the inputs and parameters to what is there (unless its comment says that it overwrites).
// N = B * T positions. Loops over positions run in parallel. Sums over positions never depend on the number of threads:
// they go through sum_over_positions, so that a run gives the same bits on any machine of the same instruction set.

constexpr int64_t kPositionsPerChunk = 64;

// out[j] += sum over positions of a contribution of width `width`. Fixed chunks of positions are summed separately by
// add(begin, end, partial) and then added in order.
template <class AddPositions>
void sum_over_positions(real* out, int64_t N, int64_t width, AddPositions add) {
    const int64_t chunks = (N + kPositionsPerChunk - 1) / kPositionsPerChunk;
    std::vector<real> partial(static_cast<size_t>(chunks * width), real(0));
#pragma omp parallel for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const int64_t begin = chunk * kPositionsPerChunk;
        add(begin, std::min(N, begin + kPositionsPerChunk), partial.data() + chunk * width);
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const real* p = partial.data() + chunk * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) out[j] += p[j];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Encoder: token embedding plus position embedding.
// out (B,T,C), tokens (B,T), wte (V,C), wpe (n_ctx,C)
inline void encoder_forward(real* out, const int32_t* tokens, const real* wte, const real* wpe, int64_t B, int64_t T,
                            int64_t C) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t t = 0; t < T; t++) {
            real* o = out + (b * T + t) * C;
            const real* token = wte + static_cast<int64_t>(tokens[b * T + t]) * C;
            const real* position = wpe + t * C;
            for (int64_t c = 0; c < C; c++) o[c] = token[c] + position[c];
        }
    }
}

// Two positions may hold the same token, so threads share out the channels, not the positions: every element of dwte is
// summed by one thread, in the order of the positions.
inline void encoder_backward(real* dwte, real* dwpe, const real* dout, const int32_t* tokens, int64_t B, int64_t T,
                             int64_t C) {
    constexpr int64_t kChannels = 32;
#pragma omp parallel for schedule(static)
    for (int64_t c0 = 0; c0 < C; c0 += kChannels) {
        const int64_t c1 = std::min(C, c0 + kChannels);
        for (int64_t n = 0; n < B * T; n++) {
            real* token = dwte + static_cast<int64_t>(tokens[n]) * C;
            real* position = dwpe + (n % T) * C;
            const real* d = dout + n * C;
#pragma omp simd
            for (int64_t c = c0; c < c1; c++) {
                token[c] += d[c];
                position[c] += d[c];
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Mean and standard deviation of every position: what LayerNorm divides by, what FakeLN replaces, what the statistics
// average and what the auxiliary loss evens out. sigma includes eps (paper, eq. 2).
// mean, sigma (N), inp (N,C)
inline void moments_forward(real* mean, real* sigma, const real* inp, double eps, int64_t N, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* x = inp + n * C;
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++) sum += x[c];
        const real m = sum / static_cast<real>(C);
        real squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < C; c++) squares += (x[c] - m) * (x[c] - m);
        mean[n] = m;
        sigma[n] = std::sqrt(squares / static_cast<real>(C) + static_cast<real>(eps));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// LayerNorm and FakeLN share their forward pass; only the divisor differs (paper, eq. 1 and 2):
//     LayerNorm: divisor[n] = sigma[n], from moments_forward
//     FakeLN:    divisor[n] = sigma_bar, from fakeln_divisors
// out (N,C), inp (N,C), mean (N), divisor (N), gamma (C), beta (C)
inline void norm_forward(real* out, const real* inp, const real* mean, const real* divisor, const real* gamma,
                         const real* beta, int64_t N, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* x = inp + n * C;
        real* o = out + n * C;
        const real m = mean[n], scale = real(1) / divisor[n];
#pragma omp simd
        for (int64_t c = 0; c < C; c++) o[c] = (x[c] - m) * scale * gamma[c] + beta[c];
    }
}

// The divisors of a removed site: sigma_bar everywhere, except for the precursor's two special cases. A site that is removed
// gradually is on its way from LayerNorm's divisor to that: with a share w of its own sigma, which falls from 1 to 0,
//     divisor = sigma^w * sigma_bar^(1 - w)
// divisor, sigma (B,T), tokens (B,T)
inline void fakeln_divisors(real* divisor, const Site& site, const real* sigma, const int32_t* tokens,
                            int32_t end_of_text, int64_t B, int64_t T) {
    for (int64_t n = 0; n < B * T; n++) {
        const bool special = (site.own_position0 && n % T == 0) || (site.own_end_of_text && tokens[n] == end_of_text);
        double d = special ? site.sigma_bar_0 : site.sigma_bar;
        if (site.own_share > 0) d *= std::pow(static_cast<double>(sigma[n]) / d, site.own_share);
        divisor[n] = static_cast<real>(d);
    }
}

// d gamma and d beta are the same sums for all norms, added to dgamma, dbeta (C).
inline void add_norm_parameter_gradients(real* dgamma, real* dbeta, const real* dout, const real* inp, const real* mean,
                                         const real* divisor, int64_t N, int64_t C) {
    std::vector<real> sums(static_cast<size_t>(2 * C), real(0));
    sum_over_positions(sums.data(), N, 2 * C, [=](int64_t begin, int64_t end, real* partial) {
        real* pgamma = partial;
        real* pbeta = partial + C;
        for (int64_t n = begin; n < end; n++) {
            const real* x = inp + n * C;
            const real* d = dout + n * C;
            const real m = mean[n], scale = real(1) / divisor[n];
#pragma omp simd
            for (int64_t c = 0; c < C; c++) {
                pgamma[c] += d[c] * (x[c] - m) * scale;
                pbeta[c] += d[c];
            }
        }
    });
    for (int64_t c = 0; c < C; c++) {
        dgamma[c] += sums[c];
        dbeta[c] += sums[C + c];
    }
}

// A divisor sigma^w * sigma_bar^(1 - w) depends on x, the more the larger w, which takes away the gradient's components along
// the mean and along x itself. With g = dout * gamma and xhat = (x - mean) / divisor:
//     dx = (g - mean(g)) / divisor - w * (x - mean) / sigma^2 * mean(g * xhat)
inline void blended_backward(real* dinp, real* dgamma, real* dbeta, const real* dout, const real* inp,
                             const real* gamma, const real* mean, const real* sigma, const real* divisor,
                             double own_share, int64_t N, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* x = inp + n * C;
        const real* d = dout + n * C;
        real* dx = dinp + n * C;
        const real m = mean[n], scale = real(1) / divisor[n];
        real sum_g = 0, sum_gx = 0;
#pragma omp simd reduction(+ : sum_g, sum_gx)
        for (int64_t c = 0; c < C; c++) {
            const real g = d[c] * gamma[c];
            sum_g += g;
            sum_gx += g * (x[c] - m) * scale;
        }
        const real mean_g = sum_g / static_cast<real>(C), mean_gx = sum_gx / static_cast<real>(C);
        const real slope = static_cast<real>(own_share) * mean_gx / (sigma[n] * sigma[n]);
#pragma omp simd
        for (int64_t c = 0; c < C; c++) dx[c] += (d[c] * gamma[c] - mean_g) * scale - slope * (x[c] - m);
    }
    add_norm_parameter_gradients(dgamma, dbeta, dout, inp, mean, divisor, N, C);
}

// LayerNorm: w = 1, so that  dx = (g - mean(g) - xhat * mean(g * xhat)) / sigma
inline void layernorm_backward(real* dinp, real* dgamma, real* dbeta, const real* dout, const real* inp,
                               const real* gamma, const real* mean, const real* sigma, int64_t N, int64_t C) {
    blended_backward(dinp, dgamma, dbeta, dout, inp, gamma, mean, sigma, sigma, 1, N, C);
}

// FakeLN: w = 0, the divisor is a constant, and only the centring remains (protocol.md 1):  dx = (g - mean(g)) / sigma_bar
inline void fakeln_backward(real* dinp, real* dgamma, real* dbeta, const real* dout, const real* inp, const real* gamma,
                            const real* mean, const real* divisor, int64_t N, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* d = dout + n * C;
        real* dx = dinp + n * C;
        real sum_g = 0;
#pragma omp simd reduction(+ : sum_g)
        for (int64_t c = 0; c < C; c++) sum_g += d[c] * gamma[c];
        const real mean_g = sum_g / static_cast<real>(C), scale = real(1) / divisor[n];
#pragma omp simd
        for (int64_t c = 0; c < C; c++) dx[c] += (d[c] * gamma[c] - mean_g) * scale;
    }
    add_norm_parameter_gradients(dgamma, dbeta, dout, inp, mean, divisor, N, C);
}

// Whichever of the three a site needs; divisor is what its forward pass divided by.
inline void norm_backward(real* dinp, real* dgamma, real* dbeta, const real* dout, const real* inp, const real* gamma,
                          const real* mean, const real* sigma, const real* divisor, const Site& site, int64_t N,
                          int64_t C) {
    if (site.norm == Norm::layer_norm) {
        layernorm_backward(dinp, dgamma, dbeta, dout, inp, gamma, mean, sigma, N, C);
    } else if (site.own_share > 0) {
        blended_backward(dinp, dgamma, dbeta, dout, inp, gamma, mean, sigma, divisor, site.own_share, N, C);
    } else {
        fakeln_backward(dinp, dgamma, dbeta, dout, inp, gamma, mean, divisor, N, C);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The auxiliary loss (paper, eq. 3; protocol.md 6) keeps sigma even across positions at the input of ln_f:
//     L_aux = lambda * mean over all positions of (sigma - sigma_hat)^2
// sigma_hat is the mean over positions other than t = 0 and other than end-of-text; no gradient flows through it. The
// relative loss is of sigma / sigma_hat - 1, so that a norm weighs the same however long the stream has become.
struct AuxLoss {
    double loss = 0;
    double sigma_hat = 0;
    double target_at_0 = 0;  // sigma_hat, but for experiments (AuxSettings)
    double weight = 0;       // what multiplies the squares: lambda, or lambda / sigma_hat^2
    bool active = false;     // false when lambda is 0 or when every position is excluded from sigma_hat

    double target(int64_t t) const { return t == 0 ? target_at_0 : sigma_hat; }
};

// sigma (B,T), tokens (B,T)
inline AuxLoss aux_loss_forward(const real* sigma, const int32_t* tokens, int32_t end_of_text,
                                const AuxSettings& settings, int64_t B, int64_t T) {
    AuxLoss aux;
    int64_t counted = 0;
    for (int64_t n = 0; n < B * T; n++) {
        if (n % T == 0 || tokens[n] == end_of_text) continue;
        aux.sigma_hat += static_cast<double>(sigma[n]);
        counted++;
    }
    if (settings.weight == 0 || counted == 0) return aux;
    aux.active = true;
    aux.sigma_hat /= static_cast<double>(counted);
    aux.target_at_0 = settings.position0 * aux.sigma_hat;
    aux.weight = settings.relative ? settings.weight / (aux.sigma_hat * aux.sigma_hat) : settings.weight;
    for (int64_t n = 0; n < B * T; n++) {
        const double off = static_cast<double>(sigma[n]) - aux.target(n % T);
        aux.loss += off * off;
    }
    aux.loss *= aux.weight / static_cast<double>(B * T);
    return aux;
}

// d sigma / d x = (x - mean) / (C * sigma), so  dx += weight * 2 / N * (sigma - sigma_hat) * (x - mean) / (C * sigma).
// `scale` is 1 / accumulation steps.
inline void aux_loss_backward(real* dinp, const AuxLoss& aux, const real* inp, const real* mean, const real* sigma,
                              double scale, int64_t B, int64_t T, int64_t C) {
    if (!aux.active) return;
    const int64_t N = B * T;
    const double factor = scale * aux.weight * 2.0 / static_cast<double>(N * C);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const real* x = inp + n * C;
        real* dx = dinp + n * C;
        const double s = static_cast<double>(sigma[n]);
        const real slope = static_cast<real>(factor * (s - aux.target(n % T)) / s);
        const real m = mean[n];
#pragma omp simd
        for (int64_t c = 0; c < C; c++) dx[c] += slope * (x[c] - m);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrix product with bias, weights as GPT-2's Conv1D stores them: inp (N,K), weight (K,M), bias (M), out (N,M).
// `stride` is the length of a row of weight, out and dout in memory; with stride > M a product takes some columns only,
// which is how the q and k columns of c_attn read another input than its v columns.
inline void matmul_forward(real* out, const real* inp, const real* weight, const real* bias, int64_t N, int64_t K,
                           int64_t M, int64_t stride) {
    matmul(Transpose::No, Transpose::No, N, M, K, inp, K, weight, stride, out, stride, false, bias);
}

// dinp (N,K) is overwritten; dweight (K,M) and dbias (M) are added to.
inline void matmul_backward(real* dinp, real* dweight, real* dbias, const real* dout, const real* inp,
                            const real* weight, int64_t N, int64_t K, int64_t M, int64_t stride) {
    matmul(Transpose::No, Transpose::Yes, N, K, M, dout, stride, weight, stride, dinp, K, false);
    matmul(Transpose::Yes, Transpose::No, K, M, N, inp, K, dout, stride, dweight, stride, true);
    sum_over_positions(dbias, N, M, [=](int64_t begin, int64_t end, real* partial) {
        for (int64_t n = begin; n < end; n++) {
            const real* d = dout + n * stride;
#pragma omp simd
            for (int64_t m = 0; m < M; m++) partial[m] += d[m];
        }
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Causal self-attention. qkv (B,T,3C) holds queries, keys and values, heads side by side within each; the values may
// have been made from another input than queries and keys. out (B,T,C). lse (B,NH,T) keeps log sum exp of every row of
// scores, from which backward remakes the probabilities.
//
// A head belongs to one thread, which takes its queries in blocks: what it holds at a time is a block's rows of scores,
// (rows,T), never a T x T matrix. A block [t0,t1) of queries reads the keys [0,t1).
constexpr int64_t kQueriesPerBlock = 32;

// Row t of a block's scores. What a query must not see, u = t+1..t1-1, has probability 0: its scores become -infinity
// first, so that all rows of a block are t1 long, which vectors divide.
inline void softmax_row(real* p, real* lse, real scale, int64_t t, int64_t t1) {
    std::fill(p + t + 1, p + t1, -std::numeric_limits<real>::infinity());
    const real largest = largest_of(p, t1);
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t u = 0; u < t1; u++) {
        p[u] = fast_exp(scale * (p[u] - largest));
        sum += p[u];
    }
    const real share = real(1) / sum;
#pragma omp simd
    for (int64_t u = 0; u < t1; u++) p[u] *= share;
    *lse = scale * largest + std::log(sum);
}

inline void attention_forward(real* out, real* lse, const real* qkv, int64_t B, int64_t T, int64_t C, int64_t NH) {
    const int64_t HS = C / NH;
    const real scale = real(1) / std::sqrt(static_cast<real>(HS));
#pragma omp parallel
    {
        std::vector<real> p(static_cast<size_t>(kQueriesPerBlock * T));
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++) {
            for (int64_t h = 0; h < NH; h++) {
                const real* q = qkv + b * T * 3 * C + h * HS;
                const real *k = q + C, *v = q + 2 * C;
                for (int64_t t0 = 0; t0 < T; t0 += kQueriesPerBlock) {
                    const int64_t t1 = std::min(T, t0 + kQueriesPerBlock), rows = t1 - t0;
                    matmul(Transpose::No, Transpose::Yes, rows, t1, HS, q + t0 * 3 * C, 3 * C, k, 3 * C, p.data(), T,
                           false);
                    for (int64_t t = t0; t < t1; t++)
                        softmax_row(p.data() + (t - t0) * T, lse + (b * NH + h) * T + t, scale, t, t1);
                    matmul(Transpose::No, Transpose::No, rows, HS, t1, p.data(), T, v, 3 * C,
                           out + (b * T + t0) * C + h * HS, C, false);
                }
            }
        }
    }
}

// Turns row t of a block's scores back into probabilities p, and of dp = dout . v into the scores' gradients
//     ds = scale * p * (dp - dout . out)
// both 0 where the query must not see.
inline void softmax_backward_row(real* p, real* ds, const real* dout, const real* out, real lse, real scale, int64_t t,
                                 int64_t t1, int64_t HS) {
    std::fill(p + t + 1, p + t1, -std::numeric_limits<real>::infinity());
    real dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t d = 0; d < HS; d++) dot += dout[d] * out[d];
#pragma omp simd
    for (int64_t u = 0; u < t1; u++) {
        p[u] = fast_exp(scale * p[u] - lse);
        ds[u] = scale * p[u] * (ds[u] - dot);
    }
}

// dqkv (B,T,3C) is overwritten:  dq = ds k,   dk = ds^T q,   dv = p^T dout
inline void attention_backward(real* dqkv, const real* dout, const real* qkv, const real* out, const real* lse,
                               int64_t B, int64_t T, int64_t C, int64_t NH) {
    const int64_t HS = C / NH;
    const real scale = real(1) / std::sqrt(static_cast<real>(HS));
#pragma omp parallel
    {
        std::vector<real> p(static_cast<size_t>(kQueriesPerBlock * T)), ds(p.size());
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++) {
            for (int64_t h = 0; h < NH; h++) {
                const real* q = qkv + b * T * 3 * C + h * HS;
                const real *k = q + C, *v = q + 2 * C;
                real* dq = dqkv + b * T * 3 * C + h * HS;
                real *dk = dq + C, *dv = dq + 2 * C;
                for (int64_t t = 0; t < T; t++) {
                    std::fill(dk + t * 3 * C, dk + t * 3 * C + HS, real(0));
                    std::fill(dv + t * 3 * C, dv + t * 3 * C + HS, real(0));
                }
                for (int64_t t0 = 0; t0 < T; t0 += kQueriesPerBlock) {
                    const int64_t t1 = std::min(T, t0 + kQueriesPerBlock), rows = t1 - t0;
                    const real *queries = q + t0 * 3 * C, *d_o = dout + (b * T + t0) * C + h * HS;
                    matmul(Transpose::No, Transpose::Yes, rows, t1, HS, queries, 3 * C, k, 3 * C, p.data(), T, false);
                    matmul(Transpose::No, Transpose::Yes, rows, t1, HS, d_o, C, v, 3 * C, ds.data(), T, false);
                    for (int64_t t = t0; t < t1; t++)
                        softmax_backward_row(p.data() + (t - t0) * T, ds.data() + (t - t0) * T, d_o + (t - t0) * C,
                                             out + (b * T + t) * C + h * HS, lse[(b * NH + h) * T + t], scale, t, t1,
                                             HS);
                    matmul(Transpose::No, Transpose::No, rows, HS, t1, ds.data(), T, k, 3 * C, dq + t0 * 3 * C, 3 * C,
                           false);
                    matmul(Transpose::Yes, Transpose::No, t1, HS, rows, ds.data(), T, queries, 3 * C, dk, 3 * C, true);
                    matmul(Transpose::Yes, Transpose::No, t1, HS, rows, p.data(), T, d_o, C, dv, 3 * C, true);
                }
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// GELU in GPT-2's tanh form. With u = sqrt(2/pi) * (x + 0.044715 x^3) and s = (1 + tanh u) / 2 = 1 / (1 + e^-2u):
//     gelu(x) = x * s,   gelu'(x) = s + x * s * (1 - s) * 2u'
constexpr double kGeluScale = 0.79788456080286535588;  // sqrt(2/pi)

inline real gelu_share(real x) {
    return fast_logistic(real(2 * kGeluScale) * x * (1 + real(0.044715) * x * x));
}

inline void gelu_forward(real* out, const real* inp, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = inp[i] * gelu_share(inp[i]);
}

// Overwrites dinp, which may be dout itself.
inline void gelu_backward(real* dinp, const real* dout, const real* inp, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const real x = inp[i], s = gelu_share(x);
        const real twice_du = real(2 * kGeluScale) * (1 + real(3 * 0.044715) * x * x);
        dinp[i] = dout[i] * (s + x * s * (1 - s) * twice_du);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Residual connection. Its backward is the identity on both inputs, so the model simply keeps using one gradient buffer.
inline void residual_forward(real* out, const real* stream, const real* branch, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = stream[i] + branch[i];
}

// ---------------------------------------------------------------------------------------------------------------------
// Softmax and cross-entropy of some rows of logits (rows,V), fused with their gradient: losses (rows) in nats; if
// `with_gradient`, logits are overwritten by d loss / d logits = scale * (softmax - one-hot).
inline void softmax_cross_entropy(real* losses, real* logits, const int32_t* targets, double scale, bool with_gradient,
                                  int64_t rows, int64_t V) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        real* z = logits + n * V;
        const real largest = largest_of(z, V), target = z[targets[n]];
        real sum = 0;
        if (!with_gradient) {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < V; i++) sum += fast_exp(z[i] - largest);
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < V; i++) {
                z[i] = fast_exp(z[i] - largest);
                sum += z[i];
            }
            const real factor = static_cast<real>(scale) / sum;
#pragma omp simd
            for (int64_t i = 0; i < V; i++) z[i] *= factor;
            z[targets[n]] -= static_cast<real>(scale);
        }
        losses[n] = std::log(sum) + largest - target;
    }
}

// Whether each row's target is what greedy decoding would take: the largest logit, the first of equals. logits (rows,V)
inline void is_likeliest(uint8_t* likeliest, const real* logits, const int32_t* targets, int64_t rows, int64_t V) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const real* z = logits + n * V;
        likeliest[n] = std::max_element(z, z + V) - z == targets[n];
    }
}

// =====================================================================================================================
// 3. The model
// =====================================================================================================================

// Zeroed memory, aligned to cache lines. Every page is touched on allocation, so that the first step is no slower than
// the others.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t n) { allocate(n); }

    // Throws RunFailure when the machine has no such amount of memory.
    void allocate(int64_t n) {
        const size_t bytes = (static_cast<size_t>(n) * sizeof(real) + 4095) / 4096 * 4096;
        real* p = bytes == 0 ? nullptr : static_cast<real*>(aligned_alloc(4096, bytes));
        if (bytes != 0 && p == nullptr)
            throw RunFailure("no memory for " + format_bytes(bytes) +
                             "; use a smaller --batch or --seq, or a smaller model");
        memory_.reset(p);
        size_ = n;
        if (bytes >= (1u << 21)) madvise(p, bytes, MADV_HUGEPAGE);
        zero();
    }
    void zero() {
        real* p = memory_.get();
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < size_; i++) p[i] = 0;
    }
    real* data() {
        return memory_.get();
    }
    const real* data() const {
        return memory_.get();
    }
    int64_t size() const {
        return size_;
    }

  private:
    struct Free {
        void operator()(real* p) const { free(p); }
    };
    std::unique_ptr<real[], Free> memory_;
    int64_t size_ = 0;
};

// One parameter tensor. This table drives allocation, folders, the optimiser, norms and tests.
struct Tensor {
    std::string name;  // Hugging Face's name, without the prefix `transformer.`
    std::vector<uint64_t> shape;
    bool decay;      // weight decay applies: weight matrices and embeddings only (protocol.md 5)
    int64_t offset;  // of its first element in the flat buffers
    int64_t size;
};

inline std::vector<Tensor> tensor_table(const GPT2Config& c) {
    std::vector<Tensor> table;
    int64_t offset = 0;
    const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
        Tensor t{name, {}, shape.size() == 2, offset, 1};
        for (int64_t extent : shape) {
            t.shape.push_back(static_cast<uint64_t>(extent));
            t.size *= extent;
        }
        offset += t.size;
        table.push_back(t);
    };
    const bool norms = c.form != ModelForm::folded;
    add("wte.weight", {c.V, c.C});
    add("wpe.weight", {c.n_ctx, c.C});
    for (int64_t l = 0; l < c.L; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        if (norms) add(h + "ln_1.weight", {c.C});
        if (norms) add(h + "ln_1.bias", {c.C});
        add(h + "attn.c_attn.weight", {c.C, 3 * c.C});
        add(h + "attn.c_attn.bias", {3 * c.C});
        add(h + "attn.c_proj.weight", {c.C, c.C});
        add(h + "attn.c_proj.bias", {c.C});
        if (norms) add(h + "ln_2.weight", {c.C});
        if (norms) add(h + "ln_2.bias", {c.C});
        add(h + "mlp.c_fc.weight", {c.C, c.n_inner});
        add(h + "mlp.c_fc.bias", {c.n_inner});
        add(h + "mlp.c_proj.weight", {c.n_inner, c.C});
        add(h + "mlp.c_proj.bias", {c.C});
    }
    if (norms) add("ln_f.weight", {c.C});
    if (norms) add("ln_f.bias", {c.C});
    if (!norms) add("lm_head.weight", {c.V, c.C});
    if (!norms) add("lm_head.bias", {c.V});
    return table;
}

inline int64_t parameter_count(const std::vector<Tensor>& table) {
    return table.back().offset + table.back().size;
}

// Pointers into a flat buffer of parameters, or of their gradients. Norm pointers are null in the folded form, whose
// unembedding is its own tensor with a bias; otherwise the unembedding is wte (V,C) and has none.
template <class Number>
struct WeightsOf {
    struct Layer {
        Number *ln1_gamma, *ln1_beta;  // (C), (C)
        Number *qkv, *qkv_bias;        // (C,3C), (3C)
        Number *proj, *proj_bias;      // (C,C), (C)
        Number *ln2_gamma, *ln2_beta;  // (C), (C)
        Number *fc, *fc_bias;          // (C,n_inner), (n_inner)
        Number *fcproj, *fcproj_bias;  // (n_inner,C), (C)
    };
    Number *wte, *wpe;  // (V,C), (n_ctx,C)
    std::vector<Layer> layers;
    Number *lnf_gamma = nullptr, *lnf_beta = nullptr;  // (C), (C)
    Number *head, *head_bias = nullptr;                // (V,C), (V)

    WeightsOf() = default;
    WeightsOf(Number* base, const std::vector<Tensor>& table, const GPT2Config& c) {
        size_t next = 0;
        const auto take = [&] { return base + table[next++].offset; };
        const bool norms = c.form != ModelForm::folded;
        const auto take_norm = [&] { return norms ? take() : nullptr; };
        wte = take();
        wpe = take();
        layers.resize(static_cast<size_t>(c.L));
        for (Layer& y : layers) {
            y.ln1_gamma = take_norm();
            y.ln1_beta = take_norm();
            y.qkv = take();
            y.qkv_bias = take();
            y.proj = take();
            y.proj_bias = take();
            y.ln2_gamma = take_norm();
            y.ln2_beta = take_norm();
            y.fc = take();
            y.fc_bias = take();
            y.fcproj = take();
            y.fcproj_bias = take();
        }
        lnf_gamma = take_norm();
        lnf_beta = take_norm();
        head = norms ? wte : take();
        if (!norms) head_bias = take();
    }
};
using Weights = WeightsOf<real>;

// Rows of logits that are made at a time: at most 2^24 values, so that a vocabulary of 50,257 gets 333 rows in 64 MiB. With
// fewer, the gradient of the whole unembedding matrix would be read and written again for too little work.
inline int64_t classifier_rows(int64_t N, int64_t V) {
    return std::max<int64_t>(1, std::min(N, (int64_t(1) << 24) / V));
}

// What forward keeps for backward. Outputs of norms and of GELU are not kept: backward remakes them from these.
// Evaluation needs no more than one layer's worth, so every layer then writes to the same place.
struct Activations {
    struct Layer {
        real *residual, *residual_mid;          // (B,T,C) stream before attention, and before the MLP
        real *mean1, *sigma1, *mean2, *sigma2;  // (B,T)
        real *qkv, *lse, *att;                  // (B,T,3C), (B,NH,T), (B,T,C)
        real* fc;                               // (B,T,n_inner) before GELU
    };
    std::vector<Layer> layers;
    real *final_residual, *meanf, *sigmaf;  // (B,T,C), (B,T), (B,T)
    // scratch
    real *normed, *branch;   // (B,T,C)
    real* hidden;            // (B,T,n_inner) after GELU
    real *divisor, *losses;  // (B,T)
    real* logits;            // (rows_per_chunk,V): logits of the whole batch are never stored
    int64_t rows_per_chunk = 0;
    // gradients, reused by every layer
    real *dresidual, *dbranch;  // (B,T,C)
    real *dqkv, *dhidden;       // (B,T,3C), (B,T,n_inner)

    int64_t B = 0, T = 0;
    bool training = false;
    Buffer memory;

    // Number of values needed; with `base` also sets the pointers.
    int64_t lay_out(real* base, const GPT2Config& c) {
        int64_t used = 0;
        const auto take = [&](int64_t n) {
            real* p = base == nullptr ? nullptr : base + used;
            used += (n + 15) / 16 * 16;
            return p;
        };
        const int64_t N = B * T, NC = N * c.C;
        layers.resize(static_cast<size_t>(c.L));
        for (int64_t l = 0; l < c.L; l++) {
            Layer& y = layers[l];
            if (!training && l > 0) {
                y = layers[0];
                continue;
            }
            y.residual = take(NC);
            y.residual_mid = take(NC);
            for (real** p : {&y.mean1, &y.sigma1, &y.mean2, &y.sigma2}) *p = take(N);
            y.qkv = take(3 * NC);
            y.lse = take(c.NH * N);
            y.att = take(NC);
            y.fc = take(N * c.n_inner);
        }
        final_residual = training ? take(NC) : layers[0].residual;
        for (real** p : {&meanf, &sigmaf, &divisor, &losses}) *p = take(N);
        normed = take(NC);
        branch = take(NC);
        hidden = take(N * c.n_inner);
        rows_per_chunk = classifier_rows(N, c.V);
        logits = take(rows_per_chunk * c.V);
        if (training) {
            dresidual = take(NC);
            dbranch = take(NC);
            dqkv = take(3 * NC);
            dhidden = take(N * c.n_inner);
        }
        return used;
    }

    // Memory only grows: shorter sequences use the front of it.
    void reserve(int64_t batch, int64_t seq, bool for_training, const GPT2Config& c) {
        if (batch == B && seq == T && (training || !for_training)) return;  // a training arena serves evaluation too
        B = batch;
        T = seq;
        training = for_training;
        const int64_t needed = lay_out(nullptr, c);
        if (needed > memory.size()) memory.allocate(needed);
        lay_out(memory.data(), c);
    }
};

// sigma summed over positions for one site, position 0 apart (the precursor needs the two means separately)
struct SigmaSum {
    double at_0 = 0, elsewhere = 0;
    int64_t n_at_0 = 0, n_elsewhere = 0;

    double mean_at_0() const { return at_0 / static_cast<double>(n_at_0); }
    double mean_elsewhere() const {
        return n_elsewhere > 0 ? elsewhere / static_cast<double>(n_elsewhere) : mean_at_0();
    }
    double mean(bool without_position0 = false) const {
        return without_position0 ? mean_elsewhere() : (at_0 + elsewhere) / static_cast<double>(n_at_0 + n_elsewhere);
    }
    void add(const real* sigma, int64_t B, int64_t T) {
        for (int64_t n = 0; n < B * T; n++) (n % T == 0 ? at_0 : elsewhere) += static_cast<double>(sigma[n]);
        n_at_0 += B;
        n_elsewhere += B * (T - 1);
    }
};

struct BatchLoss {
    double loss = 0;  // mean cross-entropy, nats per predicted token
    double aux = 0;   // auxiliary loss, lambda included
};

// What an analysis sees of a forward pass, layer by layer, and may change; a function that is empty is not called.
struct Probe {
    // The stream (B,T,C) in front of block `layer`, or in front of ln_f for layer L. What is written to it counts.
    std::function<void(int64_t layer, real* residual)> residual;
    // What the heads bring, side by side and before c_proj: heads (B,T,C); and what they were made from: qkv (B,T,3C),
    // lse (B,NH,T).
    std::function<void(int64_t layer, const real* heads, const real* qkv, const real* lse)> attention;
    // The MLP's neurons after GELU, hidden (B,T,n_inner), and what it adds to the stream, output (B,T,C).
    std::function<void(int64_t layer, const real* hidden, const real* output)> mlp;
};

// The model: parameters, and the passes over a micro-batch. What is virtual another engine does its own way, with its own
// copy of the parameters (train_gpt2_lnfree.cu).
class GPT2 {
  public:
    GPT2Config config;
    Sites sites;
    std::vector<Tensor> tensors;
    Buffer params, grads;
    std::vector<SigmaSum> sigma_sums;  // of the micro-batches since the last clear, one per site

    explicit GPT2(const GPT2Config& c) : config(c), sites(static_cast<int>(c.L)), tensors(tensor_table(c)) {
        params.allocate(parameter_count(tensors));
        w_ = Weights(params.data(), tensors, config);
        if (c.form == ModelForm::folded)
            for (Site& site : sites.all) site.norm = Norm::folded;
        clear_sigma_sums();
    }
    virtual ~GPT2() = default;
    GPT2(GPT2&&) = default;
    int64_t parameters() const { return params.size(); }
    real* tensor(const std::string& name) {
        for (const Tensor& t : tensors)
            if (t.name == name) return params.data() + t.offset;
        return nullptr;
    }
    // Memory for gradients and, if B and T are given, for the activations of such micro-batches, so that the first step is
    // no slower than the others.
    virtual void prepare_training(int64_t B = 0, int64_t T = 0) {
        if (grads.size() == 0) grads.allocate(params.size());
        dw_ = Weights(grads.data(), tensors, config);
        if (B * T > 0) act_.reserve(B, T, true, config);
    }
    virtual void zero_gradients() { grads.zero(); }
    // Euclidean norm of the whole gradient (section 4).
    virtual double gradient_norm();
    // The embedding of position 0 becomes factor * itself + added (C); null: nothing is added.
    virtual void edit_position0(double factor, const real* added) {
        for (int64_t c = 0; c < config.C; c++)
            w_.wpe[c] = static_cast<real>(factor) * w_.wpe[c] + (added == nullptr ? real(0) : added[c]);
    }
    // Brings `params` up to date where training works on another copy.
    virtual void fetch_parameters() {}
    void clear_sigma_sums() { sigma_sums.assign(sites.all.size(), SigmaSum()); }
    // Adds the sigmas of the last pass, which must have kept every layer's.
    void collect_sigma_sums() {
        for (size_t i = 0; i < sites.all.size(); i++) {
            sigma_sums[i].add(sigmas_at(sites.all[i]), act_.B, act_.T);
        }
    }

    // One micro-batch of training: adds the gradients of (cross-entropy + auxiliary loss) / grad_accum to `grads` and
    // this micro-batch's sigmas to `sigma_sums`. inputs, targets (B,T)
    virtual BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                                       const AuxSettings& aux, int64_t grad_accum) {
        act_.reserve(B, T, true, config);
        run_blocks(inputs);
        collect_sigma_sums();
        BatchLoss result;
        result.aux = auxiliary_losses(inputs, aux);
        aux_scale_ = 1.0 / static_cast<double>(grad_accum);
        result.loss = classify(inputs, targets, 1.0 / static_cast<double>(B * T * grad_accum));

        std::fill(act_.dresidual, act_.dresidual + B * T * config.C, real(0));
        norm_backward(act_.dresidual, dw_.lnf_gamma, dw_.lnf_beta, act_.dbranch, act_.final_residual, w_.lnf_gamma,
                      act_.meanf, act_.sigmaf, sites.f(), inputs);
        auxiliary_backward(sites.f(), act_.final_residual, act_.meanf);
        for (int64_t l = config.L - 1; l >= 0; l--) {
            mlp_backward(l, inputs);
            attention_block_backward(l, inputs);
        }
        encoder_backward(dw_.wte, dw_.wpe, act_.dresidual, inputs, B, T, config.C);
        return result;
    }

    // Only the statistics: sigmas of every site on this micro-batch, nothing trained.
    virtual void measure_sigmas(const int32_t* inputs, int64_t B, int64_t T) {
        act_.reserve(B, T, true, config);
        run_blocks(inputs);
        collect_sigma_sums();
    }

    // Cross-entropy of every prediction, (B,T), valid until the next call. Trains nothing, counts no sigma.
    virtual const real* token_losses(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) {
        act_.reserve(B, T, false, config);
        run_blocks(inputs);
        classify(inputs, targets, 0);
        return act_.losses;
    }

    // Logits of positions t >= from, out (B, T - from, V).
    virtual void logits(real* out, const int32_t* inputs, int64_t B, int64_t T, int64_t from = 0) {
        act_.reserve(B, T, false, config);
        run_blocks(inputs);
        final_norm(inputs);
        for (int64_t b = 0; b < B; b++)
            unembed(out + b * (T - from) * config.V, act_.normed + (b * T + from) * config.C, T - from);
    }

    // ----- for analyses, in this engine alone (dev/analysis)

    const Weights& weights() const { return w_; }

    // A forward pass that `probe` watches; what it leaves can be read with the functions below. With `keep`, for
    // stream_gradients. inputs (B,T)
    void trace(const int32_t* inputs, int64_t B, int64_t T, const Probe& probe, bool keep = false) {
        if (keep) GPT2::prepare_training();
        act_.reserve(B, T, keep, config);
        run_blocks(inputs, probe);
        final_norm(inputs);
    }
    // The part of a pass behind `layer` (0..L), from the stream in front of it. inputs (B,T), residual (B,T,C)
    void trace_from(int64_t layer, const real* residual, const int32_t* inputs, int64_t B, int64_t T) {
        act_.reserve(B, T, false, config);
        std::copy(residual, residual + B * T * config.C, stream_at(layer));
        run_layers(layer, inputs, {});
        final_norm(inputs);
    }
    // Of the last pass: logits of `count` positions from `first` on, counted through the batch; out (count,V).
    void final_logits(real* out, int64_t first, int64_t count) { unembed(out, act_.normed + first * config.C, count); }
    // Cross-entropy of some predictions, losses (n), and whether each target is the likeliest token (the first of equals):
    // at position rows[i] = b * T + t token targets[i] follows. No other logits are made. inputs (B,T)
    void score(real* losses, uint8_t* likeliest, const int32_t* inputs, int64_t B, int64_t T,
               const std::vector<int64_t>& rows, const int32_t* targets) {
        act_.reserve(B, T, false, config);
        run_blocks(inputs);
        final_norm(inputs);
        const int64_t C = config.C, V = config.V, n = static_cast<int64_t>(rows.size());
        for (int64_t first = 0; first < n; first += act_.rows_per_chunk) {
            const int64_t count = std::min(act_.rows_per_chunk, n - first);
            for (int64_t i = 0; i < count; i++) {
                const real* row = act_.normed + rows[static_cast<size_t>(first + i)] * C;
                std::copy(row, row + C, act_.branch + i * C);
            }
            unembed(act_.logits, act_.branch, count);
            is_likeliest(likeliest + first, act_.logits, targets + first, count, V);
            softmax_cross_entropy(losses + first, act_.logits, targets + first, 0, false, count, V);
        }
    }
    // The stream in front of ln_f and behind it (B,T,C), its means in front (B,T), and what ln_f divides by (B,T).
    const real* final_residual() const { return act_.final_residual; }
    const real* final_normed() const { return act_.normed; }
    const real* final_means() const { return act_.meanf; }
    const real* final_divisors(const int32_t* inputs) {
        if (sites.f().norm != Norm::folded) return divisors(sites.f(), act_.sigmaf, inputs);
        std::fill(act_.divisor, act_.divisor + positions(), real(1));
        return act_.divisor;
    }

    // Gradients of the stream in front of every block, last layer first, after a trace that was kept: see(layer,
    // gradient (B,T,C)). dnormed (B,T,C) is the gradient of ln_f's output. Adds to `grads` what has no meaning here.
    void stream_gradients(const real* dnormed, const int32_t* inputs,
                          const std::function<void(int64_t layer, const real* gradient)>& see) {
        aux_.clear();
        const int64_t NC = positions() * config.C;
        std::copy(dnormed, dnormed + NC, act_.dbranch);
        std::fill(act_.dresidual, act_.dresidual + NC, real(0));
        norm_backward(act_.dresidual, dw_.lnf_gamma, dw_.lnf_beta, act_.dbranch, act_.final_residual, w_.lnf_gamma,
                      act_.meanf, act_.sigmaf, sites.f(), inputs);
        for (int64_t l = config.L - 1; l >= 0; l--) {
            mlp_backward(l, inputs);
            attention_block_backward(l, inputs);
            see(l, act_.dresidual);
        }
    }

    // What ln_f and the unembedding make of given residual vectors: residual (N,C) -> out (N,V).
    void unembed_residual(real* out, const real* residual, int64_t N) {
        act_.reserve(N, 1, false, config);
        std::copy(residual, residual + N * config.C, act_.final_residual);
        moments_forward(act_.meanf, act_.sigmaf, act_.final_residual, config.epsilon, N, config.C);
        const std::vector<int32_t> no_tokens(static_cast<size_t>(N), -1);
        final_norm(no_tokens.data());
        unembed(out, act_.normed, N);
    }
    // sigma at a site's input in the last pass, which must have kept every layer's, (B,T).
    const real* sigmas_at(const Site& site) const {
        return site.kind == SiteKind::f     ? act_.sigmaf
               : site.kind == SiteKind::mlp ? act_.layers[site.layer].sigma2
                                            : act_.layers[site.layer].sigma1;
    }

    // Bytes of the activation arena for B sequences of T positions.
    int64_t activation_bytes(int64_t B, int64_t T, bool training) const {
        Activations a;
        a.B = B;
        a.T = T;
        a.training = training;
        return a.lay_out(nullptr, config) * static_cast<int64_t>(sizeof(real));
    }

    // While qk and v of a layer divide by the same numbers, one product makes queries, keys and values.
    bool qk_and_v_agree(int64_t l) {
        const Site &qk = sites.qk(static_cast<int>(l)), &v = sites.v(static_cast<int>(l));
        if (qk.norm != v.norm) return false;
        if (qk.norm != Norm::fake_ln) return true;
        return qk.sigma_bar == v.sigma_bar && qk.own_share == v.own_share && qk.own_end_of_text == v.own_end_of_text &&
               qk.own_position0 == v.own_position0 && (!qk.own_position0 || qk.sigma_bar_0 == v.sigma_bar_0);
    }

  private:
    Weights w_, dw_;
    Activations act_;

    int64_t positions() const { return act_.B * act_.T; }

    std::vector<AuxLoss> aux_;  // of the last training pass, one per site; empty for other passes
    double aux_scale_ = 1;      // 1 / accumulation steps

    // The auxiliary loss at f, or at every norm; qk and v share one. Where there are several their mean, so that lambda
    // keeps its meaning.
    double auxiliary_losses(const int32_t* inputs, AuxSettings settings) {
        aux_.assign(sites.all.size(), AuxLoss());
        if (settings.everywhere) settings.weight /= static_cast<double>(2 * config.L + 1);
        double sum = 0;
        for (size_t i = 0; i < sites.all.size(); i++) {
            const Site& site = sites.all[i];
            if (site.kind == SiteKind::v || (site.kind != SiteKind::f && !settings.everywhere)) continue;
            aux_[i] = aux_loss_forward(sigmas_at(site), inputs, config.end_of_text, settings, act_.B, act_.T);
            sum += aux_[i].loss;
        }
        return sum;
    }

    // Adds to dresidual, the gradient of `inp`, which is the input of `site`.
    void auxiliary_backward(const Site& site, const real* inp, const real* mean) {
        if (aux_.empty()) return;
        const AuxLoss& aux = aux_[static_cast<size_t>(&site - sites.all.data())];
        aux_loss_backward(act_.dresidual, aux, inp, mean, sigmas_at(site), aux_scale_, act_.B, act_.T, config.C);
    }

    // The norm of a site: LayerNorm, FakeLN, or nothing where it is folded into the next weights.
    void norm(real* out, const real* inp, const real* mean, const real* sigma, const real* gamma, const real* beta,
              const Site& site, const int32_t* tokens) {
        if (site.norm == Norm::folded) {
            std::copy(inp, inp + positions() * config.C, out);
            return;
        }
        norm_forward(out, inp, mean, divisors(site, sigma, tokens), gamma, beta, positions(), config.C);
    }

    // Adds to dinp, dgamma, dbeta.
    void norm_backward(real* dinp, real* dgamma, real* dbeta, const real* dout, const real* inp, const real* gamma,
                       const real* mean, const real* sigma, const Site& site, const int32_t* tokens) {
        const int64_t N = positions(), C = config.C;
        if (site.norm == Norm::folded) {
            residual_forward(dinp, dinp, dout, N * C);
        } else {
            lnfree::norm_backward(dinp, dgamma, dbeta, dout, inp, gamma, mean, sigma, divisors(site, sigma, tokens),
                                  site, N, C);
        }
    }

    const real* divisors(const Site& site, const real* sigma, const int32_t* tokens) {
        if (site.norm == Norm::layer_norm) return sigma;
        fakeln_divisors(act_.divisor, site, sigma, tokens, config.end_of_text, act_.B, act_.T);
        return act_.divisor;
    }

    // The products that read a block's first norm: (site, first column of c_attn, columns)
    struct QkvProduct {
        const Site* site;
        int64_t column, columns;
    };
    std::vector<QkvProduct> qkv_products(int64_t l) {
        const Site &qk = sites.qk(static_cast<int>(l)), &v = sites.v(static_cast<int>(l));
        if (qk_and_v_agree(l)) return {{&qk, 0, 3 * config.C}};
        return {{&qk, 0, 2 * config.C}, {&v, 2 * config.C, config.C}};
    }

    // The stream in front of layer 0..L-1, or in front of ln_f.
    real* stream_at(int64_t layer) { return layer < config.L ? act_.layers[layer].residual : act_.final_residual; }

    // Everything up to the input of ln_f.
    void run_blocks(const int32_t* inputs, const Probe& probe = {}) {
        encoder_forward(act_.layers[0].residual, inputs, w_.wte, w_.wpe, act_.B, act_.T, config.C);
        run_layers(0, inputs, probe);
    }

    void run_layers(int64_t first, const int32_t* inputs, const Probe& probe) {
        const int64_t N = positions(), C = config.C;
        for (int64_t l = first; l < config.L; l++) {
            const Activations::Layer& a = act_.layers[l];
            if (probe.residual) probe.residual(l, a.residual);
            attention_block_forward(l, inputs);
            if (probe.attention) probe.attention(l, a.att, a.qkv, a.lse);
            mlp_forward(l, inputs);
            if (probe.mlp) probe.mlp(l, act_.hidden, act_.branch);
            residual_forward(stream_at(l + 1), a.residual_mid, act_.branch, N * C);
        }
        if (probe.residual) probe.residual(config.L, act_.final_residual);
        moments_forward(act_.meanf, act_.sigmaf, act_.final_residual, config.epsilon, N, C);
    }

    void attention_block_forward(int64_t l, const int32_t* inputs) {
        const int64_t N = positions(), C = config.C;
        const Weights::Layer& w = w_.layers[l];
        const Activations::Layer& a = act_.layers[l];
        moments_forward(a.mean1, a.sigma1, a.residual, config.epsilon, N, C);
        for (const QkvProduct& p : qkv_products(l)) {
            norm(act_.normed, a.residual, a.mean1, a.sigma1, w.ln1_gamma, w.ln1_beta, *p.site, inputs);
            matmul_forward(a.qkv + p.column, act_.normed, w.qkv + p.column, w.qkv_bias + p.column, N, C, p.columns,
                           3 * C);
        }
        attention_forward(a.att, a.lse, a.qkv, act_.B, act_.T, C, config.NH);
        matmul_forward(act_.branch, a.att, w.proj, w.proj_bias, N, C, C, C);
        residual_forward(a.residual_mid, a.residual, act_.branch, N * C);
    }

    // Leaves the MLP's output in act_.branch.
    void mlp_forward(int64_t l, const int32_t* inputs) {
        const int64_t N = positions(), C = config.C, H = config.n_inner;
        const Weights::Layer& w = w_.layers[l];
        const Activations::Layer& a = act_.layers[l];
        moments_forward(a.mean2, a.sigma2, a.residual_mid, config.epsilon, N, C);
        norm(act_.normed, a.residual_mid, a.mean2, a.sigma2, w.ln2_gamma, w.ln2_beta, sites.mlp(static_cast<int>(l)),
             inputs);
        matmul_forward(a.fc, act_.normed, w.fc, w.fc_bias, N, C, H, H);
        gelu_forward(act_.hidden, a.fc, N * H);
        matmul_forward(act_.branch, act_.hidden, w.fcproj, w.fcproj_bias, N, H, C, C);
    }

    // dresidual holds the gradient of the stream behind the MLP and becomes that in front of it.
    void mlp_backward(int64_t l, const int32_t* inputs) {
        const int64_t N = positions(), C = config.C, H = config.n_inner;
        const Weights::Layer &w = w_.layers[l], &d = dw_.layers[l];
        const Activations::Layer& a = act_.layers[l];
        const Site& site = sites.mlp(static_cast<int>(l));
        gelu_forward(act_.hidden, a.fc, N * H);
        matmul_backward(act_.dhidden, d.fcproj, d.fcproj_bias, act_.dresidual, act_.hidden, w.fcproj, N, H, C, C);
        gelu_backward(act_.dhidden, act_.dhidden, a.fc, N * H);
        norm(act_.normed, a.residual_mid, a.mean2, a.sigma2, w.ln2_gamma, w.ln2_beta, site, inputs);
        matmul_backward(act_.dbranch, d.fc, d.fc_bias, act_.dhidden, act_.normed, w.fc, N, C, H, H);
        norm_backward(act_.dresidual, d.ln2_gamma, d.ln2_beta, act_.dbranch, a.residual_mid, w.ln2_gamma, a.mean2,
                      a.sigma2, site, inputs);
        auxiliary_backward(site, a.residual_mid, a.mean2);
    }

    void attention_block_backward(int64_t l, const int32_t* inputs) {
        const int64_t N = positions(), C = config.C;
        const Weights::Layer &w = w_.layers[l], &d = dw_.layers[l];
        const Activations::Layer& a = act_.layers[l];
        matmul_backward(act_.dbranch, d.proj, d.proj_bias, act_.dresidual, a.att, w.proj, N, C, C, C);
        attention_backward(act_.dqkv, act_.dbranch, a.qkv, a.att, a.lse, act_.B, act_.T, C, config.NH);
        for (const QkvProduct& p : qkv_products(l)) {
            norm(act_.normed, a.residual, a.mean1, a.sigma1, w.ln1_gamma, w.ln1_beta, *p.site, inputs);
            matmul_backward(act_.dbranch, d.qkv + p.column, d.qkv_bias + p.column, act_.dqkv + p.column, act_.normed,
                            w.qkv + p.column, N, C, p.columns, 3 * C);
            norm_backward(act_.dresidual, d.ln1_gamma, d.ln1_beta, act_.dbranch, a.residual, w.ln1_gamma, a.mean1,
                          a.sigma1, *p.site, inputs);
        }
        auxiliary_backward(sites.qk(static_cast<int>(l)), a.residual, a.mean1);
    }

    void final_norm(const int32_t* inputs) {
        norm(act_.normed, act_.final_residual, act_.meanf, act_.sigmaf, w_.lnf_gamma, w_.lnf_beta, sites.f(), inputs);
    }

    // out (N,V) = normed (N,C) head^T (C,V) + bias
    void unembed(real* out, const real* normed, int64_t N) {
        const int64_t C = config.C, V = config.V;
        matmul(Transpose::No, Transpose::Yes, N, V, C, normed, C, w_.head, C, out, V, false, w_.head_bias);
    }

    // Final norm, unembedding and cross-entropy, some rows at a time. With gradient_scale != 0 also the gradients of
    // the unembedding, and in dbranch those of ln_f's output. Returns the mean loss.
    double classify(const int32_t* inputs, const int32_t* targets, double gradient_scale) {
        const int64_t N = positions(), C = config.C, V = config.V;
        const bool with_gradient = gradient_scale != 0;
        final_norm(inputs);
        for (int64_t n = 0; n < N; n += act_.rows_per_chunk) {
            const int64_t rows = std::min(act_.rows_per_chunk, N - n);
            unembed(act_.logits, act_.normed + n * C, rows);
            softmax_cross_entropy(act_.losses + n, act_.logits, targets + n, gradient_scale, with_gradient, rows, V);
            if (!with_gradient) continue;
            const real* dlogits = act_.logits;
            matmul(Transpose::No, Transpose::No, rows, C, V, dlogits, V, w_.head, C, act_.dbranch + n * C, C, false);
            matmul(Transpose::Yes, Transpose::No, V, C, rows, dlogits, V, act_.normed + n * C, C, dw_.head, C, true);
            if (dw_.head_bias == nullptr) continue;
            sum_over_positions(dw_.head_bias, rows, V, [=](int64_t begin, int64_t end, real* partial) {
                for (int64_t r = begin; r < end; r++)
                    for (int64_t v = 0; v < V; v++) partial[v] += dlogits[r * V + v];
            });
        }
        double sum = 0;
        for (int64_t n = 0; n < N; n++) sum += static_cast<double>(act_.losses[n]);
        return sum / static_cast<double>(N);
    }
};

// =====================================================================================================================
// 4. The optimiser
// =====================================================================================================================

// Learning rate of step s (protocol.md 5): linear warm-up from 0, then a cosine that ends at min_lr.
inline double learning_rate(const Protocol& p, int64_t s) {
    if (s < p.warmup) return p.lr * static_cast<double>(s) / static_cast<double>(p.warmup);
    if (p.steps == p.warmup) return p.min_lr;
    const double progress = static_cast<double>(s - p.warmup) / static_cast<double>(p.steps - p.warmup);
    return p.min_lr + 0.5 * (p.lr - p.min_lr) * (1 + std::cos(M_PI * progress));
}

// Euclidean norm of the whole gradient. Fixed blocks in double precision: the same for any number of threads.
inline double gradient_norm(const Buffer& grads) {
    constexpr int64_t block = 1 << 14;
    const int64_t blocks = (grads.size() + block - 1) / block;
    const real* g = grads.data();
    std::vector<double> partial(static_cast<size_t>(blocks));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        double sum = 0;
        const int64_t end = std::min(grads.size(), (i + 1) * block);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = i * block; j < end; j++) sum += static_cast<double>(g[j]) * static_cast<double>(g[j]);
        partial[i] = sum;
    }
    double total = 0;
    for (double sum : partial) total += sum;
    return std::sqrt(total);
}

inline double GPT2::gradient_norm() {
    return lnfree::gradient_norm(grads);
}

// AdamW as PyTorch computes it: decoupled decay before the update, bias-corrected moments (protocol.md 5).
class AdamW {
  public:
    Buffer m, v;
    int64_t updates = 0;

    virtual ~AdamW() = default;
    // Brings m and v up to date where another engine keeps its own.
    virtual void fetch_moments() {}
    void prepare(int64_t n) {
        m.allocate(n);
        v.allocate(n);
        updates = 0;
    }
    // After a checkpoint: what another engine derives from weights and moments becomes what it was when that was written.
    virtual void resume(GPT2&, const Protocol&) {}
    // One update with gradients multiplied by `gradient_scale` (clipping).
    virtual void update(GPT2& model, const Protocol& p, double lr, double gradient_scale) {
        updates++;
        const double t = static_cast<double>(updates);
        const double correction1 = 1 - std::pow(p.beta1, t), correction2 = 1 - std::pow(p.beta2, t);
        const real b1 = static_cast<real>(p.beta1), b2 = static_cast<real>(p.beta2),
                   eps = static_cast<real>(p.adam_eps);
        const real c1 = static_cast<real>(1 - p.beta1), c2 = static_cast<real>(1 - p.beta2);
        const real step = static_cast<real>(lr / correction1), root2 = static_cast<real>(1 / std::sqrt(correction2));
        const real scale = static_cast<real>(gradient_scale);
        for (const Tensor& tensor : model.tensors) {
            real* w = model.params.data() + tensor.offset;
            const real* g = model.grads.data() + tensor.offset;
            real* mm = m.data() + tensor.offset;
            real* vv = v.data() + tensor.offset;
            const real keep = static_cast<real>(tensor.decay ? 1 - lr * p.weight_decay : 1);
#pragma omp parallel for simd schedule(static)
            for (int64_t i = 0; i < tensor.size; i++) {
                const real gradient = g[i] * scale;
                mm[i] = b1 * mm[i] + c1 * gradient;
                vv[i] = b2 * vv[i] + c2 * gradient * gradient;
                w[i] = keep * w[i] - step * mm[i] / (std::sqrt(vv[i]) * root2 + eps);
            }
        }
    }
};

// What a gradient of this norm is multiplied by.
inline double clip_scale(double norm, double clip) {
    return norm > clip ? clip / norm : 1.0;
}

// Ours: an embedding of position 0 that is far longer than the others makes that position's sigma stand out at every site.
// As long as LayerNorm divides its length away, the embedding can be shortened at little cost: over the first shrink_steps
// steps by a factor each that brings sigma in front of block 0 down to what the other positions have. AdamW could not do
// that: its steps are of one size, however long the vector.
inline void shrink_position0(GPT2& model, const Protocol& p, int64_t s) {
    if (s >= p.shrink_steps) return;
    const SigmaSum& first = model.sigma_sums[static_cast<size_t>(model.sites.L)];  // qk[0]
    const double ratio = first.mean_elsewhere() / first.mean_at_0();
    if (ratio < 1) model.edit_position0(std::pow(ratio, 1 / static_cast<double>(p.shrink_steps - s)), nullptr);
}

// The optimiser half of one training step, after its micro-batches: running sigmas, clipping, AdamW.
// Returns the gradient norm before clipping.
inline double finish_step(GPT2& model, AdamW& adam, const Protocol& p, int64_t s) {
    for (size_t i = 0; i < model.sites.all.size(); i++)
        update_running_sigma(model.sites.all[i], model.sigma_sums[i].mean(p.sigma_skips_position0), p.sigma_ema);
    shrink_position0(model, p, s);
    const double norm = model.gradient_norm();
    adam.update(model, p, learning_rate(p, s), clip_scale(norm, p.clip));
    return norm;
}

// One forward pass over step 0's micro-batches, inputs (B,T) each, before anything is trained. A site that is due at step
// 0 is frozen at that value (protocol.md 3); the precursor takes all of its sigma_bars here, position 0 apart, and never
// updates them (protocol.md 8).
inline void measure_before_training(GPT2& model, const Protocol& p, const std::vector<std::vector<int32_t>>& inputs) {
    model.clear_sigma_sums();
    for (const std::vector<int32_t>& micro_batch : inputs) model.measure_sigmas(micro_batch.data(), p.batch, p.seq);
    for (size_t i = 0; i < model.sites.all.size(); i++) {
        Site& site = model.sites.all[i];
        const SigmaSum& sum = model.sigma_sums[i];
        if (site.norm != Norm::layer_norm) continue;
        site.running = sum.mean(p.sigma_skips_position0);
        if (!p.own_position0) continue;
        site.sigma_bar_0 = sum.mean_at_0();
        site.sigma_bar = sum.mean_elsewhere();
    }
}

// What comes before the forward pass of step s: the removals that are due, and empty sums. Returns the events.
inline std::vector<Event> begin_step(GPT2& model, const Protocol& p, int64_t s,
                                     const std::vector<std::vector<int32_t>>& inputs) {
    const auto& all = model.sites.all;
    const bool due = p.removes && !p.adaptive() && std::any_of(all.begin(), all.end(), [&](const Site& site) {
                         return site.norm == Norm::layer_norm && (removal_step(p, site) == 0 || p.own_position0);
                     });
    if (s == 0 && due) measure_before_training(model, p, inputs);
    std::vector<Event> events = apply_due_events(p, model.sites, s);
    if (s == 0)
        for (Site& site : model.sites.all) site.running = NAN;  // the running value starts with step 0's training
    model.clear_sigma_sums();
    model.zero_gradients();
    return events;
}

// Rounds the operands of all products of matrices to `precision`, fp32 or bf16. bf16 is refused where it would be slower:
// without AVX512_BF16; LNFREE_BF16=slow takes it all the same, to see what rounding does to a loss.
inline void use_precision(const std::string& precision) {
    const char* wish = std::getenv("LNFREE_BF16");
    if (precision == "bf16" && !bf16_is_fast() && (wish == nullptr || std::string(wish) != "slow"))
        throw BadInput(
            "--precision bf16: this processor (or LNFREE_ISA) has no AVX512_BF16, and bf16 would be slower than fp32; "
            "leave the flag out");
    matmul_precision() = precision == "bf16" ? MatmulPrecision::bf16 : MatmulPrecision::fp32;
}

// Who does the arithmetic: this file, unless a program that includes it puts another engine in its place.
struct Engine {
    struct Report {  // a table, and whether all that it says is as it should be
        std::vector<std::string> columns;
        std::vector<std::vector<std::string>> rows;
        bool passed = true;
    };
    const char* training_precision = "fp32";  // unless --precision says otherwise
    std::unique_ptr<GPT2> (*make_model)(const GPT2Config&) = [](const GPT2Config& c) {
        return std::make_unique<GPT2>(c);
    };
    std::unique_ptr<AdamW> (*make_optimiser)() = [] { return std::make_unique<AdamW>(); };
    void (*use_precision)(const std::string&) = lnfree::use_precision;
    struct Options {
        int recompute = -1;  // what backward remakes: 0 nothing, 1 GELU, 2 norms too; -1: the least that fits
        bool stochastic_rounding = false;  // of the bf16 copies of the weights
        std::string attention = "flash";   // or plain, cudnn
        bool cuda_graphs = false;          // a micro-batch's kernels in one call
    };
    void (*use_options)(const Options&) = nullptr;  // null: the engine has no such choices

    // `check` and `bench` of another engine; they print their tables to `screen`.
    Report (*check)(FILE* screen) = nullptr;
    Report (*bench)(const GPT2Config& config, int64_t B, int64_t T, double seconds, FILE* screen) = nullptr;
    // Bytes on the device for micro-batches of B sequences of T positions.
    int64_t (*device_bytes)(const GPT2Config& config, int64_t B, int64_t T, bool training, bool in_bf16,
                            int recompute) = nullptr;
};
inline Engine& engine() {
    static Engine the_engine;
    return the_engine;
}

}  // namespace lnfree

// Tests of the operations and of the model stop reading here: they need no files and compile in a fraction of the time.
#ifndef LNFREE_METHOD_ONLY

#include <signal.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "data/csv_chart.h"
#include "data/files.h"
#include "data/json.h"
#include "data/model_card.h"
#include "data/model_config.h"
#include "data/random.h"
#include "data/safetensors.h"
#include "data/shards.h"
#include "data/story_world.h"
#include "data/svg_chart.h"
#include "data/tokenize.h"
#include "data/tokenizer.h"
#include "dev/cpu/bench.h"
#include "dev/cpu/growth.h"
#include "dev/cpu/machine.h"

namespace lnfree {

// =====================================================================================================================
// 5. The result
// =====================================================================================================================
//
// When every site is linear, the model has two exact forms (protocol.md 9). Each function lists the tensors of one form
// as recipes: a tensor is made while it is written, so that no second copy of the model is ever in memory.

using TensorRecipes = std::vector<TensorSource<real>>;

// LayerNorm with this epsilon divides by 1e6 whatever comes in, as long as the variance is far below 1e12.
constexpr double kFreezingEpsilon = 1e12;

inline TensorRecipes plain_recipes(const GPT2& model, const std::string& prefix) {
    TensorRecipes recipes;
    for (const Tensor& t : model.tensors) {
        const real* from = model.params.data() + t.offset;
        recipes.push_back(
            {prefix + t.name, t.shape, [from, n = t.size](real* out) { std::copy(from, from + n, out); }});
    }
    return recipes;
}

inline TensorSource<real>& recipe_named(TensorRecipes& recipes, const std::string& name) {
    for (TensorSource<real>& r : recipes)
        if (r.name == name) return r;
    throw RunFailure("internal error: no tensor is named " + name);
}

// gamma becomes gamma * sqrt(epsilon) / sigma_bar: stock LayerNorm divides by sqrt(epsilon).
inline void scale_gamma_for_stock_layernorm(TensorRecipes& recipes, const std::string& name, const real* gamma,
                                            int64_t C, double sigma_bar) {
    recipe_named(recipes, name).fill = [=](real* out) {
        const double factor = std::sqrt(kFreezingEpsilon) / sigma_bar;
        for (int64_t c = 0; c < C; c++) out[c] = static_cast<real>(static_cast<double>(gamma[c]) * factor);
    };
}

// Stock GPT-2 has one ln_1 for two sites. It gets sigma_qk; the v columns make up for it with s = sigma_qk / sigma_v:
// W_v becomes s W_v, and b_v becomes b_v + (1 - s) beta W_v. Exact, because both norms are linear.
inline void move_sigma_v_into_c_attn(TensorRecipes& recipes, GPT2& model, int64_t l) {
    const std::string name = "h." + std::to_string(l) + ".";
    const int64_t C = model.config.C;
    const double s = model.sites.qk(static_cast<int>(l)).sigma_bar / model.sites.v(static_cast<int>(l)).sigma_bar;
    const real* weight = model.tensor(name + "attn.c_attn.weight");
    const real* bias = model.tensor(name + "attn.c_attn.bias");
    const real* beta = model.tensor(name + "ln_1.bias");
    recipe_named(recipes, "transformer." + name + "attn.c_attn.weight").fill = [=](real* out) {
        for (int64_t i = 0; i < C; i++)
            for (int64_t j = 0; j < 3 * C; j++)
                out[i * 3 * C + j] = j < 2 * C ? weight[i * 3 * C + j]
                                               : static_cast<real>(s * static_cast<double>(weight[i * 3 * C + j]));
    };
    recipe_named(recipes, "transformer." + name + "attn.c_attn.bias").fill = [=](real* out) {
        std::copy(bias, bias + 2 * C, out);
        for (int64_t j = 2 * C; j < 3 * C; j++) {
            double beta_W = 0;
            for (int64_t i = 0; i < C; i++)
                beta_W += static_cast<double>(beta[i]) * static_cast<double>(weight[i * 3 * C + j]);
            out[j] = static_cast<real>(static_cast<double>(bias[j]) + (1 - s) * beta_W);
        }
    };
}

inline void require_exportable(const GPT2& model, const char* form) {
    for (const Site& site : model.sites.all) {
        const char* reason = site.norm == Norm::layer_norm ? "still has its LayerNorm"
                             : site.own_share > 0          ? "is still on its way to FakeLN"
                             : site.own_position0          ? "still has its own sigma at position 0"
                             : site.own_end_of_text        ? "still has its own sigma at end-of-text"
                                                           : nullptr;
        if (reason != nullptr)
            throw BadInput("site " + site_name(site) + " " + reason + ": the " + form +
                           " form is for finished models; let `remove` go to its end first");
    }
}

// Hugging Face form: a stock GPT2LMHeadModel. A model that never lost a site is simply itself.
// Throws BadInput for a model half-way, and for a folded one (its norms' parameters are gone).
inline TensorRecipes hugging_face_recipes(GPT2& model, GPT2Config& config) {
    if (model.config.form == ModelForm::folded)
        throw BadInput(
            "a folded model has no norm parameters left and cannot become the hf form; export that from the model it "
            "was folded from");
    config = model.config;
    config.form = ModelForm::hugging_face;
    TensorRecipes recipes = plain_recipes(model, "transformer.");
    if (model.sites.removed() == 0) return recipes;
    require_exportable(model, "hf");
    config.epsilon = kFreezingEpsilon;
    const int64_t C = config.C;
    for (int64_t l = 0; l < config.L; l++) {
        const std::string name = "h." + std::to_string(l) + ".";
        const int layer = static_cast<int>(l);
        scale_gamma_for_stock_layernorm(recipes, "transformer." + name + "ln_1.weight",
                                        model.tensor(name + "ln_1.weight"), C, model.sites.qk(layer).sigma_bar);
        scale_gamma_for_stock_layernorm(recipes, "transformer." + name + "ln_2.weight",
                                        model.tensor(name + "ln_2.weight"), C, model.sites.mlp(layer).sigma_bar);
        move_sigma_v_into_c_attn(recipes, model, l);
    }
    scale_gamma_for_stock_layernorm(recipes, "transformer.ln_f.weight", model.tensor("ln_f.weight"), C,
                                    model.sites.f().sigma_bar);
    return recipes;
}

// One column w of a weight matrix that reads FakeLN(x), as a column that reads x: centring, gamma and 1 / sigma_bar go in.
//     FakeLN(x) w = x w' + beta w   with   w' = (gamma w - mean(gamma w)) / sigma_bar
// `in` and `out` are strided by `stride`. Returns beta w, which belongs into the bias.
inline double fold_column(real* out, const real* in, int64_t stride, const real* gamma, const real* beta,
                          double sigma_bar, int64_t C) {
    double mean = 0, beta_w = 0;
    for (int64_t c = 0; c < C; c++) {
        mean += static_cast<double>(gamma[c]) * static_cast<double>(in[c * stride]);
        beta_w += static_cast<double>(beta[c]) * static_cast<double>(in[c * stride]);
    }
    mean /= static_cast<double>(C);
    if (out != nullptr)
        for (int64_t c = 0; c < C; c++)
            out[c * stride] = static_cast<real>(
                (static_cast<double>(gamma[c]) * static_cast<double>(in[c * stride]) - mean) / sigma_bar);
    return beta_w;
}

// Folds the norm in front of a Conv1D weight (C,M) and its bias (M); sigma_bar may differ from column to column.
inline void fold_linear(TensorRecipes& recipes, GPT2& model, const std::string& linear, const std::string& norm,
                        const std::function<double(int64_t)>& sigma_bar, int64_t M) {
    const int64_t C = model.config.C;
    const real *weight = model.tensor(linear + ".weight"), *bias = model.tensor(linear + ".bias");
    const real *gamma = model.tensor(norm + ".weight"), *beta = model.tensor(norm + ".bias");
    recipe_named(recipes, linear + ".weight").fill = [=](real* out) {
        for (int64_t j = 0; j < M; j++) fold_column(out + j, weight + j, M, gamma, beta, sigma_bar(j), C);
    };
    recipe_named(recipes, linear + ".bias").fill = [=](real* out) {
        for (int64_t j = 0; j < M; j++)
            out[j] = static_cast<real>(static_cast<double>(bias[j]) +
                                       fold_column(nullptr, weight + j, M, gamma, beta, 1, C));
    };
}

// Folded form: no norm at all. ln_f goes into an unembedding of its own, untied from wte and with a bias.
inline TensorRecipes folded_recipes(GPT2& model, GPT2Config& config) {
    require_exportable(model, "folded");
    config = model.config;
    config.form = ModelForm::folded;
    if (model.config.form == ModelForm::folded) return plain_recipes(model, "");
    const int64_t C = config.C, V = config.V;
    TensorRecipes recipes = plain_recipes(model, "");
    recipes.erase(std::remove_if(recipes.begin(), recipes.end(),
                                 [](const TensorSource<real>& r) { return r.name.find("ln_") != std::string::npos; }),
                  recipes.end());
    for (int64_t l = 0; l < config.L; l++) {
        const std::string name = "h." + std::to_string(l) + ".";
        const double qk = model.sites.qk(static_cast<int>(l)).sigma_bar,
                     v = model.sites.v(static_cast<int>(l)).sigma_bar;
        const double mlp = model.sites.mlp(static_cast<int>(l)).sigma_bar;
        fold_linear(
            recipes, model, name + "attn.c_attn", name + "ln_1", [=](int64_t j) { return j < 2 * C ? qk : v; }, 3 * C);
        fold_linear(
            recipes, model, name + "mlp.c_fc", name + "ln_2", [=](int64_t) { return mlp; }, config.n_inner);
    }
    const real *wte = model.tensor("wte.weight"), *gamma = model.tensor("ln_f.weight"),
               *beta = model.tensor("ln_f.bias");
    const double sigma_f = model.sites.f().sigma_bar;
    recipes.push_back({"lm_head.weight", {static_cast<uint64_t>(V), static_cast<uint64_t>(C)}, [=](real* out) {
                           for (int64_t i = 0; i < V; i++)
                               fold_column(out + i * C, wte + i * C, 1, gamma, beta, sigma_f, C);
                       }});
    recipes.push_back({"lm_head.bias", {static_cast<uint64_t>(V)}, [=](real* out) {
                           for (int64_t i = 0; i < V; i++)
                               out[i] =
                                   static_cast<real>(fold_column(nullptr, wte + i * C, 1, gamma, beta, sigma_f, C));
                       }});
    return recipes;
}

// The other way round: a folder in Hugging Face form whose epsilon freezes every LayerNorm becomes a model of FakeLN
// sites. A site's gamma and sigma_bar only matter as gamma / sigma_bar, so where the folder does not say (LN-free models
// that others published), sigma_bar is chosen to bring gamma to unit root mean square, where Adam trains it well.
inline void adopt_frozen_layernorms(GPT2& model, const Sites* recorded) {
    const double divisor = std::sqrt(model.config.epsilon);
    const int64_t C = model.config.C;
    const auto adopt = [&](const std::string& name, Site& site, const Site* from) {
        real* gamma = model.tensor(name);
        double squares = 0;
        for (int64_t c = 0; c < C; c++) squares += static_cast<double>(gamma[c]) * static_cast<double>(gamma[c]);
        const double rms = std::sqrt(squares / static_cast<double>(C));
        site.norm = Norm::fake_ln;
        site.sigma_bar = from != nullptr ? from->sigma_bar : rms > 0 ? divisor / rms : divisor;
        for (int64_t c = 0; c < C; c++)
            gamma[c] = static_cast<real>(static_cast<double>(gamma[c]) * site.sigma_bar / divisor);
    };
    for (int l = 0; l < model.sites.L; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        adopt(h + "ln_1.weight", model.sites.qk(l), recorded ? &recorded->all[model.sites.L + l] : nullptr);
        model.sites.v(l).norm = Norm::fake_ln;
        model.sites.v(l).sigma_bar = model.sites.qk(l).sigma_bar;  // its own one is in the v columns of c_attn
        adopt(h + "ln_2.weight", model.sites.mlp(l), recorded ? &recorded->all[l] : nullptr);
    }
    adopt("ln_f.weight", model.sites.f(), recorded ? &recorded->all.back() : nullptr);
    model.config.epsilon = 1e-5;  // what sigma statistics are measured with from here on
}

// =====================================================================================================================
// 6. The folders
// =====================================================================================================================
//
// A model folder holds config.json, the weights, lnfree.json (what was done to it) and the tokenizer's files. A
// checkpoint is such a folder under checkpoints/step_N, with the optimiser's state, from which a run goes on to the
// same bits. Keys are described in data/README.md.

constexpr int kFormatVersion = 1;

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

// Calls visit(key, field) for every field of a protocol: one list for writing and for reading.
template <class AnyProtocol, class Visit>
void visit_protocol(AnyProtocol& p, Visit visit) {
    visit("preset", p.preset);
    visit("steps", p.steps);
    visit("stop", p.stop);
    visit("batch", p.batch);
    visit("seq", p.seq);
    visit("grad_accum", p.grad_accum);
    visit("lr", p.lr);
    visit("min_lr", p.min_lr);
    visit("warmup", p.warmup);
    visit("weight_decay", p.weight_decay);
    visit("beta1", p.beta1);
    visit("beta2", p.beta2);
    visit("adam_eps", p.adam_eps);
    visit("clip", p.clip);
    visit("aux_weight", p.aux_weight);
    visit("aux_everywhere", p.aux_everywhere);
    visit("aux_relative", p.aux_relative);
    visit("sigma_ema", p.sigma_ema);
    visit("sigma_skips_position0", p.sigma_skips_position0);
    visit("gradual", p.gradual);
    visit("removes", p.removes);
    visit("start_mlp", p.start_mlp);
    visit("start_qk", p.start_qk);
    visit("start_v", p.start_v);
    visit("start_f", p.start_f);
    visit("gap_mlp", p.gap_mlp);
    visit("gap_qk", p.gap_qk);
    visit("gap_v", p.gap_v);
    visit("own_position0", p.own_position0);
    visit("release_end_of_text", p.release_end_of_text);
    visit("release_position0", p.release_position0);
    visit("release_steps", p.release_steps);
    visit("shrink_steps", p.shrink_steps);
    visit("plant_position0", p.plant_position0);
    visit("plant_step", p.plant_step);
    visit("grow_position0", p.grow_position0);
    visit("seed", p.seed);
    visit("precision", p.precision);
}

inline ordered_json protocol_json(const Protocol& p) {
    ordered_json j;
    visit_protocol(p, [&](const char* key, const auto& value) { j[key] = value; });
    return j;
}

inline Protocol protocol_from_json(const json& j) {
    Protocol p;
    visit_protocol(p, [&](const char* key, auto& value) { j.at(key).get_to(value); });
    return p;
}

inline const char* norm_name(Norm norm) {
    return norm == Norm::layer_norm ? "layernorm" : norm == Norm::fake_ln ? "fakeln" : "folded";
}

inline ordered_json number_or_null(double x) {
    return std::isfinite(x) ? ordered_json(x) : ordered_json();
}
inline double number_or_nan(const json& j, const char* key) {
    return j.contains(key) && j[key].is_number() ? j[key].get<double>() : NAN;
}

inline ordered_json sites_json(const Sites& sites) {
    ordered_json list = ordered_json::array();
    for (const Site& site : sites.all) {
        ordered_json j;
        j["site"] = site_name(site);
        j["norm"] = norm_name(site.norm);
        j["sigma_bar"] = number_or_null(site.sigma_bar);
        j["sigma_avg"] = number_or_null(site.last_sigma);
        j["running"] = number_or_null(site.running);
        if (site.own_share > 0) j["own_share"] = site.own_share;
        if (std::isfinite(site.sigma_bar_0)) {
            j["sigma_bar_0"] = site.sigma_bar_0;
            j["own_position0"] = site.own_position0;
            j["own_end_of_text"] = site.own_end_of_text;
        }
        list.push_back(j);
    }
    return list;
}

// Throws BadInput unless the list names exactly the sites of an L-layer model, in order, with usable sigma_bars.
inline Sites sites_from_json(const json& list, int L, const std::string& path) try {
    Sites sites(L);
    if (!list.is_array() || list.size() != sites.all.size())
        throw BadInput(path + ": \"sites\" must list the " + std::to_string(sites.all.size()) +
                       " sites of a model with " + std::to_string(L) + " layers");
    for (size_t i = 0; i < sites.all.size(); i++) {
        Site& site = sites.all[i];
        const json& j = list[i];
        const std::string expected = site_name(site);
        if (!j.is_object() || j.value("site", "") != expected)
            throw BadInput(path + ": entry " + std::to_string(i) + " of \"sites\" must be site " + expected);
        const std::string norm = j.value("norm", "");
        if (norm != "layernorm" && norm != "fakeln" && norm != "folded")
            throw BadInput(path + ": site " + expected + " has norm " + quoted_name(norm) +
                           "; expected layernorm, fakeln or folded");
        site.norm = norm == "layernorm" ? Norm::layer_norm : norm == "fakeln" ? Norm::fake_ln : Norm::folded;
        site.sigma_bar = number_or_nan(j, "sigma_bar");
        site.last_sigma = number_or_nan(j, "sigma_avg");
        site.running = number_or_nan(j, "running");
        site.sigma_bar_0 = number_or_nan(j, "sigma_bar_0");
        site.own_share = j.value("own_share", 0.0);
        site.own_position0 = j.value("own_position0", false);
        site.own_end_of_text = j.value("own_end_of_text", false);
        const bool needs_0 = site.own_position0 || site.own_end_of_text;
        if (site.norm == Norm::fake_ln && (!(site.sigma_bar > 0) || (needs_0 && !(site.sigma_bar_0 > 0))))
            throw BadInput(path + ": site " + expected + " is fakeln but has no positive sigma_bar");
        if (!(site.own_share >= 0 && site.own_share <= 1))
            throw BadInput(path + ": site " + expected + " has an own_share outside 0 to 1");
    }
    return sites;
} catch (const json::exception&) {
    throw BadInput(path +
                   ": \"sites\" holds a value of the wrong type; take the file from the same folder as the weights");
}

inline ordered_json events_json(const std::vector<Event>& events, const Sites& sites) {
    ordered_json list = ordered_json::array();
    for (const Event& e : events) {
        ordered_json j;
        j["step"] = e.step;
        j["site"] = site_name(sites.all[static_cast<size_t>(e.site)]);
        j["action"] = e.action;
        j["sigma_bar"] = number_or_null(e.sigma_bar);
        list.push_back(j);
    }
    return list;
}

inline std::vector<Event> events_from_json(const json& list, const Sites& sites) {
    std::vector<Event> events;
    for (const json& j : list)
        for (size_t i = 0; i < sites.all.size(); i++)
            if (j.at("site") == site_name(sites.all[i]))
                events.push_back({j.at("step").get<int64_t>(), static_cast<int>(i), j.at("action").get<std::string>(),
                                  number_or_nan(j, "sigma_bar")});
    return events;
}

// The text of a lnfree.json; `path` names it in messages. BadInput if it is malformed or of a version this program does
// not know.
inline json parse_lnfree_json(const std::string& text, const std::string& path) {
    json j = parse_json(text, path);
    if (!j.is_object() || !j.contains("version") || !j["version"].is_number_integer())
        throw BadInput(path + ": not a lnfree.json (no version)");
    if (j["version"].get<int>() != kFormatVersion)
        throw BadInput(path + ": version " + j["version"].dump() + " is not supported; this program reads version " +
                       std::to_string(kFormatVersion));
    return j;
}

// lnfree.json of a folder, or null if there is none.
inline json read_lnfree_json(const std::string& folder) {
    const std::string path = folder + "/lnfree.json";
    return fs::exists(path) ? parse_lnfree_json(read_file(path, 64 << 20), path) : json();
}

// A name without GPT2LMHeadModel's prefix.
inline std::string without_prefix(const std::string& name) {
    const std::string prefix = "transformer.";
    return name.compare(0, prefix.size(), prefix) == 0 ? name.substr(prefix.size()) : name;
}

// Old GPT-2 folders carry attention masks as tensors; they hold no information.
inline bool is_attention_mask(const std::string& name) {
    const auto ends_with = [&](const std::string& end) {
        return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
    };
    return name.compare(0, 2, "h.") == 0 && (ends_with(".attn.bias") || ends_with(".attn.masked_bias"));
}

// Matches the tensors in a folder with the table of the model that config.json describes: (table entry, view) for every
// entry. Nothing is allocated before this has passed. Throws BadInput for missing, unknown and misshapen tensors.
inline std::vector<TensorView> match_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                             bool tied_head, const std::string& folder) {
    std::map<std::string, const TensorView*> by_name;
    for (const TensorView& view : found)
        if (!by_name.emplace(without_prefix(view.name), &view).second)
            throw BadInput(folder + ": tensor " + without_prefix(view.name) +
                           " is there twice, with and without the prefix transformer.");
    std::vector<TensorView> matched;
    for (const Tensor& t : table) {
        const auto it = by_name.find(t.name);
        if (it == by_name.end())
            throw BadInput(folder + ": tensor " + t.name +
                           " is missing, but config.json describes a model that has it; take both from one model");
        if (it->second->shape != t.shape)
            throw BadInput(folder + ": tensor " + t.name + " has shape " + json(it->second->shape).dump() +
                           ", but config.json asks for " + json(t.shape).dump() + "; take both from one model");
        matched.push_back(*it->second);
        by_name.erase(it);
    }
    if (tied_head && by_name.count("lm_head.weight")) {
        const TensorView &head = *by_name["lm_head.weight"], &wte = matched[0];
        if (head.dtype != wte.dtype || head.bytes != wte.bytes || std::memcmp(head.data, wte.data, head.bytes) != 0)
            throw BadInput(folder +
                           ": lm_head.weight differs from wte.weight; models with an untied head are not supported");
        by_name.erase("lm_head.weight");
    }
    for (const auto& [name, view] : by_name)
        if (!is_attention_mask(name))
            throw BadInput(folder + ": tensor " + quoted_name(view->name) +
                           " is not part of a GPT-2 model; adapters and other architectures are not supported");
    return matched;
}

inline void require_finite(const Tensor& t, const real* values, const std::string& folder) {
    for (int64_t i = 0; i < t.size; i++)
        if (!std::isfinite(values[i]))
            throw BadInput(folder + ": tensor " + t.name + " holds a value that is not finite at element " +
                           std::to_string(i) +
                           "; fetch the weights again, or take those from before the model diverged");
}

// Copies matched tensors into a flat buffer laid out by the table.
inline void copy_tensors(Buffer& buffer, const std::vector<Tensor>& table, const std::vector<TensorView>& views,
                         const std::string& folder) {
    for (size_t i = 0; i < table.size(); i++) {
        real* to = buffer.data() + table[i].offset;
        copy_tensor(views[i], to);
        require_finite(table[i], to, folder);
    }
}

// NOLINTNEXTLINE(bugprone-exception-escape): moving a json cannot throw, its assertions only look as if it could
struct LoadedModel {
    std::unique_ptr<GPT2> model;
    std::unique_ptr<Tokenizer> tokenizer;  // null if the folder has none
    json lnfree;                           // null if the folder has none
};

inline std::unique_ptr<Tokenizer> tokenizer_of_folder(const std::string& folder) {
    for (const char* file : {"/tokenizer.json", "/vocab.json", "/encoder.json"})
        if (fs::exists(folder + file)) return load_tokenizer(folder);
    return nullptr;
}

// Reads any folder that this program writes, and any GPT2LMHeadModel folder. Throws BadInput with the reason otherwise.
inline LoadedModel load_model(const std::string& folder) {
    const char* const needed = "; --model takes a folder with config.json and model.safetensors";
    if (!fs::is_directory(folder)) throw BadInput(folder + ": no such folder" + needed);
    if (!fs::exists(folder + "/config.json")) throw BadInput(folder + ": has no config.json" + needed);
    const GPT2Config config = read_config(folder);
    const std::vector<Tensor> table = tensor_table(config);
    std::unique_ptr<SafetensorsFolder> stock;
    std::unique_ptr<SafetensorsFile> own;
    if (config.form == ModelForm::hugging_face) {
        stock = std::make_unique<SafetensorsFolder>(folder);
    } else {
        own = std::make_unique<SafetensorsFile>(folder + "/weights.safetensors");
    }
    const auto views =
        match_tensors(table, stock ? stock->tensors() : own->tensors(), config.form != ModelForm::folded, folder);

    LoadedModel loaded;
    loaded.lnfree = read_lnfree_json(folder);
    loaded.model = engine().make_model(config);
    GPT2& model = *loaded.model;
    copy_tensors(model.params, table, views, folder);
    const bool recorded = loaded.lnfree.is_object() && loaded.lnfree.contains("sites");
    const Sites sites =
        recorded ? sites_from_json(loaded.lnfree["sites"], static_cast<int>(config.L), folder + "/lnfree.json")
                 : Sites(static_cast<int>(config.L));
    if (config.epsilon_freezes_sigma()) {
        adopt_frozen_layernorms(model, recorded && sites.all_removed() ? &sites : nullptr);
    } else if (config.form == ModelForm::checkpoint) {
        if (!recorded) throw BadInput(folder + ": a checkpoint without lnfree.json cannot be read");
        model.sites = sites;
    } else if (config.form == ModelForm::hugging_face && recorded && sites.removed() > 0) {
        throw BadInput(folder +
                       ": lnfree.json lists removed LayerNorms but config.json's layer_norm_epsilon would run them; "
                       "the two files do not belong together");
    }
    loaded.tokenizer = tokenizer_of_folder(folder);
    return loaded;
}

inline DType dtype_of_real() {
    return sizeof(real) == 4 ? DType::F32 : DType::F64;
}

inline const char* torch_dtype_name(DType dtype) {
    switch (dtype) {
        case DType::F16:
            return "float16";
        case DType::BF16:
            return "bfloat16";
        case DType::F64:
            return "float64";
        default:
            return "float32";
    }
}

// Writes config.json last: a folder without it is no model to any loader.
inline void write_model_folder(const std::string& folder, const GPT2Config& config, const TensorRecipes& recipes,
                               DType dtype, const ordered_json& lnfree, const Tokenizer* tokenizer,
                               const std::string& card) {
    fs::create_directories(folder);
    const bool stock = config.form == ModelForm::hugging_face;
    if (tokenizer != nullptr) tokenizer->save(folder);
    write_safetensors<real>(folder + (stock ? "/model.safetensors" : "/weights.safetensors"), recipes, dtype,
                            {{"format", "pt"}});
    write_file_atomically(folder + "/lnfree.json", lnfree.dump(2) + "\n");
    if (!card.empty()) write_file_atomically(folder + "/README.md", card);
    if (stock && config.end_of_text >= 0) {
        ordered_json generation;
        generation["bos_token_id"] = generation["eos_token_id"] = config.end_of_text;
        write_file_atomically(folder + "/generation_config.json", generation.dump(2) + "\n");
    }
    write_file_atomically(folder + "/config.json", config_json(config, torch_dtype_name(dtype)).dump(2) + "\n");
    fsync_folder(folder);
}

// Removes what write_model_folder may have written into a folder earlier, and nothing else: the next model may have
// other files, and the old ones would be read along with its own.
inline void remove_model_files(const std::string& folder) {
    for (const char* name : {"config.json", "generation_config.json", "lnfree.json", "README.md", "model.safetensors",
                             "weights.safetensors", "tokenizer.json", "tokenizer_config.json",
                             "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json"})
        fs::remove(fs::path(folder) / name);
}

// Throws BadInput if writing to `out` could replace the model that is being read: the same folder, or one that holds it.
inline void require_other_folder(const std::string& out, const std::string& model) {
    if (model.empty() || !fs::exists(out)) return;
    if (fs::equivalent(out, model)) throw BadInput("--out " + out + " is the --model folder itself; choose another");
    const fs::path from_out = fs::canonical(model).lexically_relative(fs::canonical(out));
    if (*from_out.begin() != "..")
        throw BadInput("--out " + out + " holds the --model folder " + model + "; choose another");
}

// ---------------------------------------------------------------------------------------------------------------------
// Checkpoints

inline std::string checkpoint_name(int64_t step) {
    char name[32];
    std::snprintf(name, sizeof name, "step_%06lld", static_cast<long long>(step));
    return name;
}

// Complete checkpoints of a run, oldest first. (Unfinished ones have a name that starts with a dot.)
inline std::vector<fs::path> list_checkpoints(const std::string& out) {
    std::vector<fs::path> found;
    const fs::path folder = fs::path(out) / "checkpoints";
    if (!fs::is_directory(folder)) return found;
    for (const auto& entry : fs::directory_iterator(folder))
        if (entry.is_directory() && entry.path().filename().string().compare(0, 5, "step_") == 0)
            found.push_back(entry.path());
    std::sort(found.begin(), found.end());
    return found;
}

inline TensorRecipes moment_recipes(const GPT2& model, const Buffer& moments) {
    TensorRecipes recipes;
    for (const Tensor& t : model.tensors) {
        const real* from = moments.data() + t.offset;
        recipes.push_back({t.name, t.shape, [from, n = t.size](real* out) { std::copy(from, from + n, out); }});
    }
    return recipes;
}

inline void read_moments(Buffer& buffer, const GPT2& model, const std::string& path) {
    const SafetensorsFile file(path);
    copy_tensors(buffer, model.tensors, match_tensors(model.tensors, file.tensors(), false, path), path);
}

// Written under a temporary name, synced, then renamed whole: a checkpoint is there completely or not at all.
inline fs::path write_checkpoint(const std::string& out, GPT2& model, const AdamW& adam, const ordered_json& lnfree,
                                 int64_t step, const Tokenizer* tokenizer) {
    const fs::path parent = fs::path(out) / "checkpoints";
    fs::path final_name = parent / checkpoint_name(step);
    const fs::path temporary = parent / ("." + checkpoint_name(step) + ".tmp");
    std::error_code ignored;
    if (fs::exists(final_name)) return final_name;  // resumed here and stopped again: the same bits
    try {
        fs::remove_all(temporary);
        fs::create_directories(temporary);
        GPT2Config config = model.config;
        if (config.form != ModelForm::folded) config.form = ModelForm::checkpoint;
        write_safetensors<real>((temporary / "adam_m.safetensors").string(), moment_recipes(model, adam.m),
                                dtype_of_real());
        write_safetensors<real>((temporary / "adam_v.safetensors").string(), moment_recipes(model, adam.v),
                                dtype_of_real());
        write_model_folder(temporary.string(), config, plain_recipes(model, ""), dtype_of_real(), lnfree, tokenizer,
                           "");
        fs::rename(temporary, final_name);
        fsync_folder(parent.string());
    } catch (const fs::filesystem_error& e) {
        fs::remove_all(temporary, ignored);
        throw RunFailure("cannot write checkpoint " + final_name.string() + ": " + e.code().message());
    } catch (...) {
        fs::remove_all(temporary, ignored);
        throw;
    }
    return final_name;
}

// What a killed process left half-written in its output folder.
inline void remove_leftovers(const std::string& out) {
    std::error_code ignored;
    std::vector<fs::path> leftovers;
    for (const fs::path& folder : {fs::path(out), fs::path(out) / "checkpoints"})
        for (const auto& entry : fs::directory_iterator(folder, ignored)) {
            const std::string name = entry.path().filename().string();
            const bool of_a_file =
                entry.is_regular_file() && name.find(".tmp-") != std::string::npos;  // data/files.h, NewFile
            if (of_a_file || (entry.is_directory() && name.compare(0, 6, ".step_") == 0))
                leftovers.push_back(entry.path());
        }
    for (const fs::path& path : leftovers) fs::remove_all(path, ignored);
}

// Removes all but the last `keep`; each first loses its name, so that none is ever there by halves.
inline void prune_checkpoints(const std::string& out, size_t keep, const std::string& also = "") {
    const std::vector<fs::path> all = list_checkpoints(out);
    std::error_code ignored;
    for (size_t i = 0; i + keep < all.size(); i++) {
        if (all[i].filename() == also) continue;
        const fs::path doomed = all[i].parent_path() / ("." + all[i].filename().string() + ".old");
        fs::rename(all[i], doomed, ignored);
        fs::remove_all(doomed, ignored);
    }
}

// =====================================================================================================================
// 7. The training run
// =====================================================================================================================

// Which sequence comes when: a fresh permutation of all sequences in every epoch, made from (seed, epoch) alone, so
// that a resumed run and the control see the same data.
class SequenceOrder {
  public:
    SequenceOrder(uint64_t sequences, uint64_t seed) : order_(sequences), seed_(seed) {}

    uint64_t at(uint64_t i) {
        const uint64_t epoch = i / order_.size();
        if (!shuffled_ || epoch != epoch_) shuffle(epoch);
        return order_[i % order_.size()];
    }

  private:
    std::vector<uint64_t> order_;
    uint64_t seed_, epoch_ = 0;
    bool shuffled_ = false;

    void shuffle(uint64_t epoch) {
        shuffled_ = true;
        epoch_ = epoch;
        SplitMix64 random(seed_ * 0x9E3779B97F4A7C15ull + epoch);
        for (uint64_t i = 0; i < order_.size(); i++) order_[i] = i;
        for (uint64_t i = order_.size() - 1; i > 0; i--) std::swap(order_[i], order_[random.below(i + 1)]);
    }
};

// Mean cross-entropy over the first sequences of `shards`, at least one, at most max_tokens predictions (0: all).
// `each` receives (index of the sequence, losses, inputs, targets, predictions per sequence).
using SequenceVisitor = std::function<void(uint64_t, const real*, const int32_t*, const int32_t*, int64_t)>;
inline double mean_loss(GPT2& model, const TokenShards& shards, int64_t T, int64_t batch, uint64_t max_tokens,
                        bool paper_windows, const std::string& label, const SequenceVisitor& each = nullptr) {
    const int64_t P = paper_windows ? T - 1 : T;  // predictions per sequence
    uint64_t sequences = shards.sequences(static_cast<uint64_t>(T), paper_windows);
    if (max_tokens > 0)
        sequences = std::min<uint64_t>(sequences, std::max<uint64_t>(1, max_tokens / static_cast<uint64_t>(P)));
    std::vector<int32_t> inputs(static_cast<size_t>(batch * P)), targets(inputs.size());
    double sum = 0;
    ProgressBar progress(label, sequences);
    for (uint64_t first = 0; first < sequences; first += static_cast<uint64_t>(batch)) {
        // The last batch is filled up with its last sequence, so that every batch has one shape; the filling is not counted.
        for (int64_t b = 0; b < batch; b++)
            shards.read(std::min(first + static_cast<uint64_t>(b), sequences - 1), static_cast<uint64_t>(T),
                        inputs.data() + b * P, targets.data() + b * P, paper_windows);
        const real* losses = model.token_losses(inputs.data(), targets.data(), batch, P);
        for (int64_t b = 0; b < batch && first + static_cast<uint64_t>(b) < sequences; b++) {
            for (int64_t t = 0; t < P; t++) sum += static_cast<double>(losses[b * P + t]);
            if (each)
                each(first + static_cast<uint64_t>(b), losses + b * P, inputs.data() + b * P, targets.data() + b * P,
                     P);
        }
        progress.update(std::min(first + static_cast<uint64_t>(batch), sequences));
    }
    progress.hide();
    return sum / (static_cast<double>(sequences) * static_cast<double>(P));
}

// The tokenizer that made a shard, as its PREFIX.json describes it; null if there is none. BadInput if it is damaged.
inline json tokenizer_of_shard(const std::string& shard) {
    const auto sidecar = read_sidecar(shard);
    if (!sidecar || !sidecar->contains("tokenizer")) return json();
    const json& tokenizer = (*sidecar)["tokenizer"];
    const auto is = [&](const char* key, auto check) { return tokenizer.contains(key) && (tokenizer[key].*check)(); };
    if (!is("name", &json::is_string) || !is("fingerprint", &json::is_string) ||
        !is("vocab_size", &json::is_number_integer))
        throw BadInput(
            *sidecar_path(shard) +
            ": \"tokenizer\" lacks its name, fingerprint or vocab_size; make the shards again with `tokenize`");
    return tokenizer;
}

// Throws BadInput if any shard was made with another tokenizer than the model's. Shards and models that do not say are
// taken as they are.
inline void require_same_tokenizer(const TokenShards& shards, const Tokenizer* tokenizer, const std::string& flag) {
    if (tokenizer == nullptr) return;
    std::set<std::string> seen;
    for (const std::string& path : shards.paths()) {
        if (!seen.insert(sidecar_path(path).value_or("")).second) continue;
        const json made_by = tokenizer_of_shard(path);
        if (made_by.is_object() && made_by["fingerprint"] != tokenizer->fingerprint())
            throw BadInput(flag + " " + path + " was tokenised with another tokenizer (" +
                           quoted_name(made_by["fingerprint"].get<std::string>()) + ") than the model's (" +
                           tokenizer->fingerprint() + "); run `tokenize --tokenizer MODEL_FOLDER` on the text");
    }
}

// GPT-2's initialisation: normal(0, 0.02), projections onto the residual stream smaller by sqrt(2L), gammas 1, biases 0.
inline void initialise(GPT2& model, uint64_t seed) {
    SplitMix64 random(seed);
    const auto ends_with = [](const std::string& s, const std::string& end) {
        return s.size() >= end.size() && s.compare(s.size() - end.size(), end.size(), end) == 0;
    };
    for (const Tensor& t : model.tensors) {
        real* w = model.params.data() + t.offset;
        const bool gamma = t.name.find("ln_") != std::string::npos && ends_with(t.name, ".weight");
        const bool onto_residual = ends_with(t.name, "c_proj.weight");
        const double scale = 0.02 / (onto_residual ? std::sqrt(2.0 * static_cast<double>(model.config.L)) : 1.0);
        for (int64_t i = 0; i < t.size; i++)
            w[i] = static_cast<real>(gamma ? 1.0 : t.decay ? scale * random.normal() : 0.0);
    }
}

// An experimenter's device: makes position 0 stand out at every site as it does in large trained models and never in small
// young ones: `length` times a random centred direction of unit root mean square is added to its embedding. (In large
// models the layers make it so, which --grow-position0 brings about. This is harder: AdamW's steps are too small for it.)
inline void plant_position0(GPT2& model, double length, uint64_t seed) {
    const int64_t C = model.config.C;
    SplitMix64 random(seed);
    std::vector<double> direction(static_cast<size_t>(C));
    double mean = 0, squares = 0;
    for (double& x : direction) mean += (x = random.normal()) / static_cast<double>(C);
    for (double& x : direction) squares += (x - mean) * (x - mean) / static_cast<double>(C);
    std::vector<real> added;
    for (const double x : direction) added.push_back(static_cast<real>(length * (x - mean) / std::sqrt(squares)));
    model.edit_position0(1, added.data());
}

// What a run was asked to do, beyond its protocol.
struct RunOptions {
    std::string command;  // pretrain, remove or finetune
    std::string model, out;
    std::vector<std::string> data, val;
    int64_t eval_every = 0;   // 0: ten times in the run
    int64_t val_tokens = -1;  // -1: eight steps' worth, 16,384 to 131,072; 0: all
    int64_t save_every = 50;
    int64_t keep_checkpoints = 0;  // after a finished run
    double hours = 0;              // --steps follow from how fast this machine is; 0: no such budget
    Engine::Options engine;
    bool resume = false, force = false, dry_run = false, json_output = false;
    ProtocolFlags flags;
    std::string tokenizer;                     // pretrain: byte or a folder
    std::function<GPT2Config(int64_t)> shape;  // pretrain: the model to make, given the data's vocabulary
    std::function<void(int64_t)> on_step;      // called with the number of every step before it begins
};

// Set by Ctrl-C and SIGTERM. A second signal ends the program at once.
inline volatile sig_atomic_t g_signal = 0;

inline void stop_on_signals() {
    struct sigaction action {};
    action.sa_handler = [](int signal) { g_signal = signal; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

// Thrown when a signal has ended a run after its state was saved; main exits with 128 + signal.
struct Interrupted {
    int signal;
};

inline std::string hex(uint64_t x) {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
    return text;
}

// Appends one JSON object per line; every line is on its way to the disk before the run goes on.
class RunLog {
  public:
    // Opens the log; lines of steps from `from_step` on are cut off, which is how a resumed run continues it.
    void open(const std::string& path, int64_t from_step) {
        std::string kept;
        if (from_step > 0 && fs::exists(path)) {
            std::istringstream lines(read_file(path, int64_t(1) << 31));
            for (std::string line; std::getline(lines, line);) {
                const json j = json::parse(line, nullptr, false);
                if (j.is_object() && j.contains("step") && j["step"].is_number_integer() &&
                    j["step"].get<int64_t>() < from_step)
                    kept += line + "\n";
            }
        }
        write_file_atomically(path, kept);
        path_ = path;
        file_.reset(std::fopen(path.c_str(), "ab"));
        if (!file_) throw RunFailure(path + ": cannot be written: " + errno_text(errno));
    }
    void write(const ordered_json& j) {
        const std::string line = j.dump() + "\n";
        if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fflush(file_.get()) != 0)
            throw RunFailure(path_ + ": cannot be written: " + errno_text(errno) +
                             "; make room or write to another disk");
    }

  private:
    struct Close {
        void operator()(FILE* f) const { std::fclose(f); }
    };
    std::string path_;
    std::unique_ptr<FILE, Close> file_;
};

// ---------------------------------------------------------------------------------------------------------------------
// A schedule that adapts (ours, and what preset auto is)
//
// Starts and gaps that suit one model do not suit the next, so this has none. A position 0 that stands out is brought down
// first, while LayerNorm still divides its length away. Then, in front of a removal, it asks the model: a forward pass over a
// few held-out sequences says what each remaining site would cost right now. The cheapest go, as many at once as cost no more
// than kAllowance together; then the run waits until the held-out loss is back. Where the training loss jumps, the state from
// before the removal comes back, the learning rate is halved, the allowance too, and divisors take longer on their way to
// sigma_bar. Whatever is left at kDeadline of the run goes then, slowly. All of it follows from losses, which are the same
// bits for any number of threads, so that a run can be repeated and resumed.

constexpr int64_t kHeldOutSequences = 16;
constexpr double kAllowance = 0.25;  // nats that a removal may cost at first
constexpr double kBack = 0.01;       // nats above the held-out loss before it, within which a removal has been got over
constexpr double kJump = 0.3;   // a spike: so many nats, twice the expected cost and four times the batches' own spread
                                // above the training loss's trend
constexpr double kRate = 0.05;  // nats per step: what costs more than allowed takes accordingly many steps
constexpr double kDeadline = 0.6;    // of the run's steps
constexpr double kOutlierRatio = 2;  // of sigma at position 0 to sigma elsewhere, from which on it stands out
constexpr double kEvenUntil = 0.25;  // of the run's steps: until then removals wait for a position 0 that stands out
constexpr double kFlat = 0.002;      // nats that the held-out loss must gain in a fifth of the run, or it ends
constexpr int64_t kMostRollBacks = 10;

// What the decisions rest on, beyond the protocol and the sites. Part of a checkpoint.
struct AdaptiveState {
    double before = NAN;  // held-out loss in front of the last removal
    double expected = 0;  // what that removal was to cost
    double mean = NAN;    // running mean of the training loss,
    double trend = NAN;   // the lowest that it has been,
    double variance = 0;  // and the running mean of its squared distance from that mean
    double allowance = kAllowance;
    int64_t gentle = 0;        // least number of steps that divisors take
    int64_t uneven_from = -1;  // since when removals wait for position 0; -1: they do not
    int64_t chosen_at = -1, roll_backs = 0;
    double level = NAN;  // after the last removal: the lowest held-out loss, and when it was there
    int64_t level_at = 0;
    std::string snapshot;  // name of the checkpoint to go back to

    template <class Any, class Visit>
    static void visit(Any& a, Visit see) {
        see("before", a.before);
        see("expected", a.expected);
        see("mean", a.mean);
        see("trend", a.trend);
        see("variance", a.variance);
        see("allowance", a.allowance);
        see("gentle", a.gentle);
        see("uneven_from", a.uneven_from);
        see("chosen_at", a.chosen_at);
        see("roll_backs", a.roll_backs);
        see("level", a.level);
        see("level_at", a.level_at);
        see("snapshot", a.snapshot);
    }

    // Takes in the loss of a training step; true if it is a spike.
    bool note(double loss) {
        if (loss > trend + kJump + 2 * expected + 4 * std::sqrt(variance)) return true;
        if (!std::isnan(mean)) variance = 0.9 * variance + 0.1 * (loss - mean) * (loss - mean);
        mean = std::isnan(mean) ? loss : 0.9 * mean + 0.1 * loss;
        trend = std::isnan(trend) ? mean : std::min(trend, mean);
        return false;
    }
};

class TrainingRun {
  public:
    explicit TrainingRun(RunOptions options) : o_(std::move(options)), screen_(o_.json_output ? stderr : stdout) {}

    // Carries the run out and returns its summary. Throws BadInput before anything is written, RunFailure when the run
    // itself fails, Interrupted after a signal.
    ordered_json execute() {
        if (o_.resume) {
            load_resume_point();
        } else {
            load_start();
        }
        check_data();
        configure_engine();
        if (o_.dry_run) return dry_run();
        model_->prepare_training(p_.batch, p_.seq);
        stop_on_signals();
        if (o_.resume) {
            adam_->resume(*model_, p_);
            remove_leftovers(o_.out);
        } else {
            adam_->prepare(model_->parameters());
            claim_output_folder();
        }
        try {
            log_.open(o_.out + "/log.jsonl", step_);
            train();
            return finish();
        } catch (const RunFailure& e) {
            const auto kept = list_checkpoints(o_.out);
            throw RunFailure(e.what() + (kept.empty() ? "; no checkpoint was written yet"
                                                      : "; the last good checkpoint, from which --resume goes on, is " +
                                                            kept.back().string()));
        }
    }

  private:
    RunOptions o_;
    FILE* screen_;
    Protocol p_;
    std::unique_ptr<GPT2> model_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::unique_ptr<TokenShards> train_, val_;
    std::unique_ptr<SequenceOrder> order_;
    std::unique_ptr<AdamW> adam_ = engine().make_optimiser();
    RunLog log_;
    std::vector<Event> events_;
    ordered_json based_on_;  // lnfree.json of the model that the run started from
    AdaptiveState adaptive_;
    int64_t step_ = 0;
    double first_val_ = NAN, last_val_ = NAN;
    double started_ = 0;  // clock at the first step of this process
    int64_t first_step_ = 0;
    std::vector<std::vector<int32_t>> inputs_, targets_;  // the step's micro-batches, (B,T) each

    // ----- before the first step

    void configure_engine() {
        engine().use_precision(p_.precision);
        if (const auto use_options = engine().use_options; use_options != nullptr) use_options(o_.engine);
    }

    void open_shards() {
        train_ = std::make_unique<TokenShards>(o_.data);
        val_ = std::make_unique<TokenShards>(o_.val);
    }

    void load_start() {
        open_shards();
        if (o_.command == "pretrain") {
            make_new_model();
        } else {
            LoadedModel loaded = load_model(o_.model);
            model_ = std::move(loaded.model);
            tokenizer_ = std::move(loaded.tokenizer);
            if (loaded.lnfree.is_object()) based_on_ = ordered_json::parse(loaded.lnfree.dump());
            if (o_.command == "remove" && model_->sites.all_removed())
                throw BadInput(o_.model + ": this model has no LayerNorm left; use finetune to train it further");
            if (o_.command == "finetune" && model_->sites.removed() > 0 && !model_->sites.all_linear_everywhere())
                throw BadInput(o_.model +
                               ": the removal of its LayerNorms is not finished, and finetune would leave it so; let "
                               "`remove` go to its end first");
        }
        if (o_.flags.precision.empty()) o_.flags.precision = engine().training_precision;
        resolve();
        if (o_.hours > 0) {
            if (o_.flags.steps || o_.flags.tokens)
                throw BadInput("--hours, --steps and --tokens all set the length of the run; give one");
            o_.flags.steps = steps_within(3600 * o_.hours);
            resolve();
        }
        if (o_.command == "pretrain") set_pretraining_defaults();
        if (o_.eval_every == 0) o_.eval_every = std::max<int64_t>(1, p_.stop / 10);
        if (o_.val_tokens < 0)
            o_.val_tokens = std::min<int64_t>(131'072, std::max<int64_t>(16'384, 8 * p_.tokens_per_step()));
    }

    void resolve() {
        p_ = resolve_protocol(o_.flags, o_.command == "remove", static_cast<int>(model_->config.L),
                              model_->config.n_ctx, model_->parameters());
    }

    // Steps that this machine does in that time, about: measured on the second of two micro-batches (the first also touches
    // its memory for the first time), of which a tenth more for all that is not forward and backward.
    int64_t steps_within(double seconds) {
        configure_engine();
        model_->prepare_training(p_.batch, p_.seq);
        const std::vector<int32_t> tokens(static_cast<size_t>(p_.batch * p_.seq), 0);
        double begin = 0;
        for (int i = 0; i < 2; i++) {
            begin = seconds_now();
            model_->forward_backward(tokens.data(), tokens.data(), p_.batch, p_.seq, p_.aux(), p_.grad_accum);
        }
        const double per_step = 1.1 * (seconds_now() - begin) * static_cast<double>(p_.grad_accum);
        return std::max<int64_t>(1, static_cast<int64_t>(std::min(seconds / per_step, 1e9)));
    }

    // From scratch the optimiser is the one customary for pretraining GPT-2: beta2 0.95, weight decay 0.1, floor lr / 10,
    // and twice auto's warm-up, because a model without any structure yet is the easiest to throw off.
    void set_pretraining_defaults() {
        const double lr = model_->parameters() < 10'000'000 ? 1e-3 : 6e-4;
        p_.preset = "pretrain";
        p_.warmup = o_.flags.warmup.value_or(p_.steps / 10);
        p_.lr = o_.flags.lr.value_or(lr);
        p_.min_lr = o_.flags.min_lr.value_or(p_.lr / 10);
        p_.beta2 = 0.95;
        p_.weight_decay = o_.flags.weight_decay.value_or(0.1);
        p_.plant_step = o_.flags.plant_step.value_or(std::max<int64_t>(1, p_.steps - 300));
        check_protocol(p_, static_cast<int>(model_->config.L));
    }

    void make_new_model() {
        const json made_by = tokenizer_of_shard(train_->paths()[0]);
        std::string source = o_.tokenizer;
        if (source.empty() && made_by.is_object() && made_by["name"] == "byte") source = "byte";
        if (!source.empty()) tokenizer_ = load_tokenizer(source);
        const int64_t V = tokenizer_            ? tokenizer_->vocab_size()
                          : made_by.is_object() ? made_by["vocab_size"].get<int64_t>()
                                                : 0;
        GPT2Config config = o_.shape(V);
        if (config.V < V)
            throw BadInput("--vocab-size " + std::to_string(config.V) + ": the tokenizer has " + std::to_string(V) +
                           " tokens; give at least that, or leave the flag out");
        if (tokenizer_) config.end_of_text = tokenizer_->end_of_text();
        parse_config(config_json(config, "float32").dump(), "the new model");  // refuses what could not be read again
        model_ = engine().make_model(config);
        initialise(*model_, o_.flags.seed);
    }

    // Token ids within the vocabulary, the tokenizer that made the shards the model's own, enough of both splits.
    void check_data() {
        const GPT2Config& c = model_->config;
        for (const TokenShards* shards : {train_.get(), val_.get()}) {
            const std::string which = shards == train_.get() ? "--data" : "--val";
            shards->check_vocabulary(static_cast<uint32_t>(c.V));
            if (shards->sequences(static_cast<uint64_t>(p_.seq)) == 0)
                throw BadInput(which + " " + shards->paths()[0] + ": fewer than seq + 1 = " +
                               std::to_string(p_.seq + 1) + " tokens; use more text or a smaller --seq");
            require_same_tokenizer(*shards, tokenizer_.get(), which);
        }
        order_ = std::make_unique<SequenceOrder>(train_->sequences(static_cast<uint64_t>(p_.seq)), p_.seed);
    }

    // Refuses a folder that holds anything, unless --force; then only files of an earlier run are replaced.
    void claim_output_folder() {
        const bool exists = fs::exists(o_.out);
        if (exists && !fs::is_directory(o_.out)) throw BadInput("--out " + o_.out + ": is a file; name a folder");
        require_other_folder(o_.out, o_.model);
        if (exists && !fs::is_empty(o_.out) && !o_.force)
            throw BadInput("--out " + o_.out +
                           ": already holds files; continue that run with --resume, replace it with --force, or name "
                           "another folder");
        try {
            fs::create_directories(o_.out);
            remove_leftovers(o_.out);
            prune_checkpoints(o_.out, 0);
            remove_model_files(o_.out);
            for (const char* name : {"log.jsonl", "loss.svg", "checkpoints"}) fs::remove_all(fs::path(o_.out) / name);
        } catch (const fs::filesystem_error& e) {
            throw RunFailure("--out " + o_.out + ": " + e.code().message());
        }
    }

    // ----- resuming

    // What a resumed run needs beyond lnfree.json's other keys.
    ordered_json resume_json() const {
        ordered_json j;
        j["step"] = step_;
        j["model"] = o_.model.empty() ? "" : fs::absolute(o_.model).string();
        j["data"] = absolute_patterns(o_.data);
        j["val"] = absolute_patterns(o_.val);
        j["eval_every"] = o_.eval_every;
        j["val_tokens"] = o_.val_tokens;
        j["save_every"] = o_.save_every;
        j["keep_checkpoints"] = o_.keep_checkpoints;
        j["adam_updates"] = adam_->updates;
        j["first_val_loss"] = number_or_null(first_val_);
        j["stochastic_rounding"] = o_.engine.stochastic_rounding;
        j["attention"] = o_.engine.attention;
        j["data_fingerprint"] = hex(train_->fingerprint());
        if (p_.adaptive())
            AdaptiveState::visit(adaptive_, [&](const char* key, const auto& value) { j["adaptive"][key] = value; });
        return j;
    }

    static std::vector<std::string> absolute_patterns(const std::vector<std::string>& patterns) {
        std::vector<std::string> absolute;
        for (const std::string& p : patterns)
            absolute.push_back(p.compare(0, 4, "raw:") == 0 ? "raw:" + fs::absolute(p.substr(4)).string()
                                                            : fs::absolute(p).string());
        return absolute;
    }

    void load_resume_point() {
        const auto checkpoints = list_checkpoints(o_.out);
        if (checkpoints.empty()) {
            const json done = read_lnfree_json(o_.out);
            if (done.is_object() && done.contains("finished") && done["finished"] == true)
                throw BadInput(
                    "--out " + o_.out +
                    ": that run is finished, nothing is left to resume; train the model further with --model " +
                    o_.out);
            throw BadInput("--out " + o_.out + ": holds no checkpoint to resume from; start the run without --resume");
        }
        const std::string folder = checkpoints.back().string();
        LoadedModel loaded = load_model(folder);
        try {
            const json& r = loaded.lnfree.at("resume");
            if (loaded.lnfree.at("command") != o_.command)
                throw BadInput("--out " + o_.out + " is a run of " +
                               quoted_name(loaded.lnfree.at("command").get<std::string>()) +
                               "; resume it with that command");
            p_ = protocol_from_json(loaded.lnfree.at("protocol"));
            r.at("step").get_to(step_);
            r.at("model").get_to(o_.model);
            r.at("data").get_to(o_.data);
            r.at("val").get_to(o_.val);
            if (o_.eval_every == 0) r.at("eval_every").get_to(o_.eval_every);
            if (o_.save_every < 0) r.at("save_every").get_to(o_.save_every);
            r.at("val_tokens").get_to(o_.val_tokens);
            if (o_.keep_checkpoints < 0) r.at("keep_checkpoints").get_to(o_.keep_checkpoints);
            first_val_ = number_or_nan(r, "first_val_loss");
            r.at("stochastic_rounding").get_to(o_.engine.stochastic_rounding);
            r.at("attention").get_to(o_.engine.attention);
            if (loaded.lnfree.at("based_on").is_object())
                based_on_ = ordered_json::parse(loaded.lnfree["based_on"].dump());
            if (p_.adaptive())
                AdaptiveState::visit(adaptive_, [&](const char* key, auto& value) {
                    if constexpr (std::is_same_v<decltype(value), double&>)
                        value = number_or_nan(r.at("adaptive"), key);
                    else
                        r.at("adaptive").at(key).get_to(value);
                });
            take_state(folder, loaded);
            require_usable_record(folder);
            open_shards();
            if (r.at("data_fingerprint") != hex(train_->fingerprint()))
                throw BadInput("--data of the run in " + o_.out +
                               " has changed since its checkpoint; a resumed run needs the same shards");
        } catch (const json::exception& e) {
            throw BadInput(folder + "/lnfree.json: cannot be resumed from: " + e.what());
        }
    }

    // Model, optimiser and events of a checkpoint become this run's. Throws json::exception if it lacks something.
    void take_state(const std::string& folder, LoadedModel& loaded) {
        events_ = events_from_json(loaded.lnfree.at("events"), loaded.model->sites);
        model_ = std::move(loaded.model);
        tokenizer_ = std::move(loaded.tokenizer);
        if (model_->config.form == ModelForm::checkpoint) model_->config.form = ModelForm::hugging_face;
        adam_ = engine().make_optimiser();
        adam_->prepare(model_->parameters());
        loaded.lnfree.at("resume").at("adam_updates").get_to(adam_->updates);
        read_moments(adam_->m, *model_, folder + "/adam_m.safetensors");
        read_moments(adam_->v, *model_, folder + "/adam_v.safetensors");
    }

    // A checkpoint's lnfree.json is a file like any other: nothing in it may lead the loop astray.
    void require_usable_record(const std::string& folder) const {
        check_protocol(p_, static_cast<int>(model_->config.L));
        const bool sizes = p_.batch >= 1 && p_.grad_accum >= 1 && p_.seq >= 1 && p_.seq <= model_->config.n_ctx;
        const bool place = step_ >= 0 && step_ <= p_.stop && adam_->updates >= 0;
        if (!sizes || !place || o_.eval_every < 1)
            throw BadInput(folder +
                           "/lnfree.json: cannot be resumed from: its step, sizes or eval_every are out of range");
    }

    // ----- the loop

    void train() {
        started_ = seconds_now();
        first_step_ = step_;
        for (; step_ < p_.stop; step_++) {
            if (step_ % o_.eval_every == 0) validate();
            training_step();
        }
        validate();
        if (p_.adaptive() && !model_->sites.all_linear_everywhere()) stop_unfinished();
    }

    void read_step_batches() {
        inputs_.resize(static_cast<size_t>(p_.grad_accum));
        targets_.resize(inputs_.size());
        uint64_t next = static_cast<uint64_t>(step_ * p_.grad_accum * p_.batch);
        for (size_t a = 0; a < inputs_.size(); a++) {
            inputs_[a].resize(static_cast<size_t>(p_.batch * p_.seq));
            targets_[a].resize(inputs_[a].size());
            for (int64_t b = 0; b < p_.batch; b++)
                train_->read(order_->at(next++), static_cast<uint64_t>(p_.seq), inputs_[a].data() + b * p_.seq,
                             targets_[a].data() + b * p_.seq);
        }
    }

    void training_step() {
        const double begin = seconds_now();
        if (o_.on_step) o_.on_step(step_);
        read_step_batches();
        if (p_.adaptive()) adapt();
        const Sites sites_before = model_->sites;
        const std::vector<Event> events_before = events_;
        const std::vector<Event> events = begin_step(*model_, p_, step_, inputs_);
        events_.insert(events_.end(), events.begin(), events.end());
        BatchLoss mean;
        for (size_t a = 0; a < inputs_.size(); a++) {
            const BatchLoss l = model_->forward_backward(inputs_[a].data(), targets_[a].data(), p_.batch, p_.seq,
                                                         p_.aux(), p_.grad_accum);
            mean.loss += l.loss / static_cast<double>(p_.grad_accum);
            mean.aux += l.aux / static_cast<double>(p_.grad_accum);
            if (!std::isfinite(mean.loss + mean.aux)) return diverged("loss");
            if (g_signal != 0) {
                model_->sites = sites_before;  // the step has not happened
                events_ = events_before;
                stop_for_signal();
            }
        }
        if (p_.adaptive() && adaptive_.note(mean.loss))
            return roll_back("the loss jumped from " + format_fixed(adaptive_.trend, 4) + " to " +
                             format_fixed(mean.loss, 4));
        if (checkpoint_is_due()) save_checkpoint_before_step(sites_before, events_before);
        const double norm = finish_step(*model_, *adam_, p_, step_);
        if (p_.plant_position0 > 0 && step_ + 1 == p_.plant_step) plant_position0(*model_, p_.plant_position0, p_.seed);
        if (!std::isfinite(norm)) return diverged("gradient");
        report_step(mean, norm, events, static_cast<double>(p_.tokens_per_step()) / (seconds_now() - begin));
        if (step_ == 0 && o_.command != "pretrain") warn_if_untrained(mean.loss);
    }

    // ----- the schedule that adapts

    // Before a step: what stands out at the start, the next removal, or the end.
    void adapt() {
        if (adaptive_.chosen_at == step_) return;  // resumed in the middle of this step
        if (step_ == 0) look_for_outliers();
        if (adaptive_.snapshot.empty()) take_snapshot();
        const auto& all = model_->sites.all;
        const bool under_way = std::any_of(all.begin(), all.end(), [](const Site& s) { return s.own_share > 0; });
        if (under_way || step_ < std::max(std::max<int64_t>(1, p_.warmup), p_.shrink_steps)) return;
        if (adaptive_.uneven_from >= 0 && still_uneven()) return;
        if (model_->sites.all_removed()) return end_when_flat();
        const double now = held_out_loss();
        const int64_t patience = std::max<int64_t>(5, p_.stop / 15);
        if (std::isnan(adaptive_.before) || now <= adaptive_.before + kBack || step_ - adaptive_.chosen_at >= patience)
            choose(now);
    }

    double held_out_loss() {
        return mean_loss(*model_, *val_, p_.seq, std::min(p_.batch, kHeldOutSequences),
                         static_cast<uint64_t>(kHeldOutSequences * p_.seq), false, "");
    }

    // What the held-out loss would be without these sites' LayerNorms, right now.
    double held_out_loss_without(const std::vector<size_t>& group) {
        const Sites sites = model_->sites;
        for (const size_t i : group) {
            model_->sites.all[i].norm = Norm::fake_ln;
            model_->sites.all[i].sigma_bar = sites.all[i].running;
        }
        const double loss = held_out_loss();
        model_->sites = sites;
        return loss;
    }

    // sigma at position 0 over sigma elsewhere on this step's batch, at the site where that is largest.
    double largest_sigma_ratio() {
        model_->clear_sigma_sums();
        model_->measure_sigmas(inputs_[0].data(), p_.batch, p_.seq);
        double largest = 0;
        for (const SigmaSum& sum : model_->sigma_sums)
            largest = std::max(largest, sum.mean_at_0() / sum.mean_elsewhere());
        return largest;
    }

    // A position 0 that stands out is left out of every sigma_bar and brought down first, while LayerNorm still divides its
    // length away: its embedding directly (also where it is little longer than the others: it is what the layers start from),
    // what they make of it by the relative auxiliary loss at every norm.
    void look_for_outliers() {
        const double largest = largest_sigma_ratio();
        if (largest <= kOutlierRatio) return;
        p_.sigma_skips_position0 = p_.aux_everywhere = p_.aux_relative = true;
        p_.shrink_steps = step_ + std::max<int64_t>(1, p_.stop / 10);
        adaptive_.uneven_from = step_;
        decide("position 0 stands out", {{"sigma_ratio", largest}, {"shrink_until", p_.shrink_steps}});
    }

    // Whether removals wait for position 0: until it no longer stands out, or for as long as there is time.
    bool still_uneven() {
        const double largest = largest_sigma_ratio();
        const bool even = largest <= kOutlierRatio;
        if (!even && static_cast<double>(step_) < kEvenUntil * static_cast<double>(p_.stop)) return true;
        decide(even ? "position 0 no longer stands out" : "position 0 still stands out, but the steps are needed",
               {{"sigma_ratio", largest}, {"since", adaptive_.uneven_from}});
        return false;
    }

    void take_snapshot() {
        adaptive_.snapshot = checkpoint_name(step_);
        save_checkpoint();
    }

    void choose(double now) {
        take_snapshot();  // of what is not decided yet: a run resumed from it decides again, and says so again
        adaptive_.uneven_from = -1;
        std::vector<std::pair<double, size_t>> costs;
        for (size_t i = 0; i < model_->sites.all.size(); i++)
            if (model_->sites.all[i].norm == Norm::layer_norm) costs.emplace_back(held_out_loss_without({i}) - now, i);
        std::sort(costs.begin(), costs.end());
        std::vector<size_t> group = {costs[0].second};
        double cost = costs[0].first;
        const bool last_chance = static_cast<double>(step_) >= kDeadline * static_cast<double>(p_.stop);
        for (size_t k = 1; k < costs.size(); k++) {
            std::vector<size_t> more = group;
            more.push_back(costs[k].second);
            const double together = held_out_loss_without(more) - now;
            if (together > adaptive_.allowance && !last_chance) break;
            group = more;
            cost = together;
        }
        const int64_t slowly =
            cost > adaptive_.allowance ? static_cast<int64_t>(std::ceil(std::min(cost, 100.0) / kRate)) : 0;
        p_.gradual = std::min(std::max(slowly, adaptive_.gentle), std::max<int64_t>(1, p_.stop / 5));
        adaptive_.before = now;
        adaptive_.expected = std::min(std::max(0.0, cost), 2.0);
        adaptive_.chosen_at = step_;
        ordered_json names = ordered_json::array();
        for (const size_t i : group) {
            begin_removal(p_, model_->sites.all[i]);
            names.push_back(site_name(model_->sites.all[i]));
        }
        decide("remove", {{"sites", names}, {"held_out", now}, {"cost", cost}, {"gradual", p_.gradual}});
    }

    // Back to the state before the last removal, with half the learning rate; from here on removals are gentler.
    void roll_back(const std::string& reason) {
        const std::string folder = (fs::path(o_.out) / "checkpoints" / adaptive_.snapshot).string();
        if (++adaptive_.roll_backs > kMostRollBacks)
            throw RunFailure("step " + std::to_string(step_) + ": " + reason + ", for the " +
                             std::to_string(adaptive_.roll_backs) + "th time; " +
                             std::to_string(model_->sites.removed()) + " of " +
                             std::to_string(model_->sites.all.size()) + " sites were removed by then");
        const int removed = model_->sites.removed();
        LoadedModel loaded = load_model(folder);
        take_state(folder, loaded);
        model_->prepare_training(p_.batch, p_.seq);
        adam_->resume(*model_, p_);
        p_.lr /= 2;
        p_.min_lr /= 2;
        if (model_->sites.removed() < removed) {  // else no removal is to blame
            adaptive_.allowance /= 2;
            adaptive_.gentle = std::max<int64_t>(4, 2 * adaptive_.gentle);
        }
        adaptive_.before = NAN;
        adaptive_.expected = 0;
        adaptive_.mean = adaptive_.trend;
        const bool none_removed = model_->sites.removed() == 0;
        decide("roll back",
               {{"because", reason}, {"to", adaptive_.snapshot}, {"lr", p_.lr}, {"gentle", adaptive_.gentle}});
        if (none_removed) look_for_outliers();  // what had been done about them is undone as well
    }

    void diverged(const std::string& what) {
        if (!p_.adaptive()) stop_for_divergence(what);
        roll_back("the " + what + " is not finite");
    }

    // All sites are gone: the run ends before its steps are used up if nothing is gained any more. Looked at 20 times a run.
    void end_when_flat() {
        if (step_ % std::max<int64_t>(1, p_.stop / 20) != 0) return;
        const double now = held_out_loss();
        if (!(now > adaptive_.level - kFlat)) {
            adaptive_.level = now;
            adaptive_.level_at = step_;
        } else if (step_ - adaptive_.level_at >= std::max<int64_t>(1, p_.stop / 5)) {
            p_.stop = step_ + 1;
            decide("end", {{"held_out", now}});
        }
    }

    [[noreturn]] void stop_unfinished() {
        save_checkpoint();
        std::string left;
        for (const Site& site : model_->sites.all)
            if (site.norm == Norm::layer_norm || site.own_share > 0) left += " " + site_name(site);
        throw RunFailure("the run's " + std::to_string(p_.stop) + " steps are used up, after " +
                         std::to_string(adaptive_.roll_backs) +
                         " times back, and these sites still have their sigma:" + left + "; give more --steps");
    }

    void decide(const std::string& what, const ordered_json& why) {
        ordered_json line{{"step", step_}, {"decision", what}};
        line.update(why);
        log_.write(line);
        std::fprintf(screen_, "step %lld  %s  %s\n", static_cast<long long>(step_), what.c_str(), why.dump().c_str());
        std::fflush(screen_);
    }

    void report_step(const BatchLoss& mean, double norm, const std::vector<Event>& events, double tokens_per_s) {
        ordered_json line;
        line["step"] = step_;
        line["loss"] = mean.loss;
        line["aux_loss"] = mean.aux;
        line["grad_norm"] = norm;
        line["lr"] = learning_rate(p_, step_);
        line["tokens_per_s"] = tokens_per_s;
        line["removed"] = ordered_json::array();
        std::string happened;
        for (const Event& e : events) {
            const std::string name = site_name(model_->sites.all[static_cast<size_t>(e.site)]);
            if (e.action == "removed")
                line["removed"].push_back(name);
            else
                line["released"].push_back(name);
            if (happened.size() < 60) happened += " " + name;
        }
        if (events.size() > 1 && happened.size() >= 60) happened = " " + std::to_string(events.size()) + " sites";
        if (!happened.empty()) happened = "  " + events[0].action + happened;
        log_.write(line);
        const double per_step = (seconds_now() - started_) / static_cast<double>(step_ - first_step_ + 1);
        std::fprintf(screen_, "step %*lld/%lld  loss %.4f  aux %.5f  grad %7.3f  lr %.2e  %s tok/s  ETA %s%s\n",
                     static_cast<int>(std::to_string(p_.stop).size()), static_cast<long long>(step_),
                     static_cast<long long>(p_.stop), mean.loss, mean.aux, norm, learning_rate(p_, step_),
                     format_rate(tokens_per_s).c_str(),
                     format_duration(per_step * static_cast<double>(p_.stop - step_ - 1)).c_str(), happened.c_str());
        std::fflush(screen_);
    }

    void warn_if_untrained(double loss) const {
        const double uniform = std::log(static_cast<double>(model_->config.V));
        if (loss > uniform - 0.5)
            std::fprintf(stderr,
                         "warning: the starting loss %.3f is close to ln V = %.3f, that of guessing: was this text "
                         "tokenised with this model's tokenizer?\n",
                         loss, uniform);
    }

    void validate() {
        const auto notice_signal = [](uint64_t, const real*, const int32_t*, const int32_t*, int64_t) {
            if (g_signal != 0) throw Interrupted{g_signal};
        };
        try {
            last_val_ = mean_loss(*model_, *val_, p_.seq, p_.batch, static_cast<uint64_t>(o_.val_tokens), false,
                                  "validation", notice_signal);
        } catch (const Interrupted&) {
            stop_for_signal();
        }
        if (!std::isfinite(last_val_)) stop_for_divergence("validation loss");
        if (step_ == 0) first_val_ = last_val_;
        ordered_json line;
        line["step"] = step_;
        line["val_loss"] = last_val_;
        log_.write(line);
        std::fprintf(screen_, "step %lld  validation loss %.4f\n", static_cast<long long>(step_), last_val_);
        std::fflush(screen_);
    }

    bool checkpoint_is_due() const { return o_.save_every > 0 && step_ > first_step_ && step_ % o_.save_every == 0; }

    // Saves the state before the step in progress once its loss and gradient have turned out finite: a checkpoint of
    // weights that are about to diverge would push the good ones out.
    void save_checkpoint_before_step(const Sites& sites_before, const std::vector<Event>& events_before) {
        if (!std::isfinite(model_->gradient_norm())) stop_for_divergence("gradient");
        const Sites sites = std::exchange(model_->sites, sites_before);
        const std::vector<Event> events = std::exchange(events_, events_before);
        save_checkpoint();
        model_->sites = sites;
        events_ = events;
    }

    void save_checkpoint() {
        model_->fetch_parameters();
        adam_->fetch_moments();
        ordered_json record = lnfree_json(ModelForm::checkpoint, false);
        record["resume"] = resume_json();
        write_checkpoint(o_.out, *model_, *adam_, record, step_, tokenizer_.get());
        prune_checkpoints(o_.out, 2, adaptive_.snapshot);
    }

    [[noreturn]] void stop_for_signal() {
        std::fprintf(screen_, "\nstopping: saving the state before step %lld ...\n", static_cast<long long>(step_));
        save_checkpoint();
        std::fprintf(stderr, "saved; continue with: train_gpt2_lnfree %s --resume --out %s\n", o_.command.c_str(),
                     o_.out.c_str());
        throw Interrupted{g_signal};
    }

    [[noreturn]] void stop_for_divergence(const std::string& what) const {
        std::string after = "before any removal";
        if (!events_.empty()) {
            const Event& e = events_.back();
            after = std::to_string(step_ - e.step) + (step_ - e.step == 1 ? " step after " : " steps after ") +
                    site_name(model_->sites.all[static_cast<size_t>(e.site)]) + " was " +
                    (e.action == "removed" ? "removed" : "released");
        }
        throw RunFailure("step " + std::to_string(step_) + ": the " + what + " is not finite, " + after +
                         "; try a lower --lr or larger gaps");
    }

    // ----- records

    static ordered_json shards_json(const TokenShards& shards) {
        ordered_json j;
        for (const std::string& path : shards.paths()) j["files"].push_back(fs::path(path).filename().string());
        j["tokens"] = shards.tokens();
        j["fingerprint"] = hex(shards.fingerprint());
        return j;
    }

    ordered_json lnfree_json(ModelForm form, bool finished) const {
        ordered_json j;
        j["version"] = kFormatVersion;
        j["form"] = form == ModelForm::checkpoint ? "checkpoint" : form == ModelForm::folded ? "folded" : "hf";
        j["command"] = o_.command;
        j["finished"] = finished;
        j["layernorm_free"] = model_->sites.all_linear_everywhere();
        j["step"] = step_;
        j["protocol"] = protocol_json(p_);
        j["sites"] = sites_json(model_->sites);
        j["events"] = events_json(events_, model_->sites);
        j["data"]["train"] = shards_json(*train_);
        j["data"]["val"] = shards_json(*val_);
        j["tokenizer"] = ordered_json();
        if (tokenizer_) {
            j["tokenizer"]["name"] = tokenizer_->name();
            j["tokenizer"]["fingerprint"] = tokenizer_->fingerprint();
            j["tokenizer"]["vocab_size"] = tokenizer_->vocab_size();
        }
        j["results"]["val_loss_first"] = number_or_null(first_val_);
        j["results"]["val_loss_last"] = number_or_null(last_val_);
        j["results"]["val_tokens"] = o_.val_tokens;
        j["based_on"] = based_on_;
        return j;
    }

    // ----- after the last step

    ordered_json finish();
    ordered_json dry_run();
    std::string model_card() const;
    void print_summary(const ordered_json& summary) const;
    int64_t training_bytes() const {
        if (const auto device_bytes = engine().device_bytes; device_bytes != nullptr)
            return device_bytes(model_->config, p_.batch, p_.seq, true, p_.precision == "bf16",
                                std::max(0, o_.engine.recompute));
        return 4 * model_->parameters() * static_cast<int64_t>(sizeof(real)) +
               model_->activation_bytes(p_.batch, p_.seq, true);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Pictures and words at the end of a run

// What the adaptive schedule decided beside removals, as shaded parts of the axis that say what they are: the steps that were
// undone by going back (where the line breaks off), those in which removals waited for position 0.
inline void show_decision(Chart& chart, ChartSeries& series, const json& j) {
    const double step = j["step"].get<double>();
    if (j["decision"] == "roll back") {
        const std::string to = j["to"].get<std::string>();  // step_000050
        const double snapshot = std::strtod(to.c_str() + to.find('_') + 1, nullptr);
        const double from = std::max(snapshot, chart.spans.empty() ? 0 : chart.spans.back().to);
        chart.spans.push_back({from, step, "went back: " + j["because"].get<std::string>(), "#FBE3DC"});
        series.x.push_back(step);
        series.y.push_back(NAN);
    }
    if (j.contains("since"))
        chart.spans.push_back({j["since"].get<double>(), step, "position 0 comes down", "#E9EEF3"});
}

// Sites of one step: a line each, by kind; of a schedule that adapts, which takes what is cheapest, one line for all of them.
inline void show_removals(Chart& chart, const json& sites, double step, bool adapts) {
    if (sites.empty()) return;
    if (adapts) {
        const std::string only = sites[0].get<std::string>();
        chart.markers.push_back({step, "removed", sites.size() == 1 ? only : std::to_string(sites.size()) + " sites"});
        return;
    }
    for (const json& site : sites) {
        const std::string name = site.get<std::string>();
        chart.markers.push_back({step, name.substr(0, name.find('[')), name});
    }
}

// The loss curves of some runs (name, output folder) in the manner of the paper's Fig. 1: removals as vertical lines,
// the validation loss before training as a dashed reference. Throws BadInput if a folder has no log.
inline Chart loss_chart(const std::vector<std::pair<std::string, std::string>>& runs, const std::string& title) {
    Chart chart;
    chart.title = title;
    chart.x_label = "step";
    chart.y_label = "training loss (nats per token)";
    for (const auto& [name, folder] : runs) {
        ChartSeries series;
        series.name = name;
        bool first_validation = chart.references.empty(), adapts = false;
        std::istringstream lines(read_file(folder + "/log.jsonl", int64_t(1) << 31));
        for (std::string line; std::getline(lines, line);) {
            const json j = json::parse(line, nullptr, false);
            if (!j.is_object() || !j.contains("step")) continue;
            const double step = j["step"].get<double>();
            if (j.contains("loss")) {
                series.x.push_back(step);
                series.y.push_back(number_or_nan(j, "loss"));
            }
            adapts = adapts || j.contains("decision");
            if (j.contains("decision")) show_decision(chart, series, j);
            if (first_validation && j.contains("val_loss") && step == 0) {
                chart.references.push_back({number_or_nan(j, "val_loss"), "original, validation"});
                first_validation = false;
            }
            show_removals(chart, j.value("removed", json::array()), step, adapts);
        }
        chart.series.push_back(series);
    }
    return chart;
}

inline std::string TrainingRun::model_card() const {
    const bool free = model_->sites.all_linear_everywhere();
    std::string card = "# A GPT-2 model" + std::string(free ? " without LayerNorm" : "") + "\n\n";
    if (free)
        card +=
            "Every LayerNorm of this model has been replaced by a fixed linear map while it was fine-tuned (arXiv "
            "2409.13710, 2507.02559).\n\n";
    Table results({"", "validation loss (nats)"});
    results.add_row({"before this run", format_fixed(first_val_, 4)});
    results.add_row({"after this run", format_fixed(last_val_, 4)});
    card += results.markdown() + "\n";
    if (free) card += loading_section(model_->config.form) + "\n";
    card += "## Protocol\n\n";
    Table protocol({"setting", "value"});
    const ordered_json settings = protocol_json(p_);
    for (const auto& [key, value] : settings.items()) protocol.add_row({key, value.dump()});
    card += protocol.markdown();
    if (model_->sites.removed() > 0) {
        Table sites({"site", "sigma_bar", "mean sigma at the end"});
        for (const Site& site : model_->sites.all)
            sites.add_row({site_name(site), format_general(site.sigma_bar), format_general(site.last_sigma)});
        card += "\n## Sites\n\n" + sites.markdown();
    }
    return card;
}

// The finished model becomes the output folder itself, in Hugging Face form (folded models stay folded).
inline ordered_json TrainingRun::finish() {
    GPT2Config config;
    model_->fetch_parameters();
    const bool folded = model_->config.form == ModelForm::folded;
    const TensorRecipes recipes = folded ? folded_recipes(*model_, config) : hugging_face_recipes(*model_, config);
    write_file_atomically(o_.out + "/loss.svg",
                          render_svg(loss_chart({{o_.command, o_.out}}, "Training loss of " + o_.command)));
    write_model_folder(o_.out, config, recipes, dtype_of_real(), lnfree_json(config.form, true), tokenizer_.get(),
                       model_card());
    prune_checkpoints(o_.out, static_cast<size_t>(std::max<int64_t>(0, o_.keep_checkpoints)));
    std::error_code ignored;
    fs::remove(fs::path(o_.out) / "checkpoints", ignored);  // only if it is empty

    ordered_json summary;
    summary["out"] = o_.out;
    summary["steps"] = step_;
    summary["tokens"] = step_ * p_.tokens_per_step();
    summary["val_loss_first"] = number_or_null(first_val_);
    summary["val_loss_last"] = number_or_null(last_val_);
    summary["sites"] = model_->sites.all.size();
    summary["sites_removed"] = model_->sites.removed();
    summary["layernorm_free"] = model_->sites.all_linear_everywhere();
    summary["seconds"] = seconds_now() - started_;
    summary["peak_memory_bytes"] = peak_memory_bytes();
    print_summary(summary);
    return summary;
}

inline void TrainingRun::print_summary(const ordered_json& s) const {
    Table table({o_.command, o_.out});
    table.add_row({"steps", std::to_string(step_)});
    table.add_row({"tokens", format_count(s["tokens"].get<uint64_t>())});
    table.add_row({"time", format_duration(s["seconds"].get<double>())});
    table.add_row({"peak memory", format_bytes(s["peak_memory_bytes"].get<uint64_t>())});
    table.add_row({"validation loss, first", format_fixed(first_val_, 4)});
    table.add_row({"validation loss, last", format_fixed(last_val_, 4)});
    table.add_row({"difference", format_fixed(last_val_ - first_val_, 4)});
    table.add_row({"LayerNorm sites removed",
                   std::to_string(model_->sites.removed()) + " of " + std::to_string(model_->sites.all.size())});
    std::fprintf(screen_, "\n%s", table.text().c_str());
}

// Floating-point operations per token of one training step: 2 per weight and product forward, twice that backward
// (6 in all), and the attention products.
inline double training_flops_per_token(const GPT2Config& c, int64_t parameters, int64_t T) {
    return 6.0 * static_cast<double>(parameters) + 6.0 * static_cast<double>(c.L * c.C * T);
}

// What this machine's matrix product does on a shape of this model, measured for a quarter of a second.
inline double measure_flops(const GPT2Config& c) {
    const int64_t N = 256, K = c.C, M = c.n_inner;
    Buffer a(N * K), b(K * M), out(N * M);
    matmul_forward(out.data(), a.data(), b.data(), nullptr, N, K, M, M);
    double done = 0;
    const double begin = seconds_now();
    double now = begin;
    for (; now - begin < 0.25; now = seconds_now()) {
        matmul_forward(out.data(), a.data(), b.data(), nullptr, N, K, M, M);
        done += 2.0 * static_cast<double>(N * K * M);
    }
    return done / (now - begin);
}

inline ordered_json TrainingRun::dry_run() {
    const GPT2Config& c = model_->config;
    const double flops = training_flops_per_token(c, model_->parameters(), p_.seq);
    const double tokens = static_cast<double>((p_.stop - step_) * p_.tokens_per_step());
    // Products of matrices are most of a step, not all of it, and not all are as fast as this one: whole steps of GPT-2
    // Small reached 0.79 (T = 64) and 0.88 (T = 1024) of it on two cores with AVX-512.
    const double seconds = flops * tokens / (0.8 * measure_flops(c));
    ordered_json j;
    j["protocol"] = protocol_json(p_);
    j["parameters"] = model_->parameters();
    j["tokens"] = static_cast<int64_t>(tokens);
    j["epochs"] = tokens / static_cast<double>(train_->tokens());
    j["memory_bytes"] = training_bytes();
    j["estimated_seconds"] = seconds;
    Table table({o_.command, "dry run, nothing is written"});
    table.add_row({"parameters", format_count(static_cast<uint64_t>(model_->parameters()))});
    table.add_row({"tokens per step", format_count(static_cast<uint64_t>(p_.tokens_per_step())) + " = " +
                                          std::to_string(p_.batch) + " x " + std::to_string(p_.seq) + " x " +
                                          std::to_string(p_.grad_accum)});
    table.add_row({"tokens in all", format_count(static_cast<uint64_t>(tokens)) + " (" +
                                        format_general(j["epochs"].get<double>()) + " epochs)"});
    table.add_row({"memory, about", format_bytes(static_cast<uint64_t>(training_bytes()))});
    table.add_row({"time on this machine, about", format_duration(seconds)});
    for (const auto& [key, value] : j["protocol"].items()) table.add_row({key, value.dump()});
    std::fprintf(screen_, "%s", table.text().c_str());
    if (p_.removes) {
        j["schedule"] = ordered_json::array();
        std::fprintf(screen_, "\nremovals:%s", p_.adaptive() ? " as the loss allows" : "");
        for (const Site& site : model_->sites.all) {
            if (site.norm != Norm::layer_norm || p_.adaptive()) continue;
            j["schedule"].push_back({{"step", removal_step(p_, site)}, {"site", site_name(site)}});
            std::fprintf(screen_, " %s@%lld", site_name(site).c_str(), static_cast<long long>(removal_step(p_, site)));
        }
        std::fprintf(screen_, "\n");
    }
    return j;
}

// =====================================================================================================================
// 8. The commands
// =====================================================================================================================

// One JSON object on standard output, if --json was given. Keys: data/README.md.
inline void print_json(bool wanted, const ordered_json& j) {
    ordered_json output = {{"version", kFormatVersion}};
    output.update(j);
    if (wanted) std::printf("%s\n", output.dump(2, ' ', false, json::error_handler_t::replace).c_str());
}

// ---------------------------------------------------------------------------------------------------------------------
// eval

struct EvalOptions {
    std::vector<std::string> models, data;
    int64_t seq = 0, batch = 8, max_tokens = 0, worst = 10;
    std::string windows = "shifted", precision = "fp32";
    std::string baseline;  // one of `models`: what the others' losses are compared with; empty: the first
    std::string logits;    // file for the first sequence's logits; empty: none
    bool markdown = false, json_output = false, force = false;
};

struct WorstToken {
    double loss;
    uint64_t sequence;
    int64_t position;
    int32_t token;
    std::vector<int32_t> context;
};

// Keeps the `limit` largest losses seen.
inline void keep_worst(std::vector<WorstToken>& worst, size_t limit, const WorstToken& candidate) {
    const auto greater = [](const WorstToken& a, const WorstToken& b) { return a.loss > b.loss; };
    worst.insert(std::upper_bound(worst.begin(), worst.end(), candidate, greater), candidate);
    if (worst.size() > limit) worst.pop_back();
}

inline double percentile(std::vector<float>& values, double share) {
    const auto k = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
    std::nth_element(values.begin(), values.begin() + k, values.end());
    return static_cast<double>(values[static_cast<size_t>(k)]);
}

inline std::string context_text(const Tokenizer* tokenizer, const WorstToken& w) {
    if (tokenizer == nullptr) return "";
    std::string text;
    for (int32_t token : w.context) text += tokenizer->token_text(token);
    return text;
}

// Writes what the model makes of the first sequence as a safetensors file with the one tensor "logits", (P,V) in F32, P
// predictions: for holding the model against other programs.
inline void write_logits(const std::string& path, GPT2& model, const TokenShards& shards, int64_t T,
                         bool paper_windows) {
    const int64_t P = paper_windows ? T - 1 : T;
    std::vector<int32_t> inputs(static_cast<size_t>(P)), targets(inputs.size());
    shards.read(0, static_cast<uint64_t>(T), inputs.data(), targets.data(), paper_windows);
    const std::vector<uint64_t> shape = {static_cast<uint64_t>(P), static_cast<uint64_t>(model.config.V)};
    if (fs::path(path).has_parent_path()) fs::create_directories(fs::path(path).parent_path());
    write_safetensors<real>(path, {{"logits", shape, [&](real* out) { model.logits(out, inputs.data(), 1, P); }}},
                            DType::F32);
}

// --seq, or n_ctx for 0. Throws BadInput if the model in `folder` reads no such sequences.
inline int64_t sequence_length(int64_t seq, const GPT2Config& config, const std::string& folder) {
    if (seq > config.n_ctx)
        throw BadInput("--seq " + std::to_string(seq) + ": " + folder + " reads at most " +
                       std::to_string(config.n_ctx) + " positions (n_ctx); choose --seq within that");
    return seq > 0 ? seq : config.n_ctx;
}

inline ordered_json evaluate(const std::string& folder, const EvalOptions& o) {
    const double begin = seconds_now();
    LoadedModel loaded = load_model(folder);
    GPT2& model = *loaded.model;
    const int64_t T = sequence_length(o.seq, model.config, folder);
    const bool paper_windows = o.windows == "paper";
    const TokenShards shards(o.data);
    shards.check_vocabulary(static_cast<uint32_t>(model.config.V));
    require_same_tokenizer(shards, loaded.tokenizer.get(), "--data");
    if (shards.sequences(static_cast<uint64_t>(T), paper_windows) == 0)
        throw BadInput("--data " + shards.paths()[0] + ": fewer than " + std::to_string(T + (paper_windows ? 0 : 1)) +
                       " tokens; use more text or a smaller --seq");

    std::vector<float> losses;
    std::vector<WorstToken> worst;
    const size_t limit = static_cast<size_t>(o.worst);
    const auto each = [&](uint64_t sequence, const real* l, const int32_t* inputs, const int32_t* targets, int64_t P) {
        for (int64_t t = 0; t < P; t++) {
            losses.push_back(static_cast<float>(l[t]));
            if (limit == 0 || (worst.size() == limit && !(static_cast<double>(l[t]) > worst.back().loss))) continue;
            keep_worst(worst, limit,
                       {static_cast<double>(l[t]),
                        sequence,
                        t,
                        targets[t],
                        {inputs + std::max<int64_t>(0, t - 15), inputs + t + 1}});
        }
    };
    const int64_t batch =
        std::min(o.batch, static_cast<int64_t>(shards.sequences(static_cast<uint64_t>(T), paper_windows)));
    const double mean =
        mean_loss(model, shards, T, batch, static_cast<uint64_t>(o.max_tokens), paper_windows, "eval", each);
    if (!std::isfinite(mean))
        throw RunFailure(folder + ": its loss is not finite; the model has diverged, take an earlier one");
    if (!o.logits.empty()) write_logits(o.logits, model, shards, T, paper_windows);

    ordered_json j;
    j["model"] = folder;
    j["loss"] = mean;
    j["perplexity"] = std::exp(mean);
    j["tokens"] = losses.size();
    j["seq"] = T;
    j["windows"] = o.windows;
    j["precision"] = o.precision;
    for (const auto& [name, share] : std::vector<std::pair<const char*, double>>{{"p0.05", 0.0005},
                                                                                 {"p2.5", 0.025},
                                                                                 {"p25", 0.25},
                                                                                 {"p50", 0.5},
                                                                                 {"p75", 0.75},
                                                                                 {"p97.5", 0.975},
                                                                                 {"p99.95", 0.9995}})
        j["percentiles"][name] = percentile(losses, share);
    j["worst"] = ordered_json::array();
    for (const WorstToken& w : worst) {
        ordered_json item;
        item["loss"] = w.loss;
        item["sequence"] = w.sequence;
        item["position"] = w.position;
        item["token"] = w.token;
        item["text"] = loaded.tokenizer ? loaded.tokenizer->token_text(w.token) : "";
        item["context"] = context_text(loaded.tokenizer.get(), w);
        j["worst"].push_back(item);
    }
    j["layernorm_free"] = model.sites.all_linear_everywhere();
    j["seconds"] = seconds_now() - begin;
    return j;
}

// Index of --baseline among the models. BadInput if it is none of them.
inline size_t baseline_index(const EvalOptions& o) {
    if (o.baseline.empty()) return 0;
    const auto found = std::find(o.models.begin(), o.models.end(), o.baseline);
    if (found == o.models.end()) throw BadInput("--baseline " + o.baseline + ": is none of the --model folders");
    return static_cast<size_t>(found - o.models.begin());
}

inline int eval_command(const EvalOptions& o) {
    baseline_index(o);
    if (o.windows != "shifted" && o.windows != "paper")
        throw BadInput("--windows " + o.windows +
                       ": use shifted (T predictions each) or paper (T tokens, T - 1 predictions)");
    if (o.batch < 1) throw BadInput("--batch must be at least 1");
    if (!o.logits.empty() && o.models.size() > 1)
        throw BadInput("--logits " + o.logits + ": is for one model; give a single --model");
    if (!o.logits.empty() && fs::exists(o.logits) && !o.force)
        throw BadInput("--logits " + o.logits + ": already exists; name another file or give --force");
    engine().use_precision(o.precision);
    ordered_json all = ordered_json::array();
    for (const std::string& folder : o.models) all.push_back(evaluate(folder, o));
    if (o.json_output) {
        print_json(true, all.size() == 1 ? all[0] : ordered_json{{"models", all}});
        return 0;
    }
    const double reference = all[baseline_index(o)]["loss"].get<double>();
    Table table({"model", "loss (nats)", "minus " + o.models[baseline_index(o)], "perplexity", "median loss", "tokens",
                 "LayerNorm"});
    for (const ordered_json& j : all)
        table.add_row({j["model"].get<std::string>(), format_fixed(j["loss"].get<double>(), 4),
                       format_fixed(j["loss"].get<double>() - reference, 4),
                       format_fixed(j["perplexity"].get<double>(), 3),
                       format_fixed(j["percentiles"]["p50"].get<double>(), 4),
                       format_count(j["tokens"].get<uint64_t>()), j["layernorm_free"].get<bool>() ? "none" : "yes"});
    std::printf("%s", o.markdown ? table.markdown().c_str() : table.text().c_str());
    if (all.size() > 1 || o.markdown) return 0;
    Table worst({"worst tokens: loss", "sequence", "position", "token", "after"});
    for (const ordered_json& w : all[0]["worst"])
        worst.add_row({format_fixed(w["loss"].get<double>(), 3), w["sequence"].dump(), w["position"].dump(),
                       w["text"].get<std::string>().empty() ? w["token"].dump() : w["text"].get<std::string>(),
                       w["context"].get<std::string>()});
    std::printf("\n%s", worst.text().c_str());
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// export

struct ExportOptions {
    std::string model, out, form = "hf", dtype = "f32";
    bool force = false, json_output = false;
};

inline int export_command(const ExportOptions& o) {
    if (o.form != "hf" && o.form != "folded") throw BadInput("--form " + o.form + ": use hf or folded");
    if (o.dtype != "f32" && o.dtype != "bf16" && o.dtype != "f16")
        throw BadInput("--dtype " + o.dtype + ": use f32, bf16 or f16");
    const DType dtype = o.dtype == "f32" ? DType::F32 : o.dtype == "bf16" ? DType::BF16 : DType::F16;
    LoadedModel loaded = load_model(o.model);
    GPT2Config config;
    const TensorRecipes recipes =
        o.form == "hf" ? hugging_face_recipes(*loaded.model, config) : folded_recipes(*loaded.model, config);
    if (dtype == DType::F16 && o.form == "hf" && loaded.model->sites.removed() > 0)
        throw BadInput(
            "--dtype f16: the hf form's gammas (of the order of 1e6) overflow in float16; use bf16 or f32, or --form "
            "folded");
    if (fs::exists(o.out) && !fs::is_directory(o.out)) throw BadInput("--out " + o.out + ": is a file; name a folder");
    require_other_folder(o.out, o.model);
    const bool fresh = !fs::exists(o.out) || fs::is_empty(o.out);
    if (!fresh && !o.force)
        throw BadInput("--out " + o.out + ": already exists and is not empty; name another folder or give --force");
    ordered_json lnfree = loaded.lnfree.is_object() ? ordered_json::parse(loaded.lnfree.dump())
                                                    : ordered_json{{"version", kFormatVersion}};
    lnfree.erase("resume");
    lnfree["form"] = o.form;
    lnfree["layernorm_free"] = loaded.model->sites.all_linear_everywhere();
    if (!lnfree.contains("sites")) lnfree["sites"] = sites_json(loaded.model->sites);
    if (o.form == "folded")
        for (auto& site : lnfree["sites"]) site["norm"] = norm_name(Norm::folded);
    std::string card;
    if (fs::exists(o.model + "/README.md")) card = read_file(o.model + "/README.md", 16 << 20);
    if (lnfree["layernorm_free"] == true) card = card_for_form(card, config.form);
    if (!fresh) remove_model_files(o.out);
    try {
        write_model_folder(o.out, config, recipes, dtype, lnfree, loaded.tokenizer.get(), card);
    } catch (...) {
        if (fresh) fs::remove_all(o.out);  // no half of a model stays behind
        throw;
    }
    if (!o.json_output) std::printf("wrote %s (%s form, %s)\n", o.out.c_str(), o.form.c_str(), o.dtype.c_str());
    print_json(o.json_output,
               {{"out", o.out}, {"form", o.form}, {"dtype", o.dtype}, {"layernorm_free", lnfree["layernorm_free"]}});
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// generate

struct GenerateOptions {
    std::string model, prompt, precision = "fp32";
    int64_t max_tokens = 200, top_k = 0;
    double temperature = 1.0;
    uint64_t seed = 1;
    bool json_output = false;
};

// The next token: the most likely one at temperature 0, else a draw from softmax(logits / temperature), from the top_k
// most likely tokens if top_k > 0. logits (V) are overwritten.
inline int32_t sample_token(real* logits, int64_t V, double temperature, int64_t top_k, SplitMix64& random) {
    const auto largest = static_cast<int32_t>(std::max_element(logits, logits + V) - logits);
    if (temperature == 0) return largest;
    real threshold = -std::numeric_limits<real>::infinity();
    if (top_k > 0 && top_k < V) {
        std::vector<real> sorted(logits, logits + V);
        std::nth_element(sorted.begin(), sorted.begin() + (top_k - 1), sorted.end(), std::greater<real>());
        threshold = sorted[static_cast<size_t>(top_k - 1)];
    }
    const real top = logits[largest];
    double total = 0;
    for (int64_t i = 0; i < V; i++) {
        logits[i] = logits[i] < threshold
                        ? real(0)
                        : static_cast<real>(std::exp(static_cast<double>(logits[i] - top) / temperature));
        total += static_cast<double>(logits[i]);
    }
    double draw = random.uniform() * total;
    for (int64_t i = 0; i < V; i++) {
        draw -= static_cast<double>(logits[i]);
        if (draw < 0) return static_cast<int32_t>(i);
    }
    return largest;
}

inline int generate_command(const GenerateOptions& o) {
    if (!(o.temperature >= 0) || o.max_tokens < 1 || o.top_k < 0)
        throw BadInput("generate: --temperature and --top-k must not be negative, --max-tokens at least 1");
    engine().use_precision(o.precision);
    LoadedModel loaded = load_model(o.model);
    if (!loaded.tokenizer)
        throw BadInput(
            o.model +
            ": has no tokenizer files (tokenizer.json, or vocab.json and merges.txt); copy them into the folder");
    GPT2& model = *loaded.model;
    const Tokenizer& tokenizer = *loaded.tokenizer;
    std::vector<int32_t> tokens;
    tokenizer.encode(o.prompt, tokens);
    if (tokens.empty()) tokens.push_back(tokenizer.end_of_text());
    const size_t prompt_length = tokens.size();
    for (int32_t token : tokens)
        if (token < 0 || token >= model.config.V)
            throw BadInput(o.model + ": the tokenizer's token " + std::to_string(token) +
                           " is outside the model's vocabulary");
    if (!o.json_output) std::fputs(o.prompt.c_str(), stdout);

    SplitMix64 random(o.seed);
    std::vector<real> logits(static_cast<size_t>(model.config.V));
    std::string pending;  // bytes of an unfinished UTF-8 character are held back
    for (int64_t i = 0; i < o.max_tokens; i++) {
        const int64_t T = std::min<int64_t>(static_cast<int64_t>(tokens.size()), model.config.n_ctx);
        model.logits(logits.data(), tokens.data() + tokens.size() - static_cast<size_t>(T), 1, T, T - 1);
        const int32_t next = sample_token(logits.data(), model.config.V, o.temperature, o.top_k, random);
        if (next == tokenizer.end_of_text()) break;
        tokens.push_back(next);
        if (o.json_output) continue;
        std::fputs(tokenizer.decode(&next, 1).c_str(), stdout);
        std::fflush(stdout);
    }
    if (!o.json_output) std::printf("\n");
    const std::vector<int32_t> made(tokens.begin() + static_cast<std::ptrdiff_t>(prompt_length), tokens.end());
    print_json(o.json_output,
               {{"prompt", o.prompt}, {"text", tokenizer.decode(made.data(), made.size())}, {"tokens", made}});
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// tokenize

inline int tokenize_command(const TokenizeOptions& o, bool json_output) {
    stop_on_signals();
    std::unique_ptr<ProgressBar> bar;
    const TokenizeResult r = tokenize_files(o, [&](uint64_t done, uint64_t total) {
        if (!bar) bar = std::make_unique<ProgressBar>("tokenize", total, stderr);
        bar->update(done);
        if (g_signal == 0) return;
        bar.reset();
        std::fprintf(stderr, "stopped; nothing was written\n");
        throw Interrupted{g_signal};
    });
    bar.reset();
    if (json_output) {
        print_json(true, {{"documents", {{"train", r.documents_train}, {"val", r.documents_val}}},
                          {"tokens", {{"train", r.tokens_train}, {"val", r.tokens_val}}},
                          {"files", r.paths},
                          {"bytes", r.bytes},
                          {"seconds", r.seconds}});
        return 0;
    }
    Table table({"split", "documents", "tokens"});
    table.add_row({"train", format_count(r.documents_train), format_count(r.tokens_train)});
    table.add_row({"val", format_count(r.documents_val), format_count(r.tokens_val)});
    std::printf("%s%s of text in %s, %s/s\n", table.text().c_str(), format_bytes(r.bytes).c_str(),
                format_duration(r.seconds).c_str(),
                format_bytes(static_cast<uint64_t>(static_cast<double>(r.bytes) / std::max(r.seconds, 1e-9))).c_str());
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// info

struct InfoOptions {
    std::string model;
    std::vector<std::string> data;  // shards on which to measure sigma; empty: nothing is measured
    int64_t seq = 0;                // 0: n_ctx
    std::string size;               // instead of a model, for --memory
    std::string precision = "fp32";
    bool memory = false;
    bool json_output = false;
};

// The sigmas of every site over the first sequences of the data, position 0 apart: where it is far above the rest, as in
// GPT-2, one sigma_bar cannot fit both (paper, Fig. 3 and App. D).
inline std::vector<SigmaSum> measured_sigmas(GPT2& model, const TokenShards& shards, int64_t T) {
    const uint64_t length = static_cast<uint64_t>(T);
    const uint64_t sequences = std::min<uint64_t>(64, shards.sequences(length));
    if (sequences == 0)
        throw BadInput("--data " + shards.paths()[0] + ": fewer than " + std::to_string(T + 1) +
                       " tokens; use more text or a smaller --seq");
    std::vector<int32_t> inputs(length), targets(length);
    model.clear_sigma_sums();
    for (uint64_t i = 0; i < sequences; i++) {
        shards.read(i, length, inputs.data(), targets.data());
        model.measure_sigmas(inputs.data(), 1, T);
    }
    return model.sigma_sums;
}

inline void add_measured_sigmas(ordered_json& sites, LoadedModel& loaded, const InfoOptions& o) {
    GPT2& model = *loaded.model;
    const int64_t T = sequence_length(o.seq, model.config, o.model);
    const TokenShards shards(o.data);
    shards.check_vocabulary(static_cast<uint32_t>(model.config.V));
    require_same_tokenizer(shards, loaded.tokenizer.get(), "--data");
    const std::vector<SigmaSum> sums = measured_sigmas(model, shards, T);
    for (size_t i = 0; i < sums.size(); i++) {
        const double at_0 = sums[i].at_0 / static_cast<double>(sums[i].n_at_0);
        const double elsewhere = sums[i].elsewhere / static_cast<double>(sums[i].n_elsewhere);  // NaN where T is 1
        sites[i]["sigma_position0"] = at_0;
        sites[i]["sigma_elsewhere"] = number_or_null(elsewhere);
        sites[i]["position0_ratio"] = number_or_null(at_0 / elsewhere);
    }
}

// The largest micro-batch, in sequences of n_ctx tokens, that trains within `bytes` of device memory; 0: none does.
using DeviceBytes = decltype(Engine::device_bytes);
inline int64_t largest_batch(DeviceBytes device_bytes, const GPT2Config& c, bool in_bf16, int recompute, double bytes) {
    int64_t batch = 0;
    while (batch < 4096 && static_cast<double>(device_bytes(c, batch + 1, c.n_ctx, true, in_bf16, recompute)) <= bytes)
        batch++;
    return batch;
}

// What fits into which GPU, from the same layout that allocates. A twentieth of a card is left to others.
inline int memory_command(const GPT2Config& c, const std::string& name, bool json_output) {
    const DeviceBytes device_bytes = engine().device_bytes;
    if (device_bytes == nullptr)
        throw BadInput(
            "--memory: the table is that of train_gpt2_lnfree_cuda; on the CPU `remove --dry-run` says what a run "
            "needs");
    Table table({"precision", "recompute", "24 GB", "80 GB", "141 GB", "one sequence needs"});
    ordered_json j;
    j["model"] = name;
    j["rows"] = ordered_json::array();
    for (const bool in_bf16 : {true, false})
        for (const int recompute : {0, 1, 2}) {
            const int64_t one = device_bytes(c, 1, c.n_ctx, true, in_bf16, recompute);
            ordered_json row{{"precision", in_bf16 ? "bf16" : "fp32"}, {"recompute", recompute}};
            std::vector<std::string> cells = {row["precision"], std::to_string(recompute)};
            for (const int gigabytes : {24, 80, 141}) {
                const int64_t batch = largest_batch(device_bytes, c, in_bf16, recompute, 0.95e9 * gigabytes);
                row["batch_" + std::to_string(gigabytes)] = batch;
                cells.push_back(batch > 0 ? std::to_string(batch) : "none");
            }
            row["bytes_of_one"] = one;
            cells.push_back(format_bytes(static_cast<uint64_t>(one)));
            j["rows"].push_back(row);
            table.add_row(cells);
        }
    if (!json_output)
        std::printf("%s: largest micro-batch, in sequences of %lld tokens, that trains on a card\n\n%s", name.c_str(),
                    static_cast<long long>(c.n_ctx), table.text().c_str());
    print_json(json_output, j);
    return 0;
}

inline int info_command(const InfoOptions& o) {
    engine().use_precision(o.precision);
    const std::string& folder = o.model;
    LoadedModel loaded = load_model(folder);
    GPT2& model = *loaded.model;
    const GPT2Config& c = model.config;
    ordered_json j;
    j["model"] = folder;
    j["form"] = c.form == ModelForm::hugging_face ? "hf" : c.form == ModelForm::checkpoint ? "checkpoint" : "folded";
    j["layernorm_free"] = model.sites.all_linear_everywhere();
    j["parameters"] = model.parameters();
    j["n_layer"] = c.L;
    j["n_head"] = c.NH;
    j["n_embd"] = c.C;
    j["n_ctx"] = c.n_ctx;
    j["n_inner"] = c.n_inner;
    j["vocab_size"] = c.V;
    j["eos_token_id"] = c.end_of_text;
    j["tokenizer"] = loaded.tokenizer ? loaded.tokenizer->name() : "";
    j["sites_removed"] = model.sites.removed();
    const bool recorded = loaded.lnfree.is_object() && loaded.lnfree.contains("sites");
    j["sites"] =
        recorded ? sites_json(sites_from_json(loaded.lnfree["sites"], static_cast<int>(c.L), folder + "/lnfree.json"))
                 : sites_json(model.sites);
    if (recorded && loaded.lnfree.contains("events")) j["events"] = loaded.lnfree["events"];
    if (!o.data.empty()) add_measured_sigmas(j["sites"], loaded, o);
    if (o.json_output) {
        print_json(true, j);
        return 0;
    }
    Table table({"model", folder});
    for (const auto& [key, value] : j.items())
        if (key != "model" && !value.is_array())
            table.add_row({key, value.is_string() ? value.get<std::string>() : value.dump()});
    std::printf("%s\n", table.text().c_str());
    std::vector<std::string> head = {"site", "norm", "sigma_bar", "mean sigma at last step"};
    std::vector<const char*> numbers = {"sigma_bar", "sigma_avg"};
    if (!o.data.empty()) {
        head.insert(head.end(), {"sigma at position 0", "elsewhere", "ratio"});
        numbers.insert(numbers.end(), {"sigma_position0", "sigma_elsewhere", "position0_ratio"});
    }
    Table sites(head);
    for (const ordered_json& s : j["sites"]) {
        std::vector<std::string> row = {s["site"].get<std::string>(), s["norm"].get<std::string>()};
        for (const char* key : numbers) {
            const double value = number_or_nan(s, key);
            row.push_back(std::isnan(value) ? "" : format_general(value));
        }
        sites.add_row(row);
    }
    std::printf("%s", sites.text().c_str());
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// stories: the built-in corpus, one JSON line per story

inline int stories_command(const std::string& out, uint64_t count, uint64_t seed, bool force, bool json_output) {
    if (out == "-" && json_output) throw BadInput("--out - and --json both want standard output; name a file");
    if (out != "-" && fs::exists(out) && !force)
        throw BadInput("--out " + out + ": already exists; name another file or give --force");
    StoryWorld world(seed);
    std::string text;
    for (uint64_t i = 0; i < count; i++) text += ordered_json{{"text", world.next_story()}}.dump() + "\n";
    if (out == "-") {
        std::fputs(text.c_str(), stdout);
    } else {
        if (fs::path(out).has_parent_path()) fs::create_directories(fs::path(out).parent_path());
        write_file_atomically(out, text);
    }
    print_json(json_output, {{"out", out}, {"stories", count}, {"bytes", text.size()}, {"seed", seed}});
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// plot: loss curves of several runs, or the columns of a table, in one picture

struct PlotOptions {
    std::vector<std::string> runs;
    std::string table, out, title = "Loss while LayerNorms are removed", y_label;
    bool log_x = false, force = false;
};

inline Chart runs_chart(const PlotOptions& o) {
    std::vector<std::pair<std::string, std::string>> named;
    for (const std::string& run : o.runs) {
        const size_t equals = run.find('=');
        named.emplace_back(equals == std::string::npos ? fs::path(run).filename().string() : run.substr(0, equals),
                           equals == std::string::npos ? run : run.substr(equals + 1));
    }
    return loss_chart(named, o.title);
}

inline int plot_command(const PlotOptions& o, bool json_output) {
    if (fs::exists(o.out) && !o.force)
        throw BadInput("--out " + o.out + ": already exists; name another file or give --force");
    if (o.runs.empty() == o.table.empty()) throw BadInput("plot: give either --run or --table");
    Chart chart = o.table.empty() ? runs_chart(o) : csv_chart(o.table);
    chart.title = o.title;
    if (!o.y_label.empty()) chart.y_label = o.y_label;
    chart.log_x = o.log_x;
    write_file_atomically(o.out, render_svg(chart));
    if (!json_output) std::printf("wrote %s\n", o.out.c_str());
    print_json(json_output, {{"out", o.out}, {"runs", chart.series.size()}});
    return 0;
}

}  // namespace lnfree

// ---------------------------------------------------------------------------------------------------------------------
// analyze: the paper's measurements

#include "dev/analysis/command.h"

// ---------------------------------------------------------------------------------------------------------------------
// The command line

namespace lnfree {

// GPT-2's sizes, and one for a laptop.
struct NamedSize {
    const char* name;
    int64_t L, NH, C, n_ctx;
};
inline const std::vector<NamedSize>& named_sizes() {
    static const std::vector<NamedSize> sizes = {{"tiny", 4, 4, 128, 128},
                                                 {"small", 12, 12, 768, 1024},
                                                 {"medium", 24, 16, 1024, 1024},
                                                 {"large", 36, 20, 1280, 1024},
                                                 {"xl", 48, 25, 1600, 1024}};
    return sizes;
}

struct ShapeFlags {
    std::string size = "tiny";
    std::optional<int64_t> L, NH, C, n_ctx, V;

    // Throws BadInput for sizes that make no model. `data_V`: vocabulary of the data's tokenizer, 0 if unknown.
    GPT2Config config(int64_t data_V) const {
        const auto& sizes = named_sizes();
        const auto found = std::find_if(sizes.begin(), sizes.end(), [&](const NamedSize& s) { return size == s.name; });
        if (found == sizes.end()) throw BadInput("--size " + size + ": use tiny, small, medium, large or xl");
        GPT2Config c;
        c.L = L.value_or(found->L);
        c.NH = NH.value_or(found->NH);
        c.C = C.value_or(found->C);
        c.n_ctx = n_ctx.value_or(found->n_ctx);
        c.V = V.value_or(data_V);
        c.n_inner = 4 * c.C;
        if (c.V == 0) throw BadInput("--vocab-size is needed: the shards come without a PREFIX.json that says it");
        if (c.L < 1 || c.NH < 1 || c.C < 1 || c.n_ctx < 1 || c.V < 1)
            throw BadInput("--n-layer, --n-head, --n-embd, --n-ctx and --vocab-size must be at least 1");
        if (c.C % c.NH != 0)
            throw BadInput("--n-embd " + std::to_string(c.C) + " must be a multiple of --n-head " +
                           std::to_string(c.NH));
        return c;
    }
};

// CLI11 alone takes 99999999999999999999 as the largest integer, and -1 as an unsigned one. `highest` keeps products of a
// few such numbers within 64 bits.
inline CLI::Validator whole_number(int64_t lowest, int64_t highest = 1'000'000'000'000'000) {
    const auto problem = [lowest, highest](std::string& text) -> std::string {
        int64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool number = error != std::errc::invalid_argument && end == text.data() + text.size();
        if (!number) return quoted_name(text) + " is not a whole number";
        if (error == std::errc() && value >= lowest && value <= highest) return "";
        return text + " is not within " + std::to_string(lowest) + " to " + std::to_string(highest);
    };
    return CLI::Validator(problem, "");
}

// A number; CLI11 alone takes nan and inf.
inline CLI::Validator finite_number() {
    const auto problem = [](std::string& text) -> std::string {
        char* end = nullptr;
        const bool finite = std::isfinite(std::strtod(text.c_str(), &end));
        if (text.empty() || *end != '\0') return quoted_name(text) + " is not a number";
        return finite ? "" : quoted_name(text) + " is not a finite number";
    };
    return CLI::Validator(problem, "");
}

inline void check_numbers(CLI::App& command) {
    for (CLI::Option* option : command.get_options()) {
        const std::string type = option->get_type_name();
        if (type == "INT") option->check(whole_number(0));
        if (type == "UINT") option->check(whole_number(0, std::numeric_limits<int64_t>::max()));
        if (type == "FLOAT") option->check(finite_number());
    }
}

inline void add_protocol_flags(CLI::App& app, ProtocolFlags& f, bool removes) {
    if (app.get_name() != "pretrain")
        app.add_option("--preset", f.preset,
                       "auto (adaptive; paper if the flags say when sites go), adaptive, paper (its schedule, "
                       "fitted to the model), or the paper's own small, medium, large, xl, precursor")
            ->capture_default_str();
    app.add_option("--steps", f.steps,
                   "horizon of the learning rate, and the end of the run unless --stop is given [auto: 300]");
    app.add_option("--stop", f.stop,
                   "end the run before this step [--steps; the paper's presets stop where the published models did]");
    app.add_option("--tokens", f.tokens, "choose --steps so that the run takes about this many tokens")
        ->check(whole_number(1));
    app.add_option("--batch", f.batch, "sequences per micro-batch [auto: 4,096 to 8,192 tokens]")
        ->check(whole_number(1, 65536));
    app.add_option("--seq", f.seq, "positions per sequence [n_ctx]");
    app.add_option(
           "--grad-accum", f.grad_accum,
           "micro-batches per step [auto: 4,096 tokens per step, from 10M parameters 65,536, from 100M 524,288]")
        ->check(whole_number(1, 65536));
    app.add_option(
        "--lr", f.lr,
        "highest learning rate [auto: 1.6e-3 at 0.1M parameters, 1e-3 at 10M, 6e-4 from 100M; paper: 6e-4; both: "
        "3e-4 above 500M, 1e-4 above 1B]");
    app.add_option("--min-lr", f.min_lr,
                   "learning rate at the end of the horizon [auto: lr / 10 up to 100M parameters; 3e-4; 4e-5; 2e-5]");
    app.add_option("--warmup", f.warmup,
                   "steps of linear warm-up [paper: steps / 20; auto: the same, but 10 or a quarter at least; "
                   "pretrain: steps / 10]");
    app.add_option("--weight-decay", f.weight_decay, "AdamW's decay of matrices and embeddings [0.01; pretrain 0.1]");
    app.add_option("--seed", f.seed, "of the data order, and of a new model's weights")->capture_default_str();
    app.add_option("--precision", f.precision,
                   std::string("fp32, or bf16: operands of matrix products rounded, weights and sums fp32 [") +
                       engine().training_precision + "]");
    if (!removes) {
        app.add_option("--plant-position0", f.plant_position0,
                       "for experiments: lengthen position 0's embedding by this much");
        app.add_option("--plant-step", f.plant_step,
                       "step before which that happens [pretrain: 300 before the end; finetune: 1]");
        app.add_option(
               "--grow-position0", f.grow_position0,
               "for experiments: let the layers make position 0 so many times as long as the others, as those of "
               "large models do")
            ->check(CLI::PositiveNumber);
    }
    if (!removes) return;
    app.add_option("--aux-weight", f.aux_weight, "weight lambda of the auxiliary loss [auto: 0.1; 0.03; 0.01]");
    app.add_flag("--aux-everywhere", f.aux_everywhere,
                 "the auxiliary loss at the input of every norm, not of ln_f alone");
    app.add_flag("--aux-relative", f.aux_relative, "the auxiliary loss on sigma relative to its target");
    app.add_option("--gradual", f.gradual, "steps that each site takes from its own sigma to sigma_bar [0: at once]");
    app.add_flag("--sigma-without-position0", f.sigma_skips_position0, "sigma_bar of the other positions alone");
    app.add_flag("--own-position0", f.own_position0, "position 0 keeps a sigma of its own until it is released");
    app.add_option("--release-position0", f.release_position0, "step at which that goes [120 after f]");
    app.add_option("--release-steps", f.release_steps, "steps that it takes to go [0: at once]");
    app.add_option("--shrink-position0", f.shrink_steps,
                   "steps in which a long embedding of position 0 comes down to the others' length [0: left alone]");
    app.add_option("--sigma-ema", f.sigma_ema,
                   "share m of the running sigma that survives a step [auto: 0; 0.19 above 500M parameters]");
    app.add_option("--start-mlp", f.start_mlp, "step at which mlp[0] goes [paper: warm-up]");
    app.add_option("--start-qk", f.start_qk, "step at which qk[0] goes [start-mlp + L gap-mlp]");
    app.add_option("--start-v", f.start_v, "step at which v[0] goes [start-qk + L gap-qk]");
    app.add_option("--start-f", f.start_f, "step at which f goes [start-v + L gap-v]");
    app.add_option("--gap-mlp", f.gap_mlp,
                   "steps between two mlp sites; 0: all at once [paper: all removals in the first 45 % of the steps]");
    app.add_option("--gap-qk", f.gap_qk, "steps between two qk sites");
    app.add_option("--gap-v", f.gap_v, "steps between two v sites [paper: 1.5 times the others]");
}

// For commands that run a finished model, which by themselves choose fp32 on every engine.
inline void add_precision_flag(CLI::App& app, std::string& precision) {
    app.add_option("--precision", precision,
                   "of matrix products: fp32, or bf16 where the processor or GPU is fast with it")
        ->capture_default_str()
        ->check(CLI::IsMember({"fp32", "bf16"}));
}

inline void add_run_flags(CLI::App& app, RunOptions& o) {
    app.add_option("--out", o.out, "output folder: log.jsonl, checkpoints, and at the end the model")->required();
    app.add_option("--data", o.data, "training shards: paths or globs; raw:PATH for headerless uint16");
    app.add_option("--val", o.val, "validation shards");
    app.add_option("--hours", o.hours, "choose --steps so that the run takes about so long, by this machine's speed")
        ->check(CLI::PositiveNumber);
    app.add_option("--eval-every", o.eval_every, "steps between validations [a tenth of the run]")
        ->check(whole_number(1));
    app.add_option("--val-tokens", o.val_tokens,
                   "tokens per validation; 0: all [16,384 to 131,072: eight steps' worth]")
        ->check(whole_number(0));
    app.add_option("--save-every", o.save_every, "steps between checkpoints; 0: none")
        ->capture_default_str()
        ->check(whole_number(0));
    app.add_option("--keep-checkpoints", o.keep_checkpoints, "checkpoints to keep after a finished run")
        ->capture_default_str()
        ->check(whole_number(0));
    if (engine().use_options != nullptr) {
        app.add_option("--recompute", o.engine.recompute,
                       "what backward remakes: 0 nothing, 1 GELU, 2 the norms too [the least that fits]")
            ->check(whole_number(0, 2));
        app.add_flag("--stochastic-rounding", o.engine.stochastic_rounding,
                     "round the bf16 copies of the weights up or down at random");
        app.add_option("--attention", o.engine.attention,
                       "flash; plain: without tensor cores; cudnn: NVIDIA's, in bf16, if made with USE_CUDNN=1")
            ->capture_default_str()
            ->check(CLI::IsMember({"flash", "plain", "cudnn"}));
        app.add_flag("--cuda-graphs", o.engine.cuda_graphs,
                     "give the GPU the kernels of a micro-batch in one call: the same bits, sooner for small models");
    }
    app.add_flag("--resume", o.resume, "go on from the last checkpoint in --out, with the values saved there");
    app.add_flag("--force", o.force, "replace an earlier run in --out");
    app.add_flag("--dry-run", o.dry_run, "print schedule, memory and estimated time; write nothing");
}

// On --resume only flags that leave the trajectory alone may be given.
inline void require_resumable_flags(const CLI::App& app) {
    static const std::vector<std::string> allowed = {
        "--out",        "--resume",           "--threads",   "--json",        "--eval-every",
        "--save-every", "--keep-checkpoints", "--recompute", "--cuda-graphs", "--help"};
    for (const CLI::Option* option : app.get_options())
        if (option->count() > 0 && std::find(allowed.begin(), allowed.end(), option->get_name()) == allowed.end())
            throw BadInput(option->get_name() +
                           " cannot be given with --resume: the run goes on with its saved values");
}

inline int run_command(RunOptions o, CLI::App& app) {
    o.command = app.get_name();
    if (o.resume) {
        require_resumable_flags(app);
        if (app.get_option("--save-every")->count() == 0) o.save_every = -1;
        if (app.get_option("--keep-checkpoints")->count() == 0) o.keep_checkpoints = -1;
    } else {
        if (o.command != "pretrain" && o.model.empty())
            throw BadInput("--model is required: the folder of the model to start from");
        if (o.data.empty() || o.val.empty())
            throw BadInput("--data and --val are required: token shards made by `tokenize`");
    }
    const bool json_output = o.json_output;
    print_json(json_output, TrainingRun(std::move(o)).execute());
    return 0;
}

inline void add_shape_flags(CLI::App& sub, ShapeFlags& shape, const std::string& default_V) {
    sub.add_option("--size", shape.size, "tiny (4 layers x 128), or GPT-2's small, medium, large, xl")
        ->capture_default_str();
    sub.add_option("--n-layer", shape.L, "layers [from --size]");
    sub.add_option("--n-head", shape.NH, "attention heads [from --size]");
    sub.add_option("--n-embd", shape.C, "width of the residual stream [from --size]");
    sub.add_option("--n-ctx", shape.n_ctx, "longest sequence [from --size]");
    sub.add_option("--vocab-size", shape.V, "vocabulary " + default_V);
}

// What another engine's check or bench found, as JSON if that is asked for: "passed", and "rows" of "columns". Exit 1
// unless it passed.
inline int report(const Engine::Report& r, bool json_output) {
    ordered_json rows = ordered_json::array();
    for (const std::vector<std::string>& row : r.rows) rows.push_back(row);
    print_json(json_output, {{"passed", r.passed}, {"columns", r.columns}, {"rows", rows}});
    return r.passed ? 0 : 1;
}

inline int check_command(bool json_output) {
    const auto check = engine().check;
    if (check == nullptr)
        throw BadInput(
            "check: this program is the reference itself, which `make test` checks; `train_gpt2_lnfree_cuda check` "
            "holds a GPU against it");
    return report(check(json_output ? stderr : stdout), json_output);
}

inline int bench_command(bench::Options o, const ShapeFlags& shape, bool json_output) {
    o.name = shape.size;
    o.config = shape.config(shape.size == "tiny" ? 257 : 50257);
    o.seq = sequence_length(o.seq, o.config, "the model");
    if (const auto other_engine = engine().bench; other_engine != nullptr) {
        if (o.precision != engine().training_precision)
            throw BadInput("bench --precision " + o.precision + ": on a GPU it times " + engine().training_precision +
                           " only, which training computes in; leave the flag out");
        return report(other_engine(o.config, o.batch, o.seq, o.seconds, json_output ? stderr : stdout), json_output);
    }
    engine().use_precision(o.precision);
    print_json(json_output, bench::run(o, LNFREE_ISA_NAME, json_output ? stderr : stdout));
    return 0;
}

inline int growth_command(const std::string& out, const bench::Options& o, bool json_output) {
    engine().use_precision(o.precision);
    Chart chart;
    const ordered_json j = bench::run_growth(o.seconds, LNFREE_ISA_NAME, json_output ? stderr : stdout, chart);
    write_file_atomically(out, render_svg(chart));
    print_json(json_output, j);
    return 0;
}

// What went wrong, on one line whatever a file name or flag may hold.
inline std::string error_line(std::string what) {
    std::replace_if(
        what.begin(), what.end(), [](unsigned char c) { return c < 0x20; }, ' ');
    return "train_gpt2_lnfree: " + what + "\n";
}

// Declares all commands, parses, and runs one. Every command's options live here, so that --help can show them.
inline int parse_and_run(int argc, char** argv) {
    CLI::App app{"Takes the LayerNorms out of a trained GPT-2 by fine-tuning (arXiv 2409.13710, 2507.02559).",
                 "train_gpt2_lnfree"};
    app.require_subcommand(1);
    app.failure_message(
        [](const CLI::App*, const CLI::Error& e) { return error_line(std::string(e.what()) + "; see --help"); });
    int threads = 0;
    bool json_output = false;
    std::function<int()> action;
    const auto command = [&](const char* name, const char* description) {
        CLI::App* sub = app.add_subcommand(name, description);
        sub->add_option("--threads", threads, "processor threads [all]")->check(whole_number(1, 1024));
        sub->add_flag("--json", json_output, "one JSON object on standard output, progress on standard error");
        return sub;
    };

    RunOptions run;
    ShapeFlags shape;
    for (const char* name : {"pretrain", "remove", "finetune"}) {
        const bool pretrain = name == std::string("pretrain"), removes = name == std::string("remove");
        CLI::App* sub = command(
            name, pretrain  ? "Train a new GPT-2 with LayerNorm."
                  : removes ? "Remove every LayerNorm from a model: the main job."
                            : "The vanilla control: the same run as remove, without removal and auxiliary loss.");
        if (!pretrain) sub->add_option("--model", run.model, "model folder to start from");
        add_run_flags(*sub, run);
        add_protocol_flags(*sub, run.flags, removes);
        if (pretrain) {
            add_shape_flags(*sub, shape, "[from the data's PREFIX.json]");
            sub->add_option("--tokenizer", run.tokenizer,
                            "byte, or a folder with tokenizer files, to go into the model folder [from PREFIX.json]");
            run.shape = [&shape](int64_t data_V) { return shape.config(data_V); };
        }
        sub->callback([&, sub] {
            action = [&, sub] {
                run.json_output = json_output;
                return run_command(run, *sub);
            };
        });
    }

    EvalOptions eval;
    CLI::App* sub = command("eval", "Mean cross-entropy of one model, or of several side by side.");
    sub->add_option("--model", eval.models, "one or more model folders")->required();
    sub->add_option("--data", eval.data, "token shards")->required();
    sub->add_option("--seq", eval.seq, "positions per sequence [n_ctx]")->check(whole_number(1));
    sub->add_option("--batch", eval.batch, "sequences at a time")->capture_default_str()->check(whole_number(1));
    sub->add_option("--val-tokens", eval.max_tokens, "stop after this many tokens [all]")->check(whole_number(0));
    sub->add_option("--windows", eval.windows,
                    "shifted: T predictions per sequence; paper: windows of T tokens, T - 1 predictions")
        ->capture_default_str();
    add_precision_flag(*sub, eval.precision);
    sub->add_option("--baseline", eval.baseline, "model that the others' losses are compared with [the first]");
    sub->add_flag("--markdown", eval.markdown, "print the table as Markdown");
    sub->add_option("--worst", eval.worst, "how many of the worst tokens to list")
        ->capture_default_str()
        ->check(whole_number(0));
    sub->add_option("--logits", eval.logits,
                    "file for the first sequence's logits: safetensors with one F32 tensor (T, vocabulary)");
    sub->add_flag("--force", eval.force, "replace the --logits file");
    sub->callback([&] {
        action = [&] {
            eval.json_output = json_output;
            return eval_command(eval);
        };
    });

    ExportOptions exporting;
    sub = command("export", "Write a model in Hugging Face form or, without any norm, in folded form.");
    sub->add_option("--model", exporting.model, "model folder")->required();
    sub->add_option("--out", exporting.out, "folder to write")->required();
    sub->add_option("--form", exporting.form, "hf or folded")->capture_default_str();
    sub->add_option("--dtype", exporting.dtype, "f32, bf16 or f16")->capture_default_str();
    sub->add_flag("--force", exporting.force, "write into a folder that is not empty");
    sub->callback([&] {
        action = [&] {
            exporting.json_output = json_output;
            return export_command(exporting);
        };
    });

    GenerateOptions generate;
    sub = command("generate", "Continue a prompt.");
    sub->add_option("--model", generate.model, "model folder with tokenizer files")->required();
    sub->add_option("--prompt", generate.prompt, "text to continue");
    sub->add_option("--max-tokens", generate.max_tokens, "tokens to make at most")->capture_default_str();
    sub->add_option("--temperature", generate.temperature, "0: always the most likely token")->capture_default_str();
    sub->add_option("--top-k", generate.top_k, "draw from the k most likely tokens; 0: from all")
        ->capture_default_str();
    sub->add_option("--seed", generate.seed, "of the draws")->capture_default_str();
    add_precision_flag(*sub, generate.precision);
    sub->callback([&] {
        action = [&] {
            generate.json_output = json_output;
            return generate_command(generate);
        };
    });

    TokenizeOptions tokenizing;
    sub = command("tokenize", "Turn text into token shards, with a held-out split by document.");
    sub->add_option("--input", tokenizing.inputs, ".txt, .jsonl (key text), .gz of both, or - for standard input")
        ->required();
    sub->add_option("--tokenizer", tokenizing.tokenizer, "byte, or a folder with tokenizer files")
        ->capture_default_str();
    sub->add_option("--out", tokenizing.out,
                    "PREFIX: writes PREFIX_train_000000.bin, PREFIX_val_000000.bin, PREFIX.json")
        ->required();
    sub->add_option("--val-fraction", tokenizing.val_fraction, "share of the documents held out")
        ->capture_default_str();
    sub->add_option("--seed", tokenizing.seed, "of the split")->capture_default_str();
    sub->add_option("--shard-tokens", tokenizing.shard_tokens, "tokens per shard")->capture_default_str();
    sub->add_option("--document-separator", tokenizing.document_separator, "what separates the documents of a .txt");
    sub->add_option("--text-key", tokenizing.text_key, "key of the text in .jsonl")->capture_default_str();
    sub->add_flag("--allow-special", tokenizing.allow_special,
                  "let <|endoftext|> in the text be the end-of-text token");
    sub->callback([&] {
        action = [&] {
            tokenizing.threads = threads;
            return tokenize_command(tokenizing, json_output);
        };
    });

    InfoOptions info;
    sub = command("info", "Describe a model folder: shape, form, sigma of every site.");
    sub->add_option("--model", info.model, "model folder");
    sub->add_option("--size", info.size, "instead of a folder, with --memory: tiny, small, medium, large, xl");
    sub->add_flag("--memory", info.memory, "what fits into GPUs of 24, 80 and 141 GB (CUDA engine)");
    sub->add_option("--data", info.data, "shards: also measure sigma at position 0 and elsewhere, on 64 sequences");
    sub->add_option("--seq", info.seq, "positions per sequence [n_ctx]")->check(whole_number(1));
    add_precision_flag(*sub, info.precision);
    sub->callback([&] {
        info.json_output = json_output;
        action = [&] {
            if (info.model.empty() == info.size.empty())
                throw BadInput("info wants --model FOLDER, or --memory with --size; see --help");
            if (!info.memory && !info.size.empty()) throw BadInput("--size goes with --memory; give --model FOLDER");
            if (!info.memory) return info_command(info);
            if (!info.size.empty()) {
                ShapeFlags shape;
                shape.size = info.size;
                return memory_command(shape.config(info.size == "tiny" ? 257 : 50257), info.size, json_output);
            }
            return memory_command(read_config(info.model), info.model, json_output);
        };
    });

    std::string stories_out;
    uint64_t stories_count = 1000, stories_seed = 1;
    bool force = false;
    sub = command("stories", "Write the built-in story corpus as .jsonl.");
    sub->add_option("--out", stories_out, "file to write, or - for standard output")->required();
    sub->add_option("--count", stories_count, "stories")->capture_default_str();
    sub->add_option("--seed", stories_seed, "of the stories")->capture_default_str();
    sub->add_flag("--force", force, "replace the file");
    sub->callback([&] {
        action = [&] { return stories_command(stories_out, stories_count, stories_seed, force, json_output); };
    });

    sub = command("check", "Hold the GPU's operations and whole steps against the reference (CUDA engine).");
    sub->callback([&] { action = [&] { return check_command(json_output); }; });

    ShapeFlags bench_shape;
    bench_shape.size = "small";
    bench::Options benching;
    benching.precision = engine().training_precision;
    sub = command("bench", "What this machine makes of the operations, of a training step and of evaluation.");
    add_shape_flags(*sub, bench_shape, "[257 for tiny, else 50257]");
    sub->add_option("--batch", benching.batch, "sequences")->capture_default_str()->check(whole_number(1, 1 << 20));
    sub->add_option("--seq", benching.seq, "positions per sequence")
        ->capture_default_str()
        ->check(whole_number(1, 1 << 20));
    add_precision_flag(*sub, benching.precision);
    sub->add_option("--seconds", benching.seconds, "time for each figure of a whole step; a tenth for each operation")
        ->capture_default_str();
    std::string growth;
    sub->add_option("--growth", growth,
                    "instead: tokens/s over widths and lengths beside the roofline, as this SVG file");
    sub->callback([&] {
        action = [&] {
            return growth.empty() ? bench_command(benching, bench_shape, json_output)
                                  : growth_command(growth, benching, json_output);
        };
    });

    analysis::Options analysing;
    std::string measurement;
    sub = command("analyze", "The paper's measurements of one model or several side by side.");
    std::string which = "one of:";
    for (const analysis::Measurement& m : analysis::measurements())
        which += std::string("\n  ") + m.name + ": " + m.what;
    which += "\n  report: all of them on one page, report.html in --out; one that was stopped goes on";
    sub->add_option("measurement", measurement, which)->required();
    sub->add_option("--model", analysing.models, "model folders; the first is what others are compared with")
        ->required();
    sub->add_option("--data", analysing.data, "token shards to measure on; patching needs none");
    sub->add_option("--prompts", analysing.prompts,
                    "JSON file of prompt sets, for patching [the story world's, for byte models]");
    sub->add_option("--evals", analysing.benchmarks.evals, "folder with the benchmarks' files");
    sub->add_option("--tasks", analysing.benchmarks.tasks, "benchmarks by name [all that the folder has]");
    sub->add_option("--limit", analysing.benchmarks.limit, "the first so many questions of each benchmark; 0: all")
        ->capture_default_str();
    sub->add_option("--choices", analysing.benchmarks.choices,
                    "file for the benchmarks' answers, question by question");
    sub->add_option("--seq", analysing.seq, "positions per sequence [n_ctx, at most 512]");
    sub->add_option("--sequences", analysing.sequences, "sequences, spread evenly over the data")
        ->capture_default_str()
        ->check(whole_number(1));
    sub->add_option("--batch", analysing.batch, "sequences at a time")
        ->capture_default_str()
        ->check(whole_number(1, 65536));
    sub->add_option("--seed", analysing.seed, "of the resampling behind the intervals")->capture_default_str();
    sub->add_option("--out", analysing.out, "folder in which to leave the result as MEASUREMENT.json as well");
    sub->add_flag("--markdown", analysing.markdown, "print the tables as Markdown");
    sub->add_flag("--force", analysing.force, "replace an earlier result there");
    sub->callback([&] {
        analysing.json_output = json_output;
        action = [&] { return analyze_command(measurement, analysing); };
    });

    PlotOptions plot;
    sub = command("plot", "Draw the loss curves of runs, or a table's columns, as an SVG picture.");
    sub->add_option("--run", plot.runs, "NAME=FOLDER of each run, the first one's start as reference");
    sub->add_option("--table", plot.table,
                    "CSV file: names in the first line; x in the first column, a line for each other");
    sub->add_option("--out", plot.out, "SVG file to write")->required();
    sub->add_option("--title", plot.title, "title of the picture")->capture_default_str();
    sub->add_option("--y-label", plot.y_label, "what is on the y axis");
    sub->add_flag("--log-x", plot.log_x, "a logarithmic x axis");
    sub->add_flag("--force", plot.force, "replace the file");
    sub->callback([&] { action = [&] { return plot_command(plot, json_output); }; });

    const std::vector<CLI::App*> commands = app.get_subcommands({});
    for (CLI::App* each : commands) check_numbers(*each);
    const bool known = std::any_of(commands.begin(), commands.end(),
                                   [&](const CLI::App* each) { return argc > 1 && each->get_name() == argv[1]; });
    if (argc > 1 && argv[1][0] != '-' && !known)
        throw BadInput("there is no command " + quoted_name(argv[1]) + "; see --help");

    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        return app.exit(e) == 0 ? 0 : 2;
    }
#ifdef _OPENMP
    if (threads > 0) omp_set_num_threads(threads);
#endif
    return action();
}

// Exit status: 0 done, 1 the run failed, 2 bad use, 3 no GPU, 128 + n stopped by signal n after saving.
inline int run_program(int argc, char** argv) {
    const auto fail = [](int status, const std::string& what) {
        std::fflush(stdout);
        std::fputs(error_line(what).c_str(), stderr);
        return status;
    };
    try {
        const int status = parse_and_run(argc, argv);
        if (std::fflush(stdout) != 0 || std::ferror(stdout))
            return fail(1, "standard output cannot be written: " + errno_text(errno));
        return status;
    } catch (const BadInput& e) {
        return fail(2, e.what());
    } catch (const NoGpu& e) {
        return fail(3, e.what());
    } catch (const Interrupted& e) {
        return 128 + e.signal;
    } catch (const std::bad_alloc&) {
        return fail(1, "out of memory; use a smaller --batch or --seq");
    } catch (const fs::filesystem_error& e) {
        return fail(1, e.path1().string() + ": " + e.code().message() + "; check the path and its permissions");
    } catch (const std::exception& e) {
        return fail(1, e.what());
    }
}

}  // namespace lnfree

// One binary carries this file compiled for several instruction sets; dev/cpu/dispatch.cpp then has main() and calls the
// best of them by the name in LNFREE_ENTRY. Tests and the CUDA engine define LNFREE_NO_MAIN.
#if defined(LNFREE_ENTRY)
extern "C" int LNFREE_ENTRY(int argc, char** argv) {
    return lnfree::run_program(argc, argv);
}
#elif !defined(LNFREE_NO_MAIN)
int main(int argc, char** argv) {
    return lnfree::run_program(argc, argv);
}
#endif
#endif  // LNFREE_METHOD_ONLY

#endif  // LNFREE_TRAIN_GPT2_LNFREE_CPP
