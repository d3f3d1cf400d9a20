// What a run says: its lines on the screen and in log.jsonl, its picture, its model card, its summary, its dry run.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "data/json.h"
#include "data/svg_chart.h"
#include "dev/engine.h"
#include "dev/method.h"

namespace lnfree {

struct Session;

// ----- as it goes

// One step, with the events of its start. communication_s: seconds of it that this one of several processes spent in what
// they do together, waiting for the others included.
void report_step(Session& session, const StepReport& report, const std::vector<Event>& events, double tokens_per_s,
                 double communication_s);
void report_validation(Session& session);
// What preset auto found before step 0 and does about it.
void report_decision(Session& session, const std::string& what, const Json& why);
// On standard error, if the first step's loss is that of guessing.
void warn_if_untrained(const Session& session, double loss);

// ----- at its end

// The loss curves of some runs (name, output folder) in the manner of the paper's Fig. 1: removals of the first that has any
// as vertical lines, the validation loss before training as a dashed reference; over tokens where their steps are not alike.
// Throws BadInput if a folder has no log.
Chart loss_chart(const std::vector<std::pair<std::string, std::string>>& runs, const std::string& title);

// README.md of the finished model's folder.
std::string model_card(const Session& session);

// The keys of a run's --json, and the same as a table.
Json summary_of(const Session& session);
void print_summary(const Session& session, const Json& summary);

// ----- instead of it

// What the run would be: every setting, its schedule, memory and time. Writes nothing.
Json dry_run(const Session& session);

}  // namespace lnfree
