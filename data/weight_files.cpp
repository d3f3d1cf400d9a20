#include "data/weight_files.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>
#include <utility>

#include "data/safetensors.h"
#include "data/torch_file.h"
#include "data/zip_archive.h"

namespace lnfree {

namespace fs = std::filesystem;

namespace {

bool exists(const std::string& path) {
    std::error_code ignored;
    return fs::exists(path, ignored);
}

// What is in a file decides, and where that says nothing, what its name promises.
enum class Format { safetensors, torch };
Format format_of(const MappedFile& file, Format promised) {
    if (begins_as_zip(file.data(), file.size())) return Format::torch;
    const bool has_header = file.size() > 8 && file.data()[8] == '{';
    return has_header ? Format::safetensors : promised;
}

// The two ways in which transformers names weights, the one that it prefers first.
struct Naming {
    std::string stem, extension;
    Format format;

    std::string single() const { return stem + extension; }
    std::string index() const { return single() + ".index.json"; }
    std::string part(int i, int n) const {
        char numbers[32];
        std::snprintf(numbers, sizeof(numbers), "-%05d-of-%05d", i, n);
        return stem + numbers + extension;
    }
};
const Naming& safetensors_naming() {
    static const Naming naming = {"model", ".safetensors", Format::safetensors};
    return naming;
}
const Naming& torch_naming() {
    static const Naming naming = {"pytorch_model", ".bin", Format::torch};
    return naming;
}

// All parts of a model by their names alone, none if there is no part. BadInput if one is missing.
std::vector<std::string> parts_of(const std::string& folder, const Naming& naming) {
    constexpr int most = 1000;
    std::vector<std::string> names;
    for (int n = 1; n <= most && names.empty(); n++) {
        if (!exists(folder + "/" + naming.part(1, n))) continue;
        for (int i = 1; i <= n; i++) names.push_back(naming.part(i, n));
    }
    for (const std::string& name : names)
        if (!exists(folder + "/" + name))
            throw BadInput(folder + " lacks " + name + ", a part of its weights; fetch it");
    return names;
}

// What folders without weights that can be read hold instead, and what helps.
struct Instead {
    const char* file;
    const char* advice;
};
constexpr Instead instead_of_weights[] = {
    {"adapter_model.safetensors",
     "an adapter, not a model; merge it into its model: model.merge_and_unload() of peft, "
     "then save_pretrained"},
    {"adapter_model.bin",
     "an adapter, not a model; merge it into its model: model.merge_and_unload() of peft, then "
     "save_pretrained"},
    {"zero_to_fp32.py", "a checkpoint of DeepSpeed; its zero_to_fp32.py writes pytorch_model.bin"},
    {"tf_model.h5",
     "weights for TensorFlow; a transformers before version 5 converts them: "
     "AutoModelForCausalLM.from_pretrained(FOLDER, from_tf=True).save_pretrained(NEW)"},
    {"flax_model.msgpack",
     "weights for Flax; a transformers before version 5 converts them: "
     "AutoModelForCausalLM.from_pretrained(FOLDER, from_flax=True).save_pretrained(NEW)"},
    {"model.ckpt.index", "OpenAI's weights for TensorFlow; the same model comes by scripts/download_gpt2.sh"},
    {"pytorch_model.bin.index.json", "an index that names no tensor, and none of its files; fetch both again"},
    {"model.safetensors.index.json", "an index that names no tensor, and none of its files; fetch both again"},
};

BadInput no_weights(const std::string& folder) {
    const std::string none =
        folder + " holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index";
    for (const Instead& other : instead_of_weights)
        if (exists(folder + "/" + other.file))
            return BadInput(none + " of their parts; it has " + other.file + ": " + other.advice);
    return BadInput(none + " of their parts; fetch one of them");
}

}  // namespace

std::map<std::string, std::string> parse_weight_map(const std::string& text, const std::string& source) {
    const Json index = parse_json(text, source);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
        throw BadInput(source + " is not an index of weights: it has no object \"weight_map\"");
    }
    std::map<std::string, std::string> files;
    for (const auto& [tensor, file] : index["weight_map"].items()) {
        if (!file.is_string())
            throw BadInput(source + ": the tensor " + quoted_name(tensor) + " is not given a file name");
        const std::string name = file.get<std::string>();
        const bool plain = name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
        if (!plain || name.empty() || name == "." || name == "..") {
            throw BadInput(source + ": the tensor " + quoted_name(tensor) + " is said to lie in " + quoted_name(name) +
                           ", which is not the plain name of a file in the same folder");
        }
        files[tensor] = name;
    }
    return files;
}

void WeightFiles::add_file(const std::string& path, bool torch) {
    maps_.emplace_back(path);
    const MappedFile& map = maps_.back();
    std::vector<TensorView> tensors;
    if (format_of(map, torch ? Format::torch : Format::safetensors) == Format::safetensors) {
        tensors = parse_safetensors(map.data(), map.size(), path).tensors;
    } else {
        TorchContents contents = parse_torch_file(map.data(), map.size(), path);
        tensors = std::move(contents.tensors);
        model_args_ = std::move(contents.model_args);
    }
    for (TensorView& tensor : tensors) {
        tensor.mapped = true;
        tensors_.push_back(std::move(tensor));
    }
}

// Tensors that the index does not list are taken all the same, as transformers does; one that it places elsewhere shows that
// index and file are of different models.
void WeightFiles::add_indexed(const std::string& folder, const std::string& index,
                              const std::map<std::string, std::string>& file_of_tensor, bool torch) {
    std::set<std::string> files, held;
    for (const auto& [tensor, file] : file_of_tensor) files.insert(file);
    for (const std::string& file : files) {
        const std::string path = (fs::path(folder) / file).string();
        const size_t before = tensors_.size();
        add_file(path, torch);
        for (size_t i = before; i < tensors_.size(); i++) {
            const std::string& name = tensors_[i].name;
            const auto listed = file_of_tensor.find(name);
            if (!held.insert(name).second || (listed != file_of_tensor.end() && listed->second != file))
                throw BadInput(path + " holds the tensor " + quoted_name(name) + " that " + index +
                               " does not place there; fetch both again");
        }
    }
    for (const auto& [tensor, file] : file_of_tensor)
        if (held.count(tensor) == 0)
            absent_.push_back({tensor, (fs::path(folder) / file).string() + " lacks the tensor " + quoted_name(tensor) +
                                           " that " + index + " says it holds; fetch both again"});
}

WeightFiles WeightFiles::of_folder(const std::string& folder) {
    constexpr uint64_t longest_index = 64 << 20;
    WeightFiles weights;
    for (const Naming* naming : {&safetensors_naming(), &torch_naming()}) {
        const std::string single = (fs::path(folder) / naming->single()).string();
        const std::string index = (fs::path(folder) / naming->index()).string();
        const bool torch = naming->format == Format::torch;
        if (exists(single)) {
            weights.add_file(single, torch);
            return weights;
        }
        const auto listed = exists(index) ? parse_weight_map(read_file(index, longest_index), index)
                                          : std::map<std::string, std::string>();
        if (!listed.empty()) {
            weights.add_indexed(folder, index, listed, torch);
            return weights;
        }
    }
    for (const Naming* naming : {&safetensors_naming(), &torch_naming()}) {
        const std::vector<std::string> parts = parts_of(folder, *naming);
        for (const std::string& part : parts)
            weights.add_file((fs::path(folder) / part).string(), naming->format == Format::torch);
        if (!parts.empty()) return weights;
    }
    throw no_weights(folder);
}

WeightFiles WeightFiles::of_torch_file(const std::string& path) {
    WeightFiles weights;
    weights.add_file(path, true);
    return weights;
}

}  // namespace lnfree
