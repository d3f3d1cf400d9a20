// The sum of a step's gradients, in one order whatever the number of processes: a binary tree over the micro-batches.
//
//     0 1 2 3 4 5 6    Each micro-batch's gradient starts from zero. Neighbours are added, then neighbouring pairs, then fours,
//     \/  \/  \/  |    ...: sums that depend on the number of micro-batches alone. A process adds up what lies within its own
//      \  /    \  |    run of them; what joins the runs of two processes is added by whoever owns that part of the flat buffer
//       \/      \/    (processes.h).
//         \    /
//
// A process waits for the right-hand neighbours of at most log2(micro-batches) sums: so many buffers beside the gradients
// themselves; none where it has one micro-batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../../data/error.h"
#include "../processes.h"
#include "operations.h"

namespace lnfree {

// Whether two sums next to each other are the two halves of a node of the tree over `leaves` micro-batches, whose last
// nodes may be cut short.
inline bool are_halves(Range left, Range right, int64_t leaves) {
    const int64_t half = left.size();
    const bool power_of_two = (half & (half - 1)) == 0;
    return power_of_two && left.first % (2 * half) == 0 && left.last == right.first &&
           right.last == std::min(left.first + 2 * half, leaves);
}

// The sums that are left of the micro-batches `run` once all halves are joined, and how many there were at most on the way.
struct TreeNodes {
    std::vector<Range> left;
    int64_t most = 0;
};
inline TreeNodes tree_nodes(Range run, int64_t leaves) {
    TreeNodes nodes;
    for (int64_t i = run.first; i < run.last; i++) {
        Range sum = {i, i + 1};
        while (!nodes.left.empty() && are_halves(nodes.left.back(), sum, leaves)) {
            sum.first = nodes.left.back().first;
            nodes.left.pop_back();
        }
        nodes.left.push_back(sum);
        nodes.most = std::max(nodes.most, static_cast<int64_t>(nodes.left.size()));
    }
    return nodes;
}

// Buffers of the size of the gradients that a process holds for its `run` of `leaves` micro-batches, the gradients included.
inline int64_t gradient_buffers(Range run, int64_t leaves) {
    return run.size() <= 1 ? 1 : 1 + tree_nodes(run, leaves).most;
}

class GradientTree {
  public:
    // Numbers for which reduce() takes memory.
    static int64_t received_numbers(int64_t leaves, int64_t processes) {
        int64_t sums = 0;
        for (int64_t r = 0; processes > 1 && r < processes; r++)
            sums += static_cast<int64_t>(tree_nodes(share_of(leaves, r, processes), leaves).left.size());
        return sums * kChunk;
    }

    // A step begins.
    void clear() {
        for (Sum& sum : sums_) spare_.push_back(std::move(sum.numbers));
        sums_.clear();
        taken_ = 0;
    }
    // Whether the gradients of a micro-batch of this step were put aside, so that the next ones can start from zero.
    bool holds_some() const { return !sums_.empty(); }

    // The gradient of this process's next micro-batch of `leaves` in the step. After the last one of a single process
    // `gradients` is the sum over all.
    void take(const Operations& op, Buffer& gradients, int64_t leaves) {
        leaves_ = leaves;
        const Range run = processes().share(leaves);
        if (run.size() <= 1) return;
        const int64_t i = run.first + taken_++;
        push(op, gradients, {i, i + 1});
        if (i + 1 < run.last || processes().size() > 1) return;
        copy(gradients.data(), sums_[0].numbers.data(), gradients.size());
        clear();
    }

    // With several processes: this one's part of `gradients` becomes that part of the sum over all micro-batches of the step;
    // the other parts mean nothing any more.
    void reduce(const Operations& op, Buffer& gradients) {
        if (processes().size() == 1) return;
        const int size = processes().size();
        std::vector<Range> parts;
        std::vector<std::vector<Range>> nodes;
        int64_t longest = 0;
        size_t rounds = 0;
        for (int r = 0; r < size; r++) {
            parts.push_back(part_of(gradients.size(), r, size));
            nodes.push_back(tree_nodes(share_of(leaves_, r, size), leaves_).left);
            longest = std::max(longest, parts.back().size());
            rounds = std::max(rounds, nodes.back().size());
        }
        const size_t own = nodes[static_cast<size_t>(processes().rank())].size();
        if (!sums_.empty() && sums_.size() != own)
            throw RunFailure("internal error: a step's micro-batches were not all taken");
        const int64_t needed = received_numbers(leaves_, size);
        if (received_.size() < needed) received_.allocate(needed);
        for (int64_t at = 0; at < longest; at += kChunk) {
            std::vector<Range> pieces;
            for (const Range part : parts) pieces.push_back(common(part, {part.first + at, part.first + at + kChunk}));
            for (size_t round = 0; round < rounds; round++)
                exchange(round < own ? (sums_.empty() ? gradients : sums_[round].numbers).data() : nullptr, pieces,
                         nodes, round);
            const Range mine = pieces[static_cast<size_t>(processes().rank())];
            join_received(op, nodes, mine.size());
            copy(gradients.data() + mine.first, received_.data(), mine.size());
        }
        clear();
    }

  private:
    static constexpr int64_t kChunk = 1 << 20;  // numbers that a process receives of another at a time
    struct Sum {
        Range of;
        Buffer numbers;
    };
    std::vector<Sum> sums_;  // each joined as far as it goes
    std::vector<Buffer> spare_;
    Buffer received_;  // a chunk of every process's sums, in the order of the micro-batches
    int64_t taken_ = 0, leaves_ = 1;

    static void copy(real* to, const real* from, int64_t n) {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++) to[i] = from[i];
    }

    void push(const Operations& op, const Buffer& gradients, Range of) {
        const int64_t n = gradients.size();
        if (!sums_.empty() && are_halves(sums_.back().of, of, leaves_)) {
            real* const sum = sums_.back().numbers.data();
            op.residual_forward(sum, sum, gradients.data(), n);
            sums_.back().of.last = of.last;
        } else {
            if (spare_.empty()) spare_.emplace_back(n);
            copy(spare_.back().data(), gradients.data(), n);
            sums_.push_back({of, std::move(spare_.back())});
            spare_.pop_back();
        }
        while (sums_.size() > 1 && are_halves(sums_[sums_.size() - 2].of, sums_.back().of, leaves_)) {
            Sum &left = sums_[sums_.size() - 2], &right = sums_.back();
            op.residual_forward(left.numbers.data(), left.numbers.data(), right.numbers.data(), n);
            left.of.last = right.of.last;
            spare_.push_back(std::move(right.numbers));
            sums_.pop_back();
        }
    }

    // Every process's sum number `round`, where it has so many.
    void exchange(const real* sum, const std::vector<Range>& pieces, const std::vector<std::vector<Range>>& nodes,
                  size_t round) {
        std::vector<bool> senders;
        std::vector<real*> received;
        int64_t before = 0;
        for (const std::vector<Range>& theirs : nodes) {
            senders.push_back(round < theirs.size());
            received.push_back(received_.data() + (before + static_cast<int64_t>(round)) * kChunk);
            before += static_cast<int64_t>(theirs.size());
        }
        processes().exchange(sum, pieces, senders, received);
    }

    // Joins what was received; the sum over all is then the first chunk.
    void join_received(const Operations& op, const std::vector<std::vector<Range>>& nodes, int64_t n) {
        std::vector<std::pair<Range, real*>> sums;
        real* next = received_.data();
        for (const std::vector<Range>& theirs : nodes)
            for (const Range of : theirs) {
                sums.emplace_back(of, next);
                next += kChunk;
                while (sums.size() > 1 && are_halves(sums[sums.size() - 2].first, sums.back().first, leaves_)) {
                    auto& [range, left] = sums[sums.size() - 2];
                    op.residual_forward(left, left, sums.back().second, n);
                    range.last = sums.back().first.last;
                    sums.pop_back();
                }
            }
    }
};

}  // namespace lnfree
