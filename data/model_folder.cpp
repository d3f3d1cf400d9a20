#include "data/model_folder.h"

#include <cmath>
#include <filesystem>

#include "data/files.h"
#include "data/json.h"
#include "data/model_argument.h"

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

template <class T>
void require_finite(const Tensor& t, const T* values, const std::string& folder) {
    for (int64_t i = 0; i < t.size; i++)
        if (!std::isfinite(values[i]))
            throw BadInput(folder + ": tensor " + t.name + " holds a value that is not finite at element " +
                           std::to_string(i) +
                           "; fetch the weights again, or take those from before the model diverged");
}

// A piece that the file has in another layout passes through memory of its own.
template <class T>
static void copy_piece(T* to, const Tensor& t, const MatchedPiece& from, const std::string& folder) {
    Tensor in_file = t;
    in_file.name = from.view.name;
    in_file.size = static_cast<int64_t>(from.piece.count());
    std::vector<T> other_layout(from.piece.is_whole() ? 0 : from.piece.count());
    T* const values = from.piece.is_whole() ? to : other_layout.data();
    copy_tensor(from.view, values);
    require_finite(in_file, values, folder);
    if (!from.piece.is_whole()) put_piece(from.piece, values, to, t.shape);
}

template <class T>
void copy_tensors(T* to, const std::vector<Tensor>& table, const std::vector<MatchedTensor>& matched,
                  const std::string& folder) {
    for (size_t i = 0; i < table.size(); i++)
        for (const MatchedPiece& piece : matched[i]) copy_piece(to + table[i].offset, table[i], piece, folder);
}

template void require_finite(const Tensor&, const float*, const std::string&);
template void require_finite(const Tensor&, const double*, const std::string&);
template void copy_tensors(float*, const std::vector<Tensor>&, const std::vector<MatchedTensor>&, const std::string&);
template void copy_tensors(double*, const std::vector<Tensor>&, const std::vector<MatchedTensor>&, const std::string&);

FolderTokenizer tokenizer_of_folder(const std::string& folder) {
    const auto has = [&](const char* file) { return fs::exists(fs::path(folder) / file); };
    const bool bpe = (has("vocab.json") && has("merges.txt")) || (has("encoder.json") && has("vocab.bpe"));
    if (bpe || has("tokenizer.json")) {
        try {
            return {load_tokenizer(folder), ""};
        } catch (const BadInput& refused) {
            return {nullptr, refused.what()};
        }
    }
    for (const char* of_bpe : {"vocab.json", "encoder.json"})
        if (has(of_bpe)) return {nullptr, folder + "/" + of_bpe + " has no merges beside it, as byte-level BPE has"};
    for (const char* other : {"vocab.txt", "spiece.model", "spm.model", "tokenizer.model", "sentencepiece.bpe.model"})
        if (has(other)) return {nullptr, folder + "/" + other + " is not of GPT-2's byte-level BPE"};
    return {};
}

namespace {

BadInput no_model_args(const std::string& path) {
    const std::string folder = folder_of(path);
    const bool of_folder = fs::exists(folder + "/config.json");
    return BadInput(path + ": is a file of torch.save without the \"model_args\" of nanoGPT; " +
                    (of_folder ? "it may be a part of the model in " + folder + ": give --model " + folder
                               : "weights alone need a config.json beside them: put both into a folder, the weights as "
                                 "pytorch_model.bin, and name that"));
}

}  // namespace

ModelFolder::ModelFolder(const std::string& name) : path_(find_model(name, notes_)) {
    if (!fs::is_directory(path_)) {
        stock_ = std::make_unique<WeightFiles>(WeightFiles::of_torch_file(path_));
        if (stock_->model_args().is_null()) throw no_model_args(path_);
        config_ = parse_nanogpt_config(stock_->model_args(), path_);
        return;
    }
    config_ = read_config(path_, &options_);
    if (config_.form == ModelForm::hugging_face) {
        stock_ = std::make_unique<WeightFiles>(WeightFiles::of_folder(path_));
    } else {
        own_ = std::make_unique<SafetensorsFile>(path_ + "/weights.safetensors");
    }
}

std::vector<MatchedTensor> ModelFolder::tensors(const std::vector<Tensor>& table) {
    if (own_) return match_tensors(table, own_->tensors(), path_);
    for (const WeightFiles::Absent& absent : stock_->absent())
        if (!is_head_or_embedding(absent.name)) throw BadInput(absent.message);
    return match_stock_tensors(config_, options_, table, stock_->tensors(), path_, notes_);
}

template <class T>
void ModelFolder::fold_options(T* params, const std::vector<Tensor>& table) const {
    const auto C = static_cast<uint64_t>(config_.C);
    const double head_width = static_cast<double>(config_.C) / static_cast<double>(config_.NH);
    for (int64_t l = 0; l < config_.L; l++) {
        const double width = options_.scores_over_width ? 1 : std::sqrt(head_width);
        const double factor = width / (options_.scores_over_layer ? static_cast<double>(l + 1) : 1);
        if (factor == 1) continue;
        const std::string c_attn = "h." + std::to_string(l) + ".attn.c_attn.";
        for (const Tensor& t : table) {  // weight (C,3C), bias (3C): the first C of every row make queries
            if (t.name != c_attn + "weight" && t.name != c_attn + "bias") continue;
            for (T* row = params + t.offset; row < params + t.offset + t.size; row += 3 * C)
                for (uint64_t j = 0; j < C; j++) row[j] = static_cast<T>(static_cast<double>(row[j]) * factor);
        }
    }
}

template void ModelFolder::fold_options(float*, const std::vector<Tensor>&) const;
template void ModelFolder::fold_options(double*, const std::vector<Tensor>&) const;

Json ModelFolder::lnfree() const {
    return read_lnfree_json(path_);
}

Companions ModelFolder::companions() const {
    Companions companions = read_companion_files(path_);
    companions.config = options_.kept;
    return companions;
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

// The tensors that stock loaders know, made of the canonical ones: each of them is made once for every piece, in memory of
// its own where the piece has another layout.
template <class T>
static TensorRecipes<T> stock_recipes(const ModelConfig& config, const TensorRecipes<T>& recipes) {
    TensorRecipes<T> stock;
    for (const auto& recipe : recipes)
        for (const StockPiece& piece : stock_pieces(config, recipe.name, recipe.shape)) {
            const std::string prefix = is_head(piece, config.family) ? "" : stock_names(config.family).trunk;
            auto fill = recipe.fill;
            if (!piece.is_whole())
                fill = [piece, recipe](T* out) {
                    const StockPiece all{recipe.name, recipe.shape};
                    std::vector<T> canonical(all.count());
                    recipe.fill(canonical.data());
                    take_piece(piece, out, canonical.data(), recipe.shape);
                };
            stock.push_back({prefix + piece.name, piece.shape, fill});
        }
    return stock;
}

template <class T>
void write_model_folder(const std::string& folder, const ModelConfig& config, const TensorRecipes<T>& recipes,
                        DType dtype, const Json& lnfree, const Tokenizer* tokenizer, const std::string& card,
                        const Companions& companions) {
    fs::create_directories(folder);
    const bool stock = config.form == ModelForm::hugging_face;
    if (tokenizer != nullptr) tokenizer->save(folder);
    write_safetensors<T>(folder + (stock ? "/model.safetensors" : "/weights.safetensors"),
                         stock ? stock_recipes<T>(config, recipes) : recipes, dtype, {{"format", "pt"}});
    write_file_atomically(folder + "/lnfree.json", lnfree.dump(2) + "\n");
    if (!card.empty()) write_file_atomically(folder + "/README.md", card);
    write_companions(companions, folder);
    const Json written = config_json(config, torch_dtype_name(dtype), companions.config);
    if (stock && config.end_of_text >= 0 && companions.files.count("generation_config.json") == 0) {
        Json generation;
        for (const char* key : {"bos_token_id", "eos_token_id"})
            if (written.contains(key)) generation[key] = written[key];
        write_file_atomically(folder + "/generation_config.json", generation.dump(2) + "\n");
    }
    write_file_atomically(folder + "/config.json", written.dump(2) + "\n");
    fsync_folder(folder);
}

template void write_model_folder(const std::string&, const ModelConfig&, const TensorRecipes<float>&, DType,
                                 const Json&, const Tokenizer*, const std::string&, const Companions&);
template void write_model_folder(const std::string&, const ModelConfig&, const TensorRecipes<double>&, DType,
                                 const Json&, const Tokenizer*, const std::string&, const Companions&);

void remove_model_files(const std::string& folder) {
    for (const char* name : {"config.json", "lnfree.json", "README.md", "model.safetensors", "weights.safetensors"})
        fs::remove(fs::path(folder) / name);
    remove_companions(folder);
}

void require_other_folder(const std::string& out, const std::string& model) {
    if (model.empty() || !fs::exists(out)) return;
    if (fs::equivalent(out, model)) throw BadInput("--out " + out + " is the --model folder itself; choose another");
    const fs::path from_out = fs::canonical(model).lexically_relative(fs::canonical(out));
    if (*from_out.begin() != "..")
        throw BadInput("--out " + out + " holds the --model folder " + model + "; choose another");
}

}  // namespace lnfree
