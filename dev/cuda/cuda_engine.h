// What train_gpt2_lnfree.cu, the CUDA engine, offers to the rest of the program: no kernel, nothing of CUDA.
#pragma once

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

// A model on the GPU; a folded one runs on the processor, by the reference. It needs no GPU until something is computed, so
// that commands that only read and write files work anywhere.
std::unique_ptr<Engine> make_engine(const GPT2Config& c);

// Puts this engine in the reference's place: backend().
void use_cuda_engine();

// Bytes on the device for micro-batches of B sequences of T positions.
int64_t device_bytes(const GPT2Config& c, int64_t B, int64_t T, bool training, bool in_bf16, int recompute);

// The gradient, wherever the engine keeps it.
std::vector<float> gradients_of(Engine& model);

}  // namespace lnfree::cuda
