#include "data/model_argument.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "data/files.h"
#include "data/text.h"
#include "data/zip_archive.h"

namespace lnfree {

namespace fs = std::filesystem;

namespace {

constexpr const char* needed = "; --model takes a folder with config.json and model.safetensors";

bool is_folder(const std::string& path) {
    std::error_code ignored;
    return fs::is_directory(path, ignored);
}

bool exists(const std::string& path) {
    std::error_code ignored;
    return fs::exists(path, ignored);
}

bool has_config(const std::string& folder) {
    return exists(folder + "/config.json");
}

// Subfolders by name, at most some.
std::vector<std::string> folders_in(const std::string& folder) {
    constexpr size_t most = 1000;
    std::vector<std::string> found;
    std::error_code error;
    for (fs::directory_iterator it(folder, error), end; !error && it != end && found.size() < most; it.increment(error))
        if (is_folder(it->path().string())) found.push_back(it->path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
}

// ---------------------------------------------------------------------------------------------------------------------
// Names of models

// The four original GPT-2s come by script.
std::string size_of_original(std::string name) {
    for (const std::string owner : {"openai-community/", "gpt2/", "models/"})
        if (begins_with(name, owner)) name.erase(0, owner.size());
    if (name == "gpt2" || name == "gpt2-small") return "small";
    for (std::string size : {"medium", "large", "xl"})
        if (name == "gpt2-" + size) return size;
    return "";
}

// OWNER/NAME, as Hugging Face's hub has them; no path that someone has mistyped.
bool is_hub_name(const std::string& name) {
    const auto plain = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               std::strchr("-_.", c) != nullptr;
    };
    const size_t slash = name.find('/');
    if (slash == std::string::npos) return name == "distilgpt2";
    return slash > 0 && slash + 1 < name.size() && name[0] != '.' && std::count(name.begin(), name.end(), '/') == 1 &&
           std::all_of(name.begin(), name.end(), [&](char c) { return c == '/' || plain(c); });
}

BadInput nothing_there(const std::string& name) {
    const std::string size = size_of_original(name);
    if (!size.empty()) {
        const std::string folder = "models/gpt2-" + size;
        if (has_config(folder))
            return BadInput(name + ": no such folder; it lies in " + folder + ": --model " + folder);
        return BadInput(name + ": no such folder; `scripts/download_gpt2.sh " + size +
                        "` fetches this model, then give --model " + folder);
    }
    if (is_hub_name(name))
        return BadInput(name + ": no such folder" + needed + "; for a model of Hugging Face's hub: `hf download " +
                        name + " --local-dir FOLDER`, then --model FOLDER");
    return BadInput(name + ": no such folder" + needed);
}

// ---------------------------------------------------------------------------------------------------------------------
// Folders

// The snapshot to read in a folder of Hugging Face's cache; empty if it is none.
std::string snapshot_in(const std::string& folder) {
    const std::string snapshots = folder + "/snapshots";
    std::vector<std::string> complete;
    for (const std::string& name : folders_in(snapshots))
        if (has_config(snapshots + "/" + name)) complete.push_back(name);
    std::string main;
    if (exists(folder + "/refs/main")) main = read_file(folder + "/refs/main", 4096);
    while (!main.empty() && main.back() <= ' ') main.pop_back();
    if (std::find(complete.begin(), complete.end(), main) != complete.end()) return snapshots + "/" + main;
    if (complete.size() > 1)
        throw BadInput(folder + ": holds several snapshots of a model; name one: --model " + snapshots + "/" +
                       complete[0]);
    return complete.empty() ? "" : snapshots + "/" + complete[0];
}

// A model further down: a trainer's checkpoint-500, a snapshot of a cache, a run of this program that is not finished.
std::string model_below(const std::string& folder) {
    std::string last;
    for (const std::string& name : folders_in(folder)) {
        const std::string below = folder + "/" + name;
        if (has_config(below)) last = below;
        for (const std::string& deeper : folders_in(below))
            if (has_config(below + "/" + deeper)) last = below + "/" + deeper;
    }
    return last;
}

BadInput no_config(const std::string& folder) {
    const std::string without = folder + ": has no config.json";
    if (exists(folder + "/adapter_config.json"))
        return BadInput(
            without +
            ": it holds an adapter, not a model; merge it into its model: model.merge_and_unload() of peft, "
            "then save_pretrained");
    const std::string below = model_below(folder);
    if (!below.empty()) return BadInput(without + ", but " + below + " does: give --model " + below);
    return BadInput(without + needed);
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

// What files begin with, and what they are. The numbers are llm.c's.
struct KnownFile {
    std::string begin;
    const char* what;
};

std::string int32_bytes(int32_t number) {
    return std::string(reinterpret_cast<const char*>(&number), sizeof(number));
}

const std::vector<KnownFile>& known_files() {
    static const std::vector<KnownFile> files = {
        {int32_bytes(20240326),
         "a model of llm.c, which is not read; llm.c's dev/eval/export_hf.py writes a folder of it, "
         "and the original GPT-2s come by scripts/download_gpt2.sh"},
        {int32_bytes(20240327), "the state of llm.c's tests; scripts/download_gpt2.sh fetches the model that it is of"},
        {int32_bytes(20240520), "token shards, not a model; give it to --data"},
        {int32_bytes(20240801), "token shards, not a model; give it to --data"},
        {"GGUF", "a model for llama.cpp (GGUF), mostly quantised, which is not read; take the folder it was made from"},
        {"\x89HDF", "weights for TensorFlow or Keras (HDF5), which are not read; take the model's PyTorch weights"},
        {"\x1f\x8b", "compressed with gzip; unpack it and name the folder"},
        {"BZh", "compressed with bzip2; unpack it and name the folder"},
        {"\xfd"
         "7zXZ",
         "compressed with xz; unpack it and name the folder"},
        {"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it and name the folder"},
        {"\x93NUMPY", "an array of NumPy"},
        {"version https://git-lfs", "only a Git LFS pointer; fetch what it stands for with `git lfs pull`"},
    };
    return files;
}

bool looks_like_safetensors(const MappedFile& file) {
    return file.size() > 8 && file.data()[8] == '{';
}

// A file that was saved by torch is left to its reader, which knows best.
bool is_of_torch(const MappedFile& file) {
    return begins_as_zip(file.data(), file.size()) ||
           (file.size() > 2 && file.data()[0] == 0x80 && file.data()[1] == 2);
}

BadInput a_file(const MappedFile& file) {
    const std::string begin = file.path() + ": is a file: ", folder = folder_of(file.path());
    for (const KnownFile& known : known_files())
        if (file.size() >= known.begin.size() && std::memcmp(file.data(), known.begin.data(), known.begin.size()) == 0)
            return BadInput(begin + known.what);
    const bool json = file.size() > 0 && file.data()[0] == '{';
    if ((looks_like_safetensors(file) || json) && has_config(folder))
        return BadInput(begin + "a part of the model in " + folder + "; give --model " + folder);
    if (looks_like_safetensors(file))
        return BadInput(begin + "weights (safetensors) without the config.json that belongs to them" + needed);
    return BadInput(begin.substr(0, begin.size() - 2) + ", and no model" + needed);
}

}  // namespace

std::string find_model(const std::string& name, std::vector<std::string>& notes) {
    if (!exists(name)) throw nothing_there(name);
    if (!is_folder(name)) {
        const MappedFile file(name);
        if (!is_of_torch(file)) throw a_file(file);
        return name;
    }
    if (has_config(name)) return name;
    if (exists(name + "/ckpt.pt")) return name + "/ckpt.pt";
    std::string snapshot = snapshot_in(name);
    if (snapshot.empty()) throw no_config(name);
    notes.push_back(name + ": a folder of Hugging Face's cache; read is " + snapshot);
    return snapshot;
}

}  // namespace lnfree
