#include "dev/run/launch.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "data/error.h"
#include "data/files.h"
#include "dev/cpu/machine.h"
#include "dev/engine.h"
#include "dev/run/models.h"
#include "dev/run/processes_mpi.h"
#include "dev/run/processes_sockets.h"
#include "dev/run/records.h"

namespace lnfree {

namespace {

constexpr double kPatience = 3;  // seconds within which processes that all fail for the same reason do so

LaunchedProcesses* g_launched = nullptr;
int g_standard_error = STDERR_FILENO;  // where a process that is otherwise silent says why it ends

// What launchers leave in the environment of each copy that they start: how many there are, and which one this is. (A
// Slurm job's own script has SLURM_NTASKS too; only what srun starts is a step with several tasks.)
struct Launcher {
    const char *name, *copies, *number;
};
constexpr Launcher kLaunchers[] = {{"mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
                                   {"mpiexec", "PMI_SIZE", "PMI_RANK"},
                                   {"srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}};

// What torchrun tells each of them instead, and whoever starts them in its way.
constexpr const char *kCopies = "WORLD_SIZE", *kNumber = "RANK", *kOnMachine = "LOCAL_RANK",
                     *kRendezvous = "LNFREE_RENDEZVOUS", *kPatienceThere = "LNFREE_RENDEZVOUS_SECONDS";

int number_in(const char* variable) {
    const char* const text = std::getenv(variable);
    return text != nullptr ? static_cast<int>(std::strtol(text, nullptr, 10)) : 0;
}

// Null: nobody started more than this one.
const Launcher* launcher() {
    for (const Launcher& each : kLaunchers)
        if (number_in(each.copies) > 1) return &each;
    return nullptr;
}

void fall_silent() {
    std::fflush(nullptr);
    g_standard_error = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    const int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    for (const int descriptor : {STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, descriptor);
    ::close(null);
}

// Cores are shared out among the processes of a machine; a launcher that bound this process to fewer is obeyed.
void share_cores(int processes_here) {
    if (std::getenv("OMP_NUM_THREADS") != nullptr) return;
    const int cores = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
    set_thread_count(std::max(1, std::min(thread_count(), cores / processes_here)));
}

void say(const std::string& line) {
    const std::string text = "train_gpt2_lnfree: " + line + "\n";
    if (::write(g_standard_error, text.data(), text.size()) < 0) return;  // nobody is left to hear it
}

std::unique_ptr<LaunchedProcesses> join_by_launcher(const Launcher& by) {
    std::unique_ptr<LaunchedProcesses> joined = join_over_mpi(say);
    if (joined != nullptr) return joined;
    const std::string copies = std::to_string(number_in(by.copies));
    if (number_in(by.number) > 0) fall_silent();
    throw BadInput(std::string(by.name) + " started " + copies + " copies of this program, " +
                   (built_with_mpi() ? "which do not find each other; use the mpirun of the MPI that it was built "
                                       "with, or srun --mpi=pmix"
                                     : "which was built without MPI: they would all write into one folder; install "
                                       "an MPI (libopenmpi-dev) and make again, or start it once"));
}

// A whole number of the environment, within bounds. BadInput if it is none; `otherwise` if the variable is not set.
int environment_number(const char* variable, int least, int most, int otherwise) {
    const char* const text = std::getenv(variable);
    if (text == nullptr) return otherwise;
    int number = 0;
    const char* const end = text + std::strlen(text);
    const auto [rest, error] = std::from_chars(text, end, number);
    if (error != std::errc() || rest != end || number < least || number > most)
        throw BadInput(std::string(variable) + "=" + quoted_name(text) +
                       ": is set by launchers such as torchrun to a " + "number from " + std::to_string(least) +
                       " to " + std::to_string(most) + "; unset WORLD_SIZE to start the program once");
    return number;
}

// What the environment says in torchrun's way; one process if it says nothing.
PlaceInRun place_in_environment() {
    constexpr int kMost = 1 << 12;
    PlaceInRun place;
    if (const char* const path = std::getenv(kRendezvous)) place.rendezvous = path;
    if (std::getenv(kCopies) == nullptr) {
        if (place.rendezvous.empty()) return place;
        throw BadInput(std::string(kRendezvous) + " is set and " + kCopies + " is not: start each process with " +
                       kNumber + ", " + kCopies + " and " + kOnMachine +
                       ", as torchrun does, or unset it to start one");
    }
    place.size = environment_number(kCopies, 1, kMost, 1);
    if (place.size > 1 && std::getenv(kNumber) == nullptr)
        throw BadInput(std::string(kCopies) + "=" + std::to_string(place.size) + " without " + kNumber +
                       ": each process needs its number; unset it to start one process");
    place.rank = environment_number(kNumber, 0, place.size - 1, 0);
    place.on_machine = environment_number(kOnMachine, 0, kMost, -1);
    place.patience = environment_number(kPatienceThere, 1, 1 << 20, static_cast<int>(place.patience));
    return place;
}

// Why the processes that WORLD_SIZE promises cannot be joined; empty: they can.
std::string why_not_by_environment(const PlaceInRun& place) {
    if (backend().use_device == nullptr)
        return "this program's processes are joined by MPI alone: start it by mpirun, or train_gpt2_lnfree_cuda in "
               "this "
               "way; unset WORLD_SIZE to start it once";
    if (!backend().trains_together)
        return "this program was built without NCCL: they would all write into one folder; install NCCL (libnccl-dev) "
               "and make again, or start it once";
    if (place.rendezvous.empty())
        return "set LNFREE_RENDEZVOUS=FILE, on a disk that all see, through which they find each other; or start them "
               "by "
               "mpirun";
    return "";
}

std::unique_ptr<LaunchedProcesses> join_by_environment(const PlaceInRun& place) {
    const std::string why_not = why_not_by_environment(place);
    if (!why_not.empty()) {
        if (place.rank > 0) fall_silent();
        throw BadInput("WORLD_SIZE=" + std::to_string(place.size) + " says that so many copies were started, but " +
                       why_not);
    }
    try {
        return join_over_sockets(place, say);
    } catch (const ToldElsewhere&) {
        fall_silent();
        throw;
    }
}

// Null: this process is alone. Who names a rendezvous does not want MPI.
std::unique_ptr<LaunchedProcesses> join_others() {
    const Launcher* const by = launcher();
    if (by != nullptr && std::getenv(kRendezvous) == nullptr) return join_by_launcher(*by);
    const PlaceInRun place = place_in_environment();
    return place.size > 1 ? join_by_environment(place) : nullptr;
}

}  // namespace

void join_processes() {
    static const std::unique_ptr<LaunchedProcesses> joined = join_others();
    if (joined == nullptr) return;
    g_launched = joined.get();
    use_processes(*joined);
    if (!joined->leads()) fall_silent();
    share_cores(joined->on_this_machine());
    if (backend().use_device != nullptr) backend().use_device(joined->place_on_machine());
}

int leave_processes(int status, const std::string& line) {
    std::fflush(stdout);
    const bool silent = g_standard_error != STDERR_FILENO;
    if (!line.empty() && !silent) say(line);
    if (g_launched == nullptr) return status;
    if (g_launched->all_end(status == 0 ? -1 : kPatience)) {
        g_launched->finalize();
        return status;
    }
    if (!line.empty() && silent) say(of_process(g_launched->rank(), g_launched->machine(), line));
    g_launched->abort(status);
    return status;
}

namespace {

// What tells two builds of this program from each other: its bytes.
uint64_t program_fingerprint() {
    Hash64 hash;
    const std::string program = read_file("/proc/self/exe", uint64_t{1} << 31);
    add_bytes(hash, program.data(), program.size());
    return hash.value();
}

}  // namespace

void require_alike(const std::function<std::vector<Common>()>& of_this_process) {
    if (g_launched == nullptr) return;
    std::vector<Common> things = of_this_process();
    things.insert(things.begin(), {"another build of this program", program_fingerprint()});
    const size_t n = things.size(), size = static_cast<size_t>(processes().size());
    std::vector<uint64_t> all(n * size);
    for (size_t i = 0; i < n; i++) all[static_cast<size_t>(processes().rank()) * n + i] = things[i].value;
    processes().all_gather(all.data(), sizeof all[0], std::vector<int64_t>(size, static_cast<int64_t>(n)));
    const std::vector<std::string> machines = g_launched->machines();
    for (size_t r = 1; r < size; r++)
        for (size_t i = 0; i < n; i++)
            if (all[r * n + i] != all[i])
                throw BadInput("process " + std::to_string(r) + " on " + machines[r] + " has " + things[i].what +
                               " than process 0 on " + machines[0] + " (" + hex(all[r * n + i]) + ", " + hex(all[i]) +
                               "); all processes of a run need the same");
}

}  // namespace lnfree
