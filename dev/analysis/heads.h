// Where the numbers of a head lie, and what they make: for every analysis that takes heads apart.
#pragma once

#include <cstdint>

#include "data/config.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// A row of what Probe::attention shows as qkv, and a row of c_attn, has Q numbers: the queries of NH heads, the keys of KH,
// the values of KH, HS numbers each. Head h asks with query h and reads keys and values of head h * KH / NH, which is h
// itself unless heads share them. What the heads bring, and a column of c_proj, has A numbers, HS of each head.
struct HeadPlaces {
    int64_t NH, KH, HS;

    explicit HeadPlaces(const ModelConfig& c) : NH(c.NH), KH(c.key_heads()), HS(c.head_size()) {}
    int64_t A() const { return NH * HS; }
    int64_t Q() const { return (NH + 2 * KH) * HS; }
    int64_t values_width() const { return KH * HS; }
    int64_t brought(int64_t h) const { return h * HS; }                         // in a row of A
    int64_t query(int64_t h) const { return h * HS; }                           // in a row of Q
    int64_t key(int64_t h) const { return (NH + h * KH / NH) * HS; }            // in a row of Q
    int64_t first_value() const { return (NH + KH) * HS; }                      // in a row of Q
    int64_t value(int64_t h) const { return h * KH / NH * HS; }                 // in the values alone
    int64_t value_in_row(int64_t h) const { return first_value() + value(h); }  // in a row of Q
};

// q . k / sqrt(HS) of query head h at one position with its key at another; rows (Q) of both.
double attention_score(const HeadPlaces& at, int64_t h, const real* row_of_query, const real* row_of_key);

// out (rows,C), `stride` numbers from row to row, becomes what head h of layer l adds to the stream where all heads bring
// heads (rows,A): its columns of that by its rows of c_proj. The output's bias is nobody's.
void head_output(const Engine& model, int64_t l, int64_t h, const real* heads, int64_t rows, real* out, int64_t stride);

}  // namespace analysis
}  // namespace lnfree
