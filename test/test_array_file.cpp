// data/array_file.h: what other programs get. NumPy and safetensors themselves read such files in test/interop/explain_in_lens.py.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "data/array_file.h"
#include "data/error.h"
#include "data/safetensors.h"
#include "test/file_helpers.h"

using namespace lnfree;

namespace {

uint32_t number_at(const std::string& bytes, size_t at, int size) {
    uint32_t number = 0;
    std::memcpy(&number, bytes.data() + at, static_cast<size_t>(size));
    return number;
}

const std::vector<Array> kTwo = {array_of("a.b", {2, 3}, std::vector<double>{1, 2, 3, 4, 5, 6}),
                                 array_of("ids", {2}, std::vector<int32_t>{7, -1})};

}  // namespace

TEST_CASE("arrays of several types come back from a safetensors file") {
    const TemporaryFolder folder;
    write_arrays(folder / "x.safetensors", kTwo, {{"who", "test"}});
    const SafetensorsFile file(folder / "x.safetensors");
    REQUIRE(file.tensors().size() == 2);
    CHECK(file.metadata().at("who") == "test");
    CHECK(file.find("a.b")->shape == std::vector<uint64_t>{2, 3});
    CHECK(file.find("ids")->dtype == DType::I32);
    double last = 0;
    std::memcpy(&last, file.find("a.b")->data + 5 * sizeof(double), sizeof(double));
    CHECK(last == 6);
    int32_t id = 0;
    std::memcpy(&id, file.find("ids")->data + sizeof(id), sizeof(id));
    CHECK(id == -1);
    CHECK(folder.names().size() == 1);
}

TEST_CASE("an .npz is a zip archive of arrays, each found where the directory at the end says") {
    const TemporaryFolder folder;
    write_arrays(folder / "x.npz", kTwo);
    const std::string bytes = read_bytes(folder / "x.npz");
    const size_t end = bytes.size() - 22;
    REQUIRE(bytes.compare(end, 4, "PK\x05\x06") == 0);
    CHECK(number_at(bytes, end + 10, 2) == 2);
    size_t entry = number_at(bytes, end + 16, 4);
    CHECK(entry + number_at(bytes, end + 12, 4) == end);
    for (const std::string name : {"a.b.npy", "ids.npy"}) {
        REQUIRE(bytes.compare(entry, 4, "PK\x01\x02") == 0);
        CHECK(bytes.compare(entry + 46, name.size(), name) == 0);
        const size_t local = number_at(bytes, entry + 42, 4);
        CHECK(bytes.compare(local, 4, "PK\x03\x04") == 0);
        CHECK(bytes.compare(local + 4, 26, bytes, entry + 6, 26) == 0);  // the same fields in both places
        const size_t array = local + 30 + name.size(), text = number_at(bytes, array + 8, 2);
        CHECK(bytes.compare(array, 8, std::string("\x93NUMPY\x01\x00", 8)) == 0);
        CHECK((10 + text) % 64 == 0);
        entry += 46 + name.size();
    }
    CHECK(entry == end);
    CHECK(contains(bytes, "{'descr': '<f8', 'fortran_order': False, 'shape': (2,3,), }"));
    CHECK(contains(bytes, "{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }"));
}

TEST_CASE("a stream takes arrays side by side and appears only when all are complete") {
    const TemporaryFolder folder;
    const std::vector<ArrayInfo> infos = {{"x", DType::F32, {2, 2}}, {"y", DType::I32, {2}}};
    const float x[] = {1, 2, 3, 4};
    const int32_t y[] = {5, 6};
    {
        ArrayStream stream(folder / "x.safetensors", infos);
        stream.append(0, x, 8);
        CHECK(contains(message_of<RunFailure>([&] { stream.publish(); }), "not complete"));
        CHECK(contains(message_of<RunFailure>([&] { stream.append(1, x, 12); }), "room"));
    }
    CHECK(folder.names().empty());
    ArrayStream stream(folder / "x.safetensors", infos);
    for (size_t i = 0; i < 2; i++) {
        stream.append(0, x + 2 * i, 8);
        stream.append(1, y + i, 4);
    }
    stream.publish();
    const SafetensorsFile file(folder / "x.safetensors");
    CHECK(std::memcmp(file.find("x")->data, x, sizeof(x)) == 0);
    CHECK(std::memcmp(file.find("y")->data, y, sizeof(y)) == 0);
    CHECK(stream.bytes() == read_bytes(folder / "x.safetensors").size());
}

TEST_CASE("arrays that cannot be written are refused by name, and nothing is left behind") {
    const TemporaryFolder folder;
    CHECK(contains(message_of<BadInput>([&] { write_arrays(folder / "x.h5", kTwo); }), "x.h5"));
    CHECK(contains(message_of<BadInput>([&] { write_arrays(folder / "x.safetensors", {kTwo[0], kTwo[0]}); }), "a.b"));
    const Array brain{{"w", DType::BF16, {1}}, "ab"};
    CHECK(contains(message_of<BadInput>([&] { write_arrays(folder / "x.npz", {brain}); }), "BF16"));
    for (const char* name : {"x.npz", "x.safetensors"}) {
        const FileSizeLimit full(100);
        CHECK(contains(message_of<RunFailure>([&] { write_arrays(folder / name, kTwo); }), name));
    }
    CHECK(folder.names().empty());
}
