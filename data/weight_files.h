// The weights of a model that others saved, in whichever of the usual files they lie: safetensors or torch.save's, one file
// or several. The files are mapped, not read.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "data/files.h"
#include "data/json.h"
#include "data/tensor_view.h"

namespace lnfree {

// The "weight_map" of a model.safetensors.index.json or pytorch_model.bin.index.json: which file holds which tensor; empty
// if it names none. `source` names the index in messages. BadInput if it is not one, or if a file name is not a plain one:
// an index must not reach out of its folder.
std::map<std::string, std::string> parse_weight_map(const std::string& text, const std::string& source);

// Move-only; views stay valid across moves.
class WeightFiles {
  public:
    // A tensor that the index lists and its file does not hold, and what to say of it to whoever needs it.
    struct Absent {
        std::string name, message;
    };

    // Of a Hugging Face folder, the first of these that is there:
    //
    //     model.safetensors, model.safetensors.index.json with the files that it names
    //     pytorch_model.bin, pytorch_model.bin.index.json with the files that it names
    //     model-00001-of-0000N.safetensors, ... or pytorch_model-00001-of-0000N.bin, ..., all N, if an index is missing
    //     or names none
    //
    // BadInput if there is none, saying what is there instead and what to do; if a file is not valid; or if one holds a
    // tensor that the index places in another.
    static WeightFiles of_folder(const std::string& folder);

    // Of one file of torch.save. BadInput if it is not valid.
    static WeightFiles of_torch_file(const std::string& path);

    WeightFiles(WeightFiles&&) = default;
    WeightFiles& operator=(WeightFiles&&) = default;

    const std::vector<TensorView>& tensors() const { return tensors_; }
    const std::vector<Absent>& absent() const { return absent_; }
    const Json& model_args() const { return model_args_; }  // nanoGPT's shape of the model; null in any other file

  private:
    WeightFiles() = default;

    // `torch`: what the name of the file promises, if its bytes do not say.
    void add_file(const std::string& path, bool torch);
    void add_indexed(const std::string& folder, const std::string& index,
                     const std::map<std::string, std::string>& file_of_tensor, bool torch);

    std::vector<MappedFile> maps_;
    std::vector<TensorView> tensors_;
    std::vector<Absent> absent_;
    Json model_args_;
};

}  // namespace lnfree
