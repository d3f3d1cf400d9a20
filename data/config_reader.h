// Keys of a config.json, taken one by one: each has a type and a range, and what does not fit is refused by its name.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "data/error.h"
#include "data/json.h"

namespace lnfree {

// Every function throws BadInput, in one line that names file, key and value. A key that is null counts as absent.
class ConfigReader {
  public:
    ConfigReader(const Json& object, const std::string& path) : j_(object), path_(path) {}

    // The keys of an object within.
    ConfigReader inside(const Json& object) const { return {object, path_}; }

    BadInput wrong(const std::string& what) const { return BadInput(path_ + ": " + what); }

    bool has(const char* key) const { return find(key) != nullptr; }
    const Json* find(const char* key) const;

    // The value of a key, `fallback` if it is absent: a whole number of [low, high].
    int64_t integer(const char* key, int64_t fallback, int64_t low, int64_t high) const;

    // A size of [1, high], of a key that transformers also reads under another name.
    int64_t size(const char* key, const char* other, int64_t fallback, int64_t high) const;

    double positive(const char* key, double fallback) const;
    bool option(const char* key, bool fallback) const;
    std::string text(const char* key, const char* fallback) const;

    // Refuses another value than this of an option, for what this program does not compute.
    void require_option(const char* key, bool only) const;

    // Refuses keys that are there and neither false, zero nor empty.
    void refuse(std::initializer_list<const char*> keys, const std::string& why) const;

    // eos_token_id, of several the first; -1 for none. transformers writes its default for any vocabulary: a token that
    // cannot occur is none.
    int32_t end_of_text(int64_t vocabulary, int64_t fallback) const;

  private:
    const Json& j_;
    const std::string& path_;
};

// An integer within [low, high].
int64_t checked_integer(const Json& value, const char* key, int64_t low, int64_t high, const std::string& path);

}  // namespace lnfree
