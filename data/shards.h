// Token shards: files of token ids, mapped into memory, from which training and evaluation take windows.
//
// Three formats, all little-endian. llm.c's two begin with a header of 256 int32 (github.com/karpathy/llm.c,
// dev/data/data_common.py): magic, version, token count, zeros.
//
//     magic 20240520, version 1   uint16 ids, for vocabularies of up to 65,536 tokens (GPT-2)
//     magic 20240801, version 7   uint32 ids, for larger ones
//     raw:PATH                    uint16 ids and nothing else: nanoGPT's train.bin and val.bin
//
// The count is read as unsigned, so that a uint16 shard may hold 4,294,967,295 tokens (8 GiB); what is written here
// stays within int32, where llm.c reads it. Raw files have no limit.
#pragma once

#include <glob.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/parallel.h"

namespace lnfree {

constexpr char raw_shard_prefix[] = "raw:";
constexpr uint64_t shard_header_bytes = 256 * sizeof(int32_t);
constexpr uint64_t most_tokens_per_shard = (uint64_t{1} << 31) - 1;  // what llm.c's int32 count can say

struct ShardFormat {
    uint32_t magic;
    uint32_t version;
    uint32_t token_bytes;
};
constexpr ShardFormat shard_format_uint16 = {20240520, 1, 2};
constexpr ShardFormat shard_format_uint32 = {20240801, 7, 4};

// Splits "raw:PATH" into the path and true; anything else is a path with a header.
inline std::pair<std::string, bool> split_raw_prefix(const std::string& shard) {
    const size_t prefix = std::strlen(raw_shard_prefix);
    const bool raw = shard.compare(0, prefix, raw_shard_prefix) == 0;
    return {raw ? shard.substr(prefix) : shard, raw};
}

// The files of a pattern without "raw:", in byte order: the file of exactly this name if there is one (brackets and
// all), else what the glob matches, with {a,b} and ~ understood because the pattern often comes quoted. May be empty.
inline std::vector<std::string> expand_glob(const std::string& pattern) {
    std::error_code ignored;
    if (std::filesystem::exists(pattern, ignored)) return {pattern};
    glob_t found{};
    const int failed = ::glob(pattern.c_str(), GLOB_BRACE | GLOB_TILDE | GLOB_NOSORT, nullptr, &found);
    std::vector<std::string> paths;
    if (failed == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    ::globfree(&found);
    std::sort(paths.begin(), paths.end());
    return paths;
}

// The shards meant by patterns as a user gives them: each a path, a glob, or either of them behind "raw:" (which stays
// in front of every path it yields). In the order of the patterns, sorted within a glob, each file once. BadInput for a
// pattern that matches nothing.
inline std::vector<std::string> expand_patterns(const std::vector<std::string>& patterns) {
    std::vector<std::string> shards;
    std::set<std::pair<std::string, bool>> seen;
    for (const std::string& shard_pattern : patterns) {
        const auto [pattern, raw] = split_raw_prefix(shard_pattern);
        const std::vector<std::string> paths = expand_glob(pattern);
        if (paths.empty())
            throw BadInput("no token shard matches " + quoted_name(shard_pattern) +
                           "; check the path, or make shards with the command tokenize");
        for (const std::string& path : paths) {
            std::error_code error;
            const std::string canonical = std::filesystem::canonical(path, error).string();
            if (seen.insert({error ? path : canonical, raw}).second) {
                shards.push_back((raw ? raw_shard_prefix : "") + path);
            }
        }
    }
    return shards;
}

// The tokens of one shard, in memory that somebody else owns.
struct TokenSpan {
    const unsigned char* data = nullptr;  // count * token_bytes bytes, aligned to token_bytes
    uint64_t count = 0;                   // tokens
    uint32_t token_bytes = 2;             // 2 or 4

    uint32_t at(uint64_t i) const { return token_bytes == 2 ? load<uint16_t>(i) : load<uint32_t>(i); }

    // Copies the n tokens from `first` on. Ids of 2^31 and more turn negative; check_vocabulary finds them beforehand.
    void copy(uint64_t first, uint64_t n, int32_t* out) const {
        token_bytes == 2 ? copy_as<uint16_t>(first, n, out) : copy_as<uint32_t>(first, n, out);
    }

    // The largest of the n tokens from `first` on; 0 if n is 0.
    uint32_t largest(uint64_t first, uint64_t n) const {
        return token_bytes == 2 ? largest_as<uint16_t>(first, n) : largest_as<uint32_t>(first, n);
    }

  private:
    template <class Id>
    Id load(uint64_t i) const {
        Id id;
        std::memcpy(&id, data + i * sizeof(Id), sizeof(Id));
        return id;
    }
    template <class Id>
    void copy_as(uint64_t first, uint64_t n, int32_t* out) const {
        for (uint64_t i = 0; i < n; ++i) out[i] = static_cast<int32_t>(load<Id>(first + i));
    }
    template <class Id>
    uint32_t largest_as(uint64_t first, uint64_t n) const {
        Id largest = 0;
        for (uint64_t i = 0; i < n; ++i) largest = std::max(largest, load<Id>(first + i));
        return largest;
    }
};

// The format that a file of `size` bytes says it has; nothing if it begins like none of them.
inline std::optional<ShardFormat> shard_format_of(const unsigned char* bytes, uint64_t size) {
    std::array<uint32_t, 2> words{};
    if (size < sizeof(words)) return std::nullopt;
    std::memcpy(words.data(), bytes, sizeof(words));
    for (const ShardFormat& format : {shard_format_uint16, shard_format_uint32}) {
        if (words[0] == format.magic && words[1] == format.version) return format;
    }
    return std::nullopt;
}

// The tokens of a file without a header. BadInput, naming `file`, if it cannot be one.
inline TokenSpan parse_raw_shard(const unsigned char* bytes, uint64_t size, const std::string& file) {
    if (shard_format_of(bytes, size)) {
        throw BadInput(file + " has the header of an llm.c token shard; give it without " + raw_shard_prefix);
    }
    if (size % sizeof(uint16_t) != 0) {
        throw BadInput(file + " is no file of uint16 tokens: it has an odd number of bytes, " + std::to_string(size));
    }
    return {bytes, size / sizeof(uint16_t), sizeof(uint16_t)};
}

// The tokens in the `size` bytes of a whole file, which `raw` says has no header. BadInput, naming `file`, if it is
// empty, truncated or of another kind.
inline TokenSpan parse_shard(const unsigned char* bytes, uint64_t size, bool raw, const std::string& file) {
    if (size == 0) throw BadInput(file + " is empty; a token shard is needed");
    if (raw) return parse_raw_shard(bytes, size, file);
    const std::optional<ShardFormat> format = shard_format_of(bytes, size);
    if (!format) {
        throw BadInput(file + " is not a token shard of llm.c's format (give nanoGPT's files without a header as " +
                       raw_shard_prefix + "PATH, make shards from text with the command tokenize)");
    }
    if (size < shard_header_bytes) {
        throw BadInput(file + " is truncated within its header of 1024 bytes; copy or make it again");
    }
    uint32_t count;
    std::memcpy(&count, bytes + 2 * sizeof(uint32_t), sizeof(count));
    if (count == 0) throw BadInput(file + " holds no tokens; leave it out or make it again");
    const uint64_t expected = shard_header_bytes + uint64_t{count} * format->token_bytes;
    if (size != expected) {
        throw BadInput(file + (size < expected ? " is truncated: " : " is damaged: ") + std::to_string(count) +
                       " tokens make " + std::to_string(expected) + " bytes, it has " + std::to_string(size) +
                       "; copy or make it again");
    }
    return {bytes + shard_header_bytes, count, format->token_bytes};
}

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
    explicit TokenShards(const std::vector<std::string>& patterns) : paths_(expand_patterns(patterns)) {
        if (paths_.empty()) throw BadInput("no token shards given");
        for (const std::string& shard : paths_) {
            const auto [path, raw] = split_raw_prefix(shard);
            const MappedFile& file = files_.emplace_back(path);
            spans_.push_back(parse_shard(file.data(), file.size(), raw, path));
            tokens_ += spans_.back().count;
        }
    }

    TokenShards(TokenShards&&) = default;
    TokenShards& operator=(TokenShards&&) = default;

    const std::vector<std::string>& paths() const { return paths_; }  // of the shards, with "raw:" where it was given
    uint64_t tokens() const { return tokens_; }                       // in all shards
    uint64_t shard_tokens(uint64_t shard) const { return spans_[shard].count; }
    uint32_t token_at(uint64_t shard, uint64_t i) const { return spans_[shard].at(i); }

    // How many windows of T predictions there are: T + 1 tokens each, the last of which begins the next window. With
    // paper_windows, windows of T tokens and T - 1 predictions that share nothing (protocol.md 7). BadInput if T has no
    // prediction in it.
    uint64_t sequences(uint64_t T, bool paper_windows = false) const {
        check_window(T, paper_windows);
        uint64_t total = 0;
        for (const TokenSpan& span : spans_) total += windows_in(span, T, paper_windows);
        return total;
    }

    // Window number `sequence`: T token ids, and as targets the same ids one token further on (T - 1 of each with
    // paper_windows). BadInput if there is no such window. Any number of threads may read at once.
    void read(uint64_t sequence, uint64_t T, int32_t* inputs, int32_t* targets, bool paper_windows = false) const {
        check_window(T, paper_windows);
        uint64_t within = sequence;
        for (const TokenSpan& span : spans_) {
            const uint64_t windows = windows_in(span, T, paper_windows);
            if (within < windows) {
                const uint64_t predictions = paper_windows ? T - 1 : T;
                span.copy(within * T, predictions, inputs);
                span.copy(within * T + 1, predictions, targets);
                return;
            }
            within -= windows;
        }
        throw BadInput("there is no sequence " + std::to_string(sequence) + " of " + std::to_string(T) +
                       " tokens in the token shards, only " + std::to_string(sequences(T, paper_windows)));
    }

    // The largest token id of all. The first call of this or of fingerprint() reads every byte once, on all cores, and
    // keeps both results; let one thread make it.
    uint32_t largest_token() const { return scan().largest; }

    // A hash of the shards' bytes (headers and tokens), sizes and order, whatever they are called and wherever they
    // lie: per shard the size and the Hash64 of every MiB of the file, in order. Cost as largest_token.
    uint64_t fingerprint() const { return scan().fingerprint; }

    // BadInput, naming file, position and id, if a token is not below vocab_size. Cost as largest_token.
    void check_vocabulary(uint32_t vocab_size) const {
        if (largest_token() < vocab_size) return;
        for (size_t shard = 0; shard < spans_.size(); ++shard) {
            for (uint64_t i = 0; i < spans_[shard].count; ++i) {
                const uint32_t id = spans_[shard].at(i);
                if (id < vocab_size) continue;
                throw BadInput(paths_[shard] + ": the token " + std::to_string(id) + " at position " +
                               std::to_string(i) + " is outside the vocabulary of " + std::to_string(vocab_size) +
                               " tokens; tokenize the text with this model's tokenizer");
            }
        }
    }

  private:
    struct Scan {
        uint32_t largest = 0;
        uint64_t fingerprint = 0;
    };

    static void check_window(uint64_t T, bool paper_windows) {
        if (T < (paper_windows ? 2 : 1)) {
            throw BadInput("a sequence of " + std::to_string(T) + " tokens has nothing to predict; use a longer one");
        }
    }

    static uint64_t windows_in(const TokenSpan& span, uint64_t T, bool paper_windows) {
        return paper_windows ? span.count / T : (span.count - 1) / T;
    }

    const Scan& scan() const {
        if (scanned_) return *scanned_;
        Hash64 hash;
        Scan result;
        for (size_t shard = 0; shard < spans_.size(); ++shard) scan_shard(files_[shard], spans_[shard], hash, result);
        result.fingerprint = hash.value();
        scanned_ = result;
        return *scanned_;
    }

    // Adds a shard to the hash and to the largest token. A block of 1 MiB is read once from memory for both.
    static void scan_shard(const MappedFile& file, const TokenSpan& span, Hash64& hash, Scan& result) {
        constexpr uint64_t block = 1 << 20;
        const uint64_t header = static_cast<uint64_t>(span.data - file.data());
        const uint64_t blocks = (file.size() + block - 1) / block;
        std::vector<uint64_t> hashes(blocks);
        std::vector<uint32_t> largest(blocks);
        parallel_for(blocks, [&](uint64_t b) {
            const uint64_t begin = b * block;
            const uint64_t end = std::min(file.size(), begin + block);
            Hash64 block_hash;
            block_hash.add(file.data() + begin, end - begin);
            hashes[b] = block_hash.value();
            const uint64_t first_token = (std::max(begin, header) - header) / span.token_bytes;
            largest[b] = span.largest(first_token, (end - header) / span.token_bytes - first_token);
        });
        hash.add(file.size());
        for (const uint64_t block_hash : hashes) hash.add(block_hash);
        for (const uint32_t id : largest) result.largest = std::max(result.largest, id);
    }

    std::vector<std::string> paths_;
    std::vector<MappedFile> files_;
    std::vector<TokenSpan> spans_;
    uint64_t tokens_ = 0;
    mutable std::optional<Scan> scanned_;
};

// The name of a shard: PREFIX_000000.bin, PREFIX_000001.bin, ...
inline std::string shard_name(const std::string& prefix, uint64_t number) {
    const std::string digits = std::to_string(number);
    return prefix + '_' + std::string(digits.size() < 6 ? 6 - digits.size() : 0, '0') + digits + ".bin";
}

// Writes a stream of tokens into shards of tokens_per_shard, the last one shorter, in llm.c's format: uint16 for a
// vocabulary of up to 65,536 tokens, uint32 above. They appear under their names all together, in finish(); a writer
// that is destroyed before leaves nothing behind. RunFailure when the disk is full or fails.
class ShardWriter {
  public:
    // BadInput for a vocabulary or shard size of 0, or a shard too large for its header.
    ShardWriter(std::string prefix, uint32_t vocab_size, uint64_t tokens_per_shard)
        : prefix_(std::move(prefix)),
          vocab_size_(vocab_size),
          tokens_per_shard_(tokens_per_shard),
          format_(vocab_size <= 65536 ? shard_format_uint16 : shard_format_uint32) {
        if (vocab_size == 0) throw BadInput("cannot write token shards for a vocabulary of 0 tokens");
        if (tokens_per_shard == 0 || tokens_per_shard > most_tokens_per_shard) {
            throw BadInput("cannot write token shards of " + std::to_string(tokens_per_shard) +
                           " tokens; 1 to 2147483647 are possible");
        }
    }

    // Appends n tokens. BadInput for an id outside the vocabulary.
    void append(const int32_t* tokens, uint64_t n) {
        for (uint64_t done = 0; done < n;) {
            if (shards_.empty() || tokens_in_last_ == tokens_per_shard_) start_shard();
            const uint64_t piece = std::min({n - done, tokens_per_shard_ - tokens_in_last_, most_buffered_});
            buffer(tokens + done, piece);
            tokens_in_last_ += piece;
            tokens_ += piece;
            done += piece;
            if (buffer_.size() >= most_buffered_ * format_.token_bytes) flush();
        }
    }

    // Puts the shards in place and returns their paths. Those of an earlier, longer run with higher numbers are
    // removed, because a glob would read them along with these. Without any tokens nothing is written.
    std::vector<std::string> finish() {
        if (!shards_.empty()) end_shard();
        std::vector<std::string> paths;
        for (NewFile& shard : shards_) {
            shard.publish();
            paths.push_back(shard.path());
        }
        shards_.clear();
        remove_shards_from(paths.size());
        return paths;
    }

    uint64_t tokens() const { return tokens_; }  // appended so far

  private:
    void remove_shards_from(uint64_t number) const {
        std::error_code error;
        while (std::filesystem::remove(shard_name(prefix_, number), error)) ++number;
        if (error) throw RunFailure("cannot remove " + shard_name(prefix_, number) + ": " + error.message());
    }

    void start_shard() {
        if (!shards_.empty()) end_shard();
        const std::string blank_header(shard_header_bytes, '\0');
        shards_.emplace_back(shard_name(prefix_, shards_.size())).write(blank_header.data(), blank_header.size());
        tokens_in_last_ = 0;
    }

    // The header comes last, when the count is known.
    void end_shard() {
        flush();
        const std::array<uint32_t, 3> header = {format_.magic, format_.version, static_cast<uint32_t>(tokens_in_last_)};
        shards_.back().overwrite(0, header.data(), sizeof(header));
        shards_.back().close();
    }

    void buffer(const int32_t* tokens, uint64_t n) {
        for (uint64_t i = 0; i < n; ++i) {
            const uint32_t id = static_cast<uint32_t>(tokens[i]);  // negative ids become too large
            if (id >= vocab_size_) {
                throw BadInput("cannot write the token " + std::to_string(tokens[i]) + " to " + shards_.back().path() +
                               ": it is outside the vocabulary of " + std::to_string(vocab_size_) + " tokens");
            }
            const char* const bytes = reinterpret_cast<const char*>(&id);  // little-endian: the low bytes come first
            buffer_.append(bytes, format_.token_bytes);
        }
    }

    void flush() {
        shards_.back().write(buffer_.data(), buffer_.size());
        buffer_.clear();
    }

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
inline std::optional<std::string> sidecar_path(const std::string& shard) {
    const auto [path, raw] = split_raw_prefix(shard);
    const std::string extension = ".bin";
    if (raw || path.size() < extension.size() || path.substr(path.size() - extension.size()) != extension) return {};
    const std::string stem = path.substr(0, path.size() - extension.size());
    const size_t last_other = stem.find_last_not_of("0123456789");
    if (last_other == std::string::npos || stem.size() - last_other - 1 < 6) return {};
    const std::string split = stem.substr(0, last_other + 1);  // FOLDER/NAME_train_
    for (const std::string& ending : {std::string("_train_"), std::string("_val_")}) {
        const bool ends = split.size() > ending.size() && split.substr(split.size() - ending.size()) == ending;
        const std::string name = ends ? split.substr(0, split.size() - ending.size()) : "";
        if (!name.empty() && name.back() != '/') return name + ".json";
    }
    return {};
}

// The description that `tokenize` wrote beside a shard; nothing if there is none. BadInput if it is not a JSON object.
inline std::optional<nlohmann::json> read_sidecar(const std::string& shard) {
    const std::optional<std::string> path = sidecar_path(shard);
    std::error_code ignored;
    if (!path || !std::filesystem::exists(*path, ignored)) return {};
    nlohmann::json sidecar = read_json(*path);
    if (!sidecar.is_object()) throw BadInput(*path + " does not describe token shards: it is not a JSON object");
    return sidecar;
}

}  // namespace lnfree
