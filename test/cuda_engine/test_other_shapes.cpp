// The CUDA engine, in emulation, on shapes that are not GPT-2's, against the reference: losses, gradients, a removal step by
// step, decoding, analyses.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "data/error.h"
#include "data/random.h"
#include "dev/cuda/compare.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda/removal_steps.h"
#include "dev/cuda_on_cpu/options.h"
#include "test/test_models.h"

using namespace lnfree;

namespace {

typedef std::unique_ptr<Engine> (*Maker)(const ModelConfig&);

// Those of the reference's tests, and two with heads that tensor cores take and rows that fit 16 bytes.
std::vector<ModelConfig> all_shapes() {
    std::vector<ModelConfig> shapes = other_shapes();
    ModelConfig smollm = shape_of(2, 3, 96, 67, 13, 64), pythia = shape_of(2, 2, 64, 67, 13, 72);
    smollm.rotary = 32;
    smollm.shared_heads = 1;
    smollm.centred = smollm.norm_bias = smollm.attention_bias = smollm.mlp_bias = false;
    smollm.activation = Activation::gated_silu;
    pythia.rotary = 16;
    pythia.parallel = true;
    pythia.activation = Activation::gelu_erf;
    pythia.tied = false;
    shapes.insert(shapes.end(), {smollm, pythia});
    return shapes;
}

// Weights with which a product keeps the size of what it reads: larger ones saturate attention, whose gradients are then what
// is left of rounded numbers that cancel.
std::unique_ptr<Engine> made(Maker make, const ModelConfig& c, double scale = 1) {
    std::unique_ptr<Engine> model = make(c);
    randomise(*model, 19, scale / std::sqrt(static_cast<double>(c.C)));
    return model;
}

// Stage 0: every norm is there; 1: qk and v differ; 2: all are frozen; 3: folded.
constexpr int kStages[] = {0, 1, 2, 3};
ModelConfig at_stage(ModelConfig c, int stage) {
    if (stage == 3) c.form = ModelForm::folded;
    return c;
}
void go_to_stage(Engine& model, int stage) {
    for (int64_t l = 0; stage == 1 && l < model.config.L; l++) {
        freeze(model.sites.mlp(l), 0.9 + static_cast<double>(l));
        freeze(model.sites.qk(l), 0.7);
    }
    for (Site& site : model.sites.all)
        if (stage == 2) freeze(site, 0.8 + 0.1 * static_cast<int>(site.kind));
}

struct Pass {
    BatchLoss loss;
    std::vector<float> gradients;
};

Pass pass_of(Maker make, const ModelConfig& shape, int stage, Maker teacher_of) {
    const std::unique_ptr<Engine> model = made(make, at_stage(shape, stage)), teacher = made(teacher_of, shape, 0.5);
    go_to_stage(*model, stage);
    const int64_t B = 3, T = shape.n_ctx;
    const std::vector<int32_t> tokens = random_tokens(B * T + 1, shape.V);
    model->prepare_training(B, T);
    model->zero_gradients();
    Pass pass;
    pass.loss = model->forward_backward(tokens.data(), tokens.data() + 1, B, T, {0.1}, 1, {0.4, teacher.get()});
    pass.gradients = cuda::gradients_of(*model);
    return pass;
}

// A few tokens often, so that there is something to learn.
std::vector<int32_t> tokens_of(int64_t step, int64_t n, int64_t V) {
    SplitMix64 random(static_cast<uint64_t>(1000 * step));
    std::vector<int32_t> tokens(static_cast<size_t>(n + 1));
    for (int32_t& t : tokens)
        t = static_cast<int32_t>(random.below(random.below(3) == 0 ? static_cast<uint64_t>(V) : 5));
    return tokens;
}

// Every site goes within 24 steps.
Settings schedule(const ModelConfig& c) {
    Settings s;
    s.steps = s.stop = 24;
    s.batch = 3;
    s.seq = c.n_ctx;
    s.grad_accum = 1;
    s.lr = 3e-3;
    s.min_lr = 1e-3;
    s.warmup = 3;
    s.sigma_ema = 0.3;
    s.start_mlp = 3;
    s.gap_mlp = s.gap_qk = s.gap_v = 3;
    s.start_qk = 9;
    s.start_v = 15;
    s.start_f = 21;
    return s;
}

struct Run {
    std::vector<double> losses;
    std::vector<float> weights;
};

Run removal(Maker make, const ModelConfig& c) {
    const Settings s = schedule(c);
    const std::unique_ptr<Engine> model = made(make, c, 0.5);
    model->prepare_training(s.batch, s.seq);
    model->prepare_optimiser();
    Run run;
    for (int64_t step = 0; step < s.stop; step++) {
        const std::vector<int32_t> tokens = tokens_of(step, s.batch * s.seq, c.V);
        StepBatches batches;
        batches.inputs.emplace_back(tokens.begin(), tokens.end() - 1);
        batches.targets.emplace_back(tokens.begin() + 1, tokens.end());
        cuda::begin_step(*model, s, step, batches);
        run.losses.push_back(cuda::step_loss(*model, s, batches).loss);
        cuda::finish_step(*model, s, step);
    }
    for (const Site& site : model->sites.all) CHECK(site.removed());
    model->fetch_parameters();
    run.weights.assign(model->params.data(), model->params.data() + model->parameters());
    return run;
}

}  // namespace

#define DESCRIBE(c)          \
    CAPTURE(c.C);            \
    CAPTURE(c.rotary);       \
    CAPTURE(c.shared_heads); \
    CAPTURE(c.centred);      \
    CAPTURE(c.norm_bias)

TEST_CASE("loss and gradients of every shape, with norms, half-way, without and folded, are the reference's") {
    for (const ModelConfig& c : all_shapes())
        for (const int stage : kStages) {
            DESCRIBE(c);
            CAPTURE(stage);
            const Pass cpu = pass_of(make_reference, c, stage, make_reference);
            for (const int recompute : {0, 2}) {
                // The emulation's checks of shared memory, once for every shape.
                const cuda::TemporaryEmulationOptions checked(stage == 1 && recompute == 0, 0);
                CAPTURE(recompute);
                const cuda::OptionsKeeper keeper;
                cuda::device_options().recompute = recompute;
                const Pass gpu = pass_of(cuda::make_engine, c, stage, cuda::make_engine);
                CHECK(gpu.loss.loss == doctest::Approx(cpu.loss.loss).epsilon(1e-5));
                CHECK(gpu.loss.aux == doctest::Approx(cpu.loss.aux).epsilon(1e-5));
                CHECK(gpu.loss.kl == doctest::Approx(cpu.loss.kl).epsilon(1e-5));
                CHECK(cuda::largest_tensor_error(at_stage(c, stage), gpu.gradients.data(), cpu.gradients.data()) <
                      1e-5);
            }
        }
}

TEST_CASE("24 steps through a whole removal in fp32: the reference's losses to 1e-5, weights to 1e-4") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    for (const ModelConfig& c : all_shapes()) {
        DESCRIBE(c);
        const Run cpu = removal(make_reference, c), gpu = removal(cuda::make_engine, c);
        for (size_t s = 0; s < cpu.losses.size(); s++) {
            CAPTURE(s);
            CHECK(gpu.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(1e-5));
        }
        CHECK(cuda::largest_tensor_error(c, gpu.weights.data(), cpu.weights.data()) < 1e-4);
        CHECK(cpu.losses.back() < cpu.losses.front());
        if (c.C > 12) continue;  // the small ones are enough for bits

        cuda::OptionsKeeper keeper;
        cuda::device_options().cuda_graphs = true;
        CHECK(removal(cuda::make_engine, c).weights == gpu.weights);
    }
}

TEST_CASE("the same in bf16 stays within 3 % of the reference's losses, whatever backward remakes") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    for (const ModelConfig& c : all_shapes()) {
        DESCRIBE(c);
        const cuda::OptionsKeeper keeper;
        cuda::device_options().in_bf16 = true;
        const Run cpu = removal(make_reference, c), gpu = removal(cuda::make_engine, c);
        for (size_t s = 0; s < cpu.losses.size(); s++) {
            CAPTURE(s);
            CHECK(gpu.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(0.03));
        }
        if (c.C > 12) continue;
        cuda::device_options().recompute = 2;
        CHECK(removal(cuda::make_engine, c).weights == gpu.weights);
    }
}

TEST_CASE("decoding a few tokens at a time gives the reference's logits of a whole pass") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    const int64_t B = 2;
    for (const ModelConfig& shape : all_shapes())
        for (const int stage : {1, 3}) {
            DESCRIBE(shape);
            CAPTURE(stage);
            const ModelConfig c = at_stage(shape, stage);
            const std::unique_ptr<Engine> cpu = made(make_reference, c), gpu = made(cuda::make_engine, c);
            for (Engine* each : {cpu.get(), gpu.get()}) go_to_stage(*each, stage);
            const int64_t T = c.n_ctx, V = c.V;
            const std::vector<int32_t> tokens = random_tokens(B * T, V);
            std::vector<real> expected(static_cast<size_t>(B * T * V)), got(static_cast<size_t>(B * V));
            cpu->logits(expected.data(), tokens.data(), B, T);
            gpu->start_decoding(B);
            double off = 0;
            for (int64_t t = 0, more = 3; t < T; t += more, more = t + 2 <= T && t % 2 == 0 ? 2 : 1) {
                std::vector<int32_t> next;
                std::vector<real> last;
                for (int64_t b = 0; b < B; b++) {
                    next.insert(next.end(), tokens.begin() + b * T + t, tokens.begin() + b * T + t + more);
                    const auto row = expected.begin() + (b * T + t + more - 1) * V;
                    last.insert(last.end(), row, row + V);
                }
                gpu->decode(got.data(), next.data(), B, more);
                off = std::max(off, cuda::largest_error(got, last));
            }
            CHECK(off < 1e-5);
        }
}

TEST_CASE("analyses see the reference's streams, heads, queries, neurons and gradients") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    const int64_t B = 2;
    for (const ModelConfig& shape : all_shapes())
        for (const int stage : {1, 3}) {
            DESCRIBE(shape);
            CAPTURE(stage);
            const ModelConfig c = at_stage(shape, stage);
            const int64_t T = c.n_ctx, N = B * T;
            const std::vector<int32_t> tokens = random_tokens(N, c.V);
            const std::vector<real> dnormed(static_cast<size_t>(N * c.C), real(0.3));
            const auto seen_by = [&](Maker make) {
                const std::unique_ptr<Engine> model = made(make, c);
                go_to_stage(*model, stage);
                std::vector<std::vector<real>> seen;
                const auto note = [&](const real* x, int64_t n) { seen.emplace_back(x, x + n); };
                Probe probe;
                probe.residual = [&](int64_t, const real* x) { note(x, N * c.C); };
                probe.attention = [&](int64_t, const real* heads, const real* qkv, const real* lse) {
                    note(heads, N * c.heads_width());
                    note(qkv, N * c.qkv_width());
                    note(lse, N * c.NH);
                };
                probe.mlp = [&](int64_t, const real* hidden, const real* out) {
                    note(hidden, N * c.n_inner);
                    note(out, N * c.C);
                };
                model->trace(tokens.data(), B, T, probe, true);
                model->stream_gradients(dnormed.data(), tokens.data(),
                                        [&](int64_t, const real* x) { note(x, N * c.C); });
                return seen;
            };
            const auto ours = seen_by(cuda::make_engine), theirs = seen_by(make_reference);
            REQUIRE(ours.size() == theirs.size());
            for (size_t i = 0; i < ours.size(); i++) {
                CAPTURE(i);
                CHECK(cuda::largest_error(ours[i], theirs[i]) < 1e-5);
            }
        }
}

TEST_CASE("memory follows the widths: shared keys take less of it, gates more") {
    const ModelConfig base = shape_of(2, 4, 64, 67, 13, 128);
    ModelConfig shared = base, gated = base;
    shared.shared_heads = 1;
    gated.activation = Activation::gated_silu;
    for (const bool training : {false, true}) {
        const auto bytes = [&](const ModelConfig& c) { return cuda::device_bytes(c, 8, 13, training, true, 0); };
        CHECK(bytes(shared) < bytes(base));
        CHECK(bytes(gated) > bytes(base));
    }
}
