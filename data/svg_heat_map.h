// Heat maps as SVG text, beside svg_chart.h's lines and with the same manners: a painted background, no fonts of their
// own, a title and a description for screen readers, and every cell's number to be had by pointing at it.
#pragma once

#include <limits>
#include <string>
#include <vector>

namespace lnfree {

// A picture of one number per cell.
struct HeatMap {
    std::string title, x_label, y_label;
    std::vector<std::string> columns, rows;                 // labels, from the left and from the top
    std::vector<std::vector<double>> values;                // (rows)(columns); what is not finite stays blank
    double low = std::numeric_limits<double>::quiet_NaN();  // NaN: from the data
    double high = std::numeric_limits<double>::quiet_NaN();
    int decimals = -1;             // of the numbers in the cells; -1: four significant digits
    std::string description = {};  // for screen readers; empty: made from the extremes
    double width = 760;            // pixels; the height follows from the rows
};

namespace svg {

// Light to dark, its lightness even, told apart without red and green. `share` in [0, 1].
std::string shade(double share);

}  // namespace svg

// The heat map as the text of an SVG file. Throws std::invalid_argument unless there is a value for every cell.
std::string render_svg(const HeatMap& map);

}  // namespace lnfree
