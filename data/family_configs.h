// The keys of config.json that GPT-NeoX (Pythia) and Llama (SmolLM2) have, read and written (data/README.md).
#pragma once

#include <string>

#include "data/config.h"
#include "data/config_reader.h"
#include "data/json.h"

namespace lnfree {

constexpr int64_t largest_width = 1 << 24, most_layers = 4096, largest_vocabulary = 1 << 30;

// The model that such keys describe; a key that is missing has the value that transformers takes. BadInput, by the key's
// name, for what is out of range, contradictory, or computes what this program does not.
ModelConfig read_neox_keys(const ConfigReader& keys);
ModelConfig read_llama_keys(const ConfigReader& keys);

// Adds the keys that describe such a model, for versions 4 and 5 of transformers.
void write_neox_keys(Json& j, const ModelConfig& c);
void write_llama_keys(Json& j, const ModelConfig& c);

// GELU by one of the names that transformers has for its two forms. BadInput, naming `key`, for any other function.
Activation read_gelu(const ConfigReader& keys, const char* key, const char* fallback);
const char* name_of_gelu(Activation activation);

}  // namespace lnfree
