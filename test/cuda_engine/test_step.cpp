// The list of what a step launches (dev/cuda/step.h) against what the engine launches, in emulation.
#include <doctest/doctest.h>

#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "data/random.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda/step.h"
#include "dev/cuda_on_cpu/cuda.h"
#include "dev/engine.h"
#include "test/file_helpers.h"
#include "test/test_models.h"

using namespace lnfree;
using cuda::StepOperation;
using cuda::StepOptions;
using cuda::StepPhase;

namespace {

void go_to(StepPhase phase, Engine& model) {
    for (Site& site : model.sites.all) {
        const bool goes_early = site.kind == SiteKind::mlp || site.kind == SiteKind::qk;
        site.a = phase == StepPhase::removed || (phase == StepPhase::apart && goes_early) ? 1 : 0;
        site.sigma_bar = 1;
    }
}

std::unique_ptr<Engine> made_up_model(const ModelConfig& c) {
    std::unique_ptr<Engine> model = cuda::make_engine(c);
    SplitMix64 random(1);
    for (int64_t i = 0; i < model->parameters(); i++)
        model->params.data()[i] = static_cast<real>(0.1 * random.normal());
    return model;
}

// What the engine does in a step, by name and in order. The first step, which also makes room, does not count.
std::vector<std::string> launched(const StepOptions& o) {
    const cuda::OptionsKeeper keeper;
    const cuda::TemporaryEmulationOptions fast(false, 0);
    cuda::device_options().in_bf16 = true;
    cuda::device_options().recompute = o.recompute;
    const std::unique_ptr<Engine> model = made_up_model(o.config), teacher = made_up_model(o.config);
    go_to(o.phase, *model);
    model->prepare_training(o.batch, o.seq);
    model->prepare_optimiser();
    std::vector<int32_t> tokens(static_cast<size_t>(o.batch * o.seq + 1));
    std::iota(tokens.begin(), tokens.end(), 0);
    const auto step = [&] {
        model->forward_backward(tokens.data(), tokens.data() + 1, o.batch, o.seq, {0.1}, 1,
                                {1, o.distill ? teacher.get() : nullptr});
        model->gradient_norm();
        model->update(AdamWStep());
    };
    model->zero_gradients();
    step();
    const cuda::emulation::LaunchLog log;
    step();
    return log.names();
}

std::vector<std::string> listed(const StepOptions& o) {
    std::vector<std::string> names;
    for (const StepOperation& op : cuda::training_step(o))
        for (int64_t call = 0; call < op.calls; call++)
            names.insert(names.end(), op.launches.begin(), op.launches.end());
    return names;
}

std::map<std::string, int> counted(const std::vector<std::string>& names) {
    std::map<std::string, int> counts;
    for (const std::string& name : names) counts[name]++;
    return counts;
}

std::vector<StepOptions> every_step(const ModelConfig& c) {
    std::vector<StepOptions> all;
    for (const StepPhase phase : {StepPhase::layer_norm, StepPhase::apart, StepPhase::removed})
        for (const int64_t recompute : {0, 1, 2})
            for (const bool distill : {false, true}) {
                StepOptions o;
                o.config = c;
                o.batch = 2;
                o.seq = 7;
                o.recompute = recompute;
                o.phase = phase;
                o.distill = distill;
                o.fused_epilogues = false;
                all.push_back(o);
            }
    return all;
}

StepOptions gpt2_small() {
    StepOptions o;
    o.config = shape_of(12, 12, 768, 50257, 1024, 3072);
    o.batch = 16;
    o.seq = 1024;
    return o;
}

double total(const std::vector<StepOperation>& step, double StepOperation::*what) {
    double sum = 0;
    for (const StepOperation& op : step) sum += static_cast<double>(op.calls) * op.*what;
    return sum;
}

const StepOperation& named(const std::vector<StepOperation>& step, const std::string& name) {
    for (const StepOperation& op : step)
        if (op.name == name) return op;
    throw std::runtime_error("no operation " + name);
}

}  // namespace

// One layer: every row is called once, so that the list is the sequence itself.
TEST_CASE("the list of a step names every launch of the engine in its order") {
    for (const StepOptions& o : every_step(shape_of(1, 2, 64, 67, 7, 256))) {
        CAPTURE(static_cast<int>(o.phase));
        CAPTURE(o.recompute);
        CAPTURE(o.distill);
        CHECK(listed(o) == launched(o));
    }
}

TEST_CASE("the list of a step counts the launches of all layers, also of widths and heads that fit no fast kernel") {
    for (const ModelConfig& c : {shape_of(3, 2, 24, 67, 7, 96), shape_of(3, 1, 17, 67, 7, 68)})
        for (const StepOptions& o : every_step(c)) {
            CAPTURE(c.C);
            CAPTURE(static_cast<int>(o.phase));
            CAPTURE(o.recompute);
            CAPTURE(o.distill);
            CHECK(counted(listed(o)) == counted(launched(o)));
        }
}

TEST_CASE("STEP.md explains every kernel of a step") {
    std::string text = read_bytes("dev/cuda/STEP.md");
    text.resize(text.find("<!-- floors -->"));
    for (const StepOptions& o : every_step(shape_of(1, 2, 64, 67, 7, 256)))
        for (const std::string& name : listed(o)) {
            CAPTURE(name);
            const bool is_kernel = name.find("_kernel") != std::string::npos;
            if (is_kernel) CHECK(text.find("`" + name + "`") != std::string::npos);
        }
}

TEST_CASE("with biases and GELU in the products there is a launch less for each") {
    StepOptions o = gpt2_small();
    const auto fused = counted(listed(o));
    o.fused_epilogues = false;
    auto apart = counted(listed(o));
    CHECK(apart["add_bias_kernel"] == 4 * 12);
    apart.erase("add_bias_kernel");
    CHECK(fused == apart);
}

TEST_CASE("logits come in chunks, the last of which may be smaller") {
    StepOptions o = gpt2_small();
    CHECK(named(cuda::training_step(o), "softmax, cross-entropy").calls == 4);
    o.batch = 21;  // five chunks, the last one short
    int64_t rows = 0, kinds = 0;
    for (const StepOperation& op : cuda::training_step(o))
        if (op.name == "softmax, cross-entropy") {
            rows += op.calls * std::stoll(op.shape);
            kinds++;
        }
    CHECK(rows == 21 * 1024);
    CHECK(kinds == 2);
}

TEST_CASE("bytes and flops of a step of GPT-2 Small, counted by hand") {
    StepOptions o = gpt2_small();
    const std::vector<StepOperation> step = cuda::training_step(o);
    const double N = 16384, C = 768;
    // Six per weight of a product, and 6 L C (T + 1) in attention.
    CHECK(total(step, &StepOperation::flops) ==
          doctest::Approx(N * 6 * (12 * 12 * C * C + 50257 * C) + N * 6 * 12 * C * 1025));
    CHECK(named(step, "residual + LayerNorm, forward").bytes == 4 * N * C * 2);  // two read, two written
    CHECK(named(step, "MLP up + GELU, forward").bytes == 2 * (N * C + 4 * C * C + 2 * N * 4 * C));
    CHECK(named(step, "MLP up, d weight").bytes == 2 * (N * C + 4 * N * C) + 8 * 4 * C * C);
    CHECK(named(step, "attention, backward").bytes == 8 * N * C * 2);
    CHECK(named(step, "unembedding, d weight").bytes == 2 * (4096 * C + 4096.0 * 50257) + 8 * 50257 * C);
    CHECK(named(step, "AdamW").bytes == 34.0 * 124439808);
    // A teacher runs forward only, which is a third.
    o.distill = true;
    CHECK(total(cuda::training_step(o), &StepOperation::flops) ==
          doctest::Approx(total(step, &StepOperation::flops) * 4 / 3));
    o.distill = false;
    o.recompute = 2;
    CHECK(total(cuda::training_step(o), &StepOperation::bytes) - total(step, &StepOperation::bytes) ==
          doctest::Approx(12 * 2 * N * (2 * 4 * C + 2 * 2 * C)));
}

TEST_CASE("a floor is the longer of a call's bytes and its flops") {
    const cuda::DataSheet gpu = {"", 2, 1000};
    StepOperation op = {"", "", {}, "", 1, 2e12, 500e12};
    CHECK(cuda::floor_seconds(op, gpu) == doctest::Approx(1));
    op.flops = 3000e12;
    CHECK(cuda::floor_seconds(op, gpu) == doctest::Approx(3));
}
