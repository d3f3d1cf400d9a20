// The program as its users meet it: in processes of its own, judged by exit status, output and files. LNFREE_PROGRAM names it
// (default ./train_gpt2_lnfree); tests run from the project's folder.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "test/file_helpers.h"

namespace lnfree {

using Words = std::vector<std::string>;

struct Outcome {
    int status = 0;  // exit status; minus the signal's number if a signal ended it
    std::string out, err;
};

struct Surroundings {
    rlim_t largest_file = RLIM_INFINITY;  // bytes; a limit is a full disk
    std::string standard_output = {};     // a file such as /dev/full; empty: captured
    Words launcher = {};                  // in front of the program: mpirun and its flags
};

inline std::string program_under_test() {
    const char* chosen = std::getenv("LNFREE_PROGRAM");
    std::string program = chosen != nullptr ? chosen : "./train_gpt2_lnfree";
    if (::access(program.c_str(), X_OK) != 0) throw std::runtime_error(program + " is not there: run make");
    return program;
}

// A running program. Its output goes through files, which unlike pipes never fill up.
class Process {
  public:
    explicit Process(const Words& arguments, const Surroundings& surroundings = {}) {
        Words words = surroundings.launcher;
        words.push_back(program_under_test());
        words.insert(words.end(), arguments.begin(), arguments.end());
        std::vector<char*> argv;
        for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
        argv.push_back(nullptr);
        const std::string out = surroundings.standard_output.empty() ? output_ / "out" : surroundings.standard_output;
        const std::string err = output_ / "err";
        pid_ = ::fork();
        if (pid_ != 0) return;
        redirect("/dev/null", O_RDONLY, STDIN_FILENO);
        redirect(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
        redirect(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
        if (surroundings.largest_file != RLIM_INFINITY) {
            std::signal(SIGXFSZ, SIG_IGN);
            const rlimit limit = {surroundings.largest_file, surroundings.largest_file};
            ::setrlimit(RLIMIT_FSIZE, &limit);
        }
        ::execvp(argv[0], argv.data());
        ::_exit(127);
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;
    ~Process() {
        if (!ended_) wait(0);
    }

    void kill(int signal) const { ::kill(pid_, signal); }
    pid_t id() const { return pid_; }

    bool running() {
        if (!ended_) ended_ = ::waitpid(pid_, &wait_status_, WNOHANG) == pid_;
        return !ended_;
    }

    // What became of it; one that hangs is killed.
    Outcome wait(double seconds = 120) {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
        while (running() && std::chrono::steady_clock::now() < deadline) ::usleep(500);
        if (running()) kill(SIGKILL);
        while (running()) ::usleep(500);
        const bool exited = WIFEXITED(wait_status_);
        return {exited ? WEXITSTATUS(wait_status_) : -WTERMSIG(wait_status_), read_bytes(output_ / "out"),
                read_bytes(output_ / "err")};
    }

  private:
    static void redirect(const char* path, int flags, int descriptor) {
        const int file = ::open(path, flags, 0666);
        if (file < 0 || ::dup2(file, descriptor) < 0) ::_exit(126);
        ::close(file);
    }

    TemporaryFolder output_;
    pid_t pid_ = -1;
    int wait_status_ = 0;
    bool ended_ = false;
};

inline Outcome run(const Words& arguments, const Surroundings& surroundings = {}) {
    return Process(arguments, surroundings).wait();
}

// Runs what must succeed.
inline Outcome succeed(const Words& arguments, const Surroundings& surroundings = {}) {
    Outcome outcome = run(arguments, surroundings);
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    return outcome;
}

}  // namespace lnfree
