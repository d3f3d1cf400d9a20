// The kernels of the CUDA engine, without the engine: sections 1 to 3 of train_gpt2_lnfree.cu.
//
// Compiling a kernel takes far longer than reading it. Programs that are one source file compile those that they call. The
// tests are many, so they link one object that holds all of them (test/cuda/emulated_engine.cu, which defines
// LNFREE_INSTANTIATE_KERNELS) and are compiled with -DLNFREE_EXTERN_KERNELS.
#pragma once

#ifndef LNFREE_KERNELS_ONLY
#define LNFREE_KERNELS_ONLY
#endif
#include "../../train_gpt2_lnfree.cu"

#if defined(LNFREE_INSTANTIATE_KERNELS) || defined(LNFREE_EXTERN_KERNELS)
namespace lnfree::cuda {

#ifdef LNFREE_INSTANTIATE_KERNELS
#define LNFREE_KERNEL template
#else
#define LNFREE_KERNEL extern template
#endif
#define LNFREE_KERNELS_FOR(X)                                                                                        \
    LNFREE_KERNEL void encoder_forward(X*, const int32_t*, const X*, const X*, int64_t, int64_t, int64_t,            \
                                       cudaStream_t);                                                                \
    LNFREE_KERNEL void encoder_backward(float*, float*, float*, const X*, const int32_t*, int64_t, int64_t, int64_t, \
                                        cudaStream_t);                                                               \
    LNFREE_KERNEL void residual_norm_forward(X*, X*, X*, float*, float*, const X*, const X*, const float*,           \
                                             const float*, const Divisor&, const Divisor&, float, int64_t, int64_t,  \
                                             cudaStream_t);                                                          \
    LNFREE_KERNEL void norm_forward(X*, X*, const X*, const float*, const float*, const float*, const float*,        \
                                    const Divisor&, const Divisor&, int64_t, int64_t, cudaStream_t);                 \
    LNFREE_KERNEL void norm_backward(X*, bool, float*, float*, float*, float*, const X*, const X*, const X*,         \
                                     const float*, const float*, const float*, const Divisor&, const Divisor&,       \
                                     const AuxTerm*, int64_t, int64_t, cudaStream_t);                                \
    LNFREE_KERNEL void gelu_forward(X*, const X*, int64_t, cudaStream_t);                                            \
    LNFREE_KERNEL void add_bias(X*, const X*, int64_t, int64_t, int64_t, cudaStream_t);                              \
    LNFREE_KERNEL void bias_gelu_forward(X*, X*, const X*, int64_t, int64_t, cudaStream_t);                          \
    LNFREE_KERNEL void column_sums(float*, float*, const X*, int64_t, int64_t, int64_t, cudaStream_t);               \
    LNFREE_KERNEL void gelu_backward_bias(X*, float*, float*, const X*, const X*, int64_t, int64_t, cudaStream_t);   \
    LNFREE_KERNEL void classifier(X*, float*, const int32_t*, float, bool, int64_t, int64_t, int64_t, cudaStream_t); \
    LNFREE_KERNEL void distillation(X*, float*, float*, const X*, const int32_t*, float, float, bool, int64_t,       \
                                    int64_t, int64_t, cudaStream_t);                                                 \
    LNFREE_KERNEL void same_likeliest(uint8_t*, const X*, const X*, int64_t, int64_t, int64_t, cudaStream_t);        \
    LNFREE_KERNEL void is_likeliest(uint8_t*, const X*, const int32_t*, int64_t, int64_t, int64_t, cudaStream_t);    \
    LNFREE_KERNEL void gather_rows(X*, const X*, const int32_t*, int64_t, int64_t, cudaStream_t);                    \
    LNFREE_KERNEL void aux_loss_backward(X*, const X*, const float*, const float*, const AuxTerm*, int64_t, int64_t, \
                                         cudaStream_t);                                                              \
    LNFREE_KERNEL void adamw(float*, float*, float*, float*, X*, const GradientNorm*, const TensorRange*, int64_t,   \
                             int64_t, const AdamWConstants&, std::optional<uint64_t>, cudaStream_t);                 \
    LNFREE_KERNEL void round_stochastically(X*, const float*, int64_t, uint64_t, cudaStream_t);                      \
    LNFREE_KERNEL void attention_forward_plain(X*, float*, const X*, int64_t, int64_t, const Heads&, cudaStream_t);  \
    LNFREE_KERNEL void attention_backward_plain(X*, float*, const X*, const X*, const X*, const float*, int64_t,     \
                                                int64_t, const Heads&, cudaStream_t)

LNFREE_KERNELS_FOR(float);
LNFREE_KERNELS_FOR(bf16);
LNFREE_KERNEL void convert(float*, const float*, int64_t, cudaStream_t);
LNFREE_KERNEL void convert(bf16*, const float*, int64_t, cudaStream_t);
LNFREE_KERNEL void convert(float*, const bf16*, int64_t, cudaStream_t);
LNFREE_KERNEL void attention_forward_tensor_cores(bf16*, float*, const bf16*, int64_t, int64_t, const Heads&,
                                                  cudaStream_t);
LNFREE_KERNEL void attention_backward_tensor_cores(bf16*, float*, const bf16*, const bf16*, const bf16*, const float*,
                                                   int64_t, int64_t, const Heads&, cudaStream_t);

#undef LNFREE_KERNELS_FOR
#undef LNFREE_KERNEL

}  // namespace lnfree::cuda
#endif
