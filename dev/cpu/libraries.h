// Matrix products of other libraries, as yardsticks beside ours: those that this machine has, found when the program runs.
// Nothing is linked to them. A yardstick that does not know the processor fools (Debian's OpenBLAS 0.3.21 takes an Emerald
// Rapids Xeon for a Prescott), so each is named with the kernels that it chose, and is_yardstick() says whether it is one at all.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dev/cpu/machine.h"
#include "dev/cpu/matmul_types.h"

namespace lnfree {

struct Library {
    std::string name;    // "OpenBLAS"
    std::string kernel;  // its version and the kernels that it chose for this processor, as far as it says

    // As Operations::matmul, without bias. Sizes below 2^31.
    std::function<void(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                       const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate)>
        matmul;
};

// Whether a library that did so many FLOP/s is a yardstick: at least half of the processor's peak.
inline bool is_yardstick(double flops_per_s, double peak) {
    return flops_per_s >= peak / 2;
}

namespace libraries {

// Null if it is not there.
template <class Function>
Function* function_of(void* library, const char* name) {
    return reinterpret_cast<Function*>(::dlsym(library, name));
}

// A library's sgemm under the C interface of BLAS, whose constants are those of cblas.h.
inline void add_cblas(std::vector<Library>& found, const std::string& name, const std::string& kernel, void* library) {
    typedef void Sgemm(int order, int ta, int tb, int M, int N, int K, float alpha, const float* A, int lda,
                       const float* B, int ldb, float beta, float* C, int ldc);
    auto* sgemm = function_of<Sgemm>(library, "cblas_sgemm");
    if (sgemm == nullptr) return;
    found.push_back({name, kernel,
                     [sgemm](Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                             const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate) {
                         constexpr int row_major = 101, as_it_is = 111, transposed = 112;
                         const auto i = [](int64_t x) { return static_cast<int>(x); };
                         sgemm(row_major, ta == Transpose::Yes ? transposed : as_it_is,
                               tb == Transpose::Yes ? transposed : as_it_is, i(M), i(N), i(K), 1.0f, A, i(lda), B,
                               i(ldb), accumulate ? 1.0f : 0.0f, C, i(ldc));
                     }});
}

inline void add_openblas(std::vector<Library>& found) {
    void* const library = ::dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    const auto say = [&](const char* function) {
        auto* ask = function_of<char*()>(library, function);
        return ask == nullptr ? std::string() : std::string(ask());
    };
    if (auto* set = function_of<void(int)>(library, "openblas_set_num_threads")) set(thread_count());
    const std::string config = say("openblas_get_config");  // "OpenBLAS 0.3.21 NO_LAPACKE ..."
    const size_t end = config.find(' ', config.find(' ') + 1);
    add_cblas(found, "OpenBLAS", config.substr(0, end) + ", kernel " + say("openblas_get_corename"), library);
}

// oneDNN's own sgemm is row-major. Its threads are OpenMP's, as many as ours.
inline void add_onednn(std::vector<Library>& found) {
    typedef int Sgemm(char ta, char tb, int64_t M, int64_t N, int64_t K, float alpha, const float* A, int64_t lda,
                      const float* B, int64_t ldb, float beta, float* C, int64_t ldc);
    struct Version {
        int major, minor, patch;
    };
    void* library = nullptr;
    for (const char* file : {"libdnnl.so.3", "libdnnl.so.2"})
        if (library == nullptr) library = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    auto* sgemm = function_of<Sgemm>(library, "dnnl_sgemm");
    if (sgemm == nullptr) return;
    std::string kernel = "oneDNN";
    if (auto* version = function_of<const Version*()>(library, "dnnl_version"))
        kernel += " " + std::to_string(version()->major) + "." + std::to_string(version()->minor);
    if (auto* isa = function_of<int()>(library, "dnnl_get_effective_cpu_isa")) {
        constexpr int avx2 = 0x7, avx512_core = 0x27;  // dnnl_types.h; the bits of what comes on top differ by version
        const int set = isa();
        const bool has_avx512 = (set & avx512_core) == avx512_core, has_avx2 = (set & avx2) == avx2;
        kernel += has_avx512 ? ", kernel avx512" : has_avx2 ? ", kernel avx2" : ", kernel below avx2";
    }
    found.push_back({"oneDNN", kernel,
                     [sgemm](Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                             const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate) {
                         sgemm(ta == Transpose::Yes ? 'T' : 'N', tb == Transpose::Yes ? 'T' : 'N', M, N, K, 1.0f, A,
                               lda, B, ldb, accumulate ? 1.0f : 0.0f, C, ldc);
                     }});
}

inline void add_mkl(std::vector<Library>& found) {
    void* library = nullptr;
    for (const char* file : {"libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so"})
        if (library == nullptr) library = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    if (auto* set = function_of<void(int)>(library, "MKL_Set_Num_Threads")) set(thread_count());
    char version[256] = "MKL";
    if (auto* say = function_of<void(char*, int)>(library, "MKL_Get_Version_String")) say(version, sizeof version - 1);
    std::string kernel = version;
    kernel.erase(kernel.find_last_not_of(' ') + 1);
    add_cblas(found, "MKL", kernel, library);
}

}  // namespace libraries

// Those that are there, with as many threads as we have now.
inline std::vector<Library> find_libraries() {
    std::vector<Library> found;
    libraries::add_openblas(found);
    libraries::add_onednn(found);
    libraries::add_mkl(found);
    return found;
}

}  // namespace lnfree
