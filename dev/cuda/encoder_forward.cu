// The laboratory of the encoder, forward:  make dev/cuda/encoder_forward && dev/cuda/encoder_forward [VERSION]
#include "encoder_forward.h"

namespace lnfree::cuda::lab {

template <class X>
struct EncoderForwardProblem {
    struct Shape {
        int64_t B, T, C, V;
    };
    static auto versions() { return encoder_forward_versions<X>(); }
    static std::vector<Shape> small() { return {{1, 3, 1, 2}, {3, 5, 17, 257}, {3, 7, 64, 11}, {1, 5, 1600, 11}}; }
    static Shape large() { return {16, 1024, 768, 50257}; }

    Shape s;
    std::vector<int32_t> tokens;
    DeviceArray<int32_t> device_tokens;
    DeviceArray<X> wte, wpe, out;

    explicit EncoderForwardProblem(const Shape& shape)
        : s(shape),
          tokens(made_up_tokens(s.B * s.T, s.V)),
          device_tokens(tokens),
          wte(rounded<X>(normal_values(s.V * s.C, 1))),
          wpe(rounded<X>(normal_values(s.T * s.C, 2))),
          out(s.B * s.T * s.C) {}
    std::string name() const { return label<X>(s.B, s.T, s.C); }
    // The rows of wte that are read may be the same ones again and again: only what is written, and wpe, is certain.
    double bytes() const { return sizeof(X) * static_cast<double>((s.B + 1) * s.T * s.C); }
    void prepare() const {}
    void run(EncoderForward<X> f) const {
        f(out.data(), device_tokens.data(), wte.data(), wpe.data(), s.B, s.T, s.C, nullptr);
    }
    double worst() const {
        std::vector<float> expected(static_cast<size_t>(out.size()));
        operations().encoder_forward(expected.data(), tokens.data(), floats(wte.host()).data(),
                                     floats(wpe.host()).data(), s.B, s.T, s.C);
        return worst_rounded_error(out.host(), expected, 1e-5);
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::EncoderForwardProblem<float>, lab::EncoderForwardProblem<bf16>>(argc, argv,
                                                                                                     "encoder_forward");
}
