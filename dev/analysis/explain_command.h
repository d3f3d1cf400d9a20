// `analyze explain`: a prompt's next token taken apart, on the screen, as a page, as JSON and as arrays.
#pragma once

#include "data/json.h"
#include "dev/analysis/explain_questions.h"

namespace lnfree {

// Prints tables on standard output unless o.json_output, writes what o.html and o.save name, and returns the result.
// BadInput before anything is written; Interrupted after a signal.
Json explain_command(const analysis::ExplainOptions& o);

}  // namespace lnfree
