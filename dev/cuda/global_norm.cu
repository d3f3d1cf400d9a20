// The laboratory of the gradient's norm:  make dev/cuda/global_norm && dev/cuda/global_norm [VERSION]
#include "global_norm.h"

namespace lnfree::cuda::lab {

struct GlobalNormProblem {
    static auto versions() { return global_norm_versions(); }
    static std::vector<int64_t> small() { return {1, 3, 1000, 70001}; }
    static int64_t large() { return 124439808; }  // GPT-2 Small's parameters

    int64_t n;
    DeviceArray<float> values;
    DeviceArray<double> scratch;
    DeviceArray<GradientNorm> out;

    explicit GlobalNormProblem(int64_t count)
        : n(count), values(normal_values(n, 1)), scratch(global_norm_scratch()), out(1) {}
    std::string name() const { return label<float>(n); }
    double bytes() const { return 4.0 * static_cast<double>(n); }
    void prepare() const {}
    void run(GlobalNorm f) const { f(out.data(), scratch.data(), values.data(), n, 1.0, nullptr); }
    double worst() const {
        const double norm = reference_norm(values.host());
        const GradientNorm got = out.host()[0];
        return std::max(
            worst_error(std::vector<double>{got.norm}, std::vector<double>{norm}, 1e-12),
            worst_error(std::vector<double>{got.clip_scale}, std::vector<double>{clip_scale(norm, 1.0)}, 1e-6));
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    return lnfree::cuda::lab::laboratory_main<lnfree::cuda::lab::GlobalNormProblem>(argc, argv, "global_norm");
}
