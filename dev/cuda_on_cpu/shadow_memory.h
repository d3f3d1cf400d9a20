// Emulation: the dynamic shared memory of a block, and beside every two bytes of it a note of who touched them last.
//
// Two accesses by different threads, one of them a write, are a race unless something orders them: a __syncthreads()
// between them, or between lanes of a warp a __syncwarp(). (A shuffle is not enough: CUDA promises no memory ordering for
// it.) The order in which the emulation happens to run threads plays no part in this, so a race is found in the first run
// that makes both accesses, whether or not its result was right.
//
// __syncthreads() is an `epoch`: accesses of earlier epochs are ordered before all that follow. Within an epoch every
// lane has a clock, which __syncwarp() advances, and a note of how far it knows the clocks of the other lanes of its warp
// (vector clocks: Lamport 1978, Mattern 1989). Epochs count on from block to block, so notes need no clearing, and a note
// from before the block's first epoch means that the memory was not written in this block.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../../data/error.h"
#include "where.h"

namespace lnfree::cuda::emulation {

class ShadowedMemory {
  public:
    static constexpr size_t granule = 2;     // bytes that share a note: the size of the smallest element, bf16
    static constexpr size_t alignment = 16;  // of every array: what a vector load needs

    // Forgets the block before. What lies in the memory stays, as on a GPU.
    void begin_block(size_t bytes, dim3 block, bool checks) {
        block_ = block;
        checks_ = checks;
        size_ = bytes;
        if (memory_.size() * sizeof(Line) < bytes) memory_.resize((bytes + sizeof(Line) - 1) / sizeof(Line));
        arrays_.clear();
        copies_.clear();
        if (!checks) return;
        if (notes_.size() * granule < bytes) notes_.resize((bytes + granule - 1) / granule);
        if (epoch_ > UINT32_MAX - (1u << 30)) forget_everything();
        first_epoch_ = ++epoch_;
        const auto warps = (size_t{block.x} * block.y * block.z + 31) / 32;
        if (clocks_.size() < warps) clocks_.resize(warps);
        for (Clocks& clocks : clocks_) {
            if (clocks.known[0][0] > latest_time / 2 || clocks.known[0][0] == 0) clocks = Clocks::start();
        }
    }

    // The array that begins at byte `offset`. Fails where the launch did not give that much memory.
    void* take(size_t offset, size_t count, size_t element_bytes, int thread, Where where) {
        if (offset + count * element_bytes > size_)
            fail(thread, "takes " + std::to_string(count) + " elements of " + std::to_string(element_bytes) +
                             " bytes at byte " + std::to_string(offset) + " of shared memory at " + where.text() +
                             ", but the launch gave " + std::to_string(size_) + " bytes");
        const Array array = {offset, count, element_bytes, where};
        const auto same = [&](const Array& other) {
            return other.offset == offset && other.count == count && other.element_bytes == element_bytes;
        };
        if (std::none_of(arrays_.begin(), arrays_.end(), same)) arrays_.push_back(array);
        return data() + offset;
    }

    // ---- accesses, `at` the address of the first byte ---------------------------------------------------------------

    void read(const void* at, size_t bytes, int thread) {
        if (checks_) check_read(offset_of(at), bytes, thread);
    }
    void write(const void* at, size_t bytes, int thread) {
        if (checks_) check_write(offset_of(at), bytes, thread, false);
    }
    // A read and a write in one; those of other threads may come before or after.
    void atomic(const void* at, size_t bytes, int thread) {
        if (checks_) check_atomic(offset_of(at), bytes, thread);
    }

    // ---- what orders accesses ---------------------------------------------------------------------------------------

    void all_threads_meet() { ++epoch_; }

    void lanes_meet(int warp, unsigned mask) {
        if (checks_) clocks_[static_cast<size_t>(warp)].meet(mask);
    }

    // ---- asynchronous copies ----------------------------------------------------------------------------------------
    // The bytes arrive when the thread that asked for them waits for them. Until then nobody may touch their place.

    void begin_copy(void* to, const void* from, size_t bytes, int thread) {
        Copies& copies = copies_of(thread);
        Copy copy = {to, bytes, copies.open_group, {}};
        if (from != nullptr) std::memcpy(copy.value, from, bytes);
        copies.in_flight.push_back(copy);
        if (checks_) check_write(offset_of(to), bytes, thread, true);
    }
    void commit_copies(int thread) { ++copies_of(thread).open_group; }
    // Lets the copies arrive of all groups but the newest `pending`.
    void wait_for_copies(int pending, int thread) {
        Copies& copies = copies_of(thread);
        size_t kept = 0;
        for (const Copy& copy : copies.in_flight) {
            if (copy.group >= copies.open_group - pending) {
                copies.in_flight[kept++] = copy;
                continue;
            }
            std::memcpy(copy.to, copy.value, copy.bytes);
            if (checks_) arrived(offset_of(copy.to), copy.bytes, thread);
        }
        copies.in_flight.resize(kept);
    }

    [[noreturn]] void fail(int thread, const std::string& message) const {
        throw KernelMistake(thread_text(thread, block_) + " " + message);
    }

    // The array around `at`, in words.
    std::string describe(const void* at) const {
        const size_t offset = offset_of(at);
        std::string text = "byte " + std::to_string(offset) + " of shared memory";
        for (const Array& array : arrays_) {
            if (offset < array.offset || offset >= array.offset + array.count * array.element_bytes) continue;
            text = "element " + std::to_string((offset - array.offset) / array.element_bytes) + " of " + array.text();
        }
        return text;
    }

    // The array that begins at `first`, in words.
    std::string describe_array(const void* first) const {
        const size_t offset = offset_of(first);
        for (const Array& array : arrays_) {
            if (array.offset == offset) return array.text();
        }
        return "the array at byte " + std::to_string(offset) + " of shared memory";
    }

  private:
    static constexpr uint32_t latest_time = (1u << 20) - 1;
    static constexpr uint32_t is_in_flight = 1, is_atomic = 2;

    // Who, and when: `time` by the clock of the thread's lane. Epoch 0: nobody yet.
    struct Access {
        uint32_t epoch = 0;
        uint32_t time : 20;
        uint32_t thread : 10;
        uint32_t kind : 2;
        Access() : time(0), thread(0), kind(0) {}
        Access(uint32_t epoch, uint32_t time, int thread, uint32_t kind)
            : epoch(epoch), time(time), thread(static_cast<uint32_t>(thread)), kind(kind) {}
    };
    // The last write, and since then the first reader and one other. Of several others one in another warp is kept, because
    // no __syncwarp() orders it before a write by the first reader's warp; within the first reader's warp the latest
    // one is kept, and whatever orders that one before a write orders the earlier ones too (if all lanes meet).
    struct Note {
        Access write;
        Access reader;
        Access other_reader;
    };
    struct Clocks {
        uint32_t known[32][32];  // [lane][other lane]: all of the other's accesses up to this time come before

        static Clocks start() {
            Clocks clocks = {};
            for (int lane = 0; lane < 32; ++lane) clocks.known[lane][lane] = 1;
            return clocks;
        }
        void meet(unsigned mask) {
            uint32_t latest[32] = {};
            for (int lane = 0; lane < 32; ++lane) {
                if ((mask >> lane & 1) == 0) continue;
                for (int other = 0; other < 32; ++other) latest[other] = std::max(latest[other], known[lane][other]);
            }
            for (int lane = 0; lane < 32; ++lane) {
                if ((mask >> lane & 1) == 0) continue;
                std::copy(latest, latest + 32, known[lane]);
                if (++known[lane][lane] > latest_time)
                    throw RunFailure(
                        "calls __syncwarp() more than a million times in one block; set "
                        "LNFREE_EMULATION_CHECKS=0");
            }
        }
    };
    struct Array {
        size_t offset, count, element_bytes;
        Where where;

        std::string text() const {
            return "the shared array of " + std::to_string(count) + " taken at " + where.text();
        }
    };
    struct Copy {
        void* to;
        size_t bytes;
        int group;
        unsigned char value[16];
    };
    struct Copies {
        int open_group = 0;
        std::vector<Copy> in_flight;
    };
    struct alignas(128) Line {
        unsigned char bytes[128];
    };

    unsigned char* data() { return reinterpret_cast<unsigned char*>(memory_.data()); }
    size_t offset_of(const void* at) const {
        return static_cast<size_t>(static_cast<const unsigned char*>(at) -
                                   reinterpret_cast<const unsigned char*>(memory_.data()));
    }

    Copies& copies_of(int thread) {
        if (copies_.empty()) copies_.resize(size_t{block_.x} * block_.y * block_.z);
        return copies_[static_cast<size_t>(thread)];
    }

    void forget_everything() {
        std::fill(notes_.begin(), notes_.end(), Note());
        epoch_ = 0;
    }

    Access now(int thread, uint32_t kind) const {
        const auto lane = static_cast<size_t>(thread % 32);
        return Access(epoch_, clocks_[static_cast<size_t>(thread / 32)].known[lane][lane], thread, kind);
    }

    // Does `earlier` come before whatever `thread` does now, in every order in which the threads may run?
    bool is_ordered(const Access& earlier, int thread) const {
        const auto other = static_cast<int>(earlier.thread);
        if (earlier.epoch < epoch_ || other == thread) return true;
        if (other / 32 != thread / 32) return false;
        return clocks_[static_cast<size_t>(thread / 32)].known[thread % 32][other % 32] >= earlier.time;
    }

    void check_read(size_t offset, size_t bytes, int thread) {
        const Access access = now(thread, 0);
        for (size_t i = offset / granule; i * granule < offset + bytes; ++i) {
            Note& note = notes_[i];
            check_written(note, i, thread);
            if (!is_ordered(note.write, thread)) fail_race(i, thread, "reads", note.write, "wrote");
            note_read(note, access);
        }
    }

    static void note_read(Note& note, const Access& access) {
        if (note.reader.epoch != access.epoch || note.reader.thread == access.thread) {
            if (note.reader.epoch != access.epoch) note.other_reader = Access();
            note.reader = access;
            return;
        }
        const bool other_is_far =
            note.other_reader.epoch == access.epoch && note.other_reader.thread / 32 != note.reader.thread / 32;
        if (!other_is_far) note.other_reader = access;
    }

    void check_write(size_t offset, size_t bytes, int thread, bool in_flight) {
        const Access access = now(thread, in_flight ? is_in_flight : 0);
        for (size_t i = offset / granule; i * granule < offset + bytes; ++i) {
            Note& note = notes_[i];
            check_not_in_flight(note, i, thread);
            if (!is_ordered(note.write, thread)) fail_race(i, thread, "writes", note.write, "wrote");
            check_readers(note, i, thread);
            note = Note();
            note.write = access;
        }
    }

    void check_atomic(size_t offset, size_t bytes, int thread) {
        const Access access = now(thread, is_atomic);
        for (size_t i = offset / granule; i * granule < offset + bytes; ++i) {
            Note& note = notes_[i];
            check_written(note, i, thread);
            if (note.write.kind != is_atomic && !is_ordered(note.write, thread))
                fail_race(i, thread, "changes", note.write, "wrote");
            check_readers(note, i, thread);
            note = Note();
            note.write = access;
        }
    }

    void arrived(size_t offset, size_t bytes, int thread) {
        const Access access = now(thread, 0);
        for (size_t i = offset / granule; i * granule < offset + bytes; ++i) notes_[i].write = access;
    }

    void check_written(const Note& note, size_t i, int thread) const {
        if (note.write.epoch < first_epoch_)
            fail(thread, "reads " + describe_granule(i) +
                             ", which no thread of this block has written yet (never written, or too few barriers)");
        check_not_in_flight(note, i, thread);
    }
    void check_not_in_flight(const Note& note, size_t i, int thread) const {
        if (note.write.kind == is_in_flight && note.write.epoch >= first_epoch_)
            fail(thread, "touches " + describe_granule(i) + " while an asynchronous copy by " +
                             thread_text(static_cast<int>(note.write.thread), block_) +
                             " is on its way there; copy_async_wait comes first");
    }
    void check_readers(const Note& note, size_t i, int thread) const {
        if (!is_ordered(note.reader, thread)) fail_race(i, thread, "writes", note.reader, "read");
        if (!is_ordered(note.other_reader, thread)) fail_race(i, thread, "writes", note.other_reader, "read");
    }

    [[noreturn]] void fail_race(size_t i, int thread, const char* does, const Access& other, const char* did) const {
        fail(thread, std::string(does) + " " + describe_granule(i) + ", which " +
                         thread_text(static_cast<int>(other.thread), block_) + " " + did +
                         " with no barrier between (race)");
    }
    std::string describe_granule(size_t i) const {
        return describe(reinterpret_cast<const unsigned char*>(memory_.data()) + i * granule);
    }

    dim3 block_;
    bool checks_ = false;
    size_t size_ = 0;
    std::vector<Line> memory_;
    std::vector<Array> arrays_;
    std::vector<Copies> copies_;  // by thread; empty until the first one

    std::vector<Note> notes_;     // by granule
    std::vector<Clocks> clocks_;  // by warp
    uint32_t epoch_ = 0;
    uint32_t first_epoch_ = 0;  // of this block
};

}  // namespace lnfree::cuda::emulation
