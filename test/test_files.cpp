// data/files.h and data/json.h: files that are whole or not there, and JSON that means one thing only.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cmath>
#include <type_traits>
#include <utility>

#include "data/files.h"
#include "data/json.h"
#include "test/file_helpers.h"

using namespace lnfree;

TEST_CASE("a mapped file shows the file's bytes, and keeps its address when moved") {
    const TemporaryFolder folder;
    write_bytes(folder / "seven", "1234567");
    MappedFile first(folder / "seven");
    const unsigned char* const address = first.data();
    MappedFile second(std::move(first));
    CHECK(second.data() == address);
    CHECK(std::string(second.data(), second.data() + second.size()) == "1234567");
    CHECK(second.path() == folder / "seven");
    static_assert(!std::is_copy_constructible_v<MappedFile> && std::is_nothrow_move_constructible_v<MappedFile>);
    static_assert(!std::is_copy_assignable_v<MappedFile> && std::is_nothrow_move_assignable_v<MappedFile>);

    write_bytes(folder / "empty", "");
    second = MappedFile(folder / "empty");
    CHECK(second.size() == 0);
}

TEST_CASE("what cannot be mapped or read is refused by name") {
    const TemporaryFolder folder;
    ::mkfifo((folder / "pipe").c_str(), 0600);
    for (const std::string& path : {folder / "missing", folder.path(), folder / "pipe"}) {
        const std::string message = message_of<BadInput>([&] { MappedFile file(path); });
        CHECK(contains(message, path));
        CHECK(is_one_line(message));
    }
    CHECK(contains(message_of<BadInput>([&] { read_file(folder / "missing", 9); }), folder / "missing"));
    CHECK(contains(message_of<BadInput>([&] { read_file(folder.path(), 9); }), folder.path()));
}

TEST_CASE("read_file takes files of up to its limit") {
    const TemporaryFolder folder;
    const std::string text = std::string(70001, 'x') + '\0' + "y";  // longer than one read
    write_bytes(folder / "file", text);
    CHECK(read_file(folder / "file", text.size()) == text);
    CHECK(contains(message_of<BadInput>([&] { read_file(folder / "file", text.size() - 1); }), "larger"));
    CHECK(contains(message_of<BadInput>([] { read_file("/dev/zero", 1000); }), "larger"));
    write_bytes(folder / "empty", "");
    CHECK(read_file(folder / "empty", 0).empty());
}

TEST_CASE("write_file_atomically replaces a file whole and leaves nothing else") {
    const TemporaryFolder folder;
    write_file_atomically(folder / "file", "first");
    write_file_atomically(folder / "file", "and then");
    CHECK(read_bytes(folder / "file") == "and then");
    CHECK(folder.names() == std::set<std::string>{"file"});
    write_file_atomically(folder / "file", "");
    CHECK(read_bytes(folder / "file").empty());
}

TEST_CASE("a new file has the permissions that the user's umask gives, as any other") {
    const TemporaryFolder folder;
    const mode_t old_mask = ::umask(027);
    write_file_atomically(folder / "file", "text");
    ::umask(old_mask);
    CHECK(std::filesystem::status(folder / "file").permissions() == std::filesystem::perms(0640));
}

TEST_CASE("a full disk is a failed run, and the older file stays") {
    const TemporaryFolder folder;
    write_file_atomically(folder / "file", "old");
    const std::string message = message_of<RunFailure>([&] {
        const FileSizeLimit full(1000);
        write_file_atomically(folder / "file", std::string(1001, 'x'));
    });
    CHECK(contains(message, folder / "file"));
    CHECK(contains(message, "make room"));
    CHECK(read_bytes(folder / "file") == "old");
    CHECK(folder.names() == std::set<std::string>{"file"});
}

TEST_CASE("a folder that is missing, or in the file's place, is a failed run") {
    const TemporaryFolder folder;
    CHECK(contains(message_of<RunFailure>([&] { write_file_atomically(folder / "no/file", ""); }), "no/file"));
    std::filesystem::create_directory(folder / "taken");
    CHECK(contains(message_of<RunFailure>([&] { write_file_atomically(folder / "taken", ""); }), "rename"));
    CHECK(folder.names() == std::set<std::string>{"taken"});
    CHECK(contains(message_of<RunFailure>([&] { fsync_folder(folder / "no"); }), folder / "no"));
    CHECK_NOTHROW(fsync_folder(folder.path()));
}

TEST_CASE("a new file takes another temporary name when its first one is taken") {
    const TemporaryFolder folder;
    NewFile first(folder / "file");
    NewFile second(folder / "file");
    first.write("first", 5);
    second.write("2nd", 3);
    second.publish();
    CHECK(read_bytes(folder / "file") == "2nd");
    first.overwrite(0, "F", 1);
    first.write("!", 1);
    CHECK(first.size() == 6);
    first.publish();
    CHECK(read_bytes(folder / "file") == "First!");
    CHECK(folder.names() == std::set<std::string>{"file"});
}

TEST_CASE("quoted names fit into one line") {
    CHECK(quoted_name("wte.weight") == "\"wte.weight\"");
    CHECK(quoted_name("a\nb\"\x7f\x1b") == "\"a?b???\"");
    CHECK(quoted_name(std::string(120, 'n')) == '"' + std::string(120, 'n') + '"');
    CHECK(quoted_name(std::string(121, 'n')) == '"' + std::string(120, 'n') + "...\"");
}

TEST_CASE("a JSON value keeps its kind and its members' order, and says what it is not") {
    Json j = {{"z", 1}, {"a", Json::array({-2, 2.5, "x", true, nullptr})}};
    j["n"]["of"] = std::vector<size_t>{3, 4};
    j["z"] = uint64_t{1} << 63;
    const std::string text = R"({"z":9223372036854775808,"a":[-2,2.5,"x",true,null],"n":{"of":[3,4]}})";
    CHECK(j.dump() == text);
    CHECK(parse_json(text, "x") == j);
    CHECK(parse_json(text, "x").dump() == text);
    CHECK(parse_json(R"({"b": 2, "a": [1]})", "x") == Json{{"a", Json::array({1.0})}, {"b", 2u}});
    CHECK(Json(-1) != Json(~uint64_t{0}));
    CHECK(j.at("a")[0].get<int>() == -2);
    CHECK(j["a"].back().is_null());
    CHECK(j.value("none", 7) == 7);
    CHECK(j.find("none") == nullptr);
    const Json& constant = j;
    CHECK_THROWS_WITH_AS(constant["none"], "the key \"none\" is missing", JsonError);
    CHECK_THROWS_WITH_AS(j["a"].at(5), "element 5 is missing", JsonError);
    CHECK_THROWS_WITH_AS(j["a"].items(), "an array where an object is expected", JsonError);
    CHECK_THROWS_WITH_AS(j["a"][2].number(), "a string where a number is expected", JsonError);
    CHECK(Json(-2.75).get<int64_t>() == -2);
    for (const double far : {4.7e75, -1e19, 9223372036854775808.0, HUGE_VAL, std::nan("")})
        CHECK_THROWS_WITH_AS(Json(far).get<int64_t>(), "a number where a whole number of 64 bits is expected",
                             JsonError);
    CHECK_THROWS_AS(Json("\xFF").dump(), JsonError);
    CHECK(Json("\xFF").dump(-1, true) == "\"\xEF\xBF\xBD\"");
    j.erase("a");
    j.update({{"z", 0}, {"y", 1}});
    CHECK(j.dump() == R"({"z":0,"n":{"of":[3,4]},"y":1})");
}

TEST_CASE(
    "a member of a JSON object stays where it is while others are added, so that one can be assigned to another") {
    Json j;
    const Json& first = j["first"] = "a text too long to lie inside the string itself";
    for (int i = 0; i < 100; i++) j["copy " + std::to_string(i)] = first;
    CHECK(&first == &j["first"]);
    CHECK(j["copy 99"] == first);
}

TEST_CASE("half a line of JSON is nothing, not an error") {
    CHECK(json_in(R"({"step": 3})")->at("step") == 3);
    CHECK_FALSE(json_in(R"({"step": 3)").has_value());
    CHECK_FALSE(json_in("").has_value());
}

TEST_CASE("JSON is read from text and from files") {
    const Json value = parse_json(R"({"a": [1, {"b": null}], "c": {"a": "twice, but elsewhere"}})", "x");
    CHECK(value["a"][1]["b"].is_null());
    CHECK(value["c"]["a"] == "twice, but elsewhere");
    const TemporaryFolder folder;
    write_bytes(folder / "file.json", "[1, 2.5]");
    CHECK(read_json(folder / "file.json")[1] == 2.5);
    CHECK(contains(message_of<BadInput>([&] { read_json(folder / "file.json", 7); }), "larger"));
}

TEST_CASE("JSON that is broken, ambiguous or too deep is refused in one line") {
    const std::string deep = std::string(65, '[') + std::string(65, ']');
    const std::string very_deep(1000000, '[');
    struct Case {
        std::string text, expected;
    };
    const Case cases[] = {
        {"", "not valid JSON"},
        {"{\"a\": 1,}", "not valid JSON: wrong at byte 9"},
        {"[1] 2", "not valid JSON"},
        {std::string("[1]\0", 4), "a zero byte"},
        {"[NaN]", "not valid JSON"},
        {"[1e999]", "not valid JSON"},
        {"\"\xff\"", "not valid JSON"},
        {"{\"a\": {\"b\": 1, \"b\": 1}}", "the key \"b\" appears twice"},
        {"{\"a\": 1, \"\\u0061\": 2}", "the key \"a\" appears twice"},
        {deep, "nested deeper than 64"},
        {very_deep, "nested deeper than 64"},
    };
    for (const Case& broken : cases) {
        CAPTURE(broken.expected);
        const std::string message = message_of<BadInput>([&] { parse_json(broken.text, "config.json"); });
        CHECK(contains(message, broken.expected));
        CHECK(contains(message, "config.json"));
        CHECK(is_one_line(message));
    }
    CHECK_NOTHROW(parse_json(deep.substr(1, deep.size() - 2), "config.json"));
}
