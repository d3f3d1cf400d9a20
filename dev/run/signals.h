// Ctrl-C and SIGTERM: noticed, not obeyed at once, so that a run can save its state first.
#pragma once

#include <signal.h>

namespace lnfree {

// The signal that came; 0: none. A second one ends the program at once.
extern volatile sig_atomic_t g_signal;

void stop_on_signals();

// The signal that came to any of the processes; collective.
int signal_to_any();

// Thrown when a signal has ended a run after its state was saved; main exits with 128 + signal.
struct Interrupted {
    int signal;
};

}  // namespace lnfree
