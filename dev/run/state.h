// Everything that a run's next step depends on beyond weights and moments, in one struct: what checkpoints hold, what
// --resume takes up.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "data/json.h"
#include "dev/engine.h"

namespace lnfree {

struct RunState {
    int64_t step = 0;          // the next to be taken
    Settings settings;         // in force: what preset auto finds out before step 0 changes some of them
    Sites sites;               // while a run goes on these two are the engine's own,
    int64_t adam_updates = 0;  // and captured() brings them here
    std::vector<Event> events;
    double first_val_loss = NAN, last_val_loss = NAN;    // before step 0, and the latest
    double last_val_kl = NAN, last_val_agreement = NAN;  // with the teacher, at the latest; NaN without one
};

// The state at this moment, the engine's part included.
RunState captured(const RunState& now, const Engine& model);

// The engine's part of a saved state; weights and moments are for the caller to bring (they differ in where
// they come from), and Engine::resume afterwards.
void restore_engine(Engine& model, const RunState& state);

// The one way to and from JSON: the keys that lnfree.json has of a run, and under "resume" what only going on needs.
Json state_json(const RunState& state);
// For a model of L layers; `path` names the file. Throws BadInput for sites or settings that cannot be,
// JsonError if something lacks.
RunState state_from_json(const Json& record, int L, const std::string& path);

}  // namespace lnfree
