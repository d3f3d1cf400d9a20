// Explanations as tables for the screen, as JSON, and as arrays for other programs. The page: explain_page.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/array_file.h"
#include "data/console.h"
#include "data/json.h"
#include "data/tokenizer.h"
#include "dev/analysis/explain.h"
#include "dev/analysis/explain_questions.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// Explanations of one model.
struct Explained {
    std::string folder;
    ModelConfig config;
    bool layernorm_free = false, exact = false;  // no LayerNorm anywhere; none at ln_f
    const Tokenizer* tokenizer = nullptr;        // null: tokens are shown as #ID
    std::vector<Explanation> all;

    // For people, on one line.
    std::string text_of(int32_t token) const;
    // What kind of norm the model has, or had: "a LayerNorm", "an RMSNorm".
    const char* norm() const { return config.centred ? "a LayerNorm" : "an RMSNorm"; }
    // "logit of X", "logit of X minus that of Y"
    std::string what_of(const Explanation& e) const;
};

// Indices of the largest sizes, largest first; those that are NaN or exactly 0 are left out.
std::vector<int64_t> largest_first(const double* values, int64_t n);

// The components of one explanation that move the logit most, then the sum; with neurons and paths a table of each.
std::vector<Table> tables_of(const Explained& x, const Explanation& e, const ExplainOptions& o);

// A row per prompt, for many of them.
Table overview_of(const Explained& x);

// Keys: data/README.md.
Json json_of(const Explained& x, const ExplainOptions& o);

// Under TransformerLens's names, with the prompts as first dimension (dev/analysis/README.md).
std::vector<Array> arrays_of(const Explained& x, const ExplainOptions& o);

}  // namespace analysis
}  // namespace lnfree
