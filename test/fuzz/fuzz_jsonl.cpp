// libFuzzer target for documents. The first byte chooses the sizes in which the rest, a file of JSON lines and then one of
// text, is read. Every line must give the text that nlohmann-json finds when it parses the line whole, or BadInput; the
// pieces of the text must make up the text.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "data/documents.h"

namespace {

using namespace lnfree;

void require(bool condition) {
    if (!condition) std::abort();
}

std::string written(const std::string& name, const std::string& bytes) {
    const auto folder = std::filesystem::temp_directory_path() / ("fuzz-jsonl-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder);
    std::ofstream(folder / name, std::ios::binary) << bytes;
    return folder / name;
}

DocumentOptions options_for(uint8_t size) {
    DocumentOptions options;
    options.piece_bytes = 1 + size % 16;
    options.max_piece_bytes = options.piece_bytes + 8 + size / 16;
    options.separator = size % 3 == 0 ? "\n\n" : "";
    if (size % 5 == 0) options.unbroken = {"a b", " \n"};
    return options;
}

void check_line(DocumentPiece&& piece) {
    const std::string line = piece.bytes;
    std::string text;
    try {
        text = piece_text(std::move(piece), "text");
    } catch (const BadInput&) {
        return;  // repeated keys and zero bytes are refused on purpose, so this says nothing about the line
    }
    const nlohmann::json value = nlohmann::json::parse(replace_nonfinite_numbers(replace_lone_surrogates(line)));
    require(value.at("text") == text);
}

void read_lines(const std::string& file, const DocumentOptions& options) {
    DocumentReader reader({written("a.jsonl", file)}, options);
    uint64_t last_line = 0;
    for (DocumentPiece piece; reader.next(piece);) {
        require(piece.is_json && piece.ends_document && piece.line > last_line);
        last_line = piece.line;
        check_line(std::move(piece));
    }
}

void read_text(const std::string& file, const DocumentOptions& options) {
    std::string all;
    DocumentReader reader({written("a.txt", file)}, options);
    for (DocumentPiece piece; reader.next(piece);) all += piece.bytes;
    const bool marked = file.substr(0, 3) == "\xEF\xBB\xBF";  // a byte-order mark, which is no text
    if (options.separator.empty()) require(all == file.substr(marked ? 3 : 0));
    require(all.size() <= file.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string file(data + 1, data + size);
    try {
        read_lines(file, options_for(data[0]));
    } catch (const BadInput&) {
    }
    try {
        read_text(file, options_for(data[0]));
    } catch (const BadInput&) {  // compressed, UTF-16, JSON lines: no text
    }
    return 0;
}
