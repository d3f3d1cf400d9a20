// config.json of a GPT-2 model folder: what is read from it, what is refused, what is written (data/README.md).
#pragma once

#include <string>

#include "data/error.h"
#include "data/gpt2_config.h"
#include "data/json.h"

namespace lnfree {

// Parses the text of a config.json; `path` names it in messages. Throws BadInput for whatever is malformed, out of
// range, contradictory or not supported.
GPT2Config parse_config(const std::string& text, const std::string& path);

// config.json of a folder. BadInput if it cannot be read, and as parse_config.
GPT2Config read_config(const std::string& folder);

// The config.json that describes `c` in its form.
Json config_json(const GPT2Config& c, const char* dtype);

}  // namespace lnfree
