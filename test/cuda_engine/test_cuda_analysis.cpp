// What analyses ask of an engine, of the CUDA engine in emulation, against the reference: every function, for norms at every
// stage of a removal and for the folded form; and what the folded form needs besides.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "data/error.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda/removal_steps.h"
#include "dev/cuda_on_cpu/options.h"
#include "test/test_models.h"

using namespace lnfree;

namespace {

constexpr int64_t B = 3, T = 11, N = B * T;
constexpr double kInBf16 = 1.0 / 64;  // of the largest value: four of bf16's roundings

// One whose rows can be read 16 bytes at a time, and one of which nothing is a multiple of 4.
const ModelConfig kAligned = shape_of(2, 2, 24, 67, 13, 56), kOdd = shape_of(3, 2, 14, 61, 13, 35);

ModelConfig folded(ModelConfig c) {
    c.form = ModelForm::folded;
    return c;
}

// Norms at every stage: one that is left, one that is gone, on its way, qk and v apart, a position 0 of its own.
void set_sites(Engine& model) {
    if (model.config.form == ModelForm::folded) return;
    Sites& sites = model.sites;
    freeze(sites.mlp(0), 0.9);
    freeze(sites.qk(0), 0.7);
    freeze(sites.v(0), 1.3);
    sites.v(0).own_position0 = sites.v(0).own_end_of_text = true;
    sites.v(0).sigma_bar_0 = 2.1;
    for (Site* site : {&sites.qk(1), &sites.f()}) {
        freeze(*site, 0.8);
        site->own_position0 = true;
        site->sigma_bar_0 = 1.7;
    }
    freeze(sites.mlp(1), 1.1);
    sites.mlp(1).a = 0.4;
}

std::unique_ptr<Engine> made(std::unique_ptr<Engine> (*make)(const ModelConfig&), ModelConfig c, uint64_t seed = 3) {
    c.end_of_text = 5;
    std::unique_ptr<Engine> model = make(c);
    randomise(*model, seed);
    set_sites(*model);
    return model;
}

// Runs f(reference, engine on the device, largest error allowed) for shapes, forms and precisions.
template <class F>
void for_all(F f) {
    const cuda::OptionsKeeper keeper;
    for (const ModelConfig& c : {kAligned, kOdd, folded(kAligned), folded(kOdd)})
        for (const bool in_bf16 : {false, true}) {
            cuda::device_options().in_bf16 = in_bf16;
            CAPTURE(c.C);
            CAPTURE(in_bf16);
            const bool is_folded = c.form == ModelForm::folded;
            CAPTURE(is_folded);
            const std::unique_ptr<Engine> cpu = made(make_reference, c), gpu = made(cuda::make_engine, c);
            f(*cpu, *gpu, in_bf16 ? kInBf16 : 1e-5);
        }
}

std::vector<int32_t> tokens_of(const Engine& model, int64_t n = N) {
    return random_tokens(n, model.config.V);
}

std::vector<real> values(const real* from, int64_t n) {
    return std::vector<real>(from, from + n);
}

// The largest difference, over the largest value of `expected`.
double error_of(const std::vector<real>& found, const std::vector<real>& expected) {
    double largest = 0;
    for (const real x : expected) largest = std::max(largest, std::abs(static_cast<double>(x)));
    return largest_difference(found, expected) / largest;
}

struct Seen {
    std::string what;
    std::vector<real> values;
};

std::vector<Seen> see_all(Engine& model, const std::vector<int32_t>& tokens, bool keep) {
    const ModelConfig& c = model.config;
    std::vector<Seen> all;
    const auto note = [&](const char* what, int64_t l, const real* from, int64_t n) {
        all.push_back({what + std::to_string(l), values(from, n)});
    };
    Probe probe;
    probe.residual = [&](int64_t l, const real* x) { note("residual ", l, x, N * c.C); };
    probe.attention = [&](int64_t l, const real* heads, const real* qkv, const real* lse) {
        note("heads ", l, heads, N * c.C);
        note("qkv ", l, qkv, 3 * N * c.C);
        note("lse ", l, lse, N * c.NH);
    };
    probe.mlp = [&](int64_t l, const real* hidden, const real* output) {
        note("hidden ", l, hidden, N * c.n_inner);
        note("output ", l, output, N * c.C);
    };
    model.trace(tokens.data(), B, T, probe, keep);
    note("final residual", 0, model.final_residual(), N * c.C);
    note("final normed", 0, model.final_normed(), N * c.C);
    note("final means", 0, model.final_means(), N);
    note("final divisors", 0, model.final_divisors(tokens.data()), N);
    std::vector<real> logits(static_cast<size_t>(17 * c.V));
    model.final_logits(logits.data(), 9, 17);
    all.push_back({"final logits", logits});
    if (keep)
        for (const Site& site : model.sites.all) all.push_back({site_name(site), values(model.sigmas_at(site), N)});
    return all;
}

std::vector<real> logits_of_last_pass(Engine& model) {
    std::vector<real> out(static_cast<size_t>(N * model.config.V));
    model.final_logits(out.data(), 0, N);
    return out;
}

// A distance from the last pass at every number, so that nothing cancels.
std::vector<real> some_gradient(const Engine& model) {
    std::vector<real> d;
    for (int64_t i = 0; i < N * model.config.C; i++) d.push_back(static_cast<real>(std::cos(static_cast<double>(i))));
    return d;
}

// In front of every block.
std::vector<std::vector<real>> stream_gradients(Engine& model, const std::vector<int32_t>& tokens) {
    std::vector<std::vector<real>> all;
    model.stream_gradients(some_gradient(model).data(), tokens.data(), [&](int64_t layer, const real* gradient) {
        CHECK(layer == model.config.L - 1 - static_cast<int64_t>(all.size()));
        all.push_back(values(gradient, N * model.config.C));
    });
    return all;
}

}  // namespace

TEST_CASE("a probe sees what the reference shows it, whatever is kept, and so is what a pass leaves") {
    for_all([](Engine& cpu, Engine& gpu, double allowed) {
        const std::vector<int32_t> tokens = tokens_of(cpu);
        for (const bool keep : {false, true}) {
            CAPTURE(keep);
            const std::vector<Seen> expected = see_all(cpu, tokens, keep), found = see_all(gpu, tokens, keep);
            REQUIRE(found.size() == expected.size());
            for (size_t i = 0; i < found.size(); i++) {
                CAPTURE(found[i].what);
                CHECK(found[i].what == expected[i].what);
                CHECK(error_of(found[i].values, expected[i].values) < allowed);
            }
        }
    });
}

TEST_CASE("what backward remakes instead of keeping changes no bit of a trace, and none of the stream's gradients") {
    const std::vector<int32_t> tokens = random_tokens(N, kAligned.V);
    std::vector<Seen> kept;
    std::vector<std::vector<real>> gradients;
    for (const int level : {0, 1, 2}) {
        const cuda::OptionsKeeper keeper;
        cuda::device_options().recompute = level;
        const std::unique_ptr<Engine> gpu = made(cuda::make_engine, kAligned);
        const std::vector<Seen> seen = see_all(*gpu, tokens, true);
        const std::vector<std::vector<real>> at_level = stream_gradients(*gpu, tokens);
        if (level == 0) kept = seen;
        if (level == 0) gradients = at_level;
        for (size_t i = 0; i < kept.size(); i++) CHECK(seen[i].values == kept[i].values);
        CHECK(at_level == gradients);
    }
}

TEST_CASE("what a probe writes to the stream counts, in front of every block and of ln_f") {
    for_all([](Engine& cpu, Engine& gpu, double allowed) {
        const std::vector<int32_t> tokens = tokens_of(cpu);
        for (int64_t where = 0; where <= cpu.config.L; where++) {
            CAPTURE(where);
            const auto changed = [&](Engine& model) {
                Probe probe;
                probe.residual = [&](int64_t l, real* x) {
                    for (int64_t i = 0; i < N * model.config.C && l == where; i++)
                        x[i] += static_cast<real>(std::sin(static_cast<double>(i)));
                };
                model.trace(tokens.data(), B, T, probe);
                return logits_of_last_pass(model);
            };
            const std::vector<real> expected = changed(cpu), found = changed(gpu);
            CHECK(error_of(found, expected) < allowed);
            cpu.trace(tokens.data(), B, T, {});
            CHECK(error_of(logits_of_last_pass(cpu), expected) > 4 * allowed);
        }
    });
}

TEST_CASE("a pass goes on from the stream in front of any block, to the bits of the whole one") {
    for_all([](Engine& cpu, Engine& gpu, double allowed) {
        const std::vector<int32_t> tokens = tokens_of(cpu);
        std::vector<std::vector<real>> streams;
        Probe probe;
        probe.residual = [&](int64_t, const real* x) { streams.push_back(values(x, N * gpu.config.C)); };
        gpu.trace(tokens.data(), B, T, probe);
        const std::vector<real> whole = logits_of_last_pass(gpu);
        for (int64_t l = 0; l <= gpu.config.L; l++) {
            CAPTURE(l);
            std::vector<real> changed = streams[static_cast<size_t>(l)];
            gpu.trace_from(l, changed.data(), tokens.data(), B, T);
            CHECK(logits_of_last_pass(gpu) == whole);
            for (int64_t i = 0; i < gpu.config.C; i++) changed[static_cast<size_t>(i)] *= real(-1);
            for (Engine* model : {&cpu, &gpu}) model->trace_from(l, changed.data(), tokens.data(), B, T);
            CHECK(error_of(logits_of_last_pass(gpu), logits_of_last_pass(cpu)) < allowed);
            CHECK(gpu.final_normed()[0] == doctest::Approx(cpu.final_normed()[0]).epsilon(allowed));
        }
    });
}

TEST_CASE("gradients of the stream are the reference's, and leave no trace in a step of training that follows") {
    for_all([](Engine& cpu, Engine& gpu, double allowed) {
        const std::vector<int32_t> tokens = tokens_of(cpu, N + 1);
        const auto trained = [&] {
            gpu.zero_gradients();
            gpu.forward_backward(tokens.data(), tokens.data() + 1, B, T, {0.1, true}, 1);
            return cuda::gradients_of(gpu);
        };
        const std::vector<float> before = trained();
        gpu.zero_gradients();  // and known to be 0
        for (Engine* model : {&cpu, &gpu}) model->trace(tokens.data(), B, T, {}, true);
        const auto expected = stream_gradients(cpu, tokens), found = stream_gradients(gpu, tokens);
        REQUIRE(found.size() == static_cast<size_t>(cpu.config.L));
        for (size_t l = 0; l < found.size(); l++) CHECK(error_of(found[l], expected[l]) < allowed);
        CHECK(trained() == before);
    });
}

TEST_CASE("asking about a pass that was never made, or for gradients of one that was not kept, fails in words") {
    const std::unique_ptr<Engine> gpu = made(cuda::make_engine, kAligned);
    const std::vector<int32_t> tokens = tokens_of(*gpu);
    CHECK_THROWS_WITH_AS(gpu->final_residual(), doctest::Contains("never made"), RunFailure);
    gpu->trace(tokens.data(), B, T, {});
    CHECK_THROWS_WITH_AS(stream_gradients(*gpu, tokens), doctest::Contains("not kept"), RunFailure);
}

TEST_CASE("predictions are scored at scattered rows, asked about twice or more often than there are rows") {
    for_all([](Engine& cpu, Engine& gpu, double allowed) {
        const std::vector<int32_t> tokens = tokens_of(cpu);
        std::vector<int64_t> rows = {32, 0, 7, 7, 19};
        for (int64_t n = 0; n < N; n++) rows.push_back(n * 5 % N);
        // Half of the targets are the likeliest token.
        cpu.trace(tokens.data(), B, T, {});
        const std::vector<real> logits = logits_of_last_pass(cpu);
        std::vector<int32_t> targets;
        for (const int64_t row : rows) {
            const real* z = logits.data() + row * cpu.config.V;
            const auto best = static_cast<int32_t>(std::max_element(z, z + cpu.config.V) - z);
            targets.push_back(targets.size() % 2 == 0 ? best : (best + 1) % static_cast<int32_t>(cpu.config.V));
        }
        const auto scored = [&](Engine& model, std::vector<uint8_t>& likeliest) {
            std::vector<real> losses(rows.size());
            likeliest.assign(rows.size(), 2);
            model.score(losses.data(), likeliest.data(), tokens.data(), B, T, rows, targets.data());
            return losses;
        };
        std::vector<uint8_t> theirs, ours;
        const std::vector<real> expected = scored(cpu, theirs), found = scored(gpu, ours);
        CHECK(error_of(found, expected) < allowed);
        if (allowed < 1e-4) CHECK(ours == theirs);  // else two may be likeliest
        CHECK(std::count(theirs.begin(), theirs.end(), 1) == static_cast<int64_t>(rows.size() + 1) / 2);
    });
}

TEST_CASE("any residual vectors are unembedded as the reference does it") {
    for_all([](Engine& cpu, Engine& gpu, double allowed) {
        const std::vector<real> residual = some_gradient(cpu);
        const int64_t n = 7;
        std::vector<real> expected(static_cast<size_t>(n * cpu.config.V)), found(expected.size());
        cpu.unembed_residual(expected.data(), residual.data(), n);
        gpu.unembed_residual(found.data(), residual.data(), n);
        CHECK(error_of(found, expected) < allowed);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// The folded form

TEST_CASE("a folded model's losses, sigmas and gradients are the reference's, the auxiliary loss's everywhere too") {
    for (const ModelConfig& c : {folded(kAligned), folded(kOdd)})
        for (const int level : {0, 2})
            for (const bool everywhere : {false, true}) {
                CAPTURE(c.C);
                CAPTURE(everywhere);
                const cuda::OptionsKeeper keeper;
                cuda::device_options().recompute = level;
                const std::unique_ptr<Engine> cpu = made(make_reference, c), gpu = made(cuda::make_engine, c);
                const std::vector<int32_t> tokens = tokens_of(*cpu, N + 1);
                AuxSettings aux;
                aux.weight = 0.5;
                aux.everywhere = everywhere;
                const auto step = [&](Engine& model) {
                    model.prepare_training(B, T);
                    model.zero_gradients();
                    return model.forward_backward(tokens.data(), tokens.data() + 1, B, T, aux, 2);
                };
                const BatchLoss expected = step(*cpu), found = step(*gpu);
                CHECK(found.loss == doctest::Approx(expected.loss).epsilon(1e-6));
                CHECK(found.aux == doctest::Approx(expected.aux).epsilon(1e-6));
                CHECK(expected.aux > 1e-3);
                const std::vector<float> ours = cuda::gradients_of(*gpu), theirs = cuda::gradients_of(*cpu);
                CHECK(cuda::largest_tensor_error(c, ours.data(), theirs.data()) < 2e-5);
                for (size_t i = 0; i < cpu->sites.all.size(); i++) {
                    CHECK(gpu->sigma_sums[i].mean() == doctest::Approx(cpu->sigma_sums[i].mean()).epsilon(1e-6));
                    CHECK(gpu->sigma_sums[i].n_at_0 == B);
                }
                for (Engine* model : {cpu.get(), gpu.get()}) {
                    model->clear_sigma_sums();
                    model->measure_sigmas(tokens.data(), B, T);
                }
                for (size_t i = 0; i < cpu->sites.all.size(); i++)
                    CHECK(gpu->sigma_sums[i].mean() == doctest::Approx(cpu->sigma_sums[i].mean()).epsilon(1e-6));
            }
}

TEST_CASE("a folded model learns what the reference's learns, in float and near in bf16, recorded to the same bits") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    const ModelConfig c = folded(kAligned);
    const auto run = [&](std::unique_ptr<Engine> (*make)(const ModelConfig&), Engine* teacher) {
        const std::unique_ptr<Engine> model = made(make, c, 4);
        model->prepare_training(B, T);
        model->prepare_optimiser();
        const std::vector<int32_t> tokens = tokens_of(*model, N + 1);
        std::vector<real> losses;
        for (int step = 0; step < 8; step++) {
            model->zero_gradients();
            const BatchLoss loss = model->forward_backward(tokens.data(), tokens.data() + 1, B, T, {0.1}, 1,
                                                           {teacher == nullptr ? 0.0 : 0.5, teacher});
            losses.push_back(static_cast<real>(loss.loss + loss.kl));
            AdamWStep adamw;
            adamw.lr = 5e-3;
            model->update(adamw);
        }
        return losses;
    };
    const cuda::OptionsKeeper keeper;
    for (const ModelConfig& of_teacher : {kAligned, folded(kAligned)}) {
        const std::unique_ptr<Engine> told = made(make_reference, of_teacher, 8),
                                      device_told = made(cuda::make_engine, of_teacher, 8);
        const std::vector<real> expected = run(make_reference, told.get()),
                                found = run(cuda::make_engine, device_told.get());
        CHECK(error_of(found, expected) < 1e-5);
        CHECK(expected.back() < expected.front() - real(0.5));
        cuda::device_options().cuda_graphs = true;
        CHECK(run(cuda::make_engine, device_told.get()) == found);
        cuda::device_options().cuda_graphs = false;
        cuda::device_options().in_bf16 = true;
        const std::unique_ptr<Engine> bf16_told = made(cuda::make_engine, of_teacher, 8);
        CHECK(error_of(run(cuda::make_engine, bf16_told.get()), expected) < 0.02);
        cuda::device_options().in_bf16 = false;
    }
}

TEST_CASE("a folded model evaluates and decodes as the reference does, its bias in no logit beyond the vocabulary") {
    for (const ModelConfig& c : {folded(kAligned), folded(kOdd)})
        for (const bool in_bf16 : {false, true}) {
            const cuda::OptionsKeeper keeper;
            cuda::device_options().in_bf16 = in_bf16;
            const double allowed = in_bf16 ? kInBf16 : 1e-5;
            const std::unique_ptr<Engine> cpu = made(make_reference, c), gpu = made(cuda::make_engine, c);
            const std::vector<int32_t> tokens = tokens_of(*cpu, N + 1);
            const auto losses = [&](Engine& model) {
                return values(model.token_losses(tokens.data(), tokens.data() + 1, B, T), N);
            };
            CHECK(error_of(losses(*gpu), losses(*cpu)) < allowed);
            for (Engine* model : {cpu.get(), gpu.get()}) model->start_decoding(B);
            for (const int64_t more : {4, 1, 3}) {
                std::vector<real> expected(static_cast<size_t>(B * c.V)), found(expected.size());
                cpu->decode(expected.data(), tokens.data(), B, more);
                gpu->decode(found.data(), tokens.data(), B, more);
                CHECK(error_of(found, expected) < allowed);
            }
        }
}

TEST_CASE("a folded model takes less of the device's memory: its norms' outputs are the stream") {
    for (const bool training : {false, true})
        CHECK(cuda::device_bytes(folded(kAligned), 64, 13, training, false, 0) <
              cuda::device_bytes(kAligned, 64, 13, training, false, 0));
}
