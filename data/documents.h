// Documents, read one after another from text files, JSON lines, gzip of both, and standard input, in bounded memory.
//
//     DocumentReader reader({"books.txt", "web.jsonl.gz"}, {});
//     for (DocumentPiece piece; reader.next(piece);) use(piece_text(piece, "text"), piece.ends_document);
//
// Name and first bytes decide what a file is (data/input_kind.h): JSON lines hold one document each, a text file is one
// document unless a separator is given. Compressed ones end in .gz. A byte-order mark at the start of a file is no text.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/error.h"
#include "data/input_kind.h"
#include "data/pretokenize.h"

namespace lnfree {

// What a person typed for a separator: \n, \t, \r and \\ stand for line feed, tab, carriage return and backslash,
// everything else for itself.
std::string unescape_separator(std::string_view typed);

// How text files are cut; the defaults are right but for the separator.
struct DocumentOptions {
    InputFormat format = InputFormat::automatic;
    std::string separator;           // exact bytes between the documents of a text file; empty: one document per file
    uint64_t piece_bytes = 1 << 20;  // text is handed over in pieces of about this size
    uint64_t max_piece_bytes = 16 << 20;  // where text without any safe place is cut anyway
    uint64_t max_line_bytes = 128 << 20;  // the longest JSON line
    Split split = Split::gpt2;            // where a piece may end (Tokenizer)
    std::vector<std::string> unbroken;    // a piece ends neither in one of these nor right behind it (Tokenizer)
};

// A document or a part of one, as it lies in the input.
struct DocumentPiece {
    std::string bytes;           // text, or the JSON line that holds it
    bool is_json = false;        //
    bool ends_document = false;  // false: the next piece continues this document
    bool continues = false;      // the piece before this one is of the same document
    std::string input;           // name of the input, for messages
    uint64_t line = 0;           // of a JSON line, from 1
};

// One input, decompressed; only documents.cpp knows more.
class InputBytes;

// Reads the documents of all inputs in order. Text is split only where tokens cannot change by it (last_safe_cut), so
// the pieces of a document may be tokenised one by one.
//
// Empty documents of text files are skipped (a separator at the end of a file makes one); a JSON line with an empty text
// counts. Blank lines between JSON lines are skipped.
class DocumentReader {
  public:
    // Looks at the beginning of every file. Throws BadInput if one does not exist, is a folder, or is something else than
    // text and JSON lines.
    DocumentReader(std::vector<std::string> inputs, DocumentOptions options);
    ~DocumentReader();

    // The next piece, or false after the last. Throws BadInput for an input that cannot be read.
    bool next(DocumentPiece& piece);

    // How far the inputs are read, and how much there is: bytes of the files as they lie on the disk. The total is 0 if
    // it cannot be known (standard input).
    uint64_t bytes_done() const;
    uint64_t bytes_total() const { return total_known_ ? bytes_total_ : 0; }

  private:
    void check_input(const std::string& input);
    InputFormat format_of(const InputBytes& source) const;
    bool open_next_input();

    // The bytes read and not yet handed over.
    std::string_view waiting() const { return std::string_view(buffer_).substr(start_); }

    // Makes at least piece_bytes wait, and twice as many as before, but no more than `most`.
    void read_more(uint64_t most);

    // Hands over the first `bytes` waiting bytes and passes over `skip` more.
    void hand_over(DocumentPiece& piece, uint64_t bytes, uint64_t skip, bool ends_document);

    bool next_line(DocumentPiece& piece);

    // Sets line_end_ to where the first waiting line ends; false if nothing waits.
    bool find_line_end();

    bool next_text(DocumentPiece& piece);
    uint64_t find_separator() const;

    // How much of `text`, which is neither the end of the input nor holds a separator, can be handed over; 0: none yet.
    // The last bytes stay if they may be the beginning of a separator. Text without a safe place in max_piece_bytes is
    // cut between any two characters; then, and only then, tokens at the cut may differ from those of the whole text.
    uint64_t place_to_cut(std::string_view text) const;

    // Whether text that ends at `cut` ends in one of options_.unbroken or right behind it.
    bool ends_in_unbroken(std::string_view text, uint64_t cut) const;

    std::vector<std::string> inputs_;
    DocumentOptions options_;
    uint64_t bytes_total_ = 0;
    bool total_known_ = true;
    uint64_t bytes_of_finished_inputs_ = 0;

    uint64_t next_input_ = 0;
    std::unique_ptr<InputBytes> source_;  // the input being read; what follows is about it
    bool is_json_ = false;
    bool at_end_ = false;           // everything is read, the rest is in the buffer
    bool inside_document_ = false;  // a piece was handed over that did not end its document
    std::string buffer_;
    uint64_t start_ = 0;  // of the waiting bytes in the buffer
    uint64_t line_end_ = 0;
    uint64_t line_ = 0;  // lines handed over or skipped
};

// A JSON line that holds no document; see piece_text.
struct BadLine : BadInput {
    using BadInput::BadInput;
};

// `line` with every \uD800 ... \uDFFF escape that is not half of a pair replaced by \uFFFD. Python writes such halves
// when a text was cut in the middle of a character; tiktoken reads them as U+FFFD too.
std::string replace_lone_surrogates(std::string line);

// `line` with every NaN, Infinity and number beyond a double that is no part of a string replaced by null. Python writes
// and reads them.
std::string replace_nonfinite_numbers(std::string line);

// The text of a piece: for a JSON line the string under `key`. Throws BadLine naming input and line if the line is not a
// JSON object, has no such key, or has something else than a string there. What Python's json takes beyond the standard is
// taken: the two functions above.
std::string piece_text(DocumentPiece&& piece, const std::string& key);

}  // namespace lnfree
