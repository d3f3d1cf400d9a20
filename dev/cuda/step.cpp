#include "dev/cuda/step.h"

#include <initializer_list>

#include "data/error.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/engine.h"

namespace lnfree::cuda {
namespace {

constexpr double kBf16 = 2, kFloat = 4;  // bytes

std::string shape_text(std::initializer_list<int64_t> sizes) {
    std::string text;
    for (const int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
    return text;
}

double product_of(std::initializer_list<int64_t> sizes) {
    double product = 1;
    for (const int64_t size : sizes) product *= static_cast<double>(size);
    return product;
}

class Step {
  public:
    std::vector<StepOperation> list;

    explicit Step(const StepOptions& o)
        : o_(o), c_(o.config), N_(o.batch * o.seq), NC_(product_of({N_, c_.C})), NH_(product_of({N_, c_.n_inner})) {
        if (o.recompute < 0 || o.recompute > 2)
            throw BadInput("recompute " + std::to_string(o.recompute) + ": use 0, 1 or 2");
        begin("begin");
        copy("tokens and targets", {"copy to device", "copy to device", "memset"}, 2 * kFloat * N());
        if (o.distill) copy("teacher's tokens", {"copy to device", "memset"}, kFloat * N());
        if (o.distill) forward("teacher", StepPhase::layer_norm);
        forward("forward", o.phase);
        add_losses();
        backward();
        add_end_of_micro_batch();
        add_update();
    }

  private:
    const StepOptions& o_;
    const ModelConfig& c_;
    int64_t N_;
    double NC_, NH_;
    std::string part_;

    double N() const { return static_cast<double>(N_); }
    void begin(const char* part) { part_ = part; }

    void add(const std::string& name, std::vector<std::string> launches, std::string shape, int64_t calls, double bytes,
             double flops = 0) {
        if (calls > 0) list.push_back({part_, name, std::move(launches), std::move(shape), calls, bytes, flops});
    }
    void copy(const std::string& name, std::vector<std::string> launches, double bytes) {
        add(name, std::move(launches), "", 1, bytes);
    }

    // ----- products

    // (M,O) = (M,K) (K,O), each once; `more`: bytes besides
    void product(const std::string& name, int64_t M, int64_t O, int64_t K, double more = 0, bool with_bias = false) {
        std::vector<std::string> launches = {"product"};
        if (with_bias && !o_.fused_epilogues) launches.push_back("add_bias_kernel");
        const double values = product_of({M, K}) + product_of({K, O}) + product_of({M, O});
        add(name, std::move(launches), shape_text({M, O, K}), c_.L, kBf16 * values + more, 2 * product_of({M, O, K}));
    }
    // out (N,M) = inp (N,K) weight + bias
    void linear(const std::string& name, int64_t K, int64_t M, double more = 0) {
        product(name + ", forward", N_, M, K, more, true);
    }
    void dinput(const std::string& name, int64_t K, int64_t M) { product(name + ", d input", N_, K, M); }
    // Read and written in float, where `product` has counted a result in bf16.
    static double float_sums(int64_t n) { return (2 * kFloat - kBf16) * static_cast<double>(n); }
    void dweight(const std::string& name, int64_t K, int64_t M) {
        product(name + ", d weight", K, M, N_, float_sums(K * M));
    }
    void dbias(const std::string& name, int64_t M) {
        add(name + ", d bias", {"column_sums_kernel", "add_partial_sums_kernel"}, shape_text({N_, M}), c_.L,
            kBf16 * product_of({N_, M}));
    }

    // ----- norms

    static bool is_apart(StepPhase phase) { return phase == StepPhase::apart; }
    static std::string norm_name(bool is_removed) { return is_removed ? "FakeLN" : "LayerNorm"; }
    static std::string first_norm(StepPhase phase) {
        return is_apart(phase) ? "both norms" : norm_name(phase == StepPhase::removed);
    }
    static std::string mlp_norm(StepPhase phase) { return norm_name(phase != StepPhase::layer_norm); }
    static std::string final_norm(StepPhase phase) { return norm_name(phase == StepPhase::removed); }

    // `arrays` of (N,C) read or written
    void norm(const std::string& name, int64_t calls, int arrays) {
        add(name, {"residual_norm_kernel"}, shape_text({N_, c_.C}), calls, kBf16 * arrays * NC_);
    }
    void norm_backward(const std::string& name, int64_t calls, int arrays) {
        const bool in_rounds = c_.C % 8 == 0 && c_.C <= 2048;
        add(name + ", backward",
            {in_rounds ? "norm_backward_kernel" : "norm_backward_plain_kernel", "add_partial_sums_kernel"},
            shape_text({N_, c_.C}), calls, kBf16 * arrays * NC_);
    }

    // ----- attention

    std::string attention_kernel(const std::string& what) const {
        const int64_t HS = c_.C / c_.NH;
        const bool has_tensor_cores = HS == 32 || HS == 64 || HS == 96 || HS == 128;
        return what + (has_tensor_cores ? "_tensor_kernel" : "_plain_kernel");
    }
    // `products` of the causal half of a T x T square with C channels
    void attention(const std::string& name, std::vector<std::string> launches, int arrays, int products) {
        add(name, std::move(launches), shape_text({o_.batch, o_.seq, c_.C}), c_.L, kBf16 * arrays * NC_,
            products * product_of({o_.batch, c_.C, o_.seq, o_.seq + 1}));
    }

    // ----- the parts of a step

    // Rows of wte and wpe that the micro-batch reads.
    double embedding_rows() const {
        return static_cast<double>((o_.distinct_tokens < 0 ? std::min(N_, c_.V) : o_.distinct_tokens) + o_.seq);
    }

    void forward(const char* part, StepPhase phase) {
        const int64_t C = c_.C, H = c_.n_inner;
        const int more = is_apart(phase) ? 1 : 0;
        begin(part);
        add("encoder, forward", {"encoder_forward_kernel"}, shape_text({N_, C}), 1,
            kBf16 * (NC_ + embedding_rows() * static_cast<double>(C)));
        norm("first " + first_norm(phase) + ", forward", 1, 2 + more);
        if (is_apart(phase)) {
            linear("qk", C, 2 * C);
            linear("v", C, C);
        } else {
            linear("qkv", C, 3 * C);
        }
        attention("attention, forward", {attention_kernel("forward")}, 4, 2);
        linear("attention projection", C, C);
        norm("residual + " + mlp_norm(phase) + ", forward", c_.L, 4);
        linear("MLP up + GELU", C, H, kBf16 * NH_);
        linear("MLP down", H, C);
        norm("residual + " + first_norm(phase) + ", forward", c_.L - 1, 4 + more);
        norm("residual + " + final_norm(phase) + ", forward", 1, 4);
    }

    void add_losses() {
        begin("losses");
        add("sigma statistics", {"sigma_statistics_kernel"}, shape_text({2 * c_.L + 1, N_}), 1,
            kFloat * product_of({2 * c_.L + 1, N_}));
        add("auxiliary loss", {"aux_loss_kernel"}, shape_text({N_}), 1, 2 * kFloat * N());
        const int64_t rows = logits_rows(N_, c_.V, static_cast<int64_t>(kBf16));
        add_logits(rows, N_ / rows);
        add_logits(N_ % rows, 1);
        add("sum of losses", {"add_sum_kernel"}, shape_text({N_}), o_.distill ? 2 : 1, kFloat * N());
    }
    // `chunks` of so many rows
    void add_logits(int64_t rows, int64_t chunks) {
        if (rows == 0) return;
        const int64_t V = c_.V, C = c_.C;
        const double values = product_of({rows, V}) + product_of({V, C}) + product_of({rows, C}),
                     flops = 2 * product_of({rows, V, C}), logits = kBf16 * product_of({rows, V});
        const auto unembedding = [&](const char* name, std::string shape, double more) {
            add(name, {"product"}, std::move(shape), chunks, kBf16 * values + more, flops);
        };
        unembedding("unembedding, forward", shape_text({rows, V, C}), 0);
        if (o_.distill) unembedding("teacher's unembedding, forward", shape_text({rows, V, C}), 0);
        if (o_.distill)
            add("softmax, distillation", {"distillation_kernel"}, shape_text({rows, V}), chunks, 3 * logits);
        else
            add("softmax, cross-entropy", {"classifier_kernel"}, shape_text({rows, V}), chunks, 2 * logits);
        unembedding("unembedding, d input", shape_text({rows, C, V}), 0);
        unembedding("unembedding, d weight", shape_text({V, C, rows}), float_sums(V * C));
    }

    void backward() {
        begin("backward");
        norm_backward("final " + final_norm(o_.phase), 1, 3);  // dresidual is not read
        mlp_backward();
        attention_backward();
    }
    void mlp_backward() {
        const int64_t C = c_.C, H = c_.n_inner;
        if (o_.recompute >= 1) add("GELU, remade", {"map_kernel"}, shape_text({N_, H}), c_.L, kBf16 * 2 * NH_);
        dweight("MLP down", H, C);
        product("MLP down, d input + GELU", N_, H, C, kBf16 * NH_);
        dbias("MLP up", H);
        if (o_.recompute >= 2) norm(mlp_norm(o_.phase) + ", remade", c_.L, 2);
        dweight("MLP up", C, H);
        dinput("MLP up", C, H);
        norm_backward(mlp_norm(o_.phase), c_.L, 4);
    }
    void attention_backward() {
        const int64_t C = c_.C;
        const bool apart = is_apart(o_.phase);
        dweight("attention projection", C, C);
        dinput("attention projection", C, C);
        attention("attention, backward",
                  {"delta_kernel", attention_kernel("backward_keys"), attention_kernel("backward_queries")}, 8, 4);
        dbias("qkv", 3 * C);
        if (o_.recompute >= 2 || apart) norm(first_norm(o_.phase) + ", remade", c_.L, apart ? 3 : 2);
        if (apart) {
            dweight("qk", C, 2 * C);
            dweight("v", C, C);
            dinput("qk", C, 2 * C);
            dinput("v", C, C);
        } else {
            dweight("qkv", C, 3 * C);
            dinput("qkv", C, 3 * C);
        }
        norm_backward(first_norm(o_.phase), c_.L, apart ? 5 : 4);
    }

    void add_end_of_micro_batch() {
        copy("positions by token", {"copy to device"}, 5 * kFloat * N());  // and where each token's begin
        add("encoder, backward", {"sum_pieces_kernel", "sum_sequences_kernel", "sum_runs_kernel"},
            shape_text({N_, c_.C}), 1, kBf16 * NC_ + 2 * kFloat * embedding_rows() * static_cast<double>(c_.C));
        copy("losses and statistics", {"copy from device", "copy from device"}, 8 * static_cast<double>(4 * c_.L + 4));
    }

    void add_update() {
        begin("update");
        const int64_t n = parameter_count(tensor_table(c_));
        const double values = static_cast<double>(n);
        add("gradient norm", {"sum_of_squares_kernel", "finish_norm_kernel"}, shape_text({n}), 1, kFloat * values);
        copy("norm, and the factor of clipping", {"copy from device", "copy to device"}, 32);
        // Read: weights, gradients, moments; written: the same, the gradients as zeros, and the copy.
        add("AdamW", {"adamw_kernel"}, shape_text({n}), 1, (8 * kFloat + kBf16) * values);
    }
};

}  // namespace

std::vector<StepOperation> training_step(const StepOptions& o) {
    return Step(o).list;
}

}  // namespace lnfree::cuda
