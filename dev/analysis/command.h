// `analyze`: the paper's measurements on model folders, as tables and as JSON.
#pragma once

#include <string>

#include "data/json.h"
#include "dev/analysis/measurements.h"

namespace lnfree {

// `what` is one of the measurements' names, or "report": all of them on one page, which goes on where an earlier run into
// the same folder ended. Prints tables on standard output unless o.json_output, and returns the result. BadInput before
// anything is written; Interrupted after a signal.
Json analyze_command(const std::string& what, const analysis::Options& o);

}  // namespace lnfree
