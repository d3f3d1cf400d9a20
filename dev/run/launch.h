// How the program begins and ends where a launcher (mpirun, srun, torchrun) started several copies of it: as the processes of
// one run (dev/processes.h), of which the first alone speaks.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace lnfree {

// Joins the copies into processes(). Those after the first print nothing from here on. Unless OMP_NUM_THREADS is set, each
// takes its share of its machine's cores. By MPI; or, if LNFREE_RENDEZVOUS names a file, by it and by what torchrun tells each
// in RANK, WORLD_SIZE and LOCAL_RANK, for processes with a GPU each. BadInput where copies were started that know nothing of
// each other (a program without MPI; a launcher of another kind): they would all write into one folder.
void join_processes();

// The last thing: prints `line` on standard error unless it is empty, once, and returns the exit status. A process that ends
// alone while others go on, because something failed that is its own, ends them all within seconds.
int leave_processes(int status, const std::string& line);

// What must be the same in every process, each named as in "other --data"; the program itself is always among it. Not asked
// for where there is one process. Collective; BadInput, for all, that says which process on which machine differs from
// the first, and in what.
struct Common {
    std::string what;
    uint64_t value;
};
void require_alike(const std::function<std::vector<Common>()>& things);

}  // namespace lnfree
