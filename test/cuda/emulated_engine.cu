// The CUDA engine with all of its kernels, in emulation, as the one object that the tests of test/cuda and test/cuda_engine
// link: it takes the compiler longer than all of them.
#define LNFREE_INSTANTIATE_KERNELS
#define LNFREE_LIBRARY_ONLY
#include "train_gpt2_lnfree.cu"

// after the kernels
#include "dev/cuda/kernels.h"
