// The laboratory of the sigma statistics:  make dev/cuda/sigma_statistics && dev/cuda/sigma_statistics [VERSION]
#include "sigma_statistics.h"

namespace lnfree::cuda::lab {

struct SigmaStatisticsProblem {
    struct Shape {
        int64_t S, B, T;
    };
    static auto versions() { return sigma_statistics_versions(); }
    static std::vector<Shape> small() { return {{1, 1, 1}, {3, 2, 1}, {3, 5, 17}, {2, 3, 401}}; }
    static Shape large() { return {25, 32, 1024}; }  // the sites of GPT-2 Small that have arrays of their own

    Shape s;
    DeviceArray<float> sigma;
    DeviceArray<double> sums;

    explicit SigmaStatisticsProblem(const Shape& shape)
        : s(shape), sigma(normal_values(s.S * s.B * s.T, 1, 0.5, 3)), sums(2 * s.S) {}
    std::string name() const { return label<float>(s.S, s.B, s.T); }
    double bytes() const { return 4.0 * static_cast<double>(sigma.size()); }
    void prepare() const { sums.set(std::vector<double>(static_cast<size_t>(sums.size()), 1.0)); }
    void run(SigmaStatistics f) const { f(sums.data(), sigma.data(), s.B * s.T, s.S, s.B, s.T, nullptr); }
    double worst() const {
        std::vector<double> expected;
        for (int64_t i = 0; i < s.S; i++) {
            SigmaSum sum;
            sum.add(sigma.host().data() + i * s.B * s.T, s.B, s.T);
            expected.push_back(1 + sum.at_0);
            expected.push_back(1 + sum.elsewhere);
        }
        return worst_error(sums.host(), expected, 1e-12);
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    return lnfree::cuda::lab::laboratory_main<lnfree::cuda::lab::SigmaStatisticsProblem>(argc, argv,
                                                                                         "sigma_statistics");
}
