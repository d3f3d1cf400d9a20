// What is special about the first position: norms of the stream, sigmas, attention sinks (2507.02559, Sec. 5.3, Fig. 3).
#pragma once

#include "data/json.h"
#include "dev/analysis/sample.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// Mean norms (L2) of the stream in front of every block and of ln_f, at position 0 and elsewhere, and every site's sigma
// likewise: {"residual": [{"at_0", "elsewhere"}], "sites": [{"site", "removed", "sigma_bar", "at_0", "elsewhere"}]}.
// T must be at least 2.
Json measure_norms(Engine& model, const Sample& sample, const Procedure& procedure);

// How much of its attention each head gives to position 0: {"threshold", "rate_heads", "rate_heads_interval",
// "per_layer_heads", and the same with "pairs"}; as the paper's code measures (procedure.paper) only those with "pairs",
// the query at position 0 among them. BadInput if T is 1.
Json measure_sinks(Engine& model, const Sample& sample, const Procedure& procedure);

}  // namespace analysis
}  // namespace lnfree
