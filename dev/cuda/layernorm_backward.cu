// The laboratory of LayerNorm, backward:  make dev/cuda/layernorm_backward && dev/cuda/layernorm_backward [VERSION]
#include "layernorm_backward.h"

namespace lnfree::cuda::lab {

template <class X>
struct LayerNormBackwardProblem : NormBackwardOperands<X> {
    using NormBackwardOperands<X>::NormBackwardOperands;
    static auto versions() { return layernorm_backward_versions<X>(); }
    static auto small() { return small_norm_shapes(); }
    static auto large() { return large_norm_shape(); }

    double bytes() const { return NormOperands<X>::bytes(4); }
    void run(LayerNormBackward<X> f) const {
        f(this->dx.data(), this->dgamma.data(), this->dbeta.data(), this->scratch.data(), this->dout.data(),
          this->x.data(), this->gamma.data(), this->mean.data(), this->sigma.data(), this->N, this->C, nullptr);
    }
    double worst() const { return this->worst_backward(0); }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::LayerNormBackwardProblem<float>, lab::LayerNormBackwardProblem<bf16>>(
        argc, argv, "layernorm_backward");
}
