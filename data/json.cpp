#include "data/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "data/files.h"

namespace lnfree {

namespace {

constexpr size_t kDeepest = 64;

// Hands nlohmann-json's events on.
class Library : public nlohmann::json_sax<nlohmann::json> {
  public:
    explicit Library(JsonEvents& events) : to_(events) {}

    bool null() override { return to_.null(); }
    bool boolean(bool x) override { return to_.boolean(x); }
    bool number_integer(int64_t x) override { return to_.number_integer(x); }
    bool number_unsigned(uint64_t x) override { return to_.number_unsigned(x); }
    bool number_float(double x, const std::string& text) override { return to_.number_float(x, text); }
    bool string(std::string& text) override { return to_.string(text); }
    bool binary(nlohmann::json::binary_t&) override { return false; }  // never comes from text
    bool start_object(size_t) override { return to_.start_object(); }
    bool key(std::string& name) override { return to_.key(name); }
    bool end_object() override { return to_.end_object(); }
    bool start_array(size_t) override { return to_.start_array(); }
    bool end_array() override { return to_.end_array(); }
    bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) override {
        // The one thing that the library calls out of range while it reads.
        return to_.parse_error(position, dynamic_cast<const nlohmann::json::out_of_range*>(&error) != nullptr);
    }

  private:
    JsonEvents& to_;
};

// Builds a Json, within parse_json's bounds.
class Builder : public JsonEvents {
  public:
    explicit Builder(std::string source) : source_(std::move(source)) {}

    Json root;

    bool null() override { return add(Json()); }
    bool boolean(bool x) override { return add(x); }
    bool number_integer(int64_t x) override { return add(x); }
    bool number_unsigned(uint64_t x) override { return add(x); }
    bool number_float(double x, const std::string&) override { return add(x); }
    bool string(std::string& text) override { return add(std::move(text)); }
    bool start_object() override { return open(Json::object()); }
    bool start_array() override { return open(Json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(std::string& name) override {
        if (!open_.back().keys.insert(name).second) {
            throw BadInput(source_ + ": the key " + quoted_name(name) + " appears twice in one object");
        }
        open_.back().key = std::move(name);
        return true;
    }
    bool parse_error(size_t position, bool too_large) override {
        throw BadInput(source_ + " is not valid JSON: " +
                       (too_large ? "a number is out of range" : "wrong at byte " + std::to_string(position)));
    }

  private:
    struct Open {  // an object or array that has not ended
        Json value;
        std::string key;  // of the member to come
        std::set<std::string> keys;
    };

    bool add(Json value) {
        if (open_.empty()) {
            root = std::move(value);
        } else if (open_.back().value.is_array()) {
            open_.back().value.push_back(std::move(value));
        } else {
            open_.back().value.append(std::move(open_.back().key), std::move(value));
        }
        return true;
    }
    bool open(Json value) {
        if (open_.size() == kDeepest) {
            throw BadInput(source_ + ": JSON nested deeper than " + std::to_string(kDeepest) + " levels");
        }
        open_.push_back({std::move(value), {}, {}});
        return true;
    }
    bool close() {
        Json value = std::move(open_.back().value);
        open_.pop_back();
        return add(std::move(value));
    }

    std::string source_;
    std::vector<Open> open_;
};

nlohmann::ordered_json to_library(const Json& j) {
    if (j.is_null()) return nullptr;
    if (j.is_boolean()) return j.get<bool>();
    if (j.is_number_unsigned()) return j.get<uint64_t>();
    if (j.is_number_integer()) return j.get<int64_t>();
    if (j.is_number()) return j.get<double>();
    if (j.is_string()) return j.string();
    if (j.is_array()) {
        auto list = nlohmann::ordered_json::array();
        for (const Json& element : j) list.push_back(to_library(element));
        return list;
    }
    nlohmann::ordered_json::object_t members;  // a vector: its own emplace looks for the key each time
    members.reserve(j.size());
    for (const auto& [key, value] : j.items()) {
        static_cast<nlohmann::ordered_json::object_t::Container&>(members).emplace_back(key, to_library(value));
    }
    return members;
}

}  // namespace

Json::Json(std::initializer_list<Member> members) : value_(Object(members)) {}

Json Json::object() {
    Json j;
    j.value_ = Object();
    return j;
}

void Json::is_not(const char* what) const {
    static const char* const kinds[] = {"null",     "a boolean", "a number", "a number",
                                        "a number", "a string",  "an array", "an object"};
    throw JsonError(std::string(kinds[value_.index()]) + " where " + what + " is expected");
}

bool Json::boolean() const {
    if (!is_boolean()) is_not("a boolean");
    return std::get<bool>(value_);
}

int64_t Json::integer() const {
    if (holds<int64_t>()) return std::get<int64_t>(value_);
    if (holds<uint64_t>()) return static_cast<int64_t>(std::get<uint64_t>(value_));
    constexpr double beyond = 9223372036854775808.0;  // 2^63
    if (!(number() >= -beyond && number() < beyond)) is_not("a whole number of 64 bits");
    return static_cast<int64_t>(number());
}

double Json::number() const {
    if (holds<double>()) return std::get<double>(value_);
    if (holds<uint64_t>()) return static_cast<double>(std::get<uint64_t>(value_));
    if (!holds<int64_t>()) is_not("a number");
    return static_cast<double>(std::get<int64_t>(value_));
}

const std::string& Json::string() const {
    if (!is_string()) is_not("a string");
    return std::get<std::string>(value_);
}

const Json::Array& Json::elements() const {
    static const Array none;
    if (is_null()) return none;
    if (!is_array()) is_not("an array");
    return std::get<Array>(value_);
}

const Json::Object& Json::items() const {
    static const Object none;
    if (is_null()) return none;
    if (!is_object()) is_not("an object");
    return std::get<Object>(value_);
}

const Json* Json::find(const std::string& key) const {
    if (!is_object()) return nullptr;
    const Object& members = items();
    const auto found = std::find_if(members.begin(), members.end(), [&](const Member& m) { return m.key == key; });
    return found == members.end() ? nullptr : &found->value;
}

const Json& Json::at(const std::string& key) const {
    if (!is_object()) is_not("an object");
    const Json* const found = find(key);
    if (found == nullptr) throw JsonError("the key " + quoted_name(key) + " is missing");
    return *found;
}

const Json& Json::at(size_t index) const {
    if (!is_array()) is_not("an array");
    if (index >= size()) throw JsonError("element " + std::to_string(index) + " is missing");
    return elements()[index];
}

Json& Json::operator[](const std::string& key) {
    if (is_null()) value_ = Object();
    if (!is_object()) is_not("an object");
    if (const Json* const found = find(key)) return const_cast<Json&>(*found);
    append(key, Json());
    return std::get<Object>(value_).back().value;
}

void Json::append(std::string key, Json value) {
    std::get<Object>(value_).push_back({std::move(key), std::move(value)});
}

void Json::push_back(Json element) {
    if (is_null()) value_ = Array();
    if (!is_array()) is_not("an array");
    std::get<Array>(value_).push_back(std::move(element));
}

void Json::update(const Json& other) {
    for (const auto& [key, value] : other.items()) (*this)[key] = value;
}

void Json::erase(const std::string& key) {
    if (!is_object()) is_not("an object");
    Object& members = std::get<Object>(value_);
    const auto same = [&](const Member& m) { return m.key == key; };
    members.erase(std::remove_if(members.begin(), members.end(), same), members.end());
}

size_t Json::size() const {
    if (is_array()) return elements().size();
    return is_object() ? items().size() : is_null() ? 0 : 1;
}

bool operator==(const Json& a, const Json& b) {
    if (a.is_number_integer() && b.is_number_integer() && (a.number() < 0) == (b.number() < 0)) {
        return a.integer() == b.integer();
    }
    if (a.is_number() && b.is_number()) return a.number() == b.number();
    if (!a.is_object() || !b.is_object()) return a.value_ == b.value_;
    const auto has = [&](const Json::Member& m) {
        const Json* const found = b.find(m.key);
        return found != nullptr && *found == m.value;
    };
    return a.size() == b.size() && std::all_of(a.items().begin(), a.items().end(), has);
}

std::string Json::dump(int indent, bool mend) const try {
    using Handler = nlohmann::ordered_json::error_handler_t;
    return to_library(*this).dump(indent, ' ', false, mend ? Handler::replace : Handler::strict);
} catch (const nlohmann::ordered_json::exception& error) {
    throw JsonError(error.what());
}

bool read_json_events(std::string_view text, JsonEvents& events) {
    Library library(events);
    return nlohmann::json::sax_parse(text.begin(), text.end(), &library);
}

Json parse_json(const std::string& text, const std::string& source) {
    if (text.find('\0') != std::string::npos) {  // nlohmann-json would take it for the end
        throw BadInput(source + " is not valid JSON: it holds a zero byte");
    }
    Builder builder(source);
    read_json_events(text, builder);
    return std::move(builder.root);
}

std::optional<Json> json_in(const std::string& text) try { return parse_json(text, ""); } catch (const BadInput&) {
    return std::nullopt;
}

Json read_json(const std::string& path, uint64_t max_bytes) {
    return parse_json(read_file(path, max_bytes), path);
}

}  // namespace lnfree
