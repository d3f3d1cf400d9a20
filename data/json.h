// JSON as it is taken from files that others wrote: bounded in size and depth, and without repeated keys.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "data/error.h"

namespace lnfree {

// The JSON value in `text`; `source` names it in messages. BadInput if it is not JSON, nests deeper than 64 levels, or
// an object repeats a key: of two values nlohmann-json would silently keep the last, where another reader may keep the
// first, and the two would see different models.
nlohmann::json parse_json(const std::string& text, const std::string& source);

// The JSON value in a file of at most max_bytes. BadInput as read_file and parse_json.
nlohmann::json read_json(const std::string& path, uint64_t max_bytes = 16 << 20);

}  // namespace lnfree
