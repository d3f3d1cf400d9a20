// Model folders as engines: reading any GPT-2 folder into one, writing one out.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/companions.h"
#include "data/json.h"
#include "data/shards.h"
#include "data/tokenizer.h"
#include "dev/engine.h"
#include "dev/method.h"

namespace lnfree {

struct LoadedModel {
    std::unique_ptr<Engine> model;
    std::unique_ptr<Tokenizer> tokenizer;  // null if the folder has none, or none that this program can run
    std::string tokenizer_refusal;         // why it cannot run the one that is there; else empty
    std::string lnfree;                    // text of lnfree.json; empty if the folder has none
    Companions companions;                 // what else came with the model
    std::string path;                      // what was read: --model's folder, or what that led to
};

// Reads whatever --model may name (find_model) into an engine of backend(). What the user should know of how it was read
// goes to standard error, each line once in the life of the program. Throws BadInput with the reason otherwise.
LoadedModel load_model(const std::string& folder);

// The tokenizer of a loaded model, for a command that cannot do without. BadInput if there is none: `folder` is what
// --model named, `command` what needs it.
const Tokenizer& required_tokenizer(const LoadedModel& loaded, const std::string& folder, const std::string& command);

// lnfree.json of a loaded model as JSON; null if there is none.
Json lnfree_of(const LoadedModel& loaded);

// Writes a model folder, config.json last. dtype of the tensors: f32, bf16, f16 or, in double precision, f64.
enum class WeightType { f32, bf16, f16, of_real };
void write_model(const std::string& folder, const ModelConfig& config, const std::vector<TensorRecipe>& recipes,
                 WeightType type, const Json& lnfree, const Tokenizer* tokenizer, const std::string& card,
                 const Companions& companions = {});

// What a model computes goes into a fingerprint: shape, sites, weights. And any bytes, on all cores.
void add_model(Hash64& hash, const Engine& model);
void add_bytes(Hash64& hash, const void* bytes, uint64_t n);

// GPT-2's initialisation: normal(0, 0.02), projections onto the residual stream smaller by sqrt(2L), gammas 1, biases 0.
void initialise(Engine& model, uint64_t seed);

}  // namespace lnfree
