// Tests of data/tokenize.h: what ends up in the shards, which documents are held out, that threads change nothing, and
// that a failure leaves nothing behind.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/documents.h"
#include "data/json.h"
#include "data/random.h"
#include "data/shards.h"
#include "data/tokenize.h"
#include "data/tokenizer.h"
#include "test/file_helpers.h"

using namespace lnfree;

namespace {

using Ids = std::vector<int32_t>;
using Names = std::set<std::string>;

// The tokens of all shards of one split, in order.
Ids tokens_of(const std::string& prefix) {
    Ids ids;
    const TokenShards shards({prefix + "_??????.bin"});
    for (uint64_t s = 0; s < shards.paths().size(); ++s) {
        for (uint64_t i = 0; i < shards.shard_tokens(s); ++i)
            ids.push_back(static_cast<int32_t>(shards.token_at(s, i)));
    }
    return ids;
}

// Text of byte tokens, with '|' for end-of-text.
std::string text_of(const std::string& prefix) {
    std::string text;
    for (const int32_t id : tokens_of(prefix)) text += id == 256 ? '|' : static_cast<char>(id);
    return text;
}

std::string numbered_documents(int n) {
    std::string lines;
    for (int i = 0; i < n; ++i) lines += "{\"text\": \"d" + std::to_string(i) + "\"}\n";
    return lines;
}

TokenizeOptions options_for(const std::string& input, const std::string& out) {
    TokenizeOptions options;
    options.inputs = {input};
    options.out = out;
    return options;
}

}  // namespace

TEST_CASE("every document is followed by end-of-text, in the order of the inputs") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.txt", "one");
    write_bytes(folder / "b.jsonl", "{\"text\": \"two\"}\n{\"text\": \"\"}\n{\"text\": \"three\"}\n");
    TokenizeOptions options = options_for(folder / "a.txt", folder / "out");
    options.inputs.push_back(folder / "b.jsonl");
    options.val_fraction = 0;
    const TokenizeResult result = tokenize_files(options);
    CHECK(text_of(folder / "out_train") == "one|two||three|");
    CHECK(result.documents_train == 4);
    CHECK(result.documents_val == 0);
    CHECK(result.tokens_train == 15);
    CHECK(result.tokens_val == 0);
    CHECK(result.bytes == 11);
    CHECK(result.paths == std::vector<std::string>{folder / "out_train_000000.bin", folder / "out.json"});
    CHECK(folder.names() == Names{"a.txt", "b.jsonl", "out.json", "out_train_000000.bin"});
}

TEST_CASE("documents are held out by number and seed alone") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl", numbered_documents(200));
    TokenizeOptions options = options_for(folder / "a.jsonl", folder / "out");
    options.val_fraction = 0.25;
    options.seed = 7;
    const TokenizeResult result = tokenize_files(options);
    std::string train, val;
    for (uint64_t i = 0; i < 200; ++i) {
        (is_held_out(7, i, 0.25) ? val : train) += "d" + std::to_string(i) + "|";
    }
    CHECK(text_of(folder / "out_train") == train);
    CHECK(text_of(folder / "out_val") == val);
    CHECK(result.documents_train + result.documents_val == 200);
    CHECK(result.documents_val > 30);
    CHECK(result.documents_val < 70);
}

TEST_CASE("the share of held-out documents is near the fraction for every seed") {
    for (uint64_t seed = 0; seed < 20; ++seed) {
        int held_out = 0;
        for (uint64_t i = 0; i < 10000; ++i) held_out += is_held_out(seed, i, 0.05);
        CHECK(held_out > 400);
        CHECK(held_out < 600);
        CHECK_FALSE(is_held_out(seed, seed, 0));
    }
}

TEST_CASE("two or more documents leave neither side empty") {
    const TemporaryFolder folder;
    for (const double fraction : {1e-9, 0.999999999}) {
        write_bytes(folder / "a.jsonl", numbered_documents(3));
        TokenizeOptions options = options_for(folder / "a.jsonl", folder / "out");
        options.val_fraction = fraction;
        const TokenizeResult result = tokenize_files(options);
        CHECK(text_of(folder / "out_train") == (fraction < 0.5 ? "d0|d1|" : "d2|"));
        CHECK(text_of(folder / "out_val") == (fraction < 0.5 ? "d2|" : "d0|d1|"));
        CHECK(result.documents_train == (fraction < 0.5 ? 2 : 1));
        CHECK(result.documents_val == (fraction < 0.5 ? 1 : 2));
    }
}

TEST_CASE("of a single document the tail is held out") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.txt", "0123456789abcdefghi");
    TokenizeOptions options = options_for(folder / "a.txt", folder / "out");
    options.val_fraction = 0.2;
    const TokenizeResult result = tokenize_files(options);
    CHECK(text_of(folder / "out_train") == "0123456789abcdef");
    CHECK(text_of(folder / "out_val") == "ghi|");
    CHECK(result.tokens_val == 4);
    CHECK(result.documents_val == 1);
    options.val_fraction = 1e-6;
    tokenize_files(options);
    CHECK(text_of(folder / "out_val") == "|");
}

TEST_CASE("a single empty document is for training") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl", "{\"text\": \"\"}\n");
    const TokenizeResult result = tokenize_files(options_for(folder / "a.jsonl", folder / "out"));
    CHECK(text_of(folder / "out_train") == "|");
    CHECK(result.documents_val == 0);
}

TEST_CASE("separator, key and special tokens are as asked for") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.txt", "one\n\ntwo<|endoftext|>\n\n");
    TokenizeOptions options = options_for(folder / "a.txt", folder / "out");
    options.val_fraction = 0;
    options.document_separator = "\\n\\n";
    options.allow_special = true;
    tokenize_files(options);
    CHECK(text_of(folder / "out_train") == "one|two||");
    options.allow_special = false;
    tokenize_files(options);
    CHECK(text_of(folder / "out_train") == "one|two<|endoftext|>|");
    write_bytes(folder / "b.jsonl", "{\"story\": \"x\"}\n");
    options.inputs = {folder / "b.jsonl"};
    options.text_key = "story";
    tokenize_files(options);
    CHECK(text_of(folder / "out_train") == "x|");
}

TEST_CASE("bad lines are passed over where that is asked for, and counted") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl",
                "{\"text\": \"one\"}\n{\"text\": null}\n\n[]\n{\"text\": \"two\", \"x\": NaN}\n{\"tex");
    TokenizeOptions options = options_for(folder / "a.jsonl", folder / "out");
    options.val_fraction = 0;
    CHECK(contains(message_of<BadInput>([&] { tokenize_files(options); }), "a.jsonl line 2 "));
    CHECK(contains(message_of<BadInput>([&] { tokenize_files(options); }), "--skip-bad-lines"));
    options.skip_bad_lines = true;
    const TokenizeResult result = tokenize_files(options);
    CHECK(text_of(folder / "out_train") == "one|two|");
    CHECK(result.documents_train == 2);
    CHECK(result.skipped_lines == 3);
    CHECK(contains(result.first_skipped_line, "a.jsonl line 2 "));
    CHECK(read_json(folder / "out.json")["skipped_lines"] == 3);
    options.text_key = "txt";
    const std::string message = message_of<BadInput>([&] { tokenize_files(options); });
    CHECK(contains(message, "no documents"));
    CHECK(contains(message, "has no key \"txt\""));
}

TEST_CASE("special tokens that stay text are counted, and are in PREFIX.json") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl", "{\"text\": \"a<|endoftext|>b<|endoftext|>\"}\n{\"text\": \"<|endoftext|>\"}\n");
    TokenizeOptions options = options_for(folder / "a.jsonl", folder / "out");
    CHECK(tokenize_files(options).special_as_text == 3);
    CHECK(read_json(folder / "out.json")["special_as_text"] == 3);
    options.allow_special = true;
    CHECK(tokenize_files(options).special_as_text == 0);
    CHECK_FALSE(read_json(folder / "out.json").contains("special_as_text"));
}

// Texts put together from these words, read in pieces of a few bytes.
static void check_pieces(const Tokenizer& tokenizer, uint64_t seed, const std::vector<const char*>& words) {
    const TemporaryFolder folder;
    SplitMix64 random(seed);
    for (int round = 0; round < 400; ++round) {
        std::string text;
        for (uint64_t n = random.below(60); n > 0; --n) text += words[random.below(words.size())];
        write_bytes(folder / "a.txt", text);
        DocumentOptions options;
        options.piece_bytes = 1 + random.below(12);
        options.split = tokenizer.split();
        options.unbroken = tokenizer.unbroken();
        Ids whole, in_pieces;
        tokenizer.encode(text, whole);
        DocumentReader reader({folder / "a.txt"}, options);
        for (DocumentPiece piece; reader.next(piece);) {
            const bool continues = piece.continues;
            tokenizer.encode(piece_text(std::move(piece), "text"), in_pieces, false, continues);
        }
        if (in_pieces != whole) FAIL("pieces of " << options.piece_bytes << ": " << printable(text));
    }
}

TEST_CASE("a text read in pieces has the tokens of the whole text, whatever tokens were added") {
    const TemporaryFolder folder;
    Json vocab = Json::object(), added = Json::array();
    for (uint32_t b = 0; b < 256; ++b) vocab[byte_symbols()[b]] = b;
    vocab["<|endoftext|>"] = 256;
    const char* const contents[] = {"a b", "\nb", "  ", "<l>", "<r>", "é "};
    for (uint32_t i = 0; i < std::size(contents); ++i) {
        added.push_back({{"id", 257 + i}, {"content", contents[i]}, {"lstrip", i == 3}, {"rstrip", i == 4}});
    }
    write_bytes(folder / "tokenizer.json",
                Json{{"added_tokens", added},
                     {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", true}}},
                     {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}}
                    .dump());
    write_bytes(folder / "tokenizer_config.json", R"({"tokenizer_class": "PreTrainedTokenizerFast"})");
    const auto tokenizer = load_tokenizer(folder.path());
    check_pieces(*tokenizer, 33, {"a", " ", "b", "\n", "<l>", "<r>", "é", "."});
}

TEST_CASE("a text read in pieces has the tokens of the whole text, in form NFC too and with runs of spaces as tokens") {
    const TemporaryFolder folder;
    Json vocab = Json::object(), added = Json::array();
    for (uint32_t b = 0; b < 256; ++b) vocab[byte_symbols()[b]] = b;
    vocab["<|endoftext|>"] = 256;
    for (const uint32_t n : {5, 3, 2}) {
        added.push_back({{"id", 257 + n}, {"content", std::string(n, ' ')}, {"normalized", true}});
    }
    write_bytes(folder / "tokenizer.json",
                Json{{"added_tokens", added},
                     {"normalizer", {{"type", "NFC"}}},
                     {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                     {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}}
                    .dump());
    write_bytes(folder / "tokenizer_config.json", R"({"tokenizer_class": "PreTrainedTokenizerFast"})");
    const auto tokenizer = load_tokenizer(folder.path());
    check_pieces(*tokenizer, 34, {"a", " ", " ", "   ", "\n", "e\u0301", "\u0323", "\u1100", "\u1161", "\u2000", "."});
}

TEST_CASE("a vocabulary of more than 65,536 tokens gives shards of four bytes a token, which are read as such") {
    const TemporaryFolder folder;
    Json vocab = Json::object();
    for (uint32_t b = 0; b < 256; ++b) vocab[byte_symbols()[b]] = b;
    vocab["ab"] = 65536;
    vocab["<|endoftext|>"] = 100000;
    write_bytes(folder / "tokenizer.json",
                Json{{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                     {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array({"a b"})}}}}
                    .dump());
    write_bytes(folder / "a.txt", "abba");
    TokenizeOptions options = options_for(folder / "a.txt", folder / "out/data");
    options.tokenizer = folder.path();
    options.val_fraction = 0;
    const TokenizeResult result = tokenize_files(options);
    CHECK(result.tokens_train == 4);
    const TokenShards shards({folder / "out/data_train_000000.bin"});
    Ids ids;
    for (uint64_t i = 0; i < 4; ++i) ids.push_back(static_cast<int32_t>(shards.token_at(0, i)));
    CHECK(ids == Ids{65536, 'b', 'a', 100000});
    CHECK(shards.largest_token() == 100000);
    CHECK(read_json(folder / "out/data.json")["tokenizer"]["vocab_size"] == 100001);
    CHECK(std::filesystem::file_size(folder / "out/data_train_000000.bin") == 1024 + 4 * 4);
}

TEST_CASE("the number of threads does not change a byte") {
    const TemporaryFolder folder;
    SplitMix64 random(31);
    std::string text, lines;
    for (int i = 0; i < 400000; ++i) text += "lo wer's a\n\xC3\xA9,."[random.below(15)];
    for (int i = 0; i < 3000; ++i) {
        lines += "{\"text\": \"" + std::string(random.below(500), static_cast<char>('a' + i % 26)) + "\"}\n";
    }
    write_bytes(folder / "a.txt", text);
    write_bytes(folder / "b.jsonl", lines);
    write_bytes(folder / "c.txt", text + " " + text + " " + text + " " + text);
    std::vector<std::string> first;
    for (const int threads : {1, 2, 5}) {
        TokenizeOptions options = options_for(folder / "a.txt", folder / ("out" + std::to_string(threads) + "/data"));
        options.inputs = {folder / "a.txt", folder / "b.jsonl", folder / "c.txt"};
        options.threads = threads;
        options.shard_tokens = 654321;
        std::vector<std::string> contents;
        for (const std::string& path : tokenize_files(options).paths) contents.push_back(read_bytes(path));
        CHECK(contents.size() > 4);
        if (first.empty()) first = contents;
        CHECK(contents == first);
    }
}

TEST_CASE("a text read in pieces has the tokens of the whole text") {
    const TemporaryFolder folder;
    const std::string folder_name = "../shared/data/gpt2-bpe";
    const bool gpt2 = std::filesystem::exists(folder_name + "/vocab.bpe");
    if (!gpt2) std::printf("SKIPPED: GPT-2's vocabulary is not in %s\n", folder_name.c_str());
    if (!gpt2) return;
    SplitMix64 random(32);
    std::string text;
    const char* const words[] = {"the", " it's", " of", "\n",    "\n\n", "  ", " 12",
                                 "3",   ", ",    "...", " Über", "漢字", "\t"};
    while (text.size() < 3500000) text += words[random.below(std::size(words))];
    write_bytes(folder / "a.txt", text);
    TokenizeOptions options = options_for(folder / "a.txt", folder / "out");
    options.tokenizer = folder_name;
    options.val_fraction = 0;
    tokenize_files(options);
    Ids whole;
    load_tokenizer(folder_name)->encode(text, whole);
    whole.push_back(50256);
    CHECK(tokens_of(folder / "out_train") == whole);
    CHECK(read_json(folder / "out.json")["tokenizer"]["folder"] == "gpt2-bpe");
}

TEST_CASE("PREFIX.json says what was made") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl", numbered_documents(10));
    TokenizeOptions options = options_for(folder / "a.jsonl", folder / "out");
    options.val_fraction = 0.5;
    options.seed = 3;
    const TokenizeResult result = tokenize_files(options);
    const Json report = read_json(folder / "out.json");
    CHECK(report["version"] == 1);
    CHECK(report["tokenizer"] == Json{{"name", "byte"},
                                      {"fingerprint", load_tokenizer("byte")->fingerprint()},
                                      {"vocab_size", 257},
                                      {"end_of_text", 256}});
    CHECK(report["documents"] == Json{{"train", result.documents_train}, {"val", result.documents_val}});
    CHECK(report["tokens"] == Json{{"train", result.tokens_train}, {"val", result.tokens_val}});
    CHECK(report["seed"] == 3);
    CHECK(report["val_fraction"] == 0.5);
    CHECK(report["inputs"] == Json::array({"a.jsonl"}));
    CHECK(result.tokens_train + result.tokens_val == 30);
}

TEST_CASE("which documents are held out depends on the seed") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl", numbered_documents(40));
    const auto held_out = [&](uint64_t seed) {
        TokenizeOptions options = options_for(folder / "a.jsonl", folder / "out");
        options.val_fraction = 0.3;
        options.seed = seed;
        tokenize_files(options);
        return tokens_of(folder / "out_val");
    };
    CHECK(held_out(1) == held_out(1));
    CHECK(held_out(1) != held_out(2));
}

TEST_CASE("an earlier run under the same prefix is replaced whole") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.jsonl", numbered_documents(50));
    TokenizeOptions options = options_for(folder / "a.jsonl", folder / "out");
    options.val_fraction = 0.5;
    options.shard_tokens = 20;
    CHECK(tokenize_files(options).paths.size() > 5);
    write_bytes(folder / "a.jsonl", numbered_documents(2));
    options.val_fraction = 0;
    tokenize_files(options);
    CHECK(folder.names() == Names{"a.jsonl", "out.json", "out_train_000000.bin"});
}

TEST_CASE("a mistake in a document leaves nothing behind, and the first one is reported") {
    const TemporaryFolder folder;
    std::string lines = numbered_documents(60000);
    lines += "{\"text\": 1}\n" + numbered_documents(60000) + "{\"nothing\": 1}\n";
    write_bytes(folder / "a.jsonl", lines);
    for (const int threads : {1, 3}) {
        TokenizeOptions options = options_for(folder / "a.jsonl", folder / "out");
        options.inputs.push_back(folder / "a.jsonl");
        options.shard_tokens = 1000;
        options.threads = threads;
        const std::string message = message_of<BadInput>([&] { tokenize_files(options); });
        CHECK(contains(message, "a.jsonl line 60001 "));
        CHECK(folder.names() == Names{"a.jsonl"});
    }
}

TEST_CASE("a damaged file after good ones leaves nothing behind") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.txt", std::string(2000000, 'a'));
    write_bytes(folder / "b.txt.gz", "no gzip");
    TokenizeOptions options = options_for(folder / "a.txt", folder / "out");
    options.inputs.push_back(folder / "b.txt.gz");
    CHECK(contains(message_of<BadInput>([&] { tokenize_files(options); }), "b.txt.gz"));
    CHECK(folder.names() == Names{"a.txt", "b.txt.gz"});
}

TEST_CASE("the progress callback can stop the run, and nothing stays") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.txt", std::string(5000000, 'a'));
    const auto stop = [](uint64_t done, uint64_t total) {
        CHECK(total == 5000000);
        CHECK(done <= total);
        throw std::runtime_error("stopped");
    };
    CHECK_THROWS_WITH(tokenize_files(options_for(folder / "a.txt", folder / "out"), stop), "stopped");
    CHECK(folder.names() == Names{"a.txt"});
}

TEST_CASE("a full disk is a failure of the run that leaves nothing behind") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.txt", std::string(3000000, 'a'));
    const FileSizeLimit limit(1000000);
    const std::string message =
        message_of<RunFailure>([&] { tokenize_files(options_for(folder / "a.txt", folder / "out")); });
    CHECK(contains(message, "out_train_000000.bin"));
    CHECK(folder.names() == Names{"a.txt"});
}

TEST_CASE("wrong options are refused before anything is written") {
    const TemporaryFolder folder;
    write_bytes(folder / "a.txt", "text");
    write_bytes(folder / "empty.txt", "");
    const auto refusal = [&](auto change) {
        TokenizeOptions options = options_for(folder / "a.txt", folder / "out/data");
        change(options);
        std::string message = message_of<BadInput>([&] { tokenize_files(options); });
        CHECK(is_one_line(message));
        CHECK(folder.names() == Names{"a.txt", "empty.txt"});
        return message;
    };
    CHECK(contains(refusal([](TokenizeOptions& o) { o.inputs.clear(); }), "--input"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.inputs = {"missing.txt"}; }), "missing.txt"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.out = ""; }), "--out"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.out = "folder/"; }), "--out"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.val_fraction = 1; }), "--val-fraction"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.val_fraction = -0.1; }), "--val-fraction"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.val_fraction = std::nan(""); }), "--val-fraction"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.shard_tokens = 0; }), "--shard-tokens"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.threads = -1; }), "--threads"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.tokenizer = "nowhere"; }), "nowhere"));
    CHECK(contains(refusal([](TokenizeOptions& o) { o.document_separator = std::string(2000, '-'); }), "separator"));
    CHECK(contains(refusal([&](TokenizeOptions& o) { o.out = folder / "a.txt/data"; }), "--out"));
    CHECK(contains(refusal([&](TokenizeOptions& o) {
                       o.inputs = {folder / "empty.txt"};
                       o.out = folder / "out";
                   }),
                   "empty.txt"));
}

TEST_CASE("a spool gives back its tokens, whether they fit into memory or not") {
    const TemporaryFolder folder;
    for (const uint64_t most_in_memory : {1, 7, 1000}) {
        TokenSpool spool(folder / "out", most_in_memory);
        for (int round = 0; round < 3; ++round) {
            Ids expected, got;
            for (int32_t i = 0; i < 100; ++i) {
                const Ids part(static_cast<uint64_t>(i % 6), i);
                spool.append(part.data(), part.size());
                expected.insert(expected.end(), part.begin(), part.end());
            }
            CHECK(spool.size() == expected.size());
            spool.drain([&](const int32_t* tokens, uint64_t n) { got.insert(got.end(), tokens, tokens + n); });
            CHECK(got == expected);
            CHECK(spool.size() == 0);
        }
        CHECK(folder.names().empty());
    }
}
