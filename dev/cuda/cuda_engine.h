// What train_gpt2_lnfree.cu, the CUDA engine, offers to the rest of the program: no kernel, nothing of CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../engine.h"
#include "product_choices.h"

namespace lnfree::cuda {

// How engines that are made from now on compute.
struct DeviceOptions : EngineOptions {
    bool in_bf16 = false;                     // activations and matrix products; see --precision
    bool in_tf32 = false;                     // else products of float operands on tensor cores
    std::shared_ptr<ProductChoices> choices;  // what `products` names, or null
};
DeviceOptions& device_options();

// Puts the options back as they were, whatever happens.
class OptionsKeeper {
  public:
    OptionsKeeper() : before_(device_options()) {}
    OptionsKeeper(const OptionsKeeper&) = delete;
    OptionsKeeper& operator=(const OptionsKeeper&) = delete;
    ~OptionsKeeper() { device_options() = before_; }

  private:
    DeviceOptions before_;
};

// What a choice of kernels for products holds for: the GPU and the version of cuBLASLt.
std::string products_made_for();

// Throws NoGpu (exit 3) where there is none.
void require_gpu();

// A model of any form on the GPU. It needs none until something is computed, so that commands that only read and write files
// work anywhere.
std::unique_ptr<Engine> make_engine(const ModelConfig& c);

// Puts this engine in the reference's place: backend().
void use_cuda_engine();

// Bytes on the device for micro-batches of B sequences of T positions.
int64_t device_bytes(const ModelConfig& c, int64_t B, int64_t T, bool training, bool in_bf16, int recompute);

// Rows of logits lie so far apart, and so many of them are made at a time: chunks of about 2^29 bytes at most, all of one
// size but the last, in whole tiles of a product's 128 rows, so that no product is too small to fill the GPU.
inline int64_t padded_vocabulary(int64_t V) {
    return (V + 63) / 64 * 64;
}
inline int64_t logits_rows(int64_t N, int64_t V, int64_t bytes_per_logit) {
    constexpr int64_t tile = 128;
    const int64_t most = (int64_t{1} << 29) / (padded_vocabulary(V) * bytes_per_logit), allowed = std::max(most, tile);
    const int64_t chunks = (N + allowed - 1) / allowed, rows = (N + chunks - 1) / chunks;
    return std::min(N, (rows + tile - 1) / tile * tile);
}

// The gradient, wherever the engine keeps it.
std::vector<float> gradients_of(Engine& model);

}  // namespace lnfree::cuda
