// Model folders: config.json, the weights, lnfree.json (what was done to the model) and the tokenizer's files. What is
// here knows files and the table of tensors, no engine; keys are described in data/README.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/companions.h"
#include "data/config.h"
#include "data/error.h"
#include "data/json.h"
#include "data/match_tensors.h"
#include "data/model_config.h"
#include "data/safetensors.h"
#include "data/tokenizer.h"
#include "data/weight_files.h"

namespace lnfree {

constexpr int kFormatVersion = 1;  // of lnfree.json and of every JSON output

// ---------------------------------------------------------------------------------------------------------------------
// Reading

// The text of a lnfree.json; `path` names it in messages. BadInput if it is malformed or of a version this program does
// not know.
Json parse_lnfree_json(const std::string& text, const std::string& path);

// lnfree.json of a folder, or null if there is none. BadInput as parse_lnfree_json.
Json read_lnfree_json(const std::string& folder);

// BadInput, naming the tensor and the element, if one of its t.size values is not finite.
template <class T>
void require_finite(const Tensor& t, const T* values, const std::string& folder);

// Copies matched tensors into a flat buffer that the table lays out: tensor i goes to to + table[i].offset. T is float
// or double. BadInput, naming the tensor, for values that are not finite, or of a type that weights do not have.
template <class T>
void copy_tensors(T* to, const std::vector<Tensor>& table, const std::vector<MatchedTensor>& matched,
                  const std::string& folder);

// The tokenizer of a model folder.
struct FolderTokenizer {
    std::unique_ptr<Tokenizer> tokenizer;  // null if there is none, or none that this program can run
    std::string refusal;                   // why it cannot run the one that is there; else empty
};

// The tokenizer whose files lie in a model folder. One that load_tokenizer refuses is no reason to refuse the model: token
// shards need none.
FolderTokenizer tokenizer_of_folder(const std::string& folder);

// A model on disk, open for reading: any folder that write_model_folder writes, any folder of GPT2LMHeadModel,
// GPTNeoXForCausalLM or LlamaForCausalLM, nanoGPT's ckpt.pt. The weights are mapped, not read; the views of tensors() are valid as long as this lives. Move-only.
class ModelFolder {
  public:
    // Finds what `name` means (find_model), reads its config.json and opens the weights. BadInput if there is no such
    // model, one of the two is missing, or either is not valid.
    explicit ModelFolder(const std::string& name);

    const std::string& path() const { return path_; }  // of the folder or file that is read
    const ModelConfig& config() const { return config_; }

    // Lines for the user: how the model that was read differs from what is in the folder.
    const std::vector<std::string>& notes() const { return notes_; }

    // Where the numbers of every entry of the table of the model that config() describes, in its order; adds to notes(). Nothing
    // is allocated before this has passed. BadInput as match_stock_tensors, and for a tensor that an index lists and no file
    // holds, unless it is a tied head.
    std::vector<MatchedTensor> tensors(const std::vector<Tensor>& table);

    // Brings the weights, copied by copy_tensors, to the model that config() describes: options of config.json that scale
    // attention's scores go into the query weights. T is float or double.
    template <class T>
    void fold_options(T* params, const std::vector<Tensor>& table) const;

    // lnfree.json, null if the folder has none. BadInput as parse_lnfree_json.
    Json lnfree() const;

    FolderTokenizer tokenizer() const { return tokenizer_of_folder(path_); }

    // What comes with the model and goes out with it. BadInput as read_companion_files.
    Companions companions() const;

  private:
    std::vector<std::string> notes_;
    std::string path_;
    ConfigOptions options_;
    ModelConfig config_;
    std::unique_ptr<WeightFiles> stock_;    // weights of the Hugging Face form, or nanoGPT's
    std::unique_ptr<SafetensorsFile> own_;  // weights.safetensors of the two other forms
};

// ---------------------------------------------------------------------------------------------------------------------
// Writing

// What is to be written: name, shape and values of every tensor.
template <class T>
using TensorRecipes = std::vector<TensorSource<T>>;

// The type in which numbers of type T are stored without loss.
template <class T>
constexpr DType dtype_of() {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "float or double");
    return sizeof(T) == 4 ? DType::F32 : DType::F64;
}

// What config.json calls a type: "float32", "bfloat16", ...
const char* torch_dtype_name(DType dtype);

// Writes a model folder, made if need be: weights in `dtype`, lnfree.json, the tokenizer's files (unless null), the card
// as README.md (unless empty), the companions, whose files take precedence over the tokenizer's, and config.json last,
// because a folder without it is no model to any loader. T is float or double. BadInput for values beyond the range of
// dtype; RunFailure or fs::filesystem_error when the disk fails.
template <class T>
void write_model_folder(const std::string& folder, const ModelConfig& config, const TensorRecipes<T>& recipes,
                        DType dtype, const Json& lnfree, const Tokenizer* tokenizer, const std::string& card,
                        const Companions& companions = {});

// Removes what write_model_folder may have written into a folder earlier, and nothing else: the next model may have
// other files, and the old ones would be read along with its own. fs::filesystem_error when the disk fails.
void remove_model_files(const std::string& folder);

// Throws BadInput if writing to `out` could replace the model that is being read: the same folder, or one that holds it.
void require_other_folder(const std::string& out, const std::string& model);

}  // namespace lnfree
