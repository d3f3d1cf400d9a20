// Memory that a program has on the GPU, and memory of the host that the GPU can fetch from by itself.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../../data/error.h"
#include "../cuda_on_cpu/cuda.h"

namespace lnfree::cuda {

// Values on the device. They can begin some elements behind a multiple of 256 bytes, so that tests reach rows that are not
// aligned.
template <class T>
class DeviceArray {
  public:
    DeviceArray() = default;
    explicit DeviceArray(int64_t n, int64_t offset = 0) { allocate(n, offset); }
    explicit DeviceArray(const std::vector<T>& values, int64_t offset = 0)
        : DeviceArray(static_cast<int64_t>(values.size()), offset) {
        set(values);
    }
    DeviceArray(DeviceArray&& other) noexcept
        : memory_(std::exchange(other.memory_, nullptr)),
          size_(std::exchange(other.size_, 0)),
          offset_(std::exchange(other.offset_, 0)) {}
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;
    ~DeviceArray() { static_cast<void>(cudaFree(memory_)); }

    // Memory for n values, with any contents. Throws RunFailure, which tells a full device from other failures.
    void allocate(int64_t n, int64_t offset = 0) {
        static_cast<void>(cudaFree(memory_));
        memory_ = nullptr;
        size_ = offset_ = 0;
        void* p = nullptr;
        const size_t bytes = static_cast<size_t>(n + offset) * sizeof(T);
        const cudaError_t error = bytes == 0 ? cudaSuccess : cudaMalloc(&p, bytes);
        if (error == cudaErrorMemoryAllocation) {
            static_cast<void>(cudaGetLastError());  // the failure has been dealt with
            throw RunFailure("the GPU has no room for " + std::to_string((bytes + (1 << 20) - 1) >> 20) +
                             " MiB; use a smaller --batch, or --recompute 2 (`info --memory` shows what fits)");
        }
        require_cuda(error, "memory of the GPU");
        memory_ = static_cast<T*>(p);
        size_ = n;
        offset_ = offset;
    }
    T* data() const { return memory_ + offset_; }
    int64_t size() const { return size_; }

    void zero(cudaStream_t stream) const {
        if (size_ > 0) require_cuda(cudaMemsetAsync(data(), 0, bytes_of(size_), stream), "clearing memory");
    }
    // From and to n values in the host's memory, which are free to change when the call returns.
    void upload(const T* from, int64_t n, cudaStream_t stream) const {
        require_cuda(cudaMemcpyAsync(data(), from, bytes_of(n), cudaMemcpyHostToDevice, stream), "copying to the GPU");
        require_cuda(cudaStreamSynchronize(stream), "copying to the GPU");
    }
    void download(T* to, int64_t n, cudaStream_t stream) const {
        require_cuda(cudaMemcpyAsync(to, data(), bytes_of(n), cudaMemcpyDeviceToHost, stream), "copying from the GPU");
        require_cuda(cudaStreamSynchronize(stream), "the work before, or copying from the GPU");
    }
    // The whole array on the default stream.
    void set(const std::vector<T>& values) const {
        if (static_cast<int64_t>(values.size()) != size_) throw RunFailure("DeviceArray::set: another size");
        upload(values.data(), size_, nullptr);
    }
    std::vector<T> host() const {
        std::vector<T> values(static_cast<size_t>(size_));
        download(values.data(), size_, nullptr);
        return values;
    }

  private:
    T* memory_ = nullptr;
    int64_t size_ = 0, offset_ = 0;

    static size_t bytes_of(int64_t n) { return static_cast<size_t>(n) * sizeof(T); }
};

// Page-locked memory of the host: the GPU fetches from it by itself, while the program goes on.
template <class T>
class PinnedArray {
  public:
    PinnedArray() = default;
    PinnedArray(const PinnedArray&) = delete;
    PinnedArray& operator=(const PinnedArray&) = delete;
    ~PinnedArray() { static_cast<void>(cudaFreeHost(data_)); }

    // At least n values, with any contents.
    T* reserve(int64_t n) {
        if (n <= size_) return data_;
        static_cast<void>(cudaFreeHost(data_));
        data_ = nullptr;
        size_ = 0;
        void* p = nullptr;
        require_cuda(cudaMallocHost(&p, static_cast<size_t>(n) * sizeof(T)), "page-locked memory of the host");
        data_ = static_cast<T*>(p);
        size_ = n;
        return data_;
    }

  private:
    T* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace lnfree::cuda
