// Emulation: one block of threads on one thread of the operating system.
//
// The CUDA threads of a block run one after another, each until it must wait for others. A fibre takes the first thread
// and runs it; if that one never waits, the fibre goes on with the next, so a kernel without barriers is a plain loop. A
// thread that must wait keeps its fibre, and another fibre goes on with whichever thread may run. When no thread may
// run and some still wait, they wait for what will never come, and the message says who waits where, and for whom.
//
// Nothing here is shared between operating-system threads, so nothing is locked; blocks run beside each other because
// every operating-system thread has a BlockRunner of its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "../../data/error.h"
#include "../../data/random.h"
#include "fibres.h"
#include "options.h"
#include "shadow_memory.h"
#include "types.h"
#include "where.h"

namespace lnfree::cuda::emulation {

// A launch: which kernel, how often, with what.
struct Grid {
    dim3 grid;
    dim3 block;
    size_t shared_bytes;
    void (*call)(const void* arguments);  // runs the kernel for the current thread
    const void* arguments;
    bool is_dependent;  // by launch_dependent
};

// Thrown through the kernels of the threads that still wait when another one has failed, so that their stacks are empty
// when the block is given up. No std::exception: a kernel must not catch it by accident.
struct GivenUp {};

class BlockRunner {
  public:
    static constexpr int max_threads = 1024;

    BlockRunner() = default;
    BlockRunner(const BlockRunner&) = delete;
    BlockRunner& operator=(const BlockRunner&) = delete;

    // Runs all threads of block `index`; `seed` 0 takes them in order. Throws KernelMistake with thread and reason
    // when one of them fails.
    void run(const Grid& grid, uint3 index, uint64_t seed) {
        grid_ = &grid;
        count_ = static_cast<int>(grid.block.x * grid.block.y * grid.block.z);
        blockIdx = index;
        blockDim = grid.block;
        gridDim = grid.grid;
        begin_order(seed);
        threads_.assign(static_cast<size_t>(count_), Thread());
        warps_.resize(static_cast<size_t>((count_ + 31) / 32));
        for (Warp& warp : warps_) warp.groups.clear();
        ready_.begin(count_);
        finished_ = at_barrier_ = 0;
        giving_up_ = false;
        failure_.clear();
        shared_.begin_block(grid.shared_bytes, grid.block, emulation_options().checks);
        waited_for_previous_kernel_ = false;

        running_ = &main_;
        {
            const InKernel in_kernel(this);
            go_on();
        }
        if (!failure_.empty()) throw KernelMistake(failure_);
    }

    // The runner whose kernel is running on this operating-system thread, or null.
    static BlockRunner*& current_runner() {
        static thread_local BlockRunner* runner = nullptr;
        return runner;
    }

    // ---- for the operations that kernels call -----------------------------------------------------------------------

    int thread() const { return current_; }
    ShadowedMemory& shared() { return shared_; }
    bool& waited_for_previous_kernel() { return waited_for_previous_kernel_; }

    // Ends the launch with a message about thread `number`.
    [[noreturn]] void fail(int number, const std::string& message) const {
        throw KernelMistake(name_of(number) + " " + message);
    }

    // __syncthreads.
    void wait_for_block(Where where) {
        if (at_barrier_ == 0) barrier_where_ = where;
        if (!(barrier_where_ == where))
            fail(current_, "waits at the __syncthreads() of " + where.text() + " while others wait at that of " +
                               barrier_where_.text() + "; all threads of a block must take the same way to a barrier");
        wait_begins("__syncthreads()", where);
        if (++at_barrier_ < count_) return wait();
        at_barrier_ = 0;
        shared_.all_threads_meet();
        for (int i = 0; i < count_; ++i) {
            threads_[static_cast<size_t>(i)].operation = nullptr;
            if (i != current_) ready_.push(i);
        }
        last_one_goes_on();
    }

    // An operation of the lanes named in `mask`. Each gives its `exchange`; the lane that comes last calls
    // `complete(exchanges, mask)`, where exchanges[i] is what lane i gave, for all of them; then all go on. Lanes
    // that name each other must meet in the same operation.
    using Complete = void (*)(BlockRunner& runner, int warp, void* const* exchanges, unsigned mask);
    void meet_lanes(unsigned mask, const char* operation, Where where, Complete complete, void* exchange) {
        const int warp_number = current_ / 32;
        const unsigned own_bit = 1u << (current_ % 32);
        Warp& warp = warps_[static_cast<size_t>(warp_number)];
        check_mask(mask, operation, where);
        Group& group = warp.group_of(mask, operation, complete);
        if (group.complete != complete || !is_same(group.operation, operation))
            fail(current_, "is at " + at(operation, where) +
                               " while another lane of its mask is at another operation: " +
                               thread_at(warp_number * 32 + __builtin_ctz(group.arrived)).text());
        warp.exchanges[current_ % 32] = exchange;
        group.arrived |= own_bit;
        wait_begins(operation, where, mask);
        if (group.arrived != mask) return wait();
        warp.groups.erase(warp.groups.begin() + (&group - warp.groups.data()));
        complete(*this, warp_number, warp.exchanges, mask);
        // Before all others, lowest lane first: the stacks of this warp are in the cache.
        for (int lane = 31; lane >= 0; --lane) {
            const int number = warp_number * 32 + lane;
            if ((mask >> lane & 1) == 0) continue;
            threads_[static_cast<size_t>(number)].operation = nullptr;
            if (number != current_) ready_.push_first(number);
        }
        last_one_goes_on();
    }

  private:
    struct Thread {
        Fibre* fibre = nullptr;           // its stack, while it waits
        const char* operation = nullptr;  // what it waits in; null while it may run
        Where where;
        unsigned mask = 0;  // of a warp operation; 0 at __syncthreads()

        std::string text() const { return at(operation, where); }
    };
    // Lanes of a warp on their way into the same operation.
    struct Group {
        unsigned mask;
        unsigned arrived;
        const char* operation;
        Complete complete;  // tells operations on different types apart
    };
    struct Warp {
        std::vector<Group> groups;  // nearly always one
        void* exchanges[32] = {};

        Group& group_of(unsigned mask, const char* operation, Complete complete) {
            for (Group& group : groups) {
                if (group.mask == mask) return group;
            }
            groups.push_back({mask, 0, operation, complete});
            return groups.back();
        }
    };
    // The threads that may go on, in a ring with room for every thread of the block.
    class ReadyQueue {
      public:
        void begin(int count) {
            threads_.resize(static_cast<size_t>(count));
            first_ = size_ = 0;
        }
        int size() const { return static_cast<int>(size_); }
        void push(int thread) { threads_[slot(size_++)] = thread; }
        void push_first(int thread) {
            first_ = slot(threads_.size() - 1);
            ++size_;
            threads_[first_] = thread;
        }
        int pop() {
            const int thread = threads_[first_];
            first_ = slot(1);
            --size_;
            return thread;
        }
        // The i-th takes the first one's place in the queue.
        void swap_first_with(uint64_t i) { std::swap(threads_[first_], threads_[slot(i)]); }

      private:
        size_t slot(size_t i) const {
            const size_t sum = first_ + i;
            return sum < threads_.size() ? sum : sum - threads_.size();
        }
        std::vector<int> threads_;
        size_t first_ = 0;
        size_t size_ = 0;
    };
    struct FibreWithStack {
        FibreWithStack(int number, BlockRunner* runner)
            : stack(number), fibre(stack, &BlockRunner::run_threads, runner) {}
        Stack stack;
        Fibre fibre;
    };

    // While it lives, operations that kernels call find this runner.
    struct InKernel {
        explicit InKernel(BlockRunner* runner) { current_runner() = runner; }
        InKernel(const InKernel&) = delete;
        InKernel& operator=(const InKernel&) = delete;
        ~InKernel() { current_runner() = nullptr; }
    };

    // Names of operations; nearly always the same constant.
    static bool is_same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

    static std::string at(const char* operation, Where where) { return std::string(operation) + " of " + where.text(); }

    const Thread& thread_at(int number) const { return threads_[static_cast<size_t>(number)]; }
    uint3 index_of(int number) const { return index_of_thread(number, grid_->block); }
    std::string name_of(int number) const { return thread_text(number, grid_->block); }

    // ---- whose turn it is -------------------------------------------------------------------------------------------

    void begin_order(uint64_t seed) {
        is_random_ = seed != 0;
        random_ = SplitMix64(seed);
        unstarted_.resize(static_cast<size_t>(count_));
        for (int i = 0; i < count_; ++i) unstarted_[static_cast<size_t>(i)] = count_ - 1 - i;  // taken from the end
        for (int i = count_ - 1; is_random_ && i > 0; --i)
            std::swap(unstarted_[static_cast<size_t>(i)], unstarted_[random_.below(static_cast<uint64_t>(i) + 1)]);
    }

    // The thread to go on with; -1: none may. In order, those that have waited come before those that have not begun.
    int next_thread() {
        const auto waiting = static_cast<uint64_t>(ready_.size());
        const uint64_t new_ones = unstarted_.size();
        if (waiting + new_ones == 0) return -1;
        const uint64_t choice = is_random_ ? random_.below(waiting + new_ones) : 0;
        if (choice < waiting) {
            if (choice > 0) ready_.swap_first_with(choice);
            return ready_.pop();
        }
        const int thread = unstarted_.back();
        unstarted_.pop_back();
        return thread;
    }

    // Goes on with another thread, or with main_ when all have finished. Returns when this fibre is gone on with.
    void go_on() {
        Fibre* const self = running_;
        const int next = next_thread();
        Fibre* target = &main_;
        if (next >= 0) {
            target = threads_[static_cast<size_t>(next)].fibre;
            if (target == nullptr) target = idle_fibre();
            current_ = next;
        }
        running_ = target;
        if (target != self) self->switch_to(*target);
    }

    Fibre* idle_fibre() {
        if (idle_.empty()) {
            fibres_.push_back(std::make_unique<FibreWithStack>(static_cast<int>(fibres_.size()), this));
            return &fibres_.back()->fibre;
        }
        Fibre* const fibre = idle_.back();
        idle_.pop_back();
        return fibre;
    }

    // What every fibre does: run one thread after another for as long as this operating-system thread lives.
    static void run_threads(void* runner) {
        for (;;) static_cast<BlockRunner*>(runner)->run_current_and_go_on();
    }

    void run_current_and_go_on() {
        const int number = current_;
        threadIdx = index_of(number);
        try {
            grid_->call(grid_->arguments);
        } catch (const GivenUp&) {
        } catch (const KernelMistake& mistake) {
            give_up(number, mistake.what());
        } catch (const std::exception& error) {
            give_up(number, name_of(number) + ": " + error.what());
        } catch (...) {
            give_up(number, name_of(number) + ": an exception of unknown type");
        }
        ++finished_;
        if (ready_.size() == 0 && unstarted_.empty() && finished_ < count_ && !giving_up_)
            give_up(number, why_nobody_can_go_on());
        // A thread that has not begun runs on this very stack, with no switch. Otherwise this fibre has nothing to do.
        const int next = next_thread();
        Fibre* const own = running_;
        Fibre* target = &main_;
        if (next >= 0) {
            current_ = next;
            target = threads_[static_cast<size_t>(next)].fibre;
            if (target == nullptr) return;
        }
        idle_.push_back(own);
        running_ = target;
        own->switch_to(*target);
    }

    // ---- waiting ----------------------------------------------------------------------------------------------------

    void wait_begins(const char* operation, Where where, unsigned mask = 0) {
        Thread& thread = threads_[static_cast<size_t>(current_)];
        thread.operation = operation;
        thread.where = where;
        thread.mask = mask;
    }

    // Leaves the current thread until it is ready again and has its turn.
    void wait() {
        if (ready_.size() == 0 && unstarted_.empty()) throw KernelMistake(why_nobody_can_go_on());
        suspend();
    }

    void suspend() {
        const int self = current_;
        const uint3 index = threadIdx;
        Fibre* const own = running_;
        threads_[static_cast<size_t>(self)].fibre = own;
        go_on();
        current_ = self;
        threadIdx = index;
        threads_[static_cast<size_t>(self)].fibre = nullptr;
        if (giving_up_) throw GivenUp();
    }

    // Who completes an operation need not wait; in random order it gets no advantage from that.
    void last_one_goes_on() {
        if (!is_random_) return;
        ready_.push(current_);
        suspend();
    }

    // ---- failure ----------------------------------------------------------------------------------------------------

    // `number` has failed and left its kernel. The first failure counts; the threads that wait are gone on with, to leave
    // theirs by GivenUp.
    void give_up(int number, const std::string& reason) {
        threads_[static_cast<size_t>(number)].fibre = nullptr;
        if (giving_up_) return;
        giving_up_ = true;
        failure_ = reason;
        is_random_ = false;
        unstarted_.clear();
        ready_.begin(count_);
        for (int i = 0; i < count_; ++i) {
            if (threads_[static_cast<size_t>(i)].fibre != nullptr) ready_.push(i);
        }
    }

    void check_mask(unsigned mask, const char* operation, Where where) const {
        const int lanes = count_ - current_ / 32 * 32;
        const unsigned existing = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        if ((mask >> (current_ % 32) & 1) == 0)
            fail(current_, "is not in its own mask " + hexadecimal(mask) + " at " + at(operation, where));
        if ((mask & ~existing) != 0)
            fail(current_, "names lanes that its warp of " + std::to_string(lanes) + " threads does not have in mask " +
                               hexadecimal(mask) + " at " + at(operation, where));
    }

    // The first thread that waits, where, and one for which it waits in vain.
    std::string why_nobody_can_go_on() const {
        int waiting = 0;
        while (thread_at(waiting).operation == nullptr) ++waiting;
        const Thread& waiter = thread_at(waiting);
        const int first = waiter.mask == 0 ? 0 : waiting / 32 * 32;
        const unsigned mask = waiter.mask;
        int absent = first;
        while ((mask != 0 && (mask >> (absent - first) & 1) == 0) || waits_with(thread_at(absent), waiter)) ++absent;
        const Thread& other = thread_at(absent);
        return name_of(waiting) + " waits at " + waiter.text() + (mask != 0 ? " with mask " + hexadecimal(mask) : "") +
               " for " + name_of(absent) +
               (other.operation == nullptr ? ", which has left the kernel"
                                           : ", which waits at " + other.text() +
                                                 (other.mask != 0 ? " with mask " + hexadecimal(other.mask) : ""));
    }
    static bool waits_with(const Thread& a, const Thread& b) { return a.operation != nullptr && a.mask == b.mask; }

    static std::string hexadecimal(unsigned value) {
        std::ostringstream text;
        text << "0x" << std::hex << value;
        return text.str();
    }

    const Grid* grid_ = nullptr;
    int count_ = 0;
    int current_ = 0;
    int finished_ = 0;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    int at_barrier_ = 0;
    Where barrier_where_;
    ShadowedMemory shared_;
    bool waited_for_previous_kernel_ = false;

    bool is_random_ = false;
    SplitMix64 random_{0};
    std::vector<int> unstarted_;
    ReadyQueue ready_;

    Fibre main_;
    Fibre* running_ = nullptr;
    std::vector<std::unique_ptr<FibreWithStack>> fibres_;
    std::vector<Fibre*> idle_;

    bool giving_up_ = false;
    std::string failure_;
};

// The runner of the kernel that is running; `operation` is what was called, for the message if there is none.
inline BlockRunner& runner_for(const char* operation) {
    BlockRunner* const runner = BlockRunner::current_runner();
    if (runner == nullptr) throw RunFailure(std::string(operation) + " was called outside a kernel");
    return *runner;
}

}  // namespace lnfree::cuda::emulation

// NOLINTBEGIN(bugprone-reserved-identifier,bugprone-macro-parentheses): CUDA's names, and types as macro arguments.
inline void __syncthreads(lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {
    lnfree::cuda::emulation::runner_for("__syncthreads()").wait_for_block(where);
}
// NOLINTEND(bugprone-reserved-identifier,bugprone-macro-parentheses)
