// How the flags of a run and its preset become the values that it runs with, and what must hold of these.
#include <algorithm>
#include <cmath>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "dev/method.h"
#include "dev/run/settings.h"

namespace lnfree {

// ---------------------------------------------------------------------------------------------------------------------
// Presets and flags

namespace {

// Up to 100M parameters a fit by Kaplan et al. 2020 (arXiv 2001.08361, appendix D.6; 6.4e-4 for GPT-2 Small) of the rate
// that GPT-2s of this size are trained with from scratch, which is what the paper weans GPT-2 Small with; from there on
// the paper's. With the paper's 6e-4 a small model needs several times as many steps.
double learning_rate_by_size(int64_t parameters) {
    if (parameters > 1'000'000'000) return 1e-4;
    if (parameters > 500'000'000) return 3e-4;
    if (parameters > 100'000'000) return 6e-4;
    return 0.003239 - 0.0001395 * std::log(static_cast<double>(parameters));
}

// With a teacher the main gradient begins at 0, and AdamW would make whole steps of the auxiliary loss alone: with the
// paper's weight a settled model's KL is 0.018 before anything is removed, with a tenth 0.005.
constexpr double kShareOfAuxWeight = 0.1;

// A teacher says of every token how likely all others are, so that fewer of them make as good a gradient: four updates of a
// quarter of the tokens each, at half the rate (Adam's goes with the root of the batch: Malladi et al. 2022, arXiv
// 2205.10287), end at 0.5 to 0.8 of the KL that one update ends at (scripts/README.md). Sixteen gain little more.
constexpr int64_t kUpdatesWithTeacher = 4;

bool makes_small_steps(const Settings& s, const RunSettings& given) {
    return s.preset == "auto" && (given.has("distill") ? given.values.distill > 0 : s.removes);
}

// Sizes that fit any model (protocol.md 4): tokens per step grow with the model, 0.5M from 100M parameters on as in the
// paper; a micro-batch stays within 8,192 positions so that activations fit a laptop, and small enough that each of
// `processes` has one. `paper`: its learning rates also for
// models smaller than its own.
void set_sizes_by_model(Settings& s, int64_t parameters, const RunSettings& given, int64_t processes) {
    int64_t tokens_per_step = parameters >= 100'000'000 ? 524'288 : parameters >= 10'000'000 ? 65'536 : 4'096;
    const int64_t updates = makes_small_steps(s, given) ? kUpdatesWithTeacher : 1;
    tokens_per_step /= updates;
    s.steps *= updates;
    s.batch = given.has("batch") ? given.values.batch
                                 : std::max<int64_t>(1, std::min<int64_t>(tokens_per_step / processes, 8'192) / s.seq);
    s.grad_accum = std::max<int64_t>(1, tokens_per_step / (s.batch * s.seq));
    const int64_t size = s.preset == "auto" ? parameters : std::max<int64_t>(parameters, 124'439'808);
    const bool up_to_100M = size <= 100'000'000, up_to_500M = size <= 500'000'000, up_to_1B = size <= 1'000'000'000;
    s.lr = learning_rate_by_size(size) / std::sqrt(static_cast<double>(updates));
    s.min_lr = up_to_100M ? s.lr / 10 : up_to_500M ? 3e-4 : up_to_1B ? 4e-5 : 2e-5;
    s.aux_weight = (up_to_500M ? 0.1 : up_to_1B ? 0.03 : 0.01) * (s.preset == "auto" ? kShareOfAuxWeight : 1);
    s.sigma_ema = up_to_500M ? 0.0 : 0.19;
    s.distill = s.preset == "auto" && s.removes ? 1 : 0;
}

constexpr double kGrowthWeight = 0.1;  // of the auxiliary loss that makes position 0 grow, for experiments

// The presets that are fitted to the model and the length of the run; the others are the papers' own (method.h).
bool fits_any_model(const std::string& preset) {
    return preset == "auto" || preset == "paper" || preset == "tapernorm";
}

void require_preset(const std::string& name) {
    if (fits_any_model(name) || find_preset(name) != nullptr) return;
    const std::string all = "use auto, paper, tapernorm, small, medium, large, xl or precursor";
    if (name == "adaptive")
        throw BadInput(
            "--preset adaptive is no more, and a run that began with it cannot go on: auto, the default, took its "
            "place, "
            "with the original as teacher; " +
            all);
    throw BadInput("--preset " + name + ": there is no such preset; " + all);
}

// What the flags named replaces what presets and derivations say. All rows of the table, so that none can be forgotten;
// the preset alone has been resolved.
void take_given(Settings& s, const RunSettings& given) {
    RunSettings from = given, to;
    to.values = s;
    for (const Setting& row : setting_table())
        if (row.recorded && given.has(row.key) && std::string(row.key) != "preset")
            std::visit([&](auto field) { field(to) = field(from); }, row.field);
    s = to.values;
}

int64_t steps_asked_for(const Settings& s, const RunSettings& given) {
    if (given.has("steps") && given.has("tokens"))
        throw BadInput("--steps and --tokens both set the length of the run; give one");
    if (given.has("tokens")) return std::max<int64_t>(1, given.tokens / s.tokens_per_step());
    return given.has("steps") ? given.values.steps : s.steps;
}

// Ours, beside steps / 20: Adam's moments know little before ten steps, and in a short run what they do wrong is not made
// good again.
int64_t fitted_warmup(const Settings& s) {
    const int64_t fitted = s.steps / 20;
    return s.preset == "auto" ? std::max(fitted, std::min<int64_t>(10, s.steps / 4)) : fitted;
}

// All sites set out together after the warm-up, and are FakeLN `by` that step.
void remove_together(Settings& s, int64_t by) {
    s.start_mlp = static_cast<double>(s.warmup);
    s.gap_mlp = s.gap_qk = s.gap_v = 0;
    s.experiment.gradual = std::max<int64_t>(1, by - s.warmup);
}

// Each group of sites begins where the one before it ends, unless a flag says when.
void take_starts(Settings& s, const RunSettings& given, int L) {
    if (!given.has("start_qk")) s.start_qk = s.start_mlp + L * s.gap_mlp;
    if (!given.has("start_v")) s.start_v = s.start_qk + L * s.gap_qk;
    if (!given.has("start_f")) s.start_f = s.start_v + L * s.gap_v;
}

// The precursor's special cases go 20 and 120 steps after f, and the run ends 20 steps after the last (protocol.md 8).
void derive_releases(Settings& s, const RunSettings& given) {
    Experiments& e = s.experiment;
    if (!e.own_position0) return;
    e.release_end_of_text = s.start_f + 20;
    if (!given.has("release_position0")) e.release_position0 = std::trunc(e.release_end_of_text) + 100;
    s.stop = static_cast<int64_t>(e.release_position0) + e.release_steps + 20;
}

void derive_growth(Settings& s, const RunSettings& given) {
    if (!given.has("plant_step")) s.experiment.plant_step = 1;
    if (s.experiment.grow_position0 == 1) return;
    s.aux_weight = kGrowthWeight;
    s.experiment.aux_relative = s.experiment.aux_everywhere = true;
}

}  // namespace

Settings resolve_settings(const RunSettings& given, bool removes, int L, int64_t n_ctx, int64_t parameters,
                          int64_t processes) {
    Settings s;
    s.preset = given.has("preset") ? given.values.preset : "auto";
    require_preset(s.preset);
    s.removes = removes;
    s.seq = n_ctx;
    s.precision = backend().training_precision;
    take_given(s, given);
    if (s.seq < 1 || s.seq > n_ctx)
        throw BadInput("--seq " + std::to_string(s.seq) + ": the model reads 1 to " + std::to_string(n_ctx) +
                       " positions (n_ctx); choose --seq within that");

    const bool fits_any = fits_any_model(s.preset);
    if (fits_any)
        set_sizes_by_model(s, parameters, given, processes);
    else
        apply_preset(s, *find_preset(s.preset));
    take_given(s, given);
    if (s.batch < 1 || s.grad_accum < 1) throw BadInput("--batch and --grad-accum must be at least 1");

    s.steps = steps_asked_for(s, given);
    if (fits_any && !given.has("warmup")) s.warmup = fitted_warmup(s);
    if (fits_any) fit_schedule(s, L);
    if (s.preset == "auto") remove_together(s, s.steps / 4);
    if (s.preset == "tapernorm") remove_together(s, s.steps / 2);
    s.experiment.taper = s.preset == "tapernorm";
    s.min_lr = std::min(s.min_lr, s.lr);
    take_given(s, given);
    take_starts(s, given, L);
    derive_releases(s, given);
    if (!given.has("stop")) s.stop = fits_any ? s.steps : std::min(s.stop, s.steps);
    if (!removes) s.aux_weight = 0;
    derive_growth(s, given);
    take_given(s, given);
    check_settings(s, L);
    if (given.has("teacher") && !(s.distill > 0))
        throw BadInput("--teacher " + given.teacher + ": nothing would be learned from it; give --distill as well");
    return s;
}

// A model without any structure yet is the easiest to throw off: hence the longer warm-up.
Settings pretraining_settings(Settings s, const RunSettings& given, int L, int64_t parameters) {
    s.preset = "pretrain";
    s.lr = parameters < 10'000'000 ? 1e-3 : 6e-4;
    s.warmup = s.steps / 10;
    s.beta2 = 0.95;
    s.weight_decay = 0.1;
    take_given(s, given);
    if (!given.has("min_lr")) s.min_lr = s.lr / 10;
    if (!given.has("plant_step")) s.experiment.plant_step = std::max<int64_t>(1, s.steps - 300);
    check_settings(s, L);
    return s;
}

// ---------------------------------------------------------------------------------------------------------------------
// Checks

namespace {

// What the table's own bounds say, for the rows whose lower bound is 0. (Upper ones belong to the command line: a
// checkpoint may say more.) Starts and gaps count only where they are used.
void require_not_negative(const Settings& s) {
    RunSettings all;
    all.values = s;
    for (const Setting& row : setting_table()) {
        const std::string key = row.key;
        const auto number = std::get_if<double& (*)(RunSettings&)>(&row.field);
        const bool of_schedule = key.rfind("start_", 0) == 0 || key.rfind("gap_", 0) == 0;
        if (!row.recorded || number == nullptr || row.low != 0 || (of_schedule && !s.removes)) continue;
        const double value = (*number)(all);
        if (!(value >= 0))
            throw BadInput((row.flag != nullptr ? std::string(row.flag) : key) + " " + format_general(value) +
                           ": must not be negative");
    }
}

void require_length(const Settings& s) {
    const std::string steps = std::to_string(s.steps);
    if (s.steps < 1) throw BadInput("--steps " + steps + ": at least 1 step is needed");
    if (s.stop < 1 || s.stop > s.steps)
        throw BadInput("--stop " + std::to_string(s.stop) + ": must lie between 1 and --steps (" + steps + ")");
    const double tokens = static_cast<double>(s.steps) * static_cast<double>(s.batch) * static_cast<double>(s.seq) *
                          static_cast<double>(s.grad_accum);
    if (tokens > 1e15)
        throw BadInput("--steps " + steps + ": the run would take more than 1e15 tokens; give fewer steps");
    if (s.warmup < 0 || s.warmup > s.steps)
        throw BadInput("--warmup " + std::to_string(s.warmup) + ": must lie between 0 and --steps (" + steps + ")");
}

// When the last site goes, or the last of the precursor's special cases.
double last_removal(const Settings& s, int L) {
    const Experiments& e = s.experiment;
    const double last_site = std::max({s.start_mlp + (L - 1) * s.gap_mlp, s.start_qk + (L - 1) * s.gap_qk,
                                       s.start_v + (L - 1) * s.gap_v, s.start_f}) +
                             static_cast<double>(std::max<int64_t>(0, e.gradual - 1));
    if (!e.own_position0) return std::floor(last_site);
    const double released = e.release_position0 + static_cast<double>(e.release_steps);
    return std::floor(std::max({last_site, e.release_end_of_text, released}));
}

void require_schedule_within_run(const Settings& s, int L) {
    const double last = last_removal(s, L);
    if (last >= static_cast<double>(s.stop))
        throw BadInput("the last removal is due at step " + format_general(last) + " but the run ends before step " +
                       std::to_string(s.stop) + "; give more --steps, or smaller --gap-mlp, --gap-qk, --gap-v");
}

}  // namespace

void check_settings(const Settings& s, int L) {
    if (s.preset != "pretrain") require_preset(s.preset);  // a checkpoint's may be one that is no more
    if (s.precision != "fp32" && s.precision != "bf16")
        throw BadInput("--precision " + quoted_name(s.precision) + ": use fp32 or bf16");
    require_length(s);
    if (!(s.lr > 0) || !(s.min_lr >= 0) || s.min_lr > s.lr)
        throw BadInput("--lr " + format_general(s.lr) + " --min-lr " + format_general(s.min_lr) +
                       ": need lr > 0 and 0 <= min-lr <= lr");
    if (!(s.sigma_ema >= 0 && s.sigma_ema < 1))
        throw BadInput("--sigma-ema " + format_general(s.sigma_ema) + ": must be at least 0 and below 1");
    if (!(s.distill >= 0 && s.distill <= 1))
        throw BadInput("--distill " + format_general(s.distill) + ": must lie between 0 and 1");
    require_not_negative(s);
    if (s.removes) require_schedule_within_run(s, L);
}

}  // namespace lnfree
