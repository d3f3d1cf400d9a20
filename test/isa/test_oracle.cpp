// The engine as users run it, in single precision, against the oracle. Compiled once; run once per instruction set, which
// LNFREE_ISA names.
#include "test/oracle_checks.h"

static const lnfree::OracleTolerance single{1e-5, 1e-4, 1e-4, false};

TEST_CASE("forward passes and gradients equal the oracle's at every stage of removal") {
    CHECK(lnfree::check_static_cases("gpt2", single) == 35);
}
TEST_CASE("40 steps through all removals follow the oracle's trajectory") {
    CHECK(lnfree::check_trajectories("gpt2", single) == 7);
}
TEST_CASE("GPT-NeoX's shape and Llama's: passes and gradients equal the oracle's") {
    for (const char* model : {"neox", "llama"}) CHECK(lnfree::check_static_cases(model, single) == 6);
}
TEST_CASE("GPT-NeoX's shape and Llama's: 40 steps through all removals follow the oracle's trajectory") {
    for (const char* model : {"neox", "llama"}) CHECK(lnfree::check_trajectories(model, single) == 1);
}
