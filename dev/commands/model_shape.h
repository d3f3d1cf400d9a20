// The shape of a model that does not exist yet, as flags give it: a size by name, and what differs from it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "data/config.h"

namespace lnfree {

struct ModelShape {
    std::string size = "tiny", family = "gpt2";
    std::optional<int64_t> L, NH, KH, C, n_ctx, V;  // where another value than the size's is wanted

    ModelShape() = default;
    explicit ModelShape(const char* named) : size(named) {}

    // `data_V`: vocabulary of the data's tokenizer, 0 if unknown. Throws BadInput for sizes that make no model.
    ModelConfig config(int64_t data_V) const;

    // "small"; of another family than GPT-2's "small llama".
    std::string name() const { return family == "gpt2" ? size : size + " " + family; }

    // The vocabulary that goes with the size where there are no data: bytes for tiny, GPT-2's for the others.
    int64_t usual_vocabulary() const { return size == "tiny" ? 257 : 50257; }
};

}  // namespace lnfree
