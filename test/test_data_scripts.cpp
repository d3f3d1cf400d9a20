// data/openwebtext.py and data/pile.py against data/tokenize.h, data/pile_filtered.py on made-up shards,
// data/gguf_to_hf.py against transformers. They need Python with numpy, the first two also tiktoken and
// ../shared/data/gpt2-bpe, the last torch, transformers, gguf and safetensors; PYTHON names another interpreter.

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data/shards.h"
#include "data/tokenize.h"
#include "test/file_helpers.h"

using namespace lnfree;

namespace {

const char vocabulary[] = "../shared/data/gpt2-bpe";

std::string python() {
    const char* const name = std::getenv("PYTHON");
    return name != nullptr ? name : "python3";
}

// The output of a shell command, standard error included, and its exit status.
struct Outcome {
    int status;
    std::string output;
};

Outcome run(const std::string& command) {
    std::FILE* const pipe = ::popen(("PYTHONDONTWRITEBYTECODE=1 " + command + " 2>&1").c_str(), "r");
    REQUIRE(pipe != nullptr);
    std::string output;
    for (int c; (c = std::fgetc(pipe)) != EOF;) output += static_cast<char>(c);
    const int status = ::pclose(pipe);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

bool has_modules(const std::string& modules) {
    if (run(python() + " -c 'import " + modules + "'").status == 0) return true;
    std::printf("SKIPPED: %s cannot import %s\n", python().c_str(), modules.c_str());
    return false;
}

bool has_tiktoken_and_vocabulary() {
    if (!has_modules("numpy, tiktoken")) return false;
    if (std::filesystem::exists(vocabulary)) return true;
    std::printf("SKIPPED: %s is not there\n", vocabulary);
    return false;
}

// `n` documents as JSON lines; every seventh holds what is hard to tokenise.
std::string made_up_documents(int n) {
    std::string lines;
    for (int i = 0; i < n; ++i) {
        const std::string hard =
            i % 7 == 0 ? "\\n\\n<|endoftext|> \\ud83d\\ude00 \\udc00 caf\\u00e9\\t\\u0000  'll " : "";
        lines += "{\"text\": \"Document " + std::to_string(i) + hard + " ends.\"}\n";
    }
    return lines;
}

// What `tokenize` makes of the same file.
void tokenize_here(const std::string& input, const std::string& out, double val_fraction) {
    TokenizeOptions options;
    options.inputs = {input};
    options.tokenizer = vocabulary;
    options.out = out;
    options.val_fraction = val_fraction;
    options.seed = 11;
    options.shard_tokens = 5000;
    options.threads = 1;
    tokenize_files(options);
}

std::string openwebtext(const std::string& input, const std::string& out, const std::string& val_fraction) {
    return python() + " data/openwebtext.py --source '" + input + "' --out '" + out + "' --bpe " + vocabulary +
           " --seed 11 --shard-tokens 5000 --threads 2 --val-fraction " + val_fraction;
}

// The files of one prefix in the folder, by what follows it.
std::map<std::string, std::string> files_of(const TemporaryFolder& folder, const std::string& prefix) {
    std::map<std::string, std::string> files;
    for (const std::string& name : folder.names()) {
        if (name.compare(0, prefix.size(), prefix) == 0) files[name.substr(prefix.size())] = read_bytes(folder / name);
    }
    return files;
}

void write_shard(const std::string& prefix, const std::vector<int32_t>& tokens) {
    ShardWriter writer(prefix, 50257, 1000000);
    writer.append(tokens.data(), tokens.size());
    writer.finish();
}

std::vector<uint32_t> read_shard(const std::string& path) {
    const TokenShards shards({path});
    std::vector<uint32_t> tokens;
    for (uint64_t i = 0; i < shards.tokens(); ++i) tokens.push_back(shards.token_at(0, i));
    return tokens;
}

}  // namespace

TEST_CASE("openwebtext.py writes the same bytes as tokenize") {
    if (!has_tiktoken_and_vocabulary()) return;
    for (const auto& split : {std::pair{700, "0.05"}, {3, "0.0001"}, {1, "0.25"}}) {
        const auto& [documents, val_fraction] = split;
        CAPTURE(split.first);
        const TemporaryFolder folder;
        write_bytes(folder / "documents.jsonl", made_up_documents(documents));
        tokenize_here(folder / "documents.jsonl", folder / "here", std::stod(val_fraction));
        const Outcome outcome = run(openwebtext(folder / "documents.jsonl", folder / "there", val_fraction));
        INFO(outcome.output);
        REQUIRE(outcome.status == 0);
        auto here = files_of(folder, "here");
        auto there = files_of(folder, "there");
        CHECK(nlohmann::json::parse(here[".json"]) == nlohmann::json::parse(there[".json"]));
        here.erase(".json");
        there.erase(".json");
        CHECK_MESSAGE(here == there, "the shards differ, or their names do");
    }
}

TEST_CASE("openwebtext.py goes on after a failure to the same bytes, and only with the same flags") {
    if (!has_tiktoken_and_vocabulary()) return;
    const TemporaryFolder folder;
    const std::string documents = made_up_documents(2500);
    write_bytes(folder / "documents.jsonl", documents);
    REQUIRE(run(openwebtext(folder / "documents.jsonl", folder / "whole", "0.05")).status == 0);

    write_bytes(folder / "documents.jsonl", documents.substr(0, documents.rfind("{\"text\"")) + "{\"text\": 1}\n");
    const std::string command = openwebtext(folder / "documents.jsonl", folder / "cut", "0.05");
    Outcome outcome = run(command);
    CHECK(outcome.status == 2);
    CHECK(contains(outcome.output, "documents.jsonl line 2500 is not a JSON object with a string"));
    CHECK(folder.names().count("cut_train_000000.bin") == 1);
    CHECK(folder.names().count("cut.state.npz") == 1);
    CHECK_MESSAGE(folder.names().count("cut.json") == 0, "it is not finished");

    outcome = run(openwebtext(folder / "documents.jsonl", folder / "cut", "0.06"));
    CHECK(outcome.status == 2);
    CHECK(contains(outcome.output, "val_fraction 0.05, not 0.06"));

    write_bytes(folder / "documents.jsonl", documents);
    outcome = run(command);
    CHECK(outcome.status == 0);
    CHECK(contains(outcome.output, "goes on after 2,048 documents"));
    CHECK(files_of(folder, "cut") == files_of(folder, "whole"));
    CHECK(contains(run(command).output, "is finished"));
}

TEST_CASE("pile.py stops at the number of sequences") {
    if (!has_tiktoken_and_vocabulary()) return;
    const TemporaryFolder folder;
    write_bytes(folder / "documents.jsonl", made_up_documents(300));
    const Outcome outcome =
        run(python() + " data/pile.py --sequences 19 --seq 33 --source '" + (folder / "documents.jsonl") + "' --bpe " +
            vocabulary + " --out '" + (folder / "pile") + "'");
    INFO(outcome.output);
    REQUIRE(outcome.status == 0);
    const TokenShards shards({folder / "pile_*.bin"});
    CHECK(shards.paths().size() == 1);
    CHECK(shards.tokens() == 19 * 33 + 1);
    CHECK(shards.sequences(33) == 19);
    CHECK(shards.sequences(33, true) == 19);
}

TEST_CASE("pile_filtered.py leaves out the sequences with tokens that the reference never has") {
    if (!has_modules("numpy")) return;
    const TemporaryFolder folder;
    write_shard(folder / "r_train", {1, 2, 3, 4, 5, 6, 7});
    // Sequences of three: 7 and 8 are not counted in the reference (7 lies in its tail), and neither is 50256.
    write_shard(folder / "second", {1, 2, 3, 4, 8, 5, 6, 1, 2, 8, 8, 7, 5, 5, 5, 8});
    write_shard(folder / "d_val", {50256, 1, 2, 3, 3, 3, 9});
    std::filesystem::rename(folder / "second_000000.bin", folder / "d_val_000001.bin");
    const std::string command = python() + " data/pile_filtered.py --data '" + (folder / "d_val_*.bin") +
                                "' --reference '" + (folder / "r_*.bin") + "' --seq 3 --out '" + (folder / "f") + "'";
    Outcome outcome = run(command);
    INFO(outcome.output);
    REQUIRE(outcome.status == 0);
    CHECK(read_shard(folder / "f_val_000000.bin") == std::vector<uint32_t>{3, 3, 3, 1, 2, 3, 6, 1, 2, 5, 5, 5});
    const nlohmann::json report = nlohmann::json::parse(read_bytes(folder / "f.json"));
    CHECK(report["tokens"]["val"] == 12);
    CHECK(report["sequences"]["read"] == 7);
    CHECK(report["sequences"]["kept"] == 4);
    CHECK(report["missing"].size() == 3);
    CHECK(report["missing"][0] == nlohmann::json{{"id", 8}, {"text", ""}, {"count", 3}});
    CHECK(report["missing"][1]["id"] == 7);
    CHECK(report["missing"][2]["id"] == 50256);
    CHECK(contains(outcome.output, "| 8 |  | 3 |"));

    CHECK_MESSAGE(run(command).status == 2, "an earlier result is replaced only with --force");
    outcome = run(command + " --force --sequences 2 --count 1");
    CHECK(outcome.status == 0);
    // Counted in the first sequence of each alone, only 50256 is missing.
    CHECK(read_shard(folder / "f_val_000000.bin") == std::vector<uint32_t>{3, 3, 3, 1, 2, 3});
}

TEST_CASE("pile_filtered.py refuses other files and other tokenizers, and then writes nothing") {
    if (!has_modules("numpy")) return;
    const TemporaryFolder folder;
    write_shard(folder / "d_val", {1, 2, 3, 4});
    write_shard(folder / "r_train", {1, 2, 3, 4});
    write_shard(folder / "other_train", {5, 6});
    write_bytes(folder / "text_train_000000.bin", std::string(5000, 'x'));
    write_bytes(folder / "short_train_000000.bin", read_bytes(folder / "r_train_000000.bin").substr(0, 1030));
    write_bytes(folder / "d.json", R"({"tokenizer": {"fingerprint": "a"}})");
    write_bytes(folder / "r.json", R"({"tokenizer": {"fingerprint": "b"}})");
    const auto refusal = [&](const std::string& reference) {
        const Outcome outcome =
            run(python() + " data/pile_filtered.py --data '" + (folder / "d_val_*.bin") + "' --reference '" +
                (folder / reference) + "' --seq 2 --out '" + (folder / "f") + "'");
        CHECK(outcome.status == 2);
        CHECK(files_of(folder, "f").empty());
        return outcome.output;
    };
    CHECK(contains(refusal("nothing_*.bin"), "no token shard matches"));
    CHECK(contains(refusal("text_train_000000.bin"), "is not a shard of uint16 tokens"));
    CHECK(contains(refusal("short_train_000000.bin"), "is damaged or empty"));
    CHECK(contains(refusal("r_train_000000.bin"), "different tokenizers: a, b"));
    CHECK(contains(refusal("other_train_000000.bin"), "none of the 2 sequences is without"));
}

TEST_CASE("gguf_to_hf.py makes folders with the logits and ids of what a GGUF was made from, and refuses other kinds") {
    if (!has_modules("torch, transformers, gguf, safetensors")) return;
    const Outcome outcome = run(python() + " test/interop/gguf_folders.py");
    INFO(outcome.output);
    CHECK(outcome.status == 0);
    CHECK(contains(outcome.output, "ok  the same token ids"));
}
