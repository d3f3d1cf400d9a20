// What experiments need and the paper does not, through the seams of the training loop: divisors that move gradually, the
// precursor's own sigma of position 0 (protocol.md 8), a position 0 that is planted or comes down. Everything here only
// sets a, sigma_bar and sigma_bar_0 of sites, or the embedding of position 0, or what a few neurons bring.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/json.h"
#include "dev/engine.h"
#include "dev/method.h"

namespace lnfree {

// On its way from LayerNorm to FakeLN.
inline bool is_under_way(const Site& site) {
    return !site.has_layer_norm() && !site.removed();
}

// Whether train() takes the sites out by itself, at once and one after another; otherwise it gets no schedule, and
// advance_removals does so before every step.
bool loop_removes(const Settings& s, const Sites& sites);

// When each site goes that still has its LayerNorm, in the order of Sites::all; none for a run that removes none.
std::vector<Removal> removals_left(const Settings& s, const Sites& sites);

// Those of them that are due at the start of `step`, indices into Sites::all.
std::vector<size_t> sites_due(const Settings& s, const Sites& sites, int64_t step);

// Step 0, before anything is trained: a site that is due at once is frozen at what this measures; the precursor takes all
// of its sigma_bars here, position 0 apart, and never updates them.
void measure_own_sigmas(Engine& model, const Settings& s, const StepBatches& batches);

// One step of every removal that begins now (`setting_out`) or is on its way, which `gradual` steps bring from
// LayerNorm's divisor to FakeLN's while sigma_bar goes on following the running value; and of the precursor's special
// cases' release. Returns what happened.
std::vector<Event> advance_removals(const Settings& s, Sites& sites, int64_t step,
                                    const std::vector<size_t>& setting_out);

using Decide = std::function<void(const std::string& what, const Json& why)>;

// Preset auto, before step 0: where sigma at position 0 is more than three times what it is elsewhere, at the site where
// that is most, one number cannot stand for both. Then sigma_bar is to leave position 0 out, and what makes it long to come
// down over the first tenth of the run, while LayerNorm still divides its length away: its embedding; or, where positions
// are rotary and there is none, the neurons that bring position 0 more than ten times what sigma is elsewhere behind their
// block, if there are such. (In SmolLM2-135M two of block 11 write a length 170 times that of the others, and one of block 28
// takes it away again: dev/results/smollm2_sigma.md.)
void look_for_outlier(Engine& model, Settings& s, const StepBatches& batches, const Decide& decide);

// Throws BadInput, naming the flag, for what would change position 0's embedding in a model of rotary positions, and for
// neurons that the model does not have.
void require_position0(const ModelConfig& c, const Settings& s);

// An embedding of position 0 that is far longer than the others makes that position's sigma stand out at every site. As
// long as LayerNorm divides its length away, the embedding can be shortened at little cost: over the first shrink_steps
// steps by a factor each that brings sigma in front of block 0 down to what the other positions have. AdamW could not do
// that: its steps are of one size, however long the vector. So with shrink_neurons, all by one factor, which brings down
// sigma behind the block of the first until what is left beside them is as long: in a gated MLP what the gate lets through,
// else the neuron's row of c_proj. (Not that row where there is a choice: AdamW's steps in it would be multiplied by a neuron
// that stays as active as it was, a hundred times the others, and soon drown what they should keep.) sigma_sums are this
// step's.
void shrink_position0(Engine& model, const Settings& s, int64_t step);

// Makes position 0 stand out at every site as it does in large trained models and never in small young ones: `length`
// times a random centred direction of unit root mean square is added to its embedding. (In large models the layers make it
// so, which --grow-position0 brings about. This is harder: AdamW's steps are too small for it.)
void plant_position0(Engine& model, double length, uint64_t seed);

}  // namespace lnfree
