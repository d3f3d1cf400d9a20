// The program as its users meet it: every command in a process of its own, judged by exit status, output and files.
//
// LNFREE_PROGRAM names the program (default ./train_gpt2_lnfree); run from the project root. A model of one layer, 16
// wide, is trained once, and everything is tried on copies of it. The suite "quick" meets every command in seconds.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "test/file_helpers.h"
#include "test/program.h"

using namespace lnfree;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Files

// Every file below a folder with its bytes, and every folder as "NAME/".
using Listing = std::map<std::string, std::string>;

Listing listing_of(const std::string& folder) {
    Listing listing;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        const std::string name = fs::relative(entry.path(), folder).string();
        if (entry.is_directory()) {
            listing[name + "/"] = "";
        } else {
            listing[name] = read_bytes(entry.path());
        }
    }
    return listing;
}

std::set<std::string> names_of(const Listing& listing) {
    std::set<std::string> names;
    for (const auto& [name, bytes] : listing) names.insert(name);
    return names;
}

json json_file(const std::string& path) {
    return json::parse(read_bytes(path));
}

void edit_json(const std::string& path, const std::function<void(json&)>& edit) {
    json j = json_file(path);
    edit(j);
    write_bytes(path, j.dump());
}

// Changes the header and the data of a safetensors file.
void edit_safetensors(const std::string& path, const std::function<void(json& header, std::string& data)>& edit) {
    const std::string bytes = read_bytes(path);
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    json header = json::parse(bytes.substr(8, length));
    std::string data = bytes.substr(8 + length);
    edit(header, data);
    const std::string text = header.dump();
    length = text.size();
    write_bytes(path, std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text + data);
}

Words lines_of(const std::string& path) {
    Words lines;
    std::istringstream text(read_bytes(path));
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    return lines;
}

// The lines of a run's log.
std::vector<json> log_of(const std::string& folder) {
    std::vector<json> lines;
    for (const std::string& line : lines_of(folder + "/log.jsonl")) lines.push_back(json::parse(line));
    return lines;
}

// The complete checkpoints of a run, oldest first.
Words checkpoints_of(const std::string& out) {
    std::set<std::string> names;
    if (fs::exists(out + "/checkpoints"))
        for (const auto& entry : fs::directory_iterator(out + "/checkpoints"))
            if (contains(entry.path().filename(), "step_") && entry.path().filename().string()[0] == 's')
                names.insert(entry.path().filename());
    return Words(names.begin(), names.end());
}

std::set<std::string> keys_of(const json& object) {
    std::set<std::string> keys;
    for (const auto& [key, value] : object.items()) keys.insert(key);
    return keys;
}

// ---------------------------------------------------------------------------------------------------------------------
// The workbench

// Everything that costs time is made once: shards of the story world in data/, `base`, trained a little, and `free`, in
// which all four sites are removed. Of the removal, `half` is the last checkpoint before `f` went.
struct Workbench {
    TemporaryFolder folder;
    Listing made;  // what is there once and for all

    Workbench() {
        ::setenv("OMP_NUM_THREADS", "1", 1);
        succeed({"stories", "--count", "60", "--out", folder / "stories.jsonl"});
        succeed({"tokenize", "--input", folder / "stories.jsonl", "--out", folder / "data/s", "--val-fraction", "0.1"});
        succeed(with_data({"pretrain", "--out", folder / "base", "--n-layer", "1", "--n-head", "2", "--n-embd", "16",
                           "--n-ctx", "16", "--steps", "60", "--lr", "0.01"}));
        succeed(removal(folder / "free", {"--start-f", "18", "--save-every", "8", "--keep-checkpoints", "1"}));
        fs::rename(folder / "free/checkpoints/step_000016", folder / "half");
        fs::remove(folder / "free/checkpoints");
        made = listing_of(folder.path());
    }

    // Commands of 20 steps and a few hundredths of a second.
    Words with_data(Words arguments) const {
        for (const char* word : {"--batch", "4", "--grad-accum", "1", "--val-tokens", "64", "--data"}) {
            arguments.emplace_back(word);
        }
        arguments.push_back(folder / "data/s_train_*.bin");
        arguments.emplace_back("--val");
        arguments.push_back(folder / "data/s_val_*.bin");
        return arguments;
    }
    Words training(const std::string& command, const std::string& model, const std::string& out, Words more) const {
        Words arguments = {command, "--model", model, "--out", out, "--steps", "20"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return with_data(arguments);
    }
    // By the paper's schedule, so that sites go at known steps, unless another preset is asked for.
    Words removal(const std::string& out, Words more = {}) const {
        if (std::find(more.begin(), more.end(), "--preset") == more.end())
            more.insert(more.end(), {"--preset", "paper"});
        return training("remove", folder / "base", out, more);
    }
    // By the default preset if `preset` is empty, and slow enough (milliseconds a step) to be met in the middle.
    Words slow_removal(const std::string& preset, const std::string& out, const Words& more) const {
        Words arguments = {"remove",
                           "--model",
                           folder / "base",
                           "--out",
                           out,
                           "--steps",
                           "40",
                           "--batch",
                           "4",
                           "--grad-accum",
                           "24",
                           "--val-tokens",
                           "64",
                           "--data",
                           folder / "data/s_train_*.bin",
                           "--val",
                           folder / "data/s_val_*.bin"};
        if (!preset.empty()) arguments.insert(arguments.end(), {"--preset", preset});
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    }
    Words evaluation(const std::string& model, const Words& more = {}) const {
        Words arguments = {"eval", "--data", folder / "data/s_val_000000.bin", "--model", model};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    }
};

const Workbench& workbench() {
    static const Workbench made;
    return made;
}

// A copy of something on the workbench, to be damaged.
class Copy {
  public:
    explicit Copy(const std::string& name) : path_(folder_ / "copy") {
        fs::copy(workbench().folder / name, path_, fs::copy_options::recursive);
    }
    const std::string& path() const { return path_; }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    TemporaryFolder folder_;
    std::string path_;
};

// Where nothing is, and nothing may appear.
std::string nowhere() {
    return workbench().folder / "nowhere";
}

// The one line that standard error must be, without its end; empty if it is anything else.
std::string only_line(const std::string& err) {
    const bool ends = !err.empty() && err.back() == '\n';
    const std::string line = ends ? err.substr(0, err.size() - 1) : "";
    return is_one_line(line) ? line : "";
}

void check_workbench_untouched() {
    CHECK(listing_of(workbench().folder.path()) == workbench().made);
}

// Refused as bad use: exit 2, one line that holds all of `words`, nothing on standard output, no file touched.
void check_refused(const Words& arguments, const Words& words) {
    const Outcome outcome = run(arguments);
    std::string command;
    for (const std::string& argument : arguments) command += argument + " ";
    CAPTURE(command);
    CAPTURE(outcome.err);
    CHECK(outcome.status == 2);
    CHECK(outcome.out.empty());
    CHECK(!only_line(outcome.err).empty());
    for (const std::string& word : words) {
        CAPTURE(word);
        CHECK(contains(outcome.err, word));
    }
    check_workbench_untouched();
}

// The same for a model folder, by a command that writes and one that only looks.
void check_model_refused(const std::string& model, const Words& words) {
    const Listing before = listing_of(model);
    check_refused(workbench().training("remove", model, nowhere(), {}), words);
    check_refused({"info", "--model", model}, words);
    CHECK(listing_of(model) == before);
}

// And for shards.
void check_data_refused(const std::string& train, const std::string& val, const Words& words) {
    const std::string base = workbench().folder / "base";
    check_refused({"remove", "--model", base, "--data", train, "--val", val, "--out", nowhere()}, words);
    check_refused({"eval", "--model", base, "--data", train}, words);
}

const doctest::test_suite quick("quick");

const Words commands = {"pretrain", "remove",  "finetune", "eval", "export", "generate", "tokenize",
                        "info",     "stories", "bench",    "plot", "check",  "analyze"};

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// The command line itself

TEST_CASE("every command explains itself and every flag, on standard output with exit 0" * quick) {
    const Outcome all = succeed({"--help"});
    for (const std::string& command : commands) {
        CAPTURE(command);
        CHECK(contains(all.out, "  " + command + " "));
        const Outcome one = succeed({command, "--help"});
        CHECK(contains(one.out, "--json"));
        CHECK(contains(one.out, "--threads"));
        CHECK(one.err.empty());
    }
    for (const char* inner : {"explain", "cache"}) {
        CAPTURE(inner);
        CHECK(contains(succeed({"analyze", "--help"}).out, inner));
        const std::string help = succeed({"analyze", inner, "--help"}).out;
        for (const char* flag : {"--json", "--threads", "--model", "--force"}) CHECK(contains(help, flag));
    }
    const std::string remove = succeed({"remove", "--help"}).out;
    for (const char* flag : {"--model",      "--data",         "--val",        "--out",
                             "--preset",     "--steps",        "--stop",       "--tokens",
                             "--batch",      "--seq",          "--lr",         "--min-lr",
                             "--warmup",     "--weight-decay", "--grad-accum", "--aux-weight",
                             "--start-f",    "--gap-mlp",      "--start-qk",   "--start-v",
                             "--start-mlp",  "--gap-v",        "--sigma-ema",  "--seed",
                             "--gap-qk",     "--resume",       "--force",      "--eval-every",
                             "--val-tokens", "--save-every",   "--dry-run",    "--keep-checkpoints",
                             "--precision",  "--hours"}) {
        CAPTURE(flag);
        CHECK(contains(remove, flag));
    }
}

TEST_CASE("unknown commands and flags are refused by name" * quick) {
    check_refused({}, {"--help"});
    check_refused({"dehydrate"}, {"\"dehydrate\"", "--help"});
    check_refused({"remove"}, {"--out", "required", "--help"});
    check_refused({"remove", "--out", nowhere()}, {"--model", "required"});
    check_refused({"remove", "--out", nowhere(), "--model", workbench().folder / "base"},
                  {"--data", "--val", "tokenize"});
    for (const std::string& command : commands) {
        if (command == "remove") continue;
        const Outcome outcome = run({command, "--bogus"});
        CAPTURE(command);
        CHECK(outcome.status == 2);
        CHECK(!only_line(outcome.err).empty());
    }
    check_refused(workbench().removal(nowhere(), {"--bogus"}), {"--bogus", "--help"});
    check_refused(workbench().removal(nowhere(), {"--bo\ngus", "a\tb"}), {"--bo gus"});
    check_refused(workbench().removal(nowhere(), {"--seed"}), {"--seed", "--help"});
}

TEST_CASE("what only the CUDA engine can say is refused with its name" * quick) {
    check_refused({"check"}, {"train_gpt2_lnfree_cuda"});
    check_refused({"info"}, {"--model", "--memory"});
    check_refused({"info", "--size", "xl"}, {"--size", "--memory"});
    check_refused({"info", "--model", workbench().folder / "base", "--family", "llama"}, {"--family", "--size"});
    check_refused({"info", "--memory", "--size", "tiny", "--family", "bert"}, {"--family", "neox"});
}

TEST_CASE("an instruction set that is not there is refused" * quick) {
    ::setenv("LNFREE_ISA", "mmx", 1);
    const Outcome outcome = run({"info", "--help"});
    ::unsetenv("LNFREE_ISA");
    CHECK(outcome.status == 2);
    CHECK(contains(only_line(outcome.err), "LNFREE_ISA=mmx"));
}

TEST_CASE("threads that wait sleep soon, unless the environment says how they wait" * quick) {
    const auto waits = [](const char* name, const char* value) {
        const char* const before = std::getenv("OMP_WAIT_POLICY");
        const std::string policy = before == nullptr ? "" : before;
        ::unsetenv("OMP_WAIT_POLICY");
        ::setenv("OMP_DISPLAY_ENV", "verbose", 1);
        ::setenv(name, value, 1);
        const std::string said = run({"info", "--help"}).err;
        ::unsetenv(name);
        ::unsetenv("OMP_DISPLAY_ENV");
        if (before != nullptr) ::setenv("OMP_WAIT_POLICY", policy.c_str(), 1);
        return said;
    };
    const std::string by_default = waits("LNFREE_NOTHING", "1");
    if (!contains(by_default, "GOMP_SPINCOUNT")) {
        std::printf("SKIPPED: waiting threads: this program was not built with GCC's OpenMP\n");
        return;
    }
    const std::string soon = "GOMP_SPINCOUNT = '3000'";
    CHECK(contains(by_default, soon));
    CHECK(contains(waits("GOMP_SPINCOUNT", "77"), "GOMP_SPINCOUNT = '77'"));
    CHECK_FALSE(contains(waits("GOMP_SPINCOUNT", "77"), soon));
    CHECK_FALSE(contains(waits("OMP_WAIT_POLICY", "active"), soon));
}

TEST_CASE("numbers must be numbers, finite and within bounds" * quick) {
    const Workbench& w = workbench();
    const auto refused = [&](const char* flag, const char* value, const char* why) {
        check_refused(w.with_data({"remove", "--model", w.folder / "base", "--out", nowhere(), flag, value}),
                      {flag, value, why});
    };
    refused("--steps", "abc", "not a whole number");
    refused("--steps", "", "not a whole number");
    refused("--steps", "1.5", "not a whole number");
    refused("--steps", "20x", "not a whole number");
    refused("--steps", "99999999999999999999", "");
    refused("--steps", "900000000000000", "1e15 tokens");
    refused("--steps", "-3", "not within");
    refused("--steps", "0", "at least 1");
    refused("--stop", "1201", "--steps");
    refused("--tokens", "-5", "not within");
    refused("--warmup", "1201", "--steps");
    refused("--lr", "fast", "not a number");
    refused("--lr", "nan", "finite");
    refused("--lr", "inf", "finite");
    refused("--lr", "-1", "lr > 0");
    refused("--min-lr", "1", "min-lr <= lr");
    refused("--sigma-ema", "1", "below 1");
    refused("--aux-weight", "-1", "negative");
    refused("--distill", "1.5", "not within 0 to 1");
    refused("--distill", "-0.5", "not within 0 to 1");
    refused("--distill", "nan", "finite");
    refused("--aux-weight", "1e999", "finite");
    refused("--start-mlp", "nan", "finite");
    refused("--gap-v", "-1", "negative");
    refused("--seed", "-1", "not within");
    refused("--threads", "0", "not within 1 to 1024");
    refused("--threads", "many", "not a whole number");
    refused("--eval-every", "0", "not within");
    refused("--save-every", "-1", "not within");
    refused("--seq", "0", "n_ctx");
    const auto batch_refused = [&](const char* flag, const char* value) {
        check_refused({"remove", "--model", w.folder / "base", "--out", nowhere(), "--data",
                       w.folder / "data/s_train_*.bin", "--val", w.folder / "data/s_val_*.bin", flag, value},
                      {flag, value});
    };
    for (const char* value : {"0", "-2", "3000000000", "9223372036854775807", "four"}) {
        batch_refused("--batch", value);
        batch_refused("--grad-accum", value);
    }
}

TEST_CASE("schedules that cannot work are refused before anything is read or written" * quick) {
    const Workbench& w = workbench();
    check_refused(w.removal(nowhere(), {"--preset", "huge"}), {"--preset huge", "auto", "precursor"});
    check_refused(w.removal(nowhere(), {"--preset", "adaptive"}), {"--preset adaptive", "auto, the default"});
    check_refused(w.removal(nowhere(), {"--stop", "3"}), {"step 9", "before step 3", "--steps"});
    check_refused(w.removal(nowhere(), {"--start-f", "20"}), {"step 20", "--steps", "--gap"});
    check_refused(w.removal(nowhere(), {"--start-qk", "1000", "--start-f", "5"}), {"step 1002", "--steps"});
    check_refused(w.removal(nowhere(), {"--start-mlp", "1e300", "--start-qk", "1", "--start-v", "2", "--start-f", "3"}),
                  {"1e+300"});
    check_refused(w.removal(nowhere(), {"--tokens", "100"}), {"--steps", "--tokens", "give one"});
    check_refused(w.removal(nowhere(), {"--preset", "precursor", "--warmup", "5"}), {"last removal", "--steps"});
    check_refused(w.removal(nowhere(), {"--seq", "17"}), {"--seq 17", "16", "n_ctx"});
    check_refused(w.removal(nowhere(), {"--teacher", w.folder / "free"}), {"--teacher", "free", "--distill"});
    check_refused(w.removal(nowhere(), {"--distill", "1", "--teacher", nowhere()}), {nowhere()});
    check_refused(w.training("finetune", w.folder / "base", nowhere(), {"--seq", "17"}), {"--seq 17", "n_ctx"});
    check_refused(w.training("finetune", w.folder / "base", nowhere(), {"--aux-weight", "0.1"}), {"--aux-weight"});
    check_refused(w.training("remove", w.folder / "free", nowhere(), {}),
                  {w.folder / "free", "no LayerNorm", "finetune"});
    check_refused(w.training("finetune", w.folder / "half", nowhere(), {}),
                  {w.folder / "half", "not finished", "`remove`"});
}

TEST_CASE("pretrain refuses shapes that make no model") {
    const Workbench& w = workbench();
    const auto refused = [&](const Words& shape, const Words& words) {
        Words arguments = {"pretrain", "--out", nowhere(), "--steps", "2"};
        arguments.insert(arguments.end(), shape.begin(), shape.end());
        check_refused(w.with_data(arguments), words);
    };
    refused({"--size", "gigantic"}, {"--size gigantic", "tiny"});
    refused({"--n-head", "3"}, {"--n-embd 128", "--n-head 3"});
    refused({"--n-layer", "0"}, {"--n-layer"});
    refused({"--n-layer", "100000"}, {"100000"});
    refused({"--n-embd", "1000000000000"}, {"1000000000000"});
    refused({"--n-layer", "4096", "--n-embd", "16777216", "--n-ctx", "16777216"}, {"parameters"});
    refused({"--vocab-size", "100"}, {"--vocab-size 100", "257"});
    refused({"--tokenizer", "nope"}, {"nope", "byte"});
    refused({"--model", "x"}, {"--model"});
    TemporaryFolder bare;  // shards that do not say what made them
    fs::copy(w.folder / "data/s_train_000000.bin", bare / "a.bin");
    const Words blind = {"pretrain", "--out", nowhere(), "--data", bare / "a.bin", "--val", bare / "a.bin"};
    check_refused(blind, {"--vocab-size", "PREFIX.json"});
}

// ---------------------------------------------------------------------------------------------------------------------
// Wrong files

TEST_CASE("weights that are missing, damaged or of another shape are refused by every command that reads them") {
    const std::string wte = "transformer.wte.weight";
    struct Damage {
        const char* what;
        std::function<void(json&, std::string&)> edit;
        Words words;
    };
    const auto set_float = [](std::string& data, size_t element, float value) {
        std::memcpy(&data[element * sizeof(float)], &value, sizeof(value));
    };
    const std::vector<Damage> damages = {
        {"unknown dtype", [&](json& h, std::string&) { h[wte]["dtype"] = "F7"; }, {wte, "\"F7\"", "F32"}},
        {"integers", [&](json& h, std::string&) { h[wte]["dtype"] = "I32"; }, {wte, "I32", "F32"}},
        {"NaN", [&](json&, std::string& d) { set_float(d, 25, NAN); }, {"wte.weight", "element 25", "not finite"}},
        {"infinity",
         [&](json&, std::string& d) { set_float(d, 7, INFINITY); },
         {"wte.weight", "element 7", "not finite"}},
        {"transposed",
         [&](json& h, std::string&) {
             h[wte]["shape"] = {16, 257};
         },
         {"wte.weight", "[16,257]", "[257,16]"}},
        {"other name",
         [&](json& h, std::string&) {
             h["wte"] = h[wte];
             h.erase(wte);
         },
         {"wte.weight", "missing"}},
        {"one more",
         [&](json& h, std::string& d) {
             h["lora"] = {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {d.size(), d.size() + 4}}};
             d += std::string(4, '\0');
         },
         {"\"lora\""}},
        {"bytes behind", [&](json&, std::string& d) { d += "more"; }, {"4 bytes behind"}},
    };
    for (const Damage& damage : damages) {
        CAPTURE(damage.what);
        const Copy copy("base");
        edit_safetensors(copy / "model.safetensors", damage.edit);
        Words words = damage.words;
        words.push_back(copy.path());
        check_model_refused(copy.path(), words);
    }
    const std::string whole = read_bytes(workbench().folder / "base/model.safetensors");
    for (const size_t size : {size_t{0}, size_t{5}, size_t{200}, whole.size() - 1}) {
        CAPTURE(size);
        const Copy copy("base");
        write_bytes(copy / "model.safetensors", whole.substr(0, size));
        check_model_refused(copy.path(), {copy / "model.safetensors"});
    }
    const Copy copy("base");
    fs::remove(copy / "model.safetensors");
    check_model_refused(copy.path(), {copy.path(), "model.safetensors"});
    check_refused({"info", "--model", "no/such/model"}, {"no/such/model", "config.json"});
}

TEST_CASE("every command that reads a model or shards refuses damaged ones") {
    const Workbench& w = workbench();
    const Copy model("free");
    edit_safetensors(model / "model.safetensors",
                     [](json&, std::string& data) { data.replace(400, 4, "\xff\xff\xff\xff"); });
    const Words words = {model.path(), "wte.weight", "element 100", "not finite", "fetch"};
    check_refused(w.training("finetune", model.path(), nowhere(), {}), words);
    check_refused(w.evaluation(w.folder / "base", {model.path()}), words);
    check_refused({"generate", "--model", model.path(), "--prompt", "When"}, words);
    for (const char* form : {"hf", "folded"}) {
        check_refused({"export", "--model", model.path(), "--form", form, "--out", nowhere()}, words);
    }
    const Copy data("data");
    write_bytes(data / "s_val_000000.bin", "");
    const std::string train = data / "s_train_000000.bin";
    const std::string val = data / "s_val_000000.bin";
    check_refused({"pretrain", "--data", train, "--val", val, "--out", nowhere()}, {val, "empty"});
    check_refused({"finetune", "--model", w.folder / "base", "--data", train, "--val", val, "--out", nowhere()},
                  {val, "empty"});
}

TEST_CASE("a config.json that is missing, broken or contradicts the weights is refused") {
    struct Damage {
        const char* key;
        json value;
        Words words;
    };
    const std::vector<Damage> damages = {
        {"n_embd", 32, {"wte.weight", "[257,16]", "[257,32]"}},
        {"n_layer", 2, {"h.1.ln_1.weight", "missing"}},
        {"n_head", 3, {"n_embd 16", "n_head 3"}},
        {"n_head", "two", {"n_head", "\"two\"", "whole number"}},
        {"n_head", 0, {"n_head", "0"}},
        {"n_inner", 48, {"mlp.c_fc.weight", "[16,48]"}},
        {"vocab_size", 300, {"wte.weight", "[300,16]"}},
        {"vocab_size", 256, {"wte.weight", "[256,16]"}},
        {"eos_token_id", "256", {"eos_token_id", "whole number"}},
        {"n_positions", 32, {"wpe.weight", "[32,16]"}},
        {"layer_norm_epsilon", 0, {"layer_norm_epsilon"}},
        {"model_type", "mistral", {"mistral", "window", "gpt2, gpt_neox and llama"}},
        {"model_type", 5, {"config.json"}},
        {"activation_function", "relu", {"relu", "gelu_new"}},
        {"model_type", "lla\nma", {"lla?ma", "gpt2"}},  // a message is one line, whatever the file holds
        {"activation_function", "re\nlu", {"re?lu", "gelu_new"}},
        {"scale_attn_by_inverse_layer_idx", 1, {"scale_attn_by_inverse_layer_idx is 1", "true or false"}},
        {"tie_word_embeddings", false, {"lm_head.weight", "tie_word_embeddings"}},
        {"pruned_heads", {{"0", {1}}}, {"pruned_heads"}},
        {"n_layer", 4000000000u, {"n_layer", "4000000000"}},
    };
    for (const Damage& damage : damages) {
        CAPTURE(damage.key);
        const Copy copy("base");
        edit_json(copy / "config.json", [&](json& j) { j[damage.key] = damage.value; });
        Words words = damage.words;
        words.push_back(copy.path());
        check_refused({"info", "--model", copy.path()}, words);
        check_refused(workbench().training("remove", copy.path(), nowhere(), {}), words);
    }
    const Copy copy("base");
    write_bytes(copy / "config.json", "{\"n_embd\": 16,");
    check_model_refused(copy.path(), {copy / "config.json", "JSON"});
    fs::remove(copy / "config.json");
    check_model_refused(copy.path(), {copy.path(), "config.json"});
}

TEST_CASE(
    "a Llama's norms go as a GPT-2's do; what would edit an embedding of position 0 is refused before anything runs") {
    const std::string model = "test/fixtures/hf/llama";  // 43 tokens, 37 positions
    const TemporaryFolder scratch;
    std::string tokens;
    for (int i = 0; i < 600; i++) tokens += {static_cast<char>((i * i + 5 * i) % 43), '\0'};
    write_bytes(scratch / "t.bin", tokens);
    const auto training = [&](const std::string& command, const std::vector<std::string>& more) {
        const std::string shard = "raw:" + (scratch / "t.bin");
        std::vector<std::string> words = {
            command, "--model", model, "--data", shard, "--val", shard,           "--steps",      "12", "--lr",
            "1e-5",  "--batch", "2",   "--seq",  "16",  "--out", scratch / "out", "--grad-accum", "1"};
        words.insert(words.end(), more.begin(), more.end());
        return words;
    };
    check_refused(training("finetune", {"--plant-position0", "3"}), {"--plant-position0", "rotary"});
    check_refused(training("remove", {"--shrink-position0", "3"}),
                  {"--shrink-position0", "rotary", "--shrink-neurons"});
    for (const char* nonsense : {"1", "0:", ":3", "0:3,1:4", "0;3", "0:3 x", "0:3 1;4"})
        check_refused(training("remove", {"--shrink-position0", "3", "--shrink-neurons", nonsense}),
                      {"--shrink-neurons", "BLOCK:NEURON"});
    check_refused(training("remove", {"--preset", "paper", "--shrink-neurons", "0:3"}), {"--shrink-position0 STEPS"});
    for (const char* outside : {"99:0", "-1:0", "0:99999", "0:-1"})
        check_refused(training("remove", {"--shrink-position0", "3", "--shrink-neurons", outside}),
                      {"--shrink-neurons", outside, "blocks"});
    CHECK_FALSE(fs::exists(scratch / "out"));
    succeed(training("remove", {"--dry-run"}));
    succeed(training("remove", {"--save-every", "4", "--keep-checkpoints", "3"}));
    fs::create_directories(scratch / "again/checkpoints");
    fs::copy(scratch / "out/checkpoints/step_000004", scratch / "again/checkpoints/step_000004");
    succeed({"remove", "--resume", "--out", scratch / "again"});
    CHECK(read_bytes(scratch / "again/model.safetensors") == read_bytes(scratch / "out/model.safetensors"));
    CHECK(json_file(scratch / "out/config.json")["rms_norm_eps"] == 1e12);
    const json info = json::parse(succeed({"info", "--json", "--model", scratch / "out"}).out);
    CHECK(info["family"] == "Llama");
    CHECK(info["norm"] == "RMSNorm");
    CHECK(info["n_key_head"] == 1);
    CHECK(info["layernorm_free"] == true);
    CHECK(contains(read_bytes(scratch / "out/README.md"), "# A Llama model without RMSNorm"));
}

TEST_CASE("an lnfree.json that is broken or belongs to another model is refused") {
    const auto refused = [](const std::string& model, const std::function<void(json&)>& edit, const Words& words) {
        const Copy copy(model);
        edit_json(copy / "lnfree.json", edit);
        check_refused({"info", "--model", copy.path()}, words);
    };
    refused("base", [](json& j) { j["version"] = 2; }, {"lnfree.json", "version 2", "1"});
    refused("base", [](json& j) { j.erase("version"); }, {"lnfree.json", "version"});
    refused("base", [](json& j) { j["sites"].erase(0); }, {"lnfree.json", "4 sites"});
    refused("base", [](json& j) { j["sites"][1]["site"] = "mlp[9]"; }, {"lnfree.json", "qk[0]"});
    refused("base", [](json& j) { j["sites"][1]["site"] = 5; }, {"lnfree.json", "sites"});
    refused("base", [](json& j) { j["sites"] = "all"; }, {"lnfree.json", "sites"});
    refused("half", [](json& j) { j["sites"][0]["norm"] = "batchnorm"; }, {"lnfree.json", "mlp[0]", "batchnorm"});
    refused("half", [](json& j) { j["sites"][0]["norm"] = "batch\nnorm"; }, {"lnfree.json", "mlp[0]", "batch?norm"});
    refused("half", [](json& j) { j["sites"][0]["sigma_bar"] = -1; }, {"lnfree.json", "mlp[0]", "sigma_bar"});
    const Copy copy("free");
    edit_json(copy / "config.json", [](json& j) { j["layer_norm_epsilon"] = 1e-5; });
    check_model_refused(copy.path(), {copy.path(), "lnfree.json", "layer_norm_epsilon"});
}

TEST_CASE("shards that are empty, truncated, too short or of another vocabulary are refused") {
    const std::string whole = read_bytes(workbench().folder / "data/s_train_000000.bin");
    const auto refused = [](const std::string& bytes, const Words& words) {
        const Copy copy("data");
        write_bytes(copy / "s_train_000000.bin", bytes);
        Words all = words;
        all.push_back(copy / "s_train_000000.bin");
        check_data_refused(copy / "s_train_000000.bin", copy / "s_val_000000.bin", all);
    };
    const auto with_count = [&](uint32_t count) {
        std::string bytes = whole.substr(0, 1024 + 2 * size_t{count});
        std::memcpy(&bytes[8], &count, sizeof(count));
        return bytes;
    };
    refused("", {"is empty"});
    refused(whole.substr(0, 600), {"truncated", "header"});
    refused(whole.substr(0, whole.size() - 2), {"truncated", "again"});
    refused(whole + "xx", {"damaged", "again"});
    refused(with_count(0), {"no tokens"});
    refused(with_count(16), {"fewer", "17", "--seq"});
    refused("some text, not tokens", {"not a token shard", "tokenize"});
    std::string foreign = whole;
    foreign[1024 + 2 * 77] = 1;
    foreign[1024 + 2 * 77 + 1] = 1;
    refused(foreign, {"token 257", "position 77", "vocabulary of 257", "tokenizer"});
    check_data_refused(nowhere() + "/*.bin", nowhere(), {nowhere() + "/*.bin", "no token shard", "tokenize"});

    const Copy copy("data");  // the same for the validation split
    write_bytes(copy / "s_val_000000.bin", with_count(16));
    check_refused({"remove", "--model", workbench().folder / "base", "--out", nowhere(), "--data",
                   copy / "s_train_000000.bin", "--val", copy / "s_val_000000.bin"},
                  {"--val", copy / "s_val_000000.bin", "fewer"});
}

TEST_CASE("shards of another tokenizer are refused; those that do not say are taken") {
    const auto edited = [](const std::function<void(json&)>& edit, const Words& words) {
        const Copy copy("data");
        edit_json(copy / "s.json", edit);
        check_data_refused(copy / "s_train_000000.bin", copy / "s_val_000000.bin", words);
    };
    edited([](json& j) { j["tokenizer"]["fingerprint"] = "0123456789abcdef"; },
           {"s_train_000000.bin", "another tokenizer", "0123456789abcdef", "tokenize --tokenizer"});
    edited([](json& j) { j["tokenizer"]["fingerprint"] = 5; }, {"s.json", "fingerprint", "tokenize"});
    edited([](json& j) { j["tokenizer"] = "byte"; }, {"s.json", "tokenizer"});
    edited([](json& j) { j = 5; }, {"s.json"});

    const Workbench& w = workbench();
    const Copy good("data");
    const Copy bad("data");
    edit_json(bad / "s.json", [](json& j) { j["tokenizer"]["fingerprint"] = "0123456789abcdef"; });
    check_refused({"eval", "--model", w.folder / "base", "--data", good / "s_val_000000.bin", bad / "s_val_000000.bin"},
                  {bad / "s_val_000000.bin", "another tokenizer"});
    fs::remove(bad / "s.json");
    succeed({"eval", "--model", w.folder / "base", "--data", good / "s_val_000000.bin", bad / "s_val_000000.bin"});
}

TEST_CASE("only what needs text needs a tokenizer, and says why it has none" * quick) {
    const Copy copy("base");
    write_bytes(copy / "tokenizer.json", "{");
    succeed(workbench().evaluation(copy.path()));
    CHECK(contains(succeed({"info", "--model", copy.path()}).out, "tokenizer_refusal"));
    const Words words = {copy.path(), "JSON", "needs the tokenizer", "--data raw:FILE"};
    check_refused({"generate", "--model", copy.path(), "--prompt", "When"}, words);
    check_refused({"generate", "--model", copy.path()}, words);
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"})
        fs::remove(copy / name);
    check_refused({"generate", "--model", copy.path(), "--prompt", "When"}, {copy.path(), "tokenizer.json", "copy"});
    succeed(workbench().evaluation(copy.path()));
}

TEST_CASE("what came with a model, a tokenizer that cannot be run among it, is in its checkpoints and in the result") {
    const Copy model("base");
    edit_json(model / "config.json", [](json& j) {
        j["bos_token_id"] = 254;
        j["eos_token_id"] = {256, 253};
        j["pad_token_id"] = 255;
    });
    write_bytes(model / "generation_config.json", "{\"do_sample\": true}");
    write_bytes(model / "chat_template.jinja", "{{ messages }}");
    write_bytes(model / "tokenizer.json", "{\"model\": {\"type\": \"WordPiece\"}}");
    write_bytes(model / "vocab.txt", "[UNK]\n");
    const TemporaryFolder out;
    succeed(workbench().training("remove", model.path(), out / "run",
                                 {"--preset", "paper", "--save-every", "10", "--keep-checkpoints", "1"}));
    succeed({"export", "--model", out / "run", "--form", "folded", "--out", out / "folded"});
    const fs::directory_iterator kept(out / "run/checkpoints");
    for (const std::string& written : {kept->path().string(), out / "run", out / "folded"}) {
        CAPTURE(written);
        const json config = json_file(written + "/config.json");
        CHECK(config["bos_token_id"] == 254);
        CHECK(config["eos_token_id"] == json({256, 253}));
        CHECK(config["pad_token_id"] == 255);
        for (const char* file : {"generation_config.json", "chat_template.jinja", "tokenizer.json", "vocab.txt"})
            CHECK(read_bytes(written + "/" + file) == read_bytes(model / file));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Where to write

TEST_CASE("an output folder that holds something is left alone, unless --force" * quick) {
    const Workbench& w = workbench();
    check_refused(w.removal(w.folder / "free"), {w.folder / "free", "--resume", "--force"});
    check_refused(w.removal(w.folder / "base"), {w.folder / "base", "--model folder itself"});
    check_refused(w.removal(w.folder / "base", {"--force"}), {w.folder / "base", "--model folder itself"});
    check_refused(w.removal(w.folder.path(), {"--force"}), {w.folder.path(), "holds the --model folder"});
    check_refused(w.removal(w.folder / "stories.jsonl", {"--force"}), {"stories.jsonl", "is a file"});
    check_refused({"export", "--model", w.folder / "base", "--out", w.folder / "free"}, {w.folder / "free", "--force"});
    check_refused({"export", "--model", w.folder / "free", "--out", w.folder / "free", "--force"}, {"itself"});
    check_refused({"export", "--model", w.folder / "free", "--out", w.folder / "stories.jsonl", "--force"},
                  {"is a file"});
    check_refused({"stories", "--out", w.folder / "stories.jsonl"}, {"stories.jsonl", "--force"});
    check_refused({"plot", "--run", w.folder / "free", "--out", w.folder / "stories.jsonl"},
                  {"stories.jsonl", "--force"});

    // --force replaces a run with the next, and touches nothing else.
    const Copy copy("half");
    write_bytes(copy / "notes.txt", "mine");
    write_bytes(copy / "merges.txt", "of another tokenizer");
    succeed(w.removal(copy.path(), {"--force"}));
    const auto names = names_of(listing_of(copy.path()));
    CHECK(read_bytes(copy / "notes.txt") == "mine");
    CHECK(names.count("model.safetensors") == 1);
    CHECK(names.count("weights.safetensors") == 0);  // the checkpoint's
    CHECK(names.count("merges.txt") == 0);
    succeed({"export", "--model", w.folder / "free", "--form", "folded", "--out", copy.path(), "--force"});
    CHECK(fs::exists(copy / "weights.safetensors"));
    CHECK_FALSE(fs::exists(copy / "model.safetensors"));
}

TEST_CASE("unfinished models are not exported, and f16 is refused where it would overflow") {
    const Workbench& w = workbench();
    for (const char* form : {"hf", "folded"}) {
        check_refused({"export", "--model", w.folder / "half", "--form", form, "--out", nowhere()},
                      {"site f", "`remove`"});
    }
    check_refused({"export", "--model", w.folder / "base", "--form", "folded", "--out", nowhere()},
                  {"mlp[0]", "LayerNorm"});
    check_refused({"export", "--model", w.folder / "free", "--dtype", "f16", "--out", nowhere()},
                  {"f16", "bf16", "folded"});
    check_refused({"export", "--model", w.folder / "free", "--dtype", "f8", "--out", nowhere()}, {"--dtype f8", "f32"});
    check_refused({"export", "--model", w.folder / "free", "--form", "onnx", "--out", nowhere()},
                  {"--form onnx", "folded"});
    TemporaryFolder out;
    succeed({"export", "--model", w.folder / "free", "--form", "folded", "--dtype", "f16", "--out", out / "half"});
    check_refused({"export", "--model", out / "half", "--form", "hf", "--out", nowhere()}, {"folded"});
    CHECK(json_file(out / "half/config.json")["torch_dtype"] == "float16");
}

TEST_CASE("eval --precision bf16 rounds, and says so") {
    const Workbench& w = workbench();
    ::setenv("LNFREE_BF16", "slow", 1);
    const Outcome outcome = run(w.evaluation(w.folder / "base", {"--precision", "bf16", "--json"}));
    ::unsetenv("LNFREE_BF16");
    REQUIRE(outcome.status == 0);
    const json rounded = json::parse(outcome.out);
    const json exact = json::parse(succeed(w.evaluation(w.folder / "base", {"--json"})).out);
    CHECK(rounded["precision"] == "bf16");
    CHECK(rounded["loss"] != exact["loss"]);
    CHECK(rounded["loss"].get<double>() == doctest::Approx(exact["loss"].get<double>()).epsilon(0.01));
    check_refused(w.evaluation(w.folder / "base", {"--precision", "fp8"}), {"--precision", "fp8"});
}

TEST_CASE("bf16 is refused by every command that takes --precision where the processor has no fast bf16") {
    const Workbench& w = workbench();
    if (run(w.evaluation(w.folder / "base", {"--precision", "bf16"})).status == 0) {
        std::puts("SKIPPED: the refusal of bf16 by eval, generate and info: this processor has AVX512_BF16");
        return;
    }
    check_refused(w.evaluation(w.folder / "base", {"--precision", "bf16"}), {"--precision bf16", "AVX512_BF16"});
    check_refused({"generate", "--model", w.folder / "base", "--precision", "bf16"}, {"--precision bf16"});
    check_refused({"info", "--model", w.folder / "base", "--precision", "bf16"}, {"--precision bf16"});
}

TEST_CASE("eval, generate, tokenize and plot refuse what they cannot do") {
    const Workbench& w = workbench();
    const std::string base = w.folder / "base";
    check_refused(w.evaluation(base, {"--seq", "17"}), {"--seq 17", base, "16"});
    check_refused(w.evaluation(base, {"--seq", "0"}), {"--seq"});
    check_refused(w.evaluation(base, {"--seq", "1", "--windows", "paper"}), {"1 tokens"});
    check_refused(w.evaluation(base, {"--windows", "round"}), {"--windows round", "paper"});
    check_refused(w.evaluation(base, {"--batch", "0"}), {"--batch"});
    check_refused(w.evaluation(base, {"--worst", "-1"}), {"--worst"});
    check_refused(w.evaluation(base, {nowhere()}), {nowhere()});
    check_refused({"generate", "--model", base, "--temperature", "-1"}, {"--temperature"});
    check_refused({"generate", "--model", base, "--max-tokens", "0"}, {"--max-tokens"});
    check_refused({"generate", "--model", base, "--top-k", "-1"}, {"--top-k"});
    const std::string stories = w.folder / "stories.jsonl";
    const std::string out = nowhere() + "/x";
    check_refused({"tokenize", "--input", nowhere(), "--out", out}, {nowhere()});
    check_refused({"tokenize", "--input", stories, "--out", out, "--tokenizer", nowhere()}, {nowhere(), "byte"});
    check_refused({"tokenize", "--input", stories, "--out", out, "--val-fraction", "1"}, {"--val-fraction"});
    check_refused({"tokenize", "--input", stories, "--out", out, "--text-key", "body"},
                  {"stories.jsonl", "body", "--text-key"});
    check_refused({"tokenize", "--input", stories, "--out", nowhere() + "/"}, {"--out", "prefix"});
    TemporaryFolder inputs;
    write_bytes(inputs / "empty.txt", "");
    write_bytes(inputs / "broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": 5}\n");
    check_refused({"tokenize", "--input", inputs / "empty.txt", "--out", out}, {"empty.txt", "no documents"});
    check_refused({"tokenize", "--input", inputs / "broken.jsonl", "--out", out}, {"broken.jsonl", "line 2"});
    check_refused({"plot", "--run", "a=" + nowhere(), "--out", nowhere() + ".svg"}, {nowhere(), "log.jsonl"});
    check_refused({"plot", "--out", nowhere() + ".svg"}, {"--run", "--table"});
    write_bytes(inputs / "word.csv", "tokens,loss\n1,2\n2,low\n");
    check_refused({"plot", "--table", inputs / "word.csv", "--out", nowhere() + ".svg"}, {"word.csv, line 3", "low"});
    write_bytes(inputs / "short.csv", "tokens,loss,more\n1,2\n");
    check_refused({"plot", "--table", inputs / "short.csv", "--out", nowhere() + ".svg"}, {"short.csv, line 2", "3"});
    write_bytes(inputs / "names.csv", "tokens\n1\n");
    check_refused({"plot", "--table", inputs / "names.csv", "--out", nowhere() + ".svg"}, {"names.csv", "columns"});
    check_refused({"stories", "--out", "-", "--json"}, {"--out -", "--json"});
}

TEST_CASE("tokenize says what it took for ordinary text and what it passed over" * quick) {
    TemporaryFolder folder;
    write_bytes(folder / "a.jsonl", "{\"text\": \"one<|endoftext|>\"}\n{\"text\": null}\n{\"text\": \"two\"}\n");
    const Words command = {"tokenize", "--input", folder / "a.jsonl", "--out", folder / "o"};
    check_refused(command, {"a.jsonl line 2", "--skip-bad-lines"});
    Words skipping = command;
    skipping.push_back("--skip-bad-lines");
    const std::string said = succeed(skipping).out;
    for (const char* words : {"1 times", "--allow-special", "1 bad lines", "a.jsonl line 2"})
        CHECK(contains(said, words));
    write_bytes(folder / "b.txt", read_bytes(folder / "a.jsonl"));
    check_refused({"tokenize", "--input", folder / "b.txt", "--out", folder / "o"}, {"b.txt", "--format jsonl"});
    check_refused({"tokenize", "--input", folder / "b.txt", "--out", folder / "o", "--format", "json"}, {"--format"});
}

TEST_CASE("shards of --val that are in --data too are worth a line on standard error" * quick) {
    const Workbench& w = workbench();
    const TemporaryFolder folder;
    fs::copy_file(w.folder / "data/s_val_000000.bin", folder / "copy_000001.bin");
    fs::copy_file(w.folder / "data/s_train_000000.bin", folder / "copy_000000.bin");
    const auto said = [&](const std::string& data) {
        return succeed({"remove", "--model", w.folder / "base", "--data", data, "--val", w.folder / "data/s_val_*.bin",
                        "--out", folder / "out", "--dry-run", "--json"})
            .err;
    };
    CHECK(contains(said(folder / "copy_*.bin"), "warning: 1 of the 1 shards of --val are also in --data"));
    CHECK_FALSE(contains(said(folder / "copy_000000.bin"), "warning"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Resuming

TEST_CASE("--resume continues saved runs only, with their own values only" * quick) {
    const Workbench& w = workbench();
    check_refused({"remove", "--resume", "--out", nowhere()}, {nowhere(), "no checkpoint", "--resume"});
    check_refused({"remove", "--resume", "--out", w.folder / "free"}, {w.folder / "free", "finished"});
    TemporaryFolder runs;
    const std::string out = runs / "run";
    succeed(w.removal(out, {"--save-every", "15", "--keep-checkpoints", "1", "--start-f", "18"}));
    const Listing before = listing_of(out);
    for (const Words& flags : std::vector<Words>{{"--steps", "30"},
                                                 {"--lr", "1e-3"},
                                                 {"--batch", "2"},
                                                 {"--model", w.folder / "base"},
                                                 {"--seed", "2"},
                                                 {"--gap-mlp", "3"},
                                                 {"--preset", "small"},
                                                 {"--stop", "19"},
                                                 {"--force"},
                                                 {"--sigma-ema", "0.5"},
                                                 {"--dry-run"}}) {
        Words arguments = {"remove", "--resume", "--out", out};
        arguments.insert(arguments.end(), flags.begin(), flags.end());
        check_refused(arguments, {flags[0], "--resume", "saved values"});
    }
    check_refused({"finetune", "--resume", "--out", out}, {out, "\"remove\""});
    for (const char* flag : {"--data", "--val"}) {
        const std::string other = w.folder / (flag == std::string("--data") ? "data/s_val_*" : "data/s_train_*");
        check_refused({"remove", "--resume", "--out", out, flag, other}, {flag, out, "not the shards", "fingerprint"});
        check_refused({"remove", "--resume", "--out", out, flag, nowhere()},
                      {nowhere(), "--resume " + std::string(flag)});
    }
    const auto damaged = [&](const std::function<void(const std::string&)>& damage, const Words& words) {
        const std::string copy = runs / "copy";
        fs::remove_all(copy);
        fs::copy(out, copy, fs::copy_options::recursive);
        damage(copy + "/checkpoints/step_000015");
        check_refused({"remove", "--resume", "--out", copy}, words);
    };
    damaged([](const std::string& c) { fs::remove(c + "/adam_m.safetensors"); }, {"adam_m.safetensors"});
    damaged([](const std::string& c) { fs::resize_file(c + "/adam_v.safetensors", 3000); },
            {"adam_v.safetensors", "truncated"});
    damaged([](const std::string& c) { fs::remove(c + "/lnfree.json"); }, {"step_000015", "lnfree.json"});
    const auto edited = [&](const std::function<void(json&)>& edit, const Words& words) {
        damaged([&](const std::string& c) { edit_json(c + "/lnfree.json", edit); }, words);
    };
    edited([](json& j) { j.erase("step"); }, {"lnfree.json", "step"});
    edited([](json& j) { j["resume"].erase("adam_updates"); }, {"lnfree.json", "adam_updates"});
    edited([](json& j) { j["step"] = 10'000; }, {"lnfree.json", "out of range"});
    edited([](json& j) { j.erase("checkpoint_version"); }, {"step_000015", "earlier version"});
    edited([](json& j) { j["checkpoint_version"] = 99; }, {"step_000015", "99"});
    edited([](json& j) { j["sites"][0]["own_share"] = 0.5; }, {"mlp[0]", "own_share", "earlier version"});
    edited([](json& j) { j["protocol"]["batch"] = "x"; }, {"lnfree.json"});
    edited([](json& j) { j["resume"]["data_fingerprint"] = "0"; }, {"--data", "have changed"});
    edited([](json& j) { j["data"]["val"]["fingerprint"] = "0"; }, {"--val", "have changed"});
    edited([](json& j) { j["resume"]["data"][0] = "/nowhere/x.bin"; }, {"/nowhere/x.bin", "--resume --data"});
    CHECK(listing_of(out) == before);
}

// A finished run's files; the log without the one thing that depends on the clock. A killed process cannot take its lock's
// file away.
Listing result_of(const std::string& out) {
    Listing listing = listing_of(out);
    std::string log;
    for (json line : log_of(out)) {
        line.erase("tokens_per_s");
        log += line.dump() + "\n";
    }
    listing["log.jsonl"] = log;
    listing.erase(".lock");
    return listing;
}

// Names first: they are easier to read when they differ.
void check_same_result(const std::string& out, const Listing& expected) {
    const Listing result = result_of(out);
    CHECK(names_of(result) == names_of(expected));
    for (const auto& entry : expected) {
        const std::string& name = entry.first;
        CAPTURE(name);
        CHECK((result.count(name) == 1 && result.at(name) == entry.second));
    }
}

int64_t steps_in_log(const std::string& out) {
    int64_t steps = 0;
    for (const json& line : log_of(out)) steps += line.contains("loss") ? 1 : 0;
    return steps;
}

// Resumes a run whose newest checkpoint is of this step, and makes sure that it did not begin anew: the lines of the steps
// before are those of the process before, whose clock they show.
void resume_from(int64_t step, const std::string& out) {
    const Words before = lines_of(out + "/log.jsonl");
    succeed({"remove", "--resume", "--out", out});
    const Words after = lines_of(out + "/log.jsonl");
    for (size_t i = 0; i < before.size(); i++) {
        const json line = json::parse(before[i], nullptr, false);  // the last one may be half of one
        if (line.is_discarded() || line["step"] >= step) break;
        REQUIRE(i < after.size());
        CHECK(after[i] == before[i]);
    }
}

// The default preset has a teacher and moves all divisors together; the paper's takes one site after another.
const Words both_schedules = {"", "paper"};

TEST_CASE("Ctrl-C and SIGTERM save, say how to go on, and --resume ends with the same bytes") {
    const Workbench& w = workbench();
    const Words pace = {"--save-every", "6", "--eval-every", "5", "--sigma-ema", "0.3"};
    const struct {
        int signal;
        const char* when;  // as soon as the log holds this
        int64_t step;
        bool with_json;
    } moments[] = {{SIGINT, "\"step\":0,\"val_loss\"", 0, false},
                   {SIGTERM, "\"step\":3,", 3, false},
                   {SIGINT, "\"step\":6,", 6, true},
                   {SIGTERM, "\"step\":11,", 11, true}};
    for (const std::string& preset : both_schedules) {
        CAPTURE(preset);
        TemporaryFolder runs;
        succeed(w.slow_removal(preset, runs / "whole", pace));
        const Listing expected = result_of(runs / "whole");
        for (const auto& moment : moments) {
            CAPTURE(moment.when);
            const std::string out = runs / "stopped";
            Words arguments = w.slow_removal(preset, out, pace);
            if (moment.with_json) arguments.emplace_back("--json");
            Outcome outcome;
            for (int attempt = 0; attempt < 3; attempt++) {  // on a busy machine a run may be over too soon
                fs::remove_all(out);
                Process process(arguments);
                while (process.running() && !contains(read_bytes(out + "/log.jsonl"), moment.when)) ::usleep(200);
                process.kill(moment.signal);
                outcome = process.wait();
                if (outcome.status != 0) break;
            }
            REQUIRE(outcome.status == 128 + moment.signal);

            // It says what it saved, and that is what it saved: the state behind the last step that it finished.
            const int64_t done = steps_in_log(out);
            CHECK(done >= moment.step);
            CHECK(done < 40);
            const std::string said = outcome.out + outcome.err, name = std::to_string(done);
            CHECK(contains(said, "saving the state before step " + name + " "));
            REQUIRE_FALSE(checkpoints_of(out).empty());
            const std::string newest = out + "/checkpoints/" + checkpoints_of(out).back();
            CHECK(contains(newest, "/step_" + std::string(6 - name.size(), '0') + name));
            CHECK(json_file(newest + "/lnfree.json")["step"] == done);
            CHECK(contains(outcome.err, "continue with"));
            CHECK(contains(outcome.err, "remove --resume --out " + out));
            if (moment.with_json) CHECK(outcome.out.empty());
            if (!moment.with_json) CHECK(!only_line(outcome.err).empty());
            CHECK_FALSE(fs::exists(out + "/config.json"));
            CHECK_FALSE(fs::exists(out + "/.lock"));

            resume_from(done, out);
            check_same_result(out, expected);
            CHECK_FALSE(fs::exists(out + "/.lock"));
        }
    }
}

TEST_CASE("a run killed at any moment and resumed, or begun again, ends with the same bytes") {
    const Workbench& w = workbench();
    const unsigned seed = std::random_device()();
    CAPTURE(seed);
    std::mt19937 random(seed);
    const char* const asked = std::getenv("LNFREE_KILLS");  // make test-long asks for 50
    const int kills = asked != nullptr ? std::max(5, std::atoi(asked)) : 5;
    const Words pace = {"--save-every", "4", "--eval-every", "4"};
    for (const std::string& preset : both_schedules) {
        CAPTURE(preset);
        TemporaryFolder runs;
        succeed(w.slow_removal(preset, runs / "whole", pace));
        const Listing expected = result_of(runs / "whole");
        const auto fifth = static_cast<std::ptrdiff_t>(lines_of(runs / "whole/log.jsonl").size()) / 5;
        REQUIRE(fifth >= 3);
        int killed = 0, too_early = 0, gone_on = 0, attempts = 0;
        while (killed < kills) {
            REQUIRE(++attempts <= 10 * kills);  // or no run was met before its end
            const std::string out = runs / "killed";
            fs::remove_all(out);
            const auto from = killed % 5 * fifth;  // the moments are spread over the run
            const auto lines = std::uniform_int_distribution<std::ptrdiff_t>(from, from + fifth)(random);
            const auto pause = std::uniform_int_distribution<useconds_t>(0, 10'000)(random);
            CAPTURE(lines);
            CAPTURE(pause);
            {
                Process process(w.slow_removal(preset, out, pace));
                while (process.running()) {
                    const std::string log = read_bytes(out + "/log.jsonl");
                    if (std::count(log.begin(), log.end(), '\n') >= lines) break;
                    ::usleep(200);
                }
                ::usleep(pause);
                process.kill(SIGKILL);
                if (process.wait().status != -SIGKILL) continue;  // it was over before
            }
            killed++;
            const Words saved = checkpoints_of(out);
            if (!saved.empty()) {
                resume_from(std::stoll(saved.back().substr(5)), out);
                gone_on++;
            } else {
                const Outcome resumed = run({"remove", "--resume", "--out", out});
                CAPTURE(resumed.err);
                CHECK(resumed.status == 2);
                const bool finished = contains(resumed.err, "finished");  // killed behind its last file
                CHECK((finished || contains(resumed.err, "no checkpoint")));
                if (!finished)
                    succeed(w.slow_removal(preset, out, {"--save-every", "4", "--eval-every", "4", "--force"}));
                too_early += finished ? 0 : 1;
            }
            check_same_result(out, expected);
        }
        // Only those of the first fifth can have been too early for a checkpoint.
        CHECK(too_early <= (kills + 4) / 5);
        CHECK(gone_on >= kills / 2);
    }
}

TEST_CASE("of two runs on one folder the second is refused and told who has it, and the first goes on undisturbed") {
    const Workbench& w = workbench();
    for (const std::string& preset : both_schedules) {
        CAPTURE(preset);
        TemporaryFolder runs;
        const std::string out = runs / "run";
        const Words pace = {"--save-every", "2"};
        succeed(w.slow_removal(preset, runs / "whole", pace));
        const auto refused_by = [&](const Process& holder, const Words& arguments) {
            const Outcome second = run(arguments);
            CAPTURE(second.err);
            CHECK(second.status == 2);
            CHECK(contains(only_line(second.err), out));
            CHECK(contains(second.err, std::to_string(holder.id())));
        };
        bool met = false;
        for (int attempt = 0; attempt < 5 && !met; attempt++) {
            fs::remove_all(out);
            Process first(w.slow_removal(preset, out, pace));
            while (first.running() && checkpoints_of(out).empty()) ::usleep(200);
            first.kill(SIGSTOP);  // it cannot end while it is looked at
            met = first.running() && !checkpoints_of(out).empty();
            if (met) {
                const Listing before = listing_of(out);
                refused_by(first, {"remove", "--resume", "--out", out});
                Words again = w.slow_removal(preset, out, pace);
                CHECK(run(again).status == 2);
                again.emplace_back("--force");
                refused_by(first, again);
                CHECK(listing_of(out) == before);
            }
            first.kill(SIGCONT);
            CHECK(first.wait().status == 0);
        }
        REQUIRE(met);
        check_same_result(out, result_of(runs / "whole"));
        CHECK_FALSE(fs::exists(out + "/.lock"));
    }
}

TEST_CASE("tokenize that is stopped leaves nothing behind") {
    Outcome outcome;
    for (size_t size = 1 << 24; size <= (1 << 27); size *= 2) {  // until it is slow enough to be met
        TemporaryFolder folder;
        std::string text = "{\"text\": \"" + std::string(1000, 'x') + "\"}\n";
        while (text.size() < size) text += text;
        write_bytes(folder / "long.jsonl", text);
        Process process({"tokenize", "--input", folder / "long.jsonl", "--out", folder / "new/tokens"});
        while (process.running() && (!fs::exists(folder / "new") || fs::is_empty(folder / "new"))) ::usleep(200);
        process.kill(SIGINT);
        outcome = process.wait();
        if (outcome.status == 0) continue;
        CHECK_FALSE(fs::exists(folder / "new"));
        break;
    }
    CHECK(outcome.status == 130);
    CHECK(contains(outcome.err, "nothing was written"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Runs that fail

// Exit 1 and one line that holds all of `words`.
void check_failed(const Outcome& outcome, const Words& words) {
    CAPTURE(outcome.err);
    CHECK(outcome.status == 1);
    CHECK(!only_line(outcome.err).empty());
    for (const std::string& word : words) {
        CAPTURE(word);
        CHECK(contains(outcome.err, word));
    }
}

TEST_CASE("a full disk ends a run with exit 1; what was finished before stays, and --resume goes on") {
    const Workbench& w = workbench();
    TemporaryFolder runs;
    const Surroundings full = {25000, ""};  // bytes per file: less than the weights take
    const std::string out = runs / "run";

    // At the end, before any checkpoint: no model, no half of one, and the same command works with more room.
    check_failed(run(w.removal(out), full), {out + "/model.safetensors", "make room", "no checkpoint"});
    CHECK_FALSE(fs::exists(out + "/config.json"));
    CHECK_FALSE(fs::exists(out + "/model.safetensors"));
    for (const auto& [name, bytes] : listing_of(out)) CHECK_FALSE(contains(name, ".tmp"));
    succeed(w.removal(out, {"--force"}));
    const std::string weights = read_bytes(out + "/model.safetensors");

    // In a checkpoint: the one before it is whole, and the run goes on from there to the same weights.
    fs::remove_all(out);
    succeed(w.removal(out, {"--save-every", "7", "--keep-checkpoints", "1"}));
    REQUIRE(checkpoints_of(out) == Words{"step_000014"});
    for (const char* finished : {"config.json", "lnfree.json", "model.safetensors"}) fs::remove(out + "/" + finished);
    const Words resume = {"remove", "--resume", "--out", out, "--save-every", "2", "--keep-checkpoints", "0"};
    check_failed(run(resume, full), {out, "make room", "--resume", "step_000014"});
    CHECK(checkpoints_of(out) == Words{"step_000014"});
    CHECK_FALSE(fs::exists(out + "/config.json"));
    succeed(resume);
    CHECK(read_bytes(out + "/model.safetensors") == weights);

    for (const char* form : {"hf", "folded"}) {
        check_failed(run({"export", "--model", w.folder / "free", "--form", form, "--out", runs / "export"}, full),
                     {"safetensors", "make room"});
        CHECK_FALSE(fs::exists(runs / "export"));
    }
    const Surroundings small = {2000, ""};
    check_failed(run({"tokenize", "--input", w.folder / "stories.jsonl", "--out", runs / "t/x"}, small),
                 {runs / "t/x", "make room"});
    check_failed(run({"stories", "--count", "9", "--out", runs / "s.jsonl"}, small), {runs / "s.jsonl", "make room"});
    check_failed(run({"plot", "--run", w.folder / "free", "--out", runs / "p.svg"}, small),
                 {runs / "p.svg", "make room"});
    for (const char* left : {"t", "s.jsonl", "p.svg"}) CHECK_FALSE(fs::exists(runs / left));
}

TEST_CASE("standard output that cannot be written is a failure") {
    const Workbench& w = workbench();
    if (::access("/dev/full", W_OK) != 0) {
        MESSAGE("SKIPPED: there is no /dev/full");
        return;
    }
    const Surroundings full = {RLIM_INFINITY, "/dev/full"};
    check_failed(run({"info", "--model", w.folder / "base", "--json"}, full), {"standard output"});
    check_failed(run(w.evaluation(w.folder / "base"), full), {"standard output"});
    check_failed(run({"stories", "--count", "2", "--out", "-"}, full), {"standard output"});
}

TEST_CASE("a run that diverges stops, says when and after what, and keeps its last good checkpoint") {
    const Workbench& w = workbench();
    TemporaryFolder runs;
    const std::string out = runs / "run";
    const Outcome removal =
        run(w.removal(out, {"--lr", "1e30", "--save-every", "1", "--warmup", "1", "--start-mlp", "1"}));
    check_failed(removal,
                 {"step 2:", "not finite", "1 step after", "was removed", "--lr", out + "/checkpoints/step_000001"});
    CHECK_FALSE(fs::exists(out + "/config.json"));
    CHECK(fs::exists(out + "/checkpoints/step_000001"));
    CHECK_FALSE(
        fs::exists(out + "/checkpoints/step_000002"));  // its weights are finite, but no step can start from them
    succeed(w.evaluation(out + "/checkpoints/step_000001"));
    check_failed(run({"remove", "--resume", "--out", out}), {"step 2:", "not finite"});

    // The last update may be the one that breaks it.
    fs::remove_all(out);
    const Words last = w.training("finetune", w.folder / "base", out,
                                  {"--lr", "1e38", "--warmup", "1", "--stop", "2", "--eval-every", "9"});
    check_failed(run(last), {"step 2:", "not finite", "before any removal"});
    CHECK_FALSE(fs::exists(out + "/config.json"));
    CHECK_FALSE(fs::exists(out + "/model.safetensors"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Output for programs. data/README.md describes every key that is tested here.

// The section of data/README.md under this heading.
std::string documentation_of(const std::string& heading) {
    const std::string text = read_bytes("data/README.md");
    const size_t begin = text.find("\n## " + heading + "\n");
    REQUIRE_MESSAGE(begin != std::string::npos, "data/README.md has no section " << heading);
    return text.substr(begin, text.find("\n## ", begin + 1) - begin);
}

// The object has exactly these keys, and the section describes each of them.
void check_keys(const json& object, const std::set<std::string>& keys, const std::string& heading) {
    CHECK(keys_of(object) == keys);
    const std::string section = documentation_of(heading);
    for (const std::string& key : keys_of(object)) {
        CAPTURE(key);
        CHECK(contains(section, "`" + key + "`"));
    }
}

// Runs a command with --json; standard output must be one JSON object of these keys.
json json_of(Words arguments, const std::set<std::string>& keys) {
    arguments.emplace_back("--json");
    const Outcome outcome = succeed(arguments);
    CAPTURE(outcome.out);
    const json object = json::parse(outcome.out, nullptr, false);
    REQUIRE(object.is_object());
    check_keys(object, keys, "JSON outputs");
    CHECK(object.value("version", 0) == 1);
    return object;
}

const std::set<std::string> run_keys = {
    "version", "out",           "steps",          "tokens",  "val_loss_first",    "val_loss_last",
    "sites",   "sites_removed", "layernorm_free", "seconds", "peak_memory_bytes", "val_loss_change_interval"};
const std::set<std::string> protocol_keys = {"preset",
                                             "steps",
                                             "stop",
                                             "batch",
                                             "seq",
                                             "grad_accum",
                                             "lr",
                                             "min_lr",
                                             "warmup",
                                             "beta1",
                                             "beta2",
                                             "adam_eps",
                                             "clip",
                                             "distill",
                                             "aux_weight",
                                             "removes",
                                             "weight_decay",
                                             "lora",
                                             "lora_embeddings",
                                             "norm_scale",
                                             "sigma_ema",
                                             "start_mlp",
                                             "start_qk",
                                             "start_v",
                                             "start_f",
                                             "gap_mlp",
                                             "gap_qk",
                                             "gap_v",
                                             "seed",
                                             "own_position0",
                                             "release_end_of_text",
                                             "release_position0",
                                             "aux_everywhere",
                                             "aux_relative",
                                             "sigma_skips_position0",
                                             "gradual",
                                             "taper",
                                             "keep_f",
                                             "release_steps",
                                             "shrink_steps",
                                             "shrink_neurons",
                                             "plant_position0",
                                             "plant_step",
                                             "grow_position0",
                                             "precision"};

TEST_CASE("--json prints one object with the documented keys, for every command" * quick) {
    const Workbench& w = workbench();
    TemporaryFolder out;

    const json removal = json_of(w.removal(out / "remove"), run_keys);
    CHECK(removal["out"] == out / "remove");
    CHECK(removal["steps"] == 20);
    CHECK(removal["tokens"] == 20 * 4 * 16);
    CHECK(removal["sites"] == 4);
    CHECK(removal["sites_removed"] == 4);
    CHECK(removal["layernorm_free"] == true);
    CHECK(removal["peak_memory_bytes"] > 1 << 20);
    const json control = json_of(w.training("finetune", w.folder / "base", out / "finetune", {}), run_keys);
    CHECK(control["sites_removed"] == 0);
    CHECK(control["val_loss_first"] == removal["val_loss_first"]);
    json_of(w.with_data({"pretrain", "--out", out / "pretrain", "--n-layer", "1", "--n-head", "1", "--n-embd", "8",
                         "--n-ctx", "16", "--steps", "2"}),
            run_keys);

    std::set<std::string> with_teacher = run_keys;
    with_teacher.insert({"val_kl", "val_agreement", "val_kl_interval", "val_agreement_interval"});
    const json distilled = json_of(w.removal(out / "distilled", {"--distill", "1"}), with_teacher);
    CHECK(distilled["val_kl"] > 0);
    CHECK(distilled["val_agreement"] <= 1);
    for (const char* figure : {"val_kl", "val_agreement"}) {
        const json& interval = distilled[figure + std::string("_interval")];
        CHECK(interval[0] <= distilled[figure]);
        CHECK(distilled[figure] <= interval[1]);
    }
    const double change = removal["val_loss_last"].get<double>() - removal["val_loss_first"].get<double>();
    CHECK(removal["val_loss_change_interval"][0] <= change);
    CHECK(change <= removal["val_loss_change_interval"][1]);
    for (const json& line : log_of(out / "distilled")) {
        if (line.contains("val_loss"))
            check_keys(line, {"step", "val_loss", "val_kl", "val_agreement"}, "log.jsonl");
        else
            check_keys(line, {"step", "loss", "kl", "aux_loss", "grad_norm", "lr", "tokens_per_s", "removed"},
                       "log.jsonl");
    }
    const json record = json_file(out / "distilled/lnfree.json");
    check_keys(record["teacher"], {"folder", "fingerprint"}, "lnfree.json");
    check_keys(record["results"], {"val_loss_first", "val_loss_last", "val_kl", "val_agreement", "val_tokens"},
               "lnfree.json");

    const json eval = json_of(w.evaluation(w.folder / "free", {"--worst", "3"}),
                              {"version", "model", "loss", "perplexity", "tokens", "seq", "windows", "precision",
                               "percentiles", "worst", "layernorm_free", "seconds"});
    CHECK(eval["perplexity"].get<double>() == doctest::Approx(std::exp(eval["loss"].get<double>())));
    CHECK(eval["seq"] == 16);
    CHECK(eval["precision"] == "fp32");
    CHECK(eval["tokens"].get<int>() % 16 == 0);
    REQUIRE(eval["worst"].size() == 3);
    CHECK(eval["worst"][0]["loss"] >= eval["worst"][1]["loss"]);
    check_keys(eval["worst"][0], {"loss", "sequence", "position", "token", "text", "context"}, "JSON outputs");
    check_keys(eval["percentiles"], {"p0.05", "p2.5", "p25", "p50", "p75", "p97.5", "p99.95"}, "JSON outputs");

    const std::string base = w.folder / "base";
    const json compared = json_of(w.evaluation(base, {w.folder / "free", "--baseline", base}), {"version", "models"});
    CHECK_FALSE(compared["models"][0].contains("baseline"));
    const json& beside = compared["models"][1];
    CHECK(beside["baseline"] == base);
    CHECK(beside["loss"].get<double>() == doctest::Approx(eval["loss"].get<double>()).epsilon(1e-6));
    check_keys(
        beside["faithfulness"],
        {"kl", "kl_interval", "agreement", "agreement_interval", "loss_minus_baseline", "loss_minus_baseline_interval"},
        "JSON outputs");
    for (const char* key : {"kl", "agreement", "loss_minus_baseline"}) {
        const json &value = beside["faithfulness"][key],
                   &interval = beside["faithfulness"][key + std::string("_interval")];
        CHECK(interval[0] <= value);
        CHECK(value <= interval[1]);
    }
    const std::string table = succeed(w.evaluation(base, {w.folder / "free", "--baseline", base})).out;
    for (const char* word : {"KL (nats)", "same likeliest token", "95 % intervals"}) CHECK(contains(table, word));

    const json exported = json_of({"export", "--model", w.folder / "free", "--form", "folded", "--out", out / "folded"},
                                  {"version", "out", "form", "dtype", "layernorm_free"});
    CHECK(exported["form"] == "folded");
    CHECK(exported["layernorm_free"] == true);

    const json generated = json_of({"generate", "--model", w.folder / "free", "--prompt", "When", "--max-tokens", "9"},
                                   {"version", "prompt", "text", "tokens"});
    CHECK(generated["prompt"] == "When");
    CHECK(generated["tokens"].size() <= 9);

    const json info =
        json_of({"info", "--model", w.folder / "free"},
                {"version", "model",      "form",         "family",    "norm",          "layernorm_free", "parameters",
                 "n_layer", "n_head",     "n_key_head",   "head_size", "rotary",        "n_embd",         "n_ctx",
                 "n_inner", "vocab_size", "eos_token_id", "tokenizer", "sites_removed", "sites",          "events"});
    CHECK_FALSE(info["sites"][0].contains("sigma_position0"));
    const std::string shard = w.folder / "data/s_val_000000.bin";
    const json measured = json::parse(succeed({"info", "--json", "--model", w.folder / "base", "--data", shard}).out);
    for (const json& site : measured["sites"]) {
        const double at_0 = site["sigma_position0"], elsewhere = site["sigma_elsewhere"];
        CHECK(at_0 > 0);
        CHECK(elsewhere > 0);
        CHECK(site["position0_ratio"].get<double>() == doctest::Approx(at_0 / elsewhere));
    }
    CHECK(contains(succeed({"info", "--model", w.folder / "base", "--data", shard}).out, "sigma at position 0"));
    const json short_ones =
        json::parse(succeed({"info", "--json", "--model", w.folder / "base", "--data", shard, "--seq", "1"}).out);
    CHECK(short_ones["sites"][0]["sigma_elsewhere"].is_null());
    check_refused({"info", "--model", w.folder / "base", "--data", shard, "--seq", "17"}, {"--seq 17", "16"});
    CHECK(info["parameters"] == 7680);
    CHECK(info["sites"].size() == 4);
    CHECK(info["tokenizer"] == "byte");

    const json tokenized =
        json_of({"tokenize", "--input", w.folder / "stories.jsonl", "--out", out / "t"},
                {"version", "documents", "tokens", "files", "bytes", "special_as_text", "skipped_lines", "seconds"});
    check_keys(tokenized["documents"], {"train", "val"}, "JSON outputs");
    check_keys(tokenized["tokens"], {"train", "val"}, "JSON outputs");
    CHECK(tokenized["documents"]["train"].get<int>() + tokenized["documents"]["val"].get<int>() == 60);
    CHECK(tokenized["files"].size() == 3);

    const json bench = json_of({"bench", "--size", "tiny", "--n-layer", "1", "--n-head", "2", "--n-embd", "16",
                                "--batch", "2", "--seq", "9", "--seconds", "0.01", "--threads", "2"},
                               {"version", "machine", "precision", "model", "batch", "seq", "ceiling", "handover_ns",
                                "bf16_speed", "libraries", "step", "evaluation", "one_thread", "ops"});
    CHECK(bench["step"]["seconds"] > 0);
    CHECK(bench["step"]["gflop"].get<double>() * 1e9 > 6.0 * 2 * 9 * (12 * 16 * 16 + 257 * 16));
    CHECK(bench["ops"].size() > 20);
    check_keys(bench["ceiling"], {"gflops", "one_thread_gflops", "gbytes_per_s"}, "JSON outputs");
    double floor = 0;
    for (const json& op : bench["ops"]) {
        CHECK(op["floor_seconds"] > 0);
        floor += op["floor_seconds"].get<double>();
        if (op["bound_by"] == "arithmetic") CHECK(op["of_floor"] < 1);
    }
    CHECK(bench["step"]["floor_seconds"].get<double>() == doctest::Approx(floor));
    CHECK(bench["step"]["of_floor"] < 1);
    CHECK(bench["handover_ns"].is_null() == bench["one_thread"].is_null());  // a build without OpenMP has one thread
    if (!bench["handover_ns"].is_null()) CHECK(bench["handover_ns"] > 0);
    for (const json& library : bench["libraries"])
        check_keys(library, {"name", "kernel", "gflops", "of_peak", "left_out"}, "JSON outputs");

    // What a GPU must do in a step needs no GPU.
    const Words floors = {"bench", "--floors", "--size", "small", "--batch", "16", "--seq", "1024"};
    const auto and_also = [](Words words, const Words& more) {
        words.insert(words.end(), more.begin(), more.end());
        return words;
    };
    const json step = json_of(floors, {"version", "model", "batch", "seq", "precision", "phase", "distill", "gpus",
                                       "recompute", "measured", "ops", "steps"});
    CHECK(step["measured"] == false);
    check_keys(step["ops"][0], {"part", "op", "launches", "calls", "shape", "bytes", "flops", "floors"},
               "JSON outputs");
    check_keys(step["ops"][0]["floors"][0], {"seconds", "bound_by"}, "JSON outputs");
    check_keys(step["gpus"][0], {"gpu", "tbytes_per_s", "tflops"}, "JSON outputs");
    check_keys(step["steps"][0], {"phase", "launches", "bytes", "flops", "seconds"}, "JSON outputs");
    double seconds = 0;
    for (const json& op : step["ops"]) seconds += op["calls"].get<double>() * op["floors"][1]["seconds"].get<double>();
    CHECK(step["steps"][0]["seconds"][1].get<double>() == doctest::Approx(seconds));
    CHECK(step["steps"][0]["flops"].get<double>() / 16384 == doctest::Approx(0.80e9).epsilon(0.01));
    const std::string taught = succeed(and_also(floors, {"--distill", "--phase", "removed", "--recompute", "2"})).out;
    for (const char* word : {"not measured", "distillation_kernel", "FakeLN, remade", "H200 SXM 4.8 TB/s"})
        CHECK(contains(taught, word));
    const std::string markdown = succeed(and_also(floors, {"--markdown"})).out;
    CHECK(contains(markdown, "| classifier_kernel "));
    CHECK_MESSAGE(contains(read_bytes("dev/cuda/STEP.md"), markdown), "scripts/update_readme.sh has not been run");
    check_refused(and_also(floors, {"--phase", "later"}), {"--phase later", "layernorm, apart or removed"});
    check_refused(and_also(floors, {"--precision", "fp32"}), {"--floors", "--precision"});
    check_refused({"bench", "--recompute", "1"}, {"--recompute", "--floors"});
    check_refused(and_also(floors, {"--family", "llama"}), {"--floors", "--family", "GPT-2"});

    const json stories =
        json_of({"stories", "--count", "3", "--out", out / "3.jsonl"}, {"version", "out", "stories", "bytes", "seed"});
    CHECK(stories["bytes"] == read_bytes(out / "3.jsonl").size());
    write_bytes(out / "table.csv", "tokens,auto,paper\n1e5,0.5,0.25\n2e5,0.25,\n4e5,0.125,0.0625\n");
    CHECK(json_of({"plot", "--table", out / "table.csv", "--log-x", "--out", out / "t.svg"},
                  {"version", "out", "runs"})["runs"] == 2);
    CHECK(!contains(read_bytes(out / "t.svg"), ">0.06<"));  // a place of a logarithmic axis alone
    json_of({"plot", "--table", out / "table.csv", "--log-y", "--out", out / "l.svg"}, {"version", "out", "runs"});
    CHECK(contains(read_bytes(out / "l.svg"), ">0.06<"));
    CHECK(json_of({"plot", "--run", w.folder / "free", "--out", out / "p.svg"}, {"version", "out", "runs"})["runs"] ==
          1);
}

TEST_CASE("eval compares several models in one object" * quick) {
    const Workbench& w = workbench();
    const json both =
        json_of(w.evaluation(w.folder / "base", {w.folder / "half", w.folder / "free"}), {"version", "models"});
    REQUIRE(both["models"].size() == 3);
    for (size_t i = 0; i < 3; ++i) {
        const std::string folder = std::vector<std::string>{"base", "half", "free"}[i];
        CAPTURE(folder);
        CHECK(both["models"][i]["model"] == w.folder / folder);
        const json alone = json::parse(succeed(w.evaluation(w.folder / folder, {"--json"})).out);
        CHECK(both["models"][i]["loss"] == alone["loss"]);
        CHECK(both["models"][i]["layernorm_free"] == (folder == "free"));
    }
    const std::string table = succeed(w.evaluation(w.folder / "base", {w.folder / "free"})).out;
    CHECK(contains(table, w.folder / "base"));
    CHECK(contains(table, w.folder / "free"));
}

TEST_CASE("analyze gives the documented keys for several models, and a report of all that can be measured") {
    const Workbench& w = workbench();
    const TemporaryFolder out;
    const auto analyze = [&](const std::string& what, const Words& more) {
        Words arguments = {"analyze",
                           what,
                           "--model",
                           w.folder / "base",
                           w.folder / "free",
                           "--data",
                           w.folder / "data/s_val_000000.bin",
                           "--sequences",
                           "5"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    };
    const std::set<std::string> on_text = {"version", "what", "request", "seq", "sequences", "models"};
    const std::map<std::string, std::set<std::string>> keys = {
        {"loss",
         {"loss", "loss_interval", "median", "range_50", "range_95", "range_99_9", "entropy", "entropy_interval", "ece",
          "final_norm", "per_position", "over_50"}},
        {"dla", {"nmae", "nmae_interval", "nmae_head", "nmae_mlp", "nmae_embedding", "largest_difference"}},
        {"norms", {"residual", "sites"}},
        {"sinks",
         {"threshold", "rate_heads", "rate_heads_interval", "per_layer_heads", "rate_pairs", "rate_pairs_interval",
          "per_layer_pairs"}},
        {"confidence", {"norm", "logit_var", "cn", "top", "singular_values", "cosines", "ablations"}}};
    for (const auto& entry : keys) {
        const auto& what = entry.first;
        auto of_model = entry.second;
        CAPTURE(what);
        std::set<std::string> expected = on_text;
        if (what == "loss") expected.insert("divergences");
        const json j = json_of(analyze(what, {}), expected);
        REQUIRE(j["models"].size() == 2);
        of_model.insert({"model", "layernorm_free"});
        CHECK(keys_of(j["models"][0]) == of_model);
        CHECK(j["models"][0]["layernorm_free"] == false);
        CHECK(j["models"][1]["layernorm_free"] == true);
        CHECK(j["sequences"] == 5);
        CHECK(j["seq"] == 16);
    }
    write_bytes(out / "prompts.json",
                R"({"a": {"prompts": ["Ann met B", "Bea met A"], "answers": [["x", "y"], ["y", "x"]]}})");
    const json patched =
        json_of(analyze("patching", {"--prompts", out / "prompts.json"}), {"version", "what", "request", "models"});
    CHECK(patched["models"][0]["prompts"] == 2);
    CHECK(contains(succeed(analyze("sinks", {"--markdown"})).out, "| model"));

    const Outcome first = succeed(analyze("report", {"--out", out / "report"}));
    CHECK(contains(first.err, "dla"));
    const std::string page = read_bytes(out / "report/report.html");
    CHECK(contains(page, "Direct logit attribution"));
    CHECK(contains(page, "Not measured"));  // the story world's prompts are longer than these models read
    const Outcome again = succeed(analyze("report", {"--out", out / "report"}));
    CHECK_FALSE(contains(again.err, "dla"));  // that was measured already
    CHECK(read_bytes(out / "report/report.html") == page);
    CHECK(json::parse(read_bytes(out / "report/report.json"))["patching"].is_null());
    const std::string overview = succeed(analyze("report", {"--out", out / "report", "--markdown"})).out;
    CHECK(overview.compare(0, 7, "| model") == 0);
}

TEST_CASE("eval and analyze agree on the loss and on every percentile of one model and data" * quick) {
    const Workbench& w = workbench();
    const std::string data = w.folder / "data/s_val_000000.bin";
    for (const char* model : {"base", "free"}) {
        CAPTURE(model);
        const json eval = json::parse(succeed(w.evaluation(w.folder / model, {"--json"})).out);
        const json analyzed = json::parse(succeed({"analyze", "loss", "--json", "--model", w.folder / model, "--data",
                                                   data, "--sequences", "1000000"})
                                              .out);
        REQUIRE(analyzed["sequences"].get<int64_t>() * 16 == eval["tokens"].get<int64_t>());
        const json &one = analyzed["models"][0], &p = eval["percentiles"];
        const auto same = [](const json& a, const json& b) {
            CHECK(a.get<double>() == doctest::Approx(b.get<double>()).epsilon(1e-5));
        };
        same(one["loss"], eval["loss"]);
        same(one["median"], p["p50"]);
        const std::vector<std::pair<const char*, std::pair<const char*, const char*>>> ranges = {
            {"range_50", {"p25", "p75"}}, {"range_95", {"p2.5", "p97.5"}}, {"range_99_9", {"p0.05", "p99.95"}}};
        for (const auto& each : ranges) {
            const auto& [range, ends] = each;
            CAPTURE(each.first);
            same(one[range][0], p[ends.first]);
            same(one[range][1], p[ends.second]);
        }
    }
}

TEST_CASE("analyze refuses what it cannot measure" * quick) {
    const Workbench& w = workbench();
    const TemporaryFolder out;
    const std::string base = w.folder / "base", data = w.folder / "data/s_val_000000.bin";
    check_refused({"analyze", "vibes", "--model", base}, {"\"vibes\"", "--help"});
    check_refused({"analyze", "loss", "--model", base}, {"--data"});
    check_refused({"analyze", "loss", "--data", data}, {"--model"});
    check_refused({"analyze", "loss", "--model", base, "--data", data, "--seq", "17"}, {"--seq 17", "16"});
    check_refused({"analyze", "sinks", "--model", base, "--data", data, "--seq", "1"}, {"--seq 1"});
    check_refused({"analyze", "report", "--model", base, "--data", data}, {"--out"});
    check_refused({"analyze", "report", "--model", base, "--out", out / "report"}, {"--data"});
    check_refused({"analyze", "report", "--model", base, "--data", data, "--out", out / "report", "--parts", "nothing"},
                  {"--parts", "\"nothing\""});
    check_refused({"analyze", "benchmarks", "--model", base}, {"--evals"});
    check_refused({"analyze", "benchmarks", "--model", base, base, "--evals", out / "x", "--choices", out / "c"},
                  {"--choices", "single"});
    check_refused({"analyze", "patching", "--model", base}, {"set story form 1", "16"});
    const auto patching = [&](const std::string& prompts, const Words& words) {
        write_bytes(out / "prompts.json", prompts);
        check_refused({"analyze", "patching", "--model", base, "--prompts", out / "prompts.json"}, words);
    };
    patching("[1]", {"prompts.json", "no file of prompts"});
    patching("{}", {"prompts.json", "no prompts"});
    patching(R"({"s": {"prompts": ["a"], "answers": [["x", "y"]]}})", {"set s", "even"});
    patching(R"({"s": {"prompts": ["a", "bc"], "answers": [["x", "y"], ["y", "x"]]}})",
             {"set s, prompt 1", "2 tokens"});
    patching(R"({"s": {"prompts": ["a", "b"], "answers": [["x", "xy"], ["y", "x"]]}})",
             {"set s, prompt 0", "same token"});
    patching(R"({"s": {"prompts": ["a", "b"], "answers": [["x"], ["y", "x"]]}})", {"set s, prompt 0", "two answers"});
    succeed({"analyze", "norms", "--model", base, "--data", data, "--out", out / "kept"});
    const std::string before = read_bytes(out / "kept/norms.json");
    check_refused({"analyze", "norms", "--model", base, "--data", data, "--out", out / "kept"},
                  {"norms.json", "--force"});
    CHECK(read_bytes(out / "kept/norms.json") == before);
}

TEST_CASE("analyze explain prints, saves and draws what adds up to the logit" * quick) {
    const Workbench& w = workbench();
    const TemporaryFolder out;
    const std::set<std::string> keys = {"version", "what", "model", "layernorm_free", "exact", "explanations"};
    for (const char* model : {"base", "free"}) {
        CAPTURE(model);
        const bool is_free = std::string(model) == "free";
        Words arguments = {"analyze",   "explain",  "--model", w.folder / model, "--prompt", "Ann met B", "--sources",
                           "--neurons", "--target", "e",       "--against",      "#32"};
        if (is_free) arguments.emplace_back("--paths");
        const json j = json_of(arguments, keys);
        CHECK(j["exact"] == is_free);
        const json& e = j["explanations"][0];
        std::set<std::string> of_one = {"prompt",  "tokens",  "texts",     "position",   "target",
                                        "against", "logit",   "sum",       "missed",     "remainder",
                                        "sources", "neurons", "attention", "components", "mlp_biases"};
        if (is_free) of_one.insert("paths");
        check_keys(e, of_one, "JSON outputs");
        CHECK(e["position"] == 8);
        CHECK(e["target"] == json{{"token", 'e'}, {"text", "e"}});
        CHECK(e["against"]["token"] == 32);
        CHECK(e["missed"].is_null() == is_free);
        CHECK(e.contains("paths") == is_free);
        double sum = 0;
        for (const json& c : e["components"]) sum += c["contribution"].get<double>();
        CHECK(sum == doctest::Approx(e["logit"].get<double>()).epsilon(1e-5));
        CHECK(e["components"].size() == 2 + 2 + 2 + 1);
        double from = 0;
        for (const json& x : e["sources"][0][1]) from += x.get<double>();
        CHECK(from == doctest::Approx(e["components"][3]["contribution"].get<double>()).epsilon(1e-4).scale(1));
    }
    const Outcome shown = succeed({"analyze", "explain", "--model", w.folder / "base", "--prompt", "Ann", "--html",
                                   out / "a.html", "--save", out / "a.npz", "--top", "2"});
    CHECK(contains(shown.out, "the other 5"));
    CHECK(contains(shown.out, "ln_f is a LayerNorm"));
    CHECK(read_bytes(out / "a.html").compare(0, 15, "<!DOCTYPE html>") == 0);
    CHECK(read_bytes(out / "a.npz").compare(0, 2, "PK") == 0);
    CHECK_FALSE(
        contains(succeed({"analyze", "explain", "--model", w.folder / "free", "--prompt", "Ann"}).out, "LayerNorm"));

    write_bytes(out / "lines.txt",
                "\xEF\xBB\xBF"
                "Ann met\r\n\n  {Bea}\n");
    const auto with_file = [&](const std::string& name, const Words& more) {
        Words arguments = {"analyze", "explain", "--model", w.folder / "free", "--prompts", out / name};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return json_of(arguments, keys)["explanations"];
    };
    const json lines = with_file("lines.txt", {"--target", "x", "--bos"});
    REQUIRE(lines.size() == 2);
    CHECK(lines[0]["prompt"] == "Ann met");
    CHECK(lines[0]["tokens"][0] == 256);
    CHECK(lines[0]["tokens"].size() == 8);
    CHECK(lines[1]["prompt"] == "  {Bea}");
    write_bytes(out / "lines.jsonl",
                R"({"prompt": "Ann met", "target": "y", "against": "#3"}
{"tokens": [1, 2, 3], "position": 1})");
    const json objects = with_file("lines.jsonl", {"--target", "x"});
    CHECK(objects[0]["target"]["text"] == "y");
    CHECK(objects[0]["against"]["token"] == 3);
    CHECK(objects[1]["target"]["text"] == "x");
    CHECK(objects[1]["against"].is_null());
    CHECK(objects[1]["position"] == 1);
    check_workbench_untouched();
}

TEST_CASE("analyze explain refuses what it cannot explain, and says how it could" * quick) {
    const Workbench& w = workbench();
    const TemporaryFolder out;
    const auto refused = [&](const Words& more, const Words& words) {
        Words arguments = {"analyze", "explain", "--model", w.folder / "base"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        check_refused(arguments, words);
    };
    check_refused({"analyze", "explain", "--prompt", "Ann"}, {"--model", "--help"});
    check_refused({"analyze", "explain", "--model", w.folder / "none", "--prompt", "Ann"}, {"none"});
    check_refused({"analyze"}, {"measurement", "--help"});
    refused({}, {"--prompt TEXT", "--prompts FILE"});
    refused({"--prompt", "Ann", "--prompts", out / "x"}, {"--prompt TEXT"});
    refused({"--prompt", ""}, {"--prompt", "no token", "--bos"});
    refused({"--prompt", "Ann met Bea in town"}, {"19 tokens", "16"});
    refused({"--prompt", "Ann", "--position", "3"}, {"no position 3"});
    refused({"--prompt", "Ann", "--target", "Bea"}, {"--target \"Bea\"", "3 tokens", "\"B\", \"e\", \"a\"", "#ID"});
    refused({"--prompt", "Ann", "--target", "#257"}, {"--target \"#257\"", "257"});
    refused({"--prompt", "Ann", "--against", "#99999999999"}, {"--against"});
    refused({"--prompt", "Ann", "--target", "B", "--against", "#66"}, {"same token"});
    refused({"--prompt", "Ann", "--top", "0"}, {"--top"});
    refused({"--prompt", "Ann", "--paths"}, {"--paths", "site f", "LayerNorm"});
    refused({"--prompt", "Ann", "--save", out / "x.csv"}, {"x.csv", ".safetensors"});
    refused({"--prompt", "Ann", "--html", out.path()}, {"--html", "folder"});
    refused({"--prompts", out / "none.txt"}, {"none.txt"});
    write_bytes(out / "old.html", "old");
    refused({"--prompt", "Ann", "--html", out / "old.html"}, {"old.html", "--force"});
    CHECK(read_bytes(out / "old.html") == "old");
    const auto file_refused = [&](const std::string& text, const Words& words) {
        write_bytes(out / "p.jsonl", text);
        refused({"--prompts", out / "p.jsonl"}, words);
    };
    file_refused("\n \n", {"p.jsonl", "no prompts"});
    file_refused("{\"prompt\": \"a\"}\nplain", {"line 2"});
    file_refused("{\"prompt\": \"a\"}\n[1]", {"line 2", "no JSON object"});
    file_refused("{\"text\": \"a\"}", {"line 1", "\"text\""});
    file_refused("{\"prompt\": \"a\", \"tokens\": [1]}", {"line 1", "either"});
    file_refused("{\"tokens\": [1, 257]}", {"line 1", "257"});
    file_refused("{\"tokens\": \"a\"}", {"line 1"});
    file_refused("{\"prompt\": \"a\", \"target\": \"bc\"}", {"line 1", "target", "\"bc\""});

    const Copy mute("base");
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) fs::remove(mute / name);
    check_refused({"analyze", "explain", "--model", mute.path(), "--prompt", "Ann"}, {"tokenizer files", "\"tokens\""});
    write_bytes(out / "ids.jsonl", "{\"tokens\": [1, 2, 3], \"target\": \"#4\"}");
    CHECK(contains(succeed({"analyze", "explain", "--model", mute.path(), "--prompts", out / "ids.jsonl"}).out, "#4"));
}

TEST_CASE("analyze cache writes what it says, and refuses what it cannot write" * quick) {
    const Workbench& w = workbench();
    const TemporaryFolder out;
    const Words call = {"analyze",  "cache",
                        "--model",  w.folder / "free",
                        "--data",   w.folder / "data/s_val_*.bin",
                        "--hooks",  "blocks.*.hook_mlp_out,hook_embed",
                        "--out",    out / "c.safetensors",
                        "--tokens", "100"};
    const auto with = [&](Words more) {
        more.insert(more.begin(), call.begin(), call.end());
        return more;
    };
    const json j = json_of(call, {"version", "what", "model", "out", "sequences", "seq", "dtype", "bytes", "arrays"});
    CHECK(j["sequences"] == 6);
    CHECK(j["arrays"][1] == json{{"name", "blocks.0.hook_mlp_out"}, {"dtype", "F32"}, {"shape", {6, 16, 16}}});
    CHECK(j["bytes"] == read_bytes(out / "c.safetensors").size());
    check_refused(call, {"c.safetensors", "--force"});
    CHECK(contains(succeed(with({"--force", "--dtype", "bf16"})).out, "BF16"));
    check_refused(with({"--force", "--hooks", "hook_x"}), {"\"hook_x\"", "blocks.L.mlp.hook_post"});
    check_refused(with({"--force", "--seq", "17"}), {"--seq 17"});
    check_refused({"analyze", "cache", "--model", w.folder / "free"}, {"--data"});
    const Outcome full = run(with({"--force"}), {1000, ""});
    CHECK(full.status == 1);
    CHECK(contains(full.err, "make room"));
    CHECK(out.names() == std::set<std::string>{"c.safetensors"});
    check_workbench_untouched();
}

TEST_CASE("--dry-run says what a run would be and writes nothing" * quick) {
    const Workbench& w = workbench();
    std::set<std::string> keys = {"version", "protocol",     "parameters",        "tokens",
                                  "epochs",  "memory_bytes", "estimated_seconds", "schedule"};
    const json removal = json_of(w.removal(nowhere(), {"--dry-run"}), keys);
    check_keys(removal["protocol"], protocol_keys, "lnfree.json");
    CHECK(removal["tokens"] == 20 * 4 * 16);
    CHECK(removal["memory_bytes"] > 4 * 4 * 7680);
    REQUIRE(removal["schedule"].size() == 4);
    CHECK(removal["schedule"][0] == json{{"site", "mlp[0]"}, {"step", 1}});
    CHECK(removal["schedule"][3] == json{{"site", "f"}, {"step", 9}});
    keys.erase("schedule");
    json_of(w.training("finetune", w.folder / "base", nowhere(), {"--dry-run"}), keys);
    json_of(w.with_data({"pretrain", "--out", nowhere(), "--steps", "9", "--dry-run"}), keys);
    const std::string words = succeed(w.removal(nowhere(), {"--dry-run"})).out;
    for (const char* word : {"memory", "time", "f@9", "nothing is written"}) CHECK(contains(words, word));
    check_workbench_untouched();
}

TEST_CASE("log.jsonl has one line per step, and validations between them, with the documented keys" * quick) {
    const Workbench& w = workbench();
    std::vector<int> steps, validations;
    std::vector<std::string> removed;
    for (const json& line : log_of(w.folder / "free")) {
        if (line.contains("val_loss")) {
            check_keys(line, {"step", "val_loss"}, "log.jsonl");
            validations.push_back(line["step"]);
            continue;
        }
        check_keys(line, {"step", "loss", "aux_loss", "grad_norm", "lr", "tokens_per_s", "removed"}, "log.jsonl");
        steps.push_back(line["step"]);
        for (const json& site : line["removed"]) removed.push_back(site);
    }
    REQUIRE(steps.size() == 20);
    for (int s = 0; s < 20; ++s) CHECK(steps[static_cast<size_t>(s)] == s);
    CHECK(validations == std::vector<int>{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20});
    CHECK(removed == Words{"mlp[0]", "qk[0]", "v[0]", "f"});
}

TEST_CASE("lnfree.json records the whole protocol, the data, and what happened when" * quick) {
    const Workbench& w = workbench();
    const std::set<std::string> keys = {"version",   "form",     "command", "finished", "layernorm_free",
                                        "step",      "protocol", "sites",   "events",   "data",
                                        "tokenizer", "results",  "based_on"};
    const json free = json_file(w.folder / "free/lnfree.json");
    check_keys(free, keys, "lnfree.json");
    CHECK(free["version"] == 1);
    CHECK(free["form"] == "hf");
    CHECK(free["command"] == "remove");
    CHECK(free["finished"] == true);
    CHECK(free["layernorm_free"] == true);
    check_keys(free["protocol"], protocol_keys, "lnfree.json");
    REQUIRE(free["sites"].size() == 4);
    check_keys(free["sites"][0], {"site", "norm", "sigma_bar", "sigma_avg", "running"}, "lnfree.json");
    REQUIRE(free["events"].size() == 4);
    check_keys(free["events"][0], {"step", "site", "action", "sigma_bar"}, "lnfree.json");
    CHECK(free["events"][3]["site"] == "f");
    CHECK(free["events"][3]["step"] == 18);
    CHECK(free["events"][3]["sigma_bar"] == free["sites"][3]["sigma_bar"]);
    for (const char* split : {"train", "val"})
        check_keys(free["data"][split], {"files", "tokens", "fingerprint"}, "lnfree.json");
    check_keys(free["tokenizer"], {"name", "fingerprint", "vocab_size"}, "lnfree.json");
    check_keys(free["results"], {"val_loss_first", "val_loss_last", "val_tokens"}, "lnfree.json");
    CHECK(free["based_on"]["command"] == "pretrain");

    std::set<std::string> checkpoint_keys = keys;
    checkpoint_keys.insert({"resume", "checkpoint_version"});
    const json half = json_file(w.folder / "half/lnfree.json");
    check_keys(half, checkpoint_keys, "lnfree.json");
    CHECK(half["form"] == "checkpoint");
    CHECK(half["finished"] == false);
    check_keys(half["resume"],
               {"model", "data", "val", "eval_every", "val_tokens", "save_every", "keep_checkpoints", "adam_updates",
                "stochastic_rounding", "attention", "data_fingerprint"},
               "lnfree.json");
    CHECK(half["step"] == 16);
    CHECK(json_file(w.folder / "half/config.json")["model_type"] == "gpt2_lnfree_checkpoint");
    CHECK(json_file(w.folder / "free/config.json")["layer_norm_epsilon"] == 1e12);
}

// ---------------------------------------------------------------------------------------------------------------------
// All together

TEST_CASE("from stories to a LayerNorm-free model in both forms, with equal losses" * quick) {
    const Workbench& w = workbench();
    TemporaryFolder out;
    for (const char* form : {"hf", "folded"}) {
        succeed({"export", "--model", w.folder / "free", "--form", form, "--out", out / form});
    }
    succeed({"export", "--model", w.folder / "free", "--dtype", "bf16", "--out", out / "bf16"});
    succeed({"export", "--model", out / "hf", "--form", "folded", "--out", out / "folded_again"});
    const double loss = json::parse(succeed(w.evaluation(w.folder / "free", {"--json"})).out)["loss"];
    for (const char* name : {"hf", "folded", "folded_again", "bf16"}) {
        CAPTURE(name);
        const json eval = json::parse(succeed(w.evaluation(out / name, {"--json"})).out);
        CHECK(eval["loss"].get<double>() == doctest::Approx(loss).epsilon(name == std::string("bf16") ? 1e-2 : 1e-4));
        CHECK(eval["layernorm_free"] == true);
        CHECK(succeed({"info", "--model", out / name}).out.size() > 100);
    }
    CHECK(loss < 4.5);  // guessing: ln 257 = 5.55

    const auto text = [&](const std::string& model, const char* seed) {
        return succeed({"generate", "--model", model, "--prompt", "When ", "--max-tokens", "40", "--seed", seed}).out;
    };
    const std::string story = text(out / "hf", "3");
    CHECK(story.substr(0, 5) == "When ");
    CHECK(text(out / "hf", "3") == story);
    CHECK(text(out / "hf", "4") != story);

    // The finished model is trained further as it is: nothing comes back.
    succeed(w.training("finetune", out / "hf", out / "further", {}));
    const json info = json::parse(succeed({"info", "--json", "--model", out / "further"}).out);
    CHECK(info["layernorm_free"] == true);
    CHECK(info["sites_removed"] == 4);
}

TEST_CASE("the same command gives the same bytes, with any number of threads") {
    const Workbench& w = workbench();
    TemporaryFolder out;
    succeed(w.removal(out / "one", {"--start-f", "18", "--save-every", "8", "--threads", "1"}));
    succeed(w.removal(out / "three", {"--start-f", "18", "--save-every", "8", "--threads", "3"}));
    const std::string weights = read_bytes(w.folder / "free/model.safetensors");
    CHECK(read_bytes(out / "one/model.safetensors") == weights);
    CHECK(read_bytes(out / "three/model.safetensors") == weights);
}
