// The laboratory of the classifier:  make dev/cuda/classifier && dev/cuda/classifier [VERSION]
#include "classifier.h"

namespace lnfree::cuda::lab {

template <class X>
struct ClassifierProblem {
    struct Shape {
        int64_t rows, V, Vp;
    };
    static constexpr float kScale = 0.37f;
    static auto versions() { return classifier_versions<X>(); }
    static std::vector<Shape> small() {
        return {{3, 1, 1}, {5, 7, 7}, {3, 257, 264}, {3, 1000, 1001}, {2, 5003, 5120}};
    }
    static Shape large() { return {2048, 50257, 50304}; }

    Shape s;
    std::vector<int32_t> targets;
    std::vector<X> before;
    DeviceArray<X> logits;
    DeviceArray<int32_t> device_targets;
    DeviceArray<float> losses;

    explicit ClassifierProblem(const Shape& shape)
        : s(shape),
          targets(made_up_tokens(s.rows, s.V)),
          before(rounded<X>(normal_values(s.rows * s.Vp, 1, 3))),
          logits(s.rows * s.Vp),
          device_targets(targets),
          losses(s.rows) {}
    std::string name() const { return label<X>(s.rows, s.V); }
    // Logits read, gradients written.
    double bytes() const { return 2.0 * sizeof(X) * static_cast<double>(logits.size()); }
    void prepare() const { logits.set(before); }
    void run(ClassifierFunction<X> f) const {
        f(logits.data(), losses.data(), device_targets.data(), kScale, true, s.rows, s.V, s.Vp, nullptr);
    }
    double worst() const {
        std::vector<float> expected(static_cast<size_t>(s.rows * s.V)),
            padded(static_cast<size_t>(s.rows * s.Vp), 0.0f), expected_losses(static_cast<size_t>(s.rows));
        const std::vector<float> z = floats(before);
        for (int64_t r = 0; r < s.rows; r++) std::copy_n(z.data() + r * s.Vp, s.V, expected.data() + r * s.V);
        operations().softmax_cross_entropy(expected_losses.data(), expected.data(), targets.data(), kScale, true,
                                           s.rows, s.V);
        for (int64_t r = 0; r < s.rows; r++) std::copy_n(expected.data() + r * s.V, s.V, padded.data() + r * s.Vp);
        return std::max(worst_error(losses.host(), expected_losses, 1e-5),
                        worst_rounded_error(logits.host(), padded, 1e-5, 1e-2));
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::ClassifierProblem<float>, lab::ClassifierProblem<bf16>>(argc, argv, "classifier");
}
