// The laboratory of distillation and of likeliest tokens:  make dev/cuda/distillation && dev/cuda/distillation [VERSION]
#include "distillation.h"

namespace lnfree::cuda::lab {

struct LogitsShape {
    int64_t rows, V, Vp;
};
inline std::vector<LogitsShape> small_logits_shapes() {
    return {{3, 1, 1}, {5, 7, 7}, {33, 257, 264}, {3, 1000, 1001}, {2, 5003, 5120}};
}
inline LogitsShape large_logits_shape() {
    return {2048, 50257, 50304};
}

// The logits of a model and of its teacher, which is near it.
template <class X>
struct TwoLogits {
    LogitsShape s;
    std::vector<X> before;
    DeviceArray<X> logits, teacher;

    explicit TwoLogits(const LogitsShape& shape)
        : s(shape), before(rounded<X>(normal_values(s.rows * s.Vp, 1, 3))), logits(before), teacher(near(before)) {}
    static std::vector<X> near(const std::vector<X>& values) {
        Floats off = normal_values(static_cast<int64_t>(values.size()), 2, 0.5);
        for (size_t i = 0; i < values.size(); i++) off[i] += to_float(values[i]);
        return rounded<X>(off);
    }
    std::string name(const char* what) const { return what + (" " + label<X>(s.rows, s.V)); }
    // Of `arrays` arrays (rows,V).
    double bytes(double arrays) const { return arrays * sizeof(X) * static_cast<double>(s.rows * s.V); }
    Floats without_padding(const Floats& padded) const {
        Floats values;
        for (int64_t r = 0; r < s.rows; r++)
            values.insert(values.end(), padded.begin() + r * s.Vp, padded.begin() + r * s.Vp + s.V);
        return values;
    }
};

template <class X>
struct DistillationProblem : TwoLogits<X> {
    static constexpr float kScale = 0.37f, kShare = 0.4f;
    static auto versions() { return distillation_versions<X>(); }
    static std::vector<LogitsShape> small() { return small_logits_shapes(); }
    static LogitsShape large() { return large_logits_shape(); }

    std::vector<int32_t> targets;
    DeviceArray<int32_t> device_targets;
    DeviceArray<float> losses, kls;

    explicit DistillationProblem(const LogitsShape& shape)
        : TwoLogits<X>(shape),
          targets(made_up_tokens(shape.rows, shape.V)),
          device_targets(targets),
          losses(shape.rows),
          kls(shape.rows) {}
    std::string name() const { return TwoLogits<X>::name("distillation"); }
    // Both logits read, gradients written.
    double bytes() const { return TwoLogits<X>::bytes(3); }
    void prepare() const { this->logits.set(this->before); }
    void run(DistillationFunction<X> f) const {
        f(this->logits.data(), losses.data(), kls.data(), this->teacher.data(), device_targets.data(), kShare, kScale,
          true, this->s.rows, this->s.V, this->s.Vp, nullptr);
    }
    double worst() const {
        const LogitsShape& s = this->s;
        Floats expected = this->without_padding(floats(this->before)),
               theirs = this->without_padding(floats(this->teacher.host())),
               expected_losses(static_cast<size_t>(s.rows)), expected_kls(expected_losses.size()),
               padded(static_cast<size_t>(s.rows * s.Vp), 0.0f);
        operations().softmax_distillation(expected_losses.data(), expected_kls.data(), expected.data(), theirs.data(),
                                          targets.data(), static_cast<double>(kShare), static_cast<double>(kScale),
                                          s.rows, s.V);
        for (int64_t r = 0; r < s.rows; r++) std::copy_n(expected.data() + r * s.V, s.V, padded.data() + r * s.Vp);
        return std::max({worst_error(losses.host(), expected_losses, 1e-5), worst_error(kls.host(), expected_kls, 1e-5),
                         worst_rounded_error(this->logits.host(), padded, 1e-5, 1e-2)});
    }
};

template <class X>
struct SameLikeliestProblem : TwoLogits<X> {
    static auto versions() { return same_likeliest_versions<X>(); }
    static std::vector<LogitsShape> small() { return small_logits_shapes(); }
    static LogitsShape large() { return large_logits_shape(); }

    DeviceArray<uint8_t> same;

    explicit SameLikeliestProblem(const LogitsShape& shape) : TwoLogits<X>(shape), same(shape.rows) {}
    std::string name() const { return TwoLogits<X>::name("likeliest"); }
    double bytes() const { return TwoLogits<X>::bytes(2); }
    // Rows with two likeliest tokens, which made-up logits seldom have, and a teacher who has the first, the second or both.
    std::vector<X> with_equals(const std::vector<X>& values, bool of_teacher) const {
        std::vector<X> out = values;
        for (int64_t r = 0; r < this->s.rows; r += 2) {
            X* row = out.data() + r * this->s.Vp;
            if (!of_teacher || r % 6 != 2) row[this->s.V / 3] = from_float<X>(50);
            if (!of_teacher || r % 6 != 0) row[this->s.V - 1] = from_float<X>(50);
        }
        return out;
    }
    void prepare() const {
        this->logits.set(with_equals(this->before, false));
        this->teacher.set(with_equals(TwoLogits<X>::near(this->before), true));
        same.set(std::vector<uint8_t>(static_cast<size_t>(this->s.rows), 7));
    }
    void run(SameLikeliest<X> f) const {
        f(same.data(), this->logits.data(), this->teacher.data(), this->s.rows, this->s.V, this->s.Vp, nullptr);
    }
    double worst() const {
        std::vector<uint8_t> expected(static_cast<size_t>(this->s.rows));
        operations().same_likeliest(expected.data(), this->without_padding(floats(this->logits.host())).data(),
                                    this->without_padding(floats(this->teacher.host())).data(), this->s.rows,
                                    this->s.V);
        return same.host() == expected ? 0 : INFINITY;
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    using namespace lnfree::cuda::lab;
    return laboratory_main<DistillationProblem<float>, DistillationProblem<bf16>, SameLikeliestProblem<float>,
                           SameLikeliestProblem<bf16>>(argc, argv, "distillation");
}
