// The laboratory of causal self-attention, backward:
//   make dev/cuda/attention_backward && dev/cuda/attention_backward [VERSION]
//
// What bounds it is arithmetic and not memory: the GFLOP in the problem's name over the time are its FLOP/s. They are
// counted as five products against forward's two; versions that make some product twice do so at their own cost.
#include "attention_backward.h"

namespace lnfree::cuda::lab {

template <class X>
struct AttentionBackwardProblem {
    using Sizes = attention_check::Sizes;
    static constexpr bool is_bf16 = std::is_same_v<X, bf16>;

    static auto versions() { return attention_backward_versions<X>(); }
    static std::vector<Sizes> small() { return attention_check::odd_sizes<X>(); }
    static Sizes large() { return attention_check::gpt2_small; }

    Sizes s;
    attention_check::Problem<X> problem;
    DeviceArray<X> qkv, dout, out, dqkv;
    DeviceArray<float> lse, delta;

    // out and lse are the engine's.
    explicit AttentionBackwardProblem(const Sizes& sizes)
        : s(sizes),
          problem(s, 2, 1),
          qkv(rounded<X>(problem.qkv)),
          dout(rounded<X>(problem.dout)),
          out(dout.size()),
          dqkv(qkv.size()),
          lse(s.B * s.NH * s.T),
          delta(lse.size()) {
        attention_forward(out.data(), lse.data(), qkv.data(), s.B, s.T, s.heads(), nullptr);
    }
    std::string name() const { return attention_check::name<X>(s, 2.5 * attention_check::forward_flops(s)); }
    double bytes() const { return static_cast<double>(sizeof(X) * 2 * (problem.qkv.size() + problem.dout.size())); }
    void prepare() const {}
    void run(attention_check::Backward<X> f) const {
        f(dqkv.data(), delta.data(), dout.data(), qkv.data(), out.data(), lse.data(), s.B, s.T, s.heads(), nullptr);
    }
    double worst() const {
        using attention_check::Rounds;
        const attention_check::BackwardAnswer answer = answer_backward(problem, floats(out.host()), lse.host());
        return attention_check::worst_error(floats(dqkv.host()), answer.dqkv, answer.terms,
                                            is_bf16 ? Rounds::weights_too : Rounds::nothing);
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::AttentionBackwardProblem<float>, lab::AttentionBackwardProblem<bf16>>(
        argc, argv, "attention_backward");
}
