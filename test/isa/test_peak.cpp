// The yardsticks of `bench` do what they are counted for.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "dev/cpu/machine.h"
#include "dev/cpu/operations.h"
#include "test/threads.h"

using namespace lnfree;

namespace {

// The fastest of some tries, in seconds.
double seconds_of(int64_t rounds) {
    double best = INFINITY;
    for (int i = 0; i < 20; i++) {
        const double before = seconds_now();
        operations().multiply_adds(rounds);
        best = std::min(best, seconds_now() - before);
    }
    return best;
}

}  // namespace

TEST_CASE("multiply-adds are counted by vectors, and made: more of them take longer") {
    const std::string isa = operations().isa;
    const double width = isa == "avx512" ? 16 : isa == "avx2" ? 8 : 4;
    CHECK(operations().multiply_adds(7) == 7 * 2 * 12 * width);
    CHECK(seconds_of(64'000) > 8 * seconds_of(1'000));
}

TEST_CASE("the triad adds to every number as often as asked, and with any number of threads") {
    for (const int count : {1, 3})
        for (const int64_t n : {1, 5, 37, 1000}) {
            const Threads here(count);
            std::vector<real> a(static_cast<size_t>(n) + 1, 1), b(static_cast<size_t>(n), 2);
            operations().triad(a.data(), b.data(), 4, n, 3);
            CHECK(std::count(a.begin(), a.end(), real(1 + 3 * 2 * 4)) == n);
            CHECK(a.back() == 1);
        }
}
