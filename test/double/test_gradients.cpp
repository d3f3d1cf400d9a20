// Every backward against central finite differences of its forward, in double precision, on odd sizes; then the whole
// model at every stage of removal. A scalar loss is made of an output by a fixed random direction: loss = sum(out * d).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "data/random.h"
#include "dev/cpu/operations.h"
#include "dev/engine.h"
#include "dev/low_rank.h"
#include "dev/method.h"
#include "test/test_models.h"
#include "test/threads.h"

using namespace lnfree;

static const Operations& op = operations();

static std::vector<real> random_values(int64_t n, uint64_t seed, double scale = 1) {
    SplitMix64 random(seed);
    std::vector<real> values(static_cast<size_t>(n));
    for (real& x : values) x = scale * random.normal();
    return values;
}

static double dot(const std::vector<real>& a, const std::vector<real>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) sum += a[i] * b[i];
    return sum;
}

// Largest difference between `gradient` and the finite differences of `loss` with respect to x, relative to the largest
// gradient. `every`: checks only each so-many-th element.
static double gradient_error(real* x, const std::vector<real>& gradient, const std::function<double()>& loss,
                             size_t every = 1) {
    const Threads one(1);  // to wake another takes longer than all that there is to compute
    constexpr double h = 1e-5;
    double worst = 0, largest = 0;
    for (size_t i = 0; i < gradient.size(); i += every) {
        const real kept = x[i];
        x[i] = kept + h;
        const double above = loss();
        x[i] = kept - h;
        const double below = loss();
        x[i] = kept;
        worst = std::max(worst, std::abs((above - below) / (2 * h) - gradient[i]));
    }
    for (const real g : gradient) largest = std::max(largest, std::abs(g));
    return worst / std::max(largest, 1e-12);
}

constexpr double kTolerance = 1e-7;

TEST_CASE("encoder: tokens that repeat gather all of their gradients") {
    const int64_t B = 2, T = 5, C = 33, V = 4;
    auto wte = random_values(V * C, 1), wpe = random_values(T * C, 2);
    const auto d = random_values(B * T * C, 3);
    const std::vector<int32_t> tokens = {0, 1, 1, 3, 1, 2, 0, 1, 3, 3};
    std::vector<real> out(d.size()), dwte(wte.size()), dwpe(wpe.size());
    const auto loss = [&] {
        op.encoder_forward(out.data(), tokens.data(), wte.data(), wpe.data(), B, T, C);
        return dot(out, d);
    };
    op.encoder_backward(dwte.data(), dwpe.data(), d.data(), tokens.data(), B, T, C);
    CHECK(gradient_error(wte.data(), dwte, loss) < kTolerance);
    CHECK(gradient_error(wpe.data(), dwpe, loss) < kTolerance);
}

// LayerNorm and FakeLN on one set of values: N = 67 positions cross a chunk of sum_over_positions.
struct NormCase {
    const int64_t N = 67, C = 7;
    std::vector<real> x = random_values(N * C, 4, 2), gamma = random_values(C, 5), beta = random_values(C, 6),
                      d = random_values(N * C, 7);
    std::vector<real> out = std::vector<real>(x.size()), mean = std::vector<real>(static_cast<size_t>(N)), sigma = mean,
                      frozen = mean;
    std::vector<real> dx = std::vector<real>(x.size()), dgamma = std::vector<real>(static_cast<size_t>(C)),
                      dbeta = dgamma;

    double loss(bool fake) {
        op.moments_forward(mean.data(), sigma.data(), x.data(), 1e-5, true, N, C);
        op.norm_forward(out.data(), x.data(), mean.data(), fake ? frozen.data() : sigma.data(), gamma.data(),
                        beta.data(), N, C);
        return dot(out, d);
    }
    void backward(const std::vector<real>& divisor, const Site& site) {
        op.norm_backward(dx.data(), dgamma.data(), dbeta.data(), d.data(), x.data(), gamma.data(), mean.data(),
                         sigma.data(), divisor.data(), site, N, C);
    }
    void check(bool fake) {
        const auto f = [&] { return loss(fake); };
        CHECK(gradient_error(x.data(), dx, f) < kTolerance);
        CHECK(gradient_error(gamma.data(), dgamma, f) < kTolerance);
        CHECK(gradient_error(beta.data(), dbeta, f) < kTolerance);
    }
};

TEST_CASE("LayerNorm") {
    NormCase n;
    n.loss(false);
    n.backward(n.sigma, Site());
    n.check(false);
}

TEST_CASE("FakeLN with the precursor's two kinds of divisor") {
    NormCase n;
    Site site;
    freeze(site, 1.7);
    site.sigma_bar_0 = 0.6;
    site.own_position0 = site.own_end_of_text = true;
    std::vector<int32_t> tokens(static_cast<size_t>(n.N), 1);
    tokens[5] = 9;
    op.norm_divisors(n.frozen.data(), site, n.sigma.data(), tokens.data(), 9, 1, n.N);
    CHECK(n.frozen[0] == 0.6);
    CHECK(n.frozen[5] == 0.6);
    CHECK(n.frozen[6] == 1.7);
    n.loss(true);
    n.backward(n.frozen, site);
    n.check(true);
}

TEST_CASE(
    "gradual removal: from LayerNorm's divisor to FakeLN's, which are its ends, geometrically and TaperNorm's way") {
    NormCase n;
    Site site;
    freeze(site, 1.7);
    const std::vector<int32_t> tokens(static_cast<size_t>(n.N), 1);
    for (const double step : {0.0, 0.3, 0.9, 1.0, -0.3, -0.9, -1.0}) {
        const double a = std::abs(step);
        CAPTURE(step);
        site.a = a;
        site.tapers = step < 0;
        const auto loss = [&] {
            op.moments_forward(n.mean.data(), n.sigma.data(), n.x.data(), 1e-5, true, n.N, n.C);
            op.norm_divisors(n.frozen.data(), site, n.sigma.data(), tokens.data(), 9, 1, n.N);
            op.norm_forward(n.out.data(), n.x.data(), n.mean.data(), n.frozen.data(), n.gamma.data(), n.beta.data(),
                            n.N, n.C);
            return dot(n.out, n.d);
        };
        loss();
        for (auto* gradient : {&n.dx, &n.dgamma, &n.dbeta}) std::fill(gradient->begin(), gradient->end(), 0.0);
        n.backward(n.frozen, site);
        CHECK(gradient_error(n.x.data(), n.dx, loss) < kTolerance);
        CHECK(gradient_error(n.gamma.data(), n.dgamma, loss) < kTolerance);
        CHECK(gradient_error(n.beta.data(), n.dbeta, loss) < kTolerance);
        const double expected =
            site.tapers ? 1 / ((1 - a) / n.sigma[3] + a / 1.7) : std::pow(n.sigma[3], 1 - a) * std::pow(1.7, a);
        CHECK(n.frozen[3] == doctest::Approx(expected).epsilon(1e-12));
    }
}

TEST_CASE("auxiliary loss: no gradient flows through sigma_hat") {
    const int64_t B = 2, T = 4, C = 5, N = B * T;
    auto x = random_values(N * C, 8, 2);
    const std::vector<int32_t> tokens = {1, 9, 2, 3, 1, 1, 9, 4};
    std::vector<real> mean(N), sigma(N), dx(x.size());
    const double lambda = 0.3;
    for (const double position0 : {1.0, 4.0}) {
        std::fill(dx.begin(), dx.end(), 0.0);
        op.moments_forward(mean.data(), sigma.data(), x.data(), 1e-5, true, N, C);
        const AuxLoss at_start =
            op.aux_loss_forward(sigma.data(), tokens.data(), 9, {lambda, false, false, position0}, B, T);
        REQUIRE(at_start.active);
        CHECK(at_start.sigma_hat == doctest::Approx((sigma[2] + sigma[3] + sigma[5] + sigma[7]) / 4).epsilon(1e-12));
        op.aux_loss_backward(dx.data(), at_start, x.data(), mean.data(), sigma.data(), 0.5, B, T, C);
        const auto loss = [&] {
            op.moments_forward(mean.data(), sigma.data(), x.data(), 1e-5, true, N, C);
            double sum = 0;
            for (int64_t n = 0; n < N; n++)
                sum += std::pow(sigma[n] - (n % T == 0 ? position0 : 1) * at_start.sigma_hat, 2);
            return 0.5 * lambda * sum / static_cast<double>(N);
        };
        CHECK(at_start.loss == doctest::Approx(2 * loss()).epsilon(1e-12));
        CHECK(gradient_error(x.data(), dx, loss) < kTolerance);
    }
}

TEST_CASE("auxiliary loss is absent when every position is excluded from its target") {
    const std::vector<real> sigma = {1, 2, 3};
    const std::vector<int32_t> tokens = {1, 9, 9};
    const AuxLoss aux = op.aux_loss_forward(sigma.data(), tokens.data(), 9, {0.1}, 1, 3);
    CHECK_FALSE(aux.active);
    CHECK(aux.loss == 0);
}

TEST_CASE("matrix product with bias, whole and some columns only") {
    const int64_t N = 65, K = 7, M = 3;
    for (const int64_t stride : {M, M + 4}) {
        auto x = random_values(N * K, 9), w = random_values(K * stride, 10), b = random_values(M, 11);
        auto d = random_values(N * stride, 12);
        for (int64_t n = 0; n < N; n++)
            for (int64_t m = M; m < stride; m++) d[n * stride + m] = 0;  // columns that this product does not write
        std::vector<real> out(d.size()), dx(x.size()), dw(w.size()), db(b.size());
        const auto loss = [&] {
            op.matmul_forward(out.data(), x.data(), w.data(), b.data(), N, K, M, stride);
            return dot(out, d);
        };
        loss();
        op.matmul_backward(dx.data(), dw.data(), db.data(), d.data(), x.data(), w.data(), N, K, M, stride);
        CHECK(gradient_error(x.data(), dx, loss) < kTolerance);
        CHECK(gradient_error(w.data(), dw, loss) < kTolerance);
        CHECK(gradient_error(b.data(), db, loss) < kTolerance);
    }
}

TEST_CASE("attention: queries, keys and values, within one block of queries and across several") {
    const int64_t C = 6, NH = 2;
    int64_t B = 2, T = 5;
    SUBCASE("one block") {}
    SUBCASE("several blocks") {
        B = 1;
        T = 67;  // more than two blocks of the engine's
    }
    auto qkv = random_values(B * T * 3 * C, 13);
    const auto d = random_values(B * T * C, 14);
    std::vector<real> out(d.size()), lse(B * NH * T), dqkv(qkv.size(), 99.0);
    const auto loss = [&] {
        op.attention_forward(out.data(), lse.data(), qkv.data(), B, T, {NH, NH, C / NH}, 0, T);
        return dot(out, d);
    };
    loss();
    op.attention_backward(dqkv.data(), d.data(), qkv.data(), out.data(), lse.data(), B, T, {NH, NH, C / NH});
    CHECK(gradient_error(qkv.data(), dqkv, loss) < kTolerance);
}

TEST_CASE("attention whose heads of keys and values serve several of queries equals one with a copy for each") {
    const int64_t B = 2, T = 35, HS = 3;
    for (const auto& [NH, KH] : {std::pair<int64_t, int64_t>{4, 2}, {3, 1}, {6, 2}}) {
        CAPTURE(NH);
        const Heads heads{NH, KH, HS};
        auto qkv = random_values(B * T * heads.row(), 13);
        const auto d = random_values(B * T * heads.width(), 14);
        std::vector<real> out(d.size()), lse(B * NH * T), dqkv(qkv.size(), 99.0);
        const auto loss = [&] {
            op.attention_forward(out.data(), lse.data(), qkv.data(), B, T, heads, 0, T);
            return dot(out, d);
        };
        loss();
        op.attention_backward(dqkv.data(), d.data(), qkv.data(), out.data(), lse.data(), B, T, heads);
        CHECK(gradient_error(qkv.data(), dqkv, loss, 7) < kTolerance);

        const Heads copied{NH, NH, HS};
        std::vector<real> wide(B * T * copied.row()), same(out.size());
        for (int64_t n = 0; n < B * T; n++)
            for (int64_t h = 0; h < 3 * NH; h++) {  // queries, keys, values
                const int64_t from = h < NH ? h : NH + (h / NH - 1) * KH + h % NH / (NH / KH);
                for (int64_t i = 0; i < HS; i++)
                    wide[n * copied.row() + h * HS + i] = qkv[n * heads.row() + from * HS + i];
            }
        op.attention_forward(same.data(), lse.data(), wide.data(), B, T, copied, 0, T);
        loss();
        CHECK(largest_difference(out, same) == 0);
    }
}

TEST_CASE("rotary positions turn queries and keys, so that their product depends on the distance alone") {
    const int64_t T = 6, R = 4;
    const Heads heads{2, 1, 6};
    std::vector<real> turns;
    for (int64_t t = 0; t < T; t++)
        for (const double speed : {1.0, 0.1}) {
            turns.push_back(std::cos(t * speed));
            turns.push_back(std::sin(t * speed));
        }
    const auto one = random_values(heads.row(), 15);
    std::vector<real> qkv;
    for (int64_t t = 0; t < T; t++) qkv.insert(qkv.end(), one.begin(), one.end());
    const std::vector<real> straight = qkv;
    op.rotary_forward(qkv.data(), turns.data(), 1, T, heads, R);
    const auto score = [&](int64_t t, int64_t u) {
        double sum = 0;
        for (int64_t i = 0; i < heads.HS; i++)
            sum += qkv[t * heads.row() + i] * qkv[u * heads.row() + heads.width() + i];
        return sum;
    };
    CHECK(score(5, 3) == doctest::Approx(score(2, 0)).epsilon(1e-12));
    CHECK(std::abs(score(5, 3) - score(5, 2)) > 1e-3);
    // Number i goes with number i + R/2; what is behind R, and the values, stay.
    const real *x = &straight[heads.row()], *turned = &qkv[heads.row()];
    CHECK(turned[0] == doctest::Approx(std::cos(1) * x[0] - std::sin(1) * x[2]));
    CHECK(turned[3] == doctest::Approx(std::sin(0.1) * x[1] + std::cos(0.1) * x[3]));
    CHECK(turned[4] == x[4]);
    CHECK(turned[3 * heads.HS] == x[3 * heads.HS]);
    op.rotary_backward(qkv.data(), turns.data(), 1, T, heads, R);
    CHECK(largest_difference(qkv, straight) < 1e-12);
}

TEST_CASE("GELU by the error function, and gated SiLU, equal their formulas, and so do their gradients") {
    const int64_t N = 3, H = 7;
    auto x = random_values(2 * N * H, 16, 3);
    const auto d = random_values(2 * N * H, 17);
    std::vector<real> out(2 * N * H), dx(2 * N * H);
    const auto gelu = [&] {
        op.gelu_erf_forward(out.data(), x.data(), 2 * N * H);
        return dot(out, d);
    };
    gelu();
    for (size_t i = 0; i < x.size(); i++)
        CHECK(out[i] == doctest::Approx(0.5 * x[i] * (1 + std::erf(x[i] / std::sqrt(2)))).epsilon(1e-12));
    op.gelu_erf_backward(dx.data(), d.data(), x.data(), 2 * N * H);
    CHECK(gradient_error(x.data(), dx, gelu) < kTolerance);

    std::vector<real> gated(N * H), d_gated(d.begin(), d.begin() + N * H);
    const auto silu = [&] {
        op.gated_silu_forward(gated.data(), x.data(), N, H);
        return dot(gated, d_gated);
    };
    silu();
    const real g = x[2 * H + 1], u = x[2 * H + H + 1];
    CHECK(gated[H + 1] == doctest::Approx(g / (1 + std::exp(-g)) * u).epsilon(1e-12));
    op.gated_silu_backward(dx.data(), d_gated.data(), x.data(), N, H);
    CHECK(gradient_error(x.data(), dx, silu) < kTolerance);
}

TEST_CASE("attention never looks ahead") {
    const int64_t B = 1, T = 4, C = 4, NH = 1;
    auto qkv = random_values(T * 3 * C, 15);
    std::vector<real> out(T * C), again(T * C), lse(T);
    op.attention_forward(out.data(), lse.data(), qkv.data(), B, T, {NH, NH, C / NH}, 0, T);
    for (int64_t i = 0; i < 3 * C; i++) qkv[3 * 3 * C + i] += 5;
    op.attention_forward(again.data(), lse.data(), qkv.data(), B, T, {NH, NH, C / NH}, 0, T);
    for (int64_t i = 0; i < 3 * C; i++) CHECK(out[i] == again[i]);
    CHECK(out[3 * C] != again[3 * C]);
}

TEST_CASE("GELU, and it equals the published formula") {
    auto x = random_values(41, 16, 3);
    const auto d = random_values(41, 17);
    std::vector<real> out(x.size()), dx(x.size());
    const auto loss = [&] {
        op.gelu_forward(out.data(), x.data(), 41);
        return dot(out, d);
    };
    loss();
    for (size_t i = 0; i < x.size(); i++) {
        const double inner = std::sqrt(2 / M_PI) * (x[i] + 0.044715 * std::pow(x[i], 3));
        CHECK(out[i] == doctest::Approx(0.5 * x[i] * (1 + std::tanh(inner))).epsilon(1e-12));
    }
    op.gelu_backward(dx.data(), d.data(), x.data(), 41);
    CHECK(gradient_error(x.data(), dx, loss) < kTolerance);
}

TEST_CASE("softmax and cross-entropy") {
    const int64_t rows = 3, V = 11;
    auto z = random_values(rows * V, 18, 3);
    const std::vector<int32_t> targets = {0, 10, 4};
    std::vector<real> losses(rows), gradient = z;
    op.softmax_cross_entropy(losses.data(), gradient.data(), targets.data(), 0.25, true, rows, V);
    const auto loss = [&] {
        std::vector<real> copy = z;
        op.softmax_cross_entropy(losses.data(), copy.data(), targets.data(), 1, false, rows, V);
        CHECK(copy == z);
        return 0.25 * (losses[0] + losses[1] + losses[2]);
    };
    CHECK(gradient_error(z.data(), gradient, loss) < kTolerance);
}

// Two rows of probabilities, by the definition.
static std::vector<double> softmax_of(const real* z, int64_t V) {
    std::vector<double> p(z, z + V);
    double sum = 0;
    for (double& x : p) sum += x = std::exp(x);
    for (double& x : p) x /= sum;
    return p;
}

TEST_CASE("distillation: cross-entropy, divergence from the teacher, and the gradient of what w makes of them") {
    const int64_t rows = 3, V = 19;
    auto z = random_values(rows * V, 20, 3);
    const auto teacher = random_values(rows * V, 21, 3);
    const std::vector<int32_t> targets = {0, 18, 4};
    std::vector<real> losses(rows), kls(rows);
    for (const double w : {0.0, 0.3, 1.0}) {
        CAPTURE(w);
        const auto pass = [&](double scale) {
            std::vector<real> logits = z, used_up = teacher;
            op.softmax_distillation(losses.data(), kls.data(), logits.data(), used_up.data(), targets.data(), w, scale,
                                    rows, V);
            return logits;
        };
        const std::vector<real> gradient = pass(0.25);
        for (int64_t n = 0; n < rows; n++) {
            const std::vector<double> p = softmax_of(z.data() + n * V, V), p_o = softmax_of(teacher.data() + n * V, V);
            double kl = 0;
            for (size_t i = 0; i < p.size(); i++) kl += p_o[i] * std::log(p_o[i] / p[i]);
            CHECK(losses[n] == doctest::Approx(-std::log(p[targets[n]])).epsilon(1e-12));
            CHECK(kls[n] == doctest::Approx(kl).epsilon(1e-12));
        }
        const auto loss = [&] {
            pass(0);
            double sum = 0;
            for (int64_t n = 0; n < rows; n++) sum += (1 - w) * losses[n] + w * kls[n];
            return 0.25 * sum;
        };
        CHECK(gradient_error(z.data(), gradient, loss) < kTolerance);
    }
}

TEST_CASE("a teacher with no share leaves the gradient of cross-entropy") {
    const int64_t rows = 2, V = 37;
    const auto z = random_values(rows * V, 22, 3);
    const std::vector<int32_t> targets = {5, 36};
    std::vector<real> losses(rows), kls(rows), expected = z, got = z, teacher = random_values(rows * V, 23, 3);
    op.softmax_cross_entropy(losses.data(), expected.data(), targets.data(), 0.5, true, rows, V);
    op.softmax_distillation(losses.data(), kls.data(), got.data(), teacher.data(), targets.data(), 0, 0.5, rows, V);
    for (size_t i = 0; i < got.size(); i++) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-14));
}

// ---------------------------------------------------------------------------------------------------------------------

static std::unique_ptr<Engine> small_model(ModelForm form) {
    ModelConfig c = shape_of(2, 3, 9, 13, 6, 17);
    c.form = form;
    std::unique_ptr<Engine> model = random_model(c, 19, 0.4);
    model->prepare_training();
    return model;
}

// Finite differences of every so-many-th parameter of the whole model. The targets of the auxiliary loss carry no gradient, so
// the difference quotient holds them fixed: the loss is recomputed around their values at the start.
static void check_model(Engine& model, const AuxSettings& aux, const Distillation& distillation = {},
                        size_t every = 7) {
    const int64_t B = 2, T = 5;
    const std::vector<int32_t> inputs = {1, 5, 12, 3, 5, 0, 7, 5, 12, 2}, targets = {5, 12, 3, 5, 0, 7, 5, 12, 2, 11};
    const auto run = [&] { return model.forward_backward(inputs.data(), targets.data(), B, T, aux, 1, distillation); };
    model.grads.zero();
    run();
    std::vector<Site> sites;
    for (const Site& site : model.sites.all)
        if (site.kind == SiteKind::f || (aux.everywhere && site.kind != SiteKind::v)) sites.push_back(site);
    std::vector<double> fixed;
    for (const Site& site : sites)
        fixed.push_back(op.aux_loss_forward(model.sigmas_at(site), inputs.data(), 12, {1.0}, B, T).sigma_hat);
    const std::vector<real> gradient(model.grads.data(), model.grads.data() + model.grads.size());
    const auto loss = [&] {
        const BatchLoss now = run();
        double total = (1 - distillation.share) * now.loss + distillation.share * now.kl;
        for (size_t i = 0; i < sites.size(); i++) {
            const double unit = aux.relative ? fixed[i] : 1;
            for (int64_t n = 0; n < B * T; n++) {
                const double target = (n % T == 0 ? aux.position0 : 1) * fixed[i];
                total += aux.weight * std::pow((model.sigmas_at(sites[i])[n] - target) / unit, 2) /
                         static_cast<double>(B * T * static_cast<int64_t>(sites.size()));
            }
        }
        return total;
    };
    CHECK(gradient_error(model.params.data(), gradient, loss, every) < 1e-6);
}

// A teacher of another depth and width, that has its own way with some sites.
static std::unique_ptr<Engine> teacher_model() {
    std::unique_ptr<Engine> teacher = random_model(shape_of(1, 2, 8, 13, 7, 11), 24, 0.4);
    freeze(teacher->sites.v(0), 1.2);
    return teacher;
}

TEST_CASE("the whole model at every stage of removal, with and without auxiliary loss, with and without a teacher") {
    const std::unique_ptr<Engine> teacher = teacher_model();
    const std::vector<std::pair<double, Distillation>> losses = {{0, {}}, {0.1, {}}, {0.1, {0.3, teacher.get()}}};
    using Stage = std::pair<const char*, std::function<void(Sites&)>>;
    const auto all_mlp = [](Sites& s) {
        freeze(s.mlp(0), 0.9);
        freeze(s.mlp(1), 1.3);
    };
    const auto all_but_f = [&](Sites& s) {
        all_mlp(s);
        for (int l = 0; l < 2; l++) {
            freeze(s.qk(l), 0.7 + l);
            freeze(s.v(l), 1.1 + l);
        }
    };
    const std::vector<Stage> stages = {
        {"none removed", [](Sites&) {}},
        {"some mlp", [](Sites& s) { freeze(s.mlp(1), 1.3); }},
        {"all mlp", all_mlp},
        {"some qk",
         [&](Sites& s) {
             all_mlp(s);
             freeze(s.qk(0), 0.7);
         }},
        {"qk and v of one layer",
         [&](Sites& s) {
             all_mlp(s);
             freeze(s.qk(0), 0.7);
             freeze(s.v(0), 1.1);
         }},
        {"v without qk", [](Sites& s) { freeze(s.v(1), 1.1); }},
        {"all but f", all_but_f},
        {"all",
         [&](Sites& s) {
             all_but_f(s);
             freeze(s.f(), 2.1);
         }},
        {"gradual, some further than others",
         [&](Sites& s) {
             all_but_f(s);
             for (Site& site : s.all) site.a = site.removed() ? 1 - 0.2 * (1 + site.layer) : 0;
             s.qk(1).a = 1;
         }},
        {"precursor",
         [&](Sites& s) {
             all_but_f(s);
             freeze(s.f(), 2.1);
             for (Site& site : s.all) {
                 site.sigma_bar_0 = 0.5 + 0.1 * site.layer;
                 site.own_position0 = true;
                 site.own_end_of_text = site.kind == SiteKind::v;
             }
         }},
    };
    for (const Stage& stage : stages) {
        for (const auto& trained : losses) {
            CAPTURE(stage.first);
            CAPTURE(trained.first);
            CAPTURE(trained.second.share);
            const auto model = small_model(ModelForm::hugging_face);
            stage.second(model->sites);
            check_model(*model, {trained.first}, trained.second);
        }
    }
}

TEST_CASE("the auxiliary loss at every norm, and relative to its target") {
    for (const AuxSettings& aux :
         {AuxSettings{0.2, false, true}, AuxSettings{0.2, true}, AuxSettings{0.2, true, true}}) {
        CAPTURE(aux.everywhere);
        CAPTURE(aux.relative);
        const auto model = small_model(ModelForm::hugging_face);
        freeze(model->sites.mlp(0), 0.9);
        check_model(*model, aux);
    }
}

TEST_CASE("the folded form, with its own unembedding and bias, trains as well") {
    const auto model = small_model(ModelForm::folded);
    check_model(*model, {});
    const std::unique_ptr<Engine> teacher = teacher_model();
    check_model(*model, {}, {1, teacher.get()});
}

TEST_CASE(
    "gradients are zero after zero_gradients, whatever came before: a pass, an analysis, an update, and what follows "
    "one") {
    const auto model = small_model(ModelForm::checkpoint);
    model->prepare_optimiser();
    const std::vector<int32_t> tokens = {1, 5, 12, 3, 5, 0, 7, 5, 12, 2, 11};
    const auto pass = [&] { model->forward_backward(tokens.data(), tokens.data() + 1, 2, 5, {}, 1); };
    const auto analysis = [&] {
        const std::vector<real> dnormed(static_cast<size_t>(10 * model->config.C), 1);
        model->trace(tokens.data(), 2, 5, {}, true);
        model->stream_gradients(dnormed.data(), tokens.data(), [](int64_t, const real*) {});
    };
    const auto update = [&] { model->update({}); };  // its learning rate is 0
    const auto largest = [&] {
        model->zero_gradients();
        double most = 0;
        for (int64_t i = 0; i < model->grads.size(); i++) most = std::max(most, std::abs(model->grads.data()[i]));
        return most;
    };
    pass();
    CHECK(model->gradient_norm() > 0);
    CHECK(largest() == 0);
    pass();
    update();
    CHECK(largest() == 0);
    pass();
    CHECK(largest() == 0);
    update();
    analysis();
    CHECK(model->gradient_norm() > 0);
    CHECK(largest() == 0);
}

TEST_CASE("models of other shapes, with and without their norms, folded too") {
    const std::unique_ptr<Engine> teacher = teacher_model();
    for (const ModelConfig& shape : other_shapes())
        for (const int stage : {0, 1, 2, 3}) {
            CAPTURE(shape.rotary);
            CAPTURE(shape.shared_heads);
            CAPTURE(stage);
            ModelConfig c = shape;
            if (stage == 3) c.form = ModelForm::folded;
            const auto model = random_model(c, 19, 0.3);
            model->prepare_training();
            for (int64_t l = 0; stage == 1 && l < c.L; l++) {
                freeze(model->sites.mlp(l), 0.9 + l);
                freeze(model->sites.qk(l), 0.7);
                model->sites.v(l).sigma_bar = 1.3;
                model->sites.v(l).a = 0.4;
            }
            for (Site& site : model->sites.all)
                if (stage == 2) freeze(site, 0.8 + 0.1 * static_cast<int>(site.kind));
            check_model(*model, {stage == 3 ? 0 : 0.1}, {0.5, teacher.get()}, 23);
        }
}

// Of a finished model, from recipes to a model of the form that they make.
static std::unique_ptr<Engine> made_from(const std::vector<TensorRecipe>& recipes, const ModelConfig& config) {
    std::unique_ptr<Engine> made = make_reference(config);
    REQUIRE(recipes.size() == made->tensors.size());
    for (const TensorRecipe& recipe : recipes) recipe.fill(made->tensor(recipe.name));
    return made;
}

TEST_CASE("both exact forms of finished models of other shapes predict the same") {
    const int64_t B = 2, T = 5, V = 13;
    const std::vector<int32_t> tokens = random_tokens(B * T, V);
    const auto predictions = [&](Engine& model) {
        std::vector<real> logits(B * T * V);
        model.logits(logits.data(), tokens.data(), B, T);
        return logits;
    };
    for (const ModelConfig& shape : other_shapes()) {
        CAPTURE(shape.rotary);
        const auto model = random_model(shape, 20, 0.2);
        for (Site& site : model->sites.all) freeze(site, 0.8 + 0.1 * static_cast<int>(site.kind));
        const std::vector<real> expected = predictions(*model);
        ModelConfig config;
        const auto folded = folded_recipes(*model, config);
        CHECK(largest_difference(predictions(*made_from(folded, config)), expected) < 1e-10);
        // A stock loader runs the norm that it knows, with the epsilon of config.json.
        const auto stock = hugging_face_recipes(*model, config);
        CHECK(config.epsilon_freezes_sigma());
        CHECK(largest_difference(predictions(*made_from(stock, config)), expected) < 1e-10);
    }
}

TEST_CASE("decoding token by token gives what one pass does, whatever the shape") {
    const int64_t T = 6, V = 13;
    const std::vector<int32_t> tokens = random_tokens(T, V);
    for (const ModelConfig& shape : other_shapes()) {
        CAPTURE(shape.rotary);
        const auto model = random_model(shape, 20, 0.4);
        std::vector<real> expected(T * V), got(V);
        model->logits(expected.data(), tokens.data(), 1, T);
        model->start_decoding(1);
        model->decode(got.data(), tokens.data(), 1, 2);
        for (int64_t t = 2; t < T; t++) model->decode(got.data(), tokens.data() + t, 1, 1);
        const std::vector<real> last(expected.end() - V, expected.end());
        CHECK(largest_difference(got, last) < 1e-12);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Low-rank updates

// A B of the tensor of this name, entry by entry.
static std::vector<double> product_of_update(const Engine& model, const Tensor& t) {
    const auto at = [&](const std::string& name) {
        for (const Tensor& u : model.low_rank.table)
            if (u.name == name) return u.offset;
        return int64_t{-1};
    };
    const auto K = static_cast<int64_t>(t.shape[0]), M = static_cast<int64_t>(t.shape[1]), R = model.low_rank.R;
    const int64_t A = at(t.name + ".lora_A"), B = at(t.name + ".lora_B");
    std::vector<double> product(static_cast<size_t>(K * M), 0);
    for (int64_t k = 0; k < K && A >= 0; k++)
        for (int64_t m = 0; m < M; m++)
            for (int64_t r = 0; r < R; r++)
                product[k * M + m] +=
                    model.low_rank.values.data()[A + k * R + r] * model.low_rank.values.data()[B + r * M + m];
    return product;
}

TEST_CASE("low-rank updates: gradients, weights that hold the product, and nothing else that changes") {
    const int64_t B = 2, T = 5;
    const std::vector<int32_t> inputs = {1, 5, 12, 3, 5, 0, 7, 5, 12, 2}, targets = {5, 12, 3, 5, 0, 7, 5, 12, 2, 11};
    for (const bool embeddings : {false, true}) {
        CAPTURE(embeddings);
        ModelConfig c = shape_of(2, 3, 9, 13, 6, 17);
        const auto model = random_model(c, 19, 0.4);
        freeze(model->sites.v(1), 1.1);
        const std::vector<real> start(model->params.data(), model->params.data() + model->params.size());
        start_low_rank(*model, 2, embeddings, 3);
        model->prepare_training();
        model->prepare_optimiser();
        const auto run = [&] {
            model->zero_gradients();
            return model->forward_backward(inputs.data(), targets.data(), B, T, {}, 1).loss;
        };
        const double first = run();
        for (int step = 0; step < 3; step++) {
            run();
            model->gradient_norm();
            model->update({0.05});
        }
        CHECK(run() < first);

        // The weights are what they were, plus the product; gamma and beta are those of the table; all else is as it was.
        const auto of_the_weights = [&] {
            for (const Tensor& t : model->tensors) {
                const std::vector<double> product =
                    t.shape.size() == 2 ? product_of_update(*model, t) : std::vector<double>();
                const real *now = model->params.data() + t.offset, *before = start.data() + t.offset;
                const bool matrix = t.shape.size() == 2 && t.name[0] == 'h', norm = t.name.find("ln_") < 9;
                const bool as_it_is = norm || (embeddings && t.name[0] == 'w');
                for (int64_t i = 0; i < t.size; i++) {
                    if (matrix) CHECK(now[i] == doctest::Approx(before[i] + product[i]).epsilon(1e-12));
                    if (!matrix && !as_it_is) CHECK(now[i] == before[i]);
                }
                if (as_it_is) CHECK(now[0] != before[0]);
            }
        };
        of_the_weights();

        // Finite differences of A, B and what is trained as it is, through weights made anew from them.
        const std::vector<real> gradient(model->low_rank.grads.data(),
                                         model->low_rank.grads.data() + model->low_rank.grads.size());
        const auto loss = [&] {
            for (const Tensor& t : model->tensors) {
                real* now = model->params.data() + t.offset;
                if (t.shape.size() == 2 && t.name[0] == 'h') {
                    const std::vector<double> product = product_of_update(*model, t);
                    for (int64_t i = 0; i < t.size; i++) now[i] = start[t.offset + i] + product[i];
                }
                for (const Tensor& u : model->low_rank.table)
                    if (u.name == t.name) std::copy_n(model->low_rank.values.data() + u.offset, t.size, now);
            }
            return run();
        };
        CHECK(gradient_error(model->low_rank.values.data(), gradient, loss, 11) < 1e-6);
    }
}

TEST_CASE("low-rank updates of full rank that start at 0 leave the model's predictions alone") {
    const auto model = random_model(shape_of(2, 3, 9, 13, 6, 17), 19, 0.4);
    const std::vector<real> before(model->params.data(), model->params.data() + model->params.size());
    start_low_rank(*model, 17, true, 3);
    model->prepare_training();
    model->prepare_optimiser();
    const std::vector<int32_t> tokens = {1, 5, 12, 3, 5, 0, 7, 5, 12, 2, 11};
    model->zero_gradients();
    model->forward_backward(tokens.data(), tokens.data() + 1, 2, 5, {}, 1);
    model->gradient_norm();
    model->update({});  // its learning rate is 0
    const auto now = [&] {
        return std::vector<real>(model->params.data(), model->params.data() + model->params.size());
    };
    CHECK(largest_difference(before, now()) == 0);

    // An embedding that is changed by hand stays so.
    model->edit_parameters({model->tensor("wpe.weight") - model->params.data(), model->config.C}, 0.5, nullptr);
    const std::vector<real> edited = now();
    CHECK(largest_difference(before, edited) > 0.1);
    model->update({});
    CHECK(largest_difference(edited, now()) == 0);
}

TEST_CASE("LayerNorm Scaling: gamma and beta hold the factor, and AdamW trains what they would be without it") {
    const auto model = random_model(shape_of(3, 3, 9, 13, 6, 17), 19, 0.4);
    model->scale_norms_by_depth();
    model->prepare_training();
    model->prepare_optimiser();
    const AdamWStep s{0.01, 0.9, 0.999, 1e-8, 0.1, 0.7};
    for (const Tensor& t : model->tensors) {
        const bool scaled = t.name.find(".ln_") != std::string::npos;
        CHECK(t.unit == doctest::Approx(scaled ? 1 / std::sqrt(1.0 + (t.name[2] - '0')) : 1));
    }
    std::vector<double> m(model->params.size()), v(m.size()), theta(m.size());
    for (const Tensor& t : model->tensors)
        for (int64_t i = t.offset; i < t.offset + t.size; i++) theta[i] = model->params.data()[i] / t.unit;
    for (int step = 1; step <= 2; step++) {
        const auto gradient = random_values(model->params.size(), 30 + static_cast<uint64_t>(step));
        std::copy(gradient.begin(), gradient.end(), model->grads.data());
        model->update(s);
        for (const Tensor& t : model->tensors)
            for (int64_t i = t.offset; i < t.offset + t.size; i++) {
                const double g = 0.7 * t.unit * gradient[i];
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                const double decayed = t.shape.size() == 2 ? theta[i] * (1 - 0.01 * 0.1) : theta[i];
                theta[i] = decayed - 0.01 * (m[i] / (1 - std::pow(0.9, step))) /
                                         (std::sqrt(v[i] / (1 - std::pow(0.999, step))) + 1e-8);
                CHECK(model->params.data()[i] == doctest::Approx(t.unit * theta[i]).epsilon(1e-10));
            }
    }
}
