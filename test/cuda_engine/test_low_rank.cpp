// What the CUDA engine trains instead of the weights themselves, in emulation and beside the reference: low-rank updates
// (LowRank in dev/engine.h), and norms in a unit of their own (LayerNorm Scaling). The last case is carried out by processes
// that the one before it starts.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/random.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda/removal_steps.h"
#include "dev/cuda_on_cpu/options.h"
#include "dev/cuda_on_cpu/runtime.h"
#include "dev/low_rank.h"
#include "dev/method.h"
#include "dev/processes.h"
#include "dev/run/launch.h"
#include "dev/run/memory.h"
#include "test/file_helpers.h"
#include "test/program.h"
#include "test/test_models.h"

using namespace lnfree;

namespace {

typedef std::unique_ptr<Engine> (*Maker)(const ModelConfig&);

// Nothing fits a tile or 16 bytes; another with both; a Llama.
std::vector<ModelConfig> shapes() {
    return {shape_of(2, 3, 21, 67, 9, 70), shape_of(1, 2, 64, 67, 9, 96), other_shapes()[1]};
}

// A removal within 20 steps.
Settings settings(const ModelConfig& c, int64_t rank, bool embeddings) {
    Settings s;
    s.steps = s.stop = 20;
    s.batch = 2;
    s.seq = c.n_ctx;
    s.grad_accum = 2;
    s.lr = 3e-3;
    s.min_lr = 1e-3;
    s.warmup = 3;
    s.sigma_ema = 0.3;
    s.start_mlp = 3;
    s.start_qk = 7;
    s.start_v = 11;
    s.start_f = 17;
    s.gap_mlp = s.gap_qk = s.gap_v = 2;
    s.lora = rank;
    s.lora_embeddings = embeddings;
    return s;
}

// A few tokens often, so that there is something to learn.
class MadeUpBatches : public Seams {
  public:
    MadeUpBatches(const Settings& s, int64_t V) : s_(s), V_(static_cast<uint64_t>(V)) {}
    void read_batches(int64_t step, StepBatches& batches) override {
        batches = {};
        for (int64_t a = 0; a < s_.grad_accum; a++) {
            SplitMix64 random(static_cast<uint64_t>(100 * step + a));
            std::vector<int32_t> tokens;
            for (int64_t i = 0; i <= s_.batch * s_.seq; i++)
                tokens.push_back(static_cast<int32_t>(random.below(random.below(3) == 0 ? V_ : 5)));
            batches.inputs.emplace_back(tokens.begin(), tokens.end() - 1);
            batches.targets.emplace_back(tokens.begin() + 1, tokens.end());
        }
    }
    void after_loss(const StepReport& report) override {
        losses.push_back(report.loss.loss + report.loss.aux);
        norms.push_back(report.gradient_norm);
    }
    std::vector<double> losses, norms;

  private:
    const Settings& s_;
    const uint64_t V_;
};

std::unique_ptr<Engine> made(Maker make, const ModelConfig& c, const Settings& s) {
    std::unique_ptr<Engine> model = make(c);
    if (s.norm_scale == "depth") model->scale_norms_by_depth();
    randomise(*model, 19, 0.5 / std::sqrt(static_cast<double>(c.C)));
    if (s.lora > 0) start_low_rank(*model, s.lora, s.lora_embeddings, s.seed);
    model->prepare_training(s.batch, s.seq);
    model->prepare_optimiser();
    return model;
}

struct Trained {
    std::unique_ptr<Engine> model;
    std::vector<double> losses, norms;

    std::vector<real> weights() const { return of(model->params); }
    static std::vector<real> of(const Buffer& b) { return {b.data(), b.data() + b.size()}; }
};

void go_on(Trained& t, const Settings& s, int64_t first) {
    MadeUpBatches seams(s, t.model->config.V);
    train(*t.model, s, s.removes ? removal_schedule(s, t.model->sites.L) : std::vector<Removal>(), seams, first);
    t.model->fetch_parameters();
    t.model->fetch_moments();
    t.losses.insert(t.losses.end(), seams.losses.begin(), seams.losses.end());
    t.norms.insert(t.norms.end(), seams.norms.begin(), seams.norms.end());
}

Trained trained(Maker make, const ModelConfig& c, const Settings& s) {
    Trained t;
    t.model = made(make, c, s);
    go_on(t, s, 0);
    return t;
}

void check_close(const std::vector<double>& ours, const std::vector<double>& theirs, double epsilon) {
    REQUIRE(ours.size() == theirs.size());
    for (size_t i = 0; i < ours.size(); i++) {
        CAPTURE(i);
        CHECK(ours[i] == doctest::Approx(theirs[i]).epsilon(epsilon));
    }
}

// Largest difference of one of `numbers` of the values, the largest of which is this size.
double error_of(const real* ours, const real* theirs, int64_t numbers) {
    double off = 0, largest = 0;
    for (int64_t i = 0; i < numbers; i++) {
        const double difference = std::abs(static_cast<double>(ours[i]) - static_cast<double>(theirs[i]));
        if (std::isnan(difference)) return INFINITY;
        off = std::max(off, difference);
        largest = std::max(largest, std::abs(static_cast<double>(theirs[i])));
    }
    return largest == 0 ? off : off / largest;
}

bool is_launched() {
    return std::getenv("LNFREE_RENDEZVOUS") != nullptr;
}

}  // namespace

TEST_CASE("20 steps of a removal by low-rank updates: the reference's losses, weights, updates and moments") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    for (const ModelConfig& c : shapes())
        for (const bool embeddings : {false, true}) {
            CAPTURE(c.C);
            CAPTURE(embeddings);
            const Settings s = settings(c, 3, embeddings);
            const Trained cpu = trained(make_reference, c, s), gpu = trained(cuda::make_engine, c, s);
            check_close(gpu.losses, cpu.losses, 1e-5);
            check_close(gpu.norms, cpu.norms, 1e-4);
            CHECK(gpu.model->sites.all_removed());
            CHECK(cuda::largest_tensor_error(c, gpu.model->params.data(), cpu.model->params.data()) < 1e-5);
            const int64_t n = gpu.model->trained_numbers();
            CHECK(error_of(gpu.model->low_rank.values.data(), cpu.model->low_rank.values.data(), n) < 1e-4);
            CHECK(error_of(gpu.model->m.data(), cpu.model->m.data(), n) < 1e-4);
            CHECK(error_of(gpu.model->v.data(), cpu.model->v.data(), n) < 1e-4);
            CHECK(gpu.losses.back() < gpu.losses.front());
        }
}

TEST_CASE("the emulation's checks of shared memory, and a recorded pass, change nothing") {
    const ModelConfig c = shapes()[0];
    Settings s = settings(c, 17, false);  // more than a tile
    s.stop = 2;
    const std::vector<real> checked = trained(cuda::make_engine, c, s).weights();
    const cuda::TemporaryEmulationOptions fast(false, 0);
    const cuda::OptionsKeeper keeper;
    cuda::device_options().cuda_graphs = true;
    CHECK(trained(cuda::make_engine, c, s).weights() == checked);
    CHECK(largest_difference(checked, trained(make_reference, c, s).weights()) < 1e-6);
}

TEST_CASE("what is neither a block's matrix nor a norm stays as it is, to the bit, unless embeddings are trained too") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    const ModelConfig c = shapes()[0];
    for (const bool embeddings : {false, true}) {
        Settings s = settings(c, 2, embeddings);
        s.stop = 2;
        const std::unique_ptr<Engine> before = made(cuda::make_engine, c, s);
        const Trained after = trained(cuda::make_engine, c, s);
        for (const Tensor& t : after.model->tensors) {
            CAPTURE(t.name);
            const bool in_block = t.name.compare(0, 2, "h.") == 0, norm = t.name.find("ln_") != std::string::npos;
            const bool matrix = t.shape.size() == 2, changes = norm || (matrix && (in_block || embeddings));
            const real* const now = after.model->params.data() + t.offset;
            CHECK(std::equal(now, now + t.size, before->params.data() + t.offset) == !changes);
        }
    }
}

TEST_CASE("a run that is taken up again ends with the same bits, in fp32 and in bf16, rounded at random or not") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    const ModelConfig c = shapes()[2];
    for (const int way : {0, 1, 2}) {
        CAPTURE(way);
        const cuda::OptionsKeeper keeper;
        cuda::device_options().in_bf16 = way > 0;
        cuda::device_options().stochastic_rounding = way > 1;
        const Settings s = settings(c, 3, way == 1);
        const Trained whole = trained(cuda::make_engine, c, s);
        Settings first = s;
        first.stop = 9;
        const Trained half = trained(cuda::make_engine, c, first);
        Trained rest;
        rest.model = made(cuda::make_engine, c, s);
        Engine &from = *half.model, &to = *rest.model;
        const auto take = [](Buffer& y, const Buffer& x) { std::copy(x.data(), x.data() + x.size(), y.data()); };
        take(to.params, from.params);
        take(to.m, from.m);
        take(to.v, from.v);
        take(to.low_rank.values, from.low_rank.values);
        to.sites = from.sites;
        to.updates = from.updates;
        to.resume(s.seed);
        go_on(rest, s, first.stop);
        CHECK(rest.weights() == whole.weights());
        CHECK(Trained::of(rest.model->low_rank.values) == Trained::of(whole.model->low_rank.values));
        CHECK(std::equal(rest.losses.begin(), rest.losses.end(), whole.losses.begin() + first.stop));
    }
}

TEST_CASE("in bf16 the losses stay within 3 % of the reference's") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    for (const ModelConfig& c : shapes()) {
        const cuda::OptionsKeeper keeper;
        cuda::device_options().in_bf16 = true;
        const Settings s = settings(c, 3, true);
        check_close(trained(cuda::make_engine, c, s).losses, trained(make_reference, c, s).losses, 0.03);
    }
}

TEST_CASE("low-rank updates take as much less memory as is said") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    const ModelConfig c = shapes()[1];
    for (const bool embeddings : {false, true}) {
        const auto bytes_with = [&](int64_t rank) {
            Settings s = settings(c, rank, rank > 0 && embeddings);
            s.stop = 2;
            const int64_t before = cuda::emulation::allocated_bytes();
            const Trained t = trained(cuda::make_engine, c, s);
            const auto ranges = static_cast<int64_t>(t.model->trained().size() * 24);  // the list for AdamW
            return cuda::emulation::allocated_bytes() - before - ranges;
        };
        const StepShape step{2, c.n_ctx, 2, 1, 3, embeddings};
        CHECK(bytes_with(0) - bytes_with(3) == bytes_saved(c, step));
    }
}

TEST_CASE("norms that shrink with the depth are trained in their own unit, as by the reference") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    for (const ModelConfig& c : shapes()) {
        CAPTURE(c.C);
        Settings s = settings(c, 0, false);
        s.removes = false;
        s.norm_scale = "depth";
        const Trained cpu = trained(make_reference, c, s), gpu = trained(cuda::make_engine, c, s);
        check_close(gpu.losses, cpu.losses, 1e-5);
        CHECK(cuda::largest_tensor_error(c, gpu.model->params.data(), cpu.model->params.data()) < 1e-4);
        if (c.L == 1) continue;  // block 1 has the unit 1
        s.norm_scale = "none";
        CHECK(cuda::largest_tensor_error(c, gpu.model->params.data(),
                                         trained(make_reference, c, s).model->params.data()) > 1e-3);
    }
}

TEST_CASE("two processes train low-rank updates as one does") {
    if (is_launched()) return;
    ::setenv("LNFREE_PROGRAM", std::filesystem::read_symlink("/proc/self/exe").c_str(), 1);
    TemporaryFolder scratch;
    std::vector<std::unique_ptr<Process>> started;
    for (const char* const rank : {"0", "1"}) {
        Surroundings s;
        s.launcher = {"env", "OMP_NUM_THREADS=1", std::string("RANK=") + rank, "WORLD_SIZE=2",
                      "LNFREE_RENDEZVOUS=" + scratch / "rendezvous"};
        started.push_back(std::make_unique<Process>(Words{"--test-case=in each process*"}, s));
    }
    for (const auto& process : started) {
        const Outcome outcome = process->wait();
        CAPTURE(outcome.out);
        CAPTURE(outcome.err);
        CHECK(outcome.status == 0);
    }
}

TEST_CASE("in each process: the reference's losses and weights; of the moments, its part" *
          doctest::skip(!is_launched())) {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    backend().use_device = [](int) {};  // a program with GPUs: it needs no MPI
    join_processes();
    REQUIRE(processes().size() == 2);
    const ModelConfig c = shapes()[1];
    const Settings s = settings(c, 40, true);  // enough for two parts
    const Trained cpu = trained(make_reference, c, s), gpu = trained(cuda::make_engine, c, s);
    check_close(gpu.losses, cpu.losses, 1e-5);
    check_close(gpu.norms, cpu.norms, 1e-4);
    CHECK(cuda::largest_tensor_error(c, gpu.model->params.data(), cpu.model->params.data()) < 1e-5);
    const Range part = processes().part(gpu.model->trained_numbers());
    CHECK(part.size() < gpu.model->trained_numbers());
    CHECK(error_of(gpu.model->m.data() + part.first, cpu.model->m.data(), part.size()) < 1e-4);
    leave_processes(0, "");
}
