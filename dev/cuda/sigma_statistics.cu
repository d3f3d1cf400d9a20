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

struct AddSumProblem {
    static auto versions() { return add_sum_versions(); }
    static std::vector<int64_t> small() { return {1, 33, 5003}; }
    static int64_t large() { return 32 * 1024; }

    int64_t n;
    DeviceArray<float> values;
    DeviceArray<double> sum;

    explicit AddSumProblem(int64_t count) : n(count), values(normal_values(n, 1, 1, 3)), sum(1) {}
    std::string name() const { return "losses " + label<float>(n); }
    double bytes() const { return 4.0 * static_cast<double>(n); }
    void prepare() const { sum.set({5}); }
    void run(AddSum f) const { f(sum.data(), values.data(), n, nullptr); }
    double worst() const {
        long double expected = 5;
        for (const float value : values.host()) expected += static_cast<long double>(value);
        return worst_error(sum.host(), std::vector<double>{static_cast<double>(expected)}, 1e-12);
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::SigmaStatisticsProblem, lab::AddSumProblem>(argc, argv, "sigma_statistics");
}
