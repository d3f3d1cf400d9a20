#include "data/shards.h"

#include <glob.h>

#include <array>
#include <filesystem>
#include <set>
#include <utility>

#include "data/error.h"
#include "data/input_kind.h"
#include "data/json.h"
#include "data/npy.h"
#include "data/parallel.h"

namespace lnfree {

namespace {

constexpr uint64_t shard_header_bytes = 256 * sizeof(int32_t);
constexpr uint64_t most_tokens_per_shard = (uint64_t{1} << 31) - 1;  // what llm.c's int32 count can say
constexpr ShardFormat shard_format_uint16 = {20240520, 1, 2};
constexpr ShardFormat shard_format_uint32 = {20240801, 7, 4};

// The files of a pattern without "raw:", in byte order: the file of exactly this name if there is one (brackets and
// all), else what the glob matches, with {a,b} and ~ understood because the pattern often comes quoted. May be empty.
std::vector<std::string> expand_glob(const std::string& pattern) {
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

}  // namespace

ShardName parse_shard_name(const std::string& shard) {
    for (ShardName name : {ShardName{"raw:", 2, true, ""}, ShardName{"raw16:", 2, false, ""},
                           ShardName{"raw32:", 4, true, ""}, ShardName{"raw64:", 8, true, ""}}) {
        if (shard.compare(0, name.prefix.size(), name.prefix) != 0) continue;
        name.path = shard.substr(name.prefix.size());
        return name;
    }
    return {"", 0, true, shard};
}

std::vector<std::string> expand_patterns(const std::vector<std::string>& patterns) {
    std::vector<std::string> shards;
    std::set<std::pair<std::string, uint32_t>> seen;
    for (const std::string& shard_pattern : patterns) {
        const ShardName name = parse_shard_name(shard_pattern);
        const std::vector<std::string> paths = expand_glob(name.path);
        if (paths.empty())
            throw BadInput("no token shard matches " + quoted_name(shard_pattern) +
                           "; check the path, or make shards with the command tokenize");
        for (const std::string& path : paths) {
            std::error_code error;
            const std::string canonical = std::filesystem::canonical(path, error).string();
            if (seen.insert({error ? path : canonical, name.token_bytes}).second) {
                shards.push_back(name.prefix + path);
            }
        }
    }
    return shards;
}

namespace {

// The format that a file of `size` bytes says it has; nothing if it begins like none of them.
std::optional<ShardFormat> shard_format_of(const unsigned char* bytes, uint64_t size) {
    std::array<uint32_t, 2> words{};
    if (size < sizeof(words)) return std::nullopt;
    std::memcpy(words.data(), bytes, sizeof(words));
    for (const ShardFormat& format : {shard_format_uint16, shard_format_uint32}) {
        if (words[0] == format.magic && words[1] == format.version) return format;
    }
    return std::nullopt;
}

// Whether the file looks like integers of twice the width, of which every second number of `Id`s is a high half. Those
// of any vocabulary are below 16; in a file that is what it claims to be, numbers of 16 and more do not keep to the even
// places. Where all high halves are 0, as those of GPT-2's are, 16 numbers that do so are enough; else 64 are wanted.
template <class Id>
bool looks_twice_as_wide(const unsigned char* bytes, uint64_t size) {
    const uint64_t pairs = std::min<uint64_t>(size, 1 << 20) / (2 * sizeof(Id));
    uint64_t low_ones = 0, large_low_ones = 0;
    Id largest_high = 0;
    for (uint64_t i = 0; i < pairs; ++i) {
        Id halves[2];
        std::memcpy(halves, bytes + i * sizeof(halves), sizeof(halves));
        low_ones += halves[0] != 0;
        large_low_ones += halves[0] >= 16;
        largest_high = std::max(largest_high, halves[1]);
    }
    if (largest_high == 0) return low_ones >= 16;
    return largest_high < 16 && large_low_ones >= 64;
}

// BadInput, naming the file, if what is said to have no header begins like something else.
void require_bare_tokens(const unsigned char* bytes, uint64_t size, const ShardName& name) {
    const std::string_view beginning(reinterpret_cast<const char*>(bytes), std::min<uint64_t>(size, 4096));
    const bool has_header = shard_format_of(bytes, size) || is_npy(beginning);
    if (has_header) {
        throw BadInput(name.path + " has the header of " +
                       (is_npy(beginning) ? "NumPy's .npy" : "an llm.c token shard") + "; give it without " +
                       name.prefix);
    }
    if (!name.checked) return;
    const std::string overrule = name.token_bytes == 2 ? "; if it is uint16 nevertheless, give it as raw16:PATH" : "";
    const std::string format = is_plain_ascii(beginning) ? "text" : format_by_first_bytes(beginning);
    if (!format.empty()) {
        throw BadInput(name.path + " is " + format +
                       " by its first bytes, not token ids; text becomes tokens with the "
                       "command tokenize" +
                       overrule);
    }
    const bool wider = name.token_bytes == 2   ? looks_twice_as_wide<uint16_t>(bytes, size)
                       : name.token_bytes == 4 ? looks_twice_as_wide<uint32_t>(bytes, size)
                                               : false;
    if (!wider) return;
    const bool eight = name.token_bytes == 4 || looks_twice_as_wide<uint32_t>(bytes, size);
    throw BadInput(name.path + " looks like integers of " + (eight ? "8" : "4") + " bytes: every second one of " +
                   std::to_string(name.token_bytes) + " bytes is a high half; give it as " +
                   (eight ? "raw64:PATH" : "raw32:PATH") + overrule);
}

// The tokens of a file without a header. BadInput, naming it, if it cannot be one.
TokenSpan parse_raw_shard(const unsigned char* bytes, uint64_t size, const ShardName& name) {
    require_bare_tokens(bytes, size, name);
    if (size % name.token_bytes != 0) {
        throw BadInput(name.path + " is no file of integers of " + std::to_string(name.token_bytes) +
                       " bytes: it has " + std::to_string(size) + " bytes");
    }
    return {bytes, size / name.token_bytes, name.token_bytes, name.token_bytes == 8};
}

TokenSpan parse_npy_shard(const unsigned char* bytes, uint64_t size, const std::string& file) {
    const NpyIntegers integers = parse_npy({reinterpret_cast<const char*>(bytes), size}, file);
    if (integers.count == 0) throw BadInput(file + " holds no tokens; leave it out or make it again");
    return {bytes + integers.offset, integers.count, integers.bytes, integers.is_signed};
}

}  // namespace

std::string TokenSpan::written_id(uint64_t i) const {
    if (token_bytes == 2) return std::to_string(is_signed ? load<int16_t>(i) : load<uint16_t>(i));
    if (token_bytes == 4) return is_signed ? std::to_string(load<int32_t>(i)) : std::to_string(load<uint32_t>(i));
    return is_signed ? std::to_string(load<int64_t>(i)) : std::to_string(load<uint64_t>(i));
}

TokenSpan parse_shard(const unsigned char* bytes, uint64_t size, const ShardName& name) {
    const std::string& file = name.path;
    if (size == 0) throw BadInput(file + " is empty; a token shard is needed");
    if (name.token_bytes > 0) return parse_raw_shard(bytes, size, name);
    if (is_npy({reinterpret_cast<const char*>(bytes), size})) return parse_npy_shard(bytes, size, file);
    const std::optional<ShardFormat> format = shard_format_of(bytes, size);
    if (!format) {
        throw BadInput(file +
                       " is not a token shard of llm.c's format (give files without a header, such as nanoGPT's, "
                       "as raw:PATH, raw32:PATH or raw64:PATH, NumPy's as .npy, make shards from text with the command "
                       "tokenize)");
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

namespace {

void check_window(uint64_t T, bool paper_windows) {
    if (T < (paper_windows ? 2 : 1)) {
        throw BadInput("a sequence of " + std::to_string(T) + " tokens has nothing to predict; use a longer one");
    }
}

uint64_t windows_in(const TokenSpan& span, uint64_t T, bool paper_windows) {
    return paper_windows ? span.count / T : (span.count - 1) / T;
}

}  // namespace

TokenShards::TokenShards(const std::vector<std::string>& patterns) : paths_(expand_patterns(patterns)) {
    if (paths_.empty()) throw BadInput("no token shards given");
    for (const std::string& shard : paths_) {
        const ShardName name = parse_shard_name(shard);
        const MappedFile& file = files_.emplace_back(name.path);
        spans_.push_back(parse_shard(file.data(), file.size(), name));
        tokens_ += spans_.back().count;
    }
}

uint64_t TokenShards::sequences(uint64_t T, bool paper_windows) const {
    check_window(T, paper_windows);
    uint64_t total = 0;
    for (const TokenSpan& span : spans_) total += windows_in(span, T, paper_windows);
    return total;
}

void TokenShards::read(uint64_t sequence, uint64_t T, int32_t* inputs, int32_t* targets, bool paper_windows) const {
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

void TokenShards::check_vocabulary(uint32_t vocab_size) const {
    if (largest_token() < vocab_size) return;
    for (size_t shard = 0; shard < spans_.size(); ++shard) {
        for (uint64_t i = 0; i < spans_[shard].count; ++i) {
            const uint32_t id = spans_[shard].at(i);
            if (id < vocab_size) continue;
            throw BadInput(paths_[shard] + ": the token " + spans_[shard].written_id(i) + " at position " +
                           std::to_string(i) + " is outside the vocabulary of " + std::to_string(vocab_size) +
                           " tokens; tokenize the text with this model's tokenizer");
        }
    }
}

const TokenShards::Scan& TokenShards::scan() const {
    if (scanned_) return *scanned_;
    Hash64 hash;
    Scan result;
    for (size_t shard = 0; shard < spans_.size(); ++shard) scan_shard(files_[shard], spans_[shard], hash, result);
    result.fingerprint = hash.value();
    scanned_ = result;
    return *scanned_;
}

void TokenShards::scan_shard(const MappedFile& file, const TokenSpan& span, Hash64& hash, Scan& result) {
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
    Hash64 of_shard;
    for (Hash64* both : {&hash, &of_shard}) {
        both->add(file.size());
        for (const uint64_t block_hash : hashes) both->add(block_hash);
    }
    result.of_shards.push_back(of_shard.value());
    for (const uint32_t id : largest) result.largest = std::max(result.largest, id);
}

std::string shard_name(const std::string& prefix, uint64_t number) {
    const std::string digits = std::to_string(number);
    return prefix + '_' + std::string(digits.size() < 6 ? 6 - digits.size() : 0, '0') + digits + ".bin";
}

ShardWriter::ShardWriter(std::string prefix, uint32_t vocab_size, uint64_t tokens_per_shard)
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

void ShardWriter::append(const int32_t* tokens, uint64_t n) {
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

std::vector<std::string> ShardWriter::finish() {
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

void ShardWriter::remove_shards_from(uint64_t number) const {
    std::error_code error;
    while (std::filesystem::remove(shard_name(prefix_, number), error)) ++number;
    if (error) throw RunFailure("cannot remove " + shard_name(prefix_, number) + ": " + error.message());
}

void ShardWriter::start_shard() {
    if (!shards_.empty()) end_shard();
    const std::string blank_header(shard_header_bytes, '\0');
    shards_.emplace_back(shard_name(prefix_, shards_.size())).write(blank_header.data(), blank_header.size());
    tokens_in_last_ = 0;
}

void ShardWriter::end_shard() {
    flush();
    const std::array<uint32_t, 3> header = {format_.magic, format_.version, static_cast<uint32_t>(tokens_in_last_)};
    shards_.back().overwrite(0, header.data(), sizeof(header));
    shards_.back().close();
}

void ShardWriter::buffer(const int32_t* tokens, uint64_t n) {
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

void ShardWriter::flush() {
    shards_.back().write(buffer_.data(), buffer_.size());
    buffer_.clear();
}

std::optional<std::string> sidecar_path(const std::string& shard) {
    const auto [prefix, token_bytes, checked, path] = parse_shard_name(shard);
    const std::string extension = ".bin";
    if (token_bytes > 0 || path.size() < extension.size() || path.substr(path.size() - extension.size()) != extension)
        return {};
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

std::optional<Json> read_sidecar(const std::string& shard) {
    const std::optional<std::string> path = sidecar_path(shard);
    std::error_code ignored;
    if (!path || !std::filesystem::exists(*path, ignored)) return {};
    std::optional<Json> sidecar = read_json(*path);
    if (!sidecar->is_object()) throw BadInput(*path + " does not describe token shards: it is not a JSON object");
    return sidecar;
}

}  // namespace lnfree
