// dev/cpu/bench.h explains what is measured.
#include "dev/cpu/bench.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "data/console.h"
#include "data/json.h"
#include "data/random.h"
#include "dev/cpu/bf16_speed.h"
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
// The ceiling

void Ceiling::measure_flops(double budget, bool one_thread) {
    flops_per_s = std::max(flops_per_s, fastest_multiply_adds(operations().multiply_adds, budget));
    if (!one_thread) return;
    const int threads = thread_count();
    set_thread_count(1);
    one_thread_flops_per_s =
        std::max(one_thread_flops_per_s, fastest_multiply_adds(operations().multiply_adds, budget));
    set_thread_count(threads);
}

// Seconds that a cache line takes from one core to another, at the fastest of many tries; 0 with a single thread. Two threads
// count a number up in turn. What they hand over so in 30 ns where they share a cache takes 170 ns where they do not, and a
// virtual machine is moved from one to the other and does not say so.
static double handover_seconds() {
    constexpr int TRIES = 200, TURNS = 100;
    if (thread_count() < 2) return 0;
    std::atomic<int> number{0};
    const auto take_turns = [&](int own) {
        double fastest = 0;
        for (int turn = 0; turn < TRIES * TURNS;) {
            const double begin = seconds_now();
            for (const int end = turn + TURNS; turn < end; turn++) {
                for (int looks = 1; number.load(std::memory_order_acquire) != 2 * turn + own; looks++)
                    if (looks % 1024 == 0) std::this_thread::yield();  // the other may be waiting for this core
                number.store(2 * turn + own + 1, std::memory_order_release);
            }
            const double seconds = (seconds_now() - begin) / (2 * TURNS);
            fastest = fastest == 0 ? seconds : std::min(fastest, seconds);
        }
        return fastest;
    };
    std::thread other(take_turns, 1);
    const double seconds = take_turns(0);
    other.join();
    return seconds;
}

// The most bytes per second of a sweep in `budget` seconds, and in two of them at least, after one that does not count.
static double fastest_sweep(const std::function<void()>& sweep, double bytes, double budget) {
    double best = 0;
    sweep();
    int tries = 0;
    for (const double begin = seconds_now(); tries < 2 || seconds_now() - begin < budget; tries++) {
        const double before = seconds_now();
        sweep();
        best = std::max(best, bytes / (seconds_now() - before));
    }
    return best;
}

double Ceiling::bytes_per_s(double bytes, double budget) {
    const double at_a_time = std::min(bytes, kBeyondCaches);
    const auto numbers = [&](int moved) {
        return std::max<int64_t>(1, static_cast<int64_t>(at_a_time / (moved * double(sizeof(real)))));
    };
    const int64_t triad = numbers(3), scaling = numbers(2);
    if (a_.size() < scaling) a_.allocate(scaling);
    if (b_.size() < triad) b_.allocate(triad);
    double& best = seen_[scaling];
    const auto try_with = [&](const real* b, int64_t n, int moved) {
        const int64_t times = std::max<int64_t>(1, (int64_t{1} << 22) / n);
        const double all = moved * static_cast<double>(sizeof(real)) * static_cast<double>(n * times);
        const auto sweep = [&] { operations().triad(a_.data(), b, real(1e-3), n, times); };
        best = std::max(best, fastest_sweep(sweep, all, budget / 2));
    };
    try_with(b_.data(), triad, 3);
    try_with(a_.data(), scaling, 2);
    return best;
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

OpList::OpList(const ModelConfig& c, int64_t B, int64_t T) {
    const int64_t N = B * T, H = c.n_inner;
    const double L = static_cast<double>(c.L);
    layer_products("qkv", L, N, c.C, c.qkv_width());
    add_attention(c, B, T);
    layer_products("attention projection", L, N, c.heads_width(), c.C);
    layer_products("MLP up", L, N, c.C, c.fc_width());
    layer_products("MLP down", L, N, H, c.C);
    add_classifier(c, N);
    add_norms(c, N);
    add_activation(c, N);
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
    op.by = [=](const Library& library) { library.matmul(ta, tb, M, N, K, A, lda, B, ldb, out, N, accumulate); };
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

void OpList::add_attention(const ModelConfig& c, int64_t B, int64_t T) {
    const Heads heads{c.NH, c.key_heads(), c.head_size()};
    const int64_t N = B * T, A = heads.width(), Q = heads.row();
    real* qkv = memory_.take(N * Q);
    real* out = memory_.take(N * A);
    real* lse = memory_.take(N * c.NH);
    real* dqkv = memory_.take(N * Q);
    const double product = static_cast<double>(B * A) * static_cast<double>(T) * static_cast<double>(T + 1);
    Op forward, backward;
    forward.name = "attention, forward";
    forward.calls = backward.calls = static_cast<double>(c.L);
    forward.flops = 2 * product;  // scores and weighted values, each half of a T x T square
    forward.bytes = 4.0 * static_cast<double>(N * (Q + A));
    forward.run = [=] { operations().attention_forward(out, lse, qkv, B, T, heads, 0, T); };
    backward.name = "attention, backward";
    backward.flops = 4 * product;  // dq, dk, dv, dp; remaking the scores is not counted
    backward.bytes = 4.0 * static_cast<double>(2 * N * (Q + A));
    backward.run = [=] { operations().attention_backward(dqkv, out, qkv, out, lse, B, T, heads); };
    ops.push_back(std::move(forward));
    ops.push_back(std::move(backward));
    if (c.rotary > 0) add_rotary(c, heads, B, T);
}

// Reads and writes what turns of the queries and keys.
void OpList::add_rotary(const ModelConfig& c, const Heads& heads, int64_t B, int64_t T) {
    const int64_t R = c.rotary;
    real* qkv = memory_.take(B * T * heads.row());
    real* turns = memory_.take(T * R);
    for (int64_t i = 0; i < T * R; i++) turns[i] = static_cast<real>(std::sqrt(0.5));  // turns that leave lengths alone
    const double L = static_cast<double>(c.L), values = 2 * static_cast<double>(B * T * (heads.NH + heads.KH) * R);
    streaming("rotary positions, forward", L, values, [=] { operations().rotary_forward(qkv, turns, B, T, heads, R); });
    streaming("rotary positions, backward", L, values,
              [=] { operations().rotary_backward(qkv, turns, B, T, heads, R); });
}

// In chunks of rows, as the model takes them.
void OpList::add_classifier(const ModelConfig& c, int64_t N) {
    const int64_t V = c.V, rows = classifier_rows(N, V);
    const double chunks = static_cast<double>(N) / static_cast<double>(rows);
    product("unembedding, forward", chunks, Transpose::No, Transpose::Yes, rows, V, c.C, false);
    product("unembedding, d input", chunks, Transpose::No, Transpose::No, rows, c.C, V, false);
    product("unembedding, d weight", chunks, Transpose::Yes, Transpose::No, V, c.C, rows, true);
    real* logits = memory_.take(rows * V);
    real* losses = memory_.take(rows);
    const int32_t* targets = memory_.take_tokens(rows, V);
    streaming("softmax, cross-entropy", chunks, static_cast<double>(2 * rows * V),
              [=] { operations().softmax_cross_entropy(losses, logits, targets, 1e-3, true, rows, V); });
}

void OpList::add_norms(const ModelConfig& c, int64_t N) {
    const int64_t C = c.C;
    const double norms = static_cast<double>(2 * c.L + 1), NC = static_cast<double>(N * C);
    const real* inp = memory_.take(N * C);
    real *out = memory_.take(N * C), *dinp = memory_.take(N * C);
    real *mean = memory_.take(N), *sigma = memory_.take(N);
    real *gamma = memory_.take(C), *dgamma = memory_.take(C);
    real *beta = c.norm_bias ? memory_.take(C) : nullptr, *dbeta = c.norm_bias ? memory_.take(C) : nullptr;
    const bool centred = c.centred;
    Site site;
    site.centred = centred;
    streaming(centred ? "mean and sigma" : "sigma", norms, NC,
              [=] { operations().moments_forward(mean, sigma, inp, 1e-5, centred, N, C); });
    streaming("norm, forward (twice)", 2 * norms - 1, 2 * NC,
              [=] { operations().norm_forward(out, inp, mean, sigma, gamma, beta, N, C); });
    // (Its divisor is sigma itself.)
    streaming(centred ? "LayerNorm, backward" : "RMSNorm, backward", norms, 4 * NC, [=] {
        operations().norm_backward(dinp, dgamma, dbeta, out, inp, gamma, mean, sigma, sigma, site, N, C);
    });
}

void OpList::add_elementwise(const ModelConfig& c, int64_t B, int64_t T) {
    const int64_t N = B * T, C = c.C, NC = N * C;
    const double L = static_cast<double>(c.L);
    real *a = memory_.take(NC), *b = memory_.take(NC), *d = memory_.take(NC);
    real *wte = memory_.take(c.V * C), *wpe = c.rotary > 0 ? nullptr : memory_.take(c.n_ctx * C);
    const int32_t* tokens = memory_.take_tokens(N, c.V);
    const double values = static_cast<double>(NC);
    const Operations& op = operations();
    streaming("residual", 2 * L, 3 * values, [=, &op] { op.residual_forward(d, a, b, NC); });
    const int64_t positions = wpe == nullptr ? 0 : T;
    const double rows_of_embeddings = static_cast<double>((std::min(N, c.V) + positions) * C);  // no token comes twice
    streaming("encoder, forward", 1, values + rows_of_embeddings,
              [=, &op] { op.encoder_forward(d, tokens, wte, wpe, B, T, C); });
    streaming("encoder, backward", 1, values + 2 * rows_of_embeddings,
              [=, &op] { op.encoder_backward(wte, wpe, d, tokens, B, T, C); });
}

void OpList::add_activation(const ModelConfig& c, int64_t N) {
    const int64_t H = c.n_inner, F = c.fc_width();
    const double L = static_cast<double>(c.L);
    real *fc = memory_.take(N * F), *hidden = memory_.take(N * H), *dfc = memory_.take(N * F);
    const Operations& op = operations();
    const auto add = [&](const std::string& name, std::function<void()> forward, std::function<void()> backward) {
        streaming(name + ", forward (twice)", 2 * L, static_cast<double>(N * (F + H)), std::move(forward));
        streaming(name + ", backward", L, static_cast<double>(N * (2 * F + H)), std::move(backward));
    };
    switch (c.activation) {
        case Activation::gelu_tanh:
            return add(
                "GELU", [=, &op] { op.gelu_forward(hidden, fc, N * H); },
                [=, &op] { op.gelu_backward(dfc, hidden, fc, N * H); });
        case Activation::gelu_erf:
            return add(
                "GELU by erf", [=, &op] { op.gelu_erf_forward(hidden, fc, N * H); },
                [=, &op] { op.gelu_erf_backward(dfc, hidden, fc, N * H); });
        case Activation::gated_silu:
            return add(
                "gated SiLU", [=, &op] { op.gated_silu_forward(hidden, fc, N, H); },
                [=, &op] { op.gated_silu_backward(dfc, hidden, fc, N, H); });
    }
}

// On a model of a single layer, because a second copy of every weight and moment would not fit beside the first; the
// calls say how many such models the whole one is.
void OpList::add_optimiser(ModelConfig c) {
    const double all = static_cast<double>(parameter_count(tensor_table(c)));
    c.L = 1;
    const std::shared_ptr<Engine> model = make_reference(c);
    model->prepare_training();
    model->prepare_optimiser();
    AdamWStep step;
    step.lr = 1e-4;
    const double one = static_cast<double>(model->parameters());
    streaming("AdamW, zero gradients", all / one, 8 * one, [=] { model->update(step); });
    streaming("gradient norm", all / one, one, [=] { model->gradient_norm(); });
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

StepTimes time_steps(const ModelConfig& c, int64_t B, int64_t T, double budget, bool all) {
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

// A library over all products of a step.
struct Yardstick {
    std::string name, kernel;
    double flops_per_s = 0;
};

// What was measured, and what follows from it.
struct Figures {
    StepTimes step;
    Ceiling ceiling;
    double memory = 0;      // bytes per second of a triad, from memory
    double tokens = 0;      // of a step
    double flops = 0;       // of a step
    double floor = 0;       // seconds of a step
    double evaluated = 0;   // FLOP/s of an evaluation
    double handover = 0;    // seconds that a cache line takes from one core to another
    double bf16_speed = 0;  // of products, over fp32's
    std::vector<Yardstick> yardsticks;

    bool counts(size_t yardstick) const { return is_yardstick(yardsticks[yardstick].flops_per_s, ceiling.flops_per_s); }
};

std::string percent(double share) {
    return format_fixed(100 * share, 0);
}

Json op_json(const Op& op, const Figures& f) {
    Json j;
    j["op"] = op.name;
    j["calls"] = op.calls;
    j["seconds"] = op.calls * op.seconds;
    j["floor_seconds"] = op.calls * op.floor();
    j["of_floor"] = op.floor() / op.seconds;
    j["bound_by"] = op.flops_seconds > op.bytes_seconds ? "arithmetic" : "memory";
    if (op.flops > 0) j["gflops"] = op.flops / op.seconds / 1e9;
    for (size_t i = 0; i < op.library_seconds.size(); ++i)
        if (f.counts(i)) j["of_library"][f.yardsticks[i].name] = op.library_seconds[i] / op.seconds;
    j["gbytes_per_s"] = op.bytes / op.seconds / 1e9;
    return j;
}

std::string op_table(const std::vector<Op>& ops, const Figures& f) {
    std::vector<std::string> columns = {"op", "calls", "ms a step", "% of step", "% of floor", "GFLOP/s", "GB/s"};
    for (size_t i = 0; i < f.yardsticks.size(); ++i)
        if (f.counts(i)) columns.push_back("% of " + f.yardsticks[i].name);
    Table table(columns);
    double sum = 0;
    for (const Op& op : ops) {
        const double seconds = op.calls * op.seconds;
        sum += seconds;
        std::vector<std::string> row = {op.name,
                                        format_fixed(op.calls, 1),
                                        format_fixed(1e3 * seconds, 2),
                                        format_fixed(100 * seconds / f.step.median, 1),
                                        percent(op.floor() / op.seconds),
                                        op.flops > 0 ? format_fixed(op.flops / op.seconds / 1e9, 1) : "",
                                        format_fixed(op.bytes / op.seconds / 1e9, 1)};
        for (size_t i = 0; i < op.library_seconds.size(); ++i)
            if (f.counts(i)) row.push_back(percent(op.library_seconds[i] / op.seconds));
        table.add_row(row);
    }
    table.add_row({"sum of the ops", "", format_fixed(1e3 * sum, 2), format_fixed(100 * sum / f.step.median, 1),
                   percent(f.floor / sum)});
    return table.text();
}

std::string step_table(const Figures& f) {
    const StepTimes& step = f.step;
    Table table({"", "seconds", "tokens/s", "GFLOP/s", "% of peak", "% of floor"});
    const auto add = [&](const std::string& name, double seconds, double flops_per_s, double peak) {
        table.add_row({name, format_fixed(seconds, 3), format_fixed(f.tokens / seconds, 0),
                       format_fixed(flops_per_s / 1e9, 1), percent(flops_per_s / peak),
                       name == "training step" ? percent(f.floor / seconds) : ""});
    };
    add("training step", step.median, f.flops / step.median, f.ceiling.flops_per_s);
    add("first step", step.first, f.flops / step.first, f.ceiling.flops_per_s);
    if (step.one_thread > 0)
        add("with one thread", step.one_thread, f.flops / step.one_thread, f.ceiling.one_thread_flops_per_s);
    add("evaluation", step.evaluation, f.evaluated, f.ceiling.flops_per_s);
    return table.text();
}

// Floating-point operations of a training step: three times those of the forward products, attention's causal half.
// (What is remade in backward is not counted: it is our choice, not the model's need.)
double step_flops(const std::vector<Op>& ops) {
    double flops = 0;
    for (const Op& op : ops) flops += op.calls * op.flops;
    return flops;
}

double step_floor(const std::vector<Op>& ops) {
    double seconds = 0;
    for (const Op& op : ops) seconds += op.calls * op.floor();
    return seconds;
}

// FLOP/s of a library over all products of a step.
double flops_per_s_of(size_t library, const std::vector<Op>& ops) {
    double flops = 0, seconds = 0;
    for (const Op& op : ops) {
        if (!op.by) continue;
        flops += op.calls * op.flops;
        seconds += op.calls * op.library_seconds[library];
    }
    return flops / seconds;
}

Json libraries_json(const Figures& f) {
    Json list = Json::array();
    for (size_t i = 0; i < f.yardsticks.size(); ++i) {
        const Yardstick& y = f.yardsticks[i];
        list.push_back({{"name", y.name},
                        {"kernel", y.kernel},
                        {"gflops", y.flops_per_s / 1e9},
                        {"of_peak", y.flops_per_s / f.ceiling.flops_per_s},
                        {"left_out", !f.counts(i)}});
    }
    return list;
}

Json figures_json(const Options& o, const Figures& f, const std::vector<Op>& ops) {
    const StepTimes& step = f.step;
    const double peak = f.ceiling.flops_per_s;
    Json j;
    j["machine"] = {{"processor", processor_name()}, {"threads", thread_count()}, {"isa", operations().isa}};
    j["precision"] = o.precision;
    j["model"] = o.name;
    j["batch"] = o.batch;
    j["seq"] = o.seq;
    j["ceiling"] = {{"gflops", peak / 1e9},
                    {"one_thread_gflops", f.ceiling.one_thread_flops_per_s / 1e9},
                    {"gbytes_per_s", f.memory / 1e9}};
    j["handover_ns"] = f.handover > 0 ? Json(f.handover * 1e9) : Json();
    j["bf16_speed"] = f.bf16_speed;
    j["libraries"] = libraries_json(f);
    j["step"] = {{"first_seconds", step.first},
                 {"seconds", step.median},
                 {"floor_seconds", f.floor},
                 {"of_floor", f.floor / step.median},
                 {"tokens_per_s", f.tokens / step.median},
                 {"gflop", f.flops / 1e9},
                 {"gflops", f.flops / step.median / 1e9},
                 {"of_peak", f.flops / step.median / peak},
                 {"peak_bytes", step.peak_bytes}};
    j["evaluation"] = {{"seconds", step.evaluation}, {"gflops", f.evaluated / 1e9}, {"of_peak", f.evaluated / peak}};
    j["one_thread"] = Json();
    if (step.one_thread > 0)
        j["one_thread"] = {{"seconds", step.one_thread}, {"speed_up", step.one_thread / step.median}};
    j["ops"] = Json::array();
    for (const Op& op : ops) j["ops"].push_back(op_json(op, f));
    return j;
}

std::string library_lines(const Figures& f) {
    if (f.yardsticks.empty()) return "no other library to compare with (libopenblas0, libdnnl2 or MKL)\n";
    std::string lines;
    for (size_t i = 0; i < f.yardsticks.size(); ++i) {
        const Yardstick& y = f.yardsticks[i];
        lines += y.kernel + ": " + format_fixed(y.flops_per_s / 1e9, 1) + " GFLOP/s over the same products, " +
                 percent(y.flops_per_s / f.ceiling.flops_per_s) + " % of the peak" +
                 (f.counts(i) ? "" : "; below half of it, so it is left out above") + "\n";
    }
    return lines;
}

void print_figures(const Options& o, const Figures& f, const std::vector<Op>& ops, FILE* screen) {
    std::fprintf(screen, "%s, %d threads, %s\n%s, %s, B = %lld, T = %lld\n", processor_name().c_str(), thread_count(),
                 operations().isa, o.name.c_str(), o.precision.c_str(), static_cast<long long>(o.batch),
                 static_cast<long long>(o.seq));
    std::fprintf(screen, "at the most: %s GFLOP/s in fp32 (one thread: %s), %s GB/s from memory\n",
                 format_fixed(f.ceiling.flops_per_s / 1e9, 1).c_str(),
                 format_fixed(f.ceiling.one_thread_flops_per_s / 1e9, 1).c_str(),
                 format_fixed(f.memory / 1e9, 1).c_str());
    if (f.handover > 0)
        std::fprintf(screen, "from one core to another: %s ns for a cache line\n",
                     format_fixed(f.handover * 1e9, 0).c_str());
    std::fprintf(screen, "\n%s\n", op_table(ops, f).c_str());
    std::fprintf(screen, "%s\n%sproducts in bf16: %s times as fast as in fp32\npeak memory %s\n", step_table(f).c_str(),
                 library_lines(f).c_str(), format_fixed(f.bf16_speed, 2).c_str(),
                 format_bytes(static_cast<uint64_t>(f.step.peak_bytes)).c_str());
}

}  // namespace

Json run(const Options& o, FILE* screen) {
    Figures f;
    f.step = time_steps(o.config, o.batch, o.seq, o.seconds);
    const std::vector<Library> libraries = find_libraries();
    OpList list(o.config, o.batch, o.seq);
    const double budget = o.seconds / 10;
    f.ceiling.measure_flops(budget);
    f.handover = handover_seconds();
    for (Op& op : list.ops) {
        op.seconds = seconds_of(op.run, budget);
        f.ceiling.bytes_per_s(op.bytes, budget);
    }
    // After all of ours: other libraries' threads go on waiting for work for a while, and would be in the way.
    for (Op& op : list.ops)
        for (const Library& library : libraries)
            if (op.by) op.library_seconds.push_back(seconds_of([&] { op.by(library); }, budget));
    f.ceiling.measure_flops(budget);
    f.memory = f.ceiling.memory_bytes_per_s(budget);
    for (Op& op : list.ops) {
        op.flops_seconds = op.flops / f.ceiling.flops_per_s;
        op.bytes_seconds = op.bytes / f.ceiling.bytes_per_s(op.bytes, budget);
    }
    f.tokens = static_cast<double>(o.batch * o.seq);
    f.flops = step_flops(list.ops);
    f.floor = step_floor(list.ops);
    f.evaluated = f.flops / 3 / f.step.evaluation;
    for (size_t i = 0; i < libraries.size(); ++i)
        f.yardsticks.push_back({libraries[i].name, libraries[i].kernel, flops_per_s_of(i, list.ops)});
    f.bf16_speed = bf16_speed();  // at the end, since it sets what products round to
    print_figures(o, f, list.ops, screen);
    return figures_json(o, f, list.ops);
}

}  // namespace bench
}  // namespace lnfree
