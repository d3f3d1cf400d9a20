// One run of pretrain, remove or finetune: from its options to the finished model in its folder.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "data/json.h"
#include "dev/run/settings.h"

namespace lnfree {

// What a run was asked to do: RunSettings (the values, and which were given) plus what no flag says.
struct RunRequest {
    std::string command;  // pretrain, remove or finetune
    RunSettings settings;
    bool resume = false, force = false, dry_run = false, json_output = false;
    int64_t processes = 0;                             // what the dry run is about; 0: those that were started
    std::function<ModelConfig(int64_t data_V)> shape;  // pretrain: the model to make, given the data's vocabulary
    std::function<void(int64_t)> on_step;              // tests: called with the number of every step before it begins
};

// Carries the run out and returns its summary. Throws BadInput before anything is written, RunFailure when the run itself
// fails, Interrupted after a signal.
Json run(const RunRequest& request);

}  // namespace lnfree
