// What surrounds kernels: memory of the device, recorded work, and who is blamed for an error.
#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "data/error.h"
#include "dev/cuda/device_memory.h"
#include "dev/cuda/recorded_work.h"
#include "test/file_helpers.h"

using namespace lnfree;
using cuda::DeviceArray;

namespace {

__global__ void set_value(float* to, float value) {
    *to = value;
}

// Leaves the thread's stream capturing for as long as it lives: then memory cannot be handed out, though there is plenty.
struct Capturing {
    Capturing() { REQUIRE(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal) == cudaSuccess); }
    ~Capturing() {
        cudaGraph_t graph = nullptr;
        cudaStreamEndCapture(nullptr, &graph);
        cudaGraphDestroy(graph);
    }
};

}  // namespace

TEST_CASE("an array holds what it is given, begins where it is told to, and can move") {
    const std::vector<int32_t> values = {3, 1, 4, 1, 5};
    DeviceArray<int32_t> array(values, 1);
    CHECK(array.size() == 5);
    CHECK(reinterpret_cast<uintptr_t>(array.data()) % 256 == sizeof(int32_t));
    CHECK(array.host() == values);
    const DeviceArray<int32_t> moved(std::move(array));
    CHECK(moved.host() == values);
    CHECK(array.size() == 0);
    moved.zero(nullptr);
    CHECK(moved.host() == std::vector<int32_t>(5, 0));
    CHECK_THROWS_AS(moved.set({1, 2}), RunFailure);
    CHECK(DeviceArray<float>().host().empty());
}

TEST_CASE("a full device is told apart from memory that is refused for another reason") {
    DeviceArray<char> array;
    const std::string full = message_of<RunFailure>([&] { array.allocate(int64_t{1} << 60); });
    CHECK(contains(full, "no room for 1099511627776 MiB"));
    CHECK(contains(full, "--batch"));
    CHECK(cudaPeekAtLastError() == cudaSuccess);  // nobody who asks next is to be blamed
    std::string refused;
    {
        const Capturing capturing;
        refused = message_of<RunFailure>([&] { array.allocate(1); });
    }
    CHECK(contains(refused, "StreamCaptureUnsupported"));
    CHECK_FALSE(contains(refused, "no room"));
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    array.allocate(1);
    CHECK(array.size() == 1);
}

TEST_CASE("the error of a kernel that failed earlier is not blamed on the call that notices it") {
    const auto message = [](cudaError_t error) {
        return message_of<RunFailure>([&] { cuda::require_cuda(error, "copying to the GPU"); });
    };
    CHECK(message(cudaSuccess).empty());
    CHECK(message(cudaErrorInvalidValue) == "copying to the GPU: cudaErrorInvalidValue");
    for (const cudaError_t error : {cudaErrorIllegalAddress, cudaErrorLaunchFailure}) {
        const std::string text = message(error);
        CHECK(contains(text, "a kernel failed before this was noticed (copying to the GPU)"));
        CHECK(contains(text, cudaGetErrorString(error)));
        CHECK(contains(text, "CUDA_LAUNCH_BLOCKING=1"));
        CHECK(is_one_line(text));
    }
}

TEST_CASE("recorded work is recorded at the second time, replays old values, and starts anew with other ones") {
    cuda::RecordedWork recorded;
    const DeviceArray<float> device(1);
    float value = 1;
    int given = 0;
    const auto run = [&](double frozen) {
        recorded.run({frozen}, nullptr, [&] {
            given++;
            cuda::launch(set_value, dim3(1), dim3(1), 0, nullptr, device.data(), value);
        });
        return device.host()[0];
    };
    CHECK(run(0) == 1);  // done at once
    value = 2;
    CHECK(run(0) == 2);  // recorded, and launched
    CHECK(given == 2);
    value = 3;
    CHECK(run(0) == 2);  // which is why everything that changes must be named
    CHECK(given == 2);
    CHECK(run(1) == 3);
    recorded.forget();
    value = 4;
    CHECK(run(1) == 4);
    CHECK(given == 4);
}

TEST_CASE("what cannot be recorded is refused, and leaves the stream as it was") {
    cuda::RecordedWork recorded;
    DeviceArray<float> device;
    const auto wait = [] { cuda::require_cuda(cudaDeviceSynchronize(), "waiting"); };
    recorded.run({1}, nullptr, wait);
    CHECK_THROWS_WITH_AS(recorded.run({1}, nullptr, wait), doctest::Contains("StreamCaptureUnsupported"), RunFailure);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    device.allocate(1);  // nothing is being recorded any more
    CHECK(device.data() != nullptr);
}
