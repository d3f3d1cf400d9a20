// The CUDA program, emulated, as several processes that no MPI joins: each is told its number as torchrun does it, and they
// find each other through a file. What they make is what mpirun's make, and whatever happens to one, all end within seconds
// with one line. The processes carry out the first case here, which is the whole program.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "dev/commands/commands.h"
#include "dev/cuda/collectives.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda_on_cpu/options.h"
#include "dev/engine.h"
#include "dev/run/processes_mpi.h"
#include "dev/run/sockets.h"
#include "test/program.h"

using namespace lnfree;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr double kSeconds = 60;  // within which everything must have ended, on a busy machine too
constexpr char kWords[] = "LNFREE_TEST_WORDS", kEngine[] = "LNFREE_TEST_ENGINE", kBroken[] = "LNFREE_TEST_BROKEN";

Words joined(Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

// `words` on the program's command line, by engine "cuda", "cuda without NCCL" or "cpu".
Words environment_of(const Words& words, const std::string& engine = "cuda") {
    std::string all;
    for (const std::string& word : words) all += word + "\n";
    return {kWords + ("=" + all), kEngine + ("=" + engine), "OMP_NUM_THREADS=1"};
}

using Variables = std::map<std::string, std::string>;

std::unique_ptr<Process> start(const Words& words, const Variables& variables, const std::string& engine = "cuda",
                               const Words& launcher = {}) {
    Surroundings s;
    s.launcher = joined({"env"}, environment_of(words, engine));
    for (const auto& [name, value] : variables) s.launcher.push_back(name + "=" + value);
    s.launcher = joined(s.launcher, launcher);
    ::setenv("LNFREE_PROGRAM", fs::read_symlink("/proc/self/exe").c_str(), 1);
    return std::make_unique<Process>(Words{"--test-case=in each process: the program"}, s);
}

Variables place(int rank, int size, const std::string& rendezvous) {
    return {{"RANK", std::to_string(rank)},
            {"LOCAL_RANK", std::to_string(rank)},
            {"WORLD_SIZE", std::to_string(size)},
            {"LNFREE_RENDEZVOUS", rendezvous},
            {"LNFREE_RENDEZVOUS_SECONDS", "40"}};
}

using Started = std::vector<std::unique_ptr<Process>>;

Started start_all(int n, const Words& words, const std::string& rendezvous) {
    Started started;
    for (int r = 0; r < n; r++) started.push_back(start(words, place(r, n, rendezvous)));
    return started;
}

// The lines that are ours, of any of them.
Words said_by(const std::vector<Outcome>& outcomes) {
    Words ours;
    for (const Outcome& outcome : outcomes) {
        std::istringstream lines(outcome.err);
        for (std::string line; std::getline(lines, line);)
            if (contains(line, "train_gpt2_lnfree: ")) ours.push_back(line);
    }
    return ours;
}

std::vector<Outcome> wait_for(const Started& started) {
    std::vector<Outcome> outcomes;
    for (const auto& process : started) outcomes.push_back(process->wait(kSeconds));
    return outcomes;
}

void check_one_line(const std::vector<Outcome>& outcomes, const Words& words) {
    const Words said = said_by(outcomes);
    std::string all;
    for (const Outcome& outcome : outcomes) all += outcome.err + "| ";
    CAPTURE(all);
    REQUIRE(said.size() == 1);
    for (const std::string& word : words) {
        CAPTURE(word);
        CHECK(contains(said[0], word));
    }
}

// All end with this status, and one line of ours that holds all words.
void check_ends(const Started& started, int status, const Words& words) {
    const std::vector<Outcome> outcomes = wait_for(started);
    for (const Outcome& outcome : outcomes) CHECK(outcome.status == status);
    check_one_line(outcomes, words);
}

void check_succeed(const Started& started) {
    for (const Outcome& outcome : wait_for(started)) {
        CAPTURE(outcome.err);
        CHECK(outcome.status == 0);
    }
}

// Shards of the story world, and a model of 25,000 parameters, two blocks of the flat buffer.
struct Workbench {
    TemporaryFolder folder;
    Workbench() {
        const Variables nothing;
        for (const Words& words :
             {Words{"stories", "--count", "40", "--out", folder / "stories.jsonl"},
              Words{"tokenize", "--input", folder / "stories.jsonl", "--out", folder / "s", "--val-fraction", "0.1"},
              joined({"pretrain", "--out", folder / "base", "--n-layer", "2", "--n-head", "2", "--n-embd", "32",
                      "--n-ctx", "16", "--steps", "20", "--batch", "4", "--grad-accum", "1"},
                     data())}) {
            const Outcome outcome = start(words, nothing, "cpu")->wait(kSeconds);
            CAPTURE(outcome.err);
            REQUIRE(outcome.status == 0);
        }
    }
    Words data() const { return {"--data", folder / "s_train_*.bin", "--val", folder / "s_val_*.bin"}; }
    Words removal(const std::string& out, const Words& more = {}, const std::string& steps = "16") const {
        return joined(joined({"remove", "--model", folder / "base", "--out", out, "--steps", steps, "--batch", "1",
                              "--grad-accum", "5", "--val-tokens", "64", "--save-every", "6", "--eval-every", "16",
                              "--keep-checkpoints", "2"},
                             data()),
                      more);
    }
    Words resumed(const std::string& out) const { return {"remove", "--resume", "--out", out}; }
};

const Workbench& workbench() {
    static const Workbench made;
    return made;
}

std::vector<double> losses_of(const std::string& out) {
    std::vector<double> losses;
    std::istringstream lines(read_bytes(out + "/log.jsonl"));
    for (std::string line; std::getline(lines, line);) {
        const json j = json::parse(line);
        if (j.contains("loss")) losses.push_back(j["loss"].get<double>());
    }
    return losses;
}

void wait_for_lines(Process& process, const std::string& out, std::ptrdiff_t lines) {
    while (process.running()) {
        const std::string log = read_bytes(out + "/log.jsonl");
        if (std::count(log.begin(), log.end(), '\n') >= lines) break;
        ::usleep(500);
    }
}

// Another program, at the port that an earlier run had: it says nothing, or answers whatever it is told.
class Stranger {
  public:
    explicit Stranger(bool talks)
        : listener_(listen_anywhere(port_)), thread_([this, talks] {
              std::vector<FileDescriptor> connected;
              while (!over_) {
                  connected.push_back(accept_within(listener_.get(), 0.05));
                  const char answer[64] = "HTTP/1.1 400 Bad Request\r\n";
                  if (talks && connected.back().is_open()) send_all(connected.back().get(), answer, sizeof answer);
              }
          }) {}
    ~Stranger() {
        over_ = true;
        thread_.join();
    }
    int port() const { return port_; }

  private:
    int port_ = 0;
    FileDescriptor listener_;
    std::atomic<bool> over_{false};
    std::thread thread_;
};

// What no process may have begun to write.
std::string nowhere() {
    return workbench().folder / "nowhere";
}

bool is_child() {
    return std::getenv(kWords) != nullptr;
}

}  // namespace

// Its name is that of cases which are carried out by processes that others start.
TEST_CASE("in each process: the program" * doctest::skip(!is_child())) {
    std::vector<std::string> words = {"train_gpt2_lnfree"};
    std::istringstream lines(std::getenv(kWords));
    for (std::string line; std::getline(lines, line);) words.push_back(line);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    const std::string engine = std::getenv(kEngine);
    const cuda::TemporaryEmulationOptions without_checks(false, 0);
    if (engine != "cpu") {
        cuda::use_cuda_engine();
        backend().use_device = [](int) {};
        backend().trains_together = engine == "cuda";
    }
    if (std::getenv(kBroken) != nullptr)
        std::thread([] {
            std::this_thread::sleep_for(std::chrono::seconds(2));
            ncclEmulatedAsyncError() = ncclSystemError;
        }).detach();
    std::exit(run_program(static_cast<int>(argv.size()), argv.data()));
}

namespace {

// What two and three processes make of the removal, in folders run2 and run3.
struct Removals {
    TemporaryFolder runs;
    Removals() {
        for (const int n : {2, 3}) {
            check_succeed(start_all(n, workbench().removal(of(n)), runs / "rendezvous"));
            CHECK_FALSE(fs::exists(runs / "rendezvous"));
        }
    }
    std::string of(int n) const { return runs / ("run" + std::to_string(n)); }
};

const Removals& removals() {
    static const Removals made;
    return made;
}

}  // namespace

TEST_CASE("two and three processes that a file joins make what one makes") {
    if (is_child()) return;
    TemporaryFolder runs;
    Started one;
    one.push_back(start(workbench().removal(runs / "one"), {}));
    check_succeed(one);
    const std::vector<double> expected = losses_of(runs / "one");
    REQUIRE(expected.size() == 16);
    for (const int n : {2, 3}) {
        CAPTURE(n);
        const std::vector<double> losses = losses_of(removals().of(n));
        REQUIRE(losses.size() == expected.size());
        for (size_t i = 0; i < losses.size(); i++) CHECK(losses[i] == doctest::Approx(expected[i]).epsilon(2e-3));
    }
}

TEST_CASE("two and three processes that a file joins make the same bytes as mpirun's") {
    if (is_child()) return;
    if (!built_with_mpi() || std::system("mpirun --version >/dev/null 2>&1") != 0) {
        std::printf("SKIPPED: processes without MPI beside mpirun's: there is no MPI\n");
        return;
    }
    for (const int n : {2, 3}) {
        CAPTURE(n);
        TemporaryFolder runs;
        const std::string ours = removals().of(n), theirs = runs / "mpi";
        const Variables as_root = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"}, {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"}};
        Started over_mpi;
        over_mpi.push_back(start(workbench().removal(theirs), as_root, "cuda",
                                 {"mpirun", "--oversubscribe", "--bind-to", "none", "-np", std::to_string(n)}));
        check_succeed(over_mpi);
        CHECK(losses_of(ours) == losses_of(theirs));
        for (const char* name : {"model", "checkpoints/step_000012/adam_m", "checkpoints/step_000012/adam_v"}) {
            const std::string file = std::string("/") + name + ".safetensors";
            CAPTURE(file);
            CHECK(fs::exists(ours + file));
            CHECK(read_bytes(ours + file) == read_bytes(theirs + file));
        }
    }
}

TEST_CASE("SIGTERM to one saves one checkpoint, and another number of processes goes on from it") {
    if (is_child()) return;
    TemporaryFolder runs;
    const std::string out = runs / "run";
    const Started started = start_all(2, workbench().removal(out, {}, "200"), runs / "rendezvous");
    wait_for_lines(*started[0], out, 3);
    started[1]->kill(SIGTERM);
    const std::vector<Outcome> outcomes = wait_for(started);
    CAPTURE(outcomes[0].err);
    for (const Outcome& outcome : outcomes) CHECK(outcome.status == 143);
    CHECK(contains(outcomes[0].err, "continue with: train_gpt2_lnfree"));
    CHECK(fs::exists(out + "/checkpoints"));
    const Started more = start_all(3, workbench().resumed(out), runs / "rendezvous");
    const std::string log = read_bytes(out + "/log.jsonl");
    wait_for_lines(*more[0], out, std::count(log.begin(), log.end(), '\n') + 2);
    for (const auto& process : more) process->kill(SIGTERM);
    for (const Outcome& outcome : wait_for(more)) CHECK(outcome.status == 143);
}

TEST_CASE("one that is killed ends the others within seconds, with one line that says which it was") {
    if (is_child()) return;
    for (const int killed : {0, 1, 2}) {
        CAPTURE(killed);
        TemporaryFolder runs;
        const std::string out = runs / "run";
        Started started = start_all(3, workbench().removal(out, {}, "200"), runs / "rendezvous");
        wait_for_lines(*started[0], out, 2);
        started[static_cast<size_t>(killed)]->kill(SIGKILL);
        const std::vector<Outcome> outcomes = wait_for(started);
        for (int r = 0; r < 3; r++) CHECK(outcomes[static_cast<size_t>(r)].status == (r == killed ? -SIGKILL : 1));
        check_one_line(outcomes,
                       {"process " + std::to_string(killed) + " on ", "has ended without a word", "--resume"});
    }
}

TEST_CASE("when the connection between GPUs breaks, all end within seconds, and one line says so") {
    if (is_child()) return;
    for (const int broken : {0, 2}) {
        CAPTURE(broken);
        TemporaryFolder runs;
        Started started;
        for (int r = 0; r < 3; r++) {
            Variables variables = place(r, 3, runs / "rendezvous");
            if (r >= broken) variables[kBroken] = "1";  // all of them notice, or one does
            started.push_back(start(workbench().removal(runs / "run", {}, "20000"), variables));
        }
        check_ends(started, 1, {"process ", " on ", "NCCL says an emulated error", "--resume"});
    }
}

TEST_CASE("one that cannot go on by itself says why, and ends all") {
    if (is_child()) return;
    TemporaryFolder runs;
    const Workbench& w = workbench();
    const std::string rendezvous = runs / "rendezvous";
    Words blind = w.removal(nowhere());
    *std::find(blind.begin(), blind.end(), w.folder / "s_train_*.bin") = w.folder / "gone_*.bin";
    for (const int blind_one : {0, 1}) {
        Started started;
        for (int r = 0; r < 2; r++)
            started.push_back(start(r == blind_one ? blind : w.removal(nowhere()), place(r, 2, rendezvous)));
        check_ends(started, 2, {"gone_", blind_one == 1 ? "process 1 on " : "train_gpt2_lnfree: "});
    }
    Started started;
    started.push_back(start(w.removal(nowhere()), place(0, 2, rendezvous)));
    started.push_back(start(w.removal(nowhere(), {"--lr", "0.001"}), place(1, 2, rendezvous)));
    check_ends(started, 2, {"process 1 on ", "other settings than"});
    CHECK_FALSE(fs::exists(nowhere()));
}

TEST_CASE("numbers that make no sense are refused in one line") {
    if (is_child()) return;
    TemporaryFolder runs;
    const std::string rendezvous = runs / "rendezvous";
    const Words any = {"--help"};
    const auto refused = [&](Variables variables, const Words& words, const std::string& engine = "cuda") {
        Started started;
        started.push_back(start(any, variables, engine));
        check_ends(started, 2, words);
    };
    const auto with = [&](const char* name, const char* value) {
        Variables variables = place(1, 3, rendezvous);
        variables[name] = value;
        return variables;
    };
    const auto without = [&](const char* name) {
        Variables variables = place(0, 3, rendezvous);
        variables.erase(name);
        return variables;
    };
    refused(with("RANK", "3"), {"RANK=\"3\"", "from 0 to 2"});
    refused(with("RANK", "-1"), {"RANK=\"-1\""});
    refused(with("RANK", ""), {"RANK=\"\""});
    refused(with("RANK", "1x"), {"RANK=\"1x\""});
    refused(with("WORLD_SIZE", "0"), {"WORLD_SIZE=\"0\""});
    refused(with("WORLD_SIZE", "two"), {"WORLD_SIZE=\"two\""});
    refused(with("WORLD_SIZE", "99999999999"), {"WORLD_SIZE=\"99999999999\""});
    refused(with("LOCAL_RANK", "-2"), {"LOCAL_RANK=\"-2\""});
    refused(with("LNFREE_RENDEZVOUS_SECONDS", "soon"), {"LNFREE_RENDEZVOUS_SECONDS=\"soon\""});
    refused(without("RANK"), {"WORLD_SIZE=3 without RANK"});
    refused(without("WORLD_SIZE"), {"LNFREE_RENDEZVOUS is set and WORLD_SIZE is not"});
    refused(without("LNFREE_RENDEZVOUS"), {"WORLD_SIZE=3", "LNFREE_RENDEZVOUS=FILE", "mpirun"});
    refused(without("none"), {"WORLD_SIZE=3", "built without NCCL"}, "cuda without NCCL");
    refused(without("none"), {"WORLD_SIZE=3", "by MPI alone"}, "cpu");
    Started alone;
    alone.push_back(start(any, place(0, 1, rendezvous)));
    check_succeed(alone);
}

TEST_CASE("processes that contradict each other, or do not come, end within the time that was given") {
    if (is_child()) return;
    TemporaryFolder runs;
    const std::string rendezvous = runs / "rendezvous";
    const Words any = {"--help"};
    const auto started_as = [&](const std::vector<std::pair<int, int>>& places, const char* seconds) {
        Started started;
        for (const auto& [rank, size] : places) {
            Variables variables = place(rank, size, rendezvous);
            variables["LNFREE_RENDEZVOUS_SECONDS"] = seconds;
            started.push_back(start(any, variables));
        }
        return started;
    };
    check_ends(started_as({{0, 3}, {2, 3}}, "4"), 2, {"process 1 of 3 did not come within 4 s", rendezvous});
    check_ends(started_as({{0, 4}, {2, 4}}, "4"), 2, {"processes 1, 3 of 4 did not come"});
    check_ends(started_as({{1, 3}, {2, 3}}, "2"), 2, {"process 0 did not come within 2 s", rendezvous});
    check_ends(started_as({{0, 3}, {1, 3}, {1, 3}}, "40"), 2, {"two processes were started with RANK=1"});
    check_ends(started_as({{0, 2}, {1, 3}}, "40"), 2, {"process 1", "WORLD_SIZE=3", "process 0 with 2"});
    CHECK_FALSE(fs::exists(rendezvous));
    write_bytes(rendezvous, "my notes\n");
    check_ends(started_as({{0, 2}, {1, 2}}, "40"), 2, {rendezvous, "a file of another kind"});
    CHECK(read_bytes(rendezvous) == "my notes\n");
    fs::remove(rendezvous);
    Variables elsewhere = place(0, 2, runs / "no folder/rendezvous");
    Started started;
    started.push_back(start(any, elsewhere));
    check_ends(started, 2, {"LNFREE_RENDEZVOUS", "no folder"});
}

TEST_CASE("a file that an earlier run left is not taken for this run's") {
    if (is_child()) return;
    TemporaryFolder runs;
    const std::string rendezvous = runs / "rendezvous";
    const Words any = {"--help"};
    const Stranger silent(false), talking(true);
    for (const int port : {1, silent.port(), talking.port()}) {  // at the first nobody listens
        write_bytes(rendezvous, "gpt2-lnfree rendezvous 1\nlocalhost\n" + std::to_string(port) + " 2 3\n127.0.0.1\n");
        Started started;
        started.push_back(start(any, place(1, 2, rendezvous)));
        ::usleep(500'000);  // it has read the old one
        started.push_back(start(any, place(0, 2, rendezvous)));
        check_succeed(started);
        CHECK_FALSE(fs::exists(rendezvous));
    }
    // Two runs in a row, of which the first was killed while it waited.
    Started first;
    first.push_back(start(any, place(0, 2, rendezvous)));
    while (!fs::exists(rendezvous) && first[0]->running()) ::usleep(1000);
    first[0]->kill(SIGKILL);
    wait_for(first);
    CHECK(fs::exists(rendezvous));
    check_succeed(start_all(2, any, rendezvous));
}
