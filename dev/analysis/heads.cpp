#include "dev/analysis/heads.h"

#include <cmath>

#include "dev/cpu/operations.h"

namespace lnfree {
namespace analysis {

double attention_score(const HeadPlaces& at, int64_t h, const real* row_of_query, const real* row_of_key) {
    const real *q = row_of_query + at.query(h), *k = row_of_key + at.key(h);
    double score = 0;
    for (int64_t d = 0; d < at.HS; d++) score += static_cast<double>(q[d]) * static_cast<double>(k[d]);
    return score / std::sqrt(static_cast<double>(at.HS));
}

void head_output(const Engine& model, int64_t l, int64_t h, const real* heads, int64_t rows, real* out,
                 int64_t stride) {
    const HeadPlaces at(model.config);
    const int64_t C = model.config.C;
    const real* proj = model.weights().layers[static_cast<size_t>(l)].proj;
    operations().matmul(Transpose::No, Transpose::No, rows, C, at.HS, heads + at.brought(h), at.A(),
                        proj + at.brought(h) * C, C, out, stride, false, nullptr);
}

}  // namespace analysis
}  // namespace lnfree
