// One loop over all processor cores, for the headers in data/ that touch every byte of a large file.
#pragma once

#include <cstdint>

namespace lnfree {

// Calls f(0), ..., f(n - 1) once each, on OpenMP's threads where the compiler has OpenMP and one after another
// where it has not. f must not throw (an exception may not leave an OpenMP loop) and must write only to what its own
// index owns; then the result is the same whatever the number of threads.
template <class F>
void parallel_for(uint64_t n, const F& f) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
    for (int64_t i = 0; i < static_cast<int64_t>(n); ++i) f(static_cast<uint64_t>(i));
}

}  // namespace lnfree
