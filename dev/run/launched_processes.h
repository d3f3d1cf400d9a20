// What processes() is where a launcher started several copies of this program: besides the operations that they carry out
// together, how they end. Over MPI (processes_mpi.h), or over sockets alone (processes_sockets.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "dev/cpu/machine.h"
#include "dev/processes.h"

namespace lnfree {

// What process `rank` on this machine has to say.
inline std::string of_process(int rank, const std::string& machine, const std::string& line) {
    return "process " + std::to_string(rank) + " on " + machine + ": " + line;
}

class LaunchedProcesses : public Processes {
  public:
    // How many of them are on this machine.
    virtual int on_this_machine() const = 0;
    // The machine of this process, by name.
    virtual std::string machine() const = 0;
    // Whether all processes have come here to end, waited for at most so many seconds (negative: as long as it takes).
    virtual bool all_end(double seconds) = 0;
    // Once all have.
    virtual void finalize() = 0;
    // Ends all processes, this one included, with this exit status.
    virtual void abort(int status) = 0;

    // The machines of all. Collective.
    std::vector<std::string> machines() {
        constexpr int64_t kLength = 256;
        std::vector<char> names(static_cast<size_t>(size() * kLength));
        const std::string here = machine().substr(0, kLength - 1);
        std::copy(here.begin(), here.end(), names.begin() + rank() * kLength);
        all_gather(names.data(), 1, std::vector<int64_t>(static_cast<size_t>(size()), kLength));
        std::vector<std::string> all;
        for (int r = 0; r < size(); r++) all.emplace_back(names.data() + r * kLength);
        return all;
    }

    double seconds() const override { return seconds_; }

  protected:
    // Adds to seconds() for as long as it lives.
    class Stopwatch {
      public:
        explicit Stopwatch(LaunchedProcesses& of) : total_(of.seconds_), begin_(seconds_now()) {}
        Stopwatch(const Stopwatch&) = delete;
        Stopwatch& operator=(const Stopwatch&) = delete;
        ~Stopwatch() { total_ += seconds_now() - begin_; }

      private:
        double& total_;
        double begin_;
    };

  private:
    double seconds_ = 0;
};

}  // namespace lnfree
