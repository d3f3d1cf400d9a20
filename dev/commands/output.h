// What commands print for programs.
#pragma once

#include "data/json.h"
#include "dev/engine.h"

namespace lnfree {

// The object behind its "version", on standard output, if --json was given (`wanted`). Keys: data/README.md.
void print_json(bool wanted, const Json& j);

// What another engine's check or bench found, as JSON if that is asked for: "passed", and "rows" of "columns". Returns the
// exit status: 1 unless it passed.
int print_report(const Report& report, bool json_output);

}  // namespace lnfree
