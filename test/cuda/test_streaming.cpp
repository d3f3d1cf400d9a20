// The memory-bound kernels of the CUDA engine, run by the emulation, against the operations of the CPU engine on the same
// inputs: sizes that fit no vector and no block, rows that are not aligned, float and bf16. Every kernel runs twice, with
// the threads in order and in a random order, and must give the same bits; the emulation itself fails on out-of-range,
// uninitialised and racing accesses to shared memory and on barriers that not all threads reach.
//
// bf16 has 8 bits of significand. The reference gets the inputs as rounded to bf16 and computes in float, so an output may
// differ by half a last place, 1/256 of its value, besides the 1e-5 of float arithmetic (worst_rounded_error).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "dev/cpu/operations.h"
#include "dev/cuda/compare.h"
#include "dev/cuda/global_norm.h"
#include "dev/cuda/kernels.h"
#include "dev/cuda/operands.h"
#include "test/test_models.h"

using namespace lnfree;
using cuda::bf16;
using cuda::DeviceArray;
using cuda::Divisor;
using cuda::Floats;
using cuda::floats;
using cuda::from_float;
using cuda::made_up_tokens;
using cuda::normal_values;
using cuda::Operand;
using cuda::rounded;
using cuda::to_float;
using cuda::worst_error;
using cuda::worst_rounded_error;

typedef std::vector<Floats> Outputs;

constexpr double kFloatError = 1e-5;

// What `run` gives with the threads in order, after checking that a random order gives the same.
template <class Run>
static Outputs in_any_order(Run run) {
    cuda::emulation_options().seed = 0;
    const Outputs in_order = run();
    cuda::emulation_options().seed = 20240607;
    const Outputs shuffled = run();
    cuda::emulation_options().seed = 0;
    CHECK(in_order == shuffled);
    return in_order;
}

// Random operands, a different seed for each.
template <class X>
static Operand<X> random_operand(int64_t n, uint64_t seed, int64_t offset = 0) {
    return Operand<X>(normal_values(n, seed), offset);
}

// A removed site. The precursor's has a second sigma at position 0 and, for v, at end-of-text.
static Site removed_site(double sigma_bar, bool precursor = false) {
    Site site;
    site.a = 1;
    site.sigma_bar = sigma_bar;
    site.sigma_bar_0 = 3 * sigma_bar;
    site.own_position0 = site.own_end_of_text = precursor;
    return site;
}

static const int32_t kEndOfText = 2;

// What the reference divides by.
static Floats reference_divisors(const Site& site, const Floats& sigma, const std::vector<int32_t>& tokens, int64_t B,
                                 int64_t T) {
    if (site.has_layer_norm()) return sigma;
    Floats divisor(sigma.size());
    operations().norm_divisors(divisor.data(), site, sigma.data(), tokens.data(), kEndOfText, B, T);
    return divisor;
}

// C and the offset of every operand in elements: no vector fits, one lane's worth, several, all of a warp's, registers of
// both sizes, rows too long for them; and rows that would fit but do not begin on 16 bytes.
struct RowShape {
    int64_t B, T, C, offset;
};
static const RowShape kRowShapes[] = {{1, 3, 1, 0},   {1, 5, 3, 0},    {3, 5, 5, 0},    {3, 3, 17, 0},
                                      {3, 7, 64, 0},  {1, 5, 64, 1},   {3, 3, 255, 0},  {1, 3, 257, 0},
                                      {1, 7, 768, 0}, {1, 5, 1600, 0}, {1, 3, 2048, 4}, {1, 3, 2056, 0}};

// ---------------------------------------------------------------------------------------------------------------------
// Encoder

TEST_CASE_TEMPLATE("encoder_forward adds token and position embeddings", X, float, bf16) {
    for (const RowShape& s : kRowShapes) {
        CAPTURE(s.C);
        CAPTURE(s.offset);
        const int64_t V = 11, N = s.B * s.T;
        const Operand<X> wte = random_operand<X>(V * s.C, 1, s.offset), wpe = random_operand<X>(s.T * s.C, 2, s.offset);
        const std::vector<int32_t> tokens = made_up_tokens(N, V);
        const DeviceArray<int32_t> device_tokens(tokens);
        Floats expected(static_cast<size_t>(N * s.C));
        operations().encoder_forward(expected.data(), tokens.data(), wte.reference.data(), wpe.reference.data(), s.B,
                                     s.T, s.C);
        std::vector<X> got;
        in_any_order([&] {
            const DeviceArray<X> out(N * s.C, s.offset);
            cuda::encoder_forward(out.data(), device_tokens.data(), wte.data(), wpe.data(), s.B, s.T, s.C, nullptr);
            got = out.host();
            return Outputs{floats(got)};
        });
        CHECK(worst_rounded_error(got, expected, kFloatError) <= 1);
    }
}

TEST_CASE("sort_positions lists every position once, by token and in order, in pieces that fit") {
    struct Size {
        int64_t N, V;
    };
    for (const Size& s : {Size{1, 1}, Size{64, 1}, Size{65, 1}, Size{700, 3}, Size{333, 257}, Size{50, 1000}}) {
        CAPTURE(s.N);
        CAPTURE(s.V);
        const std::vector<int32_t> tokens = made_up_tokens(s.N, s.V);
        std::vector<int32_t> sorted(static_cast<size_t>(cuda::sorted_positions_size(s.N)), -99);
        cuda::sort_positions(sorted.data(), tokens.data(), s.N, s.V);
        const cuda::SortedPositions layout{s.N};
        const int32_t* positions = sorted.data() + layout.positions();
        int32_t next = 0, last_token = -1, last_position = -1, rows = 0;
        for (int32_t p = 0; p < sorted[0]; p++) {
            const int32_t* piece = sorted.data() + layout.pieces() + 4 * p;
            REQUIRE(piece[0] == next);
            REQUIRE(piece[1] > piece[0]);
            REQUIRE(piece[1] - piece[0] <= cuda::kPositionsPerPiece);
            REQUIRE(piece[2] >= last_token);
            if (piece[2] > last_token) last_position = -1;
            for (int32_t i = piece[0]; i < piece[1]; i++) {
                REQUIRE(tokens[static_cast<size_t>(positions[i])] == piece[2]);
                REQUIRE(positions[i] > last_position);
                last_position = positions[i];
            }
            if (piece[3] >= 0) REQUIRE(piece[3] == rows++);
            next = piece[1];
            last_token = piece[2];
        }
        CHECK(next == s.N);
        CHECK(rows <= layout.max_partial_rows());
        CHECK(sorted[1] <= layout.max_runs());
        int32_t rows_of_runs = 0;
        for (int32_t r = 0; r < sorted[1]; r++) {
            const int32_t* run = sorted.data() + layout.runs() + 4 * r;
            CHECK(run[1] == rows_of_runs);
            CHECK(run[2] > run[1] + 1);
            rows_of_runs = run[2];
        }
        CHECK(rows_of_runs == rows);
    }
}

TEST_CASE_TEMPLATE("encoder_backward adds each position's gradient to its token and its place", X, float, bf16) {
    struct Shape {
        int64_t B, T, C, V, offset;
    };
    for (const Shape& s :
         {Shape{3, 5, 5, 257, 0}, Shape{1, 3, 1, 3, 0}, Shape{5, 101, 64, 3, 0}, Shape{3, 33, 17, 1000, 0},
          Shape{3, 11, 64, 257, 1}, Shape{1, 67, 257, 1, 0}, Shape{2, 5, 1600, 3, 0}}) {
        CAPTURE(s.C);
        CAPTURE(s.V);
        const int64_t N = s.B * s.T;
        const std::vector<int32_t> tokens = made_up_tokens(N, s.V);
        std::vector<int32_t> sorted(static_cast<size_t>(cuda::sorted_positions_size(N)));
        cuda::sort_positions(sorted.data(), tokens.data(), N, s.V);
        const DeviceArray<int32_t> device_sorted(sorted);
        const Operand<X> dout = random_operand<X>(N * s.C, 1, s.offset);
        const Floats dwte = normal_values(s.V * s.C, 2), dwpe = normal_values(s.T * s.C, 3);
        Floats expected_wte = dwte, expected_wpe = dwpe;
        operations().encoder_backward(expected_wte.data(), expected_wpe.data(), dout.reference.data(), tokens.data(),
                                      s.B, s.T, s.C);
        const Outputs got = in_any_order([&] {
            const DeviceArray<float> wte(dwte, s.offset), wpe(dwpe, s.offset);
            const DeviceArray<float> scratch(cuda::encoder_backward_scratch(N, s.C));
            cuda::encoder_backward(wte.data(), wpe.data(), scratch.data(), dout.data(), device_sorted.data(), s.B, s.T,
                                   s.C, nullptr);
            return Outputs{wte.host(), wpe.host()};
        });
        CHECK(worst_error(got[0], expected_wte, kFloatError) <= 1);
        CHECK(worst_error(got[1], expected_wpe, kFloatError) <= 1);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Norms

// Operands of a norm site and the sites of its two branches.
template <class X>
struct NormProblem {
    int64_t B, T, C, N, offset;
    Operand<X> x, y;
    DeviceArray<float> gamma, beta;
    std::vector<int32_t> tokens;
    DeviceArray<int32_t> device_tokens;

    NormProblem(const RowShape& s)
        : B(s.B),
          T(s.T),
          C(s.C),
          N(s.B * s.T),
          offset(s.offset),
          x(normal_values(N * C, 1, 2, 0.5), offset),
          y(normal_values(N * C, 2), offset),
          gamma(normal_values(C, 3, 0.3, 1), offset),
          beta(normal_values(C, 4, 0.3), offset),
          tokens(made_up_tokens(N, 5)),
          device_tokens(tokens) {}
    Divisor divisor(const Site& site) const { return cuda::divisor_of(site, device_tokens.data(), kEndOfText, T); }

    // The norm of `values` as the CPU computes it.
    Floats normed(const Floats& values, const Site& site, Floats& mean, Floats& sigma) const {
        const Floats beta_of = beta.host();
        mean.resize(static_cast<size_t>(N));
        sigma.resize(static_cast<size_t>(N));
        operations().moments_forward(mean.data(), sigma.data(), values.data(), 1e-5, site.centred, N, C);
        Floats out(values.size());
        const Floats divisor = reference_divisors(site, sigma, tokens, B, T);
        operations().norm_forward(out.data(), values.data(), mean.data(), divisor.data(), gamma.host().data(),
                                  site.centred ? beta_of.data() : nullptr, N, C);
        return out;
    }
};

TEST_CASE_TEMPLATE("residual_norm_forward adds, measures and norms for one or two branches", X, float, bf16) {
    const Site layer_norm, fake = removed_site(1.7), precursor = removed_site(0.9, true);
    for (const RowShape& s : kRowShapes) {
        CAPTURE(s.C);
        CAPTURE(s.offset);
        const NormProblem<X> p(s);
        const Floats from_x = floats(rounded<X>(p.x.reference));
        Floats added(from_x.size());
        operations().residual_forward(added.data(), p.x.reference.data(), p.y.reference.data(), p.N * p.C);
        for (const auto& [with_y, rms] : {std::pair(true, false), {false, false}, {true, true}, {false, true}}) {
            Site site_a = with_y ? layer_norm : precursor, site_b = fake;
            site_a.centred = site_b.centred = !rms;  // RMSNorm, which has no beta
            const bool adds = with_y, has_beta = !rms;
            std::vector<X> sum, a, b;
            const Outputs got = in_any_order([&] {
                const DeviceArray<X> out_sum(p.N * p.C, s.offset), out_a(p.N * p.C, s.offset),
                    out_b(p.N * p.C, s.offset);
                const DeviceArray<float> mean(p.N), sigma(p.N);
                cuda::residual_norm_forward(adds ? out_sum.data() : nullptr, out_a.data(), out_b.data(), mean.data(),
                                            sigma.data(), p.x.data(), adds ? p.y.data() : nullptr, p.gamma.data(),
                                            has_beta ? p.beta.data() : nullptr, p.divisor(site_a), p.divisor(site_b),
                                            1e-5f, p.N, p.C, nullptr);
                sum = adds ? out_sum.host() : rounded<X>(from_x);
                a = out_a.host();
                b = out_b.host();
                return Outputs{floats(sum), floats(a), floats(b), mean.host(), sigma.host()};
            });
            if (with_y) CHECK(worst_rounded_error(sum, added, kFloatError) <= 1);
            Floats mean, sigma;
            const Floats expected_a = p.normed(got[0], site_a, mean, sigma),
                         expected_b = p.normed(got[0], site_b, mean, sigma);
            CHECK(worst_error(got[3], mean, kFloatError) <= 1);
            CHECK(worst_error(got[4], sigma, kFloatError, 0) <= 1);
            // A row of one channel has sigma = sqrt(eps), which magnifies the rounding of the mean.
            const double allowed = p.C == 1 && !rms ? 1e-3 : kFloatError;
            CHECK(worst_rounded_error(a, expected_a, allowed, 3) <= 1);
            CHECK(worst_rounded_error(b, expected_b, allowed, 3) <= 1);
        }
    }
}

TEST_CASE_TEMPLATE("residual_norm_forward may put the sum in the place of an addend, and norm_forward remakes its bits",
                   X, float, bf16) {
    for (const RowShape& s : {RowShape{3, 7, 64, 0}, RowShape{1, 3, 17, 0}, RowShape{1, 3, 2056, 0}}) {
        const NormProblem<X> p(s);
        const Site layer_norm, fake = removed_site(1.7);
        const DeviceArray<X> apart(p.N * p.C), in_place(p.x.device.host()), normed(p.N * p.C), again(p.N * p.C),
            normed_b(p.N * p.C), again_b(p.N * p.C);
        const DeviceArray<float> mean(p.N), sigma(p.N);
        const auto run = [&](X* sum, const X* x, X* out, X* out_b) {
            cuda::residual_norm_forward(sum, out, out_b, mean.data(), sigma.data(), x, p.y.data(), p.gamma.data(),
                                        p.beta.data(), p.divisor(layer_norm), p.divisor(fake), 1e-5f, p.N, p.C,
                                        nullptr);
        };
        run(apart.data(), p.x.data(), again.data(), nullptr);
        run(in_place.data(), in_place.data(), normed.data(), normed_b.data());
        CHECK(floats(in_place.host()) == floats(apart.host()));
        CHECK(floats(normed.host()) == floats(again.host()));
        cuda::norm_forward(again.data(), again_b.data(), in_place.data(), mean.data(), sigma.data(), p.gamma.data(),
                           p.beta.data(), p.divisor(layer_norm), p.divisor(fake), p.N, p.C, nullptr);
        CHECK(floats(normed.host()) == floats(again.host()));
        CHECK(floats(normed_b.host()) == floats(again_b.host()));
    }
}

TEST_CASE_TEMPLATE("residual_norm_forward without a norm adds and measures, to the same bits", X, float, bf16) {
    for (const RowShape& s : kRowShapes) {
        CAPTURE(s.C);
        CAPTURE(s.offset);
        const NormProblem<X> p(s);
        const auto run = [&](bool with_norm, const X* y) {
            return in_any_order([&] {
                const DeviceArray<X> sum(rounded<X>(Floats(static_cast<size_t>(p.N * p.C), 3.0f)), s.offset),
                    normed(p.N * p.C, s.offset);
                const DeviceArray<float> mean(p.N), sigma(p.N);
                cuda::residual_norm_forward(y == nullptr ? nullptr : sum.data(), with_norm ? normed.data() : nullptr,
                                            static_cast<X*>(nullptr), mean.data(), sigma.data(), p.x.data(), y,
                                            with_norm ? p.gamma.data() : nullptr, with_norm ? p.beta.data() : nullptr,
                                            p.divisor(Site()), p.divisor(Site()), 1e-5f, p.N, p.C, nullptr);
                return Outputs{floats(sum.host()), mean.host(), sigma.host()};
            });
        };
        CHECK(run(false, p.y.data()) == run(true, p.y.data()));
        CHECK(run(false, nullptr) == run(true, nullptr));
        const DeviceArray<X> sum(p.N * p.C, s.offset);  // and without measuring
        cuda::residual_norm_forward(sum.data(), static_cast<X*>(nullptr), static_cast<X*>(nullptr), nullptr, nullptr,
                                    p.x.data(), p.y.data(), nullptr, nullptr, {}, {}, 0, p.N, p.C, nullptr);
        CHECK(floats(sum.host()) == run(true, p.y.data())[0]);
    }
}

// What norm_backward is tried with: the site of each branch (null: no second one), the auxiliary loss, overwriting.
struct BackwardCase {
    const char* name;
    const Site* a;
    const Site* b;
    bool with_aux, overwrite, with_bias;
};

template <class X>
static void check_norm_backward(const RowShape& s, const BackwardCase& k) {
    CAPTURE(s.C);
    CAPTURE(s.offset);
    CAPTURE(k.name);
    const NormProblem<X> p(s);
    const Operand<X> dout_a = random_operand<X>(p.N * p.C, 11, s.offset),
                     dout_b = random_operand<X>(p.N * p.C, 12, s.offset);
    const Operand<X> before = random_operand<X>(p.N * p.C, 13, s.offset);
    const Floats dgamma = normal_values(p.C, 14), dbeta = normal_values(p.C, 15), dbias = normal_values(p.C, 16);

    const bool has_beta = k.a->centred;
    Floats mean, sigma;
    p.normed(p.x.reference, *k.a, mean, sigma);
    Floats expected = k.overwrite ? Floats(before.reference.size(), 0.0f) : before.reference;
    Floats expected_gamma = dgamma, expected_beta = dbeta;
    const auto reference = [&](const Site* site, const Operand<X>& dout) {
        if (site == nullptr) return;
        const Floats divisor = reference_divisors(*site, sigma, p.tokens, p.B, p.T), gamma = p.gamma.host();
        operations().norm_backward(expected.data(), expected_gamma.data(), has_beta ? expected_beta.data() : nullptr,
                                   dout.reference.data(), p.x.reference.data(), gamma.data(), mean.data(), sigma.data(),
                                   divisor.data(), *site, p.N, p.C);
    };
    reference(k.a, dout_a);
    reference(k.b, dout_b);
    const AuxSettings settings = {0.7, false, false, 3};
    const double scale = 0.25;
    if (k.with_aux)
        operations().aux_loss_backward(
            expected.data(),
            operations().aux_loss_forward(sigma.data(), p.tokens.data(), kEndOfText, settings, p.B, p.T),
            p.x.reference.data(), mean.data(), sigma.data(), scale, p.B, p.T, p.C);

    const DeviceArray<float> device_mean(mean), device_sigma(sigma);
    std::vector<X> got_dx;
    const Outputs got = in_any_order([&] {
        const DeviceArray<X> dx(rounded<X>(before.reference), s.offset);
        const DeviceArray<float> gamma(dgamma), beta(dbeta), bias(dbias),
            scratch(cuda::norm_backward_scratch(p.N, p.C));
        const DeviceArray<cuda::AuxTerm> aux(1);
        cuda::aux_loss(aux.data(), device_sigma.data(), p.device_tokens.data(), kEndOfText, settings, scale, p.B, p.T,
                       nullptr);
        cuda::norm_backward(dx.data(), k.overwrite, gamma.data(), has_beta ? beta.data() : nullptr,
                            k.with_bias ? bias.data() : nullptr, scratch.data(), dout_a.data(),
                            k.b == nullptr ? nullptr : dout_b.data(), p.x.data(), p.gamma.data(), device_mean.data(),
                            device_sigma.data(), p.divisor(*k.a), p.divisor(k.b == nullptr ? *k.a : *k.b),
                            k.with_aux ? aux.data() : nullptr, p.N, p.C, nullptr);
        got_dx = dx.host();
        return Outputs{floats(got_dx), gamma.host(), beta.host(), bias.host()};
    });
    Floats expected_bias = dbias;  // of what was written, so that the stream's rounding is in both
    if (k.with_bias)
        for (size_t i = 0; i < got[0].size(); i++) expected_bias[i % expected_bias.size()] += got[0][i];
    // Where sigma is sqrt(eps) or close, dx and dgamma are differences of numbers 1 / sigma as large.
    const double terms = 1 + 1 / *std::min_element(sigma.begin(), sigma.end());
    CHECK(worst_rounded_error(got_dx, expected, kFloatError, terms) <= 1);
    CHECK(worst_error(got[1], expected_gamma, kFloatError, terms * static_cast<double>(p.N)) <= 1);
    CHECK(worst_error(got[2], expected_beta, kFloatError, 1) <= 1);
    CHECK(worst_error(got[3], expected_bias, kFloatError, terms * static_cast<double>(p.N)) <= 1);
}

TEST_CASE_TEMPLATE("norm_backward is LayerNorm's or FakeLN's, of both branches, and the auxiliary loss's", X, float,
                   bf16) {
    Site half_way = removed_site(1.3, true);
    half_way.a = 0.4;
    Site tapering = half_way;
    tapering.tapers = true;
    const Site layer_norm, fake = removed_site(1.7), other = removed_site(0.6), precursor = removed_site(0.9, true);
    Site rms, fake_rms = fake;
    rms.centred = fake_rms.centred = false;
    const BackwardCase cases[] = {
        {"LayerNorm", &layer_norm, nullptr, false, false, true},
        {"FakeLN", &fake, nullptr, false, false, false},
        {"FakeLN with the precursor's exceptions, overwriting", &precursor, nullptr, false, true, true},
        {"FakeLN and LayerNorm", &fake, &layer_norm, false, false, true},
        {"two FakeLNs with the precursor's exceptions", &other, &precursor, false, false, true},
        {"half-way and FakeLN", &half_way, &fake, false, false, false},
        {"TaperNorm's way and half-way", &tapering, &half_way, false, false, true},
        {"TaperNorm's way", &tapering, nullptr, false, false, true},
        {"half-way with auxiliary loss", &half_way, nullptr, true, false, true},
        {"LayerNorm with auxiliary loss, overwriting", &layer_norm, nullptr, true, true, true},
        {"FakeLN with auxiliary loss", &fake, nullptr, true, false, true},
        {"RMSNorm", &rms, nullptr, false, false, false},
        {"frozen RMSNorm", &fake_rms, nullptr, false, false, true},
        {"RMSNorm and frozen RMSNorm with auxiliary loss", &rms, &fake_rms, true, true, true}};
    for (const RowShape& s : kRowShapes) {
        if (s.C == 1) continue;  // the gradient is 0 but for rounding
        for (const BackwardCase& k : cases) check_norm_backward<X>(s, k);
    }
    // Several rounds per block, the last one not full.
    for (const size_t k : {2, 3, 8}) check_norm_backward<X>({5, 431, 8, 0}, cases[k]);
    check_norm_backward<X>({5, 431, 3, 0}, cases[5]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Statistics

TEST_CASE("sigma_statistics adds sums per array, position 0 apart") {
    struct Shape {
        int64_t B, T;
    };
    for (const Shape& s : {Shape{1, 1}, Shape{3, 1}, Shape{1, 7}, Shape{5, 17}, Shape{7, 333}}) {
        const int64_t S = 3, N = s.B * s.T, stride = N + 5;
        const Floats sigma = normal_values(S * stride, 1, 0.5, 3);
        const DeviceArray<float> device_sigma(sigma);
        const Outputs got = in_any_order([&] {
            const DeviceArray<double> sums(std::vector<double>(2 * S, 10.0));
            cuda::sigma_statistics(sums.data(), device_sigma.data(), stride, S, s.B, s.T, nullptr);
            const std::vector<double> values = sums.host();
            for (int64_t i = 0; i < S; i++) {
                SigmaSum expected;
                expected.add(sigma.data() + i * stride, s.B, s.T);
                CHECK(values[static_cast<size_t>(2 * i)] == doctest::Approx(10 + expected.at_0).epsilon(1e-12));
                CHECK(values[static_cast<size_t>(2 * i + 1)] ==
                      doctest::Approx(10 + expected.elsewhere).epsilon(1e-12));
            }
            return Outputs{Floats(values.begin(), values.end())};
        });
    }
}

TEST_CASE("aux_loss gives the CPU's loss, and none where nothing counts") {
    struct Shape {
        int64_t B, T;
        int32_t vocabulary;
        AuxSettings settings;
    };
    for (const Shape& s :
         {Shape{3, 7, 5, {0.1}}, Shape{5, 333, 5, {0.03}}, Shape{5, 333, 5, {0.03, false, true}},
          Shape{5, 333, 5, {0.03, false, true, 7}}, Shape{3, 7, 5, {0.0}}, Shape{4, 1, 5, {0.1, false, true}}}) {
        const int64_t N = s.B * s.T;
        const Floats sigma = normal_values(N, 1, 0.5, 3);
        const std::vector<int32_t> tokens = made_up_tokens(N, s.vocabulary);
        const AuxLoss expected =
            operations().aux_loss_forward(sigma.data(), tokens.data(), kEndOfText, s.settings, s.B, s.T);
        const DeviceArray<float> device_sigma(sigma);
        const DeviceArray<int32_t> device_tokens(tokens);
        in_any_order([&] {
            const DeviceArray<cuda::AuxTerm> out(1);
            cuda::aux_loss(out.data(), device_sigma.data(), device_tokens.data(), kEndOfText, s.settings, 0.125, s.B,
                           s.T, nullptr);
            const cuda::AuxTerm got = out.host()[0];
            CHECK((got.active != 0) == expected.active);
            CHECK(got.loss == doctest::Approx(expected.loss).epsilon(1e-12));
            if (expected.active)
                CHECK(got.factor == doctest::Approx(0.25 * expected.weight / static_cast<double>(N)).epsilon(1e-6));
            if (expected.active) CHECK(got.sigma_hat == doctest::Approx(expected.sigma_hat).epsilon(1e-7));
            if (expected.active) CHECK(got.target_at_0 == doctest::Approx(expected.target_at_0).epsilon(1e-7));
            return Outputs{{got.sigma_hat, got.target_at_0, got.factor, static_cast<float>(got.loss)}};
        });
    }
}

TEST_CASE_TEMPLATE("aux_loss_backward is the CPU's, and nothing where there is no such loss", X, float, bf16) {
    for (const RowShape& s : kRowShapes) {
        if (s.C == 1) continue;  // sigma is sqrt(eps), and the gradient rounding alone
        CAPTURE(s.C);
        const NormProblem<X> p(s);
        const Operand<X> before = random_operand<X>(p.N * p.C, 13, s.offset);
        Floats mean, sigma;
        p.normed(p.x.reference, Site(), mean, sigma);
        const DeviceArray<float> device_mean(mean), device_sigma(sigma);
        for (const double weight : {0.7, 0.0}) {
            const AuxSettings settings = {weight, false, false, 3};
            Floats expected = before.reference;
            operations().aux_loss_backward(
                expected.data(),
                operations().aux_loss_forward(sigma.data(), p.tokens.data(), kEndOfText, settings, p.B, p.T),
                p.x.reference.data(), mean.data(), sigma.data(), 0.25, p.B, p.T, p.C);
            std::vector<X> got;
            in_any_order([&] {
                const DeviceArray<X> dx(rounded<X>(before.reference), s.offset);
                const DeviceArray<cuda::AuxTerm> aux(1);
                cuda::aux_loss(aux.data(), device_sigma.data(), p.device_tokens.data(), kEndOfText, settings, 0.25, p.B,
                               p.T, nullptr);
                cuda::aux_loss_backward(dx.data(), p.x.data(), device_mean.data(), device_sigma.data(), aux.data(), p.N,
                                        p.C, nullptr);
                got = dx.host();
                return Outputs{floats(got)};
            });
            CHECK(worst_rounded_error(got, expected, kFloatError) <= 1);
            CHECK((floats(got) == before.reference) == (weight == 0));
        }
    }
}

TEST_CASE("add_sum adds a sum in double precision") {
    const Floats values = normal_values(4321, 1, 1e4);
    double expected = 5;
    for (const float value : values) expected += static_cast<double>(value);
    const DeviceArray<float> device_values(values);
    in_any_order([&] {
        const DeviceArray<double> sum(std::vector<double>{5});
        cuda::add_sum(sum.data(), device_values.data(), 4321, nullptr);
        CHECK(sum.host()[0] == doctest::Approx(expected).epsilon(1e-12));
        return Outputs{{static_cast<float>(sum.host()[0])}};
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Element by element

static const int64_t kLengths[] = {1, 3, 8, 17, 1000, 4099, 8192};

TEST_CASE_TEMPLATE("gelu_forward is the CPU's, and gelu_backward_bias its gradient, in place too", X, float, bf16) {
    for (const int64_t n : kLengths)
        for (const int64_t offset : {0, 3}) {
            CAPTURE(n);
            CAPTURE(offset);
            const Operand<X> x(normal_values(n, 1, 3), offset), dout = random_operand<X>(n, 2, offset);
            Floats expected(static_cast<size_t>(n)), expected_dx(static_cast<size_t>(n));
            operations().gelu_forward(expected.data(), x.reference.data(), n);
            operations().gelu_backward(expected_dx.data(), dout.reference.data(), x.reference.data(), n);
            std::vector<X> got, got_dx;
            in_any_order([&] {
                const DeviceArray<X> out(n, offset), dx(dout.device.host(), offset);
                const DeviceArray<float> sum(Floats(1, 0.0f)), scratch(cuda::column_sums_scratch(n, 1));
                cuda::gelu_forward(out.data(), x.data(), n, nullptr);
                cuda::gelu_backward_bias(dx.data(), sum.data(), scratch.data(), dx.data(), x.data(), n, 1, nullptr);
                got = out.host();
                got_dx = dx.host();
                return Outputs{floats(got), floats(got_dx)};
            });
            CHECK(worst_rounded_error(got, expected, kFloatError, 0.1) <= 1);
            CHECK(worst_rounded_error(got_dx, expected_dx, kFloatError, 0.5) <= 1);
        }
}

TEST_CASE("gelu keeps its relative accuracy far below zero, is the identity far above, and passes NaN on") {
    const Floats x = {-40, -12, -6, -3, -1e-20f, 0, 1e-20f, 6, 40, 1e10f, -1e10f, NAN, 1};
    const DeviceArray<float> device_x(x), out(static_cast<int64_t>(x.size()));
    cuda::gelu_forward(out.data(), device_x.data(), static_cast<int64_t>(x.size()), nullptr);
    const Floats got = out.host();
    for (size_t i = 0; i < x.size(); i++) {
        const double z = x[i], u = std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z),
                     expected = z / (1 + std::exp(-2 * u));
        CAPTURE(z);
        if (std::isnan(z)) {
            CHECK(std::isnan(got[i]));
        } else {
            CHECK(got[i] == doctest::Approx(std::fabs(expected) < 1e-37 ? 0 : expected).epsilon(1e-5));
        }
    }
}

TEST_CASE_TEMPLATE("convert rounds to nearest, there and back", X, float, bf16) {
    for (const int64_t n : kLengths)
        for (const int64_t offset : {0, 1}) {
            CAPTURE(n);
            const Floats master = normal_values(n, 3);
            const DeviceArray<float> device_master(master, offset);
            const Outputs got = in_any_order([&] {
                const DeviceArray<X> narrow(n, offset);
                const DeviceArray<float> wide(n, offset);
                cuda::convert(narrow.data(), device_master.data(), n, nullptr);
                cuda::convert(wide.data(), narrow.data(), n, nullptr);
                return Outputs{wide.host()};
            });
            CHECK(got[0] == floats(rounded<X>(master)));
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// What other families do

TEST_CASE_TEMPLATE("rotary turns queries and keys in place as the reference does, and back", X, float, bf16) {
    struct Case {
        Heads heads;
        int64_t R, offset;
    };
    // Rows, heads and halves that fit no vector; all that do; Pythia's quarter of a head of 64; and not on 16 bytes.
    for (const Case& k : {Case{{2, 1, 3}, 2, 0},
                          {{6, 2, 10}, 6, 0},
                          {{4, 2, 16}, 16, 0},
                          {{2, 2, 64}, 16, 0},
                          {{4, 2, 16}, 16, 1},
                          {{3, 3, 40}, 40, 0}}) {
        CAPTURE(k.heads.HS);
        CAPTURE(k.R);
        const int64_t B = 3, T = 5;
        ModelConfig c;
        c.n_ctx = T + 2;
        c.rotary = k.R;
        const Floats turns = cuda::floats(rotary_turns(c));
        const DeviceArray<float> device_turns(turns);
        Operand<X> qkv = random_operand<X>(B * T * k.heads.row(), 1, k.offset);
        for (const int way : {1, -1}) {
            Floats expected = qkv.reference;
            (way > 0 ? operations().rotary_forward : operations().rotary_backward)(
                expected.data(), turns.data() + 2 * k.R, B, T, k.heads, k.R);
            std::vector<X> turned;
            in_any_order([&] {
                const DeviceArray<X> in_place(rounded<X>(qkv.reference), k.offset);
                cuda::rotary(in_place.data(), device_turns.data() + 2 * k.R, B, T, k.heads, k.R,
                             static_cast<float>(way), nullptr);
                turned = in_place.host();
                return Outputs{floats(turned)};
            });
            CHECK(worst_rounded_error(turned, expected, kFloatError, 1) <= 1);
        }
    }
}

TEST_CASE_TEMPLATE("gated SiLU and GELU by the error function, forward and backward", X, float, bf16) {
    struct Case {
        int64_t N, H, offset;
    };
    for (const Case& k : {Case{1, 1, 0}, {7, 5, 0}, {33, 64, 0}, {3, 1536, 0}, {9, 64, 1}}) {
        CAPTURE(k.H);
        CAPTURE(k.offset);
        const int64_t n = k.N * k.H;
        const Operand<X> inp(normal_values(2 * n, 1, 3), k.offset), dout = random_operand<X>(n, 2, k.offset);
        std::vector<X> out, dinp, erf, derf;
        const Outputs got = in_any_order([&] {
            const DeviceArray<X> gated(n, k.offset), dgated(2 * n, k.offset), gelu(n, k.offset), dgelu(n, k.offset);
            const DeviceArray<float> dbias(Floats(static_cast<size_t>(k.H))),
                scratch(cuda::column_sums_scratch(k.N, k.H));
            cuda::gated_silu_forward(gated.data(), inp.data(), k.N, k.H, nullptr);
            cuda::gated_silu_backward(dgated.data(), dout.data(), inp.data(), k.N, k.H, nullptr);
            cuda::gelu_erf_forward(gelu.data(), inp.data(), n, nullptr);
            cuda::gelu_erf_backward_bias(dgelu.data(), dbias.data(), scratch.data(), dout.data(), inp.data(), k.N, k.H,
                                         nullptr);
            out = gated.host(), dinp = dgated.host(), erf = gelu.host(), derf = dgelu.host();
            return Outputs{floats(out), floats(dinp), floats(erf), floats(derf), dbias.host()};
        });
        Floats expected(static_cast<size_t>(n)), expected_dinp(static_cast<size_t>(2 * n));
        operations().gated_silu_forward(expected.data(), inp.reference.data(), k.N, k.H);
        CHECK(worst_rounded_error(out, expected, kFloatError, 1) <= 1);
        operations().gated_silu_backward(expected_dinp.data(), dout.reference.data(), inp.reference.data(), k.N, k.H);
        CHECK(worst_rounded_error(dinp, expected_dinp, kFloatError, 1) <= 1);
        operations().gelu_erf_forward(expected.data(), inp.reference.data(), n);
        CHECK(worst_rounded_error(erf, expected, kFloatError, 1) <= 1);
        operations().gelu_erf_backward(expected.data(), dout.reference.data(), inp.reference.data(), n);
        CHECK(worst_rounded_error(derf, expected, kFloatError, 1) <= 1);
        std::vector<double> sums(static_cast<size_t>(k.H));
        for (size_t i = 0; i < derf.size(); i++) sums[i % sums.size()] += static_cast<double>(to_float(derf[i]));
        CHECK(worst_error(got[4], sums, kFloatError, 10) <= 1);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Columns

struct ColumnShape {
    int64_t N, M, stride, first;  // columns `first` to first + M of rows of `stride`
};
static const ColumnShape kColumnShapes[] = {{1, 1, 1, 0},     {7, 5, 15, 10},    {33, 64, 192, 128},
                                            {9, 257, 257, 0}, {2600, 8, 24, 16}, {3, 1600, 1600, 0}};

TEST_CASE_TEMPLATE("column_sums and add_bias work on some columns of longer rows", X, float, bf16) {
    for (const ColumnShape& s : kColumnShapes) {
        CAPTURE(s.N);
        CAPTURE(s.M);
        const Operand<X> values = random_operand<X>(s.N * s.stride, 1), bias = random_operand<X>(s.M, 2);
        const Floats dbias = normal_values(s.M, 3);
        Floats expected = values.reference;
        std::vector<double> sums(dbias.begin(), dbias.end());
        for (int64_t n = 0; n < s.N; n++)
            for (int64_t m = 0; m < s.M; m++) {
                float& value = expected[static_cast<size_t>(n * s.stride + s.first + m)];
                sums[static_cast<size_t>(m)] += static_cast<double>(value);
                value = to_float(from_float<X>(value + bias.reference[static_cast<size_t>(m)]));
            }
        const Outputs got = in_any_order([&] {
            const DeviceArray<X> out(values.device.host());
            const DeviceArray<float> sum(dbias), scratch(cuda::column_sums_scratch(s.N, s.M));
            cuda::column_sums(sum.data(), scratch.data(), out.data() + s.first, s.N, s.M, s.stride, nullptr);
            cuda::add_bias(out.data() + s.first, bias.data(), s.N, s.M, s.stride, nullptr);
            return Outputs{floats(out.host()), sum.host()};
        });
        CHECK(got[0] == expected);
        CHECK(worst_error(got[1], sums, kFloatError, 10) <= 1);
    }
}

TEST_CASE_TEMPLATE("bias_gelu_forward is bias and GELU in one; gelu_backward_bias GELU's gradient and its column sums",
                   X, float, bf16) {
    for (const ColumnShape& s : kColumnShapes) {
        CAPTURE(s.M);
        const int64_t n = s.N * s.M;
        const Operand<X> product = random_operand<X>(n, 1), bias = random_operand<X>(s.M, 2),
                         dout = random_operand<X>(n, 3);
        std::vector<X> got_dx;
        const Outputs got = in_any_order([&] {
            const DeviceArray<X> fc(product.device.host()), hidden(n), dx(dout.device.host());
            const DeviceArray<float> dbias(Floats(static_cast<size_t>(s.M), 1.0f)),
                scratch(cuda::column_sums_scratch(s.N, s.M));
            cuda::bias_gelu_forward(hidden.data(), fc.data(), bias.data(), s.N, s.M, nullptr);
            cuda::gelu_backward_bias(dx.data(), dbias.data(), scratch.data(), dx.data(), fc.data(), s.N, s.M, nullptr);
            got_dx = dx.host();
            return Outputs{floats(fc.host()), floats(hidden.host()), floats(got_dx), dbias.host()};
        });
        const DeviceArray<X> fc(product.device.host()), hidden(n), dx(got_dx);
        const DeviceArray<float> dbias(Floats(static_cast<size_t>(s.M), 1.0f)),
            scratch(cuda::column_sums_scratch(s.N, s.M));
        cuda::add_bias(fc.data(), bias.data(), s.N, s.M, s.M, nullptr);
        cuda::gelu_forward(hidden.data(), fc.data(), n, nullptr);
        cuda::column_sums(dbias.data(), scratch.data(), dx.data(), s.N, s.M, s.M, nullptr);
        CHECK(got == Outputs{floats(fc.host()), floats(hidden.host()), floats(dx.host()), dbias.host()});
        Floats expected_dx(static_cast<size_t>(n));
        operations().gelu_backward(expected_dx.data(), dout.reference.data(), floats(fc.host()).data(), n);
        CHECK(worst_rounded_error(got_dx, expected_dx, kFloatError, 0.5) <= 1);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Classifier

TEST_CASE_TEMPLATE("classifier is the CPU's softmax and cross-entropy, and clears the padding", X, float, bf16) {
    struct Shape {
        int64_t rows, V, Vp;
    };
    for (const Shape& s : {Shape{3, 1, 1}, Shape{5, 7, 7}, Shape{3, 257, 257}, Shape{3, 257, 264}, Shape{5, 1000, 1000},
                           Shape{1, 50257, 50304}, Shape{1, 60001, 60001}}) {
        CAPTURE(s.V);
        CAPTURE(s.Vp);
        Operand<X> logits(normal_values(s.rows * s.Vp, 1, 4));
        const std::vector<int32_t> targets = made_up_tokens(s.rows, s.V);
        const DeviceArray<int32_t> device_targets(targets);
        Floats expected(static_cast<size_t>(s.rows * s.V)), losses(static_cast<size_t>(s.rows));
        for (int64_t r = 0; r < s.rows; r++)
            std::copy_n(logits.reference.data() + r * s.Vp, s.V, expected.data() + r * s.V);
        const double scale = 0.37;
        operations().softmax_cross_entropy(losses.data(), expected.data(), targets.data(), scale, true, s.rows, s.V);
        // The padding may hold anything.
        for (int64_t r = 0; r < s.rows; r++)
            for (int64_t v = s.V; v < s.Vp; v++)
                logits.reference[static_cast<size_t>(r * s.Vp + v)] = v % 2 ? 1e30f : NAN;
        Floats padded(static_cast<size_t>(s.rows * s.Vp), 0.0f);
        for (int64_t r = 0; r < s.rows; r++) std::copy_n(expected.data() + r * s.V, s.V, padded.data() + r * s.Vp);
        std::vector<X> gradient;
        const Outputs got = in_any_order([&] {
            logits.reset();
            const DeviceArray<float> only_losses(s.rows), with_gradient(s.rows);
            cuda::classifier(logits.data(), only_losses.data(), device_targets.data(), 0.0f, false, s.rows, s.V, s.Vp,
                             nullptr);
            cuda::classifier(logits.data(), with_gradient.data(), device_targets.data(), static_cast<float>(scale),
                             true, s.rows, s.V, s.Vp, nullptr);
            gradient = logits.device.host();
            CHECK(only_losses.host() == with_gradient.host());
            return Outputs{with_gradient.host(), floats(gradient)};
        });
        CHECK(worst_error(got[0], losses, kFloatError) <= 1);
        // The reference adds up long rows in single precision, four to sixteen sums beside each other.
        const double allowed = s.V > 10'000 ? 1e-4 : kFloatError;
        CHECK(worst_rounded_error(gradient, padded, allowed, 1e-3) <= 1);
    }
}

TEST_CASE("logits are made in chunks of one size, whole tiles of 128 rows, that cover every position") {
    CHECK(cuda::logits_rows<bf16>(16384, 50257) == 4096);
    CHECK(cuda::logits_rows<float>(16384, 50257) == 2432);  // the seventh has 1,792
    CHECK(cuda::logits_rows<bf16>(1000, 257) == 1000);
    CHECK(cuda::logits_rows<float>(1000, 1 << 24) == 128);
    CHECK(cuda::logits_rows<float>(5, 1 << 24) == 5);
}

TEST_CASE("classifier: extreme logits overflow nothing, and a NaN shows") {
    const int64_t V = 9;
    for (const float big : {1e4f, 1e38f}) {
        Floats z(V, -big);
        z[3] = big;
        const DeviceArray<float> logits(z), losses(1);
        const DeviceArray<int32_t> target(std::vector<int32_t>{3});
        cuda::classifier(logits.data(), losses.data(), target.data(), 1.0f, true, 1, V, V, nullptr);
        CHECK(losses.host()[0] == 0.0f);
        CHECK(logits.host() == Floats(V, 0.0f));
    }
    Floats z(V, 1.0f);
    z[8] = NAN;
    const DeviceArray<float> logits(z), losses(1);
    const DeviceArray<int32_t> target(std::vector<int32_t>{3});
    cuda::classifier(logits.data(), losses.data(), target.data(), 1.0f, true, 1, V, V, nullptr);
    CHECK(std::isnan(losses.host()[0]));
}

// ---------------------------------------------------------------------------------------------------------------------
// Distillation

TEST_CASE_TEMPLATE("distillation is the CPU's, and clears the padding", X, float, bf16) {
    struct Shape {
        int64_t rows, V, Vp;
    };
    for (const Shape& s :
         {Shape{5, 7, 7}, Shape{3, 257, 264}, Shape{5, 1000, 1000}, Shape{2, 5003, 5120}, Shape{1, 50257, 50304}}) {
        CAPTURE(s.V);
        Operand<X> logits(normal_values(s.rows * s.Vp, 1, 4)), original(normal_values(s.rows * s.Vp, 2, 3));
        const std::vector<int32_t> targets = made_up_tokens(s.rows, s.V);
        const DeviceArray<int32_t> device_targets(targets);
        const auto without_padding = [&](const Floats& padded) {
            Floats rows;
            for (int64_t r = 0; r < s.rows; r++)
                rows.insert(rows.end(), padded.begin() + r * s.Vp, padded.begin() + r * s.Vp + s.V);
            return rows;
        };
        for (const double share : {0.0, 0.4, 1.0}) {
            CAPTURE(share);
            const double scale = 0.37;
            Floats expected = without_padding(logits.reference), teachers = without_padding(original.reference);
            Floats losses(static_cast<size_t>(s.rows)), kls(losses.size());
            operations().softmax_distillation(losses.data(), kls.data(), expected.data(), teachers.data(),
                                              targets.data(), share, scale, s.rows, s.V);
            Operand<X> ours(logits.reference), theirs(original.reference);
            for (Operand<X>* each : {&ours, &theirs})  // the padding may hold anything
                for (int64_t r = 0; r < s.rows; r++)
                    for (int64_t v = s.V; v < s.Vp; v++)
                        each->reference[static_cast<size_t>(r * s.Vp + v)] = v % 2 ? 1e30f : NAN;
            theirs.reset();
            std::vector<X> gradient;
            const Outputs got = in_any_order([&] {
                ours.reset();
                const DeviceArray<float> alone(s.rows), kl_alone(s.rows), our_losses(s.rows), our_kls(s.rows);
                cuda::distillation(ours.data(), alone.data(), kl_alone.data(), theirs.data(), device_targets.data(),
                                   static_cast<float>(share), 0.0f, false, s.rows, s.V, s.Vp, nullptr);
                cuda::distillation(ours.data(), our_losses.data(), our_kls.data(), theirs.data(), device_targets.data(),
                                   static_cast<float>(share), static_cast<float>(scale), true, s.rows, s.V, s.Vp,
                                   nullptr);
                gradient = ours.device.host();
                CHECK(alone.host() == our_losses.host());
                CHECK(kl_alone.host() == our_kls.host());
                return Outputs{our_losses.host(), our_kls.host(), floats(gradient)};
            });
            CHECK(worst_error(got[0], losses, kFloatError) <= 1);
            CHECK(worst_error(got[1], kls, kFloatError) <= 1);
            Floats padded(static_cast<size_t>(s.rows * s.Vp), 0.0f);
            for (int64_t r = 0; r < s.rows; r++) std::copy_n(expected.data() + r * s.V, s.V, padded.data() + r * s.Vp);
            CHECK(worst_rounded_error(gradient, padded, kFloatError, 1e-3) <= 1);
        }
    }
}

TEST_CASE("distillation: extreme logits overflow nothing, and a NaN of either model shows") {
    const int64_t V = 9;
    const DeviceArray<int32_t> target(std::vector<int32_t>{3});
    const auto distilled = [&](const Floats& z, const Floats& o) {
        const DeviceArray<float> logits(z), original(o), losses(1), kls(1);
        cuda::distillation(logits.data(), losses.data(), kls.data(), original.data(), target.data(), 0.5f, 1.0f, true,
                           1, V, V, nullptr);
        return std::tuple(losses.host()[0], kls.host()[0], logits.host());
    };
    for (const float big : {1e4f, 1e30f}) {
        Floats z(V, -big);
        z[3] = big;
        CHECK(distilled(z, z) == std::tuple(0.0f, 0.0f, Floats(V, 0.0f)));
    }
    const Floats fine(V, 1.0f);
    Floats broken = fine;
    broken[8] = NAN;
    CHECK(std::isnan(std::get<0>(distilled(broken, fine))));
    CHECK(std::isnan(std::get<1>(distilled(broken, fine))));
    CHECK(std::isnan(std::get<1>(distilled(fine, broken))));
    CHECK(std::isnan(std::get<2>(distilled(fine, broken))[0]));
}

TEST_CASE_TEMPLATE("the likeliest token of two models is the same where the first of equals is", X, float, bf16) {
    const int64_t rows = 21, V = 77, Vp = 80;
    Floats a(static_cast<size_t>(rows * Vp), 9.0f), b = a;  // the padding is larger than any logit
    std::vector<uint8_t> expected;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t v = 0; v < V; v++) a[static_cast<size_t>(r * Vp + v)] = b[static_cast<size_t>(r * Vp + v)] = -1;
        const int64_t first = 3 * r % V, second = (first + 32) % V;
        a[static_cast<size_t>(r * Vp + first)] = a[static_cast<size_t>(r * Vp + second)] = 5;
        b[static_cast<size_t>(r * Vp + (r % 2 ? std::max(first, second) : std::min(first, second)))] = 7;
        expected.push_back(r % 2 ? 0 : 1);
    }
    const Operand<X> ours(a), theirs(b);
    const DeviceArray<uint8_t> same(rows);
    cuda::same_likeliest(same.data(), ours.data(), theirs.data(), rows, V, Vp, nullptr);
    CHECK(same.host() == expected);
}

TEST_CASE_TEMPLATE("is_likeliest is the CPU's where logits are equal, and sees no padding", X, float, bf16) {
    for (const int64_t V : {1, 31, 77, 200}) {
        const int64_t rows = 21, Vp = V + 3;
        Floats padded, z;
        std::vector<int32_t> targets;
        for (int64_t r = 0; r < rows; r++) {
            const int64_t first = 3 * r % V, second = (first + 32) % V;
            for (int64_t v = 0; v < V; v++) z.push_back(v == first || v == second ? 5.0f : -1.0f);
            padded.insert(padded.end(), z.end() - V, z.end());
            padded.insert(padded.end(), 3, 9.0f);
            targets.push_back(static_cast<int32_t>(r % 3 == 0 ? first : r % 3 == 1 ? second : (first + 1) % V));
        }
        std::vector<uint8_t> expected(static_cast<size_t>(rows));
        operations().is_likeliest(expected.data(), z.data(), targets.data(), rows, V);
        const Operand<X> logits(padded);
        const DeviceArray<int32_t> device_targets(targets);
        const DeviceArray<uint8_t> is(rows);
        cuda::is_likeliest(is.data(), logits.data(), device_targets.data(), rows, V, Vp, nullptr);
        CHECK(is.host() == expected);
    }
}

TEST_CASE_TEMPLATE("gather_rows takes any rows, as often as asked", X, float, bf16) {
    const std::vector<int32_t> rows = {4, 0, 4, 1, 4, 3, 0};
    const DeviceArray<int32_t> device_rows(rows);
    for (const int64_t C : {1, 33, 64}) {
        const Operand<X> from = random_operand<X>(5 * C, 1);
        const DeviceArray<X> out(static_cast<int64_t>(rows.size()) * C);
        cuda::gather_rows(out.data(), from.data(), device_rows.data(), static_cast<int64_t>(rows.size()), C, nullptr);
        Floats expected;
        for (const int32_t row : rows)
            expected.insert(expected.end(), from.reference.begin() + row * C, from.reference.begin() + (row + 1) * C);
        CHECK(floats(out.host()) == expected);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Optimiser

static cuda::GradientNorm norm_of(const DeviceArray<float>& values, double clip) {
    const DeviceArray<double> scratch(cuda::global_norm_scratch());
    const DeviceArray<cuda::GradientNorm> out(1);
    cuda::global_norm(out.data(), scratch.data(), values.data(), values.size(), clip, nullptr);
    return out.host()[0];
}

TEST_CASE("global_norm is the CPU's, clips above the limit only, and shows what is not finite") {
    for (const int64_t n : {1, 3, 1000, 4097, 70001})
        for (const int64_t offset : {0, 1}) {
            CAPTURE(n);
            const Floats values = normal_values(n, 1);
            const double expected = cuda::lab::reference_norm(values);
            const DeviceArray<float> device_values(values, offset);
            in_any_order([&] {
                const cuda::GradientNorm got = norm_of(device_values, expected / 2);
                CHECK(got.norm == doctest::Approx(expected).epsilon(1e-12));
                CHECK(got.clip_scale == doctest::Approx(0.5).epsilon(1e-6));
                CHECK(norm_of(device_values, expected * 2).clip_scale == 1.0f);
                return Outputs{{static_cast<float>(got.norm), got.clip_scale}};
            });
        }
    Floats values(1000, 1e30f);  // whose squares are no floats
    CHECK(norm_of(DeviceArray<float>(values), 1).norm == doctest::Approx(1e30 * std::sqrt(1000.0)));
    values[777] = INFINITY;
    CHECK(std::isinf(norm_of(DeviceArray<float>(values), 1).norm));
    values[778] = NAN;
    CHECK(std::isnan(norm_of(DeviceArray<float>(values), 1).norm));
}

TEST_CASE_TEMPLATE("adamw updates as the CPU does over several steps, zeroes gradients and keeps a copy", X, float,
                   bf16) {
    for (const int64_t offset : {0, 1}) {
        const std::unique_ptr<Engine> model = make_reference(shape_of(2, 1, 5, 37, 11, 20));
        model->prepare_training();
        model->prepare_optimiser();
        const int64_t n = model->parameters();
        const Floats weights = normal_values(n, 1);
        std::copy(weights.begin(), weights.end(), model->params.data());
        std::vector<cuda::TensorRange> ranges;
        for (const Tensor& t : model->tensors) ranges.push_back({t.offset, t.size, t.decay});
        const DeviceArray<cuda::TensorRange> device_ranges(ranges);
        const DeviceArray<float> master(weights, offset), m(Floats(static_cast<size_t>(n), 0.0f), offset),
            v(Floats(static_cast<size_t>(n), 0.0f), offset), grad(n, offset);
        const DeviceArray<X> copy(n, offset);
        AdamWStep update;
        update.lr = 1e-2;
        update.weight_decay = 0.1;
        update.gradient_scale = 0.5;
        const DeviceArray<cuda::GradientNorm> norm(
            std::vector<cuda::GradientNorm>{{2.0, static_cast<float>(update.gradient_scale)}});
        for (int64_t step = 1; step <= 3; step++) {
            const Floats gradient = normal_values(n, 10 + static_cast<uint64_t>(step));
            std::copy(gradient.begin(), gradient.end(), model->grads.data());
            grad.set(gradient);
            model->update(update);
            cuda::emulation_options().seed = static_cast<uint64_t>(step);
            cuda::adamw(master.data(), grad.data(), m.data(), v.data(), sizeof(X) == 2 ? copy.data() : nullptr,
                        norm.data(), device_ranges.data(), static_cast<int64_t>(ranges.size()), n,
                        cuda::adamw_constants(update, step), std::nullopt, nullptr);
            cuda::emulation_options().seed = 0;
        }
        const auto of = [&](const Buffer& b) { return Floats(b.data(), b.data() + n); };
        CHECK(worst_error(master.host(), of(model->params), 1e-6) <= 1);
        CHECK(worst_error(m.host(), of(model->m), 1e-6) <= 1);
        CHECK(worst_error(v.host(), of(model->v), 1e-6) <= 1);
        CHECK(grad.host() == Floats(static_cast<size_t>(n), 0.0f));
        if (sizeof(X) == 2) CHECK(floats(copy.host()) == floats(rounded<X>(master.host())));
    }
}

TEST_CASE("adamw's stochastic rounding is unbiased, and depends on key and element alone") {
    const int64_t n = 40'003;
    const float weight = 1.0f + 1.0f / 512;  // a quarter of the way from 1 to the next bf16
    const DeviceArray<cuda::TensorRange> range(std::vector<cuda::TensorRange>{{0, n, false}});
    const DeviceArray<cuda::GradientNorm> norm(std::vector<cuda::GradientNorm>{{0.0, 1.0f}});
    const auto copy_of = [&](uint64_t key) {
        const Floats zeros(static_cast<size_t>(n), 0.0f);
        const DeviceArray<float> master(Floats(static_cast<size_t>(n), weight)), grad(zeros), m(zeros), v(zeros);
        const DeviceArray<bf16> copy(n);
        AdamWStep update;
        update.lr = 1e-3;
        update.weight_decay = 0;
        cuda::adamw(master.data(), grad.data(), m.data(), v.data(), copy.data(), norm.data(), range.data(), 1, n,
                    cuda::adamw_constants(update, 1), key, nullptr);
        CHECK(master.host()[5] == weight);
        return floats(copy.host());
    };
    const Floats first = in_any_order([&] { return Outputs{copy_of(cuda::stochastic_key(1, 1))}; })[0];
    double sum = 0;
    for (const float value : first) {
        REQUIRE((value == 1.0f || value == 1.0078125f));
        sum += static_cast<double>(value);
    }
    // Four standard errors of the mean of n draws, each one bf16 step high with probability 1/4.
    CHECK(sum / static_cast<double>(n) == doctest::Approx(weight).epsilon(4 * 0.0078125 * std::sqrt(0.1875 / 40'003)));
    CHECK(first != copy_of(cuda::stochastic_key(1, 2)));
    CHECK(first != copy_of(cuda::stochastic_key(2, 1)));
}
