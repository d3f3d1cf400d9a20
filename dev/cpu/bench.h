// What this machine makes of the operations: seconds, FLOP/s and bytes/s of each, of a training step, and of evaluation,
// beside a yardstick: OpenBLAS doing the same products in the same run. Behind `train_gpt2_lnfree bench`, which includes
// this file below the method (sections 1 to 4 of train_gpt2_lnfree.cpp); its keys are described in data/README.md.
//
// OpenBLAS is looked for when the program runs and is not needed by anything else.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/random.h"
#include "dev/cpu/machine.h"

namespace lnfree {
namespace bench {

// Median seconds of `run`, repeated for `budget` seconds and at least three times, after one call that does not count.
inline double seconds_of(const std::function<void()>& run, double budget) {
    run();
    std::vector<double> times;
    const double begin = seconds_now();
    while (times.size() < 3 || seconds_now() - begin < budget) {
        const double before = seconds_now();
        run();
        times.push_back(seconds_now() - before);
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
}

// ---------------------------------------------------------------------------------------------------------------------
// The yardstick

// OpenBLAS's single-precision product, through its C interface; the constants are those of cblas.h.
class OpenBlas {
  public:
    OpenBlas() : library_(::dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL)) {
        if (library_ == nullptr) return;
        sgemm_ = reinterpret_cast<Sgemm*>(::dlsym(library_, "cblas_sgemm"));
        if (auto* set = reinterpret_cast<void (*)(int)>(::dlsym(library_, "openblas_set_num_threads"))) {
            set(thread_count());
        }
    }
    OpenBlas(const OpenBlas&) = delete;
    OpenBlas& operator=(const OpenBlas&) = delete;
    ~OpenBlas() {
        if (library_ != nullptr) ::dlclose(library_);
    }

    bool is_there() const { return sgemm_ != nullptr; }

    // As lnfree::matmul, without bias.
    void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate) const {
        constexpr int row_major = 101, as_it_is = 111, transposed = 112;
        const auto i = [](int64_t x) { return static_cast<int>(x); };
        sgemm_(row_major, ta == Transpose::Yes ? transposed : as_it_is, tb == Transpose::Yes ? transposed : as_it_is,
               i(M), i(N), i(K), 1.0f, A, i(lda), B, i(ldb), accumulate ? 1.0f : 0.0f, C, i(ldc));
    }

  private:
    typedef void Sgemm(int order, int ta, int tb, int M, int N, int K, float alpha, const float* A, int lda,
                       const float* B, int ldb, float beta, float* C, int ldc);
    void* library_;
    Sgemm* sgemm_ = nullptr;
};

// ---------------------------------------------------------------------------------------------------------------------
// One operation at a time

// An operation of a training step, alone on buffers of its own.
struct Op {
    std::string name;
    double calls = 0;             // in a training step
    double flops = 0, bytes = 0;  // of one call; bytes: every operand once, as if caches were endless and then empty
    std::function<void()> run;
    std::function<void()> yardstick = {};       // the same product by OpenBLAS; empty for what is no product
    double seconds = 0, yardstick_seconds = 0;  // of one call
};

template <class T>
std::vector<T> made_up(int64_t n, double scale = 1) {
    SplitMix64 random(static_cast<uint64_t>(n));
    std::vector<T> values(static_cast<size_t>(n));
    for (T& value : values) value = static_cast<T>(scale * (random.uniform() - 0.5));
    return values;
}

// Operands that stay alive as long as the operations that use them.
class Operands {
  public:
    real* take(int64_t n) { return reals_.emplace_back(made_up<real>(n)).data(); }
    float* take_floats(int64_t n) { return floats_.emplace_back(made_up<float>(n)).data(); }
    int32_t* take_tokens(int64_t n, int64_t V) {
        SplitMix64 random(3);
        std::vector<int32_t> tokens(static_cast<size_t>(n));
        for (int32_t& token : tokens) token = static_cast<int32_t>(random.below(static_cast<uint64_t>(V)));
        return tokens_.emplace_back(std::move(tokens)).data();
    }

  private:
    std::vector<std::vector<real>> reals_;
    std::vector<std::vector<float>> floats_;
    std::vector<std::vector<int32_t>> tokens_;
};

class OpList {
  public:
    std::vector<Op> ops;

    // B sequences of T positions through a model of this shape.
    OpList(const GPT2Config& c, int64_t B, int64_t T, const OpenBlas& blas) : blas_(blas) {
        const int64_t N = B * T, H = c.n_inner;
        const double L = static_cast<double>(c.L);
        layer_products("qkv", L, N, c.C, 3 * c.C);
        add_attention(c, B, T);
        layer_products("attention projection", L, N, c.C, c.C);
        layer_products("MLP up", L, N, c.C, H);
        layer_products("MLP down", L, N, H, c.C);
        add_classifier(c, N);
        add_norms(c, N);
        add_elementwise(c, B, T);
        add_optimiser(c);
    }

  private:
    const OpenBlas& blas_;
    Operands memory_;

    void product(const std::string& name, double calls, Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K,
                 bool accumulate) {
        const float* A = memory_.take_floats(M * K);
        const float* B = memory_.take_floats(K * N);
        float* out = memory_.take_floats(M * N);
        const int64_t lda = ta == Transpose::Yes ? M : K, ldb = tb == Transpose::Yes ? K : N;
        Op op;
        op.name = name;
        op.calls = calls;
        op.flops = 2.0 * static_cast<double>(M * N * K);
        op.bytes = 4.0 * static_cast<double>(M * K + K * N + M * N * (accumulate ? 2 : 1));
        op.run = [=] { matmul(ta, tb, M, N, K, A, lda, B, ldb, out, N, accumulate); };
        if (blas_.is_there())
            op.yardstick = [=, &blas = blas_] { blas.matmul(ta, tb, M, N, K, A, lda, B, ldb, out, N, accumulate); };
        ops.push_back(std::move(op));
    }

    // (N,K) times (K,M) and its two gradients, as matmul_forward and matmul_backward take them.
    void layer_products(const std::string& name, double calls, int64_t N, int64_t K, int64_t M) {
        product(name + ", forward", calls, Transpose::No, Transpose::No, N, M, K, false);
        product(name + ", d input", calls, Transpose::No, Transpose::Yes, N, K, M, false);
        product(name + ", d weight", calls, Transpose::Yes, Transpose::No, K, M, N, true);
    }

    void streaming(const std::string& name, double calls, double values, std::function<void()> run) {
        Op op;
        op.name = name;
        op.calls = calls;
        op.bytes = values * static_cast<double>(sizeof(real));
        op.run = std::move(run);
        ops.push_back(std::move(op));
    }

    void add_attention(const GPT2Config& c, int64_t B, int64_t T) {
        const int64_t N = B * T;
        real* qkv = memory_.take(N * 3 * c.C);
        real* out = memory_.take(N * c.C);
        real* lse = memory_.take(N * c.NH);
        real* dqkv = memory_.take(N * 3 * c.C);
        const double product = static_cast<double>(B * c.C) * static_cast<double>(T) * static_cast<double>(T + 1);
        Op forward, backward;
        forward.name = "attention, forward";
        forward.calls = backward.calls = static_cast<double>(c.L);
        forward.flops = 2 * product;  // scores and weighted values, each half of a T x T square
        forward.bytes = 4.0 * static_cast<double>(4 * N * c.C);
        forward.run = [=] { attention_forward(out, lse, qkv, B, T, c.C, c.NH); };
        backward.name = "attention, backward";
        backward.flops = 4 * product;  // dq, dk, dv, dp; remaking the scores is not counted
        backward.bytes = 4.0 * static_cast<double>(8 * N * c.C);
        backward.run = [=] { attention_backward(dqkv, out, qkv, out, lse, B, T, c.C, c.NH); };
        ops.push_back(std::move(forward));
        ops.push_back(std::move(backward));
    }

    // In chunks of rows, as GPT2::classify takes them.
    void add_classifier(const GPT2Config& c, int64_t N) {
        const int64_t rows = classifier_rows(N, c.V);
        const double chunks = static_cast<double>(N) / static_cast<double>(rows);
        product("unembedding, forward", chunks, Transpose::No, Transpose::Yes, rows, c.V, c.C, false);
        product("unembedding, d input", chunks, Transpose::No, Transpose::No, rows, c.C, c.V, false);
        product("unembedding, d weight", chunks, Transpose::Yes, Transpose::No, c.V, c.C, rows, true);
        real* logits = memory_.take(rows * c.V);
        real* losses = memory_.take(rows);
        const int32_t* targets = memory_.take_tokens(rows, c.V);
        streaming("softmax, cross-entropy", chunks, static_cast<double>(4 * rows * c.V),
                  [=, V = c.V] { softmax_cross_entropy(losses, logits, targets, 1e-3, true, rows, V); });
    }

    void add_norms(const GPT2Config& c, int64_t N) {
        const int64_t C = c.C;
        const double norms = static_cast<double>(2 * c.L + 1), NC = static_cast<double>(N * C);
        const real* inp = memory_.take(N * C);
        real *out = memory_.take(N * C), *dinp = memory_.take(N * C);
        real *mean = memory_.take(N), *sigma = memory_.take(N);
        real *gamma = memory_.take(C), *beta = memory_.take(C), *dgamma = memory_.take(C), *dbeta = memory_.take(C);
        streaming("mean and sigma", norms, NC, [=] { moments_forward(mean, sigma, inp, 1e-5, N, C); });
        streaming("norm, forward (twice)", 2 * norms - 1, 2 * NC,
                  [=] { norm_forward(out, inp, mean, sigma, gamma, beta, N, C); });
        streaming("LayerNorm, backward", norms, 4 * NC,
                  [=] { layernorm_backward(dinp, dgamma, dbeta, out, inp, gamma, mean, sigma, N, C); });
    }

    void add_elementwise(const GPT2Config& c, int64_t B, int64_t T) {
        const int64_t N = B * T, C = c.C, NC = N * C, NH = N * c.n_inner;
        const double L = static_cast<double>(c.L);
        real *a = memory_.take(NH), *b = memory_.take(NH), *d = memory_.take(NH);
        real *wte = memory_.take(c.V * C), *wpe = memory_.take(c.n_ctx * C);
        const int32_t* tokens = memory_.take_tokens(N, c.V);
        const double values = static_cast<double>(NC), hidden = static_cast<double>(NH);
        streaming("GELU, forward (twice)", 2 * L, 2 * hidden, [=] { gelu_forward(b, a, NH); });
        streaming("GELU, backward", L, 3 * hidden, [=] { gelu_backward(d, b, a, NH); });
        streaming("residual", 2 * L, 3 * values, [=] { residual_forward(d, a, b, NC); });
        streaming("encoder, forward", 1, 3 * values, [=] { encoder_forward(d, tokens, wte, wpe, B, T, C); });
        streaming("encoder, backward", 1, 5 * values, [=] { encoder_backward(wte, wpe, d, tokens, B, T, C); });
    }

    // On a model of a single layer, because a second copy of every weight and moment would not fit beside the first;
    // the calls say how many such models the whole one is.
    void add_optimiser(GPT2Config c) {
        const double all = static_cast<double>(parameter_count(tensor_table(c)));
        c.L = 1;
        const auto model = std::make_shared<GPT2>(c);
        const auto adam = std::make_shared<AdamW>();
        model->prepare_training();
        adam->prepare(model->parameters());
        const double one = static_cast<double>(model->parameters());
        streaming("AdamW", all / one, 7 * one, [=] { adam->update(*model, Protocol(), 1e-4, 1); });
        streaming("gradient norm", all / one, one, [=] { gradient_norm(model->grads); });
        streaming("zero the gradients", all / one, one, [=] { model->grads.zero(); });
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// The whole step

struct StepTimes {
    double first = 0, median = 0;  // seconds of a training step
    double evaluation = 0;         // seconds of its forward pass and losses alone
    double one_thread = 0;         // median seconds with a single thread; 0 if that is all there is
    double peak_bytes = 0;         // resident set of the process after the training steps
};

inline StepTimes time_steps(const GPT2Config& c, int64_t B, int64_t T, double budget, bool all = true) {
    Operands memory;
    const int32_t* tokens = memory.take_tokens(B * T + 1, c.V);
    GPT2 model(c);
    SplitMix64 random(1);
    for (int64_t i = 0; i < model.parameters(); i++)
        model.params.data()[i] = static_cast<real>(0.06 * (random.uniform() - 0.5));
    AdamW adam;
    model.prepare_training(B, T);
    adam.prepare(model.parameters());
    const Protocol protocol;
    const auto step = [&] {
        model.clear_sigma_sums();
        model.grads.zero();
        model.forward_backward(tokens, tokens + 1, B, T, protocol.aux(), 1);
        finish_step(model, adam, protocol, 1);
    };
    StepTimes times;
    const double begin = seconds_now();
    step();
    times.first = seconds_now() - begin;
    times.median = seconds_of(step, budget);
    times.peak_bytes = static_cast<double>(peak_memory_bytes());
    if (!all) return times;
    times.evaluation = seconds_of([&] { model.token_losses(tokens, tokens + 1, B, T); }, budget / 3);
    const int threads = thread_count();
    if (threads > 1) {
        set_thread_count(1);
        times.one_thread = seconds_of(step, budget);
        set_thread_count(threads);
    }
    return times;
}

// ---------------------------------------------------------------------------------------------------------------------
// The report

inline nlohmann::ordered_json op_json(const Op& op) {
    nlohmann::ordered_json j;
    j["op"] = op.name;
    j["calls"] = op.calls;
    j["seconds"] = op.calls * op.seconds;
    if (op.flops > 0) j["gflops"] = op.flops / op.seconds / 1e9;
    if (op.yardstick_seconds > 0) j["of_yardstick"] = op.yardstick_seconds / op.seconds;
    j["gbytes_per_s"] = op.bytes / op.seconds / 1e9;
    return j;
}

inline std::string op_table(const std::vector<Op>& ops, double step_seconds) {
    Table table({"op", "calls", "ms a step", "% of step", "GFLOP/s", "% of yardstick", "GB/s"});
    double sum = 0;
    for (const Op& op : ops) {
        const double seconds = op.calls * op.seconds;
        sum += seconds;
        table.add_row({op.name, format_fixed(op.calls, 1), format_fixed(1e3 * seconds, 2),
                       format_fixed(100 * seconds / step_seconds, 1),
                       op.flops > 0 ? format_fixed(op.flops / op.seconds / 1e9, 1) : "",
                       op.yardstick_seconds > 0 ? format_fixed(100 * op.yardstick_seconds / op.seconds, 0) : "",
                       format_fixed(op.bytes / op.seconds / 1e9, 1)});
    }
    table.add_row({"sum of the ops", "", format_fixed(1e3 * sum, 2), format_fixed(100 * sum / step_seconds, 1)});
    return table.text();
}

// Floating-point operations of a training step: three times those of the forward products, attention's causal half.
// (What is remade in backward is not counted: it is our choice, not the model's need.)
inline double step_flops(const std::vector<Op>& ops) {
    double flops = 0;
    for (const Op& op : ops) flops += op.calls * op.flops;
    return flops;
}

// FLOP/s of OpenBLAS over all products of a step; 0 if it is not there.
inline double yardstick_flops_per_s(const std::vector<Op>& ops) {
    double flops = 0, seconds = 0;
    for (const Op& op : ops) {
        if (!op.yardstick) continue;
        flops += op.calls * op.flops;
        seconds += op.calls * op.yardstick_seconds;
    }
    return seconds > 0 ? flops / seconds : 0;
}

struct Options {
    GPT2Config config;
    std::string name;  // of the model's size
    int64_t batch = 4, seq = 64;
    double seconds = 1;  // for every figure
    std::string precision = "fp32";
};

// Measures, prints a table for people to `screen`, and returns everything under the names of data/README.md.
inline nlohmann::ordered_json run(const Options& o, const char* isa, std::FILE* screen) {
    const StepTimes step = time_steps(o.config, o.batch, o.seq, o.seconds);
    const OpenBlas blas;
    OpList list(o.config, o.batch, o.seq, blas);
    for (Op& op : list.ops) {
        const double budget = o.seconds / 10;
        op.seconds = seconds_of(op.run, budget);
        if (op.yardstick) op.yardstick_seconds = seconds_of(op.yardstick, budget);
    }
    const double flops = step_flops(list.ops), yardstick = yardstick_flops_per_s(list.ops);
    const double tokens = static_cast<double>(o.batch * o.seq);

    nlohmann::ordered_json j;
    j["machine"] = {{"processor", processor_name()}, {"threads", thread_count()}, {"isa", isa}};
    j["precision"] = o.precision;
    j["model"] = o.name;
    j["batch"] = o.batch;
    j["seq"] = o.seq;
    const double evaluated = flops / 3 / step.evaluation;  // FLOP/s
    const auto share = [&](double flops_per_s) {
        return yardstick > 0 ? nlohmann::ordered_json(flops_per_s / yardstick) : nlohmann::ordered_json();
    };
    j["yardstick_gflops"] = yardstick > 0 ? nlohmann::ordered_json(yardstick / 1e9) : nlohmann::ordered_json();
    j["step"] = {{"first_seconds", step.first},          {"seconds", step.median},
                 {"tokens_per_s", tokens / step.median}, {"gflop", flops / 1e9},
                 {"gflops", flops / step.median / 1e9},  {"of_yardstick", share(flops / step.median)},
                 {"peak_bytes", step.peak_bytes}};
    j["evaluation"] = {{"seconds", step.evaluation}, {"gflops", evaluated / 1e9}, {"of_yardstick", share(evaluated)}};
    j["one_thread"] = nlohmann::ordered_json();
    if (step.one_thread > 0)
        j["one_thread"] = {{"seconds", step.one_thread}, {"speed_up", step.one_thread / step.median}};
    j["ops"] = nlohmann::ordered_json::array();
    for (const Op& op : list.ops) j["ops"].push_back(op_json(op));

    std::fprintf(screen, "%s, %d threads, %s\n%s, %s, B = %lld, T = %lld\n\n%s\n", processor_name().c_str(),
                 thread_count(), isa, o.name.c_str(), o.precision.c_str(), static_cast<long long>(o.batch),
                 static_cast<long long>(o.seq), op_table(list.ops, step.median).c_str());
    const auto percent = [&](double flops_per_s) {
        return yardstick > 0 ? format_fixed(100 * flops_per_s / yardstick, 0) : "no OpenBLAS";
    };
    Table table({"", "seconds", "tokens/s", "GFLOP/s", "% of yardstick"});
    table.add_row({"training step", format_fixed(step.median, 3), format_fixed(tokens / step.median, 0),
                   format_fixed(flops / step.median / 1e9, 1), percent(flops / step.median)});
    table.add_row({"first step", format_fixed(step.first, 3), format_fixed(tokens / step.first, 0)});
    if (step.one_thread > 0)
        table.add_row({"with one thread", format_fixed(step.one_thread, 3), format_fixed(tokens / step.one_thread, 0),
                       format_fixed(flops / step.one_thread / 1e9, 1)});
    table.add_row({"evaluation", format_fixed(step.evaluation, 3), format_fixed(tokens / step.evaluation, 0),
                   format_fixed(evaluated / 1e9, 1), percent(evaluated)});
    std::fprintf(screen, "%s\nyardstick (OpenBLAS, the same products): %s GFLOP/s; peak memory %s\n",
                 table.text().c_str(),
                 yardstick > 0 ? format_fixed(yardstick / 1e9, 1).c_str() : "not there (libopenblas0)",
                 format_bytes(static_cast<uint64_t>(step.peak_bytes)).c_str());
    return j;
}

}  // namespace bench
}  // namespace lnfree
