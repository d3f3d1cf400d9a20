// The three ways in which this program fails, and the exit status of each (data/README.md, "Exit codes").
//
// Throw one of these with a single line that names the file or flag, the offending value and the remedy;
// main() prints it on standard error and exits. Nothing in the project uses assert for input errors.
#pragma once

#include <stdexcept>
#include <string>

namespace lnfree {

// The request cannot be carried out as given: unknown flag, bad number, unreadable or wrong file. Exit 2,
// thrown before anything is written.
struct BadInput : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The request was fine and the run failed: disk full, non-finite loss. Exit 1; finished files stay as they were.
struct RunFailure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A GPU was asked for and there is none. Exit 3.
struct NoGpu : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace lnfree
