#include "data/model_folder.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

#include "data/files.h"
#include "data/json.h"
#include "data/model_config.h"

namespace lnfree {

namespace fs = std::filesystem;

// ---------------------------------------------------------------------------------------------------------------------
// Reading

Json parse_lnfree_json(const std::string& text, const std::string& path) {
    Json j = parse_json(text, path);
    if (!j.is_object() || !j.contains("version") || !j["version"].is_number_integer())
        throw BadInput(path + ": not a lnfree.json (no version)");
    if (j["version"].get<int>() != kFormatVersion)
        throw BadInput(path + ": version " + j["version"].dump() + " is not supported; this program reads version " +
                       std::to_string(kFormatVersion));
    return j;
}

Json read_lnfree_json(const std::string& folder) {
    const std::string path = folder + "/lnfree.json";
    return fs::exists(path) ? parse_lnfree_json(read_file(path, 64 << 20), path) : Json();
}

std::string without_prefix(const std::string& name) {
    const std::string prefix = "transformer.";
    return name.compare(0, prefix.size(), prefix) == 0 ? name.substr(prefix.size()) : name;
}

bool is_attention_mask(const std::string& name) {
    const auto ends_with = [&](const std::string& end) {
        return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
    };
    return name.compare(0, 2, "h.") == 0 && (ends_with(".attn.bias") || ends_with(".attn.masked_bias"));
}

std::vector<TensorView> match_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                      bool tied_head, const std::string& folder) {
    std::map<std::string, const TensorView*> by_name;
    for (const TensorView& view : found)
        if (!by_name.emplace(without_prefix(view.name), &view).second)
            throw BadInput(folder + ": tensor " + without_prefix(view.name) +
                           " is there twice, with and without the prefix transformer.");
    std::vector<TensorView> matched;
    for (const Tensor& t : table) {
        const auto it = by_name.find(t.name);
        if (it == by_name.end())
            throw BadInput(folder + ": tensor " + t.name +
                           " is missing, but config.json describes a model that has it; take both from one model");
        if (it->second->shape != t.shape)
            throw BadInput(folder + ": tensor " + t.name + " has shape " + Json(it->second->shape).dump() +
                           ", but config.json asks for " + Json(t.shape).dump() + "; take both from one model");
        matched.push_back(*it->second);
        by_name.erase(it);
    }
    if (tied_head && by_name.count("lm_head.weight")) {
        const TensorView &head = *by_name["lm_head.weight"], &wte = matched[0];
        if (head.dtype != wte.dtype || head.bytes != wte.bytes || std::memcmp(head.data, wte.data, head.bytes) != 0)
            throw BadInput(folder +
                           ": lm_head.weight differs from wte.weight; models with an untied head are not supported");
        by_name.erase("lm_head.weight");
    }
    for (const auto& [name, view] : by_name)
        if (!is_attention_mask(name))
            throw BadInput(folder + ": tensor " + quoted_name(view->name) +
                           " is not part of a GPT-2 model; adapters and other architectures are not supported");
    return matched;
}

template <class T>
void require_finite(const Tensor& t, const T* values, const std::string& folder) {
    for (int64_t i = 0; i < t.size; i++)
        if (!std::isfinite(values[i]))
            throw BadInput(folder + ": tensor " + t.name + " holds a value that is not finite at element " +
                           std::to_string(i) +
                           "; fetch the weights again, or take those from before the model diverged");
}

template <class T>
void copy_tensors(T* to, const std::vector<Tensor>& table, const std::vector<TensorView>& views,
                  const std::string& folder) {
    for (size_t i = 0; i < table.size(); i++) {
        copy_tensor(views[i], to + table[i].offset);
        require_finite(table[i], to + table[i].offset, folder);
    }
}

template void require_finite(const Tensor&, const float*, const std::string&);
template void require_finite(const Tensor&, const double*, const std::string&);
template void copy_tensors(float*, const std::vector<Tensor>&, const std::vector<TensorView>&, const std::string&);
template void copy_tensors(double*, const std::vector<Tensor>&, const std::vector<TensorView>&, const std::string&);

std::unique_ptr<Tokenizer> tokenizer_of_folder(const std::string& folder) {
    for (const char* file : {"/tokenizer.json", "/vocab.json", "/encoder.json"})
        if (fs::exists(folder + file)) return load_tokenizer(folder);
    return nullptr;
}

ModelFolder::ModelFolder(std::string path) : path_(std::move(path)) {
    const char* const needed = "; --model takes a folder with config.json and model.safetensors";
    if (!fs::is_directory(path_)) throw BadInput(path_ + ": no such folder" + needed);
    if (!fs::exists(path_ + "/config.json")) throw BadInput(path_ + ": has no config.json" + needed);
    config_ = read_config(path_);
    if (config_.form == ModelForm::hugging_face) {
        stock_ = std::make_unique<SafetensorsFolder>(path_);
    } else {
        own_ = std::make_unique<SafetensorsFile>(path_ + "/weights.safetensors");
    }
}

std::vector<TensorView> ModelFolder::tensors(const std::vector<Tensor>& table) const {
    const bool tied_head = config_.form != ModelForm::folded;
    return match_tensors(table, stock_ ? stock_->tensors() : own_->tensors(), tied_head, path_);
}

Json ModelFolder::lnfree() const {
    return read_lnfree_json(path_);
}

std::unique_ptr<Tokenizer> ModelFolder::tokenizer() const {
    return tokenizer_of_folder(path_);
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

const char* torch_dtype_name(DType dtype) {
    switch (dtype) {
        case DType::F16:
            return "float16";
        case DType::BF16:
            return "bfloat16";
        case DType::F64:
            return "float64";
        default:
            return "float32";
    }
}

template <class T>
void write_model_folder(const std::string& folder, const GPT2Config& config, const TensorRecipes<T>& recipes,
                        DType dtype, const Json& lnfree, const Tokenizer* tokenizer, const std::string& card) {
    fs::create_directories(folder);
    const bool stock = config.form == ModelForm::hugging_face;
    if (tokenizer != nullptr) tokenizer->save(folder);
    write_safetensors<T>(folder + (stock ? "/model.safetensors" : "/weights.safetensors"), recipes, dtype,
                         {{"format", "pt"}});
    write_file_atomically(folder + "/lnfree.json", lnfree.dump(2) + "\n");
    if (!card.empty()) write_file_atomically(folder + "/README.md", card);
    if (stock && config.end_of_text >= 0) {
        Json generation;
        generation["bos_token_id"] = generation["eos_token_id"] = config.end_of_text;
        write_file_atomically(folder + "/generation_config.json", generation.dump(2) + "\n");
    }
    write_file_atomically(folder + "/config.json", config_json(config, torch_dtype_name(dtype)).dump(2) + "\n");
    fsync_folder(folder);
}

template void write_model_folder(const std::string&, const GPT2Config&, const TensorRecipes<float>&, DType, const Json&,
                                 const Tokenizer*, const std::string&);
template void write_model_folder(const std::string&, const GPT2Config&, const TensorRecipes<double>&, DType,
                                 const Json&, const Tokenizer*, const std::string&);

void remove_model_files(const std::string& folder) {
    for (const char* name : {"config.json", "generation_config.json", "lnfree.json", "README.md", "model.safetensors",
                             "weights.safetensors", "tokenizer.json", "tokenizer_config.json",
                             "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json"})
        fs::remove(fs::path(folder) / name);
}

void require_other_folder(const std::string& out, const std::string& model) {
    if (model.empty() || !fs::exists(out)) return;
    if (fs::equivalent(out, model)) throw BadInput("--out " + out + " is the --model folder itself; choose another");
    const fs::path from_out = fs::canonical(model).lexically_relative(fs::canonical(out));
    if (*from_out.begin() != "..")
        throw BadInput("--out " + out + " holds the --model folder " + model + "; choose another");
}

}  // namespace lnfree
