// Model folders: config.json, the weights, lnfree.json (what was done to the model) and the tokenizer's files. What is
// here knows files and the table of tensors, no engine; keys are described in data/README.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/error.h"
#include "data/gpt2_config.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "data/tokenizer.h"

namespace lnfree {

constexpr int kFormatVersion = 1;  // of lnfree.json and of every JSON output

// ---------------------------------------------------------------------------------------------------------------------
// Reading

// The text of a lnfree.json; `path` names it in messages. BadInput if it is malformed or of a version this program does
// not know.
Json parse_lnfree_json(const std::string& text, const std::string& path);

// lnfree.json of a folder, or null if there is none. BadInput as parse_lnfree_json.
Json read_lnfree_json(const std::string& folder);

// A name without GPT2LMHeadModel's prefix.
std::string without_prefix(const std::string& name);

// Old GPT-2 folders carry attention masks as tensors; they hold no information.
bool is_attention_mask(const std::string& name);

// Matches the tensors in a folder with the table of the model that config.json describes: one view for every entry, in
// the table's order. Nothing is allocated before this has passed. Throws BadInput for missing, unknown and misshapen
// tensors, and with tied_head for an lm_head.weight that differs from wte.weight.
std::vector<TensorView> match_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                      bool tied_head, const std::string& folder);

// BadInput, naming the tensor and the element, if one of its t.size values is not finite.
template <class T>
void require_finite(const Tensor& t, const T* values, const std::string& folder);

// Copies matched tensors into a flat buffer that the table lays out: tensor i goes to to + table[i].offset. T is float
// or double. BadInput, naming the tensor, for values that are not finite, or of a type that weights do not have.
template <class T>
void copy_tensors(T* to, const std::vector<Tensor>& table, const std::vector<TensorView>& views,
                  const std::string& folder);

// The tokenizer whose files lie in a model folder, null if there are none. BadInput as load_tokenizer.
std::unique_ptr<Tokenizer> tokenizer_of_folder(const std::string& folder);

// A model folder open for reading: any that write_model_folder writes, and any GPT2LMHeadModel folder. The weights are
// mapped, not read; the views of tensors() are valid as long as this lives. Move-only.
class ModelFolder {
  public:
    // Reads config.json and opens the weights. BadInput if there is no such folder, one of the two is missing, or either
    // is not valid.
    explicit ModelFolder(std::string path);

    const std::string& path() const { return path_; }
    const GPT2Config& config() const { return config_; }

    // One view for every entry of the table of the model that config() describes, in its order. BadInput as
    // match_tensors.
    std::vector<TensorView> tensors(const std::vector<Tensor>& table) const;

    // lnfree.json, null if the folder has none. BadInput as parse_lnfree_json.
    Json lnfree() const;

    // Null if the folder has none. BadInput as load_tokenizer.
    std::unique_ptr<Tokenizer> tokenizer() const;

  private:
    std::string path_;
    GPT2Config config_;
    std::unique_ptr<SafetensorsFolder> stock_;  // weights of the Hugging Face form, one file or several
    std::unique_ptr<SafetensorsFile> own_;      // weights.safetensors of the two other forms
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
// as README.md (unless empty), and config.json last, because a folder without it is no model to any loader. T is float
// or double. BadInput for values beyond the range of dtype; RunFailure or fs::filesystem_error when the disk fails.
template <class T>
void write_model_folder(const std::string& folder, const GPT2Config& config, const TensorRecipes<T>& recipes,
                        DType dtype, const Json& lnfree, const Tokenizer* tokenizer, const std::string& card);

// Removes what write_model_folder may have written into a folder earlier, and nothing else: the next model may have
// other files, and the old ones would be read along with its own. fs::filesystem_error when the disk fails.
void remove_model_files(const std::string& folder);

// Throws BadInput if writing to `out` could replace the model that is being read: the same folder, or one that holds it.
void require_other_folder(const std::string& out, const std::string& model);

}  // namespace lnfree
