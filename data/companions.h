// What comes with a model beside its weights and goes out as it came in: the ids of its special tokens, how its makers
// would have it generate, its chat template, and the files of its tokenizer, whether or not this program can run it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "data/error.h"
#include "data/json.h"

namespace lnfree {

struct Companions {
    Json config;                               // keys of config.json: token ids, task_specific_params, ...; or null
    std::map<std::string, std::string> files;  // contents by name
};

// The files of a model folder that are there; `config` is null. BadInput if one cannot be read or is too large.
Companions read_companion_files(const std::string& folder);

// The keys of a config.json that go out as they came in. Token ids beyond the vocabulary are left out: transformers writes
// its default, 50256, into any model.
Json companion_keys(const Json& config, int64_t vocabulary);

// Writes the files. RunFailure when the disk fails.
void write_companions(const Companions& companions, const std::string& folder);

// Removes files that write_companions may have written. fs::filesystem_error when the disk fails.
void remove_companions(const std::string& folder);

}  // namespace lnfree
