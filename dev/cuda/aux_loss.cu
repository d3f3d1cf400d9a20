// The laboratory of the auxiliary loss:  make dev/cuda/aux_loss && dev/cuda/aux_loss [VERSION]
// Its gradient is part of the norm's backward (dev/cuda/layernorm_backward.h).
#include "aux_loss.h"

namespace lnfree::cuda::lab {

struct AuxLossProblem {
    struct Shape {
        int64_t B, T;
    };
    static constexpr double kScale = 0.25;
    static constexpr int32_t kEndOfText = 2;
    static constexpr AuxSettings kSettings = {0.1, false, true, 3};  // the hardest: relative, position 0 apart
    static auto versions() { return aux_loss_versions(); }
    static std::vector<Shape> small() { return {{1, 1}, {4, 1}, {3, 17}, {3, 401}}; }
    static Shape large() { return {32, 1024}; }

    Shape s;
    std::vector<int32_t> tokens;
    DeviceArray<float> sigma;
    DeviceArray<int32_t> device_tokens;
    DeviceArray<AuxTerm> out;

    explicit AuxLossProblem(const Shape& shape)
        : s(shape),
          tokens(made_up_tokens(s.B * s.T, 11)),
          sigma(normal_values(s.B * s.T, 1, 0.5, 3)),
          device_tokens(tokens),
          out(1) {}
    std::string name() const { return label<float>(s.B, s.T); }
    double bytes() const { return 8.0 * static_cast<double>(s.B * s.T); }
    void prepare() const {}
    void run(AuxLossFunction f) const {
        f(out.data(), sigma.data(), device_tokens.data(), kEndOfText, kSettings, kScale, s.B, s.T, nullptr);
    }
    double worst() const {
        const AuxLoss expected =
            operations().aux_loss_forward(sigma.host().data(), tokens.data(), kEndOfText, kSettings, s.B, s.T);
        const AuxTerm got = out.host()[0];
        if ((got.active != 0) != expected.active) return INFINITY;
        if (!expected.active) return 0;  // nobody reads the rest then
        const double factor = kScale * expected.weight * 2.0 / static_cast<double>(s.B * s.T);
        return worst_error(std::vector<double>{got.sigma_hat, got.target_at_0, got.loss, got.factor},
                           std::vector<double>{expected.sigma_hat, expected.target_at_0, expected.loss, factor}, 1e-6,
                           0);
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    return lnfree::cuda::lab::laboratory_main<lnfree::cuda::lab::AuxLossProblem>(argc, argv, "aux_loss");
}
