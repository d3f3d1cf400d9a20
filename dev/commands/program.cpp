// The program's outermost function: every failure becomes one line on standard error and an exit status.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <system_error>

#include "data/error.h"
#include "data/files.h"
#include "dev/commands/command_line.h"
#include "dev/commands/commands.h"
#include "dev/cpu/operations.h"
#include "dev/run/launch.h"
#include "dev/run/signals.h"

namespace lnfree {
namespace {

// The end of this process, with what is to be said: on one line, whatever a file name or flag may hold.
int end(int status, std::string what = "") {
    std::replace_if(
        what.begin(), what.end(), [](unsigned char c) { return c < 0x20; }, ' ');
    return leave_processes(status, what);
}

// How threads wait for each other between two operations, unless the environment says it: GCC's OpenMP has them look
// 300,000 times before they sleep, 8 ms in which they keep the processor from those that they wait for as soon as anything
// else runs on it. Three thousand times cost nothing when nothing does (dev/cpu/README.md has both measured). It
// reads the variable before main() begins, so the program starts once more; where it cannot, it goes on as it is.
void let_waiting_threads_sleep([[maybe_unused]] char** argv) {
#if defined(_OPENMP) && defined(__GLIBC__) && !defined(__clang__)
    if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
    setenv("GOMP_SPINCOUNT", "3000", 1);
    std::error_code failed;
    const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", failed);
    if (!failed) execv(self.c_str(), argv);
#endif
}

}  // namespace

int run_program(int argc, char** argv) {
    try {
        join_processes();
        operations();  // an LNFREE_ISA that is not there is refused whatever the command
        const int status = parse_command_line(argc, argv)();
        if (std::fflush(stdout) != 0 || std::ferror(stdout))
            return end(1, "standard output cannot be written: " + errno_text(errno));
        return end(status);
    } catch (const BadInput& e) {
        return end(2, e.what());
    } catch (const NoGpu& e) {
        return end(3, e.what());
    } catch (const Interrupted& e) {
        return end(128 + e.signal);
    } catch (const std::bad_alloc&) {
        return end(1, "out of memory; use a smaller --batch or --seq");
    } catch (const std::filesystem::filesystem_error& e) {
        return end(1, e.path1().string() + ": " + e.code().message() + "; check the path and its permissions");
    } catch (const std::exception& e) {
        return end(1, e.what());
    }
}

int program_main(int argc, char** argv) {
    let_waiting_threads_sleep(argv);
    return run_program(argc, argv);
}

}  // namespace lnfree
