// The laboratory of GELU:  make dev/cuda/gelu && dev/cuda/gelu [VERSION]
#include "gelu.h"

namespace lnfree {
namespace cuda {
namespace lab {

template <class X>
struct GeluProblem {
    static auto versions() { return gelu_versions<X>(); }
    static std::vector<int64_t> small() { return {1, 17, 4099}; }
    static int64_t large() { return 16 * 1024 * 3072; }

    int64_t n;
    DeviceArray<X> inp, out;

    explicit GeluProblem(int64_t count) : n(count), inp(rounded<X>(normal_values(n, 1, 3))), out(n) {}
    std::string name() const { return label<X>(n); }
    double bytes() const { return 2.0 * sizeof(X) * static_cast<double>(n); }
    void prepare() const {}
    void run(GeluFunction<X> f) const { f(out.data(), inp.data(), n, nullptr); }
    double worst() const {
        std::vector<float> expected(static_cast<size_t>(n));
        operations().gelu_forward(expected.data(), floats(inp.host()).data(), n);
        return worst_rounded_error(out.host(), expected, 1e-5, 0.1);
    }
};

}  // namespace lab
}  // namespace cuda
}  // namespace lnfree

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::GeluProblem<float>, lab::GeluProblem<bf16>>(argc, argv, "gelu");
}
