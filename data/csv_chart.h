// A CSV file as a chart: names in its first line, x in the first column, a line for every other one, a gap where a cell is
// empty. Plain numbers only; no quoting.
#pragma once

#include <string>

#include "data/svg_chart.h"

namespace lnfree {

// Throws BadInput for what is no such table.
Chart csv_chart(const std::string& file);

}  // namespace lnfree
