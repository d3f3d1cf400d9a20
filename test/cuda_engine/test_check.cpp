// `check` and `bench` of the CUDA engine, in emulation: that check passes and can fail, that bench runs and reports, and
// that the memory it says is needed follows the sizes. The emulation's own checks of shared memory are off: the other
// tests in this folder run every kernel with them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "data/error.h"
#include "data/files.h"
#include "dev/cuda/engine_bench.h"
#include "dev/cuda/engine_check.h"
#include "test/file_helpers.h"
#include "test/test_models.h"
#include "test/wrapped_engine.h"

using namespace lnfree;

namespace {

// Without the checks of shared memory.
struct WithoutChecks : cuda::TemporaryEmulationOptions {
    WithoutChecks() : TemporaryEmulationOptions(false, 0) {}
};

// What `run` prints.
template <class Run>
std::string printed(Run run) {
    std::FILE* file = std::tmpfile();
    REQUIRE(file != nullptr);
    run(file);
    std::string text(static_cast<size_t>(std::ftell(file)), '\0');
    std::rewind(file);
    REQUIRE(std::fread(text.data(), 1, text.size(), file) == text.size());
    std::fclose(file);
    return text;
}

// An engine whose gradient of one weight is off by a tenth of the gradient's norm.
class WrongGradient : public WrappedEngine {
  public:
    using WrappedEngine::WrappedEngine;
    BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                               const AuxSettings& aux, int64_t grad_accum, const Distillation& distillation) override {
        const BatchLoss loss = WrappedEngine::forward_backward(inputs, targets, B, T, aux, grad_accum, distillation);
        grads.data()[parameters() - 1] += static_cast<real>(0.1 * gradient_norm());
        return loss;
    }
};

// One that forgets the auxiliary loss.
class NoAuxiliaryLoss : public WrappedEngine {
  public:
    using WrappedEngine::WrappedEngine;
    BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T, const AuxSettings&,
                               int64_t grad_accum, const Distillation& distillation) override {
        return WrappedEngine::forward_backward(inputs, targets, B, T, {}, grad_accum, distillation);
    }
};

// One whose probe sees the stream of the layer after.
class LateProbe : public WrappedEngine {
  public:
    using WrappedEngine::WrappedEngine;
    void trace(const int32_t* inputs, int64_t B, int64_t T, const Probe& probe, bool keep) override {
        Probe late = probe;
        late.residual = [&](int64_t l, real* x) {
            if (l > 0) probe.residual(l - 1, x);
            if (l == config.L) probe.residual(l, x);
        };
        WrappedEngine::trace(inputs, B, T, late, keep);
    }
};

template <class Model>
Report analysed() {
    Model model(cuda::small_removal_config());
    cuda::Check check;
    cuda::check_analyses(check, "analysis", model, cuda::step_tolerances<cuda::bf16>().gradient);
    return check.report();
}

template <class Model>
Report checked() {
    Model model(cuda::small_removal_config());
    Settings s = cuda::small_removal(false);
    s.stop = 2;
    s.start_f = 1;
    cuda::Check check;
    cuda::check_removal(check, "removal", model, s, cuda::step_tolerances<float>());
    return check.report();
}

}  // namespace

TEST_CASE("check passes, and says so in a table with a row for every comparison") {
    const WithoutChecks fast;
    Report report;
    const std::string text = printed([&](std::FILE* screen) { report = cuda::check_engine(screen); });
    CHECK(report.passed);
    for (const std::vector<std::string>& row : report.rows) {
        CAPTURE(row[0]);
        CHECK(row.size() == report.columns.size());
        CHECK(row.back() == "ok");
    }
    CHECK(report.rows.size() > 200);
    CHECK(text.find("all within tolerance") != std::string::npos);
    CHECK(text.find("FAILED") == std::string::npos);
}

TEST_CASE("a comparison fails where a value is off, is NaN, or is missing") {
    const cuda::Floats right = {1, -2, 0.5f, 0};
    CHECK(cuda::largest_error(right, right) == 0);
    CHECK(cuda::largest_error({1, -2, 0.5f, 0.01f}, right) == doctest::Approx(0.01 / 1.1456).epsilon(1e-3));
    CHECK(std::isinf(cuda::largest_error({1, -2, NAN, 0}, right)));
    CHECK(std::isinf(cuda::largest_error(right, {1, -2, NAN, 0})));
    CHECK(std::isinf(cuda::largest_error({1, -2}, right)));
    CHECK(std::isinf(cuda::largest_error({}, {})));
    // By rows, a row of large values allows itself more.
    CHECK(cuda::largest_error({10, 11, 1, 1}, {10, 10, 1, 1}, 2) == doctest::Approx(1 / 20.0));

    cuda::Check check;
    check.set_type("bf16");
    check.compare("right", right, right, 1e-5);
    CHECK(check.report().passed);
    check.compare("wrong", {1, -2, 0.5f, 0.01f}, right, 1e-5);
    CHECK_FALSE(check.report().passed);
    CHECK(check.report().rows[1] ==
          std::vector<std::string>{"wrong", "bf16", check.report().rows[1][2], "1e-05", "FAILED"});
}

TEST_CASE("an operation that can not be run is a failure, and the ones after it are still checked") {
    cuda::Check check;
    check.part("attention", [] { throw RunFailure("a launch was refused"); });
    check.part("encoder", [&] { check.add("encoder", 0, 1e-5); });
    const Report report = check.report();
    CHECK_FALSE(report.passed);
    REQUIRE(report.rows.size() == 2);
    CHECK(report.rows[0][0] == "attention: a launch was refused");
    CHECK(report.rows[0].back() == "FAILED");
    CHECK(report.rows[1].back() == "ok");
}

TEST_CASE("a wrong kernel is reported: attention that swaps keys and values") {
    const WithoutChecks fast;
    cuda::AttentionKernels<float> wrong = cuda::attention_kernels<float>("plain");
    wrong.forward = [](float* out, float* lse, const float* qkv, int64_t B, int64_t T, const Heads& heads,
                       cudaStream_t stream) {
        const int64_t C = heads.width();
        std::vector<float> swapped(qkv, qkv + 3 * B * T * C);
        for (int64_t n = 0; n < B * T; n++)
            std::swap_ranges(swapped.begin() + (3 * n + 1) * C, swapped.begin() + (3 * n + 2) * C,
                             swapped.begin() + (3 * n + 2) * C);
        cuda::attention_forward_plain(out, lse, swapped.data(), B, T, heads, stream);
    };
    cuda::Check check;
    cuda::check_attention(check, cuda::check_sizes(), wrong);
    CHECK_FALSE(check.report().passed);
}

TEST_CASE("whole steps: the reference agrees with itself; a wrong gradient or a forgotten loss does not pass") {
    CHECK(checked<WrappedEngine>().passed);
    CHECK_FALSE(checked<WrongGradient>().passed);
    CHECK_FALSE(checked<NoAuxiliaryLoss>().passed);
}

TEST_CASE("analyses: the reference agrees with itself; a probe that sees another layer does not pass") {
    CHECK(analysed<WrappedEngine>().passed);
    const Report late = analysed<LateProbe>();
    for (const std::vector<std::string>& row : late.rows)
        CHECK((row.back() == "ok") == (row[0] != "analysis: streams"));
}

TEST_CASE("bench runs in emulation, says so, and reports every kernel and every stage") {
    const WithoutChecks fast;
    const ModelConfig c = shape_of(2, 2, 32, 67, 17, 128);
    cuda::device_options().recompute = 1;
    Report report;
    const std::string text =
        printed([&](std::FILE* screen) { report = cuda::bench_engine(c, 2, 17, 0.001, "", screen); });
    CHECK(cuda::device_options().recompute == 1);
    CHECK_FALSE(cuda::device_options().in_bf16);  // as it was
    cuda::device_options() = {};
    CHECK(text.find("emulated: times mean nothing") != std::string::npos);
    const auto value_of = [&](const std::string& what, const std::string& figure) {
        for (const std::vector<std::string>& row : report.rows)
            if (row[0] == what && row[1] == figure) return row[2];
        return std::string("missing");
    };
    for (const char* kernel : {"encoder, backward", "LayerNorm, backward", "FakeLN, backward", "attention, forward",
                               "MLP up + GELU, forward", "softmax, cross-entropy", "AdamW"}) {
        CAPTURE(kernel);
        CHECK(std::atof(value_of(kernel, "time").c_str()) > 0);
        CHECK(std::atof(value_of(kernel, "of ceiling").c_str()) >= 0);
    }
    CHECK(value_of("GELU, remade", "calls") == "2.0");
    CHECK(value_of("attention, forward", "calls") == "2.0");
    for (const char* stage : {"all LayerNorm", "one layer's qk removed, v not", "all removed"})
        CHECK(std::atof(value_of(stage, "tokens").c_str()) > 0);
    CHECK(value_of("vendor", "bf16 peak") == "n/a");
    CHECK(value_of("all removed", "MFU of vendor's") == "n/a");
    for (const std::vector<std::string>& row : report.rows) CHECK(row.size() == report.columns.size());
}

TEST_CASE("bench --products leaves a file with every product of a removal's steps, which a run reads") {
    const WithoutChecks fast;
    const cuda::OptionsKeeper keeper;
    const TemporaryFolder scratch;
    const ModelConfig c = shape_of(2, 2, 32, 67, 17, 128);
    const std::string path = scratch / "products.txt";
    printed([&](std::FILE* screen) { cuda::bench_engine(c, 2, 17, 0.001, path, screen); });
    const auto choices = std::make_shared<cuda::ProductChoices>(cuda::ProductChoices::read(path));
    CHECK(choices->made_for == cuda::products_made_for());
    cuda::device_options().in_bf16 = true;
    cuda::device_options().choices = choices;
    choices->times_anew = true;  // so that a product which is not in there is entered
    const size_t known = choices->size();
    const auto pass = [&](int64_t B, bool split) {
        const std::unique_ptr<Engine> model = cuda::make_engine(c);
        Site& site = model->sites.qk(0);
        site.a = split ? 1 : 0;
        site.sigma_bar = 1;
        const std::vector<int32_t> tokens(static_cast<size_t>(B * 17 + 1), 5);
        model->zero_gradients();
        model->forward_backward(tokens.data(), tokens.data() + 1, B, 17, {}, 1);
    };
    pass(2, false);
    pass(2, true);
    CHECK(choices->size() == known);
    pass(3, false);  // another size is none of them
    CHECK(choices->size() > known);

    choices->made_for = "another GPU";
    CHECK_THROWS_WITH_AS(pass(2, false), doctest::Contains("another GPU"), BadInput);
}

TEST_CASE("a file of products is read as it was written, or refused with its line") {
    const TemporaryFolder scratch;
    const std::string path = scratch / "products.txt";
    cuda::ProductChoices choices;
    choices.made_for = "GPU, cuBLASLt 1";
    const cuda::ProductChoices::Product product = {16, 0, 1, 3, 5, 7};
    choices.enter(product, {1, 0xffffffffffffffffu, 3}, 12.5);
    const auto write = [&](const std::string& text) { write_file_atomically(path, text); };
    write(choices.text());
    const cuda::ProductChoices again = cuda::ProductChoices::read(path);
    CHECK(again.made_for == choices.made_for);
    REQUIRE(again.find(product) != nullptr);
    CHECK(*again.find(product) == *choices.find(product));
    CHECK(again.find({16}) == nullptr);

    const std::string text = choices.text();
    write(text.substr(0, text.size() - 6));
    CHECK_THROWS_WITH_AS(cuda::ProductChoices::read(path), doctest::Contains("line 3"), BadInput);
    write("something else\n");
    CHECK_THROWS_WITH_AS(cuda::ProductChoices::read(path), doctest::Contains("delete it"), BadInput);
    CHECK_THROWS_WITH_AS(cuda::ProductChoices::read(scratch / "none"), doctest::Contains("cannot be read"), BadInput);
}

TEST_CASE("FLOPs of a training step are those of the sizes: GPT-2 Small at T = 1024 takes 0.80 GFLOP per token") {
    const ModelConfig c = shape_of(12, 12, 768, 50257, 1024, 3072);
    const double per_token = cuda::training_flops(c, 2, 1024) / 2048;
    // Six per weight of a product, and 6 L C (T + 1) in attention.
    CHECK(per_token == doctest::Approx(6.0 * (12 * 12 * 768.0 * 768 + 50257.0 * 768) + 6.0 * 12 * 768 * 1025));
    CHECK(per_token == doctest::Approx(0.80e9).epsilon(0.01));
}

TEST_CASE("the vendor's figure is found by the name of a GPU, and n/a is n/a") {
    CHECK(cuda::vendor_peak_tflops("NVIDIA H200") == 989.5);
    CHECK(cuda::vendor_peak_tflops("NVIDIA H200 NVL") == 0);
    CHECK(cuda::vendor_peak_tflops("NVIDIA H100 80GB HBM3") == 989.5);
    CHECK(cuda::vendor_peak_tflops("NVIDIA H100 PCIe") == 756.5);
    CHECK(cuda::vendor_peak_tflops("NVIDIA A100-SXM4-80GB") == 312);
    CHECK(cuda::vendor_peak_tflops("NVIDIA GeForce RTX 4090") == 165.2);
    CHECK(cuda::vendor_peak_tflops("NVIDIA GeForce RTX 4090 D") == 0);
    CHECK(cuda::vendor_peak_tflops("NVIDIA GeForce RTX 4090 Laptop GPU") == 0);
    CHECK(cuda::vendor_peak_tflops("NVIDIA GH200 480GB") == 0);
    CHECK(cuda::vendor_peak_tflops("Tesla T4") == 0);
}

TEST_CASE("device_bytes grows with the batch and falls with recomputation") {
    const ModelConfig c = shape_of(12, 12, 768, 50257, 1024, 3072);
    for (const bool in_bf16 : {false, true}) {
        CAPTURE(in_bf16);
        for (int64_t B = 1; B < 64; B *= 2)
            CHECK(cuda::device_bytes(c, 2 * B, 1024, true, in_bf16, 0) >
                  cuda::device_bytes(c, B, 1024, true, in_bf16, 0));
        CHECK(cuda::device_bytes(c, 8, 1024, true, in_bf16, 1) < cuda::device_bytes(c, 8, 1024, true, in_bf16, 0));
        CHECK(cuda::device_bytes(c, 8, 1024, true, in_bf16, 2) < cuda::device_bytes(c, 8, 1024, true, in_bf16, 1));
        CHECK(cuda::device_bytes(c, 8, 1024, false, in_bf16, 0) < cuda::device_bytes(c, 8, 1024, true, in_bf16, 2));
    }
    CHECK(cuda::device_bytes(c, 8, 1024, true, true, 0) < cuda::device_bytes(c, 8, 1024, true, false, 0));
}
