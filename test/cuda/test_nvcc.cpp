// nvcc accepts everything that dev/cuda_on_cpu/cuda.h gives, for the oldest and for the newest architecture that it has
// instructions for: no GPU is needed for that. What a wrapper becomes is looked up in the PTX.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "test/file_helpers.h"

namespace {

using namespace lnfree;

// nvcc by the name that works here, or "".
std::string find_nvcc() {
    for (const std::string nvcc : {"nvcc", "/usr/local/cuda/bin/nvcc"}) {
        if (std::system((nvcc + " --version >/dev/null 2>&1").c_str()) == 0) return nvcc;
    }
    return "";
}

}  // namespace

TEST_CASE("nvcc compiles every wrapper to the instruction it stands for") {
    const std::string nvcc = find_nvcc();
    if (nvcc.empty()) {
        std::puts("SKIPPED: compiling the wrappers for GPUs: there is no nvcc");
        return;
    }
    const TemporaryFolder folder;
    for (const std::string architecture : {"80", "90a"}) {
        CAPTURE(architecture);
        const std::string ptx = folder / "wrappers.ptx", log = folder / "log";
        const std::string command = nvcc + " -std=c++17 -O3 -ptx -arch=compute_" + architecture +
                                    " -Werror all-warnings -I. -o '" + ptx + "' test/cuda/every_wrapper.cu >'" + log +
                                    "' 2>&1";
        const int status = std::system(command.c_str());
        INFO(read_bytes(log));
        REQUIRE(status == 0);
        const std::string code = read_bytes(ptx);
        CHECK((contains(code, "ld.global.v4") || contains(code, "ld.global.nc.v4")));  // nc: where it sees no writer
        for (const std::string instruction :
             {"ld.global.cs.v4", "st.global.v4", "st.global.cs.v4", "ld.shared.v4", "st.shared.v4",
              "cp.async.cg.shared.global", "cp.async.commit_group", "cp.async.wait_group",
              "ldmatrix.sync.aligned.m8n8.x4.shared.b16", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
              "ldmatrix.sync.aligned.m8n8.x2.shared.b16", "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16",
              "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "cvt.rn.bf16x2.f32"}) {
            CAPTURE(instruction);
            CHECK(contains(code, instruction));
        }
        for (const std::string instruction : {"griddepcontrol.wait", "griddepcontrol.launch_dependents"}) {
            CAPTURE(instruction);
            CHECK(contains(code, instruction) == (architecture == "90a"));
        }
    }
}
