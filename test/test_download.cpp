// scripts/download_gpt2.sh against a model hub on this machine (test/http_server.py), which also does what networks and
// servers do on bad days. Nothing is fetched from outside.

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "test/file_helpers.h"

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

// What the hub gives out as model.safetensors.
std::string hub_weights() {
    std::string bytes(100003, '\0');
    for (uint64_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i % 251);
    return bytes;
}

bool has_program(const std::string& name) {
    return std::system(("command -v " + name + " >/dev/null 2>&1").c_str()) == 0;
}

// The hub: one process for all test cases, which ends with its standard input.
class Hub {
  public:
    Hub() {
        int to_hub[2];
        int from_hub[2];
        REQUIRE(::pipe(to_hub) == 0);
        REQUIRE(::pipe(from_hub) == 0);
        const std::string log = folder_ / "log";
        process_ = ::fork();
        if (process_ == 0) {
            ::dup2(to_hub[0], STDIN_FILENO);
            ::dup2(from_hub[1], STDOUT_FILENO);
            for (const int end : {to_hub[0], to_hub[1], from_hub[0], from_hub[1]}) ::close(end);
            ::execlp("python3", "python3", "test/http_server.py", log.c_str(), nullptr);
            ::_exit(127);
        }
        ::close(to_hub[0]);
        ::close(from_hub[1]);
        input_ = to_hub[1];
        char c = 0;
        while (::read(from_hub[0], &c, 1) == 1 && c != '\n') port_ += c;
        ::close(from_hub[0]);
        REQUIRE_MESSAGE(!port_.empty(), "test/http_server.py does not start; run from the project root");
    }
    Hub(const Hub&) = delete;
    Hub& operator=(const Hub&) = delete;
    ~Hub() {
        ::close(input_);
        ::waitpid(process_, nullptr, 0);
    }

    std::string endpoint(const std::string& name) const { return "http://127.0.0.1:" + port_ + "/" + name; }

    // The requests of one case so far that contain `part`, in order.
    std::vector<std::string> requests(const std::string& name, const std::string& part) const {
        std::istringstream log(read_bytes(folder_ / "log"));
        std::vector<std::string> found;
        for (std::string line; std::getline(log, line);) {
            if (contains(line, " /" + name + "/") && contains(line, part)) found.push_back(line);
        }
        return found;
    }

  private:
    TemporaryFolder folder_;
    std::string port_;
    pid_t process_ = -1;
    int input_ = -1;
};

// The hub, or null where this machine lacks what it or the script needs; then the test case says so.
const Hub* hub() {
    for (const char* program : {"python3", "curl"}) {
        if (has_program(program)) continue;
        std::printf("SKIPPED: downloads are not tested: %s is missing\n", program);
        return nullptr;
    }
    static const Hub running;
    return &running;
}

struct Outcome {
    int status;
    std::string out, err;
};

// Runs of the script with a home of their own; the folder to download to is `models` in it.
class Download {
  public:
    explicit Download(std::string endpoint) : endpoint_(std::move(endpoint)) {}

    Outcome run(const std::string& arguments = "small", const std::string& token = "secret") const {
        const std::string command = "env -u HF_HUB_CACHE NO_PROXY='*' HF_TOKEN=" + token + " HF_HOME='" +
                                    (home / "hf") + "' HF_ENDPOINT='" + endpoint_ + "' sh scripts/download_gpt2.sh " +
                                    arguments + " '" + models() + "' >'" + (home / "out") + "' 2>'" + (home / "err") +
                                    "'";
        const int status = std::system(command.c_str());
        return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(home / "out"), read_bytes(home / "err")};
    }

    std::string models() const { return home / "models"; }
    bool has(const std::string& name) const { return fs::exists(models() + "/" + name); }
    std::string content(const std::string& name) const { return read_bytes(models() + "/" + name); }

    // A file in Hugging Face's cache: a link in the snapshot to a blob that is named by its checksum.
    void cache(const std::string& name, const std::string& bytes, const std::string& checksum) const {
        const std::string repository = home / "hf/hub/models--openai-community--gpt2";
        fs::create_directories(repository + "/blobs");
        fs::create_directories(repository + "/refs");
        fs::create_directories(repository + "/snapshots/607a");
        write_bytes(repository + "/refs/main", "607a");
        write_bytes(repository + "/blobs/" + checksum, bytes);
        fs::create_symlink("../../blobs/" + checksum, repository + "/snapshots/607a/" + name);
    }

    TemporaryFolder home;

  private:
    std::string endpoint_;
};

// A port of this machine where nobody listens: as good as no network.
const char nowhere[] = "http://127.0.0.1:1";

// SHA-256 of "weights", and SHA-1 of the git blobs "config", "vocab" and "merges".
const char weights_sha256[] = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c";
const char config_sha1[] = "30fa1ceaf36334498cbd5a1e976cd4e7a7b63cc2";
const char vocab_sha1[] = "8dcea1525c045be826bf9ab0c2519fc219fdd1b3";
const char merges_sha1[] = "4593df8d71f8c5cba548b99ddecd2d55541939c0";

bool one_line_error(const Outcome& outcome) {
    return std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1 &&
           outcome.err.compare(0, 26, "scripts/download_gpt2.sh: ") == 0;
}

}  // namespace

TEST_CASE("a download brings every file, checks it, keeps the token from the storage, and is not made twice") {
    if (hub() == nullptr) return;
    const Download download(hub()->endpoint("plain"));
    const Outcome outcome = download.run();
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    CHECK(outcome.err.empty());
    CHECK(download.content("model.safetensors") == hub_weights());
    CHECK(download.content("config.json") == "{\"model_type\": \"gpt2\"}\n");
    for (const char* name : {"vocab.json", "merges.txt", "tokenizer.json"}) CHECK(download.has(name));
    CHECK_MESSAGE(!download.has("generation_config.json"), "the hub has none");
    CHECK(std::distance(fs::directory_iterator(download.models()), {}) == 5);
    CHECK(contains(outcome.out, "downloaded, SHA-256"));
    CHECK(contains(outcome.out, "downloaded, git SHA-1"));

    CHECK(hub()->requests("plain", "resolve/main/model.safetensors - Bearer_secret").size() == 2);
    CHECK(hub()->requests("plain", "storage/model.safetensors - -").size() == 1);

    const uint64_t requests = hub()->requests("plain", "").size();
    const Outcome again = download.run();
    CHECK(again.status == 0);
    CHECK(contains(again.out, "is complete"));
    CHECK(hub()->requests("plain", "").size() == requests);
}

TEST_CASE("a broken connection is taken up where it broke") {
    if (hub() == nullptr) return;
    const Download download(hub()->endpoint("broken"));
    const Outcome outcome = download.run();
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    CHECK(download.content("model.safetensors") == hub_weights());
    const std::vector<std::string> bodies = hub()->requests("broken", "GET /broken/storage/");
    REQUIRE(bodies.size() == 2);
    CHECK(contains(bodies[0], "safetensors - "));
    CHECK(contains(bodies[1], "safetensors bytes=50001- "));
}

TEST_CASE("a download that was stopped goes on in the next run, and a server without ranges begins again") {
    if (hub() == nullptr) return;
    const Download download(hub()->endpoint("stopped"));
    fs::create_directory(download.models());
    for (const char* name : {"config.json", "vocab.json", "merges.txt"})
        write_bytes(download.models() + "/" + name, "");
    write_bytes(download.models() + "/model.safetensors.part", hub_weights().substr(0, 777));
    REQUIRE(download.run().status == 0);
    CHECK(download.content("model.safetensors") == hub_weights());
    CHECK(hub()->requests("stopped", "GET /stopped/storage/model.safetensors bytes=777- ").size() == 1);
    CHECK_MESSAGE(hub()->requests("stopped", "main/config.json").empty(), "what has its name is not fetched again");

    const Download other(hub()->endpoint("no-ranges"));
    fs::copy(download.models(), other.models());
    fs::rename(other.models() + "/model.safetensors", other.models() + "/model.safetensors.part");
    fs::resize_file(other.models() + "/model.safetensors.part", 777);
    REQUIRE(other.run().status == 0);
    CHECK(other.content("model.safetensors") == hub_weights());
}

TEST_CASE("a server that is busy is asked again, and without a token none is sent") {
    if (hub() == nullptr) return;
    const Download download(hub()->endpoint("busy"));
    REQUIRE(download.run("small", "").status == 0);
    CHECK(download.content("model.safetensors") == hub_weights());
    CHECK(hub()->requests("busy", "GET /busy/storage/model.safetensors - -").size() == 2);
    CHECK(hub()->requests("busy", "Bearer").empty());
}

TEST_CASE("a file with a wrong checksum or size is refused and does not stay") {
    if (hub() == nullptr) return;
    for (const char* name : {"bad-weights", "bad-config", "short"}) {
        CAPTURE(name);
        const Download download(hub()->endpoint(name));
        const Outcome outcome = download.run();
        CHECK(outcome.status == 1);
        const std::string file = name == std::string("bad-config") ? "config.json" : "model.safetensors";
        CHECK(contains(outcome.err, file));
        CHECK(!download.has(file));
        CHECK(!download.has("model.safetensors"));
        CHECK(one_line_error(outcome));
        CHECK(contains(outcome.err, "refused"));
        CHECK(!download.has(file + ".part"));
    }
}

TEST_CASE("a model that is not there, and no network, give one line and leave no folder") {
    if (hub() == nullptr) return;
    const Download absent(hub()->endpoint("absent"));
    Outcome outcome = absent.run();
    CHECK(outcome.status == 1);
    CHECK(one_line_error(outcome));
    CHECK(contains(outcome.err, "404"));
    CHECK(contains(outcome.err, "/absent/openai-community/gpt2/resolve/main/config.json"));
    CHECK(!fs::exists(absent.models()));

    const Download offline(nowhere);
    outcome = offline.run();
    CHECK(outcome.status == 1);
    CHECK(one_line_error(outcome));
    CHECK(contains(outcome.err, "cannot reach http://127.0.0.1:1/"));
    CHECK(!fs::exists(offline.models()));
}

TEST_CASE("what Hugging Face's cache holds is taken from there, without a network, unless it is damaged") {
    if (hub() == nullptr) return;
    const Download cached(nowhere);
    cached.cache("config.json", "config", config_sha1);
    cached.cache("vocab.json", "vocab", vocab_sha1);
    cached.cache("merges.txt", "merges", merges_sha1);
    cached.cache("model.safetensors", "weights", weights_sha256);
    for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
        cached.cache(name, "{}", name);  // a name that is no checksum: taken as it is
    }
    const Outcome outcome = cached.run();
    INFO(outcome.err);
    CHECK(outcome.status == 0);
    CHECK(cached.content("model.safetensors") == "weights");
    CHECK(cached.content("config.json") == "config");
    CHECK(!fs::is_symlink(cached.models() + "/model.safetensors"));
    CHECK(contains(outcome.out, "from the cache, SHA-256"));

    const Download damaged(hub()->endpoint("damaged"));
    damaged.cache("model.safetensors", "weightz", weights_sha256);
    const Outcome repaired = damaged.run();
    CHECK(repaired.status == 0);
    CHECK(contains(repaired.err, "damaged"));
    CHECK(damaged.content("model.safetensors") == hub_weights());
}

TEST_CASE("an unknown size is bad use") {
    if (hub() == nullptr) return;
    const Download download(nowhere);
    for (const char* arguments : {"tiny", "small x", "''"}) {
        const Outcome outcome = download.run(arguments);
        CHECK(outcome.status == 2);
        CHECK(one_line_error(outcome));
        CHECK(!fs::exists(download.models()));
    }
}
