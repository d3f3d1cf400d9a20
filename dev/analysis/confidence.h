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

// The three top neurons of a model by the paper's code, highest score first: from the weights with ln_f's gamma folded in
// and centred.
std::vector<int64_t> confidence_neurons_as_paper(const Engine& model);

// The same keys by those weights, but `ablated`, the neurons of another model, are what is taken out, and each ablation also
// has the quartiles of |change| over predictions. They must be smaller than n_inner.
Json measure_confidence_as_paper(Engine& model, const Sample& sample, const Procedure& procedure,
                                 const std::vector<int64_t>& ablated);

}  // namespace analysis
}  // namespace lnfree
