// The laboratory of LayerNorm, forward:  make dev/cuda/layernorm_forward && dev/cuda/layernorm_forward [VERSION]
#include "layernorm_forward.h"

namespace lnfree::cuda::lab {

template <class X>
struct LayerNormForwardProblem : NormOperands<X> {
    static auto versions() { return layernorm_forward_versions<X>(); }
    static auto small() { return small_norm_shapes(); }
    static auto large() { return large_norm_shape(); }

    DeviceArray<X> out;

    explicit LayerNormForwardProblem(const NormShape& s) : NormOperands<X>(s), out(s.N * s.C) {}
    double bytes() const { return NormOperands<X>::bytes(2); }
    void prepare() const {}
    void run(LayerNormForward<X> f) const {
        f(out.data(), this->mean.data(), this->sigma.data(), this->x.data(), this->gamma.data(), this->beta.data(),
          this->N, this->C, nullptr);
    }
    double worst() const { return this->worst_forward(out, floats(this->x.host()), 0); }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::LayerNormForwardProblem<float>, lab::LayerNormForwardProblem<bf16>>(
        argc, argv, "layernorm_forward");
}
