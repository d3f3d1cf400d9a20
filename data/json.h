// JSON values, and JSON as it is taken from files that others wrote: bounded in size and depth, without repeated keys.
//
// The text is read and written by nlohmann-json, in json.cpp and nowhere else. What the rest of the program holds is a
// type of ours, with the names of that library's: with theirs, every unit that touches a record takes the compiler three to
// five seconds more.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <list>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "data/error.h"

namespace lnfree {

// A value of another kind than the one asked for, a key that is not there, text that is not UTF-8.
struct JsonError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Json {
  public:
    struct Member;  // .key, .value
    // In the order in which they were added. A list, because j["a"] = j["b"] holds on to the one while it adds the other.
    using Object = std::list<Member>;
    using Array = std::vector<Json>;

    // NOLINTBEGIN(google-explicit-constructor): a record is written as {{"loss", 0.5}, {"removed", list}}
    Json() = default;  // null
    Json(std::nullptr_t) {}
    Json(const char* text) : value_(std::string(text)) {}
    Json(std::string text) : value_(std::move(text)) {}
    Json(std::initializer_list<Member> members);
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
    Json(T x) : value_(stored(x)) {}
    template <class T>
    Json(const std::vector<T>& list) : value_(Array(list.begin(), list.end())) {}
    template <class T, size_t N>
    Json(const std::array<T, N>& list) : value_(Array(list.begin(), list.end())) {}
    template <class T>
    Json(const std::map<std::string, T>& members) : Json(object()) {
        for (const auto& [key, value] : members) append(key, value);
    }
    // NOLINTEND(google-explicit-constructor)
    static Json array(std::initializer_list<Json> elements = {}) { return Json(Array(elements)); }
    static Json object();

    bool is_null() const { return holds<std::nullptr_t>(); }
    bool is_boolean() const { return holds<bool>(); }
    bool is_number_integer() const { return holds<int64_t>() || holds<uint64_t>(); }
    bool is_number_unsigned() const { return holds<uint64_t>(); }  // read without a sign, or made of an unsigned type
    bool is_number() const { return is_number_integer() || holds<double>(); }
    bool is_string() const { return holds<std::string>(); }
    bool is_array() const { return holds<Array>(); }
    bool is_object() const { return holds<Object>(); }

    // The value as T: bool, a number (converted as C++ does), std::string, Json itself, a vector of these. JsonError if it
    // is none.
    template <class T>
    T get() const {
        if constexpr (std::is_same_v<T, Json>) {
            return *this;
        } else if constexpr (std::is_same_v<T, bool>) {
            return boolean();
        } else if constexpr (std::is_integral_v<T>) {
            return static_cast<T>(integer());
        } else if constexpr (std::is_floating_point_v<T>) {
            return static_cast<T>(number());
        } else if constexpr (std::is_same_v<T, std::string>) {
            return string();
        } else {
            T list;
            for (const Json& element : elements()) list.push_back(element.get<typename T::value_type>());
            return list;
        }
    }
    template <class T>
    void get_to(T& out) const {
        out = get<T>();
    }
    const std::string& string() const;  // JsonError if it is none
    double number() const;              // the same

    // Elements of an array and of an object: null becomes what it is used as; at() throws JsonError for what is not there,
    // and so does the constant [].
    Json& operator[](const std::string& key);
    Json& operator[](size_t index) { return const_cast<Json&>(at(index)); }
    Json& operator[](const char* key) { return (*this)[std::string(key)]; }
    Json& operator[](int index) { return (*this)[static_cast<size_t>(index)]; }
    const Json& operator[](const std::string& key) const { return at(key); }
    const Json& operator[](const char* key) const { return at(key); }
    const Json& operator[](size_t index) const { return at(index); }
    const Json& operator[](int index) const { return at(static_cast<size_t>(index)); }
    const Json& at(const std::string& key) const;
    const Json& at(size_t index) const;
    const Json* find(const std::string& key) const;  // nullptr if it is not there, or this no object
    bool contains(const std::string& key) const { return find(key) != nullptr; }
    template <class T>
    T value(const std::string& key, const T& otherwise) const {
        const Json* const found = find(key);
        return found ? found->get<T>() : otherwise;
    }
    std::string value(const std::string& key, const char* otherwise) const {
        return value(key, std::string(otherwise));
    }
    Json& back() { return (*this)[size() - 1]; }
    const Json& back() const { return (*this)[size() - 1]; }
    void push_back(Json element);
    void append(std::string key, Json value);  // to an object, under a key that it does not have: not looked for
    void update(const Json& other);            // takes over the members of another object
    void erase(const std::string& key);

    size_t size() const;  // of an array or an object; 0 of null, else 1
    bool empty() const { return size() == 0; }
    const Array& elements() const;  // of an array; none of null; JsonError of anything else
    const Object& items() const;    // of an object; none of null; JsonError of anything else
    Array::const_iterator begin() const { return elements().begin(); }
    Array::const_iterator end() const { return elements().end(); }
    Array::iterator begin() { return const_cast<Array&>(elements()).begin(); }
    Array::iterator end() { return const_cast<Array&>(elements()).end(); }

    // The text: on one line, or indented by so many spaces a level. JsonError for strings that are not UTF-8, unless their
    // wrong bytes may become U+FFFD.
    std::string dump(int indent = -1, bool mend = false) const;

    friend bool operator==(const Json& a, const Json& b);
    friend bool operator!=(const Json& a, const Json& b) { return !(a == b); }

  private:
    using Value = std::variant<std::nullptr_t, bool, int64_t, uint64_t, double, std::string, Array, Object>;
    explicit Json(Array elements) : value_(std::move(elements)) {}
    template <class T>
    bool holds() const {
        return std::holds_alternative<T>(value_);
    }
    template <class T>
    static Value stored(T x) {
        using Wide = std::conditional_t<std::is_floating_point_v<T>, double,
                                        std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
        return static_cast<std::conditional_t<std::is_same_v<T, bool>, bool, Wide>>(x);
    }
    bool boolean() const;
    int64_t integer() const;  // an unsigned one keeps its bits
    [[noreturn]] void is_not(const char* what) const;

    Value value_ = nullptr;
};

struct Json::Member {
    std::string key;
    Json value;
    friend bool operator==(const Member& a, const Member& b) { return a.key == b.key && a.value == b.value; }
};

// The JSON value in `text`; `source` names it in messages. BadInput if it is not JSON, nests deeper than 64 levels, or
// an object repeats a key: of two values most readers silently keep one, not all the same one, and they would see
// different models.
Json parse_json(const std::string& text, const std::string& source);

// As parse_json, and nothing if it is not JSON: for lines that a killed process may have left half written.
std::optional<Json> json_in(const std::string& text);

// What read_json_events meets in a text, in its order; whoever answers false has seen enough. Names and strings are the
// receiver's to keep.
class JsonEvents {
  public:
    virtual ~JsonEvents() = default;
    virtual bool null() = 0;
    virtual bool boolean(bool) = 0;
    virtual bool number_integer(int64_t) = 0;  // negative
    virtual bool number_unsigned(uint64_t) = 0;
    virtual bool number_float(double, const std::string& text) = 0;
    virtual bool string(std::string&) = 0;
    virtual bool start_object() = 0;
    virtual bool key(std::string&) = 0;
    virtual bool end_object() = 0;
    virtual bool start_array() = 0;
    virtual bool end_array() = 0;
    // The text is not JSON at this byte, or (too_large) holds a number beyond a double there.
    virtual bool parse_error(size_t position, bool too_large) = 0;
};

// For texts that are not to be held as a whole. False if the receiver stopped, or answered parse_error with false.
bool read_json_events(std::string_view text, JsonEvents& events);

// The JSON value in a file of at most max_bytes. BadInput as read_file and parse_json.
Json read_json(const std::string& path, uint64_t max_bytes = 16 << 20);

}  // namespace lnfree
