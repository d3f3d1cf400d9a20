// The laboratory of FakeLN, forward:  make dev/cuda/fakeln_forward && dev/cuda/fakeln_forward [VERSION]
// Compare its times with those of dev/cuda/layernorm_forward: a removed site must cost no more than LayerNorm.
#include "fakeln_forward.h"

namespace lnfree::cuda::lab {

template <class X>
struct FakeLNForwardProblem : NormOperands<X> {
    static constexpr float kSigmaBar = 1.7f;
    static auto versions() { return fakeln_forward_versions<X>(); }
    static auto small() { return small_norm_shapes(); }
    static auto large() { return large_norm_shape(); }

    DeviceArray<X> out;

    explicit FakeLNForwardProblem(const NormShape& s) : NormOperands<X>(s), out(s.N * s.C) {}
    double bytes() const { return NormOperands<X>::bytes(2); }
    void prepare() const {}
    void run(FakeLNForward<X> f) const {
        f(out.data(), this->mean.data(), this->sigma.data(), this->x.data(), this->gamma.data(), this->beta.data(),
          kSigmaBar, this->N, this->C, nullptr);
    }
    double worst() const { return this->worst_forward(out, floats(this->x.host()), kSigmaBar); }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::FakeLNForwardProblem<float>, lab::FakeLNForwardProblem<bf16>>(argc, argv,
                                                                                                   "fakeln_forward");
}
