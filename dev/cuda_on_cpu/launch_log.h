// Emulation: what was done on the device, by name and in order, for those who count launches.
#pragma once

#include <string>
#include <vector>

#include "kernel_name.h"

namespace lnfree::cuda::emulation {

// Keeps what is done while it lives, one at a time: kernels, products, copies and the clearing of memory.
class LaunchLog {
  public:
    LaunchLog() { current() = this; }
    LaunchLog(const LaunchLog&) = delete;
    LaunchLog& operator=(const LaunchLog&) = delete;
    ~LaunchLog() { current() = nullptr; }

    // "product", "copy to device"; kernels by their name in the source, without namespaces and template arguments.
    std::vector<std::string> names() const {
        std::vector<std::string> names;
        for (const Done& done : done_) names.push_back(done.kernel == nullptr ? done.what : plain_name(done.kernel));
        return names;
    }

    // Null: nobody asks.
    static LaunchLog*& current() {
        static LaunchLog* log = nullptr;
        return log;
    }
    void add(const void* kernel, const char* what) { done_.push_back({kernel, what}); }

  private:
    struct Done {
        const void* kernel;
        const char* what;
    };
    std::vector<Done> done_;

    static std::string plain_name(const void* kernel) {
        const std::string name = kernel_name(kernel), without_arguments = name.substr(0, name.find('<'));
        const size_t colons = without_arguments.rfind("::");
        return colons == std::string::npos ? without_arguments : without_arguments.substr(colons + 2);
    }
};

inline void note_done(const char* what) {
    if (LaunchLog::current() != nullptr) LaunchLog::current()->add(nullptr, what);
}
inline void note_done(const void* kernel) {
    if (LaunchLog::current() != nullptr) LaunchLog::current()->add(kernel, "");
}

}  // namespace lnfree::cuda::emulation
