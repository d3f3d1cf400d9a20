// How the time of a training step grows with the model's width and the sequence's length: tokens per second beside the
// roofline, what the machine could do at most. Behind `train_gpt2_lnfree bench --growth FILE.svg`.
//
// The roofline has two parts, both measured in the same run: multiply-adds in registers, and a triad from memory (peak.h). A
// step takes at least its operations over the first and at least its bytes over the second, each operand of each operation
// counted once.
#pragma once

#include <cstdio>

#include "data/json.h"
#include "data/svg_chart.h"

namespace lnfree {
namespace bench {

// Measures for `seconds` a figure, prints a table to `screen`, and returns the points; `chart` becomes the picture.
Json run_growth(double seconds, FILE* screen, Chart& chart);

}  // namespace bench
}  // namespace lnfree
