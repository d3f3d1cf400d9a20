// A run's state on disk: OUT/checkpoints/step_N holds the model, the optimiser's moments, and lnfree.json with everything
// else. Also lnfree.json of the finished model.
#pragma once

#include <string>

#include "data/json.h"
#include "dev/run/session.h"

namespace lnfree {

// lnfree.json of the model in this state, as data/README.md describes it.
Json model_record(const Session& session, const RunState& state, ModelForm form, bool finished);

// Writes the checkpoint of the state before step `at.step`, to which the engine's weights and moments still belong, and
// removes all but the last two. RunFailure when the disk fails; the checkpoints before stay. Where the engine trains copies
// of its own the writing goes on while it does, and what fails is thrown by the next save_checkpoint or finish_checkpoint.
// Of several processes the first writes, and gets the others' moments tensor by tensor.
void save_checkpoint(Session& session, const RunState& at);

// Waits until the last checkpoint is on the disk. RunFailure if it could not be written.
void finish_checkpoint(Session& session);

// Model, optimiser and state of the newest checkpoint in --out become the session's, and so do the options that the
// command line did not name. Throws BadInput if there is none, or if it is damaged or of another command or version.
void load_checkpoint(Session& session);

}  // namespace lnfree
