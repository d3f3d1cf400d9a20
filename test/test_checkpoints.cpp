// data/checkpoints.h: the order of steps, folders that appear whole or not at all, and one owner for an output folder.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/checkpoints.h"
#include "data/error.h"
#include "data/files.h"
#include "test/file_helpers.h"
#include "test/noted_syncs.h"

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

using Names = std::vector<std::string>;

Names names_of(const std::vector<fs::path>& paths) {
    Names names;
    for (const fs::path& path : paths) names.push_back(path.filename().string());
    return names;
}

void fill_with_a_file(const std::string& folder) {
    write_file_atomically(folder + "/weights", "bits");
}

std::set<std::string> names_in(const std::string& folder) {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
    return names;
}

// In the notes of `syncs`, where they begin with this.
size_t place_of(const Names& syncs, const std::string& note) {
    for (size_t i = 0; i < syncs.size(); i++)
        if (syncs[i].rfind(note, 0) == 0) return i;
    FAIL("nothing is noted as: " << note);
    return 0;
}

// What f() writes on standard error.
template <class F>
std::string standard_error_of(const F& f) {
    std::fflush(stderr);
    const TemporaryFolder scratch;
    const std::string path = scratch / "stderr";
    const int kept = ::dup(2), file = ::open(path.c_str(), O_WRONLY | O_CREAT, 0600);
    REQUIRE(::dup2(file, 2) == 2);
    f();
    std::fflush(stderr);
    ::dup2(kept, 2);
    ::close(kept);
    ::close(file);
    return read_bytes(path);
}

}  // namespace

TEST_CASE("bytes and folders are on the disk before a name points to them, and then the name is") {
    const TemporaryFolder folder;
    noted_syncs().clear();
    write_file_atomically(folder / "file", "bits");
    const Names of_file = noted_syncs();
    REQUIRE(of_file.size() == 3);
    CHECK(of_file[0].rfind("sync ", 0) == 0);
    CHECK(of_file[0] != "sync file");  // it is still under its temporary name
    CHECK(of_file[1] == "rename " + of_file[0].substr(5) + " file");
    CHECK(of_file[2] == "sync " + last_name(folder.path()));

    noted_syncs().clear();
    // A file that syncs nothing itself, as write_file_atomically would.
    write_checkpoint(folder.path(), 7, [](const std::string& inside) { write_bytes(inside + "/weights", "bits"); });
    const Names& syncs = noted_syncs();
    const size_t named = place_of(syncs, "rename .step_");
    REQUIRE(named > 0);
    CHECK(syncs[named - 1] == "sync " + syncs[named].substr(7, syncs[named].find(' ', 7) - 7));
    CHECK(syncs.back() == "sync checkpoints");
    CHECK(place_of(syncs, "sync checkpoints") > named);
}

TEST_CASE("checkpoints are listed by the number of their step, beyond the six digits of their names too") {
    const TemporaryFolder out;
    CHECK(list_checkpoints(out.path()).empty());
    for (const int64_t step : {1000000, 999950, 50, 12345678}) write_checkpoint(out.path(), step, fill_with_a_file);
    CHECK(names_of(list_checkpoints(out.path())) ==
          Names{"step_000050", "step_999950", "step_1000000", "step_12345678"});
}

TEST_CASE("only folders named step_ and digits are checkpoints") {
    const TemporaryFolder out;
    for (const char* name : {"step_", "step_12a", "step_000010.bak", "step_-00001", "step_ 00001", "step_+1", "steps_1",
                             ".step_000020.tmp", "best", "step_99999999999999999999"})
        fs::create_directories(out / ("checkpoints/" + std::string(name)));
    write_bytes(out / "checkpoints/step_000030", "a file");
    CHECK(list_checkpoints(out.path()).empty());
    write_checkpoint(out.path(), 7, fill_with_a_file);
    CHECK(names_of(list_checkpoints(out.path())) == Names{"step_000007"});
}

TEST_CASE("pruning keeps the latest checkpoints across the seventh digit, and the one that is named") {
    const TemporaryFolder out;
    for (const int64_t step : {999900, 999950, 1000000, 1000050}) write_checkpoint(out.path(), step, fill_with_a_file);
    prune_checkpoints(out.path(), 3);
    CHECK(names_in(out / "checkpoints") == std::set<std::string>{"step_999950", "step_1000000", "step_1000050"});
    prune_checkpoints(out.path(), 1, "step_999950");
    CHECK(names_in(out / "checkpoints") == std::set<std::string>{"step_999950", "step_1000050"});
    prune_checkpoints(out.path(), 5);
    CHECK(names_in(out / "checkpoints").size() == 2);
    prune_checkpoints(out.path(), 0);
    CHECK(names_in(out / "checkpoints").empty());
}

TEST_CASE("a checkpoint gets its name when it is complete") {
    const TemporaryFolder out;
    std::string filled;
    const fs::path path = write_checkpoint(out.path(), 12, [&](const std::string& folder) {
        filled = folder;
        CHECK(fs::is_empty(folder));
        CHECK(list_checkpoints(out.path()).empty());
        fill_with_a_file(folder);
    });
    CHECK(path == fs::path(out / "checkpoints") / "step_000012");
    CHECK(filled != path.string());
    CHECK(read_bytes((path / "weights").string()) == "bits");
    CHECK(names_in(out / "checkpoints") == std::set<std::string>{"step_000012"});
}

TEST_CASE("a checkpoint that is there is left alone") {
    const TemporaryFolder out;
    const fs::path first = write_checkpoint(out.path(), 12, fill_with_a_file);
    bool called = false;
    CHECK(write_checkpoint(out.path(), 12, [&](const std::string&) { called = true; }) == first);
    CHECK(!called);
    CHECK(read_bytes((first / "weights").string()) == "bits");
}

TEST_CASE("what a killed process left under the temporary name does not get into the checkpoint") {
    const TemporaryFolder out;
    fs::create_directories(out / "checkpoints/.step_000012.tmp");
    write_bytes(out / "checkpoints/.step_000012.tmp/old", "half");
    const fs::path path = write_checkpoint(out.path(), 12, fill_with_a_file);
    CHECK(names_in(path.string()) == std::set<std::string>{"weights"});
}

TEST_CASE("a filler that throws leaves nothing behind, and its exception passes") {
    const TemporaryFolder out;
    const auto fail = [](const std::string& folder) {
        fill_with_a_file(folder);
        throw RunFailure("the loss is not finite");
    };
    CHECK(message_of<RunFailure>([&] { write_checkpoint(out.path(), 12, fail); }) == "the loss is not finite");
    CHECK(names_in(out / "checkpoints").empty());

    const auto stop = [](const std::string&) { throw 1; };  // no std::exception either
    CHECK_THROWS_AS(write_checkpoint(out.path(), 12, stop), int);
    CHECK(names_in(out / "checkpoints").empty());
}

TEST_CASE("an error of the file system names the checkpoint") {
    const TemporaryFolder out;
    write_bytes(out / "checkpoints", "a file where the folder should be");
    const std::string message = message_of<RunFailure>([&] { write_checkpoint(out.path(), 12, fill_with_a_file); });
    CHECK(contains(message, "cannot write checkpoint " + out.path() + "/checkpoints/step_000012: "));
    CHECK(is_one_line(message));
}

TEST_CASE("a full disk leaves no checkpoint and keeps the last one") {
    const TemporaryFolder out;
    write_checkpoint(out.path(), 1, fill_with_a_file);
    const std::string much(1 << 16, 'x');
    {
        const FileSizeLimit limit(1 << 10);
        CHECK_THROWS_AS(
            write_checkpoint(out.path(), 2,
                             [&](const std::string& folder) { write_file_atomically(folder + "/weights", much); }),
            RunFailure);
    }
    CHECK(names_in(out / "checkpoints") == std::set<std::string>{"step_000001"});
}

TEST_CASE("leftovers are removed, and nothing else") {
    const TemporaryFolder out;
    remove_leftovers(out / "nowhere");
    write_checkpoint(out.path(), 3, fill_with_a_file);
    fs::create_directories(out / "checkpoints/.step_000004.tmp");
    write_bytes(out / "checkpoints/.step_000004.tmp/weights", "half");
    fs::create_directories(out / "checkpoints/.step_000002.old");
    fs::create_directories(out / "mine.tmp-");
    for (const char* name : {"config.json.tmp-77-0", "loss.svg.tmp-5-1", "log.jsonl", "notes.tmp"})
        write_bytes(out / name, "x");
    remove_leftovers(out.path());
    CHECK(out.names() == std::set<std::string>{"checkpoints", "log.jsonl", "mine.tmp-", "notes.tmp"});
    CHECK(names_in(out / "checkpoints") == std::set<std::string>{"step_000003"});
}

TEST_CASE("a second lock on a folder is refused, with the name of who holds the first") {
    const TemporaryFolder out;
    {
        const FolderLock lock(out.path());
        CHECK(lock.held());
        const std::string message = message_of<BadInput>([&] { const FolderLock second(out.path()); });
        const std::string begin = "--out " + out.path() + ": another process is writing there (pid " +
                                  std::to_string(::getpid()) + " on host ";
        CHECK(message.substr(0, begin.size()) == begin);
        CHECK(contains(message, " since 2"));
        const std::string end = " UTC); wait for it or stop it first";
        CHECK(message.substr(message.size() - end.size()) == end);
        CHECK(is_one_line(message));
        CHECK(message_of<BadInput>([&] { const FolderLock third(out.path()); }) == message);  // the file is untouched
    }
    CHECK(out.names().empty());
    const FolderLock again(out.path());
    CHECK(again.held());
}

TEST_CASE("a lock holds against another process, and ends with its owner, however that ends") {
    const TemporaryFolder out;
    int ready[2], go[2];
    REQUIRE(::pipe(ready) == 0);
    REQUIRE(::pipe(go) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        std::optional<FolderLock> lock;
        lock.emplace(out.path());
        char byte = 'x';
        const bool told = ::write(ready[1], &byte, 1) == 1 && ::read(go[0], &byte, 1) == 1;
        ::_exit(told ? 0 : 1);  // no destructor runs, as after a kill
    }
    char byte = 0;
    REQUIRE(::read(ready[0], &byte, 1) == 1);
    const std::string message = message_of<BadInput>([&] { const FolderLock lock(out.path()); });
    CHECK(contains(message, "(pid " + std::to_string(child) + " on host "));
    REQUIRE(::write(go[1], &byte, 1) == 1);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    for (const int end : {ready[0], ready[1], go[0], go[1]}) ::close(end);

    CHECK(out.names() == std::set<std::string>{".lock"});  // a killed process leaves the file, not the lock
    CHECK(!holds_files(out.path()));
    {
        const FolderLock lock(out.path());
        CHECK(contains(read_bytes(out / ".lock"), "pid " + std::to_string(::getpid()) + " on host "));
    }
    CHECK(out.names().empty());
}

TEST_CASE("a child of the owner does not give its lock away") {
    const TemporaryFolder out;
    std::optional<FolderLock> lock;
    lock.emplace(out.path());
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        lock.reset();
        ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(out.names() == std::set<std::string>{".lock"});
    CHECK_THROWS_AS(FolderLock(out.path()), BadInput);
}

TEST_CASE("a lock whose file lost its name in between is taken again") {
    const TemporaryFolder out;
    static int calls;
    static std::string path;
    calls = 0;
    path = out / ".lock";
    const auto flock_after_removal = [](int descriptor, int operation) {
        if (calls++ == 0) ::unlink(path.c_str());  // by an owner that ends just now
        return ::flock(descriptor, operation);
    };
    const FolderLock lock(out.path(), flock_after_removal);
    CHECK(calls == 2);
    CHECK(lock.held());
    CHECK_THROWS_AS(FolderLock(out.path()), BadInput);
}

TEST_CASE("an owner that has not written its name yet is still respected") {
    const TemporaryFolder out;
    const FileDescriptor other(::open((out / ".lock").c_str(), O_RDWR | O_CREAT, 0600));
    REQUIRE(::flock(other.get(), LOCK_EX | LOCK_NB) == 0);
    CHECK(message_of<BadInput>([&] { const FolderLock lock(out.path()); }) ==
          "--out " + out.path() + ": another process is writing there; wait for it or stop it first");
    write_bytes(out / ".lock", std::string("pid 1\x1b[31m\nmore"));
    CHECK(message_of<BadInput>([&] { const FolderLock lock(out.path()); }) ==
          "--out " + out.path() + ": another process is writing there (pid 1?[31m); wait for it or stop it first");
}

TEST_CASE("without locks in the file system a warning is printed and the run goes on") {
    const TemporaryFolder out;
    for (const auto flock_of_that_disk :
         {+[](int, int) { return errno = ENOLCK, -1; }, +[](int, int) { return errno = EOPNOTSUPP, -1; }}) {
        const std::string printed = standard_error_of([&] {
            const FolderLock lock(out.path(), flock_of_that_disk);
            CHECK(!lock.held());
        });
        CHECK(contains(printed, "warning: --out " + out.path() + ": this file system has no locks ("));
        CHECK(std::count(printed.begin(), printed.end(), '\n') == 1);
        CHECK(out.names().empty());
    }
}

TEST_CASE("a folder that cannot hold the lock's file is refused") {
    const TemporaryFolder out;
    CHECK(contains(message_of<BadInput>([&] { const FolderLock lock(out / "nowhere"); }),
                   "--out " + (out / "nowhere") + ": cannot open " + (out / "nowhere/.lock") + ": "));
    fs::create_directory(out / ".lock");
    CHECK_THROWS_AS(FolderLock(out.path()), BadInput);
}

TEST_CASE("a folder with nothing but the lock's file holds no files") {
    const TemporaryFolder out;
    CHECK(!holds_files(out / "nowhere"));
    CHECK(!holds_files(out.path()));
    const FolderLock lock(out.path());
    CHECK(!holds_files(out.path()));
    write_bytes(out / "config.json", "{}");
    CHECK(holds_files(out.path()));
}
