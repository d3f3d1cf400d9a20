// config.json of a model folder: what is read from it, what is refused, what is written (data/README.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/config.h"
#include "data/error.h"
#include "data/json.h"

namespace lnfree {

// What a stock config.json says beyond the shape: what the weights have to be brought to while they are read, and what goes
// out as it came in.
struct ConfigOptions {
    bool no_attention_biases = false;  // attention_bias: false, in a model whose norms have biases
    bool scores_over_width = true;     // scale_attn_weights: scores are divided by the root of the heads' width
    bool scores_over_layer = false;    // scale_attn_by_inverse_layer_idx: and those of block l by l + 1
    Json kept;                         // companion_keys
};

// Parses the text of a config.json; `path` names it in messages, `options` (unless null) gets what it says beyond the shape.
// Keys that are missing have the family's values, as transformers takes them. A model whose norms have biases is given
// biases everywhere: they are what the two exact forms put beta into. Throws BadInput for whatever is malformed, out of
// range, contradictory or not supported.
ModelConfig parse_config(const std::string& text, const std::string& path, ConfigOptions* options = nullptr);

// config.json of a folder. BadInput if it cannot be read, and as parse_config.
ModelConfig read_config(const std::string& folder, ConfigOptions* options = nullptr);

// The shape that nanoGPT's "model_args" describe. BadInput, in terms of `path`, if they are not valid.
ModelConfig parse_nanogpt_config(const Json& model_args, const std::string& path);

// The config.json that describes `c` in its form, with these keys (unless null) as they came in.
Json config_json(const ModelConfig& c, const char* dtype, const Json& kept = Json());

}  // namespace lnfree
