// The laboratory of stochastic rounding:  make dev/cuda/stochastic_rounding && dev/cuda/stochastic_rounding [VERSION]
#include <cstring>

#include "stochastic_rounding.h"

namespace lnfree::cuda::lab {

template <class X>
struct StochasticRoundingProblem {
    static constexpr uint64_t kKey = 0x123456789ABCDEFu;
    static auto versions() { return stochastic_rounding_versions<X>(); }
    static std::vector<int64_t> small() { return {1, 63, 4099}; }
    static int64_t large() { return 124439808; }  // GPT-2 Small's parameters

    int64_t n;
    DeviceArray<float> master;
    DeviceArray<X> copy;

    explicit StochasticRoundingProblem(int64_t count) : n(count), master(normal_values(n, 1)), copy(n) {}
    std::string name() const { return label<X>(n); }
    double bytes() const { return static_cast<double>(sizeof(float) + sizeof(X)) * static_cast<double>(n); }
    void prepare() const {}
    void run(StochasticRounding<X> f) const { f(copy.data(), master.data(), n, kKey, nullptr); }

    // The bf16 towards zero, or the one behind it if a number in [0,1) falls below the share of the way to that.
    static float rounded_by(float value, double number) {
        uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof bits);
        const uint32_t towards_zero = bits & 0xffff0000u, beyond = towards_zero + 0x10000u;
        float a = 0, b = 0;
        std::memcpy(&a, &towards_zero, sizeof a);
        std::memcpy(&b, &beyond, sizeof b);
        const double share = static_cast<double>(value - a) / (static_cast<double>(b) - static_cast<double>(a));
        return number + share >= 1 ? b : a;
    }
    double worst() const {
        Floats expected = master.host();
        SplitMix64 random(kKey);
        for (float& value : expected) {
            const double number = static_cast<double>(random.next() >> 32 & 0xffff) / 65536;
            if (sizeof(X) == 2) value = rounded_by(value, number);
        }
        return worst_error(floats(copy.host()), expected, 1e-30);
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::StochasticRoundingProblem<float>, lab::StochasticRoundingProblem<bf16>>(
        argc, argv, "stochastic_rounding");
}
