// Emulation: dynamic shared memory as kernels see it. Every access goes through a proxy that shadow_memory.h checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "block.h"
#include "vec.h"

namespace lnfree::cuda {

namespace emulation {

inline size_t round_up(size_t bytes, size_t multiple) {
    return (bytes + multiple - 1) / multiple * multiple;
}

// What &array[i] is: something that only atomic operations take.
template <class T>
struct SharedAddress {
    T* at;

    // The address, after the access has been checked as an atomic one.
    T* for_atomic() const {
        BlockRunner& runner = runner_for("an atomic operation in shared memory");
        runner.shared().atomic(at, sizeof(T), runner.thread());
        return at;
    }
};

// array[i]: reads where a T is wanted, writes where one is assigned. It only lives within its expression: after
// `auto x = array[i];` x can not be used, because it would be read later than it looks.
template <class T>
class SharedElement {
  public:
    explicit SharedElement(T* at) : at_(at) {}
    SharedElement(const SharedElement&) = delete;

    // NOLINTBEGIN(google-explicit-constructor,bugprone-unhandled-self-assignment): it is used as the number; a copy of an
    // element to itself is a read and a write like any other.
    operator T() const&& { return read(); }
    T operator=(T value) const&& { return write(value); }
    T operator=(const SharedElement& other) const&& { return write(other.read()); }
    // NOLINTEND(google-explicit-constructor,bugprone-unhandled-self-assignment)
    T operator+=(T value) const&& { return write(read() + value); }
    T operator-=(T value) const&& { return write(read() - value); }
    T operator*=(T value) const&& { return write(read() * value); }
    T operator/=(T value) const&& { return write(read() / value); }
    T operator|=(T value) const&& { return write(read() | value); }
    T operator&=(T value) const&& { return write(read() & value); }
    T operator^=(T value) const&& { return write(read() ^ value); }
    SharedAddress<T> operator&() const&& { return {at_}; }

  private:
    T read() const {
        BlockRunner& runner = runner_for("a read of shared memory");
        runner.shared().read(at_, sizeof(T), runner.thread());
        return *at_;
    }
    T write(T value) const {
        BlockRunner& runner = runner_for("a write to shared memory");
        runner.shared().write(at_, sizeof(T), runner.thread());
        *at_ = value;
        return value;
    }
    T* at_;
};

}  // namespace emulation

// An array in shared memory, or one from some element of it on; copied as a pointer is.
template <class T>
class Shared {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % emulation::ShadowedMemory::granule == 0,
                  "elements of 2 bytes and more, of types that may be copied as bytes");

  public:
    // Nothing yet; to be assigned to.
    Shared() = default;
    Shared(T* first, int64_t count) : first_(first), count_(count) {}

    // Element i, from where this view begins. Elements before that may be reached as well, as with a pointer.
    emulation::SharedElement<T> operator[](int64_t i) const { return emulation::SharedElement<T>(address(i, 1)); }

    // Elements i to i + n - 1 at once; their byte offset in the array must be a multiple of their size, or of 16.
    template <int n>
    Vec<T, n> load_vec(int64_t i) const {
        T* const at = address(i, n);
        check_alignment(at, sizeof(Vec<T, n>));
        auto& runner = emulation::runner_for("a read of shared memory");
        runner.shared().read(at, sizeof(Vec<T, n>), runner.thread());
        Vec<T, n> values;
        std::memcpy(values.v, at, sizeof(values.v));
        return values;
    }
    template <int n>
    void store_vec(int64_t i, const Vec<T, n>& values) const {
        T* const at = address(i, n);
        check_alignment(at, sizeof(Vec<T, n>));
        auto& runner = emulation::runner_for("a write to shared memory");
        runner.shared().write(at, sizeof(Vec<T, n>), runner.thread());
        std::memcpy(at, values.v, sizeof(values.v));
    }

    Shared operator+(int64_t offset) const {
        Shared moved = *this;
        moved.begin_ += offset;
        return moved;
    }
    Shared& operator+=(int64_t offset) {
        begin_ += offset;
        return *this;
    }

    // For the emulation of instructions that take an address: where elements i to i + n - 1 lie; fails out of range.
    T* address(int64_t i, int64_t n) const {
        const int64_t position = begin_ + i;
        if (position < 0 || position + n > count_) fail_out_of_range(position, n);
        return first_ + position;
    }
    // The same for an access to `bytes` bytes at once.
    T* aligned_address(size_t bytes) const {
        T* const at = address(0, static_cast<int64_t>(bytes / sizeof(T)));
        check_alignment(at, bytes);
        return at;
    }

  private:
    [[noreturn]] void fail_out_of_range(int64_t position, int64_t n) const {
        auto& runner = emulation::runner_for("an access to shared memory");
        if (first_ == nullptr) runner.fail(runner.thread(), "uses a Shared<T> that was never assigned");
        const std::string elements =
            n == 1 ? "element " + std::to_string(position)
                   : "elements " + std::to_string(position) + " to " + std::to_string(position + n - 1);
        runner.fail(runner.thread(),
                    "goes out of range: " + elements + " of " + runner.shared().describe_array(first_));
    }
    static void check_alignment(const T* at, size_t bytes) {
        const size_t needed = bytes < 16 ? bytes : 16;
        if (reinterpret_cast<uintptr_t>(at) % needed == 0) return;
        auto& runner = emulation::runner_for("an access to shared memory");
        runner.fail(runner.thread(), "moves " + std::to_string(bytes) + " bytes at once at " +
                                         runner.shared().describe(at) + ", which is not aligned to " +
                                         std::to_string(needed));
    }

    T* first_ = nullptr;
    int64_t count_ = 0;
    int64_t begin_ = 0;
};

// The block's dynamic shared memory from its beginning: `SharedMemory shared;` at the top of a kernel, then one take()
// for each array, the same ones in the same order in every thread. A second SharedMemory begins at the beginning again.
class SharedMemory {
  public:
    // An array of `count` elements, aligned to 16 bytes. Fails where the launch gave less (see shared_bytes_of).
    template <class T>
    Shared<T> take(int64_t count, emulation::Where where = emulation::Where::here()) {
        auto& runner = emulation::runner_for("SharedMemory::take");
        if (count < 0) runner.fail(runner.thread(), "takes a negative number of elements at " + where.text());
        void* const first = runner.shared().take(used_, static_cast<size_t>(count), sizeof(T), runner.thread(), where);
        used_ =
            emulation::round_up(used_ + static_cast<size_t>(count) * sizeof(T), emulation::ShadowedMemory::alignment);
        return Shared<T>(static_cast<T*>(first), count);
    }

  private:
    size_t used_ = 0;
};

// What a launch must give for take<Ts>(counts)..., in bytes: shared_bytes_of<float, bf16>(32, 64 * 72).
template <class... Ts, class... Counts>
size_t shared_bytes_of(Counts... counts) {
    static_assert(sizeof...(Ts) == sizeof...(Counts), "one count for every type");
    return (size_t{0} + ... +
            emulation::round_up(static_cast<size_t>(counts) * sizeof(Ts), emulation::ShadowedMemory::alignment));
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------------

// Copies 16 bytes from global memory to dst[0] and on, in the background. Both must be aligned to 16 bytes. They are there
// when this thread has called copy_async_wait, for other threads after a barrier that follows it.
template <class T>
void copy_async_16(Shared<T> dst, const T* src) {
    emulation::check_alignment(src, 16);
    auto& runner = emulation::runner_for("copy_async_16");
    runner.shared().begin_copy(dst.aligned_address(16), src, 16, runner.thread());
}
// The same, or 16 bytes of zeros where not `is_there`; src is then not read.
template <class T>
void copy_async_16_or_zero(Shared<T> dst, const T* src, bool is_there) {
    if (is_there) return copy_async_16(dst, src);
    auto& runner = emulation::runner_for("copy_async_16_or_zero");
    runner.shared().begin_copy(dst.aligned_address(16), nullptr, 16, runner.thread());
}
// Closes a group: this thread's copies since the last commit.
inline void copy_async_commit() {
    auto& runner = emulation::runner_for("copy_async_commit");
    runner.shared().commit_copies(runner.thread());
}
// Waits until at most the `pending` newest of this thread's groups are still on their way.
template <int pending>
void copy_async_wait() {
    auto& runner = emulation::runner_for("copy_async_wait");
    runner.shared().wait_for_copies(pending, runner.thread());
}

}  // namespace lnfree::cuda
