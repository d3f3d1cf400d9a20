// Processes without MPI: each is told its number in the environment, as torchrun does, and they find each other through a
// file. What they share on the host goes over TCP by way of process 0: figures of a step, decisions, a checkpoint's moments.
// That is little where the gradients go from GPU to GPU (dev/cuda/collectives.h).
//
// When one ends without having come to the end, the system closes its connections; a thread of each process waits for just
// that, and ends the process whatever it is doing, waiting for a GPU included.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "data/error.h"
#include "dev/run/launched_processes.h"

namespace lnfree {

// What a process is told in its environment.
struct PlaceInRun {
    int rank = 0, size = 1;
    int on_machine = -1;     // number among those of its machine; -1: as they come
    std::string rendezvous;  // file, on a disk that all see, through which the others find process 0
    double patience = 300;   // seconds within which all must have come
};

// A failure that another process tells already.
struct ToldElsewhere : BadInput {
    using BadInput::BadInput;
};

// The processes of this run, once all are there. Process 0 writes the file, which the others wait for, and removes it when
// all have come. A file that was left by an earlier run does no harm: it names a secret that nobody knows any more. BadInput
// if somebody does not come in time, if numbers contradict each other, or if the file cannot be written or is another.
//
// `say` prints a line on standard error: from a thread of its own, when another process has ended.
std::unique_ptr<LaunchedProcesses> join_over_sockets(const PlaceInRun& place,
                                                     const std::function<void(const std::string&)>& say);

}  // namespace lnfree
