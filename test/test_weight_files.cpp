// data/weight_files.h and data/tensor_view.h: every way in which a folder may hold its weights, and elements that do not lie one
// behind the other.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "data/safetensors.h"
#include "data/weight_files.h"
#include "test/file_helpers.h"
#include "test/torch_bytes.h"

using namespace lnfree;

namespace {

TensorSource<float> scalar(const std::string& name, float value) {
    return {name, {1}, [value](float* out) { *out = value; }};
}

// The first element of the tensor of this name.
float value_of(const WeightFiles& weights, const std::string& name) {
    for (const TensorView& tensor : weights.tensors()) {
        if (tensor.name != name) continue;
        std::vector<float> values(tensor.count());
        copy_tensor(tensor, values.data());
        return values[0];
    }
    FAIL("no tensor is named " << name);
    return 0;
}

// A file of torch.save with one tensor of one element.
std::string torch_scalar(const std::string& name, float value) {
    using namespace torch_bytes;
    return file(dictionary({{name, tensor(storage("FloatStorage", "0", 1), 0, {1}, {1})}}), {floats({value})});
}

std::string refusal_of(const std::string& folder) {
    return message_of<BadInput>([&] { WeightFiles::of_folder(folder); });
}

}  // namespace

TEST_CASE("a model folder is read from one file or from the files of its index") {
    const TemporaryFolder folder;
    write_safetensors<float>(folder / "one.safetensors", {scalar("a", 1), scalar("b", 2)}, DType::F32);
    write_safetensors<float>(folder / "two.safetensors", {scalar("c", 3)}, DType::F16);
    const std::string index = folder / "model.safetensors.index.json";
    write_bytes(index, R"({"metadata":{"total_size":10},"weight_map":
        {"c":"two.safetensors","a":"one.safetensors","b":"one.safetensors"}})");
    WeightFiles first = WeightFiles::of_folder(folder.path());
    const WeightFiles sharded(std::move(first));
    CHECK(sharded.tensors().size() == 3);
    CHECK(sharded.absent().empty());
    CHECK(value_of(sharded, "b") == 2);
    CHECK(value_of(sharded, "c") == 3);

    write_safetensors<float>(folder / "model.safetensors", {scalar("d", 4)}, DType::F32);
    const WeightFiles single = WeightFiles::of_folder(folder.path() + "/");
    CHECK(single.tensors().size() == 1);
    CHECK(value_of(single, "d") == 4);
    static_assert(!std::is_copy_constructible_v<WeightFiles> && std::is_move_constructible_v<WeightFiles>);
}

TEST_CASE("files of torch.save are read where there are none of safetensors, whatever their names promise") {
    const TemporaryFolder folder;
    write_bytes(folder / "part", torch_scalar("b", 6));
    write_bytes(folder / "pytorch_model.bin.index.json", R"({"weight_map":{"b":"part"}})");
    CHECK(value_of(WeightFiles::of_folder(folder.path()), "b") == 6);
    write_bytes(folder / "pytorch_model.bin", torch_scalar("a", 5));
    CHECK(value_of(WeightFiles::of_folder(folder.path()), "a") == 5);
    write_safetensors<float>(folder / "pytorch_model.bin", {scalar("a", 7)}, DType::F32);
    CHECK(value_of(WeightFiles::of_folder(folder.path()), "a") == 7);
    write_bytes(folder / "model.safetensors", torch_scalar("a", 8));
    CHECK(value_of(WeightFiles::of_folder(folder.path()), "a") == 8);
}

TEST_CASE("parts are found by their names where the index is missing or names nothing, if all are there") {
    const TemporaryFolder folder;
    write_bytes(folder / "pytorch_model-00001-of-00002.bin", torch_scalar("a", 1));
    CHECK(contains(refusal_of(folder.path()), "lacks pytorch_model-00002-of-00002.bin"));
    write_bytes(folder / "pytorch_model-00002-of-00002.bin", torch_scalar("b", 2));
    for (const bool with_index : {false, true}) {
        if (with_index) write_bytes(folder / "pytorch_model.bin.index.json", R"({"weight_map":{}})");
        const WeightFiles weights = WeightFiles::of_folder(folder.path());
        CHECK(value_of(weights, "a") == 1);
        CHECK(value_of(weights, "b") == 2);
    }
}

TEST_CASE("an index that disagrees with its files, or reaches out of its folder, is refused") {
    const TemporaryFolder folder;
    write_safetensors<float>(folder / "one", {scalar("a", 1), scalar("b", 1)}, DType::F32);
    write_safetensors<float>(folder / "two", {scalar("b", 1)}, DType::F32);
    write_bytes(folder / "text", "not weights");
    struct Case {
        std::string text, expected;
    };
    const Case cases[] = {
        {"", "not valid JSON"},
        {"[]", "no object \"weight_map\""},
        {"{}", "no object \"weight_map\""},
        {R"({"weight_map":[]})", "no object \"weight_map\""},
        {R"({"weight_map":{}})", "an index that names no tensor"},
        {R"({"weight_map":{"a":1}})", "\"a\" is not given a file name"},
        {R"({"weight_map":{"a":"one","a":"two"}})", "the key \"a\" appears twice"},
        {R"({"weight_map":{"a":"../one"}})", "not the plain name"},
        {R"({"weight_map":{"a":"/etc/passwd"}})", "not the plain name"},
        {R"({"weight_map":{"a":"..\\one"}})", "not the plain name"},
        {R"({"weight_map":{"a":".."}})", "not the plain name"},
        {R"({"weight_map":{"a":"."}})", "not the plain name"},
        {R"({"weight_map":{"a":""}})", "not the plain name"},
        {R"({"weight_map":{"a":"one\u0000"}})", "not the plain name"},
        {R"({"weight_map":{"a":"three"}})", "/three"},
        {R"({"weight_map":{"a":"text"}})", "/text"},
        {R"({"weight_map":{"a":"one","c":"two"}})", "/two holds the tensor \"b\""},
        {R"({"weight_map":{"a":"one","b":"two"}})", "/one holds the tensor \"b\""},
    };
    for (const Case& broken : cases) {
        CAPTURE(broken.text);
        write_bytes(folder / "model.safetensors.index.json", broken.text);
        const std::string message = refusal_of(folder.path());
        CAPTURE(message);
        CHECK(contains(message, folder.path()));
        CHECK(contains(message, broken.expected));
        CHECK(is_one_line(message));
    }
}

TEST_CASE("what an index lists and no file holds is named, and what it does not list is taken") {
    const TemporaryFolder folder;
    write_safetensors<float>(folder / "one", {scalar("a", 1), scalar("b", 2)}, DType::F32);
    write_bytes(folder / "model.safetensors.index.json", R"({"weight_map":{"a":"one","z":"one"}})");
    const WeightFiles weights = WeightFiles::of_folder(folder.path());
    REQUIRE(weights.absent().size() == 1);
    CHECK(weights.absent()[0].name == "z");
    CHECK(contains(weights.absent()[0].message, "/one lacks the tensor \"z\""));
    CHECK(value_of(weights, "b") == 2);
}

TEST_CASE("a folder without weights says what it lacks, what it has instead, and what helps") {
    const TemporaryFolder folder;
    CHECK(contains(refusal_of(folder.path()), "neither model.safetensors nor pytorch_model.bin"));
    CHECK(contains(refusal_of(folder.path()), "fetch one of them"));
    for (const auto& [file, advice] : {std::pair<std::string, std::string>{"flax_model.msgpack", "from_flax=True"},
                                       {"tf_model.h5", "from_tf=True"},
                                       {"adapter_model.safetensors", "merge_and_unload"}}) {
        write_bytes(folder / file, "x");
        CHECK(contains(refusal_of(folder.path()), "it has " + file));
        CHECK(contains(refusal_of(folder.path()), advice));
        CHECK(is_one_line(refusal_of(folder.path())));
    }
}

TEST_CASE("strided elements are copied in row-major order, by parts and from the pages of a file") {
    constexpr uint64_t rows = 300, columns = 501;  // more than one block of those that cores share
    std::vector<float> stored(rows * columns);
    for (size_t i = 0; i < stored.size(); i++) stored[i] = static_cast<float>(i);
    TensorView view;
    view.shape = {columns, rows};
    view.strides = {1, columns};
    view.data = reinterpret_cast<const unsigned char*>(stored.data());
    view.bytes = stored.size() * sizeof(float);
    std::vector<double> copied(stored.size());
    copy_tensor(view, copied.data());
    size_t wrong = 0;
    for (uint64_t i = 0; i < columns; i++)
        for (uint64_t j = 0; j < rows; j++) wrong += copied[i * rows + j] != static_cast<double>(j * columns + i);
    CHECK(wrong == 0);

    TensorView row_major = view, same = view;
    const std::vector<float> transposed(copied.begin(), copied.end());
    row_major.strides.clear();
    row_major.data = reinterpret_cast<const unsigned char*>(transposed.data());
    CHECK(same_values(view, same));
    CHECK(same_values(view, row_major));
    row_major.data = view.data;
    CHECK_FALSE(same_values(view, row_major));
    row_major.shape = {rows, columns};
    CHECK_FALSE(same_values(view, row_major));
}
