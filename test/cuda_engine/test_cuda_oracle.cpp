// The CUDA engine, in emulation and in fp32, against the oracle: what the reference is held against (test/oracle_checks.h).
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda_on_cpu/options.h"
#include "test/oracle_checks.h"

using namespace lnfree;

namespace {

const std::vector<std::string> kModels = {"gpt2", "neox", "llama"};

const OracleTolerance kSingle{1e-5, 1e-4, 1e-4, false};

EngineUnderTest cuda_engine() {
    return {cuda::make_engine, cuda::gradients_of};
}

}  // namespace

TEST_CASE("forward passes and gradients equal the oracle's at every stage of removal") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    for (const std::string& model : kModels) CHECK(check_static_cases(model, kSingle, cuda_engine()) > 0);
}
TEST_CASE("40 steps through all removals follow the oracle's trajectory") {
    const cuda::TemporaryEmulationOptions fast(false, 0);
    for (const std::string& model : kModels) CHECK(check_trajectories(model, kSingle, cuda_engine()) > 0);
}
