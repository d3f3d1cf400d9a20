// The laboratory of rotary positions:  make dev/cuda/rotary && dev/cuda/rotary [VERSION]
#include "rotary.h"

namespace lnfree::cuda::lab {

template <class X>
struct RotaryProblem {
    struct Shape {
        int64_t B, T;
        Heads heads;
        int64_t R;
    };
    static auto versions() { return rotary_versions<X>(); }
    // Heads that fit no vector, some of whose numbers stay; Pythia's; shared keys.
    static std::vector<Shape> small() { return {{2, 3, {3, 3, 5}, 2}, {1, 7, {2, 2, 64}, 16}, {3, 5, {6, 2, 32}, 32}}; }
    // A micro-batch of SmolLM2-135M: 9 heads of queries, 3 of keys, all their 64 numbers turn.
    static Shape large() { return {8, 2048, {9, 3, 64}, 64}; }

    Shape s;
    std::vector<float> turns;
    DeviceArray<float> device_turns;
    DeviceArray<X> qkv;

    explicit RotaryProblem(const Shape& shape)
        : s(shape), turns(made_up_turns(s)), device_turns(turns), qkv(s.B * s.T * s.heads.row()) {}
    static std::vector<float> made_up_turns(const Shape& s) {
        ModelConfig c;
        c.n_ctx = s.T;
        c.rotary = s.R;
        return rotary_turns(c);
    }
    std::string name() const { return label<X>(s.B, s.T, s.heads.row()); }
    // What turns, read and written, and a position's angles once.
    double bytes() const {
        const int64_t turning = s.B * s.T * (s.heads.NH + s.heads.KH) * s.R;
        return 2.0 * sizeof(X) * static_cast<double>(turning) + 4.0 * static_cast<double>(s.T * s.R);
    }
    void prepare() const { qkv.set(before()); }
    std::vector<X> before() const { return rounded<X>(normal_values(qkv.size(), 1)); }
    void run(Rotary<X> f) const { f(qkv.data(), device_turns.data(), s.B, s.T, s.heads, s.R, 1, nullptr); }
    double worst() const {
        std::vector<float> expected = floats(before());
        operations().rotary_forward(expected.data(), turns.data(), s.B, s.T, s.heads, s.R);
        return worst_rounded_error(qkv.host(), expected, 1e-5);
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::RotaryProblem<float>, lab::RotaryProblem<bf16>>(argc, argv, "rotary");
}
