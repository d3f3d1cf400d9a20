// Emulation: what a message about a kernel's mistake is made of: places in the source and in the grid.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>

#include "types.h"

namespace lnfree::cuda::emulation {

// A mistake that the emulation has found, and which thread made it. Never leaves a launch, which adds kernel and block and
// throws RunFailure.
struct KernelMistake : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Where {
    const char* file = "";
    int line = 0;

    // As the default value of a parameter: where the function was called (g++ and clang++ both know these two functions).
    static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }

    std::string text() const { return std::string(file) + ":" + std::to_string(line); }
    friend bool operator==(const Where& a, const Where& b) {
        return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
    }
};

// The threadIdx of thread `number` of a block; x counts fastest.
inline uint3 index_of_thread(int number, dim3 block) {
    const auto n = static_cast<unsigned>(number);
    return {n % block.x, n / block.x % block.y, n / block.x / block.y};
}

inline std::string text_of(dim3 v) {
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}
inline std::string thread_text(int number, dim3 block) {
    return "thread " + text_of(index_of_thread(number, block));
}

}  // namespace lnfree::cuda::emulation
