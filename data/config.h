// The shape of a model, which of the three kinds of folder it came from, and the entries of its table of tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lnfree {

// The three kinds of folder. Only `hugging_face` may be read by stock loaders; the other two have a model_type of their
// own and keep their weights in weights.safetensors, so that nobody can run LayerNorm on weights trained without it.
enum class ModelForm { hugging_face, checkpoint, folded };

// Whose config.json and tensor names a folder has: GPT-2's, GPT-NeoX's (Pythia) or Llama's (SmolLM2). What the model
// computes is said by the rest of the description, never by this.
enum class Family { gpt2, neox, llama };

// GELU as GPT-2 approximates it by tanh, or with the error function itself; or SiLU of one half of the neurons times the
// other half.
enum class Activation { gelu_tanh, gelu_erf, gated_silu };

// config.json's model_type: "gpt2", "llama_lnfree_checkpoint", ...
std::string model_type_of(Family family, ModelForm form);

struct ModelConfig {
    int64_t L = 12, NH = 12, C = 768, V = 50257;
    int64_t n_ctx = 1024;      // longest sequence: rows of wpe, where positions are learned
    int64_t n_inner = 3072;    // width of the MLP
    double epsilon = 1e-5;     // layer_norm_epsilon
    int32_t end_of_text = -1;  // eos_token_id; -1: the model has none
    ModelForm form = ModelForm::hugging_face;
    Family family = Family::gpt2;

    // How other models differ. The defaults are GPT-2.
    bool centred = true;         // norms take the mean away (LayerNorm), or not (RMSNorm)
    bool norm_bias = true;       // norms have a beta
    int64_t rotary = 0;          // numbers of a head that turn with its position; 0: positions are learned, in wpe
    double rotary_base = 10000;  // of their slowest turn, rope_theta
    bool parallel = false;       // attention and MLP of a block read the same stream
    Activation activation = Activation::gelu_tanh;
    int64_t shared_heads = 0;    // heads of keys and values, each of several queries'; 0: one for every head of queries
    int64_t own_head_size = 0;   // of a head, where it is not C / NH
    bool attention_bias = true;  // c_attn and its c_proj have biases
    bool mlp_bias = true;        // c_fc and its c_proj have
    bool tied = true;            // the unembedding is wte

    int64_t key_heads() const { return shared_heads > 0 ? shared_heads : NH; }
    int64_t head_size() const { return own_head_size > 0 ? own_head_size : C / NH; }
    int64_t heads_width() const { return NH * head_size(); }                    // A, of all heads side by side
    int64_t qk_width() const { return (NH + key_heads()) * head_size(); }       // of queries and keys
    int64_t qkv_width() const { return (NH + 2 * key_heads()) * head_size(); }  // and values
    bool gated() const { return activation == Activation::gated_silu; }
    int64_t fc_width() const { return gated() ? 2 * n_inner : n_inner; }  // of what c_fc makes
    bool has_norms() const { return form != ModelForm::folded; }
    bool has_own_head() const { return !tied || form == ModelForm::folded; }

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
    double unit = 1;  // AdamW trains the values in this unit: LayerNorm Scaling (Engine::scale_norms_by_depth)
};

}  // namespace lnfree
