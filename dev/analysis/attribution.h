// Direct logit attribution against the direct effect (2507.02559, Sec. 5.1 and App. G).
//
// With r the stream in front of ln_f, c what one component adds to it, and u the target's row of the unembedding:
//     DE(c)  = (LN(r) - LN(r - c)) . u              the component's direct effect (eq. 4): ln_f sees the stream without it
//     DLA(c) = gamma * (c - mean(c)) / sigma(r) . u   its linearisation (eq. 5): ln_f's scale stays what it was
// RMSNorm is the same with 0 for the means, here and wherever analyses say LayerNorm.
// Where the last norm is FakeLN, or folded away, they are the same number.
#pragma once

#include <cstdint>

#include "data/json.h"
#include "dev/analysis/sample.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// What ln_f is at each position, in the terms of eq. 4 and 5.
struct FinalNorm {
    bool centred;       // whether it subtracts the mean
    double a;           // as in Site; 1: the divisor is the same without the component
    const real* gamma;  // (C); null: ones
    double epsilon;
    const real *residual, *mean, *divisor;  // (N,C), (N), (N)
};

// Of the pass that was traced last; inputs (N).
FinalNorm final_norm_of(Engine& model, const int32_t* inputs);

struct Attribution {
    double direct_effect, dla;
};

// Of component c (C) at position n, for the token whose row of the unembedding is u (C).
Attribution attribute(const FinalNorm& norm, int64_t n, const real* c, const real* u, int64_t C);

// Errors of every head, MLP and of the embedding: {"nmae", "nmae_interval", "nmae_head", "nmae_mlp", "nmae_embedding",
// "largest_difference"}. As the paper's code measures (procedure.paper): those of the heads alone, at the last position, for
// the token that follows; and under "token_read" the same for the token that is read there, which is what their code takes.
Json measure_attribution(Engine& model, const Sample& sample, const Procedure& procedure);

}  // namespace analysis
}  // namespace lnfree
