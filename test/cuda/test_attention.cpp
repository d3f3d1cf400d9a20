// The engine's attention kernels, forward and backward, against the CPU reference: sizes that fit no tile, both types,
// scores that force the online softmax to rescale, any order of threads. dev/cuda/attention_check.h derives the bounds.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "dev/cuda/attention_check.h"

using namespace lnfree::cuda;
using namespace lnfree::cuda::attention_check;
using lnfree::BadInput;

namespace {

template <class X>
void check_plain(const Problem<X>& problem) {
    CAPTURE(problem.sizes.text());
    const Rounds rounds = std::is_same_v<X, bf16> ? Rounds::results : Rounds::nothing;
    CHECK(worst_forward_error<X>(attention_forward_plain<X>, problem, rounds) <= 1);
    CHECK(worst_backward_error<X>(attention_backward_plain<X>, problem, rounds) <= 1);
}

void check_tensor_cores(const Problem<bf16>& problem) {
    CAPTURE(problem.sizes.text());
    CHECK(worst_forward_error<bf16>(attention_forward_tensor_cores<bf16>, problem, Rounds::weights_too) <= 1);
    CHECK(worst_backward_error<bf16>(attention_backward_tensor_cores<bf16>, problem, Rounds::weights_too) <= 1);
}

// Every query is the same and keys grow or shrink along the sequence, so that scores rise or fall by `slope` per
// position.
template <class X>
Problem<X> steep_problem(const Sizes& sizes, float slope) {
    Problem<X> problem(sizes, 1, 7);
    const auto T = static_cast<size_t>(sizes.T), C = sizes.width(), HS = static_cast<size_t>(sizes.HS);
    for (size_t n = 0; n < sizes.positions(); ++n) {
        for (size_t c = 0; c < C; ++c) {
            problem.qkv[n * 3 * C + c] = 1;
            problem.qkv[n * 3 * C + C + c] = slope * static_cast<float>(n % T) / std::sqrt(static_cast<float>(HS));
        }
    }
    problem.qkv = as_held<X>(problem.qkv);
    return problem;
}

// B, T and NH around every tile's edge; each test fills in its head size.
const Sizes ODD_SIZES[] = {{1, 1, 1, 0},  {2, 3, 1, 0},   {1, 17, 3, 0}, {1, 64, 1, 0},
                           {1, 65, 1, 0}, {2, 129, 1, 0}, {1, 200, 3, 0}};

}  // namespace

TEST_CASE("plain attention equals the reference in float for head sizes and lengths that fit no tile") {
    for (const int64_t HS : {5, 16, 64})
        for (Sizes sizes : ODD_SIZES) {
            sizes.HS = HS;
            check_plain(Problem<float>(sizes, 2, 1));
        }
}

TEST_CASE("plain attention takes head sizes up to 256") {
    for (const int64_t HS : {1, 33, 100, 129, 256}) check_plain(Problem<float>({1, 37, 1, HS}, 1, 2));
}

TEST_CASE("plain attention in bf16 is off by the rounding of its results and no more") {
    for (const int64_t HS : {5, 16, 64}) check_plain(Problem<bf16>({1, 70, 3, HS}, 2, 3));
}

TEST_CASE("attention on tensor cores is off by the rounding of weights and results and no more") {
    for (Sizes sizes : ODD_SIZES) {
        sizes.HS = 64;
        check_tensor_cores(Problem<bf16>(sizes, 3, 4));
    }
}

TEST_CASE("attention on tensor cores takes heads of 32, 96 and 128") {
    for (const int64_t HS : {32, 96, 128}) check_tensor_cores(Problem<bf16>({1, 150, 2, HS}, 2, 5));
}

TEST_CASE("heads of keys and values may serve several of queries") {
    for (const Sizes& sizes : {Sizes{2, 37, 6, 5, 3}, {1, 70, 4, 16, 4}, {1, 65, 3, 33, 1}})
        check_plain(Problem<float>(sizes, 2, 10));
    for (const Sizes& sizes : {Sizes{1, 150, 6, 32, 3}, {2, 129, 2, 64, 2}, {1, 70, 4, 128, 2}})
        check_tensor_cores(Problem<bf16>(sizes, 2, 11));
}

TEST_CASE("scores that rise or fall steeply along the sequence neither overflow nor lose what came before") {
    for (const float slope : {-3.0f, -0.06f, 0.06f, 0.5f, 3.0f}) {
        CAPTURE(slope);
        check_plain(steep_problem<float>({1, 100, 1, 16}, slope));
        check_tensor_cores(steep_problem<bf16>({1, 260, 1, 32}, slope));
    }
}

TEST_CASE("attention gives the same bits in every order of threads") {
    const Problem<bf16> problem({1, 140, 2, 64, 2}, 3, 6);
    const auto results = run_forward<bf16>(attention_forward<bf16>, problem);
    const ForwardAnswer answer = answer_forward(problem);
    const auto gradients = run_backward<bf16>(attention_backward<bf16>, problem, answer);
    const auto plain_gradients = run_backward<bf16>(attention_backward_plain<bf16>, problem, answer);
    for (const uint64_t seed : {1, 2}) {
        const TemporaryEmulationOptions random_order(true, seed);
        CHECK(run_forward<bf16>(attention_forward<bf16>, problem) == results);
        CHECK(run_backward<bf16>(attention_backward<bf16>, problem, answer) == gradients);
        CHECK(run_backward<bf16>(attention_backward_plain<bf16>, problem, answer) == plain_gradients);
    }
}

TEST_CASE("a query that is not a number makes its own row not a number, and no other") {
    Problem<bf16> problem({1, 80, 1, 32}, 1, 8);
    problem.qkv[70 * 96] = std::nanf("");
    for (const auto forward :
         {Forward<bf16>(attention_forward_plain<bf16>), Forward<bf16>(attention_forward_tensor_cores<bf16>)}) {
        const auto [values, sums] = run_forward(forward, problem);
        for (size_t t = 0; t < 80; ++t) {
            CHECK(std::isnan(values[t * 32 + 5]) == (t == 70));
            CHECK(std::isnan(sums[t]) == (t == 70));
        }
    }
}

TEST_CASE("the fastest kernels that apply are chosen, and sizes that none takes are refused") {
    CHECK(attention_has_tensor_cores<bf16>(64));
    CHECK_FALSE(attention_has_tensor_cores<float>(64));
    CHECK_FALSE(attention_has_tensor_cores<bf16>(48));
    const Problem<bf16> problem({1, 5, 1, 48}, 1, 9);
    CHECK(worst_forward_error<bf16>(attention_forward<bf16>, problem, Rounds::results) <= 1);
    CHECK(worst_backward_error<bf16>(attention_backward<bf16>, problem, Rounds::results) <= 1);
    CHECK_THROWS_AS(attention_forward_tensor_cores<bf16>(nullptr, nullptr, nullptr, 1, 5, {1, 1, 48}, nullptr),
                    BadInput);
    CHECK_THROWS_AS(attention_forward_plain<float>(nullptr, nullptr, nullptr, 1, 5, {1, 1, 257}, nullptr), BadInput);
    CHECK_THROWS_AS(attention_forward_plain<float>(nullptr, nullptr, nullptr, 1, 5, {3, 2, 16}, nullptr), BadInput);
    CHECK_THROWS_AS(attention_forward_plain<float>(nullptr, nullptr, nullptr, 1, int64_t{1} << 24, {1, 1, 64}, nullptr),
                    BadInput);
}
