// data/shards.h: every window against the stream of tokens it is cut from, every file that is not a token shard.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>

#include "data/shards.h"
#include "test/file_helpers.h"
#include "test/threads.h"

using namespace lnfree;

namespace {

using Tokens = std::vector<int32_t>;

Tokens counting(size_t n, int32_t first = 0) {
    Tokens tokens(n);
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
}

template <class Id>
std::string bytes_of(const Tokens& tokens) {
    const std::vector<Id> ids(tokens.begin(), tokens.end());
    return std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(Id));
}

// A header as llm.c's data_common.py writes it.
std::string header_of(uint32_t magic, uint32_t version, uint32_t count) {
    std::string header(1024, '\0');
    const uint32_t words[] = {magic, version, count};
    header.replace(0, sizeof(words), reinterpret_cast<const char*>(words), sizeof(words));
    return header;
}

std::string shard16(const Tokens& tokens) {
    return header_of(20240520, 1, static_cast<uint32_t>(tokens.size())) + bytes_of<uint16_t>(tokens);
}
std::string shard32(const Tokens& tokens) {
    return header_of(20240801, 7, static_cast<uint32_t>(tokens.size())) + bytes_of<uint32_t>(tokens);
}

// Every window of a set of shards, as inputs and targets one behind the other.
std::vector<Tokens> windows_of(const TokenShards& shards, uint64_t T, bool paper) {
    std::vector<Tokens> windows;
    const size_t predictions = paper ? T - 1 : T;
    for (uint64_t s = 0; s < shards.sequences(T, paper); ++s) {
        Tokens inputs(predictions + 1, -7), targets(predictions + 1, -7);
        shards.read(s, T, inputs.data(), targets.data(), paper);
        REQUIRE(inputs.back() == -7);  // nothing behind the window is written
        REQUIRE(targets.back() == -7);
        inputs.pop_back();
        inputs.insert(inputs.end(), targets.begin(), targets.end() - 1);
        windows.push_back(inputs);
    }
    return windows;
}

// The same from the definition: within a shard, T apart, as long as all its tokens are there.
std::vector<Tokens> expected_windows(const std::vector<Tokens>& shards, size_t T, bool paper) {
    std::vector<Tokens> windows;
    const size_t needed = paper ? T : T + 1;
    for (const Tokens& shard : shards) {
        for (size_t first = 0; first + needed <= shard.size(); first += T) {
            const auto begin = shard.begin() + static_cast<std::ptrdiff_t>(first);
            Tokens window(begin, begin + static_cast<std::ptrdiff_t>(needed - 1));
            window.insert(window.end(), begin + 1, begin + static_cast<std::ptrdiff_t>(needed));
            windows.push_back(window);
        }
    }
    return windows;
}

std::string refusal(const std::vector<std::string>& patterns) {
    return message_of<BadInput>([&] { TokenShards shards(patterns); });
}

}  // namespace

TEST_CASE("windows lie within a shard, T apart, in all three formats") {
    const TemporaryFolder folder;
    const std::vector<Tokens> contents = {counting(23), counting(1, 500), counting(8, 100), counting(9, 200),
                                          counting(41, 60000)};
    write_bytes(folder / "a", shard16(contents[0]));
    write_bytes(folder / "b", bytes_of<uint16_t>(contents[1]));
    write_bytes(folder / "c", shard32(contents[2]));
    write_bytes(folder / "d", bytes_of<uint16_t>(contents[3]));
    write_bytes(folder / "e", shard32(contents[4]));
    const TokenShards shards(
        {folder / "a", "raw:" + (folder / "b"), folder / "c", "raw:" + (folder / "d"), folder / "e"});
    CHECK(shards.tokens() == 23 + 1 + 8 + 9 + 41);
    CHECK(shards.paths()[1] == "raw:" + (folder / "b"));
    CHECK(shards.shard_tokens(4) == 41);
    CHECK(shards.token_at(4, 40) == 60040);
    CHECK(shards.token_at(3, 8) == 208);
    for (const uint64_t T : {1, 2, 3, 4, 7, 8, 9, 11, 22, 23, 40, 41}) {
        for (const bool paper : {false, true}) {
            if (paper && T == 1) continue;
            CAPTURE(T);
            CAPTURE(paper);
            CHECK((windows_of(shards, T, paper) == expected_windows(contents, T, paper)));
        }
    }
    CHECK(shards.sequences(8) == 2 + 0 + 0 + 1 + 5);
    CHECK(shards.sequences(8, true) == 2 + 0 + 1 + 1 + 5);
    CHECK(shards.sequences(~uint64_t{0}) == 0);
    static_assert(!std::is_copy_constructible_v<TokenShards> && std::is_move_constructible_v<TokenShards>);
}

TEST_CASE("a shard of n T + 1 tokens holds n sequences") {
    const TemporaryFolder folder;
    write_bytes(folder / "a", shard16(counting(3 * 5)));
    CHECK(TokenShards({folder / "a"}).sequences(5) == 2);
    write_bytes(folder / "a", shard16(counting(3 * 5 + 1)));
    CHECK(TokenShards({folder / "a"}).sequences(5) == 3);
    CHECK(TokenShards({folder / "a"}).sequences(5, true) == 3);
    CHECK(TokenShards({folder / "a"}).sequences(16) == 0);
}

TEST_CASE("windows that are not there, or predict nothing, are refused") {
    const TemporaryFolder folder;
    write_bytes(folder / "a", shard16(counting(11)));
    const TokenShards shards({folder / "a"});
    int32_t inputs[5], targets[5];
    CHECK(contains(message_of<BadInput>([&] { shards.read(2, 5, inputs, targets); }), "no sequence 2"));
    CHECK_NOTHROW(shards.read(1, 5, inputs, targets));
    CHECK_THROWS_AS(shards.sequences(0), BadInput);
    CHECK_THROWS_AS(shards.sequences(1, true), BadInput);
    CHECK_THROWS_AS(shards.read(0, 0, inputs, targets), BadInput);
}

TEST_CASE("patterns are paths or globs, sorted within each, and every file comes once") {
    const TemporaryFolder folder;
    for (const char* name : {"x_10", "x_9", "x_1", "y", "odd[1]"}) write_bytes(folder / name, "");
    const auto expanded = [&](std::vector<std::string> patterns) {
        std::string names;
        for (const std::string& path : expand_patterns(patterns)) {
            const size_t folder_at = path.find(folder.path() + "/");
            REQUIRE(folder_at != std::string::npos);
            names += path.substr(0, folder_at) + path.substr(folder_at + folder.path().size() + 1) + " ";
        }
        return names;
    };
    CHECK(expanded({folder / "x_*"}) == "x_1 x_10 x_9 ");
    CHECK(expanded({folder / "y", folder / "x_*"}) == "y x_1 x_10 x_9 ");
    CHECK(expanded({folder / "x_9", folder / "x_*", folder / "x_1"}) == "x_9 x_1 x_10 ");
    CHECK(expanded({folder / "./y", folder / "y"}) == "./y ");
    CHECK(expanded({folder / "{y,x_9}"}) == "x_9 y ");
    CHECK(expanded({folder / "odd[1]"}) == "odd[1] ");
    CHECK(expanded({"raw:" + (folder / "x_1*"), folder / "y"}) == "raw:x_1 raw:x_10 y ");
    CHECK(expanded({}) == "");
    for (const std::string& pattern : {folder / "z*", folder / "z", std::string(""), std::string("raw:")}) {
        CHECK(contains(message_of<BadInput>([&] { expand_patterns({folder / "y", pattern}); }), '"' + pattern + '"'));
    }
}

TEST_CASE("files that are not token shards are refused by name") {
    const Tokens seven = counting(7);
    const std::string good = shard16(seven);
    struct Case {
        std::string what, bytes;
        bool raw;
        std::string expected;
    };
    const std::vector<Case> cases = {
        {"empty", "", false, "is empty"},
        {"empty raw", "", true, "is empty"},
        {"text", "It was a dark and stormy night.", false, "not a token shard"},
        {"two bytes", "ab", false, "not a token shard"},
        {"raw tokens without raw:", bytes_of<uint16_t>(counting(1000)), false, "as raw:PATH"},
        {"byte-swapped magic", header_of(0x88d83401, 0x01000000, 0x07000000) + bytes_of<uint16_t>(seven), false,
         "not a"},
        {"another version", header_of(20240520, 2, 7) + bytes_of<uint16_t>(seven), false, "not a token shard"},
        {"versions mixed up", header_of(20240801, 1, 7) + bytes_of<uint32_t>(seven), false, "not a token shard"},
        {"llm.c's evaluation file", header_of(20240522, 1, 7) + bytes_of<uint16_t>(seven), false, "not a token shard"},
        {"part of a header", good.substr(0, 1023), false, "truncated within its header"},
        {"8 bytes of a header", good.substr(0, 8), false, "truncated within its header"},
        {"header only", good.substr(0, 1024), false, "truncated: 7 tokens make 1038 bytes, it has 1024"},
        {"one byte short", good.substr(0, good.size() - 1), false, "truncated"},
        {"one token short, uint32", shard32(seven).substr(0, 1024 + 24), false, "truncated: 7 tokens make 1052 bytes"},
        {"one byte too long", good + "x", false, "damaged"},
        {"count 0", header_of(20240520, 1, 0), false, "holds no tokens"},
        {"count 0 with data", header_of(20240520, 1, 0) + "ab", false, "holds no tokens"},
        {"count -1", header_of(20240520, 1, 0xffffffff) + bytes_of<uint16_t>(seven), false, "truncated: 4294967295"},
        {"uint16 with uint32's header", header_of(20240801, 7, 7) + bytes_of<uint16_t>(seven), false, "truncated"},
        {"uint32 with uint16's header", header_of(20240520, 1, 7) + bytes_of<uint32_t>(seven), false, "damaged"},
        {"raw of odd size", bytes_of<uint16_t>(seven) + "x", true, "integers of 2 bytes: it has 15 bytes"},
        {"raw with a header", good, true, "without raw:"},
        {"raw with a uint32 header", shard32(seven), true, "without raw:"},
    };
    const TemporaryFolder folder;
    for (const Case& broken : cases) {
        CAPTURE(broken.what);
        write_bytes(folder / "shard", broken.bytes);
        const std::string message = refusal({(broken.raw ? "raw:" : "") + (folder / "shard")});
        CAPTURE(message);
        CHECK(contains(message, folder / "shard"));
        CHECK(contains(message, broken.expected));
        CHECK(is_one_line(message));
    }
    write_bytes(folder / "shard", good);
    CHECK(refusal({folder / "shard"}).empty());
    CHECK(contains(refusal({folder / "missing"}), folder / "missing"));
    CHECK(contains(refusal({folder.path()}), "is a folder"));
    CHECK(contains(refusal({}), "no token shards given"));
    write_bytes(folder / "text.txt", "text");
    CHECK(contains(refusal({folder / "*"}), folder / "text.txt"));
}

namespace {

// A file as numpy.save writes it.
std::string npy(const std::string& descr, const std::string& shape, const std::string& data, int version = 1) {
    std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
    const size_t before = version == 1 ? 10 : 12;
    header += std::string(63 - (before + header.size()) % 64, ' ') + "\n";
    std::string file = std::string("\x93NUMPY") + static_cast<char>(version) + '\0';
    for (size_t i = 0; i < before - 8; ++i) file += static_cast<char>(header.size() >> 8 * i & 0xFF);
    return file + header + data;
}

}  // namespace

TEST_CASE("rows of integers that NumPy saved are shards, of every width") {
    const TemporaryFolder folder;
    const Tokens tokens = {5, 0, 40000, 7};
    const std::pair<std::string, std::string> widths[] = {{"<u2", bytes_of<uint16_t>(tokens)},
                                                          {"<u4", bytes_of<uint32_t>(tokens)},
                                                          {"<i4", bytes_of<int32_t>(tokens)},
                                                          {"<i8", bytes_of<int64_t>(tokens)},
                                                          {"<u8", bytes_of<uint64_t>(tokens)}};
    for (const auto& [descr, data] : widths) {
        for (const int version : {1, 2}) {
            CAPTURE(descr);
            write_bytes(folder / "a.npy", npy(descr, "(4,)", data, version));
            const TokenShards shards({folder / "a.npy"});
            CHECK((windows_of(shards, 3, false) == expected_windows({tokens}, 3, false)));
            CHECK(shards.largest_token() == 40000);
            CHECK_FALSE(sidecar_path(folder / "a.npy"));
        }
    }
    write_bytes(folder / "a.npy", npy("<i8", "(3,)", bytes_of<int64_t>({1, -100, 2})));
    const std::string message = message_of<BadInput>([&] { TokenShards({folder / "a.npy"}).check_vocabulary(50257); });
    CHECK(contains(message, "the token -100 at position 1"));
    std::string large = bytes_of<int64_t>({1, 3});
    large[4] = 1;  // 2^32 + 1
    write_bytes(folder / "a.npy", npy("<i8", "(2,)", large));
    CHECK(contains(message_of<BadInput>([&] { TokenShards({folder / "a.npy"}).check_vocabulary(50257); }),
                   "the token 4294967297 at position 0"));
}

TEST_CASE("other .npy files are refused by name") {
    const TemporaryFolder folder;
    const std::string four = bytes_of<uint16_t>(counting(4)), good = npy("<u2", "(4,)", four);
    std::string version = good;
    version[6] = 9;
    const std::pair<std::string, std::string> cases[] = {
        {npy("<f4", "(2,)", four), "\"'<f4'\", not integers"},
        {npy(">u2", "(4,)", four), "not integers"},
        {npy("|u1", "(8,)", four), "ids.astype"},
        {npy("<u2", "(2, 2)", four), "reshape(-1)"},
        {npy("<u2", "()", four), "reshape(-1)"},
        {npy("<u2", "(5,)", four), "5 numbers of 2 bytes, and 8 bytes behind"},
        {npy("<u2", "(3,)", four), "3 numbers"},
        {npy("<u2", "(0,)", ""), "no tokens"},
        {npy("<u2", "(99999999999999999999999,)", four), "shape"},
        {good.substr(0, 20), "ends within its header"},
        {good.substr(0, 9), "ends within its header"},
        {version, "its version is 9"},
    };
    for (const auto& [bytes, expected] : cases) {
        CAPTURE(expected);
        write_bytes(folder / "a.npy", bytes);
        const std::string message = refusal({folder / "a.npy"});
        CHECK(contains(message, folder / "a.npy"));
        CHECK(contains(message, expected));
        CHECK(is_one_line(message));
    }
    write_bytes(folder / "a.npy", good);
    CHECK(contains(refusal({"raw:" + (folder / "a.npy")}), "give it without raw:"));
    CHECK(contains(refusal({"raw16:" + (folder / "a.npy")}), "give it without raw16:"));
}

TEST_CASE("files without a header may be wider, and are refused where they are and nothing says so") {
    const TemporaryFolder folder;
    const std::string path = folder / "tokens";
    Tokens tokens(200);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7919 % 50257);
    write_bytes(path, bytes_of<uint32_t>(tokens));
    CHECK((windows_of(TokenShards({"raw32:" + path}), 7, false) == expected_windows({tokens}, 7, false)));
    CHECK(contains(refusal({"raw:" + path}), "give it as raw32:PATH; if it is uint16 nevertheless, give it as raw16:"));
    CHECK(TokenShards({"raw16:" + path}).tokens() == 400);
    write_bytes(path, bytes_of<int64_t>(tokens));
    CHECK((windows_of(TokenShards({"raw64:" + path}), 7, false) == expected_windows({tokens}, 7, false)));
    CHECK(contains(refusal({"raw:" + path}), "raw64:PATH"));
    CHECK(contains(refusal({"raw32:" + path}), "raw64:PATH"));
    for (int32_t& token : tokens) token = token * 3 % 128256;  // some high halves are 1
    write_bytes(path, bytes_of<uint32_t>(tokens));
    CHECK(contains(refusal({"raw:" + path}), "raw32:PATH"));
    write_bytes(path, bytes_of<uint16_t>(tokens) + "x");
    CHECK(contains(refusal({"raw:" + path}), "401 bytes"));
    write_bytes(path, "It was a dark and stormy night; the rain fell in torrents, except at occasional times.");
    CHECK(contains(refusal({"raw:" + path}), "is text"));
    CHECK(refusal({"raw16:" + path}) == "");
    write_bytes(path, "PAR1xx");
    CHECK(contains(refusal({"raw:" + path}), "is Parquet"));
}

TEST_CASE("small vocabularies, zeros and patterns are no wider integers") {
    const TemporaryFolder folder;
    const std::string path = folder / "tokens";
    Tokens few(100000, 0), small(100000), spaced(1000);
    for (const size_t at : {2, 500, 702, 9998}) few[at] = 40000;
    for (size_t i = 0; i < small.size(); ++i) small[i] = static_cast<int32_t>(i * i % 11 % 3);
    for (size_t i = 0; i < spaced.size(); ++i) spaced[i] = i % 2 ? 1 : static_cast<int32_t>(2 + i % 9);
    for (const Tokens& tokens : {few, small, spaced, Tokens(50, 0), counting(300), Tokens{60000, 0, 60000, 0}}) {
        write_bytes(path, bytes_of<uint16_t>(tokens));
        CHECK(refusal({"raw:" + path}) == "");
    }
}

TEST_CASE("a token outside the vocabulary is named with its file and position") {
    const TemporaryFolder folder;
    Tokens tokens = counting(300);
    tokens[123] = 50257;
    tokens[200] = 60000;
    write_bytes(folder / "a", shard16(counting(300)));
    write_bytes(folder / "b", shard16(tokens));
    const TokenShards shards({folder / "a", folder / "b"});
    CHECK(shards.largest_token() == 60000);
    CHECK_NOTHROW(shards.check_vocabulary(60001));
    const std::string message = message_of<BadInput>([&] { shards.check_vocabulary(50257); });
    CHECK(contains(message, (folder / "b") + ": the token 50257 at position 123"));
    CHECK(contains(message, "vocabulary of 50257 tokens"));
    CHECK(contains(message_of<BadInput>([&] { shards.check_vocabulary(60000); }), "60000 at position 200"));

    write_bytes(folder / "c", shard32({-1}));
    CHECK(TokenShards({folder / "c"}).largest_token() == 0xffffffff);
    CHECK_THROWS_AS(TokenShards({folder / "c"}).check_vocabulary(0xffffffff), BadInput);
}

TEST_CASE("the largest token is found wherever it stands, in files of several MiB too") {
    const TemporaryFolder folder;
    const size_t mib = 1 << 20;
    const size_t n = 5 * mib / 4 + 3;  // uint16: 2.5 MiB; uint32: 5 MiB
    for (const uint32_t width : {2u, 4u}) {
        for (const bool raw : {false, true}) {
            if (raw && width == 4) continue;
            const size_t header = raw ? 0 : 1024;
            std::set<size_t> positions = {0, 1, n - 2, n - 1};
            for (size_t edge = mib; edge < header + n * width; edge += mib) {
                positions.insert((edge - header) / width - 1);
                positions.insert((edge - header) / width);
            }
            const std::string path = folder / "shard";
            write_bytes(path, raw          ? bytes_of<uint16_t>(Tokens(n, 1))
                              : width == 2 ? shard16(Tokens(n, 1))
                                           : shard32(Tokens(n, 1)));
            std::FILE* const file = std::fopen(path.c_str(), "r+b");
            REQUIRE(file != nullptr);
            const auto put = [&](size_t position, uint32_t token) {
                std::fseek(file, static_cast<long>(header + position * width), SEEK_SET);
                std::fwrite(&token, width, 1, file);
                std::fflush(file);
            };
            for (const size_t position : positions) {
                CAPTURE(position);
                put(position, 777);
                CHECK(TokenShards({(raw ? "raw:" : "") + path}).largest_token() == 777);
                put(position, 1);
            }
            CHECK(TokenShards({(raw ? "raw:" : "") + path}).largest_token() == 1);
            std::fclose(file);
        }
    }
}

TEST_CASE("the fingerprint is of the bytes and their order, not of names or threads") {
    const TemporaryFolder folder;
    const auto fingerprint = [&](const std::vector<std::string>& names) {
        std::vector<std::string> patterns;
        for (const std::string& name : names) patterns.push_back(folder / name);
        return TokenShards(patterns).fingerprint();
    };
    const std::string whole = shard16(counting((3 << 19) + 5));  // more than 3 MiB
    write_bytes(folder / "a", whole);
    write_bytes(folder / "b", shard16(counting(7)));
    write_bytes(folder / "copy of a", whole);
    const uint64_t a = fingerprint({"a"});
    CHECK(fingerprint({"copy of a"}) == a);
    CHECK(fingerprint({"a", "b"}) != a);
    CHECK(fingerprint({"a", "b"}) != fingerprint({"b", "a"}));
    std::set<uint64_t> seen = {a};
    for (const size_t position :
         {size_t{12}, size_t{1023}, size_t{1024}, size_t{1 << 20}, (size_t{2} << 20) - 1, whole.size() - 1}) {
        std::string changed = whole;
        changed[position] = static_cast<char>(changed[position] ^ 0x80);
        write_bytes(folder / "changed", changed);
        CHECK(seen.insert(fingerprint({"changed"})).second);
    }
    std::string swapped = whole;
    std::swap_ranges(swapped.begin() + 2048, swapped.begin() + 2056, swapped.begin() + 4096);
    write_bytes(folder / "changed", swapped);
    CHECK(seen.insert(fingerprint({"changed"})).second);
    std::string two_top_bits = whole;  // multiplication alone lets these two cancel
    two_top_bits[2055] = static_cast<char>(two_top_bits[2055] ^ 0x80);
    two_top_bits[2063] = static_cast<char>(two_top_bits[2063] ^ 0x80);
    write_bytes(folder / "changed", two_top_bits);
    CHECK(seen.insert(fingerprint({"changed"})).second);
    write_bytes(folder / "raw one", bytes_of<uint16_t>({1}));
    write_bytes(folder / "raw two", bytes_of<uint16_t>({1, 0}));  // the same once filled up with zeros
    CHECK(TokenShards({"raw:" + (folder / "raw one")}).fingerprint() !=
          TokenShards({"raw:" + (folder / "raw two")}).fingerprint());
    for (const int n : {1, 2, 3}) {
        const Threads here(n);
        CHECK(fingerprint({"a"}) == a);
    }
}

TEST_CASE("the hash is the documented one") {
    Hash64 hash;
    CHECK(hash.value() == 0xcbf29ce484222325);
    const unsigned char nine[] = {1, 0, 0, 0, 0, 0, 0, 0, 2};
    hash.add(nine, sizeof(nine));
    uint64_t expected = 0xcbf29ce484222325;
    for (const uint64_t word : {1, 2}) {
        expected = (expected ^ word) * 1099511628211u;
        expected ^= expected >> 32;
    }
    CHECK(hash.value() == expected);
}

TEST_CASE("files of more than 4 GiB are read at their far end") {
    const TemporaryFolder folder;
    const uint64_t n = (uint64_t{1} << 31) + 5;  // tokens: more than int32 can count, more than 4 GiB of uint16
    const auto sparse = [&](const std::string& path, const std::string& header) {
        const int file = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
        const std::string tail = bytes_of<uint16_t>({11, 12, 13, 14});
        const off_t at = static_cast<off_t>(header.size() + 2 * n - tail.size());
        const bool written = file >= 0 && ::pwrite(file, header.data(), header.size(), 0) >= 0 &&
                             ::pwrite(file, tail.data(), tail.size(), at) == static_cast<ssize_t>(tail.size());
        if (file >= 0) ::close(file);
        return written;
    };
    if (!sparse(folder / "headed", header_of(20240520, 1, static_cast<uint32_t>(n))) || !sparse(folder / "raw", "")) {
        std::puts("SKIPPED: files of more than 4 GiB: the temporary folder's file system does not take them");
        return;
    }
    for (const std::string& shard : {folder / "headed", "raw:" + (folder / "raw")}) {
        const TokenShards shards({shard});
        CHECK(shards.tokens() == n);
        CHECK(shards.token_at(0, n - 1) == 14);
        CHECK(shards.token_at(0, n - 5) == 0);
        const uint64_t last = shards.sequences(4) - 1;
        CHECK(last == (n - 1) / 4 - 1);
        Tokens inputs(4), targets(4);
        shards.read(last, 4, inputs.data(), targets.data());
        CHECK(inputs == Tokens{0, 11, 12, 13});
        CHECK(targets == Tokens{11, 12, 13, 14});
    }
}

TEST_CASE("what is written is llm.c's format, cut into shards, and read back") {
    const TemporaryFolder folder;
    ShardWriter writer(folder / "x_train", 50257, 10);
    const Tokens tokens = counting(23, 50000);
    writer.append(tokens.data(), 4);
    writer.append(tokens.data() + 4, 0);
    writer.append(tokens.data() + 4, 17);
    writer.append(tokens.data() + 21, 2);
    CHECK(writer.tokens() == 23);
    for (const std::string& name : folder.names()) CHECK(contains(name, ".tmp-"));
    const std::vector<std::string> paths = writer.finish();
    CHECK(paths == std::vector<std::string>{folder / "x_train_000000.bin", folder / "x_train_000001.bin",
                                            folder / "x_train_000002.bin"});
    CHECK(folder.names().size() == 3);
    CHECK((read_bytes(paths[0]) == shard16(counting(10, 50000))));
    CHECK((read_bytes(paths[1]) == shard16(counting(10, 50010))));
    CHECK((read_bytes(paths[2]) == shard16(counting(3, 50020))));
    CHECK(TokenShards({folder / "x_train_*.bin"}).tokens() == 23);
}

TEST_CASE("a vocabulary above 65536 makes uint32 shards") {
    const TemporaryFolder folder;
    for (const uint32_t vocabulary : {65536u, 65537u}) {
        ShardWriter writer(folder / "x", vocabulary, 100);
        const Tokens tokens = {0, static_cast<int32_t>(vocabulary) - 1};
        writer.append(tokens.data(), tokens.size());
        const std::vector<std::string> paths = writer.finish();
        CHECK((read_bytes(paths.at(0)) == (vocabulary == 65536 ? shard16(tokens) : shard32(tokens))));
        CHECK(TokenShards(paths).largest_token() == vocabulary - 1);
    }
}

TEST_CASE("long streams pass through the writer's buffer whole, in large pieces and in small") {
    const TemporaryFolder folder;
    const Tokens tokens = counting(700001);
    for (const uint64_t piece : {uint64_t{1000}, uint64_t{262144}, uint64_t{700001}}) {
        ShardWriter writer(folder / "x", 1 << 20, 600000);
        for (uint64_t done = 0; done < tokens.size(); done += piece) {
            writer.append(tokens.data() + done, std::min<uint64_t>(piece, tokens.size() - done));
        }
        const std::vector<std::string> paths = writer.finish();
        REQUIRE(paths.size() == 2);
        CHECK((read_bytes(paths[0]) == shard32(Tokens(tokens.begin(), tokens.begin() + 600000))));
        CHECK((read_bytes(paths[1]) == shard32(Tokens(tokens.begin() + 600000, tokens.end()))));
    }
}

TEST_CASE("a stream that ends on a shard's last token has no empty shard behind it") {
    const TemporaryFolder folder;
    ShardWriter writer(folder / "x", 256, 5);
    const Tokens tokens = counting(10);
    writer.append(tokens.data(), tokens.size());
    CHECK(writer.finish().size() == 2);
    CHECK(folder.names().size() == 2);
}

TEST_CASE("a writer without tokens, or without finish, leaves nothing behind") {
    const TemporaryFolder folder;
    CHECK(ShardWriter(folder / "x", 256, 5).finish().empty());
    {
        ShardWriter writer(folder / "x", 256, 5);
        const Tokens tokens = counting(12);
        writer.append(tokens.data(), tokens.size());
        CHECK(folder.names().size() == 3);
    }
    CHECK(folder.names().empty());
}

TEST_CASE("a shorter data set replaces a longer one of the same prefix, and nothing else") {
    const TemporaryFolder folder;
    const Tokens tokens = counting(35);
    for (const char* name : {"x_val_000000.bin", "x_train_000005.bin", "x_train_note.bin"})
        write_bytes(folder / name, "");
    for (const size_t n : {size_t{35}, size_t{11}, size_t{0}}) {
        ShardWriter writer(folder / "x_train", 256, 10);
        writer.append(tokens.data(), n);
        writer.finish();
        CHECK(folder.names().size() == 3 + (n + 9) / 10);
    }
    CHECK(folder.names() == std::set<std::string>{"x_val_000000.bin", "x_train_000005.bin", "x_train_note.bin"});
}

TEST_CASE("the writer refuses tokens outside the vocabulary and impossible sizes") {
    const TemporaryFolder folder;
    for (const int32_t bad : {257, -1, 2147483647}) {
        ShardWriter writer(folder / "x", 257, 5);
        const Tokens tokens = {256, bad};
        const std::string message = message_of<BadInput>([&] { writer.append(tokens.data(), tokens.size()); });
        CHECK(contains(message, "the token " + std::to_string(bad)));
        CHECK(contains(message, folder / "x_000000.bin"));
    }
    CHECK_THROWS_AS(ShardWriter(folder / "x", 0, 5), BadInput);
    CHECK_THROWS_AS(ShardWriter(folder / "x", 257, 0), BadInput);
    CHECK_THROWS_AS(ShardWriter(folder / "x", 257, uint64_t{1} << 31), BadInput);
    CHECK_NOTHROW(ShardWriter(folder / "x", 257, (uint64_t{1} << 31) - 1));
    CHECK(folder.names().empty());
}

TEST_CASE("a full disk fails the writer, and older shards stay") {
    const TemporaryFolder folder;
    write_bytes(folder / "x_000000.bin", "old");
    const Tokens tokens = counting(40000);
    const std::string message = message_of<RunFailure>([&] {
        const FileSizeLimit full(50000);
        ShardWriter writer(folder / "x", 50000, 1000000);
        writer.append(tokens.data(), tokens.size());
        writer.finish();
    });
    CHECK(contains(message, folder / "x_000000.bin"));
    CHECK(contains(message, "make room"));
    CHECK(folder.names() == std::set<std::string>{"x_000000.bin"});
    CHECK(read_bytes(folder / "x_000000.bin") == "old");
    CHECK(
        contains(message_of<RunFailure>([&] { ShardWriter(folder / "no/x", 9, 9).append(tokens.data(), 1); }), "no/x"));
}

TEST_CASE("the sidecar of a shard is found by the shard's name") {
    CHECK(sidecar_path("d/owt_train_000000.bin") == std::optional<std::string>("d/owt.json"));
    CHECK(sidecar_path("owt_val_000123.bin") == std::optional<std::string>("owt.json"));
    CHECK(sidecar_path("d/a_train_b_val_1000000.bin") == std::optional<std::string>("d/a_train_b.json"));
    for (const char* other : {"d/train.bin", "d/owt_train_00000.bin", "d/owt_test_000000.bin", "owt_train_000000.txt",
                              "raw:d/owt_train_000000.bin", "d/_train_000000.bin", "_val_000000.bin", "000000.bin",
                              "owttrain_000000.bin", ".bin", "", "d/owt_train_000000.bin.bak"}) {
        CAPTURE(std::string(other));
        CHECK(!sidecar_path(other).has_value());
    }
}

TEST_CASE("a sidecar is read where there is one, and has to be a JSON object") {
    const TemporaryFolder folder;
    const std::string shard = folder / "owt_train_000000.bin";
    CHECK(!read_sidecar(shard).has_value());
    CHECK(!read_sidecar(folder / "train.bin").has_value());
    write_bytes(folder / "owt.json", R"({"vocab_size": 50257})");
    REQUIRE(read_sidecar(shard).has_value());
    CHECK((*read_sidecar(shard))["vocab_size"] == 50257);
    for (const char* text : {"", "{", "[]", "{\"a\":1,\"a\":2}"}) {
        write_bytes(folder / "owt.json", text);
        CHECK(contains(message_of<BadInput>([&] { read_sidecar(shard); }), folder / "owt.json"));
    }
}
