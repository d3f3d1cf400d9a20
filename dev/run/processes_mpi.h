// Processes over MPI. The one unit that knows MPI; without its compiler wrapper (scripts/detect.sh) it is built empty.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "dev/run/launched_processes.h"

namespace lnfree {

bool built_with_mpi();

// Those that the launcher started. Null if this program was built without MPI, or if there is one only. `say` prints a line
// on standard error, from any thread.
std::unique_ptr<LaunchedProcesses> join_over_mpi(const std::function<void(const std::string&)>& say);

}  // namespace lnfree
