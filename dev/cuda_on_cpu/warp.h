// Emulation: the operations in which the lanes of a warp exchange values. The lane that comes last does the work for all
// lanes of the mask, while the others' arguments wait on their stacks; so no lane can run ahead and overwrite what
// another has yet to read.
#pragma once

#include <cstdint>

#include "block.h"

namespace lnfree::cuda::emulation {

// ---- __syncwarp ------------------------------------------------------------------------------------------------------

inline void complete_syncwarp(BlockRunner& runner, int warp, void* const*, unsigned mask) {
    runner.shared().lanes_meet(warp, mask);
}

// ---- shuffles --------------------------------------------------------------------------------------------------------

template <class T>
struct ShuffleLane {
    T value;     // in: what this lane offers; out: what it gets
    int source;  // the lane it reads
    Where where;
};

template <class T>
void complete_shuffle(BlockRunner& runner, int warp, void* const* lanes, unsigned mask) {
    T offered[32] = {};
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        offered[lane] = static_cast<ShuffleLane<T>*>(lanes[lane])->value;
    }
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        auto& lane = *static_cast<ShuffleLane<T>*>(lanes[__builtin_ctz(rest)]);
        if ((mask >> lane.source & 1) == 0)
            runner.fail(warp * 32 + __builtin_ctz(rest), "reads lane " + std::to_string(lane.source) +
                                                             ", which is not in the mask, in the shuffle of " +
                                                             lane.where.text());
        lane.value = offered[lane.source];
    }
}

// `source` is computed from (lane, first lane of the segment, lanes in the segment).
template <class T, class Source>
T shuffle(unsigned mask, const char* name, T value, int width, Where where, Source source) {
    BlockRunner& runner = runner_for(name);
    if (width < 1 || width > 32 || (width & (width - 1)) != 0)
        runner.fail(runner.thread(), "gives the width " + std::to_string(width) + " at " + where.text() +
                                         "; it must be a power of two up to 32");
    const int lane = runner.thread() % 32;
    ShuffleLane<T> exchange = {value, source(lane, lane / width * width), where};
    runner.meet_lanes(mask, name, where, &complete_shuffle<T>, &exchange);
    return exchange.value;
}

// ---- votes -----------------------------------------------------------------------------------------------------------

struct VoteLane {
    bool is_true;
    unsigned ballot;
};

inline void complete_vote(BlockRunner&, int, void* const* lanes, unsigned mask) {
    unsigned ballot = 0;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        if (static_cast<VoteLane*>(lanes[lane])->is_true) ballot |= 1u << lane;
    }
    for (unsigned rest = mask; rest != 0; rest &= rest - 1)
        static_cast<VoteLane*>(lanes[__builtin_ctz(rest)])->ballot = ballot;
}

inline unsigned vote(unsigned mask, const char* name, bool is_true, Where where) {
    VoteLane exchange = {is_true, 0};
    runner_for(name).meet_lanes(mask, name, where, &complete_vote, &exchange);
    return exchange.ballot;
}

}  // namespace lnfree::cuda::emulation

// NOLINTBEGIN(bugprone-reserved-identifier,bugprone-macro-parentheses): CUDA's names, and types as macro arguments.
inline void __syncwarp(unsigned mask = 0xffffffff,
                       lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {
    using namespace lnfree::cuda::emulation;
    runner_for("__syncwarp()").meet_lanes(mask, "__syncwarp()", where, &complete_syncwarp, nullptr);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {
    return lnfree::cuda::emulation::vote(mask, "__ballot_sync()", predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate,
                      lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {
    return lnfree::cuda::emulation::vote(mask, "__any_sync()", predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {
    return lnfree::cuda::emulation::vote(mask, "__all_sync()", predicate != 0, where) == mask;
}

// Overloads and not templates, as in CUDA: then what converts to a number (an element of a Shared<float>) may be shuffled.
// A lane whose source would lie outside its segment of `width` lanes keeps its own value.
#define LNFREE_SHUFFLES(T)                                                                                       \
    inline T __shfl_sync(unsigned mask, T value, int source, int width = 32,                                     \
                         lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {        \
        return lnfree::cuda::emulation::shuffle(mask, "__shfl_sync()", value, width, where,                      \
                                                [=](int, int first) { return first + (source & (width - 1)); }); \
    }                                                                                                            \
    inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,                              \
                            lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {     \
        return lnfree::cuda::emulation::shuffle(                                                                 \
            mask, "__shfl_up_sync()", value, width, where, [=](int lane, int first) {                            \
                return lane - first >= static_cast<int>(delta) ? lane - static_cast<int>(delta) : lane;          \
            });                                                                                                  \
    }                                                                                                            \
    inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,                            \
                              lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {   \
        return lnfree::cuda::emulation::shuffle(                                                                 \
            mask, "__shfl_down_sync()", value, width, where, [=](int lane, int first) {                          \
                return lane + static_cast<int>(delta) < first + width ? lane + static_cast<int>(delta) : lane;   \
            });                                                                                                  \
    }                                                                                                            \
    inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,                              \
                             lnfree::cuda::emulation::Where where = lnfree::cuda::emulation::Where::here()) {    \
        return lnfree::cuda::emulation::shuffle(                                                                 \
            mask, "__shfl_xor_sync()", value, width, where, [=](int lane, int first) {                           \
                return (lane ^ (lane_mask & 31)) < first + width ? lane ^ (lane_mask & 31) : lane;               \
            });                                                                                                  \
    }
LNFREE_SHUFFLES(int)
LNFREE_SHUFFLES(unsigned)
LNFREE_SHUFFLES(long)
LNFREE_SHUFFLES(unsigned long)
LNFREE_SHUFFLES(long long)
LNFREE_SHUFFLES(unsigned long long)
LNFREE_SHUFFLES(float)
LNFREE_SHUFFLES(double)
#undef LNFREE_SHUFFLES
// NOLINTEND(bugprone-reserved-identifier,bugprone-macro-parentheses)
