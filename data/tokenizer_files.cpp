// The file forms of byte-pair vocabularies, and load_tokenizer: what is declared in tokenizer.h and reads files.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "data/files.h"
#include "data/json.h"
#include "data/tokenizer.h"

namespace lnfree {

namespace {

// Ids must lie below this: more than any vocabulary in use, small enough for tables.
constexpr int32_t most_bpe_tokens = 1 << 20;

constexpr char instead[] = "; tokenise the text with transformers and give its ids as a .npy file";

int32_t parse_token_id(const Json& id, const std::string& token, const std::string& source) {
    const bool valid = id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(most_bpe_tokens);
    if (!valid) {
        throw BadInput(source + ": the id of the token " + quoted_name(token) + " is not a number from 0 to " +
                       std::to_string(most_bpe_tokens - 1));
    }
    return id.get<int32_t>();
}

// The value under `key`, null if there is none. It belongs to `object`.
const Json& json_value(const Json& object, const char* key) {
    static const Json null;
    const Json* const found = object.find(key);
    return found != nullptr ? *found : null;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// vocab.json and merges.txt

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
        const bool blank = line.find_first_not_of(" \t") == std::string_view::npos;
        if (version || blank) continue;
        out.merges.push_back(parse_merge(line, source + " line " + std::to_string(number)));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// tokenizer.json

namespace {

// "Lowercase", or "Sequence of Digits, ByteLevel": a part of a tokenizer.json in words.
std::string name_of_part(const Json& part, const char* members) {
    if (part.is_null()) return "none";
    const Json& type = json_value(part, "type");
    std::string name = type.is_string() ? type.string() : "one without a type";
    const Json& list = json_value(part, members);
    if (!list.is_array()) return name;
    for (const Json& member : list) name += (&member == &list[0] ? " of " : ", ") + name_of_part(member, members);
    return name;
}

// As the files spell them.
constexpr char gpt2_pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char llama3_pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char qwen2_pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// What a part of a pre-tokenizer that comes before ByteLevel splits by, and whether ByteLevel then splits by GPT-2's
// pattern; false if it is none of those that are known.
bool read_first_part(const Json& part, Split& split, bool& then_gpt2) {
    then_gpt2 = json_value(part, "type") == "Digits";
    if (then_gpt2) {
        split = Split::gpt2_digits;
        return json_value(part, "individual_digits") == true;
    }
    const Json& behaviour = json_value(part, "behavior");
    const bool keeps_all = (behaviour == "Isolated" && json_value(part, "invert") == false) ||
                           (behaviour == "Removed" && json_value(part, "invert") == true);
    if (json_value(part, "type") != "Split" || !keeps_all) return false;
    for (const auto& [pattern, known] : {std::pair(gpt2_pattern, Split::gpt2), std::pair(llama3_pattern, Split::llama3),
                                         std::pair(qwen2_pattern, Split::qwen2)}) {
        split = known;
        if (json_value(json_value(part, "pattern"), "Regex") == pattern) return true;
    }
    return false;
}

// Takes the pre-tokenizer if it is one of those that are known; else false. Where nothing merges it splits into bytes in
// any case.
bool read_pre_tokenizer(const Json& pre, bool merges, BpeVocabulary& out) {
    if (json_value(pre, "type") == "ByteLevel") {
        const Json& use_regex = json_value(pre, "use_regex");
        const Json& prefix = json_value(pre, "add_prefix_space");
        out.prefix_space = prefix == true;
        return prefix.is_boolean() && (!merges || use_regex.is_null() || use_regex == true);
    }
    const Json& parts = json_value(pre, "pretokenizers");
    if (json_value(pre, "type") != "Sequence" || !parts.is_array()) return false;
    if (parts.size() == 1) return read_pre_tokenizer(parts[0], merges, out);
    bool use_regex = false;
    return parts.size() == 2 && read_first_part(parts[0], out.split, use_regex) &&
           json_value(parts[1], "type") == "ByteLevel" && json_value(parts[1], "use_regex") == use_regex &&
           json_value(parts[1], "add_prefix_space") == false;
}

// Takes the normalizer if it is none or NFC, by itself or in a sequence; else false.
bool read_normalizer(const Json& normalizer, BpeVocabulary& out) {
    const Json& parts = json_value(normalizer, "normalizers");
    if (parts.is_array() && parts.size() == 1) return read_normalizer(parts[0], out);
    out.nfc = json_value(normalizer, "type") == "NFC";
    return out.nfc || normalizer.is_null() || (parts.is_array() && parts.empty());
}

// Takes what the parts of a tokenizer.json around its vocabulary do. BadInput if one does something else than is known
// here. The post-processor is not looked at: it adds tokens around a text, and here documents are only followed by
// end-of-text.
void read_parts(const Json& file, const std::string& source, BpeVocabulary& out) {
    const auto need = [&](bool fulfilled, const std::string& what) {
        if (!fulfilled) throw BadInput(source + " is not a byte-level BPE tokenizer that runs here: " + what + instead);
    };
    const auto is_unset = [](const Json& v) { return v.is_null() || v == false || v == "" || v == 0; };
    const Json& model = json_value(file, "model");
    const Json& type = json_value(model, "type");
    need(type == "BPE" || (type.is_null() && model.contains("merges")), "model.type is not \"BPE\"");
    for (const char* option : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
        need(is_unset(json_value(model, option)), std::string("model.") + option + " is set");
    }
    const Json& ignore_merges = json_value(model, "ignore_merges");
    out.ignore_merges = ignore_merges == true;
    need(out.ignore_merges || is_unset(ignore_merges), "model.ignore_merges is neither true nor false");
    const Json& unknown = json_value(model, "unk_token");
    out.unknown = unknown.is_string() ? unknown.string() : "";
    out.lacks_bytes = out.unknown.empty() || is_unset(json_value(model, "fuse_unk"));
    const Json& normalizer = json_value(file, "normalizer");
    need(read_normalizer(normalizer, out),
         "its normalizer, " + quoted_name(name_of_part(normalizer, "normalizers")) + ", is not NFC");
    const Json& pre = json_value(file, "pre_tokenizer");
    const bool merges = !json_value(model, "merges").empty() || out.ignore_merges;
    need(read_pre_tokenizer(pre, merges, out),
         "its pre_tokenizer, " + quoted_name(name_of_part(pre, "pretokenizers")) +
             ", is not ByteLevel (use_regex, add_prefix_space) with the pattern of GPT-2, with individual "
             "digits before it, or with Llama 3's or Qwen2's");
}

// An added token as tokenizer.json, added_tokens_decoder and special tokens spell it; without flags where it is a string.
AddedToken parse_added_token(const Json& token, const std::string& source) {
    const Json& content = token.is_string() ? token : json_value(token, "content");
    if (!content.is_string() || content == "") throw BadInput(source + ": an added token has no content");
    const auto flag = [&](const char* key) { return json_value(token, key) == true; };
    AddedToken added;
    added.text = content.string();
    added.special = flag("special");
    added.normalized = flag("normalized");
    added.lstrip = flag("lstrip");
    added.rstrip = flag("rstrip");
    added.single_word = flag("single_word");
    return added;
}

}  // namespace

BpeVocabulary parse_tokenizer_json(const std::string& text, const std::string& source) {
    const Json file = parse_json(text, source);
    const Json& model = json_value(file, "model");
    const Json& merges = json_value(model, "merges");
    BpeVocabulary out;
    read_parts(file, source, out);
    if (!merges.is_array()) throw BadInput(source + ": model.merges is not an array");
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
        AddedToken read = parse_added_token(token, source);
        read.id = parse_token_id(json_value(token, "id"), read.text, source);
        out.added[read.text] = read;
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// The files beside the vocabulary

namespace {

constexpr uint64_t most_tokenizer_bytes = 64 << 20;  // of one tokenizer file

// The files of a folder that belong to its tokenizer, except for the vocabulary itself: as text, for save(), and parsed.
class CompanionFiles {
  public:
    explicit CompanionFiles(std::string folder) : folder_(std::move(folder)) {
        for (const char* name :
             {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}) {
            const std::string path = path_of(name);
            if (std::filesystem::exists(path)) files[name] = read_file(path, most_tokenizer_bytes);
        }
        config = parsed("tokenizer_config.json");
        special_tokens = parsed("special_tokens_map.json");
        added_tokens = parsed("added_tokens.json");
    }

    std::string path_of(const char* name) const { return folder_ + "/" + name; }

    BpeTokenizer::Files files;
    Json config, special_tokens, added_tokens;  // empty objects where there is no such file

  private:
    Json parsed(const char* name) const {
        const auto file = files.find(name);
        return file == files.end() ? Json::object() : parse_json(file->second, path_of(name));
    }

    std::string folder_;
};

// The text of the token that ends a document: eos_token of tokenizer_config.json or special_tokens_map.json, a string or
// an object with "content"; GPT-2's where neither says anything.
std::string end_of_text_named_in(const CompanionFiles& companions) {
    for (const Json* content : {&companions.config, &companions.special_tokens}) {
        const Json& token = json_value(*content, "eos_token");
        const Json& text = token.is_object() ? json_value(token, "content") : token;
        if (text.is_string() && text != "") return text.get<std::string>();
    }
    return end_of_text_string;
}

// A token that a file beside the vocabulary adds, or says more about. BadInput if it has another id already.
void add_token(const AddedToken& token, const std::string& source, BpeVocabulary& vocabulary) {
    const auto added = vocabulary.added.find(token.text);
    const auto known = vocabulary.ids.find(token.text);
    const int32_t before = added != vocabulary.added.end() ? added->second.id
                           : known != vocabulary.ids.end() ? known->second
                                                           : -1;
    if (before >= 0 && before != token.id) {
        throw BadInput(source + " gives the token " + quoted_name(token.text) + " the id " + std::to_string(token.id) +
                       ", the vocabulary beside it " + std::to_string(before) + "; take all files from one folder");
    }
    vocabulary.added[token.text] = token;
}

// {"content": id, ...}: the form of transformers before 4.34, without flags.
void take_added_tokens(const CompanionFiles& companions, BpeVocabulary& vocabulary) {
    const std::string source = companions.path_of("added_tokens.json");
    if (!companions.added_tokens.is_object()) throw BadInput(source + ": is not an object of token ids");
    for (const auto& [content, id] : companions.added_tokens.items()) {
        AddedToken token;
        token.text = content;
        token.id = parse_token_id(id, content, source);
        token.normalized = true;
        if (content.empty()) throw BadInput(source + ": an added token has no content");
        const auto known = vocabulary.added.find(content);
        if (known != vocabulary.added.end() && known->second.id == token.id) continue;  // flags and all
        add_token(token, source, vocabulary);
    }
}

// {"id": {"content": ..., flags}, ...}
void take_added_tokens_decoder(const CompanionFiles& companions, BpeVocabulary& vocabulary) {
    const std::string source = companions.path_of("tokenizer_config.json");
    const Json& decoder = json_value(companions.config, "added_tokens_decoder");
    if (!decoder.is_null() && !decoder.is_object()) throw BadInput(source + ": added_tokens_decoder is not an object");
    for (const auto& [id, token] : decoder.items()) {
        const bool valid = token.is_object() && !id.empty() && id.size() < 10 &&
                           id.find_first_not_of("0123456789") == std::string::npos;
        if (!valid) throw BadInput(source + ": added_tokens_decoder does not map ids to tokens with a content");
        AddedToken added = parse_added_token(token, source);
        added.id = parse_token_id(std::stoul(id), added.text, source);
        add_token(added, source, vocabulary);
    }
}

// A token that a file names as special ("pad_token": "<pad>"): it is special from then on, whether or not it is added.
void name_special(const Json& named, const std::string& source, BpeVocabulary& vocabulary) {
    if (named.is_null() || named == "") return;
    AddedToken token = parse_added_token(named, source);
    const auto added = vocabulary.added.find(token.text);
    if (added != vocabulary.added.end()) token = added->second;
    const auto known = vocabulary.ids.find(token.text);
    if (token.id < 0 && known != vocabulary.ids.end()) token.id = known->second;
    token.special = true;
    vocabulary.added[token.text] = token;
}

// bos_token, pad_token, ... and the lists of further ones.
void take_special_tokens(const Json& file, const std::string& source, BpeVocabulary& vocabulary) {
    if (!file.is_object()) throw BadInput(source + ": is not a JSON object");
    for (const char* key :
         {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
        const Json& named = json_value(file, key);
        if (named.is_string() || named.is_object()) name_special(named, source, vocabulary);
    }
    for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
        const Json& list = json_value(file, key);
        if (list.is_array()) {
            for (const Json& named : list) name_special(named, source, vocabulary);
        } else if (list.is_object()) {
            for (const auto& [role, named] : list.items()) name_special(named, source, vocabulary);
        }
    }
}

// What AutoTokenizer makes of the class that tokenizer_config.json names: some do as tokenizer.json says; the others have a
// normalizer and a pattern of their own, and go by add_prefix_space of tokenizer_config.json.
struct TokenizerClass {
    bool follows_json;
    bool nfc = false;
    Split split = Split::gpt2;
};

// GPT2Tokenizer's where none is named. BadInput for a class that is not known: CLIP's files have the same names.
TokenizerClass class_of(const CompanionFiles& companions) {
    static const TokenizerClass follows = {true}, gpt2 = {false}, neox = {false, true},
                                qwen2 = {false, true, Split::qwen2};
    static const std::map<std::string, TokenizerClass> known = {
        {"PreTrainedTokenizer", follows}, {"TokenizersBackend", follows}, {"GPT2Tokenizer", gpt2},
        {"RobertaTokenizer", gpt2},       {"CodeGenTokenizer", gpt2},     {"GPTNeoXTokenizer", neox},
        {"Qwen2Tokenizer", qwen2}};
    const Json& named = json_value(companions.config, "tokenizer_class");
    if (!named.is_string()) return gpt2;
    std::string name = named.string();
    const bool fast = name.size() > 4 && name.substr(name.size() - 4) == "Fast";
    if (fast) name.resize(name.size() - 4);
    const auto found = known.find(name);
    const bool slow_base = name == "PreTrainedTokenizer" && !fast;
    if (found != known.end() && !slow_base) return found->second;
    throw BadInput(companions.path_of("tokenizer_config.json") + " names the class " + quoted_name(named.string()) +
                   ", which may split texts otherwise than is known here" + instead);
}

// Without a tokenizer.json the class says how a text is normalized and split. With one that file says it; BadInput where
// transformers 5, which builds these classes anew from vocabulary and merges, would do something else. But for SmolLM2's:
// its class is GPT2Tokenizer, and the Digits of its tokenizer.json, which transformers 5 forgets, are what it was trained with.
void take_class(const CompanionFiles& companions, bool has_tokenizer_json, BpeVocabulary& vocabulary) {
    const TokenizerClass known = class_of(companions);
    if (known.follows_json) return;
    if (!has_tokenizer_json) {
        vocabulary.nfc = known.nfc;
        vocabulary.split = known.split;
        return;
    }
    const Json& named = json_value(companions.config, "tokenizer_class");
    const bool smollm2 = known.split == Split::gpt2 && vocabulary.split == Split::gpt2_digits;
    const bool same =
        known.nfc == vocabulary.nfc && (known.split == vocabulary.split || smollm2) && !vocabulary.ignore_merges;
    if (same || !named.is_string()) return;
    throw BadInput(
        companions.path_of("tokenizer_config.json") + " names the class " + quoted_name(named.string()) +
        ", and tokenizer.json has another normalizer, pattern or ignore_merges than that: transformers 4 and 5 "
        "would give different ids; name PreTrainedTokenizerFast to go by tokenizer.json");
}

// add_prefix_space, which tokenizer_config.json and tokenizer.json may both say. BadInput where they contradict each other:
// AutoTokenizer goes by the class, other programs by tokenizer.json.
void take_prefix_space(const CompanionFiles& companions, bool has_tokenizer_json, BpeVocabulary& vocabulary) {
    const bool follows_json = class_of(companions).follows_json;
    const Json& value = json_value(companions.config, "add_prefix_space");
    const std::string source = companions.path_of("tokenizer_config.json");
    if (!value.is_null() && !value.is_boolean())
        throw BadInput(source + ": add_prefix_space is neither true nor false");
    if (value.is_null() && follows_json) return;
    const bool configured = value == true;
    if (has_tokenizer_json && configured != vocabulary.prefix_space) {
        throw BadInput(source + (value.is_null() ? ", which does not name PreTrainedTokenizerFast," : "") +
                       " and tokenizer.json contradict each other about add_prefix_space: " +
                       (configured ? "true and false" : "false and true") + "; make both say the same");
    }
    vocabulary.prefix_space = configured;
}

// ---------------------------------------------------------------------------------------------------------------------
// Folders

// Whether these are the ids of ByteTokenizer.
bool is_byte_vocabulary(const BpeVocabulary& vocabulary) {
    if (!vocabulary.merges.empty() || vocabulary.end_of_text != end_of_text_string) return false;
    if (vocabulary.prefix_space) return false;
    std::map<std::string, int32_t> expected = {{end_of_text_string, 256}};
    for (int32_t b = 0; b < 256; ++b) expected[byte_symbols()[static_cast<uint64_t>(b)]] = b;
    std::map<std::string, int32_t> all(vocabulary.ids.begin(), vocabulary.ids.end());
    for (const auto& [text, token] : vocabulary.added) {
        const bool plain = token.special || text == end_of_text_string;
        if (!plain) return false;
        if (token.id >= 0) all[text] = token.id;
    }
    return all == expected;
}

// For BPE folders that say nothing about their class, so that AutoTokenizer need not guess from a model's config.json.
std::string default_tokenizer_config(const std::string& end_of_text, bool prefix_space, bool has_merges_file) {
    const Json config = {{"add_prefix_space", prefix_space},
                         {"bos_token", end_of_text},
                         {"eos_token", end_of_text},
                         {"unk_token", end_of_text},
                         {"clean_up_tokenization_spaces", false},
                         {"tokenizer_class", has_merges_file ? "GPT2Tokenizer" : "PreTrainedTokenizerFast"},
                         {"model_input_names", gpt2_input_names()}};
    return config.dump(2) + "\n";
}

// A BPE folder whose vocabulary lies in two files, which save() will write under Hugging Face's names.
BpeVocabulary read_bpe_vocabulary(CompanionFiles& companions, const char* vocab_name, const char* merges_name) {
    const std::string vocab_path = companions.path_of(vocab_name);
    const std::string merges_path = companions.path_of(merges_name);
    const std::string& vocab = companions.files["vocab.json"] = read_file(vocab_path, most_tokenizer_bytes);
    const std::string& merges = companions.files["merges.txt"] = read_file(merges_path, most_tokenizer_bytes);
    BpeVocabulary vocabulary;
    parse_bpe_vocab(parse_json(vocab, vocab_path), vocab_path, vocabulary);
    parse_bpe_merges(merges, merges_path, vocabulary);
    return vocabulary;
}

// BadInput unless vocab.json and merges.txt say what the tokenizer.json beside them says: AutoTokenizer reads that one,
// other programs these.
void require_same_vocabulary(const BpeVocabulary& json, const BpeVocabulary& files, const std::string& folder) {
    const auto contradiction = [&](const std::string& what) {
        return BadInput(folder + ": tokenizer.json and vocab.json with merges.txt contradict each other about " + what +
                        "; remove those that are not this model's (AutoTokenizer reads tokenizer.json)");
    };
    for (const auto& [symbols, id] : files.ids) {
        const auto known = json.ids.find(symbols);
        const auto added = json.added.find(symbols);
        const bool same =
            (known != json.ids.end() && known->second == id) || (added != json.added.end() && added->second.id == id);
        if (!same) throw contradiction("the token " + quoted_name(symbols));
    }
    for (const auto& [symbols, id] : json.ids) {
        if (files.ids.count(symbols) == 0 && json.added.count(symbols) == 0) {
            throw contradiction("the token " + quoted_name(symbols));
        }
    }
    if (json.merges != files.merges) throw contradiction("the merges");
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& byte_or_folder) {
    if (byte_or_folder == "byte") return std::make_unique<ByteTokenizer>();
    const std::string& folder = byte_or_folder;
    if (!std::filesystem::is_directory(folder)) {
        throw BadInput("there is no tokenizer " + folder + "; give \"byte\" or a folder with tokenizer files");
    }
    const auto has = [&](const char* name) { return std::filesystem::exists(folder + "/" + name); };
    CompanionFiles companions(folder);
    const bool has_json = has("tokenizer.json");
    std::optional<BpeVocabulary> json, files;
    if (has_json) json = parse_tokenizer_json(companions.files["tokenizer.json"], folder + "/tokenizer.json");
    if (has("vocab.json") && has("merges.txt")) {
        files = read_bpe_vocabulary(companions, "vocab.json", "merges.txt");
    } else if (has("encoder.json") && has("vocab.bpe") && !has_json) {
        files = read_bpe_vocabulary(companions, "encoder.json", "vocab.bpe");
    }
    if (!json && !files) {
        throw BadInput(folder +
                       " has no tokenizer: neither vocab.json and merges.txt, nor encoder.json and vocab.bpe, " +
                       "nor tokenizer.json; copy them there or name another folder");
    }
    if (json && files) require_same_vocabulary(*json, *files, folder);
    BpeVocabulary vocabulary = std::move(json ? *json : *files);
    take_added_tokens_decoder(companions, vocabulary);
    take_added_tokens(companions, vocabulary);
    take_special_tokens(companions.special_tokens, folder + "/special_tokens_map.json", vocabulary);
    take_special_tokens(companions.config, folder + "/tokenizer_config.json", vocabulary);
    take_class(companions, has_json, vocabulary);
    take_prefix_space(companions, has_json, vocabulary);
    vocabulary.end_of_text = end_of_text_named_in(companions);
    if (is_byte_vocabulary(vocabulary)) return std::make_unique<ByteTokenizer>();
    companions.files.emplace("tokenizer_config.json",
                             default_tokenizer_config(vocabulary.end_of_text, vocabulary.prefix_space,
                                                      companions.files.count("merges.txt") > 0));
    return std::make_unique<BpeTokenizer>(vocabulary, std::move(companions.files), folder);
}

}  // namespace lnfree
