#include "data/json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "data/files.h"

namespace lnfree {

nlohmann::json parse_json(const std::string& text, const std::string& source) {
    using Event = nlohmann::json::parse_event_t;
    constexpr int deepest = 64;
    std::vector<std::set<std::string>> keys_of_open_objects;
    const auto check = [&](int depth, Event event, nlohmann::json& value) {
        const bool opens = event == Event::object_start || event == Event::array_start;
        if (opens && depth == deepest) {
            throw BadInput(source + ": JSON nested deeper than " + std::to_string(deepest) + " levels");
        }
        if (event == Event::object_start) keys_of_open_objects.emplace_back();
        if (event == Event::object_end) keys_of_open_objects.pop_back();
        if (event == Event::key && !keys_of_open_objects.back().insert(value.get<std::string>()).second) {
            throw BadInput(source + ": the key " + quoted_name(value.get<std::string>()) +
                           " appears twice in one object");
        }
        return true;
    };
    if (text.find('\0') != std::string::npos) {  // nlohmann-json would take it for the end
        throw BadInput(source + " is not valid JSON: it holds a zero byte");
    }
    try {
        return nlohmann::json::parse(text, check);
    } catch (const nlohmann::json::parse_error& error) {
        throw BadInput(source + " is not valid JSON: wrong at byte " + std::to_string(error.byte));
    } catch (const nlohmann::json::exception&) {
        throw BadInput(source + " is not valid JSON: a number is out of range");
    }
}

nlohmann::json read_json(const std::string& path, uint64_t max_bytes) {
    return parse_json(read_file(path, max_bytes), path);
}

}  // namespace lnfree
