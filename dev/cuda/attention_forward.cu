// The laboratory of causal self-attention, forward:
//   make dev/cuda/attention_forward && dev/cuda/attention_forward [VERSION]
//
// What bounds it is arithmetic and not memory: the GFLOP in the problem's name over the time are its FLOP/s.
#include "attention_forward.h"

namespace lnfree::cuda::lab {

template <class X>
struct AttentionForwardProblem {
    using Sizes = attention_check::Sizes;
    static constexpr bool is_bf16 = std::is_same_v<X, bf16>;

    static auto versions() { return attention_forward_versions<X>(); }
    static std::vector<Sizes> small() { return attention_check::odd_sizes<X>(); }
    static Sizes large() { return attention_check::gpt2_small; }

    Sizes s;
    attention_check::Problem<X> problem;
    DeviceArray<X> qkv, out;
    DeviceArray<float> lse;

    explicit AttentionForwardProblem(const Sizes& sizes)
        : s(sizes), problem(s, 2, 1), qkv(rounded<X>(problem.qkv)), out(s.B * s.T * s.C()), lse(s.B * s.NH * s.T) {}
    std::string name() const { return attention_check::name<X>(s, attention_check::forward_flops(s)); }
    double bytes() const { return static_cast<double>(sizeof(X) * (problem.qkv.size() + problem.dout.size())); }
    void prepare() const {}
    void run(attention_check::Forward<X> f) const {
        f(out.data(), lse.data(), qkv.data(), s.B, s.T, s.heads(), nullptr);
    }
    double worst() const {
        using attention_check::Rounds;
        const attention_check::ForwardAnswer answer = answer_forward(problem);
        return std::max(attention_check::worst_error(floats(out.host()), answer.out, answer.terms,
                                                     is_bf16 ? Rounds::weights_too : Rounds::nothing),
                        attention_check::worst_error(lse.host(), answer.lse, {}, Rounds::nothing));
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::AttentionForwardProblem<float>, lab::AttentionForwardProblem<bf16>>(
        argc, argv, "attention_forward");
}
