// A test's own output stays readable: while a Quiet lives, what is written to a descriptor of this process goes nowhere.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

namespace lnfree {

class Quiet {
  public:
    // 1: standard output, 2: standard error
    explicit Quiet(int descriptor) : descriptor_(descriptor), kept_(::dup(descriptor)) {
        std::fflush(nullptr);
        const int null = ::open("/dev/null", O_WRONLY);
        ::dup2(null, descriptor_);
        ::close(null);
    }
    Quiet(const Quiet&) = delete;
    Quiet& operator=(const Quiet&) = delete;
    ~Quiet() {
        std::fflush(nullptr);
        ::dup2(kept_, descriptor_);
        ::close(kept_);
    }

  private:
    int descriptor_, kept_;
};

}  // namespace lnfree
