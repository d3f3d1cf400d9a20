// In double precision the engine and the oracle must agree to rounding, the key bias included: any wrong formula, however
// small its effect, shows here.
#include "test/oracle_checks.h"

// Clipping, epsilon and the step-0 statistics have effects of 1e-9 and more; rounding stays below 1e-11.
static const lnfree::OracleTolerance tight_without_key_bias{1e-11, 1e-11, 1e-10, false};

TEST_CASE("forward passes and gradients equal the oracle's at every stage of removal") {
    CHECK(lnfree::check_static_cases("gpt2", tight_without_key_bias) == 35);
}
TEST_CASE("40 steps through all removals follow the oracle's trajectory") {
    CHECK(lnfree::check_trajectories("gpt2", tight_without_key_bias) == 7);
}
TEST_CASE("key biases follow the oracle's up to what Adam makes of rounding") {
    for (const char* model : {"gpt2", "neox"}) lnfree::check_trajectories(model, {1e-11, 1e-11, 1e-8, true});
}
TEST_CASE("GPT-NeoX's shape and Llama's: passes and gradients equal the oracle's") {
    for (const char* model : {"neox", "llama"}) CHECK(lnfree::check_static_cases(model, tight_without_key_bias) == 6);
}
TEST_CASE("GPT-NeoX's shape and Llama's: 40 steps through all removals follow the oracle's trajectory") {
    for (const char* model : {"neox", "llama"}) CHECK(lnfree::check_trajectories(model, tight_without_key_bias) == 1);
}
