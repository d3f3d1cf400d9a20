// `train_gpt2_lnfree_cuda check`: the engine beside the reference, on the GPU at hand.
//
// What `check` does: every operation on random operands, what analyses ask for, then whole training steps through every
// stage of a removal, here and by the reference, which this program carries. The reference gets the very values that the
// device gets, rounded to X.
//
// An error is what largest_error (compare.h) makes of two results. What it may be follows from the arithmetic:
//
//     float, an element or a short sum     1e-5: some tens of roundings of 2^-24, and exp by a GPU's fast instruction
//     float, products and softmax          5e-5: sums of thousands of terms, in another order
//     bf16                                 1/256 besides, for every rounding to 8 bits of significand on the way
//
// Whole steps: fp32 1e-5 for the loss (float rounding does not grow in a few steps), 1e-4 of its norm for the gradient
// and the weights of each tensor, since Adam makes as much of a small gradient as of a large one. bf16 rounds some
// dozen times between tokens and gradient, by 1/512 on average, and gradients are sums of larger terms that cancel: 1 %
// for loss and weights, 10 % for the tensor whose gradient cancels most. Single values that analyses see are allowed what
// that is. A wrong formula misses these by far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../../data/console.h"
#include "../../data/random.h"
#include "../cpu/operations.h"
#include "../engine.h"
#include "../method.h"
#include "compare.h"
#include "cuda_engine.h"
#include "kernels.h"
#include "operands.h"
#include "removal_steps.h"

namespace lnfree {
namespace cuda {

constexpr double kElementTolerance = 1e-5, kSumTolerance = 5e-5;

// Collects comparisons, and is the table of them.
class Check {
  public:
    // Of what comes next: "float" or "bf16", for the table.
    void set_type(const char* type) { type_ = type; }

    void compare(const std::string& what, const Floats& ours, const Floats& reference, double tolerance) {
        add(what, largest_error(ours, reference), tolerance);
    }
    void add(const std::string& what, double error, double tolerance) {
        const bool is_ok = error <= tolerance;  // a NaN is not
        add_row(what, format_error(error), format_error(tolerance), is_ok ? "ok" : "FAILED");
    }
    // Runs comparisons that belong together. One that can not be made is a failure, and the rest goes on.
    void part(const std::string& name, const std::function<void()>& run) {
        try {
            run();
        } catch (const std::exception& e) {
            add_row(name + ": " + e.what(), "", "", "FAILED");
        }
    }
    Report report() const { return report_; }

  private:
    const char* type_ = "";
    Report report_ = {{"what", "type", "error", "tolerance", "result"}, {}, true};

    void add_row(const std::string& what, const std::string& error, const std::string& tolerance, const char* result) {
        report_.rows.push_back({what, type_, error, tolerance, result});
        if (std::string(result) != "ok") report_.passed = false;
    }
};

// Sizes of the operands: GPT-2's, but in emulation small ones. Neither positions nor vocabulary fill their tiles.
struct CheckSizes {
    int64_t B = 3, T = 203, C = 768, NH = 12, H = 3072, V = 50257, rows = 61;

    int64_t N() const { return B * T; }
    int64_t Vp() const { return padded_vocabulary(V); }
};
inline CheckSizes check_sizes() {
    if (kEmulated) return {3, 37, 128, 2, 512, 517, 5};
    return {};
}

constexpr int32_t kCheckEndOfText = 2;

// Small numbers far more often than large ones, so that rows of embeddings are met again.
inline std::vector<int32_t> check_tokens(int64_t n, int64_t V, uint64_t seed) {
    SplitMix64 random(seed);
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    for (int32_t& token : tokens)
        token = static_cast<int32_t>(random.below(random.below(2) == 0 ? static_cast<uint64_t>(V) : 5));
    return tokens;
}

template <class X>
void check_encoder(Check& check, const CheckSizes& s) {
    const std::vector<int32_t> tokens = check_tokens(s.N(), s.V, 1);
    const DeviceArray<int32_t> device_tokens(tokens);
    const Operand<X> wte = random_operand<X>(s.V * s.C, 2), wpe = random_operand<X>(s.T * s.C, 3);
    const Operand<X> out(Floats(static_cast<size_t>(s.N() * s.C)));
    Floats expected(out.reference.size());
    operations().encoder_forward(expected.data(), tokens.data(), wte.reference.data(), wpe.reference.data(), s.B, s.T,
                                 s.C);
    encoder_forward(out.data(), device_tokens.data(), wte.data(), wpe.data(), s.B, s.T, s.C, nullptr);
    check.compare("encoder, forward", out.ours(), expected, tolerance<X>(kElementTolerance, 1));

    std::vector<int32_t> sorted(static_cast<size_t>(sorted_positions_size(s.N())));
    sort_positions(sorted.data(), tokens.data(), s.N(), s.V);
    const DeviceArray<int32_t> device_sorted(sorted);
    const DeviceArray<float> scratch(encoder_backward_scratch(s.N(), s.C));
    const Operand<X> dout = random_operand<X>(s.N() * s.C, 4);
    Operand<float> dwte = random_operand<float>(s.V * s.C, 5), dwpe = random_operand<float>(s.T * s.C, 6);
    operations().encoder_backward(dwte.reference.data(), dwpe.reference.data(), dout.reference.data(), tokens.data(),
                                  s.B, s.T, s.C);
    encoder_backward(dwte.data(), dwpe.data(), scratch.data(), dout.data(), device_sorted.data(), s.B, s.T, s.C,
                     nullptr);
    check.compare("encoder, d wte", dwte.ours(), dwte.reference, kElementTolerance);
    check.compare("encoder, d wpe", dwpe.ours(), dwpe.reference, kElementTolerance);
}

// What a norm is checked with: the sites of its branches (b: only if `two`), and what backward meets besides.
struct NormCase {
    const char* name;
    Site a, b;
    bool two = false, with_aux = false;
};
inline std::vector<NormCase> norm_cases() {
    Site layer_norm, fake, half_way, tapering, at_0, everywhere, rms, fake_rms;
    fake.a = at_0.a = everywhere.a = 1;
    half_way.a = 0.6;
    fake.sigma_bar = half_way.sigma_bar = 1.7;
    rms.centred = false;
    fake_rms = fake;
    fake_rms.centred = false;
    tapering = half_way;
    tapering.tapers = true;
    at_0.sigma_bar = everywhere.sigma_bar = 0.9;
    at_0.sigma_bar_0 = everywhere.sigma_bar_0 = 2.7;
    at_0.own_position0 = everywhere.own_position0 = everywhere.own_end_of_text = true;
    return {{"LayerNorm", layer_norm, layer_norm},
            {"FakeLN", fake, fake},
            {"FakeLN and LayerNorm", fake, layer_norm, true},
            {"half-way and LayerNorm", half_way, layer_norm, true},
            {"TaperNorm's way and FakeLN", tapering, fake, true},
            {"precursor's two FakeLNs", at_0, everywhere, true},
            {"LayerNorm with aux loss", layer_norm, layer_norm, false, true},
            {"FakeLN with aux loss", fake, fake, false, true},
            {"RMSNorm with aux loss", rms, rms, false, true},
            {"frozen RMSNorm and RMSNorm", fake_rms, rms, true}};
}

// Operands that all norms share.
template <class X>
struct NormOperands {
    CheckSizes s;
    std::vector<int32_t> tokens;
    DeviceArray<int32_t> device_tokens;
    Operand<float> gamma, beta;

    explicit NormOperands(const CheckSizes& sizes)
        : s(sizes),
          tokens(check_tokens(s.N(), s.V, 1)),
          device_tokens(tokens),
          gamma(normal_values(s.C, 2, 0.3, 1)),
          beta(normal_values(s.C, 3, 0.3)) {}

    Divisor divisor(const Site& site) const { return divisor_of(site, device_tokens.data(), kCheckEndOfText, s.T); }
    Floats reference_divisor(const Site& site, const Floats& sigma) const {
        if (site.has_layer_norm()) return sigma;
        Floats divisor(sigma.size());
        operations().norm_divisors(divisor.data(), site, sigma.data(), tokens.data(), kCheckEndOfText, s.B, s.T);
        return divisor;
    }
    Floats normed(const Floats& x, const Floats& mean, const Floats& sigma, const Site& site) const {
        Floats out(x.size());
        operations().norm_forward(out.data(), x.data(), mean.data(), reference_divisor(site, sigma).data(),
                                  gamma.reference.data(), beta.reference.data(), s.N(), s.C);
        return out;
    }
};

template <class X>
void check_norm_forward(Check& check, const NormOperands<X>& o, const NormCase& k) {
    const int64_t N = o.s.N(), C = o.s.C;
    const Operand<X> x = random_operand<X>(N * C, 11, 2, 0.5), y = random_operand<X>(N * C, 12);
    const Operand<X> sum(Floats(x.reference.size())), a(sum.reference), b(sum.reference);
    const Operand<float> mean(Floats(static_cast<size_t>(N))), sigma(mean.reference);
    residual_norm_forward(sum.data(), a.data(), k.two ? b.data() : nullptr, mean.data(), sigma.data(), x.data(),
                          y.data(), o.gamma.data(), o.beta.data(), o.divisor(k.a), o.divisor(k.b), 1e-5f, N, C,
                          nullptr);
    const std::string name = std::string("residual + norm, ") + k.name;
    Floats expected(x.reference.size());
    operations().residual_forward(expected.data(), x.reference.data(), y.reference.data(), N * C);
    check.compare(name + ": sum", sum.ours(), expected, tolerance<X>(kElementTolerance, 1));

    const Floats rounded_sum = sum.ours();  // which is what mean, sigma and norms are of
    Floats expected_mean(mean.reference.size()), expected_sigma(mean.reference.size());
    operations().moments_forward(expected_mean.data(), expected_sigma.data(), rounded_sum.data(), 1e-5, k.a.centred, N,
                                 C);
    check.compare(name + ": mean", mean.ours(), expected_mean, kElementTolerance);
    check.compare(name + ": sigma", sigma.ours(), expected_sigma, kElementTolerance);
    const Floats expected_a = o.normed(rounded_sum, expected_mean, expected_sigma, k.a);
    const Floats expected_b = o.normed(rounded_sum, expected_mean, expected_sigma, k.b);
    const double allowed = tolerance<X>(kElementTolerance, 1);
    check.compare(name, a.ours(), expected_a, allowed);
    if (k.two) check.compare(name + ": second branch", b.ours(), expected_b, allowed);

    const Operand<X> again_a(sum.reference), again_b(sum.reference);
    norm_forward(again_a.data(), k.two ? again_b.data() : nullptr, sum.data(), mean.data(), sigma.data(),
                 o.gamma.data(), o.beta.data(), o.divisor(k.a), o.divisor(k.b), N, C, nullptr);
    check.compare(name + ": remade", again_a.ours(), expected_a, allowed);
    if (k.two) check.compare(name + ": second branch remade", again_b.ours(), expected_b, allowed);
}

// sums (C) plus those over the rows of x (N,C)
inline Floats plus_column_sums(Floats sums, const Floats& x) {
    for (size_t i = 0; i < x.size(); i++) sums[i % sums.size()] += x[i];
    return sums;
}

template <class X>
void check_norm_backward(Check& check, const NormOperands<X>& o, const NormCase& k) {
    const int64_t N = o.s.N(), C = o.s.C;
    constexpr AuxSettings settings = {30, false, false, 2};  // strong, so that the auxiliary loss is seen in the sum
    constexpr double scale = 0.5;
    const Operand<X> x = random_operand<X>(N * C, 21, 2, 0.5);
    const Operand<X> dout_a = random_operand<X>(N * C, 22), dout_b = random_operand<X>(N * C, 23);
    Operand<X> dresidual = random_operand<X>(N * C, 24);
    Operand<float> dgamma = random_operand<float>(C, 25), dbeta = random_operand<float>(C, 26);
    const Floats dbias_before = random_operand<float>(C, 27).reference;
    const Operand<float> dbias(dbias_before);
    Floats mean(static_cast<size_t>(N)), sigma(mean.size());
    operations().moments_forward(mean.data(), sigma.data(), x.reference.data(), 1e-5, k.a.centred, N, C);
    const Operand<float> device_mean(mean), device_sigma(sigma);
    const DeviceArray<float> scratch(norm_backward_scratch(N, C));
    const DeviceArray<AuxTerm> aux(1);
    aux_loss(aux.data(), device_sigma.data(), o.device_tokens.data(), kCheckEndOfText, settings, scale, o.s.B, o.s.T,
             nullptr);
    norm_backward(dresidual.data(), k.with_aux, dgamma.data(), dbeta.data(), dbias.data(), scratch.data(),
                  dout_a.data(), k.two ? dout_b.data() : nullptr, x.data(), o.gamma.data(), device_mean.data(),
                  device_sigma.data(), o.divisor(k.a), o.divisor(k.two ? k.b : k.a), k.with_aux ? aux.data() : nullptr,
                  N, C, nullptr);

    if (k.with_aux) std::fill(dresidual.reference.begin(), dresidual.reference.end(), 0.0f);  // it overwrites
    const auto add_branch = [&](const Site& site, const Operand<X>& dout) {
        operations().norm_backward(dresidual.reference.data(), dgamma.reference.data(), dbeta.reference.data(),
                                   dout.reference.data(), x.reference.data(), o.gamma.reference.data(), mean.data(),
                                   sigma.data(), o.reference_divisor(site, sigma).data(), site, N, C);
    };
    add_branch(k.a, dout_a);
    if (k.two) add_branch(k.b, dout_b);
    if (k.with_aux)
        operations().aux_loss_backward(
            dresidual.reference.data(),
            operations().aux_loss_forward(sigma.data(), o.tokens.data(), kCheckEndOfText, settings, o.s.B, o.s.T),
            x.reference.data(), mean.data(), sigma.data(), scale, o.s.B, o.s.T, C);
    const std::string name = std::string("norm backward, ") + k.name;
    check.compare(name, dresidual.ours(), dresidual.reference, tolerance<X>(kElementTolerance, 1));
    check.compare(name + ": d gamma", dgamma.ours(), dgamma.reference, kSumTolerance);
    check.compare(name + ": d beta", dbeta.ours(), dbeta.reference, kSumTolerance);
    check.compare(name + ": d bias", dbias.ours(), plus_column_sums(dbias_before, dresidual.ours()), kSumTolerance);
}

inline void check_statistics(Check& check, const CheckSizes& s) {
    const int64_t N = s.N();
    constexpr double lambda = 0.1;
    const std::vector<int32_t> tokens = check_tokens(N, s.V, 1);
    const DeviceArray<int32_t> device_tokens(tokens);
    const Operand<float> sigma = random_operand<float>(3 * N, 2, 0.2, 2);
    const DeviceArray<double> sums(std::vector<double>(6, 0.0));
    sigma_statistics(sums.data(), sigma.data(), N, 3, s.B, s.T, nullptr);
    Floats expected;
    for (int64_t i = 0; i < 3; i++) {
        SigmaSum sum;
        sum.add(sigma.reference.data() + i * N, s.B, s.T);
        expected.push_back(static_cast<float>(sum.at_0));
        expected.push_back(static_cast<float>(sum.elsewhere));
    }
    const std::vector<double> got = sums.host();
    check.compare("sigma statistics", Floats(got.begin(), got.end()), expected, kElementTolerance);

    const DeviceArray<AuxTerm> term(1);
    aux_loss(term.data(), sigma.data(), device_tokens.data(), kCheckEndOfText, {lambda}, 1, s.B, s.T, nullptr);
    const AuxLoss aux =
        operations().aux_loss_forward(sigma.reference.data(), tokens.data(), kCheckEndOfText, {lambda}, s.B, s.T);
    const AuxTerm ours = term.host()[0];
    check.compare("auxiliary loss: loss", {static_cast<float>(ours.loss)}, {static_cast<float>(aux.loss)},
                  kElementTolerance);
    check.compare("auxiliary loss: sigma hat", {ours.sigma_hat}, {static_cast<float>(aux.sigma_hat)},
                  kElementTolerance);

    const DeviceArray<double> total(std::vector<double>(1, 0.0));
    add_sum(total.data(), sigma.data(), 3 * N, nullptr);
    double expected_total = 0;
    for (const float value : sigma.reference) expected_total += value;
    check.compare("sum of losses", {static_cast<float>(total.host()[0])}, {static_cast<float>(expected_total)},
                  kElementTolerance);
}

// Sums of the columns of x (N,M) are added to `sums`.
inline void add_column_sums(Floats& sums, const Floats& x) {
    for (size_t i = 0; i < x.size(); i++) sums[i % sums.size()] += x[i];
}

template <class X>
void check_elementwise(Check& check, const CheckSizes& s) {
    const int64_t N = s.N(), H = s.H, n = N * H;
    const Operand<X> x = random_operand<X>(n, 1, 2), dout = random_operand<X>(n, 2), bias = random_operand<X>(H, 3);
    const Operand<X> out(Floats(static_cast<size_t>(n)));
    Floats expected(out.reference.size());
    gelu_forward(out.data(), x.data(), n, nullptr);
    operations().gelu_forward(expected.data(), x.reference.data(), n);
    check.compare("GELU, forward", out.ours(), expected, tolerance<X>(kElementTolerance, 1));

    const DeviceArray<float> scratch(column_sums_scratch(N, H));
    Operand<float> sums = random_operand<float>(H, 4), gelu_sums = random_operand<float>(H, 5);
    column_sums(sums.data(), scratch.data(), dout.data(), N, H, H, nullptr);
    add_column_sums(sums.reference, dout.reference);
    check.compare("column sums", sums.ours(), sums.reference, kSumTolerance);
    gelu_backward_bias(out.data(), gelu_sums.data(), scratch.data(), dout.data(), x.data(), N, H, nullptr);
    operations().gelu_backward(expected.data(), dout.reference.data(), x.reference.data(), n);
    check.compare("GELU, backward, with sums", out.ours(), expected, tolerance<X>(kElementTolerance, 1));
    add_column_sums(gelu_sums.reference, out.ours());  // what was summed is what was rounded
    check.compare("GELU, backward, with sums: d bias", gelu_sums.ours(), gelu_sums.reference, kSumTolerance);

    const Operand<X> fc(x.reference);
    bias_gelu_forward(out.data(), fc.data(), bias.data(), N, H, nullptr);
    Floats with_bias = x.reference;
    for (size_t i = 0; i < with_bias.size(); i++) with_bias[i] += bias.reference[i % static_cast<size_t>(H)];
    check.compare("bias, with GELU", fc.ours(), with_bias, tolerance<X>(kElementTolerance, 1));
    operations().gelu_forward(expected.data(), fc.ours().data(), n);
    check.compare("GELU, with bias", out.ours(), expected, tolerance<X>(kElementTolerance, 1));
    const Operand<X> added(x.reference);
    add_bias(added.data(), bias.data(), N, H, H, nullptr);
    check.compare("bias", added.ours(), with_bias, tolerance<X>(kElementTolerance, 1));
}

// A product on the device and by the reference.
template <class In, class Out>
void check_product(Check& check, MatrixProducts& products, const std::string& name, Transpose ta, Transpose tb,
                   int64_t M, int64_t N, int64_t K, int64_t ldb, int64_t ldc, bool accumulate) {
    const bool a_turned = ta == Transpose::Yes, b_turned = tb == Transpose::Yes;
    const int64_t lda = a_turned ? M : K;
    const Operand<In> A = random_operand<In>(M * K, 1), B = random_operand<In>((b_turned ? N : K) * ldb, 2, 0.1);
    Operand<Out> C = random_operand<Out>(M * ldc, 3);
    products.multiply(ta, tb, M, N, K, A.data(), lda, B.data(), ldb, C.data(), ldc, accumulate, Epilogue<Out>(),
                      nullptr);
    operations().matmul(ta, tb, M, N, K, A.reference.data(), lda, B.reference.data(), ldb, C.reference.data(), ldc,
                        accumulate, nullptr);
    check.compare("product, " + name, C.ours(), C.reference, tolerance<Out>(kSumTolerance, accumulate ? 2 : 1));
}

// A linear layer with what happens to its product on the way out. Where cuBLASLt declines, our kernels are added, and
// round once more.
template <class X>
void check_epilogues(Check& check, MatrixProducts& products, const CheckSizes& s) {
    const int64_t N = s.N(), K = s.C, M = s.H;
    const Operand<X> inp = random_operand<X>(N * K, 1), weight = random_operand<X>(K * M, 2, 0.05);
    const Operand<X> bias = random_operand<X>(M, 3);
    Floats expected(static_cast<size_t>(N * M)), activated(expected.size());
    operations().matmul_forward(expected.data(), inp.reference.data(), weight.reference.data(), bias.reference.data(),
                                N, K, M, M);
    const Operand<X> out(activated), fc(activated);
    const auto product = [&](X* to, const Epilogue<X>& epilogue) {
        return products.multiply(Transpose::No, Transpose::No, N, M, K, inp.data(), K, weight.data(), M, to, M, false,
                                 epilogue, nullptr);
    };
    const auto by = [](bool fused) { return fused ? "" : " (by our own kernel)"; };
    Epilogue<X> epilogue;
    epilogue.bias = bias.data();
    bool fused = product(out.data(), epilogue);
    if (!fused) product(out.data(), Epilogue<X>());
    if (!fused) add_bias(out.data(), bias.data(), N, M, M, nullptr);
    check.compare(std::string("product with bias") + by(fused), out.ours(), expected, tolerance<X>(kSumTolerance, 2));

    epilogue.before_gelu = fc.data();
    fused = product(out.data(), epilogue);
    if (!fused) product(fc.data(), Epilogue<X>());
    if (!fused) bias_gelu_forward(out.data(), fc.data(), bias.data(), N, M, nullptr);
    check.compare(std::string("product with bias and GELU: before") + by(fused), fc.ours(), expected,
                  tolerance<X>(kSumTolerance, 2));
    operations().gelu_forward(activated.data(), expected.data(), N * M);
    check.compare(std::string("product with bias and GELU") + by(fused), out.ours(), activated,
                  tolerance<X>(kSumTolerance, 3));

    // dout (N,K) weight^T, of a weight (M,K), times gelu'(x)
    const Operand<X> dout = random_operand<X>(N * K, 4), turned = random_operand<X>(M * K, 5, 0.05);
    const Operand<X> x = random_operand<X>(N * M, 6);
    Epilogue<X> through_gelu;
    through_gelu.through_gelu = x.data();
    const auto dinput = [&](const Epilogue<X>& e) {
        return products.multiply(Transpose::No, Transpose::Yes, N, M, K, dout.data(), K, turned.data(), K, out.data(),
                                 M, false, e, nullptr);
    };
    fused = dinput(through_gelu);
    if (!fused) dinput(Epilogue<X>());
    const DeviceArray<float> sums(std::vector<float>(static_cast<size_t>(M))), scratch(column_sums_scratch(N, M));
    if (!fused) gelu_backward_bias(out.data(), sums.data(), scratch.data(), out.data(), x.data(), N, M, nullptr);
    operations().matmul(Transpose::No, Transpose::Yes, N, M, K, dout.reference.data(), K, turned.reference.data(), K,
                        expected.data(), M, false, nullptr);
    operations().gelu_backward(expected.data(), expected.data(), x.reference.data(), N * M);
    check.compare(std::string("product through GELU's gradient") + by(fused), out.ours(), expected,
                  tolerance<X>(kSumTolerance, 2));
}

// Every orientation and every distance of rows that the model uses.
template <class X>
void check_products(Check& check, const CheckSizes& s) {
    const Transpose yes = Transpose::Yes, no = Transpose::No;
    const int64_t N = s.N(), C = s.C;
    MatrixProducts products(false);
    check_product<X, X>(check, products, "forward", no, no, N, 3 * C, C, 3 * C, 3 * C, false);
    check_product<X, X>(check, products, "queries and keys alone", no, no, N, 2 * C, C, 3 * C, 3 * C, false);
    check_product<X, X>(check, products, "d input", no, yes, N, C, 3 * C, 3 * C, C, false);
    check_product<X, float>(check, products, "d weight", yes, no, C, 3 * C, N, 3 * C, 3 * C, true);
    check_product<X, X>(check, products, "logits", no, yes, s.rows, s.V, C, C, s.Vp(), false);
    check_product<X, float>(check, products, "d unembedding", yes, no, s.V, C, s.rows, C, C, true);
    check_epilogues<X>(check, products, s);
}

// Every choice that makes a difference: float has the plain kernels only.
template <class X>
std::vector<AttentionKernels<X>> all_attention_kernels() {
    std::vector<AttentionKernels<X>> all = {attention_kernels<X>("plain")};
    if (std::is_same_v<X, bf16>) all.push_back(attention_kernels<X>("flash"));
    if (std::is_same_v<X, bf16> && kHasCudnn) all.push_back(attention_kernels<X>("cudnn"));
    return all;
}

template <class X>
void check_attention(Check& check, const CheckSizes& s, const AttentionKernels<X>& kernels, bool shared_keys = false) {
    const Heads heads{s.NH, shared_keys ? 1 : s.NH, s.C / s.NH};
    const int64_t NC = s.N() * s.C, NQ = s.N() * heads.row();
    const Operand<X> qkv = random_operand<X>(NQ, 1), dout = random_operand<X>(NC, 2);
    const Operand<X> out(Floats(static_cast<size_t>(NC))), dqkv(Floats(static_cast<size_t>(NQ)));
    const Operand<float> lse(Floats(static_cast<size_t>(s.N() * s.NH)));
    const DeviceArray<float> delta(s.N() * s.NH);
    Floats expected(out.reference.size()), expected_lse(lse.reference.size());
    const std::string name = std::string("attention, ") + (shared_keys ? "shared keys, " : "") + kernels.name + ", ";
    kernels.forward(out.data(), lse.data(), qkv.data(), s.B, s.T, heads, nullptr);
    operations().attention_forward(expected.data(), expected_lse.data(), qkv.reference.data(), s.B, s.T, heads, 0, s.T);
    // Rounded: the weights, then the output. The first positions see few keys and have larger results than the others:
    // every head's vector is measured by itself.
    const auto head = static_cast<size_t>(s.C / s.NH);
    check.add(name + "forward", largest_error(out.ours(), expected, head), tolerance<X>(kSumTolerance, 2));
    check.compare(name + "log of sums", lse.ours(), expected_lse, kSumTolerance);

    const Floats our_out = out.ours(), our_lse = lse.ours();  // what backward reads
    Floats expected_dqkv(dqkv.reference.size());
    kernels.backward(dqkv.data(), delta.data(), dout.data(), qkv.data(), out.data(), lse.data(), s.B, s.T, heads,
                     nullptr);
    operations().attention_backward(expected_dqkv.data(), dout.reference.data(), qkv.reference.data(), our_out.data(),
                                    our_lse.data(), s.B, s.T, heads);
    // Rounded: the weights or their gradients, terms that cancel, then the result.
    check.add(name + "backward", largest_error(dqkv.ours(), expected_dqkv, head), tolerance<X>(kSumTolerance, 3));
}

// What GPT-2 does not: rotary positions, GELU by the error function, gated SiLU.
template <class X>
void check_other_families(Check& check, const CheckSizes& s) {
    const double allowed = tolerance<X>(kElementTolerance, 1);
    ModelConfig c;
    c.n_ctx = s.T;
    c.rotary = s.C / s.NH / 16 * 8;
    const Floats turns = rotary_turns(c);
    const DeviceArray<float> device_turns(turns);
    const Heads heads{s.NH, 1, s.C / s.NH};
    Operand<X> qkv = random_operand<X>(s.N() * heads.row(), 1);
    rotary(qkv.data(), device_turns.data(), s.B, s.T, heads, c.rotary, 1, nullptr);
    operations().rotary_forward(qkv.reference.data(), turns.data(), s.B, s.T, heads, c.rotary);
    check.compare("rotary positions", qkv.ours(), qkv.reference, allowed);

    const int64_t n = s.N() * s.H;
    const Operand<X> inp = random_operand<X>(2 * n, 2), dout = random_operand<X>(n, 3);
    const Operand<X> out(Floats(static_cast<size_t>(n))), dinp(inp.reference);
    Floats expected(static_cast<size_t>(n)), expected_dinp(inp.reference.size());
    gelu_erf_forward(out.data(), inp.data(), n, nullptr);
    operations().gelu_erf_forward(expected.data(), inp.reference.data(), n);
    check.compare("GELU by the error function", out.ours(), expected, allowed);
    const DeviceArray<float> scratch(column_sums_scratch(s.N(), s.H));
    gelu_erf_backward_bias(out.data(), nullptr, scratch.data(), dout.data(), inp.data(), s.N(), s.H, nullptr);
    operations().gelu_erf_backward(expected.data(), dout.reference.data(), inp.reference.data(), n);
    check.compare("GELU by the error function, backward", out.ours(), expected, allowed);
    gated_silu_forward(out.data(), inp.data(), s.N(), s.H, nullptr);
    operations().gated_silu_forward(expected.data(), inp.reference.data(), s.N(), s.H);
    check.compare("gated SiLU", out.ours(), expected, allowed);
    gated_silu_backward(dinp.data(), dout.data(), inp.data(), s.N(), s.H, nullptr);
    operations().gated_silu_backward(expected_dinp.data(), dout.reference.data(), inp.reference.data(), s.N(), s.H);
    check.compare("gated SiLU, backward", dinp.ours(), expected_dinp, allowed);
}

template <class X>
void check_classifier(Check& check, const CheckSizes& s) {
    constexpr float scale = 1e-3f;
    const std::vector<int32_t> targets = check_tokens(s.rows, s.V, 1);
    const DeviceArray<int32_t> device_targets(targets);
    const Operand<X> logits = random_operand<X>(s.rows * s.Vp(), 2, 3), untouched(logits.reference);
    const Operand<float> losses(Floats(static_cast<size_t>(s.rows))), losses_alone(losses.reference);
    classifier(logits.data(), losses.data(), device_targets.data(), scale, true, s.rows, s.V, s.Vp(), nullptr);
    classifier(untouched.data(), losses_alone.data(), device_targets.data(), scale, false, s.rows, s.V, s.Vp(),
               nullptr);

    Floats z, expected_losses(losses.reference.size());
    for (int64_t r = 0; r < s.rows; r++)
        z.insert(z.end(), logits.reference.begin() + r * s.Vp(), logits.reference.begin() + r * s.Vp() + s.V);
    operations().softmax_cross_entropy(expected_losses.data(), z.data(), targets.data(), scale, true, s.rows, s.V);
    check.compare("classifier, losses", losses.ours(), expected_losses, kSumTolerance);
    check.compare("classifier, losses alone", losses_alone.ours(), expected_losses, kSumTolerance);
    // The gradient at the target is thousands of times as large as elsewhere: compared apart.
    const Floats ours = logits.ours();
    Floats at_target, expected_at_target, elsewhere, expected_elsewhere;
    for (int64_t r = 0; r < s.rows; r++)
        for (int64_t v = 0; v < s.V; v++) {
            const bool is_target = v == targets[static_cast<size_t>(r)];
            (is_target ? at_target : elsewhere).push_back(ours[static_cast<size_t>(r * s.Vp() + v)]);
            (is_target ? expected_at_target : expected_elsewhere).push_back(z[static_cast<size_t>(r * s.V + v)]);
        }
    check.compare("classifier, d logits at targets", at_target, expected_at_target, tolerance<X>(kSumTolerance, 1));
    check.compare("classifier, d logits elsewhere", elsewhere, expected_elsewhere, tolerance<X>(kSumTolerance, 1));
}

template <class X>
void check_distillation(Check& check, const CheckSizes& s) {
    constexpr float scale = 1e-3f, share = 0.7f;
    const std::vector<int32_t> targets = check_tokens(s.rows, s.V, 1);
    const DeviceArray<int32_t> device_targets(targets);
    const Operand<X> logits = random_operand<X>(s.rows * s.Vp(), 2, 3),
                     teachers = random_operand<X>(s.rows * s.Vp(), 4, 3);
    const Operand<float> losses(Floats(static_cast<size_t>(s.rows))), kls(losses.reference);
    const DeviceArray<uint8_t> same(s.rows);
    same_likeliest(same.data(), logits.data(), teachers.data(), s.rows, s.V, s.Vp(), nullptr);
    distillation(logits.data(), losses.data(), kls.data(), teachers.data(), device_targets.data(), share, scale, true,
                 s.rows, s.V, s.Vp(), nullptr);

    Floats z, o, expected_losses(losses.reference.size()), expected_kls(losses.reference.size());
    for (int64_t r = 0; r < s.rows; r++)
        for (const auto& [all, rows] : {std::pair{&logits.reference, &z}, {&teachers.reference, &o}})
            rows->insert(rows->end(), all->begin() + r * s.Vp(), all->begin() + r * s.Vp() + s.V);
    std::vector<uint8_t> expected_same(expected_kls.size());
    operations().same_likeliest(expected_same.data(), z.data(), o.data(), s.rows, s.V);
    operations().softmax_distillation(expected_losses.data(), expected_kls.data(), z.data(), o.data(), targets.data(),
                                      share, scale, s.rows, s.V);
    check.compare("distillation, losses", losses.ours(), expected_losses, kSumTolerance);
    check.compare("distillation, divergences", kls.ours(), expected_kls, kSumTolerance);
    check.add("distillation, likeliest tokens", same.host() == expected_same ? 0 : 1, 0.5);
    // As above, without the targets.
    const Floats padded = logits.ours();
    Floats ours, expected;
    for (int64_t r = 0; r < s.rows; r++)
        for (int64_t v = 0; v < s.V; v++) {
            if (v == targets[static_cast<size_t>(r)]) continue;
            ours.push_back(padded[static_cast<size_t>(r * s.Vp() + v)]);
            expected.push_back(z[static_cast<size_t>(r * s.V + v)]);
        }
    check.compare("distillation, d logits", ours, expected, tolerance<X>(kSumTolerance, 1));
}

// A model of one layer, whose tensors decay and do not; `width` decides how long they are.
inline ModelConfig one_layer_config(int64_t width) {
    ModelConfig c;
    c.L = 1;
    c.NH = 1;
    c.C = width;
    c.V = 101;
    c.n_ctx = 7;
    c.n_inner = 4 * width;
    c.end_of_text = kCheckEndOfText;
    return c;
}

// X: of the copy that the products read.
template <class X>
void check_optimiser(Check& check) {
    const std::unique_ptr<Engine> model = make_reference(one_layer_config(kEmulated ? 24 : 768));
    const int64_t n = model->parameters();
    model->prepare_training();
    model->prepare_optimiser();
    const Operand<float> weights = random_operand<float>(n, 1), gradients = random_operand<float>(n, 2, 0.01);
    const Operand<float> m(Floats(static_cast<size_t>(n))), v(m.reference);
    const Operand<X> copy(m.reference);
    std::copy(weights.reference.begin(), weights.reference.end(), model->params.data());
    std::copy(gradients.reference.begin(), gradients.reference.end(), model->grads.data());
    std::vector<TensorRange> ranges;
    for (const Tensor& t : model->tensors) ranges.push_back({t.offset, t.size, t.decay});
    const DeviceArray<TensorRange> device_ranges(ranges);
    const DeviceArray<GradientNorm> norm(1);
    const DeviceArray<double> scratch(global_norm_scratch());

    constexpr double clip = 1;
    global_norm(norm.data(), scratch.data(), gradients.data(), n, clip, nullptr);
    const GradientNorm ours = norm.host()[0];
    const double expected_norm = model->gradient_norm();
    check.compare("gradient norm", {static_cast<float>(ours.norm)}, {static_cast<float>(expected_norm)},
                  kElementTolerance);
    check.compare("clipping", {ours.clip_scale}, {static_cast<float>(clip_scale(expected_norm, clip))},
                  kElementTolerance);
    AdamWStep step;
    step.lr = 0.1;  // so that the update is a tenth of the weights
    step.gradient_scale = clip_scale(expected_norm, clip);
    adamw<X>(weights.data(), gradients.data(), m.data(), v.data(), copy.data(), norm.data(), device_ranges.data(),
             device_ranges.size(), n, adamw_constants(step, 1), std::nullopt, nullptr);
    model->update(step);
    const auto floats_of = [&](const Buffer& buffer) { return Floats(buffer.data(), buffer.data() + n); };
    check.compare("AdamW, weights", weights.ours(), floats_of(model->params), kElementTolerance);
    check.compare("AdamW, first moments", m.ours(), floats_of(model->m), kElementTolerance);
    check.compare("AdamW, second moments", v.ours(), floats_of(model->v), kElementTolerance);
    check.compare("AdamW, copy", copy.ours(), floats_of(model->params), tolerance<X>(kElementTolerance, 1));
    check.compare("AdamW, gradients cleared", gradients.ours(), Floats(static_cast<size_t>(n)), 0);
}

template <class X>
void check_operations(Check& check, const CheckSizes& s) {
    check.set_type(sizeof(X) == 2 ? "bf16" : "float");
    check.part("encoder", [&] { check_encoder<X>(check, s); });
    check.part("norms", [&] {
        const NormOperands<X> operands(s);
        for (const NormCase& k : norm_cases()) {
            if (!k.with_aux) check_norm_forward(check, operands, k);
            check_norm_backward(check, operands, k);
        }
    });
    check.part("element by element", [&] { check_elementwise<X>(check, s); });
    check.part("products", [&] { check_products<X>(check, s); });
    for (const AttentionKernels<X>& kernels : all_attention_kernels<X>()) {
        check.part("attention", [&] { check_attention(check, s, kernels); });
        if (kernels.name != std::string("cudnn"))
            check.part("attention, shared keys", [&] { check_attention(check, s, kernels, true); });
    }
    check.part("other families", [&] { check_other_families<X>(check, s); });
    check.part("classifier", [&] { check_classifier<X>(check, s); });
    check.part("distillation", [&] { check_distillation<X>(check, s); });
    check.part("optimiser", [&] { check_optimiser<X>(check); });
    if (sizeof(X) == sizeof(float)) check.part("statistics", [&] { check_statistics(check, s); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Whole steps

// A model small enough for the reference, with heads that tensor cores take.
inline ModelConfig small_removal_config() {
    ModelConfig c;
    c.L = 2;
    c.NH = 2;
    c.C = kEmulated ? 64 : 128;
    c.V = 257;
    c.n_ctx = kEmulated ? 21 : 65;
    c.n_inner = 4 * c.C;
    c.end_of_text = kCheckEndOfText;
    return c;
}

// Shapes of SmolLM2's kind and of Pythia's.
inline ModelConfig small_llama_config() {
    ModelConfig c = small_removal_config();
    c.rotary = c.head_size();
    c.shared_heads = 1;
    c.centred = c.norm_bias = c.attention_bias = c.mlp_bias = false;
    c.activation = Activation::gated_silu;
    return c;
}
inline ModelConfig small_pythia_config() {
    ModelConfig c = small_removal_config();
    c.rotary = c.head_size() / 4;
    c.parallel = true;
    c.activation = Activation::gelu_erf;
    c.tied = false;
    return c;
}

// One removal per step, so that every stage is met: seven sites, a step before them and one after.
inline Settings small_removal(bool precursor) {
    Settings s;
    s.steps = s.stop = precursor ? 11 : 9;
    s.batch = 3;
    s.seq = small_removal_config().n_ctx;
    s.grad_accum = 2;
    s.lr = s.min_lr = 1e-3;
    s.start_mlp = 1;
    s.start_qk = 3;
    s.start_v = 5;
    s.start_f = 7;
    s.gap_mlp = s.gap_qk = s.gap_v = 1;
    s.experiment.own_position0 = precursor;
    s.experiment.release_end_of_text = 8;
    s.experiment.release_position0 = 9;
    return s;
}

struct StepTolerances {
    double loss, gradient, weights;
};
template <class X>
StepTolerances step_tolerances() {
    if (sizeof(X) == 2) return {0.01, 0.1, 0.01};
    return {1e-5, 1e-4, 1e-4};
}

// Weights far from their initial values, so that no term of a formula is close to zero by chance.
inline void set_random_parameters(Engine& model) {
    SplitMix64 random(3);
    for (const Tensor& t : model.tensors) {
        const bool is_gamma = t.name.find("ln_") != std::string::npos && t.name.back() == 't';
        for (int64_t i = 0; i < t.size; i++)
            model.params.data()[t.offset + i] =
                static_cast<real>((is_gamma ? 1.0 : 0.0) + (is_gamma ? 0.15 : 0.08) * random.normal());
    }
}

inline StepBatches check_batches(const Settings& s, int64_t step, int64_t V) {
    StepBatches batches;
    for (int64_t a = 0; a < s.grad_accum; a++) {
        const std::vector<int32_t> tokens = check_tokens(s.batch * s.seq + 1, V, static_cast<uint64_t>(100 * step + a));
        batches.inputs.emplace_back(tokens.begin(), tokens.end() - 1);
        batches.targets.emplace_back(tokens.begin() + 1, tokens.end());
    }
    return batches;
}

// "removal, step 3, qk[0] removed"
inline std::string stage_name(const std::string& name, int64_t step, const std::vector<Event>& events,
                              const Sites& sites) {
    std::string stage = name + ", step " + std::to_string(step);
    if (events.size() == 1) stage += ", " + site_name(sites.all[static_cast<size_t>(events[0].site)]);
    if (events.size() > 1) stage += ", " + std::to_string(events.size()) + " sites";
    return events.empty() ? stage : stage + " " + events[0].action;
}

inline void compare_sigma_bars(Check& check, const std::string& what, const Sites& ours, const Sites& reference,
                               double allowed) {
    Floats a, b;
    for (size_t i = 0; i < ours.all.size(); i++) {
        if (reference.all[i].has_layer_norm()) continue;
        a.push_back(static_cast<float>(ours.all[i].sigma_bar));
        b.push_back(static_cast<float>(reference.all[i].sigma_bar));
    }
    check.compare(what, a, b, allowed);
}

// Trains `model`, which is freshly made, and a reference side by side through a removal, each by its own gradients.
inline void check_removal(Check& check, const std::string& name, Engine& model, const Settings& s,
                          const StepTolerances& allowed) {
    const std::unique_ptr<Engine> made = make_reference(model.config);
    Engine& reference = *made;
    for (Engine* each : {&model, &reference}) {
        set_random_parameters(*each);
        each->prepare_training(s.batch, s.seq);
        each->prepare_optimiser();
    }
    for (int64_t step = 0; step < s.stop; step++) {
        const StepBatches batches = check_batches(s, step, model.config.V);
        const std::vector<Event> events = begin_step(model, s, step, batches);
        begin_step(reference, s, step, batches);
        const std::string stage = stage_name(name, step, events, model.sites);
        const BatchLoss ours = step_loss(model, s, batches), theirs = step_loss(reference, s, batches);
        const double loss = ours.loss + ours.aux, reference_loss = theirs.loss + theirs.aux;
        check.add(stage + ": loss", std::fabs(loss - reference_loss) / reference_loss, allowed.loss);
        check.add(stage + ": gradient",
                  largest_tensor_error(model.config, gradients_of(model).data(), reference.grads.data()),
                  allowed.gradient);
        finish_step(model, s, step);
        finish_step(reference, s, step);
    }
    model.fetch_parameters();
    check.add(name + ", at the end: weights",
              largest_tensor_error(model.config, model.params.data(), reference.params.data()), allowed.weights);
    compare_sigma_bars(check, name + ", at the end: sigma bars", model.sites, reference.sites, allowed.loss);
}

// `choose` changes the options, and `which` says to what.
template <class X>
void check_whole_steps(
    Check& check, const std::string& which = "", void (*choose)(DeviceOptions&) = [](DeviceOptions&) {}) {
    check.set_type(sizeof(X) == 2 ? "bf16" : "float");
    const OptionsKeeper keeper;
    device_options().in_bf16 = sizeof(X) == 2;
    choose(device_options());
    for (const bool precursor : {false, true}) {
        const std::string name = (precursor ? "precursor's removal" : "removal") + which;
        check.part(name, [&] {
            const std::unique_ptr<Engine> model = make_engine(small_removal_config());
            check_removal(check, name, *model, small_removal(precursor), step_tolerances<X>());
        });
    }
    for (const ModelConfig& c : {small_llama_config(), small_pythia_config()}) {
        const std::string name = std::string(c.parallel ? "removal, like Pythia" : "removal, like SmolLM2") + which;
        if (c.shared_heads > 0 && device_options().attention == "cudnn") continue;
        check.part(name,
                   [&] { check_removal(check, name, *make_engine(c), small_removal(false), step_tolerances<X>()); });
    }
}

// What analyses ask for, of `model`, which is freshly made: half-way through a removal, or folded.
inline void check_analyses(Check& check, const std::string& name, Engine& model, double allowed) {
    const ModelConfig& c = model.config;
    const int64_t B = 3, T = c.n_ctx, N = B * T;
    const std::unique_ptr<Engine> reference = make_reference(c);
    const std::vector<int32_t> tokens = check_tokens(N, c.V, 7);
    const Floats dnormed = normal_values(N * c.C, 8);
    struct Seen {
        Floats streams, heads, neurons, logits, gradients;
    };
    const auto seen_by = [&](Engine& engine) {
        set_random_parameters(engine);
        for (Site& site : engine.sites.all) {
            if (site.kind == SiteKind::v || site.folded) continue;  // qk and v apart
            site.a = 1;
            site.sigma_bar = 0.8;
        }
        Seen seen;
        const auto note = [](Floats& all, const real* x, int64_t n) { all.insert(all.end(), x, x + n); };
        Probe probe;
        probe.residual = [&](int64_t, const real* x) { note(seen.streams, x, N * c.C); };
        probe.attention = [&](int64_t, const real* x, const real*, const real*) {
            note(seen.heads, x, N * c.heads_width());
        };
        probe.mlp = [&](int64_t, const real* x, const real*) { note(seen.neurons, x, N * c.n_inner); };
        engine.trace(tokens.data(), B, T, probe, true);
        seen.logits.resize(static_cast<size_t>(N * c.V));
        engine.final_logits(seen.logits.data(), 0, N);
        engine.stream_gradients(dnormed.data(), tokens.data(),
                                [&](int64_t, const real* x) { note(seen.gradients, x, N * c.C); });
        return seen;
    };
    const Seen ours = seen_by(model), theirs = seen_by(*reference);
    const auto compare = [&](const char* what, Floats Seen::*values, int64_t of_a_layer) {
        check.add(name + ": " + what, largest_error(ours.*values, theirs.*values, static_cast<size_t>(of_a_layer)),
                  allowed);
    };
    compare("streams", &Seen::streams, N * c.C);
    compare("heads", &Seen::heads, N * c.heads_width());
    compare("neurons", &Seen::neurons, N * c.n_inner);
    compare("logits", &Seen::logits, N * c.V);
    compare("gradients", &Seen::gradients, N * c.C);
}

template <class X>
void check_all_analyses(Check& check) {
    check.set_type(sizeof(X) == 2 ? "bf16" : "float");
    const OptionsKeeper keeper;
    device_options().in_bf16 = sizeof(X) == 2;
    for (const bool folded : {false, true}) {
        const std::string name = folded ? "analysis, folded" : "analysis";
        check.part(name, [&] {
            ModelConfig c = small_removal_config();
            if (folded) c.form = ModelForm::folded;
            check_analyses(check, name, *make_engine(c), step_tolerances<X>().gradient);
        });
    }
}

// Holds everything against the reference and prints the table to `screen`. Throws NoGpu where there is no GPU.
inline Report check_engine(FILE* screen) {
    require_gpu();
    Check check;
    check_operations<float>(check, check_sizes());
    check_operations<bf16>(check, check_sizes());
    check_all_analyses<float>(check);
    check_all_analyses<bf16>(check);
    check_whole_steps<float>(check);
    check_whole_steps<bf16>(check);
    check_whole_steps<bf16>(check, " with CUDA graphs", [](DeviceOptions& o) { o.cuda_graphs = true; });
    if (kHasCudnn) check_whole_steps<bf16>(check, " with cuDNN", [](DeviceOptions& o) { o.attention = "cudnn"; });

    const Report report = check.report();
    Table table(report.columns);
    size_t failed = 0;
    for (const std::vector<std::string>& row : report.rows) {
        table.add_row(row);
        if (row.back() != "ok") failed++;
    }
    std::fprintf(screen, "%s\n%zu comparisons with the reference%s: %s\n", table.text().c_str(), report.rows.size(),
                 kEmulated ? ", emulated" : "",
                 failed == 0 ? "all within tolerance" : (std::to_string(failed) + " FAILED").c_str());
    return report;
}

}  // namespace cuda
}  // namespace lnfree
