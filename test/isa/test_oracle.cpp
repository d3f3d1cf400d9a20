// The engine as users run it, in single precision, against the oracle. Compiled once; run once per instruction set, which
// LNFREE_ISA names.
#include "test/oracle_checks.h"

static const lnfree::OracleTolerance single{1e-5, 1e-4, 1e-4, false};

TEST_CASE("forward passes and gradients equal the oracle's at every stage of removal") {
    lnfree::check_static_cases(single);
}
TEST_CASE("40 steps through all removals follow the oracle's trajectory") {
    lnfree::check_trajectories(single);
}
