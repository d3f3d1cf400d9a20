// The order in which a step's gradients are summed: the same whatever the number of processes.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dev/cpu/gradient_tree.h"
#include "dev/cpu/operations.h"
#include "dev/processes.h"

using namespace lnfree;

namespace {

// The definition: a node covers 2^k micro-batches, those that exist, and is the sum of its halves.
std::string sum_of(Range node, int64_t width, int64_t leaves) {
    if (width == 1) return std::to_string(node.first);
    const int64_t middle = node.first + width / 2;
    if (middle >= leaves) return sum_of({node.first, node.last}, width / 2, leaves);
    return "(" + sum_of({node.first, middle}, width / 2, leaves) + "+" +
           sum_of({middle, node.last}, width / 2, leaves) + ")";
}

std::string whole_sum(int64_t leaves) {
    int64_t width = 1;
    while (width < leaves) width *= 2;
    return sum_of({0, leaves}, width, leaves);
}

// Sums written down, joined as GradientTree joins numbers.
using Written = std::vector<std::pair<Range, std::string>>;

void push(Written& sums, Range of, std::string text, int64_t leaves) {
    sums.emplace_back(of, std::move(text));
    while (sums.size() > 1 && are_halves(sums[sums.size() - 2].first, sums.back().first, leaves)) {
        auto& left = sums[sums.size() - 2];
        left.second = "(" + left.second + "+" + sums.back().second + ")";
        left.first.last = sums.back().first.last;
        sums.pop_back();
    }
}

std::string sum_by(int64_t processes, int64_t leaves) {
    Written all;
    for (int64_t r = 0; r < processes; r++) {
        Written own;
        const Range run = share_of(leaves, r, processes);
        for (int64_t i = run.first; i < run.last; i++) push(own, {i, i + 1}, std::to_string(i), leaves);
        const std::vector<Range> expected = tree_nodes(run, leaves).left;
        REQUIRE(own.size() == expected.size());
        for (size_t i = 0; i < own.size(); i++) {
            CHECK(own[i].first.first == expected[i].first);
            CHECK(own[i].first.last == expected[i].last);
            push(all, own[i].first, own[i].second, leaves);
        }
    }
    REQUIRE(all.size() == 1);
    return all[0].second;
}

}  // namespace

TEST_CASE("items are dealt out in runs whose lengths differ by one at most, and parts are whole blocks") {
    for (const int64_t items : {1, 2, 5, 16, 23}) {
        for (int64_t n = 1; n <= items; n++) {
            int64_t next = 0;
            for (int64_t r = 0; r < n; r++) {
                const Range share = share_of(items, r, n);
                CHECK(share.first == next);
                CHECK(share.size() >= items / n);
                CHECK(share.size() <= (items + n - 1) / n);
                next = share.last;
            }
            CHECK(next == items);
        }
    }
    int64_t next = 0;
    for (int64_t r = 0; r < 7; r++) {
        const Range part = part_of(3 * kFlatBlock + 17, r, 7);
        CHECK(part.first == next);
        CHECK((part.first % kFlatBlock == 0 || part.size() == 0));
        next = part.last;
    }
    CHECK(next == 3 * kFlatBlock + 17);
}

TEST_CASE("the tree of sums depends on the number of micro-batches alone") {
    CHECK(whole_sum(7) == "(((0+1)+(2+3))+((4+5)+6))");
    for (int64_t leaves = 1; leaves <= 40; leaves++)
        for (int64_t processes = 1; processes <= leaves; processes++) {
            CAPTURE(leaves);
            CAPTURE(processes);
            CHECK(sum_by(processes, leaves) == whole_sum(leaves));
        }
}

TEST_CASE("a process holds log2(micro-batches) + 1 buffers of gradients at most, and one for a single micro-batch") {
    CHECK(gradient_buffers({0, 1}, 1) == 1);
    CHECK(gradient_buffers({3, 4}, 9) == 1);
    CHECK(gradient_buffers({0, 16}, 16) == 5);
    CHECK(gradient_buffers({0, 28}, 28) == 5);
    CHECK(gradient_buffers({4, 8}, 16) == 3);
}

TEST_CASE("the gradients of a step are summed by the tree, each from zero") {
    const int64_t n = 37;
    for (const int64_t leaves : {1, 2, 3, 6, 11}) {
        GradientTree tree;
        Buffer gradients(n);
        std::vector<std::vector<real>> each;
        for (int step = 0; step < 2; step++) {
            each.clear();
            tree.clear();
            gradients.zero();
            for (int64_t i = 0; i < leaves; i++) {
                if (tree.holds_some()) gradients.zero();
                each.emplace_back();
                for (int64_t j = 0; j < n; j++) {
                    each.back().push_back(real(1) / static_cast<real>(1 + i * n + j + step));
                    gradients.data()[j] += each.back().back();
                }
                tree.take(operations(), gradients, leaves);
            }
            // neighbours, then neighbouring pairs, ...
            for (int64_t half = 1; half < leaves; half *= 2)
                for (int64_t i = 0; i + half < leaves; i += 2 * half)
                    for (int64_t j = 0; j < n; j++)
                        each[static_cast<size_t>(i)][static_cast<size_t>(j)] +=
                            each[static_cast<size_t>(i + half)][static_cast<size_t>(j)];
            for (int64_t j = 0; j < n; j++) CHECK(gradients.data()[j] == each[0][static_cast<size_t>(j)]);
        }
    }
}
