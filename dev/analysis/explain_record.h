// What a forward pass leaves behind for its explanation, and the directions along which that is read.
#pragma once

#include <cstdint>
#include <vector>

#include "dev/buffer.h"
#include "dev/engine.h"

namespace lnfree {
namespace analysis {

// Of B sequences of T tokens (the last pass).
struct PassRecord {
    int64_t B = 0, T = 0;
    Buffer heads, values;           // (L,B,T,A), (L,B,T,KH*HS): what heads bring before c_proj, values
    Buffer outputs;                 // (L,B,T,C): what MLPs add
    std::vector<real> hidden;       // (L,B,n_inner): neurons at each sequence's position
    std::vector<double> attention;  // (L,B,NH,T): shares of the query at each sequence's position
    std::vector<double> divisors;   // (B,T): what ln_f divides by

    // Row (width) of one of the three buffers.
    const real* row(const Buffer& of, int64_t l, int64_t b, int64_t t, int64_t width) const {
        return of.data() + ((l * B + b) * T + t) * width;
    }
};

// Runs tokens (B,T) through the model; positions (B).
void record_pass(PassRecord& record, Engine& model, const int32_t* tokens, int64_t B, int64_t T,
                 const int64_t* positions);

// How what is written into the stream moves a logit, but for the division.
struct Direction {
    std::vector<double> stream;  // (C): g of explain.h
    std::vector<double> heads;   // (L,A): a channel of what the heads bring, through c_proj
    double constant = 0;         // beta . u + b
};

// Of the target's logit, or of its distance from that of `against` (unless -1).
Direction direction_of(Engine& model, int32_t target, int32_t against);

// In double: the scalar product, 0 where there is no such vector (a bias that a model does not have); out (rows) = matrix (rows,n) v (n).
double dot(const real* a, const double* v, int64_t n);
void times(const real* matrix, const double* v, int64_t rows, int64_t n, double* out);

}  // namespace analysis
}  // namespace lnfree
