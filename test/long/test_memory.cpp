// How much memory the program takes where the work is large: text as long as a corpus, weights as large as those of GPT-2 XL.
//
// Part of `make test-long`. LNFREE_PROGRAM names the program; needs 6 GB of disk for each case, and 8 GB of memory for
// the second. LNFREE_LONG_GB (10) is how much text the first one makes up.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "data/config.h"
#include "data/model_config.h"
#include "data/random.h"
#include "data/safetensors.h"
#include "data/shards.h"
#include "test/file_helpers.h"

using namespace lnfree;

namespace {

constexpr double GiB = 1024.0 * 1024.0 * 1024.0;

struct Cost {
    int status = -1;   // exit status; -1 if a signal ended it
    double bytes = 0;  // the most memory that it held at once (resident set, mapped files included)
};

// Runs the program, with what `feed` writes to the given descriptor as its standard input.
Cost run(const std::vector<std::string>& arguments, const std::function<void(int)>& feed = {}) {
    const char* chosen = std::getenv("LNFREE_PROGRAM");
    std::string program = chosen != nullptr ? chosen : "./train_gpt2_lnfree";
    std::vector<char*> argv = {program.data()};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(ends[0], STDIN_FILENO);
        ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
        ::close(ends[0]);
        ::close(ends[1]);
        ::execv(program.c_str(), argv.data());
        ::_exit(127);
    }
    ::close(ends[0]);
    if (feed) feed(ends[1]);
    ::close(ends[1]);
    int status = 0;
    rusage used{};
    ::wait4(child, &status, 0, &used);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, static_cast<double>(used.ru_maxrss) * 1024};
}

// About 16 MB of made-up words, in lines of some ten bytes to some thousand.
std::string made_up_text() {
    SplitMix64 random(1);
    std::string text;
    while (text.size() < 16'000'000) {
        for (uint64_t words = 2 + random.below(200); words > 0; words--) {
            for (uint64_t letters = 1 + random.below(9); letters > 0; letters--)
                text += static_cast<char>('a' + random.below(26));
            text += random.below(12) == 0 ? ", " : " ";
        }
        text += random.below(9) == 0 ? "\n\n" : "\n";
    }
    return text;
}

bool write_all(int file, const std::string& text) {
    for (size_t done = 0; done < text.size();) {
        const ssize_t n = ::write(file, text.data() + done, text.size() - done);
        if (n <= 0) return false;
        done += static_cast<size_t>(n);
    }
    return true;
}

// GPT-2 XL in Hugging Face's form, its weights small made-up numbers.
void write_large_model(const std::string& folder) {
    ModelConfig c;
    c.C = 1600;
    c.L = 48;
    c.NH = 25;
    c.V = 50257;
    c.n_ctx = 1024;
    c.n_inner = 6400;
    c.end_of_text = 50256;
    std::vector<TensorSource<float>> tensors;
    const auto add = [&](const std::string& name, const std::vector<int64_t>& extents, float base) {
        const std::vector<uint64_t> shape(extents.begin(), extents.end());
        const uint64_t size = std::accumulate(shape.begin(), shape.end(), uint64_t{1}, std::multiplies<>());
        tensors.push_back({"transformer." + name, shape, [=](float* out) {
                               for (uint64_t i = 0; i < size; i++)
                                   out[i] = base + 0.01f * static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 50;
                           }});
    };
    add("wte.weight", {c.V, c.C}, 0);
    add("wpe.weight", {c.n_ctx, c.C}, 0);
    for (int64_t l = 0; l < c.L; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        for (const char* norm : {"ln_1", "ln_2"}) {
            add(h + norm + ".weight", {c.C}, 1);
            add(h + norm + ".bias", {c.C}, 0);
        }
        add(h + "attn.c_attn.weight", {c.C, 3 * c.C}, 0);
        add(h + "attn.c_attn.bias", {3 * c.C}, 0);
        add(h + "attn.c_proj.weight", {c.C, c.C}, 0);
        add(h + "attn.c_proj.bias", {c.C}, 0);
        add(h + "mlp.c_fc.weight", {c.C, c.n_inner}, 0);
        add(h + "mlp.c_fc.bias", {c.n_inner}, 0);
        add(h + "mlp.c_proj.weight", {c.n_inner, c.C}, 0);
        add(h + "mlp.c_proj.bias", {c.C}, 0);
    }
    add("ln_f.weight", {c.C}, 1);
    add("ln_f.bias", {c.C}, 0);
    write_safetensors<float>(folder + "/model.safetensors", tensors, DType::F32, {{"format", "pt"}});
    write_bytes(folder + "/config.json", config_json(c, "float32").dump());
}

}  // namespace

TEST_CASE("tokenising takes less than 1 GiB, even if 10 GB are a single document") {
    const char* const asked = std::getenv("LNFREE_LONG_GB");
    const double gigabytes = asked != nullptr ? std::atof(asked) : 10;
    const std::string bpe = "../shared/data/gpt2-bpe";
    const bool there = std::filesystem::exists(bpe);
    if (!there) std::printf("tokenising by bytes, because %s is not there\n", bpe.c_str());
    TemporaryFolder folder;
    const Cost cost = run({"tokenize", "--input", "-", "--tokenizer", there ? bpe : "byte", "--out", folder / "large"},
                          [&](int input) {
                              const std::string text = made_up_text();
                              for (double left = gigabytes * 1e9; left > 0; left -= static_cast<double>(text.size()))
                                  if (!write_all(input, text)) return;
                          });
    std::printf("tokenize, %g GB of text: %.2f GiB\n", gigabytes, cost.bytes / GiB);
    CHECK(cost.status == 0);
    CHECK(cost.bytes < 1 * GiB);
}

TEST_CASE("eval of 1.5 billion parameters takes their F32 weights and the activations, no second copy") {
    TemporaryFolder folder;
    std::filesystem::create_directories(folder / "xl");
    write_large_model(folder / "xl");
    const double weights = static_cast<double>(std::filesystem::file_size(folder / "xl/model.safetensors"));
    constexpr uint64_t tokens = 65;
    std::string shard(1024, '\0');
    const int32_t header[3] = {20240520, 1, tokens};
    std::memcpy(shard.data(), header, sizeof header);
    for (uint64_t i = 0; i < tokens; i++) shard += {static_cast<char>(i), '\1'};
    write_bytes(folder / "val.bin", shard);
    const Cost cost = run({"eval", "--model", folder / "xl", "--data", folder / "val.bin", "--seq", "64"});
    std::printf("eval, 1.5B parameters: %.2f GiB, of which weights %.2f GiB\n", cost.bytes / GiB, weights / GiB);
    CHECK(cost.status == 0);
    // What 64 positions need is small: 48 blocks of 64 x 16 x 1600 numbers are 0.3 GB, and a chunk of logits.
    CHECK(cost.bytes < weights + 0.5 * GiB);
}
