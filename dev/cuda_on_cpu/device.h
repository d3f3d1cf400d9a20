// For nvcc: what kernels are given beyond CUDA C++, as thin as can be. Every function here is one instruction, or none.
// The emulation's counterparts (shared_memory.h, tensor_cores.h, launch.h) say what each of them does.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "bf16.h"
#include "vec.h"

namespace lnfree::cuda {

// ---- shared memory ---------------------------------------------------------------------------------------------------

// A pointer; the emulation's Shared<T> checks what this one trusts.
template <class T>
class Shared {
  public:
    Shared() = default;
    __device__ __forceinline__ explicit Shared(T* first) : first_(first) {}

    template <class Index>
    __device__ __forceinline__ T& operator[](Index i) const {
        return first_[i];
    }
    template <int n, class Index>
    __device__ __forceinline__ Vec<T, n> load_vec(Index i) const {
        return lnfree::cuda::load_vec<n>(static_cast<const T*>(first_ + i));
    }
    template <int n, class Index>
    __device__ __forceinline__ void store_vec(Index i, const Vec<T, n>& values) const {
        lnfree::cuda::store_vec(first_ + i, values);
    }
    template <class Index>
    __device__ __forceinline__ Shared operator+(Index offset) const {
        return Shared(first_ + offset);
    }
    template <class Index>
    __device__ __forceinline__ Shared& operator+=(Index offset) {
        first_ += offset;
        return *this;
    }

    // As instructions that work on shared memory want it: 32 bits, counted from where shared memory begins.
    __device__ __forceinline__ uint32_t instruction_address() const {
        return static_cast<uint32_t>(__cvta_generic_to_shared(first_));
    }

  private:
    T* first_;
};

class SharedMemory {
  public:
    template <class T>
    __device__ __forceinline__ Shared<T> take(int64_t count) {
        extern __shared__ __align__(128) unsigned char lnfree_dynamic_shared_memory[];
        T* const first = reinterpret_cast<T*>(lnfree_dynamic_shared_memory + used_);
        used_ += (static_cast<uint32_t>(count * sizeof(T)) + 15u) & ~15u;
        return Shared<T>(first);
    }

  private:
    uint32_t used_ = 0;
};

template <class... Ts, class... Counts>
__host__ __device__ constexpr size_t shared_bytes_of(Counts... counts) {
    static_assert(sizeof...(Ts) == sizeof...(Counts), "one count for every type");
    return (size_t{0} + ... + ((static_cast<size_t>(counts) * sizeof(Ts) + 15) / 16 * 16));
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------------

// .cg: past the first-level cache, which would only hold a second copy of what is now in shared memory.
template <class T>
__device__ __forceinline__ void copy_async_16(Shared<T> dst, const T* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst.instruction_address()),
                 "l"(__cvta_generic_to_global(src))
                 : "memory");
}
// With a source size of 0 the instruction reads nothing and writes 16 zeros.
template <class T>
__device__ __forceinline__ void copy_async_16_or_zero(Shared<T> dst, const T* src, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst.instruction_address()),
                 "l"(__cvta_generic_to_global(src)), "r"(is_there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- tensor cores ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], Shared<bf16> row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address.instruction_address())
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], Shared<bf16> row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address.instruction_address())
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], Shared<bf16> row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row_address.instruction_address())
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], Shared<bf16> row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row_address.instruction_address())
                 : "memory");
}

// ---- programmatic dependent launch -----------------------------------------------------------------------------------

__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace lnfree::cuda
