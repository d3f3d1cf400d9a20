// train_gpt2_lnfree_cuda: the program whose arithmetic is done by the CUDA engine.
//
// One translation unit for nvcc, because every kernel that `check` and `bench` want is the engine's own. All that the
// program does besides is compiled by the C++ compiler, as for the reference's program.
#define LNFREE_LIBRARY_ONLY
#include "../../train_gpt2_lnfree.cu"

// after the engine
#include "../commands/commands.h"
#include "engine_bench.h"
#include "engine_check.h"

int main(int argc, char** argv) {
    lnfree::cuda::use_cuda_engine();
    lnfree::backend().trains_together = lnfree::cuda::kHasNccl;
    lnfree::backend().use_device = [](int number) {
        int devices = 0;
        if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0)
            lnfree::cuda::require_cuda(cudaSetDevice(number % devices), "choosing a GPU");
    };
    lnfree::backend().check = lnfree::cuda::check_engine;
    lnfree::backend().bench = lnfree::cuda::bench_engine;
    return lnfree::program_main(argc, argv);
}
