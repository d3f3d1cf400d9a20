// The laboratory of residual addition and norm in one:  make dev/cuda/residual_norm && dev/cuda/residual_norm [VERSION]
#include "residual_norm.h"

namespace lnfree::cuda::lab {

template <class X>
struct ResidualNormProblem : NormOperands<X> {
    static constexpr float kSigmaBar = 1.7f;
    static auto versions() { return residual_norm_versions<X>(); }
    static auto small() { return small_norm_shapes(); }
    static auto large() { return large_norm_shape(); }

    DeviceArray<X> y, sum, normed_qk, normed_v;

    explicit ResidualNormProblem(const NormShape& s)
        : NormOperands<X>(s),
          y(rounded<X>(normal_values(s.N * s.C, 8))),
          sum(s.N * s.C),
          normed_qk(s.N * s.C),
          normed_v(s.N * s.C) {}
    double bytes() const { return NormOperands<X>::bytes(5); }
    void prepare() const {}
    void run(ResidualNormForward<X> f) const {
        f(sum.data(), normed_qk.data(), normed_v.data(), this->mean.data(), this->sigma.data(), this->x.data(),
          y.data(), this->gamma.data(), this->beta.data(), kSigmaBar, this->N, this->C, nullptr);
    }
    double worst() const {
        std::vector<float> expected(static_cast<size_t>(this->N * this->C));
        operations().residual_forward(expected.data(), floats(this->x.host()).data(), floats(y.host()).data(),
                                      this->N * this->C);
        const std::vector<float> rows = floats(sum.host());  // mean and sigma are those of the rounded sum
        return std::max({worst_rounded_error(sum.host(), expected, 1e-5), this->worst_forward(normed_qk, rows, 0),
                         this->worst_forward(normed_v, rows, kSigmaBar)});
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::ResidualNormProblem<float>, lab::ResidualNormProblem<bf16>>(argc, argv,
                                                                                                 "residual_norm");
}
