// Emulation: fibres, several stacks that take turns on one thread of the operating system. A CUDA thread that waits at a
// barrier leaves its stack as it is, and the processor goes on with another one: about ten nanoseconds with
// Boost.Context's jump, which saves only the registers that a function call must preserve.
#pragma once

#include <sys/mman.h>

#include <boost/context/detail/fcontext.hpp>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include "../../data/error.h"

// AddressSanitizer knows one stack per thread and must be told of every change; it also keeps the variables of functions
// in "fake stacks", one per fibre, to find uses after return.
#if defined(__SANITIZE_ADDRESS__)
#define LNFREE_FIBRES_TELL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LNFREE_FIBRES_TELL_ASAN 1
#endif
#endif
#ifdef LNFREE_FIBRES_TELL_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace lnfree::cuda::emulation {

// Not a kernel's memory but only the calls and the registers that do not fit: 256 KiB of addresses, of which Linux
// supplies the pages that are touched, usually two. Below it lies a page that may not be touched, so that an endless
// recursion ends in a segmentation fault and not in the variables of another thread.
class Stack {
  public:
    static constexpr size_t bytes = 256 * 1024;

    // `number` counts the stacks of one operating-system thread.
    explicit Stack(int number) {
        memory_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory_ == MAP_FAILED)
            throw RunFailure("CUDA emulation: no memory for the stack of a thread (" + std::to_string(bytes) +
                             " bytes): " + std::strerror(errno));
        // Linux limits the number of separately protected areas of a process; without its guard a stack still works.
        ::mprotect(memory_, guard_bytes, PROT_NONE);
        // Stacks that all began at the start of a page would compete for the same few lines of the first-level cache.
        top_offset_ = static_cast<size_t>(number % 61) * 192;
    }
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    ~Stack() { ::munmap(memory_, bytes); }

    char* bottom() const { return static_cast<char*>(memory_) + guard_bytes; }
    size_t size() const { return bytes - guard_bytes - top_offset_; }
    char* top() const { return bottom() + size(); }

  private:
    static constexpr size_t guard_bytes = 4096;
    void* memory_ = nullptr;
    size_t top_offset_ = 0;
};

// Something that can be left and gone on with: a function on a stack of its own, or the calling thread itself.
class Fibre {
  public:
    using Body = void (*)(void* argument);

    // The thread that makes this, on its own stack.
    Fibre() = default;

    // `body(argument)` on `stack`, from the first switch_to on; it must never return and let no exception out.
    // It ends by being left for good and its stack being freed, so nothing with a destructor may then live on it.
    Fibre(const Stack& stack, Body body, void* argument)
        : body_(body), argument_(argument), stack_bottom_(stack.bottom()), stack_size_(stack.size()) {
        context_ = boost::context::detail::make_fcontext(stack.top(), stack.size(), &Fibre::begin);
    }
    Fibre(const Fibre&) = delete;
    Fibre& operator=(const Fibre&) = delete;

    // Leaves this fibre, which must be the running one, for `next`; returns when some fibre switches back to this one.
    void switch_to(Fibre& next) {
        next_ = &next;
#ifdef LNFREE_FIBRES_TELL_ASAN
        __sanitizer_start_switch_fiber(&fake_stack_, next.stack_bottom_, next.stack_size_);
#endif
        arrive(boost::context::detail::jump_fcontext(next.context_, this));
    }

  private:
    // Every jump hands over who jumped and where that one is to be gone on with.
    void arrive(boost::context::detail::transfer_t from) {
        auto* const previous = static_cast<Fibre*>(from.data);
        previous->context_ = from.fctx;
#ifdef LNFREE_FIBRES_TELL_ASAN
        // This is also how the extent of the operating-system thread's own stack becomes known.
        __sanitizer_finish_switch_fiber(fake_stack_, &previous->stack_bottom_, &previous->stack_size_);
#endif
    }

    static void begin(boost::context::detail::transfer_t from) {
        Fibre* const self = static_cast<Fibre*>(from.data)->next_;
        self->arrive(from);
        self->body_(self->argument_);
    }

    boost::context::detail::fcontext_t context_ = nullptr;
    Body body_ = nullptr;
    void* argument_ = nullptr;
    Fibre* next_ = nullptr;
    const void* stack_bottom_ = nullptr;
    size_t stack_size_ = 0;
    [[maybe_unused]] void* fake_stack_ = nullptr;  // for AddressSanitizer
};

}  // namespace lnfree::cuda::emulation
