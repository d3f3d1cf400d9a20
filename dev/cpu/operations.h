// The operations of train_gpt2_lnfree.cpp (section 2: explained there, beside the code) as one table of plain
// functions. A program may hold them compiled for several instruction sets; dev/cpu/dispatch.cpp then takes the best
// that the processor runs. All matrices are row-major; "adds" means to what is there.
#pragma once

#include <cstdint>
#include <vector>

#include "../engine.h"
#include "../processes.h"
#include "matmul_types.h"

namespace lnfree {

// What the auxiliary loss is at a norm's input, for its backward pass.
struct AuxLoss {
    double loss = 0;
    double sigma_hat = 0;    // the target of all positions but position 0
    double target_at_0 = 0;  // sigma_hat, but for experiments (AuxSettings)
    double weight = 0;       // what multiplies the squares: lambda, or lambda / sigma_hat^2
    bool active = false;     // false when lambda is 0 or when every position is excluded from sigma_hat

    double target(int64_t t) const { return t == 0 ? target_at_0 : sigma_hat; }
};

// AdamW's numbers for one tensor.
struct AdamWNumbers {
    real b1, b2, one_minus_b1, one_minus_b2, eps;
    real step, root2;  // lr / (1 - b1^t), 1 / sqrt(1 - b2^t)
    real keep;         // 1 - lr * weight decay
    real scale;        // of the gradient: clipping
};

// The heads of an attention: NH of queries, KH of keys and of values, each serving NH / KH of the queries', all of HS numbers.
// They lie side by side in a row of qkv: queries, keys, values.
struct Heads {
    int64_t NH, KH, HS;
    int64_t width() const { return NH * HS; }           // of what attention makes: C in a GPT-2
    int64_t row() const { return (NH + 2 * KH) * HS; }  // of qkv: 3C in a GPT-2
};

// Gradients are squared and summed in blocks of so many.
constexpr int64_t kNormBlock = kFlatBlock;

struct Operations {
    const char* isa;  // as the Makefile calls it

    // out (B,T,C), tokens (B,T), wte (V,C), wpe (n_ctx,C) or null
    void (*encoder_forward)(real* out, const int32_t* tokens, const real* wte, const real* wpe, int64_t B, int64_t T,
                            int64_t C);
    void (*encoder_backward)(real* dwte, real* dwpe, const real* dout, const int32_t* tokens, int64_t B, int64_t T,
                             int64_t C);
    // mean, sigma (N), inp (N,C)
    void (*moments_forward)(real* mean, real* sigma, const real* inp, double eps, bool centred, int64_t N, int64_t C);
    // divisor, sigma (B,T), tokens (B,T)
    void (*norm_divisors)(real* divisor, const Site& site, const real* sigma, const int32_t* tokens,
                          int32_t end_of_text, int64_t B, int64_t T);
    // out, inp (N,C), mean, divisor (N), gamma, beta (C), which may be null
    void (*norm_forward)(real* out, const real* inp, const real* mean, const real* divisor, const real* gamma,
                         const real* beta, int64_t N, int64_t C);
    // adds to dinp (N,C), dgamma, dbeta (C) unless null; of `site` what norm it is, how far it has gone, and which way
    void (*norm_backward)(real* dinp, real* dgamma, real* dbeta, const real* dout, const real* inp, const real* gamma,
                          const real* mean, const real* sigma, const real* divisor, const Site& site, int64_t N,
                          int64_t C);
    // sigma, tokens (B,T)
    AuxLoss (*aux_loss_forward)(const real* sigma, const int32_t* tokens, int32_t end_of_text,
                                const AuxSettings& settings, int64_t B, int64_t T);
    // adds to dinp (B,T,C)
    void (*aux_loss_backward)(real* dinp, const AuxLoss& aux, const real* inp, const real* mean, const real* sigma,
                              double scale, int64_t B, int64_t T, int64_t C);
    // C (M,N) = op(A) (M,K) op(B) (K,N) [+ C if accumulate] [+ bias (N) to every row]
    void (*matmul)(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const real* A, int64_t lda,
                   const real* B, int64_t ldb, real* C, int64_t ldc, bool accumulate, const real* bias);
    // out (N,M), inp (N,K), weight (K,M), bias (M) or null; rows of weight and out are `stride` apart
    void (*matmul_forward)(real* out, const real* inp, const real* weight, const real* bias, int64_t N, int64_t K,
                           int64_t M, int64_t stride);
    // dinp (N,K) is overwritten; adds to dweight (K,M), dbias (M) unless null
    void (*matmul_backward)(real* dinp, real* dweight, real* dbias, const real* dout, const real* inp,
                            const real* weight, int64_t N, int64_t K, int64_t M, int64_t stride);
    // adds the N rows of dout (N,M), `stride` apart, to dbias (M)
    void (*bias_backward)(real* dbias, const real* dout, int64_t N, int64_t M, int64_t stride);
    // out (B,T-first,A), lse (B,NH,T-first), qkv (B,capacity,Q), A and Q the heads' width and row: positions first..T-1 look
    // at 0..T-1
    void (*attention_forward)(real* out, real* lse, const real* qkv, int64_t B, int64_t T, const Heads& heads,
                              int64_t first, int64_t capacity);
    // dqkv (B,T,Q) is overwritten
    void (*attention_backward)(real* dqkv, const real* dout, const real* qkv, const real* out, const real* lse,
                               int64_t B, int64_t T, const Heads& heads);
    // turns the queries and keys of qkv (B,T,Q) in place; turns (T,R/2,2): cosine and sine of each pair's angle
    void (*rotary_forward)(real* qkv, const real* turns, int64_t B, int64_t T, const Heads& heads, int64_t R);
    void (*rotary_backward)(real* dqkv, const real* turns, int64_t B, int64_t T, const Heads& heads, int64_t R);
    void (*gelu_forward)(real* out, const real* inp, int64_t n);
    // dinp is overwritten, and may be dout itself
    void (*gelu_backward)(real* dinp, const real* dout, const real* inp, int64_t n);
    void (*gelu_erf_forward)(real* out, const real* inp, int64_t n);
    void (*gelu_erf_backward)(real* dinp, const real* dout, const real* inp, int64_t n);
    // out (N,H), inp (N,2H); dinp (N,2H) is overwritten
    void (*gated_silu_forward)(real* out, const real* inp, int64_t N, int64_t H);
    void (*gated_silu_backward)(real* dinp, const real* dout, const real* inp, int64_t N, int64_t H);
    void (*residual_forward)(real* out, const real* stream, const real* branch, int64_t n);
    // losses (rows), logits (rows,V), which become their gradients times scale if asked, targets (rows)
    void (*softmax_cross_entropy)(real* losses, real* logits, const int32_t* targets, double scale, bool with_gradient,
                                  int64_t rows, int64_t V);
    // losses, kls (rows), logits (rows,V), which become their gradients times scale unless that is 0, teacher_logits (rows,V),
    // which are used up, targets (rows), share of the teacher
    void (*softmax_distillation)(real* losses, real* kls, real* logits, real* teacher_logits, const int32_t* targets,
                                 double share, double scale, int64_t rows, int64_t V);
    // likeliest (rows), logits (rows,V), targets (rows)
    void (*is_likeliest)(uint8_t* likeliest, const real* logits, const int32_t* targets, int64_t rows, int64_t V);
    // same (rows), a, b (rows,V)
    void (*same_likeliest)(uint8_t* same, const real* a, const real* b, int64_t rows, int64_t V);

    // partial (ceil(n / kNormBlock)): sums of squares of blocks of the gradient
    void (*sum_squares)(double* partial, const real* grads, int64_t n);
    // grads become 0
    void (*adamw)(real* w, real* m, real* v, real* grads, const AdamWNumbers& numbers, int64_t n);
    void (*zero)(real* x, int64_t n);

    // What the processor can do at the most (peak.h): floating-point operations of the calling thread in so many rounds of
    // multiply-adds; a (n) += factor * b (n), `times` times, by all threads.
    double (*multiply_adds)(int64_t rounds);
    void (*triad)(real* a, const real* b, real factor, int64_t n, int64_t times);

    // What the operands of every product of floats are rounded to from now on.
    void (*use_bf16)(bool on);
};

// Cosine and sine of the angles by which a model's rotary positions turn, (n_ctx,R/2,2); nothing where they are learned.
std::vector<real> rotary_turns(const ModelConfig& c);

// Those that this program uses. Throws BadInput if LNFREE_ISA asks for an instruction set that it, or the processor, has
// not.
const Operations& operations();

}  // namespace lnfree
