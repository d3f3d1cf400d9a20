// Encodes texts from standard input for compare_tiktoken.py, which builds it:
//
//     g++ -std=c++17 -O2 -I. test/oracle/encode_stream.cpp -o encode_stream
//     encode_stream FOLDER < texts > ids
//
// In: per text its length (uint32), whether <|endoftext|> is special (uint8), its bytes. Out: per text the number of ids
// (uint32) and the ids (int32). On standard error: the processor seconds spent in encode alone, the first time and the second.
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace {

struct Text {
    bool allow_special;
    std::string bytes;
};

bool read_text(Text& text) {
    uint32_t length = 0;
    uint8_t special = 0;
    if (std::fread(&length, sizeof length, 1, stdin) != 1 || std::fread(&special, 1, 1, stdin) != 1) return false;
    text.allow_special = special != 0;
    text.bytes.resize(length);
    return std::fread(text.bytes.data(), 1, length, stdin) == length;
}

double encode_all(const lnfree::Tokenizer& tokenizer, const std::vector<Text>& texts,
                  std::vector<std::vector<int32_t>>& ids) {
    const std::clock_t start = std::clock();
    for (size_t i = 0; i < texts.size(); ++i) {
        ids[i].clear();
        tokenizer.encode(texts[i].bytes, ids[i], texts[i].allow_special);
    }
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const auto tokenizer = lnfree::load_tokenizer(argc > 1 ? argv[1] : "byte");
        std::vector<Text> texts;
        for (Text text; read_text(text);) texts.push_back(text);
        std::vector<std::vector<int32_t>> ids(texts.size());
        const double cold = encode_all(*tokenizer, texts, ids);
        const double warm = encode_all(*tokenizer, texts, ids);
        std::fprintf(stderr, "%.6f %.6f\n", cold, warm);
        for (size_t i = 0; i < texts.size(); ++i) {
            if (tokenizer->decode(ids[i].data(), ids[i].size()) != texts[i].bytes) {
                std::fprintf(stderr, "text %zu does not survive decode(encode(text))\n", i);
                return 1;
            }
            const uint32_t n = static_cast<uint32_t>(ids[i].size());
            std::fwrite(&n, sizeof n, 1, stdout);
            std::fwrite(ids[i].data(), sizeof(int32_t), n, stdout);
        }
        return std::fflush(stdout) == 0 ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
