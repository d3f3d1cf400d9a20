// Processes over MPI. The one unit that knows MPI; without its compiler wrapper (scripts/detect.sh) it is built empty.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dev/processes.h"

namespace lnfree {

class LaunchedProcesses : public Processes {
  public:
    // How many of them are on this machine.
    virtual int on_this_machine() const = 0;
    // The machine of this process, and of all: collective.
    virtual std::string machine() const = 0;
    virtual std::vector<std::string> machines() = 0;
    // Whether all processes have come here to end, waited for at most so many seconds (negative: as long as it takes).
    virtual bool all_end(double seconds) = 0;
    virtual void finalize() = 0;
    virtual void abort(int status) = 0;
};

bool built_with_mpi();

// Those that the launcher started. Null if this program was built without MPI, or if there is one only.
std::unique_ptr<LaunchedProcesses> join_over_mpi();

}  // namespace lnfree
