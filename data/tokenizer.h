// Tokenizers: bytes (257 ids, needs no files) and byte-pair encoding over bytes as GPT-2, GPT-NeoX (Pythia), SmolLM2,
// Llama 3 and Qwen2 have it. Same text, same ids as tiktoken and as Hugging Face's tokenizers; the tests say on what.
//
//     auto tokenizer = load_tokenizer("byte");              // or a folder with tokenizer files
//     std::vector<int32_t> tokens;
//     tokenizer->encode("Once upon a time", tokens);        // appends
//     tokenizer->decode(tokens.data(), tokens.size());      // the same bytes again
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/added_tokens.h"
#include "data/error.h"
#include "data/json.h"
#include "data/pretokenize.h"

namespace lnfree {

// The text of the end-of-text token of GPT-2 and of byte models.
inline constexpr char end_of_text_string[] = "<|endoftext|>";

// 64-bit FNV-1a (Fowler, Noll, Vo) over 32-bit numbers, least significant byte first: enough to tell tokenizers apart,
// the same on every machine, no protection against forgery.
class Fingerprint {
  public:
    void add(uint32_t value);

    // 16 hexadecimal digits.
    std::string hex() const;

  private:
    uint64_t state_ = 0xCBF29CE484222325ull;
};

// A form of any bytes that fits on one line of a report: well-formed UTF-8 stays, control characters, the backslash and
// stray bytes become \n, \t, \\, \xNN.
std::string printable(std::string_view bytes);

// Text to token ids and back.
class Tokenizer {
  public:
    virtual ~Tokenizer() = default;

    // Appends the ids of `text`, which may be any bytes; decode() gives exactly these bytes back, but for a space before
    // the text where the tokenizer puts one, white space that an added token takes along, and form NFC. Added tokens
    // (data/added_tokens.h) become their one id, special ones such as <|endoftext|> only if allow_special; returns how
    // often a special one stayed ordinary text. `continues`: the text goes on with an earlier one, from which it was cut
    // (unbroken). BadInput for a special token that is allowed and cannot be used. Any number of threads may call it.
    virtual uint64_t encode(std::string_view text, std::vector<int32_t>& out, bool allow_special = false,
                            bool continues = false) const = 0;

    // What splits a text into pieces, for last_safe_cut.
    virtual Split split() const { return Split::gpt2; }

    // Beyond what last_safe_cut says, a text may be cut into parts to be encoded one after the other only where none of
    // these is divided or touched.
    virtual std::vector<std::string> unbroken() const { return {}; }

    // The bytes of n tokens. Throws BadInput for an id outside the vocabulary.
    virtual std::string decode(const int32_t* tokens, uint64_t n) const = 0;

    // Whether there is a token of this id, which decode can show: models may have ids beyond, and vocabularies gaps.
    virtual bool has(int32_t token) const = 0;

    // Number of ids; every id that encode gives is below it.
    virtual uint32_t vocab_size() const = 0;

    // Id of the token that ends a document.
    virtual int32_t end_of_text() const = 0;

    // "byte" or "bpe".
    virtual std::string name() const = 0;

    // 16 hexadecimal digits that depend on what encode does, special tokens not allowed, and on nothing else: the same for
    // every file form of one vocabulary, different for two vocabularies that give some text different ids.
    virtual std::string fingerprint() const = 0;

    // Writes the tokenizer's files into an existing folder, so that load_tokenizer and Hugging Face's AutoTokenizer can
    // load it from there. Throws RunFailure if a file cannot be written.
    virtual void save(const std::string& folder) const = 0;

    // One token for people to read (printable() of its bytes); never throws for a strange id.
    std::string token_text(int32_t token) const;
};

// Which character stands for each byte in the files of GPT-2-like vocabularies (encoder.py, bytes_to_unicode): the 188
// visible characters of Latin-1 stand for themselves, the other 68 bytes, in order, for U+0100 and upwards, so that no
// token contains white space or control characters.
const std::vector<std::string>& byte_symbols();

// Ids 0 ... 255 are the bytes themselves, 256 is <|endoftext|>.
class ByteTokenizer final : public Tokenizer {
  public:
    uint64_t encode(std::string_view text, std::vector<int32_t>& out, bool allow_special = false,
                    bool continues = false) const override;
    std::string decode(const int32_t* tokens, uint64_t n) const override;
    bool has(int32_t token) const override { return token >= 0 && token < 257; }

    uint32_t vocab_size() const override { return 257; }
    int32_t end_of_text() const override { return 256; }
    std::string name() const override { return "byte"; }

    std::string fingerprint() const override;

    // The files of a PreTrainedTokenizerFast: a byte-level BPE whose vocabulary is the 256 bytes and that has no merges.
    void save(const std::string& folder) const override;
};

// What tokenizer_config.json must name as a GPT-2's inputs. A PreTrainedTokenizerFast of transformers 4 otherwise makes
// token_type_ids too, and GPT-2 adds an embedding for each of them.
Json gpt2_input_names();

// ---------------------------------------------------------------------------------------------------------------------
// Byte-pair encoding: what the files say (tokenizer_files.cpp)

// A byte-pair vocabulary as its files spell it, every byte by its symbol (byte_symbols).
struct BpeVocabulary {
    std::unordered_map<std::string, int32_t> ids;             // symbols of a token -> its id
    std::vector<std::pair<std::string, std::string>> merges;  // first is applied first
    std::map<std::string, AddedToken> added;                  // tokens outside the model, by their text
    std::string end_of_text = end_of_text_string;             // text of the token that ends a document
    bool prefix_space = false;                                // before a text that does not begin with a space
    bool nfc = false;                                         // text comes into Unicode's form NFC first (data/nfc.h)
    Split split = Split::gpt2;                                // into pieces, within which pairs merge
    bool ignore_merges = false;                               // a piece that is a token as it stands is that token
    bool lacks_bytes = false;  // may do so: they are left out of every text, or are this token:
    std::string unknown;       // empty: there is none
};

// The object {symbols: id, ...} that vocab.json and encoder.json are and tokenizer.json holds. BadInput if it is not one.
void parse_bpe_vocab(const Json& vocab, const std::string& source, BpeVocabulary& out);

// The lines of merges.txt or vocab.bpe; the first may say "#version: ...". BadInput for a line that is no merge.
void parse_bpe_merges(const std::string& text, const std::string& source, BpeVocabulary& out);

// A Hugging Face tokenizer.json with a BPE model, merges as "a b" or as ["a", "b"]. BadInput for anything else, and for
// whatever would give a text other ids here than there.
BpeVocabulary parse_tokenizer_json(const std::string& text, const std::string& source);

// ---------------------------------------------------------------------------------------------------------------------
// Byte-pair encoding: the merges

// Which pairs of neighbouring tokens become one, into which, and how early: a hash table with open addressing.
class MergeTable {
  public:
    static constexpr uint32_t no_rank = std::numeric_limits<uint32_t>::max();

    struct Merge {
        uint32_t rank = no_rank;  // lower ranks are merged first
        int32_t token = 0;
    };

    explicit MergeTable(uint64_t merges);

    // False if the pair is there already.
    bool insert(int32_t left, int32_t right, Merge merge);

    // With no_rank if the pair does not merge.
    Merge find(int32_t left, int32_t right) const { return slots_[slot_of(key_of(left, right))].merge; }

  private:
    struct Slot {
        uint64_t key = 0;
        Merge merge;
    };

    static uint64_t key_of(int32_t left, int32_t right) {
        return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
    }

    // Where the key is, or the free slot where it would be.
    uint64_t slot_of(uint64_t key) const;

    uint32_t bits_ = 4;
    std::vector<Slot> slots_;
};

// Merges the n tokens at `tokens` in place until no neighbours merge, always the pair of the lowest rank and of several
// such the leftmost; returns how many remain. Takes n * merges steps: for words, where n is small.
uint32_t merge_short(const MergeTable& table, int32_t* tokens, uint32_t n, MergeTable::Merge* pairs);

// The same for any n in n log n steps: the pairs wait in a heap, the tokens form a linked list.
void merge_long(const MergeTable& table, std::vector<int32_t>& tokens);

// ---------------------------------------------------------------------------------------------------------------------
// Byte-pair encoding: the tokenizer

// The tokens of words seen before; only tokenizer.cpp knows more.
class WordCache;

// Byte-pair encoding over bytes, with the vocabulary of some files.
class BpeTokenizer final : public Tokenizer {
  public:
    // Names and contents of the files that save() writes.
    using Files = std::map<std::string, std::string>;

    // Throws BadInput, naming `source`, if the vocabulary lacks a byte, a merge's tokens or end-of-text, or gives two
    // tokens one id.
    BpeTokenizer(const BpeVocabulary& vocabulary, Files files, const std::string& source);

    uint64_t encode(std::string_view text, std::vector<int32_t>& out, bool allow_special = false,
                    bool continues = false) const override;
    Split split() const override { return split_; }
    std::vector<std::string> unbroken() const override { return added_.unbroken(prefix_space_); }
    std::string decode(const int32_t* tokens, uint64_t n) const override;
    bool has(int32_t token) const override;

    uint32_t vocab_size() const override { return static_cast<uint32_t>(tokens_.size()); }
    int32_t end_of_text() const override { return end_of_text_; }
    std::string name() const override { return "bpe"; }
    std::string fingerprint() const override { return fingerprint_.hex(); }

    void save(const std::string& folder) const override;

  private:
    // Bytes of every token, for decode.
    void take_tokens(const BpeVocabulary& vocabulary, const std::string& source);

    void set_token(int32_t id, const std::string& bytes, const std::string& token, const std::string& source);
    void take_end_of_text(const BpeVocabulary& vocabulary, const std::string& source);
    void take_bytes(const BpeVocabulary& vocabulary, const std::string& source);
    void take_merges(const BpeVocabulary& vocabulary, const std::string& source);
    void take_added(const BpeVocabulary& vocabulary, const std::string& source);
    void take_whole_pieces(const BpeVocabulary& vocabulary);
    void add_to_fingerprint(const AddedToken& token);
    void add_to_fingerprint(std::string_view text);
    void encode_ordinary(std::string_view text, std::vector<int32_t>& out) const;
    template <class PieceLength>
    void encode_pieces(std::string_view text, std::vector<int32_t>& out, const PieceLength& length) const;
    void encode_piece(const char* p, uint64_t n, WordCache& cache, std::vector<int32_t>& out) const;

    // The token that n bytes are as a whole by ignore_merges; -1 if they are none.
    int32_t whole_piece(const char* p, uint64_t n) const;

    // The tokens of n bytes before any merge into tokens, which has room for n; returns how many there are.
    uint64_t byte_tokens(const char* p, uint64_t n, int32_t* tokens) const;

    // The tokens of n <= most_short_bytes_ bytes into tokens, which has room for n; returns how many there are.
    uint32_t merge_piece(const char* p, uint64_t n, int32_t* tokens) const;

    void encode_long_piece(const char* p, uint64_t n, std::vector<int32_t>& out) const;

    static constexpr uint64_t most_short_bytes_ = 128;  // above, merge_long is faster

    Files files_;
    MergeTable merges_;
    AddedTokens added_;
    bool prefix_space_;
    Split split_;
    std::unordered_map<std::string, int32_t> whole_pieces_;  // empty without ignore_merges
    int32_t end_of_text_ = 0;
    int32_t byte_tokens_[256] = {};    // -1 for a byte that is left out
    std::vector<std::string> tokens_;  // bytes of every token; empty where there is no such id
    Fingerprint fingerprint_;
    uint64_t instance_ = 0;  // for the cache, which is shared by all tokenizers of a thread
};

// ---------------------------------------------------------------------------------------------------------------------
// Loading (tokenizer_files.cpp)

// The tokenizer named "byte", or the one whose files lie in a folder, of these the first that is there (as AutoTokenizer
// takes them):
//
//     tokenizer.json                                                                             bytes or BPE
//     vocab.json and merges.txt, or encoder.json and vocab.bpe (the same under OpenAI's names)   BPE
//
// together with tokenizer_config.json, special_tokens_map.json and added_tokens.json. BadInput if there are none, if two
// of them contradict each other, or if they describe something that would give other ids here than AutoTokenizer does.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& byte_or_folder);

}  // namespace lnfree
