// dev/cpu/bench.h explains what is measured.
#include "dev/cpu/bench.h"

#include <dlfcn.h>

#include <algorithm>
#include <memory>

#include "data/console.h"
#include "data/json.h"
#include "data/random.h"
#include "dev/cpu/machine.h"
#include "dev/cpu/operations.h"
#include "dev/method.h"

namespace lnfree {
namespace bench {

double seconds_of(const std::function<void()>& run, double budget) {
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
// The yardstick, through OpenBLAS's C interface; the constants are those of cblas.h.

OpenBlas::OpenBlas() : library_(::dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    sgemm_ = reinterpret_cast<Sgemm*>(::dlsym(library_, "cblas_sgemm"));
    if (auto* set = reinterpret_cast<void (*)(int)>(::dlsym(library_, "openblas_set_num_threads"))) set(thread_count());
}

OpenBlas::~OpenBlas() {
    if (library_ != nullptr) ::dlclose(library_);
}

void OpenBlas::matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                      const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate) const {
    constexpr int row_major = 101, as_it_is = 111, transposed = 112;
    const auto i = [](int64_t x) { return static_cast<int>(x); };
    sgemm_(row_major, ta == Transpose::Yes ? transposed : as_it_is, tb == Transpose::Yes ? transposed : as_it_is, i(M),
           i(N), i(K), 1.0f, A, i(lda), B, i(ldb), accumulate ? 1.0f : 0.0f, C, i(ldc));
}

// ---------------------------------------------------------------------------------------------------------------------
// One operation at a time

real* Operands::take(int64_t n) {
    SplitMix64 random(static_cast<uint64_t>(n));
    std::vector<real>& values = reals_.emplace_back(static_cast<size_t>(n));
    for (real& value : values) value = static_cast<real>(random.uniform() - 0.5);
    return values.data();
}

int32_t* Operands::take_tokens(int64_t n, int64_t V) {
    SplitMix64 random(3);
    std::vector<int32_t>& tokens = tokens_.emplace_back(static_cast<size_t>(n));
    for (int32_t& token : tokens) token = static_cast<int32_t>(random.below(static_cast<uint64_t>(V)));
    return tokens.data();
}

OpList::OpList(const GPT2Config& c, int64_t B, int64_t T, const OpenBlas& blas) : blas_(blas) {
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

void OpList::product(const std::string& name, double calls, Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K,
                     bool accumulate) {
    const real* A = memory_.take(M * K);
    const real* B = memory_.take(K * N);
    real* out = memory_.take(M * N);
    const int64_t lda = ta == Transpose::Yes ? M : K, ldb = tb == Transpose::Yes ? K : N;
    Op op;
    op.name = name;
    op.calls = calls;
    op.flops = 2.0 * static_cast<double>(M * N * K);
    op.bytes = 4.0 * static_cast<double>(M * K + K * N + M * N * (accumulate ? 2 : 1));
    op.run = [=] { operations().matmul(ta, tb, M, N, K, A, lda, B, ldb, out, N, accumulate, nullptr); };
    if (blas_.is_there())
        op.yardstick = [=, &blas = blas_] { blas.matmul(ta, tb, M, N, K, A, lda, B, ldb, out, N, accumulate); };
    ops.push_back(std::move(op));
}

// (N,K) times (K,M) and its two gradients, as matmul_forward and matmul_backward take them.
void OpList::layer_products(const std::string& name, double calls, int64_t N, int64_t K, int64_t M) {
    product(name + ", forward", calls, Transpose::No, Transpose::No, N, M, K, false);
    product(name + ", d input", calls, Transpose::No, Transpose::Yes, N, K, M, false);
    product(name + ", d weight", calls, Transpose::Yes, Transpose::No, K, M, N, true);
}

// An operation that reads and writes so many values, and is no product.
void OpList::streaming(const std::string& name, double calls, double values, std::function<void()> run) {
    Op op;
    op.name = name;
    op.calls = calls;
    op.bytes = values * static_cast<double>(sizeof(real));
    op.run = std::move(run);
    ops.push_back(std::move(op));
}

void OpList::add_attention(const GPT2Config& c, int64_t B, int64_t T) {
    const int64_t N = B * T, C = c.C, NH = c.NH;
    real* qkv = memory_.take(N * 3 * C);
    real* out = memory_.take(N * C);
    real* lse = memory_.take(N * NH);
    real* dqkv = memory_.take(N * 3 * C);
    const double product = static_cast<double>(B * C) * static_cast<double>(T) * static_cast<double>(T + 1);
    Op forward, backward;
    forward.name = "attention, forward";
    forward.calls = backward.calls = static_cast<double>(c.L);
    forward.flops = 2 * product;  // scores and weighted values, each half of a T x T square
    forward.bytes = 4.0 * static_cast<double>(4 * N * C);
    forward.run = [=] { operations().attention_forward(out, lse, qkv, B, T, C, NH, 0, T); };
    backward.name = "attention, backward";
    backward.flops = 4 * product;  // dq, dk, dv, dp; remaking the scores is not counted
    backward.bytes = 4.0 * static_cast<double>(8 * N * C);
    backward.run = [=] { operations().attention_backward(dqkv, out, qkv, out, lse, B, T, C, NH); };
    ops.push_back(std::move(forward));
    ops.push_back(std::move(backward));
}

// In chunks of rows, as the model takes them.
void OpList::add_classifier(const GPT2Config& c, int64_t N) {
    const int64_t V = c.V, rows = classifier_rows(N, V);
    const double chunks = static_cast<double>(N) / static_cast<double>(rows);
    product("unembedding, forward", chunks, Transpose::No, Transpose::Yes, rows, V, c.C, false);
    product("unembedding, d input", chunks, Transpose::No, Transpose::No, rows, c.C, V, false);
    product("unembedding, d weight", chunks, Transpose::Yes, Transpose::No, V, c.C, rows, true);
    real* logits = memory_.take(rows * V);
    real* losses = memory_.take(rows);
    const int32_t* targets = memory_.take_tokens(rows, V);
    streaming("softmax, cross-entropy", chunks, static_cast<double>(4 * rows * V),
              [=] { operations().softmax_cross_entropy(losses, logits, targets, 1e-3, true, rows, V); });
}

void OpList::add_norms(const GPT2Config& c, int64_t N) {
    const int64_t C = c.C;
    const double norms = static_cast<double>(2 * c.L + 1), NC = static_cast<double>(N * C);
    const real* inp = memory_.take(N * C);
    real *out = memory_.take(N * C), *dinp = memory_.take(N * C);
    real *mean = memory_.take(N), *sigma = memory_.take(N);
    real *gamma = memory_.take(C), *beta = memory_.take(C), *dgamma = memory_.take(C), *dbeta = memory_.take(C);
    streaming("mean and sigma", norms, NC, [=] { operations().moments_forward(mean, sigma, inp, 1e-5, N, C); });
    streaming("norm, forward (twice)", 2 * norms - 1, 2 * NC,
              [=] { operations().norm_forward(out, inp, mean, sigma, gamma, beta, N, C); });
    // (LayerNorm's divisor is sigma itself.)
    streaming("LayerNorm, backward", norms, 4 * NC, [=] {
        operations().norm_backward(dinp, dgamma, dbeta, out, inp, gamma, mean, sigma, sigma, Site(), N, C);
    });
}

void OpList::add_elementwise(const GPT2Config& c, int64_t B, int64_t T) {
    const int64_t N = B * T, C = c.C, NC = N * C, NH = N * c.n_inner;
    const double L = static_cast<double>(c.L);
    real *a = memory_.take(NH), *b = memory_.take(NH), *d = memory_.take(NH);
    real *wte = memory_.take(c.V * C), *wpe = memory_.take(c.n_ctx * C);
    const int32_t* tokens = memory_.take_tokens(N, c.V);
    const double values = static_cast<double>(NC), hidden = static_cast<double>(NH);
    const Operations& op = operations();
    streaming("GELU, forward (twice)", 2 * L, 2 * hidden, [=, &op] { op.gelu_forward(b, a, NH); });
    streaming("GELU, backward", L, 3 * hidden, [=, &op] { op.gelu_backward(d, b, a, NH); });
    streaming("residual", 2 * L, 3 * values, [=, &op] { op.residual_forward(d, a, b, NC); });
    streaming("encoder, forward", 1, 3 * values, [=, &op] { op.encoder_forward(d, tokens, wte, wpe, B, T, C); });
    streaming("encoder, backward", 1, 5 * values, [=, &op] { op.encoder_backward(wte, wpe, d, tokens, B, T, C); });
}

// On a model of a single layer, because a second copy of every weight and moment would not fit beside the first; the
// calls say how many such models the whole one is.
void OpList::add_optimiser(GPT2Config c) {
    const double all = static_cast<double>(parameter_count(tensor_table(c)));
    c.L = 1;
    const std::shared_ptr<Engine> model = make_reference(c);
    model->prepare_training();
    model->prepare_optimiser();
    AdamWStep step;
    step.lr = 1e-4;
    const double one = static_cast<double>(model->parameters());
    streaming("AdamW", all / one, 7 * one, [=] { model->update(step); });
    streaming("gradient norm", all / one, one, [=] { model->gradient_norm(); });
    streaming("zero the gradients", all / one, one, [=] { model->zero_gradients(); });
}

// ---------------------------------------------------------------------------------------------------------------------
// The whole step

namespace {

// One training step as the loop makes it (train_gpt2_lnfree.cpp, section 5), without the loop's seams.
void train_one_step(Engine& model, const int32_t* tokens, int64_t B, int64_t T, const Settings& s) {
    model.clear_sigma_sums();
    model.zero_gradients();
    model.forward_backward(tokens, tokens + 1, B, T, s.aux(), 1);
    for (size_t i = 0; i < model.sites.all.size(); i++)
        update_running_sigma(model.sites.all[i], model.sigma_sums[i].mean(), s.sigma_ema);
    AdamWStep update;
    update.lr = learning_rate(s, 1);
    update.gradient_scale = clip_scale(model.gradient_norm(), s.clip);
    model.update(update);
}

}  // namespace

StepTimes time_steps(const GPT2Config& c, int64_t B, int64_t T, double budget, bool all) {
    Operands memory;
    const int32_t* tokens = memory.take_tokens(B * T + 1, c.V);
    const std::unique_ptr<Engine> model = make_reference(c);
    SplitMix64 random(1);
    for (int64_t i = 0; i < model->parameters(); i++)
        model->params.data()[i] = static_cast<real>(0.06 * (random.uniform() - 0.5));
    model->prepare_training(B, T);
    model->prepare_optimiser();
    const Settings settings;
    const auto step = [&] { train_one_step(*model, tokens, B, T, settings); };
    StepTimes times;
    const double begin = seconds_now();
    step();
    times.first = seconds_now() - begin;
    times.median = seconds_of(step, budget);
    times.peak_bytes = static_cast<double>(peak_memory_bytes());
    if (!all) return times;
    times.evaluation = seconds_of([&] { model->token_losses(tokens, tokens + 1, B, T); }, budget / 3);
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

namespace {

// What was measured, and what follows from it.
struct Figures {
    StepTimes step;
    double tokens = 0;     // of a step
    double flops = 0;      // of a step
    double evaluated = 0;  // FLOP/s of an evaluation
    double yardstick = 0;  // FLOP/s; 0: there is none
};

Json op_json(const Op& op) {
    Json j;
    j["op"] = op.name;
    j["calls"] = op.calls;
    j["seconds"] = op.calls * op.seconds;
    if (op.flops > 0) j["gflops"] = op.flops / op.seconds / 1e9;
    if (op.yardstick_seconds > 0) j["of_yardstick"] = op.yardstick_seconds / op.seconds;
    j["gbytes_per_s"] = op.bytes / op.seconds / 1e9;
    return j;
}

std::string op_table(const std::vector<Op>& ops, double step_seconds) {
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

std::string step_table(const Figures& f) {
    const StepTimes& step = f.step;
    const auto percent = [&](double flops_per_s) {
        return f.yardstick > 0 ? format_fixed(100 * flops_per_s / f.yardstick, 0) : "no OpenBLAS";
    };
    Table table({"", "seconds", "tokens/s", "GFLOP/s", "% of yardstick"});
    table.add_row({"training step", format_fixed(step.median, 3), format_fixed(f.tokens / step.median, 0),
                   format_fixed(f.flops / step.median / 1e9, 1), percent(f.flops / step.median)});
    table.add_row({"first step", format_fixed(step.first, 3), format_fixed(f.tokens / step.first, 0)});
    if (step.one_thread > 0)
        table.add_row({"with one thread", format_fixed(step.one_thread, 3), format_fixed(f.tokens / step.one_thread, 0),
                       format_fixed(f.flops / step.one_thread / 1e9, 1)});
    table.add_row({"evaluation", format_fixed(step.evaluation, 3), format_fixed(f.tokens / step.evaluation, 0),
                   format_fixed(f.evaluated / 1e9, 1), percent(f.evaluated)});
    return table.text();
}

// Floating-point operations of a training step: three times those of the forward products, attention's causal half.
// (What is remade in backward is not counted: it is our choice, not the model's need.)
double step_flops(const std::vector<Op>& ops) {
    double flops = 0;
    for (const Op& op : ops) flops += op.calls * op.flops;
    return flops;
}

// FLOP/s of OpenBLAS over all products of a step; 0 if it is not there.
double yardstick_flops_per_s(const std::vector<Op>& ops) {
    double flops = 0, seconds = 0;
    for (const Op& op : ops) {
        if (!op.yardstick) continue;
        flops += op.calls * op.flops;
        seconds += op.calls * op.yardstick_seconds;
    }
    return seconds > 0 ? flops / seconds : 0;
}

Json figures_json(const Options& o, const Figures& f, const std::vector<Op>& ops) {
    const StepTimes& step = f.step;
    const auto share = [&](double flops_per_s) { return f.yardstick > 0 ? Json(flops_per_s / f.yardstick) : Json(); };
    Json j;
    j["machine"] = {{"processor", processor_name()}, {"threads", thread_count()}, {"isa", operations().isa}};
    j["precision"] = o.precision;
    j["model"] = o.name;
    j["batch"] = o.batch;
    j["seq"] = o.seq;
    j["yardstick_gflops"] = f.yardstick > 0 ? Json(f.yardstick / 1e9) : Json();
    j["step"] = {{"first_seconds", step.first},
                 {"seconds", step.median},
                 {"tokens_per_s", f.tokens / step.median},
                 {"gflop", f.flops / 1e9},
                 {"gflops", f.flops / step.median / 1e9},
                 {"of_yardstick", share(f.flops / step.median)},
                 {"peak_bytes", step.peak_bytes}};
    j["evaluation"] = {
        {"seconds", step.evaluation}, {"gflops", f.evaluated / 1e9}, {"of_yardstick", share(f.evaluated)}};
    j["one_thread"] = Json();
    if (step.one_thread > 0)
        j["one_thread"] = {{"seconds", step.one_thread}, {"speed_up", step.one_thread / step.median}};
    j["ops"] = Json::array();
    for (const Op& op : ops) j["ops"].push_back(op_json(op));
    return j;
}

void print_figures(const Options& o, const Figures& f, const std::vector<Op>& ops, FILE* screen) {
    std::fprintf(screen, "%s, %d threads, %s\n%s, %s, B = %lld, T = %lld\n\n%s\n", processor_name().c_str(),
                 thread_count(), operations().isa, o.name.c_str(), o.precision.c_str(), static_cast<long long>(o.batch),
                 static_cast<long long>(o.seq), op_table(ops, f.step.median).c_str());
    std::fprintf(screen, "%s\nyardstick (OpenBLAS, the same products): %s GFLOP/s; peak memory %s\n",
                 step_table(f).c_str(),
                 f.yardstick > 0 ? format_fixed(f.yardstick / 1e9, 1).c_str() : "not there (libopenblas0)",
                 format_bytes(static_cast<uint64_t>(f.step.peak_bytes)).c_str());
}

}  // namespace

Json run(const Options& o, FILE* screen) {
    Figures f;
    f.step = time_steps(o.config, o.batch, o.seq, o.seconds);
    const OpenBlas blas;
    OpList list(o.config, o.batch, o.seq, blas);
    for (Op& op : list.ops) {
        const double budget = o.seconds / 10;
        op.seconds = seconds_of(op.run, budget);
        if (op.yardstick) op.yardstick_seconds = seconds_of(op.yardstick, budget);
    }
    f.tokens = static_cast<double>(o.batch * o.seq);
    f.flops = step_flops(list.ops);
    f.evaluated = f.flops / 3 / f.step.evaluation;
    f.yardstick = yardstick_flops_per_s(list.ops);
    print_figures(o, f, list.ops, screen);
    return figures_json(o, f, list.ops);
}

}  // namespace bench
}  // namespace lnfree
