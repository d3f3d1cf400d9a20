// The CUDA engine as a whole, in emulation, against the reference: losses, gradients and weights of a removal, step by step.
// The first cases run it with the emulation's checks of shared memory, as test/cuda does every kernel by itself.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "data/random.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda/removal_steps.h"
#include "dev/cuda_on_cpu/options.h"
#include "test/test_models.h"

using namespace lnfree;

namespace {

static const ModelConfig kTwoLayers = shape_of(2, 2, 24, 67, 13, 56);

// Without the checks of shared memory.
struct WithoutChecks : cuda::TemporaryEmulationOptions {
    WithoutChecks() : TemporaryEmulationOptions(false, 0) {}
};

// The tokens of every micro-batch follow from the step alone: a few of them often, so that there is something to learn.
std::vector<int32_t> tokens_of(int64_t step, int64_t micro_batch, int64_t n, int64_t V) {
    SplitMix64 random(static_cast<uint64_t>(1000 * step + micro_batch));
    std::vector<int32_t> tokens(static_cast<size_t>(n + 1));
    for (int32_t& t : tokens)
        t = static_cast<int32_t>(random.below(random.below(3) == 0 ? static_cast<uint64_t>(V) : 5));
    return tokens;
}

Settings schedule() {
    Settings s;
    s.steps = s.stop = 40;
    s.batch = 3;
    s.seq = 11;
    s.grad_accum = 2;
    s.lr = 5e-3;
    s.min_lr = 1e-3;
    s.warmup = 3;
    s.sigma_ema = 0.3;
    s.start_mlp = 4;
    s.gap_mlp = s.gap_qk = s.gap_v = 5;
    s.start_qk = 14;
    s.start_v = 24;
    s.start_f = 34;
    return s;
}

struct Run {
    std::vector<double> losses, aux, kls, norms;
    std::vector<double> sigma_bars;
    std::vector<float> weights;
};

// Steps [from, to); at the end everything is in the host's memory.
void train_steps(Run& run, Engine& model, const Settings& s, int64_t from, int64_t to, Engine* teacher = nullptr) {
    for (int64_t step = from; step < to; step++) {
        StepBatches batches;
        for (int64_t a = 0; a < s.grad_accum; a++) {
            const std::vector<int32_t> tokens = tokens_of(step, a, s.batch * s.seq, model.config.V);
            batches.inputs.emplace_back(tokens.begin(), tokens.end() - 1);
            batches.targets.emplace_back(tokens.begin() + 1, tokens.end());
        }
        cuda::begin_step(model, s, step, batches);
        const BatchLoss mean = cuda::step_loss(model, s, batches, teacher);
        run.losses.push_back(mean.loss);
        run.aux.push_back(mean.aux);
        run.kls.push_back(mean.kl);
        run.norms.push_back(cuda::finish_step(model, s, step));
    }
    model.fetch_parameters();
    model.fetch_moments();
    run.weights.assign(model.params.data(), model.params.data() + model.parameters());
    run.sigma_bars.clear();
    for (const Site& site : model.sites.all) run.sigma_bars.push_back(site.sigma_bar);
}

// An engine of one kind or the other.
typedef std::unique_ptr<Engine> (*Maker)(const ModelConfig&);

std::unique_ptr<Engine> prepared(Maker make, const Settings& s, const ModelConfig& config) {
    std::unique_ptr<Engine> model = make(config);
    randomise(*model, 3);
    model->prepare_training(s.batch, s.seq);
    model->prepare_optimiser();
    return model;
}

Run run_from_start(Maker make, const Settings& s, const ModelConfig& config) {
    const std::unique_ptr<Engine> model = prepared(make, s, config);
    if (s.experiment.plant_position0 > 0) {
        std::vector<real> added;
        for (int64_t c = 0; c < config.C; c++)
            added.push_back(static_cast<real>(s.experiment.plant_position0 * std::cos(static_cast<double>(c))));
        const int64_t wpe = model->tensor("wpe.weight") - model->params.data();
        model->edit_parameters({wpe, config.C}, 0.5, added.data());
        const int64_t column = model->tensor("h.0.mlp.c_fc.weight") + 3 - model->params.data();
        model->edit_parameters({column, config.C, config.fc_width()}, 3, nullptr);
    }
    // Not the model itself, so that it has something to say from the first step on.
    const std::unique_ptr<Engine> teacher = s.distill > 0 ? make(config) : nullptr;
    if (teacher) randomise(*teacher, 8);
    Run run;
    train_steps(run, *model, s, 0, s.stop, teacher.get());
    return run;
}

Run reference_run(const Settings& s, const ModelConfig& config = kTwoLayers) {
    return run_from_start(make_reference, s, config);
}

cuda::DeviceOptions fp32_options() {
    return {};
}
cuda::DeviceOptions bf16_options() {
    cuda::DeviceOptions o;
    o.in_bf16 = true;
    return o;
}

Run cuda_run(const Settings& s, const cuda::DeviceOptions& options, const ModelConfig& config = kTwoLayers) {
    const cuda::OptionsKeeper keeper;
    cuda::device_options() = options;
    return run_from_start(cuda::make_engine, s, config);
}

void copy(const Buffer& from, Buffer& to) {
    std::copy(from.data(), from.data() + from.size(), to.data());
}

// Half of a run on one engine; the other half on another, which takes over what a checkpoint holds: weights, moments,
// sites.
Run run_in_two_halves(Maker make_first, Maker make_second, const Settings& s) {
    Run run;
    const std::unique_ptr<Engine> first = prepared(make_first, s, kTwoLayers);
    train_steps(run, *first, s, 0, s.stop / 2);
    const std::unique_ptr<Engine> second = make_second(kTwoLayers);
    second->prepare_optimiser();
    copy(first->params, second->params);
    copy(first->m, second->m);
    copy(first->v, second->v);
    second->sites = first->sites;
    second->updates = first->updates;
    second->prepare_training(s.batch, s.seq);
    second->resume(s.seed);
    train_steps(run, *second, s, s.stop / 2, s.stop);
    return run;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
    REQUIRE(a.size() == b.size());
    double largest = 0;
    for (size_t i = 0; i < a.size(); i++)
        if (!(std::abs(a[i] - b[i]) <= largest)) largest = std::abs(a[i] - b[i]);  // a NaN is a difference
    return largest;
}

double largest_weight_difference(const std::vector<float>& a, const std::vector<float>& b) {
    return cuda::largest_tensor_error(kTwoLayers, a.data(), b.data());
}

}  // namespace

TEST_CASE("40 steps through a whole removal in fp32: the reference's losses to 1e-5, weights to 1e-4") {
    const Settings p = schedule();
    const Run cpu = reference_run(p), gpu = cuda_run(p, fp32_options());
    CHECK(largest_difference(gpu.losses, cpu.losses) < 1e-5);
    CHECK(largest_difference(gpu.aux, cpu.aux) < 1e-5);
    CHECK(largest_difference(gpu.sigma_bars, cpu.sigma_bars) < 1e-5);
    CHECK(largest_difference(gpu.norms, cpu.norms) < 1e-4);
    CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 1e-4);
    CHECK(cpu.losses.back() < cpu.losses.front() - 1);  // something was learnt, so that agreeing means something
}

TEST_CASE("40 steps in bf16 stay within 2 % of the reference's losses, and lose what it loses") {
    const Settings p = schedule();
    const Run cpu = reference_run(p), gpu = cuda_run(p, bf16_options());
    for (size_t s = 0; s < cpu.losses.size(); s++) {
        CAPTURE(s);
        CHECK(gpu.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(0.02));
    }
    CHECK(largest_difference(gpu.losses, cpu.losses) > 1e-6);  // it is bf16
    CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 0.1);
}

TEST_CASE("bf16 with head sizes that tensor cores take stays as close") {
    ModelConfig c = kTwoLayers;
    c.C = 64;  // two heads of 32
    c.n_inner = 128;
    Settings p = schedule();
    p.grad_accum = 1;
    const Run cpu = reference_run(p, c), gpu = cuda_run(p, bf16_options(), c);
    for (size_t s = 0; s < cpu.losses.size(); s++) {
        CAPTURE(s);
        CHECK(gpu.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(0.03));
    }
}

TEST_CASE("--attention plain gives what tensor cores give, to bf16's precision, and other bits") {
    ModelConfig c = kTwoLayers;
    c.C = 64;  // two heads of 32, which tensor cores take
    Settings p = schedule();
    p.stop = 3;
    p.grad_accum = 1;
    cuda::DeviceOptions with_plain = bf16_options();
    with_plain.attention = "plain";
    const Run flash = cuda_run(p, bf16_options(), c), plain = cuda_run(p, with_plain, c);
    CHECK(plain.losses != flash.losses);
    for (size_t s = 0; s < flash.losses.size(); s++)
        CHECK(plain.losses[s] == doctest::Approx(flash.losses[s]).epsilon(0.01));
}

TEST_CASE("what backward remakes instead of keeping changes no bit") {
    const WithoutChecks fast;
    Settings p = schedule();
    p.stop = 28;  // until qk and v of the first layer differ
    const auto run_at = [&](int level) {
        cuda::DeviceOptions options = bf16_options();
        options.recompute = level;
        return cuda_run(p, options);
    };
    const Run kept = run_at(0);
    for (const int level : {1, 2}) {
        const Run remade = run_at(level);
        CHECK(remade.losses == kept.losses);
        CHECK(remade.weights == kept.weights);
    }
}

TEST_CASE("with --cuda-graphs every pass through a removal gives the bits of the pass that it replays") {
    const WithoutChecks fast;
    Settings p = schedule();
    p.grad_accum = 3;  // the second of equal passes is recorded, the third is the recording
    p.start_mlp = 1;   // a site goes with every step
    p.start_qk = 3;
    p.start_v = 5;
    p.start_f = 7;
    p.gap_mlp = p.gap_qk = p.gap_v = 1;
    p.stop = 9;
    for (const bool precursor : {false, true}) {
        CAPTURE(precursor);
        if (precursor) {
            p.experiment.own_position0 = true;
            p.aux_weight = 0;
            p.experiment.release_end_of_text = 8;
            p.experiment.release_position0 = 9;
            p.stop = 11;
        }
        const Run launched = cuda_run(p, fp32_options());
        cuda::DeviceOptions with_graphs;
        with_graphs.cuda_graphs = true;
        const Run replayed = cuda_run(p, with_graphs);
        CHECK(replayed.losses == launched.losses);
        CHECK(replayed.aux == launched.aux);
        CHECK(replayed.norms == launched.norms);
        CHECK(replayed.weights == launched.weights);
    }
}

TEST_CASE("with --cuda-graphs a pass uses the sigma_bar of its own time, not the recorded one") {
    const std::vector<int32_t> tokens = tokens_of(0, 0, 33, kTwoLayers.V);
    const auto losses = [&](bool with_graphs) {
        const cuda::OptionsKeeper keeper;
        cuda::device_options().cuda_graphs = with_graphs;
        const std::unique_ptr<Engine> model = cuda::make_engine(kTwoLayers);
        randomise(*model, 3);
        std::vector<double> seen;
        for (const double sigma_bar : {0.5, 0.5, 0.5, 0.9, 0.9}) {  // recorded at the second, launched at the third
            freeze(model->sites.mlp(1), sigma_bar);
            seen.push_back(model->forward_backward(tokens.data(), tokens.data() + 1, 3, 11, {}, 1).loss);
        }
        CHECK(seen[3] != seen[2]);
        return seen;
    };
    CHECK(losses(true) == losses(false));
}

TEST_CASE("with --cuda-graphs a teacher that was asked something longer meanwhile is heard at its new place") {
    const std::vector<int32_t> tokens = tokens_of(0, 0, 65, kTwoLayers.V);
    const auto kls = [&](bool with_graphs) {
        const cuda::OptionsKeeper keeper;
        cuda::device_options().cuda_graphs = with_graphs;
        const std::unique_ptr<Engine> model = cuda::make_engine(kTwoLayers), teacher = cuda::make_engine(kTwoLayers);
        randomise(*model, 3);
        randomise(*teacher, 8);
        std::vector<double> seen;
        for (int pass = 0; pass < 5; pass++) {  // recorded in the second, launched in the third
            if (pass == 3) teacher->token_losses(tokens.data(), tokens.data() + 1, 5, 13);
            const int32_t* inputs = tokens.data() + pass;
            seen.push_back(model->forward_backward(inputs, inputs + 1, 3, 11, {}, 1, {1, teacher.get()}).kl);
        }
        return seen;
    };
    CHECK(kls(true) == kls(false));
}

TEST_CASE(
    "40 steps of learning from a teacher: the reference's losses, divergences and weights, in fp32 and near in bf16") {
    const WithoutChecks fast;
    Settings p = schedule();
    for (const double share : {0.3, 1.0}) {
        CAPTURE(share);
        p.distill = share;
        const Run cpu = reference_run(p), gpu = cuda_run(p, fp32_options()), in_bf16 = cuda_run(p, bf16_options());
        CHECK(largest_difference(gpu.losses, cpu.losses) < 1e-5);
        CHECK(largest_difference(gpu.kls, cpu.kls) < 1e-5);
        CHECK(largest_difference(gpu.norms, cpu.norms) < 1e-4);
        CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 1e-4);
        for (size_t s = 0; s < cpu.losses.size(); s++) {
            CAPTURE(s);
            CHECK(in_bf16.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(0.02));
            CHECK(in_bf16.kls[s] == doctest::Approx(cpu.kls[s]).epsilon(0.1));
        }
        cuda::DeviceOptions with_graphs;
        with_graphs.cuda_graphs = true;
        CHECK(cuda_run(p, with_graphs).weights == gpu.weights);
    }
}

TEST_CASE("a model that is its own teacher has divergence and gradient 0, to the bit") {
    const std::vector<int32_t> tokens = tokens_of(0, 0, 33, kTwoLayers.V);
    for (const bool in_bf16 : {false, true}) {
        const cuda::OptionsKeeper keeper;
        cuda::device_options().in_bf16 = in_bf16;
        const std::unique_ptr<Engine> model = cuda::make_engine(kTwoLayers), teacher = cuda::make_engine(kTwoLayers);
        for (Engine* engine : {model.get(), teacher.get()}) randomise(*engine, 3);
        model->prepare_training(3, 11);
        const BatchLoss loss =
            model->forward_backward(tokens.data(), tokens.data() + 1, 3, 11, {0}, 2, {1, teacher.get()});
        CHECK(loss.kl == 0);
        CHECK(loss.loss > 0);
        CHECK(model->gradient_norm() == 0);
    }
}

TEST_CASE("predictions are compared as the reference compares them, with a folded original too") {
    const std::vector<int32_t> tokens = tokens_of(0, 0, 34, kTwoLayers.V);
    ModelConfig folded = kTwoLayers;
    folded.form = ModelForm::folded;
    for (const ModelConfig& of_original : {kTwoLayers, folded}) {
        const auto compared = [&](Maker make) {
            const std::unique_ptr<Engine> model = make(kTwoLayers), original = make(of_original);
            randomise(*model, 3);
            randomise(*original, 3);
            for (int64_t i = 0; i < original->parameters(); i += 3) original->params.data()[i] *= 2;
            const Comparison c = model->compare(*original, tokens.data(), tokens.data() + 1, 3, 11);
            return std::tuple(std::vector<double>(c.losses, c.losses + 33), std::vector<double>(c.kls, c.kls + 33),
                              std::vector<uint8_t>(c.agree, c.agree + 33));
        };
        const auto [losses, kls, agree] = compared(make_reference);
        const auto [our_losses, our_kls, ours_agree] = compared(cuda::make_engine);
        CHECK(largest_difference(our_losses, losses) < 1e-5);
        CHECK(largest_difference(our_kls, kls) < 1e-5);
        CHECK(ours_agree == agree);
        if (of_original.form != ModelForm::folded) CHECK(std::count(agree.begin(), agree.end(), 1) % 33 != 0);
    }
}

TEST_CASE("a run changes engines half-way and ends where one engine ends") {
    const WithoutChecks fast;
    const Settings p = schedule();
    const Run cpu = reference_run(p);
    const Run onto_cpu = run_in_two_halves(cuda::make_engine, make_reference, p);
    const Run onto_gpu = run_in_two_halves(make_reference, cuda::make_engine, p);
    for (const Run* run : {&onto_cpu, &onto_gpu}) {
        CHECK(largest_difference(run->losses, cpu.losses) < 1e-5);
        CHECK(largest_weight_difference(run->weights, cpu.weights) < 1e-4);
    }
}

TEST_CASE("the precursor's special cases: own sigma for position 0 and end-of-text, and their release") {
    const WithoutChecks fast;
    Settings p = schedule();
    p.preset = "precursor";
    p.lr = 2e-3;
    p.experiment.own_position0 = true;
    p.aux_weight = 0;
    p.start_mlp = 1;
    p.start_qk = 5;
    p.start_v = 9;
    p.start_f = 14;
    p.gap_mlp = p.gap_qk = p.gap_v = 2;
    p.experiment.release_end_of_text = 18;
    p.experiment.release_position0 = 22;
    p.stop = 26;
    const Run cpu = reference_run(p), gpu = cuda_run(p, fp32_options());
    CHECK(largest_difference(gpu.losses, cpu.losses) < 1e-5);
    CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 1e-4);
}

TEST_CASE(
    "the means against a position that stands out: gradual removal, its embedding shortened, auxiliary loss "
    "everywhere") {
    const WithoutChecks fast;
    Settings p = schedule();
    p.lr = 2e-3;
    p.start_mlp = 2;
    p.start_qk = 4;
    p.start_v = 5;
    p.start_f = 8;
    p.gap_mlp = p.gap_qk = p.gap_v = 1;
    p.experiment.gradual = 4;
    p.experiment.sigma_skips_position0 = true;
    p.experiment.aux_everywhere = p.experiment.aux_relative = true;
    p.experiment.plant_position0 = 10;
    p.stop = 14;
    const Run untouched = cuda_run(p, fp32_options());
    p.experiment.shrink_steps = 5;
    const Run cpu = reference_run(p), gpu = cuda_run(p, fp32_options());
    CHECK(largest_difference(gpu.losses, cpu.losses) < 1e-5);
    CHECK(largest_difference(gpu.aux, cpu.aux) < 1e-5);
    CHECK(largest_difference(gpu.sigma_bars, cpu.sigma_bars) < 1e-5);
    CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 1e-4);
    CHECK(gpu.aux.front() > 0);
    CHECK(untouched.weights != gpu.weights);
}

TEST_CASE("with stochastic rounding the model learns what it learns without") {
    const WithoutChecks fast;
    const Settings p = schedule();
    cuda::DeviceOptions at_random = bf16_options();
    at_random.stochastic_rounding = true;
    const Run nearest = cuda_run(p, bf16_options()), stochastic = cuda_run(p, at_random);
    CHECK(stochastic.losses != nearest.losses);
    CHECK(stochastic.losses.back() == doctest::Approx(nearest.losses.back()).epsilon(0.03));
}

TEST_CASE("evaluation and logits are the reference's, for any batch and length") {
    const std::unique_ptr<Engine> cpu = random_model(kTwoLayers, 3), gpu = cuda::make_engine(kTwoLayers);
    randomise(*gpu, 3);
    const int64_t V = kTwoLayers.V;
    for (const auto& [B, T] : {std::pair<int64_t, int64_t>{3, 11}, {1, 1}, {5, 7}, {2, 13}}) {
        const std::vector<int32_t> tokens = tokens_of(7, 0, B * T, V);
        const real* expected = cpu->token_losses(tokens.data(), tokens.data() + 1, B, T);
        const std::vector<real> losses(expected, expected + B * T);
        const real* found = gpu->token_losses(tokens.data(), tokens.data() + 1, B, T);
        for (size_t i = 0; i < losses.size(); i++) CHECK(found[i] == doctest::Approx(losses[i]).epsilon(1e-5));
        const int64_t from = T / 2;
        std::vector<real> a(static_cast<size_t>(B * (T - from) * V)), b(a.size());
        cpu->logits(a.data(), tokens.data(), B, T, from);
        gpu->logits(b.data(), tokens.data(), B, T, from);
        double off = 0;
        for (size_t i = 0; i < a.size(); i++) off = std::max(off, static_cast<double>(std::abs(a[i] - b[i])));
        CHECK(off < 1e-4);
    }
}

// Decodes B sequences of n_ctx tokens some at a time and returns the largest distance of a logit from a full pass's, over
// the largest logit. The sites are half-way through a removal, with the precursor's special cases.
static double decoding_error(ModelConfig c, const cuda::DeviceOptions& options) {
    const int64_t B = 3;
    c.end_of_text = 5;
    const cuda::OptionsKeeper keeper;
    cuda::device_options() = options;
    const std::unique_ptr<Engine> decoding = cuda::make_engine(c), full = cuda::make_engine(c);
    for (Engine* model : {decoding.get(), full.get()}) {
        randomise(*model, 3);
        for (Site& site : model->sites.all) {
            if (site.kind == SiteKind::mlp) continue;
            freeze(site, 0.7);
            site.own_position0 = true;
            site.own_end_of_text = site.kind == SiteKind::v;
            site.sigma_bar_0 = 1.9;
        }
    }
    const std::vector<int32_t> all = tokens_of(7, 0, B * c.n_ctx, c.V);
    double off = 0, largest = 0;
    for (int again = 0; again < 2; again++) {  // a second batch finds nothing of the first
        decoding->start_decoding(B);
        for (int64_t t = 0; t < c.n_ctx;) {
            const int64_t more = std::min<int64_t>(t == 0 ? 4 : t % 3 + 1, c.n_ctx - t);
            std::vector<int32_t> next, so_far;
            for (int64_t b = 0; b < B; b++) {
                const auto row = all.begin() + b * c.n_ctx;
                next.insert(next.end(), row + t, row + t + more);
                so_far.insert(so_far.end(), row, row + t + more);
            }
            t += more;
            std::vector<real> found(static_cast<size_t>(B * c.V)), expected(found.size());
            decoding->decode(found.data(), next.data(), B, more);
            full->logits(expected.data(), so_far.data(), B, t, t - 1);
            for (size_t i = 0; i < found.size(); i++) {
                off = std::max(off, static_cast<double>(std::abs(found[i] - expected[i])));
                largest = std::max(largest, static_cast<double>(std::abs(expected[i])));
            }
        }
    }
    decoding->start_decoding(0);
    return off / largest;
}

TEST_CASE("decoding a few tokens at a time gives the logits of full passes, also half-way through a removal") {
    CHECK(decoding_error(kTwoLayers, {}) < 1e-6);
    // A head that fills a warp's lanes twice, and leaves some empty.
    CHECK(decoding_error(shape_of(1, 2, 80, 67, 13, 56), {}) < 1e-6);
    cuda::DeviceOptions plain = bf16_options();
    plain.attention = "plain";
    CHECK(decoding_error(shape_of(2, 2, 64, 67, 13, 56), plain) < 1.0 / 128);  // two of bf16's roundings
}

TEST_CASE("the table of memory grows with the batch and shrinks with what is remade") {
    const ModelConfig c = kTwoLayers;
    int64_t before = 0;
    for (const int64_t B : {1, 2, 7, 64}) {
        const int64_t bytes = cuda::device_bytes(c, B, c.n_ctx, true, true, 0);
        CHECK(bytes > before);
        CHECK(bytes >= cuda::device_bytes(c, B, c.n_ctx, true, true, 1));
        CHECK(cuda::device_bytes(c, B, c.n_ctx, true, true, 1) >= cuda::device_bytes(c, B, c.n_ctx, true, true, 2));
        CHECK(bytes > cuda::device_bytes(c, B, c.n_ctx, false, true, 0));
        before = bytes;
    }
}

TEST_CASE("analyses of a model on the GPU see its weights and sites as they are now") {
    Settings p = schedule();
    const std::unique_ptr<Engine> gpu = prepared(cuda::make_engine, p, kTwoLayers);
    const std::unique_ptr<Engine> cpu = make_reference(kTwoLayers);
    const int64_t T = 13, V = kTwoLayers.V;
    const std::vector<int32_t> tokens = tokens_of(7, 0, T, V);
    const auto traced = [&](Engine& model) {
        std::vector<real> out(static_cast<size_t>(T * V));
        model.trace(tokens.data(), 1, T, {});
        model.final_logits(out.data(), 0, T);
        return out;
    };
    const std::vector<real> before = traced(*gpu);
    Run run;
    train_steps(run, *gpu, p, 0, 6);  // mlp[0] goes
    REQUIRE(gpu->sites.mlp(0).removed());
    copy(gpu->params, cpu->params);
    cpu->sites = gpu->sites;
    const std::vector<real> after = traced(*gpu);
    CHECK(largest_difference(after, traced(*cpu)) < 1e-5);
    CHECK(largest_difference(after, before) > 1e-2);
    CHECK(gpu->weights().wte[0] == gpu->params.data()[0]);
}

TEST_CASE("gradients are zero after zero_gradients, whatever came before: a pass or an update") {
    const WithoutChecks fast;
    const Settings p = schedule();
    const std::unique_ptr<Engine> model = prepared(cuda::make_engine, p, kTwoLayers);
    const std::vector<int32_t> tokens = tokens_of(7, 0, 3 * 11 + 1, kTwoLayers.V);
    const auto gradients = [&] {
        model->zero_gradients();
        model->forward_backward(tokens.data(), tokens.data() + 1, 3, 11, {}, 1);
        return cuda::gradients_of(*model);
    };
    const std::vector<float> first = gradients();
    CHECK(gradients() == first);
    AdamWStep nowhere;
    nowhere.lr = nowhere.weight_decay = 0;
    model->update(nowhere);
    CHECK(gradients() == first);
}

TEST_CASE("a run that goes back on the same engine repeats its losses to the bit") {
    const WithoutChecks fast;
    Settings p = schedule();
    cuda::DeviceOptions options = bf16_options();
    options.stochastic_rounding = true;
    const cuda::OptionsKeeper keeper;
    cuda::device_options() = options;
    const std::unique_ptr<Engine> model = prepared(cuda::make_engine, p, kTwoLayers);
    Run until, once, again;
    train_steps(until, *model, p, 0, 5);
    Buffer params(model->parameters()), m(model->parameters()), v(model->parameters());
    copy(model->params, params);
    copy(model->m, m);
    copy(model->v, v);
    const Sites sites = model->sites;
    const int64_t updates = model->updates;
    train_steps(once, *model, p, 5, 9);
    copy(params, model->params);
    copy(m, model->m);
    copy(v, model->v);
    model->sites = sites;
    model->updates = updates;
    model->resume(p.seed);
    train_steps(again, *model, p, 5, 9);
    CHECK(again.losses == once.losses);
    CHECK(again.weights == once.weights);
}
