// Token shards: files of token ids, mapped into memory, from which training and evaluation take windows.
//
// All formats are little-endian. llm.c's two begin with a header of 256 int32 (github.com/karpathy/llm.c,
// dev/data/data_common.py): magic, version, token count, zeros.
//
//     magic 20240520, version 1   uint16 ids, for vocabularies of up to 65,536 tokens (GPT-2)
//     magic 20240801, version 7   uint32 ids, for larger ones
//     NumPy's .npy                a row of integers of 2, 4 or 8 bytes (data/npy.h)
//     raw:PATH                    uint16 ids and nothing else: nanoGPT's train.bin and val.bin
//     raw32:PATH, raw64:PATH      uint32, or int64, and nothing else
//     raw16:PATH                  as raw:, which refuses what looks like wider integers or like no tokens at all
//
// The count is read as unsigned, so that a uint16 shard may hold 4,294,967,295 tokens (8 GiB); what is written here
// stays within int32, where llm.c reads it. Raw files have no limit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "data/files.h"
#include "data/json.h"

namespace lnfree {

// What the first words of a file with a header say, and the size of its ids.
struct ShardFormat {
    uint32_t magic;
    uint32_t version;
    uint32_t token_bytes;
};

// A shard as a user names it: a path, and how wide its ids are if "raw:" or one of its kin stands before it.
struct ShardName {
    std::string prefix;        // "raw:" and so on; empty: the file has a header
    uint32_t token_bytes = 0;  // of a file without a header; 0: it has one
    bool checked = true;       // whether the file is looked at for signs that it is something else
    std::string path;          // or pattern
};
ShardName parse_shard_name(const std::string& shard);

// The shards meant by patterns as a user gives them: each a path, a glob, or either of them behind "raw:" (which stays
// in front of every path it yields). In the order of the patterns, sorted within a glob, each file once. BadInput for a
// pattern that matches nothing.
std::vector<std::string> expand_patterns(const std::vector<std::string>& patterns);

// The tokens of one shard, in memory that somebody else owns.
struct TokenSpan {
    const unsigned char* data = nullptr;  // count * token_bytes bytes, aligned to token_bytes
    uint64_t count = 0;                   // tokens
    uint32_t token_bytes = 2;             // 2, 4 or 8
    bool is_signed = false;               // for messages: a negative id is otherwise one that is far too large

    // 2^32 - 1 for what is larger, which no vocabulary has.
    uint32_t at(uint64_t i) const {
        return token_bytes == 2 ? load<uint16_t>(i) : token_bytes == 4 ? load<uint32_t>(i) : narrow(load<uint64_t>(i));
    }

    // Copies the n tokens from `first` on. Ids of 2^31 and more turn negative; check_vocabulary finds them beforehand.
    void copy(uint64_t first, uint64_t n, int32_t* out) const {
        if (token_bytes == 2) return copy_as<uint16_t>(first, n, out);
        token_bytes == 4 ? copy_as<uint32_t>(first, n, out) : copy_as<uint64_t>(first, n, out);
    }

    // The largest of the n tokens from `first` on; 0 if n is 0.
    uint32_t largest(uint64_t first, uint64_t n) const {
        if (token_bytes == 2) return largest_as<uint16_t>(first, n);
        return token_bytes == 4 ? largest_as<uint32_t>(first, n) : largest_as<uint64_t>(first, n);
    }

    // The id as the file has it, negative or larger than any vocabulary.
    std::string written_id(uint64_t i) const;

  private:
    static uint32_t narrow(uint64_t id) { return static_cast<uint32_t>(std::min<uint64_t>(id, 0xFFFFFFFF)); }
    template <class Id>
    Id load(uint64_t i) const {
        Id id;
        std::memcpy(&id, data + i * sizeof(Id), sizeof(Id));
        return id;
    }
    template <class Id>
    void copy_as(uint64_t first, uint64_t n, int32_t* out) const {
        for (uint64_t i = 0; i < n; ++i) out[i] = static_cast<int32_t>(narrow(load<Id>(first + i)));
    }
    template <class Id>
    uint32_t largest_as(uint64_t first, uint64_t n) const {
        Id largest = 0;
        for (uint64_t i = 0; i < n; ++i) largest = std::max(largest, load<Id>(first + i));
        return narrow(largest);
    }
};

// The tokens in the `size` bytes of a whole file, which `name` says how to read. BadInput, naming the file, if it is
// empty, truncated or of another kind: of a file without a header, where its first MiB looks like one.
TokenSpan parse_shard(const unsigned char* bytes, uint64_t size, const ShardName& name);

// A 64-bit hash in the manner of FNV-1a (Fowler, Noll and Vo; the two constants are theirs) that takes 8 bytes at a
// time and folds the upper half back in, which the multiplication alone leaves out. For accidents, not for forgeries.
class Hash64 {
  public:
    void add(uint64_t word) {
        state_ = (state_ ^ word) * 0x100000001b3;
        state_ ^= state_ >> 32;
    }
    // n bytes as little-endian words, the last one filled up with zeros.
    void add(const unsigned char* bytes, uint64_t n) {
        for (uint64_t i = 0; i < n; i += sizeof(uint64_t)) {
            uint64_t word = 0;
            std::memcpy(&word, bytes + i, std::min<uint64_t>(sizeof(word), n - i));
            add(word);
        }
    }
    uint64_t value() const { return state_; }

  private:
    uint64_t state_ = 0xcbf29ce484222325;
};

// A set of token shards, in the order of its patterns, memory-mapped and read-only. A window is a run of tokens within
// one shard; windows start T tokens apart from the shard's first token on, and what is left at its end is dropped.
class TokenShards {
  public:
    // Opens what expand_patterns finds. BadInput if that is nothing, or a file is not a token shard.
    explicit TokenShards(const std::vector<std::string>& patterns);

    TokenShards(TokenShards&&) = default;
    TokenShards& operator=(TokenShards&&) = default;

    const std::vector<std::string>& paths() const { return paths_; }  // of the shards, with "raw:" where it was given
    uint64_t tokens() const { return tokens_; }                       // in all shards
    uint64_t shard_tokens(uint64_t shard) const { return spans_[shard].count; }
    uint32_t token_at(uint64_t shard, uint64_t i) const { return spans_[shard].at(i); }

    // How many windows of T predictions there are: T + 1 tokens each, the last of which begins the next window. With
    // paper_windows, windows of T tokens and T - 1 predictions that share nothing (protocol.md 7). BadInput if T has no
    // prediction in it.
    uint64_t sequences(uint64_t T, bool paper_windows = false) const;

    // Window number `sequence`: T token ids, and as targets the same ids one token further on (T - 1 of each with
    // paper_windows). BadInput if there is no such window. Any number of threads may read at once.
    void read(uint64_t sequence, uint64_t T, int32_t* inputs, int32_t* targets, bool paper_windows = false) const;

    // The largest token id of all. The first call of this or of fingerprint() reads every byte once, on all cores, and
    // keeps both results; let one thread make it.
    uint32_t largest_token() const { return scan().largest; }

    // A hash of the shards' bytes (headers and tokens), sizes and order, whatever they are called and wherever they
    // lie: per shard the size and the Hash64 of every MiB of the file, in order. Cost as largest_token.
    uint64_t fingerprint() const { return scan().fingerprint; }

    // The same hash of every shard by itself, to find shards that two sets share.
    const std::vector<uint64_t>& shard_fingerprints() const { return scan().of_shards; }

    // BadInput, naming file, position and id, if a token is not below vocab_size. Cost as largest_token.
    void check_vocabulary(uint32_t vocab_size) const;

  private:
    struct Scan {
        uint32_t largest = 0;
        uint64_t fingerprint = 0;
        std::vector<uint64_t> of_shards;
    };

    const Scan& scan() const;

    // Adds a shard to the hash and to the rest. A block of 1 MiB is read once from memory for all.
    static void scan_shard(const MappedFile& file, const TokenSpan& span, Hash64& hash, Scan& result);

    std::vector<std::string> paths_;
    std::vector<MappedFile> files_;
    std::vector<TokenSpan> spans_;
    uint64_t tokens_ = 0;
    mutable std::optional<Scan> scanned_;
};

// The name of a shard: PREFIX_000000.bin, PREFIX_000001.bin, ...
std::string shard_name(const std::string& prefix, uint64_t number);

// Writes a stream of tokens into shards of tokens_per_shard, the last one shorter, in llm.c's format: uint16 for a
// vocabulary of up to 65,536 tokens, uint32 above. They appear under their names all together, in finish(); a writer
// that is destroyed before leaves nothing behind. RunFailure when the disk is full or fails.
class ShardWriter {
  public:
    // BadInput for a vocabulary or shard size of 0, or a shard too large for its header.
    ShardWriter(std::string prefix, uint32_t vocab_size, uint64_t tokens_per_shard);

    // Appends n tokens. BadInput for an id outside the vocabulary.
    void append(const int32_t* tokens, uint64_t n);

    // Puts the shards in place and returns their paths. Those of an earlier, longer run with higher numbers are
    // removed, because a glob would read them along with these. Without any tokens nothing is written.
    std::vector<std::string> finish();

    uint64_t tokens() const { return tokens_; }  // appended so far

  private:
    void remove_shards_from(uint64_t number) const;
    void start_shard();

    // The header comes last, when the count is known.
    void end_shard();

    void buffer(const int32_t* tokens, uint64_t n);
    void flush();

    static constexpr uint64_t most_buffered_ = 1 << 18;  // tokens

    std::string prefix_;
    uint32_t vocab_size_;
    uint64_t tokens_per_shard_;
    ShardFormat format_;
    std::deque<NewFile> shards_;  // closed, but for the last
    std::string buffer_;          // tokens of the last shard that are not written yet
    uint64_t tokens_in_last_ = 0;
    uint64_t tokens_ = 0;
};

// Where the description of a shard's data set lies: FOLDER/NAME.json for FOLDER/NAME_train_000000.bin and for
// FOLDER/NAME_val_000000.bin. Nothing for other names and for raw shards.
std::optional<std::string> sidecar_path(const std::string& shard);

// The description that `tokenize` wrote beside a shard; nothing if there is none. BadInput if it is not a JSON object.
std::optional<Json> read_sidecar(const std::string& shard);

}  // namespace lnfree
