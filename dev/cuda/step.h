// A training step of the CUDA engine, launch by launch: what each of them must move and compute. Numbers alone and nothing
// of CUDA, so that any machine can print them (`bench --floors`). On a GPU `bench` divides the same numbers by what it
// measures. STEP.md explains the step; test/cuda_engine/test_step.cpp holds the list to what the engine launches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../../data/config.h"

namespace lnfree::cuda {

// How far a removal is.
enum class StepPhase {
    layer_norm,  // nothing is removed
    apart,       // mlp and qk are, v and f not: a layer's first norm has two outputs, its qkv two products
    removed      // everything is, and every layer's qk and v divide alike
};

// A micro-batch of `batch` sequences of `seq` positions and an update, in bf16, attention by our kernels.
struct StepOptions {
    ModelConfig config;
    int64_t batch = 1, seq = 1;
    int64_t recompute = 0;
    StepPhase phase = StepPhase::layer_norm;
    bool distill = false;          // beside a teacher of the same shape, all LayerNorm
    bool fused_epilogues = true;   // cuBLASLt adds biases and applies GELU; else our kernels do, as in the emulation
    int64_t distinct_tokens = -1;  // in the micro-batch; -1: as many as there can be
};

// What the engine asks for in one call: a product, a kernel, or a few kernels in a row.
struct StepOperation {
    std::string part;                   // of the step
    std::string name;                   // as `bench` has it
    std::vector<std::string> launches;  // kernels by name; "product", "copy to device", "copy from device", "memset"
    std::string shape;                  // a product: rows and columns of the result, then the length of the sums
    int64_t calls;                      // in a step
    // Of one call. bytes: what the device's memory can not do without giving and taking, each large array once; what one
    // launch leaves for the next one of the same call fits the cache and does not count, nor do numbers of a row or a
    // column. flops: of products and attention; what backward remakes of attention's scores does not count.
    double bytes, flops;
};

// In the order in which the engine launches them. Throws BadInput for a recompute that there is not.
std::vector<StepOperation> training_step(const StepOptions& o);

// A GPU as its maker describes it.
struct DataSheet {
    const char* name;
    double tbytes_per_s, tflops;  // memory; bf16, dense, with float sums
};
// NVIDIA's product pages (nvidia.com/en-us/data-center/h100, h200), which state twice the flops "with sparsity".
constexpr DataSheet kDataSheets[] = {{"H100 SXM", 3.35, 989.5}, {"H200 SXM", 4.8, 989.5}};

// Seconds of one call at full bandwidth, and at full speed; at the least the longer of the two.
inline double memory_seconds(const StepOperation& op, const DataSheet& gpu) {
    return op.bytes / (gpu.tbytes_per_s * 1e12);
}
inline double arithmetic_seconds(const StepOperation& op, const DataSheet& gpu) {
    return op.flops / (gpu.tflops * 1e12);
}
inline double floor_seconds(const StepOperation& op, const DataSheet& gpu) {
    return std::max(memory_seconds(op, gpu), arithmetic_seconds(op, gpu));
}

}  // namespace lnfree::cuda
