// The shape of a GPT-2, which of the three kinds of folder it came from, and the entries of its table of tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lnfree {

// The three kinds of folder. Only `hugging_face` may be read by stock loaders; the other two have a model_type of their
// own and keep their weights in weights.safetensors, so that nobody can run LayerNorm on weights trained without it.
enum class ModelForm { hugging_face, checkpoint, folded };

inline const char* model_type_of(ModelForm form) {
    switch (form) {
        case ModelForm::hugging_face:
            return "gpt2";
        case ModelForm::checkpoint:
            return "gpt2_lnfree_checkpoint";
        case ModelForm::folded:
            return "gpt2_lnfree_folded";
    }
    return "";
}

struct GPT2Config {
    int64_t L = 12, NH = 12, C = 768, V = 50257;
    int64_t n_ctx = 1024;      // longest sequence: rows of wpe
    int64_t n_inner = 3072;    // width of the MLP
    double epsilon = 1e-5;     // layer_norm_epsilon
    int32_t end_of_text = -1;  // eos_token_id; -1: the model has none
    ModelForm form = ModelForm::hugging_face;

    // The Hugging Face form of a model without LayerNorms has an epsilon so large that its LayerNorm divides every
    // position by the same number (protocol.md 9); the published LN-free models use 1e12.
    bool epsilon_freezes_sigma() const { return form == ModelForm::hugging_face && epsilon >= 1e10; }
};

// One parameter tensor of a model. This table drives allocation, folders, the optimiser, norms and tests (tensor_table
// in train_gpt2_lnfree.cpp makes it).
struct Tensor {
    std::string name;  // Hugging Face's name, without the prefix `transformer.`
    std::vector<uint64_t> shape;
    bool decay;      // weight decay applies: weight matrices and embeddings only (protocol.md 5)
    int64_t offset;  // of its first element in the flat buffers
    int64_t size;
};

}  // namespace lnfree
