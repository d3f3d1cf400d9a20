// In double precision the engine and the oracle must agree to rounding, the key bias included: any wrong formula, however
// small its effect, shows here.
#include "test/oracle_checks.h"

// Clipping, epsilon and the step-0 statistics have effects of 1e-9 and more; rounding stays below 1e-11.
static const lnfree::OracleTolerance tight_without_key_bias{1e-11, 1e-11, 1e-10, false};

TEST_CASE("forward passes and gradients equal the oracle's at every stage of removal") {
    lnfree::check_static_cases(tight_without_key_bias);
}
TEST_CASE("40 steps through all removals follow the oracle's trajectory") {
    lnfree::check_trajectories(tight_without_key_bias);
}
TEST_CASE("key biases follow the oracle's up to what Adam makes of rounding") {
    lnfree::check_trajectories({1e-11, 1e-11, 1e-8, true});
}
