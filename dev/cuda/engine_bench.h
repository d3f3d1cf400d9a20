// `train_gpt2_lnfree_cuda bench`: where the time of a training step goes.
//
// What `bench` measures, in bf16: what the GPU can do at best (a copy, large products by cuBLASLt), then every kernel
// of a training step beside that, then whole steps before, in the middle of and after a removal. A kernel is timed with
// empty caches, so it reads its operands from memory as the floor assumes; in a step some of them are still in L2.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "../../data/console.h"
#include "../../data/files.h"
#include "../../data/random.h"
#include "../engine.h"
#include "cuda_engine.h"
#include "kernels.h"
#include "operands.h"
#include "removal_steps.h"
#include "step.h"
#include "timing.h"

namespace lnfree {
namespace cuda {

// Dense bf16 with float sums, TFLOP/s. A100, H100, H200: NVIDIA's product pages (nvidia.com/en-us/data-center/a100, h100,
// h200), which state twice as much "with sparsity"; the SXM parts' figure is 528 tensor cores x 1024 operations x 1.83 GHz
// as well. RTX 4090: 512 tensor cores x 128 operations x 2.52 GHz, as in the Ada architecture's white paper. Other GPUs
// have no entry, and the H200 NVL's is 0, not known, because no figure for it could be checked.
struct VendorPeak {
    const char* in_name;
    double tflops;
};
constexpr VendorPeak kVendorPeaks[] = {{" H200 NVL", 0},     {" H200", kDataSheets[1].tflops}, {"H100 NVL", 835.5},
                                       {"H100 PCIe", 756.5}, {"H100", kDataSheets[0].tflops},  {"A100", 312},
                                       {"RTX 4090", 165.2}};

// 0: not known. The first entry that the name contains counts; laptops and variants of the 4090 are other chips.
inline double vendor_peak_tflops(const std::string& name) {
    for (const VendorPeak& peak : kVendorPeaks) {
        const size_t at = name.find(peak.in_name);
        if (at == std::string::npos) continue;
        const std::string rest = name.substr(at + std::string(peak.in_name).size());
        const bool is_other_chip = std::string(peak.in_name) == "RTX 4090" && !rest.empty();
        return is_other_chip ? 0 : peak.tflops;
    }
    return 0;
}

// The clock of this program: every figure gets `budget` seconds, at least five repetitions and at most a hundred.
class BenchClock {
  public:
    explicit BenchClock(double budget) : budget_(budget) {}
    double seconds_of(const std::function<void()>& run, bool empty_caches = true) {
        return clock_.seconds_of(run, {1, 5, 100, budget_}, empty_caches);
    }

  private:
    double budget_;
    DeviceClock clock_;
};

// Random values on the device, the same 2^18 again and again: what a product of zeros takes would be no measure.
template <class T>
class MadeUp : public DeviceArray<T> {
  public:
    explicit MadeUp(int64_t n, double mean = 0) {
        this->allocate(n);
        const int64_t period = std::min<int64_t>(n, int64_t{1} << 18);
        SplitMix64 random(static_cast<uint64_t>(n));
        std::vector<T> values(static_cast<size_t>(period));
        for (T& value : values) value = from_float<T>(static_cast<float>(mean + 0.1 * random.normal()));
        this->upload(values.data(), period, nullptr);
        for (int64_t have = period; have < n; have *= 2) {
            const int64_t more = std::min(have, n - have);
            require_cuda(cudaMemcpyAsync(this->data() + have, this->data(), static_cast<size_t>(more) * sizeof(T),
                                         cudaMemcpyDeviceToDevice, nullptr),
                         "copying within the GPU");
        }
    }
};

struct Ceilings {
    double copy = 0;                         // bytes/s, read and written
    double bf16_flops = 0, float_flops = 0;  // FLOP/s of products

    explicit Ceilings(BenchClock& clock) {
        const int64_t n = kEmulated ? 1000 : int64_t{1} << 27;
        {
            const MadeUp<float> from(n), to(n);
            const size_t bytes = static_cast<size_t>(n) * sizeof(float);
            copy = 2.0 * static_cast<double>(bytes) / clock.seconds_of([&] {
                require_cuda(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, nullptr),
                             "a copy");
            });
        }
        bf16_flops = product_flops<bf16>(clock);
        float_flops = product_flops<float>(clock);
    }

  private:
    template <class X>
    static double product_flops(BenchClock& clock) {
        const int64_t n = kEmulated ? 32 : 8192;
        const MadeUp<X> a(n * n), b(n * n), c(n * n);
        MatrixProducts products(false);
        const double seconds = clock.seconds_of(
            [&] {
                products.multiply(Transpose::No, Transpose::No, n, n, n, a.data(), n, b.data(), n, c.data(), n, false,
                                  Epilogue<X>(), nullptr);
            },
            false);
        return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) / seconds;
    }
};

// An operation of a training step: what it must do is step.h's, of one call and without the copies to and from the device.
struct TimedOp {
    std::string name;
    double calls;  // in a training step
    double flops, bytes, seconds;
};

// Times every operation of a training step at the sizes of B sequences of T positions, while all of a layer's sites
// agree.
class OpTimes {
  public:
    typedef bf16 X;
    std::vector<TimedOp> ops;

    OpTimes(const ModelConfig& config, int64_t batch, int64_t seq, BenchClock& clock)
        : c(config), B(batch), T(seq), N(batch * seq), clock_(clock), host_tokens_(tokens(N)) {
        StepOptions o;
        o.config = c;
        o.batch = B;
        o.seq = T;
        o.recompute = std::max<int64_t>(0, device_options().recompute);
        o.distinct_tokens = static_cast<int64_t>(std::set<int32_t>(host_tokens_.begin(), host_tokens_.end()).size());
        step_ = training_step(o);
        // What other steps have: at the end of a removal, beside a teacher, remaking everything.
        o.recompute = 2;
        other_steps_ = training_step(o);
        o.phase = StepPhase::removed;
        o.distill = true;
        const std::vector<StepOperation> removed = training_step(o);
        other_steps_.insert(other_steps_.end(), removed.begin(), removed.end());
        add_encoder();
        add_norms();
        add_linear("qkv", c.C, 3 * c.C);
        add_dbias("qkv", 3 * c.C);
        add_attention();
        add_linear("attention projection", c.C, c.C);
        add_mlp();
        add_classifier();
        add_statistics();
        add_optimiser();
    }

  private:
    ModelConfig c;
    int64_t B, T, N;
    BenchClock& clock_;
    MatrixProducts products_{false, device_options().choices};
    std::vector<int32_t> host_tokens_;
    std::vector<StepOperation> step_, other_steps_;

    // The operation of this name, which one call of `run` does, or so large a part of it.
    void add(const std::string& name, const std::function<void()>& run, double part = 1) {
        TimedOp timed = {name, 0, 0, 0, 0};
        double of_first_call = 0;
        const auto has_name = [&](const StepOperation& op) { return op.name == name; };
        for (const StepOperation& op : step_) {
            if (!has_name(op)) continue;
            const double size = op.flops > 0 ? op.flops : op.bytes;  // the last chunk of logits can be smaller
            if (of_first_call == 0) of_first_call = size;
            timed.calls += static_cast<double>(op.calls) * size / of_first_call / part;
        }
        const std::vector<StepOperation>& from = timed.calls > 0 ? step_ : other_steps_;
        const auto found = std::find_if(from.begin(), from.end(), has_name);
        if (found == from.end()) throw RunFailure("bench: no step has \"" + name + "\"");
        timed.flops = part * found->flops;
        timed.bytes = part * found->bytes;
        timed.seconds = clock_.seconds_of(run);
        ops.push_back(timed);
    }
    // Beside an operation of a step another way to do it, with no calls of its own.
    void add_alternative(const std::string& name, const std::string& instead_of, const std::function<void()>& run) {
        add(instead_of, run);
        ops.back().name = name;
        ops.back().calls = 0;
    }
    // Some far more often than others, as in text.
    std::vector<int32_t> tokens(int64_t n) const { return made_up_tokens(n, c.V, 3); }

    void add_encoder() {
        std::vector<int32_t> sorted(static_cast<size_t>(sorted_positions_size(N)));
        sort_positions(sorted.data(), host_tokens_.data(), N, c.V);
        const DeviceArray<int32_t> device_tokens(host_tokens_), device_sorted(sorted);
        const MadeUp<X> wte(c.V * c.C), wpe(c.n_ctx * c.C), stream(N * c.C);
        const MadeUp<float> dwte(c.V * c.C), dwpe(c.n_ctx * c.C), scratch(encoder_backward_scratch(N, c.C));
        add("encoder, forward",
            [&] { encoder_forward(stream.data(), device_tokens.data(), wte.data(), wpe.data(), B, T, c.C, nullptr); });
        add("encoder, backward", [&] {
            encoder_backward(dwte.data(), dwpe.data(), scratch.data(), stream.data(), device_sorted.data(), B, T, c.C,
                             nullptr);
        });
    }

    void add_norms() {
        const MadeUp<X> x(N * c.C), y(N * c.C), sum(N * c.C), normed(N * c.C);
        const MadeUp<float> mean(N), sigma(N, 1), gamma(c.C, 1), beta(c.C), dgamma(c.C), dbeta(c.C), dbias(c.C),
            scratch(norm_backward_scratch(N, c.C));
        Divisor layer_norm, fake;
        fake.own_share = 0;
        const auto forward = [&](const Divisor& d, bool is_first) {
            residual_norm_forward(is_first ? nullptr : sum.data(), normed.data(), static_cast<X*>(nullptr), mean.data(),
                                  sigma.data(), x.data(), is_first ? nullptr : y.data(), gamma.data(), beta.data(), d,
                                  d, 1e-5f, N, c.C, nullptr);
        };
        const auto backward = [&](const Divisor& d, bool is_final) {
            norm_backward(sum.data(), is_final, dgamma.data(), dbeta.data(), dbias.data(), scratch.data(),
                          normed.data(), static_cast<X*>(nullptr), x.data(), gamma.data(), mean.data(), sigma.data(), d,
                          d, static_cast<AuxTerm*>(nullptr), N, c.C, nullptr);
        };
        // FakeLN beside it, with no calls of its own: these become those as sites are removed.
        add("first LayerNorm, forward", [&] { forward(layer_norm, true); });
        add("residual + LayerNorm, forward", [&] { forward(layer_norm, false); });
        add("residual + FakeLN, forward", [&] { forward(fake, false); });
        add("final LayerNorm, backward", [&] { backward(layer_norm, true); });
        add("LayerNorm, backward", [&] { backward(layer_norm, false); });
        add("FakeLN, backward", [&] { backward(fake, false); });
        add("LayerNorm, remade", [&] {
            norm_forward(normed.data(), static_cast<X*>(nullptr), x.data(), mean.data(), sigma.data(), gamma.data(),
                         beta.data(), layer_norm, layer_norm, N, c.C, nullptr);
        });
    }

    // out (M,O) from A and W, as the model asks for it.
    void product(const std::string& name, Transpose ta, Transpose tb, int64_t M, int64_t O, int64_t K, const X* A,
                 const X* W, X* out) {
        const int64_t lda = ta == Transpose::Yes ? M : K, ldw = tb == Transpose::Yes ? K : O;
        add(name, [&] { products_.multiply(ta, tb, M, O, K, A, lda, W, ldw, out, O, false, Epilogue<X>(), nullptr); });
    }

    // dweight (K,M) += inp^T dout
    void dweight(const std::string& name, int64_t rows, int64_t K, int64_t M, const X* inp, const X* dout, float* out) {
        add(name, [&] {
            products_.multiply(Transpose::Yes, Transpose::No, K, M, rows, inp, K, dout, M, out, M, true,
                               Epilogue<float>(), nullptr);
        });
    }

    // Those of what is added to the stream come with the norm's backward pass.
    void add_dbias(const std::string& name, int64_t M) {
        const MadeUp<X> dout(N * M);
        const MadeUp<float> sums(M), scratch(column_sums_scratch(N, M));
        add(name + ", d bias", [&] { column_sums(sums.data(), scratch.data(), dout.data(), N, M, M, nullptr); });
    }

    // out (N,M) = inp (N,K) weight (K,M) + bias, as the model asks for it.
    void linear_forward(const std::string& name, int64_t K, int64_t M, const X* inp, const X* weight, X* out) {
        const MadeUp<X> bias(M);
        Epilogue<X> epilogue;
        epilogue.bias = bias.data();
        const auto multiply = [&](const Epilogue<X>& e) {
            return products_.multiply(Transpose::No, Transpose::No, N, M, K, inp, K, weight, M, out, M, false, e,
                                      nullptr);
        };
        add(name, [&] {
            if (multiply(epilogue)) return;
            multiply(Epilogue<X>());
            add_bias(out, bias.data(), N, M, M, nullptr);
        });
    }

    void add_linear(const std::string& name, int64_t K, int64_t M) {
        const MadeUp<X> inp(N * K), weight(K * M), out(N * M);
        const MadeUp<float> gradient(K * M);
        linear_forward(name + ", forward", K, M, inp.data(), weight.data(), out.data());
        product(name + ", d input", Transpose::No, Transpose::Yes, N, K, M, out.data(), weight.data(), inp.data());
        dweight(name + ", d weight", N, K, M, inp.data(), out.data(), gradient.data());
    }

    // GELU rides on the product in front of it, and in backward on the one behind; where the library has no such
    // product, on the sums of the columns.
    void add_mlp() {
        const int64_t C = c.C, H = c.n_inner;
        const MadeUp<X> inp(N * C), up(C * H), down(H * C), bias(H), fc(N * H), hidden(N * H);
        const MadeUp<float> gradient(C * H), sums(H), scratch(column_sums_scratch(N, H));
        Epilogue<X> forward, backward;
        forward.bias = bias.data();
        forward.before_gelu = fc.data();
        backward.through_gelu = fc.data();
        add("MLP up + GELU, forward", [&] {
            const auto multiply = [&](X* out, const Epilogue<X>& e) {
                return products_.multiply(Transpose::No, Transpose::No, N, H, C, inp.data(), C, up.data(), H, out, H,
                                          false, e, nullptr);
            };
            if (multiply(hidden.data(), forward)) return;
            multiply(fc.data(), Epilogue<X>());
            bias_gelu_forward(hidden.data(), fc.data(), bias.data(), N, H, nullptr);
        });
        linear_forward("MLP down, forward", H, C, hidden.data(), down.data(), inp.data());
        const auto multiply_back = [&](const Epilogue<X>& e) {
            return products_.multiply(Transpose::No, Transpose::Yes, N, H, C, inp.data(), C, down.data(), C,
                                      hidden.data(), H, false, e, nullptr);
        };
        const bool fused = multiply_back(backward);
        add("MLP down, d input + GELU", [&] { multiply_back(fused ? backward : Epilogue<X>()); });
        add("MLP up, d bias", [&] {
            if (fused) return column_sums(sums.data(), scratch.data(), hidden.data(), N, H, H, nullptr);
            gelu_backward_bias(hidden.data(), sums.data(), scratch.data(), hidden.data(), fc.data(), N, H, nullptr);
        });
        dweight("MLP down, d weight", N, H, C, hidden.data(), inp.data(), gradient.data());
        product("MLP up, d input", Transpose::No, Transpose::Yes, N, C, H, hidden.data(), up.data(), inp.data());
        dweight("MLP up, d weight", N, C, H, inp.data(), hidden.data(), gradient.data());
        add("GELU, remade", [&] { gelu_forward(hidden.data(), fc.data(), N * H, nullptr); });
    }

    void add_attention() {
        const int64_t C = c.C;
        const MadeUp<X> qkv(3 * N * C), out(N * C), dqkv(3 * N * C);
        const MadeUp<float> lse(N * c.NH), delta(N * c.NH);
        const auto forward = [&](const AttentionKernels<X>& kernels) {
            kernels.forward(out.data(), lse.data(), qkv.data(), B, T, {c.NH, c.NH, C / c.NH}, nullptr);
        };
        const auto backward = [&](const AttentionKernels<X>& kernels) {
            kernels.backward(dqkv.data(), delta.data(), out.data(), qkv.data(), out.data(), lse.data(), B, T,
                             {c.NH, c.NH, C / c.NH}, nullptr);
        };
        const AttentionKernels<X> ours = attention_kernels<X>("flash");
        add("attention, forward", [&] { forward(ours); });
        add("attention, backward", [&] { backward(ours); });
        if (!kHasCudnn) return;
        const AttentionKernels<X> theirs = attention_kernels<X>("cudnn");
        add_alternative("attention by cuDNN, forward", "attention, forward", [&] { forward(theirs); });
        add_alternative("attention by cuDNN, backward", "attention, backward", [&] { backward(theirs); });
    }

    // In chunks of rows, as the model takes them.
    void add_classifier() {
        const int64_t rows = logits_rows<X>(N, c.V), Vp = padded_vocabulary(c.V);
        const std::vector<int32_t> host_targets = tokens(rows);
        const DeviceArray<int32_t> targets(host_targets);
        const MadeUp<X> normed(rows * c.C), wte(c.V * c.C), logits(rows * Vp), dnormed(rows * c.C);
        const MadeUp<float> losses(rows), dwte(c.V * c.C);
        add("unembedding, forward", [&] {
            products_.multiply(Transpose::No, Transpose::Yes, rows, c.V, c.C, normed.data(), c.C, wte.data(), c.C,
                               logits.data(), Vp, false, Epilogue<X>(), nullptr);
        });
        add("softmax, cross-entropy",
            [&] { classifier(logits.data(), losses.data(), targets.data(), 1e-3f, true, rows, c.V, Vp, nullptr); });
        // Not in a step without a teacher; with one it stands in for the row above, after another forward pass.
        const MadeUp<X> original(rows * Vp);
        const MadeUp<float> kls(rows);
        add("softmax, distillation", [&] {
            distillation(logits.data(), losses.data(), kls.data(), original.data(), targets.data(), 1.0f, 1e-3f, true,
                         rows, c.V, Vp, nullptr);
        });
        add("unembedding, d input", [&] {
            products_.multiply(Transpose::No, Transpose::No, rows, c.C, c.V, logits.data(), Vp, wte.data(), c.C,
                               dnormed.data(), c.C, false, Epilogue<X>(), nullptr);
        });
        add("unembedding, d weight", [&] {
            products_.multiply(Transpose::Yes, Transpose::No, c.V, c.C, rows, logits.data(), Vp, normed.data(), c.C,
                               dwte.data(), c.C, true, Epilogue<float>(), nullptr);
        });
    }

    void add_statistics() {
        const int64_t S = 2 * c.L + 1;
        const MadeUp<float> sigma(S * N, 1), losses(N);
        const DeviceArray<double> sums(std::vector<double>(static_cast<size_t>(2 * S + 1), 0.0));
        const DeviceArray<int32_t> device_tokens(host_tokens_);
        const DeviceArray<AuxTerm> term(1);
        add("sigma statistics", [&] { sigma_statistics(sums.data(), sigma.data(), N, S, B, T, nullptr); });
        add("auxiliary loss",
            [&] { aux_loss(term.data(), sigma.data(), device_tokens.data(), -1, {0.1}, 1, B, T, nullptr); });
        add("sum of losses", [&] { add_sum(sums.data(), losses.data(), N, nullptr); });
    }

    // On 2^27 parameters at most, about GPT-2 Small's; the calls say how many times that the model has.
    void add_optimiser() {
        const int64_t all = parameter_count(tensor_table(c)), n = std::min(all, int64_t{1} << 27);
        const double part = static_cast<double>(n) / static_cast<double>(all);
        const MadeUp<float> master(n), grads(n), m(n), v(n, 1);
        const MadeUp<X> copy(n);
        const DeviceArray<TensorRange> ranges(std::vector<TensorRange>{{0, n, true}});
        const DeviceArray<GradientNorm> norm(1);
        const DeviceArray<double> scratch(global_norm_scratch());
        add(
            "gradient norm", [&] { global_norm(norm.data(), scratch.data(), grads.data(), n, 1, nullptr); }, part);
        AdamWStep of_the_run;
        of_the_run.lr = 1e-4;
        const AdamWConstants step = adamw_constants(of_the_run, 1);
        add(
            "AdamW",
            [&] {
                adamw<X>(master.data(), grads.data(), m.data(), v.data(), copy.data(), norm.data(), ranges.data(), 1, n,
                         step, std::nullopt, nullptr);
            },
            part);
    }
};

// Floating-point operations of a training step: three times those of the forward products, attention's causal half.
// What is remade in backward is not counted: it is our choice, not the model's need.
inline double training_flops(const ModelConfig& c, int64_t B, int64_t T) {
    StepOptions o;
    o.config = c;
    o.batch = B;
    o.seq = T;
    double flops = 0;
    for (const StepOperation& op : training_step(o)) flops += static_cast<double>(op.calls) * op.flops;
    return flops;
}

// Seconds of a training step in three stages of a removal, and the memory that it takes.
struct StageTimes {
    double all_layer_norm = 0, in_the_middle = 0, all_removed = 0;  // median seconds
    double device_bytes = 0;                                        // taken from what was free; 0 in emulation

    StageTimes(const ModelConfig& c, int64_t B, int64_t T, double budget) {
        const double free_before = free_bytes();
        const std::unique_ptr<Engine> made = make_engine(c);
        Engine& model = *made;
        SplitMix64 random(1);
        for (int64_t i = 0; i < model.parameters(); i++)
            model.params.data()[i] = static_cast<real>(0.06 * (random.uniform() - 0.5));
        model.prepare_training(B, T);
        model.prepare_optimiser();
        const std::vector<int32_t> tokens = uniform_tokens(random, B * T + 1, c.V);
        Settings settings;
        settings.batch = B;
        settings.seq = T;
        const auto step = [&] {
            model.clear_sigma_sums();
            model.forward_backward(tokens.data(), tokens.data() + 1, B, T, settings.aux(), 1);
            finish_step(model, settings, 1);
            require_cuda(cudaDeviceSynchronize(), "a training step");
        };
        model.zero_gradients();
        const auto remove = [&](Site& site) {
            site.a = 1;
            site.sigma_bar = site.running;
        };
        all_layer_norm = seconds_of(step, budget);
        if (!kEmulated) device_bytes = free_before - free_bytes();
        remove(model.sites.qk(c.L / 2));
        in_the_middle = seconds_of(step, budget);
        for (Site& site : model.sites.all)
            if (site.has_layer_norm()) remove(site);
        all_removed = seconds_of(step, budget);
    }

  private:
    static double free_bytes() {
        size_t free = 0, total = 0;
        require_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
        return static_cast<double>(free);
    }
    static std::vector<int32_t> uniform_tokens(SplitMix64& random, int64_t n, int64_t V) {
        std::vector<int32_t> tokens(static_cast<size_t>(n));
        for (int32_t& token : tokens) token = static_cast<int32_t>(random.below(static_cast<uint64_t>(V)));
        return tokens;
    }
    // By the host's clock: what it adds between kernels belongs to a step. The first one chooses products and loads
    // kernels.
    static double seconds_of(const std::function<void()>& step, double budget) {
        using Clock = std::chrono::steady_clock;
        return median_seconds({1, 3, 1 << 30, budget}, [&] {
            const Clock::time_point begin = Clock::now();
            step();
            return std::chrono::duration<double>(Clock::now() - begin).count();
        });
    }
};

// The tables of `bench`, and its rows for --json: what, which figure of it, value, unit.
class BenchReport {
  public:
    BenchReport(FILE* screen, const Ceilings& ceilings, double peak)
        : screen_(screen), ceilings_(ceilings), peak_(peak) {}
    Report report{{"what", "figure", "value", "unit"}, {}, true};

    void add(const std::string& what, const std::string& figure, const std::string& value, const std::string& unit) {
        report.rows.push_back({what, figure, value, unit});
    }

    void show_ceilings() {
        const auto show = [&](const char* what, double value, const char* unit) {
            add("ceiling", what, format_fixed(value, 1), unit);
            std::fprintf(screen_, "measured ceiling, %s: %s %s\n", what, format_fixed(value, 1).c_str(), unit);
        };
        show("copy", ceilings_.copy * 1e-9, "GB/s");
        show("bf16 product", ceilings_.bf16_flops * 1e-12, "TFLOP/s");
        show("fp32 product", ceilings_.float_flops * 1e-12, "TFLOP/s");
        const std::string peak = peak_ > 0 ? format_fixed(peak_, 1) : "n/a";
        add("vendor", "bf16 peak", peak, "TFLOP/s");
        std::fprintf(screen_, "vendor's figure, bf16 product: %s TFLOP/s\n\n", peak.c_str());
    }

    void show_operations(const std::vector<TimedOp>& ops) {
        Table table({"kernel", "calls", "us", "ms a step", "TFLOP/s", "GB/s", "% of ceiling"});
        double sum = 0;
        for (const TimedOp& op : ops) {
            const bool is_product = op.flops > 0;
            const double rate = is_product ? op.flops / op.seconds : op.bytes / op.seconds;
            const double share = 100 * rate / (is_product ? ceilings_.bf16_flops : ceilings_.copy);
            const std::string calls = format_fixed(op.calls, 1), us = format_fixed(op.seconds * 1e6, 1);
            const std::string shown = format_fixed(rate * (is_product ? 1e-12 : 1e-9), 1);
            sum += op.calls * op.seconds;
            table.add_row({op.name, calls, us, format_fixed(1e3 * op.calls * op.seconds, 3), is_product ? shown : "",
                           is_product ? "" : shown, format_fixed(share, 1)});
            add(op.name, "calls", calls, "per step");
            add(op.name, "time", us, "us");
            add(op.name, "rate", shown, is_product ? "TFLOP/s" : "GB/s");
            add(op.name, "of ceiling", format_fixed(share, 1), "%");
        }
        table.add_row({"sum of the kernels", "", "", format_fixed(1e3 * sum, 3)});
        add("sum of the kernels", "time", format_fixed(1e3 * sum, 3), "ms");
        std::fprintf(screen_, "%s\n", table.text().c_str());
    }

    void show_stages(const StageTimes& times, double flops, double tokens) {
        Table table({"training step", "ms", "tokens/s", "TFLOP/s", "% of measured", "% of vendor's"});
        const auto show = [&](const char* stage, double seconds) {
            const std::string ms = format_fixed(1e3 * seconds, 3), rate = format_fixed(tokens / seconds, 0);
            const std::string measured = format_fixed(100 * flops / seconds / ceilings_.bf16_flops, 1);
            const std::string vendor = peak_ > 0 ? format_fixed(100 * flops / seconds / (peak_ * 1e12), 1) : "n/a";
            table.add_row({stage, ms, rate, format_fixed(flops / seconds * 1e-12, 1), measured, vendor});
            add(stage, "time", ms, "ms");
            add(stage, "tokens", rate, "per second");
            add(stage, "MFU of measured", measured, "%");
            add(stage, "MFU of vendor's", vendor, "%");
        };
        show("all LayerNorm", times.all_layer_norm);
        show("one layer's qk removed, v not", times.in_the_middle);
        show("all removed", times.all_removed);
        std::fprintf(screen_, "%s\n", table.text().c_str());
    }

  private:
    FILE* screen_;
    Ceilings ceilings_;
    double peak_;
};

// Measures everything for B sequences of T positions and prints tables to `screen`; `seconds` is what each stage of a
// whole step may take, a tenth of it each kernel. Throws NoGpu where there is no GPU, RunFailure if the sizes do not
// fit.
inline Report bench_engine(const ModelConfig& c, int64_t B, int64_t T, double seconds, const std::string& products,
                           FILE* screen) {
    require_gpu();
    const OptionsKeeper keeper;
    device_options().in_bf16 = true;
    if (!products.empty()) {
        device_options().choices = std::make_shared<ProductChoices>();
        device_options().choices->made_for = products_made_for();
        device_options().choices->times_anew = true;
    }
    cudaDeviceProp properties;
    require_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    const std::string name = properties.name;
    std::fprintf(screen, "%s, %d multiprocessors, compute capability %d.%d, %s\nB = %lld, T = %lld, bf16%s\n\n",
                 name.c_str(), properties.multiProcessorCount, properties.major, properties.minor,
                 format_bytes(properties.totalGlobalMem).c_str(), static_cast<long long>(B), static_cast<long long>(T),
                 kEmulated ? "\nemulated: times mean nothing" : "");
    // Whole steps first: they need the most memory, and should say so at once if there is too little.
    const StageTimes stages(c, B, T, seconds);
    if (!products.empty()) {
        write_file_atomically(products, device_options().choices->text());
        std::fprintf(screen, "%s: the fastest of eight kernels for each of %lld products\n\n", products.c_str(),
                     static_cast<long long>(device_options().choices->size()));
    }
    BenchClock clock(seconds / 10);
    BenchReport bench(screen, Ceilings(clock), vendor_peak_tflops(name));
    bench.add("device", "name", name, "");
    bench.add("device", "multiprocessors", std::to_string(properties.multiProcessorCount), "");
    bench.add("device", "emulated", kEmulated ? "yes: times mean nothing" : "no", "");
    bench.show_ceilings();
    bench.show_operations(OpTimes(c, B, T, clock).ops);
    bench.show_stages(stages, training_flops(c, B, T), static_cast<double>(B * T));
    const std::string memory = stages.device_bytes > 0 ? format_fixed(stages.device_bytes / (1 << 20), 0) : "n/a";
    bench.add("training", "device memory", memory, "MiB");
    std::fprintf(screen, "device memory of training: %s MiB\n", memory.c_str());
    return bench.report;
}

}  // namespace cuda
}  // namespace lnfree
