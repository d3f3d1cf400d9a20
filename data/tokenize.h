// From documents to token shards: what the command `tokenize` does.
//
// One thread reads, all others tokenise, and the calling thread writes, in the order of the documents, so that the files
// are the same whatever the number of threads. What is in flight is bounded, so memory does not grow with the input.
//
//     PREFIX_train_000000.bin, ...   token shards (data/shards.h)
//     PREFIX_val_000000.bin, ...     the documents held out for validation
//     PREFIX.json                    tokenizer and counts (data/README.md)
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/error.h"

namespace lnfree {

// What to tokenise, and how.
struct TokenizeOptions {
    std::vector<std::string> inputs;  // files (data/documents.h); "-" is standard input
    std::string tokenizer = "byte";   // "byte" or a folder with tokenizer files
    std::string out;                  // PREFIX; its folder is made if need be
    double val_fraction = 0.05;       // share of the documents (of one document's tokens) held out, in [0, 1)
    uint64_t seed = 0;                // decides which documents are held out
    uint64_t shard_tokens = 100000000;
    std::string document_separator;  // between the documents of a text file, as typed (unescape_separator)
    std::string format = "auto";     // of the inputs: auto, text or jsonl (data/input_kind.h)
    std::string text_key = "text";   // of a JSON line
    bool skip_bad_lines = false;     // JSON lines without a text are passed over and counted
    bool allow_special = false;      // special tokens in the text, <|endoftext|> among them, become their ids
    int threads = 0;                 // that tokenise; 0: one per core
};

// What was written.
struct TokenizeResult {
    uint64_t documents_train = 0;
    uint64_t documents_val = 0;
    uint64_t tokens_train = 0;
    uint64_t tokens_val = 0;
    std::vector<std::string> paths;  // everything written: train shards, validation shards, PREFIX.json
    uint64_t bytes = 0;              // of text
    uint64_t special_as_text = 0;    // special tokens in the text that stayed ordinary text
    uint64_t skipped_lines = 0;
    std::string first_skipped_line;  // what was wrong with it, and where; empty: none was skipped
    double seconds = 0;
};

// Called from the thread that called tokenize_files: bytes of the inputs done, and of all inputs (0: unknown). It may
// throw to stop; then nothing is left behind.
using TokenizeProgress = std::function<void(uint64_t bytes_done, uint64_t bytes_total)>;

// Whether document number `index` is held out. Depends on nothing else, so that documents added at the end move none of
// the earlier ones.
bool is_held_out(uint64_t seed, uint64_t index, double fraction);

// The tokens of one document of any length: in memory, or from most_in_memory tokens on in a nameless file beside the
// output.
class TokenSpool {
  public:
    explicit TokenSpool(std::string prefix, uint64_t most_in_memory = 1 << 22)
        : prefix_(std::move(prefix)), most_in_memory_(most_in_memory) {}

    // Throws RunFailure if the disk is full.
    void append(const int32_t* tokens, uint64_t n);

    uint64_t size() const { return size_; }

    // Calls consume(tokens, n) for all tokens in order, in blocks, and is empty afterwards.
    void drain(const std::function<void(const int32_t* tokens, uint64_t n)>& consume);

  private:
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };

    void spill();
    void create_file();
    RunFailure failure(const char* what) const;

    std::string prefix_;
    uint64_t most_in_memory_;
    std::vector<int32_t> memory_;
    uint64_t size_ = 0;
    std::unique_ptr<std::FILE, Close> file_;
};

// Tokenises all documents of the inputs into shards. An earlier run's files under the same prefix are replaced.
//
// A document is held out for validation by is_held_out; with two or more documents and a fraction above 0 each side gets
// at least one, and of a single document the last tokens are held out. Throws BadInput for wrong options and unreadable
// or broken inputs, RunFailure if something cannot be written; either way nothing half-written stays.
TokenizeResult tokenize_files(const TokenizeOptions& options, const TokenizeProgress& progress = {});

}  // namespace lnfree
