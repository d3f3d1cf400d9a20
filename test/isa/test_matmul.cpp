// The engine's matrix product, and every version of the ladder below it, against sums written out in double precision:
// every orientation, sizes that fit no tile, rows longer than needed, accumulation, bias, special values, and the same
// bits for any number of threads. Once per instruction set, because tiles and blocks differ.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "dev/cpu/matmul.h"
#include "dev/cpu/matmul_check.h"
#include "dev/cpu/matmul_versions.h"

using lnfree::MatmulProblem;
using lnfree::MatmulShape;
using lnfree::MatmulVersion;
using lnfree::ThreadCount;
using lnfree::Transpose;

namespace {

constexpr Transpose BOTH[] = {Transpose::No, Transpose::Yes};
constexpr float INF = std::numeric_limits<float>::infinity(), NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

const auto engines_product = [](auto... arguments) { lnfree::matmul(arguments...); };

// visit(problem) in all four orientations.
template <class Real = float, class Visit>
void for_each_orientation(const MatmulShape& shape, const Visit& visit) {
    for (const Transpose ta : BOTH)
        for (const Transpose tb : BOTH) visit(MatmulProblem<Real>(ta, tb, shape));
}

// visit(function, name) for the engine's product and for every version of the ladder.
template <class Visit>
void for_each_matmul(const Visit& visit) {
    visit(engines_product, "engine");
    for (const MatmulVersion& version : lnfree::matmul_versions) visit(version.function, version.name);
}

}  // namespace

TEST_CASE("the engine's matmul equals the written-out sum for every orientation and for sizes that fit no tile") {
    for (const MatmulShape& shape : lnfree::matmul_check_shapes())
        for_each_orientation(shape,
                             [](const auto& problem) { CHECK(lnfree::wrong_product(engines_product, problem) == ""); });
}

TEST_CASE("every version of matmul equals the written-out sum") {
    for (const MatmulShape& shape : lnfree::matmul_check_shapes())
        if (shape.M * shape.N * shape.K <= 257 * 257 * 3)
            for_each_orientation(shape, [](const auto& problem) {
                for (const MatmulVersion& version : lnfree::matmul_versions) {
                    CAPTURE(version.number);
                    CHECK(lnfree::wrong_product(version.function, problem) == "");
                }
            });
}

TEST_CASE("matmul in double precision equals the written-out sum") {
    for (const MatmulShape shape : {MatmulShape{1, 1, 1, 0}, {3, 17, 5, 3}, {17, 63, 33, 1}})
        for_each_orientation<double>(
            shape, [](const auto& problem) { CHECK(lnfree::wrong_product(engines_product, problem) == ""); });
}

TEST_CASE("the comparison notices one product too few, a number written beside C, and a NaN") {
    const MatmulProblem<float> problem(Transpose::No, Transpose::Yes, {17, 31, 257, 1});
    std::vector<float> out = problem.product(engines_product, false, true);
    CHECK(problem.is_right(out, false, true));
    CHECK_FALSE(problem.is_right(out, false, false));
    const int64_t at = 16 * problem.ldc + 30;
    const float right = out[at];
    out[at] = right - problem.a[16 * problem.lda + 256] * problem.b[30 * problem.ldb + 256];
    CHECK_FALSE(problem.is_right(out, false, true));
    out[at] = NOT_A_NUMBER;
    CHECK_FALSE(problem.is_right(out, false, true));
    out[at] = right;
    out[at + 1] = 0.0f;
    CHECK_FALSE(problem.is_right(out, false, true));
}

TEST_CASE("matmul of an empty sum gives zero, the bias, or C unchanged") {
    std::vector<float> c(6, 7.0f);
    const std::vector<float> bias = {1.0f, 2.0f, 3.0f};
    lnfree::matmul(Transpose::No, Transpose::No, 2, 3, 0, nullptr, 1, nullptr, 3, c.data(), 3, true);
    CHECK(c == std::vector<float>(6, 7.0f));
    lnfree::matmul(Transpose::No, Transpose::No, 2, 3, 0, nullptr, 1, nullptr, 3, c.data(), 3, false, bias.data());
    CHECK(c == std::vector<float>{1.0f, 2.0f, 3.0f, 1.0f, 2.0f, 3.0f});
    lnfree::matmul(Transpose::No, Transpose::No, 2, 3, 0, nullptr, 1, nullptr, 3, c.data(), 3, false);
    CHECK(c == std::vector<float>(6, 0.0f));
}

#ifdef _OPENMP
TEST_CASE("every version of matmul gives the same bits for 1, 2, 3 and 5 threads") {
    for (const MatmulShape& shape : lnfree::matmul_thread_shapes)
        for_each_orientation(shape, [](const auto& problem) {
            for_each_matmul([&](const auto& matmul, const char* name) {
                CAPTURE(name);
                CHECK(lnfree::differs_by_threads(matmul, problem) == "");
            });
        });
}

// Shares of every kind: rows, columns, both; long sums of more blocks than are kept at a time, by number and by size.
TEST_CASE("version 7 gives the bits of version 6, whose products it shares out") {
    for (const MatmulShape& shape :
         {MatmulShape{801, 70, 33, 1}, {33, 1100, 70, 0}, {450, 1100, 70, 1}, {6, 5, 25001, 1}, {720, 701, 2900, 0}})
        for (const Transpose ta : BOTH) {
            const MatmulProblem<float> problem(ta, Transpose::No, shape, false);
            for (const bool accumulate : {false, true}) {
                const std::vector<float> alone = problem.product(lnfree::matmul_v6::matmul, accumulate, true);
                for (const int count : {2, 3, 5}) {
                    const ThreadCount threads(count);
                    CAPTURE(lnfree::describe(problem));
                    CHECK(problem.product(lnfree::matmul_v7::matmul, accumulate, true) == alone);
                }
            }
        }
}

TEST_CASE("matmul called by the threads of a parallel region gives the same bits") {
    const ThreadCount threads(3);
    const MatmulProblem<float> problem(Transpose::Yes, Transpose::No, {64, 70, 65, 0});
    for_each_matmul([&](const auto& matmul, const char* name) {
        CAPTURE(name);
        const std::vector<float> expected = problem.product(matmul, false, true);
        int differing = 0;
#pragma omp parallel reduction(+ : differing)
        for (int repeat = 0; repeat < 5; ++repeat)
            differing += problem.product(matmul, false, true) == expected ? 0 : 1;
        CHECK(differing == 0);
    });
}
#else
TEST_CASE("every version of matmul gives the same bits for 1, 2, 3 and 5 threads") {
    std::puts("SKIPPED: the same bits for any number of threads: built without OpenMP, there is one thread only");
}
#endif

TEST_CASE("a row of the engine's matmul does not depend on the rows computed with it") {
    for (const Transpose tb : BOTH) {
        const MatmulProblem<float> problem(Transpose::No, tb, {97, 133, 1100, 0});
        const std::vector<float> together = problem.product(engines_product, true, true);
        std::vector<float> one_by_one = problem.c;
        for (int64_t i = 0; i < problem.M; ++i)
            lnfree::matmul(Transpose::No, tb, 1, problem.N, problem.K, problem.a.data() + i * problem.lda, problem.lda,
                           problem.b.data(), problem.ldb, one_by_one.data() + i * problem.ldc, problem.ldc, true,
                           problem.bias.data());
        CHECK(one_by_one == together);
    }
}

TEST_CASE("matmul carries NaN and infinity into exactly the row or column they belong to") {
    for_each_orientation({19, 67, 21, 0}, [](MatmulProblem<float> problem) {
        problem.a[problem.ta == Transpose::Yes ? 20 * problem.lda + 18 : 18 * problem.lda + 20] = INF;
        problem.b[problem.tb == Transpose::Yes ? 66 * problem.ldb + 5 : 5 * problem.ldb + 66] = NOT_A_NUMBER;
        for_each_matmul([&](const auto& matmul, const char* name) {
            CAPTURE(name);
            const std::vector<float> out = problem.product(matmul, false, false);
            int wrong = 0;
            for (int64_t i = 0; i < 19; ++i)
                for (int64_t j = 0; j < 67; ++j) {
                    const float x = out[i * problem.ldc + j];
                    const bool as_expected = j == 66 ? std::isnan(x) : i == 18 ? std::isinf(x) : std::isfinite(x);
                    wrong += as_expected ? 0 : 1;
                }
            CHECK(wrong == 0);
        });
    });
}

TEST_CASE("matmul without accumulation does not read C") {
    MatmulProblem<float> problem(Transpose::No, Transpose::No, {31, 65, 33, 0});
    std::fill(problem.c.begin(), problem.c.end(), NOT_A_NUMBER);
    for_each_matmul([&](const auto& matmul, const char* name) {
        CAPTURE(name);
        const std::vector<float> out = problem.product(matmul, false, true);
        CHECK(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// bf16

namespace {

using namespace lnfree::matmul_bf16;

float from_bf16(uint32_t bits) {
    return as_pair(0, bits);
}

// Of numbers that bf16 holds exactly, the product is that of fp32, sums in fp32 included.
MatmulProblem<float> rounded_problem(Transpose ta, Transpose tb, const MatmulShape& shape) {
    MatmulProblem<float> problem(ta, tb, shape);
    for (std::vector<float>* values : {&problem.a, &problem.b})
        for (float& x : *values) x = from_bf16(round_to_bf16(x));
    problem.write_out_sums();
    return problem;
}

const auto in_bf16 = [](auto... arguments) { lnfree::matmul_bf16::matmul(arguments...); };
const auto in_emulated_tiles = [](auto... arguments) {
    lnfree::matmul_amx::matmul<lnfree::matmul_amx::Emulated>(arguments...);
};
const auto in_tiles = [](auto... arguments) { lnfree::matmul_amx::matmul<lnfree::matmul_amx::Hardware>(arguments...); };

}  // namespace

TEST_CASE("rounding to bf16 takes the nearest, ties to even, and keeps NaN and infinity") {
    int wrong = 0;
    for (uint32_t bits = 0; bits < 0x7F80; bits++) {  // every finite bf16 and its neighbour above
        const float x = from_bf16(bits), next = from_bf16(bits + 1);
        wrong += round_to_bf16(x) == bits && round_to_bf16(-x) == (bits | 0x8000) ? 0 : 1;
        if (!std::isfinite(next)) continue;
        const float middle = x + (next - x) / 2;  // exact
        const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
        wrong += round_to_bf16(middle) == even ? 0 : 1;
        wrong += round_to_bf16(std::nextafter(middle, 0.0f)) == bits ? 0 : 1;
        wrong += round_to_bf16(std::nextafter(middle, INF)) == bits + 1 ? 0 : 1;
    }
    CHECK(wrong == 0);
    CHECK(std::isinf(from_bf16(round_to_bf16(std::numeric_limits<float>::max()))));
    CHECK(from_bf16(round_to_bf16(-INF)) == -INF);
    for (const uint32_t payload : {1u, 0x7FFFFFu, 0x400000u, 0xFFFFu}) {
        const uint32_t bits = 0x7F800000u | payload;
        float x;
        std::memcpy(&x, &bits, 4);
        CHECK(std::isnan(from_bf16(round_to_bf16(x))));
    }
}

TEST_CASE("the bf16 product of numbers that bf16 holds equals the written-out sum") {
    for (const MatmulShape& shape : lnfree::matmul_check_shapes())
        for (const Transpose ta : BOTH)
            for (const Transpose tb : BOTH) CHECK(lnfree::wrong_product(in_bf16, rounded_problem(ta, tb, shape)) == "");
}

TEST_CASE("the product on emulated tiles equals the written-out sum as well") {
    for (const MatmulShape& shape : lnfree::matmul_check_shapes())
        for (const Transpose ta : BOTH)
            for (const Transpose tb : BOTH)
                CHECK(lnfree::wrong_product(in_emulated_tiles, rounded_problem(ta, tb, shape)) == "");
}

TEST_CASE("the bf16 product of any numbers is that of the numbers rounded") {
    const auto check = [](const auto& product) {
        const MatmulProblem<float> problem(Transpose::No, Transpose::Yes, {19, 67, 21, 1});
        MatmulProblem<float> rounded = rounded_problem(Transpose::No, Transpose::Yes, {19, 67, 21, 1});
        CHECK(problem.product(product, true, true) == rounded.product(product, true, true));
        CHECK(problem.product(product, true, true) != problem.product(engines_product, true, true));
    };
    check(in_bf16);
    check(in_emulated_tiles);
}

TEST_CASE("tiles of the processor give what emulated ones give") {
    if (!lnfree::matmul_amx::has_hardware()) {
        std::puts("SKIPPED: the processor's tiles: it has no AMX, or the build does not know it");
        return;
    }
    for (const MatmulShape& shape : lnfree::matmul_check_shapes())
        for (const Transpose ta : BOTH)
            for (const Transpose tb : BOTH)
                CHECK(lnfree::wrong_product(in_tiles, rounded_problem(ta, tb, shape)) == "");
}

TEST_CASE("the instruction for bf16 gives what shifts give") {
    if (!lnfree::matmul_bf16::has_hardware()) {
        std::puts("SKIPPED: the bf16 instruction: this processor or build has no AVX512_BF16");
        return;
    }
    const Vec sum = Vec{} + 0.5f, b = Vec{} + as_pair(round_to_bf16(1.5f), round_to_bf16(-3.0f));
    const float a = as_pair(round_to_bf16(0.25f), round_to_bf16(2.0f));
    const Vec hardware = Hardware::multiply_add(sum, b, a), shifted = Shifted::multiply_add(sum, b, a);
    CHECK(std::memcmp(&hardware, &shifted, sizeof sum) == 0);
}

#ifdef _OPENMP
TEST_CASE("the bf16 product gives the same bits for 1, 2, 3 and 5 threads") {
    for (const MatmulShape& shape : lnfree::matmul_thread_shapes)
        for_each_orientation(shape, [](const auto& problem) {
            CHECK(lnfree::differs_by_threads(in_bf16, problem) == "");
            CHECK(lnfree::differs_by_threads(in_emulated_tiles, problem) == "");
        });
}
#endif
