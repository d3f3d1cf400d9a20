#include "data/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
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

uint64_t ByteTokenizer::encode(std::string_view text, std::vector<int32_t>& out, bool allow_special, bool) const {
    static const AddedTokens added({{end_of_text_string, 256, true}}, "the byte tokenizer");
    const auto bytes = [&](std::string_view part) {
        const auto* const first = reinterpret_cast<const uint8_t*>(part.data());
        out.insert(out.end(), first, first + part.size());
    };
    return added.split(text, allow_special, bytes, [&](int32_t id) { out.push_back(id); });
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

Json gpt2_input_names() {
    return Json::array({"input_ids", "attention_mask"});
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
    special["model_input_names"] = gpt2_input_names();
    write_file_atomically(folder + "/tokenizer_config.json", special.dump(2) + "\n");
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
    : files_(std::move(files)),
      merges_(vocabulary.merges.size()),
      prefix_space_(vocabulary.prefix_space),
      split_(vocabulary.split) {
    static std::atomic<uint64_t> instances{0};
    instance_ = ++instances;
    take_tokens(vocabulary, source);
    take_end_of_text(vocabulary, source);
    take_bytes(vocabulary, source);
    fingerprint_.add(static_cast<uint32_t>(end_of_text_));
    take_merges(vocabulary, source);
    take_added(vocabulary, source);
    if (vocabulary.nfc) add_to_fingerprint("NFC");
    if (split_ != Split::gpt2) add_to_fingerprint("split " + std::to_string(static_cast<int>(split_)));
    if (vocabulary.ignore_merges) take_whole_pieces(vocabulary);
}

uint64_t BpeTokenizer::encode(std::string_view text, std::vector<int32_t>& out, bool allow_special,
                              bool continues) const {
    bool inside = continues;  // of a stretch between added tokens that has its space already
    const auto ordinary = [&](std::string_view part) {
        if (prefix_space_ && !inside && part[0] != ' ') {
            encode_ordinary(" " + std::string(part), out);
        } else {
            encode_ordinary(part, out);
        }
        inside = false;
    };
    return added_.split(text, allow_special, ordinary, [&](int32_t id) {
        out.push_back(id);
        inside = false;
    });
}

std::string BpeTokenizer::decode(const int32_t* tokens, uint64_t n) const {
    std::string text;
    for (uint64_t i = 0; i < n; ++i) {
        if (!has(tokens[i])) {
            throw BadInput("token " + std::to_string(tokens[i]) + " is not in the BPE vocabulary of " +
                           std::to_string(tokens_.size()));
        }
        text += tokens_[static_cast<uint64_t>(tokens[i])];
    }
    return text;
}

bool BpeTokenizer::has(int32_t token) const {
    return token >= 0 && static_cast<uint64_t>(token) < tokens_.size() &&
           !tokens_[static_cast<uint64_t>(token)].empty();
}

void BpeTokenizer::save(const std::string& folder) const {
    for (const auto& [name, content] : files_) write_file_atomically(folder + "/" + name, content);
}

namespace {

// The bytes that a token's symbols stand for; the symbols themselves if one stands for no byte (in added tokens).
std::string bytes_of(const std::string& symbols) {
    static const std::unordered_map<std::string, char> byte_of = [] {
        std::unordered_map<std::string, char> table;
        for (uint32_t b = 0; b < 256; ++b) table[byte_symbols()[b]] = static_cast<char>(b);
        return table;
    }();
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
}

}  // namespace

void BpeTokenizer::take_tokens(const BpeVocabulary& vocabulary, const std::string& source) {
    for (const auto& [symbols, id] : vocabulary.ids) set_token(id, bytes_of(symbols), symbols, source);
    for (const auto& [text, token] : vocabulary.added) {
        const auto known = vocabulary.ids.find(text);
        if (token.id < 0 || (known != vocabulary.ids.end() && known->second == token.id)) continue;
        set_token(token.id, text, text, source);
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

void BpeTokenizer::take_end_of_text(const BpeVocabulary& vocabulary, const std::string& source) {
    const auto added = vocabulary.added.find(vocabulary.end_of_text);
    const auto known = vocabulary.ids.find(vocabulary.end_of_text);
    const bool has_id = added != vocabulary.added.end() && added->second.id >= 0;
    if (!has_id && known == vocabulary.ids.end()) {
        throw BadInput(source + ": the vocabulary lacks the end-of-text token " + quoted_name(vocabulary.end_of_text));
    }
    end_of_text_ = has_id ? added->second.id : known->second;
}

void BpeTokenizer::take_bytes(const BpeVocabulary& vocabulary, const std::string& source) {
    const auto none = vocabulary.ids.end();
    for (uint32_t b = 0; b < 256; ++b) {
        const auto found = vocabulary.ids.find(byte_symbols()[b]);
        const auto instead = found == none && vocabulary.lacks_bytes ? vocabulary.ids.find(vocabulary.unknown) : found;
        const bool left_out = vocabulary.lacks_bytes && vocabulary.unknown.empty();
        if (instead == none && !left_out) {
            throw BadInput(source + ": the vocabulary lacks the byte " + std::to_string(b) +
                           "; only byte-level BPE vocabularies can be used");
        }
        byte_tokens_[b] = instead == none ? -1 : instead->second;
        fingerprint_.add(static_cast<uint32_t>(byte_tokens_[b]));
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

void BpeTokenizer::take_added(const BpeVocabulary& vocabulary, const std::string& source) {
    std::map<std::string, AddedToken> all = vocabulary.added;
    AddedToken& end = all[vocabulary.end_of_text];
    end.text = vocabulary.end_of_text;
    end.id = end_of_text_;
    end.special = true;
    std::vector<AddedToken> tokens;
    for (const auto& [text, token] : all) {
        tokens.push_back(token);
        if (!token.special) add_to_fingerprint(token);  // special tokens change no text unless that is asked for
    }
    if (prefix_space_) fingerprint_.add(' ');
    added_ = AddedTokens(tokens, source, vocabulary.nfc);
}

void BpeTokenizer::take_whole_pieces(const BpeVocabulary& vocabulary) {
    add_to_fingerprint("ignore_merges");
    for (const auto& [symbols, id] : std::map<std::string, int32_t>(vocabulary.ids.begin(), vocabulary.ids.end())) {
        whole_pieces_[bytes_of(symbols)] = id;
        add_to_fingerprint(symbols);
        fingerprint_.add(static_cast<uint32_t>(id));
    }
}

void BpeTokenizer::add_to_fingerprint(std::string_view text) {
    for (const char c : text) fingerprint_.add(static_cast<uint8_t>(c));
}

void BpeTokenizer::add_to_fingerprint(const AddedToken& token) {
    add_to_fingerprint(token.text);
    for (const bool flag : {token.normalized, token.lstrip, token.rstrip}) fingerprint_.add(flag);
    fingerprint_.add(static_cast<uint32_t>(token.id));
}

void BpeTokenizer::encode_ordinary(std::string_view text, std::vector<int32_t>& out) const {
    const CharClass* const classes = char_classes();
    switch (split_) {
        case Split::gpt2:
            return encode_pieces(text, out, [&](auto p, auto end) { return piece_length(p, end, classes); });
        case Split::gpt2_digits:
            return encode_pieces(text, out, [&](auto p, auto end) { return digits_piece_length(p, end, classes); });
        case Split::llama3:
            return encode_pieces(text, out, [&](auto p, auto end) { return llama3_piece_length(p, end, classes, 3); });
        case Split::qwen2:
            return encode_pieces(text, out, [&](auto p, auto end) { return llama3_piece_length(p, end, classes, 1); });
    }
}

template <class PieceLength>
void BpeTokenizer::encode_pieces(std::string_view text, std::vector<int32_t>& out, const PieceLength& length) const {
    constexpr uint64_t longest_piece = 1 << 30;  // merge_long counts with 32 bits
    thread_local WordCache cache;
    const char* const end = text.data() + text.size();
    for (const char* p = text.data(); p < end;) {
        const uint64_t n = std::min(length(p, end), longest_piece);
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

int32_t BpeTokenizer::whole_piece(const char* p, uint64_t n) const {
    if (whole_pieces_.empty()) return -1;
    const auto found = whole_pieces_.find(std::string(p, n));
    return found == whole_pieces_.end() ? -1 : found->second;
}

uint32_t BpeTokenizer::merge_piece(const char* p, uint64_t n, int32_t* tokens) const {
    tokens[0] = whole_piece(p, n);
    if (tokens[0] >= 0) return 1;
    MergeTable::Merge pairs[most_short_bytes_];
    return merge_short(merges_, tokens, static_cast<uint32_t>(byte_tokens(p, n, tokens)), pairs);
}

uint64_t BpeTokenizer::byte_tokens(const char* p, uint64_t n, int32_t* tokens) const {
    uint64_t count = 0;
    for (uint64_t i = 0; i < n; ++i) {
        tokens[count] = byte_tokens_[static_cast<uint8_t>(p[i])];
        count += tokens[count] >= 0;
    }
    return count;
}

void BpeTokenizer::encode_long_piece(const char* p, uint64_t n, std::vector<int32_t>& out) const {
    const int32_t whole = whole_piece(p, n);
    if (whole >= 0) return out.push_back(whole);
    std::vector<int32_t> tokens(n);
    tokens.resize(byte_tokens(p, n, tokens.data()));
    merge_long(merges_, tokens);
    out.insert(out.end(), tokens.begin(), tokens.end());
}

}  // namespace lnfree
