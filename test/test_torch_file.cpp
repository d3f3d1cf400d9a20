// data/torch_file.h, data/pickle.h, data/zip_archive.h: what torch.save writes is read, where it lies; a pickle that asks for
// anything else is refused by name, and none that is damaged does harm.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "data/pickle.h"
#include "data/torch_file.h"
#include "data/zip_archive.h"
#include "test/file_helpers.h"
#include "test/torch_bytes.h"

using namespace lnfree;
using namespace lnfree::torch_bytes;

namespace {

TorchContents contents_of(const std::string& bytes) {
    return parse_torch_file(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), "f.bin");
}

std::string refusal_of(const std::string& bytes) {
    const std::string message = message_of<BadInput>([&] { contents_of(bytes); });
    CHECK(contains(message, "f.bin"));
    CHECK(is_one_line(message));
    return message;
}

std::vector<float> values_of(const TensorView& tensor) {
    std::vector<float> values(tensor.count());
    copy_tensor(tensor, values.data());
    return values;
}

const std::vector<float> six = {0, 1, 2, 3, 4, 5};

// Of storage "0", which holds those.
std::string tensor_of_six(int64_t offset, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    return tensor(storage("FloatStorage", "0", 6), offset, shape, strides);
}

std::string file_of(const std::string& value) {
    return file(value, {floats(six)});
}

}  // namespace

TEST_CASE("tensors are found where they lie: shared storages, offsets, strides, every type of weights") {
    const std::string bytes = file(dictionary({{"whole", tensor_of_six(0, {2, 3}, {3, 1})},
                                               {"transposed", tensor_of_six(0, {3, 2}, {1, 3})},
                                               {"part", tensor_of_six(4, {2}, {1})},
                                               {"column", tensor_of_six(1, {2}, {3})},
                                               {"again", tensor_of_six(2, {2, 2}, {0, 1})},
                                               {"scalar", tensor_of_six(5, {}, {})},
                                               {"none", tensor_of_six(6, {0, 4}, {4, 1})},
                                               {"half", tensor(storage("HalfStorage", "1", 2), 0, {2}, {1})},
                                               {"brain", tensor(storage("BFloat16Storage", "1", 2), 1, {1}, {1})},
                                               {"ids", tensor(storage("LongStorage", "2", 1), 0, {1}, {1})}}),
                                   {floats(six), std::string("\x00\x3c\x80\x3f", 4), little_endian(7, 8)});
    for (const bool zip64 : {false, true}) {
        const std::string file_bytes =
            zip64 ? file(dictionary({{"x", tensor_of_six(0, {6}, {1})}}), {floats(six)}, true) : bytes;
        CHECK(contents_of(file_bytes).tensors.size() == (zip64 ? 1 : 10));
    }
    const std::vector<TensorView> tensors = contents_of(bytes).tensors;
    CHECK(tensors[0].name == "whole");
    CHECK(tensors[0].strides.empty());
    CHECK(values_of(tensors[0]) == six);
    CHECK(tensors[0].data == tensors[1].data);
    CHECK(values_of(tensors[1]) == std::vector<float>{0, 3, 1, 4, 2, 5});
    CHECK(values_of(tensors[2]) == std::vector<float>{4, 5});
    CHECK(values_of(tensors[3]) == std::vector<float>{1, 4});
    CHECK(values_of(tensors[4]) == std::vector<float>{2, 3, 2, 3});
    CHECK(values_of(tensors[5]) == std::vector<float>{5});
    CHECK(tensors[6].count() == 0);
    CHECK(values_of(tensors[7])[0] == 1);
    CHECK(values_of(tensors[8])[0] == 1);
    CHECK(tensors[9].dtype == DType::I64);
    for (const TensorView& tensor : tensors) {
        const auto* const begin = reinterpret_cast<const unsigned char*>(bytes.data());
        CHECK(tensor.data >= begin);
        CHECK(tensor.data + tensor.bytes <= begin + bytes.size());
    }
}

TEST_CASE("state dicts come as modules, parameters and training scripts save them") {
    const std::string one = tensor_of_six(0, {6}, {1});
    const std::string parameter =
        call("torch._utils", "_rebuild_parameter", {one, "\x88", call("collections", "OrderedDict", {})});
    // An OrderedDict, filled, with the metadata that Module.state_dict gives it.
    const std::string of_module = call("collections", "OrderedDict", {}) + "(" + text("w") + parameter + "u" +
                                  dictionary({{"_metadata", call("collections", "OrderedDict", {})}}) + "b";
    const std::string of_pairs = call("collections", "OrderedDict", {"](" + tuple({text("w"), one}) + "e"});
    const std::string remembered = "}" + text("w") + "q\1" + one + "s" + "q\2" + "h\2" + "\x94" + "0";
    for (const std::string& value :
         {of_module, of_pairs, remembered, dictionary({{"w", parameter}, {"step", "K\5"}}),
          dictionary({{"state_dict", of_module}, {"epoch", "K\1"}}), dictionary({{"module", of_module}}),
          dictionary({{"model_state_dict", of_module}})}) {
        const std::vector<TensorView> tensors = contents_of(file_of(value)).tensors;
        REQUIRE(tensors.size() == 1);
        CHECK(tensors[0].name == "w");
    }
    const TorchContents nanogpt = contents_of(file_of(dictionary(
        {{"model", of_module},
         {"best_val_loss", one},
         {"model_args",
          dictionary({{"n_layer", "K\2"}, {"bias", "\x89"}, {"dropout", std::string("G\x3f\xf8\0\0\0\0\0\0", 9)}})}})));
    CHECK(nanogpt.tensors.size() == 1);
    CHECK(nanogpt.model_args["n_layer"] == 2);
    CHECK(nanogpt.model_args["bias"] == false);
    CHECK(nanogpt.model_args["dropout"] == 1.5);
    CHECK(contents_of(file_of(of_module)).model_args.is_null());
}

TEST_CASE("a pickle that asks for anything that a state dict does not need is refused by name") {
    const std::string tensor = tensor_of_six(0, {6}, {1});
    const auto with = [&](const std::string& value) { return file_of(dictionary({{"w", tensor}, {"x", value}})); };
    struct Case {
        std::string value, expected;
    };
    const Case cases[] = {
        {call("os", "system", {text("touch /tmp/owned")}), "\"os.system\""},
        {call("posix", "system", {text("id")}), "\"posix.system\""},
        {call("builtins", "eval", {text("1")}), "\"builtins.eval\""},
        {call("__builtin__", "exec", {text("1")}), "\"__builtin__.exec\""},
        {call("subprocess", "Popen", {text("id")}), "\"subprocess.Popen\""},
        {call("torch.hub", "load", {}), "\"torch.hub.load\""},
        {call("torch", "load", {}), "\"torch.load\""},
        {call("builtins", "getattr", {name("os", "system"), text("x")}), "\"builtins.getattr\""},
        {call("numpy.core.multiarray", "scalar", {}), "\"numpy.core.multiarray.scalar\""},
        {call("collections", "OrderedDict.fromkeys", {}), "\"collections.OrderedDict.fromkeys\""},
        {call("a\tb", "c", {}), "\"a?b.c\""},
        {text("os") + text("system") + "\x93" + tuple({text("id")}) + "R", "\"os.system\""},
        // A call of what a call gave, of a value, of a type.
        {call("collections", "OrderedDict", {}) + ")R", "a call of something that is no name"},
        {call("torch", "device", {call("os", "system", {text("id")})}), "\"os.system\""},
        {text("os.system") + ")R", "a call of something that is no name"},
        {name("torch", "FloatStorage") + ")R", "a call of \"torch.FloatStorage\""},
        // Objects of other classes: OBJ, INST, NEWOBJ, NEWOBJ_EX, BUILD; extensions; persistent ids as text.
        {"(" + name("collections", "OrderedDict") + "o", "the opcode 111"},
        {"(ios\nsystem\n", "the opcode 105"},
        {name("collections", "OrderedDict") + ")\x81", "the opcode 129"},
        {name("collections", "OrderedDict") + ")}\x92", "the opcode 146"},
        {name("collections", "OrderedDict") + "}b", "BUILD on something other than a dictionary"},
        {tensor + "}b", "BUILD on something other than a dictionary"},
        {std::string("\x82\1"), "the opcode 130"},
        {"P0\n", "the opcode 80"},
        {"\x8a\x09" + std::string(9, '\1'), "more than 64 bits"},
    };
    for (const Case& hostile : cases) {
        CAPTURE(hostile.expected);
        const std::string message = refusal_of(with(hostile.value));
        CAPTURE(message);
        CHECK(contains(message, hostile.expected));
        CHECK(contains(message, "nothing in it was run"));
    }
    CHECK(contents_of(with("N")).tensors.size() == 1);
}

TEST_CASE("tensors that do not lie within their storage, and damaged pickles, are refused") {
    constexpr int64_t huge = int64_t{1} << 62;
    const auto of_six = [](int64_t elements) { return storage("FloatStorage", "0", elements); };
    struct Case {
        std::string value, expected;
    };
    const Case cases[] = {
        {tensor_of_six(0, {7}, {1}), "reaches beyond its storage"},
        {tensor_of_six(1, {6}, {1}), "reaches beyond its storage"},
        {tensor_of_six(7, {0}, {1}), "reaches beyond its storage"},
        {tensor_of_six(huge, {1}, {1}), "reaches beyond its storage"},
        {tensor_of_six(0, {2, 3}, {4, 1}), "reaches beyond its storage"},
        {tensor_of_six(0, {2}, {huge}), "reaches beyond its storage"},
        {tensor_of_six(0, {5}, {huge}), "reaches beyond its storage"},
        {tensor_of_six(0, {huge, huge, huge}, {0, 0, 0}), "reaches beyond its storage"},
        {tensor_of_six(-1, {1}, {1}), "impossible shape"},
        {tensor_of_six(0, {-1}, {1}), "impossible shape"},
        {tensor_of_six(0, {2}, {-1}), "impossible shape"},
        {tensor_of_six(0, {1, 2}, {1}), "impossible shape"},
        {tensor_of_six(0, std::vector<int64_t>(65, 1), std::vector<int64_t>(65, 1)), "impossible shape"},
        {tensor(of_six(7), 0, {1}, {1}), "is cut off"},
        {tensor(of_six(huge), 0, {1}, {1}), "is cut off"},
        {tensor(of_six(-1), 0, {1}, {1}), "not described as torch.save does it"},
        {tensor(storage("FloatStorage", "9", 6), 0, {1}, {1}), "lacks the storage \"9\""},
        {tensor(storage("FloatStorage", "../0", 6), 0, {1}, {1}), "lacks the storage"},
        {tensor(storage("Size", "0", 6), 0, {1}, {1}), "a storage of type"},
        {tensor("N", 0, {1}, {1}), "not described as torch.save does it"},
        {tuple({text("storage")}) + "Q", "not described as torch.save does it"},
        {call("torch._utils", "_rebuild_tensor_v2", {}), "not described as torch.save does it"},
        {call("torch._utils", "_rebuild_parameter", {text("x")}), "a parameter is no tensor"},
        {call("torch", "Size", {}), "no tuple"},
        {call("collections", "OrderedDict", {"](Ne"}), "no pairs"},
        {name("torch", "Size") + "NR", "no list of arguments"},
        {"R", "a value is missing"},
        {"s", "a value is missing"},
        {"Nuu", "a mark is missing"},
        {"(Nu", "a key has no value"},
        {"h\x20", "never noted"},
        {"X" + little_endian(0xffffffff, 4) + "abc", "in the middle of a value"},
        {"cos", "a name has no end"},
    };
    for (const Case& broken : cases) {
        CAPTURE(broken.expected);
        const std::string message = refusal_of(file_of("}(" + text("w") + broken.value + "u"));
        CAPTURE(message);
        CHECK(contains(message, broken.expected));
    }
    for (const std::string& value : {std::string("N"), dictionary({}), dictionary({{"model", text("w")}})})
        CHECK(contains(refusal_of(file_of(value)), "holds no state dict"));
}

TEST_CASE("a pickle cannot make much of little") {
    // A list of many pairs, made into an OrderedDict again and again: a few bytes each time.
    std::string pairs = "](";
    for (int i = 0; i < 20'000; i++) pairs += "NN\x86";
    std::string bomb = pairs + "e" + "q\1" + name("collections", "OrderedDict") + "q\2";
    for (int i = 0; i < 20'000; i++) bomb += "h\2h\1\x85R";
    CHECK(contains(refusal_of(file_of(bomb)), "more than 4000000 items"));
    CHECK(contains(refusal_of(file_of(std::string(1'000'001, '}'))), "more than 1000000 values"));
    CHECK(contains(refusal_of(file_of(std::string(17 << 20, '('))), "bytes, more than a model's state dict"));
    // Into itself, and deeply nested: nothing recurses.
    CHECK(contains(refusal_of(file_of("]q\1h\1a")), "holds no state dict"));
    CHECK(contains(refusal_of(file_of(std::string(900'000, ']') + std::string(899'999, 'a'))), "holds no state dict"));
}

TEST_CASE("archives that are damaged, compressed or something else are refused by name") {
    const std::string good = file_of(dictionary({{"w", tensor_of_six(0, {6}, {1})}}));
    CHECK(contains(refusal_of(""), "it is empty"));
    CHECK(contains(refusal_of("<html>"), "not a file of torch.save"));
    CHECK(contains(refusal_of("version https://git-lfs.github.com/spec/v1"), "git lfs pull"));
    const std::string old = refusal_of(std::string("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15));
    CHECK(contains(old, "before 1.6"));
    CHECK(contains(old, "torch.save(torch.load("));
    CHECK(contains(refusal_of(zip({{"x.npy", "1"}})), "without a data.pkl"));
    CHECK(contains(refusal_of(zip({{"m/data.pkl", pickle("}")}, {"m/data.pkl", ""}})), "twice"));
    CHECK(contains(refusal_of(zip({{"m/data.pkl", pickle("}")}, {"m/byteorder", "big"}})), "big-endian"));
    // Fields of the first entry of the directory: flags, method, size, where it lies.
    const size_t entry = good.find("PK\1\2");
    struct Case {
        size_t at;
        std::string bytes, expected;
    };
    for (const Case& damage : {Case{8, "\1", "encrypted"}, Case{10, std::string("\x08\0", 2), "compressed (method 8)"},
                               Case{20, "\x7f", "has two sizes"}, Case{42, "\x7f", "is not where its directory says"},
                               Case{28, "\xff\xff", "directory"}, Case{0, "x", "directory"}}) {
        CAPTURE(damage.expected);
        std::string bytes = good;
        bytes.replace(entry + damage.at, damage.bytes.size(), damage.bytes);
        CHECK(contains(refusal_of(bytes), damage.expected));
    }
}

TEST_CASE("every truncation, and every change of a byte, is read within bounds or refused") {
    for (const bool zip64 : {false, true}) {
        const std::string whole = file(dictionary({{"w", tensor_of_six(0, {2, 3}, {1, 2})}}), {floats(six)}, zip64);
        for (size_t length = 0; length < whole.size(); length++)
            CHECK_THROWS_AS(contents_of(whole.substr(0, length)), BadInput);
        for (size_t at = 0; at < whole.size(); at++) {
            for (const unsigned char flip : {0x01, 0x80, 0xff}) {
                std::string bytes = whole;
                bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ flip);
                try {
                    for (const TensorView& tensor : contents_of(bytes).tensors)
                        if (tensor.dtype == DType::F32 && tensor.count() < 100) values_of(tensor);
                } catch (const BadInput&) {
                }
            }
        }
    }
}

TEST_CASE("a mapped file's views outlive its object's moves") {
    const TemporaryFolder folder;
    write_bytes(folder / "m.bin", file_of(dictionary({{"w", tensor_of_six(0, {3, 2}, {1, 3})}})));
    TorchFile first(folder / "m.bin");
    const TorchFile second(std::move(first));
    REQUIRE(second.tensors().size() == 1);
    CHECK(second.tensors()[0].mapped);
    CHECK(values_of(second.tensors()[0]) == std::vector<float>{0, 3, 1, 4, 2, 5});
    CHECK(contains(message_of<BadInput>([&] { TorchFile(folder / "none"); }), folder / "none"));
}
