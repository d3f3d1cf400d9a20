// Activation patching and its linear estimate, attribution patching, of the stream in front of every block at every
// position (2507.02559, Sec. 5.2, eq. 6 and 7, Fig. 2).
//
// A prompt's corrupted partner is its neighbour in the set (0 and 1, 2 and 3, ...). f is the logit of the right answer
// minus that of the wrong one at the last position, right and wrong being the clean prompt's. With LD a mean of f over a
// set, every effect is divided by LD(clean) - LD(corrupted): 1 means that the patch brings the clean behaviour back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/json.h"
#include "dev/analysis/sample.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// Prompts of equal length T, clean; answers by their first tokens.
struct PromptSet {
    std::string name;
    int64_t T = 0;
    std::vector<std::vector<int32_t>> prompts;
    std::vector<int32_t> right, wrong;
};

struct PatchedSet {
    double clean = 0, corrupted = 0;              // LD
    int64_t solved = 0;                           // prompts with f > 0
    std::vector<double> activation, attribution;  // (L,T), normalised

    double effect() const { return clean - corrupted; }
};

// One set on one model, `batch` sequences at a time. Below `least_effect` there is nothing to bring back, and activation
// and attribution stay empty.
PatchedSet patch_set(Engine& model, const PromptSet& set, int64_t batch, double least_effect);

// The same prompt by prompt, effects in logits: clean, corrupted (prompts): f; activation, attribution (L,T,prompts).
struct PatchedPrompts {
    std::vector<double> clean, corrupted, activation, attribution;
};
PatchedPrompts patch_prompts(Engine& model, const PromptSet& set, int64_t batch);

// All sets on one model. Effects by position are means over the sets of the length that most have; "error" (L) is a mean
// over all sets that count.
Json measure_patching(Engine& model, const std::vector<PromptSet>& sets, const Procedure& procedure);

// As the paper's code measures: every prompt's effects are divided by its own f(clean) - f(corrupted), however small, before
// anything is averaged. "error" (L) is a mean over prompts of errors, "error_of_means" (L) what is left of them in the means
// over prompts.
Json measure_patching_as_paper(Engine& model, const std::vector<PromptSet>& sets, const Procedure& procedure);

}  // namespace analysis
}  // namespace lnfree
