// What experiments need and the paper does not, through the seams of the training loop: divisors that move gradually, the
// precursor's own sigma of position 0 (protocol.md 8), a position 0 that is planted or comes down. Everything here only
// sets a, sigma_bar and sigma_bar_0 of sites, or the embedding of position 0.
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
// that is most, one number cannot stand for both. Then sigma_bar is to leave position 0 out and its embedding to come
// down, over the first tenth of the run, while LayerNorm still divides its length away. Where positions are rotary there is
// no such embedding, and sigma_bar alone leaves position 0 out.
void look_for_outlier(Engine& model, Settings& s, const StepBatches& batches, const Decide& decide);

// Throws BadInput, naming the flag, for what would change position 0's embedding in a model of rotary positions.
void require_position0(const ModelConfig& c, const Settings& s);

// An embedding of position 0 that is far longer than the others makes that position's sigma stand out at every site. As
// long as LayerNorm divides its length away, the embedding can be shortened at little cost: over the first shrink_steps
// steps by a factor each that brings sigma in front of block 0 down to what the other positions have. AdamW could not do
// that: its steps are of one size, however long the vector. sigma_sums are this step's.
void shrink_position0(Engine& model, const Settings& s, int64_t step);

// Makes position 0 stand out at every site as it does in large trained models and never in small young ones: `length`
// times a random centred direction of unit root mean square is added to its embedding. (In large models the layers make it
// so, which --grow-position0 brings about. This is harder: AdamW's steps are too small for it.)
void plant_position0(Engine& model, double length, uint64_t seed);

}  // namespace lnfree
