// A removal one step at a time, so that two engines can go through it side by side: what the training loop (section 5 of
// train_gpt2_lnfree.cpp) and dev/run/experiments.h make of a step, without data, files and log.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../engine.h"
#include "../method.h"
#include "../run/experiments.h"

namespace lnfree::cuda {

// What comes before the forward pass of a step: the events that are due, and empty sums.
inline std::vector<Event> begin_step(Engine& model, const Settings& s, int64_t step, const StepBatches& batches) {
    if (step == 0) measure_own_sigmas(model, s, batches);
    std::vector<Event> events = advance_removals(s, model.sites, step, sites_due(s, model.sites, step));
    if (step == 0)
        for (Site& site : model.sites.all) site.running = NAN;  // the running value starts with step 0's training
    model.clear_sigma_sums();
    model.zero_gradients();
    return events;
}

// What comes after the micro-batches. Returns the gradient's norm before clipping.
inline double finish_step(Engine& model, const Settings& s, int64_t step) {
    for (size_t i = 0; i < model.sites.all.size(); i++)
        update_running_sigma(model.sites.all[i], model.sigma_sums[i].mean(s.experiment.sigma_skips_position0),
                             s.sigma_ema);
    shrink_position0(model, s, step);
    const double norm = model.gradient_norm();
    AdamWStep adamw;
    adamw.lr = learning_rate(s, step);
    adamw.beta1 = s.beta1;
    adamw.beta2 = s.beta2;
    adamw.eps = s.adam_eps;
    adamw.weight_decay = s.weight_decay;
    adamw.gradient_scale = clip_scale(norm, s.clip);
    adamw.seed = s.seed;
    model.update(adamw);
    return norm;
}

// The losses of a step's micro-batches, whose gradients are added up. teacher: null where s.distill is 0.
inline BatchLoss step_loss(Engine& model, const Settings& s, const StepBatches& batches, Engine* teacher = nullptr) {
    BatchLoss mean;
    for (size_t a = 0; a < batches.inputs.size(); a++) {
        const BatchLoss loss = model.forward_backward(batches.inputs[a].data(), batches.targets[a].data(), s.batch,
                                                      s.seq, s.aux(), s.grad_accum, {s.distill, teacher});
        mean.loss += loss.loss / static_cast<double>(s.grad_accum);
        mean.aux += loss.aux / static_cast<double>(s.grad_accum);
        mean.kl += loss.kl / static_cast<double>(s.grad_accum);
    }
    return mean;
}

// |ours - reference| / |reference| of every tensor; the largest. Left out: biases of keys' numbers that do not turn with the
// position, which do not act on the loss, so that their gradients are rounding alone and they drift with it.
inline double largest_tensor_error(const ModelConfig& c, const float* ours, const float* reference) {
    double largest = 0;
    for (const Tensor& t : tensor_table(c)) {
        const bool has_key_bias = t.name.find("c_attn.bias") != std::string::npos;
        double off = 0, size = 0;
        for (int64_t i = 0; i < t.size; i++) {
            const int64_t of_keys = i - c.heads_width();
            if (has_key_bias && of_keys >= 0 && i < c.qk_width() && of_keys % c.head_size() >= c.rotary) continue;
            const double a = static_cast<double>(ours[t.offset + i]), b = static_cast<double>(reference[t.offset + i]);
            off += (a - b) * (a - b);
            size += b * b;
        }
        const double error = off == 0 ? 0 : std::sqrt(off / size);
        if (!(error <= largest)) largest = std::isnan(error) ? INFINITY : error;
    }
    return largest;
}

}  // namespace lnfree::cuda
