#include "data/input_kind.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>

#include "data/files.h"
#include "data/text.h"

namespace lnfree {

namespace {

using namespace std::string_view_literals;

struct FirstBytes {
    uint64_t offset;
    std::string_view bytes;
    const char* format;
};

constexpr FirstBytes known_formats[] = {
    {0, "\x1F\x8B\x08"sv, "gzip data"},
    {0, "\x28\xB5\x2F\xFD"sv, "zstd data"},
    {0,
     "\xFD"
     "7zXZ\0"sv,
     "xz data"},
    {0, "BZh"sv, "bzip2 data"},  // and then a digit, and pi
    {0, "\x04\x22\x4D\x18"sv, "lz4 data"},
    {0, "\xFF\x06\x00\x00sNaPpY"sv, "snappy data"},
    {0, "PK\x03\x04"sv, "a zip archive"},
    {0, "PK\x05\x06"sv, "a zip archive"},
    {0, "7z\xBC\xAF\x27\x1C"sv, "a 7z archive"},
    {0, "Rar!\x1A\x07"sv, "a rar archive"},
    {257, "ustar"sv, "a tar archive"},
    {0, "PAR1"sv, "Parquet"},
    {0, "ARROW1"sv, "Arrow"},
    {0, "\xFF\xFF\xFF\xFF\x10\x00\x00\x00"sv, "Arrow"},  // the stream that `datasets` saves: a schema message follows
    {0, "\xFF\xFF\xFF\xFF\x18\x00\x00\x00"sv, "Arrow"},
    {0, "Obj\x01"sv, "Avro"},
    {0, "ORC\n"sv, "ORC"},
    {0, "\x89HDF\r\n\x1A\n"sv, "HDF5"},
    {0, "SQLite format 3\0"sv, "an SQLite database"},
    {0, "\x93NUMPY"sv, "NumPy's .npy"},
    {0, "%PDF-"sv, "PDF"},
    {0, "\x89PNG\r\n\x1A\n"sv, "a PNG picture"},
    {0, "\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1"sv, "a Word or Excel document"},
    {0,
     "\x7F"
     "ELF"sv,
     "a program"},
};

std::string lower_case(std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
}

bool ends_with_any(const std::string& name, std::initializer_list<const char*> ends) {
    return std::any_of(ends.begin(), ends.end(), [&](const char* end) { return ends_with(name, end); });
}

// The name that counts: in small letters, without what says that it is compressed.
std::string plain_name(const std::string& path) {
    std::string name = lower_case(path);
    for (const char* end : {".gz", ".gzip"}) {
        if (ends_with_any(name, {end})) return name.substr(0, name.size() - std::strlen(end));
    }
    return name;
}

}  // namespace

std::string format_by_first_bytes(std::string_view beginning) {
    for (const FirstBytes& known : known_formats) {
        if (beginning.size() < known.offset + known.bytes.size()) continue;
        if (beginning.compare(known.offset, known.bytes.size(), known.bytes) != 0) continue;
        if (known.bytes == "BZh"sv && beginning.find("1AY&SY"sv) != 4) continue;
        return known.format;
    }
    return "";
}

bool is_plain_ascii(std::string_view beginning) {
    const auto plain = [](char c) { return (c >= 0x20 && c < 0x7F) || c == '\n' || c == '\r' || c == '\t'; };
    return beginning.size() >= 64 && std::all_of(beginning.begin(), beginning.end(), plain);
}

InputFormat parse_input_format(const std::string& word) {
    if (word == "auto") return InputFormat::automatic;
    if (word == "text") return InputFormat::text;
    if (word == "jsonl") return InputFormat::json_lines;
    throw BadInput("--format " + quoted_name(word) + ": use auto, text or jsonl");
}

bool named_as_gzip(const std::string& path) {
    return ends_with_any(lower_case(path), {".gz", ".gzip"});
}

void check_input_name(const std::string& path) {
    const std::string name = plain_name(path);
    const uint64_t dot = name.rfind('.');
    const std::string end = dot == std::string::npos ? "" : name.substr(dot);
    if (ends_with_any(name, {".parquet", ".arrow", ".feather", ".orc", ".avro", ".csv", ".tsv", ".xlsx", ".h5"})) {
        throw BadInput(path + ": tables such as " + end +
                       " are not read; write their text as JSON lines first (datasets and pandas do with to_json)");
    }
    if (ends_with_any(name, {".zst", ".zstd", ".xz", ".bz2", ".lz4", ".zip", ".tar", ".tgz", ".7z", ".rar"})) {
        throw BadInput(path + ": only text and JSON lines, plain or .gz, are read, not " + end +
                       "; unpack it, into a pipe if need be: --input -");
    }
    if (ends_with_any(name, {".bin", ".npy", ".npz", ".pt", ".pkl", ".safetensors", ".idx"})) {
        throw BadInput(path + ": only text and JSON lines, plain or .gz, are read, not " + end +
                       "; token ids need no tokenising: give their file to --data");
    }
}

namespace {

BadInput refusal(const InputBeginning& b, const std::string& what) {
    return BadInput(b.name + " " + what);
}

// BadInput for what is neither text nor JSON lines, whatever it is called.
void require_text(const InputBeginning& b) {
    const std::string format = format_by_first_bytes(b.bytes);
    if (!format.empty()) {
        throw refusal(b, "is " + format +
                             ": only text and JSON lines, plain or .gz, are read; unpack it, or write its text as "
                             "JSON lines first");
    }
    for (const std::string_view mark : {"\xFF\xFE"sv, "\xFE\xFF"sv, "\0\0\xFE\xFF"sv}) {
        if (begins_with(b.bytes, mark)) {
            throw refusal(
                b, "is UTF-16 or UTF-32 by its byte-order mark; convert it first: iconv -f " +
                       std::string(mark.size() == 4 || begins_with(b.bytes.substr(2), "\0\0"sv) ? "UTF-32" : "UTF-16") +
                       " -t UTF-8");
        }
    }
    const auto zeros = static_cast<uint64_t>(std::count(b.bytes.begin(), b.bytes.end(), '\0'));
    if (zeros > std::max<uint64_t>(1, b.bytes.size() / 100)) {
        throw refusal(b, "holds " + std::to_string(zeros) + " zero bytes in its first " +
                             std::to_string(b.bytes.size()) +
                             ": UTF-16 (convert it first: iconv -f UTF-16LE -t UTF-8), token ids or another "
                             "program's data, not text");
    }
}

constexpr char json_space[] = " \t\r\n";

// The first line that is not blank, as far as it is there; `complete` says whether its end is.
std::string_view first_line(const InputBeginning& b, bool& complete) {
    const uint64_t begin = std::min(b.bytes.find_first_not_of(json_space), b.bytes.size());
    const uint64_t end = b.bytes.find('\n', begin);
    complete = end != std::string_view::npos || b.whole;
    std::string_view line = b.bytes.substr(begin, end == std::string_view::npos ? end : end - begin);
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '\t')) line.remove_suffix(1);
    return line;
}

// Whether this is how a JSON object with members begins: { "key" :
bool begins_json_object(std::string_view line) {
    if (line.empty() || line[0] != '{') return false;
    const uint64_t quote = line.find_first_not_of(json_space, 1);
    if (quote == std::string_view::npos || line[quote] != '"') return false;
    uint64_t i = quote + 1;
    while (i < line.size() && line[i] != '"') i += line[i] == '\\' ? 2 : 1;
    const uint64_t colon = i < line.size() ? line.find_first_not_of(json_space, i + 1) : std::string_view::npos;
    return colon != std::string_view::npos && line[colon] == ':';
}

// BadInput if a file called .json or .jsonl begins like one JSON value of many lines.
void require_json_lines(const InputBeginning& b, bool named_json) {
    bool complete = false;
    const std::string_view line = first_line(b, complete);
    const bool list = !line.empty() && line[0] == '[';
    const bool unfinished = !line.empty() && line[0] == '{' && complete && line.back() != '}';
    if (list || (named_json && unfinished) || (named_json && !line.empty() && line[0] != '{')) {
        throw refusal(b, std::string("is ") + (list ? "a JSON array" : "JSON") +
                             " as a whole, which is not read; write one object per line: jq -c " +
                             (list ? "'.[]'" : ".") + " FILE > FILE.jsonl");
    }
}

}  // namespace

InputFormat input_format(const InputBeginning& b, InputFormat asked) {
    require_text(b);
    const std::string name = plain_name(b.path);
    const bool named_json = ends_with_any(name, {".json"});
    const bool named_lines = ends_with_any(name, {".jsonl", ".ndjson", ".jsonlines"});
    if (asked == InputFormat::text) return asked;
    if (asked == InputFormat::json_lines || named_json || named_lines) {
        require_json_lines(b, named_json);
        return InputFormat::json_lines;
    }
    bool complete = false;
    if (begins_json_object(first_line(b, complete))) {
        throw refusal(b,
                      "begins like JSON lines and is not called .jsonl; say which it is: --format jsonl, or --format "
                      "text to take the JSON itself for text");
    }
    return InputFormat::text;
}

}  // namespace lnfree
