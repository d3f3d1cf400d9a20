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

constexpr char gpt2_pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// GPT-2's pattern written out, as newer conversions have it before a ByteLevel without one.
bool is_gpt2_split(const Json& part) {
    const Json& behaviour = json_value(part, "behavior");
    const bool keeps_all = (behaviour == "Isolated" && json_value(part, "invert") == false) ||
                           (behaviour == "Removed" && json_value(part, "invert") == true);
    return json_value(part, "type") == "Split" && keeps_all &&
           json_value(json_value(part, "pattern"), "Regex") == gpt2_pattern;
}

// Whether this pre-tokenizer splits a text as GPT-2's does; `prefix_space` as it says. Without merges it splits into bytes
// in any case.
bool splits_as_gpt2(const Json& pre, bool has_merges, bool& prefix_space) {
    if (json_value(pre, "type") == "ByteLevel") {
        const Json& use_regex = json_value(pre, "use_regex");
        const Json& prefix = json_value(pre, "add_prefix_space");
        prefix_space = prefix == true;
        return prefix.is_boolean() && (!has_merges || use_regex.is_null() || use_regex == true);
    }
    const Json& parts = json_value(pre, "pretokenizers");
    if (json_value(pre, "type") != "Sequence" || !parts.is_array()) return false;
    if (parts.size() == 1) return splits_as_gpt2(parts[0], has_merges, prefix_space);
    return parts.size() == 2 && is_gpt2_split(parts[0]) && json_value(parts[1], "type") == "ByteLevel" &&
           json_value(parts[1], "use_regex") == false && json_value(parts[1], "add_prefix_space") == false;
}

// BadInput unless the parts of a tokenizer.json around its model do what GPT-2's do. The post-processor is not looked at:
// it adds tokens around a text, and here documents are only followed by end-of-text.
void check_tokenizer_json(const Json& file, bool has_merges, const std::string& source, BpeVocabulary& out) {
    const auto need = [&](bool fulfilled, const std::string& what) {
        if (!fulfilled) throw BadInput(source + " is not a GPT-2 byte-level BPE tokenizer: " + what + instead);
    };
    const auto is_unset = [](const Json& v) { return v.is_null() || v == false || v == "" || v == 0; };
    const Json& model = json_value(file, "model");
    const Json& type = json_value(model, "type");
    need(type == "BPE" || (type.is_null() && model.contains("merges")), "model.type is not \"BPE\"");
    for (const char* option :
         {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"}) {
        need(is_unset(json_value(model, option)), std::string("model.") + option + " is set");
    }
    const Json& normalizer = json_value(file, "normalizer");
    const Json& normalizers = json_value(normalizer, "normalizers");
    need(normalizer.is_null() || (normalizers.is_array() && normalizers.empty()),
         "it has a normalizer, " + quoted_name(name_of_part(normalizer, "normalizers")));
    const Json& pre = json_value(file, "pre_tokenizer");
    need(splits_as_gpt2(pre, has_merges, out.prefix_space),
         "its pre_tokenizer, " + quoted_name(name_of_part(pre, "pretokenizers")) +
             ", is not ByteLevel with GPT-2's pattern (use_regex, add_prefix_space)");
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
    check_tokenizer_json(file, !merges.empty(), source, out);
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

// What AutoTokenizer makes of the class that tokenizer_config.json names: PreTrainedTokenizerFast does as tokenizer.json
// says; the others, and GPT2Tokenizer where none is named, split as GPT-2 and go by add_prefix_space of that file. BadInput
// for any other class: CLIP's files have the same names, and Qwen2's pattern comes before the one in tokenizer.json.
bool class_follows_tokenizer_json(const CompanionFiles& companions) {
    static const std::set<std::string> follow = {"PreTrainedTokenizerFast", "TokenizersBackend"};
    static const std::set<std::string> as_gpt2 = {"GPT2Tokenizer",        "GPT2TokenizerFast", "RobertaTokenizer",
                                                  "RobertaTokenizerFast", "CodeGenTokenizer",  "CodeGenTokenizerFast"};
    const Json& name = json_value(companions.config, "tokenizer_class");
    if (!name.is_string()) return false;
    if (follow.count(name.string()) > 0) return true;
    if (as_gpt2.count(name.string()) > 0) return false;
    throw BadInput(companions.path_of("tokenizer_config.json") + " names the class " + quoted_name(name.string()) +
                   ", which may split texts otherwise than GPT-2's" + instead);
}

// add_prefix_space, which tokenizer_config.json and tokenizer.json may both say. BadInput where they contradict each other:
// AutoTokenizer goes by the class, other programs by tokenizer.json.
void take_prefix_space(const CompanionFiles& companions, bool has_tokenizer_json, BpeVocabulary& vocabulary) {
    const bool follows_json = class_follows_tokenizer_json(companions);
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
    take_prefix_space(companions, has_json, vocabulary);
    vocabulary.end_of_text = end_of_text_named_in(companions);
    if (is_byte_vocabulary(vocabulary)) return std::make_unique<ByteTokenizer>();
    companions.files.emplace("tokenizer_config.json",
                             default_tokenizer_config(vocabulary.end_of_text, vocabulary.prefix_space,
                                                      companions.files.count("merges.txt") > 0));
    return std::make_unique<BpeTokenizer>(vocabulary, std::move(companions.files), folder);
}

}  // namespace lnfree
