#include "dev/run/signals.h"

#include "dev/processes.h"

namespace lnfree {

volatile sig_atomic_t g_signal = 0;

void stop_on_signals() {
    struct sigaction action {};
    action.sa_handler = [](int signal) { g_signal = signal; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

int signal_to_any() {
    return processes().size() == 1 ? g_signal : static_cast<int>(processes().largest(g_signal));
}

}  // namespace lnfree
