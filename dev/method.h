// What train_gpt2_lnfree.cpp, the method itself, offers to the rest of the program: the schedule, the training loop and its
// seams, the exact linear forms. Everything is explained there, under the section that is named here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine.h"

namespace lnfree {

// ----- section 1: the method

// The paper's presets (Tables 3 and 4) and the precursor's, for T = 1024; starts follow from start_mlp and the gaps.
struct Preset {
    const char* name;
    int64_t batch, grad_accum, steps, stop, warmup;
    double lr, min_lr, aux_weight, sigma_ema, start_mlp, gap_mlp, gap_qk, gap_v;
};
const std::vector<Preset>& presets();
// Null if there is none of that name.
const Preset* find_preset(const std::string& name);
void apply_preset(Settings& s, const Preset& preset);

// The paper's schedule fitted to any model and length: start_mlp and the gaps from steps and warmup, for L layers.
void fit_schedule(Settings& s, int L);

// Each group of sites begins where the one before it ends: start_qk, start_v and start_f from start_mlp and the gaps.
void derive_starts(Settings& s, int L);

// When each site goes, in the order of Sites::all: at the start of step floor(start + l * gap).
std::vector<Removal> removal_schedule(const Settings& s, int L);

// sigma of one step, averaged over its positions, folded into the running value with share m of the old one.
void update_running_sigma(Site& site, double sigma_avg, double m);

// Freezes sigma_bar at the running value; FakeLN takes over. Returns what happened.
Event remove_site(Sites& sites, int site, int64_t step);

// ----- section 4: the optimiser

double learning_rate(const Settings& s, int64_t step);
// What a gradient of this norm is multiplied by.
double clip_scale(double norm, double clip);

// ----- section 5: the loop

// What a step came to.
struct StepReport {
    int64_t step = 0;
    BatchLoss loss;
    double gradient_norm = 0, lr = 0;
    std::vector<Event> removed;  // by the schedule, at this step's start
};

// Where the loop can be watched and bent: dev/run checks, logs, saves and experiments here. A function that throws ends
// the run; nothing of the step in progress has then touched the weights, except in after_step.
class Seams {
  public:
    virtual ~Seams() = default;
    // The data of this step.
    virtual void read_batches(int64_t step, StepBatches& batches) = 0;
    // Before removals that are due and the forward pass.
    virtual void before_step(int64_t step, const StepBatches& batches) { (void)step, (void)batches; }
    // After each micro-batch of this process.
    virtual void after_micro_batch(int64_t step, const BatchLoss& loss) { (void)step, (void)loss; }
    // The gradient is there, the weights are as they were.
    virtual void after_loss(const StepReport& report) { (void)report; }
    virtual void after_step(const StepReport& report) { (void)report; }
};

// Runs steps first .. s.stop - 1. `s` is read anew at every step: a seam may shorten the run or lower its rate. The teacher
// is there if s.distill asks for one. Several processes (processes.h) call it alike, each with all of the data.
void train(Engine& model, const Settings& s, const std::vector<Removal>& schedule, Seams& seams, int64_t first,
           Engine* teacher = nullptr);

// One forward pass over a step's micro-batches before anything is trained: running becomes this batch's average, position
// 0 left out if asked. sigma_sums hold the parts afterwards.
void measure_sigmas_before_training(Engine& model, const StepBatches& batches, int64_t B, int64_t T,
                                    bool without_position0);

// ----- section 6: the two exact linear forms

// A tensor that is made while it is written, so that no second copy of the model is ever in memory.
struct TensorRecipe {
    std::string name;
    std::vector<uint64_t> shape;
    std::function<void(real* out)> fill;
};

// A model as it is, names with this prefix.
std::vector<TensorRecipe> plain_recipes(const Engine& model);
// Hugging Face form: a stock GPT2LMHeadModel; a model that never lost a site is simply itself. Throws BadInput for a model
// half-way, and for a folded one. `config` is what describes it.
std::vector<TensorRecipe> hugging_face_recipes(Engine& model, ModelConfig& config);
// Folded form: no norm at all. Throws BadInput for a model half-way.
std::vector<TensorRecipe> folded_recipes(Engine& model, ModelConfig& config);
// The other way round: weights read from a folder in Hugging Face form whose epsilon freezes every LayerNorm become a model
// of FakeLN sites; `recorded` are the sites that lnfree.json lists, null if it does not.
void adopt_frozen_layernorms(Engine& model, const Sites* recorded);

}  // namespace lnfree
