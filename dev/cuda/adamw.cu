// The laboratory of AdamW:  make dev/cuda/adamw && dev/cuda/adamw [VERSION]
#include <algorithm>
#include <memory>
#include <vector>

#include "adamw.h"

namespace lnfree::cuda::lab {

struct AdamWProblem {
    typedef ModelConfig Shape;
    static auto versions() { return adamw_versions<bf16>(); }
    static ModelConfig config(int64_t L, int64_t C, int64_t V, int64_t n_ctx) {
        ModelConfig c;
        c.L = L;
        c.NH = 1;
        c.C = C;
        c.V = V;
        c.n_ctx = n_ctx;
        c.n_inner = 4 * C;
        return c;
    }
    static std::vector<ModelConfig> small() { return {config(1, 3, 7, 5), config(2, 16, 257, 9)}; }
    static ModelConfig large() { return config(12, 768, 50257, 1024); }

    ModelConfig shape;
    std::vector<Tensor> tensors;
    int64_t n;
    std::vector<TensorRange> ranges;
    DeviceArray<float> master, grad, m, v;
    DeviceArray<bf16> copy;
    DeviceArray<TensorRange> device_ranges;
    DeviceArray<GradientNorm> norm;

    explicit AdamWProblem(const ModelConfig& c)
        : shape(c),
          tensors(tensor_table(c)),
          n(parameter_count(tensors)),
          ranges(ranges_of(tensors)),
          master(n),
          grad(n),
          m(n),
          v(n),
          copy(n),
          device_ranges(ranges),
          norm(std::vector<GradientNorm>{{2, 0.5f}}) {}
    static std::vector<TensorRange> ranges_of(const std::vector<Tensor>& tensors) {
        std::vector<TensorRange> ranges;
        for (const Tensor& t : tensors) ranges.push_back({t.offset, t.size, t.decay});
        return ranges;
    }
    std::string name() const { return label<bf16>(n); }
    // Weights, gradients and both moments read and written, the copy written.
    double bytes() const { return (8 * sizeof(float) + sizeof(bf16)) * static_cast<double>(n); }
    void prepare() const {
        master.set(normal_values(n, 1));
        grad.set(normal_values(n, 2));
        m.set(normal_values(n, 3, 0.1));
        v.set(positive_values());
    }
    std::vector<float> positive_values() const {
        std::vector<float> values = normal_values(n, 4, 0.1);
        for (float& value : values) value *= value;
        return values;
    }
    static constexpr int64_t kUpdates = 3;
    static AdamWStep step() {
        AdamWStep s;
        s.lr = 1e-2;
        s.gradient_scale = 0.5;  // as in `norm`
        return s;
    }
    void run(AdamWFunction<bf16> f) const {
        f({master.data(), grad.data(), m.data(), v.data(), copy.data(), norm.data(), device_ranges.data(), &ranges, n,
           adamw_constants(step(), kUpdates)},
          nullptr);
    }
    double worst() const {
        const std::unique_ptr<Engine> model = make_reference(shape);
        model->prepare_training();
        model->prepare_optimiser();
        const auto fill = [](Buffer& buffer, const Floats& values) {
            std::copy(values.begin(), values.end(), buffer.data());
        };
        fill(model->params, normal_values(n, 1));
        fill(model->grads, normal_values(n, 2));
        fill(model->m, normal_values(n, 3, 0.1));
        fill(model->v, positive_values());
        model->updates = kUpdates - 1;
        model->update(step());
        const auto off = [&](const DeviceArray<float>& got, const Buffer& expected) {
            return worst_error(got.host(), Floats(expected.data(), expected.data() + n), 1e-6);
        };
        return std::max({off(master, model->params), off(m, model->m), off(v, model->v),
                         worst_error(floats(copy.host()), floats(rounded<bf16>(master.host())), 1e-30),
                         worst_error(grad.host(), Floats(static_cast<size_t>(n), 0.0f), 1e-30)});
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    return lnfree::cuda::lab::laboratory_main<lnfree::cuda::lab::AdamWProblem>(argc, argv, "adamw");
}
