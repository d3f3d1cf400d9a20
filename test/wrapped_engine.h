// The reference engine with something done to it: a test overrides what it wants to watch or to spoil.
//
// A run reaches the members that Engine declares (weights, moments, sites) from outside, so they belong to the wrapper
// and are lent to the engine inside for the time of each call. What they point to stays where it is.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "dev/engine.h"

namespace lnfree {

class WrappedEngine : public Engine {
  public:
    explicit WrappedEngine(const ModelConfig& c) : Engine(c), inside_(make_reference(c)) {
        std::swap(params, inside_->params);  // the engine inside knows where these are
    }

    void prepare_training(int64_t B, int64_t T) override { lent()->prepare_training(B, T); }
    void prepare_optimiser() override { lent()->prepare_optimiser(); }
    void zero_gradients() override { lent()->zero_gradients(); }
    BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                               const AuxSettings& aux, int64_t grad_accum, const Distillation& distillation) override {
        return lent()->forward_backward(inputs, targets, B, T, aux, grad_accum, distillation);
    }
    double gradient_norm() override { return lent()->gradient_norm(); }
    void update(const AdamWStep& step) override { lent()->update(step); }
    void resume(uint64_t seed) override { lent()->resume(seed); }
    void edit_parameters(Slice slice, double factor, const real* added) override {
        lent()->edit_parameters(slice, factor, added);
    }
    void fetch_parameters() override { lent()->fetch_parameters(); }
    void fetch_moments() override { lent()->fetch_moments(); }

    void measure_sigmas(const int32_t* inputs, int64_t B, int64_t T) override { lent()->measure_sigmas(inputs, B, T); }
    const real* token_losses(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) override {
        return lent()->token_losses(inputs, targets, B, T);
    }
    Comparison compare(Engine& original, const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) override {
        return lent()->compare(original, inputs, targets, B, T);
    }
    void logits(real* out, const int32_t* inputs, int64_t B, int64_t T, int64_t from) override {
        lent()->logits(out, inputs, B, T, from);
    }

    void start_decoding(int64_t B) override { lent()->start_decoding(B); }
    void decode(real* out, const int32_t* tokens, int64_t B, int64_t T) override { lent()->decode(out, tokens, B, T); }

    const Weights& weights() const override { return inside_->weights(); }
    void trace(const int32_t* inputs, int64_t B, int64_t T, const Probe& probe, bool keep) override {
        lent()->trace(inputs, B, T, probe, keep);
    }
    void trace_from(int64_t layer, const real* residual, const int32_t* inputs, int64_t B, int64_t T) override {
        lent()->trace_from(layer, residual, inputs, B, T);
    }
    void final_logits(real* out, int64_t first, int64_t count) override { lent()->final_logits(out, first, count); }
    void score(real* losses, uint8_t* likeliest, const int32_t* inputs, int64_t B, int64_t T,
               const std::vector<int64_t>& rows, const int32_t* targets) override {
        lent()->score(losses, likeliest, inputs, B, T, rows, targets);
    }
    const real* final_residual() const override { return inside_->final_residual(); }
    const real* final_normed() const override { return inside_->final_normed(); }
    const real* final_means() const override { return inside_->final_means(); }
    const real* final_divisors(const int32_t* inputs) override { return lent()->final_divisors(inputs); }
    const real* sigmas_at(const Site& site) const override { return inside_->sigmas_at(site); }
    void stream_gradients(const real* dnormed, const int32_t* inputs,
                          const std::function<void(int64_t layer, const real* gradient)>& see) override {
        lent()->stream_gradients(dnormed, inputs, see);
    }
    void unembed_residual(real* out, const real* residual, int64_t n) override {
        lent()->unembed_residual(out, residual, n);
    }

  private:
    void swap_members() {
        std::swap(config, inside_->config);
        std::swap(sites, inside_->sites);
        std::swap(tensors, inside_->tensors);
        std::swap(low_rank, inside_->low_rank);
        std::swap(params, inside_->params);
        std::swap(grads, inside_->grads);
        std::swap(m, inside_->m);
        std::swap(v, inside_->v);
        std::swap(updates, inside_->updates);
        std::swap(sigma_sums, inside_->sigma_sums);
    }

    // The engine inside, with all that is the wrapper's, until the end of the statement.
    class Lent {
      public:
        explicit Lent(WrappedEngine& owner) : owner_(owner) { owner_.swap_members(); }
        Lent(const Lent&) = delete;
        Lent& operator=(const Lent&) = delete;
        ~Lent() { owner_.swap_members(); }
        Engine* operator->() { return owner_.inside_.get(); }

      private:
        WrappedEngine& owner_;
    };
    Lent lent() { return Lent(*this); }

    std::unique_ptr<Engine> inside_;
};

// While it lives, runs get their engines from `make`.
class OtherBackend {
  public:
    explicit OtherBackend(std::unique_ptr<Engine> (*make)(const ModelConfig&)) : kept_(backend().make) {
        backend().make = make;
    }
    OtherBackend(const OtherBackend&) = delete;
    OtherBackend& operator=(const OtherBackend&) = delete;
    ~OtherBackend() { backend().make = kept_; }

  private:
    std::unique_ptr<Engine> (*kept_)(const ModelConfig&);
};

}  // namespace lnfree
