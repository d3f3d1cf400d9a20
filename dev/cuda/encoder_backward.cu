// The laboratory of the encoder, backward:  make dev/cuda/encoder_backward && dev/cuda/encoder_backward [VERSION]
#include "encoder_backward.h"

namespace lnfree::cuda::lab {

template <class X>
struct EncoderBackwardProblem {
    struct Shape {
        int64_t B, T, C, V;
    };
    static auto versions() { return encoder_backward_versions<X>(); }
    static std::vector<Shape> small() { return {{1, 3, 1, 2}, {3, 5, 17, 257}, {3, 67, 64, 3}, {1, 5, 1600, 11}}; }
    static Shape large() { return {16, 1024, 768, 50257}; }

    Shape s;
    std::vector<int32_t> tokens;
    std::vector<float> dwte_before, dwpe_before;
    DeviceArray<int32_t> device_tokens, sorted;
    DeviceArray<X> dout;
    DeviceArray<float> dwte, dwpe, scratch;

    explicit EncoderBackwardProblem(const Shape& shape)
        : s(shape),
          tokens(made_up_tokens(s.B * s.T, s.V)),
          dwte_before(normal_values(s.V * s.C, 1)),
          dwpe_before(normal_values(s.T * s.C, 2)),
          device_tokens(tokens),
          sorted(sorted_on_host()),
          dout(rounded<X>(normal_values(s.B * s.T * s.C, 3))),
          dwte(s.V * s.C),
          dwpe(s.T * s.C),
          scratch(encoder_backward_scratch(s.B * s.T, s.C)) {}
    std::vector<int32_t> sorted_on_host() const {
        std::vector<int32_t> out(static_cast<size_t>(sorted_positions_size(s.B * s.T)));
        sort_positions(out.data(), tokens.data(), s.B * s.T, s.V);
        return out;
    }
    std::string name() const { return label<X>(s.B, s.T, s.C); }
    // dout once for each of the two sums, and both gradients' rows read and written; how many rows of dwte depends on the
    // tokens.
    double bytes() const {
        std::vector<int32_t> distinct = tokens;
        std::sort(distinct.begin(), distinct.end());
        const auto rows = std::unique(distinct.begin(), distinct.end()) - distinct.begin() + s.T;
        return static_cast<double>(s.C) *
               (2.0 * sizeof(X) * static_cast<double>(s.B * s.T) + 8.0 * static_cast<double>(rows));
    }
    void prepare() const {
        dwte.set(dwte_before);
        dwpe.set(dwpe_before);
    }
    void run(EncoderBackward<X> f) const {
        f(dwte.data(), dwpe.data(), scratch.data(), dout.data(), device_tokens.data(), sorted.data(), s.B, s.T, s.C,
          nullptr);
    }
    double worst() const {
        std::vector<float> expected_wte = dwte_before, expected_wpe = dwpe_before;
        operations().encoder_backward(expected_wte.data(), expected_wpe.data(), floats(dout.host()).data(),
                                      tokens.data(), s.B, s.T, s.C);
        return std::max(worst_error(dwte.host(), expected_wte, 1e-5, 10), worst_error(dwpe.host(), expected_wpe, 1e-5));
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::EncoderBackwardProblem<float>, lab::EncoderBackwardProblem<bf16>>(
        argc, argv, "encoder_backward");
}
