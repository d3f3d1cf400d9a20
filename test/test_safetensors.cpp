// data/safetensors.h and data/float_formats.h: every rounding, every round trip, every malformed file.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <type_traits>

#include "data/float_formats.h"
#include "data/safetensors.h"
#include "test/file_helpers.h"

using namespace lnfree;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// What a bit pattern means, from the definition in IEEE 754: (-1)^s 2^(e - bias) 1.f, or 2^(1 - bias) 0.f for e = 0.
double defined_value(uint16_t bits, int exponent_bits, int fraction_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    const double fraction = std::ldexp(bits & ((1 << fraction_bits) - 1), -fraction_bits);
    double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
    if (exponent == (1 << exponent_bits) - 1) {
        magnitude = fraction == 0 ? infinity : std::numeric_limits<double>::quiet_NaN();
    }
    return std::copysign(magnitude, bits & 0x8000 ? -1.0 : 1.0);
}

// One of the two 16-bit formats, as its tests need it.
struct Format {
    std::string name;
    int exponent_bits, fraction_bits;
    float (*widen)(uint16_t);
    uint16_t (*narrow)(double);
};
const Format formats[] = {{"F16", 5, 10, half_to_float, half_from_double},
                          {"BF16", 8, 7, bfloat_to_float, bfloat_from_double}};

bool same_bits(double a, double b) {
    return std::memcmp(&a, &b, sizeof(a)) == 0;
}

std::string file_of(const std::string& header, const std::string& data, uint64_t length) {
    return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}
std::string file_of(const std::string& header, const std::string& data = "") {
    return file_of(header, data, header.size());
}

template <class T>
TensorSource<T> source_of(const std::string& name, std::vector<uint64_t> shape, std::vector<T> values) {
    return {name, std::move(shape), [values](T* out) { std::copy(values.begin(), values.end(), out); }};
}

template <class T>
std::vector<T> values_of(const TensorView* tensor) {
    REQUIRE(tensor != nullptr);
    std::vector<T> values(tensor->count());
    copy_tensor(*tensor, values.data());
    return values;
}

}  // namespace

TEST_CASE("every 16-bit pattern widens to the value that its format defines") {
    for (const Format& format : formats) {
        CAPTURE(format.name);
        int wrong = 0;
        for (int bits = 0; bits < 0x10000; ++bits) {
            const double expected =
                defined_value(static_cast<uint16_t>(bits), format.exponent_bits, format.fraction_bits);
            const double value = format.widen(static_cast<uint16_t>(bits));
            wrong += std::isnan(expected) ? !std::isnan(value) : !same_bits(value, expected);
        }
        CHECK(wrong == 0);
    }
}

TEST_CASE("narrowing to 16 bits takes the nearest value and, of two, the even one") {
    for (const Format& format : formats) {
        CAPTURE(format.name);
        const int last = ((1 << format.exponent_bits) - 1) << format.fraction_bits;  // infinity's pattern
        int wrong = 0;
        const auto expect = [&](double value, int bits) {
            wrong += format.narrow(value) != bits;
            wrong += format.narrow(-value) != (bits | 0x8000);
        };
        for (int bits = 0; bits < last; ++bits) {
            const double here = defined_value(static_cast<uint16_t>(bits), format.exponent_bits, format.fraction_bits);
            // The value after the largest counts as 2^(largest exponent + 1) in the rule of IEEE 754, 4.3.1.
            const double next = bits + 1 < last ? defined_value(static_cast<uint16_t>(bits + 1), format.exponent_bits,
                                                                format.fraction_bits)
                                                : std::ldexp(1.0, 1 << (format.exponent_bits - 1));
            const double middle = here + (next - here) / 2;
            expect(here, bits);
            expect(std::nextafter(here, infinity), bits);
            expect(std::nextafter(middle, 0.0), bits);
            expect(middle, bits % 2 == 0 ? bits : bits + 1);
            expect(std::nextafter(middle, infinity), bits + 1);
            expect(std::nextafter(next, 0.0), bits + 1);
            if (bits == 0) continue;
            const float float_middle = static_cast<float>(middle);
            expect(std::nextafter(float_middle, 0.0f), bits);
            expect(std::nextafter(float_middle, std::numeric_limits<float>::infinity()), bits + 1);
        }
        CHECK(wrong == 0);
        expect(infinity, last);
        expect(std::numeric_limits<double>::max(), last);
        expect(std::numeric_limits<double>::denorm_min(), 0);
        expect(std::numeric_limits<double>::min(), 0);
        CHECK(wrong == 0);
    }
}

TEST_CASE("a NaN stays a NaN, whatever its payload") {
    for (const Format& format : formats) {
        for (const uint64_t bits :
             {0x7ff0000000000001u, 0x7ff8000000000000u, 0xfff0000020000000u, 0xffffffffffffffffu}) {
            double nan;
            std::memcpy(&nan, &bits, sizeof(nan));
            CHECK(std::isnan(format.widen(format.narrow(nan))));
            CHECK(std::signbit(format.widen(format.narrow(nan))) == std::signbit(nan));
        }
    }
}

TEST_CASE("dtypes have the names and sizes of the format") {
    for (size_t i = 0; i < dtype_table.size(); ++i) CHECK(dtype_table[i].dtype == static_cast<DType>(i));
    CHECK(dtype_name(DType::BF16) == std::string("BF16"));
    CHECK(dtype_bytes(DType::BF16) == 2);
    CHECK(dtype_name(DType::C64) == std::string("C64"));
    CHECK(dtype_bytes(DType::F8_E4M3) == 1);
    CHECK(dtype_bytes(DType::BOOL) == 1);
    CHECK(dtype_bytes(DType::I64) == 8);
}

TEST_CASE_TEMPLATE("what is written is read back, in every stored type", T, float, double) {
    const TemporaryFolder folder;
    const std::string path = folder / "weights.safetensors";
    const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"a", "line\nand \"quotes\""}};
    std::mt19937_64 random(7);
    std::normal_distribution<double> normal(0, 0.02);
    for (const DType stored : {DType::F64, DType::F32, DType::F16, DType::BF16}) {
        CAPTURE(std::string(dtype_name(stored)));
        // Longer than one block of the conversion; for one type, longer than what is written at once.
        const uint64_t longest = stored == DType::F16 ? (1 << 20) + 3 : (1 << 16) + 1;
        const std::map<std::string, std::vector<uint64_t>> shapes = {
            {"a scalar", {}}, {"empty", {3, 0, 5}}, {"one", {1}}, {"odd", {3, 5, 7}}, {"\"long\" \xc3\xa9", {longest}}};
        std::map<std::string, std::vector<T>> expected;
        std::vector<TensorSource<T>> sources;
        for (const auto& [name, shape] : shapes) {
            std::vector<T> values(TensorView{name, stored, shape}.count());
            for (T& value : values) value = static_cast<T>(normal(random));
            sources.push_back(source_of(name, shape, values));
            for (T& value : values) {
                if (stored == DType::F32) value = static_cast<T>(static_cast<float>(value));
                if (stored == DType::F16) value = half_to_float(half_from_double(value));
                if (stored == DType::BF16) value = bfloat_to_float(bfloat_from_double(value));
            }
            expected[name] = values;
        }
        write_safetensors(path, sources, stored, metadata);
        const SafetensorsFile file(path);
        CHECK(file.metadata() == metadata);
        CHECK(file.tensors().size() == shapes.size());
        for (const TensorView& tensor : file.tensors()) {
            CAPTURE(tensor.name);
            CHECK(file.find(tensor.name) == &tensor);
            CHECK(tensor.dtype == stored);
            CHECK(tensor.shape == shapes.at(tensor.name));
            CHECK(tensor.bytes == tensor.count() * dtype_bytes(stored));
            CHECK((values_of<T>(&tensor) == expected.at(tensor.name)));
        }
        CHECK(file.find("two") == nullptr);
    }
    CHECK(folder.names() == std::set<std::string>{"weights.safetensors"});
}

TEST_CASE("special values survive every stored type") {
    const TemporaryFolder folder;
    const float inf = std::numeric_limits<float>::infinity();
    const std::vector<float> values = {0.0f, -0.0f, inf, -inf, std::nanf(""), 1.0f};
    for (const DType stored : {DType::F64, DType::F32, DType::F16, DType::BF16}) {
        write_safetensors<float>(folder / "file", {source_of<float>("x", {6}, values)}, stored);
        const auto back = values_of<double>(SafetensorsFile(folder / "file").find("x"));
        CHECK(back[0] == 0);
        CHECK(!std::signbit(back[0]));
        CHECK(std::signbit(back[1]));
        CHECK(back[2] == infinity);
        CHECK(back[3] == -infinity);
        CHECK(std::isnan(back[4]));
        CHECK(back[5] == 1);
    }
}

TEST_CASE("the written header is the format's, padded with spaces to a multiple of 8 bytes") {
    const TemporaryFolder folder;
    for (const std::string& name : {std::string("a"), std::string("ab"), std::string("abcdefg")}) {
        write_safetensors<float>(folder / "file", {source_of<float>(name, {2}, {1.0f, -2.0f})}, DType::F32);
        const std::string bytes = read_bytes(folder / "file");
        uint64_t length;
        std::memcpy(&length, bytes.data(), sizeof(length));
        CHECK(length % 8 == 0);
        REQUIRE(bytes.size() == 8 + length + 8);
        const std::string header = bytes.substr(8, length);
        const std::string json = "{\"" + name + "\":{\"data_offsets\":[0,8],\"dtype\":\"F32\",\"shape\":[2]}}";
        CHECK(header.substr(0, json.size()) == json);
        CHECK(header.find_first_not_of(' ', json.size()) == std::string::npos);
        CHECK(bytes.substr(8 + length) == std::string("\0\0\x80\x3f\0\0\0\xc0", 8));
    }
    write_safetensors<float>(folder / "file", {}, DType::F32);
    CHECK(SafetensorsFile(folder / "file").tensors().empty());
}

TEST_CASE("data need no alignment, keys no order, and tensors come in the order of their data") {
    const TemporaryFolder folder;
    const std::string header = R"({"late":{"data_offsets":[2,6],"shape":[1],"dtype":"F32"}, )"
                               R"("none":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}, )"
                               R"("early":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})";
    for (int padding = 0; padding < 4; ++padding) {
        write_bytes(folder / "file",
                    file_of(header + std::string(padding, ' '), std::string("\x80\xbf\0\0\x40\x40", 6)));
        SafetensorsFile first(folder / "file");
        const SafetensorsFile file(std::move(first));
        REQUIRE(file.tensors().size() == 3);
        CHECK(file.tensors()[0].name == "early");
        CHECK(file.tensors()[1].name == "none");
        CHECK(file.tensors()[2].name == "late");
        CHECK(values_of<float>(file.find("early")) == std::vector<float>{-1.0f});
        CHECK(values_of<float>(file.find("late")) == std::vector<float>{3.0f});
        CHECK(values_of<double>(file.find("late")) == std::vector<double>{3.0});
        CHECK(file.find("late")->shape == std::vector<uint64_t>{1});
        CHECK(file.find("early")->shape.empty());
    }
    static_assert(!std::is_copy_constructible_v<SafetensorsFile> && std::is_move_constructible_v<SafetensorsFile>);
}

TEST_CASE("weights of other types are listed but not converted") {
    const TemporaryFolder folder;
    for (const DTypeInfo& info : dtype_table) {
        const std::string header = std::string(R"({"h.0.attn.bias":{"dtype":")") + info.name +
                                   R"(","shape":[3],"data_offsets":[0,)" + std::to_string(3 * info.bytes) + "]}}";
        write_bytes(folder / "file", file_of(header, std::string(3 * info.bytes, '\0')));
        const SafetensorsFile file(folder / "file");
        const TensorView* const tensor = file.find("h.0.attn.bias");
        REQUIRE(tensor != nullptr);
        CHECK(tensor->dtype == info.dtype);
        const bool readable = info.dtype == DType::F64 || info.dtype == DType::F32 || info.dtype == DType::F16 ||
                              info.dtype == DType::BF16;
        const std::string message = message_of<BadInput>([&] {
            float values[3];
            copy_tensor(*tensor, values);
        });
        CHECK(message.empty() == readable);
        if (!readable) {
            CHECK(contains(message, folder / "file"));
            CHECK(contains(message, "\"h.0.attn.bias\" is of type " + std::string(info.name)));
        }
    }
}

TEST_CASE("a double beyond the range of float is refused by name, not read as infinity") {
    const TemporaryFolder folder;
    std::vector<double> values(70000, 1.0);
    values[69999] = 1e39;
    values[68000] = -4e38;
    values[5] = infinity;
    write_safetensors<double>(folder / "file", {source_of<double>("wpe", {70000}, values)}, DType::F64);
    const SafetensorsFile file(folder / "file");
    CHECK((values_of<double>(file.find("wpe")) == values));
    std::vector<float> out(values.size());
    const std::string message = message_of<BadInput>([&] { copy_tensor(*file.find("wpe"), out.data()); });
    CHECK(contains(message, "\"wpe\""));
    CHECK(contains(message, "at element 68000"));
    CHECK(contains(message, "holds -4e+38 "));
}

TEST_CASE("a finite value that the stored type cannot hold is refused, and nothing is left behind") {
    const TemporaryFolder folder;
    const auto attempt = [&](double value, DType stored) {
        return message_of<BadInput>([&] {
            std::vector<double> values(1048576 + 9, 0.5);
            values[1048576 + 7] = value;
            write_safetensors<double>(folder / "file", {source_of<double>("wte.weight", {1048576 + 9}, values)},
                                      stored);
        });
    };
    const std::string half = attempt(-65520, DType::F16);
    CHECK(contains(half, "\"wte.weight\" holds -65520"));
    CHECK(contains(half, "store it as bf16 or f32"));
    CHECK(contains(half, folder / "file"));
    CHECK(contains(attempt(3.4e38, DType::BF16), "store it as f32"));
    CHECK(contains(attempt(1e300, DType::F32), "store it as f64"));
    CHECK(folder.names().empty());
    CHECK(attempt(65519.99, DType::F16).empty());
    CHECK(values_of<float>(SafetensorsFile(folder / "file").find("wte.weight"))[1048576 + 7] == 65504);
}

TEST_CASE("writing fails as a whole: full disk, failing source, impossible request") {
    const TemporaryFolder folder;
    const std::string path = folder / "file";
    write_safetensors<float>(path, {source_of<float>("old", {1}, {1.0f})}, DType::F32);
    const std::string old = read_bytes(path);
    const auto big = source_of<float>("big", {5001}, std::vector<float>(5001));
    const std::string full = message_of<RunFailure>([&] {
        const FileSizeLimit limit(20000);
        write_safetensors<float>(path, {source_of<float>("small", {1}, {1.0f}), big}, DType::F32);
    });
    CHECK(contains(full, path));
    CHECK(contains(full, "make room"));

    const TensorSource<float> failing = {"x", {5}, [](float*) { throw std::runtime_error("source failed"); }};
    CHECK_THROWS_WITH(write_safetensors<float>(path, {big, failing}, DType::F32), "source failed");

    const auto refused = [&](const std::vector<TensorSource<float>>& sources, DType stored) {
        return message_of<BadInput>([&] { write_safetensors<float>(path, sources, stored); });
    };
    CHECK(contains(refused({big, big}, DType::F32), "\"big\" has a name that is taken"));
    CHECK(contains(refused({source_of<float>("__metadata__", {0}, {})}, DType::F32), "__metadata__"));
    CHECK(contains(refused({source_of<float>("huge", {1ull << 32, 1ull << 32}, {})}, DType::F32), "huge"));
    CHECK(contains(refused({source_of<float>("\xff", {0}, {})}, DType::F32), "UTF-8"));
    CHECK(contains(refused({big}, DType::I32), "I32"));
    CHECK(contains(message_of<RunFailure>([&] { write_safetensors<float>(folder / "no/file", {big}, DType::F32); }),
                   "no/file"));

    CHECK(read_bytes(path) == old);
    CHECK(folder.names() == std::set<std::string>{"file"});
}

TEST_CASE("one tensor is in memory at a time, each filled once and in order") {
    const TemporaryFolder folder;
    std::vector<std::string> calls;
    std::vector<TensorSource<float>> sources;
    for (const std::string& name : {std::string("b"), std::string("a"), std::string("c")}) {
        sources.push_back({name, {3}, [&calls, name](float* out) {
                               calls.push_back(name);
                               std::fill(out, out + 3, 1.0f);
                           }});
    }
    write_safetensors<float>(folder / "file", sources, DType::F16);
    CHECK(calls == std::vector<std::string>{"b", "a", "c"});
}

TEST_CASE("every malformed file is refused in one line that names it") {
    const std::string good = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    const std::string eight(8, '\0');
    const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
        return R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
    };
    const auto two = [](const std::string& first, const std::string& second) {
        return R"({"x":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
               R"(},"y":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
    };
    const std::string long_shape = [] {
        std::string shape = "[1";
        for (int i = 0; i < 64; ++i) shape += ",1";
        return shape + "]";
    }();
    struct Case {
        std::string what;
        std::string bytes;
        std::string expected;
    };
    const std::vector<Case> cases = {
        {"empty file", "", "only 0 bytes"},
        {"shorter than a length", "1234567", "only 7 bytes"},
        {"Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"},
        {"length 0", file_of("", eight), "header would have 0 bytes"},
        {"length beyond the limit", file_of(good, eight, 100000001), "100000001 bytes"},
        {"length of 2^64 - 1", file_of(good, eight, ~uint64_t{0}), "18446744073709551615 bytes"},
        {"length beyond the file", file_of(good, "", good.size() + 1), "truncated"},
        {"length at the limit, short file", file_of(good, eight, 100000000), "truncated"},
        {"leading space", file_of(" " + good, eight), "does not begin with '{'"},
        {"array", file_of("[]", eight), "does not begin with '{'"},
        {"header cut short", file_of(good, eight, good.size() - 1), "not JSON at byte"},
        {"text behind the object", file_of(good + "x", eight), "not JSON at byte"},
        {"a second object", file_of(good + "{}", eight), "not JSON at byte"},
        {"zero bytes as padding", file_of(good + std::string(3, '\0'), eight), "a zero byte"},
        {"text behind a zero byte", file_of(good + std::string(1, '\0') + "{}", eight), "a zero byte"},
        {"comment", file_of("{/**/}", ""), "not JSON at byte"},
        {"invalid UTF-8", file_of("{\"\xff\":{}}", ""), "not JSON at byte"},
        {"deep nesting", file_of("{\"x\":" + std::string(1000000, '[')), "an array instead of an object at \"x\""},
        {"deep nesting in a shape", file_of("{\"x\":{\"shape\":" + std::string(1000000, '[')), "an array in its shape"},
        {"deep nesting of objects", file_of("{\"x\":{\"shape\":{\"a\":{}"), "an object as its shape"},
        {"null beside a metadata that is null", file_of("{\"__metadata__\":null,\"x\":null}"),
         "null instead of an object at \"x\""},
        {"null tensor", file_of("{\"x\":null}"), "null instead of an object at \"x\""},
        {"true tensor", file_of("{\"x\":true}"), "a boolean instead of an object at \"x\""},
        {"string tensor", file_of("{\"x\":\"F32\"}"), "a string instead of an object at \"x\""},
        {"metadata not an object", file_of("{\"__metadata__\":[]}"),
         "an array instead of an object at \"__metadata__\""},
        {"metadata not strings", file_of("{\"__metadata__\":{\"n\":1}}"), "the number 1 instead of a string at \"n\""},
        {"metadata nested", file_of("{\"__metadata__\":{\"n\":{}}}"), "an object instead of a string at \"n\""},
        {"metadata key twice", file_of("{\"__metadata__\":{\"n\":\"1\",\"n\":\"2\"}}"), "the key \"n\" twice"},
        {"metadata twice", file_of("{\"__metadata__\":{},\"__metadata__\":{}}"), "the name \"__metadata__\" twice"},
        {"tensor twice", file_of(good.substr(0, good.size() - 1) + "," + good.substr(1), eight),
         "the name \"x\" twice"},
        {"tensor twice, escaped",
         file_of("{\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"\\u0078\":{}}"),
         "the name \"x\" twice"},
        {"no dtype", file_of("{\"x\":{\"shape\":[2],\"data_offsets\":[0,8]}}", eight), "\"x\" without dtype"},
        {"no shape", file_of("{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", eight), "\"x\" without shape"},
        {"no offsets", file_of("{\"x\":{\"dtype\":\"F32\",\"shape\":[2]}}", eight), "\"x\" without data_offsets"},
        {"field twice", file_of("{\"x\":{\"dtype\":\"F32\",\"dtype\":\"F16\"}}", eight), "the field dtype twice"},
        {"unknown field", file_of("{\"x\":{\"stride\":[1]}}", eight), "unknown field \"stride\""},
        {"unknown dtype", file_of(tensor("F128", "[2]", "[0,8]"), eight), "the dtype \"F128\""},
        {"lower-case dtype", file_of(tensor("f32", "[2]", "[0,8]"), eight), "the dtype \"f32\""},
        {"sub-byte dtype", file_of(tensor("F4", "[16]", "[0,8]"), eight), "the dtype \"F4\""},
        {"dtype not a string", file_of("{\"x\":{\"dtype\":32}}", eight), "the number 32 as its dtype"},
        {"shape not an array", file_of(tensor("F32", "2", "[0,8]"), eight), "the number 2 as its shape"},
        {"negative extent", file_of(tensor("F32", "[-2]", "[0,8]"), eight), "the number -2 in its shape"},
        {"two negative extents", file_of(tensor("F32", "[-1,-2]", "[0,8]"), eight), "the number -1 in its shape"},
        {"fractional extent", file_of(tensor("F32", "[2.0]", "[0,8]"), eight), "the number \"2.0\" in its shape"},
        {"extent of 2^64", file_of(tensor("F32", "[18446744073709551616]", "[0,8]"), eight), "in its shape"},
        {"string extent", file_of(tensor("F32", "[\"2\"]", "[0,8]"), eight), "a string in its shape"},
        {"null extent", file_of(tensor("F32", "[null]", "[0,8]"), eight), "null in its shape"},
        {"65 dimensions", file_of(tensor("U8", long_shape, "[0,1]"), "1"), "more than 64 dimensions"},
        {"huge shape", file_of(tensor("F32", "[4611686018427387904]", "[0,8]"), eight), "more than 2^64 bytes"},
        {"overflow to the right size", file_of(tensor("F32", "[4611686018427387906]", "[0,8]"), eight), "2^64 bytes"},
        {"overflowing product", file_of(tensor("U8", "[4294967296,4294967296,8]", "[0,8]"), eight), "2^64 bytes"},
        {"overflow beside a zero", file_of(tensor("U8", "[4294967296,4294967296,0]", "[0,0]")), "2^64 bytes"},
        {"large shape", file_of(tensor("F32", "[1000000000000]", "[0,8]"), eight), "needs 4000000000000 bytes"},
        {"large shape and offsets", file_of(tensor("F32", "[1000000000000]", "[0,4000000000000]"), eight), "truncated"},
        {"one offset", file_of(tensor("F32", "[2]", "[8]"), eight), "without two data_offsets"},
        {"three offsets", file_of(tensor("F32", "[2]", "[0,4,8]"), eight), "the number 8 in its data_offsets"},
        {"no offset", file_of(tensor("F32", "[0]", "[]")), "without two data_offsets"},
        {"negative offset", file_of(tensor("F32", "[2]", "[-8,0]"), eight), "the number -8 in its data_offsets"},
        {"begin after end", file_of(tensor("F32", "[2]", "[8,0]"), eight), "ends before it begins"},
        {"wrap-around offsets", file_of(tensor("F32", "[2]", "[18446744073709551612,4]"), eight), "ends before"},
        {"offsets beyond the file", file_of(tensor("F32", "[2]", "[8,16]"), eight), "holds only 8 bytes of data"},
        {"offsets near 2^64", file_of(tensor("F32", "[2]", "[18446744073709551600,18446744073709551608]"), eight),
         "holds only 8 bytes of data"},
        {"too few bytes for the shape", file_of(tensor("F32", "[2]", "[0,4]"), "1234"), "needs 8 bytes"},
        {"too many bytes for the shape", file_of(tensor("F16", "[2]", "[0,8]"), eight), "needs 4 bytes"},
        {"bytes for an empty tensor", file_of(tensor("F16", "[2,0]", "[0,8]"), eight), "needs 0 bytes"},
        {"scalar of the wrong size", file_of(tensor("F32", "[]", "[0,8]"), eight), "needs 4 bytes"},
        {"truncated data", file_of(good, eight.substr(1)), "holds only 7 bytes of data; it is truncated"},
        {"trailing bytes", file_of(good, eight + "x"), "1 bytes behind its last tensor"},
        {"data of no tensor", file_of("{}", eight), "8 bytes behind its last tensor"},
        {"gap at the start", file_of(tensor("U8", "[4]", "[4,8]"), eight), "gap of 4 bytes before it"},
        {"gap in between", file_of(two("[0,4]", "[5,9]"), eight + "x"), "\"y\" begins at 5, which leaves a gap of 1"},
        {"overlap", file_of(two("[0,4]", "[3,7]"), "1234567"), "\"y\" overlaps the tensor \"x\""},
        {"same place", file_of(two("[0,4]", "[0,4]"), "1234"), "overlaps the tensor"},
        {"name with a line break", file_of("{\"a\\nb\":{}}"), "\"a?b\" without dtype"},
    };
    const TemporaryFolder folder;
    const std::string path = folder / "model.safetensors";
    for (const Case& broken : cases) {
        CAPTURE(broken.what);
        write_bytes(path, broken.bytes);
        const std::string message = message_of<BadInput>([&] { SafetensorsFile file(path); });
        CAPTURE(message);
        CHECK(contains(message, path));
        CHECK(contains(message, broken.expected));
        CHECK(is_one_line(message));
    }
    write_bytes(path, file_of(good, eight));
    CHECK(SafetensorsFile(path).tensors().size() == 1);
    CHECK(contains(message_of<BadInput>([&] { SafetensorsFile file(folder / "none"); }), folder / "none"));
}

TEST_CASE("every truncation of a file is refused") {
    const TemporaryFolder folder;
    write_safetensors<float>(folder / "file", {source_of<float>("a", {3}, {1, 2, 3}), source_of<float>("b", {}, {4})},
                             DType::F16, {{"format", "pt"}});
    const std::string whole = read_bytes(folder / "file");
    const auto parse = [](const std::string& bytes) {
        return parse_safetensors(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), "f");
    };
    for (size_t length = 0; length < whole.size(); ++length) CHECK_THROWS_AS(parse(whole.substr(0, length)), BadInput);
    CHECK(parse(whole).tensors.size() == 2);
}
