#include "dev/run/signals.h"

namespace lnfree {

volatile sig_atomic_t g_signal = 0;

void stop_on_signals() {
    struct sigaction action {};
    action.sa_handler = [](int signal) { g_signal = signal; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

}  // namespace lnfree
