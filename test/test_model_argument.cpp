// data/model_argument.h: whatever people give to --model is found, or they are told what it is and what helps.
#include <doctest/doctest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "data/model_argument.h"
#include "test/file_helpers.h"
#include "test/torch_bytes.h"

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

std::string found(const std::string& name, std::vector<std::string>* notes = nullptr) {
    std::vector<std::string> ignored;
    return find_model(name, notes != nullptr ? *notes : ignored);
}

std::string refusal(const std::string& name) {
    const std::string message = message_of<BadInput>([&] { found(name); });
    CHECK(is_one_line(message));
    CHECK(contains(message, name));
    return message;
}

void write_config(const std::string& folder) {
    fs::create_directories(folder);
    write_bytes(folder + "/config.json", "{}");
}

}  // namespace

TEST_CASE("names of models lead to the script or the command that fetches them") {
    for (const std::string name : {"gpt2", "openai-community/gpt2", "gpt2-small"})
        CHECK(contains(refusal(name), "scripts/download_gpt2.sh small"));
    CHECK(contains(refusal("gpt2-xl"), "scripts/download_gpt2.sh xl"));
    CHECK(contains(refusal("openai-community/gpt2-medium"), "--model models/gpt2-medium"));
    CHECK(contains(refusal("roneneldan/TinyStories-33M"), "hf download roneneldan/TinyStories-33M --local-dir"));
    CHECK(contains(refusal("distilgpt2"), "hf download distilgpt2"));
    for (const std::string name : {"./no/where", "../nowhere", "a/b/c", "nowhere"}) {
        CHECK(contains(refusal(name), "no such folder; --model takes a folder with config.json"));
        CHECK_FALSE(contains(refusal(name), "hf download"));
    }
}

TEST_CASE("of a folder of Hugging Face's cache the snapshot is read that its main reference names, or the only one") {
    const TemporaryFolder scratch;
    const std::string cache = scratch / "models--x";
    write_config(cache + "/snapshots/abc");
    std::vector<std::string> notes;
    CHECK(found(cache, &notes) == cache + "/snapshots/abc");
    REQUIRE(notes.size() == 1);
    CHECK(contains(notes[0], "snapshots/abc"));
    write_config(cache + "/snapshots/def");
    CHECK(contains(refusal(cache), "--model " + cache + "/snapshots/abc"));
    fs::create_directories(cache + "/refs");
    write_bytes(cache + "/refs/main", "def\n");
    CHECK(found(cache) == cache + "/snapshots/def");
    write_bytes(cache + "/refs/main", "../../other");
    CHECK(contains(refusal(cache), "several snapshots"));
}

TEST_CASE("a folder that holds the model further down, or an adapter, says so") {
    const TemporaryFolder scratch;
    CHECK(contains(refusal(scratch.path()), "has no config.json; --model takes"));
    write_config(scratch / "checkpoint-500");
    CHECK(contains(refusal(scratch.path()), "give --model " + scratch / "checkpoint-500"));
    fs::remove_all(scratch / "checkpoint-500");
    write_config(scratch / "checkpoints/step_000050");
    CHECK(contains(refusal(scratch.path()), "give --model " + scratch / "checkpoints/step_000050"));
    write_bytes(scratch / "adapter_config.json", "{}");
    CHECK(contains(refusal(scratch.path()), "merge_and_unload"));
    write_bytes(scratch / "ckpt.pt", "x");
    CHECK(found(scratch.path()) == scratch / "ckpt.pt");
    write_bytes(scratch / "config.json", "{}");
    CHECK(found(scratch.path()) == scratch.path());
}

TEST_CASE("a file is named for what it is") {
    const TemporaryFolder scratch;
    const auto of = [&](const std::string& bytes) {
        write_bytes(scratch / "file", bytes);
        return refusal(scratch / "file");
    };
    using torch_bytes::little_endian;
    CHECK(contains(of(little_endian(20240326, 4) + "..."), "llm.c"));
    CHECK(contains(of(little_endian(20240520, 4) + "..."), "give it to --data"));
    CHECK(contains(of("GGUF\3"), "llama.cpp"));
    CHECK(contains(of("\x89HDF\r\n"), "HDF5"));
    CHECK(contains(of("\x1f\x8b\x08"), "gzip"));
    CHECK(contains(of("version https://git-lfs.github.com"), "git lfs pull"));
    CHECK(contains(of(""), "is a file, and no model"));
    CHECK(contains(of("hello"), "is a file, and no model; --model takes"));
    const std::string weights = little_endian(2, 8) + "{}";
    CHECK(contains(of(weights), "without the config.json"));
    write_bytes(scratch / "config.json", "{}");
    CHECK(contains(of(weights), "give --model " + scratch.path()));
    CHECK(contains(refusal(scratch / "config.json"), "give --model " + scratch.path()));
    write_bytes(scratch / "ckpt.pt", torch_bytes::zip({{"a/data.pkl", ""}}));
    CHECK(found(scratch / "ckpt.pt") == scratch / "ckpt.pt");
}
