// One logit of one prediction, or the difference of two, taken apart into what every component of the model adds to it:
// what models without LayerNorm are for.
//
// The stream r in front of ln_f is the sum of what the components have written into it: token and position embedding,
// every head, the attentions' output biases, every MLP (its bias included), as far as the model has them. With d what ln_f
// divides by at that position, u the target's row of the unembedding (of a difference: the target's minus the other's) and
// b the bias there,
//
//     logit = ((r - mean(r)) / d * gamma + beta) . u + b = sum over components c of g . c / d  +  beta . u + b
//     g = gamma * u - mean(gamma * u)
//
// (of RMSNorm without both means). That holds whatever a head reads its values from, whether it shares them, turns its
// queries and keys, or stands beside the MLP; and whatever a neuron makes of its input.
//
// A term of that sum is the component's direct logit attribution (attribution.h, eq. 5). Where ln_f is linear it is also
// what taking the component away would take from the logit (eq. 4, the direct effect). Where ln_f is a LayerNorm, d is
// held at what it is: the sum still is the logit, but d would move if a component went, and the direct effects add up to
// something else.
//
// The second level: what a head brings is the sum over source positions of attention * value, what an MLP adds the sum of
// its neurons and its bias. All sums are taken in double from the floats of one forward pass.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/config.h"
#include "dev/analysis/sample.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// Components

struct Component {
    enum class Kind { embedding, position_embedding, head, attention_bias, mlp, unembedding_bias };
    Kind kind;
    int64_t layer, head;  // -1 where there is none
    std::string name;     // "head 3.1": head 1 of layer 3
    std::string hook;     // what TransformerLens calls the place, or the parameter
};

// Where each stands in a list of contributions: embeddings, of positions where they are learned, then for each layer its
// heads, the attention's output bias if it has one, and the MLP, at last what the unembedding adds whatever the stream is
// (beta . u + b).
struct ComponentOrder {
    int64_t L, NH;
    bool positions, biases;

    explicit ComponentOrder(const ModelConfig& c)
        : L(c.L), NH(c.NH), positions(c.rotary == 0), biases(c.attention_bias) {}
    int64_t per_layer() const { return NH + (biases ? 2 : 1); }
    int64_t head(int64_t l, int64_t h) const { return (positions ? 2 : 1) + l * per_layer() + h; }
    int64_t position_embedding() const { return 1; }                 // if `positions`
    int64_t attention_bias(int64_t l) const { return head(l, NH); }  // if `biases`
    int64_t mlp(int64_t l) const { return head(l, 0) + per_layer() - 1; }
    int64_t unembedding_bias() const { return head(L, 0); }
    int64_t count() const { return unembedding_bias() + 1; }
};

std::vector<Component> components_of(const ModelConfig& c);

// ---------------------------------------------------------------------------------------------------------------------
// Questions and answers

struct PromptQuestion {
    std::string prompt;           // as it was given; empty if it came as token ids
    std::vector<int32_t> tokens;  // at least one, at most n_ctx, within the vocabulary
    int64_t position = 0;         // the logit is that of what follows this one
    int32_t target = -1;          // -1: the likeliest token there
    int32_t against = -1;         // -1: the target's logit alone
};

struct Explanation {
    PromptQuestion question;             // the target named
    double logit = 0;                    // by the forward pass; with `against` a difference
    std::vector<double> contributions;   // (T,components): at every position to the same logit there
    std::vector<double> direct_effects;  // (components) at the position; empty where ln_f is linear
    std::vector<double> attention;       // (L,NH,T) of the query at the position; 0 behind it
    std::vector<double> sources;     // (L,NH,T): what a head brings from there; their sum is the head's contribution
    std::vector<double> neurons;     // (L,n_inner) at the position; empty unless asked for
    std::vector<double> mlp_biases;  // (L): with its neurons these make an MLP's contribution; 0 where it has none
    std::vector<double> paths;       // (L*NH,components), as explain_paths.h; empty unless asked for

    // Of the components at the question's position.
    const double* at_position() const;
    double sum() const;
    // What the sum lacks to the logit: rounding.
    double remainder() const { return logit - sum(); }
    // Sum over components of attribution minus direct effect: what taking ln_f for linear misses. 0 where it is.
    double missed() const;

    int64_t components() const {
        return static_cast<int64_t>(contributions.size()) / static_cast<int64_t>(question.tokens.size());
    }
};

struct Depth {
    bool neurons = false, paths = false;
    int64_t vocabulary = 0;  // the likeliest token is looked for below this id (a padded vocabulary); 0: everywhere
};

// Answers in the order of the questions, several prompts to a pass. With depth.paths BadInput as require_linear_paths.
std::vector<Explanation> explain(Engine& model, const std::vector<PromptQuestion>& questions, const Depth& depth,
                                 const Pause& pause = {});

}  // namespace analysis
}  // namespace lnfree
