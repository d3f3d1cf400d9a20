// The CUDA engine as a whole, in emulation, against the reference: losses, gradients and weights of a removal, step by step.
#include <doctest/doctest.h>

#define LNFREE_LIBRARY_ONLY
#include "data/random.h"
#include "train_gpt2_lnfree.cu"

// after the program that it is about
#include "test/test_models.h"

using namespace lnfree;

namespace {

static const GPT2Config kTwoLayers = shape_of(2, 2, 24, 67, 13, 56);

// The tokens of every micro-batch follow from the step alone: a few of them often, so that there is something to learn.
std::vector<int32_t> tokens_of(int64_t step, int64_t micro_batch, int64_t n, int64_t V) {
    SplitMix64 random(static_cast<uint64_t>(1000 * step + micro_batch));
    std::vector<int32_t> tokens(static_cast<size_t>(n + 1));
    for (int32_t& t : tokens)
        t = static_cast<int32_t>(random.below(random.below(3) == 0 ? static_cast<uint64_t>(V) : 5));
    return tokens;
}

Protocol schedule() {
    Protocol p;
    p.steps = p.stop = 40;
    p.batch = 3;
    p.seq = 11;
    p.grad_accum = 2;
    p.lr = 5e-3;
    p.min_lr = 1e-3;
    p.warmup = 3;
    p.sigma_ema = 0.3;
    p.start_mlp = 4;
    p.gap_mlp = p.gap_qk = p.gap_v = 5;
    p.start_qk = 14;
    p.start_v = 24;
    p.start_f = 34;
    return p;
}

struct Run {
    std::vector<double> losses, aux, norms;
    std::vector<double> sigma_bars;
    std::vector<float> weights;
};

// begin_step .. finish_step for steps [from, to); the last call leaves everything in the host's memory.
void train(Run& run, GPT2& model, AdamW& adam, const Protocol& p, int64_t from, int64_t to) {
    for (int64_t s = from; s < to; s++) {
        std::vector<std::vector<int32_t>> inputs, targets;
        for (int64_t a = 0; a < p.grad_accum; a++) {
            const std::vector<int32_t> tokens = tokens_of(s, a, p.batch * p.seq, model.config.V);
            inputs.emplace_back(tokens.begin(), tokens.end() - 1);
            targets.emplace_back(tokens.begin() + 1, tokens.end());
        }
        begin_step(model, p, s, inputs);
        BatchLoss mean;
        for (size_t a = 0; a < inputs.size(); a++) {
            const BatchLoss l =
                model.forward_backward(inputs[a].data(), targets[a].data(), p.batch, p.seq, p.aux(), p.grad_accum);
            mean.loss += l.loss / static_cast<double>(p.grad_accum);
            mean.aux += l.aux / static_cast<double>(p.grad_accum);
        }
        run.losses.push_back(mean.loss);
        run.aux.push_back(mean.aux);
        run.norms.push_back(finish_step(model, adam, p, s));
    }
    model.fetch_parameters();
    adam.fetch_moments();
    run.weights.assign(model.params.data(), model.params.data() + model.parameters());
    run.sigma_bars.clear();
    for (const Site& site : model.sites.all) run.sigma_bars.push_back(site.sigma_bar);
}

template <class Model, class Optimiser>
Run run_from_start(const Protocol& p, const GPT2Config& config) {
    Model model(config);
    randomise(model, 3);
    Optimiser adam;
    model.prepare_training(p.batch, p.seq);
    adam.prepare(model.parameters());
    if (p.plant_position0 > 0) {
        std::vector<real> added;
        for (int64_t c = 0; c < config.C; c++)
            added.push_back(static_cast<real>(p.plant_position0 * std::cos(static_cast<double>(c))));
        model.edit_position0(0.5, added.data());
    }
    Run run;
    train(run, model, adam, p, 0, p.stop);
    return run;
}

Run reference_run(const Protocol& p, const GPT2Config& config = kTwoLayers) {
    return run_from_start<GPT2, AdamW>(p, config);
}

Run cuda_run(const Protocol& p, bool in_bf16, int recompute = -1, bool stochastic = false,
             const GPT2Config& config = kTwoLayers, const std::string& attention = "flash") {
    cuda::device_options() = {in_bf16, recompute, stochastic, attention};
    const Run run = run_from_start<cuda::CudaGPT2, cuda::CudaAdamW>(p, config);
    cuda::device_options() = {};
    return run;
}

// Half of a run on one engine; the other half on another, which takes over what a checkpoint holds: weights, moments,
// sites.
template <class FirstModel, class FirstOptimiser, class SecondModel, class SecondOptimiser>
Run run_in_two_halves(const Protocol& p) {
    Run run;
    FirstModel first(kTwoLayers);
    randomise(first, 3);
    FirstOptimiser adam;
    first.prepare_training(p.batch, p.seq);
    adam.prepare(first.parameters());
    train(run, first, adam, p, 0, p.stop / 2);
    SecondModel second(kTwoLayers);
    std::copy(first.params.data(), first.params.data() + first.parameters(), second.params.data());
    second.sites = first.sites;
    SecondOptimiser taken_over;
    taken_over.prepare(second.parameters());
    std::copy(adam.m.data(), adam.m.data() + adam.m.size(), taken_over.m.data());
    std::copy(adam.v.data(), adam.v.data() + adam.v.size(), taken_over.v.data());
    taken_over.updates = adam.updates;
    second.prepare_training(p.batch, p.seq);
    train(run, second, taken_over, p, p.stop / 2, p.stop);
    return run;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
    REQUIRE(a.size() == b.size());
    double largest = 0;
    for (size_t i = 0; i < a.size(); i++)
        if (!(std::abs(a[i] - b[i]) <= largest)) largest = std::abs(a[i] - b[i]);  // a NaN is a difference
    return largest;
}

// |a - b| / |b| of every tensor but the key biases, which do not act on the loss and drift with rounding; the largest.
double largest_weight_difference(const std::vector<float>& a, const std::vector<float>& b) {
    const GPT2Config c = kTwoLayers;
    double largest = 0;
    for (const Tensor& t : tensor_table(c)) {
        double off = 0, size = 0;
        for (int64_t i = 0; i < t.size; i++) {
            const bool key_bias = t.name.find("c_attn.bias") != std::string::npos && i >= c.C && i < 2 * c.C;
            if (key_bias) continue;
            const double x = a[static_cast<size_t>(t.offset + i)], y = b[static_cast<size_t>(t.offset + i)];
            off += (x - y) * (x - y);
            size += y * y;
        }
        largest = std::max(largest, std::sqrt(off / size));
    }
    return largest;
}

// A value in every element, whatever was there.
struct Constant {
    static constexpr bool reads_b = false;
    float value;
    float operator()(float, float) const { return value; }
};

}  // namespace

TEST_CASE("40 steps through a whole removal in fp32: the reference's losses to 1e-5, weights to 1e-4") {
    const Protocol p = schedule();
    const Run cpu = reference_run(p), gpu = cuda_run(p, false);
    CHECK(largest_difference(gpu.losses, cpu.losses) < 1e-5);
    CHECK(largest_difference(gpu.aux, cpu.aux) < 1e-5);
    CHECK(largest_difference(gpu.sigma_bars, cpu.sigma_bars) < 1e-5);
    CHECK(largest_difference(gpu.norms, cpu.norms) < 1e-4);
    CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 1e-4);
    CHECK(cpu.losses.back() < cpu.losses.front() - 1);  // something was learnt, so that agreeing means something
}

TEST_CASE("40 steps in bf16 stay within 2 % of the reference's losses, and lose what it loses") {
    const Protocol p = schedule();
    const Run cpu = reference_run(p), gpu = cuda_run(p, true);
    for (size_t s = 0; s < cpu.losses.size(); s++) {
        CAPTURE(s);
        CHECK(gpu.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(0.02));
    }
    CHECK(largest_difference(gpu.losses, cpu.losses) > 1e-6);  // it is bf16
    CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 0.1);
}

TEST_CASE("bf16 with head sizes that tensor cores take stays as close") {
    GPT2Config c = kTwoLayers;
    c.C = 64;  // two heads of 32
    c.n_inner = 128;
    Protocol p = schedule();
    p.grad_accum = 1;
    const Run cpu = reference_run(p, c), gpu = cuda_run(p, true, -1, false, c);
    for (size_t s = 0; s < cpu.losses.size(); s++) {
        CAPTURE(s);
        CHECK(gpu.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(0.03));
    }
}

TEST_CASE("--attention plain gives what tensor cores give, to bf16's precision, and other bits") {
    GPT2Config c = kTwoLayers;
    c.C = 64;  // two heads of 32, which tensor cores take
    Protocol p = schedule();
    p.stop = 3;
    p.grad_accum = 1;
    const Run flash = cuda_run(p, true, -1, false, c), plain = cuda_run(p, true, -1, false, c, "plain");
    CHECK(plain.losses != flash.losses);
    for (size_t s = 0; s < flash.losses.size(); s++)
        CHECK(plain.losses[s] == doctest::Approx(flash.losses[s]).epsilon(0.01));
}

TEST_CASE("what backward remakes instead of keeping changes no bit") {
    Protocol p = schedule();
    p.stop = 28;  // until qk and v of the first layer differ
    const Run kept = cuda_run(p, true, 0);
    for (const int level : {1, 2}) {
        const Run remade = cuda_run(p, true, level);
        CHECK(remade.losses == kept.losses);
        CHECK(remade.weights == kept.weights);
    }
}

TEST_CASE("with --cuda-graphs every pass through a removal gives the bits of the pass that it replays") {
    Protocol p = schedule();
    p.grad_accum = 3;  // the second of equal passes is recorded, the third is the recording
    for (const bool precursor : {false, true}) {
        CAPTURE(precursor);
        if (precursor) {
            p.own_position0 = true;
            p.aux_weight = 0;
            p.release_end_of_text = 36;
            p.release_position0 = 38;
        }
        const Run launched = cuda_run(p, false);
        cuda::DeviceOptions with_graphs;
        with_graphs.cuda_graphs = true;
        cuda::device_options() = with_graphs;
        const Run replayed = run_from_start<cuda::CudaGPT2, cuda::CudaAdamW>(p, kTwoLayers);
        cuda::device_options() = {};
        CHECK(replayed.losses == launched.losses);
        CHECK(replayed.aux == launched.aux);
        CHECK(replayed.norms == launched.norms);
        CHECK(replayed.weights == launched.weights);
    }
}

TEST_CASE("recorded work is recorded at the second time, replays old values, and starts anew with other ones") {
    cuda::RecordedWork recorded;
    cuda::DeviceArray<float> device;
    device.allocate(1);
    float value = 1;
    int given = 0;
    const auto run = [&](double frozen) {
        recorded.run({frozen}, nullptr, [&] {
            given++;
            cuda::map(device.data(), device.data(), static_cast<const float*>(nullptr), 1, Constant{value}, nullptr);
        });
        float on_device = 0;
        device.download(&on_device, 1, nullptr);
        return on_device;
    };
    CHECK(run(0) == 1);  // done at once
    value = 2;
    CHECK(run(0) == 2);  // recorded, and launched
    CHECK(given == 2);
    value = 3;
    CHECK(run(0) == 2);  // which is why everything that changes must be named
    CHECK(given == 2);
    CHECK(run(1) == 3);
    recorded.forget();
    value = 4;
    CHECK(run(1) == 4);
    CHECK(given == 4);
}

TEST_CASE("what cannot be recorded is refused, and leaves the stream as it was") {
    cuda::RecordedWork recorded;
    cuda::DeviceArray<float> device;
    const auto wait = [] { cuda::require_cuda(cudaDeviceSynchronize(), "waiting"); };
    recorded.run({1}, nullptr, wait);
    CHECK_THROWS_WITH_AS(recorded.run({1}, nullptr, wait), doctest::Contains("StreamCaptureUnsupported"), RunFailure);
    cudaGetLastError();
    device.allocate(1);  // nothing is being recorded any more
    CHECK(device.data() != nullptr);
}

TEST_CASE("a run changes engines half-way and ends where one engine ends") {
    const Protocol p = schedule();
    const Run cpu = reference_run(p);
    const Run onto_cpu = run_in_two_halves<cuda::CudaGPT2, cuda::CudaAdamW, GPT2, AdamW>(p);
    const Run onto_gpu = run_in_two_halves<GPT2, AdamW, cuda::CudaGPT2, cuda::CudaAdamW>(p);
    for (const Run* run : {&onto_cpu, &onto_gpu}) {
        CHECK(largest_difference(run->losses, cpu.losses) < 1e-5);
        CHECK(largest_weight_difference(run->weights, cpu.weights) < 1e-4);
    }
}

TEST_CASE("the precursor's special cases: own sigma for position 0 and end-of-text, and their release") {
    Protocol p = schedule();
    p.preset = "precursor";
    p.lr = 2e-3;
    p.own_position0 = true;
    p.aux_weight = 0;
    p.start_mlp = 1;
    p.start_qk = 5;
    p.start_v = 9;
    p.start_f = 14;
    p.gap_mlp = p.gap_qk = p.gap_v = 2;
    p.release_end_of_text = 18;
    p.release_position0 = 22;
    p.stop = 26;
    const Run cpu = reference_run(p), gpu = cuda_run(p, false);
    CHECK(largest_difference(gpu.losses, cpu.losses) < 1e-5);
    CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 1e-4);
}

TEST_CASE(
    "the means against a position that stands out: gradual removal, its embedding shortened, auxiliary loss "
    "everywhere") {
    Protocol p = schedule();
    p.lr = 2e-3;
    p.start_mlp = 2;
    p.start_qk = 4;
    p.start_v = 5;
    p.start_f = 8;
    p.gap_mlp = p.gap_qk = p.gap_v = 1;
    p.gradual = 4;
    p.sigma_skips_position0 = true;
    p.aux_everywhere = p.aux_relative = true;
    p.plant_position0 = 10;
    p.stop = 14;
    const Run untouched = cuda_run(p, false);
    p.shrink_steps = 5;
    const Run cpu = reference_run(p), gpu = cuda_run(p, false);
    CHECK(largest_difference(gpu.losses, cpu.losses) < 1e-5);
    CHECK(largest_difference(gpu.aux, cpu.aux) < 1e-5);
    CHECK(largest_difference(gpu.sigma_bars, cpu.sigma_bars) < 1e-5);
    CHECK(largest_weight_difference(gpu.weights, cpu.weights) < 1e-4);
    CHECK(gpu.aux.front() > 0);
    CHECK(untouched.weights != gpu.weights);
}

TEST_CASE("with stochastic rounding the model learns what it learns without") {
    const Protocol p = schedule();
    const Run nearest = cuda_run(p, true), stochastic = cuda_run(p, true, -1, true);
    CHECK(stochastic.losses != nearest.losses);
    CHECK(stochastic.losses.back() == doctest::Approx(nearest.losses.back()).epsilon(0.03));
}

TEST_CASE("evaluation and logits are the reference's, for any batch and length") {
    GPT2 cpu(kTwoLayers);
    cuda::CudaGPT2 gpu(kTwoLayers);
    randomise(cpu, 3);
    randomise(gpu, 3);
    const int64_t V = cpu.config.V;
    for (const auto& [B, T] : {std::pair<int64_t, int64_t>{3, 11}, {1, 1}, {5, 7}, {2, 13}}) {
        const std::vector<int32_t> tokens = tokens_of(7, 0, B * T, V);
        const real* expected = cpu.token_losses(tokens.data(), tokens.data() + 1, B, T);
        const std::vector<real> losses(expected, expected + B * T);
        const real* found = gpu.token_losses(tokens.data(), tokens.data() + 1, B, T);
        for (size_t i = 0; i < losses.size(); i++) CHECK(found[i] == doctest::Approx(losses[i]).epsilon(1e-5));
        const int64_t from = T / 2;
        std::vector<real> a(static_cast<size_t>(B * (T - from) * V)), b(a.size());
        cpu.logits(a.data(), tokens.data(), B, T, from);
        gpu.logits(b.data(), tokens.data(), B, T, from);
        double off = 0;
        for (size_t i = 0; i < a.size(); i++) off = std::max(off, static_cast<double>(std::abs(a[i] - b[i])));
        CHECK(off < 1e-4);
    }
}

TEST_CASE("the table of memory grows with the batch and shrinks with what is remade") {
    const GPT2Config c = kTwoLayers;
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
