// `bench`: that its list of operations is that of the model, whatever its shape. How long they take is not for a test.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "dev/cpu/bench.h"
#include "dev/engine.h"
#include "test/test_models.h"

using namespace lnfree;
using namespace lnfree::bench;

namespace {

// Numbers in matrices that something is multiplied by: all but embeddings that are looked up, of the unembedding always.
int64_t multiplied_parameters(const ModelConfig& c) {
    int64_t n = c.tied ? c.V * c.C : 0;
    for (const Tensor& t : tensor_table(c))
        if (t.shape.size() == 2 && t.name != "wte.weight" && t.name != "wpe.weight") n += t.size;
    return n;
}

bool has(const OpList& list, const std::string& words) {
    return std::any_of(list.ops.begin(), list.ops.end(),
                       [&](const Op& op) { return op.name.find(words) != std::string::npos; });
}

}  // namespace

TEST_CASE("the operations are those of the model's shape: each weight multiplies three times, and every one can run") {
    std::vector<ModelConfig> shapes = other_shapes();
    shapes.push_back(shape_of(2, 3, 15, 37, 13, 22));
    const int64_t B = 2, T = 5;
    for (const ModelConfig& c : shapes) {
        CAPTURE(c.rotary);
        const OpList list(c, B, T);
        double products = 0, attention = 0;
        for (const Op& op : list.ops) {
            CHECK(op.calls > 0);
            CHECK(op.bytes > 0);
            op.run();
            (op.name.find("attention, ") == 0 ? attention : products) += op.calls * op.flops;
        }
        CHECK(products == doctest::Approx(static_cast<double>(6 * B * T * multiplied_parameters(c))));
        const int64_t pairs = T * (T + 1) / 2;  // of a query and a key that it sees
        CHECK(attention == doctest::Approx(static_cast<double>(12 * c.L * B * pairs * c.heads_width())));
        CHECK(has(list, "rotary positions") == (c.rotary > 0));
        CHECK(has(list, "gated SiLU") == (c.activation == Activation::gated_silu));
        CHECK(has(list, "GELU by erf") == (c.activation == Activation::gelu_erf));
        CHECK(has(list, "RMSNorm, backward") == !c.centred);
    }
}
