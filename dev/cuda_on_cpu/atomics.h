// Emulation: atomic operations, which blocks on different processors really do at the same time. None for float: sums
// whose order changes from run to run have no place in this project, so a kernel that wants one does not compile.
#pragma once

#include "shared_memory.h"

namespace lnfree::cuda::emulation {

// Replaces *p by next(*p); returns what was there.
template <class T, class Next>
T atomic_update(T* p, Next next) {
    T old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(p, &old, next(old), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
}

}  // namespace lnfree::cuda::emulation

// NOLINTBEGIN(bugprone-reserved-identifier,bugprone-macro-parentheses): CUDA's names, and types as macro arguments.
#define LNFREE_ATOMIC(name, T, next)                                                                         \
    inline T name(T* p, T value) {                                                                           \
        return lnfree::cuda::emulation::atomic_update(p, [=]([[maybe_unused]] T old) -> T { return next; }); \
    }                                                                                                        \
    inline T name(lnfree::cuda::emulation::SharedAddress<T> p, T value) {                                    \
        return name(p.for_atomic(), value);                                                                  \
    }
#define LNFREE_ATOMICS(T)                                                                            \
    LNFREE_ATOMIC(atomicAdd, T, old + value)                                                         \
    LNFREE_ATOMIC(atomicMax, T, old < value ? value : old)                                           \
    LNFREE_ATOMIC(atomicMin, T, value < old ? value : old)                                           \
    LNFREE_ATOMIC(atomicExch, T, value)                                                              \
    LNFREE_ATOMIC(atomicAnd, T, old& value)                                                          \
    LNFREE_ATOMIC(atomicOr, T, old | value)                                                          \
    inline T atomicCAS(T* p, T expected, T value) {                                                  \
        __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        return expected;                                                                             \
    }                                                                                                \
    inline T atomicCAS(lnfree::cuda::emulation::SharedAddress<T> p, T expected, T value) {           \
        return atomicCAS(p.for_atomic(), expected, value);                                           \
    }
LNFREE_ATOMICS(int)
LNFREE_ATOMICS(unsigned)
LNFREE_ATOMICS(unsigned long long)
#undef LNFREE_ATOMICS
#undef LNFREE_ATOMIC

inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
// NOLINTEND(bugprone-reserved-identifier,bugprone-macro-parentheses)
