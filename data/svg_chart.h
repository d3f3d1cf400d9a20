// Line charts as SVG text, made for loss curves in the manner of Fig. 1 of arXiv 2507.02559: several series, dashed
// reference levels, and the moments at which LayerNorms were removed as thin vertical lines, bracketed by kind.
//
// The pictures stand on their own: they paint their background (so they read on light and dark pages), use the
// colour-blind-safe colours of Okabe and Ito, ask for no font beyond the reader's sans-serif, carry a title and a
// description for screen readers, and stay small however long the run was (no more points than pixels can show).
#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <vector>

namespace lnfree {

// One line. x and y have equal length; points that are not finite (or not positive on a logarithmic axis) are gaps.
struct ChartSeries {
    std::string name;
    std::vector<double> x, y;
    std::string colour = {};  // "#0072B2"; empty: the next colour of the palette
    bool dashed = false;
    size_t smooth = 0;  // above 1: a thick centred moving average over so many points, on the thin points themselves
    bool dots = false;  // the points alone, in any order, without a line between them
};

// A vertical line. Markers of one kind share a colour and a bracket with the kind's name above the plot; `label` is a
// few characters for this line alone, such as the layer's number, left out where there is no room.
struct ChartMarker {
    double x = 0;
    std::string kind;
    std::string label = {};
};

// A dashed horizontal line with its label at the right edge.
struct ChartReference {
    double y = 0;
    std::string label;
    std::string colour = {};  // empty: grey
};

// A shaded part of the x axis.
struct ChartSpan {
    double from = 0, to = 0;
    std::string label = {};   // at the span's lower left if there is room, and when pointed at
    std::string colour = {};  // empty: light grey
};

// A picture. Only series and, for readers, title and labels are needed.
struct Chart {
    std::string title, x_label, y_label;
    std::vector<ChartSeries> series;
    std::vector<ChartReference> references = {};
    std::vector<ChartMarker> markers = {};
    std::vector<ChartSpan> spans = {};
    std::string description = {};  // for screen readers; empty: made from the names and the last values
    bool shade_markers = true;     // shade from the first marker to the last
    bool log_x = false, log_y = false;
    bool clip_outliers = true;  // linear axes: rare extreme points leave the picture; triangles tell where and how far
    double y_min = std::numeric_limits<double>::quiet_NaN();  // NaN: from the data
    double y_max = std::numeric_limits<double>::quiet_NaN();
    double width = 760, height = 440;  // pixels
};

namespace svg {

// ---------------------------------------------------------------------------------------------------------------------
// Text

// Escapes text for XML. Characters that XML 1.0 forbids, and bytes that are no UTF-8, become '?'.
std::string escape(const std::string& text);

// A number with a fixed count of decimals and a point, whatever the locale: printf would follow LC_NUMERIC.
std::string fixed(double value, int decimals);

// A coordinate: tenths of a pixel are enough for the eye. Far outside values are cut to what every viewer can handle.
std::string pixel(double value);

// A width estimate that errs on the wide side for the usual sans-serif fonts.
double text_width(const std::string& text, double size);

// A data value in a label: four significant digits.
std::string short_number(double value);

// ---------------------------------------------------------------------------------------------------------------------
// Axes

// A place on an axis and what is written there.
struct Tick {
    double value;
    std::string label;
};

// Multiples of a round step within [low, high], at most about `most` of them. Needs low < high.
std::vector<Tick> linear_ticks(double low, double high, int most);

// Powers of ten; with 2 and 5 times them where there is room, and finer still over a decade or less; over a small range
// as on a linear axis.
std::vector<Tick> log_ticks(double low, double high, int most);

// ---------------------------------------------------------------------------------------------------------------------
// Data

// The centred moving average of `window` points (the next odd number), never across a gap. It starts at the first point
// itself, where losses fall fast, with a window that grows; at the end, where they are level, it averages what is left.
// Values beyond `low` and `high` count as these, so that one wild point does not lift all its neighbours.
std::vector<double> moving_average(const std::vector<double>& values, size_t window, double low, double high);

// ---------------------------------------------------------------------------------------------------------------------
// The picture

// The colours of series that have none of their own, in turn.
const std::vector<std::string>& palette();

}  // namespace svg

// The chart as the text of an SVG file. Throws std::invalid_argument when a series has x and y of different lengths; any
// values are fine, and so are no series, no points, a single point and constant series.
std::string render_svg(const Chart& chart);

}  // namespace lnfree
