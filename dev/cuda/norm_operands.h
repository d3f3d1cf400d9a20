// What the laboratory's norm programs work on: a stream of N rows of C channels, the norm's parameters, and what the CPU
// makes of them.
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

constexpr float kEpsilon = 1e-5f;

struct NormShape {
    int64_t N, C;
};

// Rows that fit no vector, one lane, several, and registers of both sizes.
inline std::vector<NormShape> small_norm_shapes() {
    return {{5, 3}, {3, 17}, {9, 64}, {3, 257}, {5, 768}, {3, 1600}, {2, 2056}};
}
// A micro-batch of GPT-2 Small.
inline NormShape large_norm_shape() {
    return {32 * 1024, 768};
}

template <class X>
struct NormOperands {
    int64_t N, C;
    DeviceArray<X> x;
    DeviceArray<float> gamma, beta, mean, sigma;

    explicit NormOperands(const NormShape& s)
        : N(s.N),
          C(s.C),
          x(rounded<X>(normal_values(N * C, 1, 2, 0.5))),
          gamma(normal_values(C, 2, 0.3, 1)),
          beta(normal_values(C, 3, 0.3)),
          mean(N),
          sigma(N) {}
    std::string name() const { return label<X>(N, C); }
    // Of `arrays` arrays (N,C).
    double bytes(double arrays) const { return arrays * sizeof(X) * static_cast<double>(N * C); }

    struct Moments {
        std::vector<float> mean, sigma;
    };
    Moments moments(const std::vector<float>& rows) const {
        Moments m{std::vector<float>(static_cast<size_t>(N)), std::vector<float>(static_cast<size_t>(N))};
        operations().moments_forward(m.mean.data(), m.sigma.data(), rows.data(), kEpsilon, true, N, C);
        return m;
    }
    // Backward gets mean and sigma from forward.
    void set_moments() {
        const Moments m = moments(floats(x.host()));
        mean.set(m.mean);
        sigma.set(m.sigma);
    }
    std::vector<float> normed(const std::vector<float>& rows, const std::vector<float>& divisor) const {
        std::vector<float> out(rows.size());
        operations().norm_forward(out.data(), rows.data(), moments(rows).mean.data(), divisor.data(),
                                  gamma.host().data(), beta.host().data(), N, C);
        return out;
    }
    // What is wrong with mean, sigma and `out`, when `rows` were to be divided by sigma_bar (0: by their own sigma).
    double worst_forward(const DeviceArray<X>& out, const std::vector<float>& rows, double sigma_bar) const {
        const Moments m = moments(rows);
        const std::vector<float> fixed(static_cast<size_t>(N), static_cast<float>(sigma_bar));
        return std::max({worst_error(mean.host(), m.mean, 1e-5), worst_error(sigma.host(), m.sigma, 1e-5),
                         worst_rounded_error(out.host(), normed(rows, sigma_bar == 0 ? m.sigma : fixed), 1e-5, 3)});
    }
};

inline Divisor frozen(double sigma_bar) {
    Divisor d;
    d.own_share = 0;
    d.sigma_bar = static_cast<float>(sigma_bar);
    return d;
}

// Gradients for the two backward programs: dx, dgamma and dbeta, which are added to, and what was there before.
template <class X>
struct NormBackwardOperands : NormOperands<X> {
    DeviceArray<X> dout, dx;
    DeviceArray<float> dgamma, dbeta, scratch;

    explicit NormBackwardOperands(const NormShape& s)
        : NormOperands<X>(s),
          dout(rounded<X>(normal_values(s.N * s.C, 4))),
          dx(s.N * s.C),
          dgamma(s.C),
          dbeta(s.C),
          scratch(norm_backward_scratch(s.N, s.C)) {
        this->set_moments();
    }
    std::vector<X> dx_before() const { return rounded<X>(normal_values(this->N * this->C, 5)); }
    std::vector<float> dgamma_before() const { return normal_values(this->C, 6); }
    std::vector<float> dbeta_before() const { return normal_values(this->C, 7); }
    void prepare() const {
        dx.set(dx_before());
        dgamma.set(dgamma_before());
        dbeta.set(dbeta_before());
    }
    // What is wrong after the backward of LayerNorm (sigma_bar 0) or of FakeLN.
    double worst_backward(double sigma_bar) const {
        std::vector<float> expected = floats(dx_before()), expected_gamma = dgamma_before(),
                           expected_beta = dbeta_before();
        const std::vector<float> divisor =
            sigma_bar == 0 ? this->sigma.host()
                           : std::vector<float>(static_cast<size_t>(this->N), static_cast<float>(sigma_bar));
        Site site;
        site.a = sigma_bar == 0 ? 0 : 1;
        site.sigma_bar = sigma_bar;
        operations().norm_backward(expected.data(), expected_gamma.data(), expected_beta.data(),
                                   floats(dout.host()).data(), floats(this->x.host()).data(), this->gamma.host().data(),
                                   this->mean.host().data(), this->sigma.host().data(), divisor.data(), site, this->N,
                                   this->C);
        return std::max({worst_rounded_error(dx.host(), expected, 1e-5, 3),
                         worst_error(dgamma.host(), expected_gamma, 1e-5, 10),
                         worst_error(dbeta.host(), expected_beta, 1e-5, 10)});
    }
};

}  // namespace lnfree::cuda::lab
