#include "data/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <queue>

#include "data/files.h"
#include "data/json.h"
#include "data/pretokenize.h"

namespace lnfree {

void Fingerprint::add(uint32_t value) {
    for (int i = 0; i < 4; ++i) state_ = (state_ ^ (value >> 8 * i & 0xFF)) * 0x100000001B3ull;
}

std::string Fingerprint::hex() const {
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(state_));
    return digits;
}

std::string printable(std::string_view bytes) {
    std::string out;
    const char* p = bytes.data();
    const char* const end = p + bytes.size();
    while (p < end) {
        uint32_t code_point = 0;
        const uint32_t n = decode_utf8(p, end, code_point);
        const bool control = n == 0 || code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0);
        if (*p == '\n') {
            out += "\\n";
        } else if (*p == '\t') {
            out += "\\t";
        } else if (*p == '\\') {
            out += "\\\\";
        } else if (!control) {
            out.append(p, n);
        } else {
            for (uint32_t i = 0; i < std::max(n, 1u); ++i) {
                char escape[5];
                std::snprintf(escape, sizeof escape, "\\x%02X", static_cast<unsigned>(static_cast<uint8_t>(p[i])));
                out += escape;
            }
        }
        p += std::max(n, 1u);
    }
    return out;
}

std::string Tokenizer::token_text(int32_t token) const {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab_size()) return "<unknown " + std::to_string(token) + ">";
    return printable(decode(&token, 1));
}

namespace {

// Cuts `text` at every `special` and calls ordinary(part) for the text between (may be empty) and found() for each one.
template <typename Ordinary, typename Found>
void split_at_special(std::string_view text, std::string_view special, Ordinary&& ordinary, Found&& found) {
    uint64_t start = 0;
    for (uint64_t at; (at = text.find(special, start)) != std::string_view::npos; start = at + special.size()) {
        ordinary(text.substr(start, at - start));
        found();
    }
    ordinary(text.substr(start));
}

}  // namespace

const std::vector<std::string>& byte_symbols() {
    static const std::vector<std::string> symbols = [] {
        std::vector<std::string> table;
        uint32_t next = 0x100;
        for (uint32_t b = 0; b < 256; ++b) {
            const bool visible = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
            const uint32_t c = visible ? b : next++;
            if (c < 0x80) {
                table.push_back(std::string(1, static_cast<char>(c)));
            } else {
                table.push_back({static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))});
            }
        }
        return table;
    }();
    return symbols;
}

void ByteTokenizer::encode(std::string_view text, std::vector<int32_t>& out, bool allow_special) const {
    const auto bytes = [&](std::string_view part) {
        const auto* const first = reinterpret_cast<const uint8_t*>(part.data());
        out.insert(out.end(), first, first + part.size());
    };
    if (!allow_special) return bytes(text);
    split_at_special(text, end_of_text_string, bytes, [&] { out.push_back(end_of_text()); });
}

std::string ByteTokenizer::decode(const int32_t* tokens, uint64_t n) const {
    std::string text;
    for (uint64_t i = 0; i < n; ++i) {
        if (tokens[i] < 0 || tokens[i] > 256) {
            throw BadInput("token " + std::to_string(tokens[i]) + " is outside the byte vocabulary of 257");
        }
        if (tokens[i] == 256) {
            text += end_of_text_string;
        } else {
            text += static_cast<char>(tokens[i]);
        }
    }
    return text;
}

std::string ByteTokenizer::fingerprint() const {
    Fingerprint hash;
    for (uint32_t id = 0; id < 257; ++id) hash.add(id);
    return hash.hex();
}

void ByteTokenizer::save(const std::string& folder) const {
    Json vocab = Json::object();
    for (uint32_t b = 0; b < 256; ++b) vocab[byte_symbols()[b]] = b;
    vocab[end_of_text_string] = 256;
    const auto byte_level = [](bool use_regex) {
        return Json{
            {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", use_regex}};
    };
    const Json end_of_text = {
        {"id", 256},       {"content", end_of_text_string}, {"single_word", false}, {"lstrip", false},
        {"rstrip", false}, {"normalized", false},           {"special", true}};
    const Json tokenizer = {{"version", "1.0"},
                            {"truncation", nullptr},
                            {"padding", nullptr},
                            {"added_tokens", Json::array({end_of_text})},
                            {"normalizer", nullptr},
                            {"pre_tokenizer", byte_level(false)},
                            {"post_processor", nullptr},
                            {"decoder", byte_level(false)},
                            {"model",
                             {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"continuing_subword_prefix", nullptr},
                              {"end_of_word_suffix", nullptr},
                              {"fuse_unk", false},
                              {"byte_fallback", false},
                              {"vocab", vocab},
                              {"merges", Json::array()}}}};
    Json special = {
        {"bos_token", end_of_text_string}, {"eos_token", end_of_text_string}, {"unk_token", end_of_text_string}};
    write_file_atomically(folder + "/tokenizer.json", tokenizer.dump(2) + "\n");
    write_file_atomically(folder + "/special_tokens_map.json", special.dump(2) + "\n");
    special["add_prefix_space"] = false;
    special["clean_up_tokenization_spaces"] = false;
    special["tokenizer_class"] = "PreTrainedTokenizerFast";
    write_file_atomically(folder + "/tokenizer_config.json", special.dump(2) + "\n");
}

// ---------------------------------------------------------------------------------------------------------------------
// Byte-pair encoding: what the files say

namespace {

// Ids must lie below this: more than any vocabulary in use, small enough for tables.
constexpr int32_t most_bpe_tokens = 1 << 20;

int32_t parse_token_id(const Json& id, const std::string& token, const std::string& source) {
    const bool valid = id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(most_bpe_tokens);
    if (!valid) {
        throw BadInput(source + ": the id of the token " + quoted_name(token) + " is not a number from 0 to " +
                       std::to_string(most_bpe_tokens - 1));
    }
    return id.get<int32_t>();
}

}  // namespace

void parse_bpe_vocab(const Json& vocab, const std::string& source, BpeVocabulary& out) {
    if (!vocab.is_object() || vocab.empty()) throw BadInput(source + ": the vocabulary is not an object of token ids");
    out.ids.reserve(vocab.size());
    for (const auto& [symbols, id] : vocab.items()) out.ids[symbols] = parse_token_id(id, symbols, source);
}

namespace {

// One merge: two strings of symbols, separated by the only space. BadInput if there are not two.
std::pair<std::string, std::string> parse_merge(std::string_view line, const std::string& where) {
    const uint64_t space = line.find(' ');
    const bool two = space != std::string_view::npos && space > 0 && space + 1 < line.size() &&
                     line.find(' ', space + 1) == std::string_view::npos;
    if (!two) throw BadInput(where + " is not a merge of two tokens: " + quoted_name(std::string(line)));
    return {std::string(line.substr(0, space)), std::string(line.substr(space + 1))};
}

}  // namespace

void parse_bpe_merges(const std::string& text, const std::string& source, BpeVocabulary& out) {
    uint64_t number = 0;
    for (uint64_t start = 0; start < text.size();) {
        const uint64_t end = std::min(text.find('\n', start), text.size());
        std::string_view line = std::string_view(text).substr(start, end - start);
        start = end + 1;
        ++number;
        if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
        const bool version = number == 1 && line.substr(0, 8) == "#version";
        if (version || line.empty()) continue;
        out.merges.push_back(parse_merge(line, source + " line " + std::to_string(number)));
    }
}

namespace {

// The value under `key`, null if there is none. It belongs to `object`.
const Json& json_value(const Json& object, const char* key) {
    static const Json null;
    const Json* const found = object.find(key);
    return found != nullptr ? *found : null;
}

// BadInput unless the parts of a tokenizer.json around its model do what GPT-2's do. The post-processor is not looked at:
// it adds tokens around a text, and here documents are only followed by end-of-text.
void check_tokenizer_json(const Json& file, bool has_merges, const std::string& source) {
    const auto need = [&](bool fulfilled, const std::string& what) {
        if (!fulfilled) throw BadInput(source + " is not a GPT-2 byte-level BPE tokenizer: " + what);
    };
    const auto is_unset = [](const Json& v) { return v.is_null() || v == false || v == ""; };
    const Json& model = json_value(file, "model");
    const Json& type = json_value(model, "type");
    need(type == "BPE" || (type.is_null() && model.contains("merges")), "model.type is not \"BPE\"");
    for (const char* option :
         {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"}) {
        need(is_unset(json_value(model, option)), std::string("model.") + option + " is set");
    }
    need(json_value(file, "normalizer").is_null(), "it has a normalizer");
    const Json& pre = json_value(file, "pre_tokenizer");
    need(json_value(pre, "type") == "ByteLevel", "pre_tokenizer.type is not \"ByteLevel\"");
    need(json_value(pre, "add_prefix_space") == false, "pre_tokenizer.add_prefix_space is not false");
    const Json& use_regex = json_value(pre, "use_regex");
    need(!has_merges || use_regex.is_null() || use_regex == true, "pre_tokenizer.use_regex is not true");
}

}  // namespace

BpeVocabulary parse_tokenizer_json(const std::string& text, const std::string& source) {
    const Json file = parse_json(text, source);
    const Json& model = json_value(file, "model");
    const Json& merges = json_value(model, "merges");
    check_tokenizer_json(file, !merges.empty(), source);
    if (!merges.is_array()) throw BadInput(source + ": model.merges is not an array");
    BpeVocabulary out;
    parse_bpe_vocab(json_value(model, "vocab"), source, out);
    for (const Json& merge : merges) {
        const std::string where = source + ": model.merges[" + std::to_string(out.merges.size()) + "]";
        if (merge.is_string()) {
            out.merges.push_back(parse_merge(merge.string(), where));
        } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
            out.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
        } else {
            throw BadInput(where + " is not a merge of two tokens");
        }
    }
    const Json& added = json_value(file, "added_tokens");
    if (!added.is_null() && !added.is_array()) throw BadInput(source + ": its added tokens are not an array");
    for (const Json& token : added) {
        const Json& content = json_value(token, "content");
        if (!content.is_string() || content == "") throw BadInput(source + ": an added token has no content");
        out.added[content.string()] = parse_token_id(json_value(token, "id"), content.string(), source);
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// Byte-pair encoding: the merges

MergeTable::MergeTable(uint64_t merges) {
    while ((uint64_t{1} << bits_) < 2 * merges) ++bits_;
    slots_.resize(uint64_t{1} << bits_);
}

bool MergeTable::insert(int32_t left, int32_t right, Merge merge) {
    Slot& slot = slots_[slot_of(key_of(left, right))];
    if (slot.merge.rank != no_rank) return false;
    slot = {key_of(left, right), merge};
    return true;
}

uint64_t MergeTable::slot_of(uint64_t key) const {
    uint64_t i = key * 0x9E3779B97F4A7C15ull >> (64 - bits_);
    while (slots_[i].merge.rank != no_rank && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
    return i;
}

uint32_t merge_short(const MergeTable& table, int32_t* tokens, uint32_t n, MergeTable::Merge* pairs) {
    for (uint32_t i = 0; i + 1 < n; ++i) pairs[i] = table.find(tokens[i], tokens[i + 1]);
    while (n > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < n; ++i) {
            if (pairs[i].rank < pairs[best].rank) best = i;
        }
        if (pairs[best].rank == MergeTable::no_rank) return n;
        tokens[best] = pairs[best].token;
        std::copy(tokens + best + 2, tokens + n, tokens + best + 1);
        if (best + 2 < n) std::copy(pairs + best + 2, pairs + n - 1, pairs + best + 1);
        --n;
        if (best > 0) pairs[best - 1] = table.find(tokens[best - 1], tokens[best]);
        if (best + 1 < n) pairs[best] = table.find(tokens[best], tokens[best + 1]);
    }
    return n;
}

void merge_long(const MergeTable& table, std::vector<int32_t>& tokens) {
    const uint32_t none = std::numeric_limits<uint32_t>::max();
    const uint32_t n = static_cast<uint32_t>(tokens.size());
    std::vector<uint32_t> previous(n), next(n);
    using RankAndPlace = std::pair<uint32_t, uint32_t>;
    std::priority_queue<RankAndPlace, std::vector<RankAndPlace>, std::greater<RankAndPlace>> waiting;
    const auto rank_at = [&](uint32_t i) {
        return tokens[i] < 0 || next[i] == none ? MergeTable::Merge() : table.find(tokens[i], tokens[next[i]]);
    };
    const auto wait = [&](uint32_t i) {
        const MergeTable::Merge merge = rank_at(i);
        if (merge.rank != MergeTable::no_rank) waiting.push({merge.rank, i});
    };
    for (uint32_t i = 0; i < n; ++i) {
        previous[i] = i > 0 ? i - 1 : none;
        next[i] = i + 1 < n ? i + 1 : none;
    }
    for (uint32_t i = 0; i < n; ++i) wait(i);
    while (!waiting.empty()) {
        const auto [rank, left] = waiting.top();
        waiting.pop();
        const MergeTable::Merge merge = rank_at(left);
        if (merge.rank != rank) continue;  // the pair has changed since it was put here
        const uint32_t right = next[left];
        tokens[left] = merge.token;
        tokens[right] = -1;
        next[left] = next[right];
        if (next[left] != none) previous[next[left]] = left;
        wait(left);
        if (previous[left] != none) wait(previous[left]);
    }
    tokens.erase(std::remove(tokens.begin(), tokens.end(), -1), tokens.end());
}

// The tokens of words seen before, one table per thread, shared by all tokenizers. A word has one slot and replaces whatever
// was there, so memory is fixed; text repeats its words so much that hardly any has to be merged twice.
class WordCache {
  public:
    static constexpr uint32_t most_bytes = 23;  // of a word

    // Two cache lines, of which the first is all that is looked at for a word of up to seven tokens.
    struct alignas(128) Slot {
        uint64_t key[3] = {};  // the word, zeros, and in the last byte its length
        uint64_t owner = 0;    // the tokenizer whose tokens these are
        int32_t count = 0;     // of tokens
        int32_t tokens[most_bytes];
    };

    WordCache() : slots_(uint64_t{1} << bits) {}

    // The slot for a word of 1 to most_bytes bytes; `known` says whether its tokens are in it. If not, the slot is now this
    // word's and the caller fills in count and tokens.
    Slot& slot(uint64_t owner, const char* word, uint64_t n, bool& known) {
        uint64_t key[3] = {};
        std::memcpy(key, word, n);
        key[2] |= n << 56;
        const uint64_t mixed =
            (key[0] ^ key[1] * 0x9E3779B97F4A7C15u ^ key[2] * 0xD1342543DE82EF95u ^ owner) * 0xBF58476D1CE4E5B9u;
        Slot& slot = slots_[(mixed ^ mixed >> 32) * 0x94D049BB133111EBu >> (64 - bits)];
        known = slot.key[0] == key[0] && slot.key[1] == key[1] && slot.key[2] == key[2] && slot.owner == owner;
        std::copy(key, key + 3, slot.key);
        slot.owner = owner;
        return slot;
    }

  private:
    static constexpr uint32_t bits = 15;  // 32,768 words, 4 MiB

    std::vector<Slot> slots_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Byte-pair encoding: the tokenizer

BpeTokenizer::BpeTokenizer(const BpeVocabulary& vocabulary, Files files, const std::string& source)
    : files_(std::move(files)), merges_(vocabulary.merges.size()), end_of_text_string_(vocabulary.end_of_text) {
    static std::atomic<uint64_t> instances{0};
    instance_ = ++instances;
    take_tokens(vocabulary, source);
    const auto added = vocabulary.added.find(end_of_text_string_);
    const auto known = vocabulary.ids.find(end_of_text_string_);
    if (added == vocabulary.added.end() && known == vocabulary.ids.end()) {
        throw BadInput(source + ": the vocabulary lacks the end-of-text token " + quoted_name(end_of_text_string_));
    }
    end_of_text_ = added != vocabulary.added.end() ? added->second : known->second;
    take_bytes(vocabulary, source);
    fingerprint_.add(static_cast<uint32_t>(end_of_text_));
    take_merges(vocabulary, source);
}

void BpeTokenizer::encode(std::string_view text, std::vector<int32_t>& out, bool allow_special) const {
    if (!allow_special) return encode_ordinary(text, out);
    split_at_special(
        text, end_of_text_string_, [&](std::string_view part) { encode_ordinary(part, out); },
        [&] { out.push_back(end_of_text_); });
}

std::string BpeTokenizer::decode(const int32_t* tokens, uint64_t n) const {
    std::string text;
    for (uint64_t i = 0; i < n; ++i) {
        const bool known = tokens[i] >= 0 && static_cast<uint64_t>(tokens[i]) < tokens_.size();
        if (!known || tokens_[static_cast<uint64_t>(tokens[i])].empty()) {
            throw BadInput("token " + std::to_string(tokens[i]) + " is not in the BPE vocabulary of " +
                           std::to_string(tokens_.size()));
        }
        text += tokens_[static_cast<uint64_t>(tokens[i])];
    }
    return text;
}

void BpeTokenizer::save(const std::string& folder) const {
    for (const auto& [name, content] : files_) write_file_atomically(folder + "/" + name, content);
}

void BpeTokenizer::take_tokens(const BpeVocabulary& vocabulary, const std::string& source) {
    std::unordered_map<std::string, char> byte_of;
    for (uint32_t b = 0; b < 256; ++b) byte_of[byte_symbols()[b]] = static_cast<char>(b);
    const auto bytes_of = [&](const std::string& symbols) {
        std::string bytes;
        for (const char *p = symbols.data(), *end = p + symbols.size(); p < end;) {
            uint32_t code_point = 0;
            const uint32_t n = std::max(decode_utf8(p, end, code_point), 1u);
            const auto byte = byte_of.find(std::string(p, n));
            if (byte == byte_of.end()) return symbols;
            bytes += byte->second;
            p += n;
        }
        return bytes;
    };
    for (const auto& [symbols, id] : vocabulary.ids) set_token(id, bytes_of(symbols), symbols, source);
    for (const auto& [text, id] : vocabulary.added) {
        const auto known = vocabulary.ids.find(text);
        if (known != vocabulary.ids.end() && known->second == id) continue;
        set_token(id, text, text, source);
    }
}

void BpeTokenizer::set_token(int32_t id, const std::string& bytes, const std::string& token,
                             const std::string& source) {
    const uint64_t i = static_cast<uint64_t>(id);
    if (bytes.empty()) throw BadInput(source + ": token " + std::to_string(id) + " is empty");
    if (tokens_.size() <= i) tokens_.resize(i + 1);
    if (!tokens_[i].empty()) {
        throw BadInput(source + ": the id " + std::to_string(id) + " of the token " + quoted_name(token) +
                       " belongs to another token too");
    }
    tokens_[i] = bytes;
}

void BpeTokenizer::take_bytes(const BpeVocabulary& vocabulary, const std::string& source) {
    for (uint32_t b = 0; b < 256; ++b) {
        const auto found = vocabulary.ids.find(byte_symbols()[b]);
        if (found == vocabulary.ids.end()) {
            throw BadInput(source + ": the vocabulary lacks the byte " + std::to_string(b) +
                           "; only byte-level BPE vocabularies can be used");
        }
        byte_tokens_[b] = found->second;
        fingerprint_.add(static_cast<uint32_t>(found->second));
    }
}

void BpeTokenizer::take_merges(const BpeVocabulary& vocabulary, const std::string& source) {
    uint32_t rank = 0;
    for (const auto& [left, right] : vocabulary.merges) {
        const auto merge = " in merge " + std::to_string(rank + 1) + ", " + quoted_name(left + " " + right);
        const auto id_of = [&](const std::string& symbols) {
            const auto found = vocabulary.ids.find(symbols);
            if (found != vocabulary.ids.end()) return found->second;
            throw BadInput(source + ": the vocabulary lacks the token " + quoted_name(symbols) + merge);
        };
        const int32_t ids[3] = {id_of(left), id_of(right), id_of(left + right)};
        if (!merges_.insert(ids[0], ids[1], {rank, ids[2]})) throw BadInput(source + ": the same pair twice" + merge);
        for (const int32_t id : ids) fingerprint_.add(static_cast<uint32_t>(id));
        ++rank;
    }
}

void BpeTokenizer::encode_ordinary(std::string_view text, std::vector<int32_t>& out) const {
    constexpr uint64_t longest_piece = 1 << 30;  // merge_long counts with 32 bits
    thread_local WordCache cache;
    const CharClass* const classes = char_classes();
    const char* const end = text.data() + text.size();
    for (const char* p = text.data(); p < end;) {
        const uint64_t n = std::min(piece_length(p, end, classes), longest_piece);
        encode_piece(p, n, cache, out);
        p += n;
    }
}

void BpeTokenizer::encode_piece(const char* p, uint64_t n, WordCache& cache, std::vector<int32_t>& out) const {
    if (n > most_short_bytes_) return encode_long_piece(p, n, out);
    if (n > WordCache::most_bytes) {
        int32_t tokens[most_short_bytes_];
        out.insert(out.end(), tokens, tokens + merge_piece(p, n, tokens));
        return;
    }
    bool known = false;
    WordCache::Slot& slot = cache.slot(instance_, p, n, known);
    if (!known) slot.count = static_cast<int32_t>(merge_piece(p, n, slot.tokens));
    out.insert(out.end(), slot.tokens, slot.tokens + slot.count);
}

uint32_t BpeTokenizer::merge_piece(const char* p, uint64_t n, int32_t* tokens) const {
    MergeTable::Merge pairs[most_short_bytes_];
    for (uint64_t i = 0; i < n; ++i) tokens[i] = byte_tokens_[static_cast<uint8_t>(p[i])];
    return merge_short(merges_, tokens, static_cast<uint32_t>(n), pairs);
}

void BpeTokenizer::encode_long_piece(const char* p, uint64_t n, std::vector<int32_t>& out) const {
    std::vector<int32_t> tokens(n);
    for (uint64_t i = 0; i < n; ++i) tokens[i] = byte_tokens_[static_cast<uint8_t>(p[i])];
    merge_long(merges_, tokens);
    out.insert(out.end(), tokens.begin(), tokens.end());
}

// ---------------------------------------------------------------------------------------------------------------------
// Loading

namespace {

constexpr uint64_t most_tokenizer_bytes = 64 << 20;  // of one tokenizer file

// The files of a folder that belong to its tokenizer, except for the vocabulary itself.
BpeTokenizer::Files read_companion_files(const std::string& folder) {
    BpeTokenizer::Files files;
    for (const char* name :
         {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}) {
        const std::string path = folder + "/" + name;
        if (std::filesystem::exists(path)) files[name] = read_file(path, most_tokenizer_bytes);
    }
    return files;
}

// The text of the token that ends a document: eos_token of tokenizer_config.json or special_tokens_map.json, a string or
// an object with "content"; GPT-2's where neither says anything.
std::string end_of_text_named_in(const BpeTokenizer::Files& files, const std::string& folder) {
    for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
        const auto file = files.find(name);
        if (file == files.end()) continue;
        const Json content = parse_json(file->second, folder + "/" + name);
        const Json& token = json_value(content, "eos_token");
        const Json& text = token.is_object() ? json_value(token, "content") : token;
        if (text.is_string() && text != "") return text.get<std::string>();
    }
    return end_of_text_string;
}

// Whether these are the ids of ByteTokenizer.
bool is_byte_vocabulary(const BpeVocabulary& vocabulary) {
    if (!vocabulary.merges.empty() || vocabulary.end_of_text != end_of_text_string) return false;
    std::map<std::string, int32_t> expected = {{end_of_text_string, 256}};
    for (int32_t b = 0; b < 256; ++b) expected[byte_symbols()[static_cast<uint64_t>(b)]] = b;
    std::map<std::string, int32_t> all(vocabulary.ids.begin(), vocabulary.ids.end());
    all.insert(vocabulary.added.begin(), vocabulary.added.end());
    return all == expected;
}

// For BPE folders that say nothing about their class, so that AutoTokenizer need not guess from a model's config.json.
std::string default_tokenizer_config(const std::string& end_of_text, bool has_merges_file) {
    const Json config = {{"add_prefix_space", false},
                         {"bos_token", end_of_text},
                         {"eos_token", end_of_text},
                         {"unk_token", end_of_text},
                         {"clean_up_tokenization_spaces", false},
                         {"tokenizer_class", has_merges_file ? "GPT2Tokenizer" : "PreTrainedTokenizerFast"}};
    return config.dump(2) + "\n";
}

// What the files beside vocab.json and merges.txt add to them: tokens outside the vocabulary, {"content": id} in
// added_tokens.json or {"id": {"content": ...}} under added_tokens_decoder. BadInput if they change what encode does.
void take_companion_files(const BpeTokenizer::Files& files, const std::string& folder, BpeVocabulary& vocabulary) {
    const auto parse = [&](const char* name) {
        const auto file = files.find(name);
        return file == files.end() ? Json::object() : parse_json(file->second, folder + "/" + name);
    };
    const Json added = parse("added_tokens.json");
    if (!added.is_object()) throw BadInput(folder + "/added_tokens.json: is not an object of token ids");
    for (const auto& [content, id] : added.items()) {
        vocabulary.added[content] = parse_token_id(id, content, folder + "/added_tokens.json");
    }
    const Json config = parse("tokenizer_config.json");
    const std::string source = folder + "/tokenizer_config.json";
    if (json_value(config, "add_prefix_space") == true) {
        throw BadInput(source + ": tokenizers with add_prefix_space are not supported");
    }
    const Json& decoder = json_value(config, "added_tokens_decoder");
    if (!decoder.is_null() && !decoder.is_object()) throw BadInput(source + ": added_tokens_decoder is not an object");
    for (const auto& [id, token] : decoder.items()) {
        const Json& content = json_value(token, "content");
        const bool valid = content.is_string() && !id.empty() && id.size() < 10 &&
                           id.find_first_not_of("0123456789") == std::string::npos;
        if (!valid) throw BadInput(source + ": added_tokens_decoder does not map ids to tokens with a content");
        vocabulary.added[content.string()] = parse_token_id(std::stoul(id), content.string(), source);
    }
}

// A BPE folder whose vocabulary lies in two files, which save() will write under Hugging Face's names.
BpeVocabulary read_bpe_vocabulary(const std::string& folder, const char* vocab_name, const char* merges_name,
                                  BpeTokenizer::Files& files) {
    const std::string vocab_path = folder + "/" + vocab_name;
    const std::string merges_path = folder + "/" + merges_name;
    const std::string& vocab = files["vocab.json"] = read_file(vocab_path, most_tokenizer_bytes);
    const std::string& merges = files["merges.txt"] = read_file(merges_path, most_tokenizer_bytes);
    BpeVocabulary vocabulary;
    parse_bpe_vocab(parse_json(vocab, vocab_path), vocab_path, vocabulary);
    parse_bpe_merges(merges, merges_path, vocabulary);
    take_companion_files(files, folder, vocabulary);
    return vocabulary;
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& byte_or_folder) {
    if (byte_or_folder == "byte") return std::make_unique<ByteTokenizer>();
    const std::string& folder = byte_or_folder;
    if (!std::filesystem::is_directory(folder)) {
        throw BadInput("there is no tokenizer " + folder + "; give \"byte\" or a folder with tokenizer files");
    }
    const auto has = [&](const char* name) { return std::filesystem::exists(folder + "/" + name); };
    BpeTokenizer::Files files = read_companion_files(folder);
    BpeVocabulary vocabulary;
    if (has("vocab.json") && has("merges.txt")) {
        vocabulary = read_bpe_vocabulary(folder, "vocab.json", "merges.txt", files);
    } else if (has("encoder.json") && has("vocab.bpe")) {
        vocabulary = read_bpe_vocabulary(folder, "encoder.json", "vocab.bpe", files);
    } else if (has("tokenizer.json")) {
        vocabulary = parse_tokenizer_json(files["tokenizer.json"], folder + "/tokenizer.json");
    } else {
        throw BadInput(folder +
                       " has no tokenizer: neither vocab.json and merges.txt, nor encoder.json and vocab.bpe, " +
                       "nor tokenizer.json; copy them there or name another folder");
    }
    vocabulary.end_of_text = end_of_text_named_in(files, folder);
    if (is_byte_vocabulary(vocabulary)) return std::make_unique<ByteTokenizer>();
    files.emplace("tokenizer_config.json", default_tokenizer_config(vocabulary.end_of_text, files.count("merges.txt")));
    return std::make_unique<BpeTokenizer>(vocabulary, std::move(files), folder);
}

}  // namespace lnfree
