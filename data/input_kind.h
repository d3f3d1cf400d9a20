// What a file is, by its first bytes and its name: so that a compressed file, a table or another program's tokens are not
// taken for text, and text not for tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "data/error.h"

namespace lnfree {

// The name of a format that begins with bytes of its own ("Parquet", "zstd data"), which is neither text nor token ids
// without a header; empty if these are the first bytes of none that is known here. Looks at no more than 512 bytes.
std::string format_by_first_bytes(std::string_view beginning);

// Whether these are lines of ASCII and nothing else; says no of fewer than 64 bytes.
bool is_plain_ascii(std::string_view beginning);

// How an input of documents is to be read.
enum class InputFormat {
    automatic,  // as its name and its first bytes say
    text,
    json_lines,  // one JSON object a line
};

// "auto", "text" or "jsonl", as --format has it. BadInput for anything else.
InputFormat parse_input_format(const std::string& word);

// An input's beginning, decompressed: all that decides how it is read.
struct InputBeginning {
    std::string name;        // for messages
    std::string path;        // decides what is expected: .jsonl, .txt, ...; empty for standard input
    std::string_view bytes;  // of up to first_bytes_of_input
    bool whole = false;      // there is no more than these
};

constexpr uint64_t first_bytes_of_input = 64 << 10;

// Whether the name ends in .gz or .gzip, in capitals or not.
bool named_as_gzip(const std::string& path);

// BadInput if the name says that it is neither text nor JSON lines: before it is opened. A final .gz is passed over, and
// capitals count as small letters.
void check_input_name(const std::string& path);

// text or json_lines. BadInput, naming the input and what to do, for a format that is neither (compressed twice, a table,
// UTF-16, token ids, one JSON value for the whole file), and where an input that is not called .jsonl begins like JSON
// lines and `asked` does not say which of the two is meant.
InputFormat input_format(const InputBeginning& beginning, InputFormat asked);

}  // namespace lnfree
