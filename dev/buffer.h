// Memory for numbers: zeroed, aligned to pages, on huge pages where the system has them.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "../data/error.h"

// The type of weights, activations and gradients. The tests compile the reference a second time with double, so that
// gradients can be held against finite differences and against an independent program to many digits.
#ifndef LNFREE_REAL
#define LNFREE_REAL float
#endif

namespace lnfree {

typedef LNFREE_REAL real;

// Every page is touched on allocation, so that the first step is no slower than the others.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t n) { allocate(n); }

    // n zeros. Throws RunFailure when the machine has no such amount of memory.
    void allocate(int64_t n) {
        constexpr size_t page = 4096, huge_page = size_t{1} << 21;
        const size_t bytes = (static_cast<size_t>(n) * sizeof(real) + page - 1) / page * page;
        real* p = bytes == 0 ? nullptr : static_cast<real*>(aligned_alloc(page, bytes));
        if (bytes != 0 && p == nullptr)
            throw RunFailure("no memory for " + std::to_string(bytes >> 20) +
                             " MiB; use a smaller --batch or --seq, or a smaller model");
        memory_.reset(p);
        size_ = n;
        if (bytes >= huge_page) madvise(p, bytes, MADV_HUGEPAGE);
        zero();
    }
    void zero() {
        real* p = memory_.get();
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < size_; i++) p[i] = 0;
    }
    real* data() {
        return memory_.get();
    }
    const real* data() const {
        return memory_.get();
    }
    int64_t size() const {
        return size_;
    }

  private:
    struct Free {
        void operator()(real* p) const { free(p); }
    };
    std::unique_ptr<real[], Free> memory_;
    int64_t size_ = 0;
};

}  // namespace lnfree
