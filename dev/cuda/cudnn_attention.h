// Attention by NVIDIA's cuDNN, beside our own kernels: `--attention cudnn`, in programs made with `make USE_CUDNN=1`.
//
// NOT YET RUN: no GPU was at hand when this was written. It compiles and links; `train_gpt2_lnfree_cuda check` compares it
// with the reference on your GPU.
#pragma once

#include <cstdint>

// As CUDA and its emulation declare it: this header is for both.
struct CUstream_st;
typedef CUstream_st* cudaStream_t;

namespace lnfree::cuda {

struct bf16;

#ifdef LNFREE_CUDNN
constexpr bool kHasCudnn = true;
#else
constexpr bool kHasCudnn = false;
#endif

// Defined in cudnn_attention.cpp, which only programs with cuDNN contain. Both return at once; the work is done in the
// order of `stream`. The first call for a shape takes seconds, in which cuDNN chooses and compiles its kernels; its
// workspace comes on top of what `info --memory` says. They throw RunFailure, naming the shape and what to use instead,
// where cuDNN declines: heads of more than 128 or a number of channels that is no multiple of 8, GPUs before Ampere.

// out (B,T,C) and lse (B,NH,T), the log of the sum of exp(scores), from qkv (B,T,3C); causal, scores / sqrt(C / NH).
void cudnn_attention_forward(bf16* out, float* lse, const bf16* qkv, int64_t B, int64_t T, int64_t C, int64_t NH,
                             cudaStream_t stream);

// dqkv (B,T,3C), overwritten, from dout (B,T,C) and what forward read and wrote. Always the same bits where cuDNN has such
// an algorithm, which on Hopper wants B NH T^2 values of 2 bytes of workspace; where it has none, sums may be taken in
// another order every time.
void cudnn_attention_backward(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                              int64_t B, int64_t T, int64_t C, int64_t NH, cudaStream_t stream);

}  // namespace lnfree::cuda
