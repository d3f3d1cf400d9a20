// The laboratory of FakeLN, backward:  make dev/cuda/fakeln_backward && dev/cuda/fakeln_backward [VERSION]
// Compare its times with those of dev/cuda/layernorm_backward: a removed site must cost no more than LayerNorm.
#include "fakeln_backward.h"

namespace lnfree::cuda::lab {

template <class X>
struct FakeLNBackwardProblem : NormBackwardOperands<X> {
    using NormBackwardOperands<X>::NormBackwardOperands;
    static constexpr float kSigmaBar = 1.7f;
    static auto versions() { return fakeln_backward_versions<X>(); }
    static auto small() { return small_norm_shapes(); }
    static auto large() { return large_norm_shape(); }

    double bytes() const { return NormOperands<X>::bytes(4); }
    void run(FakeLNBackward<X> f) const {
        f(this->dx.data(), this->dgamma.data(), this->dbeta.data(), this->scratch.data(), this->dout.data(),
          this->x.data(), this->gamma.data(), this->mean.data(), this->sigma.data(), kSigmaBar, this->N, this->C,
          nullptr);
    }
    double worst() const { return this->worst_backward(kSigmaBar); }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::FakeLNBackwardProblem<float>, lab::FakeLNBackwardProblem<bf16>>(argc, argv,
                                                                                                     "fakeln_backward");
}
