// Tests of data/documents.h: what counts as a document, that cutting one into pieces changes nothing, and that every kind
// of damage is named together with its file and line.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <cstdint>
#include <string>
#include <vector>

#include "data/documents.h"
#include "data/random.h"
#include "test/file_helpers.h"

using namespace lnfree;

namespace {

using Texts = std::vector<std::string>;

void write_gzip(const std::string& path, const std::string& bytes, const char* mode = "wb") {
    gzFile file = gzopen(path.c_str(), mode);
    REQUIRE(file != nullptr);
    REQUIRE(gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size())) == static_cast<int>(bytes.size()));
    REQUIRE(gzclose(file) == Z_OK);
}

Texts pieces_of(const Texts& inputs, const DocumentOptions& options) {
    Texts pieces;
    DocumentReader reader(inputs, options);
    for (DocumentPiece piece; reader.next(piece);) pieces.push_back(piece_text(std::move(piece), "text"));
    return pieces;
}

// Whole documents, put together from their pieces.
Texts documents_of(const Texts& inputs, const DocumentOptions& options = {}, const std::string& key = "text") {
    Texts documents;
    bool inside = false;
    DocumentReader reader(inputs, options);
    for (DocumentPiece piece; reader.next(piece);) {
        const bool ends = piece.ends_document;
        if (!inside) documents.emplace_back();
        documents.back() += piece_text(std::move(piece), key);
        inside = !ends;
    }
    CHECK_FALSE(inside);
    return documents;
}

std::string failure_of(const Texts& inputs, const std::string& key = "text") {
    std::string message = message_of<BadInput>([&] { documents_of(inputs, {}, key); });
    CHECK(is_one_line(message));
    return message;
}

DocumentOptions with_separator(const std::string& separator) {
    DocumentOptions options;
    options.separator = separator;
    return options;
}

}  // namespace

// ---- text ------------------------------------------------------------------------------------------------------------

TEST_CASE("a text file is one document, byte for byte") {
    const TemporaryFolder folder;
    const std::string bytes(" a\r\n\0b\xFF <|endoftext|>\n\n\xEF\xBB\xBF", 24);
    write_bytes(folder / "a.txt", bytes);
    write_bytes(folder / "b.md", "second");
    write_bytes(folder / "empty.txt", "");
    CHECK(documents_of({folder / "a.txt", folder / "empty.txt", folder / "b.md"}) == Texts{bytes, "second"});
}

TEST_CASE("a separator divides a text file; empty documents do not count") {
    const TemporaryFolder folder;
    const std::string path = folder / "a.txt";
    write_bytes(path, "one\n--\ntwo\n--\n\n--\nthree--\n--\n--\n");
    CHECK(documents_of({path}, with_separator("\n--\n")) == Texts{"one", "two", "three--", "--\n"});
    CHECK(documents_of({path}, with_separator("--")) == Texts{"one\n", "\ntwo\n", "\n\n", "\nthree", "\n", "\n", "\n"});
    CHECK(documents_of({path}, with_separator("nowhere")).size() == 1);
    write_bytes(path, "--");
    CHECK(documents_of({path}, with_separator("--")).empty());
    CHECK(
        contains(message_of<BadInput>([&] { documents_of({path}, with_separator(std::string(1025, '-'))); }), "1024"));
}

TEST_CASE("a separator may be typed with escapes") {
    CHECK(unescape_separator("<|endoftext|>") == "<|endoftext|>");
    CHECK(unescape_separator("\\n\\t\\r\\\\n") == "\n\t\r\\n");
    CHECK(unescape_separator("a\\x\\") == "a\\x\\");
}

TEST_CASE("pieces of any size make up the same documents") {
    SplitMix64 random(21);
    const TemporaryFolder folder;
    const std::string path = folder / "a.txt";
    for (int round = 0; round < 300; ++round) {
        std::string text;
        for (uint64_t n = random.below(200); n > 0; --n) text += "ab \n-\xC3\xA9"[random.below(7)];
        write_bytes(path, text);
        for (const char* separator : {"", "-", "\n-", "--\n-"}) {
            const Texts whole = documents_of({path}, with_separator(separator));
            DocumentOptions options = with_separator(separator);
            options.piece_bytes = 1 + random.below(20);
            options.max_piece_bytes = options.piece_bytes + 8 + random.below(30);
            if (documents_of({path}, options) != whole) {
                FAIL("'" << separator << "' " << options.piece_bytes << " " << options.max_piece_bytes << ": " << text);
            }
        }
    }
}

TEST_CASE("long text is handed over in pieces that end at safe places") {
    const TemporaryFolder folder;
    const std::string path = folder / "a.txt";
    write_bytes(path, "one two  three\nfour five");
    DocumentOptions options;
    options.piece_bytes = 10;
    CHECK(pieces_of({path}, options) == Texts{"one two", "  three", "\nfour", " five"});
    const std::string words = "longer-than-a-piece and more";
    write_bytes(path, words);
    CHECK(pieces_of({path}, options) == Texts{"longer-than-a-piece", " and more"});
}

TEST_CASE("text without any safe place is cut between characters") {
    const TemporaryFolder folder;
    const std::string path = folder / "a.txt";
    const std::string word = "漢字漢字漢字漢字";
    write_bytes(path, word);
    DocumentOptions options;
    options.piece_bytes = 5;
    options.max_piece_bytes = 11;
    const Texts pieces = pieces_of({path}, options);
    CHECK(pieces.size() > 2);
    std::string all;
    for (const std::string& piece : pieces) {
        CHECK(piece.size() % 3 == 0);
        all += piece;
    }
    CHECK(all == word);
}

// ---- JSON lines ------------------------------------------------------------------------------------------------------

TEST_CASE("each JSON line is a document, even an empty one") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl",
                "{\"text\": \"one\\ntwo\"}\n\n  \r\n"
                "{\"meta\": {\"text\": 5, \"x\": [{\"text\": null}]}, \"text\": \"\\u00e9\\ud83d\\ude00\\u0000\"}\r\n"
                "{\"text\":\"\"}\n"
                "{\"text\":\"last\",\"n\":1.5e3,\"b\":true}");
    CHECK(documents_of({folder / "a.jsonl"}) == Texts{"one\ntwo", std::string("é😀\0", 7), "", "last"});
}

TEST_CASE("another key may hold the text") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.ndjson", "{\"text\": 3, \"story\": \"once\"}\n");
    CHECK(documents_of({folder / "a.ndjson"}, {}, "story") == Texts{"once"});
}

TEST_CASE("JSON lines longer than a piece stay whole") {
    const TemporaryFolder folder;
    const std::string longer(1000, 'x');
    write_bytes(folder / "a.jsonl", "{\"text\": \"" + longer + "\"}\n{\"text\": \"b\"}\n");
    DocumentOptions options;
    options.piece_bytes = 7;
    CHECK(documents_of({folder / "a.jsonl"}, options) == Texts{longer, "b"});
    options.max_line_bytes = 999;
    const std::string message = message_of<BadInput>([&] { documents_of({folder / "a.jsonl"}, options); });
    CHECK(contains(message, "a.jsonl line 1 is longer than 999 bytes"));
}

TEST_CASE("half a surrogate pair becomes U+FFFD") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl",
                "{\"text\": \"a\\ud83d b\"}\n{\"text\": \"\\uDE00\\ud83d\\ude00\\ud83d\"}\n"
                "{\"text\": \"\\\\ud83d\\ud83d\\ud83d\\ude00\"}\n");
    CHECK(documents_of({folder / "a.jsonl"}) == Texts{"a\uFFFD b", "\uFFFD😀\uFFFD", "\\ud83d\uFFFD😀"});
}

TEST_CASE("a wrong JSON line is named") {
    const TemporaryFolder folder;
    const std::string path = folder / "a.jsonl";
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"{\"text\": \"x\"", "not valid JSON"},
        {"{\"text\": \"x\"} {}", "not valid JSON"},
        {"{\"text\": \"\xFF\"}", "not valid JSON"},
        {"{\"text\": \"\\u12\"}", "not valid JSON"},
        {"\"text\"", "not a JSON object"},
        {"[{\"text\": \"x\"}]", "not a JSON object"},
        {"12", "not a JSON object"},
        {"{}", "has no key \"text\""},
        {"{\"Text\": \"x\", \"in\": {\"text\": \"x\"}}", "has no key \"text\""},
        {"{\"text\": 12}", "something else than a string under \"text\""},
        {"{\"text\": null}", "something else than a string"},
        {"{\"text\": [\"x\"]}", "something else than a string"},
        {"{\"text\": {\"text\": \"x\"}}", "something else than a string"},
        {"{\"text\": \"x\", \"text\": \"y\"}", "\"text\" twice"},
        {std::string("{\"text\": \"x\"}\0", 14), "zero byte"},
    };
    for (const auto& [line, problem] : cases) {
        write_bytes(path, "{\"text\": \"good\"}\n\n" + line + "\n{\"text\": \"good\"}\n");
        const std::string message = failure_of({path});
        CAPTURE(message);
        CHECK(contains(message, path + " line 3 "));
        CHECK(contains(message, problem));
    }
    CHECK(contains(failure_of({path}, "a\nb"), "--text-key"));
}

TEST_CASE("NaN, Infinity and numbers beyond a double do no harm outside the text, as in Python") {
    CHECK(replace_nonfinite_numbers(R"({"a":NaN,"b": [-Infinity,Infinity ,1e999, -1E+400],"c":"NaN \" NaN"})") ==
          R"({"a":null,"b": [null,null ,null, null],"c":"NaN \" NaN"})");
    CHECK(replace_nonfinite_numbers(R"({"a": 1e5, "b": nan, "c": -0.5E-999, "d": true, "e": "\\", "f": NaN})") ==
          R"({"a": 1e5, "b": nan, "c": -0.5E-999, "d": true, "e": "\\", "f": null})");
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl",
                "{\"score\": NaN, \"text\": \"NaN\"}\n{\"text\": \"b\", \"x\": [Infinity, 1e400]}\n");
    CHECK(documents_of({folder / "a.jsonl"}) == Texts{"NaN", "b"});
    write_bytes(folder / "a.jsonl", "{\"text\": NaN}\n");
    CHECK(contains(failure_of({folder / "a.jsonl"}), "something else than a string"));
    write_bytes(folder / "a.jsonl", "{\"text\": \"a\", \"x\": nan}\n");
    CHECK(contains(failure_of({folder / "a.jsonl"}), "not valid JSON"));
}

// ---- what a file is --------------------------------------------------------------------------------------------------

TEST_CASE("JSON lines are known by their name in any case, by their content where the name is .json") {
    const TemporaryFolder folder;
    const std::string lines = "\n{\"text\": \"one\"}\r\n\r\n{\"text\": \"two\"}\n\n";
    for (const char* name : {"a.JSONL", "b.jsonlines", "c.ndjson", "d.json", "e.Json"}) {
        CAPTURE(name);
        write_bytes(folder / name, lines);
        CHECK(documents_of({folder / name}) == Texts{"one", "two"});
        write_gzip(folder / (std::string(name) + ".GZ"), lines);
        CHECK(documents_of({folder / (std::string(name) + ".GZ")}) == Texts{"one", "two"});
    }
}

TEST_CASE("a byte-order mark at the start of a file is no text") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.txt", "\xEF\xBB\xBFone");
    write_gzip(folder / "b.jsonl.gz", "\xEF\xBB\xBF{\"text\": \"\xEF\xBB\xBFtwo\"}\n");
    write_bytes(folder / "c.txt", "\xEF\xBB\xBF");
    CHECK(documents_of({folder / "a.txt", folder / "b.jsonl.gz", folder / "c.txt"}) == Texts{"one", "\xEF\xBB\xBFtwo"});
}

TEST_CASE("what is neither text nor JSON lines is refused by its content, with what to do") {
    const TemporaryFolder folder;
    const std::string text = "It was a dark and stormy night; the rain fell in torrents, except at intervals.";
    std::string wide, wider;
    for (const char c : text) wide += std::string{c, '\0'}, wider += std::string{c, '\0', '\0', '\0'};
    const std::vector<std::pair<std::string, std::string>> cases = {
        {std::string("PAR1\x15\x04", 6), "is Parquet"},
        {"\x28\xB5\x2F\xFD rest", "is zstd data"},
        {std::string("\xFD"
                     "7zXZ\0\0",
                     7),
         "is xz data"},
        {"BZh91AY&SYabc", "is bzip2 data"},
        {"PK\x03\x04rest", "is a zip archive"},
        {"7z\xBC\xAF\x27\x1C", "is a 7z archive"},
        {"\x93NUMPY\x01", "is NumPy's .npy"},
        {"%PDF-1.4", "is PDF"},
        {std::string(257, 'a') + "ustar", "is a tar archive"},
        {"\xFF\xFE" + wide, "iconv -f UTF-16 -t UTF-8"},
        {"\xFE\xFF" + wide, "iconv -f UTF-16"},
        {std::string("\xFF\xFE\0\0", 4) + wider, "iconv -f UTF-32"},
        {wide, "zero bytes"},
        {std::string(100, '\0'), "zero bytes"},
        {"{\"text\": \"one\"}\n", "--format jsonl"},
        {"\n { \"a\\\"b\" : 3,\n", "--format text"},
    };
    for (const auto& [bytes, expected] : cases) {
        CAPTURE(expected);
        for (const char* name : {"a.txt", "a", "a.md"}) {
            write_bytes(folder / name, bytes);
            CHECK(contains(failure_of({folder / name}), folder / name));
            CHECK(contains(failure_of({folder / name}), expected));
        }
        write_gzip(folder / "a.txt.gz", bytes);
        CHECK(contains(failure_of({folder / "a.txt.gz"}), expected));
    }
    write_gzip(folder / "twice.gz", read_bytes(folder / "a.txt.gz"));
    CHECK(contains(failure_of({folder / "twice.gz"}), "is gzip data"));
    for (const char* fine : {"BZh, said he", "BZh", "PKZIP", "{ \"a\" }", "{}", "{{", "{\"open", "a\0b", "[1, 2]"}) {
        write_bytes(folder / "fine.txt", fine);
        CHECK(documents_of({folder / "fine.txt"}) == Texts{fine});
    }
}

TEST_CASE("one JSON value for a whole file is refused with the command that makes lines of it") {
    const TemporaryFolder folder;
    for (const char* name : {"a.json", "a.jsonl", "a.json.gz"}) {
        const std::string list = "[\n {\"text\": \"one\"}\n]\n";
        contains(name, ".gz") ? write_gzip(folder / name, list) : write_bytes(folder / name, list);
        CHECK(contains(failure_of({folder / name}), "jq -c '.[]'"));
    }
    write_bytes(folder / "a.json", "{\n  \"text\": \"one\"\n}\n");
    CHECK(contains(failure_of({folder / "a.json"}), "jq -c ."));
    write_bytes(folder / "a.json", "no JSON");
    CHECK(contains(failure_of({folder / "a.json"}), "JSON as a whole"));
}

TEST_CASE("--format says what an input is where its name does not") {
    CHECK(parse_input_format("auto") == InputFormat::automatic);
    CHECK(contains(message_of<BadInput>([] { parse_input_format("json"); }), "use auto, text or jsonl"));
    const TemporaryFolder folder;
    const std::string line = "{\"text\": \"one\"}";
    DocumentOptions options;
    for (const char* name : {"a.txt", "a.csv", "a.jsonl"}) {
        write_bytes(folder / name, line);
        options.format = InputFormat::json_lines;
        CHECK(documents_of({folder / name}, options) == Texts{"one"});
        options.format = InputFormat::text;
        CHECK(documents_of({folder / name}, options) == Texts{line});
    }
    write_bytes(folder / "a.csv", "PAR1");
    CHECK(contains(message_of<BadInput>([&] { DocumentReader({folder / "a.csv"}, options); }), "Parquet"));
}

TEST_CASE("a piece ends neither in a text that must stay whole nor right behind it, and says that it goes on") {
    const TemporaryFolder folder;
    const std::string path = folder / "a.txt";
    write_bytes(path, "one two three<x> four five six");
    DocumentOptions options;
    options.piece_bytes = 16;
    options.unbroken = {"<x>", "two three", "six and more"};
    Texts pieces;
    std::vector<bool> continues;
    DocumentReader reader({path}, options);
    for (DocumentPiece piece; reader.next(piece);) {
        continues.push_back(piece.continues);
        pieces.push_back(piece_text(std::move(piece), "text"));
    }
    CHECK(pieces == Texts{"one", " two three<x> four five", " six"});
    CHECK(continues == std::vector<bool>{false, true, true});
}

// ---- gzip, standard input, what cannot be read -----------------------------------------------------------------------

TEST_CASE("gzip files are read like plain ones, several members too") {
    const TemporaryFolder folder;
    std::string text;
    for (int i = 0; i < 100000; ++i) text += std::to_string(i) + " ";
    write_gzip(folder / "a.txt.gz", text);
    write_gzip(folder / "b.jsonl.gz", "{\"text\": \"one\"}\n");
    write_gzip(folder / "b.jsonl.gz", "{\"text\": \"two\"}\n", "ab");
    DocumentOptions options;
    options.piece_bytes = 1000;
    CHECK(documents_of({folder / "a.txt.gz", folder / "b.jsonl.gz"}, options) == Texts{text, "one", "two"});
}

TEST_CASE("damaged gzip files are refused") {
    const TemporaryFolder folder;
    std::string text;
    for (int i = 0; i < 10000; ++i) text += std::to_string(i * i);
    write_gzip(folder / "good.txt.gz", text);
    const std::string good = read_bytes(folder / "good.txt.gz");
    const std::string path = folder / "a.txt.gz";
    for (const uint64_t left : {good.size() - 1, good.size() / 2, uint64_t{11}}) {
        write_bytes(path, good.substr(0, left));
        CHECK(contains(failure_of({path}), path + " is cut short"));
    }
    std::string changed = good;
    changed[good.size() - 6] ^= 1;  // of the check sum
    write_bytes(path, changed);
    CHECK(contains(failure_of({path}), path + " holds damaged gzip data"));
    write_bytes(path, "plain text");
    CHECK(contains(failure_of({path}), "not gzip data"));
    write_bytes(path, "");
    CHECK(contains(failure_of({path}), path));
    write_bytes(folder / "a.txt", good);
    CHECK(contains(failure_of({folder / "a.txt"}), "is gzip data"));
}

TEST_CASE("inputs that cannot be documents are refused before anything is read") {
    const TemporaryFolder folder;
    const char* const refused[] = {"b.parquet", "c.bin", "d.tar.gz", "e.jsonl.zst", "F.JSONL.ZSTD", "g.csv", "h.npy"};
    for (const char* name : refused) write_bytes(folder / name, "x");
    write_bytes(folder / "a.json", "x");
    const auto refusal = [](const std::string& path) {
        return message_of<BadInput>([&] { DocumentReader({path}, {}); });
    };
    CHECK(contains(refusal(folder / "missing.txt"), "missing.txt"));
    CHECK(contains(refusal(folder.path()), "is a folder; name the files"));
    write_bytes(folder / "dataset_info.json", "{}");
    CHECK(contains(refusal(folder.path()), "load_from_disk(...).to_json"));
    CHECK(contains(refusal(folder / "a.json"), ".jsonl"));
    for (const char* name : refused) CHECK(contains(refusal(folder / name), name));
}

TEST_CASE("standard input is text") {
    const TemporaryFolder folder;
    write_bytes(folder / "in", "from a pipe");
    const int saved = ::dup(STDIN_FILENO);
    const int file = ::open((folder / "in").c_str(), O_RDONLY);
    ::dup2(file, STDIN_FILENO);
    ::close(file);
    CHECK(documents_of({"-"}) == Texts{"from a pipe"});
    CHECK(DocumentReader({"-"}, {}).bytes_total() == 0);
    ::dup2(saved, STDIN_FILENO);
    ::close(saved);
}

TEST_CASE("progress counts the bytes of a pipe, whose length nobody knows") {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    REQUIRE(::write(ends[1], "0123456789", 10) == 10);
    ::close(ends[1]);
    const int saved = ::dup(STDIN_FILENO);
    ::dup2(ends[0], STDIN_FILENO);
    ::close(ends[0]);
    DocumentReader reader({"-"}, {});
    for (DocumentPiece piece; reader.next(piece);) CHECK(piece.bytes.size() == 10);
    CHECK(reader.bytes_done() == 10);
    CHECK(reader.bytes_total() == 0);
    ::dup2(saved, STDIN_FILENO);
    ::close(saved);
}

TEST_CASE("progress counts the bytes of the files as they are on the disk") {
    const TemporaryFolder folder;
    write_gzip(folder / "a.txt.gz", std::string(100000, 'a'));
    write_bytes(folder / "b.txt", "bcd");
    const uint64_t total = read_bytes(folder / "a.txt.gz").size() + 3;
    DocumentReader reader({folder / "a.txt.gz", folder / "b.txt"}, {});
    CHECK(reader.bytes_total() == total);
    CHECK(reader.bytes_done() == 0);
    for (DocumentPiece piece; reader.next(piece);) CHECK(reader.bytes_done() <= total);
    CHECK(reader.bytes_done() == total);
}
