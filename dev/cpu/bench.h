// What this machine makes of the operations: seconds, FLOP/s and bytes/s of each, of a training step, and of evaluation,
// beside what the processor can do at the most, measured in the same run (peak.h). An operation takes at least its flops
// at the peak, or its bytes at the speed of a triad over as many bytes, whichever is longer: its floor. Behind
// `train_gpt2_lnfree bench`; its keys are described in data/README.md.
//
// Other libraries are further columns where they are installed and know the processor (libraries.h); nothing else needs them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "data/json.h"
#include "dev/cpu/libraries.h"
#include "dev/cpu/matmul_types.h"
#include "dev/cpu/operations.h"
#include "dev/engine.h"

namespace lnfree {
namespace bench {

struct Options {
    ModelConfig config;
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

// The most that this processor did with the instruction set in use: the fastest of all tries, so that what runs beside us
// lowers a share of it, and never raises one.
class Ceiling {
  public:
    double flops_per_s = 0, one_thread_flops_per_s = 0;  // of multiply-adds in fp32

    // Tries for about `budget` seconds each; with `one_thread`, that too. Both functions may be called again, for more tries.
    void measure_flops(double budget, bool one_thread = true);
    // Bytes per second of a triad that moves so many, and so finds them in the caches that an operation of as many bytes
    // would find them in; beyond any cache: from memory. Or of the same with one array alone, whichever is faster: a core
    // waits for what it reads, so that AdamW, which writes as much as it reads, moves more per second than a triad.
    double bytes_per_s(double bytes, double budget);
    double memory_bytes_per_s(double budget) { return bytes_per_s(kBeyondCaches, budget); }

  private:
    static constexpr double kBeyondCaches = 3 << 28;  // of which two thirds are different bytes: 512 MiB
    Buffer a_, b_;                                    // on huge pages, as the engine's numbers
    std::map<int64_t, double> seen_;                  // most bytes per second, by length
};

// An operation of a training step, alone on buffers of its own.
struct Op {
    std::string name;
    double calls = 0;             // in a training step
    double flops = 0, bytes = 0;  // of one call; bytes: each operand is read once, each result written once
    std::function<void()> run;
    std::function<void(const Library&)> by = {};  // the same product; empty for what is no product
    double seconds = 0;                           // of one call
    std::vector<double> library_seconds = {};     // of one call by each library
    double flops_seconds = 0, bytes_seconds = 0;  // at the ceiling

    double floor() const { return std::max(flops_seconds, bytes_seconds); }
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

    // B sequences of T positions through a model of this shape.
    OpList(const ModelConfig& c, int64_t B, int64_t T);

  private:
    void product(const std::string& name, double calls, Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K,
                 bool accumulate);
    void layer_products(const std::string& name, double calls, int64_t N, int64_t K, int64_t M);
    void streaming(const std::string& name, double calls, double values, std::function<void()> run);
    void add_attention(const ModelConfig& c, int64_t B, int64_t T);
    void add_rotary(const ModelConfig& c, const Heads& heads, int64_t B, int64_t T);
    void add_classifier(const ModelConfig& c, int64_t N);
    void add_norms(const ModelConfig& c, int64_t N);
    void add_activation(const ModelConfig& c, int64_t N);
    void add_elementwise(const ModelConfig& c, int64_t B, int64_t T);
    void add_optimiser(ModelConfig c);

    Operands memory_;
};

struct StepTimes {
    double first = 0, median = 0;  // seconds of a training step
    double evaluation = 0;         // seconds of its forward pass and losses alone
    double one_thread = 0;         // median seconds with a single thread; 0 if that is all there is
    double peak_bytes = 0;         // resident set of the process after the training steps
};

// Steps of the reference engine on made-up weights and tokens; without `all`, no evaluation and no single thread.
StepTimes time_steps(const ModelConfig& c, int64_t B, int64_t T, double budget, bool all = true);

}  // namespace bench
}  // namespace lnfree
