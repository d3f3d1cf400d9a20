// Several processes over MPI, started by mpirun on this machine: they do what one does, to the bit, and whatever happens to
// one of them, all end within seconds, with one line that says why and a checkpoint that any number of them can go on from.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "test/file_helpers.h"
#include "test/program.h"

using namespace lnfree;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr double kSeconds = 30;  // within which everything must have ended, on a busy machine too

Words joined(Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

// `n` processes on however few cores; one is started without mpirun.
Surroundings on(int n) {
    Surroundings s;
    if (n > 1) s.launcher = {"mpirun", "--oversubscribe", "--bind-to", "none", "-np", std::to_string(n)};
    return s;
}

// Why nothing can be tested here; empty: it can.
std::string why_not() {
    for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMP_NUM_THREADS"})
        ::setenv(name, "1", 1);
    const Outcome outcome = run({"--help"}, on(2));
    if (outcome.status == 0) return "";
    return contains(outcome.err, "built without MPI") ? "the program was built without MPI" : "there is no mpirun";
}

bool several_processes() {
    static const std::string reason = why_not();
    if (!reason.empty()) std::printf("SKIPPED: several processes: %s\n", reason.c_str());
    return reason.empty();
}

// Shards of the story world, and a model of them of 69,000 parameters, five blocks of the flat buffer.
struct Workbench {
    TemporaryFolder folder;
    Workbench() {
        ::setenv("OMP_NUM_THREADS", "1", 1);
        succeed({"stories", "--count", "60", "--out", folder / "stories.jsonl"});
        succeed({"tokenize", "--input", folder / "stories.jsonl", "--out", folder / "s", "--val-fraction", "0.1"});
        succeed({"pretrain",
                 "--data",
                 folder / "s_train_*.bin",
                 "--val",
                 folder / "s_val_*.bin",
                 "--out",
                 folder / "base",
                 "--n-layer",
                 "2",
                 "--n-head",
                 "2",
                 "--n-embd",
                 "48",
                 "--n-ctx",
                 "32",
                 "--steps",
                 "20",
                 "--batch",
                 "4",
                 "--grad-accum",
                 "1"});
    }
    // Seven sites go, with the original as teacher; micro-batches that no number of processes divides.
    Words removal(const std::string& out, const Words& more = {}, const std::string& save_every = "6") const {
        return joined({"remove",
                       "--model",
                       folder / "base",
                       "--data",
                       folder / "s_train_*.bin",
                       "--val",
                       folder / "s_val_*.bin",
                       "--out",
                       out,
                       "--steps",
                       "24",
                       "--batch",
                       "2",
                       "--grad-accum",
                       "5",
                       "--val-tokens",
                       "600",
                       "--save-every",
                       save_every,
                       "--eval-every",
                       "8",
                       "--keep-checkpoints",
                       "2"},
                      more);
    }
};

const Workbench& workbench() {
    static const Workbench made;
    return made;
}

// A run's files by name, without what the clock shows.
using Listing = std::map<std::string, std::string>;

Listing result_of(const std::string& out) {
    Listing listing;
    for (const auto& entry : fs::recursive_directory_iterator(out))
        if (entry.is_regular_file()) listing[fs::relative(entry.path(), out)] = read_bytes(entry.path());
    std::istringstream lines(listing["log.jsonl"]);
    std::string log;
    for (std::string line; std::getline(lines, line);) {
        json j = json::parse(line);
        j.erase("tokens_per_s");
        j.erase("communication_s");
        log += j.dump() + "\n";
    }
    listing["log.jsonl"] = log;
    listing.erase(".lock");
    return listing;
}

void check_same(const Listing& result, const Listing& expected) {
    CHECK(result.size() == expected.size());
    for (const auto& [name, bytes] : expected) {
        CAPTURE(std::string(name));
        CHECK((result.count(name) == 1 && result.at(name) == bytes));
    }
}

// What one process makes of the removal.
const Listing& expected_result() {
    static const Listing made = [] {
        TemporaryFolder runs;
        succeed(workbench().removal(runs / "one"));
        return result_of(runs / "one");
    }();
    return made;
}

// Where checkpoints were asked for at other steps: the rest.
void check_same_end(const std::string& out) {
    const Listing result = result_of(out);
    for (const char* name : {"model.safetensors", "log.jsonl", "lnfree.json", "loss.svg"})
        CHECK(result.at(name) == expected_result().at(name));
}

int checkpoints_of(const std::string& out) {
    int complete = 0;
    if (fs::exists(out + "/checkpoints"))
        for (const auto& entry : fs::directory_iterator(out + "/checkpoints"))
            complete += entry.path().filename().string()[0] != '.' ? 1 : 0;
    return complete;
}

// Goes on from the last checkpoint, or from the beginning if none was written yet.
void finish(int n, const std::string& out) {
    const bool saved = checkpoints_of(out) > 0;
    const Words arguments = saved ? Words{"remove", "--resume", "--out", out} : workbench().removal(out, {"--force"});
    const Outcome outcome = run(arguments, on(n));
    CAPTURE(outcome.err);
    CHECK((outcome.status == 0 || contains(outcome.err, "is finished")));
    check_same(result_of(out), expected_result());
}

void wait_for_lines(Process& process, const std::string& out, std::ptrdiff_t lines) {
    while (process.running()) {
        const std::string log = read_bytes(out + "/log.jsonl");
        if (std::count(log.begin(), log.end(), '\n') >= lines) break;
        ::usleep(500);
    }
}

// The process that mpirun, process `launcher`, started as number `rank`; 0: it is not there any more.
pid_t process_of(pid_t launcher, int rank) {
    const std::string wanted = std::string(1, '\0') + "OMPI_COMM_WORLD_RANK=" + std::to_string(rank) + '\0';
    for (const auto& entry : fs::directory_iterator("/proc")) {
        const pid_t id = std::atoi(entry.path().filename().c_str());
        if (id <= 0) continue;
        const std::string status = read_bytes(entry.path() / "status");
        if (!contains(status, "\nPPid:\t" + std::to_string(launcher) + "\n")) continue;
        if (contains(read_bytes(entry.path() / "environ"), wanted)) return id;
    }
    return 0;
}

// The lines that are ours; the rest is mpirun's.
Words said_by_us(const std::string& err) {
    Words ours;
    std::istringstream lines(err);
    for (std::string line; std::getline(lines, line);)
        if (contains(line, "train_gpt2_lnfree: ")) ours.push_back(line);
    return ours;
}

// Ends within seconds with this exit status and one line of ours that holds all words.
void check_ends(const Words& arguments, const Surroundings& where, int status, const Words& words) {
    const Outcome outcome = Process(arguments, where).wait(kSeconds);
    CAPTURE(outcome.err);
    CHECK(outcome.status == status);
    const Words said = said_by_us(outcome.err);
    REQUIRE(said.size() == 1);
    for (const std::string& word : words) {
        CAPTURE(word);
        CHECK(contains(said[0], word));
    }
}

// Two processes that were not asked for the same.
Words two_programs(const std::string& second_program, const Words& first, const Words& second) {
    return joined(joined(first, {":", "-np", "1", second_program}), second);
}

std::string nowhere() {
    return workbench().folder / "nowhere";
}

}  // namespace

TEST_CASE("a removal with a teacher gives the same weights, checkpoints and log for any number of processes") {
    if (!several_processes()) return;
    for (const int n : {2, 3, 4, 5}) {
        CAPTURE(n);
        TemporaryFolder runs;
        const Outcome outcome = succeed(workbench().removal(runs / "run"), on(n));
        check_same(result_of(runs / "run"), expected_result());
        CHECK(std::count(outcome.out.begin(), outcome.out.end(), '\n') < 60);  // one process speaks
        for (const char* words : {"communication_s", "tokens_per_s"})
            CHECK(contains(read_bytes(runs / "run/log.jsonl"), words));
    }
}

TEST_CASE("a removal by low-rank updates gives the same weights for any number of processes") {
    if (!several_processes()) return;
    TemporaryFolder runs;
    const Words low_rank = {"--lora", "3", "--lora-embeddings"};
    succeed(workbench().removal(runs / "one", low_rank));
    for (const int n : {2, 3}) {
        succeed(workbench().removal(runs / "several", joined(low_rank, {"--force"})), on(n));
        check_same(result_of(runs / "several"), result_of(runs / "one"));
    }
}

TEST_CASE("gradients that are exchanged in several pieces give the same weights") {
    if (!several_processes()) return;
    const Workbench& w = workbench();
    TemporaryFolder runs;
    const Words training = {"pretrain",
                            "--data",
                            w.folder / "s_train_*.bin",
                            "--val",
                            w.folder / "s_val_*.bin",
                            "--n-layer",
                            "4",
                            "--n-head",
                            "2",
                            "--n-embd",
                            "256",
                            "--n-ctx",
                            "16",
                            "--steps",
                            "3",
                            "--batch",
                            "1",
                            "--grad-accum",
                            "3",
                            "--val-tokens",
                            "16"};  // 3.2M parameters
    succeed(joined(training, {"--out", runs / "one"}));
    for (const int n : {2, 3}) {
        succeed(joined(training, {"--out", runs / "several", "--force"}), on(n));
        check_same(result_of(runs / "several"), result_of(runs / "one"));
    }
}

TEST_CASE(
    "experiments and the paper's schedule, with statistics before step 0, are the same for any number of processes") {
    if (!several_processes()) return;
    const Words precursor = {"--preset", "precursor", "--start-mlp", "0",   "--gap-mlp",           "0.5",
                             "--gap-qk", "0.5",       "--gap-v",     "0.5", "--release-position0", "22",
                             "--warmup", "2"};
    const Words paper = {"--preset", "paper", "--start-mlp", "0", "--distill", "0.5", "--sigma-ema", "0.3"};
    for (const Words& preset : {precursor, paper}) {
        TemporaryFolder runs;
        succeed(workbench().removal(runs / "one", preset));
        succeed(workbench().removal(runs / "three", preset), on(3));
        check_same(result_of(runs / "three"), result_of(runs / "one"));
    }
}

TEST_CASE("SIGTERM to any process saves one checkpoint, and any number of processes goes on from it") {
    if (!several_processes()) return;
    const int numbers[][3] = {{4, 2, 1}, {2, 0, 3}, {3, 1, 2}};  // started on, who gets the signal, gone on with
    for (const auto& [started, rank, resumed] : numbers) {
        CAPTURE(started);
        TemporaryFolder runs;
        const std::string out = runs / "run";
        Outcome outcome;
        for (int attempt = 0; attempt < 3; attempt++) {  // on a busy machine a run may be over too soon
            fs::remove_all(out);
            Process process(workbench().removal(out, {}, "0"), on(started));
            wait_for_lines(process, out, 3);
            if (const pid_t id = process_of(process.id(), rank)) ::kill(id, SIGTERM);
            outcome = process.wait(kSeconds);
            if (outcome.status != 0) break;
        }
        CAPTURE(outcome.err);
        REQUIRE(outcome.status == 143);
        CHECK(contains(outcome.err, "continue with: train_gpt2_lnfree remove --resume --out " + out));
        REQUIRE(checkpoints_of(out) == 1);
        succeed({"remove", "--resume", "--out", out, "--save-every", "6"}, on(resumed));
        check_same_end(out);
    }
}

TEST_CASE("a process killed at any moment ends all, and what was saved goes on to the same bytes") {
    if (!several_processes()) return;
    std::mt19937 random(5);
    const char* const asked = std::getenv("LNFREE_KILLS");  // make test-long asks for 50
    const int kills = asked != nullptr ? std::atoi(asked) : 4;
    for (int killed = 0, attempts = 0; killed < kills;) {
        REQUIRE(++attempts <= 10 * kills);
        TemporaryFolder runs;
        const std::string out = runs / "run";
        const auto lines = static_cast<std::ptrdiff_t>(random() % 28);
        const auto n = static_cast<int>(2 + random() % 3), rank = static_cast<int>(random() % n);
        const auto pause = static_cast<useconds_t>(random() % 30'000);
        CAPTURE(lines);
        CAPTURE(n);
        CAPTURE(rank);
        CAPTURE(pause);
        {
            Process process(workbench().removal(out), on(n));
            wait_for_lines(process, out, lines);
            ::usleep(pause);
            const pid_t id = process_of(process.id(), rank);
            if (id == 0 || ::kill(id, SIGKILL) != 0) continue;  // it was over before, or had not begun
            const Outcome outcome = process.wait(kSeconds);
            CAPTURE(outcome.err);
            REQUIRE(outcome.status != -SIGKILL);  // mpirun itself: it hung
            if (outcome.status == 0) continue;
        }
        killed++;
        finish(static_cast<int>(1 + random() % 4), out);
    }
}

TEST_CASE("eval and analyze loss give the same figures for any number of processes") {
    if (!several_processes()) return;
    TemporaryFolder runs;
    succeed(workbench().removal(runs / "free"));
    const std::string base = workbench().folder / "base", free = runs / "free",
                      data = workbench().folder / "s_val_*.bin";
    const auto figures = [](const std::string& text) {
        json j = json::parse(text);
        for (json& model : j["models"]) model.erase("seconds");
        return j.dump();
    };
    const Words evaluation = {"eval", "--model", base, free,     "--baseline",   base,  "--data",
                              data,   "--batch", "3",  "--json", "--val-tokens", "1600"};
    const Words analysis = {"analyze", "loss",    "--model", base,          free, "--data",
                            data,      "--batch", "3",       "--sequences", "20", "--json"};
    for (const Words& command : {evaluation, analysis}) {
        const std::string expected = figures(succeed(command).out);
        for (const int n : {2, 4}) CHECK(figures(succeed(command, on(n)).out) == expected);
    }
}

TEST_CASE("what several processes cannot share is refused in one line") {
    if (!several_processes()) return;
    const Workbench& w = workbench();
    const Words removal = w.removal(nowhere());
    check_ends(removal, on(6), 2, {"6 processes for 5 micro-batches", "--batch", "--grad-accum"});
    check_ends({"generate", "--model", w.folder / "base", "--prompt", "a"}, on(2), 2, {"generate", "one process"});
    check_ends({"analyze", "norms", "--model", w.folder / "base"}, on(2), 2, {"analyze", "one process"});
    check_ends(joined(removal, {"--lr", "-1"}), on(2), 2, {"--lr"});
    TemporaryFolder runs;
    check_ends(w.removal(runs / "run", {"--lr", "1e30", "--preset", "paper"}), on(3), 1, {"is not finite", "--lr"});

    const Surroundings one = {RLIM_INFINITY, "", {"mpirun", "--oversubscribe", "-np", "1"}};
    Words blind = removal, other = removal;
    blind[4] = w.folder / "gone_*.bin";
    check_ends(two_programs(program_under_test(), removal, blind), one, 2, {"process 1 on ", "gone_"});
    check_ends(two_programs(program_under_test(), blind, removal), one, 2, {"gone_"});
    other[4] = w.folder / "s_val_*.bin";
    check_ends(two_programs(program_under_test(), removal, other), one, 2, {"process 1 on ", "other --data than"});
    check_ends(two_programs(program_under_test(), removal, joined(removal, {"--lr", "0.001"})), one, 2,
               {"process 1 on ", "other settings than"});
    const std::string build = w.folder / "another_build";
    write_bytes(build, read_bytes(program_under_test()) + " ");
    ::chmod(build.c_str(), 0755);
    check_ends(two_programs(build, removal, removal), one, 2, {"process 1 on ", "another build of this program than"});
    CHECK_FALSE(fs::exists(nowhere()));
}

TEST_CASE("copies that a launcher started and that do not find each other are refused") {
    ::setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    const Outcome first = run({"info", "--settings"});
    ::setenv("SLURM_PROCID", "3", 1);
    const Outcome fourth = run({"info", "--settings"});
    ::unsetenv("SLURM_STEP_NUM_TASKS");
    ::unsetenv("SLURM_PROCID");
    CAPTURE(first.err);
    CHECK(first.status == 2);
    CHECK(contains(first.err, "srun started 4 copies"));
    CHECK(said_by_us(first.err).size() == 1);
    CHECK(fourth.status == 2);
    CHECK(fourth.err.empty());
}

TEST_CASE("torchrun's environment does not start this program: its processes are joined by MPI alone") {
    // Before the environment, which would be that of the programs that make the workbench as well.
    const std::string rendezvous = nowhere();
    ::setenv("WORLD_SIZE", "2", 1);
    ::setenv("RANK", "0", 1);
    const Outcome first = run({"info", "--settings"});
    ::setenv("LNFREE_RENDEZVOUS", rendezvous.c_str(), 1);
    const Outcome named = run({"info", "--settings"});
    ::setenv("RANK", "1", 1);
    const Outcome second = run({"info", "--settings"});
    ::setenv("RANK", "2", 1);
    const Outcome third = run({"info", "--settings"});
    ::unsetenv("LNFREE_RENDEZVOUS");
    ::setenv("WORLD_SIZE", "1", 1);
    ::setenv("RANK", "0", 1);
    const Outcome alone = run({"info", "--settings"});
    ::unsetenv("WORLD_SIZE");
    ::unsetenv("RANK");
    for (const Outcome& outcome : {first, named}) {
        CAPTURE(outcome.err);
        CHECK(outcome.status == 2);
        CHECK(said_by_us(outcome.err).size() == 1);
        CHECK(contains(outcome.err, "WORLD_SIZE=2 says that so many copies were started"));
        CHECK(contains(outcome.err, "by MPI alone"));
    }
    CHECK(second.status == 2);
    CHECK(second.err.empty());
    CHECK(third.status == 2);
    CHECK(contains(third.err, "RANK=\"2\""));
    CHECK(alone.status == 0);
}

TEST_CASE("a full disk ends all processes with exit 1, and the last checkpoint is good") {
    if (!several_processes()) return;
    TemporaryFolder runs;
    const std::string out = runs / "run";
    {
        Process process(workbench().removal(out, {}, "4"), on(2));
        wait_for_lines(process, out, 8);
        if (const pid_t id = process_of(process.id(), 1)) ::kill(id, SIGTERM);
        REQUIRE(process.wait(kSeconds).status == 143);
    }
    // The first process alone has no room any more: 150 blocks of 1 KiB.
    const Words rest = {"remove", "--resume", "--out", out};
    const Surroundings full = {
        RLIM_INFINITY,
        "",
        {"mpirun", "--oversubscribe", "-np", "1", "bash", "-c", "trap '' XFSZ; ulimit -f 150; exec \"$0\" \"$@\""}};
    check_ends(two_programs(program_under_test(), rest, rest), full, 1, {"cannot", out, "--resume goes on"});
    succeed(rest, on(3));
    check_same_end(out);
}

TEST_CASE("auto started on several processes makes micro-batches small enough that each has one") {
    if (!several_processes()) return;
    const Workbench& w = workbench();
    const Words dry = {
        "remove", "--model", w.folder / "base", "--data", w.folder / "s_train_*.bin", "--val", w.folder / "s_val_*.bin",
        "--out",  nowhere(), "--dry-run",       "--json"};
    const json one = json::parse(succeed(dry).out)["protocol"],
               three = json::parse(succeed(dry, on(3)).out)["protocol"];
    CHECK(one["grad_accum"] == 1);
    CHECK(three["grad_accum"] >= 3);
    CHECK(three["batch"].get<int64_t>() * three["grad_accum"].get<int64_t>() <= one["batch"].get<int64_t>());
    CHECK(three["batch"].get<int64_t>() * three["grad_accum"].get<int64_t>() > one["batch"].get<int64_t>() * 2 / 3);
}
