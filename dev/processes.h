// The processes that carry out one run together. Alone a program is one; over MPI (dev/run/processes_mpi.cpp) there are
// several, each with a copy of the model, and what they share goes through the few collective operations here: every
// process calls the same ones in the same order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "buffer.h"

namespace lnfree {

// first .. last - 1
struct Range {
    int64_t first = 0, last = 0;

    int64_t size() const { return last - first; }
    bool holds(int64_t i) const { return i >= first && i < last; }
};

inline Range common(Range a, Range b) {
    const int64_t first = std::max(a.first, b.first);
    return {first, std::max(first, std::min(a.last, b.last))};
}

// What process `rank` of `processes` does of `items` in a row: contiguous runs whose lengths differ by one at most, the
// longer ones first.
inline Range share_of(int64_t items, int64_t rank, int64_t processes) {
    const int64_t least = items / processes, longer = items % processes;
    const int64_t first = rank * least + std::min(rank, longer);
    return {first, first + least + (rank < longer ? 1 : 0)};
}

// Whose part of a flat buffer is what: whole blocks of so many numbers, in which norms are summed as well, so that no sum
// depends on the number of processes.
constexpr int64_t kFlatBlock = 1 << 14;
inline Range part_of(int64_t numbers, int64_t rank, int64_t processes) {
    const Range blocks = share_of((numbers + kFlatBlock - 1) / kFlatBlock, rank, processes);
    return {std::min(numbers, blocks.first * kFlatBlock), std::min(numbers, blocks.last * kFlatBlock)};
}

// This class itself is a single process, for which there is nothing to do. What fails throws RunFailure.
class Processes {
  public:
    virtual ~Processes() = default;
    virtual int rank() const { return 0; }
    virtual int size() const { return 1; }
    // Counted on this machine alone.
    virtual int place_on_machine() const { return 0; }
    // The one that writes, prints, and decides what the clock decides.
    bool leads() const { return rank() == 0; }
    Range share(int64_t items) const { return share_of(items, rank(), size()); }
    Range part(int64_t numbers) const { return part_of(numbers, rank(), size()); }
    // How many of `items` each process does.
    std::vector<int64_t> shares(int64_t items) const {
        std::vector<int64_t> counts;
        for (int r = 0; r < size(); r++) counts.push_back(share_of(items, r, size()).size());
        return counts;
    }
    // From any thread: this process cannot go on, though its main thread may wait for that. Says so in one line and ends all
    // processes with exit status 1.
    virtual void give_up(const std::string& line) { static_cast<void>(line); }
    // Seconds spent so far in the operations below, waiting for others included.
    virtual double seconds() const { return 0; }

    // ----- collective operations

    // `all` holds counts[r] elements of process r one after another, each of `bytes` (1, 4 or 8); every process brings its
    // own and has all of them afterwards.
    virtual void all_gather(void* all, int64_t bytes, const std::vector<int64_t>& counts) {
        static_cast<void>(all), static_cast<void>(bytes), static_cast<void>(counts);
    }
    // `n` bytes of process 0 become everyone's.
    virtual void broadcast(void* data, int64_t n) { static_cast<void>(data), static_cast<void>(n); }
    // Sends flat[pieces[r]] to every process r, nothing if `flat` is null. From each process q that sends (`senders`) come
    // the numbers of pieces[rank()], to received[q].
    virtual void exchange(const real* flat, const std::vector<Range>& pieces, const std::vector<bool>& senders,
                          const std::vector<real*>& received) {
        static_cast<void>(flat), static_cast<void>(pieces), static_cast<void>(senders), static_cast<void>(received);
    }
    // Process 0 gets counts[r] numbers of every process r, one after another; `mine` is what this one gives.
    virtual void collect(real* all, const real* mine, const std::vector<int64_t>& counts) {
        std::copy(mine, mine + counts[0], all);
    }

    // ----- made of them

    // The largest of what the processes bring.
    int64_t largest(int64_t mine) {
        std::vector<int64_t> all(static_cast<size_t>(size()));
        all[static_cast<size_t>(rank())] = mine;
        all_gather(all.data(), sizeof mine, shares(size()));
        return *std::max_element(all.begin(), all.end());
    }
    template <class Number>
    Number of_the_first(Number x) {
        broadcast(&x, sizeof x);
        return x;
    }
    // A flat buffer of which every process has its part becomes whole.
    void complete(real* flat, int64_t numbers) {
        std::vector<int64_t> counts;
        for (int r = 0; r < size(); r++) counts.push_back(part_of(numbers, r, size()).size());
        all_gather(flat, sizeof(real), counts);
    }
};

namespace detail {
inline Processes*& current_processes() {
    static Processes alone;
    static Processes* current = &alone;
    return current;
}
}  // namespace detail

// Those of this run: this one alone, unless others were put in its place when the program began.
inline Processes& processes() {
    return *detail::current_processes();
}
inline void use_processes(Processes& p) {
    detail::current_processes() = &p;
}

}  // namespace lnfree
