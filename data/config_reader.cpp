#include "data/config_reader.h"

#include <cmath>

#include "data/files.h"

namespace lnfree {

namespace {

// Of a value, for a message.
std::string shortened(const Json& value) {
    return value.dump(-1, true).substr(0, 60);
}

}  // namespace

int64_t checked_integer(const Json& value, const char* key, int64_t low, int64_t high, const std::string& path) {
    const bool whole = value.is_number_integer();
    if (!whole || (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(high)) ||
        value.get<int64_t>() < low || value.get<int64_t>() > high)
        throw BadInput(path + ": " + key + " is " + shortened(value) + "; expected a whole number from " +
                       std::to_string(low) + " to " + std::to_string(high));
    return value.get<int64_t>();
}

const Json* ConfigReader::find(const char* key) const {
    const Json* const found = j_.find(key);
    return found == nullptr || found->is_null() ? nullptr : found;
}

int64_t ConfigReader::integer(const char* key, int64_t fallback, int64_t low, int64_t high) const {
    const Json* const found = find(key);
    return found == nullptr ? fallback : checked_integer(*found, key, low, high, path_);
}

int64_t ConfigReader::size(const char* key, const char* other, int64_t fallback, int64_t high) const {
    return integer(j_.contains(key) ? key : other, fallback, 1, high);
}

double ConfigReader::positive(const char* key, double fallback) const {
    const Json* const found = find(key);
    if (found == nullptr) return fallback;
    const double value = found->is_number() ? found->number() : 0;
    if (!(value > 0) || !std::isfinite(value))
        throw wrong(std::string(key) + " is " + shortened(*found) + "; it must be a positive number");
    return value;
}

bool ConfigReader::option(const char* key, bool fallback) const {
    const Json* const found = find(key);
    if (found == nullptr) return fallback;
    if (!found->is_boolean()) throw wrong(std::string(key) + " is " + shortened(*found) + "; expected true or false");
    return found->get<bool>();
}

std::string ConfigReader::text(const char* key, const char* fallback) const {
    const Json* const found = find(key);
    if (found == nullptr) return fallback;
    if (!found->is_string()) throw wrong(std::string(key) + " is " + shortened(*found) + "; expected a name");
    return found->string();
}

void ConfigReader::require_option(const char* key, bool only) const {
    const Json* const found = find(key);
    if (found == nullptr || (found->is_boolean() && found->get<bool>() == only)) return;
    throw wrong(std::string(key) + " = " + shortened(*found) + " is not supported; only models with " + key +
                (only ? " = true" : " = false") + " are");
}

void ConfigReader::refuse(std::initializer_list<const char*> keys, const std::string& why) const {
    for (const char* key : keys) {
        const Json* const found = find(key);
        if (found == nullptr || found->empty()) continue;
        const bool off = (found->is_boolean() && !found->get<bool>()) || (found->is_number() && found->number() == 0);
        if (!off) throw wrong(std::string(key) + " found: " + why);
    }
}

int32_t ConfigReader::end_of_text(int64_t vocabulary, int64_t fallback) const {
    const char* const key = "eos_token_id";
    const Json* found = j_.find(key);
    if (found == nullptr) return fallback < vocabulary ? static_cast<int32_t>(fallback) : -1;
    if (found->is_array()) found = found->empty() ? nullptr : &found->at(size_t{0});
    if (found == nullptr || found->is_null()) return -1;
    const int64_t id = checked_integer(*found, key, -1, (int64_t(1) << 31) - 1, path_);
    return id < vocabulary ? static_cast<int32_t>(id) : -1;
}

}  // namespace lnfree
