// The laboratory of biases and their gradients:  make dev/cuda/columns && dev/cuda/columns [VERSION]
#include "columns.h"

namespace lnfree::cuda::lab {

struct ColumnShape {
    int64_t N, M;
};
// Rows that fit no warp and no round; columns that fit no vector and no tile.
inline std::vector<ColumnShape> small_column_shapes() {
    return {{1, 1}, {7, 3}, {33, 17}, {70, 264}, {3, 1600}, {1061, 72}};
}
// The MLP's inner activations of GPT-2 Small.
inline ColumnShape large_column_shape() {
    return {16 * 1024, 3072};
}

template <class X>
struct ColumnOperands {
    int64_t N, M;
    DeviceArray<X> values, inp, bias;
    DeviceArray<float> sums, scratch;

    explicit ColumnOperands(const ColumnShape& s)
        : N(s.N),
          M(s.M),
          values(N * M),
          inp(rounded<X>(normal_values(N * M, 1, 2))),
          bias(rounded<X>(normal_values(M, 2))),
          sums(M),
          scratch(column_sums_scratch(N, M)) {}
    static std::vector<ColumnShape> small() { return small_column_shapes(); }
    static ColumnShape large() { return large_column_shape(); }
    Floats values_before() const { return floats(rounded<X>(normal_values(N * M, 3))); }
    Floats sums_before() const { return normal_values(M, 4); }
    void prepare() const {
        values.set(rounded<X>(values_before()));
        sums.set(sums_before());
    }
    std::string name(const char* what) const { return what + (" " + label<X>(N, M)); }
    // Of `arrays` arrays (N,M).
    double bytes(double arrays) const { return arrays * sizeof(X) * static_cast<double>(N * M); }
    // What is wrong with the sums if `rows` were to be summed.
    double worst_sums(const Floats& rows) const {
        Floats expected = sums_before();
        operations().bias_backward(expected.data(), rows.data(), N, M, M);
        return worst_error(sums.host(), expected, 1e-5, 10);
    }
    Floats with_bias() const {
        Floats expected = values_before();
        const Floats add = floats(bias.host());
        for (size_t i = 0; i < expected.size(); i++) expected[i] += add[i % static_cast<size_t>(M)];
        return expected;
    }
};

template <class X>
struct ColumnSumsProblem : ColumnOperands<X> {
    using ColumnOperands<X>::ColumnOperands;
    static auto versions() { return column_sums_versions<X>(); }
    std::string name() const { return ColumnOperands<X>::name("sums"); }
    double bytes() const { return ColumnOperands<X>::bytes(1); }
    void run(ColumnSums<X> f) const {
        f(this->sums.data(), this->scratch.data(), this->values.data(), this->N, this->M, nullptr);
    }
    double worst() const { return this->worst_sums(this->values_before()); }
};

template <class X>
struct GeluBackwardBiasProblem : ColumnOperands<X> {
    using ColumnOperands<X>::ColumnOperands;
    static auto versions() { return gelu_backward_bias_versions<X>(); }
    std::string name() const { return ColumnOperands<X>::name("GELU's gradient"); }
    double bytes() const { return ColumnOperands<X>::bytes(3); }
    void run(GeluBackwardBias<X> f) const {
        f(this->values.data(), this->sums.data(), this->scratch.data(), this->inp.data(), this->N, this->M, nullptr);
    }
    // The sums are those of what was stored.
    double worst() const {
        const Floats dout = this->values_before();
        Floats expected(dout.size());
        operations().gelu_backward(expected.data(), dout.data(), floats(this->inp.host()).data(), this->N * this->M);
        return std::max(worst_rounded_error(this->values.host(), expected, 1e-5, 0.5),
                        this->worst_sums(floats(this->values.host())));
    }
};

template <class X>
struct AddBiasProblem : ColumnOperands<X> {
    using ColumnOperands<X>::ColumnOperands;
    static auto versions() { return add_bias_versions<X>(); }
    std::string name() const { return ColumnOperands<X>::name("bias"); }
    double bytes() const { return ColumnOperands<X>::bytes(2); }
    void run(AddBias<X> f) const { f(this->values.data(), this->bias.data(), this->N, this->M, nullptr); }
    double worst() const { return worst_rounded_error(this->values.host(), this->with_bias(), 1e-6); }
};

template <class X>
struct BiasGeluProblem : ColumnOperands<X> {
    DeviceArray<X> hidden;
    explicit BiasGeluProblem(const ColumnShape& s) : ColumnOperands<X>(s), hidden(s.N * s.M) {}
    static auto versions() { return bias_gelu_versions<X>(); }
    std::string name() const { return ColumnOperands<X>::name("bias, GELU"); }
    double bytes() const { return ColumnOperands<X>::bytes(3); }
    void run(BiasGelu<X> f) const {
        f(hidden.data(), this->values.data(), this->bias.data(), this->N, this->M, nullptr);
    }
    // GELU is of what was stored.
    double worst() const {
        Floats expected(static_cast<size_t>(this->N * this->M));
        operations().gelu_forward(expected.data(), floats(this->values.host()).data(), this->N * this->M);
        return std::max(worst_rounded_error(this->values.host(), this->with_bias(), 1e-6),
                        worst_rounded_error(hidden.host(), expected, 1e-5, 0.1));
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    using namespace lnfree::cuda::lab;
    return laboratory_main<ColumnSumsProblem<float>, ColumnSumsProblem<bf16>, GeluBackwardBiasProblem<float>,
                           GeluBackwardBiasProblem<bf16>, AddBiasProblem<float>, AddBiasProblem<bf16>,
                           BiasGeluProblem<float>, BiasGeluProblem<bf16>>(argc, argv, "columns");
}
