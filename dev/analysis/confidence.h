// Confidence neurons: those of the last MLP that write much and change no token's rank; with LayerNorm they scale all
// logits at once (2507.02559, Sec. 5.4 and App. H; Stolfo et al. 2024).
#pragma once

#include <vector>

#include "data/json.h"
#include "dev/analysis/sample.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// The unembedding's singular values, largest first, and its right singular vectors in that order.
struct Spectrum {
    std::vector<double> values;                // (C)
    std::vector<std::vector<double>> vectors;  // (C)(C)
};
Spectrum spectrum(const Engine& model);

// Neurons, the unembedding's spectrum, and ablations of the top neurons, singly and together.
Json measure_confidence(Engine& model, const Sample& sample, const Procedure& procedure);

}  // namespace analysis
}  // namespace lnfree
