// Distillation in single precision: what holds to the bit, what to rounding. Compiled once; run once per instruction set,
// which LNFREE_ISA names.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "data/random.h"
#include "dev/cpu/operations.h"
#include "dev/engine.h"
#include "test/test_models.h"
#include "test/threads.h"

using namespace lnfree;

namespace {

const Operations& op = operations();

std::vector<real> logits_like(int64_t n, uint64_t seed, double spread) {
    SplitMix64 random(seed);
    std::vector<real> z(static_cast<size_t>(n));
    for (real& x : z) x = static_cast<real>(spread * random.normal() - 3);
    return z;
}

// What the operation makes of these rows.
struct Result {
    std::vector<real> losses, kls, gradient;

    Result(std::vector<real> z, std::vector<real> teacher, double share, int64_t rows, double scale = 0.37)
        : losses(static_cast<size_t>(rows)), kls(losses), gradient(std::move(z)) {
        const int64_t V = static_cast<int64_t>(gradient.size()) / rows;
        std::vector<int32_t> targets;
        for (int64_t n = 0; n < rows; n++) targets.push_back(static_cast<int32_t>(5 * n % V));
        op.softmax_distillation(losses.data(), kls.data(), gradient.data(), teacher.data(), targets.data(), share,
                                scale, rows, V);
    }
};

// KL(teacher || z) in double precision.
double divergence(const real* z, const real* teacher, int64_t V) {
    const auto log_sum = [&](const real* x) {
        const double largest = static_cast<double>(*std::max_element(x, x + V));
        double sum = 0;
        for (int64_t i = 0; i < V; i++) sum += std::exp(static_cast<double>(x[i]) - largest);
        return largest + std::log(sum);
    };
    const double lse = log_sum(z), lse_o = log_sum(teacher);
    double kl = 0;
    for (int64_t i = 0; i < V; i++) {
        const double log_p_o = static_cast<double>(teacher[i]) - lse_o;
        kl += std::exp(log_p_o) * (log_p_o - (static_cast<double>(z[i]) - lse));
    }
    return kl;
}

constexpr int64_t kRows = 3;
const int64_t kVocabularies[] = {1, 2, 7, 15, 16, 17, 31, 33, 257, 1000, 50257};

}  // namespace

TEST_CASE("equal logits have no divergence and, if the teacher has all of the loss, no gradient: to the bit") {
    for (const int64_t V : kVocabularies) {
        CAPTURE(V);
        const auto z = logits_like(kRows * V, 1, 4);
        const Result r(z, z, 1, kRows);
        CHECK(std::all_of(r.kls.begin(), r.kls.end(), [](real x) { return x == 0; }));
        CHECK(std::all_of(r.gradient.begin(), r.gradient.end(), [](real x) { return x == 0; }));
    }
}

TEST_CASE("divergence is that of double precision, and negative by no more than rounding") {
    for (const int64_t V : kVocabularies) {
        for (const double apart : {1e-4, 1e-2, 1.0, 30.0}) {
            CAPTURE(V);
            CAPTURE(apart);
            const auto z = logits_like(kRows * V, 2, 4), noise = logits_like(kRows * V, 3, apart);
            std::vector<real> teacher = z;
            for (size_t i = 0; i < z.size(); i++) teacher[i] += noise[i];
            const Result r(z, teacher, 0.5, kRows);
            for (int64_t n = 0; n < kRows; n++) {
                const double expected = divergence(z.data() + n * V, teacher.data() + n * V, V);
                const double got = static_cast<double>(r.kls[static_cast<size_t>(n)]);
                CHECK(std::abs(got - expected) < 3e-6 + 3e-6 * expected);
                CHECK(got > -3e-6);
            }
        }
    }
}

TEST_CASE("cross-entropy is that of the operation without a teacher, and without a share so is the gradient") {
    const int64_t V = 1000;
    const auto z = logits_like(kRows * V, 4, 4);
    const Result r(z, logits_like(kRows * V, 5, 4), 0, kRows);
    std::vector<real> losses(kRows), gradient = z;
    const std::vector<int32_t> targets = {0, 5, 10};
    op.softmax_cross_entropy(losses.data(), gradient.data(), targets.data(), 0.37, true, kRows, V);
    for (size_t n = 0; n < losses.size(); n++)
        CHECK(r.losses[n] == doctest::Approx(static_cast<double>(losses[n])).epsilon(1e-6));
    CHECK(largest_difference(r.gradient, gradient) < 1e-7);
}

TEST_CASE("logits that are not finite leave no finite loss") {
    auto z = logits_like(kRows * 20, 6, 1);
    const auto teacher = z;
    z[7] = NAN;
    const Result r(z, teacher, 0.5, kRows);
    CHECK(std::isnan(r.losses[0]));
    CHECK(std::isnan(r.kls[0]));
    CHECK(std::isfinite(r.losses[1]));
}

TEST_CASE("two models agree where the first of their largest logits is the same token") {
    const std::vector<real> a = {1, 3, 2, 3, 5, 5, 0, 1, 2}, b = {0, 9, 9, 1, 2, 1, 7, 8, 9};
    std::vector<uint8_t> same(3);
    op.same_likeliest(same.data(), a.data(), b.data(), 3, 3);
    CHECK(same == std::vector<uint8_t>{1, 1, 1});
    op.same_likeliest(same.data(), a.data(), std::vector<real>{9, 9, 0, 1, 2, 2, 0, 0, 0}.data(), 3, 3);
    CHECK(same == std::vector<uint8_t>{0, 1, 0});
}

// ---------------------------------------------------------------------------------------------------------------------
// Whole models. 50,257 tokens, of which 333 rows of logits are made at a time, so that a pass takes more than one chunk.

static std::unique_ptr<Engine> wide_vocabulary(uint64_t seed) {
    std::unique_ptr<Engine> model = random_model(shape_of(1, 2, 8, 50257, 400, 16), seed, 0.3);
    model->prepare_training();
    return model;
}

TEST_CASE("a model that is its own teacher has gradient 0, to the bit, with and without its LayerNorms") {
    const int64_t B = 1, T = 350;
    const std::vector<int32_t> tokens = random_tokens(T + 1, 50257);
    const std::unique_ptr<Engine> model = wide_vocabulary(7), teacher = wide_vocabulary(7);
    for (const bool removed : {false, true}) {
        if (removed)
            for (Engine* engine : {model.get(), teacher.get()})
                for (Site& site : engine->sites.all) freeze(site, 0.4);
        model->zero_gradients();
        const BatchLoss loss =
            model->forward_backward(tokens.data(), tokens.data() + 1, B, T, {}, 2, {1, teacher.get()});
        CHECK(loss.kl == 0);
        CHECK(loss.loss > 0);
        CHECK(model->gradient_norm() == 0);
    }
}

TEST_CASE("a pass beside a teacher does not depend on threads, and its divergence is that of the two models' logits") {
    const int64_t B = 1, T = 350, V = 50257;
    const std::vector<int32_t> tokens = random_tokens(T + 1, V);
    const std::unique_ptr<Engine> model = wide_vocabulary(8), teacher = wide_vocabulary(9);
    freeze(model->sites.mlp(0), 0.5);
    std::vector<real> expected;
    double kl = 0;
    for (const int threads : {1, 2, 3}) {
        const Threads here(threads);
        model->zero_gradients();
        kl = model->forward_backward(tokens.data(), tokens.data() + 1, B, T, {0.1}, 1, {0.4, teacher.get()}).kl;
        const std::vector<real> gradient(model->grads.data(), model->grads.data() + model->grads.size());
        if (expected.empty()) expected = gradient;
        CHECK(gradient == expected);
    }
    std::vector<real> z(static_cast<size_t>(T * V)), z_o(z.size());
    model->logits(z.data(), tokens.data(), B, T);
    teacher->logits(z_o.data(), tokens.data(), B, T);
    double sum = 0;
    int64_t agree = 0;
    for (int64_t t = 0; t < T; t++) {
        const real *row = z.data() + t * V, *row_o = z_o.data() + t * V;
        sum += divergence(row, row_o, V);
        agree += std::max_element(row, row + V) - row == std::max_element(row_o, row_o + V) - row_o;
    }
    CHECK(kl == doctest::Approx(sum / static_cast<double>(T)).epsilon(1e-5));
    const Comparison c = model->compare(*teacher, tokens.data(), tokens.data() + 1, B, T);
    double mean = 0;
    for (int64_t t = 0; t < T; t++) mean += static_cast<double>(c.kls[t]) / static_cast<double>(T);
    CHECK(mean == doctest::Approx(kl).epsilon(1e-9));
    CHECK(std::count(c.agree, c.agree + T, 1) == agree);
}
