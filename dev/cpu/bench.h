// What this machine makes of the operations: seconds, FLOP/s and bytes/s of each, of a training step, and of evaluation,
// beside a yardstick: OpenBLAS doing the same products in the same run. Behind `train_gpt2_lnfree bench`; its keys are
// described in data/README.md.
//
// OpenBLAS is looked for when the program runs and is not needed by anything else.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "data/json.h"
#include "dev/cpu/matmul_types.h"
#include "dev/engine.h"

namespace lnfree {
namespace bench {

struct Options {
    GPT2Config config;
    std::string name;  // of the model's size
    int64_t batch = 4, seq = 64;
    double seconds = 1;  // for every figure
    std::string precision = "fp32";
};

// Measures, prints a table for people to `screen`, and returns everything under the names of data/README.md.
Json run(const Options& o, FILE* screen);

// ---------------------------------------------------------------------------------------------------------------------
// The parts, for growth.cpp as well

// Median seconds of `run`, repeated for `budget` seconds and at least three times, after one call that does not count.
double seconds_of(const std::function<void()>& run, double budget);

// OpenBLAS's single-precision product, if the library is on this machine.
class OpenBlas {
  public:
    OpenBlas();
    OpenBlas(const OpenBlas&) = delete;
    OpenBlas& operator=(const OpenBlas&) = delete;
    ~OpenBlas();

    bool is_there() const { return sgemm_ != nullptr; }

    // As Operations::matmul, without bias.
    void matmul(Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate) const;

  private:
    typedef void Sgemm(int order, int ta, int tb, int M, int N, int K, float alpha, const float* A, int lda,
                       const float* B, int ldb, float beta, float* C, int ldc);
    void* library_;
    Sgemm* sgemm_ = nullptr;
};

// An operation of a training step, alone on buffers of its own.
struct Op {
    std::string name;
    double calls = 0;             // in a training step
    double flops = 0, bytes = 0;  // of one call; bytes: every operand once, as if caches were endless and then empty
    std::function<void()> run;
    std::function<void()> yardstick = {};       // the same product by OpenBLAS; empty for what is no product
    double seconds = 0, yardstick_seconds = 0;  // of one call
};

// Operands full of made-up numbers, that stay alive as long as the operations that use them.
class Operands {
  public:
    real* take(int64_t n);
    int32_t* take_tokens(int64_t n, int64_t V);  // below V

  private:
    std::vector<std::vector<real>> reals_;
    std::vector<std::vector<int32_t>> tokens_;
};

// All operations of a training step.
class OpList {
  public:
    std::vector<Op> ops;

    // B sequences of T positions through a model of this shape. `blas` must stay.
    OpList(const GPT2Config& c, int64_t B, int64_t T, const OpenBlas& blas);

  private:
    void product(const std::string& name, double calls, Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K,
                 bool accumulate);
    void layer_products(const std::string& name, double calls, int64_t N, int64_t K, int64_t M);
    void streaming(const std::string& name, double calls, double values, std::function<void()> run);
    void add_attention(const GPT2Config& c, int64_t B, int64_t T);
    void add_classifier(const GPT2Config& c, int64_t N);
    void add_norms(const GPT2Config& c, int64_t N);
    void add_elementwise(const GPT2Config& c, int64_t B, int64_t T);
    void add_optimiser(GPT2Config c);

    const OpenBlas& blas_;
    Operands memory_;
};

struct StepTimes {
    double first = 0, median = 0;  // seconds of a training step
    double evaluation = 0;         // seconds of its forward pass and losses alone
    double one_thread = 0;         // median seconds with a single thread; 0 if that is all there is
    double peak_bytes = 0;         // resident set of the process after the training steps
};

// Steps of the reference engine on made-up weights and tokens; without `all`, no evaluation and no single thread.
StepTimes time_steps(const GPT2Config& c, int64_t B, int64_t T, double budget, bool all = true);

}  // namespace bench
}  // namespace lnfree
