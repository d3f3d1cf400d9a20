// The laboratory of gated SiLU:  make dev/cuda/gated_silu && dev/cuda/gated_silu [VERSION]
#include "gated_silu.h"

namespace lnfree::cuda::lab {

template <class X>
struct GatedSiluProblem {
    struct Shape {
        int64_t N, H;
    };
    static auto versions() { return gated_silu_versions<X>(); }
    static std::vector<Shape> small() { return {{1, 1}, {7, 17}, {33, 64}, {5, 1536}}; }
    static Shape large() { return {8 * 2048, 1536}; }  // a micro-batch of SmolLM2-135M

    Shape s;
    DeviceArray<X> inp, out;

    explicit GatedSiluProblem(const Shape& shape)
        : s(shape), inp(rounded<X>(normal_values(2 * s.N * s.H, 1, 3))), out(s.N * s.H) {}
    std::string name() const { return label<X>(s.N, s.H); }
    double bytes() const { return 3.0 * sizeof(X) * static_cast<double>(s.N * s.H); }
    void prepare() const {}
    void run(GatedSilu<X> f) const { f(out.data(), inp.data(), s.N, s.H, nullptr); }
    double worst() const {
        std::vector<float> expected(static_cast<size_t>(s.N * s.H));
        operations().gated_silu_forward(expected.data(), floats(inp.host()).data(), s.N, s.H);
        return worst_rounded_error(out.host(), expected, 1e-5);
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::GatedSiluProblem<float>, lab::GatedSiluProblem<bf16>>(argc, argv, "gated_silu");
}
