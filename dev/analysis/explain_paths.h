// Paths of length two: what a component writes, read by a later head as values, and brought by it to the logit.
//
// With attention held where it is, a head's contribution is linear in its values, and where its value site is FakeLN (or
// folded) those are linear in the stream: the head's contribution is the sum over all that was written into the stream in
// front of it, plus what its own biases bring (beta through the value weights, and the value bias). With p the head's
// attention, w the direction of its values (value weights, c_proj and g of explain.h) and s_v the value site's divisor,
//
//     path(c, head) = sum over source positions t of p[t] / s_v(t) * (gamma * w - mean(gamma * w)) . c[t] / d
#pragma once

#include <cstdint>
#include <vector>

#include "dev/analysis/explain_record.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// BadInput, naming the site in the way, unless ln_f and at least one layer's value site are linear.
void require_linear_paths(const Sites& sites, const std::string& folder);

// Of sequence b of a record, tokens (T): (L*NH,components), row l * NH + h for the head that reads. A row adds up to that
// head's contribution; its last entry is what the head's own biases bring. Components that come later have 0, and rows of
// layers whose value site is a LayerNorm are NaN. `divisor` is ln_f's at the position.
std::vector<double> paths_of(Engine& model, const PassRecord& record, int64_t b, const int32_t* tokens,
                             const Direction& direction, double divisor);

}  // namespace analysis
}  // namespace lnfree
