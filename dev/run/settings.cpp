#include "dev/run/settings.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "data/error.h"
#include "data/files.h"

namespace lnfree {

// ---------------------------------------------------------------------------------------------------------------------
// The table

namespace {

constexpr double kLowest = std::numeric_limits<double>::lowest(), kHighest = std::numeric_limits<double>::max();
constexpr double kAboveZero = std::numeric_limits<double>::min();
constexpr double kMostSteps = 1e15;  // keeps products of a few such numbers within 64 bits
constexpr double kMostSeeds = 9223372036854775807.0;
constexpr unsigned kFromModel = kRemove | kFinetune, kKeepsNorms = kPretrain | kFinetune;
// What a row is, for its two bools: part of Settings; a choice at the run's start; free to change with --resume.
constexpr bool kTrajectory = true, kFree = false, kRecorded = true, kAside = false;
constexpr bool kCudaOnly = true;

std::vector<Setting> make_table() {
    const std::vector<const char*> attentions = {"flash", "plain", "cudnn"};
    return {
        // ----- what the run works on
        {"model", "--model", [](RunSettings& s) -> std::string& { return s.model; }, 0, 0, kFromModel, kTrajectory,
         kAside, "", "model folder to start from"},
        {"out", "--out", [](RunSettings& s) -> std::string& { return s.out; }, 0, 0, kAnyRun, kFree, kAside, "",
         "output folder: log.jsonl, checkpoints, and at the end the model"},
        {"data", "--data", [](RunSettings& s) -> std::vector<std::string>& { return s.data; }, 0, 0, kAnyRun, kFree,
         kAside, "",
         "training shards: paths or globs, .npy, raw:PATH for headerless uint16 (raw32:, raw64:); self: text that the "
         "model writes for itself; with --resume: where they lie now"},
        {"val", "--val", [](RunSettings& s) -> std::vector<std::string>& { return s.val; }, 0, 0, kAnyRun, kFree,
         kAside, "with --data self: more of it", "validation shards; with --resume: where they lie now"},
        {"tokenizer", "--tokenizer", [](RunSettings& s) -> std::string& { return s.tokenizer; }, 0, 0, kPretrain,
         kTrajectory, kAside, "from PREFIX.json",
         "byte, or a folder with tokenizer files, to go into the model folder"},

        // ----- how long
        {"preset", "--preset", [](RunSettings& s) -> std::string& { return s.values.preset; }, 0, 0, kFromModel,
         kTrajectory, kRecorded, "",
         "auto (the original as teacher, all divisors together), paper (its schedule, fitted to the model), tapernorm "
         "(2602.10408), or the paper's own small, medium, large, xl, precursor"},
        {"steps", "--steps", [](RunSettings& s) -> int64_t& { return s.values.steps; }, 0, kMostSteps, kAnyRun,
         kTrajectory, kRecorded, "300; auto, with a teacher: 1,200 smaller ones",
         "horizon of the learning rate, and the end of the run unless --stop is given"},
        {"stop", "--stop", [](RunSettings& s) -> int64_t& { return s.values.stop; }, 0, kMostSteps, kAnyRun,
         kTrajectory, kRecorded, "--steps; the paper's presets stop where the published models did",
         "end the run before this step"},
        {"tokens", "--tokens", [](RunSettings& s) -> int64_t& { return s.tokens; }, 1, kMostSteps, kAnyRun, kTrajectory,
         kAside, "not given", "choose --steps so that the run takes about this many tokens"},
        {"hours", "--hours", [](RunSettings& s) -> double& { return s.hours; }, kAboveZero, kHighest, kAnyRun,
         kTrajectory, kAside, "not given",
         "choose --steps so that the run takes about so long, by this machine's speed"},

        // ----- what a step is
        {"batch", "--batch", [](RunSettings& s) -> int64_t& { return s.values.batch; }, 1, 65536, kAnyRun, kTrajectory,
         kRecorded, "--grad-accum's tokens, 8,192 at most", "sequences per micro-batch"},
        {"seq", "--seq", [](RunSettings& s) -> int64_t& { return s.values.seq; }, 0, kMostSteps, kAnyRun, kTrajectory,
         kRecorded, "n_ctx", "positions per sequence"},
        {"grad_accum", "--grad-accum", [](RunSettings& s) -> int64_t& { return s.values.grad_accum; }, 1, 65536,
         kAnyRun, kTrajectory, kRecorded,
         "4,096 tokens per step, from 10M parameters 65,536, from 100M 524,288; auto, with a teacher: a quarter",
         "micro-batches per step"},
        {"lr", "--lr", [](RunSettings& s) -> double& { return s.values.lr; }, kLowest, kHighest, kAnyRun, kTrajectory,
         kRecorded,
         "auto: 1.6e-3 at 0.1M parameters, 1e-3 at 10M, 6e-4 from 100M; paper: 6e-4; both: 3e-4 above 500M, 1e-4 "
         "above 1B",
         "highest learning rate"},
        {"min_lr", "--min-lr", [](RunSettings& s) -> double& { return s.values.min_lr; }, kLowest, kHighest, kAnyRun,
         kTrajectory, kRecorded, "auto: lr / 10 up to 100M parameters; 3e-4; 4e-5; 2e-5",
         "learning rate at the end of the horizon"},
        {"warmup", "--warmup", [](RunSettings& s) -> int64_t& { return s.values.warmup; }, 0, kMostSteps, kAnyRun,
         kTrajectory, kRecorded,
         "paper: steps / 20; auto: the same, but 10 or a quarter at least; pretrain: steps / 10",
         "steps of linear warm-up"},
        {"weight_decay", "--weight-decay", [](RunSettings& s) -> double& { return s.values.weight_decay; }, 0, kHighest,
         kAnyRun, kTrajectory, kRecorded, "0.01; pretrain 0.1", "AdamW's decay of matrices and embeddings"},
        {"beta1", nullptr, [](RunSettings& s) -> double& { return s.values.beta1; }, 0, 1, kAnyRun, kTrajectory,
         kRecorded, "", "AdamW's"},
        {"beta2", "--beta2", [](RunSettings& s) -> double& { return s.values.beta2; }, 0, 1, kAnyRun, kTrajectory,
         kRecorded, "0.999; pretrain and precursor 0.95", "AdamW's"},
        {"adam_eps", nullptr, [](RunSettings& s) -> double& { return s.values.adam_eps; }, 0, kHighest, kAnyRun,
         kTrajectory, kRecorded, "", "AdamW's"},
        {"clip", nullptr, [](RunSettings& s) -> double& { return s.values.clip; }, 0, kHighest, kAnyRun, kTrajectory,
         kRecorded, "", "norm to which the whole gradient is clipped"},

        // ----- the teacher
        {"distill", "--distill", [](RunSettings& s) -> double& { return s.values.distill; }, 0, 1, kFromModel,
         kTrajectory, kRecorded, "remove with auto: 1; else 0",
         "the teacher's share w of the loss: (1 - w) cross-entropy + w KL(teacher || model); 1: stay what it was, 0: "
         "the papers'"},
        {"teacher", "--teacher", [](RunSettings& s) -> std::string& { return s.teacher; }, 0, 0, kFromModel, kFree,
         kAside, "--model, as it is when the run begins",
         "model folder whose predictions are to be kept; with --resume: where that folder lies now"},

        // ----- what is trained
        {"lora", "--lora", [](RunSettings& s) -> int64_t& { return s.values.lora; }, 0, 65536, kFromModel, kTrajectory,
         kRecorded, "0: they are trained whole",
         "rank of the updates that weight matrices get (LoRA); norms are trained as they are, all else stays"},
        {"norm_scale",
         "--norm-scale",
         [](RunSettings& s) -> std::string& { return s.values.norm_scale; },
         0,
         0,
         kPretrain,
         kTrajectory,
         kRecorded,
         "none",
         "none, or depth: norms of block l bring 1 / sqrt(l) of what they would (LayerNorm Scaling, 2502.05795)",
         false,
         {"none", "depth"}},
        {"lora_embeddings", "--lora-embeddings", [](RunSettings& s) -> bool& { return s.values.lora_embeddings; }, 0, 0,
         kFromModel, kTrajectory, kRecorded, "", "with --lora: train the embeddings and the unembedding as well"},

        // ----- the auxiliary loss and sigma
        {"aux_weight", "--aux-weight", [](RunSettings& s) -> double& { return s.values.aux_weight; }, 0, kHighest,
         kRemove, kTrajectory, kRecorded, "paper: 0.1; 0.03; 0.01; auto: a tenth",
         "weight lambda of the auxiliary loss"},
        {"aux_everywhere", "--aux-everywhere",
         [](RunSettings& s) -> bool& { return s.values.experiment.aux_everywhere; }, 0, 0, kRemove, kTrajectory,
         kRecorded, "", "the auxiliary loss at the input of every norm, not of ln_f alone"},
        {"aux_relative", "--aux-relative", [](RunSettings& s) -> bool& { return s.values.experiment.aux_relative; }, 0,
         0, kRemove, kTrajectory, kRecorded, "", "the auxiliary loss on sigma relative to its target"},
        {"sigma_ema", "--sigma-ema", [](RunSettings& s) -> double& { return s.values.sigma_ema; }, kLowest, kHighest,
         kRemove, kTrajectory, kRecorded, "auto: 0; 0.19 above 500M parameters",
         "share m of the running sigma that survives a step"},
        {"sigma_skips_position0", "--sigma-without-position0",
         [](RunSettings& s) -> bool& { return s.values.experiment.sigma_skips_position0; }, 0, 0, kRemove, kTrajectory,
         kRecorded, "", "sigma_bar of the other positions alone"},
        {"gradual", "--gradual", [](RunSettings& s) -> int64_t& { return s.values.experiment.gradual; }, 0, kMostSteps,
         kRemove, kTrajectory, kRecorded, "auto: until a quarter of the run; tapernorm: half; else 0: at once",
         "steps that each site takes from its own sigma to sigma_bar"},
        {"taper", "--taper", [](RunSettings& s) -> bool& { return s.values.experiment.taper; }, 0, 0, kRemove,
         kTrajectory, kRecorded, "preset tapernorm: true",
         "sites take those steps as in TaperNorm: a mixture of 1 / sigma and 1 / sigma_bar, along a cosine"},
        {"keep_f", "--keep-f", [](RunSettings& s) -> bool& { return s.values.experiment.keep_f; }, 0, 0, kRemove,
         kTrajectory, kRecorded, "",
         "for experiments: ln_f stays; the result is no stock model, and attribution in it not exact"},

        // ----- when sites go
        {"removes", nullptr, [](RunSettings& s) -> bool& { return s.values.removes; }, 0, 0, kAnyRun, kTrajectory,
         kRecorded, "remove: true", "whether sites go at all"},
        {"start_mlp", "--start-mlp", [](RunSettings& s) -> double& { return s.values.start_mlp; }, 0, kHighest, kRemove,
         kTrajectory, kRecorded, "auto, paper, tapernorm: warm-up", "step at which mlp[0] goes, or sets out"},
        {"start_qk", "--start-qk", [](RunSettings& s) -> double& { return s.values.start_qk; }, 0, kHighest, kRemove,
         kTrajectory, kRecorded, "start-mlp + L gap-mlp", "step at which qk[0] goes"},
        {"start_v", "--start-v", [](RunSettings& s) -> double& { return s.values.start_v; }, 0, kHighest, kRemove,
         kTrajectory, kRecorded, "start-qk + L gap-qk", "step at which v[0] goes"},
        {"start_f", "--start-f", [](RunSettings& s) -> double& { return s.values.start_f; }, 0, kHighest, kRemove,
         kTrajectory, kRecorded, "start-v + L gap-v", "step at which f goes"},
        {"gap_mlp", "--gap-mlp", [](RunSettings& s) -> double& { return s.values.gap_mlp; }, 0, kHighest, kRemove,
         kTrajectory, kRecorded, "auto, tapernorm: 0; paper: all removals in the first 45 % of the steps",
         "steps between two mlp sites; 0: all at once"},
        {"gap_qk", "--gap-qk", [](RunSettings& s) -> double& { return s.values.gap_qk; }, 0, kHighest, kRemove,
         kTrajectory, kRecorded, "paper: as the mlp sites", "steps between two qk sites"},
        {"gap_v", "--gap-v", [](RunSettings& s) -> double& { return s.values.gap_v; }, 0, kHighest, kRemove,
         kTrajectory, kRecorded, "paper: 1.5 times the others", "steps between two v sites"},

        // ----- experiments
        {"own_position0", "--own-position0", [](RunSettings& s) -> bool& { return s.values.experiment.own_position0; },
         0, 0, kRemove, kTrajectory, kRecorded, "",
         "as 2409.13710: every sigma_bar is taken once, before training, and position 0 has one of its own until it is "
         "released"},
        {"release_end_of_text", nullptr,
         [](RunSettings& s) -> double& { return s.values.experiment.release_end_of_text; }, 0, kHighest, kRemove,
         kTrajectory, kRecorded, "20 after f", "step at which end-of-text loses its own sigma"},
        {"release_position0", "--release-position0",
         [](RunSettings& s) -> double& { return s.values.experiment.release_position0; }, 0, kMostSteps, kRemove,
         kTrajectory, kRecorded, "120 after f", "step at which that goes"},
        {"release_steps", "--release-steps",
         [](RunSettings& s) -> int64_t& { return s.values.experiment.release_steps; }, 0, kMostSteps, kRemove,
         kTrajectory, kRecorded, "0: at once", "steps that it takes to go"},
        {"shrink_steps", "--shrink-position0",
         [](RunSettings& s) -> int64_t& { return s.values.experiment.shrink_steps; }, 0, kMostSteps, kRemove,
         kTrajectory, kRecorded, "auto: a tenth of the run if position 0 stands out; else 0",
         "steps in which a long embedding of position 0 comes down to the others' length; in a rotary model what "
         "--shrink-neurons names"},
        {"shrink_neurons", "--shrink-neurons",
         [](RunSettings& s) -> std::string& { return s.values.experiment.shrink_neurons; }, 0, 0, kRemove, kTrajectory,
         kRecorded, "auto: those that make position 0 stand out in a rotary model",
         "BLOCK:NEURON, several between blanks, counted from 0: neurons of the MLPs whose outputs come down with "
         "--shrink-position0"},
        {"plant_position0", "--plant-position0",
         [](RunSettings& s) -> double& { return s.values.experiment.plant_position0; }, kLowest, kHighest, kKeepsNorms,
         kTrajectory, kRecorded, "0: not at all", "for experiments: lengthen position 0's embedding by this much"},
        {"plant_step", "--plant-step", [](RunSettings& s) -> int64_t& { return s.values.experiment.plant_step; }, 0,
         kMostSteps, kKeepsNorms, kTrajectory, kRecorded, "pretrain: 300 before the end; finetune: 1",
         "step before which that happens"},
        {"grow_position0", "--grow-position0",
         [](RunSettings& s) -> double& { return s.values.experiment.grow_position0; }, kAboveZero, kHighest,
         kKeepsNorms, kTrajectory, kRecorded, "1: as it is",
         "for experiments: let the layers make position 0 so many times as long as the others, as those of "
         "large models do"},

        {"seed", "--seed", [](RunSettings& s) -> uint64_t& { return s.values.seed; }, 0, kMostSeeds, kAnyRun,
         kTrajectory, kRecorded, "", "of the data order, and of a new model's weights"},
        {"precision", "--precision", [](RunSettings& s) -> std::string& { return s.values.precision; }, 0, 0, kAnyRun,
         kTrajectory, kRecorded, backend().training_precision,
         "fp32, or bf16: operands of matrix products rounded, weights and sums fp32"},

        // ----- what changes no number of the model
        {"eval_every", "--eval-every", [](RunSettings& s) -> int64_t& { return s.eval_every; }, 1, kMostSteps, kAnyRun,
         kFree, kAside, "a tenth of the run", "steps between validations"},
        {"val_tokens", "--val-tokens", [](RunSettings& s) -> int64_t& { return s.val_tokens; }, 0, kMostSteps, kAnyRun,
         kTrajectory, kAside, "16,384 to 131,072: eight steps' worth", "tokens per validation; 0: all"},
        {"save_every", "--save-every", [](RunSettings& s) -> int64_t& { return s.save_every; }, 0, kMostSteps, kAnyRun,
         kFree, kAside, "a tenth of the run, 50 at least", "steps between checkpoints; 0: none"},
        {"keep_checkpoints", "--keep-checkpoints", [](RunSettings& s) -> int64_t& { return s.keep_checkpoints; }, 0,
         kMostSteps, kAnyRun, kFree, kAside, "", "checkpoints to keep after a finished run"},

        // ----- what only the CUDA engine can choose
        {"recompute", "--recompute", [](RunSettings& s) -> int64_t& { return s.engine.recompute; }, 0, 2, kAnyRun,
         kFree, kAside, "the least that fits", "what backward remakes: 0 nothing, 1 GELU, 2 the norms too", kCudaOnly},
        {"stochastic_rounding", "--stochastic-rounding",
         [](RunSettings& s) -> bool& { return s.engine.stochastic_rounding; }, 0, 0, kAnyRun, kTrajectory, kAside, "",
         "round the bf16 copies of the weights up or down at random", kCudaOnly},
        {"attention", "--attention", [](RunSettings& s) -> std::string& { return s.engine.attention; }, 0, 0, kAnyRun,
         kTrajectory, kAside, "",
         "flash; plain: without tensor cores; cudnn: NVIDIA's, in bf16, if made with USE_CUDNN=1", kCudaOnly,
         attentions},
        {"products", "--products", [](RunSettings& s) -> std::string& { return s.engine.products; }, 0, 0, kAnyRun,
         kTrajectory, kAside, "none: cuBLASLt's first guesses",
         "which kernel computes which product: a file by `bench --products FILE` on this kind of GPU", kCudaOnly},
        {"cuda_graphs", "--cuda-graphs", [](RunSettings& s) -> bool& { return s.engine.cuda_graphs; }, 0, 0, kAnyRun,
         kFree, kAside, "",
         "give the GPU the kernels of a micro-batch in one call: the same bits, sooner for small models", kCudaOnly},
    };
}

}  // namespace

const std::vector<Setting>& setting_table() {
    static const std::vector<Setting> table = make_table();
    return table;
}

const Setting& setting_named(const std::string& key) {
    for (const Setting& row : setting_table())
        if (key == row.key) return row;
    throw RunFailure("internal error: no setting is named " + key);
}

// ---------------------------------------------------------------------------------------------------------------------
// Values as text

namespace {

std::string outside(const Setting& row, const std::string& text) {
    const auto bound = [](double x) {  // the largest int64 is no double
        return std::to_string(x >= kMostSeeds ? std::numeric_limits<int64_t>::max() : static_cast<int64_t>(x));
    };
    if (row.low == kAboveZero) return text + " must be above 0";
    if (row.low == 0 && row.high == kHighest) return text + " must not be negative";
    return text + " is not within " + bound(row.low) + " to " + bound(row.high);
}

// CLI11 alone takes 99999999999999999999 as the largest integer, and -1 as an unsigned one.
std::string problem_with_whole(const Setting& row, const std::string& text) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool number = error != std::errc::invalid_argument && end == text.data() + text.size();
    if (!number) return quoted_name(text) + " is not a whole number";
    const bool within = static_cast<double>(value) >= row.low && static_cast<double>(value) <= row.high;
    return error == std::errc() && within ? "" : outside(row, text);
}

// CLI11 alone takes nan and inf.
std::string problem_with_number(const Setting& row, const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0') return quoted_name(text) + " is not a number";
    if (!std::isfinite(value)) return quoted_name(text) + " is not a finite number";
    return value >= row.low && value <= row.high ? "" : outside(row, text);
}

std::string problem_with_word(const Setting& row, const std::string& text) {
    if (row.choices.empty()) return "";
    std::string all;
    for (const char* choice : row.choices) {
        if (text == choice) return "";
        all += std::string(all.empty() ? "" : ", ") + choice;
    }
    return quoted_name(text) + " is none of " + all;
}

bool is_yes(const std::string& text) {
    return text.empty() || text == "true" || text == "1";
}

void put(int64_t& field, const std::string& text) {
    field = std::strtoll(text.c_str(), nullptr, 10);
}
void put(uint64_t& field, const std::string& text) {
    field = std::strtoull(text.c_str(), nullptr, 10);
}
void put(double& field, const std::string& text) {
    field = std::strtod(text.c_str(), nullptr);
}
void put(bool& field, const std::string& text) {
    field = is_yes(text);
}
void put(std::string& field, const std::string& text) {
    field = text;
}
void put(std::vector<std::string>& field, const std::string& text) {
    field = {text};
}

}  // namespace

std::string problem_with(const Setting& row, const std::string& text) {
    RunSettings any;
    return std::visit(
        [&](auto field) -> std::string {
            using T = std::remove_reference_t<decltype(field(any))>;
            if constexpr (std::is_same_v<T, bool>) {
                return is_yes(text) || text == "false" || text == "0" ? ""
                                                                      : quoted_name(text) + " is not true or false";
            } else if constexpr (std::is_integral_v<T>) {
                return problem_with_whole(row, text);
            } else if constexpr (std::is_floating_point_v<T>) {
                return problem_with_number(row, text);
            } else {
                return problem_with_word(row, text);
            }
        },
        row.field);
}

void set(RunSettings& s, const std::string& key, const std::string& value) {
    const Setting& row = setting_named(key);
    const std::string problem = problem_with(row, value);
    if (!problem.empty()) throw BadInput(std::string(row.flag != nullptr ? row.flag : row.key) + ": " + problem);
    std::visit([&](auto field) { put(field(s), value); }, row.field);
    s.given.insert(key);
}

}  // namespace lnfree
