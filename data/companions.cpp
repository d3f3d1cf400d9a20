#include "data/companions.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "data/files.h"

namespace lnfree {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t largest_file = 128 << 20;  // tokenizer.json of the largest vocabularies has 30 MB

// How to generate and chat; the tokenizer, as transformers, OpenAI, SentencePiece and nanoGPT name its files.
constexpr std::array files_of_companions = {"generation_config.json",
                                            "chat_template.jinja",
                                            "chat_template.json",
                                            "tokenizer.json",
                                            "tokenizer_config.json",
                                            "vocab.json",
                                            "merges.txt",
                                            "special_tokens_map.json",
                                            "added_tokens.json",
                                            "encoder.json",
                                            "vocab.bpe",
                                            "vocab.txt",
                                            "spiece.model",
                                            "spm.model",
                                            "tokenizer.model",
                                            "sentencepiece.bpe.model",
                                            "meta.pkl"};

// How to generate, which old versions of transformers kept in config.json.
constexpr std::array kept_keys = {
    "task_specific_params", "tokenizer_class", "prefix", "max_length", "min_length",         "do_sample",
    "temperature",          "top_k",           "top_p",  "num_beams",  "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size"};

bool is_token_id(const std::string& key) {
    const std::string end = "_token_id";
    return key.size() > end.size() && key.compare(key.size() - end.size(), end.size(), end) == 0;
}

// A token of the vocabulary, a list of such, or none.
bool is_of_vocabulary(const Json& value, int64_t vocabulary) {
    const auto fits = [&](const Json& id) { return id.is_number_integer() && id.get<int64_t>() < vocabulary; };
    if (value.is_null()) return true;
    return value.is_array() ? std::all_of(value.begin(), value.end(), fits) : fits(value);
}

}  // namespace

Json companion_keys(const Json& config, int64_t vocabulary) {
    Json kept = Json::object();
    for (const auto& [key, value] : config.items()) {
        const bool listed = std::find(kept_keys.begin(), kept_keys.end(), key) != kept_keys.end();
        if (listed || (is_token_id(key) && is_of_vocabulary(value, vocabulary))) kept.append(key, value);
    }
    return kept;
}

Companions read_companion_files(const std::string& folder) {
    Companions found;
    std::error_code ignored;
    if (!fs::is_directory(folder, ignored)) return found;
    for (const std::string name : files_of_companions) {
        const std::string path = folder + "/" + name;
        if (fs::is_regular_file(path, ignored)) found.files[name] = read_file(path, largest_file);
    }
    return found;
}

void write_companions(const Companions& companions, const std::string& folder) {
    for (const auto& [name, text] : companions.files) write_file_atomically(folder + "/" + name, text);
}

void remove_companions(const std::string& folder) {
    for (const char* name : files_of_companions) fs::remove(fs::path(folder) / name);
}

}  // namespace lnfree
